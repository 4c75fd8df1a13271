/* Renewal: leases that are kept alive, by the library's thread or by a loop, through everything
 * that can happen to them, and what a lock that is lost does. */
#define _GNU_SOURCE
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
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

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

/* ---------------------------------------------- the same, by the library's thread and by a loop */

enum { BY_THREAD, BY_LOOP, MODES };

/* The last line before a failure says which it was. */
static bool say(int mode)
{
    if (mode < MODES) {
        print_message("             %s\n", mode == BY_THREAD ? "by its thread" : "by a loop");
    }
    return mode < MODES;
}
#define EITHER(mode) \
    int mode = BY_THREAD; \
    say(mode); \
    mode++

static dlock_options renewed(int64_t expiry_ms, struct losses *losses)
{
    dlock_options options = {.expiry_ms = expiry_ms,
                             .auto_renew = true,
                             .on_lost = losses != NULL ? count_loss : NULL,
                             .user = losses};
    return options;
}

static bool take(struct live *live, int mode, dlock_lock *lock, const char *key,
                 const dlock_options *options)
{
    return mode == BY_LOOP ? loop_acquire(live->factory, lock, key, options)
                           : dlock_acquire(live->factory, lock, key, options);
}

static bool give_back(struct live *live, int mode, dlock_lock *lock)
{
    return mode == BY_LOOP ? loop_release(live->factory, lock) : dlock_release(lock);
}

static bool lengthen(struct live *live, int mode, dlock_lock *lock, int64_t expiry_ms)
{
    return mode == BY_LOOP ? loop_extend(live->factory, lock, expiry_ms)
                           : dlock_extend(lock, expiry_ms);
}

/* Time passes. */
static void go_on(struct live *live, int mode, int64_t span)
{
    if (mode == BY_LOOP) {
        (void)loop_for(live->factory, span);
    } else {
        pause_ms(span);
    }
}

/* Until the lock was lost so often, which is between `low` and about `high` after `start`. */
static void wait_for_loss(struct live *live, int mode, const struct losses *losses, int64_t start,
                          int64_t low, int64_t high)
{
    if (mode == BY_LOOP) {
        (void)loop_until(live->factory, &losses->count, 1);
    } else {
        await(&losses->count, 1);
    }
    assert_in_range(atomic_load(&losses->at) - start + 1000, low - 2 + 1000, 2 * high + 500 + 1000);
    assert_int_equal(atomic_load(&losses->count), 1);
    assert_int_equal(atomic_load(&losses->wrong), 0);
}

/* Until the factory has renewed so often since `before`. */
static void wait_for_renewals(struct live *live, int mode, uint64_t before, uint64_t count)
{
    int64_t end = now_ms() + 20000;
    while (stats_of(live->factory).renewed < before + count && now_ms() < end) {
        go_on(live, mode, 2);
    }
    assert_true(stats_of(live->factory).renewed >= before + count);
}

/* A factory behind the proxy, with its scripts on the server. */
static void through_proxy(struct live *live, int32_t command_timeout_ms)
{
    dlock_config config = {.command_timeout_ms = command_timeout_ms};
    FRESH(dlock_lock, lock);
    if (live->proxy.directory[0] == '\0') {
        proxy_start(&live->proxy, &live->server);
    }
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
    live_reopen(live, live->proxy.url, &config);
    for (int i = 0; i < 2; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "warm", &once), &lock);
        assert_yes(dlock_extend(&lock, 0), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
}

/* ----------------------------------------------------------------------------------- kept alive */

/* Five leases long: is it held all the time? A machine that stands still may lose it. */
static bool outlives(struct live *live, int mode, int64_t lease)
{
    FRESH(struct losses, losses);
    dlock_options options = renewed(lease, &losses);
    FRESH(dlock_lock, lock);
    dlock_factory *other = open_factory(live->server.url, NULL);
    FRESH(dlock_lock, theirs);
    assert_yes(take(live, mode, &lock, "k", &options), &lock);
    uint64_t fence = dlock_fence(&lock);
    int64_t end = now_ms() + 5 * lease;
    bool held = true;
    while (held && now_ms() < end) {
        go_on(live, mode, 20);
        held = dlock_is_acquired(&lock);
        assert_true(dlock_remaining_ms(&lock) <= lease - lease / 100 - 2);
        assert_true(server_integer(&live->server, "PTTL k") <= lease);
        if (held && !dlock_acquire(other, &theirs, "k", NULL)) {
            assert_code(&theirs, DLOCK_BUSY);
            assert_true(dlock_fence(&lock) == fence);
        } else {
            held = false;
            (void)dlock_release(&theirs);
        }
    }
    if (held) {
        assert_held(&live->server, &lock, "k");
        assert_int_equal(atomic_load(&losses.count), 0);
        assert_true(stats_of(live->factory).renewed >= 5);
        assert_yes(give_back(live, mode, &lock), &lock);
        assert_gone(&live->server, "k");
    } else {
        (void)give_back(live, mode, &lock);
    }
    dlock_close(other);
    return held;
}

static void a_renewed_lock_outlives_its_lease_many_times(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        bool held = false;
        for (int i = 0; i < 5 && !held; i++) {
            held = outlives(live, mode, 300);
        }
        assert_true(held);
    }
    live_end(live);
}

static void a_lock_without_renewal_is_not_renewed(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(400, NULL);
        dlock_options plain = {.expiry_ms = 400, .on_lost = count_loss, .user = &losses};
        FRESH(dlock_lock, lock);
        FRESH(dlock_lock, beside);
        assert_yes(take(live, mode, &beside, "beside", &options), &beside);
        int64_t start = now_ms();
        assert_yes(take(live, mode, &lock, "k", &plain), &lock);
        /* The thread, or the loop, is at work for the other one, and tells of this one. */
        wait_for_loss(live, mode, &losses, start, 390, 400);
        assert_false(dlock_is_acquired(&lock));
        assert_gone(&live->server, "k");
        assert_false(give_back(live, mode, &lock));
        (void)give_back(live, mode, &beside);
    }
    live_end(live);
}

