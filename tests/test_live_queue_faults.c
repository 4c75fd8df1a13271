/* Waiting in line while things go wrong: processes that are killed or stopped, connections that
 * are cut, a server that restarts, forgets its scripts, is busy, full, or forbids; and a line with
 * dead tickets and rubbish in it. */
#define _GNU_SOURCE
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* A holder that is in nobody's way: whoever gets in sooner than this did not wait for a timer. */
static const dlock_options minute = {.expiry_ms = 60000};
/* Rests on the hand-off: 30 seconds until it asks again by itself. */
static const dlock_options patient = {.expiry_ms = 30000, .wait_ms = 60000};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

static bool begins_with(const char *text, const char *beginning)
{
    return strncmp(text, beginning, strlen(beginning)) == 0;
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

/* ------------------------------------------------------------------------ processes in one line */

enum { PERSONS_MAX = 64, OWNER_SIZE = 40 };

enum person_state { NOT_YET, ASKING, INSIDE, OUTSIDE };

/* What came of one that waits; on shared pages. */
struct person {
    struct table *table;
    dlock_options options;
    int hold_ms;                        /* -1: until the table says go              */
    pid_t pid;
    atomic_int state;
    atomic_int served;                  /* how often it was inside                  */
    atomic_int late;                    /* told "yours" when it was over            */
    int turn;                           /* the order of service, from 1             */
    char owner[OWNER_SIZE];             /* that it was served with                  */
};

/* The independent witness: who is inside? */
struct table {
    char url[SERVER_URL_MAX];
    atomic_int inside;                  /* number of the person + 1; 0 = nobody     */
    atomic_int overlaps;
    atomic_int fence_faults;
    atomic_int served;
    atomic_int doubtful;                /* releases that nobody answered for certain */
    atomic_int go;
    _Atomic uint64_t last_fence;
    struct person persons[PERSONS_MAX];
};

static struct table *table_new(struct live *live)
{
    struct table *table = (struct table *)shared_memory(sizeof *table);
    (void)snprintf(table->url, sizeof table->url, "%s", live->server.url);
    for (int i = 0; i < PERSONS_MAX; i++) {
        table->persons[i].table = table;
        table->persons[i].options = patient;
        table->persons[i].hold_ms = 2;
    }
    return table;
}

static void enter(struct person *person, const dlock_lock *lock)
{
    struct table *table = person->table;
    int nobody = 0;
    int number = (int)(person - table->persons) + 1;
    if (!atomic_compare_exchange_strong(&table->inside, &nobody, number)) {
        fprintf(stderr, "person %d meets person %d\n", number - 1, nobody - 1);
        atomic_fetch_add(&table->overlaps, 1);
    }
    if (dlock_fence(lock) <= atomic_exchange(&table->last_fence, dlock_fence(lock))) {
        atomic_fetch_add(&table->fence_faults, 1);
    }
    (void)snprintf(person->owner, sizeof person->owner, "%s", dlock_owner(lock));
    person->turn = atomic_fetch_add(&table->served, 1) + 1;
    atomic_fetch_add(&person->served, 1);
    atomic_store(&person->state, INSIDE);
}

/* Gives it back. A killed connection or a restarted server may leave it unknown whether it was. */
static void go_outside(struct person *person, dlock_lock *lock)
{
    int number = (int)(person - person->table->persons) + 1;
    (void)atomic_compare_exchange_strong(&person->table->inside, &number, 0);
    atomic_store(&person->state, OUTSIDE);
    if (!dlock_release(lock)) {
        atomic_fetch_add(&person->table->doubtful, 1);
    }
}

/* What was told "it is yours" asks whether it is, first of all: true if it was, and is over now. */
static bool stay(struct person *person, dlock_lock *lock)
{
    if (!dlock_is_acquired(lock)) {
        atomic_fetch_add(&person->late, 1);
        (void)dlock_release(lock);
        return false;
    }
    enter(person, lock);
    if (person->hold_ms >= 0) {
        pause_ms(person->hold_ms);
    }
    while (person->hold_ms < 0 && atomic_load(&person->table->go) == 0) {
        pause_ms(1);
    }
    go_outside(person, lock);
    return true;
}

static void eat(struct person *person, dlock_factory *factory)
{
    dlock_lock lock = DLOCK_INIT;
    atomic_store(&person->state, ASKING);
    do {
        if (!dlock_acquire(factory, &lock, "k", &person->options)) {
            fprintf(stderr, "%s: %s\n", dlock_code_text(dlock_why(&lock)->code),
                    dlock_why(&lock)->text);
            child_fail("dlock_acquire", __FILE__, __LINE__);
        }
    } while (!stay(person, &lock));
}

/* A process, a factory, one wait. */
static int single(void *argument)
{
    struct person *person = (struct person *)argument;
    int before = descriptors();
    dlock_factory *factory = dlock_open(person->table->url, NULL, NULL);
    child_check(factory != NULL);
    eat(person, factory);
    dlock_close(factory);
    child_check(descriptors() == before);
    return 0;
}

enum { FAMILY = 6 };

struct member {
    pthread_t thread;
    struct person *person;
    dlock_factory *factory;
};

static void *member_body(void *argument)
{
    struct member *member = (struct member *)argument;
    eat(member->person, member->factory);
    return NULL;
}

/* A process, a factory, FAMILY threads that wait. */
static int threads_family(void *argument)
{
    struct person *first = (struct person *)argument;
    struct member members[FAMILY];
    int before = descriptors();
    dlock_factory *factory = dlock_open(first->table->url, NULL, NULL);
    child_check(factory != NULL);
    for (int i = 0; i < FAMILY; i++) {
        members[i].person = &first[i];
        members[i].factory = factory;
        child_check(pthread_create(&members[i].thread, NULL, member_body, &members[i]) == 0);
    }
    for (int i = 0; i < FAMILY; i++) {
        child_check(pthread_join(members[i].thread, NULL) == 0);
    }
    dlock_close(factory);
    child_check(descriptors() == before);
    return 0;
}

/* A process, two factories, FAMILY handles in one loop. */
static int loop_family(void *argument)
{
    struct person *first = (struct person *)argument;
    static struct guest guests[FAMILY];
    int before = descriptors();
    dlock_factory *factories[2];
    for (int i = 0; i < 2; i++) {
        factories[i] = dlock_open(first->table->url, NULL, NULL);
        child_check(factories[i] != NULL);
    }
    for (int i = 0; i < FAMILY; i++) {
        atomic_store(&first[i].state, ASKING);
        child_check(guest_start(&guests[i], factories[i % 2], "k", &first[i].options));
    }
    for (int left = FAMILY; left > 0;) {
        guests_turn(guests, FAMILY, 1000);
        for (int i = 0; i < FAMILY; i++) {
            if (guests[i].told == 0 || atomic_load(&first[i].state) != ASKING) {
                continue;
            }
            child_check(guests[i].told == 1 && guests[i].answer);
            if (stay(&first[i], &guests[i].lock)) {
                left--;
            } else {
                child_check(guest_start(&guests[i], factories[i % 2], "k", &first[i].options));
            }
        }
    }
    dlock_close(factories[0]);
    dlock_close(factories[1]);
    child_check(descriptors() == before);
    return 0;
}

static void wait_for_state(struct person *person, int expected)
{
    int64_t end = now_ms() + 20000;
    while (atomic_load(&person->state) != expected && now_ms() < end) {
        pause_ms(1);
    }
    assert_int_equal(atomic_load(&person->state), expected);
}

/* Kills a process with whatever it is doing; the witness does not wait for it. */
static void kill_person(struct person *person)
{
    int number = (int)(person - person->table->persons) + 1;
    assert_int_equal(kill(person->pid, SIGKILL), 0);
    assert_int_equal(child_wait(person->pid), 128 + SIGKILL);
    (void)atomic_compare_exchange_strong(&person->table->inside, &number, 0);
    person->pid = 0;
}

/* One that stands last in line when this returns; its ticket is told if it is asked for. */
static void person_arrives(struct live *live, struct person *person, char *ticket)
{
    int64_t length = line_length(&live->server, "k");
    person->pid = child_start(single, person);
    line_wait(&live->server, "k", length + 1);
    if (ticket != NULL) {
        line_ticket(&live->server, "k", -1, ticket);
    }
}

/* Nobody was inside beside another, and nothing is left: no key, ticket, inbox, connection. */
static void table_is_clean(struct live *live, struct table *table)
{
    assert_int_equal(atomic_load(&table->overlaps), 0);
    assert_int_equal(atomic_load(&table->fence_faults), 0);
    assert_int_equal(atomic_load(&table->inside), 0);
    line_is_over(&live->server, "k");
    dlock_close(live->factory);
    live->factory = NULL;
    inboxes_wait(&live->server, 0);
    int64_t end = now_ms() + 5000;
    while (server_info(&live->server, "clients", "connected_clients") != 1 && now_ms() < end) {
        pause_ms(2);
    }
    assert_int_equal(server_info(&live->server, "clients", "connected_clients"), 1);
}

static void sixteen_processes_are_served_in_the_order_of_arrival(void **state)
{
    enum { COUNT = 16 };
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    char tickets[COUNT][TICKET_MAX];
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < COUNT; i++) {
        person_arrives(live, &table->persons[i], tickets[i]);
    }
    assert_yes(dlock_release(&held), &held);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(child_wait(table->persons[i].pid), 0);
        assert_int_equal(table->persons[i].turn, i + 1);
        assert_true(begins_with(tickets[i], table->persons[i].owner));
    }
    assert_int_equal(atomic_load(&table->doubtful), 0);
    table_is_clean(live, table);
}

