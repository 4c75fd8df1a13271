/* What a server says, how one reaches it, and what it forbids. */
#include <stdlib.h>

#define DLOCK_ASSERT(condition) ((condition) ? (void)0 : abort())
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "tests/support.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <unistd.h>

static const dlock_options once = {.expiry_ms = 30000};
/* Would try for five seconds: a definite refusal must not make use of it. */
static const dlock_options patient = {.retry_count = 50, .retry_delay_ms = 100};

static struct live *live_of(void **state)
{
    return (struct live *)*state;
}

static void warm_up(struct live *live)
{
    dlock_lock lock = DLOCK_INIT;
    for (int i = 0; i < 2; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "warm", &once), &lock);
        assert_yes(dlock_extend(&lock, 0), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    server_do(&live->server, "DEL warm {warm}:fence");
}

/* Does something to the server after a while, beside a blocked call. */
struct later {
    pthread_t thread;
    struct server *server;
    const char *command;
    int64_t delay_ms;
};

static void *later_body(void *argument)
{
    const struct later *later = (const struct later *)argument;
    pause_ms(later->delay_ms);
    server_do(later->server, later->command);
    return NULL;
}

static void later_start(struct later *later, struct server *server, int64_t delay_ms,
                        const char *command)
{
    later->server = server;
    later->command = command;
    later->delay_ms = delay_ms;
    assert_int_equal(pthread_create(&later->thread, NULL, later_body, later), 0);
}

/* ------------------------------------------------------------------------- reaching a server */

static void cycle(struct live *live, const char *url, const dlock_config *config)
{
    dlock_lock lock = DLOCK_INIT;
    live_reopen(live, url, config);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    assert_held(&live->server, &lock, "k");
    assert_yes(dlock_extend(&lock, 60000), &lock);
    assert_yes(dlock_release(&lock), &lock);
    assert_gone(&live->server, "k");
}

static void a_server_is_reached_by_unix_tcp_ipv6_and_name(void **state)
{
    static const char *const forms[][2] = {{"redis://127.0.0.1:", ""},
                                           {"redis://localhost:", "/0"},
                                           {"redis://[::1]:", ""},
                                           {"valkey://127.0.0.1:", "/"}};
    struct live *live = live_of(state);
    char url[128];
    cycle(live, live->server.url, NULL);
    server_stop(&live->server);
    server_start(&live->server, true, NULL);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        (void)snprintf(url, sizeof url, "%s%d%s", forms[i][0], live->server.port, forms[i][1]);
        if (strchr(url, '[') == NULL || has_ipv6()) {
            cycle(live, url, NULL);
            continue;
        }
        dlock_lock lock = DLOCK_INIT;
        live_reopen(live, url, NULL);
        assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    }
    live_end(live);
}

/* Where localhost is two addresses the first, ::1, refuses: the server listens on the other. */
static void the_next_address_of_a_name_is_tried_when_the_first_refuses(void **state)
{
    static const char *const bind_one[] = {"--bind", "127.0.0.1", NULL};
    struct live *live = live_of(state);
    char url[128];
    server_stop(&live->server);
    server_start(&live->server, true, bind_one);
    (void)snprintf(url, sizeof url, "redis://localhost:%d", live->server.port);
    cycle(live, url, NULL);
    live_end(live);
}

static void a_database_number_chooses_where_the_key_lies(void **state)
{
    struct live *live = live_of(state);
    char url[SERVER_URL_MAX + 16];
    char text[64];
    dlock_lock lock = DLOCK_INIT;
    server_stop(&live->server);
    server_start(&live->server, true, NULL);
    for (int i = 0; i < 2; i++) {
        if (i == 0) {
            (void)snprintf(url, sizeof url, "%s?db=7", live->server.url);
        } else {
            (void)snprintf(url, sizeof url, "redis://127.0.0.1:%d/7", live->server.port);
        }
        live_reopen(live, url, NULL);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 0);
        server_do(&live->server, "SELECT 7");
        server_text(&live->server, text, sizeof text, "GET k");
        assert_string_equal(text, dlock_owner(&lock));
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 2);
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_yes(dlock_release(&lock), &lock);
        assert_int_equal(server_integer(&live->server, "DBSIZE"), 1);
        server_do(&live->server, "FLUSHALL");
        server_do(&live->server, "SELECT 0");
    }
    live_end(live);
}

