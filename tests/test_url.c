/* What a URL and the config's user and password mean, what is refused, and that no text gives any
 * of it away. Every URL lies directly before a page without access: reading beyond its end ends
 * the program. */
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
#define MARKER "S3CRET"

enum { ROOM = 65536 };

static char *page_end;

static int make_the_page(void **state)
{
    char *room =
        (char *)mmap(NULL, ROOM + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)state;
    assert_true(room != MAP_FAILED);
    page_end = room + ROOM;
    assert_int_equal(mprotect(page_end, 4096, PROT_NONE), 0);
    return 0;
}

/* A copy whose last byte is the last one that may be read. */
static char *at_the_end(const void *bytes, size_t count)
{
    assert_true(count <= ROOM);
    memcpy(page_end - count, bytes, count);
    return page_end - count;
}

/* What is asked of every refusal: a proper sentence, and nothing else is set. */
static void check_refusal(const dlock_error *error, const char *what)
{
    size_t length = strnlen(error->text, sizeof error->text);
    size_t i;
    bool plain = length > 1 && length < sizeof error->text && error->text[length - 1] == '.';
    for (i = 0; i < length; i++) {
        plain = plain && error->text[i] >= ' ' && error->text[i] <= '~';
    }
    if (!plain || error->code != DLOCK_ARGUMENT || error->node != -1 || error->os_errno != 0) {
        fail_msg("%s: code %d, \"%s\"", what, error->code, error->text);
    }
}

static bool parse(const char *text, dlocki_url *url, dlock_error *error)
{
    memset(url, 0, sizeof *url);
    memset(error, 0x55, sizeof *error);
    return dlocki_url_parse(at_the_end(text, strlen(text) + 1), url, error);
}

/* ----------------------------------------------------------------------------- what is accepted */

typedef struct good {
    const char *text;
    const char *host;   /* or the path of the socket */
    int port;           /* 0: a socket               */
    int database;
    const char *username;
    const char *password;   /* NULL: none, and no AUTH is sent */
} good;

static const good goods[] = {
    {"redis://localhost", "localhost", 6379, 0, "", NULL},
    {"redis://localhost/", "localhost", 6379, 0, "", NULL},
    {"redis://localhost:6380", "localhost", 6380, 0, "", NULL},
    {"redis://localhost:6380/", "localhost", 6380, 0, "", NULL},
    {"redis://localhost/0", "localhost", 6379, 0, "", NULL},
    {"redis://localhost/1", "localhost", 6379, 1, "", NULL},
    {"redis://localhost:1/15", "localhost", 1, 15, "", NULL},
    {"redis://localhost:65535/2147483647", "localhost", 65535, 2147483647, "", NULL},
    {"valkey://localhost:7/2", "localhost", 7, 2, "", NULL},
    {"redis://127.0.0.1", "127.0.0.1", 6379, 0, "", NULL},
    {"redis://a.b-c_d.example.:6379", "a.b-c_d.example.", 6379, 0, "", NULL},
    {"redis://ex%41mple", "exAmple", 6379, 0, "", NULL},

    {"redis://[::1]", "::1", 6379, 0, "", NULL},
    {"redis://[::1]/", "::1", 6379, 0, "", NULL},
    {"redis://[::1]:6380", "::1", 6380, 0, "", NULL},
    {"redis://[::1]/3", "::1", 6379, 3, "", NULL},
    {"redis://[2001:db8::ff]:1/2", "2001:db8::ff", 1, 2, "", NULL},
    {"redis://[::ffff:10.0.0.1]", "::ffff:10.0.0.1", 6379, 0, "", NULL},
    {"redis://[fe80::1%25eth0]:6380", "fe80::1%eth0", 6380, 0, "", NULL},
    {"redis://me:pw@[::1]:7/1", "::1", 7, 1, "me", "pw"},

    {"redis://me:pw@localhost", "localhost", 6379, 0, "me", "pw"},
    {"redis://me:pw@localhost:6380/4", "localhost", 6380, 4, "me", "pw"},
    {"redis://:pw@localhost", "localhost", 6379, 0, "", "pw"},
    {"redis://me:@localhost", "localhost", 6379, 0, "me", ""},
    {"redis://me@localhost", "localhost", 6379, 0, "me", NULL},
    {"redis://@localhost", "localhost", 6379, 0, "", NULL},
    {"redis://:@localhost", "localhost", 6379, 0, "", NULL},
    {"redis://me:p:w@localhost", "localhost", 6379, 0, "me", "p:w"},
    {"redis://me:p@w@localhost", "localhost", 6379, 0, "me", "p@w"},
    {"redis://%6d%65:pw@localhost", "localhost", 6379, 0, "me", "pw"},
    {"redis://m%40e:p%3Aw%2f%2F%25@localhost", "localhost", 6379, 0, "m@e", "p:w//%"},
    {"redis://me:%20%7F%ff@localhost", "localhost", 6379, 0, "me", " \x7f\xff"},
    {"redis://me:pw%3F%23@localhost", "localhost", 6379, 0, "me", "pw?#"},

    {"unix:///run/redis.sock", "/run/redis.sock", 0, 0, "", NULL},
    {"unix:///run/redis.sock?db=0", "/run/redis.sock", 0, 0, "", NULL},
    {"unix:///run/redis.sock?db=7", "/run/redis.sock", 0, 7, "", NULL},
    {"unix:///r?db=2147483647", "/r", 0, 2147483647, "", NULL},
    {"unix:///a%20b%3F%23%25.sock", "/a b?#%.sock", 0, 0, "", NULL},
    {"unix:///a:b@c/[d].sock", "/a:b@c/[d].sock", 0, 0, "", NULL},
    {"unix:////run/r.sock", "//run/r.sock", 0, 0, "", NULL},
    {"unix://:pw@/run/r.sock", "/run/r.sock", 0, 0, "", "pw"},
    {"unix://me:pw@/run/r.sock", "/run/r.sock", 0, 0, "me", "pw"},
    {"unix://me:pw@/run/r.sock?db=3", "/run/r.sock", 0, 3, "me", "pw"},
    {"unix://me@/run/r.sock", "/run/r.sock", 0, 0, "me", NULL},
};