/* They come as they like; the scores say in which order they came. */
static void sixteen_processes_that_come_at_once_are_served_in_the_order_of_scores(void **state)
{
    enum { COUNT = 16 };
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    char tickets[COUNT][TICKET_MAX];
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < COUNT; i++) {
        table->persons[i].pid = child_start(single, &table->persons[i]);
    }
    line_wait(&live->server, "k", COUNT);
    for (int i = 0; i < COUNT; i++) {
        line_ticket(&live->server, "k", i, tickets[i]);
    }
    assert_yes(dlock_release(&held), &held);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(child_wait(table->persons[i].pid), 0);
        assert_in_range(table->persons[i].turn, 1, COUNT);
        assert_true(begins_with(tickets[table->persons[i].turn - 1], table->persons[i].owner));
    }
    table_is_clean(live, table);
}

/* -------------------------------------------------------------------- fifty wait, and it breaks */

/* 38 processes, a process of six threads, a process of six handles in a loop: fifty. */
enum { SINGLES = 38, CROWD = SINGLES + 2 * FAMILY, FIRST = 0, MIDDLE = 20, LAST = SINGLES - 1 };

/* The first and the last process stand at the ends of the line, the families in its midst. */
static void crowd_starts(struct live *live, struct table *table)
{
    struct person *persons = table->persons;
    int64_t before = line_length(&live->server, "k");
    persons[FIRST].pid = child_start(single, &persons[FIRST]);
    line_wait(&live->server, "k", before + 1);
    for (int i = 1; i < LAST; i++) {
        persons[i].pid = child_start(single, &persons[i]);
        if (i == 12) {
            persons[SINGLES].pid = child_start(threads_family, &persons[SINGLES]);
        } else if (i == 24) {
            persons[SINGLES + FAMILY].pid = child_start(loop_family, &persons[SINGLES + FAMILY]);
        }
    }
    line_wait(&live->server, "k", before + CROWD - 1);
    persons[LAST].pid = child_start(single, &persons[LAST]);
    line_wait(&live->server, "k", before + CROWD);
}

/* Everybody who lives was inside, once. */
static void crowd_ends(struct live *live, struct table *table, int dead)
{
    int served = 0;
    for (int i = 0; i < CROWD; i++) {
        struct person *person = &table->persons[i];
        bool own = i < SINGLES || i == SINGLES || i == SINGLES + FAMILY;
        if (own && person->pid != 0) {
            assert_int_equal(child_wait(person->pid), 0);
        }
        assert_in_range(atomic_load(&person->served), 0, 1);
        served += atomic_load(&person->served);
    }
    assert_int_equal(served, CROWD - dead);
    table_is_clean(live, table);
}

