/* Whole calls on a scripted server: replies that are cut or too many, connections that end, hang
 * or never come. */
#include "tests/scripted.h"

static const dlock_options no_wait = {.expiry_ms = 10000};

static void one_round(struct world *world, dlock_factory *factory, int kind)
{
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.expiry_ms = 10000, .no_fence = kind == DLOCKI_SET};
    assert_yes(dlock_acquire(factory, &lock, "k", &options), &lock);
    assert_yes(dlock_extend(&lock, 20000), &lock);
    assert_true(dlock_remaining_ms(&lock) > 15000);
    assert_yes(dlock_release(&lock), &lock);
    world_hold(world, "k", 400);
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_BUSY);
    world_delete(world, "k");
}

static void a_reply_may_be_cut_at_every_byte(void **state)
{
    static const int kinds[] = {DLOCKI_AUTH, DLOCKI_SELECT,    DLOCKI_SETNAME, DLOCKI_ASK,
                                DLOCKI_SET,  DLOCKI_GIVE_BACK, DLOCKI_EXTEND};
    static const dlock_config config = {.client_name = "me", .password = "secret"};
    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        for (size_t cut = 0; cut < 64; cut++) {
            struct world *world = world_begin();
            dlock_factory *factory;
            struct fault *fault;
            world->url = "redis://model/1";
            world->database = 1;
            world->password = "secret";
            factory = world_open(world, &config);
            fault = world_fault(world, cut == 0 ? FAULT_DRIP : FAULT_PIECES, kinds[i]);
            fault->times = 0;
            fault->bytes = cut;
            fault->delay_ms = cut == 0 ? 1 : 20;
            world_fault(world, FAULT_DROP_REPLY, DLOCKI_PING);
            one_round(world, factory, kinds[i]);
            assert_int_equal(world->connects, 1);
            world_close_clean(world, factory);
        }
    }
}

static void send_may_take_one_byte_at_a_time(void **state)
{
    static const dlock_config config = {.client_name = "me", .password = "secret"};
    struct world *world = world_begin();
    dlock_factory *factory;
    (void)state;
    world->url = "redis://model/1";
    world->database = 1;
    world->password = "secret";
    world->one_byte = true;
    memset(world->loaded, 0, sizeof world->loaded);
    factory = world_open(world, &config);
    one_round(world, factory, DLOCKI_ASK);
    assert_int_equal(world->connects, 1);
    assert_int_equal(world->wholes, 3);
    world_close_clean(world, factory);
}

static void a_peer_that_never_reads_is_unreachable_in_time(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->send_room = 17;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - WORLD_START, 1000);
    world->send_room = -1;
    works_again(factory, "k");
    world_close_clean(world, factory);
}

static void a_dripping_server_cannot_stretch_the_bound(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_DRIP, DLOCKI_ASK)->delay_ms = 100;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->now - WORLD_START, 1000);
    assert_int_equal(world_key_count(world), 0);
    world_close_clean(world, factory);
}

static void a_reply_to_a_command_given_up_is_never_read(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world_fault(world, FAULT_DELAY, DLOCKI_ASK)->delay_ms = 1500;
    assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
    world_sleep(world, 1000);
    assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
    assert_string_equal(dlock_owner(&lock), world_holder(world, "k"));
    assert_int_equal(world->socket_number, 2);
    world_close_clean(world, factory);
}

static void a_reply_too_many_is_protocol(void **state)
{
    static const char *const texts[] = {
        "+OK\r\n", ":1\r\n", "*4\r\n:1\r\n:5\r\n:7\r\n:9\r\n", "$3\r\nabc\r\n", "-ERR what\r\n",
        "+",       "\r\n"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        world_fault(world, FAULT_MORE, DLOCKI_ASK)->text = texts[i];
        assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_PROTOCOL);
        works_again(factory, "k");
        assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
        world_fault(world, FAULT_MORE, DLOCKI_EXTEND)->text = texts[i];
        assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
        assert_no(dlock_extend(&lock, 0), &lock, DLOCK_PROTOCOL);
        world_fault(world, FAULT_MORE, DLOCKI_GIVE_BACK)->text = texts[i];
        assert_no(dlock_release(&lock), &lock, DLOCK_PROTOCOL);
        works_again(factory, "k");
        world_close_clean(world, factory);
    }
}