static bool holds(const char *bytes, size_t length, const char *expected)
{
    return length == strlen(expected) && memcmp(bytes, expected, length) == 0;
}

static void a_url_means_what_is_written(void **state)
{
    static dlocki_url url;
    dlock_error error;
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(goods); i++) {
        const good *is = &goods[i];
        if (!parse(is->text, &url, &error)) {
            fail_msg("%s: %s", is->text, error.text);
        }
        assert_string_equal(url.host, is->host);
        assert_int_equal(url.is_unix, is->port == 0);
        if (is->port != 0) {
            assert_int_equal(url.port, is->port);
        }
        assert_int_equal(url.database, is->database);
        assert_true(holds(url.username, url.username_length, is->username));
        assert_int_equal(url.has_password, is->password != NULL);
        assert_true(
            holds(url.password, url.password_length, is->password != NULL ? is->password : ""));
    }
}

static void any_byte_can_be_percent_coded_in_user_and_password(void **state)
{
    static dlocki_url url;
    char text[64];
    dlock_error error;
    int byte;
    (void)state;
    for (byte = 0; byte < 256; byte++) {
        int wrote = snprintf(text, sizeof text, "redis://a%%%02xb:%%%02X@host", (unsigned)byte,
                             (unsigned)byte);
        assert_true(wrote > 0);
        assert_true(parse(text, &url, &error));
        assert_int_equal(url.username_length, 3);
        assert_int_equal((unsigned char)url.username[1], byte);
        assert_int_equal(url.password_length, 1);
        assert_int_equal((unsigned char)url.password[0], byte);
    }
}

/* ------------------------------------------------------------------------------ what is refused */

typedef struct bad {
    const char *text;
    const char *says;   /* part of the sentence */
} bad;

