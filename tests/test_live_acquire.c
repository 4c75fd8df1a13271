/* The lock on one healthy server: what lies on the server, who has it, for how long. */
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <ctype.h>
#include <inttypes.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHORT_MS 120    /* a lease that a test waits out */

static const dlock_options short_lease = {.expiry_ms = SHORT_MS};
static const dlock_options ten_seconds = {.expiry_ms = 10000};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

/* Connects, and brings the scripts to the server, so that a test can count commands. */
static void warm_up(struct live *live)
{
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "warm", &ten_seconds), &lock);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_yes(dlock_release(&lock), &lock);
    assert_yes(dlock_acquire(live->factory, &lock, "warm", &ten_seconds), &lock);
    assert_yes(dlock_release(&lock), &lock);
    server_do(&live->server, "DEL warm {warm}:fence");
}

/* ---------------------------------------------------------------------- what lies on the server */

static void a_key_is_a_string_that_holds_the_owner_and_expires(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char text[64];
    assert_yes(dlock_acquire(live->factory, &lock, "orders:42", &ten_seconds), &lock);
    server_text(&live->server, text, sizeof text, "TYPE orders:42");
    assert_string_equal(text, "string");
    server_text(&live->server, text, sizeof text, "GET orders:42");
    assert_string_equal(text, dlock_owner(&lock));
    assert_int_equal(strlen(text), 36);
    assert_memory_equal(text, "dl1-", 4);
    for (size_t i = 4; i < 36; i++) {
        assert_true(isxdigit((unsigned char)text[i]) && !isupper((unsigned char)text[i]));
    }
    int64_t left = server_integer(&live->server, "PTTL orders:42");
    assert_in_range(left, 5000, 10000);
    assert_in_range(dlock_remaining_ms(&lock), 5000, 10000 - 100 - 2);
    assert_true(dlock_is_acquired(&lock));
    assert_false(dlock_is_degraded(&lock));
    live_end(live);
}

static void a_fence_is_the_score_of_the_only_member_f(void **state)
{
    struct live *live = live_of(state);
    struct server *server = &live->server;
    dlock_lock lock = DLOCK_INIT;
    char text[64];
    char fence[64];
    int64_t before = server_time(server);
    assert_yes(dlock_acquire(live->factory, &lock, "orders:42", NULL), &lock);
    int64_t after = server_time(server);
    server_text(server, text, sizeof text, "TYPE {orders:42}:fence");
    assert_string_equal(text, "zset");
    assert_int_equal(server_integer(server, "ZCARD {orders:42}:fence"), 1);
    server_text(server, text, sizeof text, "ZSCORE {orders:42}:fence f");
    (void)snprintf(fence, sizeof fence, "%" PRIu64, dlock_fence(&lock));
    assert_int_equal(strtod(text, NULL), strtod(fence, NULL));
    assert_true(dlock_fence(&lock) > (uint64_t)before);
    assert_true(dlock_fence(&lock) <= (uint64_t)after + 1);
    int64_t left = server_integer(server, "PTTL {orders:42}:fence");
    assert_in_range(left, 86400000 - 60000, 86400000);
    assert_int_equal(server_integer(server, "EXISTS {orders:42}:queue"), 0);
    assert_int_equal(server_integer(server, "DBSIZE"), 2);
    live_end(live);
}

static void a_counter_lives_ten_times_as_long_as_a_long_lease(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options month = {.expiry_ms = DLOCK_EXPIRY_MAX_MS};
    assert_yes(dlock_acquire(live->factory, &lock, "k", &month), &lock);
    int64_t left = server_integer(&live->server, "PTTL {k}:fence");
    assert_true(left > DLOCK_EXPIRY_MAX_MS * 10 - 60000);
    assert_true(left <= DLOCK_EXPIRY_MAX_MS * 10);
    assert_true(server_integer(&live->server, "PTTL k") > DLOCK_EXPIRY_MAX_MS - 60000);
    live_end(live);
}

static void a_released_key_leaves_only_the_counter(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
    assert_yes(dlock_release(&lock), &lock);
    assert_false(dlock_is_acquired(&lock));
    assert_int_equal(dlock_fence(&lock), 0);
    assert_int_equal(dlock_remaining_ms(&lock), 0);
    assert_int_equal(server_integer(&live->server, "EXISTS {k}:fence"), 1);
    assert_int_equal(server_integer(&live->server, "DBSIZE"), 1);
    live_end(live);
}

