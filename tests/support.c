/* Throw-away servers, a proxy that breaks things, children and stopwatches: see support.h. */
#define _GNU_SOURCE
#include "support.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { START_MS = 15000, RAW_TIMEOUT_MS = 10000, PAIRS_MAX = 64 };

/* --------------------------------------------------------------------- what must be tidied up */

enum { ENTRIES_MAX = 128 };

/* Slots are written by the main thread only; the signal handler reads them. */
struct entry {
    volatile pid_t pid;                 /* leads a process group; 0 = none */
    char directory[SERVER_PATH_MAX];    /* empty = none                    */
    volatile bool used;
};

static struct entry entries[ENTRIES_MAX];
static pid_t main_process;

/* What may lie in a directory of ours; the handler must not call readdir. */
static const char *const litter[] = {"/redis.sock", "/proxy.sock", "/server.log", "/data/dump.rdb",
                                     "/data"};

static void discard(const char *directory)
{
    char path[SERVER_PATH_MAX + 32];
    size_t length = strlen(directory);
    memcpy(path, directory, length);
    for (size_t i = 0; i < sizeof litter / sizeof *litter; i++) {
        memcpy(path + length, litter[i], strlen(litter[i]) + 1);
        if (unlink(path) != 0) {
            (void)rmdir(path);
        }
    }
    (void)rmdir(directory);
}

/* Only what a signal handler may call. */
static void tidy_entry(struct entry *entry)
{
    if (entry->pid > 0) {
        (void)kill(-entry->pid, SIGKILL);
        (void)kill(entry->pid, SIGKILL);
        (void)waitpid(entry->pid, NULL, 0);
        entry->pid = 0;
    }
    if (entry->directory[0] != '\0') {
        discard(entry->directory);
    }
    entry->directory[0] = '\0';
    entry->used = false;
}

static void tidy(void)
{
    if (getpid() != main_process) {
        return;
    }
    for (size_t i = 0; i < ENTRIES_MAX; i++) {
        if (entries[i].used) {
            tidy_entry(&entries[i]);
        }
    }
}

static void tidy_on_signal(int number)
{
    static const char hung[] = "the test program hung: its watchdog ends it\n";
    tidy();
    if (number == SIGALRM) {
        (void)!write(STDERR_FILENO, hung, sizeof hung - 1);
    }
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void tidy_prepare(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGABRT, SIGALRM};
    if (main_process != 0) {
        return;
    }
    main_process = getpid();
    (void)atexit(tidy);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_handler = tidy_on_signal;
        action.sa_flags = SA_NODEFER;
        (void)sigaction(signals[i], &action, NULL);
    }
}

/* Fails the test; in a child there is none to fail, and going on would run the others twice. */
#define broken(...) \
    do { \
        if (main_process != 0 && getpid() != main_process) { \
            fprintf(stderr, __VA_ARGS__); \
            fprintf(stderr, "\n"); \
            _exit(99); \
        } \
        fail_msg(__VA_ARGS__); \
    } while (0)

static struct entry *entry_new(void)
{
    tidy_prepare();
    for (size_t i = 0; i < ENTRIES_MAX; i++) {
        if (!entries[i].used) {
            entries[i].pid = 0;
            entries[i].directory[0] = '\0';
            entries[i].used = true;
            return &entries[i];
        }
    }
    broken("too many processes and directories at once");
    return NULL;
}

static void entry_drop(pid_t pid, const char *directory)
{
    for (size_t i = 0; i < ENTRIES_MAX; i++) {
        bool same = directory != NULL ? strcmp(entries[i].directory, directory) == 0
                                      : entries[i].directory[0] == '\0' && entries[i].pid == pid;
        if (entries[i].used && same) {
            tidy_entry(&entries[i]);
        }
    }
}

static void entry_set_pid(const char *directory, pid_t pid)
{
    for (size_t i = 0; i < ENTRIES_MAX; i++) {
        if (entries[i].used && strcmp(entries[i].directory, directory) == 0) {
            entries[i].pid = pid;
        }
    }
}

/* Everything in it, then itself: for what the short list of the handler does not know. */
static void remove_all(const char *directory)
{
    DIR *stream = opendir(directory);
    struct dirent *file;
    while (stream != NULL && (file = readdir(stream)) != NULL) {
        if (strcmp(file->d_name, ".") != 0 && strcmp(file->d_name, "..") != 0) {
            (void)unlinkat(dirfd(stream), file->d_name, 0);
        }
    }
    if (stream != NULL) {
        (void)closedir(stream);
    }
    (void)rmdir(directory);
}

