/* Whole calls on a scripted server: replies that are lost or late, what is undone then, and when a
 * call ends. */
#include "tests/scripted.h"

static const dlock_options no_wait = {.expiry_ms = 10000};

/* expiry - drift */
static int64_t full(int64_t expiry_ms)
{
    return expiry_ms - expiry_ms / 100 - 2;
}

static void a_silent_server_is_unreachable_and_undone_behind_the_command(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_DROP_REPLY, DLOCKI_ASK);
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - WORLD_START, 1000);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 1);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->socket, 1);
    assert_string_equal(world_holder(world, "k"), "");
    works_again(factory, "k");
    assert_int_equal(world_nth(world, DLOCKI_ASK, 1)->socket, 2);
    assert_int_equal(world_seen(world, DLOCKI_PING), 1);
    world_close_clean(world, factory);
}

static void two_lost_replies_are_unreachable_and_undone_in_the_next_call(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK)->times = 2;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world_seen(world, DLOCKI_ASK), 2);
    assert_string_equal(world_nth(world, DLOCKI_ASK, 0)->owner,
                        world_nth(world, DLOCKI_ASK, 1)->owner);
    works_again(factory, "k");
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
    assert_string_not_equal(world_nth(world, DLOCKI_ASK, 1)->owner,
                            world_nth(world, DLOCKI_ASK, 2)->owner);
    world_close_clean(world, factory);
}

static void a_lost_reply_is_undone_by_close(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK)->times = 2;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    assert_string_not_equal(world_holder(world, "k"), "");
    world_close_clean(world, factory);
}

static void no_fence_too_is_undone(void **state)
{
    static const dlock_options plain = {.expiry_ms = 10000, .no_fence = true};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    works_again(factory, "k"); /* a script was seen to work: now a plain SET will do */
    world_fault(world, FAULT_DROP_REPLY, DLOCKI_SET);
    assert_no(dlock_acquire(factory, &lock, "k", &plain), &lock, DLOCK_UNREACHABLE);
    assert_string_equal(world_holder(world, "k"), "");
    world_close_clean(world, factory);
}

static void a_lost_reply_is_asked_again_by_the_same_owner(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    uint64_t fence;
    (void)state;
    world->latency_ms = 20;
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK);
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    assert_int_equal(world_seen(world, DLOCKI_ASK), 2);
    assert_int_equal(world_seen(world, DLOCKI_PING), 1);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 0);
    assert_string_equal(world_nth(world, DLOCKI_ASK, 0)->owner, dlock_owner(&lock));
    /* The lease counts from the first send that may have been obeyed. */
    assert_int_equal(dlock_remaining_ms(&lock), full(10000) - (world->now - WORLD_START));
    assert_true(world->now - WORLD_START >= 80);
    assert_true(dlock_remaining_ms(&lock) <= world_lease(world, "k"));
    fence = dlock_fence(&lock);
    assert_true(fence == world->fence);
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

