/* A world of its own for dlocki_open_in: a clock that only moves when somebody waits, randomness
 * from a seed, sockets that are arrays, and at the other end the model of a server, which runs the
 * library's own scripts, and breaks on request. Nothing here sleeps, and a run is the same every
 * time. Any number of factories may live in it, each with its two connections: commands, and the
 * inbox, which is the one that has subscribed.
 *
 * It includes dlock.h with the implementation, so that statics are in reach; define other limits
 * before it. Programs that use it are linked with tests/model.c. */
#ifndef SCRIPTED_H
#define SCRIPTED_H

#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/model.h"
#include "tests/support.h"

#include <arpa/inet.h>

enum {
    WORLD_FD = 1000, /* fake descriptors begin here: sockets                       */
    WORLD_SET_FD = 10000,
    WORLD_TIMER_FD = 20000,
    WORLD_SOCKETS = 96,
    WORLD_SETS = 64,      /* sets of descriptors, and as many timers                    */
    WORLD_WATCHED = 8,    /* descriptors in one set                                     */
    WORLD_STREAM = 81920, /* bytes on their way in one direction                        */
    WORLD_MARKS = 4096,   /* pieces of them that arrive at different times              */
    WORLD_FAULTS = 8,
    WORLD_EVENTS = 16,
    WORLD_LOG = 2048,
    WORLD_ADDRESSES = 8,
    WORLD_SPINS = 30000, /* waits without any time passing                             */
    WORLD_SCRIPTS = 5,
    TICKET_LENGTH = 64,
    ANY_COMMAND = -1,
    A_MESSAGE = -2 /* no command, but what a PUBLISH sends to one inbox          */
};

#define WORLD_START INT64_C(1000000)
/* What the server's clock says at WORLD_START, in microseconds. */
#define WORLD_WALL_US INT64_C(1700000000000000)

/* ---------------------------------------------------------------------------- faults on order */

enum fault_kind {
    FAULT_DROP_REPLY,   /* executed, no reply                                             */
    FAULT_DROP_REQUEST, /* neither                                                        */
    FAULT_CLOSE_BEFORE, /* not executed, connection closed                                */
    FAULT_CLOSE_AFTER,  /* executed, connection closed in place of the reply              */
    FAULT_CUT_REPLY,    /* executed, `bytes` of the reply, then closed                    */
    FAULT_DELAY,        /* executed, the reply comes `delay_ms` later                     */
    FAULT_PIECES,       /* `bytes` of the reply at once, the rest `delay_ms` later        */
    FAULT_DRIP,         /* one byte of the reply every `delay_ms`                         */
    FAULT_MORE,         /* executed; `text` behind the reply                              */
    FAULT_ANSWER,       /* not executed; `text` as the reply                              */
    FAULT_ANSWER_AFTER, /* executed; `text` as the reply                                  */
    FAULT_FLOOD,        /* not executed; `text` over and over, without end                */
    FAULT_MUTE, /* executed, and no reply to anything on this connection any more          */
    FAULT_DEAF, /* not executed, and nothing on this connection any more */
    FAULT_STOP, /* the whole server stops before it, and goes on in `delay_ms`    */
    FAULT_TWICE /* executed; the reply comes twice, the second in `delay_ms`      */
};

/* Which of a factory's two connections? */
enum side { ANY_SIDE, ON_COMMANDS, ON_INBOX };

/* A fault of a message is that of a reply: it may be dropped, delayed (with all that comes behind
 * it on this connection), doubled, cut, replaced, and so on. */
struct fault {
    enum fault_kind kind;
    int command; /* enum dlocki_command_kind, ANY_COMMAND, or A_MESSAGE            */
    enum side side;
    unsigned socket; /* on that connection only, see `seen`; 0 = on any            */
    int skip;    /* so many of them pass first                                     */
    int times;   /* then so many faults; 0 = for ever                              */
    int64_t delay_ms;
    size_t bytes;
    const char *text;
};

/* ---------------------------------------------------------------------------------- the world */

/* Bytes in flight. Each mark says up to where they have arrived at a time. */
struct stream {
    size_t from;
    size_t to;
    int mark_first;
    int mark_count;
    struct {
        size_t end;
        int64_t due;
    } marks[WORLD_MARKS];
    unsigned char bytes[WORLD_STREAM];
};

struct fake_socket {
    bool open;    /* the library has it                                             */
    bool alive;   /* the slot is taken: the server may still read what was sent     */
    bool hung_up; /* the server has closed it; seen from eof_at on                  */
    bool broken;  /* something was sent to nobody                                   */
    bool reset;   /* the end is ECONNRESET, not an end of file                      */
    bool sent_one;
    bool mute;
    bool deaf;
    bool authenticated;
    bool inbox; /* it has sent SUBSCRIBE                                         */
    const char *flood;
    int connect_errno;
    unsigned number; /* counted from 1, in the order of connecting                     */
    int64_t connects_at;
    int64_t eof_at;
    int64_t closed_at; /* the server learns that the library has closed it              */
    char id[17];       /* of the factory, as far as it has said so                      */
    struct model_client client;
    struct stream up;
    struct stream down;
};

struct fake_address {
    int now_errno;    /* connect fails at once                                          */
    int later_errno;  /* it fails after delay_ms                                        */
    int64_t delay_ms; /* DLOCKI_NEVER: a black hole                                     */
};

/* One command that the server saw. */
struct seen {
    int kind;
    bool whole; /* the script's text was in it                                    */
    bool executed;
    bool inbox; /* on a connection that subscribes                                */
    int database;
    int result;    /* 1: granted, given back, extended, there                       */
    int flags;     /* that a release or a break answered                            */
    char letter;   /* of the ticket that an ask wants, or a release removes; 0 = none */
    int64_t score; /* that an ask presented; 0 = none                               */
    int64_t place; /* that it was answered; 0 = none                                */
    unsigned socket;
    int64_t at;
    int64_t expiry_ms;
    char owner[DLOCKI_OWNER_LENGTH + 1]; /* SUBSCRIBE: the channel                  */
    char ticket[TICKET_LENGTH];          /* that a release is to remove; "" = none  */
};

/* One message that was sent to one inbox. */
struct seen_message {
    unsigned socket;
    int64_t at;
    bool whole; /* no fault had to do with it                                     */
    char text[128];
};

/* What the outer set of a factory is made of. */
struct fake_set {
    bool open;
    struct {
        int fd; /* 0 = none */
        short events;
    } watched[WORLD_WATCHED];
};

struct fake_timer {
    bool open;
    int64_t at;
};

struct world;

struct world_event {
    int64_t at; /* 0 = none */
    void (*run)(struct world *world);
};

