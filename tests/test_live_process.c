/* Processes, threads, signals and descriptors around the lock. */
#define _GNU_SOURCE
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static const dlock_options once = {.expiry_ms = 30000};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

/* ----------------------------------------------------------------------------- mutual exclusion */

/* What holders write down while they hold; on shared pages. */
struct witness {
    char url[SERVER_URL_MAX];
    atomic_int inside;              /* holders at this moment           */
    atomic_int overlaps;            /* moments with more than one       */
    atomic_int entered;
    atomic_int fence_faults;        /* a fence that did not grow        */
    _Atomic uint64_t last_fence;
    atomic_int go;
    atomic_int ready;
    atomic_int answer;              /* of the first question after a stop; -1 = none yet */
    atomic_llong number;
};

static struct witness *witness_new(struct live *live)
{
    struct witness *witness = (struct witness *)shared_memory(sizeof *witness);
    (void)snprintf(witness->url, sizeof witness->url, "%s", live->server.url);
    return witness;
}

/* Inside the lock: is anybody else here, and did the fence grow? */
static void stay_inside(struct witness *witness, uint64_t fence)
{
    if (atomic_fetch_add(&witness->inside, 1) != 0) {
        atomic_fetch_add(&witness->overlaps, 1);
    }
    if (fence <= atomic_load(&witness->last_fence)) {
        atomic_fetch_add(&witness->fence_faults, 1);
    }
    atomic_store(&witness->last_fence, fence);
    struct timespec rest = {0, 300000};
    (void)nanosleep(&rest, NULL);
    atomic_fetch_add(&witness->entered, 1);
    atomic_fetch_sub(&witness->inside, 1);
}

enum { PEOPLE = 4, ROUNDS = 60 };

static int person(void *argument)
{
    struct witness *witness = (struct witness *)argument;
    dlock_options waits = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 2, .retry_jitter_ms = 2};
    dlock_factory *factory = dlock_open(witness->url, NULL, NULL);
    child_check(factory != NULL);
    for (int i = 0; i < ROUNDS; i++) {
        dlock_lock lock = DLOCK_INIT;
        child_check(dlock_acquire(factory, &lock, "table", &waits));
        stay_inside(witness, dlock_fence(&lock));
        child_check(dlock_is_acquired(&lock));
        child_check(dlock_release(&lock));
    }
    dlock_close(factory);
    return 0;
}

static void processes_exclude_each_other_and_their_fences_grow(void **state)
{
    struct live *live = live_of(state);
    struct witness *witness = witness_new(live);
    pid_t people[PEOPLE];
    for (int i = 0; i < PEOPLE; i++) {
        people[i] = child_start(person, witness);
    }
    for (int i = 0; i < PEOPLE; i++) {
        assert_int_equal(child_wait(people[i]), 0);
    }
    assert_int_equal(atomic_load(&witness->entered), PEOPLE * ROUNDS);
    assert_int_equal(atomic_load(&witness->overlaps), 0);
    assert_int_equal(atomic_load(&witness->fence_faults), 0);
    assert_gone(&live->server, "table");
    live_end(live);
}

static int careless_person(void *argument)
{
    struct witness *witness = (struct witness *)argument;
    for (int i = 0; i < ROUNDS; i++) {
        stay_inside(witness, 1);
    }
    return 0;
}

/* The witness sees what it is there to see. */
static void control_without_the_lock_the_witness_sees_overlaps(void **state)
{
    struct live *live = live_of(state);
    struct witness *witness = witness_new(live);
    pid_t people[PEOPLE];
    for (int i = 0; i < PEOPLE; i++) {
        people[i] = child_start(careless_person, witness);
    }
    for (int i = 0; i < PEOPLE; i++) {
        assert_int_equal(child_wait(people[i]), 0);
    }
    assert_true(atomic_load(&witness->overlaps) > 0);
    assert_true(atomic_load(&witness->fence_faults) > 0);
    live_end(live);
}

struct sharer {
    pthread_t thread;
    dlock_factory *factory;
    struct witness *witness;
    bool well;
};

