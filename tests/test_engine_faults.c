/* Whole calls while the system fails: the n-th allocation, the n-th call of the kernel, once and
 * from then on. What is allocated at all, and what is in memory that is given back.
 *
 * malloc is replaced by our own, so that hiredis's allocations are seen, too. The sanitizers have
 * theirs in that place: there only what goes through dlock_config is. */
#include "tests/scripted.h"

#include <malloc.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MALLOC_IS_OURS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MALLOC_IS_OURS 0
#endif
#endif
#ifndef MALLOC_IS_OURS
#define MALLOC_IS_OURS 1
#endif

enum { BLOCKS = 64 };

static const char secret[] = "hush-hush";

/* What was taken between watch_begin and watch_end. */
static struct {
    bool watching;
    int taken;
    int fail_at;  /* the n-th fails; 0 = none */
    bool fail_on; /* and all after it         */
    bool fired;
    size_t bytes; /* now                      */
    size_t most;
    int spilled; /* blocks given back with a secret in them */
    void *blocks[BLOCKS];
    size_t sizes[BLOCKS];
} watch;

static void watch_begin(int fail_at, bool fail_on)
{
    memset(&watch, 0, sizeof watch);
    watch.fail_at = fail_at;
    watch.fail_on = fail_on;
    watch.watching = true;
}

static int watch_end(void)
{
    int left = 0;
    watch.watching = false;
    for (int i = 0; i < BLOCKS; i++) {
        left += watch.blocks[i] != NULL;
    }
    return left;
}

static bool watch_refuses(void)
{
    bool refuses;
    if (!watch.watching) {
        return false;
    }
    watch.taken++;
    refuses = watch.fail_at > 0 &&
              (watch.taken == watch.fail_at || (watch.fail_on && watch.taken > watch.fail_at));
    watch.fired = watch.fired || refuses;
    return refuses;
}

static void watch_take(void *block, size_t size)
{
    for (int i = 0; watch.watching && block != NULL && i < BLOCKS; i++) {
        if (watch.blocks[i] == NULL) {
            watch.blocks[i] = block;
            watch.sizes[i] = size;
            watch.bytes += size;
            watch.most = watch.bytes > watch.most ? watch.bytes : watch.most;
            return;
        }
    }
}

/* Is a password or a whole owner in these bytes? */
static bool has_secret(const char *bytes, size_t size)
{
    for (size_t i = 0; i + 9 <= size; i++) {
        if (memcmp(bytes + i, secret, 9) == 0 ||
            (i + 36 <= size && memcmp(bytes + i, "dl1-", 4) == 0 && bytes[i + 4] != 0)) {
            return true;
        }
    }
    return false;
}

static void watch_give(void *block)
{
    for (int i = 0; block != NULL && i < BLOCKS; i++) {
        if (watch.blocks[i] == block) {
            watch.spilled += has_secret((const char *)block, watch.sizes[i]);
            watch.bytes -= watch.sizes[i];
            watch.blocks[i] = NULL;
        }
    }
}

#if MALLOC_IS_OURS
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void __libc_free(void *block);

void *malloc(size_t size)
{
    void *block = watch_refuses() ? NULL : __libc_malloc(size);
    watch_take(block, size);
    return block;
}

void *calloc(size_t count, size_t size)
{
    void *block = watch_refuses() ? NULL : __libc_calloc(count, size);
    watch_take(block, count * size);
    return block;
}

void *realloc(void *block, size_t size)
{
    void *grown;
    if (!watch.watching) {
        return __libc_realloc(block, size);
    }
    grown = watch_refuses() ? NULL : __libc_malloc(size);
    if (grown != NULL && block != NULL) {
        size_t old = malloc_usable_size(block);
        memcpy(grown, block, old < size ? old : size);
        watch_give(block);
        __libc_free(block);
    }
    watch_take(grown, size);
    return grown;
}

void free(void *block)
{
    watch_give(block);
    __libc_free(block);
}
#else
static void *config_alloc(size_t size, void *user)
{
    void *block = watch_refuses() ? NULL : malloc(size);
    (void)user;
    watch_take(block, size);
    return block;
}

