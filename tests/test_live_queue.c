/* Waiting in line on one real server: who is served when, how a wait ends, what it costs, and what
 * others do to the line. Processes that die and connections that break have a program of their own:
 * test_live_queue_faults.c. */
#define _GNU_SOURCE
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* A holder that is in nobody's way: whoever gets in sooner than this did not wait for a timer. */
static const dlock_options minute = {.expiry_ms = 60000};
/* Rests on the hand-off: 30 seconds until it asks again by itself. */
static const dlock_options patient = {.expiry_ms = 30000, .wait_ms = 60000};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

/* Was it told "it is yours" only once, and does everything agree? Gives it back. */
static void leave(struct live *live, struct guest *guest, const char *key)
{
    assert_int_equal(guest->told, 1);
    assert_true(guest->answer);
    assert_held(&live->server, &guest->lock, key);
    assert_yes(dlock_release(&guest->lock), &guest->lock);
}

/* Each of them is served, gives it back, and was served in the order of the list. */
static void served_in_order(struct live *live, struct guest *guests, int count, const char *key)
{
    uint64_t fence = 0;
    for (int i = 0; i < count; i++) {
        if (!guests_until(guests, count, i + 1, 15000)) {
            fail_msg("number %d of %d is not served", i + 1, count);
        }
        assert_int_equal(guests_told(guests, count), i + 1);
        assert_true(dlock_fence(&guests[i].lock) > fence);
        fence = dlock_fence(&guests[i].lock);
        leave(live, &guests[i], key);
    }
    line_is_over(&live->server, key);
}

static void open_factories(struct live *live, dlock_factory **factories, int count)
{
    for (int i = 0; i < count; i++) {
        factories[i] = open_factory(live->server.url, NULL);
    }
}

/* Closes them: no inbox is left. */
static void close_factories(struct live *live, dlock_factory **factories, int count)
{
    for (int i = 0; i < count; i++) {
        dlock_close(factories[i]);
    }
    inboxes_wait(&live->server, 0);
}

static bool begins_with(const char *text, const char *beginning)
{
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

/* ----------------------------------------------------------------------------- order of service */

static void who_came_first_is_served_first_and_fences_grow(void **state)
{
    enum { FACTORIES = 4, GUESTS = 12 };
    struct live *live = live_of(state);
    static struct guest guests[GUESTS];
    dlock_factory *factories[FACTORIES];
    dlock_lock held = DLOCK_INIT;
    open_factories(live, factories, FACTORIES);
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    uint64_t fence = dlock_fence(&held);
    for (int i = 0; i < GUESTS; i++) {
        guest_arrives(&live->server, "k", guests, i, factories[i % FACTORIES], &patient);
        assert_int_equal(guests[i].told, 0);
        assert_true(dlock_is_pending(&guests[i].lock));
    }
    assert_int_equal(inboxes(&live->server), FACTORIES);
    assert_in_range(server_integer(&live->server, "PTTL {k}:queue"), 500000, 660000);
    assert_yes(dlock_release(&held), &held);
    uint64_t last = fence;
    for (int i = 0; i < GUESTS; i++) {
        assert_true(guests_until(guests, GUESTS, i + 1, 15000));
        assert_true(begins_with(guests[i].ticket, dlock_owner(&guests[i].lock)));
        assert_int_equal(strlen(dlock_owner(&guests[i].lock)), 36);
        assert_true(dlock_fence(&guests[i].lock) > last);
        last = dlock_fence(&guests[i].lock);
        leave(live, &guests[i], "k");
    }
    for (int i = 0; i < FACTORIES; i++) {
        dlock_stats stats;
        dlock_stats_get(factories[i], &stats);
        assert_int_equal(stats.acquired, GUESTS / FACTORIES);
        assert_int_equal(stats.handed_over, GUESTS / FACTORIES);
    }
    line_is_over(&live->server, "k");
    close_factories(live, factories, FACTORIES);
    live_end(live);
}

/* As if the first had come while the server's clock was an hour ahead: the others come behind. */
static void the_line_grows_at_its_end_although_the_servers_clock_went_back(void **state)
{
    struct live *live = live_of(state);
    static struct guest guests[4];
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guests, 0, live->factory, &patient);
    int64_t ahead = server_time(&live->server) + INT64_C(3600000000);
    server_do(&live->server, "ZADD {k}:queue XX %lld %s", (long long)ahead, guests[0].ticket);
    for (int i = 1; i < 4; i++) {
        guest_arrives(&live->server, "k", guests, i, live->factory, &patient);
        assert_true(line_score(&live->server, "k", guests[i].ticket) > ahead);
    }
    assert_yes(dlock_release(&held), &held);
    served_in_order(live, guests, 4, "k");
    live_end(live);
}

static void two_tickets_of_one_microsecond_are_both_served(void **state)
{
    struct live *live = live_of(state);
    static struct guest guests[2];
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guests, 0, live->factory, &patient);
    guest_arrives(&live->server, "k", guests, 1, live->factory, &patient);
    for (int i = 0; i < 2; i++) {
        server_do(&live->server, "ZADD {k}:queue XX 1000 %s", guests[i].ticket);
    }
    assert_yes(dlock_release(&held), &held);
    for (int i = 1; i <= 2; i++) {
        assert_true(guests_until(guests, 2, i, 15000));
        struct guest *served = guests[0].turn > guests[1].turn ? &guests[0] : &guests[1];
        leave(live, served, "k");
    }
    line_is_over(&live->server, "k");
    live_end(live);
}

struct sharer {
    pthread_t thread;
    dlock_factory *factory;
    atomic_int *turns;
    int turn;
    bool well;
};

static void *sharer_body(void *argument)
{
    struct sharer *sharer = (struct sharer *)argument;
    dlock_lock lock = DLOCK_INIT;
    if (dlock_acquire(sharer->factory, &lock, "k", &patient)) {
        sharer->turn = atomic_fetch_add(sharer->turns, 1) + 1;
        sharer->well = dlock_is_acquired(&lock) && dlock_release(&lock);
    }
    return NULL;
}

