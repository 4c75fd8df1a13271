/* dlock.h - v0.1.0 - a lock shared by many machines, on Redis - licence: end of file

CONTENTS
    WHAT IT IS - USE IT - WHAT IT GUARANTEES - WHAT IT DOES NOT - CONCEPTS - WAITING - RENEWAL -
    EVENT LOOP - THREADS - HOW LONG A CALL TAKES - MEMORY - MACROS - LIMITS OF THIS VERSION -
    REVISIONS

WHAT IT IS
    One header that lets only one process at a time do a thing, whatever machine it runs on. The
    lock is a key on a Redis (or Valkey) server, version 6.2 or later. It expires by itself, it is
    given back only by its owner, it is handed to whoever waits longest, and every lock comes with a
    number that only grows.

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
    1. While dlock_is_acquired() is true, and dlock_is_degraded() is not, nobody else was given this
       lock, as long as the server keeps what it acknowledged and its clock is not set forward.
    2. A lock is given back by its owner only. dlock_release() answers true if the lock was still
       ours and this very call gave it back; what is not ours is never touched.
    3. "Somebody holds it" (BUSY) and "nobody could tell" (UNREACHABLE) are never confused, and an
       acquire whose answer was lost leaves no lock behind: it is undone during later calls, or by
       dlock_close(), or it lapses with its lease.
    4. Who waits is served in the order in which he lined up on the server, by the very call that
       gives the lock back, as long as he lives and is connected, and the server lets that call
       tell him (PUBLISH, PUBSUB NUMSUB).

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
    that a dying connection delivers very late can take one lease, or one place in line, that nobody
    knows. Both lapse. The place of a process that is stopped, or of a host that vanished without
    closing its sockets, is served like any other, for one lease, until the server notices. Programs
    that poll the key without the queue can be faster than those who stand in line.

CONCEPTS
    key       the name of the lock, exactly the Redis key that holds it
    owner     proves that a lock is ours: random, and never used again once given back
    lease     the lock's life on the server; expiry is its length
    validity  what is left of the lease as far as this process can prove: counted from before the
              request was sent, less 1 % of the expiry and 2 ms for clocks that drift
    fence     the fencing token: a number below 2^53 that only grows, per key
    queue     the waiting line of a key, kept on the server; a ticket is one place in it
    inbox     a second connection, on which a factory is told things; made when it first waits
    hand-off  the release of one owner makes the first in line the next, and tells it
    debt      something that must be undone on the server and could not be undone yet
    The key K is a plain string set with SET NX PX and deleted if its value is still ours, so every
    other library that locks that way excludes us and is excluded by us. Two more keys stand beside
    it, {K}:fence and {K}:queue (K:dlock:fence and K:dlock:queue where K has a hash tag already).
    The fence is kept for a day after the last lock, or ten leases if that is longer.

WAITING
    dlock_acquire() tries at once. If somebody holds the lock and the options allow waiting, it
    stands in line, and the release of whoever is before it makes it the owner: it knows one round
    trip later. Nobody polls; each waiter asks again only when the holder's lease must have ended,
    at the latest after its own expiry or 30 s, and a little later for each place in line, in case a
    message was lost or a holder died. Where connections break, the place is kept.

    retry_count bounds the attempts, wait_ms the time; with both, whichever ends first; with neither
    there is one attempt. A grant that comes while standing in line uses no attempt. With
    retry_count, retry_delay_ms, or no_queue it asks again at a pace of its own as well: after 50 to
    250 ms at random, or after retry_delay_ms, and up to retry_jitter_ms more. A holder of another
    library tells nobody, and is polled at that pace, a little later for each place in line. While
    nothing can be connected the default pauses grow up to 2 s. dlock_cancel() ends the waiting at
    once.

RENEWAL
    With auto_renew the lease is renewed when a third of it has passed, again and again until the
    lock is given back or max_hold_ms is over; a renewal without an answer is repeated until the
    validity ends. Then, or as soon as the server says that the lock is somebody else's, it is LOST:
    dlock_is_acquired() is false, dlock_why() says LOST, and on_lost is called, once; but not where
    the program's own extend or release is the first to find out, and says so. An operator's
    dlock_break() is told at once if the inbox stands (auto_renew makes one), a deletion within a
    renewal's period. on_lost works without auto_renew, too, as long as somebody drives: another
    call on the factory, or dlock_process(). A lock that is lost is still to be released or
    forgotten before its handle may be freed.

EVENT LOOP
    Poll dlock_fd() for reading, among your other descriptors, and call dlock_process() when it is
    readable. That is all; timers are behind the same descriptor.

        static void got(dlock_lock *lock, bool answer, void *user)
        {
            if (answer) {
                work(user);
                dlock_release_start(lock, NULL, NULL);
            }
        }
        ...
        dlock_acquire_start(factory, &lock, "orders:42", &options, got, user);

    A factory never calls `done` from inside a start, and starts no thread for this. What is not
    processed in time is not renewed in time: then it is LOST.

THREADS
    A factory may be shared by any threads, and their commands travel together. It has no thread of
    its own, but for one that a blocking dlock_acquire() with auto_renew starts (all signals
    blocked, ended by dlock_close()): of the callers that wait, one reads for all. A dlock_lock has
    one user at a time; dlock_cancel() alone may be called beside a call on the same handle, from
    any thread or signal handler.
    on_lost and on_event run in whichever thread is driving, one at a time, holding no lock; every
    function but dlock_close() may be called in them. One that takes long holds up what that thread
    would have driven: renewals, if it is the factory's own. `done` runs in the thread that calls
    dlock_process() or dlock_close().
    A factory belongs to the process that opened it: after fork() every call in the child is false +
    ARGUMENT, no lock is held there, and the child's dlock_close() closes and frees, and sends
    nothing.

HOW LONG A CALL TAKES
    An acquire without waiting, an extend, a release, an inspect, a break: connect_timeout_ms +
    command_timeout_ms at most. dlock_close(): command_timeout_ms at most, and what callbacks take.
    What blocks beyond that: the lookup of a host name, when a connection is made.

MEMORY
    dlock_open() takes what a factory needs in one piece. Acquire, extend and release allocate
    nothing once connected; making a connection lets hiredis allocate its reader (through malloc)
    and the system look up names. Only two things grow: room for the debts that more than
    DLOCK_DEBT_MAX waiting handles may become, and what on_event has not been told yet. Whatever a
    server sends, what is kept of it is bounded. Passwords and owners are wiped when they are done
    with.

MACROS                       (define before the include)
    DLOCK_IMPLEMENTATION     this file also gets the code
    DLOCK_STATIC             everything static: private to this file; needs DLOCK_IMPLEMENTATION
    DLOCK_DEF                what stands before each function (default: extern, or static)
    DLOCK_MALLOC(n), DLOCK_FREE(p)   where memory comes from (default: malloc, free); both or none
    DLOCK_ASSERT(x)          checks of our own invariants (default: none)
    DLOCK_NO_THREADS         no mutex: a factory is used by one thread; no -lpthread; a blocking
                             acquire with auto_renew is ARGUMENT
    DLOCK_KEY_MAX            longest key in bytes (default: 256, up to 1024); the same in every file
    DLOCK_DEBT_MAX           debts with which a factory still asks for more (default: 64, 2 or more)

LIMITS OF THIS VERSION
    One server. No TLS.

REVISIONS
    0.1.0  the first: one server, retry, fence, undo, queue and hand-off, event loops, renewal
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

/* What went wrong. `text` is a sentence or two in printable ASCII; it names the server, and never a
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

typedef struct dlock_lock dlock_lock;     /* one lock, placed by the caller: "public: handles" */
typedef struct dlock_event dlock_event;   /* what config.on_event is told: "operators' tools"  */

/* Per factory. All zero = every default. Strings and functions are copied by dlock_open. */
typedef struct dlock_config {
    int32_t connect_timeout_ms;   /* for one connection, all its addresses; 0 = 1000           */
    int32_t command_timeout_ms;   /* for one answer, and never past the expiry; 0 = 1000       */
    const char *username;         /* instead of the URL's, up to 4096 bytes; NULL = the URL's  */
    const char *password;         /* instead of the URL's, up to 4096 bytes; NULL = the URL's  */
    const char *client_name;      /* CLIENT SETNAME; up to 64 printable bytes; NULL = none     */
    void *(*alloc)(size_t, void *user);     /* instead of DLOCK_MALLOC; NULL = that            */
    void (*free)(void *, void *user);       /* given with alloc, or not at all                 */
    void (*on_event)(const dlock_event *, void *user);   /* every transition, once; NULL = none */
    void *user;                   /* handed to alloc, free and on_event                        */
} dlock_config;

/* Per acquire. All zero = every default: one attempt, thirty seconds. */
typedef struct dlock_options {
    int64_t expiry_ms;         /* the lease, 3 ms to 30 days; 0 = 30000                        */
    int32_t retry_count;       /* attempts after the first; 0 = none, DLOCK_FOREVER            */
    int32_t retry_delay_ms;    /* longest pause between attempts; 0 = 50 to 250, at random     */
    int32_t retry_jitter_ms;   /* random addition to each pause; 0 = none                      */
    int64_t wait_ms;           /* keep trying for so long; 0 = only retry_count bounds it,
                                  DLOCK_FOREVER                                                */
    size_t key_length;         /* a key may hold any bytes; 0 = strlen(key)                    */
    bool no_queue;             /* poll at retry_delay_ms instead of standing in line           */
    bool no_fence;             /* skip the fencing counter: dlock_fence is 0; one attempt may
                                  be a plain SET NX PX, to which any key of that name is BUSY  */
    bool auto_renew;           /* renew the lease, at a third of it, until it is given back    */
    int64_t max_hold_ms;       /* auto_renew stops so long after the acquire; 0 = never        */
    bool fail_open;            /* UNREACHABLE counts as acquired, marked degraded              */
    void (*on_lost)(dlock_lock *lock, void *user);   /* see EVENT LOOP and THREADS; NULL = none */
    void *user;                /* handed to on_lost                                            */
} dlock_options;

/* ----------------------------------------------------------------------------- public: handles */

/* Connections and debts of one deployment; made by dlock_open. */
typedef struct dlock_factory dlock_factory;

/* How a call that was started ended: `answer` is what the blocking twin would have answered, and
 * dlock_why() says more. Runs once for each start that answered true, and only from dlock_process
 * or dlock_close; the handle is no longer pending, and may be reused or freed in here. */
typedef void dlock_done(dlock_lock *lock, bool answer, void *user);

/* All zero is unused (DLOCK_INIT). A handle may be reused or freed as soon as dlock_acquire has
 * answered false, after dlock_release whatever that answered, after dlock_forget, and from inside
 * `done`; never while held or pending, and it does not move meanwhile. The members are private. */
struct dlock_lock {
    int _state;                /* atomic: unused, ours, given back, owed                 */
    int _verb;                 /* the call or renewal under way; 0 = none                */
    int _claim;                /* atomic: is a call under way, may it be cancelled?      */
    int _wake_fd;              /* atomic: what dlock_cancel writes to                    */
    int _loss;                 /* atomic: how it was lost while nobody asked; 0 = it was not */
    dlock_factory *_factory;
    const struct dlocki_kernel *_kernel;
    void *_world;
    long _pid;                 /* who acquired it; a child after fork() did not          */
    dlock_lock *_self;         /* so that a copy is noticed                              */
    struct dlocki_list *_list; /* of the factory: pending, held, lost or told            */
    dlock_lock *_next;
    dlock_lock *_previous;
    struct dlocki_list *_line; /* of those whose command waits to be sent; NULL: it does not */
    uint64_t _arrival;         /* in the order in which calls were begun                 */
    dlock_lock *_line_next;
    dlock_lock *_line_previous;
    dlock_lock *_heap_child;   /* the factory's timers                                   */
    dlock_lock *_heap_next;
    dlock_lock *_heap_previous;
    dlock_lock *_bucket_next;  /* of those whose owners look alike                       */
    dlock_lock *_done_next;    /* of those whose callback is due                         */
    dlock_done *_done;
    void *_done_user;          /* inspect: where its answer goes                         */
    void (*_on_lost)(dlock_lock *, void *);
    void *_lost_user;
    void *_sleeper;            /* the thread that waits for another to drive; NULL: none */
    int64_t _due_at;           /* in the factory's timers; never: not there              */
    int64_t _deadline;         /* the end of the call                                    */
    int64_t _wake_at;          /* the end of a pause; held: when to renew                */
    int64_t _rest_until;       /* asked again within a pause that ends then; 0: not      */
    int64_t _began_at;         /* the acquire                                            */
    int64_t _asked_at;         /* before the first send that may have been obeyed        */
    int64_t _sent_at;          /* before the last send                                   */
    int64_t _held_since;
    int64_t _hold_until;       /* no renewal from then on                                */
    int64_t _valid_until;      /* atomic                                                 */
    int64_t _renounced;        /* the validity that it had when its release began        */
    int64_t _lapses_at;        /* the server has let go of it by then                    */
    int64_t _expiry_ms;        /* as acquired                                            */
    int64_t _ask_expiry_ms;    /* of the command under way                               */
    int64_t _wanted_ms;        /* by the caller of dlock_extend                          */
    int64_t _wait_ms;
    int64_t _max_hold_ms;
    int64_t _refused_us;       /* the server's clock when it last said that somebody holds it */
    int64_t _score;            /* of the place in line; 0 = none yet                     */
    uint64_t _fence;
    unsigned _subscription;    /* under which the last ask was sent; 0 = none            */
    int32_t _retry_count;
    int32_t _retry_delay_ms;
    int32_t _retry_jitter_ms;
    int32_t _attempts;         /* that ended without the lock                            */
    int32_t _again;            /* asked again within this attempt                        */
    short _bucket;             /* + 1; 0 = in none                                       */
    bool _queues;              /* stands in line if somebody holds it                    */
    bool _no_fence;
    bool _auto_renew;
    bool _fail_open;
    bool _degraded;
    bool _answer;
    bool _asked;               /* a command is under way                                 */
    bool _unknown;             /* an earlier one of this owner may have been obeyed      */
    bool _ticket;              /* a place in line may stand on the server                */
    bool _confirming;          /* granted by a message that could not be dated           */
    bool _burnt;               /* the owner was undone: draw a new one                   */
    bool _whole;               /* send the script itself instead of its SHA-1            */
    bool _reserved;            /* room is kept for a debt of it                          */
    bool _listens;             /* counted among those who need the inbox                 */
    bool _waits_told;          /* WAITING was told                                       */
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
 *   redis://[[user]:password@]host[:port][/database]     (valkey:// is the same)
 *   unix://[[user]:password@]/path/to.sock[?db=n]
 * User, password, host and path may be percent-coded; IPv6 addresses stand in brackets. The
 * defaults are port 6379 and database 0; an empty user is the server's default user.
 * `config` may be NULL, `error` may be NULL. NULL: ARGUMENT, MEMORY, or UNREACHABLE where the
 * system has no descriptor or no randomness left. Any thread. */
static inline dlock_factory *dlock_open(const char *url, const dlock_config *config,
                                        dlock_error *error);

/* The end: answers every pending call with CANCELLED (those that were started from in here), waits
 * until calls of other threads have left, gives back what is still held, best effort, within
 * command_timeout_ms, and marks every held handle unused. NULL is nothing. Not beside new calls,
 * not from inside a callback. A handle whose release had failed does not know that the factory is
 * gone: release it no more. */
DLOCK_DEF void dlock_close(dlock_factory *factory);

/* ---------------------------------------------------------------------- public: blocking verbs */
/* Each answers one question; false leaves the reason in dlock_why(). A pointer may be NULL where
 * that is said; anything else is false + ARGUMENT. Any thread, one call at a time per handle: a
 * second one beside it is false, and leaves dlock_why() to the first. */

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

/* The fencing token; 0 with no_fence, when degraded, and when it is not held. It stays after the
 * validity has ended, until the lock is given back or LOST. */
DLOCK_DEF uint64_t dlock_fence(const dlock_lock *lock);

/* What the key holds on the server while the lock is ours; lives as long as that. */
DLOCK_DEF const char *dlock_owner(const dlock_lock *lock);

/* Why the last call on this handle was false; OK after a true one; LOST once that is known. Never
 * NULL (of a NULL handle: ARGUMENT); lives until the next call on the handle. */
DLOCK_DEF const dlock_error *dlock_why(const dlock_lock *lock);

/* ------------------------------------------------------------------- public: event-loop verbs */
/* The same verbs, driven by your loop. They send what can be sent and return; `done` is told the
 * answer, never from inside the start. False: `done` will not be called, dlock_why() says why.
 * `user` is handed to `done`. Any thread, and inside any callback of this library.
 * ARGUMENT, LOST, CANCELLED, where the blocking verb would have said so without I/O; everything
 * else is for `done`. */

DLOCK_DEF bool dlock_acquire_start(dlock_factory *factory, dlock_lock *lock, const char *key,
                                   const dlock_options *options, dlock_done *done, void *user);
DLOCK_DEF bool dlock_extend_start(dlock_lock *lock, int64_t expiry_ms, dlock_done *done,
                                  void *user);

/* `done` NULL: the handle is free at once, and the release is a debt of the factory, sent at once
 * if it can be and again until the answer is definite. False + MEMORY: the lock is still held. */
DLOCK_DEF bool dlock_release_start(dlock_lock *lock, dlock_done *done, void *user);

/* Is a call under way on this handle, or is its `done` still to come? No I/O; any thread. */
DLOCK_DEF bool dlock_is_pending(const dlock_lock *lock);

/* One descriptor to poll for reading: readable whenever dlock_process has work, timers included.
 * It lives as long as the factory. -1: the system has no descriptor left, the factory is NULL or
 * another process's. Any thread. */
DLOCK_DEF int dlock_fd(dlock_factory *factory);

/* Does what is due (reads, sends, timers) and calls `done`, `on_lost` and `on_event`. Never blocks,
 * but for the lookup of a host name. Any thread; not from inside a callback (there it is nothing).
 */
DLOCK_DEF void dlock_process(dlock_factory *factory);

/* --------------------------------------------------------------------- public: operators' tools */

/* What stands on the server for a key. */
typedef struct dlock_info {
    bool held;
    bool foreign;              /* by another library's program                                 */
    int64_t remaining_ms;      /* of the lease, on the server; -1 = without end                */
    uint64_t fence;            /* the last one given out; 0 = none is known                    */
    int64_t waiters;           /* places in line                                               */
    char owner[65];            /* what the key holds: 64 bytes at most, '?' for unprintable ones */
} dlock_info;

/* Is the key held, and by whom? One round trip. `key_length` 0 = strlen; `info` is filled in when
 * the answer is true, and when it is false with OK, which says that the key is free. `info` and
 * `error` may be NULL. Blocks, within connect_timeout_ms + command_timeout_ms. Any thread.
 * OK UNREACHABLE REFUSED PROTOCOL CANCELLED MEMORY ARGUMENT. */
DLOCK_DEF bool dlock_inspect(dlock_factory *factory, const char *key, size_t key_length,
                             dlock_info *info, dlock_error *error);

/* Takes the lock from whoever holds it, as if that one had released it: who is first in line is
 * served. The holder is told if its inbox is subscribed (it waited once, or renews), else it learns
 * at its next contact. False + OK: it was free. Blocks like dlock_inspect; the same codes. */
DLOCK_DEF bool dlock_break(dlock_factory *factory, const char *key, size_t key_length,
                           dlock_error *error);

/* Counters since dlock_open, and what there is now. */
typedef struct dlock_stats {
    uint64_t acquired;         /* locks that became ours                                       */
    uint64_t handed_over;      /* of these: by the release of the one before us                */
    uint64_t not_acquired;     /* acquires that ended without the lock                         */
    uint64_t released;         /* given back by their release                                  */
    uint64_t lost;             /* told as LOST                                                 */
    uint64_t renewed;
    uint64_t undone;           /* debts paid                                                   */
    uint64_t commands;         /* about locks, sent                                            */
    uint64_t connects;         /* connections that came up                                     */
    uint64_t disconnects;      /* and ended, or never came up                                  */
    int64_t held;              /* now                                                          */
    int64_t pending;           /* calls under way now                                          */
    int64_t debts;             /* now                                                          */
} dlock_stats;

/* Any thread. */
DLOCK_DEF void dlock_stats_get(const dlock_factory *factory, dlock_stats *stats);

#define DLOCK_EVENTS(X) \
    X(CONNECTED, 1)      /* a connection is up                                          */ \
    X(DISCONNECTED, 2)   /* it ended, or did not come up                                */ \
    X(WAITING, 3)        /* somebody holds it: this call waits, if it can in line       */ \
    X(ACQUIRED, 4)       /* after elapsed_ms                                            */ \
    X(NOT_ACQUIRED, 5)   /* after elapsed_ms; `code` says why                           */ \
    X(RENEWED, 6)        /* by auto_renew or dlock_extend                               */ \
    X(RELEASED, 7)       /* held for elapsed_ms; `code` is not OK: that release failed  */ \
    X(LOST, 8)           /* held for elapsed_ms                                         */ \
    X(MUTE, 9)           /* the server did not let a release tell who waits             */

#define DLOCK_EVENT(name, number) DLOCK_EVENT_##name = number,
enum dlock_event_kind { DLOCK_EVENTS(DLOCK_EVENT) };
#undef DLOCK_EVENT

/* One transition. Pointers live until the callback returns. It runs from whichever call is driving
 * the factory, holding no lock; every function but dlock_close is legal in it. */
struct dlock_event {
    int kind;                  /* enum dlock_event_kind                                        */
    int code;                  /* enum dlock_code                                              */
    int node;                  /* -1 = none in particular                                      */
    bool inbox;                /* (DIS)CONNECTED: the connection that is told things           */
    const char *key;           /* NULL for connections; key_length bytes, no NUL at the end    */
    size_t key_length;
    uint64_t fence;
    int64_t elapsed_ms;
    const char *text;          /* a sentence as in dlock_error; "" where code is OK            */
};

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

#if defined(__cpp_exceptions)
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
#endif

    bool unlock()
    {
        return dlock_release(&lock_);
    }
    dlock_lock *get()
    {
        return &lock_;
    }

    /* What the codes of lock()'s exceptions belong to; a value is an enum dlock_code. */
    static const std::error_category &category()
    {
        static const codes instance;
        return instance;
    }

private:
    class codes : public std::error_category {
    public:
        const char *name() const noexcept override { return "dlock"; }
        std::string message(int code) const override { return dlock_code_text(code); }
    };

    dlock_lock lock_;
    dlock_factory *factory_;
    const char *key_;
    dlock_options options_;
};

}  // namespace dlock
#endif /* __cplusplus */

#endif /* DLOCK_H */