static void a_client_name_is_seen_by_the_operator(void **state)
{
    struct live *live = live_of(state);
    dlock_config config = {.client_name = "billing-7"};
    dlock_lock lock = DLOCK_INIT;
    live_reopen(live, live->server.url, &config);
    for (int i = 0; i < 2; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        redisReply *reply = server_command(&live->server, "CLIENT LIST");
        assert_non_null(reply->str);
        assert_non_null(strstr(reply->str, " name=billing-7 "));
        freeReplyObject(reply);
        assert_yes(dlock_release(&lock), &lock);
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
    }
    live_end(live);
}

/* ------------------------------------------------------------------------- passwords and rights */

static void a_password_is_taken_from_the_url_or_the_config(void **state)
{
    static const char *const options[] = {"--requirepass", "p@ss:w/%d 1", "--user", "alice", "on",
                                          ">s3cret",       "~*",          "&*",     "+@all", NULL};
    static const struct {
        const char *user_part;
        const char *username, *password;
    } cases[] = {
        {":p%40ss%3aw%2F%25d%201@", NULL, NULL},
        {"default:p%40ss%3aw%2F%25d%201@", NULL, NULL},
        {"alice:s3cret@", NULL, NULL},
        {"", NULL, "p@ss:w/%d 1"},
        {"", "alice", "s3cret"},
        {"wrong:wrong@", "alice", "s3cret"},
        {"alice:wrong@", NULL, "s3cret"},
    };
    struct live *live = live_of(state);
    server_stop(&live->server);
    server_start(&live->server, true, options);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlock_config config = {.username = cases[i].username, .password = cases[i].password};
        char url[256];
        (void)snprintf(url, sizeof url, "redis://%s127.0.0.1:%d", cases[i].user_part,
                       live->server.port);
        cycle(live, url, &config);
        (void)snprintf(url, sizeof url, "unix://%s%s", cases[i].user_part, live->server.socket);
        cycle(live, url, &config);
    }
    live_end(live);
}

/* Everything that no patience can cure, and nothing that was granted by the way stays behind. */
static void a_definite_refusal_is_told_once_and_gives_nothing_away(void **state)
{
    static const char *const with_password[] = {"--requirepass", "sekret-right", NULL};
    static const struct {
        const char *name;
        bool protected;
        const char *user_part;
        const char *query;
    } cases[] = {
        {"no password given", true, "", ""},
        {"wrong password", true, ":sekret-wrong@", ""},
        {"unknown user", true, "sekret-nobody:sekret-wrong@", ""},
        {"right password, wrong user", true, "sekret-nobody:sekret-right@", ""},
        {"needless password", false, ":sekret-wrong@", ""},
        {"needless user", false, "sekret-nobody:sekret-wrong@", ""},
        {"no such database", false, "", "?db=9999"},
    };
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int plain = 0; plain < 2; plain++) {
            dlock_options options = patient;
            dlock_lock lock = DLOCK_INIT;
            char url[SERVER_URL_MAX + 64];
            options.no_fence = plain == 1;
            server_stop(&live->server);
            server_start(&live->server, false, cases[i].protected ? with_password : NULL);
            (void)snprintf(url, sizeof url, "unix://%s%s%s", cases[i].user_part,
                           live->server.socket, cases[i].query);
            live_reopen(live, url, NULL);
            int64_t start = now_ms();
            bool answer = dlock_acquire(live->factory, &lock, "k", &options);
            assert_took(start, 0, 100);
            assert_no(answer, &lock, DLOCK_REFUSED);
            assert_null(strstr(dlock_why(&lock)->text, "sekret"));
            assert_true(server_info(&live->server, "stats", "total_connections_received") <= 6);
            dlock_close(live->factory);
            live->factory = NULL;
            assert_gone(&live->server, "k");
        }
    }
    live_end(live);
}

