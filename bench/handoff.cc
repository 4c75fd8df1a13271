/* How long from one owner's release to the next owner's acquire?
 *
 * Processes that all want one key: each acquires, holds it for a moment, and releases. The gap
 * begins before the release is called and ends when the next owner's acquire has returned; both
 * instants are on the one clock that processes of a machine share.
 *
 * The answer is a ratio to a floor measured in the same run: a bare token that LPUSH passes on and
 * BLPOP awaits, in blocking hiredis, among the same processes. It has no lease, no owner and no
 * fence, and a process that dies with it takes it along: nothing that waits on this server can be
 * quicker. The two take turns in short batches, and a ratio is always one of two batches of one
 * round, so that a machine whose speed drifts slows both alike.
 *
 * Nothing is pinned: as in real life the system places server and clients. The first hand-offs of
 * a batch, while the line forms, are not counted, and neither are those after its end, while it
 * dissolves. Two at once inside, an update that was lost, or a fence that did not grow would mean
 * that what is measured here is no lock: they are counted, and must be 0.
 *
 * Google Benchmark, which times what one process does, is no help where the interval begins in one
 * process and ends in another. */

#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "support.h"

#include <cmath>
#include <iterator>
#include <random>

#include <poll.h>
#include <semaphore.h>

namespace {

enum {
    PROCESSES_MOST = 32,
    GAPS_MOST = 1 << 16,   /* of one batch                                               */
    ROUNDS_LEAST = 3,
    ROUNDS_ENOUGH = 8,     /* before fairness is judged                                  */
    SERVED_LEAST = 40,     /* the same, by each process in one batch                     */
    HANDLES_FEW = 2,
    HANDLES_MANY = 1000,
    HANG_SECONDS = 60      /* longer than any lease: whoever is not back by then, never  */
};

enum { FLOOR, OURS, KINDS };

const char USAGE[] =
    "usage: handoff [--seconds N] [--tcp | --url URL] [--check]\n"
    "How long from one owner's release to the next owner's acquire?\n"
    "  --seconds N  measure for about so long (default 40)\n"
    "  --tcp        the private server is reached by loopback TCP, not by its unix socket\n"
    "  --url URL    use this server instead of a private one\n"
    "  --check      exit status 1 if a target is missed (and anyway, if two were inside at once)\n"
    "  --help       this text\n";

std::string failure;

/* ------------------------------------------------------------------------ what processes share */

/* Only who is inside writes here, unless it says otherwise: that is what the lock is for. */
struct board {
    /* the parent's orders, given while nobody is inside */
    int kind;             /* FLOOR or OURS                                            */
    int64_t hold_ns;
    uint64_t skipped;     /* so many entries at the beginning are not counted         */
    int64_t ends_at;

    volatile uint64_t entries;
    uint64_t fence;
    size_t last;          /* who was inside before                                    */
    int64_t released_at;
    int64_t first_at;     /* of the entries that count                                */
    int64_t last_at;
    uint64_t handoffs;    /* of these: from another process                           */
    size_t gaps;
    int64_t gap[GAPS_MOST];

    /* atomic, each process */
    int stop;
    int inside;
    uint64_t overlaps;
    uint64_t old_fences;
    int failed;
    char failure[320];    /* of the first that failed                                 */

