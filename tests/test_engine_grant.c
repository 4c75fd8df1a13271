/* Whole calls on a scripted server that are given a lock by somebody else's release: messages that
 * are lost, late, doubled, forged; until when such a lease lasts; and with which fence. */
#include "tests/crowd.h"
#include "tests/scripted.h"

enum { LATENCY = 3, ENDLESS = 100000000 };

static const dlock_options no_wait = {.expiry_ms = 10000};
static const dlock_options waits = {.expiry_ms = 10000, .wait_ms = 60000};
static const dlock_options waits_shortly = {.expiry_ms = 2000, .wait_ms = 60000};

/* One that waits for the ghost's "k", and stands in line. */
static struct call *in_line(struct crowd *crowd, int factory, const dlock_options *options)
{
    struct call *call = crowd_acquire(crowd, factory, "k", options);
    crowd_run(crowd, 30);
    return call;
}

/* It holds the lock as the server knows it, and gives it back, and nothing is left. */
static void ours_and_back(struct crowd *crowd, struct call *call)
{
    assert_int_equal(call->told, 1);
    assert_yes(call->answer, &call->lock);
    assert_string_equal(world_holder(crowd->world, "k"), dlock_owner(&call->lock));
    assert_true(dlock_fence(&call->lock) == world_counter(crowd->world, "k"));
    crowd_run(crowd, 50);
    crowd_release(call);
    crowd_finish(crowd, call);
    assert_yes(call->answer, &call->lock);
    assert_string_equal(world_holder(crowd->world, "k"), "");
    assert_null(world_ticket(crowd->world, "k", 1));
}

/* -------------------------------------------------------------------- what becomes of a message */

static void a_message_may_be_lost_late_doubled_or_cut(void **state)
{
    static const struct {
        enum fault_kind kind;
        int64_t delay_ms;
        int64_t within; /* of the release */
    } cases[] = {{FAULT_DROP_REPLY, 0, 2100}, {FAULT_DELAY, 300, 303},   {FAULT_DELAY, 900, 903},
                 {FAULT_DELAY, 1400, 1409},   {FAULT_DELAY, 5000, 2200}, {FAULT_TWICE, 0, 3},
                 {FAULT_TWICE, 40, 3},        {FAULT_TWICE, 3000, 3},    {FAULT_CUT_REPLY, 0, 400},
                 {FAULT_CLOSE_AFTER, 0, 400}, {FAULT_MUTE, 0, 2100},     {FAULT_DEAF, 0, 2100},
                 {FAULT_PIECES, 400, 403},    {FAULT_DRIP, 3, 600}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct crowd *crowd = crowd_begin(2, LATENCY);
        struct call *call;
        struct call *behind;
        struct fault *fault;
        int64_t began;
        ghost_hold(crowd->world, "k", ENDLESS);
        call = in_line(crowd, 0, &waits_shortly);
        behind = in_line(crowd, 1, &waits_shortly);
        fault = world_fault(crowd->world, cases[i].kind, A_MESSAGE);
        fault->delay_ms = cases[i].delay_ms;
        fault->bytes = 20;
        began = crowd->world->now;
        ghost_release(crowd->world);
        crowd_finish(crowd, call);
        assert_yes(call->answer, &call->lock);
        if (call->told_at - began > cases[i].within) {
            fail_msg("fault %d, case %d: %lld ms", (int)cases[i].kind, (int)i,
                     (long long)(call->told_at - began));
        }
        assert_int_equal(behind->told, 0);
        crowd_run(crowd, 20);
        if (dlock_is_acquired(&call->lock)) { /* of a lease that was found late little is left */
            crowd_release(call);
        } else {
            assert_int_equal(call->lost, 1);
        }
        crowd_finish(crowd, behind);
        assert_true(behind->fence > call->fence);
        behind->told = 1;
        ours_and_back(crowd, behind);
        crowd_run(crowd, 5000); /* what comes twice comes now */
        crowd_close(crowd);
    }
}

/* The place in line is asked for while the lock is given away: the message may overtake the reply,
 * or the other way round. */
