/* Whole calls on a scripted server, many of them: who is served after whom, what the dead in line
 * cost, what a holder's death costs, and what is left when many give up at once. */
#include "tests/crowd.h"
#include "tests/scripted.h"

static const dlock_options no_wait = {.expiry_ms = 10000};
static const dlock_options waits = {.expiry_ms = 10000, .wait_ms = 600000};

/* Commands of a kind that the server saw in [from, to). */
static int seen_between(const struct world *world, int kind, int64_t from, int64_t to)
{
    int count = 0;
    for (int i = 0; i < world->log_count; i++) {
        count += world->log[i].kind == kind && world->log[i].at >= from && world->log[i].at < to;
    }
    return count;
}

/* --------------------------------------------------------------------------------------- order */

/* Everybody was served, with a fence above all before. */
static void served_once_with_growing_fences(struct crowd *crowd, int count)
{
    uint64_t last = 0;
    for (int i = 0; i < count; i++) {
        const struct call *call = &crowd->calls[i];
        assert_yes(call->answer, &call->lock);
        assert_int_equal(call->told, 1);
        assert_in_range(call->order, 1, count);
    }
    for (int order = 1; order <= count; order++) {
        int i = 0;
        while (crowd->calls[i].order != order) {
            i++;
            assert_true(i < count);
        }
        assert_true(crowd->calls[i].fence > last);
        last = crowd->calls[i].fence;
    }
}

static void three_hundred_started_at_once_are_served_as_they_were_started(void **state)
{
    struct crowd *crowd = crowd_begin(1, 2);
    struct world *world = crowd->world;
    int64_t began;
    (void)state;
    memset(world->loaded, 0, sizeof world->loaded);
    ghost_hold(world, "k", 1000000);
    for (int i = 0; i < 300; i++) {
        crowd_acquire(crowd, 0, "k", &waits)->on_done = crowd_pass_on;
    }
    crowd_run(crowd, 400);
    assert_int_equal(world_ticket_count(world), 300);
    assert_int_equal(world_inbox_count(world), 1);
    began = world->now;
    ghost_release(world);
    crowd_until(crowd, 300);
    for (int i = 0; i < 300; i++) {
        assert_int_equal(crowd->calls[i].order, i + 1);
    }
    served_once_with_growing_fences(crowd, 300);
    assert_true(world->now - began <= 300 * 4); /* one round trip each */
    crowd_run(crowd, 10);
    assert_int_equal(seen_between(world, DLOCKI_ASK, began, world->now), 0);
    assert_int_equal(seen_between(world, DLOCKI_GIVE_BACK, began, world->now), 300);
    crowd_close(crowd);
}

static void many_factories_are_served_as_their_tickets_stand(void **state)
{
    enum { FACTORIES = 20, CALLS = 200 };
    struct crowd *crowd = crowd_begin(FACTORIES, 3);
    struct world *world = crowd->world;
    double last = 0;
    (void)state;
    ghost_hold(world, "k", 1000000);
    for (int i = 0; i < CALLS; i++) {
        crowd_acquire(crowd, world_pick(world, FACTORIES), "k", &waits)->on_done = crowd_pass_on;
        crowd_run(crowd, world_pick(world, 3));
    }
    crowd_run(crowd, 60);
    assert_int_equal(world_ticket_count(world), CALLS);
    for (size_t place = 1; place <= CALLS; place++) {
        const struct model_member *ticket = world_ticket(world, "k", place);
        assert_true(ticket->score >= last); /* in one microsecond bytes decide */
        last = ticket->score;
        for (int i = 0; i < CALLS; i++) { /* noted where it is found again after the end */
            if (memcmp(crowd->calls[i].lock._owner, ticket->bytes, DLOCKI_OWNER_LENGTH) == 0) {
                crowd->calls[i].lost_at = (int64_t)place;
            }
        }
    }
    ghost_release(world);
    crowd_until(crowd, CALLS);
    for (int i = 0; i < CALLS; i++) {
        assert_int_equal(crowd->calls[i].order, crowd->calls[i].lost_at);
    }
    served_once_with_growing_fences(crowd, CALLS);
    crowd_close(crowd);
}

/* Two tickets in one microsecond, a server's clock that was set back, a score that is taken: the
 * later one stands behind. */
