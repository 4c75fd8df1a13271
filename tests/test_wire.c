/* What travels: commands byte for byte, and what is made of whatever comes back. No socket, no
 * server: bytes in, verdicts out. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))
#define OWNER "dl1-0123456789abcdeffedcba9876543210"
#define MARKER "S3CRET"
#define MEGABYTE (1024 * 1024)

static dlocki_out out;

static void empty(void)
{
    memset(&out, 0x55, sizeof out);
    out.from = 0;
    out.to = 0;
}

/* What lies in `out` is exactly this. */
static void check_out(const char *expected, size_t length)
{
    if (out.to - out.from != length || memcmp(out.bytes + out.from, expected, length) != 0) {
        fail_msg("%.*s\ninstead of\n%.*s", (int)(out.to - out.from),
                 (const char *)out.bytes + out.from, (int)length, expected);
    }
}

static dlocki_command command_of(int kind, const char *key, size_t length)
{
    dlocki_command command;
    memset(&command, 0, sizeof command);
    command.kind = kind;
    command.fenced = true;
    command.owner = OWNER;
    command.expiry_ms = 30000;
    command.key = key;
    command.key_length = length;
    return command;
}

/* ---------------------------------------------------------------------------------- the encoder */

static void a_number_is_written_in_decimal(void **state)
{
    static const struct {
        int64_t number;
        const char *digits;
    } numbers[] = {
        {0, "0"},
        {1, "1"},
        {9, "9"},
        {10, "10"},
        {99, "99"},
        {100, "100"},
        {-1, "-1"},
        {-9, "-9"},
        {-10, "-10"},
        {30000, "30000"},
        {2592000000, "2592000000"},
        {INT32_MAX, "2147483647"},
        {INT32_MIN, "-2147483648"},
        {INT64_MAX, "9223372036854775807"},
        {INT64_MIN, "-9223372036854775808"},
        {INT64_MAX - 9, "9223372036854775798"},
        {INT64_MIN + 1, "-9223372036854775807"},
        {1000000000000000000, "1000000000000000000"},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(numbers); i++) {
        char digits[21];
        char expected[40];
        int wrote;
        size_t length = dlocki_digits(numbers[i].number, digits);
        assert_int_equal(length, strlen(numbers[i].digits));
        assert_memory_equal(digits, numbers[i].digits, length);
        empty();
        dlocki_put_number(&out, numbers[i].number);
        wrote =
            snprintf(expected, sizeof expected, "$%d\r\n%s\r\n", (int)length, numbers[i].digits);
        check_out(expected, (size_t)wrote);
    }
}

static void a_string_is_framed_by_its_length_whatever_it_holds(void **state)
{
    (void)state;
    empty();
    dlocki_put_bulk(&out, "", 0);
    check_out("$0\r\n\r\n", 6);
    empty();
    dlocki_put_bulk(&out, "a\0\r\n$\xff", 6);
    check_out("$6\r\na\0\r\n$\xff\r\n", 12);
    empty();
    dlocki_put_text(&out, "0123456789");
    check_out("$10\r\n0123456789\r\n", 17);
    empty();
    dlocki_put_frame(&out, '*', 123456);
    check_out("*123456\r\n", 9);
}

#define IN(bytes) bytes, sizeof(bytes) - 1

#define BULK_OWNER "$36\r\n" OWNER "\r\n"
#define EVALSHA "$7\r\nEVALSHA\r\n$40\r\n"
#define ASK EVALSHA DLOCKI_LUA_ACQUIRE_SHA1 "\r\n$1\r\n3\r\n"
#define EXTEND EVALSHA DLOCKI_LUA_EXTEND_SHA1 "\r\n$1\r\n1\r\n"
#define GIVE_BACK EVALSHA DLOCKI_LUA_RELEASE_SHA1 "\r\n$1\r\n3\r\n"
#define INSPECT EVALSHA DLOCKI_LUA_INSPECT_SHA1 "\r\n$1\r\n3\r\n"
#define BREAK EVALSHA DLOCKI_LUA_BREAK_SHA1 "\r\n$1\r\n3\r\n"
#define K_AND_HELPERS "$1\r\nk\r\n$9\r\n{k}:queue\r\n$9\r\n{k}:fence\r\n"
#define TAGGED "$5\r\n{u}:x\r\n$17\r\n{u}:x:dlock:queue\r\n$17\r\n{u}:x:dlock:fence\r\n"
#define NUL_AND_HELPERS "$1\r\n\0\r\n$9\r\n{\0}:queue\r\n$9\r\n{\0}:fence\r\n"
#define NX_PX "$2\r\nNX\r\n$2\r\nPX\r\n"
#define NOT_FENCED "$0\r\n\r\n$1\r\n0\r\n$1\r\n0\r\n"

static const struct {
    int kind;
    bool fenced;
    const char *key;
    size_t key_length;
    int64_t expiry_ms;
    const char *bytes;
    size_t length;
} commands[] = {
    {DLOCKI_SET, false, IN("k"), 30000,
     IN("*6\r\n$3\r\nSET\r\n$1\r\nk\r\n" BULK_OWNER NX_PX "$5\r\n30000\r\n")},
    {DLOCKI_SET, false, IN("a\0\r\n"), 3,
     IN("*6\r\n$3\r\nSET\r\n$4\r\na\0\r\n\r\n" BULK_OWNER NX_PX "$1\r\n3\r\n")},
    {DLOCKI_ASK, true, IN("k"), 30000, IN("*8\r\n" ASK K_AND_HELPERS BULK_OWNER "$5\r\n30000\r\n")},
    {DLOCKI_ASK, false, IN("{u}:x"), 2592000000,
     IN("*11\r\n" ASK TAGGED BULK_OWNER "$10\r\n2592000000\r\n" NOT_FENCED)},
    {DLOCKI_EXTEND, true, IN("k"), INT64_MAX,
     IN("*6\r\n" EXTEND "$1\r\nk\r\n" BULK_OWNER "$19\r\n9223372036854775807\r\n")},
    {DLOCKI_EXTEND, true, IN("a\xff"), INT64_MIN,
     IN("*6\r\n" EXTEND "$2\r\na\xff\r\n" BULK_OWNER "$20\r\n-9223372036854775808\r\n")},
    {DLOCKI_GIVE_BACK, true, IN("k"), 0, IN("*7\r\n" GIVE_BACK K_AND_HELPERS BULK_OWNER)},
    {DLOCKI_GIVE_BACK, false, IN("\0"), 0, IN("*7\r\n" GIVE_BACK NUL_AND_HELPERS BULK_OWNER)},
    {DLOCKI_INSPECT, true, IN("k"), 0, IN("*6\r\n" INSPECT K_AND_HELPERS)},
    {DLOCKI_INSPECT, false, IN("{u}:x"), 0, IN("*6\r\n" INSPECT TAGGED)},
    {DLOCKI_BREAK, true, IN("k"), 0, IN("*6\r\n" BREAK K_AND_HELPERS)},
    {DLOCKI_BREAK, false, IN("\0"), 0, IN("*6\r\n" BREAK NUL_AND_HELPERS)},
};

static void a_command_is_written_byte_for_byte(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(commands); i++) {
        dlocki_command command =
            command_of(commands[i].kind, commands[i].key, commands[i].key_length);
        command.fenced = commands[i].fenced;
        command.expiry_ms = commands[i].expiry_ms;
        empty();
        assert_true(dlocki_put_command(&out, &command));
        check_out(commands[i].bytes, commands[i].length);
    }
}

/* What waits says which ticket, and where it stood; what is a default at the end is left out. */
#define THIRTY BULK_OWNER "$5\r\n30000\r\n"
#define LETTER(c) "$1\r\n" c "\r\n"
#define NO_LETTER "$0\r\n\r\n"
#define NO_SCORE "$1\r\n0\r\n"
#define SCORE "$16\r\n1795398000123456\r\n"
#define NO_FENCE "$1\r\n0\r\n"

static const struct {
    int kind;
    char letter;
    int64_t score;
    bool fenced;
    int64_t expiry_ms;
    const char *bytes;
} tickets[] = {
    {DLOCKI_ASK, 0, 0, true, 30000, "*8\r\n" ASK K_AND_HELPERS THIRTY},
    {DLOCKI_ASK, 0, 1795398000123456, true, 30000, "*8\r\n" ASK K_AND_HELPERS THIRTY},
    {DLOCKI_ASK, 'g', 0, true, 30000, "*9\r\n" ASK K_AND_HELPERS THIRTY LETTER("g")},
    {DLOCKI_ASK, 'g', 1795398000123456, true, 30000,
     "*10\r\n" ASK K_AND_HELPERS THIRTY LETTER("g") SCORE},
    {DLOCKI_ASK, 'g', 7, true, 30000, "*10\r\n" ASK K_AND_HELPERS THIRTY LETTER("g") "$1\r\n7\r\n"},
    {DLOCKI_ASK, 'n', 0, true, 30000, "*9\r\n" ASK K_AND_HELPERS THIRTY LETTER("n")},
    {DLOCKI_ASK, 0, 0, false, 30000,
     "*11\r\n" ASK K_AND_HELPERS THIRTY NO_LETTER NO_SCORE NO_FENCE},
    {DLOCKI_ASK, 0, 1795398000123456, false, 30000,
     "*11\r\n" ASK K_AND_HELPERS THIRTY NO_LETTER SCORE NO_FENCE},
    {DLOCKI_ASK, 'n', 0, false, 30000,
     "*11\r\n" ASK K_AND_HELPERS THIRTY LETTER("n") NO_SCORE NO_FENCE},
    {DLOCKI_ASK, 'n', 1795398000123456, false, 30000,
     "*11\r\n" ASK K_AND_HELPERS THIRTY LETTER("n") SCORE NO_FENCE},
    {DLOCKI_GIVE_BACK, 0, 0, true, 30000, "*7\r\n" GIVE_BACK K_AND_HELPERS BULK_OWNER},
    {DLOCKI_GIVE_BACK, 0, 7, false, 30000, "*7\r\n" GIVE_BACK K_AND_HELPERS BULK_OWNER},
    {DLOCKI_GIVE_BACK, 'g', 0, true, 30000,
     "*8\r\n" GIVE_BACK K_AND_HELPERS BULK_OWNER "$44\r\n" OWNER " 30000 g\r\n"},
    {DLOCKI_GIVE_BACK, 'g', 7, false, 30000,
     "*8\r\n" GIVE_BACK K_AND_HELPERS BULK_OWNER "$44\r\n" OWNER " 30000 g\r\n"},
    {DLOCKI_GIVE_BACK, 'n', 7, false, 3,
     "*8\r\n" GIVE_BACK K_AND_HELPERS BULK_OWNER "$40\r\n" OWNER " 3 n\r\n"},
    {DLOCKI_GIVE_BACK, 'n', 0, true, 2592000000,
     "*8\r\n" GIVE_BACK K_AND_HELPERS BULK_OWNER "$49\r\n" OWNER " 2592000000 n\r\n"},
    /* nobody else has one */
    {DLOCKI_EXTEND, 'g', 7, true, 30000, "*6\r\n" EXTEND "$1\r\nk\r\n" THIRTY},
    {DLOCKI_INSPECT, 'g', 7, true, 30000, "*6\r\n" INSPECT K_AND_HELPERS},
    {DLOCKI_BREAK, 'g', 7, true, 30000, "*6\r\n" BREAK K_AND_HELPERS},
    {DLOCKI_SET, 'n', 7, false, 30000,
     "*6\r\n$3\r\nSET\r\n$1\r\nk\r\n" BULK_OWNER NX_PX "$5\r\n30000\r\n"},
};

static void a_ticket_is_written_byte_for_byte(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(tickets); i++) {
        dlocki_command command = command_of(tickets[i].kind, "k", 1);
        command.letter = tickets[i].letter;
        command.score = tickets[i].score;
        command.fenced = tickets[i].fenced;
        command.expiry_ms = tickets[i].expiry_ms;
        empty();
        assert_true(dlocki_put_command(&out, &command));
        check_out(tickets[i].bytes, strlen(tickets[i].bytes));
    }
}

/* The words of the command in `out`. */
static int words_of(const char **words, size_t *lengths, int most)
{
    const char *at = (const char *)out.bytes + out.from;
    char *next;
    int count = (int)strtol(at + 1, &next, 10);
    int i;
    assert_int_equal(*at, '*');
    assert_in_range(count, 1, most);
    at = next + 2;
    for (i = 0; i < count; i++) {
        assert_int_equal(*at, '$');
        lengths[i] = (size_t)strtoul(at + 1, &next, 10);
        words[i] = next + 2;
        at = words[i] + lengths[i] + 2;
    }
    assert_ptr_equal(at, out.bytes + out.to);
    return count;
}