static void held_may_arrive_behind_the_grant(void **state)
{
    static const int64_t delays[] = {0, 1, 7, 20, 50, 300};
    (void)state;
    for (size_t i = 0; i < sizeof delays / sizeof *delays; i++) {
        for (int64_t at = 1; at < 80; at++) {
            struct crowd *crowd = crowd_begin(1, LATENCY);
            struct world *world = crowd->world;
            struct fault *fault = world_fault(world, FAULT_DELAY, DLOCKI_ASK);
            struct call *call;
            fault->delay_ms = delays[i];
            fault->skip = 1;
            ghost_hold(world, "k", ENDLESS);
            world_at(world, at, ghost_release);
            call = crowd_acquire(crowd, 0, "k", &waits);
            crowd_finish(crowd, call);
            if (at > 15) { /* it stood in line, and is told */
                assert_int_equal(call->told_at - WORLD_START, at + LATENCY);
            }
            ours_and_back(crowd, call);
            crowd_run(crowd, 400);
            assert_int_equal(call->told, 1);
            crowd_close(crowd);
        }
    }
}

/* Its owner was given up because of a strange answer, but the undo is put off by the server, and
 * the lock is given to that owner meanwhile: it is not ours, it is passed on. */
static void what_a_burnt_owner_is_given_is_passed_on(void **state)
{
    static const dlock_options options = {
        .expiry_ms = 10000, .wait_ms = 60000, .retry_delay_ms = 300};
    int given = 0;
    (void)state;
    for (int64_t at = 280; at < 900; at += 7) {
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        struct fault *fault;
        char owner[DLOCKI_OWNER_LENGTH + 1];
        struct call *call;
        ghost_hold(world, "k", ENDLESS);
        call = in_line(crowd, 0, &options);
        memcpy(owner, call->lock._owner, sizeof owner);
        world_answer(world, DLOCKI_ASK, "-WEIRD thing\r\n");
        fault = world_answer(world, DLOCKI_GIVE_BACK, "-LOADING x\r\n");
        fault->times = 4;
        world_at(world, at, ghost_release);
        crowd_finish(crowd, call);
        assert_yes(call->answer, &call->lock);
        given += strncmp(world_told(world, 'g', 0)->text + 2, owner, DLOCKI_OWNER_LENGTH) == 0 &&
                 strcmp(owner, dlock_owner(&call->lock)) != 0;
        crowd_run(crowd, 700);
        world->fault_count = 0;
        ours_and_back(crowd, call);
        crowd_close(crowd);
    }
    assert_true(given > 10); /* else this tests nothing */
}

static void forge_all(struct crowd *crowd, const char *owner)
{
    static const char *const payloads[] = {
        "g %s x %lld",
        "g %s 0 %lld",
        "g %s -5 %lld",
        "g %s 9007199254740993 %lld",
        "g %s 5",
        "g %s",
        "g %s 1700000000000001 %lld more",
        "h %s 1700000000000001 %lld",
        "g %s 1700000000000001 1", /* older than what it was told since: it asks again */
        "b %s",
        "",
        "%s",
    };
    for (size_t i = 0; i < sizeof payloads / sizeof *payloads; i++) {
        char text[160];
        (void)snprintf(text, sizeof text, payloads[i], owner,
                       (long long)server_now_us(crowd->world));
        world_forge(crowd->world, crowd->factories[0], text);
        crowd_run(crowd, 700);
    }
}

static void a_forged_message_gives_nothing(void **state)
{
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    char owner[DLOCKI_OWNER_LENGTH + 1];
    char text[160];
    struct call *call;
    (void)state;
    ghost_hold(world, "k", ENDLESS);
    call = in_line(crowd, 0, &waits);
    memcpy(owner, call->lock._owner, sizeof owner);
    forge_all(crowd, owner);
    for (int i = 20; i < DLOCKI_OWNER_LENGTH; i += 5) { /* of nobody, but of this factory */
        memcpy(owner, call->lock._owner, sizeof owner);
        owner[i] = owner[i] == '0' ? '1' : '0';
        (void)snprintf(text, sizeof text, "g %s %lld %lld", owner, (long long)server_now_us(world),
                       (long long)server_now_us(world));
        world_forge(world, crowd->factories[0], text);
        crowd_run(crowd, 10);
    }
    assert_int_equal(call->told, 0);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 0);
    assert_int_equal(world_ticket_count(world), 1);
    memcpy(owner, world_ticket(world, "k", 1)->bytes, DLOCKI_OWNER_LENGTH);
    assert_string_equal(owner, call->lock._owner);
    ghost_release(world);
    crowd_finish(crowd, call);
    ours_and_back(crowd, call);
    crowd_close(crowd);
}