static void a_request_that_was_not_executed_is_dated_by_what_the_server_says(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->latency_ms = 20;
    world_fault(world, FAULT_CLOSE_BEFORE, DLOCKI_ASK);
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    /* It was granted afresh: what counts is when that was asked for. */
    assert_int_equal(dlock_remaining_ms(&lock),
                     full(10000) - (world->now - (world_nth(world, DLOCKI_ASK, 1)->at - 20)));
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

static void after_a_cut_a_plain_set_becomes_a_question_that_can_tell(void **state)
{
    static const dlock_options plain = {.expiry_ms = 10000, .no_fence = true};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    works_again(factory, "other");
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_SET);
    assert_yes(dlock_acquire(factory, &lock, "k", &plain), &lock);
    assert_int_equal(world_seen(world, DLOCKI_SET), 1);
    assert_int_equal(world_seen(world, DLOCKI_ASK), 2);
    assert_int_equal(dlock_fence(&lock), 0);
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

static void the_next_attempt_draws_a_new_owner(void **state)
{
    static const dlock_options twice = {.expiry_ms = 10000, .retry_count = 1};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_DROP_REPLY, DLOCKI_ASK);
    assert_yes(dlock_acquire(factory, &lock, "k", &twice), &lock);
    assert_int_equal(world_seen(world, DLOCKI_ASK), 2);
    assert_string_not_equal(world_nth(world, DLOCKI_ASK, 0)->owner, dlock_owner(&lock));
    assert_string_equal(world_nth(world, DLOCKI_ASK, 1)->owner, dlock_owner(&lock));
    assert_memory_equal(world_nth(world, DLOCKI_ASK, 0)->owner, dlock_owner(&lock), 20);
    assert_true(dlock_remaining_ms(&lock) <= world_lease(world, "k"));
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

/* Held by somebody else by the time of the second ask: an honest BUSY, and nothing to undo. */
static void asked_again_and_held_by_another_is_busy(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_hold(world, "k", 500);
    world_fault(world, FAULT_CLOSE_BEFORE, DLOCKI_ASK);
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_BUSY);
    world_sleep(world, 500);
    world_close_clean(world, factory);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 0);
}

/* A stopped server has our request. We close, ask again behind a PING, give up. When it goes on it
 * may read the newer connection first; all the same nothing is left. */
static void stopped_server(bool undo_fits, int64_t stopped_for)
{
    static const dlock_options twice = {.expiry_ms = 60000, .retry_count = 1};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    world->newest_first = true;
    works_again(factory, "other");
    world->stopped = true;
    world_at(world, stopped_for, server_goes_on);
    if (!undo_fits) {
        world->on_wait = clog_on_wait;
        world->cancel_at = world->sends + 1;
    }
    assert_false(dlock_acquire(factory, &lock, "k", &twice));
    assert_code(&lock, DLOCK_UNREACHABLE);
    world->send_room = -1;
    world_sleep(world, stopped_for);
    assert_false(world->stopped);
    works_again(factory, "k");
    assert_int_equal(world_key_count(world), 0);
    world_close_clean(world, factory);
}

static void a_stopped_server_leaves_no_orphan(void **state)
{
    (void)state;
    for (int64_t span = 2300; span < 5000; span += 300) {
        stopped_server(true, span);
        stopped_server(false, span);
    }
}

/* The control: what the model does to an undo that comes without the barrier. */
static void control_without_a_barrier_an_orphan_stays(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->newest_first = true;
    works_again(factory, "other");
    world->stopped = true;
    world->on_wait = clog_on_wait;
    world->cancel_at = world->sends + 1;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    world->send_room = -1;
    factory->link.barrier = false; /* break it on purpose */
    assert_no(dlock_acquire(factory, &lock, "other", &(dlock_options){.wait_ms = 10}), &lock,
              DLOCK_UNREACHABLE);
    server_goes_on(world);
    world_sleep(world, 1);
    world_close(world, factory);
}

static void a_grant_is_dated_before_its_send_to_the_millisecond(void **state)
{
    static const struct {
        int64_t expiry_ms;
        int64_t delay_ms;
        int64_t left_ms; /* 0 = too late */
    } cases[] = {
        {100, 0, 97},  {100, 1, 96},  {100, 96, 1},      {100, 97, 0},        {100, 98, 0},
        {3, 0, 1},     {3, 1, 0},     {3, 2, 0},         {1000, 987, 1},      {1000, 988, 0},
        {199, 195, 1}, {200, 0, 196}, {30000, 0, 29698}, {30000, 999, 28699},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = {.expiry_ms = cases[i].expiry_ms};
        world_fault(world, FAULT_DELAY, DLOCKI_ASK)->delay_ms = cases[i].delay_ms;
        if (cases[i].left_ms > 0) {
            assert_yes(dlock_acquire(factory, &lock, "k", &options), &lock);
            assert_int_equal(dlock_remaining_ms(&lock), cases[i].left_ms);
            world_sleep(world, cases[i].left_ms - 1);
            assert_true(dlock_is_acquired(&lock));
            world_sleep(world, 1);
            assert_false(dlock_is_acquired(&lock));
        } else {
            assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_TIMEOUT);
            assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
            assert_int_equal(world_key_count(world), 0);
        }
        world_close_clean(world, factory);
    }
}