/* =============================================================================== IMPLEMENTATION */
/* Ten rooms, each of which calls only those before it:
 *   1 configuration   2 platform   3 text   4 scripts   5 wire   6 machine
 *   7 transport       8 engine     9 drivers            10 scope helpers */

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
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
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
#define DLOCKI_REASK_MAX_MS 30000  /* who stands in line asks again at the latest then       */
#define DLOCKI_QUEUE_MS 600000     /* a queue that nobody joins or asks about lasts so long  */
#define DLOCKI_STAGGER_MS 20       /* later for each place behind the first                  */
#define DLOCKI_BUCKETS 1024        /* of owners                                              */
#define DLOCKI_READS_MAX 16        /* of one connection in a row                             */
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
    int (*set_open)(void *world);   /* descriptors that are polled as one */
    void (*set_watch)(void *world, int set, int fd, short events);   /* events 0: not any more */
    int (*timer_open)(void *world);
    void (*timer_set)(void *world, int timer, int64_t at);
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
#define dlocki_condition_wake_all(condition) ((void)(condition))
typedef int dlocki_thread;
#define dlocki_thread_self() 0
#define dlocki_thread_is_self(thread) ((void)(thread), true)
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
#define dlocki_condition_wake_all(condition) (void)pthread_cond_broadcast(condition)
typedef pthread_t dlocki_thread;
#define dlocki_thread_self() pthread_self()
#define dlocki_thread_is_self(thread) (pthread_equal(thread, pthread_self()) != 0)
#endif

static int dlocki_load(const int *from)
{
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

static void dlocki_store(int *to, int value)
{
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}

/* An instant that is read by threads which do not have the mutex. */
static int64_t dlocki_load_instant(const int64_t *from)
{
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

static void dlocki_store_instant(int64_t *to, int64_t value)
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

static int dlocki_set_open(void *world)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    (void)world;
    return fd >= 0 ? fd : -errno;
}

/* It may be there already, or not any more: whoever asks knows what he wants, not what was. */
static void dlocki_set_watch(void *world, int set, int fd, short events)
{
    struct epoll_event event;
    (void)world;
    memset(&event, 0, sizeof event);
    event.events =
        ((events & POLLIN) != 0 ? EPOLLIN : 0u) | ((events & POLLOUT) != 0 ? EPOLLOUT : 0u);
    event.data.fd = fd;
    if (events == 0) {
        (void)epoll_ctl(set, EPOLL_CTL_DEL, fd, &event);
    } else if (epoll_ctl(set, EPOLL_CTL_MOD, fd, &event) != 0) {
        (void)epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    }
}

static int dlocki_timer_open(void *world)
{
    int fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    (void)world;
    if (fd < 0 && errno == EINVAL) {   /* as for dlocki_now */
        fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    }
    return fd >= 0 ? fd : -errno;
}

static void dlocki_timer_set(void *world, int timer, int64_t at)
{
    struct itimerspec when;
    (void)world;
    memset(&when, 0, sizeof when);
    if (at < DLOCKI_NEVER) {   /* all zero would stop it */
        when.it_value.tv_sec = (time_t)(at / 1000);
        when.it_value.tv_nsec = at > 0 ? (long)(at % 1000) * 1000000 : 1;
    }
    (void)timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
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
    int64_t port;
    int64_t database;
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

/* Random bytes as lower-case digits, two each; no NUL. */
static void dlocki_hex(const unsigned char *bytes, size_t count, char *to)
{
    static const char digits[] = "0123456789abcdef";
    size_t i;
    for (i = 0; i < count; i++) {
        to[2 * i] = digits[bytes[i] >> 4];
        to[2 * i + 1] = digits[bytes[i] & 15];
    }
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
static bool dlocki_number(dlocki_part part, int64_t most, int64_t *value)
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
    *value = sum;
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
 * stay below 2^53, up to where Lua counts exactly. Every microsecond here is one of the server, for
 * everybody: what is needed twice is put in line by a macro, because a function costs a closure,
 * and numbers go to commands as text where they can, because Redis formats Lua's numbers slowly.
 *
 * A ticket, a member of Q, is a place in line: "owner expiry kind", with kind g (wants the lock), n
 * (the same without a fence) or h (wants a hint only, from several servers). Its score orders it.
 *
 *   NOW     stamp: the time as text; now: as a number. Both nil if it cannot be had.
 *   RAISE   fence := the larger of the clock and what is stored + 1: above every earlier fence, and
 *           as large as the clock, so that it grows even when the stored one was lost. One ZADD
 *           does it, unless the stored one is ahead of the clock. Else fence is nil, and fault the
 *           answer.
 *   SERVE   pops tickets, `popped` first, until one is given the lock: K, its expiry and its owner
 *           are set, then the new owner's inbox is told. served: "given" (to `given`), "none",
 *           "self" (next in line is the asker), "mute" (this server does not let us notify, so the
 *           queue is advice only), "more" (so many dead tickets). A waiter is alive if its inbox is
 *           subscribed on this server (PUBSUB NUMSUB); PUBLISH's count proves nothing.
 *   PASS_ON serves, or deletes K: done := flags as of a release. */
/* clang-format off */
#define DLOCKI_LUA_HEAD \
    "local K, Q, F = KEYS[1], KEYS[2], KEYS[3]\n" \
    "local call, try = redis.call, redis.pcall\n"

#define DLOCKI_LUA_NOW \
    "local t = try('TIME')\n" \
    "local stamp = t[2] and t[1] .. (#t[2] == 6 and t[2] or string.sub('00000' .. t[2], -6))\n" \
    "local now, fence, fault = stamp and stamp + 0, 0, nil\n"

#define DLOCKI_LUA_RAISE(expiry) \
    "fence = stamp\n" \
    "local changed = try('ZADD', F, 'GT', 'CH', fence, 'f')\n" \
    "if changed ~= 1 then\n" \
    " if changed == 0 then changed = try('ZINCRBY', F, '1', 'f') end\n" \
    " if type(changed) == 'table' then\n" \
    "  fence, fault = nil, changed\n" \
    " else\n" \
    "  fence = string.format('%.0f', changed)\n" \
    "  if tonumber(changed) >= 9007199254740992 then fence, fault = nil, {3} end\n" \
    " end\n" \
    "end\n" \
    "if fence then\n" \
    " try('PEXPIRE', F, #" expiry " < 7 and '86400000' or math.max(86400000, 10 * " expiry "))\n" \
    "end\n"

#define DLOCKI_LUA_SERVE(self, bound) \
    "local served, given = 'more', nil\n" \
    "for i = 1, " bound " do\n" \
    " popped = popped or try('ZPOPMIN', Q)\n" \
    " local ticket, score = popped[1], popped[2]\n" \
    " if not ticket then served = 'none' break end\n" \
    " local o, px, kind = string.match(ticket, '^(dl1%-%x+) (%d+) ([gnh])$')\n" \
    " if o and #o == 36 and px + 0 >= 1 and px + 0 <= 2592000000 then\n" \
    "  if o == " self " then served = 'self' break end\n" \
    "  local inbox = 'dlock:' .. string.sub(o, 5, 20)\n" \
    "  local alive = kind == 'h' and try('PUBLISH', inbox, 'h ' .. K) and {0, 0} or\n" \
    "   try('PUBSUB', 'NUMSUB', inbox)\n" \
    "  if alive.err or alive[2] + 0 > 0 then\n" \
    "   fence = now and not alive.err and 0\n" \
    "   if fence and kind == 'g' then\n" \
    DLOCKI_LUA_RAISE("px") \
    "   end\n" \
    "   if fence and not try('SET', K, o, 'PX', px).err then\n" \
    "    local told = 'g ' .. o .. ' ' .. fence .. ' ' .. stamp\n" \
    "    if type(try('PUBLISH', inbox, told)) == 'number' then\n" \
    "     served, given = 'given', o\n" \
    "     break\n" \
    "    end\n" \
    "    call('DEL', K)\n" \
    "   end\n" \
    "   try('ZADD', Q, score, ticket)\n" \
    "   if try('PTTL', Q) == -1 then try('PEXPIRE', Q, '600000') end\n" \
    "   served = 'mute'\n" \
    "   break\n" \
    "  end\n" \
    " end\n" \
    " popped = nil\n" \
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
    DLOCKI_LUA_NOW \
    "if not now then return t end\n" \
    "local owner, expiry, kind, fenced = ARGV[1], ARGV[2], ARGV[3] or '', ARGV[5] ~= '0'\n" \
    "local holder, popped\n" \
    "if kind ~= '' or call('EXISTS', K, Q) > 0 then\n" \
    " holder = call('GET', K)\n" \
    " if not holder and kind ~= 'h' then\n" \
    DLOCKI_LUA_SERVE("owner", "128") \
    "  if served == 'more' then return {2} end\n" \
    "  if served == 'mute' then try('ZREM', Q, owner .. ' ' .. expiry .. ' ' .. kind) end\n" \
    "  holder = given\n" \
    " end\n" \
    "end\n" \
    "if not holder or holder == owner and fenced then\n" \
    " fence = holder and call('ZSCORE', F, 'f') or 0\n" \
    " if fenced and fence == 0 then\n" \
    DLOCKI_LUA_RAISE("expiry") \
    " end\n" \
    " if not fence then return fault end\n" \
    " fence = fence + 0\n" \
    "end\n" \
    "if not holder then\n" \
    " call('SET', K, owner, 'PX', expiry)\n" \
    " if fence >= 4294967296 then return fence end\n" \
    " return {1, fence, expiry + 0, now}\n" \
    "end\n" \
    "local lease, score, place = call('PTTL', K), 0, 0\n" \
    "if holder == owner then return {1, fenced and fence or 0, lease, now} end\n" \
    "if kind ~= '' then\n" \
    " local ticket = owner .. ' ' .. expiry .. ' ' .. kind\n" \
    " local had = ARGV[4] and ARGV[4] ~= '0' and ARGV[4]\n" \
    " score = had or stamp\n" \
    " local new = call('ZADD', Q, 'NX', score, ticket) == 1\n" \
    " place = call('ZRANK', Q, ticket) + 1\n" \
    " if not new then\n" \
    "  score = call('ZSCORE', Q, ticket)\n" \
    " elseif not had and place < call('ZCARD', Q) then\n" \
    "  score = string.format('%.0f', call('ZRANGE', Q, -1, -1, 'WITHSCORES')[2] + 1)\n" \
    "  call('ZADD', Q, score, ticket)\n" \
    "  place = call('ZCARD', Q)\n" \
    " end\n" \
    " score = score + 0\n" \
    " call('PEXPIRE', Q, lease > 540000 and lease + 60000 or '600000')\n" \
    "end\n" \
    "local foreign = #holder ~= 36 or string.sub(holder, 1, 4) ~= 'dl1-'\n" \
    "return {0, lease, now, score, place, foreign and 1 or 0}\n"
#define DLOCKI_LUA_ACQUIRE_SHA1 "66e43309e6b22325d445264b83b74dca7403416b"

#define DLOCKI_LUA_PASS_ON \
    DLOCKI_LUA_SERVE("''", "1024") \
    "local done = 5\n" \
    "if served ~= 'given' then\n" \
    " call('DEL', K)\n" \
    " done = served == 'mute' and 9 or 1\n" \
    "end\n"

/* release, undo  KEYS K Q F  ARGV owner, ticket ('' or left out: none)
 *   flags: 1 it was ours, 2 the ticket was removed, 4 handed over, 8 could not notify
 * Once it is known to be ours K is given away or deleted, whatever else fails. It pops first: that
 * is allowed out of memory, and opens the door for the SET that may follow. */
#define DLOCKI_LUA_RELEASE \
    "local flags = 0\n" \
    "if (ARGV[2] or '') ~= '' and redis.pcall('ZREM', KEYS[2], ARGV[2]) == 1 then flags = 2 end\n" \
    "if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return flags end\n" \
    "local popped = redis.pcall('ZPOPMIN', KEYS[2])\n" \
    "if not popped[1] then return flags + redis.call('DEL', KEYS[1]) end\n" \
    DLOCKI_LUA_HEAD \
    DLOCKI_LUA_NOW \
    DLOCKI_LUA_PASS_ON \
    "return flags + done\n"
#define DLOCKI_LUA_RELEASE_SHA1 "c00839a1afd8f030bdea8a84fac91081bbfe143c"

/* extend  KEYS K  ARGV owner, expiry
 *   1 ours, and now for at least so long; 0 not ours. Never re-creates, never shortens. */
#define DLOCKI_LUA_EXTEND \
    "if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n" \
    "local left, expiry = redis.call('PTTL', KEYS[1]), tonumber(ARGV[2])\n" \
    "if left >= 0 and left < expiry then redis.call('PEXPIRE', KEYS[1], expiry) end\n" \
    "return 1\n"
#define DLOCKI_LUA_EXTEND_SHA1 "058d8365768a185bc7483490518140e0a2f5dcb0"

/* inspect  KEYS K Q F
 *   {lease, fence, waiters, holder}   lease -2: free, -1: without end; holder: 64 bytes at most */
#define DLOCKI_LUA_INSPECT \
    DLOCKI_LUA_HEAD \
    "local lease, holder = call('PTTL', K), call('GETRANGE', K, 0, 63)\n" \
    "local fence, waiters = try('ZSCORE', F, 'f'), try('ZCARD', Q)\n" \
    "fence = type(fence) == 'string' and tonumber(fence) or 0\n" \
    "return {lease, fence, type(waiters) == 'number' and waiters or 0, holder}\n"
#define DLOCKI_LUA_INSPECT_SHA1 "24b79bae4292b83d9b8c67dd710dab8986748bd6"

/* break  KEYS K Q F
 *   flags as for release, of whoever holds it: no second script could find another holder. The
 *   one that was holds nothing any more, and is told so. */
#define DLOCKI_LUA_BREAK \
    "local holder, popped = redis.call('GET', KEYS[1]), nil\n" \
    "if not holder then return 0 end\n" \
    DLOCKI_LUA_HEAD \
    DLOCKI_LUA_NOW \
    DLOCKI_LUA_PASS_ON \
    "if #holder == 36 and string.find(holder, '^dl1%-%x+$') then\n" \
    " try('PUBLISH', 'dlock:' .. string.sub(holder, 5, 20), 'b ' .. holder)\n" \
    "end\n" \
    "return done\n"
#define DLOCKI_LUA_BREAK_SHA1 "feac53cf196cc6386168faa4ab18ed92dfdc1f6c"
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
    DLOCKI_SUBSCRIBE,
    DLOCKI_SET,      /* acquire: plain SET NX PX; from here on: about a lock */
    DLOCKI_ASK,      /* acquire: the script */
    DLOCKI_EXTEND,
    DLOCKI_GIVE_BACK,
    DLOCKI_INSPECT,
    DLOCKI_BREAK
};

/* A command about a lock; what the machine decides and the wire writes. */
typedef struct dlocki_command {
    int kind;
    bool fenced;
    bool whole;    /* EVAL with the script instead of EVALSHA */
    char letter;   /* of the ticket to write or to remove; 0 = none */
    int64_t score; /* of a ticket that stood once; 0 = none         */
    const char *owner;
    int64_t expiry_ms;
    const char *key;
    size_t key_length;
} dlocki_command;

/* The longest command: a script, three keys, an owner, numbers and their frames. */
#define DLOCKI_SCRIPT_MAX 4096
#define DLOCKI_COMMAND_MAX (DLOCKI_SCRIPT_MAX + 3 * (DLOCK_KEY_MAX + 32) + 512)
typedef char dlocki_script_fits[sizeof DLOCKI_LUA_ACQUIRE <= DLOCKI_SCRIPT_MAX ? 1 : -1];
/* A handshake, and twice a command. */
typedef char dlocki_out_fits[2 * DLOCKI_SECRET_MAX + 512 + 2 * DLOCKI_COMMAND_MAX <= DLOCKI_OUT_MAX
                                 ? 1
                                 : -1];

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

/* The two other keys of a lock. */
static void dlocki_put_helpers(dlocki_out *out, const dlocki_command *command)
{
    dlocki_put_helper(out, command->key, command->key_length, "queue");
    dlocki_put_helper(out, command->key, command->key_length, "fence");
}

/* The arguments that are defaults are left out from the end. */
static void dlocki_put_ask(dlocki_out *out, const dlocki_command *command)
{
    size_t count = command->letter == 0 ? 2 : command->score == 0 ? 3 : 4;
    if (!command->fenced) {
        count = 5;
    }
    dlocki_put_script(out, command, DLOCKI_LUA_ACQUIRE, DLOCKI_LUA_ACQUIRE_SHA1, 3, count);
    dlocki_put_helpers(out, command);
    dlocki_put_bulk(out, command->owner, DLOCKI_OWNER_LENGTH);
    dlocki_put_number(out, command->expiry_ms);
    if (count >= 3) {
        dlocki_put_bulk(out, &command->letter, command->letter != 0 ? 1 : 0);
    }
    if (count >= 4) {
        dlocki_put_number(out, command->score);
    }
    if (count == 5) {
        dlocki_put_text(out, "0");
    }
}

static void dlocki_put_give_back(dlocki_out *out, const dlocki_command *command)
{
    dlocki_put_script(out, command, DLOCKI_LUA_RELEASE, DLOCKI_LUA_RELEASE_SHA1, 3,
                      command->letter != 0 ? 2 : 1);
    dlocki_put_helpers(out, command);
    dlocki_put_bulk(out, command->owner, DLOCKI_OWNER_LENGTH);
    if (command->letter != 0) {   /* the ticket, as the acquire script wrote it */
        char digits[20];
        size_t length = dlocki_digits(command->expiry_ms, digits);
        dlocki_put_frame(out, '$', DLOCKI_OWNER_LENGTH + 1 + length + 2);
        dlocki_put(out, command->owner, DLOCKI_OWNER_LENGTH);
        dlocki_put(out, " ", 1);
        dlocki_put(out, digits, length);
        dlocki_put(out, " ", 1);
        dlocki_put(out, &command->letter, 1);
        dlocki_put(out, "\r\n", 2);
    }
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
        dlocki_put_ask(out, command);
        break;
    case DLOCKI_GIVE_BACK:
        dlocki_put_give_back(out, command);
        break;
    case DLOCKI_INSPECT:
        dlocki_put_script(out, command, DLOCKI_LUA_INSPECT, DLOCKI_LUA_INSPECT_SHA1, 3, 0);
        dlocki_put_helpers(out, command);
        break;
    case DLOCKI_BREAK:
        dlocki_put_script(out, command, DLOCKI_LUA_BREAK, DLOCKI_LUA_BREAK_SHA1, 3, 0);
        dlocki_put_helpers(out, command);
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

#define DLOCKI_VALUE_MAX 6   /* elements in the longest array that we ask for  */
#define DLOCKI_PART_MAX 96   /* bytes kept of a text in an array               */

/* One reply. hiredis's reader calls the functions below while it parses; nothing is allocated. */
typedef struct dlocki_reply {
    redisReplyObjectFunctions functions;
    int type;      /* REDIS_REPLY_... of the whole */
    int count;     /* of an array                  */
    bool strange;  /* of a shape that nothing we ask for has */
    int64_t values[DLOCKI_VALUE_MAX];   /* an integer, or those in an array */
    unsigned texts;   /* a bit for each element of an array that is a text instead */
    size_t lengths[DLOCKI_VALUE_MAX];
    char parts[DLOCKI_VALUE_MAX][DLOCKI_PART_MAX + 1];   /* their beginnings */
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
    if (task->parent != NULL && task->type == REDIS_REPLY_STRING) {
        kept = length < DLOCKI_PART_MAX ? length : DLOCKI_PART_MAX;
        memcpy(reply->parts[task->idx], text, kept);
        reply->parts[task->idx][kept] = 0;
        reply->lengths[task->idx] = kept;
        reply->texts |= 1u << task->idx;
        return reply;
    }
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
    reply->texts = 0;
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
    static const char filler[65] =
        "................................................................";
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
        fed = redisReaderFeed(reader, filler, sizeof filler - 1);
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
    DLOCKI_SEEN,       /* inspect                                      */
    DLOCKI_FLAGS,      /* release, break: what was done; extend: 1 = ours; up to here: a lock's
                          answer */
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
    int64_t lease_ms;    /* -1: without end; SEEN, -2: free */
    int64_t now_us;      /* the server's clock; 0 = not told */
    int64_t score;       /* HELD: of our ticket; 0 = none    */
    int64_t place;       /* HELD: in line, from 1; 0 = none; SEEN: how many stand there */
    bool foreign;        /* HELD, SEEN: by another library's program */
    int64_t flags;
    const char *owner;   /* SEEN; lives as long as the reply */
    size_t owner_length;
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
    {"WRONGTYPE", DLOCKI_REFUSAL, false, "holds something that is no lock, fence or queue here"},
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
    int count = reply->type == REDIS_REPLY_ARRAY && reply->texts == 0 ? reply->count : 0;
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
            verdict->now_us = v[3];
        }
    } else if (count == 6 && v[0] == 0) {
        if (v[1] >= -1 && v[2] > 0 && v[3] >= 0 && v[3] < DLOCKI_NUMBER_MAX && v[4] >= 0 &&
            (v[5] == 0 || v[5] == 1)) {
            verdict->kind = DLOCKI_HELD;
            verdict->lease_ms = v[1];
            verdict->now_us = v[2];
            verdict->score = v[3];
            verdict->place = v[4];
            verdict->foreign = v[5] == 1;
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

/* Has an owner of this protocol these bytes? */
static bool dlocki_is_owner(const char *text, size_t length)
{
    size_t i;
    if (length != DLOCKI_OWNER_LENGTH || memcmp(text, "dl1-", 4) != 0) {
        return false;
    }
    for (i = 4; i < length && dlocki_hex_value(text[i]) >= 0; i++) {
    }
    return i == length;
}

static void dlocki_judge_inspect(const dlocki_reply *reply, dlocki_verdict *verdict)
{
    const int64_t *v = reply->values;
    if (reply->type != REDIS_REPLY_ARRAY || reply->count != 4 || reply->texts != 1u << 3 ||
        v[0] < -2 || v[1] < 0 || v[1] >= DLOCKI_NUMBER_MAX || v[2] < 0 || reply->lengths[3] > 64) {
        return;
    }
    verdict->kind = DLOCKI_SEEN;
    verdict->lease_ms = v[0];
    verdict->fence = (uint64_t)v[1];
    verdict->place = v[2];
    verdict->owner = reply->parts[3];
    verdict->owner_length = reply->lengths[3];
    verdict->foreign = v[0] != -2 && !dlocki_is_owner(verdict->owner, verdict->owner_length);
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
    case DLOCKI_SUBSCRIBE:
        break;   /* it is answered by a message */
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
    case DLOCKI_INSPECT:
        dlocki_judge_inspect(reply, &verdict);
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

/* What the inbox says. */
enum dlocki_message_kind {
    DLOCKI_NO_MESSAGE,    /* bytes that no server sends to who subscribed to one channel */
    DLOCKI_SUBSCRIBED_TO,
    DLOCKI_PONG,
    DLOCKI_GRANT,         /* the lock is this owner's            */
    DLOCKI_TAKEN,         /* it was taken from this owner        */
    DLOCKI_HEARSAY        /* anything: everybody may publish     */
};

typedef struct dlocki_message {
    int kind;
    const char *owner;    /* lives as long as the reply */
    uint64_t fence;
    int64_t now_us;       /* the server's clock when it was given */
} dlocki_message;

/* "g owner fence server-time", "b owner" */
static void dlocki_judge_payload(const char *text, size_t length, dlocki_message *message)
{
    dlocki_part number;
    int64_t values[2];
    int i;
    message->kind = DLOCKI_HEARSAY;
    message->owner = text + 2;
    if (length < 2 + DLOCKI_OWNER_LENGTH || text[1] != ' ' ||
        !dlocki_is_owner(text + 2, DLOCKI_OWNER_LENGTH)) {
        return;
    }
    number.to = text + 2 + DLOCKI_OWNER_LENGTH;
    if (text[0] == 'b' && number.to == text + length) {
        message->kind = DLOCKI_TAKEN;
    }
    for (i = 0; text[0] == 'g' && i < 2; i++) {
        if (number.to == text + length || *number.to != ' ') {
            return;
        }
        number.from = number.to + 1;
        number.to = number.from;
        number.to += strspn(number.from, "0123456789");
        if (!dlocki_number(number, DLOCKI_NUMBER_MAX - 1, &values[i])) {
            return;
        }
    }
    if (text[0] == 'g' && number.to == text + length && values[1] > 0) {
        message->kind = DLOCKI_GRANT;
        message->fence = (uint64_t)values[0];
        message->now_us = values[1];
    }
}

/* What came on the inbox? `id` is the factory's, 16 digits. Pure. */
static dlocki_message dlocki_judge_inbox(const dlocki_reply *reply, const char *id)
{
    dlocki_message message;
    memset(&message, 0, sizeof message);
    if (reply->type != REDIS_REPLY_ARRAY || reply->count < 2 || (reply->texts & 3u) != 3u) {
        return message;
    }
    if (reply->count == 2 && strcmp(reply->parts[0], "pong") == 0) {
        message.kind = DLOCKI_PONG;
    }
    if (reply->count != 3 || reply->lengths[1] != 22 || memcmp(reply->parts[1], "dlock:", 6) != 0 ||
        memcmp(reply->parts[1] + 6, id, 16) != 0) {
        return message;
    }
    if (strcmp(reply->parts[0], "subscribe") == 0 && reply->texts == 3u && reply->values[2] == 1) {
        message.kind = DLOCKI_SUBSCRIBED_TO;
    } else if (strcmp(reply->parts[0], "message") == 0 && reply->texts == 7u) {
        dlocki_judge_payload(reply->parts[2], reply->lengths[2], &message);
    }
    return message;
}

/* ----------------------------------------------------------------------------- room 6: machine */
/* One state machine per handle, over plain values: no I/O, no clock, no randomness. An event comes
 * in with the instant and, for an acquire, eight random bytes; out comes what the engine is to do.
 * Validity, owners, undo and bounds are decided here and nowhere else.
 *
 *     acquire   started -> asking -> held
 *                           |  ^ \     ^      asking: a command is unsent, or its reply is awaited
 *                           v  |  \    |      resting: between attempts, until _wake_at; in line,
 *                          resting -> given            if the inbox is subscribed
 *                                              given: the inbox says that it is ours; if that
 *                                                     cannot be dated, an extend confirms it
 *     extend, release, inspect, break   started -> asking -> finished
 *     held      -> renewing -> held     renewing: an extend of our own is under way, or rests
 *               -> lost
 *
 * An owner is burnt the moment it is undone. A ticket keeps its owner and its score as long as
 * nothing was undone; the score outlives the owner, so that who asks anew keeps his place. */

enum dlocki_state {
    DLOCKI_UNUSED,
    DLOCKI_OURS,        /* held, even if validity has run out since       */
    DLOCKI_GIVEN_BACK,  /* released, or known to be lost                  */
    DLOCKI_OWED         /* release failed: the owner is kept for another  */
};

enum dlocki_verb {
    DLOCKI_NO_VERB,
    DLOCKI_ACQUIRE,
    DLOCKI_EXTENSION,
    DLOCKI_RELEASE,
    DLOCKI_RENEWAL,     /* nobody's call: the handle is free to be used meanwhile */
    DLOCKI_INSPECTION,
    DLOCKI_TAKING
};

/* How a lock was lost while nobody asked. */
enum dlocki_loss { DLOCKI_NO_LOSS, DLOCKI_EXPIRED, DLOCKI_GONE, DLOCKI_TAKEN_AWAY };

enum dlocki_event_kind {
    DLOCKI_STARTED,
    DLOCKI_SENT,          /* the command is about to leave; `now` is before that    */
    DLOCKI_REPLIED,
    DLOCKI_UNCONNECTED,   /* no connection, nothing sent                            */
    DLOCKI_CUT_UNSENT,    /* the connection ended before a byte of the command left */
    DLOCKI_CUT,           /* it ended with the command under way                    */
    DLOCKI_OVERDUE,       /* no reply in command_timeout_ms                         */
    DLOCKI_BABBLE,        /* bytes that are no reply                                */
    DLOCKI_SUBSCRIBED,    /* the inbox stands: whoever waits may line up            */
    DLOCKI_UNSUBSCRIBED,  /* it does not any more: a grant may have been missed     */
    DLOCKI_INBOX_REFUSED, /* and never will                                         */
    DLOCKI_GIVEN,         /* the inbox says that it is ours                         */
    DLOCKI_TAKEN_FROM,    /* the inbox says that it was taken from us               */
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
    unsigned subscription;          /* changes with every one; 0 = the inbox is not subscribed */
    char letter;                    /* SENT: of the ticket that travels with it         */
    uint64_t fence;                 /* GIVEN                                            */
    int64_t given_us;               /* GIVEN: the server's clock                        */
    int64_t anchor_us;              /* and what it said on this connection before; 0 = nothing */
    int64_t anchor_at;              /* to what was sent then                            */
} dlocki_event;

/* What the engine is to do, in this order. */
#define DLOCKI_DO_DROP 1u     /* no reply to what was sent means anything any more        */
#define DLOCKI_DO_UNDO 2u     /* give back _owner on the server until that is definite    */
#define DLOCKI_DO_LISTEN 4u   /* subscribe the inbox                                      */
#define DLOCKI_DO_SEND 8u     /* send dlocki_lock_command()                               */
#define DLOCKI_DO_FINISH 16u  /* _answer and _why are the result                          */
#define DLOCKI_DO_LOSE 32u    /* tell, though nobody asked, that it is lost               */

/* Of the ticket that the lock would write, or has written, if there is one. */
static char dlocki_letter(const dlock_lock *lock, bool one)
{
    return (char)(!one ? 0 : lock->_no_fence ? 'n' : 'g');
}

/* What the lock says to the server now. A ticket travels only while the inbox is subscribed. */
static dlocki_command dlocki_lock_command(const dlock_lock *lock, bool subscribed)
{
    static const int kinds[] = {DLOCKI_ASK,    DLOCKI_ASK,     DLOCKI_EXTEND, DLOCKI_GIVE_BACK,
                                DLOCKI_EXTEND, DLOCKI_INSPECT, DLOCKI_BREAK};
    dlocki_command command;
    memset(&command, 0, sizeof command);
    command.kind = kinds[lock->_verb];
    command.expiry_ms = lock->_ask_expiry_ms;
    if (command.kind == DLOCKI_GIVE_BACK) {
        command.letter = dlocki_letter(lock, lock->_ticket);
        command.expiry_ms = lock->_expiry_ms;   /* the ticket's */
    } else if (lock->_confirming) {
        command.kind = DLOCKI_EXTEND;
    } else if (command.kind == DLOCKI_ASK && lock->_queues) {
        command.letter = dlocki_letter(lock, subscribed);
        command.score = lock->_score;
    } else if (command.kind == DLOCKI_ASK && lock->_no_fence && lock->_retry_count == 0 &&
               lock->_wait_ms == 0 && !lock->_unknown) {
        command.kind = DLOCKI_SET;   /* which could not tell that an earlier one was obeyed */
    }
    command.fenced = !lock->_no_fence;
    command.whole = lock->_whole;
    command.owner = lock->_owner;
    command.key = lock->_key;
    command.key_length = lock->_key_length;
    return command;
}

/* When a third of the lease will have passed. Rounded down, so that many are renewed together. */
static int64_t dlocki_renew_at(const dlock_lock *lock)
{
    int64_t expiry = lock->_expiry_ms;
    int64_t at = lock->_valid_until - (expiry - dlocki_drift_ms(expiry)) + expiry / 3;
    at -= at % dlocki_most(1, expiry / 16);
    return lock->_auto_renew && at < lock->_hold_until ? at : DLOCKI_NEVER;
}

static unsigned dlocki_finish(dlock_lock *lock, bool answer)
{
    lock->_answer = answer;
    lock->_wake_at = lock->_state == DLOCKI_OURS ? dlocki_renew_at(lock) : DLOCKI_NEVER;
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
    if (in->random == NULL) {
        return false;
    }
    memcpy(lock->_owner, "dl1-", 4);
    memcpy(lock->_owner + 4, in->factory, 16);
    dlocki_hex(in->random, 8, lock->_owner + 20);
    lock->_owner[DLOCKI_OWNER_LENGTH] = 0;
    lock->_ticket = false;
    lock->_burnt = false;
    return true;
}

/* Is there something on the server, or may there be, that only an undo takes away? Its owner is
 * burnt by that: the next attempt draws a new one. */
static unsigned dlocki_undo(dlock_lock *lock)
{
    bool stands = lock->_unknown || lock->_asked || lock->_ticket;
    unsigned todo = stands && !lock->_burnt ? DLOCKI_DO_UNDO : 0u;
    lock->_burnt = lock->_burnt || stands;
    lock->_unknown = false;
    lock->_asked = false;
    lock->_confirming = false;
    return todo;
}

static unsigned dlocki_acquire_ours(dlock_lock *lock, const dlocki_event *in, uint64_t fence,
                                    int64_t ends)
{
    lock->_fence = fence;
    lock->_held_since = in->now;
    lock->_hold_until =
        lock->_max_hold_ms > 0 ? dlocki_plus(in->now, lock->_max_hold_ms) : DLOCKI_NEVER;
    lock->_lapses_at = dlocki_plus(in->now, lock->_expiry_ms + dlocki_drift_ms(lock->_expiry_ms));
    lock->_unknown = false;
    lock->_asked = false;
    lock->_confirming = false;
    dlocki_store_instant(&lock->_valid_until, ends);
    dlocki_store(&lock->_state, DLOCKI_OURS);
    return dlocki_finish(lock, true);
}

/* The acquire ends without the lock, unless the caller would rather go on without one. */
static unsigned dlocki_acquire_fail(dlock_lock *lock, const dlocki_event *in)
{
    unsigned todo = dlocki_undo(lock);
    if (lock->_fail_open && lock->_why.code == DLOCK_UNREACHABLE) {
        int64_t span = lock->_expiry_ms - dlocki_drift_ms(lock->_expiry_ms);
        lock->_degraded = true;
        return todo | dlocki_acquire_ours(lock, in, 0, dlocki_plus(in->now, span));
    }
    return todo | dlocki_finish(lock, false);
}

/* Do attempts bound this call? Then, and with a pace of its own, it goes on asking while it stands
 * in line; else it rests on being told. */
static bool dlocki_is_counted(const dlock_lock *lock)
{
    return lock->_retry_count != DLOCK_FOREVER && (lock->_retry_count > 0 || lock->_wait_ms == 0);
}

/* 50 to 250 ms, or as the caller wants it; longer with every failed connect. */
static int64_t dlocki_poll_ms(const dlock_lock *lock, const dlocki_event *in)
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
    return pause + (int64_t)(second % ((uint32_t)lock->_retry_jitter_ms + 1u));
}

/* How long until the next attempt? Nobody sleeps past the end of a holder's lease, but those
 * behind the first in line do a little, one after the other: else they would all come at once. Who
 * rests on being told asks again all the same, because the holder may be followed by one who dies:
 * after his own expiry, which is the longest that one may keep it. */
static int64_t dlocki_pause_ms(const dlock_lock *lock, const dlocki_event *in)
{
    const dlocki_verdict *held =
        in->kind == DLOCKI_REPLIED && in->verdict.kind == DLOCKI_HELD ? &in->verdict : NULL;
    bool in_line = held != NULL && held->place > 0 && in->subscription != 0;
    bool own_pace = lock->_retry_delay_ms > 0 || dlocki_is_counted(lock);
    int64_t behind = in_line ? dlocki_least(held->place - 1, DLOCKI_REASK_MAX_MS) : 0;
    int64_t stagger = dlocki_least(behind * DLOCKI_STAGGER_MS, DLOCKI_REASK_MAX_MS);
    int64_t pause = dlocki_poll_ms(lock, in);
    if (in_line && !own_pace) {
        if (!held->foreign) {   /* else nobody will tell */
            pause = dlocki_least(lock->_expiry_ms, DLOCKI_REASK_MAX_MS);
        }
        pause += stagger;
    }
    if (held != NULL && held->lease_ms >= 0) {
        pause = dlocki_least(pause, dlocki_plus(held->lease_ms, 1 + stagger));
    }
    return pause;
}

/* An attempt ended without the lock: another one after a pause, or the end. What may stand on the
 * server is undone; a place in line that certainly does is kept. */
static unsigned dlocki_attempt_fail(dlock_lock *lock, const dlocki_event *in, int code)
{
    dlocki_keep_why(lock, code, in);
    if (dlocki_is_counted(lock) && lock->_attempts >= lock->_retry_count) {
        return dlocki_acquire_fail(lock, in);
    }
    if (lock->_attempts < INT32_MAX) {
        lock->_attempts++;
    }
    lock->_again = 0;
    lock->_wake_at = dlocki_plus(in->now, dlocki_pause_ms(lock, in));
    return lock->_unknown || lock->_asked ? dlocki_undo(lock) : 0u;
}

static unsigned dlocki_attempt(dlock_lock *lock, const dlocki_event *in)
{
    lock->_wake_at = DLOCKI_NEVER;
    lock->_rest_until = 0;
    lock->_whole = false;
    if (lock->_burnt && !dlocki_draw_owner(lock, in)) {
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "The system gives no random numbers, so no owner can be drawn.");
        return dlocki_finish(lock, false);
    }
    return DLOCKI_DO_SEND;
}

static unsigned dlocki_acquire_granted(dlock_lock *lock, const dlocki_event *in)
{
    /* What the server says is left of the lease counts from before it was asked. */
    int64_t lease = in->verdict.lease_ms;
    int64_t ends;
    lease = lease >= 0 ? dlocki_least(lease, lock->_expiry_ms) : lock->_expiry_ms;
    ends = dlocki_plus(lock->_sent_at, lease) - dlocki_drift_ms(lock->_expiry_ms);
    if (in->now >= ends) {
        return dlocki_attempt_fail(lock, in, DLOCK_TIMEOUT);
    }
    lock->_ticket = lock->_ticket && lock->_subscription == 0;   /* else the script took it */
    return dlocki_acquire_ours(lock, in, in->verdict.fence, ends);
}

/* The releaser's script made us the owner. Its server's clock says when, and an earlier answer of
 * the same clock says when that was here: clocks run apart by 1 % at most. Where that leaves less
 * than half of the lease, or cannot be told, the server is asked to confirm it. */
static unsigned dlocki_acquire_given(dlock_lock *lock, const dlocki_event *in)
{
    int64_t span_ms = (in->given_us - in->anchor_us) / 1000;
    bool dated;
    int64_t begins;
    int64_t ends;
    if (!lock->_ticket || lock->_burnt ||
        !dlocki_fence_fits((int64_t)in->fence, !lock->_no_fence)) {
        return 0;   /* nobody can have given us that, or it is being confirmed */
    }
    span_ms -= (span_ms < 0 ? -span_ms : span_ms) / 100 + 1;
    begins = dlocki_most(dlocki_plus(in->anchor_at, span_ms), lock->_asked_at);
    ends = dlocki_plus(begins, lock->_expiry_ms - dlocki_drift_ms(lock->_expiry_ms));
    dated = in->anchor_us != 0 && begins <= in->now && ends - in->now >= lock->_expiry_ms / 2;
    /* An ask that is under way, or was refused since, may have lined up once more. */
    lock->_ticket = lock->_asked || lock->_unknown || in->given_us <= lock->_refused_us;
    if (!dated || in->given_us <= lock->_refused_us) {
        /* And may be granted anew: then only an ask tells that fence. */
        lock->_confirming = !lock->_ticket;
        lock->_unknown = true;
        lock->_asked = false;
        lock->_fence = in->fence;
        lock->_again = 0;
        return DLOCKI_DO_DROP | dlocki_attempt(lock, in);
    }
    return dlocki_acquire_ours(lock, in, in->fence, ends);
}

/* The answer to that question. */
static unsigned dlocki_acquire_confirmed(dlock_lock *lock, const dlocki_event *in)
{
    int64_t ends =
        dlocki_plus(lock->_sent_at, lock->_expiry_ms - dlocki_drift_ms(lock->_expiry_ms));
    unsigned todo;
    if (in->verdict.kind == DLOCKI_NOSCRIPT && !lock->_whole) {
        lock->_whole = true;
        return DLOCKI_DO_SEND;
    }
    if (in->verdict.kind == DLOCKI_FLAGS && in->verdict.flags == 1 && in->now < ends) {
        return dlocki_acquire_ours(lock, in, lock->_fence, ends);
    }
    if (in->verdict.kind != DLOCKI_FLAGS || in->verdict.flags == 1) {
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE);
    }
    /* It has lapsed, and our place with it; or nobody gave it, and that stands. Line up anew. */
    lock->_ticket = true;
    todo = dlocki_undo(lock);
    lock->_score = 0;
    lock->_wake_at = in->now;   /* at once, but not yet: what is undone has the old owner */
    return todo;
}

/* Somebody holds it. If the inbox was subscribed (anew) since we asked, what was given away in
 * between was not told to us: ask at once, now with a ticket. */
static unsigned dlocki_acquire_held(dlock_lock *lock, const dlocki_event *in)
{
    unsigned todo;
    lock->_unknown = false;   /* not ours: no earlier ask was obeyed either */
    lock->_asked = false;
    lock->_refused_us = in->verdict.now_us;
    if (in->verdict.score > 0) {
        lock->_score = in->verdict.score;
    }
    if (lock->_queues && in->subscription != 0 && in->subscription != lock->_subscription) {
        return DLOCKI_DO_SEND;
    }
    if (dlocki_is_counted(lock) && in->now < lock->_rest_until) {   /* that was no new attempt */
        lock->_wake_at = lock->_rest_until;
        lock->_again = 0;
        todo = 0;
    } else {
        todo = dlocki_attempt_fail(lock, in, DLOCK_BUSY);
    }
    if (lock->_queues && in->subscription == 0 && (todo & DLOCKI_DO_FINISH) == 0) {
        todo |= DLOCKI_DO_LISTEN;
    }
    return todo;
}

static unsigned dlocki_acquire_replied(dlock_lock *lock, const dlocki_event *in)
{
    if (lock->_confirming && in->verdict.kind != DLOCKI_REFUSAL) {
        return dlocki_acquire_confirmed(lock, in);
    }
    switch (in->verdict.kind) {
    case DLOCKI_GRANTED:
        return dlocki_acquire_granted(lock, in);
    case DLOCKI_HELD:
        return dlocki_acquire_held(lock, in);
    case DLOCKI_AGAIN:
        lock->_asked = false;
        if (++lock->_again < DLOCKI_AGAIN_MAX) {
            return DLOCKI_DO_SEND;
        }
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "Too many places in this lock's line belong to somebody who is gone.");
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE);
    case DLOCKI_NOSCRIPT:
    case DLOCKI_LATER:
        lock->_asked = false;
        if (in->verdict.kind == DLOCKI_NOSCRIPT && !lock->_whole) {
            lock->_whole = true;
            return DLOCKI_DO_SEND;
        }
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE);
    case DLOCKI_REFUSAL:
        lock->_asked = false;
        dlocki_keep_why(lock, DLOCK_REFUSED, in);
        return dlocki_acquire_fail(lock, in);
    default:
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE);
    }
}

