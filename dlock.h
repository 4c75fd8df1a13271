/* dlock.h - v0.1.0 - a lock shared by many machines, on Redis - licence: end of file

CONTENTS
    WHAT IT IS - USE IT - WHAT IT GUARANTEES - WHAT IT DOES NOT - CONCEPTS - WAITING - THREADS -
    MEMORY - MACROS - LIMITS OF THIS VERSION - REVISIONS

WHAT IT IS
    One header that lets only one process at a time do a thing, whatever machine it runs on. The
    lock is a key on a Redis (or Valkey) server, version 6.2 or later. It expires by itself, it is
    given back only by its owner, and every lock comes with a number that only grows.

USE IT
    In one C or C++ file of the program, before the include:

        #define DLOCK_IMPLEMENTATION
        #include "dlock.h"
        #include <stdio.h>

        int main(void)
        {
            dlock_factory *factory = dlock_open("redis://127.0.0.1:6379", NULL, NULL);
            dlock_lock lock = DLOCK_INIT;
            dlock_options options = {.expiry_ms = 10000, .wait_ms = 5000};
            if (dlock_acquire(factory, &lock, "orders:42", &options)) {
                printf("it is ours, fence %llu\n", (unsigned long long)dlock_fence(&lock));
                dlock_release(&lock);
            } else {
                printf("it is not ours: %s\n", dlock_why(&lock)->text);
            }
            dlock_close(factory);
        }

    Everywhere else, include it without the macro. Linux; C99 or later, C++11 or later; gcc or
    clang. Build with -lhiredis (0.14.1 or later) -lpthread, and under -std=c99, c11 or c17 with
    -D_POSIX_C_SOURCE=200809L. Only the file with the implementation needs hiredis's headers.

WHAT IT GUARANTEES
    1. While dlock_is_acquired() is true, nobody else was given this lock, as long as the server
       keeps what it acknowledged and its clock is not set forward.
    2. A lock is given back by its owner only. dlock_release() answers true if the lock was still
       ours and this very call gave it back; what is not ours is never touched.
    3. "Somebody holds it" (BUSY) and "nobody could tell" (UNREACHABLE) are never confused, and an
       acquire whose answer was lost leaves no lock behind: it is undone during later calls, or by
       dlock_close(), or it lapses with its lease.

WHAT IT DOES NOT
    1. It cannot stop a program that was paused beyond its lease from going on to write. Hand
       dlock_fence() to whatever the lock protects and let that refuse a smaller number.
    2. It cannot survive a server that loses what it acknowledged: a failover before the replica
       had the key, a restart without persistence, FLUSHALL, eviction. Two may then hold one lock;
       their fences still differ, and grow, as long as the server's clock does.
    3. It cannot outwit the server's clock: stepped forward, leases end early for everybody; data
       lost while that clock is set back, a fence can repeat. A restored machine image cannot tell
       that it was restored.
    Also: a process that exits right after a lost reply leaves its lock to lapse, and a request
    that a dying connection delivers very late can take one lease that nobody knows. It lapses.

CONCEPTS
    key       the name of the lock, exactly the Redis key that holds it
    owner     proves that a lock is ours: random, and never used again once given back
    lease     the lock's life on the server; expiry is its length
    validity  what is left of the lease as far as this process can prove: counted from before the
              request was sent, less 1 % of the expiry and 2 ms for clocks that drift
    fence     the fencing token: a number below 2^53 that only grows, per key
    debt      something that must be undone on the server and could not be undone yet
    The key K is a plain string set with SET NX PX and deleted if its value is still ours, so every
    other library that locks that way excludes us and is excluded by us. Two more keys stand beside
    it, {K}:fence and {K}:queue (K:dlock:fence and K:dlock:queue where K has a hash tag already).

WAITING
    dlock_acquire() tries at once, then again after 50 to 250 ms at random, or after retry_delay_ms
    plus up to retry_jitter_ms, and never sleeps past the moment the holder's lease must have
    ended. retry_count bounds the attempts, wait_ms the time; with both, whichever ends first; with
    neither there is one attempt. dlock_cancel() ends the waiting at once.

THREADS
    A factory may be shared by any threads. It has no thread of its own: of the threads that wait,
    one reads for all. A dlock_lock has one user at a time; dlock_cancel() alone may be called
    beside a call on the same handle, from any thread or signal handler. A factory belongs to the
    process that opened it: after fork() every call in the child is false + ARGUMENT, no lock is
    held there, and the child's dlock_close() closes and frees, and sends nothing.
    What blocks beyond the bounds given: the lookup of a host name, when a connection is made.

MEMORY
    dlock_open() takes what a factory needs in one piece. Acquire, extend and release allocate
    nothing once connected; making a connection lets hiredis allocate its reader (through malloc)
    and the system look up names. Whatever a server sends, what is kept of it is bounded. Passwords
    and owners are wiped when they are done with.

MACROS                       (define before the include)
    DLOCK_IMPLEMENTATION     this file also gets the code
    DLOCK_STATIC             everything static: private to this file; needs DLOCK_IMPLEMENTATION
    DLOCK_DEF                what stands before each function (default: extern, or static)
    DLOCK_MALLOC(n), DLOCK_FREE(p)   where memory comes from (default: malloc, free); both or none
    DLOCK_ASSERT(x)          checks of our own invariants (default: none)
    DLOCK_NO_THREADS         no mutex: a factory is used by one thread; no -lpthread
    DLOCK_KEY_MAX            longest key in bytes (default: 256); the same in every file
    DLOCK_DEBT_MAX           debts a factory can carry (default: 64); a full table sends nothing
                             new until some are paid

LIMITS OF THIS VERSION
    One server. No TLS. Waiting is trying again: who waits longest is not served first. It honours
    the queue and hand-off of later versions, whose programs may share its keys.

REVISIONS
    0.1.0  the first: one server, retry, fence, undo
*/

#ifndef DLOCK_H
#define DLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ public: linkage and limits */

#define DLOCK_VERSION_MAJOR 0
#define DLOCK_VERSION_MINOR 1
#define DLOCK_VERSION_PATCH 0
#define DLOCK_VERSION \
    (DLOCK_VERSION_MAJOR * 10000 + DLOCK_VERSION_MINOR * 100 + DLOCK_VERSION_PATCH)

#if defined(DLOCK_STATIC) && !defined(DLOCK_IMPLEMENTATION)
#error "dlock.h: DLOCK_STATIC needs DLOCK_IMPLEMENTATION in the same file"
#endif

#ifndef DLOCK_DEF
#ifdef DLOCK_STATIC
#define DLOCK_DEF static __attribute__((unused))
#else
#define DLOCK_DEF extern
#endif
#endif

#ifndef DLOCK_KEY_MAX
#define DLOCK_KEY_MAX 256
#endif

/* Everything that a zero in dlock_config or dlock_options stands for. */
#define DLOCK_DEFAULT_CONNECT_TIMEOUT_MS 1000
#define DLOCK_DEFAULT_COMMAND_TIMEOUT_MS 1000
#define DLOCK_DEFAULT_EXPIRY_MS 30000
#define DLOCK_DEFAULT_RETRY_MIN_MS 50
#define DLOCK_DEFAULT_RETRY_MAX_MS 250

/* No bound: for retry_count and wait_ms. */
#define DLOCK_FOREVER (-1)

/* The longest lease: 30 days. */
#define DLOCK_EXPIRY_MAX_MS INT64_C(2592000000)

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------ public: errors */

/* How a call ended. OK: it was so. BUSY, LOST: no. TIMEOUT, CANCELLED: not in time. UNREACHABLE,
 * REFUSED, PROTOCOL: cannot know. MEMORY, ARGUMENT: this side. Only appended to. */
#define DLOCK_CODES(X) \
    X(OK, 0, "It was so.") \
    X(BUSY, 1, "Somebody else holds the lock.") \
    X(TIMEOUT, 2, "The lock did not become ours in time.") \
    X(CANCELLED, 3, "The call was cancelled.") \
    X(LOST, 4, "The lock is not ours any more.") \
    X(UNREACHABLE, 5, "No server could tell.") \
    X(REFUSED, 6, "The server refuses, and trying again would not help.") \
    X(PROTOCOL, 7, "The server sent something that is no answer to what was asked.") \
    X(MEMORY, 8, "No memory was left.") \
    X(ARGUMENT, 9, "The caller broke a documented rule.")

#define DLOCK_CODE(name, number, text) DLOCK_##name = number,
enum dlock_code { DLOCK_CODES(DLOCK_CODE) };
#undef DLOCK_CODE

/* What went wrong. `text` is one sentence in printable ASCII; it names the server, and never a
 * password, an owner, or words that a server sent. */
typedef struct dlock_error {
    int code;       /* enum dlock_code                                          */
    int node;       /* which server, counted from 0; -1 = none in particular    */
    int os_errno;   /* what the system said; 0 = nothing                        */
    char text[256];
} dlock_error;

/* What a code means, in words. Any number is legal. Any thread, any time. */
DLOCK_DEF const char *dlock_code_text(int code);

/* DLOCK_VERSION of the compiled implementation; differs from the macro when a build is stale. */
DLOCK_DEF int dlock_version(void);

/* ---------------------------------------------------------------- public: config and options */

/* Per factory. All zero = every default. Strings and functions are copied by dlock_open. */
typedef struct dlock_config {
    int32_t connect_timeout_ms;   /* for one connection, all its addresses; 0 = 1000           */
    int32_t command_timeout_ms;   /* for one answer, and never past the expiry; 0 = 1000       */
    const char *username;         /* instead of the URL's; NULL = the URL's                    */
    const char *password;         /* instead of the URL's; NULL = the URL's                    */
    const char *client_name;      /* CLIENT SETNAME; no blanks or control bytes; NULL = none   */
    void *(*alloc)(size_t, void *user);     /* instead of DLOCK_MALLOC; NULL = that            */
    void (*free)(void *, void *user);       /* given with alloc, or not at all                 */
    void *user;                   /* handed to alloc and free                                  */
} dlock_config;

/* Per acquire. All zero = every default: one attempt, thirty seconds. */
typedef struct dlock_options {
    int64_t expiry_ms;         /* the lease; above 1 % of itself + 2 ms, up to 30 days; 0 = 30000 */
    int32_t retry_count;       /* attempts after the first; 0 = none, DLOCK_FOREVER            */
    int32_t retry_delay_ms;    /* longest pause between attempts; 0 = 50 to 250, at random     */
    int32_t retry_jitter_ms;   /* random addition to each pause; 0 = none                      */
    int64_t wait_ms;           /* keep trying for so long; 0 = only retry_count bounds it,
                                  DLOCK_FOREVER                                                */
    size_t key_length;         /* a key may hold any bytes; 0 = strlen(key)                    */
    bool no_fence;             /* skip the fencing counter: dlock_fence is 0; one attempt may
                                  be a plain SET NX PX, to which any key of that name is BUSY  */
    bool fail_open;            /* UNREACHABLE counts as acquired, marked degraded              */
} dlock_options;

/* ----------------------------------------------------------------------------- public: handles */

/* Connections and debts of one deployment; made by dlock_open. */
typedef struct dlock_factory dlock_factory;

/* One lock, placed by the caller; all zero is unused (DLOCK_INIT). It may be reused or freed as
 * soon as dlock_acquire has answered false, after dlock_release whatever that answered, and after
 * dlock_forget; never while held, and it does not move meanwhile. The members are private. */
typedef struct dlock_lock dlock_lock;
struct dlock_lock {
    int _state;                /* unused, ours, given back, owed                         */
    int _verb;                 /* the call under way; 0 = none                           */
    int _claim;                /* atomic: is a call under way, may it be cancelled?      */
    int _wake_fd;              /* atomic: what dlock_cancel writes to                    */
    dlock_factory *_factory;
    const struct dlocki_kernel *_kernel;
    void *_world;
    long _pid;                 /* who acquired it; a child after fork() did not          */
    dlock_lock *_self;         /* so that a copy is noticed                              */
    dlock_lock *_next;         /* in the factory's list of pending or of held handles    */
    dlock_lock *_previous;
    void *_sleeper;            /* the thread that waits for another to drive; NULL: none */
    int64_t _deadline;         /* the end of the call                                    */
    int64_t _wake_at;          /* the end of a pause                                     */
    int64_t _asked_at;         /* before the first send that may have been obeyed        */
    int64_t _sent_at;          /* before the last send                                   */
    int64_t _valid_until;
    int64_t _lapses_at;        /* the server has let go of it by then                    */
    int64_t _expiry_ms;        /* as acquired                                            */
    int64_t _ask_expiry_ms;    /* of the command under way                               */
    int64_t _wait_ms;
    uint64_t _fence;
    int32_t _retry_count;
    int32_t _retry_delay_ms;
    int32_t _retry_jitter_ms;
    int32_t _attempts;         /* that ended without the lock                            */
    int32_t _again;            /* asked again within this attempt                        */
    bool _no_fence;
    bool _fail_open;
    bool _degraded;
    bool _answer;
    bool _unsent;              /* a command waits for its connection                     */
    bool _asked;               /* a command is under way                                 */
    bool _unknown;             /* an earlier one of this owner may have been obeyed      */
    bool _burnt;               /* the owner was undone: draw a new one                   */
    bool _whole;               /* send the script itself instead of its SHA-1            */
    char _owner[37];
    unsigned short _key_length;
    char _key[DLOCK_KEY_MAX];
    dlock_error _why;
};

/* clang-format off */
#ifdef __cplusplus
#define DLOCK_INIT {}
#else
#define DLOCK_INIT {0}
#endif
/* clang-format on */

/* ----------------------------------------------------------------------------- public: factory */

/* Which deployment? No network I/O, no name lookup: the first verb connects.
 *   redis://[user[:password]@]host[:port][/database]     (valkey:// is the same)
 *   unix://[user[:password]@]/path/to.sock[?db=n]
 * User, password, host and path may be percent-coded; IPv6 addresses stand in brackets. The
 * defaults are port 6379 and database 0; an empty user is the server's default user.
 * `config` may be NULL, `error` may be NULL. NULL: ARGUMENT, MEMORY, or UNREACHABLE where the
 * system has no descriptor or no randomness left. Any thread. */
static inline dlock_factory *dlock_open(const char *url, const dlock_config *config,
                                        dlock_error *error);

/* The end: ends calls of other threads with CANCELLED and waits until they have left, gives back
 * what is still held, best effort, within command_timeout_ms, and marks every held handle unused.
 * NULL is nothing. Not beside new calls. */
DLOCK_DEF void dlock_close(dlock_factory *factory);

/* ---------------------------------------------------------------------- public: blocking verbs */
/* Each answers one question; false leaves the reason in dlock_why(). A pointer may be NULL where
 * that is said; anything else is false + ARGUMENT. Any thread, one call at a time per handle. */

/* Is the lock ours now? `key` is copied; it holds `options->key_length` bytes or ends with NUL;
 * 1 to DLOCK_KEY_MAX of them. `options` may be NULL; it is not kept.
 * BUSY TIMEOUT CANCELLED UNREACHABLE REFUSED PROTOCOL MEMORY ARGUMENT. */
DLOCK_DEF bool dlock_acquire(dlock_factory *factory, dlock_lock *lock, const char *key,
                             const dlock_options *options);

/* Is it still ours, now for at least `expiry_ms` (0 = as it was acquired) from this call on?
 * Never shortens, never re-creates. After UNREACHABLE the old validity stands.
 * LOST UNREACHABLE REFUSED PROTOCOL CANCELLED MEMORY ARGUMENT. */
DLOCK_DEF bool dlock_extend(dlock_lock *lock, int64_t expiry_ms);

/* Was it still ours, and did this call give it back? The handle is free afterwards, whatever the
 * answer. LOST: it had gone before (a second release says so, without I/O). UNREACHABLE: nobody
 * knows; it lapses at the latest in the time that the text names, later calls and dlock_close try
 * to undo it, and until dlock_close the same call may be made again.
 * LOST UNREACHABLE REFUSED PROTOCOL CANCELLED MEMORY ARGUMENT. */
DLOCK_DEF bool dlock_release(dlock_lock *lock);

/* Stop caring: nothing is sent, the lease runs out by itself. NULL and unused are nothing. */
DLOCK_DEF void dlock_forget(dlock_lock *lock);

/* End a pending dlock_acquire on this handle, with CANCELLED. One atomic store and one write to a
 * descriptor; errno is kept. Any thread, any signal handler, as long as handle and factory live.
 * With nothing pending it does nothing and is not remembered. */
DLOCK_DEF void dlock_cancel(dlock_lock *lock);

/* --------------------------------------------------------------- public: questions without I/O */
/* NULL and unused handles have answers too: false, 0, "", OK. */

/* Is it ours, as far as this process can prove? False from the moment validity ends. */
DLOCK_DEF bool dlock_is_acquired(const dlock_lock *lock);

/* Was it counted as acquired although no server could be asked (fail_open)? */
DLOCK_DEF bool dlock_is_degraded(const dlock_lock *lock);

/* For how many more milliseconds is it ours? 0 = it is not. */
DLOCK_DEF int64_t dlock_remaining_ms(const dlock_lock *lock);

/* The fencing token; 0 with no_fence, when degraded, and when it is not held. */
DLOCK_DEF uint64_t dlock_fence(const dlock_lock *lock);

/* What the key holds on the server while the lock is ours; lives as long as that. */
DLOCK_DEF const char *dlock_owner(const dlock_lock *lock);

/* Why the last call on this handle was false; OK after a true one. Never NULL; lives until the
 * next call on the handle. */
DLOCK_DEF const dlock_error *dlock_why(const dlock_lock *lock);

/* ------------------------------------------------------------------------ public: linking check */

/* Private: dlock_open hands over what this file was compiled with. */
DLOCK_DEF dlock_factory *dlocki_open(const char *url, const dlock_config *config,
                                     dlock_error *error, size_t lock_size, int version);
DLOCK_DEF void dlocki_scope_end(dlock_lock *lock);

static inline dlock_factory *dlock_open(const char *url, const dlock_config *config,
                                        dlock_error *error)
{
    return dlocki_open(url, config, error, sizeof(dlock_lock), DLOCK_VERSION);
}

/* ------------------------------------------------------------------------- public: scope macro */

/* A handle that is released on every way out of its block:  DLOCK_SCOPED(lock); */
#define DLOCK_SCOPED(name) __attribute__((cleanup(dlocki_scope_end))) dlock_lock name = DLOCK_INIT

#ifdef __cplusplus
}

/* --------------------------------------------------------------------------- public: C++ guard */

#include <system_error>

namespace dlock {

struct defer_t {};
static const defer_t defer = defer_t();

/* Acquires in its constructor, releases in its destructor, which never throws. Neither copied nor
 * moved. With `defer` it does not acquire yet, and is what std::unique_lock takes. The factory and
 * the key's bytes must live as long as the guard. */
class guard {
public:
    guard(dlock_factory *factory, const char *key, const dlock_options &options = dlock_options())
        : lock_(), factory_(factory), key_(key), options_(options)
    {
        try_lock();
    }
    guard(dlock_factory *factory, const char *key, const dlock_options &options, defer_t)
        : lock_(), factory_(factory), key_(key), options_(options)
    {
    }
    ~guard() { dlocki_scope_end(&lock_); }
    guard(const guard &) = delete;
    guard &operator=(const guard &) = delete;

