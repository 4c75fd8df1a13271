/* What does acquire + release cost when nobody else wants the lock?
 *
 * The answer is a ratio to a floor measured in the same run: SET key owner NX PX n, and EVALSHA of
 * compare-and-delete, both in bare blocking hiredis, the least that any lock of this kind can do.
 * Client and server share one processor: where the system places the two changes a round trip by
 * a factor of four, and that would be all one sees. The variants take turns in short batches, and
 * a ratio is always one of two batches of the same round, so that a machine whose speed drifts
 * slows both alike.
 *
 * Every ratio is measured twice: by the clock, and by the processor time of client and server
 * together. On one processor that nobody else wants the two agree; where other programs run, the
 * second is hardly disturbed by them, so the targets are held against that one if it is known.
 *
 * On a unix socket a blocking read, as hiredis does it, is woken once for nothing: by the server
 * taking the command off the socket. Who waits with poll or epoll is spared that, about 2 us a
 * command, and it is in the figures. On TCP there is no such thing: --tcp shows the other half. */

#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "support.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

namespace {

enum { EXPIRY_MS = DLOCK_DEFAULT_EXPIRY_MS, ROUNDS_LEAST = 5, WARM_UP = 300 };

const double BATCH_SECONDS = 0.02;

const char USAGE[] =
    "usage: uncontended [--seconds N] [--tcp | --url URL] [--check]\n"
    "What does acquire + release cost when nobody else wants the lock?\n"
    "  --seconds N  measure for about so long (default 10)\n"
    "  --tcp        the private server is reached by loopback TCP, not by its unix socket\n"
    "  --url URL    use this server instead of a private one; then nothing is pinned\n"
    "  --check      exit status 1 if a target is missed\n"
    "  --help       this text\n";

/* One way to take and give back a lock, and what was measured of it. */
struct variant {
    const char *name;
    const char *title;
    double target;                      /* the ratio to the floor; 0 = none                */
    std::function<bool()> pair;         /* acquire and release; false: `failure` says why  */
    std::vector<double> seconds = {};   /* per pair, one entry for each round              */
    std::vector<double> processor = {}; /* the same, in processor time                     */
    uint64_t pairs = 0;
    uint64_t allocations = 0;
    uint64_t instructions = 0;
};

/* What is read before and after a batch. */
struct meters {
    const bench::instructions &instructions;
    const bench::server &server;
};

std::string failure;

/* ----------------------------------------------------------------------------- the floor */

/* As fast as blocking hiredis goes: argument vectors, not format strings, which cost another 4 %.
 * The owner is as long and as random to the eye as ours, but drawn by a cheap generator. */
class floor_lock {
public:
    floor_lock(redisContext *context, const std::string &key) : context_(context), key_(key)
    {
        redisReply *reply = static_cast<redisReply *>(redisCommand(
            context, "SCRIPT LOAD %s",
            "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) "
            "else return 0 end"));
        if (reply != nullptr && reply->type == REDIS_REPLY_STRING) {
            sha_.assign(reply->str, reply->len);
        }
        freeReplyObject(reply);
    }

    bool pair()
    {
        draw_owner();
        const std::string expiry = std::to_string(EXPIRY_MS); /* short: no allocation */
        const char *set[] = {"SET", key_.c_str(), owner_, "NX", "PX", expiry.c_str()};
        const size_t set_lengths[] = {3, key_.size(), OWNER_LENGTH, 2, 2, expiry.size()};
        const char *del[] = {"EVALSHA", sha_.c_str(), "1", key_.c_str(), owner_};
        const size_t del_lengths[] = {7, sha_.size(), 1, key_.size(), OWNER_LENGTH};
        return ask(6, set, set_lengths, REDIS_REPLY_STATUS, "OK", 0) &&
               ask(5, del, del_lengths, REDIS_REPLY_INTEGER, nullptr, 1);
    }

private:
    enum { OWNER_LENGTH = 36 };

    void draw_owner()
    {
        for (int word = 0; word < 3; word++) {
            random_ ^= random_ << 13;
            random_ ^= random_ >> 7;
            random_ ^= random_ << 17;
            for (int i = 0; i < 12; i++) {
                owner_[12 * word + i] = "0123456789abcdef"[random_ >> (4 * i) & 15];
            }
        }
    }

    bool ask(int count, const char **words, const size_t *lengths, int type, const char *text,
             long long number)
    {
        redisReply *reply =
            static_cast<redisReply *>(redisCommandArgv(context_, count, words, lengths));
        bool good = reply != nullptr && reply->type == type &&
                    (text != nullptr ? strcmp(reply->str, text) == 0 : reply->integer == number);
        if (!good) {
            failure = std::string("the floor's ") + words[0] + ": " +
                      (reply == nullptr        ? context_->errstr
                       : reply->str != nullptr ? reply->str
                                               : "an unexpected reply");
        }
        freeReplyObject(reply);
        return good;
    }

