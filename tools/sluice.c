/* tools/sluice.c - the binary: one table of commands. */
#include <stdio.h>

int main(void)
{
    puts("sluice " SL_VERSION);
    return 0;
}
