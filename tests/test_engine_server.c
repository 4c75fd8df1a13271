/* Whole calls on a scripted server: what a server says, time, release and extend, hostile bytes and
 * secrets. FAILURES.md, groups B11, C, D, E, N, P5, T1. */
#include "tests/scripted.h"

static const dlock_options no_wait = {.expiry_ms = 10000};
static const dlock_options thrice = {.expiry_ms = 10000, .retry_count = 2};

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

/* --------------------------------------------------------------------- B11: a refused handshake */

static void b11_a_refused_auth_is_refused_once_and_the_grant_behind_it_undone(void **state)
{
    static const dlock_config wrong = {.password = "wrong"};
    static const char *const urls[] = {"redis://model", "redis://model/3"};
    (void)state;
    for (int needless = 0; needless < 2; needless++) {
        for (int i = 0; i < 2; i++) {
            struct world *world = world_begin();
            dlock_factory *factory;
            dlock_lock lock = DLOCK_INIT;
            world->url = urls[i];
            world->password = needless ? NULL : "right";
            factory = world_open(world, &wrong);
            assert_no(dlock_acquire(factory, &lock, "k", &thrice), &lock, DLOCK_REFUSED);
            assert_int_equal(world_seen(world, DLOCKI_AUTH), 1);
            assert_int_equal(world_seen(world, DLOCKI_ASK), 1);
            assert_int_equal(world->now, WORLD_START);
            world_close(world, factory);
            assert_int_equal(world_key_count(world), 0);
            assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
        }
    }
}

static void b11_a_refused_select_is_undone_where_the_grant_was_set(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->url = "redis://model/99";
    factory = world_open(world, NULL);
    world_answer(world, DLOCKI_SELECT, "-ERR DB index is out of range\r\n");
    assert_no(dlock_acquire(factory, &lock, "k", &thrice), &lock, DLOCK_REFUSED);
    /* Now it works; the undo in database 99 would have found nothing. */
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->database, 0);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
    assert_int_equal(world_nth(world, DLOCKI_ASK, 1)->database, 99);
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

static void b11_what_is_unknown_behind_a_refused_handshake_is_undone(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->url = "redis://model/99";
    factory = world_open(world, NULL);
    world_answer(world, DLOCKI_SELECT, "-ERR DB index is out of range\r\n");
    world_fault(world, FAULT_ANSWER_AFTER, DLOCKI_ASK)->text = "-WEIRD thing\r\n";
    assert_no(dlock_acquire(factory, &lock, "k", &thrice), &lock, DLOCK_REFUSED);
    world_close_clean(world, factory);
}

/* A release that was lost with its connection; the next one is refused, and ends. */
static void b11_a_refused_handshake_does_not_forget_what_stands_from_before(void **state)
{
    static const dlock_config config = {.client_name = "me"};
    static const char *const ends[] = {"*1\r\n*1\r\n", ""};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, &config);
        dlock_lock lock;
        hold(factory, &lock);
        world_fault(world, FAULT_CLOSE_BEFORE, DLOCKI_GIVE_BACK);
        world_answer(world, DLOCKI_SETNAME, "-WEIRD thing\r\n");
        world_answer(world, DLOCKI_PING, ends[i])->kind =
            i == 0 ? FAULT_ANSWER : FAULT_CLOSE_BEFORE;
        (void)dlock_release(&lock);
        world_sleep(world, 100);   /* as long as what is owed rests after a failure */
        works_again(factory, "other");
        assert_string_equal(world_holder(world, "k"), "");
        world_close_clean(world, factory);
    }
}

static void b11_what_stands_in_two_databases_is_undone_in_both(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    struct fault *fault;
    (void)state;
    world->url = "redis://model/3";
    factory = world_open(world, NULL);
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK);
    fault = world_answer(world, DLOCKI_SELECT, "-ERR DB index is out of range\r\n");
    fault->skip = 1;
    fault->times = 2;
    (void)dlock_acquire(factory, &lock, "k", &no_wait);
    world_close_clean(world, factory);
}