static void threads_that_share_a_factory_are_served_in_order(void **state)
{
    enum { THREADS = 8 };
    struct live *live = live_of(state);
    struct sharer sharers[THREADS];
    atomic_int turns = 0;
    dlock_lock held = DLOCK_INIT;
    memset(sharers, 0, sizeof sharers);
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < THREADS; i++) {
        sharers[i].factory = live->factory;
        sharers[i].turns = &turns;
        assert_int_equal(pthread_create(&sharers[i].thread, NULL, sharer_body, &sharers[i]), 0);
        line_wait(&live->server, "k", i + 1);
    }
    assert_int_equal(inboxes(&live->server), 1);
    assert_yes(dlock_release(&held), &held);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(sharers[i].thread, NULL), 0);
        assert_true(sharers[i].well);
        assert_int_equal(sharers[i].turn, i + 1);
    }
    line_is_over(&live->server, "k");
    live_end(live);
}

/* A waiter without fence keeps its place among the others, and is given no number. */
static void a_waiter_without_fence_stands_in_the_same_line(void **state)
{
    struct live *live = live_of(state);
    static struct guest guests[3];
    dlock_options plain = patient;
    dlock_lock held = DLOCK_INIT;
    plain.no_fence = true;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < 3; i++) {
        guest_arrives(&live->server, "k", guests, i, live->factory, i == 1 ? &plain : &patient);
    }
    assert_yes(dlock_release(&held), &held);
    for (int i = 0; i < 3; i++) {
        assert_true(guests_until(guests, 3, i + 1, 15000));
        assert_true((dlock_fence(&guests[i].lock) == 0) == (i == 1));
        leave(live, &guests[i], "k");
    }
    line_is_over(&live->server, "k");
    live_end(live);
}

/* ------------------------------------------------------------- between the ask and the hand-off */

/* The confirmation of SUBSCRIBE is kept back: until there is one, nobody may stand in line, for
 * nobody could tell him. The lock is given back meanwhile; he asks again once he can be told. */
static void a_ticket_is_written_only_after_the_inbox_is_confirmed(void **state)
{
    struct live *live = live_of(state);
    dlock_config config = {.command_timeout_ms = 600};
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    proxy_start(&live->proxy, &live->server);
    dlock_factory *factory = open_factory(live->proxy.url, &config);
    proxy_set(&live->proxy,
              &(struct proxy_plan){.fault = PROXY_SWALLOW, .word = "SUBSCRIBE", .times = 1});
    assert_true(guest_start(guest, factory, "k", &patient));
    int64_t end = now_ms() + 5000;
    while (proxy_fired(&live->proxy) == 0 && now_ms() < end) {
        guests_for(guest, 1, 2);
        assert_int_equal(line_length(&live->server, "k"), 0);
    }
    assert_int_equal(proxy_fired(&live->proxy), 1);
    for (int i = 0; i < 10; i++) {
        guests_for(guest, 1, 20);
        assert_int_equal(line_length(&live->server, "k"), 0);
    }
    int64_t start = now_ms();
    assert_yes(dlock_release(&held), &held);
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 0, 2000);
    leave(live, guest, "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

/* Two connections: the message may be there before the answer to the ask that lined up. Here that
 * answer never comes, so that there is nothing but the message to go by. */
static void a_grant_that_overtakes_the_answer_to_its_ask_is_had(void **state)
{
    struct live *live = live_of(state);
    dlock_config config = {.command_timeout_ms = 5000};
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    proxy_start(&live->proxy, &live->server);
    dlock_factory *factory = open_factory(live->proxy.url, &config);
    /* It has waited before: inbox and scripts are there, and the next ask has a ticket. */
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &patient);
    assert_yes(dlock_release(&held), &held);
    served_in_order(live, guest, 1, "k");
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    proxy_set(&live->proxy,
              &(struct proxy_plan){.fault = PROXY_SWALLOW, .word = "EVALSHA", .times = 1});
    guest_arrives(&live->server, "k", guest, 0, factory, &patient);
    assert_int_equal(proxy_fired(&live->proxy), 1);
    assert_yes(dlock_release(&held), &held);
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 0, 300);
    assert_true(begins_with(guest[0].ticket, dlock_owner(&guest[0].lock)));
    server_do(&live->server, "CLIENT KILL TYPE normal");
    leave(live, guest, "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

/* What a lost message looks like: the server says it is ours, and nobody told us. */
static void a_grant_whose_message_was_lost_is_found_by_the_next_ask(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options brief = {.expiry_ms = 800};
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &brief), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &patient);
    char owner[40];
    (void)snprintf(owner, sizeof owner, "%.36s", guest[0].ticket);
    server_do(&live->server, "ZREM {k}:queue %s", guest[0].ticket);
    server_do(&live->server, "SET k %s PX 20000", owner);
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 0, 2000);
    assert_string_equal(dlock_owner(&guest[0].lock), owner);
    assert_true(dlock_remaining_ms(&guest[0].lock) <= server_integer(&live->server, "PTTL k") + 2);
    assert_no(dlock_release(&held), &held, DLOCK_LOST);
    leave(live, guest, "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

static void a_deleted_queue_keeps_nobody_from_the_lock(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options brief = {.expiry_ms = 1500};
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &brief), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &patient);
    server_do(&live->server, "DEL {k}:queue");
    assert_yes(dlock_release(&held), &held);
    assert_gone(&live->server, "k");
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 0, 2500);
    leave(live, guest, "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

/* The one in front loses its ticket, and writes it again when it asks, soon, because the lease that
 * it was told of was short: with the score it had, so that who came later is still behind. */
static void a_ticket_that_was_taken_away_is_written_again_at_its_old_place(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options brief = {.expiry_ms = 1500};
    dlock_lock held = DLOCK_INIT;
    static struct guest guests[3];
    assert_yes(dlock_acquire(live->factory, &held, "k", &brief), &held);
    guest_arrives(&live->server, "k", guests, 0, factory, &patient);
    assert_yes(dlock_extend(&held, 60000), &held);
    guest_arrives(&live->server, "k", guests, 1, factory, &patient);
    guest_arrives(&live->server, "k", guests, 2, factory, &patient);
    int64_t score = line_score(&live->server, "k", guests[0].ticket);
    server_do(&live->server, "ZREM {k}:queue %s", guests[0].ticket);
    assert_true(guests_line_up(&live->server, "k", guests, 3, 3));
    assert_int_equal(line_score(&live->server, "k", guests[0].ticket), score);
    assert_yes(dlock_release(&held), &held);
    served_in_order(live, guests, 3, "k");
    dlock_close(factory);
    live_end(live);
}

/* The lease of a hand-off began at the server's release, not when its message was read. */
static void a_hand_over_read_late_is_worth_only_what_is_left_of_it(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options waits = {.expiry_ms = 3000, .wait_ms = 30000};
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &waits);
    assert_yes(dlock_release(&held), &held);
    pause_ms(900);
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_true(guest[0].answer);
    int64_t remaining = dlock_remaining_ms(&guest[0].lock);
    assert_true(remaining <= server_integer(&live->server, "PTTL k") + 2);
    assert_true(remaining <= 3000 - 900);
    leave(live, guest, "k");
    dlock_close(factory);
    live_end(live);
}