static void config_free(void *block, void *user)
{
    (void)user;
    watch_give(block);
    free(block);
}
#endif

/* ---------------------------------------------------------------------------------- the story */

/* A code that a failing system may lead to. */
static void may_end_so(bool answer, const dlock_lock *lock)
{
    int code = dlock_why(lock)->code;
    if (answer) {
        assert_int_equal(code, DLOCK_OK);
    } else if (code != DLOCK_MEMORY && code != DLOCK_UNREACHABLE) {
        fail_msg("%s: %s", dlock_code_text(code), dlock_why(lock)->text);
    }
}

/* A little of everything, once; what fails then is told by the world or the watch. True if the
 * factory could be opened. */
static bool live_a_little(struct world *world, int64_t *took)
{
    static const dlock_config config = {
        .username = "me",
        .password = secret,
        .client_name = "me",
#if !MALLOC_IS_OURS
        .alloc = config_alloc,
        .free = config_free
#endif
    };
    static const dlock_options twice = {.expiry_ms = 10000, .retry_count = 1, .wait_ms = 4000};
    static const dlock_options plain = {.expiry_ms = 10000, .no_fence = true};
    dlock_lock lock = DLOCK_INIT;
    dlock_error error;
    dlock_factory *factory;
    world->user = "me";
    world->password = secret;
    world->address_count = 2;
    factory = dlocki_open_in(&fake_kernel, world, "redis://model/1", &config, &error);
    if (factory == NULL) {
        assert_true(error.code == DLOCK_MEMORY || error.code == DLOCK_UNREACHABLE);
        return false;
    }
    *took = world->now;
    for (int i = 0; i < 2; i++) {
        bool answer = dlock_acquire(factory, &lock, "k", i == 0 ? &twice : &plain);
        may_end_so(answer, &lock);
        if (answer) {
            may_end_so(dlock_extend(&lock, 20000), &lock);
            if (dlock_why(&lock)->code == DLOCK_OK) {
                assert_true(dlock_is_acquired(&lock));
            }
            may_end_so(dlock_release(&lock), &lock);
        }
        assert_false(dlock_is_acquired(&lock));
        if (i == 0) { /* a reconnect in the middle */
            server_restarts(world);
            world_sleep(world, 20);
        }
    }
    assert_true(dlock_acquire(factory, &lock, "held", &twice) ||
                dlock_why(&lock)->code != DLOCK_OK);
    dlock_close(factory);
    *took = world->now - *took;
    return true;
}

static void the_nth_kernel_call_fails(void **state)
{
    (void)state;
    for (int on = 0; on < 2; on++) {
        bool fired = true;
        int n = 0;
        while (fired) {
            struct world *world = world_begin();
            int64_t took = 0;
            bool opened;
            n++;
            world->latency_ms = 1;
            world->fail_at = n;
            world->fail_on = on != 0;
            opened = live_a_little(world, &took);
            fired = world->calls >= n;
            assert_int_equal(world->open_sockets, 0);
            assert_int_equal(world->open_wakes, 0);
            assert_true(took < 20000);
            assert_true(world->most_spins < 50);
            assert_true(opened || n <= 2);
            if (!on) { /* a system that is well again leaves no orphan */
                world_sleep(world, 10);
                assert_int_equal(world_key_count(world), 0);
            }
        }
        assert_true(n > 40);
    }
}

static void the_nth_allocation_fails(void **state)
{
    (void)state;
    for (int on = 0; on < 2; on++) {
        bool fired = true;
        int n = 0;
        while (fired) {
            struct world *world = world_begin();
            int64_t took = 0;
            bool opened;
            n++;
            world->latency_ms = 1;
            watch_begin(n, on != 0);
            opened = live_a_little(world, &took);
            fired = watch.fired;
            assert_int_equal(watch_end(), 0);
            assert_int_equal(watch.spilled, 0);
            assert_int_equal(world->open_sockets, 0);
            assert_int_equal(world->open_wakes, 0);
            assert_true(opened || n == 1);
            assert_true(world->most_spins < 50);
            if (!on) {
                world_sleep(world, 10);
                assert_int_equal(world_key_count(world), 0);
            }
        }
        assert_true(n > (MALLOC_IS_OURS ? 5 : 1));
    }
}

