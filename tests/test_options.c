/* What a caller may ask for and what not, how often a handle may be used, and whose memory it is.
 * The factories here live in a world of their own: a clock that stands still unless somebody
 * waits, and a server in this file that grants what it is asked for. Every call that would reach
 * the network is counted, so that "nothing is sent" means just that. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <malloc.h>
#include <sys/mman.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))
#define MARKER "S3CRET"
#define URL "redis://host"
#define FENCE 1795398000123457

/* ---------------------------------------------------------------------------- malloc, looked at */

/* The sanitizers bring a malloc of their own: there only the library's own use is counted. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_MALLOC 0
#endif
#endif
#ifndef OWN_MALLOC
#define OWN_MALLOC 1
#endif

static unsigned allocations;
static unsigned leaks;        /* freed memory that still held the marker */
static bool look_for_marker;

#if OWN_MALLOC
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void __libc_free(void *memory);

void *malloc(size_t size)
{
    allocations++;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    allocations++;
    return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
    allocations++;
    return __libc_realloc(memory, size);
}

void free(void *memory)
{
    if (look_for_marker && memory != NULL &&
        memmem(memory, malloc_usable_size(memory), MARKER, sizeof MARKER - 1) != NULL) {
        leaks++;
    }
    __libc_free(memory);
}
#endif

/* ------------------------------------------------------------------------------------ the world */

enum { SOCKET = 1000, SOCKETS = 4 };

/* A connection, and what the server has said on it. */
typedef struct connection {
    bool open;
    bool is_inbox;
    size_t from;
    size_t to;
    char replies[4096];
} connection;

typedef struct world {
    int64_t now;
    long pid;
    int wake_fds;          /* open ones, with those of the event loop                  */
    int network;           /* calls that reach the network, or would                   */
    int sends;
    int commands;
    int asks;              /* of them, for a lock                                      */
    int granted_after;     /* so many asks are told that somebody holds it             */
    int tickets;           /* asks that would line up                                  */
    int subscriptions;
    int extends;
    int releases;
    int tickets_back;      /* of the releases, with a ticket                           */
    bool unreachable;
    bool no_random;
    bool no_wake_fd;
    uint64_t random;
    int64_t px;            /* the last expiry that was asked for                       */
    const char *auth_says; /* instead of +OK                                           */
    const char *seen_says; /* to inspect; NULL: it is free                             */
    const char *break_says;
    const char *extend_says;
    void (*during_wait)(struct world *);
    connection connections[SOCKETS];
} world;

static int64_t world_now(void *at)
{
    return ((world *)at)->now;
}

static bool world_random(void *at, unsigned char *bytes, size_t count)
{
    world *in = (world *)at;
    for (; count > 0; count--) {
        in->random = in->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        *bytes++ = (unsigned char)(in->random >> 56);
    }
    return !in->no_random;
}

static long world_pid(void *at)
{
    return ((world *)at)->pid;
}

static int world_wake_fd(void *at)
{
    world *in = (world *)at;
    if (in->no_wake_fd) {
        return -EMFILE;
    }
    in->wake_fds++;
    return dlocki_wake_fd(NULL);
}

static int world_resolve(void *at, const char *host, int port, dlocki_address *found, int room)
{
    world *in = (world *)at;
    in->network++;
    (void)host;
    (void)port;
    assert_true(room > 0);
    memset(found, 0, sizeof *found);
    return in->unreachable ? -ENOENT : 1;
}

static int world_connect(void *at, const dlocki_address *address)
{
    world *in = (world *)at;
    int i = 0;
    (void)address;
    in->network++;
    while (i < SOCKETS && in->connections[i].open) {
        i++;
    }
    assert_true(i < SOCKETS);
    if (!in->unreachable) {
        memset(&in->connections[i], 0, sizeof in->connections[i]);
        in->connections[i].open = true;
    }
    return in->unreachable ? -ECONNREFUSED : SOCKET + i;
}

/* The connection of a descriptor; NULL: it is something else. */
static connection *connection_of(world *in, int fd)
{
    return fd >= SOCKET && fd < SOCKET + SOCKETS ? &in->connections[fd - SOCKET] : NULL;
}

static int world_connected(void *at, int fd)
{
    world *in = (world *)at;
    in->network++;
    return connection_of(in, fd) != NULL ? 0 : EBADF;
}

static void reply(connection *on, const char *text)
{
    size_t length = strlen(text);
    assert_true(on->to + length <= sizeof on->replies);
    memcpy(on->replies + on->to, text, length);
    on->to += length;
}

typedef struct words {
    int count;
    size_t lengths[16];
    const char *at[16];
} words;

static void grant(world *in, connection *on, const words *command)
{
    char text[128];
    bool script = command->count > 6;
    bool fenced = command->count < 11 || *command->at[10] == '1';
    int place = command->count > 8 && command->lengths[8] == 1;
    in->px = strtoll(command->at[script ? 7 : 5], NULL, 10);
    in->asks++;
    in->tickets += place;
    if (in->asks <= in->granted_after) {
        (void)snprintf(text, sizeof text,
                       "*6\r\n:0\r\n:-1\r\n:1795398000123456\r\n:%d\r\n:%d\r\n:0\r\n", place,
                       place);
        reply(on, script ? text : "$-1\r\n");
    } else if (!script) {
        reply(on, "+OK\r\n");
    } else if (fenced) {
        (void)snprintf(text, sizeof text, ":%lld\r\n", (long long)FENCE);
        reply(on, text);
    } else {
        (void)snprintf(text, sizeof text, "*4\r\n:1\r\n:0\r\n:%lld\r\n:1795398000123456\r\n",
                       (long long)in->px);
        reply(on, text);
    }
}

/* Is this the script, by its SHA-1 or whole? */
static bool runs(const words *command, const char *script, const char *sha1)
{
    const char *at = command->at[1];
    return command->count > 4 &&
           ((command->lengths[0] == 7 && memcmp(at, sha1, 40) == 0) ||
            (command->lengths[0] == 4 && command->lengths[1] == strlen(script) &&
             memcmp(at, script, strlen(script)) == 0));
}

static void subscribe(world *in, connection *on, const words *command)
{
    char text[128];
    in->subscriptions++;
    on->is_inbox = true;
    assert_int_equal(command->lengths[1], 22);
    (void)snprintf(text, sizeof text, "*3\r\n$9\r\nsubscribe\r\n$22\r\n%.22s\r\n:1\r\n",
                   command->at[1]);
    reply(on, text);
}

static const char *or_else(const char *says, const char *otherwise)
{
    return says != NULL ? says : otherwise;
}

/* What the server says to one command. */
static void answer(world *in, connection *on, const words *command)
{
    in->commands++;
    assert_true(in->commands < 100000); /* somebody asks without end */
    if (memcmp(command->at[0], "AUTH", 4) == 0) {
        reply(on, or_else(in->auth_says, "+OK\r\n"));
    } else if (memcmp(command->at[0], "SUBSCRIBE", 9) == 0) {
        subscribe(in, on, command);
    } else if (memcmp(command->at[0], "PING", 4) == 0) {
        reply(on, on->is_inbox ? "*2\r\n$4\r\npong\r\n$0\r\n\r\n" : "+PONG\r\n");
    } else if (memcmp(command->at[0], "SET", 3) == 0 ||
               runs(command, DLOCKI_LUA_ACQUIRE, DLOCKI_LUA_ACQUIRE_SHA1)) {
        grant(in, on, command);
    } else if (runs(command, DLOCKI_LUA_EXTEND, DLOCKI_LUA_EXTEND_SHA1)) {
        in->px = strtoll(command->at[5], NULL, 10);
        in->extends++;
        reply(on, or_else(in->extend_says, ":1\r\n"));
    } else if (runs(command, DLOCKI_LUA_RELEASE, DLOCKI_LUA_RELEASE_SHA1)) {
        in->releases++;
        in->tickets_back += command->count > 7;
        reply(on, ":1\r\n");
    } else if (runs(command, DLOCKI_LUA_INSPECT, DLOCKI_LUA_INSPECT_SHA1)) {
        reply(on, or_else(in->seen_says, "*4\r\n:-2\r\n:0\r\n:0\r\n$0\r\n\r\n"));
    } else if (runs(command, DLOCKI_LUA_BREAK, DLOCKI_LUA_BREAK_SHA1)) {
        reply(on, or_else(in->break_says, ":0\r\n"));
    } else {
        reply(on, "+OK\r\n");
    }
}

/* The whole commands in these bytes; every send here consists of such. */
static long world_send(void *at, int fd, const void *bytes, size_t count)
{
    world *in = (world *)at;
    const char *c = (const char *)bytes;
    const char *end = c + count;
    connection *on = connection_of(in, fd);
    assert_non_null(on);
    in->network++;
    in->sends++;
    while (c < end) {
        words command;
        char *next;
        int i;
        assert_int_equal(*c, '*');
        command.count = (int)strtol(c + 1, &next, 10);
        assert_in_range(command.count, 1, 16);
        c = next + 2;
        for (i = 0; i < command.count; i++) {
            assert_int_equal(*c, '$');
            command.lengths[i] = (size_t)strtoul(c + 1, &next, 10);
            command.at[i] = next + 2;
            c = next + 2 + command.lengths[i] + 2;
            assert_true(c <= end);
        }
        answer(in, on, &command);
    }
    return (long)count;
}