static void a_reply_too_few_is_protocol_or_unreachable_and_undone(void **state)
{
    static const int kinds[] = {DLOCKI_AUTH, DLOCKI_SELECT, DLOCKI_SETNAME};
    static const dlock_config config = {.client_name = "me", .password = "secret"};
    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct world *world = world_begin();
        dlock_factory *factory;
        dlock_lock lock = DLOCK_INIT;
        world->url = "redis://model/1";
        world->database = 1;
        world->password = "secret";
        factory = world_open(world, &config);
        world_fault(world, FAULT_DROP_REPLY, kinds[i]);
        assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_PROTOCOL);
        works_again(factory, "k");
        assert_int_equal(world_nth(world, DLOCKI_GIVE_BACK, 0)->result, 1);
        world_close_clean(world, factory);
    }
}

static void a_silent_server_is_unreachable_exactly_in_time(void **state)
{
    static const int32_t timeouts[] = {1, 10, 200, 0, 5000};
    (void)state;
    for (size_t i = 0; i < sizeof timeouts / sizeof *timeouts; i++) {
        struct world *world = world_begin();
        dlock_config config = {.command_timeout_ms = timeouts[i]};
        dlock_factory *factory = world_open(world, &config);
        dlock_lock lock = DLOCK_INIT;
        int32_t bound = timeouts[i] != 0 ? timeouts[i] : DLOCK_DEFAULT_COMMAND_TIMEOUT_MS;
        world_fault(world, FAULT_DROP_REQUEST, ANY_COMMAND)->times = 0;
        assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
        assert_int_equal(world->now - WORLD_START, bound);
        assert_int_equal(dlock_why(&lock)->os_errno, ETIMEDOUT);
        assert_int_equal(dlock_why(&lock)->node, 0);
        world_close_clean(world, factory);
    }
}

/* Unknown shows in what "later" to the second ask leads to: an undo, or none. */
static void an_end_is_unknown_only_if_a_byte_of_the_command_left(void **state)
{
    static const dlock_config config = {.client_name = "me", .password = "secret"};
    (void)state;
    for (int left = 0; left < 2; left++) {
        for (int kind = DLOCKI_AUTH; kind <= DLOCKI_SETNAME; kind++) {
            struct world *world = world_begin();
            dlock_factory *factory;
            dlock_lock lock = DLOCK_INIT;
            world->url = "redis://model/1";
            world->database = 1;
            world->password = "secret";
            /* Byte by byte, the end comes before the ask's first one is sent. */
            world->one_byte = left == 0;
            factory = world_open(world, &config);
            world_fault(world, FAULT_CLOSE_BEFORE, kind)->bytes = (size_t)kind % 2;
            world_answer(world, DLOCKI_ASK, "-LOADING x\r\n");
            assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
            works_again(factory, "other");
            assert_int_equal(world_seen(world, DLOCKI_GIVE_BACK), left != 0 ? 2 : 1);
            world_close_clean(world, factory);
        }
    }
}

/* Where scripts are forbidden nothing can be given back: a connection proves them first. */
static void a_plain_set_is_only_sent_where_a_script_was_seen_to_work(void **state)
{
    static const dlock_options plain = {.expiry_ms = 10000, .no_fence = true};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    for (int i = 1; i <= 2; i++) {
        assert_yes(dlock_acquire(factory, &lock, "k", &plain), &lock);
        assert_int_equal(dlock_fence(&lock), 0);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(world_seen(world, DLOCKI_ASK), i);
        assert_yes(dlock_acquire(factory, &lock, "k", &plain), &lock);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(world_seen(world, DLOCKI_SET), i);
        server_restarts(world);
        world_load_scripts(world);
        world_sleep(world, 10);
    }
    world_close_clean(world, factory);
}

static void an_end_in_the_middle_of_a_reply_is_asked_again(void **state)
{
    (void)state;
    for (size_t cut = 0; cut < 18; cut++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        world_fault(world, FAULT_CUT_REPLY, DLOCKI_ASK)->bytes = cut;
        world_fault(world, FAULT_CUT_REPLY, DLOCKI_EXTEND)->bytes = cut % 4;
        world_fault(world, FAULT_CUT_REPLY, DLOCKI_GIVE_BACK)->bytes = cut % 4;
        assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
        assert_yes(dlock_extend(&lock, 0), &lock);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(world_key_count(world), 0);
        world_close_clean(world, factory);
    }
}