/* Only who knows the owner can forge a grant that must be asked about; then the place stands still,
 * and is given up with the owner. */
static void a_forged_grant_that_is_asked_about_leaves_no_ticket(void **state)
{
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    char text[160];
    struct call *call;
    (void)state;
    ghost_hold(world, "k", ENDLESS);
    call = in_line(crowd, 0, &waits);
    crowd_run(crowd, 6500);
    (void)snprintf(text, sizeof text, "g %s %lld %lld", call->lock._owner,
                   (long long)server_now_us(world), (long long)server_now_us(world) - 6000000);
    world_forge(world, crowd->factories[0], text);
    crowd_run(crowd, 100);
    assert_int_equal(call->told, 0);
    assert_int_equal(world_seen(world, DLOCKI_EXTEND), 1);
    assert_int_equal(world_ticket_count(world), 1);
    assert_memory_equal(world_ticket(world, "k", 1)->bytes, call->lock._owner, DLOCKI_OWNER_LENGTH);
    ghost_release(world);
    crowd_finish(crowd, call);
    ours_and_back(crowd, call);
    crowd_close(crowd);
}

/* Before its ask has left nobody can have been given anything. */
static void a_message_that_comes_before_the_ask_gives_nothing(void **state)
{
    struct crowd *crowd = crowd_begin(1, LATENCY);
    struct world *world = crowd->world;
    struct call *other;
    struct call *call;
    char text[160];
    (void)state;
    ghost_hold(world, "k", ENDLESS);
    ghost_hold(world, "j", ENDLESS);
    other = crowd_acquire(crowd, 0, "j", &waits); /* the inbox stands */
    crowd_run(crowd, 30);
    world_cut_commands(world);
    crowd_run(crowd, LATENCY);
    world->addresses[0].delay_ms = 500;
    call = crowd_acquire(crowd, 0, "k", &waits);
    assert_int_equal(strlen(call->lock._owner), DLOCKI_OWNER_LENGTH);
    for (int i = 0; i < 10; i++) {
        (void)snprintf(text, sizeof text, "g %s %lld %lld", call->lock._owner,
                       (long long)server_now_us(world), (long long)server_now_us(world));
        world_forge(world, crowd->factories[0], text);
        crowd_run(crowd, 40);
        assert_int_equal(call->told, 0);
        assert_false(dlock_is_acquired(&call->lock));
    }
    world->addresses[0].delay_ms = 0;
    crowd_run(crowd, 1000);
    assert_int_equal(call->told, 0);
    assert_int_equal(world_ticket_count(world), 2);
    ghost_release(world);
    crowd_finish(crowd, call);
    ours_and_back(crowd, call);
    dlock_cancel(&other->lock);
    crowd_run(crowd, 20);
    world_delete(world, "j");
    crowd_close(crowd);
}

/* -------------------------------------------------------------- until when it lasts: rule 7, D9 */

/* The last ask of this call that the server saw. */
static const struct seen *last_ask(const struct world *world, const struct call *call)
{
    for (int i = world->log_count - 1; i >= 0; i--) {
        if (world->log[i].kind == DLOCKI_ASK &&
            strcmp(world->log[i].owner, call->lock._owner) == 0) {
            return &world->log[i];
        }
    }
    fail_msg("it never asked");
    return NULL;
}

static void a_lease_begins_where_the_last_answer_says_less_one_per_cent(void **state)
{
    static const int64_t spans[] = {1, 50, 99, 100, 101, 500, 5000, 9000, 25000, 43210};
    (void)state;
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
        for (int64_t latency = 1; latency <= 81; latency += 16) {
            struct crowd *crowd = crowd_begin(1, latency);
            struct world *world = crowd->world;
            struct call *call;
            int64_t span;
            ghost_hold(world, "k", ENDLESS);
            call = crowd_acquire(crowd, 0, "k", &waits);
            crowd_run(crowd, 8 * latency + spans[i]);
            ghost_release(world);
            span = world->now - last_ask(world, call)->at;
            crowd_finish(crowd, call);
            assert_int_equal(world_seen(world, DLOCKI_EXTEND), 0);
            assert_int_equal(call->lock._valid_until, last_ask(world, call)->at - latency + span -
                                                          span / 100 - 1 + 10000 - 102);
            ours_and_back(crowd, call);
            crowd_close(crowd);
        }
    }
}

