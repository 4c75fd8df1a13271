/* Lost replies, half replies, silence, rubbish: a proxy between us and a real server, or a server
 * that was stopped, and what is left on the server afterwards. */
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static const dlock_options once = {.expiry_ms = 30000};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

static void reopen(struct live *live, const char *url, int32_t command_timeout_ms)
{
    dlock_config config = {.command_timeout_ms = command_timeout_ms};
    live_reopen(live, url, &config);
}

/* A factory behind the proxy, connected and with its scripts on the server. */
static void through_proxy(struct live *live, int32_t command_timeout_ms)
{
    dlock_lock lock = DLOCK_INIT;
    if (live->proxy.directory[0] == '\0') {
        proxy_start(&live->proxy, &live->server);
    }
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
    reopen(live, live->proxy.url, command_timeout_ms);
    for (int i = 0; i < 2; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "warm", &once), &lock);
        assert_yes(dlock_extend(&lock, 0), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    server_do(&live->server, "FLUSHALL");
}

/* Waits until the key is gone, at most two seconds: for what is undone behind the answer. */
static bool gone_soon(struct live *live, const char *key)
{
    int64_t end = now_ms() + 2000;
    while (server_integer(&live->server, "EXISTS %s", key) != 0) {
        if (now_ms() > end) {
            return false;
        }
        pause_ms(5);
    }
    return true;
}

/* The server has read what was sent to it before: two round trips and a little rest. */
static void server_settled(struct live *live)
{
    server_do(&live->server, "PING");
    pause_ms(30);
    server_do(&live->server, "PING");
}

/* ------------------------------------------------------------------------------ replies lost */

static void a_lost_reply_with_no_attempt_left_is_unreachable_and_undone(void **state)
{
    static const enum proxy_fault faults[] = {PROXY_SWALLOW, PROXY_HANG_UP};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        for (int plain = 0; plain < 2; plain++) {
            dlock_lock lock = DLOCK_INIT;
            dlock_lock other = DLOCK_INIT;
            dlock_options options = {.no_fence = plain == 1};
            through_proxy(live, 150);
            /* Whatever it says, nobody answers: it may ask again once, and try to undo. */
            proxy_set(&live->proxy, &(struct proxy_plan){.fault = faults[i]});
            int64_t start = now_ms();
            bool answer = dlock_acquire(live->factory, &lock, "k", &options);
            assert_took(start, 0, 450);
            assert_no(answer, &lock, DLOCK_UNREACHABLE);
            assert_true(proxy_fired(&live->proxy) >= 1);
            assert_true(server_integer(&live->server, "EXISTS {k}:fence") == 1 || plain);
            proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
            assert_yes(dlock_acquire(live->factory, &other, "k", &once), &other);
            assert_held(&live->server, &other, "k");
            assert_yes(dlock_release(&other), &other);
            assert_gone(&live->server, "k");
        }
    }
    live_end(live);
}

static void a_lost_reply_is_undone_by_a_call_on_another_key_or_by_close(void **state)
{
    struct live *live = live_of(state);
    for (int by_close = 0; by_close < 2; by_close++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        through_proxy(live, 150);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_HANG_UP, .word = "EVALSHA"});
        assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
        assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
        for (int i = 0; by_close == 0 && i < 10; i++) {
            pause_ms(40);       /* after a failure a debt may rest for a while */
            assert_yes(dlock_acquire(live->factory, &other, "other", &once), &other);
            assert_yes(dlock_release(&other), &other);
        }
        if (by_close == 0) {
            assert_gone(&live->server, "k");
        }
        dlock_close(live->factory);
        live->factory = NULL;
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

/* Cut off, the same owner asks again: the lease that runs is the first one, and so is the fence.
 * Timed out, what it may have got is undone first, and another owner asks. */
