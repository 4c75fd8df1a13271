/* The machine alone: an event goes in, what is to be done comes out. No socket, no clock, no
 * server. Every state meets every event; validity, owners, pauses and bounds are exact. */
#include "tests/scripted.h"

enum { NOW = 5000, UNDO = DLOCKI_DO_UNDO, SEND = DLOCKI_DO_SEND, FINISH = DLOCKI_DO_FINISH };

static unsigned char randomness[8] = {1, 2, 3, 4, 5, 6, 7, 8};

static dlock_lock new_acquire(int32_t retry_count, int64_t wait_ms)
{
    dlock_lock lock = DLOCK_INIT;
    lock._verb = DLOCKI_ACQUIRE;
    lock._expiry_ms = 10000;
    lock._ask_expiry_ms = 10000;
    lock._retry_count = retry_count;
    lock._wait_ms = wait_ms;
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

/* ------------------------------------------------------------------ every state x every event */

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

/* Extend and release: what they do before their command left, behind it, and after a cut. */
static const struct {
    int event;
    int verdict;
    unsigned extend[4];
    unsigned release[4];
    int code;
} simple_table[] = {
    {DLOCKI_REPLIED, DLOCKI_REFUSAL, {0, FINISH, 0, FINISH}, {0, FINISH, 0, FINISH}, DLOCK_REFUSED},
    {DLOCKI_REPLIED, DLOCKI_NOSCRIPT, {0, SEND, 0, SEND}, {0, SEND, 0, SEND}, 0},
    {DLOCKI_REPLIED,
     WHOLE,
     {0, FINISH, 0, FINISH},
     {0, UNDO | FINISH, 0, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED,
     DLOCKI_LATER,
     {0, FINISH, 0, FINISH},
     {0, UNDO | FINISH, 0, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_REPLIED,
     DLOCKI_DOUBT,
     {0, FINISH, 0, FINISH},
     {0, UNDO | FINISH, 0, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_UNCONNECTED,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT_UNSENT,
     0,
     {SEND, SEND, FINISH, FINISH},
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_CUT,
     0,
     {SEND, SEND, FINISH, FINISH},
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_OVERDUE,
     0,
     {SEND, SEND, FINISH, FINISH},
     {SEND, SEND, UNDO | FINISH, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_BABBLE,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     DLOCK_PROTOCOL},
    {DLOCKI_CANCEL,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     DLOCK_CANCELLED},
    {DLOCKI_TIME,
     0,
     {FINISH, FINISH, FINISH, FINISH},
     {UNDO | FINISH, UNDO | FINISH, UNDO | FINISH, UNDO | FINISH},
     DLOCK_UNREACHABLE},
    {DLOCKI_TIME, MOMENT, {0, 0, 0, 0}, {0, 0, 0, 0}, 0},
};

static dlock_lock simple_at(int verb, enum place place)
{
    dlock_lock lock = held_lock(verb);
    assert_int_equal(feed(&lock, DLOCKI_STARTED, NOW), SEND);
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

static void extend_and_release_meet_every_event_in_every_state(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof simple_table / sizeof *simple_table; i++) {
        for (int place = STARTED; place < RESTING; place++) {
            for (int verb = DLOCKI_EXTENSION; verb <= DLOCKI_RELEASE; verb++) {
                unsigned expected = verb == DLOCKI_RELEASE ? simple_table[i].release[place]
                                                           : simple_table[i].extend[place];
                dlock_lock lock = simple_at(verb, (enum place)place);
                dlocki_event in = new_event(simple_table[i].event, NOW + 40);
                if (in.kind == DLOCKI_REPLIED && place != ASKED && place != ASKED_AGAIN) {
                    continue;
                }
                in.verdict.kind = simple_table[i].verdict;
                if (simple_table[i].verdict == WHOLE) {
                    lock._whole = true;
                    in.verdict.kind = DLOCKI_NOSCRIPT;
                } else if (in.kind == DLOCKI_TIME && simple_table[i].verdict != MOMENT) {
                    in.now = NOW + 2000; /* bound_ms */
                }
                assert_int_equal(dlocki_machine(&lock, &in), expected);
                if ((expected & FINISH) == 0) {
                    continue;
                }
                assert_false(lock._answer);
                assert_int_equal(lock._why.code, simple_table[i].code);
                if (verb == DLOCKI_EXTENSION) { /* the old validity stands */
                    assert_int_equal(lock._state, DLOCKI_OURS);
                    assert_int_equal(lock._valid_until, NOW + 9898);
                } else {
                    assert_int_equal(lock._state, lock._why.code == DLOCK_REFUSED
                                                      ? DLOCKI_GIVEN_BACK
                                                      : DLOCKI_OWED);
                    assert_non_null(strstr(lock._why.text, "lapses by itself in "));
                }
            }
        }
    }
}

/* ------------------------------------------------------------------------------- owners, undo */

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
    assert_false(dlocki_lock_command(&lock).whole);
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(reply(&lock, DLOCKI_NOSCRIPT, NOW, 0), SEND);
    assert_true(dlocki_lock_command(&lock).whole);
    (void)feed(&lock, DLOCKI_SENT, NOW);
    assert_int_equal(reply(&lock, DLOCKI_HELD, NOW, -1), 0);
    assert_int_equal(feed(&lock, DLOCKI_TIME, lock._wake_at), SEND);
    assert_false(dlocki_lock_command(&lock).whole);
}

/* ----------------------------------------------------------------------------------- validity */

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

static void a_lease_counts_from_the_first_send_that_may_have_been_obeyed(void **state)
{
    static const struct {
        int event;
        int verdict;
        int64_t from;
    } cases[] = {{DLOCKI_CUT, 0, NOW},
                 {DLOCKI_CUT_UNSENT, 0, NOW + 300},
                 {DLOCKI_REPLIED, DLOCKI_NOSCRIPT, NOW + 300},
                 {DLOCKI_REPLIED, DLOCKI_AGAIN, NOW + 300}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = new_acquire(0, 0);
        dlocki_event in = new_event(cases[i].event, NOW + 200);
        in.verdict.kind = cases[i].verdict;
        (void)feed(&lock, DLOCKI_STARTED, NOW);
        (void)feed(&lock, DLOCKI_SENT, NOW);
        assert_int_equal(dlocki_machine(&lock, &in), SEND);
        (void)feed(&lock, DLOCKI_SENT, NOW + 300);
        assert_int_equal(reply(&lock, DLOCKI_GRANTED, NOW + 400, 10000), FINISH);
        assert_int_equal(lock._valid_until, cases[i].from + 9898);
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
        lock._ask_expiry_ms = cases[i].expiry;
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

/* -------------------------------------------------------------------------- pauses and bounds */

/* The shortest or longest pause that chance can bring. */
static int64_t pause_with(const dlock_lock *lock, uint32_t first, uint32_t second, int failures,
                          int64_t lease_ms)
{
    dlocki_event in = new_event(DLOCKI_REPLIED, NOW);
    unsigned char bytes[8];
    memcpy(bytes, &first, 4);
    memcpy(bytes + 4, &second, 4);
    in.random = bytes;
    in.failures = failures;
    return dlocki_pause_ms(lock, &in, lease_ms);
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
        int64_t least = INT64_MAX;
        int64_t most = 0;
        lock._retry_delay_ms = cases[i].delay;
        lock._retry_jitter_ms = cases[i].jitter;
        for (uint32_t j = 0; j < 15000; j++) {
            int64_t pause = pause_with(&lock, j, j, cases[i].failures, cases[i].lease);
            assert_in_range(pause, cases[i].least, cases[i].most);
            least = dlocki_least(least, pause);
            most = dlocki_most(most, pause);
        }
        most = dlocki_most(
            most, pause_with(&lock, UINT32_MAX, INT32_MAX, cases[i].failures, cases[i].lease));
        assert_int_equal(least, cases[i].least);
        assert_int_equal(most, cases[i].most);
    }
}

/* How many attempts, and what ends them? Each is told HELD at once; pauses are 100 ms. */
static void attempts_are_bounded_by_count_by_time_or_by_both(void **state)
{
    static const struct {
        int32_t count;
        int64_t wait;
        int asks; /* -1: goes on for ever */
        int code;
    } cases[] = {
        {0, 0, 1, DLOCK_BUSY},
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
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = new_acquire(cases[i].count, cases[i].wait);
        int64_t now = NOW;
        unsigned todo = feed(&lock, DLOCKI_STARTED, now);
        int asks = 0;
        lock._retry_delay_ms = 100;
        while (todo != FINISH && asks < 1000) {
            if (todo == SEND) {
                asks++;
                (void)feed(&lock, DLOCKI_SENT, now);
                todo = reply(&lock, DLOCKI_HELD, now, -1);
            } else {
                now = dlocki_least(lock._wake_at, lock._deadline);
                todo = feed(&lock, DLOCKI_TIME, now);
            }
        }
        assert_int_equal(asks, cases[i].asks < 0 ? 1000 : cases[i].asks);
        if (cases[i].asks >= 0) {
            assert_int_equal(lock._why.code, cases[i].code);
            assert_true(cases[i].wait <= 0 || now <= NOW + cases[i].wait);
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

/* ----------------------------------------------------------------------------------- commands */

static void a_plain_set_is_for_one_attempt_without_a_fence_and_without_doubt(void **state)
{
    dlock_lock lock = new_acquire(0, 0);
    (void)state;
    assert_int_equal(dlocki_lock_command(&lock).kind, DLOCKI_ASK);
    assert_true(dlocki_lock_command(&lock).fenced);
    lock._no_fence = true;
    assert_int_equal(dlocki_lock_command(&lock).kind, DLOCKI_SET);
    lock._unknown = true;
    assert_int_equal(dlocki_lock_command(&lock).kind, DLOCKI_ASK);
    assert_false(dlocki_lock_command(&lock).fenced);
    lock = new_acquire(1, 0);
    lock._no_fence = true;
    assert_int_equal(dlocki_lock_command(&lock).kind, DLOCKI_ASK);
    lock = new_acquire(0, 1);
    lock._no_fence = true;
    assert_int_equal(dlocki_lock_command(&lock).kind, DLOCKI_ASK);
    lock._verb = DLOCKI_EXTENSION;
    assert_int_equal(dlocki_lock_command(&lock).kind, DLOCKI_EXTEND);
    lock._verb = DLOCKI_RELEASE;
    assert_int_equal(dlocki_lock_command(&lock).kind, DLOCKI_GIVE_BACK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_acquire_meets_every_event_in_every_state),
        cmocka_unit_test(a_wait_that_ends_in_an_unanswered_ask_is_unreachable),
        cmocka_unit_test(a_resting_acquire_wakes_ends_or_is_cancelled),
        cmocka_unit_test(extend_and_release_meet_every_event_in_every_state),
        cmocka_unit_test(an_owner_is_the_factorys_half_and_a_random_half),
        cmocka_unit_test(an_owner_is_burnt_by_its_undo_and_by_nothing_else),
        cmocka_unit_test(without_randomness_no_owner_is_drawn_and_the_call_ends),
        cmocka_unit_test(a_cut_asks_again_once_without_an_attempt),
        cmocka_unit_test(dead_waiters_are_cleared_so_many_times_and_then_nobody_can_tell),
        cmocka_unit_test(a_script_is_sent_as_text_once_an_attempt),
        cmocka_unit_test(validity_is_expiry_less_the_time_since_the_send_less_drift),
        cmocka_unit_test(a_lease_counts_from_the_first_send_that_may_have_been_obeyed),
        cmocka_unit_test(an_extend_never_shortens_and_counts_from_its_own_send),
        cmocka_unit_test(an_extend_that_is_told_no_is_lost),
        cmocka_unit_test(a_release_is_true_if_it_gave_back),
        cmocka_unit_test(an_owed_release_called_again_remembers_the_first),
        cmocka_unit_test(a_failed_release_says_when_it_lapses),
        cmocka_unit_test(pauses_keep_their_bounds),
        cmocka_unit_test(attempts_are_bounded_by_count_by_time_or_by_both),
        cmocka_unit_test(a_count_of_attempts_does_not_overflow),
        cmocka_unit_test(busy_timeout_and_unreachable_are_what_was_last_heard),
        cmocka_unit_test(fail_open_turns_unreachable_into_a_degraded_lock_and_nothing_else),
        cmocka_unit_test(a_plain_set_is_for_one_attempt_without_a_fence_and_without_doubt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
