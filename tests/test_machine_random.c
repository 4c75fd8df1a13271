/* The machine alone, in random schedules against a little server that is known in full: requests
 * that arrive late or never, messages that are late or lost, a process that is stopped, clocks that
 * run apart by one per cent and are set back, scripts forgotten, keys taken away by an operator.
 * There is no engine: what it would do stands here in a few lines, and as badly as it may. Whatever
 * happens:
 *
 *     while the machine says that the lock is ours, the server says so, and will until the validity
 *     ends; the fence is the one that was given out; no owner is asked with after its undo; every
 *     call ends once, and in time; a release is true only if it gave back; and when all is done
 *     nothing of ours is left, neither a key nor a place in line.
 *
 * DLOCK_SEED=n replays one schedule and tells what happens; DLOCK_SEEDS=n runs so many. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#define FACTORY "0123456789abcdef"
#define MS INT64_C(1000)

enum {
    LINE_ROOM = 24,
    REQUESTS = 48,
    MESSAGES = 32,
    DEBTS = 64,
    UNDONE = 512,
    STEPS = 400,
    COMMAND_TIMEOUT_MS = 1000,
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
    SEEDS = 10000
#else
    SEEDS = 40000
#endif
};

struct ticket {
    char owner[DLOCKI_OWNER_LENGTH + 1];
    bool ours;
    bool alive; /* of the others */
    char letter;
    int64_t expiry_ms;
    int64_t score;
};

/* On its way to the server, and back. */
struct request {
    bool used;
    bool executed;
    bool unread; /* the answer is still wanted on this side          */
    bool for_lock;
    int debt; /* -1 = none                                        */
    int64_t sent_at_ms;
    int64_t deadline_ms;
    int64_t executes_at;
    int64_t answers_at;
    char owner[DLOCKI_OWNER_LENGTH + 1];
    dlocki_command command;
    dlocki_verdict verdict;
};

struct message {
    bool used;
    bool taken;
    int64_t at;
    char owner[DLOCKI_OWNER_LENGTH + 1];
    uint64_t fence;
    int64_t given_us;
};

struct debt {
    bool used;
    bool sent;
    char letter;
    int64_t expiry_ms;
    int64_t due_at;
    char owner[DLOCKI_OWNER_LENGTH + 1];
};

/* Instants are true microseconds, but for those of the server's clock and the machine's, which is
 * right, and reads milliseconds rounded down. */
static struct {
    uint64_t seed;
    uint64_t random;
    bool tells;
    bool calm; /* the end: no more faults */
    int64_t now;
    /* the server */
    char holder[DLOCKI_OWNER_LENGTH + 1]; /* "" = it is free */
    int64_t ends_us; /* DLOCKI_NEVER: no end */
    uint64_t fence;
    uint64_t holder_fence;
    int64_t offset_us;
    int rate; /* ten thousandths fast */
    bool knows_scripts;
    bool inbox_seen; /* subscribed, as far as it can tell */
    char stolen[DLOCKI_OWNER_LENGTH + 1]; /* whom an operator took it from */
    char returned[DLOCKI_OWNER_LENGTH + 1]; /* whose last release found it */
    int others;
    int64_t others_act_at;
    int line_count;
    struct ticket line[LINE_ROOM];
    /* the way */
    struct request requests[REQUESTS];
    struct message messages[MESSAGES];
    int64_t last_executes_at;
    int64_t last_answers_at;
    int64_t up_at; /* commands may be sent from then on */
    int refuses; /* so many answers are "later" or in doubt */
    /* this side */
    dlock_lock lock;
    bool to_send;
    bool wants_inbox;
    unsigned generation;
    unsigned subscription;
    int64_t inbox_at;
    int64_t anchor_us;
    int64_t anchor_at;
    int64_t stalled_until;
    int64_t user_at;
    int finishes;
    struct debt debts[DEBTS];
    int undone_count;
    char undone[UNDONE][DLOCKI_OWNER_LENGTH + 1];
} w;

static struct {
    long granted, dated, confirmed, lapsed, given_up, undone, released, renewed, lost, cuts, stalls;
} totals;

static void must_be(bool condition, const char *rule)
{
    if (!condition) {
        fail_msg("DLOCK_SEED=%llu at %lld us: %s", (unsigned long long)w.seed, (long long)w.now,
                 rule);
    }
}

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
    va_list arguments;
    if (w.tells) {
        print_message("%10lld  ", (long long)w.now);
        va_start(arguments, format);
        vprint_message(format, arguments);
        va_end(arguments);
        print_message("\n");
    }
}

