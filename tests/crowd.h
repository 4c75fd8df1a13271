/* Several programs in the scripted world, each an event loop of its own with one factory: the world
 * looks at what dlock_fd() would be readable for, and calls dlock_process() then and only then, so
 * that a timer that is not set, or an answer that nobody is woken for, is a call that never ends.
 *
 * After every turn each lock that a program believes in is held against the server's truth: it is
 * the holder there, and the lease there lasts at least as long. Two holders cannot both be.
 *
 * A "ghost" holds a key as a program of another machine would, and gives it back by the library's
 * own script, without a connection and without a word to anybody in between. */
#ifndef CROWD_H
#define CROWD_H

#include "tests/scripted.h"

enum { CROWD_FACTORIES = 40, CROWD_CALLS = 320, CROWD_TURNS = 20000 };

#define GHOST "dl1-00000000000000000000000000000000"

/* One program's lock, and what it was told about it. */
struct call {
    dlock_lock lock;
    dlock_factory *factory;
    int told;
    bool answer;
    int64_t told_at;
    int order;     /* of all that were told, counted from 1 */
    uint64_t fence; /* when it was last acquired */
    int lost;
    int64_t lost_at;
    void (*on_done)(struct call *call);
    void (*on_lost)(struct call *call);
};

struct crowd {
    struct world *world;
    int factory_count;
    int call_count;
    int told;
    bool meddled; /* somebody took a lock away: nobody can know, and nothing is compared */
    dlock_factory *factories[CROWD_FACTORIES];
    int fds[CROWD_FACTORIES];
    bool stopped[CROWD_FACTORIES]; /* its process is */
    struct call calls[CROWD_CALLS];
};

static struct crowd the_crowd;

static inline dlock_factory *crowd_join(struct crowd *crowd, const dlocki_kernel *kernel,
                                        const dlock_config *config)
{
    int i = crowd->factory_count++;
    dlock_error error;
    assert_true(i < CROWD_FACTORIES);
    crowd->factories[i] = dlocki_open_in(kernel, crowd->world, crowd->world->url, config, &error);
    assert_non_null(crowd->factories[i]);
    crowd->fds[i] = dlock_fd(crowd->factories[i]);
    crowd->stopped[i] = false;
    return crowd->factories[i];
}

static inline struct crowd *crowd_begin(int factories, int64_t latency_ms)
{
    struct crowd *crowd = &the_crowd;
    memset(crowd, 0, sizeof *crowd);
    crowd->world = world_begin();
    crowd->world->latency_ms = latency_ms;
    crowd->world->woken = true;
    for (int i = 0; i < factories; i++) {
        crowd_join(crowd, &fake_kernel, NULL);
    }
    return crowd;
}

static inline struct call *crowd_call(struct crowd *crowd, int factory)
{
    struct call *call = &crowd->calls[crowd->call_count++];
    assert_true(crowd->call_count <= CROWD_CALLS);
    call->factory = crowd->factories[factory];
    return call;
}

static inline void crowd_done(dlock_lock *lock, bool answer, void *user)
{
    struct call *call = (struct call *)user;
    assert_ptr_equal(lock, &call->lock);
    call->told++;
    call->answer = answer;
    call->told_at = the_world.now;
    call->order = ++the_crowd.told;
    call->fence = answer && dlock_is_acquired(lock) ? dlock_fence(lock) : call->fence;
    if (call->on_done != NULL) {
        call->on_done(call);
    }
}

static inline void crowd_lost(dlock_lock *lock, void *user)
{
    struct call *call = (struct call *)user;
    assert_ptr_equal(lock, &call->lock);
    call->lost++;
    call->lost_at = the_world.now;
    if (call->on_lost != NULL) {
        call->on_lost(call);
    }
}

/* Starts an acquire; the options' on_lost is ours. */
static inline void crowd_start(struct call *call, const char *key, const dlock_options *options)
{
    dlock_options ours = *options;
    ours.on_lost = crowd_lost;
    ours.user = call;
    call->told = 0;
    assert_true(dlock_acquire_start(call->factory, &call->lock, key, &ours, crowd_done, call));
}

static inline struct call *crowd_acquire(struct crowd *crowd, int factory, const char *key,
                                         const dlock_options *options)
{
    struct call *call = crowd_call(crowd, factory);
    crowd_start(call, key, options);
    return call;
}

static inline void crowd_release(struct call *call)
{
    call->told = 0;
    assert_true(dlock_release_start(&call->lock, crowd_done, call));
}

/* on_done: whoever gets a lock gives it back at once, without waiting for the reply. */
static inline void crowd_pass_on(struct call *call)
{
    if (call->answer && dlock_is_acquired(&call->lock)) {
        assert_true(dlock_release_start(&call->lock, NULL, NULL));
    }
}

static inline void crowd_check(struct crowd *crowd)
{
    for (int i = 0; i < crowd->call_count && !crowd->meddled; i++) {
        const dlock_lock *lock = &crowd->calls[i].lock;
        if (dlock_is_acquired(lock) && !dlock_is_degraded(lock)) {
            char key[DLOCK_KEY_MAX + 1] = "";
            memcpy(key, lock->_key, lock->_key_length);
            assert_string_equal(world_holder(crowd->world, key), dlock_owner(lock));
            assert_true(dlock_remaining_ms(lock) <= world_lease(crowd->world, key));
        }
    }
}

