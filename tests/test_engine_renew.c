/* Whole calls on a scripted server: leases that are renewed until they are given back, or lost, and
 * what the program is told then. The clock is virtual, so that instants are exact. */
#include "tests/crowd.h"
#include "tests/scripted.h"

enum { LATENCY = 5, EXPIRY = 3000, DRIFT = EXPIRY / 100 + 2, GRID = EXPIRY / 16 };

static const dlock_options renewed = {.expiry_ms = EXPIRY, .auto_renew = true};

/* The n-th extend of this owner that the server saw, counted from 0; NULL: not so many. */
static const struct seen *renewal(const struct world *world, const char *owner, int n)
{
    for (int i = 0; i < world->log_count; i++) {
        if (world->log[i].kind == DLOCKI_EXTEND && strcmp(world->log[i].owner, owner) == 0 &&
            n-- == 0) {
            return &world->log[i];
        }
    }
    return NULL;
}

static int renewals(const struct world *world)
{
    return world_seen(world, DLOCKI_EXTEND);
}

/* Rule 13: what was given back is not extended any more. */
static void nothing_was_extended_after_it_was_given_back(const struct world *world)
{
    for (int i = 0; i < world->log_count; i++) {
        for (int j = i + 1; world->log[i].kind == DLOCKI_GIVE_BACK && j < world->log_count; j++) {
            assert_false(world->log[j].kind == DLOCKI_EXTEND &&
                         strcmp(world->log[i].owner, world->log[j].owner) == 0);
        }
    }
}

static void end(struct crowd *crowd)
{
    crowd_close(crowd);
    nothing_was_extended_after_it_was_given_back(crowd->world);
}

/* ----------------------------------------------------------------------------------------- when */

/* A third of the lease after it was last sent for, at a round instant, so that many share it. */
static int64_t due_after(int64_t sent, int64_t expiry)
{
    int64_t at = sent + expiry / 3;
    return at - at % (expiry / 16);
}

static void a_lease_is_renewed_at_each_third_of_it(void **state)
{
    static const int64_t expiries[] = {300, 3000, 30000, 100000};
    (void)state;
    for (size_t i = 0; i < sizeof expiries / sizeof *expiries; i++) {
        for (int64_t start = 0; start < 100; start += 17) {
            dlock_options options = {.expiry_ms = expiries[i], .auto_renew = true};
            struct crowd *crowd = crowd_begin(1, LATENCY);
            struct world *world = crowd->world;
            struct call *call;
            int64_t sent;
            int64_t expiry = expiries[i];
            int count = 0;
            crowd_run(crowd, start);
            call = crowd_take(crowd, 0, "k", &options);
            sent = world_nth(world, DLOCKI_ASK, 0)->at - LATENCY;
            while (count < 20) {
                const struct seen *one;
                crowd_run(crowd, expiry / 20);
                assert_true(dlock_is_acquired(&call->lock));
                assert_true(dlock_remaining_ms(&call->lock) >= expiry / 2);
                while ((one = renewal(world, dlock_owner(&call->lock), count)) != NULL) {
                    assert_int_equal(one->at - LATENCY, due_after(sent, expiry));
                    assert_int_equal(one->expiry_ms, expiry);
                    assert_int_equal(one->result, 1);
                    sent = one->at - LATENCY;
                    count++;
                }
            }
            assert_int_equal(call->lost, 0);
            assert_true(dlock_fence(&call->lock) == call->fence);
            end(crowd);
        }
    }
}

static void without_auto_renew_nothing_is_renewed(void **state)
{
    static const dlock_options plain = {.expiry_ms = EXPIRY};
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct call *call = crowd_take(crowd, 0, "k", &plain);
    int64_t ends = call->lock._valid_until;
    (void)state;
    crowd_run(crowd, 2 * EXPIRY);
    assert_int_equal(renewals(crowd->world), 0);
    assert_int_equal(call->lost, 1);
    assert_int_equal(call->lost_at, ends);
    assert_string_equal(world_holder(crowd->world, "k"), "");
    end(crowd);
}

