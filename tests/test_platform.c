/* What the library takes from the system: randomness, clocks, descriptors. The system's calls are
 * replaced by ones that fail on order, so that every way through can be seen: another source, or
 * an honest "no", and never a weak owner. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>

#include "tests/support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* ------------------------------------------------------------------------------- a faked system */

enum { DEVICE = 4242, STEPS_MAX = 12 };

/* What one call does: so many bytes, or the errno; ALL: as many as are wanted. */
enum { ALL = 1 << 20 };

typedef struct source {
    int steps[STEPS_MAX];   /* bytes if >= 0, else -errno; the last one is repeated */
    int count;
    int at;
    int calls;
} source;

static struct {
    bool on;   /* off: the real calls */
    source getrandom;
    source open;
    source read;
    int closes;
    int opened;
    unsigned flags_wrong;
    unsigned char next;   /* the bytes are numbered, whoever gives them */
    bool wrote_outside;
} fake;

static struct {
    bool on;
    int fails;   /* that many calls */
    int calls;
    clockid_t asked[4];
    struct timespec at;
} fake_time;

static int step(source *of)
{
    int value = of->count > 0 ? of->steps[of->at] : -ENOSYS;
    of->calls++;
    if (of->at + 1 < of->count) {
        of->at++;
    }
    return value;
}

static ssize_t give(source *of, unsigned char *bytes, size_t count)
{
    int value = step(of);
    size_t i;
    if (value < 0) {
        errno = -value;
        return -1;
    }
    count = (size_t)value < count ? (size_t)value : count;
    for (i = 0; i < count; i++) {
        bytes[i] = ++fake.next;
    }
    return (ssize_t)count;
}

static ssize_t fake_getrandom(void *bytes, size_t count, unsigned flags)
{
    if (!fake.on) {
        return getrandom(bytes, count, flags);
    }
    fake.flags_wrong |= flags;   /* GRND_RANDOM, GRND_NONBLOCK: not asked for */
    return give(&fake.getrandom, (unsigned char *)bytes, count);
}

static int fake_open(const char *path, int flags)
{
    int value;
    if (!fake.on) {
        return open(path, flags);
    }
    assert_string_equal(path, "/dev/urandom");
    assert_int_equal(flags & O_ACCMODE, O_RDONLY);
    assert_int_equal(flags & O_CLOEXEC, O_CLOEXEC);
    value = step(&fake.open);
    if (value < 0) {
        errno = -value;
        return -1;
    }
    fake.opened++;
    return DEVICE;
}

static ssize_t fake_read(int fd, void *bytes, size_t count)
{
    if (fd != DEVICE) {
        return read(fd, bytes, count);
    }
    return give(&fake.read, (unsigned char *)bytes, count);
}

static int fake_close(int fd)
{
    if (fd != DEVICE) {
        return close(fd);
    }
    fake.closes++;
    errno = EIO;
    return 0;
}

static int fake_clock_gettime(clockid_t clock, struct timespec *at)
{
    if (!fake_time.on) {
        return clock_gettime(clock, at);
    }
    if (fake_time.calls < 4) {
        fake_time.asked[fake_time.calls] = clock;
    }
    fake_time.calls++;
    if (fake_time.fails > 0) {
        fake_time.fails--;
        errno = EPERM;
        return -1;
    }
    *at = fake_time.at;
    return 0;
}

#define getrandom fake_getrandom
#define open fake_open
#define read fake_read
#define close fake_close
#define clock_gettime fake_clock_gettime
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"
#undef getrandom
#undef open
#undef read
#undef close
#undef clock_gettime

/* For the checks of support.h that need the library, too. */
#include "tests/support.h"

/* ----------------------------------------------------------------------------------- randomness */

#define GIVES(...) \
    { \
        {__VA_ARGS__}, (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), 0, 0 \
    }

typedef struct random_case {
    const char *name;
    source getrandom;
    source open;
    source read;
    bool answer;
    int getrandom_calls;
    int opened;
} random_case;