static void a_password_set_while_we_are_connected_is_met_at_the_next_connection(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    server_do(&live->server, "CONFIG SET requirepass sekret");
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
    pause_ms(20);
    assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_REFUSED);
    assert_true(dlock_is_acquired(&lock));
    server_do(&live->server, "CONFIG SET requirepass %s", "");
    pause_ms(20);
    assert_yes(dlock_extend(&lock, 60000), &lock);
    assert_yes(dlock_release(&lock), &lock);
    live_end(live);
}

/* Rights taken from a user; `why` of it is REFUSED after one try. */
static void a_user_without_the_rights_is_refused_once(void **state)
{
    static const struct {
        const char *rights;
        bool plain_too;
    } cases[] = {
        {"+@all -eval -evalsha", false}, {"+@all -@scripting", false}, {"+@all -set", true},
        {"+@all -zadd", false},          {"-@all +ping", true},
    };
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int plain = 0; plain <= (cases[i].plain_too ? 1 : 0); plain++) {
            dlock_options options = patient;
            dlock_lock lock = DLOCK_INIT;
            char rule[128];
            char url[SERVER_URL_MAX + 32];
            options.no_fence = plain == 1;
            if (plain == 1) {
                options.retry_count = 0;
            }
            (void)snprintf(rule, sizeof rule, "ACL SETUSER bob reset on >pw ~* &* %s",
                           cases[i].rights);
            server_do(&live->server, rule);
            (void)snprintf(url, sizeof url, "unix://bob:pw@%s", live->server.socket);
            live_reopen(live, url, NULL);
            int64_t start = now_ms();
            bool answer = dlock_acquire(live->factory, &lock, "k", &options);
            assert_took(start, 0, 100);
            if (answer) {
                print_error("granted with \"%s\"%s\n", cases[i].rights, plain ? ", no_fence" : "");
            }
            assert_no(answer, &lock, DLOCK_REFUSED);
            assert_true(server_scripts(&live->server) <= 4);
            assert_gone(&live->server, "k");
            server_do(&live->server, "CONFIG RESETSTAT");
        }
    }
    live_end(live);
}

static void a_key_outside_the_users_patterns_is_refused(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    char url[SERVER_URL_MAX + 32];
    server_do(&live->server, "ACL SETUSER bob reset on >pw ~mine:* ~{mine:* &* +@all");
    (void)snprintf(url, sizeof url, "unix://bob:pw@%s", live->server.socket);
    live_reopen(live, url, NULL);
    assert_no(dlock_acquire(live->factory, &lock, "theirs:1", &patient), &lock, DLOCK_REFUSED);
    assert_yes(dlock_acquire(live->factory, &lock, "mine:1", &patient), &lock);
    assert_yes(dlock_release(&lock), &lock);
    assert_int_equal(server_integer(&live->server, "EXISTS theirs:1 {theirs:1}:fence"), 0);
    live_end(live);
}

/* As if there were no such commands: with a fence, and with patience. */
static void a_server_whose_scripts_are_renamed_is_refused(void **state)
{
    static const char *const renamed[] = {"--rename-command", "EVAL", "",  "--rename-command",
                                          "EVALSHA",          "",     NULL};
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    server_stop(&live->server);
    server_start(&live->server, false, renamed);
    live_reopen(live, live->server.url, NULL);
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &patient), &lock, DLOCK_REFUSED);
    assert_took(start, 0, 100);
    assert_gone(&live->server, "k");
    live_end(live);
}

