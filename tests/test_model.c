/* The model of a server against a real one: the same commands in the same order must be answered
 * the same, leave the same keys behind, and send the same messages. Among them are the library's
 * own scripts, with whatever a queue, a counter or a lock may hold.
 *
 * Clocks cannot be the same, so they are dealt with in two ways. As a rule scripts are told the
 * time by the test, through two more keys, and all that follows from it must be equal; that time
 * passes is done to the real server by setting what is left of every lease, once it has been
 * compared. In the other runs the scripts are as they are, and read the clock of their server: what
 * is an instant may then differ by as much as the test has taken so far. So may leases in both.
 *
 * DLOCK_SEED=n replays one sequence and tells what it does; DLOCK_SEEDS=n runs so many, of which a
 * sanitizer, with which each takes several times as long, runs a quarter. */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/model.h"
#include "tests/support.h"

enum {
    SEQUENCES = 3000,
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    SLOWER = 4,
#else
    SLOWER = 1,
#endif
    STEPS = 40,
    LOCKS = 3,
    INBOXES = 3, /* as many factories */
    OWNERS = 6,
    WORDS_MAX = 48,
    WORD_BYTES = 4096,
    TRIES = 6,
    SAFE_MS = 4000 /* what a lease must have left, and the longest that a sequence may take */
};

#define START_US INT64_C(1700000000123456)

/* ----------------------------------------------------------------------------- one command */

struct line {
    int argc;
    const char *argv[WORDS_MAX];
    size_t lengths[WORDS_MAX];
    size_t used;
    char bytes[WORD_BYTES];
};

/* A word that lives as long as the line does. */
static void line_text(struct line *line, const char *text, size_t length)
{
    assert_true(line->argc < WORDS_MAX);
    line->argv[line->argc] = text;
    line->lengths[line->argc++] = length;
}

