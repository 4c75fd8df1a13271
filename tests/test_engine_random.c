/* Short random schedules of several factories on one scripted server: lost and late replies,
 * closed connections, a server that stops, restarts, or turns away, processes that pause, calls
 * that are cancelled. Whatever happens:
 *
 *     nobody holds beyond what the server says, so that two never hold one lock; fences grow; a
 *     release is true only if it took our key away; every call ends within its bound; and when all
 *     is well again and closed, no key is left.
 *
 * DLOCK_SEED=n replays one schedule and tells what happens; DLOCK_SEEDS=n runs so many. Fewer are
 * run where each takes longer. */
#include "tests/scripted.h"

#include <malloc.h>

enum {
    CLIENTS = 3,
    HANDLES = 2,
    KEYS = 2,
    STEPS = 60,
#if defined(__SANITIZE_THREAD__)
    SEEDS = 1500
#elif defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
    SEEDS = 5000
#else
    SEEDS = 20000
#endif
};

struct caller {
    dlock_lock lock;
    int key;
    int verb; /* under way, as far as has been looked at; 0 = none */
    int64_t began;
    int64_t bound; /* of the call under way                 */
    char owner[DLOCKI_OWNER_LENGTH + 1];
};

struct client {
    dlock_factory *factory;
    int64_t paused_until;
    int64_t wanted;
    struct caller callers[HANDLES];
};

static struct client clients[CLIENTS];
static int client_count;
static uint64_t last_fences[KEYS];
static uint64_t the_seed;
static bool tells;
static struct {
    long grants, releases, undone, cancels, faults;
} totals;

static const char *const key_names[KEYS] = {"left", "right"};

static void say(const struct world *world, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(const struct world *world, const char *format, ...)
{
    va_list arguments;
    if (tells) {
        print_message("%6lld  ", (long long)(world->now - WORLD_START));
        va_start(arguments, format);
        vprint_message(format, arguments);
        va_end(arguments);
        print_message("\n");
    }
}

static void must_be(bool condition, const char *rule)
{
    if (!condition) {
        fail_msg("DLOCK_SEED=%llu: %s", (unsigned long long)the_seed, rule);
    }
}

/* Did the server take this owner's key away because it was asked to? */
static bool was_given_back(const struct world *world, const char *owner)
{
    must_be(world->log_count < WORLD_LOG, "the log is too short");
    for (int i = 0; i < world->log_count; i++) {
        if (world->log[i].kind == DLOCKI_GIVE_BACK && world->log[i].result == 1 &&
            strcmp(world->log[i].owner, owner) == 0) {
            return true;
        }
    }
    return false;
}

/* What must be so at every moment. */
static void check_holders(struct world *world)
{
    for (int i = 0; i < client_count; i++) {
        for (int j = 0; j < HANDLES; j++) {
            struct caller *caller = &clients[i].callers[j];
            if (call_is_over(&caller->lock) && dlock_is_acquired(&caller->lock) &&
                !dlock_is_degraded(&caller->lock)) {
                must_be(strcmp(world_holder(world, key_names[caller->key]),
                               dlock_owner(&caller->lock)) == 0,
                        "it says it holds what the server gave to nobody, or to another");
            }
        }
    }
}

/* A call has ended: is that what may be? */
static void check_end(struct world *world, struct client *client, struct caller *caller, int verb)
{
    dlock_lock *lock = &caller->lock;
    int code = dlock_why(lock)->code;
    bool answer = lock->_answer;
    say(world, "client %d handle %d verb %d: %d %s", (int)(client - clients),
        (int)(caller - client->callers), verb, answer, dlock_why(lock)->text);
    must_be(world->now - caller->began <= caller->bound, "a call took longer than its bound");
    must_be(answer == (code == DLOCK_OK), "answer and code contradict each other");
    must_be(code != DLOCK_ARGUMENT && code != DLOCK_MEMORY, "a code that cannot be");
    must_be(code == DLOCK_OK || strstr(dlock_why(lock)->text, "dl1-") == NULL,
            "an owner in a text");
    lock->_claim = DLOCKI_FREE;
    if (verb == DLOCKI_RELEASE) {
        totals.releases += answer;
        if (code == DLOCK_REFUSED) {   /* not owed: trying again would not help, and it lapses */
            world_strike(world, caller->owner);
        }
        must_be(!answer || was_given_back(world, caller->owner),
                "a release was true and had not given back");
    } else if (verb == DLOCKI_ACQUIRE && answer && !dlock_is_degraded(lock)) {
        totals.grants++;
        must_be(dlock_fence(lock) == 0 || dlock_fence(lock) > last_fences[caller->key],
                "a fence did not grow");
        if (dlock_fence(lock) != 0) {
            last_fences[caller->key] = dlock_fence(lock);
        }
        (void)snprintf(caller->owner, sizeof caller->owner, "%s", dlock_owner(lock));
    }
}

/* Everybody who is awake deals with what has come. */
static void step_all(struct world *world)
{
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        if (client->paused_until > world->now) {
            continue;
        }
        client->wanted = DLOCKI_NEVER;
        if (client->factory->pending.first != NULL) {
            client->wanted = call_step(world, client->factory);
        }
        for (int j = 0; j < HANDLES; j++) {
            struct caller *caller = &client->callers[j];
            if (caller->verb != DLOCKI_NO_VERB && call_is_over(&caller->lock)) {
                check_end(world, client, caller, caller->verb);
                caller->verb = DLOCKI_NO_VERB;
            }
        }
    }
    check_holders(world);
}