static void *sharer_body(void *argument)
{
    struct sharer *sharer = (struct sharer *)argument;
    dlock_options waits = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 2, .retry_jitter_ms = 2};
    sharer->well = true;
    for (int i = 0; i < 25 && sharer->well; i++) {
        dlock_lock lock = DLOCK_INIT;
        sharer->well = dlock_acquire(sharer->factory, &lock, "table", &waits);
        if (sharer->well) {
            stay_inside(sharer->witness, dlock_fence(&lock));
            sharer->well = dlock_extend(&lock, 60000) && dlock_release(&lock);
        }
    }
    return NULL;
}

static void threads_that_share_a_factory_exclude_each_other(void **state)
{
    enum { THREADS = 6 };
    struct live *live = live_of(state);
    struct witness *witness = witness_new(live);
    struct sharer sharers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        sharers[i].factory = live->factory;
        sharers[i].witness = witness;
        assert_int_equal(pthread_create(&sharers[i].thread, NULL, sharer_body, &sharers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(sharers[i].thread, NULL), 0);
        assert_true(sharers[i].well);
    }
    assert_int_equal(atomic_load(&witness->entered), THREADS * 25);
    assert_int_equal(atomic_load(&witness->overlaps), 0);
    assert_int_equal(atomic_load(&witness->fence_faults), 0);
    assert_true(server_info(&live->server, "stats", "total_connections_received") <= 4);
    live_end(live);
}

/* ------------------------------------------------------------------------- a process that slept */

static int sleepy_holder(void *argument)
{
    struct witness *witness = (struct witness *)argument;
    dlock_options brief = {.expiry_ms = 300};
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = dlock_open(witness->url, NULL, NULL);
    child_check(factory != NULL);
    child_check(dlock_acquire(factory, &lock, "k", &brief));
    atomic_store(&witness->ready, 1);
    int64_t last = now_ms();
    int64_t end = last + 20000;
    while (last < end) {
        int64_t now = now_ms();
        bool acquired = dlock_is_acquired(&lock);
        if (now - last > 250) {     /* we were stopped: this was the first question afterwards */
            atomic_store(&witness->answer, acquired ? 1 : 0);
            break;
        }
        last = now;
    }
    atomic_store(&witness->ready, 2);
    while (atomic_load(&witness->go) == 0) {
        pause_ms(1);
    }
    child_check(dlock_remaining_ms(&lock) == 0);
    child_check(!dlock_extend(&lock, 60000));
    child_check(dlock_why(&lock)->code == DLOCK_LOST);
    child_check(!dlock_release(&lock));
    child_check(dlock_why(&lock)->code == DLOCK_LOST);
    dlock_close(factory);
    return 0;
}

static void wait_until(atomic_int *value, int expected)
{
    int64_t end = now_ms() + 20000;
    while (atomic_load(value) != expected && now_ms() < end) {
        pause_ms(1);
    }
    assert_int_equal(atomic_load(value), expected);
}

static void a_process_stopped_beyond_its_lease_knows_at_its_first_question(void **state)
{
    struct live *live = live_of(state);
    struct witness *witness = witness_new(live);
    dlock_lock next = DLOCK_INIT;
    atomic_store(&witness->answer, -1);
    pid_t pid = child_start(sleepy_holder, witness);
    wait_until(&witness->ready, 1);
    assert_int_equal(kill(pid, SIGSTOP), 0);
    pause_ms(450);
    dlock_options waits = {.wait_ms = 5000};
    assert_yes(dlock_acquire(live->factory, &next, "k", &waits), &next);
    int64_t heard = server_heard(&live->server);
    assert_int_equal(kill(pid, SIGCONT), 0);
    wait_until(&witness->ready, 2);
    assert_int_equal(atomic_load(&witness->answer), 0);
    assert_int_equal(server_heard(&live->server), heard);
    atomic_store(&witness->go, 1);
    assert_int_equal(child_wait(pid), 0);
    assert_held(&live->server, &next, "k");
    live_end(live);
}

