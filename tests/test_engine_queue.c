/* Whole calls on a scripted server that stand in line: what ends them early at every step, what
 * breaks under them at every moment, and who is served next. */
#include "tests/crowd.h"
#include "tests/scripted.h"

static const dlock_options waits = {.expiry_ms = 10000, .wait_ms = 60000};

/* ----------------------------------------------------------- interrupted at every step: A7, A8 */

/* What becomes of the call that is interrupted. In all of them a ghost holds the lock from the
 * beginning to RELEASED_AT, but where it is free. */
enum scenario { FREE, LINING_UP, IN_LINE, CONFIRMING, INBOX_BREAKS, COMMANDS_BREAK, SCENARIOS };

enum { LATENCY = 3, RELEASED_AT = 60, BROKEN_AT = 35, STALL = 400, WAIT = 300, BOUND = 90 };

/* At which call of the kernel something happens to the process that makes it. */
static struct interruption {
    int calls;
    int at;      /* 0 = never */
    int64_t due; /* or at that instant; 0 = never */
    int64_t happened_at;
    bool stalls;
    bool pending; /* the call was, when it happened */
    struct call *call;
} interruption;

static void interrupt_now(struct world *world)
{
    interruption.happened_at = world->now;
    interruption.pending = !call_is_over(&interruption.call->lock);
    if (interruption.stalls) {
        world_sleep(world, STALL);
    } else {
        dlock_cancel(&interruption.call->lock);
    }
}

static void interrupt_at(void *world)
{
    if (interruption.call != NULL && ++interruption.calls == interruption.at) {
        interrupt_now((struct world *)world);
    }
}

static int interrupted_connect(void *world, const dlocki_address *address)
{
    interrupt_at(world);
    return fake_connect(world, address);
}

static int interrupted_connected(void *world, int fd)
{
    interrupt_at(world);
    return fake_connected(world, fd);
}

static long interrupted_send(void *world, int fd, const void *bytes, size_t count)
{
    interrupt_at(world);
    return fake_send(world, fd, bytes, count);
}

static long interrupted_receive(void *world, int fd, void *bytes, size_t count)
{
    long got = fake_receive(world, fd, bytes, count);
    interrupt_at(world);
    return got;
}

static int interrupted_wait(void *world, struct pollfd *fds, int count, int timeout_ms)
{
    interrupt_at(world);
    return fake_wait(world, fds, count, timeout_ms);
}

static const dlocki_kernel interrupted = {
    fake_now,
    fake_random,
    fake_pid,
    fake_wake_fd,
    fake_resolve,
    interrupted_connect,
    interrupted_connected,
    interrupted_send,
    interrupted_receive,
    fake_close,
    interrupted_wait,
    fake_set_open,
    fake_set_watch,
    fake_timer_open,
    fake_timer_set,
};

static void break_inbox(struct world *world)
{
    world_cut(world, ON_INBOX, the_crowd.factories[0]);
}

static void break_commands(struct world *world)
{
    world_cut(world, ON_COMMANDS, the_crowd.factories[0]);
}

/* A victim, which lines up at once, and one behind it, of another program. */
static struct crowd *scene_begin(enum scenario scenario, struct call **victim, struct call **next,
                                 const dlock_options *options)
{
    struct crowd *crowd = crowd_begin(0, LATENCY);
    crowd_join(crowd, &interrupted, NULL);
    crowd_join(crowd, &fake_kernel, NULL);
    if (scenario != FREE) {
        ghost_hold(crowd->world, "k", 1000000);
        world_at(crowd->world, RELEASED_AT, ghost_release);
    }
    *victim = crowd_call(crowd, 0);
    *next = crowd_call(crowd, 1);
    (*victim)->on_done = crowd_pass_on;
    (*next)->on_done = crowd_pass_on;
    if (scenario == IN_LINE || scenario == CONFIRMING) {
        crowd_start(*victim, "k", options);
        crowd_run(crowd, 30); /* and only what comes then is counted */
        interruption.call = *victim;
    } else {
        interruption.call = *victim;
        crowd_start(*victim, "k", options);
    }
    if (scenario == CONFIRMING) {
        world_at(crowd->world, RELEASED_AT - 30 - 1, break_commands); /* and with it the anchor */
    } else if (scenario == INBOX_BREAKS) {
        world_at(crowd->world, BROKEN_AT, break_inbox);
    } else if (scenario == COMMANDS_BREAK) {
        struct fault *fault = world_fault(crowd->world, FAULT_CLOSE_AFTER, DLOCKI_ASK);
        fault->socket = 1; /* the reply that names its place is lost */
        fault->skip = 1;
    }
    return crowd;
}

