/* The same questions, by a blocking call and by an event loop: a test that goes through both ways
 * asks one engine twice. Include dlock.h and tests/support.h first. */
#ifndef WAYS_H
#define WAYS_H

struct way {
    const char *name;
    bool (*acquire)(dlock_factory *, dlock_lock *, const char *, const dlock_options *);
    bool (*extend)(dlock_factory *, dlock_lock *, int64_t);
    bool (*release)(dlock_factory *, dlock_lock *);
};

static bool call_extend(dlock_factory *factory, dlock_lock *lock, int64_t expiry_ms)
{
    (void)factory;
    return dlock_extend(lock, expiry_ms);
}

static bool call_release(dlock_factory *factory, dlock_lock *lock)
{
    (void)factory;
    return dlock_release(lock);
}

static const struct way ways[] = {
    {"by a call", dlock_acquire, call_extend, call_release},
    {"by a loop", loop_acquire, loop_extend, loop_release},
};

/* Is there such a way? The last line before a failure says which it was. */
static bool say(const struct way *way)
{
    bool is = way < ways + sizeof ways / sizeof *ways;
    if (is) {
        print_message("             %s\n", way->name);
    }
    return is;
}
#define BOTH(way) \
    const struct way *way = ways; \
    say(way); \
    way++

#endif