static void line_add(struct line *line, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void line_add(struct line *line, const char *format, ...)
{
    size_t room = sizeof line->bytes - line->used;
    int length;
    va_list arguments;
    va_start(arguments, format);
    length = vsnprintf(line->bytes + line->used, room, format, arguments);
    va_end(arguments);
    assert_true(length >= 0 && (size_t)length < room);
    line_text(line, line->bytes + line->used, (size_t)length);
    line->used += (size_t)length + 1;
}

/* Words that are parted by blanks, and hold none. */
static void line_words(struct line *line, const char *words)
{
    while (*words != 0) {
        size_t length = strcspn(words, " ");
        line_add(line, "%.*s", (int)length, words);
        words += length + (words[length] == ' ');
    }
}

/* --------------------------------------------------------------------------- both servers */

static struct {
    struct server server;
    redisContext *client;
    redisContext *admin;
    redisContext *inboxes[INBOXES];
    bool is_7_0; /* whose errors are worded as the model's are */
    struct model_lua *lua;
    struct model *model;
    struct model_client model_client;
    struct model_client model_admin;
    struct model_client model_inboxes[INBOXES];
    struct model_reply streams[INBOXES]; /* what the model has sent there       */
    int64_t clock_us;                    /* the model's                         */
    int64_t began;                       /* now_ms() at the sequence's first step */
    bool own_clock;                      /* scripts read the clock themselves   */
    bool tells;
    uint64_t seed;
    uint64_t random;
    int step;
    bool torn; /* a sequence has not come to its end        */
    long steps;
    long messages;
    long locks; /* granted by a script */
} both;

static uint64_t random_bits(void)
{
    uint64_t z = both.random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 to most - 1 */
static int pick(int most)
{
    return (int)(random_bits() % (uint64_t)most);
}

static bool one_in(int most)
{
    return pick(most) == 0;
}

static void must_be(bool condition, const char *rule)
{
    if (!condition) {
        fail_msg("DLOCK_SEED=%llu, step %d: %s", (unsigned long long)both.seed, both.step, rule);
    }
}

static void keep_message(void *user, struct model_client *to, const char *bytes, size_t length)
{
    struct model_reply *stream = &both.streams[to - both.model_inboxes];
    (void)user;
    assert_in_range(to - both.model_inboxes, 0, INBOXES - 1);
    stream->bytes = (char *)realloc(stream->bytes, stream->length + length);
    assert_non_null(stream->bytes);
    memcpy(stream->bytes + stream->length, bytes, length);
    stream->length += length;
    stream->room = stream->length;
    both.messages++;
}

static void ask_model(struct model_client *client, const struct line *line, struct model_reply *out)
{
    model_execute(both.model, client, line->argc, line->argv, line->lengths, both.clock_us, out);
}

static void send_real(redisContext *context, const struct line *line)
{
    assert_int_equal(
        redisAppendCommandArgv(context, line->argc, (const char **)line->argv, line->lengths),
        REDIS_OK);
}

static redisReply *read_real(redisContext *context)
{
    void *reply = NULL;
    if (redisGetReply(context, &reply) != REDIS_OK) {
        fail_msg("the real server: %s", context->errstr);
    }
    return (redisReply *)reply;
}

static redisReply *ask_real(redisContext *context, const struct line *line)
{
    send_real(context, line);
    return read_real(context);
}

/* Something that both are simply to do, as an operator. */
static void do_real(const char *words)
{
    struct line line = {0};
    redisReply *reply;
    line_words(&line, words);
    reply = ask_real(both.admin, &line);
    if (reply->type == REDIS_REPLY_ERROR) {
        fail_msg("%s: %s", words, reply->str);
    }
    freeReplyObject(reply);
}

static void do_both(const char *words)
{
    struct line line = {0};
    struct model_reply out = {0};
    line_words(&line, words);
    ask_model(&both.model_admin, &line, &out);
    assert_true(out.length > 0 && out.bytes[0] != '-');
    free(out.bytes);
    do_real(words);
}

/* ---------------------------------------------------------------------- comparing replies */

static void reply_print(const redisReply *reply, char *text, size_t size)
{
    size_t length = 0;
    switch (reply->type) {
    case REDIS_REPLY_INTEGER:
        (void)snprintf(text, size, ":%lld", reply->integer);
        break;
    case REDIS_REPLY_NIL:
        (void)snprintf(text, size, "nil");
        break;
    case REDIS_REPLY_ARRAY:
        (void)snprintf(text, size, "[");
        for (size_t i = 0; i < reply->elements; i++) {
            length = strlen(text);
            reply_print(reply->element[i], text + length, size - length);
            length = strlen(text);
            (void)snprintf(text + length, size - length, i + 1 < reply->elements ? " " : "");
        }
        length = strlen(text);
        (void)snprintf(text + length, size - length, "]");
        break;
    default:
        (void)snprintf(text, size, "%s\"%.*s\"",
                       reply->type == REDIS_REPLY_ERROR    ? "-"
                       : reply->type == REDIS_REPLY_STATUS ? "+"
                                                           : "",
                       (int)reply->len, reply->str);
        break;
    }
}

/* Errors of other versions have the same first word only. */
static bool same_text(const redisReply *one, const redisReply *other)
{
    if (one->type == REDIS_REPLY_ERROR && !both.is_7_0) {
        size_t word = strcspn(one->str, " ");
        return strncmp(one->str, other->str, word + 1) == 0;
    }
    return one->len == other->len && memcmp(one->str, other->str, (size_t)one->len) == 0;
}

static bool same_reply(const redisReply *one, const redisReply *other)
{
    if (one->type != other->type) {
        return false;
    }
    switch (one->type) {
    case REDIS_REPLY_INTEGER:
        return one->integer == other->integer;
    case REDIS_REPLY_NIL:
        return true;
    case REDIS_REPLY_ARRAY:
        for (size_t i = 0; one->elements == other->elements && i < one->elements; i++) {
            if (!same_reply(one->element[i], other->element[i])) {
                return false;
            }
        }
        return one->elements == other->elements;
    default:
        return same_text(one, other);
    }
}

/* What is left of a lease: the real one may have less by the time that this has taken. */
static void excuse_lease(redisReply *model, redisReply *real)
{
    int64_t taken = now_ms() - both.began + 1;
    bool right = model->type == REDIS_REPLY_INTEGER && real->type == REDIS_REPLY_INTEGER;
    if (right && model->integer > 0 && real->integer > 0 &&
        real->integer <= model->integer + (both.own_clock ? taken : 0) &&
        real->integer >= model->integer - taken) {
        real->integer = model->integer;
    }
}

static bool is_instant(int64_t model, int64_t real)
{
    int64_t taken = 1000 * (now_ms() - both.began + 2);
    return both.own_clock && model > INT64_C(1000000000000000) && real >= model &&
           real - model <= taken;
}

/* Texts may hold instants as words. Those that differ become the model's. */
static void excuse_words(const redisReply *model, redisReply *real)
{
    size_t at = 0;
    if (model->len != real->len) {
        return;
    }
    while (at < (size_t)model->len) {
        char *end;
        char *real_end;
        size_t length = strcspn(model->str + at, " ");
        if (length == 16) {
            int64_t here = strtoll(model->str + at, &end, 10);
            int64_t there = strtoll(real->str + at, &real_end, 10);
            if (end == model->str + at + 16 && real_end == real->str + at + 16 &&
                is_instant(here, there)) {
                memcpy(real->str + at, model->str + at, 16);
            }
        }
        at += length + 1;
    }
}

static void excuse_instants(const redisReply *model, redisReply *real)
{
    if (model->type != real->type || !both.own_clock) {
        return;
    }
    switch (model->type) {
    case REDIS_REPLY_ARRAY:
        for (size_t i = 0; i < model->elements && i < real->elements; i++) {
            excuse_instants(model->element[i], real->element[i]);
        }
        break;
    case REDIS_REPLY_INTEGER:
        if (is_instant(model->integer, real->integer)) {
            real->integer = model->integer;
        }
        break;
    case REDIS_REPLY_STRING:
        excuse_words(model, real);
        break;
    default:
        break;
    }
}

/* Where in a reply leases stand. */
enum leases { NO_LEASE, ALL_OF_IT, ACQUIRE_LEASE, INSPECT_LEASE, KEYS_LEASES };

static void excuse_leases(redisReply *model, redisReply *real, enum leases leases)
{
    redisReply *const *one = model->element;
    redisReply *const *other = real->element;
    size_t count = model->type == REDIS_REPLY_ARRAY && real->type == REDIS_REPLY_ARRAY &&
                           model->elements == real->elements
                       ? model->elements
                       : 0;
    switch (leases) {
    case ALL_OF_IT:
        excuse_lease(model, real);
        break;
    case ACQUIRE_LEASE: /* {1, fence, lease, now}, {0, lease, ...} */
        if (count == 4 && one[0]->type == REDIS_REPLY_INTEGER && one[0]->integer == 1) {
            excuse_lease(one[2], other[2]);
        } else if (count == 6) {
            excuse_lease(one[1], other[1]);
        }
        break;
    case INSPECT_LEASE:
        if (count > 0) {
            excuse_lease(one[0], other[0]);
        }
        break;
    case KEYS_LEASES:
        for (size_t i = 0; i < count; i++) {
            if (one[i]->elements == 3 && other[i]->elements == 3) {
                excuse_lease(one[i]->element[1], other[i]->element[1]);
            }
        }
        break;
    default:
        break;
    }
}

/* The two replies are the same, but for what clocks have to do with. Frees the real one. */
static void must_agree(const char *what, const char *bytes, size_t length, redisReply *real,
                       enum leases leases)
{
    redisReader *reader = redisReaderCreate();
    void *parsed = NULL;
    redisReply *model;
    assert_non_null(reader);
    must_be(redisReaderFeed(reader, bytes, length) == REDIS_OK &&
                redisReaderGetReply(reader, &parsed) == REDIS_OK && parsed != NULL &&
                reader->pos == reader->len,
            "the model's reply is not one");
    model = (redisReply *)parsed;
    excuse_leases(model, real, leases);
    excuse_instants(model, real);
    if (both.tells || !same_reply(model, real)) {
        static char text[65536];
        reply_print(model, text, sizeof text);
        print_message("%3d %s\n    model %s\n", both.step, what, text);
        reply_print(real, text, sizeof text);
        print_message("    real  %s\n", text);
    }
    must_be(same_reply(model, real), "the model and the server do not agree");
    freeReplyObject(model);
    freeReplyObject(real);
    redisReaderFree(reader);
}

static const char *line_print(const struct line *line)
{
    static char text[4096];
    size_t length = 0;
    text[0] = 0;
    for (int i = 0; i < line->argc && length + 600 < sizeof text; i++) {
        length +=
            (size_t)snprintf(text + length, sizeof text - length, "%.*s ",
                             (int)(line->lengths[i] < 500 ? line->lengths[i] : 500), line->argv[i]);
    }
    return text;
}

/* Both are asked, and agree. */
static void ask_both(const struct line *line, enum leases leases)
{
    struct model_reply out = {0};
    ask_model(&both.model_client, line, &out);
    both.locks += leases == ACQUIRE_LEASE && out.length > 12 && out.bytes[0] == ':';
    must_agree(line_print(line), out.bytes, out.length, ask_real(both.client, line), leases);
    free(out.bytes);
}

/* ------------------------------------------------------------------------ comparing contents */

static const char contents_script[] =
    "local out = {}\n"
    "for i = 1, #KEYS do\n"
    " local key = KEYS[i]\n"
    " local type = redis.call('TYPE', key).ok\n"
    " local value = false\n"
    " if type == 'string' then value = redis.call('GET', key) end\n"
    " if type == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end\n"
    " out[i] = {type, redis.call('PTTL', key), value}\n"
    "end\n"
    "out[#KEYS + 1] = #redis.call('KEYS', '*')\n"
    "return out\n";

static const char *const lock_names[LOCKS] = {"orders:42", "{user1}:x", "odd key"};
static const char *const helper_formats[LOCKS] = {"{orders:42}:%s", "{user1}:x:dlock:%s",
                                                  "{odd key}:%s"};

static void line_key(struct line *line, int lock, const char *helper)
{
    if (helper == NULL) {
        line_add(line, "%s", lock_names[lock]);
    } else {
        char format[64];
        (void)snprintf(format, sizeof format, "%s", helper_formats[lock]);
        line_add(line, strcmp(helper, "queue") == 0 ? "%.*squeue" : "%.*sfence",
                 (int)(strlen(format) - 2), format);
    }
}

static void line_all_keys(struct line *line)
{
    for (int i = 0; i < LOCKS; i++) {
        line_key(line, i, NULL);
        line_key(line, i, "queue");
        line_key(line, i, "fence");
    }
}

static void compare_contents(void)
{
    struct model_switches *switches = model_switches(both.model);
    struct model_switches kept = *switches;
    memset(switches, 0, sizeof *switches);
    for (int database = 0; database < 2; database++) {
        struct line line = {0};
        struct line select = {0};
        struct model_reply out = {0};
        redisReply *real;
        line_add(&select, "SELECT");
        line_add(&select, "%d", database);
        ask_model(&both.model_admin, &select, &out);
        out.length = 0;
        freeReplyObject(ask_real(both.admin, &select));
        line_add(&line, "EVAL");
        line_text(&line, contents_script, sizeof contents_script - 1);
        line_add(&line, "%d", 3 * LOCKS);
        line_all_keys(&line);
        ask_model(&both.model_admin, &line, &out);
        real = ask_real(both.admin, &line);
        must_agree("what there is", out.bytes, out.length, real, KEYS_LEASES);
        free(out.bytes);
    }
    *switches = kept;
}

/* All that an inbox was sent so far, in its order. */
static void compare_inbox(int inbox)
{
    struct model_reply *stream = &both.streams[inbox];
    redisReader *reader = redisReaderCreate();
    size_t from = 0;
    void *parsed = NULL;
    assert_non_null(reader);
    assert_int_equal(redisReaderFeed(reader, stream->bytes, stream->length), REDIS_OK);
    while (from < stream->length) {
        size_t end;
        assert_int_equal(redisReaderGetReply(reader, &parsed), REDIS_OK);
        must_be(parsed != NULL, "the model's messages are none");
        freeReplyObject(parsed);
        end = stream->length - (reader->len - reader->pos);
        must_agree("an inbox", stream->bytes + from, end - from, read_real(both.inboxes[inbox]),
                   NO_LEASE);
        from = end;
    }
    redisReaderFree(reader);
    stream->length = 0;
}

/* Something that an inbox asks for; with the answer comes what it was sent before. */
static void ask_inbox(int inbox, const struct line *line)
{
    ask_model(&both.model_inboxes[inbox], line, &both.streams[inbox]);
    send_real(both.inboxes[inbox], line);
    compare_inbox(inbox);
}

static void compare_inboxes(void)
{
    for (int i = 0; i < INBOXES; i++) {
        struct line line = {0};
        line_add(&line, "PING");
        ask_inbox(i, &line);
    }
}

/* ----------------------------------------------------------------------- the library's scripts */

/* In front of a script: TIME is what the last two keys say. On its first line, so that the numbers
 * of the script's lines stay what they are. */
#define TOLD_THE_TIME \
    "local told, real = {KEYS[#KEYS - 1], KEYS[#KEYS]}, redis " \
    "local redis = {" \
    "call = function(name, ...) " \
    "if name == 'TIME' then return told end return real.call(name, ...) end, " \
    "pcall = function(name, ...) " \
    "if name == 'TIME' then return told end return real.pcall(name, ...) end} "

enum script { ACQUIRE, RELEASE, EXTEND, INSPECT, BREAK };

static const struct {
    const char *plain;
    const char *told;
    int keys;
} scripts[] = {{DLOCKI_LUA_ACQUIRE, TOLD_THE_TIME DLOCKI_LUA_ACQUIRE, 3},
               {DLOCKI_LUA_RELEASE, TOLD_THE_TIME DLOCKI_LUA_RELEASE, 3},
               {DLOCKI_LUA_EXTEND, TOLD_THE_TIME DLOCKI_LUA_EXTEND, 1},
               {DLOCKI_LUA_INSPECT, TOLD_THE_TIME DLOCKI_LUA_INSPECT, 3},
               {DLOCKI_LUA_BREAK, TOLD_THE_TIME DLOCKI_LUA_BREAK, 3}};

/* EVAL or EVALSHA with its keys. */
static void line_script(struct line *line, enum script script, int lock)
{
    const char *text = both.own_clock ? scripts[script].plain : scripts[script].told;
    if (one_in(3)) {
        char sha1[41];
        model_sha1(text, strlen(text), sha1);
        line_add(line, "EVALSHA");
        line_add(line, "%s", sha1);
    } else {
        line_add(line, "EVAL");
        line_text(line, text, strlen(text));
    }
    line_add(line, "%d", scripts[script].keys + (both.own_clock ? 0 : 2));
    line_key(line, lock, NULL);
    if (scripts[script].keys == 3) {
        line_key(line, lock, "queue");
        line_key(line, lock, "fence");
    }
    if (!both.own_clock) {
        line_add(line, "%lld", (long long)(both.clock_us / 1000000));
        line_add(line, "%lld", (long long)(both.clock_us % 1000000));
    }
}

/* Some of one factory, all the same in every sequence. */
static void owner_name(int owner, char name[64])
{
    (void)snprintf(name, 64, "dl1-%016x%016x", 0xfac0000u + (unsigned)(owner % INBOXES),
                   0xabcdef00u + (unsigned)owner);
}

/* Each owner has one expiry and one kind as a rule, so that it finds its ticket again. */
static int owner_expiry(int owner)
{
    return 5000 + (int)(both.seed % 1000) + 17000 * owner;
}

static const char *owner_kind(int owner)
{
    static const char *const kinds[] = {"g", "g", "n", "g", "h", ""};
    return kinds[((uint64_t)owner + both.seed) % 6];
}

static void step_acquire(int lock)
{
    struct line line = {0};
    int owner = pick(OWNERS);
    int rest = pick(5);
    char name[64];
    owner_name(owner, name);
    line_script(&line, ACQUIRE, lock);
    line_add(&line, "%s", name);
    line_add(&line, "%d", owner_expiry(owner));
    if (rest > 0) {
        line_add(&line, "%s", owner_kind(owner));
    }
    if (rest >
        1) { /* a place that it had before; instants are not made up with a clock of its own */
        line_add(&line, "%lld", one_in(3) ? (both.own_clock ? 7LL : (long long)both.clock_us) : 0);
    }
    if (rest > 2) {
        line_add(&line, "%s", one_in(2) ? "0" : "1");
    }
    ask_both(&line, ACQUIRE_LEASE);
}

/* As a rule the one that holds the lock. */
static int likely_holder(int lock)
{
    const struct model_key *key =
        model_key_find(both.model, both.model_client.database, lock_names[lock],
                       strlen(lock_names[lock]), both.clock_us);
    int owner = pick(OWNERS);
    for (int i = 0; key != NULL && !key->sorted && !one_in(4) && i < OWNERS; i++) {
        char name[64];
        owner_name(i, name);
        owner = strcmp(key->bytes, name) == 0 ? i : owner;
    }
    return owner;
}

static void step_release(int lock)
{
    struct line line = {0};
    int owner = likely_holder(lock);
    char name[64];
    owner_name(owner, name);
    line_script(&line, RELEASE, lock);
    line_add(&line, "%s", name);
    if (one_in(2)) {
        line_add(&line, one_in(6) ? "" : "%s %d %s", name, owner_expiry(owner), owner_kind(owner));
    }
    ask_both(&line, NO_LEASE);
}

static void step_extend(int lock)
{
    struct line line = {0};
    int owner = likely_holder(lock);
    char name[64];
    owner_name(owner, name);
    line_script(&line, EXTEND, lock);
    line_add(&line, "%s", name);
    line_add(&line, "%d", 5000 + pick(200000));
    ask_both(&line, NO_LEASE);
}

static void step_look(int lock)
{
    struct line line = {0};
    bool inspects = one_in(3);
    line_script(&line, inspects ? INSPECT : BREAK, lock);
    ask_both(&line, inspects ? INSPECT_LEASE : NO_LEASE);
}

/* ------------------------------------------------------------------------ any other commands */

/* K, Q, F stand for the keys of a lock; O for an owner, T for a ticket, L for a lease. */
static const char *const plain_commands[] = {
    "SET K foreign PX L",
    "SET K foreign",
    "SET K O NX PX L",
    "SET K O PX L",
    "set K O xx px L",
    "SET K v NX XX",
    "SET K v PX 0",
    "SET K v PX -1",
    "SET K v PX x",
    "SET K v PX 05",
    "SET K v PX",
    "SET K v PX 9223372036854775807",
    "SET K v FOO",
    "SET K",
    "GET K",
    "GET Q",
    "GET nothing",
    "GET",
    "GET K K",
    "DEL K",
    "DEL Q",
    "DEL F",
    "DEL K Q F nothing",
    "DEL",
    "EXISTS K",
    "EXISTS K Q F K",
    "EXISTS nothing",
    "STRLEN K",
    "STRLEN Q",
    "TYPE K",
    "TYPE Q",
    "TYPE F",
    "GETRANGE K 0 63",
    "GETRANGE K 1 -2",
    "GETRANGE K -3 -5",
    "GETRANGE K -100 2",
    "GETRANGE K 5 100",
    "GETRANGE K 3 1",
    "GETRANGE K x 1",
    "GETRANGE Q 0 1",
    "GETRANGE K -5 -100",
    "GETRANGE K -100 -100",
    "GETRANGE K 100 200",
    "PTTL nothing",
    "PEXPIRE K L",
    "PEXPIRE Q L",
    "PEXPIRE F 86400000",
    "PEXPIRE K 0",
    "PEXPIRE K -1",
    "PEXPIRE K 9223372036854775807",
    "PEXPIRE nothing 5",
    "PEXPIRE K x",
    "PEXPIRE K",
    "ZADD Q N T",
    "ZADD Q N T N T",
    "ZADD Q N T",
    "ZADD Q N rubbish",
    "ZADD Q 0 dl1-short",
    "ZADD Q NX N T",
    "ZADD Q GT CH N T",
    "ZADD Q CH N T",
    "zadd Q gt N T",
    "ZADD F N f",
    "ZADD F 9007199254740990 f",
    "ZADD F GT CH 9007199254740991 f",
    "ZADD F 4294967290 f",
    "ZADD F inf f",
    "ZADD F -inf f",
    "ZADD F nan f",
    "ZADD F x f",
    "ZADD F",
    "ZADD F 1",
    "ZADD F 1 f 2",
    "ZADD F NX GT 1 f",
    "ZADD F 1 f x f",
    "ZADD K 1 f",
    "ZADD Q 1 a 1 B 1 aa 1 b 0 z",
    "ZADD Q 5 a 4 a",
    "ZADD Q 1e3 a",
    "ZADD Q 0x10 a",
    "ZADD Q -0 a",
    "ZINCRBY F 1 f",
    "ZINCRBY F -5 f",
    "ZINCRBY F inf f",
    "ZINCRBY F -inf f",
    "ZINCRBY F x f",
    "ZINCRBY K 1 f",
    "ZINCRBY Q 1000000 T",
    "ZREM Q T",
    "ZREM Q T a b nothing",
    "ZREM K T",
    "ZREM nothing T",
    "ZPOPMIN Q",
    "ZPOPMIN Q 2",
    "ZPOPMIN Q 0",
    "ZPOPMIN Q -1",
    "ZPOPMIN Q x",
    "ZPOPMIN Q 1 2",
    "ZPOPMIN K",
    "ZPOPMIN nothing",
    "ZRANGE Q 0 -1",
    "ZRANGE Q 0 -1 WITHSCORES",
    "ZRANGE Q -1 -1 withscores",
    "ZRANGE Q 1 2",
    "ZRANGE Q -100 100",
    "ZRANGE Q 5 1",
    "ZRANGE Q -1 -3",
    "ZRANGE Q 0 -100",
    "ZRANGE Q 0 -1 FOO",
    "ZRANGE Q x -1",
    "ZRANGE K 0 -1",
    "ZRANK Q T",
    "ZRANK Q nothing",
    "ZRANK K T",
    "ZSCORE F f",
    "ZSCORE Q T",
    "ZSCORE Q nothing",
    "ZSCORE K f",
    "ZCARD Q",
    "ZCARD K",
    "ZCARD nothing",
    "SET Q wrong PX L",
    "SET F wrong",
    "SET F 17 PX L",
    "PUBLISH I hello",
    "PUBLISH nobody hello",
    "PUBLISH I",
    "PUBSUB NUMSUB I",
    "PUBSUB NUMSUB",
    "PUBSUB NUMSUB I nobody I",
    "PUBSUB",
    "PUBSUB FOO",
    "PING",
    "PING hello",
    "PING a b",
    "SELECT 16",
    "SELECT -1",
    "SELECT x",
    "FLUSHALL FOO",
    "SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db abc",
    "SCRIPT FOO",
    "SCRIPT",
    "SCRIPT FLUSH FOO",
    "CLIENT SETNAME me",
    "CLIENT SETNAME",
    "CLIENT FOO",
    "NONSENSE",
    "NONSENSE a b",
    "EVAL x",
    "EVAL x y",
    "EVALSHA abc 0",
    "EVAL x 1",
    "EVAL x -1",
    "EVALSHA 0123456789012345678901234567890123456789 0",
};

enum { PLAIN_COMMANDS = sizeof plain_commands / sizeof *plain_commands };

static void line_meant(struct line *line, const char *word, size_t length, int lock)
{
    char owner[64];
    int number = pick(OWNERS);
    owner_name(number, owner);
    switch (length == 1 ? word[0] : 0) {
    case 'K':
        line_key(line, lock, NULL);
        break;
    case 'Q':
        line_key(line, lock, "queue");
        break;
    case 'F':
        line_key(line, lock, "fence");
        break;
    case 'O':
        line_add(line, "%s", owner);
        break;
    case 'T':
        line_add(line, "%s %d %s", owner, one_in(12) ? 0 : owner_expiry(number),
                 one_in(12) ? "x" : owner_kind(number));
        break;
    case 'L':
        line_add(line, "%d", 5000 + pick(90000));
        break;
    case 'N':
        line_add(line, "%d", pick(20));
        break;
    case 'I':
        line_add(line, "dlock:%.16s", owner + 4);
        break;
    default:
        line_add(line, "%.*s", (int)length, word);
        break;
    }
}

static void step_plain(int lock)
{
    struct line line = {0};
    const char *words = plain_commands[pick(PLAIN_COMMANDS)];
    /* Before 7.0 and after, both of these have been worded and counted otherwise. */
    while (!both.is_7_0 && (strncmp(words, "ZRANK", 5) == 0 || strstr(words, "inf") != NULL)) {
        words = plain_commands[pick(PLAIN_COMMANDS)];
    }
    while (*words != 0) {
        size_t length = strcspn(words, " ");
        line_meant(&line, words, length, lock);
        words += length + (words[length] == ' ');
    }
    ask_both(&line, NO_LEASE);
}

static void step_lease(int lock)
{
    struct line line = {0};
    line_add(&line, "PTTL");
    line_key(&line, lock, one_in(3) ? "queue" : one_in(2) ? "fence" : NULL);
    ask_both(&line, ALL_OF_IT);
}

/* ----------------------------------------------------------------- scripts about conversions */

/* KEYS: K Q F. ARGV: an owner, a number, a text with odd bytes. */
static const char *const odd_scripts[] = {
    "return {1, 2.9, -2.9, 'x', true, {ok = 'fine'}, {err = 'BAD thing'}, {1, {2, {3}}}, nil, 9}",
    "return {1, false, 2}",
    "return {false, nil, 2}",
    "return 9007199254740993",
    "return 1795398000123456.75",
    "return -0.5",
    "return {}",
    "return",
    "return nil",
    "return false",
    "return true",
    "return ''",
    "return ARGV",
    "return KEYS",
    "return {KEYS[1], ARGV[3], #KEYS, #ARGV}",
    "return {one = 1}",
    "return {ok = 1}",
    "return {ok = 'a\\r\\nb'}",
    "return {err = 'A b'}",
    "return {err = 'A'}",
    "return function() end",
    "return tostring(1795398000123456)",
    "return tostring(0.1)",
    "return string.format('%.0f %.17g', 1795398000123456, 0.1)",
    "return redis.error_reply('A b')",
    "return redis.error_reply('-A b')",
    "return redis.error_reply('A')",
    "return redis.status_reply('s')",
    "return redis.sha1hex(ARGV[3])",
    "redis.call('SET', KEYS[1], ARGV[2] * 1) return redis.call('GET', KEYS[1])",
    "redis.call('SET', KEYS[1], ARGV[3]) return redis.call('GET', KEYS[1])",
    "return redis.call('SET', KEYS[1], 'v', 'PX', 60000.5)",
    "return redis.call('SET', KEYS[1], 'v', 'PX', 60000)",
    "return redis.call('SET', KEYS[1], 'v', 'NX')",
    "return type(redis.call('GET', 'nothing'))",
    "return type(redis.call('SET', KEYS[1], 'v'))",
    "return redis.call('TYPE', KEYS[1])",
    "return redis.call('TYPE', KEYS[2]).ok",
    "return redis.call('PING')",
    "return redis.call('ping', 'x')",
    "return redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)",
    "return redis.call('DEL', 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18.5)",
    "return redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')",
    "return redis.call('ZPOPMIN', KEYS[2])",
    "return #redis.call('ZPOPMIN', 'nothing')",
    "return redis.call('ZSCORE', KEYS[3], 'f')",
    "return redis.call('ZADD', KEYS[3], ARGV[2], 'f')",
    "return redis.call('ZINCRBY', KEYS[3], 1, 'f')",
    "return redis.call('PUBSUB', 'NUMSUB', 'dlock:' .. string.sub(ARGV[1], 5, 20))",
    "return redis.call('PUBLISH', 'dlock:' .. string.sub(ARGV[1], 5, 20), ARGV[3])",
    "return redis.pcall('GET')",
    "return redis.pcall('GET', KEYS[2])",
    "return {redis.pcall('GET', KEYS[2])}",
    "return redis.call('GET', KEYS[2])",
    "local x = 1\nlocal y = redis.call('GET', KEYS[2])\nreturn y",
    "local function f() return redis.call('ZADD', KEYS[2], 'x', 'y') end\n\nlocal r = f()\nreturn "
    "r",
    "return redis.call('NONSENSE', 'x')",
    "return redis.call('PUBSUB', 'FOO')",
    "return redis.call('PUBSUB')",
    "return redis.call('SUBSCRIBE', 'x')",
    "return redis.call('EVAL', 'return 1', 0)",
    "return redis.call('SCRIPT', 'FLUSH')",
    "return redis.call()",
    "return redis.call({})",
    "return redis.pcall(true)",
    "return redis.call('GET', nil)",
    "redis.call('SET', KEYS[1], 'v') error('boo')",
    "error({err = 'A b'})",
    "error()",
    "error('boo', 0)",
    "error(redis.pcall('GET'))",
    "local fine, e = pcall(error, 'x') return {tostring(fine), e}",
    "local fine, a, b = pcall(function(...) return ... end, 1, 2) return {fine, a, b}",
    "return unset",
    "unset = 1",
    "redis = 1",
    "local t = nil\n\nreturn t.x",
    "return foo(",
    "return 'a' + 1",
    "return {tonumber('0x10'), tonumber('x'), 10}",
    "redis.call('SELECT', 1) redis.call('SET', KEYS[1], 'other') return redis.call('GET', KEYS[1])",
    "redis.call('DEL', KEYS[2]) return redis.call('SET', KEYS[1], 'v')",
    "redis.call('DEL', 'nothing') return redis.call('ZADD', KEYS[3], 1, 'f')",
    "redis.pcall('PUBLISH', 'nobody', 'x') return redis.call('SET', KEYS[1], 'v')",
    "redis.pcall('ZADD', KEYS[1], 'x') return redis.call('SET', KEYS[1], 'v')",
    "return {redis.pcall('SET', KEYS[1], 'v'), redis.pcall('SET', KEYS[1], 'w')}",
    "local n = 0 for w in string.gmatch(ARGV[3], '%x') do n = n + 1 end return n",
    "return {string.match('dl1-0a 12 g', '^(dl1%-%x+) (%d+) ([gnh])$')}",
    "return #redis.call('TIME')",
    "return type(redis.call('TIME')[1])",
    /* From here on for 7.0: other versions word errors, or write fractions, in another way. */
    "return redis.error_reply(1)",
    "redis.call('SET', KEYS[1], ARGV[2] / 3) return redis.call('GET', KEYS[1])",
    "redis.call('SET', KEYS[1], -0) return redis.call('GET', KEYS[1])",
    "return redis.pcall('PUBLISH', 'dlock:' .. string.sub(ARGV[1], 5, 20), 'x').err",
    "return redis.pcall('GET', false).err",
    "return {pcall(redis.call, 'GET')}",
    "local fine, e = pcall(redis.call, 'GET', KEYS[2]) return {tostring(fine), e}",
};

enum { ODD_SCRIPTS = sizeof odd_scripts / sizeof *odd_scripts, FOR_7_0 = 7 };

static int odd_count(void)
{
    return both.is_7_0 ? ODD_SCRIPTS : ODD_SCRIPTS - FOR_7_0;
}

static void step_odd(int lock)
{
    static const char *const numbers[] = {
        "0",     "1",   "-7",    "4294967296", "9007199254740991",
        "1e16",  "0.5", "1e-9",  "-1e15",      "123456789012345678",
        "1e300", "2.5", "99999", "1e17",       "12345678901234567"};
    static const char odd_bytes[] = "a\0b\r\n\xff %s";
    struct line line = {0};
    const char *text = odd_scripts[pick(odd_count())];
    char owner[64];
    owner_name(pick(OWNERS), owner);
    if (one_in(8)) {
        line_add(&line, "SCRIPT");
        line_add(&line, "LOAD");
        line_text(&line, text, strlen(text));
    } else {
        line_add(&line, "EVAL");
        line_text(&line, text, strlen(text));
        line_add(&line, "3");
        line_key(&line, lock, NULL);
        line_key(&line, lock, "queue");
        line_key(&line, lock, "fence");
        line_add(&line, "%s", owner);
        line_add(&line, "%s", numbers[pick(both.is_7_0 ? 15 : 5)]);
        line_text(&line, odd_bytes, sizeof odd_bytes - 1);
    }
    ask_both(&line, NO_LEASE);
}

/* --------------------------------------------------------------- inboxes, switches, the clock */

static void step_inbox(void)
{
    static const char *const words[] = {"SUBSCRIBE I",
                                        "SUBSCRIBE I",
                                        "UNSUBSCRIBE I",
                                        "UNSUBSCRIBE I",
                                        "SUBSCRIBE other I",
                                        "UNSUBSCRIBE other",
                                        "SUBSCRIBE",
                                        "PING",
                                        "PING x",
                                        "GET K",
                                        "UNSUBSCRIBE nothing",
                                        "CLIENT SETNAME me"};
    int inbox = pick(INBOXES);
    const char *at = words[one_in(2) ? 0 : pick(12)];
    struct line line = {0};
    char owner[64];
    owner_name(inbox, owner);
    while (*at != 0) {
        size_t length = strcspn(at, " ");
        if (length == 1 && *at == 'I') {
            line_add(&line, "dlock:%.16s", owner + 4);
        } else {
            line_add(&line, "%.*s", (int)length, at);
        }
        at += length + (at[length] == ' ');
    }
    ask_inbox(inbox, &line);
}

static void flip(bool *model_switch, const char *off, const char *on)
{
    *model_switch = !*model_switch;
    do_real(*model_switch ? on : off);
    if (both.tells) {
        print_message("%3d %s\n", both.step, *model_switch ? on : off);
    }
}

static void step_switch(void)
{
    struct model_switches *switches = model_switches(both.model);
    switch (pick(7)) {
    case 0:
        flip(&switches->no_publish, "ACL SETUSER default +publish", "ACL SETUSER default -publish");
        break;
    case 1:
        flip(&switches->no_pubsub, "ACL SETUSER default +pubsub", "ACL SETUSER default -pubsub");
        break;
    case 2:
        flip(&switches->no_subscribe, "ACL SETUSER default +subscribe",
             "ACL SETUSER default -subscribe");
        break;
    case 3:
        flip(&switches->no_scripts, "ACL SETUSER default +eval +evalsha",
             "ACL SETUSER default -eval -evalsha");
        break;
    case 4:
        do_both("SCRIPT FLUSH");
        break;
    default:
        flip(&switches->out_of_memory, "CONFIG SET maxmemory 0", "CONFIG SET maxmemory 1");
        break;
    }
}

/* Would a key have so little left after that span that the real one might not outlive it? */
static bool is_close(int64_t span_us)
{
    int64_t later = (both.clock_us + span_us) / 1000;
    for (struct model_key *key = model_key_next(both.model, NULL, both.clock_us); key != NULL;
         key = model_key_next(both.model, key, both.clock_us)) {
        if (key->ends != MODEL_NEVER && key->ends >= later && key->ends - later <= SAFE_MS) {
            return true;
        }
    }
    return false;
}

/* Time passes: what is over goes, everything else has less left. */
static void step_pass(void)
{
    int64_t span = 1000 * (int64_t)(1 + pick(one_in(3) ? 200000 : 9000)) + pick(1000);
    int count = 0;
    struct model_key *next = NULL;
    compare_contents();
    while (is_close(span)) {
        span += 1000 * (SAFE_MS + 1);
    }
    if (both.tells) {
        print_message("%3d %lld us pass\n", both.step, (long long)span);
    }
    for (struct model_key *key = model_key_next(both.model, NULL, both.clock_us); key != NULL;
         key = next) {
        int64_t left = key->ends - (both.clock_us + span) / 1000;
        next = model_key_next(both.model, key, both.clock_us);
        if (key->ends == MODEL_NEVER) {
            continue;
        }
        assert_int_equal(redisAppendCommand(both.admin, "SELECT %d", key->database), REDIS_OK);
        assert_int_equal(left < 0
                             ? redisAppendCommand(both.admin, "DEL %b", key->key, key->key_length)
                             : redisAppendCommand(both.admin, "PEXPIRE %b %lld", key->key,
                                                  key->key_length, (long long)left),
                         REDIS_OK);
        count += 2;
    }
    while (count-- > 0) {
        freeReplyObject(read_real(both.admin));
    }
    both.clock_us += span;
}

/* -------------------------------------------------------------------------------- sequences */

/* New connections and a new model, as after a test that failed in the middle. */
static void begin_anew(void)
{
    for (int i = 0; i < INBOXES; i++) {
        if (both.inboxes[i] != NULL) {
            redisFree(both.inboxes[i]);
        }
        both.inboxes[i] = server_connect(&both.server);
        both.streams[i].length = 0;
    }
    if (both.client != NULL) {
        redisFree(both.client);
        redisFree(both.admin);
    }
    both.client = server_connect(&both.server);
    both.admin = server_connect(&both.server);
    freeReplyObject(redisCommand(both.admin, "AUTH admin secret"));
    do_real("ACL SETUSER default +@all allchannels");
    do_real("CONFIG SET maxmemory 0");
    model_close(both.model);
    memset(both.model_inboxes, 0, sizeof both.model_inboxes);
    memset(&both.model_client, 0, sizeof both.model_client);
    memset(&both.model_admin, 0, sizeof both.model_admin);
    both.model = model_open(both.lua, keep_message, NULL);
    do_both("SCRIPT FLUSH");
    both.torn = false;
}

static void sequence_begin(uint64_t seed, bool own_clock)
{
    if (both.torn || seed % 64 == 0) {
        begin_anew();
    }
    both.torn = true;
    both.seed = seed;
    both.random = seed;
    both.own_clock = own_clock;
    both.step = 0;
    both.clock_us = own_clock ? server_time(&both.server) : START_US + (int64_t)(seed % 1000);
    both.began = now_ms();
    do_both("FLUSHALL");
}

/* Those who wait can be told as a rule. */
static void inboxes_begin(void)
{
    for (int i = 0; i < INBOXES; i++) {
        struct line line = {0};
        char owner[64];
        owner_name(i, owner);
        line_add(&line, "SUBSCRIBE");
        line_add(&line, "dlock:%.16s", owner + 4);
        if (!one_in(4)) {
            ask_inbox(i, &line);
        }
    }
}

static void sequence_end(void)
{
    struct line database = {0};
    compare_contents();
    memset(model_switches(both.model), 0, sizeof *model_switches(both.model));
    do_real("ACL SETUSER default +@all allchannels");
    do_real("CONFIG SET maxmemory 0");
    for (int i = 0; i < INBOXES; i++) {
        struct line line = {0};
        line_add(&line, "UNSUBSCRIBE");
        while (both.model_inboxes[i].channel_count >
               1) { /* in which order is the server's choice */
            struct line other = {0};
            line_words(&other, "UNSUBSCRIBE other");
            ask_inbox(i, &other);
        }
        ask_inbox(i, &line);
    }
    compare_inboxes();
    line_words(&database, "SELECT 0");
    ask_both(&database, NO_LEASE);
    both.torn = false;
}

static void step(void)
{
    int what = pick(100);
    int lock = one_in(3) ? pick(LOCKS) : 0;
    if (both.own_clock) {
        both.clock_us = server_time(&both.server);
    }
    if (what < 32) {
        step_acquire(lock);
    } else if (what < 48) {
        step_release(lock);
    } else if (what < 54) {
        step_extend(lock);
    } else if (what < 60) {
        step_look(lock);
    } else if (what < 74) {
        step_plain(lock);
    } else if (what < 80) {
        step_odd(lock);
    } else if (what < 83) {
        step_lease(lock);
    } else if (what < 92) {
        step_inbox();
    } else if (what < 94) {
        step_switch();
    } else if (what < 95) {
        struct line line = {0};
        line_words(&line, one_in(2) ? "SELECT 1" : "SELECT 0");
        ask_both(&line, NO_LEASE);
    } else if (!both.own_clock) {
        step_pass();
    }
}

/* A machine that stood still in the middle of a sequence has let leases run out: once more. */
static void run_sequence(uint64_t seed, bool own_clock)
{
    for (int i = 0; i < TRIES; i++) {
        sequence_begin(seed, own_clock);
        inboxes_begin();
        for (both.step = 1; both.step <= STEPS; both.step++) {
            step();
            if (now_ms() - both.began >= SAFE_MS) {
                break;
            }
        }
        sequence_end();
        both.steps += both.step;
        if (now_ms() - both.began < SAFE_MS) {
            return;
        }
    }
    fail_msg("the machine is too slow to compare anything");
}

static void run_sequences(bool own_clock)
{
    const char *one = getenv("DLOCK_SEED");
    const char *many = getenv("DLOCK_SEEDS");
    uint64_t count = many != NULL && *many != '\0' ? strtoull(many, NULL, 10) : SEQUENCES;
    both.steps = 0;
    both.messages = 0;
    both.locks = 0;
    both.tells = one != NULL;
    if (one != NULL) {
        run_sequence(strtoull(one, NULL, 10), own_clock);
        return;
    }
    count = count / (own_clock ? 4 * SLOWER : SLOWER) + 1;
    for (uint64_t seed = 1; seed <= count; seed++) {
        run_sequence(seed, own_clock);
    }
    print_message("%llu sequences: %ld steps, %ld locks granted, %ld messages\n",
                  (unsigned long long)count, both.steps, both.locks, both.messages);
    /* Sequences in which nothing happens prove nothing. */
    assert_true(count < 100 || (both.locks > (long)count && both.messages > (long)count / 2));
}

static void it_answers_and_keeps_and_tells_what_a_server_does(void **state)
{
    (void)state;
    run_sequences(false);
}

static void it_does_so_with_the_clock_of_the_server(void **state)
{
    (void)state;
    run_sequences(true);
}

/* ------------------------------------------------------------------------- each one on purpose */

static void every_command_and_odd_script_is_compared_on_every_kind_of_key(void **state)
{
    static const char *const kinds[] = {"DEL K", "SET K O PX L", "SET K foreign", "ZADD K 1 a 2 b"};
    (void)state;
    both.tells = getenv("DLOCK_SEED") != NULL;
    for (int kind = 0; kind < 4; kind++) {
        sequence_begin(1, false);
        for (int i = 0; i < PLAIN_COMMANDS + odd_count(); i++) {
            const char *words = i < PLAIN_COMMANDS ? plain_commands[i] : kinds[kind];
            struct line make = {0};
            struct line line = {0};
            both.step = i;
            for (const char *at = kinds[kind]; *at != 0; at += strcspn(at, " ") + 1) {
                line_meant(&make, at, strcspn(at, " "), 0);
                if (at[strcspn(at, " ")] == 0) {
                    break;
                }
            }
            ask_both(&make, NO_LEASE);
            if (i < PLAIN_COMMANDS && (both.is_7_0 || (strncmp(words, "ZRANK", 5) != 0 &&
                                                       strstr(words, "inf") == NULL))) {
                while (*words != 0) {
                    size_t length = strcspn(words, " ");
                    line_meant(&line, words, length, 0);
                    words += length + (words[length] == ' ');
                }
                ask_both(&line, NO_LEASE);
            } else if (i >= PLAIN_COMMANDS) {
                line_add(&line, "EVAL");
                line_text(&line, odd_scripts[i - PLAIN_COMMANDS],
                          strlen(odd_scripts[i - PLAIN_COMMANDS]));
                line_add(&line, "3");
                line_key(&line, 0, NULL);
                line_key(&line, 0, "queue");
                line_key(&line, 0, "fence");
                line_words(&line, "dl1-000000000fac00000000000000000001 17 text");
                ask_both(&line, NO_LEASE);
            }
            if (now_ms() - both.began >=
                SAFE_MS) { /* no lease runs out while others are compared */
                do_both("FLUSHALL");
                both.began = now_ms();
            }
        }
        sequence_end();
    }
}

/* TIME, PTTL and TIME again, sent at once: what was left at that time, if the clock says the same
 * millisecond on both sides of it; else 0 as the time. */
static int64_t lease_at(int64_t *left)
{
    int64_t times[2] = {0, 0};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(redisAppendCommand(both.admin, i == 1 ? "PTTL key" : "TIME"), REDIS_OK);
    }
    for (int i = 0; i < 3; i++) {
        redisReply *reply = read_real(both.admin);
        if (i == 1) {
            *left = reply->integer;
        } else {
            times[i / 2] = strtoll(reply->element[0]->str, NULL, 10) * 1000 +
                           strtoll(reply->element[1]->str, NULL, 10) / 1000;
        }
        freeReplyObject(reply);
    }
    return times[0] == times[1] ? times[0] : 0;
}

/* A key is there while the clock says its last millisecond, with 0 of it left, and not after. */
static void a_key_is_over_when_its_last_millisecond_is(void **state)
{
    int at_the_last = 0;
    int after_it = 0;
    (void)state;
    sequence_begin(1, false);
    do_both("SELECT 0");
    for (int i = 0; i < 1000 && (at_the_last == 0 || after_it == 0); i++) {
        int64_t ends = server_time(&both.server) / 1000 + 3;
        int64_t left = 0;
        do_both("SET key value");
        server_do(&both.server, "SET key value PXAT %lld", (long long)ends);
        model_key_find(both.model, 0, "key", 3, 0)->ends = ends;
        while (left >= 0) {
            int64_t now = lease_at(&left);
            if (now != 0) {
                struct model_key *key = model_key_find(both.model, 0, "key", 3, now * 1000 + 999);
                assert_int_equal(left, key != NULL ? key->ends - now : -2);
                at_the_last += now == ends && left == 0;
                after_it += now == ends + 1 && left == -2;
            }
        }
    }
    assert_true(at_the_last > 0 && after_it > 0);
    do_both("FLUSHALL");
    sequence_end();
}

/* Its own test, because a server hangs up on subscribers whose channels are taken away. */
static void without_a_right_to_channels_nothing_is_published_or_subscribed(void **state)
{
    static const char *const words[] = {"PUBLISH I hello", "SUBSCRIBE I", "PUBSUB NUMSUB I"};
    (void)state;
    sequence_begin(1, false);
    model_switches(both.model)->no_channels = true;
    do_real("ACL SETUSER default resetchannels");
    for (int i = 0; i < 3; i++) {
        struct line line = {0};
        for (const char *at = words[i]; *at != 0; at += strcspn(at, " ") + (strchr(at, ' ') != 0)) {
            line_meant(&line, at, strcspn(at, " "), 0);
        }
        ask_both(&line, NO_LEASE);
    }
    for (int i = 0; i < 2; i++) {
        struct line line = {0};
        line_add(&line, "EVAL");
        line_add(&line, "redis.call('SET', KEYS[1], 'kept') return redis.%s('PUBLISH', 'a', 'b')",
                 i == 0 ? "call" : "pcall");
        line_add(&line, "1");
        line_key(&line, 0, NULL);
        ask_both(&line, NO_LEASE);
        compare_contents();
    }
    sequence_end();
}

/* ---------------------------------------------------------------------------- without a server */

static void sha1_is_that_of_the_server_at_every_length(void **state)
{
    char text[260];
    char hex[41];
    (void)state;
    model_sha1("abc", 3, hex);
    assert_string_equal(hex, "a9993e364706816aba3e25717850c26c9cd0d89d");
    memset(text, ' ', sizeof text);
    for (int length = 0; length < 200; length++) {
        redisReply *reply = server_command(&both.server, "SCRIPT LOAD %b", text, (size_t)length);
        model_sha1(text, (size_t)length, hex);
        assert_string_equal(hex, reply->str);
        freeReplyObject(reply);
    }
    do_both("SCRIPT FLUSH");
}

static void count_message(void *user, struct model_client *to, const char *bytes, size_t length)
{
    (void)bytes;
    (void)length;
    assert_ptr_equal(to->user, user);
    ++*(int *)user;
}

static void must_answer(struct model *model, struct model_client *client, const char *words,
                        int64_t now_us, const char *expected)
{
    struct line line = {0};
    struct model_reply out = {0};
    line_words(&line, words);
    model_execute(model, client, line.argc, line.argv, line.lengths, now_us, &out);
    assert_int_equal(out.length, strlen(expected));
    assert_memory_equal(out.bytes, expected, out.length);
    free(out.bytes);
}

static void models_that_share_a_lua_share_nothing_else(void **state)
{
    struct model *models[2];
    struct model_client clients[2] = {{0}, {0}};
    struct model_client listeners[2] = {{0}, {0}};
    int told[2] = {0, 0};
    char sum[41];
    char words[64];
    (void)state;
    for (int i = 0; i < 2; i++) {
        models[i] = model_open(both.lua, count_message, &told[i]);
        listeners[i].user = &told[i];
    }
    must_answer(models[0], &clients[0], "SET key one PX 100", 0, "+OK\r\n");
    must_answer(models[1], &clients[1], "GET key", 0, "$-1\r\n");
    must_answer(models[1], &clients[1], "SET key two", 0, "+OK\r\n");
    must_answer(models[0], &clients[0], "GET key", 0, "$3\r\none\r\n");
    model_load_script(models[0], "return(7)", 9);
    model_sha1("return(7)", 9, sum);
    (void)snprintf(words, sizeof words, "EVALSHA %s 0", sum);
    must_answer(models[0], &clients[0], words, 0, ":7\r\n");
    must_answer(models[1], &clients[1], words, 0,
                "-NOSCRIPT No matching script. Please use EVAL.\r\n");
    must_answer(models[1], &clients[1], "EVAL return(7) 0", 0, ":7\r\n");
    must_answer(models[1], &clients[1], words, 0, ":7\r\n");
    must_answer(models[0], &listeners[0], "SUBSCRIBE c", 0,
                "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
    must_answer(models[1], &clients[1], "PUBLISH c m", 0, ":0\r\n");
    must_answer(models[0], &clients[0], "PUBLISH c m", 0, ":1\r\n");
    assert_int_equal(told[0], 1);
    assert_int_equal(told[1], 0);
    model_switches(models[0])->out_of_memory = true;
    must_answer(models[1], &clients[1], "SET key three", 0, "+OK\r\n");
    must_answer(models[0], &clients[0], "GET key", 101000, "$-1\r\n");
    assert_int_equal(model_subscribers(models[0], "c", 1), 1);
    model_client_close(models[0], &listeners[0]);
    assert_int_equal(model_subscribers(models[0], "c", 1), 0);
    model_close(models[0]);
    model_close(models[1]);
}

/* Many keys, in the order in which they were made; and a line of many, in its order. */
static void many_keys_and_members_keep_their_order(void **state)
{
    struct model *model = model_open(both.lua, NULL, NULL);
    struct model_client client = {0};
    const struct model_key *line;
    struct model_key *key = NULL;
    int last = -1;
    (void)state;
    for (int i = 0; i < 3000; i++) {
        char words[64];
        (void)snprintf(words, sizeof words, "SET key:%d v PX %d", i, i % 3 == 0 ? 5 : 50);
        must_answer(model, &client, words, 0, "+OK\r\n");
        (void)snprintf(words, sizeof words, "ZADD line %d m%d", i * 7919 % 3000, i);
        must_answer(model, &client, words, 0, ":1\r\n");
    }
    while ((key = model_key_next(model, key, 20000)) != NULL) {
        int number = -1;
        assert_true(key->sorted || sscanf(key->key, "key:%d", &number) == 1);
        assert_true(key->sorted || (number > last && number % 3 != 0));
        last = key->sorted ? last : number;
    }
    assert_int_equal(last, 2999);
    line = model_key_find(model, 0, "line", 4, 0);
    assert_int_equal(line->count, 3000);
    for (size_t i = 1; i < line->count; i++) {
        assert_true(line->members[i - 1].score < line->members[i].score);
    }
    assert_true(model_key_score(line, "m1", 2, -1) == 7919 % 3000);
    assert_true(model_key_score(line, "none", 4, -1) == -1);
    model_close(model);
}

static void a_script_call_costs_little(void **state)
{
    enum { CALLS = 20000 };
    struct model *model = model_open(both.lua, NULL, NULL);
    struct model_client client = {0};
    struct model_reply out = {0};
    int64_t began = now_ms();
    char sums[2][41];
    (void)state;
    model_sha1(DLOCKI_LUA_ACQUIRE, strlen(DLOCKI_LUA_ACQUIRE), sums[0]);
    model_sha1(DLOCKI_LUA_RELEASE, strlen(DLOCKI_LUA_RELEASE), sums[1]);
    model_load_script(model, DLOCKI_LUA_ACQUIRE, strlen(DLOCKI_LUA_ACQUIRE));
    model_load_script(model, DLOCKI_LUA_RELEASE, strlen(DLOCKI_LUA_RELEASE));
    for (int i = 0; i < CALLS; i++) {
        struct line line = {0};
        line_words(&line, "EVALSHA");
        line_add(&line, "%s", sums[i % 2]);
        line_words(&line, "3 K {K}:queue {K}:fence dl1-00000000000000010000000000000001");
        if (i % 2 == 0) {
            line_add(&line, "30000");
        }
        out.length = 0;
        model_execute(model, &client, line.argc, line.argv, line.lengths, START_US + i, &out);
        assert_int_equal(out.bytes[0], ':');
        assert_int_equal(out.bytes[1], '1');
    }
    began = now_ms() - began;
    print_message("%d script calls a second\n", (int)(CALLS * 1000 / (began + 1)));
    free(out.bytes);
    model_close(model);
}

/* ------------------------------------------------------------------------------------- the rest */

static int begin(void **state)
{
    char version[256];
    (void)state;
    server_start(&both.server, false, NULL);
    server_do(&both.server, "ACL SETUSER admin on >secret +@all ~* &*");
    server_text(&both.server, version, sizeof version, "EVAL %s 0",
                "return string.match(redis.call('INFO', 'server'), 'redis_version:([%d.]+)')");
    both.is_7_0 = strncmp(version, "7.0.", 4) == 0;
    both.lua = model_lua_open();
    begin_anew();
    return 0;
}

static int end(void **state)
{
    (void)state;
    for (int i = 0; i < INBOXES; i++) {
        redisFree(both.inboxes[i]);
        model_client_close(both.model, &both.model_inboxes[i]);
        free(both.streams[i].bytes);
    }
    redisFree(both.client);
    redisFree(both.admin);
    model_close(both.model);
    model_lua_close(both.lua);
    server_stop(&both.server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_and_odd_script_is_compared_on_every_kind_of_key),
        cmocka_unit_test(it_answers_and_keeps_and_tells_what_a_server_does),
        cmocka_unit_test(it_does_so_with_the_clock_of_the_server),
        cmocka_unit_test(a_key_is_over_when_its_last_millisecond_is),
        cmocka_unit_test(without_a_right_to_channels_nothing_is_published_or_subscribed),
        cmocka_unit_test(sha1_is_that_of_the_server_at_every_length),
        cmocka_unit_test(models_that_share_a_lua_share_nothing_else),
        cmocka_unit_test(many_keys_and_members_keep_their_order),
        cmocka_unit_test(a_script_call_costs_little),
    };
    if (getenv("DLOCK_SEEDS") == NULL) {
        watchdog(280);
    }
    return cmocka_run_group_tests(tests, begin, end);
}