/* One third of the lease after the last time, and not before, and not twice. */
static void a_lease_is_renewed_once_in_a_third_of_it(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        dlock_options options = renewed(3000, NULL);
        FRESH(dlock_lock, lock);
        int64_t start = now_ms();
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        uint64_t before = stats_of(live->factory).renewed;
        int64_t pexpires = server_calls(&live->server, "pexpire");
        wait_for_renewals(live, mode, before, 2);
        /* A little sooner than a third, so that many are renewed together. */
        assert_took(start, 1600, 2000);
        int64_t spent = server_calls(&live->server, "pexpire") - pexpires;
        assert_in_range(spent, 2, (now_ms() - start) / 800);
        assert_true(server_integer(&live->server, "PTTL k") > 2000);
        assert_yes(give_back(live, mode, &lock), &lock);
    }
    live_end(live);
}

static void locks_with_different_leases_are_renewed_side_by_side(void **state)
{
    static const int64_t leases[] = {600, 1000, 2500, 30000, 0, 1500};
    enum { COUNT = sizeof leases / sizeof *leases };
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        static dlock_lock locks[COUNT];
        char keys[COUNT][16];
        memset(locks, 0, sizeof locks);
        for (int i = 0; i < COUNT; i++) {
            dlock_options options = renewed(leases[i], &losses);
            options.no_fence = i % 2 == 1;
            (void)snprintf(keys[i], sizeof keys[i], "k%d", i);
            assert_yes(take(live, mode, &locks[i], keys[i], &options), &locks[i]);
        }
        go_on(live, mode, 2000);
        for (int i = 0; i < COUNT; i++) {
            assert_held(&live->server, &locks[i], keys[i]);
            assert_yes(give_back(live, mode, &locks[i]), &locks[i]);
        }
        assert_int_equal(atomic_load(&losses.count), 0);
    }
    live_end(live);
}

struct later {
    pthread_t thread;
    dlock_lock *lock;
    bool answer;
};

static void *later_body(void *argument)
{
    struct later *later = (struct later *)argument;
    pause_ms(100);
    later->answer = dlock_release(later->lock);
    return NULL;
}

static void a_lock_that_was_handed_over_is_renewed_too(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(900, &losses);
        dlock_factory *other = open_factory(live->server.url, NULL);
        FRESH(dlock_lock, held);
        FRESH(dlock_lock, lock);
        struct later later = {.lock = &held};
        options.wait_ms = DLOCK_FOREVER;
        assert_yes(dlock_acquire(other, &held, "k", &once), &held);
        assert_int_equal(pthread_create(&later.thread, NULL, later_body, &later), 0);
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        assert_int_equal(pthread_join(later.thread, NULL), 0);
        assert_true(later.answer);
        go_on(live, mode, 1500);
        assert_held(&live->server, &lock, "k");
        assert_int_equal(atomic_load(&losses.count), 0);
        assert_yes(give_back(live, mode, &lock), &lock);
        dlock_close(other);
    }
    live_end(live);
}

/* A user may lengthen it as well: renewal never shortens it, and goes on afterwards. */
static void a_lock_that_its_user_extends_is_renewed_and_never_shortened(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(700, &losses);
        FRESH(dlock_lock, lock);
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        assert_yes(lengthen(live, mode, &lock, 60000), &lock);
        go_on(live, mode, 800);
        assert_true(server_integer(&live->server, "PTTL k") > 40000);
        assert_true(dlock_remaining_ms(&lock) > 40000);
        assert_yes(give_back(live, mode, &lock), &lock);
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        assert_yes(lengthen(live, mode, &lock, 1200), &lock);
        go_on(live, mode, 2200);
        assert_held(&live->server, &lock, "k");
        assert_yes(lengthen(live, mode, &lock, 0), &lock);
        assert_int_equal(atomic_load(&losses.count), 0);
        assert_yes(give_back(live, mode, &lock), &lock);
    }
    live_end(live);
}

/* Extends by hand meet renewals in flight, all the time. */
static void extends_and_renewals_in_flight_together_are_harmless(void **state)
{
    enum { LOCKS = 8 };
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        static dlock_lock locks[LOCKS];
        char keys[LOCKS][16];
        memset(locks, 0, sizeof locks);
        for (int i = 0; i < LOCKS; i++) {
            dlock_options options = renewed(1500, &losses);
            (void)snprintf(keys[i], sizeof keys[i], "k%d", i);
            assert_yes(take(live, mode, &locks[i], keys[i], &options), &locks[i]);
        }
        int64_t end = now_ms() + 1700;
        for (int i = 0; now_ms() < end; i++) {
            assert_yes(lengthen(live, mode, &locks[i % LOCKS], i % 3 == 0 ? 0 : 1501 + i % 7),
                       &locks[i % LOCKS]);
        }
        for (int i = 0; i < LOCKS; i++) {
            assert_held(&live->server, &locks[i], keys[i]);
            assert_true(dlock_remaining_ms(&locks[i]) <=
                        server_integer(&live->server, "PTTL %s", keys[i]) + 1);
            assert_yes(give_back(live, mode, &locks[i]), &locks[i]);
        }
        assert_int_equal(atomic_load(&losses.count), 0);
    }
    live_end(live);
}

/* ------------------------------------------------------------------------------- when it ends */

/* Another's key of the same name would show it: its life only gets shorter, and nothing asks. */
static void after_release_nothing_is_renewed(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        for (int i = 0; i < 2; i++) {
            FRESH(struct losses, losses);
            dlock_options options = renewed(600, &losses);
            FRESH(dlock_lock, lock);
            uint64_t before = stats_of(live->factory).renewed;
            assert_yes(take(live, mode, &lock, "k", &options), &lock);
            wait_for_renewals(live, mode, before, 1);
            if (i == 0) {
                assert_yes(give_back(live, mode, &lock), &lock);
            } else {
                assert_true(dlock_release_start(&lock, NULL, NULL));
                server_soon(&live->server, "EXISTS k", 0);
            }
            server_do(&live->server, "SET k theirs PX 60000");
            int64_t scripts = server_scripts(&live->server);
            int64_t set = now_ms();
            go_on(live, mode, 700);
            int64_t gone_by = now_ms() - set;
            assert_int_equal(server_scripts(&live->server), scripts);
            assert_true(server_integer(&live->server, "PTTL k") <= 60000 - gone_by + 5);
            assert_int_equal(atomic_load(&losses.count), 0);
            server_do(&live->server, "DEL k");
        }
    }
    live_end(live);
}