static void make_directory(char directory[SERVER_PATH_MAX])
{
    const char *base = getenv("TMPDIR");
    if (base == NULL || strlen(base) > 60) {
        base = "/tmp";
    }
    (void)snprintf(directory, SERVER_PATH_MAX, "%s/dlock-test-XXXXXX", base);
    if (mkdtemp(directory) == NULL) {
        broken("no temporary directory: %s", strerror(errno));
    }
    struct entry *entry = entry_new();
    memcpy(entry->directory, directory, SERVER_PATH_MAX);
}

/* -------------------------------------------------------------------------- time, descriptors */

int64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t cpu_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void pause_ms(int64_t span)
{
    int64_t end = now_ms() + span;
    for (int64_t left = span; left > 0; left = end - now_ms()) {
        struct timespec rest = {(time_t)(left / 1000), (long)(left % 1000) * 1000000};
        (void)nanosleep(&rest, NULL);
    }
}

void await(const atomic_int *value, int expected)
{
    int64_t end = now_ms() + 20000;
    while (atomic_load(value) != expected) {
        if (now_ms() > end) {
            broken("still %d, not %d", atomic_load(value), expected);
        }
        pause_ms(1);
    }
}

void took(int64_t start, int64_t low, int64_t high, const char *file, int line)
{
    int64_t span = now_ms() - start;
    if (span < low - 2 || span > 2 * high + 500) {
        print_error("took %lld ms, expected %lld to %lld\n", (long long)span, (long long)low,
                    (long long)high);
        _fail(file, line);
    }
}

static int files_in(const char *directory)
{
    int count = 0;
    DIR *stream = opendir(directory);
    if (stream == NULL) {
        broken("cannot list %s: %s", directory, strerror(errno));
    }
    while (readdir(stream) != NULL) {
        count++;
    }
    (void)closedir(stream);
    return count - 2;       /* "." and ".." */
}

int descriptors(void)
{
    return files_in("/proc/self/fd") - 1;   /* the directory itself */
}

int threads(void)
{
    return files_in("/proc/self/task");
}

void watchdog(unsigned seconds)
{
    tidy_prepare();
    (void)alarm(seconds);
}

int free_port(void)
{
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0) {
        broken("no free port: %s", strerror(errno));
    }
    (void)close(fd);
    return ntohs(address.sin_port);
}

bool has_ipv6(void)
{
    struct sockaddr_in6 address;
    memset(&address, 0, sizeof address);
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_loopback;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool has = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0) {
        (void)close(fd);
    }
    return has;
}

/* ----------------------------------------------------------------------------------- children */

/* After fork: die with the test program, leave its handlers and its alarm behind. */
static void become_child(pid_t parent)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(98);
    }
    (void)setpgid(0, 0);
    (void)signal(SIGINT, SIG_DFL);
    (void)signal(SIGTERM, SIG_DFL);
    (void)signal(SIGABRT, SIG_DFL);
}

static void close_above(int last, int except)
{
    struct rlimit limit;
    int end = 1024;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 4096) {
        end = (int)limit.rlim_cur;
    }
    for (int fd = last + 1; fd < end; fd++) {
        if (fd != except) {
            (void)close(fd);
        }
    }
}

pid_t child_start(int (*body)(void *argument), void *argument)
{
    struct entry *entry = entry_new();
    pid_t parent = getpid();
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        broken("fork: %s", strerror(errno));
    }
    if (pid == 0) {
        become_child(parent);
        _exit(body(argument));
    }
    (void)setpgid(pid, pid);
    entry->pid = pid;
    return pid;
}

int child_wait(pid_t pid)
{
    int status = 0;
    pid_t got = 0;
    do {
        got = waitpid(pid, &status, 0);
    } while (got < 0 && errno == EINTR);
    for (size_t i = 0; i < ENTRIES_MAX; i++) {
        if (entries[i].used && entries[i].pid == pid) {
            entries[i].pid = 0;
            entries[i].used = false;
        }
    }
    if (got != pid) {
        broken("waitpid: %s", strerror(errno));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void child_fail(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: in a child: not so: %s\n", file, line, condition);
    _exit(1);
}

void *shared_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        broken("mmap: %s", strerror(errno));
    }
    return memory;
}

/* -------------------------------------------------------------------------------- side by side */

/* A machine that stood still for so long may have cost a test its lease: it is run again. */
enum { SIDES_MAX = 8, SIDE_TRIES = 3, STANDSTILL_MS = 200 };

struct side {
    pid_t pid;                          /* 0 = free             */
    const struct CMUnitTest *test;
    FILE *output;
    int tries;
    int64_t standstill;                 /* the longest so far   */
};

/* One test, as a group of its own. A process that is told to end tidies up first. */
_Noreturn static void side_body(const struct side *side, pid_t parent)
{
    tidy_prepare();
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent || dup2(fileno(side->output), 1) < 0 ||
        dup2(fileno(side->output), 2) < 0) {
        _exit(98);
    }
    exit(_cmocka_run_group_tests("tests", side->test, 1, NULL, NULL) == 0 ? 0 : 1);
}