static const bad bads[] = {
    {"", "begin with"},
    {"x", "begin with"},
    {"localhost", "begin with"},
    {"localhost:6379", "begin with"},
    {"//localhost", "begin with"},
    {"redis", "begin with"},
    {"redis:", "begin with"},
    {"redis:/", "begin with"},
    {"redis:/localhost", "begin with"},
    {"unix:/run/redis.sock", "begin with"},
    {"REDIS://localhost", "begin with"},
    {"http://localhost", "begin with"},
    {"tcp://localhost", "begin with"},
    {"redisx://localhost", "begin with"},
    {"xredis://localhost", "begin with"},
    {"redis+sentinel://localhost/name", "begin with"},
    {"redis-sentinel://localhost/name", "begin with"},
    {"redis+cluster://a,b", "begin with"},
    {"redis-cluster://a,b", "begin with"},
    {"rediss://localhost", "TLS"},
    {"rediss://", "TLS"},
    {"valkeys://localhost", "TLS"},

    {"redis://", "host"},
    {"redis:///", "host"},
    {"redis:///0", "host"},
    {"redis://:6379", "host"},
    {"redis://me:pw@", "host"},
    {"redis://me:pw@/0", "host"},
    {"redis://me:pw@:6379", "host"},
    {"redis://?db=1", "host"},
    {"redis://::1", "host"},
    {"redis://a%00b", "host"},
    {"redis://%00", "host"},
    {"redis://a%", "host"},
    {"redis://a%0", "host"},
    {"redis://a%G1", "host"},
    {"redis://a%1G", "host"},
    {"redis://a%%31", "host"},
    {"redis://%-1", "host"},
    {"redis://[fe80::1%eth0]", "host"},

    {"redis://host:", "port"},
    {"redis://host:/0", "port"},
    {"redis://host:0", "port"},
    {"redis://host:00", "port"},
    {"redis://host:65536", "port"},
    {"redis://host:99999", "port"},
    {"redis://host:4294973675", "port"},           /* 2^32 + 6379 */
    {"redis://host:18446744073709557995", "port"}, /* 2^64 + 6379 */
    {"redis://host:-1", "port"},
    {"redis://host:+1", "port"},
    {"redis://host:6379x", "port"},
    {"redis://host:x6379", "port"},
    {"redis://host:0x18eb", "port"},
    {"redis://host:6379:6379", "port"},
    {"redis://host:%36379", "port"},
    {"redis://host:63.79", "port"},
    {"redis://fe80::1", "port"},
    {"redis://[::1]6379", "port"},
    {"redis://[::1]x", "port"},
    {"redis://[::1]:", "port"},
    {"redis://[::1]:0", "port"},
    {"redis://[::1]:65536", "port"},

    {"redis://[::1", "bracket"},
    {"redis://[::1:6379", "bracket"},
    {"redis://[", "bracket"},
    {"redis://[]", "bracket"},
    {"redis://[]:6379", "bracket"},
    {"redis://[localhost]", "bracket"},
    {"redis://[127.0.0.1]", "bracket"},
    {"redis://::1]", "host"},
    {"redis://host]", "'['"},
    {"redis://a]b:1", "'['"},

    {"redis://host/x", "database"},
    {"redis://host/-1", "database"},
    {"redis://host/+1", "database"},
    {"redis://host/1x", "database"},
    {"redis://host/1/", "database"},
    {"redis://host//", "database"},
    {"redis://host/1/2", "database"},
    {"redis://host/%31", "database"},
    {"redis://host/1.0", "database"},
    {"redis://host/2147483648", "database"},
    {"redis://host/4294967296", "database"},
    {"redis://host/18446744073709551616", "database"},

    {"redis://host?db=1", "'?'"},
    {"redis://host/?db=1", "'?'"},
    {"redis://host/1?x", "'?'"},
    {"redis://host/1?", "'?'"},
    {"redis://host/1#x", "'#'"},
    {"redis://host/#", "'#'"},
    {"redis://host/?#", "'#'"},

    {"redis://me%:pw@host", "user or password"},
    {"redis://me%4:pw@host", "user or password"},
    {"redis://me%4g:pw@host", "user or password"},
    {"redis://me:pw%@host", "user or password"},
    {"redis://me:pw%0@host", "user or password"},
    {"redis://me:pw%G1@host", "user or password"},
    {"redis://%zz@host", "user or password"},

    {"redis://a redis://b", "blank"},
    {"redis://a\tredis://b", "blank"},
    {" redis://a", "blank"},
    {"redis://a ", "blank"},
    {"redis://a\n", "blank"},
    {"redis://a\r\nFLUSHALL", "blank"},
    {"redis://a\x01", "blank"},
    {"redis://a\x1f", "blank"},
    {"redis://a\x7f", "percent-coded"},
    {"redis://a\x80", "percent-coded"},
    {"redis://\xff", "percent-coded"},
    {"redis://\xc3\xa4", "percent-coded"},
    {"unix:///a b", "blank"},

    {"unix://", "path"},
    {"unix://?db=1", "path"},
    {"unix://run/redis.sock", "host"},
    {"unix://localhost/redis.sock", "host"},
    {"unix://me:pw@host/redis.sock", "host"},
    {"unix://me:pw@", "path"},
    {"unix:///a%00b", "path"},
    {"unix:///a%", "path"},
    {"unix:///a%1", "path"},
    {"unix:///a%xy", "path"},
    {"unix:///a?", "'?'"},
    {"unix:///a?d", "'?'"},
    {"unix:///a?db", "'?'"},
    {"unix:///a?DB=1", "'?'"},
    {"unix:///a?dbs=1", "'?'"},
    {"unix:///a?x=1", "'?'"},
    {"unix:///a?db=", "database"},
    {"unix:///a?db=x", "database"},
    {"unix:///a?db=-1", "database"},
    {"unix:///a?db=1&x=2", "database"},
    {"unix:///a?db=1?db=2", "database"},
    {"unix:///a?db=2147483648", "database"},
    {"unix:///a?db=%31", "database"},
    {"unix:///a#b", "'#'"},
    {"unix:///a?db=1#b", "'#'"},
};

