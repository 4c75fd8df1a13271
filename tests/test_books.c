/* The books of a factory: timers, lists, the index of owners, the pool of randomness, the debts. By
 * random operations, each against something slow and simple. No socket, no server.
 *
 * DLOCK_SEED=n begins with another seed. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

enum { HANDLES = 200, ROUNDS = 40000 };

static uint64_t seed;

static uint64_t draw(void)
{
    uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static int below(int most)
{
    return (int)(draw() % (uint64_t)most);
}

static dlock_lock *locks; /* HANDLES of them, as new */

static int setup(void **state)
{
    const char *one = getenv("DLOCK_SEED");
    seed = one != NULL && *one != 0 ? strtoull(one, NULL, 10) : 1;
    locks = (dlock_lock *)calloc(HANDLES, sizeof *locks);
    assert_non_null(locks);
    for (int i = 0; i < HANDLES; i++) {
        locks[i]._due_at = DLOCKI_NEVER;
        locks[i]._deadline = DLOCKI_NEVER;
        locks[i]._wake_at = DLOCKI_NEVER;
    }
    *state = open_factory("redis://host", NULL);
    return 0;
}

/* What a test left in the books is struck: nobody is to be told, nothing is to be sent. */
static int teardown(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    for (int i = 0; i < HANDLES; i++) {
        dlocki_strike(factory, &locks[i]);
    }
    while (factory->debt_first >= 0) {
        dlocki_debt_pay(factory, factory->debt_first);
    }
    assert_null(factory->timers);
    assert_int_equal(factory->listeners, 0);
    assert_int_equal(factory->reserved, 0);
    dlock_close(factory);
    free(locks);
    return 0;
}

/* --------------------------------------------------------------------------------------- timers */

/* Puts a handle where its timer is due at that instant. */
static void set_timer(dlock_factory *factory, dlock_lock *lock, int64_t at)
{
    if (lock->_list != &factory->pending) {
        dlocki_list_move(lock, &factory->pending);
    }
    lock->_deadline = at;
    lock->_wake_at = dlocki_plus(at, below(2));   /* the earlier of the two */
    if (below(2) == 0) {
        lock->_deadline = lock->_wake_at;
        lock->_wake_at = at;
    }
    dlocki_timer_move(factory, lock);
    assert_int_equal(lock->_due_at, at);
}

/* How many nodes there are; a child is not due before its parent, and knows who is to its left. */
static int heap_count(const dlock_factory *factory)
{
    const dlock_lock *stack[HANDLES + 1];
    int depth = 0;
    int count = 0;
    if (factory->timers != NULL) {
        assert_null(factory->timers->_heap_previous);
        assert_null(factory->timers->_heap_next);
        stack[depth++] = factory->timers;
    }
    while (depth > 0) {
        const dlock_lock *node = stack[--depth];
        const dlock_lock *before = node;
        count++;
        for (const dlock_lock *child = node->_heap_child; child != NULL;
             child = child->_heap_next) {
            assert_true(child->_due_at >= node->_due_at);
            assert_ptr_equal(child->_heap_previous, before);
            before = child;
            assert_true(depth < HANDLES);
            stack[depth++] = child;
        }
    }
    return count;
}

static void check_timers(const dlock_factory *factory)
{
    int64_t earliest = DLOCKI_NEVER;
    int count = 0;
    for (int i = 0; i < HANDLES; i++) {
        earliest = dlocki_least(earliest, locks[i]._due_at);
        count += locks[i]._due_at < DLOCKI_NEVER;
    }
    assert_int_equal(factory->timers != NULL, count > 0);
    if (factory->timers != NULL) {
        assert_int_equal(factory->timers->_due_at, earliest);
    }
    assert_int_equal(heap_count(factory), count);
}

static void the_earliest_timer_is_the_first_whatever_was_moved(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    for (int round = 0; round < ROUNDS; round++) {
        dlock_lock *lock = &locks[below(HANDLES)];
        switch (below(8)) {
        case 0:
            set_timer(factory, lock, DLOCKI_NEVER);   /* not any more */
            break;
        case 1:
            dlocki_list_move(lock, NULL);   /* neither: it belongs to nobody */
            dlocki_timer_move(factory, lock);
            assert_int_equal(lock->_due_at, DLOCKI_NEVER);
            break;
        case 2:
            if (factory->timers != NULL) {   /* it has fired */
                lock = factory->timers;
                set_timer(factory, lock, lock->_due_at + below(1000));
            }
            break;
        case 3:
            set_timer(factory, lock, below(20));   /* many at the same instant */
            break;
        default:
            set_timer(factory, lock, below(100000));
            break;
        }
        check_timers(factory);
    }
}

