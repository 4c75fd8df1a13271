/* Any other file of a program. */
#include "dlock.h"

#include "calls.h"

int main(void)
{
    return calls();
}