/* Two hundred that were acquired within a round instant's reach cost a handful of flights. */
static void many_leases_are_renewed_together(void **state)
{
    enum { CALLS = 200, LONG = 30000 };
    static const dlock_options options = {.expiry_ms = LONG, .auto_renew = true};
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    int64_t last = 0;
    int instants = 0;
    int sends;
    (void)state;
    for (int i = 0; i < CALLS; i++) {
        char key[16];
        (void)snprintf(key, sizeof key, "k%d", i);
        crowd_acquire(crowd, 0, key, &options);
        crowd_run(crowd, 3);
    }
    crowd_until(crowd, CALLS);
    sends = world->sends;
    crowd_run(crowd, 12000);
    for (int i = 0; i < world->log_count; i++) {
        if (world->log[i].kind == DLOCKI_EXTEND && world->log[i].at != last) {
            last = world->log[i].at;
            instants++;
        }
    }
    assert_int_equal(renewals(world), CALLS);
    assert_in_range(instants, 4, 6); /* 64 are under way at a time; the grid may fall in between */
    assert_in_range(world->sends - sends, 4, 8);
    for (int i = 0; i < CALLS; i++) {
        assert_true(dlock_is_acquired(&crowd->calls[i].lock));
        assert_true(dlock_remaining_ms(&crowd->calls[i].lock) > LONG / 2);
    }
    crowd->call_count = CALLS;
    crowd->factories[0]->command_timeout_ms = 5000;
    end(crowd);
}

/* ------------------------------------------------------------------------------ tried again: D8 */

static void whatever_befalls_a_renewal_it_is_tried_again(void **state)
{
    static const struct {
        enum fault_kind kind;
        const char *text;
        int64_t delay_ms;
    } cases[] = {{FAULT_DROP_REPLY, NULL, 0},
                 {FAULT_DROP_REQUEST, NULL, 0},
                 {FAULT_CLOSE_BEFORE, NULL, 0},
                 {FAULT_CLOSE_AFTER, NULL, 0},
                 {FAULT_CUT_REPLY, NULL, 0},
                 {FAULT_DELAY, NULL, 700},
                 {FAULT_MUTE, NULL, 0},
                 {FAULT_DEAF, NULL, 0},
                 {FAULT_ANSWER, "-LOADING x\r\n", 0},
                 {FAULT_ANSWER, "-NOSCRIPT x\r\n", 0},
                 {FAULT_ANSWER, "-OOM x\r\n", 0},
                 {FAULT_ANSWER, "-NOPERM x\r\n", 0},
                 {FAULT_ANSWER, "$5\r\nhello\r\n", 0},
                 {FAULT_MORE, "+OK\r\n", 0},
                 {FAULT_TWICE, NULL, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int n = 1; n <= 2; n++) {
            for (int skip = 0; skip < 3; skip++) {
                struct crowd *crowd = crowd_begin(1, LATENCY);
                struct call *call = crowd_take(crowd, 0, "k", &renewed);
                struct fault *fault = world_fault(crowd->world, cases[i].kind, DLOCKI_EXTEND);
                fault->text = cases[i].text;
                fault->delay_ms = cases[i].delay_ms;
                fault->times = n;
                fault->skip = skip;
                for (int64_t t = 0; t < 10 * EXPIRY; t += 50) {
                    crowd_run(crowd, 50);
                    assert_true(dlock_is_acquired(&call->lock));
                }
                assert_int_equal(crowd->world->fault_count, 0);
                assert_int_equal(call->lost, 0);
                assert_in_range(renewals(crowd->world), 30, 40);
                if (cases[i].kind == FAULT_CLOSE_BEFORE || cases[i].kind == FAULT_CLOSE_AFTER) {
                    int64_t at = world_nth(crowd->world, DLOCKI_EXTEND, skip)->at;
                    assert_true(world_nth(crowd->world, DLOCKI_EXTEND, skip + 1)->at - at <=
                                6 * LATENCY); /* at once, but behind a PING */
                }
                end(crowd);
            }
        }
    }
}