static void a_lost_reply_with_attempts_left_is_asked_again(void **state)
{
    static const struct {
        enum proxy_fault fault;
        dlock_options options;
        bool same_owner;
        int64_t low;            /* the second ask comes at least so much later */
    } cases[] = {
        {PROXY_SWALLOW, {.retry_count = 3}, false, 200},
        {PROXY_SWALLOW, {.wait_ms = 5000}, false, 200},
        {PROXY_HANG_UP, {.retry_count = 3}, true, 0},
        {PROXY_HANG_UP, {.wait_ms = 5000}, true, 0},
        {PROXY_HANG_UP, {.retry_count = 0}, true, 0},
    };
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        char text[64];
        through_proxy(live, 200);
        proxy_set(&live->proxy,
                  &(struct proxy_plan){.fault = cases[i].fault, .times = 1, .word = "EVALSHA"});
        int64_t clock = server_time(&live->server);
        int64_t start = now_ms();
        assert_yes(dlock_acquire(live->factory, &lock, "k", &cases[i].options), &lock);
        assert_took(start, cases[i].low, 600);
        int64_t spent = now_ms() - start;
        assert_int_equal(proxy_fired(&live->proxy), 1);
        assert_held(&live->server, &lock, "k");
        server_text(&live->server, text, sizeof text, "ZSCORE {k}:fence f");
        assert_true((double)dlock_fence(&lock) == strtod(text, NULL));
        assert_true(dlock_fence(&lock) > (uint64_t)clock);
        int64_t lease = server_integer(&live->server, "PTTL k");
        assert_true(lease <= 30000);
        assert_true(dlock_remaining_ms(&lock) <= lease);
        if (cases[i].same_owner) {
            assert_true(dlock_remaining_ms(&lock) <= 30000 - 302 - spent + 3);
        }
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        server_settled(live);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

static void an_extend_or_a_release_whose_reply_was_lost_is_sent_again(void **state)
{
    static const enum proxy_fault faults[] = {PROXY_SWALLOW, PROXY_HANG_UP};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        dlock_lock lock = DLOCK_INIT;
        struct proxy_plan plan = {.fault = faults[i], .times = 1, .word = "EVALSHA"};
        through_proxy(live, 200);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        proxy_set(&live->proxy, &plan);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_int_equal(proxy_fired(&live->proxy), 1);
        assert_in_range(server_integer(&live->server, "PTTL k"), 30001, 60000);
        proxy_set(&live->proxy, &plan);
        /* Executed, and its retry says 0: validity is still positive, so it was us. */
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(proxy_fired(&live->proxy), 1);
        assert_gone(&live->server, "k");
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    }
    live_end(live);
}

/* As above, but by the time the retry is answered our lease has run out and another holds it. */
static void a_release_whose_retry_came_too_late_is_unreachable_and_theirs_is_untouched(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options brief = {.expiry_ms = 150};
    char text[64];
    through_proxy(live, 400);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &brief), &lock);
    server_do(&live->server, "SET k theirs XX PX 60000");
    proxy_set(&live->proxy,
              &(struct proxy_plan){.fault = PROXY_SWALLOW, .times = 1, .word = "EVALSHA"});
    int64_t start = now_ms();
    bool answer = dlock_release(&lock);
    assert_took(start, 100, 800);
    assert_no(answer, &lock, DLOCK_UNREACHABLE);
    server_text(&live->server, text, sizeof text, "GET k");
    assert_string_equal(text, "theirs");
    assert_int_equal(proxy_fired(&live->proxy), 1);
    live_end(live);
}

static void a_release_that_nobody_answers_is_unreachable_and_can_be_called_again(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    through_proxy(live, 100);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_REFUSE});
    server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
    pause_ms(30);
    for (int i = 0; i < 3; i++) {
        int64_t start = now_ms();
        assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
        assert_took(start, 0, 200);
        assert_non_null(strstr(dlock_why(&lock)->text, " ms"));
    }
    assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
    assert_yes(dlock_release(&lock), &lock);
    assert_gone(&live->server, "k");
    live_end(live);
}

/* ------------------------------------------------------------------------ a server that stopped */

/* Without an undo, closing the connection is not enough: the request is obeyed afterwards. */
static void control_a_stopped_server_keeps_a_request_and_leaves_an_orphan(void **state)
{
    struct live *live = live_of(state);
    int orphans = 0;
    for (int i = 0; i < 20; i++) {
        redisContext *other = server_connect(&live->server);
        int sent = 0;
        server_do(&live->server, "DEL k");
        server_pause(&live->server);
        assert_int_equal(redisAppendCommand(other, "SET k orphan NX PX 30000"), REDIS_OK);
        while (sent == 0) {
            assert_int_equal(redisBufferWrite(other, &sent), REDIS_OK);
        }
        redisFree(other);
        server_continue(&live->server);
        server_settled(live);
        orphans += (int)server_integer(&live->server, "EXISTS k");
    }
    assert_int_equal(orphans, 20);
    live_end(live);
}

