/* What the benchmarks share: a private server, what machine this is, and two counters.
 *
 * Included by exactly one file of a program, because it replaces malloc for the whole of it. The
 * private server ends whatever happens: at the end of its scope, on Ctrl-C (which only sets a
 * flag), and when this process is killed (PR_SET_PDEATHSIG). */
#ifndef BENCH_SUPPORT_H
#define BENCH_SUPPORT_H

#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
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
        clockid_t clock = 0;
        timespec theirs = {};
        timespec ours = {};
        if (pid_ <= 0 || clock_getcpuclockid(pid_, &clock) != 0 ||
            clock_gettime(clock, &theirs) != 0 ||
            clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ours) != 0) {
            return 0;
        }
        return seconds(theirs) + seconds(ours);
    }

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

}  // namespace bench

#endif /* BENCH_SUPPORT_H */
