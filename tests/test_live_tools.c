/* What operators look at and do: dlock_inspect, dlock_break, the counters and the events. */
#define _GNU_SOURCE
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"
#include "tests/ways.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <unistd.h>

static const dlock_options once = {.expiry_ms = 30000};
static const dlock_options for_ever = {.wait_ms = DLOCK_FOREVER};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

/* As server_soon, while a loop turns. */
static void loop_soon(dlock_factory *factory, struct server *server, const char *question,
                      int64_t answer)
{
    int64_t end = now_ms() + 10000;
    while (server_integer(server, question) != answer && now_ms() < end) {
        (void)loop_for(factory, 2);
    }
    assert_int_equal(server_integer(server, question), answer);
}

/* A tool was false, with this code and a proper text. */
static void check_error(bool answer, const dlock_error *error, int expected, const char *file,
                        int line)
{
    if (answer || error->code != expected) {
        print_error("%s, expected \"%s\", but it is \"%s\": %s\n", answer ? "true" : "false",
                    dlock_code_text(expected), dlock_code_text(error->code), error->text);
        _fail(file, line);
    }
    if (expected != DLOCK_OK) {
        check_text(error->text, file, line);
    }
}
#define assert_error(answer, error, expected) \
    check_error((answer), (error), (expected), __FILE__, __LINE__)

/* -------------------------------------------------------------------------------------- inspect */

static void inspect_tells_who_holds_a_key_for_how_long_and_who_waits(void **state)
{
    enum { WAITERS = 3 };
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    dlock_lock waiting[WAITERS];
    struct told told[WAITERS];
    dlock_info info;
    dlock_error error;
    memset(waiting, 0, sizeof waiting);
    memset(told, 0, sizeof told);
    memset(&info, 0xAA, sizeof info);
    assert_error(dlock_inspect(other, "k", 0, &info, &error), &error, DLOCK_OK);
    assert_false(info.held || info.foreign);
    assert_int_equal(info.fence, 0);
    assert_int_equal(info.waiters, 0);
    assert_string_equal(info.owner, "");
    assert_int_equal(server_integer(&live->server, "DBSIZE"), 0);
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    uint64_t fence = dlock_fence(&held);
    for (int i = 0; i < WAITERS; i++) {
        assert_true(
            dlock_acquire_start(live->factory, &waiting[i], "k", &for_ever, tell, &told[i]));
        loop_soon(live->factory, &live->server, "ZCARD {k}:queue", i + 1);
        memset(&info, 0xAA, sizeof info);
        memset(&error, 0xAA, sizeof error);
        assert_true(dlock_inspect(other, "k", 0, &info, &error));
        assert_int_equal(error.code, DLOCK_OK);
        assert_true(info.held);
        assert_false(info.foreign);
        assert_in_range(info.remaining_ms, 15000, 30000);
        assert_true(info.fence == fence);
        assert_int_equal(info.waiters, i + 1);
        assert_string_equal(info.owner, dlock_owner(&held));
    }
    assert_true(dlock_inspect(other, "k", 0, &info, NULL));
    assert_true(dlock_inspect(other, "k", 0, NULL, &error));    /* the answer may be enough */
    assert_true(dlock_inspect(live->factory, "kxyz", 1, &info, NULL));
    assert_string_equal(info.owner, dlock_owner(&held));
    for (int i = 0; i < WAITERS; i++) {
        dlock_cancel(&waiting[i]);
        (void)loop_until(live->factory, &told[i].count, 1);
    }
    assert_yes(dlock_release(&held), &held);
    assert_error(dlock_inspect(other, "k", 0, &info, &error), &error, DLOCK_OK);
    assert_false(info.held);
    assert_true(info.fence == fence);       /* the last one given out */
    assert_int_equal(info.waiters, 0);
    dlock_close(other);
    live_end(live);
}

static void inspect_is_one_command_and_changes_nothing(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_info info;
    dlock_error error;
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    assert_true(dlock_inspect(live->factory, "k", 0, &info, &error));
    (void)dlock_inspect(live->factory, "free", 0, &info, &error);
    int64_t dirty = server_info(&live->server, "persistence", "rdb_changes_since_last_save");
    for (int i = 0; i < 10; i++) {
        int64_t scripts = server_scripts(&live->server);
        int64_t pings = server_calls(&live->server, "ping");
        assert_true(dlock_inspect(live->factory, "k", 0, &info, &error));
        assert_error(dlock_inspect(live->factory, "free", 0, &info, &error), &error, DLOCK_OK);
        assert_int_equal(server_scripts(&live->server), scripts + 2);
        assert_int_equal(server_calls(&live->server, "ping"), pings);
    }
    server_do(&live->server, "SCRIPT FLUSH");
    assert_true(dlock_inspect(live->factory, "k", 0, &info, &error));
    assert_int_equal(server_info(&live->server, "persistence", "rdb_changes_since_last_save"),
                     dirty);
    assert_held(&live->server, &held, "k");
    live_end(live);
}

static void inspect_shows_foreign_values_safely(void **state)
{
    static char large[1024 * 1024];
    static const struct {
        const char *value;
        size_t length;
        const char *owner;
    } cases[] = {
        {"theirs", 6, "theirs"},
        {"", 0, ""},
        {"a\0b", 3, "a?b"},
        {"\0", 1, "?"},
        {"\x1b[31m\r\n\x7f\x80\xff", 10, "?[31m?????"},
        {"%s%n", 4, "%s%n"},
        {"dl1-short", 9, "dl1-short"},
        {"DL1-00000000000000000000000000000000", 36, "DL1-00000000000000000000000000000000"},
        {large, sizeof large, NULL},
    };
    struct live *live = live_of(state);
    memset(large, 'x', sizeof large);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_info info;
        dlock_error error;
        memset(&info, 0xAA, sizeof info);
        freeReplyObject(server_command(&live->server, "SET k %b", cases[i].value, cases[i].length));
        assert_true(dlock_inspect(live->factory, "k", 0, &info, &error));
        assert_true(info.held);
        assert_true(info.foreign);
        assert_int_equal(info.remaining_ms, -1);
        assert_int_equal(info.fence, 0);
        assert_int_equal(info.waiters, 0);
        if (cases[i].owner != NULL) {
            assert_string_equal(info.owner, cases[i].owner);
        } else {
            assert_int_equal(strlen(info.owner), 64);
        }
        server_do(&live->server, "PEXPIRE k 60000");
        assert_true(dlock_inspect(live->factory, "k", 0, &info, &error));
        assert_in_range(info.remaining_ms, 30000, 60000);
    }
    live_end(live);
}

