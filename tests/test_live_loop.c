/* The verbs that an event loop drives, and threads that share a factory: who is told what, when,
 * by whom, and what wakes the descriptor. */
#define _GNU_SOURCE
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"
#include "tests/ways.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* What takes seconds takes minutes under a sanitizer. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SLOWER 10
#else
#define SLOWER 1
#endif

static const dlock_options once = {.expiry_ms = 30000};
static const dlock_options for_ever = {.wait_ms = DLOCK_FOREVER};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

/* Brings the scripts to the server: what nobody waits for is then done by one command. */
static void warm_up(dlock_factory *factory)
{
    dlock_lock lock = DLOCK_INIT;
    for (int i = 0; i < 2; i++) {
        assert_yes(dlock_acquire(factory, &lock, "warm", &once), &lock);
        assert_yes(dlock_extend(&lock, 0), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
}

/* As server_soon, while a loop turns. */
static void loop_soon(dlock_factory *factory, struct server *server, const char *question,
                      int64_t answer)
{
    int64_t end = now_ms() + 10000;
    while (server_integer(server, question) != answer && now_ms() < end) {
        (void)loop_for(factory, 2);
    }
    assert_int_equal(server_integer(server, question), answer);
}

/* Turns until nothing is owed any more. */
static void loop_debts(dlock_factory *factory)
{
    int64_t end = now_ms() + 10000;
    while (stats_of(factory).debts > 0 && now_ms() < end) {
        (void)loop_for(factory, 5);
    }
    assert_int_equal(stats_of(factory).debts, 0);
}

/* A thread that does one thing to a handle after a while. */
struct later {
    pthread_t thread;
    pthread_t target;
    enum { LATER_RELEASE, LATER_CANCEL, LATER_SIGNAL } what;
    dlock_lock *lock;
    int64_t delay;
    bool answer;
    _Atomic int64_t at;
};

static void *later_body(void *argument)
{
    struct later *later = (struct later *)argument;
    pause_ms(later->delay);
    atomic_store(&later->at, now_ms());
    later->answer = true;
    if (later->what == LATER_RELEASE) {
        later->answer = dlock_release(later->lock);
    } else if (later->what == LATER_CANCEL) {
        dlock_cancel(later->lock);
    } else {
        later->answer = pthread_kill(later->target, SIGUSR1) == 0;
    }
    return NULL;
}

static void later_start(struct later *later)
{
    later->target = pthread_self();
    assert_int_equal(pthread_create(&later->thread, NULL, later_body, later), 0);
}

static void later_end(struct later *later)
{
    assert_int_equal(pthread_join(later->thread, NULL), 0);
    assert_true(later->answer);
}

/* -------------------------------------------------- the same questions, by a call and by a loop */

static void a_free_key_is_acquired_and_given_back_once(void **state)
{
    struct live *live = live_of(state);
    for (BOTH(way)) {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(way->acquire(live->factory, &lock, "k", &once), &lock);
        assert_held(&live->server, &lock, "k");
        assert_in_range(dlock_remaining_ms(&lock), 15000, 30000 - 302);
        assert_true(dlock_fence(&lock) > 0);
        assert_yes(way->release(live->factory, &lock), &lock);
        assert_gone(&live->server, "k");
        assert_false(dlock_is_acquired(&lock));
        assert_no(way->release(live->factory, &lock), &lock, DLOCK_LOST);
    }
    live_end(live);
}

static void a_held_key_is_busy_for_who_does_not_wait(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    for (BOTH(way)) {
        dlock_options tries = {.retry_count = 2, .retry_delay_ms = 60};
        dlock_lock lock = DLOCK_INIT;
        assert_no(way->acquire(live->factory, &lock, "k", NULL), &lock, DLOCK_BUSY);
        assert_int_equal(server_integer(&live->server, "EXISTS {k}:queue"), 0);
        int64_t start = now_ms();
        assert_no(way->acquire(live->factory, &lock, "k", &tries), &lock, DLOCK_BUSY);
        assert_took(start, 120, 300);
        server_soon(&live->server, "EXISTS {k}:queue", 0);
        assert_held(&live->server, &held, "k");
    }
    dlock_close(other);
    live_end(live);
}

static void a_wait_ends_with_a_timeout_and_leaves_no_ticket(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    for (BOTH(way)) {
        dlock_options waits = {.wait_ms = 200};
        dlock_lock lock = DLOCK_INIT;
        int64_t start = now_ms();
        assert_no(way->acquire(live->factory, &lock, "k", &waits), &lock, DLOCK_TIMEOUT);
        assert_took(start, 200, 250);
        server_soon(&live->server, "EXISTS {k}:queue", 0);
        assert_held(&live->server, &held, "k");
    }
    dlock_close(other);
    live_end(live);
}

/* The lease is so long that nothing but the hand-off can end the wait. */
static void a_wait_ends_with_the_release_of_the_one_before(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    for (BOTH(way)) {
        dlock_lock held = DLOCK_INIT;
        dlock_lock lock = DLOCK_INIT;
        struct later later = {.what = LATER_RELEASE, .lock = &held, .delay = 200};
        assert_yes(dlock_acquire(other, &held, "k", &once), &held);
        uint64_t fence = dlock_fence(&held);
        int64_t start = now_ms();
        later_start(&later);
        assert_yes(way->acquire(live->factory, &lock, "k", &for_ever), &lock);
        assert_took(start, 200, 1000);
        assert_held(&live->server, &lock, "k");
        assert_true(dlock_fence(&lock) > fence);
        assert_in_range(dlock_remaining_ms(&lock), 10000, 30000 - 302);
        later_end(&later);
        assert_yes(way->release(live->factory, &lock), &lock);
        assert_gone(&live->server, "k");
    }
    dlock_close(other);
    live_end(live);
}

static void an_extend_lengthens_what_is_held_and_only_that(void **state)
{
    struct live *live = live_of(state);
    for (BOTH(way)) {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(way->acquire(live->factory, &lock, "k", &once), &lock);
        uint64_t fence = dlock_fence(&lock);
        assert_yes(way->extend(live->factory, &lock, 90000), &lock);
        assert_in_range(server_integer(&live->server, "PTTL k"), 60000, 90000);
        assert_in_range(dlock_remaining_ms(&lock), 60000, 90000 - 902);
        assert_yes(way->extend(live->factory, &lock, 0), &lock);
        assert_in_range(server_integer(&live->server, "PTTL k"), 60000, 90000);
        assert_true(dlock_fence(&lock) == fence);
        server_do(&live->server, "SET k theirs PX 60000");
        assert_no(way->extend(live->factory, &lock, 90000), &lock, DLOCK_LOST);
        assert_false(dlock_is_acquired(&lock));
        assert_no(way->extend(live->factory, &lock, 90000), &lock, DLOCK_LOST);
        assert_no(way->release(live->factory, &lock), &lock, DLOCK_LOST);
        assert_in_range(server_integer(&live->server, "PTTL k"), 30000, 60000);
        server_do(&live->server, "DEL k");
    }
    live_end(live);
}

static void a_lapsed_lock_is_lost_to_extend_and_release(void **state)
{
    struct live *live = live_of(state);
    for (BOTH(way)) {
        for (int extend_first = 0; extend_first < 2; extend_first++) {
            dlock_options brief = {.expiry_ms = 100};
            dlock_lock lock = DLOCK_INIT;
            assert_yes(way->acquire(live->factory, &lock, "k", &brief), &lock);
            pause_ms(120);
            assert_false(dlock_is_acquired(&lock));
            if (extend_first) {
                assert_no(way->extend(live->factory, &lock, 60000), &lock, DLOCK_LOST);
            }
            assert_no(way->release(live->factory, &lock), &lock, DLOCK_LOST);
            assert_gone(&live->server, "k");
        }
    }
    live_end(live);
}

static void a_refusal_and_a_dead_server_have_the_same_codes(void **state)
{
    struct live *live = live_of(state);
    for (BOTH(way)) {
        dlock_options opened = {.fail_open = true};
        dlock_options waits = {.wait_ms = 150};
        dlock_lock lock = DLOCK_INIT;
        server_do(&live->server, "RPUSH list x");
        assert_no(way->acquire(live->factory, &lock, "list", &for_ever), &lock, DLOCK_REFUSED);
        server_kill(&live->server);
        assert_no(way->acquire(live->factory, &lock, "k", NULL), &lock, DLOCK_UNREACHABLE);
        int64_t start = now_ms();
        assert_no(way->acquire(live->factory, &lock, "k", &waits), &lock, DLOCK_UNREACHABLE);
        assert_took(start, 150, 300);
        assert_true(way->acquire(live->factory, &lock, "k", &opened));
        assert_true(dlock_is_degraded(&lock));
        assert_true(way->extend(live->factory, &lock, 60000));
        assert_true(way->release(live->factory, &lock));
        assert_false(dlock_is_degraded(&lock));
        server_revive(&live->server);
        assert_yes(way->acquire(live->factory, &lock, "k", &for_ever), &lock);
        assert_yes(way->release(live->factory, &lock), &lock);
    }
    live_end(live);
}

/* ---------------------------------------------------------- when `done` is called, and when not */

static void a_start_that_is_false_never_calls_done(void **state)
{
    static const dlock_options nonsense[] = {
        {.expiry_ms = 1}, {.retry_count = -2}, {.retry_delay_ms = -1}, {.wait_ms = -2}};
    struct live *live = live_of(state);
    static char long_key[DLOCK_KEY_MAX + 2];
    struct told told = {0};
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = live->factory;
    memset(long_key, 'k', DLOCK_KEY_MAX + 1);
    int64_t heard = server_heard(&live->server);
    assert_no(dlock_acquire_start(NULL, &lock, "k", &once, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_false(dlock_acquire_start(factory, NULL, "k", &once, tell, &told));
    assert_no(dlock_acquire_start(factory, &lock, NULL, &once, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire_start(factory, &lock, "", &once, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire_start(factory, &lock, long_key, NULL, tell, &told), &lock,
              DLOCK_ARGUMENT);
    assert_no(dlock_acquire_start(factory, &lock, "k", &once, NULL, &told), &lock, DLOCK_ARGUMENT);
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        assert_no(dlock_acquire_start(factory, &lock, "k", &nonsense[i], tell, &told), &lock,
                  DLOCK_ARGUMENT);
    }
    assert_false(dlock_extend_start(NULL, 0, tell, &told));
    assert_false(dlock_release_start(NULL, tell, &told));
    assert_false(dlock_release_start(NULL, NULL, NULL));
    assert_no(dlock_extend_start(&lock, 0, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&lock, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&lock, NULL, NULL), &lock, DLOCK_ARGUMENT);
    assert_false(dlock_is_pending(&lock));
    assert_false(dlock_is_pending(NULL));
    assert_int_equal(dlock_fd(NULL), -1);
    dlock_process(NULL);
    assert_int_equal(loop_for(factory, 100), 0);
    assert_int_equal(atomic_load(&told.count), 0);
    assert_int_equal(server_heard(&live->server), heard);
    assert_yes(loop_acquire(factory, &lock, "k", &once), &lock);
    assert_no(dlock_extend_start(&lock, -5, tell, &told), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_extend_start(&lock, 0, NULL, NULL), &lock, DLOCK_ARGUMENT);
    assert_true(dlock_is_acquired(&lock));
    (void)loop_for(factory, 50);
    assert_int_equal(atomic_load(&told.count), 0);
    live_end(live);
}

static bool start_verb(int verb, dlock_factory *factory, dlock_lock *lock, struct told *told)
{
    switch (verb) {
    case 0:
        return dlock_acquire_start(factory, lock, "k", &once, tell, told);
    case 1:
        return dlock_extend_start(lock, 0, tell, told);
    default:
        return dlock_release_start(lock, tell, told);
    }
}

static void done_is_called_once_and_only_from_process(void **state)
{
    struct live *live = live_of(state);
    for (int i = 0; i < 50; i++) {
        dlock_lock lock = DLOCK_INIT;
        struct told told = {0};
        for (int verb = 0; verb < 3; verb++) {
            memset(&told, 0, sizeof told);
            assert_true(start_verb(verb, live->factory, &lock, &told));
            assert_true(dlock_is_pending(&lock));
            if (i % 10 == 0) {
                pause_ms(20);       /* the answer is there, and nobody has asked us to look */
            }
            assert_int_equal(atomic_load(&told.count), 0);
            assert_true(dlock_is_pending(&lock));
            (void)loop_until(live->factory, &told.count, 1);
            assert_true(told.answer);
            assert_false(dlock_is_pending(&lock));
            (void)loop_for(live->factory, 1);
            assert_int_equal(atomic_load(&told.count), 1);
            assert_int_equal(atomic_load(&told.astray), 0);
        }
    }
    live_end(live);
}

/* A handle with a call under way is nobody else's. */
static void a_pending_handle_is_left_alone(void **state)
{
    struct live *live = live_of(state);
    struct told told = {0};
    struct told wrong = {0};
    dlock_lock lock = DLOCK_INIT;
    server_do(&live->server, "SET k theirs");
    assert_true(dlock_acquire_start(live->factory, &lock, "k", &for_ever, tell, &told));
    for (int i = 0; i < 2; i++) {
        assert_false(dlock_acquire_start(live->factory, &lock, "x", &once, tell, &wrong));
        assert_false(dlock_acquire(live->factory, &lock, "x", &once));
        assert_false(dlock_extend_start(&lock, 0, tell, &wrong));
        assert_false(dlock_extend(&lock, 0));
        assert_false(dlock_release_start(&lock, tell, &wrong));
        assert_false(dlock_release_start(&lock, NULL, NULL));
        assert_false(dlock_release(&lock));
        assert_true(dlock_is_pending(&lock));
        assert_false(dlock_is_acquired(&lock));
        (void)loop_for(live->factory, 50);
    }
    assert_int_equal(atomic_load(&told.count), 0);
    server_do(&live->server, "DEL k");
    (void)loop_until(live->factory, &told.count, 1);
    assert_yes(told.answer, &lock);
    assert_held(&live->server, &lock, "k");
    assert_no(dlock_acquire_start(live->factory, &lock, "x", &once, tell, &wrong), &lock,
              DLOCK_ARGUMENT);
    assert_true(dlock_is_acquired(&lock));
    memset(&told, 0, sizeof told);
    assert_true(dlock_release_start(&lock, tell, &told));
    assert_false(dlock_extend_start(&lock, 60000, tell, &wrong));
    assert_false(dlock_release(&lock));
    (void)loop_until(live->factory, &told.count, 1);
    assert_true(told.answer);
    assert_gone(&live->server, "k");
    assert_gone(&live->server, "x");
    assert_int_equal(atomic_load(&wrong.count), 0);
    live_end(live);
}

/* Neither a start nor dlock_process waits for anybody. */
static void starts_and_process_never_block(void **state)
{
    enum { COUNT = 40 };
    struct live *live = live_of(state);
    static dlock_lock locks[COUNT];
    struct told told = {0};
    char key[16];
    dlock_config config = {.command_timeout_ms = 5000};
    memset(locks, 0, sizeof locks);
    live_reopen(live, live->server.url, &config);
    for (int connected = 0; connected < 2; connected++) {
        memset(&told, 0, sizeof told);
        server_pause(&live->server);
        int64_t start = now_ms();
        for (int i = 0; i < COUNT; i++) {
            (void)snprintf(key, sizeof key, "k%d", i);
            assert_true(dlock_acquire_start(live->factory, &locks[i], key, &once, tell, &told));
            loop_process(live->factory);
        }
        assert_took(start, 0, 500);
        assert_int_equal(atomic_load(&told.count), 0);
        server_continue(&live->server);
        (void)loop_until(live->factory, &told.count, COUNT);
        for (int i = 0; i < COUNT; i++) {
            assert_true(dlock_is_acquired(&locks[i]));
            assert_yes(loop_release(live->factory, &locks[i]), &locks[i]);
        }
    }
    live_end(live);
}

/* -------------------------------------------------------------------- a loop that came too late */

/* `done` notes the order in which handles were answered. */
struct entry {
    int number;
    int *order;
    atomic_int *count;
};

static void note_order(dlock_lock *lock, bool answer, void *user)
{
    struct entry *entry = (struct entry *)user;
    (void)lock;
    (void)answer;
    entry->order[atomic_load(entry->count)] = entry->number;
    atomic_fetch_add(entry->count, 1);
}

static void overdue_timers_are_served_in_their_order(void **state)
{
    enum { COUNT = 5 };
    static const int64_t waits[COUNT] = {300, 100, 500, 200, 400};
    static const int expected[COUNT] = {1, 3, 0, 4, 2};
    struct live *live = live_of(state);
    dlock_lock locks[COUNT];
    struct entry list[COUNT];
    int order[COUNT];
    atomic_int count = 0;
    memset(locks, 0, sizeof locks);
    server_do(&live->server, "SET k theirs");
    for (int i = 0; i < COUNT; i++) {
        dlock_options options = {.wait_ms = waits[i], .retry_delay_ms = 100000};
        list[i] = (struct entry){i, order, &count};
        assert_true(
            dlock_acquire_start(live->factory, &locks[i], "k", &options, note_order, &list[i]));
    }
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", COUNT);
    pause_ms(700);
    assert_int_equal(atomic_load(&count), 0);
    int64_t start = now_ms();
    (void)loop_until(live->factory, &count, COUNT);
    assert_took(start, 0, 100);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(order[i], expected[i]);
        assert_code(&locks[i], DLOCK_TIMEOUT);
    }
    loop_soon(live->factory, &live->server, "EXISTS {k}:queue", 0);
    live_end(live);
}

/* Its renewal was due in between. What validity has left is not won back. */
static void a_lock_whose_loop_slept_beyond_its_validity_is_lost_and_told_once(void **state)
{
    struct live *live = live_of(state);
    for (int renewed = 0; renewed < 2; renewed++) {
        for (int anothers = 0; anothers < 2; anothers++) {
            struct losses losses = {0};
            dlock_options options = {.expiry_ms = 300,
                                     .auto_renew = renewed == 1,
                                     .on_lost = count_loss,
                                     .user = &losses};
            dlock_lock lock = DLOCK_INIT;
            assert_yes(loop_acquire(live->factory, &lock, "k", &options), &lock);
            pause_ms(450);
            assert_false(dlock_is_acquired(&lock));
            assert_int_equal(dlock_remaining_ms(&lock), 0);
            if (anothers == 1) {
                server_do(&live->server, "SET k theirs PX 60000");
            }
            assert_int_equal(atomic_load(&losses.count), 0);
            assert_true(loop_readable(live->factory, 5000));
            (void)loop_until(live->factory, &losses.count, 1);
            (void)loop_for(live->factory, 200);
            assert_int_equal(atomic_load(&losses.count), 1);
            assert_int_equal(atomic_load(&losses.wrong), 0);
            assert_int_equal(server_integer(&live->server, "EXISTS k"), anothers);
            assert_no(loop_release(live->factory, &lock), &lock, DLOCK_LOST);
            assert_int_equal(server_integer(&live->server, "EXISTS k"), anothers);
            server_do(&live->server, "DEL k");
        }
    }
    live_end(live);
}

/* Granted and lapsed while nobody processed: it is no grant any more. It lines up again. */
static void a_grant_that_was_slept_through_is_no_grant(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    for (int bounded = 0; bounded < 2; bounded++) {
        dlock_options options = {.expiry_ms = 150, .wait_ms = bounded ? 300 : DLOCK_FOREVER};
        struct told told = {0};
        dlock_lock held = DLOCK_INIT;
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(other, &held, "k", &once), &held);
        assert_true(dlock_acquire_start(live->factory, &lock, "k", &options, tell, &told));
        loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
        assert_yes(dlock_release(&held), &held);
        pause_ms(500);
        assert_gone(&live->server, "k");
        (void)loop_until(live->factory, &told.count, 1);
        if (bounded) {      /* the time is up, whether or not the server was asked once more */
            assert_false(told.answer);
            assert_true(told.code == DLOCK_TIMEOUT || told.code == DLOCK_UNREACHABLE);
        } else {
            assert_true(told.answer);
            assert_held(&live->server, &lock, "k");
            assert_yes(loop_release(live->factory, &lock), &lock);
        }
        loop_soon(live->factory, &live->server, "EXISTS k {k}:queue", 0);
    }
    dlock_close(other);
    live_end(live);
}

/* ---------------------------------------------------------------------- inside of `done` itself */

static struct churn {
    dlock_factory *factory;
    int left;                   /* steps still to be made */
    atomic_int answered;
    int started;
    int depth;
    int deepest;
    int astray;
    int acquired;
    int cancelled;
    int others;                 /* codes that nobody expects */
    uintptr_t low;              /* of the stack */
    uintptr_t high;
} churn;

static void churn_done(dlock_lock *lock, bool answer, void *user);

/* One more step on a handle that is free or held: acquire, cancel, release in three ways. */
static void churn_step(dlock_lock *lock, const char *key)
{
    churn.left--;
    if (dlock_is_acquired(lock) && churn.left % 3 == 0 && dlock_release_start(lock, NULL, NULL)) {
        assert_false(dlock_is_pending(lock));
    }
    if (dlock_is_acquired(lock)) {
        churn.started += dlock_release_start(lock, churn_done, (void *)(uintptr_t)key) ? 1 : 0;
        return;
    }
    if (dlock_acquire_start(churn.factory, lock, key, &for_ever, churn_done,
                            (void *)(uintptr_t)key)) {
        churn.started++;
        if (churn.left % 2 == 0) {
            dlock_cancel(lock);
        }
    }
}

static void churn_done(dlock_lock *lock, bool answer, void *user)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    int code = dlock_why(lock)->code;
    churn.depth++;
    churn.deepest = churn.depth > churn.deepest ? churn.depth : churn.deepest;
    churn.low = churn.low == 0 || here < churn.low ? here : churn.low;
    churn.high = here > churn.high ? here : churn.high;
    churn.astray += looping != 1 || dlock_is_pending(lock) ? 1 : 0;
    churn.acquired += answer && dlock_is_acquired(lock) ? 1 : 0;
    churn.cancelled += code == DLOCK_CANCELLED ? 1 : 0;
    churn.others += code != DLOCK_CANCELLED && code != DLOCK_OK ? 1 : 0;
    atomic_fetch_add(&churn.answered, 1);
    if (churn.left > 0) {
        churn_step(lock, (const char *)user);
    }
    churn.depth--;
}

static void starts_inside_done_need_no_recursion_and_no_stack(void **state)
{
    enum { HANDLES = 16 };
    struct live *live = live_of(state);
    static dlock_lock locks[HANDLES];
    char keys[HANDLES][16];
    memset(locks, 0, sizeof locks);
    memset(&churn, 0, sizeof churn);
    churn.factory = live->factory;
    churn.left = 100000 / SLOWER;
    for (int i = 0; i < HANDLES; i++) {
        (void)snprintf(keys[i], sizeof keys[i], "k%d", i);
        churn_step(&locks[i], keys[i]);
    }
    assert_int_equal(atomic_load(&churn.answered), 0);
    int64_t end = now_ms() + 40000;
    while (churn.left > 0 && now_ms() < end) {
        (void)loop_turn(live->factory, 5000);
    }
    for (int i = 0; i < HANDLES; i++) {
        while (dlock_is_pending(&locks[i]) && now_ms() < end) {
            (void)loop_turn(live->factory, 5000);
        }
    }
    assert_int_equal(churn.left, 0);
    assert_int_equal(atomic_load(&churn.answered), churn.started);
    assert_int_equal(churn.deepest, 1);
    assert_int_equal(churn.astray, 0);
    assert_int_equal(churn.others, 0);
    assert_true(churn.high - churn.low < 4096);
    assert_true(churn.acquired > 100 && churn.cancelled > 100);
    for (int i = 0; i < HANDLES; i++) {
        if (dlock_is_acquired(&locks[i])) {
            assert_yes(loop_release(live->factory, &locks[i]), &locks[i]);
        }
    }
    loop_debts(live->factory);
    for (int i = 0; i < HANDLES; i++) {
        assert_gone(&live->server, keys[i]);
        assert_int_equal(server_integer(&live->server, "EXISTS {%s}:queue", keys[i]), 0);
    }
    live_end(live);
}

struct stubborn {
    dlock_factory *factory;
    atomic_int told;
};

static void try_again(dlock_lock *lock, bool answer, void *user)
{
    struct stubborn *stubborn = (struct stubborn *)user;
    (void)answer;
    if (atomic_fetch_add(&stubborn->told, 1) < 1000) {
        (void)dlock_acquire_start(stubborn->factory, lock, "k", NULL, try_again, user);
    }
}

/* Else a program that tries again at once would never leave dlock_process. */
static void what_done_starts_is_told_in_the_next_turn(void **state)
{
    struct live *live = live_of(state);
    struct stubborn stubborn = {0};
    dlock_lock lock = DLOCK_INIT;
    live_reopen(live, "unix:///nowhere/at/all.sock", NULL);
    stubborn.factory = live->factory;
    assert_true(dlock_acquire_start(live->factory, &lock, "k", NULL, try_again, &stubborn));
    for (int turn = 1; turn <= 100; turn++) {
        assert_true(loop_turn(live->factory, 5000));
        assert_in_range(atomic_load(&stubborn.told), 1, turn);
    }
    (void)loop_until(live->factory, &stubborn.told, 1001);
    live_end(live);
}

/* The handle is the program's again inside `done`: it may be freed there. */
static void free_it(dlock_lock *lock, bool answer, void *user)
{
    (void)answer;
    memset(lock, 0xAA, sizeof *lock);
    free(lock);
    atomic_fetch_add((atomic_int *)user, 1);
}

static void a_handle_may_be_freed_inside_done(void **state)
{
    struct live *live = live_of(state);
    atomic_int count = 0;
    server_do(&live->server, "SET busy theirs");
    for (int i = 0; i < 300; i++) {
        dlock_lock *lock = (dlock_lock *)calloc(1, sizeof *lock);
        assert_non_null(lock);
        if (i % 3 == 0) {
            assert_true(dlock_acquire_start(live->factory, lock, "busy", NULL, free_it, &count));
        } else if (i % 3 == 1) {
            assert_yes(loop_acquire(live->factory, lock, "k", &once), lock);
            assert_true(dlock_release_start(lock, free_it, &count));
        } else {
            assert_true(
                dlock_acquire_start(live->factory, lock, "busy", &for_ever, free_it, &count));
            if (i % 2 == 0) {
                loop_process(live->factory);
            }
            dlock_cancel(lock);
        }
        (void)loop_until(live->factory, &count, i + 1);
    }
    loop_debts(live->factory);
    assert_gone(&live->server, "k");
    server_soon(&live->server, "EXISTS {busy}:queue", 0);
    live_end(live);
}

/* ------------------------------------------------------------------------------- the descriptor */

static void the_descriptor_is_one_quiet_and_not_inherited(void **state)
{
    struct live *live = live_of(state);
    int fd = dlock_fd(live->factory);
    assert_true(fd >= 0);
    assert_int_equal(dlock_fd(live->factory), fd);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_false(loop_readable(live->factory, 100));
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    (void)loop_for(live->factory, 50);
    assert_false(loop_readable(live->factory, 100));
    assert_yes(dlock_release(&lock), &lock);
    assert_yes(loop_acquire(live->factory, &lock, "k", &once), &lock);
    assert_yes(loop_release(live->factory, &lock), &lock);
    assert_int_equal(dlock_fd(live->factory), fd);
    (void)loop_for(live->factory, 50);
    assert_false(loop_readable(live->factory, 100));
    live_end(live);
}

static void the_descriptor_wakes_when_a_wait_ends(void **state)
{
    static const int64_t waits[] = {1, 50, 200, 400};
    struct live *live = live_of(state);
    server_do(&live->server, "SET k theirs");
    for (size_t i = 0; i < sizeof waits / sizeof *waits; i++) {
        struct told told = {0};
        dlock_options options = {.wait_ms = waits[i], .retry_delay_ms = 100000};
        dlock_lock lock = DLOCK_INIT;
        int64_t start = now_ms();
        assert_true(dlock_acquire_start(live->factory, &lock, "k", &options, tell, &told));
        (void)loop_until(live->factory, &told.count, 1);
        assert_took(start, waits[i], waits[i] + 100);
        assert_no(told.answer, &lock, waits[i] < 10 ? dlock_why(&lock)->code : DLOCK_TIMEOUT);
    }
    live_end(live);
}

static void the_descriptor_wakes_when_a_grant_arrives(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    struct told told = {0};
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    assert_true(dlock_acquire_start(live->factory, &lock, "k", &for_ever, tell, &told));
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
    (void)loop_for(live->factory, 1500);    /* until no command has a time that could be over */
    assert_false(loop_readable(live->factory, 300));
    assert_yes(dlock_release(&held), &held);
    int64_t start = now_ms();
    assert_true(loop_readable(live->factory, 10000));
    (void)loop_until(live->factory, &told.count, 1);
    assert_took(start, 0, 500);
    assert_yes(told.answer, &lock);
    assert_held(&live->server, &lock, "k");
    dlock_close(other);
    live_end(live);
}

/* A third of the lease after the grant, the lease is renewed: nothing but the timer says so. */
static void the_descriptor_wakes_when_a_renewal_is_due(void **state)
{
    struct live *live = live_of(state);
    dlock_options options = {.expiry_ms = 6000, .auto_renew = true};
    dlock_lock lock = DLOCK_INIT;
    warm_up(live->factory);
    (void)loop_for(live->factory, 1500);    /* until no command has a time that could be over */
    assert_yes(loop_acquire(live->factory, &lock, "k", &options), &lock);
    (void)loop_for(live->factory, 1100);
    assert_false(loop_readable(live->factory, 200));
    int64_t start = now_ms();
    int64_t scripts = server_scripts(&live->server);
    assert_true(loop_readable(live->factory, 10000));
    assert_took(start, 200, 700);
    (void)loop_for(live->factory, 300);
    assert_int_equal(server_scripts(&live->server), scripts + 1);
    assert_true(server_integer(&live->server, "PTTL k") > 5000);
    assert_yes(loop_release(live->factory, &lock), &lock);
    live_end(live);
}

static void the_descriptor_wakes_when_validity_ends(void **state)
{
    struct live *live = live_of(state);
    struct losses losses = {0};
    dlock_options options = {.expiry_ms = 400, .on_lost = count_loss, .user = &losses};
    dlock_lock lock = DLOCK_INIT;
    int64_t start = now_ms();
    assert_yes(loop_acquire(live->factory, &lock, "k", &options), &lock);
    (void)loop_until(live->factory, &losses.count, 1);
    assert_took(start, 400 - 6 - 1, 500);
    assert_int_equal(atomic_load(&losses.wrong), 0);
    (void)loop_for(live->factory, 100);
    assert_int_equal(atomic_load(&losses.count), 1);
    live_end(live);
}

/* Nothing can be sent, or needs to be: the answer is known at once, and only `done` is due. */
static void the_descriptor_wakes_for_an_answer_that_is_known_at_once(void **state)
{
    enum { REFUSED_CONNECTION, FAIL_OPEN, EXTEND_DEGRADED, RELEASE_DEGRADED, CASES };
    struct live *live = live_of(state);
    dlock_options opened = {.fail_open = true};
    dlock_lock lock = DLOCK_INIT;
    live_reopen(live, "unix:///nowhere/at/all.sock", NULL);
    for (int i = 0; i < CASES; i++) {
        struct told told = {0};
        int64_t start = now_ms();
        bool started = i == EXTEND_DEGRADED ? dlock_extend_start(&lock, 0, tell, &told)
                       : i == RELEASE_DEGRADED
                           ? dlock_release_start(&lock, tell, &told)
                           : dlock_acquire_start(live->factory, &lock, "k",
                                                 i == FAIL_OPEN ? &opened : NULL, tell, &told);
        assert_true(started);
        assert_true(dlock_is_pending(&lock));
        assert_int_equal(atomic_load(&told.count), 0);
        assert_true(loop_readable(live->factory, 5000));
        (void)loop_until(live->factory, &told.count, 1);
        assert_took(start, 0, 100);
        assert_int_equal(told.answer, i != REFUSED_CONNECTION);
        assert_int_equal(told.code, i == REFUSED_CONNECTION ? DLOCK_UNREACHABLE : DLOCK_OK);
        assert_int_equal(atomic_load(&told.astray), 0);
        assert_false(loop_readable(live->factory, 50));
    }
    live_end(live);
}

static dlock_lock *cancelled_by_signal;

static void on_signal(int number)
{
    (void)number;
    dlock_cancel(cancelled_by_signal);
}

static void the_descriptor_wakes_for_a_cancel_of_a_thread_or_a_signal(void **state)
{
    struct live *live = live_of(state);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
    server_do(&live->server, "SET k theirs");
    for (int i = 0; i < 6; i++) {
        struct told told = {0};
        dlock_options waits = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 100000};
        dlock_lock lock = DLOCK_INIT;
        struct later later = {
            .what = i % 2 == 0 ? LATER_CANCEL : LATER_SIGNAL, .lock = &lock, .delay = 100};
        cancelled_by_signal = &lock;
        assert_true(dlock_acquire_start(live->factory, &lock, "k", &waits, tell, &told));
        if (i >= 2) {
            loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
        }
        later_start(&later);
        (void)loop_until(live->factory, &told.count, 1);
        int64_t end = now_ms();
        later_end(&later);
        assert_no(told.answer, &lock, DLOCK_CANCELLED);
        assert_in_range(end - atomic_load(&later.at) + 1, 0, 400);
        server_soon(&live->server, "EXISTS {k}:queue", 0);
        dlock_cancel(&lock);
        (void)loop_for(live->factory, 20);
        assert_int_equal(atomic_load(&told.count), 1);
    }
    live_end(live);
}

/* Two seconds of waiting cost a handful of turns; so do two seconds of holding, of a connection
 * that the server closed, and of a server that is not there. */
static void an_idle_loop_does_not_spin(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    dlock_lock own = DLOCK_INIT;
    struct told told = {0};
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    assert_yes(loop_acquire(live->factory, &own, "own", &once), &own);
    assert_true(dlock_acquire_start(live->factory, &lock, "k", &for_ever, tell, &told));
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
    (void)loop_for(live->factory, 100);
    int64_t busy = cpu_ms();
    int64_t scripts = server_scripts(&live->server);
    int turns = loop_for(live->factory, 2000);
    assert_in_range(turns, 0, 8);
    assert_true(cpu_ms() - busy < 200);
    assert_in_range(server_scripts(&live->server) - scripts, 0, 2);
    server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
    server_do(&live->server, "CLIENT KILL TYPE pubsub");
    busy = cpu_ms();
    turns = loop_for(live->factory, 1000);
    assert_in_range(turns, 1, 60);
    assert_true(cpu_ms() - busy < 300);
    server_kill(&live->server);
    busy = cpu_ms();
    turns = loop_for(live->factory, 2000);
    assert_in_range(turns, 1, 200);
    assert_true(cpu_ms() - busy < 500);
    assert_int_equal(atomic_load(&told.count), 0);
    dlock_cancel(&lock);
    (void)loop_until(live->factory, &told.count, 1);
    dlock_close(other);
    live_end(live);
}

/* ------------------------------------------------------------ releases that nobody waits for */

static void a_release_without_callback_frees_the_handle_at_once_and_the_key_soon(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live->factory);
    for (int i = 0; i < 3; i++) {
        assert_yes(loop_acquire(live->factory, &lock, "k", &once), &lock);
        assert_true(dlock_release_start(&lock, NULL, NULL));
        assert_false(dlock_is_pending(&lock));
        assert_false(dlock_is_acquired(&lock));
        assert_int_equal(dlock_fence(&lock), 0);
        memset(&lock, 0xAA, sizeof lock);
        memset(&lock, 0, sizeof lock);
        if (i == 0) {
            server_soon(&live->server, "EXISTS k", 0);      /* sent at once, if it can be */
        } else if (i == 1) {
            loop_soon(live->factory, &live->server, "EXISTS k", 0);
        }
        /* Behind the release, on the same connection: it is free by then. */
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    loop_debts(live->factory);
    live_end(live);
}

static void a_release_without_callback_is_paid_by_close_at_the_latest(void **state)
{
    struct live *live = live_of(state);
    for (int i = 0; i < 2; i++) {
        dlock_lock lock = DLOCK_INIT;
        live_reopen(live, live->server.url, NULL);
        assert_yes(loop_acquire(live->factory, &lock, "k", &once), &lock);
        if (i == 1) {
            server_pause(&live->server);
        }
        assert_true(dlock_release_start(&lock, NULL, NULL));
        if (i == 1) {
            loop_process(live->factory);
            server_continue(&live->server);
        }
        loop_close(live->factory);
        live->factory = NULL;
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

/* The debt outlives the connection. */
static void a_release_without_callback_survives_a_broken_connection(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(loop_acquire(live->factory, &lock, "k", &once), &lock);
    server_restart(&live->server, true, NULL);
    assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
    assert_true(dlock_release_start(&lock, NULL, NULL));
    loop_soon(live->factory, &live->server, "EXISTS k", 0);
    loop_debts(live->factory);
    live_end(live);
}

/* It serves who waits, as any other release does. */
static void a_release_without_callback_hands_the_lock_over(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    struct told told = {0};
    warm_up(live->factory);
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    assert_true(dlock_acquire_start(live->factory, &lock, "k", &for_ever, tell, &told));
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
    assert_true(dlock_release_start(&held, NULL, NULL));
    int64_t start = now_ms();
    (void)loop_until(live->factory, &told.count, 1);
    assert_took(start, 0, 500);
    assert_yes(told.answer, &lock);
    assert_int_equal(stats_of(live->factory).handed_over, 1);
    dlock_close(other);
    live_end(live);
}

/* ---------------------------------------------------------------------------------- close, fork */

struct restart {
    dlock_factory *factory;
    dlock_lock lock;
    int started;
    int told;
};

/* A program that tries again whenever it is told no, also while everything ends. */
static void start_again(dlock_lock *lock, bool answer, void *user)
{
    struct restart *restart = (struct restart *)user;
    (void)answer;
    restart->told++;
    if (restart->started < 5 &&
        dlock_acquire_start(restart->factory, lock, "again", &for_ever, start_again, user)) {
        restart->started++;
    }
}

static void close_answers_every_start_with_cancelled_once(void **state)
{
    enum { COUNT = 40 };
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    static dlock_lock waiting[COUNT];
    struct told told[COUNT];
    struct told last = {0};
    struct told released = {0};
    struct told extended = {0};
    struct restart restart = {.factory = live->factory};
    dlock_lock held = DLOCK_INIT;
    dlock_lock own = DLOCK_INIT;
    dlock_lock gone = DLOCK_INIT;
    dlock_lock longer = DLOCK_INIT;
    dlock_lock late = DLOCK_INIT;
    memset(waiting, 0, sizeof waiting);
    memset(told, 0, sizeof told);
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    assert_yes(loop_acquire(live->factory, &own, "own", &once), &own);
    assert_yes(loop_acquire(live->factory, &gone, "gone", &once), &gone);
    assert_yes(loop_acquire(live->factory, &longer, "longer", &once), &longer);
    for (int i = 0; i < COUNT; i++) {
        assert_true(
            dlock_acquire_start(live->factory, &waiting[i], "k", &for_ever, tell, &told[i]));
    }
    server_do(&live->server, "SET again theirs");
    restart.started += dlock_acquire_start(live->factory, &restart.lock, "again", &for_ever,
                                           start_again, &restart);
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", COUNT);
    server_pause(&live->server);
    assert_true(dlock_acquire_start(live->factory, &late, "late", &once, tell, &last));
    assert_true(dlock_extend_start(&longer, 60000, tell, &extended));
    assert_true(dlock_release_start(&gone, tell, &released));
    server_continue(&live->server);
    int64_t start = now_ms();
    loop_close(live->factory);
    live->factory = NULL;
    assert_took(start, 0, 1200);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(atomic_load(&told[i].count), 1);
        assert_int_equal(atomic_load(&told[i].astray), 0);
        assert_false(told[i].answer);
        assert_int_equal(told[i].code, DLOCK_CANCELLED);
        assert_false(dlock_is_pending(&waiting[i]));
    }
    const struct told *rest[] = {&last, &extended, &released};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        assert_int_equal(atomic_load(&rest[i]->count), 1);
        assert_false(rest[i]->answer);
        assert_int_equal(rest[i]->code, DLOCK_CANCELLED);
    }
    assert_int_equal(restart.told, restart.started);
    server_soon(&live->server, "EXISTS own gone longer late {k}:queue {again}:queue", 0);
    assert_held(&live->server, &held, "k");
    assert_false(dlock_is_acquired(&own) || dlock_is_acquired(&longer));
    assert_string_equal(dlock_owner(&own), "");
    assert_no(dlock_release(&own), &own, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&longer, NULL, NULL), &longer, DLOCK_ARGUMENT);
    dlock_close(other);
    live_end(live);
}

