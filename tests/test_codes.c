/* Codes, their texts, the version, the defaults, and what a handle answers that holds nothing. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <limits.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* --------------------------------------------------------------------------------- codes, texts */

/* Compiled into programs and written into logs: a number never changes, it is only added to. */
static const struct {
    int code;
    int number;
    const char *name;
} codes[] = {
    {DLOCK_OK, 0, "OK"},           {DLOCK_BUSY, 1, "BUSY"},
    {DLOCK_TIMEOUT, 2, "TIMEOUT"}, {DLOCK_CANCELLED, 3, "CANCELLED"},
    {DLOCK_LOST, 4, "LOST"},       {DLOCK_UNREACHABLE, 5, "UNREACHABLE"},
    {DLOCK_REFUSED, 6, "REFUSED"}, {DLOCK_PROTOCOL, 7, "PROTOCOL"},
    {DLOCK_MEMORY, 8, "MEMORY"},   {DLOCK_ARGUMENT, 9, "ARGUMENT"},
};

#define LISTED(name, number, text) {#name, number, text},
static const struct {
    const char *name;
    int number;
    const char *text;
} listed[] = {DLOCK_CODES(LISTED)};

static void a_codes_number_never_changes(void **state)
{
    size_t i;
    (void)state;
    assert_int_equal(COUNT(listed), COUNT(codes));
    for (i = 0; i < COUNT(codes); i++) {
        assert_int_equal(codes[i].code, codes[i].number);
        assert_int_equal(listed[i].number, codes[i].number);
        assert_string_equal(listed[i].name, codes[i].name);
    }
}

/* What config.on_event is told is written into logs as well. */
static const struct {
    int kind;
    int number;
    const char *name;
} events[] = {
    {DLOCK_EVENT_CONNECTED, 1, "CONNECTED"},
    {DLOCK_EVENT_DISCONNECTED, 2, "DISCONNECTED"},
    {DLOCK_EVENT_WAITING, 3, "WAITING"},
    {DLOCK_EVENT_ACQUIRED, 4, "ACQUIRED"},
    {DLOCK_EVENT_NOT_ACQUIRED, 5, "NOT_ACQUIRED"},
    {DLOCK_EVENT_RENEWED, 6, "RENEWED"},
    {DLOCK_EVENT_RELEASED, 7, "RELEASED"},
    {DLOCK_EVENT_LOST, 8, "LOST"},
    {DLOCK_EVENT_MUTE, 9, "MUTE"},
};

#define EVENT_LISTED(name, number) {#name, number},
static const struct {
    const char *name;
    int number;
} listed_events[] = {DLOCK_EVENTS(EVENT_LISTED)};

static void an_events_number_never_changes(void **state)
{
    size_t i;
    (void)state;
    assert_int_equal(COUNT(listed_events), COUNT(events));
    for (i = 0; i < COUNT(events); i++) {
        assert_int_equal(events[i].kind, events[i].number);
        assert_int_equal(listed_events[i].number, events[i].number);
        assert_string_equal(listed_events[i].name, events[i].name);
    }
}

/* One sentence: printable, with a capital at its beginning and a stop at its end, and not cut. */
static void check_sentence(const char *text)
{
    size_t length = strlen(text);
    dlock_error error;
    check_text(text, __FILE__, __LINE__);
    if (length >= sizeof error.text || length < 8 || text[length - 1] != '.' || text[0] < 'A' ||
        text[0] > 'Z') {
        fail_msg("no sentence: \"%s\"", text);
    }
}

static void every_code_has_a_text_of_its_own(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(codes); i++) {
        size_t j;
        const char *text = dlock_code_text(codes[i].number);
        check_sentence(text);
        assert_string_equal(text, listed[i].text);
        for (j = 0; j < i; j++) {
            assert_string_not_equal(text, dlock_code_text(codes[j].number));
        }
    }
}

static void a_number_that_is_no_code_has_a_text_too(void **state)
{
    static const int strange[] = {-1, 10, 11, 42, 255, 256, 65536, INT_MAX, INT_MIN};
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(strange); i++) {
        size_t j;
        const char *text = dlock_code_text(strange[i]);
        check_text(text, __FILE__, __LINE__);
        for (j = 0; j < COUNT(codes); j++) {
            assert_string_not_equal(text, dlock_code_text(codes[j].number));
        }
    }
}

