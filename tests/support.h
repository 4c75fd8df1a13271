/* What the live tests share: throw-away servers, a proxy that breaks things on purpose, children,
 * a stopwatch, a count of descriptors.
 *
 * Everything started here is stopped and removed whatever happens: at the end of a test by its
 * teardown, at exit by a list, on a signal by a handler, and when the test program is killed by
 * the kernel (PR_SET_PDEATHSIG). A server that cannot be started fails the test; it never skips.
 *
 * The part below the line "for programs that include dlock.h first" uses the library under test;
 * support.c does not. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <poll.h>

/* ------------------------------------------------------------------------------- a server */

enum { SERVER_OPTIONS_MAX = 32, SERVER_PATH_MAX = 108, SERVER_URL_MAX = 160 };

struct server {
    pid_t pid;                          /* 0 = not running                                 */
    pid_t owner;                        /* the process that may use `raw`                  */
    int port;                           /* 0 = unix socket only                            */
    bool stopped;                       /* by server_pause                                 */
    redisContext *raw;                  /* connection of server_command                    */
    int64_t own_bytes;                  /* sent through `raw`                              */
    const char *password;               /* behind --requirepass                            */
    const char *options[SERVER_OPTIONS_MAX + 1];
    char directory[SERVER_PATH_MAX];    /* holds the socket, the log and data/             */
    char socket[SERVER_PATH_MAX];
    char url[SERVER_URL_MAX];           /* unix://... of the socket                        */
};

/* Starts $DLOCK_TEST_SERVER, or redis-server, with further options (NULL-terminated or NULL; the
 * strings must live as long as the server), and returns when it answers. `tcp` adds a free
 * loopback port for IPv4 and, where there is one, IPv6. */
void server_start(struct server *server, bool tcp, const char *const *options);

/* Ends it and removes its directory. Also after a failed start, and twice. */
void server_stop(struct server *server);

/* Ends it (SIGKILL) and starts it again on the same socket and port. `keep` saves the data first.
 * `options` replace the old ones unless NULL. */
void server_restart(struct server *server, bool keep, const char *const *options);

/* The two halves of server_restart: in between nobody listens. */
void server_kill(struct server *server);
void server_revive(struct server *server);

/* SIGSTOP, returning when it has stopped; SIGCONT. */
void server_pause(struct server *server);
void server_continue(struct server *server);

/* A new raw connection, past AUTH; the caller frees it. */
redisContext *server_connect(const struct server *server);

/* One command on the kept raw connection, in hiredis's format (%s, %b, %d ...). The reply is the
 * caller's; an I/O error fails the test. */
redisReply *server_command(struct server *server, const char *format, ...);

/* The same, for replies that must not be an error; an integer; text (nil becomes "(nil)"). */
void server_do(struct server *server, const char *format, ...);
int64_t server_integer(struct server *server, const char *format, ...);
void server_text(struct server *server, char *text, size_t size, const char *format, ...);

/* A number out of INFO, such as server_info(s, "stats", "rejected_connections"). */
int64_t server_info(struct server *server, const char *section, const char *field);

/* How often a command was asked for since the start or CONFIG RESETSTAT, refused ones included. */
int64_t server_calls(struct server *server, const char *command);
/* EVAL and EVALSHA together. */
int64_t server_scripts(struct server *server);

/* Bytes that others than server_command have sent: equal values mean that nothing was sent. */
int64_t server_heard(struct server *server);

/* The server's clock in microseconds. */
int64_t server_time(struct server *server);

/* Asks until the answer is this integer, which must be within ten seconds: what we send without
 * waiting for it is on its way. */
void server_soon(struct server *server, const char *question, int64_t answer);

/* ----------------------------------------------------------------------- who waits in line */
/* For keys without a hash tag of their own. What is waited for must come within ten seconds. */

enum { TICKET_MAX = 128 };

/* Tickets in line; waits until there are exactly so many. */
int64_t line_length(struct server *server, const char *key);
void line_wait(struct server *server, const char *key, int64_t length);

/* The ticket at a place, from 0 on, or from -1 backwards; "" if nobody stands there. */
void line_ticket(struct server *server, const char *key, int place, char ticket[TICKET_MAX]);

/* The score of a ticket; -1 = it is not in line. */
int64_t line_score(struct server *server, const char *key, const char *ticket);

/* Inboxes that are subscribed; waits until there are exactly so many. */
int64_t inboxes(struct server *server);
void inboxes_wait(struct server *server, int64_t count);