    /* each process its own */
    uint64_t entered[PROCESSES_MOST];    /* since the fork                            */
    uint64_t served[PROCESSES_MOST];     /* the same, of those that count             */
    uint64_t commands[PROCESSES_MOST];   /* dlock_stats: sent since the fork          */
    sem_t go[PROCESSES_MOST];
    sem_t done;
};

/* The lock has just been acquired. True: this batch is over, release it and leave. */
bool enter(board *shared, size_t me, uint64_t fence)
{
    int64_t at = bench::now_ns();
    if (__atomic_fetch_add(&shared->inside, 1, __ATOMIC_SEQ_CST) != 0) {
        __atomic_fetch_add(&shared->overlaps, 1, __ATOMIC_RELAXED);
    }
    if (fence != 0 && fence <= shared->fence) {
        __atomic_fetch_add(&shared->old_fences, 1, __ATOMIC_RELAXED);
    }
    shared->fence = fence != 0 ? fence : shared->fence;
    uint64_t entries = shared->entries;
    bool over = at >= shared->ends_at || shared->gaps == GAPS_MOST;
    over = over || __atomic_load_n(&shared->stop, __ATOMIC_RELAXED) != 0;
    if (!over && entries >= shared->skipped) {
        if (shared->first_at == 0) {
            shared->first_at = at;
        } else if (shared->last != me) {
            shared->gap[shared->gaps++] = at - shared->released_at;
            shared->handoffs++;
        }
        shared->last_at = at;
        shared->served[me]++;
    }
    if (!over && shared->hold_ns > 0) {
        timespec span = {shared->hold_ns / 1000000000, shared->hold_ns % 1000000000};
        nanosleep(&span, nullptr);
    }
    shared->entered[me]++;
    shared->entries = entries + 1; /* somebody else's in between would be lost, and seen */
    shared->last = me;
    if (over) {
        __atomic_store_n(&shared->stop, 1, __ATOMIC_RELAXED);
    }
    __atomic_fetch_sub(&shared->inside, 1, __ATOMIC_SEQ_CST);
    shared->released_at = bench::now_ns();
    return over;
}

/* --------------------------------------------------------------------------- the two contenders */

class contender {
public:
    contender() = default;
    virtual ~contender() = default;
    contender(const contender &) = delete;
    contender &operator=(const contender &) = delete;

    /* false: why() says why */
    virtual bool acquire() = 0;
    virtual bool release() = 0;
    virtual std::string why() const = 0;
    virtual uint64_t fence() const { return 0; }
    virtual uint64_t commands() const { return 0; }
};

/* As fast as blocking hiredis goes: argument vectors, not format strings. */
class token : public contender {
public:
    token(const char *url, const std::string &key)
        : context_(bench::connect_url(url, &why_)), key_(key)
    {
    }
    ~token() override
    {
        if (context_ != nullptr) {
            redisFree(context_);
        }
    }

    bool acquire() override
    {
        const char *words[] = {"BLPOP", key_.c_str(), "0"};
        const size_t lengths[] = {5, key_.size(), 1};
        return ask(words, lengths, REDIS_REPLY_ARRAY);
    }
    bool release() override
    {
        const char *words[] = {"LPUSH", key_.c_str(), "t"};
        const size_t lengths[] = {5, key_.size(), 1};
        return ask(words, lengths, REDIS_REPLY_INTEGER);
    }
    std::string why() const override { return "the floor: " + why_; }

private:
    bool ask(const char **words, const size_t *lengths, int type)
    {
        if (context_ == nullptr) {
            return false;
        }
        redisReply *reply =
            static_cast<redisReply *>(redisCommandArgv(context_, 3, words, lengths));
        bool good = reply != nullptr && reply->type == type;
        if (!good) {
            why_ = reply == nullptr        ? context_->errstr
                   : reply->str != nullptr ? reply->str
                                           : "an unexpected reply";
        }
        freeReplyObject(reply);
        return good;
    }

    std::string why_;
    redisContext *context_;
    std::string key_;
};

class ours : public contender {
public:
    ours(const char *url, const std::string &key) : key_(key)
    {
        options_.wait_ms = DLOCK_FOREVER;
        factory_ = dlock_open(url, nullptr, &error_);
    }
    ~ours() override { dlock_close(factory_); }

