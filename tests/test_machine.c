/* The machine alone: an event goes in, what is to be done comes out. No socket, no clock, no
 * server. Every state meets every event; validity, owners, places in line, pauses and bounds are
 * exact. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))
#define START_US INT64_C(1795398000000000) /* what the server's clock says at NOW */

enum {
    NOW = 5000,
    SUBSCRIPTION = 5,
    DROP = DLOCKI_DO_DROP,
    UNDO = DLOCKI_DO_UNDO,
    LISTEN = DLOCKI_DO_LISTEN,
    SEND = DLOCKI_DO_SEND,
    FINISH = DLOCKI_DO_FINISH,
    LOSE = DLOCKI_DO_LOSE
};

static unsigned char randomness[8] = {1, 2, 3, 4, 5, 6, 7, 8};

static dlock_lock new_acquire(int32_t retry_count, int64_t wait_ms)
{
    dlock_lock lock = DLOCK_INIT;
    lock._verb = DLOCKI_ACQUIRE;
    lock._expiry_ms = 10000;
    lock._ask_expiry_ms = 10000;
    lock._retry_count = retry_count;
    lock._wait_ms = wait_ms;
    lock._wake_at = DLOCKI_NEVER;
    return lock;
}

/* One that stands in line, for as long as it takes; time alone bounds it. */
static dlock_lock new_waiter(void)
{
    dlock_lock lock = new_acquire(0, DLOCK_FOREVER);
    lock._queues = true;
    return lock;
}

static dlocki_event new_event(int kind, int64_t now)
{
    dlocki_event in;
    memset(&in, 0, sizeof in);
    in.kind = kind;
    in.now = now;
    in.factory = "0123456789abcdef";
    in.random = randomness;
    in.bound_ms = 2000;
    return in;
}

static unsigned feed(dlock_lock *lock, int kind, int64_t now)
{
    dlocki_event in = new_event(kind, now);
    return dlocki_machine(lock, &in);
}

static unsigned reply(dlock_lock *lock, int verdict, int64_t now, int64_t lease_ms)
{
    dlocki_event in = new_event(DLOCKI_REPLIED, now);
    in.verdict.kind = verdict;
    in.verdict.lease_ms = lease_ms;
    in.verdict.fence = verdict == DLOCKI_GRANTED ? 77 : 0;
    return dlocki_machine(lock, &in);
}

/* A command with a ticket is about to leave. */
static unsigned send_ticket(dlock_lock *lock, int64_t now, unsigned subscription)
{
    dlocki_event in = new_event(DLOCKI_SENT, now);
    in.letter = lock->_no_fence ? 'n' : 'g';
    in.subscription = subscription;
    return dlocki_machine(lock, &in);
}

/* "Somebody holds it", and where we stand. */
static dlocki_event new_held(int64_t now, int64_t lease_ms, int64_t place, unsigned subscription)
{
    dlocki_event in = new_event(DLOCKI_REPLIED, now);
    in.verdict.kind = DLOCKI_HELD;
    in.verdict.lease_ms = lease_ms;
    in.verdict.now_us = 1;
    in.verdict.place = place;
    in.verdict.score = place > 0 ? dlocki_least(place, 1000000) + 1000 : 0;
    in.subscription = subscription;
    return in;
}

static unsigned held(dlock_lock *lock, int64_t now, int64_t lease_ms, int64_t place,
                     unsigned subscription)
{
    dlocki_event in = new_held(now, lease_ms, place, subscription);
    return dlocki_machine(lock, &in);
}

/* The inbox says that it is ours since `given_ms` after START_US, which is what the server's clock
 * said to what was sent at NOW. */
static dlocki_event new_given(int64_t now, int64_t given_ms)
{
    dlocki_event in = new_event(DLOCKI_GIVEN, now);
    in.fence = 78;
    in.given_us = START_US + given_ms * 1000;
    in.anchor_us = START_US;
    in.anchor_at = NOW;
    in.subscription = SUBSCRIPTION;
    return in;
}

static unsigned given(dlock_lock *lock, int64_t now, int64_t given_ms)
{
    dlocki_event in = new_given(now, given_ms);
    return dlocki_machine(lock, &in);
}

/* The same, and no anchor to date it by. */
static unsigned given_blind(dlock_lock *lock, int64_t now)
{
    dlocki_event in = new_given(now, 0);
    in.anchor_us = 0;
    return dlocki_machine(lock, &in);
}

static unsigned flags(dlock_lock *lock, int64_t value, int64_t now)
{
    dlocki_event in = new_event(DLOCKI_REPLIED, now);
    in.verdict.kind = DLOCKI_FLAGS;
    in.verdict.flags = value;
    return dlocki_machine(lock, &in);
}

/* A lock that was granted at NOW, for ten seconds. */
static dlock_lock held_lock(int verb)
{
    dlock_lock lock = new_acquire(0, 0);
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    assert_int_equal(feed(&lock, DLOCKI_SENT, NOW), 0);
    assert_int_equal(reply(&lock, DLOCKI_GRANTED, NOW, 10000), FINISH);
    assert_true(lock._answer);
    lock._verb = verb;
    return lock;
}

/* -------------------------------------------------------------------- every state x every event */

enum place {
    STARTED,  /* nothing sent yet                                        */
    ASKED,    /* a command under way                                     */
    DOUBTFUL, /* cut once: about to ask again                            */
    ASKED_AGAIN,
    RESTING, /* between attempts                                        */
    PLACES
};

enum { WHOLE = 100, MOMENT }; /* further kinds of events, for the table */

/* What an acquire does: on its last attempt, and while others are left. */
static const struct {
    int event;
    int verdict;
    unsigned last[4]; /* in STARTED, ASKED, DOUBTFUL, ASKED_AGAIN */
    unsigned others[4];
    int code; /* where `last` finishes */
} acquire_table[] = {
    {DLOCKI_REPLIED, DLOCKI_GRANTED, {0, FINISH, 0, FINISH}, {0, FINISH, 0, FINISH}, DLOCK_OK},
    {DLOCKI_REPLIED, DLOCKI_HELD, {0, FINISH, 0, FINISH}, {0, 0, 0, 0}, DLOCK_BUSY},
    {DLOCKI_REPLIED, DLOCKI_AGAIN, {0, SEND, 0, SEND}, {0, SEND, 0, SEND}, 0},
    {DLOCKI_REPLIED, DLOCKI_NOSCRIPT, {0, SEND, 0, SEND}, {0, SEND, 0, SEND}, 0},
    {DLOCKI_REPLIED, WHOLE, {0, FINISH, 0, UNDO | FINISH}, {0, 0, 0, UNDO}, DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED,
     DLOCKI_LATER,
     {0, FINISH, 0, UNDO | FINISH},
     {0, 0, 0, UNDO},
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED,
     DLOCKI_REFUSAL,
     {0, FINISH, 0, UNDO | FINISH},
     {0, FINISH, 0, UNDO | FINISH},
     DLOCK_REFUSED},
    {DLOCKI_REPLIED,
     DLOCKI_DOUBT,
     {0, UNDO | FINISH, 0, UNDO | FINISH},
     {0, UNDO, 0, UNDO},
     DLOCK_UNREACHABLE},
    {DLOCKI_UNCONNECTED,
     0,
     {FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {0, UNDO, UNDO, UNDO},
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT_UNSENT,
     0,
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     {SEND, SEND, UNDO, UNDO},
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT,
     0,
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     {SEND, SEND, UNDO, UNDO},
     DLOCK_UNREACHABLE},
    {DLOCKI_OVERDUE,
     0,
     {FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {0, UNDO, UNDO, UNDO},
     DLOCK_UNREACHABLE},
    {DLOCKI_BABBLE,
     0,
     {FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {0, UNDO, UNDO, UNDO},
     DLOCK_PROTOCOL},
    {DLOCKI_CANCEL,
     0,
     {FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     DLOCK_CANCELLED},
    {DLOCKI_TIME,
     0,
     {FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_TIME, MOMENT, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
};

static dlock_lock acquire_at(enum place place, bool last)
{
    /* Bounded by both: the count decides, until 900 ms have passed. */
    dlock_lock lock = new_acquire(last ? 1 : 2, 900);
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    lock._attempts = 1;
    if (place != STARTED) {
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 10), 0);
    }
    if (place == DOUBTFUL || place == ASKED_AGAIN) {
        assert_int_equal(feed(&lock, DLOCKI_CUT, NOW + 20), SEND);
    }
    if (place == ASKED_AGAIN) {
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 30), 0);
    }
    return lock;
}

static void an_acquire_meets_every_event_in_every_state(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof acquire_table / sizeof *acquire_table; i++) {
        for (int place = STARTED; place < RESTING; place++) {
            for (int last = 0; last < 2; last++) {
                unsigned expected =
                    last ? acquire_table[i].last[place] : acquire_table[i].others[place];
                dlock_lock lock = acquire_at((enum place)place, last != 0);
                dlocki_event in = new_event(acquire_table[i].event, NOW + 40);
                bool reply_expected = place == ASKED || place == ASKED_AGAIN;
                if (in.kind == DLOCKI_REPLIED && !reply_expected) {
                    continue;
                }
                in.verdict.kind = acquire_table[i].verdict;
                in.verdict.lease_ms = 5000;
                if (acquire_table[i].verdict == WHOLE) {
                    lock._whole = true;
                    in.verdict.kind = DLOCKI_NOSCRIPT;
                } else if (in.kind == DLOCKI_TIME && acquire_table[i].verdict != MOMENT) {
                    in.now = NOW + 900;
                }
                assert_int_equal(dlocki_machine(&lock, &in), expected);
                if ((expected & FINISH) != 0) {
                    assert_int_equal(lock._why.code, acquire_table[i].code);
                    assert_int_equal(lock._answer, acquire_table[i].code == DLOCK_OK);
                    assert_int_equal(lock._state, lock._answer ? DLOCKI_OURS : DLOCKI_UNUSED);
                }
                if ((expected & UNDO) != 0) {
                    assert_true(lock._burnt);
                    assert_false(lock._unknown || lock._asked);
                }
                if ((expected & (FINISH | SEND)) == 0 && acquire_table[i].verdict != MOMENT) {
                    assert_in_range(lock._wake_at, NOW + 40 + 50, NOW + 40 + 250);
                }
            }
        }
    }
}

/* "Somebody holds it" was true of the attempt before; of this one nobody can tell. */
static void a_wait_that_ends_in_an_unanswered_ask_is_unreachable(void **state)
{
    dlock_lock lock = new_acquire(0, 900);
    dlocki_event in = new_event(DLOCKI_REPLIED, NOW + 10);
    (void)state;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    assert_int_equal(feed(&lock, DLOCKI_SENT, NOW), 0);
    in.verdict.kind = DLOCKI_HELD;
    in.verdict.lease_ms = 300;
    assert_int_equal(dlocki_machine(&lock, &in), 0);
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
    assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 400), 0);
    assert_int_equal(feed(&lock, DLOCKI_TIME, NOW + 900), UNDO | FINISH);
    assert_int_equal(lock._why.code, DLOCK_UNREACHABLE);
}

static void a_resting_acquire_wakes_ends_or_is_cancelled(void **state)
{
    static const struct {
        int event;
        int64_t now;
        unsigned todo;
        int code;
    } cases[] = {
        {DLOCKI_TIME, NOW + 99, 0, 0},
        {DLOCKI_TIME, NOW + 100, SEND, 0},
        {DLOCKI_TIME, NOW + 899, SEND, 0},
        {DLOCKI_TIME, NOW + 900, FINISH, DLOCK_TIMEOUT},
        {DLOCKI_CANCEL, NOW + 50, FINISH, DLOCK_CANCELLED},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = new_acquire(5, 900);
        lock._retry_delay_ms = 100;
        (void)feed(&lock, DLOCKI_STARTED, NOW);
        (void)feed(&lock, DLOCKI_SENT, NOW);
        assert_int_equal(reply(&lock, DLOCKI_HELD, NOW, -1), 0);
        assert_int_equal(lock._wake_at, NOW + 100);
        assert_int_equal(feed(&lock, cases[i].event, cases[i].now), cases[i].todo);
        if (cases[i].todo == FINISH) {
            assert_int_equal(lock._why.code, cases[i].code);
        } else if (cases[i].todo == SEND) {
            assert_int_equal(lock._wake_at, DLOCKI_NEVER);
        }
    }
}

/* The other verbs: what they do before their command left, behind it, and after a cut. An extend
 * and an inspection are alike, and so would a break be; but that one is never sent twice. */