static void helper_keys_follow_the_hash_tag(void **state)
{
    static const struct {
        const char *key;
        const char *fence;
    } cases[] = {
        {"plain", "{plain}:fence"},
        {"{user1}:x", "{user1}:x:dlock:fence"},
        {"x{user1}", "x{user1}:dlock:fence"},
        {"{a}{b}", "{a}{b}:dlock:fence"},
        {"{", "{{}:fence"},
        {"a b", "{a b}:fence"},
    };
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &lock, cases[i].key, NULL), &lock);
        assert_held(&live->server, &lock, cases[i].key);
        assert_int_equal(server_integer(&live->server, "ZCARD %s", cases[i].fence), 1);
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 2);
        assert_yes(dlock_release(&lock), &lock);
        server_do(&live->server, "FLUSHALL");
    }
    live_end(live);
}

/* Names that look alike, all held at once: two keys on the server for each. */
static void no_two_keys_share_a_helper_key(void **state)
{
    static const char *const keys[] = {"x",   "{x}",   "{x",   "x}",      "a}b",       "{}x",
                                       "{}",  "}{",    "{{x}", "{x}}",    "x:dlock",   "{x}:dlock",
                                       "x{}", "{}{x}", "}",    "x:fence", "{x}x:dlock"};
    enum { COUNT = sizeof keys / sizeof *keys };
    struct live *live = live_of(state);
    static dlock_lock locks[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        assert_yes(dlock_acquire(live->factory, &locks[i], keys[i], NULL), &locks[i]);
    }
    assert_int_equal(server_integer(&live->server, "DBSIZE"), 2 * COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        assert_held(&live->server, &locks[i], keys[i]);
        assert_yes(dlock_release(&locks[i]), &locks[i]);
    }
    assert_int_equal(server_integer(&live->server, "DBSIZE"), COUNT);
    live_end(live);
}

static void a_key_may_hold_any_bytes(void **state)
{
    static char longest[DLOCK_KEY_MAX];
    const struct {
        const char *key;
        size_t length;
    } cases[] = {
        {"\0", 1},
        {"a\0b", 3},
        {"a\0c", 3},
        {"\r\n", 2},
        {"$3\r\nfoo\r\n", 9},
        {"%s%n%d", 6},
        {"\"'`;", 4},
        {"\xff\xfe\x80", 3},
        {" ", 1},
        {"{\0}", 3},
        {"{\0}:x", 5},
        {"\t\x1b[31m", 6},
        {longest, sizeof longest},
        {"k", 0},
    };
    struct live *live = live_of(state);
    memset(longest, 'z', sizeof longest);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        dlock_options options = {.key_length = cases[i].length};
        size_t length = cases[i].length > 0 ? cases[i].length : strlen(cases[i].key);
        char text[64];
        assert_yes(dlock_acquire(live->factory, &lock, cases[i].key, &options), &lock);
        server_text(&live->server, text, sizeof text, "GET %b", cases[i].key, length);
        assert_string_equal(text, dlock_owner(&lock));
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 2);
        assert_no(dlock_acquire(live->factory, &other, cases[i].key, &options), &other, DLOCK_BUSY);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_in_range(server_integer(&live->server, "PTTL %b", cases[i].key, length), 30001,
                        60000);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(server_integer(&live->server, "EXISTS %b", cases[i].key, length), 0);
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 1);
        server_do(&live->server, "FLUSHALL");
    }
    live_end(live);
}

static void a_key_beyond_the_limit_is_refused_before_any_byte_is_sent(void **state)
{
    struct live *live = live_of(state);
    static char key[DLOCK_KEY_MAX + 2];
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.key_length = DLOCK_KEY_MAX + 1};
    memset(key, 'k', DLOCK_KEY_MAX + 1);
    int64_t heard = server_heard(&live->server);
    assert_no(dlock_acquire(live->factory, &lock, key, &options), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(live->factory, &lock, key, NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(live->factory, &lock, "", NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_acquire(live->factory, &lock, NULL, NULL), &lock, DLOCK_ARGUMENT);
    assert_int_equal(server_heard(&live->server), heard);
    key[DLOCK_KEY_MAX] = '\0';
    assert_yes(dlock_acquire(live->factory, &lock, key, NULL), &lock);
    assert_held(&live->server, &lock, key);
    live_end(live);
}

/* -------------------------------------------------------------------------------------- release */

static void a_release_is_true_once_and_a_second_one_is_lost_without_io(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
    int64_t scripts = server_scripts(&live->server);
    assert_yes(dlock_release(&lock), &lock);
    assert_int_equal(server_scripts(&live->server), scripts + 1);
    assert_gone(&live->server, "k");
    int64_t heard = server_heard(&live->server);
    for (int i = 0; i < 3; i++) {
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    }
    assert_int_equal(server_heard(&live->server), heard);
    live_end(live);
}

static void a_release_after_expiry_is_lost_in_one_round_trip(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &short_lease), &lock);
    pause_ms(SHORT_MS + 30);
    assert_false(dlock_is_acquired(&lock));
    assert_int_equal(dlock_remaining_ms(&lock), 0);
    int64_t scripts = server_scripts(&live->server);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_int_equal(server_scripts(&live->server), scripts + 1);
    int64_t heard = server_heard(&live->server);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_int_equal(server_heard(&live->server), heard);
    live_end(live);
}

