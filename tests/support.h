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

/* The time since `start` is at least `low` and not much more than `high`. Two milliseconds are
 * granted below for rounding; above, a busy machine gets twice the time and half a second. */
#define assert_took(start, low, high) took((start), (low), (high), __FILE__, __LINE__)
void took(int64_t start, int64_t low, int64_t high, const char *file, int line);

/* Open descriptors of this process. */
int descriptors(void);

/* A loopback port nobody listens on. */
int free_port(void);

/* Has this machine an IPv6 loopback? */
bool has_ipv6(void);

/* The test program fails, with a text, if it runs for longer from now on. */
void watchdog(unsigned seconds);

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

#endif /* DLOCK_H */