static int killed_holder(void *argument)
{
    struct witness *witness = (struct witness *)argument;
    dlock_options brief = {.expiry_ms = 500};
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = dlock_open(witness->url, NULL, NULL);
    child_check(factory != NULL && dlock_acquire(factory, &lock, "k", &brief));
    atomic_store(&witness->ready, 1);
    pause_ms(30000);
    return 0;
}

static void a_killed_holder_is_followed_when_its_lease_has_ended(void **state)
{
    struct live *live = live_of(state);
    struct witness *witness = witness_new(live);
    dlock_lock next = DLOCK_INIT;
    dlock_options waits = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 10000};
    pid_t pid = child_start(killed_holder, witness);
    wait_until(&witness->ready, 1);
    int64_t left = server_integer(&live->server, "PTTL k");
    int64_t start = now_ms();
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(child_wait(pid), 128 + SIGKILL);
    assert_yes(dlock_acquire(live->factory, &next, "k", &waits), &next);
    assert_took(start, left - 30, left);
    live_end(live);
}

/* The process exits with its acquire unanswered; what it may have left lapses. */
static int hasty_process(void *argument)
{
    struct witness *witness = (struct witness *)argument;
    dlock_config config = {.command_timeout_ms = 30};
    dlock_options brief = {.expiry_ms = 600};
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = dlock_open(witness->url, &config, NULL);
    child_check(factory != NULL);
    child_check(!dlock_acquire(factory, &lock, "k", &brief));
    child_check(dlock_why(&lock)->code == DLOCK_UNREACHABLE);
    _exit(0);
}

static void what_an_exiting_process_leaves_lapses_with_its_lease(void **state)
{
    struct live *live = live_of(state);
    struct witness *witness = witness_new(live);
    dlock_lock next = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 20000, .retry_delay_ms = 10000};
    for (int i = 0; i < 3; i++) {
        server_pause(&live->server);
        assert_int_equal(child_wait(child_start(hasty_process, witness)), 0);
        server_continue(&live->server);
        int64_t start = now_ms();
        assert_yes(dlock_acquire(live->factory, &next, "k", &waits), &next);
        assert_took(start, 0, 600);
        assert_yes(dlock_release(&next), &next);
    }
    live_end(live);
}

/* ----------------------------------------------------------------------------------- fork, exec */

struct inherited {
    dlock_factory *factory;
    dlock_lock *held;
    dlock_lock *unused;
};

static int heir(void *argument)
{
    struct inherited *given = (struct inherited *)argument;
    child_check(!dlock_is_acquired(given->held));
    child_check(dlock_remaining_ms(given->held) == 0);
    child_check(dlock_fence(given->held) == 0);
    child_check(!dlock_extend(given->held, 60000));
    child_check(dlock_why(given->held)->code == DLOCK_ARGUMENT);
    child_check(!dlock_release(given->held));
    child_check(dlock_why(given->held)->code == DLOCK_ARGUMENT);
    child_check(!dlock_acquire(given->factory, given->unused, "child", NULL));
    child_check(dlock_why(given->unused)->code == DLOCK_ARGUMENT);
    child_check(dlock_why(given->unused)->text[0] != '\0');
    dlock_cancel(given->unused);
    dlock_close(given->factory);
    return 0;
}

/* Several children, one after the other: none of them changes anything for the parent. */
static void a_forked_child_holds_nothing_sends_nothing_and_leaves_the_parent_alone(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_lock unused = DLOCK_INIT;
    struct inherited given = {live->factory, &held, &unused};
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    uint64_t fence = dlock_fence(&held);
    int64_t heard = server_heard(&live->server);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(child_wait(child_start(heir, &given)), 0);
    }
    assert_int_equal(server_heard(&live->server), heard);
    assert_held(&live->server, &held, "k");
    assert_true(dlock_fence(&held) == fence);
    assert_yes(dlock_extend(&held, 60000), &held);
    assert_yes(dlock_acquire(live->factory, &unused, "parent", &once), &unused);
    assert_yes(dlock_release(&unused), &unused);
    assert_yes(dlock_release(&held), &held);
    assert_true(server_info(&live->server, "stats", "total_connections_received") <= 4);
    live_end(live);
}