static bool anybody_waits(void)
{
    for (int i = 0; i < client_count; i++) {
        if (clients[i].factory->pending.first != NULL) {
            return true;
        }
    }
    return false;
}

/* Time passes, to the next moment at which something happens, or for `most`. */
static void pass(struct world *world, int64_t most)
{
    int64_t until = dlocki_least(world->now + most, world_next(world));
    for (int i = 0; i < client_count; i++) {
        until = dlocki_least(until, dlocki_most(clients[i].paused_until, clients[i].wanted));
    }
    world_sleep(world, dlocki_most(1, until - world->now));
    step_all(world);
}

static void random_fault(struct world *world)
{
    static const char *const texts[] = {"-LOADING x\r\n",
                                        "-OOM x\r\n",
                                        "-WEIRD x\r\n",
                                        "-READONLY x\r\n",
                                        "+OK\r\n",
                                        "*1\r\n",
                                        "-ERR max number of clients reached\r\n",
                                        "-NOSCRIPT x\r\n",
                                        "$-1\r\n",
                                        ":1\r\n"};
    static const int kinds[] = {DLOCKI_PING, DLOCKI_ASK, DLOCKI_EXTEND, DLOCKI_GIVE_BACK};
    struct fault *fault;
    if (world->fault_count == WORLD_FAULTS) {
        return;
    }
    totals.faults++;
    /* Not FAULT_STOP: a server answers a PING only after all else that had come is done, too. */
    fault = world_fault(world, (enum fault_kind)world_pick(world, FAULT_STOP), ANY_COMMAND);
    fault->skip = world_pick(world, 4);
    fault->times = 1 + world_pick(world, 2);
    fault->delay_ms = 1 + world_pick(world, 150);
    fault->bytes = (size_t)world_pick(world, 40);
    fault->text = texts[world_pick(world, 10)];
    switch (fault->kind) { /* whoever only breaks does not lie */
    case FAULT_DROP_REPLY:
        fault->kind = FAULT_MUTE;
        break;
    case FAULT_DROP_REQUEST:
        fault->kind = FAULT_DEAF;
        break;
    case FAULT_DRIP:
        fault->delay_ms = 1 + world_pick(world, 5);
        break;
    case FAULT_MORE:
        fault->text = "*1\r\n";
        fault->delay_ms = 0;
        break;
    case FAULT_FLOOD:
        fault->text = "*9\r\n";
        break;
    case FAULT_ANSWER_AFTER:
        fault->command = DLOCKI_ASK;
        fault->text = world_pick(world, 2) == 0 ? "-WEIRD x\r\n" : "+OK\r\n";
        break;
    case FAULT_ANSWER:
        /* What was granted behind a handshake that was refused is bound to that connection. */
        fault->command = fault->text[0] == '-' ? kinds[world_pick(world, 4)] : DLOCKI_ASK;
        break;
    default:
        break;
    }
    say(world, "fault %d after %d, %lld ms, %s", (int)fault->kind, fault->skip,
        (long long)fault->delay_ms, fault->text);
}

static void read_again(struct world *world)
{
    world->send_room = -1;
}