static void the_version_is_one_comparable_number(void **state)
{
    (void)state;
    assert_int_equal(dlock_version(), DLOCK_VERSION);
    assert_int_equal(DLOCK_VERSION,
                     DLOCK_VERSION_MAJOR * 10000 + DLOCK_VERSION_MINOR * 100 + DLOCK_VERSION_PATCH);
    assert_in_range(DLOCK_VERSION_MINOR, 0, 99);
    assert_in_range(DLOCK_VERSION_PATCH, 0, 99);
    assert_true(DLOCK_VERSION >= 100);
}

/* -------------------------------------------------------------------------------- making a text */

static void a_text_is_cut_where_it_does_not_fit(void **state)
{
    char longer[400];
    dlock_error error;
    (void)state;
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    memset(&error, 0x55, sizeof error);
    assert_false(dlocki_say(&error, DLOCK_REFUSED, 5, "%s", longer));
    assert_int_equal(error.code, DLOCK_REFUSED);
    assert_int_equal(error.os_errno, 5);
    assert_int_equal(error.node, -1);
    assert_int_equal(strnlen(error.text, sizeof error.text), sizeof error.text - 1);
    dlocki_append(&error, "%s", longer);
    assert_int_equal(strnlen(error.text, sizeof error.text), sizeof error.text - 1);
    dlocki_say(&error, DLOCK_REFUSED, 0, "A");
    dlocki_append(&error, " %d", 7);
    assert_string_equal(error.text, "A 7");
    dlocki_append(&error, "%s", longer);
    assert_int_equal(strnlen(error.text, sizeof error.text), sizeof error.text - 1);
    assert_false(dlocki_say(NULL, DLOCK_REFUSED, 0, "nobody listens"));
    dlocki_say_ok(&error);
    assert_int_equal(error.code, DLOCK_OK);
    assert_int_equal(error.os_errno, 0);
    assert_int_equal(error.node, -1);
    assert_string_equal(error.text, "");
}

static void what_cannot_be_printed_becomes_a_question_mark(void **state)
{
    dlock_error error;
    (void)state;
    dlocki_say(&error, DLOCK_OK, 0, "a%sb", " ~\x1b\r\n\t\x01\x7f\x80\xff");
    assert_string_equal(error.text, "a ~????????b");
    dlocki_say(&error, DLOCK_OK, 0, "%s", "%s%n");   /* is a value, not a format */
    assert_string_equal(error.text, "%s%n");
}

/* ---------------------------------------------------------------- what is said about the server */

static const char long_host[] = "master.of.a.group.of.servers.in.a.cloud.with.very.long.names.com";

static const int errnos[] = {ECONNREFUSED, ENOENT,    EACCES,       EMFILE, ENFILE,
                             ENOMEM,       ETIMEDOUT, EHOSTUNREACH, 0,      4095};

/* The words for every cause there is. */
static const char *cause(size_t i)
{
    const size_t classes = sizeof dlocki_error_classes / sizeof *dlocki_error_classes;
    if (i < classes) {
        return dlocki_error_classes[i].says;
    }
    if (i - classes < COUNT(errnos)) {
        return dlocki_errno_says(errnos[i - classes]);
    }
    return NULL;
}

static dlock_factory *long_named(bool is_unix)
{
    char url[160];
    assert_int_equal(strlen(long_host), 64);
    (void)snprintf(url, sizeof url, is_unix ? "unix:///%s" : "redis://%s:65535", long_host);
    return open_factory(url, NULL);
}

