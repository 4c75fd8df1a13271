/* The guard, as std::unique_lock and people use it, where no server can be reached. */
#include <mutex>
#include <system_error>

static int guards()
{
    dlock_factory *factory = dlock_open("redis://127.0.0.1:1", nullptr, nullptr);
    dlock_options options = dlock_options();
    int wrong = 0;
    {
        dlock::guard guard(factory, "key");
        wrong += static_cast<bool>(guard);
        wrong += dlock_why(guard.get())->code != DLOCK_UNREACHABLE;
        wrong += guard.unlock();
    }
    {
        dlock::guard guard(factory, "key", options, dlock::defer);
        std::unique_lock<dlock::guard> lock(guard, std::try_to_lock);
        wrong += lock.owns_lock();
    }
    {
        dlock::guard guard(factory, "", options, dlock::defer);
        bool thrown = false;
        try {
            guard.lock();
        } catch (const std::system_error &error) {
            thrown = error.code().value() == DLOCK_ARGUMENT;
        }
        wrong += !thrown;
    }
    dlock_close(factory);
    return wrong;
}
