/* What do many locks in one factory cost?
 *
 * Many threads: 64 of them share one factory, each with a key of its own, and acquire and release
 * as fast as they can; the floor is one thread alone with the same factory, in the same run. They
 * take turns in short batches, and the ratio is always one of two batches of the same round.
 * Nothing is pinned: as in real life the system places threads and server.
 *
 * Many locks: 10 000 of them, auto-renewed, with a lease of 30 seconds. How much of a processor
 * does it take to keep them? It is the processor time of this process, not the server's, over a
 * window in which nothing is done but renew, once by an event loop, once by the library's own
 * thread. What a window of another length would have shown follows from the renewals that fell
 * into it: renewed at a third of their leases, 10 000 locks need about 1000 a second. Both shares,
 * the one measured and that one, must be below the target. No lock may be lost: each must still be
 * ours when it is given back, as the server says. */

#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "support.h"

#include <random>

#include <benchmark/benchmark.h>
#include <poll.h>

namespace {

enum { THREADS = 64, LOCKS = 10000, EXPIRY_MS = 30000, ROUNDS_LEAST = 5 };

const double BATCH_SECONDS = 0.1;
const double LEAST_SPEED_UP = 5;
const double MOST_SHARE = 0.05;

const char USAGE[] =
    "usage: many [--seconds N] [--tcp | --url URL] [--check]\n"
    "What do many locks in one factory cost?\n"
    "  --seconds N  watch 10 000 locks being renewed for so long, twice; threads for half as long\n"
    "               (default 20; from 10 on it says something)\n"
    "  --tcp        the private server is reached by loopback TCP, not by its unix socket\n"
    "  --url URL    use this server instead of a private one\n"
    "  --check      exit status 1 if a target is missed (and anyway, if a lock was lost)\n"
    "  --help       this text\n";

std::string failure;

/* What every measurement is given. */
struct scene {
    const bench::settings *wanted;
    const bench::server *server;
    redisContext *context;
    const char *url;
    std::string prefix;
    bench::progress *progress;
};

std::string key_of(const scene &with, size_t number)
{
    return with.prefix + std::to_string(number);
}

/* Was somebody impatient? */
bool go_on()
{
    if (bench::interrupted != 0 && failure.empty()) {
        failure = "interrupted";
    }
    return failure.empty();
}

bool fail(const char *what, const dlock_lock *lock)
{
    if (failure.empty()) {
        failure = std::string(what) + ": " + dlock_why(lock)->text;
    }
    return false;
}

/* --------------------------------------------------------------------------------- many threads */

/* One batch: Google Benchmark starts the threads together and takes the time. */
void pairs(benchmark::State &state, dlock_factory *factory, const scene *with)
{
    std::string key = key_of(*with, static_cast<size_t>(state.thread_index()));
    dlock_lock lock = DLOCK_INIT;
    for (auto _ : state) {
        if (!dlock_acquire(factory, &lock, key.c_str(), nullptr) || !dlock_release(&lock)) {
            state.SkipWithError(dlock_why(&lock)->text);
            break;
        }
    }
}

/* What was measured of so many threads; one entry for each round. */
struct measured {
    std::vector<double> rate;   /* pairs a second                                  */
    std::vector<double> here;   /* processor time of this process, us a pair       */
    std::vector<double> server; /* of the server                                   */
};

/* Takes the numbers out of Google Benchmark; the rounds and the table are ours. */
class collector : public benchmark::BenchmarkReporter {
public:
    bool ReportContext(const Context &) override { return true; }
    void ReportRuns(const std::vector<Run> &runs) override
    {
        for (const Run &run : runs) {
            if (run.error_occurred && failure.empty()) {
                failure = "dlock: " + run.error_message;
            }
            pairs = static_cast<double>(run.iterations);
            rate = pairs / run.real_accumulated_time;
        }
    }

