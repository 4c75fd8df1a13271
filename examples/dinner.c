/* dinner - several people, one table, one seat: dlock.h at work, and a judge who watches
 *
 * Every guest is a process of its own and opens its own factory. Whoever wants to eat takes the
 * lock, sits down, eats, gets up and gives the lock back; those who have patience stand in line
 * meanwhile. Beside the lock there is a witness that knows nothing of it: memory that all processes
 * share, in which everybody writes down when they really came and sat. The picture and the verdict
 * at the end are made from that; the library is believed in one thing only, that somebody had to
 * wait, which decides whose order of arrival is certain enough to be judged.
 *
 * The lock itself is used in THE GUEST, in take_seat() and give_seat_back(): two short functions.
 * All the rest is table, waiters and judge.
 *
 *     cc -std=gnu11 -I. examples/dinner.c -lhiredis -lpthread -o dinner
 */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "own_server.h"

#include <getopt.h>
#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* -------------------------------------------------------------------------------- settings */

enum { FINE = 0, BROKEN = 1, COULD_NOT_RUN = 2, USAGE = 64, SIGNALLED = 128 };

enum { PEOPLE_MAX = 20, PEOPLE_DEFAULT = 5, COURSES = 2, VISITS_MAX = PEOPLE_MAX * COURSES };

/* How long things take. Nothing waits for anything beyond these, so that a dinner ends in less than
 * 30 s whatever happens. */
enum {
    CLOSING_MS = 8000,       /* nobody comes back, and nobody goes on waiting, after this */
    LEASE_MS = 3000,         /* longer than any meal; the seat of a guest who dies is free then */
    MEAL_MIN_MS = 330,
    MEAL_MAX_MS = 850,
    MEALS_MS = 6000,         /* shared out among the guests */
    GAP_MAX_MS = 200,        /* between two arrivals */
    ARRIVALS_MS = 3500,
    PATIENCE_MIN_MS = 400,   /* a slow machine answers within it */
    NOISE_MS = 100,          /* who asks so soon after another was seen is not judged */
    GREETING_MS = 5000,      /* until a server must have answered */
    DINNER_MS = 11000,       /* until the guests must have gone by themselves */
    GRACE_MS = 3000,         /* for children that were asked to end, before they are killed */
    TICK_MS = 100
};

static const char *const names[PEOPLE_MAX] = {
    "Ada",   "Bertrand", "Carl", "Dorothy", "Emmy", "Felix",  "Grace", "Henri", "Irene",  "Joseph",
    "Katja", "Leonhard", "Mary", "Niels",   "Olga", "Pierre", "Rosa",  "Sofia", "Thales", "Ursula",
};

enum { TILL_CLOSING = -1 };

/* The guests take turns in these habits, so that every dinner has all of them. In hundredths of a
 * meal. */
static const struct habit {
    int patience;   /* 0 = asks once; TILL_CLOSING */
    int appetite;
    int away;       /* until coming back; 0 = does not come back */
} habits[] = {
    {TILL_CLOSING, 100, 60}, {0, 90, 600}, {TILL_CLOSING, 120, 0}, {70, 80, 230},
    {TILL_CLOSING, 110, 60},
};
enum { HABITS = sizeof habits / sizeof habits[0] };

static struct settings {
    int people;
    int seed;           /* 0 = the evening that the habits and gaps above describe */
    const char *url;    /* NULL until a server of our own runs */
    const char *key;
    bool own_server;
    bool no_lock;
    bool no_queue;
} settings = {PEOPLE_DEFAULT, 0, NULL, "dinner:seat", true, false, false};

/* The span itself, or with a seed half of it to one and a half times it: always the same for the
 * same seed, guest and purpose. */
static int64_t varied(int64_t span_ms, int self, const char *purpose)
{
    uint64_t mixed = (uint64_t)settings.seed * 1000 + (uint64_t)self;
    for (; *purpose != '\0'; purpose++) {
        mixed = (mixed ^ (unsigned char)*purpose) * UINT64_C(0x9e3779b97f4a7c15);
        mixed ^= mixed >> 29;
    }
    return settings.seed == 0 ? span_ms : span_ms * (50 + (int64_t)(mixed % 101)) / 100;
}

