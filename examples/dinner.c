/* dinner - several people, one table, one seat: dlock.h at work, and a judge who watches
 *
 * Every guest is a process of its own and opens its own factory. Whoever wants to eat takes the
 * lock, sits down, eats, gets up and gives the lock back. Beside the lock there is a witness that
 * knows nothing of it: memory that all processes share, in which everybody writes down when they
 * really sat. The picture and the verdict at the end are made from that alone.
 *
 * The lock itself is used in THE GUEST, in take_seat() and give_seat_back(): two short functions.
 * All the rest is table, waiters and judge.
 *
 *     cc -std=c99 -D_POSIX_C_SOURCE=200809L -I. examples/dinner.c -lhiredis -lpthread -o dinner
 */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* -------------------------------------------------------------------------------- settings */

enum { FINE = 0, BROKEN = 1, COULD_NOT_RUN = 2, USAGE = 64, SIGNALLED = 128 };

enum { PEOPLE_MAX = 20, PEOPLE_DEFAULT = 5, COURSES = 2 };

/* How long things take. Nothing waits for anything beyond these, so a dinner ends in less than
 * 30 s whatever happens: greeting, dinner, two times the grace, and the server's end. */
enum {
    CLOSING_MS = 8000,    /* nobody comes back, and nobody goes on waiting, after this */
    LEASE_MS = 3000,      /* longer than any meal; the seat of a guest who dies is free then */
    MEAL_MIN_MS = 330,
    MEAL_MAX_MS = 1000,
    MEALS_MS = 6000,      /* shared out among the guests */
    GAP_MAX_MS = 400,     /* between two arrivals */
    ARRIVALS_MS = 3500,
    GREETING_MS = 5000,   /* until the server must have answered */
    DINNER_MS = 11000,    /* until the guests must have gone by themselves */
    GRACE_MS = 3000,      /* for children that were asked to end, before they are killed */
    SERVER_END_MS = 2000,
    TICK_MS = 100
};

#define KEY_DEFAULT "dinner:seat"
#define SOCKET_NAME "table.sock"
#define LOG_NAME "server.log"

static const char *const names[PEOPLE_MAX] = {
    "Ada",   "Bertrand", "Carl", "Dorothy", "Emmy", "Felix",  "Grace", "Henri", "Irene",  "Joseph",
    "Katja", "Leonhard", "Mary", "Niels",   "Olga", "Pierre", "Rosa",  "Sofia", "Thales", "Ursula",
};

enum { TILL_CLOSING = -1 };

/* The guests take turns in these habits, so that every dinner has all of them. */
static const struct habit {
    int patience;   /* in hundredths of a meal; 0 = asks once; TILL_CLOSING */
    int appetite;   /* in hundredths of a meal */
    int away;       /* until coming back, in hundredths of a meal; 0 = does not come back */
} habits[] = {
    {TILL_CLOSING, 100, 130}, {0, 90, 500}, {TILL_CLOSING, 120, 0}, {70, 80, 220},
    {TILL_CLOSING, 110, 0},
};
enum { HABITS = sizeof habits / sizeof habits[0] };

static struct settings {
    int people;
    const char *url;    /* NULL until a server of our own runs */
    const char *key;
    bool own_server;
    bool no_lock;
} settings = {PEOPLE_DEFAULT, NULL, KEY_DEFAULT, true, false};

/* --------------------------------------------------------------------------------- witness */

/* One coming to the table. Instants are microseconds since the beginning; NEVER = it did not
 * happen. */
struct visit {
    int64_t arrived_us;
    int64_t sat_us;
    int64_t up_us;
    int64_t left_us;
    uint64_t fence;
    uint32_t found;     /* who sat there already, one bit a guest */
    int code;           /* why the seat was not got, or could not be given back */
};
enum { NEVER = -1 };

/* Shared by all processes. A guest writes its own visits only; the parent reads them when that
 * guest has ended. */
struct witness {
    int64_t start_us;
    uint32_t sitting;   /* atomic: one bit for each guest who sits right now */
    struct visit visits[PEOPLE_MAX][COURSES];
};
static struct witness *witness;

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t us = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    return witness->start_us == NEVER ? us : us - witness->start_us;
}

static void witness_begin(void)
{
    witness->start_us = NEVER;
    witness->start_us = now_us();
    witness->sitting = 0;
    for (int person = 0; person < PEOPLE_MAX; person++) {
        for (int course = 0; course < COURSES; course++) {
            witness->visits[person][course] =
                (struct visit){NEVER, NEVER, NEVER, NEVER, 0, 0, DLOCK_OK};
        }
    }
}

/* MAP_ANONYMOUS is hidden under _POSIX_C_SOURCE; this is the same. */
static bool witness_open(void)
{
    int zero = open("/dev/zero", O_RDWR);
    if (zero < 0) {
        return false;
    }
    void *memory = mmap(NULL, sizeof *witness, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
    close(zero);
    if (memory == MAP_FAILED) {
        return false;
    }
    witness = memory;
    witness_begin();
    return true;
}

/* The instants are taken outside of the bit: whoever meets the bit also overlaps in time. */
static void witness_sits(int self, struct visit *visit)
{
    visit->sat_us = now_us();
    visit->found = __atomic_fetch_or(&witness->sitting, UINT32_C(1) << self, __ATOMIC_SEQ_CST);
}

static void witness_gets_up(int self, struct visit *visit)
{
    __atomic_fetch_and(&witness->sitting, ~(UINT32_C(1) << self), __ATOMIC_SEQ_CST);
    visit->up_us = now_us();
}

/* ----------------------------------------------------------------------------------- voice */

static double seconds(int64_t us)
{
    return (double)us / 1e6;
}

/* One event, one line, one write: lines of several processes do not mix. */
__attribute__((format(printf, 3, 4))) static void say(int64_t at_us, int person, const char *format,
                                                      ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("%7.3f s  %s %s\n", seconds(at_us), names[person], text);
    fflush(stdout);
}

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "dinner: %s\n", text);
}