static void who_comes_later_stands_behind_whatever_the_clock_says(void **state)
{
    (void)state;
    for (int64_t jump = -3600000; jump <= 3600000; jump += 3600000) {
        struct crowd *crowd = crowd_begin(4, 3);
        struct world *world = crowd->world;
        model_set(world, 0, "k", 1, GHOST, INT64_C(100000000));
        for (int i = 0; i < 4; i++) {
            crowd_acquire(crowd, i, "k", &waits)->on_done = crowd_pass_on;
            if (i == 1) {
                crowd_run(crowd, 40);
                world->jump_ms = jump;
            }
        }
        crowd_run(crowd, 40);
        ghost_release(world);
        crowd_until(crowd, 4);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(crowd->calls[i].order, i + 1);
        }
        assert_int_equal(world_told(world, 'g', 3) != NULL, true);
        crowd_close(crowd);
    }
}

/* ------------------------------------------------------------------------- the dead in line: F5 */

static void the_dead_are_skipped_in_the_same_release(void **state)
{
    static const int dead[] = {1, 5, 127, 128, 129, 300, 1000};
    (void)state;
    for (size_t i = 0; i < sizeof dead / sizeof *dead; i++) {
        struct crowd *crowd = crowd_begin(1, 3);
        struct world *world = crowd->world;
        struct call *call;
        int64_t began;
        ghost_hold(world, "k", 1000000);
        for (int n = 0; n < dead[i]; n++) {
            ghost_line_up(world, "k", n, 1000 + n);
        }
        call = crowd_acquire(crowd, 0, "k", &waits);
        crowd_run(crowd, 30);
        ghost_line_up(world, "k", dead[i], 9e15); /* and one behind */
        assert_int_equal(world_ticket_count(world), dead[i] + 2);
        began = world->now;
        ghost_release(world);
        crowd_until(crowd, 1);
        assert_yes(call->answer, &call->lock);
        assert_int_equal(call->told_at - began, 3);
        assert_int_equal(world_ticket_count(world), 1);
        crowd_release(call);
        crowd_finish(crowd, call);
        assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->flags, 1);
        assert_string_equal(world_holder(world, "k"), "");
        crowd_close(crowd);
    }
}

/* Where nobody gives it back, the asker clears them, 128 with each ask. */
static void the_dead_before_a_free_lock_are_cleared_by_who_asks(void **state)
{
    static const struct {
        int dead;
        int asks;
    } cases[] = {{0, 1}, {1, 1}, {127, 1}, {128, 2}, {129, 2}, {256, 3}, {300, 3}, {1000, 8}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct crowd *crowd = crowd_begin(1, 3);
        struct world *world = crowd->world;
        struct call *call;
        for (int n = 0; n < cases[i].dead; n++) {
            ghost_line_up(world, "k", n, 1000 + n);
        }
        call = crowd_take(crowd, 0, "k", &no_wait);
        assert_true(dlock_fence(&call->lock) > 0);
        assert_int_equal(world_seen(world, DLOCKI_ASK), cases[i].asks);
        assert_int_equal(world_ticket_count(world), 0);
        crowd_close(crowd);
    }
}

/* ----------------------------------------------------------------------- a holder that dies: F6 */

static void a_hundred_waiters_of_a_dead_holder_are_no_herd(void **state)
{
    enum { FACTORIES = 20, CALLS = 100 };
    static const dlock_options patient = {.expiry_ms = 30000, .wait_ms = 600000};
    struct crowd *crowd = crowd_begin(FACTORIES, 3);
    struct world *world = crowd->world;
    int64_t began = world->now;
    int64_t last = 0;
    int holder = -1;
    int asks = 0;
    (void)state;
    ghost_hold(world, "k", 3000);
    for (int i = 0; i < CALLS; i++) {
        crowd_acquire(crowd, i % FACTORIES, "k", &patient);
        crowd_run(crowd, 1);
    }
    crowd_run(crowd, 2900 - (world->now - began));
    assert_int_equal(world_ticket_count(world), CALLS);
    crowd_run(crowd, 7000);
    assert_int_equal(crowd->told, 1);
    assert_int_equal(world_ticket_count(world), CALLS - 1);
    for (int i = 0; i < CALLS; i++) {
        crowd->calls[i].on_done = crowd_pass_on;
        holder = crowd->calls[i].told > 0 ? i : holder;
    }
    assert_int_equal(holder, 0);
    assert_in_range(crowd->calls[0].told_at - began, 3000, 3020);
    for (int i = 0; i < world->log_count; i++) { /* one after the other, and each but once */
        const struct seen *one = &world->log[i];
        if (one->at >= began + 2000 && !one->inbox) {
            assert_int_equal(one->kind, DLOCKI_ASK);
            assert_true(one->at - last >= 15);
            last = one->at;
            asks++;
        }
    }
    assert_int_equal(asks, CALLS);
    began = world->now;
    crowd_pass_on(&crowd->calls[0]);
    crowd_until(crowd, CALLS);
    assert_true(world->now - began <= CALLS * 7);
    crowd_run(crowd, 10);
    assert_int_equal(seen_between(world, DLOCKI_ASK, began, world->now), 0);
    assert_int_equal(seen_between(world, DLOCKI_GIVE_BACK, began, world->now), CALLS);
    crowd_close(crowd);
}