/* The victim's end, and that of who stands behind it. */
static void scene_end(struct crowd *crowd, const struct call *victim, const struct call *next)
{
    assert_int_equal(victim->told, 1);
    assert_int_equal(next->told, 1);
    assert_yes(next->answer, &next->lock);
    assert_int_equal(world_ticket_count(crowd->world), 0);
    assert_string_equal(world_holder(crowd->world, "k"), "");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(crowd->factories[i]->debt_count, 0);
        assert_int_equal(crowd->factories[i]->listeners, 0);
        assert_int_equal(crowd->factories[i]->reserved, 0);
    }
    crowd_close(crowd);
}

/* Nobody is kept waiting by what was given up. */
static void served_in_time(const struct crowd *crowd, const struct call *next, int64_t from)
{
    (void)crowd;
    if (next->told_at - from > BOUND) {
        fail_msg("the next in line was served %lld ms after it could have been",
                 (long long)(next->told_at - from));
    }
}

static void run_scene(struct crowd *crowd, struct call *next)
{
    crowd_run(crowd, 1);
    crowd_start(next, "k", &waits);
    if (interruption.due != 0) {
        crowd_run(crowd, interruption.due - crowd->world->now);
        interrupt_now(crowd->world);
    }
    crowd_until(crowd, 2);
    crowd_run(crowd, 4 * BOUND);
}

static void cancel_once(enum scenario scenario, int at, int64_t due_ms, bool *beyond)
{
    struct call *victim;
    struct call *next;
    struct crowd *crowd;
    interruption = (struct interruption){.at = at};
    crowd = scene_begin(scenario, &victim, &next, &waits);
    interruption.due = due_ms > 0 ? crowd->world->now + due_ms : 0;
    run_scene(crowd, next);
    *beyond = interruption.happened_at == 0 || !interruption.pending;
    if (*beyond) {
        assert_yes(victim->answer, &victim->lock);
    } else {
        assert_no(victim->answer, &victim->lock, DLOCK_CANCELLED);
        assert_int_equal(victim->told_at, interruption.happened_at);
    }
    served_in_time(crowd, next, dlocki_most(victim->told_at, WORLD_START + RELEASED_AT));
    scene_end(crowd, victim, next);
}

static void a_cancel_at_every_call_of_the_kernel_is_the_end_at_once(void **state)
{
    int all = 0;
    (void)state;
    for (int scenario = 0; scenario < SCENARIOS; scenario++) {
        bool beyond = false;
        int at = 0;
        while (!beyond) {
            cancel_once((enum scenario)scenario, ++at, 0, &beyond);
        }
        assert_true(at > 2);
        all += at;
    }
    assert_true(all > 80);
}

static void a_cancel_at_every_millisecond_is_the_end_at_once(void **state)
{
    (void)state;
    for (int scenario = 0; scenario < SCENARIOS; scenario++) {
        bool beyond = false;
        int64_t at = 0;
        while (!beyond) {
            cancel_once((enum scenario)scenario, 0, ++at + 1, &beyond);
        }
        assert_true(at >= 4);
    }
}

/* wait_ms ends within a call of the kernel that takes long, as where the machine is busy. What came
 * meanwhile is looked at first: then it may be ours all the same. */