static void a_late_grant_is_undone_and_the_next_try_has_its_own_owner(void **state)
{
    static const dlock_options twice = {.expiry_ms = 100, .retry_count = 1};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_DELAY, DLOCKI_ASK)->delay_ms = 98;
    assert_yes(dlock_acquire(factory, &lock, "k", &twice), &lock);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 1);
    assert_string_not_equal(world_nth(world, DLOCKI_ASK, 0)->owner,
                            world_nth(world, DLOCKI_ASK, 1)->owner);
    assert_int_equal(dlock_remaining_ms(&lock), 97);
    world_close_clean(world, factory);
}

/* A round trip longer than the lease: an answer after its end says nothing, so nobody waits for
 * it, whatever command_timeout_ms says. */
static void no_answer_is_awaited_past_the_expiry(void **state)
{
    static const dlock_config patient = {.command_timeout_ms = 60000};
    static const dlock_options options = {.expiry_ms = 100};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, &patient);
    dlock_lock lock = DLOCK_INIT;
    int64_t began;
    (void)state;
    world_fault(world, FAULT_DELAY, DLOCKI_ASK)->delay_ms = 5000;
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - WORLD_START, 100);
    works_again(factory, "k");
    world_fault(world, FAULT_DELAY, DLOCKI_EXTEND)->delay_ms = 5000;
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    began = world->now;
    assert_yes(dlock_extend(&lock, 50), &lock); /* sent again once, on a new connection */
    assert_int_equal(world->now - began, 50);
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

/* The exchange of a7, cancelled at its n-th wait; false: it was over before. */
static bool cancelled_at(int n, enum fault_kind kind, int command, bool held)
{
    static const dlock_config config = {.client_name = "me", .password = "secret"};
    static const dlock_options options = {.expiry_ms = 60000, .retry_count = 30, .wait_ms = 8000};
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    int64_t began;
    bool cancelled;
    world->url = "redis://model:6379/2";
    world->password = "secret";
    world->latency_ms = 5;
    factory = world_open(world, &config);
    if (kind != FAULT_STOP) {
        world_fault(world, kind, command)->bytes = 3;
    }
    if (held) {
        model_set(world, 2, "k", 1, "somebody else", 600);
    }
    world->on_wait = cancel_on_wait;
    world->lock = &lock;
    world->cancel_at = n;
    began = world->now;
    cancelled = !dlock_acquire(factory, &lock, "k", &options);
    if (cancelled && world->waits >= n) {
        assert_code(&lock, DLOCK_CANCELLED);
        assert_false(dlock_is_acquired(&lock));
        assert_int_equal(lock._verb, DLOCKI_NO_VERB);
        assert_true(world->now - began <= 8000);
        world_sleep(world, held ? 600 : 0);
    } else if (!cancelled) {
        assert_yes(dlock_release(&lock), &lock);
    }
    world->password = "secret";
    world_close_clean(world, factory);
    return world->waits >= n && cancelled;
}