struct world {
    int64_t now;
    uint64_t seed;
    long pid;
    const char *url;
    /* The kernel. */
    bool stepping; /* wait returns at once and notes in `wanted` until when it would */
    int64_t wanted;
    int ready;
    int64_t latency_ms; /* one way                                                        */
    int64_t pause_ms;   /* every wait takes so much longer: a busy machine                */
    bool no_descriptors;
    bool vanishes; /* the server never learns that the library closes a connection    */
    bool one_byte; /* send takes one, then EAGAIN                                    */
    bool no_random;
    long send_room; /* bytes that send still takes; -1 = any number                   */
    int calls;      /* of the kernel                                                  */
    int fail_at;    /* that one fails; 0 = none                                       */
    bool fail_on;   /* and all after it                                               */
    int waits;
    int spins;
    int most_spins;
    void (*on_wait)(struct world *world);
    dlock_lock *lock; /* for on_wait                                                    */
    bool woken;       /* wake-up descriptors are worth a look: somebody was cancelled */
    int cancel_at;    /* the wait at which cancel_on_wait does; the send that is the last */
    int resolves;
    int connects;
    int sends;
    int receives;
    int open_sockets;
    int open_wakes;
    int open_sets;   /* and timers                                                     */
    struct fake_set sets[WORLD_SETS];
    struct fake_timer timers[WORLD_SETS];
    int address_count;
    struct fake_address addresses[WORLD_ADDRESSES];
    struct world_event events[WORLD_EVENTS];
    /* The server. */
    bool down; /* nobody listens                                                 */
    bool stopped;
    bool newest_first; /* of the connections that have sent something, it reads that one */
    bool any_order;    /* or any */
    bool needs_password;
    bool loaded[WORLD_SCRIPTS]; /* acquire, release, extend, inspect, break               */
    const char *user;
    const char *password;
    int database;    /* of the keys that the helpers below mean */
    int64_t jump_ms; /* its clock was set                                              */
    uint64_t fence;  /* the last one given                                             */
    struct model *model;
    int fault_count;
    int served; /* commands                                                       */
    int wholes; /* scripts that came as text                                      */
    int log_count;
    int message_count;
    struct fault faults[WORLD_FAULTS];
    int socket_count; /* slots ever used                                                */
    unsigned socket_number;
    /* From here on nothing is cleared: it is not looked at before it is written. */
    struct fake_socket sockets[WORLD_SOCKETS];
    struct seen log[WORLD_LOG];
    struct seen_message messages[WORLD_LOG];
    int64_t connected_at[WORLD_LOG]; /* when connect was called                            */
    struct model_reply reply;
    struct model_lua *lua;
};