static void a_stall_at_every_call_of_the_kernel_ends_the_call_with_it(void **state)
{
    static const dlock_options options = {.expiry_ms = 10000, .wait_ms = WAIT};
    int answers[2] = {0, 0};
    (void)state;
    for (int scenario = 0; scenario < SCENARIOS; scenario++) {
        bool beyond = false;
        for (int at = 1; !beyond; at++) {
            struct call *victim;
            struct call *next;
            struct crowd *crowd;
            interruption = (struct interruption){.at = at, .stalls = true};
            crowd = scene_begin((enum scenario)scenario, &victim, &next, &options);
            run_scene(crowd, next);
            beyond = interruption.happened_at == 0 || !interruption.pending;
            assert_true(victim->told_at <=
                        dlocki_most(WORLD_START + WAIT, interruption.happened_at + STALL));
            answers[victim->answer]++;
            if (!victim->answer) {
                int code = dlock_why(&victim->lock)->code;
                assert_true(code == DLOCK_TIMEOUT || code == DLOCK_UNREACHABLE);
                assert_true(victim->told_at >= WORLD_START + WAIT);
            }
            /* One thread is everybody here: while it stalls, nobody is served. */
            served_in_time(crowd, next,
                           dlocki_most(interruption.happened_at + STALL, victim->told_at));
            scene_end(crowd, victim, next);
        }
    }
    assert_true(answers[false] > 10 && answers[true] > 10);
}

/* Which of the two it is: TIMEOUT only where the server said that somebody holds it, and nothing
 * that was asked since is unanswered. */
static int code_at(enum scenario scenario, int64_t wait)
{
    bool told = wait >= 2 * LATENCY; /* what comes at the last moment counts */
    bool asks = wait > 4 * LATENCY && wait < 6 * LATENCY; /* again, now that the inbox stands */
    switch (scenario) {
    case FREE:
        return DLOCK_UNREACHABLE;
    case LINING_UP:
    case IN_LINE:
        return told && !asks ? DLOCK_TIMEOUT : DLOCK_UNREACHABLE;
    default:
        return 0; /* either */
    }
}

static void wait_ms_of_every_length_ends_on_time(void **state)
{
    (void)state;
    for (int scenario = 0; scenario < SCENARIOS; scenario++) {
        bool beyond = false;
        for (int64_t wait = 1; !beyond; wait++) {
            dlock_options options = {.expiry_ms = 10000, .wait_ms = wait};
            struct call *victim;
            struct call *next;
            struct crowd *crowd;
            interruption = (struct interruption){0};
            crowd = scene_begin((enum scenario)scenario, &victim, &next, &options);
            run_scene(crowd, next);
            beyond = victim->answer;
            if (!beyond) {
                int code = dlock_why(&victim->lock)->code;
                int expected = code_at((enum scenario)scenario, wait);
                assert_int_equal(victim->told_at, WORLD_START + wait);
                assert_true(code == DLOCK_TIMEOUT || code == DLOCK_UNREACHABLE);
                if (expected != 0) {
                    assert_code(&victim->lock, expected);
                }
            } else { /* was it the scene that it is called? */
                assert_int_equal(world_seen(crowd->world, DLOCKI_EXTEND), scenario == CONFIRMING);
                assert_int_equal(world_told(crowd->world, 'g', 0) != NULL, scenario != FREE);
            }
            served_in_time(crowd, next, dlocki_most(victim->told_at, WORLD_START + RELEASED_AT));
            scene_end(crowd, victim, next);
        }
    }
}

/* ------------------------------------------------------------- an inbox that breaks: F1, F2, F3 */

/* Where the ticket of a call stands in its line, counted from 1; 0 = it does not. */
static size_t place_of(struct world *world, const struct call *call, double *score)
{
    const struct model_member *ticket;
    for (size_t place = 1; (ticket = world_ticket(world, "k", place)) != NULL; place++) {
        if (memcmp(ticket->bytes, call->lock._owner, DLOCKI_OWNER_LENGTH) == 0) {
            *score = ticket->score;
            return place;
        }
    }
    return 0;
}