/* Its last millisecond is looked at, too, by crowd_check. */
static void until_it_ends(struct crowd *crowd, struct call *call)
{
    while (dlock_is_acquired(&call->lock)) {
        int64_t left = dlock_remaining_ms(&call->lock);
        crowd_run(crowd, left > 20 ? left / 2 : 1);
    }
    crowd_run(crowd, 50);
    assert_int_equal(call->lost, 1);
}

static int drift_sign;

/* The server's clock runs one per cent too fast, or too slowly. */
static void drift(struct world *world)
{
    world->jump_ms += drift_sign;
    world_at(world, 100, drift);
}

static void no_lease_is_believed_in_for_longer_than_it_lasts(void **state)
{
    static const int64_t latencies[] = {1, 2, 9, 40, 120};
    static const int64_t expiries[] = {300, 1000, 10000};
    static const int64_t waited[] = {1, 90, 700, 4000, 30500};
    (void)state;
    for (int n = 0; n < 5 * 3 * 5 * 3; n++) {
        int64_t latency = latencies[n % 5];
        dlock_options options = {.expiry_ms = expiries[n / 5 % 3], .wait_ms = 100000};
        struct crowd *crowd = crowd_begin(1, latency);
        struct call *call;
        ghost_hold(crowd->world, "k", ENDLESS);
        drift_sign = n / 75 - 1;
        if (drift_sign != 0) {
            world_at(crowd->world, 1, drift);
        }
        call = crowd_acquire(crowd, 0, "k", &options);
        crowd_run(crowd, 8 * latency + waited[n / 15 % 5]);
        ghost_release(crowd->world);
        crowd_finish(crowd, call);
        assert_yes(call->answer, &call->lock);
        assert_true(dlock_remaining_ms(&call->lock) >= options.expiry_ms / 2 - 2 * latency - 5);
        until_it_ends(crowd, call);
        crowd_close(crowd);
    }
}

static int64_t jump_by;

static void jump(struct world *world)
{
    world->jump_ms += jump_by;
}

/* The server's clock was set between the last answer and the grant. */
static void a_clock_that_was_set_dates_early_or_is_asked_again(void **state)
{
    static const int64_t jumps[] = {-1000000, -9000, -4000, -300, -20,
                                    20,       300,   4000,  9000, 1000000};
    (void)state;
    for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
        for (int64_t waited = 100; waited < 9000; waited += 1100) {
            struct crowd *crowd = crowd_begin(1, 5);
            struct call *call;
            int64_t began;
            ghost_hold(crowd->world, "k", ENDLESS);
            jump_by = jumps[i];
            world_at(crowd->world, 40 + waited / 2, jump);
            call = crowd_acquire(crowd, 0, "k", &waits);
            crowd_run(crowd, 40 + waited);
            began = crowd->world->now;
            ghost_release(crowd->world);
            crowd_finish(crowd, call);
            assert_yes(call->answer, &call->lock);
            assert_true(call->told_at - began <= 4 * 5);
            assert_true(dlock_remaining_ms(&call->lock) >= 10000 / 2);
            if (jumps[i] >= 300) { /* the grant would lie in the future */
                assert_int_equal(world_seen(crowd->world, DLOCKI_EXTEND), 1);
            }
            until_it_ends(crowd, call);
            crowd_close(crowd);
        }
    }
}

/* Less than half is left by the message: it is asked for, and then all of it is ours; or it has
 * lapsed, and we are in line anew. */