static void random_server_event(struct world *world)
{
    int span = 1 + world_pick(world, 400);
    int what = world_pick(world, 5);
    switch (what) {
    case 0:
        server_stops(world);
        world_at(world, span, server_goes_on);
        break;
    case 1:
        server_dies(world);
        world_at(world, span, server_revives);
        break;
    case 2:
        server_restarts(world);
        break;
    case 3:   /* it stops, and what is sent piles up */
        server_stops(world);
        world->send_room = 150 + world_pick(world, 600);
        world_at(world, span, server_goes_on);
        world_at(world, span, read_again);
        break;
    default:
        memset(world->loaded, 0, sizeof world->loaded);
        break;
    }
    say(world, "server event %d, %d ms", what, span);
}

static void random_acquire(struct world *world, struct client *client, struct caller *caller)
{
    dlock_options options;
    const dlock_factory *factory = client->factory;
    int64_t attempt = 3 * ((int64_t)factory->connect_timeout_ms + factory->command_timeout_ms);
    memset(&options, 0, sizeof options);
    /* Some lapse within the schedule; others would outlive it. */
    options.expiry_ms = world_pick(world, 2) == 0 ? 20 + world_pick(world, 600) : 60000;
    options.no_fence = world_pick(world, 6) == 0;
    options.fail_open = world_pick(world, 12) == 0;
    options.retry_count = world_pick(world, 3);
    options.retry_delay_ms = world_pick(world, 2) * (1 + world_pick(world, 60));
    options.retry_jitter_ms = world_pick(world, 20);
    options.wait_ms = world_pick(world, 2) * world_pick(world, 400);
    caller->key = world_pick(world, KEYS);
    caller->began = world->now;
    caller->bound = (options.retry_count + 1) * (attempt + 2000 + options.retry_jitter_ms);
    if (options.wait_ms > 0) {
        caller->bound = dlocki_least(caller->bound, options.wait_ms);
    }
    say(world, "client %d handle %d acquires %s for %lld: retry %d wait %lld",
        (int)(client - clients), (int)(caller - client->callers), key_names[caller->key],
        (long long)options.expiry_ms, options.retry_count, (long long)options.wait_ms);
    caller->verb = DLOCKI_ACQUIRE;
    must_be(call_acquire(client->factory, &caller->lock, key_names[caller->key], &options),
            "an acquire was an argument error");
}

/* Something that the program does, on a handle that is free for it. */
static void random_call(struct world *world)
{
    struct client *client = &clients[world_pick(world, client_count)];
    struct caller *caller = &client->callers[world_pick(world, HANDLES)];
    dlock_lock *lock = &caller->lock;
    const dlock_factory *factory = client->factory;
    if (client->paused_until > world->now) {
        return;
    }
    if (caller->verb != DLOCKI_NO_VERB) {
        if (world_pick(world, 4) == 0) {
            say(world, "client %d handle %d cancels", (int)(client - clients),
                (int)(caller - client->callers));
            totals.cancels++;
            world_cancel(world, lock);
        }
        return;
    }
    if (lock->_state == DLOCKI_OURS && lock->_degraded) {
        must_be(dlock_release(lock), "a degraded release was false");
        return;
    }
    caller->began = world->now;
    caller->bound = (int64_t)factory->connect_timeout_ms + factory->command_timeout_ms;
    if (lock->_state == DLOCKI_OURS && world_pick(world, 3) == 0) {
        lock->_ask_expiry_ms = world_pick(world, 3) == 0 ? 30000 : 20 + world_pick(world, 600);
        caller->verb = DLOCKI_EXTENSION;
        call_begin(client->factory, lock, DLOCKI_EXTENSION);
    } else if (lock->_state == DLOCKI_OURS ||
               (lock->_state == DLOCKI_OWED && world_pick(world, 2) == 0)) {
        caller->verb = DLOCKI_RELEASE;
        call_begin(client->factory, lock, DLOCKI_RELEASE);
    } else {
        random_acquire(world, client, caller);
    }
}

static void random_step(struct world *world)
{
    int what = world_pick(world, 20);
    if (what < 8) {
        random_call(world);
        step_all(world);
    } else if (what < 10) {
        random_fault(world);
    } else if (what == 10 && !world->down && !world->stopped) {
        random_server_event(world);
    } else if (what == 11) {
        struct client *client = &clients[world_pick(world, client_count)];
        int span = world_pick(world, 400);
        client->paused_until = world->now + span;
        for (int j = 0; j < HANDLES; j++) { /* it finds out afterwards */
            client->callers[j].bound += span;
        }
        say(world, "client %d pauses for %d", (int)(client - clients), span);
    } else {
        pass(world, 1 + world_pick(world, 60));
    }
}