    double pairs = 1;   /* by all threads together */
    double rate = 0;
};

/* One batch of so many pairs, shared among the threads. */
void run_batch(const scene &with, dlock_factory *factory, int threads, double pairs_in_all,
               measured *found)
{
    collector reporter;
    const scene *seen = &with;
    benchmark::ClearRegisteredBenchmarks();
    benchmark::RegisterBenchmark(
        "pairs", [factory, seen](benchmark::State &state) { pairs(state, factory, seen); })
        ->Threads(threads)
        ->Iterations(std::max(int64_t(5), static_cast<int64_t>(pairs_in_all / threads)))
        ->UseRealTime();
    double here = bench::processor_seconds_of(getpid());
    double server = bench::processor_seconds_of(with.server->pid());
    benchmark::RunSpecifiedBenchmarks(&reporter, "pairs");
    here = bench::processor_seconds_of(getpid()) - here;
    server = bench::processor_seconds_of(with.server->pid()) - server;
    found->rate.push_back(reporter.rate);
    found->here.push_back(1e6 * here / reporter.pairs);
    found->server.push_back(1e6 * server / reporter.pairs);
}

/* Rounds until the time is over. False: `failure` says why. */
bool run_rounds(const scene &with, dlock_factory *factory, const int *threads, measured *found)
{
    double start = bench::now_seconds();
    double speed[] = {1000, 1000};
    for (int round = -2; go_on(); round++) { /* the first two learn how much fits into a batch */
        if (round >= ROUNDS_LEAST && bench::now_seconds() - start >= with.wanted->seconds / 2) {
            break;
        }
        for (int i = 0; i < 2 && go_on(); i++) {
            int which = (round & 1) ^ i;
            measured warm_up;
            measured *into = round >= 0 ? &found[which] : &warm_up;
            with.progress->show("threads");
            run_batch(with, factory, threads[which], speed[which] * BATCH_SECONDS, into);
            speed[which] = into->rate.back();
        }
    }
    return failure.empty();
}

void print_threads(int threads, const measured &of, const std::string &rest)
{
    double server = bench::median(of.server);
    printf("%2d thread%s, each its own key %10.0f %11.1f us %11s  %s\n", threads,
           threads == 1 ? " " : "s", bench::median(of.rate), bench::median(of.here),
           server > 0 ? bench::number("%.1f us", server).c_str() : "not known", rest.c_str());
}

/* False: `failure` says why. *good: the target was met. */
bool measure_threads(const scene &with, bool *good)
{
    dlock_error error = dlock_error();
    dlock_factory *factory = dlock_open(with.url, nullptr, &error);
    if (factory == nullptr) {
        failure = error.text;
        return false;
    }
    const int threads[] = {1, THREADS};
    measured found[2];
    bool measured_all = run_rounds(with, factory, threads, found);
    dlock_close(factory);
    if (!measured_all) {
        return false;
    }
    bench::ratio ratio = bench::ratio_of(found[1].rate, found[0].rate);
    *good = ratio.middle >= LEAST_SPEED_UP;
    with.progress->clear();
    printf("\none factory,                    pairs of   processor time per pair   ratio of the "
           "rates\n"
           "acquire + release             a second          here    the server   median (least .. "
           "most)   target\n");
    print_threads(threads[0], found[0], "");
    print_threads(threads[1], found[1],
                  " " + ratio.text + bench::number("   >= %.0f ", LEAST_SPEED_UP) +
                      (*good ? "met" : "MISSED"));
    fflush(stdout);
    return true;
}

/* ----------------------------------------------------------------------------------- many locks */

/* What a window showed. */
struct kept {
    double seconds = 0;     /* of the window, by the clock     */
    double processor = 0;   /* of this process, in seconds     */
    double server = 0;      /* of the server; 0 = not known    */
    uint64_t renewals = 0;
    uint64_t lost = 0;
};

class flock {
public:
    explicit flock(const scene &with) : with_(with), locks_(LOCKS)
    {
        options_.expiry_ms = EXPIRY_MS;
        options_.auto_renew = true;
        options_.on_lost = on_lost;
        options_.user = this;
        dlock_error error = dlock_error();
        factory_ = dlock_open(with.url, nullptr, &error);
        if (factory_ == nullptr) {
            failure = error.text;
        }
    }
    virtual ~flock() { dlock_close(factory_); }
    flock(const flock &) = delete;
    flock &operator=(const flock &) = delete;