static unsigned dlocki_acquire_time(dlock_lock *lock, const dlocki_event *in)
{
    if (in->now < lock->_deadline) {
        return in->now >= lock->_wake_at ? dlocki_attempt(lock, in) : 0;
    }
    if (lock->_why.code == DLOCK_OK || ((lock->_asked || lock->_unknown) && !lock->_confirming &&
                                        lock->_why.code != DLOCK_UNREACHABLE)) {
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "No answer came within the %lld ms that the call may take.",
                   (long long)(lock->_deadline - lock->_began_at));
    } else if (lock->_why.code == DLOCK_BUSY || lock->_why.code == DLOCK_TIMEOUT) {
        dlocki_say(&lock->_why, DLOCK_TIMEOUT, 0,
                   "The lock did not become ours within the %lld ms that the call may wait.",
                   (long long)lock->_wait_ms);
    }
    return dlocki_acquire_fail(lock, in);
}

/* What the inbox has to say to who waits. */
static unsigned dlocki_acquire_told(dlock_lock *lock, const dlocki_event *in)
{
    bool rests = lock->_wake_at < DLOCKI_NEVER;
    switch (in->kind) {
    case DLOCKI_GIVEN:
        return dlocki_acquire_given(lock, in);
    case DLOCKI_SUBSCRIBED:
        if (rests && lock->_queues && !lock->_burnt) {
            int64_t until = lock->_wake_at;
            unsigned todo = dlocki_attempt(lock, in);
            lock->_rest_until = until;
            return todo;
        }
        return 0;
    case DLOCKI_UNSUBSCRIBED:
        if (rests) {   /* until it stands again, nobody else will tell */
            lock->_wake_at =
                dlocki_least(lock->_wake_at, dlocki_plus(in->now, dlocki_poll_ms(lock, in)));
        }
        return 0;
    case DLOCKI_INBOX_REFUSED:
        if (lock->_queues) {
            dlocki_keep_why(lock, DLOCK_REFUSED, in);
            return dlocki_acquire_fail(lock, in);
        }
        return 0;
    default:
        return 0;
    }
}