static void a_server_that_cannot_be_connected_to_is_unreachable(void **state)
{
    static const struct {
        struct fake_address address;
        int32_t timeout;
        int64_t took;
        int os_errno;
    } cases[] = {
        {{ECONNREFUSED, 0, 0}, 0, 0, ECONNREFUSED}, {{ENETUNREACH, 0, 0}, 0, 0, ENETUNREACH},
        {{0, ECONNREFUSED, 0}, 0, 0, ECONNREFUSED}, {{0, EHOSTUNREACH, 30}, 0, 30, EHOSTUNREACH},
        {{0, 0, DLOCKI_NEVER}, 0, 1000, ETIMEDOUT}, {{0, 0, DLOCKI_NEVER}, 123, 123, ETIMEDOUT},
        {{0, 0, 1500}, 0, 1000, ETIMEDOUT},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world *world = world_begin();
        dlock_config config = {.connect_timeout_ms = cases[i].timeout};
        dlock_factory *factory = world_open(world, &config);
        dlock_lock lock = DLOCK_INIT;
        world->addresses[0] = cases[i].address;
        assert_no(dlock_acquire(factory, &lock, "k", &no_wait), &lock, DLOCK_UNREACHABLE);
        assert_int_equal(world->now - WORLD_START, cases[i].took);
        assert_int_equal(dlock_why(&lock)->os_errno, cases[i].os_errno);
        assert_int_equal(world->open_sockets, 0);
        assert_int_equal(world->connects, 1);
        memset(&world->addresses[0], 0, sizeof world->addresses[0]);
        works_again(factory, "k");
        world_close_clean(world, factory);
    }
}

static void pauses_grow_while_connects_fail(void **state)
{
    static const dlock_options options = {.retry_count = 30};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    int64_t late = 0;
    (void)state;
    world->down = true;
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->connects, 31);
    for (int i = 1; i < 31; i++) {
        int64_t pause = world->connected_at[i] - world->connected_at[i - 1];
        int64_t factor = i < 4 ? INT64_C(1) << (i - 1) : 8;
        assert_in_range(pause, 50 * factor, 250 * factor);
        late += i > 4 ? pause : 0;
    }
    assert_true(late / 26 > 900 && late / 26 < 1500); /* spread, not all the same */
    /* Once it had worked, the first reconnect is immediate, and pauses are short again. */
    world->down = false;
    works_again(factory, "k");
    world_at(world, 0, server_dies);
    world_sleep(world, 20);
    late = world->now;
    assert_no(dlock_acquire(factory, &lock, "k", &(dlock_options){.retry_count = 1}), &lock,
              DLOCK_UNREACHABLE);
    assert_true(world->now - late <= 250);
    world_close_clean(world, factory);
}

/* struct fake_address: what becomes of one that is connected to. */
#define REFUSES \
    { \
        ECONNREFUSED, 0, 0 \
    }
#define SILENT \
    { \
        0, 0, DLOCKI_NEVER \
    }
#define LATE \
    { \
        0, ECONNREFUSED, 40 \
    }
#define WELL \
    { \
        0, 0, 0 \
    }