/* 32 bytes are wanted. */
static const random_case random_cases[] = {
    {"at once", GIVES(ALL), GIVES(-EIO), GIVES(-EIO), true, 1, 0},
    {"interrupted", GIVES(-EINTR, ALL), GIVES(-EIO), GIVES(-EIO), true, 2, 0},
    {"interrupted often", GIVES(-EINTR, -EINTR, -EINTR, -EINTR, ALL), GIVES(-EIO), GIVES(-EIO),
     true, 5, 0},
    {"short", GIVES(1, 7, ALL), GIVES(-EIO), GIVES(-EIO), true, 3, 0},
    {"byte by byte", GIVES(1), GIVES(-EIO), GIVES(-EIO), true, 32, 0},
    {"all but one", GIVES(31, -EINTR, ALL), GIVES(-EIO), GIVES(-EIO), true, 3, 0},
    {"short and interrupted", GIVES(5, -EINTR, 5, -EINTR, ALL), GIVES(-EIO), GIVES(-EIO), true, 5,
     0},

    {"not there", GIVES(-ENOSYS), GIVES(0), GIVES(ALL), true, 1, 1},
    {"forbidden", GIVES(-EPERM), GIVES(0), GIVES(ALL), true, 1, 1},
    {"would block", GIVES(-EAGAIN), GIVES(0), GIVES(ALL), true, 1, 1},
    {"nothing", GIVES(0), GIVES(0), GIVES(ALL), true, 1, 1},
    {"half, then forbidden", GIVES(16, -EPERM), GIVES(0), GIVES(ALL), true, 2, 1},
    {"interrupted, then not there", GIVES(-EINTR, -ENOSYS), GIVES(0), GIVES(ALL), true, 2, 1},
    {"device: interrupted open", GIVES(-ENOSYS), GIVES(-EINTR, -EINTR, 0), GIVES(ALL), true, 1, 1},
    {"device: interrupted read", GIVES(-ENOSYS), GIVES(0), GIVES(-EINTR, ALL), true, 1, 1},
    {"device: short", GIVES(-ENOSYS), GIVES(0), GIVES(1, 2, 3, ALL), true, 1, 1},
    {"device: byte by byte", GIVES(-EPERM), GIVES(0), GIVES(1), true, 1, 1},
    {"device: short and interrupted", GIVES(-ENOSYS), GIVES(0), GIVES(3, -EINTR, 3, -EINTR, ALL),
     true, 1, 1},

    {"no device", GIVES(-ENOSYS), GIVES(-ENOENT), GIVES(ALL), false, 1, 0},
    {"device forbidden", GIVES(-EPERM), GIVES(-EACCES), GIVES(ALL), false, 1, 0},
    {"no descriptor", GIVES(-ENOSYS), GIVES(-EMFILE), GIVES(ALL), false, 1, 0},
    {"half, and no device", GIVES(16, -EPERM), GIVES(-ENOENT), GIVES(ALL), false, 2, 0},
    {"all but one, and no device", GIVES(31, -EPERM), GIVES(-ENOENT), GIVES(ALL), false, 2, 0},
    {"device: end", GIVES(-ENOSYS), GIVES(0), GIVES(0), false, 1, 1},
    {"device: end after half", GIVES(-ENOSYS), GIVES(0), GIVES(16, 0), false, 1, 1},
    {"device: end before the last", GIVES(-ENOSYS), GIVES(0), GIVES(31, 0), false, 1, 1},
    {"device: broken", GIVES(-ENOSYS), GIVES(0), GIVES(-EIO), false, 1, 1},
    {"device: broken after half", GIVES(-ENOSYS), GIVES(0), GIVES(16, -EIO), false, 1, 1},
    {"device: interrupted, broken", GIVES(-ENOSYS), GIVES(0), GIVES(-EINTR, -EIO), false, 1, 1},
};

static void fake_system(const source *getrandom_does, const source *open_does,
                        const source *read_does)
{
    memset(&fake, 0, sizeof fake);
    fake.on = true;
    fake.getrandom = *getrandom_does;
    fake.open = *open_does;
    fake.read = *read_does;
}

static void real_system(void)
{
    fake.on = false;
    fake_time.on = false;
}