static void timers_fire_in_order_and_each_once(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    for (int round = 0; round < 200; round++) {
        int count = 1 + below(HANDLES);
        int64_t last = 0;
        for (int i = 0; i < count; i++) {
            set_timer(factory, &locks[i],
                      round % 3 == 0   ? i
                      : round % 3 == 1 ? HANDLES - i
                                       : below(50));
        }
        for (int i = 0; i < count; i++) {
            dlock_lock *first = factory->timers;
            assert_non_null(first);
            assert_true(first->_due_at >= last);
            last = first->_due_at;
            dlocki_list_move(first, NULL);
            dlocki_timer_move(factory, first);
            assert_null(first->_heap_child);
            assert_null(first->_heap_next);
            assert_null(first->_heap_previous);
        }
        assert_null(factory->timers);
    }
}

static void nobody_cares(dlock_lock *lock, void *user)
{
    (void)lock;
    (void)user;
}

/* Which instants of a handle are timers depends on the list that it is in. */
static void a_timer_is_what_the_state_of_a_handle_waits_for(void **state)
{
    static const struct {
        int list; /* 0 pending, 1 held, 2 lost, 3 over, 4 none */
        bool renews;
        bool tells;
        int64_t deadline, wake, valid, due;
    } cases[] = {
        {0, false, false, 500, 300, 100, 300},
        {0, true, true, 300, 500, 100, 300},
        {0, false, false, 300, DLOCKI_NEVER, 100, 300},
        {0, false, false, DLOCKI_NEVER, 300, 100, 300},
        {0, false, false, DLOCKI_NEVER, DLOCKI_NEVER, 100, DLOCKI_NEVER},
        {1, false, false, 10, 20, 100, DLOCKI_NEVER},
        {1, true, false, 10, 200, 100, 100},
        {1, true, false, 10, 50, 100, 50},
        {1, false, true, 10, 200, 100, 100},
        {1, false, true, 10, DLOCKI_NEVER, 100, 100},
        {1, true, true, 10, DLOCKI_NEVER, DLOCKI_NEVER, DLOCKI_NEVER},
        {2, true, true, 10, 20, 100, DLOCKI_NEVER},
        {3, true, true, 10, 20, 100, DLOCKI_NEVER},
        {4, true, true, 10, 20, 100, DLOCKI_NEVER},
    };
    dlock_factory *factory = (dlock_factory *)*state;
    dlocki_list *lists[] = {&factory->pending, &factory->held, &factory->lost, &factory->over,
                            NULL};
    for (size_t i = 0; i < COUNT(cases) * COUNT(cases); i++) {   /* from each to each */
        dlock_lock *lock = &locks[0];
        for (int step = 0; step < 2; step++) {
            size_t row = step == 0 ? i / COUNT(cases) : i % COUNT(cases);
            dlocki_list_move(lock, lists[cases[row].list]);
            lock->_auto_renew = cases[row].renews;
            lock->_on_lost = cases[row].tells ? nobody_cares : NULL;
            lock->_deadline = cases[row].deadline;
            lock->_wake_at = cases[row].wake;
            lock->_valid_until = cases[row].valid;
            dlocki_timer_move(factory, lock);
            assert_int_equal(lock->_due_at, cases[row].due);
            check_timers(factory);
        }
    }
}

/* ---------------------------------------------------------------------------------------- lists */

/* What stands in each list, in order; slow. */
static struct {
    int count;
    dlock_lock *at[HANDLES];
} model[3];

static void model_remove(int list, const dlock_lock *lock)
{
    int i = 0;
    while (i < model[list].count && model[list].at[i] != lock) {
        i++;
    }
    if (i < model[list].count) {
        model[list].count--;
        memmove(&model[list].at[i], &model[list].at[i + 1],
                (size_t)(model[list].count - i) * sizeof *model[list].at);
    }
}

static void model_insert(int list, int place, dlock_lock *lock)
{
    memmove(&model[list].at[place + 1], &model[list].at[place],
            (size_t)(model[list].count - place) * sizeof *model[list].at);
    model[list].at[place] = lock;
    model[list].count++;
}