static void a_malformed_url_is_refused_with_a_sentence(void **state)
{
    static dlocki_url url;
    dlock_error error;
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(bads); i++) {
        if (parse(bads[i].text, &url, &error)) {
            fail_msg("accepted: %s", bads[i].text);
        }
        check_refusal(&error, bads[i].text);
        if (strstr(error.text, bads[i].says) == NULL) {
            fail_msg("%s: says nothing of \"%s\": %s", bads[i].text, bads[i].says, error.text);
        }
    }
}

/* A fragment has no meaning here, and a bracket belongs to an address: what is neither is a typing
 * error, and better found now than by a lookup of a strange name. */
static const bad strange_hosts[] = {
    {"redis://me:p#w@host", "'#'"}, {"redis://host#x", "'#'"},     {"redis://#", "'#'"},
    {"redis://me:pw@host#", "'#'"}, {"redis://a[b", "'['"},        {"redis://a[b]", "'['"},
    {"redis://a[::1]", "'['"},      {"redis://[[::1]", "bracket"}, {"redis://[a[::1]", "bracket"},
};

static void a_host_has_no_stray_hash_or_bracket(void **state)
{
    static dlocki_url url;
    dlock_error error;
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(strange_hosts); i++) {
        if (parse(strange_hosts[i].text, &url, &error)) {
            fail_msg("accepted: %s", strange_hosts[i].text);
        }
        check_refusal(&error, strange_hosts[i].text);
        assert_non_null(strstr(error.text, strange_hosts[i].says));
    }
}

static void a_null_url_is_refused(void **state)
{
    static dlocki_url url;
    dlock_error error;
    (void)state;
    memset(&url, 0, sizeof url);
    assert_false(dlocki_url_parse(NULL, &url, &error));
    check_refusal(&error, "NULL");
    assert_non_null(strstr(error.text, "NULL"));
    assert_false(dlocki_url_parse(NULL, &url, NULL));
    assert_false(dlocki_url_parse("nonsense", &url, NULL));
    assert_null(dlock_open(NULL, NULL, NULL));
    assert_null(dlock_open("nonsense", NULL, NULL));
    assert_null(dlock_open("redis://me@host", NULL, NULL));
}

/* ----------------------------------------------------------------------------------- the limits */