static const struct {
    int event;
    int verdict;
    unsigned extend[4];
    unsigned release[4];
    unsigned taking[4];
    int code;
} simple_table[] = {
    {DLOCKI_REPLIED,
     DLOCKI_REFUSAL,
     {0, FINISH, 0, FINISH},
     {0, FINISH, 0, FINISH},
     {0, FINISH, 0, FINISH},
     DLOCK_REFUSED},
    {DLOCKI_REPLIED,
     DLOCKI_NOSCRIPT,
     {0, SEND, 0, SEND},
     {0, SEND, 0, SEND},
     {0, SEND, 0, SEND},
     0},
    {DLOCKI_REPLIED,
     WHOLE,
     {0, FINISH, 0, FINISH},
     {0, UNDO | FINISH, 0, UNDO | FINISH},
     {0, FINISH, 0, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED,
     DLOCKI_LATER,
     {0, FINISH, 0, FINISH},
     {0, UNDO | FINISH, 0, UNDO | FINISH},
     {0, FINISH, 0, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED,
     DLOCKI_DOUBT,
     {0, FINISH, 0, FINISH},
     {0, UNDO | FINISH, 0, UNDO | FINISH},
     {0, FINISH, 0, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_UNCONNECTED,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {FINISH, FINISH, FINISH, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT_UNSENT,
     0,
     {SEND, SEND, FINISH, FINISH},
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     {SEND, SEND, FINISH, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT,
     0,
     {SEND, SEND, FINISH, FINISH},
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     {FINISH, FINISH, FINISH, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_OVERDUE,
     0,
     {SEND, SEND, FINISH, FINISH},
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     {FINISH, FINISH, FINISH, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_BABBLE,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {FINISH, FINISH, FINISH, FINISH},
     DLOCK_PROTOCOL},
    {DLOCKI_CANCEL,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {FINISH, FINISH, FINISH, FINISH},
     DLOCK_CANCELLED},
    {DLOCKI_TIME,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     {FINISH, FINISH, FINISH, FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_TIME, MOMENT, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
    /* the inbox has nothing to say to them */
    {DLOCKI_SUBSCRIBED, 0, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
    {DLOCKI_UNSUBSCRIBED, 0, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
    {DLOCKI_INBOX_REFUSED, 0, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
    {DLOCKI_GIVEN, 0, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
    {DLOCKI_TAKEN_FROM, 0, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
};

/* A question about a key: it has a handle of its own. */
static dlock_lock new_question(int verb)
{
    dlock_lock lock = DLOCK_INIT;
    lock._verb = verb;
    lock._wake_at = DLOCKI_NEVER;
    return lock;
}

static dlock_lock simple_at(int verb, enum place place)
{
    dlock_lock lock = verb <= DLOCKI_RELEASE ? held_lock(verb) : new_question(verb);
    lock._wanted_ms = 10000;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    if (place != STARTED) {
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 10), 0);
    }
    if (place == DOUBTFUL || place == ASKED_AGAIN) {
        int event = verb == DLOCKI_TAKING ? DLOCKI_CUT_UNSENT : DLOCKI_CUT;
        assert_int_equal(feed(&lock, event, NOW + 20), SEND);
    }
    if (place == ASKED_AGAIN) {
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 30), 0);
    }
    return lock;
}

static const int simple_verbs[] = {DLOCKI_EXTENSION, DLOCKI_INSPECTION, DLOCKI_RELEASE,
                                   DLOCKI_TAKING};

static void the_other_verbs_meet_every_event_in_every_state(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(simple_table) * RESTING * COUNT(simple_verbs); i++) {
        size_t row = i / RESTING / COUNT(simple_verbs);
        int place = (int)(i / COUNT(simple_verbs) % RESTING);
        int verb = simple_verbs[i % COUNT(simple_verbs)];
        unsigned expected = verb == DLOCKI_RELEASE  ? simple_table[row].release[place]
                            : verb == DLOCKI_TAKING ? simple_table[row].taking[place]
                                                    : simple_table[row].extend[place];
        dlock_lock lock = simple_at(verb, (enum place)place);
        dlocki_event in = new_event(simple_table[row].event, NOW + 40);
        if (in.kind == DLOCKI_REPLIED && place != ASKED && place != ASKED_AGAIN) {
            continue;
        }
        in.verdict.kind = simple_table[row].verdict;
        if (simple_table[row].verdict == WHOLE) {
            lock._whole = true;
            in.verdict.kind = DLOCKI_NOSCRIPT;
        } else if (in.kind == DLOCKI_TIME && simple_table[row].verdict != MOMENT) {
            in.now = NOW + 2000;   /* bound_ms */
        }
        assert_int_equal(dlocki_machine(&lock, &in), expected);
        if ((expected & FINISH) == 0) {
            continue;
        }
        assert_false(lock._answer);
        assert_int_equal(lock._why.code, simple_table[row].code);
        if (verb == DLOCKI_EXTENSION) {   /* the old validity stands */
            assert_int_equal(lock._state, DLOCKI_OURS);
            assert_int_equal(lock._valid_until, NOW + 9898);
        } else if (verb == DLOCKI_RELEASE) {
            assert_int_equal(lock._state,
                             lock._why.code == DLOCK_REFUSED ? DLOCKI_GIVEN_BACK : DLOCKI_OWED);
            assert_non_null(strstr(lock._why.text, "lapses by itself in "));
        } else {
            assert_int_equal(lock._state, DLOCKI_UNUSED);
        }
    }
}

/* What is found is the answer, and that nothing is found is no failure. */
static void a_question_about_a_key_is_answered_by_what_stands_there(void **state)
{
    static const struct {
        int verb;
        int64_t says;   /* the lease, the flags */
        bool answer;
    } cases[] = {
        {DLOCKI_INSPECTION, -2, false}, {DLOCKI_INSPECTION, -1, true},
        {DLOCKI_INSPECTION, 0, true},   {DLOCKI_INSPECTION, 7000, true},
        {DLOCKI_TAKING, 0, false},      {DLOCKI_TAKING, 1, true},
        {DLOCKI_TAKING, 5, true},       {DLOCKI_TAKING, 9, true},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = new_question(cases[i].verb);
        dlocki_event in = new_event(DLOCKI_REPLIED, NOW + 10);
        dlocki_command command = dlocki_lock_command(&lock, true);
        bool inspects = cases[i].verb == DLOCKI_INSPECTION;
        assert_int_equal(command.kind, inspects ? DLOCKI_INSPECT : DLOCKI_BREAK);
        assert_int_equal(command.letter, 0);
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW), 0);
        in.verdict.kind = inspects ? DLOCKI_SEEN : DLOCKI_FLAGS;
        in.verdict.lease_ms = cases[i].says;
        in.verdict.flags = cases[i].says;
        assert_int_equal(dlocki_machine(&lock, &in), FINISH);
        assert_int_equal(lock._answer, cases[i].answer);
        assert_int_equal(lock._why.code, DLOCK_OK);
        assert_int_equal(lock._state, DLOCKI_UNUSED);
    }
}

/* ----------------------------------------------------------- in line: every state x every event */

enum line_place {
    PLAIN_ASKED,      /* the inbox is not subscribed yet: without a ticket     */
    PLAIN_RESTING,
    TICKET_ASKED,     /* for the first time                                    */
    LINE_RESTING,
    LINE_ASKED,       /* once more                                             */
    LINE_DOUBTFUL,    /* that was cut: about to ask again                      */
    BURNT_RESTING,    /* nobody answered: undone                               */
    CONFIRM_UNSENT,   /* given, and it cannot be dated                         */
    CONFIRM_ASKED,
    CONFIRM_DOUBTFUL,
    CONFIRM_AGAIN,
    GRANT_ASKED,      /* given while an ask was under way: that may be granted
                         anew, and only another ask tells with which fence     */
    LINE_PLACES
};

static int64_t at; /* when the state below was reached */

static dlock_lock line_at(enum line_place place)
{
    dlock_lock lock = new_waiter();
    lock._wait_ms = 100000;
    at = NOW;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, at), SEND);
    assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    if (place == PLAIN_ASKED) {
        return lock;
    }
    at = NOW + 10;
    assert_int_equal(held(&lock, at, -1, 0, 0), LISTEN);
    if (place == PLAIN_RESTING) {
        return lock;
    }
    at = NOW + 20;
    assert_int_equal(feed(&lock, DLOCKI_SUBSCRIBED, at), SEND);
    assert_int_equal(send_ticket(&lock, at, SUBSCRIPTION), 0);
    if (place == TICKET_ASKED) {
        return lock;
    }
    at = NOW + 30;
    assert_int_equal(held(&lock, at, 60000, 3, SUBSCRIPTION), 0);
    if (place == LINE_RESTING) {
        return lock;
    }
    if (place >= CONFIRM_UNSENT && place != GRANT_ASKED) {
        at = NOW + 40;
        assert_int_equal(given_blind(&lock, at), DROP | SEND);
    } else {
        at = lock._wake_at;
        assert_int_equal(feed(&lock, DLOCKI_TIME, at), SEND);
        assert_int_equal(send_ticket(&lock, at, SUBSCRIPTION), 0);
    }
    if (place == LINE_DOUBTFUL) {
        assert_int_equal(feed(&lock, DLOCKI_CUT, at), SEND);
    } else if (place == BURNT_RESTING) {
        assert_int_equal(feed(&lock, DLOCKI_OVERDUE, at), UNDO);
    } else if (place == GRANT_ASKED) {
        assert_int_equal(given_blind(&lock, at), DROP | SEND);
        at += 10;
        assert_int_equal(send_ticket(&lock, at, SUBSCRIPTION), 0);
    }
    if (place >= CONFIRM_ASKED && place != GRANT_ASKED) {
        at += 10;
        assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    }
    if (place == CONFIRM_DOUBTFUL || place == CONFIRM_AGAIN) {
        assert_int_equal(feed(&lock, DLOCKI_CUT, at), SEND);
    }
    if (place == CONFIRM_AGAIN) {
        at += 10;
        assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    }
    return lock;
}

/* Further kinds of events: "held" under another subscription than that of the ask, the two answers
 * to a confirmation, a grant without anchor, the time to wake up. */
enum { ANEW = 200, GONE, CONFIRMED, BLIND, WAKE };

/* U undo, D drop, L listen, S send, F finish, X lose, . nothing, - cannot come; by enum line_place.
 * While other attempts are left, and on the last one. */
static const struct {
    int event;
    int verdict;
    const char *others;
    const char *last; /* NULL: the same */
    int code;         /* where it finishes */
} line_table[] = {
    {DLOCKI_REPLIED, DLOCKI_GRANTED, "F - F - F - - - - - - F", NULL, DLOCK_OK},
    /* the first ask with a ticket is none of the attempts: it came within a pause */
    {DLOCKI_REPLIED, DLOCKI_HELD, "L - . - . - - - - - - .", "F - . - UF - - - - - - UF",
     DLOCK_BUSY},
    {DLOCKI_REPLIED, ANEW, "S - S - S - - - - - - S", NULL, 0},
    {DLOCKI_REPLIED, DLOCKI_AGAIN, "S - S - S - - - - - - S", NULL, 0},
    {DLOCKI_REPLIED, DLOCKI_NOSCRIPT, "S - S - S - - - S - S S", NULL, 0},
    {DLOCKI_REPLIED, WHOLE, ". - . - . - - - U - U U", "F - UF - UF - - - UF - UF UF",
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED, DLOCKI_LATER, ". - . - . - - - U - U U", "F - UF - UF - - - UF - UF UF",
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED, DLOCKI_REFUSAL, "F - UF - UF - - - UF - UF UF", NULL, DLOCK_REFUSED},
    {DLOCKI_REPLIED, DLOCKI_DOUBT, "U - U - U - - - U - U U", "UF - UF - UF - - - UF - UF UF",
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED, GONE, "- - - - - - - - U - U -", NULL, 0},
    {DLOCKI_REPLIED, CONFIRMED, "- - - - - - - - F - F -", NULL, DLOCK_OK},
    {DLOCKI_UNCONNECTED, 0, "U - U - U U - U U U U U", "UF - UF - UF UF - UF UF UF UF UF",
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT_UNSENT, 0, "S - S - S U - S S U U S", "S - S - S UF - S S UF UF S",
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT, 0, "S - S - S U - S S U U S", "S - S - S UF - S S UF UF S", DLOCK_UNREACHABLE},
    {DLOCKI_OVERDUE, 0, "U - U - U U - U U U U U", "UF - UF - UF UF - UF UF UF UF UF",
     DLOCK_UNREACHABLE},
    {DLOCKI_BABBLE, 0, "U - U - U U - U U U U U", "UF - UF - UF UF - UF UF UF UF UF",
     DLOCK_PROTOCOL},
    {DLOCKI_SUBSCRIBED, 0, ". S . S . . . . . . . .", NULL, 0},
    {DLOCKI_UNSUBSCRIBED, 0, ". . . . . . . . . . . .", NULL, 0},
    {DLOCKI_INBOX_REFUSED, 0, "UF F UF UF UF UF F UF UF UF UF UF", NULL, DLOCK_REFUSED},
    {DLOCKI_GIVEN, 0, ". . F F F F . . . . . F", NULL, DLOCK_OK},
    {DLOCKI_GIVEN, BLIND, ". . DS DS DS DS . . . . . DS", NULL, 0},
    {DLOCKI_TAKEN_FROM, 0, ". . . . . . . . . . . .", NULL, 0},
    {DLOCKI_TIME, 0, "UF F UF UF UF UF F UF UF UF UF UF", NULL, DLOCK_UNREACHABLE},
    {DLOCKI_TIME, MOMENT, ". . . . . . . . . . . .", NULL, 0},
    {DLOCKI_TIME, WAKE, "- S - S - - S - - - - -", NULL, 0},
    {DLOCKI_CANCEL, 0, "UF F UF UF UF UF F UF UF UF UF UF", NULL, DLOCK_CANCELLED},
};

/* The n-th word of a row; false: that cannot come. */
static bool cell(const char *row, int n, unsigned *todo)
{
    static const char letters[] = "DULSFX";
    *todo = 0;
    for (; n > 0; n--) {
        row += strcspn(row, " ");
        row += strspn(row, " ");
    }
    for (; *row != ' ' && *row != 0; row++) {
        const char *letter = strchr(letters, *row);
        assert_true(letter != NULL || *row == '.' || *row == '-');
        *todo |= letter != NULL ? 1u << (letter - letters) : 0u;
    }
    return row[-1] != '-';
}

/* An event of one of the tables, for a handle that is in a state `now`. */
static dlocki_event table_event(dlock_lock *lock, int event, int verdict, int64_t now)
{
    dlocki_event in = new_event(event, now);
    in.subscription = SUBSCRIPTION;
    in.verdict.kind = verdict;
    if (event == DLOCKI_REPLIED) {
        in.verdict.lease_ms = 5000;
        in.verdict.fence = verdict == DLOCKI_GRANTED ? 77 : 0;
        in.verdict.place = verdict == DLOCKI_HELD && lock->_ticket ? 2 : 0;
        in.verdict.flags = verdict == CONFIRMED;
    } else if (event == DLOCKI_GIVEN) {
        in = new_given(now, now - NOW);
        in.anchor_us = verdict == BLIND ? 0 : in.anchor_us;
    } else if (event == DLOCKI_TIME) {
        in.now = verdict == MOMENT ? now : verdict == WAKE ? lock->_wake_at : lock->_deadline;
    }
    if (verdict == WHOLE) {
        lock->_whole = true;
        in.verdict.kind = DLOCKI_NOSCRIPT;
    } else if (verdict == ANEW) {
        in.subscription = SUBSCRIPTION + 1;
        in.verdict.kind = DLOCKI_HELD;
    } else if (verdict == GONE || verdict == CONFIRMED) {
        in.verdict.kind = DLOCKI_FLAGS;
    } else if (event == DLOCKI_REPLIED && verdict == DLOCKI_HELD && !lock->_ticket) {
        in.subscription = 0;
    }
    return in;
}

/* What holds whatever came. */
static void check_line(const dlock_lock *before, const dlock_lock *lock, const dlocki_event *in,
                       unsigned todo, int code)
{
    bool ours = (todo & FINISH) != 0 && code == DLOCK_OK;
    assert_int_equal(lock->_state, ours ? DLOCKI_OURS : DLOCKI_UNUSED);
    if ((todo & FINISH) != 0) {
        assert_int_equal(lock->_answer, ours);
        assert_int_equal(lock->_why.code, code);
        assert_false(lock->_asked || lock->_unknown || lock->_confirming);
    }
    if (ours) {
        assert_false(before->_burnt || lock->_burnt);
        assert_true(lock->_valid_until > in->now);
        assert_true(lock->_valid_until <= in->now + 9898);
        assert_int_equal(lock->_fence, in->verdict.fence == 77 ? 77 : 78);
    }
    if ((todo & UNDO) != 0) {
        assert_true(lock->_burnt && !before->_burnt);
        assert_true(before->_ticket || before->_asked || before->_unknown);
        /* The ticket goes with the owner; where the grant is gone, nobody knows of it. */
        assert_int_equal(lock->_ticket, before->_ticket || in->verdict.kind == DLOCKI_FLAGS);
    }
    if ((todo & UNDO) == 0 && !before->_burnt && !ours) {
        assert_false(lock->_burnt);
    }
    if ((todo & SEND) == 0 || !before->_burnt) {
        assert_string_equal(lock->_owner, before->_owner);   /* an undo names the old one */
    }
    assert_true(lock->_wake_at == DLOCKI_NEVER || (todo & (SEND | FINISH)) == 0);
}

static void who_stands_in_line_meets_every_event_in_every_state(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(line_table) * LINE_PLACES * 2; i++) {
        size_t row = i / 2 / LINE_PLACES;
        int place = (int)(i / 2 % LINE_PLACES);
        bool last = i % 2 == 1 && line_table[row].last != NULL;
        const char *words = last ? line_table[row].last : line_table[row].others;
        int code = line_table[row].code;
        dlock_lock before;
        dlock_lock lock;
        dlocki_event in;
        unsigned expected;
        unsigned todo;
        if (!cell(words, place, &expected)) {
            continue;
        }
        lock = line_at((enum line_place)place);
        if (i % 2 == 1) {
            lock._retry_count = 5;
            lock._attempts = 5;
        }
        if (line_table[row].event == DLOCKI_TIME &&
            (place == PLAIN_RESTING || place == LINE_RESTING || place == CONFIRM_UNSENT ||
             place == CONFIRM_ASKED || place == CONFIRM_DOUBTFUL || place == CONFIRM_AGAIN)) {
            code = DLOCK_TIMEOUT;   /* somebody held it, or gave it too late */
        }
        in = table_event(&lock, line_table[row].event, line_table[row].verdict, at + 5);
        before = lock;
        todo = dlocki_machine(&lock, &in);
        if (todo != expected) {
            fail_msg("row %u, state %d, last %d: %u instead of %u", (unsigned)row, place, (int)last,
                     todo, expected);
        }
        check_line(&before, &lock, &in, todo, code);
        if (in.kind == DLOCKI_REPLIED && (todo & (SEND | FINISH)) == 0) {
            assert_true(lock._wake_at >= in.now && lock._wake_at <= in.now + 10020);
        }
    }
}

/* -------------------------------------------------------------------- held: every state x event */

enum held_place {
    HELD_IDLE,      /* nobody renews it, but somebody wants to know           */
    HELD_RENEWED,   /* until a third of the lease has passed                  */
    RENEWAL_UNSENT,
    RENEWAL_SENT,
    RENEWAL_DOUBTFUL,
    RENEWAL_AGAIN,
    RENEWAL_RESTING,
    HELD_PLACES
};

#define RENEW_AT 8125   /* NOW + 3333, down to a multiple of 10000 / 16 */

static dlock_lock held_at(enum held_place place)
{
    dlock_lock lock = new_acquire(0, 0);
    lock._auto_renew = place != HELD_IDLE;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    assert_int_equal(feed(&lock, DLOCKI_SENT, NOW), 0);
    assert_int_equal(reply(&lock, DLOCKI_GRANTED, NOW, 10000), FINISH);
    lock._verb = DLOCKI_NO_VERB;
    at = NOW;
    assert_int_equal(lock._wake_at, place == HELD_IDLE ? DLOCKI_NEVER : RENEW_AT);
    if (place <= HELD_RENEWED) {
        return lock;
    }
    at = RENEW_AT;
    assert_int_equal(feed(&lock, DLOCKI_TIME, at), SEND);
    assert_int_equal(lock._verb, DLOCKI_RENEWAL);
    if (place >= RENEWAL_SENT) {
        at += 10;
        assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    }
    if (place >= RENEWAL_DOUBTFUL) {
        at += 10;
        assert_int_equal(feed(&lock, DLOCKI_OVERDUE, at), SEND);
    }
    if (place >= RENEWAL_AGAIN) {
        at += 10;
        assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    }
    if (place == RENEWAL_RESTING) {
        at += 10;
        assert_int_equal(feed(&lock, DLOCKI_OVERDUE, at), 0);
    }
    return lock;
}

enum { LATE = 300, LATE_GONE };

static const struct {
    int event;
    int verdict;
    const char *words;
    int loss;
} held_table[] = {
    {DLOCKI_REPLIED, CONFIRMED, "- - - F - F -", 0},
    {DLOCKI_REPLIED, GONE, "- - - DX - DX -", DLOCKI_GONE},
    {DLOCKI_REPLIED, LATE, "- - - DUX - DUX -", DLOCKI_EXPIRED},
    {DLOCKI_REPLIED, LATE_GONE, "- - - DUX - DUX -", DLOCKI_EXPIRED},
    {DLOCKI_REPLIED, DLOCKI_NOSCRIPT, "- - - S - S -", 0},
    {DLOCKI_REPLIED, WHOLE, "- - - . - . -", 0},
    {DLOCKI_REPLIED, DLOCKI_LATER, "- - - . - . -", 0},
    {DLOCKI_REPLIED, DLOCKI_REFUSAL, "- - - . - . -", 0},
    {DLOCKI_REPLIED, DLOCKI_DOUBT, "- - - . - . -", 0},
    {DLOCKI_UNCONNECTED, 0, "- - . . . . -", 0},
    {DLOCKI_CUT_UNSENT, 0, "- - S S . . -", 0},
    {DLOCKI_CUT, 0, "- - S S . . -", 0},
    {DLOCKI_OVERDUE, 0, "- - S S . . -", 0},
    {DLOCKI_BABBLE, 0, "- - . . . . -", 0},
    {DLOCKI_SUBSCRIBED, 0, ". . . . . . .", 0},
    {DLOCKI_UNSUBSCRIBED, 0, ". . . . . . .", 0},
    {DLOCKI_INBOX_REFUSED, 0, ". . . . . . .", 0},
    {DLOCKI_GIVEN, 0, ". . . . . . .", 0},
    {DLOCKI_CANCEL, 0, ". . . . . . .", 0},
    {DLOCKI_TAKEN_FROM, 0, "DX DX DX DX DX DX DX", DLOCKI_TAKEN_AWAY},
    {DLOCKI_TIME, LATE, "DUX DUX DUX DUX DUX DUX DUX", DLOCKI_EXPIRED},
    {DLOCKI_TIME, MOMENT, ". . . . . . .", 0},
    {DLOCKI_TIME, WAKE, "- S - - - - S", 0},
};

static void check_still_held(const dlock_lock *lock, const dlocki_event *in, unsigned todo,
                             int loss)
{
    assert_int_equal(lock->_loss, loss);
    assert_int_equal(lock->_state, (todo & LOSE) != 0 ? DLOCKI_GIVEN_BACK : DLOCKI_OURS);
    assert_int_equal(lock->_why.code, DLOCK_BUSY);   /* its user may be reading there */
    assert_true(lock->_answer);
    assert_int_equal(lock->_fence, 77);
    if ((todo & LOSE) != 0) {
        assert_int_equal(lock->_valid_until, 0);
        assert_int_equal(lock->_wake_at, DLOCKI_NEVER);
    } else if ((todo & FINISH) != 0) {
        assert_true(lock->_valid_until > NOW + 9898 && lock->_valid_until <= at + 9898);
        assert_true(lock->_wake_at > in->now && lock->_wake_at <= at + 3333);
    } else {
        assert_int_equal(lock->_valid_until, NOW + 9898);
    }
    if ((todo & SEND) != 0) {
        dlocki_command command = dlocki_lock_command(lock, true);
        assert_int_equal(command.kind, DLOCKI_EXTEND);
        assert_int_equal(command.expiry_ms, 10000);
        assert_int_equal(lock->_wake_at, DLOCKI_NEVER);
    }
}

static void what_is_held_meets_every_event_in_every_state(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(held_table) * HELD_PLACES; i++) {
        size_t row = i / HELD_PLACES;
        int place = (int)(i % HELD_PLACES);
        int verdict = held_table[row].verdict;
        bool late = verdict == LATE || verdict == LATE_GONE;
        dlock_lock lock;
        dlocki_event in;
        unsigned expected;
        unsigned todo;
        if (!cell(held_table[row].words, place, &expected)) {
            continue;
        }
        lock = held_at((enum held_place)place);
        (void)dlocki_say(&lock._why, DLOCK_BUSY, 0, "Nothing that matters.");
        verdict = verdict == LATE ? CONFIRMED : verdict == LATE_GONE ? GONE : verdict;
        in = table_event(&lock, held_table[row].event, verdict, at + 5);
        in.now = late ? lock._valid_until : in.now;
        todo = dlocki_machine(&lock, &in);
        if (todo != expected) {
            fail_msg("row %u, state %d: %u instead of %u", (unsigned)row, place, todo, expected);
        }
        check_still_held(&lock, &in, todo, held_table[row].loss);
        if (place >= RENEWAL_UNSENT && todo == 0 && in.kind >= DLOCKI_REPLIED &&
            in.kind <= DLOCKI_BABBLE) {
            assert_int_equal(lock._wake_at, in.now + 250);   /* and then it is tried again */
        }
    }
}

/* --------------------------------------------------------------------------------- owners, undo */

static void an_owner_is_the_factorys_half_and_a_random_half(void **state)
{
    dlock_lock lock = new_acquire(0, 0);
    (void)state;
    (void)feed(&lock, DLOCKI_STARTED, NOW);
    assert_string_equal(lock._owner, "dl1-0123456789abcdef0102030405060708");
}

static void an_owner_is_burnt_by_its_undo_and_by_nothing_else(void **state)
{
    static const struct {
        int event;
        int verdict;
        bool burnt;
    } cases[] = {{DLOCKI_OVERDUE, 0, true},
                 {DLOCKI_BABBLE, 0, true},
                 {DLOCKI_UNCONNECTED, 0, true},
                 {DLOCKI_REPLIED, DLOCKI_DOUBT, true},
                 {DLOCKI_REPLIED, DLOCKI_HELD, false},
                 {DLOCKI_REPLIED, DLOCKI_LATER, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = new_acquire(3, 0);
        dlocki_event in = new_event(cases[i].event, NOW);
        char owner[DLOCKI_OWNER_LENGTH + 1];
        (void)feed(&lock, DLOCKI_STARTED, NOW);
        memcpy(owner, lock._owner, sizeof owner);
        (void)feed(&lock, DLOCKI_SENT, NOW);
        in.verdict.kind = cases[i].verdict;
        in.verdict.lease_ms = -1;
        assert_int_equal(dlocki_machine(&lock, &in), cases[i].burnt ? UNDO : 0);
        assert_string_equal(lock._owner, owner); /* the undo names the old one */
        randomness[0]++;
        assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
        assert_int_equal(strcmp(lock._owner, owner) != 0, cases[i].burnt);
    }
}

/* An owner for which an undo was sent is done with: whatever comes for it is nobody's business any
 * more, and the next try has another one. The place in line outlives it. */
static void a_new_owner_keeps_the_place_by_its_score(void **state)
{
    static const struct {
        int event;
        int verdict;
    } ends[] = {{DLOCKI_OVERDUE, 0},
                {DLOCKI_BABBLE, 0},
                {DLOCKI_UNCONNECTED, 0},
                {DLOCKI_REPLIED, DLOCKI_DOUBT}};
    (void)state;
    for (size_t i = 0; i < COUNT(ends); i++) {
        dlock_lock lock = line_at(LINE_ASKED);
        dlocki_event in = new_event(ends[i].event, at);
        char owner[DLOCKI_OWNER_LENGTH + 1];
        dlocki_command command;
        memcpy(owner, lock._owner, sizeof owner);
        in.verdict.kind = ends[i].verdict;
        assert_int_equal(dlocki_machine(&lock, &in), UNDO);
        assert_string_equal(lock._owner, owner);
        assert_true(lock._ticket);   /* the undo removes it */
        randomness[0]++;
        assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
        assert_string_not_equal(lock._owner, owner);
        assert_false(lock._ticket);
        command = dlocki_lock_command(&lock, true);
        assert_int_equal(command.kind, DLOCKI_ASK);
        assert_int_equal(command.letter, 'g');
        assert_int_equal(command.score, 1003);
        assert_string_equal(command.owner, lock._owner);
        assert_int_equal(send_ticket(&lock, at + 300, SUBSCRIPTION), 0);
        assert_int_equal(lock._asked_at, at + 300);   /* none was given to it before */
    }
}

/* "Given" to whoever has given up, is not in line, or has it already: nothing. */
static void a_grant_for_nobody_changes_nothing(void **state)
{
    static const enum line_place places[] = {PLAIN_ASKED, PLAIN_RESTING, BURNT_RESTING,
                                             CONFIRM_ASKED};
    (void)state;
    for (size_t i = 0; i < COUNT(places) * 2; i++) {
        dlock_lock lock = line_at(places[i / 2]);
        dlock_lock before = lock;
        assert_int_equal(i % 2 == 0 ? given(&lock, at, at - NOW) : given_blind(&lock, at), 0);
        assert_memory_equal(&lock, &before, sizeof lock);
    }
    for (int place = HELD_IDLE; place < HELD_PLACES; place++) {
        dlock_lock lock = held_at((enum held_place)place);
        dlock_lock before = lock;
        assert_int_equal(given(&lock, at, at - NOW), 0);
        assert_memory_equal(&lock, &before, sizeof lock);
    }
}

/* With a fence the queue gives one, without it gives none; else it is not from our queue. */
static void a_grant_has_a_fence_if_one_was_asked_for(void **state)
{
    static const struct {
        bool no_fence;
        uint64_t fence;
        bool taken;
    } cases[] = {
        {false, 1, true},           {false, 9007199254740991, true},
        {false, 0, false},          {false, 9007199254740992, false},
        {false, UINT64_MAX, false}, {true, 0, true},
        {true, 1, false},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases) * 2; i++) {
        dlock_lock lock = line_at(LINE_RESTING);
        dlocki_event in = new_given(at, at - NOW);
        bool blind = i % 2 == 1;
        unsigned taken = blind ? DROP | SEND : FINISH;
        in.fence = cases[i / 2].fence;
        in.anchor_us = blind ? 0 : in.anchor_us;
        lock._no_fence = cases[i / 2].no_fence;
        assert_int_equal(dlocki_machine(&lock, &in), cases[i / 2].taken ? taken : 0);
        if (cases[i / 2].taken) {
            assert_true(lock._fence == cases[i / 2].fence);
        }
    }
}

/* Asking counts as waiting: the grant can overtake the reply. Then nothing must be left of the ask:
 * either the call is over, or its reply is dropped. */
static void a_grant_may_overtake_the_answer_to_the_ask(void **state)
{
    static const enum line_place places[] = {TICKET_ASKED, LINE_ASKED, LINE_DOUBTFUL};
    (void)state;
    for (size_t i = 0; i < COUNT(places); i++) {
        dlock_lock lock = line_at(places[i]);
        dlocki_command command;
        assert_int_equal(given(&lock, at + 1, at + 1 - NOW), FINISH);
        assert_true(lock._answer);
        lock._verb = DLOCKI_RELEASE;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, at + 2), SEND);
        command = dlocki_lock_command(&lock, true);
        assert_int_equal(command.kind, DLOCKI_GIVE_BACK);
        assert_int_equal(command.letter, 'g');   /* that ask may line up once more */
        assert_int_equal(command.expiry_ms, 10000);
        lock = line_at(places[i]);
        assert_int_equal(given_blind(&lock, at + 1), DROP | SEND);
        assert_true(lock._ticket);
    }
    {
        dlock_lock lock = line_at(LINE_RESTING);   /* no ask is under way: it was popped */
        assert_int_equal(given(&lock, at + 1, at + 1 - NOW), FINISH);
        lock._verb = DLOCKI_RELEASE;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, at + 2), SEND);
        assert_int_equal(dlocki_lock_command(&lock, true).letter, 0);
    }
}

