/* A Redis server in memory: as much of one as a lock needs, for one thread, with a clock that the
 * caller hands in. Its scripts are run by a real Lua 5.1, so that what is tested is the text that
 * goes to a server. It speaks RESP2 and words its errors as Redis 7.0 does; tests/test_model.c
 * compares the two.
 *
 * Commands: PING SELECT SET GET DEL EXISTS STRLEN GETRANGE TYPE PTTL PEXPIRE TIME KEYS * FLUSHALL
 * ZADD ZINCRBY ZREM ZPOPMIN ZRANGE ZRANK ZSCORE ZCARD PUBLISH SUBSCRIBE UNSUBSCRIBE PUBSUB NUMSUB
 * EVAL EVALSHA SCRIPT LOAD|EXISTS|FLUSH CLIENT SETNAME. AUTH is the caller's business. Options that
 * no script of ours uses are syntax errors.
 *
 * There are no globals: models are independent of each other. Nothing is random, and nothing
 * depends on an address. But for replies no memory comes from malloc, so that a test may watch it,
 * or let it fail. Memory that runs out ends the program. */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_NEVER INT64_MAX

/* ------------------------------------------------------------------------------------ replies */

/* Bytes that grow as they must. All zero is empty; the owner frees `bytes`. */
struct model_reply {
    char *bytes;
    size_t length;
    size_t room;
};

/* ----------------------------------------------------------------------------------- contents */

/* One member of a sorted set. */
struct model_member {
    double score;
    size_t length;
    char *bytes;
};

/* One key with its value. Tests may look at all of it, and may set `ends`. */
struct model_key {
    int database;
    bool sorted;                    /* a sorted set, else a string                          */
    int64_t ends;                   /* ms by the model's clock; gone after it; MODEL_NEVER   */
    size_t length;                  /* of a string                                          */
    char *bytes;
    size_t count;                   /* of a sorted set                                      */
    size_t room;
    struct model_member *members;   /* by score, then by bytes                              */
    struct model_key *in_bucket;    /* from here on private, but for the key itself         */
    struct model_key *before;
    struct model_key *after;
    uint64_t hash;
    size_t key_length;
    char key[];                     /* a NUL byte stands behind it                          */
};

/* ------------------------------------------------------------------------------------- models */

/* A Lua with what it has compiled. Any number of models of one thread may use it, one after the
 * other; it outlives them. To open one costs as much as some hundred scripts. */
struct model_lua;

struct model_lua *model_lua_open(void);
void model_lua_close(struct model_lua *lua);

/* One server. */
struct model;

struct model_subscription;

/* One connection. All zero is a new one. */
struct model_client {
    int database;
    int channel_count;
    struct model_subscription *subscriptions;
    void *user;                     /* the caller's                                         */
};

/* A published message, as the bytes that go out to this client. It may not call the model. */
typedef void model_deliver(void *user, struct model_client *to, const char *bytes, size_t length);

/* `deliver` may be NULL if nobody subscribes. */
struct model *model_open(struct model_lua *lua, model_deliver *deliver, void *user);

/* Its clients are unsubscribed as by model_client_close only as far as the model is concerned: they
 * are not to be used again until they are all zero. */
void model_close(struct model *model);

/* What a server may forbid or lack. All zero at first. */
struct model_switches {
    bool out_of_memory;             /* SET ZADD ZINCRBY, but behind a script's first write  */
    bool no_publish;                /* the right to the command PUBLISH                     */
    bool no_pubsub;                 /* PUBSUB                                               */
    bool no_subscribe;              /* SUBSCRIBE                                            */
    bool no_channels;               /* the right to any channel: PUBLISH, SUBSCRIBE         */
    bool no_scripts;                /* EVAL, EVALSHA                                        */
    int databases;                  /* 0 = 16                                               */
};

struct model_switches *model_switches(struct model *model);

/* Executes one command and appends its reply. `now_us` is the server's clock. */
void model_execute(struct model *model, struct model_client *client, int argc,
                   const char *const *argv, const size_t *lengths, int64_t now_us,
                   struct model_reply *out);

/* The connection has ended. */
void model_client_close(struct model *model, struct model_client *client);

/* As by a restart: the cache of scripts is empty. */
void model_forget_scripts(struct model *model);

/* As by SCRIPT LOAD, of a script that compiles. */
void model_load_script(struct model *model, const char *text, size_t length);

/* Would EVALSHA find it? */
bool model_knows_script(const struct model *model, const char *sha1);

/* How many clients have subscribed to a channel? */
int model_subscribers(struct model *model, const char *channel, size_t length);

/* ------------------------------------------------------------------------------ the keys in it */

/* NULL: not there, or over at that time. It lives until the next command or change. */
struct model_key *model_key_find(struct model *model, int database, const void *key, size_t length,
                                 int64_t now_us);

/* The next one in the order in which they were made; NULL begins, and ends. */
struct model_key *model_key_next(struct model *model, struct model_key *after, int64_t now_us);

/* A string in place of what there was. */
struct model_key *model_key_set(struct model *model, int database, const void *key, size_t length,
                                const void *bytes, size_t count, int64_t ends);

void model_key_delete(struct model *model, struct model_key *key);

/* The score of a member of a sorted set; `otherwise` if there is none. */
double model_key_score(const struct model_key *key, const void *member, size_t length,
                       double otherwise);

/* -------------------------------------------------------------------------------------- hashes */

/* 40 hex digits and a NUL. */
void model_sha1(const void *bytes, size_t count, char *hex);

#endif /* MODEL_H */