    bool acquire() override
    {
        return factory_ != nullptr && dlock_acquire(factory_, &lock_, key_.c_str(), &options_);
    }
    bool release() override { return dlock_release(&lock_); }
    std::string why() const override
    {
        return std::string("dlock: ") +
               (factory_ == nullptr ? error_.text : dlock_why(&lock_)->text);
    }
    uint64_t fence() const override { return dlock_fence(&lock_); }
    uint64_t commands() const override
    {
        dlock_stats stats = dlock_stats();
        dlock_stats_get(factory_, &stats);
        return stats.commands;
    }

private:
    std::string key_;
    dlock_options options_ = dlock_options();
    dlock_error error_ = dlock_error();
    dlock_factory *factory_ = nullptr;
    dlock_lock lock_ = DLOCK_INIT;
};

/* -------------------------------------------------------------------------------- the processes */

/* What a process is born with. */
struct inheritance {
    const char *url;
    std::string keys[KINDS];
    board *shared;
};

/* One batch of one process: it stands in line until the batch is over. */
bool take_part(board *shared, size_t me, contender *with)
{
    bool over = false;
    while (!over) {
        if (!with->acquire()) {
            return false;
        }
        over = enter(shared, me, with->fence());
        if (!with->release()) {
            return false;
        }
    }
    return true;
}

/* A process: waits for its order, takes part, says that it is done; until it is killed. */
void live(void *argument, size_t me)
{
    const inheritance *born = static_cast<const inheritance *>(argument);
    board *shared = born->shared;
    token floor(born->url, born->keys[FLOOR]);
    ours own(born->url, born->keys[OURS]);
    contender *with[KINDS] = {&floor, &own};
    for (;;) {
        while (sem_wait(&shared->go[me]) != 0) {
        }
        contender *now = with[shared->kind];
        if (!take_part(shared, me, now) &&
            __atomic_exchange_n(&shared->failed, 1, __ATOMIC_SEQ_CST) == 0) {
            snprintf(shared->failure, sizeof shared->failure, "%s", now->why().c_str());
            __atomic_store_n(&shared->failed, 2, __ATOMIC_SEQ_CST);
        }
        shared->commands[me] = own.commands();
        sem_post(&shared->done);
    }
}

/* Everybody is done. False: `failure` says why. */
bool wait_for(board *shared, const bench::children &workers, size_t count)
{
    double limit = bench::now_seconds() + HANG_SECONDS + static_cast<double>(shared->hold_ns) / 1e9;
    for (size_t i = 0; i < count && failure.empty();) {
        timespec until = {};
        clock_gettime(CLOCK_REALTIME, &until); /* the only clock that sem_timedwait knows */
        until.tv_nsec += 100000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (sem_timedwait(&shared->done, &until) == 0) {
            i++;
        }
        if (bench::interrupted != 0) {
            failure = "interrupted";
        } else if (__atomic_load_n(&shared->failed, __ATOMIC_SEQ_CST) == 2) {
            failure = shared->failure;
        } else if (workers.ended()) {
            failure = "one of the processes has died";
        } else if (bench::now_seconds() > limit) {
            failure = "the processes wait for ever";
        }
    }
    return failure.empty();
}

/* ---------------------------------------------------------------------------------- a scenario */

/* How many processes, holding how long; and what is to be reached, 0 = nothing. */
struct plan {
    size_t processes;
    int64_t hold_ms;
    double share;           /* of the time that there is          */
    double batch_seconds;
    double most_ratio;      /* of the medians                     */
    double least_handoffs;  /* a second                           */
};

const plan PLANS[] = {
    {2, 0, 0.2, 0.1, 1.5, 0},  {8, 0, 0.2, 0.15, 1.5, 9000}, {32, 0, 0.2, 0.25, 1.5, 9000},
    {2, 20, 0.1, 0.5, 1.4, 0}, {8, 20, 0.1, 0.5, 1.4, 0},    {32, 20, 0.1, 0.5, 1.4, 0},
};

/* What was measured of one contender; one entry for each round. */
struct measured {
    std::vector<double> middle;     /* the median gap, in us                */
    std::vector<double> late;       /* its 99th percentile                  */
    std::vector<double> handoffs;   /* a second                             */
    std::vector<uint64_t> served;   /* one entry for each process           */
};

struct scenario : plan {
    explicit scenario(const plan &what) : plan(what) {}

