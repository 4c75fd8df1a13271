/* loop_poll - many locks wait at once, in one thread, in a loop around poll(2)
 *
 * All want the same key, so the server keeps them in line, and each release hands the lock to the
 * next. However many there are, they share the factory's two connections, and none of them blocks:
 * the loop sleeps in poll(2) until the library has something to do (its descriptor is readable), a
 * lock was held for long enough, or somebody presses Ctrl-C.
 *
 *     cc -std=c99 -D_POSIX_C_SOURCE=200809L -I. examples/loop_poll.c -lhiredis -lpthread
 */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "loop_shared.h"

#include <poll.h>
#include <stdint.h>
#include <sys/signalfd.h>

enum { HOLD_MS = 1 };

struct waiter {
    dlock_lock lock;          /* does not move while it is pending or held */
    struct crowd *crowd;
    int64_t give_back_at;
    struct waiter *next;      /* who got the lock after this one */
};

struct crowd {
    const struct setting *setting;
    struct waiter *waiters;   /* in the order of arrival */
    struct waiter *holder;    /* whose time is up first; no second one unless a lease ran out */
    struct waiter *newest;
    struct tally tally;
};

static int64_t now_ms(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void on_released(dlock_lock *lock, bool answer, void *user)
{
    struct crowd *crowd = ((struct waiter *)user)->crowd;
    tally_ended(&crowd->tally, crowd->setting, lock, answer);
}

/* It is ours: for HOLD_MS, while the loop goes on with other things. */
static void on_acquired(dlock_lock *lock, bool answer, void *user)
{
    struct waiter *waiter = user;
    struct crowd *crowd = waiter->crowd;
    if (!answer) {
        tally_ended(&crowd->tally, crowd->setting, lock, false);
        return;
    }
    tally_acquired(&crowd->tally, (size_t)(waiter - crowd->waiters));
    waiter->give_back_at = now_ms() + HOLD_MS;
    if (crowd->holder == NULL) {
        crowd->holder = waiter;
    } else {
        crowd->newest->next = waiter;
    }
    crowd->newest = waiter;
}

/* Gives back what was held for long enough. For how long poll(2) may sleep then; -1: no limit. */
static int give_back(struct crowd *crowd)
{
    for (struct waiter *waiter; (waiter = crowd->holder) != NULL; crowd->holder = waiter->next) {
        int64_t left = waiter->give_back_at - now_ms();
        if (left > 0) {
            return (int)left;
        }
        if (!dlock_release_start(&waiter->lock, on_released, waiter)) {
            on_released(&waiter->lock, false, waiter);
        }
    }
    return -1;
}

/* Everybody lines up. A start that answers false has said all: its callback never runs. */
static void arrive(struct crowd *crowd, dlock_factory *factory)
{
    dlock_options options = {.wait_ms = DLOCK_FOREVER};
    for (size_t i = 0; i < crowd->setting->locks; i++) {
        struct waiter *waiter = &crowd->waiters[i];
        waiter->crowd = crowd;
        if (!dlock_acquire_start(factory, &waiter->lock, crowd->setting->key, &options, on_acquired,
                                 waiter)) {
            on_acquired(&waiter->lock, false, waiter);
        }
    }
}

/* Until everybody had the lock: 0. Or until a signal comes: its number; -1: poll(2) fails. */
static int loop(struct crowd *crowd, dlock_factory *factory, int signals)
{
    struct pollfd fds[] = {{dlock_fd(factory), POLLIN, 0}, {signals, POLLIN, 0}};
    while (crowd->tally.ended < crowd->setting->locks) {
        int ready = poll(fds, 2, give_back(crowd));
        struct signalfd_siginfo info;
        if (ready < 0 && errno != EINTR) {
            complain(crowd->setting, strerror(errno));
            return -1;
        }
        if (ready > 0 && fds[1].revents != 0 && read(signals, &info, sizeof info) > 0) {
            return (int)info.ssi_signo;
        }
        if (ready > 0 && fds[0].revents != 0) {
            dlock_process(factory);
        }
    }
    return 0;
}

static int run(const struct setting *setting)
{
    int status = COULD_NOT_RUN;
    struct crowd crowd = {.setting = setting};
    /* An answer that comes late is no reason to connect anew, and perhaps to lose a place. */
    dlock_config config = {.command_timeout_ms = 5000};
    dlock_error error;
    dlock_info info;
    dlock_factory *factory = dlock_open(setting->url, &config, &error);
    int signals = signalfd(-1, &setting->ends, SFD_CLOEXEC);
    crowd.waiters = calloc(setting->locks, sizeof *crowd.waiters);   /* zero is DLOCK_INIT */
    /* To wait for ever is also to wait for a server that is down. So ask first: is there one? */
    if (factory == NULL ||
        (!dlock_inspect(factory, setting->key, 0, &info, &error) && error.code != DLOCK_OK)) {
        complain(setting, error.text);
        status = error.code == DLOCK_ARGUMENT ? USAGE : COULD_NOT_RUN;
    } else if (crowd.waiters == NULL || signals < 0 || dlock_fd(factory) < 0) {
        complain(setting, "no memory or no descriptor is left");
    } else {
        arrive(&crowd, factory);
        int ended_by = loop(&crowd, factory, signals);
        status = tally_report(&crowd.tally, setting, factory);
        if (ended_by != 0) {
            status = ended_by > 0 ? SIGNALLED + ended_by : COULD_NOT_RUN;
        }
    }
    /* Those who still wait are told CANCELLED by this, and what is held is given back, so the
     * handles must still be there. */
    dlock_close(factory);
    free(crowd.waiters);
    if (signals >= 0) {
        close(signals);
    }
    return status;
}

int main(int argc, char **argv)
{
    (void)argc;
    return in_setting("loop_poll", argv, run);
}
