/* The contract of the scripts on a real server: what this version's calls do for the queue and the
 * hand-off of later ones, whose programs may share its keys. */
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <inttypes.h>

static const dlock_options once = {.expiry_ms = 30000};

/* Two places in the line of a factory that never was. */
#define WAITER "dl1-0123456789abcdef00000000000000aa"
#define OTHER "dl1-fedcba987654321000000000000000bb"
#define INBOX "dlock:0123456789abcdef"
#define OTHER_INBOX "dlock:fedcba9876543210"

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

static redisContext *subscribe(struct live *live, const char *channel)
{
    redisContext *inbox = server_connect(&live->server);
    redisReply *reply = (redisReply *)redisCommand(inbox, "SUBSCRIBE %s", channel);
    assert_non_null(reply);
    assert_int_equal(reply->type, REDIS_REPLY_ARRAY);
    freeReplyObject(reply);
    return inbox;
}

/* The next message of a subscriber, or "" if there is none within 100 ms. */
static void message(redisContext *inbox, char *text, size_t size)
{
    struct timeval brief = {0, 100000};
    void *reply = NULL;
    text[0] = '\0';
    assert_int_equal(redisSetTimeout(inbox, brief), REDIS_OK);
    if (redisGetReply(inbox, &reply) == REDIS_OK && reply != NULL) {
        const redisReply *array = (const redisReply *)reply;
        assert_int_equal(array->elements, 3);
        (void)snprintf(text, size, "%s", array->element[2]->str);
        freeReplyObject(reply);
    }
}

static void ticket(struct live *live, int64_t score, const char *member)
{
    server_do(&live->server, "ZADD {k}:queue %lld %s", (long long)score, member);
    server_do(&live->server, "PEXPIRE {k}:queue 600000");
}

static int64_t tickets(struct live *live)
{
    return server_integer(&live->server, "ZCARD {k}:queue");
}

/* K is the waiter's now, for at most `expiry`, and the message said so. Returns its fence. */
static uint64_t assert_granted(struct live *live, redisContext *inbox, const char *owner,
                               int64_t expiry, int64_t before)
{
    char text[160];
    char said[64];
    unsigned long long fence = 0;
    long long at = 0;
    server_text(&live->server, text, sizeof text, "GET k");
    assert_string_equal(text, owner);
    assert_in_range(server_integer(&live->server, "PTTL k"), expiry / 2, expiry);
    message(inbox, text, sizeof text);
    assert_int_equal(sscanf(text, "g %63s %llu %lld", said, &fence, &at), 3);
    assert_string_equal(said, owner);
    assert_true(at >= before && at <= server_time(&live->server));
    message(inbox, text, sizeof text);
    assert_string_equal(text, "");
    return fence;
}

/* --------------------------------------------------------------------------- release hands over */

static void a_release_hands_over_to_a_subscribed_waiter(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char text[64];
    redisContext *inbox = subscribe(live, INBOX);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    uint64_t mine = dlock_fence(&lock);
    ticket(live, 1, WAITER " 7000 g");
    int64_t before = server_time(&live->server);
    assert_yes(dlock_release(&lock), &lock);
    uint64_t fence = assert_granted(live, inbox, WAITER, 7000, before);
    assert_true(fence > mine);
    assert_true(fence >= (uint64_t)before);
    server_text(&live->server, text, sizeof text, "ZSCORE {k}:fence f");
    assert_true(strtod(text, NULL) == (double)fence);
    assert_int_equal(tickets(live), 0);
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_BUSY);
    redisFree(inbox);
    live_end(live);
}

static void a_release_hands_over_in_the_order_of_the_line(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    redisContext *first = subscribe(live, OTHER_INBOX);
    redisContext *second = subscribe(live, INBOX);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    ticket(live, 20, WAITER " 7000 g");
    ticket(live, 10, OTHER " 8000 g");
    int64_t before = server_time(&live->server);
    assert_yes(dlock_release(&lock), &lock);
    (void)assert_granted(live, first, OTHER, 8000, before);
    assert_int_equal(tickets(live), 1);
    redisFree(first);
    redisFree(second);
    live_end(live);
}

