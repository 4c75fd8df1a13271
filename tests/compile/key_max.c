/* A file whose handles have another size than those of the implementation it is linked with. */
#define DLOCK_KEY_MAX 64
#include "dlock.h"

int main(void)
{
    dlock_error error = {0};
    dlock_factory *factory = dlock_open("redis://127.0.0.1:1", NULL, &error);
    return (factory != NULL) + (error.code != DLOCK_ARGUMENT) + (error.text[0] == '\0');
}