static void inspect_refuses_what_is_no_string_and_says_so(void **state)
{
    static const char *const commands[] = {"RPUSH k a", "HSET k f v", "ZADD k 1 a", "SADD k a",
                                           "XADD k * f v"};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        dlock_info info;
        dlock_error error;
        server_do(&live->server, commands[i]);
        assert_error(dlock_inspect(live->factory, "k", 0, &info, &error), &error, DLOCK_REFUSED);
        assert_error(dlock_break(live->factory, "k", 0, &error), &error, DLOCK_REFUSED);
        assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
        server_do(&live->server, "DEL k");
    }
    live_end(live);
}

/* Helper keys that are none: a queue, a counter of another type. */
static void inspect_survives_helper_keys_of_another_type(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_info info;
    dlock_error error;
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    server_do(&live->server, "SET {k}:fence rubbish");
    server_do(&live->server, "SET {k}:queue rubbish");
    assert_true(dlock_inspect(live->factory, "k", 0, &info, &error));
    assert_true(info.held);
    assert_string_equal(info.owner, dlock_owner(&held));
    assert_int_equal(info.fence, 0);
    assert_int_equal(info.waiters, 0);
    assert_true(dlock_break(live->factory, "k", 0, &error));
    assert_gone(&live->server, "k");
    live_end(live);
}

static void tools_take_keys_with_any_bytes(void **state)
{
    static const struct {
        const char *key;
        size_t length;
    } cases[] = {{"a\0b", 3}, {"{u}:x", 0}, {"a}b", 0}, {" %s\r\n", 5}, {"\xff", 1}};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_options options = {.key_length = cases[i].length};
        dlock_lock held = DLOCK_INIT;
        dlock_info info;
        dlock_error error;
        assert_yes(dlock_acquire(live->factory, &held, cases[i].key, &options), &held);
        assert_true(dlock_inspect(live->factory, cases[i].key, cases[i].length, &info, &error));
        assert_string_equal(info.owner, dlock_owner(&held));
        assert_true(info.fence == dlock_fence(&held));
        assert_true(dlock_break(live->factory, cases[i].key, cases[i].length, &error));
        assert_error(dlock_inspect(live->factory, cases[i].key, cases[i].length, &info, &error),
                     &error, DLOCK_OK);
        assert_no(dlock_release(&held), &held, DLOCK_LOST);
    }
    live_end(live);
}