static void a_waiter_without_fence_is_handed_the_lock_without_one(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options plain = {.no_fence = true};
    redisContext *inbox = subscribe(live, INBOX);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &plain), &lock);
    ticket(live, 1, WAITER " 7000 n");
    int64_t before = server_time(&live->server);
    assert_yes(dlock_release(&lock), &lock);
    assert_int_equal(assert_granted(live, inbox, WAITER, 7000, before), 0);
    assert_int_equal(server_integer(&live->server, "EXISTS {k}:fence"), 0);
    redisFree(inbox);
    live_end(live);
}

/* Nobody reads that inbox any more: such tickets are dropped, the next live one is served. */
static void a_release_skips_the_dead_and_deletes_when_none_is_left(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    for (int alive = 0; alive < 2; alive++) {
        char member[80];
        redisContext *inbox = alive ? subscribe(live, INBOX) : NULL;
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        for (int i = 0; i < 40; i++) {
            (void)snprintf(member, sizeof member, "dl1-dead%028x 7000 g", (unsigned)i);
            ticket(live, i, member);
        }
        if (alive) {
            ticket(live, 1000, WAITER " 7000 g");
        }
        int64_t before = server_time(&live->server);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(tickets(live), 0);
        if (alive) {
            (void)assert_granted(live, inbox, WAITER, 7000, before);
            redisFree(inbox);
        } else {
            assert_gone(&live->server, "k");
        }
    }
    live_end(live);
}

/* Two thousand dead: one script looks at so many only, and the key is free all the same. */
static void a_release_frees_behind_more_dead_tickets_than_it_looks_at(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 10000, .retry_delay_ms = 5};
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    server_do(&live->server, "EVAL %s 1 {k}:queue",
              "for i = 1, 2000 do redis.call('zadd', KEYS[1], i, 'dl1-dead' .. "
              "string.format('%028x', i) .. ' 7000 g') end");
    assert_yes(dlock_release(&lock), &lock);
    assert_gone(&live->server, "k");
    assert_in_range(tickets(live), 1, 2000 - 128);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &waits), &lock);
    assert_held(&live->server, &lock, "k");
    assert_int_equal(tickets(live), 0);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

static void a_quorum_waiter_gets_a_hint_and_the_key_is_deleted(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char text[160];
    redisContext *inbox = subscribe(live, INBOX);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    ticket(live, 1, WAITER " 7000 h");
    assert_yes(dlock_release(&lock), &lock);
    message(inbox, text, sizeof text);
    assert_string_equal(text, "h k");
    message(inbox, text, sizeof text);
    assert_string_equal(text, "");
    assert_gone(&live->server, "k");
    assert_int_equal(tickets(live), 0);
    redisFree(inbox);
    live_end(live);
}

/* A hint does not end the search: who stands behind it is granted the lock. */
static void a_hint_does_not_keep_the_lock_from_the_next_in_line(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char text[160];
    redisContext *hinted = subscribe(live, OTHER_INBOX);
    redisContext *inbox = subscribe(live, INBOX);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    ticket(live, 1, OTHER " 7000 h");
    ticket(live, 2, WAITER " 7000 g");
    int64_t before = server_time(&live->server);
    assert_yes(dlock_release(&lock), &lock);
    message(hinted, text, sizeof text);
    assert_string_equal(text, "h k");
    (void)assert_granted(live, inbox, WAITER, 7000, before);
    redisFree(hinted);
    redisFree(inbox);
    live_end(live);
}