/* A program that gives everything back as soon as it has it, and wants its memory again. */
struct thrifty {
    atomic_int count;
    int acquired;
    bool by_start;
};

static void give_back_and_free(dlock_lock *lock, bool answer, void *user)
{
    struct thrifty *thrifty = (struct thrifty *)user;
    thrifty->acquired += answer ? 1 : 0;
    if (answer && thrifty->by_start) {
        (void)dlock_release_start(lock, NULL, NULL);
    } else if (answer) {
        (void)dlock_release(lock);
    }
    memset(lock, 0xAA, sizeof *lock);
    free(lock);
    atomic_fetch_add(&thrifty->count, 1);
}

static void lost_and_free(dlock_lock *lock, void *user)
{
    (void)dlock_release(lock);
    memset(lock, 0xAA, sizeof *lock);
    free(lock);
    atomic_fetch_add((atomic_int *)user, 1);
}

/* The answer was read by somebody else's call, and is told by dlock_close. */
static void a_handle_that_is_given_back_inside_of_close_may_be_freed(void **state)
{
    enum { COUNT = 5 };
    struct live *live = live_of(state);
    for (int by_start = 0; by_start < 2; by_start++) {
        struct thrifty thrifty = {.by_start = by_start == 1};
        dlock_lock other = DLOCK_INIT;
        char key[16];
        live_reopen(live, live->server.url, NULL);
        for (int i = 0; i < COUNT; i++) {
            dlock_lock *lock = (dlock_lock *)calloc(1, sizeof *lock);
            assert_non_null(lock);
            (void)snprintf(key, sizeof key, "k%d", i);
            assert_true(
                dlock_acquire_start(live->factory, lock, key, &once, give_back_and_free, &thrifty));
        }
        assert_yes(dlock_acquire(live->factory, &other, "other", &once), &other);
        assert_int_equal(server_integer(&live->server, "EXISTS k0 k1 k2 k3 k4"), COUNT);
        assert_int_equal(atomic_load(&thrifty.count), 0);
        loop_close(live->factory);
        live->factory = NULL;
        assert_int_equal(atomic_load(&thrifty.count), COUNT);
        assert_int_equal(thrifty.acquired, COUNT);
        server_soon(&live->server, "EXISTS k0 k1 k2 k3 k4 other", 0);
    }
    atomic_int lost = 0;
    dlock_options brief = {.expiry_ms = 60, .on_lost = lost_and_free, .user = &lost};
    dlock_lock *lock = (dlock_lock *)calloc(1, sizeof *lock);
    assert_non_null(lock);
    live_reopen(live, live->server.url, NULL);
    assert_yes(dlock_acquire(live->factory, lock, "brief", &brief), lock);
    pause_ms(80);
    loop_close(live->factory);      /* which may find out, and tell, or just give it back */
    live->factory = NULL;
    if (atomic_load(&lost) == 0) {
        free(lock);
    }
    live_end(live);
}