static void a_release_or_extend_never_touches_what_is_anothers(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_lock next = DLOCK_INIT;
    for (int verb = 0; verb < 2; verb++) {
        assert_yes(dlock_acquire(live->factory, &lock, "k", &short_lease), &lock);
        uint64_t fence = dlock_fence(&lock);
        pause_ms(SHORT_MS + 30);
        assert_yes(dlock_acquire(live->factory, &next, "k", &ten_seconds), &next);
        assert_true(dlock_fence(&next) > fence);
        if (verb == 0) {
            assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_LOST);
            assert_false(dlock_is_acquired(&lock));
        }
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
        assert_held(&live->server, &next, "k");
        assert_in_range(server_integer(&live->server, "PTTL k"), 5000, 10000);
        assert_yes(dlock_extend(&next, 0), &next);
        assert_yes(dlock_release(&next), &next);
    }
    live_end(live);
}

/* What an operator, or a library that re-creates its key, does to ours. */
static void a_lock_taken_away_by_others_is_lost_at_the_next_contact(void **state)
{
    static const struct {
        const char *command;
        const char *left;       /* what K holds afterwards */
    } cases[] = {
        {"DEL k", "(nil)"},
        {"FLUSHALL", "(nil)"},
        {"SET k theirs PX 60000", "theirs"},
        {"SET k dl1-00000000000000000000000000000000", "dl1-00000000000000000000000000000000"},
        {"PEXPIRE k 0", "(nil)"},
    };
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int extend_first = 0; extend_first < 2; extend_first++) {
            dlock_lock lock = DLOCK_INIT;
            char text[64];
            assert_yes(dlock_acquire(live->factory, &lock, "k", &ten_seconds), &lock);
            server_do(&live->server, cases[i].command);
            if (extend_first) {
                assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_LOST);
                assert_false(dlock_is_acquired(&lock));
                assert_int_equal(dlock_remaining_ms(&lock), 0);
            }
            assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
            server_text(&live->server, text, sizeof text, "GET k");
            assert_string_equal(text, cases[i].left);
            server_do(&live->server, "DEL k");
        }
    }
    live_end(live);
}

static void a_key_that_became_another_type_is_never_changed(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &ten_seconds), &lock);
    server_do(&live->server, "DEL k");
    server_do(&live->server, "RPUSH k a b");
    assert_false(dlock_extend(&lock, 60000));
    assert_in_range(dlock_why(&lock)->code, DLOCK_LOST, DLOCK_REFUSED);
    assert_false(dlock_release(&lock));
    assert_in_range(dlock_why(&lock)->code, DLOCK_LOST, DLOCK_REFUSED);
    assert_int_equal(server_integer(&live->server, "LLEN k"), 2);
    assert_int_equal(server_integer(&live->server, "PTTL k"), -1);
    live_end(live);
}

static void a_forgotten_lock_lapses_by_itself(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &short_lease), &lock);
    int64_t heard = server_heard(&live->server);
    dlock_forget(&lock);
    assert_int_equal(server_heard(&live->server), heard);
    assert_false(dlock_is_acquired(&lock));
    assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
    pause_ms(SHORT_MS + 30);
    assert_gone(&live->server, "k");
    assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
    live_end(live);
}

/* --------------------------------------------------------------------------------------- extend */

