/* Whole calls on a scripted server: what a server says, hostile bytes, secrets. */
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

/* ------------------------------------------------------------------------ a refused handshake */

static void a_refused_auth_is_refused_once_and_the_grant_behind_it_undone(void **state)
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

static void a_refused_select_is_undone_where_the_grant_was_set(void **state)
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

static void what_is_unknown_behind_a_refused_handshake_is_undone(void **state)
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
static void a_refused_handshake_does_not_forget_what_stands_from_before(void **state)
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

static void what_stands_in_two_databases_is_undone_in_both(void **state)
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

/* The answer of a database that was not selected says nothing of a debt in another. */
static void an_undo_behind_a_refused_handshake_is_not_believed(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->url = "redis://model/3";
    factory = world_open(world, NULL);
    world_fault(world, FAULT_ANSWER_AFTER, DLOCKI_ASK)->text = "-WEIRD thing\r\n";
    world_answer(world, DLOCKI_GIVE_BACK, "-LOADING x\r\n");
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    assert_yes(dlock_acquire(factory, &lock, "other", &no_wait), &lock);
    dlock_forget(&lock);
    server_restarts(world);
    world_load_scripts(world);
    world_sleep(world, 200);
    world_answer(world, DLOCKI_SELECT, "-ERR DB index is out of range\r\n");
    assert_no(dlock_acquire(factory, &lock, "third", &no_wait), &lock, DLOCK_REFUSED);
    world_sleep(world, 200);
    works_again(factory, "third");
    world_sleep(world, 200);
    works_again(factory, "third");
    assert_null(model_find(world, 3, "k", 1));
    world_close(world, factory);
}

/* A release that cannot be heard where the lock stands: refused, and owed all the same. */
static void a_release_behind_a_refused_handshake_stays_owed(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock;
    (void)state;
    world->url = "redis://model/3";
    world->database = 3;
    factory = world_open(world, NULL);
    hold(factory, &lock);
    server_restarts(world);
    world_load_scripts(world);
    world_sleep(world, 20);
    world_answer(world, DLOCKI_SELECT, "-ERR DB index is out of range\r\n");
    assert_no(dlock_release(&lock), &lock, DLOCK_REFUSED);
    assert_string_not_equal(world_holder(world, "k"), "");
    works_again(factory, "other");
    world_sleep(world, 200);
    works_again(factory, "other");
    assert_string_equal(world_holder(world, "k"), "");
    world_close_clean(world, factory);
}

/* Debts wait for a password that is right again, and do not hammer a server meanwhile. */
static void debts_behind_a_refused_handshake_do_not_spin(void **state)
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

/* ------------------------------------------------------------------------- what a server says */

static void noscript_is_answered_by_the_script_once(void **state)
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

static void an_undo_needs_no_second_chance(void **state)
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
static void later_attempts_need_no_script_again(void **state)
{
    static const dlock_options many = {.retry_count = 20, .no_queue = true};
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

static void an_endless_noscript_ends(void **state)
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

/* NOSCRIPT that arrives after the call was given up: the body must not be sent, its undo was. */
static void no_script_is_sent_behind_its_own_undo(void **state)
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

/* Not executed, though nobody can know that of a word that is unknown. */
static void to_c11_an_error_is_classed_by_its_first_word(void **state)
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

static void c5_a_release_that_is_told_later_stays_owed(void **state)
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
static void an_error_after_the_first_write_is_undone(void **state)
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
static void what_was_not_executed_is_not_undone(void **state)
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
static void later_does_not_forget_an_earlier_doubt(void **state)
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

static void a_replica_is_left_and_the_name_looked_up_again(void **state)
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

static void turned_away_at_the_door_is_later_with_growing_pauses(void **state)
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

/* A server that greets and then hangs up is as bad as one that refuses. */
static void greet_and_hang_up(struct world *world, int attempts)
{
    static const dlock_config config = {.client_name = "me"};
    dlock_options options = {.retry_count = attempts};
    dlock_factory *factory = world_open(world, &config);
    dlock_lock lock = DLOCK_INIT;
    world_fault(world, FAULT_CLOSE_BEFORE, DLOCKI_ASK)->times = 0;
    world_fault(world, FAULT_CLOSE_BEFORE, DLOCKI_GIVE_BACK)->times = 0;
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_true(world->now - WORLD_START > attempts * 250);
    world_close_clean(world, factory);
}

static void a_connection_that_only_greets_is_a_failed_one(void **state)
{
    (void)state;
    greet_and_hang_up(world_begin(), 4);
}

/* By then so much is owed on that key that the ask does not fit behind it. */
static void it_ends_however_much_is_owed(void **state)
{
    (void)state;
    greet_and_hang_up(world_begin(), 12);
}

/* -------------------------------------------------------------------------- bytes and secrets */

static void bytes_that_no_redis_sends_are_protocol_within_fixed_memory(void **state)
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

static void endless_bytes_end_in_time_and_memory(void **state)
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

static void a_long_error_is_cut_and_says_nothing(void **state)
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

static void no_text_repeats_what_a_server_quotes(void **state)
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refused_auth_is_refused_once_and_the_grant_behind_it_undone),
        cmocka_unit_test(a_refused_select_is_undone_where_the_grant_was_set),
        cmocka_unit_test(what_is_unknown_behind_a_refused_handshake_is_undone),
        cmocka_unit_test(a_refused_handshake_does_not_forget_what_stands_from_before),
        cmocka_unit_test(what_stands_in_two_databases_is_undone_in_both),
        cmocka_unit_test(an_undo_behind_a_refused_handshake_is_not_believed),
        cmocka_unit_test(a_release_behind_a_refused_handshake_stays_owed),
        cmocka_unit_test(debts_behind_a_refused_handshake_do_not_spin),
        cmocka_unit_test(noscript_is_answered_by_the_script_once),
        cmocka_unit_test(an_undo_needs_no_second_chance),
        cmocka_unit_test(later_attempts_need_no_script_again),
        cmocka_unit_test(an_endless_noscript_ends),
        cmocka_unit_test(no_script_is_sent_behind_its_own_undo),
        cmocka_unit_test(to_c11_an_error_is_classed_by_its_first_word),
        cmocka_unit_test(c5_a_release_that_is_told_later_stays_owed),
        cmocka_unit_test(an_error_after_the_first_write_is_undone),
        cmocka_unit_test(what_was_not_executed_is_not_undone),
        cmocka_unit_test(later_does_not_forget_an_earlier_doubt),
        cmocka_unit_test(a_replica_is_left_and_the_name_looked_up_again),
        cmocka_unit_test(turned_away_at_the_door_is_later_with_growing_pauses),
        cmocka_unit_test(a_connection_that_only_greets_is_a_failed_one),
        cmocka_unit_test(it_ends_however_much_is_owed),
        cmocka_unit_test(bytes_that_no_redis_sends_are_protocol_within_fixed_memory),
        cmocka_unit_test(endless_bytes_end_in_time_and_memory),
        cmocka_unit_test(a_long_error_is_cut_and_says_nothing),
        cmocka_unit_test(no_text_repeats_what_a_server_quotes),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