static inline uint64_t world_random(struct world *world)
{
    uint64_t z = world->seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 to most - 1 */
static inline int world_pick(struct world *world, int most)
{
    return (int)(world_random(world) % (uint64_t)most);
}

static inline void world_at(struct world *world, int64_t span, void (*run)(struct world *))
{
    for (int i = 0; i < WORLD_EVENTS; i++) {
        if (world->events[i].at == 0) {
            world->events[i].at = world->now + span;
            world->events[i].run = run;
            return;
        }
    }
    fail_msg("more than %d events", WORLD_EVENTS);
}

/* Orders a fault, once; the answer is for changing it. */
static inline struct fault *world_fault(struct world *world, enum fault_kind kind, int command)
{
    struct fault *fault = &world->faults[world->fault_count];
    assert_true(world->fault_count < WORLD_FAULTS);
    world->fault_count++;
    memset(fault, 0, sizeof *fault);
    fault->kind = kind;
    fault->command = command;
    fault->times = 1;
    return fault;
}

static inline struct fault *world_answer(struct world *world, int command, const char *text)
{
    struct fault *fault = world_fault(world, FAULT_ANSWER, command);
    fault->text = text;
    return fault;
}

/* -------------------------------------------------------------------------------------- bytes */

static inline void stream_clear(struct stream *stream)
{
    stream->from = 0;
    stream->to = 0;
    stream->mark_first = 0;
    stream->mark_count = 0;
}

static inline void stream_put(struct stream *stream, const void *bytes, size_t count, int64_t due)
{
    int last = stream->mark_first + stream->mark_count - 1;
    if (count == 0) {
        return;
    }
    if (count > WORLD_STREAM - stream->to) {
        fail_msg("a stream is full");
        return;
    }
    memcpy(stream->bytes + stream->to, bytes, count);
    stream->to += count;
    if (stream->mark_count > 0 && due <= stream->marks[last].due) {
        stream->marks[last].end = stream->to; /* never ahead of what was sent before */
        return;
    }
    assert_true(last + 1 < WORLD_MARKS);
    stream->marks[last + 1].end = stream->to;
    stream->marks[last + 1].due = due;
    stream->mark_count++;
}

static inline size_t stream_arrived(const struct stream *stream, int64_t now)
{
    size_t end = stream->from;
    for (int i = 0; i < stream->mark_count; i++) {
        if (stream->marks[stream->mark_first + i].due > now) {
            break;
        }
        end = stream->marks[stream->mark_first + i].end;
    }
    return end - stream->from;
}

static inline void stream_take(struct stream *stream, size_t count)
{
    stream->from += count;
    while (stream->mark_count > 0 && stream->marks[stream->mark_first].end <= stream->from) {
        stream->mark_first++;
        stream->mark_count--;
    }
    if (stream->from == stream->to) {
        stream_clear(stream);
    }
}

/* When more arrives; DLOCKI_NEVER: nothing is on its way. */
static inline int64_t stream_next(const struct stream *stream, int64_t now)
{
    for (int i = 0; i < stream->mark_count; i++) {
        if (stream->marks[stream->mark_first + i].due > now) {
            return stream->marks[stream->mark_first + i].due;
        }
    }
    return DLOCKI_NEVER;
}

/* -------------------------------------------------------------------------- the server's keys */

/* The server's clock, which a test may have set. It goes round, so that microseconds can still be
 * counted where the library's clock is close to its end. */
static inline int64_t server_now_us(const struct world *world)
{
    int64_t span = world->now + world->jump_ms - WORLD_START;
    return WORLD_WALL_US + span % INT64_C(1000000000000) * 1000;
}

/* NULL: it is not there. */
static inline struct model_key *model_find(struct world *world, int database, const void *key,
                                           size_t length)
{
    return model_key_find(world->model, database, key, length, server_now_us(world));
}

static inline struct model_key *model_set(struct world *world, int database, const void *key,
                                          size_t length, const char *owner, int64_t expiry_ms)
{
    int64_t ends = dlocki_plus(server_now_us(world) / 1000, expiry_ms);
    return model_key_set(world->model, database, key, length, owner, strlen(owner), ends);
}

static inline struct model_key *world_find(struct world *world, const char *key)
{
    return model_find(world, world->database, key, strlen(key));
}

/* Somebody else takes a key, for so long. */
static inline void world_hold(struct world *world, const char *key, int64_t expiry_ms)
{
    model_set(world, world->database, key, strlen(key), "somebody else", expiry_ms);
}

static inline void world_delete(struct world *world, const char *key)
{
    struct model_key *one = world_find(world, key);
    if (one != NULL) {
        model_key_delete(world->model, one);
    }
}

/* Who holds a key? "" = nobody. */
static inline const char *world_holder(struct world *world, const char *key)
{
    struct model_key *one = world_find(world, key);
    return one == NULL ? "" : one->sorted ? "a sorted set" : one->bytes;
}

static inline int64_t world_lease(struct world *world, const char *key)
{
    struct model_key *one = world_find(world, key);
    return one != NULL ? one->ends - server_now_us(world) / 1000 : 0;
}

/* "queue" or "fence": is it such a key, which stands beside a lock? */
static inline bool key_is_helper(const struct model_key *key, const char *name)
{
    size_t length = strlen(name);
    const char *end = key->key + key->key_length;
    return (key->key_length > length + 2 && memcmp(end - length - 2, "}:", 2) == 0 &&
            memcmp(end - length, name, length) == 0) ||
           (key->key_length > length + 7 && memcmp(end - length - 7, ":dlock:", 7) == 0 &&
            memcmp(end - length, name, length) == 0);
}

/* The key that stands beside a lock; NULL: it is not there. */
static inline struct model_key *world_helper(struct world *world, const char *key, const char *name)
{
    char text[DLOCK_KEY_MAX + 32];
    bool tagged = dlocki_key_has_tag(key, strlen(key));
    (void)snprintf(text, sizeof text, tagged ? "%s:dlock:%s" : "{%s}:%s", key, name);
    return world_find(world, text);
}

/* Locks, in all databases. */
static inline int world_key_count(struct world *world)
{
    int count = 0;
    struct model_key *key = NULL;
    while ((key = model_key_next(world->model, key, server_now_us(world))) != NULL) {
        count += !key_is_helper(key, "queue") && !key_is_helper(key, "fence");
    }
    return count;
}

/* Places in line, for all locks in all databases. */
static inline int world_ticket_count(struct world *world)
{
    int count = 0;
    struct model_key *key = NULL;
    while ((key = model_key_next(world->model, key, server_now_us(world))) != NULL) {
        count += key->sorted && key_is_helper(key, "queue") ? (int)key->count : 0;
    }
    return count;
}

/* The ticket at a place in a lock's line, counted from 1; NULL: nobody is there. */
static inline const struct model_member *world_ticket(struct world *world, const char *key,
                                                      size_t place)
{
    const struct model_key *line = world_helper(world, key, "queue");
    return line != NULL && line->sorted && place >= 1 && place <= line->count
               ? &line->members[place - 1]
               : NULL;
}

/* What is known of a lock's fences; 0 = nothing. */
static inline uint64_t world_counter(struct world *world, const char *key)
{
    return (uint64_t)model_key_score(world_helper(world, key, "fence"), "f", 1, 0);
}

/* The lock that this owner holds may stay, as far as world_key_count is concerned. */
static inline void world_strike(struct world *world, const char *owner)
{
    struct model_key *key = model_key_next(world->model, NULL, server_now_us(world));
    while (key != NULL) {
        struct model_key *next = model_key_next(world->model, key, server_now_us(world));
        if (!key->sorted && strcmp(key->bytes, owner) == 0) {
            model_key_delete(world->model, key);
        }
        key = next;
    }
}

/* All data is lost. */
static inline void world_flush(struct world *world)
{
    struct model_key *key;
    while ((key = model_key_next(world->model, NULL, INT64_MIN)) != NULL) {
        model_key_delete(world->model, key);
    }
}

static inline struct model_switches *world_switches(struct world *world)
{
    return model_switches(world->model);
}

/* How many inboxes are subscribed, as far as the server knows? */
static inline int world_inbox_count(const struct world *world)
{
    int count = 0;
    for (int i = 0; i < world->socket_count; i++) {
        count += world->sockets[i].alive && !world->sockets[i].hung_up &&
                 world->sockets[i].client.channel_count > 0;
    }
    return count;
}

/* --------------------------------------------------------------------------- what is asked for */

struct request {
    int count;
    const char *words[12];
    size_t lengths[12];
    size_t size; /* of all of it */
};

/* A whole request stands at the front of `bytes`? What the library sends is never malformed. */
static inline bool request_parse(const unsigned char *bytes, size_t length, struct request *request)
{
    const char *text = (const char *)bytes;
    size_t at = 0;
    int words = 1;
    request->count = 0;
    for (int i = 0; i <= words; i++) {
        size_t number = 0;
        const char *end = memchr(text + at, '\n', length - at);
        if (end == NULL) {
            return false;
        }
        assert_int_equal(text[at], i == 0 ? '*' : '$');
        for (at++; text[at] != '\r'; at++) {
            assert_in_range(text[at], '0', '9');
            number = number * 10 + (size_t)(text[at] - '0');
        }
        at += 2;
        assert_ptr_equal(text + at - 1, end);
        if (i == 0) {
            assert_in_range(number, 1, 12);
            words = (int)number;
            continue;
        }
        if (number + 2 > length - at) {
            return false;
        }
        request->words[i - 1] = text + at;
        request->lengths[i - 1] = number;
        at += number + 2;
        assert_memory_equal(text + at - 2, "\r\n", 2);
    }
    request->count = words;
    request->size = at;
    return true;
}

static inline bool word_is(const struct request *request, int i, const char *text)
{
    return i < request->count && request->lengths[i] == strlen(text) &&
           memcmp(request->words[i], text, request->lengths[i]) == 0;
}

static inline int64_t word_number(const struct request *request, int i)
{
    char text[24] = "";
    assert_in_range(request->lengths[i], 1, 20);
    memcpy(text, request->words[i], request->lengths[i]);
    return strtoll(text, NULL, 10);
}

static const struct {
    int kind; /* enum dlocki_command_kind */
    int keys;
    const char *text;
    const char *sum;
} world_scripts[WORLD_SCRIPTS] = {
    {DLOCKI_ASK, 3, DLOCKI_LUA_ACQUIRE, DLOCKI_LUA_ACQUIRE_SHA1},
    {DLOCKI_GIVE_BACK, 3, DLOCKI_LUA_RELEASE, DLOCKI_LUA_RELEASE_SHA1},
    {DLOCKI_EXTEND, 1, DLOCKI_LUA_EXTEND, DLOCKI_LUA_EXTEND_SHA1},
    {DLOCKI_INSPECT, 3, DLOCKI_LUA_INSPECT, DLOCKI_LUA_INSPECT_SHA1},
    {DLOCKI_BREAK, 3, DLOCKI_LUA_BREAK, DLOCKI_LUA_BREAK_SHA1},
};

/* Which script does this EVAL or EVALSHA run? */
static inline int request_script(const struct request *request)
{
    bool whole = word_is(request, 0, "EVAL");
    for (int i = 0; i < WORLD_SCRIPTS; i++) {
        if (word_is(request, 1, whole ? world_scripts[i].text : world_scripts[i].sum)) {
            return i;
        }
    }
    fail_msg("a script that nobody knows");
    return 0;
}

/* A word as text, cut to what fits. */
static inline void word_copy(const struct request *request, int i, char *text, size_t size)
{
    size_t length = request->lengths[i] < size - 1 ? request->lengths[i] : size - 1;
    memcpy(text, request->words[i], length);
    text[length] = 0;
}

/* A script's arguments begin at `at`. */
static inline void request_look_script(const struct request *request, int at, struct seen *seen)
{
    bool asks = seen->kind == DLOCKI_ASK;
    if (seen->kind == DLOCKI_INSPECT || seen->kind == DLOCKI_BREAK) {
        assert_int_equal(request->count, at);
        return;
    }
    assert_true(request->count > at && request->lengths[at] == DLOCKI_OWNER_LENGTH);
    word_copy(request, at, seen->owner, sizeof seen->owner);
    if (seen->kind == DLOCKI_GIVE_BACK) {
        assert_in_range(request->count, at + 1, at + 2);
        if (request->count > at + 1) {
            assert_in_range(request->lengths[at + 1], 0, sizeof seen->ticket - 1);
            word_copy(request, at + 1, seen->ticket, sizeof seen->ticket);
            seen->letter = seen->ticket[0] != 0 ? seen->ticket[strlen(seen->ticket) - 1] : 0;
        }
        return;
    }
    assert_in_range(request->count, at + 2, asks ? at + 5 : at + 2);
    seen->expiry_ms = word_number(request, at + 1);
    if (asks && request->count > at + 2) {
        assert_in_range(request->lengths[at + 2], 0, 1);
        seen->letter = request->lengths[at + 2] == 1 ? request->words[at + 2][0] : 0;
    }
    if (asks && request->count > at + 3) {
        seen->score = word_number(request, at + 3);
    }
}

/* Which of enum dlocki_command_kind is it? Fills in what is logged. */
static inline void request_look(const struct request *request, struct seen *seen)
{
    static const struct {
        const char *name;
        int kind;
    } plain[] = {{"AUTH", DLOCKI_AUTH}, {"SELECT", DLOCKI_SELECT},       {"CLIENT", DLOCKI_SETNAME},
                 {"PING", DLOCKI_PING}, {"SUBSCRIBE", DLOCKI_SUBSCRIBE}, {"SET", DLOCKI_SET}};
    int script;
    memset(seen, 0, sizeof *seen);
    for (int i = 0; i < 6; i++) {
        if (word_is(request, 0, plain[i].name)) {
            seen->kind = plain[i].kind;
            if (seen->kind == DLOCKI_SET) {
                assert_true(word_is(request, 3, "NX") && word_is(request, 4, "PX"));
                word_copy(request, 2, seen->owner, sizeof seen->owner);
                seen->expiry_ms = word_number(request, 5);
            } else if (seen->kind == DLOCKI_SUBSCRIBE) {
                word_copy(request, 1, seen->owner, sizeof seen->owner);
            }
            return;
        }
    }
    script = request_script(request);
    seen->kind = world_scripts[script].kind;
    seen->whole = word_is(request, 0, "EVAL");
    assert_int_equal(word_number(request, 2), world_scripts[script].keys);
    request_look_script(request, 3 + world_scripts[script].keys, seen);
}

/* Is it about a lock, and not about the connection? */
static inline bool seen_is_about_lock(const struct seen *seen)
{
    return seen->kind == DLOCKI_SET || seen->kind == DLOCKI_ASK || seen->kind == DLOCKI_EXTEND ||
           seen->kind == DLOCKI_GIVE_BACK || seen->kind == DLOCKI_INSPECT ||
           seen->kind == DLOCKI_BREAK;
}

/* -------------------------------------------------------------------------- what is executed */

/* The integers that a reply begins with: one, or those of an array; how many. */
static inline int reply_numbers(const struct model_reply *reply, int64_t *numbers, int room)
{
    const char *at = reply->bytes;
    const char *end = reply->bytes + reply->length;
    int count = 0;
    if (at < end && *at == '*') {
        at = (const char *)memchr(at, '\n', reply->length) + 1;
    }
    while (at < end && *at == ':' && count < room) {
        numbers[count++] = strtoll(at + 1, NULL, 10);
        at = (const char *)memchr(at, '\n', (size_t)(end - at)) + 1;
    }
    return count;
}

/* What became of a command about a lock. */
static inline void seen_look(struct world *world, struct seen *seen,
                             const struct model_reply *reply)
{
    int64_t numbers[6] = {0};
    int count = reply_numbers(reply, numbers, 6);
    int64_t fence = 0;
    seen->executed = strncmp(reply->bytes, "-NO", 3) != 0;
    switch (seen->kind) {
    case DLOCKI_SET:
        seen->result = reply->bytes[0] == '+';
        break;
    case DLOCKI_ASK:
        seen->result = count == 1 || (count == 4 && numbers[0] == 1);
        seen->result = seen->result && (reply->bytes[0] == ':' || count == 4);
        seen->place = count == 6 ? numbers[4] : 0;
        fence = reply->bytes[0] == ':' ? numbers[0] : count == 4 ? numbers[1] : 0;
        world->fence = fence > 0 ? (uint64_t)fence : world->fence;
        break;
    case DLOCKI_INSPECT:
        seen->result = count > 0 && numbers[0] != -2;
        break;
    case DLOCKI_EXTEND:
        seen->result = count == 1 && numbers[0] == 1;
        break;
    default:
        seen->flags = count == 1 ? (int)numbers[0] : 0;
        seen->result = seen->flags & 1;
        break;
    }
}

/* A test that has struck out a script means that the server has lost it. */
static inline void scripts_obey(struct world *world, int script)
{
    if (!world->loaded[script]) {
        model_forget_scripts(world->model);
        for (int i = 0; i < WORLD_SCRIPTS; i++) {
            if (world->loaded[i]) {
                model_load_script(world->model, world_scripts[i].text,
                                  strlen(world_scripts[i].text));
            }
        }
    }
}

static inline void reply_say(struct model_reply *reply, const char *text)
{
    size_t length = strlen(text);
    if (reply->room < length + 1) {
        reply->bytes = (char *)realloc(reply->bytes, length + 1);
        assert_non_null(reply->bytes);
        reply->room = length + 1;
    }
    memcpy(reply->bytes, text, length + 1);
    reply->length = length;
}

static inline void server_authenticate(struct world *world, struct fake_socket *socket,
                                       const struct request *request)
{
    bool right = world->password != NULL && word_is(request, request->count - 1, world->password) &&
                 (request->count == 2 || word_is(request, 1, world->user));
    socket->authenticated = socket->authenticated || right;
    reply_say(&world->reply, world->password == NULL
                                 ? "-ERR AUTH <password> called without any password configured\r\n"
                             : right ? "+OK\r\n"
                                     : "-WRONGPASS invalid username-password pair\r\n");
}

/* A connection that is over for the server is nobody's inbox any more. */
static inline void server_unsubscribe(struct world *world)
{
    for (int i = 0; i < world->socket_count; i++) {
        struct fake_socket *socket = &world->sockets[i];
        if (socket->client.channel_count > 0 && (socket->hung_up || !socket->alive)) {
            model_client_close(world->model, &socket->client);
        }
    }
}

/* Executes a command; the reply is in world->reply. */
static inline void server_execute(struct world *world, struct fake_socket *socket,
                                  const struct request *request, struct seen *seen)
{
    bool is_script = word_is(request, 0, "EVAL") || word_is(request, 0, "EVALSHA");
    int script = is_script ? request_script(request) : 0;
    struct model_reply *reply = &world->reply;
    reply->length = 0;
    if (seen->kind == DLOCKI_AUTH) {
        server_authenticate(world, socket, request);
        return;
    }
    if (world->needs_password && !socket->authenticated) {
        reply_say(reply, "-NOAUTH Authentication required.\r\n");
        return;
    }
    server_unsubscribe(world);
    if (is_script) {
        scripts_obey(world, script);
    }
    model_execute(world->model, &socket->client, request->count, request->words, request->lengths,
                  server_now_us(world), reply);
    if (is_script) {
        world->loaded[script] = model_knows_script(world->model, world_scripts[script].sum);
    }
    if (seen_is_about_lock(seen)) {
        seen_look(world, seen, reply);
    }
}

/* ----------------------------------------------------------------------- the server's sockets */

static inline void socket_hang_up(struct world *world, struct fake_socket *socket, bool reset)
{
    socket->hung_up = true;
    socket->reset = reset;
    socket->eof_at = world->now + world->latency_ms;
    stream_clear(&socket->up);
}

/* Is a fault meant for such a command, or for a message, on this connection? */
static inline bool fault_is_for(const struct fault *fault, int command,
                                const struct fake_socket *socket)
{
    return (fault->command == command || (fault->command == ANY_COMMAND && command != A_MESSAGE)) &&
           (fault->side == ANY_SIDE || (fault->side == ON_INBOX) == socket->inbox) &&
           (fault->socket == 0 || fault->socket == socket->number);
}

/* The fault that is due for this command; false: none. */
static inline bool fault_take(struct world *world, int command, const struct fake_socket *socket,
                              struct fault *due)
{
    for (int i = 0; i < world->fault_count; i++) {
        struct fault *fault = &world->faults[i];
        if (!fault_is_for(fault, command, socket)) {
            continue;
        }
        if (fault->skip > 0) {
            fault->skip--;
            continue;
        }
        *due = *fault;
        if (fault->times == 1) {
            world->fault_count--;
            memmove(fault, fault + 1, (size_t)(world->fault_count - i) * sizeof *fault);
        } else if (fault->times > 1) {
            fault->times--;
        }
        return true;
    }
    return false;
}

static inline void server_goes_on(struct world *world)
{
    world->stopped = false;
}

/* The reply's way back, with what goes wrong there. */
static inline void server_reply(struct world *world, struct fake_socket *socket,
                                const struct fault *fault, const char *reply, size_t length)
{
    struct stream *down = &socket->down;
    size_t head = fault != NULL && fault->bytes < length ? fault->bytes : length;
    int64_t due = world->now + world->latency_ms;
    if (fault == NULL) {
        stream_put(down, reply, length, due);
        return;
    }
    switch (fault->kind) {
    case FAULT_CUT_REPLY:
        stream_put(down, reply, head, due);
        socket_hang_up(world, socket, false);
        break;
    case FAULT_DELAY:
        stream_put(down, reply, length, due + fault->delay_ms);
        break;
    case FAULT_PIECES:
        stream_put(down, reply, head, due);
        stream_put(down, reply + head, length - head, due + fault->delay_ms);
        break;
    case FAULT_DRIP:
        for (size_t i = 0; i < length; i++) {
            stream_put(down, reply + i, 1, due + (int64_t)i * fault->delay_ms);
        }
        break;
    case FAULT_MORE:
        stream_put(down, reply, length, due);
        stream_put(down, fault->text, strlen(fault->text), due + fault->delay_ms);
        break;
    case FAULT_TWICE:
        stream_put(down, reply, length, due);
        stream_put(down, reply, length, due + fault->delay_ms);
        break;
    case FAULT_ANSWER:
    case FAULT_ANSWER_AFTER:
        stream_put(down, fault->text, strlen(fault->text), due + fault->delay_ms);
        break;
    case FAULT_FLOOD:
        socket->flood = fault->text;
        break;
    case FAULT_CLOSE_BEFORE:
    case FAULT_CLOSE_AFTER:
        socket_hang_up(world, socket, fault->bytes != 0);
        break;
    default:
        break;
    }
}

/* The payload of a message, which ends where its bytes do: behind the words "message" and the
 * channel, each with its length in front. */
static inline const char *message_payload(const char *bytes, size_t *length)
{
    for (int i = 0; i < 3; i++) {
        bytes = strchr(bytes, '$') + 1;
        *length = (size_t)strtoul(bytes, NULL, 10);
        bytes = strchr(bytes, '\n') + 1;
        bytes += i < 2 ? *length : 0;
    }
    return bytes;
}

static inline void message_log(struct world *world, const struct fake_socket *socket, bool whole,
                               const char *payload, size_t length)
{
    long long fence;
    if (sscanf(payload, "g dl1-%*32s %lld", &fence) == 1 && fence > 0) {
        world->fence = (uint64_t)fence;
    }
    if (world->message_count < WORLD_LOG) {
        struct seen_message *message = &world->messages[world->message_count++];
        message->socket = socket->number;
        message->at = world->now;
        message->whole = whole;
        (void)snprintf(message->text, sizeof message->text, "%.*s", (int)length, payload);
    }
}

/* A published message on its way to one inbox; the model calls it. */
static inline void server_deliver(void *user, struct model_client *to, const char *bytes,
                                  size_t length)
{
    struct world *world = (struct world *)user;
    struct fake_socket *socket = (struct fake_socket *)to->user;
    struct fault fault;
    bool faulty = fault_take(world, A_MESSAGE, socket, &fault);
    size_t payload_length;
    const char *payload = message_payload(bytes, &payload_length);
    if (faulty && (fault.kind == FAULT_MUTE || fault.kind == FAULT_DEAF)) {
        socket->mute = true;
        socket->deaf = socket->deaf || fault.kind == FAULT_DEAF;
    }
    message_log(world, socket, !faulty && !socket->mute && !socket->hung_up, payload,
                payload_length);
    if (!socket->mute && !socket->hung_up) {
        server_reply(world, socket, faulty ? &fault : NULL, bytes, length);
    }
}

static inline void server_log(struct world *world, const struct seen *seen)
{
    world->served++;
    world->wholes += seen->whole;
    if (world->log_count < WORLD_LOG) {
        world->log[world->log_count++] = *seen;
    }
}

/* Is a command executed in spite of this fault? */
static inline bool fault_lets_execute(const struct fault *fault)
{
    return fault->kind != FAULT_DROP_REQUEST && fault->kind != FAULT_CLOSE_BEFORE &&
           fault->kind != FAULT_ANSWER && fault->kind != FAULT_FLOOD;
}

/* Whose connection is it? Owners and channels begin with the factory's digits. */
static inline void socket_learn(struct fake_socket *socket, const struct seen *seen)
{
    const char *id = seen->kind == DLOCKI_SUBSCRIBE ? seen->owner + 6 : seen->owner + 4;
    socket->inbox = socket->inbox || seen->kind == DLOCKI_SUBSCRIBE;
    if (strlen(seen->owner) >= 6 + 16) {
        memcpy(socket->id, id, 16);
    }
}

/* Serves one command of this connection; false: there is none, or the server has just stopped. */
static inline bool server_serve_one(struct world *world, struct fake_socket *socket)
{
    struct request request;
    struct seen seen;
    struct fault fault;
    bool faulty;
    size_t arrived = stream_arrived(&socket->up, world->now);
    if (!request_parse(socket->up.bytes + socket->up.from, arrived, &request)) {
        return false;
    }
    request_look(&request, &seen);
    socket_learn(socket, &seen);
    faulty = fault_take(world, seen.kind, socket, &fault);
    if (faulty && fault.kind == FAULT_STOP) {
        world->stopped = true;
        if (fault.delay_ms > 0) {
            world_at(world, fault.delay_ms, server_goes_on);
        }
        return false;
    }
    seen.inbox = socket->inbox;
    seen.database = socket->client.database;
    seen.socket = socket->number;
    seen.at = world->now;
    socket->deaf = socket->deaf || (faulty && fault.kind == FAULT_DEAF);
    socket->mute = socket->mute || socket->deaf || (faulty && fault.kind == FAULT_MUTE);
    reply_say(&world->reply, "");
    if (!socket->deaf && (!faulty || fault_lets_execute(&fault))) {
        server_execute(world, socket, &request, &seen);
    }
    server_log(world, &seen);
    stream_take(&socket->up, request.size);
    if (!socket->mute && !socket->hung_up) {
        server_reply(world, socket, faulty ? &fault : NULL, world->reply.bytes,
                     world->reply.length);
    }
    return true;
}

/* A connection that the library closed, and of which the server has read all it can. */
static inline void server_forget(struct world *world, struct fake_socket *socket)
{
    bool may_come = world->stopped || world->now < socket->closed_at ||
                    stream_next(&socket->up, world->now) != DLOCKI_NEVER;
    if (socket->alive && !socket->open && (socket->hung_up || !may_come)) {
        socket->alive = false;
        model_client_close(world->model, &socket->client);
    }
}

/* Of two connections that have both sent something, is `one` read before `other`? As a rule what
 * came first is; but a server that was stopped finds both at once. What is sent only after it
 * answered comes later in any case, and that is what a PING in between is good for. */
static inline bool server_reads_first(struct world *world, const struct fake_socket *one,
                                      const struct fake_socket *other)
{
    if (other == NULL || world->newest_first) {
        return other == NULL || one->number > other->number;
    }
    if (world->any_order) {
        return world_pick(world, 2) == 0;
    }
    return one->up.marks[one->up.mark_first].due < other->up.marks[other->up.mark_first].due;
}

/* Reads the connections until nothing is left that has arrived. */
static inline void server_serve(struct world *world)
{
    bool tried[WORLD_SOCKETS] = {false};
    while (!world->stopped && !world->down) {
        struct fake_socket *next = NULL;
        for (int i = 0; i < world->socket_count; i++) {
            struct fake_socket *one = &world->sockets[i];
            if (one->alive && one->up.mark_count > 0 && !tried[i] &&
                one->up.marks[one->up.mark_first].due <= world->now &&
                server_reads_first(world, one, next)) {
                next = one;
            }
        }
        if (next == NULL) {
            break;
        }
        tried[next - world->sockets] = !server_serve_one(world, next);
    }
    for (int i = 0; i < world->socket_count && !world->stopped; i++) {
        server_forget(world, &world->sockets[i]);
    }
}

/* Everybody is hung up on, and nobody listens any more. Data is kept, scripts are not. */
static inline void server_dies(struct world *world)
{
    world->down = true;
    world->stopped = false;
    memset(world->loaded, 0, sizeof world->loaded);
    for (int i = 0; i < world->socket_count; i++) {
        if (world->sockets[i].alive && !world->sockets[i].hung_up) {
            socket_hang_up(world, &world->sockets[i], false);
        }
    }
}

/* Hangs up on every connection of one side; of one factory, or of all: NULL. */
static inline void world_cut(struct world *world, enum side side, const dlock_factory *factory)
{
    for (int i = 0; i < world->socket_count; i++) {
        struct fake_socket *socket = &world->sockets[i];
        if (socket->alive && !socket->hung_up &&
            (side == ANY_SIDE || (side == ON_INBOX) == socket->inbox) &&
            (factory == NULL || strcmp(socket->id, factory->id) == 0)) {
            socket_hang_up(world, socket, false);
        }
    }
}

/* Now; or at a given moment: world_at(world, span, world_cut_inbox). */
static inline void world_cut_inbox(struct world *world)
{
    world_cut(world, ON_INBOX, NULL);
}

static inline void world_cut_commands(struct world *world)
{
    world_cut(world, ON_COMMANDS, NULL);
}

static inline void server_revives(struct world *world)
{
    world->down = false;
}

static inline void server_restarts(struct world *world)
{
    server_dies(world);
    server_revives(world);
}

static inline void server_stops(struct world *world)
{
    world->stopped = true;
}

/* --------------------------------------------------------------------------------- the kernel */

static inline struct world *world_of(void *world)
{
    return (struct world *)world;
}

static inline bool kernel_fails(struct world *world)
{
    world->calls++;
    return world->fail_at > 0 &&
           (world->calls == world->fail_at || (world->fail_on && world->calls > world->fail_at));
}

static int64_t fake_now(void *world)
{
    return world_of(world)->now;
}

static bool fake_random(void *world, unsigned char *bytes, size_t count)
{
    if (kernel_fails(world_of(world)) || world_of(world)->no_random) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (unsigned char)world_random(world_of(world));
    }
    return true;
}