/* Given to one who did not look until the lease was over, and had by another meanwhile. */
static void a_hand_over_read_too_late_is_none_and_who_missed_it_lines_up_anew(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options waits = {.expiry_ms = 300, .wait_ms = 30000};
    dlock_lock held = DLOCK_INIT;
    dlock_lock next = DLOCK_INIT;
    char ticket[TICKET_MAX];
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &waits);
    assert_yes(dlock_release(&held), &held);
    assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
    pause_ms(400);
    assert_yes(dlock_acquire(live->factory, &next, "k", &minute), &next);
    assert_true(guests_line_up(&live->server, "k", guest, 1, 1));
    assert_int_equal(guest[0].told, 0);
    assert_false(dlock_is_acquired(&guest[0].lock));
    line_ticket(&live->server, "k", 0, ticket);
    assert_string_not_equal(ticket, guest[0].ticket);
    uint64_t fence = dlock_fence(&next);
    assert_held(&live->server, &next, "k");
    assert_yes(dlock_release(&next), &next);
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_true(guest[0].answer);
    assert_true(dlock_fence(&guest[0].lock) > fence);
    dlock_close(factory);
    line_is_over(&live->server, "k");
    live_end(live);
}

/* -------------------------------------------------------------------------------- a wait's ends */

/* Ends at many moments of a wait, and who stands behind is served as if nobody had been there. */
static void a_wait_that_ends_is_a_timeout_and_its_ticket_is_gone(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int wait = 1; wait <= 60; wait += wait < 12 ? 1 : 8) {
        dlock_options waits = {.wait_ms = wait};
        dlock_lock lock = DLOCK_INIT;
        int64_t start = now_ms();
        assert_false(dlock_acquire(factory, &lock, "k", &waits));
        assert_took(start, wait, wait + 10);
        /* So short a wait may end before a busy server has said anything. */
        int code = dlock_why(&lock)->code;
        assert_true(code == DLOCK_TIMEOUT || (code == DLOCK_UNREACHABLE && wait < 12));
        line_wait(&live->server, "k", 0);
    }
    dlock_options waits = {.wait_ms = 150};
    static struct guest guests[2];
    guest_arrives(&live->server, "k", guests, 0, factory, &waits);
    guest_arrives(&live->server, "k", guests, 1, factory, &patient);
    assert_true(guests_until(guests, 2, 1, 5000));
    assert_int_equal(guests[0].told, 1);
    assert_no(guests[0].answer, &guests[0].lock, DLOCK_TIMEOUT);
    line_wait(&live->server, "k", 1);
    assert_yes(dlock_release(&held), &held);
    assert_true(guests_until(guests, 2, 2, 15000));
    leave(live, &guests[1], "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

struct blocked {
    pthread_t thread;
    dlock_factory *factory;
    dlock_lock lock;
    atomic_int over;
    bool answer;
    int code;
};

static void *blocked_body(void *argument)
{
    struct blocked *blocked = (struct blocked *)argument;
    dlock_options waits = {.wait_ms = DLOCK_FOREVER};
    blocked->answer = dlock_acquire(blocked->factory, &blocked->lock, "k", &waits);
    blocked->code = dlock_why(&blocked->lock)->code;
    atomic_store(&blocked->over, 1);
    return NULL;
}

static void a_cancel_from_a_thread_ends_a_wait_and_takes_the_ticket_away(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct blocked blocked;
    static struct guest behind[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int rest = 0; rest < 40; rest += 5) {
        memset(&blocked, 0, sizeof blocked);
        blocked.factory = factory;
        assert_int_equal(pthread_create(&blocked.thread, NULL, blocked_body, &blocked), 0);
        line_wait(&live->server, "k", 1);
        pause_ms(rest);
        int64_t start = now_ms();
        dlock_cancel(&blocked.lock);
        assert_int_equal(pthread_join(blocked.thread, NULL), 0);
        assert_took(start, 0, 10);
        assert_false(blocked.answer);
        assert_int_equal(blocked.code, DLOCK_CANCELLED);
        line_wait(&live->server, "k", 0);
    }
    guest_arrives(&live->server, "k", behind, 0, factory, &patient);
    assert_yes(dlock_release(&held), &held);
    served_in_order(live, behind, 1, "k");
    dlock_close(factory);
    live_end(live);
}

static dlock_lock *volatile cancelled_by_signal;
static struct blocked *volatile signalled;

static void on_signal(int number)
{
    (void)number;
    dlock_cancel(cancelled_by_signal);
}

/* Again and again: a cancel that came before the wait began is not remembered. */
static void *signaller_body(void *argument)
{
    const pthread_t *to = (const pthread_t *)argument;
    while (atomic_load(&signalled->over) == 0) {
        pause_ms(30);
        (void)pthread_kill(*to, SIGUSR1);
    }
    return NULL;
}

static void a_cancel_from_a_signal_handler_ends_a_wait_and_takes_the_ticket_away(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct blocked blocked;
    struct sigaction action;
    pthread_t self = pthread_self();
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < 5; i++) {
        pthread_t signaller;
        memset(&blocked, 0, sizeof blocked);
        blocked.factory = factory;
        cancelled_by_signal = &blocked.lock;
        signalled = &blocked;
        assert_int_equal(pthread_create(&signaller, NULL, signaller_body, &self), 0);
        (void)blocked_body(&blocked);
        assert_int_equal(pthread_join(signaller, NULL), 0);
        assert_false(blocked.answer);
        assert_int_equal(blocked.code, DLOCK_CANCELLED);
        line_wait(&live->server, "k", 0);
    }
    (void)signal(SIGUSR1, SIG_DFL);
    assert_yes(dlock_release(&held), &held);
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

/* The lock is handed over, then cancelled, then the message is read: nothing is accepted after a
 * cancel, and who stands behind gets what was given too late. */
static void a_grant_behind_a_cancel_is_given_to_the_next_in_line(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_factory *other = open_factory(live->server.url, NULL);
    static struct guest guests[2];
    for (int i = 0; i < 20; i++) {
        dlock_lock held = DLOCK_INIT;
        char value[64];
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        guest_arrives(&live->server, "k", guests, 0, factory, &patient);
        guest_arrives(&live->server, "k", guests, 1, other, &patient);
        assert_yes(dlock_release(&held), &held);
        server_text(&live->server, value, sizeof value, "GET k");
        assert_true(begins_with(guests[0].ticket, value));
        dlock_cancel(&guests[0].lock);
        assert_true(guests_until(guests, 1, 1, 5000));
        assert_no(guests[0].answer, &guests[0].lock, DLOCK_CANCELLED);
        assert_false(dlock_is_acquired(&guests[0].lock));
        assert_true(guests_until(guests, 2, 2, 5000));
        leave(live, &guests[1], "k");
        line_is_over(&live->server, "k");
    }
    dlock_close(factory);
    dlock_close(other);
    live_end(live);
}

/* Both are allowed; neither may leave anything. */
static void a_grant_read_behind_the_end_of_a_wait_is_had_or_given_on(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_factory *other = open_factory(live->server.url, NULL);
    dlock_options waits = {.wait_ms = 120};
    static struct guest guests[2];
    for (int i = 0; i < 5; i++) {
        dlock_lock held = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        guest_arrives(&live->server, "k", guests, 0, factory, &waits);
        guest_arrives(&live->server, "k", guests, 1, other, &patient);
        assert_yes(dlock_release(&held), &held);
        pause_ms(150);
        assert_true(guests_until(guests, 1, 1, 5000));
        if (guests[0].answer) {
            leave(live, &guests[0], "k");
        } else {
            assert_no(guests[0].answer, &guests[0].lock, DLOCK_TIMEOUT);
        }
        assert_true(guests_until(guests, 2, 2, 5000));
        leave(live, &guests[1], "k");
        line_is_over(&live->server, "k");
    }
    dlock_close(factory);
    dlock_close(other);
    live_end(live);
}

/* ---------------------------------------------------------------------------------------- races */

/* One waiter in a thread, round after round; the test holds the lock when a round begins. */
struct racer {
    pthread_t thread;
    dlock_factory *factory;
    dlock_lock lock;
    dlock_options options;
    int expected;                       /* the code of a round without the lock */
    atomic_int round;                   /* that the test has begun  */
    atomic_int ended;                   /* that the racer has ended */
    atomic_int quit;
    bool answer;
    int got;
    int missed;
    int unanswered;                     /* of these: no server could tell in so short a time */
    int faults;                         /* impossible codes, releases that failed            */
};

static void *racer_body(void *argument)
{
    struct racer *racer = (struct racer *)argument;
    for (int round = 1;; round++) {
        while (atomic_load(&racer->round) < round) {
            if (atomic_load(&racer->quit) != 0) {
                return NULL;
            }
            struct timespec rest = {0, 20000};
            (void)nanosleep(&rest, NULL);
        }
        racer->answer = dlock_acquire(racer->factory, &racer->lock, "k", &racer->options);
        int code = dlock_why(&racer->lock)->code;
        if (racer->answer) {
            racer->got++;
            racer->faults += dlock_is_acquired(&racer->lock) ? 0 : 1;
            racer->faults += dlock_release(&racer->lock) ? 0 : 1;
        } else {
            racer->missed++;
            racer->unanswered += code == DLOCK_UNREACHABLE ? 1 : 0;
            racer->faults += code == racer->expected || code == DLOCK_UNREACHABLE ? 0 : 1;
        }
        atomic_store(&racer->ended, round);
    }
}

static void pause_us(int64_t span)
{
    struct timespec rest = {0, (long)(span > 0 ? span : 0) * 1000};
    (void)nanosleep(&rest, NULL);
}

static void racer_start(struct racer *racer, dlock_factory *factory, const dlock_options *options,
                        int expected)
{
    memset(racer, 0, sizeof *racer);
    racer->factory = factory;
    racer->options = *options;
    racer->expected = expected;
    assert_int_equal(pthread_create(&racer->thread, NULL, racer_body, racer), 0);
}

/* The round's end is near, whatever happened; then nothing may be left of the key. What the racer
 * still owes is paid by its factory's next call. */
static void racer_settle(struct live *live, struct racer *racer, int round)
{
    int64_t end = now_ms() + 10000;
    while (atomic_load(&racer->ended) < round) {
        if (now_ms() > end) {
            fail_msg("round %d: the waiter is stuck", round);
        }
        pause_us(20);
    }
    for (int i = 0; server_integer(&live->server, "EXISTS k {k}:queue") != 0; i++) {
        dlock_lock other = DLOCK_INIT;
        if (i > 200) {
            fail_msg("round %d: a lock or a ticket is left", round);
        }
        if (i > 20) {
            assert_yes(dlock_acquire(racer->factory, &other, "other", &minute), &other);
            assert_yes(dlock_release(&other), &other);
        }
        pause_ms(5);
    }
}

static void racer_stop(struct racer *racer, int rounds)
{
    atomic_store(&racer->quit, 1);
    assert_int_equal(pthread_join(racer->thread, NULL), 0);
    print_message("%d had it, %d did not, %d of these without an answer\n", racer->got,
                  racer->missed, racer->unanswered);
    assert_int_equal(racer->faults, 0);
    assert_int_equal(racer->got + racer->missed, rounds);
    /* A machine that stalls for the whole of a wait is rare, and never the rule. */
    assert_true(racer->unanswered <= (racer->expected == DLOCK_TIMEOUT ? rounds / 10 : 0));
    /* It was a race: the moments were moved towards where both happen. */
    assert_true(racer->got >= rounds / 50);
    assert_true(racer->missed >= rounds / 50);
}

/* The moment of the release is moved to where half of the rounds end either way. */
static void a_grant_that_races_the_end_of_a_wait_leaves_nobody_stuck(void **state)
{
    enum { ROUNDS = 1500 };
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options waits = {.expiry_ms = 30000, .wait_ms = 2};
    static struct racer racer;
    int64_t moment = 1500;
    racer_start(&racer, factory, &waits, DLOCK_TIMEOUT);
    for (int round = 1; round <= ROUNDS; round++) {
        dlock_lock held = DLOCK_INIT;
        int got = racer.got;
        assert_yes(dlock_acquire(live->factory, &held, "k", &patient), &held);
        atomic_store(&racer.round, round);
        pause_us(moment);
        assert_yes(dlock_release(&held), &held);
        racer_settle(live, &racer, round);
        moment += racer.got > got ? 25 : -25;
        moment = moment < 0 ? 0 : moment;
    }
    racer_stop(&racer, ROUNDS);
    dlock_close(factory);
    live_end(live);
}

/* The release is on its way, and the cancel comes a moment later. */
static void a_grant_that_races_a_cancel_leaves_nobody_stuck(void **state)
{
    enum { ROUNDS = 1000 };
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    static struct racer racer;
    int64_t moment = 0;
    /* The server knows the scripts, so that one release is one command. */
    dlock_lock warm = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &warm, "warm", &minute), &warm);
    assert_yes(dlock_release(&warm), &warm);
    racer_start(&racer, factory, &patient, DLOCK_CANCELLED);
    for (int round = 1; round <= ROUNDS; round++) {
        dlock_lock held = DLOCK_INIT;
        int got = racer.got;
        assert_yes(dlock_acquire(live->factory, &held, "k", &patient), &held);
        atomic_store(&racer.round, round);
        line_wait(&live->server, "k", 1);
        assert_true(dlock_release_start(&held, NULL, NULL));
        if (moment > 0) {
            pause_us(moment);
        }
        dlock_cancel(&racer.lock);
        racer_settle(live, &racer, round);
        moment += racer.got > got ? -5 : 5;
        moment = moment < -50 ? -50 : moment;
    }
    racer_stop(&racer, ROUNDS);
    dlock_close(factory);
    live_end(live);
}