static unsigned dlocki_acquire_event(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->kind) {
    case DLOCKI_STARTED:
        lock->_burnt = true;
        lock->_began_at = in->now;
        lock->_deadline = DLOCKI_NEVER;
        if (lock->_wait_ms > 0) {
            lock->_deadline = dlocki_plus(in->now, lock->_wait_ms);
        } else if (lock->_wait_ms == 0 && lock->_retry_count == 0) {
            lock->_deadline = dlocki_plus(in->now, in->bound_ms);
        }
        return dlocki_attempt(lock, in);
    case DLOCKI_SENT:
        if (!lock->_unknown && !lock->_ticket) {
            lock->_asked_at = in->now;
        }
        lock->_asked = true;
        lock->_ticket = lock->_ticket || in->letter != 0;
        lock->_subscription = in->letter != 0 ? in->subscription : 0;
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
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE);
    case DLOCKI_BABBLE:
        return dlocki_attempt_fail(lock, in, DLOCK_PROTOCOL);
    case DLOCKI_TIME:
        return dlocki_acquire_time(lock, in);
    case DLOCKI_CANCEL:
        dlocki_say(&lock->_why, DLOCK_CANCELLED, 0, "The call was cancelled.");
        return dlocki_undo(lock) | dlocki_finish(lock, false);
    case DLOCKI_UNCONNECTED:
    case DLOCKI_OVERDUE:
        return dlocki_attempt_fail(lock, in, DLOCK_UNREACHABLE);
    default:
        return dlocki_acquire_told(lock, in);
    }
}

/* A command that nobody answered. A release stays owed. */
static unsigned dlocki_unanswered(dlock_lock *lock, const dlocki_event *in, int code)
{
    int64_t left = dlocki_most(0, dlocki_plus(lock->_lapses_at, -in->now));
    dlocki_keep_why(lock, code, in);
    if (lock->_verb != DLOCKI_RELEASE) {
        return dlocki_finish(lock, false);
    }
    dlocki_store(&lock->_state, code == DLOCK_REFUSED ? DLOCKI_GIVEN_BACK : DLOCKI_OWED);
    dlocki_append(&lock->_why, " The lock lapses by itself in %lld ms at the latest.",
                  (long long)left);
    return (code == DLOCK_REFUSED ? 0u : DLOCKI_DO_UNDO) | dlocki_finish(lock, false);
}

static unsigned dlocki_lost(dlock_lock *lock)
{
    dlocki_store(&lock->_state, DLOCKI_GIVEN_BACK);
    dlocki_store_instant(&lock->_valid_until, 0);
    dlocki_say(&lock->_why, DLOCK_LOST, 0,
               "The lock was not ours any more: its lease had ended, or somebody removed it.");
    return dlocki_finish(lock, false);
}

/* The server lengthened the lease, after the command was sent. */
static void dlocki_extended(dlock_lock *lock)
{
    int64_t ends =
        dlocki_plus(lock->_sent_at, lock->_ask_expiry_ms - dlocki_drift_ms(lock->_ask_expiry_ms));
    dlocki_store_instant(&lock->_valid_until, dlocki_most(lock->_valid_until, ends));
}

static unsigned dlocki_extension_flags(dlock_lock *lock, const dlocki_event *in)
{
    /* An ask that was under way when it was given may have come in after it lapsed: whatever stands
     * of that is another lock, of another fence, or a place in line. */
    if (in->verdict.flags == 0 || (lock->_ticket && in->now >= lock->_valid_until)) {
        unsigned todo = lock->_ticket ? DLOCKI_DO_UNDO : 0u;
        return todo | dlocki_lost(lock);
    }
    lock->_ticket = false;   /* it came in before this answer */
    dlocki_extended(lock);
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
    bool late = in->now >= lock->_renounced;
    /* "Not ours" on the second try, while it must have been ours: the first one gave it back. */
    if (!ours && !lock->_unknown) {
        return dlocki_lost(lock);
    }
    dlocki_store(&lock->_state, DLOCKI_GIVEN_BACK);
    if (!ours && late) {
        dlocki_say(&lock->_why, DLOCK_UNREACHABLE, 0,
                   "An answer was lost: either this call gave the lock back, or its lease ended.");
        return dlocki_finish(lock, false);
    }
    return dlocki_finish(lock, true);
}

static unsigned dlocki_simple_replied(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->verdict.kind) {
    case DLOCKI_FLAGS:
        if (lock->_verb == DLOCKI_TAKING) {
            dlocki_say_ok(&lock->_why);   /* it was free: an answer, too */
            return dlocki_finish(lock, (in->verdict.flags & 1) != 0);
        }
        return lock->_verb == DLOCKI_EXTENSION ? dlocki_extension_flags(lock, in)
                                               : dlocki_release_flags(lock, in);
    case DLOCKI_SEEN:
        dlocki_say_ok(&lock->_why);
        return dlocki_finish(lock, in->verdict.lease_ms != -2);
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

/* An extend may be obeyed, and its answer be lost. */
static void dlocki_lapses_later(dlock_lock *lock, const dlocki_event *in)
{
    int64_t span = lock->_ask_expiry_ms + dlocki_drift_ms(lock->_ask_expiry_ms);
    lock->_lapses_at = dlocki_most(lock->_lapses_at, dlocki_plus(in->now, in->bound_ms + span));
}

/* Nothing stands on the server for a degraded lock, so that nothing is sent. */
static unsigned dlocki_degraded(dlock_lock *lock, const dlocki_event *in)
{
    if (lock->_verb == DLOCKI_RELEASE) {
        dlocki_store(&lock->_state, DLOCKI_GIVEN_BACK);
    } else {
        lock->_sent_at = in->now;
        dlocki_extended(lock);
    }
    return dlocki_finish(lock, true);
}

/* Extend, release, inspect, break: one command, sent again once on a new connection. */
static unsigned dlocki_simple_event(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->kind) {
    case DLOCKI_STARTED:
        if (lock->_verb == DLOCKI_EXTENSION) {
            lock->_ask_expiry_ms = lock->_wanted_ms;
        }
        if (lock->_degraded) {
            return dlocki_degraded(lock, in);
        }
        if (lock->_verb == DLOCKI_RELEASE && lock->_state == DLOCKI_OURS) {
            lock->_renounced = lock->_valid_until;   /* the next owner may know before we do */
            dlocki_store_instant(&lock->_valid_until, 0);
        }
        lock->_deadline = dlocki_plus(in->now, in->bound_ms);
        lock->_wake_at = DLOCKI_NEVER;
        return DLOCKI_DO_SEND;
    case DLOCKI_SENT:
        if (lock->_verb == DLOCKI_EXTENSION) {
            dlocki_lapses_later(lock, in);
        }
        return 0;
    case DLOCKI_REPLIED:
        return dlocki_simple_replied(lock, in);
    case DLOCKI_CUT_UNSENT:
    case DLOCKI_CUT:
    case DLOCKI_OVERDUE:
        lock->_unknown = lock->_unknown || in->kind != DLOCKI_CUT_UNSENT;
        /* Not a break that may have been obeyed: it would take the lock from the next holder. */
        if (lock->_again == 0 && (lock->_verb != DLOCKI_TAKING || !lock->_unknown)) {
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
    case DLOCKI_UNCONNECTED:
        return dlocki_unanswered(lock, in, DLOCK_UNREACHABLE);
    default:
        return 0;   /* the inbox has nothing to say here; a release finds out by itself */
    }
}

/* Lost, and nobody asked. What expired here may still stand there: it is given back. */
static unsigned dlocki_lose(dlock_lock *lock, int loss)
{
    bool stands = loss == DLOCKI_EXPIRED || lock->_ticket;
    lock->_wake_at = DLOCKI_NEVER;
    dlocki_store(&lock->_loss, loss);
    dlocki_store_instant(&lock->_valid_until, 0);
    dlocki_store(&lock->_state, DLOCKI_GIVEN_BACK);
    return DLOCKI_DO_DROP | DLOCKI_DO_LOSE | (stands && !lock->_degraded ? DLOCKI_DO_UNDO : 0u);
}

/* Held, and nobody's call is under way. */
static unsigned dlocki_held_time(dlock_lock *lock, const dlocki_event *in)
{
    if (in->now >= lock->_valid_until) {
        return dlocki_lose(lock, DLOCKI_EXPIRED);
    }
    if (in->now < lock->_wake_at) {
        return 0;
    }
    lock->_ask_expiry_ms = lock->_expiry_ms;
    if (lock->_degraded) {
        lock->_sent_at = in->now;
        dlocki_extended(lock);
        lock->_wake_at = dlocki_renew_at(lock);
        return 0;
    }
    lock->_wake_at = DLOCKI_NEVER;
    if (in->now >= lock->_hold_until) {
        return 0;
    }
    if (lock->_verb != DLOCKI_RENEWAL) {
        lock->_verb = DLOCKI_RENEWAL;
        lock->_again = 0;
        lock->_whole = false;
    }
    return DLOCKI_DO_SEND;
}

/* A renewal without an answer is tried again until the old validity ends. */
static unsigned dlocki_renewal_fail(dlock_lock *lock, const dlocki_event *in)
{
    if (lock->_again == 0 &&
        (in->kind == DLOCKI_CUT || in->kind == DLOCKI_CUT_UNSENT || in->kind == DLOCKI_OVERDUE)) {
        lock->_again = 1;
        return DLOCKI_DO_SEND;
    }
    lock->_again = 0;
    lock->_wake_at =
        dlocki_plus(in->now, dlocki_least(DLOCK_DEFAULT_RETRY_MAX_MS, lock->_expiry_ms / 10 + 1));
    return 0;
}

static unsigned dlocki_held_event(dlock_lock *lock, const dlocki_event *in)
{
    switch (in->kind) {
    case DLOCKI_TIME:
        return dlocki_held_time(lock, in);
    case DLOCKI_TAKEN_FROM:
        return dlocki_lose(lock, DLOCKI_TAKEN_AWAY);
    case DLOCKI_SENT:
        dlocki_lapses_later(lock, in);
        return 0;
    case DLOCKI_REPLIED:
        if (in->now >= lock->_valid_until) {
            return dlocki_lose(lock, DLOCKI_EXPIRED);
        }
        if (in->verdict.kind == DLOCKI_FLAGS && in->verdict.flags == 0) {
            return dlocki_lose(lock, DLOCKI_GONE);
        }
        if (in->verdict.kind == DLOCKI_FLAGS) {
            dlocki_extended(lock);   /* and _why is not touched: it may be being read */
            lock->_wake_at = dlocki_renew_at(lock);
            return DLOCKI_DO_FINISH;
        }
        if (in->verdict.kind == DLOCKI_NOSCRIPT && !lock->_whole) {
            lock->_whole = true;
            return DLOCKI_DO_SEND;
        }
        return dlocki_renewal_fail(lock, in);
    case DLOCKI_UNCONNECTED:
    case DLOCKI_CUT_UNSENT:
    case DLOCKI_CUT:
    case DLOCKI_OVERDUE:
    case DLOCKI_BABBLE:
        return dlocki_renewal_fail(lock, in);
    default:
        return 0;
    }
}

/* The one way in. */
static unsigned dlocki_machine(dlock_lock *lock, const dlocki_event *in)
{
    if (in->kind == DLOCKI_STARTED) {
        lock->_again = 0;
        lock->_unknown = lock->_state == DLOCKI_OWED;   /* an earlier release was sent */
        lock->_asked = false;
        lock->_confirming = false;
        lock->_whole = false;
        dlocki_say_ok(&lock->_why);
    } else if (in->kind == DLOCKI_SENT) {
        lock->_sent_at = in->now;
    }
    switch (lock->_verb) {
    case DLOCKI_ACQUIRE:
        return dlocki_acquire_event(lock, in);
    case DLOCKI_NO_VERB:
    case DLOCKI_RENEWAL:
        DLOCK_ASSERT(lock->_state == DLOCKI_OURS);
        return dlocki_held_event(lock, in);
    default:
        return dlocki_simple_event(lock, in);
    }
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
    dlocki_now,      dlocki_random,    dlocki_pid,       dlocki_wake_fd,    dlocki_resolve,
    dlocki_connect,  dlocki_connected, dlocki_send,      dlocki_receive,    dlocki_close_fd,
    dlocki_wait_fds, dlocki_set_open,  dlocki_set_watch, dlocki_timer_open, dlocki_timer_set,
};

/* ------------------------------------------------------------------------------ room 8: engine */
/* One per factory: two connections, the handles, the timers, the debts. It feeds the machine and
 * does what the machine says. Everything here runs under the factory's mutex, but for the wait and
 * for callbacks. Words of its own:
 *
 *   link      a connection: for commands, or the inbox. `proven`: it has served. `barrier`: what an
 *             earlier connection carried may still be executed, until a PING has come back.
 *             `refused`: its handshake was; what it answers is not believed.
 *   flight    a command whose reply is awaited
 *   line      of handles whose command waits to be sent
 *   books     everything in the factory; whoever has the mutex writes them
 *   farewell  undos written behind what an overdue connection was sent, before it is closed
 *   leader    of the callers that wait, the one who waits for the kernel, for all
 *   renewer   the factory's own thread; only where a blocking acquire asked for auto_renew
 *   plan      what somebody who waits for the kernel waits for */

enum dlocki_link_state { DLOCKI_DOWN, DLOCKI_CONNECTING, DLOCKI_UP };

/* Replies are matched by order. */
typedef struct dlocki_flight {
    int kind;
    bool fenced;
    bool whole;
    int debt;              /* which debt it pays; -1 = none                       */
    dlock_lock *lock;      /* who asked; NULL = the connection, or nobody any more */
    int64_t expiry_ms;
    int64_t sent_at;
    int64_t deadline;
    uint64_t begins;       /* where in the stream of sent bytes                   */
} dlocki_flight;

/* A release that is owed to the server. */
typedef struct dlocki_debt {
    int next;              /* of those in use, or of those that are free; -1 = the last */
    int previous;
    bool sent;
    char letter;           /* of the ticket that may stand; 0 = none              */
    unsigned bound_to;     /* the one connection it makes sense on; 0 = any       */
    int64_t due_at;        /* not before                                          */
    int64_t lapses_at;     /* never, until the server was heard after the failure */
    int64_t lease_ms;      /* what may be left of it on the server                */
    int64_t expiry_ms;     /* the ticket's                                        */
    unsigned short key_length;
    char owner[DLOCKI_OWNER_LENGTH + 1];
    char key[DLOCK_KEY_MAX];
} dlocki_debt;

typedef struct dlocki_link {
    bool is_inbox;
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
    bool returned;             /* a release was sent whole: the server knows its SHA-1 */
    bool barrier;              /* nothing before a PING was answered                 */
    bool stale;                /* to be replaced before the next command             */
    bool refused;              /* the handshake was: believe nothing, then replace it */
    bool turned_away;          /* inbox: the last one was refused                    */
    bool told_up;              /* CONNECTED was told                                 */
    short watched;             /* by the outer set: these events                     */
    int64_t connect_ends;      /* for all addresses                                  */
    int64_t connect_deadline;  /* for this one                                       */
    int64_t retry_at;          /* inbox: no new connection before                    */
    int64_t subscribed_at;     /* inbox                                              */
    int64_t used_at;
    int64_t heard_at;
    int64_t anchor_at;         /* the server's clock said anchor_us to what was sent then */
    int64_t anchor_us;         /* 0 = nothing yet                                    */
    uint64_t queued;           /* bytes put into `out` since it was connected        */
    uint64_t sent;             /* bytes that left it                                 */
    redisReader *reader;
    dlocki_reply reply;
    dlock_error refusal;
    dlocki_address addresses[DLOCKI_ADDRESS_MAX];
    dlocki_flight flights[DLOCKI_FLIGHT_MAX];
    dlocki_out out;
} dlocki_link;

typedef struct dlocki_list {
    dlock_lock *first;
    dlock_lock *last;
} dlocki_list;

/* What somebody who waits for the kernel waits for. */
typedef struct dlocki_plan {
    bool active;
    bool commands;             /* for the link of the commands, too */
    int wake_fd;
    unsigned generations[2];
    bool writes[2];
    int64_t until;
} dlocki_plan;

/* A transition that waits to be told. */
typedef struct dlocki_news {
    struct dlocki_news *next;
    dlock_event event;
    dlock_error why;
    char key[DLOCK_KEY_MAX];
} dlocki_news;

struct dlock_factory {
    const dlocki_kernel *kernel;
    void *world;
    void *(*alloc)(size_t, void *);
    void (*free)(void *, void *);
    void (*on_event)(const dlock_event *, void *);
    void *user;
    long pid;
    int wake_fd;
    int32_t connect_timeout_ms;
    int32_t command_timeout_ms;
    dlocki_mutex mutex;
    int writing;               /* atomic: somebody has the mutex               */
    dlocki_condition left;     /* the last caller has left                     */
    dlocki_condition told;     /* a callback has returned                      */
    int inside;                /* callers                                      */
    bool closing;
    dlocki_plan lead;          /* of the caller that waits for all             */
    dlocki_plan renewal;       /* of the renewer                               */
    bool has_renewer;
    bool ends_renewer;
    dlocki_thread renewer;
    int renewer_fd;
    int64_t now;
    int64_t ends_at;           /* of dlock_close; never before                 */
    dlocki_list pending;       /* a call is under way                          */
    dlocki_list held;
    dlocki_list lost;          /* on_lost is due                               */
    dlocki_list over;          /* lost, and the handle is not given back yet   */
    dlocki_list line[3];       /* to be sent: what cannot wait; asks; asks of those who queue */
    uint64_t arrivals;         /* calls that were ever begun                   */
    dlock_lock *timers;        /* a pairing heap                               */
    dlock_lock *buckets[DLOCKI_BUCKETS];
    dlock_lock *done_first;    /* their callbacks are due                      */
    dlock_lock *done_last;
    bool telling;              /* somebody runs callbacks                      */
    bool processing;
    dlocki_thread teller;
    dlock_lock *told_lock;     /* whose on_lost is running                     */
    dlocki_news *news_first;
    dlocki_news *news_last;
    dlocki_news *news_spare;
    int listeners;             /* handles that need the inbox                  */
    unsigned subscription;     /* 0 = the inbox is not subscribed              */
    int crossing;              /* commands that were sent before it was        */
    int loop_fd;               /* the outer set; -1 = nobody asked for it      */
    int timer_fd;
    int due_fd;                /* readable: callbacks are due                  */
    bool due_set;
    int64_t timer_at;
    dlock_stats stats;
    int debt_count;
    int debts_sent;
    int debt_first;            /* of those in use                              */
    int debt_last;
    int debt_free;
    int debt_room;
    int reserved;              /* handles that may become debts                */
    dlocki_debt *debts;
    int pool_left;
    unsigned char pool[512];   /* of randomness, wiped as it is used           */
    char id[17];               /* the owner's first 16 digits                  */
    char client_name[DLOCKI_NAME_MAX + 1];
    dlocki_url url;
    dlocki_link link;          /* commands                                     */
    dlocki_link inbox;
    unsigned char in[DLOCKI_IN_MAX];
    dlocki_debt debts_own[DLOCK_DEBT_MAX];
};

static void dlocki_link_fail(dlock_factory *factory, dlocki_link *link, int cause,
                             const dlock_error *why);
static bool dlocki_plan_is_old(const dlock_factory *factory, const dlocki_plan *plan);
static void dlocki_loop_update(dlock_factory *factory);

static void *dlocki_take_memory(dlock_factory *factory, size_t size)
{
    return factory->alloc != NULL ? factory->alloc(size, factory->user) : DLOCK_MALLOC(size);
}

static void dlocki_give_memory(dlock_factory *factory, void *memory)
{
    if (factory->free != NULL) {
        factory->free(memory, factory->user);
    } else {
        DLOCK_FREE(memory);
    }
}

static void dlocki_fd_close(dlock_factory *factory, int fd)
{
    if (fd >= 0) {
        factory->kernel->close(factory->world, fd);
    }
}

/* The mutex, and a mark that a child of fork() can read: were the books being written? */
static void dlocki_books_lock(dlock_factory *factory)
{
    dlocki_mutex_lock(&factory->mutex);
    dlocki_store(&factory->writing, 1);
}

/* Whoever waits for the kernel, or for dlock_fd, learns what has changed. */
static void dlocki_books_show(dlock_factory *factory)
{
    if (factory->lead.active && dlocki_plan_is_old(factory, &factory->lead)) {
        dlocki_wake(factory->lead.wake_fd);
    }
    if (factory->renewal.active && dlocki_plan_is_old(factory, &factory->renewal)) {
        dlocki_wake(factory->renewal.wake_fd);
    }
    if (factory->loop_fd >= 0) {
        dlocki_loop_update(factory);
    }
}

static void dlocki_books_unlock(dlock_factory *factory)
{
    dlocki_books_show(factory);
    dlocki_store(&factory->writing, 0);
    dlocki_mutex_unlock(&factory->mutex);
}

static void dlocki_books_sleep(dlock_factory *factory, dlocki_condition *until)
{
    dlocki_books_show(factory);
    dlocki_store(&factory->writing, 0);
    dlocki_condition_wait(until, &factory->mutex);
    dlocki_store(&factory->writing, 1);
}

/* --- lists, timers, owners */

/* Into a list, at its end; NULL: into none. */
static void dlocki_list_move(dlock_lock *lock, dlocki_list *list)
{
    if (lock->_list != NULL) {
        *(lock->_previous != NULL ? &lock->_previous->_next : &lock->_list->first) = lock->_next;
        *(lock->_next != NULL ? &lock->_next->_previous : &lock->_list->last) = lock->_previous;
    }
    lock->_list = list;
    lock->_next = NULL;
    lock->_previous = NULL;
    if (list != NULL) {
        lock->_previous = list->last;
        *(list->last != NULL ? &list->last->_next : &list->first) = lock;
        list->last = lock;
    }
}

/* The same for those whose command waits to be sent; an acquire before those that began later, so
 * that what is asked again, now with a ticket, is not overtaken by what was never asked. */
static void dlocki_line_move(dlock_lock *lock, dlocki_list *line)
{
    dlock_lock *before;
    if (lock->_line != NULL) {
        *(lock->_line_previous != NULL ? &lock->_line_previous->_line_next : &lock->_line->first) =
            lock->_line_next;
        *(lock->_line_next != NULL ? &lock->_line_next->_line_previous : &lock->_line->last) =
            lock->_line_previous;
    }
    lock->_line = line;
    lock->_line_next = NULL;
    lock->_line_previous = NULL;
    if (line != NULL) {
        bool sorted = lock->_verb == DLOCKI_ACQUIRE && line->first != NULL;
        before = line->last;
        if (sorted && line->first->_arrival > lock->_arrival) {
            before = NULL;
        }
        while (sorted && before != NULL && before->_arrival > lock->_arrival) {
            before = before->_line_previous;
        }
        lock->_line_previous = before;
        lock->_line_next = before != NULL ? before->_line_next : line->first;
        *(before != NULL ? &before->_line_next : &line->first) = lock;
        *(lock->_line_next != NULL ? &lock->_line_next->_line_previous : &line->last) = lock;
    }
}

/* A pairing heap (Fredman, Sedgewick, Sleator, Tarjan: "The pairing heap", 1986): the earliest is
 * the root, and joining two is one comparison. A node's _heap_previous is the one to its left, or
 * its parent. */
static dlock_lock *dlocki_heap_join(dlock_lock *one, dlock_lock *other)
{
    dlock_lock *first = one;
    dlock_lock *second = other;
    if (one == NULL || other == NULL) {
        return one != NULL ? one : other;
    }
    if (other->_due_at < one->_due_at) {
        first = other;
        second = one;
    }
    second->_heap_previous = first;
    second->_heap_next = first->_heap_child;
    if (first->_heap_child != NULL) {
        first->_heap_child->_heap_previous = second;
    }
    first->_heap_child = second;
    return first;
}

/* The children of a node that is gone become one heap: pairs from the left, then all together. */
static dlock_lock *dlocki_heap_gather(dlock_lock *child)
{
    dlock_lock *pairs = NULL;
    dlock_lock *root = NULL;
    while (child != NULL) {
        dlock_lock *second = child->_heap_next;
        dlock_lock *rest = second != NULL ? second->_heap_next : NULL;
        child->_heap_next = NULL;
        if (second != NULL) {
            second->_heap_next = NULL;
        }
        child = dlocki_heap_join(child, second);
        child->_heap_next = pairs;
        pairs = child;
        child = rest;
    }
    while (pairs != NULL) {
        dlock_lock *rest = pairs->_heap_next;
        pairs->_heap_next = NULL;
        root = dlocki_heap_join(root, pairs);
        pairs = rest;
    }
    if (root != NULL) {
        root->_heap_previous = NULL;
    }
    return root;
}

static void dlocki_heap_remove(dlock_factory *factory, dlock_lock *lock)
{
    dlock_lock *orphans = dlocki_heap_gather(lock->_heap_child);
    dlock_lock *before = lock->_heap_previous;
    if (before == NULL) {
        factory->timers = orphans;
    } else {
        *(before->_heap_child == lock ? &before->_heap_child : &before->_heap_next) =
            lock->_heap_next;
        if (lock->_heap_next != NULL) {
            lock->_heap_next->_heap_previous = before;
        }
        factory->timers = dlocki_heap_join(factory->timers, orphans);
    }
    lock->_heap_child = NULL;
    lock->_heap_next = NULL;
    lock->_heap_previous = NULL;
}

/* Puts a handle where its next timer belongs. */
static void dlocki_timer_move(dlock_factory *factory, dlock_lock *lock)
{
    int64_t at = DLOCKI_NEVER;
    if (lock->_list == &factory->pending) {
        at = dlocki_least(lock->_deadline, lock->_wake_at);
    } else if (lock->_list == &factory->held && (lock->_auto_renew || lock->_on_lost != NULL)) {
        at = dlocki_least(lock->_valid_until, lock->_wake_at);
    }
    if (at == lock->_due_at) {
        return;
    }
    if (lock->_due_at < DLOCKI_NEVER) {
        dlocki_heap_remove(factory, lock);
    }
    lock->_due_at = at;
    if (at < DLOCKI_NEVER) {
        factory->timers = dlocki_heap_join(factory->timers, lock);
    }
}

static dlock_lock **dlocki_bucket_of(dlock_factory *factory, const char *owner)
{
    int number = 0;
    int i;
    for (i = DLOCKI_OWNER_LENGTH - 3; i < DLOCKI_OWNER_LENGTH; i++) {
        number = number * 16 + dlocki_hex_value(owner[i]);
    }
    return &factory->buckets[number % DLOCKI_BUCKETS];
}

/* Makes a handle known by its owner to the inbox, or not any more. */
static void dlocki_index(dlock_factory *factory, dlock_lock *lock, bool known)
{
    dlock_lock **bucket = known ? dlocki_bucket_of(factory, lock->_owner) : NULL;
    dlock_lock **at;
    if (known && lock->_bucket == bucket - factory->buckets + 1) {
        return;
    }
    if (lock->_bucket != 0) {
        for (at = &factory->buckets[lock->_bucket - 1]; *at != lock; at = &(*at)->_bucket_next) {
        }
        *at = lock->_bucket_next;
        lock->_bucket_next = NULL;
        lock->_bucket = 0;
    }
    if (known) {
        lock->_bucket_next = *bucket;
        *bucket = lock;
        lock->_bucket = (short)(bucket - factory->buckets + 1);
    }
}

static dlock_lock *dlocki_owner_find(dlock_factory *factory, const char *owner)
{
    dlock_lock *lock = *dlocki_bucket_of(factory, owner);
    while (lock != NULL && memcmp(lock->_owner, owner, DLOCKI_OWNER_LENGTH) != 0) {
        lock = lock->_bucket_next;
    }
    return lock;
}

/* Counts a handle among those who need the inbox, or not any more. */
static void dlocki_listen(dlock_factory *factory, dlock_lock *lock, bool listens)
{
    if (lock->_listens != listens) {
        lock->_listens = listens;
        factory->listeners += listens ? 1 : -1;
    }
    if (listens) {
        dlocki_index(factory, lock, true);
    }
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
                   (int)factory->url.port, says);
    }
    error->node = 0;
}