    /* False: `failure` says why. */
    bool measure(kept *found)
    {
        if (!failure.empty() || !acquire_all()) {
            return false;
        }
        dlock_stats before = dlock_stats();
        dlock_stats after = dlock_stats();
        dlock_stats_get(factory_, &before);
        double start = bench::now_seconds();
        double processor = bench::processor_seconds_of(getpid());
        double server = bench::processor_seconds_of(with_.server->pid());
        while (go_on() && bench::now_seconds() - start < with_.wanted->seconds) {
            watch();
            with_.progress->show(name());
        }
        found->processor = bench::processor_seconds_of(getpid()) - processor;
        found->server = bench::processor_seconds_of(with_.server->pid()) - server;
        found->seconds = bench::now_seconds() - start;
        dlock_stats_get(factory_, &after);
        found->renewals = after.renewed - before.renewed;
        for (const dlock_lock &each : locks_) {
            missing_ += dlock_is_acquired(&each) ? 0 : 1;
        }
        if (go_on()) {
            release_all();
        }
        found->lost = std::max({missing_, told_, refused_});
        return failure.empty();
    }

    virtual const char *name() const = 0;

protected:
    virtual bool acquire_all() = 0;
    virtual void watch() = 0;         /* for a moment */
    virtual void release_all() = 0;   /* counts in refused_ what was not ours any more */

    const scene &with_;
    dlock_factory *factory_ = nullptr;
    std::vector<dlock_lock> locks_;
    dlock_options options_ = dlock_options();
    uint64_t missing_ = 0;
    uint64_t refused_ = 0;

private:
    static void on_lost(dlock_lock *, void *self) { static_cast<flock *>(self)->told_++; }

    uint64_t told_ = 0; /* by on_lost: one thread at a time drives */
};

class by_loop : public flock {
public:
    explicit by_loop(const scene &with) : flock(with), fd_(dlock_fd(factory_)) {}
    const char *name() const override { return "event loop (dlock_process)"; }

private:
    static void on_done(dlock_lock *lock, bool answer, void *self)
    {
        static_cast<by_loop *>(self)->done(lock, answer);
    }
    void done(dlock_lock *lock, bool answer)
    {
        left_--;
        if (!answer && releasing_) {
            refused_++;
        } else if (!answer) {
            fail("acquire", lock);
        }
    }

    void turn()
    {
        pollfd what = {fd_, POLLIN, 0};
        poll(&what, 1, 200);
        dlock_process(factory_);
    }

    bool acquire_all() override
    {
        left_ = locks_.size();
        for (size_t i = 0; i < locks_.size(); i++) {
            std::string key = key_of(with_, i);
            if (!dlock_acquire_start(factory_, &locks_[i], key.c_str(), &options_, on_done, this)) {
                return fail("dlock_acquire_start", &locks_[i]);
            }
        }
        while (left_ > 0 && go_on()) {
            turn();
        }
        return failure.empty();
    }

    void watch() override { turn(); }

    void release_all() override
    {
        releasing_ = true;
        for (dlock_lock &each : locks_) {
            if (dlock_release_start(&each, on_done, this)) {
                left_++;
            } else {
                refused_++;
            }
        }
        while (left_ > 0 && go_on()) {
            turn();
        }
    }

    int fd_;
    size_t left_ = 0;
    bool releasing_ = false;
};

class by_thread : public flock {
public:
    explicit by_thread(const scene &with) : flock(with) {}
    const char *name() const override { return "the library's own thread"; }

private:
    bool acquire_all() override
    {
        for (size_t i = 0; i < locks_.size() && go_on(); i++) {
            if (!dlock_acquire(factory_, &locks_[i], key_of(with_, i).c_str(), &options_)) {
                return fail("dlock_acquire", &locks_[i]);
            }
        }
        return failure.empty();
    }

    void watch() override { bench::pause_ms(200); }