    redisContext *context_;
    std::string key_;
    std::string sha_;
    char owner_[OWNER_LENGTH + 1] = "";
    uint64_t random_ = 88172645463325252u;
};

/* ------------------------------------------------------------------------------- measuring */

bool dlock_pair(dlock_factory *factory, const char *key, const dlock_options *options)
{
    dlock_lock lock = DLOCK_INIT;
    if (!dlock_acquire(factory, &lock, key, options) || !dlock_release(&lock)) {
        failure = std::string("dlock: ") + dlock_why(&lock)->text;
        return false;
    }
    return true;
}

void measure(benchmark::State &state, variant *what, const meters *read)
{
    uint64_t allocations = bench_allocations;
    uint64_t instructions = read->instructions.read();
    double processor = read->server.processor_seconds();
    for (auto _ : state) {
        if (!what->pair()) {
            state.SkipWithError("see below");
            break;
        }
    }
    processor = read->server.processor_seconds() - processor;
    what->instructions += read->instructions.read() - instructions;
    what->allocations += bench_allocations - allocations;
    what->processor.push_back(processor / static_cast<double>(state.iterations()));
    what->pairs += static_cast<uint64_t>(state.iterations());
}

/* Google Benchmark runs and times one batch; the rounds and the table are ours. */
class collector : public benchmark::BenchmarkReporter {
public:
    bool ReportContext(const Context &) override { return true; }
    void ReportRuns(const std::vector<Run> &runs) override
    {
        for (const Run &run : runs) {
            seconds = run.real_accumulated_time / static_cast<double>(run.iterations);
        }
    }

