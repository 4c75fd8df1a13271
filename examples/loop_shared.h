/* What the loop examples share, which is not what they show: arguments, and the count of what
 * became of the locks. */
#ifndef LOOP_SHARED_H
#define LOOP_SHARED_H

#include "own_server.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FINE = 0, BROKEN = 1, COULD_NOT_RUN = 2, USAGE = 64, SIGNALLED = 128 };

enum { LOCKS_DEFAULT = 1000, LOCKS_MAX = 100000 };

struct setting {
    const char *program;
    const char *url;      /* NULL until a server of our own runs                            */
    const char *key;
    size_t locks;
    sigset_t ends;        /* the signals that end the program: blocked, so that none comes before
                             the loop looks for them                                        */
    sigset_t unblocked;   /* what was blocked before                                        */
};

static void complain(const struct setting *setting, const char *text)
{
    fprintf(stderr, "%s: %s\n", setting->program, text);
}

static void print_usage(const struct setting *setting)
{
    printf("usage: %s [--url URL] [--locks N] [--key NAME] [--help]\n"
           "\n"
           "N locks wait for one key at the same time, in one thread. Each is held for a moment\n"
           "and given back; the last line says how many were acquired, whether in the order in\n"
           "which they asked, and on how many connections.\n"
           "\n"
           "  --url URL    a server of yours: redis://[user:password@]host[:port][/db] or\n"
           "               unix:///path.sock (default: a private redis-server, stopped at the\n"
           "               end)\n"
           "  --locks N    how many, 1 to %d (default: %d)\n"
           "  --key NAME   the key that all of them want (default: %s)\n"
           "  --help       this text\n"
           "\n"
           "Exit status: 0 all were acquired, in order; 1 not so; 2 it could not run; 64 wrong\n"
           "arguments; 128 + n ended by signal n (Ctrl-C: 130).\n",
           setting->program, LOCKS_MAX, LOCKS_DEFAULT, setting->key);
}

/* Reads the arguments; does not come back from --help or from wrong ones. */
static void read_arguments(struct setting *setting, char **argv)
{
    for (int i = 1; argv[i] != NULL; i++) {
        const char *name = argv[i];
        const char *value = argv[i + 1];
        if (strcmp(name, "--help") == 0) {
            print_usage(setting);
            exit(FINE);
        }
        bool good = value != NULL;
        if (good && strcmp(name, "--url") == 0) {
            setting->url = value;
        } else if (good && strcmp(name, "--key") == 0) {
            setting->key = value;
        } else if (good && strcmp(name, "--locks") == 0) {
            char *end;
            long locks = strtol(value, &end, 10);
            good = end != value && *end == '\0' && locks >= 1 && locks <= LOCKS_MAX;
            setting->locks = good ? (size_t)locks : 0;
        } else {
            good = false;
        }
        if (!good) {
            fprintf(stderr, "%s: \"%s%s%s\" makes no sense; see %s --help\n", setting->program,
                    name, value != NULL ? " " : "", value != NULL ? value : "", setting->program);
            exit(USAGE);
        }
        i++;
    }
}

/* Runs the example; both give the exit status. */
static int in_setting(const char *program, char **argv, int (*example)(const struct setting *))
{
    struct setting setting;
    memset(&setting, 0, sizeof setting);
    setting.program = program;
    setting.key = program;
    setting.locks = LOCKS_DEFAULT;
    read_arguments(&setting, argv);
    sigemptyset(&setting.ends);
    sigaddset(&setting.ends, SIGINT);
    sigaddset(&setting.ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &setting.ends, &setting.unblocked);
    if (setting.url != NULL) {
        return example(&setting);
    }
    int status = COULD_NOT_RUN;
    struct own_server server = {0};
    if (own_server_start(&server, program)) {
        setting.url = server.url;
        status = example(&setting);
    } else {
        complain(&setting, server.why);
    }
    own_server_stop(&server);
    return status;
}

/* ------------------------------------------------------------------------------- the count */

struct tally {
    size_t acquired;
    size_t given_back;
    size_t ended;            /* given back, never acquired, or lost                              */
    size_t expected;         /* the number of the lock that is next if they come in order        */
    bool out_of_order;
};

/* The locks are numbered from 0, in the order in which they asked. */
static void tally_acquired(struct tally *tally, size_t number)
{
    tally->acquired++;
    tally->out_of_order = tally->out_of_order || number != tally->expected;
    tally->expected = number + 1;
}

/* Prints the first reason only, and not that dlock_close has cancelled the rest. */
static void tally_ended(struct tally *tally, const struct setting *setting, const dlock_lock *lock,
                        bool given_back)
{
    const dlock_error *why = dlock_why(lock);
    if (!given_back && why->code != DLOCK_CANCELLED && tally->ended == tally->given_back) {
        complain(setting, why->text);
    }
    tally->given_back += given_back;
    tally->ended++;
}

/* Prints the line; gives the exit status that follows from it. */
static int tally_report(const struct tally *tally, const struct setting *setting,
                        const dlock_factory *factory)
{
    dlock_stats stats;
    dlock_stats_get(factory, &stats);
    printf("%zu of %zu locks acquired, %sin order of arrival, on %llu connection%s\n",
           tally->acquired, setting->locks, tally->out_of_order ? "not " : "",
           (unsigned long long)stats.connects, stats.connects == 1 ? "" : "s");
    fflush(stdout);
    return tally->given_back == setting->locks && !tally->out_of_order ? FINE : BROKEN;
}

#endif /* LOOP_SHARED_H */