static void without_randomness_no_owner_is_drawn_and_the_call_ends(void **state)
{
    dlock_lock lock = new_acquire(9, 0);
    dlocki_event in = new_event(DLOCKI_STARTED, NOW);
    (void)state;
    in.random = NULL;
    assert_int_equal(dlocki_machine(&lock, &in), FINISH);
    assert_int_equal(lock._why.code, DLOCK_UNREACHABLE);
    assert_string_equal(lock._owner, "");
}

static void a_cut_asks_again_once_without_an_attempt(void **state)
{
    dlock_lock lock = new_acquire(1, 0);
    (void)state;
    (void)feed(&lock, DLOCKI_STARTED, NOW);
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(feed(&lock, DLOCKI_CUT, NOW), SEND);
    assert_int_equal(lock._attempts, 0);
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(feed(&lock, DLOCKI_CUT, NOW), UNDO);
    assert_int_equal(lock._attempts, 1);
    (void)feed(&lock, DLOCKI_TIME, lock._wake_at); /* the next attempt may do so again */
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(feed(&lock, DLOCKI_CUT, NOW), SEND);
    assert_int_equal(feed(&lock, DLOCKI_CUT_UNSENT, NOW), UNDO | FINISH);
}

static void dead_waiters_are_cleared_so_many_times_and_then_nobody_can_tell(void **state)
{
    dlock_lock lock = new_acquire(0, 0);
    int rounds = 0;
    unsigned todo = SEND;
    (void)state;
    (void)feed(&lock, DLOCKI_STARTED, NOW);
    while (todo == SEND) {
        (void)feed(&lock, DLOCKI_SENT, NOW);
        todo = reply(&lock, DLOCKI_AGAIN, NOW, 0);
        rounds++;
    }
    assert_int_equal(rounds, DLOCKI_AGAIN_MAX);
    assert_int_equal(todo, FINISH);
    assert_int_equal(lock._why.code, DLOCK_UNREACHABLE);
}