static void an_inbox_lost_at_every_moment_keeps_the_place(void **state)
{
    (void)state;
    for (int64_t at = 1; at <= 60; at++) {
        struct crowd *crowd = crowd_begin(2, LATENCY);
        struct call *first = crowd_call(crowd, 0);
        struct call *second = crowd_call(crowd, 1);
        double before[2] = {0, 0};
        double after[2] = {0, 0};
        size_t place;
        first->on_done = crowd_pass_on;
        second->on_done = crowd_pass_on;
        ghost_hold(crowd->world, "k", 1000000);
        world_at(crowd->world, at, world_cut_inbox);
        crowd_start(first, "k", &waits);
        crowd_run(crowd, 4);
        crowd_start(second, "k", &waits);
        crowd_run(crowd, at - 4);
        if (at > 30) {
            assert_int_equal(place_of(crowd->world, first, &before[0]), 1);
            assert_int_equal(place_of(crowd->world, second, &before[1]), 2);
        }
        crowd_run(crowd, 1500);
        place = place_of(crowd->world, first, &after[0]);
        assert_int_equal(place + place_of(crowd->world, second, &after[1]), 3);
        if (at > 30) {
            assert_true(before[0] == after[0] && before[1] == after[1]);
        }
        assert_int_equal(world_inbox_count(crowd->world), 2);
        ghost_release(crowd->world);
        crowd_run(crowd, 6 * LATENCY);
        assert_int_equal(first->order, (int)place);
        assert_int_equal(second->order, 3 - (int)place);
        crowd_close(crowd);
    }
}

/* Nobody can be told then: the lock is free, and who waited asks when the inbox stands again. */
static void a_release_while_the_inbox_is_lost_is_found_by_asking(void **state)
{
    (void)state;
    for (int64_t at = 1; at <= 60; at++) {
        for (int64_t later = 0; later <= 40; later += 8) {
            struct crowd *crowd = crowd_begin(1, LATENCY);
            struct call *call;
            ghost_hold(crowd->world, "k", 1000000);
            world_at(crowd->world, at, world_cut_inbox);
            world_at(crowd->world, at + later, ghost_release);
            call = crowd_acquire(crowd, 0, "k", &waits);
            crowd_until(crowd, 1);
            assert_yes(call->answer, &call->lock);
            assert_true(call->told_at - WORLD_START <= at + later + 300);
            assert_int_equal(world_ticket_count(crowd->world), 0);
            crowd_close(crowd);
        }
    }
}

static void a_grant_that_is_not_told_is_found_by_the_next_ask(void **state)
{
    static const dlock_options options = {.expiry_ms = 5000, .wait_ms = 60000};
    (void)state;
    for (int64_t released = 1; released < 5200; released += 37) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct call *call;
        int64_t asked = 6 * LATENCY + 5000;
        ghost_hold(crowd->world, "k", 1000000);
        world_at(crowd->world, 30 + released, ghost_release);
        call = crowd_acquire(crowd, 0, "k", &options);
        crowd_run(crowd, 30);
        world_fault(crowd->world, FAULT_DROP_REPLY, A_MESSAGE);
        crowd_until(crowd, 1);
        assert_yes(call->answer, &call->lock);
        /* What is left of a lease that began long ago may be nothing: then it is taken anew. */
        assert_true(
            call->told_at - WORLD_START <= asked + 350 ||
            (30 + released >= asked - LATENCY && call->told_at - WORLD_START <= 2 * asked + 350));
        assert_int_equal(dlock_fence(&call->lock), world_counter(crowd->world, "k"));
        if (released > 200 && released < 4800) { /* the same lease, with the same fence */
            char told[128];
            (void)snprintf(told, sizeof told, "g %s %llu ", dlock_owner(&call->lock),
                           (unsigned long long)dlock_fence(&call->lock));
            assert_memory_equal(world_told(crowd->world, 'g', 0)->text, told, strlen(told));
            assert_int_equal(world_lease(crowd->world, "k"),
                             30 + released + 5000 - (crowd->world->now - WORLD_START));
        }
        crowd_run(crowd, 100);
        crowd_close(crowd);
    }
}

