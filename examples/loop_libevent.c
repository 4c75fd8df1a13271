/* loop_libevent - many locks wait at once, in one thread, in a loop of libevent's
 *
 * All want the same key, so the server keeps them in line, and each release hands the lock to the
 * next. However many there are, they share the factory's two connections, and none of them blocks.
 * libevent watches one descriptor for all of them; whenever it is readable, the library has
 * something to do.
 *
 *     cc -D_POSIX_C_SOURCE=200809L -I. examples/loop_libevent.c -lhiredis -lpthread -levent
 */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "loop_shared.h"

#include <event2/event.h>

enum { HOLD_US = 1000 };

struct waiter {
    dlock_lock lock;          /* does not move while it is pending or held */
    struct crowd *crowd;
};

struct crowd {
    const struct setting *setting;
    dlock_factory *factory;
    struct event_base *base;
    struct waiter *waiters;   /* in the order of arrival */
    struct tally tally;
    int ended_by;             /* a signal */
};

static void on_released(dlock_lock *lock, bool answer, void *user)
{
    struct crowd *crowd = ((struct waiter *)user)->crowd;
    tally_ended(&crowd->tally, crowd->setting, lock, answer);
}

/* A start that answers false has said all: its callback never runs. */
static void on_held_for_long_enough(evutil_socket_t none, short events, void *user)
{
    struct waiter *waiter = user;
    (void)none;
    (void)events;
    if (!dlock_release_start(&waiter->lock, on_released, waiter)) {
        on_released(&waiter->lock, false, waiter);
    }
}

/* It is ours: for a millisecond, while the loop goes on with other things. */
static void on_acquired(dlock_lock *lock, bool answer, void *user)
{
    static const struct timeval hold = {0, HOLD_US};
    struct waiter *waiter = user;
    struct crowd *crowd = waiter->crowd;
    if (!answer) {
        tally_ended(&crowd->tally, crowd->setting, lock, false);
        return;
    }
    tally_acquired(&crowd->tally, (size_t)(waiter - crowd->waiters));
    if (event_base_once(crowd->base, -1, EV_TIMEOUT, on_held_for_long_enough, waiter, &hold) != 0) {
        on_held_for_long_enough(-1, 0, waiter);   /* no memory for a timer: give it back at once */
    }
}

/* Everybody lines up. */
static void arrive(struct crowd *crowd)
{
    dlock_options options = {.wait_ms = DLOCK_FOREVER};
    for (size_t i = 0; i < crowd->setting->locks; i++) {
        struct waiter *waiter = &crowd->waiters[i];
        waiter->crowd = crowd;
        if (!dlock_acquire_start(crowd->factory, &waiter->lock, crowd->setting->key, &options,
                                 on_acquired, waiter)) {
            on_acquired(&waiter->lock, false, waiter);
        }
    }
}

static void on_readable(evutil_socket_t fd, short events, void *user)
{
    struct crowd *crowd = user;
    (void)fd;
    (void)events;
    dlock_process(crowd->factory);
}

static void on_signal(evutil_socket_t signal_number, short events, void *user)
{
    struct crowd *crowd = user;
    (void)events;
    crowd->ended_by = (int)signal_number;
}

/* Until everybody had the lock, or a signal comes. False: libevent refuses. */
static bool loop(struct crowd *crowd)
{
    struct event *events[] = {
        event_new(crowd->base, dlock_fd(crowd->factory), EV_READ | EV_PERSIST, on_readable, crowd),
        evsignal_new(crowd->base, SIGINT, on_signal, crowd),
        evsignal_new(crowd->base, SIGTERM, on_signal, crowd),
    };
    bool good = dlock_fd(crowd->factory) >= 0;
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++) {
        good = good && events[i] != NULL && event_add(events[i], NULL) == 0;
    }
    if (good) {
        arrive(crowd);
        sigprocmask(SIG_SETMASK, &crowd->setting->unblocked, NULL);
    }
    while (good && crowd->ended_by == 0 && crowd->tally.ended < crowd->setting->locks) {
        good = event_base_loop(crowd->base, EVLOOP_ONCE) == 0;
    }
    sigprocmask(SIG_BLOCK, &crowd->setting->ends, NULL);
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++) {
        if (events[i] != NULL) {
            event_free(events[i]);
        }
    }
    return good;
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
    crowd.base = event_base_new();
    crowd.waiters = calloc(setting->locks, sizeof *crowd.waiters);   /* zero is DLOCK_INIT */
    /* To wait for ever is also to wait for a server that is down. So ask first: is there one? */
    if (crowd.factory == NULL ||
        (!dlock_inspect(crowd.factory, setting->key, 0, &info, &error) && error.code != DLOCK_OK)) {
        complain(setting, error.text);
        status = error.code == DLOCK_ARGUMENT ? USAGE : COULD_NOT_RUN;
    } else if (crowd.base == NULL || crowd.waiters == NULL || !loop(&crowd)) {
        complain(setting, "no memory or no descriptor is left");
    } else {
        status = tally_report(&crowd.tally, setting, crowd.factory);
        status = crowd.ended_by != 0 ? SIGNALLED + crowd.ended_by : status;
    }
    /* Those who still wait are told CANCELLED by this, and what is held is given back, so the
     * handles must still be there. The descriptor ends here, too: libevent let go of it before. */
    dlock_close(crowd.factory);
    free(crowd.waiters);
    if (crowd.base != NULL) {
        event_base_free(crowd.base);
    }
    return status;
}

int main(int argc, char **argv)
{
    (void)argc;
    return in_setting("loop_libevent", argv, run);
}