static void a_release_of_what_is_not_ours_touches_no_queue(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char text[160];
    redisContext *inbox = subscribe(live, INBOX);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    ticket(live, 1, WAITER " 7000 g");
    server_do(&live->server, "SET k theirs PX 60000");
    assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
    server_text(&live->server, text, sizeof text, "GET k");
    assert_string_equal(text, "theirs");
    assert_int_equal(tickets(live), 1);
    server_do(&live->server, "DEL k");
    message(inbox, text, sizeof text);
    assert_string_equal(text, "");
    redisFree(inbox);
    live_end(live);
}

/* ----------------------------------------------------------------------- queues that are broken */

static const char *const rubbish[] = {
    "",
    " ",
    "rubbish",
    "dl1-",
    WAITER,
    WAITER " ",
    WAITER " 7000",
    WAITER " 7000 ",
    WAITER " 7000 z",
    WAITER " 0 g",
    WAITER " -5 g",
    WAITER " 1e3 g",
    WAITER " nan g",
    WAITER " inf g",
    WAITER " 9999999999999999999 g",
    WAITER " 2592000001 g",
    WAITER "  7000 g",
    WAITER " 7000 g g",
    WAITER " 70x0 g",
    " 7000 g",
    "7000 g",
    "dl2-0123456789abcdef00000000000000aa 7000 g",
    "dl1-0123456789abcdef 7000 g",
    "dl1-0123456789ABCDEFzzzzzzzzzzzzzzzz 7000 g",
    WAITER " 0x10 g",
    WAITER "\n7000 g",
};

/* Popped and dropped, whoever reads that inbox: nothing is granted by such a ticket. */
static void rubbish_in_line_is_dropped_by_release_and_by_acquire(void **state)
{
    struct live *live = live_of(state);
    redisContext *inbox = subscribe(live, INBOX);
    for (size_t i = 0; i < sizeof rubbish / sizeof *rubbish; i++) {
        dlock_lock lock = DLOCK_INIT;
        char text[160];
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        ticket(live, 1, rubbish[i]);
        assert_yes(dlock_release(&lock), &lock);
        server_text(&live->server, text, sizeof text, "GET k");
        if (strcmp(text, "(nil)") != 0) {
            print_error("\"%s\" was taken for a ticket\n", rubbish[i]);
        }
        assert_string_equal(text, "(nil)");
        assert_int_equal(tickets(live), 0);
        ticket(live, 1, rubbish[i]);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        assert_held(&live->server, &lock, "k");
        assert_int_equal(tickets(live), 0);
        assert_yes(dlock_release(&lock), &lock);
        message(inbox, text, sizeof text);
        assert_string_equal(text, "");
    }
    redisFree(inbox);
    live_end(live);
}

static void a_binary_ticket_is_dropped(void **state)
{
    static const char member[] = "\x00\xff\r\n g\x00 7000 g";
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    server_do(&live->server, "ZADD {k}:queue 1 %b", member, sizeof member - 1);
    server_do(&live->server, "ZADD {k}:queue -inf %b", member, (size_t)3);
    server_do(&live->server, "ZADD {k}:queue +inf %b", member, (size_t)5);
    assert_yes(dlock_release(&lock), &lock);
    assert_gone(&live->server, "k");
    assert_int_equal(tickets(live), 0);
    live_end(live);
}

static void a_queue_of_another_type_keeps_nobody_from_the_lock(void **state)
{
    static const char *const makers[] = {"SET {k}:queue x", "RPUSH {k}:queue x",
                                         "HSET {k}:queue x y", "SADD {k}:queue x"};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        dlock_options queues = {.wait_ms = 100};
        dlock_options polls = {.wait_ms = 100, .no_queue = true};
        server_do(&live->server, makers[i]);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        assert_held(&live->server, &lock, "k");
        assert_no(dlock_acquire(live->factory, &other, "k", &once), &other, DLOCK_BUSY);
        assert_no(dlock_acquire(live->factory, &other, "k", &queues), &other, DLOCK_REFUSED);
        assert_no(dlock_acquire(live->factory, &other, "k", &polls), &other, DLOCK_TIMEOUT);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        assert_int_equal(server_integer(&live->server, "EXISTS {k}:queue"), 1);
        server_do(&live->server, "DEL {k}:queue");
    }
    live_end(live);
}