    measured of[KINDS];
    uint64_t asked = 0;     /* commands that the server was sent by ours    */
    uint64_t said = 0;      /* the same, as dlock_stats has it              */
    uint64_t entered = 0;   /* acquisitions of ours                         */
};

struct measuring {
    const inheritance *born;
    redisContext *context;
    const bench::children *workers;
    bench::progress *progress;
    uint64_t overlaps;
    uint64_t lost_updates;
    uint64_t old_fences;
};

/* Commands that the server was sent so far. It counts what scripts call like what it was sent, so
 * that only names count which no script calls; a plain SET among them would be seen in dlock_stats
 * alone, which is why the larger of the two is held against the target. */
uint64_t commands_sent(redisContext *context)
{
    redisReply *reply = static_cast<redisReply *>(redisCommand(context, "INFO commandstats"));
    std::string text = reply != nullptr && reply->str != nullptr ? reply->str : "";
    freeReplyObject(reply);
    uint64_t sent = 0;
    for (const char *name : {"evalsha", "eval", "ping", "subscribe", "unsubscribe", "auth", "hello",
                             "select", "client|setname", "client", "wait", "script|load"}) {
        std::string label = std::string("\ncmdstat_") + name + ":calls=";
        size_t at = text.find(label);
        if (at != std::string::npos) {
            sent += strtoull(text.c_str() + at + label.size(), nullptr, 10);
        }
    }
    return sent;
}

template <typename number> uint64_t sum(const number *values)
{
    uint64_t all = 0;
    for (size_t i = 0; i < PROCESSES_MOST; i++) {
        all += values[i];
    }
    return all;
}

/* One batch with one contender. False: `failure` says why. */
bool run_batch(const measuring &with, const scenario &now, int kind)
{
    board *shared = with.born->shared;
    shared->kind = kind;
    shared->hold_ns = now.hold_ms * 1000000;
    shared->skipped = now.hold_ms > 0 ? 2 : 3 * now.processes;
    shared->entries = 0;
    shared->fence = 0;
    shared->last = PROCESSES_MOST;
    shared->first_at = 0;
    shared->last_at = 0;
    shared->handoffs = 0;
    shared->gaps = 0;
    shared->stop = 0;
    double leading =
        static_cast<double>(shared->skipped * static_cast<uint64_t>(now.hold_ms)) / 1e3;
    shared->ends_at = bench::now_ns() + static_cast<int64_t>((now.batch_seconds + leading) * 1e9);
    if (kind == FLOOR) {
        freeReplyObject(redisCommand(with.context, "LPUSH %s t", with.born->keys[FLOOR].c_str()));
    }
    for (size_t i = 0; i < now.processes; i++) {
        sem_post(&shared->go[i]);
    }
    bool good = wait_for(shared, *with.workers, now.processes);
    if (kind == FLOOR) {
        freeReplyObject(redisCommand(with.context, "DEL %s", with.born->keys[FLOOR].c_str()));
    }
    return good;
}

/* One batch, and what came of it. */
bool measure(measuring *with, scenario *now, int kind)
{
    board *shared = with->born->shared;
    uint64_t entered = sum(shared->entered);
    uint64_t said = sum(shared->commands);
    uint64_t served[PROCESSES_MOST];
    memcpy(served, shared->served, sizeof served);
    uint64_t sent = kind == OURS ? commands_sent(with->context) : 0;
    if (!run_batch(*with, *now, kind)) {
        return false;
    }
    entered = sum(shared->entered) - entered;
    with->lost_updates += entered - shared->entries;
    with->overlaps = shared->overlaps;
    with->old_fences = shared->old_fences;
    if (kind == OURS) {
        now->asked += commands_sent(with->context) - sent;
        now->said += sum(shared->commands) - said;
        now->entered += entered;
    }
    std::vector<double> gaps;
    for (size_t i = 0; i < shared->gaps; i++) {
        gaps.push_back(static_cast<double>(shared->gap[i]) / 1e3);
    }
    measured *of = &now->of[kind];
    of->served.resize(now->processes);
    for (size_t i = 0; i < now->processes; i++) {
        of->served[i] += shared->served[i] - served[i];
    }
    double seconds = static_cast<double>(shared->last_at - shared->first_at) / 1e9;
    of->middle.push_back(bench::median(gaps));
    of->late.push_back(bench::quantile(gaps, 0.99));
    of->handoffs.push_back(seconds > 0 ? static_cast<double>(shared->handoffs) / seconds : 0);
    return true;
}

/* Rounds until the scenario's time is over; in each both contenders, and another one first. */
bool run_scenario(measuring *with, scenario *now, double seconds)
{
    std::string title = std::to_string(now->processes) + " processes, holding " +
                        (now->hold_ms > 0 ? std::to_string(now->hold_ms) + " ms" : "nothing up");
    scenario warm_up(*now); /* connections, caches, and the first asks, which have no inbox yet */
    warm_up.hold_ms = 0;
    warm_up.batch_seconds = 0.05;
    double start = bench::now_seconds();
    if (!run_batch(*with, warm_up, FLOOR) || !run_batch(*with, warm_up, OURS)) {
        return false;
    }
    for (int round = 0; round < ROUNDS_LEAST || bench::now_seconds() - start < seconds; round++) {
        for (int i = 0; i < KINDS; i++) {
            with->progress->show(title.c_str());
            if (!measure(with, now, (round + i) % KINDS)) {
                return false;
            }
        }
    }
    return true;
}

/* ----------------------------------------------------------------- one process, many handles */

/* Handles of one factory that all want one key, driven by a loop with poll. Between two batches
 * whoever is inside rests there, so that the line stays as it is. */
class crowd {
public:
    crowd(const char *url, const std::string &key, size_t count) : key_(key), locks_(count)
    {
        options_.wait_ms = DLOCK_FOREVER;
        dlock_error error = dlock_error();
        factory_ = dlock_open(url, nullptr, &error);
        fd_ = dlock_fd(factory_);
        if (fd_ < 0) {
            failure = std::string("dlock: ") + error.text;
        }
    }
    ~crowd()
    {
        closing_ = true;
        dlock_close(factory_);
    }
    crowd(const crowd &) = delete;
    crowd &operator=(const crowd &) = delete;