/* Debts wait for a password that is right again, and do not hammer a server meanwhile. */
static void b11_debts_behind_a_refused_handshake_do_not_spin(void **state)
{
    static const dlock_config config = {.password = "secret"};
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    int connects;
    (void)state;
    world->password = "secret";
    world->needs_password = true;
    factory = world_open(world, &config);
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK)->times = 2;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    world->password = "another";
    connects = world->connects;
    world_close(world, factory);
    assert_true(world->connects - connects <= 30);
    assert_true(world->most_spins < 50);
}

/* ---------------------------------------------------------------------- C: what a server says */

static void c1_noscript_is_answered_by_the_script_once(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    memset(world->loaded, 0, sizeof world->loaded);
    hold(factory, &lock);
    assert_int_equal(world_seen(world, DLOCKI_ASK), 2);
    assert_string_equal(world_nth(world, DLOCKI_ASK, 0)->owner,
                        world_nth(world, DLOCKI_ASK, 1)->owner);
    assert_false(world_nth(world, DLOCKI_ASK, 0)->whole);
    assert_true(world_nth(world, DLOCKI_ASK, 1)->whole);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(world_seen(world, DLOCKI_EXTEND), 2);
    assert_yes(dlock_release(&lock), &lock);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 2);
    assert_int_equal(world->wholes, 3);
    assert_int_equal(world->connects, 1);
    works_again(factory, "k");
    assert_int_equal(world->wholes, 3);
    world_close_clean(world, factory);
}

static void c1_an_undo_needs_no_second_chance(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK)->times = 2;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    memset(world->loaded, 0, sizeof world->loaded);
    works_again(factory, "k");
    assert_true(world_nth(world, DLOCKI_GIVE_BACK, 0)->whole);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
    world_close_clean(world, factory);
}

/* The server that lost the scripts is told them once, not at every attempt. */
static void c1_later_attempts_need_no_script_again(void **state)
{
    static const dlock_options many = {.retry_count = 20};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    memset(world->loaded, 0, sizeof world->loaded);
    world_hold(world, "k", 1000000);
    assert_no(dlock_acquire(factory, &lock, "k", &many), &lock, DLOCK_BUSY);
    assert_int_equal(world->wholes, 1);
    world_delete(world, "k");
    world_close_clean(world, factory);
}

static void c1_an_endless_noscript_ends(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->latency_ms = 1;
    hold(factory, &lock);
    world_answer(world, ANY_COMMAND, "-NOSCRIPT No matching script.\r\n")->times = 0;
    assert_false(dlock_extend(&lock, 0));
    assert_false(dlock_release(&lock));
    assert_false(dlock_acquire(factory, &lock, "other", &thrice));
    assert_true(world->now - WORLD_START < 3000);
    assert_true(world->served < 100);
    world_close(world, factory);
    assert_true(world->served < 200);
}

/* NOSCRIPT that arrives after the call was given up: the body must not be sent, for its undo was. */
static void c1_no_script_is_sent_behind_its_own_undo(void **state)
{
    static const dlock_options brief = {.expiry_ms = 60000, .wait_ms = 100};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    memset(world->loaded, 0, sizeof world->loaded);
    world_fault(world, FAULT_DELAY, DLOCKI_ASK)->delay_ms = 300;
    assert_no(dlock_acquire(factory, &lock, "k", &brief), &lock, DLOCK_UNREACHABLE);
    world_sleep(world, 400);
    works_again(factory, "other");
    for (int i = 0; i < world->log_count; i++) {
        const struct seen *seen = &world->log[i];
        assert_true(seen->kind != DLOCKI_ASK || !seen->whole ||
                    strcmp(seen->owner, world_nth(world, DLOCKI_ASK, 0)->owner) != 0);
    }
    world_close_clean(world, factory);
}