/* ---------------------------------------------------- a free key, although others stand in line */

static void an_acquire_on_a_free_key_serves_who_waits_and_is_busy(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    redisContext *inbox = subscribe(live, INBOX);
    ticket(live, 1, OTHER " 7000 g");       /* nobody reads that inbox */
    ticket(live, 2, WAITER " 7000 g");
    int64_t before = server_time(&live->server);
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_BUSY);
    uint64_t fence = assert_granted(live, inbox, WAITER, 7000, before);
    assert_true(fence >= (uint64_t)before);
    assert_int_equal(tickets(live), 0);
    server_do(&live->server, "DEL k");
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_true(dlock_fence(&lock) > fence);
    redisFree(inbox);
    live_end(live);
}

static void an_acquire_on_a_free_key_passes_the_dead_in_line(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    for (int i = 0; i < 40; i++) {
        char member[80];
        (void)snprintf(member, sizeof member, "dl1-dead%028x 7000 g", (unsigned)i);
        ticket(live, i, member);
    }
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_held(&live->server, &lock, "k");
    assert_int_equal(tickets(live), 0);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

/* A lock without fence that waits must not barge past who stands in line. */
static void a_waiting_acquire_without_fence_does_not_barge(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options options = {.no_fence = true, .wait_ms = 60};
    redisContext *inbox = subscribe(live, INBOX);
    ticket(live, 1, WAITER " 7000 g");
    int64_t before = server_time(&live->server);
    assert_no(dlock_acquire(live->factory, &lock, "k", &options), &lock, DLOCK_TIMEOUT);
    (void)assert_granted(live, inbox, WAITER, 7000, before);
    redisFree(inbox);
    live_end(live);
}

/* This version writes no ticket, however long it waits. */
static void a_waiter_of_this_version_leaves_no_ticket(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 300, .retry_delay_ms = 20};
    server_do(&live->server, "SET k theirs PX 60000");
    assert_no(dlock_acquire(live->factory, &lock, "k", &waits), &lock, DLOCK_TIMEOUT);
    assert_int_equal(server_integer(&live->server, "EXISTS {k}:queue"), 0);
    assert_int_equal(server_integer(&live->server, "DBSIZE"), 1);
    live_end(live);
}

/* ------------------------------------------------------------- servers that forbid, or are full */

static void a_user_that_may_not_notify_still_releases(void **state)
{
    static const char *const rights[] = {"+@all -publish", "+@all -pubsub", "+@all resetchannels"};
    struct live *live = live_of(state);
    redisContext *inbox = subscribe(live, INBOX);
    for (size_t i = 0; i < sizeof rights / sizeof *rights; i++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        char rule[128];
        char url[SERVER_URL_MAX + 16];
        char text[160];
        (void)snprintf(rule, sizeof rule, "ACL SETUSER bob reset on >pw ~* &* %s", rights[i]);
        server_do(&live->server, rule);
        (void)snprintf(url, sizeof url, "unix://bob:pw@%s", live->server.socket);
        live_reopen(live, url, NULL);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        ticket(live, 1, WAITER " 7000 g");
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        assert_int_equal(tickets(live), 1);         /* put back: it is only advice now */
        assert_yes(dlock_acquire(live->factory, &other, "k", &once), &other);
        assert_held(&live->server, &other, "k");
        assert_yes(dlock_release(&other), &other);
        assert_gone(&live->server, "k");
        assert_int_equal(tickets(live), 1);
        message(inbox, text, sizeof text);
        assert_string_equal(text, "");
        server_do(&live->server, "DEL {k}:queue");
    }
    redisFree(inbox);
    live_end(live);
}

static void a_full_server_still_hands_over(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    redisContext *inbox = subscribe(live, INBOX);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    ticket(live, 1, WAITER " 7000 g");
    server_do(&live->server, "CONFIG SET maxmemory 1");
    int64_t before = server_time(&live->server);
    assert_yes(dlock_release(&lock), &lock);
    (void)assert_granted(live, inbox, WAITER, 7000, before);
    redisFree(inbox);
    live_end(live);
}