static long world_receive(void *at, int fd, void *bytes, size_t count)
{
    world *in = (world *)at;
    connection *on = connection_of(in, fd);
    size_t ready;
    assert_non_null(on);
    in->network++;
    ready = on->to - on->from;
    if (ready == 0) {
        return -EAGAIN;
    }
    ready = ready < count ? ready : count;
    memcpy(bytes, on->replies + on->from, ready);
    on->from += ready;
    if (on->from == on->to) {
        on->from = 0;
        on->to = 0;
    }
    return (long)ready;
}

static void world_close(void *at, int fd)
{
    world *in = (world *)at;
    connection *on = connection_of(in, fd);
    if (on != NULL) {
        on->open = false;
    } else {
        in->wake_fds--;
        dlocki_close_fd(NULL, fd);
    }
}

static int world_wait(void *at, struct pollfd *fds, int count, int timeout_ms)
{
    world *in = (world *)at;
    bool ready = false;
    int i;
    assert_int_equal(count, 3);
    if (in->during_wait != NULL) {
        in->during_wait(in);
    }
    for (i = 0; i < 2; i++) {
        const connection *on = connection_of(in, fds[i].fd);
        if (on != NULL) {
            fds[i].revents = (short)((fds[i].events & POLLOUT) | (on->to > on->from ? POLLIN : 0));
        }
        ready = ready || fds[i].revents != 0;
    }
    if (poll(&fds[2], 1, 0) == 0 && !ready) {
        assert_true(timeout_ms >= 0);   /* nothing will come: it must not wait for ever */
        in->now = dlocki_plus(in->now, timeout_ms);
    }
    return 1;
}

static void world_set_watch(void *at, int set, int fd, short events)
{
    (void)at;
    (void)set;
    (void)fd;
    (void)events;
}

static void world_timer_set(void *at, int timer, int64_t when)
{
    (void)at;
    (void)timer;
    (void)when;
}

static const dlocki_kernel kernel = {
    world_now,     world_random,    world_pid,       world_wake_fd, world_resolve,
    world_connect, world_connected, world_send,      world_receive, world_close,
    world_wait,    world_wake_fd,   world_set_watch, world_wake_fd, world_timer_set,
};

static world earth;

static dlock_factory *open_in_world(const char *url, const dlock_config *config)
{
    dlock_error error;
    dlock_factory *factory;
    memset(&earth, 0, sizeof earth);
    earth.now = 1000000;
    earth.pid = 1234;
    factory = dlocki_open_in(&kernel, &earth, url, config, &error);
    if (factory == NULL) {
        fail_msg("%s", error.text);
    }
    assert_int_equal(earth.network, 0);   /* to open reaches nobody */
    return factory;
}

static void close_world(dlock_factory *factory)
{
    loop_close(factory);
    assert_int_equal(earth.wake_fds, 0);
}

static void check_holds_nothing(const dlock_lock *lock)
{
    assert_false(dlock_is_acquired(lock));
    assert_false(dlock_is_degraded(lock));
    assert_int_equal(dlock_remaining_ms(lock), 0);
    assert_int_equal(dlock_fence(lock), 0);
    assert_string_equal(dlock_owner(lock), "");
}

/* What a poll of dlock_fd would lead to: time passes until something is due. */
static void turn(dlock_factory *factory)
{
    int64_t next = dlocki_next_wake(factory);
    bool ready = false;
    int i;
    for (i = 0; i < SOCKETS; i++) {
        ready = ready || earth.connections[i].to > earth.connections[i].from;
    }
    ready = ready || factory->link.state == DLOCKI_CONNECTING;
    ready = ready || factory->inbox.state == DLOCKI_CONNECTING;
    ready = ready || factory->done_first != NULL || factory->news_first != NULL;
    ready = ready || factory->lost.first != NULL;
    if (!ready) {
        assert_true(next < DLOCKI_NEVER);   /* nothing will ever come */
        earth.now = next > earth.now ? next : earth.now;
    }
    loop_process(factory);
}

#define TURN_UNTIL(factory, condition) \
    for (int turns_ = 0; !(condition); turns_++) { \
        assert_true(turns_ < 10000); \
        turn(factory); \
    }

/* ---------------------------------------------------------------------------------- bad options */

static const struct {
    const char *name;   /* part of the sentence */
    dlock_options options;
} bad_options[] = {
    {"expiry_ms", {.expiry_ms = 1}},
    {"expiry_ms", {.expiry_ms = 2}},
    {"expiry_ms", {.expiry_ms = -1}},
    {"expiry_ms", {.expiry_ms = -30000}},
    {"expiry_ms", {.expiry_ms = INT64_MIN}},
    {"expiry_ms", {.expiry_ms = INT64_MAX}},
    {"expiry_ms", {.expiry_ms = DLOCK_EXPIRY_MAX_MS + 1}},
    {"expiry_ms", {.expiry_ms = INT64_C(1) << 62}},
    {"expiry_ms", {.expiry_ms = (INT64_C(1) << 32) * 1000}},
    {"retry_count", {.retry_count = -2}},
    {"retry_count", {.retry_count = INT32_MIN}},
    {"retry_count", {.retry_count = -2, .wait_ms = 1000}},
    {"wait_ms", {.wait_ms = -2}},
    {"wait_ms", {.wait_ms = INT64_MIN}},
    {"wait_ms", {.wait_ms = -2, .retry_count = DLOCK_FOREVER}},
    {"retry_delay_ms", {.retry_delay_ms = -1}},
    {"retry_delay_ms", {.retry_delay_ms = INT32_MIN}},
    {"retry_jitter_ms", {.retry_jitter_ms = -1}},
    {"retry_jitter_ms", {.retry_jitter_ms = INT32_MIN}},
    {"retry_jitter_ms", {.retry_jitter_ms = -1, .retry_delay_ms = 100}},
    {"max_hold_ms", {.max_hold_ms = -1}},
    {"max_hold_ms", {.max_hold_ms = INT64_MIN}},
    {"max_hold_ms", {.max_hold_ms = DLOCK_FOREVER, .auto_renew = true}},
    {"expiry_ms", {.expiry_ms = 2, .auto_renew = true}},
    {"wait_ms", {.wait_ms = -2, .no_queue = true}},
    {"expiry_ms", {.expiry_ms = 2, .fail_open = true}},
    {"expiry_ms", {.expiry_ms = 2, .no_fence = true}},
};

static void a_bad_option_is_an_argument_and_nothing_is_sent(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    int before = threads();
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(bad_options); i++) {
        dlock_lock lock = DLOCK_INIT;
        if (dlock_acquire(factory, &lock, "key", &bad_options[i].options)) {
            fail_msg("row %u was accepted", (unsigned)i);
        }
        assert_code(&lock, DLOCK_ARGUMENT);
        assert_non_null(strstr(dlock_why(&lock)->text, bad_options[i].name));
        assert_int_equal(earth.network, 0);
        check_holds_nothing(&lock);
    }
    close_world(factory);
    assert_int_equal(earth.network, 0);
    assert_int_equal(threads(), before);   /* not even one for renewals */
}