/* An error reply to each verb: what it makes of acquire and of release. */
static const struct {
    const char *text;
    int code;
} errors[] = {
    {"-READONLY You can't write against a read only replica.", DLOCK_UNREACHABLE},
    {"-READONLY You can't write against a read only replica. script: f2e9, on @user_script:1.",
     DLOCK_UNREACHABLE},
    {"-MASTERDOWN Link with MASTER is down", DLOCK_UNREACHABLE},
    {"-LOADING Redis is loading the dataset in memory", DLOCK_UNREACHABLE},
    {"-BUSY Redis is busy running a script.", DLOCK_UNREACHABLE},
    {"-OOM command not allowed when used memory > 'maxmemory'.", DLOCK_UNREACHABLE},
    {"-MISCONF Redis is configured to save RDB snapshots", DLOCK_UNREACHABLE},
    {"-NOREPLICAS Not enough good replicas to write.", DLOCK_UNREACHABLE},
    {"-TRYAGAIN Multiple keys request during rehashing of slot", DLOCK_UNREACHABLE},
    {"-CLUSTERDOWN The cluster is down", DLOCK_UNREACHABLE},
    {"-MOVED 3999 127.0.0.1:6381", DLOCK_UNREACHABLE},
    {"-ASK 3999 127.0.0.1:6381", DLOCK_UNREACHABLE},
    {"-ERR max number of clients reached", DLOCK_UNREACHABLE},
    {"-ERR Error running script (call to f_abc): @user_script:1: OOM command not allowed",
     DLOCK_UNREACHABLE},
    {"-ERR Error running script (call to f_abc): @user_script:12: @user_script: 12: -READONLY x",
     DLOCK_UNREACHABLE},
    {"-WEIRD something new", DLOCK_UNREACHABLE},
    {"-ERR Error running script (call to f_abc): @user_script:1: something", DLOCK_UNREACHABLE},
    {"-UNKILLABLE Sorry", DLOCK_UNREACHABLE},
    {"-", DLOCK_UNREACHABLE},
    {"-BUSYKEY Target key name already exists.", DLOCK_UNREACHABLE},
    {"-NOAUTH Authentication required.", DLOCK_REFUSED},
    {"-WRONGPASS invalid username-password pair", DLOCK_REFUSED},
    {"-NOPERM this user has no permissions to run the 'evalsha' command", DLOCK_REFUSED},
    {"-DENIED Redis is running in protected mode", DLOCK_REFUSED},
    {"-NOPROTO unsupported protocol version", DLOCK_REFUSED},
    {"-WRONGTYPE Operation against a key", DLOCK_REFUSED},
    {"-CROSSSLOT Keys in request don't hash to the same slot", DLOCK_REFUSED},
    {"-ERR unknown command 'EVALSHA', with args beginning with: 'a' 'dl1-00'", DLOCK_REFUSED},
    {"-ERR syntax error", DLOCK_REFUSED},
    {"-ERR invalid expire time in 'set' command", DLOCK_REFUSED},
};

/* C2 to C7, C10, C11: not executed, though nobody can know that of a word that is unknown. */
static void c2_to_c11_an_error_is_classed_by_its_first_word(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        for (int attempts = 1; attempts <= 3; attempts += 2) {
            struct world *world = world_begin();
            dlock_factory *factory = world_open(world, NULL);
            dlock_lock lock = DLOCK_INIT;
            char text[160];
            (void)snprintf(text, sizeof text, "%s\r\n", errors[i].text);
            world_answer(world, DLOCKI_ASK, text)->times = 0;
            assert_no(dlock_acquire(factory, &lock, "k", attempts == 1 ? &no_wait : &thrice), &lock,
                      errors[i].code);
            assert_int_equal(world_seen(world, DLOCKI_ASK),
                             errors[i].code == DLOCK_REFUSED ? 1 : attempts);
            assert_true(strstr(dlock_why(&lock)->text, "model") != NULL);
            world->fault_count = 0;
            world_sleep(world, 20);
            works_again(factory, "k");
            world_close_clean(world, factory);
        }
    }
}