static int heir_with_a_factory_of_its_own(void *argument)
{
    struct witness *witness = (struct witness *)argument;
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = dlock_open(witness->url, NULL, NULL);
    child_check(factory != NULL);
    child_check(!dlock_acquire(factory, &lock, "k", NULL));
    child_check(dlock_why(&lock)->code == DLOCK_BUSY);
    child_check(dlock_acquire(factory, &lock, "child", NULL));
    child_check(dlock_release(&lock));
    dlock_close(factory);
    return 0;
}

static void a_forked_child_may_open_a_factory_of_its_own(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    assert_int_equal(child_wait(child_start(heir_with_a_factory_of_its_own, witness_new(live))), 0);
    assert_yes(dlock_release(&held), &held);
    live_end(live);
}

/* Leaves with a lock held and a factory open: no crash, and the lease goes on. */
static int careless_leaver(void *argument)
{
    struct witness *witness = (struct witness *)argument;
    static dlock_lock lock;
    dlock_factory *factory = dlock_open(witness->url, NULL, NULL);
    child_check(factory != NULL && dlock_acquire(factory, &lock, "k", &once));
    return 0;
}

static void a_process_that_ends_without_close_leaves_the_lease(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_int_equal(child_wait(child_start(careless_leaver, witness_new(live))), 0);
    assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_BUSY);
    live_end(live);
}

/* The descriptors that a program executed by us finds open, as the shell lists them. */
static void inherited_descriptors(char *list, size_t size)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        (void)dup2(ends[1], 1);
        (void)close(ends[0]);
        (void)close(ends[1]);
        (void)execl("/bin/sh", "sh", "-c", "ls /proc/self/fd", (char *)NULL);
        _exit(127);
    }
    (void)close(ends[1]);
    size_t length = 0;
    ssize_t got;
    while ((got = read(ends[0], list + length, size - 1 - length)) > 0) {
        length += (size_t)got;
    }
    list[length] = '\0';
    (void)close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_true(length > 0);
}

static void a_program_we_execute_inherits_nothing_of_ours(void **state)
{
    struct live *live = live_of(state);
    char before[1024];
    char after[1024];
    char url[128];
    dlock_lock lock = DLOCK_INIT;
    server_stop(&live->server);
    server_start(&live->server, true, NULL);
    live_end(live);
    inherited_descriptors(before, sizeof before);
    for (int tcp = 0; tcp < 2; tcp++) {
        (void)snprintf(url, sizeof url, "redis://127.0.0.1:%d", live->server.port);
        live_reopen(live, tcp ? url : live->server.url, NULL);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        inherited_descriptors(after, sizeof after);
        assert_string_equal(after, before);
        assert_yes(dlock_release(&lock), &lock);
    }
    live_end(live);
}

/* -------------------------------------------------------------------------------- cancel, close */

struct canceller {
    pthread_t thread;
    pthread_t target;
    dlock_lock *lock;
    int64_t delay_ms;
    bool by_signal;
    _Atomic int64_t at;
};

static dlock_lock *cancelled_by_signal;

static void on_signal(int number)
{
    (void)number;
    dlock_cancel(cancelled_by_signal);
}

static void *canceller_body(void *argument)
{
    struct canceller *canceller = (struct canceller *)argument;
    pause_ms(canceller->delay_ms);
    atomic_store(&canceller->at, now_ms());
    if (canceller->by_signal) {
        (void)pthread_kill(canceller->target, SIGUSR1);
    } else {
        dlock_cancel(canceller->lock);
    }
    return NULL;
}

