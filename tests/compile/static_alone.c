/* Without the implementation every function would be declared static and never defined. */
#define DLOCK_STATIC
#include "dlock.h"