static void a_script_is_sent_as_text_once_an_attempt(void **state)
{
    dlock_lock lock = new_acquire(2, 0);
    (void)state;
    (void)feed(&lock, DLOCKI_STARTED, NOW);
    assert_false(dlocki_lock_command(&lock, false).whole);
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(reply(&lock, DLOCKI_NOSCRIPT, NOW, 0), SEND);
    assert_true(dlocki_lock_command(&lock, false).whole);
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(reply(&lock, DLOCKI_HELD, NOW, -1), 0);
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
    assert_false(dlocki_lock_command(&lock, false).whole);
}

/* What was not executed may be sent whole, but never behind an undo: then it has another owner. */
static void no_ask_is_repeated_behind_its_undo(void **state)
{
    dlock_lock lock = line_at(LINE_ASKED);
    char owner[DLOCKI_OWNER_LENGTH + 1];
    (void)state;
    memcpy(owner, lock._owner, sizeof owner);
    assert_int_equal(reply(&lock, DLOCKI_NOSCRIPT, at, 0), SEND);
    assert_string_equal(dlocki_lock_command(&lock, true).owner, owner);
    assert_true(dlocki_lock_command(&lock, true).whole);
    assert_int_equal(send_ticket(&lock, at, SUBSCRIPTION), 0);
    assert_int_equal(feed(&lock, DLOCKI_OVERDUE, at + 1000), UNDO);
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at - 1), 0);
    randomness[0]++;
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
    assert_string_not_equal(lock._owner, owner);
    assert_false(dlocki_lock_command(&lock, true).whole);
}

/* -------------------------------------------------------------------------------------- in line */

/* No ticket is written that nobody would be told about. */
static void a_ticket_travels_only_while_the_inbox_is_subscribed(void **state)
{
    dlock_lock lock = new_waiter();
    (void)state;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    assert_int_equal(dlocki_lock_command(&lock, false).letter, 0);
    assert_int_equal(dlocki_lock_command(&lock, true).letter, 'g');
    assert_int_equal(dlocki_lock_command(&lock, true).score, 0);
    lock._score = 7;
    assert_int_equal(dlocki_lock_command(&lock, false).letter, 0);
    assert_int_equal(dlocki_lock_command(&lock, true).score, 7);
    lock._no_fence = true;
    assert_int_equal(dlocki_lock_command(&lock, true).letter, 'n');
    assert_false(dlocki_lock_command(&lock, true).fenced);
    lock._queues = false;
    assert_int_equal(dlocki_lock_command(&lock, true).letter, 0);
    assert_int_equal(dlocki_lock_command(&lock, true).score, 0);
}

/* What was given away between the ask and a (new) subscription was not told to us. */
static void a_subscription_since_the_ask_means_to_ask_again_at_once(void **state)
{
    static const struct {
        bool ticket;
        unsigned asked_under;
        unsigned now; /* when the answer comes */
        unsigned todo;
    } cases[] = {
        {false, 0, 0, LISTEN}, {false, 0, 5, SEND}, {false, 5, 5, SEND}, /* it has none yet */
        {true, 5, 5, 0},       {true, 5, 6, SEND},  {true, 5, 0, LISTEN},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = new_waiter();
        char owner[DLOCKI_OWNER_LENGTH + 1];
        int64_t place = cases[i].ticket ? 4 : 0;
        dlocki_event in = new_event(DLOCKI_SENT, NOW);
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
        memcpy(owner, lock._owner, sizeof owner);
        in.letter = cases[i].ticket ? 'g' : (char)0;
        in.subscription = cases[i].asked_under;
        assert_int_equal(dlocki_machine(&lock, &in), 0);
        assert_int_equal(held(&lock, NOW + 9, 60000, place, cases[i].now), cases[i].todo);
        assert_int_equal(lock._attempts, cases[i].todo == SEND ? 0 : 1);
        assert_string_equal(lock._owner, owner);   /* and what stands in line stays there */
        assert_int_equal(lock._score, place > 0 ? 1004 : 0);
        assert_false(lock._asked || lock._unknown || lock._burnt);
    }
}

/* A subscription wakes whoever rests; that ask is none of the attempts that were wanted, and after
 * its answer the pause goes on. */
static void an_ask_within_a_pause_is_no_attempt(void **state)
{
    dlock_lock lock = new_acquire(2, 0);
    int64_t wake;
    (void)state;
    lock._queues = true;
    lock._retry_delay_ms = 1000;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    assert_int_equal(feed(&lock, DLOCKI_SENT, NOW), 0);
    assert_int_equal(held(&lock, NOW + 10, -1, 0, 0), LISTEN);
    wake = lock._wake_at;
    assert_int_equal(wake, NOW + 1010);
    for (unsigned again = 1; again < 4; again++) {   /* as often as the inbox comes back */
        assert_int_equal(feed(&lock, DLOCKI_SUBSCRIBED, NOW + 20 * again), SEND);
        assert_int_equal(lock._wake_at, DLOCKI_NEVER);
        assert_int_equal(send_ticket(&lock, NOW + 20 * again, again), 0);
        if (again == 3) {
            assert_int_equal(feed(&lock, DLOCKI_CUT, NOW + 63), SEND);
            assert_int_equal(send_ticket(&lock, NOW + 64, again), 0);
        }
        assert_int_equal(held(&lock, NOW + 20 * again + 5, -1, 1, again), 0);
        assert_int_equal(lock._wake_at, wake);
        assert_int_equal(lock._attempts, 1);
    }
    assert_int_equal(feed(&lock, DLOCKI_TIME, wake), SEND);
    assert_int_equal(send_ticket(&lock, wake, 3), 0);
    assert_int_equal(feed(&lock, DLOCKI_CUT, wake + 1), SEND);   /* a new attempt, a new chance */
    assert_int_equal(send_ticket(&lock, wake + 2, 3), 0);
    assert_int_equal(held(&lock, wake + 5, -1, 1, 3), 0);
    assert_int_equal(lock._attempts, 2);
    assert_int_equal(lock._wake_at, wake + 1005);
    assert_int_equal(feed(&lock, DLOCKI_TIME, wake + 1005), SEND);
    assert_int_equal(send_ticket(&lock, wake + 1005, 3), 0);
    assert_int_equal(held(&lock, wake + 1010, -1, 1, 3), UNDO | FINISH);
    assert_int_equal(lock._why.code, DLOCK_BUSY);
}

/* Until the inbox stands again nobody tells: back to polling. But never later than planned. */
static void who_hears_nothing_any_more_polls(void **state)
{
    dlock_lock lock = line_at(LINE_RESTING);
    int64_t wake = lock._wake_at;
    (void)state;
    assert_int_equal(wake, at + 10040);
    assert_int_equal(feed(&lock, DLOCKI_UNSUBSCRIBED, at + 100), 0);
    assert_in_range(lock._wake_at, at + 150, at + 350);
    lock = line_at(LINE_RESTING);
    assert_int_equal(feed(&lock, DLOCKI_UNSUBSCRIBED, wake - 10), 0);
    assert_int_equal(lock._wake_at, wake);
    lock._retry_delay_ms = 3000;
    lock._wake_at = wake;
    assert_int_equal(feed(&lock, DLOCKI_UNSUBSCRIBED, at + 100), 0);
    assert_int_equal(lock._wake_at, at + 3100);
    lock = line_at(LINE_ASKED);   /* who asks waits for the answer */
    assert_int_equal(feed(&lock, DLOCKI_UNSUBSCRIBED, at + 100), 0);
    assert_int_equal(lock._wake_at, DLOCKI_NEVER);
}

/* Without a queue the inbox is nobody's business. */
static void who_does_not_queue_ignores_the_inbox(void **state)
{
    static const int events[] = {DLOCKI_SUBSCRIBED, DLOCKI_INBOX_REFUSED, DLOCKI_TAKEN_FROM,
                                 DLOCKI_GIVEN};
    (void)state;
    for (size_t i = 0; i < COUNT(events) * 2; i++) {
        dlock_lock lock = new_acquire(3, 0);
        int64_t wake;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW), 0);
        if (i % 2 == 1) {
            assert_int_equal(held(&lock, NOW, -1, 0, 0), 0);
        }
        wake = lock._wake_at;
        assert_int_equal(feed(&lock, events[i / 2], NOW + 1), 0);
        assert_int_equal(lock._wake_at, wake);
    }
}

/* ------------------------------------------------------------------------ the dating of a grant */

/* A waiter who asked at NOW + asked, for the first time with this owner, and rests. */
static dlock_lock rests_since(int64_t asked, int64_t expiry_ms)
{
    dlock_lock lock = new_waiter();
    lock._expiry_ms = expiry_ms;
    lock._ask_expiry_ms = expiry_ms;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW + asked), SEND);
    assert_int_equal(send_ticket(&lock, NOW + asked, SUBSCRIPTION), 0);
    assert_int_equal(held(&lock, NOW + asked, -1, 1, SUBSCRIPTION), 0);
    return lock;
}

enum { CONFIRM = -1000000000 };

/* The server's clock said START_US to what was sent at NOW, and `given_us` later that it was given.
 * All instants from NOW on. Of 10000 ms 9898 are promised, and 5000 must be left. */
static const struct {
    int64_t asked;
    int64_t given_us;
    int64_t read;
    int64_t begins; /* CONFIRM: that cannot be told */
} datings[] = {
    /* 1 % and a millisecond early */
    {-50, 1000000, 1000, 989},
    {-50, 0, 0, -1},
    {-50, 99000, 99, 98},
    {-50, 100000, 100, 98},
    {-50, 199000, 199, 197},
    {-50, 200000, 200, 197},
    {-50, 1000000, 4000, 989},
    {-50, 100000000, 100100, 98999},
    /* parts of a millisecond are cut off, on the early side */
    {-50, 999, 5, -1},
    {-50, 1000, 5, 0},
    {-50, 1999, 5, 0},
    {-50, -999, 5, -1},
    {-50, -1000, 5, -2},
    {-50, -1999, 5, -2},
    /* never later than it was read: then the server's clock was set */
    {-50, 1011000, 1000, 1000},
    {-50, 1012000, 1000, CONFIRM},
    {-50, 86400000000, 1000, CONFIRM},
    {-50, INT64_C(9007199254740991) - START_US, 1000, CONFIRM},
    /* a clock that was set back counts more, but nothing was given before it was asked for */
    {-5000, -1000000, 500, -1011},
    {-500, -1000000, 500, -500},
    {-500, -86400000000, 500, -500},
    {0, -86400000000, 500, 0},
    {-4000, -86400000000, 898, -4000},
    {-4000, -86400000000, 899, CONFIRM},
    /* half of the lease must be left */
    {-50, 0, 4897, -1},
    {-50, 0, 4898, CONFIRM},
    {-50, 0, 20000, CONFIRM},
    {-50, 489700000, 489700, 484802},
    {-50, 489800000, 489800, CONFIRM},
    {-50, 600000000, 600000, CONFIRM},
    {-50, 86400000000, 86400000, CONFIRM},
};

static void a_grant_is_dated_by_the_servers_clock_between_two_answers(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(datings); i++) {
        dlock_lock lock = rests_since(datings[i].asked, 10000);
        dlocki_event in = new_given(NOW + datings[i].read, 0);
        unsigned todo;
        in.given_us = START_US + datings[i].given_us;
        todo = dlocki_machine(&lock, &in);
        if (datings[i].begins == CONFIRM) {
            assert_int_equal(todo, DROP | SEND);
            assert_int_equal(lock._state, DLOCKI_UNUSED);
            continue;
        }
        assert_int_equal(todo, FINISH);
        if (lock._valid_until != NOW + datings[i].begins + 9898) {
            fail_msg("row %u: %lld", (unsigned)i, (long long)(lock._valid_until - NOW - 9898));
        }
        assert_int_equal(lock._fence, 78);
        assert_int_equal(lock._held_since, in.now);
        assert_true(lock._lapses_at >= in.now + 10000);
    }
}