/* Is nothing left of a key but its counter: not held, nobody in line? Waits for it. */
void line_is_over(struct server *server, const char *key);

/* -------------------------------------------------------------------------------- a proxy */

enum proxy_fault {
    PROXY_PASS,
    PROXY_SWALLOW,      /* once `word` was seen: forwarded, but replies vanish                  */
    PROXY_HANG_UP,      /* once `word` was seen: forwarded; closed in place of the reply        */
    PROXY_EXTRA,        /* once `word` was seen: the reply is followed by `answer`              */
    PROXY_REFUSE,       /* accepted, and closed at once                                         */
    PROXY_CUT_REQUEST,  /* `bytes` towards the server, then closed                              */
    PROXY_CUT_REPLY,    /* `bytes` towards the client, then closed                              */
    PROXY_DRIP,         /* replies one byte at a time, `delay_ms` apart                         */
    PROXY_STALL,        /* accepted, nothing is read or sent                                    */
    PROXY_SPEAK,        /* `answer`, unasked, on every connection that is open: once            */
    PROXY_ANSWER        /* never forwarded; answered with `answer`, `repeat` times              */
};

struct proxy_plan {
    enum proxy_fault fault;
    const char *word;       /* a command's name, any case; NULL = any command              */
    int skip;               /* so many of them pass first                                  */
    int times;              /* then so many faults, then PASS; 0 = for ever                */
    int bytes;
    int delay_ms;
    int repeat;
    const char *answer;
    size_t answer_length;   /* 0 = strlen                                                  */
};

struct proxy_control;

struct proxy {
    pid_t pid;
    struct proxy_control *control;      /* shared with the proxy's process                 */
    char directory[SERVER_PATH_MAX];
    char socket[SERVER_PATH_MAX];
    char url[SERVER_URL_MAX];
};

/* A process that listens on a unix socket of its own and forwards to the server. */
void proxy_start(struct proxy *proxy, const struct server *server);
void proxy_stop(struct proxy *proxy);

/* From now on; byte counts start at 0 on every connection. */
void proxy_set(struct proxy *proxy, const struct proxy_plan *plan);

/* Faults done since the last proxy_set; connections accepted since the start. */
int proxy_fired(const struct proxy *proxy);
int proxy_accepted(const struct proxy *proxy);

/* -------------------------------------------------------------- children, time, descriptors */

/* Runs body in a forked child that dies with us; what it returns is the exit status. */
pid_t child_start(int (*body)(void *argument), void *argument);
/* Exit status, or 128 + signal. */
int child_wait(pid_t pid);