/* A plain SET would do, but not the release: better no lock than one that nobody can give back. */
static void where_scripts_are_forbidden_a_lock_without_fence_is_refused_too(void **state)
{
    static const char *const renamed[] = {"--rename-command", "EVAL", "",  "--rename-command",
                                          "EVALSHA",          "",     NULL};
    static const char *const rights[] = {"+@all -eval -evalsha", "+@all -@scripting", NULL};
    struct live *live = live_of(state);
    for (size_t i = 0; i < sizeof rights / sizeof *rights; i++) {
        dlock_options plain = {.no_fence = true};
        dlock_lock lock = DLOCK_INIT;
        char rule[128];
        char url[SERVER_URL_MAX + 32];
        server_stop(&live->server);
        server_start(&live->server, false, rights[i] == NULL ? renamed : NULL);
        (void)snprintf(rule, sizeof rule, "ACL SETUSER bob reset on >pw ~* &* %s",
                       rights[i] == NULL ? "+@all" : rights[i]);
        server_do(&live->server, rule);
        (void)snprintf(url, sizeof url, "unix://bob:pw@%s", live->server.socket);
        live_reopen(live, url, NULL);
        assert_no(dlock_acquire(live->factory, &lock, "k", &plain), &lock, DLOCK_REFUSED);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

/* The command that the README shows: from "ACL SETUSER locker" to the next empty line. */
static void documented_rights(char *command, size_t size)
{
    char line[256];
    FILE *readme = fopen("README.md", "r");
    bool found = false;
    assert_non_null(readme);
    command[0] = '\0';
    while (fgets(line, sizeof line, readme) != NULL && !(found && line[0] == '\n')) {
        found = found || strstr(line, "ACL SETUSER locker") != NULL;
        if (found) {
            line[strcspn(line, "\n")] = '\0';
            assert_true(strlen(command) + strlen(line) + 2 < size);
            (void)snprintf(command + strlen(command), size - strlen(command), "%s ",
                           line + strspn(line, " "));
        }
    }
    assert_int_equal(fclose(readme), 0);
    assert_true(found);
}

/* The rights that the README promises to be enough are enough. */
static void the_documented_rights_are_enough(void **state)
{
    struct live *live = live_of(state);
    dlock_config config = {.client_name = "locker"};
    dlock_lock lock = DLOCK_INIT;
    dlock_lock other = DLOCK_INIT;
    char url[SERVER_URL_MAX + 32];
    char command[1024];
    documented_rights(command, sizeof command);
    server_do(&live->server, command);
    (void)snprintf(url, sizeof url, "unix://locker:password@%s?db=3", live->server.socket);
    live_reopen(live, url, &config);
    for (int i = 0; i < 3; i++) {
        dlock_options options = {.no_fence = i == 2, .retry_count = i == 1 ? 1 : 0};
        assert_yes(dlock_acquire(live->factory, &lock, "orders:1", &options), &lock);
        assert_no(dlock_acquire(live->factory, &other, "orders:1", &options), &other, DLOCK_BUSY);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        assert_yes(dlock_release(&lock), &lock);
    }
    server_do(&live->server, "SELECT 3");
    server_do(&live->server, "ZADD {orders:1}:queue 1 %s",
              "dl1-00000000000000010000000000000002 1000 g");
    assert_yes(dlock_acquire(live->factory, &lock, "orders:1", NULL), &lock);
    server_do(&live->server, "ZADD {orders:1}:queue 1 %s",
              "dl1-00000000000000010000000000000002 1000 g");
    assert_yes(dlock_release(&lock), &lock);
    assert_int_equal(server_integer(&live->server, "EXISTS orders:1 {orders:1}:queue"), 0);
    redisReply *log = server_command(&live->server, "ACL LOG");
    for (size_t i = 0; i < log->elements; i++) {
        fail_msg("denied by ACL: %s", log->element[i]->element[7]->str);
    }
    freeReplyObject(log);
    live_end(live);
}

/* ----------------------------------------------------------------- "later", and what it means */

struct trouble {
    const char *name;
    const char *set, *unset;
    bool release_works, extend_works;
};

static const struct trouble troubles[] = {
    {"out of memory", "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", true, true},
    {"no replicas", "CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0",
     false, false},
    {"a replica", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", false, false},
};

/* Every way to ask: one attempt, several, plain; none is BUSY, none gets through, none stays. */
static void a_server_that_says_later_is_unreachable_within_the_bounds(void **state)
{
    static const struct {
        dlock_options options;
        int64_t low, high;
    } ways[] = {
        {{.retry_count = 0}, 0, 100},
        {{.no_fence = true}, 0, 100},
        {{.retry_count = 2, .retry_delay_ms = 100}, 200, 200},
        {{.wait_ms = 250}, 250, 250},
        {{.wait_ms = 250, .retry_delay_ms = 50, .no_fence = true}, 250, 250},
    };
    struct live *live = live_of(state);
    warm_up(live);
    for (size_t i = 0; i < sizeof troubles / sizeof *troubles; i++) {
        for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
            dlock_lock lock = DLOCK_INIT;
            server_do(&live->server, troubles[i].set);
            int64_t start = now_ms();
            bool answer = dlock_acquire(live->factory, &lock, "k", &ways[k].options);
            assert_took(start, ways[k].low, ways[k].high);
            assert_no(answer, &lock, DLOCK_UNREACHABLE);
            server_do(&live->server, troubles[i].unset);
            assert_gone(&live->server, "k");
        }
    }
    live_end(live);
}

static void a_waiter_is_in_when_the_server_stops_saying_later(void **state)
{
    struct live *live = live_of(state);
    dlock_options waits = {.wait_ms = 20000};
    warm_up(live);
    for (size_t i = 0; i < sizeof troubles / sizeof *troubles; i++) {
        dlock_lock lock = DLOCK_INIT;
        struct later later;
        server_do(&live->server, troubles[i].set);
        int64_t start = now_ms();
        later_start(&later, &live->server, 300, troubles[i].unset);
        bool answer = dlock_acquire(live->factory, &lock, "k", &waits);
        assert_int_equal(pthread_join(later.thread, NULL), 0);
        assert_yes(answer, &lock);
        assert_took(start, 295, 700);
        assert_held(&live->server, &lock, "k");
        assert_yes(dlock_release(&lock), &lock);
    }
    live_end(live);
}

static void a_held_lock_under_a_server_that_says_later(void **state)
{
    struct live *live = live_of(state);
    warm_up(live);
    for (size_t i = 0; i < sizeof troubles / sizeof *troubles; i++) {
        dlock_lock lock = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        server_do(&live->server, troubles[i].set);
        if (troubles[i].extend_works) {
            assert_yes(dlock_extend(&lock, 60000), &lock);
            assert_in_range(server_integer(&live->server, "PTTL k"), 30001, 60000);
        } else {
            assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_UNREACHABLE);
        }
        assert_true(dlock_is_acquired(&lock));
        assert_true(dlock_remaining_ms(&lock) > 20000);
        if (troubles[i].release_works) {
            assert_yes(dlock_release(&lock), &lock);
            assert_gone(&live->server, "k");
        } else {
            assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
            assert_non_null(strstr(dlock_why(&lock)->text, " ms"));
            assert_false(dlock_is_acquired(&lock));
            assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
        }
        server_do(&live->server, troubles[i].unset);
        if (!troubles[i].release_works) {
            assert_yes(dlock_release(&lock), &lock);
            assert_gone(&live->server, "k");
            assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
        }
    }
    live_end(live);
}

/* A release that failed is a debt: a call on another key pays it, and so does close. */
static void a_failed_release_is_paid_by_later_calls_or_by_close(void **state)
{
    struct live *live = live_of(state);
    for (int by_close = 0; by_close < 2; by_close++) {
        dlock_lock lock = DLOCK_INIT;
        dlock_lock other = DLOCK_INIT;
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        server_do(&live->server, "CONFIG SET min-replicas-to-write 1");
        assert_no(dlock_release(&lock), &lock, DLOCK_UNREACHABLE);
        server_do(&live->server, "CONFIG SET min-replicas-to-write 0");
        assert_int_equal(server_integer(&live->server, "EXISTS k"), 1);
        if (by_close == 0) {
            for (int i = 0; i < 5; i++) {
                assert_yes(dlock_acquire(live->factory, &other, "other", &once), &other);
                assert_yes(dlock_release(&other), &other);
                pause_ms(50);
            }
            assert_gone(&live->server, "k");
        }
        live_reopen(live, live->server.url, NULL);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

/* MISCONF: a snapshot fails because its directory is gone. */
static void a_server_that_cannot_save_is_unreachable_not_busy(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    char data[SERVER_PATH_MAX + 8];
    char text[256];
    assert_yes(dlock_acquire(live->factory, &held, "held", &once), &held);
    (void)snprintf(data, sizeof data, "%s/data", live->server.directory);
    assert_int_equal(rmdir(data), 0);
    server_do(&live->server, "CONFIG SET save %s", "3600 1000000");
    server_do(&live->server, "BGSAVE");
    for (int i = 0; i < 400; i++) {
        server_text(&live->server, text, sizeof text, "SET probe 1");
        if (strncmp(text, "MISCONF", 7) == 0) {
            break;
        }
        pause_ms(10);
    }
    assert_memory_equal(text, "MISCONF", 7);
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    assert_no(dlock_release(&held), &held, DLOCK_UNREACHABLE);
    server_do(&live->server, "CONFIG SET save %s", "");
    assert_yes(dlock_release(&held), &held);
    assert_gone(&live->server, "held");
    assert_gone(&live->server, "k");
    live_end(live);
}

static void a_replica_that_lost_its_master_is_unreachable_or_refused_never_busy(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 20000};
    struct later later;
    assert_yes(dlock_acquire(live->factory, &held, "held", &once), &held);
    server_do(&live->server, "CONFIG SET replica-serve-stale-data no");
    server_do(&live->server, "REPLICAOF 127.0.0.1 1");
    assert_no(dlock_acquire(live->factory, &lock, "held", &once), &lock, DLOCK_UNREACHABLE);
    assert_no(dlock_extend(&held, 60000), &held, DLOCK_UNREACHABLE);
    later_start(&later, &live->server, 200, "REPLICAOF NO ONE");
    bool answer = dlock_acquire(live->factory, &lock, "k", &waits);
    assert_int_equal(pthread_join(later.thread, NULL), 0);
    assert_yes(answer, &lock);
    assert_yes(dlock_release(&held), &held);
    live_end(live);
}

/* The reply BUSY (a script that runs and runs) is not DLOCK_BUSY. */
static void a_server_busy_with_a_script_is_unreachable_until_it_is_killed(void **state)
{
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 20000};
    struct later later;
    char text[64];
    warm_up(live);
    assert_yes(dlock_acquire(live->factory, &held, "held", &once), &held);
    server_do(&live->server, "CONFIG SET lua-time-limit 20");
    redisContext *slow = server_connect(&live->server);
    int sent = 0;
    assert_int_equal(redisAppendCommand(slow, "EVAL %s 0", "while true do end"), REDIS_OK);
    while (sent == 0) {
        assert_int_equal(redisBufferWrite(slow, &sent), REDIS_OK);
    }
    for (int i = 0; i < 400; i++) {
        server_text(&live->server, text, sizeof text, "GET x");
        if (strncmp(text, "BUSY", 4) == 0) {
            break;
        }
        pause_ms(10);
    }
    assert_memory_equal(text, "BUSY", 4);
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "held", &once), &lock, DLOCK_UNREACHABLE);
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    assert_no(dlock_extend(&held, 60000), &held, DLOCK_UNREACHABLE);
    assert_took(start, 0, 1500);
    assert_true(dlock_is_acquired(&held));
    later_start(&later, &live->server, 200, "SCRIPT KILL");
    bool answer = dlock_acquire(live->factory, &lock, "k", &waits);
    assert_int_equal(pthread_join(later.thread, NULL), 0);
    assert_yes(answer, &lock);
    assert_held(&live->server, &lock, "k");
    assert_yes(dlock_release(&held), &held);
    redisFree(slow);
    live_end(live);
}