struct inherited {
    dlock_factory *factory;
    dlock_lock *held;
    dlock_lock *waiting;
    struct told *told;
    const char *url;
};

static int heir(void *argument)
{
    struct inherited *given = (struct inherited *)argument;
    struct told told = {0};
    dlock_lock unused = DLOCK_INIT;
    child_check(dlock_fd(given->factory) == -1);
    child_check(!dlock_acquire_start(given->factory, &unused, "child", NULL, tell, &told));
    child_check(dlock_why(&unused)->code == DLOCK_ARGUMENT);
    child_check(!dlock_extend_start(given->held, 60000, tell, &told));
    child_check(dlock_why(given->held)->code == DLOCK_ARGUMENT);
    child_check(!dlock_release_start(given->held, tell, &told));
    child_check(dlock_why(given->held)->code == DLOCK_ARGUMENT);
    child_check(!dlock_release_start(given->held, NULL, NULL));
    child_check(!dlock_is_acquired(given->held) && !dlock_is_acquired(given->waiting));
    dlock_cancel(given->waiting);
    loop_process(given->factory);
    pause_ms(10);
    loop_process(given->factory);
    loop_close(given->factory);
    child_check(atomic_load(&told.count) == 0);
    child_check(atomic_load(&given->told->count) == 0);
    /* What it inherited it may forget, and use again with a factory of its own. */
    dlock_factory *own = dlock_open(given->url, NULL, NULL);
    child_check(own != NULL);
    dlock_forget(given->held);
    memset(given->waiting, 0, sizeof *given->waiting);
    child_check(dlock_acquire(own, given->held, "child", NULL));
    child_check(loop_acquire(own, given->waiting, "child too", NULL));
    child_check(dlock_release(given->held));
    child_check(dlock_acquire(own, given->held, "child", NULL));
    loop_close(own);
    return 0;
}