/* It may have been given since the first ask that lined up, however often it was asked again. */
static void nothing_was_given_before_the_first_ask_with_a_ticket(void **state)
{
    static const enum line_place places[] = {TICKET_ASKED, LINE_RESTING, LINE_ASKED, LINE_DOUBTFUL};
    (void)state;
    for (size_t i = 0; i < COUNT(places); i++) {
        dlock_lock lock = line_at(places[i]);
        dlocki_event in;
        assert_int_equal(lock._asked_at, NOW + 20);
        lock._expiry_ms = 60000;   /* so that much is left of it */
        in = new_given(at + 10, -1000);
        in.given_us = 2;   /* but newer than the refusal */
        assert_int_equal(dlocki_machine(&lock, &in), FINISH);
        assert_int_equal(lock._valid_until, NOW + 20 + 59398);
    }
}

/* A message that is older than "somebody holds it": an ask was executed since, and has lined up
 * once more, or been granted anew. */
static void a_grant_that_is_older_than_a_refusal_is_asked_about(void **state)
{
    static const struct {
        int64_t refused_us;
        unsigned todo;
    } cases[] = {{0, FINISH},
                 {START_US + 99999, FINISH},
                 {START_US + 100000, DROP | SEND},
                 {START_US + 100001, DROP | SEND},
                 {INT64_MAX, DROP | SEND}};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = rests_since(-50, 10000);
        dlocki_event in = new_held(NOW + 50, -1, 1, SUBSCRIPTION);
        assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
        assert_int_equal(send_ticket(&lock, NOW + 50, SUBSCRIPTION), 0);
        in.verdict.now_us = cases[i].refused_us;
        assert_int_equal(dlocki_machine(&lock, &in), 0);
        assert_int_equal(given(&lock, NOW + 110, 100), cases[i].todo);
        if (cases[i].todo != FINISH) {
            assert_false(lock._confirming);
            assert_true(lock._ticket && lock._unknown);
            assert_int_equal(dlocki_lock_command(&lock, true).kind, DLOCKI_ASK);
            assert_int_equal(dlocki_lock_command(&lock, true).letter, 'g');
        }
    }
}

static void a_grant_without_an_anchor_is_confirmed(void **state)
{
    dlock_lock lock = rests_since(-50, 10000);
    dlocki_event in = new_given(NOW + 1, 1);
    dlocki_command command;
    (void)state;
    in.anchor_us = 0;
    assert_int_equal(dlocki_machine(&lock, &in), DROP | SEND);
    command = dlocki_lock_command(&lock, true);
    assert_int_equal(command.kind, DLOCKI_EXTEND);
    assert_int_equal(command.expiry_ms, 10000);
    assert_string_equal(command.owner, lock._owner);
    assert_int_equal(lock._attempts, 1);   /* that was for the HELD; a grant uses none */
    lock = rests_since(-50, 10000);   /* also where it would look like one of right now */
    in.given_us = 1000;
    assert_int_equal(dlocki_machine(&lock, &in), DROP | SEND);
}

/* Whatever numbers a server sends: nothing overflows, and no more than a lease is promised. */
static void no_clock_whatever_promises_more_than_a_lease(void **state)
{
    static const int64_t clocks[] = {
        1, 2, START_US, INT64_C(9007199254740991), INT64_MAX / 2, INT64_MAX - 1, INT64_MAX};
    static const int64_t instants[] = {0, 1, NOW, INT64_C(1) << 62, INT64_MAX - 20000};
    static const int64_t expiries[] = {3, 4, 99, 1000, 10000, DLOCK_EXPIRY_MAX_MS};
    (void)state;
    for (size_t i = 0; i < COUNT(clocks) * COUNT(clocks) * COUNT(instants) * COUNT(expiries); i++) {
        int64_t expiry = expiries[i % COUNT(expiries)];
        int64_t now = instants[i / COUNT(expiries) % COUNT(instants)];
        size_t pair = i / COUNT(expiries) / COUNT(instants);
        dlock_lock lock = rests_since(now - NOW, expiry);
        dlocki_event in = new_given(dlocki_plus(now, expiry / 3), 0);
        in.anchor_us = clocks[pair % COUNT(clocks)];
        in.given_us = clocks[pair / COUNT(clocks)];
        in.anchor_at = now;
        if (dlocki_machine(&lock, &in) == FINISH) {
            assert_true(lock._valid_until > in.now);
            assert_true(lock._valid_until <= dlocki_plus(in.now, expiry - dlocki_drift_ms(expiry)));
            assert_true(lock._valid_until - in.now >= expiry / 2);
        } else {
            assert_true(lock._unknown);   /* it is asked about */
            assert_int_equal(lock._state, DLOCKI_UNUSED);
        }
    }
}

/* -------------------------------------------------------------------------------- confirming it */

static void a_confirmed_grant_counts_from_the_last_question(void **state)
{
    (void)state;
    for (int again = 0; again < 2; again++) {
        dlock_lock lock = line_at(again ? CONFIRM_AGAIN : CONFIRM_ASKED);
        int32_t attempts = lock._attempts;
        assert_int_equal(flags(&lock, 1, at + 300), FINISH);
        assert_true(lock._answer);
        assert_int_equal(lock._state, DLOCKI_OURS);
        assert_int_equal(lock._valid_until, at + 9898);
        assert_int_equal(lock._fence, 78);
        assert_int_equal(lock._attempts, attempts);
        assert_false(lock._ticket);
    }
}

static void a_confirmation_that_comes_too_late_is_none(void **state)
{
    dlock_lock lock = line_at(CONFIRM_ASKED);
    (void)state;
    assert_int_equal(flags(&lock, 1, at + 9897), FINISH);
    assert_int_equal(lock._valid_until, at + 9898);
    lock = line_at(CONFIRM_ASKED);
    assert_int_equal(flags(&lock, 1, at + 9898), UNDO);   /* it is given back */
    assert_int_equal(lock._state, DLOCKI_UNUSED);
    assert_true(lock._burnt);
}

static void a_confirmation_is_asked_for_whole_after_noscript(void **state)
{
    dlock_lock lock = line_at(CONFIRM_ASKED);
    (void)state;
    assert_false(dlocki_lock_command(&lock, true).whole);
    assert_int_equal(reply(&lock, DLOCKI_NOSCRIPT, at, 0), SEND);
    assert_int_equal(dlocki_lock_command(&lock, true).kind, DLOCKI_EXTEND);
    assert_true(dlocki_lock_command(&lock, true).whole);
    assert_int_equal(feed(&lock, DLOCKI_SENT, at + 50), 0);
    assert_int_equal(flags(&lock, 1, at + 60), FINISH);
    assert_int_equal(lock._valid_until, at + 50 + 9898);
}

/* It has lapsed, or was never given: what may stand of it is undone, then another owner lines up
 * anew, behind everybody, and no attempt was used. */
static void a_grant_that_has_lapsed_lines_up_anew(void **state)
{
    dlock_lock lock = line_at(CONFIRM_ASKED);
    char owner[DLOCKI_OWNER_LENGTH + 1];
    int32_t attempts = lock._attempts;
    dlocki_command command;
    (void)state;
    memcpy(owner, lock._owner, sizeof owner);
    randomness[0]++;
    assert_int_equal(flags(&lock, 0, at + 40), UNDO);
    assert_string_equal(lock._owner, owner);
    assert_false(lock._confirming || lock._unknown || lock._asked);
    assert_true(lock._ticket);
    assert_int_equal(lock._wake_at, at + 40);
    assert_int_equal(feed(&lock, DLOCKI_TIME, at + 40), SEND);
    assert_string_not_equal(lock._owner, owner);
    command = dlocki_lock_command(&lock, true);
    assert_int_equal(command.kind, DLOCKI_ASK);
    assert_int_equal(command.letter, 'g');
    assert_int_equal(command.score, 0);
    assert_int_equal(lock._attempts, attempts);
    assert_int_equal(send_ticket(&lock, at + 50, SUBSCRIPTION), 0);
    assert_int_equal(lock._asked_at, at + 50);
    assert_int_equal(given(&lock, at + 60, -1000), FINISH);
    assert_int_equal(lock._valid_until, at + 50 + 9898);
}

/* Whatever stands in the way of one undo is undone before another owner is drawn: the undo goes by
 * the old one's name. */
static void an_undo_and_a_new_owner_never_come_together(void **state)
{
    dlock_lock lock = line_at(CONFIRM_ASKED);
    char owner[DLOCKI_OWNER_LENGTH + 1];
    (void)state;
    memcpy(owner, lock._owner, sizeof owner);
    lock._ticket = true;
    randomness[0]++;
    assert_int_equal(flags(&lock, 0, at + 40), UNDO);
    assert_string_equal(lock._owner, owner);
    assert_true(lock._ticket);
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
    assert_string_not_equal(lock._owner, owner);
}

/* An ask that is under way may be granted anew, after the grant that was told has lapsed: another
 * ask tells the fence that is true then. */
static void a_grant_beside_an_ask_is_asked_about(void **state)
{
    static const enum line_place places[] = {TICKET_ASKED, LINE_ASKED, LINE_DOUBTFUL};
    (void)state;
    for (size_t i = 0; i < COUNT(places) * 2; i++) {
        dlock_lock lock = line_at(places[i / 2]);
        int64_t score = lock._score;
        char owner[DLOCKI_OWNER_LENGTH + 1];
        dlocki_command command;
        memcpy(owner, lock._owner, sizeof owner);
        assert_int_equal(given_blind(&lock, at), DROP | SEND);
        assert_false(lock._confirming);
        command = dlocki_lock_command(&lock, true);
        assert_int_equal(command.kind, DLOCKI_ASK);
        assert_int_equal(command.letter, 'g');
        assert_int_equal(command.score, score);
        assert_string_equal(command.owner, owner);
        assert_int_equal(send_ticket(&lock, at + 10, SUBSCRIPTION), 0);
        if (i % 2 == 0) {
            assert_int_equal(reply(&lock, DLOCKI_GRANTED, at + 20, 7000), FINISH);
            assert_int_equal(lock._fence, 77);   /* and not what the message said */
            assert_int_equal(lock._valid_until, at + 10 + 7000 - 102);
            assert_false(lock._ticket);
        } else {
            assert_int_equal(held(&lock, at + 20, 60000, 9, SUBSCRIPTION), 0);
            assert_string_equal(lock._owner, owner);
            assert_int_equal(lock._state, DLOCKI_UNUSED);
        }
    }
}

/* ------------------------------------------------------------------------------------- validity */

static void validity_is_expiry_less_the_time_since_the_send_less_drift(void **state)
{
    static const struct {
        int64_t expiry, took, lease, left;
    } cases[] = {
        {10000, 0, 10000, 9898},
        {10000, 500, 10000, 9398},
        {10000, 9897, 10000, 1},
        {10000, 9898, 10000, 0},
        {3, 0, 3, 1},
        {3, 1, 3, 0},
        {99, 0, 99, 97},
        {100, 0, 100, 97},
        {199, 0, 199, 196},
        {200, 0, 200, 196},
        {10000, 0, 400, 298},
        {10000, 100, 400, 198},
        {10000, 0, 102, 0},
        {10000, 0, -1, 9898},
        {10000, 20, 0, 0},
        {DLOCK_EXPIRY_MAX_MS, 5, DLOCK_EXPIRY_MAX_MS,
         DLOCK_EXPIRY_MAX_MS - DLOCK_EXPIRY_MAX_MS / 100 - 2 - 5},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = new_acquire(0, 0);
        int64_t now = NOW + cases[i].took;
        lock._expiry_ms = cases[i].expiry;
        (void)feed(&lock, DLOCKI_STARTED, NOW - 100);
        (void)feed(&lock, DLOCKI_SENT, NOW);
        if (cases[i].left > 0) {
            assert_int_equal(reply(&lock, DLOCKI_GRANTED, now, cases[i].lease), FINISH);
            assert_int_equal(lock._valid_until - now, cases[i].left);
            assert_int_equal(lock._fence, 77);
            assert_true(lock._lapses_at >= now + cases[i].lease);
        } else {
            assert_int_equal(reply(&lock, DLOCKI_GRANTED, now, cases[i].lease), UNDO | FINISH);
            assert_int_equal(lock._why.code, DLOCK_TIMEOUT);
            assert_int_equal(lock._state, DLOCKI_UNUSED);
        }
    }
}

/* Who asks again is told what is left, as of then: no earlier send matters. */
static void what_is_left_of_a_lease_counts_from_the_last_send(void **state)
{
    static const struct {
        int event;
        int verdict;
        int64_t lease;
    } cases[] = {{DLOCKI_CUT, 0, 9700},
                 {DLOCKI_CUT, 0, 10000}, /* the first one was not obeyed */
                 {DLOCKI_CUT_UNSENT, 0, 10000},
                 {DLOCKI_REPLIED, DLOCKI_NOSCRIPT, 10000},
                 {DLOCKI_REPLIED, DLOCKI_AGAIN, 10000}};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = new_acquire(0, 0);
        dlocki_event in = new_event(cases[i].event, NOW + 200);
        in.verdict.kind = cases[i].verdict;
        (void)feed(&lock, DLOCKI_STARTED, NOW);
        (void)feed(&lock, DLOCKI_SENT, NOW);
        assert_int_equal(dlocki_machine(&lock, &in), SEND);
        (void)feed(&lock, DLOCKI_SENT, NOW + 300);
        assert_int_equal(reply(&lock, DLOCKI_GRANTED, NOW + 400, cases[i].lease), FINISH);
        assert_int_equal(lock._valid_until, NOW + 300 + cases[i].lease - 102);
    }
}

static void an_extend_never_shortens_and_counts_from_its_own_send(void **state)
{
    static const struct {
        int64_t expiry, took, until;
        bool answer;
    } cases[] = {{10000, 0, NOW + 9898 + 1000, true},  {10000, 400, NOW + 9898 + 1000, true},
                 {20000, 0, NOW + 1000 + 19798, true}, {100, 0, NOW + 9898, true},
                 {100, 8898, NOW + 9898, false},       {9000, 8897, NOW + 1000 + 8908, true}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = held_lock(DLOCKI_EXTENSION);
        int64_t now = NOW + 1000 + cases[i].took;
        lock._wanted_ms = cases[i].expiry;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW + 900), SEND);
        (void)feed(&lock, DLOCKI_SENT, NOW + 1000);
        assert_true(lock._lapses_at >= NOW + 1000 + cases[i].expiry);
        assert_int_equal(flags(&lock, 1, now), FINISH);
        assert_int_equal(lock._answer, cases[i].answer);
        assert_int_equal(lock._why.code, cases[i].answer ? DLOCK_OK : DLOCK_UNREACHABLE);
        assert_int_equal(lock._valid_until, cases[i].until);
    }
}