/* --------------------------------------------------------------------------------- signals */

static volatile sig_atomic_t stopped;    /* somebody wants us to end */
static dlock_lock seat = DLOCK_INIT;     /* of this process; here, so that the handler sees it */
static sigset_t watched;                 /* what the parent waits for */
static sigset_t unwatched;               /* what was blocked before, for the children */

static void on_signal(int signal_number)
{
    (void)signal_number;
    stopped = 1;
    dlock_cancel(&seat);
}

/* Children run with the handler; the parent keeps the signals blocked and takes them one by one
 * in next_signal(), so that none comes at a bad moment. */
static void watch_signals(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    sigemptyset(&watched);
    static const int ends[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        struct sigaction inherited;
        if (ends[i] == SIGHUP && sigaction(SIGHUP, NULL, &inherited) == 0 &&
            inherited.sa_handler == SIG_IGN) {
            continue;   /* nohup */
        }
        action.sa_handler = on_signal;
        sigaction(ends[i], &action, NULL);
        sigaddset(&watched, ends[i]);
    }
    action.sa_handler = SIG_DFL;
    sigaction(SIGCHLD, &action, NULL);
    sigaddset(&watched, SIGCHLD);
    action.sa_handler = SIG_IGN;   /* whoever reads our output may leave; we must still tidy up */
    sigaction(SIGPIPE, &action, NULL);
    sigprocmask(SIG_BLOCK, &watched, &unwatched);
}

/* The next signal within the time given; 0 = none. */
static int next_signal(int64_t wait_us)
{
    int64_t limit_us = wait_us < TICK_MS * 1000 ? wait_us : TICK_MS * 1000;
    struct timespec limit = {0, (long)(limit_us > 0 ? limit_us : 0) * 1000};
    int signal_number = sigtimedwait(&watched, NULL, &limit);
    return signal_number > 0 ? signal_number : 0;
}

static void sleep_ms(int64_t span_ms)
{
    int64_t until_us = now_us() + span_ms * 1000;
    for (int64_t left_us; !stopped && (left_us = until_us - now_us()) > 0;) {
        struct timespec left = {(time_t)(left_us / 1000000), (long)(left_us % 1000000) * 1000};
        nanosleep(&left, NULL);
    }
}

/* ------------------------------------------------------------------------------- THE GUEST */

static int64_t meal_ms(void)
{
    int64_t fair = MEALS_MS / settings.people;
    return fair < MEAL_MIN_MS ? MEAL_MIN_MS : fair > MEAL_MAX_MS ? MEAL_MAX_MS : fair;
}

static int64_t arrival_ms(int self)
{
    int64_t gap = ARRIVALS_MS / settings.people;
    return self * (gap < GAP_MAX_MS ? gap : GAP_MAX_MS);
}

/* What dlock_options.wait_ms gets: 0 = one attempt. */
static int64_t patience_ms(const struct habit *habit)
{
    if (habit->patience != TILL_CLOSING) {
        return habit->patience * meal_ms() / 100;
    }
    int64_t left = CLOSING_MS - now_us() / 1000;
    return left > 0 ? left : 0;
}

static void arrive(int self, int course, struct visit *visit, int64_t wait_ms)
{
    const char *verb = course == 0 ? "arrives" : "comes back";
    visit->arrived_us = now_us();
    if (settings.no_lock) {
        say(visit->arrived_us, self, "%s and asks nobody", verb);
    } else if (wait_ms == 0) {
        say(visit->arrived_us, self, "%s; does not wait: the seat now, or not at all", verb);
    } else if (habits[self % HABITS].patience != TILL_CLOSING) {
        say(visit->arrived_us, self, "%s; waits %.1f s at most", verb, seconds(wait_ms * 1000));
    } else {
        say(visit->arrived_us, self, "%s; waits as long as it takes", verb);
    }
}

static bool take_seat(dlock_factory *factory, int64_t wait_ms)
{
    if (settings.no_lock) {
        return true;
    }
    dlock_options options = {.expiry_ms = LEASE_MS, .wait_ms = wait_ms};
    return dlock_acquire(factory, &seat, settings.key, &options);
}

static void sit_and_eat(int self, struct visit *visit)
{
    visit->fence = dlock_fence(&seat);
    witness_sits(self, visit);
    int person = 0;
    while (person < settings.people && (visit->found >> person & 1) == 0) {
        person++;
    }
    if (person < settings.people) {
        say(visit->sat_us, self, "sits down on %s's lap!", names[person]);
    } else if (settings.no_lock) {
        say(visit->sat_us, self, "sits down");
    } else {
        say(visit->sat_us, self, "sits down, fence %" PRIu64, visit->fence);
    }
    sleep_ms(habits[self % HABITS].appetite * meal_ms() / 100);
    witness_gets_up(self, visit);
}