    explicit operator bool() const { return dlock_is_acquired(&lock_); }

    /* dlock_acquire with the options given. */
    bool try_lock() { return dlock_acquire(factory_, &lock_, key_, &options_); }

    /* The same, waiting for ever; std::system_error, with the code, when it cannot. */
    void lock()
    {
        dlock_options options = options_;
        options.wait_ms = DLOCK_FOREVER;
        options.retry_count = 0;
        if (!dlock_acquire(factory_, &lock_, key_, &options)) {
            throw std::system_error(std::error_code(dlock_why(&lock_)->code, category()),
                                    dlock_why(&lock_)->text);
        }
    }

    bool unlock() { return dlock_release(&lock_); }
    dlock_lock *get() { return &lock_; }

private:
    class codes : public std::error_category {
    public:
        const char *name() const noexcept override { return "dlock"; }
        std::string message(int code) const override { return dlock_code_text(code); }
    };
    static const std::error_category &category()
    {
        static const codes instance;
        return instance;
    }

    dlock_lock lock_;
    dlock_factory *factory_;
    const char *key_;
    dlock_options options_;
};

}  // namespace dlock
#endif /* __cplusplus */

#endif /* DLOCK_H */

/* =============================================================================== IMPLEMENTATION */

#if defined(DLOCK_IMPLEMENTATION) && !defined(DLOCKI_IMPLEMENTED)
#define DLOCKI_IMPLEMENTED

/* ------------------------------------------------------------------------ room 1: configuration */

#ifndef __linux__
#error "dlock.h: only Linux has been tried so far"
#endif
#if !defined(_POSIX_C_SOURCE) || _POSIX_C_SOURCE < 200809L
#error "dlock.h: compile the file with DLOCK_IMPLEMENTATION with -D_POSIX_C_SOURCE=200809L"
#endif
#if defined(DLOCK_MALLOC) != defined(DLOCK_FREE)
#error "dlock.h: define both DLOCK_MALLOC and DLOCK_FREE, or neither"
#endif
#if DLOCK_KEY_MAX < 1 || DLOCK_KEY_MAX > 1024
#error "dlock.h: DLOCK_KEY_MAX must be 1 to 1024"
#endif

#include <errno.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#ifndef DLOCK_NO_THREADS
#include <pthread.h>
#endif

#ifndef DLOCK_MALLOC
#define DLOCK_MALLOC(size) malloc(size)
#define DLOCK_FREE(pointer) free(pointer)
#endif
#ifndef DLOCK_ASSERT
#define DLOCK_ASSERT(condition) ((void)0)
#endif
#ifndef DLOCK_DEBT_MAX
#define DLOCK_DEBT_MAX 64
#endif
#if DLOCK_DEBT_MAX < 2
#error "dlock.h: DLOCK_DEBT_MAX must be 2 or more"
#endif

#define DLOCKI_FLIGHT_MAX 64       /* commands under way on one connection                   */
#define DLOCKI_OUT_MAX 32768       /* bytes not yet sent; a handshake and a script fit twice */
#define DLOCKI_IN_MAX 16384        /* bytes read at once                                     */
#define DLOCKI_REPLY_MAX 65536     /* the longest reply that is waited for                   */
#define DLOCKI_SECRET_MAX 4096     /* user name and password, each; tokens are long          */
#define DLOCKI_HOST_MAX 255
#define DLOCKI_NAME_MAX 64         /* config.client_name                                     */
#define DLOCKI_ADDRESS_MAX 8       /* addresses tried for one host name                      */
#define DLOCKI_OWNER_LENGTH 36     /* dl1- and 32 hex digits                                 */
#define DLOCKI_QUIET_MS 10         /* a connection quiet for longer is read before writing   */
#define DLOCKI_PAUSE_MAX_MS 2000   /* between attempts while nothing can be connected        */
#define DLOCKI_DEBT_PAUSE_MS 100   /* before a debt is tried again that was told "later"     */
#define DLOCKI_AGAIN_MAX 8         /* rounds of clearing dead waiters within one attempt     */
#define DLOCKI_NUMBER_MAX INT64_C(9007199254740992)   /* 2^53: Lua counts exactly below      */
#define DLOCKI_FENCE_MIN INT64_C(4294967296)   /* 2^32: as a bare number           */
#define DLOCKI_NEVER INT64_MAX

/* ----------------------------------------------------------------------------- room 2: platform */
/* The clock, randomness, atomics, the mutex, and the table through which everything above reaches
 * the kernel, so that a test can put a world of its own there. */

typedef struct dlocki_address {
    struct sockaddr_storage at;
    socklen_t length;
} dlocki_address;

/* A world. Sockets never block; where a call fails it answers -errno. `world` is its owner's. */
typedef struct dlocki_kernel {
    int64_t (*now)(void *world);   /* milliseconds, rounded down; counts suspend */
    bool (*random)(void *world, unsigned char *bytes, size_t count);
    long (*pid)(void *world);
    int (*wake_fd)(void *world);
    int (*resolve)(void *world, const char *host, int port, dlocki_address *found, int room);
    int (*connect)(void *world, const dlocki_address *address);
    int (*connected)(void *world, int fd);
    long (*send)(void *world, int fd, const void *bytes, size_t count);
    long (*receive)(void *world, int fd, void *bytes, size_t count);
    void (*close)(void *world, int fd);
    int (*wait)(void *world, struct pollfd *fds, int count, int timeout_ms);
} dlocki_kernel;

#ifdef DLOCK_NO_THREADS
typedef int dlocki_mutex;
typedef int dlocki_condition;
#define dlocki_mutex_open(mutex) ((void)(mutex))
#define dlocki_mutex_close(mutex) ((void)(mutex))
#define dlocki_mutex_lock(mutex) ((void)(mutex))
#define dlocki_mutex_unlock(mutex) ((void)(mutex))
#define dlocki_condition_open(condition) (*(condition) = 0)
#define dlocki_condition_close(condition) ((void)(condition))
#define dlocki_condition_wait(condition, mutex) ((void)(condition), (void)(mutex))
#define dlocki_condition_signal(condition) ((void)(condition))
#else
typedef pthread_mutex_t dlocki_mutex;
typedef pthread_cond_t dlocki_condition;
#define dlocki_mutex_open(mutex) (void)pthread_mutex_init(mutex, NULL)
#define dlocki_mutex_close(mutex) (void)pthread_mutex_destroy(mutex)
#define dlocki_mutex_lock(mutex) (void)pthread_mutex_lock(mutex)
#define dlocki_mutex_unlock(mutex) (void)pthread_mutex_unlock(mutex)
#define dlocki_condition_open(condition) (void)pthread_cond_init(condition, NULL)
#define dlocki_condition_close(condition) (void)pthread_cond_destroy(condition)
#define dlocki_condition_wait(condition, mutex) (void)pthread_cond_wait(condition, mutex)
#define dlocki_condition_signal(condition) (void)pthread_cond_signal(condition)
#endif

static int dlocki_load(const int *from)
{
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

static void dlocki_store(int *to, int value)
{
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}

/* Replaces `from` by `to`; false if it was something else. */
static bool dlocki_swap(int *value, int from, int to)
{
    return __atomic_compare_exchange_n(value, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Values of dlock_lock._claim. */
enum dlocki_claim {
    DLOCKI_FREE,          /* no call is under way       */
    DLOCKI_CLAIMED,       /* one that cannot be cancelled */
    DLOCKI_CANCELLABLE,
    DLOCKI_CANCELLED
};

/* Clears memory in a way that the compiler may not leave out. */
static void dlocki_wipe(void *memory, size_t size)
{
    memset(memory, 0, size);
    __asm__ __volatile__("" : : "r"(memory) : "memory");
}

/* Instants saturate, so that "never" stays never. Both are at or above zero, or `b` is a span. */
static int64_t dlocki_plus(int64_t a, int64_t b)
{
    if (b > 0 && a > INT64_MAX - b) {
        return INT64_MAX;
    }
    if (b < 0 && a < INT64_MIN - b) {
        return INT64_MIN;
    }
    return a + b;
}

static int64_t dlocki_least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t dlocki_most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* CLOCK_BOOTTIME goes on while the machine is suspended, as the server's clock does. */
static int64_t dlocki_now(void *world)
{
    struct timespec at;
    (void)world;
    if (clock_gettime(CLOCK_BOOTTIME, &at) != 0 && clock_gettime(CLOCK_MONOTONIC, &at) != 0) {
        return DLOCKI_NEVER;   /* no clock: nothing is valid any more */
    }
    return (int64_t)at.tv_sec * 1000 + (int64_t)at.tv_nsec / 1000000;
}

/* A sandbox may forbid getrandom and still have the device. */
static bool dlocki_random_device(unsigned char *bytes, size_t count)
{
    int fd;
    do {
        fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return false;
    }
    while (count > 0) {
        ssize_t got = read(fd, bytes, count);
        if (got > 0) {
            bytes += got;
            count -= (size_t)got;
        } else if (got == 0 || errno != EINTR) {
            break;
        }
    }
    (void)close(fd);
    return count == 0;
}

/* Randomness that nobody can guess, or false; never anything weaker. */
static bool dlocki_random(void *world, unsigned char *bytes, size_t count)
{
    (void)world;
    while (count > 0) {
        ssize_t got = getrandom(bytes, count, 0);
        if (got > 0) {
            bytes += got;
            count -= (size_t)got;
        } else if (got == 0 || errno != EINTR) {
            return dlocki_random_device(bytes, count);
        }
    }
    return true;
}

static long dlocki_pid(void *world)
{
    (void)world;
    return (long)getpid();
}

static int dlocki_wake_fd(void *world)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    (void)world;
    return fd >= 0 ? fd : -errno;
}

/* Makes the thread that waits look around. Legal in a signal handler. A full counter fails, and
 * is awake already. */
static void dlocki_wake(int fd)
{
    const uint64_t one = 1;
    int kept = errno;
    ssize_t written = write(fd, &one, sizeof one);
    (void)written;
    errno = kept;
}

static void dlocki_drain(int fd)
{
    uint64_t count;
    ssize_t got = read(fd, &count, sizeof count);
    (void)got;
}

static int dlocki_wait_fds(void *world, struct pollfd *fds, int count, int timeout_ms)
{
    int ready = poll(fds, (nfds_t)count, timeout_ms);
    (void)world;
    return ready >= 0 ? ready : -errno;
}

/* --------------------------------------------------------------------------------- room 3: text */
/* Error texts, URLs, key rules: pure. */

#define DLOCKI_TEXT(name, number, text) \
    case number: \
        return text;
DLOCK_DEF const char *dlock_code_text(int code)
{
    switch (code) {
        DLOCK_CODES(DLOCKI_TEXT)
    default:
        return "no code of this version";
    }
}
#undef DLOCKI_TEXT

DLOCK_DEF int dlock_version(void)
{
    return DLOCK_VERSION;
}

static bool dlocki_say(dlock_error *error, int code, int os_errno, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Fills in an error; answers false, so that a caller can return it. Host names and paths come from
 * outside: what is not printable becomes '?'. */
static bool dlocki_say(dlock_error *error, int code, int os_errno, const char *format, ...)
{
    va_list arguments;
    char *c;
    if (error == NULL) {
        return false;
    }
    error->code = code;
    error->node = -1;
    error->os_errno = os_errno;
    va_start(arguments, format);
    if (vsnprintf(error->text, sizeof error->text, format, arguments) < 0) {
        error->text[0] = 0;
    }
    va_end(arguments);
    for (c = error->text; *c != 0; c++) {
        if (*c < ' ' || *c > '~') {
            *c = '?';
        }
    }
    return false;
}

static void dlocki_say_ok(dlock_error *error)
{
    error->code = DLOCK_OK;
    error->node = -1;
    error->os_errno = 0;
    error->text[0] = 0;
}

/* Adds to a text that dlocki_say began; what does not fit is cut. */
static void dlocki_append(dlock_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void dlocki_append(dlock_error *error, const char *format, ...)
{
    size_t used = strlen(error->text);
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(error->text + used, sizeof error->text - used, format, arguments) < 0) {
        error->text[used] = 0;
    }
    va_end(arguments);
}

typedef struct dlocki_url {
    bool is_unix;
    bool has_password;
    int port;
    int database;
    size_t username_length;
    size_t password_length;
    char host[DLOCKI_HOST_MAX + 1];   /* or the path of the socket */
    char username[DLOCKI_SECRET_MAX];
    char password[DLOCKI_SECRET_MAX];
} dlocki_url;

/* A part of a text: from `from` up to, not including, `to`. */
typedef struct dlocki_part {
    const char *from;
    const char *to;
} dlocki_part;

static size_t dlocki_length(dlocki_part part)
{
    return (size_t)(part.to - part.from);
}

/* The first (or last) `wanted` in the part; its end if there is none. */
static const char *dlocki_find(dlocki_part part, char wanted, bool last)
{
    const char *found = part.to;
    const char *c;
    for (c = part.from; c < part.to && (last || found == part.to); c++) {
        if (*c == wanted) {
            found = c;
        }
    }
    return found;
}

static int dlocki_hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Percent-decodes a part. False: a malformed code, or it does not fit. */
static bool dlocki_decode(dlocki_part part, char *to, size_t room, size_t *length)
{
    const char *c = part.from;
    size_t count = 0;
    while (c < part.to) {
        char byte = *c++;
        if (byte == '%') {
            int high = c < part.to ? dlocki_hex_value(c[0]) : -1;
            int low = c + 1 < part.to ? dlocki_hex_value(c[1]) : -1;
            if (high < 0 || low < 0) {
                return false;
            }
            byte = (char)(unsigned char)(high * 16 + low);
            c += 2;
        }
        if (count == room) {
            return false;
        }
        to[count++] = byte;
    }
    *length = count;
    return true;
}

/* The same for a C string: no NUL inside. */
static bool dlocki_decode_text(dlocki_part part, char *to, size_t size)
{
    size_t length;
    if (!dlocki_decode(part, to, size - 1, &length) || memchr(to, 0, length) != NULL) {
        return false;
    }
    to[length] = 0;
    return true;
}

/* A decimal number, digits only, up to `most`. */
static bool dlocki_number(dlocki_part part, int64_t most, int *value)
{
    int64_t sum = 0;
    const char *c;
    for (c = part.from; c < part.to; c++) {
        if (*c < '0' || *c > '9') {
            return false;
        }
        sum = sum * 10 + (*c - '0');
        if (sum > most) {
            return false;
        }
    }
    *value = (int)sum;
    return part.from < part.to;
}

static bool dlocki_url_user(dlocki_url *url, dlocki_part part, dlock_error *error)
{
    dlocki_part name = part;
    dlocki_part secret;
    name.to = dlocki_find(part, ':', false);
    secret.from = name.to < part.to ? name.to + 1 : part.to;
    secret.to = part.to;
    if (!dlocki_decode(name, url->username, sizeof url->username, &url->username_length) ||
        !dlocki_decode(secret, url->password, sizeof url->password, &url->password_length)) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0,
                          "The URL's user or password is malformed or longer than %d bytes.",
                          DLOCKI_SECRET_MAX);
    }
    /* "redis://:@host" names nobody; "redis://user:@host" is a user with an empty password. */
    url->has_password = name.to < part.to && (url->password_length > 0 || url->username_length > 0);
    return true;
}

static bool dlocki_url_host(dlocki_url *url, dlocki_part part, dlock_error *error)
{
    dlocki_part host = part;
    dlocki_part port = part;
    if (part.from < part.to && *part.from == '[') {
        host.from = part.from + 1;
        host.to = dlocki_find(part, ']', false);
        if (host.to == part.to || dlocki_find(host, ':', false) == host.to ||
            dlocki_find(host, '[', false) != host.to) {
            return dlocki_say(error, DLOCK_ARGUMENT, 0,
                              "The URL's brackets do not hold an IPv6 address.");
        }
        port.from = host.to + 1;
    } else {
        host.to = dlocki_find(part, ':', false);
        port.from = host.to;
        if (dlocki_find(part, '[', false) != part.to || dlocki_find(part, ']', false) != part.to) {
            return dlocki_say(error, DLOCK_ARGUMENT, 0,
                              "The URL's host has a '[' or ']' that is not around all of it.");
        }
    }
    if (host.from == host.to) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0, "The URL names no host.");
    }
    if (!dlocki_decode_text(host, url->host, sizeof url->host)) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0,
                          "The URL's host is malformed or longer than %d bytes.", DLOCKI_HOST_MAX);
    }
    url->port = 6379;
    if (port.from < port.to) {
        bool colon = *port.from == ':';
        port.from++;
        if (!colon || !dlocki_number(port, 65535, &url->port) || url->port == 0) {
            return dlocki_say(error, DLOCK_ARGUMENT, 0, "The URL's port is not 1 to 65535.");
        }
    }
    return true;
}

/* What follows the authority: "/3" for TCP, "/path?db=3" for a socket. */
static bool dlocki_url_path(dlocki_url *url, dlocki_part part, dlock_error *error)
{
    dlocki_part path = part;
    dlocki_part database;
    path.to = dlocki_find(part, '?', false);
    database.from = path.to;
    database.to = part.to;
    if (url->is_unix) {
        struct sockaddr_un address;
        if (path.from == path.to || !dlocki_decode_text(path, url->host, sizeof address.sun_path)) {
            return dlocki_say(error, DLOCK_ARGUMENT, 0,
                              "The URL's socket path is missing, malformed, or longer than %d "
                              "bytes.",
                              (int)sizeof address.sun_path - 1);
        }
        if (database.from == database.to) {
            return true;
        }
        if (dlocki_length(database) < 4 || memcmp(database.from, "?db=", 4) != 0) {
            return dlocki_say(error, DLOCK_ARGUMENT, 0,
                              "The only thing after '?' that is known is db=NUMBER.");
        }
        database.from += 4;
    } else {
        if (path.to < part.to) {
            return dlocki_say(error, DLOCK_ARGUMENT, 0,
                              "A redis:// URL has nothing after '?'; the database is its path.");
        }
        if (dlocki_length(path) <= 1) {
            return true;
        }
        database.from = path.from + 1;
        database.to = path.to;
    }
    if (!dlocki_number(database, INT32_MAX, &url->database)) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0, "The URL's database is not a number.");
    }
    return true;
}

/* Fills in a zeroed `url`. The texts repeat nothing of the URL: any part may be a misplaced
 * password. */