static void an_extend_that_is_told_no_is_lost(void **state)
{
    dlock_lock lock = held_lock(DLOCKI_EXTENSION);
    (void)state;
    (void)feed(&lock, DLOCKI_STARTED, NOW);
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(flags(&lock, 0, NOW), FINISH);
    assert_false(lock._answer);
    assert_int_equal(lock._why.code, DLOCK_LOST);
    assert_int_equal(lock._state, DLOCKI_GIVEN_BACK);
}

/* An ask that was under way when the lock was given may come in after it has lapsed: then the
 * server says yes to an extend, and means another lock, of another fence. Or it has lined up. */
static void what_came_of_a_late_ask_is_not_the_lock_that_was_given(void **state)
{
    static const struct {
        bool ticket;
        int64_t flags;
        int64_t read;
        unsigned todo;
        int code;
    } cases[] = {
        {false, 1, 9897, FINISH, DLOCK_OK},
        {false, 1, 9898, FINISH, DLOCK_OK},   /* it never lapsed on the server */
        {false, 0, 100, FINISH, DLOCK_LOST},
        {true, 1, 9897, FINISH, DLOCK_OK},
        {true, 1, 9898, UNDO | FINISH, DLOCK_LOST},
        {true, 0, 100, UNDO | FINISH, DLOCK_LOST},
        {true, 0, 9898, UNDO | FINISH, DLOCK_LOST},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = held_lock(DLOCKI_EXTENSION);
        lock._ticket = cases[i].ticket;
        lock._wanted_ms = 10000;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW + 90), SEND);
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 90), 0);
        assert_int_equal(flags(&lock, cases[i].flags, NOW + cases[i].read), cases[i].todo);
        assert_int_equal(lock._why.code, cases[i].code);
        assert_int_equal(lock._state, cases[i].code == DLOCK_OK ? DLOCKI_OURS : DLOCKI_GIVEN_BACK);
        assert_int_equal(lock._ticket, cases[i].code != DLOCK_OK && cases[i].ticket);
    }
}

/* From the start of a release on the next owner may know before we do. */
static void what_is_being_given_back_is_not_ours_any_more(void **state)
{
    static const int ends[] = {DLOCKI_UNCONNECTED, DLOCKI_BABBLE, DLOCKI_CANCEL};
    (void)state;
    for (size_t i = 0; i < COUNT(ends); i++) {
        dlock_lock lock = held_lock(DLOCKI_RELEASE);
        assert_int_equal(lock._valid_until, NOW + 9898);
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW + 1), SEND);
        assert_int_equal(lock._valid_until, 0);
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 2), 0);
        assert_int_equal(feed(&lock, ends[i], NOW + 3), UNDO | FINISH);
        assert_int_equal(lock._valid_until, 0);
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW + 4), SEND);   /* called again */
        assert_int_equal(lock._valid_until, 0);
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 5), 0);
        assert_int_equal(flags(&lock, 0, NOW + 9897), FINISH);
        assert_true(lock._answer);   /* the first call was obeyed while it was valid */
    }
}

/* A release whose first answer was lost. `now` is when the last answer is read; the validity ends
 * at NOW + 9898. */
static void a_release_is_true_if_it_gave_back(void **state)
{
    static const struct {
        int64_t value;
        int before; /* what happened to a first try; 0 = nothing */
        int64_t now;
        int code;
    } cases[] = {
        {1, 0, NOW + 1, DLOCK_OK},
        {5, 0, NOW + 1, DLOCK_OK},
        {9, 0, NOW + 20000, DLOCK_OK},
        {0, 0, NOW + 1, DLOCK_LOST},
        {0, 0, NOW + 20000, DLOCK_LOST},
        {1, DLOCKI_CUT, NOW + 1, DLOCK_OK},
        {0, DLOCKI_CUT, NOW + 9897, DLOCK_OK},
        {0, DLOCKI_CUT, NOW + 9898, DLOCK_UNREACHABLE},
        {0, DLOCKI_OVERDUE, NOW + 9897, DLOCK_OK},
        {0, DLOCKI_OVERDUE, NOW + 9898, DLOCK_UNREACHABLE},
        {0, DLOCKI_CUT_UNSENT, NOW + 1, DLOCK_LOST},
        {2, 0, NOW + 1, DLOCK_LOST},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = held_lock(DLOCKI_RELEASE);
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
        (void)feed(&lock, DLOCKI_SENT, NOW);
        if (cases[i].before != 0) {
            assert_int_equal(feed(&lock, cases[i].before, NOW), SEND);
            (void)feed(&lock, DLOCKI_SENT, NOW);
        }
        assert_int_equal(flags(&lock, cases[i].value, cases[i].now), FINISH);
        assert_int_equal(lock._answer, cases[i].code == DLOCK_OK);
        assert_int_equal(lock._why.code, cases[i].code);
        assert_int_equal(lock._state, DLOCKI_GIVEN_BACK);
    }
}

/* A release that is owed, called again: the one before may have been obeyed. */
static void an_owed_release_called_again_remembers_the_first(void **state)
{
    (void)state;
    for (int late = 0; late < 2; late++) {
        dlock_lock lock = held_lock(DLOCKI_RELEASE);
        int64_t now = NOW + (late ? 9898 : 9897);
        (void)feed(&lock, DLOCKI_STARTED, NOW);
        assert_int_equal(feed(&lock, DLOCKI_UNCONNECTED, NOW), UNDO | FINISH);
        assert_int_equal(lock._state, DLOCKI_OWED);
        assert_int_equal(feed(&lock, DLOCKI_STARTED, now), SEND);
        (void)feed(&lock, DLOCKI_SENT, now);
        assert_int_equal(flags(&lock, 0, now), FINISH);
        assert_int_equal(lock._why.code, late ? DLOCK_UNREACHABLE : DLOCK_OK);
    }
}

static void a_failed_release_says_when_it_lapses(void **state)
{
    dlock_lock lock = held_lock(DLOCKI_RELEASE);
    (void)state;
    (void)feed(&lock, DLOCKI_STARTED, NOW + 3000);
    assert_int_equal(feed(&lock, DLOCKI_UNCONNECTED, NOW + 4000), UNDO | FINISH);
    assert_non_null(strstr(lock._why.text, " in 6102 ms ")); /* 10000 + drift - 4000 */
    lock = held_lock(DLOCKI_RELEASE);
    (void)feed(&lock, DLOCKI_STARTED, NOW + 90000);
    (void)feed(&lock, DLOCKI_UNCONNECTED, NOW + 90000);
    assert_non_null(strstr(lock._why.text, " in 0 ms "));
}

/* ------------------------------------------------------------------------------------- renewals */

/* At a third of the lease, rounded down to a sixteenth of it, so that those that were acquired one
 * after the other are renewed together. */
static void leases_are_renewed_together_at_a_third(void **state)
{
    static const int64_t expiries[] = {3,   4,    15,    16,    17,
                                       100, 9000, 10000, 30000, DLOCK_EXPIRY_MAX_MS};
    (void)state;
    for (size_t i = 0; i < COUNT(expiries); i++) {
        int64_t expiry = expiries[i];
        int64_t grid = expiry >= 16 ? expiry / 16 : 1;
        for (int64_t offset = 0; offset < 3 * grid; offset += 1 + grid / 7) {
            dlock_lock lock = new_acquire(0, 0);
            int64_t sent = 3 * DLOCK_EXPIRY_MAX_MS + offset;
            lock._expiry_ms = expiry;
            lock._auto_renew = true;
            assert_int_equal(feed(&lock, DLOCKI_STARTED, sent), SEND);
            assert_int_equal(feed(&lock, DLOCKI_SENT, sent), 0);
            assert_int_equal(reply(&lock, DLOCKI_GRANTED, sent, expiry), FINISH);
            assert_int_equal(lock._wake_at % grid, 0);
            assert_true(lock._wake_at <= sent + expiry / 3);
            assert_true(lock._wake_at > sent + expiry / 3 - grid);
            lock._auto_renew = false;
            assert_int_equal(dlocki_renew_at(&lock), DLOCKI_NEVER);
        }
    }
}

/* A longer extend puts the next renewal off; a renewal is never for longer than was acquired. */
static void a_renewal_is_for_the_expiry_as_acquired(void **state)
{
    dlock_lock lock = held_at(HELD_RENEWED);
    (void)state;
    lock._verb = DLOCKI_EXTENSION;
    lock._wanted_ms = 60000;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW + 100), SEND);
    assert_int_equal(dlocki_lock_command(&lock, true).expiry_ms, 60000);
    assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 100), 0);
    assert_int_equal(flags(&lock, 1, NOW + 110), FINISH);
    assert_int_equal(lock._valid_until, NOW + 100 + 59398);
    assert_in_range(lock._wake_at, NOW + 59398 - 9898 + 3333 - 625,
                    NOW + 100 + 59398 - 9898 + 3333);
    lock._verb = DLOCKI_NO_VERB;
    at = lock._wake_at;
    assert_int_equal(feed(&lock, DLOCKI_TIME, at), SEND);
    assert_int_equal(dlocki_lock_command(&lock, true).expiry_ms, 10000);
    assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    assert_int_equal(flags(&lock, 1, at + 10), FINISH);
    assert_int_equal(lock._valid_until, at + 9898);
}

/* The extend of a release that was begun, or of a caller, takes the place of a renewal. */
static void a_callers_verb_takes_the_place_of_a_renewal(void **state)
{
    (void)state;
    for (int place = HELD_RENEWED; place < HELD_PLACES; place++) {
        dlock_lock lock = held_at((enum held_place)place);
        lock._verb = DLOCKI_RELEASE;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, at + 1), SEND);
        assert_int_equal(dlocki_lock_command(&lock, true).kind, DLOCKI_GIVE_BACK);
        assert_false(dlocki_lock_command(&lock, true).whole);
        assert_int_equal(lock._wake_at, DLOCKI_NEVER);   /* and no renewal any more */
        assert_int_equal(feed(&lock, DLOCKI_SENT, at + 2), 0);
        assert_int_equal(feed(&lock, DLOCKI_TIME, at + 1000), 0);
        assert_int_equal(flags(&lock, 0, at + 1001), FINISH);
        assert_int_equal(lock._why.code, DLOCK_LOST);   /* no release was sent before this one */
        lock = held_at((enum held_place)place);
        lock._verb = DLOCKI_EXTENSION;
        lock._wanted_ms = 10000;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, at + 1), SEND);
        assert_int_equal(feed(&lock, DLOCKI_SENT, at + 2), 0);
        assert_int_equal(feed(&lock, DLOCKI_CUT, at + 3), SEND);   /* it has its own second try */
        assert_int_equal(feed(&lock, DLOCKI_SENT, at + 4), 0);
        assert_int_equal(flags(&lock, 1, at + 5), FINISH);
        assert_true(lock._answer);
        assert_int_equal(lock._valid_until, at + 4 + 9898);
        assert_in_range(lock._wake_at, at + 4 + 3333 - 625, at + 4 + 3333);
    }
}

/* After an extend that nobody answered the next renewal is due as if it had not been. */
static void a_failed_extend_leaves_the_renewals_as_they_were(void **state)
{
    dlock_lock lock = held_at(HELD_RENEWED);
    (void)state;
    lock._verb = DLOCKI_EXTENSION;
    lock._wanted_ms = 10000;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW + 1), SEND);
    assert_int_equal(feed(&lock, DLOCKI_UNCONNECTED, NOW + 1), FINISH);
    assert_false(lock._answer);
    assert_int_equal(lock._state, DLOCKI_OURS);
    assert_int_equal(lock._wake_at, RENEW_AT);
}

static void renewals_end_with_max_hold(void **state)
{
    static const struct {
        int64_t max_hold;
        int64_t wake; /* after the grant */
    } cases[] = {
        {0, RENEW_AT},    {1, DLOCKI_NEVER}, {3125, DLOCKI_NEVER},
        {3126, RENEW_AT}, {10000, RENEW_AT}, {INT64_MAX, RENEW_AT},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = new_acquire(0, 0);
        lock._auto_renew = true;
        lock._max_hold_ms = cases[i].max_hold;
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
        assert_int_equal(feed(&lock, DLOCKI_SENT, NOW), 0);
        assert_int_equal(reply(&lock, DLOCKI_GRANTED, NOW, 10000), FINISH);
        assert_int_equal(lock._wake_at, cases[i].wake);
        assert_int_equal(lock._valid_until, NOW + 9898);   /* it is ours all the same */
    }
}

/* One that rests between two tries is not begun again behind the end. */
static void no_renewal_is_tried_again_behind_max_hold(void **state)
{
    dlock_lock lock = held_at(RENEWAL_RESTING);
    int64_t wake = lock._wake_at;
    (void)state;
    lock._hold_until = wake;
    assert_int_equal(feed(&lock, DLOCKI_TIME, wake), 0);
    assert_int_equal(lock._wake_at, DLOCKI_NEVER);
    assert_int_equal(feed(&lock, DLOCKI_TIME, NOW + 9898), DROP | UNDO | LOSE);
    lock = held_at(RENEWAL_RESTING);
    lock._hold_until = wake + 1;
    assert_int_equal(feed(&lock, DLOCKI_TIME, wake), SEND);
}

/* From the first failure to the end of the validity: every 250 ms, or tenth of a short lease. */
static void a_renewal_without_an_answer_is_tried_again_until_the_validity_ends(void **state)
{
    dlock_lock lock = held_at(RENEWAL_SENT);
    int64_t now = at;
    int tries = 0;
    int events = 0;
    unsigned todo = 0;
    (void)state;
    while (todo != (DROP | UNDO | LOSE)) {
        if (todo == SEND) {
            tries++;
            assert_int_equal(feed(&lock, DLOCKI_SENT, now), 0);
            todo = feed(&lock, tries % 3 == 0 ? DLOCKI_BABBLE : DLOCKI_UNCONNECTED, now);
            assert_int_equal(todo, 0);
        } else {
            now = tries == 0 ? now : dlocki_least(lock._wake_at, lock._valid_until);
            todo = tries == 0 ? feed(&lock, DLOCKI_OVERDUE, now) : feed(&lock, DLOCKI_TIME, now);
        }
        assert_true(++events < 1000);
    }
    assert_int_equal(now, NOW + 9898);
    assert_in_range(tries, 6700 / 250, 6800 / 250 + 1);
    assert_int_equal(lock._loss, DLOCKI_EXPIRED);
    lock = held_at(RENEWAL_SENT);
    lock._expiry_ms = 100;
    assert_int_equal(feed(&lock, DLOCKI_BABBLE, at), 0);
    assert_int_equal(lock._wake_at, at + 11);
}