static void a_refused_start_is_not_told_to_done(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    struct told told = {.count = 0};
    dlock_lock lock = DLOCK_INIT;
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(bad_options); i++) {
        assert_no(dlock_acquire_start(factory, &lock, "key", &bad_options[i].options, tell, &told),
                  &lock, DLOCK_ARGUMENT);
        assert_non_null(strstr(dlock_why(&lock)->text, bad_options[i].name));
        assert_false(dlock_is_pending(&lock));
    }
    assert_no(dlock_acquire_start(factory, &lock, NULL, NULL, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire_start(factory, &lock, "", NULL, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire_start(factory, &lock, "key", NULL, NULL, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_extend_start(&lock, 0, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&lock, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&lock, NULL, NULL), &lock, DLOCK_ARGUMENT);
    loop_process(factory);
    assert_int_equal(earth.network, 0);
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_no(dlock_extend_start(&lock, 2, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_extend_start(&lock, 0, NULL, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire_start(factory, &lock, "key", NULL, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_true(dlock_is_acquired(&lock));
    assert_yes(dlock_release(&lock), &lock);
    assert_no(dlock_extend_start(&lock, 0, tell, &told), &lock, DLOCK_LOST);
    assert_no(dlock_release_start(&lock, tell, &told), &lock, DLOCK_LOST);
    assert_no(dlock_release_start(&lock, NULL, NULL), &lock, DLOCK_LOST);
    loop_process(factory);
    close_world(factory);
    assert_int_equal(told.count, 0);
}

static const struct {
    const char *key;
    size_t length;
} bad_keys[] = {
    {NULL, 0},
    {NULL, 3},
    {NULL, DLOCK_KEY_MAX},
    {"", 0},
    {"key", DLOCK_KEY_MAX + 1},   /* is not even looked at */
    {"key", SIZE_MAX},
    {"key", SIZE_MAX / 2 + 1},
    {"key", (size_t)1 << 16},     /* would be 0 in 16 bits */
    {"key", ((size_t)1 << 16) + 3},
    {"key", ((size_t)1 << 32) + 3},
};

static void check_no_look(dlock_factory *factory, const char *key, size_t length)
{
    dlock_error error;
    dlock_info info;
    memset(&error, 0x55, sizeof error);
    assert_false(dlock_inspect(factory, key, length, &info, &error));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    check_text(error.text, __FILE__, __LINE__);
    memset(&error, 0x55, sizeof error);
    assert_false(dlock_break(factory, key, length, &error));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    check_text(error.text, __FILE__, __LINE__);
    assert_int_equal(earth.network, 0);
}

static void a_bad_key_is_an_argument_and_nothing_is_sent(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    char longer[DLOCK_KEY_MAX + 2];
    dlock_lock lock = DLOCK_INIT;
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(bad_keys); i++) {
        dlock_options options = {.key_length = bad_keys[i].length};
        assert_no(dlock_acquire(factory, &lock, bad_keys[i].key, &options), &lock, DLOCK_ARGUMENT);
        assert_non_null(strstr(dlock_why(&lock)->text, "key"));
        check_holds_nothing(&lock);
        check_no_look(factory, bad_keys[i].key, bad_keys[i].length);
    }
    memset(longer, 'k', sizeof longer);
    longer[DLOCK_KEY_MAX + 1] = 0;
    assert_no(dlock_acquire(factory, &lock, longer, NULL), &lock, DLOCK_ARGUMENT);
    assert_int_equal(earth.network, 0);
    longer[DLOCK_KEY_MAX] = 0;
    assert_yes(dlock_acquire(factory, &lock, longer, NULL), &lock);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
}

/* A key of a given length has no end to look for; one without is not searched beyond the limit. */
static void a_key_is_read_up_to_its_length_only(void **state)
{
    char *room =
        (char *)mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *end = room + 4096;
    dlock_factory *factory = open_in_world(URL, NULL);
    size_t length;
    (void)state;
    assert_true(room != MAP_FAILED);
    assert_int_equal(mprotect(end, 4096, PROT_NONE), 0);
    memset(room, 'k', 4096);
    for (length = 1; length <= DLOCK_KEY_MAX; length++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = {.key_length = length};
        assert_yes(dlock_acquire(factory, &lock, end - length, &options), &lock);
        assert_int_equal(lock._key_length, length);
        assert_memory_equal(lock._key, end - length, length);
        assert_yes(dlock_release(&lock), &lock);
    }
    end[-1] = 0;
    {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(factory, &lock, end - 4, NULL), &lock);
        assert_int_equal(lock._key_length, 3);
        assert_yes(dlock_release(&lock), &lock);
        assert_no(dlock_acquire(factory, &lock, end - 1, NULL), &lock, DLOCK_ARGUMENT);
        end[-1] = 'k';
        assert_no(dlock_acquire(factory, &lock, end - DLOCK_KEY_MAX - 1, NULL), &lock,
                  DLOCK_ARGUMENT);
    }
    close_world(factory);
    assert_int_equal(munmap(room, 8192), 0);
}

static void a_key_may_hold_any_bytes_and_is_copied(void **state)
{
    static const char text[] = "\0 %s\r\n\xff{}\"'";
    char key[sizeof text];
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.key_length = sizeof text - 1};
    (void)state;
    memcpy(key, text, sizeof text);
    assert_yes(dlock_acquire(factory, &lock, key, &options), &lock);
    memset(key, 'x', sizeof key);
    memset(&options, 0x55, sizeof options);
    assert_int_equal(lock._key_length, sizeof text - 1);
    assert_memory_equal(lock._key, text, sizeof text - 1);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
}

/* --------------------------------------------------------------------------------- good options */

static const struct {
    dlock_options options;
    int64_t px;        /* what the server is asked for */
    int64_t remaining; /* expiry - 1 % - 2 ms          */
} good_options[] = {
    {{.expiry_ms = 0}, 30000, 29698},
    {{.expiry_ms = 3}, 3, 1},
    {{.expiry_ms = 4}, 4, 2},
    {{.expiry_ms = 99}, 99, 97},
    {{.expiry_ms = 100}, 100, 97},
    {{.expiry_ms = 30000}, 30000, 29698},
    {{.expiry_ms = DLOCK_EXPIRY_MAX_MS - 1}, 2591999999, 2566079998},
    {{.expiry_ms = DLOCK_EXPIRY_MAX_MS}, 2592000000, 2566079998},
    {{.retry_count = DLOCK_FOREVER}, 30000, 29698},
    {{.retry_count = INT32_MAX}, 30000, 29698},
    {{.wait_ms = DLOCK_FOREVER}, 30000, 29698},
    {{.wait_ms = 1}, 30000, 29698},
    {{.wait_ms = INT64_MAX}, 30000, 29698},
    {{.retry_count = DLOCK_FOREVER, .wait_ms = DLOCK_FOREVER}, 30000, 29698},
    {{.retry_delay_ms = INT32_MAX, .retry_jitter_ms = INT32_MAX}, 30000, 29698},
    {{.expiry_ms = 3, .no_fence = true}, 3, 1},
    {{.no_fence = true, .wait_ms = INT64_MAX}, 30000, 29698},
    {{.fail_open = true}, 30000, 29698},
    {{.no_queue = true}, 30000, 29698},
    {{.no_queue = true, .retry_count = INT32_MAX, .wait_ms = INT64_MAX}, 30000, 29698},
    {{.max_hold_ms = 1}, 30000, 29698},
    {{.max_hold_ms = INT64_MAX}, 30000, 29698},
};

static void a_value_at_its_limit_is_taken_as_it_is(void **state)
{
    static const int64_t clocks[] = {0, 1000000, INT64_C(1) << 62};
    dlock_factory *factory = open_in_world(URL, NULL);
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(good_options) * COUNT(clocks); i++) {
        const dlock_options *options = &good_options[i % COUNT(good_options)].options;
        dlock_lock lock = DLOCK_INIT;
        earth.now = clocks[i / COUNT(good_options)];
        assert_yes(dlock_acquire(factory, &lock, "key", options), &lock);
        assert_int_equal(earth.px, good_options[i % COUNT(good_options)].px);
        assert_int_equal(dlock_remaining_ms(&lock),
                         good_options[i % COUNT(good_options)].remaining);
        assert_true(dlock_is_acquired(&lock));
        assert_false(dlock_is_degraded(&lock));
        assert_int_equal(dlock_fence(&lock), options->no_fence ? 0 : FENCE);
        earth.now = dlocki_plus(earth.now, dlock_remaining_ms(&lock) - 1);
        assert_int_equal(dlock_remaining_ms(&lock), 1);
        assert_true(dlock_is_acquired(&lock));
        earth.now++;
        assert_int_equal(dlock_remaining_ms(&lock), 0);
        assert_false(dlock_is_acquired(&lock));
        earth.now += 1000;
        assert_int_equal(dlock_remaining_ms(&lock), 0);   /* and never below */
        assert_yes(dlock_release(&lock), &lock);
    }
    close_world(factory);
}

/* Somebody holds it and lets go after some asks. A bound that overflowed would end at once. */
static const dlock_options patient[] = {
    {.wait_ms = DLOCK_FOREVER},
    {.wait_ms = INT64_MAX},
    {.wait_ms = INT64_MAX - 1},
    {.retry_count = DLOCK_FOREVER},
    {.retry_count = INT32_MAX},
    {.retry_count = DLOCK_FOREVER, .wait_ms = DLOCK_FOREVER},
    {.wait_ms = INT64_MAX, .retry_count = DLOCK_FOREVER},
    {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = INT32_MAX},
    {.wait_ms = DLOCK_FOREVER, .retry_jitter_ms = INT32_MAX},
    {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = INT32_MAX, .retry_jitter_ms = INT32_MAX},
    {.wait_ms = DLOCK_FOREVER, .no_fence = true},
};

static void the_longest_wait_is_not_the_shortest(void **state)
{
    static const int64_t clocks[] = {0, INT64_C(1) << 62, INT64_MAX - (INT64_C(1) << 40)};
    dlock_factory *factory = open_in_world(URL, NULL);
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(patient) * COUNT(clocks); i++) {
        dlock_options options = patient[i % COUNT(patient)];
        int64_t began = clocks[i / COUNT(patient)];
        dlock_lock lock = DLOCK_INIT;
        int64_t longest = 4 * ((options.retry_delay_ms > 0 ? options.retry_delay_ms : 250) +
                               (int64_t)options.retry_jitter_ms);
        options.no_queue = true;
        earth.now = began;
        earth.asks = 0;
        earth.granted_after = 4;
        assert_yes(dlock_acquire(factory, &lock, "key", &options), &lock);
        assert_int_equal(earth.asks, 5);
        assert_true(earth.now - began >= 4 * 50 && earth.now - began <= longest);
        if (options.retry_jitter_ms == 0 && options.retry_delay_ms > 0) {
            assert_int_equal(earth.now - began, longest);
        }
        assert_yes(dlock_release(&lock), &lock);
    }
    assert_int_equal(earth.tickets, 0);
    assert_int_equal(earth.subscriptions, 0);
    close_world(factory);
}

/* In line the second ask follows the first at once, and is no attempt: it writes the ticket. Who is
 * bounded by time alone, and set no pace, rests after it for as long as a holder may have it. */
static void who_stands_in_line_rests_unless_he_set_a_pace(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(patient); i++) {
        dlock_factory *factory = open_in_world(URL, NULL);
        const dlock_options *options = &patient[i];
        dlock_lock lock = DLOCK_INIT;
        bool rests =
            options->wait_ms != 0 && options->retry_count <= 0 && options->retry_delay_ms == 0;
        int64_t least = rests ? 30000 : options->retry_delay_ms > 0 ? options->retry_delay_ms : 50;
        int64_t most = rests ? 30000 : options->retry_delay_ms > 0 ? options->retry_delay_ms : 250;
        most += rests ? 0 : options->retry_jitter_ms;
        if (options->retry_count == DLOCK_FOREVER && options->wait_ms == 0) {
            least = most = 30000;
        }
        earth.granted_after = 4;
        assert_yes(dlock_acquire(factory, &lock, "key", options), &lock);
        assert_int_equal(earth.asks, 5);
        assert_int_equal(earth.tickets, 4);
        assert_int_equal(earth.subscriptions, 1);
        assert_in_range(earth.now - 1000000, 3 * least, 3 * most);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(earth.tickets_back, 0);   /* the script took it */
        close_world(factory);
    }
}