static bool dlocki_url_parse(const char *text, dlocki_url *url, dlock_error *error)
{
    static const char *const schemes[] = {"redis://", "valkey://", "unix://"};
    size_t i = 0;
    const char *c;
    dlocki_part rest;
    dlocki_part authority;
    if (text == NULL) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0, "The URL is NULL.");
    }
    for (c = text; *c != 0; c++) {
        if (*c <= ' ' || *c > '~') {
            return dlocki_say(error, DLOCK_ARGUMENT, 0,
                              "The URL has a blank or a byte that must be percent-coded; this "
                              "version knows one server.");
        }
    }
    if (strncmp(text, "rediss://", 9) == 0 || strncmp(text, "valkeys://", 10) == 0) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0, "This version has no TLS.");
    }
    while (i < 3 && strncmp(text, schemes[i], strlen(schemes[i])) != 0) {
        i++;
    }
    if (i == 3) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0,
                          "The URL does not begin with redis://, valkey:// or unix://.");
    }
    url->is_unix = i == 2;
    rest.from = text + strlen(schemes[i]);
    rest.to = c;
    if (dlocki_find(rest, '#', false) != rest.to) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0,
                          "The URL has a '#', which means nothing here; write it as %%23.");
    }
    authority = rest;
    authority.to = dlocki_find(rest, '/', false);
    if (dlocki_find(rest, '?', false) < authority.to) {
        authority.to = dlocki_find(rest, '?', false);
    }
    rest.from = authority.to;
    if (dlocki_find(authority, '@', true) != authority.to) {
        dlocki_part user = authority;
        user.to = dlocki_find(authority, '@', true);
        authority.from = user.to + 1;
        if (!dlocki_url_user(url, user, error)) {
            return false;
        }
    }
    if (url->is_unix && authority.from < authority.to) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0,
                          "A unix:// URL has no host: write unix:///path.");
    }
    return (url->is_unix || dlocki_url_host(url, authority, error)) &&
           dlocki_url_path(url, rest, error);
}

/* A key has a hash tag if something stands between its first '{' and the next '}' (Redis Cluster
 * specification, "Hash tags"). */
static bool dlocki_key_has_tag(const char *key, size_t length)
{
    dlocki_part part;
    const char *open;
    part.from = key;
    part.to = key + length;
    open = dlocki_find(part, '{', false);
    if (open == part.to) {
        return false;
    }
    part.from = open + 1;
    open = dlocki_find(part, '}', false);
    return open != part.to && open != part.from;
}

/* drift: what two clocks may differ by over a lease. */
static int64_t dlocki_drift_ms(int64_t expiry_ms)
{
    return expiry_ms / 100 + 2;
}

static bool dlocki_expiry_is_legal(int64_t expiry_ms)
{
    return expiry_ms > 0 && expiry_ms <= DLOCK_EXPIRY_MAX_MS &&
           expiry_ms > dlocki_drift_ms(expiry_ms);
}

/* ------------------------------------------------------------------------------ room 4: scripts */
/* The Lua that runs on the server, in as few calls as its contract allows. K is the lock's key, Q
 * its queue, F its fence. A script that dies half-way must not leave the lock held: K is set last,
 * and what may fail while it is held is `try` (redis.pcall). No shebang line: a server that is out
 * of memory refuses such scripts whole. Instants are the server's TIME in microseconds; numbers
 * stay below 2^53, up to where Lua counts exactly. What only a queue needs is defined where a
 * queue was found.
 *
 * This version never lines up itself, and still serves the queue: a ticket in Q is a place in the
 * line of a later version's program, "owner expiry kind", with kind g (wants the lock), n (the
 * same without a fence) or h (wants a hint only).
 *
 *   raise   max(stored, now) + 1: above every earlier fence, and above the server's clock, so that
 *           it grows even when the stored one was lost. One ZADD does it, unless the stored one is
 *           ahead of the clock. Else nil and what to answer.
 *   give    K, its expiry and its owner are set, then the new owner's inbox is told.
 *   serve   pops tickets until one is given the lock. "self": next in line is the asker. "mute":
 *           this server does not let us notify, so the queue is advice only. "more": 128 dead
 *           tickets. A waiter is alive if its inbox is subscribed on this server (PUBSUB NUMSUB);
 *           PUBLISH's count proves nothing. */
/* clang-format off */
#define DLOCKI_LUA_HEAD \
    "local K, Q, F = KEYS[1], KEYS[2], KEYS[3]\n" \
    "local call, try = redis.call, redis.pcall\n"

#define DLOCKI_LUA_FENCE \
    "local t = try('TIME')\n" \
    "local now = t[1] and t[1] * 1000000 + t[2]\n" \
    "local function raise(expiry)\n" \
    " if not now then return nil, t end\n" \
    " local v = now + 1\n" \
    " local changed = try('ZADD', F, 'GT', 'CH', v, 'f')\n" \
    " if changed == 0 then\n" \
    "  v = try('ZINCRBY', F, 1, 'f')\n" \
    "  if type(v) == 'table' then return nil, v end\n" \
    "  v = tonumber(v)\n" \
    "  if v >= 9007199254740992 then return nil, {3} end\n" \
    " elseif changed ~= 1 then\n" \
    "  return nil, changed\n" \
    " end\n" \
    " try('PEXPIRE', F, #expiry < 7 and '86400000' or math.max(86400000, 10 * expiry))\n" \
    " return v\n" \
    "end\n"

#define DLOCKI_LUA_SERVE \
    "local function back(score, ticket)\n" \
    " try('ZADD', Q, score, ticket)\n" \
    " if try('PTTL', Q) == -1 then try('PEXPIRE', Q, 600000) end\n" \
    " return 'mute'\n" \
    "end\n" \
    "local function give(owner, expiry, kind, inbox)\n" \
    " local fence = now and 0\n" \
    " if kind == 'g' then fence = raise(expiry) end\n" \
    " if not fence or try('SET', K, owner, 'PX', expiry).err then return false end\n" \
    " local told = 'g ' .. owner .. string.format(' %.0f %.0f', fence, now)\n" \
    " if type(try('PUBLISH', inbox, told)) == 'number' then return true end\n" \
    " call('DEL', K)\n" \
    " return false\n" \
    "end\n" \
    "local function serve(self)\n" \
    " for i = 1, 128 do\n" \
    "  local popped = try('ZPOPMIN', Q)\n" \
    "  local ticket, score = popped[1], popped[2]\n" \
    "  if not ticket then return 'none' end\n" \
    "  local o, px, kind = string.match(ticket, '^(dl1%-%x+) (%d+) ([gnh])$')\n" \
    "  if o and #o == 36 and tonumber(px) >= 1 and tonumber(px) <= 2592000000 then\n" \
    "   if o == self then return 'self' end\n" \
    "   local inbox = 'dlock:' .. string.sub(o, 5, 20)\n" \
    "   if kind == 'h' then\n" \
    "    try('PUBLISH', inbox, 'h ' .. K)\n" \
    "   else\n" \
    "    local alive = try('PUBSUB', 'NUMSUB', inbox)\n" \
    "    if alive.err then return back(score, ticket) end\n" \
    "    if tonumber(alive[2]) > 0 then\n" \
    "     if not give(o, px, kind, inbox) then return back(score, ticket) end\n" \
    "     return 'given', o\n" \
    "    end\n" \
    "   end\n" \
    "  end\n" \
    " end\n" \
    " return 'more'\n" \
    "end\n"

/* acquire  KEYS K Q F  ARGV owner, expiry, kind, score, fenced; what is left out at the end is
 *          '' (does not line up), 0 (no place yet), 1 (with a fence)
 *   fence    granted, for a whole lease: a bare number, because a table costs the server more
 *            than reading a key does; 2^32 or more, so that no other answer looks like it
 *   {1, fence, lease, now}   granted: without a fence (0), with a small one, or before; who asks
 *            again gets what is left, not a new lease
 *   {0, lease, now, score, place, foreign}   held; lease -1: without end
 *   {2}      ask again: many dead waiters were cleared
 *   {3}      refused: the fence cannot grow
 * An error: the asker was not granted K now. A K of another type is WRONGTYPE. */
#define DLOCKI_LUA_ACQUIRE \
    DLOCKI_LUA_HEAD \
    DLOCKI_LUA_FENCE \
    "if not now then return t end\n" \
    "local owner, expiry, kind, fenced = ARGV[1], ARGV[2], ARGV[3] or '', ARGV[5] ~= '0'\n" \
    "local holder\n" \
    "if call('EXISTS', K, Q) > 0 then\n" \
    " holder = call('GET', K)\n" \
    " if not holder and kind ~= 'h' then\n" \
    DLOCKI_LUA_SERVE \
    "  local served\n" \
    "  served, holder = serve(owner)\n" \
    "  if served == 'more' then return {2} end\n" \
    "  if not holder then try('ZREM', Q, owner .. ' ' .. expiry .. ' ' .. kind) end\n" \
    " end\n" \
    "end\n" \
    "local fence, fault = 0, nil\n" \
    "if not holder then\n" \
    " if fenced then fence, fault = raise(expiry) end\n" \
    " if not fence then return fault end\n" \
    " call('SET', K, owner, 'PX', expiry)\n" \
    " if fence >= 4294967296 then return fence end\n" \
    " return {1, fence, expiry + 0, now}\n" \
    "end\n" \
    "local lease, score, place = call('PTTL', K), 0, 0\n" \
    "if holder == owner then\n" \
    " if fenced then\n" \
    "  fence = tonumber(call('ZSCORE', F, 'f') or nil)\n" \
    "  if not fence then fence, fault = raise(expiry) end\n" \
    " end\n" \
    " return fence and {1, fence, lease, now} or fault\n" \
    "end\n" \
    "if kind ~= '' then\n" \
    " local ticket = owner .. ' ' .. expiry .. ' ' .. kind\n" \
    " score = tonumber(call('ZSCORE', Q, ticket) or nil)\n" \
    " if not score then\n" \
    "  local last = call('ZRANGE', Q, -1, -1, 'WITHSCORES')\n" \
    "  score = tonumber(ARGV[4] or 0)\n" \
    "  if score == 0 then score = math.max(now, tonumber(last[2] or 0) + 1) end\n" \
    "  call('ZADD', Q, 'NX', score, ticket)\n" \
    " end\n" \
    " place = call('ZRANK', Q, ticket) + 1\n" \
    " call('PEXPIRE', Q, math.max(600000, lease + 60000))\n" \
    "end\n" \
    "local foreign = #holder ~= 36 or not string.find(holder, '^dl1%-%x+$')\n" \
    "return {0, lease, now, score, place, foreign and 1 or 0}\n"
#define DLOCKI_LUA_ACQUIRE_SHA1 "5a606e0c8751f7e287875c77e9987e5b19837731"

/* release, undo  KEYS K Q F  ARGV owner, ticket ('' or left out: none)
 *   flags: 1 it was ours, 2 the ticket was removed, 4 handed over, 8 could not notify
 * Once it is known to be ours K is given away or deleted, whatever else fails. It pops first: that
 * is allowed out of memory, and opens the door for the SET that may follow. */
#define DLOCKI_LUA_RELEASE \
    "local flags = 0\n" \
    "if (ARGV[2] or '') ~= '' and redis.pcall('ZREM', KEYS[2], ARGV[2]) == 1 then flags = 2 end\n" \
    "if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return flags end\n" \
    "if redis.pcall('EXISTS', KEYS[2]) == 0 then return flags + redis.call('DEL', KEYS[1]) end\n" \
    DLOCKI_LUA_HEAD \
    DLOCKI_LUA_FENCE \
    DLOCKI_LUA_SERVE \
    "local served\n" \
    "for i = 1, 8 do\n" \
    " served = serve('')\n" \
    " if served ~= 'more' then break end\n" \
    "end\n" \
    "if served == 'given' then return flags + 5 end\n" \
    "call('DEL', K)\n" \
    "if served == 'mute' then return flags + 9 end\n" \
    "return flags + 1\n"
#define DLOCKI_LUA_RELEASE_SHA1 "c43510f6fbdef4ccdea0941ce174d011604c6569"

/* extend  KEYS K  ARGV owner, expiry
 *   1 ours, and now for at least so long; 0 not ours. Never re-creates, never shortens. */
#define DLOCKI_LUA_EXTEND \
    "if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n" \
    "local left, expiry = redis.call('PTTL', KEYS[1]), tonumber(ARGV[2])\n" \
    "if left >= 0 and left < expiry then redis.call('PEXPIRE', KEYS[1], expiry) end\n" \
    "return 1\n"
#define DLOCKI_LUA_EXTEND_SHA1 "058d8365768a185bc7483490518140e0a2f5dcb0"
/* clang-format on */

/* -------------------------------------------------------------------------------- room 5: wire */
/* Commands into bytes, bytes into verdicts: pure, no sockets. RESP as in the Redis serialization
 * protocol specification, version 2. */

typedef struct dlocki_out {
    size_t from;   /* first byte not yet sent */
    size_t to;
    unsigned char bytes[DLOCKI_OUT_MAX];
} dlocki_out;

enum dlocki_command_kind {
    DLOCKI_AUTH,
    DLOCKI_SELECT,
    DLOCKI_SETNAME,
    DLOCKI_PING,
    DLOCKI_SET,      /* acquire: plain SET NX PX */
    DLOCKI_ASK,      /* acquire: the script      */
    DLOCKI_EXTEND,
    DLOCKI_GIVE_BACK
};

/* A command about a lock; what the machine decides and the wire writes. */
typedef struct dlocki_command {
    int kind;
    bool fenced;
    bool whole;   /* EVAL with the script instead of EVALSHA */
    const char *owner;
    int64_t expiry_ms;
    const char *key;
    size_t key_length;
} dlocki_command;

/* The longest command: a script, three keys, an owner, numbers and their frames. */
#define DLOCKI_SCRIPT_MAX 4096
#define DLOCKI_COMMAND_MAX (DLOCKI_SCRIPT_MAX + 3 * (DLOCK_KEY_MAX + 32) + 512)
typedef char dlocki_script_fits[sizeof DLOCKI_LUA_ACQUIRE <= DLOCKI_SCRIPT_MAX ? 1 : -1];

static void dlocki_put(dlocki_out *out, const void *bytes, size_t count)
{
    DLOCK_ASSERT(count <= DLOCKI_OUT_MAX - out->to);
    memcpy(out->bytes + out->to, bytes, count);
    out->to += count;
}