static void an_extend_lengthens_and_never_shortens(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &ten_seconds), &lock);
    uint64_t fence = dlock_fence(&lock);
    int64_t scripts = server_scripts(&live->server);
    assert_yes(dlock_extend(&lock, 500), &lock);
    assert_in_range(server_integer(&live->server, "PTTL k"), 5000, 10000);
    assert_in_range(dlock_remaining_ms(&lock), 5000, 9898);
    assert_yes(dlock_extend(&lock, 60000), &lock);
    assert_in_range(server_integer(&live->server, "PTTL k"), 30000, 60000);
    assert_in_range(dlock_remaining_ms(&lock), 30000, 60000 - 600 - 2);
    assert_yes(dlock_extend(&lock, 0), &lock);
    assert_in_range(server_integer(&live->server, "PTTL k"), 30000, 60000);
    assert_int_equal(server_scripts(&live->server), scripts + 3);
    assert_true(dlock_fence(&lock) == fence);
    assert_held(&live->server, &lock, "k");
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

static void an_extend_of_zero_means_the_expiry_as_acquired(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.expiry_ms = 2000};
    assert_yes(dlock_acquire(live->factory, &lock, "k", &options), &lock);
    pause_ms(300);
    int64_t before = server_integer(&live->server, "PTTL k");
    assert_true(before <= 1700);
    assert_yes(dlock_extend(&lock, 0), &lock);
    int64_t after = server_integer(&live->server, "PTTL k");
    assert_true(after > before);
    assert_in_range(after, 1000, 2000);
    assert_true(dlock_remaining_ms(&lock) <= 2000 - 22);
    live_end(live);
}

static void an_extend_after_expiry_is_lost_and_creates_nothing(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &short_lease), &lock);
    pause_ms(SHORT_MS + 30);
    assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_LOST);
    assert_gone(&live->server, "k");
    assert_false(dlock_is_acquired(&lock));
    assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_LOST);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_gone(&live->server, "k");
    live_end(live);
}

static void an_extend_leaves_a_persisted_key_persistent(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &ten_seconds), &lock);
    assert_int_equal(server_integer(&live->server, "PERSIST k"), 1);
    assert_yes(dlock_extend(&lock, 60000), &lock);
    assert_int_equal(server_integer(&live->server, "PTTL k"), -1);
    assert_yes(dlock_release(&lock), &lock);
    assert_gone(&live->server, "k");
    live_end(live);
}

static void an_extend_by_nonsense_is_refused_and_changes_nothing(void **state)
{
    static const int64_t nonsense[] = {-1, 1, 2, INT64_MIN, INT64_MAX, DLOCK_EXPIRY_MAX_MS + 1};
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &ten_seconds), &lock);
    int64_t heard = server_heard(&live->server);
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        assert_no(dlock_extend(&lock, nonsense[i]), &lock, DLOCK_ARGUMENT);
        assert_true(dlock_is_acquired(&lock));
    }
    assert_int_equal(server_heard(&live->server), heard);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

/* --------------------------------------------------------------------------------- held by whom */

static void a_held_handle_cannot_acquire_and_keeps_what_it_has(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
    int64_t heard = server_heard(&live->server);
    assert_no(dlock_acquire(live->factory, &lock, "other", NULL), &lock, DLOCK_ARGUMENT);
    assert_int_equal(server_heard(&live->server), heard);
    assert_held(&live->server, &lock, "k");
    assert_gone(&live->server, "other");
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

static void a_held_lock_is_busy_for_handle_factory_and_process_alike(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *second = open_factory(live->server.url, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_lock other = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
    assert_no(dlock_acquire(live->factory, &other, "k", NULL), &other, DLOCK_BUSY);
    assert_no(dlock_acquire(second, &other, "k", NULL), &other, DLOCK_BUSY);
    assert_int_equal(dlock_fence(&other), 0);
    assert_string_equal(dlock_owner(&other), "");
    assert_held(&live->server, &lock, "k");
    assert_yes(dlock_acquire(second, &other, "another", NULL), &other);
    assert_string_not_equal(dlock_owner(&other), dlock_owner(&lock));
    dlock_close(second);
    assert_gone(&live->server, "another");
    live_end(live);
}

/* Whatever another library keeps there: binary, nothing at all, a megabyte. */
static void a_foreign_string_is_busy_and_stays_as_it_is(void **state)
{
    enum { MEGABYTE = 1 << 20 };
    char *large = (char *)malloc(MEGABYTE);
    assert_non_null(large);
    memset(large, 'x', MEGABYTE);
    const struct {
        const char *value;
        size_t length;
    } cases[] = {{"", 0},     {"theirs", 6},    {"a\0b\r\n", 5}, {"\xff\x00\x1b[2J", 6},
                 {"dl1-", 4}, {large, MEGABYTE}};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int plain = 0; plain < 2; plain++) {
            dlock_lock lock = DLOCK_INIT;
            dlock_options options = {.no_fence = plain == 1};
            server_do(&live->server, "SET k %b", cases[i].value, cases[i].length);
            assert_no(dlock_acquire(live->factory, &lock, "k", &options), &lock, DLOCK_BUSY);
            assert_int_equal(server_integer(&live->server, "STRLEN k"), cases[i].length);
            assert_int_equal(server_integer(&live->server, "PTTL k"), -1);
            redisReply *reply = server_command(&live->server, "GET k");
            assert_memory_equal(reply->str, cases[i].value, cases[i].length);
            freeReplyObject(reply);
        }
    }
    free(large);
    live_end(live);
}