static struct table *crowd_behind(struct live *live, dlock_lock *held, const dlock_options *options)
{
    struct table *table = table_new(live);
    assert_yes(dlock_acquire(live->factory, held, "k", options), held);
    crowd_starts(live, table);
    return table;
}

static void fifty_are_served_when_the_holder_is_killed(void **state)
{
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    struct person *holder = &table->persons[CROWD];
    holder->options.expiry_ms = 4000;
    holder->hold_ms = -1;
    holder->pid = child_start(single, holder);
    wait_for_state(holder, INSIDE);
    crowd_starts(live, table);
    int64_t left = server_integer(&live->server, "PTTL k");
    int64_t start = now_ms();
    kill_person(holder);
    int64_t end = now_ms() + 20000;
    while (atomic_load(&table->served) < 2 && now_ms() < end) {
        pause_ms(1);
    }
    assert_took(start, left - 30, left + 500);
    crowd_ends(live, table, 0);
}

static void fifty_less_the_killed_are_served_when_waiters_are_killed(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    static const int killed[] = {FIRST, 1, MIDDLE, LAST};
    struct table *table = crowd_behind(live, &held, &minute);
    for (size_t i = 0; i < sizeof killed / sizeof *killed; i++) {
        kill_person(&table->persons[killed[i]]);
    }
    int64_t start = now_ms();
    assert_yes(dlock_release(&held), &held);
    crowd_ends(live, table, sizeof killed / sizeof *killed);
    assert_took(start, 0, 5000);
}

/* The processes of threads and of a loop, six waiters each, die as well. */
static void fifty_less_the_killed_are_served_when_whole_families_are_killed(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    struct table *table = crowd_behind(live, &held, &minute);
    kill_person(&table->persons[SINGLES]);
    kill_person(&table->persons[SINGLES + FAMILY]);
    int64_t start = now_ms();
    assert_yes(dlock_release(&held), &held);
    crowd_ends(live, table, 2 * FAMILY);
    assert_took(start, 0, 5000);
}

/* Each of the stopped is given the lock, for as long as its ticket says, and did not have it. */
static void fifty_are_served_when_waiters_stop_beyond_their_lease_and_go_on(void **state)
{
    static const int stopped[] = {FIRST, MIDDLE, LAST};
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    dlock_lock held = DLOCK_INIT;
    dlock_options brief = {.expiry_ms = 5000};
    for (int i = 0; i < CROWD; i++) {
        table->persons[i].options.expiry_ms = 2000;
    }
    for (int i = 0; i < 3; i++) {
        table->persons[stopped[i]].options.expiry_ms = 600;
    }
    assert_yes(dlock_acquire(live->factory, &held, "k", &brief), &held);
    crowd_starts(live, table);
    assert_yes(dlock_extend(&held, 5000), &held);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(kill(table->persons[stopped[i]].pid, SIGSTOP), 0);
    }
    assert_yes(dlock_release(&held), &held);
    int64_t end = now_ms() + 30000;
    while (atomic_load(&table->served) < CROWD - 3 && now_ms() < end) {
        pause_ms(2);
    }
    assert_int_equal(atomic_load(&table->served), CROWD - 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(atomic_load(&table->persons[stopped[i]].served), 0);
        assert_int_equal(kill(table->persons[stopped[i]].pid, SIGCONT), 0);
    }
    crowd_ends(live, table, 0);
}

/* While they wait, and while they are served. */
static void fifty_are_served_while_connections(struct live *live, const char *const *kills)
{
    dlock_lock held = DLOCK_INIT;
    struct table *table = crowd_behind(live, &held, &minute);
    for (int i = 0; kills[i] != NULL; i++) {
        server_do(&live->server, kills[i]);
    }
    pause_ms(100);
    assert_yes(dlock_release(&held), &held);
    for (int round = 0; round < 4; round++) {
        pause_ms(60);
        for (int i = 0; kills[i] != NULL; i++) {
            server_do(&live->server, kills[i]);
        }
    }
    crowd_ends(live, table, 0);
}

static void fifty_are_served_while_inboxes_are_cut(void **state)
{
    static const char *const kills[] = {"CLIENT KILL TYPE pubsub", NULL};
    fifty_are_served_while_connections(live_of(state), kills);
}

static void fifty_are_served_while_command_connections_are_cut(void **state)
{
    static const char *const kills[] = {"CLIENT KILL TYPE normal", NULL};
    fifty_are_served_while_connections(live_of(state), kills);
}

static void fifty_are_served_while_all_connections_are_cut(void **state)
{
    static const char *const kills[] = {"CLIENT KILL TYPE pubsub", "CLIENT KILL TYPE normal", NULL};
    fifty_are_served_while_connections(live_of(state), kills);
}

static void fifty_are_served_when_scripts_are_flushed(void **state)
{
    static const char *const flushes[] = {"SCRIPT FLUSH", NULL};
    fifty_are_served_while_connections(live_of(state), flushes);
}

/* Key and tickets are there again, and everybody subscribes again: the order of before. */
static void fifty_are_served_in_order_after_a_restart_that_keeps_the_data(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    struct table *table = crowd_behind(live, &held, &minute);
    static char tickets[CROWD][TICKET_MAX];
    int64_t before = inboxes(&live->server);
    for (int i = 0; i < CROWD; i++) {
        line_ticket(&live->server, "k", i, tickets[i]);
    }
    server_restart(&live->server, true, NULL);
    inboxes_wait(&live->server, before);
    assert_int_equal(line_length(&live->server, "k"), CROWD);
    assert_yes(dlock_release(&held), &held);
    crowd_ends(live, table, 0);
    for (int i = 0; i < CROWD; i++) {
        const struct person *person = &table->persons[i];
        assert_true(begins_with(tickets[person->turn - 1], person->owner));
    }
}