static void side_start(struct side *side)
{
    pid_t parent = getpid();
    side->tries++;
    side->standstill = 0;
    side->output = tmpfile();
    (void)fflush(NULL);
    side->pid = side->output != NULL ? fork() : -1;
    if (side->pid == 0) {
        side_body(side, parent);
    }
    if (side->pid < 0) {
        fprintf(stderr, "no file or process for a test: %s\n", strerror(errno));
        exit(1);
    }
}

/* Shows what a test has printed. What does not count begins with a blank: run.sh counts lines. */
static void side_show(FILE *output, bool counts)
{
    char line[512];
    rewind(output);
    while (fgets(line, sizeof line, output) != NULL) {
        printf("%s%s", counts ? "" : "  ", line);
    }
    (void)fclose(output);
    (void)fflush(stdout);
}

/* A test has ended: is it done with? */
static bool side_end(struct side *side, int status, bool *failed)
{
    bool again = status != 0 && side->tries < SIDE_TRIES && side->standstill > STANDSTILL_MS;
    side_show(side->output, !again);
    if (again) {
        printf("  the machine stood still for %lld ms meanwhile: once more\n",
               (long long)side->standstill);
        side_start(side);
        return false;
    }
    if (WIFSIGNALED(status)) {
        printf("%s was ended by signal %d\n", side->test->name, WTERMSIG(status));
    }
    *failed = *failed || status != 0;
    side->pid = 0;
    return true;
}

int run_side_by_side(const struct CMUnitTest *tests, size_t count, int processes)
{
    struct side sides[SIDES_MAX];
    size_t started = 0;
    size_t ended = 0;
    bool failed = false;
    memset(sides, 0, sizeof sides);
    while (ended < count) {
        int64_t before = now_ms();
        int64_t gap = 0;
        for (int i = 0; i < processes && i < SIDES_MAX; i++) {
            int status = 0;
            if (sides[i].pid > 0 && waitpid(sides[i].pid, &status, WNOHANG) == sides[i].pid) {
                ended += side_end(&sides[i], status, &failed) ? 1 : 0;
            }
            if (sides[i].pid == 0 && started < count) {
                memset(&sides[i], 0, sizeof sides[i]);
                sides[i].test = &tests[started++];
                side_start(&sides[i]);
            }
        }
        pause_ms(2);
        gap = now_ms() - before - 2;
        for (int i = 0; i < SIDES_MAX; i++) {
            sides[i].standstill = gap > sides[i].standstill ? gap : sides[i].standstill;
        }
    }
    return failed ? 1 : 0;
}

/* ----------------------------------------------------------------------------------- a server */

/* Options that Redis 6.2 to 8 and Valkey all have. */
static size_t server_arguments(const struct server *server, char port[16], const char **list)
{
    size_t n = 0;
    list[n++] = "--port";
    list[n++] = port;
    list[n++] = "--unixsocket";
    list[n++] = server->socket;
    list[n++] = "--save";
    list[n++] = "";
    list[n++] = "--appendonly";
    list[n++] = "no";
    list[n++] = "--daemonize";
    list[n++] = "no";
    list[n++] = "--bind";
    list[n++] = "127.0.0.1";
    list[n++] = "-::1";
    for (size_t i = 0; server->options[i] != NULL; i++) {
        list[n++] = server->options[i];
    }
    list[n] = NULL;
    (void)snprintf(port, 16, "%d", server->port);
    return n;
}

_Noreturn static void server_exec(const struct server *server, pid_t parent)
{
    const char *program = getenv("DLOCK_TEST_SERVER");
    const char *list[SERVER_OPTIONS_MAX + 24] = {NULL};
    char data[SERVER_PATH_MAX + 8];
    char log[SERVER_PATH_MAX + 16];
    char port[16];
    sigset_t none;
    become_child(parent);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    close_above(2, -1);
    (void)snprintf(data, sizeof data, "%s/data", server->directory);
    (void)snprintf(log, sizeof log, "%s/server.log", server->directory);
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0) {
        _exit(126);
    }
    if (program == NULL || program[0] == '\0') {
        program = "redis-server";
    }
    /* A path, a name in PATH, or a command with arguments of its own (ld.so ... server). */
    bool words = strchr(program, ' ') != NULL && access(program, X_OK) != 0;
    const char **arguments = list + 4;
    (void)server_arguments(server, port, arguments);
    if (words) {
        char line[4096];
        (void)snprintf(line, sizeof line, "cd '%s' && exec %s \"$@\"", data, program);
        *--arguments = "server";
        *--arguments = line;
        *--arguments = "-c";
        *--arguments = "sh";
        (void)execv("/bin/sh", (char *const *)(uintptr_t)arguments);
        _exit(127);
    }
    char path[4096];
    *--arguments = program;
    if (strchr(program, '/') != NULL && realpath(program, path) != NULL) {
        program = path;
    }
    if (chdir(data) == 0) {
        (void)execvp(program, (char *const *)(uintptr_t)arguments);
    }
    fprintf(stderr, "cannot execute %s: %s\n", program, strerror(errno));
    _exit(127);
}