/* before, `count` times `fill`, after */
static const char *long_text(const char *before, const char *fill, size_t count, const char *after)
{
    static char text[ROOM];
    size_t length = strlen(before);
    size_t unit = strlen(fill);
    assert_true(length + unit * count + strlen(after) < sizeof text);
    memcpy(text, before, length);
    for (; count > 0; count--) {
        memcpy(text + length, fill, unit);
        length += unit;
    }
    memcpy(text + length, after, strlen(after) + 1);
    return text;
}

typedef struct limit {
    const char *before;
    const char *fill;
    size_t count;
    const char *after;
    bool fits;
    const char *says;
} limit;

static const limit limits[] = {
    {"redis://", "h", 255, "", true, NULL},
    {"redis://", "h", 255, ":1/2", true, NULL},
    {"redis://", "%68", 255, "", true, NULL},
    {"redis://", "h", 256, "", false, "host"},
    {"redis://", "%68", 256, "", false, "host"},
    {"redis://", "h", 10240, "", false, "host"},
    {"redis://me:pw@", "h", 10240, ":6379", false, "host"},
    {"redis://[::", "1", 253, "]", true, NULL},
    {"redis://[::", "1", 254, "]", false, "host"},
    {"redis://host:", "1", 10240, "", false, "port"},
    {"redis://host/", "1", 10240, "", false, "database"},
    {"unix:///", "s", 106, "", true, NULL},   /* 107 bytes and a NUL fill sun_path */
    {"unix:///", "s", 107, "", false, "path"},
    {"unix:///", "%73", 106, "?db=1", true, NULL},
    {"unix:///", "%73", 107, "?db=1", false, "path"},
    {"unix:///", "s", 10240, "", false, "path"},
    {"redis://:", "p", 4096, "@host", true, NULL},
    {"redis://:", "p", 4097, "@host", false, "user or password"},
    {"redis://:", "%70", 4096, "@host", true, NULL},
    {"redis://:", "%70", 4097, "@host", false, "user or password"},
    {"redis://", "u", 4096, ":pw@host", true, NULL},
    {"redis://", "u", 4097, ":pw@host", false, "user or password"},
    {"redis://:", "p", 50000, "@host", false, "user or password"},
    {"", "r", 50000, "", false, "begin with"},
};

static void a_part_may_be_as_long_as_the_limit_and_no_longer(void **state)
{
    static dlocki_url url;
    dlock_error error;
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(limits); i++) {
        const limit *is = &limits[i];
        const char *text = long_text(is->before, is->fill, is->count, is->after);
        bool fits = parse(text, &url, &error);
        if (fits != is->fits) {
            fail_msg("%s... %u times", is->before, (unsigned)is->count);
        }
        if (!fits) {
            check_refusal(&error, is->before);
            assert_non_null(strstr(error.text, is->says));
        }
    }
}

static void the_longest_parts_come_out_whole(void **state)
{
    static dlocki_url url;
    dlock_error error;
    (void)state;
    assert_true(parse(long_text("redis://a:", "%70", 4095, "q@host"), &url, &error));
    assert_int_equal(url.password_length, 4096);
    assert_int_equal(url.password[4094], 'p');
    assert_int_equal(url.password[4095], 'q');
    assert_int_equal(url.username_length, 1);
    assert_true(parse(long_text("redis://", "h", 254, "i"), &url, &error));
    assert_int_equal(strlen(url.host), 255);
    assert_int_equal(url.host[254], 'i');
    assert_true(parse(long_text("unix:///", "s", 105, "t"), &url, &error));
    assert_int_equal(strlen(url.host), 107);
    assert_int_equal(url.host[106], 't');
}

/* ------------------------------------------------------------------------ whatever stands there */

/* What holds for every text: an answer, and values within their bounds. */
static void check_anything(const char *text)
{
    static dlocki_url url;
    dlock_error error;
    bool plain = true;
    const char *c;
    for (c = text; *c != 0; c++) {
        plain = plain && *c > ' ' && *c <= '~';
    }
    if (!parse(text, &url, &error)) {
        check_refusal(&error, text);
        return;
    }
    if (!plain) {
        fail_msg("accepted: %s", text);
    }
    assert_in_range(strnlen(url.host, sizeof url.host), 1, url.is_unix ? 107 : DLOCKI_HOST_MAX);
    assert_true(url.database >= 0);
    assert_true(url.username_length <= DLOCKI_SECRET_MAX);
    assert_true(url.password_length <= DLOCKI_SECRET_MAX);
    assert_true(url.has_password || url.password_length == 0);
    if (!url.is_unix) {
        assert_in_range(url.port, 1, 65535);
    }
}