static void a_wait_ends_when_it_must_whatever_the_clock_says(void **state)
{
    static const int64_t clocks[] = {0, 1000000, INT64_C(1) << 62, INT64_MAX - 1001};
    dlock_options options = {.wait_ms = 1000, .retry_delay_ms = 300};
    size_t i;
    (void)state;
    for (i = 0; i < 2 * COUNT(clocks); i++) {
        dlock_factory *factory = open_in_world(URL, NULL);
        dlock_lock lock = DLOCK_INIT;
        options.no_queue = i % 2 == 1;
        earth.now = clocks[i / 2];
        earth.granted_after = INT_MAX;
        assert_no(dlock_acquire(factory, &lock, "key", &options), &lock, DLOCK_TIMEOUT);
        assert_int_equal(earth.now - clocks[i / 2], 1000);
        assert_int_equal(earth.asks, options.no_queue ? 4 : 5);
        check_holds_nothing(&lock);
        close_world(factory);
        assert_int_equal(earth.releases, options.no_queue ? 0 : 1);   /* of the place in line */
        assert_int_equal(earth.tickets_back, options.no_queue ? 0 : 1);
    }
}

static void near_the_end_of_time_nothing_can_be_promised(void **state)
{
    static const int64_t clocks[] = {INT64_MAX - 1, INT64_MAX - 300};
    static const dlock_options options[] = {
        {.expiry_ms = 0},
        {.expiry_ms = DLOCK_EXPIRY_MAX_MS},
        {.no_fence = true},
        {.fail_open = true},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(clocks) * COUNT(options); i++) {
        dlock_factory *factory = open_in_world(URL, NULL);
        dlock_lock lock = DLOCK_INIT;
        earth.now = clocks[i / COUNT(options)];
        (void)dlock_acquire(factory, &lock, "key", &options[i % COUNT(options)]);
        assert_false(dlock_is_acquired(&lock));
        assert_int_equal(dlock_remaining_ms(&lock), 0);
        close_world(factory);
    }
}

/* A system that forbids its clocks says "never" for every instant. Calls end all the same, and
 * what was ours is not any more. */
static void without_a_clock_calls_end_and_nothing_is_ours(void **state)
{
    static const dlock_options options[] = {
        {.expiry_ms = 0},
        {.no_fence = true},
        {.fail_open = true},
        {.wait_ms = 1000},
        {.wait_ms = DLOCK_FOREVER, .retry_count = 3},
        {.retry_count = 3},
    };
    size_t i;
    (void)state;
    for (i = 0; i < 2 * COUNT(options); i++) {
        dlock_factory *factory = open_in_world(URL, NULL);
        dlock_lock lock = DLOCK_INIT;
        bool held = i >= COUNT(options);
        if (held) {
            assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
        }
        earth.now = INT64_MAX;
        if (!held) {
            (void)dlock_acquire(factory, &lock, "key", &options[i]);
        }
        assert_false(dlock_is_acquired(&lock));
        assert_int_equal(dlock_remaining_ms(&lock), 0);
        (void)dlock_extend(&lock, 0);
        assert_false(dlock_is_acquired(&lock));
        (void)dlock_release(&lock);
        check_holds_nothing(&lock);
        close_world(factory);
    }
}

/* -------------------------------------------------------------------------------- in whose turn */

static void no_queue_polls_and_never_subscribes(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_options options = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 300, .no_queue = true};
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    earth.granted_after = 5;
    assert_yes(dlock_acquire(factory, &lock, "key", &options), &lock);
    assert_int_equal(earth.asks, 6);
    assert_int_equal(earth.now, 1000000 + 5 * 300);
    assert_int_equal(earth.tickets, 0);
    assert_int_equal(earth.subscriptions, 0);
    assert_int_equal(factory->inbox.state, DLOCKI_DOWN);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
    assert_int_equal(earth.tickets_back, 0);
}

/* Neither does who asks once: there is nothing to wait for. Nor does he line up where others of his
 * factory do. */
static void one_attempt_never_subscribes(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_options options = {.wait_ms = DLOCK_FOREVER};
    dlock_lock lock = DLOCK_INIT;
    dlock_lock waits = DLOCK_INIT;
    struct told told = {.count = 0};
    (void)state;
    earth.granted_after = INT_MAX;
    assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_BUSY);
    assert_int_equal(earth.asks, 1);
    assert_int_equal(earth.tickets, 0);
    assert_int_equal(earth.subscriptions, 0);
    assert_yes(dlock_acquire_start(factory, &waits, "key", &options, tell, &told), &waits);
    TURN_UNTIL(factory, earth.tickets >= 1);
    assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_BUSY);
    assert_int_equal(earth.tickets, 1);
    assert_int_equal(earth.subscriptions, 1);
    close_world(factory);
    assert_int_equal(earth.tickets_back, 1);
    assert_int_equal(told.code, DLOCK_CANCELLED);
}

/* Retries are counted as they were asked for, whether they stand in line or not. */
static void retries_are_as_many_as_were_asked_for(void **state)
{
    int32_t count;
    (void)state;
    for (count = 1; count <= 5; count++) {
        int no_queue;
        for (no_queue = 0; no_queue < 2; no_queue++) {
            dlock_factory *factory = open_in_world(URL, NULL);
            dlock_options options = {
                .retry_count = count, .retry_delay_ms = 100, .no_queue = no_queue != 0};
            dlock_lock lock = DLOCK_INIT;
            earth.granted_after = INT_MAX;
            assert_no(dlock_acquire(factory, &lock, "key", &options), &lock, DLOCK_BUSY);
            assert_int_equal(earth.asks, count + 1 + !no_queue);   /* and the one for the ticket */
            assert_int_equal(earth.now, 1000000 + count * 100);
            close_world(factory);
            assert_int_equal(earth.tickets_back, !no_queue);
        }
    }
}

/* ------------------------------------------------------------------------------------- renewals */

typedef struct loss {
    int count;
    int code;
    bool acquired;
    dlock_lock *lock;
    int64_t at;
} loss;

static void note_loss(dlock_lock *lock, void *user)
{
    loss *is = (loss *)user;
    is->count++;
    is->code = dlock_why(lock)->code;
    is->acquired = dlock_is_acquired(lock);
    is->lock = lock;
    is->at = earth.now;
}

/* Starts and waits until it is ours. */
static void acquire_in_loop(dlock_factory *factory, dlock_lock *lock, const dlock_options *options)
{
    struct told told = {.count = 0};
    assert_yes(dlock_acquire_start(factory, lock, "key", options, tell, &told), lock);
    TURN_UNTIL(factory, told.count >= 1)
    assert_true(told.answer);
    assert_int_equal(told.code, DLOCK_OK);
    assert_true(dlock_is_acquired(lock));
}

static void auto_renew_renews_until_it_is_given_back(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_options options = {.expiry_ms = 9000, .auto_renew = true};
    dlock_lock lock = DLOCK_INIT;
    int began_with = threads();
    int before;
    (void)state;
    acquire_in_loop(factory, &lock, &options);
    assert_int_equal(earth.now, 1000000);
    TURN_UNTIL(factory, earth.extends >= 100)
    /* at a third of the lease, and up to a sixteenth earlier: many are renewed together */
    assert_in_range(earth.now, 1000000 + 100 * (3000 - 562), 1000000 + 100 * 3000);
    assert_int_equal(earth.px, 9000);
    assert_true(dlock_remaining_ms(&lock) > 5000);
    assert_code(&lock, DLOCK_OK);
    assert_yes(dlock_release(&lock), &lock);
    before = earth.extends;
    earth.now += 100000;
    loop_process(factory);
    assert_int_equal(earth.extends, before);
    close_world(factory);
    assert_int_equal(threads(), began_with);   /* a start needs none of its own */
}

static void without_auto_renew_nothing_is_renewed_and_max_hold_ms_means_nothing(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    loss loss = {.count = 0};
    dlock_options options = {.max_hold_ms = 1, .on_lost = note_loss, .user = &loss};
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    acquire_in_loop(factory, &lock, &options);
    assert_int_equal(dlock_remaining_ms(&lock), 29698);
    TURN_UNTIL(factory, loss.count >= 1)   /* it is told all the same when its time has come */
    assert_int_equal(earth.now, 1000000 + 29698);
    assert_int_equal(earth.extends, 0);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    close_world(factory);
    assert_int_equal(loss.count, 1);
}

static void max_hold_ms_ends_the_renewals_and_the_loss_is_told_once(void **state)
{
    static const int64_t holds[] = {1, 9000, 20000, 100000};
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(holds); i++) {
        dlock_factory *factory = open_in_world(URL, NULL);
        loss loss = {.count = 0};
        dlock_options options = {.expiry_ms = 9000,
                                 .auto_renew = true,
                                 .max_hold_ms = holds[i],
                                 .on_lost = note_loss,
                                 .user = &loss};
        dlock_lock lock = DLOCK_INIT;
        int64_t end = 1000000 + holds[i];
        acquire_in_loop(factory, &lock, &options);
        TURN_UNTIL(factory, loss.count >= 1)
        assert_int_equal(loss.code, DLOCK_LOST);
        assert_false(loss.acquired);
        assert_ptr_equal(loss.lock, &lock);
        /* the last renewal was before the end, and its validity is nearly a whole lease */
        assert_true(loss.at <= end + 8908 && loss.at >= dlocki_most(end - 3000, 1000000) + 8908);
        assert_int_equal(earth.extends > 0, holds[i] > 3000);
        assert_code(&lock, DLOCK_LOST);
        check_holds_nothing(&lock);
        assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
        close_world(factory);
        assert_int_equal(loss.count, 1);
    }
}