/* The line is written before the release, else the next one could sit down above it. */
static void give_seat_back(int self, struct visit *visit)
{
    say(visit->up_us, self, "gets up after %.2f s%s", seconds(visit->up_us - visit->sat_us),
        settings.no_lock ? "" : " and gives the seat back");
    if (!settings.no_lock && !dlock_release(&seat)) {
        visit->code = dlock_why(&seat)->code;
        say(now_us(), self, "could not give it back. %s", dlock_why(&seat)->text);
    }
}

static void visit_table(dlock_factory *factory, int self, int course)
{
    if (stopped) {
        return;
    }
    struct visit *visit = &witness->visits[self][course];
    int64_t wait_ms = patience_ms(&habits[self % HABITS]);
    arrive(self, course, visit, wait_ms);
    if (take_seat(factory, wait_ms)) {
        sit_and_eat(self, visit);
        give_seat_back(self, visit);
        visit->left_us = now_us();
    } else {
        visit->left_us = now_us();
        visit->code = dlock_why(&seat)->code;
        say(visit->left_us, self, "leaves without the seat. %s", dlock_why(&seat)->text);
    }
}

/* A guest's whole evening; the process ends with what this returns. */
static int guest(int self)
{
    dlock_factory *factory = NULL;
    if (!settings.no_lock) {
        dlock_error error;
        factory = dlock_open(settings.url, NULL, &error);
        if (factory == NULL) {
            complain("%s could not come. %s", names[self], error.text);
            return COULD_NOT_RUN;
        }
    }
    const struct habit *habit = &habits[self % HABITS];
    sleep_ms(arrival_ms(self) - now_us() / 1000);
    visit_table(factory, self, 0);
    int64_t away_ms = habit->away * meal_ms() / 100;
    if (away_ms > 0 && now_us() / 1000 + away_ms < CLOSING_MS) {
        sleep_ms(away_ms);
        visit_table(factory, self, 1);
    }
    dlock_close(factory);
    return FINE;
}

/* Somebody else has the seat, or we do not want it any more: nothing is wrong. */
static bool is_ordinary(int code)
{
    return code == DLOCK_OK || code == DLOCK_BUSY || code == DLOCK_TIMEOUT ||
           code == DLOCK_CANCELLED;
}

/* Tries the lock once before the guests come: one clear error instead of many, and the proof that
 * a server which was just started answers. Held by somebody is an answer, too. */
static int host(int self)
{
    (void)self;
    dlock_error error;
    dlock_factory *factory = dlock_open(settings.url, NULL, &error);
    if (factory == NULL) {
        complain("%s", error.text);
        return error.code == DLOCK_ARGUMENT ? USAGE : COULD_NOT_RUN;
    }
    int64_t wait_ms = settings.own_server ? GREETING_MS - TICK_MS : 0;
    dlock_options options = {.expiry_ms = LEASE_MS, .wait_ms = wait_ms};
    int status = FINE;
    if (dlock_acquire(factory, &seat, settings.key, &options)) {
        dlock_release(&seat);
    } else if (!stopped && !is_ordinary(dlock_why(&seat)->code)) {
        complain("%s", dlock_why(&seat)->text);
        status = COULD_NOT_RUN;
    }
    dlock_close(factory);
    return status;
}

/* -------------------------------------------------------------------- children of the parent */

/* The longest path of a unix socket. */
enum { SOCKET_PATH_MAX = sizeof((struct sockaddr_un *)NULL)->sun_path };

static struct house {
    pid_t self;
    pid_t server;                 /* 0 = none of ours runs */
    pid_t children[PEOPLE_MAX];   /* 0 = has ended */
    int statuses[PEOPLE_MAX];     /* as waitpid gives them */
    int running;
    int interrupted;              /* the signal that ends the dinner early */
    bool server_died;
    char directory[SOCKET_PATH_MAX];   /* "" = none of ours */
    char url[3 * SOCKET_PATH_MAX + sizeof "unix:///" SOCKET_NAME];
} house;

/* A child does not outlive the parent, whatever ends that. */
static void die_with_parent(int signal_number)
{
    prctl(PR_SET_PDEATHSIG, (unsigned long)signal_number, 0UL, 0UL, 0UL);
    if (getppid() != house.self) {
        _exit(COULD_NOT_RUN);
    }
}

/* Somebody was killed while sitting: nobody else will say when that sitting ended. */
static void carry_out(int person)
{
    for (int course = 0; course < COURSES; course++) {
        struct visit *visit = &witness->visits[person][course];
        if (visit->sat_us != NEVER && visit->up_us == NEVER) {
            witness_gets_up(person, visit);
            say(visit->up_us, person, "is carried out; the seat will be free when the lease ends");
        }
        if (visit->arrived_us != NEVER && visit->left_us == NEVER) {
            visit->left_us = now_us();
        }
    }
}

static void reap(void)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == house.server) {
            house.server = 0;
            house.server_died = true;
        }
        for (int i = 0; i < PEOPLE_MAX; i++) {
            if (pid == house.children[i]) {
                house.children[i] = 0;
                house.statuses[i] = status;
                house.running--;
                if (WIFSIGNALED(status)) {
                    carry_out(i);
                }
            }
        }
    }
}