/* The next call on the same key gets it, with one attempt: its own orphan was taken away first. */
static void no_orphan_is_left_when_a_stopped_server_goes_on_and_we_call_again(void **state)
{
    struct live *live = live_of(state);
    char key[32];
    reopen(live, live->server.url, 20);
    for (int i = 0; i < 150; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        dlock_options options = {.no_fence = i % 3 == 1};
        dlock_options waits = {.wait_ms = 5000};
        (void)snprintf(key, sizeof key, "k%d", i);
        if (i % 4 == 3) {
            reopen(live, live->server.url, 20);     /* not even connected when it stops */
        }
        server_pause(&live->server);
        assert_no(dlock_acquire(live->factory, &lock, key, &options), &lock, DLOCK_UNREACHABLE);
        server_continue(&live->server);
        if (i % 2 == 0) {
            assert_yes(dlock_acquire(live->factory, &other, key, &waits), &other);
            assert_held(&live->server, &other, key);
            assert_yes(dlock_release(&other), &other);
        } else {
            assert_yes(dlock_acquire(live->factory, &other, "other", &waits), &other);
            assert_yes(dlock_release(&other), &other);
        }
    }
    live_end(live);
    server_settled(live);
    for (int i = 0; i < 150; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_gone(&live->server, key);
    }
    live_end(live);
}