/* The parent's set of descriptors is the child's too: what is removed there is gone here. */
static void a_forked_child_changes_nothing_in_its_parents_loop(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock theirs = DLOCK_INIT;
    dlock_lock held = DLOCK_INIT;
    dlock_lock waiting = DLOCK_INIT;
    struct told told = {0};
    struct inherited given = {live->factory, &held, &waiting, &told, live->server.url};
    assert_yes(dlock_acquire(other, &theirs, "k", &once), &theirs);
    assert_yes(loop_acquire(live->factory, &held, "held", &once), &held);
    assert_true(dlock_acquire_start(live->factory, &waiting, "k", &for_ever, tell, &told));
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
    (void)loop_for(live->factory, 100);
    int64_t asked = server_scripts(&live->server);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(child_wait(child_start(heir, &given)), 0);
    }
    assert_int_equal(server_integer(&live->server, "EXISTS child"), 0);
    assert_in_range(server_scripts(&live->server) - asked, 4 * 5, 4 * 8);  /* their own alone */
    assert_in_range(loop_for(live->factory, 100), 0, 2);
    assert_true(dlock_is_pending(&waiting));
    assert_yes(dlock_release(&theirs), &theirs);
    (void)loop_until(live->factory, &told.count, 1);
    assert_yes(told.answer, &waiting);
    assert_held(&live->server, &waiting, "k");
    assert_held(&live->server, &held, "held");
    assert_yes(loop_extend(live->factory, &held, 60000), &held);
    struct told ended = {0};
    dlock_lock again = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 100};
    assert_yes(dlock_acquire(other, &theirs, "other", &once), &theirs);
    assert_true(dlock_acquire_start(live->factory, &again, "other", &waits, tell, &ended));
    (void)loop_until(live->factory, &ended.count, 1);
    assert_no(ended.answer, &again, DLOCK_TIMEOUT);
    dlock_close(other);
    live_end(live);
}