static void a_server_that_loads_its_data_is_unreachable_until_it_has(void **state)
{
    static const char *const slowly[] = {"--key-load-delay", "400",
                                         "--loading-process-events-interval-bytes", "1024", NULL};
    struct live *live = live_of(state);
    dlock_lock held = DLOCK_INIT;
    dlock_lock lock = DLOCK_INIT;
    dlock_lock other = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 30000};
    char text[64];
    assert_yes(dlock_acquire(live->factory, &held, "held", &once), &held);
    server_do(&live->server, "EVAL %s 0",
              "for i = 1, 3000 do redis.call('set', 'filler:' .. i, string.rep('x', 64)) end");
    server_restart(&live->server, true, slowly);
    server_text(&live->server, text, sizeof text, "GET x");
    assert_memory_equal(text, "LOADING", 7);
    assert_no(dlock_acquire(live->factory, &lock, "held", &once), &lock, DLOCK_UNREACHABLE);
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    assert_no(dlock_extend(&held, 60000), &held, DLOCK_UNREACHABLE);
    assert_true(dlock_is_acquired(&held));
    server_text(&live->server, text, sizeof text, "GET x");
    assert_memory_equal(text, "LOADING", 7);
    assert_yes(dlock_acquire(live->factory, &lock, "k", &waits), &lock);
    assert_held(&live->server, &lock, "k");
    assert_no(dlock_acquire(live->factory, &other, "held", &once), &other, DLOCK_BUSY);
    assert_yes(dlock_extend(&held, 60000), &held);
    assert_yes(dlock_release(&held), &held);
    live_end(live);
}