static void tools_with_nonsense_are_an_argument_and_nothing_is_sent(void **state)
{
    struct live *live = live_of(state);
    static char long_key[DLOCK_KEY_MAX + 2];
    dlock_factory *factory = live->factory;
    dlock_info info;
    dlock_error error;
    memset(long_key, 'k', DLOCK_KEY_MAX + 1);
    int64_t heard = server_heard(&live->server);
    assert_error(dlock_inspect(NULL, "k", 0, &info, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_inspect(factory, NULL, 0, &info, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_inspect(factory, NULL, 3, &info, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_inspect(factory, "", 0, &info, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_inspect(factory, long_key, 0, &info, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_inspect(factory, "k", SIZE_MAX, &info, &error), &error, DLOCK_ARGUMENT);
    assert_false(dlock_inspect(factory, NULL, 0, NULL, NULL));
    assert_error(dlock_break(NULL, "k", 0, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_break(factory, NULL, 0, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_break(factory, "", 0, &error), &error, DLOCK_ARGUMENT);
    assert_error(dlock_break(factory, long_key, 0, &error), &error, DLOCK_ARGUMENT);
    assert_false(dlock_break(factory, NULL, 0, NULL));
    assert_int_equal(server_heard(&live->server), heard);
    live_end(live);
}

static void tools_are_bounded_when_no_server_answers(void **state)
{
    struct live *live = live_of(state);
    dlock_config config = {.command_timeout_ms = 200};
    dlock_lock held = DLOCK_INIT;
    dlock_info info;
    dlock_error error;
    for (int connected = 0; connected < 2; connected++) {
        live_reopen(live, live->server.url, &config);
        if (connected) {
            assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
        }
        server_pause(&live->server);
        int64_t start = now_ms();
        assert_error(dlock_inspect(live->factory, "k", 0, &info, &error), &error,
                     DLOCK_UNREACHABLE);
        assert_took(start, 200, 250);
        start = now_ms();
        assert_error(dlock_break(live->factory, "k", 0, &error), &error, DLOCK_UNREACHABLE);
        assert_took(start, 0, 700);
        server_continue(&live->server);
        bool found = dlock_inspect(live->factory, "k", 0, &info, &error);
        assert_int_equal(error.code, DLOCK_OK);
        assert_int_equal(found, connected);
    }
    server_kill(&live->server);
    int64_t start = now_ms();
    assert_error(dlock_inspect(live->factory, "k", 0, &info, &error), &error, DLOCK_UNREACHABLE);
    assert_error(dlock_break(live->factory, "k", 0, &error), &error, DLOCK_UNREACHABLE);
    assert_took(start, 0, 300);
    live_end(live);
}

/* ---------------------------------------------------------------------------------------- break */

struct shared {
    char url[SERVER_URL_MAX];
    int what;
    atomic_int ready;
    atomic_int lost;
    _Atomic int64_t lost_at;
    atomic_int wrong;
    atomic_int go;
};

static void share_loss(dlock_lock *lock, void *user)
{
    struct shared *shared = (struct shared *)user;
    if (dlock_is_acquired(lock) || dlock_why(lock)->code != DLOCK_LOST) {
        atomic_store(&shared->wrong, 1);
    }
    atomic_store(&shared->lost_at, now_ms());
    atomic_fetch_add(&shared->lost, 1);
}

enum { RENEWED_BY_THREAD, RENEWED_BY_LOOP, WAITED_ONCE, HOLDERS, NEVER_WAITED = HOLDERS };

/* Holds "k" for half a minute, in one of several ways. */
static int holder_body(void *argument)
{
    struct shared *shared = (struct shared *)argument;
    dlock_options options = {
        .auto_renew = shared->what <= RENEWED_BY_LOOP, .on_lost = share_loss, .user = shared};
    dlock_lock lock = DLOCK_INIT;
    dlock_lock before = DLOCK_INIT;
    dlock_factory *factory = dlock_open(shared->url, NULL, NULL);
    child_check(factory != NULL);
    if (shared->what == WAITED_ONCE) {
        dlock_options waits = {.wait_ms = 50};
        child_check(!dlock_acquire(factory, &before, "busy", &waits));
    }
    if (shared->what == RENEWED_BY_THREAD || shared->what == NEVER_WAITED) {
        child_check(dlock_acquire(factory, &lock, "k", &options));
    } else {
        child_check(loop_acquire(factory, &lock, "k", &options));
    }
    atomic_store(&shared->ready, 1);
    int64_t end = now_ms() + 20000;
    while (atomic_load(&shared->go) == 0 && now_ms() < end) {
        if (shared->what == RENEWED_BY_LOOP || shared->what == WAITED_ONCE) {
            (void)loop_for(factory, 5);
        } else {
            pause_ms(1);
        }
    }
    if (shared->what == NEVER_WAITED) {
        child_check(dlock_is_acquired(&lock));      /* nobody could tell it so far */
        child_check(!dlock_extend(&lock, 60000));
        child_check(dlock_why(&lock)->code == DLOCK_LOST);
    }
    child_check(!dlock_is_acquired(&lock));
    child_check(!dlock_release(&lock) && dlock_why(&lock)->code == DLOCK_LOST);
    /* Who asks is answered; on_lost is for who does not ask. */
    child_check(atomic_load(&shared->lost) == (shared->what == NEVER_WAITED ? 0 : 1));
    dlock_close(factory);
    return 0;
}

static void break_takes_the_lock_tells_the_holder_and_serves_the_first_in_line(void **state)
{
    struct live *live = live_of(state);
    server_do(&live->server, "SET busy theirs");
    for (int what = 0; what <= NEVER_WAITED; what++) {
        struct shared *shared = (struct shared *)shared_memory(sizeof *shared);
        dlock_lock first = DLOCK_INIT;
        dlock_lock second = DLOCK_INIT;
        struct told told[2] = {{0}, {0}};
        dlock_error error;
        (void)snprintf(shared->url, sizeof shared->url, "%s", live->server.url);
        shared->what = what;
        print_message("             holder %d\n", what);
        int64_t listening = inboxes(&live->server);
        pid_t pid = child_start(holder_body, shared);
        await(&shared->ready, 1);
        inboxes_wait(&live->server, listening + (what < HOLDERS ? 1 : 0));
        assert_true(dlock_acquire_start(live->factory, &first, "k", &for_ever, tell, &told[0]));
        loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
        assert_true(dlock_acquire_start(live->factory, &second, "k", &for_ever, tell, &told[1]));
        loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 2);
        pause_ms(50);
        assert_int_equal(atomic_load(&shared->lost), 0);
        dlock_factory *operator_ = open_factory(live->server.url, NULL);
        int64_t start = now_ms();
        memset(&error, 0xAA, sizeof error);
        assert_true(dlock_break(operator_, "k", 0, &error));
        assert_int_equal(error.code, DLOCK_OK);
        (void)loop_until(live->factory, &told[0].count, 1);
        assert_took(start, 0, 500);
        assert_yes(told[0].answer, &first);
        assert_held(&live->server, &first, "k");
        assert_int_equal(atomic_load(&told[1].count), 0);
        if (what < HOLDERS) {
            await(&shared->lost, 1);
            assert_in_range(atomic_load(&shared->lost_at) - start + 5, 0, 1500);
        }
        pause_ms(50);
        atomic_store(&shared->go, 1);
        assert_int_equal(child_wait(pid), 0);
        assert_int_equal(atomic_load(&shared->wrong), 0);
        /* The one that was served is not taken for the one that was broken. */
        assert_held(&live->server, &first, "k");
        assert_yes(loop_release(live->factory, &first), &first);
        (void)loop_until(live->factory, &told[1].count, 1);
        assert_yes(told[1].answer, &second);
        assert_yes(loop_release(live->factory, &second), &second);
        dlock_close(operator_);
    }
    live_end(live);
}

static void break_of_a_free_key_is_false_and_ok(void **state)
{
    struct live *live = live_of(state);
    dlock_error error;
    dlock_lock lock = DLOCK_INIT;
    assert_error(dlock_break(live->factory, "k", 0, &error), &error, DLOCK_OK);
    assert_false(dlock_break(live->factory, "k", 0, NULL));
    assert_int_equal(server_integer(&live->server, "DBSIZE"), 0);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_yes(dlock_release(&lock), &lock);
    assert_error(dlock_break(live->factory, "k", 0, &error), &error, DLOCK_OK);
    assert_int_equal(server_integer(&live->server, "DBSIZE"), 1);
    live_end(live);
}

static void break_takes_a_foreign_lock_and_serves_who_waits(void **state)
{
    static const struct {
        const char *value;
        size_t length;
    } cases[] = {{"theirs", 6},
                 {"", 0},
                 {"a\0b", 3},
                 {"\xff\x01 x", 4},
                 {"0123456789012345678901234567890123456789012345678901234567890123", 64}};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_error error;
        struct told told = {0};
        dlock_options waits = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 100000};
        freeReplyObject(server_command(&live->server, "SET k %b", cases[i].value, cases[i].length));
        assert_true(dlock_break(live->factory, "k", 0, &error));
        assert_int_equal(error.code, DLOCK_OK);
        assert_gone(&live->server, "k");
        freeReplyObject(server_command(&live->server, "SET k %b", cases[i].value, cases[i].length));
        assert_true(dlock_acquire_start(live->factory, &lock, "k", &waits, tell, &told));
        loop_soon(live->factory, &live->server, "ZCARD {k}:queue", 1);
        assert_true(dlock_break(live->factory, "k", 0, &error));
        int64_t start = now_ms();
        (void)loop_until(live->factory, &told.count, 1);
        assert_took(start, 0, 500);
        assert_yes(told.answer, &lock);
        assert_held(&live->server, &lock, "k");
        assert_yes(loop_release(live->factory, &lock), &lock);
    }
    live_end(live);
}

/* Longer than what anybody looks at: either it is broken, or it stays and the answer says why. */
static void break_of_a_very_long_foreign_value_is_never_half_done(void **state)
{
    static char large[1024 * 1024];
    struct live *live = live_of(state);
    dlock_error error;
    for (size_t length = 65; length <= sizeof large; length *= 128) {
        memset(large, 'x', sizeof large);
        freeReplyObject(server_command(&live->server, "SET k %b", large, length));
        memset(&error, 0xAA, sizeof error);
        bool answer = dlock_break(live->factory, "k", 0, &error);
        assert_int_equal(server_integer(&live->server, "EXISTS k"), answer ? 0 : 1);
        if (!answer) {
            assert_error(answer, &error, DLOCK_REFUSED);
            assert_int_equal(server_integer(&live->server, "STRLEN k"), length);
        }
    }
    live_end(live);
}

/* The operator may be the holder's own process, and its own factory. */
static void break_of_ones_own_lock_is_told_like_any_other(void **state)
{
    struct live *live = live_of(state);
    FRESH(struct losses, losses);
    dlock_options options = {.auto_renew = true, .on_lost = count_loss, .user = &losses};
    FRESH(dlock_lock, lock);
    dlock_error error;
    for (int by_loop = 0; by_loop < 2; by_loop++) {
        memset(&losses, 0, sizeof losses);
        if (by_loop) {
            live_reopen(live, live->server.url, NULL);
            assert_yes(loop_acquire(live->factory, &lock, "k", &options), &lock);
            (void)loop_for(live->factory, 100);
        } else {
            assert_yes(dlock_acquire(live->factory, &lock, "k", &options), &lock);
        }
        inboxes_wait(&live->server, 1);
        pause_ms(20);
        int64_t start = now_ms();
        assert_true(dlock_break(live->factory, "k", 0, &error));
        if (by_loop) {
            (void)loop_until(live->factory, &losses.count, 1);
        } else {
            await(&losses.count, 1);
        }
        assert_took(start, 0, 500);
        assert_int_equal(atomic_load(&losses.wrong), 0);
        assert_gone(&live->server, "k");
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
        assert_int_equal(atomic_load(&losses.count), 1);
    }
    live_end(live);
}

/* ---------------------------------------------------------------------------------------- stats */

static void every_counter_counts_what_it_says(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = live->factory;
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_options brief = {.expiry_ms = 100};
    dlock_lock lock = DLOCK_INIT;
    dlock_lock held = DLOCK_INIT;
    struct told told = {0};
    dlock_stats stats;
    memset(&stats, 0xAA, sizeof stats);
    dlock_stats_get(factory, &stats);
    static const dlock_stats zero;
    assert_memory_equal(&stats, &zero, sizeof stats);
    for (int i = 0; i < 2; i++) {       /* the server has met the scripts, so that one is one */
        assert_yes(dlock_acquire(other, &lock, "warm", &once), &lock);
        assert_yes(dlock_extend(&lock, 0), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    assert_yes(dlock_acquire(factory, &lock, "k", &once), &lock);
    dlock_stats_get(factory, &stats);
    assert_int_equal(stats.acquired, 1);
    assert_int_equal(stats.held, 1);
    assert_int_equal(stats.connects, 1);
    assert_int_equal(stats.disconnects, 0);
    uint64_t commands = stats.commands;
    assert_true(commands >= 1);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_int_equal(stats_of(factory).renewed, 1);
    assert_int_equal(stats_of(factory).commands, commands + 1);
    assert_no(dlock_acquire(factory, &held, "k", &once), &held, DLOCK_BUSY);
    assert_int_equal(stats_of(factory).not_acquired, 1);
    assert_int_equal(stats_of(factory).commands, commands + 2);
    assert_yes(dlock_release(&lock), &lock);
    assert_int_equal(stats_of(factory).released, 1);
    assert_int_equal(stats_of(factory).held, 0);
    assert_int_equal(stats_of(factory).commands, commands + 3);
    assert_yes(dlock_acquire(factory, &lock, "k", &brief), &lock);
    server_do(&live->server, "DEL k");
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_LOST);
    assert_int_equal(stats_of(factory).lost, 1);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_int_equal(stats_of(factory).lost, 1);
    assert_int_equal(stats_of(factory).released, 1);
    assert_yes(dlock_acquire(other, &held, "k", &once), &held);
    assert_true(dlock_acquire_start(factory, &lock, "k", &for_ever, tell, &told));
    assert_int_equal(stats_of(factory).pending, 1);
    loop_soon(factory, &live->server, "ZCARD {k}:queue", 1);
    assert_int_equal(stats_of(factory).handed_over, 0);
    assert_int_equal(stats_of(factory).connects, 2);
    assert_yes(dlock_release(&held), &held);
    (void)loop_until(factory, &told.count, 1);
    dlock_stats_get(factory, &stats);
    assert_int_equal(stats.pending, 0);
    assert_int_equal(stats.handed_over, 1);
    assert_int_equal(stats.acquired, 3);
    assert_int_equal(stats.held, 1);
    assert_int_equal(stats.undone, 0);
    assert_true(dlock_release_start(&lock, NULL, NULL));
    assert_int_equal(stats_of(factory).held, 0);
    assert_int_equal(stats_of(factory).debts, 1);
    int64_t end = now_ms() + 5000;
    while (stats_of(factory).debts > 0 && now_ms() < end) {
        (void)loop_for(factory, 2);
    }
    assert_int_equal(stats_of(factory).debts, 0);
    assert_int_equal(stats_of(factory).undone, 1);
    server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
    (void)loop_for(factory, 100);
    assert_yes(loop_acquire(factory, &lock, "k", &once), &lock);
    dlock_stats_get(factory, &stats);
    assert_true(stats.disconnects >= 1);
    assert_true(stats.connects >= 3);
    assert_int_equal(stats.acquired, 4);
    dlock_stats_get(NULL, &stats);
    dlock_stats_get(factory, NULL);
    dlock_close(other);
    live_end(live);
}

/* --------------------------------------------------------------------------------------- events */

enum { RECORDS_MAX = 16384, SECRETS = 2 };

struct record {
    int kind;
    int code;
    int node;
    bool inbox;
    char key[24];
    size_t key_length;
    uint64_t fence;
    int64_t elapsed_ms;
};

static struct journal {
    pthread_mutex_t mutex;
    int count;
    struct record list[RECORDS_MAX];
    int bad_texts;
    int inside;                 /* callbacks under way */
    const char *secret;
} journal = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static const char *event_name(int kind)
{
#define NAME(name, number) \
    case DLOCK_EVENT_##name: \
        return #name;
    switch (kind) {
        DLOCK_EVENTS(NAME)
    default:
        return "?";
    }
#undef NAME
}

static const char *code_name(int code)
{
#define NAME(name, number, text) \
    case DLOCK_##name: \
        return #name;
    switch (code) {
        DLOCK_CODES(NAME)
    default:
        return "?";
    }
#undef NAME
}

/* Printable, and tells nothing that is secret; empty where all is well. */
static bool text_is_bad(const dlock_event *event)
{
    if (event->text == NULL || (event->code == DLOCK_OK) != (event->text[0] == '\0')) {
        return true;
    }
    for (const char *at = event->text; *at != '\0'; at++) {
        if (*at < ' ' || *at > '~') {
            return true;
        }
    }
    return strstr(event->text, "dl1-") != NULL ||
           (journal.secret != NULL && strstr(event->text, journal.secret) != NULL);
}

static void note_event(const dlock_event *event, void *user)
{
    (void)user;
    (void)pthread_mutex_lock(&journal.mutex);
    if (journal.count < RECORDS_MAX) {
        struct record *record = &journal.list[journal.count++];
        memset(record, 0, sizeof *record);
        record->kind = event->kind;
        record->code = event->code;
        record->node = event->node;
        record->inbox = event->inbox;
        record->fence = event->fence;
        record->elapsed_ms = event->elapsed_ms;
        record->key_length = event->key_length;
        if (event->key != NULL && event->key_length < sizeof record->key) {
            memcpy(record->key, event->key, event->key_length);
        }
        bool about_connections =
            event->kind == DLOCK_EVENT_CONNECTED || event->kind == DLOCK_EVENT_DISCONNECTED;
        if (text_is_bad(event) || about_connections != (event->key == NULL)) {
            print_error("a bad event: %s \"%s\"\n", event_name(event->kind), event->text);
            journal.bad_texts++;
        }
    }
    (void)pthread_mutex_unlock(&journal.mutex);
}

static const dlock_config noted = {.on_event = note_event};

static void journal_clear(void)
{
    (void)pthread_mutex_lock(&journal.mutex);
    journal.count = 0;
    journal.bad_texts = 0;
    (void)pthread_mutex_unlock(&journal.mutex);
}

/* What happened since the last time, such as "WAITING NOT_ACQUIRED:TIMEOUT". */
static void journal_read(char *text, size_t size)
{
    size_t length = 0;
    (void)pthread_mutex_lock(&journal.mutex);
    text[0] = '\0';
    for (int i = 0; i < journal.count && length + 64 < size; i++) {
        const struct record *record = &journal.list[i];
        length += (size_t)snprintf(text + length, size - length, "%s%s%s%s%s", i > 0 ? " " : "",
                                   record->inbox ? "inbox-" : "", event_name(record->kind),
                                   record->code != DLOCK_OK ? ":" : "",
                                   record->code != DLOCK_OK ? code_name(record->code) : "");
    }
    (void)pthread_mutex_unlock(&journal.mutex);
}

static void check_journal(const char *expected, const char *file, int line)
{
    char text[4096];
    journal_read(text, sizeof text);
    if (strcmp(text, expected) != 0 || journal.bad_texts != 0) {
        print_error("expected \"%s\"\nhappened \"%s\", %d bad texts\n", expected, text,
                    journal.bad_texts);
        _fail(file, line);
    }
    journal_clear();
}
#define assert_events(expected) check_journal((expected), __FILE__, __LINE__)

/* How many of a kind there are. */
static int journal_count(int kind)
{
    int count = 0;
    (void)pthread_mutex_lock(&journal.mutex);
    for (int i = 0; i < journal.count; i++) {
        count += journal.list[i].kind == kind ? 1 : 0;
    }
    (void)pthread_mutex_unlock(&journal.mutex);
    return count;
}

/* A factory that notes its events, with both of its connections up, and nothing noted yet. */
static void noted_factory(struct live *live, const char *url)
{
    dlock_options waits = {.wait_ms = 30};
    dlock_lock lock = DLOCK_INIT;
    journal.secret = NULL;
    live_reopen(live, url, &noted);
    server_do(&live->server, "SET warm theirs");
    assert_no(dlock_acquire(live->factory, &lock, "warm", &waits), &lock, DLOCK_TIMEOUT);
    server_soon(&live->server, "EXISTS {warm}:queue", 0);
    (void)loop_for(live->factory, 50);
    journal_clear();
}

static void what_happens_to_a_lock_is_an_event_each_time_once(void **state)
{
    struct live *live = live_of(state);
    for (BOTH(way)) {
        dlock_options waits = {.wait_ms = 150};
        dlock_options tries = {.retry_count = 2, .retry_delay_ms = 10};
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        live_reopen(live, live->server.url, &noted);
        journal_clear();
        assert_yes(way->acquire(live->factory, &lock, "k", &once), &lock);
        assert_events("CONNECTED ACQUIRED");
        assert_no(way->acquire(live->factory, &other, "k", NULL), &other, DLOCK_BUSY);
        assert_events("NOT_ACQUIRED:BUSY");
        noted_factory(live, live->server.url);
        assert_yes(way->acquire(live->factory, &lock, "k", &once), &lock);
        journal_clear();
        assert_no(way->acquire(live->factory, &other, "k", &waits), &other, DLOCK_TIMEOUT);
        assert_events("WAITING NOT_ACQUIRED:TIMEOUT");
        assert_no(way->acquire(live->factory, &other, "k", &tries), &other, DLOCK_BUSY);
        assert_events("WAITING NOT_ACQUIRED:BUSY");
        waits.no_queue = true;
        assert_no(way->acquire(live->factory, &other, "k", &waits), &other, DLOCK_TIMEOUT);
        assert_events("WAITING NOT_ACQUIRED:TIMEOUT");
        assert_yes(way->extend(live->factory, &lock, 60000), &lock);
        assert_events("RENEWED");
        assert_yes(way->release(live->factory, &lock), &lock);
        assert_events("RELEASED");
        assert_no(way->release(live->factory, &lock), &lock, DLOCK_LOST);
        server_do(&live->server, "RPUSH list x");
        journal_clear();
        assert_no(way->acquire(live->factory, &lock, "list", NULL), &lock, DLOCK_REFUSED);
        assert_events("NOT_ACQUIRED:REFUSED");
        assert_yes(way->acquire(live->factory, &lock, "k", &once), &lock);
        server_do(&live->server, "DEL k");
        journal_clear();
        assert_no(way->extend(live->factory, &lock, 60000), &lock, DLOCK_LOST);
        assert_events("LOST:LOST");
        assert_no(way->extend(live->factory, &lock, 60000), &lock, DLOCK_LOST);
        assert_int_equal(journal_count(DLOCK_EVENT_LOST), 0);
        assert_no(way->release(live->factory, &lock), &lock, DLOCK_LOST);
        assert_int_equal(journal_count(DLOCK_EVENT_LOST), 0);
        server_do(&live->server, "DEL list");
    }
    live_end(live);
}

struct later {
    pthread_t thread;
    dlock_lock *lock;
    bool cancel;
    bool answer;
};

static void *later_body(void *argument)
{
    struct later *later = (struct later *)argument;
    pause_ms(200);
    later->answer = true;
    if (later->cancel) {
        dlock_cancel(later->lock);
    } else {
        later->answer = dlock_release(later->lock);
    }
    return NULL;
}

static void a_wait_that_ends_by_grant_or_cancel_is_two_events(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    for (BOTH(way)) {
        for (int cancel = 0; cancel < 2; cancel++) {
            dlock_lock held = DLOCK_INIT;
            dlock_lock lock = DLOCK_INIT;
            struct later later = {.lock = cancel ? &lock : &held, .cancel = cancel == 1};
            noted_factory(live, live->server.url);
            assert_yes(dlock_acquire(other, &held, "k", &once), &held);
            assert_int_equal(pthread_create(&later.thread, NULL, later_body, &later), 0);
            int64_t start = now_ms();
            bool answer = way->acquire(live->factory, &lock, "k", &for_ever);
            assert_int_equal(pthread_join(later.thread, NULL), 0);
            assert_true(later.answer);
            assert_int_equal(answer, cancel == 0);
            if (cancel) {
                assert_events("WAITING NOT_ACQUIRED:CANCELLED");
                assert_yes(dlock_release(&held), &held);
                continue;
            }
            struct record waiting = journal.list[0];
            struct record acquired = journal.list[1];
            assert_events("WAITING ACQUIRED");
            assert_string_equal(waiting.key, "k");
            assert_string_equal(acquired.key, "k");
            assert_int_equal(acquired.key_length, 1);
            assert_true(acquired.fence == dlock_fence(&lock) && acquired.fence > 0);
            assert_in_range(acquired.elapsed_ms, 100, now_ms() - start + 1);
            assert_int_equal(acquired.node, 0);
            pause_ms(100);
            assert_yes(way->release(live->factory, &lock), &lock);
            struct record released = journal.list[0];
            assert_events("RELEASED");
            assert_in_range(released.elapsed_ms, 95, 2000);
            assert_true(released.fence == acquired.fence);
        }
    }
    dlock_close(other);
    live_end(live);
}

static void keys_in_events_may_hold_any_bytes(void **state)
{
    struct live *live = live_of(state);
    dlock_options options = {.key_length = 3};
    dlock_lock lock = DLOCK_INIT;
    noted_factory(live, live->server.url);
    assert_yes(dlock_acquire(live->factory, &lock, "a\0b", &options), &lock);
    assert_yes(dlock_release(&lock), &lock);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(journal.list[i].key_length, 3);
        assert_memory_equal(journal.list[i].key, "a\0b", 3);
    }
    assert_events("ACQUIRED RELEASED");
    live_end(live);
}

/* Renewed again and again, and then lost: by the thread, and by a loop. */
static void renewals_and_losses_are_events(void **state)
{
    struct live *live = live_of(state);
    for (int by_loop = 0; by_loop < 2; by_loop++) {
        FRESH(struct losses, losses);
        dlock_options options = {
            .expiry_ms = 900, .auto_renew = true, .on_lost = count_loss, .user = &losses};
        FRESH(dlock_lock, lock);
        noted_factory(live, live->server.url);
        if (by_loop) {
            assert_yes(loop_acquire(live->factory, &lock, "k", &options), &lock);
        } else {
            assert_yes(dlock_acquire(live->factory, &lock, "k", &options), &lock);
        }
        int64_t end = now_ms() + 5000;
        while (journal_count(DLOCK_EVENT_RENEWED) < 2 && now_ms() < end) {
            by_loop ? (void)loop_for(live->factory, 1) : pause_ms(1);
        }
        server_do(&live->server, "DEL k");
        if (by_loop) {
            (void)loop_until(live->factory, &losses.count, 1);
            (void)loop_for(live->factory, 400);
        } else {
            await(&losses.count, 1);
            pause_ms(400);
        }
        assert_true(journal.list[3].elapsed_ms >= 500);
        assert_string_equal(journal.list[3].key, "k");
        assert_events("ACQUIRED RENEWED RENEWED LOST:LOST");
        (void)dlock_release(&lock);
        assert_int_equal(journal_count(DLOCK_EVENT_LOST), 0);
        assert_int_equal(atomic_load(&losses.count), 1);
    }
    live_end(live);
}

static void connections_that_come_and_go_are_events(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    noted_factory(live, live->server.url);
    server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
    pause_ms(50);
    assert_yes(loop_acquire(live->factory, &lock, "k", &once), &lock);
    assert_events("DISCONNECTED:UNREACHABLE CONNECTED ACQUIRED");
    assert_yes(loop_release(live->factory, &lock), &lock);
    journal_clear();
    server_kill(&live->server);
    (void)loop_for(live->factory, 50);
    assert_no(dlock_acquire(live->factory, &lock, "k", NULL), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(journal_count(DLOCK_EVENT_NOT_ACQUIRED), 1);
    assert_int_equal(journal_count(DLOCK_EVENT_CONNECTED), 0);
    assert_true(journal_count(DLOCK_EVENT_DISCONNECTED) >= 2);
    assert_int_equal(journal.bad_texts, 0);
    server_revive(&live->server);
    journal_clear();
    assert_yes(dlock_acquire(live->factory, &lock, "k", &for_ever), &lock);
    assert_int_equal(journal_count(DLOCK_EVENT_ACQUIRED), 1);
    assert_true(journal_count(DLOCK_EVENT_CONNECTED) >= 1);
    live_end(live);
}

/* As many came up as went, whatever happens in between; the counters agree. */
static void every_connection_that_came_up_goes_down_once(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    noted_factory(live, live->server.url);
    dlock_stats before = stats_of(live->factory);
    for (int i = 0; i < 10; i++) {
        dlock_options waits = {.wait_ms = 20};
        server_do(&live->server,
                  i % 2 == 0 ? "CLIENT KILL TYPE normal SKIPME yes" : "CLIENT KILL TYPE pubsub");
        pause_ms(20);
        (void)loop_for(live->factory, 20);
        assert_false(dlock_acquire(live->factory, &lock, "warm", &waits));
        (void)loop_for(live->factory, 20);
    }
    dlock_stats after = stats_of(live->factory);
    int ups = journal_count(DLOCK_EVENT_CONNECTED);
    int downs = journal_count(DLOCK_EVENT_DISCONNECTED);
    assert_int_equal(ups, after.connects - before.connects);
    assert_int_equal(downs, after.disconnects - before.disconnects);
    assert_in_range(downs - ups, 0, 2);     /* two were up before, and may be down at the end */
    assert_in_range(ups, 5, 20);
    assert_int_equal(journal.bad_texts, 0);
    live_end(live);
}

/* A user who may not publish: who waits is not told, and the release that could not says so. */
static void a_release_that_may_not_tell_is_mute(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *other = open_factory(live->server.url, NULL);
    char url[SERVER_URL_MAX + 32];
    server_do(&live->server, "ACL SETUSER quiet on >sekret ~* &* +@all -publish");
    (void)snprintf(url, sizeof url, "unix://quiet:sekret@%s", live->server.socket);
    for (BOTH(way)) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock next = DLOCK_INIT;
        struct told told = {0};
        noted_factory(live, url);
        journal.secret = "sekret";
        assert_yes(way->acquire(live->factory, &lock, "k", &once), &lock);
        assert_true(dlock_acquire_start(other, &next, "k", &for_ever, tell, &told));
        loop_soon(other, &live->server, "ZCARD {k}:queue", 1);
        journal_clear();
        assert_yes(way->release(live->factory, &lock), &lock);
        assert_int_equal(journal_count(DLOCK_EVENT_MUTE), 1);
        assert_int_equal(journal_count(DLOCK_EVENT_RELEASED), 1);
        assert_int_equal(journal.count, 2);
        assert_int_equal(journal.bad_texts, 0);
        assert_gone(&live->server, "k");
        assert_yes(way->acquire(live->factory, &lock, "x", &once), &lock);
        assert_yes(way->release(live->factory, &lock), &lock);
        assert_int_equal(journal_count(DLOCK_EVENT_MUTE), 1);   /* nobody waited there */
        dlock_cancel(&next);
        (void)loop_until(other, &told.count, 1);
        if (dlock_is_acquired(&next)) {
            assert_yes(loop_release(other, &next), &next);
        }
    }
    dlock_close(other);
    live_end(live);
}

/* What a server that refuses says, and what it was sent, is in no event. */
static void no_event_tells_a_secret(void **state)
{
    struct live *live = live_of(state);
    char url[SERVER_URL_MAX + 32];
    dlock_config config = {.on_event = note_event, .password = "sekret", .command_timeout_ms = 300};
    dlock_lock lock = DLOCK_INIT;
    dlock_info info;
    dlock_error error;
    journal.secret = "sekret";
    journal_clear();
    (void)snprintf(url, sizeof url, "unix://somebody@%s", live->server.socket);
    live_reopen(live, url, &config);
    assert_no(dlock_acquire(live->factory, &lock, "k", NULL), &lock, DLOCK_REFUSED);
    assert_error(dlock_inspect(live->factory, "k", 0, &info, &error), &error, DLOCK_REFUSED);
    assert_null(strstr(error.text, "sekret"));
    proxy_start(&live->proxy, &live->server);
    static const char *const answers[] = {
        "-ERR unknown command 'AUTH', with args beginning with: 'sekret' \r\n",
        "-WRONGPASS sekret dl1-0123456789abcdef0123456789abcdef \x1b[31m\r\n", "+OK sekret\r\n",
        "sekret\r\n"};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        live_reopen(live, live->proxy.url, &config);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_ANSWER, .answer = answers[i]});
        assert_false(dlock_acquire(live->factory, &lock, "k", NULL));
        assert_false(dlock_inspect(live->factory, "k", 0, &info, &error));
        assert_null(strstr(error.text, "sekret"));
        assert_false(dlock_break(live->factory, "k", 0, &error));
        assert_null(strstr(error.text, "sekret"));
    }
    assert_true(journal_count(DLOCK_EVENT_DISCONNECTED) > 0);
    assert_int_equal(journal.bad_texts, 0);
    journal.secret = NULL;
    live_end(live);
}

static void close_releases_what_is_held_and_tells(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_lock waiting = DLOCK_INIT;
    struct told told = {0};
    noted_factory(live, live->server.url);
    assert_yes(loop_acquire(live->factory, &lock, "k", &once), &lock);
    assert_true(dlock_acquire_start(live->factory, &waiting, "warm", &for_ever, tell, &told));
    loop_soon(live->factory, &live->server, "ZCARD {warm}:queue", 1);
    journal_clear();
    loop_close(live->factory);
    live->factory = NULL;
    assert_int_equal(atomic_load(&told.count), 1);
    assert_int_equal(journal_count(DLOCK_EVENT_NOT_ACQUIRED), 1);
    assert_int_equal(journal_count(DLOCK_EVENT_RELEASED), 1);
    assert_int_equal(journal_count(DLOCK_EVENT_LOST), 0);
    assert_int_equal(journal.bad_texts, 0);
    live_end(live);
}

/* ---------------------------------------------------------------------- inside of the callbacks */

struct meddler {
    dlock_factory *factory;
    atomic_int calls;
    atomic_int wrong;           /* the line of the last thing that went wrong */
    atomic_int done;
    atomic_int inside_process;
    dlock_lock started[64];
};

static _Thread_local int meddling;
static struct meddler meddler;

/* Callbacks run in any thread, where nothing may be asserted. */
#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            atomic_store(&meddler.wrong, __LINE__); \
        } \
    } while (0)