static void c4_c5_a_release_that_is_told_later_stays_owed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock;
        char text[160];
        (void)snprintf(text, sizeof text, "%s\r\n", errors[i].text);
        hold(factory, &lock);
        world_answer(world, DLOCKI_EXTEND, text);
        assert_no(dlock_extend(&lock, 0), &lock, errors[i].code);
        assert_true(dlock_is_acquired(&lock));
        world_sleep(world, 20);
        world_answer(world, DLOCKI_GIVE_BACK, text)->times = 2;
        assert_no(dlock_release(&lock), &lock, errors[i].code);
        assert_false(dlock_is_acquired(&lock));
        assert_true(promised_lapse(&lock) >= world_lease(world, "k"));
        if (errors[i].code == DLOCK_UNREACHABLE) {
            world_close_clean(world, factory);
        } else { /* refused: trying again would not help */
            world_close(world, factory);
        }
    }
}

/* An operation that the server did before it complained is undone, never a success. */
static void c11_an_error_after_the_first_write_is_undone(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_ANSWER_AFTER, DLOCKI_ASK)->text = "-WEIRD thing happened\r\n";
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    works_again(factory, "other");
    assert_int_equal(world_key_count(world), 0);
    world_fault(world, FAULT_ANSWER_AFTER, DLOCKI_ASK)->text = "-WEIRD thing happened\r\n";
    assert_yes(dlock_acquire(factory, &lock, "k", &thrice), &lock);
    assert_string_equal(world_holder(world, "k"), dlock_owner(&lock));
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

/* What was certainly not executed needs no undo, and the next try keeps its owner. */
static void c3_what_was_not_executed_is_not_undone(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_answer(world, DLOCKI_ASK, "-LOADING data\r\n")->times = 2;
    assert_yes(dlock_acquire(factory, &lock, "k", &thrice), &lock);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 0);
    assert_string_equal(world_nth(world, DLOCKI_ASK, 0)->owner, dlock_owner(&lock));
    world_close_clean(world, factory);
}

/* But "later" to the second ask says nothing about a first one that was lost. */
static void c3_later_does_not_forget_an_earlier_doubt(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK);
    world_answer(world, DLOCKI_ASK, "-OOM x\r\n");
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    world_close_clean(world, factory);
    assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
}

static void c2_a_replica_is_left_and_the_name_looked_up_again(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_answer(world, DLOCKI_ASK, "-READONLY x\r\n");
    assert_yes(dlock_acquire(factory, &lock, "k", &thrice), &lock);
    assert_int_equal(world->resolves, 2);
    assert_int_equal(world_nth(world, DLOCKI_ASK, 1)->socket, 2);
    world_close_clean(world, factory);
}

static void c10_turned_away_at_the_door_is_later_with_growing_pauses(void **state)
{
    static const dlock_options many = {.retry_count = 12};
    static const dlock_config config = {.password = "secret"};
    (void)state;
    for (int greeted = 0; greeted < 2; greeted++) {
        struct world *world = world_begin();
        dlock_factory *factory;
        dlock_lock lock = DLOCK_INIT;
        world->password = "secret";
        factory = world_open(world, greeted ? &config : NULL);
        world_answer(world, ANY_COMMAND, "-ERR max number of clients reached\r\n")->times = 0;
        assert_no(dlock_acquire(factory, &lock, "k", &many), &lock, DLOCK_UNREACHABLE);
        if (greeted) {
            assert_in_range(world->now - WORLD_START, 50 * (1 + 2 + 4 + 9 * 8),
                            250 * (1 + 2 + 4 + 9 * 8));
        }
        world->fault_count = 0;
        works_again(factory, "k");
        world_close_clean(world, factory);
    }
}

/* ------------------------------------------------------------------------------------- D: time */

static void d1_a_process_that_slept_finds_out_without_asking(void **state)
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

static void d1_a_clock_that_says_never_ends_every_lease(void **state)
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

static void d4_a_server_clock_set_forward_is_lost_at_the_next_contact(void **state)
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