static void a_server_without_a_place_for_a_client_is_unreachable_until_it_has(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 400};
    dlock_options longer = {.wait_ms = 20000};
    struct later later;
    server_do(&live->server, "CONFIG SET maxclients 1");
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 0, 100);
    int64_t refused = server_info(&live->server, "stats", "rejected_connections");
    assert_in_range(refused, 1, 3);
    start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &waits), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 400, 400);
    refused = server_info(&live->server, "stats", "rejected_connections") - refused;
    assert_in_range(refused, 1, 20);
    later_start(&later, &live->server, 200, "CONFIG SET maxclients 100");
    bool answer = dlock_acquire(live->factory, &lock, "k", &longer);
    assert_int_equal(pthread_join(later.thread, NULL), 0);
    assert_yes(answer, &lock);
    assert_held(&live->server, &lock, "k");
    live_end(live);
}

/* --------------------------------------------------------------- restarts and lost connections */

static void a_restart_between_two_calls_is_not_noticed(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    for (int keep = 0; keep < 2; keep++) {
        for (int i = 0; i < 5; i++) {
            server_restart(&live->server, keep == 1, NULL);
            pause_ms(15);
            assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
            assert_held(&live->server, &lock, "k");
            assert_yes(dlock_release(&lock), &lock);
        }
    }
    live_end(live);
}