static void cancel_at_any_step_leaves_nothing(void **state)
{
    static const struct {
        enum fault_kind kind;
        int command;
        bool held;
        int least; /* waits that the exchange takes */
    } cases[] = {
        {FAULT_STOP, 0, false, 2},
        {FAULT_STOP, 0, true, 6},
        {FAULT_DROP_REPLY, DLOCKI_ASK, false, 6},
        {FAULT_CLOSE_AFTER, DLOCKI_ASK, false, 5},
        {FAULT_CLOSE_BEFORE, DLOCKI_ASK, true, 8},
        {FAULT_CUT_REPLY, DLOCKI_ASK, false, 5},
        {FAULT_CLOSE_BEFORE, DLOCKI_AUTH, false, 5},
        {FAULT_CLOSE_AFTER, DLOCKI_SELECT, false, 5},
        {FAULT_PIECES, DLOCKI_ASK, false, 2},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = 1;
        while (cancelled_at(n, cases[i].kind, cases[i].command, cases[i].held)) {
            n++;
        }
        assert_true(n > cases[i].least);
    }
}

static void cancel_is_answered_at_once_and_the_connection_stays(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    works_again(factory, "k");
    world->on_wait = cancel_on_wait;
    world->lock = &lock;
    world->cancel_at = world->waits + 1;
    world_fault(world, FAULT_DELAY, DLOCKI_ASK)->delay_ms = 500;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_CANCELLED);
    assert_int_equal(world->now, WORLD_START);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 1)->result, 1);
    world_sleep(world, 600);
    works_again(factory, "k");
    assert_int_equal(world->connects, 1);
    world_close_clean(world, factory);
}

static void cancel_with_nothing_pending_is_not_remembered(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    dlock_cancel(&lock);
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    dlock_cancel(&lock);
    assert_yes(dlock_extend(&lock, 0), &lock);
    dlock_cancel(&lock);
    assert_yes(dlock_release(&lock), &lock);
    dlock_cancel(&lock);
    works_again(factory, "k");
    world_close_clean(world, factory);
}

/* Release and extend are bounded anyway. */
static void cancel_does_not_end_a_release(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    world->on_wait = cancel_on_wait;
    world->lock = &lock;
    world->cancel_at = world->waits + 1;
    world_fault(world, FAULT_DELAY, DLOCKI_EXTEND)->delay_ms = 100;
    assert_yes(dlock_extend(&lock, 0), &lock);
    world->cancel_at = world->waits + 1;
    world_fault(world, FAULT_DELAY, DLOCKI_GIVE_BACK)->delay_ms = 100;
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

static void wait_ms_ends_on_time_and_the_undo_goes_on(void **state)
{
    static const dlock_options options = {.expiry_ms = 60000, .wait_ms = 300};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->stopped = true;
    world_at(world, 700, server_goes_on);
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - WORLD_START, 300);
    world_sleep(world, 500);
    assert_int_equal(world_nth(world, DLOCKI_ASK, 0)->result, 1);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
    assert_int_equal(world_key_count(world), 0);
    world_close_clean(world, factory);
}

static void close_is_bounded_while_an_undo_is_due(void **state)
{
    static const dlock_options options = {.expiry_ms = 60000, .wait_ms = 300};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->stopped = true;
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    world_close(world, factory);
    server_goes_on(world);
    world_sleep(world, 1);
    assert_int_equal(world_key_count(world), 0);
}

static void a_callers_bound_does_not_close_the_connection(void **state)
{
    static const dlock_options options = {.expiry_ms = 10000, .wait_ms = 100};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_DELAY, DLOCKI_ASK)->delay_ms = 500;
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - WORLD_START, 100);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->at - WORLD_START, 100);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->socket, 1);
    assert_int_equal(world->open_sockets, 1);
    /* The next call's answer comes behind the two that are still awaited. */
    works_again(factory, "k");
    assert_int_equal(world->now - WORLD_START, 500);
    assert_int_equal(world->connects, 1);
    assert_int_equal(world_seen(world, DLOCKI_PING), 0);
    world_close_clean(world, factory);
}