static void a_foreign_type_is_refused_at_once(void **state)
{
    static const char *const makers[] = {"RPUSH k a", "SADD k a", "HSET k a b", "ZADD k 1 a",
                                         "XADD k * a b"};
    struct live *live = live_of(state);
    warm_up(live);
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options patient = {.retry_count = 50, .retry_delay_ms = 100};
        dlock_options plain = {.no_fence = true};
        server_do(&live->server, "DEL k");
        server_do(&live->server, makers[i]);
        int64_t start = now_ms();
        int64_t scripts = server_scripts(&live->server);
        assert_no(dlock_acquire(live->factory, &lock, "k", &patient), &lock, DLOCK_REFUSED);
        assert_took(start, 0, 50);
        assert_int_equal(server_scripts(&live->server), scripts + 1);
        assert_false(dlock_acquire(live->factory, &lock, "k", &plain));
        assert_true(dlock_why(&lock)->code == DLOCK_REFUSED ||
                    dlock_why(&lock)->code == DLOCK_BUSY);
        assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
        assert_int_equal(server_integer(&live->server, "PTTL k"), -1);
    }
    live_end(live);
}

/* A client that locks as every other library does. */
static void a_plain_set_nx_px_client_excludes_us_and_is_excluded(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char text[64];
    for (int i = 0; i < 20; i++) {
        server_text(&live->server, text, sizeof text, "SET k theirs NX PX 30000");
        assert_string_equal(text, "OK");
        assert_no(dlock_acquire(live->factory, &lock, "k", NULL), &lock, DLOCK_BUSY);
        assert_int_equal(server_integer(&live->server, "EVAL %s 1 k theirs",
                                        "if redis.call('get', KEYS[1]) == ARGV[1] then return "
                                        "redis.call('del', KEYS[1]) else return 0 end"),
                         1);
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        server_text(&live->server, text, sizeof text, "SET k theirs NX PX 30000");
        assert_string_equal(text, "(nil)");
        assert_held(&live->server, &lock, "k");
        assert_yes(dlock_release(&lock), &lock);
    }
    live_end(live);
}

/* --------------------------------------------------------------------------------------- fences */

static void a_fence_grows_with_every_grant_and_not_with_an_extend(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    uint64_t last = 0;
    for (int i = 0; i < 200; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        assert_true(dlock_fence(&lock) > last);
        assert_true(dlock_fence(&lock) < UINT64_C(9007199254740992));
        last = dlock_fence(&lock);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_true(dlock_fence(&lock) == last);
        assert_yes(dlock_release(&lock), &lock);
    }
    live_end(live);
}