/* Many clients see it at once; each is back with its next call, over one new connection. */
static void many_clients_outlive_a_restart_at_once(void **state)
{
    enum { CLIENTS = 50 };
    static dlock_factory *factories[CLIENTS];
    static dlock_lock locks[CLIENTS];
    struct live *live = live_of(state);
    char key[16];
    memset(locks, 0, sizeof locks);
    for (int i = 0; i < CLIENTS; i++) {
        (void)snprintf(key, sizeof key, "k%d", i);
        factories[i] = open_factory(live->server.url, NULL);
        assert_yes(dlock_acquire(factories[i], &locks[i], key, &once), &locks[i]);
    }
    server_restart(&live->server, true, NULL);
    pause_ms(15);
    int64_t before = server_info(&live->server, "stats", "total_connections_received");
    for (int i = 0; i < CLIENTS; i++) {
        assert_yes(dlock_extend(&locks[i], 60000), &locks[i]);
    }
    for (int i = 0; i < CLIENTS; i++) {
        assert_yes(dlock_release(&locks[i]), &locks[i]);
        dlock_close(factories[i]);
    }
    int64_t after = server_info(&live->server, "stats", "total_connections_received");
    assert_int_equal(after - before, CLIENTS);
    assert_int_equal(server_integer(&live->server, "DBSIZE"), CLIENTS);
    live_end(live);
}

static void a_lock_survives_a_restart_that_keeps_the_data(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_lock other = DLOCK_INIT;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
    uint64_t fence = dlock_fence(&lock);
    server_restart(&live->server, true, NULL);
    pause_ms(15);
    assert_no(dlock_acquire(live->factory, &other, "k", &once), &other, DLOCK_BUSY);
    assert_yes(dlock_extend(&lock, 60000), &lock);
    assert_held(&live->server, &lock, "k");
    server_restart(&live->server, true, NULL);
    pause_ms(15);
    assert_yes(dlock_release(&lock), &lock);
    assert_yes(dlock_acquire(live->factory, &other, "k", &once), &other);
    assert_true(dlock_fence(&other) > fence);
    live_end(live);
}

