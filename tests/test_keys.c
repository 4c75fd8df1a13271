/* The names of the keys that stand beside a lock's own: in the same hash slot as far as that can
 * be had, and never shared by two locks. The model is written from the Redis Cluster specification
 * ("Hash tags", and CRC16 in its appendix), not from the library. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <sys/mman.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* A key or a helper key: any bytes. */
typedef struct name {
    size_t length;
    char bytes[DLOCK_KEY_MAX + 32];
} name;

/* ---------------------------------------------------------------------------------------- model */

static unsigned crc16(const char *bytes, size_t count)
{
    unsigned crc = 0;
    size_t i;
    int bit;
    for (i = 0; i < count; i++) {
        crc ^= (unsigned)(unsigned char)bytes[i] << 8;
        for (bit = 0; bit < 8; bit++) {
            crc = (crc & 0x8000u) != 0 ? ((crc << 1) ^ 0x1021u) & 0xffffu : (crc << 1) & 0xffffu;
        }
    }
    return crc;
}

/* "If the key contains a { character, and there is a } character to the right of {, and there are
 * one or more characters between the first occurrence of { and the first occurrence of }" after
 * it, only what is between them is hashed. */
static bool find_tag(const char *key, size_t length, size_t *from, size_t *to)
{
    size_t s = 0;
    size_t e;
    while (s < length && key[s] != '{') {
        s++;
    }
    if (s == length) {
        return false;
    }
    e = s + 1;
    while (e < length && key[e] != '}') {
        e++;
    }
    if (e == length || e == s + 1) {
        return false;
    }
    *from = s + 1;
    *to = e;
    return true;
}

static unsigned slot(const char *key, size_t length)
{
    size_t from = 0;
    size_t to = length;
    (void)find_tag(key, length, &from, &to);
    return crc16(key + from, to - from) & 16383u;
}

static void the_model_is_the_specifications(void **state)
{
    (void)state;
    assert_int_equal(crc16("123456789", 9), 0x31c3);
    assert_int_equal(slot("{user1000}.following", 20), slot("{user1000}.followers", 20));
    assert_int_equal(slot("foo{bar}{zap}", 13), slot("bar", 3));
    assert_int_equal(slot("foo{{bar}}zap", 13), slot("{bar", 4));
    assert_int_equal(slot("foo{}{bar}", 10), crc16("foo{}{bar}", 10) & 16383u);
    assert_int_equal(slot("foo", 3), 12182);   /* as CLUSTER KEYSLOT says */
    assert_int_equal(slot("somekey", 7), 11058);
    assert_int_equal(slot("foo{hash_tag}", 13), 2515);
}

/* ----------------------------------------------------------------------------------------- tags */

typedef struct tag_case {
    const char *key;
    size_t length;
    bool tagged;
} tag_case;

#define BYTES(text) text, sizeof(text) - 1

static const tag_case tag_cases[] = {
    {BYTES("a"), false},        {BYTES("orders:42"), false}, {BYTES("{"), false},
    {BYTES("}"), false},        {BYTES("{}"), false},        {BYTES("}{"), false},
    {BYTES("{a"), false},       {BYTES("a}"), false},        {BYTES("a}b"), false},
    {BYTES("}a{"), false},      {BYTES("{}x"), false},       {BYTES("{}{a}"), false},
    {BYTES("x{}{a}"), false},   {BYTES("a}b{c"), false},     {BYTES("{a}"), true},
    {BYTES("{user1}:x"), true}, {BYTES("x{a}"), true},       {BYTES("x{a}y"), true},
    {BYTES("}{a}"), true},      {BYTES("a}b{c}d"), true},    {BYTES("{{}"), true},
    {BYTES("{{a}}"), true},     {BYTES("{{}}"), true},       {BYTES("{a}{}"), true},
    {BYTES("{a}{"), true},      {BYTES("{a{b}"), true},      {BYTES("{ }"), true},
    {BYTES("{\0}"), true},      {BYTES("\0{a}"), true},      {BYTES("{a\0}"), true},
    {BYTES("{a\0"), false},     {BYTES("{\xff}"), true},     {BYTES("\xff{}\xff"), false},
    {BYTES("{}\0{a}"), false},  {BYTES("{\r\n}"), true},     {BYTES("%s{%n}"), true},
};