/* Each text cut at each byte, and with each byte replaced. */
static void no_text_is_read_beyond_its_end(void **state)
{
    static const char strange[] = "/:@?#%[]0 ~x\x01\x7f\xff";
    char text[128];
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(goods) + COUNT(bads); i++) {
        const char *from = i < COUNT(goods) ? goods[i].text : bads[i - COUNT(goods)].text;
        size_t length = strlen(from);
        size_t at;
        assert_true(length < sizeof text);
        for (at = 0; at < length; at++) {
            size_t j;
            memcpy(text, from, at);
            text[at] = 0;
            check_anything(text);
            memcpy(text, from, length + 1);
            for (j = 0; j < sizeof strange - 1; j++) {
                text[at] = strange[j];
                check_anything(text);
            }
        }
    }
}

/* The leaves take parts that end anywhere: no NUL stands behind them. */
static void a_part_is_read_up_to_its_end_only(void **state)
{
    static const char *const cut[] = {"%", "%4", "abc%", "abc%4", "%41%", "%41%4"};
    char to[16];
    size_t length;
    int64_t value;
    size_t i;
    dlocki_part part;
    (void)state;
    part.to = page_end;
    for (i = 0; i < COUNT(cut); i++) {
        part.from = at_the_end(cut[i], strlen(cut[i]));
        assert_false(dlocki_decode(part, to, sizeof to, &length));
        assert_false(dlocki_decode_text(part, to, sizeof to));
    }
    part.from = at_the_end("a%42c", 5);
    assert_true(dlocki_decode(part, to, 3, &length));
    assert_int_equal(length, 3);
    assert_memory_equal(to, "aBc", 3);
    assert_false(dlocki_decode(part, to, 2, &length));
    assert_true(dlocki_decode_text(part, to, 4));
    assert_string_equal(to, "aBc");
    assert_false(dlocki_decode_text(part, to, 3));
    assert_ptr_equal(dlocki_find(part, 'x', false), page_end);
    assert_ptr_equal(dlocki_find(part, 'x', true), page_end);
    assert_ptr_equal(dlocki_find(part, 'c', true), page_end - 1);
    part.from = at_the_end("655", 3);
    assert_true(dlocki_number(part, 65535, &value));
    assert_int_equal(value, 655);
    part.from = page_end;
    assert_false(dlocki_number(part, 65535, &value));
    assert_ptr_equal(dlocki_find(part, 'x', false), page_end);
    assert_true(dlocki_decode(part, to, 0, &length));
    assert_int_equal(length, 0);
}

static void a_part_is_searched_from_both_sides(void **state)
{
    static const char text[] = "a@b@c";
    dlocki_part part;
    (void)state;
    part.from = text;
    part.to = text + 5;
    assert_ptr_equal(dlocki_find(part, '@', false), text + 1);
    assert_ptr_equal(dlocki_find(part, '@', true), text + 3);
    assert_ptr_equal(dlocki_find(part, 'a', true), text);
    part.to = text + 3;
    assert_ptr_equal(dlocki_find(part, '@', true), text + 1);
    assert_int_equal(dlocki_length(part), 3);
}

/* ------------------------------------------------------------------------ nothing is given away */