/* -------------------------------------------------------------------------- attempts and bounds */

static void attempts_are_counted_and_paced_in_line_too(void **state)
{
    struct live *live = live_of(state);
    dlock_options counted = {.retry_count = 4};
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = open_factory(live->server.url, NULL);
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < 2; i++) {
        int64_t scripts = server_scripts(&live->server);
        int64_t start = now_ms();
        assert_no(dlock_acquire(factory, &lock, "k", &counted), &lock, DLOCK_BUSY);
        assert_took(start, 4 * 50, 4 * 250);
        line_wait(&live->server, "k", 0);
        /* Five asks and a leave; one more where the first ask cannot have a ticket yet, and one
         * where a script had to be sent whole. */
        assert_in_range(server_scripts(&live->server) - scripts, 5, 8);
    }
    assert_yes(dlock_release(&held), &held);
    dlock_close(factory);
    live_end(live);
}

static void a_hand_over_uses_no_attempt(void **state)
{
    struct live *live = live_of(state);
    dlock_options counted = {.retry_count = 1, .retry_delay_ms = 30000};
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &counted);
    guests_for(guest, 1, 200);
    assert_int_equal(guest[0].told, 0);
    assert_yes(dlock_release(&held), &held);
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 0, 300);
    leave(live, guest, "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

static void the_bound_that_ends_first_ends_the_wait(void **state)
{
    struct live *live = live_of(state);
    dlock_options time_first = {.retry_count = 1000, .wait_ms = 200};
    dlock_options count_first = {.retry_count = 2, .wait_ms = 30000, .retry_delay_ms = 60};
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = open_factory(live->server.url, NULL);
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    int64_t start = now_ms();
    assert_no(dlock_acquire(factory, &lock, "k", &time_first), &lock, DLOCK_TIMEOUT);
    assert_took(start, 200, 210);
    line_wait(&live->server, "k", 0);
    start = now_ms();
    assert_no(dlock_acquire(factory, &lock, "k", &count_first), &lock, DLOCK_BUSY);
    assert_took(start, 0, 300);
    line_wait(&live->server, "k", 0);
    assert_yes(dlock_release(&held), &held);
    dlock_close(factory);
    live_end(live);
}

/* One attempt does not wait, so it needs no ticket and no inbox. */
static void one_attempt_leaves_no_ticket_and_opens_no_inbox(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    assert_no(dlock_acquire(live->factory, &lock, "k", &minute), &lock, DLOCK_BUSY);
    assert_int_equal(line_length(&live->server, "k"), 0);
    assert_int_equal(server_calls(&live->server, "subscribe"), 0);
    assert_int_equal(inboxes(&live->server), 0);
    live_end(live);
}

/* -------------------------------------------------------------------------------- what it costs */

enum { WORKERS = 4, WORKER_ROUNDS = 200 };

struct works {
    char url[SERVER_URL_MAX];
    atomic_int ready;
    atomic_int go;
    atomic_int inside;
    atomic_int overlaps;
    atomic_int entered;
    _Atomic uint64_t handed_over;
    _Atomic uint64_t last_fence;
    atomic_int fence_faults;
};

static int worker(void *argument)
{
    struct works *works = (struct works *)argument;
    dlock_options waits = {.wait_ms = DLOCK_FOREVER};
    dlock_stats stats;
    char own[32];
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = dlock_open(works->url, NULL, NULL);
    child_check(factory != NULL);
    (void)snprintf(own, sizeof own, "warm:%d", (int)getpid());
    child_check(dlock_acquire(factory, &lock, own, &waits) && dlock_release(&lock));
    atomic_fetch_add(&works->ready, 1);
    while (atomic_load(&works->go) == 0) {
        pause_ms(1);
    }
    for (int i = 0; i < WORKER_ROUNDS; i++) {
        child_check(dlock_acquire(factory, &lock, "k", &waits));
        atomic_fetch_add(&works->overlaps, atomic_fetch_add(&works->inside, 1) != 0 ? 1 : 0);
        if (dlock_fence(&lock) <= atomic_exchange(&works->last_fence, dlock_fence(&lock))) {
            atomic_fetch_add(&works->fence_faults, 1);
        }
        pause_us(500);
        atomic_fetch_add(&works->entered, 1);
        atomic_fetch_sub(&works->inside, 1);
        child_check(dlock_release(&lock));
    }
    dlock_stats_get(factory, &stats);
    atomic_fetch_add(&works->handed_over, stats.handed_over);
    dlock_close(factory);
    return 0;
}

static void a_contended_acquisition_costs_two_commands(void **state)
{
    enum { TOTAL = WORKERS * WORKER_ROUNDS };
    struct live *live = live_of(state);
    struct works *works = (struct works *)shared_memory(sizeof *works);
    pid_t workers[WORKERS];
    (void)snprintf(works->url, sizeof works->url, "%s", live->server.url);
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = child_start(worker, works);
    }
    int64_t end = now_ms() + 15000;
    while (atomic_load(&works->ready) < WORKERS && now_ms() < end) {
        pause_ms(1);
    }
    assert_int_equal(atomic_load(&works->ready), WORKERS);
    server_do(&live->server, "CONFIG RESETSTAT");
    atomic_store(&works->go, 1);
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(child_wait(workers[i]), 0);
    }
    int64_t scripts = server_scripts(&live->server);
    int64_t others = server_calls(&live->server, "ping") + server_calls(&live->server, "subscribe");
    print_message("%.3f scripts and %.3f other commands an acquisition, %.1f %% handed over\n",
                  (double)scripts / TOTAL, (double)others / TOTAL,
                  100.0 * (double)atomic_load(&works->handed_over) / TOTAL);
    assert_int_equal(atomic_load(&works->entered), TOTAL);
    assert_int_equal(atomic_load(&works->overlaps), 0);
    assert_int_equal(atomic_load(&works->fence_faults), 0);
    assert_true(scripts * 10 <= TOTAL * 22);
    assert_true(others <= TOTAL / 10);
    assert_true(atomic_load(&works->handed_over) >= TOTAL / 2);
    line_is_over(&live->server, "k");
    inboxes_wait(&live->server, 0);
    live_end(live);
}