static void a_tag_is_what_the_specification_calls_one(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(tag_cases); i++) {
        size_t from = 0;
        size_t to = 0;
        const tag_case *is = &tag_cases[i];
        if (dlocki_key_has_tag(is->key, is->length) != is->tagged) {
            fail_msg("row %u: %s", (unsigned)i, is->key);
        }
        assert_int_equal(find_tag(is->key, is->length, &from, &to), is->tagged);
    }
    assert_false(dlocki_key_has_tag("", 0));
}

/* Calls `body` with every text of 1 to `most` bytes out of `alphabet`. */
static unsigned each_text(const char *alphabet, size_t letters, size_t most,
                          void (*body)(const char *key, size_t length))
{
    size_t digits[8] = {0};
    char key[8];
    unsigned count = 0;
    size_t length;
    assert_true(most <= sizeof key);
    for (length = 1; length <= most; length++) {
        size_t at = 0;
        memset(digits, 0, sizeof digits);
        while (at < length) {
            for (at = 0; at < length; at++) {
                key[at] = alphabet[digits[at]];
            }
            body(key, length);
            count++;
            for (at = 0; at < length && ++digits[at] == letters; at++) {
                digits[at] = 0;
            }
        }
    }
    return count;
}

static void check_tag(const char *key, size_t length)
{
    size_t from = 0;
    size_t to = 0;
    assert_int_equal(dlocki_key_has_tag(key, length), find_tag(key, length, &from, &to));
}

static void every_arrangement_of_braces_is_judged_as_the_specification_does(void **state)
{
    (void)state;
    assert_int_equal(each_text("{}a\0", 4, 7, check_tag), 4 + 16 + 64 + 256 + 1024 + 4096 + 16384);
}

/* ---------------------------------------------------------------------------------- the helpers */

static dlocki_out out;

/* The helper key as it is sent; its frame must be right. */
static void helper_of(const char *key, size_t length, const char *which, name *helper)
{
    char frame[16];
    int framed;
    size_t head;
    out.from = 0;
    out.to = 0;
    dlocki_put_helper(&out, key, length, which);
    assert_int_equal(out.from, 0);
    helper->length = (size_t)strtoul((const char *)out.bytes + 1, NULL, 10);
    framed = snprintf(frame, sizeof frame, "$%u\r\n", (unsigned)helper->length);
    head = (size_t)framed;
    assert_int_equal(out.to, head + helper->length + 2);
    assert_memory_equal(out.bytes, frame, head);
    assert_memory_equal(out.bytes + out.to - 2, "\r\n", 2);
    assert_true(helper->length <= sizeof helper->bytes);
    memcpy(helper->bytes, out.bytes + head, helper->length);
}

typedef struct shape {
    const char *key;
    size_t length;
    const char *fence;
    size_t fence_length;
    const char *queue;
    size_t queue_length;
} shape;