static const char *const leaky[] = {
    MARKER,
    MARKER "://host",
    "redis:" MARKER,
    "rediss://" MARKER ":" MARKER "@" MARKER,
    "redis+sentinel://" MARKER ":" MARKER "@" MARKER "/" MARKER,
    "redis://" MARKER ":" MARKER "@",
    "redis://" MARKER ":" MARKER "@:6379",
    "redis://" MARKER ":" MARKER "@host:" MARKER,
    "redis://" MARKER ":" MARKER "@" MARKER ":0",
    "redis://" MARKER ":" MARKER "@" MARKER ":65536",
    "redis://" MARKER ":" MARKER "@" MARKER "/" MARKER,
    "redis://" MARKER ":" MARKER "@" MARKER "/1?" MARKER,
    "redis://" MARKER ":" MARKER "@" MARKER "/1#" MARKER,
    "redis://" MARKER ":" MARKER "@[" MARKER,
    "redis://" MARKER ":" MARKER "@[" MARKER "]",
    "redis://" MARKER ":" MARKER "@" MARKER "]",
    "redis://" MARKER ":" MARKER "@" MARKER "%00",
    "redis://" MARKER ":" MARKER "%G1@host",
    "redis://" MARKER "%1:" MARKER "@host",
    "redis://" MARKER ":" MARKER " @host",
    "redis://" MARKER ":" MARKER "\xff@host",
    "redis://host:" MARKER "/" MARKER "@host",   /* a password with a plain '/' */
    "redis://u:1/" MARKER "@host",
    "redis://u:1?" MARKER "@host",
    "redis://u:" MARKER "?" MARKER "@host",
    "redis://" MARKER "@host",   /* a user without a password */
    "unix://" MARKER ":" MARKER "@" MARKER "/path",
    "unix://" MARKER ":" MARKER "@/" MARKER "%00",
    "unix://" MARKER ":" MARKER "@/" MARKER "?" MARKER,
    "unix://" MARKER ":" MARKER "@/" MARKER "?db=" MARKER,
    "unix://" MARKER ":" MARKER "@/" MARKER "#" MARKER,
    "unix://" MARKER "@/path",
};

static void a_refusal_repeats_no_part_of_the_url(void **state)
{
    dlock_error error;
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(leaky); i++) {
        memset(&error, 0x55, sizeof error);
        assert_null(dlock_open(leaky[i], NULL, &error));
        check_refusal(&error, leaky[i]);
        if (memmem(&error, sizeof error, MARKER, strlen(MARKER)) != NULL) {
            fail_msg("%s: %s", leaky[i], error.text);
        }
    }
    assert_null(dlock_open(long_text("redis://", MARKER, 1700, "@host"), NULL, &error));
    assert_null(strstr(error.text, MARKER));
    assert_null(dlock_open(long_text("redis://", MARKER, 1700, ""), NULL, &error));
    assert_null(strstr(error.text, MARKER));
}

/* A failure later on names the server, never who wanted in. Nothing listens on port 1. */
static void a_failure_names_the_host_and_not_the_user(void **state)
{
    static const char *const urls[] = {
        "redis://" MARKER "1:" MARKER "2@127.0.0.1:1/7",
        "unix://" MARKER "1:" MARKER "2@/nowhere/redis.sock?db=7",
    };
    static const char *const names[] = {"127.0.0.1, port 1,", "/nowhere/redis.sock"};
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(urls); i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_factory *factory = open_factory(urls[i], NULL);
        assert_no(dlock_acquire(factory, &lock, "key", NULL), &lock, DLOCK_UNREACHABLE);
        assert_int_equal(dlock_why(&lock)->node, 0);
        assert_non_null(strstr(dlock_why(&lock)->text, names[i]));
        assert_null(memmem(&lock, sizeof lock, MARKER, strlen(MARKER)));
        dlock_close(factory);
    }
}

/* ------------------------------------------------------------------ the config's user, password */

typedef struct overriding {
    const char *url;
    const char *config_username;
    const char *config_password;
    const char *username;   /* NULL: refused */
    const char *password;   /* NULL: none    */
} overriding;