static void a_loss_is_told_once_when_a_renewal_finds_out(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    loss loss = {.count = 0};
    dlock_options options = {
        .expiry_ms = 9000, .auto_renew = true, .on_lost = note_loss, .user = &loss};
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    acquire_in_loop(factory, &lock, &options);
    earth.extend_says = ":0\r\n";
    TURN_UNTIL(factory, loss.count >= 1)
    assert_int_equal(earth.extends, 1);
    assert_int_equal(loss.code, DLOCK_LOST);
    assert_false(loss.acquired);
    assert_true(loss.at <= 1000000 + 3000);
    /* with the handle as it is: a scope ends, it is given up, it is acquired anew */
    dlocki_scope_end(&lock);
    assert_code(&lock, DLOCK_LOST);
    earth.extend_says = NULL;
    acquire_in_loop(factory, &lock, &options);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
    assert_int_equal(loss.count, 1);
    assert_int_equal(earth.releases, 1);   /* what was lost to somebody is not given back */
}

/* --------------------------------------------------------------------------------- what is told */

typedef struct diary {
    char text[512];   /* a letter for each event */
    const char *wrong;
} diary;

static void note_event(const dlock_event *event, void *user)
{
    static const char letters[] = "?CDWANrRLM";
    diary *in = (diary *)user;
    size_t length = strlen(in->text);
    bool link = event->kind <= DLOCK_EVENT_DISCONNECTED;
    if (event->kind < 1 || event->kind > 9 || length + 1 == sizeof in->text) {
        in->wrong = "kind";
        return;
    }
    in->text[length] = letters[event->kind];
    if (event->kind <= DLOCK_EVENT_DISCONNECTED && event->inbox) {
        in->text[length] = (char)(letters[event->kind] + 'a' - 'A');
    }
    if ((event->key == NULL) != link || (!link && event->key_length != 3) ||
        (!link && memcmp(event->key, "key", 3) != 0)) {
        in->wrong = "key";
    }
    if (event->text == NULL || (event->code == DLOCK_OK) != (event->text[0] == 0)) {
        in->wrong = "text";
    }
    if (event->elapsed_ms < 0 || event->node < -1 || event->node > 0) {
        in->wrong = "elapsed_ms or node";
    }
    if (event->kind == DLOCK_EVENT_ACQUIRED && event->fence != FENCE) {
        in->wrong = "fence";
    }
}

static void every_transition_is_told_once_and_to_the_configs_user(void **state)
{
    diary diary = {.wrong = NULL};
    dlock_config config = {.on_event = note_event, .user = &diary};
    dlock_factory *factory = open_in_world(URL, &config);
    dlock_options options = {.expiry_ms = 9000, .auto_renew = true};
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_string_equal(diary.text, "");
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_string_equal(diary.text, "CA");
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_yes(dlock_release(&lock), &lock);
    assert_string_equal(diary.text, "CArR");
    earth.granted_after = INT_MAX;
    assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_BUSY);
    assert_string_equal(diary.text, "CArRN");
    options.wait_ms = 40000;
    earth.granted_after = earth.asks + 2;
    acquire_in_loop(factory, &lock, &options);   /* told that it waits, once */
    assert_string_equal(diary.text, "CArRNcWA");
    earth.extends = 0;
    TURN_UNTIL(factory, earth.extends >= 2)
    earth.extend_says = ":0\r\n";
    TURN_UNTIL(factory, earth.extends >= 3)
    turn(factory);
    assert_string_equal(diary.text, "CArRNcWArrL");
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_string_equal(diary.text, "CArRNcWArrL");
    close_world(factory);
    assert_string_equal(diary.text, "CArRNcWArrLDd");
    if (diary.wrong != NULL) {
        fail_msg("an event's %s is wrong", diary.wrong);
    }
}

static void what_was_counted_can_be_asked_for(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_options options = {.wait_ms = DLOCK_FOREVER};
    dlock_lock lock = DLOCK_INIT;
    dlock_lock waits = DLOCK_INIT;
    struct told told = {.count = 0};
    dlock_stats stats;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    earth.granted_after = INT_MAX;
    assert_yes(dlock_acquire_start(factory, &waits, "other", &options, tell, &told), &waits);
    loop_process(factory);
    dlock_stats_get(factory, &stats);
    assert_int_equal(stats.acquired, 1);
    assert_int_equal(stats.held, 1);
    assert_int_equal(stats.pending, 1);
    assert_int_equal(stats.not_acquired, 0);
    assert_int_equal(stats.released, 0);
    assert_true(stats.connects >= 1 && stats.commands >= 2);
    dlock_cancel(&waits);
    TURN_UNTIL(factory, told.count >= 1)
    assert_int_equal(told.code, DLOCK_CANCELLED);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_yes(dlock_release(&lock), &lock);
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
    dlock_stats_get(factory, &stats);
    assert_int_equal(stats.not_acquired, 1);
    assert_int_equal(stats.released, 1);
    assert_int_equal(stats.renewed, 1);
    assert_int_equal(stats.lost, 0);   /* a call on nothing loses nothing */
    assert_int_equal(stats.held, 0);
    assert_int_equal(stats.pending, 0);
    assert_int_equal(stats.handed_over, 0);
    close_world(factory);
}

/* ----------------------------------------------------------------------------- looking at a key */

static void an_inspection_tells_what_stands_there(void **state)
{
    static const char owner[] = "dl1-0123456789abcdef0123456789abcdef";
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_error error;
    dlock_info info;
    (void)state;
    memset(&info, 0x55, sizeof info);
    memset(&error, 0x55, sizeof error);
    assert_false(dlock_inspect(factory, "key", 0, &info, &error));   /* it is free */
    assert_int_equal(error.code, DLOCK_OK);
    assert_string_equal(error.text, "");
    assert_false(info.held || info.foreign);
    assert_int_equal(info.remaining_ms, 0);
    assert_int_equal(info.fence, 0);
    assert_int_equal(info.waiters, 0);
    assert_string_equal(info.owner, "");
    earth.seen_says = "*4\r\n:7000\r\n:77\r\n:3\r\n$36\r\n"
                      "dl1-0123456789abcdef0123456789abcdef\r\n";
    assert_true(dlock_inspect(factory, "keys", 3, &info, &error));
    assert_int_equal(error.code, DLOCK_OK);
    assert_true(info.held);
    assert_false(info.foreign);
    assert_int_equal(info.remaining_ms, 7000);
    assert_int_equal(info.fence, 77);
    assert_int_equal(info.waiters, 3);
    assert_string_equal(info.owner, owner);
    earth.seen_says = "*4\r\n:-1\r\n:0\r\n:0\r\n$6\r\na\x1b\xff\x7f c\r\n";
    assert_true(dlock_inspect(factory, "key", 0, &info, NULL));
    assert_true(info.held && info.foreign);
    assert_int_equal(info.remaining_ms, -1);
    assert_string_equal(info.owner, "a??? c");
    assert_true(dlock_inspect(factory, "key", 0, NULL, NULL));
    close_world(factory);
}

static void a_break_says_whether_there_was_something_to_take(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_error error;
    (void)state;
    assert_false(dlock_break(factory, "key", 0, &error));
    assert_int_equal(error.code, DLOCK_OK);
    earth.break_says = ":1\r\n";
    assert_true(dlock_break(factory, "key", 0, &error));
    assert_int_equal(error.code, DLOCK_OK);
    earth.break_says = ":5\r\n";
    assert_true(dlock_break(factory, "keys", 3, NULL));
    earth.break_says = "-NOPERM x\r\n";
    assert_false(dlock_break(factory, "key", 0, &error));
    assert_int_equal(error.code, DLOCK_REFUSED);
    check_text(error.text, __FILE__, __LINE__);
    close_world(factory);
    factory = open_in_world(URL, NULL);
    earth.unreachable = true;
    assert_false(dlock_break(factory, "key", 0, &error));
    assert_int_equal(error.code, DLOCK_UNREACHABLE);
    assert_false(dlock_inspect(factory, "key", 0, NULL, &error));
    assert_int_equal(error.code, DLOCK_UNREACHABLE);
    close_world(factory);
}

/* --------------------------------------------------------------------------------------- extend */

static const int64_t bad_expiries[] = {
    1, 2, -1, -30000, INT64_MIN, INT64_MAX, DLOCK_EXPIRY_MAX_MS + 1, INT64_C(1) << 62,
};

static void a_bad_expiry_of_extend_is_an_argument_and_the_lock_stays(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    int before;
    size_t i;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    before = earth.network;
    for (i = 0; i < COUNT(bad_expiries); i++) {
        assert_no(dlock_extend(&lock, bad_expiries[i]), &lock, DLOCK_ARGUMENT);
        assert_int_equal(dlock_remaining_ms(&lock), 29698);
    }
    assert_int_equal(earth.network, before);
    assert_yes(dlock_extend(&lock, 3), &lock);
    assert_int_equal(earth.px, 3);
    assert_int_equal(dlock_remaining_ms(&lock), 29698);   /* never shorter */
    assert_yes(dlock_extend(&lock, DLOCK_EXPIRY_MAX_MS), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 2566079998);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
}

static void an_extend_by_zero_is_by_the_expiry_as_acquired(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.expiry_ms = 5000};
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", &options), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 4948);
    earth.now += 1000;
    assert_yes(dlock_extend(&lock, 7000), &lock);
    assert_int_equal(earth.px, 7000);
    assert_int_equal(dlock_remaining_ms(&lock), 6928);
    earth.now += 6000;
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(earth.px, 5000);
    assert_int_equal(dlock_remaining_ms(&lock), 4948);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
}