static void after_forget_nothing_is_renewed_and_nobody_told(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(600, &losses);
        FRESH(dlock_lock, lock);
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        go_on(live, mode, 50);
        dlock_forget(&lock);
        memset(&lock, 0xAA, sizeof lock);
        int64_t scripts = server_scripts(&live->server);
        go_on(live, mode, 900);
        assert_gone(&live->server, "k");
        assert_int_equal(server_scripts(&live->server), scripts);
        assert_int_equal(atomic_load(&losses.count), 0);
    }
    live_end(live);
}

static void an_acquire_that_failed_renews_nothing(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(300, &losses);
        FRESH(dlock_lock, lock);
        server_do(&live->server, "SET k theirs PX 60000");
        assert_no(take(live, mode, &lock, "k", &options), &lock, DLOCK_BUSY);
        options.wait_ms = 50;
        assert_no(take(live, mode, &lock, "k", &options), &lock, DLOCK_TIMEOUT);
        server_soon(&live->server, "EXISTS {k}:queue", 0);
        go_on(live, mode, 50);
        int64_t scripts = server_scripts(&live->server);
        go_on(live, mode, 500);
        assert_int_equal(server_scripts(&live->server), scripts);
        assert_int_equal(atomic_load(&losses.count), 0);
    }
    live_end(live);
}

static void renewal_ends_at_max_hold_and_others_get_in(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(600, &losses);
        dlock_options waits = {.wait_ms = 20000};
        dlock_factory *other = open_factory(live->server.url, NULL);
        FRESH(dlock_lock, lock);
        FRESH(dlock_lock, next);
        options.max_hold_ms = 1000;
        int64_t start = now_ms();
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        go_on(live, mode, 800);
        assert_true(dlock_is_acquired(&lock));
        /* Renewed for the last time between 800 and 1000 ms, it ends 600 ms later. */
        wait_for_loss(live, mode, &losses, start, 1000, 1600);
        assert_false(dlock_is_acquired(&lock));
        assert_yes(dlock_acquire(other, &next, "k", &waits), &next);
        assert_took(start, 1000, 1700);
        go_on(live, mode, 300);
        assert_int_equal(atomic_load(&losses.count), 1);
        assert_held(&live->server, &next, "k");
        assert_no(give_back(live, mode, &lock), &lock, DLOCK_LOST);
        dlock_close(other);
    }
    live_end(live);
}

static void max_hold_without_end_of_use_loses_nothing_early(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(30000, &losses);
        FRESH(dlock_lock, lock);
        options.max_hold_ms = 100;      /* shorter than the lease: the lease is not cut short */
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        go_on(live, mode, 400);
        assert_true(dlock_is_acquired(&lock));
        assert_int_equal(atomic_load(&losses.count), 0);
        assert_yes(give_back(live, mode, &lock), &lock);
    }
    live_end(live);
}

/* ------------------------------------------------------------------------------- how it is lost */

/* What an operator does, each to a lock of its own; within a renew period each is told, once. */
static void what_an_operator_takes_away_is_lost_within_a_renew_period(void **state)
{
    static const char *const commands[] = {
        "DEL k0",        "SET k1 theirs PX 60000", "PEXPIRE k2 0",
        "RENAME k3 new", "COPY list k4 REPLACE",   "FLUSHALL",
    };
    enum { COUNT = sizeof commands / sizeof *commands };
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        static struct losses losses[COUNT];
        static dlock_lock locks[COUNT];
        char key[16];
        memset(losses, 0, sizeof losses);
        memset(locks, 0, sizeof locks);
        for (int i = 0; i < COUNT; i++) {
            dlock_options options = renewed(3000, &losses[i]);
            (void)snprintf(key, sizeof key, "k%d", i);
            assert_yes(take(live, mode, &locks[i], key, &options), &locks[i]);
        }
        server_do(&live->server, "RPUSH list theirs");
        go_on(live, mode, 50);
        int64_t start = now_ms();
        for (int i = 0; i < COUNT - 1; i++) {
            server_do(&live->server, commands[i]);
        }
        for (int i = 0; i < COUNT - 1; i++) {
            wait_for_loss(live, mode, &losses[i], start, 0, 1000);
            assert_false(dlock_is_acquired(&locks[i]));
            assert_int_equal(dlock_remaining_ms(&locks[i]), 0);
            assert_code(&locks[i], DLOCK_LOST);
        }
        char text[64];
        server_text(&live->server, text, sizeof text, "GET k1");
        assert_string_equal(text, "theirs");
        assert_int_equal(server_integer(&live->server, "EXISTS k0 k2 k3"), 0);
        assert_int_equal(server_integer(&live->server, "LLEN k4"), 1);
        assert_true(dlock_is_acquired(&locks[COUNT - 1]));
        start = now_ms();
        server_do(&live->server, commands[COUNT - 1]);
        wait_for_loss(live, mode, &losses[COUNT - 1], start, 0, 1000);
        go_on(live, mode, 1100);
        for (int i = 0; i < COUNT; i++) {
            assert_int_equal(atomic_load(&losses[i].count), 1);
            assert_no(give_back(live, mode, &locks[i]), &locks[i], DLOCK_LOST);
            assert_int_equal(atomic_load(&losses[i].count), 1);
        }
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 0);
    }
    live_end(live);
}