/* What was sent and not answered may be obeyed: the lease may end later than the validity. */
static void an_extend_on_its_way_lets_the_lease_lapse_later(void **state)
{
    dlock_lock lock = held_at(RENEWAL_UNSENT);
    (void)state;
    assert_int_equal(lock._lapses_at, NOW + 10102);
    assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    assert_int_equal(lock._lapses_at, at + 2000 + 10102);
    assert_int_equal(lock._valid_until, NOW + 9898);
    lock._verb = DLOCKI_EXTENSION;
    lock._wanted_ms = 100;   /* a shorter one changes nothing */
    assert_int_equal(feed(&lock, DLOCKI_STARTED, at), SEND);
    assert_int_equal(feed(&lock, DLOCKI_SENT, at), 0);
    assert_int_equal(lock._lapses_at, at + 2000 + 10102);
}

/* Taken by an operator: nothing is left to be given back. Expired: there may be. */
static void what_was_lost_is_given_back_only_if_it_may_stand(void **state)
{
    dlock_lock lock = held_at(HELD_RENEWED);
    (void)state;
    assert_int_equal(feed(&lock, DLOCKI_TAKEN_FROM, NOW + 1), DROP | LOSE);
    assert_int_equal(lock._loss, DLOCKI_TAKEN_AWAY);
    lock = held_at(HELD_RENEWED);
    lock._ticket = true;   /* of an ask that was under way when it was given */
    assert_int_equal(feed(&lock, DLOCKI_TAKEN_FROM, NOW + 1), DROP | UNDO | LOSE);
    lock = held_at(RENEWAL_SENT);
    lock._ticket = true;
    assert_int_equal(flags(&lock, 0, at), DROP | UNDO | LOSE);
    assert_int_equal(lock._loss, DLOCKI_GONE);
    lock = held_at(HELD_RENEWED);
    assert_int_equal(feed(&lock, DLOCKI_TIME, NOW + 9897), SEND);   /* a loop that was blocked */
    lock = held_at(HELD_RENEWED);
    assert_int_equal(feed(&lock, DLOCKI_TIME, NOW + 9898), DROP | UNDO | LOSE);
    assert_int_equal(lock._loss, DLOCKI_EXPIRED);
    lock = held_at(HELD_RENEWED);
    lock._degraded = true;
    assert_int_equal(feed(&lock, DLOCKI_TIME, NOW + 9898), DROP | LOSE);
}

/* Nothing stands on a server for it, so that nothing is sent. */
static void a_degraded_lock_is_renewed_and_released_without_a_word(void **state)
{
    dlock_lock lock = new_acquire(0, 0);
    int64_t now;
    (void)state;
    lock._fail_open = true;
    lock._auto_renew = true;
    lock._max_hold_ms = 8000;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
    assert_int_equal(feed(&lock, DLOCKI_UNCONNECTED, NOW), FINISH);
    assert_true(lock._answer && lock._degraded);
    assert_int_equal(lock._wake_at, RENEW_AT);
    lock._verb = DLOCKI_NO_VERB;
    now = RENEW_AT;
    assert_int_equal(feed(&lock, DLOCKI_TIME, now), 0);
    assert_int_equal(lock._valid_until, now + 9898);
    assert_in_range(lock._wake_at, now + 3333 - 625, now + 3333);
    now = lock._wake_at;
    assert_int_equal(feed(&lock, DLOCKI_TIME, now), 0);
    assert_int_equal(lock._valid_until, now + 9898);
    assert_int_equal(lock._wake_at, DLOCKI_NEVER);   /* max_hold_ms ends it, too */
    lock._verb = DLOCKI_EXTENSION;
    lock._wanted_ms = 20000;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, now + 5), FINISH);
    assert_true(lock._answer);
    assert_int_equal(lock._valid_until, now + 5 + 19798);
    lock._verb = DLOCKI_RELEASE;
    assert_int_equal(feed(&lock, DLOCKI_STARTED, now + 6), FINISH);
    assert_true(lock._answer);
    assert_int_equal(lock._state, DLOCKI_GIVEN_BACK);
}

/* ---------------------------------------------------------------------------- pauses and bounds */

/* The shortest or longest pause that chance can bring; lease -1: not told, or without end. */
static int64_t pause_with(const dlock_lock *lock, uint32_t first, uint32_t second, int failures,
                          dlocki_event *in)
{
    unsigned char bytes[8];
    memcpy(bytes, &first, 4);
    memcpy(bytes + 4, &second, 4);
    in->random = bytes;
    in->failures = failures;
    return dlocki_pause_ms(lock, in);
}

static void pauses_keep_their_bounds(void **state)
{
    static const struct {
        int32_t delay, jitter;
        int failures;
        int64_t lease;
        int64_t least, most;
    } cases[] = {
        {0, 0, 0, -1, 50, 250},
        {0, 0, 1, -1, 50, 250},
        {0, 0, 2, -1, 100, 500},
        {0, 0, 3, -1, 200, 1000},
        {0, 0, 4, -1, 400, 2000},
        {0, 0, 30, -1, 400, 2000},
        {0, 70, 0, -1, 50, 320},
        {100, 0, 0, -1, 100, 100},
        {100, 50, 0, -1, 100, 150},
        {100, 50, 9, -1, 100, 150},
        {1, 0, 0, -1, 1, 1},
        {0, 0, 0, 10000, 50, 250},
        {0, 0, 0, 100, 50, 101},
        {0, 0, 0, 10, 11, 11},
        {0, 0, 0, 0, 1, 1},
        {5000, 1000, 0, 700, 701, 701},
        {INT32_MAX, INT32_MAX, 0, -1, INT32_MAX, INT64_C(2) * INT32_MAX},
        {INT32_MAX, INT32_MAX, 0, INT64_MAX, INT32_MAX, INT64_C(2) * INT32_MAX},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = new_acquire(1, 0);
        dlocki_event in;
        int64_t least = INT64_MAX;
        int64_t most = 0;
        lock._retry_delay_ms = cases[i].delay;
        lock._retry_jitter_ms = cases[i].jitter;
        for (uint32_t j = 0; j < 15000; j++) {
            dlocki_event in = new_held(NOW, cases[i].lease, 0, 0);
            int64_t pause = pause_with(&lock, j, j, cases[i].failures, &in);
            assert_in_range(pause, cases[i].least, cases[i].most);
            least = dlocki_least(least, pause);
            most = dlocki_most(most, pause);
        }
        in = new_held(NOW, cases[i].lease, 0, 0);
        most = dlocki_most(most, pause_with(&lock, UINT32_MAX, INT32_MAX, cases[i].failures, &in));
        assert_int_equal(least, cases[i].least);
        assert_int_equal(most, cases[i].most);
    }
}

/* Who stands in line and is bounded by time alone rests until the holder's lease must have ended,
 * at most for his own, or half a minute: R. Each place behind the first comes 20 ms later, so that
 * a holder who dies does not wake them all at once. */
static void who_stands_in_line_rests_for_r_and_its_stagger(void **state)
{
    static const struct {
        int64_t expiry, lease, place, pause;
    } cases[] = {
        {10000, 60000, 1, 10000},
        {10000, -1, 1, 10000},
        {60000, -1, 1, 30000},
        {60000, 90000, 1, 30000},
        {60000, 12000, 1, 12001},
        {10000, 9999, 1, 10000},
        {10000, 9998, 1, 9999},
        {10000, 10000, 1, 10000},
        {10000, 0, 1, 1},
        {10000, 700, 1, 701},
        {10000, 60000, 2, 10020},
        {10000, 60000, 11, 10200},
        {10000, 700, 2, 721},
        {10000, 700, 11, 901},
        {10000, 0, 11, 201},
        {10000, 60000, 1501, 40000},
        {10000, 60000, 1502, 40000},
        {10000, 60000, 1000000, 40000},
        {10000, 60000, INT64_MAX, 40000},
        {60000, INT64_MAX, INT64_MAX, 60000},
        {3, 0, INT64_MAX, 30001},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = new_waiter();
        dlocki_event in = new_held(NOW, cases[i].lease, cases[i].place, SUBSCRIPTION);
        lock._expiry_ms = cases[i].expiry;
        lock._retry_jitter_ms = 1000;   /* is of a pace of one's own */
        assert_int_equal(dlocki_pause_ms(&lock, &in), cases[i].pause);
    }
}

/* With a pace of one's own, where attempts are counted, while the holder is of another library, and
 * while nobody would tell, it is polled. */
static void who_would_not_be_told_in_line_polls(void **state)
{
    static const struct {
        int32_t count, delay, jitter;
        bool foreign;
        int64_t place;
        unsigned subscription;
        int64_t least, most;
    } cases[] = {
        {0, 300, 0, false, 1, SUBSCRIPTION, 300, 300},
        {0, 300, 50, false, 1, SUBSCRIPTION, 300, 350},
        {0, 30000, 0, false, 3, SUBSCRIPTION, 30000, 30000},
        {3, 0, 0, false, 1, SUBSCRIPTION, 50, 250},
        {DLOCK_FOREVER, 0, 0, false, 1, SUBSCRIPTION, 10000, 10000},
        {0, 0, 0, true, 1, SUBSCRIPTION, 50, 250},
        {0, 0, 100, true, 1, SUBSCRIPTION, 50, 350},
        {0, 0, 0, true, 3, SUBSCRIPTION, 90, 290},   /* one after the other */
        {0, 300, 0, true, 3, SUBSCRIPTION, 300, 300},
        {0, 0, 0, false, 1, 0, 50, 250},
        {0, 0, 0, false, 0, SUBSCRIPTION, 50, 250},
        {0, 0, 0, true, 0, 0, 50, 250},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = new_waiter();
        dlocki_event in = new_held(NOW, 60000, cases[i].place, cases[i].subscription);
        int64_t least = INT64_MAX;
        int64_t most = 0;
        lock._retry_count = cases[i].count;
        lock._retry_delay_ms = cases[i].delay;
        lock._retry_jitter_ms = cases[i].jitter;
        in.verdict.foreign = cases[i].foreign;
        for (uint32_t j = 0; j < 3000; j++) {
            int64_t pause = pause_with(&lock, j, j, 0, &in);
            least = dlocki_least(least, pause);
            most = dlocki_most(most, pause);
        }
        most = dlocki_most(most, pause_with(&lock, 200, (uint32_t)cases[i].jitter, 0, &in));
        assert_int_equal(least, cases[i].least);
        assert_int_equal(most, cases[i].most);
    }
}

/* An attempt that ended otherwise says nothing of a holder's lease or of our place. */
static void only_held_tells_how_long(void **state)
{
    static const int verdicts[] = {DLOCKI_GRANTED, DLOCKI_AGAIN, DLOCKI_LATER, DLOCKI_DOUBT,
                                   DLOCKI_NOSCRIPT};
    (void)state;
    for (size_t i = 0; i < COUNT(verdicts) + 1; i++) {
        dlock_lock lock = new_waiter();
        dlocki_event in = new_held(NOW, 1, 7, SUBSCRIPTION);
        in.kind = i < COUNT(verdicts) ? DLOCKI_REPLIED : DLOCKI_OVERDUE;
        in.verdict.kind = i < COUNT(verdicts) ? verdicts[i] : DLOCKI_HELD;
        assert_in_range(dlocki_pause_ms(&lock, &in), 50, 250);
    }
}

/* How many attempts, and what ends them? Each is told HELD at once; pauses are 100 ms. Whoever
 * stands in line asks once more, at the beginning, for the ticket. */
static void attempts_are_bounded_by_count_by_time_or_by_both(void **state)
{
    static const struct {
        int32_t count;
        int64_t wait;
        int asks; /* -1: goes on for ever */
        int code;
    } cases[] = {
        {0, 0, 1, DLOCK_BUSY},
        {1, 0, 2, DLOCK_BUSY},
        {3, 0, 4, DLOCK_BUSY},
        {0, 350, 4, DLOCK_TIMEOUT},
        {3, 250, 3, DLOCK_TIMEOUT},
        {3, 301, 4, DLOCK_BUSY},
        {3, 100000, 4, DLOCK_BUSY},
        {DLOCK_FOREVER, 0, -1, 0},
        {0, DLOCK_FOREVER, -1, 0},
        {DLOCK_FOREVER, DLOCK_FOREVER, -1, 0},
        {DLOCK_FOREVER, 350, 4, DLOCK_TIMEOUT},
        {3, DLOCK_FOREVER, 4, DLOCK_BUSY},
        {0, INT64_MAX, -1, 0},
        {INT32_MAX, INT64_MAX, -1, 0},
    };
    (void)state;
    for (size_t i = 0; i < 2 * COUNT(cases); i++) {
        const int64_t wait = cases[i / 2].wait;
        dlock_lock lock = new_acquire(cases[i / 2].count, wait);
        int64_t now = NOW;
        unsigned todo = feed(&lock, DLOCKI_STARTED, now);
        unsigned subscription = 0;
        int asks = 0;
        lock._queues = i % 2 == 1 && (cases[i / 2].count != 0 || wait != 0);
        lock._retry_delay_ms = 100;
        while ((todo & FINISH) == 0 && asks < 1000) {
            if (todo == SEND) {
                asks++;
                (void)(subscription != 0 ? send_ticket(&lock, now, subscription)
                                         : feed(&lock, DLOCKI_SENT, now));
                todo = held(&lock, now, -1, subscription != 0, subscription);
            } else if (todo == LISTEN) {
                subscription = SUBSCRIPTION;
                todo = feed(&lock, DLOCKI_SUBSCRIBED, now);
                asks--;   /* that one is no attempt */
            } else {
                now = dlocki_least(lock._wake_at, lock._deadline);
                todo = feed(&lock, DLOCKI_TIME, now);
            }
        }
        assert_int_equal(asks, cases[i / 2].asks < 0 ? 1000 : cases[i / 2].asks);
        if (cases[i / 2].asks >= 0) {
            assert_int_equal(todo, lock._queues ? UNDO | FINISH : FINISH);
            assert_int_equal(lock._why.code, cases[i / 2].code);
            assert_true(wait <= 0 || now <= NOW + wait);
        }
    }
}