static void server_show_log(const struct server *server)
{
    char path[SERVER_PATH_MAX + 16];
    char line[512];
    (void)snprintf(path, sizeof path, "%s/server.log", server->directory);
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        print_error("  server: %s", line);
    }
    if (file != NULL) {
        (void)fclose(file);
    }
}

/* A connection to the socket, without a word said. */
static redisContext *server_dial(const struct server *server)
{
    struct timeval limit = {RAW_TIMEOUT_MS / 1000, 0};
    redisContext *raw = redisConnectUnixWithTimeout(server->socket, limit);
    if (raw != NULL && raw->err != 0) {
        redisFree(raw);
        return NULL;
    }
    if (raw != NULL) {
        (void)redisSetTimeout(raw, limit);
        (void)fcntl(raw->fd, F_SETFD, FD_CLOEXEC);
    }
    return raw;
}

/* Any reply will do: one that is loading its data answers, too. */
static bool server_answers(const struct server *server)
{
    redisContext *raw = server_dial(server);
    redisReply *reply = raw != NULL ? (redisReply *)redisCommand(raw, "PING") : NULL;
    bool answers = reply != NULL;
    if (reply != NULL) {
        freeReplyObject(reply);
    }
    if (raw != NULL) {
        redisFree(raw);
    }
    return answers;
}

static void server_launch(struct server *server)
{
    int64_t end = now_ms() + START_MS;
    pid_t parent = getpid();
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        broken("fork: %s", strerror(errno));
    }
    if (pid == 0) {
        server_exec(server, parent);
    }
    (void)setpgid(pid, pid);
    server->pid = pid;
    server->stopped = false;
    entry_set_pid(server->directory, pid);
    while (!server_answers(server)) {
        bool dead = waitpid(pid, NULL, WNOHANG) == pid;
        if (dead || now_ms() > end) {
            server->pid = dead ? 0 : pid;
            entry_set_pid(server->directory, server->pid);
            server_show_log(server);
            broken("no server: \"%s\" %s (DLOCK_TEST_SERVER names another program)",
                   getenv("DLOCK_TEST_SERVER") != NULL ? getenv("DLOCK_TEST_SERVER")
                                                       : "redis-server",
                   dead ? "ended at once" : "does not answer");
        }
        pause_ms(2);
    }
    server->raw = server_connect(server);
    server->owner = parent;
    server->own_bytes = 0;
}

void server_start(struct server *server, bool tcp, const char *const *options)
{
    memset(server, 0, sizeof *server);
    make_directory(server->directory);
    char data[SERVER_PATH_MAX + 8];
    (void)snprintf(data, sizeof data, "%s/data", server->directory);
    if (mkdir(data, 0700) != 0) {
        broken("no directory %s: %s", data, strerror(errno));
    }
    (void)snprintf(server->socket, sizeof server->socket, "%.90s/redis.sock", server->directory);
    (void)snprintf(server->url, sizeof server->url, "unix://%s", server->socket);
    for (size_t i = 0; options != NULL && options[i] != NULL && i < SERVER_OPTIONS_MAX; i++) {
        server->options[i] = options[i];
        if (i > 0 && strcmp(options[i - 1], "--requirepass") == 0) {
            server->password = options[i];
        }
    }
    server->port = tcp ? free_port() : 0;
    server_launch(server);
}

void server_kill(struct server *server)
{
    if (server->raw != NULL && server->owner == getpid()) {
        redisFree(server->raw);
    }
    server->raw = NULL;
    if (server->pid > 0) {
        (void)kill(-server->pid, SIGKILL);
        (void)kill(server->pid, SIGKILL);
        (void)waitpid(server->pid, NULL, 0);
        entry_set_pid(server->directory, 0);
    }
    server->pid = 0;
    server->stopped = false;
}

void server_revive(struct server *server)
{
    (void)unlink(server->socket);
    server_launch(server);
}

void server_restart(struct server *server, bool keep, const char *const *options)
{
    char dump[SERVER_PATH_MAX + 16];
    (void)snprintf(dump, sizeof dump, "%s/data/dump.rdb", server->directory);
    if (keep) {
        server_do(server, "SAVE");
    } else {
        (void)unlink(dump);
    }
    server_kill(server);
    if (options != NULL) {
        memset(server->options, 0, sizeof server->options);
        for (size_t i = 0; options[i] != NULL && i < SERVER_OPTIONS_MAX; i++) {
            server->options[i] = options[i];
        }
    }
    server_revive(server);
}