/* Nobody was inside when the data went: nobody may meet anybody afterwards. */
static void fifty_are_served_after_a_restart_that_loses_the_data(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    struct table *table = crowd_behind(live, &held, &minute);
    uint64_t fence = dlock_fence(&held);
    atomic_store(&table->last_fence, fence);
    server_restart(&live->server, false, NULL);
    crowd_ends(live, table, 0);
    assert_no(dlock_release(&held), &held, DLOCK_ARGUMENT);
}

/* --------------------------------------------------------------------------- killed and stopped */

static void killed_waiters_are_skipped_in_the_same_release_and_the_order_stays(void **state)
{
    enum { COUNT = 8 };
    static const int killed[] = {0, 3, 4, 7};
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    dlock_lock held = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < COUNT; i++) {
        table->persons[i].hold_ms = i == 1 ? -1 : 2;
        person_arrives(live, &table->persons[i], NULL);
    }
    for (int i = 0; i < 4; i++) {
        kill_person(&table->persons[killed[i]]);
    }
    inboxes_wait(&live->server, COUNT - 4);
    assert_int_equal(line_length(&live->server, "k"), COUNT);
    int64_t scripts = server_scripts(&live->server);
    assert_yes(dlock_release(&held), &held);
    wait_for_state(&table->persons[1], INSIDE);
    assert_in_range(server_scripts(&live->server) - scripts, 1, 3);
    atomic_store(&table->go, 1);
    int turn = 0;
    for (int i = 0; i < COUNT; i++) {
        if (table->persons[i].pid != 0) {
            assert_int_equal(child_wait(table->persons[i].pid), 0);
            assert_int_equal(table->persons[i].turn, ++turn);
        }
    }
    assert_int_equal(turn, COUNT - 4);
    table_is_clean(live, table);
}

/* NUMSUB counts a waiter that is stopped: it is given the lock, which lapses with its ticket's
 * expiry. When it goes on, while another is inside, it has nothing, and lines up anew. */
static void a_stopped_waiter_delays_the_others_by_its_lease_and_has_nothing_of_it(void **state)
{
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    struct person *persons = table->persons;
    dlock_lock held = DLOCK_INIT;
    char ticket[TICKET_MAX];
    char value[64];
    char again[TICKET_MAX];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    persons[0].options.expiry_ms = 1000;
    persons[1].options.expiry_ms = 3000;
    persons[1].hold_ms = -1;
    person_arrives(live, &persons[0], ticket);
    person_arrives(live, &persons[1], NULL);
    assert_int_equal(kill(persons[0].pid, SIGSTOP), 0);
    int64_t start = now_ms();
    assert_yes(dlock_release(&held), &held);
    server_text(&live->server, value, sizeof value, "GET k");
    assert_true(begins_with(ticket, value));
    wait_for_state(&persons[1], INSIDE);
    assert_took(start, 990, 3000);
    assert_int_equal(atomic_load(&persons[0].served), 0);
    assert_int_equal(kill(persons[0].pid, SIGCONT), 0);
    line_wait(&live->server, "k", 1);
    line_ticket(&live->server, "k", 0, again);
    assert_string_not_equal(again, ticket);
    assert_int_equal(atomic_load(&persons[0].served), 0);
    assert_int_equal(atomic_load(&persons[0].state), ASKING);
    atomic_store(&table->go, 1);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(child_wait(persons[i].pid), 0);
        assert_int_equal(atomic_load(&persons[i].served), 1);
    }
    assert_true(persons[0].turn > persons[1].turn);
    table_is_clean(live, table);
}

/* Waits in line, is handed the lock, and asks all the time whether it still has it. */
static int sleepy_person(void *argument)
{
    struct person *person = (struct person *)argument;
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory = dlock_open(person->table->url, NULL, NULL);
    child_check(factory != NULL);
    child_check(dlock_acquire(factory, &lock, "k", &person->options));
    atomic_store(&person->state, INSIDE);
    int64_t last = now_ms();
    int64_t end = last + 20000;
    while (last < end) {
        int64_t now = now_ms();
        bool acquired = dlock_is_acquired(&lock);
        if (now - last > 700) {     /* we were stopped: this was the first question afterwards */
            atomic_store(&person->late, acquired ? 2 : 1);
            break;
        }
        last = now;
    }
    atomic_store(&person->state, OUTSIDE);
    while (atomic_load(&person->table->go) == 0) {
        pause_ms(1);
    }
    child_check(!dlock_release(&lock));
    child_check(dlock_why(&lock)->code == DLOCK_LOST);
    dlock_close(factory);
    return 0;
}

static void who_was_handed_the_lock_and_stops_knows_at_its_first_question_without_io(void **state)
{
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    struct person *person = &table->persons[0];
    dlock_lock held = DLOCK_INIT;
    dlock_lock next = DLOCK_INIT;
    person->options.expiry_ms = 800;
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    person->pid = child_start(sleepy_person, person);
    line_wait(&live->server, "k", 1);
    assert_yes(dlock_release(&held), &held);
    wait_for_state(person, INSIDE);
    assert_int_equal(kill(person->pid, SIGSTOP), 0);
    pause_ms(900);
    assert_yes(dlock_acquire(live->factory, &next, "k", &patient), &next);
    int64_t heard = server_heard(&live->server);
    assert_int_equal(kill(person->pid, SIGCONT), 0);
    wait_for_state(person, OUTSIDE);
    assert_int_equal(atomic_load(&person->late), 1);
    assert_int_equal(server_heard(&live->server), heard);
    atomic_store(&table->go, 1);
    assert_int_equal(child_wait(person->pid), 0);
    assert_held(&live->server, &next, "k");
    assert_yes(dlock_release(&next), &next);
    table_is_clean(live, table);
}

/* The timer that the first answer set is about a holder long gone: a minute. */
static void who_waits_does_not_sleep_for_the_lease_of_a_holder_long_gone(void **state)
{
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    struct person *brief = &table->persons[0];
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options waits = {.expiry_ms = 3000, .wait_ms = 50000};
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    brief->options.expiry_ms = 1000;
    brief->hold_ms = -1;
    person_arrives(live, brief, NULL);
    guest_arrives(&live->server, "k", guest, 0, factory, &waits);
    assert_yes(dlock_release(&held), &held);
    wait_for_state(brief, INSIDE);
    kill_person(brief);
    int64_t left = server_integer(&live->server, "PTTL k");
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 30000));
    assert_took(start, left - 30, 3500);
    leave(live, guest, "k");
    dlock_close(factory);
    table_is_clean(live, table);
}

