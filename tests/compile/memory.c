/* Both macros, so that memory comes from here and goes back here. */
#include <stddef.h>

static void *take(size_t size);
static void give_back(void *memory);

#define DLOCK_MALLOC(size) take(size)
#define DLOCK_FREE(memory) give_back(memory)
#define DLOCK_IMPLEMENTATION
#include "dlock.h"

#include "calls.h"

#include <stdlib.h>

static int taken;
static int given_back;

static void *take(size_t size)
{
    taken++;
    return malloc(size);
}

static void give_back(void *memory)
{
    given_back += memory != NULL;
    free(memory);
}

int main(void)
{
    int wrong = calls();
    return wrong + (taken == 0) + (taken != given_back);
}