static long fake_pid(void *world)
{
    return world_of(world)->pid;
}

/* The one real descriptor: dlock_cancel writes to it without asking the world. */
static int fake_wake_fd(void *world)
{
    int fd;
    if (kernel_fails(world_of(world)) || world_of(world)->no_descriptors) {
        return -EMFILE;
    }
    fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(fd >= 0);
    world_of(world)->open_wakes++;
    return fd;
}

static int fake_resolve(void *world, const char *host, int port, dlocki_address *found, int room)
{
    struct world *our = world_of(world);
    int count = our->address_count;
    (void)host;
    (void)port;
    our->resolves++;
    if (kernel_fails(our)) {
        return -ENOENT;
    }
    for (int i = 0; i < count && i < room; i++) {
        struct sockaddr_in address;
        memset(&address, 0, sizeof address);
        address.sin_family = AF_INET;
        address.sin_port = htons((uint16_t)(i + 1));
        memcpy(&found[i].at, &address, sizeof address);
        found[i].length = (socklen_t)sizeof address;
    }
    return count < room ? count : room;
}

static inline struct fake_socket *socket_new(struct world *world)
{
    int i = 0;
    while (i < world->socket_count && world->sockets[i].alive) {
        i++;
    }
    if (i == world->socket_count) {
        assert_true(i < WORLD_SOCKETS);
        world->socket_count++;
    }
    world->sockets[i].alive = true;
    return &world->sockets[i];
}