/* Nobody answers any more. Until validity ends the lock is ours; then it is lost, and told. */
static void a_server_that_stops_loses_the_lock_when_validity_ends(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        for (int patient = 0; patient < 2; patient++) {
            FRESH(struct losses, losses);
            dlock_options options = renewed(1000, &losses);
            dlock_config config = {.command_timeout_ms = patient ? 5000 : 100};
            FRESH(dlock_lock, lock);
            live_reopen(live, live->server.url, &config);
            assert_yes(take(live, mode, &lock, "k", &options), &lock);
            server_pause(&live->server);
            go_on(live, mode, 30);
            int64_t start = now_ms();
            int64_t left = dlock_remaining_ms(&lock);
            int64_t told = 0;
            assert_true(left > 0);
            bool acquired = true;
            while (acquired) {      /* as long as it is ours, nobody was told before */
                told = atomic_load(&losses.count);
                acquired = dlock_is_acquired(&lock);
                assert_true(!acquired || told == 0);
                go_on(live, mode, 1);
            }
            assert_took(start, left, left);
            wait_for_loss(live, mode, &losses, start, left, left);
            server_continue(&live->server);
            go_on(live, mode, 400);
            assert_int_equal(atomic_load(&losses.count), 1);
            assert_false(dlock_is_acquired(&lock));
            assert_false(give_back(live, mode, &lock));
            assert_int_equal(atomic_load(&losses.count), 1);
        }
    }
    live_end(live);
}

/* One reply in three gets lost, by silence or by a hang-up: the next one comes in time. */
static void a_renewal_whose_reply_is_lost_is_tried_again(void **state)
{
    static const enum proxy_fault faults[] = {PROXY_SWALLOW, PROXY_HANG_UP};
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
            FRESH(struct losses, losses);
            dlock_options options = renewed(1500, &losses);
            FRESH(dlock_lock, lock);
            through_proxy(live, 200);
            assert_yes(take(live, mode, &lock, "k", &options), &lock);
            uint64_t before = stats_of(live->factory).renewed;
            proxy_set(&live->proxy,
                      &(struct proxy_plan){.fault = faults[i], .times = 1, .word = "EVALSHA"});
            wait_for_renewals(live, mode, before, 3);
            assert_int_equal(proxy_fired(&live->proxy), 1);
            assert_held(&live->server, &lock, "k");
            assert_int_equal(atomic_load(&losses.count), 0);
            assert_yes(give_back(live, mode, &lock), &lock);
        }
    }
    live_end(live);
}

/* No reply at all: it is tried again and again, until the old validity ends, and not beyond. */
static void renewals_are_tried_until_the_old_validity_ends(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(1200, &losses);
        FRESH(dlock_lock, lock);
        through_proxy(live, 150);
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_SWALLOW});
        int64_t start = now_ms();
        int64_t left = dlock_remaining_ms(&lock);
        wait_for_loss(live, mode, &losses, start, left, left);
        assert_true(proxy_fired(&live->proxy) >= 2);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
        int64_t lease = server_integer(&live->server, "PTTL k");
        go_on(live, mode, 300);
        assert_true(server_integer(&live->server, "PTTL k") <= (lease > 300 ? lease - 290 : 10));
        assert_int_equal(atomic_load(&losses.count), 1);
        (void)give_back(live, mode, &lock);
    }
    live_end(live);
}

static void a_lock_outlives_its_connections(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(1500, &losses);
        FRESH(dlock_lock, lock);
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        int64_t connections = server_info(&live->server, "stats", "total_connections_received");
        uint64_t before = stats_of(live->factory).renewed;
        int64_t end = now_ms() + 2500;
        while (now_ms() < end) {
            server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
            server_do(&live->server, "CLIENT KILL TYPE pubsub");
            go_on(live, mode, 170);
        }
        assert_held(&live->server, &lock, "k");
        assert_true(stats_of(live->factory).renewed >= before + 3);
        assert_true(server_info(&live->server, "stats", "total_connections_received") >=
                    connections + 3);
        assert_int_equal(atomic_load(&losses.count), 0);
        assert_yes(give_back(live, mode, &lock), &lock);
    }
    live_end(live);
}

/* With its data: renewed there. Without: lost, soon, and not made again. */
static void a_server_that_restarts_renews_what_it_kept_and_loses_what_it_lost(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        for (int kept = 1; kept >= 0; kept--) {
            FRESH(struct losses, losses);
            dlock_options options = renewed(3600, &losses);
            FRESH(dlock_lock, lock);
            assert_yes(take(live, mode, &lock, "k", &options), &lock);
            server_restart(&live->server, kept == 1, NULL);
            uint64_t before = stats_of(live->factory).renewed;
            int64_t start = now_ms();
            if (kept == 1) {
                wait_for_renewals(live, mode, before, 2);
                assert_held(&live->server, &lock, "k");
                assert_int_equal(atomic_load(&losses.count), 0);
                assert_yes(give_back(live, mode, &lock), &lock);
            } else {
                wait_for_loss(live, mode, &losses, start, 0, 1300);
                assert_gone(&live->server, "k");
                assert_no(give_back(live, mode, &lock), &lock, DLOCK_LOST);
            }
        }
    }
    live_end(live);
}

/* Scripts that were forgotten, a server that is full or cannot save, do not cost a lock. */
static void renewal_survives_a_flushed_cache_and_a_full_server(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        dlock_options options = renewed(1500, &losses);
        FRESH(dlock_lock, lock);
        assert_yes(take(live, mode, &lock, "k", &options), &lock);
        server_do(&live->server, "SCRIPT FLUSH");
        server_do(&live->server, "CONFIG SET maxmemory 1");
        uint64_t before = stats_of(live->factory).renewed;
        wait_for_renewals(live, mode, before, 3);
        server_do(&live->server, "CONFIG SET maxmemory 0");
        assert_held(&live->server, &lock, "k");
        assert_int_equal(atomic_load(&losses.count), 0);
        assert_yes(give_back(live, mode, &lock), &lock);
    }
    live_end(live);
}

/* ---------------------------------------------------------------------------- inside of on_lost */

struct rescue {
    struct live *live;
    int what;                   /* see rescue_it */
    dlock_lock other;
    struct told told;
    atomic_int count;
    atomic_int done;
    bool answer;
    bool released;
    int code;
};