/* While it pauses, and while it waits for a server that does not answer. */
static void a_cancel_ends_a_pending_acquire_at_once_and_leaves_nothing(void **state)
{
    static const struct {
        bool by_signal;
        bool stopped;
    } cases[] = {{false, false}, {true, false}, {false, true}, {true, true}};
    struct live *live = live_of(state);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
    dlock_config config = {.command_timeout_ms = 20000};
    live_reopen(live, live->server.url, &config);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_options waits = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 10000};
        struct canceller canceller = {.lock = &lock,
                                      .delay_ms = 150,
                                      .target = pthread_self(),
                                      .by_signal = cases[i].by_signal};
        cancelled_by_signal = &lock;
        server_do(&live->server, "FLUSHALL");
        if (!cases[i].stopped) {
            server_do(&live->server, "SET k theirs");
        } else {
            server_pause(&live->server);
        }
        assert_int_equal(pthread_create(&canceller.thread, NULL, canceller_body, &canceller), 0);
        bool answer = dlock_acquire(live->factory, &lock, "k", &waits);
        int64_t end = now_ms();
        assert_int_equal(pthread_join(canceller.thread, NULL), 0);
        assert_no(answer, &lock, DLOCK_CANCELLED);
        assert_in_range(end - atomic_load(&canceller.at) + 1, 0, 300);
        if (cases[i].stopped) {
            server_continue(&live->server);
            assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
            assert_held(&live->server, &lock, "k");
            assert_yes(dlock_release(&lock), &lock);
            assert_gone(&live->server, "k");
        } else {
            server_do(&live->server, "DEL k");
        }
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    live_end(live);
}

static void a_cancel_with_nothing_pending_is_not_remembered(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_cancel(NULL);
    dlock_cancel(&lock);
    errno = ENOTTY;
    dlock_cancel(&lock);
    assert_int_equal(errno, ENOTTY);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    dlock_cancel(&lock);
    assert_true(dlock_is_acquired(&lock));
    assert_yes(dlock_extend(&lock, 60000), &lock);
    dlock_cancel(&lock);
    assert_yes(dlock_release(&lock), &lock);
    dlock_cancel(&lock);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    live_end(live);
}

/* A signal without a cancel interrupts nothing: the bound is one instant, computed once. */
static void on_tick(int number)
{
    (void)number;
}

static void signals_neither_end_nor_stretch_a_wait(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 400, .retry_delay_ms = 10000};
    struct sigaction action;
    struct sigevent event;
    timer_t timer;
    struct itimerspec often = {{0, 2000000}, {0, 2000000}};
    struct itimerspec never = {{0, 0}, {0, 0}};
    memset(&action, 0, sizeof action);
    action.sa_handler = on_tick;
    assert_int_equal(sigaction(SIGUSR2, &action, NULL), 0);
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR2;
    server_do(&live->server, "SET k theirs");
    assert_int_equal(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    assert_int_equal(timer_settime(timer, 0, &often, NULL), 0);
    int64_t start = now_ms();
    bool answer = dlock_acquire(live->factory, &lock, "k", &waits);
    int64_t span = now_ms() - start;
    dlock_lock other = DLOCK_INIT;
    bool all_well = true;
    for (int i = 0; i < 300; i++) {
        all_well = all_well && dlock_acquire(live->factory, &other, "other", &once) &&
                   dlock_extend(&other, 60000) && dlock_release(&other);
    }
    assert_int_equal(timer_settime(timer, 0, &never, NULL), 0);
    assert_int_equal(timer_delete(timer), 0);
    assert_no(answer, &lock, DLOCK_TIMEOUT);
    assert_in_range(span, 398, 1300);
    assert_true(all_well);
    live_end(live);
}

struct waiter {
    pthread_t thread;
    dlock_factory *factory;
    dlock_lock lock;
    atomic_int started;
    bool answer;
    int code;
};

static void *waiter_body(void *argument)
{
    struct waiter *waiter = (struct waiter *)argument;
    dlock_options waits = {.wait_ms = DLOCK_FOREVER, .retry_delay_ms = 10000};
    atomic_store(&waiter->started, 1);
    waiter->answer = dlock_acquire(waiter->factory, &waiter->lock, "k", &waits);
    waiter->code = dlock_why(&waiter->lock)->code;
    return NULL;
}