static size_t dlocki_digits(int64_t number, char *to)
{
    char backwards[20];
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    size_t count = 0;
    size_t length = 0;
    if (number >= 0 && number < 100) {   /* most are counts */
        to[0] = (char)('0' + number / 10);
        to[number >= 10 ? 1 : 0] = (char)('0' + number % 10);
        return number >= 10 ? 2 : 1;
    }
    do {
        backwards[count++] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (number < 0) {
        to[length++] = '-';
    }
    while (count > 0) {
        to[length++] = backwards[--count];
    }
    return length;
}

/* "*3\r\n" or "$3\r\n" */
static void dlocki_put_frame(dlocki_out *out, char mark, size_t count)
{
    char line[24];
    size_t length;
    line[0] = mark;
    length = 1 + dlocki_digits((int64_t)count, line + 1);
    line[length++] = '\r';
    line[length++] = '\n';
    dlocki_put(out, line, length);
}

static void dlocki_put_bulk(dlocki_out *out, const void *bytes, size_t count)
{
    dlocki_put_frame(out, '$', count);
    dlocki_put(out, bytes, count);
    dlocki_put(out, "\r\n", 2);
}

static void dlocki_put_text(dlocki_out *out, const char *text)
{
    dlocki_put_bulk(out, text, strlen(text));
}

static void dlocki_put_number(dlocki_out *out, int64_t number)
{
    char digits[21];
    dlocki_put_bulk(out, digits, dlocki_digits(number, digits));
}

/* A key that stands beside K in the same hash slot. The two shapes end differently, so that no two
 * keys ever share a helper. */
static void dlocki_put_helper(dlocki_out *out, const char *key, size_t length, const char *name)
{
    bool tagged = dlocki_key_has_tag(key, length);
    const char *tail = tagged ? ":dlock:" : "}:";
    size_t head = tagged ? 0 : 1;
    dlocki_put_frame(out, '$', head + length + strlen(tail) + strlen(name));
    dlocki_put(out, "{", head);
    dlocki_put(out, key, length);
    dlocki_put(out, tail, strlen(tail));
    dlocki_put(out, name, strlen(name));
    dlocki_put(out, "\r\n", 2);
}

/* The beginning of EVALSHA or EVAL, up to and with K. */
static void dlocki_put_script(dlocki_out *out, const dlocki_command *command, const char *script,
                              const char *sha1, int key_count, size_t argument_count)
{
    dlocki_put_frame(out, '*', 3 + (size_t)key_count + argument_count);
    if (command->whole) {
        dlocki_put_text(out, "EVAL");
        dlocki_put_text(out, script);
    } else {
        dlocki_put_text(out, "EVALSHA");
        dlocki_put_bulk(out, sha1, 40);
    }
    dlocki_put_number(out, key_count);
    dlocki_put_bulk(out, command->key, command->key_length);
}

/* Appends a command about a lock; false: no room now. */
static bool dlocki_put_command(dlocki_out *out, const dlocki_command *command)
{
    if (out->from > 0 && DLOCKI_OUT_MAX - out->to < DLOCKI_COMMAND_MAX) {
        memmove(out->bytes, out->bytes + out->from, out->to - out->from);
        out->to -= out->from;
        out->from = 0;
    }
    if (DLOCKI_OUT_MAX - out->to < DLOCKI_COMMAND_MAX) {
        return false;
    }
    switch (command->kind) {
    case DLOCKI_SET:
        dlocki_put_frame(out, '*', 6);
        dlocki_put_text(out, "SET");
        dlocki_put_bulk(out, command->key, command->key_length);
        dlocki_put_bulk(out, command->owner, DLOCKI_OWNER_LENGTH);
        dlocki_put_text(out, "NX");
        dlocki_put_text(out, "PX");
        dlocki_put_number(out, command->expiry_ms);
        break;
    case DLOCKI_ASK:
        dlocki_put_script(out, command, DLOCKI_LUA_ACQUIRE, DLOCKI_LUA_ACQUIRE_SHA1, 3,
                          command->fenced ? 2 : 5);
        dlocki_put_helper(out, command->key, command->key_length, "queue");
        dlocki_put_helper(out, command->key, command->key_length, "fence");
        dlocki_put_bulk(out, command->owner, DLOCKI_OWNER_LENGTH);
        dlocki_put_number(out, command->expiry_ms);
        if (!command->fenced) {
            dlocki_put_text(out, "");   /* does not line up */
            dlocki_put_text(out, "0");
            dlocki_put_text(out, "0");
        }
        break;
    case DLOCKI_GIVE_BACK:
        dlocki_put_script(out, command, DLOCKI_LUA_RELEASE, DLOCKI_LUA_RELEASE_SHA1, 3, 1);
        dlocki_put_helper(out, command->key, command->key_length, "queue");
        dlocki_put_helper(out, command->key, command->key_length, "fence");
        dlocki_put_bulk(out, command->owner, DLOCKI_OWNER_LENGTH);
        break;
    default:
        DLOCK_ASSERT(command->kind == DLOCKI_EXTEND);
        dlocki_put_script(out, command, DLOCKI_LUA_EXTEND, DLOCKI_LUA_EXTEND_SHA1, 1, 2);
        dlocki_put_bulk(out, command->owner, DLOCKI_OWNER_LENGTH);
        dlocki_put_number(out, command->expiry_ms);
        break;
    }
    return true;
}

#define DLOCKI_VALUE_MAX 8   /* elements in the longest array that we ask for */

/* One reply. hiredis's reader calls the functions below while it parses; nothing is allocated. */
typedef struct dlocki_reply {
    redisReplyObjectFunctions functions;
    int type;      /* REDIS_REPLY_... of the whole */
    int count;     /* of an array                  */
    bool strange;  /* of a shape that nothing we ask for has */
    int64_t values[DLOCKI_VALUE_MAX];   /* an integer, or an array of them */
    char text[160];   /* the beginning of a status, a string or an error */
} dlocki_reply;

static void *dlocki_reply_strange(const redisReadTask *task)
{
    ((dlocki_reply *)task->privdata)->strange = true;
    return NULL;
}

static void *dlocki_reply_string(const redisReadTask *task, char *text, size_t length)
{
    dlocki_reply *reply = (dlocki_reply *)task->privdata;
    size_t kept = length < sizeof reply->text - 1 ? length : sizeof reply->text - 1;
    if (task->parent != NULL || task->type > REDIS_REPLY_ERROR) {
        return dlocki_reply_strange(task);
    }
    reply->type = task->type;
    memcpy(reply->text, text, kept);
    reply->text[kept] = 0;
    if (strlen(reply->text) < kept) {   /* nothing that we ask for has a NUL byte in it */
        reply->text[0] = 0;
    }
    return reply;
}

#if HIREDIS_MAJOR >= 1
static void *dlocki_reply_array(const redisReadTask *task, size_t count)
#else
static void *dlocki_reply_array(const redisReadTask *task, int count)
#endif
{
    dlocki_reply *reply = (dlocki_reply *)task->privdata;
    if (task->parent != NULL || task->type != REDIS_REPLY_ARRAY || count > DLOCKI_VALUE_MAX) {
        return dlocki_reply_strange(task);
    }
    reply->type = REDIS_REPLY_ARRAY;
    reply->count = (int)count;
    return reply;
}

static void *dlocki_reply_integer(const redisReadTask *task, long long value)
{
    dlocki_reply *reply = (dlocki_reply *)task->privdata;
    if (task->parent == NULL) {
        reply->type = REDIS_REPLY_INTEGER;
    }
    reply->values[task->parent == NULL ? 0 : task->idx] = value;
    return reply;
}

static void *dlocki_reply_nil(const redisReadTask *task)
{
    dlocki_reply *reply = (dlocki_reply *)task->privdata;
    if (task->parent != NULL || task->type == REDIS_REPLY_NIL) {   /* RESP3 has a type for it */
        return dlocki_reply_strange(task);
    }
    reply->type = REDIS_REPLY_NIL;
    return reply;
}

#if HIREDIS_MAJOR >= 1
static void *dlocki_reply_double(const redisReadTask *task, double value, char *text, size_t length)
{
    (void)value;
    (void)text;
    (void)length;
    return dlocki_reply_strange(task);
}

static void *dlocki_reply_bool(const redisReadTask *task, int value)
{
    (void)value;
    return dlocki_reply_strange(task);
}
#endif

static void dlocki_reply_free(void *reply)
{
    (void)reply;
}

static void dlocki_reader_close(redisReader *reader)
{
    if (reader != NULL) {
        if (reader->buf != NULL) {   /* a server may quote what it was sent */
            dlocki_wipe(reader->buf, sdslen(reader->buf) + sdsavail(reader->buf));
        }
        redisReaderFree(reader);
    }
}

/* A reader whose buffer has grown already, so that the replies to come need no memory. NULL: none
 * was left. */
static redisReader *dlocki_reader_open(dlocki_reply *reply)
{
    static const char filler[] = "................................................................";
    redisReader *reader;
    void *parsed = NULL;
    int fed;
    int i;
    reply->functions.createString = dlocki_reply_string;
    reply->functions.createArray = dlocki_reply_array;
    reply->functions.createInteger = dlocki_reply_integer;
    reply->functions.createNil = dlocki_reply_nil;
    reply->functions.freeObject = dlocki_reply_free;
#if HIREDIS_MAJOR >= 1
    reply->functions.createDouble = dlocki_reply_double;
    reply->functions.createBool = dlocki_reply_bool;
#endif
    reader = redisReaderCreateWithFunctions(&reply->functions);
    if (reader == NULL) {
        return NULL;
    }
    reader->privdata = reply;
    reader->maxbuf = 0;   /* keep the buffer; and without it 0.14.1 is not clean out of memory */
    fed = redisReaderFeed(reader, "+", 1);
    for (i = 0; i < 64 && fed == REDIS_OK; i++) {
        fed = redisReaderFeed(reader, filler, 64);
    }
    if (fed != REDIS_OK || redisReaderFeed(reader, "\r\n", 2) != REDIS_OK ||
        redisReaderGetReply(reader, &parsed) != REDIS_OK || parsed == NULL) {
        dlocki_reader_close(reader);
        return NULL;
    }
    return reader;
}

enum dlocki_verdict_kind {
    DLOCKI_GRANTED,
    DLOCKI_HELD,
    DLOCKI_AGAIN,      /* dead waiters were cleared, there may be more */
    DLOCKI_FLAGS,      /* release: what was done; extend: 1 = ours; up to here: a lock's answer */
    DLOCKI_FINE,       /* handshake, PING                              */
    DLOCKI_LATER,      /* not executed; trying again may help          */
    DLOCKI_REFUSAL,    /* not executed; trying again would not help    */
    DLOCKI_NOSCRIPT,
    DLOCKI_DOUBT,      /* an error after which anything may be true    */
    DLOCKI_GARBAGE     /* no answer to this command                    */
};

typedef struct dlocki_verdict {
    int kind;
    bool elsewhere;      /* this server is not the one to ask: look the name up again */
    uint64_t fence;
    int64_t lease_ms;    /* -1: without end */
    int64_t flags;
    const char *says;    /* LATER, REFUSAL: what the server says, in our words */
} dlocki_verdict;

typedef struct dlocki_error_class {
    const char *begins;
    int kind;
    bool elsewhere;
    const char *says;
} dlocki_error_class;

/* Redis says what went wrong by the first word of an error (redis.io, "RESP errors"); ERR is for
 * everything else, and there a few beginnings matter. Words of a server are never repeated: they
 * may quote what we sent. */
static const dlocki_error_class dlocki_error_classes[] = {
    {"NOSCRIPT", DLOCKI_NOSCRIPT, false, "lost a script"},
    {"OOM", DLOCKI_LATER, false, "is out of memory"},
    {"LOADING", DLOCKI_LATER, false, "is still loading its data"},
    {"BUSY", DLOCKI_LATER, false, "is busy with somebody's script"},
    {"READONLY", DLOCKI_LATER, true, "is a replica and takes no writes"},
    {"MASTERDOWN", DLOCKI_LATER, true, "is a replica that has lost its master"},
    {"MISCONF", DLOCKI_LATER, false, "cannot save its data and takes no writes"},
    {"NOREPLICAS", DLOCKI_LATER, false, "has too few replicas and takes no writes"},
    {"MOVED", DLOCKI_LATER, true, "belongs to a cluster, and another server has this key"},
    {"ASK", DLOCKI_LATER, true, "belongs to a cluster, and another server has this key"},
    {"TRYAGAIN", DLOCKI_LATER, false, "is moving this key to another server"},
    {"CLUSTERDOWN", DLOCKI_LATER, false, "belongs to a cluster that is down"},
    {"ERR max number of clients", DLOCKI_LATER, false, "has no room for another client"},
    {"NOAUTH", DLOCKI_REFUSAL, false, "asks for a password"},
    {"ERR Protocol error: unauth", DLOCKI_REFUSAL, false, "asks for a password"},
    {"WRONGPASS", DLOCKI_REFUSAL, false, "does not take this user and password"},
    {"ERR invalid password", DLOCKI_REFUSAL, false, "does not take this password"},
    {"ERR AUTH", DLOCKI_REFUSAL, false, "has no password, and one was given"},
    {"ERR Client sent AUTH", DLOCKI_REFUSAL, false, "has no password, and one was given"},
    {"NOPERM", DLOCKI_REFUSAL, false, "denies this user a command or key that a lock needs"},
    {"ERR The user executing", DLOCKI_REFUSAL, false,
     "denies this user a command or key that a lock needs"},
    {"ERR ACL failure", DLOCKI_REFUSAL, false,
     "denies this user a command or key that a lock needs"},
    {"DENIED", DLOCKI_REFUSAL, false, "is in protected mode: it takes local clients only"},
    {"NOPROTO", DLOCKI_REFUSAL, false, "does not speak this protocol"},
    {"WRONGTYPE", DLOCKI_REFUSAL, false, "holds something that is no lock or no fence here"},
    {"CROSSSLOT", DLOCKI_REFUSAL, false, "cannot keep this lock's keys together"},
    {"ERR unknown", DLOCKI_REFUSAL, false, "does not know a command that a lock needs"},
    {"ERR Unknown", DLOCKI_REFUSAL, false, "does not know a command that a lock needs"},
    {"ERR This Redis command is not allowed", DLOCKI_REFUSAL, false,
     "does not allow a command that a lock needs"},
    {"ERR syntax", DLOCKI_REFUSAL, false, "does not know an option that a lock needs"},
    {"ERR invalid expire", DLOCKI_REFUSAL, false, "does not take this expiry"},
    {"ERR wrong number", DLOCKI_REFUSAL, false, "expects other arguments; is it too old?"},
    {"ERR DB index", DLOCKI_REFUSAL, false, "has no database of this number"},
    {"ERR SELECT", DLOCKI_REFUSAL, false, "does not have more than one database"},
    {"ERR value is not", DLOCKI_REFUSAL, false, "holds a fence that is no number"},
};

/* Before Redis 7 an error from inside a script came wrapped: "ERR Error running script (call to
 * f_...): @user_script:1: @user_script: 1: -WORD ...". This finds the word; NULL: it is not
 * wrapped. */
static const char *dlocki_unwrap(const char *text)
{
    const char *mark = strstr(text, "@user_script:");
    if (mark == NULL || strncmp(text, "ERR Error running script", 24) != 0) {
        return NULL;
    }
    while (strncmp(mark, "@user_script:", 13) == 0) {
        mark += 13;
        mark += strspn(mark, " 0123456789:");
    }
    return *mark == '-' ? mark + 1 : mark;
}

static void dlocki_classify(const char *text, dlocki_verdict *verdict)
{
    const char *inner = dlocki_unwrap(text);
    size_t i;
    for (i = 0; i < sizeof dlocki_error_classes / sizeof *dlocki_error_classes; i++) {
        const dlocki_error_class *is = &dlocki_error_classes[i];
        const char *begins = is->begins;
        bool word = strchr(begins, ' ') == NULL;
        const char *said = inner != NULL ? inner : text;
        size_t length;
        if (inner != NULL && !word && strncmp(inner, "ERR ", 4) != 0) {
            begins += 4;   /* inside, there is no ERR before it */
        }
        length = strlen(begins);
        if (strncmp(said, begins, length) == 0 &&
            (!word || said[length] == ' ' || said[length] == 0)) {
            verdict->kind = is->kind;
            verdict->elsewhere = is->elsewhere;
            verdict->says = is->says;
            return;
        }
    }
    verdict->kind = DLOCKI_DOUBT;
    verdict->says = "answered with an error that this version does not know";
}

static bool dlocki_fence_fits(int64_t fence, bool fenced)
{
    return fenced ? fence > 0 && fence < DLOCKI_NUMBER_MAX : fence == 0;
}

/* The acquire script's answer, checked: whoever is at the other end, it is Redis or nothing. */
static void dlocki_judge_ask(const dlocki_reply *reply, bool fenced, int64_t expiry_ms,
                             dlocki_verdict *verdict)
{
    const int64_t *v = reply->values;
    int count = reply->type == REDIS_REPLY_ARRAY ? reply->count : 0;
    if (reply->type == REDIS_REPLY_INTEGER && fenced && v[0] >= DLOCKI_FENCE_MIN &&
        dlocki_fence_fits(v[0], fenced)) {
        verdict->kind = DLOCKI_GRANTED;
        verdict->fence = (uint64_t)v[0];
        verdict->lease_ms = expiry_ms;
    } else if (count == 4 && v[0] == 1) {
        if (dlocki_fence_fits(v[1], fenced) && v[2] >= -1 && v[3] > 0) {
            verdict->kind = DLOCKI_GRANTED;
            verdict->fence = (uint64_t)v[1];
            verdict->lease_ms = v[2];
        }
    } else if (count == 6 && v[0] == 0) {
        if (v[1] >= -1 && v[2] > 0 && v[3] >= 0 && v[4] >= 0 && (v[5] == 0 || v[5] == 1)) {
            verdict->kind = DLOCKI_HELD;
            verdict->lease_ms = v[1];
        }
    } else if (count == 1 && v[0] == 2) {
        verdict->kind = DLOCKI_AGAIN;
    } else if (count == 1 && v[0] == 3) {
        verdict->kind = DLOCKI_REFUSAL;
        verdict->says = "holds a fence that cannot grow any more";
    }
}

/* Can a release (or an extend) have answered that? What was not ours was not handed over, and what
 * was handed over was told. */
static bool dlocki_flags_fit(int64_t flags, bool extend)
{
    int64_t done = flags & (4 | 8);
    if (flags < 0 || flags > (extend ? 1 : 15)) {
        return false;
    }
    return done == 0 || (done != (4 | 8) && (flags & 1) != 0);
}

/* What does this reply to a command of that kind mean? Pure. */
static dlocki_verdict dlocki_judge(int kind, bool fenced, int64_t expiry_ms,
                                   const dlocki_reply *reply)
{
    dlocki_verdict verdict;
    bool status = reply->type == REDIS_REPLY_STATUS;
    memset(&verdict, 0, sizeof verdict);
    verdict.kind = DLOCKI_GARBAGE;
    if (reply->type == REDIS_REPLY_ERROR) {
        dlocki_classify(reply->text, &verdict);
        return verdict;
    }
    switch (kind) {
    case DLOCKI_AUTH:
    case DLOCKI_SELECT:
    case DLOCKI_SETNAME:
        if (status && strcmp(reply->text, "OK") == 0) {
            verdict.kind = DLOCKI_FINE;
        }
        break;
    case DLOCKI_PING:
        if (status && strcmp(reply->text, "PONG") == 0) {
            verdict.kind = DLOCKI_FINE;
        }
        break;
    case DLOCKI_SET:
        verdict.lease_ms = -1;   /* a holder's lease is not told */
        if (status && strcmp(reply->text, "OK") == 0) {
            verdict.kind = DLOCKI_GRANTED;
            verdict.lease_ms = expiry_ms;
        } else if (reply->type == REDIS_REPLY_NIL) {
            verdict.kind = DLOCKI_HELD;
        }
        break;
    case DLOCKI_ASK:
        dlocki_judge_ask(reply, fenced, expiry_ms, &verdict);
        break;
    default:
        if (reply->type == REDIS_REPLY_INTEGER &&
            dlocki_flags_fit(reply->values[0], kind == DLOCKI_EXTEND)) {
            verdict.kind = DLOCKI_FLAGS;
            verdict.flags = reply->values[0];
        }
        break;
    }
    return verdict;
}

/* ----------------------------------------------------------------------------- room 6: machine */
/* One state machine per handle, over plain values: no I/O, no clock, no randomness. An event comes
 * in with the instant and, for an acquire, eight random bytes; out comes what the engine is to do.
 * Validity, owners, undo and bounds are decided here and nowhere else.
 *
 *     acquire   started -> asking -> held
 *                             |  ^
 *                             v  |          asking: a command is unsent, or its reply is awaited
 *                           resting         resting: between attempts, until _wake_at
 *     extend, release   started -> asking -> finished
 */

enum dlocki_state {
    DLOCKI_UNUSED,
    DLOCKI_OURS,        /* held, even if validity has run out since       */
    DLOCKI_GIVEN_BACK,  /* released, or known to be lost                  */
    DLOCKI_OWED         /* release failed: the owner is kept for another  */
};

enum dlocki_verb { DLOCKI_NO_VERB, DLOCKI_ACQUIRE, DLOCKI_EXTENSION, DLOCKI_RELEASE };

enum dlocki_event_kind {
    DLOCKI_STARTED,
    DLOCKI_SENT,          /* the command is about to leave; `now` is before that    */
    DLOCKI_REPLIED,
    DLOCKI_UNCONNECTED,   /* no connection, nothing sent                            */
    DLOCKI_CUT_UNSENT,    /* the connection ended before a byte of the command left */
    DLOCKI_CUT,           /* it ended with the command under way                    */
    DLOCKI_OVERDUE,       /* no reply in command_timeout_ms                         */
    DLOCKI_BABBLE,        /* bytes that are no reply                                */
    DLOCKI_TIME,
    DLOCKI_CANCEL
};

typedef struct dlocki_event {
    int kind;
    int64_t now;
    dlocki_verdict verdict;         /* REPLIED                                          */
    const dlock_error *why;         /* a failure, in words that name the server         */
    const char *factory;            /* the owner's first 16 digits                      */
    const unsigned char *random;    /* 8 bytes; NULL where the kernel gave none         */
    int failures;                   /* connects that failed, in a row                   */
    int64_t bound_ms;               /* for a whole extend or release                    */
} dlocki_event;

/* What the engine is to do, in this order. */
#define DLOCKI_DO_UNDO 1u     /* give back _owner on the server until that is definite    */
#define DLOCKI_DO_SEND 2u     /* send dlocki_lock_command()                               */
#define DLOCKI_DO_FINISH 4u   /* _answer and _why are the result                          */

static dlocki_command dlocki_lock_command(const dlock_lock *lock)
{
    dlocki_command command;
    command.kind = DLOCKI_ASK;
    if (lock->_verb == DLOCKI_EXTENSION) {
        command.kind = DLOCKI_EXTEND;
    } else if (lock->_verb == DLOCKI_RELEASE) {
        command.kind = DLOCKI_GIVE_BACK;
    } else if (lock->_no_fence && lock->_retry_count == 0 && lock->_wait_ms == 0 &&
               !lock->_unknown) {
        command.kind = DLOCKI_SET;   /* which could not tell that an earlier one was obeyed */
    }
    command.fenced = !lock->_no_fence;
    command.whole = lock->_whole;
    command.owner = lock->_owner;
    command.expiry_ms = lock->_ask_expiry_ms;
    command.key = lock->_key;
    command.key_length = lock->_key_length;
    return command;
}

static unsigned dlocki_finish(dlock_lock *lock, bool answer)
{
    lock->_answer = answer;
    lock->_wake_at = DLOCKI_NEVER;
    if (answer) {
        dlocki_say_ok(&lock->_why);
    }
    return DLOCKI_DO_FINISH;
}

/* Keeps the words for the end of the call; a later attempt may still succeed. */
static void dlocki_keep_why(dlock_lock *lock, int code, const dlocki_event *in)
{
    if (in->why != NULL) {
        lock->_why = *in->why;
        if (code != DLOCK_UNREACHABLE ||
            (in->why->code != DLOCK_MEMORY && in->why->code != DLOCK_REFUSED)) {
            lock->_why.code = code;   /* else the cause of it says more */
        }
    } else if (lock->_why.code != code) {
        dlocki_say(&lock->_why, code, 0, "%s", dlock_code_text(code));
    }
}

static bool dlocki_draw_owner(dlock_lock *lock, const dlocki_event *in)
{
    static const char digits[] = "0123456789abcdef";
    int i;
    if (in->random == NULL) {
        return false;
    }
    memcpy(lock->_owner, "dl1-", 4);
    memcpy(lock->_owner + 4, in->factory, 16);
    for (i = 0; i < 8; i++) {
        lock->_owner[20 + 2 * i] = digits[in->random[i] >> 4];
        lock->_owner[21 + 2 * i] = digits[in->random[i] & 15];
    }
    lock->_owner[DLOCKI_OWNER_LENGTH] = 0;
    return true;
}

/* Is there something on the server, or may there be, that only an undo takes away? Its owner is
 * burnt by that: the next attempt draws a new one. */
static unsigned dlocki_undo(dlock_lock *lock)
{
    unsigned todo = lock->_unknown || lock->_asked ? DLOCKI_DO_UNDO : 0u;
    if (todo != 0) {
        lock->_burnt = true;
    }
    lock->_unknown = false;
    lock->_asked = false;
    return todo;
}

/* The acquire ends without the lock, unless the caller would rather go on without one. */
static unsigned dlocki_acquire_fail(dlock_lock *lock, const dlocki_event *in)
{
    unsigned todo = dlocki_undo(lock);
    if (lock->_fail_open && lock->_why.code == DLOCK_UNREACHABLE) {
        lock->_state = DLOCKI_OURS;
        lock->_degraded = true;
        lock->_fence = 0;
        lock->_valid_until =
            dlocki_plus(in->now, lock->_expiry_ms - dlocki_drift_ms(lock->_expiry_ms));
        return todo | dlocki_finish(lock, true);
    }
    return todo | dlocki_finish(lock, false);
}

/* How long until the next attempt? A holder's lease bounds it: nobody sleeps past its end. */
static int64_t dlocki_pause_ms(const dlock_lock *lock, const dlocki_event *in, int64_t lease_ms)
{
    uint32_t first = 0;
    uint32_t second = 0;
    int64_t pause = lock->_retry_delay_ms;
    if (in->random != NULL) {
        memcpy(&first, in->random, sizeof first);
        memcpy(&second, in->random + sizeof first, sizeof second);
    }
    if (pause == 0) {
        int64_t least = DLOCK_DEFAULT_RETRY_MIN_MS;
        int64_t most = DLOCK_DEFAULT_RETRY_MAX_MS;
        int i;
        for (i = 1; i < in->failures && most < DLOCKI_PAUSE_MAX_MS; i++) {
            least *= 2;
            most *= 2;
        }
        pause = least + (int64_t)(first % (uint32_t)(most - least + 1));
    }
    pause += (int64_t)(second % ((uint32_t)lock->_retry_jitter_ms + 1u));
    if (lease_ms >= 0) {
        pause = dlocki_least(pause, dlocki_plus(lease_ms, 1));
    }
    return pause;
}

/* An attempt ended without the lock: another one after a pause, or the end. */
static unsigned dlocki_attempt_fail(dlock_lock *lock, const dlocki_event *in, int code,
                                    int64_t lease_ms)
{
    unsigned todo;
    bool by_count = lock->_retry_count > 0 || lock->_wait_ms == 0;
    dlocki_keep_why(lock, code, in);
    if (lock->_retry_count == DLOCK_FOREVER) {
        by_count = false;
    }
    if (by_count && lock->_attempts >= lock->_retry_count) {
        return dlocki_acquire_fail(lock, in);
    }
    if (lock->_attempts < INT32_MAX) {
        lock->_attempts++;
    }
    todo = dlocki_undo(lock);
    lock->_again = 0;
    lock->_wake_at = dlocki_plus(in->now, dlocki_pause_ms(lock, in, lease_ms));
    return todo;
}

static unsigned dlocki_attempt(dlock_lock *lock, const dlocki_event *in)
{
    lock->_wake_at = DLOCKI_NEVER;
    lock->_whole = false;
    if (lock->_burnt) {
        if (!dlocki_draw_owner(lock, in)) {
            dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                       "The system gives no random numbers, so no owner can be drawn.");
            return dlocki_finish(lock, false);
        }
        lock->_burnt = false;
    }
    return DLOCKI_DO_SEND;
}