/* Whatever a program may want to do about it. */
static void rescue_it(dlock_lock *lock, void *user)
{
    struct rescue *rescue = (struct rescue *)user;
    dlock_options again = {.auto_renew = true, .expiry_ms = 900};
    atomic_fetch_add(&rescue->count, 1);
    switch (rescue->what) {
    case 0:
        rescue->released = dlock_release(lock);
        rescue->code = dlock_why(lock)->code;
        rescue->answer = dlock_acquire(rescue->live->factory, lock, "again", &again);
        break;
    case 1:
        rescue->answer = dlock_acquire(rescue->live->factory, &rescue->other, "other", &again);
        break;
    case 2:
        dlock_forget(lock);
        rescue->answer = !dlock_extend(&rescue->other, 0);
        break;
    case 3:
        rescue->answer = dlock_acquire_start(rescue->live->factory, &rescue->other, "other", &again,
                                             tell, &rescue->told);
        break;
    default:
        (void)dlock_release_start(lock, NULL, NULL);
        dlock_process(rescue->live->factory);
        rescue->answer = true;
        break;
    }
    atomic_fetch_add(&rescue->done, 1);
}

static void on_lost_may_call_anything(void **state)
{
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        for (int what = 0; what < 5; what++) {
            FRESH(struct rescue, rescue);
            rescue.live = live;
            rescue.what = what;
            dlock_options options = {
                .expiry_ms = 600, .auto_renew = true, .on_lost = rescue_it, .user = &rescue};
            FRESH(dlock_lock, lock);
            assert_yes(take(live, mode, &lock, "k", &options), &lock);
            server_do(&live->server, "DEL k");
            int64_t start = now_ms();
            if (mode == BY_LOOP) {
                (void)loop_until(live->factory, &rescue.done, 1);
            } else {
                await(&rescue.done, 1);
            }
            assert_took(start, 0, 400);
            assert_true(rescue.answer);
            if (what == 0) {
                assert_false(rescue.released);
                assert_int_equal(rescue.code, DLOCK_LOST);
                go_on(live, mode, 1200);
                assert_held(&live->server, &lock, "again");
                assert_yes(give_back(live, mode, &lock), &lock);
            } else if (what == 1) {
                go_on(live, mode, 1200);
                assert_held(&live->server, &rescue.other, "other");
                assert_yes(give_back(live, mode, &rescue.other), &rescue.other);
            } else if (what == 3) {
                (void)loop_until(live->factory, &rescue.told.count, 1);
                assert_yes(rescue.told.answer, &rescue.other);
                assert_int_equal(atomic_load(&rescue.told.astray), 0);
                assert_yes(give_back(live, mode, &rescue.other), &rescue.other);
            } else {
                go_on(live, mode, 300);
            }
            assert_int_equal(atomic_load(&rescue.count), 1);
            (void)give_back(live, mode, &lock);
        }
    }
    live_end(live);
}

/* ------------------------------------------------------------------------------------ thousands */

static dlock_lock thousand[1000];

static void a_thousand_renewed_locks_survive_a_server_that_stalls_for_a_second(void **state)
{
    enum { COUNT = 1000 };
    struct live *live = live_of(state);
    for (EITHER(mode)) {
        FRESH(struct losses, losses);
        FRESH(struct told, told);
        dlock_options options = renewed(6000, &losses);
        char key[16];
        memset(thousand, 0, sizeof thousand);
        int64_t start = now_ms();
        for (int i = 0; i < COUNT; i++) {
            (void)snprintf(key, sizeof key, "k%d", i);
            if (mode == BY_THREAD) {
                assert_yes(dlock_acquire(live->factory, &thousand[i], key, &options), &thousand[i]);
            } else {
                assert_true(
                    dlock_acquire_start(live->factory, &thousand[i], key, &options, tell, &told));
            }
        }
        if (mode == BY_LOOP) {
            (void)loop_until(live->factory, &told.count, COUNT);
        }
        uint64_t before = stats_of(live->factory).renewed;
        go_on(live, mode, start + 1800 - now_ms());
        server_pause(&live->server);
        go_on(live, mode, 1000);
        server_continue(&live->server);
        wait_for_renewals(live, mode, before, COUNT);
        assert_int_equal(atomic_load(&losses.count), 0);
        for (int i = 0; i < COUNT; i++) {
            assert_true(dlock_is_acquired(&thousand[i]));
            assert_true(dlock_remaining_ms(&thousand[i]) > 6000 / 3);
        }
        assert_int_equal(stats_of(live->factory).held, COUNT);
        loop_close(live->factory);
        live->factory = NULL;
        assert_int_equal(server_integer(&live->server, "DBSIZE"), COUNT);
        live_reopen(live, live->server.url, NULL);
    }
    live_end(live);
}

/* --------------------------------------------------------------- released while being renewed */

/* All renewals are due, go out in one turn, and the releases right behind them: no reply can have
 * come in between. Ten thousand times. */
static void a_release_behind_a_renewal_in_flight_ends_renewal(void **state)
{
    enum { COUNT = 500, TIMES = 20 };
    struct live *live = live_of(state);
    FRESH(struct losses, losses);
    dlock_options options = renewed(3000, &losses);
    char key[16];
    int in_flight = 0;
    for (int times = 0; times < (SLOWER > 1 ? 2 : TIMES); times++) {
        FRESH(struct told, acquired);
        FRESH(struct told, released);
        memset(thousand, 0, sizeof thousand);
        options.expiry_ms = SLOWER > 1 ? 3000 : 900;
        int64_t start = now_ms();
        for (int i = 0; i < COUNT; i++) {
            (void)snprintf(key, sizeof key, "k%d", i);
            assert_true(
                dlock_acquire_start(live->factory, &thousand[i], key, &options, tell, &acquired));
        }
        (void)loop_until(live->factory, &acquired.count, COUNT);
        pause_ms(start + options.expiry_ms / 3 + 20 - now_ms());
        uint64_t renewed_before = stats_of(live->factory).renewed;
        uint64_t commands = stats_of(live->factory).commands;
        loop_process(live->factory);
        in_flight += (int)(stats_of(live->factory).commands - commands -
                           (stats_of(live->factory).renewed - renewed_before));
        for (int i = 0; i < COUNT; i++) {
            assert_true(dlock_release_start(&thousand[i], tell, &released));
        }
        (void)loop_until(live->factory, &released.count, COUNT);
        assert_int_equal(atomic_load(&released.astray), 0);
        int lost = 0;
        for (int i = 0; i < COUNT; i++) {
            lost += dlock_why(&thousand[i])->code == DLOCK_OK ? 0 : 1;
            assert_false(dlock_is_acquired(&thousand[i]));
        }
        assert_true(lost < COUNT / 2);      /* a machine that stood still may lose some */
    }
    assert_true(in_flight > 0);
    for (int i = 0; i < COUNT; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        server_do(&live->server, "SET %s theirs NX PX 60000", key);
    }
    uint64_t renewals = stats_of(live->factory).renewed;
    int64_t scripts = server_scripts(&live->server);
    (void)loop_for(live->factory, 1200);
    assert_int_equal(server_scripts(&live->server), scripts);
    assert_true(stats_of(live->factory).renewed == renewals);
    live_end(live);
}

