/* Two files of one program, each with an implementation that nobody else sees: the other. */
#define DLOCK_STATIC
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "calls.h"

int other_calls(void);

int other_calls(void)
{
    return calls();
}
