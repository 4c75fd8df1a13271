/* A world of its own for dlocki_open_in: a clock that only moves when somebody waits, randomness
 * from a seed, sockets that are arrays, and one small model of a server at the other end that
 * understands the commands the library sends and breaks on request. Nothing here sleeps, and a run
 * is the same every time.
 *
 * It includes dlock.h with the implementation, so that statics are in reach; define other limits
 * before it. */
#ifndef SCRIPTED_H
#define SCRIPTED_H

#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <arpa/inet.h>

enum {
    WORLD_FD = 1000, /* fake descriptors begin here                                */
    WORLD_SOCKETS = 48,
    WORLD_STREAM = 81920, /* bytes on their way in one direction                        */
    WORLD_MARKS = 4096,   /* pieces of them that arrive at different times              */
    WORLD_KEYS = 64,
    WORLD_FAULTS = 8,
    WORLD_EVENTS = 16,
    WORLD_LOG = 512,
    WORLD_ADDRESSES = 8,
    WORLD_SPINS = 30000, /* waits without any time passing                             */
    ANY_COMMAND = -1
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
    FAULT_STOP  /* the whole server stops before it, and goes on in `delay_ms`    */
};

struct fault {
    enum fault_kind kind;
    int command; /* enum dlocki_command_kind, or ANY_COMMAND                       */
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
    const char *flood;
    int connect_errno;
    int database;
    unsigned number; /* counted from 1, in the order of connecting                     */
    int64_t connects_at;
    int64_t eof_at;
    struct stream up;
    struct stream down;
};

struct fake_address {
    int now_errno;    /* connect fails at once                                          */
    int later_errno;  /* it fails after delay_ms                                        */
    int64_t delay_ms; /* DLOCKI_NEVER: a black hole                                     */
};

struct model_key {
    bool used;
    int database;
    size_t length;
    int64_t ends; /* by the server's clock; DLOCKI_NEVER                            */
    uint64_t fence;
    char owner[64];
    char key[DLOCK_KEY_MAX];
};

