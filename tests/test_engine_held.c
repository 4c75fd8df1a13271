/* Whole calls on a scripted server: a lock that is held, extended, released, lost, forgotten;
 * time. */
#include "tests/scripted.h"

static const dlock_options no_wait = {.expiry_ms = 10000};

static void hold(dlock_factory *factory, dlock_lock *lock)
{
    memset(lock, 0, sizeof *lock);
    assert_yes(dlock_acquire(factory, lock, "k", &no_wait), lock);
}

/* "... lapses by itself in N ms ...": the number. */
static int64_t promised_lapse(const dlock_lock *lock)
{
    const char *at = strstr(dlock_why(lock)->text, "lapses by itself in ");
    const char *end;
    int64_t span;
    assert_non_null(at);
    span = strtoll(at + 20, (char **)(uintptr_t)&end, 10);
    assert_memory_equal(end, " ms", 3);
    return span;
}

/* --------------------------------------------------------------------------------------- time */

static void a_process_that_slept_finds_out_without_asking(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    int calls;
    (void)state;
    hold(factory, &lock);
    calls = world->calls;
    world_sleep(world, 9897);
    assert_true(dlock_is_acquired(&lock));
    assert_int_equal(dlock_remaining_ms(&lock), 1);
    world_sleep(world, 1);
    assert_false(dlock_is_acquired(&lock));
    assert_int_equal(dlock_remaining_ms(&lock), 0);
    world_sleep(world, 5000);
    assert_false(dlock_is_acquired(&lock));
    assert_int_equal(world->calls, calls);
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    world_close_clean(world, factory);
}

static void a_clock_that_says_never_ends_every_lease(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    (void)state;
    hold(factory, &lock);
    world->now = DLOCKI_NEVER;
    assert_false(dlock_is_acquired(&lock));
    assert_int_equal(dlock_remaining_ms(&lock), 0);
    world->now = WORLD_START;
    world_close_clean(world, factory);
}

static void a_server_clock_set_forward_is_lost_at_the_next_contact(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    uint64_t fence;
    (void)state;
    hold(factory, &lock);
    fence = dlock_fence(&lock);
    world->jump_ms = 20000;
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
    assert_false(dlock_is_acquired(&lock));
    hold(factory, &lock);
    assert_true(dlock_fence(&lock) > fence);
    world_close_clean(world, factory);
}

static void an_expiry_that_promises_nothing_is_an_argument_and_sends_nothing(void **state)
{
    static const int64_t expiries[] = {-1, INT64_MIN, 1, 2, DLOCK_EXPIRY_MAX_MS + 1, INT64_MAX};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    int sends;
    (void)state;
    for (size_t i = 0; i < sizeof expiries / sizeof *expiries; i++) {
        dlock_options options = {.expiry_ms = expiries[i]};
        assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_ARGUMENT);
    }
    assert_int_equal(world->connects, 0);
    hold(factory, &lock);
    sends = world->sends;
    for (size_t i = 0; i < sizeof expiries / sizeof *expiries; i++) {
        assert_no(dlock_extend(&lock, expiries[i]), &lock, DLOCK_ARGUMENT);
        assert_true(dlock_is_acquired(&lock));
    }
    assert_int_equal(world->sends, sends);
    world_close_clean(world, factory);
}

static void extreme_numbers_saturate_and_a_late_clock_is_no_matter(void **state)
{
    static const dlock_options extreme = {.expiry_ms = DLOCK_EXPIRY_MAX_MS,
                                          .retry_count = INT32_MAX,
                                          .retry_delay_ms = INT32_MAX,
                                          .retry_jitter_ms = INT32_MAX,
                                          .wait_ms = INT64_MAX};
    static const dlock_options negative[] = {{.retry_count = -2},
                                             {.retry_delay_ms = -1},
                                             {.retry_jitter_ms = -1},
                                             {.wait_ms = -2},
                                             {.wait_ms = INT64_MIN}};
    static const dlock_config patient = {.connect_timeout_ms = INT32_MAX,
                                         .command_timeout_ms = INT32_MAX};
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->now = INT64_C(1) << 62;
    factory = world_open(world, &patient);
    world_hold(world, "k", 500);
    assert_yes(dlock_acquire(factory, &lock, "k", &extreme), &lock);
    assert_int_equal(world->now - (INT64_C(1) << 62), 501);
    assert_int_equal(dlock_remaining_ms(&lock),
                     DLOCK_EXPIRY_MAX_MS - DLOCK_EXPIRY_MAX_MS / 100 - 2);
    assert_yes(dlock_release(&lock), &lock);
    for (size_t i = 0; i < sizeof negative / sizeof *negative; i++) {
        assert_no(dlock_acquire(factory, &lock, "k", &negative[i]), &lock, DLOCK_ARGUMENT);
    }
    world_close_clean(world, factory);
}