static void check_list(const dlocki_list *list, int number)
{
    const dlock_lock *before = NULL;
    const dlock_lock *lock = list->first;
    for (int i = 0; i < model[number].count; i++) {
        assert_ptr_equal(lock, model[number].at[i]);
        assert_ptr_equal(lock->_previous, before);
        assert_ptr_equal(lock->_list, list);
        before = lock;
        lock = lock->_next;
    }
    assert_null(lock);
    assert_ptr_equal(list->last, before);
}

static void a_handle_is_in_one_list_and_at_its_end(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    dlocki_list *lists[] = {&factory->pending, &factory->held, &factory->lost};
    memset(model, 0, sizeof model);
    for (int round = 0; round < ROUNDS; round++) {
        dlock_lock *lock = &locks[below(HANDLES)];
        int to = below(4);
        for (int i = 0; i < 3; i++) {
            model_remove(i, lock);
        }
        if (to < 3) {
            model_insert(to, model[to].count, lock);
        }
        dlocki_list_move(lock, to < 3 ? lists[to] : NULL);
        assert_int_equal(lock->_list == NULL, to == 3);
        for (int i = 0; i < 3 && round % 16 == 0; i++) {
            check_list(lists[i], i);
        }
    }
}

static void check_line(const dlocki_list *line, int number)
{
    const dlock_lock *before = NULL;
    const dlock_lock *lock = line->first;
    for (int i = 0; i < model[number].count; i++) {
        assert_ptr_equal(lock, model[number].at[i]);
        assert_ptr_equal(lock->_line_previous, before);
        assert_ptr_equal(lock->_line, line);
        before = lock;
        lock = lock->_line_next;
    }
    assert_null(lock);
    assert_ptr_equal(line->last, before);
}

/* Who acquires stands in the order of arrival, however often it is asked again; the rest is sent as
 * it comes. A handle's place in a list is another matter. */
static void asks_are_sent_in_the_order_of_arrival(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    uint64_t arrivals = 0;
    memset(model, 0, sizeof model);
    for (int round = 0; round < ROUNDS; round++) {
        dlock_lock *lock = &locks[below(HANDLES)];
        bool asks = (lock - locks) % 2 == 0;
        int line = asks ? 1 : 0;
        int place = model[line].count;
        lock->_verb = asks ? DLOCKI_ACQUIRE : DLOCKI_RELEASE;
        model_remove(line, lock);
        if (below(3) == 0) {
            dlocki_line_move(lock, NULL);
            assert_null(lock->_line);
            assert_null(lock->_line_next);
            assert_null(lock->_line_previous);
        } else {
            if (lock->_line == NULL && (lock->_arrival == 0 || below(2) == 0)) {
                lock->_arrival = ++arrivals;   /* a new call; else it is asked again */
            }
            for (place = 0; place < model[line].count &&
                            (!asks || model[line].at[place]->_arrival < lock->_arrival);
                 place++) {
            }
            model_insert(line, place, lock);
            dlocki_line_move(lock, &factory->line[line]);
        }
        if (round % 16 == 0) {
            check_line(&factory->line[0], 0);
            check_line(&factory->line[1], 1);
        }
    }
}

/* --------------------------------------------------------------------------------------- owners */

static void give_owner(dlock_lock *lock, int alike)
{
    char tail[17];
    (void)snprintf(tail, sizeof tail, "%016llx", (unsigned long long)draw());
    if (alike > 0) {   /* so many of its last digits are not random */
        memset(tail + 16 - alike, 'a', (size_t)alike);
    }
    (void)snprintf(lock->_owner, sizeof lock->_owner, "dl1-0123456789abcdef%s", tail);
}

static void check_index(dlock_factory *factory, const bool *known)
{
    int count = 0;
    int found = 0;
    for (int i = 0; i < HANDLES; i++) {
        if (known[i]) {
            assert_ptr_equal(dlocki_owner_find(factory, locks[i]._owner), &locks[i]);
        } else if (locks[i]._owner[0] != 0) {
            assert_null(dlocki_owner_find(factory, locks[i]._owner));
        }
        assert_int_equal(locks[i]._bucket != 0, known[i]);
        count += known[i];
    }
    for (int i = 0; i < DLOCKI_BUCKETS; i++) {
        for (const dlock_lock *lock = factory->buckets[i]; lock != NULL;
             lock = lock->_bucket_next) {
            found++;
        }
    }
    assert_int_equal(found, count);
}