static void a_hand_over_that_cannot_be_numbered_frees_the_key(void **state)
{
    static const char *const makers[] = {"SET {k}:fence x", "RPUSH {k}:fence x"};
    struct live *live = live_of(state);
    redisContext *inbox = subscribe(live, INBOX);
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        dlock_lock lock = DLOCK_INIT;
        char text[160];
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        ticket(live, 1, WAITER " 7000 g");
        server_do(&live->server, "DEL {k}:fence");
        server_do(&live->server, makers[i]);
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
        assert_int_equal(tickets(live), 1);
        message(inbox, text, sizeof text);
        assert_string_equal(text, "");
        server_do(&live->server, "DEL {k}:fence {k}:queue");
    }
    redisFree(inbox);
    live_end(live);
}

/* ----------------------------------------------------------------------- the scripts themselves */

static const struct {
    const char *name;
    const char *body;
    const char *sha1;
} scripts[] = {
    {"acquire", DLOCKI_LUA_ACQUIRE, DLOCKI_LUA_ACQUIRE_SHA1},
    {"release", DLOCKI_LUA_RELEASE, DLOCKI_LUA_RELEASE_SHA1},
    {"extend", DLOCKI_LUA_EXTEND, DLOCKI_LUA_EXTEND_SHA1},
};

static void a_script_is_known_by_the_sha1_in_the_header(void **state)
{
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        char text[160];
        server_text(&live->server, text, sizeof text, "SCRIPT LOAD %s", scripts[i].body);
        assert_string_equal(text, scripts[i].sha1);
        /* A server that is out of memory refuses a script with a shebang line whole. */
        assert_true(strncmp(scripts[i].body, "#!", 2) != 0);
    }
    live_end(live);
}

/* The acquire script as a later version calls it. Answers what it said, joined by blanks: "1 fence
 * lease now" or "0 lease now score place foreign". A bare number is a fence and a whole lease. */
static void ask(struct live *live, const char *owner, const char *kind, const char *score,
                const char *fenced, char *text, size_t size)
{
    redisReply *reply = server_command(&live->server,
                                       "EVAL %s 3 k {k}:queue {k}:fence %s 7000 %s "
                                       "%s %s",
                                       DLOCKI_LUA_ACQUIRE, owner, kind, score, fenced);
    size_t length = 0;
    text[0] = '\0';
    if (reply->type == REDIS_REPLY_ERROR) {
        (void)snprintf(text, size, "%s", reply->str);
    } else if (reply->type == REDIS_REPLY_INTEGER) {
        (void)snprintf(text, size, "1 %lld 7000 0", reply->integer);
    }
    for (size_t i = 0; i < reply->elements; i++) {
        assert_int_equal(reply->element[i]->type, REDIS_REPLY_INTEGER);
        length += (size_t)snprintf(text + length, size - length, "%s%lld", i > 0 ? " " : "",
                                   reply->element[i]->integer);
    }
    freeReplyObject(reply);
}