/* One attempt is bounded as an extend is: by the time for a connection and an answer. */
static void one_attempt_ends_within_the_bound_of_a_command(void **state)
{
    static const struct {
        int32_t count;
        int64_t wait;
        int64_t deadline;
    } cases[] = {
        {0, 0, NOW + 2000},
        {1, 0, DLOCKI_NEVER},
        {DLOCK_FOREVER, 0, DLOCKI_NEVER},
        {0, 300, NOW + 300},
        {0, 90000, NOW + 90000},
        {3, 300, NOW + 300},
        {0, DLOCK_FOREVER, DLOCKI_NEVER},
        {0, INT64_MAX, DLOCKI_NEVER},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        dlock_lock lock = new_acquire(cases[i].count, cases[i].wait);
        assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
        assert_int_equal(lock._deadline, cases[i].deadline);
        if (i == 0) {
            assert_int_equal(feed(&lock, DLOCKI_SENT, NOW + 1500), 0);
            assert_int_equal(feed(&lock, DLOCKI_TIME, NOW + 1999), 0);
            assert_int_equal(feed(&lock, DLOCKI_TIME, NOW + 2000), UNDO | FINISH);
            assert_int_equal(lock._why.code, DLOCK_UNREACHABLE);
            assert_non_null(strstr(lock._why.text, "2000 ms"));
        }
    }
}

static void a_count_of_attempts_does_not_overflow(void **state)
{
    dlock_lock lock = new_acquire(DLOCK_FOREVER, 0);
    (void)state;
    (void)feed(&lock, DLOCKI_STARTED, NOW);
    lock._attempts = INT32_MAX;
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(reply(&lock, DLOCKI_HELD, NOW, -1), 0);
    assert_int_equal(lock._attempts, INT32_MAX);
}

/* The last word decides: "somebody holds it" and "nobody could tell" are never confused. */
static void busy_timeout_and_unreachable_are_what_was_last_heard(void **state)
{
    static const struct {
        int first, second; /* verdicts; 0 = no reply in time */
        int by_count;
        int by_time;
    } cases[] = {
        {DLOCKI_HELD, DLOCKI_HELD, DLOCK_BUSY, DLOCK_TIMEOUT},
        {DLOCKI_LATER, DLOCKI_HELD, DLOCK_BUSY, DLOCK_TIMEOUT},
        {0, DLOCKI_HELD, DLOCK_BUSY, DLOCK_TIMEOUT},
        {DLOCKI_HELD, DLOCKI_LATER, DLOCK_UNREACHABLE, DLOCK_UNREACHABLE},
        {DLOCKI_HELD, DLOCKI_DOUBT, DLOCK_UNREACHABLE, DLOCK_UNREACHABLE},
        {DLOCKI_HELD, 0, DLOCK_UNREACHABLE, DLOCK_UNREACHABLE},
        {0, 0, DLOCK_UNREACHABLE, DLOCK_UNREACHABLE},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int by_time = 0; by_time < 2; by_time++) {
            dlock_lock lock = new_acquire(by_time ? 0 : 1, by_time ? 1000 : 0);
            unsigned todo = 0;
            (void)feed(&lock, DLOCKI_STARTED, NOW);
            for (int j = 0; j < 2; j++) {
                int verdict = j == 0 ? cases[i].first : cases[i].second;
                (void)feed(&lock, DLOCKI_SENT, NOW);
                todo = verdict == 0 ? feed(&lock, DLOCKI_OVERDUE, NOW)
                                    : reply(&lock, verdict, NOW, -1);
                if (j == 0) {
                    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
                }
            }
            if (by_time) {
                todo = feed(&lock, DLOCKI_TIME, NOW + 1000);
            }
            assert_true((todo & FINISH) != 0);
            assert_int_equal(lock._why.code, by_time ? cases[i].by_time : cases[i].by_count);
        }
    }
}

static void fail_open_turns_unreachable_into_a_degraded_lock_and_nothing_else(void **state)
{
    static const struct {
        int event;
        int verdict;
        unsigned todo;
        bool degraded;
    } cases[] = {{DLOCKI_OVERDUE, 0, UNDO | FINISH, true},
                 {DLOCKI_UNCONNECTED, 0, UNDO | FINISH, true},
                 {DLOCKI_REPLIED, DLOCKI_LATER, FINISH, true},
                 {DLOCKI_REPLIED, DLOCKI_DOUBT, UNDO | FINISH, true},
                 {DLOCKI_REPLIED, DLOCKI_HELD, FINISH, false},
                 {DLOCKI_REPLIED, DLOCKI_REFUSAL, FINISH, false},
                 {DLOCKI_BABBLE, 0, UNDO | FINISH, false},
                 {DLOCKI_CANCEL, 0, UNDO | FINISH, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = new_acquire(0, 0);
        dlocki_event in = new_event(cases[i].event, NOW + 300);
        lock._fail_open = true;
        in.verdict.kind = cases[i].verdict;
        (void)feed(&lock, DLOCKI_STARTED, NOW);
        (void)feed(&lock, DLOCKI_SENT, NOW);
        assert_int_equal(dlocki_machine(&lock, &in), cases[i].todo);
        assert_int_equal(lock._answer, cases[i].degraded);
        assert_int_equal(lock._degraded, cases[i].degraded);
        if (cases[i].degraded) {
            assert_int_equal(lock._state, DLOCKI_OURS);
            assert_int_equal(lock._valid_until, NOW + 300 + 9898);
            assert_int_equal(lock._fence, 0);
            assert_int_equal(lock._why.code, DLOCK_OK);
        }
    }
}

/* The place in line is given up, and what may have come of the ask. */
static void who_goes_on_without_a_lock_leaves_the_line(void **state)
{
    dlock_lock lock = line_at(LINE_ASKED);
    (void)state;
    lock._fail_open = true;
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._deadline), UNDO | FINISH);
    assert_true(lock._answer && lock._degraded);
    lock = line_at(LINE_RESTING);   /* somebody holds it: no */
    lock._fail_open = true;
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._deadline), UNDO | FINISH);
    assert_false(lock._answer || lock._degraded);
    assert_int_equal(lock._why.code, DLOCK_TIMEOUT);
}

/* ------------------------------------------------------------------------------------- commands */

static void a_plain_set_is_for_one_attempt_without_a_fence_and_without_doubt(void **state)
{
    dlock_lock lock = new_acquire(0, 0);
    (void)state;
    assert_int_equal(dlocki_lock_command(&lock, false).kind, DLOCKI_ASK);
    assert_true(dlocki_lock_command(&lock, false).fenced);
    lock._no_fence = true;
    assert_int_equal(dlocki_lock_command(&lock, false).kind, DLOCKI_SET);
    lock._unknown = true;
    assert_int_equal(dlocki_lock_command(&lock, false).kind, DLOCKI_ASK);
    assert_false(dlocki_lock_command(&lock, false).fenced);
    lock = new_acquire(1, 0);
    lock._no_fence = true;
    assert_int_equal(dlocki_lock_command(&lock, false).kind, DLOCKI_ASK);
    lock = new_acquire(0, 1);
    lock._no_fence = true;
    assert_int_equal(dlocki_lock_command(&lock, false).kind, DLOCKI_ASK);
    lock._queues = true;   /* so that it does not barge past those who wait */
    assert_int_equal(dlocki_lock_command(&lock, true).kind, DLOCKI_ASK);
    assert_int_equal(dlocki_lock_command(&lock, true).letter, 'n');
    assert_false(dlocki_lock_command(&lock, true).fenced);
    lock._verb = DLOCKI_EXTENSION;
    assert_int_equal(dlocki_lock_command(&lock, false).kind, DLOCKI_EXTEND);
    lock._verb = DLOCKI_RENEWAL;
    assert_int_equal(dlocki_lock_command(&lock, true).kind, DLOCKI_EXTEND);
    assert_int_equal(dlocki_lock_command(&lock, true).letter, 0);
    lock._verb = DLOCKI_RELEASE;
    assert_int_equal(dlocki_lock_command(&lock, false).kind, DLOCKI_GIVE_BACK);
    assert_int_equal(dlocki_lock_command(&lock, true).letter, 0);
}

/* The acquire script removes the ticket that it was told of; another one may stand. */
static void a_grant_without_the_ticket_leaves_it_standing(void **state)
{
    (void)state;
    for (int told = 0; told < 2; told++) {
        dlock_lock lock = line_at(LINE_RESTING);
        assert_int_equal(feed(&lock, DLOCKI_UNSUBSCRIBED, at), 0);
        at = lock._wake_at;
        assert_int_equal(feed(&lock, DLOCKI_TIME, at), SEND);
        assert_int_equal(told ? send_ticket(&lock, at, 9) : feed(&lock, DLOCKI_SENT, at), 0);
        assert_int_equal(reply(&lock, DLOCKI_GRANTED, at, 10000), FINISH);
        assert_int_equal(lock._ticket, !told);
        lock._verb = DLOCKI_RELEASE;
        assert_int_equal(dlocki_lock_command(&lock, true).letter, told ? 0 : 'g');
    }
}

/* It goes by the ticket's letter and expiry, whatever an extend asked for since. */
static void a_release_takes_the_ticket_that_may_stand(void **state)
{
    dlock_lock lock = held_lock(DLOCKI_RELEASE);
    (void)state;
    lock._ticket = true;
    lock._ask_expiry_ms = 77777;
    for (int no_fence = 0; no_fence < 2; no_fence++) {
        for (int subscribed = 0; subscribed < 2; subscribed++) {
            dlocki_command command;
            lock._no_fence = no_fence != 0;
            command = dlocki_lock_command(&lock, subscribed != 0);
            assert_int_equal(command.kind, DLOCKI_GIVE_BACK);
            assert_int_equal(command.letter, no_fence ? 'n' : 'g');
            assert_int_equal(command.expiry_ms, 10000);
        }
    }
    lock._ticket = false;
    assert_int_equal(dlocki_lock_command(&lock, true).letter, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_acquire_meets_every_event_in_every_state),
        cmocka_unit_test(a_wait_that_ends_in_an_unanswered_ask_is_unreachable),
        cmocka_unit_test(a_resting_acquire_wakes_ends_or_is_cancelled),
        cmocka_unit_test(the_other_verbs_meet_every_event_in_every_state),
        cmocka_unit_test(a_question_about_a_key_is_answered_by_what_stands_there),
        cmocka_unit_test(who_stands_in_line_meets_every_event_in_every_state),
        cmocka_unit_test(what_is_held_meets_every_event_in_every_state),
        cmocka_unit_test(an_owner_is_the_factorys_half_and_a_random_half),
        cmocka_unit_test(an_owner_is_burnt_by_its_undo_and_by_nothing_else),
        cmocka_unit_test(a_new_owner_keeps_the_place_by_its_score),
        cmocka_unit_test(a_grant_for_nobody_changes_nothing),
        cmocka_unit_test(a_grant_has_a_fence_if_one_was_asked_for),
        cmocka_unit_test(a_grant_may_overtake_the_answer_to_the_ask),
        cmocka_unit_test(without_randomness_no_owner_is_drawn_and_the_call_ends),
        cmocka_unit_test(a_cut_asks_again_once_without_an_attempt),
        cmocka_unit_test(dead_waiters_are_cleared_so_many_times_and_then_nobody_can_tell),
        cmocka_unit_test(a_script_is_sent_as_text_once_an_attempt),
        cmocka_unit_test(no_ask_is_repeated_behind_its_undo),
        cmocka_unit_test(a_ticket_travels_only_while_the_inbox_is_subscribed),
        cmocka_unit_test(a_subscription_since_the_ask_means_to_ask_again_at_once),
        cmocka_unit_test(an_ask_within_a_pause_is_no_attempt),
        cmocka_unit_test(who_hears_nothing_any_more_polls),
        cmocka_unit_test(who_does_not_queue_ignores_the_inbox),
        cmocka_unit_test(a_grant_is_dated_by_the_servers_clock_between_two_answers),
        cmocka_unit_test(nothing_was_given_before_the_first_ask_with_a_ticket),
        cmocka_unit_test(a_grant_that_is_older_than_a_refusal_is_asked_about),
        cmocka_unit_test(a_grant_without_an_anchor_is_confirmed),
        cmocka_unit_test(no_clock_whatever_promises_more_than_a_lease),
        cmocka_unit_test(a_confirmed_grant_counts_from_the_last_question),
        cmocka_unit_test(a_confirmation_that_comes_too_late_is_none),
        cmocka_unit_test(a_confirmation_is_asked_for_whole_after_noscript),
        cmocka_unit_test(a_grant_that_has_lapsed_lines_up_anew),
        cmocka_unit_test(an_undo_and_a_new_owner_never_come_together),
        cmocka_unit_test(a_grant_beside_an_ask_is_asked_about),
        cmocka_unit_test(validity_is_expiry_less_the_time_since_the_send_less_drift),
        cmocka_unit_test(what_is_left_of_a_lease_counts_from_the_last_send),
        cmocka_unit_test(an_extend_never_shortens_and_counts_from_its_own_send),
        cmocka_unit_test(an_extend_that_is_told_no_is_lost),
        cmocka_unit_test(what_came_of_a_late_ask_is_not_the_lock_that_was_given),
        cmocka_unit_test(what_is_being_given_back_is_not_ours_any_more),
        cmocka_unit_test(a_release_is_true_if_it_gave_back),
        cmocka_unit_test(an_owed_release_called_again_remembers_the_first),
        cmocka_unit_test(a_failed_release_says_when_it_lapses),
        cmocka_unit_test(leases_are_renewed_together_at_a_third),
        cmocka_unit_test(a_renewal_is_for_the_expiry_as_acquired),
        cmocka_unit_test(a_callers_verb_takes_the_place_of_a_renewal),
        cmocka_unit_test(a_failed_extend_leaves_the_renewals_as_they_were),
        cmocka_unit_test(renewals_end_with_max_hold),
        cmocka_unit_test(no_renewal_is_tried_again_behind_max_hold),
        cmocka_unit_test(a_renewal_without_an_answer_is_tried_again_until_the_validity_ends),
        cmocka_unit_test(an_extend_on_its_way_lets_the_lease_lapse_later),
        cmocka_unit_test(what_was_lost_is_given_back_only_if_it_may_stand),
        cmocka_unit_test(a_degraded_lock_is_renewed_and_released_without_a_word),
        cmocka_unit_test(pauses_keep_their_bounds),
        cmocka_unit_test(who_stands_in_line_rests_for_r_and_its_stagger),
        cmocka_unit_test(who_would_not_be_told_in_line_polls),
        cmocka_unit_test(only_held_tells_how_long),
        cmocka_unit_test(attempts_are_bounded_by_count_by_time_or_by_both),
        cmocka_unit_test(one_attempt_ends_within_the_bound_of_a_command),
        cmocka_unit_test(a_count_of_attempts_does_not_overflow),
        cmocka_unit_test(busy_timeout_and_unreachable_are_what_was_last_heard),
        cmocka_unit_test(fail_open_turns_unreachable_into_a_degraded_lock_and_nothing_else),
        cmocka_unit_test(who_goes_on_without_a_lock_leaves_the_line),
        cmocka_unit_test(a_plain_set_is_for_one_attempt_without_a_fence_and_without_doubt),
        cmocka_unit_test(a_grant_without_the_ticket_leaves_it_standing),
        cmocka_unit_test(a_release_takes_the_ticket_that_may_stand),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