static void no_orphan_is_left_when_a_stopped_server_goes_on_and_we_close(void **state)
{
    struct live *live = live_of(state);
    int executed = 0;
    for (int i = 0; i < 50; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = {.no_fence = i % 3 == 1, .wait_ms = i % 2 == 0 ? 0 : 15};
        reopen(live, live->server.url, 60);
        if (i % 4 != 3) {
            assert_yes(dlock_acquire(live->factory, &lock, "warm", &once), &lock);
            assert_yes(dlock_release(&lock), &lock);
        }
        server_do(&live->server, "FLUSHALL");
        server_pause(&live->server);
        assert_no(dlock_acquire(live->factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
        server_continue(&live->server);
        dlock_close(live->factory);
        live->factory = NULL;
        server_settled(live);
        assert_gone(&live->server, "k");
        executed += (int)server_integer(&live->server, "EXISTS {k}:fence");
    }
    assert_true(executed > 0);  /* else there was nothing to undo, and nothing was tested */
    live_end(live);
}

/* Close may have to give up before the server goes on: the undo is in its socket by then, and
 * must do without an answer, so also where the server has not yet met the script. */
static void close_is_bounded_while_the_server_is_stopped_and_leaves_no_orphan(void **state)
{
    struct live *live = live_of(state);
    for (int i = 0; i < 6; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock held = DLOCK_INIT;
        dlock_options options = {.wait_ms = 50};
        reopen(live, live->server.url, 200);
        assert_yes(dlock_acquire(live->factory, &held, "held", &once), &held);
        if (i % 2 == 0) {
            assert_yes(dlock_release(&held), &held);
            assert_yes(dlock_acquire(live->factory, &held, "held", &once), &held);
        }
        server_pause(&live->server);
        int64_t start = now_ms();
        assert_no(dlock_acquire(live->factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
        assert_took(start, 50, 50);
        start = now_ms();
        dlock_close(live->factory);
        live->factory = NULL;
        assert_took(start, 0, 300);
        assert_false(dlock_is_acquired(&held));
        server_continue(&live->server);
        server_settled(live);
        assert_gone(&live->server, "k");
        assert_gone(&live->server, "held");
        server_do(&live->server, "FLUSHALL");
        server_do(&live->server, "SCRIPT FLUSH");
    }
    live_end(live);
}

/* The caller's own bound ends first: its answer is on time, the undo goes on behind it. */
static void an_answer_is_on_time_while_an_undo_is_due(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.wait_ms = 100, .retry_count = DLOCK_FOREVER};
    reopen(live, live->server.url, 1000);
    assert_yes(dlock_acquire(live->factory, &lock, "warm", &once), &lock);
    assert_yes(dlock_release(&lock), &lock);
    server_pause(&live->server);
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 100, 100);
    server_continue(&live->server);
    start = now_ms();
    live_end(live);
    assert_took(start, 0, 200);
    assert_gone(&live->server, "k");
    assert_int_equal(server_integer(&live->server, "EXISTS {k}:fence"), 1);
    live_end(live);
}

/* Sixty-four debts fit. With the table full nothing is sent; when they are paid, all is well. */
static void a_full_table_of_debts_sends_nothing_new(void **state)
{
    enum { DEBTS = 64, MORE = 4 };
    struct live *live = live_of(state);
    dlock_options brief = {.wait_ms = 3};
    dlock_options waits = {.wait_ms = 5000};
    char key[32];
    reopen(live, live->server.url, 30000);
    dlock_lock lock = DLOCK_INIT;
    for (int i = 0; i < 2; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "warm", &once), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    int64_t scripts = server_scripts(&live->server);
    server_pause(&live->server);
    for (int i = 0; i < DEBTS + MORE; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_no(dlock_acquire(live->factory, &lock, key, &brief), &lock, DLOCK_UNREACHABLE);
    }
    server_continue(&live->server);
    assert_yes(dlock_acquire(live->factory, &lock, "after", &waits), &lock);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
    for (int i = 0; i < DEBTS + MORE; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_gone(&live->server, key);
    }
    /* Every ask that was sent was undone; those beyond were never sent. */
    int asked = 0;
    while (asked < DEBTS + MORE) {
        (void)snprintf(key, sizeof key, "k%d", asked);
        if (server_integer(&live->server, "EXISTS {%s}:fence", key) == 0) {
            break;
        }
        asked++;
    }
    assert_in_range(asked, 16, DEBTS);
    assert_int_equal(server_scripts(&live->server) - scripts, 2 * asked + 2);
    for (int i = asked; i < DEBTS + MORE; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(server_integer(&live->server, "EXISTS {%s}:fence", key), 0);
    }
}

/* --------------------------------------------------------------------------- bytes, connections */

static void a_silent_server_is_unreachable_when_the_command_times_out(void **state)
{
    static const struct {
        enum proxy_fault fault;
        const char *word;
    } cases[] = {{PROXY_STALL, NULL}, {PROXY_SWALLOW, "EVALSHA"}, {PROXY_SWALLOW, "EVAL"}};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int fresh = 0; fresh < 2; fresh++) {
            dlock_lock lock = DLOCK_INIT;
            bool by_body = cases[i].word != NULL && strcmp(cases[i].word, "EVAL") == 0;
            through_proxy(live, 200);
            if (fresh == 1) {
                reopen(live, live->proxy.url, 200);
            }
            if (by_body) {
                server_do(&live->server, "SCRIPT FLUSH");
            }
            proxy_set(&live->proxy,
                      &(struct proxy_plan){.fault = cases[i].fault, .word = cases[i].word});
            int64_t start = now_ms();
            bool answer = dlock_acquire(live->factory, &lock, "k", &once);
            if (fresh == 1 && cases[i].word != NULL && proxy_fired(&live->proxy) == 0) {
                assert_yes(answer, &lock);  /* the first command was not this one */
                assert_yes(dlock_release(&lock), &lock);
                continue;
            }
            assert_no(answer, &lock, DLOCK_UNREACHABLE);
            assert_took(start, 200, 450);
            proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
            dlock_options waits = {.wait_ms = 5000};
            assert_yes(dlock_acquire(live->factory, &lock, "k", &waits), &lock);
            assert_yes(dlock_release(&lock), &lock);
        }
    }
    live_end(live);
}

static void a_dripping_reply_is_read_and_does_not_stretch_the_bound(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    through_proxy(live, 2000);
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_DRIP, .delay_ms = 5});
    int64_t asked = now_ms();
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    /* The lease began before the reply came: validity counts from before the request. */
    assert_true(now_ms() - asked >= 50);
    assert_true(dlock_remaining_ms(&lock) <= 30000 - 302 - (now_ms() - asked) + 3);
    assert_held(&live->server, &lock, "k");
    asked = now_ms();
    assert_yes(dlock_extend(&lock, 60000), &lock);
    assert_true(dlock_remaining_ms(&lock) <= 60000 - 602 - (now_ms() - asked) + 3);
    assert_yes(dlock_release(&lock), &lock);
    through_proxy(live, 150);
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_DRIP, .delay_ms = 40});
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 150, 350);
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
    live_end(live);
    assert_true(gone_soon(live, "k"));
    live_end(live);
}