static void a_line_that_was_deleted_is_joined_again_with_the_old_place(void **state)
{
    static const dlock_options options = {.expiry_ms = 5000, .wait_ms = 60000};
    struct crowd *crowd = crowd_begin(2, LATENCY);
    struct world *world = crowd->world;
    struct call *first = crowd_call(crowd, 0);
    struct call *second = crowd_call(crowd, 1);
    double before = 0;
    double after = 0;
    (void)state;
    first->on_done = crowd_pass_on;
    ghost_hold(world, "k", 1000000);
    crowd_start(first, "k", &options);
    crowd_run(crowd, 30);
    crowd_start(second, "k", &options);
    crowd_run(crowd, 30);
    assert_int_equal(place_of(world, first, &before), 1);
    world_delete(world, "{k}:queue");
    assert_int_equal(world_ticket_count(world), 0);
    crowd_run(crowd, 5100);
    assert_int_equal(world_ticket_count(world), 2);
    assert_int_equal(place_of(world, first, &after), 1);
    assert_true(before == after);
    /* And if it is given back before anybody asked again: in by then. */
    world_delete(world, "{k}:queue");
    ghost_release(world);
    assert_string_equal(world_holder(world, "k"), "");
    crowd_until(crowd, 2);
    assert_yes(second->answer, &second->lock);
    assert_true(second->told_at - WORLD_START <= 60 + 5100 + 5100);
    crowd_close(crowd);
}

/* The server counts its inbox, but the process is stopped: what it is given lapses, the others go
 * on, and it does not believe it has the lock when it wakes. */
static void a_waiter_that_is_stopped_costs_one_lease_and_is_not_fooled(void **state)
{
    static const dlock_options options = {.expiry_ms = 2000, .wait_ms = 60000};
    (void)state;
    for (int64_t asleep = 100; asleep < 6000; asleep += 190) {
        struct crowd *crowd = crowd_begin(2, LATENCY);
        struct world *world = crowd->world;
        struct call *first = crowd_call(crowd, 0);
        struct call *second = crowd_call(crowd, 1);
        second->on_done = crowd_pass_on;
        ghost_hold(world, "k", 1000000);
        crowd_start(first, "k", &options);
        crowd_run(crowd, 30);
        crowd_start(second, "k", &options);
        crowd_run(crowd, 30);
        crowd->stopped[0] = true;
        ghost_release(world);
        assert_string_equal(world_holder(world, "k"), first->lock._owner);
        crowd_run(crowd, asleep);
        crowd->stopped[0] = false;
        crowd_finish(crowd, first);
        assert_yes(first->answer, &first->lock);
        assert_true(first->told_at - WORLD_START >= 60 + asleep);
        if (asleep < 1000) { /* in the first half of its lease: it holds what it was given */
            assert_int_equal(first->told_at - WORLD_START, 60 + asleep);
        } else if (asleep < 1900) {
            assert_int_equal(world_seen(world, DLOCKI_EXTEND), 1); /* it asks whether it does */
        }
        crowd_run(crowd, 100);
        crowd_release(first);
        crowd_finish(crowd, second);
        crowd_finish(crowd, first);
        assert_yes(second->answer, &second->lock);
        if (asleep > 4200) {
            assert_true(second->fence < first->fence);
            assert_true(second->told_at - WORLD_START >= 60 + 2000);
            assert_true(second->told_at - WORLD_START <= 60 + 2000 + 200);
        }
        crowd_close(crowd);
    }
}

/* Its ask was under way without a ticket when the inbox came to stand: it asks again at once. */
static void who_asked_before_the_inbox_stood_lines_up_at_once(void **state)
{
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct fault *fault = world_fault(crowd->world, FAULT_DELAY, DLOCKI_ASK);
    (void)state;
    fault->delay_ms = 30;
    fault->skip = 1;
    ghost_hold(crowd->world, "k", 1000000);
    crowd_acquire(crowd, 0, "k", &waits)->on_done = crowd_pass_on;
    crowd_acquire(crowd, 0, "k", &waits)->on_done = crowd_pass_on;
    crowd_run(crowd, 30 + 2 * LATENCY - 1);
    assert_int_equal(world_seen(crowd->world, DLOCKI_ASK), 2);
    assert_int_equal(world_inbox_count(crowd->world), 1);
    crowd_run(crowd, LATENCY + 1);
    assert_int_equal(world_ticket_count(crowd->world), 2);
    ghost_release(crowd->world);
    crowd_until(crowd, 2);
    assert_true(crowd->calls[0].answer && crowd->calls[1].answer);
    crowd_close(crowd);
}