static void close_gives_back_what_is_held_and_cancels_who_waits(void **state)
{
    enum { WAITERS = 3 };
    struct live *live = live_of(state);
    static struct waiter waiters[WAITERS];
    dlock_lock held = DLOCK_INIT;
    dlock_lock second = DLOCK_INIT;
    memset(waiters, 0, sizeof waiters);
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    assert_yes(dlock_acquire(live->factory, &second, "second", &once), &second);
    for (int i = 0; i < WAITERS; i++) {
        waiters[i].factory = live->factory;
        assert_int_equal(pthread_create(&waiters[i].thread, NULL, waiter_body, &waiters[i]), 0);
        wait_until(&waiters[i].started, 1);
    }
    pause_ms(150);
    int64_t start = now_ms();
    live_end(live);
    assert_took(start, 0, 200);
    for (int i = 0; i < WAITERS; i++) {
        assert_int_equal(pthread_join(waiters[i].thread, NULL), 0);
        assert_false(waiters[i].answer);
        assert_int_equal(waiters[i].code, DLOCK_CANCELLED);
    }
    assert_gone(&live->server, "k");
    assert_gone(&live->server, "second");
    assert_int_equal(server_integer(&live->server, "EXISTS {k}:queue"), 0);
    live_end(live);
}

static void close_makes_held_handles_unused(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    live_end(live);
    assert_gone(&live->server, "k");
    assert_false(dlock_is_acquired(&held));
    assert_int_equal(dlock_remaining_ms(&held), 0);
    assert_int_equal(dlock_fence(&held), 0);
    assert_string_equal(dlock_owner(&held), "");
    dlock_cancel(&held);
    assert_no(dlock_release(&held), &held, DLOCK_ARGUMENT);
    assert_no(dlock_extend(&held, 0), &held, DLOCK_ARGUMENT);
    live->factory = open_factory(live->server.url, NULL);
    assert_yes(dlock_acquire(live->factory, &held, "k", &once), &held);
    assert_held(&live->server, &held, "k");
    live_end(live);
}

/* The scope's end: whatever became of the lock, at most one release, and never a crash. */
static void a_scope_releases_what_it_still_holds(void **state)
{
    struct live *live = live_of(state);
    for (int i = 0; i < 4; i++) {
        DLOCK_SCOPED(lock);
        DLOCK_SCOPED(never);
        (void)never;
        {
            DLOCK_SCOPED(inner);
            assert_yes(dlock_acquire(live->factory, &inner, "inner", &once), &inner);
            assert_held(&live->server, &inner, "inner");
        }
        assert_gone(&live->server, "inner");
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        if (i == 1) {
            assert_yes(dlock_release(&lock), &lock);
        } else if (i == 2) {
            server_do(&live->server, "SET k theirs");
        } else if (i == 3) {
            live_reopen(live, live->server.url, NULL);
        }
        if (i != 2) {
            continue;
        }
        char text[64];
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
        server_text(&live->server, text, sizeof text, "GET k");
        assert_string_equal(text, "theirs");
        server_do(&live->server, "DEL k");
    }
    assert_gone(&live->server, "k");
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(processes_exclude_each_other_and_their_fences_grow),
        LIVE(control_without_the_lock_the_witness_sees_overlaps),
        LIVE(threads_that_share_a_factory_exclude_each_other),
        LIVE(a_process_stopped_beyond_its_lease_knows_at_its_first_question),
        LIVE(a_killed_holder_is_followed_when_its_lease_has_ended),
        LIVE(what_an_exiting_process_leaves_lapses_with_its_lease),
        LIVE(a_forked_child_holds_nothing_sends_nothing_and_leaves_the_parent_alone),
        LIVE(a_forked_child_may_open_a_factory_of_its_own),
        LIVE(a_process_that_ends_without_close_leaves_the_lease),
        LIVE(a_program_we_execute_inherits_nothing_of_ours),
        LIVE(a_cancel_ends_a_pending_acquire_at_once_and_leaves_nothing),
        LIVE(a_cancel_with_nothing_pending_is_not_remembered),
        LIVE(signals_neither_end_nor_stretch_a_wait),
        LIVE(close_gives_back_what_is_held_and_cancels_who_waits),
        LIVE(close_makes_held_handles_unused),
        LIVE(a_scope_releases_what_it_still_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