static void the_next_address_is_tried_within_the_same_bound(void **state)
{
    static const struct {
        int count;
        struct fake_address addresses[3];
        bool answer;
        int64_t took;
    } cases[] = {
        {2, {REFUSES, WELL, WELL}, true, 0},        {2, {LATE, WELL, WELL}, true, 40},
        {2, {SILENT, WELL, WELL}, true, 500},       {3, {SILENT, SILENT, WELL}, true, 666},
        {3, {REFUSES, LATE, WELL}, true, 40},       {2, {REFUSES, SILENT, WELL}, false, 1000},
        {3, {SILENT, SILENT, SILENT}, false, 1000}, {2, {REFUSES, REFUSES, WELL}, false, 0},
        {0, {WELL, WELL, WELL}, false, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        world->address_count = cases[i].count;
        memcpy(world->addresses, cases[i].addresses, sizeof cases[i].addresses);
        assert_int_equal(dlock_acquire(factory, &lock, "k", &no_wait), cases[i].answer);
        assert_code(&lock, cases[i].answer ? DLOCK_OK : DLOCK_UNREACHABLE);
        assert_in_range(world->now - WORLD_START, cases[i].took, cases[i].took + 1);
        world_close(world, factory);
    }
}

static void without_a_descriptor_it_is_unreachable_and_does_not_spin(void **state)
{
    static const dlock_options options = {.retry_count = 3, .retry_delay_ms = 100};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    world->no_descriptors = true;
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(dlock_why(&lock)->os_errno, EMFILE);
    assert_int_equal(world->connects, 4);
    assert_true(world->most_spins < 10);
    world->no_descriptors = false;
    works_again(factory, "k");
    world_close_clean(world, factory);
}

static void a_restart_between_two_calls_costs_no_attempt(void **state)
{
    (void)state;
    for (int64_t quiet = 0; quiet < 40; quiet += 5) {
        for (int verb = 0; verb < 3; verb++) {
            struct world *world = world_begin();
            dlock_factory *factory = world_open(world, NULL);
            dlock_lock lock = DLOCK_INIT;
            works_again(factory, "other");
            if (verb > 0) {
                assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
            }
            server_restarts(world);
            world_sleep(world, quiet);
            if (verb == 0) {
                assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
            } else if (verb == 1) {
                assert_yes(dlock_extend(&lock, 0), &lock);
            }
            assert_yes(dlock_release(&lock), &lock);
            assert_int_equal(world->socket_number, 2);
            /* Read before it was written to: nothing was lost, so no barrier is needed. */
            assert_int_equal(world_seen(world, DLOCKI_PING), quiet < 10);
            world_close_clean(world, factory);
        }
    }
}

static void unasked_bytes_of_a_quiet_connection_replace_it(void **state)
{
    static const char *const texts[] = {"+OK\r\n",
                                        ":1\r\n",
                                        "+O",
                                        "*",
                                        "\r\n",
                                        "*4\r\n:1\r\n:5\r\n:60000\r\n:9\r\n",
                                        "*4\r\n:1\r\n:5\r\n:600"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct world *world = world_begin();
        dlock_factory *factory = world_open(world, NULL);
        dlock_lock lock = DLOCK_INIT;
        works_again(factory, "k");
        world_push(world, texts[i]);
        world_sleep(world, 10);
        assert_yes(dlock_acquire(factory, &lock, "k", &no_wait), &lock);
        assert_int_equal(world_nth(world, DLOCKI_ASK, 1)->socket, 2);
        assert_string_equal(world_holder(world, "k"), dlock_owner(&lock));
        assert_yes(dlock_release(&lock), &lock);
        world_close_clean(world, factory);
    }
}

static void a_busy_connection_is_not_read_before_it_is_written_to(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    int receives;
    (void)state;
    works_again(factory, "k");
    receives = world->receives;
    works_again(factory, "k");
    assert_int_equal(world->receives - receives, 2);
    world_sleep(world, 10);
    receives = world->receives;
    works_again(factory, "k");
    assert_int_equal(world->receives - receives, 3);
    world_close_clean(world, factory);
}

/* Nothing new travels on a connection whose host vanished, and the call ends in time. */
static void a_reset_while_nothing_is_under_way_is_no_failure(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    (void)state;
    works_again(factory, "k");
    socket_hang_up(world, &world->sockets[0], true);
    world_sleep(world, 50);
    works_again(factory, "k");
    assert_int_equal(world->socket_number, 2);
    world_close_clean(world, factory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reply_may_be_cut_at_every_byte),
        cmocka_unit_test(send_may_take_one_byte_at_a_time),
        cmocka_unit_test(a_peer_that_never_reads_is_unreachable_in_time),
        cmocka_unit_test(a_dripping_server_cannot_stretch_the_bound),
        cmocka_unit_test(a_reply_to_a_command_given_up_is_never_read),
        cmocka_unit_test(a_reply_too_many_is_protocol),
        cmocka_unit_test(a_reply_too_few_is_protocol_or_unreachable_and_undone),
        cmocka_unit_test(a_silent_server_is_unreachable_exactly_in_time),
        cmocka_unit_test(an_end_is_unknown_only_if_a_byte_of_the_command_left),
        cmocka_unit_test(a_plain_set_is_only_sent_where_a_script_was_seen_to_work),
        cmocka_unit_test(an_end_in_the_middle_of_a_reply_is_asked_again),
        cmocka_unit_test(a_server_that_cannot_be_connected_to_is_unreachable),
        cmocka_unit_test(pauses_grow_while_connects_fail),
        cmocka_unit_test(the_next_address_is_tried_within_the_same_bound),
        cmocka_unit_test(without_a_descriptor_it_is_unreachable_and_does_not_spin),
        cmocka_unit_test(a_restart_between_two_calls_costs_no_attempt),
        cmocka_unit_test(unasked_bytes_of_a_quiet_connection_replace_it),
        cmocka_unit_test(a_busy_connection_is_not_read_before_it_is_written_to),
        cmocka_unit_test(a_reset_while_nothing_is_under_way_is_no_failure),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