/* A holder dies with a hundred behind it: the first is in when the lease has ended. The others do
 * not ask all the time before, nor all at once then. */
static void a_hundred_waiters_behind_a_killed_holder_are_no_herd(void **state)
{
    enum { COUNT = 100, FACTORIES = 5 };
    struct live *live = live_of(state);
    struct table *table = table_new(live);
    struct person *holder = &table->persons[0];
    dlock_factory *factories[FACTORIES];
    static struct guest guests[COUNT];
    holder->options.expiry_ms = 5000;
    holder->hold_ms = -1;
    holder->pid = child_start(single, holder);
    wait_for_state(holder, INSIDE);
    for (int i = 0; i < FACTORIES; i++) {
        factories[i] = open_factory(live->server.url, NULL);
    }
    for (int i = 0; i < COUNT; i++) {
        assert_true(guest_start(&guests[i], factories[i % FACTORIES], "k", &patient));
    }
    assert_true(guests_line_up(&live->server, "k", guests, COUNT, COUNT));
    kill_person(holder);
    int64_t left = server_integer(&live->server, "PTTL k");
    int64_t scripts = server_scripts(&live->server);
    int64_t start = now_ms();
    assert_true(guests_until(guests, COUNT, 1, 30000));
    assert_took(start, left - 30, left + 500);
    guests_for(guests, COUNT, 300);
    scripts = server_scripts(&live->server) - scripts;
    print_message("%lld asks of %d waiters around the end of the lease\n", (long long)scripts,
                  COUNT);
    assert_int_equal(guests_told(guests, COUNT), 1);
    assert_true(scripts <= COUNT / 2);
    for (int i = 0; i < COUNT; i++) {
        assert_true(guests_until(guests, COUNT, i + 1, 15000));
        for (int j = 0; j < COUNT; j++) {
            if (guests[j].told > 0 && dlock_is_acquired(&guests[j].lock)) {
                leave(live, &guests[j], "k");
            }
        }
    }
    for (int i = 0; i < FACTORIES; i++) {
        dlock_close(factories[i]);
    }
    table_is_clean(live, table);
}

/* ------------------------------------------------------------------------------ connections cut */

/* Six factories in one line: wherever a connection was cut, everybody keeps ticket and place. */
static void who_waits_keeps_his_place_when_his_connections_are_cut(void **state)
{
    enum { COUNT = 6 };
    static const char *const kills[][2] = {
        {"CLIENT KILL TYPE pubsub", "PING"},
        {"CLIENT KILL TYPE normal", "PING"},
        {"CLIENT KILL TYPE pubsub", "CLIENT KILL TYPE normal"},
    };
    struct live *live = live_of(state);
    static struct guest guests[COUNT];
    dlock_factory *factories[COUNT];
    for (int i = 0; i < COUNT; i++) {
        factories[i] = open_factory(live->server.url, NULL);
    }
    for (size_t way = 0; way < sizeof kills / sizeof *kills; way++) {
        dlock_lock held = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        for (int i = 0; i < COUNT; i++) {
            guest_arrives(&live->server, "k", guests, i, factories[i], &patient);
        }
        server_do(&live->server, kills[way][0]);
        server_do(&live->server, kills[way][1]);
        int64_t end = now_ms() + 10000;
        do {
            guests_for(guests, COUNT, 50);
        } while (inboxes(&live->server) != COUNT && now_ms() < end);
        assert_int_equal(inboxes(&live->server), COUNT);
        assert_int_equal(line_length(&live->server, "k"), COUNT);
        for (int i = 0; i < COUNT; i++) {
            char ticket[TICKET_MAX];
            line_ticket(&live->server, "k", i, ticket);
            assert_string_equal(ticket, guests[i].ticket);
        }
        assert_yes(dlock_release(&held), &held);
        served_in_order(live, guests, COUNT, "k");
    }
    for (int i = 0; i < COUNT; i++) {
        dlock_close(factories[i]);
    }
    live_end(live);
}

/* The release finds no inbox and passes the waiter over; its next ask comes with the new inbox. */
static void a_release_while_the_inbox_is_cut_is_not_missed(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    static struct guest guest[1];
    for (int i = 0; i < 5; i++) {
        dlock_lock held = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        guest_arrives(&live->server, "k", guest, 0, factory, &patient);
        server_do(&live->server, "CLIENT KILL TYPE pubsub");
        assert_yes(dlock_release(&held), &held);
        assert_int_equal(server_integer(&live->server, "EXISTS k {k}:queue"), 0);
        int64_t start = now_ms();
        assert_true(guests_until(guest, 1, 1, 15000));
        assert_took(start, 0, 1000);
        leave(live, guest, "k");
        line_is_over(&live->server, "k");
    }
    dlock_close(factory);
    live_end(live);
}

/* With the connection went what the grant could have been dated by: the server is asked, and what
 * was given is kept, not given back. */
static void a_hand_over_that_cannot_be_dated_is_confirmed_and_kept(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    static struct guest guest[1];
    for (int i = 0; i < 5; i++) {
        dlock_lock held = DLOCK_INIT;
        char value[64];
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        guest_arrives(&live->server, "k", guest, 0, factory, &patient);
        server_do(&live->server, "CLIENT KILL TYPE normal");
        assert_yes(dlock_release(&held), &held);
        server_text(&live->server, value, sizeof value, "GET k");
        assert_true(begins_with(guest[0].ticket, value));
        int64_t start = now_ms();
        assert_true(guests_until(guest, 1, 1, 15000));
        assert_took(start, 0, 1000);
        assert_string_equal(dlock_owner(&guest[0].lock), value);
        assert_true(dlock_remaining_ms(&guest[0].lock) <=
                    server_integer(&live->server, "PTTL k") + 2);
        leave(live, guest, "k");
        line_is_over(&live->server, "k");
    }
    dlock_close(factory);
    live_end(live);
}