/* What may have happened to the counter: a failover, an old snapshot, a flush. */
static void a_fence_grows_although_the_counter_was_lost_or_fell_behind(void **state)
{
    static const char *const accidents[] = {
        "DEL {k}:fence",       "ZADD {k}:fence 5 f", "ZADD {k}:fence 0 f",
        "ZADD {k}:fence -7 f", "FLUSHALL",           "PEXPIRE {k}:fence 0",
    };
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    uint64_t last = 0;
    for (size_t i = 0; i < sizeof accidents / sizeof *accidents; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        assert_true(dlock_fence(&lock) > last);
        last = dlock_fence(&lock);
        assert_yes(dlock_release(&lock), &lock);
        server_do(&live->server, accidents[i]);
        int64_t now = server_time(&live->server);
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        assert_true(dlock_fence(&lock) > last);
        assert_true(dlock_fence(&lock) > (uint64_t)now);
        last = dlock_fence(&lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    live_end(live);
}

static void a_counter_ahead_of_the_clock_goes_on_by_one(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    server_do(&live->server, "ZADD {k}:fence 9007199254740000 f");
    for (uint64_t i = 1; i <= 3; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        assert_true(dlock_fence(&lock) == UINT64_C(9007199254740000) + i);
        assert_yes(dlock_release(&lock), &lock);
    }
    live_end(live);
}

static void a_counter_that_is_no_counter_is_refused_and_nothing_is_set(void **state)
{
    static const struct {
        const char *name;
        const char *maker;
    } cases[] = {
        {"string", "SET {k}:fence 17"},
        {"list", "RPUSH {k}:fence 17"},
        {"hash", "HSET {k}:fence f 17"},
        {"used up", "ZADD {k}:fence 9007199254740991 f"},
        {"beyond", "ZADD {k}:fence 9007199254740992 f"},
        {"far beyond", "ZADD {k}:fence 1e300 f"},
        {"endless", "ZADD {k}:fence +inf f"},
    };
    struct live *live = live_of(state);
    warm_up(live);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options patient = {.retry_count = 50, .retry_delay_ms = 100};
        server_do(&live->server, "DEL {k}:fence");
        server_do(&live->server, cases[i].maker);
        int64_t start = now_ms();
        int64_t scripts = server_scripts(&live->server);
        assert_no(dlock_acquire(live->factory, &lock, "k", &patient), &lock, DLOCK_REFUSED);
        assert_took(start, 0, 50);
        assert_int_equal(server_scripts(&live->server), scripts + 1);
        assert_gone(&live->server, "k");
        dlock_close(live->factory);
        live->factory = open_factory(live->server.url, NULL);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

static void a_release_frees_whatever_became_of_the_counter(void **state)
{
    static const char *const makers[] = {"SET {k}:fence x", "RPUSH {k}:fence x",
                                         "ZADD {k}:fence 9007199254740991 f"};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        server_do(&live->server, "DEL {k}:fence");
        server_do(&live->server, makers[i]);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        server_do(&live->server, "DEL {k}:fence");
    }
    live_end(live);
}

static void a_lock_without_fence_has_fence_zero_and_no_counter(void **state)
{
    static const dlock_options ways[] = {
        {.no_fence = true},
        {.no_fence = true, .retry_count = 3},
        {.no_fence = true, .wait_ms = 1000},
    };
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        dlock_options once = {.no_fence = true};
        assert_yes(dlock_acquire(live->factory, &lock, "k", &ways[i]), &lock);
        assert_int_equal(dlock_fence(&lock), 0);
        assert_held(&live->server, &lock, "k");
        assert_in_range(server_integer(&live->server, "PTTL k"), 20000, 30000);
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 1);
        assert_no(dlock_acquire(live->factory, &other, "k", &once), &other, DLOCK_BUSY);
        assert_no(dlock_acquire(live->factory, &other, "k", NULL), &other, DLOCK_BUSY);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 0);
    }
    live_end(live);
}

/* -------------------------------------------------------------------------------------- waiting */