struct hasty {
    pthread_t thread;
    dlock_factory *factory;
    int number;
    int rounds;
    struct losses losses;
    int wrong;
    dlock_lock lock;
};

/* Where the machine stood still, an answer came after such a short lease had ended. */
static bool hasty_may_be(int code, int expected)
{
    return code == expected || code == DLOCK_UNREACHABLE || code == DLOCK_TIMEOUT;
}

/* Holds it for about as long as it takes until the first renewal, and gives it back just then. */
static void *hasty_body(void *argument)
{
    struct hasty *hasty = (struct hasty *)argument;
    dlock_options options = renewed(60, &hasty->losses);
    dlock_lock *lock = &hasty->lock;
    char key[16];
    (void)snprintf(key, sizeof key, "h%d", hasty->number);
    for (int i = 0; i < hasty->rounds; i++) {
        if (!dlock_acquire(hasty->factory, lock, key, &options)) {
            hasty->wrong += hasty_may_be(dlock_why(lock)->code, DLOCK_BUSY) ? 0 : 1;
            continue;
        }
        struct timespec rest = {0, (19000 + (i * 37) % 2000) * 1000};
        (void)nanosleep(&rest, NULL);
        if (!dlock_release(lock)) {
            hasty->wrong += hasty_may_be(dlock_why(lock)->code, DLOCK_LOST) ? 0 : 1;
        }
        hasty->wrong += dlock_is_acquired(lock) ? 1 : 0;
    }
    return NULL;
}

static void threads_release_while_the_library_renews(void **state)
{
    enum { THREADS = 16, ROUNDS = 100 };
    struct live *live = live_of(state);
    static struct hasty hasties[THREADS];
    memset(hasties, 0, sizeof hasties);
    for (int i = 0; i < THREADS; i++) {
        hasties[i].factory = live->factory;
        hasties[i].number = i;
        hasties[i].rounds = ROUNDS;
        assert_int_equal(pthread_create(&hasties[i].thread, NULL, hasty_body, &hasties[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(hasties[i].thread, NULL), 0);
        assert_int_equal(hasties[i].wrong, 0);
        assert_int_equal(atomic_load(&hasties[i].losses.wrong), 0);
    }
    assert_true(stats_of(live->factory).renewed > 10);
    pause_ms(100);
    uint64_t renewals = stats_of(live->factory).renewed;
    int64_t scripts = server_scripts(&live->server);
    pause_ms(300);
    assert_true(stats_of(live->factory).renewed == renewals);
    assert_int_equal(server_scripts(&live->server), scripts);
    assert_int_equal(stats_of(live->factory).held, 0);
    live_end(live);
    assert_int_equal(server_integer(&live->server, "DBSIZE"), THREADS);
}

/* --------------------------------------------------------------------------- whose thread it is */

/* The threads of this process, by their numbers. */
static int list_threads(long *list, int room)
{
    int count = 0;
    DIR *stream = opendir("/proc/self/task");
    struct dirent *entry;
    assert_non_null(stream);
    while ((entry = readdir(stream)) != NULL) {
        long number = strtol(entry->d_name, NULL, 10);
        if (number > 0 && count < room) {
            list[count++] = number;
        }
    }
    (void)closedir(stream);
    return count;
}

static uint64_t blocked_signals(long thread)
{
    char path[64];
    char line[256];
    uint64_t blocked = 0;
    (void)snprintf(path, sizeof path, "/proc/self/task/%ld/status", thread);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        (void)sscanf(line, "SigBlk: %" SCNx64, &blocked);
    }
    (void)fclose(file);
    return blocked;
}

static void *nothing_body(void *argument)
{
    return argument;
}

/* A thread of somebody else's that began with the first of ours is not counted. */
static int settled_threads(void)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, nothing_body, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pause_ms(20);
    return threads();
}

static void wait_for_threads(int count)
{
    int64_t end = now_ms() + 5000;
    while (threads() != count && now_ms() < end) {
        pause_ms(1);
    }
    assert_int_equal(threads(), count);
}

static void a_loop_starts_no_thread_whatever_it_does(void **state)
{
    struct live *live = live_of(state);
    FRESH(struct losses, losses);
    dlock_options options = renewed(300, &losses);
    FRESH(dlock_lock, lock);
    int before = settled_threads();
    options.wait_ms = DLOCK_FOREVER;
    assert_yes(loop_acquire(live->factory, &lock, "k", &options), &lock);
    assert_int_equal(threads(), before);
    (void)loop_for(live->factory, 250);
    assert_int_equal(threads(), before);
    (void)loop_extend(live->factory, &lock, 0);
    (void)loop_release(live->factory, &lock);
    assert_int_equal(threads(), before);
    live_end(live);
    assert_int_equal(threads(), before);
}