/* Connect refused, SUBSCRIBE answered with a closed connection, again and again: no ticket while
 * nobody could be told, and then everything as if nothing had been. */
static void an_inbox_that_cannot_come_up_is_tried_again_without_a_ticket(void **state)
{
    static const struct proxy_plan plans[] = {
        {.fault = PROXY_REFUSE, .times = 3},
        {.fault = PROXY_HANG_UP, .word = "SUBSCRIBE", .times = 3},
    };
    struct live *live = live_of(state);
    proxy_start(&live->proxy, &live->server);
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
        dlock_lock held = DLOCK_INIT;
        static struct guest guest[1];
        dlock_factory *factory = open_factory(live->proxy.url, NULL);
        proxy_set(&live->proxy, &(struct proxy_plan){.fault = PROXY_PASS});
        assert_yes(dlock_acquire(factory, &held, "warm", &minute), &held);
        assert_yes(dlock_release(&held), &held);
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        proxy_set(&live->proxy, &plans[i]);
        assert_true(guest_start(guest, factory, "k", &patient));
        int64_t end = now_ms() + 20000;
        while (proxy_fired(&live->proxy) < 3 && now_ms() < end) {
            guests_for(guest, 1, 2);
            assert_true(line_length(&live->server, "k") == 0 || proxy_fired(&live->proxy) == 3);
        }
        assert_int_equal(proxy_fired(&live->proxy), 3);
        assert_true(guests_line_up(&live->server, "k", guest, 1, 1));
        assert_yes(dlock_release(&held), &held);
        int64_t start = now_ms();
        assert_true(guests_until(guest, 1, 1, 15000));
        assert_took(start, 0, 500);
        leave(live, guest, "k");
        dlock_close(factory);
    }
    line_is_over(&live->server, "k");
    live_end(live);
}

/* ----------------------------------------------------------------- what a server says meanwhile */

static void scripts_that_the_server_forgot_are_not_noticed_in_line(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct guest guests[3];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    for (int i = 0; i < 3; i++) {
        server_do(&live->server, "SCRIPT FLUSH");
        guest_arrives(&live->server, "k", guests, i, factory, &patient);
    }
    server_do(&live->server, "SCRIPT FLUSH");
    assert_yes(dlock_release(&held), &held);
    for (int i = 0; i < 3; i++) {
        assert_true(guests_until(guests, 3, i + 1, 15000));
        assert_true(begins_with(guests[i].ticket, dlock_owner(&guests[i].lock)));
        server_do(&live->server, "SCRIPT FLUSH");
        leave(live, &guests[i], "k");
    }
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

/* Asks get the reply BUSY, which is not the code BUSY: the wait goes on. */
static void a_server_busy_with_a_script_ends_no_wait(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options brief = {.expiry_ms = 1000};
    dlock_lock held = DLOCK_INIT;
    static struct guest guest[1];
    char text[64] = "";
    int sent = 0;
    assert_yes(dlock_acquire(live->factory, &held, "k", &brief), &held);
    guest_arrives(&live->server, "k", guest, 0, factory, &patient);
    server_do(&live->server, "CONFIG SET lua-time-limit 20");
    redisContext *slow = server_connect(&live->server);
    assert_int_equal(redisAppendCommand(slow, "EVAL %s 0", "while true do end"), REDIS_OK);
    while (sent == 0) {
        assert_int_equal(redisBufferWrite(slow, &sent), REDIS_OK);
    }
    int64_t end = now_ms() + 5000;
    while (!begins_with(text, "BUSY") && now_ms() < end) {
        pause_ms(5);
        server_text(&live->server, text, sizeof text, "GET x");
    }
    assert_memory_equal(text, "BUSY", 4);
    guests_for(guest, 1, 1600);
    assert_int_equal(guest[0].told, 0);
    assert_true(dlock_is_pending(&guest[0].lock));
    server_do(&live->server, "SCRIPT KILL");
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 20000));
    assert_took(start, 0, 3000);
    leave(live, guest, "k");
    redisFree(slow);
    dlock_close(factory);
    live_end(live);
}

/* SUBSCRIBE succeeds while scripts still get LOADING. */
static void a_server_that_loads_its_data_ends_no_wait_and_costs_no_place(void **state)
{
    static const char *const slowly[] = {"--key-load-delay", "400",
                                         "--loading-process-events-interval-bytes", "1024", NULL};
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct guest guests[2];
    char text[64];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guests, 0, factory, &patient);
    guest_arrives(&live->server, "k", guests, 1, factory, &patient);
    server_do(&live->server, "EVAL %s 0",
              "for i = 1, 3000 do redis.call('set', 'filler:' .. i, string.rep('x', 64)) end");
    server_restart(&live->server, true, slowly);
    server_text(&live->server, text, sizeof text, "GET x");
    assert_memory_equal(text, "LOADING", 7);
    int64_t end = now_ms() + 20000;
    while (begins_with(text, "LOADING") && now_ms() < end) {
        guests_for(guests, 2, 20);
        assert_int_equal(guests_told(guests, 2), 0);
        server_text(&live->server, text, sizeof text, "GET x");
    }
    while (inboxes(&live->server) != 1 && now_ms() < end) {
        guests_for(guests, 2, 20);
    }
    assert_int_equal(line_length(&live->server, "k"), 2);
    assert_yes(dlock_release(&held), &held);
    served_in_order(live, guests, 2, "k");
    dlock_close(factory);
    live_end(live);
}