/* ---------------------------------------------------------------------------- release, extend */

static void a_second_release_is_lost_without_a_byte(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    int sends;
    (void)state;
    hold(factory, &lock);
    assert_yes(dlock_release(&lock), &lock);
    sends = world->sends;
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
    assert_int_equal(world->sends, sends);
    world_close_clean(world, factory);
}

static void what_somebody_else_holds_by_now_is_not_touched(void **state)
{
    static const int64_t lease = 10000;
    (void)state;
    for (int verb = 0; verb < 2; verb++) {
        for (int taken = 0; taken < 2; taken++) {
            struct world *world = world_begin();
            dlock_factory *factory = world_open(world, NULL);
            dlock_lock lock;
            int served;
            hold(factory, &lock);
            world_sleep(world, lease + 1);
            if (taken) {
                world_hold(world, "k", 7000);
            }
            served = world->served;
            assert_no(verb == 0 ? dlock_release(&lock) : dlock_extend(&lock, 60000), &lock,
                      DLOCK_LOST);
            assert_int_equal(world->served - served, 1);
            assert_string_equal(world_holder(world, "k"), taken ? "somebody else" : "");
            assert_int_equal(world_lease(world, "k"), taken ? 7000 : 0);
            world_delete(world, "k");
            world_close_clean(world, factory);
        }
    }
}

static void a_failed_release_is_unreachable_and_may_be_called_again(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    (void)state;
    hold(factory, &lock);
    world->down = true;
    server_dies(world);
    assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
    assert_true(promised_lapse(&lock) >= world_lease(world, "k"));
    assert_true(promised_lapse(&lock) < 12000);
    assert_false(dlock_is_acquired(&lock));
    assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
    server_revives(world);
    world_sleep(world, 500);   /* longer than what is owed rests after two failures */
    assert_yes(dlock_release(&lock), &lock);
    assert_string_equal(world_holder(world, "k"), "");
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_int_equal(factory->debt_count, 0);
    world_close_clean(world, factory);
}

static void a_failed_release_is_undone_by_a_later_call_or_close(void **state)
{
    (void)state;
    for (int by_close = 0; by_close < 2; by_close++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock;
        hold(factory, &lock);
        world_fault(world, FAULT_DROP_REQUEST, DLOCKI_GIVE_BACK)->times = 2;
        assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
        assert_true(world->now - WORLD_START <= 2000);
        if (!by_close) {
            works_again(factory, "other");
            assert_string_equal(world_holder(world, "k"), "");
        }
        world_close_clean(world, factory);
    }
}

/* A release that was obeyed, its reply lost, the second one told "not yours". */
static void rule_12_a_lost_release_is_true_only_while_it_must_have_been_ours(void **state)
{
    static const struct {
        int64_t before; /* asked so long after the grant */
        int code;
    } cases[] = {{0, DLOCK_OK},
                 {8000, DLOCK_OK},
                 {8897, DLOCK_OK}, /* read at 9897, the last valid instant */
                 {8898, DLOCK_UNREACHABLE},
                 {9500, DLOCK_UNREACHABLE}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock;
        hold(factory, &lock);
        world_sleep(world, cases[i].before);
        world_fault(world, FAULT_DROP_REPLY, DLOCKI_GIVE_BACK);
        assert_int_equal(dlock_release(&lock), cases[i].code == DLOCK_OK);
        assert_code(&lock, cases[i].code);
        assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 2);
        assert_string_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->owner,
                            world_nth(world, DLOCKI_GIVE_BACK, 1)->owner);
        assert_int_equal(world_seen(world, DLOCKI_PING), 1);
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
        world_close_clean(world, factory);
    }
}

static void theirs_is_not_touched_by_the_second_release(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    (void)state;
    hold(factory, &lock);
    world_sleep(world, 9500);
    world_fault(world, FAULT_DROP_REPLY, DLOCKI_GIVE_BACK);
    world_at(world, 900, server_restarts);
    model_find(world, 0, "k", 1)->ends = world->now;
    world_hold(world, "k", 5000);
    assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
    assert_string_equal(world_holder(world, "k"), "somebody else");
    world_delete(world, "k");
    world_close_clean(world, factory);
}

static void e_an_extend_is_sent_again_once_and_no_more(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    int64_t left;
    (void)state;
    hold(factory, &lock);
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_EXTEND);
    assert_yes(dlock_extend(&lock, 20000), &lock);
    assert_int_equal(world_seen(world, DLOCKI_EXTEND), 2);
    left = dlock_remaining_ms(&lock);
    world_fault(world, FAULT_CLOSE_BEFORE, DLOCKI_EXTEND)->times = 0;
    assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world_seen(world, DLOCKI_EXTEND), 4);
    assert_int_equal(dlock_remaining_ms(&lock), left); /* the old validity stands */
    world_close_clean(world, factory);
}

