/* See model.h. From the bottom: bytes, SHA-1, keys, sorted sets, channels, commands, Lua. */
#include "tests/model.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define POOLED 0
#else
#define POOLED 1
#endif

enum {
    FIRST_BUCKETS = 64,   /* of keys; doubled as they fill          */
    CHANNEL_BUCKETS = 64,
    DATABASES = 16,
    DIGITS_MAX = 40,      /* of a number, and a NUL                 */
    BLOCK_SIZES = 40,
    CHUNK = 1 << 20,
    SCRATCH = 1 << 16,
    FEW_WORDS = 16        /* of a command that need no more memory  */
};

/* Memory of our own, so that programs which watch malloc, or let it fail, see nothing of it. Blocks
 * are of 2^n bytes, and reused. Sanitizers see more in malloc's. */
struct pool {
    char *at; /* what is left of the last chunk */
    size_t left;
    struct chunk *chunks;
    struct block *free[BLOCK_SIZES];
};

struct model_lua {
    struct pool pool;
    lua_State *state;
    int globals;           /* the table behind what scripts see, in the registry */
    int chunks;            /* what was compiled, by its SHA-1                    */
    struct call *running;  /* the EVAL that runs, or NULL                        */
    struct model_reply scratch; /* what commands of scripts answer                 */
    struct model_reply message; /* what is published                               */
};

struct channel {
    struct channel *next;
    struct model_subscription *first;
    struct model_subscription *last;
    uint64_t hash;
    size_t length;
    char name[];
};

struct model_subscription {
    struct model_client *client;
    struct channel *channel;
    struct model_subscription *before; /* in the channel                            */
    struct model_subscription *after;
    struct model_subscription *next; /* of the client, in the order of subscribing */
};

struct model {
    struct model_lua *lua;
    model_deliver *deliver;
    void *user;
    struct model_switches switches;
    size_t key_count;
    size_t bucket_count;
    struct model_key **buckets;
    struct model_key *first;
    struct model_key *last;
    struct channel *channels[CHANNEL_BUCKETS];
    size_t script_count; /* the server's cache: 40 digits each */
    size_t script_room;
    char (*scripts)[40];
};

/* One command, and what it may need to know. */
struct call {
    struct model *model;
    struct model_client *client;
    const struct command *command;
    int database;
    int argc;
    const char *const *argv;
    const size_t *lengths;
    int64_t now_us;
    struct model_reply *out;
    bool scripted;      /* by redis.call or redis.pcall                      */
    bool wrote;         /* an EVAL: one of its commands was one that writes  */
    const char *script; /* an EVAL: its SHA-1                                */
};

struct command {
    const char *name; /* as Redis calls it in errors: lower case, "pubsub|numsub" */
    int words;        /* so many; negative: or more                               */
    unsigned flags;
    void (*run)(struct call *call);
};

enum { WRITES = 1, NEEDS_MEMORY = 2, NOT_IN_SCRIPTS = 4, WHILE_SUBSCRIBED = 8 };

/* -------------------------------------------------------------------------------------- bytes */

static void *must_have(void *memory)
{
    if (memory == NULL) {
        fprintf(stderr, "model: no memory\n");
        abort();
    }
    return memory;
}

struct chunk {
    struct chunk *next;
    size_t size;
};

/* In front of what the taker sees. */
struct block {
    size_t size_log;
    struct block *next;
};