static unsigned dlocki_acquire_granted(dlock_lock *lock, const dlocki_event *in)
{
    const dlocki_verdict *verdict = &in->verdict;
    /* The lease began after the first send that may have been obeyed. What the server says is left
     * of it counts from this send, and is less if somebody shortened it. */
    int64_t ends = dlocki_plus(lock->_asked_at, lock->_expiry_ms);
    if (verdict->lease_ms >= 0) {
        ends = dlocki_least(ends, dlocki_plus(lock->_sent_at, verdict->lease_ms));
    }
    ends -= dlocki_drift_ms(lock->_expiry_ms);
    if (in->now >= ends) {
        return dlocki_attempt_fail(lock, in, DLOCK_TIMEOUT, -1);
    }
    lock->_state = DLOCKI_OURS;
    lock->_fence = verdict->fence;
    lock->_valid_until = ends;
    lock->_lapses_at = dlocki_plus(in->now, lock->_expiry_ms + dlocki_drift_ms(lock->_expiry_ms));
    lock->_unknown = false;
    lock->_asked = false;
    return dlocki_finish(lock, true);
}

static unsigned dlocki_acquire_replied(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->verdict.kind) {
    case DLOCKI_GRANTED:
        return dlocki_acquire_granted(lock, in);
    case DLOCKI_HELD:
        lock->_unknown = false;   /* not ours: no earlier ask was obeyed either */
        lock->_asked = false;
        return dlocki_attempt_fail(lock, in, DLOCK_BUSY, in->verdict.lease_ms);
    case DLOCKI_AGAIN:
        lock->_asked = false;
        if (++lock->_again < DLOCKI_AGAIN_MAX) {
            return DLOCKI_DO_SEND;
        }
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "Too many places in this lock's line belong to somebody who is gone.");
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE, -1);
    case DLOCKI_NOSCRIPT:
    case DLOCKI_LATER:
        lock->_asked = false;
        if (in->verdict.kind == DLOCKI_NOSCRIPT && !lock->_whole) {
            lock->_whole = true;
            return DLOCKI_DO_SEND;
        }
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE, -1);
    case DLOCKI_REFUSAL:
        lock->_asked = false;
        dlocki_keep_why(lock, DLOCK_REFUSED, in);
        return dlocki_acquire_fail(lock, in);
    default:
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE, -1);
    }
}

static unsigned dlocki_acquire_time(dlock_lock *lock, const dlocki_event *in)
{
    if (in->now < lock->_deadline) {
        return in->now >= lock->_wake_at ? dlocki_attempt(lock, in) : 0;
    }
    if (lock->_why.code == DLOCK_OK ||
        ((lock->_asked || lock->_unknown) && lock->_why.code != DLOCK_UNREACHABLE)) {
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "No answer came within the %lld ms that the call may wait.",
                   (long long)lock->_wait_ms);
    } else if (lock->_why.code == DLOCK_BUSY || lock->_why.code == DLOCK_TIMEOUT) {
        dlocki_say(&lock->_why, DLOCK_TIMEOUT, 0,
                   "The lock did not become ours within the %lld ms that the call may wait.",
                   (long long)lock->_wait_ms);
    }
    return dlocki_acquire_fail(lock, in);
}

static unsigned dlocki_acquire_event(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->kind) {
    case DLOCKI_STARTED:
        lock->_burnt = true;
        lock->_deadline = lock->_wait_ms > 0 ? dlocki_plus(in->now, lock->_wait_ms) : DLOCKI_NEVER;
        return dlocki_attempt(lock, in);
    case DLOCKI_SENT:
        if (!lock->_unknown) {
            lock->_asked_at = in->now;
        }
        lock->_asked = true;
        return 0;
    case DLOCKI_REPLIED:
        return dlocki_acquire_replied(lock, in);
    case DLOCKI_CUT_UNSENT:
    case DLOCKI_CUT:
        lock->_unknown = lock->_unknown || in->kind == DLOCKI_CUT;
        lock->_asked = false;
        if (lock->_again == 0) {
            lock->_again = 1;   /* once more, same owner: if the first was obeyed, it is ours */
            return DLOCKI_DO_SEND;
        }
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE, -1);
    case DLOCKI_BABBLE:
        return dlocki_attempt_fail(lock, in, DLOCK_PROTOCOL, -1);
    case DLOCKI_TIME:
        return dlocki_acquire_time(lock, in);
    case DLOCKI_CANCEL:
        dlocki_say(&lock->_why, DLOCK_CANCELLED, 0, "The call was cancelled.");
        return dlocki_undo(lock) | dlocki_finish(lock, false);
    default:   /* UNCONNECTED, OVERDUE */
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE, -1);
    }
}

/* A release or extend that nobody answered. The release stays owed. */
static unsigned dlocki_unanswered(dlock_lock *lock, const dlocki_event *in, int code)
{
    int64_t left = dlocki_most(0, dlocki_plus(lock->_lapses_at, -in->now));
    dlocki_keep_why(lock, code, in);
    if (lock->_verb == DLOCKI_EXTENSION) {
        return dlocki_finish(lock, false);
    }
    lock->_state = code == DLOCK_REFUSED ? DLOCKI_GIVEN_BACK : DLOCKI_OWED;
    dlocki_append(&lock->_why, " The lock lapses by itself in %lld ms at the latest.",
                  (long long)left);
    return (code == DLOCK_REFUSED ? 0u : DLOCKI_DO_UNDO) | dlocki_finish(lock, false);
}

static unsigned dlocki_lost(dlock_lock *lock)
{
    lock->_state = DLOCKI_GIVEN_BACK;
    lock->_valid_until = 0;
    dlocki_say(&lock->_why, DLOCK_LOST, 0,
               "The lock was not ours any more: its lease had ended, or somebody removed it.");
    return dlocki_finish(lock, false);
}

static unsigned dlocki_extension_flags(dlock_lock *lock, const dlocki_event *in)
{
    int64_t ends;
    if (in->verdict.flags == 0) {
        return dlocki_lost(lock);
    }
    ends =
        dlocki_plus(lock->_sent_at, lock->_ask_expiry_ms - dlocki_drift_ms(lock->_ask_expiry_ms));
    lock->_valid_until = dlocki_most(lock->_valid_until, ends);
    if (in->now >= lock->_valid_until) {
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "The answer came so late that the new lease may have ended.");
        return dlocki_finish(lock, false);
    }
    return dlocki_finish(lock, true);
}

static unsigned dlocki_release_flags(dlock_lock *lock, const dlocki_event *in)
{
    bool ours = (in->verdict.flags & 1) != 0;
    /* "Not ours" on the second try, while it must have been ours: the first one gave it back. */
    if (!ours && lock->_unknown && in->now >= lock->_valid_until) {
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "An answer was lost: either this call gave the lock back, or its lease ended.");
        lock->_state = DLOCKI_GIVEN_BACK;
        return dlocki_finish(lock, false);
    }
    if (!ours && !lock->_unknown) {
        return dlocki_lost(lock);
    }
    lock->_state = DLOCKI_GIVEN_BACK;
    return dlocki_finish(lock, true);
}

static unsigned dlocki_simple_replied(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->verdict.kind) {
    case DLOCKI_FLAGS:
        return lock->_verb == DLOCKI_EXTENSION ? dlocki_extension_flags(lock, in)
                                               : dlocki_release_flags(lock, in);
    case DLOCKI_REFUSAL:
        return dlocki_unanswered(lock, in, DLOCK_REFUSED);
    default:
        if (in->verdict.kind == DLOCKI_NOSCRIPT && !lock->_whole) {
            lock->_whole = true;
            return DLOCKI_DO_SEND;
        }
        return dlocki_unanswered(lock, in, DLOCK_UNREACHABLE);
    }
}

/* Extend and release: one command, sent again once on a new connection. */
static unsigned dlocki_simple_event(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->kind) {
    case DLOCKI_STARTED:
        lock->_deadline = dlocki_plus(in->now, in->bound_ms);
        lock->_wake_at = DLOCKI_NEVER;
        return DLOCKI_DO_SEND;
    case DLOCKI_SENT:
        if (lock->_verb == DLOCKI_EXTENSION) {   /* it may be obeyed, and its answer be lost */
            lock->_lapses_at = dlocki_most(
                lock->_lapses_at, dlocki_plus(in->now, in->bound_ms + lock->_ask_expiry_ms +
                                                           dlocki_drift_ms(lock->_ask_expiry_ms)));
        }
        return 0;
    case DLOCKI_REPLIED:
        return dlocki_simple_replied(lock, in);
    case DLOCKI_CUT_UNSENT:
    case DLOCKI_CUT:
    case DLOCKI_OVERDUE:
        lock->_unknown = lock->_unknown || in->kind != DLOCKI_CUT_UNSENT;
        if (lock->_again == 0) {
            lock->_again = 1;
            dlocki_keep_why(lock, DLOCK_UNREACHABLE, in);
            return DLOCKI_DO_SEND;
        }
        return dlocki_unanswered(lock, in, DLOCK_UNREACHABLE);
    case DLOCKI_BABBLE:
        return dlocki_unanswered(lock, in, DLOCK_PROTOCOL);
    case DLOCKI_CANCEL:
        return dlocki_unanswered(lock, in, DLOCK_CANCELLED);
    case DLOCKI_TIME:
        return in->now >= lock->_deadline ? dlocki_unanswered(lock, in, DLOCK_UNREACHABLE) : 0;
    default:
        return dlocki_unanswered(lock, in, DLOCK_UNREACHABLE);
    }
}

/* The one way in. */
static unsigned dlocki_machine(dlock_lock *lock, const dlocki_event *in)
{
    DLOCK_ASSERT(lock->_verb != DLOCKI_NO_VERB);
    if (in->kind == DLOCKI_STARTED) {
        lock->_again = 0;
        lock->_unknown = lock->_state == DLOCKI_OWED;   /* an earlier release was sent */
        lock->_asked = false;
        lock->_whole = false;
        dlocki_say_ok(&lock->_why);
    } else if (in->kind == DLOCKI_SENT) {
        lock->_sent_at = in->now;
    }
    return lock->_verb == DLOCKI_ACQUIRE ? dlocki_acquire_event(lock, in)
                                         : dlocki_simple_event(lock, in);
}

/* --------------------------------------------------------------------------- room 7: transport */
/* Sockets that never block, and the kernel's own table. */

static int dlocki_resolve(void *world, const char *host, int port, dlocki_address *found, int room)
{
    struct addrinfo hints;
    struct addrinfo *list = NULL;
    struct addrinfo *one;
    char service[21];
    int count = 0;
    int failed;
    (void)world;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    service[dlocki_digits(port, service)] = 0;
    errno = 0;
    failed = getaddrinfo(host, service, &hints, &list);
    if (failed != 0) {   /* it says "no such name" where it could not even open its files */
        bool tells = failed == EAI_SYSTEM || errno == EMFILE || errno == ENFILE;
        return failed == EAI_MEMORY ? -ENOMEM : tells && errno != 0 ? -errno : -ENOENT;
    }
    for (one = list; one != NULL && count < room; one = one->ai_next) {
        if (one->ai_addrlen <= sizeof found->at) {
            memcpy(&found[count].at, one->ai_addr, one->ai_addrlen);
            found[count++].length = one->ai_addrlen;
        }
    }
    freeaddrinfo(list);
    return count;
}

/* Begins to connect. Delay and silence are what a lock cannot afford: no Nagle, and keepalive, so
 * that a host which vanished is noticed even by a program that only waits. */
static int dlocki_connect(void *world, const dlocki_address *address)
{
    const int on = 1;
    const int idle_s = 15;
    const int family = address->at.ss_family;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    (void)world;
    if (fd < 0) {
        return -errno;
    }
    if (family != AF_UNIX) {   /* best effort: a connection without them is still one */
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
        (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle_s, sizeof idle_s);
    }
    if (connect(fd, (const struct sockaddr *)&address->at, address->length) != 0 &&
        errno != EINPROGRESS && errno != EINTR) {
        int kept = errno;
        (void)close(fd);
        return -kept;
    }
    return fd;
}

static int dlocki_connected(void *world, int fd)
{
    int failed = 0;
    socklen_t size = sizeof failed;
    (void)world;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &size) == 0 ? failed : errno;
}