static void signal_children(int signal_number)
{
    for (int i = 0; i < PEOPLE_MAX; i++) {
        if (house.children[i] > 0) {
            kill(house.children[i], signal_number);
        }
    }
}

/* Waits until all children have ended: by themselves, or because the time is over, the server has
 * died or a signal came. They are asked again and again, because a signal that finds no acquire
 * under way cancels none. */
static void wait_for_children(int64_t limit_ms)
{
    int64_t ask_us = now_us() + limit_ms * 1000;
    for (; house.running > 0; reap()) {
        int signal_number = next_signal(TICK_MS * 1000);
        if (signal_number != 0 && signal_number != SIGCHLD) {
            house.interrupted = signal_number;
        }
        int64_t now = now_us();
        if ((house.interrupted != 0 || house.server_died) && now < ask_us) {
            ask_us = now;
        }
        if (now >= ask_us) {
            signal_children(now < ask_us + GRACE_MS * 1000 ? SIGTERM : SIGKILL);
        }
    }
}

/* Runs `body` in `count` processes and waits for them. No factory is open here, or ever in this
 * process: one belongs to the process that opened it. */
static bool run_children(int count, int (*body)(int), int64_t limit_ms)
{
    fflush(stdout);
    bool all = true;
    for (int i = 0; i < count && all; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            die_with_parent(SIGTERM);
            sigprocmask(SIG_SETMASK, &unwatched, NULL);
            _exit(body(i));
        }
        if (pid > 0) {
            house.children[i] = pid;
            house.running++;
        } else {
            complain("no new process: %s", strerror(errno));
            all = false;
        }
    }
    wait_for_children(all ? limit_ms : 0);
    return all;
}

/* ------------------------------------------------------------------------ a server of our own */

/* In the child: becomes the server, or answers errno through the pipe. */
__attribute__((noreturn)) static void become_server(int answer_fd)
{
    int log = -1;
    int null = -1;
    /* a session of its own: Ctrl-C must not end it before the guests have given back the seat */
    if (setsid() >= 0 && chdir(house.directory) == 0 && (null = open("/dev/null", O_RDONLY)) >= 0 &&
        (log = open(LOG_NAME, O_WRONLY | O_CREAT | O_APPEND, 0600)) >= 0 &&
        dup2(null, STDIN_FILENO) >= 0 && dup2(log, STDOUT_FILENO) >= 0 &&
        dup2(log, STDERR_FILENO) >= 0) {
        static const char *const programs[] = {"redis-server", "valkey-server"};
        for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
            execlp(programs[i], programs[i], "--port", "0", "--unixsocket", SOCKET_NAME,
                   "--unixsocketperm", "700", "--save", "", "--appendonly", "no", "--dir", ".",
                   (char *)NULL);
        }
    }
    int reason = errno;
    ssize_t written = write(answer_fd, &reason, sizeof reason);
    _exit(written == (ssize_t)sizeof reason ? COULD_NOT_RUN : BROKEN);
}

static bool start_server(void)
{
    int answer[2];
    if (pipe(answer) != 0) {
        complain("no pipe: %s", strerror(errno));
        return false;
    }
    fcntl(answer[1], F_SETFD, FD_CLOEXEC);
    pid_t pid = fork();
    if (pid == 0) {
        close(answer[0]);
        die_with_parent(SIGKILL);
        sigprocmask(SIG_SETMASK, &unwatched, NULL);
        become_server(answer[1]);
    }
    close(answer[1]);
    int reason = errno;
    ssize_t got = pid > 0 ? read(answer[0], &reason, sizeof reason) : (ssize_t)sizeof reason;
    close(answer[0]);
    if (pid > 0 && got == 0) {
        house.server = pid;
        return true;
    }
    if (pid > 0) {
        waitpid(pid, NULL, 0);
    }
    if (reason == ENOENT) {
        complain("no redis-server on this machine's PATH; install it (Debian: apt install "
                 "redis-server), or name a server: dinner --url redis://HOST");
    } else {
        complain("redis-server does not start: %s", strerror(reason));
    }
    return false;
}

/* Everything but letters, digits and "/-._" percent-coded. */
static void url_of_socket(void)
{
    char *out = house.url + sprintf(house.url, "unix://");
    for (const char *in = house.directory; *in != '\0'; in++) {
        bool plain = (*in >= 'a' && *in <= 'z') || (*in >= 'A' && *in <= 'Z') ||
                     (*in >= '0' && *in <= '9') || strchr("/-._", *in) != NULL;
        out += sprintf(out, plain ? "%c" : "%%%02X", (unsigned char)*in);
    }
    sprintf(out, "/%s", SOCKET_NAME);
    settings.url = house.url;
}

/* An absolute path, as a unix:// URL wants it; "" stays where none
 * was made. */
static bool make_directory(void)
{
    const char *parent = getenv("TMPDIR");
    if (parent == NULL || parent[0] == '\0') {
        parent = "/tmp";
    }
    char here[PATH_MAX] = "";
    if (parent[0] != '/' && getcwd(here, sizeof here) == NULL) {
        complain("where are we? %s", strerror(errno));
        return false;
    }
    int length = snprintf(house.directory, sizeof house.directory, "%s%s%s/dinner-XXXXXX", here,
                          here[0] != '\0' ? "/" : "", parent);
    if ((size_t)length + sizeof "/" SOCKET_NAME > SOCKET_PATH_MAX) {
        complain("%s is too long for a unix socket; set TMPDIR to a shorter name", parent);
    } else if (mkdtemp(house.directory) == NULL) {
        complain("no temporary directory in %s: %s", parent, strerror(errno));
    } else {
        return true;
    }
    house.directory[0] = '\0';
    return false;
}

