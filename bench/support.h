/* What the benchmarks share: a private server, children, what machine this is, counters, options,
 * the arithmetic and the words of the tables.
 *
 * Included by exactly one file of a program, behind dlock.h with its implementation, because it
 * replaces malloc for the whole of it. The private server and the children end whatever happens: at
 * the end of their scope, on Ctrl-C (which only sets a flag), and when this process is killed
 * (PR_SET_PDEATHSIG). */
#ifndef BENCH_SUPPORT_H
#define BENCH_SUPPORT_H

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ----------------------------------------------------------------------- heap allocations */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define BENCH_COUNTS_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BENCH_COUNTS_ALLOCATIONS 0
#endif
#endif
#ifndef BENCH_COUNTS_ALLOCATIONS
#define BENCH_COUNTS_ALLOCATIONS 1
#endif

static uint64_t bench_allocations;

/* The program's own malloc stands before the C library's, for shared libraries too; --wrap would
 * miss what hiredis allocates. What takes aligned memory is not counted: nobody here does. */
#if BENCH_COUNTS_ALLOCATIONS
extern "C" {
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);

void *malloc(size_t size) noexcept
{
    __atomic_fetch_add(&bench_allocations, 1, __ATOMIC_RELAXED);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) noexcept
{
    __atomic_fetch_add(&bench_allocations, 1, __ATOMIC_RELAXED);
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) noexcept
{
    __atomic_fetch_add(&bench_allocations, 1, __ATOMIC_RELAXED);
    return __libc_realloc(old, size);
}
}
#endif

namespace bench {

/* Does hiredis's malloc really come here? If not, a count of 0 would say nothing. */
inline bool allocations_are_counted()
{
    uint64_t before = bench_allocations;
    redisReader *reader = redisReaderCreate();
    bool counted = bench_allocations > before;
    redisReaderFree(reader);
    return counted;
}

/* ---------------------------------------------------------------------- user instructions */

/* Instructions of this thread in user space; many virtual machines cannot count them. */
class instructions {
public:
    instructions()
    {
        perf_event_attr what = perf_event_attr();
        what.type = PERF_TYPE_HARDWARE;
        what.size = sizeof what;
        what.config = PERF_COUNT_HW_INSTRUCTIONS;
        what.exclude_kernel = 1;
        what.exclude_hv = 1;
        fd_ =
            static_cast<int>(syscall(SYS_perf_event_open, &what, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
        errno_ = errno;
    }
    ~instructions()
    {
        if (fd_ >= 0) {
            close(fd_);
        }
    }
    instructions(const instructions &) = delete;
    instructions &operator=(const instructions &) = delete;

    bool available() const { return fd_ >= 0; }
    const char *why_not() const { return strerror(errno_); }

    uint64_t read() const
    {
        uint64_t count = 0;
        return fd_ >= 0 && ::read(fd_, &count, sizeof count) == sizeof count ? count : 0;
    }

private:
    int fd_;
    int errno_;
};

/* --------------------------------------------------------------------------- interruption */

static volatile sig_atomic_t interrupted; /* the signal; 0 = none */

inline void on_signal(int signal)
{
    interrupted = signal;
}

/* The first Ctrl-C asks for an orderly end; a second one ends the program at once. */
inline void catch_signals()
{
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
        sigaction(signal, &action, nullptr);
    }
    signal(SIGPIPE, SIG_IGN); /* hiredis's write would die of it */
}

inline double seconds(const timespec &at)
{
    return static_cast<double>(at.tv_sec) + static_cast<double>(at.tv_nsec) * 1e-9;
}

inline double now_seconds()
{
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return seconds(now);
}

/* All processes of a machine share this clock. */
inline int64_t now_ns()
{
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

inline void pause_ms(long span)
{
    timespec left = {span / 1000, span % 1000 * 1000000};
    nanosleep(&left, nullptr);
}

/* ------------------------------------------------------------------------------ processors */

/* This process, and the children it starts from now on, run on one processor only: the last one
 * it may use, because the first ones serve interrupts. Returns its number, or -1. */
inline int pin()
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return -1;
    }
    for (size_t cpu = CPU_SETSIZE; cpu-- > 0;) {
        if (CPU_ISSET(cpu, &allowed)) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            return sched_setaffinity(0, sizeof one, &one) == 0 ? static_cast<int>(cpu) : -1;
        }
    }
    return -1;
}