/* It does not wait for an answer for so long that there is no time for another try. */
static void a_short_lease_is_tried_again_before_it_ends(void **state)
{
    static const dlock_options options = {.expiry_ms = 600, .auto_renew = true};
    (void)state;
    for (int skip = 0; skip < 5; skip++) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct call *call = crowd_take(crowd, 0, "k", &options);
        world_fault(crowd->world, FAULT_DROP_REQUEST, DLOCKI_EXTEND)->skip = skip;
        crowd_run(crowd, 5000);
        assert_int_equal(crowd->world->fault_count, 0);
        assert_int_equal(call->lost, 0);
        assert_true(dlock_is_acquired(&call->lock));
        end(crowd);
    }
}

static void scripts_and_connections_that_are_gone_are_no_matter(void **state)
{
    (void)state;
    for (int64_t at = 900; at < 1100; at += 3) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct call *call = crowd_take(crowd, 0, "k", &renewed);
        world_at(crowd->world, at, server_restarts);
        crowd_run(crowd, 4 * EXPIRY);
        assert_true(dlock_is_acquired(&call->lock));
        assert_int_equal(call->lost, 0);
        end(crowd);
    }
}

/* "Later" is asked again at a pace, not in a loop, until it is too late. */
static void a_server_that_says_later_is_asked_at_a_pace(void **state)
{
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct call *call = crowd_take(crowd, 0, "k", &renewed);
    struct world *world = crowd->world;
    int64_t ends = call->lock._valid_until;
    int64_t pace = 250 + 2 * LATENCY;
    int64_t first = due_after(world_nth(world, DLOCKI_ASK, 0)->at - LATENCY, EXPIRY);
    (void)state;
    world_answer(world, DLOCKI_EXTEND, "-LOADING x\r\n")->times = 0;
    crowd_run(crowd, 2 * EXPIRY);
    assert_int_equal(call->lost, 1);
    assert_int_equal(call->lost_at, ends);
    assert_int_equal(renewals(world), (ends - 1 - first) / pace + 1);
    for (int i = 1; i < renewals(world); i++) {
        assert_int_equal(world_nth(world, DLOCKI_EXTEND, i)->at -
                             world_nth(world, DLOCKI_EXTEND, i - 1)->at,
                         pace);
    }
    end(crowd);
}

/* ----------------------------------------------------------------------------------------- lost */

/* The server stops at a moment of a renewal's life; the lock is lost when its validity ends, to the
 * millisecond, and that is told once. */
static void a_server_that_stops_costs_the_lock_when_validity_ends(void **state)
{
    (void)state;
    for (int64_t at = 1; at < 2200; at += 13) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        struct call *call = crowd_take(crowd, 0, "k", &renewed);
        int64_t ends;
        char owner[DLOCKI_OWNER_LENGTH + 1];
        memcpy(owner, dlock_owner(&call->lock), sizeof owner);
        crowd_run(crowd, at);
        world->stopped = true;
        crowd_run(crowd, 2 * LATENCY); /* what it answered before is still read */
        ends = call->lock._valid_until;
        assert_true(ends > world->now);
        crowd_run(crowd, ends - 1 - world->now);
        assert_true(dlock_is_acquired(&call->lock));
        assert_int_equal(call->lost, 0);
        crowd_run(crowd, 1);
        assert_false(dlock_is_acquired(&call->lock));
        assert_int_equal(call->lost, 1);
        assert_int_equal(call->lost_at, ends);
        assert_no(dlock_extend(&call->lock, 0), &call->lock, DLOCK_LOST);
        crowd_run(crowd, 2 * EXPIRY);
        world->stopped = false; /* it finds the renewals, and what gives back behind them */
        crowd_run(crowd, 3000);
        assert_int_equal(call->lost, 1);
        assert_string_equal(world_holder(world, "k"), "");
        assert_int_equal(crowd->factories[0]->debt_count, 0);
        end(crowd);
    }
}