/* Somebody waits for an inbox that never comes to stand. A free lock needs none. */
static void an_inbox_that_has_failed_holds_up_nobody(void **state)
{
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct call *call;
    struct call *other;
    int64_t began;
    (void)state;
    world_fault(crowd->world, FAULT_DEAF, DLOCKI_SUBSCRIBE)->times = 0;
    ghost_hold(crowd->world, "k", 1000000);
    call = crowd_acquire(crowd, 0, "k", &waits);
    crowd_run(crowd, 1500);
    assert_int_equal(world_seen(crowd->world, DLOCKI_SUBSCRIBE), 2);
    began = crowd->world->now;
    other = crowd_acquire(crowd, 0, "j", &waits);
    crowd_until(crowd, 1);
    assert_yes(other->answer, &other->lock);
    assert_in_range(other->told_at - began, 0, 2 * LATENCY);
    ghost_release(crowd->world);
    crowd_until(crowd, 2);
    assert_yes(call->answer, &call->lock);
    crowd_close(crowd);
}

static void a_silent_inbox_is_found_out_and_replaced(void **state)
{
    static const dlock_options options = {.expiry_ms = 5000, .wait_ms = 60000};
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    struct call *call;
    struct call *other;
    int64_t began;
    int pings = 0;
    (void)state;
    ghost_hold(world, "k", 1000000);
    ghost_hold(world, "j", 1000000);
    call = crowd_acquire(crowd, 0, "k", &options);
    crowd_run(crowd, 30);
    other = crowd_acquire(crowd, 0, "j", &options);
    crowd_run(crowd, 2000);
    world_fault(world, FAULT_DEAF, A_MESSAGE);
    ghost_release(world);
    crowd_until(crowd, 1);
    assert_yes(call->answer, &call->lock);
    crowd_run(crowd, 1300);
    assert_int_equal(world_seen(world, DLOCKI_SUBSCRIBE), 2);
    for (int i = 0; i < world->log_count; i++) {
        pings += world->log[i].kind == DLOCKI_PING && world->log[i].inbox;
    }
    assert_int_equal(pings, 1);
    began = world->now;
    ghost_release_key(world, "j");
    crowd_until(crowd, 2);
    assert_yes(other->answer, &other->lock);
    assert_true(other->told_at - began <= LATENCY);
    crowd_close(crowd);
}

static void while_no_inbox_can_be_had_it_is_asked_at_a_pace(void **state)
{
    (void)state;
    for (int64_t released = 100; released < 8000; released += 790) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct call *call;
        ghost_hold(crowd->world, "k", 1000000);
        call = crowd_acquire(crowd, 0, "k", &waits);
        crowd_run(crowd, 40);
        world_fault(crowd->world, FAULT_DEAF, DLOCKI_SUBSCRIBE)->times = 0;
        world_cut_inbox(crowd->world);
        crowd_run(crowd, released);
        assert_int_equal(world_inbox_count(crowd->world), 0);
        ghost_release(crowd->world);
        crowd_until(crowd, 1);
        assert_yes(call->answer, &call->lock);
        assert_true(call->told_at - WORLD_START <= 40 + released + 2300);
        assert_in_range(world_seen(crowd->world, DLOCKI_ASK), 3, 3 + (released + 2300) / 50);
        crowd_close(crowd);
    }
}