static const char dlocki_says_garbage[] = "sent something that is no answer to what was asked";
static const char dlocki_says_closed[] = "closed the connection";

/* --- what is told */

/* Notes a transition; `lock` NULL: of a connection. Only with on_event, and then from memory that
 * is used again. Where none is left, it is not told. */
static dlock_event *dlocki_note(dlock_factory *factory, const dlock_lock *lock, int kind,
                                const dlock_error *why)
{
    dlocki_news *news = factory->news_spare;
    if (factory->on_event == NULL) {
        return NULL;
    }
    if (news != NULL) {
        factory->news_spare = news->next;
    } else {
        news = (dlocki_news *)dlocki_take_memory(factory, sizeof *news);
        if (news == NULL) {
            return NULL;
        }
    }
    memset(&news->event, 0, sizeof news->event);
    dlocki_say_ok(&news->why);
    if (why != NULL) {
        news->why = *why;
    }
    news->next = NULL;
    news->event.kind = kind;
    news->event.code = news->why.code;
    news->event.node = 0;
    news->event.text = news->why.text;
    if (lock != NULL) {
        memcpy(news->key, lock->_key, lock->_key_length);
        news->event.key = news->key;
        news->event.key_length = lock->_key_length;
        news->event.fence = lock->_fence;
        news->event.elapsed_ms =
            dlocki_plus(factory->now, kind == DLOCK_EVENT_RELEASED || kind == DLOCK_EVENT_LOST
                                          ? -lock->_held_since
                                          : -lock->_began_at);
    }
    *(factory->news_last != NULL ? &factory->news_last->next : &factory->news_first) = news;
    factory->news_last = news;
    return &news->event;
}

static void dlocki_note_link(dlock_factory *factory, dlocki_link *link, bool up,
                             const dlock_error *why)
{
    dlock_event *event;
    link->told_up = up;
    *(up ? &factory->stats.connects : &factory->stats.disconnects) += 1;
    event = dlocki_note(factory, NULL, up ? DLOCK_EVENT_CONNECTED : DLOCK_EVENT_DISCONNECTED, why);
    if (event != NULL) {
        event->inbox = link->is_inbox;
    }
}

/* Texts for dlock_why; by enum dlocki_loss. Not in the handle: its user may be reading there. */
static const dlock_error dlocki_loss_errors[] = {
    {DLOCK_LOST, 0, 0, "The lock is not ours any more."},
    {DLOCK_LOST, 0, 0, "The lock's lease ended before it could be renewed."},
    {DLOCK_LOST, 0, 0, "The lock was not ours any more when it was to be renewed."},
    {DLOCK_LOST, 0, 0, "The lock was taken from us by an operator."},
};

/* How the call that has just ended went: counted and told. */
static void dlocki_note_end(dlock_factory *factory, const dlock_lock *lock, int verb)
{
    dlock_stats *stats = &factory->stats;
    int code = lock->_why.code;
    switch (verb) {
    case DLOCKI_ACQUIRE:
        *(lock->_answer ? &stats->acquired : &stats->not_acquired) += 1;
        dlocki_note(factory, lock, lock->_answer ? DLOCK_EVENT_ACQUIRED : DLOCK_EVENT_NOT_ACQUIRED,
                    &lock->_why);
        break;
    case DLOCKI_EXTENSION:
    case DLOCKI_RELEASE:
        if (code == DLOCK_LOST) {
            stats->lost++;
            dlocki_note(factory, lock, DLOCK_EVENT_LOST, &lock->_why);
        } else if (verb == DLOCKI_RELEASE) {
            stats->released += lock->_answer;
            dlocki_note(factory, lock, DLOCK_EVENT_RELEASED, &lock->_why);
        } else if (lock->_answer) {
            stats->renewed++;
            dlocki_note(factory, lock, DLOCK_EVENT_RENEWED, NULL);
        }
        break;
    case DLOCKI_RENEWAL:
        stats->renewed++;
        dlocki_note(factory, lock, DLOCK_EVENT_RENEWED, NULL);
        break;
    default:
        break;
    }
}

/* --- debts */

static void dlocki_debt_pay(dlock_factory *factory, int index)
{
    dlocki_debt *debt = &factory->debts[index];
    int next = debt->next;
    int previous = debt->previous;
    *(previous >= 0 ? &factory->debts[previous].next : &factory->debt_first) = next;
    *(next >= 0 ? &factory->debts[next].previous : &factory->debt_last) = previous;
    factory->debts_sent -= debt->sent;
    dlocki_wipe(debt, sizeof *debt);
    debt->next = factory->debt_free;
    factory->debt_free = index;
    factory->debt_count--;
}

/* The first debt, if any waits to be sent; else -1. */
static int dlocki_debt_waiting(const dlock_factory *factory)
{
    return factory->debts_sent < factory->debt_count ? factory->debt_first : -1;
}

static void dlocki_debts_chain(dlock_factory *factory, int from)
{
    int i;
    for (i = factory->debt_room - 1; i >= from; i--) {
        factory->debts[i].next = factory->debt_free;
        factory->debt_free = i;
    }
}

/* Room for one more debt than there are or may become of handles? Whoever stands in line needs
 * some, so that it grows with their number, and never shrinks. */
static bool dlocki_debts_fit(dlock_factory *factory)
{
    int room = factory->debt_room;
    dlocki_debt *grown;
    if (factory->debt_count + factory->reserved < room) {
        return true;
    }
    if (room > INT_MAX / 2 || (size_t)room > SIZE_MAX / (2 * sizeof *grown)) {
        return false;
    }
    grown = (dlocki_debt *)dlocki_take_memory(factory, 2 * (size_t)room * sizeof *grown);
    if (grown == NULL) {
        return false;
    }
    memset(grown + room, 0, (size_t)room * sizeof *grown);
    memcpy(grown, factory->debts, (size_t)room * sizeof *grown);
    dlocki_wipe(factory->debts, (size_t)room * sizeof *grown);
    if (factory->debts != factory->debts_own) {
        dlocki_give_memory(factory, factory->debts);
    }
    factory->debts = grown;
    factory->debt_room = 2 * room;
    dlocki_debts_chain(factory, room);
    return true;
}

static void dlocki_reserve(dlock_factory *factory, dlock_lock *lock, bool reserved)
{
    if (lock->_reserved != reserved) {
        lock->_reserved = reserved;
        factory->reserved += reserved ? 1 : -1;
    }
}

/* By then the lease has run out, whenever within the command's time it began. A place in line lasts
 * as long as the queue without visitors. */
static int64_t dlocki_debt_lapses(const dlock_factory *factory, const dlocki_debt *debt)
{
    int64_t span = debt->lease_ms + dlocki_drift_ms(debt->lease_ms);
    if (debt->letter != 0) {
        span = dlocki_plus(span, DLOCKI_QUEUE_MS);
    }
    return dlocki_plus(factory->now, dlocki_plus(span, factory->command_timeout_ms));
}

/* Notes that a lock must be given back until the answer is definite; NULL: no memory was left for
 * that, and it lapses. What was done on one connection only, because its handshake was refused, is
 * `bound_to` it. */
static dlocki_debt *dlocki_owe(dlock_factory *factory, dlock_lock *lock, unsigned bound_to)
{
    dlocki_debt *debt;
    int i;
    /* An acquire is undone once; a release that has failed may be called again. */
    for (i = lock->_state == DLOCKI_OWED || bound_to != 0 ? factory->debt_first : -1; i >= 0;
         i = debt->next) {
        debt = &factory->debts[i];
        if (debt->bound_to == bound_to &&
            memcmp(debt->owner, lock->_owner, DLOCKI_OWNER_LENGTH) == 0) {
            return debt;
        }
    }
    dlocki_reserve(factory, lock, false);
    if (!dlocki_debts_fit(factory)) {
        return NULL;
    }
    i = factory->debt_free;
    debt = &factory->debts[i];
    factory->debt_free = debt->next;
    debt->next = -1;
    debt->previous = factory->debt_last;
    *(debt->previous >= 0 ? &factory->debts[debt->previous].next : &factory->debt_first) = i;
    factory->debt_last = i;
    factory->debt_count++;
    debt->letter = dlocki_letter(lock, lock->_ticket);
    debt->due_at = factory->now;
    debt->expiry_ms = lock->_expiry_ms;
    debt->lease_ms = lock->_verb == DLOCKI_ACQUIRE
                         ? lock->_expiry_ms
                         : dlocki_most(1, dlocki_plus(lock->_lapses_at, -factory->now));
    debt->lapses_at = dlocki_debt_lapses(factory, debt);
    debt->bound_to = bound_to;
    debt->key_length = lock->_key_length;
    memcpy(debt->owner, lock->_owner, sizeof debt->owner);
    memcpy(debt->key, lock->_key, lock->_key_length);
    return debt;
}

/* --- handles */

/* The n-th oldest command under way; behind the last one, the place for the next. */
static dlocki_flight *dlocki_flight_at(dlocki_link *link, int n)
{
    return &link->flights[(link->flight_first + n) % DLOCKI_FLIGHT_MAX];
}

/* The oldest one was answered. */
static void dlocki_flight_land(dlocki_link *link)
{
    link->flight_first = (link->flight_first + 1) % DLOCKI_FLIGHT_MAX;
    link->flight_count--;
}

/* What is answered to this handle's command, or would be sent for it, means nothing any more. */
static void dlocki_drop(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_link *link = &factory->link;
    int i;
    for (i = 0; i < link->flight_count; i++) {
        dlocki_flight *flight = dlocki_flight_at(link, i);
        if (flight->lock == lock) {
            flight->lock = NULL;
        }
    }
    dlocki_line_move(lock, NULL);
}

/* Takes a handle out of the books, all but the callback that is due. */
static void dlocki_strike(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_drop(factory, lock);
    dlocki_list_move(lock, NULL);
    dlocki_timer_move(factory, lock);
    dlocki_listen(factory, lock, false);
    dlocki_index(factory, lock, false);
    dlocki_reserve(factory, lock, false);
}

static void dlocki_clean(dlock_lock *lock)
{
    dlocki_wipe(lock->_owner, sizeof lock->_owner);
    lock->_fence = 0;
    lock->_factory = NULL;
}

/* The call is over: nothing of the engine points to the handle any more, unless it is held. */
static void dlocki_settle(dlock_factory *factory, dlock_lock *lock)
{
    int verb = lock->_verb;
    bool renews = lock->_auto_renew && !lock->_degraded;
    lock->_verb = DLOCKI_NO_VERB;
    dlocki_note_end(factory, lock, verb);
    if (verb == DLOCKI_RENEWAL) {
        return;
    }
    if (lock->_state == DLOCKI_OURS) {
        dlocki_drop(factory, lock);
        dlocki_reserve(factory, lock, false);
        dlocki_list_move(lock, &factory->held);
        dlocki_listen(factory, lock, renews);
        dlocki_index(factory, lock, !lock->_degraded);
    } else {
        dlocki_strike(factory, lock);
        if (lock->_state != DLOCKI_OWED || factory->closing) {
            dlocki_clean(lock);
        }
        if (factory->closing) {
            dlocki_store(&lock->_state, DLOCKI_UNUSED);
        }
    }
    if (lock->_done != NULL) {
        lock->_done_next = NULL;
        *(factory->done_last != NULL ? &factory->done_last->_done_next : &factory->done_first) =
            lock;
        factory->done_last = lock;
    } else if (lock->_sleeper != NULL) {
        dlocki_condition_signal((dlocki_condition *)lock->_sleeper);
    } else if (factory->lead.active) {
        dlocki_wake(factory->wake_fd);   /* it may be the call of the one who waits for all */
    }
}

static void dlocki_lose_lock(dlock_factory *factory, dlock_lock *lock)
{
    lock->_verb = DLOCKI_NO_VERB;
    dlocki_strike(factory, lock);
    dlocki_list_move(lock, lock->_on_lost != NULL ? &factory->lost : &factory->over);
    factory->stats.lost++;
    dlocki_note(factory, lock, DLOCK_EVENT_LOST, &dlocki_loss_errors[lock->_loss]);
}

/* The machine's only caller. */
static void dlocki_feed(dlock_factory *factory, dlock_lock *lock, dlocki_event *in)
{
    unsigned char random[8];
    unsigned todo;
    bool draws = lock->_verb == DLOCKI_ACQUIRE && in->kind != DLOCKI_SENT;
    if (draws && (in->kind == DLOCKI_REPLIED || in->kind == DLOCKI_GIVEN) &&
        dlocki_load(&lock->_claim) == DLOCKI_CANCELLED) {
        in->kind = DLOCKI_CANCEL;   /* which has not been noticed yet, and came first */
    }
    in->now = factory->now;
    in->factory = factory->id;
    in->failures = factory->link.failures;
    if (factory->subscription == 0 && factory->inbox.failures > in->failures) {
        in->failures = factory->inbox.failures;
    }
    in->bound_ms = (int64_t)factory->connect_timeout_ms + factory->command_timeout_ms;
    in->subscription = factory->subscription;
    in->random = draws && dlocki_take_random(factory, random) ? random : NULL;
    todo = dlocki_machine(lock, in);
    dlocki_wipe(random, sizeof random);
    if ((todo & DLOCKI_DO_DROP) != 0) {
        dlocki_drop(factory, lock);
    }
    if ((todo & DLOCKI_DO_UNDO) != 0) {
        (void)dlocki_owe(factory, lock, 0);
    }
    if ((todo & DLOCKI_DO_LISTEN) != 0) {
        if (factory->inbox.turned_away && !lock->_listens) {
            factory->inbox.retry_at = factory->now;
        }
        dlocki_listen(factory, lock, true);
    }
    if ((todo & DLOCKI_DO_SEND) != 0) {
        bool asks = lock->_verb == DLOCKI_ACQUIRE && !lock->_unknown;
        dlocki_line_move(lock, &factory->line[!asks ? 0 : lock->_queues ? 2 : 1]);
    }
    if ((todo & DLOCKI_DO_FINISH) != 0) {
        dlocki_settle(factory, lock);
    }
    if ((todo & DLOCKI_DO_LOSE) != 0) {
        dlocki_lose_lock(factory, lock);
    }
    dlocki_timer_move(factory, lock);
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

/* --- connections */

static void dlocki_link_hang_up(dlock_factory *factory, dlocki_link *link)
{
    int fd = link->fd;
    link->fd = -1;
    link->state = DLOCKI_DOWN;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);   /* in this order */
    if (fd >= 0) {
        if (link->watched != 0 && factory->loop_fd >= 0) {   /* a forked child may keep it open */
            factory->kernel->set_watch(factory->world, factory->loop_fd, fd, 0);
        }
        link->watched = 0;
        factory->kernel->close(factory->world, fd);
    }
}

static void dlocki_link_renew(dlocki_link *link)
{
    link->generation += link->generation == UINT_MAX ? 2u : 1u;
}

static void dlocki_link_close(dlock_factory *factory, dlocki_link *link)
{
    redisReader *reader = link->reader;
    int next;
    int i;
    /* A child that is forked meanwhile must not destroy a second time what is destroyed here. */
    link->reader = NULL;
    dlocki_link_hang_up(factory, link);
    dlocki_reader_close(reader);
    for (i = factory->debt_first; i >= 0 && !link->is_inbox; i = next) {
        next = factory->debts[i].next;
        if (factory->debts[i].bound_to == link->generation) {
            dlocki_debt_pay(factory, i);   /* it stood in another database: it lapses there */
        }
    }
    if (link->is_inbox) {
        factory->subscription = 0;
    } else {
        factory->crossing = 0;
    }
    if (link->told_up) {
        dlocki_note_link(factory, link, false, NULL);
    }
    dlocki_link_renew(link);
    link->flight_count = 0;
    link->proven = false;
    link->scripted = false;
    link->returned = false;
    link->stale = false;
    link->refused = false;
    link->anchor_us = 0;
    link->queued = 0;
    link->sent = 0;
    dlocki_wipe(link->out.bytes, link->out.to);   /* owners, passwords */
    link->out.from = 0;
    link->out.to = 0;
}