/* Also while many look alike, and where an owner is replaced by another before it is made known. */
static void an_owner_is_found_as_long_as_it_is_known(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    bool known[HANDLES] = {false};
    for (int round = 0; round < ROUNDS; round++) {
        int i = below(HANDLES);
        switch (below(4)) {
        case 0:
            dlocki_index(factory, &locks[i], false);
            known[i] = false;
            break;
        case 1:
            dlocki_index(factory, &locks[i], known[i]);   /* once more: nothing */
            break;
        default:
            give_owner(&locks[i], below(3) * 2);
            dlocki_index(factory, &locks[i], true);
            known[i] = true;
            break;
        }
        if (round % 64 == 0) {
            check_index(factory, known);
        }
    }
    assert_null(dlocki_owner_find(factory, "dl1-0123456789abcdef0123456789abcdef"));
}

static void who_needs_the_inbox_is_counted_once(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    for (int round = 0; round < 5000; round++) {
        dlock_lock *lock = &locks[below(HANDLES)];
        bool listens = below(2) == 0;
        int count = 0;
        give_owner(lock, 0);
        dlocki_listen(factory, lock, listens);
        if (listens) {
            assert_ptr_equal(dlocki_owner_find(factory, lock->_owner), lock);
        }
        for (int i = 0; i < HANDLES; i++) {
            count += locks[i]._listens;
        }
        assert_int_equal(factory->listeners, count);
    }
}

/* ----------------------------------------------------------------------------------- randomness */

static int pools;
static bool no_random;

/* Eight bytes that count, over and over. */
static bool counting(void *world, unsigned char *bytes, size_t count)
{
    static uint64_t next;
    (void)world;
    assert_int_equal(count % 8, 0);
    for (; count > 0 && !no_random; count -= 8) {
        next++;
        memcpy(bytes, &next, 8);
        bytes += 8;
    }
    pools++;
    return !no_random;
}

static void randomness_is_used_once_and_wiped(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    const dlocki_kernel *kept = factory->kernel;
    dlocki_kernel kernel = *kept;
    bool seen[5001] = {false};
    kernel.random = counting;
    factory->kernel = &kernel;
    factory->pool_left = 0;
    pools = 0;
    for (int i = 0; i < 64 * 70; i++) {
        uint64_t value;
        assert_true(dlocki_take_random(factory, (unsigned char *)&value));
        assert_true(value >= 1 && value <= 5000);
        assert_false(seen[value]);
        seen[value] = true;
        assert_int_equal(pools, i / 64 + 1);
        for (size_t j = 0; j < sizeof factory->pool; j += 8) {   /* what is left is still to come */
            memcpy(&value, factory->pool + j, 8);
            assert_int_equal(value != 0, j < (size_t)factory->pool_left);
            assert_true(value == 0 || !seen[value]);
        }
    }
    factory->kernel = kept;
}

/* Never anything weaker: without randomness nothing is drawn, and with it everything goes on. */
static void without_randomness_nothing_is_drawn(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    const dlocki_kernel *kept = factory->kernel;
    dlocki_kernel kernel = *kept;
    unsigned char bytes[8];
    kernel.random = counting;
    factory->kernel = &kernel;
    no_random = true;
    while (factory->pool_left >= 8) {
        assert_true(dlocki_take_random(factory, bytes));
    }
    for (int i = 0; i < 3; i++) {
        assert_false(dlocki_take_random(factory, bytes));
        assert_true(factory->pool_left < 8);
    }
    no_random = false;
    assert_true(dlocki_take_random(factory, bytes));
    factory->kernel = kept;
}