static void who_waits_three_seconds_sends_a_handful_of_commands(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct guest guests[2];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guests, 0, factory, &patient);
    guest_arrives(&live->server, "k", guests, 1, factory, &patient);
    int64_t heard = server_heard(&live->server);
    int64_t scripts = server_scripts(&live->server);
    int64_t cpu = cpu_ms();
    guests_for(guests, 2, 3000);
    assert_true(cpu_ms() - cpu < 300);
    assert_true(server_scripts(&live->server) - scripts <= 4);
    assert_true(server_heard(&live->server) - heard < 2500);
    assert_yes(dlock_release(&held), &held);
    served_in_order(live, guests, 2, "k");
    dlock_close(factory);
    live_end(live);
}

/* ------------------------------------------------------------------------------- fork and close */

struct inherited {
    dlock_factory *factory;
    struct guest *guest;
};

static void never_told(dlock_lock *lock, bool answer, void *user)
{
    (void)lock;
    (void)answer;
    (void)user;
    child_fail("done was called", __FILE__, __LINE__);
}

static int heir(void *argument)
{
    struct inherited *given = (struct inherited *)argument;
    dlock_lock lock = DLOCK_INIT;
    dlock_lock *waiting = &given->guest->lock;
    child_check(!dlock_acquire(given->factory, &lock, "child", &patient));
    child_check(dlock_why(&lock)->code == DLOCK_ARGUMENT);
    child_check(!dlock_acquire_start(given->factory, &lock, "k", &patient, never_told, NULL));
    child_check(dlock_why(&lock)->code == DLOCK_ARGUMENT);
    child_check(!dlock_is_acquired(waiting));
    child_check(!dlock_release(waiting));
    child_check(!dlock_extend(waiting, 0));
    child_check(dlock_fd(given->factory) == -1);
    dlock_process(given->factory);
    dlock_cancel(waiting);
    dlock_close(given->factory);
    child_check(given->guest->told == 0);
    return 0;
}