static int fake_connect(void *world, const dlocki_address *address)
{
    struct world *our = world_of(world);
    const struct fake_address *plan;
    struct fake_socket *socket;
    int at = 0;
    if (our->connects < WORLD_LOG) {
        our->connected_at[our->connects] = our->now;
    }
    our->connects++;
    if (kernel_fails(our) || our->no_descriptors) {
        return -EMFILE;
    }
    if (address->at.ss_family == AF_INET) {
        struct sockaddr_in inet;
        memcpy(&inet, &address->at, sizeof inet);
        at = ntohs(inet.sin_port) - 1;
    }
    plan = &our->addresses[at];
    if (plan->now_errno != 0 || our->down) {
        return our->down ? -ECONNREFUSED : -plan->now_errno;
    }
    socket = socket_new(our);
    socket->open = true;
    socket->hung_up = false;
    socket->broken = false;
    socket->reset = false;
    socket->sent_one = false;
    socket->mute = false;
    socket->deaf = false;
    socket->authenticated = false;
    socket->inbox = false;
    socket->flood = NULL;
    socket->number = ++our->socket_number;
    socket->connect_errno = plan->later_errno;
    socket->connects_at = dlocki_plus(our->now, plan->delay_ms);
    socket->eof_at = 0;
    socket->closed_at = 0;
    memset(socket->id, 0, sizeof socket->id);
    memset(&socket->client, 0, sizeof socket->client);
    socket->client.user = socket;
    stream_clear(&socket->up);
    stream_clear(&socket->down);
    our->open_sockets++;
    return WORLD_FD + (int)(socket - our->sockets);
}