/* The connection ends after every number of bytes of the reply; then with no attempt left. */
static void a_reply_cut_at_any_byte_is_an_unknown_outcome(void **state)
{
    struct live *live = live_of(state);
    for (int cut = 0; cut < 48; cut += cut < 12 ? 1 : 5) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options tries = {.retry_count = 3, .retry_delay_ms = 1};
        struct proxy_plan plan = {.fault = PROXY_CUT_REPLY, .bytes = cut, .times = 1};
        through_proxy(live, 500);
        proxy_set(&live->proxy, &plan);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &tries), &lock);
        assert_held(&live->server, &lock, "k");
        proxy_set(&live->proxy, &plan);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        proxy_set(&live->proxy, &plan);
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        plan.times = 0;
        proxy_set(&live->proxy, &plan);
        bool answer = dlock_acquire(live->factory, &lock, "k", &once);
        if (!answer) {      /* true where the reply is shorter than the cut */
            assert_code(&lock, DLOCK_UNREACHABLE);
        }
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
        dlock_close(live->factory);
        live->factory = NULL;
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

static void a_request_cut_at_any_byte_is_undone_or_never_done(void **state)
{
    struct live *live = live_of(state);
    for (int fresh = 0; fresh < 2; fresh++) {
        for (int cut = 0; cut < 2000; cut += cut < 4 ? 1 : 83) {
            dlock_lock lock = DLOCK_INIT;
            dlock_options tries = {.retry_count = 3, .retry_delay_ms = 1};
            dlock_config config = {.client_name = "cut", .command_timeout_ms = 500};
            struct proxy_plan plan = {.fault = PROXY_CUT_REQUEST, .bytes = cut};
            char url[SERVER_URL_MAX + 8];
            through_proxy(live, 500);
            if (fresh == 1) {
                (void)snprintf(url, sizeof url, "%s?db=0", live->proxy.url);
                live_reopen(live, url, &config);
            }
            proxy_set(&live->proxy, &plan);
            if (!dlock_acquire(live->factory, &lock, "k", &once)) {
                assert_code(&lock, DLOCK_UNREACHABLE);
            }
            proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
            dlock_close(live->factory);
            live->factory = NULL;
            assert_gone(&live->server, "k");
            reopen(live, live->proxy.url, 500);
            plan.times = 1;
            proxy_set(&live->proxy, &plan);
            memset(&lock, 0, sizeof lock);
            assert_yes(dlock_acquire(live->factory, &lock, "k", &tries), &lock);
            assert_held(&live->server, &lock, "k");
            assert_yes(dlock_release(&lock), &lock);
        }
    }
    live_end(live);
}

static void two_replies_for_one_command_are_a_broken_protocol(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    through_proxy(live, 500);
    proxy_set(&live->proxy,
              &(struct proxy_plan){.fault = PROXY_EXTRA, .word = "EVALSHA", .answer = ":1\r\n"});
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_PROTOCOL);
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_held(&live->server, &lock, "k");
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

/* Bytes that nobody asked for are noticed before the next command is sent behind them. */
static void unasked_bytes_replace_a_quiet_connection(void **state)
{
    static const char *const unasked[] = {":1\r\n", "+PONG\r\n", "*4\r\n:1\r\n", "rubbish"};
    struct live *live = live_of(state);
    through_proxy(live, 500);
    for (size_t i = 0; i < sizeof unasked / sizeof *unasked; i++) {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        int accepted = proxy_accepted(&live->proxy);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_SPEAK, .answer = unasked[i]});
        assert_int_equal(proxy_fired(&live->proxy), 1);
        pause_ms(15);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_int_equal(proxy_accepted(&live->proxy), accepted + 1);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(proxy_accepted(&live->proxy), accepted + 1);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