/* ---------------------------------------------------------------------------- nothing piles up */

struct heap {
    atomic_llong bytes;
    atomic_int blocks;
};

static void *heap_alloc(size_t size, void *user)
{
    struct heap *heap = (struct heap *)user;
    size_t *block = (size_t *)malloc(size + 16);
    if (block == NULL) {
        return NULL;
    }
    block[0] = size;
    atomic_fetch_add(&heap->bytes, (long long)size);
    atomic_fetch_add(&heap->blocks, 1);
    return (char *)block + 16;
}

static void heap_free(void *memory, void *user)
{
    struct heap *heap = (struct heap *)user;
    if (memory != NULL) {
        size_t *block = (size_t *)(void *)((char *)memory - 16);
        atomic_fetch_sub(&heap->bytes, (long long)block[0]);
        atomic_fetch_sub(&heap->blocks, 1);
        free(block);
    }
}

static void round_of(struct live *live, int i, dlock_lock *lock)
{
    switch (i % 4) {
    case 0:
        assert_yes(loop_acquire(live->factory, lock, "k", &once), lock);
        assert_yes(loop_release(live->factory, lock), lock);
        return;
    case 1:
        assert_yes(loop_acquire(live->factory, lock, "k", &once), lock);
        assert_true(dlock_release_start(lock, NULL, NULL));
        return;
    default: {
        struct told told = {0};
        const char *key = i % 4 == 2 ? "k" : "busy";
        assert_true(dlock_acquire_start(live->factory, lock, key, &for_ever, tell, &told));
        for (int turns = (i / 4) % 4; turns > 0; turns--) {
            loop_process(live->factory);
        }
        dlock_cancel(lock);
        (void)loop_until(live->factory, &told.count, 1);
        if (told.answer) {      /* it had been granted, or even told, before */
            assert_yes(loop_release(live->factory, lock), lock);
        } else {
            assert_code(lock, DLOCK_CANCELLED);
        }
    }
    }
}

static void ten_thousand_rounds_leave_nothing_behind(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    struct heap heap = {0};
    dlock_config config = {.alloc = heap_alloc, .free = heap_free, .user = &heap};
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(other, &held, "busy", &once), &held);
    live_reopen(live, live->server.url, &config);
    dlock_options waits = {.wait_ms = 50};
    assert_no(loop_acquire(live->factory, &lock, "busy", &waits), &lock, DLOCK_TIMEOUT);
    for (int i = 0; i < 40; i++) {
        round_of(live, i, &lock);
    }
    loop_debts(live->factory);
    int open_now = descriptors();
    long long bytes = atomic_load(&heap.bytes);
    int blocks = atomic_load(&heap.blocks);
    int64_t connections = server_info(&live->server, "stats", "total_connections_received");
    for (int i = 0; i < 10000 / SLOWER; i++) {
        round_of(live, i, &lock);
    }
    assert_yes(dlock_extend(&held, 0), &held);
    loop_debts(live->factory);
    assert_int_equal(stats_of(live->factory).pending, 0);
    assert_int_equal(stats_of(live->factory).held, 0);
    assert_int_equal(descriptors(), open_now);
    assert_true(atomic_load(&heap.bytes) == bytes);
    assert_int_equal(atomic_load(&heap.blocks), blocks);
    assert_int_equal(server_info(&live->server, "stats", "total_connections_received"),
                     connections);
    server_soon(&live->server, "EXISTS k {k}:queue {busy}:queue", 0);
    assert_int_equal(server_integer(&live->server, "DBSIZE"), 3);
    int64_t heard = server_heard(&live->server);
    (void)loop_for(live->factory, 1500);    /* until no command has a time that could be over */
    assert_int_equal(loop_for(live->factory, 500), 0);
    assert_int_equal(server_heard(&live->server), heard);
    loop_close(live->factory);
    live->factory = NULL;
    assert_int_equal(atomic_load(&heap.blocks), 0);
    inboxes_wait(&live->server, 0);
    dlock_close(other);
    live_end(live);
}