static void e_extend_never_shortens_and_zero_means_as_acquired(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    (void)state;
    hold(factory, &lock);
    assert_yes(dlock_extend(&lock, 500), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 9898);
    world_sleep(world, 4000);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 9898);
    assert_yes(dlock_extend(&lock, 50000), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 50000 - 500 - 2);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 50000 - 500 - 2);
    assert_true(dlock_remaining_ms(&lock) <= world_lease(world, "k"));
    world_close_clean(world, factory);
}

static void e_an_extend_is_dated_before_its_own_send(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    (void)state;
    hold(factory, &lock);
    world_fault(world, FAULT_DELAY, DLOCKI_EXTEND)->delay_ms = 700;
    assert_yes(dlock_extend(&lock, 20000), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 20000 - 200 - 2 - 700);
    /* An answer too late for the old and the new lease is no success. */
    world_sleep(world, dlock_remaining_ms(&lock) - 50);
    world_fault(world, FAULT_DELAY, DLOCKI_EXTEND)->delay_ms = 98;
    assert_no(dlock_extend(&lock, 100), &lock, DLOCK_UNREACHABLE);
    assert_false(dlock_is_acquired(&lock));
    world_close_clean(world, factory);
}

/* An extend whose answer was lost may have been obeyed: what is said about the lapse holds. */
static void e_a_lost_extend_is_part_of_when_the_lock_lapses(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock other = DLOCK_INIT;
    dlock_lock lock;
    (void)state;
    hold(factory, &lock);
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_EXTEND)->times = 2;
    assert_no(dlock_extend(&lock, 600000), &lock, DLOCK_UNREACHABLE);
    world_fault(world, FAULT_CLOSE_BEFORE, DLOCKI_GIVE_BACK)->times = 2;
    assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
    assert_true(promised_lapse(&lock) >= world_lease(world, "k"));
    /* The debt is told "later", nobody calls for a minute, and it is still remembered. */
    world_answer(world, DLOCKI_GIVE_BACK, "-LOADING x\r\n")->times = 0;
    assert_yes(dlock_acquire(factory, &other, "other", NULL), &other);
    world->fault_count = 0;
    world_sleep(world, 60000);
    works_again(factory, "other");
    assert_string_equal(world_holder(world, "k"), "");
    world_close_clean(world, factory);
}