/* -------------------------------------------------------------------------------------- handles */

static void a_held_handle_cannot_be_acquired_again(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_factory *other = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    char owner[64];
    int before;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_true(snprintf(owner, sizeof owner, "%s", dlock_owner(&lock)) == DLOCKI_OWNER_LENGTH);
    before = earth.network;
    assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(factory, &lock, "another", NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(other, &lock, "another", NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(NULL, &lock, "another", NULL), &lock, DLOCK_ARGUMENT);
    earth.now += 40000;   /* validity has ended, and it is in the books all the same */
    assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_ARGUMENT);
    earth.now -= 40000;
    assert_int_equal(earth.network, before);
    assert_true(dlock_is_acquired(&lock));
    assert_int_equal(dlock_remaining_ms(&lock), 29698);
    assert_int_equal(dlock_fence(&lock), FENCE);
    assert_string_equal(dlock_owner(&lock), owner);
    assert_int_equal(lock._key_length, 3);
    assert_memory_equal(lock._key, "key", 3);
    assert_yes(dlock_release(&lock), &lock);
    assert_yes(dlock_acquire(factory, &lock, "another", NULL), &lock);
    assert_string_not_equal(dlock_owner(&lock), owner);
    assert_yes(dlock_release(&lock), &lock);
    dlock_close(other);
    dlock_close(factory);
}

static void verbs_on_an_unused_handle_are_an_argument_and_nothing_is_sent(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.expiry_ms = 2};
    int round;
    (void)state;
    for (round = 0; round < 2; round++) {
        assert_no(dlock_release(&lock), &lock, DLOCK_ARGUMENT);
        assert_no(dlock_extend(&lock, 0), &lock, DLOCK_ARGUMENT);
        assert_no(dlock_extend(&lock, 2), &lock, DLOCK_ARGUMENT);
        dlock_cancel(&lock);
        dlock_forget(&lock);
        check_holds_nothing(&lock);
        /* the second time after an acquire that was refused */
        assert_no(dlock_acquire(factory, &lock, "key", &options), &lock, DLOCK_ARGUMENT);
    }
    assert_int_equal(earth.network, 0);
    /* the cancel above is not remembered */
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
}

static void a_second_release_is_lost_and_nothing_is_sent(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    int before;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_yes(dlock_release(&lock), &lock);
    check_holds_nothing(&lock);
    before = earth.network;
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    check_holds_nothing(&lock);
    assert_int_equal(earth.network, before);
    dlock_forget(&lock);
    assert_no(dlock_release(&lock), &lock, DLOCK_ARGUMENT);
    close_world(factory);
    assert_null(memmem(&lock, sizeof lock, "dl1-", 4));
}

static void a_forgotten_lock_is_not_given_back(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    int before;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    before = earth.network;
    dlock_forget(&lock);
    check_holds_nothing(&lock);
    assert_code(&lock, DLOCK_OK);
    assert_no(dlock_release(&lock), &lock, DLOCK_ARGUMENT);
    close_world(factory);
    assert_int_equal(earth.network, before);
    assert_null(memmem(&lock, sizeof lock, "dl1-", 4));
}

/* From the start until `done`; inside of it no more. */
static void a_handle_is_pending_until_its_callback(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    struct told told = {.count = 0};
    dlock_lock *held = &lock;
    (void)state;
    assert_false(dlock_is_pending(held));
    assert_yes(dlock_acquire_start(factory, held, "key", NULL, tell, &told), held);
    assert_true(dlock_is_pending(held));
    assert_false(dlock_acquire_start(factory, held, "key", NULL, tell, &told));
    assert_false(dlock_extend_start(held, 0, tell, &told));
    assert_false(dlock_release_start(held, NULL, NULL));
    assert_false(dlock_acquire(factory, held, "key", NULL) || dlock_release(held));
    dlock_forget(held);
    TURN_UNTIL(factory, told.count >= 1)
    assert_true(told.answer);
    assert_int_equal(told.astray, 0);   /* pending no more */
    assert_false(dlock_is_pending(held));
    assert_true(dlock_is_acquired(held));
    assert_int_equal(earth.asks, 1);
    told.count = 0;
    assert_yes(dlock_extend_start(held, 40000, tell, &told), held);
    assert_true(dlock_is_pending(held));
    TURN_UNTIL(factory, told.count >= 1)
    assert_true(told.answer);
    assert_int_equal(earth.px, 40000);
    told.count = 0;
    assert_yes(dlock_release_start(held, tell, &told), held);
    assert_true(dlock_is_pending(held));
    TURN_UNTIL(factory, told.count >= 1)
    assert_true(told.answer);
    assert_false(dlock_is_pending(held));
    loop_process(factory);
    assert_int_equal(told.count, 1);
    close_world(factory);
}

/* The handle is free at once, and the factory sees to the rest. */
static void a_release_that_nobody_waits_for_frees_the_handle(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_true(dlock_release_start(&lock, NULL, NULL));
    assert_code(&lock, DLOCK_OK);
    assert_false(dlock_is_pending(&lock));
    check_holds_nothing(&lock);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_null(memmem(&lock, sizeof lock, "dl1-", 4));
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
    assert_int_equal(earth.releases, 2);
}

/* Whatever is under way when the factory is closed is told so, once. */
static void close_tells_every_pending_call(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_options options = {.wait_ms = DLOCK_FOREVER};
    dlock_lock locks[3] = {DLOCK_INIT, DLOCK_INIT, DLOCK_INIT};
    struct told told[3] = {{.count = 0}, {.count = 0}, {.count = 0}};
    int i;
    (void)state;
    earth.granted_after = INT_MAX;
    for (i = 0; i < 3; i++) {
        assert_yes(dlock_acquire_start(factory, &locks[i], "key", &options, tell, &told[i]),
                   &locks[i]);
    }
    for (i = 0; i < 5; i++) {
        loop_process(factory);
    }
    close_world(factory);
    for (i = 0; i < 3; i++) {
        assert_int_equal(told[i].count, 1);
        assert_false(told[i].answer || told[i].astray > 0);
        assert_int_equal(told[i].code, DLOCK_CANCELLED);
        check_holds_nothing(&locks[i]);
        assert_null(memmem(&locks[i], sizeof locks[i], "dl1-", 4));
    }
    assert_int_equal(earth.tickets_back, 3);
}

/* It stores its own address: a copy holds nothing, and the original does not suffer by it. */
static void a_copied_handle_is_noticed(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_lock copy;
    int before;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    before = earth.network;
    copy = lock;
    check_holds_nothing(&copy);
    assert_no(dlock_extend(&copy, 0), &copy, DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&copy)->text, "cop"));
    assert_no(dlock_release(&copy), &copy, DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&copy)->text, "cop"));
    assert_no(dlock_acquire(factory, &copy, "key", NULL), &copy, DLOCK_ARGUMENT);
    dlock_forget(&copy);
    dlock_cancel(&copy);
    dlocki_scope_end(&copy);
    check_holds_nothing(&copy);
    assert_int_equal(earth.network, before);
    assert_true(dlock_is_acquired(&lock));
    assert_int_equal(dlock_remaining_ms(&lock), 29698);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_yes(dlock_release(&lock), &lock);
    before = earth.network;
    assert_false(dlock_release(&copy));
    assert_int_equal(earth.network, before);
    close_world(factory);
}

static void a_scope_gives_back_what_is_held_and_only_that(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    int before;
    (void)state;
    {
        DLOCK_SCOPED(lock);
        assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
        before = earth.commands;
    }
    assert_int_equal(earth.commands, before + 1);
    assert_null(factory->held.first);
    {
        DLOCK_SCOPED(unused);
        DLOCK_SCOPED(released);
        assert_yes(dlock_acquire(factory, &released, "key", NULL), &released);
        assert_yes(dlock_release(&released), &released);
        check_holds_nothing(&unused);
        before = earth.commands;
    }
    assert_int_equal(earth.commands, before);
    close_world(factory);
}

static void close_gives_back_what_is_held_and_the_handles_are_unused(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock locks[3] = {DLOCK_INIT, DLOCK_INIT, DLOCK_INIT};
    int before;
    int i;
    (void)state;
    for (i = 0; i < 3; i++) {
        char key[2] = {(char)('a' + i), 0};
        assert_yes(dlock_acquire(factory, &locks[i], key, NULL), &locks[i]);
    }
    before = earth.commands;
    close_world(factory);
    assert_int_equal(earth.commands, before + 3);
    before = earth.network;
    for (i = 0; i < 3; i++) {
        check_holds_nothing(&locks[i]);
        assert_no(dlock_release(&locks[i]), &locks[i], DLOCK_ARGUMENT);
        assert_no(dlock_extend(&locks[i], 0), &locks[i], DLOCK_ARGUMENT);
        dlock_forget(&locks[i]);
        dlock_cancel(&locks[i]);
        dlocki_scope_end(&locks[i]);
        assert_null(memmem(&locks[i], sizeof locks[i], "dl1-", 4));
    }
    assert_int_equal(earth.network, before);
}

/* A second thread on the same handle while a call is under way. */
static dlock_lock *pending;
static dlock_factory *pending_in;
static int meddled;