/* A full server hands over to who stands in line already; who comes now cannot line up. */
static void a_full_server_hands_over_and_lets_nobody_line_up(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options brief = {.wait_ms = 400};
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    static struct guest guests[2];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guests, 0, factory, &patient);
    server_do(&live->server, "CONFIG SET maxmemory 1");
    assert_yes(dlock_release(&held), &held);
    int64_t start = now_ms();
    assert_true(guests_until(guests, 1, 1, 15000));
    assert_took(start, 0, 300);
    assert_held(&live->server, &guests[0].lock, "k");
    start = now_ms();
    assert_no(dlock_acquire(factory, &lock, "k", &brief), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 400, 450);
    assert_int_equal(line_length(&live->server, "k"), 0);
    assert_true(guest_start(&guests[1], factory, "k", &patient));
    guests_for(guests, 2, 200);
    assert_int_equal(guests[1].told, 0);
    server_do(&live->server, "CONFIG SET maxmemory 0");
    assert_true(guests_line_up(&live->server, "k", guests, 2, 1));
    leave(live, &guests[0], "k");
    assert_true(guests_until(guests, 2, 2, 15000));
    leave(live, &guests[1], "k");
    line_is_over(&live->server, "k");
    dlock_close(factory);
    live_end(live);
}

/* ---------------------------------------------------------------- dead tickets, rubbish tickets */

/* So many places, in front of everybody, of factories that are not there. */
static void dead_tickets(struct live *live, int count)
{
    static const char *script = "for i = 1, tonumber(ARGV[1]) do redis.call('ZADD', KEYS[1], i,"
                                " string.format('dl1-%016x%016x 30000 g', i, i)) end "
                                "redis.call('PEXPIRE', KEYS[1], 600000)";
    server_do(&live->server, "EVAL %s 1 {k}:queue %d", script, count);
}

static void tickets_of_programs_that_died_long_ago_are_skipped_in_the_same_release(void **state)
{
    static const int counts[] = {1, 3, 127, 128, 129, 300};
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    static struct guest guests[2];
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        dlock_lock held = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        guest_arrives(&live->server, "k", guests, 0, factory, &patient);
        guest_arrives(&live->server, "k", guests, 1, factory, &patient);
        dead_tickets(live, counts[i]);
        assert_int_equal(line_length(&live->server, "k"), counts[i] + 2);
        int64_t start = now_ms();
        assert_yes(dlock_release(&held), &held);
        assert_int_equal(line_length(&live->server, "k"), 1);
        assert_true(guests_until(guests, 2, 1, 15000));
        assert_took(start, 0, 300);
        served_in_order(live, guests, 2, "k");
    }
    dlock_close(factory);
    live_end(live);
}

static void where_only_the_dead_wait_the_key_is_deleted_or_had(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &minute), &lock);
    dead_tickets(live, 300);
    assert_yes(dlock_release(&lock), &lock);
    assert_int_equal(server_integer(&live->server, "EXISTS k {k}:queue"), 0);
    dead_tickets(live, 300);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &minute), &lock);
    assert_yes(dlock_release(&lock), &lock);
    line_is_over(&live->server, "k");
    live_end(live);
}

/* More than a release or an ask looks at: nobody is told, and the timer finds the key free. */
static void behind_a_crowd_of_the_dead_a_waiter_gets_in_by_its_own_ask(void **state)
{
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options brief = {.expiry_ms = 1500};
    dlock_lock lock = DLOCK_INIT;
    static struct guest guest[1];
    assert_yes(dlock_acquire(live->factory, &lock, "k", &brief), &lock);
    guest_arrives(&live->server, "k", guest, 0, factory, &patient);
    dead_tickets(live, 3000);
    assert_yes(dlock_release(&lock), &lock);
    int64_t start = now_ms();
    assert_true(guests_until(guest, 1, 1, 15000));
    assert_took(start, 0, 3000);
    leave(live, guest, "k");
    dlock_close(factory);
    live_end(live);
}

static void rubbish_in_line_keeps_nobody_waiting_and_is_cleared_away(void **state)
{
    static const char *const rubbish[] = {
        "x",
        "dl1-0123456789abcdef00000000000000aa",
        "dl1-0123456789abcdef00000000000000aa 0 g",
        "dl1-0123456789abcdef00000000000000aa -5 g",
        "dl1-0123456789abcdef00000000000000aa 99999999999999999999 g",
        "dl1-0123456789abcdef00000000000000aa 1000 z",
        "dl1-0123456789ABCDEFzz000000000000aa 1000 g",
        "theirs 1000 g",
        "\xff\xfe\n\r%s",
    };
    enum { COUNT = sizeof rubbish / sizeof *rubbish };
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_lock held = DLOCK_INIT;
    static struct guest guests[2];
    assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
    guest_arrives(&live->server, "k", guests, 0, factory, &patient);
    guest_arrives(&live->server, "k", guests, 1, factory, &patient);
    int64_t between = line_score(&live->server, "k", guests[1].ticket) - 1;
    for (int i = 0; i < COUNT; i++) {
        server_do(&live->server, "ZADD {k}:queue %lld %s", (long long)(i % 2 == 0 ? i : between),
                  rubbish[i]);
    }
    int64_t start = now_ms();
    assert_yes(dlock_release(&held), &held);
    assert_true(guests_until(guests, 2, 1, 15000));
    assert_took(start, 0, 300);
    served_in_order(live, guests, 2, "k");
    dlock_close(factory);
    live_end(live);
}

static void a_queue_of_another_type_keeps_nobody_from_the_lock(void **state)
{
    static const char *const makers[] = {"SET {k}:queue x", "RPUSH {k}:queue x",
                                         "SADD {k}:queue x"};
    struct live *live = live_of(state);
    dlock_factory *factory = open_factory(live->server.url, NULL);
    dlock_options brief = {.expiry_ms = 1200};
    static struct guest guest[1];
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &lock, "k", &brief), &lock);
        guest_arrives(&live->server, "k", guest, 0, factory, &patient);
        server_do(&live->server, "DEL {k}:queue");
        server_do(&live->server, makers[i]);
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        int64_t start = now_ms();
        assert_true(guests_until(guest, 1, 1, 15000));
        assert_took(start, 0, 2500);
        leave(live, guest, "k");
        assert_gone(&live->server, "k");
        assert_yes(dlock_acquire(live->factory, &lock, "k", &patient), &lock);
        assert_yes(dlock_release(&lock), &lock);
        server_do(&live->server, "DEL {k}:queue");
    }
    dlock_close(factory);
    live_end(live);
}

/* ----------------------------------------------------------------------------- rights forbidden */