/* Whatever is no answer of a Redis, on a connection's first command. */
static void rubbish_is_a_broken_protocol_within_the_bounds(void **state)
{
    static char zeros[4096];
    static char letters[4096];
    static char deep[4000];
    static const struct {
        const char *name;
        const char *answer;
        size_t length;
        int repeat;
        bool half;      /* it may still go on, as far as anybody can tell */
    } cases[] = {
        {"HTTP", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", 0, 1, false},
        {"SSH", "SSH-2.0-OpenSSH_9.2\r\n", 0, 1, false},
        {"TLS", "\x15\x03\x01\x00\x02\x02\x46", 7, 1, false},
        {"MySQL",
         "J\x00\x00\x00\x0a"
         "8.0.36\x00",
         12, 1, false},
        {"zeros for ever", zeros, sizeof zeros, 5000, false},
        {"a line without end", letters, sizeof letters, 5000, false},
        {"deep nesting", deep, sizeof deep, 20, false},
        {"two thousand million elements", "*2147483647\r\n", 0, 1, false},
        {"a negative length", "$-7\r\n", 0, 1, false},
        {"a string of two gigabytes", "$2147483647\r\n", 0, 1, true},
        {"a map", "%1\r\n+a\r\n+b\r\n", 0, 1, false},
        {"a boolean", "#t\r\n", 0, 1, false},
        {"OK", "+OK\r\n+OK\r\n", 0, 1, false},
        {"an integer", ":17\r\n", 0, 1, false},
        {"an empty list", "*0\r\n", 0, 1, false},
        {"a list of nothing", "*5\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n", 0, 1, false},
    };
    struct live *live = live_of(state);
    memset(letters, 'a', sizeof letters);
    letters[0] = '+';
    for (size_t i = 0; i + 4 <= sizeof deep; i += 4) {
        memcpy(deep + i, "*1\r\n", 4);
    }
    proxy_start(&live->proxy, &live->server);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rusage before, after;
        dlock_lock lock = DLOCK_INIT;
        reopen(live, live->proxy.url, 200);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_ANSWER,
                                                     .answer = cases[i].answer,
                                                     .answer_length = cases[i].length,
                                                     .repeat = cases[i].repeat});
        (void)getrusage(RUSAGE_SELF, &before);
        int64_t start = now_ms();
        bool answer = dlock_acquire(live->factory, &lock, "k", &once);
        assert_took(start, 0, 1100);
        (void)getrusage(RUSAGE_SELF, &after);
        int expected = cases[i].half ? DLOCK_UNREACHABLE : DLOCK_PROTOCOL;
        if (dlock_why(&lock)->code != expected) {
            print_error("%s:\n", cases[i].name);
        }
        assert_no(answer, &lock, expected);
        assert_true(after.ru_maxrss - before.ru_maxrss < 8 * 1024);
    }
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

/* An error may quote what was sent, be a megabyte long or try to write on a terminal. */
static void an_error_text_of_a_server_gives_nothing_away(void **state)
{
    static char large[60000];
    static const struct {
        const char *answer;
        int code;
    } cases[] = {
        {"-ERR unknown command 'AUTH', with args beginning with: 'sekret' \r\n", DLOCK_REFUSED},
        {"-WRONGPASS sekret is not the password\r\n", DLOCK_REFUSED},
        {"-NOPERM \x1b[31m sekret \x07\x80\xff\r\n", DLOCK_REFUSED},
        {large, DLOCK_REFUSED},
    };
    struct live *live = live_of(state);
    char url[SERVER_URL_MAX + 16];
    memset(large, 's', sizeof large - 1);
    memcpy(large, "-NOPERM sekret ", 15);
    memcpy(large + sizeof large - 3, "\r\n", 2);
    proxy_start(&live->proxy, &live->server);
    (void)snprintf(url, sizeof url, "unix://:sekret@%s", live->proxy.socket);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        reopen(live, url, 500);
        proxy_set(&live->proxy, &(struct proxy_plan){
                                    .fault = PROXY_ANSWER, .answer = cases[i].answer, .repeat = 2});
        assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, cases[i].code);
        assert_null(strstr(dlock_why(&lock)->text, "sekret"));
        assert_true(strlen(dlock_why(&lock)->text) < sizeof dlock_why(&lock)->text);
    }
    live_end(live);
}

/* ---------------------------------------------------------------------- nobody, or nothing left */

