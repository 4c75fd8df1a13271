/* The guard for programs that are built without exceptions and without RTTI: all of it but lock(),
 * which throws. */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "calls.h"

#ifdef __cpp_exceptions
#error "this is meant to be compiled with -fno-exceptions"
#endif

int main()
{
    int wrong = calls();
    dlock_factory *factory = dlock_open("redis://127.0.0.1:1", nullptr, nullptr);
    {
        dlock::guard guard(factory, "key");
        wrong += static_cast<bool>(guard);
        wrong += dlock_why(guard.get())->code != DLOCK_UNREACHABLE;
        wrong += guard.try_lock();
        wrong += guard.unlock();
    }
    {
        dlock::guard guard(factory, "", dlock_options(), dlock::defer);
        wrong += dlock_why(guard.get())->code != DLOCK_OK;
        wrong += guard.try_lock();
        wrong += dlock_why(guard.get())->code != DLOCK_ARGUMENT;
    }
    dlock_close(factory);
    return wrong;
}