static void verbs_on_the_wrong_handle_are_arguments_without_a_byte(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock unused = DLOCK_INIT;
    dlock_lock lock;
    dlock_lock copy;
    int sends;
    (void)state;
    assert_no(dlock_extend(&unused, 0), &unused, DLOCK_ARGUMENT);
    assert_no(dlock_release(&unused), &unused, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(NULL, &unused, "k", NULL), &unused, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(factory, &unused, NULL, NULL), &unused, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(factory, &unused, "", NULL), &unused, DLOCK_ARGUMENT);
    assert_false(dlock_acquire(factory, NULL, "k", NULL));
    hold(factory, &lock);
    sends = world->sends;
    copy = lock;
    assert_no(dlock_acquire(factory, &lock, "k", NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(factory, &lock, "another", NULL), &lock, DLOCK_ARGUMENT);
    assert_true(dlock_is_acquired(&lock));
    assert_false(dlock_is_acquired(&copy));
    assert_int_equal(dlock_fence(&copy), 0);
    assert_string_equal(dlock_owner(&copy), "");
    assert_no(dlock_extend(&copy, 0), &copy, DLOCK_ARGUMENT);
    assert_no(dlock_release(&copy), &copy, DLOCK_ARGUMENT);
    dlock_forget(&copy);
    assert_int_equal(world->sends, sends);
    assert_true(dlock_is_acquired(&lock));
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

static void forget_sends_nothing_and_frees_the_handle(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    int sends;
    (void)state;
    hold(factory, &lock);
    sends = world->sends;
    dlock_forget(&lock);
    dlock_forget(&lock);
    dlock_forget(NULL);
    assert_false(dlock_is_acquired(&lock));
    assert_code(&lock, DLOCK_OK);
    assert_int_equal(world->sends, sends);
    assert_no(dlock_acquire(factory, &lock, "k", NULL), &lock, DLOCK_BUSY);
    world_sleep(world, 10001);
    hold(factory, &lock);
    world_close_clean(world, factory);
}

static void fail_open_is_true_when_nobody_could_tell_and_only_then(void **state)
{
    static const dlock_options open = {.expiry_ms = 10000, .fail_open = true, .retry_count = 1};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    int sends;
    (void)state;
    world_hold(world, "k", 100000);
    assert_no(dlock_acquire(factory, &lock, "k", &open), &lock, DLOCK_BUSY);
    assert_false(dlock_is_degraded(&lock));
    world_answer(world, DLOCKI_ASK, "-NOPERM x\r\n");
    assert_no(dlock_acquire(factory, &lock, "k", &open), &lock, DLOCK_REFUSED);
    server_dies(world);
    assert_yes(dlock_acquire(factory, &lock, "k", &open), &lock);
    assert_true(dlock_is_acquired(&lock) && dlock_is_degraded(&lock));
    assert_int_equal(dlock_fence(&lock), 0);
    assert_string_equal(dlock_owner(&lock), "");
    assert_int_equal(dlock_remaining_ms(&lock), 9898);
    server_revives(world);
    sends = world->sends;
    world_sleep(world, 1000);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(dlock_remaining_ms(&lock), 9898);
    assert_yes(dlock_release(&lock), &lock);
    assert_false(dlock_is_degraded(&lock));
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_int_equal(world->sends, sends);
    world_delete(world, "k");
    assert_yes(dlock_acquire(factory, &lock, "k", &open), &lock);
    assert_false(dlock_is_degraded(&lock));
    world_close_clean(world, factory);
}

/* A degraded lock whose ask may have been obeyed all the same: that is undone. */
static void a_degraded_lock_leaves_no_orphan(void **state)
{
    static const dlock_options open = {.expiry_ms = 60000, .fail_open = true};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK)->times = 2;
    assert_yes(dlock_acquire(factory, &lock, "k", &open), &lock);
    assert_true(dlock_is_degraded(&lock));
    world_close_clean(world, factory);
    assert_false(dlock_is_acquired(&lock));
}

static void close_gives_back_what_is_held_and_marks_it_unused(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock locks[100];
    char key[16];
    (void)state;
    memset(locks, 0, sizeof locks);
    for (int i = 0; i < 60; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_yes(dlock_acquire(factory, &locks[i], key, &no_wait), &locks[i]);
    }
    world_close_clean(world, factory);
    for (int i = 0; i < 60; i++) {
        assert_false(dlock_is_acquired(&locks[i]));
        assert_int_equal(locks[i]._state, DLOCKI_UNUSED);
        dlocki_scope_end(&locks[i]);
    }
}

/* --------------------------------------------------------------------------------------- fork */

static void another_process_may_only_close_and_sends_nothing(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock;
    dlock_lock other = DLOCK_INIT;
    int sends;
    (void)state;
    hold(factory, &lock);
    sends = world->sends;
    world->pid = 4712;
    assert_false(dlock_is_acquired(&lock));
    assert_int_equal(dlock_fence(&lock), 0);
    assert_string_equal(dlock_owner(&lock), "");
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release(&lock), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(factory, &other, "k", NULL), &other, DLOCK_ARGUMENT);
    dlock_forget(&other);
    dlock_close(factory);
    assert_int_equal(world->sends, sends);
    assert_int_equal(world->open_sockets, 0);
    assert_int_equal(world->open_wakes, 0);
    assert_string_not_equal(world_holder(world, "k"), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_that_slept_finds_out_without_asking),
        cmocka_unit_test(a_clock_that_says_never_ends_every_lease),
        cmocka_unit_test(a_server_clock_set_forward_is_lost_at_the_next_contact),
        cmocka_unit_test(an_expiry_that_promises_nothing_is_an_argument_and_sends_nothing),
        cmocka_unit_test(extreme_numbers_saturate_and_a_late_clock_is_no_matter),
        cmocka_unit_test(a_second_release_is_lost_without_a_byte),
        cmocka_unit_test(what_somebody_else_holds_by_now_is_not_touched),
        cmocka_unit_test(a_failed_release_is_unreachable_and_may_be_called_again),
        cmocka_unit_test(a_failed_release_is_undone_by_a_later_call_or_close),
        cmocka_unit_test(rule_12_a_lost_release_is_true_only_while_it_must_have_been_ours),
        cmocka_unit_test(theirs_is_not_touched_by_the_second_release),
        cmocka_unit_test(e_an_extend_is_sent_again_once_and_no_more),
        cmocka_unit_test(e_extend_never_shortens_and_zero_means_as_acquired),
        cmocka_unit_test(e_an_extend_is_dated_before_its_own_send),
        cmocka_unit_test(e_a_lost_extend_is_part_of_when_the_lock_lapses),
        cmocka_unit_test(verbs_on_the_wrong_handle_are_arguments_without_a_byte),
        cmocka_unit_test(forget_sends_nothing_and_frees_the_handle),
        cmocka_unit_test(fail_open_is_true_when_nobody_could_tell_and_only_then),
        cmocka_unit_test(a_degraded_lock_leaves_no_orphan),
        cmocka_unit_test(close_gives_back_what_is_held_and_marks_it_unused),
        cmocka_unit_test(another_process_may_only_close_and_sends_nothing),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