static void a_port_or_socket_without_a_server_is_unreachable_at_once(void **state)
{
    struct live *live = live_of(state);
    char url[128];
    for (int i = 0; i < 4; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options options = {.no_fence = i == 3};
        switch (i) {
        case 0:
            (void)snprintf(url, sizeof url, "redis://127.0.0.1:%d", free_port());
            break;
        case 1:
            (void)snprintf(url, sizeof url, "redis://[::1]:%d", free_port());
            break;
        default:
            (void)snprintf(url, sizeof url, "unix:///nowhere/at/all.sock");
            break;
        }
        live_reopen(live, url, NULL);
        int64_t start = now_ms();
        assert_no(dlock_acquire(live->factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
        assert_took(start, 0, 100);
        if (i != 1 || has_ipv6()) {
            assert_int_equal(dlock_why(&lock)->os_errno, i < 2 ? ECONNREFUSED : ENOENT);
        }
    }
    live_end(live);
}

/* Pauses grow: an hour of this must not be a flood, nor a busy loop. */
static void attempts_at_a_dead_server_are_paced_and_cost_little(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 1000};
    proxy_start(&live->proxy, &live->server);
    proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_REFUSE});
    live_reopen(live, live->proxy.url, NULL);
    int64_t start = now_ms();
    int64_t busy = cpu_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &waits), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 1000, 1000);
    assert_true(cpu_ms() - busy < 300);
    assert_in_range(proxy_accepted(&live->proxy), 2, 40);
    live_end(live);
}

/* A port whose queue of connections is full drops what comes: a black hole. */
static void a_black_hole_is_unreachable_when_the_connect_times_out(void **state)
{
    enum { CALLERS = 8 };
    struct live *live = live_of(state);
    dlock_config config = {.connect_timeout_ms = 200};
    dlock_lock lock = DLOCK_INIT;
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int callers[CALLERS];
    char url[128];
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 0), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(callers[i], (struct sockaddr *)&address, sizeof address);
    }
    pause_ms(20);
    (void)snprintf(url, sizeof url, "redis://127.0.0.1:%d", ntohs(address.sin_port));
    live_reopen(live, url, &config);
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 200, 300);
    for (int i = 0; i < CALLERS; i++) {
        (void)close(callers[i]);
    }
    (void)close(listener);
    live_end(live);
}

static void without_a_descriptor_left_it_is_unreachable_and_nothing_leaks(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 300};
    struct rlimit all, none;
    int taken[64];
    int count = 0;
    int before = descriptors();
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &all), 0);
    none = all;
    none.rlim_cur = 64;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    while (count < 64 && (taken[count] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0) {
        count++;
    }
    assert_int_equal(errno, EMFILE);
    int64_t busy = cpu_ms();
    int64_t start = now_ms();
    bool at_once = dlock_acquire(live->factory, &lock, "k", &once);
    int code = dlock_why(&lock)->code;
    int os_errno = dlock_why(&lock)->os_errno;
    bool waited = dlock_acquire(live->factory, &lock, "k", &waits);
    int64_t span = now_ms() - start;
    busy = cpu_ms() - busy;
    dlock_factory *second = dlock_open(live->server.url, NULL, NULL);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &all), 0);
    while (count > 0) {
        (void)close(taken[--count]);
    }
    assert_false(at_once);
    assert_int_equal(code, DLOCK_UNREACHABLE);
    assert_int_equal(os_errno, EMFILE);
    assert_no(waited, &lock, DLOCK_UNREACHABLE);
    assert_in_range(span, 298, 1100);
    assert_true(busy < 200);
    assert_null(second);
    assert_int_equal(descriptors(), before);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_held(&live->server, &lock, "k");
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

static void a_factory_takes_few_descriptors_and_returns_them(void **state)
{
    struct live *live = live_of(state);
    live_end(live);
    int before = descriptors();
    proxy_start(&live->proxy, &live->server);
    for (int i = 0; i < 20; i++) {
        dlock_lock lock = DLOCK_INIT;
        live->factory = open_factory(live->proxy.url, NULL);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        if (i % 2 == 1) {
            server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
            pause_ms(15);
            assert_yes(dlock_extend(&lock, 60000), &lock);
        }
        assert_true(descriptors() <= before + 5);
        assert_yes(dlock_release(&lock), &lock);
        dlock_close(live->factory);
        live->factory = NULL;
        assert_int_equal(descriptors(), before);
    }
    live_end(live);
}

