/* Memory from one place that goes back to another. */
#include <stdlib.h>
#define DLOCK_FREE(memory) free(memory)
#define DLOCK_IMPLEMENTATION
#include "dlock.h"