static void an_inbox_that_is_closed_at_once_is_not_hammered(void **state)
{
    static const dlock_options options = {.expiry_ms = 5000, .wait_ms = 10000};
    (void)state;
    for (int64_t released = 0; released <= 9000; released += 1000) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        struct fault *fault = world_fault(world, FAULT_CUT_REPLY, DLOCKI_SUBSCRIBE);
        struct call *call;
        int subscribed;
        fault->times = 0;
        fault->bytes = 1000; /* after all of it */
        ghost_hold(world, "k", 1000000);
        if (released > 0) {
            world_at(world, released, ghost_release);
        }
        call = crowd_acquire(crowd, 0, "k", &options);
        crowd_until(crowd, 1);
        subscribed = world_seen(world, DLOCKI_SUBSCRIBE);
        if (released == 0) {
            assert_no(call->answer, &call->lock, DLOCK_TIMEOUT);
            assert_int_equal(call->told_at - WORLD_START, 10000);
            assert_in_range(subscribed, 5, 14);
            assert_in_range(world_seen(world, DLOCKI_ASK), subscribed, 4 * subscribed);
            ghost_release(world);
        } else {
            assert_yes(call->answer, &call->lock);
            assert_true(call->told_at - WORLD_START <= released + 2100);
        }
        for (int i = 1; i < subscribed; i++) {
            const struct seen *one = world_nth(world, DLOCKI_SUBSCRIBE, i - 1);
            assert_true(world_nth(world, DLOCKI_SUBSCRIBE, i)->at - one->at >= 50);
        }
        crowd_close(crowd);
    }
}

/* A server that was stopped reads the newest connection first: what gives a place up comes only
 * behind an answer, so that the ask of an older connection cannot come after it. */
static void an_ask_that_a_stopped_server_finds_late_leaves_no_place(void **state)
{
    (void)state;
    for (int64_t at = 1; at <= 24; at++) {
        for (int64_t later = 100; later <= 2500; later += 800) {
            struct crowd *crowd = crowd_begin(1, LATENCY);
            struct world *world = crowd->world;
            struct call *call;
            ghost_hold(world, "k", 1000000);
            world->newest_first = true;
            world_at(world, at, server_stops);
            call = crowd_acquire(crowd, 0, "k", &waits);
            crowd_run(crowd, later);
            dlock_cancel(&call->lock);
            crowd_run(crowd, 2500);
            assert_no(call->answer, &call->lock, DLOCK_CANCELLED);
            assert_int_equal(call->told_at - WORLD_START, later);
            world->stopped = false;
            crowd_run(crowd, 4000);
            assert_int_equal(world_ticket_count(world), 0);
            assert_int_equal(crowd->factories[0]->debt_count, 0);
            ghost_release(world);
            assert_string_equal(world_holder(world, "k"), "");
            crowd_close(crowd);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cancel_at_every_call_of_the_kernel_is_the_end_at_once),
        cmocka_unit_test(a_cancel_at_every_millisecond_is_the_end_at_once),
        cmocka_unit_test(a_stall_at_every_call_of_the_kernel_ends_the_call_with_it),
        cmocka_unit_test(wait_ms_of_every_length_ends_on_time),
        cmocka_unit_test(an_inbox_lost_at_every_moment_keeps_the_place),
        cmocka_unit_test(a_release_while_the_inbox_is_lost_is_found_by_asking),
        cmocka_unit_test(a_grant_that_is_not_told_is_found_by_the_next_ask),
        cmocka_unit_test(a_line_that_was_deleted_is_joined_again_with_the_old_place),
        cmocka_unit_test(a_waiter_that_is_stopped_costs_one_lease_and_is_not_fooled),
        cmocka_unit_test(who_asked_before_the_inbox_stood_lines_up_at_once),
        cmocka_unit_test(an_inbox_that_has_failed_holds_up_nobody),
        cmocka_unit_test(a_silent_inbox_is_found_out_and_replaced),
        cmocka_unit_test(while_no_inbox_can_be_had_it_is_asked_at_a_pace),
        cmocka_unit_test(an_inbox_that_is_closed_at_once_is_not_hammered),
        cmocka_unit_test(an_ask_that_a_stopped_server_finds_late_leaves_no_place),
    };
    watchdog(300);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