static void ignore_event(const dlock_event *event, void *user)
{
    (void)event;
    (void)user;
}

struct heir_of_memory {
    dlock_factory *factory;
    struct heap *heap;
};

static int frugal_heir(void *argument)
{
    struct heir_of_memory *given = (struct heir_of_memory *)argument;
    loop_close(given->factory);
    child_check(atomic_load(&given->heap->blocks) == 0);
    child_check(atomic_load(&given->heap->bytes) == 0);
    return 0;
}

/* Connections that are up, a call under way, something owed, something not yet told. */
static void a_forked_child_gives_back_all_its_memory(void **state)
{
    struct live *live = live_of(state);
    struct heap heap = {0};
    dlock_config config = {
        .alloc = heap_alloc, .free = heap_free, .on_event = ignore_event, .user = &heap};
    dlock_lock held = DLOCK_INIT;
    dlock_lock waiting = DLOCK_INIT;
    dlock_lock untold = DLOCK_INIT;
    struct told told = {0};
    live_reopen(live, live->server.url, &config);
    struct heir_of_memory given = {live->factory, &heap};
    server_do(&live->server, "SET k theirs");
    assert_yes(loop_acquire(live->factory, &held, "held", &once), &held);
    assert_true(dlock_acquire_start(live->factory, &waiting, "k", &for_ever, tell, &told));
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
    assert_int_equal(child_wait(child_start(frugal_heir, &given)), 0);
    assert_true(dlock_acquire_start(live->factory, &untold, "free", &once, tell, &told));
    assert_true(dlock_release_start(&held, NULL, NULL));    /* an event that waits for process */
    assert_int_equal(child_wait(child_start(frugal_heir, &given)), 0);
    (void)loop_until(live->factory, &told.count, 1);
    loop_close(live->factory);
    live->factory = NULL;
    assert_int_equal(atomic_load(&told.count), 2);
    assert_int_equal(atomic_load(&heap.blocks), 0);
    live_end(live);
}

static void connecting_again_and_again_leaves_no_memory(void **state)
{
    struct live *live = live_of(state);
    struct heap heap = {0};
    dlock_config config = {.alloc = heap_alloc, .free = heap_free, .user = &heap};
    int open_now = descriptors() - 2;   /* without the sockets that the factory may have */
    for (int i = 0; i < 60; i++) {
        struct told told = {0};
        dlock_lock lock = DLOCK_INIT;
        live_reopen(live, live->server.url, &config);
        server_do(&live->server, "SET k theirs PX 60000");
        assert_true(dlock_acquire_start(live->factory, &lock, "k", &for_ever, tell, &told));
        for (int turns = i % 10; turns > 0; turns--) {
            (void)loop_turn(live->factory, 50);
        }
        if (i % 3 == 1) {
            server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
            server_do(&live->server, "CLIENT KILL TYPE pubsub");
            (void)loop_for(live->factory, 20);
        }
        loop_close(live->factory);
        live->factory = NULL;
        assert_int_equal(atomic_load(&told.count), 1);
        assert_int_equal(told.code, DLOCK_CANCELLED);
        assert_int_equal(atomic_load(&heap.blocks), 0);
    }
    assert_true(descriptors() <= open_now + 2);
    server_soon(&live->server, "EXISTS {k}:queue", 0);
    live_end(live);
}

static struct line {
    dlock_factory *factory;
    atomic_int served;
    int wrong;                  /* not in order, or not held */
    int next;
} line;

static dlock_lock line_locks[1000];

static void line_done(dlock_lock *lock, bool answer, void *user)
{
    (void)user;
    line.wrong += !answer || lock != &line_locks[line.next] || !dlock_is_acquired(lock) ? 1 : 0;
    line.next++;
    atomic_fetch_add(&line.served, 1);
    line.wrong += dlock_release_start(lock, NULL, NULL) ? 0 : 1;
}

static void a_thousand_that_wait_in_one_thread_are_served_in_order(void **state)
{
    enum { COUNT = 1000 };
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    dlock_options patient = {.wait_ms = DLOCK_FOREVER, .expiry_ms = 60000};
    memset(line_locks, 0, sizeof line_locks);
    memset(&line, 0, sizeof line);
    line.factory = live->factory;
    assert_yes(dlock_acquire(other, &held, "k", &patient), &held);
    int64_t connections = server_info(&live->server, "stats", "total_connections_received");
    for (int i = 0; i < COUNT; i++) {
        assert_true(
            dlock_acquire_start(live->factory, &line_locks[i], "k", &patient, line_done, NULL));
    }
    loop_soon(live->factory, &live->server, "ZCARD {k}:queue", COUNT);
    assert_int_equal(stats_of(live->factory).pending, COUNT);
    assert_in_range(loop_for(live->factory, 500), 0, 20);
    int64_t scripts = server_scripts(&live->server);
    assert_yes(dlock_release(&held), &held);
    (void)loop_until(live->factory, &line.served, COUNT);
    assert_int_equal(line.wrong, 0);
    loop_soon(live->factory, &live->server, "EXISTS k {k}:queue", 0);
    loop_debts(live->factory);
    int64_t spent = server_scripts(&live->server) - scripts;
    assert_in_range(spent, COUNT + 1, COUNT * 3 / 2);
    assert_int_equal(server_info(&live->server, "stats", "total_connections_received"),
                     connections + 2);
    assert_int_equal(stats_of(live->factory).handed_over, COUNT);
    dlock_close(other);
    live_end(live);
}

/* ------------------------------------------------------------------- threads beside a loop */

struct caller {
    pthread_t thread;
    dlock_factory *factory;
    const char *key;
    dlock_options options;
    dlock_lock lock;
    int rounds;                 /* 0 = acquire once and stay */
    atomic_int ended;
    atomic_int go_on;
    bool answer;
    int code;
    int64_t took_ms;
};

static void *caller_body(void *argument)
{
    struct caller *caller = (struct caller *)argument;
    int64_t start = now_ms();
    caller->answer = true;
    for (int i = 0; i < caller->rounds && caller->answer; i++) {
        caller->answer =
            dlock_acquire(caller->factory, &caller->lock, caller->key, &caller->options) &&
            dlock_extend(&caller->lock, 60000) && dlock_release(&caller->lock);
    }
    if (caller->rounds == 0) {
        caller->answer =
            dlock_acquire(caller->factory, &caller->lock, caller->key, &caller->options);
    }
    if (!caller->answer) {      /* else it is held, and dlock_close may be at work on it */
        caller->code = dlock_why(&caller->lock)->code;
    }
    caller->took_ms = now_ms() - start;
    atomic_store(&caller->ended, 1);
    return NULL;
}

static void caller_start(struct caller *caller, dlock_factory *factory, const char *key,
                         int64_t wait_ms, int rounds)
{
    memset(caller, 0, sizeof *caller);
    caller->factory = factory;
    caller->key = key;
    caller->options.wait_ms = wait_ms;
    caller->rounds = rounds;
    assert_int_equal(pthread_create(&caller->thread, NULL, caller_body, caller), 0);
}

static void caller_end(struct caller *caller)
{
    await(&caller->ended, 1);
    assert_int_equal(pthread_join(caller->thread, NULL), 0);
}

/* The other thread reads for both, but `done` is not its to call. */
static void a_blocked_call_drives_starts_but_never_calls_their_done(void **state)
{
    enum { COUNT = 4 };
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    static struct caller blocked;
    dlock_lock held = DLOCK_INIT;
    dlock_lock queued = DLOCK_INIT;
    dlock_lock locks[COUNT];
    struct told told[COUNT + 1];
    char key[32];
    memset(locks, 0, sizeof locks);
    memset(told, 0, sizeof told);
    assert_true(dlock_fd(live->factory) >= 0);
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    assert_yes(dlock_acquire(other, &queued, "queued", &once), &queued);
    caller_start(&blocked, live->factory, "k", DLOCK_FOREVER, 0);
    server_soon(&live->server, "ZCARD {k}:queue", 1);
    for (int i = 0; i < COUNT; i++) {
        (void)snprintf(key, sizeof key, "free%d", i);
        assert_true(dlock_acquire_start(live->factory, &locks[i], key, &once, tell, &told[i]));
    }
    dlock_lock waiting = DLOCK_INIT;
    assert_true(
        dlock_acquire_start(live->factory, &waiting, "queued", &for_ever, tell, &told[COUNT]));
    /* Nobody processes, and yet all of them get on: the blocked call reads and sends. */
    for (int i = 0; i < COUNT; i++) {
        (void)snprintf(key, sizeof key, "EXISTS free%d", i);
        server_soon(&live->server, key, 1);
    }
    server_soon(&live->server, "ZCARD {queued}:queue", 1);
    pause_ms(100);
    for (int i = 0; i <= COUNT; i++) {
        assert_int_equal(atomic_load(&told[i].count), 0);
    }
    assert_true(dlock_is_pending(&locks[0]));
    for (int i = 0; i < COUNT; i++) {
        (void)loop_until(live->factory, &told[i].count, 1);
        assert_yes(told[i].answer, &locks[i]);
        assert_int_equal(atomic_load(&told[i].astray), 0);
    }
    (void)loop_for(live->factory, 50);
    assert_yes(dlock_release(&queued), &queued);
    (void)loop_until(live->factory, &told[COUNT].count, 1);
    assert_yes(told[COUNT].answer, &waiting);
    assert_int_equal(atomic_load(&blocked.ended), 0);
    assert_yes(dlock_release(&held), &held);
    caller_end(&blocked);
    assert_yes(blocked.answer, &blocked.lock);
    dlock_close(other);
    live_end(live);
}