static void a_text_about_a_server_names_it_and_fits(void **state)
{
    int socket;
    (void)state;
    for (socket = 0; socket < 2; socket++) {
        dlock_factory *factory = long_named(socket != 0);
        const char *says;
        size_t i;
        for (i = 0; (says = cause(i)) != NULL; i++) {
            dlock_error error;
            dlocki_say_server(factory, &error, DLOCK_UNREACHABLE, 7, says);
            check_sentence(error.text);
            assert_int_equal(error.code, DLOCK_UNREACHABLE);
            assert_int_equal(error.os_errno, 7);
            assert_int_equal(error.node, 0);
            assert_non_null(strstr(error.text, "master.of.a.group"));
            assert_non_null(strstr(error.text, says));
            assert_int_equal(strstr(error.text, "port 65535") != NULL, socket == 0);
        }
        assert_true(i > 30);
        dlock_close(factory);
    }
}

/* However a lock is lost while nobody asks, dlock_why says which way it was. */
static void every_way_to_lose_a_lock_has_a_text_of_its_own(void **state)
{
    int loss;
    (void)state;
    assert_int_equal(COUNT(dlocki_loss_errors), DLOCKI_TAKEN_AWAY + 1);
    for (loss = DLOCKI_NO_LOSS; loss <= DLOCKI_TAKEN_AWAY; loss++) {
        dlock_lock lock = DLOCK_INIT;
        int other;
        dlocki_say(&lock._why, DLOCK_BUSY, 0, "Something else.");
        lock._loss = loss;
        if (loss == DLOCKI_NO_LOSS) {
            assert_ptr_equal(dlock_why(&lock), &lock._why);
            continue;
        }
        assert_int_equal(dlock_why(&lock)->code, DLOCK_LOST);
        assert_int_equal(dlock_why(&lock)->os_errno, 0);
        check_sentence(dlock_why(&lock)->text);
        for (other = DLOCKI_NO_LOSS; other < loss; other++) {
            assert_string_not_equal(dlock_why(&lock)->text, dlocki_loss_errors[other].text);
        }
    }
}

/* "It lapses by itself in N ms at the latest" is all that a caller has after a release that
 * nobody answered: it may not be what is cut off. */
static void a_failed_release_always_says_when_the_lock_lapses(void **state)
{
    dlock_factory *factory = long_named(false);
    const char *says;
    size_t i;
    (void)state;
    for (i = 0; (says = cause(i)) != NULL; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_error why;
        dlocki_event in;
        memset(&in, 0, sizeof in);
        lock._state = DLOCKI_OURS;
        lock._verb = DLOCKI_RELEASE;
        lock._lapses_at = DLOCK_EXPIRY_MAX_MS;
        dlocki_say_server(factory, &why, DLOCK_UNREACHABLE, 0, says);
        in.kind = DLOCKI_UNCONNECTED;
        in.why = &why;
        assert_int_equal(dlocki_machine(&lock, &in), DLOCKI_DO_UNDO | DLOCKI_DO_FINISH);
        assert_false(lock._answer);
        check_sentence(lock._why.text);
        if (strstr(lock._why.text, "in 2592000000 ms at the latest.") == NULL) {
            fail_msg("does not say when: %s", lock._why.text);
        }
    }
    dlock_close(factory);
}

/* ------------------------------------------------------------ handles that do not hold anything */

static void check_holds_nothing(const dlock_lock *lock)
{
    assert_false(dlock_is_acquired(lock));
    assert_false(dlock_is_degraded(lock));
    assert_int_equal(dlock_remaining_ms(lock), 0);
    assert_int_equal(dlock_fence(lock), 0);
    assert_string_equal(dlock_owner(lock), "");
    assert_false(dlock_is_pending(lock));
    assert_non_null(dlock_why(lock));
}

static void an_unused_handle_has_an_answer_to_every_question(void **state)
{
    dlock_lock initialised = DLOCK_INIT;
    dlock_lock lock;
    dlock_lock zeroed;
    (void)state;
    memset(&lock, 0, sizeof lock);
    memset(&zeroed, 0, sizeof zeroed);
    check_holds_nothing(&initialised);
    assert_int_equal(dlock_why(&initialised)->code, DLOCK_OK);
    check_holds_nothing(&lock);
    assert_int_equal(dlock_why(&lock)->code, DLOCK_OK);
    assert_int_equal(dlock_why(&lock)->os_errno, 0);
    assert_string_equal(dlock_why(&lock)->text, "");
    dlock_cancel(&lock);
    dlock_forget(&lock);
    dlocki_scope_end(&lock);
    assert_memory_equal(&lock, &zeroed, sizeof lock);
}