/* Each byte is one that a source gave, in order, and no byte beside them is touched. */
static void randomness_comes_from_the_kernel_or_not_at_all(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(random_cases); i++) {
        const random_case *is = &random_cases[i];
        unsigned char bytes[34];
        bool answer;
        size_t at;
        memset(bytes, 0xee, sizeof bytes);
        fake_system(&is->getrandom, &is->open, &is->read);
        answer = dlocki_random(NULL, bytes + 1, 32);
        real_system();
        if (answer != is->answer) {
            fail_msg("%s: %d", is->name, answer);
        }
        for (at = 1; answer && at <= 32; at++) {
            if (bytes[at] != at) {
                fail_msg("%s: byte %u was given by nobody", is->name, (unsigned)at);
            }
        }
        assert_int_equal(bytes[0], 0xee);
        assert_int_equal(bytes[33], 0xee);
        assert_int_equal(fake.getrandom.calls, is->getrandom_calls);
        assert_int_equal(fake.opened, is->opened);
        assert_int_equal(fake.closes, is->opened);   /* no descriptor is left */
        assert_int_equal(fake.flags_wrong, 0);
    }
}

static void no_bytes_need_no_randomness(void **state)
{
    static const source nothing = GIVES(-ENOSYS);
    unsigned char byte = 0xee;
    (void)state;
    fake_system(&nothing, &nothing, &nothing);
    assert_true(dlocki_random(NULL, &byte, 0));
    real_system();
    assert_int_equal(fake.getrandom.calls, 0);
    assert_int_equal(byte, 0xee);
}

static const source works = GIVES(ALL);
static const source fails = GIVES(-ENOSYS);
static const source absent = GIVES(-ENOENT);

static void without_randomness_nothing_is_opened(void **state)
{
    dlock_error error;
    int before = descriptors();
    (void)state;
    fake_system(&fails, &absent, &works);
    assert_null(dlock_open("redis://host", NULL, &error));
    real_system();
    assert_int_equal(error.code, DLOCK_UNREACHABLE);
    check_text(error.text, __FILE__, __LINE__);
    assert_non_null(strstr(error.text, "random"));
    assert_int_equal(descriptors(), before);
    fake_system(&fails, &works, &works);   /* the device will do */
    {
        dlock_factory *factory = dlock_open("redis://host", NULL, &error);
        real_system();
        assert_non_null(factory);
        assert_int_equal(error.code, DLOCK_OK);
        dlock_close(factory);
    }
    assert_int_equal(descriptors(), before);
}

/* An owner is drawn for every attempt: when the kernel stops giving, so do the attempts. */
static void without_randomness_nothing_is_asked_for(void **state)
{
    dlock_factory *factory = open_factory("unix:///nowhere/redis.sock", NULL);
    dlock_options options = {.wait_ms = 5000};
    dlock_lock lock = DLOCK_INIT;
    unsigned char bytes[8];
    char before[sizeof lock._owner];
    int i;
    (void)state;
    fake_system(&fails, &absent, &works);
    for (i = 0; i < 64 && dlocki_take_random(factory, bytes); i++) {   /* what is left */
    }
    assert_in_range(i, 1, 63);
    memcpy(before, lock._owner, sizeof before);
    assert_no(dlock_acquire(factory, &lock, "key", &options), &lock, DLOCK_UNREACHABLE);
    real_system();
    assert_non_null(strstr(dlock_why(&lock)->text, "random"));
    assert_memory_equal(lock._owner, before, sizeof before);
    assert_int_equal(factory->debt_count, 0);
    assert_int_equal(factory->link.failures, 0);   /* it did not even try to connect */
    assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_UNREACHABLE);
    assert_null(strstr(dlock_why(&lock)->text, "random"));
    dlock_close(factory);
}

/* Bytes are taken from a pool; each of them once, and what was taken is not kept. */
static void the_pool_gives_each_byte_once(void **state)
{
    dlock_factory *factory = open_factory("redis://host", NULL);
    unsigned char bytes[8];
    unsigned char seen[256];
    int left;
    int at;
    int i;
    (void)state;
    memset(seen, 0, sizeof seen);
    fake_system(&works, &absent, &fails);
    for (i = 0; i < 64 && factory->pool_left >= 8; i++) {
        assert_true(dlocki_take_random(factory, bytes));
    }
    assert_in_range(i, 1, 63);
    fake.next = 0;
    for (i = 0; i < 31; i++) {   /* 248 numbered bytes, no two alike */
        assert_true(dlocki_take_random(factory, bytes));
        for (at = 0; at < 8; at++) {
            seen[bytes[at]]++;
        }
        left = factory->pool_left;
        for (at = left; at < (int)sizeof factory->pool; at++) {
            assert_int_equal(factory->pool[at], 0);
        }
    }
    real_system();
    for (at = 0; at < 256; at++) {
        assert_in_range(seen[at], 0, 1);
    }
    dlock_close(factory);
}