/* ------------------------------------------------------------------------------------ fail_open */

static void fail_open_counts_as_acquired_only_when_nobody_could_tell(void **state)
{
    struct live *live = live_of(state);
    dlock_options open_too = {.fail_open = true};
    dlock_options tries = {.fail_open = true, .retry_count = 2, .retry_delay_ms = 50};
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &open_too), &lock);
    assert_false(dlock_is_degraded(&lock));
    assert_true(dlock_fence(&lock) > 0);
    assert_held(&live->server, &lock, "k");
    assert_yes(dlock_release(&lock), &lock);
    server_do(&live->server, "SET k theirs PX 60000");
    assert_no(dlock_acquire(live->factory, &lock, "k", &tries), &lock, DLOCK_BUSY);
    assert_false(dlock_is_degraded(&lock));
    server_do(&live->server, "DEL k");
    server_do(&live->server, "RPUSH k theirs");
    assert_no(dlock_acquire(live->factory, &lock, "k", &open_too), &lock, DLOCK_REFUSED);
    server_kill(&live->server);
    int64_t start = now_ms();
    assert_true(dlock_acquire(live->factory, &lock, "k", &tries));
    assert_took(start, 100, 200);
    assert_true(dlock_is_acquired(&lock));
    assert_true(dlock_is_degraded(&lock));
    assert_int_equal(dlock_fence(&lock), 0);
    assert_true(dlock_extend(&lock, 60000));
    assert_true(dlock_is_degraded(&lock));
    server_revive(&live->server);
    int64_t heard = server_heard(&live->server);
    assert_true(dlock_extend(&lock, 0));
    assert_true(dlock_release(&lock));
    assert_false(dlock_is_acquired(&lock));
    assert_false(dlock_is_degraded(&lock));
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_int_equal(server_heard(&live->server), heard);
    assert_gone(&live->server, "k");
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(a_lost_reply_with_no_attempt_left_is_unreachable_and_undone),
        LIVE(a_lost_reply_is_undone_by_a_call_on_another_key_or_by_close),
        LIVE(a_lost_reply_with_attempts_left_is_asked_again),
        LIVE(an_extend_or_a_release_whose_reply_was_lost_is_sent_again),
        LIVE(a_release_whose_retry_came_too_late_is_unreachable_and_theirs_is_untouched),
        LIVE(a_release_that_nobody_answers_is_unreachable_and_can_be_called_again),
        LIVE(control_a_stopped_server_keeps_a_request_and_leaves_an_orphan),
        LIVE(no_orphan_is_left_when_a_stopped_server_goes_on_and_we_call_again),
        LIVE(no_orphan_is_left_when_a_stopped_server_goes_on_and_we_close),
        LIVE(close_is_bounded_while_the_server_is_stopped_and_leaves_no_orphan),
        LIVE(an_answer_is_on_time_while_an_undo_is_due),
        LIVE(a_full_table_of_debts_sends_nothing_new),
        LIVE(a_silent_server_is_unreachable_when_the_command_times_out),
        LIVE(a_dripping_reply_is_read_and_does_not_stretch_the_bound),
        LIVE(a_reply_cut_at_any_byte_is_an_unknown_outcome),
        LIVE(a_request_cut_at_any_byte_is_undone_or_never_done),
        LIVE(two_replies_for_one_command_are_a_broken_protocol),
        LIVE(unasked_bytes_replace_a_quiet_connection),
        LIVE(rubbish_is_a_broken_protocol_within_the_bounds),
        LIVE(an_error_text_of_a_server_gives_nothing_away),
        LIVE(a_port_or_socket_without_a_server_is_unreachable_at_once),
        LIVE(attempts_at_a_dead_server_are_paced_and_cost_little),
        LIVE(a_black_hole_is_unreachable_when_the_connect_times_out),
        LIVE(without_a_descriptor_left_it_is_unreachable_and_nothing_leaks),
        LIVE(a_factory_takes_few_descriptors_and_returns_them),
        LIVE(fail_open_counts_as_acquired_only_when_nobody_could_tell),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