static void meddle(world *in)
{
    int before = in->network;
    dlock_options options = {.no_fence = true};
    meddled++;
    assert_false(dlock_acquire(pending_in, pending, "another", &options));
    assert_false(dlock_extend(pending, 0));
    assert_false(dlock_release(pending));
    dlock_forget(pending);
    check_holds_nothing(pending);
    assert_true(dlock_is_pending(pending));
    assert_false(dlock_acquire_start(pending_in, pending, "another", &options, tell, NULL));
    assert_false(dlock_extend_start(pending, 0, tell, NULL));
    assert_false(dlock_release_start(pending, NULL, NULL));
    assert_int_equal(in->network, before);
    assert_memory_equal(pending->_key, "key", 3);
}

static void a_handle_with_a_call_under_way_takes_no_other(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    pending = &lock;
    pending_in = factory;
    meddled = 0;
    earth.during_wait = meddle;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_true(meddled > 0);
    assert_int_equal(dlock_fence(&lock), FENCE);
    assert_int_equal(earth.asks, 1);
    earth.during_wait = NULL;
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
}

static void cancel_now(world *in)
{
    if (in->asks == 3) {
        errno = EXDEV;
        dlock_cancel(pending);
        assert_int_equal(errno, EXDEV);
    }
}

static void a_cancelled_acquire_ends_and_the_next_one_does_not(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_options options = {.wait_ms = DLOCK_FOREVER};
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    pending = &lock;
    earth.during_wait = cancel_now;
    earth.granted_after = INT_MAX;
    assert_no(dlock_acquire(factory, &lock, "key", &options), &lock, DLOCK_CANCELLED);
    assert_int_equal(earth.asks, 3);
    check_holds_nothing(&lock);
    earth.during_wait = NULL;
    earth.granted_after = 4;
    assert_yes(dlock_acquire(factory, &lock, "key", &options), &lock);
    assert_int_equal(earth.asks, 5);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
}

/* --------------------------------------------------------------------------------- after a fork */

static void a_child_may_not_use_its_parents_factory(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_lock another = DLOCK_INIT;
    dlock_error error;
    dlock_stats stats;
    int before;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    before = earth.network;
    earth.pid++;
    check_holds_nothing(&lock);
    assert_no(dlock_acquire(factory, &another, "key", NULL), &another, DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&another)->text, "fork"));
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release(&lock), &lock, DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&lock)->text, "fork"));
    dlocki_scope_end(&lock);
    assert_no(dlock_acquire_start(factory, &another, "key", NULL, tell, NULL), &another,
              DLOCK_ARGUMENT);
    assert_no(dlock_extend_start(&lock, 0, tell, NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&lock, tell, NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&lock, NULL, NULL), &lock, DLOCK_ARGUMENT);
    assert_int_equal(dlock_fd(factory), -1);
    loop_process(factory);
    assert_false(dlock_inspect(factory, "key", 0, NULL, &error));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    assert_false(dlock_break(factory, "key", 0, &error));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    memset(&stats, 0x55, sizeof stats);
    dlock_stats_get(factory, &stats);
    assert_int_equal(stats.held, 0);
    assert_int_equal(earth.network, before);
    earth.pid--;
    assert_true(dlock_is_acquired(&lock));   /* the parent's is unharmed */
    earth.pid++;
    dlock_forget(&lock);
    close_world(factory);
    assert_int_equal(earth.network, before);
}

/* ----------------------------------------------------------------------------------- the config */

static char long_secret[DLOCKI_SECRET_MAX + 2];
static char long_name[DLOCKI_NAME_MAX + 2];

static void *some_alloc(size_t size, void *user)
{
    (void)size;
    (void)user;
    fail_msg("nothing is to be allocated");
    return NULL;
}

static void some_free(void *memory, void *user)
{
    (void)memory;
    (void)user;
    fail_msg("there is nothing to be freed");
}

static const struct {
    const char *says;
    dlock_config config;
} bad_configs[] = {
    {"timeout", {.connect_timeout_ms = -1}},
    {"timeout", {.connect_timeout_ms = INT32_MIN}},
    {"timeout", {.command_timeout_ms = -1}},
    {"timeout", {.command_timeout_ms = INT32_MIN}},
    {"timeout", {.connect_timeout_ms = -1, .command_timeout_ms = 1000}},
    {"alloc", {.alloc = some_alloc}},
    {"alloc", {.free = some_free}},
    {"user", {.username = long_secret, .password = "pw"}},
    {"password", {.password = long_secret}},
    {"name", {.client_name = " "}},
    {"name", {.client_name = "a b"}},
    {"name", {.client_name = "a "}},
    {"name", {.client_name = "a\nb"}},
    {"name", {.client_name = "a\r\nFLUSHALL"}},
    {"name", {.client_name = "\t"}},
    {"name", {.client_name = "a\x01"}},
    {"name", {.client_name = "a\x7f"}},
    {"name", {.client_name = "a\x80"}},
    {"name", {.client_name = "\xff"}},
    {"name", {.client_name = long_name}},
    {"timeout", {.command_timeout_ms = -1, .alloc = some_alloc, .free = some_free}},
    {"name", {.client_name = "a b", .alloc = some_alloc, .free = some_free}},
};

static void a_bad_config_is_an_argument_and_nothing_is_allocated(void **state)
{
    size_t i;
    (void)state;
    memset(&earth, 0, sizeof earth);
    memset(long_secret, 'p', sizeof long_secret - 1);
    memset(long_name, 'n', sizeof long_name - 1);
    for (i = 0; i < COUNT(bad_configs); i++) {
        dlock_error error;
        memset(&error, 0x55, sizeof error);
        if (dlocki_open_in(&kernel, &earth, URL, &bad_configs[i].config, &error) != NULL) {
            fail_msg("row %u was accepted", (unsigned)i);
        }
        assert_int_equal(error.code, DLOCK_ARGUMENT);
        assert_int_equal(error.node, -1);
        assert_int_equal(error.os_errno, 0);
        check_text(error.text, __FILE__, __LINE__);
        assert_non_null(strstr(error.text, bad_configs[i].says));
        assert_null(dlocki_open_in(&kernel, &earth, URL, &bad_configs[i].config, NULL));
        assert_int_equal(earth.wake_fds, 0);
        assert_int_equal(earth.network, 0);
    }
}

static void a_config_at_its_limits_is_taken_as_it_is(void **state)
{
    dlock_config config = {.connect_timeout_ms = INT32_MAX, .command_timeout_ms = INT32_MAX};
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    memset(long_secret, 0, sizeof long_secret);
    memset(long_name, 0, sizeof long_name);
    memset(long_secret, 'p', DLOCKI_SECRET_MAX);
    memset(long_name, '~', DLOCKI_NAME_MAX);
    config.username = long_secret;
    config.password = long_secret;
    config.client_name = long_name;
    factory = open_in_world(URL "/7", &config);
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_int_equal(earth.commands, 4);   /* AUTH, SELECT, CLIENT SETNAME, and the ask */
    assert_int_equal(earth.sends, 1);
    assert_string_equal(factory->client_name, long_name);
    assert_int_equal(factory->url.username_length, DLOCKI_SECRET_MAX);
    assert_int_equal(factory->url.password_length, DLOCKI_SECRET_MAX);
    assert_yes(dlock_release(&lock), &lock);
    close_world(factory);
    config.client_name = "";   /* none */
    factory = open_in_world(URL, &config);
    assert_string_equal(factory->client_name, "");
    close_world(factory);
    config.connect_timeout_ms = 1;
    config.command_timeout_ms = 1;
    factory = open_in_world(URL, &config);
    assert_int_equal(factory->connect_timeout_ms, 1);
    assert_int_equal(factory->command_timeout_ms, 1);
    close_world(factory);
}

static void a_header_that_was_compiled_otherwise_is_noticed(void **state)
{
    dlock_error error;
    dlock_factory *factory;
    (void)state;
    assert_null(dlocki_open(URL, NULL, &error, sizeof(dlock_lock) + 8, DLOCK_VERSION));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    check_text(error.text, __FILE__, __LINE__);
    assert_null(dlocki_open(URL, NULL, &error, sizeof(dlock_lock), DLOCK_VERSION + 1));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    assert_null(dlocki_open(URL, NULL, NULL, 0, 0));
    factory = dlocki_open(URL, NULL, &error, sizeof(dlock_lock), DLOCK_VERSION);
    assert_non_null(factory);
    assert_int_equal(error.code, DLOCK_OK);
    assert_string_equal(error.text, "");
    dlock_close(factory);
}

/* --------------------------------------------------------------------------------- whose memory */

typedef struct purse {
    int taken;
    int given_back;
    int refuse;      /* how many are still to be refused */
    size_t size;
    void *memory;
    size_t dirty;    /* bytes that were not zero when they came back */
} purse;

static void *purse_alloc(size_t size, void *user)
{
    purse *from = (purse *)user;
    if (from->refuse > 0) {
        from->refuse--;
        return NULL;
    }
    from->taken++;
    from->size = size;
    from->memory = malloc(size);
    assert_non_null(from->memory);
    memset(from->memory, 0x55, size);
    return from->memory;
}

static void purse_free(void *memory, void *user)
{
    purse *to = (purse *)user;
    size_t i;
    assert_non_null(memory);
    assert_ptr_equal(memory, to->memory);
    to->given_back++;
    for (i = 0; i < to->size; i++) {
        to->dirty += ((const unsigned char *)memory)[i] != 0;
    }
    free(memory);
}