void server_stop(struct server *server)
{
    char data[SERVER_PATH_MAX + 8];
    if (server->directory[0] == '\0') {
        return;
    }
    server_kill(server);
    (void)snprintf(data, sizeof data, "%s/data", server->directory);
    remove_all(data);
    remove_all(server->directory);
    entry_drop(0, server->directory);
    server->directory[0] = '\0';
}

void server_pause(struct server *server)
{
    int status = 0;
    if (server->pid <= 1) {     /* -0 and -1 would be everybody */
        broken("there is no server to stop");
    }
    (void)kill(-server->pid, SIGSTOP);
    if (waitpid(server->pid, &status, WUNTRACED) != server->pid || !WIFSTOPPED(status)) {
        broken("the server did not stop");
    }
    server->stopped = true;
}

void server_continue(struct server *server)
{
    (void)kill(-server->pid, SIGCONT);
    server->stopped = false;
}

/* ------------------------------------------------------------------------------- raw commands */

redisContext *server_connect(const struct server *server)
{
    redisContext *raw = server_dial(server);
    if (raw == NULL) {
        broken("cannot connect to the server: %s", strerror(errno));
    }
    if (server->password != NULL) {
        redisReply *reply = (redisReply *)redisCommand(raw, "AUTH %s", server->password);
        if (reply == NULL || reply->type == REDIS_REPLY_ERROR) {
            broken("AUTH: %s", reply != NULL ? reply->str : raw->errstr);
        }
        freeReplyObject(reply);
    }
    return raw;
}

static redisReply *server_ask(struct server *server, const char *format, va_list arguments)
{
    char *command = NULL;
    void *reply = NULL;
    if (server->raw == NULL || server->owner != getpid()) {
        broken("no raw connection in this process for %s", format);
    }
    int length = redisvFormatCommand(&command, format, arguments);
    if (length < 0) {
        broken("cannot format %s", format);
    }
    server->own_bytes += length;
    int sent = redisAppendFormattedCommand(server->raw, command, (size_t)length);
    redisFreeCommand(command);
    if (sent != REDIS_OK || redisGetReply(server->raw, &reply) != REDIS_OK) {
        broken("%s: %s", format, server->raw->errstr);
    }
    return (redisReply *)reply;
}

redisReply *server_command(struct server *server, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = server_ask(server, format, arguments);
    va_end(arguments);
    return reply;
}

void server_do(struct server *server, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = server_ask(server, format, arguments);
    va_end(arguments);
    if (reply->type == REDIS_REPLY_ERROR) {
        broken("%s: %s", format, reply->str);
    }
    freeReplyObject(reply);
}

int64_t server_integer(struct server *server, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = server_ask(server, format, arguments);
    va_end(arguments);
    if (reply->type != REDIS_REPLY_INTEGER) {
        broken("%s: not an integer: %s", format, reply->str != NULL ? reply->str : "");
    }
    int64_t value = reply->integer;
    freeReplyObject(reply);
    return value;
}

void server_text(struct server *server, char *text, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = server_ask(server, format, arguments);
    va_end(arguments);
    if (reply->type == REDIS_REPLY_INTEGER) {
        (void)snprintf(text, size, "%lld", reply->integer);
    } else {
        (void)snprintf(text, size, "%s", reply->str != NULL ? reply->str : "(nil)");
    }
    freeReplyObject(reply);
}

/* The number behind `name` + ':' or '=' in a text; -1 if it is not there. */
static int64_t number_behind(const char *text, const char *name)
{
    const char *at = strstr(text, name);
    return at != NULL ? strtoll(at + strlen(name), NULL, 10) : -1;
}

int64_t server_info(struct server *server, const char *section, const char *field)
{
    char name[64];
    (void)snprintf(name, sizeof name, "\n%s:", field);
    redisReply *reply = server_command(server, "INFO %s", section);
    int64_t value = reply->str != NULL ? number_behind(reply->str, name) : -1;
    freeReplyObject(reply);
    return value;
}

int64_t server_calls(struct server *server, const char *command)
{
    char name[64];
    int64_t calls = 0;
    (void)snprintf(name, sizeof name, "\ncmdstat_%s:", command);
    redisReply *reply = server_command(server, "INFO commandstats");
    const char *at = reply->str != NULL ? strstr(reply->str, name) : NULL;
    if (at != NULL) {
        calls = number_behind(at, "calls=") + number_behind(at, "rejected_calls=");
    }
    freeReplyObject(reply);
    return calls;
}

int64_t server_scripts(struct server *server)
{
    return server_calls(server, "eval") + server_calls(server, "evalsha");
}

int64_t server_heard(struct server *server)
{
    int64_t total = server_info(server, "stats", "total_net_input_bytes");
    return total - server->own_bytes;
}