/* One command that the server saw. */
struct seen {
    int kind;
    bool whole; /* the script's text was in it                                    */
    bool executed;
    int database;
    int result; /* 1: granted, given back, extended                               */
    unsigned socket;
    int64_t at;
    int64_t expiry_ms;
    char owner[DLOCKI_OWNER_LENGTH + 1];
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
    bool woken;       /* somebody may have written to a wake-up descriptor */
    int cancel_at;    /* the wait at which cancel_on_wait does; the send that is the last */
    int resolves;
    int connects;
    int64_t connected_at[WORLD_LOG]; /* when connect was called                            */
    int sends;
    int receives;
    int open_sockets;
    int open_wakes;
    int address_count;
    struct fake_address addresses[WORLD_ADDRESSES];
    struct world_event events[WORLD_EVENTS];
    /* The server. */
    bool down; /* nobody listens                                                 */
    bool stopped;
    bool newest_first; /* of the connections that have sent something, it reads that one */
    bool any_order;    /* or any */
    bool needs_password;
    bool loaded[3]; /* acquire, release, extend                                       */
    const char *user;
    const char *password;
    int database;    /* of the keys that the helpers below mean */
    int64_t jump_ms; /* its clock was set                                              */
    uint64_t fence;
    int fault_count;
    int served; /* commands                                                       */
    int wholes; /* scripts that came as text                                      */
    int log_count;
    struct fault faults[WORLD_FAULTS];
    struct model_key keys[WORLD_KEYS];
    struct seen log[WORLD_LOG];
    int socket_count; /* slots ever used                                                */
    unsigned socket_number;
    struct fake_socket sockets[WORLD_SOCKETS];
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

/* --------------------------------------------------------------------------- the model's keys */

static inline int64_t model_now(const struct world *world)
{
    return world->now + world->jump_ms;
}

static inline int64_t model_now_us(const struct world *world)
{
    int64_t span = model_now(world) - WORLD_START;
    return WORLD_WALL_US + dlocki_least(span, INT64_C(1000000000000)) * 1000;
}

static inline struct model_key *model_find(struct world *world, int database, const void *key,
                                           size_t length)
{
    for (int i = 0; i < WORLD_KEYS; i++) {
        struct model_key *one = &world->keys[i];
        if (one->used && one->ends <= model_now(world)) {
            one->used = false;
        }
        if (one->used && one->database == database && one->length == length &&
            memcmp(one->key, key, length) == 0) {
            return one;
        }
    }
    return NULL;
}

static inline struct model_key *model_set(struct world *world, int database, const void *key,
                                          size_t length, const char *owner, int64_t expiry_ms)
{
    for (int i = 0; i < WORLD_KEYS; i++) {
        struct model_key *one = &world->keys[i];
        if (!one->used) {
            one->used = true;
            one->database = database;
            one->length = length;
            one->fence = 0;
            one->ends = dlocki_plus(model_now(world), expiry_ms);
            memcpy(one->key, key, length);
            (void)snprintf(one->owner, sizeof one->owner, "%s", owner);
            return one;
        }
    }
    fail_msg("more than %d keys", WORLD_KEYS);
    return NULL;
}

/* Somebody else takes a key, for so long. */
static inline void world_hold(struct world *world, const char *key, int64_t expiry_ms)
{
    model_set(world, world->database, key, strlen(key), "somebody else", expiry_ms);
}

static inline void world_delete(struct world *world, const char *key)
{
    struct model_key *one = model_find(world, world->database, key, strlen(key));
    if (one != NULL) {
        one->used = false;
    }
}

/* Who holds a key? "" = nobody. */
static inline const char *world_holder(struct world *world, const char *key)
{
    struct model_key *one = model_find(world, world->database, key, strlen(key));
    return one != NULL ? one->owner : "";
}

static inline int64_t world_lease(struct world *world, const char *key)
{
    struct model_key *one = model_find(world, world->database, key, strlen(key));
    return one != NULL ? one->ends - model_now(world) : 0;
}

/* In all databases. */
static inline int world_key_count(struct world *world)
{
    int count = 0;
    for (int i = 0; i < WORLD_KEYS; i++) {
        count += world->keys[i].used && world->keys[i].ends > model_now(world);
    }
    return count;
}

/* -------------------------------------------------------------------------- the model's verbs */

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

static const char *const script_texts[3] = {DLOCKI_LUA_ACQUIRE, DLOCKI_LUA_RELEASE,
                                            DLOCKI_LUA_EXTEND};
static const char *const script_sums[3] = {DLOCKI_LUA_ACQUIRE_SHA1, DLOCKI_LUA_RELEASE_SHA1,
                                           DLOCKI_LUA_EXTEND_SHA1};
static const int script_kinds[3] = {DLOCKI_ASK, DLOCKI_GIVE_BACK, DLOCKI_EXTEND};

static inline int request_script(const struct request *request)
{
    bool whole = word_is(request, 0, "EVAL");
    for (int i = 0; i < 3; i++) {
        if (word_is(request, 1, whole ? script_texts[i] : script_sums[i])) {
            return i;
        }
    }
    fail_msg("a script that nobody knows");
    return 0;
}

/* Which of enum dlocki_command_kind is it? Fills in what is logged. */
static inline void request_look(const struct request *request, struct seen *seen)
{
    static const char *const names[] = {"AUTH", "SELECT", "CLIENT", "PING", "SET"};
    int owner = 2;
    memset(seen, 0, sizeof *seen);
    for (seen->kind = 0; seen->kind < 5; seen->kind++) {
        if (word_is(request, 0, names[seen->kind])) {
            break;
        }
    }
    if (seen->kind < DLOCKI_SET) {
        return;
    }
    if (seen->kind != DLOCKI_SET) {
        int script = request_script(request);
        bool one_key = script_kinds[script] == DLOCKI_EXTEND;
        seen->kind = script_kinds[script];
        seen->whole = word_is(request, 0, "EVAL");
        assert_int_equal(word_number(request, 2), one_key ? 1 : 3);
        owner = one_key ? 4 : 6;
    }
    assert_int_equal(request->lengths[owner], DLOCKI_OWNER_LENGTH);
    memcpy(seen->owner, request->words[owner], DLOCKI_OWNER_LENGTH);
    if (seen->kind == DLOCKI_SET) {
        seen->expiry_ms = word_number(request, 5);
    } else if (seen->kind != DLOCKI_GIVE_BACK) {
        seen->expiry_ms = word_number(request, owner + 1);
    }
}

/* acquire: the script's answers, for a lock without a queue. */
static inline void model_ask(struct world *world, const struct request *request, struct seen *seen,
                             char *reply, size_t size)
{
    const char *key = request->words[3];
    size_t length = request->lengths[3];
    bool fenced = !word_is(request, 10, "0"); /* left out: yes */
    struct model_key *holder = model_find(world, seen->database, key, length);
    bool is_free = holder == NULL;
    assert_true(request->count == 8 || request->count == 11);
    if (holder == NULL) {
        holder = model_set(world, seen->database, key, length, seen->owner, seen->expiry_ms);
        if (fenced) {
            uint64_t floor = (uint64_t)model_now_us(world);
            world->fence = (world->fence > floor ? world->fence : floor) + 1;
            holder->fence = world->fence;
        }
    }
    if (strcmp(holder->owner, seen->owner) == 0) {
        seen->result = 1;
        if (is_free && fenced) {   /* the whole lease, and nothing else to say */
            (void)snprintf(reply, size, ":%lld\r\n", (long long)holder->fence);
            return;
        }
        (void)snprintf(reply, size, "*4\r\n:1\r\n:%lld\r\n:%lld\r\n:%lld\r\n",
                       (long long)holder->fence, (long long)(holder->ends - model_now(world)),
                       (long long)model_now_us(world));
        return;
    }
    (void)snprintf(reply, size, "*6\r\n:0\r\n:%lld\r\n:%lld\r\n:0\r\n:0\r\n:%d\r\n",
                   holder->ends == DLOCKI_NEVER ? -1LL
                                                : (long long)(holder->ends - model_now(world)),
                   (long long)model_now_us(world), strncmp(holder->owner, "dl1-", 4) != 0);
}

static inline void model_lock_command(struct world *world, const struct request *request,
                                      struct seen *seen, char *reply, size_t size)
{
    int at = seen->kind == DLOCKI_SET ? 1 : 3;
    struct model_key *holder =
        model_find(world, seen->database, request->words[at], request->lengths[at]);
    bool ours = holder != NULL && strcmp(holder->owner, seen->owner) == 0;
    switch (seen->kind) {
    case DLOCKI_SET:
        assert_true(word_is(request, 3, "NX") && word_is(request, 4, "PX"));
        seen->result = holder == NULL;
        if (holder == NULL) {
            model_set(world, seen->database, request->words[1], request->lengths[1], seen->owner,
                      seen->expiry_ms);
        }
        (void)snprintf(reply, size, "%s", seen->result ? "+OK\r\n" : "$-1\r\n");
        return;
    case DLOCKI_ASK:
        model_ask(world, request, seen, reply, size);
        return;
    case DLOCKI_EXTEND:
        if (ours) {
            holder->ends = dlocki_most(holder->ends, model_now(world) + seen->expiry_ms);
        }
        break;
    default:
        if (ours) {
            holder->used = false;
        }
        break;
    }
    seen->result = ours;
    (void)snprintf(reply, size, ":%d\r\n", ours);
}

/* Executes a command; the text of the reply. */
static inline void model_execute(struct world *world, struct fake_socket *socket,
                                 const struct request *request, struct seen *seen, char *reply,
                                 size_t size)
{
    int script;
    if (seen->kind == DLOCKI_AUTH) {
        bool right = world->password != NULL &&
                     word_is(request, request->count - 1, world->password) &&
                     (request->count == 2 || word_is(request, 1, world->user));
        socket->authenticated = socket->authenticated || right;
        (void)snprintf(reply, size, "%s",
                       world->password == NULL
                           ? "-ERR AUTH <password> called without any password configured\r\n"
                       : right ? "+OK\r\n"
                               : "-WRONGPASS invalid username-password pair\r\n");
        return;
    }
    if (world->needs_password && !socket->authenticated) {
        (void)snprintf(reply, size, "-NOAUTH Authentication required.\r\n");
        return;
    }
    if (seen->kind == DLOCKI_SELECT) {
        socket->database = (int)word_number(request, 1);
    }
    if (seen->kind < DLOCKI_SET) {
        (void)snprintf(reply, size, "%s", seen->kind == DLOCKI_PING ? "+PONG\r\n" : "+OK\r\n");
        return;
    }
    if (seen->kind != DLOCKI_SET) {
        script = request_script(request);
        if (!seen->whole && !world->loaded[script]) {
            (void)snprintf(reply, size, "-NOSCRIPT No matching script.\r\n");
            return;
        }
        world->loaded[script] = true;
    }
    seen->executed = true;
    model_lock_command(world, request, seen, reply, size);
}

/* ------------------------------------------------------------------------ the model's sockets */

static inline void socket_hang_up(struct world *world, struct fake_socket *socket, bool reset)
{
    socket->hung_up = true;
    socket->reset = reset;
    socket->eof_at = world->now + world->latency_ms;
    stream_clear(&socket->up);
}

/* The fault that is due for this command; false: none. */
static inline bool fault_take(struct world *world, int command, struct fault *due)
{
    for (int i = 0; i < world->fault_count; i++) {
        struct fault *fault = &world->faults[i];
        if (fault->command != ANY_COMMAND && fault->command != command) {
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
static inline void model_reply(struct world *world, struct fake_socket *socket,
                               const struct fault *fault, const char *reply)
{
    struct stream *down = &socket->down;
    size_t length = strlen(reply);
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

static inline void model_log(struct world *world, const struct seen *seen)
{
    world->served++;
    world->wholes += seen->whole;
    if (world->log_count < WORLD_LOG) {
        world->log[world->log_count++] = *seen;
    }
}

/* Serves one command of this connection; false: there is none, or the server has just stopped. */
static inline bool model_serve_one(struct world *world, struct fake_socket *socket)
{
    char reply[256] = "";
    struct request request;
    struct seen seen;
    struct fault fault;
    bool faulty;
    bool executed;
    size_t arrived = stream_arrived(&socket->up, world->now);
    if (!request_parse(socket->up.bytes + socket->up.from, arrived, &request)) {
        return false;
    }
    request_look(&request, &seen);
    faulty = fault_take(world, seen.kind, &fault);
    if (faulty && fault.kind == FAULT_STOP) {
        world->stopped = true;
        if (fault.delay_ms > 0) {
            world_at(world, fault.delay_ms, server_goes_on);
        }
        return false;
    }
    seen.database = socket->database;
    seen.socket = socket->number;
    seen.at = world->now;
    socket->deaf = socket->deaf || (faulty && fault.kind == FAULT_DEAF);
    socket->mute = socket->mute || socket->deaf || (faulty && fault.kind == FAULT_MUTE);
    executed = !faulty || (fault.kind != FAULT_DROP_REQUEST && fault.kind != FAULT_CLOSE_BEFORE &&
                           fault.kind != FAULT_ANSWER && fault.kind != FAULT_FLOOD);
    if (executed && !socket->deaf) {
        model_execute(world, socket, &request, &seen, reply, sizeof reply);
    }
    model_log(world, &seen);
    stream_take(&socket->up, request.size);
    if (!socket->mute) {
        model_reply(world, socket, faulty ? &fault : NULL, reply);
    }
    return true;
}

/* A connection that the library closed, and of which the server has read all it can. */
static inline void model_forget(struct world *world, struct fake_socket *socket)
{
    bool may_come = world->stopped || stream_next(&socket->up, world->now) != DLOCKI_NEVER;
    if (socket->alive && !socket->open && (socket->hung_up || !may_come)) {
        socket->alive = false;
    }
}

/* Of two connections that have both sent something, is `one` read before `other`? As a rule what
 * came first is; but a server that was stopped finds both at once. What is sent only after it
 * answered comes later in any case, and that is what a PING in between is good for. */
static inline bool model_reads_first(struct world *world, const struct fake_socket *one,
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
static inline void model_serve(struct world *world)
{
    bool tried[WORLD_SOCKETS] = {false};
    while (!world->stopped && !world->down) {
        struct fake_socket *next = NULL;
        for (int i = 0; i < world->socket_count; i++) {
            struct fake_socket *one = &world->sockets[i];
            if (one->alive && one->up.mark_count > 0 && !tried[i] &&
                one->up.marks[one->up.mark_first].due <= world->now &&
                model_reads_first(world, one, next)) {
                next = one;
            }
        }
        if (next == NULL) {
            break;
        }
        tried[next - world->sockets] = !model_serve_one(world, next);
    }
    for (int i = 0; i < world->socket_count && !world->stopped; i++) {
        model_forget(world, &world->sockets[i]);
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
    socket->flood = NULL;
    socket->database = 0;
    socket->number = ++our->socket_number;
    socket->connect_errno = plan->later_errno;
    socket->connects_at = dlocki_plus(our->now, plan->delay_ms);
    socket->eof_at = 0;
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
        model_serve(our);
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
    if (fd < WORLD_FD) {
        our->open_wakes--;
        assert_int_equal(close(fd), 0);
        return;
    }
    socket_at(our, fd)->open = false;
    our->open_sockets--;
    model_forget(our, &our->sockets[fd - WORLD_FD]);
}

static inline int world_ready(struct world *world, struct pollfd *fds, int count)
{
    int ready = 0;
    for (int i = 0; i < count; i++) {
        struct fake_socket *socket;
        fds[i].revents = 0;
        if (fds[i].fd < 0) {
            continue;
        }
        if (fds[i].fd < WORLD_FD) {
            if (world->woken && poll(&fds[i], 1, 0) > 0) {
                world->woken = false;
            }
        } else {
            socket = socket_at(world, fds[i].fd);
            if (world->now < socket->connects_at) {
                continue;
            }
            if (socket_readable(world, socket)) {
                fds[i].revents = POLLIN;
            }
            if (socket->connect_errno != 0) {
                fds[i].revents = POLLIN | POLLERR | POLLHUP;
            }
            socket->sent_one = false;
            if ((fds[i].events & POLLOUT) != 0 && world->send_room != 0) {
                fds[i].revents = (short)(fds[i].revents | POLLOUT);
            }
        }
        ready += fds[i].revents != 0;
    }
    return ready;
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
    for (int i = 0; i < world->socket_count; i++) {
        const struct fake_socket *socket = &world->sockets[i];
        if (!socket->alive) {
            continue;
        }
        if (!world->stopped) {
            at = dlocki_least(at, stream_next(&socket->up, world->now));
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
    model_serve(world);
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
    fake_now,       fake_random, fake_pid,     fake_wake_fd, fake_resolve, fake_connect,
    fake_connected, fake_send,   fake_receive, fake_close,   fake_wait,
};

/* ------------------------------------------------------------------------------ for the tests */

static struct world the_world;

static inline void world_load_scripts(struct world *world)
{
    for (int i = 0; i < 3; i++) {
        world->loaded[i] = true;
    }
}

/* A new world; streams keep their old bytes, which nobody can see. */
static inline struct world *world_begin(void)
{
    struct world *world = &the_world;
    memset(world, 0, offsetof(struct world, sockets));
    for (int i = 0; i < WORLD_SOCKETS; i++) {
        world->sockets[i].alive = false;
        world->sockets[i].open = false;
    }
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
}

/* The server that is well again: closing pays all that is owed, and no key is left. */
static inline void world_close_clean(struct world *world, dlock_factory *factory)
{
    world->fault_count = 0;
    world_close(world, factory);
    world_sleep(world, 1);
    assert_int_equal(world_key_count(world), 0);
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

/* ---------------------------------------------------------------------- several calls at once */
/* The engine step by step, so that calls overlap without threads: what dlocki_drive does, with the
 * wait cut out. */

static inline void call_begin(dlock_factory *factory, dlock_lock *lock, int verb)
{
    factory->now = factory->kernel->now(factory->world);
    dlocki_begin(factory, lock, verb);
    dlocki_pump(factory);
}

static inline bool call_acquire(dlock_factory *factory, dlock_lock *lock, const char *key,
                                const dlock_options *options)
{
    dlock_options filled = dlocki_options_filled(options);
    if (!dlocki_acquire_check(factory, lock, key, &filled)) {
        return false;
    }
    dlocki_acquire_prepare(factory, lock, &filled);
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
        dlocki_mutex_lock(&factory->mutex);
        factory->now = world->now;
        dlocki_pump(factory);
        dlocki_wait(factory);
        dlocki_pump(factory);
        dlocki_mutex_unlock(&factory->mutex);
        again = world->ready > 0 || world->wanted <= world->now;
    }
    world->stepping = false;
    return world->wanted;
}

static inline bool call_is_over(const dlock_lock *lock)
{
    return lock->_verb == DLOCKI_NO_VERB;
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