static void an_old_message_is_confirmed_by_an_extend(void **state)
{
    (void)state;
    for (int64_t late = 0; late <= 3000; late += 50) {
        struct crowd *crowd = crowd_begin(2, LATENCY);
        struct world *world = crowd->world;
        struct call *call;
        ghost_hold(world, "k", ENDLESS);
        call = in_line(crowd, 0, &waits_shortly);
        world_fault(world, FAULT_DELAY, A_MESSAGE)->delay_ms = late;
        world_delete(world, "k"); /* so that a queue without a holder is what a release finds */
        ghost_hold(world, "k", ENDLESS);
        ghost_release(world);
        crowd_finish(crowd, call);
        assert_yes(call->answer, &call->lock);
        if (late <= 950) {
            assert_int_equal(world_seen(world, DLOCKI_EXTEND), 0);
            assert_int_equal(call->told_at - WORLD_START, 30 + LATENCY + late);
        } else if (late >= 1000 && late <= 1900) {
            assert_int_equal(world_seen(world, DLOCKI_EXTEND), 1);
            assert_int_equal(call->told_at - WORLD_START, 30 + 3 * LATENCY + late);
            assert_int_equal(dlock_remaining_ms(&call->lock), 2000 - 22 - 2 * LATENCY);
        }
        crowd_run(crowd, 3100 - late);
        crowd_run(crowd, 500);
        assert_int_equal(call->told, 1);
        crowd_close(crowd);
    }
}

static void without_an_anchor_a_grant_is_confirmed(void **state)
{
    (void)state;
    for (int n = 0; n < 20; n++) {
        bool given_away = n == 1;
        struct crowd *crowd = crowd_begin(1, LATENCY);
        struct world *world = crowd->world;
        struct call *call;
        char owner[DLOCKI_OWNER_LENGTH + 1];
        ghost_hold(world, "k", ENDLESS);
        call = in_line(crowd, 0, &waits);
        memcpy(owner, call->lock._owner, sizeof owner);
        world_cut_commands(world);
        crowd_run(crowd, LATENCY);
        if (n > 1) { /* told twice, the second time while it is being confirmed */
            world_fault(world, FAULT_TWICE, A_MESSAGE)->delay_ms = n - 2;
        }
        ghost_release(world);
        if (given_away) { /* and taken away at once, by an operator */
            world_delete(world, "k");
            world_hold(world, "k", 500);
        }
        crowd_finish(crowd, call);
        assert_int_equal(world_seen(world, DLOCKI_EXTEND), 1);
        assert_int_equal(world_nth(world, DLOCKI_EXTEND, 0)->result, !given_away);
        assert_int_equal(strcmp(owner, dlock_owner(&call->lock)) == 0, !given_away);
        if (given_away) {
            assert_true(call->told_at - WORLD_START >= 530);
            assert_true(call->told_at - WORLD_START <= 900);
        } else {
            assert_int_equal(call->told_at - WORLD_START, 30 + 4 * LATENCY);
            assert_int_equal(dlock_remaining_ms(&call->lock), 10000 - 102 - 2 * LATENCY);
        }
        ours_and_back(crowd, call);
        crowd_close(crowd);
    }
}

/* ------------------------------------------------------------------------------- fences: G1, G4 */

static void set_counter(struct world *world, const char *score)
{
    static struct model_client nobody;
    struct model_reply reply = {NULL, 0, 0};
    const char *words[4] = {"ZADD", "{k}:fence", score, "f"};
    size_t lengths[4] = {4, 9, strlen(score), 1};
    world_delete(world, "{k}:fence");
    if (score[0] != 0) {
        model_execute(world->model, &nobody, 4, words, lengths, server_now_us(world), &reply);
        free(reply.bytes);
    }
}

/* A counter that was lost, or is behind (a failover), or ahead (a clock that was set). */
static void a_fence_is_above_the_clock_and_the_counter(void **state)
{
    static const struct {
        const char *counter;
        uint64_t least; /* 0: the server's clock */
    } cases[] = {{"", 0},
                 {"5", 0},
                 {"4294967296", 0},
                 {"1699999999999999", 0},
                 {"1800000000000000", UINT64_C(1800000000000001)},
                 {"9007199254740000", UINT64_C(9007199254740001)}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int handed = 0; handed < 2; handed++) {
            struct crowd *crowd = crowd_begin(2, LATENCY);
            struct world *world = crowd->world;
            struct call *first;
            struct call *second;
            int64_t clock;
            set_counter(world, handed ? "" : cases[i].counter);
            clock = server_now_us(world);
            first = crowd_take(crowd, 0, "k", &no_wait);
            if (handed) {
                second = crowd_acquire(crowd, 1, "k", &waits);
                crowd_run(crowd, 30);
                set_counter(world, cases[i].counter);
                clock = server_now_us(world);
                crowd_release(first);
                crowd_finish(crowd, second);
                assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->flags, 5);
                first = second;
            }
            assert_true(first->fence >= (uint64_t)clock);
            if (cases[i].least > 0) {
                assert_true(first->fence == cases[i].least);
            } else {
                assert_true(first->fence <= (uint64_t)clock + 20000);
            }
            assert_true(world_counter(world, "k") == first->fence);
            crowd_close(crowd);
        }
    }
}

