#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "calls.h"
#include "guard.h"

int main()
{
    return calls() + guards();
}