/* A connection that owes an answer to a command which is overdue gets nothing new. */
static void an_overdue_connection_gets_no_new_command(void **state)
{
    static const dlock_options options = {.expiry_ms = 10000, .wait_ms = 100};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_MUTE, DLOCKI_ASK);
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    world_sleep(world, 5000);
    works_again(factory, "k");
    assert_int_equal(world_seen(world, DLOCKI_ASK), 2);
    assert_int_equal(world_nth(world, DLOCKI_ASK, 1)->socket, 2);
    assert_int_equal(world_seen(world, DLOCKI_PING), 1);
    world_close_clean(world, factory);
}

/* What has not left when its connection is given up must not leave then: its caller asks again
 * elsewhere, and would not undo it here. */
static void an_overdue_connection_sends_no_ask_that_had_not_left(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock locks[3];
    (void)state;
    memset(locks, 0, sizeof locks);
    works_again(factory, "other");
    world_fault(world, FAULT_MUTE, DLOCKI_ASK);
    assert_true(call_acquire(factory, &locks[0], "a", &no_wait));
    world_sleep(world, 600);
    world->send_room = 0;
    assert_true(call_acquire(factory, &locks[1], "b", &no_wait));
    world_sleep(world, 500);
    world->send_room = -1;
    assert_true(call_acquire(factory, &locks[2], "c", &no_wait));
    assert_false(call_finish(world, factory, &locks[0]));
    assert_true(call_finish(world, factory, &locks[1]));
    assert_true(call_finish(world, factory, &locks[2]));
    for (int i = 0; i < world->log_count; i++) {
        assert_true(world->log[i].socket != 1 ||
                    strcmp(world->log[i].owner, dlock_owner(&locks[1])) != 0);
    }
    assert_string_equal(world_holder(world, "a"), "");
    world_close_clean(world, factory);
}

/* Half of an ask was sent, nobody calls until its lease must be over, then the rest leaves with the
 * farewell: a lease begins that late. It must not, or its undo must follow. */
static void an_ask_that_was_half_sent_is_not_finished_without_its_undo(void **state)
{
    static const dlock_options brief = {.expiry_ms = 200, .wait_ms = 100};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    works_again(factory, "k");
    world->send_room = 60;
    assert_no(dlock_acquire(factory, &lock, "k", &brief), &lock, DLOCK_UNREACHABLE);
    world->send_room = -1;
    world_sleep(world, 5000);
    works_again(factory, "other");
    assert_string_equal(world_holder(world, "k"), "");
    world_close_clean(world, factory);
}

/* Only the oldest command was too slow; the others ask again, same owner, no attempt used. */
static void a_command_behind_an_overdue_one_is_asked_again(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock first = DLOCK_INIT;
    dlock_lock second = DLOCK_INIT;
    (void)state;
    works_again(factory, "other");
    world->stopped = true;
    assert_true(call_acquire(factory, &first, "a", &no_wait));
    world_sleep(world, 600);
    assert_true(call_acquire(factory, &second, "b", &no_wait));
    world_sleep(world, 300);
    world_at(world, 200, server_goes_on);
    assert_false(call_finish(world, factory, &first));
    assert_code(&first, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - WORLD_START, 1000);
    assert_true(call_finish(world, factory, &second));
    assert_int_equal(world->now - WORLD_START, 1100);
    assert_string_equal(dlock_owner(&second), world_holder(world, "b"));
    assert_int_equal(dlock_remaining_ms(&second), full(10000));
    assert_string_equal(world_holder(world, "a"), "");
    assert_yes(dlock_release(&second), &second);
    world_close_clean(world, factory);
}