static long dlocki_send(void *world, int fd, const void *bytes, size_t count)
{
    ssize_t sent;
    (void)world;
    do {
        sent = send(fd, bytes, count, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent >= 0 ? (long)sent : -errno;
}

static long dlocki_receive(void *world, int fd, void *bytes, size_t count)
{
    ssize_t got;
    (void)world;
    do {
        got = recv(fd, bytes, count, 0);
    } while (got < 0 && errno == EINTR);
    return got >= 0 ? (long)got : -errno;
}

static void dlocki_close_fd(void *world, int fd)
{
    (void)world;
    (void)close(fd);
}

static const dlocki_kernel dlocki_linux = {
    dlocki_now,     dlocki_random,   dlocki_pid,       dlocki_wake_fd,
    dlocki_resolve, dlocki_connect,  dlocki_connected, dlocki_send,
    dlocki_receive, dlocki_close_fd, dlocki_wait_fds,
};

/* ------------------------------------------------------------------------------ room 8: engine */
/* One per factory: the connection, the pending handles, the debts. It feeds the machine and does
 * what the machine says. Everything here runs under the factory's mutex, but for the wait. */

enum dlocki_link_state { DLOCKI_DOWN, DLOCKI_CONNECTING, DLOCKI_UP };

/* A command whose reply is awaited. Replies are matched by order. */
typedef struct dlocki_flight {
    int kind;
    bool fenced;
    int debt;              /* which debt it pays; -1 = none                       */
    dlock_lock *lock;      /* who asked; NULL = the connection, or nobody any more */
    int64_t expiry_ms;
    int64_t deadline;
    uint64_t begins;       /* where in the stream of sent bytes                   */
} dlocki_flight;

/* A release that is owed to the server. */
typedef struct dlocki_debt {
    bool used;
    bool sent;
    unsigned bound_to;     /* the one connection it makes sense on; 0 = any       */
    int64_t due_at;        /* not before                                          */
    int64_t lapses_at;     /* never, until the server was heard after the failure */
    int64_t expiry_ms;
    unsigned short key_length;
    char owner[DLOCKI_OWNER_LENGTH + 1];
    char key[DLOCK_KEY_MAX];
} dlocki_debt;

typedef struct dlocki_link {
    int state;
    int fd;
    unsigned generation;       /* changes with every connection; never 0             */
    int failures;              /* connections in a row that came to nothing          */
    int address_count;
    int address_next;
    int flight_first;
    int flight_count;
    bool proven;               /* it has served: a command about a lock was answered */
    bool scripted;             /* a script was; only then is a plain SET worth having  */
    bool barrier;              /* nothing before a PING was answered                 */
    bool stale;                /* to be replaced before the next command             */
    bool refused;              /* the handshake was: believe nothing, then replace it */
    int64_t connect_ends;      /* for all addresses                                  */
    int64_t connect_deadline;  /* for this one                                       */
    int64_t used_at;
    uint64_t queued;           /* bytes put into `out` since it was connected        */
    uint64_t sent;             /* bytes that left it                                 */
    redisReader *reader;
    dlocki_reply reply;
    dlock_error refusal;
    dlocki_address addresses[DLOCKI_ADDRESS_MAX];
    dlocki_flight flights[DLOCKI_FLIGHT_MAX];
    dlocki_out out;
    unsigned char in[DLOCKI_IN_MAX];
} dlocki_link;

struct dlock_factory {
    const dlocki_kernel *kernel;
    void *world;
    void *(*alloc)(size_t, void *);
    void (*free)(void *, void *);
    void *user;
    long pid;
    int wake_fd;
    int32_t connect_timeout_ms;
    int32_t command_timeout_ms;
    dlocki_mutex mutex;
    int writing;               /* atomic: somebody has the mutex               */
    dlocki_condition left;     /* the last caller has left                     */
    int inside;                /* callers                                      */
    bool closing;
    bool leading;              /* somebody waits for the kernel, for everybody */
    unsigned plan_generation;  /* what that one waits for                      */
    bool plan_writes;
    int64_t plan_until;
    int64_t now;
    int64_t ends_at;           /* of dlock_close; never before                 */
    dlock_lock *pending;
    dlock_lock *pending_last;
    dlock_lock *held;
    int debt_count;
    int pool_left;
    unsigned char pool[512];   /* of randomness, wiped as it is used           */
    char id[17];               /* the owner's first 16 digits                  */
    char client_name[DLOCKI_NAME_MAX + 1];
    dlocki_url url;
    dlocki_link link;
    dlocki_debt debts[DLOCK_DEBT_MAX];
};

static void dlocki_link_fail(dlock_factory *factory, int cause, const dlock_error *why);

/* The mutex, and a mark that a child of fork() can read: were the books being written? */
static void dlocki_books_lock(dlock_factory *factory)
{
    dlocki_mutex_lock(&factory->mutex);
    dlocki_store(&factory->writing, 1);
}

static void dlocki_books_unlock(dlock_factory *factory)
{
    dlocki_store(&factory->writing, 0);
    dlocki_mutex_unlock(&factory->mutex);
}

static void dlocki_books_sleep(dlock_factory *factory, dlocki_condition *until)
{
    dlocki_store(&factory->writing, 0);
    dlocki_condition_wait(until, &factory->mutex);
    dlocki_store(&factory->writing, 1);
}

static void dlocki_list_remove(dlock_factory *factory, dlock_lock *lock)
{
    dlock_lock **first = factory->held == lock ? &factory->held : &factory->pending;
    if (lock->_previous != NULL) {
        lock->_previous->_next = lock->_next;
    } else if (*first == lock) {
        *first = lock->_next;
    }
    if (lock->_next != NULL) {
        lock->_next->_previous = lock->_previous;
    }
    if (factory->pending_last == lock) {
        factory->pending_last = lock->_previous;
    }
    lock->_next = NULL;
    lock->_previous = NULL;
}

static void dlocki_pending_append(dlock_factory *factory, dlock_lock *lock)
{
    lock->_previous = factory->pending_last;
    lock->_next = NULL;
    if (factory->pending_last != NULL) {
        factory->pending_last->_next = lock;
    } else {
        factory->pending = lock;
    }
    factory->pending_last = lock;
}

static void dlocki_held_add(dlock_factory *factory, dlock_lock *lock)
{
    lock->_previous = NULL;
    lock->_next = factory->held;
    if (factory->held != NULL) {
        factory->held->_previous = lock;
    }
    factory->held = lock;
}

/* Eight bytes that nobody has seen. */
static bool dlocki_take_random(dlock_factory *factory, unsigned char *bytes)
{
    unsigned char *from;
    if (factory->pool_left < 8) {
        if (!factory->kernel->random(factory->world, factory->pool, sizeof factory->pool)) {
            return false;
        }
        factory->pool_left = (int)sizeof factory->pool;
    }
    factory->pool_left -= 8;
    from = factory->pool + factory->pool_left;
    memcpy(bytes, from, 8);
    dlocki_wipe(from, 8);
    return true;
}

/* "The server at HOST does this or that." */
static void dlocki_say_server(const dlock_factory *factory, dlock_error *error, int code,
                              int os_errno, const char *says)
{
    if (factory->url.is_unix) {
        dlocki_say(error, code, os_errno, "The server at %.64s %s.", factory->url.host, says);
    } else {
        dlocki_say(error, code, os_errno, "The server at %.64s, port %d, %s.", factory->url.host,
                   factory->url.port, says);
    }
    error->node = 0;
}

static void dlocki_debt_pay(dlock_factory *factory, dlocki_debt *debt)
{
    dlocki_wipe(debt, sizeof *debt);
    factory->debt_count--;
}

/* By then the lease has run out, whenever within the command's time it began. */
static int64_t dlocki_debt_lapses(const dlock_factory *factory, const dlocki_debt *debt)
{
    return dlocki_plus(factory->now, debt->expiry_ms + dlocki_drift_ms(debt->expiry_ms) +
                                         factory->command_timeout_ms);
}

/* Notes that a lock must be given back until the answer is definite. With no room left it lapses,
 * which can only happen to a release: an acquire is not sent without room. What was done on one
 * connection only, because its handshake was refused, is `bound_to` it. */
static void dlocki_owe(dlock_factory *factory, const dlock_lock *lock, unsigned bound_to)
{
    dlocki_debt *debt = NULL;
    int i;
    for (i = 0; i < DLOCK_DEBT_MAX; i++) {
        dlocki_debt *one = &factory->debts[i];
        if (one->used && one->bound_to == bound_to &&
            memcmp(one->owner, lock->_owner, DLOCKI_OWNER_LENGTH) == 0) {
            return;
        }
        if (!one->used && debt == NULL) {
            debt = one;
        }
    }
    if (debt == NULL) {
        return;
    }
    debt->used = true;
    debt->due_at = factory->now;
    debt->expiry_ms = lock->_verb == DLOCKI_ACQUIRE
                          ? lock->_ask_expiry_ms
                          : dlocki_most(1, dlocki_plus(lock->_lapses_at, -factory->now));
    debt->lapses_at = dlocki_debt_lapses(factory, debt);
    debt->bound_to = bound_to;
    debt->key_length = lock->_key_length;
    memcpy(debt->owner, lock->_owner, sizeof debt->owner);
    memcpy(debt->key, lock->_key, lock->_key_length);
    factory->debt_count++;
}

/* The n-th oldest command under way; behind the last one, the place for the next. */
static dlocki_flight *dlocki_flight_at(dlocki_link *link, int n)
{
    return &link->flights[(link->flight_first + n) % DLOCKI_FLIGHT_MAX];
}

/* The call is over: nothing of the engine points to the handle any more, unless it is held. */
static void dlocki_settle(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_link *link = &factory->link;
    int i;
    for (i = 0; i < link->flight_count; i++) {
        dlocki_flight *flight = dlocki_flight_at(link, i);
        if (flight->lock == lock) {
            flight->lock = NULL;
        }
    }
    dlocki_list_remove(factory, lock);
    lock->_verb = DLOCKI_NO_VERB;
    lock->_unsent = false;
    if (lock->_state == DLOCKI_OURS) {
        dlocki_held_add(factory, lock);
    } else if (lock->_state != DLOCKI_OWED || factory->closing) {
        dlocki_wipe(lock->_owner, sizeof lock->_owner);
        lock->_fence = 0;
        lock->_factory = NULL;
        if (factory->closing) {
            lock->_state = DLOCKI_UNUSED;
        }
    }
    if (lock->_sleeper != NULL) {
        dlocki_condition_signal((dlocki_condition *)lock->_sleeper);
    } else if (factory->leading) {
        dlocki_wake(factory->wake_fd);   /* it may be the call of the one who waits for all */
    }
}

/* The machine's only caller. */
static void dlocki_feed(dlock_factory *factory, dlock_lock *lock, dlocki_event *in)
{
    unsigned char random[8];
    unsigned todo;
    bool draws = lock->_verb == DLOCKI_ACQUIRE && in->kind != DLOCKI_SENT;
    in->now = factory->now;
    in->factory = factory->id;
    in->failures = factory->link.failures;
    in->bound_ms = (int64_t)factory->connect_timeout_ms + factory->command_timeout_ms;
    in->random = draws && dlocki_take_random(factory, random) ? random : NULL;
    todo = dlocki_machine(lock, in);
    dlocki_wipe(random, sizeof random);
    if ((todo & DLOCKI_DO_UNDO) != 0) {
        dlocki_owe(factory, lock, 0);
    }
    if ((todo & DLOCKI_DO_SEND) != 0) {
        lock->_unsent = true;
    }
    if ((todo & DLOCKI_DO_FINISH) != 0) {
        dlocki_settle(factory, lock);
    }
}

static void dlocki_feed_kind(dlock_factory *factory, dlock_lock *lock, int kind,
                             const dlock_error *why)
{
    dlocki_event in;
    memset(&in, 0, sizeof in);
    in.kind = kind;
    in.why = why;
    dlocki_feed(factory, lock, &in);
}

/* --- the connection */

static void dlocki_link_hang_up(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    int fd = link->fd;
    link->fd = -1;
    link->state = DLOCKI_DOWN;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);   /* in this order */
    if (fd >= 0) {
        factory->kernel->close(factory->world, fd);
    }
}

static void dlocki_link_close(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    redisReader *reader = link->reader;
    int i;
    /* A child that is forked meanwhile must not destroy a second time what is destroyed here. */
    link->reader = NULL;
    dlocki_link_hang_up(factory);
    dlocki_reader_close(reader);
    for (i = 0; i < DLOCK_DEBT_MAX && factory->debt_count > 0; i++) {
        dlocki_debt *debt = &factory->debts[i];
        if (debt->used && debt->bound_to == link->generation) {
            dlocki_debt_pay(factory, debt);   /* it stood in another database: it lapses there */
        }
    }
    link->generation += link->generation == UINT_MAX ? 2u : 1u;
    link->flight_count = 0;
    link->proven = false;
    link->scripted = false;
    link->stale = false;
    link->refused = false;
    link->queued = 0;
    link->sent = 0;
    dlocki_wipe(link->out.bytes, link->out.to);   /* owners, passwords */
    link->out.from = 0;
    link->out.to = 0;
}

static void dlocki_flush(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    while (link->state == DLOCKI_UP && link->out.from < link->out.to) {
        long sent =
            factory->kernel->send(factory->world, link->fd, link->out.bytes + link->out.from,
                                  link->out.to - link->out.from);
        if (sent == -EAGAIN || sent == -EWOULDBLOCK) {
            return;
        }
        if (sent <= 0) {
            dlock_error why;
            dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, (int)-sent,
                              "closed the connection");
            dlocki_link_fail(factory, DLOCKI_CUT, &why);
            return;
        }
        link->sent += (uint64_t)sent;
        link->used_at = factory->now;
        link->out.from += (size_t)sent;
    }
    if (link->out.from == link->out.to) {
        link->out.from = 0;
        link->out.to = 0;
    }
}

/* Notes that the bytes just put into `out` are a command. */
static dlocki_flight *dlocki_flight_add(dlock_factory *factory, int kind)
{
    dlocki_link *link = &factory->link;
    dlocki_flight *flight = dlocki_flight_at(link, link->flight_count);
    DLOCK_ASSERT(link->flight_count < DLOCKI_FLIGHT_MAX);
    memset(flight, 0, sizeof *flight);
    flight->kind = kind;
    flight->debt = -1;
    flight->begins = link->queued;
    flight->deadline = dlocki_plus(factory->now, factory->command_timeout_ms);
    link->flight_count++;
    link->queued = link->sent + (link->out.to - link->out.from);
    return flight;
}

static void dlocki_put_handshake(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    const dlocki_url *url = &factory->url;
    if (url->has_password) {
        dlocki_put_frame(&link->out, '*', url->username_length > 0 ? 3 : 2);
        dlocki_put_text(&link->out, "AUTH");
        if (url->username_length > 0) {
            dlocki_put_bulk(&link->out, url->username, url->username_length);
        }
        dlocki_put_bulk(&link->out, url->password, url->password_length);
        dlocki_flight_add(factory, DLOCKI_AUTH);
    }
    if (url->database != 0) {
        dlocki_put_frame(&link->out, '*', 2);
        dlocki_put_text(&link->out, "SELECT");
        dlocki_put_number(&link->out, url->database);
        dlocki_flight_add(factory, DLOCKI_SELECT);
    }
    if (factory->client_name[0] != 0) {
        dlocki_put_frame(&link->out, '*', 3);
        dlocki_put_text(&link->out, "CLIENT");
        dlocki_put_text(&link->out, "SETNAME");
        dlocki_put_text(&link->out, factory->client_name);
        dlocki_flight_add(factory, DLOCKI_SETNAME);
    }
    if (link->barrier) {
        dlocki_put_frame(&link->out, '*', 1);
        dlocki_put_text(&link->out, "PING");
        dlocki_flight_add(factory, DLOCKI_PING);
    }
}

static const char *dlocki_errno_says(int os_errno)
{
    switch (os_errno) {
    case ECONNREFUSED:
        return "refuses connections";
    case ENOENT:
        return "cannot be found";
    case EACCES:
        return "may not be connected to by this user";
    case EMFILE:
    case ENFILE:
        return "cannot be connected to: no descriptor is left";
    case ENOMEM:
        return "cannot be connected to: no memory is left";
    case ETIMEDOUT:
        return "did not accept a connection in time";
    default:
        return "cannot be reached";
    }
}

static void dlocki_connect_fail(dlock_factory *factory, int os_errno)
{
    dlock_error why;
    int code = os_errno == ENOMEM ? DLOCK_MEMORY : DLOCK_UNREACHABLE;
    dlocki_say_server(factory, &why, code, os_errno, dlocki_errno_says(os_errno));
    dlocki_link_fail(factory, DLOCKI_UNCONNECTED, &why);
}

/* Begins to connect to the next address that does not fail at once. Each gets its share of the
 * time that is left, so that a silent one does not use up all of it. */
static void dlocki_connect_next(dlock_factory *factory, int os_errno)
{
    dlocki_link *link = &factory->link;
    dlocki_link_hang_up(factory);
    while (link->address_next < link->address_count && factory->now < link->connect_ends) {
        int left = link->address_count - link->address_next;
        int fd = factory->kernel->connect(factory->world, &link->addresses[link->address_next]);
        link->address_next++;
        if (fd >= 0) {
            link->fd = fd;
            link->state = DLOCKI_CONNECTING;
            link->generation += link->generation == UINT_MAX ? 2u : 1u;
            link->connect_deadline = factory->now + (link->connect_ends - factory->now) / left;
            return;
        }
        os_errno = -fd;
    }
    dlocki_connect_fail(factory, os_errno);
}

static void dlocki_link_open(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    int found = 1;
    if (factory->url.is_unix) {
        struct sockaddr_un address;
        memset(&address, 0, sizeof address);
        address.sun_family = AF_UNIX;
        memcpy(address.sun_path, factory->url.host, strlen(factory->url.host));
        memcpy(&link->addresses[0].at, &address, sizeof address);
        link->addresses[0].length = (socklen_t)sizeof address;
    } else {
        found = factory->kernel->resolve(factory->world, factory->url.host, factory->url.port,
                                         link->addresses, DLOCKI_ADDRESS_MAX);
        factory->now = factory->kernel->now(factory->world);   /* that may have blocked */
    }
    link->address_count = found > 0 ? found : 0;
    link->address_next = 0;
    link->connect_ends = dlocki_plus(factory->now, factory->connect_timeout_ms);
    dlocki_connect_next(factory, found < 0 ? -found : ENOENT);
}

/* The socket is writable for the first time, or failed. */
static void dlocki_link_connected(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    int failed = factory->kernel->connected(factory->world, link->fd);
    if (failed != 0) {
        dlocki_connect_next(factory, failed);
        return;
    }
    link->reader = dlocki_reader_open(&link->reply);
    if (link->reader == NULL) {
        dlocki_connect_fail(factory, ENOMEM);
        return;
    }
    link->state = DLOCKI_UP;
    link->used_at = factory->now;
    dlocki_put_handshake(factory);
}

/* What was under way is told; what was not yet sent waits for the next connection, unless there
 * can be none. A connection that never served counts for those who wait, too: else a server that
 * always hangs up could keep them for ever. */
static void dlocki_link_tell(dlock_factory *factory, int cause, const dlock_error *why)
{
    dlocki_link *link = &factory->link;
    dlock_lock *lock = factory->pending;
    int count = link->flight_count;
    bool none = cause == DLOCKI_UNCONNECTED || link->barrier;
    int i;
    while (lock != NULL && (none || (!link->proven && count > 0))) {
        dlock_lock *next = lock->_next;
        if (lock->_unsent) {
            lock->_unsent = false;
            dlocki_feed_kind(factory, lock, none ? DLOCKI_UNCONNECTED : DLOCKI_CUT_UNSENT, why);
        }
        lock = next;
    }
    for (i = 0; i < count; i++) {
        dlocki_flight *flight = dlocki_flight_at(link, i);
        bool left = flight->begins < link->sent;
        int kind = cause;
        if (cause != DLOCKI_UNCONNECTED && !left) {
            kind = DLOCKI_CUT_UNSENT;
        } else if (cause == DLOCKI_OVERDUE && factory->now < flight->deadline) {
            kind = DLOCKI_CUT;   /* an older one was too slow, not this */
        }
        if (flight->lock != NULL) {
            dlocki_feed_kind(factory, flight->lock, kind, why);
        } else if (flight->debt >= 0) {
            factory->debts[flight->debt].sent = false;
        }
        link->barrier = link->barrier || (left && cause != DLOCKI_UNCONNECTED);
    }
}

/* Sends a command about a lock; false: not now. */
static bool dlocki_launch(dlock_factory *factory, const dlocki_command *command, dlock_lock *lock,
                          int debt)
{
    dlocki_flight *flight;
    if (factory->link.flight_count == DLOCKI_FLIGHT_MAX ||
        !dlocki_put_command(&factory->link.out, command)) {
        return false;
    }
    flight = dlocki_flight_add(factory, command->kind);
    flight->fenced = command->fenced;
    flight->expiry_ms = command->expiry_ms;
    flight->lock = lock;
    flight->debt = debt;
    if (command->kind != DLOCKI_GIVE_BACK) {   /* an answer after the lease's end says nothing */
        flight->deadline =
            dlocki_least(flight->deadline, dlocki_plus(factory->now, command->expiry_ms));
    }
    return true;
}

/* Sends what is owed; `bound_to` 0: what makes sense on any connection. */
static void dlocki_pump_debts(dlock_factory *factory, unsigned bound_to)
{
    int i;
    for (i = 0; i < DLOCK_DEBT_MAX && factory->debt_count > 0; i++) {
        dlocki_debt *debt = &factory->debts[i];
        dlocki_command command;
        if (!debt->used || debt->sent || debt->bound_to != bound_to ||
            factory->now < debt->due_at) {
            continue;
        }
        if (factory->now >= debt->lapses_at) {
            dlocki_debt_pay(factory, debt);
            continue;
        }
        memset(&command, 0, sizeof command);
        command.kind = DLOCKI_GIVE_BACK;
        command.whole = true;   /* there may be no second chance to say it */
        command.owner = debt->owner;
        command.key = debt->key;
        command.key_length = debt->key_length;
        if (!dlocki_launch(factory, &command, NULL, i)) {
            return;
        }
        debt->sent = true;
    }
}

/* How long what is owed rests before it is tried again: longer with every failure. While closing
 * there must be time for another try, and yet no hammering. */
static int64_t dlocki_debt_pause_ms(const dlock_factory *factory)
{
    int64_t pause = DLOCKI_DEBT_PAUSE_MS * dlocki_most(1, factory->link.failures);
    pause = dlocki_least(pause, DLOCKI_PAUSE_MAX_MS);
    return dlocki_least(pause, dlocki_plus(factory->ends_at - factory->now, 1) / 2);
}