static void a_counter_that_cannot_grow_refuses_and_does_not_hold_up_a_release(void **state)
{
    struct crowd *crowd = crowd_begin(2, LATENCY);
    struct world *world = crowd->world;
    struct call *first = crowd_take(crowd, 0, "k", &no_wait);
    struct call *second = crowd_acquire(crowd, 1, "k", &waits);
    (void)state;
    crowd_run(crowd, 30);
    set_counter(world, "9007199254740992");
    crowd_release(first);
    crowd_finish(crowd, first);
    assert_yes(first->answer, &first->lock);
    assert_string_equal(world_holder(world, "k"), "");
    crowd_finish(crowd, second); /* when it asks again */
    assert_no(second->answer, &second->lock, DLOCK_REFUSED);
    assert_string_equal(world_holder(world, "k"), "");
    crowd_run(crowd, 20);
    assert_int_equal(world_ticket_count(world), 0);
    crowd_close(crowd);
}

/* Through hand-offs, lapses, foreign holders, and clocks that are set back: it only grows. */
static void fences_grow_over_whatever_happens(void **state)
{
    enum { FACTORIES = 4, ROUNDS = 300 };
    uint64_t last = 0;
    (void)state;
    for (int seed = 1; seed <= 5; seed++) {
        struct crowd *crowd = crowd_begin(FACTORIES, 2);
        struct world *world = crowd->world;
        last = 0;
        world->seed = (uint64_t)seed;
        for (int i = 0; i < FACTORIES; i++) {
            crowd_acquire(crowd, i, "k", &waits_shortly);
        }
        for (int round = 0; round < ROUNDS; round++) {
            crowd_run(crowd, world_pick(world, 30));
            for (int i = 0; i < FACTORIES; i++) {
                struct call *call = &crowd->calls[i];
                if (call->told > 0 && call->answer && call->fence != last &&
                    dlock_is_acquired(&call->lock)) {
                    assert_true(call->fence > last);
                    last = call->fence;
                }
                if (call->told > 0 && world_pick(world, 3) > 0) {
                    if (dlock_is_acquired(&call->lock)) {
                        (void)dlock_release_start(&call->lock, NULL, NULL);
                    } else {
                        dlock_forget(&call->lock);
                    }
                    crowd_start(call, "k", &waits_shortly);
                }
            }
            if (world_pick(world, 20) == 0) {
                world->jump_ms -= world_pick(world, 1000);
            }
            if (world_pick(world, 30) == 0) {
                world_delete(world, "k");
                world_hold(world, "k", 20);
                crowd->meddled = true; /* an operator's doing: nobody can know */
            }
        }
        assert_true(last > 0);
        crowd_close(crowd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_may_be_lost_late_doubled_or_cut),
        cmocka_unit_test(held_may_arrive_behind_the_grant),
        cmocka_unit_test(what_a_burnt_owner_is_given_is_passed_on),
        cmocka_unit_test(a_forged_message_gives_nothing),
        cmocka_unit_test(a_forged_grant_that_is_asked_about_leaves_no_ticket),
        cmocka_unit_test(a_message_that_comes_before_the_ask_gives_nothing),
        cmocka_unit_test(a_lease_begins_where_the_last_answer_says_less_one_per_cent),
        cmocka_unit_test(no_lease_is_believed_in_for_longer_than_it_lasts),
        cmocka_unit_test(a_clock_that_was_set_dates_early_or_is_asked_again),
        cmocka_unit_test(an_old_message_is_confirmed_by_an_extend),
        cmocka_unit_test(without_an_anchor_a_grant_is_confirmed),
        cmocka_unit_test(a_fence_is_above_the_clock_and_the_counter),
        cmocka_unit_test(a_counter_that_cannot_grow_refuses_and_does_not_hold_up_a_release),
        cmocka_unit_test(fences_grow_over_whatever_happens),
    };
    watchdog(300);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