static void attempts_pauses_and_bounds_are_exact(void **state)
{
    static const struct {
        int32_t count, delay, jitter;
        int64_t wait;
        int asks;
        int64_t took;
        int code;
    } cases[] = {
        {0, 0, 0, 0, 1, 0, DLOCK_BUSY},
        {0, 70, 0, 0, 1, 0, DLOCK_BUSY},
        {1, 70, 0, 0, 2, 70, DLOCK_BUSY},
        {4, 100, 0, 0, 5, 400, DLOCK_BUSY},
        {4, 100, 0, 1000, 5, 400, DLOCK_BUSY},
        {4, 100, 0, 350, 4, 350, DLOCK_TIMEOUT},
        {4, 100, 0, 50, 1, 50, DLOCK_TIMEOUT},
        {0, 100, 0, 350, 4, 350, DLOCK_TIMEOUT},
        {0, 100, 0, 1, 1, 1, DLOCK_TIMEOUT},
        {DLOCK_FOREVER, 100, 0, 950, 10, 950, DLOCK_TIMEOUT},
        {4, 100, 0, DLOCK_FOREVER, 5, 400, DLOCK_BUSY},
        {2, INT32_MAX, 0, 700, 1, 700, DLOCK_TIMEOUT},
        {2, 1, INT32_MAX, 10, -1, 10, DLOCK_TIMEOUT},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = {.expiry_ms = 10000,
                                 .retry_count = cases[i].count,
                                 .retry_delay_ms = cases[i].delay,
                                 .retry_jitter_ms = cases[i].jitter,
                                 .wait_ms = cases[i].wait,
                                 .no_queue = true};
        world_hold(world, "k", INT64_C(10000000000));
        assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, cases[i].code);
        assert_int_equal(world->now - WORLD_START, cases[i].took);
        if (cases[i].asks >= 0) {
            assert_int_equal(world_seen(world, DLOCKI_ASK), cases[i].asks);
        }
        assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 0);
        world_delete(world, "k");
        world_close_clean(world, factory);
    }
}

/* The pauses between the first `count` asks that the server saw. */
static void pauses_are(const struct world *world, int count, int64_t least, int64_t most,
                       bool spread)
{
    int64_t shortest = INT64_MAX;
    int64_t longest = 0;
    for (int i = 1; i < count; i++) {
        int64_t pause =
            world_nth(world, DLOCKI_ASK, i)->at - world_nth(world, DLOCKI_ASK, i - 1)->at;
        assert_in_range(pause, least, most);
        shortest = dlocki_least(shortest, pause);
        longest = dlocki_most(longest, pause);
    }
    if (spread) { /* they reach both ends, nearly */
        assert_true(shortest < least + (most - least) / 10);
        assert_true(longest > most - (most - least) / 10);
    }
}

static void pauses_are_jittered_within_their_bounds(void **state)
{
    static const struct {
        int32_t delay, jitter;
        int64_t least, most;
    } cases[] = {{0, 0, 50, 250}, {100, 0, 100, 100}, {100, 60, 100, 160}, {0, 100, 50, 350}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = {.retry_count = 300,
                                 .no_queue = true,
                                 .retry_delay_ms = cases[i].delay,
                                 .retry_jitter_ms = cases[i].jitter};
        world_hold(world, "k", 1000000);
        assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_BUSY);
        pauses_are(world, 301, cases[i].least, cases[i].most,
                   cases[i].jitter > 0 || cases[i].delay == 0);
        world_delete(world, "k");
        world_close_clean(world, factory);
    }
}

static void nobody_sleeps_past_the_end_of_the_holders_lease(void **state)
{
    (void)state;
    for (int64_t lease = 1; lease < 3000; lease = lease * 2 + 7) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = {.retry_count = 1, .retry_delay_ms = 5000, .retry_jitter_ms = 900};
        world_hold(world, "k", lease);
        assert_yes(dlock_acquire(factory, &lock, "k", &options), &lock);
        assert_int_equal(world->now - WORLD_START, lease + 1);
        world_close_clean(world, factory);
    }
}

static void a_lease_without_end_bounds_no_pause(void **state)
{
    static const dlock_options options = {.retry_count = 1, .retry_delay_ms = 300};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_hold(world, "k", DLOCKI_NEVER);
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_BUSY);
    assert_int_equal(world->now - WORLD_START, 300);
    world_delete(world, "k");
    world_close_clean(world, factory);
}

