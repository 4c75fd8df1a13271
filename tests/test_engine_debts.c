/* What is owed to a server: undos that travel ahead, wait, lapse, and fill a table of two. */
#define DLOCK_DEBT_MAX 2
#include "tests/scripted.h"

static const dlock_options no_wait = {.expiry_ms = 10000};

/* Leaves a lock on the server that we do not have, and must undo. */
static void owe(struct world *world, dlock_factory *factory, const char *key,
                const dlock_options *options)
{
    dlock_lock lock = DLOCK_INIT;
    int fault_count = world->fault_count;
    world_fault(world, FAULT_ANSWER_AFTER, DLOCKI_ASK)->text = "-WEIRD thing\r\n";
    assert_no(dlock_acquire(factory, &lock, key, options), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->fault_count, fault_count);
}

static struct fault *undo_later(struct world *world)
{
    struct fault *fault = world_answer(world, DLOCKI_GIVE_BACK, "-LOADING x\r\n");
    fault->times = 0;
    return fault;
}

static void a_full_table_is_unreachable_without_sending(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_options patient = {.wait_ms = 500};
    int asks;
    int64_t began;
    (void)state;
    undo_later(world);
    owe(world, factory, "a", &no_wait);
    owe(world, factory, "b", &no_wait);
    assert_int_equal(factory->debt_count, 2);
    asks = world_seen(world, DLOCKI_ASK);
    assert_no(dlock_acquire(factory, &lock, "c", &no_wait), &lock, DLOCK_UNREACHABLE);
    began = world->now;
    assert_no(dlock_acquire(factory, &lock, "c", &patient), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - began, 500);
    assert_int_equal(world_seen(world, DLOCKI_ASK), asks);
    world->fault_count = 0;
    assert_yes(dlock_acquire(factory, &lock, "c", &patient), &lock);
    assert_string_equal(world_holder(world, "a"), "");
    assert_string_equal(world_holder(world, "b"), "");
    assert_int_equal(factory->debt_count, 0);
    world_close_clean(world, factory);
}

/* One that is held may be extended and released all the same: that adds nothing to be undone. */
static void a_full_table_does_not_keep_a_holder_from_releasing(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "c", &no_wait), &lock);
    undo_later(world);
    owe(world, factory, "a", &no_wait);
    owe(world, factory, "b", &no_wait);
    world->fault_count = 0;
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

static void *no_memory(size_t size, void *user)
{
    (void)size;
    (void)user;
    return NULL;
}

/* With no memory left a release that fails is not remembered: it lapses, and the text says when. */
static void a_release_that_finds_the_table_full_enlarges_it_or_lapses(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "c", &no_wait), &lock);
    undo_later(world);
    owe(world, factory, "a", &no_wait);
    owe(world, factory, "b", &no_wait);
    factory->alloc = no_memory;
    assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
    assert_non_null(strstr(dlock_why(&lock)->text, "lapses by itself in "));
    assert_int_equal(factory->debt_count, 2);
    factory->alloc = NULL;
    assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(factory->debt_count, 3);
    world->fault_count = 0;
    assert_yes(dlock_release(&lock), &lock);
    world_close_clean(world, factory);
}

/* What may have to be undone always has a place, of which there are two to begin with. */
static void an_ask_is_not_sent_without_a_place_for_its_undo(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock locks[4];
    static const char *const keys[] = {"a", "b", "c", "d"};
    (void)state;
    memset(locks, 0, sizeof locks);
    works_again(factory, "a");
    factory->alloc = no_memory;
    world->latency_ms = 50;
    for (int i = 0; i < 3; i++) {
        (void)call_acquire(factory, &locks[i], keys[i], &no_wait);
    }
    assert_false(call_finish(world, factory, &locks[2]));
    assert_code(&locks[2], DLOCK_UNREACHABLE);
    factory->alloc = NULL;
    (void)call_acquire(factory, &locks[2], keys[2], &no_wait);
    (void)call_acquire(factory, &locks[3], keys[3], &no_wait);
    for (int i = 0; i < 4; i++) {
        assert_true(call_finish(world, factory, &locks[i]));
    }
    assert_int_equal(world_seen(world, DLOCKI_ASK), 5);
    world->latency_ms = 0;
    world_close_clean(world, factory);
}