static void a_lock_is_lost_by_a_restart_that_loses_the_data_and_the_fence_grows(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_lock other = DLOCK_INIT;
    for (int extend_first = 0; extend_first < 2; extend_first++) {
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        uint64_t fence = dlock_fence(&lock);
        server_restart(&live->server, false, NULL);
        pause_ms(15);
        if (extend_first) {
            assert_no(dlock_extend(&lock, 60000), &lock, DLOCK_LOST);
        }
        assert_no(dlock_release(&lock), &lock, DLOCK_LOST);
        assert_gone(&live->server, "k");
        assert_yes(dlock_acquire(live->factory, &other, "k", &once), &other);
        assert_true(dlock_fence(&other) > fence);
        assert_yes(dlock_release(&other), &other);
    }
    live_end(live);
}

static void a_connection_killed_between_two_calls_is_replaced(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    for (int i = 0; i < 10; i++) {
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
        pause_ms(15);
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
        pause_ms(15);
        assert_yes(dlock_extend(&lock, 60000), &lock);
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
        pause_ms(15);
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

/* Without the rest that lets us notice: extend and release are sent again once. */
static void an_extend_and_a_release_survive_a_connection_killed_just_now(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    warm_up(live);
    for (int i = 0; i < 20; i++) {
        assert_yes(dlock_acquire(live->factory, &lock, "k", &once), &lock);
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
        assert_yes(dlock_extend(&lock, 60000), &lock);
        server_do(&live->server, "CLIENT KILL TYPE normal SKIPME yes");
        assert_yes(dlock_release(&lock), &lock);
        assert_gone(&live->server, "k");
    }
    live_end(live);
}

static void a_server_that_comes_late_is_waited_for(void **state)
{
    struct live *live = live_of(state);
    dlock_lock lock = DLOCK_INIT;
    dlock_options waits = {.wait_ms = 300};
    warm_up(live);
    server_kill(&live->server);
    int64_t start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &once), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 0, 100);
    start = now_ms();
    assert_no(dlock_acquire(live->factory, &lock, "k", &waits), &lock, DLOCK_UNREACHABLE);
    assert_took(start, 300, 300);
    server_revive(&live->server);
    waits.wait_ms = 20000;
    assert_yes(dlock_acquire(live->factory, &lock, "k", &waits), &lock);
    assert_held(&live->server, &lock, "k");
    live_end(live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LIVE(a_server_is_reached_by_unix_tcp_ipv6_and_name),
        LIVE(the_next_address_of_a_name_is_tried_when_the_first_refuses),
        LIVE(a_database_number_chooses_where_the_key_lies),
        LIVE(a_client_name_is_seen_by_the_operator),
        LIVE(a_password_is_taken_from_the_url_or_the_config),
        LIVE(a_definite_refusal_is_told_once_and_gives_nothing_away),
        LIVE(a_password_set_while_we_are_connected_is_met_at_the_next_connection),
        LIVE(a_user_without_the_rights_is_refused_once),
        LIVE(a_key_outside_the_users_patterns_is_refused),
        LIVE(a_server_whose_scripts_are_renamed_is_refused),
        LIVE(where_scripts_are_forbidden_a_lock_without_fence_is_refused_too),
        LIVE(the_documented_rights_are_enough),
        LIVE(a_server_that_says_later_is_unreachable_within_the_bounds),
        LIVE(a_waiter_is_in_when_the_server_stops_saying_later),
        LIVE(a_held_lock_under_a_server_that_says_later),
        LIVE(a_failed_release_is_paid_by_later_calls_or_by_close),
        LIVE(a_server_that_cannot_save_is_unreachable_not_busy),
        LIVE(a_replica_that_lost_its_master_is_unreachable_or_refused_never_busy),
        LIVE(a_server_busy_with_a_script_is_unreachable_until_it_is_killed),
        LIVE(a_server_that_loads_its_data_is_unreachable_until_it_has),
        LIVE(a_server_without_a_place_for_a_client_is_unreachable_until_it_has),
        LIVE(a_restart_between_two_calls_is_not_noticed),
        LIVE(many_clients_outlive_a_restart_at_once),
        LIVE(a_lock_survives_a_restart_that_keeps_the_data),
        LIVE(a_lock_is_lost_by_a_restart_that_loses_the_data_and_the_fence_grows),
        LIVE(a_connection_killed_between_two_calls_is_replaced),
        LIVE(an_extend_and_a_release_survive_a_connection_killed_just_now),
        LIVE(a_server_that_comes_late_is_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