/* Processor time that a process has used, in seconds; 0 = not known. */
inline double processor_seconds_of(pid_t pid)
{
    clockid_t clock = 0;
    timespec used = {};
    bool known =
        pid > 0 && clock_getcpuclockid(pid, &clock) == 0 && clock_gettime(clock, &used) == 0;
    return known ? seconds(used) : 0;
}

/* Processor time that all programs on this machine have used, what the host took away included. */
inline double machine_seconds()
{
    FILE *file = fopen("/proc/stat", "re");
    unsigned long long user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0;
    unsigned long long stolen = 0;
    int count = file == nullptr ? 0
                                : fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user,
                                         &nice, &system, &idle, &wait, &irq, &soft, &stolen);
    if (file != nullptr) {
        fclose(file);
    }
    return count < 8 ? 0
                     : static_cast<double>(user + nice + system + irq + soft + stolen) /
                           static_cast<double>(sysconf(_SC_CLK_TCK));
}

/* What this machine is, in one line; and how busy, because whatever else runs is measured too. */
inline std::string machine()
{
    utsname system = {};
    uname(&system);
    std::string model = system.machine;
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[512];
    while (file != nullptr && fgets(line, sizeof line, file) != nullptr) {
        const char *colon = strstr(line, ": ");
        if (strncmp(line, "model name", 10) == 0 && colon != nullptr) {
            model = colon + 2;
            model.erase(model.find_last_not_of(" \n") + 1);
            break;
        }
    }
    if (file != nullptr) {
        fclose(file);
    }
    double load = 0;
    char busy[32] = "";
    if (getloadavg(&load, 1) == 1) {
        snprintf(busy, sizeof busy, ", load %.1f", load);
    }
    return model + ", " + std::to_string(sysconf(_SC_NPROCESSORS_ONLN)) + " processors" + busy +
           ", " + system.sysname + " " + system.release;
}

/* What compiled this, and how. BENCH_BUILD is the build's to define. */
inline std::string compiler()
{
#ifdef __clang__
    std::string text = __VERSION__;
#else
    std::string text = "gcc " __VERSION__;
#endif
#ifdef BENCH_BUILD
    text += std::string(", ") + BENCH_BUILD;
#elif defined(__OPTIMIZE__)
    text += ", optimised (flags not recorded)";
#endif
#ifndef __OPTIMIZE__
    text += ", NOT OPTIMISED";
#endif
    return text;
}

/* -------------------------------------------------------------------------- private server */

