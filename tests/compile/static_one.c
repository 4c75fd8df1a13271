/* Two files of one program, each with an implementation that nobody else sees: one of the two. */
#define DLOCK_STATIC
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "calls.h"

int other_calls(void);

int main(void)
{
    return calls() + other_calls();
}