static void a_child_of_who_waits_sends_nothing_and_the_parent_is_served(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    struct inherited given = {factory, guest};
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &patient);
    for (int i = 0; i < 3; i++) {
        int64_t heard = server_heard(&live->server);
        assert_int_equal(child_wait(child_start(heir, &given)), 0);
        assert_int_equal(server_heard(&live->server), heard);
        guests_for(guest, 1, 20);
        assert_int_equal(guest[0].told, 0);
        assert_int_equal(line_length(&live->server, "k"), 1);
        assert_int_equal(inboxes(&live->server), 1);
    }
    assert_yes(dlock_release(&held), &held);
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 0, 300);
    assert_true(begins_with(guest[0].ticket, dlock_owner(&guest[0].lock)));
    leave(live, guest, "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

static int heir_of_a_blocked_thread(void *argument)
{
    struct blocked *blocked = (struct blocked *)argument;
    dlock_lock lock = DLOCK_INIT;
    child_check(!dlock_acquire(blocked->factory, &lock, "child", &patient));
    child_check(dlock_why(&lock)->code == DLOCK_ARGUMENT);
    dlock_cancel(&blocked->lock);
    dlock_close(blocked->factory);
    return 0;
}

static void a_child_forked_beside_a_blocked_thread_leaves_it_in_line(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    static struct blocked blocked;
    memset(&blocked, 0, sizeof blocked);
    blocked.factory = open_factory(live->server.url, NULL);
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    assert_int_equal(pthread_create(&blocked.thread, NULL, blocked_body, &blocked), 0);
    line_wait(&live->server, "k", 1);
    int64_t heard = server_heard(&live->server);
    assert_int_equal(child_wait(child_start(heir_of_a_blocked_thread, &blocked)), 0);
    assert_int_equal(server_heard(&live->server), heard);
    assert_int_equal(atomic_load(&blocked.over), 0);
    assert_int_equal(line_length(&live->server, "k"), 1);
    assert_yes(dlock_release(&held), &held);
    assert_int_equal(pthread_join(blocked.thread, NULL), 0);
    assert_true(blocked.answer);
    assert_yes(dlock_release(&blocked.lock), &blocked.lock);
    line_is_over(&live->server, "k");
    dlock_close(blocked.factory);
    live_end(live);
}

static void close_cancels_who_waits_and_leaves_no_ticket_and_no_inbox(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    static struct guest guests[3];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    int before = descriptors();
    dlock_factory *factory = open_factory(live->server.url, NULL);
    for (int i = 0; i < 3; i++) {
        guest_arrives(&live->server, "k", guests, i, factory, &patient);
    }
    dlock_close(factory);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(guests[i].told, 1);
        assert_false(guests[i].answer);
        assert_int_equal(guests[i].code, DLOCK_CANCELLED);
    }
    line_wait(&live->server, "k", 0);
    inboxes_wait(&live->server, 0);
    assert_int_equal(descriptors(), before);
    assert_held(&live->server, &held, "k");
    assert_yes(dlock_release(&held), &held);
    live_end(live);
}

