/* What stands before each function is the user's to choose. */
#define DLOCK_DEF __attribute__((visibility("hidden")))
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "calls.h"

int main(void)
{
    return calls();
}