    /* Everybody lines up and is served twice. */
    bool line_up()
    {
        for (dlock_lock &each : locks_) {
            stand_in_line(&each);
        }
        goal_ = 2 * locks_.size();
        return run(0);
    }

    /* Hand-offs for so long. False: `failure` says why. */
    bool run(double seconds)
    {
        gaps_.clear();
        served_ = 0;
        ends_at_ = bench::now_ns() + static_cast<int64_t>(seconds * 1e9);
        double limit = bench::now_seconds() + seconds + HANG_SECONDS;
        if (resting_ != nullptr) {
            dlock_lock *lock = resting_;
            resting_ = nullptr;
            give_back(lock);
        }
        while (resting_ == nullptr && failure.empty()) {
            pollfd what = {fd_, POLLIN, 0};
            poll(&what, 1, 1000);
            dlock_process(factory_);
            if (bench::interrupted != 0) {
                failure = "interrupted";
            } else if (bench::now_seconds() > limit) {
                failure = "the handles wait for ever";
            }
        }
        goal_ = 0;
        return failure.empty();
    }

    const std::vector<double> &gaps() const { return gaps_; }
    uint64_t overlaps() const { return overlaps_; }

private:
    static void on_acquired(dlock_lock *lock, bool answer, void *self)
    {
        static_cast<crowd *>(self)->acquired(lock, answer);
    }
    static void on_released(dlock_lock *lock, bool answer, void *self)
    {
        static_cast<crowd *>(self)->released(lock, answer);
    }