/* Waits that end in every way, six at a time: one inbox all the while, and nothing afterwards. */
static void many_waits_with_mixed_endings_take_one_inbox_and_leave_nothing(void **state)
{
    enum { ROUNDS = 40, GUESTS = 6 };
    struct live *live = live_of(state);
    static struct guest guests[GUESTS];
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    assert_yes(dlock_release(&held), &held);
    int before = descriptors();
    dlock_factory *factory = open_factory(live->server.url, NULL);
    for (int round = 0; round < ROUNDS; round++) {
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        for (int i = 0; i < GUESTS; i++) {
            dlock_options waits = patient;
            waits.wait_ms = i % 3 == 0 ? 60 + round : 60000;
            guest_arrives(&live->server, "k", guests, i, factory, &waits);
        }
        assert_int_equal(inboxes(&live->server), 1);
        dlock_cancel(&guests[1].lock);
        dlock_cancel(&guests[4].lock);
        assert_true(guests_until(guests, GUESTS, 4, 10000));
        for (int i = 0; i < GUESTS; i++) {
            assert_int_equal(guests[i].told, i % 3 == 2 ? 0 : 1);
            assert_int_equal(guests[i].code, i % 3 == 2   ? DLOCK_OK
                                             : i % 3 == 1 ? DLOCK_CANCELLED
                                                          : DLOCK_TIMEOUT);
        }
        assert_yes(dlock_release(&held), &held);
        assert_true(guests_until(guests, GUESTS, 5, 10000));
        leave(live, &guests[2], "k");
        assert_true(guests_until(guests, GUESTS, 6, 10000));
        leave(live, &guests[5], "k");
        line_is_over(&live->server, "k");
        assert_int_equal(inboxes(&live->server), 1);
    }
    assert_true(server_calls(&live->server, "subscribe") <= 2);
    dlock_close(factory);
    inboxes_wait(&live->server, 0);
    assert_int_equal(descriptors(), before);
    live_end(live);
}

/* ---------------------------------------------------------------------------- others at the key */

/* Nobody tells who waits: it looks by itself, and who came first still is first. */
static void a_foreign_holder_without_a_lease_is_followed_soon_and_in_order(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    static struct guest guests[2];
    server_do(&live->server, "SET k theirs");
    guest_arrives(&live->server, "k", guests, 0, factory, &patient);
    guest_arrives(&live->server, "k", guests, 1, live->factory, &patient);
    guests_for(guests, 2, 600);
    assert_int_equal(guests_told(guests, 2), 0);
    assert_int_equal(line_length(&live->server, "k"), 2);
    server_do(&live->server, "DEL k");
    int64_t start = now_ms();
    assert_true(guests_until(guests, 2, 1, 15000));
    assert_took(start, 0, 250);
    served_in_order(live, guests, 2, "k");
    dlock_close(factory);
    live_end(live);
}

static void a_foreign_holders_lease_is_waited_for(void **state)
{
    struct live *live = live_of(state);
    static struct guest guest[1];
    server_do(&live->server, "SET k theirs NX PX 700");
    int64_t start = now_ms();
    guest_arrives(&live->server, "k", guest, 0, live->factory, &patient);
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 650, 950);
    leave(live, guest, "k");
    line_is_over(&live->server, "k");
    live_end(live);
}