/* --------------------------------------------------------------------------------------- owners */

enum { OWNERS = 100000, CHILDREN = 8, CHILD_OWNERS = 2000 };

typedef char owner_text[DLOCKI_OWNER_LENGTH + 1];

static void draw(dlock_factory *factory, owner_text to)
{
    dlock_lock lock = DLOCK_INIT;
    unsigned char random[8];
    dlocki_event in;
    memset(&in, 0, sizeof in);
    in.factory = factory->id;
    in.random = dlocki_take_random(factory, random) ? random : NULL;
    if (!dlocki_draw_owner(&lock, &in)) {
        abort();
    }
    memcpy(to, lock._owner, sizeof lock._owner);
}

static int compare_owners(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(owner_text));
}

static void check_all_differ(owner_text *owners, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) {
        assert_int_equal(strlen(owners[i]), DLOCKI_OWNER_LENGTH);
        assert_memory_equal(owners[i], "dl1-", 4);
        assert_int_equal(strspn(owners[i] + 4, "0123456789abcdef"), 32);
    }
    qsort(owners, count, sizeof *owners, compare_owners);
    for (i = 1; i < count; i++) {
        if (compare_owners(owners[i - 1], owners[i]) == 0) {
            fail_msg("%s was drawn twice", owners[i]);
        }
    }
}

static void no_two_owners_are_alike(void **state)
{
    owner_text *owners = (owner_text *)calloc(OWNERS, sizeof *owners);
    dlock_factory *factories[2];
    size_t i;
    (void)state;
    assert_non_null(owners);
    for (i = 0; i < 2; i++) {
        factories[i] = open_factory("redis://host", NULL);
    }
    for (i = 0; i < OWNERS; i++) {
        draw(factories[i % 2], owners[i]);
        assert_memory_equal(owners[i] + 4, factories[i % 2]->id, 16);
    }
    assert_string_not_equal(factories[0]->id, factories[1]->id);
    check_all_differ(owners, OWNERS);
    dlock_close(factories[0]);
    dlock_close(factories[1]);
    free(owners);
}

static owner_text *shared;

static int draw_in_a_child(void *argument)
{
    int number = *(const int *)argument;
    dlock_factory *factory = dlock_open("redis://host", NULL, NULL);
    int i;
    child_check(factory != NULL);
    for (i = 0; i < CHILD_OWNERS; i++) {
        draw(factory, shared[number * CHILD_OWNERS + i]);
    }
    dlock_close(factory);
    return 0;
}

/* A child opens a factory of its own: its owners are new, although its memory is the parent's. */
static void no_two_owners_are_alike_over_forks(void **state)
{
    const size_t count = (CHILDREN + 1) * CHILD_OWNERS;
    dlock_factory *factory = open_factory("redis://host", NULL);
    pid_t pids[CHILDREN];
    int i;
    (void)state;
    shared = (owner_text *)shared_memory(count * sizeof *shared);
    for (i = 0; i < CHILDREN; i++) {
        pids[i] = child_start(draw_in_a_child, &i);
    }
    for (i = 0; i < CHILD_OWNERS; i++) {
        draw(factory, shared[CHILDREN * CHILD_OWNERS + i]);
    }
    for (i = 0; i < CHILDREN; i++) {
        assert_int_equal(child_wait(pids[i]), 0);
    }
    check_all_differ(shared, count);
    dlock_close(factory);
}

static int use_the_parents_factory(void *argument)
{
    dlock_factory *factory = (dlock_factory *)argument;
    dlock_lock lock = DLOCK_INIT;
    child_check(!dlock_acquire(factory, &lock, "key", NULL));
    child_check(dlock_why(&lock)->code == DLOCK_ARGUMENT);
    child_check(lock._owner[0] == 0);
    dlock_close(factory);
    return 0;
}