static void meddle_done(dlock_lock *lock, bool answer, void *user)
{
    (void)user;
    /* In a callback dlock_process is nothing: nobody is told in the middle of somebody's turn. */
    atomic_fetch_add(&meddler.inside_process, meddling > 0 ? 1 : 0);
    if (answer) {       /* the grant was faster than the cancel */
        EXPECT(dlock_release_start(lock, NULL, NULL));
    } else {
        EXPECT(dlock_why(lock)->code == DLOCK_CANCELLED);
    }
    atomic_fetch_add(&meddler.done, 1);
}

/* Every function but dlock_close. */
static void meddle(void)
{
    dlock_factory *factory = meddler.factory;
    dlock_options waits = {.wait_ms = 20000};
    dlock_lock lock = DLOCK_INIT;
    dlock_stats stats;
    dlock_info info;
    dlock_error error;
    char key[32];
    if (meddling > 0 || factory == NULL) {
        return;
    }
    int number = atomic_fetch_add(&meddler.calls, 1);
    dlock_lock *started = &meddler.started[number % 64];
    EXPECT(number < 64);
    (void)snprintf(key, sizeof key, "m%d", number);
    meddling++;
    dlock_stats_get(factory, &stats);
    EXPECT(dlock_fd(factory) >= 0 && !dlock_is_pending(&lock) && !dlock_is_acquired(&lock));
    EXPECT(dlock_acquire(factory, &lock, key, &waits));
    EXPECT(dlock_inspect(factory, key, 0, &info, &error) && info.held);
    EXPECT(dlock_is_acquired(&lock) && dlock_fence(&lock) > 0);
    EXPECT(strcmp(dlock_owner(&lock), info.owner) == 0);
    EXPECT(dlock_extend(&lock, 60000) && dlock_remaining_ms(&lock) > 0);
    EXPECT(dlock_release(&lock) && dlock_why(&lock)->code == DLOCK_OK);
    EXPECT(dlock_acquire(factory, &lock, key, &waits));
    EXPECT(dlock_break(factory, key, 0, NULL));
    dlock_forget(&lock);
    dlock_cancel(&lock);
    dlock_process(factory);
    EXPECT(dlock_acquire_start(factory, started, key, &waits, meddle_done, NULL));
    dlock_cancel(started);
    dlock_process(factory);
    meddling--;
}

