/* One call of each kind that needs no server, for C and C++. A program that only includes the
 * header would also compile with a misspelt macro and no implementation at all. */
#include <string.h>

static int calls(void)
{
    dlock_error error;
    dlock_lock lock = DLOCK_INIT;
    dlock_factory *factory;
    int wrong = 0;

    wrong += dlock_version() != DLOCK_VERSION;
    wrong += strlen(dlock_code_text(DLOCK_BUSY)) == 0;
    wrong += dlock_open("nonsense", NULL, &error) != NULL;
    wrong += error.code != DLOCK_ARGUMENT || error.text[0] == '\0';

    /* Nothing listens on port 1. To open connects to nothing; to acquire does. */
    factory = dlock_open("redis://127.0.0.1:1", NULL, &error);
    wrong += factory == NULL || error.code != DLOCK_OK;
    wrong += dlock_acquire(factory, &lock, "key", NULL);
    wrong += dlock_why(&lock)->code != DLOCK_UNREACHABLE;
    wrong += dlock_release(&lock);
    wrong += dlock_is_acquired(&lock) || dlock_is_degraded(&lock);
    wrong += dlock_fence(&lock) != 0 || dlock_remaining_ms(&lock) != 0;
    wrong += dlock_owner(&lock)[0] != '\0';
    wrong += dlock_extend(&lock, 1000);
    dlock_cancel(&lock);
    dlock_forget(&lock);
    {
        DLOCK_SCOPED(scoped);
        wrong += dlock_acquire(factory, &scoped, "", NULL);
        wrong += dlock_why(&scoped)->code != DLOCK_ARGUMENT;
    }
    dlock_close(factory);
    return wrong;
}