/* With the parent's factory it could draw the parent's owners. */
static void a_child_draws_nothing_from_its_parents_pool(void **state)
{
    dlock_factory *factory = open_factory("unix:///nowhere/redis.sock", NULL);
    int left = factory->pool_left;
    (void)state;
    assert_int_equal(child_wait(child_start(use_the_parents_factory, factory)), 0);
    assert_int_equal(factory->pool_left, left);
    dlock_close(factory);
}

static void an_owner_is_written_in_lower_case_hex(void **state)
{
    static const unsigned char random[8] = {0x00, 0x01, 0x7f, 0x80, 0x9a, 0xbc, 0xde, 0xff};
    dlock_lock lock = DLOCK_INIT;
    dlocki_event in;
    (void)state;
    memset(&in, 0, sizeof in);
    memset(lock._owner, 'x', sizeof lock._owner);
    in.factory = "0123456789abcdef";
    in.random = random;
    assert_true(dlocki_draw_owner(&lock, &in));
    assert_string_equal(lock._owner, "dl1-0123456789abcdef00017f809abcdeff");
    in.random = NULL;
    assert_false(dlocki_draw_owner(&lock, &in));
}

/* ------------------------------------------------------------------------------------ the clock */

static void the_clock_counts_suspend_and_is_not_the_walls(void **state)
{
    static const struct {
        int fails;
        time_t seconds;
        long nanoseconds;
        int calls;
        int64_t now;
    } clocks[] = {
        {0, 0, 0, 1, 0},
        {0, 0, 999999, 1, 0},   /* rounded down */
        {0, 0, 1000000, 1, 1},
        {0, 1, 999999999, 1, 1999},
        {0, 4000000000, 5000000, 1, INT64_C(4000000000005)},
        {1, 12, 345678901, 2, 12345},
        {2, 12, 345678901, 2, DLOCKI_NEVER},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(clocks); i++) {
        int64_t now;
        memset(&fake_time, 0, sizeof fake_time);
        fake_time.on = true;
        fake_time.fails = clocks[i].fails;
        fake_time.at.tv_sec = clocks[i].seconds;
        fake_time.at.tv_nsec = clocks[i].nanoseconds;
        now = dlocki_now(NULL);
        real_system();
        assert_true(now == clocks[i].now);
        assert_int_equal(fake_time.calls, clocks[i].calls);
        assert_int_equal(fake_time.asked[0], CLOCK_BOOTTIME);
        if (clocks[i].calls > 1) {
            assert_int_equal(fake_time.asked[1], CLOCK_MONOTONIC);
        }
    }
}

static void the_clock_never_goes_back(void **state)
{
    struct timespec wall;
    int64_t before = dlocki_now(NULL);
    int64_t began = before;
    int i;
    (void)state;
    for (i = 0; i < 100000; i++) {
        int64_t now = dlocki_now(NULL);
        assert_true(now >= before);
        before = now;
    }
    pause_ms(30);
    before = dlocki_now(NULL);
    assert_true(before - began >= 29);
    assert_int_equal(clock_gettime(CLOCK_BOOTTIME, &wall), 0);
    assert_in_range(before, 1, (int64_t)wall.tv_sec * 1000 + 1000);
}

/* ----------------------------------------------------------------------------------- arithmetic */