/* Read back as the script reads it (ARGV[3] or '', ARGV[4] or 0, ARGV[5] ~= '0'), every ask means
 * what was meant, and its last argument is never one that could have been left out. */
static void an_ask_means_to_the_script_what_was_meant(void **state)
{
    static const char letters[] = {0, 'g', 'n', 'h'};
    static const int64_t scores[] = {0, 1, 1795398000123456, 9007199254740991};
    int i;
    (void)state;
    for (i = 0; i < 4 * 4 * 2 * 2; i++) {
        dlocki_command command = command_of(DLOCKI_ASK, "k", 1);
        const char *words[16];
        size_t lengths[16];
        int count;
        command.letter = letters[i % 4];
        command.score = scores[i / 4 % 4];
        command.fenced = i / 16 % 2 == 0;
        command.whole = i / 32 == 1;
        empty();
        assert_true(dlocki_put_command(&out, &command));
        count = words_of(words, lengths, 11);
        assert_true(count >= 8);
        assert_int_equal(count > 8 ? lengths[8] : 0, command.letter != 0);
        assert_true(count <= 8 || command.letter == 0 || *words[8] == command.letter);
        if (command.letter != 0) {   /* a score without a ticket means nothing */
            assert_true(strtoll(count > 9 ? words[9] : "0", NULL, 10) == command.score);
        }
        assert_int_equal(count == 11 && lengths[10] == 1 && *words[10] == '0', !command.fenced);
        assert_false(count == 9 && lengths[8] == 0);
        assert_false(count == 10 && lengths[9] == 1 && *words[9] == '0');
    }
}

static const struct {
    int kind;
    const char *script;
    const char *sha1;
} scripts[] = {
    {DLOCKI_ASK, DLOCKI_LUA_ACQUIRE, DLOCKI_LUA_ACQUIRE_SHA1},
    {DLOCKI_EXTEND, DLOCKI_LUA_EXTEND, DLOCKI_LUA_EXTEND_SHA1},
    {DLOCKI_GIVE_BACK, DLOCKI_LUA_RELEASE, DLOCKI_LUA_RELEASE_SHA1},
    {DLOCKI_INSPECT, DLOCKI_LUA_INSPECT, DLOCKI_LUA_INSPECT_SHA1},
    {DLOCKI_BREAK, DLOCKI_LUA_BREAK, DLOCKI_LUA_BREAK_SHA1},
};

/* SHA-1 as RFC 3174 has it, of a text that is short enough. */
static uint32_t rotated(uint32_t word, int by)
{
    return word << by | word >> (32 - by);
}