/* The first half is the factory's, the second is new each time; all of it lower-case digits. */
static void no_two_owners_are_alike(void **state)
{
    enum { OWNERS = 100000, SLOTS = 1 << 18 };
    dlock_factory *factory = (dlock_factory *)*state;
    uint64_t *slots = (uint64_t *)calloc(SLOTS, sizeof *slots);
    dlock_lock *lock = &locks[0];
    assert_non_null(slots);
    for (int i = 0; i < OWNERS; i++) {
        unsigned char random[8];
        dlocki_event in;
        uint64_t value;
        size_t at;
        memset(&in, 0, sizeof in);
        assert_true(dlocki_take_random(factory, random));
        in.factory = factory->id;
        in.random = random;
        lock->_ticket = true;
        lock->_burnt = true;
        assert_true(dlocki_draw_owner(lock, &in));
        assert_false(lock->_ticket || lock->_burnt);
        assert_int_equal(strlen(lock->_owner), DLOCKI_OWNER_LENGTH);
        assert_memory_equal(lock->_owner, "dl1-", 4);
        assert_memory_equal(lock->_owner + 4, factory->id, 16);
        assert_int_equal(strspn(lock->_owner + 20, "0123456789abcdef"), 16);
        value = strtoull(lock->_owner + 20, NULL, 16);
        for (at = value % SLOTS; slots[at] != 0; at = (at + 1) % SLOTS) {
            assert_true(slots[at] != value);
        }
        slots[at] = value;
    }
    free(slots);
}

static void two_factories_share_no_half(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    for (int i = 0; i < 100; i++) {
        dlock_factory *other = open_factory("redis://host", NULL);
        assert_int_equal(strlen(other->id), 16);
        assert_int_equal(strspn(other->id, "0123456789abcdef"), 16);
        assert_string_not_equal(other->id, factory->id);
        dlock_close(other);
    }
}

/* ---------------------------------------------------------------------------------------- debts */

/* The debts in their order, by the handles that they came from. */
static void check_debts(dlock_factory *factory)
{
    int before = -1;
    int i = factory->debt_first;
    int free_count = 0;
    for (int n = 0; n < model[0].count; n++) {
        const dlocki_debt *debt;
        assert_true(i >= 0 && i < factory->debt_room);
        debt = &factory->debts[i];
        assert_int_equal(debt->previous, before);
        assert_string_equal(debt->owner, model[0].at[n]->_owner);
        assert_int_equal(debt->key_length, model[0].at[n]->_key_length);
        assert_memory_equal(debt->key, model[0].at[n]->_key, debt->key_length);
        before = i;
        i = debt->next;
    }
    assert_int_equal(i, -1);
    assert_int_equal(factory->debt_last, before);
    assert_int_equal(factory->debt_count, model[0].count);
    for (i = factory->debt_free; i >= 0; i = factory->debts[i].next) {
        assert_int_equal(factory->debts[i].owner[0], 0);   /* wiped */
        assert_int_equal(factory->debts[i].key[0], 0);
        free_count++;
        assert_true(free_count <= factory->debt_room);
    }
    assert_int_equal(free_count + factory->debt_count, factory->debt_room);
}

static int debt_of(const dlock_factory *factory, const dlock_lock *lock)
{
    int i = factory->debt_first;
    while (i >= 0 && strcmp(factory->debts[i].owner, lock->_owner) != 0) {
        i = factory->debts[i].next;
    }
    return i;
}

/* Oldest first, one for each owner; there is room for as many as handles stand in line. */
static void debts_are_kept_in_order_and_each_owner_once(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    memset(model, 0, sizeof model);
    for (int i = 0; i < HANDLES; i++) {
        locks[i]._verb = DLOCKI_ACQUIRE;
        locks[i]._expiry_ms = 10000;
        locks[i]._key_length = (unsigned short)(1 + below(DLOCK_KEY_MAX));
        memset(locks[i]._key, 'a' + i % 26, locks[i]._key_length);
    }
    for (int round = 0; round < ROUNDS / 4; round++) {
        dlock_lock *lock = &locks[below(HANDLES)];
        int index = lock->_owner[0] != 0 ? debt_of(factory, lock) : -1;
        if (below(3) > 0) {
            dlocki_debt *debt;
            if (index < 0) {
                give_owner(lock, 0);
                model_insert(0, model[0].count, lock);
            }
            lock->_state = index < 0 ? DLOCKI_UNUSED : DLOCKI_OWED;   /* a release, called again */
            debt = dlocki_owe(factory, lock, 0);
            assert_non_null(debt);
            assert_true(index < 0 || debt == &factory->debts[index]);
        } else if (index >= 0) {
            model_remove(0, lock);
            dlocki_debt_pay(factory, index);
        }
        check_debts(factory);
    }
    assert_true(factory->debt_room >= 128);   /* it has grown */
}