static void open_clients(struct world *world)
{
    memset(last_fences, 0, sizeof last_fences);
    client_count = 2 + world_pick(world, CLIENTS - 1);
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        dlock_config config;
        memset(client, 0, sizeof *client);
        memset(&config, 0, sizeof config);
        config.command_timeout_ms = 230 + world_pick(world, 120);
        config.connect_timeout_ms = 20 + world_pick(world, 100);
        config.client_name = world_pick(world, 3) == 0 ? "me" : NULL;
        client->factory = world_open(world, &config);
    }
}

/* For a replay: all that the server saw, and what it still has. */
static void tell_log(const struct world *world)
{
    static const char *const names[] = {"AUTH",      "SELECT",  "SETNAME", "PING",
                                        "SUBSCRIBE", "SET",     "ask",     "extend",
                                        "give back", "inspect", "break"};
    struct model_key *key = NULL;
    for (int i = 0; tells && i < world->log_count; i++) {
        const struct seen *seen = &world->log[i];
        print_message("at %5lld on %u: %s%s %s: %s %d\n", (long long)(seen->at - WORLD_START),
                      seen->socket, names[seen->kind], seen->whole ? " whole" : "", seen->owner,
                      seen->executed ? "executed" : "not executed", seen->result);
    }
    while (tells && (key = model_key_next(world->model, key, server_now_us(world))) != NULL) {
        print_message("left: %s %s\n", key->key, key->sorted ? "" : key->bytes);
    }
}

static void run_schedule(uint64_t seed)
{
    struct world *world = world_begin();
    the_seed = seed;
    world->seed = seed;
    world->any_order = world_pick(world, 2) == 0;
    world->newest_first = world_pick(world, 4) == 0;
    world->latency_ms = world_pick(world, 6);
    world->one_byte = world_pick(world, 16) == 0;
    open_clients(world);
    for (int i = 0; i < STEPS; i++) {
        random_step(world);
    }
    world->fault_count = 0;
    while (anybody_waits()) {
        pass(world, 1000);
    }
    /* All is well again. What the model still has on its way is seen, then everybody closes. */
    world_sleep(world, 1000);
    world->one_byte = false;
    must_be(!world->stopped && !world->down, "the server did not come back");
    for (int i = 0; i < client_count; i++) {
        int64_t began = world->now;
        int32_t bound = clients[i].factory->command_timeout_ms;
        totals.undone += clients[i].factory->debt_count;
        say(world, "client %d closes, %d owed", i, clients[i].factory->debt_count);
        dlock_close(clients[i].factory);
        must_be(world->now - began <= bound, "a close took longer than its bound");
    }
    world_sleep(world, 20);
    tell_log(world);
    must_be(world->open_sockets == 0 && world->open_wakes == 0, "a descriptor was left");
    must_be(world_key_count(world) == 0, "a key was left");
}

static void random_schedules_keep_every_promise(void **state)
{
    const char *one = getenv("DLOCK_SEED");
    const char *many = getenv("DLOCK_SEEDS");
    uint64_t count = many != NULL && *many != '\0' ? strtoull(many, NULL, 10) : SEEDS;
    (void)state;
    tells = one != NULL;
    if (one != NULL) {
        run_schedule(strtoull(one, NULL, 10));
        return;
    }
    for (uint64_t seed = 1; seed <= count; seed++) {
        run_schedule(seed);
    }
    print_message("%llu schedules: %ld grants, %ld releases, %ld owed at the end, %ld cancels, "
                  "%ld faults\n",
                  (unsigned long long)count, totals.grants, totals.releases, totals.undone,
                  totals.cancels, totals.faults);
    /* A schedule that does nothing proves nothing. */
    assert_true(totals.grants > (long)count && totals.releases > (long)count / 2);
    assert_true(totals.undone > (long)count / 50 && totals.cancels > (long)count / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_schedules_keep_every_promise)};
    /* Factories come and go; their memory need not go back to the system each time. */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 22);
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 24);
    if (getenv("DLOCK_SEEDS") == NULL) {
        watchdog(250);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