/* A loopback port that nobody listens on just now; 0 = none. */
inline int free_port()
{
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    sockaddr *generic = reinterpret_cast<sockaddr *>(&address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool found =
        fd >= 0 && bind(fd, generic, length) == 0 && getsockname(fd, generic, &length) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return found ? ntohs(address.sin_port) : 0;
}

/* A path as it stands in a URL. */
inline std::string percent_coded(const std::string &path)
{
    std::string coded;
    for (char letter : path) {
        unsigned char byte = static_cast<unsigned char>(letter);
        char text[4] = {letter, 0, 0, 0};
        if (!isalnum(byte) && strchr("/-._~", byte) == nullptr) {
            snprintf(text, sizeof text, "%%%02X", byte);
        }
        coded += text;
    }
    return coded;
}

/* $DLOCK_TEST_SERVER, or redis-server, without persistence, in a temporary directory, on a unix
 * socket and perhaps on a loopback port. */
class server {
public:
    server() = default;
    ~server() { stop(); }
    server(const server &) = delete;
    server &operator=(const server &) = delete;

    /* Returns when it answers. False: error() says why. */
    bool start(bool tcp)
    {
        const char *place = getenv("TMPDIR");
        std::string pattern = place != nullptr && *place != '\0' ? place : P_tmpdir;
        pattern += "/dlock-bench-XXXXXX";
        if (mkdtemp(&pattern[0]) == nullptr) {
            error_ = "no temporary directory " + pattern + ": " + strerror(errno);
            return false;
        }
        directory_ = pattern;
        socket_ = directory_ + "/socket";
        port_ = tcp ? free_port() : 0;
        url_ =
            tcp ? "redis://127.0.0.1:" + std::to_string(port_) : "unix://" + percent_coded(socket_);
        pid_t parent = getpid();
        pid_ = fork();
        if (pid_ == 0) {
            run(parent);
        }
        return pid_ > 0 && wait_until_it_answers();
    }

    void stop()
    {
        if (pid_ > 0) {
            kill(pid_, SIGKILL); /* it holds nothing that anybody wants */
            waitpid(pid_, nullptr, 0);
            pid_ = 0;
        }
        if (!directory_.empty()) {
            remove_directory();
            directory_.clear();
        }
    }

    redisContext *connect() const
    {
        timeval limit = {5, 0};
        return port_ != 0 ? redisConnectWithTimeout("127.0.0.1", port_, limit)
                          : redisConnectUnixWithTimeout(socket_.c_str(), limit);
    }

    /* Processor time that this process and the server have used, in seconds; 0 = not known. */
    double processor_seconds() const
    {
        double theirs = processor_seconds_of(pid_);
        double ours = processor_seconds_of(getpid());
        return theirs > 0 && ours > 0 ? theirs + ours : 0;
    }

    pid_t pid() const { return pid_; }
    const std::string &url() const { return url_; }
    const std::string &error() const { return error_; }

private:
    /* The child. A session of its own: the terminal's Ctrl-C is for the parent to act upon. */
    [[noreturn]] void run(pid_t parent)
    {
        const char *program = getenv("DLOCK_TEST_SERVER");
        program = program != nullptr && *program != '\0' ? program : "redis-server";
        std::string port = std::to_string(port_);
        std::string log = directory_ + "/log";
        setsid();
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_RDWR);
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        if (getppid() == parent) {
            execlp(program, program, "--port", port.c_str(), "--bind", "127.0.0.1", "--unixsocket",
                   socket_.c_str(), "--dir", directory_.c_str(), "--logfile", log.c_str(), "--save",
                   "", "--appendonly", "no", "--daemonize", "no", static_cast<char *>(nullptr));
            fprintf(stderr, "%s: %s (Debian: apt install redis-server)\n", program,
                    strerror(errno));
        }
        _exit(127);
    }

    bool wait_until_it_answers()
    {
        for (int i = 0; i < 500 && interrupted == 0; i++) {
            if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
                pid_ = 0;
                error_ = "the private server ended at once";
                return false;
            }
            redisContext *context = connect();
            bool connected = context != nullptr && context->err == 0;
            redisReply *reply = nullptr;
            if (connected) {
                reply = static_cast<redisReply *>(redisCommand(context, "PING"));
            }
            bool answers = reply != nullptr && reply->type == REDIS_REPLY_STATUS;
            freeReplyObject(reply);
            if (context != nullptr) {
                redisFree(context);
            }
            if (answers) {
                return true;
            }
            pause_ms(10);
        }
        error_ = "the private server does not answer";
        return false;
    }

    void remove_directory() const
    {
        DIR *directory = opendir(directory_.c_str());
        while (dirent *entry = directory != nullptr ? readdir(directory) : nullptr) {
            unlinkat(dirfd(directory), entry->d_name, 0); /* "." and ".." refuse */
        }
        if (directory != nullptr) {
            closedir(directory);
        }
        rmdir(directory_.c_str());
    }

    pid_t pid_ = 0;
    int port_ = 0;
    std::string directory_;
    std::string socket_;
    std::string url_;
    std::string error_;
};

/* A field of INFO, such as "redis_version"; "" = not there. */
inline std::string server_info(redisContext *context, const char *field)
{
    redisReply *reply = static_cast<redisReply *>(redisCommand(context, "INFO server"));
    std::string text = reply != nullptr && reply->str != nullptr ? reply->str : "";
    freeReplyObject(reply);
    std::string label = std::string("\n") + field + ":";
    size_t at = text.find(label);
    if (at == std::string::npos) {
        return "";
    }
    at += label.size();
    return text.substr(at, text.find_first_of("\r\n", at) - at);
}

inline std::string server_version(redisContext *context)
{
    std::string valkey = server_info(context, "valkey_version");
    return valkey.empty() ? "Redis " + server_info(context, "redis_version") : "Valkey " + valkey;
}

/* -------------------------------------------------------------------------------- children */