/* Every way out of dlock_open gives back what was taken. */
static void the_configs_alloc_and_free_are_used_and_balanced(void **state)
{
    static const struct {
        const char *url;
        bool no_random;
        bool no_wake_fd;
        int refuse;
        int code;
        int os_errno;
    } ways[] = {
        {URL, false, false, 0, DLOCK_OK, 0},
        {"unix:///path", false, false, 0, DLOCK_OK, 0},
        {"nonsense", false, false, 0, DLOCK_ARGUMENT, 0},
        {NULL, false, false, 0, DLOCK_ARGUMENT, 0},
        {"redis://me@host", false, false, 0, DLOCK_ARGUMENT, 0},
        {URL, true, false, 0, DLOCK_UNREACHABLE, 0},
        {URL, false, true, 0, DLOCK_UNREACHABLE, EMFILE},
        {URL, false, false, 1, DLOCK_MEMORY, ENOMEM},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(ways); i++) {
        purse ours = {.refuse = ways[i].refuse};
        dlock_config config = {.alloc = purse_alloc, .free = purse_free, .user = &ours};
        dlock_error error;
        dlock_factory *factory;
        memset(&earth, 0, sizeof earth);
        earth.no_random = ways[i].no_random;
        earth.no_wake_fd = ways[i].no_wake_fd;
        factory = dlocki_open_in(&kernel, &earth, ways[i].url, &config, &error);
        assert_int_equal(factory != NULL, ways[i].code == DLOCK_OK);
        assert_int_equal(error.code, ways[i].code);
        assert_int_equal(error.os_errno, ways[i].os_errno);
        assert_int_equal(ours.taken, ways[i].refuse == 0);
        if (ways[i].code != DLOCK_OK) {
            check_text(error.text, __FILE__, __LINE__);
        } else {
            assert_int_equal(ours.given_back, 0);
            assert_ptr_equal(factory, ours.memory);
            assert_true(ours.size == sizeof *factory);
        }
        dlock_close(factory);
        assert_int_equal(ours.given_back, ours.taken);
        assert_int_equal(ours.dirty, 0);
        assert_int_equal(earth.wake_fds, 0);
        assert_int_equal(earth.network, 0);
    }
}

static void nothing_is_allocated_between_the_first_connection_and_close(void **state)
{
    purse ours = {.taken = 0};
    dlock_config config = {.alloc = purse_alloc, .free = purse_free, .user = &ours};
    dlock_factory *factory = open_in_world(URL, &config);
    dlock_lock lock = DLOCK_INIT;
    unsigned before;
    int i;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "key", NULL), &lock);
    assert_yes(dlock_release(&lock), &lock);
    before = allocations;
    for (i = 0; i < 2000; i++) {
        dlock_options options = {.no_fence = i % 2 == 1, .wait_ms = i % 3};
        if (!dlock_acquire(factory, &lock, "key", &options) || !dlock_extend(&lock, 40000) ||
            !dlock_release(&lock)) {
            fail_msg("%s", dlock_why(&lock)->text);
        }
    }
    assert_int_equal(allocations, before);
    assert_int_equal(ours.taken, 1);
    assert_int_equal(ours.given_back, 0);
    close_world(factory);
    assert_int_equal(ours.given_back, 1);
}

/* Neither the factory's memory nor what hiredis gives back holds a password or an owner. */
static void a_secret_is_wiped_before_memory_is_given_back(void **state)
{
    static const char *const says[] = {
        "+OK\r\n",
        "-ERR unknown command 'AUTH', with args beginning with: '" MARKER "' '" MARKER "' \r\n",
        NULL,   /* a long one */
    };
    static char longer[2000];
    size_t i;
    (void)state;
    memset(longer, 'x', sizeof longer - 3);
    memcpy(longer, "-ERR " MARKER " " MARKER, 18);
    memcpy(longer + 900, MARKER, 6);
    memcpy(longer + sizeof longer - 3, "\r\n", 3);
    for (i = 0; i < COUNT(says); i++) {
        purse ours = {.taken = 0};
        dlock_config config = {.alloc = purse_alloc, .free = purse_free, .user = &ours};
        dlock_factory *factory;
        dlock_lock lock = DLOCK_INIT;
        factory = open_in_world("redis://" MARKER ":" MARKER "@host", &config);
        earth.auth_says = says[i] != NULL ? says[i] : longer;
        leaks = 0;
        look_for_marker = true;
        if (dlock_acquire(factory, &lock, "key", NULL)) {
            assert_int_equal(i, 0);
            assert_yes(dlock_release(&lock), &lock);
        } else {
            assert_code(&lock, DLOCK_REFUSED);
            assert_null(strstr(dlock_why(&lock)->text, MARKER));
        }
        close_world(factory);
        look_for_marker = false;
        assert_int_equal(ours.dirty, 0);
        assert_int_equal(leaks, 0);
        assert_null(memmem(&lock, sizeof lock, MARKER, sizeof MARKER - 1));
        assert_null(memmem(&lock, sizeof lock, "dl1-", 4));
    }
}

/* ----------------------------------------------------------------------------- without a server */

static void fail_open_counts_as_acquired_and_says_so(void **state)
{
    dlock_factory *factory = open_in_world(URL, NULL);
    dlock_options options = {.fail_open = true};
    dlock_lock lock = DLOCK_INIT;
    int before;
    (void)state;
    earth.unreachable = true;
    assert_yes(dlock_acquire(factory, &lock, "key", &options), &lock);
    assert_true(dlock_is_degraded(&lock));
    assert_true(dlock_is_acquired(&lock));
    assert_int_equal(dlock_fence(&lock), 0);
    assert_string_equal(dlock_owner(&lock), "");
    assert_int_equal(dlock_remaining_ms(&lock), 29698);
    before = earth.network;
    assert_no(dlock_acquire(factory, &lock, "key", &options), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_extend(&lock, 2), &lock, DLOCK_ARGUMENT);
    earth.now += 29698;
    assert_false(dlock_is_acquired(&lock));
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 29698);
    assert_yes(dlock_release(&lock), &lock);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    check_holds_nothing(&lock);
    assert_int_equal(earth.network, before);
    options.fail_open = false;
    assert_no(dlock_acquire(factory, &lock, "key", &options), &lock, DLOCK_UNREACHABLE);
    close_world(factory);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_option_is_an_argument_and_nothing_is_sent),
        cmocka_unit_test(a_refused_start_is_not_told_to_done),
        cmocka_unit_test(a_bad_key_is_an_argument_and_nothing_is_sent),
        cmocka_unit_test(a_key_is_read_up_to_its_length_only),
        cmocka_unit_test(a_key_may_hold_any_bytes_and_is_copied),
        cmocka_unit_test(a_value_at_its_limit_is_taken_as_it_is),
        cmocka_unit_test(the_longest_wait_is_not_the_shortest),
        cmocka_unit_test(who_stands_in_line_rests_unless_he_set_a_pace),
        cmocka_unit_test(a_wait_ends_when_it_must_whatever_the_clock_says),
        cmocka_unit_test(near_the_end_of_time_nothing_can_be_promised),
        cmocka_unit_test(without_a_clock_calls_end_and_nothing_is_ours),
        cmocka_unit_test(no_queue_polls_and_never_subscribes),
        cmocka_unit_test(one_attempt_never_subscribes),
        cmocka_unit_test(retries_are_as_many_as_were_asked_for),
        cmocka_unit_test(auto_renew_renews_until_it_is_given_back),
        cmocka_unit_test(without_auto_renew_nothing_is_renewed_and_max_hold_ms_means_nothing),
        cmocka_unit_test(max_hold_ms_ends_the_renewals_and_the_loss_is_told_once),
        cmocka_unit_test(a_loss_is_told_once_when_a_renewal_finds_out),
        cmocka_unit_test(every_transition_is_told_once_and_to_the_configs_user),
        cmocka_unit_test(what_was_counted_can_be_asked_for),
        cmocka_unit_test(an_inspection_tells_what_stands_there),
        cmocka_unit_test(a_break_says_whether_there_was_something_to_take),
        cmocka_unit_test(a_bad_expiry_of_extend_is_an_argument_and_the_lock_stays),
        cmocka_unit_test(an_extend_by_zero_is_by_the_expiry_as_acquired),
        cmocka_unit_test(a_held_handle_cannot_be_acquired_again),
        cmocka_unit_test(verbs_on_an_unused_handle_are_an_argument_and_nothing_is_sent),
        cmocka_unit_test(a_second_release_is_lost_and_nothing_is_sent),
        cmocka_unit_test(a_forgotten_lock_is_not_given_back),
        cmocka_unit_test(a_handle_is_pending_until_its_callback),
        cmocka_unit_test(a_release_that_nobody_waits_for_frees_the_handle),
        cmocka_unit_test(close_tells_every_pending_call),
        cmocka_unit_test(a_copied_handle_is_noticed),
        cmocka_unit_test(a_scope_gives_back_what_is_held_and_only_that),
        cmocka_unit_test(close_gives_back_what_is_held_and_the_handles_are_unused),
        cmocka_unit_test(a_handle_with_a_call_under_way_takes_no_other),
        cmocka_unit_test(a_cancelled_acquire_ends_and_the_next_one_does_not),
        cmocka_unit_test(a_child_may_not_use_its_parents_factory),
        cmocka_unit_test(a_bad_config_is_an_argument_and_nothing_is_allocated),
        cmocka_unit_test(a_config_at_its_limits_is_taken_as_it_is),
        cmocka_unit_test(a_header_that_was_compiled_otherwise_is_noticed),
        cmocka_unit_test(the_configs_alloc_and_free_are_used_and_balanced),
        cmocka_unit_test(nothing_is_allocated_between_the_first_connection_and_close),
        cmocka_unit_test(a_secret_is_wiped_before_memory_is_given_back),
        cmocka_unit_test(fail_open_counts_as_acquired_and_says_so),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