/* A promise to other versions: their programs share these keys. */
static const shape shapes[] = {
    {BYTES("orders:42"), BYTES("{orders:42}:fence"), BYTES("{orders:42}:queue")},
    {BYTES("k"), BYTES("{k}:fence"), BYTES("{k}:queue")},
    {BYTES("{user1}:x"), BYTES("{user1}:x:dlock:fence"), BYTES("{user1}:x:dlock:queue")},
    {BYTES("x{a}"), BYTES("x{a}:dlock:fence"), BYTES("x{a}:dlock:queue")},
    {BYTES("{}x"), BYTES("{{}x}:fence"), BYTES("{{}x}:queue")},
    {BYTES("a}b"), BYTES("{a}b}:fence"), BYTES("{a}b}:queue")},
    {BYTES("a{b"), BYTES("{a{b}:fence"), BYTES("{a{b}:queue")},
    {BYTES("{"), BYTES("{{}:fence"), BYTES("{{}:queue")},
    {BYTES("}"), BYTES("{}}:fence"), BYTES("{}}:queue")},
    {BYTES("a\0b"), BYTES("{a\0b}:fence"), BYTES("{a\0b}:queue")},
    {BYTES("\0"), BYTES("{\0}:fence"), BYTES("{\0}:queue")},
    {BYTES("{\0}"), BYTES("{\0}:dlock:fence"), BYTES("{\0}:dlock:queue")},
    {BYTES("\xff\xfe"), BYTES("{\xff\xfe}:fence"), BYTES("{\xff\xfe}:queue")},
    {BYTES("a b\r\n"), BYTES("{a b\r\n}:fence"), BYTES("{a b\r\n}:queue")},
    {BYTES("%s%n"), BYTES("{%s%n}:fence"), BYTES("{%s%n}:queue")},
    {BYTES("\"'\\"), BYTES("{\"'\\}:fence"), BYTES("{\"'\\}:queue")},
};

static void a_helper_key_has_the_promised_shape(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(shapes); i++) {
        const shape *is = &shapes[i];
        name helper;
        helper_of(is->key, is->length, "fence", &helper);
        assert_int_equal(helper.length, is->fence_length);
        assert_memory_equal(helper.bytes, is->fence, helper.length);
        helper_of(is->key, is->length, "queue", &helper);
        assert_int_equal(helper.length, is->queue_length);
        assert_memory_equal(helper.bytes, is->queue, helper.length);
    }
}

static void check_slot(const char *key, size_t length)
{
    size_t from = 0;
    size_t to = 0;
    name helper;
    if (!find_tag(key, length, &from, &to) && memchr(key, '}', length) != NULL) {
        return;   /* no tag can be made of it: a cluster refuses such a lock */
    }
    helper_of(key, length, "fence", &helper);
    assert_int_equal(slot(helper.bytes, helper.length), slot(key, length));
    helper_of(key, length, "queue", &helper);
    assert_int_equal(slot(helper.bytes, helper.length), slot(key, length));
}

static void a_helper_key_lies_in_the_slot_of_its_lock(void **state)
{
    (void)state;
    each_text("{}a:", 4, 6, check_slot);
    check_slot("orders:42", 9);
    check_slot("{user1}:x", 9);
    check_slot("\xff\0\r\n", 4);
}

/* ----------------------------------------------------------------------------------- no sharing */

/* What a name that is meant to collide would be made of. */
static const char *const pieces[] = {
    "{", "}", ":", "a", "\xff", "fence", "queue", ":dlock:", "}:fence", ":dlock:fence",
};

enum { PIECES = 10, PIECES_MOST = 4 };

static name *helpers;
static name *keys;
static size_t helper_count;

static int compare_helpers(const void *a, const void *b)
{
    const name *one = &helpers[*(const size_t *)a];
    const name *two = &helpers[*(const size_t *)b];
    size_t least = one->length < two->length ? one->length : two->length;
    int order = memcmp(one->bytes, two->bytes, least);
    return order != 0 ? order : (one->length > two->length) - (one->length < two->length);
}

static void note_helpers(const char *key, size_t length)
{
    static const char *const which[] = {"fence", "queue"};
    int i;
    for (i = 0; i < 2; i++) {
        helper_of(key, length, which[i], &helpers[helper_count]);
        keys[helper_count].length = length;
        memcpy(keys[helper_count].bytes, key, length);
        helper_count++;
    }
}

/* All keys of up to PIECES_MOST pieces. Many are written in several ways: a helper may occur twice,
 * but then for the same key. */
static size_t note_all(void)
{
    size_t total = 0;
    size_t combinations = 1;
    size_t count;
    for (count = 1; count <= PIECES_MOST; count++) {
        size_t number;
        combinations *= PIECES;
        for (number = 0; number < combinations; number++) {
            char key[64];
            size_t length = 0;
            size_t rest = number;
            size_t i;
            for (i = 0; i < count; i++) {
                const char *piece = pieces[rest % PIECES];
                rest /= PIECES;
                memcpy(key + length, piece, strlen(piece));
                length += strlen(piece);
            }
            note_helpers(key, length);
            total++;
        }
    }
    return total;
}