/* What meddling causes is told too, and not meddled with: that would never end. */
static void meddle_event(const dlock_event *event, void *user)
{
    note_event(event, user);
    if (event->key == NULL ? event->kind == DLOCK_EVENT_DISCONNECTED : event->key[0] != 'm') {
        meddle();
    }
}

static void meddle_lost(dlock_lock *lock, void *user)
{
    count_loss(lock, user);
    meddle();
}

static void meddle_told(dlock_lock *lock, bool answer, void *user)
{
    tell(lock, answer, user);
    meddle();
}

static void callbacks_may_call_everything_but_close(void **state)
{
    struct live *live = live_of(state);
    dlock_config config = {.on_event = meddle_event};
    for (int by_loop = 0; by_loop < 2; by_loop++) {
        FRESH(struct losses, losses);
        FRESH(struct told, told);
        dlock_options options = {
            .expiry_ms = 900, .auto_renew = true, .on_lost = meddle_lost, .user = &losses};
        dlock_options waits = {.wait_ms = 100};
        FRESH(dlock_lock, lock);
        FRESH(dlock_lock, other);
        memset(&meddler, 0, sizeof meddler);
        journal_clear();
        live_reopen(live, live->server.url, &config);
        meddler.factory = live->factory;
        server_do(&live->server, "SET busy theirs");
        if (by_loop) {
            assert_true(
                dlock_acquire_start(live->factory, &lock, "k", &options, meddle_told, &told));
            (void)loop_until(live->factory, &told.count, 1);
            memset(&told, 0, sizeof told);
            assert_true(
                dlock_acquire_start(live->factory, &other, "busy", &waits, meddle_told, &told));
            (void)loop_until(live->factory, &told.count, 1);
            assert_false(told.answer);
            server_do(&live->server, "DEL k");
            (void)loop_until(live->factory, &losses.count, 1);
            (void)loop_release(live->factory, &lock);
        } else {
            assert_yes(dlock_acquire(live->factory, &lock, "k", &options), &lock);
            assert_no(dlock_acquire(live->factory, &other, "busy", &waits), &other, DLOCK_TIMEOUT);
            server_do(&live->server, "DEL k");
            await(&losses.count, 1);
            (void)dlock_release(&lock);
        }
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
        (void)loop_for(live->factory, 300);
        int64_t end = now_ms() + 10000;
        while (atomic_load(&meddler.done) < atomic_load(&meddler.calls) && now_ms() < end) {
            (void)loop_for(live->factory, 10);
        }
        assert_true(atomic_load(&meddler.calls) >= 4);
        assert_int_equal(atomic_load(&meddler.wrong), 0);
        assert_int_equal(atomic_load(&meddler.inside_process), 0);
        assert_int_equal(atomic_load(&losses.count), 1);
        assert_int_equal(journal.bad_texts, 0);
        meddler.factory = NULL;
        loop_close(live->factory);
        live->factory = NULL;
        assert_int_equal(server_integer(&live->server, "EXISTS m0 m1 m2 m3 m4 m5 k"), 0);
        live_reopen(live, live->server.url, NULL);
    }
    live_end(live);
}

