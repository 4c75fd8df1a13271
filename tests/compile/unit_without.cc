/* Any other file of a program. */
#include "dlock.h"

#include "calls.h"
#include "guard.h"

int main()
{
    return calls() + guards();
}