/* A connection for which no memory is left is said to be that. */
static void out_of_memory_is_called_so(void **state)
{
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    watch_begin(1, true);
    if (MALLOC_IS_OURS) {
        bool answer = dlock_acquire(factory, &lock, "k", NULL);
        (void)watch_end();
        assert_false(answer);
        assert_code(&lock, DLOCK_MEMORY);
        assert_int_equal(dlock_why(&lock)->os_errno, ENOMEM);
    }
    (void)watch_end();
    works_again(factory, "k");
    world_close_clean(world, factory);
}

static void without_randomness_there_is_no_owner(void **state)
{
    static const dlock_options options = {.wait_ms = 5000};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    dlock_error error;
    (void)state;
    world->no_random = true;
    assert_null(dlocki_open_in(&fake_kernel, world, "redis://model", NULL, &error));
    assert_int_equal(error.code, DLOCK_UNREACHABLE);
    factory->pool_left = 0;
    assert_no(dlock_acquire(factory, &lock, "k", &options), &lock, DLOCK_UNREACHABLE);
    assert_int_equal(world->connects, 0);
    world->no_random = false;
    works_again(factory, "k");
    world_close_clean(world, factory);
}

/* ---------------------------------------------------------------- what is allocated, and kept */

/* Both connections stand, and were used. */
static void waits_once(struct world *world, dlock_factory *factory)
{
    static const dlock_options patient = {.wait_ms = 10000};
    dlock_lock lock = DLOCK_INIT;
    world_hold(world, "k", 100);
    assert_true(dlock_acquire(factory, &lock, "k", &patient));
    assert_true(dlock_release(&lock));
    assert_int_equal(factory->inbox.state, DLOCKI_UP);
}

static void nothing_is_allocated_once_the_connections_stand(void **state)
{
    static const dlock_options some = {.expiry_ms = 10000, .retry_count = 3};
    static const dlock_options plain = {.no_fence = true};
    struct world *world = world_begin();
    dlock_factory *factory = world_open(world, NULL);
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    waits_once(world, factory);
    watch_begin(0, false);
    for (int i = 0; i < 1000; i++) {
        world->latency_ms = i % 3;
        if (i % 10 == 0) {
            memset(world->loaded, 0, sizeof world->loaded);
        }
        assert_true(dlock_acquire(factory, &lock, "k", i % 2 == 0 ? &some : &plain));
        assert_true(dlock_extend(&lock, 20000));
        assert_true(dlock_release(&lock));
        world_hold(world, "k", 300);
        (void)dlock_acquire(factory, &lock, "k", &some);
        (void)dlock_release(&lock);
        world_delete(world, "k");
    }
    (void)watch_end();
    assert_int_equal(watch.taken, 0);
    world_close_clean(world, factory);
}

static void an_hour_of_trying_and_many_reconnects_do_not_grow(void **state)
{
    static const dlock_options patient = {.wait_ms = 3600000, .retry_delay_ms = 100};
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    size_t before;
    (void)state;
    watch_begin(0, false);
    factory = world_open(world, NULL);
    waits_once(world, factory);
    before = watch.bytes;
    for (int i = 0; i < 8; i++) {
        static const enum fault_kind kinds[] = {FAULT_CLOSE_AFTER, FAULT_CUT_REPLY,
                                                FAULT_DROP_REPLY, FAULT_CLOSE_BEFORE};
        struct fault *fault = world_fault(world, kinds[i % 4], DLOCKI_ASK);
        fault->times = 50;
        fault->skip = 10;
    }
    world_hold(world, "k", 7200000);
    assert_false(dlock_acquire(factory, &lock, "k", &patient));
    assert_true(dlock_why(&lock)->code == DLOCK_TIMEOUT ||
                dlock_why(&lock)->code == DLOCK_UNREACHABLE);
    assert_in_range(world->now - WORLD_START, 3600000, 3600101);
    assert_true(world->connects > 100);
    assert_true(watch.bytes <= before);
    assert_true(watch.most <= before + 32768);
    world_delete(world, "k");
    world_close_clean(world, factory);
    assert_int_equal(watch_end(), 0);
}