struct sharer {
    pthread_t thread;
    dlock_factory *factory;
    int number;
    bool well;
};

enum { SHARERS = 8, SHARES = 100 };

static void *sharer_body(void *argument)
{
    struct sharer *sharer = (struct sharer *)argument;
    dlock_lock lock = DLOCK_INIT;
    char key[16];
    (void)snprintf(key, sizeof key, "s%d", sharer->number);
    sharer->well = true;
    for (int i = 0; i < SHARES && sharer->well; i++) {
        sharer->well = dlock_acquire(sharer->factory, &lock, key, &once) &&
                       (i % 2 == 0 || dlock_extend(&lock, 60000)) && dlock_release(&lock);
    }
    return NULL;
}

/* Whoever leads tells, but nothing is told twice, or left out, or before what came before it. */
static void events_of_many_threads_are_complete_and_in_order_for_each_lock(void **state)
{
    struct live *live = live_of(state);
    struct sharer sharers[SHARERS];
    noted_factory(live, live->server.url);
    for (int i = 0; i < SHARERS; i++) {
        sharers[i] = (struct sharer){.factory = live->factory, .number = i};
        assert_int_equal(pthread_create(&sharers[i].thread, NULL, sharer_body, &sharers[i]), 0);
    }
    for (int i = 0; i < SHARERS; i++) {
        assert_int_equal(pthread_join(sharers[i].thread, NULL), 0);
        assert_true(sharers[i].well);
    }
    (void)loop_for(live->factory, 20);
    assert_int_equal(journal.count, SHARERS * (2 * SHARES + SHARES / 2));
    assert_int_equal(journal.bad_texts, 0);
    for (int i = 0; i < SHARERS; i++) {
        char key[16];
        int step = 0;
        (void)snprintf(key, sizeof key, "s%d", i);
        for (int j = 0; j < journal.count; j++) {
            static const int steps[] = {DLOCK_EVENT_ACQUIRED, DLOCK_EVENT_RELEASED,
                                        DLOCK_EVENT_ACQUIRED, DLOCK_EVENT_RENEWED,
                                        DLOCK_EVENT_RELEASED};
            if (strcmp(journal.list[j].key, key) == 0) {
                assert_int_equal(journal.list[j].kind, steps[step % 5]);
                step++;
            }
        }
        assert_int_equal(step, 2 * SHARES + SHARES / 2);
    }
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(inspect_tells_who_holds_a_key_for_how_long_and_who_waits),
        LIVE(inspect_is_one_command_and_changes_nothing),
        LIVE(inspect_shows_foreign_values_safely),
        LIVE(inspect_refuses_what_is_no_string_and_says_so),
        LIVE(inspect_survives_helper_keys_of_another_type),
        LIVE(tools_take_keys_with_any_bytes),
        LIVE(tools_with_nonsense_are_an_argument_and_nothing_is_sent),
        LIVE(tools_are_bounded_when_no_server_answers),
        LIVE(break_takes_the_lock_tells_the_holder_and_serves_the_first_in_line),
        LIVE(break_of_a_free_key_is_false_and_ok),
        LIVE(break_takes_a_foreign_lock_and_serves_who_waits),
        LIVE(break_of_a_very_long_foreign_value_is_never_half_done),
        LIVE_CLOSED(break_of_ones_own_lock_is_told_like_any_other),
        LIVE(every_counter_counts_what_it_says),
        LIVE(what_happens_to_a_lock_is_an_event_each_time_once),
        LIVE(a_wait_that_ends_by_grant_or_cancel_is_two_events),
        LIVE(keys_in_events_may_hold_any_bytes),
        LIVE_CLOSED(renewals_and_losses_are_events),
        LIVE(connections_that_come_and_go_are_events),
        LIVE(every_connection_that_came_up_goes_down_once),
        LIVE(a_release_that_may_not_tell_is_mute),
        LIVE(no_event_tells_a_secret),
        LIVE(close_releases_what_is_held_and_tells),
        LIVE_CLOSED(callbacks_may_call_everything_but_close),
        LIVE(events_of_many_threads_are_complete_and_in_order_for_each_lock),
    };
    return run_side_by_side(tests, sizeof tests / sizeof *tests, 3);
}