static void what_the_server_does_not_know_any_more_is_lost_at_the_next_renewal(void **state)
{
    (void)state;
    for (int foreign = 0; foreign < 2; foreign++) {
        for (int64_t at = 10; at < 3100; at += 101) {
            struct crowd *crowd = crowd_begin(1, LATENCY);
            struct world *world = crowd->world;
            struct call *call = crowd_take(crowd, 0, "k", &renewed);
            int known = 0;
            int64_t next;
            crowd_run(crowd, at);
            crowd->meddled = true; /* an operator's doing: nobody can know */
            world_delete(world, "k");
            if (foreign) {
                world_hold(world, "k", 100000);
            }
            for (int i = 0; i < renewals(world); i++) {
                known += world_nth(world, DLOCKI_EXTEND, i)->result;
            }
            crowd_run(crowd, EXPIRY / 3 + 3 * LATENCY);
            assert_int_equal(call->lost, 1);
            assert_int_equal(renewals(world), known + 1);
            next = world_nth(world, DLOCKI_EXTEND, known)->at;
            assert_int_equal(call->lost_at, next + LATENCY);
            assert_no(dlock_release(&call->lock), &call->lock, DLOCK_LOST);
            assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 0);
            assert_string_equal(world_holder(world, "k"), foreign ? "somebody else" : "");
            world_delete(world, "k");
            end(crowd);
        }
    }
}

/* dlock_break: the holder is told by its inbox. */
static void what_is_taken_away_is_lost_at_once(void **state)
{
    (void)state;
    for (int64_t at = 40; at < 2100; at += 3) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        struct call *call = crowd_take(crowd, 0, "k", &renewed);
        int64_t taken;
        int sent;
        crowd_run(crowd, at);
        crowd->meddled = true;
        ghost_run(world, DLOCKI_LUA_BREAK, "k", "", "");
        taken = world->now;
        crowd_run(crowd, LATENCY);
        assert_int_equal(call->lost, 1);
        assert_in_range(call->lost_at, taken, taken + LATENCY);
        assert_false(dlock_is_acquired(&call->lock));
        crowd_run(crowd, LATENCY);
        sent = renewals(world);
        crowd_run(crowd, 2 * EXPIRY);
        assert_int_equal(renewals(world), sent);
        assert_int_equal(call->lost, 1);
        assert_no(dlock_release(&call->lock), &call->lock, DLOCK_LOST);
        end(crowd);
    }
}

/* ---------------------------------------------------------------- process is not called: V2, D7 */

static void what_ended_while_the_loop_was_blocked_is_lost_and_not_renewed(void **state)
{
    static const int64_t expiries[] = {3000, 1000, 60000, 2000, 20000};
    (void)state;
    for (int64_t blocked = 500; blocked <= 10000; blocked += 500) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        int64_t last = 0;
        int before;
        for (int i = 0; i < 5; i++) {
            dlock_options options = {.expiry_ms = expiries[i], .auto_renew = true};
            char key[2] = {(char)('a' + i), 0};
            crowd_take(crowd, 0, key, &options);
        }
        before = world->log_count;
        crowd->stopped[0] = true;
        crowd_run(crowd, blocked);
        crowd->stopped[0] = false;
        crowd_turn(crowd);
        for (int i = 0; i < 5; i++) {
            const struct call *call = &crowd->calls[i];
            bool over = world->now >=
                        call->told_at - 2 * LATENCY + expiries[i] - dlocki_drift_ms(expiries[i]);
            assert_int_equal(call->lost, over);
            assert_int_equal(dlock_is_acquired(&call->lock), !over);
            last = over && expiries[i] > last ? expiries[i] : last;
        }
        crowd_run(crowd, 1000);
        for (int i = before; i < world->log_count; i++) {
            assert_false(world->log[i].kind == DLOCKI_EXTEND && world->log[i].expiry_ms <= last);
        }
        end(crowd);
    }
}

/* The renewal was obeyed in time, but its answer is read when the old lease is over. */
static void an_answer_that_is_read_after_the_end_renews_nothing(void **state)
{
    (void)state;
    for (int64_t late = -1; late < 900; late += 10) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        struct call *call = crowd_take(crowd, 0, "k", &renewed);
        int64_t due = due_after(world_nth(world, DLOCKI_ASK, 0)->at - LATENCY, EXPIRY);
        crowd_run(crowd, due + 1 - world->now);
        crowd->stopped[0] = true;
        crowd_run(crowd, call->lock._valid_until + late - world->now);
        assert_int_equal(renewals(world), 1);
        assert_int_equal(world_nth(world, DLOCKI_EXTEND, 0)->result, 1);
        crowd->stopped[0] = false;
        crowd_turn(crowd);
        assert_int_equal(call->lost, late >= 0);
        assert_int_equal(dlock_is_acquired(&call->lock), late < 0);
        crowd_run(crowd, 50);
        assert_string_equal(world_holder(world, "k"), late < 0 ? dlock_owner(&call->lock) : "");
        end(crowd);
    }
}