static void a_call_without_renewal_starts_no_thread(void **state)
{
    struct live *live = live_of(state);
    dlock_options waits = {.wait_ms = 100};
    FRESH(dlock_lock, lock);
    FRESH(dlock_lock, other);
    int before = settled_threads();
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_no(dlock_acquire(live->factory, &other, "k", &waits), &other, DLOCK_TIMEOUT);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(threads(), before);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

/* One for a factory, with every signal blocked, gone after close. */
static void a_call_with_renewal_starts_one_thread_that_takes_no_signal(void **state)
{
    enum { COUNT = 10, ROOM = 64 };
    struct live *live = live_of(state);
    dlock_options options = renewed(30000, NULL);
    static dlock_lock locks[COUNT];
    long old[ROOM];
    long now[ROOM];
    char key[16];
    memset(locks, 0, sizeof locks);
    int before = settled_threads();
    int olds = list_threads(old, ROOM);
    for (int i = 0; i < COUNT; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_yes(dlock_acquire(live->factory, &locks[i], key, &options), &locks[i]);
        assert_int_equal(threads(), before + 1);
    }
    int nows = list_threads(now, ROOM);
    for (int i = 0; i < nows; i++) {
        bool known = false;
        for (int j = 0; j < olds; j++) {
            known = known || now[i] == old[j];
        }
        uint64_t blocked = known ? UINT64_MAX : blocked_signals(now[i]);
        for (int number = 1; number <= 64; number++) {
            bool free = number == SIGKILL || number == SIGSTOP || number == 32 || number == 33;
            assert_true(free || (blocked >> (number - 1) & 1) != 0);
        }
    }
    sigset_t mine;
    assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &mine), 0);
    assert_false(sigismember(&mine, SIGTERM));
    for (int i = 0; i < COUNT; i++) {
        assert_yes(dlock_release(&locks[i]), &locks[i]);
    }
    live_end(live);
    wait_for_threads(before);
}

static void each_factory_has_a_thread_of_its_own_and_close_ends_it(void **state)
{
    struct live *live = live_of(state);
    FRESH(struct losses, losses);
    dlock_options options = renewed(900, &losses);
    FRESH(dlock_lock, one);
    FRESH(dlock_lock, two);
    int before = settled_threads();
    dlock_factory *other = open_factory(live->server.url, NULL);
    assert_yes(dlock_acquire(live->factory, &one, "one", &options), &one);
    assert_yes(dlock_acquire(other, &two, "two", &options), &two);
    assert_int_equal(threads(), before + 2);
    int64_t start = now_ms();
    dlock_close(other);
    assert_took(start, 0, 200);
    wait_for_threads(before + 1);
    assert_gone(&live->server, "two");
    assert_false(dlock_is_acquired(&two));
    pause_ms(1200);
    assert_held(&live->server, &one, "one");
    server_pause(&live->server);        /* it is asking when we close, and gets no answer */
    pause_ms(350);
    start = now_ms();
    live_end(live);
    assert_took(start, 0, 1200);
    wait_for_threads(before);
    server_continue(&live->server);
    server_soon(&live->server, "EXISTS one", 0);
    int64_t scripts = server_scripts(&live->server);
    pause_ms(400);
    assert_int_equal(server_scripts(&live->server), scripts);
    assert_int_equal(atomic_load(&losses.count), 0);
    for (int i = 0; i < 50; i++) {      /* opened, used and closed in a hurry */
        live->factory = open_factory(live->server.url, NULL);
        FRESH(dlock_lock, lock);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &options), &lock);
        live_end(live);
        assert_gone(&live->server, "k");
    }
    wait_for_threads(before);
}

/* It sleeps while there is nothing to do, and leaves the lead to whoever calls. */
static void the_thread_costs_nothing_and_stands_in_nobodys_way(void **state)
{
    struct live *live = live_of(state);
    dlock_options options = renewed(30000, NULL);
    FRESH(dlock_lock, lock);
    FRESH(dlock_lock, other);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &options), &lock);
    pause_ms(50);
    int64_t heard = server_heard(&live->server);
    int64_t busy = cpu_ms();
    pause_ms(1500);
    assert_true(cpu_ms() - busy < 100);
    assert_int_equal(server_heard(&live->server), heard);
    int64_t start = now_ms();
    for (int i = 0; i < 1000 / SLOWER; i++) {
        assert_yes(dlock_acquire(live->factory, &other, "x", &once), &other);
        assert_yes(dlock_release(&other), &other);
    }
    assert_took(start, 0, 2000);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

/* ------------------------------------------------------------------------------- stop, and fork */

struct shared {
    char url[SERVER_URL_MAX];
    atomic_int ready;
    atomic_int stopping;
    atomic_int answer;
    atomic_int go;
};

static int sleepy_holder(void *argument)
{
    struct shared *shared = (struct shared *)argument;
    FRESH(struct losses, losses);
    dlock_options options = renewed(600, &losses);
    FRESH(dlock_lock, lock);
    dlock_factory *factory = dlock_open(shared->url, NULL, NULL);
    child_check(factory != NULL && dlock_acquire(factory, &lock, "k", &options));
    atomic_store(&shared->ready, 1);
    int64_t last = now_ms();
    for (bool woken = false; !woken;) {
        int64_t now = now_ms();
        bool acquired = dlock_is_acquired(&lock);
        if (atomic_load(&shared->stopping) != 0 && now - last > 650) {
            atomic_store(&shared->answer, acquired ? 1 : 0);    /* the first question afterwards */
            woken = true;
        }
        last = now;
    }
    child_check(dlock_remaining_ms(&lock) == 0);
    for (int i = 0; i < 5000 && atomic_load(&losses.count) == 0; i++) {
        pause_ms(1);
    }
    pause_ms(300);
    child_check(atomic_load(&losses.count) == 1);
    child_check(atomic_load(&losses.wrong) == 0);
    child_check(!dlock_extend(&lock, 60000) && dlock_why(&lock)->code == DLOCK_LOST);
    child_check(!dlock_release(&lock) && dlock_why(&lock)->code == DLOCK_LOST);
    child_check(atomic_load(&losses.count) == 1);
    dlock_close(factory);
    return 0;
}