static void never_done(dlock_lock *lock, bool answer, void *user)
{
    (void)lock;
    (void)answer;
    (void)user;
    fail_msg("done was called though the start said false");
}

static void a_null_handle_has_an_answer_to_every_question(void **state)
{
    (void)state;
    check_holds_nothing(NULL);
    assert_int_equal(dlock_why(NULL)->code, DLOCK_ARGUMENT);
    assert_int_equal(dlock_why(NULL)->node, -1);
    check_sentence(dlock_why(NULL)->text);
    assert_false(dlock_acquire(NULL, NULL, NULL, NULL));
    assert_false(dlock_acquire(NULL, NULL, "key", NULL));
    assert_false(dlock_extend(NULL, 0));
    assert_false(dlock_extend(NULL, 1000));
    assert_false(dlock_release(NULL));
    assert_false(dlock_acquire_start(NULL, NULL, "key", NULL, never_done, NULL));
    assert_false(dlock_extend_start(NULL, 0, never_done, NULL));
    assert_false(dlock_release_start(NULL, never_done, NULL));
    assert_false(dlock_release_start(NULL, NULL, NULL));
    dlock_forget(NULL);
    dlock_cancel(NULL);
    dlock_close(NULL);
}

static void a_null_factory_is_an_argument(void **state)
{
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_no(dlock_acquire(NULL, &lock, "key", NULL), &lock, DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&lock)->text, "factory is NULL"));
    check_sentence(dlock_why(&lock)->text);
    check_holds_nothing(&lock);
    assert_no(dlock_acquire_start(NULL, &lock, "key", NULL, never_done, NULL), &lock,
              DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&lock)->text, "factory is NULL"));
    check_holds_nothing(&lock);
}

static void check_is_zero(const void *memory, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++) {
        assert_int_equal(((const unsigned char *)memory)[i], 0);
    }
}

static void without_a_factory_there_is_no_descriptor_and_nothing_to_process(void **state)
{
    dlock_stats stats;
    (void)state;
    assert_int_equal(dlock_fd(NULL), -1);
    dlock_process(NULL);
    memset(&stats, 0x55, sizeof stats);
    dlock_stats_get(NULL, &stats);
    check_is_zero(&stats, sizeof stats);
    dlock_stats_get(NULL, NULL);
}

static void looking_at_a_key_without_a_factory_is_an_argument(void **state)
{
    dlock_error error;
    dlock_info info;
    (void)state;
    memset(&error, 0x55, sizeof error);
    assert_false(dlock_inspect(NULL, "key", 0, &info, &error));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    check_sentence(error.text);
    memset(&error, 0x55, sizeof error);
    assert_false(dlock_break(NULL, "key", 0, &error));
    assert_int_equal(error.code, DLOCK_ARGUMENT);
    check_sentence(error.text);
    assert_false(dlock_inspect(NULL, NULL, 7, NULL, NULL));
    assert_false(dlock_break(NULL, NULL, 7, NULL));
}

static void verbs_on_an_unused_handle_are_an_argument(void **state)
{
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_no(dlock_release(&lock), &lock, DLOCK_ARGUMENT);
    check_sentence(dlock_why(&lock)->text);
    assert_no(dlock_extend(&lock, 0), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_extend(&lock, 1000), &lock, DLOCK_ARGUMENT);
    check_sentence(dlock_why(&lock)->text);
    assert_no(dlock_extend_start(&lock, 0, never_done, NULL), &lock, DLOCK_ARGUMENT);
    check_sentence(dlock_why(&lock)->text);
    assert_no(dlock_release_start(&lock, never_done, NULL), &lock, DLOCK_ARGUMENT);
    assert_no(dlock_release_start(&lock, NULL, NULL), &lock, DLOCK_ARGUMENT);
    check_sentence(dlock_why(&lock)->text);
    check_holds_nothing(&lock);
}