static int64_t meal_ms(void)
{
    int64_t fair = MEALS_MS / settings.people;
    return fair < MEAL_MIN_MS ? MEAL_MIN_MS : fair > MEAL_MAX_MS ? MEAL_MAX_MS : fair;
}

static int64_t gap_ms(void)
{
    int64_t fair = ARRIVALS_MS / settings.people;
    return fair < GAP_MAX_MS ? fair : GAP_MAX_MS;
}

/* --------------------------------------------------------------------------------- witness */

/* One coming to the table. Instants are microseconds since the beginning; NEVER = it did not
 * happen. */
struct visit {
    int person;
    int code;               /* why the seat was not got, or could not be given back */
    int64_t arrived_us;     /* before the server was asked */
    int64_t in_line_us;     /* the server had seen it by then */
    int64_t patient_us;     /* the patience ends then */
    int64_t sat_us;
    int64_t up_us;
    int64_t left_us;
    uint64_t fence;
    uint32_t found;         /* who sat there already, one bit a guest */
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
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 - witness->start_us;
}

static bool witness_open(void)
{
    void *memory =
        mmap(NULL, sizeof *witness, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return false;
    }
    witness = memory;
    for (int person = 0; person < PEOPLE_MAX; person++) {
        for (int course = 0; course < COURSES; course++) {
            witness->visits[person][course] =
                (struct visit){person, DLOCK_OK, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER, 0, 0};
        }
    }
    return true;
}

/* The instants are taken outside of the bit: whoever meets the bit also overlaps in time. */
static void witness_sits(struct visit *visit)
{
    visit->sat_us = now_us();
    visit->found =
        __atomic_fetch_or(&witness->sitting, UINT32_C(1) << visit->person, __ATOMIC_SEQ_CST);
}