static bool open_house(void)
{
    if (!make_directory()) {
        return false;
    }
    url_of_socket();
    return start_server();
}

/* The last words of a server that ended by itself. */
static void show_log(void)
{
    char path[SOCKET_PATH_MAX + sizeof LOG_NAME];
    snprintf(path, sizeof path, "%s/" LOG_NAME, house.directory);
    FILE *log = fopen(path, "r");
    if (log == NULL) {
        return;
    }
    char line[1024];
    if (fseek(log, -(long)sizeof line, SEEK_END) != 0) {
        rewind(log);
    } else if (fgets(line, sizeof line, log) == NULL) {   /* the rest of a line */
        rewind(log);
    }
    while (fgets(line, sizeof line, log) != NULL) {
        fprintf(stderr, "    | %s", line);
    }
    fclose(log);
}

static void stop_server(void)
{
    int64_t until_us = now_us() + SERVER_END_MS * 1000;
    if (house.server > 0) {
        kill(house.server, SIGTERM);
    }
    while (house.server > 0 && now_us() < until_us) {
        int signal_number = next_signal(until_us - now_us());
        if (signal_number != 0 && signal_number != SIGCHLD) {
            house.interrupted = signal_number;
        }
        reap();
    }
    if (house.server > 0) {
        kill(house.server, SIGKILL);
        waitpid(house.server, NULL, 0);
        house.server = 0;
    }
}

/* Only files that we or our server made are in there, and no directories. */
static void close_house(void)
{
    stop_server();
    DIR *directory = house.directory[0] != '\0' ? opendir(house.directory) : NULL;
    if (directory == NULL) {
        return;
    }
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            unlinkat(dirfd(directory), entry->d_name, 0);
        }
    }
    closedir(directory);
    if (rmdir(house.directory) != 0) {
        complain("%s stays behind: %s", house.directory, strerror(errno));
    }
}

/* --------------------------------------------------------------------------------- picture */

enum cell { NOTHING, WAITS, EATS, ON_A_LAP, LEAVES, CELLS };

enum { WIDTH_DEFAULT = 80, WIDTH_MIN = 50, WIDTH_MAX = 160, NAME_WIDTH = 10, MARGIN = 2 };

static struct picture {
    bool utf8;
    bool colours;
    int width;          /* of the part that shows time, in cells */
    int64_t end_us;     /* of the last cell */
    char fences[24];    /* the digits with which all fences begin */
    int fence_digits;   /* that are left; 0 = there are no fences */
} picture;

/* The sittings, in the order in which people sat down. */
static struct sitting {
    int person;
    const struct visit *visit;
} sittings[PEOPLE_MAX * COURSES];
static int sitting_count;

static int by_instant(const void *one, const void *other)
{
    int64_t a = ((const struct sitting *)one)->visit->sat_us;
    int64_t b = ((const struct sitting *)other)->visit->sat_us;
    return (a > b) - (a < b);
}

static void collect_sittings(void)
{
    for (int person = 0; person < settings.people; person++) {
        for (int course = 0; course < COURSES; course++) {
            const struct visit *visit = &witness->visits[person][course];
            if (visit->sat_us != NEVER) {
                sittings[sitting_count++] = (struct sitting){person, visit};
            }
        }
    }
    qsort(sittings, (size_t)sitting_count, sizeof sittings[0], by_instant);
}

/* Fences are long, and all but the last digits of one evening's are the same. */
static void measure_fences(void)
{
    if (settings.no_lock || sitting_count == 0) {
        return;
    }
    int longest =
        snprintf(picture.fences, sizeof picture.fences, "%" PRIu64, sittings[0].visit->fence);
    size_t same = longest > 4 ? (size_t)longest - 4 : 0;
    for (int i = 1; i < sitting_count; i++) {
        char other[24];
        int length = snprintf(other, sizeof other, "%" PRIu64, sittings[i].visit->fence);
        longest = length > longest ? length : longest;
        while (same > 0 && strncmp(picture.fences, other, same) != 0) {
            same--;
        }
    }
    picture.fences[same] = '\0';
    picture.fence_digits = longest - (int)same;
}

static void measure_picture(void)
{
    struct winsize window;
    int width = WIDTH_DEFAULT;
    bool terminal = isatty(STDOUT_FILENO) == 1;
    if (terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) {
        width = window.ws_col;
    }
    width = width < WIDTH_MIN ? WIDTH_MIN : width > WIDTH_MAX ? WIDTH_MAX : width;
    const char *no_colour = getenv("NO_COLOR");
    const char *kind = getenv("TERM");
    picture.colours = terminal && (no_colour == NULL || no_colour[0] == '\0') && kind != NULL &&
                      strcmp(kind, "dumb") != 0;
    setlocale(LC_CTYPE, "");
    picture.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    measure_fences();
    int fences = picture.fence_digits > 0 ? COURSES * (picture.fence_digits + 1) + 1 : 0;
    picture.width = width - MARGIN - NAME_WIDTH - fences;
    picture.end_us = 1;
    for (int person = 0; person < settings.people; person++) {
        for (int course = 0; course < COURSES; course++) {
            int64_t left_us = witness->visits[person][course].left_us;
            picture.end_us = left_us > picture.end_us ? left_us : picture.end_us;
        }
    }
}