static void d6_an_expiry_that_promises_nothing_is_an_argument_and_sends_nothing(void **state)
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

static void p5_extreme_numbers_saturate_and_a_late_clock_is_no_matter(void **state)
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

/* -------------------------------------------------------------------------- E: release, extend */

static void e1_a_second_release_is_lost_without_a_byte(void **state)
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

static void e2_what_somebody_else_holds_by_now_is_not_touched(void **state)
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
            world_sleep(world, lease);
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

static void e3_a_failed_release_is_unreachable_and_may_be_called_again(void **state)
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
    world_sleep(world, 100);
    assert_yes(dlock_release(&lock), &lock);
    assert_string_equal(world_holder(world, "k"), "");
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_int_equal(factory->debt_count, 0);
    world_close_clean(world, factory);
}

static void e3_a_failed_release_is_undone_by_a_later_call_or_close(void **state)
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
static void e4_rule_12_a_lost_release_is_true_only_while_it_must_have_been_ours(void **state)
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

static void e4_theirs_is_not_touched_by_the_second_release(void **state)
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

static void e6_verbs_on_the_wrong_handle_are_arguments_without_a_byte(void **state)
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

static void e6_forget_sends_nothing_and_frees_the_handle(void **state)
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
    world_sleep(world, 10000);
    hold(factory, &lock);
    world_close_clean(world, factory);
}

static void e12_fail_open_is_true_when_nobody_could_tell_and_only_then(void **state)
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
static void e12_a_degraded_lock_leaves_no_orphan(void **state)
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

static void t7_close_gives_back_what_is_held_and_marks_it_unused(void **state)
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

/* ----------------------------------------------------------------------- N: bytes and secrets */

static void n1_bytes_that_no_redis_sends_are_protocol_within_fixed_memory(void **state)
{
    static const char *const texts[] = {"HTTP/1.1 400 Bad Request\r\n\r\n",
                                        "\x15\x03\x01\x02\x02\x16",
                                        "SSH-2.0-OpenSSH_9.2\r\n",
                                        "*2147483647\r\n",
                                        "*-1\r\n",
                                        "*9\r\n",
                                        "*1\r\n*1\r\n*1\r\n:1\r\n",
                                        "%1\r\n+a\r\n:1\r\n",
                                        "_\r\n",
                                        "#t\r\n",
                                        ",1.5\r\n",
                                        "(123\r\n",
                                        ">2\r\n+a\r\n+b\r\n",
                                        "+OK\r\n",
                                        ":1\r\n",
                                        "$-1\r\n",
                                        "$5\r\nhello\r\n",
                                        "*4\r\n:1\r\n:5\r\n:-7\r\n:9\r\n",
                                        "*4\r\n:1\r\n:0\r\n:7\r\n:9\r\n",
                                        "*4\r\n:1\r\n:-5\r\n:7\r\n:9\r\n",
                                        "*4\r\n:1\r\n:9007199254740992\r\n:7\r\n:9\r\n",
                                        "*4\r\n:1\r\n$1\r\nx\r\n:7\r\n:9\r\n",
                                        "*4\r\n:1\r\n:5\r\n:7\r\n$-1\r\n",
                                        "*3\r\n:1\r\n:5\r\n:7\r\n",
                                        "*5\r\n:1\r\n:5\r\n:7\r\n:9\r\n:9\r\n",
                                        "*1\r\n:1\r\n",
                                        "*0\r\n",
                                        "*6\r\n:0\r\n:-7\r\n:9\r\n:0\r\n:0\r\n:0\r\n",
                                        "*6\r\n:0\r\n:7\r\n:9\r\n:0\r\n:-1\r\n:0\r\n",
                                        "*6\r\n:0\r\n:7\r\n:9\r\n:0\r\n:0\r\n:5\r\n",
                                        "*1\r\n:4\r\n",
                                        "*1\r\n:-1\r\n",
                                        "*4\r\n:1\r\n:5\r\n:7\r\n:99999999999999999999\r\n"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        world_fault(world, FAULT_ANSWER_AFTER, DLOCKI_ASK)->text = texts[i];
        assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_PROTOCOL);
        works_again(factory, "k"); /* what it did all the same was undone */
        world_close_clean(world, factory);
    }
}