    void release_all() override
    {
        for (dlock_lock &each : locks_) {
            refused_ += dlock_release(&each) ? 0 : 1;
        }
    }
};

/* Prints one line. False if the target is missed. */
bool print_kept(const char *name, const kept &found, bool first)
{
    if (first) {
        printf(
            "\n%d locks of %d s, auto-renewed   processor here   per renewal  renewals  at %d/s  "
            "the server's   lost  target\n",
            LOCKS, EXPIRY_MS / 1000, LOCKS * 3000 / EXPIRY_MS);
    }
    double renewals = static_cast<double>(found.renewals);
    double share = found.processor / found.seconds;
    double each = renewals > 0 ? found.processor / renewals : 0;
    double full = each * LOCKS * 3000 / EXPIRY_MS;
    bool good = renewals > 0 && std::max(share, full) < MOST_SHARE && found.lost == 0;
    std::string server = found.server > 0
                             ? bench::number("%.1f %%", 100 * found.server / found.seconds)
                             : "not known";
    printf("%-32s %5.2f %% in %4.0f s  %7.1f us  %8.2f  %5.2f %%  %12s  %5llu  < %.0f %% %s\n",
           name, 100 * share, found.seconds, 1e6 * each, renewals / LOCKS, 100 * full,
           server.c_str(), static_cast<unsigned long long>(found.lost), 100 * MOST_SHARE,
           good            ? "met"
           : renewals == 0 ? "UNKNOWN: the window is too short"
                           : "MISSED");
    fflush(stdout);
    return good;
}

/* False: `failure` says why. */
template <typename kind>
bool measure_locks(const scene &with, bool first, bool *good, uint64_t *lost)
{
    kept found;
    kind locks(with);
    bool measured = locks.measure(&found);
    with.progress->clear();
    if (measured) {
        *good = print_kept(locks.name(), found, first) && *good;
        *lost += found.lost;
    }
    return measured;
}

/* ---------------------------------------------------------------------------------- the program */

/* Leave nothing behind on a server of the user's. */
void clean_up(const scene &with)
{
    for (size_t i = 0; i < LOCKS; i++) {
        std::string key = key_of(with, i);
        redisAppendCommand(with.context, "DEL %s {%s}:fence", key.c_str(), key.c_str());
    }
    for (size_t i = 0; i < LOCKS; i++) {
        void *reply = nullptr;
        if (redisGetReply(with.context, &reply) != REDIS_OK) {
            break;
        }
        freeReplyObject(reply);
    }
}

/* Measures and prints. The exit status. */
int answer(const scene &with)
{
    bench::bystanders others;
    others.begin(with.server->processor_seconds());
    bool good = true;
    uint64_t lost = 0;
    bool measured = measure_threads(with, &good) &&
                    measure_locks<by_loop>(with, true, &good, &lost) &&
                    measure_locks<by_thread>(with, false, &good, &lost);
    double share = others.share(with.server->processor_seconds());
    with.progress->clear();
    if (with.wanted->url != nullptr) {
        clean_up(with);
    }
    if (!measured) {
        fprintf(stderr, "%s\n", failure.c_str());
        return bench::interrupted != 0 ? 128 + bench::interrupted : 1;
    }
    if (with.wanted->url == nullptr && share > 0.1) {
        printf("OTHER PROGRAMS used %.0f %% of one processor meanwhile: run it again alone\n",
               100 * share);
    }
    return lost == 0 && (good || !with.wanted->check) ? 0 : 1;
}

}  // namespace

int main(int argc, char **argv)
{
    bench::settings wanted;
    wanted.seconds = 20;
    int status = 1;
    if (!bench::read_settings(argc, argv, USAGE, &wanted, &status)) {
        return status;
    }
    bench::catch_signals();
    bench::server server;
    if (wanted.url == nullptr && !server.start(wanted.tcp)) {
        fprintf(stderr, "%s\n", server.error().c_str());
        return 1;
    }
    const char *url = wanted.url != nullptr ? wanted.url : server.url().c_str();
    redisContext *context = bench::connect_url(url, &failure);
    if (context == nullptr) {
        fprintf(stderr, "%s\n", failure.c_str());
        return 1;
    }
    timeval limit = {5, 0};
    redisSetTimeout(context, limit);
    bench::show_facts(wanted, context, "nothing is pinned");
    bench::progress progress(2.6 * wanted.seconds);
    const std::string prefix = "dlock:bench:" + std::to_string(std::random_device()()) + ":";
    status = answer({&wanted, &server, context, url, prefix, &progress});
    redisFree(context);
    return status;
}