/* A ticket once, at the end of the line; a second ask keeps its place, a lost one gets it back. */
static void a_waiting_ask_keeps_its_place_and_refreshes_the_queue(void **state)
{
    struct live *live = live_of(state);
    struct server *server = &live->server;
    char text[160];
    char again[64];
    long long granted, lease, now, score, place, foreign, first;
    server_do(server, "SET k theirs PX 60000");
    ask(live, WAITER, "g", "0", "1", text, sizeof text);
    assert_int_equal(sscanf(text, "%lld %lld %lld %lld %lld %lld", &granted, &lease, &now, &score,
                            &place, &foreign),
                     6);
    assert_int_equal(granted, 0);
    assert_in_range(lease, 30000, 60000);
    assert_true(score == now && place == 1 && foreign == 1);
    first = score;
    assert_in_range(server_integer(server, "PTTL {k}:queue"), 590000, 600000);
    server_do(server, "PEXPIRE {k}:queue 5000");
    server_do(server, "SET k %s PX 3600000", OTHER);
    ask(live, OTHER, "g", "0", "1", text, sizeof text);     /* the holder itself: granted */
    assert_memory_equal(text, "1 ", 2);
    ask(live, "dl1-000000000000000000000000000000cc", "g", "0", "1", text, sizeof text);
    assert_int_equal(sscanf(text, "%lld %lld %lld %lld %lld %lld", &granted, &lease, &now, &score,
                            &place, &foreign),
                     6);
    assert_true(granted == 0 && score > first && place == 2 && foreign == 0);
    assert_in_range(server_integer(server, "PTTL {k}:queue"), 3600000, 3660000);
    ask(live, WAITER, "g", "0", "1", text, sizeof text);
    assert_int_equal(sscanf(text, "%*d %*d %*d %lld %lld", &score, &place), 2);
    assert_true(score == first && place == 1);
    server_do(server, "ZREM {k}:queue %s", WAITER " 7000 g");
    (void)snprintf(again, sizeof again, "%lld", first);
    ask(live, WAITER, "g", again, "1", text, sizeof text);
    assert_int_equal(sscanf(text, "%*d %*d %*d %lld %lld", &score, &place), 2);
    assert_true(score == first && place == 1);
    assert_int_equal(tickets(live), 2);
    live_end(live);
}

static void an_ask_that_finds_itself_first_in_line_is_granted(void **state)
{
    struct live *live = live_of(state);
    char text[160];
    ticket(live, 1, WAITER " 7000 g");
    ask(live, WAITER, "g", "1", "1", text, sizeof text);
    assert_memory_equal(text, "1 ", 2);
    assert_int_equal(tickets(live), 0);
    server_text(&live->server, text, sizeof text, "GET k");
    assert_string_equal(text, WAITER);
    live_end(live);
}

static void an_ask_again_by_the_holder_tells_what_is_left_and_changes_nothing(void **state)
{
    struct live *live = live_of(state);
    char text[160];
    long long granted, fence, lease, now, again;
    ask(live, WAITER, "", "0", "1", text, sizeof text);
    assert_int_equal(sscanf(text, "%lld %lld %lld %lld", &granted, &fence, &lease, &now), 4);
    assert_true(granted == 1 && lease == 7000);
    server_do(&live->server, "PEXPIRE k 3000");
    ask(live, WAITER, "", "0", "1", text, sizeof text);
    assert_int_equal(sscanf(text, "%lld %lld %lld", &granted, &again, &lease), 3);
    assert_true(granted == 1 && again == fence && lease <= 3000);
    server_do(&live->server, "DEL {k}:fence");
    ask(live, WAITER, "", "0", "1", text, sizeof text);
    assert_int_equal(sscanf(text, "%lld %lld %lld", &granted, &again, &lease), 3);
    assert_true(granted == 1 && again > fence && lease <= 3000);
    assert_true(server_integer(&live->server, "PTTL k") <= 3000);
    live_end(live);
}

/* A quorum's ask skips the line and leaves it alone. */
static void a_quorums_ask_passes_the_line(void **state)
{
    struct live *live = live_of(state);
    char text[160];
    redisContext *inbox = subscribe(live, INBOX);
    ticket(live, 1, WAITER " 7000 g");
    ask(live, OTHER, "h", "0", "1", text, sizeof text);
    assert_memory_equal(text, "1 ", 2);
    server_text(&live->server, text, sizeof text, "GET k");
    assert_string_equal(text, OTHER);
    assert_int_equal(tickets(live), 1);
    message(inbox, text, sizeof text);
    assert_string_equal(text, "");
    redisFree(inbox);
    live_end(live);
}