/* A short holder behind a long one dies: whoever waits asks again after his own expiry at most, not
 * after what was left of the first. */
static void the_next_holder_may_die_long_before_the_first_would_have(void **state)
{
    static const dlock_options shortly = {.expiry_ms = 500, .wait_ms = 600000};
    struct crowd *crowd = crowd_begin(2, 3);
    struct world *world = crowd->world;
    struct call *dies;
    struct call *call;
    (void)state;
    ghost_hold(world, "k", 3600000);
    dies = crowd_acquire(crowd, 0, "k", &shortly);
    crowd_run(crowd, 30);
    call = crowd_acquire(crowd, 1, "k", &waits);
    crowd_run(crowd, 30);
    ghost_release(world);
    crowd_finish(crowd, dies);
    assert_yes(dies->answer, &dies->lock);
    crowd->stopped[0] = true;
    crowd_finish(crowd, call);
    assert_yes(call->answer, &call->lock);
    assert_true(call->told_at - WORLD_START >= 60 + 500);
    assert_true(call->told_at - WORLD_START <= 60 + 10000 + 100);
    crowd->stopped[0] = false;
    crowd_close(crowd);
}

/* ---------------------------------------------------------------------- a foreign holder: F9 */

static void foreign_scene(int64_t delay_ms, bool endless)
{
    dlock_options options = {
        .expiry_ms = 10000, .wait_ms = 60000, .retry_delay_ms = (int32_t)delay_ms};
    struct crowd *crowd = crowd_begin(2, 2);
    struct world *world = crowd->world;
    struct call *call;
    struct call *behind;
    int64_t least = delay_ms > 0 ? delay_ms : 50;
    int64_t most = delay_ms > 0 ? delay_ms : 250;
    int64_t last = 0;
    int64_t freed;
    int asks = 0;
    world_hold(world, "k", 6000);
    if (endless) {
        world_find(world, "k")->ends = MODEL_NEVER;
    }
    call = crowd_acquire(crowd, 0, "k", &options);
    crowd_run(crowd, 20);
    behind = crowd_acquire(crowd, 1, "k", &options);
    crowd_run(crowd, 4980);
    for (int i = 0; i < world->log_count; i++) {
        const struct seen *one = &world->log[i];
        if (one->kind == DLOCKI_ASK && strcmp(one->owner, call->lock._owner) == 0 &&
            one->place > 0) {
            assert_int_equal(one->place, 1);
            assert_true(one->score == 0 || one->score == call->lock._score);
            if (last > 0) {
                assert_in_range(one->at - last, least, most + 4);
            }
            last = one->at;
            asks++;
        }
    }
    assert_in_range(asks, 5000 / (most + 4), 5000 / least + 1);
    freed = WORLD_START + 6001;
    if (endless) {
        freed = world->now;
        world_delete(world, "k");
    }
    crowd_finish(crowd, call);
    assert_yes(call->answer, &call->lock);
    assert_int_equal(call->order, 1);
    assert_true(call->told_at <= freed + most + 10);
    assert_true(dlock_fence(&call->lock) > 0);
    crowd_run(crowd, 100);
    crowd_release(call);
    crowd_finish(crowd, behind);
    assert_int_equal(behind->told_at - call->told_at, 0); /* both are two milliseconds away */
    crowd_close(crowd);
}

static void a_foreign_holder_is_polled_and_the_place_is_kept(void **state)
{
    (void)state;
    foreign_scene(0, true);
    foreign_scene(0, false);
    foreign_scene(400, true);
    foreign_scene(400, false);
    foreign_scene(17, true);
}

/* ------------------------------------------------------------------------ many that give up: F7 */