/* A bound of a start ends on time, although somebody else sleeps in the engine. */
static void a_start_ends_on_time_beside_a_blocked_call(void **state)
{
    struct live *live = live_of(state);
    static struct caller blocked;
    dlock_lock lock = DLOCK_INIT;
    server_do(&live->server, "SET k dl1-00000000000000000000000000000000 PX 60000");
    server_do(&live->server, "SET x dl1-00000000000000000000000000000000 PX 60000");
    caller_start(&blocked, live->factory, "k", DLOCK_FOREVER, 0);
    server_soon(&live->server, "ZCARD {k}:queue", 1);
    for (int i = 0; i < 3; i++) {
        struct told told = {0};
        dlock_options waits = {.wait_ms = 250};
        int64_t start = now_ms();
        assert_true(dlock_acquire_start(live->factory, &lock, "x", &waits, tell, &told));
        (void)loop_until(live->factory, &told.count, 1);
        assert_took(start, 250, 350);
        assert_no(told.answer, &lock, DLOCK_TIMEOUT);
        assert_int_equal(atomic_load(&told.astray), 0);
    }
    (void)loop_for(live->factory, 50);
    assert_in_range(loop_for(live->factory, 1000), 0, 8);
    dlock_cancel(&blocked.lock);
    caller_end(&blocked);
    assert_int_equal(blocked.code, DLOCK_CANCELLED);
    live_end(live);
}

/* The loop reads for the blocked call, too, and must wake it: nothing else will, for seconds. */
static void a_blocked_call_beside_a_loop_is_never_late(void **state)
{
    struct live *live = live_of(state);
    dlock_config config = {.command_timeout_ms = 10000};
    static struct caller caller;
    live_reopen(live, live->server.url, &config);
    assert_true(dlock_fd(live->factory) >= 0);
    int64_t start = now_ms();
    caller_start(&caller, live->factory, "k", 0, 500 / SLOWER);
    while (atomic_load(&caller.ended) == 0 && now_ms() < start + 20000) {
        (void)loop_turn(live->factory, 20);
    }
    caller_end(&caller);
    assert_took(start, 0, 4000);
    assert_yes(caller.answer, &caller.lock);
    server_do(&live->server, "SET k dl1-00000000000000000000000000000000 PX 60000");
    for (int i = 0; i < 10; i++) {      /* a cancel, and a grant, while the loop reads everything */
        caller_start(&caller, live->factory, "k", DLOCK_FOREVER, 0);
        loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
        start = now_ms();
        dlock_cancel(&caller.lock);
        while (atomic_load(&caller.ended) == 0 && now_ms() < start + 20000) {
            (void)loop_turn(live->factory, 20);
        }
        caller_end(&caller);
        assert_took(start, 0, 1000);
        assert_int_equal(caller.code, DLOCK_CANCELLED);
        loop_soon(live->factory, &live->server, "EXISTS {k}:queue", 0);
    }
    live_end(live);
}

static void slow_event(const dlock_event *event, void *user)
{
    if (event->kind == DLOCK_EVENT_CONNECTED) {
        atomic_store((atomic_int *)user, 1);
        pause_ms(700);
    }
}

/* A callback takes its time in another thread, and more has happened meanwhile that is to be told
 * after it: that is nothing for dlock_process to do. */
static void a_loop_does_not_spin_while_another_thread_is_in_a_callback(void **state)
{
    struct live *live = live_of(state);
    atomic_int inside = 0;
    dlock_config config = {.on_event = slow_event, .user = &inside};
    static struct caller caller;
    live_reopen(live, live->server.url, &config);
    assert_true(dlock_fd(live->factory) >= 0);
    caller_start(&caller, live->factory, "k", 0, 1);
    await(&inside, 1);
    int64_t busy = cpu_ms();
    assert_in_range(loop_for(live->factory, 400), 0, 20);
    assert_true(cpu_ms() - busy < 150);
    caller_end(&caller);
    assert_yes(caller.answer, &caller.lock);
    live_end(live);
}

/* Threads that call and a loop that starts, on keys of their own and on one together. */
static void blocking_threads_and_a_loop_all_get_on(void **state)
{
    enum { THREADS = 4, STARTS = 8, ROUNDS = 400 / SLOWER };
    struct live *live = live_of(state);
    static struct caller callers[THREADS];
    static dlock_lock locks[STARTS];
    struct told told[STARTS];
    char keys[THREADS + STARTS][16];
    int rounds = 0;
    memset(locks, 0, sizeof locks);
    for (int i = 0; i < THREADS + STARTS; i++) {
        (void)snprintf(keys[i], sizeof keys[i], i % 4 == 3 ? "together" : "k%d", i);
    }
    for (int i = 0; i < THREADS; i++) {
        caller_start(&callers[i], live->factory, keys[i], 60000, ROUNDS);
    }
    for (int i = 0; i < STARTS; i++) {
        memset(&told[i], 0, sizeof told[i]);
        assert_true(dlock_acquire_start(live->factory, &locks[i], keys[THREADS + i], &for_ever,
                                        tell, &told[i]));
    }
    for (int idle = 0; idle < STARTS;) {
        (void)loop_turn(live->factory, 10000);
        for (int i = 0; i < STARTS; i++) {
            if (atomic_load(&told[i].count) == 0) {
                continue;
            }
            assert_yes(told[i].answer, &locks[i]);
            assert_int_equal(atomic_load(&told[i].count), 1);
            assert_int_equal(atomic_load(&told[i].astray), 0);
            memset(&told[i], 0, sizeof told[i]);
            rounds++;
            if (dlock_is_acquired(&locks[i])) {
                assert_true(dlock_release_start(&locks[i], tell, &told[i]));
            } else if (rounds < STARTS * ROUNDS) {
                assert_true(dlock_acquire_start(live->factory, &locks[i], keys[THREADS + i],
                                                &for_ever, tell, &told[i]));
            } else {
                idle++;
            }
        }
    }
    for (int i = 0; i < THREADS; i++) {
        caller_end(&callers[i]);
        assert_yes(callers[i].answer, &callers[i].lock);
    }
    assert_true(server_info(&live->server, "stats", "total_connections_received") <= 6);
    live_end(live);
}

/* In one thread: a call between start and done drives, and leaves `done` to process. */
static void a_call_between_start_and_done_leaves_done_to_process(void **state)
{
    struct live *live = live_of(state);
    dlock_lock started = DLOCK_INIT;
    dlock_lock called = DLOCK_INIT;
    struct told told = {0};
    for (int i = 0; i < 100; i++) {
        memset(&told, 0, sizeof told);
        assert_true(dlock_acquire_start(live->factory, &started, "s", &once, tell, &told));
        for (int calls = 0; calls < 3; calls++) {
            assert_yes(dlock_acquire(live->factory, &called, "c", &once), &called);
            assert_yes(dlock_release(&called), &called);
        }
        assert_int_equal(server_integer(&live->server, "EXISTS s"), 1);
        assert_int_equal(atomic_load(&told.count), 0);
        assert_true(dlock_is_pending(&started));
        (void)loop_until(live->factory, &told.count, 1);
        assert_yes(told.answer, &started);
        assert_yes(dlock_release(&started), &started);
    }
    live_end(live);
}

/* ---------------------------------------------------------------- threads that share a factory */

static void sixty_four_threads_with_keys_of_their_own_share_a_connection(void **state)
{
    enum { THREADS = 64 };
    struct live *live = live_of(state);
    static struct caller callers[THREADS];
    char keys[THREADS][16];
    for (int i = 0; i < THREADS; i++) {
        (void)snprintf(keys[i], sizeof keys[i], "k%d", i);
        caller_start(&callers[i], live->factory, keys[i], 0, 100 / SLOWER);
    }
    for (int i = 0; i < THREADS; i++) {
        caller_end(&callers[i]);
        assert_yes(callers[i].answer, &callers[i].lock);
    }
    assert_int_equal(server_info(&live->server, "stats", "total_connections_received"), 3);
    assert_int_equal(server_integer(&live->server, "DBSIZE"), THREADS);
    assert_int_equal(stats_of(live->factory).acquired, THREADS * (100 / SLOWER));
    assert_int_equal(stats_of(live->factory).released, THREADS * (100 / SLOWER));
    live_end(live);
}

struct witness {
    atomic_int inside;
    atomic_int overlaps;
    atomic_int fence_faults;
    _Atomic uint64_t last_fence;
    atomic_int served[16];
};

struct diner {
    pthread_t thread;
    dlock_factory *factory;
    struct witness *witness;
    int number;
    int rounds;
    bool well;
};

static void *diner_body(void *argument)
{
    struct diner *diner = (struct diner *)argument;
    struct witness *witness = diner->witness;
    diner->well = true;
    for (int i = 0; i < diner->rounds && diner->well; i++) {
        dlock_lock lock = DLOCK_INIT;
        diner->well = dlock_acquire(diner->factory, &lock, "table", &for_ever);
        if (!diner->well) {
            break;
        }
        atomic_fetch_add(&witness->overlaps, atomic_fetch_add(&witness->inside, 1) != 0 ? 1 : 0);
        uint64_t fence = dlock_fence(&lock);
        atomic_fetch_add(&witness->fence_faults,
                         fence <= atomic_exchange(&witness->last_fence, fence) ? 1 : 0);
        struct timespec rest = {0, 300000};
        (void)nanosleep(&rest, NULL);
        atomic_fetch_add(&witness->served[diner->number], 1);
        atomic_fetch_sub(&witness->inside, 1);
        diner->well = dlock_release(&lock);
    }
    return NULL;
}