static void witness_gets_up(struct visit *visit)
{
    __atomic_fetch_and(&witness->sitting, ~(UINT32_C(1) << visit->person), __ATOMIC_SEQ_CST);
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
    va_list arguments;
    fflush(stdout);
    fprintf(stderr, "dinner: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
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
 * in wait_for_children(), so that none comes at a bad moment. */
static void watch_signals(void)
{
    static const int ends[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&watched);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        sigaction(ends[i], &action, NULL);
        sigaddset(&watched, ends[i]);
    }
    signal(SIGCHLD, SIG_DFL);
    sigaddset(&watched, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);   /* whoever reads our output may leave; we must still tidy up */
    sigprocmask(SIG_BLOCK, &watched, &unwatched);
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

static struct visit *visiting;   /* of this process */

/* The library tells that it has to wait once the server has written down our place in line: whoever
 * asks after this is behind us. */
static void on_event(const dlock_event *event, void *user)
{
    (void)user;
    if (event->kind == DLOCK_EVENT_WAITING) {
        visiting->in_line_us = now_us();
    }
}

static bool take_seat(dlock_factory *factory, int64_t wait_ms)
{
    if (settings.no_lock) {
        return true;
    }
    dlock_options options = {
        .expiry_ms = LEASE_MS, .wait_ms = wait_ms, .no_queue = settings.no_queue};
    return dlock_acquire(factory, &seat, settings.key, &options);
}

/* The line is written before the release, else the next one could sit down above it. */
static void give_seat_back(struct visit *visit)
{
    say(visit->up_us, visit->person, "gets up after %.2f s%s",
        seconds(visit->up_us - visit->sat_us), settings.no_lock ? "" : " and gives the seat back");
    if (!settings.no_lock && !dlock_release(&seat)) {
        visit->code = dlock_why(&seat)->code;
        say(now_us(), visit->person, "could not give it back. %s", dlock_why(&seat)->text);
    }
}

static void arrive(struct visit *visit, const char *verb, const struct habit *habit,
                   int64_t wait_ms)
{
    const char *waits = settings.no_queue ? "asks again and again" : "waits";
    visit->arrived_us = now_us();
    visit->in_line_us = NEVER;
    visit->patient_us = visit->arrived_us + wait_ms * 1000;
    if (settings.no_lock) {
        say(visit->arrived_us, visit->person, "%s and asks nobody", verb);
    } else if (wait_ms == 0) {
        say(visit->arrived_us, visit->person, "%s; does not wait: the seat now, or not at all",
            verb);
    } else if (habit->patience == TILL_CLOSING) {
        say(visit->arrived_us, visit->person, "%s; %s as long as it takes", verb, waits);
    } else {
        say(visit->arrived_us, visit->person, "%s; %s for %.1f s at most", verb, waits,
            seconds(wait_ms * 1000));
    }
}

static void sit_and_eat(struct visit *visit, int64_t span_ms)
{
    visit->fence = dlock_fence(&seat);
    witness_sits(visit);
    if (visit->found != 0) {
        say(visit->sat_us, visit->person, "sits down on %s's lap!",
            names[__builtin_ctz(visit->found)]);
    } else if (settings.no_lock) {
        say(visit->sat_us, visit->person, "sits down");
    } else {
        say(visit->sat_us, visit->person, "sits down, fence %" PRIu64, visit->fence);
    }
    sleep_ms(span_ms);
    witness_gets_up(visit);
}

static void visit_table(dlock_factory *factory, int self, const char *verb,
                        const struct habit *habit)
{
    int64_t wait_ms = varied(habit->patience * meal_ms() / 100, self, verb);
    if (habit->patience == TILL_CLOSING) {
        int64_t left_ms = CLOSING_MS - now_us() / 1000;
        wait_ms = left_ms > 0 ? left_ms : 0;
    } else if (habit->patience > 0 && wait_ms < PATIENCE_MIN_MS) {
        wait_ms = PATIENCE_MIN_MS;
    }
    arrive(visiting, verb, habit, wait_ms);
    bool took = take_seat(factory, wait_ms);
    if (visiting->in_line_us == NEVER) {
        visiting->in_line_us = now_us();   /* it did not have to wait */
    }
    if (took) {
        sit_and_eat(visiting, varied(habit->appetite * meal_ms() / 100, self, verb));
        give_seat_back(visiting);
        visiting->left_us = now_us();
    } else {
        visiting->left_us = now_us();
        visiting->code = dlock_why(&seat)->code;
        say(visiting->left_us, self, "leaves without the seat. %s", dlock_why(&seat)->text);
    }
}

/* A guest's whole evening; the process ends with what this returns. */
static int guest(int self)
{
    static const char *const verbs[COURSES] = {"arrives", "comes back"};
    const struct habit *habit = &habits[(self + settings.seed) % HABITS];
    dlock_config config = {.on_event = on_event};
    dlock_factory *factory = NULL;
    if (!settings.no_lock) {
        dlock_error error;
        factory = dlock_open(settings.url, &config, &error);
        if (factory == NULL) {
            complain("%s could not come. %s", names[self], error.text);
            return COULD_NOT_RUN;
        }
    }
    int64_t pause_ms = varied(self * gap_ms(), self, "comes") - now_us() / 1000;
    for (int course = 0; course < COURSES && now_us() / 1000 + pause_ms < CLOSING_MS; course++) {
        sleep_ms(pause_ms);
        if (stopped || (course > 0 && habit->away == 0)) {
            break;
        }
        visiting = &witness->visits[self][course];
        visit_table(factory, self, verbs[course], habit);
        pause_ms = varied(habit->away * meal_ms() / 100, self, "goes");
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

/* Tries the lock once before the guests come: one clear error instead of many. Held by somebody is
 * an answer, too. */
static int host(int self)
{
    (void)self;
    dlock_error error;
    dlock_factory *factory = dlock_open(settings.url, NULL, &error);
    if (factory == NULL) {
        complain("%s", error.text);
        return error.code == DLOCK_ARGUMENT ? USAGE : COULD_NOT_RUN;
    }
    int status = FINE;
    if (take_seat(factory, 0)) {
        dlock_release(&seat);
    } else if (!stopped && !is_ordinary(dlock_why(&seat)->code)) {
        complain("%s", dlock_why(&seat)->text);
        status = COULD_NOT_RUN;
    }
    dlock_close(factory);
    return status;
}

/* -------------------------------------------------------------------- children of the parent */

static struct house {
    pid_t self;
    pid_t children[PEOPLE_MAX];   /* 0 = has ended */
    int statuses[PEOPLE_MAX];     /* as waitpid gives them */
    int running;
    int interrupted;              /* the signal that ends the dinner early */
    struct own_server server;
} house;

/* Somebody was killed: nobody else will say when that sitting ended. */
static void carry_out(int person)
{
    for (int course = 0; course < COURSES; course++) {
        struct visit *visit = &witness->visits[person][course];
        if (visit->sat_us != NEVER && visit->up_us == NEVER) {
            witness_gets_up(visit);
            say(visit->up_us, person, "is carried out; the seat will be free when the lease ends");
        }
        if (visit->arrived_us != NEVER && visit->left_us == NEVER) {
            visit->left_us = now_us();
        }
    }
}

static void reap(void)
{
    for (int i = 0; i < PEOPLE_MAX; i++) {
        if (house.children[i] > 0 &&
            waitpid(house.children[i], &house.statuses[i], WNOHANG) == house.children[i]) {
            house.children[i] = 0;
            house.running--;
            if (WIFSIGNALED(house.statuses[i])) {
                carry_out(i);
            }
        }
    }
}

/* Waits until all children have ended: by themselves, or because the time is over or a signal came.
 * They are asked again and again, because a signal that finds no acquire under way cancels none. */
static void wait_for_children(int64_t limit_ms)
{
    static const struct timespec tick = {0, TICK_MS * 1000000L};
    int64_t ask_us = now_us() + limit_ms * 1000;
    for (; house.running > 0; reap()) {
        int signal_number = sigtimedwait(&watched, NULL, &tick);
        int64_t now = now_us();
        if (signal_number > 0 && signal_number != SIGCHLD) {
            house.interrupted = signal_number;
            ask_us = now < ask_us ? now : ask_us;
        }
        for (int i = 0; i < PEOPLE_MAX && now >= ask_us; i++) {
            if (house.children[i] > 0) {
                kill(house.children[i], now < ask_us + GRACE_MS * 1000 ? SIGTERM : SIGKILL);
            }
        }
    }
}

/* Runs `body` in `count` processes and waits for them. No factory is open here, or ever in this
 * process: one belongs to the process that opened it. */
static bool run_children(int count, int (*body)(int), int64_t limit_ms)
{
    bool all = true;
    fflush(stdout);
    for (int i = 0; i < count && all; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, (unsigned long)SIGTERM, 0UL, 0UL, 0UL);
            sigprocmask(SIG_SETMASK, &unwatched, NULL);
            _exit(getppid() == house.self ? body(i) : COULD_NOT_RUN);
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
    return all && house.interrupted == 0;
}

/* ------------------------------------------------------------------------------ the evening */
/* What the witness saw, put in order. */

static const struct visit *comings[VISITS_MAX];    /* by when they came */
static const struct visit *sittings[VISITS_MAX];   /* by when they sat down */
static int coming_count;
static int sitting_count;

static int by_coming(const void *one, const void *other)
{
    int64_t a = (*(const struct visit *const *)one)->arrived_us;
    int64_t b = (*(const struct visit *const *)other)->arrived_us;
    return (a > b) - (a < b);
}

static int by_sitting(const void *one, const void *other)
{
    int64_t a = (*(const struct visit *const *)one)->sat_us;
    int64_t b = (*(const struct visit *const *)other)->sat_us;
    return (a > b) - (a < b);
}

static void look_back(void)
{
    for (int person = 0; person < settings.people; person++) {
        for (int course = 0; course < COURSES; course++) {
            const struct visit *visit = &witness->visits[person][course];
            if (visit->arrived_us != NEVER) {
                comings[coming_count++] = visit;
            }
            if (visit->sat_us != NEVER) {
                sittings[sitting_count++] = visit;
            }
        }
    }
    qsort(comings, (size_t)coming_count, sizeof comings[0], by_coming);
    qsort(sittings, (size_t)sitting_count, sizeof sittings[0], by_sitting);
}

/* The end of the waiting. Who leaves is told so a moment after the patience has ended, which the
 * library counts from the beginning of a millisecond. */
static int64_t waited_until(const struct visit *visit)
{
    int64_t patient_us = visit->patient_us - 2000;
    if (visit->sat_us != NEVER) {
        return visit->sat_us;
    }
    return patient_us < visit->left_us ? patient_us : visit->left_us;
}

/* --------------------------------------------------------------------------------- picture */

enum { WIDTH_DEFAULT = 80, WIDTH_MIN = 50, WIDTH_MAX = 160, NAME_WIDTH = 10, MARGIN = 2 };

/* What a cell holds, beside the digits of who waits. */
enum { NOBODY = ' ', EATS = '#', ON_A_LAP = '!', LEAVES = 'x', FAR_BACK = '+' };

static struct picture {
    bool utf8;
    bool colours;
    int width;          /* of the part that shows time, in cells */
    int64_t end_us;     /* of the last cell */
} picture;

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
    picture.width = width - MARGIN - NAME_WIDTH;
    picture.end_us = 1;
    for (int i = 0; i < coming_count; i++) {
        int64_t left_us = comings[i]->left_us;
        picture.end_us = left_us > picture.end_us ? left_us : picture.end_us;
    }
}

static int cell_of(int64_t us)
{
    int64_t cell = us * (picture.width - 1) / picture.end_us;
    return cell < 0 ? 0 : cell > picture.width - 1 ? picture.width - 1 : (int)cell;
}

/* Half open, so that one who sits down when another gets up does not share a cell with them; but
 * at least one cell. */
static void fill(char *row, int64_t from_us, int64_t to_us, char what)
{
    int from = cell_of(from_us);
    int to = cell_of(to_us);
    do {
        row[from] = what;
    } while (++from < to);
}

/* Which place has this one, among those who wait in the middle of a cell, by when they came? */
static char place_at(const struct visit *visit, int cell)
{
    int64_t at_us = (2 * cell + 1) * picture.end_us / (2 * (picture.width - 1));
    int place = 1;
    for (int i = 0; i < coming_count && comings[i] != visit; i++) {
        place += waited_until(comings[i]) > at_us;
    }
    return (char)(place < 10 ? '0' + place : FAR_BACK);
}

static void fill_visit(char *row, const struct visit *visit)
{
    int waits_to = cell_of(visit->sat_us != NEVER ? visit->sat_us : visit->left_us);
    for (int cell = cell_of(visit->arrived_us); cell < waits_to; cell++) {
        row[cell] = place_at(visit, cell);
    }
    if (visit->sat_us == NEVER) {
        fill(row, visit->left_us, visit->left_us, LEAVES);
        return;
    }
    fill(row, visit->sat_us, visit->up_us, EATS);
    for (int i = 0; i < sitting_count; i++) {
        const struct visit *other = sittings[i];
        if (other != visit && other->sat_us < visit->up_us && visit->sat_us < other->up_us) {
            fill(row, other->sat_us > visit->sat_us ? other->sat_us : visit->sat_us,
                 other->up_us < visit->up_us ? other->up_us : visit->up_us, ON_A_LAP);
        }
    }
}

static void draw_cell(char cell, char before)
{
    if (picture.colours && cell != before) {
        printf("\033[0;%sm", cell == EATS       ? "32"
                             : cell == ON_A_LAP ? "1;31"
                             : cell == LEAVES   ? "31"
                             : cell == NOBODY   ? ""
                                                : "33");
    }
    if (picture.utf8 && (cell == EATS || cell == LEAVES)) {
        fputs(cell == EATS ? "█" : "×", stdout);
    } else {
        putchar(cell);
    }
}

static void draw_row(int person)
{
    char row[WIDTH_MAX];
    int end = picture.width;
    memset(row, NOBODY, sizeof row);
    for (int i = 0; i < coming_count; i++) {
        if (comings[i]->person == person) {
            fill_visit(row, comings[i]);
        }
    }
    while (end > 0 && row[end - 1] == NOBODY) {
        end--;
    }
    printf("%*s%-*s", MARGIN, "", NAME_WIDTH, names[person]);
    for (int i = 0; i < end; i++) {
        draw_cell(row[i], i > 0 ? row[i - 1] : NOBODY);
    }
    printf("%s\n", picture.colours ? "\033[0m" : "");
}

static void draw_axis(void)
{
    char labels[WIDTH_MAX + 16];
    int step = 1;
    int second = 0;
    int end = 0;
    while (step < CLOSING_MS / 1000 && cell_of(step * INT64_C(1000000)) < 5) {
        step++;
    }
    memset(labels, ' ', sizeof labels);
    printf("%*s", MARGIN + NAME_WIDTH, "");
    for (int cell = 0; cell < picture.width; cell++) {
        int64_t at_us = second * INT64_C(1000000);
        bool tick = at_us <= picture.end_us && cell == cell_of(at_us);
        fputs(picture.utf8 ? (tick ? "┴" : "─") : (tick ? "+" : "-"), stdout);
        if (tick) {
            end = cell + sprintf(labels + cell, "%d s", second);
            labels[end] = ' ';
            second += step;
        }
    }
    printf("\n%*s%.*s\n", MARGIN + NAME_WIDTH, "", end, labels);
}

static void draw_sign(char cell, const char *meaning)
{
    draw_cell(cell, NOBODY);
    printf("%s%s", picture.colours ? "\033[0m" : "", meaning);
}

static void draw_picture(void)
{
    measure_picture();
    printf("\nWho sat when%s:\n\n", settings.no_lock ? "" : ", and who waited");
    for (int person = 0; person < settings.people; person++) {
        draw_row(person);
    }
    draw_axis();
    printf("\n%*s", MARGIN, "");
    if (settings.no_lock) {
        draw_sign(EATS, " eats   ");
        draw_sign(ON_A_LAP, " two at once\n");
    } else {
        draw_sign('1', " 2 3 wait, in order of arrival   ");
        draw_sign(EATS, " eats   ");
        draw_sign(LEAVES, " leaves without having eaten\n");
    }
}

/* --------------------------------------------------------------------------------- verdict */

enum { SHOWN = 10 };   /* of each kind of fault */

static struct verdict {
    int clashes;      /* pairs of sittings that overlap, by the clock */
    int met;          /* guests who found somebody sitting, by the bits */
    int falls;        /* fences that did not grow */
    int overtaken;    /* pairs: who came later sat down while the other one still waited */
    int behind;       /* pairs: one came while another one waited, and did not overtake */
    int too_close;    /* pairs: the same, but in which order the server saw them is not known */
    int lost;         /* seats that were gone before they were given back */
    int untold;       /* visits at which nobody could tell about the lock */
    int died;         /* guests who did not end by themselves, or could not come */
} verdict;

static void judge_sittings(void)
{
    for (int i = 0; i < sitting_count; i++) {
        const struct visit *visit = sittings[i];
        const char *name = names[visit->person];
        verdict.met += visit->found != 0;
        for (int j = 0; j < i; j++) {
            const struct visit *earlier = sittings[j];
            if (earlier->up_us <= visit->sat_us) {
                continue;
            }
            int64_t end_us = visit->up_us < earlier->up_us ? visit->up_us : earlier->up_us;
            if (++verdict.clashes <= SHOWN) {
                printf("%s sat on %s's lap from %.3f s to %.3f s.\n", name, names[earlier->person],
                       seconds(visit->sat_us), seconds(end_us));
            }
        }
        if (i > 0 && !settings.no_lock && visit->fence <= sittings[i - 1]->fence) {
            verdict.falls++;
            printf("%s sat down after %s, but with a fence that is not larger.\n", name,
                   names[sittings[i - 1]->person]);
        }
    }
    if (verdict.clashes > SHOWN) {
        printf("... and so on, %d times more.\n", verdict.clashes - SHOWN);
    }
}

/* Whose turn was it? Only those are judged whom the server cannot have heard in the other order.
 * Nobody is overtaken after having given up; when somebody who was killed did so, nobody knows. */
static void judge_order(void)
{
    for (int i = 0; i < coming_count && !settings.no_lock; i++) {
        const struct visit *first = comings[i];
        for (int j = i + 1; j < coming_count && !WIFSIGNALED(house.statuses[first->person]); j++) {
            const struct visit *later = comings[j];
            if (later->arrived_us >= waited_until(first)) {
                break;
            }
            if (later->arrived_us <= first->in_line_us + NOISE_MS * 1000) {
                verdict.too_close++;
            } else if (later->sat_us == NEVER || later->sat_us > waited_until(first)) {
                verdict.behind++;
            } else if (++verdict.overtaken <= SHOWN) {
                printf("%s, here since %.3f s, was overtaken by %s, who came at %.3f s.\n",
                       names[first->person], seconds(first->arrived_us), names[later->person],
                       seconds(later->arrived_us));
            }
        }
    }
    if (verdict.overtaken > SHOWN) {
        printf("... and so on, %d times more.\n", verdict.overtaken - SHOWN);
    }
}

static void judge_visits(void)
{
    for (int i = 0; i < coming_count; i++) {
        const char *name = names[comings[i]->person];
        int code = comings[i]->code;
        if (code == DLOCK_LOST) {
            verdict.lost++;
            printf("%s had lost the seat before giving it back.\n", name);
        } else if (!is_ordinary(code)) {
            verdict.untold++;
            printf("%s learned nothing about the seat: %s\n", name, dlock_code_text(code));
        }
    }
    for (int person = 0; person < settings.people; person++) {
        int status = house.statuses[person];
        if (WIFSIGNALED(status)) {
            verdict.died++;
            printf("%s was killed by signal %d.\n", names[person], WTERMSIG(status));
        } else if (WEXITSTATUS(status) != FINE) {
            verdict.died++;
        }
    }
}

static const char *plural(int count)
{
    return count == 1 ? "" : "s";
}

static void pronounce_order(void)
{
    printf("Served in order of arrival: ");
    if (verdict.overtaken > 0) {
        printf("no; %d time%s somebody was overtaken.\n", verdict.overtaken,
               plural(verdict.overtaken));
    } else if (verdict.behind > 0) {
        printf("yes%s; %d time%s somebody came behind one who waited.\n",
               settings.no_queue ? " (by luck: there was no queue)" : "", verdict.behind,
               plural(verdict.behind));
    } else {
        printf("nobody came behind one who waited.\n");
    }
    if (verdict.too_close > 0) {
        printf("(%d time%s two came too close together to judge.)\n", verdict.too_close,
               plural(verdict.too_close));
    }
    if (verdict.overtaken > 0 && settings.no_queue) {
        printf("That is what the queue is for: try the same without --no-queue.\n");
    }
}

/* Prints what was seen, and gives the exit status that follows from it. */
static int judge(void)
{
    printf("\n");
    judge_sittings();
    judge_order();
    judge_visits();
    if (verdict.clashes > 0 || verdict.met > 0) {
        printf("Two sat at once: %d sitting%s, %d overlap%s by the clock, %d time%s somebody sat "
               "there already.\n",
               sitting_count, plural(sitting_count), verdict.clashes, plural(verdict.clashes),
               verdict.met, plural(verdict.met));
        if (settings.no_lock) {
            printf("That is what the lock is for: try the same without --no-lock.\n");
        }
        return BROKEN;
    }
    bool faulty = verdict.falls > 0 || verdict.lost > 0;
    bool whole = verdict.untold == 0 && verdict.died == 0 && sitting_count > 0;
    if (faulty || !whole) {
        printf("%d sitting%s, never two at once, but %s: see above.\n", sitting_count,
               plural(sitting_count),
               faulty ? "not all was as it should be" : "this was no whole dinner");
    } else {
        printf("Nobody ever sat on anybody's lap: %d sitting%s, never two at once%s.\n",
               sitting_count, plural(sitting_count),
               settings.no_lock ? " (by luck: there was no lock)" : ", fences grew");
    }
    if (!settings.no_lock) {
        pronounce_order();
    }
    if (faulty || (verdict.overtaken > 0 && !settings.no_queue)) {
        return BROKEN;
    }
    return whole ? FINE : COULD_NOT_RUN;
}

/* ------------------------------------------------------------------------------------ main */

static void print_usage(void)
{
    printf("usage: dinner [--people N] [--seed N] [--url URL] [--key KEY]\n"
           "              [--no-queue | --no-lock] [--help]\n"
           "\n"
           "N people want to eat at one table with one seat. Each is a process of its own, and\n"
           "the seat is a dlock: who has patience stands in line for it. Somebody who knows\n"
           "nothing of the lock watches, and says at the end whether two ever sat at once, and\n"
           "whether anybody was overtaken. It takes 5 to 10 seconds.\n"
           "\n"
           "  --people N   how many, 1 to %d (default: %d)\n"
           "  --seed N     another evening: other habits, arrivals and meals (default: 0)\n"
           "  --url URL    a server of yours: redis://[user:password@]host[:port][/db] or\n"
           "               unix:///path.sock (default: a private redis-server on a unix socket\n"
           "               in a temporary directory, stopped and removed at the end)\n"
           "  --key KEY    the lock's name, 1 to %d bytes (default: %s); nothing else on the\n"
           "               server is touched but its queue, and its fence, {KEY}:fence, which\n"
           "               stays for a day\n"
           "  --no-queue   who waits asks again and again instead: shows what the queue is for,\n"
           "               and that the verdict can be another one\n"
           "  --no-lock    everybody just sits down, without server and lock: shows what the\n"
           "               lock is for\n"
           "  --help       this text\n"
           "\n"
           "Environment: TMPDIR (default: /tmp), NO_COLOR, LC_ALL. A lease lasts %d s.\n"
           "Who asks within %d ms after the server has seen another one is not judged.\n"
           "Exit status: 0 never two at once, and with the queue nobody was overtaken; 1 not so,\n"
           "or a seat was lost; 2 it could not run; 64 wrong arguments; 128 + n ended by signal n\n"
           "(Ctrl-C: 130).\n",
           PEOPLE_MAX, PEOPLE_DEFAULT, DLOCK_KEY_MAX, settings.key, LEASE_MS / 1000, NOISE_MS);
}

/* Ends the program if the text is no number in the range. */
static int number_in(const char *option, const char *text, int least, int most)
{
    char *end;
    long number = strtol(text, &end, 10);
    if (end == text || *end != '\0' || number < least || number > most) {
        complain("%s takes a number from %d to %d, not \"%s\"", option, least, most, text);
        exit(USAGE);
    }
    return (int)number;
}

static void read_arguments(int argc, char **argv)
{
    static const struct option options[] = {
        {"people", required_argument, NULL, 'p'}, {"seed", required_argument, NULL, 's'},
        {"url", required_argument, NULL, 'u'},    {"key", required_argument, NULL, 'k'},
        {"no-queue", no_argument, NULL, 'q'},     {"no-lock", no_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    const char *wrong = NULL;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (option) {
        case 'p':
            settings.people = number_in("--people", optarg, 1, PEOPLE_MAX);
            break;
        case 's':
            settings.seed = number_in("--seed", optarg, 0, 1000000);
            break;
        case 'u':
            settings.url = optarg;
            settings.own_server = false;
            break;
        case 'k':
            settings.key = optarg;
            break;
        case 'q':
            settings.no_queue = true;
            break;
        case 'l':
            settings.no_lock = true;
            break;
        case 'h':
            print_usage();
            exit(FINE);
        default:
            complain("\"%s\" is no option, or lacks its value; see dinner --help",
                     argv[optind - 1]);
            exit(USAGE);
        }
    }
    if (optind < argc) {
        wrong = "there are options only";
    } else if (settings.key[0] == '\0' || strlen(settings.key) > DLOCK_KEY_MAX) {
        wrong = "--key is empty or too long";
    } else if (settings.no_lock && (settings.no_queue || settings.url != NULL)) {
        wrong = "--no-lock asks no server, so --url and --no-queue make no sense beside it";
    }
    if (wrong != NULL) {
        complain("%s; see dinner --help", wrong);
        exit(USAGE);
    }
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
    printf("Whoever gets the lock sits down; the others %s, or go. The fence is the\n"
           "number that comes with every lock and only grows.\n\n",
           settings.no_queue ? "ask again and again" : "stand in line");
}

/* The server runs; a status that says why the dinner did not take place, or the verdict. */
static int dine(void)
{
    introduce();
    if (!settings.no_lock) {
        int *status = &house.statuses[0];
        if (!run_children(1, host, GREETING_MS) || WIFSIGNALED(*status)) {
            return COULD_NOT_RUN;
        }
        if (WEXITSTATUS(*status) != FINE) {
            return WEXITSTATUS(*status);
        }
    }
    witness->start_us += now_us();
    if (!run_children(settings.people, guest, DINNER_MS)) {
        return COULD_NOT_RUN;
    }
    look_back();
    draw_picture();
    return judge();
}

int main(int argc, char **argv)
{
    int status = COULD_NOT_RUN;
    setvbuf(stdout, NULL, _IOFBF, BUFSIZ);
    read_arguments(argc, argv);
    watch_signals();
    house.self = getpid();
    if (!witness_open()) {
        complain("no memory to share: %s", strerror(errno));
    } else if (settings.no_lock || !settings.own_server) {
        status = dine();
    } else if (own_server_start(&house.server, "dinner")) {
        settings.url = house.server.url;
        status = dine();
    } else {
        complain("%s", house.server.why);
    }
    own_server_stop(&house.server);
    if (house.interrupted != 0) {
        printf("\nEnded by a signal: everybody has left%s.\n",
               house.server.pid > 0 ? ", the server is stopped" : "");
        status = SIGNALLED + house.interrupted;
    }
    fflush(stdout);
    return status;
}