static void *chunk_take(struct pool *pool, size_t size)
{
    struct chunk *chunk = (struct chunk *)mmap(NULL, size, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must_have(chunk == MAP_FAILED ? NULL : chunk);
    chunk->size = size;
    chunk->next = pool->chunks;
    pool->chunks = chunk;
    return chunk + 1;
}

/* All zero. */
static void *take(struct pool *pool, size_t size)
{
    size_t size_log = 5;
    struct block *block;
    if (!POOLED) {
        return must_have(calloc(1, size > 0 ? size : 1));
    }
    while (((size_t)1 << size_log) < size + sizeof *block) {
        size_log++;
    }
    block = pool->free[size_log];
    if (block != NULL) {
        pool->free[size_log] = block->next;
    } else {
        size_t whole = (size_t)1 << size_log;
        if (whole > pool->left) {
            size_t room = whole > CHUNK / 4 ? whole : CHUNK - sizeof(struct chunk);
            pool->at = (char *)chunk_take(pool, room + sizeof(struct chunk));
            pool->left = room;
        }
        block = (struct block *)(void *)pool->at;
        pool->at += whole;
        pool->left -= whole;
        block->size_log = size_log;
    }
    return memset(block + 1, 0, size);
}

static void give(struct pool *pool, void *memory)
{
    if (!POOLED) {
        free(memory);
    } else if (memory != NULL) {
        struct block *block = (struct block *)memory - 1;
        block->next = pool->free[block->size_log];
        pool->free[block->size_log] = block;
    }
}

/* More of it; what is new is not zero. */
static void *take_more(struct pool *pool, void *memory, size_t size)
{
    void *more;
    size_t room;
    if (!POOLED) {
        return must_have(realloc(memory, size));
    }
    if (memory == NULL) {
        return take(pool, size);
    }
    room = ((size_t)1 << ((const struct block *)memory - 1)->size_log) - sizeof(struct block);
    if (size <= room) {
        return memory;
    }
    more = take(pool, size);
    memcpy(more, memory, room);
    give(pool, memory);
    return more;
}

static void pool_close(struct pool *pool)
{
    while (pool->chunks != NULL) {
        struct chunk *chunk = pool->chunks;
        pool->chunks = chunk->next;
        (void)munmap(chunk, chunk->size);
    }
}

static void *lua_memory(void *pool, void *memory, size_t old, size_t size)
{
    (void)old;
    if (size == 0) {
        give((struct pool *)pool, memory);
        return NULL;
    }
    return take_more((struct pool *)pool, memory, size);
}

static char *copy_of(struct pool *pool, const void *bytes, size_t count)
{
    char *copy = (char *)take(pool, count + 1);
    memcpy(copy, bytes, count);
    return copy;
}

static char *reply_room(struct model_reply *out, size_t count)
{
    if (count > out->room - out->length) {
        size_t room = out->room + out->room / 2 + count + 256;
        out->bytes = (char *)must_have(realloc(out->bytes, room));
        out->room = room;
    }
    return out->bytes + out->length;
}

static void put(struct model_reply *out, const void *bytes, size_t count)
{
    memcpy(reply_room(out, count + 1), bytes, count);
    out->length += count;
}

/* ":12\r\n", "*2\r\n", "$5\r\n" */
static void put_number(struct model_reply *out, char mark, long long number)
{
    char digits[DIGITS_MAX];
    char *at = digits + sizeof digits;
    unsigned long long rest =
        number < 0 ? 0ULL - (unsigned long long)number : (unsigned long long)number;
    *--at = '\n';
    *--at = '\r';
    do {
        *--at = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (number < 0) {
        *--at = '-';
    }
    *--at = mark;
    put(out, at, (size_t)(digits + sizeof digits - at));
}

static void put_bulk(struct model_reply *out, const void *bytes, size_t count)
{
    put_number(out, '$', (long long)count);
    put(out, bytes, count);
    put(out, "\r\n", 2);
}

static void put_text(struct model_reply *out, const char *text)
{
    put_bulk(out, text, strlen(text));
}

static void put_null(struct model_reply *out)
{
    put(out, "$-1\r\n", 5);
}

/* A line of its own; what would end it early becomes a blank. */
static void put_line(struct model_reply *out, char mark, const char *text, size_t length)
{
    char *line;
    put(out, &mark, 1);
    line = reply_room(out, length + 2);
    for (size_t i = 0; i < length; i++) {
        line[i] = text[i] == '\r' || text[i] == '\n' ? ' ' : text[i];
    }
    out->length += length;
    put(out, "\r\n", 2);
}

static void put_status(struct call *call, const char *text)
{
    put_line(call->out, '+', text, strlen(text));
}

static void put_error(struct call *call, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void put_error(struct call *call, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    put_line(call->out, '-', text, strlen(text));
}

/* A number as a script hands it to a command, and a score as it is answered. */
static size_t double_text(double number, char *text)
{
    if (isinf(number)) {
        return (size_t)snprintf(text, DIGITS_MAX, "%s", number > 0 ? "inf" : "-inf");
    }
    return (size_t)snprintf(text, DIGITS_MAX, "%.17g", number);
}

static void put_score(struct model_reply *out, double score)
{
    char text[DIGITS_MAX];
    put_bulk(out, text, double_text(score, text));
}

static bool same_bytes(const char *one, size_t length, const char *other, size_t other_length)
{
    return length == other_length && memcmp(one, other, length) == 0;
}

/* Is this argument such a word, in whatever case? */
static bool word_is_like(const struct call *call, int i, const char *word)
{
    return i < call->argc && call->lengths[i] == strlen(word) &&
           strncasecmp(call->argv[i], word, call->lengths[i]) == 0;
}

/* As Redis reads integers: nothing around them, no plus sign, no zero in front. */
static bool integer_of(const char *text, size_t length, long long *number)
{
    bool negative = length > 0 && text[0] == '-';
    unsigned long long value = 0;
    size_t i = negative ? 1 : 0;
    if (length == 1 && text[0] == '0') {
        *number = 0;
        return true;
    }
    if (length - i < 1 || length > 20 || text[i] < '1' || text[i] > '9') {
        return false;
    }
    for (; i < length; i++) {
        unsigned digit = (unsigned)(text[i] - '0');
        if (digit > 9 || value > (UINT64_MAX - digit) / 10) {
            return false;
        }
        value = value * 10 + digit;
    }
    if (value > (unsigned long long)INT64_MAX + (negative ? 1 : 0)) {
        return false;
    }
    *number = negative ? (long long)(0ULL - value) : (long long)value;
    return true;
}

/* The i-th argument as an integer; else false, and the error is the reply. */
static bool integer_at(struct call *call, int i, long long *number)
{
    if (integer_of(call->argv[i], call->lengths[i], number)) {
        return true;
    }
    put_error(call, "ERR value is not an integer or out of range");
    return false;
}

static bool score_at(struct call *call, int i, double *score)
{
    char text[400];
    char *end = NULL;
    size_t length = call->lengths[i];
    bool right =
        length > 0 && length < sizeof text && strchr(" \t\n\v\f\r", call->argv[i][0]) == NULL;
    if (right) {
        memcpy(text, call->argv[i], length);
        text[length] = 0;
        errno = 0;
        *score = strtod(text, &end);
        right = end == text + length && !isnan(*score) &&
                !(errno == ERANGE && (isinf(*score) || *score == 0));
    }
    if (!right) {
        put_error(call, "ERR value is not a valid float");
    }
    return right;
}

/* --------------------------------------------------------------------------------------- SHA-1 */

static uint32_t rotated(uint32_t word, int bits)
{
    return (word << bits) | (word >> (32 - bits));
}

static void sha1_block(uint32_t *state, const unsigned char *block)
{
    uint32_t w[80];
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 16; i++) {
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | (uint32_t)block[4 * i + 3];
    }
    for (int i = 16; i < 80; i++) {
        w[i] = rotated(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    }
    for (int i = 0; i < 80; i++) {
        uint32_t mixed = i < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                         : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                         : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                  : (b ^ c ^ d) + 0xca62c1d6;
        uint32_t next = rotated(a, 5) + mixed + e + w[i];
        e = d;
        d = c;
        c = rotated(b, 30);
        b = a;
        a = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
}

void model_sha1(const void *bytes, size_t count, char *hex)
{
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    const unsigned char *at = (const unsigned char *)bytes;
    unsigned char tail[128] = {0};
    size_t whole = count / 64 * 64;
    size_t rest = count - whole;
    size_t end = rest < 56 ? 64 : 128;
    for (size_t i = 0; i < whole; i += 64) {
        sha1_block(state, at + i);
    }
    memcpy(tail, at + whole, rest);
    tail[rest] = 0x80;
    for (int i = 0; i < 8; i++) {
        tail[end - 1 - (size_t)i] = (unsigned char)((uint64_t)count * 8 >> (8 * i));
    }
    for (size_t i = 0; i < end; i += 64) {
        sha1_block(state, tail + i);
    }
    for (int i = 0; i < 40; i++) {
        hex[i] = "0123456789abcdef"[state[i / 8] >> (28 - 4 * (i % 8)) & 15];
    }
    hex[40] = 0;
}

/* --------------------------------------------------------------------------------- the keyspace */

static uint64_t hash_of(int database, const void *bytes, size_t count)
{
    const unsigned char *at = (const unsigned char *)bytes;
    uint64_t hash = UINT64_C(0xcbf29ce484222325) + (uint64_t)database;
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    }
    return hash ^ (hash >> 32);
}

static void value_clear(struct pool *pool, struct model_key *key)
{
    for (size_t i = 0; i < key->count; i++) {
        give(pool, key->members[i].bytes);
    }
    give(pool, key->members);
    give(pool, key->bytes);
    key->members = NULL;
    key->bytes = NULL;
    key->count = 0;
    key->room = 0;
    key->length = 0;
}

void model_key_delete(struct model *model, struct model_key *key)
{
    struct model_key **at = &model->buckets[key->hash & (model->bucket_count - 1)];
    while (*at != key) {
        at = &(*at)->in_bucket;
    }
    *at = key->in_bucket;
    *(key->before != NULL ? &key->before->after : &model->first) = key->after;
    *(key->after != NULL ? &key->after->before : &model->last) = key->before;
    model->key_count--;
    value_clear(&model->lua->pool, key);
    give(&model->lua->pool, key);
}

/* Over once the clock has passed `ends`, and not yet when it is there: PTTL is 0 then. */
static bool key_is_over(const struct model_key *key, int64_t now_us)
{
    return now_us / 1000 > key->ends;
}

struct model_key *model_key_find(struct model *model, int database, const void *key, size_t length,
                                 int64_t now_us)
{
    uint64_t hash = hash_of(database, key, length);
    struct model_key *one = model->buckets[hash & (model->bucket_count - 1)];
    while (one != NULL && !(one->hash == hash && one->database == database &&
                            same_bytes(one->key, one->key_length, (const char *)key, length))) {
        one = one->in_bucket;
    }
    if (one != NULL && key_is_over(one, now_us)) {
        model_key_delete(model, one);
        return NULL;
    }
    return one;
}

struct model_key *model_key_next(struct model *model, struct model_key *after, int64_t now_us)
{
    struct model_key *next = after != NULL ? after->after : model->first;
    while (next != NULL && key_is_over(next, now_us)) {
        next = next->after;
    }
    return next;
}

static void buckets_grow(struct model *model)
{
    struct pool *pool = &model->lua->pool;
    give(pool, model->buckets);
    model->bucket_count *= 2;
    model->buckets = (struct model_key **)take(pool, model->bucket_count * sizeof *model->buckets);
    for (struct model_key *key = model->first; key != NULL; key = key->after) {
        struct model_key **at = &model->buckets[key->hash & (model->bucket_count - 1)];
        key->in_bucket = *at;
        *at = key;
    }
}

/* A key that is not there yet. */
static struct model_key *key_new(struct model *model, int database, const void *bytes,
                                 size_t length)
{
    struct model_key *key = (struct model_key *)take(&model->lua->pool, sizeof *key + length + 1);
    struct model_key **at;
    if (model->key_count >= model->bucket_count) {
        buckets_grow(model);
    }
    key->database = database;
    key->ends = MODEL_NEVER;
    key->hash = hash_of(database, bytes, length);
    key->key_length = length;
    memcpy(key->key, bytes, length);
    at = &model->buckets[key->hash & (model->bucket_count - 1)];
    key->in_bucket = *at;
    *at = key;
    key->before = model->last;
    *(model->last != NULL ? &model->last->after : &model->first) = key;
    model->last = key;
    model->key_count++;
    return key;
}

struct model_key *model_key_set(struct model *model, int database, const void *key, size_t length,
                                const void *bytes, size_t count, int64_t ends)
{
    /* What it held, and until when, is replaced, so it does not matter whether it was over. */
    struct model_key *one = model_key_find(model, database, key, length, INT64_MIN);
    struct pool *pool = &model->lua->pool;
    if (one == NULL) {
        one = key_new(model, database, key, length);
    }
    value_clear(pool, one);
    one->sorted = false;
    one->bytes = copy_of(pool, bytes, count);
    one->length = count;
    one->ends = ends;
    return one;
}

/* --------------------------------------------------------------------------------- sorted sets */

#define NOWHERE SIZE_MAX

static int bytes_order(const char *one, size_t length, const char *other, size_t other_length)
{
    int order = memcmp(one, other, length < other_length ? length : other_length);
    return order != 0 ? order : (length > other_length) - (length < other_length);
}

static size_t member_find(const struct model_key *key, const void *bytes, size_t length)
{
    for (size_t i = 0; i < key->count; i++) {
        if (same_bytes(key->members[i].bytes, key->members[i].length, (const char *)bytes,
                       length)) {
            return i;
        }
    }
    return NOWHERE;
}

/* Puts a member that is not in the set to its place. */
static void member_insert(struct pool *pool, struct model_key *key, struct model_member member)
{
    size_t low = 0;
    size_t high = key->count;
    member.score += 0.0; /* -0 becomes 0 */
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct model_member *one = &key->members[middle];
        if (one->score < member.score ||
            (one->score == member.score &&
             bytes_order(one->bytes, one->length, member.bytes, member.length) < 0)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (key->count == key->room) {
        key->room = key->room * 2 + 4;
        key->members =
            (struct model_member *)take_more(pool, key->members, key->room * sizeof *key->members);
    }
    memmove(key->members + low + 1, key->members + low, (key->count - low) * sizeof member);
    key->members[low] = member;
    key->count++;
}

/* Takes `count` members out; their bytes are the caller's. */
static void members_cut(struct model_key *key, size_t from, size_t count)
{
    key->count -= count;
    memmove(key->members + from, key->members + from + count,
            (key->count - from) * sizeof *key->members);
}

static void member_move(struct pool *pool, struct model_key *key, size_t index, double score)
{
    struct model_member member = key->members[index];
    members_cut(key, index, 1);
    member.score = score;
    member_insert(pool, key, member);
}

double model_key_score(const struct model_key *key, const void *member, size_t length,
                       double otherwise)
{
    size_t index = key != NULL && key->sorted ? member_find(key, member, length) : NOWHERE;
    return index != NOWHERE ? key->members[index].score : otherwise;
}

/* --------------------------------------------------------------------------------- the channels */

static struct channel **channel_place(struct model *model, const char *name, size_t length)
{
    uint64_t hash = hash_of(0, name, length);
    struct channel **at = &model->channels[hash % CHANNEL_BUCKETS];
    while (*at != NULL &&
           !((*at)->hash == hash && same_bytes((*at)->name, (*at)->length, name, length))) {
        at = &(*at)->next;
    }
    return at;
}

static struct channel *channel_make(struct model *model, const char *name, size_t length)
{
    struct channel **at = channel_place(model, name, length);
    if (*at == NULL) {
        *at = (struct channel *)take(&model->lua->pool, sizeof **at + length + 1);
        (*at)->hash = hash_of(0, name, length);
        (*at)->length = length;
        memcpy((*at)->name, name, length);
    }
    return *at;
}

int model_subscribers(struct model *model, const char *channel, size_t length)
{
    const struct channel *one = *channel_place(model, channel, length);
    int count = 0;
    for (const struct model_subscription *each = one != NULL ? one->first : NULL; each != NULL;
         each = each->after) {
        count++;
    }
    return count;
}

static void subscribe(struct model *model, struct model_client *client, const char *name,
                      size_t length)
{
    struct channel *channel = channel_make(model, name, length);
    struct model_subscription **at = &client->subscriptions;
    struct model_subscription *one;
    while (*at != NULL) {
        if ((*at)->channel == channel) {
            return;
        }
        at = &(*at)->next;
    }
    one = (struct model_subscription *)take(&model->lua->pool, sizeof *one);
    one->client = client;
    one->channel = channel;
    one->before = channel->last;
    *(channel->last != NULL ? &channel->last->after : &channel->first) = one;
    channel->last = one;
    *at = one;
    client->channel_count++;
}

static void unsubscribe(struct model *model, struct model_client *client,
                        struct model_subscription **at)
{
    struct model_subscription *one = *at;
    struct channel *channel = one->channel;
    *at = one->next;
    client->channel_count--;
    *(one->before != NULL ? &one->before->after : &channel->first) = one->after;
    *(one->after != NULL ? &one->after->before : &channel->last) = one->before;
    if (channel->first == NULL) {
        *channel_place(model, channel->name, channel->length) = channel->next;
        give(&model->lua->pool, channel);
    }
    give(&model->lua->pool, one);
}

void model_client_close(struct model *model, struct model_client *client)
{
    while (client->subscriptions != NULL) {
        unsubscribe(model, client, &client->subscriptions);
    }
}

/* ------------------------------------------------------------------------- commands: strings */

static const char wrong_type[] =
    "WRONGTYPE Operation against a key holding the wrong kind of value";

static struct model_key *key_at(struct call *call, int i)
{
    return model_key_find(call->model, call->database, call->argv[i], call->lengths[i],
                          call->now_us);
}

/* The key that a command is about, which must be of its kind, if it is there: `*key` is NULL then.
 * Else false, and the error is the reply. */
static bool key_of_kind(struct call *call, bool sorted, struct model_key **key)
{
    *key = key_at(call, 1);
    if (*key != NULL && (*key)->sorted != sorted) {
        put_error(call, "%s", wrong_type);
        return false;
    }
    return true;
}

static void run_get(struct call *call)
{
    struct model_key *key;
    if (!key_of_kind(call, false, &key)) {
        return;
    }
    if (key == NULL) {
        put_null(call->out);
    } else {
        put_bulk(call->out, key->bytes, key->length);
    }
}

static void run_strlen(struct call *call)
{
    struct model_key *key;
    if (key_of_kind(call, false, &key)) {
        put_number(call->out, ':', key != NULL ? (long long)key->length : 0);
    }
}

static void run_getrange(struct call *call)
{
    struct model_key *key;
    long long from;
    long long to;
    long long length;
    if (!integer_at(call, 2, &from) || !integer_at(call, 3, &to) ||
        !key_of_kind(call, false, &key)) {
        return;
    }
    length = key != NULL ? (long long)key->length : 0;
    if (length == 0 || (from < 0 && to < 0 && from > to)) {
        put_bulk(call->out, "", 0);
        return;
    }
    from = from < -length ? 0 : from < 0 ? length + from : from;
    to = to < -length ? 0 : to < 0 ? length + to : to >= length ? length - 1 : to;
    put_bulk(call->out, from > to ? "" : key->bytes + from,
             from > to ? 0 : (size_t)(to - from + 1));
}

static void run_set(struct call *call)
{
    bool only_new = false;
    bool only_old = false;
    int expiry_at = 0;
    long long expiry = 0;
    int64_t now = call->now_us / 1000;
    struct model_key *key;
    for (int i = 3; i < call->argc; i++) {
        if (word_is_like(call, i, "NX") && !only_old) {
            only_new = true;
        } else if (word_is_like(call, i, "XX") && !only_new) {
            only_old = true;
        } else if (word_is_like(call, i, "PX") && expiry_at == 0 && i + 1 < call->argc) {
            expiry_at = ++i;
        } else {
            put_error(call, "ERR syntax error");
            return;
        }
    }
    if (expiry_at != 0) {
        if (!integer_at(call, expiry_at, &expiry)) {
            return;
        }
        if (expiry <= 0 || expiry > INT64_MAX - now) {
            put_error(call, "ERR invalid expire time in 'set' command");
            return;
        }
    }
    key = key_at(call, 1);
    if ((only_new && key != NULL) || (only_old && key == NULL)) {
        put_null(call->out);
        return;
    }
    model_key_set(call->model, call->database, call->argv[1], call->lengths[1], call->argv[2],
                  call->lengths[2], expiry_at != 0 ? now + expiry : MODEL_NEVER);
    put_status(call, "OK");
}

/* ----------------------------------------------------------------------- commands: keys, clock */

static void run_del(struct call *call)
{
    int count = 0;
    for (int i = 1; i < call->argc; i++) {
        struct model_key *key = key_at(call, i);
        if (key != NULL) {
            model_key_delete(call->model, key);
            count++;
        }
    }
    put_number(call->out, ':', count);
}

static void run_exists(struct call *call)
{
    int count = 0;
    for (int i = 1; i < call->argc; i++) {
        count += key_at(call, i) != NULL;
    }
    put_number(call->out, ':', count);
}

static void run_type(struct call *call)
{
    const struct model_key *key = key_at(call, 1);
    put_status(call, key == NULL ? "none" : key->sorted ? "zset" : "string");
}

static void run_pttl(struct call *call)
{
    const struct model_key *key = key_at(call, 1);
    put_number(call->out, ':',
               key == NULL                ? -2
               : key->ends == MODEL_NEVER ? -1
                                          : key->ends - call->now_us / 1000);
}

static void run_pexpire(struct call *call)
{
    int64_t now = call->now_us / 1000;
    struct model_key *key;
    long long span;
    if (!integer_at(call, 2, &span)) {
        return;
    }
    if (span > INT64_MAX - now) {
        put_error(call, "ERR invalid expire time in 'pexpire' command");
        return;
    }
    key = key_at(call, 1);
    if (key != NULL && span <= 0) {
        model_key_delete(call->model, key);
    } else if (key != NULL) {
        key->ends = now + span;
    }
    put_number(call->out, ':', key != NULL);
}

static void run_time(struct call *call)
{
    char text[DIGITS_MAX];
    put_number(call->out, '*', 2);
    (void)snprintf(text, sizeof text, "%lld", (long long)(call->now_us / 1000000));
    put_text(call->out, text);
    (void)snprintf(text, sizeof text, "%lld", (long long)(call->now_us % 1000000));
    put_text(call->out, text);
}

/* All of them, in the order in which they were made. */
static void run_keys(struct call *call)
{
    struct model *model = call->model;
    int count = 0;
    if (!same_bytes(call->argv[1], call->lengths[1], "*", 1)) {
        put_error(call, "ERR the model knows no pattern but *");
        return;
    }
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) {
            put_number(call->out, '*', count);
        }
        for (struct model_key *key = model_key_next(model, NULL, call->now_us); key != NULL;
             key = model_key_next(model, key, call->now_us)) {
            if (key->database == call->database && pass == 1) {
                put_bulk(call->out, key->key, key->key_length);
            }
            count += key->database == call->database;
        }
    }
}

static void run_flushall(struct call *call)
{
    if (call->argc > 2 ||
        (call->argc == 2 && !word_is_like(call, 1, "SYNC") && !word_is_like(call, 1, "ASYNC"))) {
        put_error(call, "ERR syntax error");
        return;
    }
    while (call->model->first != NULL) {
        model_key_delete(call->model, call->model->first);
    }
    put_status(call, "OK");
}

/* --------------------------------------------------------------------- commands: sorted sets */

struct zadd {
    bool only_new;
    bool greater;
    bool changes; /* count the updated ones, too */
    int added;
    int updated;
};

static void zadd_one(struct call *call, struct zadd *how, struct model_key *key, int at,
                     double score)
{
    struct pool *pool = &call->model->lua->pool;
    size_t index = member_find(key, call->argv[at], call->lengths[at]);
    if (index == NOWHERE) {
        struct model_member member = {score, call->lengths[at],
                                      copy_of(pool, call->argv[at], call->lengths[at])};
        member_insert(pool, key, member);
        how->added++;
        return;
    }
    if (how->only_new || (how->greater && score <= key->members[index].score) ||
        score == key->members[index].score) {
        return;
    }
    member_move(pool, key, index, score);
    how->updated++;
}

static void run_zadd(struct call *call)
{
    struct zadd how = {false, false, false, 0, 0};
    struct model_key *key;
    double *scores;
    int at = 2;
    int count;
    bool right = true;
    for (;; at++) {
        if (word_is_like(call, at, "NX")) {
            how.only_new = true;
        } else if (word_is_like(call, at, "GT")) {
            how.greater = true;
        } else if (word_is_like(call, at, "CH")) {
            how.changes = true;
        } else {
            break;
        }
    }
    count = (call->argc - at) / 2;
    if (count == 0 || (call->argc - at) % 2 != 0) {
        put_error(call, "ERR syntax error");
        return;
    }
    if (how.only_new && how.greater) {
        put_error(call, "ERR GT, LT, and/or NX options at the same time are not compatible");
        return;
    }
    scores = (double *)take(&call->model->lua->pool, (size_t)count * sizeof *scores);
    for (int i = 0; i < count && right; i++) {
        right = score_at(call, at + 2 * i, &scores[i]);
    }
    if (right && key_of_kind(call, true, &key)) {
        if (key == NULL) {
            key = key_new(call->model, call->database, call->argv[1], call->lengths[1]);
            key->sorted = true;
        }
        for (int i = 0; i < count; i++) {
            zadd_one(call, &how, key, at + 2 * i + 1, scores[i]);
        }
        put_number(call->out, ':', how.added + (how.changes ? how.updated : 0));
    }
    give(&call->model->lua->pool, scores);
}

static void run_zincrby(struct call *call)
{
    struct model_key *key;
    struct zadd how = {false, false, false, 0, 0};
    double score;
    if (!score_at(call, 2, &score) || !key_of_kind(call, true, &key)) {
        return;
    }
    score += model_key_score(key, call->argv[3], call->lengths[3], 0);
    if (isnan(score)) {
        put_error(call, "ERR resulting score is not a number (NaN)");
        return;
    }
    if (key == NULL) {
        key = key_new(call->model, call->database, call->argv[1], call->lengths[1]);
        key->sorted = true;
    }
    zadd_one(call, &how, key, 3, score);
    put_score(call->out, score);
}

/* A sorted set without members is no key. */
static void drop_if_empty(struct call *call, struct model_key *key)
{
    if (key->count == 0) {
        model_key_delete(call->model, key);
    }
}

static void run_zrem(struct call *call)
{
    struct model_key *key;
    int count = 0;
    if (!key_of_kind(call, true, &key)) {
        return;
    }
    for (int i = 2; i < call->argc && key != NULL; i++) {
        size_t index = member_find(key, call->argv[i], call->lengths[i]);
        if (index != NOWHERE) {
            give(&call->model->lua->pool, key->members[index].bytes);
            members_cut(key, index, 1);
            count++;
        }
    }
    if (key != NULL) {
        drop_if_empty(call, key);
    }
    put_number(call->out, ':', count);
}

static void run_zpopmin(struct call *call)
{
    struct model_key *key;
    long long most = 1;
    size_t count;
    if (call->argc > 3) {
        put_error(call, "ERR syntax error");
        return;
    }
    if (call->argc == 3 && (!integer_of(call->argv[2], call->lengths[2], &most) || most < 0)) {
        put_error(call, "ERR value is out of range, must be positive");
        return;
    }
    if (!key_of_kind(call, true, &key)) {
        return;
    }
    count = key == NULL ? 0 : (size_t)most < key->count ? (size_t)most : key->count;
    put_number(call->out, '*', 2 * (long long)count);
    for (size_t i = 0; i < count; i++) {
        put_bulk(call->out, key->members[i].bytes, key->members[i].length);
        put_score(call->out, key->members[i].score);
        give(&call->model->lua->pool, key->members[i].bytes);
    }
    if (count > 0) {
        members_cut(key, 0, count);
        drop_if_empty(call, key);
    }
}

static void run_zrange(struct call *call)
{
    struct model_key *key;
    bool scores = word_is_like(call, 4, "WITHSCORES");
    long long from;
    long long to;
    long long count;
    if (call->argc > (scores ? 5 : 4)) {
        put_error(call, "ERR syntax error");
        return;
    }
    if (!integer_at(call, 2, &from) || !integer_at(call, 3, &to) ||
        !key_of_kind(call, true, &key)) {
        return;
    }
    count = key != NULL ? (long long)key->count : 0;
    from = from < -count ? 0 : from < 0 ? count + from : from;
    to = to < -count ? -1 : to < 0 ? count + to : to >= count ? count - 1 : to;
    put_number(call->out, '*', from > to ? 0 : (to - from + 1) * (scores ? 2 : 1));
    for (; from <= to; from++) {
        put_bulk(call->out, key->members[from].bytes, key->members[from].length);
        if (scores) {
            put_score(call->out, key->members[from].score);
        }
    }
}

/* ZRANK and ZSCORE */
static void run_zlook(struct call *call)
{
    struct model_key *key;
    size_t index;
    if (!key_of_kind(call, true, &key)) {
        return;
    }
    index = key != NULL ? member_find(key, call->argv[2], call->lengths[2]) : NOWHERE;
    if (index == NOWHERE) {
        put_null(call->out);
    } else if (call->command->name[1] == 'r') {
        put_number(call->out, ':', (long long)index);
    } else {
        put_score(call->out, key->members[index].score);
    }
}

static void run_zcard(struct call *call)
{
    struct model_key *key;
    if (key_of_kind(call, true, &key)) {
        put_number(call->out, ':', key != NULL ? (long long)key->count : 0);
    }
}

/* ----------------------------------------------------------------------- commands: messages */

static void run_publish(struct call *call)
{
    struct model *model = call->model;
    const struct channel *channel = *channel_place(model, call->argv[1], call->lengths[1]);
    struct model_reply *message = &model->lua->message;
    int count = 0;
    if (channel != NULL) {
        message->length = 0;
        put(message, "*3\r\n$7\r\nmessage\r\n", 17);
        put_bulk(message, call->argv[1], call->lengths[1]);
        put_bulk(message, call->argv[2], call->lengths[2]);
        for (struct model_subscription *one = channel->first; one != NULL; one = one->after) {
            count++;
            if (model->deliver != NULL) {
                model->deliver(model->user, one->client, message->bytes, message->length);
            }
        }
    }
    put_number(call->out, ':', count);
}

static void put_subscription(struct call *call, const char *what, const char *name, size_t length)
{
    put_number(call->out, '*', 3);
    put_text(call->out, what);
    if (name != NULL) {
        put_bulk(call->out, name, length);
    } else {
        put_null(call->out);
    }
    put_number(call->out, ':', call->client->channel_count);
}

static void run_subscribe(struct call *call)
{
    for (int i = 1; i < call->argc; i++) {
        subscribe(call->model, call->client, call->argv[i], call->lengths[i]);
        put_subscription(call, "subscribe", call->argv[i], call->lengths[i]);
    }
}

static void run_unsubscribe(struct call *call)
{
    struct model_client *client = call->client;
    if (call->argc == 1 && client->subscriptions == NULL) {
        put_subscription(call, "unsubscribe", NULL, 0);
    }
    while (call->argc == 1 && client->subscriptions != NULL) {
        const struct channel *channel = client->subscriptions->channel;
        char *name = copy_of(&call->model->lua->pool, channel->name, channel->length);
        size_t length = channel->length;
        unsubscribe(call->model, client, &client->subscriptions);
        put_subscription(call, "unsubscribe", name, length);
        give(&call->model->lua->pool, name);
    }
    for (int i = 1; i < call->argc; i++) {
        struct model_subscription **at = &client->subscriptions;
        while (*at != NULL && !same_bytes((*at)->channel->name, (*at)->channel->length,
                                          call->argv[i], call->lengths[i])) {
            at = &(*at)->next;
        }
        if (*at != NULL) {
            unsubscribe(call->model, client, at);
        }
        put_subscription(call, "unsubscribe", call->argv[i], call->lengths[i]);
    }
}

static void run_numsub(struct call *call)
{
    put_number(call->out, '*', 2 * (call->argc - 2));
    for (int i = 2; i < call->argc; i++) {
        put_bulk(call->out, call->argv[i], call->lengths[i]);
        put_number(call->out, ':', model_subscribers(call->model, call->argv[i], call->lengths[i]));
    }
}

/* -------------------------------------------------------------------- commands: the connection */

static void run_ping(struct call *call)
{
    const char *text = call->argc == 2 ? call->argv[1] : "";
    size_t length = call->argc == 2 ? call->lengths[1] : 0;
    if (call->argc > 2) {
        put_error(call, "ERR wrong number of arguments for 'ping' command");
    } else if (!call->scripted && call->client->channel_count > 0) {
        put_number(call->out, '*', 2);
        put_text(call->out, "pong");
        put_bulk(call->out, text, length);
    } else if (call->argc == 2) {
        put_bulk(call->out, text, length);
    } else {
        put_status(call, "PONG");
    }
}

/* In a script it changes the script's database, and nobody else's. */
static void run_select(struct call *call)
{
    long long database;
    int databases;
    if (!integer_at(call, 1, &database)) {
        return;
    }
    databases = call->model->switches.databases;
    if (database < 0 || database >= (databases > 0 ? databases : DATABASES)) {
        put_error(call, "ERR DB index is out of range");
        return;
    }
    call->database = (int)database;
    put_status(call, "OK");
}

static void run_setname(struct call *call)
{
    for (size_t i = 0; i < call->lengths[2]; i++) {
        if (call->argv[2][i] < '!' || call->argv[2][i] > '~') {
            put_error(call,
                      "ERR Client names cannot contain spaces, newlines or special characters.");
            return;
        }
    }
    put_status(call, "OK");
}

/* ------------------------------------------------------------------------ commands: scripts */

static void run_eval(struct call *call);
static void run_script_load(struct call *call);

bool model_knows_script(const struct model *model, const char *sha1)
{
    for (size_t i = 0; i < model->script_count; i++) {
        if (memcmp(model->scripts[i], sha1, 40) == 0) {
            return true;
        }
    }
    return false;
}

static void script_remember(struct model *model, const char *sha1)
{
    if (model_knows_script(model, sha1)) {
        return;
    }
    if (model->script_count == model->script_room) {
        model->script_room = model->script_room * 2 + 8;
        model->scripts = (char(*)[40])take_more(&model->lua->pool, model->scripts,
                                                model->script_room * sizeof *model->scripts);
    }
    memcpy(model->scripts[model->script_count++], sha1, 40);
}

/* Digits as they stand in an argument, in lower case; false: no digits of a SHA-1. */
static bool sha1_at(const struct call *call, int i, char *sha1)
{
    if (call->lengths[i] != 40) {
        return false;
    }
    for (int j = 0; j < 40; j++) {
        char letter = call->argv[i][j];
        sha1[j] = (char)(letter >= 'A' && letter <= 'Z' ? letter + 32 : letter);
    }
    sha1[40] = 0;
    return true;
}

static void run_script_exists(struct call *call)
{
    put_number(call->out, '*', call->argc - 2);
    for (int i = 2; i < call->argc; i++) {
        char sha1[41];
        put_number(call->out, ':', sha1_at(call, i, sha1) && model_knows_script(call->model, sha1));
    }
}

static void run_script_flush(struct call *call)
{
    if (call->argc > 3 ||
        (call->argc == 3 && !word_is_like(call, 2, "SYNC") && !word_is_like(call, 2, "ASYNC"))) {
        put_error(call, "ERR SCRIPT FLUSH only support SYNC|ASYNC option");
        return;
    }
    model_forget_scripts(call->model);
    put_status(call, "OK");
}

/* --------------------------------------------------------------------------- which command */

/* Those that scripts use stand first. */
static const struct command commands[] = {
    {"get", 2, 0, run_get},
    {"time", 1, 0, run_time},
    {"exists", -2, 0, run_exists},
    {"zadd", -4, WRITES | NEEDS_MEMORY, run_zadd},
    {"pexpire", 3, WRITES, run_pexpire},
    {"set", -3, WRITES | NEEDS_MEMORY, run_set},
    {"del", -2, WRITES, run_del},
    {"pttl", 2, 0, run_pttl},
    {"zpopmin", -2, WRITES, run_zpopmin},
    {"pubsub|numsub", -2, 0, run_numsub},
    {"publish", 3, 0, run_publish},
    {"zscore", 3, 0, run_zlook},
    {"zrange", -4, 0, run_zrange},
    {"zrank", 3, 0, run_zlook},
    {"zrem", -3, WRITES, run_zrem},
    {"zincrby", 4, WRITES | NEEDS_MEMORY, run_zincrby},
    {"zcard", 2, 0, run_zcard},
    {"evalsha", -3, NOT_IN_SCRIPTS, run_eval},
    {"eval", -3, NOT_IN_SCRIPTS, run_eval},
    {"ping", -1, WHILE_SUBSCRIBED, run_ping},
    {"subscribe", -2, NOT_IN_SCRIPTS | WHILE_SUBSCRIBED, run_subscribe},
    {"unsubscribe", -1, NOT_IN_SCRIPTS | WHILE_SUBSCRIBED, run_unsubscribe},
    {"type", 2, 0, run_type},
    {"strlen", 2, 0, run_strlen},
    {"getrange", 4, 0, run_getrange},
    {"select", 2, 0, run_select},
    {"client|setname", 3, NOT_IN_SCRIPTS, run_setname},
    {"script|load", 3, NOT_IN_SCRIPTS, run_script_load},
    {"script|exists", -3, NOT_IN_SCRIPTS, run_script_exists},
    {"script|flush", -2, NOT_IN_SCRIPTS, run_script_flush},
    {"flushall", -1, WRITES, run_flushall},
    {"keys", 2, 0, run_keys},
};

enum { COMMANDS = sizeof commands / sizeof *commands };

/* Is `name` what a command's first word, or its first two, say? */
static bool command_is(const char *name, int argc, const char *const *argv, const size_t *lengths)
{
    size_t first = strcspn(name, "|");
    if (lengths[0] != first || strncasecmp(name, argv[0], first) != 0) {
        return false;
    }
    return name[first] == 0 || (argc > 1 && lengths[1] == strlen(name + first + 1) &&
                                strncasecmp(name + first + 1, argv[1], lengths[1]) == 0);
}

static const struct command *command_find(int argc, const char *const *argv, const size_t *lengths)
{
    for (int i = 0; i < COMMANDS; i++) {
        if (command_is(commands[i].name, argc, argv, lengths)) {
            return &commands[i];
        }
    }
    return NULL;
}

static bool right_count(const struct call *call)
{
    int words = call->command->words;
    return words >= 0 ? call->argc == words : call->argc >= -words;
}

static bool is_forbidden(const struct call *call)
{
    const struct model_switches *switches = &call->model->switches;
    void (*run)(struct call *) = call->command->run;
    return (run == run_publish && switches->no_publish) ||
           (run == run_numsub && switches->no_pubsub) ||
           (run == run_subscribe && switches->no_subscribe) ||
           (run == run_eval && switches->no_scripts);
}

static bool is_forbidden_channel(const struct call *call)
{
    return call->model->switches.no_channels &&
           (call->command->run == run_publish || call->command->run == run_subscribe);
}

/* The first word is that of commands of two words? In lower case; NULL: no. */
static const char *family_of(const struct call *call)
{
    static const char *const families[] = {"pubsub", "client", "script"};
    for (int i = 0; i < 3; i++) {
        if (word_is_like(call, 0, families[i])) {
            return families[i];
        }
    }
    return NULL;
}

static void put_no_such_subcommand(struct call *call, const char *family)
{
    char name[16] = "";
    if (call->argc == 1) {
        put_error(call, "ERR wrong number of arguments for '%s' command", family);
        return;
    }
    for (int i = 0; family[i] != 0; i++) {
        name[i] = (char)(family[i] - 32);
    }
    put_error(call, "ERR unknown subcommand '%.*s'. Try %s HELP.",
              (int)(call->lengths[1] < 128 ? call->lengths[1] : 128), call->argv[1], name);
}

static void put_unknown(struct call *call)
{
    char words[160] = "";
    int length = 0;
    for (int i = 1; i < call->argc && length < 128; i++) {
        int most = 128 - length;
        int have = call->lengths[i] < (size_t)most ? (int)call->lengths[i] : most;
        length +=
            snprintf(words + length, sizeof words - (size_t)length, "'%.*s' ", have, call->argv[i]);
    }
    put_error(call, "ERR unknown command '%.*s', with args beginning with: %s",
              (int)(call->lengths[0] < 128 ? call->lengths[0] : 128), call->argv[0], words);
}

static const char out_of_memory[] = "OOM command not allowed when used memory > 'maxmemory'.";

void model_execute(struct model *model, struct model_client *client, int argc,
                   const char *const *argv, const size_t *lengths, int64_t now_us,
                   struct model_reply *out)
{
    struct call call = {model, client, NULL, client->database, argc, argv, lengths, now_us, out,
                        false, false,  NULL};
    const char *family;
    call.command = command_find(argc, argv, lengths);
    family = call.command == NULL ? family_of(&call) : NULL;
    if (family != NULL) {
        put_no_such_subcommand(&call, family);
    } else if (call.command == NULL) {
        put_unknown(&call);
    } else if (!right_count(&call)) {
        put_error(&call, "ERR wrong number of arguments for '%s' command", call.command->name);
    } else if (is_forbidden(&call)) {
        put_error(&call, "NOPERM this user has no permissions to run the '%s' command",
                  call.command->name);
    } else if (is_forbidden_channel(&call)) {
        put_error(&call, "NOPERM this user has no permissions to access one of the channels used "
                         "as arguments");
    } else if (model->switches.out_of_memory && (call.command->flags & NEEDS_MEMORY) != 0) {
        put_error(&call, "%s", out_of_memory);
    } else if (client->channel_count > 0 && (call.command->flags & WHILE_SUBSCRIBED) == 0) {
        put_error(&call,
                  "ERR Can't execute '%s': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / "
                  "RESET are allowed in this context",
                  call.command->name);
    } else {
        call.command->run(&call);
        client->database = call.database;
    }
}

/* -------------------------------------------------------------------------- Lua: replies to it */

/* As a reply of one line would say it, a dash in front; without one it gets a code of its own. */
static void push_error(lua_State *lua, const char *text, size_t length)
{
    const char *blank = length > 0 && text[0] == '-' ? memchr(text, ' ', length) : NULL;
    lua_newtable(lua);
    if (blank != NULL) {
        lua_pushlstring(lua, text + 1, length - 1);
    } else {
        lua_pushliteral(lua, "ERR ");
        lua_pushlstring(lua, text + (length > 0 && text[0] == '-'),
                        length - (length > 0 && text[0] == '-'));
        lua_concat(lua, 2);
    }
    lua_setfield(lua, -2, "err");
}

/* Pushes the reply that begins at `at`; where does the next one begin? */
static const char *push_reply(lua_State *lua, const char *at)
{
    const char *end = strchr(at, '\r');
    size_t length = (size_t)(end - at);
    long long number = 0;
    luaL_checkstack(lua, 4, "reply");
    switch (*at) {
    case '-':
        push_error(lua, at, length);
        return end + 2;
    case '+':
        lua_newtable(lua);
        lua_pushlstring(lua, at + 1, length - 1);
        lua_setfield(lua, -2, "ok");
        return end + 2;
    default:
        break;
    }
    (void)integer_of(at + 1, length - 1, &number);
    if (*at == ':') {
        lua_pushnumber(lua, (lua_Number)number);
        return end + 2;
    }
    if (number < 0) { /* what is not there is false */
        lua_pushboolean(lua, 0);
        return end + 2;
    }
    if (*at == '$') {
        lua_pushlstring(lua, end + 2, (size_t)number);
        return end + 2 + number + 2;
    }
    lua_createtable(lua, (int)number, 0);
    at = end + 2;
    for (int i = 1; i <= (int)number; i++) {
        at = push_reply(lua, at);
        lua_rawseti(lua, -2, i);
    }
    return at;
}

/* ---------------------------------------------------------------------- Lua: redis.call, pcall */

/* May a script do this? NULL, or what it is told. */
static const char *scripted_refusal(const struct call *call, const struct call *eval)
{
    if (call->command == NULL && (call->argc > 1 || family_of(call) == NULL)) {
        return "Unknown Redis command called from script";
    }
    if (call->command == NULL || !right_count(call)) {
        return "Wrong number of args calling Redis command from script";
    }
    if ((call->command->flags & NOT_IN_SCRIPTS) != 0) {
        return "This Redis command is not allowed from script";
    }
    if (is_forbidden(call)) {
        return "The user executing the script can't run this command or subcommand";
    }
    if (is_forbidden_channel(call)) {
        return "The user executing the script can't publish to the channel mentioned in the "
               "command";
    }
    if (call->model->switches.out_of_memory && (call->command->flags & NEEDS_MEMORY) != 0 &&
        !eval->wrote) {
        return "-OOM command not allowed when used memory > 'maxmemory'.";
    }
    return NULL;
}

/* Executes the words as a command of the script that runs, and pushes what it answers. Was that an
 * error? */
static bool scripted_command(lua_State *state, struct model_lua *lua, int argc,
                             const char *const *argv, const size_t *lengths)
{
    struct call *eval = lua->running;
    struct call call = {eval->model, eval->client, NULL,          eval->database, argc,  argv,
                        lengths,     eval->now_us, &lua->scratch, true,           false, NULL};
    const char *refusal;
    call.command = command_find(argc, argv, lengths);
    refusal = scripted_refusal(&call, eval);
    if (refusal != NULL) {
        push_error(state, refusal, strlen(refusal));
        return true;
    }
    if ((call.command->flags & WRITES) != 0) {
        eval->wrote = true;
    }
    lua->scratch.length = 0;
    call.command->run(&call);
    put(&lua->scratch, "", 1);
    eval->database = call.database;
    (void)push_reply(state, lua->scratch.bytes);
    return lua->scratch.bytes[0] == '-';
}

struct words {
    const char *bytes[FEW_WORDS];
    size_t lengths[FEW_WORDS];
    char digits[FEW_WORDS][DIGITS_MAX];
};

static int redis_call(lua_State *state, bool raises)
{
    struct model_lua *lua = (struct model_lua *)lua_touserdata(state, lua_upvalueindex(1));
    int argc = lua_gettop(state);
    struct words few;
    const char **argv = few.bytes;
    size_t *lengths = few.lengths;
    char(*digits)[DIGITS_MAX] = few.digits;
    bool failed;
    if (argc > FEW_WORDS) { /* the collector's memory, since an error may leave from here */
        size_t count = (size_t)argc;
        luaL_checkstack(state, 3, "arguments");
        argv = (const char **)lua_newuserdata(state, count * sizeof *argv);
        lengths = (size_t *)lua_newuserdata(state, count * sizeof *lengths);
        digits = (char(*)[DIGITS_MAX])lua_newuserdata(state, count * sizeof *digits);
    }
    for (int i = 0; i < argc; i++) {
        if (lua_type(state, i + 1) == LUA_TNUMBER) {
            lengths[i] = double_text(lua_tonumber(state, i + 1), digits[i]);
            argv[i] = digits[i];
        } else {
            argv[i] = lua_tolstring(state, i + 1, &lengths[i]);
        }
        if (argv[i] == NULL) {
            static const char text[] =
                "Lua redis lib command arguments must be strings or integers";
            push_error(state, text, sizeof text - 1);
            return raises ? lua_error(state) : 1;
        }
    }
    if (argc == 0) {
        static const char text[] = "Please specify at least one argument for this redis lib call";
        push_error(state, text, sizeof text - 1);
        return raises ? lua_error(state) : 1;
    }
    failed = scripted_command(state, lua, argc, argv, lengths);
    return failed && raises ? lua_error(state) : 1;
}

static int redis_call_raising(lua_State *state)
{
    return redis_call(state, true);
}

static int redis_call_answering(lua_State *state)
{
    return redis_call(state, false);
}

/* -------------------------------------------------------------------- Lua: what scripts see */

static int no_such_global(lua_State *state)
{
    const char *name = lua_tostring(state, 2);
    return luaL_error(state, "Script attempted to access nonexistent global variable '%s'",
                      name != NULL ? name : "?");
}

static int is_read_only(lua_State *state)
{
    return luaL_error(state, "Attempt to modify a readonly table");
}

/* Lua's pcall, but an error that is a table comes back as its text. */
static int pcall_of_scripts(lua_State *state)
{
    luaL_checkany(state, 1);
    if (lua_pcall(state, lua_gettop(state) - 1, LUA_MULTRET, 0) == 0) {
        lua_pushboolean(state, 1);
        lua_insert(state, 1);
        return lua_gettop(state);
    }
    if (lua_istable(state, -1)) {
        lua_getfield(state, -1, "err");
        if (lua_isstring(state, -1)) {
            lua_replace(state, -2);
        } else {
            lua_pop(state, 1);
        }
    }
    lua_pushboolean(state, 0);
    lua_insert(state, -2);
    return 2;
}

static int redis_status_reply(lua_State *state)
{
    static const char text[] = "wrong number or type of arguments";
    if (lua_gettop(state) != 1 || lua_type(state, 1) != LUA_TSTRING) {
        push_error(state, text, sizeof text - 1);
        return 1;
    }
    lua_newtable(state);
    lua_pushvalue(state, 1);
    lua_setfield(state, -2, "ok");
    return 1;
}

static int redis_error_reply(lua_State *state)
{
    static const char text[] = "wrong number or type of arguments";
    size_t length;
    const char *said;
    if (lua_gettop(state) != 1 || lua_type(state, 1) != LUA_TSTRING) {
        push_error(state, text, sizeof text - 1);
        return 1;
    }
    said = lua_tolstring(state, 1, &length);
    if (length == 0 || said[0] != '-') {
        lua_pushliteral(state, "-");
        lua_insert(state, 1);
        lua_concat(state, 2);
        said = lua_tolstring(state, 1, &length);
    }
    push_error(state, said, length);
    return 1;
}

static int redis_sha1hex(lua_State *state)
{
    char sha1[41];
    size_t length;
    const char *bytes = luaL_checklstring(state, 1, &length);
    model_sha1(bytes, length, sha1);
    lua_pushlstring(state, sha1, 40);
    return 1;
}

/* An error becomes a table that says where it was raised. */
static int fault_of_script(lua_State *state)
{
    lua_Debug where;
    bool known = lua_getstack(state, 1, &where) != 0;
    if (known) {
        (void)lua_getinfo(state, "Sl", &where);
        if (strcmp(where.what, "C") == 0) {
            known = lua_getstack(state, 2, &where) != 0;
            if (known) {
                (void)lua_getinfo(state, "Sl", &where);
            }
        }
    }
    if (!lua_istable(state, 1)) {
        const char *text = lua_tostring(state, 1);
        lua_newtable(state);
        lua_pushfstring(state, "ERR %s", text != NULL ? text : luaL_typename(state, 1));
        lua_setfield(state, -2, "err");
        lua_replace(state, 1);
    }
    if (known) {
        lua_pushstring(state, where.source);
        lua_setfield(state, 1, "source");
        lua_pushinteger(state, where.currentline);
        lua_setfield(state, 1, "line");
    }
    lua_settop(state, 1);
    return 1;
}

static void library_open(lua_State *state, const char *name, lua_CFunction library)
{
    lua_pushcfunction(state, library);
    lua_pushstring(state, name);
    lua_call(state, 1, 0);
}

/* Globals are read through an empty table, so that none can be set. What would not be the same
 * each time is not there. */
static void globals_protect(struct model_lua *lua)
{
    static const char *const removed[] = {"print", "dofile", "loadfile"};
    lua_State *state = lua->state;
    for (int i = 0; i < 3; i++) {
        lua_pushnil(state);
        lua_setglobal(state, removed[i]);
    }
    lua_getglobal(state, "math");
    lua_pushnil(state);
    lua_setfield(state, -2, "random");
    lua_pushnil(state);
    lua_setfield(state, -2, "randomseed");
    lua_pop(state, 1);

    lua_pushvalue(state, LUA_GLOBALSINDEX);
    lua_createtable(state, 0, 1);
    lua_pushcfunction(state, no_such_global);
    lua_setfield(state, -2, "__index");
    lua_setmetatable(state, -2);
    lua_newtable(state); /* what scripts see */
    lua_createtable(state, 0, 2);
    lua_pushvalue(state, -3);
    lua_setfield(state, -2, "__index");
    lua_pushcfunction(state, is_read_only);
    lua_setfield(state, -2, "__newindex");
    lua_setmetatable(state, -2);
    lua_pushvalue(state, -1);
    lua_setfield(state, -3, "_G");
    lua_replace(state, LUA_GLOBALSINDEX);
    lua->globals = luaL_ref(state, LUA_REGISTRYINDEX);
}

/* An error that no script has made. */
static int lua_gives_up(lua_State *state)
{
    fprintf(stderr, "model: Lua gives up: %s\n", lua_tostring(state, -1));
    abort();
}

struct model_lua *model_lua_open(void)
{
    static const struct {
        const char *name;
        lua_CFunction run;
    } functions[] = {{"call", redis_call_raising},
                     {"pcall", redis_call_answering},
                     {"status_reply", redis_status_reply},
                     {"error_reply", redis_error_reply},
                     {"sha1hex", redis_sha1hex}};
    struct model_lua *lua = (struct model_lua *)must_have(calloc(1, sizeof *lua));
    lua_State *state = (lua_State *)must_have(lua_newstate(lua_memory, &lua->pool));
    lua->state = state;
    reply_room(&lua->scratch, SCRATCH);
    reply_room(&lua->message, SCRATCH);
    lua_atpanic(state, lua_gives_up);
    library_open(state, "", luaopen_base);
    library_open(state, LUA_TABLIBNAME, luaopen_table);
    library_open(state, LUA_STRLIBNAME, luaopen_string);
    library_open(state, LUA_MATHLIBNAME, luaopen_math);
    lua_pushcfunction(state, pcall_of_scripts);
    lua_setglobal(state, "pcall");
    lua_newtable(state);
    for (int i = 0; i < 5; i++) {
        lua_pushlightuserdata(state, lua);
        lua_pushcclosure(state, functions[i].run, 1);
        lua_setfield(state, -2, functions[i].name);
    }
    lua_setglobal(state, "redis");
    globals_protect(lua);
    lua_newtable(state);
    lua->chunks = luaL_ref(state, LUA_REGISTRYINDEX);
    return lua;
}

void model_lua_close(struct model_lua *lua)
{
    if (lua != NULL) {
        lua_close(lua->state);
        pool_close(&lua->pool);
        free(lua->scratch.bytes);
        free(lua->message.bytes);
        free(lua);
    }
}

/* ------------------------------------------------------------------------ Lua: running a script */

/* What a script returned, on top of the stack, as a reply. Takes it off. */
static void put_returned(struct call *call, lua_State *state)
{
    size_t length;
    const char *bytes;
    double number;
    int count = 0;
    if (!lua_checkstack(state, 4)) {
        put_error(call, "ERR reached lua stack limit");
        lua_pop(state, 1);
        return;
    }
    switch (lua_type(state, -1)) {
    case LUA_TSTRING:
        bytes = lua_tolstring(state, -1, &length);
        put_bulk(call->out, bytes, length);
        break;
    case LUA_TBOOLEAN:
        if (lua_toboolean(state, -1)) {
            put_number(call->out, ':', 1);
        } else {
            put_null(call->out);
        }
        break;
    case LUA_TNUMBER: /* cut, not rounded; what does not fit is what the processor makes of it */
        number = lua_tonumber(state, -1);
        put_number(call->out, ':',
                   number >= -0x1p63 && number < 0x1p63 ? (long long)number : INT64_MIN);
        break;
    case LUA_TTABLE:
        for (int i = 0; i < 2; i++) {
            lua_pushstring(state, i == 0 ? "err" : "ok");
            lua_rawget(state, -2);
            if (lua_type(state, -1) == LUA_TSTRING) {
                bytes = lua_tolstring(state, -1, &length);
                put_line(call->out, i == 0 ? '-' : '+', bytes, length);
                lua_pop(state, 2);
                return;
            }
            lua_pop(state, 1);
        }
        do { /* up to the first nil */
            lua_rawgeti(state, -1, ++count);
            length = lua_isnil(state, -1);
            lua_pop(state, 1);
        } while (length == 0);
        put_number(call->out, '*', count - 1);
        for (int i = 1; i < count; i++) {
            lua_rawgeti(state, -1, i);
            put_returned(call, state);
        }
        break;
    default:
        put_null(call->out);
        break;
    }
    lua_pop(state, 1);
}

/* What fault_of_script made of an error, on top of the stack. */
static void put_fault(struct call *call, lua_State *state)
{
    int top = lua_gettop(state);
    if (!lua_istable(state, top)) {
        const char *text = lua_tostring(state, top);
        put_error(call, "ERR Error running script %s, %.100s", call->script,
                  text != NULL ? text : "execution failure");
        return;
    }
    lua_getfield(state, top, "err");
    lua_getfield(state, top, "source");
    lua_getfield(state, top, "line");
    if (lua_isstring(state, -1) && lua_isstring(state, -2)) {
        put_error(call, "%s script: %s, on %s:%s.", lua_tostring(state, -3), call->script,
                  lua_tostring(state, -2), lua_tostring(state, -1));
    } else {
        put_error(call, "%s", lua_isstring(state, -3) ? lua_tostring(state, -3) : "ERR");
    }
}

static void set_array(struct model_lua *lua, const char *name, const struct call *call, int from,
                      int count)
{
    lua_State *state = lua->state;
    lua_rawgeti(state, LUA_REGISTRYINDEX, lua->globals);
    lua_pushstring(state, name);
    lua_createtable(state, count, 0);
    for (int i = 0; i < count; i++) {
        lua_pushlstring(state, call->argv[from + i], call->lengths[from + i]);
        lua_rawseti(state, -2, i + 1);
    }
    lua_rawset(state, -3);
    lua_pop(state, 1);
}

/* Pushes the script, which is compiled once for all models; false: it does not compile, and the
 * reason is pushed. */
static bool push_chunk(struct model_lua *lua, const char *sha1, const char *text, size_t length)
{
    lua_State *state = lua->state;
    lua_rawgeti(state, LUA_REGISTRYINDEX, lua->chunks);
    lua_pushlstring(state, sha1, 40);
    lua_rawget(state, -2);
    if (lua_isfunction(state, -1)) {
        lua_remove(state, -2);
        return true;
    }
    lua_pop(state, 1);
    if (luaL_loadbuffer(state, text, length, "@user_script") != 0) {
        lua_remove(state, -2);
        return false;
    }
    lua_pushlstring(state, sha1, 40);
    lua_pushvalue(state, -2);
    lua_rawset(state, -4);
    lua_remove(state, -2);
    return true;
}

/* The script that a call names, pushed, and remembered; else false, and the error is the reply. */
static bool push_script(struct call *call, int at, bool by_sha1, char *sha1)
{
    struct model_lua *lua = call->model->lua;
    if (by_sha1) {
        if (!sha1_at(call, at, sha1) || !model_knows_script(call->model, sha1)) {
            put_error(call, "NOSCRIPT No matching script. Please use EVAL.");
            return false;
        }
        return push_chunk(lua, sha1, "", 0);
    }
    model_sha1(call->argv[at], call->lengths[at], sha1);
    if (!push_chunk(lua, sha1, call->argv[at], call->lengths[at])) {
        put_error(call, "ERR Error compiling script (new function): %s",
                  lua_tostring(lua->state, -1));
        lua_pop(lua->state, 1);
        return false;
    }
    script_remember(call->model, sha1);
    return true;
}

static void run_eval(struct call *call)
{
    struct model_lua *lua = call->model->lua;
    lua_State *state = lua->state;
    int top = lua_gettop(state);
    int database = call->database;
    char sha1[41];
    long long keys;
    if (!integer_at(call, 2, &keys)) {
        return;
    }
    if (keys > call->argc - 3) {
        put_error(call, "ERR Number of keys can't be greater than number of args");
        return;
    }
    if (keys < 0) {
        put_error(call, "ERR Number of keys can't be negative");
        return;
    }
    lua_pushcfunction(state, fault_of_script);
    if (push_script(call, 1, call->command->name[4] != 0, sha1)) {
        set_array(lua, "KEYS", call, 3, (int)keys);
        set_array(lua, "ARGV", call, 3 + (int)keys, call->argc - 3 - (int)keys);
        call->script = sha1;
        lua->running = call;
        if (lua_pcall(state, 0, 1, top + 1) == 0) {
            put_returned(call, state);
        } else {
            put_fault(call, state);
        }
        lua->running = NULL;
    }
    call->database = database;
    lua_settop(state, top);
}

static void run_script_load(struct call *call)
{
    char sha1[41];
    if (push_script(call, 2, false, sha1)) {
        lua_pop(call->model->lua->state, 1);
        put_bulk(call->out, sha1, 40);
    }
}

/* -------------------------------------------------------------------------------------- models */

struct model *model_open(struct model_lua *lua, model_deliver *deliver, void *user)
{
    struct model *model = (struct model *)take(&lua->pool, sizeof *model);
    model->lua = lua;
    model->deliver = deliver;
    model->user = user;
    model->bucket_count = FIRST_BUCKETS;
    model->buckets = (struct model_key **)take(&lua->pool, FIRST_BUCKETS * sizeof *model->buckets);
    return model;
}

void model_close(struct model *model)
{
    struct pool *pool;
    if (model == NULL) {
        return;
    }
    pool = &model->lua->pool;
    while (model->first != NULL) {
        model_key_delete(model, model->first);
    }
    for (int i = 0; i < CHANNEL_BUCKETS; i++) {
        while (model->channels[i] != NULL) {
            struct channel *channel = model->channels[i];
            model->channels[i] = channel->next;
            while (channel->first != NULL) {
                struct model_subscription *one = channel->first;
                channel->first = one->after;
                give(pool, one);
            }
            give(pool, channel);
        }
    }
    give(pool, model->scripts);
    give(pool, model->buckets);
    give(pool, model);
}

struct model_switches *model_switches(struct model *model)
{
    return &model->switches;
}

void model_forget_scripts(struct model *model)
{
    model->script_count = 0;
}

void model_load_script(struct model *model, const char *text, size_t length)
{
    char sha1[41];
    model_sha1(text, length, sha1);
    if (!push_chunk(model->lua, sha1, text, length)) {
        fprintf(stderr, "model: %s\n", lua_tostring(model->lua->state, -1));
        abort();
    }
    lua_pop(model->lua->state, 1);
    script_remember(model, sha1);
}