/* Everybody who is to be woken is, until nobody has anything to do now. */
static inline void crowd_turn(struct crowd *crowd)
{
    bool again = true;
    int turns = 0;
    while (again) {
        again = false;
        for (int i = 0; i < crowd->factory_count; i++) {
            if (crowd->factories[i] != NULL && !crowd->stopped[i] &&
                world_fd_ready(crowd->world, crowd->fds[i])) {
                dlock_process(crowd->factories[i]);
                again = true;
                turns++;
                assert_true(turns < CROWD_TURNS);
            }
        }
    }
    crowd_check(crowd);
}

static inline void crowd_run(struct crowd *crowd, int64_t span)
{
    struct world *world = crowd->world;
    int64_t end = world->now + span;
    crowd_turn(crowd);
    while (world->now < end) {
        world_sleep(world, dlocki_least(end, world_next(world)) - world->now);
        crowd_turn(crowd);
    }
}

/* Until so many calls in all have been told. */
static inline void crowd_until(struct crowd *crowd, int told)
{
    crowd_turn(crowd);
    while (crowd->told < told) {
        int64_t next = world_next(crowd->world);
        if (next == DLOCKI_NEVER) {
            fail_msg("%d calls of %d are told, and nothing will ever happen", crowd->told, told);
        }
        world_sleep(crowd->world, next - crowd->world->now);
        crowd_turn(crowd);
    }
}

static inline void crowd_finish(struct crowd *crowd, const struct call *call)
{
    crowd_turn(crowd);
    while (call->told == 0) {
        crowd_until(crowd, crowd->told);
        if (call->told == 0) {
            int64_t next = world_next(crowd->world);
            assert_true(next < DLOCKI_NEVER);
            world_sleep(crowd->world, next - crowd->world->now);
            crowd_turn(crowd);
        }
    }
}

/* It ends now, with the lock. */
static inline struct call *crowd_take(struct crowd *crowd, int factory, const char *key,
                                      const dlock_options *options)
{
    struct call *call = crowd_acquire(crowd, factory, key, options);
    crowd_finish(crowd, call);
    assert_yes(call->answer, &call->lock);
    return call;
}

/* All close, on a server that is well again. What is left then: nothing. */
static inline void crowd_close(struct crowd *crowd)
{
    struct world *world = crowd->world;
    world->fault_count = 0;
    for (int i = 0; i < crowd->factory_count - 1; i++) {
        if (crowd->factories[i] != NULL) {
            int64_t began = world->now;
            int64_t bound = crowd->factories[i]->command_timeout_ms;
            dlock_close(crowd->factories[i]);
            assert_true(world->now - began <= bound);
        }
    }
    world_close_clean(world, crowd->factories[crowd->factory_count - 1]);
    assert_int_equal(world_inbox_count(world), 0);
    for (int i = 0; i < crowd->call_count; i++) {
        assert_false(dlock_is_pending(&crowd->calls[i].lock));
        assert_false(dlock_is_acquired(&crowd->calls[i].lock));
    }
}

/* ------------------------------------------------------------------------------------- ghosts */

static inline void ghost_hold(struct world *world, const char *key, int64_t expiry_ms)
{
    model_set(world, world->database, key, strlen(key), GHOST, expiry_ms);
}

/* A script runs on the server with the keys of a lock and up to two arguments. */
static inline void ghost_run(struct world *world, const char *script, const char *key,
                             const char *first, const char *second)
{
    static struct model_client nobody;
    struct model_reply reply = {NULL, 0, 0};
    char queue[DLOCK_KEY_MAX + 32];
    char fence[DLOCK_KEY_MAX + 32];
    const char *words[8] = {"EVAL", script, "3", key, queue, fence, first, second};
    size_t lengths[8];
    (void)snprintf(queue, sizeof queue, "{%s}:queue", key);
    (void)snprintf(fence, sizeof fence, "{%s}:fence", key);
    for (int i = 0; i < 8; i++) {
        lengths[i] = strlen(words[i]);
    }
    model_execute(world->model, &nobody, 8, words, lengths, server_now_us(world), &reply);
    free(reply.bytes);
}

static inline void ghost_release_key(struct world *world, const char *key)
{
    ghost_run(world, DLOCKI_LUA_RELEASE, key, GHOST, "");
}

/* world_at: the ghost gives "k" back. */
static inline void ghost_release(struct world *world)
{
    ghost_release_key(world, "k");
}

/* A place in line, of a program that is not there any more, as the n-th such. */
static inline void ghost_line_up(struct world *world, const char *key, int n, double score)
{
    char ticket[TICKET_LENGTH];
    char text[32];
    char queue[DLOCK_KEY_MAX + 32];
    static struct model_client nobody;
    struct model_reply reply = {NULL, 0, 0};
    const char *words[4] = {"ZADD", queue, text, ticket};
    size_t lengths[4];
    (void)snprintf(queue, sizeof queue, "{%s}:queue", key);
    (void)snprintf(ticket, sizeof ticket, "dl1-%016x%016x 10000 g", 0xdead, n);
    (void)snprintf(text, sizeof text, "%.0f", score);
    for (int i = 0; i < 4; i++) {
        lengths[i] = strlen(words[i]);
    }
    model_execute(world->model, &nobody, 4, words, lengths, server_now_us(world), &reply);
    free(reply.bytes);
}

#endif /* CROWD_H */