static void a_process_stopped_beyond_its_lease_knows_at_once_and_is_told_once(void **state)
{
    struct live *live = live_of(state);
    for (int i = 0; i < 2; i++) {
        struct shared *shared = (struct shared *)shared_memory(sizeof *shared);
        FRESH(dlock_lock, next);
        dlock_options waits = {.wait_ms = 10000};
        (void)snprintf(shared->url, sizeof shared->url, "%s", live->server.url);
        atomic_store(&shared->answer, -1);
        pid_t pid = child_start(sleepy_holder, shared);
        await(&shared->ready, 1);
        pause_ms(300);
        assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
        atomic_store(&shared->stopping, 1);
        assert_int_equal(kill(pid, SIGSTOP), 0);
        pause_ms(900);
        if (i == 0) {       /* taken by another; or free, and then it stays free */
            assert_yes(dlock_acquire(live->factory, &next, "k", &waits), &next);
        }
        assert_int_equal(kill(pid, SIGCONT), 0);
        assert_int_equal(child_wait(pid), 0);
        assert_int_equal(atomic_load(&shared->answer), 0);
        if (i == 0) {
            assert_held(&live->server, &next, "k");
            assert_yes(dlock_release(&next), &next);
        }
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

struct inherited {
    dlock_factory *factory;
    dlock_lock *held;
    struct losses *losses;
    const char *url;
};

static int heir(void *argument)
{
    struct inherited *given = (struct inherited *)argument;
    dlock_options options = renewed(30000, given->losses);
    FRESH(dlock_lock, unused);
    child_check(threads() == 1);
    child_check(!dlock_is_acquired(given->held));
    child_check(!dlock_extend(given->held, 60000));
    child_check(dlock_why(given->held)->code == DLOCK_ARGUMENT);
    child_check(!dlock_release(given->held));
    child_check(!dlock_acquire(given->factory, &unused, "child", &options));
    child_check(dlock_why(&unused)->code == DLOCK_ARGUMENT);
    child_check(!dlock_acquire_start(given->factory, &unused, "child", &options, tell, NULL));
    child_check(threads() == 1);
    pause_ms(5);
    int64_t start = now_ms();
    dlock_close(given->factory);
    child_check(now_ms() - start < 2000);
    child_check(atomic_load(&given->losses->count) == 0);
    /* With a factory of its own it may use the handle again, but for a thread: that one's locks
     * live with a loop. */
    dlock_factory *own = dlock_open(given->url, NULL, NULL);
    child_check(own != NULL);
    dlock_forget(given->held);
    child_check(loop_acquire(own, given->held, "own", &options));
    child_check(loop_for(own, 1) >= 0);
    child_check(loop_release(own, given->held));
    dlock_close(own);
    return 0;
}

/* Forked at any moment, also while the thread is in the middle of something. */
static void a_fork_leaves_renewal_to_the_parent(void **state)
{
    enum { LOCKS = 40 };
    struct live *live = live_of(state);
    FRESH(struct losses, losses);
    static dlock_lock locks[LOCKS];
    char key[16];
    memset(locks, 0, sizeof locks);
    for (int i = 0; i < LOCKS; i++) {
        dlock_options options = renewed(3000 + i, &losses);
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_yes(dlock_acquire(live->factory, &locks[i], key, &options), &locks[i]);
        pause_ms(5);
    }
    struct inherited given = {live->factory, &locks[0], &losses, live->server.url};
    int64_t end = now_ms() + 2500;
    int children = 0;
    for (; children < 3 || now_ms() < end; children++) {
        assert_int_equal(child_wait(child_start(heir, &given)), 0);
    }
    assert_int_equal(atomic_load(&losses.count), 0);
    for (int i = 0; i < LOCKS; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_held(&live->server, &locks[i], key);
        assert_yes(dlock_release(&locks[i]), &locks[i]);
    }
    assert_int_equal(server_integer(&live->server, "EXISTS child"), 0);
    assert_true(stats_of(live->factory).renewed >= LOCKS);
    assert_true(server_info(&live->server, "stats", "total_connections_received") <=
                5 + 2 * children);
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE_CLOSED(a_renewed_lock_outlives_its_lease_many_times),
        LIVE_CLOSED(a_lock_without_renewal_is_not_renewed),
        LIVE_CLOSED(a_lease_is_renewed_once_in_a_third_of_it),
        LIVE_CLOSED(locks_with_different_leases_are_renewed_side_by_side),
        LIVE_CLOSED(a_lock_that_was_handed_over_is_renewed_too),
        LIVE_CLOSED(a_lock_that_its_user_extends_is_renewed_and_never_shortened),
        LIVE_CLOSED(extends_and_renewals_in_flight_together_are_harmless),
        LIVE_CLOSED(after_release_nothing_is_renewed),
        LIVE_CLOSED(after_forget_nothing_is_renewed_and_nobody_told),
        LIVE_CLOSED(an_acquire_that_failed_renews_nothing),
        LIVE_CLOSED(renewal_ends_at_max_hold_and_others_get_in),
        LIVE_CLOSED(max_hold_without_end_of_use_loses_nothing_early),
        LIVE_CLOSED(what_an_operator_takes_away_is_lost_within_a_renew_period),
        LIVE_CLOSED(a_server_that_stops_loses_the_lock_when_validity_ends),
        LIVE_CLOSED(a_renewal_whose_reply_is_lost_is_tried_again),
        LIVE_CLOSED(renewals_are_tried_until_the_old_validity_ends),
        LIVE_CLOSED(a_lock_outlives_its_connections),
        LIVE_CLOSED(a_server_that_restarts_renews_what_it_kept_and_loses_what_it_lost),
        LIVE_CLOSED(renewal_survives_a_flushed_cache_and_a_full_server),
        LIVE_CLOSED(on_lost_may_call_anything),
        LIVE_CLOSED(a_thousand_renewed_locks_survive_a_server_that_stalls_for_a_second),
        LIVE_CLOSED(a_release_behind_a_renewal_in_flight_ends_renewal),
        LIVE_CLOSED(threads_release_while_the_library_renews),
        LIVE_CLOSED(a_loop_starts_no_thread_whatever_it_does),
        LIVE_CLOSED(a_call_without_renewal_starts_no_thread),
        LIVE_CLOSED(a_call_with_renewal_starts_one_thread_that_takes_no_signal),
        LIVE_CLOSED(each_factory_has_a_thread_of_its_own_and_close_ends_it),
        LIVE_CLOSED(the_thread_costs_nothing_and_stands_in_nobodys_way),
        LIVE_CLOSED(a_process_stopped_beyond_its_lease_knows_at_once_and_is_told_once),
        LIVE_CLOSED(a_fork_leaves_renewal_to_the_parent),
    };
    return run_side_by_side(tests, sizeof tests / sizeof *tests, 4);
}