/* Only a release needs nobody who is told. */
static void a_start_without_done_is_an_argument(void **state)
{
    dlock_factory *factory = open_factory("unix:///nowhere/redis.sock", NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    assert_no(dlock_acquire_start(factory, &lock, "key", NULL, NULL, NULL), &lock, DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&lock)->text, "done"));
    check_text(dlock_why(&lock)->text, __FILE__, __LINE__);
    check_holds_nothing(&lock);
    assert_no(dlock_extend_start(&lock, 0, NULL, NULL), &lock, DLOCK_ARGUMENT);
    assert_non_null(strstr(dlock_why(&lock)->text, "done"));
    check_text(dlock_why(&lock)->text, __FILE__, __LINE__);
    check_holds_nothing(&lock);
    dlock_close(factory);
}

/* The handle of a call that failed asks no other questions than a new one. */
static void a_handle_whose_acquire_failed_holds_nothing(void **state)
{
    dlock_factory *factory = open_factory("unix:///nowhere/redis.sock", NULL);
    dlock_lock lock = DLOCK_INIT;
    int i;
    (void)state;
    for (i = 0; i < 2; i++) {
        assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_UNREACHABLE);
        check_sentence(dlock_why(&lock)->text);
        check_holds_nothing(&lock);
        assert_no(dlock_release(&lock), &lock, DLOCK_ARGUMENT);
        assert_no(dlock_extend(&lock, 0), &lock, DLOCK_ARGUMENT);
        dlock_forget(&lock);
        check_holds_nothing(&lock);
    }
    dlock_close(factory);
    check_holds_nothing(&lock);
}

/* --------------------------------------------------------------------------------- the defaults */

static void a_default_is_what_the_header_says(void **state)
{
    (void)state;
    assert_int_equal(DLOCK_DEFAULT_CONNECT_TIMEOUT_MS, 1000);
    assert_int_equal(DLOCK_DEFAULT_COMMAND_TIMEOUT_MS, 1000);
    assert_int_equal(DLOCK_DEFAULT_EXPIRY_MS, 30000);
    assert_int_equal(DLOCK_DEFAULT_RETRY_MIN_MS, 50);
    assert_int_equal(DLOCK_DEFAULT_RETRY_MAX_MS, 250);
    assert_int_equal(DLOCK_FOREVER, -1);
    assert_true(DLOCK_EXPIRY_MAX_MS == INT64_C(30) * 24 * 60 * 60 * 1000);
    assert_int_equal(DLOCK_KEY_MAX, 256);
    assert_int_equal(DLOCK_DEBT_MAX, 64);
}

static void a_zero_in_the_config_is_the_default(void **state)
{
    dlock_config config;
    dlock_factory *factory = open_factory("redis://host", NULL);
    (void)state;
    assert_int_equal(factory->connect_timeout_ms, DLOCK_DEFAULT_CONNECT_TIMEOUT_MS);
    assert_int_equal(factory->command_timeout_ms, DLOCK_DEFAULT_COMMAND_TIMEOUT_MS);
    assert_string_equal(factory->client_name, "");
    dlock_close(factory);
    memset(&config, 0, sizeof config);
    config.connect_timeout_ms = 7;
    factory = open_factory("redis://host", &config);
    assert_int_equal(factory->connect_timeout_ms, 7);
    assert_int_equal(factory->command_timeout_ms, DLOCK_DEFAULT_COMMAND_TIMEOUT_MS);
    dlock_close(factory);
    config.connect_timeout_ms = 0;
    config.command_timeout_ms = INT32_MAX;
    factory = open_factory("redis://host", &config);
    assert_int_equal(factory->connect_timeout_ms, DLOCK_DEFAULT_CONNECT_TIMEOUT_MS);
    assert_int_equal(factory->command_timeout_ms, INT32_MAX);
    dlock_close(factory);
}