static void dlocki_debts_put_off(dlock_factory *factory)
{
    int64_t at = dlocki_plus(factory->now, dlocki_debt_pause_ms(factory));
    int i;
    for (i = 0; i < DLOCK_DEBT_MAX; i++) {
        factory->debts[i].due_at = dlocki_most(factory->debts[i].due_at, at);
    }
}

/* A server that was only slow undoes at once what it did: what is owed is written behind what has
 * left, unread. What has not left must not leave now: whoever sent it was told so. */
static void dlocki_link_farewell(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    size_t kept = link->out.to;
    int i;
    for (i = link->flight_count - 1; i >= 0; i--) {
        const dlocki_flight *flight = dlocki_flight_at(link, i);
        if (flight->begins >= link->sent) {
            kept = link->out.from + (size_t)(flight->begins - link->sent);
        }
    }
    dlocki_wipe(link->out.bytes + kept, link->out.to - kept);
    link->out.to = kept;
    link->queued = link->sent + (kept - link->out.from);
    link->flight_count = 0;
    dlocki_pump_debts(factory, 0);
    (void)factory->kernel->send(factory->world, link->fd, link->out.bytes + link->out.from,
                                link->out.to - link->out.from);
}

/* The connection is of no use any more. */
static void dlocki_link_fail(dlock_factory *factory, int cause, const dlock_error *why)
{
    dlocki_link *link = &factory->link;
    int i;
    if (!link->proven && link->failures < INT_MAX) {
        link->failures++;
    }
    dlocki_link_tell(factory, cause, why);
    for (i = 0; i < DLOCK_DEBT_MAX && link->barrier; i++) {
        factory->debts[i].lapses_at = DLOCKI_NEVER;   /* who knows when the server will obey */
    }
    if (cause == DLOCKI_OVERDUE && link->state == DLOCKI_UP && !link->refused) {
        dlocki_link_farewell(factory);
    }
    for (i = 0; i < DLOCK_DEBT_MAX; i++) {
        factory->debts[i].sent = false;
    }
    if (!link->proven) {
        dlocki_debts_put_off(factory);
    }
    dlocki_link_close(factory);
}

/* --- replies */

/* The server lives: what it still owed us was done before this answer, or never will be, and the
 * leases that may have come of it began before now. */
static void dlocki_heard(dlock_factory *factory)
{
    int i;
    for (i = 0; i < DLOCK_DEBT_MAX && factory->debt_count > 0; i++) {
        dlocki_debt *debt = &factory->debts[i];
        if (debt->used && debt->lapses_at == DLOCKI_NEVER) {
            debt->lapses_at = dlocki_debt_lapses(factory, debt);
        }
    }
}

static void dlocki_answer_debt(dlock_factory *factory, dlocki_debt *debt, int verdict_kind)
{
    debt->sent = false;
    switch (verdict_kind) {
    case DLOCKI_FLAGS:
    case DLOCKI_REFUSAL:   /* trying again would not help: it lapses */
        dlocki_debt_pay(factory, debt);
        break;
    default:
        debt->due_at = dlocki_plus(factory->now, dlocki_debt_pause_ms(factory));
        break;
    }
}

static void dlocki_answer_handshake(dlock_factory *factory, const dlocki_verdict *verdict)
{
    dlocki_link *link = &factory->link;
    dlock_error why;
    if (verdict->kind == DLOCKI_FINE || link->refused) {
        return;
    }
    if (verdict->kind == DLOCKI_LATER) {   /* turned away at the door: nothing was executed */
        dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, 0, verdict->says);
        dlocki_link_fail(factory, DLOCKI_UNCONNECTED, &why);
        return;
    }
    link->refused = true;
    dlocki_say_server(factory, &link->refusal, DLOCK_REFUSED, 0,
                      verdict->says != NULL ? verdict->says : "refuses the handshake");
}

static void dlocki_answer_lock(dlock_factory *factory, dlock_lock *lock, dlocki_verdict *verdict)
{
    dlocki_link *link = &factory->link;
    dlock_error why;
    dlocki_event in;
    memset(&in, 0, sizeof in);
    in.kind = DLOCKI_REPLIED;
    if (link->refused && lock->_verb != DLOCKI_ACQUIRE) {   /* it stands where we cannot be heard */
        dlocki_feed_kind(factory, lock, DLOCKI_UNCONNECTED, &link->refusal);
        return;
    }
    if (link->refused) {   /* perhaps another user, perhaps another database */
        if (verdict->kind == DLOCKI_GRANTED || verdict->kind == DLOCKI_DOUBT) {
            dlocki_owe(factory, lock, link->generation);
        }
        verdict->kind = DLOCKI_REFUSAL;
        in.why = &link->refusal;
    } else if (verdict->says != NULL) {
        dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, 0, verdict->says);
        in.why = &why;
    }
    in.verdict = *verdict;
    dlocki_feed(factory, lock, &in);
}

/* One whole reply is in link->reply. `more`: bytes follow it. */
static void dlocki_answer(dlock_factory *factory, bool more)
{
    dlocki_link *link = &factory->link;
    dlocki_flight flight = link->flights[link->flight_first];
    dlocki_verdict verdict;
    verdict = dlocki_judge(flight.kind, flight.fenced, flight.expiry_ms, &link->reply);
    /* A reply too many means that none can be matched: this one is not believed either. */
    if (link->flight_count == 0 || (link->flight_count == 1 && more) ||
        verdict.kind == DLOCKI_GARBAGE) {
        dlock_error why;
        dlocki_say_server(factory, &why, DLOCK_PROTOCOL, 0,
                          "sent something that is no answer to what was asked");
        dlocki_link_fail(factory, DLOCKI_BABBLE, &why);
        return;
    }
    link->flight_first = (link->flight_first + 1) % DLOCKI_FLIGHT_MAX;
    link->flight_count--;
    link->stale = link->stale || verdict.elsewhere;
    if (flight.kind > DLOCKI_PING && verdict.kind <= DLOCKI_FLAGS) {
        link->proven = true;
        link->scripted = link->scripted || flight.kind != DLOCKI_SET;
        link->failures = 0;
    }
    if (flight.kind == DLOCKI_PING) {   /* any answer is one */
        link->barrier = false;
        dlocki_heard(factory);
    } else if (flight.kind < DLOCKI_PING) {
        dlocki_answer_handshake(factory, &verdict);
    } else if (flight.debt >= 0) {
        dlocki_debt *debt = &factory->debts[flight.debt];
        if (link->refused && debt->bound_to == 0) {
            debt->sent = false;   /* what this connection says of it means nothing */
        } else {
            dlocki_answer_debt(factory, debt, verdict.kind);
        }
    } else if (flight.lock != NULL) {
        dlocki_answer_lock(factory, flight.lock, &verdict);
    }
}

/* Parses bytes that have come in; false: the connection was given up. */
static bool dlocki_link_take(dlock_factory *factory, size_t count)
{
    dlocki_link *link = &factory->link;
    unsigned generation = link->generation;
    dlock_error why;
    bool partial;
    bool fed = redisReaderFeed(link->reader, (const char *)link->in, count) == REDIS_OK;
    while (fed && link->reader->len > link->reader->pos) {
        void *parsed = NULL;
        link->reply.strange = false;
        fed = redisReaderGetReply(link->reader, &parsed) == REDIS_OK;
        if (parsed == NULL) {
            break;
        }
        dlocki_answer(factory, link->reader->len > link->reader->pos);
        if (link->generation != generation) {
            return false;
        }
    }
    /* The beginning of a reply that nobody waits for is as bad as a whole one. */
    partial = link->reader->ridx != -1;
    if (fed && link->reader->len - link->reader->pos <= DLOCKI_REPLY_MAX &&
        (!partial || link->flight_count > 0)) {
        return true;
    }
    if (!fed && link->reader->err == REDIS_ERR_OOM && !link->reply.strange) {
        dlocki_say_server(factory, &why, DLOCK_MEMORY, ENOMEM,
                          "sent an answer for which no memory is left");
        dlocki_link_fail(factory, DLOCKI_CUT, &why);
    } else {
        dlocki_say_server(factory, &why, DLOCK_PROTOCOL, 0,
                          "sent something that is no answer to what was asked");
        dlocki_link_fail(factory, DLOCKI_BABBLE, &why);
    }
    return false;
}

/* Reads what is there, within bounds: whoever floods us does not keep us from our timers. */
static void dlocki_link_read(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    int i;
    for (i = 0; i < 16; i++) {
        long got = factory->kernel->receive(factory->world, link->fd, link->in, sizeof link->in);
        if (got == -EAGAIN || got == -EWOULDBLOCK) {
            return;
        }
        if (got <= 0) {
            dlock_error why;
            dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, (int)-got, "closed the connection");
            dlocki_link_fail(factory, DLOCKI_CUT, &why);
            return;
        }
        link->used_at = factory->now;
        if (!dlocki_link_take(factory, (size_t)got) || (size_t)got < sizeof link->in) {
            return;
        }
    }
}

static void dlocki_link_timers(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    if (link->state == DLOCKI_CONNECTING && factory->now >= link->connect_deadline) {
        dlocki_connect_next(factory, ETIMEDOUT);
    } else if (link->state == DLOCKI_UP && link->flight_count > 0 &&
               factory->now >= link->flights[link->flight_first].deadline) {
        dlock_error why;
        dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, ETIMEDOUT, "did not answer in time");
        dlocki_link_fail(factory, DLOCKI_OVERDUE, &why);
    }
}

/* --- sending */

/* Is there a connection on which commands may be sent now? Makes one if there is none. */
static bool dlocki_link_ready(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    if (link->state == DLOCKI_UP && factory->now - link->used_at >= DLOCKI_QUIET_MS) {
        dlocki_link_read(factory);   /* it may have ended, or say something unasked */
        dlocki_link_timers(factory);   /* or owe an answer for too long: no more for it */
    }
    if (link->state == DLOCKI_UP && link->refused) {
        dlocki_pump_debts(factory, link->generation);
        dlocki_flush(factory);
    }
    if (link->state == DLOCKI_UP && link->flight_count == 0 && (link->stale || link->refused)) {
        dlocki_debts_put_off(factory);
        dlocki_link_close(factory);
    }
    if (link->state == DLOCKI_DOWN) {
        dlocki_link_open(factory);
    }
    return link->state == DLOCKI_UP && !link->refused && !link->barrier;
}

/* What is owed on a key travels ahead of a new ask, even if it was told "later": else the ask
 * would find our own leftover and call it somebody else's. */
static void dlocki_pump_debts_of(dlock_factory *factory, const dlock_lock *lock)
{
    bool found = false;
    int i;
    for (i = 0; i < DLOCK_DEBT_MAX && factory->debt_count > 0; i++) {
        dlocki_debt *debt = &factory->debts[i];
        if (debt->used && !debt->sent && debt->key_length == lock->_key_length &&
            memcmp(debt->key, lock->_key, debt->key_length) == 0) {
            debt->due_at = factory->now;
            found = true;
        }
    }
    if (found) {
        dlocki_pump_debts(factory, 0);
    }
}

/* Sends one handle's command, if there is room for what may have to be undone later. */
static bool dlocki_pump_lock(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_command command = dlocki_lock_command(lock);
    if (lock->_verb == DLOCKI_ACQUIRE) {
        if (factory->debt_count == DLOCK_DEBT_MAX) {
            dlock_error why;
            dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, 0,
                              "has not yet undone as many locks as can be remembered");
            lock->_unsent = false;
            dlocki_feed_kind(factory, lock, DLOCKI_UNCONNECTED, &why);
            return true;
        }
        if (factory->debt_count + factory->link.flight_count >= DLOCK_DEBT_MAX) {
            return false;
        }
        dlocki_pump_debts_of(factory, lock);
        if (command.kind == DLOCKI_SET && !factory->link.scripted) {
            command.kind = DLOCKI_ASK;   /* where scripts are forbidden nothing can be given back */
        }
    }
    if (!dlocki_launch(factory, &command, lock, -1)) {
        return false;
    }
    lock->_unsent = false;
    dlocki_feed_kind(factory, lock, DLOCKI_SENT, NULL);
    return true;
}

static bool dlocki_is_idle(const dlock_factory *factory)
{
    const dlock_lock *lock;
    int i;
    for (lock = factory->pending; lock != NULL; lock = lock->_next) {
        if (lock->_unsent) {
            return false;
        }
    }
    for (i = 0; i < DLOCK_DEBT_MAX && factory->debt_count > 0; i++) {
        const dlocki_debt *debt = &factory->debts[i];
        if (debt->used && !debt->sent && factory->now >= debt->due_at) {
            return false;
        }
    }
    return true;
}

static bool dlocki_pump_locks(dlock_factory *factory, bool unknown)
{
    dlock_lock *lock = factory->pending;
    while (lock != NULL) {
        dlock_lock *next = lock->_next;
        if (lock->_unsent && lock->_unknown == unknown && !dlocki_pump_lock(factory, lock)) {
            return false;
        }
        lock = next;
    }
    return true;
}

/* Sends what waits to be sent: debts first, so that an undo travels ahead of a new try. */
static void dlocki_pump(dlock_factory *factory)
{
    if (dlocki_is_idle(factory)) {
        return;
    }
    if (dlocki_link_ready(factory)) {
        dlocki_pump_debts(factory, 0);
        /* First those that were sent before, and may become debts, then new ones. */
        if (dlocki_pump_locks(factory, true)) {
            (void)dlocki_pump_locks(factory, false);
        }
    }
    dlocki_flush(factory);
}

/* --- time and the wait */

static int64_t dlocki_next_wake(const dlock_factory *factory)
{
    const dlocki_link *link = &factory->link;
    const dlock_lock *lock;
    int64_t at = factory->ends_at;
    int i;
    if (link->state == DLOCKI_DOWN && !dlocki_is_idle(factory)) {
        return factory->now;   /* it was lost while sending: a new one, at once */
    }
    if (link->state == DLOCKI_CONNECTING) {
        at = dlocki_least(at, link->connect_deadline);
    } else if (link->flight_count > 0) {
        at = dlocki_least(at, link->flights[link->flight_first].deadline);
    }
    for (lock = factory->pending; lock != NULL; lock = lock->_next) {
        at = dlocki_least(at, dlocki_least(lock->_deadline, lock->_wake_at));
    }
    for (i = 0; i < DLOCK_DEBT_MAX && factory->debt_count > 0; i++) {
        const dlocki_debt *debt = &factory->debts[i];
        if (debt->used && !debt->sent && debt->due_at > factory->now) {
            at = dlocki_least(at, debt->due_at);
        }
    }
    return at;
}

static void dlocki_timers(dlock_factory *factory)
{
    dlock_lock *lock;
    dlocki_link_timers(factory);
    lock = factory->pending;
    while (lock != NULL) {
        dlock_lock *next = lock->_next;
        if (factory->now >= dlocki_least(lock->_deadline, lock->_wake_at)) {
            dlocki_feed_kind(factory, lock, DLOCKI_TIME, NULL);
        }
        lock = next;
    }
}

static void dlocki_cancels(dlock_factory *factory)
{
    dlock_lock *lock = factory->pending;
    dlocki_drain(factory->wake_fd);
    while (lock != NULL) {
        dlock_lock *next = lock->_next;
        if (dlocki_load(&lock->_claim) == DLOCKI_CANCELLED) {
            dlocki_feed_kind(factory, lock, DLOCKI_CANCEL, NULL);
        }
        lock = next;
    }
}

static bool dlocki_wants_write(const dlocki_link *link)
{
    return link->state == DLOCKI_CONNECTING ||
           (link->state == DLOCKI_UP && link->out.from < link->out.to);
}

/* Waits for the kernel once, without the mutex, and deals with what came: answers before timers,
 * so that a process that was stopped finds the answers that came meanwhile. */
static void dlocki_wait(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    unsigned generation = link->generation;
    int64_t until = dlocki_next_wake(factory);
    int64_t timeout = until < DLOCKI_NEVER || factory->now == DLOCKI_NEVER
                          ? dlocki_most(0, until - factory->now)
                          : -1;
    struct pollfd fds[2];
    fds[0].fd = factory->wake_fd;
    fds[0].events = POLLIN;
    fds[0].revents = 0;
    fds[1].fd = link->state == DLOCKI_DOWN ? -1 : link->fd;
    fds[1].events = (short)(POLLIN | (dlocki_wants_write(link) ? POLLOUT : 0));
    fds[1].revents = 0;
    factory->leading = true;
    factory->plan_generation = generation;
    factory->plan_writes = dlocki_wants_write(link);
    factory->plan_until = until;
    dlocki_books_unlock(factory);
    (void)factory->kernel->wait(factory->world, fds, 2, (int)dlocki_least(timeout, INT_MAX));
    dlocki_books_lock(factory);
    factory->leading = false;
    factory->now = factory->kernel->now(factory->world);
    if (fds[1].revents != 0 && link->generation == generation) {
        if (link->state == DLOCKI_CONNECTING) {
            dlocki_link_connected(factory);
        } else {
            if ((fds[1].revents & ~POLLOUT) != 0) {
                dlocki_link_read(factory);
            }
            dlocki_flush(factory);
        }
    }
    if (fds[0].revents != 0) {
        dlocki_cancels(factory);
    }
    dlocki_timers(factory);
}

/* Is the one who waits for the kernel unaware of something that was changed meanwhile? */
static bool dlocki_plan_is_old(const dlock_factory *factory)
{
    return factory->plan_generation != factory->link.generation ||
           (dlocki_wants_write(&factory->link) && !factory->plan_writes) ||
           dlocki_next_wake(factory) < factory->plan_until;
}

/* Puts a call under way. */
static void dlocki_begin(dlock_factory *factory, dlock_lock *lock, int verb)
{
    if (lock->_state == DLOCKI_OURS) {
        dlocki_list_remove(factory, lock);
    }
    lock->_verb = verb;
    dlocki_pending_append(factory, lock);
    dlocki_feed_kind(factory, lock, DLOCKI_STARTED, NULL);
}

/* The calling thread's part: one of those who wait drives for all, the others sleep. */
static void dlocki_drive(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_pump(factory);
    while (lock->_verb != DLOCKI_NO_VERB) {
        if (factory->leading) {
            dlocki_condition woken;
            if (dlocki_plan_is_old(factory)) {
                dlocki_wake(factory->wake_fd);
            }
            dlocki_condition_open(&woken);
            lock->_sleeper = &woken;
            dlocki_books_sleep(factory, &woken);
            lock->_sleeper = NULL;
            dlocki_condition_close(&woken);
        } else {
            dlocki_wait(factory);
        }
        dlocki_pump(factory);
    }
    /* Somebody must go on for those who still wait. */
    if (!factory->leading) {
        dlock_lock *other = factory->pending;
        while (other != NULL && other->_sleeper == NULL) {
            other = other->_next;
        }
        if (other != NULL) {
            dlocki_condition_signal((dlocki_condition *)other->_sleeper);
        }
    }
}

/* ----------------------------------------------------------------------------- room 9: drivers */
/* The public functions: check the caller, start, drive. */

static bool dlocki_say_argument(dlock_error *error, const char *text)
{
    return dlocki_say(error, DLOCK_ARGUMENT, 0, "%s", text);
}

/* --- open and close */