static void dlocki_flush(dlock_factory *factory, dlocki_link *link)
{
    while (link->state == DLOCKI_UP && link->out.from < link->out.to) {
        long sent =
            factory->kernel->send(factory->world, link->fd, link->out.bytes + link->out.from,
                                  link->out.to - link->out.from);
        if (sent == -EAGAIN || sent == -EWOULDBLOCK) {
            return;
        }
        if (sent <= 0) {
            dlock_error why;
            dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, (int)-sent, dlocki_says_closed);
            dlocki_link_fail(factory, link, DLOCKI_CUT, &why);
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
static dlocki_flight *dlocki_flight_add(dlock_factory *factory, dlocki_link *link, int kind)
{
    dlocki_flight *flight = dlocki_flight_at(link, link->flight_count);
    DLOCK_ASSERT(link->flight_count < DLOCKI_FLIGHT_MAX);
    memset(flight, 0, sizeof *flight);
    flight->kind = kind;
    flight->debt = -1;
    flight->begins = link->queued;
    flight->sent_at = factory->now;
    flight->deadline = dlocki_plus(factory->now, factory->command_timeout_ms);
    link->flight_count++;
    link->queued = link->sent + (link->out.to - link->out.from);
    return flight;
}

static void dlocki_put_ping(dlock_factory *factory, dlocki_link *link)
{
    dlocki_put_frame(&link->out, '*', 1);
    dlocki_put_text(&link->out, "PING");
    dlocki_flight_add(factory, link, DLOCKI_PING);
}

/* The factory's channel. */
static void dlocki_put_subscribe(dlock_factory *factory, dlocki_link *link)
{
    dlocki_put_frame(&link->out, '*', 2);
    dlocki_put_text(&link->out, "SUBSCRIBE");
    dlocki_put_frame(&link->out, '$', 22);
    dlocki_put(&link->out, "dlock:", 6);
    dlocki_put(&link->out, factory->id, 16);
    dlocki_put(&link->out, "\r\n", 2);
    dlocki_flight_add(factory, link, DLOCKI_SUBSCRIBE);
}

/* Messages reach all databases, so that the inbox selects none. */
static void dlocki_put_handshake(dlock_factory *factory, dlocki_link *link)
{
    const dlocki_url *url = &factory->url;
    if (url->has_password) {
        dlocki_put_frame(&link->out, '*', url->username_length > 0 ? 3 : 2);
        dlocki_put_text(&link->out, "AUTH");
        if (url->username_length > 0) {
            dlocki_put_bulk(&link->out, url->username, url->username_length);
        }
        dlocki_put_bulk(&link->out, url->password, url->password_length);
        dlocki_flight_add(factory, link, DLOCKI_AUTH);
    }
    if (url->database != 0 && !link->is_inbox) {
        dlocki_put_frame(&link->out, '*', 2);
        dlocki_put_text(&link->out, "SELECT");
        dlocki_put_number(&link->out, url->database);
        dlocki_flight_add(factory, link, DLOCKI_SELECT);
    }
    if (factory->client_name[0] != 0) {
        dlocki_put_frame(&link->out, '*', 3);
        dlocki_put_text(&link->out, "CLIENT");
        dlocki_put_text(&link->out, "SETNAME");
        dlocki_put_text(&link->out, factory->client_name);
        dlocki_flight_add(factory, link, DLOCKI_SETNAME);
    }
    if (link->is_inbox) {
        dlocki_put_subscribe(factory, link);
    } else if (link->barrier) {
        dlocki_put_ping(factory, link);
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

static void dlocki_connect_fail(dlock_factory *factory, dlocki_link *link, int os_errno)
{
    dlock_error why;
    int code = os_errno == ENOMEM ? DLOCK_MEMORY : DLOCK_UNREACHABLE;
    dlocki_say_server(factory, &why, code, os_errno, dlocki_errno_says(os_errno));
    dlocki_link_fail(factory, link, DLOCKI_UNCONNECTED, &why);
}

/* Begins to connect to the next address that does not fail at once. Each gets its share of the
 * time that is left, so that a silent one does not use up all of it. */
static void dlocki_connect_next(dlock_factory *factory, dlocki_link *link, int os_errno)
{
    dlocki_link_hang_up(factory, link);
    while (link->address_next < link->address_count && factory->now < link->connect_ends) {
        int left = link->address_count - link->address_next;
        int fd = factory->kernel->connect(factory->world, &link->addresses[link->address_next]);
        link->address_next++;
        if (fd >= 0) {
            link->fd = fd;
            link->state = DLOCKI_CONNECTING;
            dlocki_link_renew(link);
            link->connect_deadline = factory->now + (link->connect_ends - factory->now) / left;
            return;
        }
        os_errno = -fd;
    }
    dlocki_connect_fail(factory, link, os_errno);
}

static void dlocki_link_open(dlock_factory *factory, dlocki_link *link)
{
    int found = 1;
    if (factory->url.is_unix) {
        struct sockaddr_un address;
        memset(&address, 0, sizeof address);
        address.sun_family = AF_UNIX;
        memcpy(address.sun_path, factory->url.host, strlen(factory->url.host));
        memcpy(&link->addresses[0].at, &address, sizeof address);
        link->addresses[0].length = (socklen_t)sizeof address;
    } else {
        found = factory->kernel->resolve(factory->world, factory->url.host, (int)factory->url.port,
                                         link->addresses, DLOCKI_ADDRESS_MAX);
        factory->now = factory->kernel->now(factory->world);   /* that may have blocked */
    }
    link->address_count = found > 0 ? found : 0;
    link->address_next = 0;
    link->connect_ends = dlocki_plus(factory->now, factory->connect_timeout_ms);
    dlocki_connect_next(factory, link, found < 0 ? -found : ENOENT);
}

/* The socket is writable for the first time, or failed. */
static void dlocki_link_connected(dlock_factory *factory, dlocki_link *link)
{
    int failed = factory->kernel->connected(factory->world, link->fd);
    if (failed != 0) {
        dlocki_connect_next(factory, link, failed);
        return;
    }
    link->reader = dlocki_reader_open(&link->reply);
    if (link->reader == NULL) {
        dlocki_connect_fail(factory, link, ENOMEM);
        return;
    }
    link->state = DLOCKI_UP;
    link->used_at = factory->now;
    link->heard_at = factory->now;
    dlocki_note_link(factory, link, true, NULL);
    dlocki_put_handshake(factory, link);
}

/* What waits to be sent is told that it cannot be, once: whoever tries again waits anew. */
static void dlocki_lines_tell(dlock_factory *factory, int kind, const dlock_error *why)
{
    dlocki_list told = {NULL, NULL};
    int i;
    for (i = 0; i < 3; i++) {
        while (factory->line[i].first != NULL) {
            dlocki_line_move(factory->line[i].first, &told);
        }
    }
    while (told.first != NULL) {
        dlock_lock *lock = told.first;
        dlocki_line_move(lock, NULL);
        dlocki_feed_kind(factory, lock, kind, why);
    }
}

/* What was under way is told; what was not yet sent waits for the next connection, unless there
 * can be none. A connection that never served counts for those who wait, too: else a server that
 * always hangs up could keep them for ever. */
static void dlocki_link_tell(dlock_factory *factory, int cause, const dlock_error *why)
{
    dlocki_link *link = &factory->link;
    int count = link->flight_count;
    bool none = cause == DLOCKI_UNCONNECTED || link->barrier;
    int i;
    if (none || (!link->proven && count > 0)) {
        dlocki_lines_tell(factory, none ? DLOCKI_UNCONNECTED : DLOCKI_CUT_UNSENT, why);
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
        }
        link->barrier = link->barrier || (left && cause != DLOCKI_UNCONNECTED);
    }
}

/* Sends a command about a lock; false: not now. A release that is to be whole need not be so behind
 * another: then the server knows it, and many of them fit into what a stopped server takes. */
static bool dlocki_launch(dlock_factory *factory, dlocki_command *command, dlock_lock *lock,
                          int debt)
{
    dlocki_link *link = &factory->link;
    dlocki_flight *flight;
    bool returns = command->kind == DLOCKI_GIVE_BACK;
    command->whole = command->whole && !(returns && link->returned);
    if (link->flight_count == DLOCKI_FLIGHT_MAX || !dlocki_put_command(&link->out, command)) {
        return false;
    }
    link->returned = link->returned || (returns && command->whole);
    flight = dlocki_flight_add(factory, link, command->kind);
    flight->whole = command->whole;
    flight->fenced = command->fenced;
    flight->expiry_ms = command->expiry_ms;
    flight->lock = lock;
    flight->debt = debt;
    factory->stats.commands++;
    if (command->kind == DLOCKI_SET || command->kind == DLOCKI_ASK ||
        command->kind == DLOCKI_EXTEND) {   /* an answer after the lease's end says nothing */
        flight->deadline =
            dlocki_least(flight->deadline, dlocki_plus(factory->now, command->expiry_ms));
    }
    if (lock != NULL && lock->_verb == DLOCKI_RENEWAL) {   /* there must be time for another */
        int64_t span = dlocki_most((lock->_valid_until - factory->now) / 2, DLOCKI_QUIET_MS);
        flight->deadline = dlocki_least(flight->deadline, dlocki_plus(factory->now, span));
    }
    return true;
}

/* Sends what is owed; `bound_to` 0: what makes sense on any connection. */
static void dlocki_pump_debts(dlock_factory *factory, unsigned bound_to)
{
    int next;
    int i;
    for (i = dlocki_debt_waiting(factory); i >= 0; i = next) {
        dlocki_debt *debt = &factory->debts[i];
        dlocki_command command;
        next = debt->next;
        if (debt->sent || debt->bound_to != bound_to || factory->now < debt->due_at) {
            continue;
        }
        if (factory->now >= debt->lapses_at) {
            dlocki_debt_pay(factory, i);
            continue;
        }
        memset(&command, 0, sizeof command);
        command.kind = DLOCKI_GIVE_BACK;
        command.whole = true;   /* there may be no second chance to say it */
        command.letter = debt->letter;
        command.expiry_ms = debt->expiry_ms;
        command.owner = debt->owner;
        command.key = debt->key;
        command.key_length = debt->key_length;
        if (!dlocki_launch(factory, &command, NULL, i)) {
            return;
        }
        debt->sent = true;
        factory->debts_sent++;
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
    for (i = factory->debt_first; i >= 0; i = factory->debts[i].next) {
        factory->debts[i].due_at = dlocki_most(factory->debts[i].due_at, at);
    }
}

static void dlocki_debts_unsent(dlock_factory *factory)
{
    int i;
    for (i = factory->debt_first; i >= 0; i = factory->debts[i].next) {
        factory->debts[i].sent = false;
    }
    factory->debts_sent = 0;
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
    dlocki_debts_unsent(factory);
    dlocki_pump_debts(factory, 0);
    (void)factory->kernel->send(factory->world, link->fd, link->out.bytes + link->out.from,
                                link->out.to - link->out.from);
}

/* Everybody who needs the inbox is told. */
static void dlocki_listeners_tell(dlock_factory *factory, int kind, const dlock_error *why)
{
    dlock_lock *lock = factory->pending.first;
    while (lock != NULL) {
        dlock_lock *next = lock->_next;
        if (lock->_listens) {
            dlocki_feed_kind(factory, lock, kind, why);
        }
        lock = next;
    }
}

/* The first connection after one that had stood for a while is made at once, then pauses grow, at
 * random: one that is closed as soon as it is subscribed makes every waiter ask again. */
static void dlocki_inbox_fail(dlock_factory *factory, const dlock_error *why)
{
    dlocki_link *inbox = &factory->inbox;
    bool subscribed = factory->subscription != 0;
    int64_t pause = 0;
    if (subscribed && factory->now - inbox->subscribed_at >= DLOCKI_PAUSE_MAX_MS) {
        inbox->failures = 0;
    } else {
        unsigned char random[8] = {0};
        int i;
        inbox->failures += inbox->failures < INT_MAX;
        pause = DLOCK_DEFAULT_RETRY_MIN_MS;
        for (i = 1; i < inbox->failures && pause < DLOCKI_PAUSE_MAX_MS; i++) {
            pause *= 2;
        }
        (void)dlocki_take_random(factory, random);
        pause += pause * random[0] / 256;
    }
    inbox->turned_away = inbox->refused;
    if (inbox->turned_away) {   /* until somebody else wants to wait */
        pause = DLOCKI_REASK_MAX_MS;
    }
    inbox->retry_at = dlocki_plus(factory->now, pause);
    dlocki_link_close(factory, inbox);
    if (inbox->turned_away) {
        dlocki_listeners_tell(factory, DLOCKI_INBOX_REFUSED, why);
    } else if (subscribed) {
        dlocki_listeners_tell(factory, DLOCKI_UNSUBSCRIBED, why);
    }
}

/* The connection is of no use any more. */
static void dlocki_link_fail(dlock_factory *factory, dlocki_link *link, int cause,
                             const dlock_error *why)
{
    int i;
    dlocki_note_link(factory, link, false, why);
    if (link->is_inbox) {
        dlocki_inbox_fail(factory, why);
        return;
    }
    if (!link->proven && link->failures < INT_MAX) {
        link->failures++;
    }
    dlocki_link_tell(factory, cause, why);
    for (i = factory->debt_first; i >= 0 && link->barrier; i = factory->debts[i].next) {
        factory->debts[i].lapses_at = DLOCKI_NEVER;   /* who knows when the server will obey */
    }
    if (cause == DLOCKI_OVERDUE && link->state == DLOCKI_UP && !link->refused) {
        dlocki_link_farewell(factory);
    }
    dlocki_debts_unsent(factory);
    if (!link->proven) {
        dlocki_debts_put_off(factory);
    }
    dlocki_link_close(factory, link);
}

/* --- replies */

/* The server lives: what it still owed us was done before this answer, or never will be, and the
 * leases that may have come of it began before now. */
static void dlocki_heard(dlock_factory *factory)
{
    int i;
    for (i = factory->debt_first; i >= 0; i = factory->debts[i].next) {
        dlocki_debt *debt = &factory->debts[i];
        if (debt->lapses_at == DLOCKI_NEVER) {
            debt->lapses_at = dlocki_debt_lapses(factory, debt);
        }
    }
}

static void dlocki_note_mute(dlock_factory *factory, const dlock_lock *lock, int64_t flags)
{
    if ((flags & 8) != 0) {
        (void)dlocki_note(factory, lock, DLOCK_EVENT_MUTE, NULL);
    }
}

static void dlocki_answer_debt(dlock_factory *factory, int index, bool whole,
                               const dlocki_verdict *verdict)
{
    dlocki_debt *debt = &factory->debts[index];
    factory->debts_sent -= debt->sent;
    debt->sent = false;
    switch (verdict->kind) {
    case DLOCKI_FLAGS:
        dlocki_note_mute(factory, NULL, verdict->flags);
        factory->stats.undone++;
        dlocki_debt_pay(factory, index);
        break;
    case DLOCKI_REFUSAL:   /* trying again would not help: it lapses */
        dlocki_debt_pay(factory, index);
        break;
    case DLOCKI_NOSCRIPT:
        debt->due_at = factory->now;
        if (whole) {
            debt->due_at = dlocki_plus(factory->now, dlocki_debt_pause_ms(factory));
        }
        break;
    default:
        debt->due_at = dlocki_plus(factory->now, dlocki_debt_pause_ms(factory));
        break;
    }
}

static void dlocki_answer_handshake(dlock_factory *factory, dlocki_link *link,
                                    const dlocki_verdict *verdict)
{
    dlock_error why;
    if (verdict->kind == DLOCKI_FINE || link->refused) {
        return;
    }
    if (verdict->kind == DLOCKI_LATER) {   /* turned away at the door: nothing was executed */
        dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, 0, verdict->says);
        dlocki_link_fail(factory, link, DLOCKI_UNCONNECTED, &why);
        return;
    }
    link->refused = true;
    dlocki_say_server(factory, &link->refusal, DLOCK_REFUSED, 0,
                      verdict->says != NULL ? verdict->says : "refuses the handshake");
}

/* Where dlock_inspect wants to have it. */
static void dlocki_answer_inspect(dlock_info *info, const dlocki_verdict *verdict)
{
    size_t i;
    memset(info, 0, sizeof *info);
    info->held = verdict->lease_ms != -2;
    info->foreign = verdict->foreign;
    info->remaining_ms = info->held ? verdict->lease_ms : 0;
    info->fence = verdict->fence;
    info->waiters = verdict->place;
    for (i = 0; i < verdict->owner_length && i < sizeof info->owner - 1; i++) {
        char c = verdict->owner[i];
        info->owner[i] = (char)(c < ' ' || c > '~' ? '?' : c);
    }
}

static void dlocki_answer_lock(dlock_factory *factory, const dlocki_flight *flight,
                               dlocki_verdict *verdict)
{
    dlocki_link *link = &factory->link;
    dlock_lock *lock = flight->lock;
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
            (void)dlocki_owe(factory, lock, link->generation);
        }
        verdict->kind = DLOCKI_REFUSAL;
        in.why = &link->refusal;
    } else if (verdict->says != NULL) {
        dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, 0, verdict->says);
        in.why = &why;
    }
    if (verdict->now_us > 0) {
        link->anchor_us = verdict->now_us;
        link->anchor_at = flight->sent_at;
    }
    if (verdict->kind == DLOCKI_FLAGS && flight->kind != DLOCKI_EXTEND) {
        dlocki_note_mute(factory, lock, verdict->flags);
    }
    if (verdict->kind == DLOCKI_HELD && !lock->_waits_told &&
        (verdict->place > 0 || !lock->_queues || lock->_attempts > 0) &&
        (lock->_retry_count != 0 || lock->_wait_ms != 0)) {
        lock->_waits_told = true;
        (void)dlocki_note(factory, lock, DLOCK_EVENT_WAITING, NULL);
    }
    if (verdict->kind == DLOCKI_SEEN) {
        dlocki_answer_inspect((dlock_info *)lock->_done_user, verdict);
    }
    in.verdict = *verdict;
    dlocki_feed(factory, lock, &in);
}

/* One whole reply of the commands' link is in link->reply. `more`: bytes follow it. */
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
        dlocki_say_server(factory, &why, DLOCK_PROTOCOL, 0, dlocki_says_garbage);
        dlocki_link_fail(factory, link, DLOCKI_BABBLE, &why);
        return;
    }
    dlocki_flight_land(link);
    factory->crossing -= factory->crossing > 0;
    link->stale = link->stale || verdict.elsewhere;
    link->returned = link->returned && verdict.kind != DLOCKI_NOSCRIPT;
    if (flight.kind >= DLOCKI_SET && verdict.kind <= DLOCKI_FLAGS) {
        link->proven = true;
        link->scripted = link->scripted || flight.kind != DLOCKI_SET;
        link->failures = 0;
    }
    if (flight.kind == DLOCKI_PING) {   /* any answer is one */
        link->barrier = false;
        dlocki_heard(factory);
    } else if (flight.kind < DLOCKI_PING) {
        dlocki_answer_handshake(factory, link, &verdict);
    } else if (flight.debt >= 0) {
        dlocki_debt *debt = &factory->debts[flight.debt];
        if (link->refused && debt->bound_to == 0) {   /* what it says of it means nothing */
            factory->debts_sent -= debt->sent;
            debt->sent = false;
        } else {
            dlocki_answer_debt(factory, flight.debt, flight.whole, &verdict);
        }
    } else if (flight.lock != NULL) {
        dlocki_answer_lock(factory, &flight, &verdict);
    }
}

/* Who was told? Nobody, if it is not waiting any more: its place was or will be given up by an
 * undo, which passes on what it finds. */
static void dlocki_inbox_message(dlock_factory *factory, const dlocki_message *message)
{
    dlock_lock *lock = dlocki_owner_find(factory, message->owner);
    dlocki_event in;
    if (lock == NULL) {
        return;
    }
    memset(&in, 0, sizeof in);
    in.kind = message->kind == DLOCKI_GRANT ? DLOCKI_GIVEN : DLOCKI_TAKEN_FROM;
    in.fence = message->fence;
    in.given_us = message->now_us;
    in.anchor_us = factory->link.anchor_us;
    in.anchor_at = factory->link.anchor_at;
    if (lock->_verb == DLOCKI_ACQUIRE && in.kind == DLOCKI_GIVEN) {
        uint64_t before = factory->stats.acquired;
        dlocki_feed(factory, lock, &in);
        factory->stats.handed_over += factory->stats.acquired - before;
    } else if (in.kind == DLOCKI_TAKEN_FROM &&
               (lock->_verb == DLOCKI_NO_VERB || lock->_verb == DLOCKI_RENEWAL)) {
        dlocki_feed(factory, lock, &in);
    }
}

/* One whole reply of the inbox. It subscribes once, and is asked for a PONG now and then. */
static void dlocki_inbox_answer(dlock_factory *factory)
{
    dlocki_link *inbox = &factory->inbox;
    int asked = inbox->flight_count > 0 ? inbox->flights[inbox->flight_first].kind : -1;
    dlocki_message message = dlocki_judge_inbox(&inbox->reply, factory->id);
    dlock_error why;
    bool fits = message.kind >= DLOCKI_GRANT && factory->subscription != 0;
    inbox->heard_at = factory->now;
    if (fits) {
        dlocki_inbox_message(factory, &message);
        return;
    }
    if (asked >= 0 && inbox->reply.type != REDIS_REPLY_ARRAY) {   /* the handshake, or an error */
        dlocki_verdict verdict = dlocki_judge(asked, false, 0, &inbox->reply);
        fits = verdict.kind != DLOCKI_GARBAGE;
        if (fits) {
            dlocki_flight_land(inbox);
            dlocki_answer_handshake(factory, inbox, &verdict);
            if (inbox->refused && inbox->state == DLOCKI_UP) {
                why = inbox->refusal;
                dlocki_link_fail(factory, inbox, DLOCKI_UNCONNECTED, &why);
            }
        }
    } else if ((asked == DLOCKI_SUBSCRIBE && message.kind == DLOCKI_SUBSCRIBED_TO) ||
               (asked == DLOCKI_PING && message.kind == DLOCKI_PONG)) {
        fits = true;
        dlocki_flight_land(inbox);
        if (asked == DLOCKI_SUBSCRIBE) {
            inbox->subscribed_at = factory->now;
            factory->crossing = factory->link.flight_count;
            factory->subscription = inbox->generation;
            dlocki_listeners_tell(factory, DLOCKI_SUBSCRIBED, NULL);
        }
    }
    if (!fits) {
        dlocki_say_server(factory, &why, DLOCK_PROTOCOL, 0, dlocki_says_garbage);
        dlocki_link_fail(factory, inbox, DLOCKI_BABBLE, &why);
    }
}

/* Parses bytes that have come in; false: the connection was given up. */
static bool dlocki_link_take(dlock_factory *factory, dlocki_link *link, size_t count)
{
    unsigned generation = link->generation;
    dlock_error why;
    bool partial;
    bool fed = redisReaderFeed(link->reader, (const char *)factory->in, count) == REDIS_OK;
    while (fed && link->reader->len > link->reader->pos) {
        void *parsed = NULL;
        link->reply.strange = false;
        fed = redisReaderGetReply(link->reader, &parsed) == REDIS_OK;
        if (parsed == NULL) {
            break;
        }
        if (link->is_inbox) {
            dlocki_inbox_answer(factory);
        } else {
            dlocki_answer(factory, link->reader->len > link->reader->pos);
        }
        if (link->generation != generation) {
            return false;
        }
    }
    /* The beginning of a reply that nobody waits for is as bad as a whole one. */
    partial = link->reader->ridx != -1 && !link->is_inbox;
    if (fed && link->reader->len - link->reader->pos <= DLOCKI_REPLY_MAX &&
        (!partial || link->flight_count > 0)) {
        return true;
    }
    if (!fed && link->reader->err == REDIS_ERR_OOM && !link->reply.strange) {
        dlocki_say_server(factory, &why, DLOCK_MEMORY, ENOMEM,
                          "sent an answer for which no memory is left");
        dlocki_link_fail(factory, link, DLOCKI_CUT, &why);
    } else {
        dlocki_say_server(factory, &why, DLOCK_PROTOCOL, 0, dlocki_says_garbage);
        dlocki_link_fail(factory, link, DLOCKI_BABBLE, &why);
    }
    return false;
}