static void a_zero_in_the_options_is_the_default(void **state)
{
    dlock_options options;
    dlock_options filled = dlocki_options_filled(NULL);
    (void)state;
    memset(&options, 0, sizeof options);
    assert_int_equal(filled.expiry_ms, DLOCK_DEFAULT_EXPIRY_MS);
    assert_int_equal(filled.retry_count, 0);
    assert_int_equal(filled.retry_delay_ms, 0);
    assert_int_equal(filled.retry_jitter_ms, 0);
    assert_int_equal(filled.wait_ms, 0);
    assert_int_equal(filled.key_length, 0);
    assert_false(filled.no_queue);
    assert_false(filled.no_fence);
    assert_false(filled.auto_renew);
    assert_int_equal(filled.max_hold_ms, 0);
    assert_false(filled.fail_open);
    assert_null(filled.on_lost);
    assert_null(filled.user);
    filled = dlocki_options_filled(&options);
    assert_int_equal(filled.expiry_ms, DLOCK_DEFAULT_EXPIRY_MS);
    assert_int_equal(options.expiry_ms, 0);   /* the caller's own are left alone */
    options.expiry_ms = 17;
    options.no_fence = true;
    filled = dlocki_options_filled(&options);
    assert_int_equal(filled.expiry_ms, 17);
    assert_true(filled.no_fence);
    options.no_queue = true;
    options.auto_renew = true;
    options.max_hold_ms = INT64_MAX;
    options.fail_open = true;
    options.user = &options;
    filled = dlocki_options_filled(&options);
    assert_true(filled.no_queue && filled.auto_renew && filled.fail_open);
    assert_true(filled.max_hold_ms == INT64_MAX);
    assert_ptr_equal(filled.user, &options);
}

/* Without a delay the pause is 50 to 250 ms, both of them possible. */
static void the_pause_without_a_delay_is_the_default(void **state)
{
    dlock_lock lock = DLOCK_INIT;
    unsigned char random[8];
    dlocki_event in;
    int64_t least = INT64_MAX;
    int64_t most = 0;
    uint32_t i;
    (void)state;
    memset(&in, 0, sizeof in);
    memset(random, 0, sizeof random);
    in.random = random;
    for (i = 0; i < 1000; i++) {
        int64_t pause;
        memcpy(random, &i, sizeof i);
        pause = dlocki_pause_ms(&lock, &in);
        least = pause < least ? pause : least;
        most = pause > most ? pause : most;
    }
    assert_int_equal(least, DLOCK_DEFAULT_RETRY_MIN_MS);
    assert_int_equal(most, DLOCK_DEFAULT_RETRY_MAX_MS);
    memset(random, 0xff, sizeof random);
    assert_in_range(dlocki_pause_ms(&lock, &in), 50, 250);
    in.random = NULL;   /* the kernel gave none: still no busy loop */
    assert_in_range(dlocki_pause_ms(&lock, &in), 50, 250);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_codes_number_never_changes),
        cmocka_unit_test(an_events_number_never_changes),
        cmocka_unit_test(every_code_has_a_text_of_its_own),
        cmocka_unit_test(a_number_that_is_no_code_has_a_text_too),
        cmocka_unit_test(the_version_is_one_comparable_number),
        cmocka_unit_test(a_text_is_cut_where_it_does_not_fit),
        cmocka_unit_test(what_cannot_be_printed_becomes_a_question_mark),
        cmocka_unit_test(a_text_about_a_server_names_it_and_fits),
        cmocka_unit_test(every_way_to_lose_a_lock_has_a_text_of_its_own),
        cmocka_unit_test(a_failed_release_always_says_when_the_lock_lapses),
        cmocka_unit_test(an_unused_handle_has_an_answer_to_every_question),
        cmocka_unit_test(a_null_handle_has_an_answer_to_every_question),
        cmocka_unit_test(a_null_factory_is_an_argument),
        cmocka_unit_test(without_a_factory_there_is_no_descriptor_and_nothing_to_process),
        cmocka_unit_test(looking_at_a_key_without_a_factory_is_an_argument),
        cmocka_unit_test(verbs_on_an_unused_handle_are_an_argument),
        cmocka_unit_test(a_start_without_done_is_an_argument),
        cmocka_unit_test(a_handle_whose_acquire_failed_holds_nothing),
        cmocka_unit_test(a_default_is_what_the_header_says),
        cmocka_unit_test(a_zero_in_the_config_is_the_default),
        cmocka_unit_test(a_zero_in_the_options_is_the_default),
        cmocka_unit_test(the_pause_without_a_delay_is_the_default),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