int64_t server_time(struct server *server)
{
    redisReply *reply = server_command(server, "TIME");
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2) {
        broken("TIME: no array");
    }
    int64_t seconds = strtoll(reply->element[0]->str, NULL, 10);
    int64_t micros = strtoll(reply->element[1]->str, NULL, 10);
    freeReplyObject(reply);
    return seconds * 1000000 + micros;
}

/* ------------------------------------------------------------------------- who waits in line */

enum { LINE_MS = 10000 };

int64_t line_length(struct server *server, const char *key)
{
    return server_integer(server, "ZCARD {%s}:queue", key);
}

void line_wait(struct server *server, const char *key, int64_t length)
{
    int64_t end = now_ms() + LINE_MS;
    int64_t is;
    while ((is = line_length(server, key)) != length) {
        if (now_ms() > end) {
            broken("%lld stand in line for %s, not %lld", (long long)is, key, (long long)length);
        }
        pause_ms(1);
    }
}

void line_ticket(struct server *server, const char *key, int place, char ticket[TICKET_MAX])
{
    redisReply *reply = server_command(server, "ZRANGE {%s}:queue %d %d", key, place, place);
    bool one = reply->type == REDIS_REPLY_ARRAY && reply->elements == 1;
    (void)snprintf(ticket, TICKET_MAX, "%s", one ? reply->element[0]->str : "");
    freeReplyObject(reply);
}

int64_t line_score(struct server *server, const char *key, const char *ticket)
{
    char text[64];
    server_text(server, text, sizeof text, "ZSCORE {%s}:queue %s", key, ticket);
    return text[0] == '(' ? -1 : (int64_t)strtod(text, NULL);
}

int64_t inboxes(struct server *server)
{
    redisReply *reply = server_command(server, "PUBSUB CHANNELS dlock:*");
    int64_t count = reply->type == REDIS_REPLY_ARRAY ? (int64_t)reply->elements : -1;
    freeReplyObject(reply);
    return count;
}

void inboxes_wait(struct server *server, int64_t count)
{
    int64_t end = now_ms() + LINE_MS;
    int64_t is;
    while ((is = inboxes(server)) != count) {
        if (now_ms() > end) {
            broken("%lld inboxes are subscribed, not %lld", (long long)is, (long long)count);
        }
        pause_ms(1);
    }
}

void line_is_over(struct server *server, const char *key)
{
    int64_t end = now_ms() + LINE_MS;
    while (server_integer(server, "EXISTS %s {%s}:queue", key, key) != 0) {
        if (now_ms() > end) {
            broken("something is left of %s", key);
        }
        pause_ms(1);
    }
}

void server_soon(struct server *server, const char *question, int64_t answer)
{
    int64_t end = now_ms() + 10000;
    int64_t last = server_integer(server, question);
    while (last != answer && now_ms() < end) {
        pause_ms(2);
        last = server_integer(server, question);
    }
    if (last != answer) {
        broken("%s: still %lld, not %lld", question, (long long)last, (long long)answer);
    }
}

/* ------------------------------------------------------------------------------------ a proxy */

enum { PROXY_ANSWER_MAX = 65536, PROXY_WORD_MAX = 16 };

/* Written by the test while nothing is under way, by the proxy when a fault was done. */
struct proxy_control {
    atomic_int generation;              /* of the plan                  */
    atomic_int seen;                    /* the one the proxy is at work with */
    atomic_int fired;
    atomic_int accepted;
    int fault;
    int skip;
    int times;
    int bytes;
    int delay_ms;
    int repeat;
    char word[PROXY_WORD_MAX];
    size_t answer_length;
    char answer[PROXY_ANSWER_MAX];
};

struct pair {
    int client;                         /* -1 = free slot */
    int upstream;
    int generation;                     /* of the plan that the counts belong to */
    int up;
    int down;
    enum proxy_fault doom;              /* what the word has brought upon it */
    bool answered;
    char tail[PROXY_WORD_MAX + 8];      /* the last bytes towards the server */
};

static int listen_unix(const char *path)
{
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(fd, 64) != 0) {
        broken("proxy cannot listen: %s", strerror(errno));
    }
    return fd;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        (void)close(fd);
        fd = -1;
    }
    return fd;
}

static bool send_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        data += sent;
        length -= (size_t)sent;
    }
    return true;
}

static void pair_close(struct pair *pair)
{
    if (pair->client >= 0) {
        (void)close(pair->client);
    }
    if (pair->upstream >= 0) {
        (void)close(pair->upstream);
    }
    pair->client = -1;
    pair->upstream = -1;
}

static void fire(struct proxy_control *control)
{
    atomic_fetch_add(&control->fired, 1);
    if (control->times > 0 && --control->times == 0) {
        control->fault = PROXY_PASS;
    }
}