static void sums_of_instants_saturate(void **state)
{
    static const struct {
        int64_t a;
        int64_t b;
        int64_t sum;
    } sums[] = {
        {0, 0, 0},
        {1, 2, 3},
        {5, -3, 2},
        {5, -5, 0},
        {0, INT64_MAX, INT64_MAX},
        {1, INT64_MAX, INT64_MAX},
        {INT64_MAX, 0, INT64_MAX},
        {INT64_MAX, 1, INT64_MAX},
        {INT64_MAX, INT64_MAX, INT64_MAX},
        {INT64_MAX - 1, 1, INT64_MAX},
        {INT64_MAX - 1, 2, INT64_MAX},
        {INT64_MAX - 2, 1, INT64_MAX - 1},
        {INT64_MAX, -1, INT64_MAX - 1},
        {INT64_MAX, -INT64_MAX, 0},
        {INT64_MAX, INT64_MIN, -1},
        {0, INT64_MIN, INT64_MIN},
        {-1, INT64_MIN, INT64_MIN},
        {-1, INT64_MAX, INT64_MAX - 1},
        {INT64_MIN, INT64_MAX, -1},
        {INT64_MIN, -1, INT64_MIN},
        {INT64_MIN, INT64_MIN, INT64_MIN},
        {INT64_MIN, 0, INT64_MIN},
        {INT64_C(1) << 62, INT64_C(1) << 62, INT64_MAX},
        {INT64_C(1) << 62, (INT64_C(1) << 62) - 1, INT64_MAX},
        {INT64_C(1) << 62, (INT64_C(1) << 62) - 2, INT64_MAX - 1},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(sums); i++) {
        assert_true(dlocki_plus(sums[i].a, sums[i].b) == sums[i].sum);
        if (sums[i].a >= 0 && sums[i].b >= 0) {
            assert_true(dlocki_plus(sums[i].b, sums[i].a) == sums[i].sum);
        }
    }
    assert_true(dlocki_least(INT64_MIN, INT64_MAX) == INT64_MIN);
    assert_true(dlocki_least(INT64_MAX, INT64_MIN) == INT64_MIN);
    assert_true(dlocki_least(3, 3) == 3);
    assert_true(dlocki_most(INT64_MIN, INT64_MAX) == INT64_MAX);
    assert_true(dlocki_most(INT64_MAX, INT64_MIN) == INT64_MAX);
    assert_true(dlocki_most(-1, 0) == 0);
}

static void the_drift_is_one_percent_and_two_milliseconds(void **state)
{
    static const int64_t drifts[][2] = {
        {0, 2},   {1, 2},   {99, 2},      {100, 3},
        {199, 3}, {200, 4}, {30000, 302}, {DLOCK_EXPIRY_MAX_MS, 25920002},
    };
    size_t i;
    int64_t expiry;
    (void)state;
    for (i = 0; i < COUNT(drifts); i++) {
        assert_int_equal(dlocki_drift_ms(drifts[i][0]), drifts[i][1]);
    }
    for (expiry = -5; expiry < 1000; expiry++) {
        assert_int_equal(dlocki_expiry_is_legal(expiry), expiry >= 3);
    }
    assert_true(dlocki_expiry_is_legal(DLOCK_EXPIRY_MAX_MS));
    assert_false(dlocki_expiry_is_legal(DLOCK_EXPIRY_MAX_MS + 1));
    assert_false(dlocki_expiry_is_legal(INT64_MAX));
    assert_false(dlocki_expiry_is_legal(INT64_MIN));
}

/* ------------------------------------------------------------------------------ memory, atomics */

static void wiping_clears_what_it_is_told_to_and_nothing_else(void **state)
{
    static unsigned char bytes[64];
    size_t from;
    size_t size;
    (void)state;
    for (from = 0; from < 8; from++) {
        for (size = 0; size <= sizeof bytes - from; size++) {
            size_t i;
            memset(bytes, 0xa5, sizeof bytes);
            dlocki_wipe(bytes + from, size);
            for (i = 0; i < sizeof bytes; i++) {
                assert_int_equal(bytes[i], i >= from && i < from + size ? 0 : 0xa5);
            }
        }
    }
}

static void a_swap_happens_only_from_what_was_expected(void **state)
{
    int value = DLOCKI_FREE;
    (void)state;
    assert_true(dlocki_swap(&value, DLOCKI_FREE, DLOCKI_CLAIMED));
    assert_int_equal(dlocki_load(&value), DLOCKI_CLAIMED);
    assert_false(dlocki_swap(&value, DLOCKI_FREE, DLOCKI_CANCELLABLE));
    assert_int_equal(dlocki_load(&value), DLOCKI_CLAIMED);
    dlocki_store(&value, DLOCKI_CANCELLABLE);
    assert_true(dlocki_swap(&value, DLOCKI_CANCELLABLE, DLOCKI_CANCELLED));
    assert_int_equal(value, DLOCKI_CANCELLED);
}

/* ---------------------------------------------------------------------------------- descriptors */