static void n1_endless_bytes_end_in_time_and_memory(void **state)
{
    static const char *const texts[] = {"*2147483647\r\n",
                                        "$2147483000\r\nxxxx",
                                        "+aaaaaaaaaaaaaa",
                                        "*1\r\n",
                                        ":1\r\n",
                                        "-",
                                        "a",
                                        "$60000\r\n",
                                        "\r\n"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (int verb = 0; verb < 3; verb++) {
            static const int kinds[] = {DLOCKI_ASK, DLOCKI_EXTEND, DLOCKI_GIVE_BACK};
            struct world *world = world_begin();
            dlock_factory *factory = world_open(world, NULL);
            dlock_lock lock = DLOCK_INIT;
            world->latency_ms = 1;
            world_fault(world, FAULT_FLOOD, kinds[verb])->text = texts[i];
            if (verb > 0) {
                hold(factory, &lock);
            }
            assert_no(verb == 0   ? dlock_acquire(factory, &lock, "k", &no_wait)
                      : verb == 1 ? dlock_extend(&lock, 0)
                                  : dlock_release(&lock),
                      &lock, DLOCK_PROTOCOL);
            assert_true(world->receives < 100);
            world_close_clean(world, factory);
        }
    }
}

static void n3_a_long_error_is_cut_and_says_nothing(void **state)
{
    static char text[70000];
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    memset(text, '\x1b', sizeof text);
    memcpy(text, "-NOPERM ", 8);
    memcpy(text + sizeof text - 3, "\r\n", 3);
    world_answer(world, DLOCKI_ASK, text);
    assert_false(dlock_acquire(factory, &lock, "k", &no_wait));
    assert_true(dlock_why(&lock)->code == DLOCK_REFUSED ||
                dlock_why(&lock)->code == DLOCK_PROTOCOL);
    check_text(dlock_why(&lock)->text, __FILE__, __LINE__);
    works_again(factory, "k");
    world_close_clean(world, factory);
}

static void n4_no_text_repeats_what_a_server_quotes(void **state)
{
    static const int kinds[] = {DLOCKI_AUTH, DLOCKI_ASK, DLOCKI_EXTEND, DLOCKI_GIVE_BACK};
    static const char *const texts[] = {
        "-ERR unknown command 'AUTH', with args beginning with: 'hush' 'dl1-00' 'quoted'\r\n",
        "-quoted hush dl1-00\r\n",
        "-OOM quoted hush dl1-00\r\n",
        "-NOPERM quoted hush dl1-00\r\n",
        "+quoted hush dl1-00\r\n",
        "quoted hush dl1-00\r\n"};
    static const dlock_config config = {.username = "me", .password = "hush"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (size_t j = 0; j < sizeof kinds / sizeof *kinds; j++) {
            struct world *world = world_begin();
            dlock_factory *factory;
            dlock_lock lock = DLOCK_INIT;
            world->user = "me";
            world->password = "hush";
            factory = world_open(world, &config);
            world_answer(world, kinds[j], texts[i])->times = 4;
            if (j > 1) {
                hold(factory, &lock);
            }
            assert_false(j < 2    ? dlock_acquire(factory, &lock, "k", &no_wait)
                         : j == 2 ? dlock_extend(&lock, 0)
                                  : dlock_release(&lock));
            check_text(dlock_why(&lock)->text, __FILE__, __LINE__);
            assert_null(strstr(dlock_why(&lock)->text, "hush"));
            assert_null(strstr(dlock_why(&lock)->text, "quoted"));
            world_close(world, factory);
        }
    }
}

/* ------------------------------------------------------------------------------------- T1: fork */