static int cell_of(int64_t us)
{
    int64_t cell = us * (picture.width - 1) / picture.end_us;
    return cell < 0 ? 0 : cell > picture.width - 1 ? picture.width - 1 : (int)cell;
}

/* Half open, so that one who sits down when another gets up does not share a cell with them; but
 * at least one cell. */
static void fill(enum cell *row, int64_t from_us, int64_t to_us, enum cell cell)
{
    int from = cell_of(from_us);
    int to = cell_of(to_us);
    do {
        row[from] = cell;
    } while (++from < to);
}

static void fill_row(enum cell *row, int person)
{
    for (int i = 0; i < picture.width; i++) {
        row[i] = NOTHING;
    }
    for (int course = 0; course < COURSES; course++) {
        const struct visit *visit = &witness->visits[person][course];
        if (visit->arrived_us == NEVER) {
            continue;
        }
        bool sat = visit->sat_us != NEVER;
        int64_t waited_us = sat ? visit->sat_us : visit->left_us;
        if (cell_of(visit->arrived_us) < cell_of(waited_us)) {
            fill(row, visit->arrived_us, waited_us, WAITS);
        }
        if (sat) {
            fill(row, visit->sat_us, visit->up_us, EATS);
        } else {
            fill(row, visit->left_us, visit->left_us, LEAVES);
        }
        for (int i = 0; sat && i < sitting_count; i++) {
            const struct visit *other = sittings[i].visit;
            if (other != visit && other->sat_us < visit->up_us && visit->sat_us < other->up_us) {
                fill(row, other->sat_us > visit->sat_us ? other->sat_us : visit->sat_us,
                     other->up_us < visit->up_us ? other->up_us : visit->up_us, ON_A_LAP);
            }
        }
    }
}

static const struct glyph {
    const char *plain;
    const char *utf8;
    const char *colour;
    const char *meaning;
} glyphs[CELLS] = {
    [NOTHING] = {" ", " ", "", ""},
    [WAITS] = {".", "·", "33", "waits"},
    [EATS] = {"#", "█", "32", "eats"},
    [ON_A_LAP] = {"!", "!", "1;31", "two at once"},
    [LEAVES] = {"x", "×", "31", "leaves without having eaten"},
};

static void draw_cell(enum cell cell, enum cell before)
{
    if (picture.colours && cell != before) {
        printf("\033[0;%sm", glyphs[cell].colour);
    }
    fputs(picture.utf8 ? glyphs[cell].utf8 : glyphs[cell].plain, stdout);
}

static void draw_row(int person)
{
    char fences[COURSES * 24] = "";
    size_t length = 0;
    for (int course = 0; course < COURSES && picture.fence_digits > 0; course++) {
        const struct visit *visit = &witness->visits[person][course];
        if (visit->sat_us != NEVER) {
            char fence[24];
            snprintf(fence, sizeof fence, "%" PRIu64, visit->fence);
            length += (size_t)sprintf(fences + length, " %s", fence + strlen(picture.fences));
        }
    }
    enum cell row[WIDTH_MAX];
    fill_row(row, person);
    int end = picture.width;
    while (end > 0 && row[end - 1] == NOTHING && length == 0) {
        end--;
    }
    printf("%*s%-*s", MARGIN, "", NAME_WIDTH, names[person]);
    for (int i = 0; i < end; i++) {
        draw_cell(row[i], i > 0 ? row[i - 1] : NOTHING);
    }
    printf("%s%s%s\n", picture.colours ? "\033[0m" : "", length > 0 ? " " : "", fences);
}

static void draw_axis(void)
{
    int step = 1;
    while (step < CLOSING_MS / 1000 && cell_of(step * INT64_C(1000000)) < 5) {
        step++;
    }
    bool ticks[WIDTH_MAX] = {false};
    char labels[WIDTH_MAX + 16];
    memset(labels, ' ', sizeof labels);
    int end = 0;
    for (int second = 0; second * INT64_C(1000000) <= picture.end_us; second += step) {
        int cell = cell_of(second * INT64_C(1000000));
        ticks[cell] = true;
        end = cell + sprintf(labels + cell, "%d s", second);
        labels[end] = ' ';
    }
    printf("%*s", MARGIN + NAME_WIDTH, "");
    for (int i = 0; i < picture.width; i++) {
        const char *plain = ticks[i] ? "+" : "-";
        const char *utf8 = ticks[i] ? "┴" : "─";
        fputs(picture.utf8 ? utf8 : plain, stdout);
    }
    printf("\n%*s%.*s\n", MARGIN + NAME_WIDTH, "", end, labels);
}

static void draw_legend(void)
{
    static const enum cell with_lock[] = {WAITS, EATS, LEAVES};
    static const enum cell without_lock[] = {EATS, ON_A_LAP};
    const enum cell *shown = settings.no_lock ? without_lock : with_lock;
    size_t count = settings.no_lock ? sizeof without_lock / sizeof *without_lock
                                    : sizeof with_lock / sizeof *with_lock;
    printf("\n%*s", MARGIN, "");
    for (size_t i = 0; i < count; i++) {
        fputs(i > 0 ? "   " : "", stdout);
        draw_cell(shown[i], NOTHING);
        printf("%s %s", picture.colours ? "\033[0m" : "", glyphs[shown[i]].meaning);
    }
    printf("\n");
}