/* An ask that was cut may stand on the server already: it has its place before a new one. */
static void a_place_is_kept_for_what_may_have_been_obeyed(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock locks[3];
    static const char *const keys[] = {"a", "b", "c"};
    (void)state;
    memset(locks, 0, sizeof locks);
    works_again(factory, "a");
    world_fault(world, FAULT_MUTE, DLOCKI_ASK);
    for (int i = 0; i < 3; i++) {
        assert_true(call_acquire(factory, &locks[i], keys[i], &no_wait));
    }
    assert_int_equal(world_seen(world, DLOCKI_ASK), 4);
    server_restarts(world);
    world_load_scripts(world);
    world_fault(world, FAULT_MUTE, DLOCKI_ASK);
    undo_later(world);
    for (int i = 0; i < 3; i++) {
        assert_false(call_finish(world, factory, &locks[i]));
        assert_code(&locks[i], DLOCK_UNREACHABLE);
    }
    world_close_clean(world, factory);
}

/* All of them unanswered: every one is owed, and none is forgotten. */
static void every_ask_that_a_dead_server_took_is_undone(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock locks[2];
    dlock_options brief = {.expiry_ms = 60000, .wait_ms = 100};
    (void)state;
    memset(locks, 0, sizeof locks);
    works_again(factory, "a");
    world->stopped = true;
    assert_true(call_acquire(factory, &locks[0], "a", &brief));
    assert_true(call_acquire(factory, &locks[1], "b", &brief));
    assert_false(call_finish(world, factory, &locks[0]));
    assert_false(call_finish(world, factory, &locks[1]));
    assert_int_equal(factory->debt_count, 2);
    world_sleep(world, 5000);
    server_goes_on(world);
    world_close_clean(world, factory);
}

static void a_debt_that_was_told_later_travels_ahead_of_a_new_ask_on_its_key(void **state)
{
    (void)state;
    for (int64_t after = 20; after < 200; after += 20) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        undo_later(world);
        owe(world, factory, "k", &no_wait);
        world->fault_count = 0;
        world_sleep(world, after);
        assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
        assert_string_equal(world_holder(world, "k"), dlock_owner(&lock));
        world_close_clean(world, factory);
    }
}

/* The reply is lost, for a moment nobody listens, and the next attempt connects again. */
static void goes_down(struct world *world)
{
    world->down = true;
}

static void the_undo_of_a_try_travels_ahead_of_the_next_one(void **state)
{
    (void)state;
    for (int32_t delay = 20; delay < 200; delay += 20) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        dlock_options twice = {.expiry_ms = 10000, .retry_count = 1, .retry_delay_ms = delay};
        works_again(factory, "k");
        world->latency_ms = 5;
        world_fault(world, FAULT_CLOSE_AFTER, DLOCKI_ASK);
        world_at(world, 7, goes_down);
        world_at(world, 15, server_revives);
        assert_yes(dlock_acquire(factory, &lock, "k", &twice), &lock);
        assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 1)->result, 1);
        world->latency_ms = 0;
        world_close_clean(world, factory);
    }
}

static void a_debt_lapses_with_its_lease(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    undo_later(world);
    owe(world, factory, "k", &no_wait);
    assert_int_equal(factory->debt_count, 1);
    world_sleep(world, 9000);
    assert_true(dlock_acquire(factory, &lock, "other", &no_wait));
    assert_int_equal(factory->debt_count, 1);
    world_sleep(world, 3000);
    assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(factory->debt_count, 1); /* its own, not the old one */
    assert_memory_equal(factory->debts[factory->debt_first].key, "other", 5);
    world_close(world, factory);
}

/* A connection that ended while nothing was under way leaves nothing to wait for. */
static void a_debt_lapses_after_a_reconnect_too(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    undo_later(world);
    owe(world, factory, "k", &no_wait);
    assert_true(dlock_acquire(factory, &lock, "other", &no_wait));
    server_restarts(world);
    world_sleep(world, 50);
    assert_true(dlock_extend(&lock, 0));
    assert_int_equal(world_seen(world, DLOCKI_PING), 0);
    world_sleep(world, 20000);
    assert_false(dlock_release(&lock));
    for (int i = factory->debt_first; i >= 0; i = factory->debts[i].next) {
        assert_memory_not_equal(factory->debts[i].key, "k", 2);
    }
    assert_int_equal(factory->debt_count, 1);
    world_close(world, factory);
}