static void whatever_a_server_sends_memory_is_bounded(void **state)
{
    static const char *const texts[] = {
        "$2147483000\r\nxxxx", "+aaaaaaaaaaaaaa", "a", "-b", "*8\r\n", ":1\r\n", "$9\r\n"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct world *world = world_begin();
        dlock_factory *factory;
        dlock_lock lock = DLOCK_INIT;
        watch_begin(0, false);
        factory = world_open(world, NULL);
        world_fault(world, FAULT_FLOOD, DLOCKI_ASK)->text = texts[i];
        assert_no(dlock_acquire(factory, &lock, "k", NULL), &lock, DLOCK_PROTOCOL);
        assert_true(watch.most <= sizeof *factory + 400000);
        world_close_clean(world, factory);
        assert_int_equal(watch_end(), 0);
    }
}

/* ------------------------------------------------------------------------------------ secrets */

static int given_back;
static int given_back_with_secrets;

static void *plain_alloc(size_t size, void *user)
{
    (void)user;
    return malloc(size);
}

static void searching_free(void *block, void *user)
{
    given_back++;
    given_back_with_secrets += has_secret((const char *)block, *(size_t *)user);
    free(block);
}

static void memory_given_back_holds_no_secret(void **state)
{
    static const char *const ends[] = {"released", "held", "owed", "unanswered", "refused"};
    static size_t size = sizeof(dlock_factory);
    (void)state;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        struct world *world = world_begin();
        dlock_config config = {.username = "me",
                               .password = secret,
                               .alloc = plain_alloc,
                               .free = searching_free,
                               .user = &size};
        dlock_factory *factory;
        dlock_lock lock = DLOCK_INIT;
        world->user = "me";
        world->password = i == 4 ? "other" : secret;
        given_back = 0;
        watch_begin(0, false);
        factory = world_open(world, &config);
        assert_true(has_secret((const char *)factory, size));
        if (i == 3) {
            world_fault(world, FAULT_DROP_REPLY, DLOCKI_ASK);
        }
        (void)dlock_acquire(factory, &lock, "k", NULL);
        if (i == 2) {
            world_fault(world, FAULT_DROP_REQUEST, DLOCKI_GIVE_BACK)->times = 0;
        }
        if (i == 0 || i == 2) {
            (void)dlock_release(&lock);
        }
        dlock_close(factory);
        (void)watch_end();
        assert_int_equal(given_back, 1);
        assert_int_equal(given_back_with_secrets, 0);
        assert_int_equal(watch.spilled, 0);
        if (i != 2) { /* the handle of a release that is owed may be called again until close */
            assert_false(has_secret((const char *)&lock, sizeof lock));
        }
    }
}

/* What a server quotes passes through hiredis's buffer: that is wiped, too. */
static void a_quoted_secret_is_wiped_with_the_buffer(void **state)
{
    static const dlock_config config = {.password = secret};
    struct world *world = world_begin();
    dlock_factory *factory;
    dlock_lock lock = DLOCK_INIT;
    (void)state;
    watch_begin(0, false);
    factory = world_open(world, &config);
    world_answer(world, DLOCKI_AUTH,
                 "-ERR unknown command 'AUTH', with args beginning with: 'hush-hush'\r\n")
        ->times = 0;
    assert_no(dlock_acquire(factory, &lock, "k", NULL), &lock, DLOCK_REFUSED);
    assert_null(strstr(dlock_why(&lock)->text, secret));
    world_close(world, factory);
    (void)watch_end();
    assert_int_equal(watch.spilled, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_nth_kernel_call_fails),
        cmocka_unit_test(the_nth_allocation_fails),
        cmocka_unit_test(out_of_memory_is_called_so),
        cmocka_unit_test(without_randomness_there_is_no_owner),
        cmocka_unit_test(nothing_is_allocated_once_the_connections_stand),
        cmocka_unit_test(an_hour_of_trying_and_many_reconnects_do_not_grow),
        cmocka_unit_test(whatever_a_server_sends_memory_is_bounded),
        cmocka_unit_test(memory_given_back_holds_no_secret),
        cmocka_unit_test(a_quoted_secret_is_wiped_with_the_buffer),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