/* Both took their place; the foreign program is quicker than either at the free key. */
static void a_foreign_program_that_takes_the_key_costs_nobody_his_place(void **state)
{
    struct live *live = live_of(state);
    static struct guest guests[3];
    dlock_options paced = patient;
    paced.retry_delay_ms = 100;
    server_do(&live->server, "SET k theirs");
    for (int i = 0; i < 3; i++) {
        guest_arrives(&live->server, "k", guests, i, live->factory, &paced);
    }
    for (int i = 0; i < 5; i++) {
        server_do(&live->server, "SET k theirs:%d", i);
        guests_for(guests, 3, 120);
        assert_int_equal(guests_told(guests, 3), 0);
        assert_int_equal(line_length(&live->server, "k"), 3);
    }
    for (int i = 0; i < 3; i++) {
        char ticket[TICKET_MAX];
        line_ticket(&live->server, "k", i, ticket);
        assert_string_equal(ticket, guests[i].ticket);
    }
    server_do(&live->server, "DEL k");
    served_in_order(live, guests, 3, "k");
    live_end(live);
}

static void who_polls_does_not_overtake_who_waits(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *polling = open_factory(live->server.url, NULL);
    dlock_options polls = {.wait_ms = 30000, .retry_delay_ms = 3, .no_queue = true};
    dlock_lock held = DLOCK_INIT;
    static struct guest guests[4];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    assert_true(guest_start(&guests[0], polling, "k", &polls));
    guests_for(guests, 1, 100);
    assert_int_equal(line_length(&live->server, "k"), 0);
    assert_int_equal(inboxes(&live->server), 0);
    for (int i = 1; i < 4; i++) {
        guest_arrives(&live->server, "k", guests, i, live->factory, &patient);
    }
    assert_yes(dlock_release(&held), &held);
    for (int i = 1; i < 4; i++) {
        assert_true(guests_until(guests, 4, i, 15000));
        guests_for(guests, 4, 30);
        assert_int_equal(guests[0].told, 0);
        leave(live, &guests[i], "k");
    }
    assert_true(guests_until(guests, 4, 4, 15000));
    leave(live, &guests[0], "k");
    line_is_over(&live->server, "k");
    dlock_close(polling);
    live_end(live);
}

/* The key is free, two wait for it and do not know: the next asker serves the first of them. */
static void who_polls_a_free_key_serves_the_first_in_line(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *polling = open_factory(live->server.url, NULL);
    dlock_options polls = {.no_queue = true};
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    static struct guest guests[2];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guests, 0, live->factory, &patient);
    guest_arrives(&live->server, "k", guests, 1, live->factory, &patient);
    server_do(&live->server, "DEL k");
    assert_no(dlock_acquire(polling, &lock, "k", &polls), &lock, DLOCK_BUSY);
    served_in_order(live, guests, 2, "k");
    assert_no(dlock_release(&held), &held, DLOCK_LOST);
    assert_yes(dlock_acquire(polling, &lock, "k", &polls), &lock);
    guest_arrives(&live->server, "k", guests, 0, live->factory, &patient);
    assert_yes(dlock_release(&lock), &lock);
    int64_t start = now_ms();
    assert_true(guests_until(guests, 1, 1, 15000));
    assert_took(start, 0, 300);
    leave(live, &guests[0], "k");
    dlock_close(polling);
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(who_came_first_is_served_first_and_fences_grow),
        LIVE(the_line_grows_at_its_end_although_the_servers_clock_went_back),
        LIVE(two_tickets_of_one_microsecond_are_both_served),
        LIVE(threads_that_share_a_factory_are_served_in_order),
        LIVE(a_waiter_without_fence_stands_in_the_same_line),
        LIVE(a_ticket_is_written_only_after_the_inbox_is_confirmed),
        LIVE(a_grant_that_overtakes_the_answer_to_its_ask_is_had),
        LIVE(a_grant_whose_message_was_lost_is_found_by_the_next_ask),
        LIVE(a_deleted_queue_keeps_nobody_from_the_lock),
        LIVE(a_ticket_that_was_taken_away_is_written_again_at_its_old_place),
        LIVE(a_hand_over_read_late_is_worth_only_what_is_left_of_it),
        LIVE(a_hand_over_read_too_late_is_none_and_who_missed_it_lines_up_anew),
        LIVE(who_waits_three_seconds_sends_a_handful_of_commands),
        LIVE(a_wait_that_ends_is_a_timeout_and_its_ticket_is_gone),
        LIVE(a_cancel_from_a_thread_ends_a_wait_and_takes_the_ticket_away),
        LIVE(a_cancel_from_a_signal_handler_ends_a_wait_and_takes_the_ticket_away),
        LIVE(a_grant_behind_a_cancel_is_given_to_the_next_in_line),
        LIVE(a_grant_read_behind_the_end_of_a_wait_is_had_or_given_on),
        LIVE(a_grant_that_races_the_end_of_a_wait_leaves_nobody_stuck),
        LIVE(a_grant_that_races_a_cancel_leaves_nobody_stuck),
        LIVE(attempts_are_counted_and_paced_in_line_too),
        LIVE(a_hand_over_uses_no_attempt),
        LIVE(the_bound_that_ends_first_ends_the_wait),
        LIVE(one_attempt_leaves_no_ticket_and_opens_no_inbox),
        LIVE(a_contended_acquisition_costs_two_commands),
        LIVE(a_child_of_who_waits_sends_nothing_and_the_parent_is_served),
        LIVE(a_child_forked_beside_a_blocked_thread_leaves_it_in_line),
        LIVE(close_cancels_who_waits_and_leaves_no_ticket_and_no_inbox),
        LIVE(many_waits_with_mixed_endings_take_one_inbox_and_leave_nothing),
        LIVE(a_foreign_holder_without_a_lease_is_followed_soon_and_in_order),
        LIVE(a_foreign_holders_lease_is_waited_for),
        LIVE(a_foreign_program_that_takes_the_key_costs_nobody_his_place),
        LIVE(who_polls_does_not_overtake_who_waits),
        LIVE(who_polls_a_free_key_serves_the_first_in_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