static void t1_another_process_may_only_close_and_sends_nothing(void **state)
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
        cmocka_unit_test(b11_a_refused_auth_is_refused_once_and_the_grant_behind_it_undone),
        cmocka_unit_test(b11_a_refused_select_is_undone_where_the_grant_was_set),
        cmocka_unit_test(b11_what_is_unknown_behind_a_refused_handshake_is_undone),
        cmocka_unit_test(b11_a_refused_handshake_does_not_forget_what_stands_from_before),
        cmocka_unit_test(b11_what_stands_in_two_databases_is_undone_in_both),
        cmocka_unit_test(b11_debts_behind_a_refused_handshake_do_not_spin),
        cmocka_unit_test(c1_noscript_is_answered_by_the_script_once),
        cmocka_unit_test(c1_an_undo_needs_no_second_chance),
        cmocka_unit_test(c1_later_attempts_need_no_script_again),
        cmocka_unit_test(c1_an_endless_noscript_ends),
        cmocka_unit_test(c1_no_script_is_sent_behind_its_own_undo),
        cmocka_unit_test(c2_to_c11_an_error_is_classed_by_its_first_word),
        cmocka_unit_test(c4_c5_a_release_that_is_told_later_stays_owed),
        cmocka_unit_test(c11_an_error_after_the_first_write_is_undone),
        cmocka_unit_test(c3_what_was_not_executed_is_not_undone),
        cmocka_unit_test(c3_later_does_not_forget_an_earlier_doubt),
        cmocka_unit_test(c2_a_replica_is_left_and_the_name_looked_up_again),
        cmocka_unit_test(c10_turned_away_at_the_door_is_later_with_growing_pauses),
        cmocka_unit_test(d1_a_process_that_slept_finds_out_without_asking),
        cmocka_unit_test(d1_a_clock_that_says_never_ends_every_lease),
        cmocka_unit_test(d4_a_server_clock_set_forward_is_lost_at_the_next_contact),
        cmocka_unit_test(d6_an_expiry_that_promises_nothing_is_an_argument_and_sends_nothing),
        cmocka_unit_test(p5_extreme_numbers_saturate_and_a_late_clock_is_no_matter),
        cmocka_unit_test(e1_a_second_release_is_lost_without_a_byte),
        cmocka_unit_test(e2_what_somebody_else_holds_by_now_is_not_touched),
        cmocka_unit_test(e3_a_failed_release_is_unreachable_and_may_be_called_again),
        cmocka_unit_test(e3_a_failed_release_is_undone_by_a_later_call_or_close),
        cmocka_unit_test(e4_rule_12_a_lost_release_is_true_only_while_it_must_have_been_ours),
        cmocka_unit_test(e4_theirs_is_not_touched_by_the_second_release),
        cmocka_unit_test(e_an_extend_is_sent_again_once_and_no_more),
        cmocka_unit_test(e_extend_never_shortens_and_zero_means_as_acquired),
        cmocka_unit_test(e_an_extend_is_dated_before_its_own_send),
        cmocka_unit_test(e_a_lost_extend_is_part_of_when_the_lock_lapses),
        cmocka_unit_test(e6_verbs_on_the_wrong_handle_are_arguments_without_a_byte),
        cmocka_unit_test(e6_forget_sends_nothing_and_frees_the_handle),
        cmocka_unit_test(e12_fail_open_is_true_when_nobody_could_tell_and_only_then),
        cmocka_unit_test(e12_a_degraded_lock_leaves_no_orphan),
        cmocka_unit_test(t7_close_gives_back_what_is_held_and_marks_it_unused),
        cmocka_unit_test(n1_bytes_that_no_redis_sends_are_protocol_within_fixed_memory),
        cmocka_unit_test(n1_endless_bytes_end_in_time_and_memory),
        cmocka_unit_test(n3_a_long_error_is_cut_and_says_nothing),
        cmocka_unit_test(n4_no_text_repeats_what_a_server_quotes),
        cmocka_unit_test(t1_another_process_may_only_close_and_sends_nothing),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