static inline struct fake_socket *socket_at(struct world *world, int fd)
{
    assert_in_range(fd, WORLD_FD, WORLD_FD + world->socket_count - 1);
    assert_true(world->sockets[fd - WORLD_FD].open);
    return &world->sockets[fd - WORLD_FD];
}

static int fake_connected(void *world, int fd)
{
    if (kernel_fails(world_of(world))) {
        return ECONNREFUSED;
    }
    return socket_at(world_of(world), fd)->connect_errno;
}

static long fake_send(void *world, int fd, const void *bytes, size_t count)
{
    struct world *our = world_of(world);
    struct fake_socket *socket = socket_at(our, fd);
    if (kernel_fails(our)) {
        return -EPIPE;
    }
    if (our->one_byte) {
        if (socket->sent_one) {
            return -EAGAIN;
        }
        socket->sent_one = true;
        count = 1;
    }
    if (our->send_room >= 0 && count > (size_t)our->send_room) {
        count = (size_t)our->send_room;
    }
    if (count == 0) {
        return -EAGAIN;
    }
    if (socket->hung_up && our->now >= socket->eof_at) {
        bool second = socket->broken || socket->reset;
        socket->broken = true; /* the kernel takes one send before it notices */
        return second ? -EPIPE : (long)count;
    }
    our->send_room -= our->send_room >= 0 ? (long)count : 0;
    our->sends++;
    if (!socket->hung_up) {
        stream_put(&socket->up, bytes, count, our->now + our->latency_ms);
        server_serve(our);
    }
    return (long)count;
}

static inline bool socket_readable(const struct world *world, const struct fake_socket *socket)
{
    return socket->flood != NULL || stream_arrived(&socket->down, world->now) > 0 ||
           (socket->hung_up && socket->down.from == socket->down.to &&
            world->now >= socket->eof_at);
}

static long fake_receive(void *world, int fd, void *bytes, size_t count)
{
    struct world *our = world_of(world);
    struct fake_socket *socket = socket_at(our, fd);
    size_t arrived = stream_arrived(&socket->down, our->now);
    our->receives++;
    if (kernel_fails(our)) {
        return -ECONNRESET;
    }
    if (socket->flood != NULL) {
        size_t length = strlen(socket->flood);
        for (size_t i = 0; i < count; i++) {
            ((char *)bytes)[i] = socket->flood[i % length];
        }
        return (long)count;
    }
    if (arrived == 0) {
        return !socket_readable(our, socket) ? -EAGAIN : socket->reset ? -ECONNRESET : 0;
    }
    if (arrived > count) {
        arrived = count;
    }
    memcpy(bytes, socket->down.bytes + socket->down.from, arrived);
    stream_take(&socket->down, arrived);
    return (long)arrived;
}

static void fake_close(void *world, int fd)
{
    struct world *our = world_of(world);
    struct fake_socket *socket;
    if (fd < WORLD_FD) {
        our->open_wakes--;
        assert_int_equal(close(fd), 0);
        return;
    }
    if (fd >= WORLD_SET_FD) {
        bool *open = fd >= WORLD_TIMER_FD ? &our->timers[fd - WORLD_TIMER_FD].open
                                          : &our->sets[fd - WORLD_SET_FD].open;
        assert_true(*open);
        *open = false;
        our->open_sets--;
        return;
    }
    socket = socket_at(our, fd);
    for (int i = 0; i < WORLD_SETS; i++) { /* which the kernel would forgive, but once only */
        for (int j = 0; our->sets[i].open && j < WORLD_WATCHED; j++) {
            assert_int_not_equal(our->sets[i].watched[j].fd, fd);
        }
    }
    socket->open = false;
    socket->closed_at = our->vanishes ? DLOCKI_NEVER : our->now + our->latency_ms;
    our->open_sockets--;
    server_forget(our, socket);
}