static void draw_picture(void)
{
    measure_picture();
    printf("\nWho sat when");
    if (picture.fence_digits > 0) {
        printf(", and with which fence");
    }
    if (picture.fences[0] != '\0') {
        printf(" (all begin with %s)", picture.fences);
    }
    printf(":\n\n");
    for (int person = 0; person < settings.people; person++) {
        draw_row(person);
    }
    draw_axis();
    draw_legend();
}

/* --------------------------------------------------------------------------------- verdict */

static struct verdict {
    int clashes;    /* pairs of sittings that overlap, by the clock */
    int met;        /* guests who found somebody sitting, by the bits */
    int falls;      /* fences that did not grow */
    int lost;       /* seats that were gone before they were given back */
    int untold;     /* visits at which nobody could tell about the lock */
    int died;       /* guests who did not end by themselves, or could not come */
} verdict;

static void judge_sittings(void)
{
    enum { SHOWN = 10 };
    for (int i = 0; i < sitting_count; i++) {
        const struct visit *visit = sittings[i].visit;
        const char *name = names[sittings[i].person];
        verdict.met += visit->found != 0;
        for (int j = 0; j < i; j++) {
            const struct visit *earlier = sittings[j].visit;
            if (earlier->up_us <= visit->sat_us) {
                continue;
            }
            int64_t end_us = visit->up_us < earlier->up_us ? visit->up_us : earlier->up_us;
            if (++verdict.clashes <= SHOWN) {
                printf("%s sat on %s's lap from %.3f s to %.3f s.\n", name,
                       names[sittings[j].person], seconds(visit->sat_us), seconds(end_us));
            }
        }
        if (i > 0 && !settings.no_lock && visit->fence <= sittings[i - 1].visit->fence) {
            verdict.falls++;
            printf("%s sat down after %s, but with a fence that is not larger.\n", name,
                   names[sittings[i - 1].person]);
        }
    }
    if (verdict.clashes > SHOWN) {
        printf("... and so on, %d times more.\n", verdict.clashes - SHOWN);
    }
}

static void judge_visits(void)
{
    for (int person = 0; person < settings.people; person++) {
        for (int course = 0; course < COURSES; course++) {
            const struct visit *visit = &witness->visits[person][course];
            if (visit->code == DLOCK_LOST) {
                verdict.lost++;
                printf("%s had lost the seat before giving it back.\n", names[person]);
            } else if (!is_ordinary(visit->code)) {
                verdict.untold++;
                printf("%s learned nothing about the seat: %s\n", names[person],
                       dlock_code_text(visit->code));
            }
        }
        int status = house.statuses[person];
        if (WIFSIGNALED(status)) {
            verdict.died++;
            printf("%s was killed by signal %d.\n", names[person], WTERMSIG(status));
        } else if (WEXITSTATUS(status) != FINE) {
            verdict.died++;
        }
    }
}

/* Prints what was seen, and gives the exit status that follows from it. */
static int judge(void)
{
    printf("\n");
    judge_sittings();
    judge_visits();
    const char *plural = sitting_count == 1 ? "" : "s";
    if (verdict.clashes > 0 || verdict.met > 0) {
        printf("Two sat at once: %d sitting%s, %d overlap%s by the clock, %d time%s somebody sat "
               "there already.\n",
               sitting_count, plural, verdict.clashes, verdict.clashes == 1 ? "" : "s", verdict.met,
               verdict.met == 1 ? "" : "s");
        if (settings.no_lock) {
            printf("That is what the lock is for: try the same without --no-lock.\n");
        }
        return BROKEN;
    }
    if (verdict.falls > 0 || verdict.lost > 0) {
        printf("%d sitting%s, never two at once, but not all was as it should be: see above.\n",
               sitting_count, plural);
        return BROKEN;
    }
    if (verdict.untold > 0 || verdict.died > 0 || sitting_count == 0) {
        printf("%d sitting%s, never two at once, but this was no whole dinner: see above.\n",
               sitting_count, plural);
        return COULD_NOT_RUN;
    }
    printf("Nobody ever sat on anybody's lap: %d sitting%s, never two at once%s.\n", sitting_count,
           plural, settings.no_lock ? " (by luck: there was no lock)" : ", fences grew");
    return FINE;
}

/* ------------------------------------------------------------------------------------ main */