static void attempts_are_counted_and_paced(void **state)
{
    static const struct {
        int code;
        int64_t low, high;
        int least, most;    /* attempts */
        dlock_options options;
    } cases[] = {
        {DLOCK_BUSY, 0, 50, 1, 1, {.retry_count = 0}},
        {DLOCK_BUSY, 300, 300, 4, 4, {.retry_count = 3, .retry_delay_ms = 100}},
        {DLOCK_BUSY, 150, 750, 4, 4, {.retry_count = 3}},
        {DLOCK_BUSY,
         100,
         300,
         3,
         3,
         {.retry_count = 2, .retry_delay_ms = 50, .retry_jitter_ms = 100}},
        {DLOCK_BUSY, 1, 5, 2, 2, {.retry_count = 1, .retry_delay_ms = 1}},
        {DLOCK_BUSY, 50, 50, 2, 2, {.retry_count = 1, .retry_delay_ms = 50, .wait_ms = 20000}},
        {DLOCK_TIMEOUT,
         220,
         220,
         2,
         6,
         {.retry_count = 1000, .retry_delay_ms = 50, .wait_ms = 220}},
        {DLOCK_TIMEOUT, 300, 300, 2, 8, {.wait_ms = 300}},
        {DLOCK_TIMEOUT, 300, 300, 2, 5, {.wait_ms = 300, .retry_delay_ms = 100}},
        {DLOCK_TIMEOUT,
         300,
         300,
         2,
         7,
         {.wait_ms = 300, .retry_count = DLOCK_FOREVER, .retry_delay_ms = 60}},
        {DLOCK_TIMEOUT, 120, 120, 1, 2, {.wait_ms = 120, .retry_delay_ms = 20000}},
        {DLOCK_BUSY,
         100,
         100,
         3,
         3,
         {.wait_ms = DLOCK_FOREVER, .retry_count = 2, .retry_delay_ms = 50}},
    };
    struct live *live = live_of(state);
    warm_up(live);
    server_do(&live->server, "SET k theirs PX 600000");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = cases[i].options;
        options.no_queue = true;
        int64_t scripts = server_scripts(&live->server);
        int64_t start = now_ms();
        bool answer = dlock_acquire(live->factory, &lock, "k", &options);
        assert_took(start, cases[i].low, cases[i].high);
        assert_no(answer, &lock, cases[i].code);
        int64_t asked = server_scripts(&live->server) - scripts;
        assert_in_range(asked, cases[i].least, cases[i].most);
        assert_int_equal(server_integer(&live->server, "EXISTS {k}:queue"), 0);
    }
    live_end(live);
}

/* The pause is ten seconds, the holder's lease is not: nobody sleeps past its end. */
static void a_waiter_is_in_soon_after_the_lease_has_ended(void **state)
{
    static const dlock_options waits[] = {
        {.retry_delay_ms = 10000, .wait_ms = DLOCK_FOREVER},
        {.retry_delay_ms = 10000, .wait_ms = 30000},
        {.retry_delay_ms = 10000, .retry_count = 1},
        {.retry_delay_ms = 10000, .retry_count = DLOCK_FOREVER},
        {.retry_delay_ms = 10000, .wait_ms = 30000, .no_fence = true},
    };
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof waits / sizeof *waits; i++) {
        dlock_lock holder = DLOCK_INIT;
        dlock_lock waiter = DLOCK_INIT;
        dlock_options options = {.expiry_ms = 300};
        int64_t start = now_ms();
        assert_yes(dlock_acquire(live->factory, &holder, "k", &options), &holder);
        int64_t validity = dlock_remaining_ms(&holder);
        assert_yes(dlock_acquire(live->factory, &waiter, "k", &waits[i]), &waiter);
        assert_took(start, validity, 300);
        assert_false(dlock_is_acquired(&holder));
        assert_no(dlock_release(&holder), &holder, DLOCK_LOST);
        assert_held(&live->server, &waiter, "k");
        assert_yes(dlock_release(&waiter), &waiter);
    }
    live_end(live);
}

/* The holder gives back early and tells nobody: a foreign client, or a release in this version. */
static void a_waiter_finds_a_key_given_back_within_its_own_pace(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.wait_ms = 20000};
    redisContext *other = server_connect(&live->server);
    server_do(&live->server, "SET k theirs PX 600000");
    assert_int_equal(redisAppendCommand(other, "BLPOP never 0.4"), REDIS_OK);
    assert_int_equal(redisAppendCommand(other, "DEL k"), REDIS_OK);
    int sent = 0;
    do {
        assert_int_equal(redisBufferWrite(other, &sent), REDIS_OK);
    } while (sent == 0);
    int64_t start = now_ms();
    assert_yes(dlock_acquire(live->factory, &lock, "k", &options), &lock);
    assert_took(start, 390, 650);
    redisFree(other);
    live_end(live);
}

static void a_key_without_expiry_is_waited_for_and_never_expired(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.wait_ms = 200, .retry_delay_ms = 10000};
    server_do(&live->server, "SET k theirs");
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &options), &lock, DLOCK_TIMEOUT);
    assert_took(start, 200, 200);
    assert_int_equal(server_integer(&live->server, "PTTL k"), -1);
    live_end(live);
}

static void nonsense_in_options_is_an_argument_and_nothing_is_sent(void **state)
{
    static const dlock_options cases[] = {
        {.expiry_ms = -1},        {.expiry_ms = 1},
        {.expiry_ms = 2},         {.expiry_ms = DLOCK_EXPIRY_MAX_MS + 1},
        {.expiry_ms = INT64_MAX}, {.retry_count = -2},
        {.retry_delay_ms = -1},   {.retry_jitter_ms = -1},
        {.wait_ms = -2},
    };
    struct live *live = live_of(state);
    int64_t heard = server_heard(&live->server);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        assert_no(dlock_acquire(live->factory, &lock, "k", &cases[i]), &lock, DLOCK_ARGUMENT);
    }
    assert_int_equal(server_heard(&live->server), heard);
    live_end(live);
}