/* Counts belong to a plan: a new one starts them again, on old connections too. */
static void pair_refresh(struct pair *pair, const struct proxy_control *control)
{
    int generation = atomic_load(&control->generation);
    if (pair->generation != generation) {
        pair->generation = generation;
        pair->up = 0;
        pair->down = 0;
        pair->doom = PROXY_PASS;
        pair->answered = false;
    }
}

/* Does "\r\n" word "\r\n" end here? A command's name stands like that on the wire. No word is
 * any command. */
static bool word_ends(const struct pair *pair, const char *word)
{
    size_t length = strlen(word);
    const char *end = pair->tail + sizeof pair->tail;
    if (length == 0) {
        return end[-1] == '*';
    }
    return memcmp(end - 2, "\r\n", 2) == 0 && strncasecmp(end - 2 - length, word, length) == 0 &&
           memcmp(end - 4 - length, "\r\n", 2) == 0;
}

static void watch_words(struct pair *pair, struct proxy_control *control, const char *data,
                        size_t length)
{
    bool by_word = control->fault == PROXY_SWALLOW || control->fault == PROXY_HANG_UP ||
                   control->fault == PROXY_EXTRA;
    for (size_t i = 0; i < length; i++) {
        memmove(pair->tail, pair->tail + 1, sizeof pair->tail - 1);
        pair->tail[sizeof pair->tail - 1] = data[i];
        if (!by_word || pair->doom != PROXY_PASS || !word_ends(pair, control->word)) {
            continue;
        }
        if (control->skip > 0) {
            control->skip--;
            continue;
        }
        pair->doom = (enum proxy_fault)control->fault;
        fire(control);
        by_word = control->fault != PROXY_PASS;
    }
}

/* Bytes from the client. */
static void pair_up(struct pair *pair, struct proxy_control *control)
{
    char data[16384];
    ssize_t got = recv(pair->client, data, sizeof data, 0);
    if (got <= 0) {
        pair_close(pair);
        return;
    }
    size_t length = (size_t)got;
    if (control->fault == PROXY_ANSWER) {
        for (int i = 0; !pair->answered && i < control->repeat; i++) {
            if (!send_all(pair->client, control->answer, control->answer_length)) {
                pair_close(pair);
                break;
            }
        }
        pair->answered = true;
        fire(control);
        return;
    }
    watch_words(pair, control, data, length);
    bool cut = control->fault == PROXY_CUT_REQUEST && pair->up + (int)length >= control->bytes;
    if (cut) {
        length = (size_t)(control->bytes - pair->up);
    }
    pair->up += (int)length;
    if (!send_all(pair->upstream, data, length) || cut) {
        pair_close(pair);
    }
    if (cut) {
        fire(control);
    }
}

/* Bytes from the server. */
static void pair_down(struct pair *pair, struct proxy_control *control)
{
    char data[16384];
    size_t room = control->fault == PROXY_DRIP ? 1 : sizeof data - 1024;
    ssize_t got = recv(pair->upstream, data, room, 0);
    if (got <= 0 || pair->doom == PROXY_HANG_UP) {
        pair_close(pair);
        return;
    }
    size_t length = (size_t)got;
    if (pair->doom == PROXY_SWALLOW) {
        return;
    }
    if (pair->doom == PROXY_EXTRA && control->answer_length < 1024) {
        memcpy(data + length, control->answer, control->answer_length);
        length += control->answer_length;
        pair->doom = PROXY_PASS;
    }
    if (control->fault == PROXY_DRIP) {
        pause_ms(control->delay_ms);
    }
    bool cut = control->fault == PROXY_CUT_REPLY && pair->down + (int)length >= control->bytes;
    if (cut) {
        length = (size_t)(control->bytes - pair->down);
    }
    pair->down += (int)length;
    if (!send_all(pair->client, data, length) || cut) {
        pair_close(pair);
    }
    if (cut) {
        fire(control);
    }
}

/* Bytes that nobody asked for. */
static void speak(struct pair *pairs, struct proxy_control *control)
{
    for (size_t i = 0; i < PAIRS_MAX; i++) {
        if (pairs[i].client >= 0) {
            (void)send_all(pairs[i].client, control->answer, control->answer_length);
        }
    }
    control->times = 1;
    fire(control);
}

static void proxy_accept(struct pair *pairs, struct proxy_control *control, int listener,
                         const char *upstream)
{
    struct timeval limit = {1, 0};
    int fd = accept(listener, NULL, NULL);
    atomic_fetch_add(&control->accepted, 1);
    for (size_t i = 0; fd >= 0 && i < PAIRS_MAX; i++) {
        if (pairs[i].client >= 0) {
            continue;
        }
        if (control->fault == PROXY_REFUSE) {
            fire(control);
            break;
        }
        memset(&pairs[i], 0, sizeof pairs[i]);
        pairs[i].client = fd;
        pairs[i].upstream = connect_unix(upstream);
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        if (pairs[i].upstream < 0) {
            pair_close(&pairs[i]);
        }
        return;
    }
    (void)close(fd);
}