/* With a lease and a time for the command, and as long as a queue lasts where a place may stand. */
static void a_debt_is_owed_until_nothing_can_stand_any_more(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    dlock_lock *lock = &locks[0];
    dlocki_debt *debt;
    factory->now = 5000;
    lock->_verb = DLOCKI_ACQUIRE;
    lock->_expiry_ms = 10000;
    lock->_lapses_at = 7000;   /* of an earlier lock */
    give_owner(lock, 0);
    debt = dlocki_owe(factory, lock, 0);
    assert_int_equal(debt->letter, 0);
    assert_int_equal(debt->due_at, 5000);
    assert_int_equal(debt->lapses_at, 5000 + 10000 + 102 + 1000);
    give_owner(lock, 0);
    lock->_ticket = true;
    debt = dlocki_owe(factory, lock, 0);
    assert_int_equal(debt->letter, 'g');
    assert_int_equal(debt->expiry_ms, 10000);
    assert_true(debt->lapses_at >= 5000 + 10000 + 102 + 1000 + 600000);
    give_owner(lock, 0);
    lock->_no_fence = true;
    assert_int_equal(dlocki_owe(factory, lock, 0)->letter, 'n');
    give_owner(lock, 0);
    lock->_ticket = false;
    lock->_verb = DLOCKI_RELEASE;
    assert_true(dlocki_owe(factory, lock, 0)->lapses_at >= 7000 + 1000);
    lock->_lapses_at = 1000;   /* long ago: it is tried all the same */
    give_owner(lock, 0);
    assert_true(dlocki_owe(factory, lock, 0)->lapses_at > factory->now);
    /* what is bound to one connection is not what is owed on any */
    lock->_state = DLOCKI_OWED;
    debt = dlocki_owe(factory, lock, 7);
    assert_int_equal(debt->bound_to, 7);
    assert_ptr_not_equal(debt, dlocki_owe(factory, lock, 0));
    assert_int_equal(factory->debt_count, 6);
}

static int refusals;

static void *refuse(size_t size, void *user)
{
    (void)user;
    refusals++;
    (void)size;
    return NULL;
}

/* Whoever stands in line has room reserved, so that giving up his place never needs memory. */
static void a_reserved_debt_needs_no_memory(void **state)
{
    dlock_factory *factory = (dlock_factory *)*state;
    factory->alloc = refuse;
    refusals = 0;
    for (int i = 0; i < DLOCK_DEBT_MAX; i++) {
        assert_true(dlocki_debts_fit(factory));
        dlocki_reserve(factory, &locks[i], true);
        dlocki_reserve(factory, &locks[i], true);   /* once */
        assert_int_equal(factory->reserved, i + 1);
    }
    assert_int_equal(refusals, 0);
    assert_false(dlocki_debts_fit(factory));
    assert_int_equal(refusals, 1);
    give_owner(&locks[DLOCK_DEBT_MAX], 0);
    assert_null(dlocki_owe(factory, &locks[DLOCK_DEBT_MAX], 0));
    assert_int_equal(factory->debt_count, 0);
    refusals = 0;
    for (int i = 0; i < DLOCK_DEBT_MAX; i++) {
        locks[i]._verb = DLOCKI_ACQUIRE;
        locks[i]._expiry_ms = 1000;
        give_owner(&locks[i], 0);
        assert_non_null(dlocki_owe(factory, &locks[i], 0));
        assert_false(locks[i]._reserved);
        assert_int_equal(factory->reserved, DLOCK_DEBT_MAX - i - 1);
    }
    assert_int_equal(refusals, 0);
    factory->alloc = NULL;
}

#define BOOK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOOK(the_earliest_timer_is_the_first_whatever_was_moved),
        BOOK(timers_fire_in_order_and_each_once),
        BOOK(a_timer_is_what_the_state_of_a_handle_waits_for),
        BOOK(a_handle_is_in_one_list_and_at_its_end),
        BOOK(asks_are_sent_in_the_order_of_arrival),
        BOOK(an_owner_is_found_as_long_as_it_is_known),
        BOOK(who_needs_the_inbox_is_counted_once),
        BOOK(randomness_is_used_once_and_wiped),
        BOOK(without_randomness_nothing_is_drawn),
        BOOK(no_two_owners_are_alike),
        BOOK(two_factories_share_no_half),
        BOOK(debts_are_kept_in_order_and_each_owner_once),
        BOOK(a_debt_is_owed_until_nothing_can_stand_any_more),
        BOOK(a_reserved_debt_needs_no_memory),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