static int fake_set_open(void *world)
{
    struct world *our = world_of(world);
    int i = 0;
    if (kernel_fails(our) || our->no_descriptors) {
        return -EMFILE;
    }
    while (our->sets[i].open) {
        i++;
        assert_true(i < WORLD_SETS);
    }
    memset(&our->sets[i], 0, sizeof our->sets[i]);
    our->sets[i].open = true;
    our->open_sets++;
    return WORLD_SET_FD + i;
}

static void fake_set_watch(void *world, int set, int fd, short events)
{
    struct fake_set *one = &world_of(world)->sets[set - WORLD_SET_FD];
    int free_at = -1;
    assert_true(one->open);
    for (int i = 0; i < WORLD_WATCHED; i++) {
        if (one->watched[i].fd == fd) {
            one->watched[i].events = events;
            one->watched[i].fd = events != 0 ? fd : 0;
            return;
        }
        free_at = one->watched[i].fd == 0 ? i : free_at;
    }
    if (events != 0) {
        assert_true(free_at >= 0);
        one->watched[free_at].fd = fd;
        one->watched[free_at].events = events;
    }
}

static int fake_timer_open(void *world)
{
    struct world *our = world_of(world);
    int i = 0;
    if (kernel_fails(our) || our->no_descriptors) {
        return -EMFILE;
    }
    while (our->timers[i].open) {
        i++;
        assert_true(i < WORLD_SETS);
    }
    our->timers[i].open = true;
    our->timers[i].at = DLOCKI_NEVER;
    our->open_sets++;
    return WORLD_TIMER_FD + i;
}

static void fake_timer_set(void *world, int timer, int64_t at)
{
    struct fake_timer *one = &world_of(world)->timers[timer - WORLD_TIMER_FD];
    assert_true(one->open);
    one->at = at;
}

/* What can be done with one descriptor of this kind, or of the two others? */
static inline short world_events_of(struct world *world, int fd, short events)
{
    const struct fake_socket *socket;
    short ready = 0;
    if (fd >= WORLD_TIMER_FD) {
        return world->timers[fd - WORLD_TIMER_FD].at <= world->now ? POLLIN : 0;
    }
    if (fd < WORLD_FD) {
        struct pollfd real = {fd, events, 0};
        return poll(&real, 1, 0) > 0 ? real.revents : 0;
    }
    socket = socket_at(world, fd);
    if (world->now < socket->connects_at) {
        return 0;
    }
    if (socket_readable(world, socket)) {
        ready = POLLIN;
    }
    if (socket->connect_errno != 0) {
        ready = POLLIN | POLLERR | POLLHUP;
    }
    if ((events & POLLOUT) != 0 && world->send_room != 0) {
        ready = (short)(ready | POLLOUT);
    }
    return ready;
}

static inline int world_ready(struct world *world, struct pollfd *fds, int count)
{
    int ready = 0;
    for (int i = 0; i < count; i++) {
        fds[i].revents = 0;
        if (fds[i].fd < 0 || (fds[i].fd < WORLD_FD && !world->woken)) {
            continue;
        }
        fds[i].revents = world_events_of(world, fds[i].fd, fds[i].events);
        if (fds[i].fd >= WORLD_FD) {
            socket_at(world, fds[i].fd)->sent_one = false;
        }
        ready += fds[i].revents != 0;
    }
    return ready;
}

/* Would a loop that polls dlock_fd() be woken now? */
static inline bool world_fd_ready(struct world *world, int set)
{
    const struct fake_set *one = &world->sets[set - WORLD_SET_FD];
    assert_in_range(set, WORLD_SET_FD, WORLD_SET_FD + WORLD_SETS - 1);
    assert_true(one->open);
    for (int i = 0; i < WORLD_WATCHED; i++) {
        if (one->watched[i].fd != 0 &&
            world_events_of(world, one->watched[i].fd, one->watched[i].events) != 0) {
            return true;
        }
    }
    return false;
}

/* When does something happen next by itself? */
static inline int64_t world_next(const struct world *world)
{
    int64_t at = DLOCKI_NEVER;
    for (int i = 0; i < WORLD_EVENTS; i++) {
        if (world->events[i].at != 0) {
            at = dlocki_least(at, world->events[i].at);
        }
    }
    for (int i = 0; i < WORLD_SETS; i++) {
        if (world->timers[i].open && world->timers[i].at > world->now) {
            at = dlocki_least(at, world->timers[i].at);
        }
    }
    for (int i = 0; i < world->socket_count; i++) {
        const struct fake_socket *socket = &world->sockets[i];
        if (!socket->alive) {
            continue;
        }
        if (!world->stopped) {
            at = dlocki_least(at, stream_next(&socket->up, world->now));
        }
        if (!socket->open && socket->closed_at > world->now) {
            at = dlocki_least(at, socket->closed_at);
        }
        if (socket->open) {
            at = dlocki_least(at, stream_next(&socket->down, world->now));
            if (socket->hung_up && socket->eof_at > world->now) {
                at = dlocki_least(at, socket->eof_at);
            }
            if (socket->connects_at > world->now) {
                at = dlocki_least(at, socket->connects_at);
            }
        }
    }
    return at;
}

/* What is due by now happens. */
static inline void world_happen(struct world *world)
{
    for (int i = 0; i < WORLD_EVENTS; i++) {
        if (world->events[i].at != 0 && world->events[i].at <= world->now) {
            world->events[i].at = 0;
            world->events[i].run(world);
        }
    }
    server_serve(world);
}

/* Time passes, without the library. */
static inline void world_sleep(struct world *world, int64_t span)
{
    int64_t end = dlocki_plus(world->now, span);
    world_happen(world);
    while (world->now < end) {
        world->now = dlocki_least(end, world_next(world));
        world->spins = 0;
        world_happen(world);
    }
}

static int fake_wait(void *world, struct pollfd *fds, int count, int timeout_ms)
{
    struct world *our = world_of(world);
    int64_t end = timeout_ms < 0 ? DLOCKI_NEVER : dlocki_plus(our->now, timeout_ms);
    our->waits++;
    our->spins++;
    if (our->spins > our->most_spins) {
        our->most_spins = our->spins;
    }
    if (our->spins > WORLD_SPINS) {
        fail_msg("it spins: so many waits while no time passes");
    }
    if (our->on_wait != NULL) {
        our->on_wait(our);
    }
    if (our->pause_ms > 0) {
        world_sleep(our, our->pause_ms);
    }
    our->wanted = end;
    our->ready = 0;
    if (kernel_fails(our)) { /* time passes all the same */
        world_sleep(our, 1);
        return -ENOMEM;
    }
    for (;;) {
        int ready;
        world_happen(our);
        ready = world_ready(our, fds, count);
        if (ready > 0 || our->now >= end || our->stepping) {
            our->ready = ready;
            return ready;
        }
        if (dlocki_least(end, world_next(our)) == DLOCKI_NEVER) {
            fail_msg("it waits for ever");
        }
        our->now = dlocki_least(end, world_next(our));
        our->spins = 0;
    }
}

static const dlocki_kernel fake_kernel = {
    fake_now,     fake_random,    fake_pid,       fake_wake_fd,    fake_resolve,
    fake_connect, fake_connected, fake_send,      fake_receive,    fake_close,
    fake_wait,    fake_set_open,  fake_set_watch, fake_timer_open, fake_timer_set,
};