static bool is_awake(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    int ready = dlocki_wait_fds(NULL, &one, 1, 0);
    assert_in_range(ready, 0, 1);
    return ready == 1;
}

static void waking_is_remembered_until_it_is_drained(void **state)
{
    const uint64_t full = UINT64_MAX - 1;
    int fd = dlocki_wake_fd(NULL);
    int i;
    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);   /* no program inherits it */
    assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    assert_false(is_awake(fd));
    dlocki_drain(fd);   /* nothing there: does not block */
    for (i = 0; i < 1000; i++) {
        dlocki_wake(fd);
    }
    assert_true(is_awake(fd));
    dlocki_drain(fd);
    assert_false(is_awake(fd));
    assert_int_equal(write(fd, &full, sizeof full), sizeof full);
    errno = EXDEV;
    dlocki_wake(fd);   /* the counter is full: fails, does not block, and is awake already */
    assert_int_equal(errno, EXDEV);
    assert_true(is_awake(fd));
    dlocki_close_fd(NULL, fd);
    errno = EXDEV;
    dlocki_wake(fd);
    assert_int_equal(errno, EXDEV);
}

static volatile sig_atomic_t rang;

static void ring(int number)
{
    (void)number;
    rang = 1;
}

/* Nobody here starts again behind a signal: the caller may have been cancelled by it. */
static void a_signal_ends_a_wait_and_time_does(void **state)
{
    struct pollfd one = {.fd = -1, .events = POLLIN};
    struct itimerval soon = {.it_value = {0, 20000}};
    struct sigaction ringing;
    struct sigaction before;
    int64_t began = now_ms();
    (void)state;
    assert_int_equal(dlocki_wait_fds(NULL, &one, 1, 20), 0);
    assert_true(now_ms() - began >= 19);
    memset(&ringing, 0, sizeof ringing);
    ringing.sa_handler = ring;
    assert_int_equal(sigaction(SIGALRM, &ringing, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    assert_int_equal(dlocki_wait_fds(NULL, &one, 1, 60000), -EINTR);
    assert_int_equal(rang, 1);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
    watchdog(120); /* the same timer */
}

static void opening_and_closing_leaves_no_descriptor(void **state)
{
    int before = descriptors();
    int i;
    (void)state;
    for (i = 0; i < 50; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_factory *factory = open_factory("unix:///nowhere/redis.sock", NULL);
        assert_int_equal(descriptors(), before + 1);
        assert_int_equal(fcntl(factory->wake_fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_UNREACHABLE);
        assert_null(dlock_open("nonsense", NULL, NULL));
        dlock_close(factory);
        assert_int_equal(descriptors(), before);
    }
}

static void the_process_is_the_one_the_kernel_says(void **state)
{
    (void)state;
    assert_int_equal(dlocki_pid(NULL), getpid());
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(randomness_comes_from_the_kernel_or_not_at_all),
        cmocka_unit_test(no_bytes_need_no_randomness),
        cmocka_unit_test(without_randomness_nothing_is_opened),
        cmocka_unit_test(without_randomness_nothing_is_asked_for),
        cmocka_unit_test(the_pool_gives_each_byte_once),
        cmocka_unit_test(no_two_owners_are_alike),
        cmocka_unit_test(no_two_owners_are_alike_over_forks),
        cmocka_unit_test(a_child_draws_nothing_from_its_parents_pool),
        cmocka_unit_test(an_owner_is_written_in_lower_case_hex),
        cmocka_unit_test(the_clock_counts_suspend_and_is_not_the_walls),
        cmocka_unit_test(the_clock_never_goes_back),
        cmocka_unit_test(sums_of_instants_saturate),
        cmocka_unit_test(the_drift_is_one_percent_and_two_milliseconds),
        cmocka_unit_test(wiping_clears_what_it_is_told_to_and_nothing_else),
        cmocka_unit_test(a_swap_happens_only_from_what_was_expected),
        cmocka_unit_test(waking_is_remembered_until_it_is_drained),
        cmocka_unit_test(a_signal_ends_a_wait_and_time_does),
        cmocka_unit_test(opening_and_closing_leaves_no_descriptor),
        cmocka_unit_test(the_process_is_the_one_the_kernel_says),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
