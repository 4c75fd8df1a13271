/* The one file of a program that gets the code. */
#define DLOCK_IMPLEMENTATION
#include "dlock.h"