/* Reads what is there, within bounds: whoever floods us does not keep us from our timers. */
static void dlocki_link_read(dlock_factory *factory, dlocki_link *link)
{
    int i;
    for (i = 0; i < DLOCKI_READS_MAX; i++) {
        long got =
            factory->kernel->receive(factory->world, link->fd, factory->in, sizeof factory->in);
        if (got == -EAGAIN || got == -EWOULDBLOCK) {
            return;
        }
        if (got <= 0) {
            dlock_error why;
            dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, (int)-got, dlocki_says_closed);
            dlocki_link_fail(factory, link, DLOCKI_CUT, &why);
            return;
        }
        link->used_at = factory->now;
        if (!dlocki_link_take(factory, link, (size_t)got) || (size_t)got < sizeof factory->in) {
            return;
        }
    }
}

static void dlocki_link_timers(dlock_factory *factory, dlocki_link *link)
{
    if (link->state == DLOCKI_CONNECTING && factory->now >= link->connect_deadline) {
        dlocki_connect_next(factory, link, ETIMEDOUT);
    } else if (link->state == DLOCKI_UP && link->flight_count > 0 &&
               factory->now >= link->flights[link->flight_first].deadline) {
        dlock_error why;
        dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, ETIMEDOUT, "did not answer in time");
        dlocki_link_fail(factory, link, DLOCKI_OVERDUE, &why);
    }
}

/* --- sending */

/* Is there a connection on which commands may be sent now? Makes one if there is none. */
static bool dlocki_link_ready(dlock_factory *factory)
{
    dlocki_link *link = &factory->link;
    if (link->state == DLOCKI_UP && factory->now - link->used_at >= DLOCKI_QUIET_MS) {
        dlocki_link_read(factory, link);   /* it may have ended, or say something unasked */
        dlocki_link_timers(factory, link);   /* or owe an answer for too long: no more for it */
    }
    if (link->state == DLOCKI_UP && link->refused) {
        dlocki_pump_debts(factory, link->generation);
        dlocki_flush(factory, link);
    }
    if (link->state == DLOCKI_UP && link->flight_count == 0 && (link->stale || link->refused)) {
        dlocki_debts_put_off(factory);
        dlocki_link_close(factory, link);
    }
    if (link->state == DLOCKI_DOWN) {
        dlocki_link_open(factory, link);
    }
    return link->state == DLOCKI_UP && !link->refused && !link->barrier;
}

/* What is owed on a key travels ahead of a new ask, even if it was told "later": else the ask
 * would find our own leftover and call it somebody else's. */
static void dlocki_pump_debts_of(dlock_factory *factory, const dlock_lock *lock)
{
    bool found = false;
    int i;
    for (i = dlocki_debt_waiting(factory); i >= 0; i = factory->debts[i].next) {
        dlocki_debt *debt = &factory->debts[i];
        if (!debt->sent && debt->key_length == lock->_key_length &&
            memcmp(debt->key, lock->_key, debt->key_length) == 0) {
            debt->due_at = factory->now;
            found = true;
        }
    }
    if (found) {
        dlocki_pump_debts(factory, 0);
    }
}

/* A message is not answered, so that an inbox that has silently died looks like one that is told
 * nothing. While somebody waits it is asked now and then. */
static void dlocki_inbox_check(dlock_factory *factory)
{
    dlocki_link *inbox = &factory->inbox;
    if (factory->subscription != 0 && inbox->flight_count == 0 &&
        factory->now - inbox->heard_at >= factory->command_timeout_ms) {
        dlocki_put_ping(factory, inbox);
    }
}

/* Room for what may have to be undone later? -1: none, and none will come; 0: not yet; 1: yes. */
static int dlocki_ask_room(dlock_factory *factory, dlock_lock *lock)
{
    dlock_error why;
    if (lock->_reserved) {
        return 1;
    }
    if (factory->debt_count < DLOCK_DEBT_MAX && dlocki_debts_fit(factory)) {
        dlocki_reserve(factory, lock, true);
        return 1;
    }
    if (factory->debts_sent > 0) {
        return 0;
    }
    dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, 0,
                      "has not yet undone as many locks as can be remembered");
    dlocki_line_move(lock, NULL);
    dlocki_feed_kind(factory, lock, DLOCKI_UNCONNECTED, &why);
    return -1;
}

/* Sends one handle's command; false: not now. */
static bool dlocki_pump_lock(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_command command = dlocki_lock_command(lock, factory->subscription != 0);
    dlocki_event in;
    if (lock->_verb == DLOCKI_ACQUIRE) {
        int room = dlocki_ask_room(factory, lock);
        if (room <= 0) {
            return room < 0;
        }
        dlocki_pump_debts_of(factory, lock);
        if (command.kind == DLOCKI_SET && !factory->link.scripted) {
            command.kind = DLOCKI_ASK;   /* where scripts are forbidden nothing can be given back */
        }
    }
    if (!dlocki_launch(factory, &command, lock, -1)) {
        return false;
    }
    if (command.kind == DLOCKI_ASK && command.letter != 0) {
        dlocki_listen(factory, lock, true);
        dlocki_inbox_check(factory);
    }
    dlocki_line_move(lock, NULL);
    memset(&in, 0, sizeof in);
    in.kind = DLOCKI_SENT;
    in.letter = command.kind == DLOCKI_ASK ? command.letter : (char)0;
    dlocki_feed(factory, lock, &in);
    return true;
}

/* Do those who would stand in line have to wait until they can? While the inbox is on its way, what
 * is asked would have to be asked again (but nobody waits for one that has failed before). And who
 * did ask without a ticket comes before those who have not asked yet. */
static bool dlocki_line_is_closed(const dlock_factory *factory)
{
    bool opens = factory->inbox.state != DLOCKI_DOWN && factory->subscription == 0;
    return (opens && factory->inbox.failures == 0 && factory->listeners > 0) ||
           factory->crossing > 0;
}

static bool dlocki_pump_line(dlock_factory *factory, dlocki_list *line)
{
    while (line->first != NULL) {
        if (!dlocki_pump_lock(factory, line->first)) {
            return false;
        }
    }
    return true;
}

static bool dlocki_is_idle(const dlock_factory *factory)
{
    int i;
    for (i = 0; i < 3; i++) {
        if (factory->line[i].first != NULL) {
            return false;
        }
    }
    for (i = dlocki_debt_waiting(factory); i >= 0; i = factory->debts[i].next) {
        if (!factory->debts[i].sent && factory->now >= factory->debts[i].due_at) {
            return false;
        }
    }
    return true;
}

static bool dlocki_inbox_is_due(const dlock_factory *factory)
{
    return factory->listeners > 0 && factory->inbox.state == DLOCKI_DOWN && !factory->closing;
}

/* Sends what waits to be sent: debts first, so that an undo travels ahead of a new try; then what
 * gives back, renews, or was sent before and may become a debt; then asks. */
static void dlocki_pump(dlock_factory *factory)
{
    if (!dlocki_is_idle(factory)) {
        if (dlocki_link_ready(factory)) {
            dlocki_pump_debts(factory, 0);
            if (dlocki_pump_line(factory, &factory->line[0]) &&
                dlocki_pump_line(factory, &factory->line[1]) && !dlocki_line_is_closed(factory)) {
                (void)dlocki_pump_line(factory, &factory->line[2]);
            }
        }
        dlocki_flush(factory, &factory->link);
    }
    if (dlocki_inbox_is_due(factory) && factory->now >= factory->inbox.retry_at) {
        dlocki_link_open(factory, &factory->inbox);
    }
    dlocki_flush(factory, &factory->inbox);
}

/* --- time and the wait */

static int64_t dlocki_link_wake(const dlocki_link *link)
{
    if (link->state == DLOCKI_CONNECTING) {
        return link->connect_deadline;
    }
    return link->flight_count > 0 ? link->flights[link->flight_first].deadline : DLOCKI_NEVER;
}

static int64_t dlocki_next_wake(const dlock_factory *factory)
{
    int64_t at = factory->ends_at;
    int i;
    if (factory->link.state == DLOCKI_DOWN && !dlocki_is_idle(factory)) {
        return factory->now;   /* it was lost while sending: a new one, at once */
    }
    at = dlocki_least(at, dlocki_link_wake(&factory->link));
    at = dlocki_least(at, dlocki_link_wake(&factory->inbox));
    if (dlocki_inbox_is_due(factory)) {
        at = dlocki_least(at, factory->inbox.retry_at);
    }
    if (factory->timers != NULL) {
        at = dlocki_least(at, factory->timers->_due_at);
    }
    if (factory->link.flight_count == DLOCKI_FLIGHT_MAX) {
        return at;   /* nothing more can be sent before an answer comes */
    }
    for (i = dlocki_debt_waiting(factory); i >= 0; i = factory->debts[i].next) {
        const dlocki_debt *debt = &factory->debts[i];
        if (!debt->sent && debt->due_at > factory->now) {
            at = dlocki_least(at, debt->due_at);
        }
    }
    return at;
}

static void dlocki_timers(dlock_factory *factory)
{
    dlocki_link_timers(factory, &factory->link);
    dlocki_link_timers(factory, &factory->inbox);
    while (factory->timers != NULL && factory->now >= factory->timers->_due_at) {
        dlocki_feed_kind(factory, factory->timers, DLOCKI_TIME, NULL);
    }
    while (factory->now == DLOCKI_NEVER && factory->pending.first != NULL) {   /* no clock */
        dlocki_feed_kind(factory, factory->pending.first, DLOCKI_TIME, NULL);
    }
}

static void dlocki_cancels(dlock_factory *factory)
{
    dlock_lock *lock = factory->pending.first;
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

static short dlocki_link_events(const dlocki_link *link)
{
    if (link->state == DLOCKI_DOWN) {
        return 0;
    }
    return (short)(POLLIN | (dlocki_wants_write(link) ? POLLOUT : 0));
}

/* Does a link need somebody who reads? */
static bool dlocki_link_is_busy(const dlocki_link *link)
{
    return link->flight_count > 0 || dlocki_wants_write(link);
}

static void dlocki_link_ready_for(dlock_factory *factory, dlocki_link *link, short events)
{
    if (link->state == DLOCKI_CONNECTING) {
        dlocki_link_connected(factory, link);
        return;
    }
    if ((events & ~POLLOUT) != 0) {
        dlocki_link_read(factory, link);
    }
    dlocki_flush(factory, link);
}

/* Waits for the kernel once, without the mutex, and deals with what came: answers before timers,
 * so that a process that was stopped finds the answers that came meanwhile. The commands' link is
 * left out by the renewer while a caller reads it. */
static void dlocki_wait(dlock_factory *factory, dlocki_plan *plan, int wake_fd, bool commands,
                        bool blocks)
{
    dlocki_link *links[2];
    struct pollfd fds[3];
    int64_t timeout = 0;
    int i;
    links[0] = &factory->link;
    links[1] = &factory->inbox;
    plan->wake_fd = wake_fd;
    plan->commands = commands;
    plan->until = dlocki_next_wake(factory);
    if (blocks) {
        timeout = plan->until < DLOCKI_NEVER || factory->now == DLOCKI_NEVER
                      ? dlocki_most(0, plan->until - factory->now)
                      : -1;
    }
    for (i = 0; i < 2; i++) {
        plan->generations[i] = links[i]->generation;
        plan->writes[i] = dlocki_wants_write(links[i]);
        fds[i].fd = links[i]->state == DLOCKI_DOWN || (i == 0 && !commands) ? -1 : links[i]->fd;
        fds[i].events = dlocki_link_events(links[i]);
        fds[i].revents = 0;
    }
    fds[2].fd = wake_fd;
    fds[2].events = POLLIN;
    fds[2].revents = 0;
    plan->active = blocks;
    dlocki_books_unlock(factory);
    (void)factory->kernel->wait(factory->world, fds, 3, (int)dlocki_least(timeout, INT_MAX));
    dlocki_books_lock(factory);
    plan->active = false;
    factory->now = factory->kernel->now(factory->world);
    for (i = 0; i < 2; i++) {
        if (fds[i].revents != 0 && links[i]->generation == plan->generations[i]) {
            dlocki_link_ready_for(factory, links[i], fds[i].revents);
        }
    }
    if (fds[2].revents != 0) {
        if (blocks || !factory->lead.active) {   /* else it may be meant for the leader, too */
            dlocki_drain(wake_fd);
        }
        dlocki_cancels(factory);
    }
    dlocki_timers(factory);
}

/* Is the one who waits for the kernel unaware of something that was changed meanwhile? */
static bool dlocki_plan_is_old(const dlock_factory *factory, const dlocki_plan *plan)
{
    const dlocki_link *link = &factory->link;
    const dlocki_link *inbox = &factory->inbox;
    if (plan->generations[1] != inbox->generation ||
        (dlocki_wants_write(inbox) && !plan->writes[1])) {
        return true;
    }
    if (!plan->commands && !factory->lead.active && dlocki_link_is_busy(link)) {
        return true;
    }
    if (plan->commands && (plan->generations[0] != link->generation ||
                           (dlocki_wants_write(link) && !plan->writes[0]))) {
        return true;
    }
    return dlocki_next_wake(factory) < plan->until;
}

/* --- the outer set: what dlock_fd is readable for */

static bool dlocki_loop_open(dlock_factory *factory)
{
    const dlocki_kernel *kernel = factory->kernel;
    int set = kernel->set_open(factory->world);
    int timer = kernel->timer_open(factory->world);
    int due = kernel->wake_fd(factory->world);
    if (set < 0 || timer < 0 || due < 0) {
        dlocki_fd_close(factory, set);
        dlocki_fd_close(factory, timer);
        dlocki_fd_close(factory, due);
        return false;
    }
    kernel->set_watch(factory->world, set, factory->wake_fd, POLLIN);
    kernel->set_watch(factory->world, set, timer, POLLIN);
    kernel->set_watch(factory->world, set, due, POLLIN);
    factory->timer_at = DLOCKI_NEVER;
    factory->timer_fd = timer;
    factory->due_fd = due;
    factory->loop_fd = set;
    return true;
}

static void dlocki_loop_close(dlock_factory *factory)
{
    int set = factory->loop_fd;
    if (set >= 0) {
        factory->loop_fd = -1;
        factory->kernel->close(factory->world, set);
        factory->kernel->close(factory->world, factory->timer_fd);
        factory->kernel->close(factory->world, factory->due_fd);
    }
}

/* A timer that is set too early costs one look for nothing; setting it anew with every command
 * would cost more. */
static void dlocki_loop_update(dlock_factory *factory)
{
    const dlocki_kernel *kernel = factory->kernel;
    dlocki_link *links[2];
    int64_t at = dlocki_next_wake(factory);
    bool told = factory->news_first != NULL || factory->lost.first != NULL;
    bool due = factory->done_first != NULL || (told && !factory->telling);
    int i;
    links[0] = &factory->link;
    links[1] = &factory->inbox;
    for (i = 0; i < 2; i++) {
        short events = dlocki_link_events(links[i]);
        if (events != links[i]->watched) {
            kernel->set_watch(factory->world, factory->loop_fd, links[i]->fd, events);
            links[i]->watched = events;
        }
    }
    if (at < factory->timer_at || factory->timer_at <= factory->now) {
        kernel->timer_set(factory->world, factory->timer_fd, at);
        factory->timer_at = at;
    }
    if (due && !factory->due_set && !factory->processing) {
        dlocki_wake(factory->due_fd);
        factory->due_set = true;
    } else if (!due && factory->due_set) {
        dlocki_drain(factory->due_fd);
        factory->due_set = false;
    }
}

/* --- callbacks, and who drives */

/* Somebody must go on for those who still wait. */
static void dlocki_lead_pass(dlock_factory *factory)
{
    dlock_lock *other = factory->lead.active ? NULL : factory->pending.first;
    while (other != NULL && other->_sleeper == NULL) {
        other = other->_next;
    }
    if (other != NULL) {
        dlocki_condition_signal((dlocki_condition *)other->_sleeper);
    }
}

/* Runs one callback, without the mutex; false: none is due. */
static bool dlocki_tell_one(dlock_factory *factory)
{
    dlocki_news *news = factory->news_first;
    dlock_lock *lock = factory->lost.first;
    if (news != NULL) {
        factory->news_first = news->next;
        if (news->next == NULL) {
            factory->news_last = NULL;
        }
        dlocki_books_unlock(factory);
        factory->on_event(&news->event, factory->user);
        dlocki_books_lock(factory);
        news->next = factory->news_spare;
        factory->news_spare = news;
        return true;
    }
    while (lock != NULL && lock->_done != NULL) {   /* first it is told that it was acquired */
        lock = lock->_next;
    }
    if (lock == NULL) {
        return false;
    }
    dlocki_list_move(lock, &factory->over);
    factory->told_lock = lock;
    dlocki_books_unlock(factory);
    lock->_on_lost(lock, lock->_lost_user);
    dlocki_books_lock(factory);
    factory->told_lock = NULL;
    dlocki_condition_wake_all(&factory->told);
    return true;
}

/* Runs the callbacks that are due, but for `done`. One thread at a time does, so that they are in
 * order; what a callback causes is told after it. */
static void dlocki_tell(dlock_factory *factory)
{
    if ((factory->news_first == NULL && factory->lost.first == NULL) || factory->telling) {
        return;
    }
    factory->telling = true;
    factory->teller = dlocki_thread_self();
    dlocki_lead_pass(factory);
    while (dlocki_tell_one(factory)) {
    }
    factory->telling = false;
    factory->now = factory->kernel->now(factory->world);
}

/* Calls every `done` that is due now; those that come of it have to wait for the next time. */
static void dlocki_done_call(dlock_factory *factory)
{
    const dlock_lock *last = factory->done_last;
    bool more = last != NULL;
    while (more) {
        dlock_lock *lock = factory->done_first;
        dlock_done *done = lock->_done;
        void *user = lock->_done_user;
        bool answer = lock->_answer;
        more = lock != last;
        factory->done_first = lock->_done_next;
        if (lock->_done_next == NULL) {
            factory->done_last = NULL;
        }
        lock->_done_next = NULL;
        lock->_done = NULL;
        dlocki_store(&lock->_claim, DLOCKI_FREE);
        dlocki_books_unlock(factory);
        done(lock, answer, user);
        dlocki_books_lock(factory);
        factory->now = factory->kernel->now(factory->world);
    }
}

/* Puts a call under way. A renewal that is under way means nothing any more. */
static void dlocki_begin(dlock_factory *factory, dlock_lock *lock, int verb)
{
    dlocki_drop(factory, lock);
    lock->_verb = verb;
    lock->_arrival = ++factory->arrivals;
    dlocki_list_move(lock, &factory->pending);
    dlocki_feed_kind(factory, lock, DLOCKI_STARTED, NULL);
    if (dlocki_load(&lock->_claim) == DLOCKI_CANCELLED && lock->_list == &factory->pending) {
        dlocki_feed_kind(factory, lock, DLOCKI_CANCEL, NULL);   /* before anybody looked */
    }
}

/* The calling thread's part: one of those who wait drives for all, the others sleep. */
static void dlocki_drive(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_pump(factory);
    while (lock->_list == &factory->pending) {
        if (factory->lead.active) {
            dlocki_condition woken;
            dlocki_condition_open(&woken);
            lock->_sleeper = &woken;
            dlocki_books_sleep(factory, &woken);
            lock->_sleeper = NULL;
            dlocki_condition_close(&woken);
        } else {
            dlocki_wait(factory, &factory->lead, factory->wake_fd, true, true);
        }
        dlocki_pump(factory);
        dlocki_tell(factory);
    }
    dlocki_tell(factory);
    dlocki_lead_pass(factory);
}

static void dlocki_enter(dlock_factory *factory)
{
    factory->inside++;
    factory->now = factory->kernel->now(factory->world);
}

static void dlocki_leave(dlock_factory *factory)
{
    factory->inside--;
    if (factory->closing && factory->inside == 0) {
        dlocki_condition_signal(&factory->left);
    }
}

#ifndef DLOCK_NO_THREADS
/* The factory's own thread. It leaves the commands' link to a caller who waits for an answer. */
static void *dlocki_renewer(void *argument)
{
    dlock_factory *factory = (dlock_factory *)argument;
    dlocki_books_lock(factory);
    factory->now = factory->kernel->now(factory->world);
    while (!factory->ends_renewer) {
        bool commands = !factory->lead.active && dlocki_link_is_busy(&factory->link);
        dlocki_wait(factory, &factory->renewal, factory->renewer_fd, commands, true);
        dlocki_pump(factory);
        dlocki_tell(factory);
    }
    dlocki_books_unlock(factory);
    return NULL;
}

/* Starts it, if there is none yet: with all signals blocked, they are the program's. */
static bool dlocki_renewer_start(dlock_factory *factory, dlock_error *error)
{
    sigset_t all;
    sigset_t kept;
    int fd = 0;
    int failed = 0;
    dlocki_books_lock(factory);
    if (!factory->has_renewer && !factory->closing) {
        fd = factory->kernel->wake_fd(factory->world);
        factory->renewer_fd = fd;
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &kept);
        failed = fd < 0 ? -fd : pthread_create(&factory->renewer, NULL, dlocki_renewer, factory);
        (void)pthread_sigmask(SIG_SETMASK, &kept, NULL);
        factory->has_renewer = failed == 0;
        if (failed != 0) {
            factory->renewer_fd = -1;
            dlocki_fd_close(factory, fd);
        }
    }
    dlocki_books_unlock(factory);
    return failed == 0 || dlocki_say(error, fd < 0 ? DLOCK_UNREACHABLE : DLOCK_MEMORY, failed,
                                     "The system has no descriptor or thread left for renewals.");
}

static void dlocki_renewer_end(dlock_factory *factory)
{
    if (factory->has_renewer) {
        factory->ends_renewer = true;
        dlocki_wake(factory->renewer_fd);
        dlocki_books_unlock(factory);
        (void)pthread_join(factory->renewer, NULL);
        dlocki_books_lock(factory);
    }
}
#else
static bool dlocki_renewer_start(dlock_factory *factory, dlock_error *error)
{
    (void)factory;
    return dlocki_say(error, DLOCK_ARGUMENT, 0,
                      "Without threads only dlock_process can renew: use dlock_acquire_start.");
}

static void dlocki_renewer_end(dlock_factory *factory)
{
    (void)factory;
}
#endif

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

static void dlocki_news_free(dlock_factory *factory, dlocki_news *news)
{
    while (news != NULL) {
        dlocki_news *next = news->next;
        dlocki_give_memory(factory, news);
        news = next;
    }
}

static void dlocki_factory_free(dlock_factory *factory)
{
    void (*release)(void *, void *) = factory->free;
    void *user = factory->user;
    dlocki_news_free(factory, factory->news_first);
    dlocki_news_free(factory, factory->news_spare);
    if (factory->debts != NULL && factory->debts != factory->debts_own) {
        dlocki_wipe(factory->debts, (size_t)factory->debt_room * sizeof *factory->debts);
        dlocki_give_memory(factory, factory->debts);
    }
    dlocki_wipe(factory, sizeof *factory);
    if (release != NULL) {
        release(factory, user);
    } else {
        DLOCK_FREE(factory);
    }
}

