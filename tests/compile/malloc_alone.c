/* Memory from one place that goes back to another. */
#include <stdlib.h>
#define DLOCK_MALLOC(size) malloc(size)
#define DLOCK_IMPLEMENTATION
#include "dlock.h"