    void stand_in_line(dlock_lock *lock)
    {
        if (!dlock_acquire_start(factory_, lock, key_.c_str(), &options_, on_acquired, this)) {
            fail(lock);
        }
    }

    void acquired(dlock_lock *lock, bool answer)
    {
        int64_t at = bench::now_ns();
        if (!answer) {
            fail(lock);
            return;
        }
        overlaps_ += inside_;
        inside_ = true;
        if (last_ != nullptr && last_ != lock) {
            gaps_.push_back(static_cast<double>(at - released_at_) / 1e3);
        }
        served_++;
        if (at >= ends_at_ && served_ >= goal_) {
            resting_ = lock;
        } else {
            give_back(lock);
        }
    }

    void give_back(dlock_lock *lock)
    {
        last_ = lock;
        inside_ = false;
        released_at_ = bench::now_ns();
        if (!dlock_release_start(lock, on_released, this)) {
            fail(lock);
        }
    }

    void released(dlock_lock *lock, bool answer)
    {
        if (!answer) {
            fail(lock);
        } else if (!closing_) {
            stand_in_line(lock);
        }
    }

    void fail(dlock_lock *lock)
    {
        if (!closing_ && failure.empty()) {
            failure = std::string("dlock: ") + dlock_why(lock)->text;
        }
    }