static bool dlocki_factory_start(dlock_factory *factory, dlock_error *error)
{
    unsigned char random[8];
    if (!dlocki_take_random(factory, random)) {
        return dlocki_say(error, DLOCK_UNREACHABLE, 0, "The system gives no random numbers.");
    }
    dlocki_hex(random, sizeof random, factory->id);
    factory->wake_fd = factory->kernel->wake_fd(factory->world);
    if (factory->wake_fd < 0) {
        return dlocki_say(error, DLOCK_UNREACHABLE, -factory->wake_fd,
                          "The system has no descriptor left.");
    }
    factory->pid = factory->kernel->pid(factory->world);
    factory->ends_at = DLOCKI_NEVER;
    factory->loop_fd = -1;
    factory->renewer_fd = -1;
    factory->link.fd = -1;
    factory->link.generation = 1;
    factory->inbox.fd = -1;
    factory->inbox.generation = 1;
    factory->inbox.is_inbox = true;
    factory->debts = factory->debts_own;
    factory->debt_room = DLOCK_DEBT_MAX;
    factory->debt_first = -1;
    factory->debt_last = -1;
    factory->debt_free = -1;
    dlocki_debts_chain(factory, 0);
    dlocki_mutex_open(&factory->mutex);
    dlocki_condition_open(&factory->left);
    dlocki_condition_open(&factory->told);
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
    factory->on_event = config->on_event;
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
    int i;
    factory->now = factory->kernel->now(factory->world);
    factory->ends_at = dlocki_plus(factory->now, factory->command_timeout_ms);
    for (i = factory->debt_first; i >= 0; i = factory->debts[i].next) {
        factory->debts[i].due_at = factory->now;   /* no time to put anything off */
    }
    while (factory->held.first != NULL) {
        dlock_lock *lock = factory->held.first;
        dlocki_begin(factory, lock, DLOCKI_RELEASE);
        lock->_whole = true;   /* as for a debt */
    }
    while ((factory->pending.first != NULL || factory->debt_count > 0) &&
           factory->now < factory->ends_at) {
        dlocki_pump(factory);
        if (factory->pending.first != NULL || factory->debt_count > 0) {
            dlocki_wait(factory, &factory->lead, factory->wake_fd, true, true);
        }
    }
    while (factory->pending.first != NULL) {
        dlocki_feed_kind(factory, factory->pending.first, DLOCKI_CANCEL, NULL);
    }
}

static void dlocki_close_books(dlock_factory *factory)
{
    dlock_lock *lock;
    dlock_lock *next;
    dlocki_books_lock(factory);
    factory->closing = true;
    factory->now = factory->kernel->now(factory->world);
    for (lock = factory->pending.first; lock != NULL; lock = next) {
        next = lock->_next;
        dlocki_feed_kind(factory, lock, DLOCKI_CANCEL, NULL);
    }
    dlocki_wake(factory->wake_fd);
    while (factory->inside > 0) {
        dlocki_books_sleep(factory, &factory->left);
    }
    dlocki_renewer_end(factory);
    dlocki_done_call(factory);
    dlocki_close_drive(factory);
    dlocki_link_close(factory, &factory->link);
    dlocki_link_close(factory, &factory->inbox);
    dlocki_tell(factory);
    while (factory->over.first != NULL) {
        lock = factory->over.first;
        dlocki_list_move(lock, NULL);
        dlocki_clean(lock);
        dlocki_store(&lock->_loss, DLOCKI_NO_LOSS);
        dlocki_store(&lock->_state, DLOCKI_UNUSED);
    }
    dlocki_books_unlock(factory);
    dlocki_condition_close(&factory->left);
    dlocki_condition_close(&factory->told);
    dlocki_mutex_close(&factory->mutex);
}

DLOCK_DEF void dlock_close(dlock_factory *factory)
{
    if (factory == NULL) {
        return;
    }
    if (factory->kernel->pid(factory->world) == factory->pid) {
        dlocki_close_books(factory);
        dlocki_loop_close(factory);
    } else {
        factory->on_event = NULL;
        factory->debt_first = -1;
        dlocki_loop_close(factory);   /* before the links: the set is the parent's, too */
        if (dlocki_load(&factory->writing) != 0) {   /* forked in the middle of something: */
            factory->link.reader = NULL;             /* better leaked */
            factory->inbox.reader = NULL;
            factory->news_first = NULL;
            factory->news_spare = NULL;
            factory->debts = factory->debts_own;
        }
        dlocki_link_close(factory, &factory->link);
        dlocki_link_close(factory, &factory->inbox);
    }
    dlocki_fd_close(factory, factory->wake_fd);
    dlocki_fd_close(factory, factory->renewer_fd);
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
    if (options->max_hold_ms < 0) {
        return "max_hold_ms is negative.";
    }
    return NULL;
}

static const char dlocki_fork_fault[] =
    "This process did not open the factory: after fork() the child opens its own.";
static const char dlocki_done_fault[] = "`done` is NULL: only a release needs none.";

/* Was the lock acquired by this very process? The factory is not touched: a child may have closed
 * it. */
static bool dlocki_is_native(const dlock_lock *lock)
{
    return lock->_kernel->pid(lock->_world) == lock->_pid;
}

/* Takes a handle out of the books; if it was lost while nobody asked, its on_lost may be running in
 * another thread just now. */
static void dlocki_give_up(dlock_factory *factory, dlock_lock *lock)
{
    factory->inside++;   /* so that dlock_close waits */
    while (factory->told_lock == lock && !dlocki_thread_is_self(factory->teller)) {
        dlocki_books_sleep(factory, &factory->told);
    }
    dlocki_leave(factory);
    if (lock->_loss != DLOCKI_NO_LOSS) {
        lock->_why = dlocki_loss_errors[lock->_loss];
    }
    dlocki_strike(factory, lock);
    dlocki_clean(lock);
    dlocki_store(&lock->_loss, DLOCKI_NO_LOSS);
}

/* The same for whoever does not know whether it is in the books. */
static void dlocki_disown(dlock_lock *lock)
{
    bool listed =
        dlocki_load(&lock->_state) == DLOCKI_OURS || dlocki_load(&lock->_loss) != DLOCKI_NO_LOSS;
    if (listed && lock->_self == lock && dlocki_is_native(lock)) {
        dlock_factory *factory = lock->_factory;
        dlocki_books_lock(factory);
        dlocki_give_up(factory, lock);
        dlocki_books_unlock(factory);
    }
}

static bool dlocki_say_lost(dlock_lock *lock)
{
    return dlocki_say(&lock->_why, DLOCK_LOST, 0,
                      "The lock was given back, or lost, before this call.");
}

/* Makes a release a debt from the start, and the handle free; false: no memory is left for that. */
static bool dlocki_hand_in(dlock_factory *factory, dlock_lock *lock)
{
    bool owed;
    lock->_verb = DLOCKI_RELEASE;
    owed = lock->_degraded || dlocki_owe(factory, lock, 0) != NULL;
    if (owed) {
        lock->_answer = true;
        dlocki_say_ok(&lock->_why);
        dlocki_note_end(factory, lock, DLOCKI_RELEASE);
        dlocki_strike(factory, lock);
        dlocki_store(&lock->_state, DLOCKI_GIVEN_BACK);
        dlocki_clean(lock);
    }
    lock->_verb = DLOCKI_NO_VERB;
    return owed;
}

/* May this call begin? It may have been lost since the caller looked. */
static bool dlocki_may_begin(dlock_factory *factory, dlock_lock *lock, int verb)
{
    bool held = verb == DLOCKI_EXTENSION || verb == DLOCKI_RELEASE;
    if (held && lock->_state == DLOCKI_GIVEN_BACK) {
        dlocki_give_up(factory, lock);   /* which says how */
        return false;
    }
    if (!factory->closing) {
        return true;
    }
    if (verb == DLOCKI_RELEASE && lock->_state == DLOCKI_OURS &&
        !dlocki_hand_in(factory, lock)) {   /* dlock_close gives it back, or it lapses: */
        dlocki_give_up(factory, lock);      /* in any case the handle is free           */
        dlocki_store(&lock->_state, DLOCKI_GIVEN_BACK);
    }
    return dlocki_say(&lock->_why, DLOCK_CANCELLED, 0, "The factory is being closed.");
}

/* Runs one call, from its start to its answer. */
static bool dlocki_call(dlock_factory *factory, dlock_lock *lock, int verb)
{
    bool answer = false;
    dlocki_books_lock(factory);
    if (dlocki_may_begin(factory, lock, verb)) {
        dlocki_enter(factory);
        dlocki_begin(factory, lock, verb);
        dlocki_drive(factory, lock);
        answer = lock->_answer;
        dlocki_leave(factory);
    }
    dlocki_books_unlock(factory);
    return answer;
}

/* Starts one call; its answer is for `done`. */
static bool dlocki_start(dlock_factory *factory, dlock_lock *lock, int verb, dlock_done *done,
                         void *user)
{
    bool begun;
    dlocki_books_lock(factory);
    begun = dlocki_may_begin(factory, lock, verb);
    if (begun) {
        dlocki_enter(factory);
        lock->_done = done;
        lock->_done_user = user;
        dlocki_begin(factory, lock, verb);
        dlocki_pump(factory);
        dlocki_leave(factory);
    }
    dlocki_books_unlock(factory);
    return begun;
}

static const char *dlocki_factory_fault(const dlock_factory *factory)
{
    if (factory == NULL) {
        return "The factory is NULL: dlock_open failed, or was not called.";
    }
    return factory->kernel->pid(factory->world) == factory->pid ? NULL : dlocki_fork_fault;
}

/* Copies a key into a handle, if it is one. */
static bool dlocki_key_take(dlock_lock *lock, const char *key, size_t length)
{
    if (key == NULL) {
        return dlocki_say_argument(&lock->_why, "The key is NULL.");
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

/* Makes a handle new, all but its claim, its key and its options. */
static void dlocki_prepare(dlock_factory *factory, dlock_lock *lock)
{
    dlocki_store(&lock->_state, DLOCKI_UNUSED);
    dlocki_store(&lock->_loss, DLOCKI_NO_LOSS);
    lock->_factory = factory;
    lock->_kernel = factory->kernel;
    lock->_world = factory->world;
    lock->_pid = factory->pid;
    lock->_self = lock;
    lock->_verb = DLOCKI_NO_VERB;
    lock->_list = NULL;   /* after fork() it may still look like one in the parent's books */
    lock->_next = NULL;
    lock->_previous = NULL;
    lock->_line = NULL;
    lock->_line_next = NULL;
    lock->_line_previous = NULL;
    lock->_heap_child = NULL;
    lock->_heap_next = NULL;
    lock->_heap_previous = NULL;
    lock->_bucket_next = NULL;
    lock->_bucket = 0;
    lock->_listens = false;
    lock->_reserved = false;
    lock->_sleeper = NULL;
    lock->_done = NULL;
    lock->_done_next = NULL;
    lock->_due_at = DLOCKI_NEVER;
    lock->_wake_at = DLOCKI_NEVER;
    lock->_ticket = false;
    lock->_degraded = false;
    lock->_fence = 0;
    dlocki_store_instant(&lock->_valid_until, 0);
    dlocki_store(&lock->_wake_fd, factory->wake_fd);
}

/* Checks and copies everything that an acquire is given. */
static bool dlocki_acquire_take(dlock_factory *factory, dlock_lock *lock, const char *key,
                                const dlock_options *options)
{
    const char *fault = dlocki_factory_fault(factory);
    if (fault == NULL && dlocki_load(&lock->_state) == DLOCKI_OURS) {
        fault = "The handle is in use: release or forget its lock first.";
    }
    if (fault == NULL) {
        fault = dlocki_options_fault(options);
    }
    if (fault != NULL) {
        return dlocki_say_argument(&lock->_why, fault);
    }
    dlocki_disown(lock);
    if (!dlocki_key_take(lock, key, options->key_length)) {
        return false;
    }
    dlocki_prepare(factory, lock);
    lock->_expiry_ms = options->expiry_ms;
    lock->_ask_expiry_ms = options->expiry_ms;
    lock->_wait_ms = options->wait_ms;
    lock->_max_hold_ms = options->max_hold_ms;
    lock->_retry_count = options->retry_count;
    lock->_retry_delay_ms = options->retry_delay_ms;
    lock->_retry_jitter_ms = options->retry_jitter_ms;
    lock->_queues = !options->no_queue && (options->retry_count != 0 || options->wait_ms != 0);
    lock->_no_fence = options->no_fence;
    lock->_auto_renew = options->auto_renew;
    lock->_fail_open = options->fail_open;
    lock->_on_lost = options->on_lost;
    lock->_lost_user = options->user;
    lock->_attempts = 0;
    lock->_refused_us = 0;
    lock->_score = 0;
    lock->_subscription = 0;
    lock->_waits_told = false;
    return true;
}

DLOCK_DEF bool dlock_acquire(dlock_factory *factory, dlock_lock *lock, const char *key,
                             const dlock_options *options)
{
    dlock_options filled = dlocki_options_filled(options);
    bool answer = false;
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (dlocki_acquire_take(factory, lock, key, &filled) &&
        (!filled.auto_renew || dlocki_renewer_start(factory, &lock->_why))) {
        dlocki_store(&lock->_claim, DLOCKI_CANCELLABLE);
        answer = dlocki_call(factory, lock, DLOCKI_ACQUIRE);
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return answer;
}

/* May extend or release do something with this handle? If not, dlock_why says why not. */
static bool dlocki_held_check(dlock_lock *lock)
{
    int state = dlocki_load(&lock->_state);
    const char *fault = NULL;
    if (state == DLOCKI_GIVEN_BACK && dlocki_load(&lock->_loss) == DLOCKI_NO_LOSS) {
        return dlocki_say_lost(lock);
    }
    if (state == DLOCKI_UNUSED) {
        fault = "The handle holds no lock.";
    } else if (lock->_self != lock) {
        fault = "The handle was copied or moved; only the original may be used.";
    } else if (!dlocki_is_native(lock)) {
        fault = dlocki_fork_fault;
    }
    return fault == NULL || dlocki_say_argument(&lock->_why, fault);
}

static bool dlocki_extend_check(dlock_lock *lock, int64_t expiry_ms)
{
    if (!dlocki_held_check(lock)) {
        return false;
    }
    if (dlocki_load(&lock->_state) == DLOCKI_OWED) {
        return dlocki_say(&lock->_why, DLOCK_LOST, 0, "A release was sent before this call.");
    }
    if (expiry_ms != 0 && !dlocki_expiry_is_legal(expiry_ms)) {
        return dlocki_say_argument(&lock->_why, "The expiry is negative, not above its own drift "
                                                "(1 % + 2 ms), or above 30 days.");
    }
    return true;
}

DLOCK_DEF bool dlock_extend(dlock_lock *lock, int64_t expiry_ms)
{
    bool answer = false;
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (dlocki_extend_check(lock, expiry_ms)) {
        lock->_wanted_ms = expiry_ms == 0 ? lock->_expiry_ms : expiry_ms;
        answer = dlocki_call(lock->_factory, lock, DLOCKI_EXTENSION);
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return answer;
}

DLOCK_DEF bool dlock_release(dlock_lock *lock)
{
    bool answer = false;
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (dlocki_held_check(lock)) {
        answer = dlocki_call(lock->_factory, lock, DLOCKI_RELEASE);
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
        dlocki_disown(lock);
        dlocki_clean(lock);
        dlocki_store(&lock->_state, DLOCKI_UNUSED);
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

/* --- the verbs of event loops */

DLOCK_DEF bool dlock_acquire_start(dlock_factory *factory, dlock_lock *lock, const char *key,
                                   const dlock_options *options, dlock_done *done, void *user)
{
    dlock_options filled = dlocki_options_filled(options);
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (done == NULL) {
        dlocki_say_argument(&lock->_why, dlocki_done_fault);
    } else if (dlocki_acquire_take(factory, lock, key, &filled)) {
        dlocki_store(&lock->_claim, DLOCKI_CANCELLABLE);
        if (dlocki_start(factory, lock, DLOCKI_ACQUIRE, done, user)) {
            return true;
        }
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return false;
}

DLOCK_DEF bool dlock_extend_start(dlock_lock *lock, int64_t expiry_ms, dlock_done *done, void *user)
{
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (done == NULL) {
        dlocki_say_argument(&lock->_why, dlocki_done_fault);
    } else if (dlocki_extend_check(lock, expiry_ms)) {
        lock->_wanted_ms = expiry_ms == 0 ? lock->_expiry_ms : expiry_ms;
        if (dlocki_start(lock->_factory, lock, DLOCKI_EXTENSION, done, user)) {
            return true;
        }
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return false;
}

/* A release without a callback. */
static bool dlocki_release_owe(dlock_factory *factory, dlock_lock *lock)
{
    bool owed = false;
    dlocki_books_lock(factory);
    if (dlocki_may_begin(factory, lock, DLOCKI_RELEASE)) {
        dlocki_enter(factory);
        owed = dlocki_hand_in(factory, lock) ||
               dlocki_say(&lock->_why, DLOCK_MEMORY, ENOMEM, "%s", dlock_code_text(DLOCK_MEMORY));
        dlocki_pump(factory);
        dlocki_leave(factory);
    }
    dlocki_books_unlock(factory);
    return owed;
}

DLOCK_DEF bool dlock_release_start(dlock_lock *lock, dlock_done *done, void *user)
{
    bool answer = false;
    if (lock == NULL || !dlocki_swap(&lock->_claim, DLOCKI_FREE, DLOCKI_CLAIMED)) {
        return false;
    }
    if (dlocki_held_check(lock)) {
        if (done != NULL && dlocki_start(lock->_factory, lock, DLOCKI_RELEASE, done, user)) {
            return true;
        }
        answer = done == NULL && dlocki_release_owe(lock->_factory, lock);
    }
    dlocki_store(&lock->_claim, DLOCKI_FREE);
    return answer;
}

DLOCK_DEF bool dlock_is_pending(const dlock_lock *lock)
{
    return lock != NULL && dlocki_load(&lock->_claim) != DLOCKI_FREE;
}

DLOCK_DEF int dlock_fd(dlock_factory *factory)
{
    int fd;
    if (dlocki_factory_fault(factory) != NULL) {
        return -1;
    }
    dlocki_books_lock(factory);
    if (factory->loop_fd < 0 && !factory->closing) {
        (void)dlocki_loop_open(factory);
    }
    fd = factory->loop_fd;
    dlocki_books_unlock(factory);
    return fd;
}

DLOCK_DEF void dlock_process(dlock_factory *factory)
{
    dlocki_plan plan;
    if (dlocki_factory_fault(factory) != NULL) {
        return;
    }
    dlocki_books_lock(factory);
    if (!factory->processing && !factory->closing &&
        !(factory->telling && dlocki_thread_is_self(factory->teller))) {
        factory->processing = true;
        dlocki_enter(factory);
        memset(&plan, 0, sizeof plan);
        dlocki_wait(factory, &plan, factory->wake_fd, true, false);
        dlocki_pump(factory);
        dlocki_done_call(factory);
        dlocki_tell(factory);
        factory->processing = false;
        dlocki_leave(factory);
    }
    dlocki_books_unlock(factory);
}

/* --- operators' tools */

/* One question about a key, on a handle of its own. */
static bool dlocki_look(dlock_factory *factory, const char *key, size_t key_length, int verb,
                        dlock_info *info, dlock_error *error)
{
    dlock_lock lock;
    const char *fault = dlocki_factory_fault(factory);
    bool answer = false;
    memset(&lock, 0, sizeof lock);
    if (fault != NULL) {
        dlocki_say_argument(&lock._why, fault);
    } else if (dlocki_key_take(&lock, key, key_length)) {
        dlocki_prepare(factory, &lock);
        lock._done_user = info;
        answer = dlocki_call(factory, &lock, verb);
    }
    if (error != NULL) {
        *error = lock._why;
    }
    return answer;
}

DLOCK_DEF bool dlock_inspect(dlock_factory *factory, const char *key, size_t key_length,
                             dlock_info *info, dlock_error *error)
{
    dlock_info unwanted;
    return dlocki_look(factory, key, key_length, DLOCKI_INSPECTION, info != NULL ? info : &unwanted,
                       error);
}

DLOCK_DEF bool dlock_break(dlock_factory *factory, const char *key, size_t key_length,
                           dlock_error *error)
{
    return dlocki_look(factory, key, key_length, DLOCKI_TAKING, NULL, error);
}

DLOCK_DEF void dlock_stats_get(const dlock_factory *factory, dlock_stats *stats)
{
    dlock_factory *open = (dlock_factory *)(uintptr_t)factory;   /* the mutex is no part of it */
    const dlock_lock *lock;
    if (stats == NULL) {
        return;
    }
    memset(stats, 0, sizeof *stats);
    if (dlocki_factory_fault(factory) != NULL) {
        return;
    }
    dlocki_books_lock(open);
    *stats = open->stats;
    for (lock = open->held.first; lock != NULL; lock = lock->_next) {
        stats->held++;
    }
    for (lock = open->pending.first; lock != NULL; lock = lock->_next) {
        stats->pending++;
    }
    stats->debts = open->debt_count;
    dlocki_books_unlock(open);
}

/* --- questions */

/* Is it in the books as ours? Not what a copy, or a child after fork(), holds. */
static bool dlocki_is_ours(const dlock_lock *lock)
{
    return lock != NULL && lock->_self == lock && dlocki_load(&lock->_state) == DLOCKI_OURS &&
           dlocki_is_native(lock);
}

DLOCK_DEF int64_t dlock_remaining_ms(const dlock_lock *lock)
{
    int64_t until;
    if (!dlocki_is_ours(lock)) {
        return 0;
    }
    until = dlocki_load_instant(&lock->_valid_until);
    return dlocki_most(0, dlocki_plus(until, -lock->_kernel->now(lock->_world)));
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
    int loss;
    if (lock == NULL) {
        return &null_handle;
    }
    loss = dlocki_load(&lock->_loss);
    return loss != DLOCKI_NO_LOSS ? &dlocki_loss_errors[loss] : &lock->_why;
}

/* ----------------------------------------------------------------------- room 10: scope helpers */

DLOCK_DEF void dlocki_scope_end(dlock_lock *lock)
{
    if (lock->_self == lock && (dlocki_load(&lock->_state) == DLOCKI_OURS ||
                                dlocki_load(&lock->_loss) != DLOCKI_NO_LOSS)) {
        (void)dlock_release(lock);
    }
}

#endif /* DLOCK_IMPLEMENTATION */

/*
REVISION HISTORY
    0.1.0  The first version: one server, retry, fence, undo, queue and hand-off, event loops,
           renewal.

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