static dlock_factory *factory_of_bob(struct live *live, const char *rights,
                                     const dlock_config *config)
{
    char rule[128];
    char url[SERVER_URL_MAX + 32];
    (void)snprintf(rule, sizeof rule, "ACL SETUSER bob reset on >pw ~* &* %s", rights);
    server_do(&live->server, rule);
    (void)snprintf(url, sizeof url, "unix://bob:pw@%s", live->server.socket);
    return open_factory(url, config);
}

static void count_mute(const dlock_event *event, void *user)
{
    if (event->kind == DLOCK_EVENT_MUTE) {
        (*(int *)user)++;
    }
}

static void who_may_not_notify_still_releases_and_the_waiter_gets_in_by_its_own_ask(void **state)
{
    static const char *const rights[] = {"+@all -publish", "+@all -pubsub", "+@all resetchannels"};
    struct live *live = live_of(state);
    dlock_options brief = {.expiry_ms = 1500};
    static struct guest guest[1];
    for (size_t i = 0; i < sizeof rights / sizeof *rights; i++) {
        int mute = 0;
        dlock_config config = {.on_event = count_mute, .user = &mute};
        dlock_factory *bob = factory_of_bob(live, rights[i], &config);
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(bob, &lock, "k", &brief), &lock);
        guest_arrives(&live->server, "k", guest, 0, live->factory, &patient);
        int64_t start = now_ms();
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        assert_int_equal(mute, 1);
        assert_int_equal(line_length(&live->server, "k"), 1);
        assert_true(guests_until(guest, 1, 1, 15000));
        assert_took(start, 0, 2500);
        leave(live, guest, "k");
        line_is_over(&live->server, "k");
        dlock_close(bob);
    }
    live_end(live);
}

static void who_may_not_subscribe_is_refused_without_a_ticket_and_may_poll(void **state)
{
    static const char *const rights[] = {"+@all -subscribe", "+@all resetchannels"};
    struct live *live = live_of(state);
    dlock_options polls = {.wait_ms = 20000, .retry_delay_ms = 20, .no_queue = true};
    for (size_t i = 0; i < sizeof rights / sizeof *rights; i++) {
        dlock_factory *bob = factory_of_bob(live, rights[i], NULL);
        dlock_lock held = DLOCK_INIT;
        dlock_lock lock = DLOCK_INIT;
        static struct guest guest[1];
        assert_yes(dlock_acquire(live->factory, &held, "k", &minute), &held);
        int64_t start = now_ms();
        assert_no(dlock_acquire(bob, &lock, "k", &patient), &lock, DLOCK_REFUSED);
        assert_took(start, 0, 500);
        assert_int_equal(line_length(&live->server, "k"), 0);
        assert_no(dlock_acquire(bob, &lock, "k", &minute), &lock, DLOCK_BUSY);
        assert_true(guest_start(guest, bob, "k", &polls));
        guests_for(guest, 1, 100);
        assert_int_equal(guest[0].told, 0);
        assert_yes(dlock_release(&held), &held);
        assert_true(guests_until(guest, 1, 1, 15000));
        leave(live, guest, "k");
        /* Nobody holds it, so that nobody needs to wait. */
        assert_yes(dlock_acquire(bob, &lock, "k", &patient), &lock);
        assert_yes(dlock_release(&lock), &lock);
        line_is_over(&live->server, "k");
        dlock_close(bob);
    }
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(sixteen_processes_are_served_in_the_order_of_arrival),
        LIVE(sixteen_processes_that_come_at_once_are_served_in_the_order_of_scores),
        LIVE(fifty_are_served_when_the_holder_is_killed),
        LIVE(fifty_less_the_killed_are_served_when_waiters_are_killed),
        LIVE(fifty_less_the_killed_are_served_when_whole_families_are_killed),
        LIVE(fifty_are_served_when_waiters_stop_beyond_their_lease_and_go_on),
        LIVE(fifty_are_served_while_inboxes_are_cut),
        LIVE(fifty_are_served_while_command_connections_are_cut),
        LIVE(fifty_are_served_while_all_connections_are_cut),
        LIVE(fifty_are_served_when_scripts_are_flushed),
        LIVE(fifty_are_served_in_order_after_a_restart_that_keeps_the_data),
        LIVE(fifty_are_served_after_a_restart_that_loses_the_data),
        LIVE(killed_waiters_are_skipped_in_the_same_release_and_the_order_stays),
        LIVE(a_stopped_waiter_delays_the_others_by_its_lease_and_has_nothing_of_it),
        LIVE(who_was_handed_the_lock_and_stops_knows_at_its_first_question_without_io),
        LIVE(who_waits_does_not_sleep_for_the_lease_of_a_holder_long_gone),
        LIVE(a_hundred_waiters_behind_a_killed_holder_are_no_herd),
        LIVE(who_waits_keeps_his_place_when_his_connections_are_cut),
        LIVE(a_release_while_the_inbox_is_cut_is_not_missed),
        LIVE(a_hand_over_that_cannot_be_dated_is_confirmed_and_kept),
        LIVE(an_inbox_that_cannot_come_up_is_tried_again_without_a_ticket),
        LIVE(scripts_that_the_server_forgot_are_not_noticed_in_line),
        LIVE(a_server_busy_with_a_script_ends_no_wait),
        LIVE(a_server_that_loads_its_data_ends_no_wait_and_costs_no_place),
        LIVE(a_full_server_hands_over_and_lets_nobody_line_up),
        LIVE(tickets_of_programs_that_died_long_ago_are_skipped_in_the_same_release),
        LIVE(where_only_the_dead_wait_the_key_is_deleted_or_had),
        LIVE(behind_a_crowd_of_the_dead_a_waiter_gets_in_by_its_own_ask),
        LIVE(rubbish_in_line_keeps_nobody_waiting_and_is_cleared_away),
        LIVE(a_queue_of_another_type_keeps_nobody_from_the_lock),
        LIVE(who_may_not_notify_still_releases_and_the_waiter_gets_in_by_its_own_ask),
        LIVE(who_may_not_subscribe_is_refused_without_a_ticket_and_may_poll),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