static void sha1_block(uint32_t hash[5], const unsigned char *block)
{
    static const uint32_t constants[] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
    uint32_t w[80];
    uint32_t v[5];
    int t;
    memcpy(v, hash, sizeof v);
    for (t = 0; t < 80; t++) {
        uint32_t f = t < 20   ? (v[1] & v[2]) | (~v[1] & v[3])
                     : t < 40 ? v[1] ^ v[2] ^ v[3]
                     : t < 60 ? (v[1] & v[2]) | (v[1] & v[3]) | (v[2] & v[3])
                              : v[1] ^ v[2] ^ v[3];
        w[t] = t < 16 ? (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 |
                            (uint32_t)block[4 * t + 2] << 8 | block[4 * t + 3]
                      : rotated(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
        f += rotated(v[0], 5) + v[4] + w[t] + constants[t / 20];
        v[4] = v[3];
        v[3] = v[2];
        v[2] = rotated(v[1], 30);
        v[1] = v[0];
        v[0] = f;
    }
    for (t = 0; t < 5; t++) {
        hash[t] += v[t];
    }
}

static void sha1_of(const char *text, char digits[41])
{
    uint32_t hash[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    static unsigned char padded[16384];
    size_t length = strlen(text);
    size_t blocks = (length + 9 + 63) / 64;
    size_t i;
    assert_true(blocks * 64 <= sizeof padded);
    memset(padded, 0, sizeof padded);
    memcpy(padded, text, length);
    padded[length] = 0x80;
    for (i = 0; i < 8; i++) {
        padded[blocks * 64 - 1 - i] = (unsigned char)((uint64_t)length * 8 >> 8 * i);
    }
    for (i = 0; i < blocks; i++) {
        sha1_block(hash, padded + 64 * i);
    }
    for (i = 0; i < 5; i++) {
        (void)snprintf(digits + 8 * i, 9, "%08x", (unsigned)hash[i]);
    }
}

static void a_script_has_the_sha1_by_which_it_is_called(void **state)
{
    static const struct {
        const char *text;
        const char *sha1;
    } known[] = {
        {"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
        {"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "84983e441c3bd26ebaae4aa1f95129e5e54670f1"},
        {"return 1", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"},
    };
    char digits[41];
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(known); i++) {
        sha1_of(known[i].text, digits);
        assert_string_equal(digits, known[i].sha1);
    }
    for (i = 0; i < COUNT(scripts); i++) {
        sha1_of(scripts[i].script, digits);
        assert_string_equal(digits, scripts[i].sha1);
    }
}

/* After NOSCRIPT the body stands where the SHA-1 stood, and nothing else is different. */
static void the_whole_script_stands_where_its_sha1_stood(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(scripts); i++) {
        static char expected[DLOCKI_OUT_MAX];
        dlocki_command command = command_of(scripts[i].kind, "k", 1);
        const char *head;
        const char *tail;
        size_t before;
        size_t length;
        empty();
        assert_true(dlocki_put_command(&out, &command));
        out.bytes[out.to] = 0;
        head = strstr((const char *)out.bytes, "$7\r\nEVALSHA");
        tail = strstr((const char *)out.bytes, scripts[i].sha1);
        assert_true(head != NULL && tail != NULL);
        before = (size_t)(head - (const char *)out.bytes);
        length =
            (size_t)snprintf(expected, sizeof expected, "%.*s$4\r\nEVAL\r\n$%u\r\n%s%s",
                             (int)before, (const char *)out.bytes,
                             (unsigned)strlen(scripts[i].script), scripts[i].script, tail + 40);
        command.whole = true;
        empty();
        assert_true(dlocki_put_command(&out, &command));
        check_out(expected, length);
        /* A server that is out of memory refuses a script with a shebang line whole. */
        assert_true(strncmp(scripts[i].script, "#!", 2) != 0);
        assert_int_equal(strspn(scripts[i].sha1, "0123456789abcdef"), 40);
    }
}

static const int all_kinds[] = {DLOCKI_SET,       DLOCKI_ASK,     DLOCKI_EXTEND,
                                DLOCKI_GIVE_BACK, DLOCKI_INSPECT, DLOCKI_BREAK};

/* There is room for a command if there is room for the longest one: so that none is ever cut. */
static void the_longest_command_fits_its_limit(void **state)
{
    char key[DLOCK_KEY_MAX];
    size_t i;
    (void)state;
    memset(key, 'k', sizeof key);
    key[0] = '{';
    key[2] = '}';   /* the longer shape of helper keys */
    for (i = 0; i < COUNT(all_kinds) * 8; i++) {
        dlocki_command command = command_of(all_kinds[i / 8], key, sizeof key);
        command.whole = i % 2 == 1;
        command.fenced = i / 2 % 2 == 1;
        command.letter = i / 4 % 2 == 1 ? 'n' : (char)0;
        command.score = INT64_MIN;
        command.expiry_ms = INT64_MIN;
        empty();
        assert_true(dlocki_put_command(&out, &command));
        assert_true(out.to <= DLOCKI_COMMAND_MAX);
    }
    for (i = 0; i < COUNT(scripts); i++) {
        assert_true(strlen(scripts[i].script) <= DLOCKI_SCRIPT_MAX);
    }
    /* a handshake of the longest kind, and a script, both twice */
    assert_true(2 * (2 * DLOCKI_SECRET_MAX + DLOCKI_NAME_MAX + 256 + DLOCKI_COMMAND_MAX) <=
                DLOCKI_OUT_MAX);
}

static void without_room_nothing_is_written(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(all_kinds); i++) {
        dlocki_command command = command_of(all_kinds[i], "k", 1);
        size_t at;
        empty();
        out.to = DLOCKI_OUT_MAX - DLOCKI_COMMAND_MAX;
        assert_true(dlocki_put_command(&out, &command));   /* just enough */
        assert_int_equal(out.bytes[DLOCKI_OUT_MAX - DLOCKI_COMMAND_MAX], '*');
        empty();
        out.to = DLOCKI_OUT_MAX - DLOCKI_COMMAND_MAX + 1;
        assert_false(dlocki_put_command(&out, &command));
        assert_int_equal(out.from, 0);
        assert_int_equal(out.to, DLOCKI_OUT_MAX - DLOCKI_COMMAND_MAX + 1);
        for (at = 0; at < DLOCKI_OUT_MAX; at++) {
            assert_int_equal(out.bytes[at], 0x55);
        }
        out.to = DLOCKI_OUT_MAX;
        assert_false(dlocki_put_command(&out, &command));
        out.from = 1;   /* one byte was sent: not enough either, and nothing is lost */
        assert_false(dlocki_put_command(&out, &command));
        assert_int_equal(out.to - out.from, DLOCKI_OUT_MAX - 1);
    }
}

static void what_was_sent_makes_room(void **state)
{
    dlocki_command command = command_of(DLOCKI_ASK, "k", 1);
    size_t at;
    size_t written;
    (void)state;
    empty();
    assert_true(dlocki_put_command(&out, &command));
    written = out.to;
    empty();
    for (at = 0; at < DLOCKI_OUT_MAX; at++) {
        out.bytes[at] = (unsigned char)(at % 251);
    }
    out.from = DLOCKI_COMMAND_MAX;
    out.to = DLOCKI_OUT_MAX;
    assert_true(dlocki_put_command(&out, &command));
    assert_int_equal(out.from, 0);
    assert_int_equal(out.to, DLOCKI_OUT_MAX - DLOCKI_COMMAND_MAX + written);
    for (at = 0; at < DLOCKI_OUT_MAX - DLOCKI_COMMAND_MAX; at++) {
        assert_int_equal(out.bytes[at], (at + DLOCKI_COMMAND_MAX) % 251);
    }
    assert_memory_equal(out.bytes + at, "*8\r\n$7\r\nEVALSHA\r\n", 17);
}

#define AUTH_ME "*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$2\r\npw\r\n"
#define SETNAME_IT "*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$2\r\nit\r\n"
#define PING "*1\r\n$4\r\nPING\r\n"
#define SUBSCRIBE "*2\r\n$9\r\nSUBSCRIBE\r\n$22\r\ndlock:0123456789abcdef\r\n"

/* The handshake travels in one piece before the first command. */
static void a_handshake_is_written_byte_for_byte(void **state)
{
    static const struct {
        const char *url;
        const char *client_name;
        bool barrier;
        bool inbox;
        const char *flights;   /* A: AUTH, S: SELECT, N: SETNAME, P: PING, L: SUBSCRIBE */
        const char *bytes;
        size_t length;
    } handshakes[] = {
        {"redis://h", NULL, false, false, "", IN("")},
        {"redis://me:pw@h", NULL, false, false, "A", IN(AUTH_ME)},
        {"redis://:pw@h", NULL, false, false, "A", IN("*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n")},
        {"redis://me:@h", NULL, false, false, "A",
         IN("*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$0\r\n\r\n")},
        {"redis://:p%00%0D%0Aw@h", NULL, false, false, "A",
         IN("*2\r\n$4\r\nAUTH\r\n$5\r\np\0\r\nw\r\n")},
        {"redis://h/12", NULL, false, false, "S", IN("*2\r\n$6\r\nSELECT\r\n$2\r\n12\r\n")},
        {"redis://h/0", "it", false, false, "N", IN(SETNAME_IT)},
        {"redis://h", NULL, true, false, "P", IN(PING)},
        {"unix://me:pw@/s?db=3", "it", true, false, "ASNP",
         IN(AUTH_ME "*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n" SETNAME_IT PING)},
        /* the inbox: messages reach all databases, and there is nothing to undo behind */
        {"redis://h", NULL, false, true, "L", IN(SUBSCRIBE)},
        {"redis://h/12", NULL, true, true, "L", IN(SUBSCRIBE)},
        {"unix://me:pw@/s?db=3", "it", true, true, "ANL", IN(AUTH_ME SETNAME_IT SUBSCRIBE)},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(handshakes); i++) {
        dlock_config config = {.client_name = handshakes[i].client_name};
        dlock_factory *factory = open_factory(handshakes[i].url, &config);
        dlocki_link *link = handshakes[i].inbox ? &factory->inbox : &factory->link;
        int flight;
        memcpy(factory->id, "0123456789abcdef", sizeof factory->id);
        link->barrier = handshakes[i].barrier;
        dlocki_put_handshake(factory, link);
        out.from = 0;
        out.to = link->out.to;
        memcpy(out.bytes, link->out.bytes, out.to);
        check_out(handshakes[i].bytes, handshakes[i].length);
        assert_int_equal(link->flight_count, strlen(handshakes[i].flights));
        for (flight = 0; flight < link->flight_count; flight++) {
            assert_int_equal("ASNPL"[link->flights[flight].kind], handshakes[i].flights[flight]);
        }
        dlock_close(factory);
    }
}

/* ----------------------------------------------------------------------------------- the reader */

/* What comes of bytes: nothing yet, a reply, or an error. */
enum outcome_kind { NOTHING, REPLY, BROKEN };

typedef struct outcome {
    int kind;
    bool strange;   /* broken because we want no such thing, not because it is no RESP */
    size_t left;    /* bytes behind the reply                                           */
    dlocki_reply reply;
} outcome;

/* Reads up to the first reply; the bytes come in pieces of `piece`, the first one of `first`. */
static outcome read_in_pieces(const char *bytes, size_t length, size_t first, size_t piece)
{
    static dlocki_reply reply;
    redisReader *reader;
    outcome result;
    void *parsed = NULL;
    size_t at = 0;
    memset(&reply, 0, sizeof reply);
    memset(&result, 0, sizeof result);
    reader = dlocki_reader_open(&reply);
    assert_non_null(reader);
    memset(reply.text, 0x55, sizeof reply.text);   /* whatever was there before */
    memset(reply.values, 0x55, sizeof reply.values);
    memset(reply.lengths, 0x55, sizeof reply.lengths);
    memset(reply.parts, 0x55, sizeof reply.parts);
    reply.texts = 0x55;
    reply.type = 77;
    reply.count = 77;
    while (at < length && result.kind == NOTHING) {
        size_t count = at == 0 ? first : piece;
        count = count < length - at ? count : length - at;
        assert_int_equal(redisReaderFeed(reader, bytes + at, count), REDIS_OK);
        at += count;
        if (redisReaderGetReply(reader, &parsed) != REDIS_OK) {
            result.kind = BROKEN;
        } else if (parsed != NULL) {
            result.kind = REPLY;
            assert_false(reply.strange);
        }
    }
    result.strange = reply.strange;
    result.left = reader->len - reader->pos + (length - at);
    result.reply = reply;
    dlocki_reader_close(reader);
    return result;
}

static outcome read_whole(const char *bytes, size_t length)
{
    return read_in_pieces(bytes, length, length, length);
}

typedef struct wire_case {
    const char *bytes;
    size_t length;
    const char *is;   /* as `describe` has it */
} wire_case;

static const wire_case wire_cases[] = {
    {IN("+OK\r\n"), "status OK"},
    {IN("+\r\n"), "status "},
    {IN("+PONG\r\n"), "status PONG"},
    {IN("-ERR no\r\n"), "error ERR no"},
    {IN("-\r\n"), "error "},
    {IN("$0\r\n\r\n"), "string "},
    {IN("$5\r\na\r\nbc\r\n"), "string a\r\nbc"},
    {IN("$-1\r\n"), "nil"},
    {IN("*-1\r\n"), "nil"},
    {IN(":0\r\n"), "integer 0"},
    {IN(":1\r\n"), "integer 1"},
    {IN(":-1\r\n"), "integer -1"},
    {IN(":9223372036854775807\r\n"), "integer 9223372036854775807"},
    {IN(":-9223372036854775808\r\n"), "integer -9223372036854775808"},
    {IN("*0\r\n"), "array"},
    {IN("*1\r\n:2\r\n"), "array 2"},
    {IN("*4\r\n:1\r\n:1795398000123457\r\n:30000\r\n:1795398000123456\r\n"),
     "array 1 1795398000123457 30000 1795398000123456"},
    {IN("*6\r\n:0\r\n:-1\r\n:1795398000123456\r\n:0\r\n:0\r\n:1\r\n"),
     "array 0 -1 1795398000123456 0 0 1"},
    {IN("*1\r\n$1\r\na\r\n"), "array 'a'"},
    {IN("*1\r\n$0\r\n\r\n"), "array ''"},
    {IN("*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1\r\nx\r\n"), "array 'message' 'ch' 'x'"},
    {IN("*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n"), "array 'subscribe' 'ch' 1"},
    {IN("*4\r\n:-2\r\n:0\r\n:0\r\n$5\r\na\r\n\0b\r\n"), "array -2 0 0 'a\r\n?b'"},
    {IN("*6\r\n$1\r\na\r\n:2\r\n$1\r\nc\r\n:4\r\n$1\r\ne\r\n$1\r\nf\r\n"),
     "array 'a' 2 'c' 4 'e' 'f'"},

    /* well-formed, and of a shape that nothing we ask for has */
    {IN("*7\r\n:1\r\n"), "broken"},
    {IN("*8\r\n:1\r\n"), "broken"},
    {IN("*1000000\r\n"), "broken"},
    {IN("*2147483647\r\n"), "broken"},
    {IN("*1\r\n+OK\r\n"), "broken"},
    {IN("*1\r\n-ERR\r\n"), "broken"},
    {IN("*1\r\n$-1\r\n"), "broken"},
    {IN("*1\r\n*-1\r\n"), "broken"},
    {IN("*1\r\n*0\r\n"), "broken"},
    {IN("*1\r\n*1\r\n:1\r\n"), "broken"},
    {IN("*2\r\n:1\r\n*6\r\n:1\r\n"), "broken"},
    {IN("*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n*1\r\n$1\r\nx\r\n"), "broken"},
    {IN("*3\r\n$9\r\nsubscribe\r\n$-1\r\n:1\r\n"), "broken"},
    {IN("*3\r\n+message\r\n$2\r\nch\r\n$1\r\nx\r\n"), "broken"},
    {IN("*4\r\n:-2\r\n:0\r\n:0\r\n$-1\r\n"), "broken"},
    {IN("*4\r\n:-2\r\n:0\r\n:0\r\n+\r\n"), "broken"},

    /* no RESP at all */
    {IN("HTTP/1.1 400 Bad Request\r\n"), "broken"},
    {IN("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), "broken"},
    {IN("\x15\x03\x01\x00\x02\x02\x46"), "broken"},   /* a TLS alert */
    {IN("\x16\x03\x03\x00\x31\x02\r\n"), "broken"},
    {IN("220 mail.example ESMTP\r\n"), "broken"},
    {IN("ERROR\r\n"), "broken"},   /* memcached */
    {IN("J\0\0\0\n8.0.36\0"), "broken"},   /* MySQL */
    {IN("@\r\n"), "broken"},
    {IN("\r\n"), "broken"},
    {IN("\0"), "broken"},
    {IN("\xff\xff\xff\xff"), "broken"},
    {IN(" +OK\r\n"), "broken"},
    {IN("|1\r\n+k\r\n+v\r\n"), "broken"},   /* RESP3's attribute */
    {IN(":9223372036854775808\r\n"), "broken"},
    {IN(":-9223372036854775809\r\n"), "broken"},
    {IN(":99999999999999999999999\r\n"), "broken"},
    {IN(":\r\n"), "broken"},
    {IN(":x\r\n"), "broken"},
    {IN(":1x\r\n"), "broken"},
    {IN("*-2\r\n"), "broken"},
    {IN("*x\r\n"), "broken"},
    {IN("* OK IMAP4rev1 ready\r\n"), "broken"},
    {IN("*99999999999999999999\r\n"), "broken"},
    {IN("$-2\r\n"), "broken"},
    {IN("$x\r\n"), "broken"},
    {IN("$99999999999999999999\r\n"), "broken"},

    /* not enough to tell */
    {IN("+"), "nothing"},
    {IN("+OK"), "nothing"},
    {IN("+OK\r"), "nothing"},
    {IN("+OK\n"), "nothing"},
    {IN("-ERR a line without end"), "nothing"},
    {IN(":1"), "nothing"},
    {IN("$"), "nothing"},
    {IN("$3\r\nabc"), "nothing"},
    {IN("$3\r\nabc\r"), "nothing"},
    {IN("$2147483647\r\nabc"), "nothing"},
    {IN("*4\r\n:1\r\n:2\r\n:3\r\n"), "nothing"},
    {IN("*6\r\n"), "nothing"},
    {IN("*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$5\r\nx"), "nothing"},
};

/* In words: the kind, and what is in it. */
static const char *describe(const outcome *is)
{
    static const char *const types[] = {"?",   "string", "array", "integer",
                                        "nil", "status", "error"};
    static char text[300];
    size_t length;
    int i;
    if (is->kind != REPLY) {
        return is->kind == NOTHING ? "nothing" : "broken";
    }
    assert_in_range(is->reply.type, 1, 6);
    length = (size_t)snprintf(text, sizeof text, "%s", types[is->reply.type]);
    if (is->reply.type == REDIS_REPLY_INTEGER) {
        (void)snprintf(text + length, sizeof text - length, " %lld",
                       (long long)is->reply.values[0]);
    } else if (is->reply.type != REDIS_REPLY_ARRAY && is->reply.type != REDIS_REPLY_NIL) {
        (void)snprintf(text + length, sizeof text - length, " %s", is->reply.text);
    }
    for (i = 0; is->reply.type == REDIS_REPLY_ARRAY && i < is->reply.count; i++) {
        size_t c;
        if ((is->reply.texts >> i & 1u) == 0) {
            length += (size_t)snprintf(text + length, sizeof text - length, " %lld",
                                       (long long)is->reply.values[i]);
            continue;
        }
        length += (size_t)snprintf(text + length, sizeof text - length, " '");
        for (c = 0; c < is->reply.lengths[i]; c++) {
            text[length++] = (char)(is->reply.parts[i][c] != 0 ? is->reply.parts[i][c] : '?');
        }
        assert_int_equal(is->reply.parts[i][c], 0);   /* whatever it holds, it ends */
        text[length++] = '\'';
        text[length] = 0;
    }
    return text;
}

static void check_outcome(const outcome *is, const wire_case *expected)
{
    if (strcmp(describe(is), expected->is) != 0) {
        fail_msg("%.*s: %s instead of %s", (int)expected->length, expected->bytes, describe(is),
                 expected->is);
    }
    if (is->kind == REPLY) {
        assert_int_equal(is->left, 0);
    }
}

static void a_reply_is_read_for_what_it_is(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(wire_cases); i++) {
        outcome whole = read_whole(wire_cases[i].bytes, wire_cases[i].length);
        check_outcome(&whole, &wire_cases[i]);
    }
}

static void a_reply_cut_at_any_byte_is_the_same_reply(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(wire_cases); i++) {
        const wire_case *is = &wire_cases[i];
        size_t split;
        for (split = 1; split <= is->length; split++) {
            outcome two = read_in_pieces(is->bytes, is->length, split, is->length);
            outcome even = read_in_pieces(is->bytes, is->length, split, split);
            outcome bytewise = read_in_pieces(is->bytes, is->length, split, 1);
            check_outcome(&two, is);
            check_outcome(&even, is);
            check_outcome(&bytewise, is);
        }
    }
}

/* RESP3 was never asked for. The older hiredis does not know it and the newer one does: neither
 * makes a reply of it that an acquire could believe. */
static void resp3_is_no_answer(void **state)
{
    static const struct {
        const char *bytes;
        size_t length;
    } cases[] = {
        {IN(",3.14\r\n")},
        {IN(",inf\r\n")},
        {IN("#t\r\n")},
        {IN("#f\r\n")},
        {IN("(3492890328409238509324850943850943825024385\r\n")},
        {IN("=15\r\ntxt:Some string\r\n")},
        {IN("!21\r\nSYNTAX invalid syntax\r\n")},
        {IN("%1\r\n:1\r\n:2\r\n")},
        {IN("%4\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n")},
        {IN("~4\r\n:1\r\n:1795398000123457\r\n:30000\r\n:1795398000123456\r\n")},
        {IN(">4\r\n:1\r\n:1795398000123457\r\n:30000\r\n:1795398000123456\r\n")},
        {IN(">3\r\n+message\r\n+ch\r\n+x\r\n")},
        {IN(">3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1\r\nx\r\n")},
        {IN("*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n=5\r\ntxt:x\r\n")},
        {IN("*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n(5\r\n")},
        {IN("*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n_\r\n")},
        {IN("*4\r\n:1\r\n,1.5\r\n:30000\r\n:1795398000123456\r\n")},
        {IN("*4\r\n:1\r\n#t\r\n:30000\r\n:1795398000123456\r\n")},
        {IN("*4\r\n:1\r\n_\r\n:30000\r\n:1795398000123456\r\n")},
        {IN("*4\r\n:1\r\n(5\r\n:30000\r\n:1795398000123456\r\n")},
        {IN("*?\r\n:1\r\n.\r\n")},
        {IN("$?\r\n;4\r\nHell\r\n;0\r\n")},
        {IN("_\r\n")},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(cases); i++) {
        outcome is = read_whole(cases[i].bytes, cases[i].length);
        if (is.kind != BROKEN) {
            fail_msg("%.*s", (int)cases[i].length, cases[i].bytes);
        }
    }
}

/* 1 was ours, 2 the ticket went, 4 handed over, 8 could not notify: only these together. */
static void a_release_answers_what_its_script_can_say(void **state)
{
    static const bool possible[16] = {true,  true, true,  true, false, true,  false, true,
                                      false, true, false, true, false, false, false, false};
    int flags;
    (void)state;
    for (flags = -1; flags <= 16; flags++) {
        bool fits = flags >= 0 && flags < 16 && possible[flags];
        assert_int_equal(dlocki_flags_fit(flags, false), fits);
        assert_int_equal(dlocki_flags_fit(flags, true), flags == 0 || flags == 1);
    }
}

static void deep_nesting_ends_at_the_second_level(void **state)
{
    static char deep[40000];
    size_t i;
    outcome is;
    (void)state;
    for (i = 0; i < sizeof deep; i += 4) {
        memcpy(deep + i, "*1\r\n", 4);
    }
    is = read_whole(deep, sizeof deep);
    assert_int_equal(is.kind, BROKEN);
    assert_true(is.strange);
    is = read_in_pieces(deep, sizeof deep, 4, 4);
    assert_int_equal(is.kind, BROKEN);
    assert_true(is.left >= sizeof deep - 8);   /* nothing behind it was looked at */
}

/* What we ask for in vain is told apart from memory running out: both end in the same error of
 * the reader. */
static void a_strange_shape_is_marked(void **state)
{
    outcome is;
    (void)state;
    is = read_whole("*7\r\n", 4);
    assert_true(is.strange);
    is = read_whole("*1\r\n+a\r\n", 8);
    assert_true(is.strange);
    is = read_whole("*1\r\n$-1\r\n", 9);
    assert_true(is.strange);
    is = read_whole("HTTP\r\n", 6);
    assert_false(is.strange);
}

static void a_second_reply_is_seen_behind_the_first(void **state)
{
    outcome is = read_whole("+OK\r\n+OK\r\n", 10);
    (void)state;
    assert_int_equal(is.kind, REPLY);
    assert_int_equal(is.left, 5);
    is = read_whole("$-1\r\n\0", 6);
    assert_int_equal(is.left, 1);
}

/* One reader, many replies: nothing of one is left in the next. */
static void a_reply_leaves_nothing_for_the_next(void **state)
{
    static const char stream[] = "*4\r\n$1\r\na\r\n:2\r\n:3\r\n$1\r\nd\r\n+OK\r\n:7\r\n$-1\r\n-ERR "
                                 "x\r\n*1\r\n:9\r\n+PONG\r\n";
    static const int types[] = {REDIS_REPLY_ARRAY, REDIS_REPLY_STATUS, REDIS_REPLY_INTEGER,
                                REDIS_REPLY_NIL,   REDIS_REPLY_ERROR,  REDIS_REPLY_ARRAY,
                                REDIS_REPLY_STATUS};
    static const char *const texts[] = {NULL, "OK", NULL, NULL, "ERR x", NULL, "PONG"};
    dlocki_reply reply;
    redisReader *reader;
    size_t i;
    (void)state;
    memset(&reply, 0, sizeof reply);
    reader = dlocki_reader_open(&reply);
    assert_non_null(reader);
    assert_int_equal(redisReaderFeed(reader, stream, sizeof stream - 1), REDIS_OK);
    for (i = 0; i < COUNT(types); i++) {
        void *parsed = NULL;
        assert_int_equal(redisReaderGetReply(reader, &parsed), REDIS_OK);
        assert_non_null(parsed);
        assert_int_equal(reply.type, types[i]);
        if (texts[i] != NULL) {
            assert_string_equal(reply.text, texts[i]);
        }
        if (i == 2) {
            assert_int_equal(reply.values[0], 7);
        } else if (i == 5) {
            assert_int_equal(reply.count, 1);
            assert_int_equal(reply.values[0], 9);
            assert_int_equal(reply.texts, 0);
        } else if (i == 0) {
            assert_int_equal(reply.texts, 9);
        }
    }
    assert_int_equal(reader->pos, reader->len);
    dlocki_reader_close(reader);
    dlocki_reader_close(NULL);
}

/* A text of any length is cut to what fits, and the rest is not kept. */
static void a_long_text_is_cut(void **state)
{
    static const char heads[] = {'-', '+'};
    char *bytes = (char *)malloc(MEGABYTE + 64);
    dlocki_verdict verdict;
    outcome is;
    size_t i;
    int head;
    (void)state;
    assert_non_null(bytes);
    for (i = 0; i < 2; i++) {
        memset(bytes, 'x', MEGABYTE);
        memcpy(bytes, "-OOM ", 5);
        bytes[0] = heads[i];
        bytes[500] = '\x1b';
        memcpy(bytes + MEGABYTE, "\r\n", 2);
        is = read_in_pieces(bytes, MEGABYTE + 2, 16384, 16384);
        assert_int_equal(is.kind, REPLY);
        assert_int_equal(strlen(is.reply.text), sizeof is.reply.text - 1);
        assert_memory_equal(is.reply.text, bytes + 1, sizeof is.reply.text - 1);
        verdict = dlocki_judge(DLOCKI_ASK, true, 30000, &is.reply);
        assert_int_equal(verdict.kind, i == 0 ? DLOCKI_LATER : DLOCKI_GARBAGE);
    }
    head = snprintf(bytes, 64, "$%d\r\n", MEGABYTE);
    memset(bytes + head, 'y', MEGABYTE);
    memcpy(bytes + head + MEGABYTE, "\r\n", 2);
    is = read_in_pieces(bytes, (size_t)head + MEGABYTE + 2, 16384, 16384);
    assert_int_equal(is.kind, REPLY);
    assert_int_equal(is.reply.type, REDIS_REPLY_STRING);
    assert_int_equal(strlen(is.reply.text), sizeof is.reply.text - 1);
    for (i = 158; i <= 161; i++) {   /* around the length of what is kept */
        memset(bytes, 'z', i + 1);
        bytes[0] = '-';
        memcpy(bytes + i + 1, "\r\n", 2);
        is = read_whole(bytes, i + 3);
        assert_int_equal(is.kind, REPLY);
        assert_int_equal(strlen(is.reply.text), i < 159 ? i : 159);
    }
    free(bytes);
}

/* In an array a text is cut, too, and its length is that of what was kept. */
static void a_long_text_in_an_array_is_cut(void **state)
{
    static const size_t lengths[] = {0, 1, 22, 95, 96, 97, 98, 160, 65535, MEGABYTE};
    char *bytes = (char *)malloc(6 * (MEGABYTE + 64));
    size_t i;
    (void)state;
    assert_non_null(bytes);
    for (i = 0; i < COUNT(lengths); i++) {
        size_t kept = lengths[i] < 96 ? lengths[i] : 96;
        size_t at = (size_t)snprintf(bytes, 64, "*6\r\n");
        outcome is;
        int part;
        for (part = 0; part < 6; part++) {
            at += (size_t)snprintf(bytes + at, 64, "$%u\r\n", (unsigned)lengths[i]);
            memset(bytes + at, 'a' + part, lengths[i]);
            at += lengths[i];
            memcpy(bytes + at, "\r\n", 2);
            at += 2;
        }
        is = read_in_pieces(bytes, at, 16384, 16384);
        assert_int_equal(is.kind, REPLY);
        assert_int_equal(is.left, 0);
        assert_int_equal(is.reply.count, 6);
        assert_int_equal(is.reply.texts, 63);
        for (part = 0; part < 6; part++) {
            size_t c;
            assert_int_equal(is.reply.lengths[part], kept);
            for (c = 0; c < kept; c++) {
                assert_int_equal(is.reply.parts[part][c], 'a' + part);
            }
            assert_int_equal(is.reply.parts[part][kept], 0);
        }
    }
    free(bytes);
}

/* The buffer has grown before the first reply comes, so that none needs memory. */
static void a_reader_has_its_buffer_from_the_start(void **state)
{
    dlocki_reply reply;
    redisReader *reader;
    (void)state;
    memset(&reply, 0, sizeof reply);
    reader = dlocki_reader_open(&reply);
    assert_non_null(reader);
    assert_int_equal(reader->maxbuf, 0);
    assert_int_equal(reader->len, 0);
    assert_int_equal(reader->pos, 0);
    assert_int_equal(reader->err, 0);
    assert_ptr_equal(reader->privdata, &reply);
    dlocki_reader_close(reader);
}

/* ------------------------------------------------------------------------------------- verdicts */

static dlocki_verdict judge(const char *bytes, size_t length, int kind, bool fenced)
{
    outcome is = read_whole(bytes, length);
    dlocki_verdict verdict;
    if (is.kind != REPLY) {
        memset(&verdict, 0, sizeof verdict);
        verdict.kind = -1;   /* not even a reply: the engine calls it PROTOCOL */
        return verdict;
    }
    return dlocki_judge(kind, fenced, 30000, &is.reply);
}

typedef struct ask_case {
    const char *bytes;
    bool fenced;
    int kind;
    uint64_t fence;
    int64_t lease_ms;
} ask_case;

static const ask_case ask_cases[] = {
    /* granted now, for the whole lease: the fence alone, which is past the server's clock */
    {":1795398000123457\r\n", true, DLOCKI_GRANTED, 1795398000123457, 30000},
    {":4294967296\r\n", true, DLOCKI_GRANTED, 4294967296, 30000},
    {":9007199254740991\r\n", true, DLOCKI_GRANTED, 9007199254740991, 30000},
    {":4294967295\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {":1\r\n", true, DLOCKI_GARBAGE, 0, 0}, /* an answer to something else? */
    {":0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {":-1\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {":9007199254740992\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {":9223372036854775807\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {":-9223372036854775808\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {":0\r\n", false, DLOCKI_GARBAGE, 0, 0},
    {":1\r\n", false, DLOCKI_GARBAGE, 0, 0},
    {":1795398000123457\r\n", false, DLOCKI_GARBAGE, 0, 0},
    /* granted before: what is left of it */
    {"*4\r\n:1\r\n:5\r\n:30000\r\n:4\r\n", true, DLOCKI_GRANTED, 5, 30000},
    {"*4\r\n:1\r\n:1\r\n:0\r\n:1\r\n", true, DLOCKI_GRANTED, 1, 0},
    {"*4\r\n:1\r\n:1\r\n:-1\r\n:1\r\n", true, DLOCKI_GRANTED, 1, -1},
    {"*4\r\n:1\r\n:9007199254740991\r\n:3\r\n:1\r\n", true, DLOCKI_GRANTED, 9007199254740991, 3},
    {"*4\r\n:1\r\n:0\r\n:30000\r\n:4\r\n", false, DLOCKI_GRANTED, 0, 30000},
    /* wrong values */
    {"*4\r\n:1\r\n:0\r\n:30000\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:-1\r\n:30000\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:9007199254740992\r\n:30000\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:9223372036854775807\r\n:30000\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:-9223372036854775808\r\n:30000\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:5\r\n:30000\r\n:4\r\n", false, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:-1\r\n:30000\r\n:4\r\n", false, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:5\r\n:-2\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:5\r\n:-7\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:5\r\n:-9223372036854775808\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:5\r\n:30000\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:5\r\n:30000\r\n:-1\r\n", true, DLOCKI_GARBAGE, 0, 0},
    /* wrong sizes */
    {"*3\r\n:1\r\n:5\r\n:30000\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*5\r\n:1\r\n:5\r\n:30000\r\n:4\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:1\r\n:5\r\n:30000\r\n:4\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*1\r\n:1\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    /* held */
    {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_HELD, 0, 100},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n:1\r\n", false, DLOCKI_HELD, 0, 100},
    {"*6\r\n:0\r\n:-1\r\n:4\r\n:7\r\n:3\r\n:1\r\n", true, DLOCKI_HELD, 0, -1},
    {"*6\r\n:0\r\n:0\r\n:4\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_HELD, 0, 0},
    {"*6\r\n:0\r\n:9223372036854775807\r\n:4\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_HELD, 0,
     INT64_MAX},
    /* wrong values */
    {"*6\r\n:0\r\n:-2\r\n:4\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:-7\r\n:4\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:0\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:-4\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:-1\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:9007199254740992\r\n:1\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:-1\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n:2\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n:-1\r\n", true, DLOCKI_GARBAGE, 0, 0},
    /* wrong sizes */
    {"*4\r\n:0\r\n:100\r\n:4\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*5\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    /* a text where a number belongs */
    {"*6\r\n$1\r\n0\r\n:100\r\n:4\r\n:0\r\n:0\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n$1\r\n0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n$1\r\n5\r\n:30000\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*4\r\n:1\r\n:5\r\n:30000\r\n$1\r\n4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*1\r\n$1\r\n2\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*1\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    /* ask again; cannot grow */
    {"*1\r\n:2\r\n", true, DLOCKI_AGAIN, 0, 0},
    {"*2\r\n:2\r\n:0\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*1\r\n:3\r\n", true, DLOCKI_REFUSAL, 0, 0},
    {"*4\r\n:3\r\n:5\r\n:30000\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*1\r\n:4\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*1\r\n:-1\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*1\r\n:4294967298\r\n", true, DLOCKI_GARBAGE, 0, 0},   /* 2 in 32 bits */
    /* other types */
    {"+OK\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"+OK\r\n", false, DLOCKI_GARBAGE, 0, 0},
    {"$-1\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"*-1\r\n", true, DLOCKI_GARBAGE, 0, 0},
    {"$1\r\n1\r\n", true, DLOCKI_GARBAGE, 0, 0},
};

static void an_ask_takes_what_its_script_says_and_nothing_else(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(ask_cases); i++) {
        const ask_case *is = &ask_cases[i];
        dlocki_verdict verdict = judge(is->bytes, strlen(is->bytes), DLOCKI_ASK, is->fenced);
        if (verdict.kind != is->kind) {
            fail_msg("row %u: %s is %d", (unsigned)i, is->bytes, verdict.kind);
        }
        assert_true(verdict.fence == is->fence);
        assert_true(verdict.lease_ms == is->lease_ms);
        assert_int_equal(verdict.says != NULL, is->kind == DLOCKI_REFUSAL);
        assert_false(verdict.elsewhere);
    }
}

/* What a refusal says besides: the lease, the server's clock, our score and place, whose it is. */
static void held_tells_score_place_clock_and_whose_it_is(void **state)
{
    static const struct {
        const char *bytes;
        int64_t lease_ms, now_us, score, place;
        bool foreign;
    } cases[] = {
        {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n:0\r\n", 100, 4, 0, 0, false},
        {"*6\r\n:0\r\n:-1\r\n:1\r\n:0\r\n:0\r\n:1\r\n", -1, 1, 0, 0, true},
        {"*6\r\n:0\r\n:7\r\n:1795398000123456\r\n:1795398000123455\r\n:3\r\n:1\r\n", 7,
         1795398000123456, 1795398000123455, 3, true},
        {"*6\r\n:0\r\n:7\r\n:9\r\n:9007199254740991\r\n:1000000\r\n:0\r\n", 7, 9, 9007199254740991,
         1000000, false},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(cases); i++) {
        dlocki_verdict is = judge(cases[i].bytes, strlen(cases[i].bytes), DLOCKI_ASK, i % 2 == 0);
        assert_int_equal(is.kind, DLOCKI_HELD);
        assert_true(is.lease_ms == cases[i].lease_ms && is.now_us == cases[i].now_us);
        assert_true(is.score == cases[i].score && is.place == cases[i].place);
        assert_int_equal(is.foreign, cases[i].foreign);
    }
}

/* A grant that is told in full brings the server's clock, a bare fence does not. */
static void a_grant_tells_the_clock_if_it_is_told_in_full(void **state)
{
    dlocki_verdict is =
        judge(IN("*4\r\n:1\r\n:5\r\n:30000\r\n:1795398000123456\r\n"), DLOCKI_ASK, true);
    (void)state;
    assert_int_equal(is.kind, DLOCKI_GRANTED);
    assert_true(is.now_us == 1795398000123456);
    assert_true(is.score == 0 && is.place == 0 && !is.foreign);
    is = judge(IN(":1795398000123457\r\n"), DLOCKI_ASK, true);
    assert_int_equal(is.kind, DLOCKI_GRANTED);
    assert_int_equal(is.now_us, 0);
}

#define HEX32 "0123456789abcdeffedcba9876543210"
#define SEEN(lease, fence, waiters, holder) \
    "*4\r\n:" lease "\r\n:" fence "\r\n:" waiters "\r\n" holder "\r\n"

static const struct {
    const char *bytes;
    size_t length;
    int kind;
    int64_t lease_ms;
    uint64_t fence;
    int64_t waiters;
    bool foreign;
    size_t owner_length;
} inspections[] = {
    {IN(SEEN("-2", "0", "0", "$0\r\n")), DLOCKI_SEEN, -2, 0, 0, false, 0},
    {IN(SEEN("-2", "77", "3", "$0\r\n")), DLOCKI_SEEN, -2, 77, 3, false, 0},
    {IN(SEEN("100", "77", "3", "$36\r\n" OWNER)), DLOCKI_SEEN, 100, 77, 3, false, 36},
    {IN(SEEN("0", "9007199254740991", "9223372036854775807", "$36\r\n" OWNER)), DLOCKI_SEEN, 0,
     9007199254740991, INT64_MAX, false, 36},
    {IN(SEEN("-1", "0", "0", "$3\r\nabc")), DLOCKI_SEEN, -1, 0, 0, true, 3},
    {IN(SEEN("-1", "0", "0", "$0\r\n")), DLOCKI_SEEN, -1, 0, 0, true, 0},
    {IN(SEEN("5", "0", "0", "$36\r\ndl2-" HEX32)), DLOCKI_SEEN, 5, 0, 0, true, 36},
    {IN(SEEN("5", "0", "0", "$37\r\n" OWNER "0")), DLOCKI_SEEN, 5, 0, 0, true, 37},
    {IN(SEEN("5", "0", "0", "$64\r\n" HEX32 HEX32)), DLOCKI_SEEN, 5, 0, 0, true, 64},
    {IN(SEEN("5", "0", "0", "$3\r\n\0\r\n")), DLOCKI_SEEN, 5, 0, 0, true, 3},
    /* the right shape, and values that cannot be */
    {IN(SEEN("-3", "0", "0", "$0\r\n")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN(SEEN("-9223372036854775808", "0", "0", "$0\r\n")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN(SEEN("5", "-1", "0", "$0\r\n")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN(SEEN("5", "9007199254740992", "0", "$0\r\n")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN(SEEN("5", "0", "-1", "$0\r\n")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN(SEEN("5", "0", "0", "$65\r\n" HEX32 HEX32 "0")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN(SEEN("5", "0", "0", "$97\r\n" HEX32 HEX32 HEX32 "0")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    /* wrong shapes */
    {IN(SEEN("5", "0", "0", ":7")), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("*4\r\n$1\r\n5\r\n:0\r\n:0\r\n$0\r\n\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("*4\r\n:5\r\n$1\r\n0\r\n:0\r\n$0\r\n\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("*4\r\n:5\r\n:0\r\n$1\r\n0\r\n$0\r\n\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("*3\r\n:5\r\n:0\r\n:0\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("*3\r\n:5\r\n:0\r\n$0\r\n\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("*5\r\n:5\r\n:0\r\n:0\r\n$0\r\n\r\n:0\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("*0\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("$-1\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("+OK\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN(":0\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("$36\r\n" OWNER "\r\n"), DLOCKI_GARBAGE, 0, 0, 0, false, 0},
    {IN("-WRONGTYPE x\r\n"), DLOCKI_REFUSAL, 0, 0, 0, false, 0},
};

static void an_inspection_takes_what_its_script_says_and_nothing_else(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(inspections); i++) {
        outcome is = read_whole(inspections[i].bytes, inspections[i].length);
        dlocki_verdict verdict = dlocki_judge(DLOCKI_INSPECT, i % 2 == 0, 0, &is.reply);
        assert_int_equal(is.kind, REPLY);
        if (verdict.kind != inspections[i].kind) {
            fail_msg("row %u is %d", (unsigned)i, verdict.kind);
        }
        if (verdict.kind == DLOCKI_SEEN) {
            assert_ptr_equal(verdict.owner, is.reply.parts[3]);
        }
        assert_true(verdict.lease_ms == inspections[i].lease_ms);
        assert_true(verdict.fence == inspections[i].fence);
        assert_true(verdict.place == inspections[i].waiters);
        assert_int_equal(verdict.owner_length, inspections[i].owner_length);
        assert_int_equal(verdict.foreign, inspections[i].foreign);
    }
}

static void an_owner_is_a_prefix_and_32_hex_digits(void **state)
{
    char text[40];
    size_t i;
    (void)state;
    memcpy(text, OWNER "00", 39);
    for (i = 0; i < 39; i++) {
        assert_int_equal(dlocki_is_owner(text, i), i == 36);
    }
    assert_true(dlocki_is_owner("dl1-0123456789ABCDEFFEDCBA9876543210", 36));
    for (i = 0; i < 36; i++) {
        static const char wrong[] = {'g', '/', ':', '@', '`', 'G', ' ', 0, '-', '\xff', '\r'};
        size_t j;
        for (j = 0; j < COUNT(wrong); j++) {
            memcpy(text, OWNER, 37);
            text[i] = wrong[j];
            assert_int_equal(dlocki_is_owner(text, 36), i == 3 && wrong[j] == '-');
        }
    }
    memcpy(text, OWNER, 37);
    text[2] = '2';
    assert_false(dlocki_is_owner(text, 36));
}

/* ------------------------------------------------------------------------------------ the inbox */

#define ID "0123456789abcdef"
#define CHANNEL "$22\r\ndlock:" ID "\r\n"
#define MESSAGE "*3\r\n$7\r\nmessage\r\n" CHANNEL

typedef struct inbox_case {
    const char *bytes;
    size_t length;
    int kind;
    uint64_t fence;
    int64_t now_us;
} inbox_case;

static const inbox_case inbox_cases[] = {
    {IN("*3\r\n$9\r\nsubscribe\r\n" CHANNEL ":1\r\n"), DLOCKI_SUBSCRIBED_TO, 0, 0},
    {IN("*2\r\n$4\r\npong\r\n$0\r\n\r\n"), DLOCKI_PONG, 0, 0},
    {IN("*2\r\n$4\r\npong\r\n$4\r\nwhat\r\n"), DLOCKI_PONG, 0, 0},
    {IN(MESSAGE "$58\r\ng " OWNER " 77 1795398000123456\r\n"), DLOCKI_GRANT, 77, 1795398000123456},
    {IN(MESSAGE "$40\r\ng " OWNER "    \r\n"), DLOCKI_HEARSAY, 0, 0},
    {IN(MESSAGE "$0\r\n\r\n"), DLOCKI_HEARSAY, 0, 0},
    {IN(MESSAGE "$38\r\nb " OWNER "\r\n"), DLOCKI_TAKEN, 0, 0},
    /* what a server says that was asked for more than one channel, or for less */
    {IN("*3\r\n$9\r\nsubscribe\r\n" CHANNEL ":2\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$9\r\nsubscribe\r\n" CHANNEL ":0\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$9\r\nsubscribe\r\n" CHANNEL ":-1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$9\r\nsubscribe\r\n" CHANNEL "$1\r\n1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$9\r\nSUBSCRIBE\r\n" CHANNEL ":1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$10\r\npsubscribe\r\n" CHANNEL ":1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$11\r\nunsubscribe\r\n" CHANNEL ":0\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*2\r\n$9\r\nsubscribe\r\n" CHANNEL), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*4\r\n$9\r\nsubscribe\r\n" CHANNEL ":1\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$9\r\nsubscribe\r\n:1\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n:1\r\n" CHANNEL ":1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    /* other channels */
    {IN("*3\r\n$9\r\nsubscribe\r\n$22\r\ndlock:0123456789abcdee\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0,
     0},
    {IN("*3\r\n$9\r\nsubscribe\r\n$22\r\ndlock:0123456789ABCDEF\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0,
     0},
    {IN("*3\r\n$9\r\nsubscribe\r\n$22\r\ndlocc:" ID "\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$9\r\nsubscribe\r\n$21\r\ndlock:0123456789abcde\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0,
     0},
    {IN("*3\r\n$9\r\nsubscribe\r\n$23\r\ndlock:" ID "0\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$9\r\nsubscribe\r\n$0\r\n\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$7\r\nmessage\r\n$22\r\ndlock:0023456789abcdef\r\n$38\r\nb " OWNER "\r\n"),
     DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$7\r\nmessage\r\n$5\r\nother\r\n$38\r\nb " OWNER "\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n" CHANNEL "$38\r\nb " OWNER "\r\n"), DLOCKI_NO_MESSAGE,
     0, 0},
    {IN("*3\r\n$8\r\nsmessage\r\n" CHANNEL "$38\r\nb " OWNER "\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$7\r\nMessage\r\n" CHANNEL "$38\r\nb " OWNER "\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*4\r\n$7\r\nmessage\r\n" CHANNEL "$38\r\nb " OWNER "\r\n$1\r\nx\r\n"), DLOCKI_NO_MESSAGE,
     0, 0},
    {IN(MESSAGE ":1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    /* no pong */
    {IN("*2\r\n$4\r\nPONG\r\n$0\r\n\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n$4\r\npong\r\n$0\r\n\r\n$0\r\n\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*1\r\n$4\r\npong\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*2\r\n$4\r\npong\r\n:1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*2\r\n$5\r\npongs\r\n$0\r\n\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    /* no arrays of such a kind at all */
    {IN("*0\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("*3\r\n:1\r\n:2\r\n:3\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("+PONG\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("+OK\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN(":1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("$-1\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("$7\r\nmessage\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
    {IN("-NOAUTH x\r\n"), DLOCKI_NO_MESSAGE, 0, 0},
};

static void the_inbox_takes_what_was_subscribed_to_and_nothing_else(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(inbox_cases); i++) {
        outcome is = read_whole(inbox_cases[i].bytes, inbox_cases[i].length);
        dlocki_message message = dlocki_judge_inbox(&is.reply, ID);
        assert_int_equal(is.kind, REPLY);
        if (message.kind != inbox_cases[i].kind) {
            fail_msg("row %u is %d", (unsigned)i, message.kind);
        }
        assert_true(message.fence == inbox_cases[i].fence);
        assert_true(message.now_us == inbox_cases[i].now_us);
    }
}

/* What is made of a payload; it comes as a message does. */
static dlocki_message payload(const char *text, size_t length)
{
    static outcome is;
    char bytes[512];
    int head = snprintf(bytes, sizeof bytes, MESSAGE "$%u\r\n", (unsigned)length);
    assert_true((size_t)head + length + 2 <= sizeof bytes);
    memcpy(bytes + head, text, length);
    memcpy(bytes + head + length, "\r\n", 2);
    is = read_whole(bytes, (size_t)head + length + 2);
    assert_int_equal(is.kind, REPLY);
    return dlocki_judge_inbox(&is.reply, ID);
}

static const struct {
    const char *text;
    size_t length;
    int kind;
    uint64_t fence;
    int64_t now_us;
} payloads[] = {
    {IN("g " OWNER " 0 1"), DLOCKI_GRANT, 0, 1},   /* without a fence */
    {IN("g " OWNER " 1 1"), DLOCKI_GRANT, 1, 1},
    {IN("g " OWNER " 9007199254740991 9007199254740991"), DLOCKI_GRANT, 9007199254740991,
     9007199254740991},
    {IN("g " OWNER " 9007199254740992 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 9007199254740992"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 18446744073709551617 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 18446744073709551617"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 0"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " -1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 -1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " +1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1.0 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1e3 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 0x1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " x 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 1 "), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 1\0"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1\0 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1 1\n"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER "  1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER " 1  1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER "\t1\t1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g  " OWNER " 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN(" g " OWNER " 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("G " OWNER " 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("gg" OWNER " 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g_" OWNER " 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER "0 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g DL1-" HEX32 " 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("g dl1-0123456789abcdeffedcba987654321g 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("b " OWNER), DLOCKI_TAKEN, 0, 0},
    {IN("b " OWNER " "), DLOCKI_HEARSAY, 0, 0},
    {IN("b " OWNER "0"), DLOCKI_HEARSAY, 0, 0},
    {IN("b " OWNER "\0"), DLOCKI_HEARSAY, 0, 0},
    {IN("b " OWNER " 1 1"), DLOCKI_HEARSAY, 0, 0},
    {IN("B " OWNER), DLOCKI_HEARSAY, 0, 0},
    {IN("b" OWNER), DLOCKI_HEARSAY, 0, 0},
    {IN("b\0" OWNER), DLOCKI_HEARSAY, 0, 0},
    {IN("g " OWNER), DLOCKI_HEARSAY, 0, 0},
    {IN("h some key"), DLOCKI_HEARSAY, 0, 0},   /* for programs that wait on several servers */
    {IN("h " OWNER), DLOCKI_HEARSAY, 0, 0},
    {IN("\0"), DLOCKI_HEARSAY, 0, 0},
    {IN(OWNER), DLOCKI_HEARSAY, 0, 0},
};

static void a_payload_is_a_grant_a_loss_or_hearsay(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(payloads); i++) {
        dlocki_message message = payload(payloads[i].text, payloads[i].length);
        if (message.kind != payloads[i].kind) {
            fail_msg("row %u: %s is %d", (unsigned)i, payloads[i].text, message.kind);
        }
        if (message.kind != DLOCKI_HEARSAY) {
            assert_memory_equal(message.owner, OWNER, DLOCKI_OWNER_LENGTH);
        }
        assert_true(message.fence == payloads[i].fence);
        assert_true(message.now_us == payloads[i].now_us);
    }
}

/* Whoever cuts a message in two makes hearsay of it, but where it ends in a number. */
static void a_cut_payload_is_hearsay(void **state)
{
    static const char grant[] = "g " OWNER " 77 1795398000123456";
    static const char loss[] = "b " OWNER;
    size_t length;
    (void)state;
    for (length = 0; length < sizeof grant - 1; length++) {
        dlocki_message message = payload(grant, length);
        bool whole = length > sizeof grant - 1 - 16;   /* the clock has a digit at least */
        assert_int_equal(message.kind, whole ? DLOCKI_GRANT : DLOCKI_HEARSAY);
    }
    for (length = 0; length < sizeof loss - 1; length++) {
        assert_int_equal(payload(loss, length).kind, DLOCKI_HEARSAY);
    }
}

/* A payload that is longer than what is kept ends in nothing that could be believed. */
static void a_payload_longer_than_what_is_kept_is_hearsay(void **state)
{
    char text[256];
    size_t length;
    (void)state;
    for (length = 80; length <= 200; length++) {
        int head = snprintf(text, sizeof text, "g " OWNER " 1 1");
        memset(text + head, ' ', sizeof text - (size_t)head);
        assert_int_equal(payload(text, length).kind, DLOCKI_HEARSAY);
        memset(text + head, '7', sizeof text - (size_t)head);
        assert_int_equal(payload(text, length).kind, DLOCKI_HEARSAY);
        head = snprintf(text, sizeof text, "b " OWNER);
        memset(text + head, 0, sizeof text - (size_t)head);
        assert_int_equal(payload(text, length).kind, DLOCKI_HEARSAY);
    }
}

/* A message says nothing that the one before it said. */
static void a_message_leaves_nothing_for_the_next(void **state)
{
    static const char stream[] = MESSAGE "$38\r\nb " OWNER "\r\n"
                                         "*2\r\n:1\r\n:2\r\n"
                                         "*3\r\n:1\r\n:2\r\n:3\r\n"
                                         "*3\r\n$7\r\nmessage\r\n:1\r\n:1\r\n"
                                         "*2\r\n$4\r\npong\r\n$0\r\n\r\n"
                                         "*2\r\n:4\r\n$0\r\n\r\n"
                                         "*3\r\n$9\r\nsubscribe\r\n" CHANNEL ":1\r\n";
    static const int kinds[] = {DLOCKI_TAKEN,        DLOCKI_NO_MESSAGE, DLOCKI_NO_MESSAGE,
                                DLOCKI_NO_MESSAGE,   DLOCKI_PONG,       DLOCKI_NO_MESSAGE,
                                DLOCKI_SUBSCRIBED_TO};
    static dlocki_reply reply;
    redisReader *reader;
    size_t i;
    (void)state;
    memset(&reply, 0, sizeof reply);
    reader = dlocki_reader_open(&reply);
    assert_non_null(reader);
    assert_int_equal(redisReaderFeed(reader, stream, sizeof stream - 1), REDIS_OK);
    for (i = 0; i < COUNT(kinds); i++) {
        void *parsed = NULL;
        assert_int_equal(redisReaderGetReply(reader, &parsed), REDIS_OK);
        assert_non_null(parsed);
        assert_int_equal(dlocki_judge_inbox(&reply, ID).kind, kinds[i]);
    }
    dlocki_reader_close(reader);
}

/* One reply of each type, and what each command makes of it. */
static const struct {
    const char *bytes;
    int handshake;   /* AUTH, SELECT, CLIENT SETNAME */
    int ping;
    int set;
    int extend;
    int give_back;   /* and break */
} by_type[] = {
#define G DLOCKI_GARBAGE
    {"+OK\r\n", DLOCKI_FINE, G, DLOCKI_GRANTED, G, G},
    {"+PONG\r\n", G, DLOCKI_FINE, G, G, G},
    {"+\r\n", G, G, G, G, G},
    {"+O\r\n", G, G, G, G, G},
    {"+ok\r\n", G, G, G, G, G},
    {"+OKAY\r\n", G, G, G, G, G},
    {"+OK \r\n", G, G, G, G, G},
    {"+OK POP3 ready\r\n", G, G, G, G, G},
    {"+QUEUED\r\n", G, G, G, G, G},
    {"+PONG \r\n", G, G, G, G, G},
    {"$2\r\nOK\r\n", G, G, G, G, G},
    {"$4\r\nPONG\r\n", G, G, G, G, G},
    {"$0\r\n\r\n", G, G, G, G, G},
    {"$-1\r\n", G, G, DLOCKI_HELD, G, G},
    {":0\r\n", G, G, G, DLOCKI_FLAGS, DLOCKI_FLAGS},
    {":1\r\n", G, G, G, DLOCKI_FLAGS, DLOCKI_FLAGS},
    {":2\r\n", G, G, G, G, DLOCKI_FLAGS},
    {":5\r\n", G, G, G, G, DLOCKI_FLAGS},
    {":9\r\n", G, G, G, G, DLOCKI_FLAGS},
    {":11\r\n", G, G, G, G, DLOCKI_FLAGS},
    {":16\r\n", G, G, G, G, G},
    {":-1\r\n", G, G, G, G, G},
    {":4294967297\r\n", G, G, G, G, G},   /* 1 in 32 bits */
    {":9223372036854775807\r\n", G, G, G, G, G},
    {":-9223372036854775808\r\n", G, G, G, G, G},
    {"*0\r\n", G, G, G, G, G},
    {"*1\r\n:1\r\n", G, G, G, G, G},
    {"*1\r\n:2\r\n", G, G, G, G, G},
    {"*4\r\n:1\r\n:5\r\n:30000\r\n:4\r\n", G, G, G, G, G},
    {"*6\r\n:0\r\n:100\r\n:4\r\n:0\r\n:0\r\n:0\r\n", G, G, G, G, G},
    {"-OOM x\r\n", DLOCKI_LATER, DLOCKI_LATER, DLOCKI_LATER, DLOCKI_LATER, DLOCKI_LATER},
    {"-WRONGTYPE x\r\n", DLOCKI_REFUSAL, DLOCKI_REFUSAL, DLOCKI_REFUSAL, DLOCKI_REFUSAL,
     DLOCKI_REFUSAL},
    {"-NOSCRIPT x\r\n", DLOCKI_NOSCRIPT, DLOCKI_NOSCRIPT, DLOCKI_NOSCRIPT, DLOCKI_NOSCRIPT,
     DLOCKI_NOSCRIPT},
    {"-x\r\n", DLOCKI_DOUBT, DLOCKI_DOUBT, DLOCKI_DOUBT, DLOCKI_DOUBT, DLOCKI_DOUBT},
#undef G
};

static void each_command_takes_its_own_reply_only(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(by_type); i++) {
        const char *bytes = by_type[i].bytes;
        const int expected[] = {by_type[i].handshake, by_type[i].handshake, by_type[i].handshake,
                                by_type[i].ping,      by_type[i].set,       by_type[i].extend,
                                by_type[i].give_back, by_type[i].give_back};
        static const int kinds[] = {DLOCKI_AUTH, DLOCKI_SELECT, DLOCKI_SETNAME,   DLOCKI_PING,
                                    DLOCKI_SET,  DLOCKI_EXTEND, DLOCKI_GIVE_BACK, DLOCKI_BREAK};
        size_t j;
        for (j = 0; j < COUNT(kinds); j++) {
            dlocki_verdict verdict = judge(bytes, strlen(bytes), kinds[j], j % 2 == 0);
            if (verdict.kind != expected[j]) {
                fail_msg("%s to command %d is %d", bytes, kinds[j], verdict.kind);
            }
            assert_int_equal(verdict.fence, 0);
            if (verdict.kind == DLOCKI_FLAGS) {
                assert_int_equal(verdict.flags, strtol(bytes + 1, NULL, 10));
            }
        }
    }
}

/* Their answers are arrays; anything else but an error is babble. */
static void an_inspection_and_a_subscription_take_no_plain_reply(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(by_type); i++) {
        const char *bytes = by_type[i].bytes;
        int expected = *bytes == '-' ? by_type[i].ping : DLOCKI_GARBAGE;
        dlocki_verdict verdict = judge(bytes, strlen(bytes), DLOCKI_INSPECT, i % 2 == 0);
        assert_int_equal(verdict.kind, expected);
        verdict = judge(bytes, strlen(bytes), DLOCKI_SUBSCRIBE, i % 2 == 0);
        assert_int_equal(verdict.kind, expected);
    }
}

/* A plain SET says nothing of a lease: a grant has the one that was asked for, a holder's is not
 * known. */
static void a_plain_set_tells_no_lease(void **state)
{
    dlocki_verdict verdict = judge("+OK\r\n", 5, DLOCKI_SET, false);
    (void)state;
    assert_int_equal(verdict.kind, DLOCKI_GRANTED);
    assert_int_equal(verdict.lease_ms, 30000);
    verdict = judge("$-1\r\n", 5, DLOCKI_SET, false);
    assert_int_equal(verdict.kind, DLOCKI_HELD);
    assert_int_equal(verdict.lease_ms, -1);
}

/* A NUL ends our copy of a text, but not what the server said. */
static void a_text_with_a_nul_is_not_its_beginning(void **state)
{
    static const struct {
        const char *bytes;
        size_t length;
        int kind;
    } cases[] = {
        {IN("+OK\0\r\n"), DLOCKI_SET},     {IN("+OK\0nothing of that\r\n"), DLOCKI_SET},
        {IN("+OK\0x\r\n"), DLOCKI_AUTH},   {IN("+OK\0x\r\n"), DLOCKI_SELECT},
        {IN("+PONG\0x\r\n"), DLOCKI_PING},
    };
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(cases); i++) {
        dlocki_verdict verdict = judge(cases[i].bytes, cases[i].length, cases[i].kind, false);
        assert_int_equal(verdict.kind, DLOCKI_GARBAGE);
    }
}

/* --------------------------------------------------------------------------------------- errors */

typedef struct error_case {
    const char *text;
    int kind;
    bool elsewhere;
} error_case;

#define LATER DLOCKI_LATER, false
#define ELSEWHERE DLOCKI_LATER, true
#define REFUSAL DLOCKI_REFUSAL, false
#define DOUBT DLOCKI_DOUBT, false
#define SUFFIX " script: 17b8e3e645d460173e2cb187203d6d825c257702, on @user_script:12."

static const error_case error_cases[] = {
    {"NOSCRIPT No matching script. Please use EVAL.", DLOCKI_NOSCRIPT, false},
    {"NOSCRIPT", DLOCKI_NOSCRIPT, false},
    {"OOM command not allowed when used memory > 'maxmemory'.", LATER},
    {"OOM command not allowed when used memory > 'maxmemory'." SUFFIX, LATER},
    {"LOADING Redis is loading the dataset in memory", LATER},
    {"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
     LATER},
    {"BUSY", LATER},
    {"READONLY You can't write against a read only replica.", ELSEWHERE},
    {"READONLY You can't write against a read only replica." SUFFIX, ELSEWHERE},
    {"READONLY", ELSEWHERE},
    {"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", ELSEWHERE},
    {"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
     LATER},
    {"NOREPLICAS Not enough good replicas to write." SUFFIX, LATER},
    {"MOVED 3999 127.0.0.1:6381", ELSEWHERE},
    {"ASK 3999 127.0.0.1:6381", ELSEWHERE},
    {"TRYAGAIN Multiple keys request during rehashing of slot", LATER},
    {"CLUSTERDOWN The cluster is down", LATER},
    {"CLUSTERDOWN Hash slot not served", LATER},
    {"ERR max number of clients reached", LATER},
    {"ERR max number of clients + cluster connections reached", LATER},
    {"NOAUTH Authentication required.", REFUSAL},
    {"NOAUTH HELLO must be called with the client already authenticated", REFUSAL},
    {"ERR Protocol error: unauthenticated bulk length", REFUSAL},
    {"ERR Protocol error: unauthenticated multibulk length", REFUSAL},
    {"WRONGPASS invalid username-password pair or user is disabled.", REFUSAL},
    {"ERR invalid password", REFUSAL},
    {"ERR AUTH <password> called without any password configured for the default user. Are you "
     "sure your configuration is correct?",
     REFUSAL},
    {"ERR Client sent AUTH, but no password is set", REFUSAL},
    {"NOPERM this user has no permissions to run the 'evalsha' command", REFUSAL},
    {"NOPERM User locker has no permissions to access one of the keys used as arguments", REFUSAL},
    {"ERR The user executing the script can't run this command or subcommand" SUFFIX, REFUSAL},
    {"ERR The user executing the script can't publish to the channel" SUFFIX, REFUSAL},
    {"ERR ACL failure in script: User locker has no permissions to run the 'zadd' command" SUFFIX,
     REFUSAL},
    {"DENIED Redis is running in protected mode because protected mode is enabled", REFUSAL},
    {"NOPROTO unsupported protocol version", REFUSAL},
    {"WRONGTYPE Operation against a key holding the wrong kind of value", REFUSAL},
    {"WRONGTYPE Operation against a key holding the wrong kind of value" SUFFIX, REFUSAL},
    {"CROSSSLOT Keys in request don't hash to the same slot", REFUSAL},
    {"ERR unknown command 'EVALSHA', with args beginning with: 'abc' '3' ", REFUSAL},
    {"ERR unknown command `EVALSHA`, with args beginning with: ", REFUSAL},
    {"ERR unknown subcommand 'SETNAME'. Try CLIENT HELP.", REFUSAL},
    {"ERR Unknown Redis command called from script" SUFFIX, REFUSAL},
    {"ERR This Redis command is not allowed from script" SUFFIX, REFUSAL},
    {"ERR syntax error", REFUSAL},
    {"ERR syntax error" SUFFIX, REFUSAL},
    {"ERR invalid expire time in 'set' command", REFUSAL},
    {"ERR invalid expire time in set", REFUSAL},
    {"ERR wrong number of arguments for 'auth' command", REFUSAL},
    {"ERR DB index is out of range", REFUSAL},
    {"ERR SELECT is not allowed in cluster mode", REFUSAL},
    {"ERR value is not a valid float" SUFFIX, REFUSAL},
    {"ERR value is not an integer or out of range", REFUSAL},

    /* A word is a whole word: the beginning of another one says something else. */
    {"BUSYKEY Target key name already exists.", DOUBT},
    {"BUSYGROUP Consumer Group name already exists", DOUBT},
    {"BUSY_", DOUBT},
    {"BUS", DOUBT},
    {"OOMPH", DOUBT},
    {"OO", DOUBT},
    {"LOADINGS x", DOUBT},
    {"MOVEDX 3999 127.0.0.1:6381", DOUBT},
    {"ASKING", DOUBT},
    {"READONLYX", DOUBT},
    {"READONLY:", DOUBT},
    {"NOAUTHX", DOUBT},
    {"NOSCRIPTS", DOUBT},
    {"TRYAGAINST", DOUBT},
    {"CLUSTERDOWNTOWN", DOUBT},
    {"WRONGTYPED", DOUBT},
    {"DENIEDLY no", DOUBT},

    /* A word counts at the beginning only, and as it is written. */
    {"", DOUBT},
    {" ", DOUBT},
    {" OOM x", DOUBT},
    {"busy x", DOUBT},
    {"Busy x", DOUBT},
    {"-OOM x", DOUBT},
    {"x OOM", DOUBT},
    {"ERR", DOUBT},
    {"ERR ", DOUBT},
    {"ERR OOM command not allowed", DOUBT},
    {"ERR BUSY", DOUBT},
    {"ERR something about READONLY", DOUBT},
    {"ERR max", DOUBT},
    {"ERR Protocol error: invalid bulk length", DOUBT},
    {"ERR increment or decrement would overflow", DOUBT},
    {"ERR Error running script", DOUBT},
    {"ERR Error compiling script (new function): user_script:1: malformed number", DOUBT},
    {"ERR user_script:1: Script attempted to access nonexistent global variable 'x'" SUFFIX, DOUBT},
    {"EXECABORT Transaction discarded because of previous errors.", DOUBT},
    {"UNKILLABLE Sorry the script already executed write commands", DOUBT},
    {"UNBLOCKED client unblocked via CLIENT UNBLOCK", DOUBT},
    {"NOTBUSY No scripts in execution right now.", DOUBT},
    {"NOGOODSLAVE x", DOUBT},
    {"something that nobody has seen yet", DOUBT},
    {"%s%n", DOUBT},
};

static void check_error(const char *text, int kind, bool elsewhere)
{
    static const int kinds[] = {DLOCKI_AUTH,  DLOCKI_SELECT,    DLOCKI_SETNAME, DLOCKI_PING,
                                DLOCKI_SET,   DLOCKI_ASK,       DLOCKI_EXTEND,  DLOCKI_GIVE_BACK,
                                DLOCKI_BREAK, DLOCKI_SUBSCRIBE, DLOCKI_INSPECT};
    char bytes[400];
    int length = snprintf(bytes, sizeof bytes, "-%s\r\n", text);
    size_t i;
    assert_true(length > 0 && (size_t)length < sizeof bytes);
    for (i = 0; i < COUNT(kinds); i++) {
        dlocki_verdict verdict = judge(bytes, (size_t)length, kinds[i], i % 2 == 0);
        if (verdict.kind != kind || verdict.elsewhere != elsewhere) {
            fail_msg("\"%s\" is of kind %d, elsewhere %d", text, verdict.kind, verdict.elsewhere);
        }
        assert_non_null(verdict.says);
        assert_int_equal(verdict.fence, 0);
        assert_int_equal(verdict.flags, 0);
    }
}

static void an_error_is_classified_by_its_first_word(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(error_cases); i++) {
        check_error(error_cases[i].text, error_cases[i].kind, error_cases[i].elsewhere);
    }
}

/* Every row of the library's table is met by some row of ours, and none hides behind another. */
static void every_class_of_errors_was_met(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(dlocki_error_classes); i++) {
        bool met = false;
        size_t j;
        for (j = 0; j < COUNT(error_cases) && !met; j++) {
            dlocki_verdict verdict;
            const dlocki_error_class *is = &dlocki_error_classes[i];
            memset(&verdict, 0, sizeof verdict);
            dlocki_classify(error_cases[j].text, &verdict);
            met = strncmp(error_cases[j].text, is->begins, strlen(is->begins)) == 0 &&
                  verdict.says == is->says && verdict.kind == is->kind;
        }
        if (!met) {
            fail_msg("\"%s\" was not met", dlocki_error_classes[i].begins);
        }
    }
}

/* Before version 7 a server wrapped what went wrong inside a script. Those that its own checks
 * refused have a '-' before the word, and some have no word at all. */
#define CALL "ERR Error running script (call to f_17b8e3e645d460173e2cb187203d6d825c257702): "
#define ONCE CALL "@user_script:1: "
#define TWICE CALL "@user_script:41: @user_script: 41: "

static const error_case wrapped[] = {
    {ONCE "WRONGTYPE Operation against a key holding the wrong kind of value", REFUSAL},
    {TWICE "WRONGTYPE Operation against a key holding the wrong kind of value", REFUSAL},
    {CALL "@user_script: 1: WRONGTYPE Operation against a key", REFUSAL},
    {CALL "@user_script:123: WRONGTYPE Operation against a key", REFUSAL},
    {ONCE "ERR value is not a valid float", REFUSAL},
    {ONCE "OOM command not allowed when used memory > 'maxmemory'.", LATER},
    {TWICE "OOM command not allowed when used memory > 'maxmemory'.", LATER},
    {ONCE "READONLY You can't write against a read only replica.", ELSEWHERE},
    {ONCE "NOSCRIPT x", DLOCKI_NOSCRIPT, false},
    {ONCE "BUSYKEY x", DOUBT},
    {ONCE "", DOUBT},
    {TWICE "", DOUBT},
    {CALL, DOUBT},
    {CALL "@user_script:", DOUBT},
    {CALL "@user_script: 1", DOUBT},
    {CALL "@user_script:1: @user_script:", DOUBT},
    {CALL "@enable_strict_lua:15: user_script:3: Script attempted to access", DOUBT},
    {ONCE "user_script:1: attempt to index a nil value", DOUBT},
    /* not wrapped, though it looks like it */
    {"ERR x @user_script:1: OOM y", DOUBT},
    {"x @user_script: 1: OOM y", DOUBT},
};

static void an_error_from_inside_a_script_is_unwrapped(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(wrapped); i++) {
        check_error(wrapped[i].text, wrapped[i].kind, wrapped[i].elsewhere);
    }
}

/* As Redis 6.2 says it: issues redis/redis#8623, spring-data-redis#3042; Dragonfly does, too. */
static const error_case dashed[] = {
    {TWICE "-OOM command not allowed when used memory > 'maxmemory'.", LATER},
    {TWICE "-READONLY You can't write against a read only replica.", ELSEWHERE},
    {ONCE "-READONLY You can't write against a read only replica.", ELSEWHERE},
    {TWICE "-MASTERDOWN Link with MASTER is down", ELSEWHERE},
    {TWICE "-MISCONF Redis is configured to save RDB snapshots", LATER},
    {TWICE "-NOREPLICAS Not enough good replicas to write.", LATER},
    {TWICE "-BUSYKEY x", DOUBT},
    {TWICE "-", DOUBT},
    {TWICE "--OOM x", DOUBT},
};

static void an_error_of_redis_6s_own_checks_is_unwrapped_too(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(dashed); i++) {
        check_error(dashed[i].text, dashed[i].kind, dashed[i].elsewhere);
    }
}

/* Redis 6.2 has no word before these, not even ERR. */
static const error_case wordless[] = {
    {TWICE "The user executing the script can't run this command or subcommand", REFUSAL},
    {TWICE "The user executing the script can't access at least one of the keys mentioned in the "
           "command arguments",
     REFUSAL},
    {TWICE "Unknown Redis command called from Lua script", REFUSAL},
    {TWICE "This Redis command is not allowed from scripts", REFUSAL},
};

static void a_refusal_of_redis_6_inside_a_script_is_one(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(wordless); i++) {
        check_error(wordless[i].text, wordless[i].kind, wordless[i].elsewhere);
    }
}

/* A server may quote what it was sent. Its words are classified, never repeated. */
static void the_words_of_a_server_are_never_repeated(void **state)
{
    static const char *const quoting[] = {
        "-ERR unknown command 'AUTH', with args beginning with: '" MARKER "' \r\n",
        "-" MARKER "\r\n",
        "-WRONGPASS " MARKER "\r\n",
        "-ERR " MARKER "\r\n",
        "-MOVED 1 " MARKER ":1\r\n",
    };
    dlock_factory *factory = open_factory("redis://host", NULL);
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(quoting); i++) {
        dlock_error error = {0};
        dlocki_verdict verdict = judge(quoting[i], strlen(quoting[i]), DLOCKI_AUTH, true);
        assert_non_null(verdict.says);
        assert_null(strstr(verdict.says, MARKER));
        dlocki_say_server(factory, &error, DLOCK_REFUSED, 0, verdict.says);
        assert_null(memmem(&error, sizeof error, MARKER, strlen(MARKER)));
        check_text(error.text, __FILE__, __LINE__);
    }
    dlock_close(factory);
}

/* ------------------------------------------------------------------------------- whatever comes */

static uint64_t random_state = 88172645463325252;

static unsigned random_below(unsigned most)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % most;
}

/* What holds for every reply to every command. */
static void check_any_verdict(const dlocki_reply *reply)
{
    int kind;
    for (kind = DLOCKI_AUTH; kind <= DLOCKI_BREAK; kind++) {
        bool fenced = random_below(2) == 1;
        dlocki_verdict is = dlocki_judge(kind, fenced, 30000, reply);
        bool error = reply->type == REDIS_REPLY_ERROR;
        assert_in_range(is.kind, DLOCKI_GRANTED, DLOCKI_GARBAGE);
        if (is.kind == DLOCKI_GRANTED || is.kind == DLOCKI_HELD) {
            assert_true(kind == DLOCKI_ASK || kind == DLOCKI_SET);
            assert_true(is.lease_ms >= -1);
            assert_int_equal(is.fence > 0,
                             is.kind == DLOCKI_GRANTED && fenced && kind == DLOCKI_ASK);
            assert_true(is.fence < UINT64_C(9007199254740992));
            assert_true(is.score >= 0 && is.place >= 0 && is.now_us >= 0);
        }
        if (is.kind == DLOCKI_SEEN) {
            assert_int_equal(kind, DLOCKI_INSPECT);
            assert_true(is.lease_ms >= -2 && is.place >= 0 && is.owner_length <= 64);
            assert_true(is.fence < UINT64_C(9007199254740992));
        }
        if (is.kind == DLOCKI_FLAGS) {
            assert_true(kind == DLOCKI_EXTEND || kind == DLOCKI_GIVE_BACK || kind == DLOCKI_BREAK);
            assert_in_range(is.flags, 0, 15);
        }
        if (is.kind == DLOCKI_LATER || is.kind == DLOCKI_NOSCRIPT || is.kind == DLOCKI_DOUBT) {
            assert_true(error);
        }
        assert_int_equal(is.says != NULL,
                         error || (is.kind == DLOCKI_REFUSAL && kind == DLOCKI_ASK));
    }
}

/* And for whatever comes on the inbox. */
static bool check_any_message(const dlocki_reply *reply)
{
    dlocki_message is = dlocki_judge_inbox(reply, ID);
    assert_in_range(is.kind, DLOCKI_NO_MESSAGE, DLOCKI_HEARSAY);
    if (is.kind == DLOCKI_GRANT || is.kind == DLOCKI_TAKEN) {
        assert_ptr_equal(is.owner, reply->parts[2] + 2);
        assert_true(dlocki_is_owner(is.owner, DLOCKI_OWNER_LENGTH));
    }
    if (is.kind == DLOCKI_GRANT) {
        assert_true(is.fence < UINT64_C(9007199254740992) && is.now_us > 0);
    } else {
        assert_true(is.fence == 0 && is.now_us == 0);
    }
    return is.kind != DLOCKI_NO_MESSAGE;
}

/* Replies put together at random out of the pieces of real ones, a million bytes of them. */
static void no_bytes_whatever_do_harm(void **state)
{
    static const char *const scraps[] = {
        "*",
        "4\r\n",
        ":1\r\n",
        ":0\r\n",
        "*6\r\n",
        "$",
        "-1\r\n",
        "+OK\r\n",
        "-",
        "OOM ",
        "\r\n",
        "\r",
        "\n",
        ":",
        "9007199254740992\r\n",
        "*4\r\n:1\r\n",
        ":30000\r\n",
        "$3\r\nabc\r\n",
        "*1\r\n",
        "_\r\n",
        "#t\r\n",
        ",1\r\n",
        "%1\r\n",
        "~1\r\n",
        ">1\r\n",
        "=5\r\n",
        "(1\r\n",
        "\xff",
        ":-7\r\n",
        "*0\r\n",
        "x",
        "*2147483647\r\n",
        "*3\r\n$7\r\nmessage\r\n",
        MESSAGE,
        CHANNEL,
        "$9\r\nsubscribe\r\n",
        "$38\r\nb " OWNER "\r\n",
        "$42\r\ng " OWNER " 1 1\r\n",
        "*4\r\n:5\r\n:1\r\n:0\r\n",
    };
    int round;
    unsigned replies = 0;
    unsigned messages = 0;
    (void)state;
    for (round = 0; round < 30000; round++) {
        char bytes[800];
        size_t length = 0;
        unsigned count = 1 + random_below(9);
        outcome is;
        for (; count > 0; count--) {
            unsigned which = random_below(COUNT(scraps) + 2);
            if (which < COUNT(scraps)) {
                memcpy(bytes + length, scraps[which], strlen(scraps[which]));
                length += strlen(scraps[which]);
            } else {
                bytes[length++] = (char)random_below(256);
            }
        }
        is = read_in_pieces(bytes, length, 1 + random_below((unsigned)length), 1 + random_below(8));
        if (is.kind == REPLY) {
            replies++;
            check_any_verdict(&is.reply);
            messages += check_any_message(&is.reply);
        }
    }
    assert_true(replies > 3000);
    assert_true(messages > 20);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_number_is_written_in_decimal),
        cmocka_unit_test(a_string_is_framed_by_its_length_whatever_it_holds),
        cmocka_unit_test(a_command_is_written_byte_for_byte),
        cmocka_unit_test(a_ticket_is_written_byte_for_byte),
        cmocka_unit_test(an_ask_means_to_the_script_what_was_meant),
        cmocka_unit_test(a_script_has_the_sha1_by_which_it_is_called),
        cmocka_unit_test(the_whole_script_stands_where_its_sha1_stood),
        cmocka_unit_test(the_longest_command_fits_its_limit),
        cmocka_unit_test(without_room_nothing_is_written),
        cmocka_unit_test(what_was_sent_makes_room),
        cmocka_unit_test(a_handshake_is_written_byte_for_byte),
        cmocka_unit_test(a_reply_is_read_for_what_it_is),
        cmocka_unit_test(a_reply_cut_at_any_byte_is_the_same_reply),
        cmocka_unit_test(resp3_is_no_answer),
        cmocka_unit_test(deep_nesting_ends_at_the_second_level),
        cmocka_unit_test(a_strange_shape_is_marked),
        cmocka_unit_test(a_second_reply_is_seen_behind_the_first),
        cmocka_unit_test(a_reply_leaves_nothing_for_the_next),
        cmocka_unit_test(a_long_text_is_cut),
        cmocka_unit_test(a_long_text_in_an_array_is_cut),
        cmocka_unit_test(a_reader_has_its_buffer_from_the_start),
        cmocka_unit_test(an_ask_takes_what_its_script_says_and_nothing_else),
        cmocka_unit_test(held_tells_score_place_clock_and_whose_it_is),
        cmocka_unit_test(a_grant_tells_the_clock_if_it_is_told_in_full),
        cmocka_unit_test(an_inspection_takes_what_its_script_says_and_nothing_else),
        cmocka_unit_test(an_owner_is_a_prefix_and_32_hex_digits),
        cmocka_unit_test(the_inbox_takes_what_was_subscribed_to_and_nothing_else),
        cmocka_unit_test(a_payload_is_a_grant_a_loss_or_hearsay),
        cmocka_unit_test(a_cut_payload_is_hearsay),
        cmocka_unit_test(a_payload_longer_than_what_is_kept_is_hearsay),
        cmocka_unit_test(a_message_leaves_nothing_for_the_next),
        cmocka_unit_test(each_command_takes_its_own_reply_only),
        cmocka_unit_test(an_inspection_and_a_subscription_take_no_plain_reply),
        cmocka_unit_test(a_release_answers_what_its_script_can_say),
        cmocka_unit_test(a_plain_set_tells_no_lease),
        cmocka_unit_test(a_text_with_a_nul_is_not_its_beginning),
        cmocka_unit_test(an_error_is_classified_by_its_first_word),
        cmocka_unit_test(every_class_of_errors_was_met),
        cmocka_unit_test(an_error_from_inside_a_script_is_unwrapped),
        cmocka_unit_test(an_error_of_redis_6s_own_checks_is_unwrapped_too),
        cmocka_unit_test(a_refusal_of_redis_6_inside_a_script_is_one),
        cmocka_unit_test(the_words_of_a_server_are_never_repeated),
        cmocka_unit_test(no_bytes_whatever_do_harm),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