static const overriding overridings[] = {
    {"redis://host", NULL, NULL, "", NULL},
    {"redis://host", NULL, "secret", "", "secret"},
    {"redis://host", "me", "secret", "me", "secret"},
    {"redis://host", "me", "", "me", ""},
    {"redis://host", "me", NULL, NULL, NULL},
    {"redis://host", "", NULL, "", NULL},
    {"redis://host", "", "secret", "", "secret"},
    {"redis://me:pw@host", NULL, NULL, "me", "pw"},
    {"redis://me:pw@host", "you", NULL, "you", "pw"},
    {"redis://me:pw@host", "i", NULL, "i", "pw"},
    {"redis://me:pw@host", NULL, "secret", "me", "secret"},
    {"redis://me:pw@host", NULL, "s", "me", "s"},
    {"redis://me:pw@host", "you", "secret", "you", "secret"},
    {"redis://me:pw@host", "", NULL, "", "pw"},
    {"redis://me:pw@host", NULL, "", "me", ""},
    {"redis://me@host", NULL, NULL, NULL, NULL},
    {"redis://me@host", NULL, "secret", "me", "secret"},
    {"redis://me@host", "you", NULL, NULL, NULL},
    {"redis://me@host", "", NULL, "", NULL},
    {"redis://:pw@host", "me", NULL, "me", "pw"},
    {"redis://:@host", "me", NULL, NULL, NULL},
    {"unix:///path", "me", "p%40w", "me", "p%40w"},   /* not a URL: taken as it is */
    {"unix://me:pw@/path?db=1", "you", "secret", "you", "secret"},
    {"unix://me@/path", NULL, NULL, NULL, NULL},
};

static void the_config_stands_in_for_the_urls_user_and_password(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < COUNT(overridings); i++) {
        const overriding *is = &overridings[i];
        dlock_config config;
        dlock_error error;
        dlock_factory *factory;
        memset(&config, 0, sizeof config);
        config.username = is->config_username;
        config.password = is->config_password;
        factory = dlock_open(is->url, &config, &error);
        if ((factory != NULL) != (is->username != NULL)) {
            fail_msg("row %u, %s", (unsigned)i, is->url);
        }
        if (factory == NULL) {
            check_refusal(&error, is->url);
            assert_non_null(strstr(error.text, "user without a password"));
            continue;
        }
        assert_int_equal(error.code, DLOCK_OK);
        assert_true(holds(factory->url.username, factory->url.username_length, is->username));
        assert_int_equal(factory->url.has_password, is->password != NULL);
        assert_true(holds(factory->url.password, factory->url.password_length,
                          is->password != NULL ? is->password : ""));
        dlock_close(factory);
    }
}

static void the_strings_of_the_config_and_the_url_are_copied(void **state)
{
    char url[] = "redis://host:7/3";
    char username[] = "me";
    char password[] = "pw";
    char name[] = "client";
    dlock_config config;
    dlock_factory *factory;
    (void)state;
    memset(&config, 0, sizeof config);
    config.username = username;
    config.password = password;
    config.client_name = name;
    factory = open_factory(url, &config);
    memset(url, 'x', sizeof url - 1);
    memset(username, 'x', sizeof username - 1);
    memset(password, 'x', sizeof password - 1);
    memset(name, 'x', sizeof name - 1);
    memset(&config, 0x55, sizeof config);
    assert_string_equal(factory->url.host, "host");
    assert_true(holds(factory->url.username, factory->url.username_length, "me"));
    assert_true(holds(factory->url.password, factory->url.password_length, "pw"));
    assert_string_equal(factory->client_name, "client");
    dlock_close(factory);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_url_means_what_is_written),
        cmocka_unit_test(any_byte_can_be_percent_coded_in_user_and_password),
        cmocka_unit_test(a_malformed_url_is_refused_with_a_sentence),
        cmocka_unit_test(a_host_has_no_stray_hash_or_bracket),
        cmocka_unit_test(a_null_url_is_refused),
        cmocka_unit_test(a_part_may_be_as_long_as_the_limit_and_no_longer),
        cmocka_unit_test(the_longest_parts_come_out_whole),
        cmocka_unit_test(no_text_is_read_beyond_its_end),
        cmocka_unit_test(a_part_is_read_up_to_its_end_only),
        cmocka_unit_test(a_part_is_searched_from_both_sides),
        cmocka_unit_test(a_refusal_repeats_no_part_of_the_url),
        cmocka_unit_test(a_failure_names_the_host_and_not_the_user),
        cmocka_unit_test(the_config_stands_in_for_the_urls_user_and_password),
        cmocka_unit_test(the_strings_of_the_config_and_the_url_are_copied),
    };
    watchdog(120);
    return cmocka_run_group_tests(tests, make_the_page, NULL);
}