static int lost_order[8];
static int lost_count;

static void note_order(struct call *call)
{
    lost_order[lost_count++] = (int)(call - the_crowd.calls);
}

static void what_is_overdue_is_told_in_the_order_in_which_it_was_due(void **state)
{
    static const int64_t expiries[] = {3000, 1000, 2500, 2000, 1500};
    static const int expected[] = {1, 4, 3, 2, 0};
    struct crowd *crowd = crowd_begin(1, LATENCY);
    (void)state;
    lost_count = 0;
    for (int i = 0; i < 5; i++) {
        dlock_options options = {.expiry_ms = expiries[i], .auto_renew = true};
        char key[2] = {(char)('a' + i), 0};
        crowd_take(crowd, 0, key, &options)->on_lost = note_order;
    }
    crowd->stopped[0] = true;
    crowd_run(crowd, 10000);
    crowd->stopped[0] = false;
    crowd_turn(crowd);
    assert_int_equal(lost_count, 5);
    assert_memory_equal(lost_order, expected, sizeof expected);
    end(crowd);
}

/* ------------------------------------------------------------------------------ max_hold_ms: E9 */

static void after_max_hold_ms_it_is_not_renewed_and_others_get_in(void **state)
{
    static const dlock_options waits = {.expiry_ms = EXPIRY, .wait_ms = 60000};
    (void)state;
    for (int64_t most = 100; most < 9000; most += 233) {
        dlock_options options = {.expiry_ms = EXPIRY, .auto_renew = true, .max_hold_ms = most};
        struct crowd *crowd = crowd_begin(2, LATENCY);
        struct world *world = crowd->world;
        struct call *call = crowd_take(crowd, 0, "k", &options);
        struct call *next = crowd_acquire(crowd, 1, "k", &waits);
        int64_t sent = world_nth(world, DLOCKI_ASK, 0)->at - LATENCY;
        int64_t end_of_hold = call->told_at + most;
        int count = 0;
        while (due_after(sent, EXPIRY) < end_of_hold) {
            sent = due_after(sent, EXPIRY);
            count++;
        }
        crowd_finish(crowd, next);
        assert_yes(next->answer, &next->lock);
        assert_int_equal(call->lost, 1);
        assert_int_equal(call->lost_at, sent + EXPIRY - DRIFT);
        assert_int_equal(renewals(world), count);
        assert_int_equal(next->told_at, call->lost_at + 2 * LATENCY);
        end(crowd);
    }
}

/* Nor is one tried again that failed before. */
static void after_max_hold_ms_no_renewal_is_tried_again(void **state)
{
    static const dlock_options options = {
        .expiry_ms = EXPIRY, .auto_renew = true, .max_hold_ms = 1500};
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    struct call *call = crowd_take(crowd, 0, "k", &options);
    (void)state;
    world_answer(world, DLOCKI_EXTEND, "-LOADING x\r\n")->times = 0;
    crowd_run(crowd, EXPIRY);
    assert_int_equal(call->lost, 1);
    assert_in_range(renewals(world), 2, 3);
    assert_true(world_nth(world, DLOCKI_EXTEND, renewals(world) - 1)->at < call->told_at + 1510);
    end(crowd);
}

/* ----------------------------------------------------------- given back, extended meanwhile: E5 */

