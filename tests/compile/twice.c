/* Included again: without the macro, with it, and with it once more. */
#include "dlock.h"
#include "dlock.h"
#define DLOCK_IMPLEMENTATION
#include "dlock.h"
#include "dlock.h"

#include "calls.h"

int main(void)
{
    return calls();
}
