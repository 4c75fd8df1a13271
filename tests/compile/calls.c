#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "calls.h"

int main(void)
{
    return calls();
}