static void two_hundred_cancelled_at_once_leave_no_place(void **state)
{
    (void)state;
    for (int64_t later = 0; later <= 100; later += 4) {
        struct crowd *crowd = crowd_begin(5, 2);
        struct world *world = crowd->world;
        struct call *rest;
        ghost_hold(world, "k", 1000000);
        for (int i = 0; i < 200; i++) {
            crowd_acquire(crowd, i % 4, "k", &waits);
        }
        rest = crowd_acquire(crowd, 4, "k", &waits);
        crowd_run(crowd, later);
        for (int i = 0; i < 200; i++) {
            dlock_cancel(&crowd->calls[i].lock);
        }
        crowd_turn(crowd);
        assert_int_equal(crowd->told, 200);
        for (int i = 0; i < 200; i++) {
            assert_no(crowd->calls[i].answer, &crowd->calls[i].lock, DLOCK_CANCELLED);
            assert_int_equal(crowd->calls[i].told, 1);
        }
        crowd_run(crowd, 60);
        assert_int_equal(world_ticket_count(world), 1);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(crowd->factories[i]->debt_count, 0);
            assert_int_equal(crowd->factories[i]->reserved, 0);
        }
        ghost_release(world);
        crowd_finish(crowd, rest);
        assert_yes(rest->answer, &rest->lock);
        crowd_close(crowd);
    }
}

/* A place in line outlives the lease that would have come of it; so does what is owed of it. */
static void a_place_in_line_is_owed_for_longer_than_a_lease(void **state)
{
    static const dlock_options shortly = {.expiry_ms = 500, .wait_ms = 60000};
    struct crowd *crowd = crowd_begin(1, 2);
    struct world *world = crowd->world;
    struct call *call;
    (void)state;
    ghost_hold(world, "k", 100000000);
    call = crowd_acquire(crowd, 0, "k", &shortly);
    crowd_run(crowd, 30);
    world_answer(world, DLOCKI_GIVE_BACK, "-LOADING x\r\n")->times = 0;
    dlock_cancel(&call->lock);
    crowd_run(crowd, 200000);
    assert_int_equal(crowd->factories[0]->debt_count, 1);
    assert_int_equal(world_ticket_count(world), 1);
    world->fault_count = 0;
    crowd_run(crowd, 2100);
    assert_int_equal(crowd->factories[0]->debt_count, 0);
    assert_int_equal(world_ticket_count(world), 0);
    world_delete(world, "k");
    crowd_close(crowd);
}

static void *no_memory(size_t size, void *user)
{
    (void)size;
    (void)user;
    return NULL;
}

/* Whoever could not be undone does not line up. */
static void without_memory_nobody_lines_up_who_could_not_leave(void **state)
{
    static const dlock_options shortly = {.expiry_ms = 10000, .wait_ms = 1000};
    struct crowd *crowd = crowd_begin(1, 2);
    struct world *world = crowd->world;
    int in_line = 0;
    (void)state;
    ghost_hold(world, "k", 1000000);
    crowd->factories[0]->alloc = no_memory;
    for (int i = 0; i < DLOCK_DEBT_MAX + 10; i++) {
        crowd_acquire(crowd, 0, "k", i < DLOCK_DEBT_MAX ? &waits : &shortly);
    }
    crowd_run(crowd, 900);
    assert_int_equal(world_ticket_count(world), DLOCK_DEBT_MAX);
    crowd_run(crowd, 100);
    assert_int_equal(crowd->told, 10);
    for (int i = 0; i < crowd->call_count; i++) {
        struct call *call = &crowd->calls[i];
        if (call->told > 0) {
            assert_no(call->answer, &call->lock, DLOCK_UNREACHABLE);
            assert_int_equal(call->told_at - WORLD_START, 1000);
        } else {
            in_line++;
            dlock_cancel(&call->lock);
        }
    }
    assert_int_equal(in_line, DLOCK_DEBT_MAX);
    crowd_run(crowd, 20);
    assert_int_equal(world_ticket_count(world), 0);
    assert_int_equal(crowd->factories[0]->debt_count, 0);
    crowd->factories[0]->alloc = NULL;
    ghost_release(world);
    crowd_close(crowd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_hundred_started_at_once_are_served_as_they_were_started),
        cmocka_unit_test(many_factories_are_served_as_their_tickets_stand),
        cmocka_unit_test(who_comes_later_stands_behind_whatever_the_clock_says),
        cmocka_unit_test(the_dead_are_skipped_in_the_same_release),
        cmocka_unit_test(the_dead_before_a_free_lock_are_cleared_by_who_asks),
        cmocka_unit_test(a_hundred_waiters_of_a_dead_holder_are_no_herd),
        cmocka_unit_test(the_next_holder_may_die_long_before_the_first_would_have),
        cmocka_unit_test(a_foreign_holder_is_polled_and_the_place_is_kept),
        cmocka_unit_test(two_hundred_cancelled_at_once_leave_no_place),
        cmocka_unit_test(a_place_in_line_is_owed_for_longer_than_a_lease),
        cmocka_unit_test(without_memory_nobody_lines_up_who_could_not_leave),
    };
    watchdog(300);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