/* Zeroed memory that this process and its children share. */
template <typename content> class shared_memory {
public:
    shared_memory()
    {
        void *place = mmap(nullptr, sizeof(content), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        content_ = place == MAP_FAILED ? nullptr : static_cast<content *>(place);
    }
    ~shared_memory()
    {
        if (content_ != nullptr) {
            munmap(content_, sizeof(content));
        }
    }
    shared_memory(const shared_memory &) = delete;
    shared_memory &operator=(const shared_memory &) = delete;

    content *get() const { return content_; }   /* NULL: no memory */

private:
    content *content_;
};

/* Forked processes, which end at the latest with this object or with its process. */
class children {
public:
    children() = default;
    ~children() { stop(); }
    children(const children &) = delete;
    children &operator=(const children &) = delete;

    /* Runs body(argument, number) in a new process; number counts from 0. */
    bool start(void (*body)(void *argument, size_t number), void *argument)
    {
        pid_t parent = getpid();
        fflush(nullptr); /* or the child prints it again */
        pid_t pid = fork();
        if (pid == 0) {
            setsid(); /* the terminal's Ctrl-C is for the parent to act upon */
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() == parent) {
                body(argument, pids_.size());
            }
            _exit(0); /* no destructors: the server is the parent's */
        }
        if (pid > 0) {
            pids_.push_back(pid);
        }
        return pid > 0;
    }

    /* Has one of them ended? */
    bool ended() const
    {
        siginfo_t what = siginfo_t();
        for (pid_t pid : pids_) {
            what.si_pid = 0;
            if (waitid(P_PID, static_cast<id_t>(pid), &what, WEXITED | WNOHANG | WNOWAIT) != 0 ||
                what.si_pid != 0) {
                return true;
            }
        }
        return false;
    }

    double processor_seconds() const
    {
        double all = 0;
        for (pid_t pid : pids_) {
            all += processor_seconds_of(pid);
        }
        return all;
    }

    void stop()
    {
        for (pid_t pid : pids_) {
            kill(pid, SIGKILL);
        }
        for (pid_t pid : pids_) {
            waitpid(pid, nullptr, 0);
        }
        pids_.clear();
    }

private:
    std::vector<pid_t> pids_;
};

/* ---------------------------------------------------------------------- options and facts */

struct settings {
    double seconds = 0;
    const char *url = nullptr;
    bool tcp = false;
    bool check = false;
};

/* False: the usage was wrong, or asked for; *status is the exit status. */
inline bool read_settings(int argc, char **argv, const char *usage, settings *wanted, int *status)
{
    bool good = true;
    for (int i = 1; i < argc && good; i++) {
        const std::string option = argv[i];
        const char *value = i + 1 < argc ? argv[i + 1] : nullptr;
        if (option == "--help") {
            fputs(usage, stdout);
            *status = 0;
            return false;
        } else if (option == "--check") {
            wanted->check = true;
        } else if (option == "--tcp") {
            wanted->tcp = true;
        } else if (option == "--seconds" && value != nullptr) {
            char *end = nullptr;
            wanted->seconds = strtod(value, &end);
            good = end != value && *end == '\0' && wanted->seconds > 0 && wanted->seconds < 1e6;
            i++;
        } else if (option == "--url" && value != nullptr) {
            wanted->url = value;
            i++;
        } else {
            good = false;
        }
    }
    good = good && !(wanted->tcp && wanted->url != nullptr);
    if (!good) {
        fputs(usage, stderr);
        *status = 2;
    }
    return good;
}

/* Machine, server and program: what stands above every table. `placed` says on which processors. */
inline void show_facts(const settings &wanted, redisContext *context, const std::string &placed)
{
    std::string where = "a server of yours";
    if (wanted.url == nullptr) {
        where = std::string("private, no persistence, by ") +
                (wanted.tcp ? "loopback TCP" : "unix socket");
    }
    printf("machine  %s, %s\n", machine().c_str(), placed.c_str());
    printf("server   %s, %s\n", server_version(context).c_str(), where.c_str());
    printf("program  %s; hiredis %d.%d.%d, dlock %d.%d.%d\n", compiler().c_str(), HIREDIS_MAJOR,
           HIREDIS_MINOR, HIREDIS_PATCH, DLOCK_VERSION_MAJOR, DLOCK_VERSION_MINOR,
           DLOCK_VERSION_PATCH);
    fflush(stdout);
}

