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
    X(OK, 0, "done") \
    X(BUSY, 1, "somebody else holds the lock") \
    X(TIMEOUT, 2, "the time to wait ended while somebody else held the lock") \
    X(CANCELLED, 3, "the call was cancelled") \
    X(LOST, 4, "the lock is not ours any more") \
    X(UNREACHABLE, 5, "no server could tell") \
    X(REFUSED, 6, "the server refuses, and trying again would not help") \
    X(PROTOCOL, 7, "the server sent something that is no answer to what was asked") \
    X(MEMORY, 8, "no memory") \
    X(ARGUMENT, 9, "the caller broke a documented rule")

#define DLOCK_CODE(name, number, text) DLOCK_##name = number,
enum dlock_code { DLOCK_CODES(DLOCK_CODE) };
#undef DLOCK_CODE

/* What went wrong. `text` is one sentence in printable ASCII; it names the server, and never a
 * password, an owner, or words that a server sent. */
typedef struct dlock_error {
    int code;       /* enum dlock_code                                          */
    int node;       /* which server, counted from 0; -1 = none in particular    */
    int os_errno;   /* what the system said; 0 = nothing                        */
    char text[192];
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
    bool no_fence;             /* skip the fencing counter: dlock_fence is 0, and one attempt
                                  is a plain SET NX PX                                         */
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
    int _state;                   /* unused, held, given back, owed                  */
    int _verb;                    /* the call that is under way; 0 = none            */
    int _cancel;                  /* atomic; what dlock_cancel sees and sets         */
    int _wake_fd;                 /* atomic; what dlock_cancel writes to             */
    dlock_factory *_factory;
    dlock_lock *_self;            /* so that a copy is noticed                       */
    dlock_lock *_next;            /* in the factory's list of pending or held ones   */
    dlock_lock *_previous;
    void *_sleeper;               /* the blocked thread, unless it drives            */
    int64_t _deadline;            /* end of the call                                 */
    int64_t _wake_at;             /* end of the pause                                */
    int64_t _asked_at;            /* before the first send that may have been obeyed */
    int64_t _sent_at;             /* before the last send                            */
    int64_t _valid_until;
    int64_t _expiry_ms;           /* as acquired                                     */
    int64_t _ask_expiry_ms;       /* of the command under way                        */
    int64_t _wait_ms;
    uint64_t _fence;
    int32_t _retry_count;
    int32_t _retry_delay_ms;
    int32_t _retry_jitter_ms;
    int32_t _attempts;            /* ended without the lock                          */
    int32_t _again;               /* asked again within this attempt                 */
    bool _no_fence;
    bool _fail_open;
    bool _degraded;
    bool _answer;
    bool _unsent;                 /* a command waits for its connection              */
    bool _unknown;                /* a command of this owner may have been obeyed    */
    bool _whole;                  /* send the script itself, not its SHA-1           */
    bool _asked_by_script;
    char _owner[37];
    unsigned short _key_length;
    char _key[DLOCK_KEY_MAX];
    dlock_error _why;
};

#ifdef __cplusplus
#define DLOCK_INIT {}
#else
#define DLOCK_INIT {0}
#endif

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
#define DLOCK_SCOPED(name) \
    __attribute__((cleanup(dlocki_scope_end))) dlock_lock name = DLOCK_INIT

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