static void sixteen_threads_on_one_key_exclude_each_other_and_all_are_served(void **state)
{
    enum { THREADS = 16, ROUNDS = 60 };
    struct live *live = live_of(state);
    static struct witness witness;
    struct diner diners[THREADS];
    memset(&witness, 0, sizeof witness);
    int64_t start = now_ms();
    for (int i = 0; i < THREADS; i++) {
        diners[i] = (struct diner){
            .factory = live->factory, .witness = &witness, .number = i, .rounds = ROUNDS};
        assert_int_equal(pthread_create(&diners[i].thread, NULL, diner_body, &diners[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(diners[i].thread, NULL), 0);
        assert_true(diners[i].well);
        assert_int_equal(atomic_load(&witness.served[i]), ROUNDS);
    }
    assert_took(start, 0, 8000);
    assert_int_equal(atomic_load(&witness.overlaps), 0);
    assert_int_equal(atomic_load(&witness.fence_faults), 0);
    assert_true(stats_of(live->factory).handed_over > THREADS * ROUNDS / 2);
    assert_true(server_info(&live->server, "stats", "total_connections_received") <= 4);
    server_soon(&live->server, "EXISTS table {table}:queue", 0);
    live_end(live);
}

/* The first to wait reads for all. When its own call is over, another must read, or nobody is ever
 * told anything: the leases are so long that only a message can end the waiting. */
static void a_leader_whose_call_ends_passes_the_lead_on(void **state)
{
    enum { GRANTED, TIMED_OUT, CANCELLED, ENDINGS };
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    static struct caller leader;
    static struct caller second;
    static struct caller third;
    for (int i = 0; i < 2 * ENDINGS; i++) {
        int ending = i % ENDINGS;
        dlock_lock one = DLOCK_INIT;
        dlock_lock two = DLOCK_INIT;
        assert_yes(dlock_acquire(other, &one, "one", &once), &one);
        assert_yes(dlock_acquire(other, &two, "two", &once), &two);
        caller_start(&leader, live->factory, "one", ending == TIMED_OUT ? 600 : DLOCK_FOREVER, 0);
        server_soon(&live->server, "ZCARD {one}:queue", 1);
        caller_start(&second, live->factory, "two", DLOCK_FOREVER, 0);
        server_soon(&live->server, "ZCARD {two}:queue", 1);
        caller_start(&third, live->factory, "two", 900, 0);
        server_soon(&live->server, "ZCARD {two}:queue", 2);
        if (ending == GRANTED) {
            assert_yes(dlock_release(&one), &one);
        } else if (ending == CANCELLED) {
            dlock_cancel(&leader.lock);
        }
        caller_end(&leader);
        assert_int_equal(leader.answer, ending == GRANTED);
        assert_int_equal(leader.code, ending == GRANTED     ? DLOCK_OK
                                      : ending == TIMED_OUT ? DLOCK_TIMEOUT
                                                            : DLOCK_CANCELLED);
        assert_int_equal(atomic_load(&second.ended), 0);
        pause_ms(i < ENDINGS ? 0 : 50);
        int64_t start = now_ms();
        assert_yes(dlock_release(&two), &two);
        caller_end(&second);
        assert_took(start, 0, 500);
        assert_yes(second.answer, &second.lock);
        /* The last one leads itself, and its own bound ends it. */
        caller_end(&third);
        assert_no(third.answer, &third.lock, DLOCK_TIMEOUT);
        assert_in_range(third.took_ms, 898, 3000);
        assert_yes(dlock_release(&second.lock), &second.lock);
        if (ending == GRANTED) {
            assert_yes(dlock_release(&leader.lock), &leader.lock);
        } else {
            assert_yes(dlock_release(&one), &one);
        }
        server_soon(&live->server, "EXISTS one two {one}:queue {two}:queue", 0);
    }
    dlock_close(other);
    live_end(live);
}

/* Whoever leads: those who sleep are woken by what the leader reads for them. */
static void a_leader_wakes_the_others(void **state)
{
    enum { THREADS = 8 };
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    static struct caller leader;
    static struct caller callers[THREADS];
    dlock_lock first = DLOCK_INIT;
    dlock_lock held[THREADS];
    char keys[THREADS][16];
    char question[32];
    memset(held, 0, sizeof held);
    assert_yes(dlock_acquire(other, &first, "first", &once), &first);
    caller_start(&leader, live->factory, "first", DLOCK_FOREVER, 0);
    server_soon(&live->server, "ZCARD {first}:queue", 1);
    for (int i = 0; i < THREADS; i++) {
        (void)snprintf(keys[i], sizeof keys[i], "k%d", i);
        (void)snprintf(question, sizeof question, "ZCARD {%s}:queue", keys[i]);
        assert_yes(dlock_acquire(other, &held[i], keys[i], &once), &held[i]);
        caller_start(&callers[i], live->factory, keys[i], DLOCK_FOREVER, 0);
        server_soon(&live->server, question, 1);
    }
    for (int i = THREADS - 1; i >= 0; i--) {
        int64_t start = now_ms();
        assert_yes(dlock_release(&held[i]), &held[i]);
        caller_end(&callers[i]);
        assert_took(start, 0, 500);
        assert_yes(callers[i].answer, &callers[i].lock);
    }
    assert_int_equal(atomic_load(&leader.ended), 0);
    dlock_cancel(&leader.lock);
    caller_end(&leader);
    assert_int_equal(leader.code, DLOCK_CANCELLED);
    dlock_close(other);
    live_end(live);
}

/* Waiting in line, asking a server that does not answer, acquiring and releasing all the time. */
static void close_beside_blocked_calls_ends_them_and_waits_until_they_have_left(void **state)
{
    enum { WAITERS = 12, BUSY = 4, FEW = 3 };
    struct live *live = live_of(state);
    for (int stopped = 0; stopped < 2; stopped++) {
        dlock_config config = {.command_timeout_ms = 400};
        dlock_factory *other = open_factory(live->server.url, NULL);
        static struct caller callers[WAITERS + BUSY];
        dlock_lock held = DLOCK_INIT;
        char keys[WAITERS + BUSY][16];
        int waiters = stopped == 1 ? FEW : WAITERS;     /* what a stopped server has room for */
        live_reopen(live, live->server.url, &config);
        assert_yes(dlock_acquire(other, &held, "k", &once), &held);
        for (int i = 0; i < waiters; i++) {
            caller_start(&callers[i], live->factory, "k", DLOCK_FOREVER, 0);
        }
        server_soon(&live->server, "ZCARD {k}:queue", waiters);
        if (stopped == 1) {
            server_pause(&live->server);
        }
        for (int i = waiters; i < waiters + BUSY; i++) {
            (void)snprintf(keys[i], sizeof keys[i], "busy%d", i - waiters);
            caller_start(&callers[i], live->factory, keys[i], 60000, 0);
        }
        pause_ms(50);
        int64_t start = now_ms();
        loop_close(live->factory);
        live->factory = NULL;
        assert_took(start, 0, 1000);
        if (stopped == 1) {
            server_continue(&live->server);
        }
        for (int i = 0; i < waiters + BUSY; i++) {
            caller_end(&callers[i]);
            if (i < waiters || !callers[i].answer) {
                assert_false(callers[i].answer);
                assert_int_equal(callers[i].code, DLOCK_CANCELLED);
            }
            assert_false(dlock_is_acquired(&callers[i].lock));
        }
        server_soon(&live->server, "EXISTS busy0 busy1 busy2 busy3 {k}:queue", 0);
        assert_held(&live->server, &held, "k");
        dlock_close(other);
    }
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(a_free_key_is_acquired_and_given_back_once),
        LIVE(a_held_key_is_busy_for_who_does_not_wait),
        LIVE(a_wait_ends_with_a_timeout_and_leaves_no_ticket),
        LIVE(a_wait_ends_with_the_release_of_the_one_before),
        LIVE(an_extend_lengthens_what_is_held_and_only_that),
        LIVE(a_lapsed_lock_is_lost_to_extend_and_release),
        LIVE(a_refusal_and_a_dead_server_have_the_same_codes),
        LIVE(a_start_that_is_false_never_calls_done),
        LIVE(done_is_called_once_and_only_from_process),
        LIVE(a_pending_handle_is_left_alone),
        LIVE(starts_and_process_never_block),
        LIVE(overdue_timers_are_served_in_their_order),
        LIVE(a_lock_whose_loop_slept_beyond_its_validity_is_lost_and_told_once),
        LIVE(a_grant_that_was_slept_through_is_no_grant),
        LIVE(starts_inside_done_need_no_recursion_and_no_stack),
        LIVE(what_done_starts_is_told_in_the_next_turn),
        LIVE(a_handle_may_be_freed_inside_done),
        LIVE(the_descriptor_is_one_quiet_and_not_inherited),
        LIVE(the_descriptor_wakes_when_a_wait_ends),
        LIVE(the_descriptor_wakes_when_a_grant_arrives),
        LIVE(the_descriptor_wakes_when_a_renewal_is_due),
        LIVE(the_descriptor_wakes_when_validity_ends),
        LIVE(the_descriptor_wakes_for_an_answer_that_is_known_at_once),
        LIVE(the_descriptor_wakes_for_a_cancel_of_a_thread_or_a_signal),
        LIVE(an_idle_loop_does_not_spin),
        LIVE(a_release_without_callback_frees_the_handle_at_once_and_the_key_soon),
        LIVE(a_release_without_callback_is_paid_by_close_at_the_latest),
        LIVE(a_release_without_callback_survives_a_broken_connection),
        LIVE(a_release_without_callback_hands_the_lock_over),
        LIVE(close_answers_every_start_with_cancelled_once),
        LIVE(a_handle_that_is_given_back_inside_of_close_may_be_freed),
        LIVE(a_forked_child_changes_nothing_in_its_parents_loop),
        LIVE(ten_thousand_rounds_leave_nothing_behind),
        LIVE(a_forked_child_gives_back_all_its_memory),
        LIVE(connecting_again_and_again_leaves_no_memory),
        LIVE(a_thousand_that_wait_in_one_thread_are_served_in_order),
        LIVE(a_blocked_call_drives_starts_but_never_calls_their_done),
        LIVE(a_start_ends_on_time_beside_a_blocked_call),
        LIVE(a_blocked_call_beside_a_loop_is_never_late),
        LIVE(a_loop_does_not_spin_while_another_thread_is_in_a_callback),
        LIVE(blocking_threads_and_a_loop_all_get_on),
        LIVE(a_call_between_start_and_done_leaves_done_to_process),
        LIVE(sixty_four_threads_with_keys_of_their_own_share_a_connection),
        LIVE(sixteen_threads_on_one_key_exclude_each_other_and_all_are_served),
        LIVE(a_leader_whose_call_ends_passes_the_lead_on),
        LIVE(a_leader_wakes_the_others),
        LIVE(close_beside_blocked_calls_ends_them_and_waits_until_they_have_left),
    };
    return run_side_by_side(tests, sizeof tests / sizeof *tests, 3);
}