    double seconds = 0;
};

/* How many pairs make a batch; also warms everything up. 0 = failed. */
int64_t batch_size(std::vector<variant> &variants)
{
    double start = bench::now_seconds();
    int pairs = 0;
    for (int i = 0; i < WARM_UP && bench::now_seconds() - start < 1; i++) {
        for (variant &each : variants) {
            if (!each.pair()) {
                return 0;
            }
            pairs++;
        }
    }
    double seconds = (bench::now_seconds() - start) / pairs;
    return std::max(int64_t(10), static_cast<int64_t>(BATCH_SECONDS / seconds));
}

void show_progress(double spent, double all, double *shown)
{
    bool terminal = isatty(STDERR_FILENO) != 0;
    if (spent - *shown >= (terminal ? 0.2 : 5)) {
        *shown = spent;
        fprintf(stderr, terminal ? "\rmeasuring: %.0f of %.0f s " : "measuring: %.0f of %.0f s\n",
                spent, all);
    }
}

void clear_progress()
{
    if (isatty(STDERR_FILENO) != 0) {
        fprintf(stderr, "\r%40s\r", "");
    }
}

/* Rounds until the time is over; each round every variant once, another one first each time. */
bool run_rounds(std::vector<variant> &variants, double seconds)
{
    collector reporter;
    double start = bench::now_seconds();
    double shown = 0;
    for (size_t round = 0; failure.empty(); round++) {
        double spent = bench::now_seconds() - start;
        if (spent >= seconds && round >= ROUNDS_LEAST) {
            break;
        }
        for (size_t i = 0; i < variants.size() && failure.empty(); i++) {
            variant &next = variants[(round + i) % variants.size()];
            benchmark::RunSpecifiedBenchmarks(&reporter, std::string("^") + next.name + "/");
            if (bench::interrupted != 0) {
                failure = "interrupted";
            }
            next.seconds.push_back(reporter.seconds);
        }
        show_progress(spent, seconds, &shown);
    }
    clear_progress();
    return failure.empty();
}

/* ------------------------------------------------------------------------------- the table */

/* Prints one line. False if a target is missed. */
bool print_variant(const variant &each, const variant &floor, bool counted, bool counts)
{
    bool ours = each.target > 0;
    bool good = !ours || !counted || each.allocations == 0;
    bench::ratio clock = bench::ratio_of(each.seconds, floor.seconds, "%.3f ");
    bench::ratio processor = {clock.middle, "-"};
    if (floor.processor[0] > 0) {
        processor = bench::ratio_of(each.processor, floor.processor, "%.3f ");
    }
    good = good && (!ours || processor.middle <= each.target);
    const char *verdict = !ours ? "" : good ? "met" : "MISSED";
    double pairs = static_cast<double>(each.pairs);
    std::string heap = "-";
    std::string instructions = "-";
    if (counted) {
        heap = each.allocations == 0
                   ? "0"
                   : bench::number("%.2f", static_cast<double>(each.allocations) / pairs);
    }
    if (counts) {
        instructions = bench::number("%.0f", static_cast<double>(each.instructions) / pairs);
    }
    printf("%-34s %6.2f  %-21s %-21s %-7s %-6s %5s %6s\n", each.title,
           bench::median(each.seconds) * 1e6, clock.text.c_str(), processor.text.c_str(),
           ours ? bench::number("<= %.2f", each.target).c_str() : "", verdict, heap.c_str(),
           instructions.c_str());
    return good;
}

bool print_table(const std::vector<variant> &variants, const bench::instructions &counter)
{
    const char *heading = "%-34s %6s  %-21s %-21s %-14s %5s %6s\n";
    bool counted = bench::allocations_are_counted();
    bool good = true;
    putchar('\n');
    printf(heading, "acquire + release", "median", "ratio to the floor,", "the same", "target",
           "heap", "user");
    printf(heading, "", "us", "median (least .. most)", "by processor time", "", "alloc", "instr.");
    for (const variant &each : variants) {
        good = print_variant(each, variants[0], counted, counter.available()) && good;
    }
    if (variants[0].processor[0] <= 0) {
        printf("processor time of the server: not available here\n");
    } else if (bench::median(variants[0].seconds) > 1.2 * bench::median(variants[0].processor)) {
        printf("OTHER PROGRAMS had the processor for much of the time, and its caches: all ratios "
               "are too high, run it again alone\n");
    }
    if (!counted) {
        printf("heap allocations: not available here\n");
    }
    if (!counter.available()) {
        printf("user instructions: not available here (%s)\n", counter.why_not());
    }
    return good;
}

/* ------------------------------------------------------------------------------- the program */

/* On which processors everything runs. */
std::string placed(const bench::settings &wanted, int processor)
{
    if (processor >= 0) {
        return "server and client pinned to processor " + std::to_string(processor);
    }
    return wanted.url != nullptr ? "nothing is pinned" : "NOT pinned: the system does not allow it";
}

/* Measures and prints. The exit status. */
int answer(const bench::settings &wanted, const bench::server &server, redisContext *context,
           dlock_factory *factory)
{
    const std::string prefix = "dlock:bench:" + std::to_string(std::random_device()()) + ":";
    const std::string keys[] = {prefix + "0", prefix + "1", prefix + "2"};
    floor_lock floor(context, keys[0]);
    dlock_options plain = dlock_options();
    plain.no_fence = true;
    std::vector<variant> variants = {
        {"floor", "bare hiredis: SET NX PX + EVALSHA", 0, [&] { return floor.pair(); }},
        {"fence", "dlock, every default", 1.25,
         [&] { return dlock_pair(factory, keys[1].c_str(), nullptr); }},
        {"no_fence", "dlock, no_fence, one attempt", 1.00,
         [&] { return dlock_pair(factory, keys[2].c_str(), &plain); }},
    };
    bench::instructions counter;
    const meters read = {counter, server};
    int64_t pairs = batch_size(variants);
    for (variant &each : variants) {
        variant *what = &each;
        benchmark::RegisterBenchmark(
            each.name, [what, &read](benchmark::State &state) { measure(state, what, &read); })
            ->Iterations(pairs)
            ->UseRealTime();
    }
    bool measured = pairs > 0 && run_rounds(variants, wanted.seconds);
    for (const std::string &key : keys) { /* leave nothing behind on a server of the user's */
        freeReplyObject(redisCommand(context, "DEL %s {%s}:fence", key.c_str(), key.c_str()));
    }
    if (!measured) {
        fprintf(stderr, "%s\n", failure.c_str());
        return bench::interrupted != 0 ? 128 + bench::interrupted : 1;
    }
    printf("rounds   %zu, in each a batch of %lld pairs of every variant\n",
           variants[0].seconds.size(), static_cast<long long>(pairs));
    return print_table(variants, counter) || !wanted.check ? 0 : 1;
}

}  // namespace

int main(int argc, char **argv)
{
    bench::settings wanted;
    int status = 1;
    wanted.seconds = 10;
    if (!bench::read_settings(argc, argv, USAGE, &wanted, &status)) {
        return status;
    }
    bench::catch_signals();
    bench::server server;
    int processor = -1;
    if (wanted.url == nullptr) {
        processor = bench::pin();
        if (!server.start(wanted.tcp)) {
            fprintf(stderr, "%s\n", server.error().c_str());
            return 1;
        }
    }
    const char *url = wanted.url != nullptr ? wanted.url : server.url().c_str();
    redisContext *context = bench::connect_url(url, &failure);
    dlock_error error = dlock_error();
    dlock_factory *factory = dlock_open(url, nullptr, &error);
    if (context == nullptr || factory == nullptr) {
        fprintf(stderr, "%s\n", context == nullptr ? failure.c_str() : error.text);
    } else {
        timeval limit = {5, 0};
        redisSetTimeout(context, limit);
        bench::show_facts(wanted, context, placed(wanted, processor));
        status = answer(wanted, server, context, factory);
    }
    dlock_close(factory);
    if (context != nullptr) {
        redisFree(context);
    }
    return status;
}