static void forever_waits_until_it_is_free(void **state)
{
    static const dlock_options endless[] = {
        {.wait_ms = DLOCK_FOREVER},
        {.retry_count = DLOCK_FOREVER},
        {.wait_ms = DLOCK_FOREVER, .retry_count = DLOCK_FOREVER}};
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        world_hold(world, "k", 3600000);
        assert_yes(dlock_acquire(factory, &lock, "k", &endless[i]), &lock);
        assert_int_equal(world->now - WORLD_START, 3600001);
        assert_true(world->served > 3600000 / 250 && world->served < 3600000 / 50);
        assert_int_equal(factory->debt_count, 0);
        world_close_clean(world, factory);
    }
}

static void many_keys_leave_nothing_behind(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    char key[32];
    (void)state;
    world->latency_ms = 1;
    for (int i = 0; i < 100000; i++) {
        (void)snprintf(key, sizeof key, "key:%d", i);
        if (i % 1000 == 0) {
            world_fault(world, FAULT_CLOSE_AFTER, ANY_COMMAND);
        }
        assert_yes(dlock_acquire(factory, &lock, key, NULL), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    assert_int_equal(factory->debt_count, 0);
    assert_null(factory->held.first);
    assert_null(factory->pending.first);
    world_close_clean(world, factory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_silent_server_is_unreachable_and_undone_behind_the_command),
        cmocka_unit_test(two_lost_replies_are_unreachable_and_undone_in_the_next_call),
        cmocka_unit_test(a_lost_reply_is_undone_by_close),
        cmocka_unit_test(no_fence_too_is_undone),
        cmocka_unit_test(a_lost_reply_is_asked_again_by_the_same_owner),
        cmocka_unit_test(a_request_that_was_not_executed_is_dated_by_what_the_server_says),
        cmocka_unit_test(after_a_cut_a_plain_set_becomes_a_question_that_can_tell),
        cmocka_unit_test(the_next_attempt_draws_a_new_owner),
        cmocka_unit_test(asked_again_and_held_by_another_is_busy),
        cmocka_unit_test(a_stopped_server_leaves_no_orphan),
        cmocka_unit_test(control_without_a_barrier_an_orphan_stays),
        cmocka_unit_test(a_grant_is_dated_before_its_send_to_the_millisecond),
        cmocka_unit_test(a_late_grant_is_undone_and_the_next_try_has_its_own_owner),
        cmocka_unit_test(no_answer_is_awaited_past_the_expiry),
        cmocka_unit_test(cancel_at_any_step_leaves_nothing),
        cmocka_unit_test(cancel_is_answered_at_once_and_the_connection_stays),
        cmocka_unit_test(cancel_with_nothing_pending_is_not_remembered),
        cmocka_unit_test(cancel_does_not_end_a_release),
        cmocka_unit_test(wait_ms_ends_on_time_and_the_undo_goes_on),
        cmocka_unit_test(close_is_bounded_while_an_undo_is_due),
        cmocka_unit_test(a_callers_bound_does_not_close_the_connection),
        cmocka_unit_test(an_overdue_connection_gets_no_new_command),
        cmocka_unit_test(an_overdue_connection_sends_no_ask_that_had_not_left),
        cmocka_unit_test(an_ask_that_was_half_sent_is_not_finished_without_its_undo),
        cmocka_unit_test(a_command_behind_an_overdue_one_is_asked_again),
        cmocka_unit_test(attempts_pauses_and_bounds_are_exact),
        cmocka_unit_test(pauses_are_jittered_within_their_bounds),
        cmocka_unit_test(nobody_sleeps_past_the_end_of_the_holders_lease),
        cmocka_unit_test(a_lease_without_end_bounds_no_pause),
        cmocka_unit_test(forever_waits_until_it_is_free),
        cmocka_unit_test(many_keys_leave_nothing_behind),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