static uint64_t draw(void)
{
    uint64_t z = w.random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static int64_t below(int64_t most)
{
    return (int64_t)(draw() % (uint64_t)most);
}

static bool one_in(int count)
{
    return below(count) == 0;
}

static bool fault_one_in(int count)
{
    return !w.calm && one_in(count);
}

static int64_t now_in_ms(void)
{
    return w.now / MS;
}

/* ----------------------------------------------------------------------------------- the server */

static int64_t clock_us(void)
{
    return w.offset_us + w.now + w.now / 10000 * w.rate + w.now % 10000 * w.rate / 10000;
}

/* When its clock will say that, if nobody sets it; not later than the truth. */
static int64_t true_at(int64_t clock)
{
    int64_t span = clock - w.offset_us;
    return clock == DLOCKI_NEVER ? DLOCKI_NEVER : span - span / (10000 + w.rate) * w.rate - 200;
}

static bool is_ours(const char *owner)
{
    return strncmp(owner, "dl1-" FACTORY, 20) == 0;
}

static void expire(void)
{
    if (w.holder[0] != 0 && clock_us() >= w.ends_us) {
        say("the lease of %s ends", w.holder);
        w.holder[0] = 0;
    }
}

static uint64_t raise_fence(void)
{
    uint64_t now = (uint64_t)clock_us();
    w.fence = (w.fence > now ? w.fence : now) + 1;
    return w.fence;
}

static void hold(const char *owner, int64_t expiry_ms, bool fenced)
{
    (void)snprintf(w.holder, sizeof w.holder, "%s", owner);
    w.ends_us = clock_us() + expiry_ms * MS;
    w.holder_fence = fenced ? raise_fence() : 0;
    say("%s holds it", owner);
}

static void line_remove(int at)
{
    w.line_count--;
    memmove(&w.line[at], &w.line[at + 1], (size_t)(w.line_count - at) * sizeof *w.line);
}

/* The place of a ticket, from 0 on; -1: there is none. */
static int line_find(const char *owner)
{
    for (int i = 0; i < w.line_count; i++) {
        if (strcmp(w.line[i].owner, owner) == 0) {
            return i;
        }
    }
    return -1;
}

static void line_add(const char *owner, char letter, int64_t expiry_ms, int64_t score, bool alive)
{
    struct ticket ticket = {.letter = letter, .expiry_ms = expiry_ms, .alive = alive};
    int at = w.line_count;
    if (w.line_count == LINE_ROOM) {
        return;
    }
    (void)snprintf(ticket.owner, sizeof ticket.owner, "%s", owner);
    ticket.ours = is_ours(owner);
    ticket.score = clock_us();
    if (at > 0) {
        ticket.score = dlocki_most(ticket.score, w.line[at - 1].score + 1);
    }
    ticket.score = score > 0 ? score : ticket.score;
    while (at > 0 && w.line[at - 1].score > ticket.score) {
        w.line[at] = w.line[at - 1];
        at--;
    }
    w.line[at] = ticket;
    w.line_count++;
}

static int64_t latency(void)
{
    switch (below(16)) {
    case 0:
        return w.calm ? 500 : below(300) * MS;
    case 1:
        return w.calm ? 500 : below(3) * below(1500) * MS;
    default:
        return 100 + below(2000);
    }
}

static void publish(const char *owner, bool taken, uint64_t fence)
{
    int i = 0;
    while (w.messages[i].used) {
        i++;
        assert_true(i < MESSAGES);
    }
    if (w.inbox_seen && w.subscription != 0 && !fault_one_in(20)) {
        w.messages[i].used = true;
        w.messages[i].taken = taken;
        w.messages[i].at = w.now + latency();
        w.messages[i].fence = fence;
        w.messages[i].given_us = clock_us();
        (void)snprintf(w.messages[i].owner, sizeof w.messages[i].owner, "%s", owner);
    }
}

/* 1: given to somebody; 0: nobody is there; -1: `self` was next. */
static int serve(const char *self)
{
    while (w.line_count > 0) {
        struct ticket first = w.line[0];
        line_remove(0);
        if (strcmp(first.owner, self) == 0) {
            return -1;
        }
        if (first.ours ? w.inbox_seen : first.alive) {
            hold(first.owner, first.expiry_ms, first.letter == 'g');
            if (first.ours) {
                publish(first.owner, false, w.holder_fence);
            }
            return 1;
        }
    }
    return 0;
}

static void execute_ask(const dlocki_command *command, dlocki_verdict *verdict)
{
    expire();
    if (w.holder[0] == 0 && command->kind == DLOCKI_ASK) {
        (void)serve(command->owner);
    }
    if (w.holder[0] == 0) {
        int stands = line_find(command->owner);
        if (stands >= 0 && command->letter != 0) {   /* it is named by its letter, too */
            line_remove(stands);
        }
        hold(command->owner, command->expiry_ms, command->fenced);
        verdict->kind = DLOCKI_GRANTED;
        verdict->fence = w.holder_fence;
        verdict->lease_ms = command->expiry_ms;
        verdict->now_us = command->fenced ? 0 : clock_us();
        return;
    }
    verdict->lease_ms = w.ends_us == DLOCKI_NEVER ? -1 : (w.ends_us - clock_us() + MS - 1) / MS;
    verdict->now_us = clock_us();
    if (command->kind == DLOCKI_SET) {
        verdict->kind = DLOCKI_HELD;
        verdict->lease_ms = -1;
        verdict->now_us = 0;
    } else if (strcmp(w.holder, command->owner) == 0) {
        verdict->kind = DLOCKI_GRANTED;
        verdict->fence = w.holder_fence;
    } else {
        verdict->kind = DLOCKI_HELD;
        verdict->foreign = w.holder[0] == 'f';
        if (command->letter != 0) {
            if (line_find(command->owner) < 0) {
                line_add(command->owner, command->letter, command->expiry_ms, command->score, true);
            }
            verdict->place = line_find(command->owner) + 1;
            verdict->score = verdict->place > 0 ? w.line[verdict->place - 1].score : 0;
        }
    }
}

static void execute_release(const dlocki_command *command, dlocki_verdict *verdict)
{
    int stands = command->letter != 0 ? line_find(command->owner) : -1;
    expire();
    verdict->kind = DLOCKI_FLAGS;
    if (stands >= 0) {
        line_remove(stands);
        verdict->flags = 2;
    }
    if (strcmp(w.holder, command->owner) == 0) {
        say("%s gives it back", command->owner);
        w.holder[0] = 0;
        (void)snprintf(w.returned, sizeof w.returned, "%s", command->owner);
        verdict->flags += serve("") > 0 ? 5 : 1;
    }
}

static void execute_extend(const dlocki_command *command, dlocki_verdict *verdict)
{
    expire();
    verdict->kind = DLOCKI_FLAGS;
    if (strcmp(w.holder, command->owner) == 0) {
        verdict->flags = 1;
        if (w.ends_us - clock_us() < command->expiry_ms * MS) {
            w.ends_us = clock_us() + command->expiry_ms * MS;
        }
    }
}

static void execute(struct request *request)
{
    dlocki_verdict *verdict = &request->verdict;
    request->executed = true;
    request->command.owner = request->owner;
    memset(verdict, 0, sizeof *verdict);
    if (w.refuses > 0 && !w.calm) {
        w.refuses--;
        verdict->kind = one_in(4) ? DLOCKI_DOUBT : DLOCKI_LATER;
        verdict->says = "refuses";
        if (verdict->kind == DLOCKI_LATER || one_in(2)) {
            return;
        }
        if (request->command.kind <= DLOCKI_ASK) {   /* executed, and an error all the same */
            execute_ask(&request->command, verdict);
        }
        memset(verdict, 0, sizeof *verdict);
        verdict->kind = DLOCKI_DOUBT;
        return;
    }
    if (request->command.kind != DLOCKI_SET && !request->command.whole && !w.knows_scripts) {
        verdict->kind = DLOCKI_NOSCRIPT;
        return;
    }
    w.knows_scripts = w.knows_scripts || request->command.whole;
    switch (request->command.kind) {
    case DLOCKI_SET:
    case DLOCKI_ASK:
        execute_ask(&request->command, verdict);
        break;
    case DLOCKI_GIVE_BACK:
        execute_release(&request->command, verdict);
        break;
    default:
        execute_extend(&request->command, verdict);
        break;
    }
}

/* Everybody else: they come, line up, die, let go; among them an operator. */
static void others_act(void)
{
    char name[DLOCKI_OWNER_LENGTH + 1];
    expire();
    w.others_act_at = w.now + below(w.calm ? 50 : 400) * MS;
    (void)snprintf(name, sizeof name, "%s%d", one_in(4) ? "foreign" : "dl1-others", ++w.others);
    if (w.holder[0] != 0 && !is_ours(w.holder) && (w.calm || one_in(2))) {
        say("%s lets go", w.holder);
        w.holder[0] = 0;
        if (name[0] != 'f' || w.calm) {   /* a foreign one tells nobody */
            (void)serve("");
        }
    } else if (w.holder[0] == 0 && !w.calm && one_in(2)) {
        if (name[0] == 'f' || serve(name) <= 0) {
            hold(name, 1 + below(5000), true);
            w.ends_us = name[0] == 'f' && one_in(3) ? DLOCKI_NEVER : w.ends_us;
        }
    } else if (!w.calm && name[0] != 'f' && one_in(3)) {
        line_add(name, 'g', 1 + below(3000), 0, one_in(2));
    } else if (is_ours(w.holder) && fault_one_in(40)) {
        say("an operator takes it from %s", w.holder);
        memcpy(w.stolen, w.holder, sizeof w.stolen);
        w.holder[0] = 0;
        if (one_in(2)) {
            publish(w.stolen, true, 0);
        }
    }
}

/* ---------------------------------------------------------------------- what an engine would do */

static bool is_undone(const char *owner)
{
    for (int i = 0; i < w.undone_count; i++) {
        if (strcmp(w.undone[i], owner) == 0) {
            return true;
        }
    }
    return false;
}

static void note_undone(const char *owner)
{
    if (!is_undone(owner)) {
        assert_true(w.undone_count < UNDONE);
        memcpy(w.undone[w.undone_count++], owner, DLOCKI_OWNER_LENGTH + 1);
    }
}

static void owe(void)
{
    const dlock_lock *lock = &w.lock;
    int i;
    totals.undone++;
    note_undone(lock->_owner);
    for (i = 0; i < DEBTS && w.debts[i].used; i++) {
        if (strcmp(w.debts[i].owner, lock->_owner) == 0) {
            return;
        }
    }
    assert_true(i < DEBTS);
    memset(&w.debts[i], 0, sizeof w.debts[i]);
    w.debts[i].used = true;
    w.debts[i].letter = lock->_ticket ? (lock->_no_fence ? 'n' : 'g') : (char)0;
    w.debts[i].expiry_ms = lock->_expiry_ms;
    w.debts[i].due_at = w.now;
    memcpy(w.debts[i].owner, lock->_owner, sizeof w.debts[i].owner);
    say("undo %s%s", lock->_owner, lock->_ticket ? " and its ticket" : "");
}

/* No answer to the handle's command means anything any more. */
static void drop(void)
{
    for (int i = 0; i < REQUESTS; i++) {
        w.requests[i].for_lock = false;
    }
    w.to_send = false;
}

static bool is_pending(void)
{
    return w.lock._verb != DLOCKI_NO_VERB && w.lock._verb != DLOCKI_RENEWAL;
}

static void finish(void)
{
    dlock_lock *lock = &w.lock;
    int verb = lock->_verb;
    say("verb %d ends: %d, %s", verb, lock->_answer, lock->_why.text);
    must_be(verb != DLOCKI_NO_VERB, "a call ends once");
    lock->_verb = DLOCKI_NO_VERB;
    if (verb == DLOCKI_RENEWAL) {
        totals.renewed++;
        return;
    }
    w.finishes++;
    drop();
    if (verb == DLOCKI_ACQUIRE) {
        totals.granted += lock->_answer && !lock->_degraded;
        totals.given_up += !lock->_answer;
        must_be(lock->_answer == (lock->_state == DLOCKI_OURS), "true means ours");
        must_be(lock->_answer == (lock->_why.code == DLOCK_OK), "true means OK");
    }
    if (verb == DLOCKI_RELEASE && !lock->_degraded && strcmp(w.stolen, lock->_owner) != 0) {
        bool returned = strcmp(w.returned, lock->_owner) == 0;
        totals.released += lock->_answer;
        must_be(!lock->_answer || returned, "a release is true only if it gave back");
        must_be(lock->_why.code != DLOCK_LOST || !returned, "LOST: it had gone before");
    }
    if (lock->_state != DLOCKI_OURS && (verb != DLOCKI_RELEASE || lock->_state != DLOCKI_OWED)) {
        w.wants_inbox = false;
    }
}

static void feed(dlocki_event *in)
{
    static const char *const kinds[] = {
        "started",       "sent",    "replied", "unconnected", "cut unsent",
        "cut",           "overdue", "babble",  "subscribed",  "unsubscribed",
        "inbox refused", "given",   "taken",   "time",        "cancel"};
    unsigned char random[8];
    uint64_t bits = draw();
    unsigned todo;
    memcpy(random, &bits, sizeof bits);
    in->now = now_in_ms();
    in->factory = FACTORY;
    in->random = random;
    in->failures = (int)below(3);
    in->bound_ms = 2 * COMMAND_TIMEOUT_MS;
    in->subscription = w.subscription;
    todo = dlocki_machine(&w.lock, in);
    if (in->kind != DLOCKI_TIME || todo != 0) {
        say("%s %d -> %u", kinds[in->kind], in->kind == DLOCKI_REPLIED ? in->verdict.kind : -1,
            todo);
    }
    if ((todo & DLOCKI_DO_DROP) != 0) {
        drop();
    }
    if ((todo & DLOCKI_DO_UNDO) != 0) {
        owe();
    }
    if ((todo & DLOCKI_DO_LISTEN) != 0 && !w.wants_inbox) {
        w.wants_inbox = true;
        w.inbox_at = w.now + latency();
    }
    if ((todo & DLOCKI_DO_SEND) != 0) {
        w.to_send = true;
    }
    if ((todo & DLOCKI_DO_FINISH) != 0) {
        finish();
    }
    if ((todo & DLOCKI_DO_LOSE) != 0) {
        must_be(!is_pending(), "a pending call is answered, not told that it lost");
        totals.lost++;
        w.lock._verb = DLOCKI_NO_VERB;
        drop();
    }
}

static void feed_kind(int kind)
{
    dlocki_event in;
    memset(&in, 0, sizeof in);
    in.kind = kind;
    feed(&in);
}

static struct request *launch(const dlocki_command *command)
{
    int i = 0;
    while (w.requests[i].used) {
        i++;
        assert_true(i < REQUESTS);
    }
    memset(&w.requests[i], 0, sizeof w.requests[i]);
    w.requests[i].used = true;
    w.requests[i].unread = true;
    w.requests[i].debt = -1;
    w.requests[i].command = *command;
    memcpy(w.requests[i].owner, command->owner, sizeof w.requests[i].owner);
    w.requests[i].sent_at_ms = now_in_ms();
    w.requests[i].deadline_ms = now_in_ms() + COMMAND_TIMEOUT_MS;
    if (command->kind != DLOCKI_GIVE_BACK) {
        w.requests[i].deadline_ms =
            dlocki_least(w.requests[i].deadline_ms, now_in_ms() + command->expiry_ms);
    }
    w.requests[i].executes_at = dlocki_most(w.last_executes_at + 1, w.now + latency());
    w.requests[i].answers_at =
        dlocki_most(w.last_answers_at + 1, w.requests[i].executes_at + latency());
    w.last_executes_at = w.requests[i].executes_at;
    w.last_answers_at = w.requests[i].answers_at;
    return &w.requests[i];
}

static void send_debts(void)
{
    for (int i = 0; i < DEBTS; i++) {
        struct debt *debt = &w.debts[i];
        dlocki_command command;
        if (!debt->used || debt->sent || debt->due_at > w.now) {
            continue;
        }
        memset(&command, 0, sizeof command);
        command.kind = DLOCKI_GIVE_BACK;
        command.whole = true;
        command.letter = debt->letter;
        command.expiry_ms = debt->expiry_ms;
        command.owner = debt->owner;
        launch(&command)->debt = i;
        debt->sent = true;
    }
}

static void send_command(void)
{
    dlock_lock *lock = &w.lock;
    dlocki_command command = dlocki_lock_command(lock, w.subscription != 0);
    struct request *request;
    dlocki_event in;
    bool asks = command.kind == DLOCKI_ASK;
    must_be(command.kind == DLOCKI_GIVE_BACK || !is_undone(command.owner),
            "no owner is asked with after its undo");
    must_be(command.kind != DLOCKI_SET || !lock->_unknown, "a plain SET is never in doubt");
    must_be(command.letter == 0 || command.kind == DLOCKI_GIVE_BACK || w.subscription != 0,
            "no ticket without a subscription");
    request = launch(&command);
    request->for_lock = true;
    if (command.kind == DLOCKI_GIVE_BACK) {
        note_undone(lock->_owner);
    }
    if (lock->_verb == DLOCKI_RENEWAL) {
        request->deadline_ms = dlocki_least(request->deadline_ms,
                                            now_in_ms() + (lock->_valid_until - now_in_ms()) / 2);
    }
    w.to_send = false;
    memset(&in, 0, sizeof in);
    in.kind = DLOCKI_SENT;
    in.letter = asks ? command.letter : (char)0;
    say("send %d for %s, letter %d, score %lld", command.kind, lock->_owner, in.letter,
        (long long)command.score);
    feed(&in);
}

static void pump(void)
{
    if (w.now >= w.up_at) {
        send_debts();
        while (w.to_send) {
            send_command();
        }
    }
}

/* What was under way may be executed later, or never; nothing new is, before that is settled. */
static void cut(int cause)
{
    bool tell = false;
    int kind = cause;
    totals.cuts++;
    w.up_at = dlocki_most(w.up_at, w.now + 1);
    w.anchor_us = 0;
    for (int i = 0; i < REQUESTS; i++) {
        struct request *request = &w.requests[i];
        if (!request->used || !request->unread) {
            continue;
        }
        if (request->for_lock) {
            tell = true;
            if (cause == DLOCKI_OVERDUE && now_in_ms() < request->deadline_ms) {
                kind = DLOCKI_CUT;
            }
        }
        request->unread = false;
        request->for_lock = false;
        if (!request->executed && (request->executes_at <= w.now || one_in(2))) {
            request->executes_at = w.now + below(300) * MS;
            w.up_at = dlocki_most(w.up_at, request->executes_at + 1);
        } else {
            request->used = false;
        }
    }
    for (int i = 0; i < DEBTS; i++) {
        w.debts[i].sent = false;
    }
    w.last_executes_at = 0;
    w.last_answers_at = 0;
    if (tell) {
        feed_kind(kind);
    } else if (w.to_send && one_in(2)) {
        w.to_send = false;
        feed_kind(DLOCKI_UNCONNECTED);
    }
}

static void cut_inbox(void)
{
    bool was = w.subscription != 0;
    w.subscription = 0;
    for (int i = 0; i < MESSAGES; i++) {
        w.messages[i].used = false;
    }
    w.inbox_seen = w.inbox_seen && one_in(2);   /* else the server does not notice */
    w.inbox_at = w.now + latency();
    if (was && w.lock._verb == DLOCKI_ACQUIRE) {
        feed_kind(DLOCKI_UNSUBSCRIBED);
    }
}

static void subscribe(void)
{
    w.subscription = ++w.generation;
    w.inbox_seen = true;
    if (w.lock._verb == DLOCKI_ACQUIRE) {
        feed_kind(DLOCKI_SUBSCRIBED);
    }
}

static void read_answer(struct request *request)
{
    bool for_lock = request->for_lock;
    dlocki_event in;
    request->used = false;
    if (request->debt >= 0) {
        struct debt *debt = &w.debts[request->debt];
        debt->sent = false;
        debt->used = request->verdict.kind != DLOCKI_FLAGS;
        debt->due_at = w.now + 100 * MS;
    }
    if (request->verdict.now_us > 0) {
        w.anchor_us = request->verdict.now_us;
        w.anchor_at = request->sent_at_ms;
    }
    if (for_lock) {
        bool confirms = w.lock._confirming;
        memset(&in, 0, sizeof in);
        in.kind = DLOCKI_REPLIED;
        in.verdict = request->verdict;
        feed(&in);
        totals.confirmed += confirms && w.lock._state == DLOCKI_OURS;
        totals.lapsed += confirms && in.verdict.kind == DLOCKI_FLAGS && in.verdict.flags == 0;
    }
}

/* Whoever is told is found by the owner that the handle has now. */
static void read_message(struct message *message)
{
    dlocki_event in;
    int verb = w.lock._verb;
    message->used = false;
    if (strcmp(message->owner, w.lock._owner) != 0) {
        return;
    }
    memset(&in, 0, sizeof in);
    in.kind = message->taken ? DLOCKI_TAKEN_FROM : DLOCKI_GIVEN;
    in.fence = message->fence;
    in.given_us = message->given_us;
    in.anchor_us = w.anchor_us;
    in.anchor_at = w.anchor_at;
    if (in.kind == DLOCKI_GIVEN && verb == DLOCKI_ACQUIRE) {
        feed(&in);
        totals.dated += w.lock._state == DLOCKI_OURS;
    } else if (in.kind == DLOCKI_TAKEN_FROM && w.lock._state == DLOCKI_OURS && !is_pending()) {
        feed(&in);
    }
}

/* ---------------------------------------------------------------------------------- who uses it */

static void acquire(void)
{
    static const int64_t expiries[] = {3, 20, 300, 1000, 2500, 6000};
    dlock_lock *lock = &w.lock;
    memset(lock, 0, sizeof *lock);
    lock->_verb = DLOCKI_ACQUIRE;
    lock->_wake_at = DLOCKI_NEVER;
    lock->_expiry_ms = expiries[one_in(4) ? below(6) : 2 + below(4)];
    lock->_ask_expiry_ms = lock->_expiry_ms;
    lock->_retry_count = one_in(3) ? (int32_t)below(6) : 0;
    lock->_wait_ms = one_in(4) ? 0 : below(20000);
    lock->_retry_delay_ms = one_in(4) ? (int32_t)below(400) : 0;
    lock->_queues = !one_in(5) && (lock->_retry_count != 0 || lock->_wait_ms != 0);
    lock->_no_fence = one_in(4);
    lock->_auto_renew = one_in(2);
    lock->_max_hold_ms = one_in(4) ? 1 + below(8000) : 0;
    lock->_fail_open = one_in(20);
    say("acquire for %lld ms, count %d, wait %lld", (long long)lock->_expiry_ms, lock->_retry_count,
        (long long)lock->_wait_ms);
    feed_kind(DLOCKI_STARTED);
}

static void use(void)
{
    dlock_lock *lock = &w.lock;
    w.user_at = w.now + below(w.calm ? 10 : 2500) * MS;
    if (lock->_verb == DLOCKI_ACQUIRE) {
        if (w.calm || one_in(6)) {
            feed_kind(DLOCKI_CANCEL);
        }
    } else if (is_pending()) {
        return;
    } else if (lock->_state == DLOCKI_OURS || lock->_state == DLOCKI_OWED) {
        bool extends = lock->_state == DLOCKI_OURS && !w.calm && one_in(2);
        if (lock->_state == DLOCKI_OWED && one_in(2)) {
            lock->_state = DLOCKI_UNUSED;   /* nobody asks for it any more */
            return;
        }
        drop();
        lock->_verb = extends ? DLOCKI_EXTENSION : DLOCKI_RELEASE;
        lock->_wanted_ms = 3 + below(8000);
        feed_kind(DLOCKI_STARTED);
    } else if (!w.calm) {
        acquire();
    }
}

/* A grant could be dated too late if the clock was set back between it and the reading of its
 * message, and an ask in between had made an anchor of the new time: that cannot be seen. */
static bool message_is_under_way(void)
{
    for (int i = 0; i < MESSAGES; i++) {
        if (w.messages[i].used) {
            return true;
        }
    }
    return false;
}

static void disturb(void)
{
    if (fault_one_in(40)) {
        cut(DLOCKI_CUT);
    }
    if (fault_one_in(400)) {
        w.up_at = dlocki_most(w.up_at, w.now + below(4000) * MS);
        if (w.to_send) {
            w.to_send = false;
            feed_kind(DLOCKI_UNCONNECTED);
        }
    }
    if (fault_one_in(60)) {
        cut_inbox();
    }
    if (fault_one_in(60)) {
        totals.stalls++;
        w.stalled_until = w.now + below(9000) * MS;
        say("stopped until %lld", (long long)w.stalled_until);
    }
    if (fault_one_in(100) && !message_is_under_way()) {
        w.offset_us -= below(5000000);   /* set back: nobody's lease ends early by that */
        say("the server's clock is set back");
    }
    if (fault_one_in(80)) {
        w.knows_scripts = false;
    }
    if (fault_one_in(60)) {
        w.refuses = 1 + (int)below(3);
    }
}

/* -------------------------------------------------------------------------------------- the run */

static int64_t lock_timer(void)
{
    const dlock_lock *lock = &w.lock;
    int64_t at = DLOCKI_NEVER;
    if (is_pending()) {
        at = dlocki_least(lock->_deadline, lock->_wake_at);
    } else if (lock->_state == DLOCKI_OURS) {
        at = dlocki_least(lock->_valid_until, lock->_wake_at);
    }
    return at < DLOCKI_NEVER / MS ? at * MS : DLOCKI_NEVER;
}

/* The next thing that this side does something about, once it is not stopped. */
static int64_t client_next(void)
{
    int64_t at = dlocki_least(lock_timer(), w.user_at);
    for (int i = 0; i < REQUESTS; i++) {
        const struct request *request = &w.requests[i];
        if (request->used && request->unread) {
            at = dlocki_least(at, request->deadline_ms * MS);
            at = request->executed ? dlocki_least(at, request->answers_at) : at;
        }
    }
    for (int i = 0; i < MESSAGES; i++) {
        at = w.messages[i].used ? dlocki_least(at, w.messages[i].at) : at;
    }
    for (int i = 0; i < DEBTS; i++) {
        if (w.debts[i].used && !w.debts[i].sent) {
            at = dlocki_least(at, dlocki_most(w.up_at, w.debts[i].due_at));
        }
    }
    at = w.to_send ? dlocki_least(at, w.up_at) : at;
    at = w.wants_inbox && w.subscription == 0 ? dlocki_least(at, w.inbox_at) : at;
    return dlocki_most(at, w.stalled_until);
}

static struct request *next_executed(void)
{
    struct request *next = NULL;
    for (int i = 0; i < REQUESTS; i++) {
        struct request *request = &w.requests[i];
        if (request->used && !request->executed &&
            (next == NULL || request->executes_at < next->executes_at)) {
            next = request;
        }
    }
    return next;
}

/* The oldest answer that has arrived. */
static struct request *next_answer(void)
{
    struct request *next = NULL;
    for (int i = 0; i < REQUESTS; i++) {
        struct request *request = &w.requests[i];
        if (request->used && request->executed && request->unread && request->answers_at <= w.now &&
            (next == NULL || request->answers_at < next->answers_at)) {
            next = request;
        }
    }
    return next;
}

static void check(void)
{
    const dlock_lock *lock = &w.lock;
    bool claims =
        lock->_state == DLOCKI_OURS && !lock->_degraded && now_in_ms() < lock->_valid_until;
    expire();
    if (!claims || strcmp(w.stolen, lock->_owner) == 0) {
        return;
    }
    must_be(strcmp(w.holder, lock->_owner) == 0, "ours means ours on the server");
    must_be(true_at(w.ends_us) >= lock->_valid_until * MS, "and until the validity ends");
    must_be(lock->_fence == w.holder_fence, "the fence is the one that was given out");
}

/* Answers before timers, the inbox between them, as an engine that was stopped would do it. */
static void client_acts(void)
{
    struct request *answer;
    while ((answer = next_answer()) != NULL) {
        read_answer(answer);
        check();
    }
    for (int i = 0; i < MESSAGES; i++) {
        if (w.messages[i].used && w.messages[i].at <= w.now) {
            read_message(&w.messages[i]);
            check();
        }
    }
    if (w.wants_inbox && w.subscription == 0 && w.now >= w.inbox_at) {
        subscribe();
    }
    for (int i = 0; i < REQUESTS; i++) {
        if (w.requests[i].used && w.requests[i].unread &&
            now_in_ms() >= w.requests[i].deadline_ms) {
            cut(DLOCKI_OVERDUE);
        }
    }
    for (int i = 0; lock_timer() <= w.now; i++) {
        feed_kind(DLOCKI_TIME);
        must_be(i < 100, "a timer that is due makes a difference");
    }
    if (w.now >= w.user_at) {
        use();
    }
    pump();
    must_be(!is_pending() || now_in_ms() < w.lock._deadline, "every call ends in time");
}

static bool is_quiet(void)
{
    bool quiet = !is_pending() && w.lock._state != DLOCKI_OURS && w.lock._state != DLOCKI_OWED;
    for (int i = 0; i < DEBTS; i++) {
        quiet = quiet && !w.debts[i].used;
    }
    for (int i = 0; i < REQUESTS; i++) {
        quiet = quiet && !w.requests[i].used;
    }
    return quiet;
}

static void step(void)
{
    struct request *request = next_executed();
    int64_t executes = request != NULL ? request->executes_at : DLOCKI_NEVER;
    int64_t next = dlocki_least(dlocki_least(executes, w.others_act_at), client_next());
    w.now = dlocki_most(w.now, next);
    if (executes <= next) {
        execute(request);
        request->used = request->unread;
        say("executed %d for %s: %d", request->command.kind, request->owner, request->verdict.kind);
    } else if (w.others_act_at <= next) {
        others_act();
    } else {
        client_acts();
    }
    check();
    if (w.now >= w.stalled_until) {
        disturb();
        check();
    }
}

static void run(uint64_t seed, bool tells)
{
    int steps;
    memset(&w, 0, sizeof w);
    w.seed = seed;
    w.random = seed * UINT64_C(7046029254386353131);
    w.tells = tells;
    w.now = 1000000;
    w.offset_us = INT64_C(1795398000000000) + below(1000000);
    w.rate = (int)below(201) - 100;
    w.others_act_at = w.now + below(100000);
    w.user_at = w.now;
    for (steps = 0; steps < STEPS; steps++) {
        step();
    }
    say("calm");
    w.calm = true;
    w.user_at = w.now;
    for (steps = 0; !is_quiet() && steps < 20 * STEPS; steps++) {
        step();
    }
    must_be(is_quiet(), "everything ends");
    /* Whom an operator took it from gives nothing back: a late ask of his lapses. */
    must_be(!is_ours(w.holder) || strcmp(w.holder, w.stolen) == 0, "no key is left");
    for (int i = 0; i < w.line_count; i++) {
        must_be(!w.line[i].ours || strcmp(w.line[i].owner, w.stolen) == 0,
                "no place in line is left");
    }
}

static void what_the_machine_says_is_what_the_server_knows(void **state)
{
    const char *one = getenv("DLOCK_SEED");
    const char *many = getenv("DLOCK_SEEDS");
    uint64_t count = many != NULL && *many != 0 ? strtoull(many, NULL, 10) : SEEDS;
    (void)state;
    if (one != NULL && *one != 0) {
        run(strtoull(one, NULL, 10), true);
        return;
    }
    for (uint64_t seed = 1; seed <= count; seed++) {
        run(seed, false);
    }
    print_message(
        "%ld granted, %ld of them told and dated, %ld confirmed; %ld had lapsed; %ld not "
        "acquired, %ld undone, %ld released, %ld renewed, %ld lost, %ld cuts, %ld stalls\n",
        totals.granted, totals.dated, totals.confirmed, totals.lapsed, totals.given_up,
        totals.undone, totals.released, totals.renewed, totals.lost, totals.cuts, totals.stalls);
    if (count >= 1000) {   /* else the model is too tame to find anything */
        assert_true(totals.granted > (long)count && totals.dated > (long)count / 10);
        assert_true(totals.confirmed > (long)count / 50 && totals.lapsed > (long)count / 100);
        assert_true(totals.renewed > (long)count && totals.lost > (long)count / 20);
        assert_true(totals.undone > (long)count && totals.released > (long)count / 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_the_machine_says_is_what_the_server_knows),
    };
    watchdog(600);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