/* Inside a child there is no cmocka: say what was wrong and leave. */
#define child_check(condition) \
    do { \
        if (!(condition)) { \
            child_fail(#condition, __FILE__, __LINE__); \
        } \
    } while (0)
_Noreturn void child_fail(const char *condition, const char *file, int line);

/* Zeroed memory that children share; lives as long as the program. */
void *shared_memory(size_t size);

int64_t now_ms(void);
int64_t cpu_ms(void);                   /* processor time of this process */
void pause_ms(int64_t span);

/* Waits until another thread or process has set it so, twenty seconds at most. */
void await(const atomic_int *value, int expected);

/* The time since `start` is at least `low` and not much more than `high`. Two milliseconds are
 * granted below for rounding; above, a busy machine gets twice the time and half a second. */
#define assert_took(start, low, high) took((start), (low), (high), __FILE__, __LINE__)
void took(int64_t start, int64_t low, int64_t high, const char *file, int line);

/* Open descriptors of this process; its threads. */
int descriptors(void);
int threads(void);

/* A loopback port nobody listens on. */
int free_port(void);

/* Has this machine an IPv6 loopback? */
bool has_ipv6(void);

/* The test program fails, with a text, if it runs for longer from now on. */
void watchdog(unsigned seconds);

/* Runs tests that mostly sleep, each in a process of its own and several at once, and shows what
 * they have printed. One that failed while the machine stood still is run again, twice at most, and
 * what it printed is shown but does not count. What main returns. */
int run_side_by_side(const struct CMUnitTest *tests, size_t count, int processes);

#endif /* SUPPORT_H */

/* ------------------------------------------------- for programs that include dlock.h first */

#if defined(DLOCK_H) && !defined(SUPPORT_DLOCK_H)
#define SUPPORT_DLOCK_H

struct live {
    struct server server;
    struct proxy proxy;
    dlock_factory *factory;             /* to server.url, or made by the test */
};

static inline dlock_factory *open_factory(const char *url, const dlock_config *config)
{
    dlock_error error;
    dlock_factory *factory = dlock_open(url, config, &error);
    if (factory == NULL) {
        fail_msg("dlock_open: %s", error.text);
    }
    return factory;
}

/* A text is one sentence in printable ASCII and gives nothing away. */
static inline void check_text(const char *text, const char *file, int line)
{
    size_t length = strlen(text);
    bool plain = length > 0;
    for (size_t i = 0; i < length; i++) {
        plain = plain && text[i] >= ' ' && text[i] <= '~';
    }
    if (!plain || strstr(text, "dl1-") != NULL) {
        print_error("not a proper text: \"%s\"\n", text);
        _fail(file, line);
    }
}

static inline void check_code(const dlock_lock *lock, int expected, const char *file, int line)
{
    const dlock_error *why = dlock_why(lock);
    if (why->code != expected) {
        print_error("expected \"%s\", but it is \"%s\": %s\n", dlock_code_text(expected),
                    dlock_code_text(why->code), why->text);
        _fail(file, line);
    }
    if (expected != DLOCK_OK) {
        check_text(why->text, file, line);
    }
}
#define assert_code(lock, expected) check_code((lock), (expected), __FILE__, __LINE__)

/* A verb was true, and everything that says so agrees. */
static inline void check_true(bool answer, const dlock_lock *lock, const char *file, int line)
{
    if (!answer) {
        print_error("false, %s: %s\n", dlock_code_text(dlock_why(lock)->code),
                    dlock_why(lock)->text);
        _fail(file, line);
    }
    check_code(lock, DLOCK_OK, file, line);
}
#define assert_yes(verb, lock) check_true((verb), (lock), __FILE__, __LINE__)

/* A verb was false, with this code. */
#define assert_no(verb, lock, expected) \
    do { \
        assert_false(verb); \
        assert_code((lock), (expected)); \
    } while (0)

/* The key holds exactly this lock's owner; the key is not there. */
static inline void check_held(struct server *server, const dlock_lock *lock, const char *key,
                              const char *file, int line)
{
    char value[128];
    server_text(server, value, sizeof value, "GET %s", key);
    if (!dlock_is_acquired(lock) || strcmp(value, dlock_owner(lock)) != 0) {
        print_error("%s is not held by this lock: it holds \"%s\"\n", key, value);
        _fail(file, line);
    }
}
#define assert_held(server, lock, key) check_held((server), (lock), (key), __FILE__, __LINE__)
#define assert_gone(server, key) assert_int_equal(server_integer((server), "EXISTS %s", (key)), 0)

/* Every live test has a server of its own, and a factory that has not connected yet. */
static inline int live_setup(void **state)
{
    struct live *live = (struct live *)calloc(1, sizeof *live);
    assert_non_null(live);
    watchdog(60);
    *state = live;
    server_start(&live->server, false, NULL);
    live->factory = open_factory(live->server.url, NULL);
    return 0;
}

/* The last line of a test: while its handles, which live on its stack, are still there. */
static inline void live_end(struct live *live)
{
    dlock_close(live->factory);
    live->factory = NULL;
}

/* A factory that is still there belongs to a test that failed: closing it would touch the handles
 * that went with the test's stack. */
static inline int live_teardown(void **state)
{
    struct live *live = (struct live *)*state;
    proxy_stop(&live->proxy);
    server_stop(&live->server);
    free(live);
    return 0;
}

/* Another factory in place of the one that live_setup made. */
static inline void live_reopen(struct live *live, const char *url, const dlock_config *config)
{
    dlock_close(live->factory);
    live->factory = NULL;
    live->factory = open_factory(url, config);
}

#define LIVE(test) cmocka_unit_test_setup_teardown(test, live_setup, live_teardown)

/* Where the library has a thread of its own, that goes on when a test fails, and a loop's calls are
 * still pending: what they write to must not go with the stack, and must be closed. */
#define FRESH(type, name) \
    static type name; \
    memset(&(name), 0, sizeof(name))

static inline int live_closing_teardown(void **state)
{
    struct live *live = (struct live *)*state;
    if (live->factory != NULL) {
        if (live->server.pid > 0 && live->server.stopped) {
            server_continue(&live->server);
        }
        dlock_close(live->factory);
    }
    return live_teardown(state);
}

#define LIVE_CLOSED(test) cmocka_unit_test_setup_teardown(test, live_setup, live_closing_teardown)

/* -------------------------------------------------------------------- what on_lost was told */

struct losses {
    atomic_int count;
    atomic_int wrong;                   /* still acquired, or with another code than LOST */
    _Atomic int64_t at;                 /* now_ms() of the last one */
};

static inline void count_loss(dlock_lock *lock, void *user)
{
    struct losses *losses = (struct losses *)user;
    bool right = !dlock_is_acquired(lock) && dlock_why(lock)->code == DLOCK_LOST;
    atomic_fetch_add(&losses->wrong, right ? 0 : 1);
    atomic_store(&losses->at, now_ms());
    atomic_fetch_add(&losses->count, 1);
}

static inline dlock_stats stats_of(const dlock_factory *factory)
{
    dlock_stats stats;
    dlock_stats_get(factory, &stats);
    return stats;
}

/* ----------------------------------------------------------------- an event loop of one factory */

/* Calls of loop_process and loop_close under way in this thread: `done` runs nowhere else. */
static _Thread_local int looping __attribute__((unused));

/* What `done` was told. */
struct told {
    atomic_int count;                   /* how often                                       */
    atomic_int astray;                  /* of these: outside of loop_process, loop_close   */
    bool answer;
    int code;
};

static inline void tell(dlock_lock *lock, bool answer, void *user)
{
    struct told *told = (struct told *)user;
    told->answer = answer;
    told->code = dlock_why(lock)->code;
    atomic_fetch_add(&told->astray, looping == 0 || dlock_is_pending(lock) ? 1 : 0);
    atomic_fetch_add(&told->count, 1);
}

static inline void loop_process(dlock_factory *factory)
{
    looping++;
    dlock_process(factory);
    looping--;
}

static inline void loop_close(dlock_factory *factory)
{
    looping++;
    dlock_close(factory);
    looping--;
}

/* Is there work for dlock_process within `span`? */
static inline bool loop_readable(dlock_factory *factory, int64_t span)
{
    struct pollfd wait = {dlock_fd(factory), POLLIN, 0};
    int64_t end = now_ms() + span;
    int ready = -1;
    assert_true(wait.fd >= 0);
    for (int64_t left = span; ready < 0; left = end - now_ms()) {
        ready = poll(&wait, 1, left > 0 ? (int)left : 0);
    }
    return ready > 0;
}

/* One turn of a loop that has nothing to wake it but the descriptor. */
static inline bool loop_turn(dlock_factory *factory, int64_t span)
{
    bool ready = loop_readable(factory, span);
    if (ready) {
        loop_process(factory);
    }
    return ready;
}

/* Turns until *count has reached `wanted`, which must be within `limit`; how many it took. */
static inline int loop_to(dlock_factory *factory, const atomic_int *count, int wanted,
                          int64_t limit, const char *file, int line)
{
    int64_t end = now_ms() + limit;
    int turns = 0;
    while (atomic_load(count) < wanted) {
        if (now_ms() > end) {
            print_error("%d of %d after %lld ms and %d turns\n", atomic_load(count), wanted,
                        (long long)limit, turns);
            _fail(file, line);
        }
        turns += loop_turn(factory, end - now_ms()) ? 1 : 0;
    }
    return turns;
}
#define loop_until(factory, count, wanted) \
    loop_to((factory), (count), (wanted), 20000, __FILE__, __LINE__)

/* Turns for a while; how many. */
static inline int loop_for(dlock_factory *factory, int64_t span)
{
    int64_t end = now_ms() + span;
    int turns = 0;
    for (int64_t left = span; left > 0; left = end - now_ms()) {
        turns += loop_turn(factory, left) ? 1 : 0;
    }
    return turns;
}

/* A start, and turns until it was answered, once and where it may be. */
static inline bool loop_answer(dlock_factory *factory, bool started, const struct told *told,
                               const char *file, int line)
{
    if (started) {
        (void)loop_to(factory, &told->count, 1, 20000, file, line);
        assert_int_equal(atomic_load(&told->count), 1);
        assert_int_equal(atomic_load(&told->astray), 0);
    } else {
        assert_int_equal(atomic_load(&told->count), 0);
    }
    return started && told->answer;
}

static inline bool loop_acquire(dlock_factory *factory, dlock_lock *lock, const char *key,
                                const dlock_options *options)
{
    FRESH(struct told, told);
    bool started = dlock_acquire_start(factory, lock, key, options, tell, &told);
    return loop_answer(factory, started, &told, __FILE__, __LINE__);
}

static inline bool loop_extend(dlock_factory *factory, dlock_lock *lock, int64_t expiry_ms)
{
    FRESH(struct told, told);
    bool started = dlock_extend_start(lock, expiry_ms, tell, &told);
    return loop_answer(factory, started, &told, __FILE__, __LINE__);
}

static inline bool loop_release(dlock_factory *factory, dlock_lock *lock)
{
    FRESH(struct told, told);
    bool started = dlock_release_start(lock, tell, &told);
    return loop_answer(factory, started, &told, __FILE__, __LINE__);
}

/* ------------------------------------------------------------ handles of several factories wait */
/* Nothing here fails the test by itself, so that children may use it, but guest_arrives. */

enum { GUESTS_MAX = 128 };

struct guest {
    dlock_factory *factory;             /* NULL = does not take part                       */
    dlock_lock lock;
    int told;                           /* how often `done` ran                            */
    bool answer;
    int code;
    int turn;                           /* in the order in which guests were told; from 1  */
    char ticket[TICKET_MAX];            /* as guest_arrives found it                       */
};

static inline void guest_told(dlock_lock *lock, bool answer, void *user)
{
    static int turns;
    struct guest *guest = (struct guest *)user;
    guest->told++;
    guest->answer = answer;
    guest->code = dlock_why(lock)->code;
    guest->turn = ++turns;
}

static inline bool guest_start(struct guest *guest, dlock_factory *factory, const char *key,
                               const dlock_options *options)
{
    memset(guest, 0, sizeof *guest);
    guest->factory = factory;
    return dlock_acquire_start(factory, &guest->lock, key, options, guest_told, guest);
}

/* How many know their answer. */
static inline int guests_told(const struct guest *guests, int count)
{
    int told = 0;
    for (int i = 0; i < count; i++) {
        told += guests[i].told > 0 ? 1 : 0;
    }
    return told;
}

/* One wait for all descriptors, each factory once; dlock_process where there is work. */
static inline void guests_turn(struct guest *guests, int count, int64_t span)
{
    struct pollfd waits[GUESTS_MAX];
    for (int i = 0; i < count; i++) {
        waits[i].fd = guests[i].factory != NULL ? dlock_fd(guests[i].factory) : -1;
        waits[i].events = POLLIN;
        waits[i].revents = 0;
        for (int j = 0; j < i; j++) {
            if (guests[j].factory == guests[i].factory) {
                waits[i].fd = -1;
            }
        }
    }
    if (poll(waits, (nfds_t)count, span > 0 ? (int)span : 0) <= 0) {
        return;
    }
    for (int i = 0; i < count; i++) {
        if (waits[i].revents != 0) {
            dlock_process(guests[i].factory);
        }
    }
}

/* Turns until `enough` of them know their answer: true; or until `span` is over: false. */
static inline bool guests_until(struct guest *guests, int count, int enough, int64_t span)
{
    int64_t end = now_ms() + span;
    int64_t left = span;
    while (guests_told(guests, count) < enough && left > 0) {
        guests_turn(guests, count, left);
        left = end - now_ms();
    }
    return guests_told(guests, count) >= enough;
}

static inline void guests_for(struct guest *guests, int count, int64_t span)
{
    (void)guests_until(guests, count, count + 1, span);
}

/* Turns until the line is so long: true; or until ten seconds are over. */
static inline bool guests_line_up(struct server *server, const char *key, struct guest *guests,
                                  int count, int64_t length)
{
    int64_t end = now_ms() + 10000;
    while (line_length(server, key) != length) {
        if (now_ms() > end) {
            return false;
        }
        guests_for(guests, count, 2);
    }
    return true;
}

/* Guest number `index` comes, and stands last in line when this returns: the order of arrival. */
static inline void guest_arrives(struct server *server, const char *key, struct guest *guests,
                                 int index, dlock_factory *factory, const dlock_options *options)
{
    int64_t length = line_length(server, key);
    assert_true(guest_start(&guests[index], factory, key, options));
    if (!guests_line_up(server, key, guests, index + 1, length + 1)) {
        fail_msg("guest %d has no ticket", index);
    }
    line_ticket(server, key, -1, guests[index].ticket);
}

#endif /* DLOCK_H */