    std::string key_;
    std::vector<dlock_lock> locks_;
    dlock_options options_ = dlock_options();
    dlock_factory *factory_ = nullptr;
    int fd_ = -1;
    dlock_lock *resting_ = nullptr;
    dlock_lock *last_ = nullptr;
    size_t served_ = 0;
    size_t goal_ = 0;
    int64_t ends_at_ = 0;
    int64_t released_at_ = 0;
    std::vector<double> gaps_;
    bool inside_ = false;
    bool closing_ = false;
    uint64_t overlaps_ = 0;
};

struct crowds {
    measured of[2];   /* of the few, of the many */
    uint64_t overlaps = 0;
};

bool run_crowds(const char *url, const std::string &prefix, bench::progress *progress,
                double seconds, crowds *found)
{
    crowd few(url, prefix + "few", HANDLES_FEW);
    crowd many(url, prefix + "many", HANDLES_MANY);
    crowd *both[] = {&few, &many};
    if (!failure.empty() || !few.line_up() || !many.line_up()) {
        return false;
    }
    double start = bench::now_seconds();
    for (int round = 0; round < ROUNDS_LEAST || bench::now_seconds() - start < seconds; round++) {
        for (int i = 0; i < 2; i++) {
            int which = (round + i) % 2;
            progress->show("one process, 2 and 1000 handles");
            if (!both[which]->run(0.1)) {
                return false;
            }
            found->of[which].middle.push_back(bench::median(both[which]->gaps()));
            found->of[which].late.push_back(bench::quantile(both[which]->gaps(), 0.99));
        }
    }
    found->overlaps = few.overlaps() + many.overlaps();
    return true;
}

/* ------------------------------------------------------------------------------------ the table */

/* "<= 1.50 met". A target of 0 is none. */
std::string verdict(double value, double target, bool at_most, const char *format, bool *good)
{
    if (target <= 0) {
        return "";
    }
    bool met = at_most ? value <= target : value >= target;
    *good = *good && met;
    return (at_most ? "<= " : ">= ") + bench::number(format, target) + (met ? " met" : " MISSED");
}

void print_gap(const std::string &title, const measured *of, double target, bool *good)
{
    bench::ratio ratio = bench::ratio_of(of[1].middle, of[0].middle);
    printf("%-26s %8.1f %8.1f %8.1f %8.1f  %-22s %-14s %.2f\n", title.c_str(),
           bench::median(of[0].middle), bench::median(of[0].late), bench::median(of[1].middle),
           bench::median(of[1].late), ratio.text.c_str(),
           verdict(ratio.middle, target, true, "%.2f", good).c_str(),
           bench::ratio_of(of[1].late, of[0].late).middle);
}

std::string title_of(const scenario &each)
{
    return std::to_string(each.processes) + " processes, held " + std::to_string(each.hold_ms) +
           " ms";
}

double spread(const std::vector<uint64_t> &served)
{
    uint64_t most = *std::max_element(served.begin(), served.end());
    uint64_t least = *std::min_element(served.begin(), served.end());
    return least > 0 ? static_cast<double>(most) / static_cast<double>(least) : INFINITY;
}

/* How often each process was served in one batch. Who is first and last in line when a batch begins
 * and ends is chance, and makes a difference of one. */
double served_each(const scenario &each)
{
    const measured &of = each.of[OURS];
    uint64_t all = 0;
    for (uint64_t one : of.served) {
        all += one;
    }
    return static_cast<double>(all) / static_cast<double>(of.served.size() * of.middle.size());
}

bool print_gaps(const std::vector<scenario> &scenarios, const crowds &found)
{
    const char *heading = "%-26s %17s %17s  %-22s %-14s %s\n";
    bool good = true;
    putchar('\n');
    printf(heading, "gap, us", "the bare token", "dlock", "ratio of the medians", "", "ratio");
    printf("%-26s %8s %8s %8s %8s  %-22s %-14s %s\n", "", "median", "99 %", "median", "99 %",
           "median (least .. most)", "target", "99 %");
    for (const scenario &each : scenarios) {
        print_gap(title_of(each), each.of, each.most_ratio, &good);
    }
    putchar('\n');
    printf(heading, "gap, us, one process,", "2 handles", "1000 handles", "ratio of the medians",
           "", "ratio");
    print_gap("event loop, held 0 ms", found.of, 1.5, &good);
    return good;
}

/* Only where nothing was held up: else there are too few to say more than the gap says. */
bool print_rates(const std::vector<scenario> &scenarios)
{
    bool good = true;
    printf("\n%-26s %-32s  %-30s  %s\n", "", "hand-offs a second", "commands per acquisition",
           "most / least served");
    printf("%-26s %7s %7s %-16s  %7s %7s %-14s  %7s %7s %s\n", "", "token", "dlock", "target",
           "INFO", "_stats", "target", "token", "dlock", "target");
    for (const scenario &each : scenarios) {
        if (each.hold_ms > 0) {
            continue;
        }
        double rate = bench::median(each.of[OURS].handoffs);
        double asked = static_cast<double>(each.asked) / static_cast<double>(each.entered);
        double said = static_cast<double>(each.said) / static_cast<double>(each.entered);
        double unfair = spread(each.of[OURS].served);
        std::string quick = verdict(rate, each.least_handoffs, false, "%.0f", &good);
        std::string frugal = verdict(std::max(asked, said), 2.2, true, "%.1f", &good);
        std::string fair = "too few to say";
        if (served_each(each) >= SERVED_LEAST && each.of[OURS].middle.size() >= ROUNDS_ENOUGH) {
            fair = verdict(unfair, 1.05, true, "%.2f", &good);
        }
        printf("%-26s %7.0f %7.0f %-16s  %7.2f %7.2f %-14s  %7.3f %7.3f %s\n",
               title_of(each).c_str(), bench::median(each.of[FLOOR].handoffs), rate, quick.c_str(),
               asked, said, frugal.c_str(), spread(each.of[FLOOR].served), unfair, fair.c_str());
    }
    return good;
}

bool print_violations(const measuring &with, const crowds &found)
{
    uint64_t overlaps = with.overlaps + found.overlaps;
    bool good = overlaps == 0 && with.lost_updates == 0 && with.old_fences == 0;
    printf("\nexclusion  two inside at once: %llu, lost updates: %llu, fences that did not grow: "
           "%llu%s\n",
           static_cast<unsigned long long>(overlaps),
           static_cast<unsigned long long>(with.lost_updates),
           static_cast<unsigned long long>(with.old_fences), good ? "" : "  BROKEN");
    return good;
}

/* ---------------------------------------------------------------------------------- the program */

/* Measures and prints. The exit status. */
int answer(const bench::settings &wanted, const bench::server &server, redisContext *context,
           const inheritance &born, const bench::children &workers)
{
    const std::string prefix = born.keys[OURS] + ":";
    std::vector<scenario> scenarios(std::begin(PLANS), std::end(PLANS));
    bench::progress progress(wanted.seconds);
    measuring with = {&born, context, &workers, &progress, 0, 0, 0};
    crowds found;
    bench::bystanders others;
    auto used = [&] { return server.processor_seconds() + workers.processor_seconds(); };
    others.begin(used());
    for (scenario &each : scenarios) {
        if (failure.empty()) {
            run_scenario(&with, &each, each.share * wanted.seconds);
        }
    }
    if (failure.empty()) {
        run_crowds(born.url, prefix, &progress, 0.1 * wanted.seconds, &found);
    }
    double share = others.share(used());
    progress.clear();
    for (const std::string &key :
         {born.keys[FLOOR], born.keys[OURS], prefix + "few", prefix + "many"}) {
        freeReplyObject(redisCommand(context, "DEL %s {%s}:fence {%s}:queue", key.c_str(),
                                     key.c_str(), key.c_str()));
    }
    if (!failure.empty()) {
        fprintf(stderr, "%s\n", failure.c_str());
        return bench::interrupted != 0 ? 128 + bench::interrupted : 1;
    }
    bool good = print_gaps(scenarios, found);
    good = print_rates(scenarios) && good;
    bool excludes = print_violations(with, found);
    if (wanted.url == nullptr && share > 0.1) {
        printf("OTHER PROGRAMS used %.0f %% of one processor meanwhile: run it again alone\n",
               100 * share);
    }
    return excludes && (good || !wanted.check) ? 0 : 1;
}

/* The processes are forked while this one has neither a connection nor a factory. */
int run(const bench::settings &wanted, const bench::server &server, board *shared)
{
    inheritance born = {};
    born.url = wanted.url != nullptr ? wanted.url : server.url().c_str();
    born.shared = shared;
    const std::string prefix = "dlock:bench:" + std::to_string(std::random_device()()) + ":";
    born.keys[FLOOR] = prefix + "token";
    born.keys[OURS] = prefix + "lock";
    sem_init(&shared->done, 1, 0);
    bench::children workers;
    for (size_t i = 0; i < PROCESSES_MOST; i++) {
        sem_init(&shared->go[i], 1, 0);
        if (!workers.start(live, &born)) {
            fprintf(stderr, "fork: %s\n", strerror(errno));
            return 1;
        }
    }
    redisContext *context = bench::connect_url(born.url, &failure);
    if (context == nullptr) {
        fprintf(stderr, "%s\n", failure.c_str());
        return 1;
    }
    timeval limit = {5, 0};
    redisSetTimeout(context, limit);
    bench::show_facts(wanted, context, "nothing is pinned");
    int status = answer(wanted, server, context, born, workers);
    redisFree(context);
    return status;
}

}  // namespace

int main(int argc, char **argv)
{
    bench::settings wanted;
    wanted.seconds = 40;
    int status = 1;
    if (!bench::read_settings(argc, argv, USAGE, &wanted, &status)) {
        return status;
    }
    bench::catch_signals();
    bench::server server;
    bench::shared_memory<board> shared;
    if (shared.get() == nullptr || (wanted.url == nullptr && !server.start(wanted.tcp))) {
        fprintf(stderr, "%s\n", shared.get() == nullptr ? "no memory" : server.error().c_str());
        return 1;
    }
    return run(wanted, server, shared.get());
}