/* A server that nobody heard of since may still obey: no lapse then, however long it takes. */
static void a_debt_of_a_stopped_server_does_not_lapse_before_it_was_heard(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    works_again(factory, "k");
    world->stopped = true;
    world->on_wait = clog_on_wait;
    world->cancel_at = world->sends + 1;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    world->send_room = -1;
    world_sleep(world, 60000);
    assert_no(dlock_acquire(factory, &lock, "other", &no_wait), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(factory->debt_count, 1);
    server_goes_on(world);
    works_again(factory, "k");
    world_close_clean(world, factory);
}

/* From then on its lease runs, whatever the server says to the undo. */
static void a_debt_lapses_once_the_server_was_heard(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    works_again(factory, "k");
    world->stopped = true;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    undo_later(world);
    server_goes_on(world);
    assert_yes(dlock_acquire(factory, &lock, "other", &no_wait), &lock);
    assert_int_equal(factory->debt_count, 1);
    world_sleep(world, 20000);
    assert_false(dlock_release(&lock));
    assert_int_equal(factory->debt_count, 1);
    assert_memory_equal(factory->debts[factory->debt_first].key, "other", 5);
    world_close(world, factory);
}

static void a_release_called_again_is_owed_once(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    server_dies(world);
    for (int i = 0; i < 5; i++) {
        assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
        assert_int_equal(factory->debt_count, 1);
    }
    server_revives(world);
    world_close_clean(world, factory);
}

/* A server that refuses the undo refuses it for good: it lapses, and makes room. */
static void a_debt_that_is_refused_is_given_up(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_answer(world, DLOCKI_GIVE_BACK, "-NOPERM x\r\n")->times = 0;
    owe(world, factory, "k", &no_wait);
    world_sleep(world, 1000);
    (void)dlock_acquire(factory, &lock, "other", &no_wait);
    dlock_forget(&lock);
    world->fault_count = 0;
    works_again(factory, "third");
    assert_int_equal(factory->debt_count, 0);
    assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), 2);
    world_sleep(world, 10000);
    world_close_clean(world, factory);
}

static void a_debt_is_not_hammered(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_options patient = {.wait_ms = 1000, .retry_delay_ms = 5000};
    (void)state;
    undo_later(world);
    owe(world, factory, "k", &no_wait);
    world_hold(world, "other", 100000);
    assert_no(dlock_acquire(factory, &lock, "other", &patient), &lock, DLOCK_TIMEOUT);
    assert_in_range(world_seen(world, DLOCKI_GIVE_BACK), 5, 15);
    world_delete(world, "other");
    world_close_clean(world, factory);
}

static void pauses_grow_for_debts_too(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_options patient = {.wait_ms = 20000, .retry_delay_ms = 5000};
    (void)state;
    undo_later(world);
    owe(world, factory, "k", &no_wait);
    world->fault_count = 0;
    server_dies(world);
    assert_no(dlock_acquire(factory, &lock, "other", &patient), &lock, DLOCK_UNREACHABLE);
    assert_in_range(world->connects, 5, 40);
    server_revives(world);
    world_sleep(world, 2000);
    world_close_clean(world, factory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_table_is_unreachable_without_sending),
        cmocka_unit_test(a_full_table_does_not_keep_a_holder_from_releasing),
        cmocka_unit_test(a_release_that_finds_the_table_full_enlarges_it_or_lapses),
        cmocka_unit_test(an_ask_is_not_sent_without_a_place_for_its_undo),
        cmocka_unit_test(a_place_is_kept_for_what_may_have_been_obeyed),
        cmocka_unit_test(every_ask_that_a_dead_server_took_is_undone),
        cmocka_unit_test(a_debt_that_was_told_later_travels_ahead_of_a_new_ask_on_its_key),
        cmocka_unit_test(the_undo_of_a_try_travels_ahead_of_the_next_one),
        cmocka_unit_test(a_debt_lapses_with_its_lease),
        cmocka_unit_test(a_debt_lapses_after_a_reconnect_too),
        cmocka_unit_test(a_debt_of_a_stopped_server_does_not_lapse_before_it_was_heard),
        cmocka_unit_test(a_debt_lapses_once_the_server_was_heard),
        cmocka_unit_test(a_release_called_again_is_owed_once),
        cmocka_unit_test(a_debt_that_is_refused_is_given_up),
        cmocka_unit_test(a_debt_is_not_hammered),
        cmocka_unit_test(pauses_grow_for_debts_too),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