static void print_usage(FILE *out)
{
    fprintf(out,
            "usage: dinner [--people N] [--url URL] [--key KEY] [--no-lock] [--help]\n"
            "\n"
            "N people want to eat at one table with one seat. Each is a process of its own, and\n"
            "the seat is a dlock. Somebody who knows nothing of the lock watches, and says at the\n"
            "end whether two ever sat at once. It takes 5 to 10 seconds.\n"
            "\n"
            "  --people N   how many, 1 to %d (default: %d)\n"
            "  --url URL    a server of yours: redis://[user:password@]host[:port][/db] or\n"
            "               unix:///path.sock (default: a private redis-server on a unix socket\n"
            "               in a temporary directory, stopped and removed at the end)\n"
            "  --key KEY    the lock's name, 1 to %d bytes (default: %s); nothing else on the\n"
            "               server is touched but its fence, {KEY}:fence, which stays for a day\n"
            "  --no-lock    everybody just sits down, without server and lock: shows what the\n"
            "               lock is for, and that the verdict can be another one\n"
            "  --help       this text\n"
            "\n"
            "Environment: TMPDIR (default: /tmp), NO_COLOR, LC_ALL. A lease lasts %d s.\n"
            "Exit status: 0 never two at once; 1 two sat at once, or a seat was lost; 2 it could\n"
            "not run; 64 wrong arguments; 128 + n ended by signal n (Ctrl-C: 130).\n",
            PEOPLE_MAX, PEOPLE_DEFAULT, DLOCK_KEY_MAX, KEY_DEFAULT, LEASE_MS / 1000);
}

/* The value of an option that was written as "--name value" or "--name=value"; NULL = this is
 * another option. Without a value there is no way on. */
static const char *value_of(const char *name, char **argv, int *i)
{
    size_t length = strlen(name);
    if (strncmp(argv[*i], name, length) != 0) {
        return NULL;
    }
    if (argv[*i][length] == '=') {
        return argv[*i] + length + 1;
    }
    if (argv[*i][length] != '\0') {
        return NULL;
    }
    if (argv[*i + 1] == NULL) {
        complain("%s needs a value; see dinner --help", name);
        exit(USAGE);
    }
    *i += 1;
    return argv[*i];
}

static void read_arguments(char **argv)
{
    for (int i = 1; argv[i] != NULL; i++) {
        const char *value;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_usage(stdout);
            exit(FINE);
        } else if (strcmp(argv[i], "--no-lock") == 0) {
            settings.no_lock = true;
        } else if ((value = value_of("--people", argv, &i)) != NULL) {
            char *end;
            long people = strtol(value, &end, 10);
            if (end == value || *end != '\0' || people < 1 || people > PEOPLE_MAX) {
                complain("--people takes a number from 1 to %d, not \"%s\"", PEOPLE_MAX, value);
                exit(USAGE);
            }
            settings.people = (int)people;
        } else if ((value = value_of("--url", argv, &i)) != NULL) {
            settings.url = value;
            settings.own_server = false;
        } else if ((value = value_of("--key", argv, &i)) != NULL) {
            if (value[0] == '\0' || strlen(value) > DLOCK_KEY_MAX) {
                complain("--key takes 1 to %d bytes", DLOCK_KEY_MAX);
                exit(USAGE);
            }
            settings.key = value;
        } else {
            complain("what is \"%s\"? See dinner --help", argv[i]);
            exit(USAGE);
        }
    }
    if (settings.no_lock && settings.url != NULL) {
        complain("--no-lock asks no server, so --url makes no sense beside it");
        exit(USAGE);
    }
}

/* A socket or a pipe must not become somebody's standard output. */
static bool fill_standard_descriptors(void)
{
    for (int fd = 0; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            return false;
        }
    }
    return true;
}

static void introduce(void)
{
    printf("%d %s to eat at one table with one seat. Each is a process of its own.\n",
           settings.people, settings.people == 1 ? "person wants" : "people want");
    if (settings.no_lock) {
        printf("There is no lock: whoever comes sits down.\n\n");
        return;
    }
    printf("The seat is the lock \"%s\" on %s.\n", settings.key,
           settings.own_server ? "a Redis server of our own, started just for this"
                               : "the server that you named");
    printf("Whoever gets the lock sits down; the others wait, or go. The fence is the number\n"
           "that comes with every lock and only grows.\n\n");
}

/* The house is open; a status that says why the dinner did not take place, or the verdict. */
static int dine(void)
{
    introduce();
    if (!settings.no_lock) {
        bool ran = run_children(1, host, GREETING_MS);
        int status = house.statuses[0];
        if (house.server_died) {
            complain("redis-server ended by itself:");
            show_log();
            return COULD_NOT_RUN;
        }
        if (!ran || house.interrupted != 0 || WIFSIGNALED(status)) {
            return COULD_NOT_RUN;
        }
        if (WEXITSTATUS(status) != FINE) {
            return WEXITSTATUS(status);
        }
    }
    witness_begin();
    if (!run_children(settings.people, guest, DINNER_MS) || house.interrupted != 0) {
        return COULD_NOT_RUN;
    }
    if (house.server_died) {
        complain("redis-server ended by itself in the middle of the dinner:");
        show_log();
    }
    collect_sittings();
    draw_picture();
    return judge();
}

int main(int argc, char **argv)
{
    (void)argc;
    if (!fill_standard_descriptors()) {
        return COULD_NOT_RUN;
    }
    setvbuf(stdout, NULL, _IOFBF, BUFSIZ);
    read_arguments(argv);
    watch_signals();
    house.self = getpid();
    int status = COULD_NOT_RUN;
    if (!witness_open()) {
        complain("no memory to share: %s", strerror(errno));
    } else if (settings.no_lock || !settings.own_server || open_house()) {
        status = dine();
    }
    close_house();
    if (house.interrupted != 0) {
        printf("\nEnded by a signal: everybody has left%s.\n",
               settings.own_server && !settings.no_lock ? ", the server is stopped" : "");
        status = SIGNALLED + house.interrupted;
    }
    fflush(stdout);
    return status;
}