static bool dlocki_config_check(const dlock_config *config, dlock_error *error)
{
    const char *c;
    if (config->connect_timeout_ms < 0 || config->command_timeout_ms < 0) {
        return dlocki_say_argument(error, "A timeout in the config is negative.");
    }
    if ((config->alloc == NULL) != (config->free == NULL)) {
        return dlocki_say_argument(error, "The config has only one of alloc and free.");
    }
    if ((config->username != NULL && strlen(config->username) > DLOCKI_SECRET_MAX) ||
        (config->password != NULL && strlen(config->password) > DLOCKI_SECRET_MAX)) {
        return dlocki_say(error, DLOCK_ARGUMENT, 0,
                          "The config's user or password is longer than %d bytes.",
                          DLOCKI_SECRET_MAX);
    }
    if (config->client_name != NULL) {
        for (c = config->client_name; *c > ' ' && *c <= '~'; c++) {
        }
        if (*c != 0 || c - config->client_name > DLOCKI_NAME_MAX) {
            return dlocki_say(error, DLOCK_ARGUMENT, 0,
                              "The client name has a blank or a control byte, or is longer than "
                              "%d bytes.",
                              DLOCKI_NAME_MAX);
        }
    }
    return true;
}

/* The config's user and password stand in for the URL's. */
static bool dlocki_config_apply(dlock_factory *factory, const dlock_config *config,
                                dlock_error *error)
{
    dlocki_url *url = &factory->url;
    if (config->username != NULL) {
        url->username_length = strlen(config->username);
        memcpy(url->username, config->username, url->username_length);
    }
    if (config->password != NULL) {
        url->password_length = strlen(config->password);
        memcpy(url->password, config->password, url->password_length);
        url->has_password = true;
    }
    if (url->username_length > 0 && !url->has_password) {
        return dlocki_say_argument(error, "There is a user without a password; write user:@ if "
                                          "it has none.");
    }
    factory->connect_timeout_ms = config->connect_timeout_ms > 0 ? config->connect_timeout_ms
                                                                 : DLOCK_DEFAULT_CONNECT_TIMEOUT_MS;
    factory->command_timeout_ms = config->command_timeout_ms > 0 ? config->command_timeout_ms
                                                                 : DLOCK_DEFAULT_COMMAND_TIMEOUT_MS;
    if (config->client_name != NULL) {
        memcpy(factory->client_name, config->client_name, strlen(config->client_name));
    }
    return true;
}

static void dlocki_factory_free(dlock_factory *factory)
{
    void (*release)(void *, void *) = factory->free;
    void *user = factory->user;
    dlocki_wipe(factory, sizeof *factory);
    if (release != NULL) {
        release(factory, user);
    } else {
        DLOCK_FREE(factory);
    }
}

static bool dlocki_factory_start(dlock_factory *factory, dlock_error *error)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char random[8];
    int i;
    if (!dlocki_take_random(factory, random)) {
        return dlocki_say(error, DLOCK_UNREACHABLE, 0, "The system gives no random numbers.");
    }
    for (i = 0; i < 8; i++) {
        factory->id[2 * i] = digits[random[i] >> 4];
        factory->id[2 * i + 1] = digits[random[i] & 15];
    }
    factory->wake_fd = factory->kernel->wake_fd(factory->world);
    if (factory->wake_fd < 0) {
        return dlocki_say(error, DLOCK_UNREACHABLE, -factory->wake_fd,
                          "The system has no descriptor left.");
    }
    factory->pid = factory->kernel->pid(factory->world);
    factory->ends_at = DLOCKI_NEVER;
    factory->link.fd = -1;
    factory->link.generation = 1;
    dlocki_mutex_open(&factory->mutex);
    dlocki_condition_open(&factory->left);
    return true;
}

/* dlock_open in a world of one's own. */
static dlock_factory *dlocki_open_in(const dlocki_kernel *kernel, void *world, const char *url,
                                     const dlock_config *config, dlock_error *error)
{
    dlock_config none;
    dlock_factory *factory;
    memset(&none, 0, sizeof none);
    if (config == NULL) {
        config = &none;
    }
    if (!dlocki_config_check(config, error)) {
        return NULL;
    }
    factory = (dlock_factory *)(config->alloc != NULL ? config->alloc(sizeof *factory, config->user)
                                                      : DLOCK_MALLOC(sizeof *factory));
    if (factory == NULL) {
        dlocki_say(error, DLOCK_MEMORY, ENOMEM, "%s", dlock_code_text(DLOCK_MEMORY));
        return NULL;
    }
    memset(factory, 0, sizeof *factory);
    factory->kernel = kernel;
    factory->world = world;
    factory->alloc = config->alloc;
    factory->free = config->free;
    factory->user = config->user;
    if (!dlocki_url_parse(url, &factory->url, error) ||
        !dlocki_config_apply(factory, config, error) || !dlocki_factory_start(factory, error)) {
        dlocki_factory_free(factory);
        return NULL;
    }
    if (error != NULL) {
        dlocki_say_ok(error);
    }
    return factory;
}

DLOCK_DEF dlock_factory *dlocki_open(const char *url, const dlock_config *config,
                                     dlock_error *error, size_t lock_size, int version)
{
    if (lock_size != sizeof(dlock_lock) || version != DLOCK_VERSION) {
        dlocki_say_argument(error, "This file and the one with DLOCK_IMPLEMENTATION were compiled "
                                   "with another dlock.h or another DLOCK_KEY_MAX.");
        return NULL;
    }
    return dlocki_open_in(&dlocki_linux, NULL, url, config, error);
}

/* Gives back what is held and pays what is owed, until all is answered or the time is up. */
static void dlocki_close_drive(dlock_factory *factory)
{
    dlock_lock *lock;
    int i;
    factory->now = factory->kernel->now(factory->world);
    factory->ends_at = dlocki_plus(factory->now, factory->command_timeout_ms);
    for (i = 0; i < DLOCK_DEBT_MAX; i++) {
        factory->debts[i].due_at = factory->now;   /* no time to put anything off */
    }
    while (factory->held != NULL) {
        lock = factory->held;
        if (lock->_degraded) {   /* nothing stands on the server for it */
            dlocki_list_remove(factory, lock);
            lock->_state = DLOCKI_UNUSED;
            lock->_factory = NULL;
        } else {
            dlocki_begin(factory, lock, DLOCKI_RELEASE);
            lock->_whole = true;   /* as for a debt */
        }
    }
    while ((factory->pending != NULL || factory->debt_count > 0) &&
           factory->now < factory->ends_at) {
        dlocki_pump(factory);
        if (factory->pending != NULL || factory->debt_count > 0) {
            dlocki_wait(factory);
        }
    }
    while (factory->pending != NULL) {
        dlocki_feed_kind(factory, factory->pending, DLOCKI_CANCEL, NULL);
    }
}

DLOCK_DEF void dlock_close(dlock_factory *factory)
{
    if (factory == NULL) {
        return;
    }
    if (factory->kernel->pid(factory->world) == factory->pid) {
        dlock_lock *lock;
        dlock_lock *next;
        dlocki_books_lock(factory);
        factory->closing = true;
        for (lock = factory->pending; lock != NULL; lock = next) {
            next = lock->_next;
            dlocki_feed_kind(factory, lock, DLOCKI_CANCEL, NULL);
        }
        dlocki_wake(factory->wake_fd);
        while (factory->inside > 0) {
            dlocki_books_sleep(factory, &factory->left);
        }
        dlocki_close_drive(factory);
        dlocki_books_unlock(factory);
        dlocki_condition_close(&factory->left);
        dlocki_mutex_close(&factory->mutex);
    } else if (dlocki_load(&factory->writing) != 0) {
        factory->link.reader = NULL;   /* forked in the middle of something: better leaked */
    }
    dlocki_link_close(factory);
    factory->kernel->close(factory->world, factory->wake_fd);
    dlocki_factory_free(factory);
}

/* --- the verbs */

/* Everything in the options that a zero stands for. */
static dlock_options dlocki_options_filled(const dlock_options *options)
{
    dlock_options filled;
    memset(&filled, 0, sizeof filled);
    if (options != NULL) {
        filled = *options;
    }
    if (filled.expiry_ms == 0) {
        filled.expiry_ms = DLOCK_DEFAULT_EXPIRY_MS;
    }
    return filled;
}

static const char *dlocki_options_fault(const dlock_options *options)
{
    if (!dlocki_expiry_is_legal(options->expiry_ms)) {
        return "expiry_ms is negative, not above its own drift (1 % + 2 ms), or above 30 days.";
    }
    if (options->retry_count < DLOCK_FOREVER || options->wait_ms < DLOCK_FOREVER) {
        return "retry_count or wait_ms is negative and not DLOCK_FOREVER.";
    }
    if (options->retry_delay_ms < 0 || options->retry_jitter_ms < 0) {
        return "retry_delay_ms or retry_jitter_ms is negative.";
    }
    return NULL;
}

static const char dlocki_fork_fault[] =
    "This process did not open the factory: after fork() the child opens its own.";

/* Was the lock acquired by this very process? The factory is not touched: a child may have closed
 * it. */
static bool dlocki_is_native(const dlock_lock *lock)
{
    return lock->_kernel->pid(lock->_world) == lock->_pid;
}

/* Runs one call, from its start to its answer. */
static bool dlocki_call(dlock_factory *factory, dlock_lock *lock, int verb)
{
    bool answer = false;
    dlocki_books_lock(factory);
    if (factory->closing) {
        dlocki_say(&lock->_why, DLOCK_CANCELLED, 0, "The factory is being closed.");
    } else {
        factory->inside++;
        factory->now = factory->kernel->now(factory->world);
        dlocki_begin(factory, lock, verb);
        if (dlocki_load(&lock->_claim) == DLOCKI_CANCELLED && lock->_verb != DLOCKI_NO_VERB) {
            dlocki_feed_kind(factory, lock, DLOCKI_CANCEL, NULL);   /* before anybody looked */
        }
        dlocki_drive(factory, lock);
        answer = lock->_answer;
        factory->inside--;
        if (factory->closing && factory->inside == 0) {
            dlocki_condition_signal(&factory->left);
        }
    }
    dlocki_books_unlock(factory);
    return answer;
}

static bool dlocki_acquire_check(dlock_factory *factory, dlock_lock *lock, const char *key,
                                 const dlock_options *options)
{
    const char *fault = NULL;
    size_t length = options->key_length;
    if (factory == NULL) {
        fault = "The factory is NULL: dlock_open failed, or was not called.";
    } else if (factory->kernel->pid(factory->world) != factory->pid) {
        fault = dlocki_fork_fault;
    }
    if (fault == NULL && lock->_state == DLOCKI_OURS) {
        fault = "The handle is in use: release or forget its lock first.";
    }
    if (fault == NULL) {
        fault = dlocki_options_fault(options);
    }
    if (fault == NULL && key == NULL) {
        fault = "The key is NULL.";
    }
    if (fault != NULL) {
        return dlocki_say_argument(&lock->_why, fault);
    }
    if (length == 0) {
        length = strnlen(key, DLOCK_KEY_MAX + 1);
    }
    if (length == 0 || length > DLOCK_KEY_MAX) {
        return dlocki_say(&lock->_why, DLOCK_ARGUMENT, 0,
                          "The key is empty or longer than %d bytes.", DLOCK_KEY_MAX);
    }
    memcpy(lock->_key, key, length);
    lock->_key_length = (unsigned short)length;
    return true;
}

/* Makes the handle new, all but the key and the claim. */
static void dlocki_acquire_prepare(dlock_factory *factory, dlock_lock *lock,
                                   const dlock_options *options)
{
    lock->_state = DLOCKI_UNUSED;
    lock->_factory = factory;
    lock->_kernel = factory->kernel;
    lock->_world = factory->world;
    lock->_pid = factory->pid;
    lock->_self = lock;
    lock->_sleeper = NULL;
    lock->_expiry_ms = options->expiry_ms;
    lock->_ask_expiry_ms = options->expiry_ms;
    lock->_wait_ms = options->wait_ms;
    lock->_retry_count = options->retry_count;
    lock->_retry_delay_ms = options->retry_delay_ms;
    lock->_retry_jitter_ms = options->retry_jitter_ms;
    lock->_no_fence = options->no_fence;
    lock->_fail_open = options->fail_open;
    lock->_degraded = false;
    lock->_attempts = 0;
    lock->_fence = 0;
    lock->_valid_until = 0;
    dlocki_store(&lock->_wake_fd, factory->wake_fd);
}

DLOCK_DEF bool dlock_acquire(dlock_factory *factory, dlock_lock *lock, const char *key,
                             const dlock_options *options)
{
    dlock_options filled = dlocki_options_filled(options);
    bool answer = false;
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (dlocki_acquire_check(factory, lock, key, &filled)) {
        dlocki_acquire_prepare(factory, lock, &filled);
        dlocki_store(&lock->_claim, DLOCKI_CANCELLABLE);
        answer = dlocki_call(factory, lock, DLOCKI_ACQUIRE);
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return answer;
}

/* May extend or release do something with this handle? If not, dlock_why says why not. */
static bool dlocki_held_check(dlock_lock *lock)
{
    const char *fault = NULL;
    if (lock->_state == DLOCKI_GIVEN_BACK) {
        return dlocki_say(&lock->_why, DLOCK_LOST, 0,
                          "The lock was given back, or lost, before this call.");
    }
    if (lock->_state == DLOCKI_UNUSED) {
        fault = "The handle holds no lock.";
    } else if (lock->_self != lock) {
        fault = "The handle was copied or moved; only the original may be used.";
    } else if (!dlocki_is_native(lock)) {
        fault = dlocki_fork_fault;
    }
    return fault == NULL || dlocki_say_argument(&lock->_why, fault);
}

DLOCK_DEF bool dlock_extend(dlock_lock *lock, int64_t expiry_ms)
{
    bool answer = false;
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (dlocki_held_check(lock)) {
        lock->_ask_expiry_ms = expiry_ms == 0 ? lock->_expiry_ms : expiry_ms;
        if (!dlocki_expiry_is_legal(lock->_ask_expiry_ms)) {
            dlocki_say_argument(&lock->_why, "The expiry is negative, not above its own drift (1 % "
                                             "+ 2 ms), or above 30 days.");
        } else if (lock->_state == DLOCKI_OWED) {
            dlocki_say(&lock->_why, DLOCK_LOST, 0, "A release was sent before this call.");
        } else if (lock->_degraded) {
            int64_t now = lock->_kernel->now(lock->_world);
            lock->_valid_until = dlocki_most(
                lock->_valid_until,
                dlocki_plus(now, lock->_ask_expiry_ms - dlocki_drift_ms(lock->_ask_expiry_ms)));
            dlocki_say_ok(&lock->_why);
            answer = true;
        } else {
            answer = dlocki_call(lock->_factory, lock, DLOCKI_EXTENSION);
        }
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return answer;
}

/* Takes a held handle out of its factory's books. */
static void dlocki_let_go(dlock_lock *lock, int state)
{
    dlock_factory *factory = lock->_factory;
    if (lock->_state == DLOCKI_OURS && dlocki_is_native(lock)) {
        dlocki_books_lock(factory);
        dlocki_list_remove(factory, lock);
        dlocki_books_unlock(factory);
    }
    dlocki_wipe(lock->_owner, sizeof lock->_owner);
    lock->_state = state;
    lock->_factory = NULL;
    lock->_fence = 0;
}

DLOCK_DEF bool dlock_release(dlock_lock *lock)
{
    bool answer = false;
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (dlocki_held_check(lock)) {
        if (lock->_degraded) {
            dlocki_let_go(lock, DLOCKI_GIVEN_BACK);
            dlocki_say_ok(&lock->_why);
            answer = true;
        } else {
            answer = dlocki_call(lock->_factory, lock, DLOCKI_RELEASE);
        }
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return answer;
}

DLOCK_DEF void dlock_forget(dlock_lock *lock)
{
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return;
    }
    if (lock->_self == lock) {
        dlocki_let_go(lock, DLOCKI_UNUSED);
        dlocki_say_ok(&lock->_why);
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
}

DLOCK_DEF void dlock_cancel(dlock_lock *lock)
{
    if (lock != NULL && dlocki_swap(&lock->_claim, DLOCKI_CANCELLABLE, DLOCKI_CANCELLED)) {
        dlocki_wake(dlocki_load(&lock->_wake_fd));
    }
}

/* --- questions */

/* Is it in the books as ours? Not what a copy, or a child after fork(), holds. */
static bool dlocki_is_ours(const dlock_lock *lock)
{
    return lock != NULL && lock->_self == lock && lock->_state == DLOCKI_OURS &&
           dlocki_is_native(lock);
}

DLOCK_DEF int64_t dlock_remaining_ms(const dlock_lock *lock)
{
    if (!dlocki_is_ours(lock)) {
        return 0;
    }
    return dlocki_most(0, dlocki_plus(lock->_valid_until, -lock->_kernel->now(lock->_world)));
}

DLOCK_DEF bool dlock_is_acquired(const dlock_lock *lock)
{
    return dlock_remaining_ms(lock) > 0;
}

DLOCK_DEF bool dlock_is_degraded(const dlock_lock *lock)
{
    return dlocki_is_ours(lock) && lock->_degraded;
}

DLOCK_DEF uint64_t dlock_fence(const dlock_lock *lock)
{
    return dlocki_is_ours(lock) ? lock->_fence : 0;
}

DLOCK_DEF const char *dlock_owner(const dlock_lock *lock)
{
    return dlocki_is_ours(lock) && !lock->_degraded ? lock->_owner : "";
}

DLOCK_DEF const dlock_error *dlock_why(const dlock_lock *lock)
{
    static const dlock_error null_handle = {DLOCK_ARGUMENT, -1, 0, "The handle is NULL."};
    return lock != NULL ? &lock->_why : &null_handle;
}

/* ----------------------------------------------------------------------- room 10: scope helpers */

DLOCK_DEF void dlocki_scope_end(dlock_lock *lock)
{
    if (lock->_self == lock && lock->_state == DLOCKI_OURS) {
        (void)dlock_release(lock);
    }
}

#endif /* DLOCK_IMPLEMENTATION */

/*
REVISION HISTORY
    0.1.0  The first version: one server, retry, fence, undo.

LICENCE
dlock is available under two licences. Choose whichever you prefer.

------------------------------------------------------------------------------
ALTERNATIVE A - MIT License

Copyright (c) 2026 the authors of dlock

Permission is hereby granted, free of charge, to any person obtaining a copy of
this software and associated documentation files (the "Software"), to deal in
the Software without restriction, including without limitation the rights to
use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies
of the Software, and to permit persons to whom the Software is furnished to do
so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.

------------------------------------------------------------------------------
ALTERNATIVE B - Public Domain (The Unlicense)

This is free and unencumbered software released into the public domain.

Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
software, either in source code form or as a compiled binary, for any purpose,
commercial or non-commercial, and by any means.

In jurisdictions that recognize copyright laws, the author or authors of this
software dedicate any and all copyright interest in the software to the public
domain. We make this dedication for the benefit of the public at large and to
the detriment of our heirs and successors. We intend this dedication to be an
overt act of relinquishment in perpetuity of all present and future rights to
this software under copyright law.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

For more information, please refer to <https://unlicense.org>
------------------------------------------------------------------------------
*/