struct proxy_arguments {
    struct proxy_control *control;
    int listener;
    const char *upstream;
};

static int proxy_body(void *argument)
{
    const struct proxy_arguments *given = (const struct proxy_arguments *)argument;
    struct proxy_control *control = given->control;
    struct pair pairs[PAIRS_MAX];
    struct pollfd waits[1 + 2 * PAIRS_MAX];
    close_above(2, given->listener);
    (void)signal(SIGALRM, SIG_DFL);
    for (size_t i = 0; i < PAIRS_MAX; i++) {
        pairs[i].client = -1;
        pairs[i].upstream = -1;
    }
    while (getppid() > 1) {
        bool stall = control->fault == PROXY_STALL;
        waits[0].fd = given->listener;
        waits[0].events = POLLIN;
        for (size_t i = 0; i < PAIRS_MAX; i++) {
            waits[1 + 2 * i].fd = stall ? -1 : pairs[i].client;
            waits[1 + 2 * i].events = POLLIN;
            waits[2 + 2 * i].fd = stall ? -1 : pairs[i].upstream;
            waits[2 + 2 * i].events = POLLIN;
        }
        if (poll(waits, 1 + 2 * PAIRS_MAX, 2) < 0) {
            continue;
        }
        if (control->fault == PROXY_SPEAK) {
            speak(pairs, control);
        }
        atomic_store(&control->seen, atomic_load(&control->generation));
        for (size_t i = 0; i < PAIRS_MAX; i++) {
            pair_refresh(&pairs[i], control);
            if (waits[1 + 2 * i].revents != 0 && pairs[i].client >= 0) {
                pair_up(&pairs[i], control);
            }
            if (waits[2 + 2 * i].revents != 0 && pairs[i].upstream >= 0) {
                pair_down(&pairs[i], control);
            }
        }
        if (waits[0].revents != 0) {
            proxy_accept(pairs, control, given->listener, given->upstream);
        }
    }
    return 0;
}

void proxy_start(struct proxy *proxy, const struct server *server)
{
    struct proxy_arguments arguments;
    memset(proxy, 0, sizeof *proxy);
    make_directory(proxy->directory);
    (void)snprintf(proxy->socket, sizeof proxy->socket, "%.90s/proxy.sock", proxy->directory);
    (void)snprintf(proxy->url, sizeof proxy->url, "unix://%s", proxy->socket);
    proxy->control = (struct proxy_control *)shared_memory(sizeof *proxy->control);
    arguments.control = proxy->control;
    arguments.listener = listen_unix(proxy->socket);
    arguments.upstream = server->socket;
    proxy->pid = child_start(proxy_body, &arguments);
    (void)close(arguments.listener);
}

void proxy_stop(struct proxy *proxy)
{
    if (proxy->directory[0] == '\0') {
        return;
    }
    (void)kill(proxy->pid, SIGKILL);
    (void)child_wait(proxy->pid);
    (void)munmap(proxy->control, sizeof *proxy->control);
    entry_drop(0, proxy->directory);
    proxy->directory[0] = '\0';
}

void proxy_set(struct proxy *proxy, const struct proxy_plan *plan)
{
    struct proxy_control *control = proxy->control;
    control->fault = PROXY_PASS;
    atomic_store(&control->fired, 0);
    control->skip = plan->skip;
    control->times = plan->times;
    control->bytes = plan->bytes;
    control->delay_ms = plan->delay_ms;
    control->repeat = plan->repeat > 0 ? plan->repeat : 1;
    control->answer_length = plan->answer_length;
    if (plan->answer != NULL) {
        size_t length = plan->answer_length > 0 ? plan->answer_length : strlen(plan->answer);
        control->answer_length = length <= PROXY_ANSWER_MAX ? length : PROXY_ANSWER_MAX;
        memcpy(control->answer, plan->answer, control->answer_length);
    }
    (void)snprintf(control->word, sizeof control->word, "%s", plan->word != NULL ? plan->word : "");
    control->fault = (int)plan->fault;
    atomic_fetch_add(&control->generation, 1);
    /* Whatever was under way with the old plan has passed once it has seen the new one. */
    int64_t end = now_ms() + 5000;
    while (atomic_load(&control->seen) != atomic_load(&control->generation)) {
        if (now_ms() > end) {
            broken("the proxy is stuck");
        }
        struct timespec rest = {0, 200000};
        (void)nanosleep(&rest, NULL);
    }
}

int proxy_fired(const struct proxy *proxy)
{
    return atomic_load(&proxy->control->fired);
}

int proxy_accepted(const struct proxy *proxy)
{
    return atomic_load(&proxy->control->accepted);
}