static void no_two_keys_share_a_helper_key(void **state)
{
    const size_t room = 2 * 11110 + 8;
    size_t *order = (size_t *)calloc(room, sizeof *order);
    size_t i;
    (void)state;
    helpers = (name *)calloc(room, sizeof *helpers);
    keys = (name *)calloc(room, sizeof *keys);
    assert_true(order != NULL && helpers != NULL && keys != NULL);
    assert_int_equal(note_all(), 11110);
    note_helpers("a\0", 2);   /* a byte that ends nothing */
    note_helpers("a\0b", 3);
    for (i = 0; i < helper_count; i++) {
        order[i] = i;
    }
    qsort(order, helper_count, sizeof *order, compare_helpers);
    for (i = 1; i < helper_count; i++) {
        const name *one = &keys[order[i - 1]];
        const name *two = &keys[order[i]];
        if (compare_helpers(&order[i - 1], &order[i]) == 0 &&
            (one->length != two->length || memcmp(one->bytes, two->bytes, one->length) != 0)) {
            fail_msg("%.*s and %.*s share a helper key", (int)one->length, one->bytes,
                     (int)two->length, two->bytes);
        }
    }
    free(order);
    free(helpers);
    free(keys);
}

/* --------------------------------------------------------------------------------------- bounds */

/* A key has a length and no end: the byte behind it may not be read. */
static void a_key_is_read_up_to_its_length_only(void **state)
{
    static const char *const texts[] = {"{", "{a", "}{", "abc", "{}", "{a}", "x{}{"};
    char *room =
        (char *)mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t i;
    (void)state;
    assert_true(room != MAP_FAILED);
    assert_int_equal(mprotect(room + 4096, 4096, PROT_NONE), 0);
    for (i = 0; i < COUNT(texts); i++) {
        size_t length = strlen(texts[i]);
        char *key = room + 4096 - length;
        dlocki_command command;
        name helper;
        size_t from;
        size_t to;
        memcpy(key, texts[i], length);
        assert_int_equal(dlocki_key_has_tag(key, length), find_tag(key, length, &from, &to));
        helper_of(key, length, "fence", &helper);
        memset(&command, 0, sizeof command);
        command.kind = DLOCKI_ASK;
        command.owner = "dl1-00000000000000000000000000000000";
        command.key = key;
        command.key_length = length;
        out.to = 0;
        assert_true(dlocki_put_command(&out, &command));
    }
    assert_false(dlocki_key_has_tag(room + 4096, 0));
    assert_int_equal(munmap(room, 8192), 0);
}

static void the_longest_key_has_helpers_too(void **state)
{
    char key[DLOCK_KEY_MAX];
    name helper;
    (void)state;
    memset(key, '{', sizeof key);
    helper_of(key, sizeof key, "fence", &helper);
    assert_int_equal(helper.length, sizeof key + 8);
    key[sizeof key - 1] = '}';
    helper_of(key, sizeof key, "queue", &helper);
    assert_int_equal(helper.length, sizeof key + 12);
    assert_memory_equal(helper.bytes, key, sizeof key);
    assert_memory_equal(helper.bytes + sizeof key, ":dlock:queue", 12);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_model_is_the_specifications),
        cmocka_unit_test(a_tag_is_what_the_specification_calls_one),
        cmocka_unit_test(every_arrangement_of_braces_is_judged_as_the_specification_does),
        cmocka_unit_test(a_helper_key_has_the_promised_shape),
        cmocka_unit_test(a_helper_key_lies_in_the_slot_of_its_lock),
        cmocka_unit_test(no_two_keys_share_a_helper_key),
        cmocka_unit_test(a_key_is_read_up_to_its_length_only),
        cmocka_unit_test(the_longest_key_has_helpers_too),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