/* Blocking hiredis at the server that a URL names. NULL: *failure says why. */
inline redisContext *connect_url(const char *text, std::string *failure)
{
    dlock_error error = dlock_error();
    std::unique_ptr<dlocki_url> url(new dlocki_url());
    if (!dlocki_url_parse(text, url.get(), &error)) {
        *failure = error.text;
        return nullptr;
    }
    redisContext *context = url->is_unix ? redisConnectUnix(url->host)
                                         : redisConnect(url->host, static_cast<int>(url->port));
    redisReply *reply = nullptr;
    if (context != nullptr && context->err == 0 && url->username_length > 0) {
        reply = static_cast<redisReply *>(redisCommand(context, "AUTH %b %b", url->username,
                                                       url->username_length, url->password,
                                                       url->password_length));
    } else if (context != nullptr && context->err == 0 && url->has_password) {
        reply = static_cast<redisReply *>(
            redisCommand(context, "AUTH %b", url->password, url->password_length));
    }
    bool good = reply == nullptr || reply->type == REDIS_REPLY_STATUS;
    freeReplyObject(reply);
    if (good && context != nullptr && context->err == 0 && url->database != 0) {
        reply = static_cast<redisReply *>(
            redisCommand(context, "SELECT %d", static_cast<int>(url->database)));
        good = reply != nullptr && reply->type == REDIS_REPLY_STATUS;
        freeReplyObject(reply);
    }
    if (good && context != nullptr && context->err == 0) {
        return context;
    }
    *failure = !good                ? "the server does not take this password or database"
               : context != nullptr ? context->errstr
                                    : "no memory";
    if (context != nullptr) {
        redisFree(context);
    }
    return nullptr;
}

/* -------------------------------------------------------------------- numbers and progress */

/* The value below which so large a share of them lies; 0.5 is the median. */
inline double quantile(std::vector<double> values, double share)
{
    if (values.empty()) {
        return 0;
    }
    std::sort(values.begin(), values.end());
    double place = share * static_cast<double>(values.size() - 1);
    size_t below = static_cast<size_t>(place);
    size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (values[above] - values[below]) * (place - static_cast<double>(below));
}

inline double median(const std::vector<double> &values)
{
    return quantile(values, 0.5);
}

inline std::string number(const char *format, double value)
{
    char text[64];
    snprintf(text, sizeof text, format, value);
    return text;
}

/* One measure to another, round by round, so that a machine whose speed drifts changes both. */
struct ratio {
    double middle;
    std::string text;   /* median (least .. most) */
};

inline ratio ratio_of(const std::vector<double> &ours, const std::vector<double> &floor,
                      const char *format = "%.2f ")
{
    std::vector<double> all;
    for (size_t i = 0; i < ours.size() && i < floor.size(); i++) {
        all.push_back(floor[i] > 0 ? ours[i] / floor[i] : 0);
    }
    double middle = median(all);
    return {middle, number(format, middle) + number("(%.2f .. ", quantile(all, 0)) +
                        number("%.2f)", quantile(all, 1))};
}

/* A line on stderr that says how far it is: for a terminal, and only if it takes a while. */
class progress {
public:
    explicit progress(double seconds) : start_(now_seconds()), seconds_(seconds) {}
    ~progress() { clear(); }
    progress(const progress &) = delete;
    progress &operator=(const progress &) = delete;

    void show(const char *what)
    {
        double spent = now_seconds() - start_;
        if (isatty(STDERR_FILENO) != 0 && spent > 2 && spent - shown_ >= 0.2) {
            shown_ = spent;
            fprintf(stderr, "\r%.0f of about %.0f s: %-40s", spent, std::max(seconds_, spent),
                    what);
        }
    }
    void clear()
    {
        if (shown_ > 0) {
            fprintf(stderr, "\r%70s\r", "");
            shown_ = 0;
        }
    }

private:
    double start_;
    double seconds_;
    double shown_ = 0;
};

/* Whatever else runs is measured too: how much of one processor did other programs take? */
class bystanders {
public:
    void begin(double ours)
    {
        ours_ = ours;
        all_ = machine_seconds();
        since_ = now_seconds();
    }
    double share(double ours) const
    {
        double others = machine_seconds() - all_ - (ours - ours_);
        return std::max(0.0, others / (now_seconds() - since_));
    }

private:
    double ours_ = 0;
    double all_ = 0;
    double since_ = 0;
};

}  // namespace bench

#endif /* BENCH_SUPPORT_H */