/* ------------------------------------------------------------------------------ for the tests */

static struct world the_world;

static inline void world_load_scripts(struct world *world)
{
    for (int i = 0; i < WORLD_SCRIPTS; i++) {
        world->loaded[i] = true;
        model_load_script(world->model, world_scripts[i].text, strlen(world_scripts[i].text));
    }
}

/* A new world; streams keep their old bytes, which nobody can see. */
static inline struct world *world_begin(void)
{
    struct world *world = &the_world;
    model_close(world->model);
    memset(world, 0, offsetof(struct world, sockets));
    for (int i = 0; i < WORLD_SOCKETS; i++) {
        world->sockets[i].alive = false;
        world->sockets[i].open = false;
    }
    if (world->lua == NULL) { /* and room for any reply, before a test counts what is allocated */
        world->lua = model_lua_open();
        world->reply.room = WORLD_STREAM;
        world->reply.bytes = (char *)malloc(WORLD_STREAM);
        assert_non_null(world->reply.bytes);
    }
    world->model = model_open(world->lua, server_deliver, world);
    model_switches(world->model)->databases = 100;
    world->now = WORLD_START;
    world->seed = 1;
    world->pid = 4711;
    world->url = "redis://model:6379";
    world->send_room = -1;
    world->address_count = 1;
    world->user = "";
    world_load_scripts(world);
    return world;
}

static inline dlock_factory *world_open(struct world *world, const dlock_config *config)
{
    dlock_error error;
    dlock_factory *factory = dlocki_open_in(&fake_kernel, world, world->url, config, &error);
    if (factory == NULL) {
        fail_msg("dlocki_open_in: %s", error.text);
    }
    return factory;
}

/* Closes, within its bound, and looks for what was left open. */
static inline void world_close(struct world *world, dlock_factory *factory)
{
    int64_t began = world->now;
    int64_t bound = factory->command_timeout_ms;
    world->on_wait = NULL;
    dlock_close(factory);
    assert_true(world->now - began <= bound);
    assert_int_equal(world->open_sockets, 0);
    assert_int_equal(world->open_wakes, 0);
    assert_int_equal(world->open_sets, 0);
}

/* The server that is well again: closing pays all that is owed, and neither a lock nor a place in
 * line is left. */
static inline void world_close_clean(struct world *world, dlock_factory *factory)
{
    world->fault_count = 0;
    world_close(world, factory);
    world_sleep(world, world->latency_ms + 1);
    assert_int_equal(world_key_count(world), 0);
    assert_int_equal(world_ticket_count(world), 0);
}

/* A fresh lock can be had: nothing that went before is in the way. */
static inline void works_again(dlock_factory *factory, const char *key)
{
    dlock_options options = {.expiry_ms = 10000};
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(factory, &lock, key, &options), &lock);
    assert_yes(dlock_release(&lock), &lock);
}

/* How often did the server see such a command? */
static inline int world_seen(const struct world *world, int kind)
{
    int count = 0;
    for (int i = 0; i < world->log_count; i++) {
        count += world->log[i].kind == kind;
    }
    return count;
}

/* The n-th such command, counted from 0. */
static inline const struct seen *world_nth(const struct world *world, int kind, int n)
{
    for (int i = 0; i < world->log_count; i++) {
        if (world->log[i].kind == kind && n-- == 0) {
            return &world->log[i];
        }
    }
    fail_msg("the server did not see so many of this command");
    return NULL;
}

/* Bytes that nobody asked for, on every open connection. */
static inline void world_push(struct world *world, const char *text)
{
    for (int i = 0; i < world->socket_count; i++) {
        if (world->sockets[i].open) {
            stream_put(&world->sockets[i].down, text, strlen(text), world->now);
        }
    }
}

/* The same on one side, of one factory, or of all: NULL. */
static inline void world_push_to(struct world *world, enum side side, const dlock_factory *factory,
                                 const char *text)
{
    for (int i = 0; i < world->socket_count; i++) {
        struct fake_socket *socket = &world->sockets[i];
        if (socket->open && (side == ANY_SIDE || (side == ON_INBOX) == socket->inbox) &&
            (factory == NULL || strcmp(socket->id, factory->id) == 0)) {
            stream_put(&socket->down, text, strlen(text), world->now);
        }
    }
}

/* A message that no script has sent. */
static inline void world_forge(struct world *world, const dlock_factory *factory,
                               const char *payload)
{
    char text[512];
    (void)snprintf(text, sizeof text, "*3\r\n$7\r\nmessage\r\n$22\r\ndlock:%s\r\n$%d\r\n%s\r\n",
                   factory->id, (int)strlen(payload), payload);
    world_push_to(world, ON_INBOX, factory, text);
}

/* The n-th message of a kind ('g', 'h', 'b'), counted from 0; NULL: there were not so many. */
static inline const struct seen_message *world_told(const struct world *world, char kind, int n)
{
    for (int i = 0; i < world->message_count; i++) {
        if (world->messages[i].text[0] == kind && n-- == 0) {
            return &world->messages[i];
        }
    }
    return NULL;
}

/* ---------------------------------------------------------------------- several calls at once */
/* The engine step by step, so that calls overlap without threads: what dlocki_drive does, with the
 * wait cut out. */

static inline void call_begin(dlock_factory *factory, dlock_lock *lock, int verb)
{
    dlocki_books_lock(factory);
    factory->now = factory->kernel->now(factory->world);
    dlocki_begin(factory, lock, verb);
    dlocki_pump(factory);
    dlocki_books_unlock(factory);
}

static inline bool call_acquire(dlock_factory *factory, dlock_lock *lock, const char *key,
                                const dlock_options *options)
{
    dlock_options filled = dlocki_options_filled(options);
    if (!dlocki_acquire_take(factory, lock, key, &filled)) {
        return false;
    }
    lock->_claim = DLOCKI_CANCELLABLE;
    call_begin(factory, lock, DLOCKI_ACQUIRE);
    return true;
}

/* Deals with what has come and is due now; until when would it wait next? */
static inline int64_t call_step(struct world *world, dlock_factory *factory)
{
    bool again = true;
    world->stepping = true;
    while (again) {
        dlocki_books_lock(factory);
        factory->now = world->now;
        dlocki_pump(factory);
        dlocki_wait(factory, &factory->lead, factory->wake_fd, true, true);
        dlocki_pump(factory);
        dlocki_tell(factory);
        dlocki_books_unlock(factory);
        again = world->ready > 0 || world->wanted <= world->now;
    }
    world->stepping = false;
    return world->wanted;
}

static inline bool call_is_over(const dlock_lock *lock)
{
    return lock->_factory == NULL || lock->_list != &lock->_factory->pending;
}

/* Until this call is over. */
static inline bool call_finish(struct world *world, dlock_factory *factory, dlock_lock *lock)
{
    while (!call_is_over(lock)) {
        int64_t wanted = call_step(world, factory);
        if (!call_is_over(lock)) {
            int64_t next = dlocki_least(wanted, world_next(world));
            assert_true(next < DLOCKI_NEVER);
            world_sleep(world, next - world->now);
        }
    }
    lock->_claim = DLOCKI_FREE;
    return lock->_answer;
}

/* dlock_cancel, of which the world must be told: it looks at the descriptor only then. */
static inline void world_cancel(struct world *world, dlock_lock *lock)
{
    world->woken = true;
    dlock_cancel(lock);
}

/* on_wait: cancels world->lock at the cancel_at-th wait. */
static inline void cancel_on_wait(struct world *world)
{
    if (world->waits == world->cancel_at) {
        world_cancel(world, world->lock);
    }
}

/* on_wait: after the cancel_at-th send nobody reads any more what is sent. */
static inline void clog_on_wait(struct world *world)
{
    if (world->sends >= world->cancel_at) {
        world->send_room = 0;
        world->on_wait = NULL;
    }
}

#endif /* SCRIPTED_H */