/* A release after EVALSHA met NOSCRIPT, an extend, an acquire: nobody notices. */
static void a_flushed_script_cache_is_never_noticed(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    for (int i = 0; i < 5; i++) {
        server_do(&live->server, "SCRIPT FLUSH");
        assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        assert_held(&live->server, &lock, "k");
        server_do(&live->server, "SCRIPT FLUSH");
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_in_range(server_integer(&live->server, "PTTL k"), 30001, 60000);
        server_do(&live->server, "SCRIPT FLUSH");
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

/* Newer servers keep the last five hundred scripts that came by EVAL: ours are forgotten then. */
static void scripts_forgotten_among_many_others_are_never_noticed(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char script[64];
    warm_up(live);
    assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 600; i++) {
            (void)snprintf(script, sizeof script, "return %d", i);
            assert_int_equal(server_integer(&live->server, "EVAL %s 0", script), i);
        }
        switch (round) {
        case 0:
            assert_yes(dlock_extend(&lock, 60000), &lock);
            break;
        case 1:
            assert_yes(dlock_release(&lock), &lock);
            break;
        default:
            assert_yes(dlock_acquire(live->factory, &lock, "k", NULL), &lock);
        }
    }
    assert_held(&live->server, &lock, "k");
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(a_key_is_a_string_that_holds_the_owner_and_expires),
        LIVE(a_fence_is_the_score_of_the_only_member_f),
        LIVE(a_counter_lives_ten_times_as_long_as_a_long_lease),
        LIVE(a_released_key_leaves_only_the_counter),
        LIVE(helper_keys_follow_the_hash_tag),
        LIVE(no_two_keys_share_a_helper_key),
        LIVE(a_key_may_hold_any_bytes),
        LIVE(a_key_beyond_the_limit_is_refused_before_any_byte_is_sent),
        LIVE(a_release_is_true_once_and_a_second_one_is_lost_without_io),
        LIVE(a_release_after_expiry_is_lost_in_one_round_trip),
        LIVE(a_release_or_extend_never_touches_what_is_anothers),
        LIVE(a_lock_taken_away_by_others_is_lost_at_the_next_contact),
        LIVE(a_key_that_became_another_type_is_never_changed),
        LIVE(a_forgotten_lock_lapses_by_itself),
        LIVE(an_extend_lengthens_and_never_shortens),
        LIVE(an_extend_of_zero_means_the_expiry_as_acquired),
        LIVE(an_extend_after_expiry_is_lost_and_creates_nothing),
        LIVE(an_extend_leaves_a_persisted_key_persistent),
        LIVE(an_extend_by_nonsense_is_refused_and_changes_nothing),
        LIVE(a_held_handle_cannot_acquire_and_keeps_what_it_has),
        LIVE(a_held_lock_is_busy_for_handle_factory_and_process_alike),
        LIVE(a_foreign_string_is_busy_and_stays_as_it_is),
        LIVE(a_foreign_type_is_refused_at_once),
        LIVE(a_plain_set_nx_px_client_excludes_us_and_is_excluded),
        LIVE(a_fence_grows_with_every_grant_and_not_with_an_extend),
        LIVE(a_fence_grows_although_the_counter_was_lost_or_fell_behind),
        LIVE(a_counter_ahead_of_the_clock_goes_on_by_one),
        LIVE(a_counter_that_is_no_counter_is_refused_and_nothing_is_set),
        LIVE(a_release_frees_whatever_became_of_the_counter),
        LIVE(a_lock_without_fence_has_fence_zero_and_no_counter),
        LIVE(attempts_are_counted_and_paced),
        LIVE(a_waiter_is_in_soon_after_the_lease_has_ended),
        LIVE(a_waiter_finds_a_key_given_back_within_its_own_pace),
        LIVE(a_key_without_expiry_is_waited_for_and_never_expired),
        LIVE(nonsense_in_options_is_an_argument_and_nothing_is_sent),
        LIVE(a_flushed_script_cache_is_never_noticed),
        LIVE(scripts_forgotten_among_many_others_are_never_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