/* Releases at every moment around a renewal; `broken`: just as its connection is. */
static void release_around(int64_t at, bool owed, bool broken, int64_t latency)
{
    struct crowd *crowd = crowd_begin(2, latency);
    struct world *world = crowd->world;
    struct call *call = crowd_take(crowd, 0, "k", &renewed);
    static const dlock_options waits = {.expiry_ms = EXPIRY, .wait_ms = 60000};
    struct call *next = crowd_acquire(crowd, 1, "k", &waits);
    crowd_run(crowd, at);
    if (broken) {
        world_cut(world, ON_COMMANDS, crowd->factories[0]);
        world->addresses[0].delay_ms = 40;
        crowd_run(crowd, at % 7);
    }
    if (owed) {
        assert_true(dlock_release_start(&call->lock, NULL, NULL));
    } else {
        crowd_release(call);
        crowd_finish(crowd, call);
        assert_yes(call->answer, &call->lock);
    }
    crowd_finish(crowd, next);
    assert_yes(next->answer, &next->lock);
    assert_true(next->fence > call->fence);
    crowd_run(crowd, EXPIRY + 100);
    assert_int_equal(call->lost, 0);
    assert_int_equal(crowd->factories[0]->debt_count, 0);
    end(crowd);
}

static void what_is_given_back_during_a_renewal_is_not_renewed_again(void **state)
{
    (void)state;
    for (int64_t at = 780; at < 960; at++) {
        for (int how = 0; how < 4; how++) {
            release_around(at, how % 2 != 0, how >= 2, 5 + at % 20);
        }
    }
}

static void a_user_may_extend_meanwhile(void **state)
{
    static const int64_t extends[] = {0, 100, 20000};
    (void)state;
    for (int64_t at = 780; at < 960; at++) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        struct call *call = crowd_take(crowd, 0, "k", &renewed);
        int64_t before;
        int64_t wanted = extends[at % 3];
        crowd_run(crowd, at);
        before = call->lock._valid_until;
        call->told = 0;
        assert_true(dlock_extend_start(&call->lock, wanted, crowd_done, call));
        crowd_finish(crowd, call);
        assert_yes(call->answer, &call->lock);
        assert_true(call->lock._valid_until >= before);
        if (wanted == 20000) {
            assert_int_equal(dlock_remaining_ms(&call->lock), 20000 - 202 - 2 * LATENCY);
        }
        for (int64_t t = 0; t < 10 * EXPIRY; t += 100) {
            crowd_run(crowd, 100);
            assert_true(dlock_is_acquired(&call->lock));
        }
        assert_int_equal(call->lost, 0);
        assert_in_range(renewals(world), 10, 36);
        end(crowd);
    }
}

/* What it is to be extended by in the end says the caller, not the renewal that was under way. */
static void a_renewal_does_not_answer_an_extend(void **state)
{
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    struct call *call = crowd_take(crowd, 0, "k", &renewed);
    int64_t due = due_after(world_nth(world, DLOCKI_ASK, 0)->at - LATENCY, EXPIRY);
    (void)state;
    crowd_run(crowd, due + 1 - world->now);
    call->told = 0;
    assert_true(dlock_extend_start(&call->lock, 20000, crowd_done, call));
    crowd_run(crowd, 2 * LATENCY - 1); /* the renewal's answer is there */
    assert_int_equal(call->told, 0);
    crowd_finish(crowd, call);
    assert_int_equal(call->told_at, due + 1 + 2 * LATENCY);
    assert_int_equal(world_nth(world, DLOCKI_EXTEND, 1)->expiry_ms, 20000);
    end(crowd);
}

/* ------------------------------------------------------------------------------------- degraded */

static void a_degraded_lock_is_renewed_without_a_byte(void **state)
{
    static const dlock_options open = {.expiry_ms = EXPIRY, .auto_renew = true, .fail_open = true};
    static const dlock_options ends = {
        .expiry_ms = EXPIRY, .auto_renew = true, .fail_open = true, .max_hold_ms = 7000};
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    struct call *call;
    struct call *other;
    int sends;
    (void)state;
    world->down = true;
    call = crowd_take(crowd, 0, "k", &open);
    other = crowd_take(crowd, 0, "j", &ends);
    assert_true(dlock_is_degraded(&call->lock) && dlock_is_degraded(&other->lock));
    world->down = false;
    sends = world->sends;
    for (int64_t t = 0; t < 10 * EXPIRY; t += 100) {
        crowd_run(crowd, 100);
        assert_true(dlock_is_acquired(&call->lock));
        assert_true(dlock_remaining_ms(&call->lock) >= EXPIRY / 2);
    }
    assert_int_equal(call->lost, 0);
    assert_int_equal(other->lost, 1);
    assert_in_range(other->lost_at - other->told_at, 7000, 7000 + EXPIRY);
    assert_int_equal(world->sends, sends);
    crowd_release(call);
    crowd_finish(crowd, call);
    assert_yes(call->answer, &call->lock);
    assert_int_equal(world->sends, sends);
    end(crowd);
}