/* leave: the ticket goes, whoever holds the lock. */
static void a_leave_takes_its_ticket_off(void **state)
{
    struct live *live = live_of(state);
    server_do(&live->server, "SET k theirs");
    ticket(live, 1, WAITER " 7000 g");
    ticket(live, 2, OTHER " 7000 g");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(server_integer(&live->server, "EVAL %s 3 k {k}:queue {k}:fence %s %s",
                                        DLOCKI_LUA_RELEASE, WAITER, WAITER " 7000 g"),
                         i == 0 ? 2 : 0);
        assert_int_equal(tickets(live), 1);
    }
    assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
    live_end(live);
}

/* What release answers: 1 was ours, 4 handed over, 8 could not notify. */
static void a_release_says_what_it_did(void **state)
{
    static const struct {
        const char *rights;
        bool waiter;
        int64_t flags;
    } cases[] = {{"+@all &*", false, 1},
                 {"+@all &*", true, 5},
                 {"+@all &* -publish", true, 9},
                 {"+@all &* -pubsub", true, 9}};
    struct live *live = live_of(state);
    redisContext *inbox = subscribe(live, INBOX);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char rule[128];
        redisContext *bob = server_connect(&live->server);
        (void)snprintf(rule, sizeof rule, "ACL SETUSER bob reset on >pw ~* %s", cases[i].rights);
        server_do(&live->server, rule);
        freeReplyObject(redisCommand(bob, "AUTH bob pw"));
        server_do(&live->server, "FLUSHALL");
        server_do(&live->server, "SET k %s", OTHER);
        if (cases[i].waiter) {
            ticket(live, 1, WAITER " 7000 g");
        }
        redisReply *reply = (redisReply *)redisCommand(bob, "EVAL %s 3 k {k}:queue {k}:fence %s %s",
                                                       DLOCKI_LUA_RELEASE, OTHER, "");
        assert_non_null(reply);
        assert_int_equal(reply->type, REDIS_REPLY_INTEGER);
        assert_int_equal(reply->integer, cases[i].flags);
        freeReplyObject(reply);
        redisFree(bob);
    }
    redisFree(inbox);
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(a_release_hands_over_to_a_subscribed_waiter),
        LIVE(a_release_hands_over_in_the_order_of_the_line),
        LIVE(a_waiter_without_fence_is_handed_the_lock_without_one),
        LIVE(a_release_skips_the_dead_and_deletes_when_none_is_left),
        LIVE(a_release_frees_behind_more_dead_tickets_than_it_looks_at),
        LIVE(a_quorum_waiter_gets_a_hint_and_the_key_is_deleted),
        LIVE(a_hint_does_not_keep_the_lock_from_the_next_in_line),
        LIVE(a_release_of_what_is_not_ours_touches_no_queue),
        LIVE(rubbish_in_line_is_dropped_by_release_and_by_acquire),
        LIVE(a_binary_ticket_is_dropped),
        LIVE(a_queue_of_another_type_keeps_nobody_from_the_lock),
        LIVE(an_acquire_on_a_free_key_serves_who_waits_and_is_busy),
        LIVE(an_acquire_on_a_free_key_passes_the_dead_in_line),
        LIVE(a_waiting_acquire_without_fence_does_not_barge),
        LIVE(a_waiter_of_this_version_leaves_no_ticket),
        LIVE(a_user_that_may_not_notify_still_releases),
        LIVE(a_full_server_still_hands_over),
        LIVE(a_hand_over_that_cannot_be_numbered_frees_the_key),
        LIVE(a_script_is_known_by_the_sha1_in_the_header),
        LIVE(a_waiting_ask_keeps_its_place_and_refreshes_the_queue),
        LIVE(an_ask_that_finds_itself_first_in_line_is_granted),
        LIVE(an_ask_again_by_the_holder_tells_what_is_left_and_changes_nothing),
        LIVE(a_quorums_ask_passes_the_line),
        LIVE(a_leave_takes_its_ticket_off),
        LIVE(a_release_says_what_it_did),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
