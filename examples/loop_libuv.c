/* loop_libuv - many locks wait at once, in one thread, in a loop of libuv's
 *
 * All want the same key, so the server keeps them in line, and each release hands the lock to the
 * next. However many there are, they share the factory's two connections, and none of them blocks.
 * libuv watches one descriptor for all of them, with a uv_poll_t; whenever it is readable, the
 * library has something to do.
 *
 *     cc -D_POSIX_C_SOURCE=200809L -I. examples/loop_libuv.c -lhiredis -lpthread -luv
 */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "loop_shared.h"

#include <uv.h>

enum { HOLD_MS = 1 };

struct waiter {
    dlock_lock lock;          /* does not move while it is pending or held */
    uv_timer_t hold;          /* when it goes off, the lock was held for long enough */
    struct crowd *crowd;
};

struct crowd {
    const struct setting *setting;
    dlock_factory *factory;
    struct waiter *waiters;   /* in the order of arrival */
    struct tally tally;
    int ended_by;             /* a signal, or an error of libuv's, which is below 0 */
    uv_loop_t loop;
    uv_poll_t watch;
    uv_signal_t signals[2];
};

static void on_released(dlock_lock *lock, bool answer, void *user)
{
    struct crowd *crowd = ((struct waiter *)user)->crowd;
    tally_ended(&crowd->tally, crowd->setting, lock, answer);
}

/* A start that answers false has said all: its callback never runs. */
static void on_held_for_long_enough(uv_timer_t *timer)
{
    struct waiter *waiter = timer->data;
    if (!dlock_release_start(&waiter->lock, on_released, waiter)) {
        on_released(&waiter->lock, false, waiter);
    }
}

/* It is ours: for HOLD_MS, while the loop goes on with other things. */
static void on_acquired(dlock_lock *lock, bool answer, void *user)
{
    struct waiter *waiter = user;
    struct crowd *crowd = waiter->crowd;
    if (answer) {
        tally_acquired(&crowd->tally, (size_t)(waiter - crowd->waiters));
        uv_timer_start(&waiter->hold, on_held_for_long_enough, HOLD_MS, 0);
    } else {
        tally_ended(&crowd->tally, crowd->setting, lock, false);
    }
}

/* Everybody lines up. */
static void arrive(struct crowd *crowd)
{
    dlock_options options = {.wait_ms = DLOCK_FOREVER};
    for (size_t i = 0; i < crowd->setting->locks; i++) {
        struct waiter *waiter = &crowd->waiters[i];
        waiter->crowd = crowd;
        uv_timer_init(&crowd->loop, &waiter->hold);
        waiter->hold.data = waiter;
        if (!dlock_acquire_start(crowd->factory, &waiter->lock, crowd->setting->key, &options,
                                 on_acquired, waiter)) {
            on_acquired(&waiter->lock, false, waiter);
        }
    }
}

static void on_readable(uv_poll_t *watch, int error, int events)
{
    struct crowd *crowd = watch->data;
    (void)events;
    if (error != 0) {
        crowd->ended_by = error;
    } else {
        dlock_process(crowd->factory);
    }
}

static void on_signal(uv_signal_t *watch, int signal_number)
{
    struct crowd *crowd = watch->data;
    crowd->ended_by = signal_number;
}

/* Puts the library and the signals that end us into the loop; an error of libuv's, or 0. */
static int watch(struct crowd *crowd)
{
    static const int numbers[] = {SIGINT, SIGTERM};
    int error = uv_poll_init(&crowd->loop, &crowd->watch, dlock_fd(crowd->factory));
    if (error == 0) {
        crowd->watch.data = crowd;
        error = uv_poll_start(&crowd->watch, UV_READABLE, on_readable);
    }
    for (int i = 0; i < 2 && error == 0; i++) {
        error = uv_signal_init(&crowd->loop, &crowd->signals[i]);
        if (error == 0) {
            crowd->signals[i].data = crowd;
            error = uv_signal_start(&crowd->signals[i], on_signal, numbers[i]);
        }
    }
    return error;
}

static void close_handle(uv_handle_t *handle, void *unused)
{
    (void)unused;
    uv_close(handle, NULL);
}

/* Until everybody had the lock, or something else ends it. The exit status. */
static int loop(struct crowd *crowd)
{
    crowd->ended_by = watch(crowd);
    if (crowd->ended_by == 0) {
        arrive(crowd);
        sigprocmask(SIG_SETMASK, &crowd->setting->unblocked, NULL);
    }
    while (crowd->ended_by == 0 && crowd->tally.ended < crowd->setting->locks) {
        uv_run(&crowd->loop, UV_RUN_ONCE);
    }
    sigprocmask(SIG_BLOCK, &crowd->setting->ends, NULL);
    uv_walk(&crowd->loop, close_handle, NULL);
    uv_run(&crowd->loop, UV_RUN_DEFAULT);   /* until all of them are closed */
    uv_loop_close(&crowd->loop);
    if (crowd->ended_by < 0) {
        complain(crowd->setting, uv_strerror(crowd->ended_by));
        return COULD_NOT_RUN;
    }
    int status = tally_report(&crowd->tally, crowd->setting, crowd->factory);
    return crowd->ended_by > 0 ? SIGNALLED + crowd->ended_by : status;
}

static int run(const struct setting *setting)
{
    int status = COULD_NOT_RUN;
    struct crowd crowd = {.setting = setting};
    /* An answer that comes late is no reason to connect anew, and perhaps to lose a place. */
    dlock_config config = {.command_timeout_ms = 5000};
    dlock_error error;
    dlock_info info;
    crowd.factory = dlock_open(setting->url, &config, &error);
    crowd.waiters = calloc(setting->locks, sizeof *crowd.waiters);   /* zero is DLOCK_INIT */
    /* To wait for ever is also to wait for a server that is down. So ask first: is there one? */
    if (crowd.factory == NULL ||
        (!dlock_inspect(crowd.factory, setting->key, 0, &info, &error) && error.code != DLOCK_OK)) {
        complain(setting, error.text);
        status = error.code == DLOCK_ARGUMENT ? USAGE : COULD_NOT_RUN;
    } else if (crowd.waiters == NULL || uv_loop_init(&crowd.loop) != 0) {
        complain(setting, "no memory or no descriptor is left");
    } else {
        status = loop(&crowd);
    }
    /* Those who still wait are told CANCELLED by this, and what is held is given back, so the
     * handles must still be there. The descriptor ends here, too: libuv let go of it before. */
    dlock_close(crowd.factory);
    free(crowd.waiters);
    return status;
}

int main(int argc, char **argv)
{
    (void)argc;
    return in_setting("loop_libuv", argv, run);
}