/* ------------------------------------------------------------------------------ in on_lost: E8 */

static void release_it(struct call *call)
{
    assert_no(dlock_release(&call->lock), &call->lock, DLOCK_LOST);
}

static void acquire_it_again(struct call *call)
{
    assert_no(dlock_release(&call->lock), &call->lock, DLOCK_LOST);
    call->on_lost = NULL;
    crowd_start(call, "k", &renewed);
}

static void acquire_another(struct call *call)
{
    struct call *other = &the_crowd.calls[1];
    assert_true(call != other);
    crowd_start(other, "other", &renewed);
}

static void forget_it(struct call *call)
{
    dlock_forget(&call->lock);
}

static void on_lost_may_call_whatever_it_likes(void **state)
{
    static void (*const calls[])(struct call *) = {release_it, acquire_it_again, acquire_another,
                                                   forget_it};
    (void)state;
    for (int how = 0; how < 3; how++) { /* what it was lost by */
        for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
            struct crowd *crowd = crowd_begin(1, LATENCY);
            struct world *world = crowd->world;
            struct call *call = crowd_take(crowd, 0, "k", &renewed);
            struct call *other = crowd_call(crowd, 0);
            call->on_lost = calls[i];
            crowd_run(crowd, 100);
            crowd->meddled = true;
            if (how == 0) {
                world_delete(world, "k");
            } else if (how == 1) {
                ghost_run(world, DLOCKI_LUA_BREAK, "k", "", "");
            } else {
                world_answer(world, DLOCKI_EXTEND, "-LOADING x\r\n")->times = 0;
            }
            crowd_run(crowd, EXPIRY + 500);
            world->fault_count = 0;
            assert_int_equal(call->lost, 1);
            assert_int_equal(dlock_is_acquired(&call->lock), calls[i] == acquire_it_again);
            assert_int_equal(dlock_is_acquired(&other->lock), calls[i] == acquire_another);
            crowd->meddled = false;
            crowd_run(crowd, EXPIRY);
            end(crowd);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lease_is_renewed_at_each_third_of_it),
        cmocka_unit_test(without_auto_renew_nothing_is_renewed),
        cmocka_unit_test(many_leases_are_renewed_together),
        cmocka_unit_test(whatever_befalls_a_renewal_it_is_tried_again),
        cmocka_unit_test(a_short_lease_is_tried_again_before_it_ends),
        cmocka_unit_test(scripts_and_connections_that_are_gone_are_no_matter),
        cmocka_unit_test(a_server_that_says_later_is_asked_at_a_pace),
        cmocka_unit_test(a_server_that_stops_costs_the_lock_when_validity_ends),
        cmocka_unit_test(what_the_server_does_not_know_any_more_is_lost_at_the_next_renewal),
        cmocka_unit_test(what_is_taken_away_is_lost_at_once),
        cmocka_unit_test(what_ended_while_the_loop_was_blocked_is_lost_and_not_renewed),
        cmocka_unit_test(an_answer_that_is_read_after_the_end_renews_nothing),
        cmocka_unit_test(what_is_overdue_is_told_in_the_order_in_which_it_was_due),
        cmocka_unit_test(after_max_hold_ms_no_renewal_is_tried_again),
        cmocka_unit_test(after_max_hold_ms_it_is_not_renewed_and_others_get_in),
        cmocka_unit_test(what_is_given_back_during_a_renewal_is_not_renewed_again),
        cmocka_unit_test(a_user_may_extend_meanwhile),
        cmocka_unit_test(a_renewal_does_not_answer_an_extend),
        cmocka_unit_test(a_degraded_lock_is_renewed_without_a_byte),
        cmocka_unit_test(on_lost_may_call_whatever_it_likes),
    };
    watchdog(300);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
