/* offload/ahead.c - a trial of two ways, by turns: what the disk or the prompt does to both alike
 * cancels out. */
#include "offload/sl_ahead.h"

sl_ahead sl_ahead_begin(void)
{
    return (sl_ahead){ .on = true, .pays = true };
}

void sl_ahead_pass(sl_ahead *a, double seconds)
{
    if (a->pass < SL_AHEAD_TRIAL) {
        a->seconds[a->on] += seconds;
        a->on = !a->on;
    }
    a->pass++;
    if (a->pass == SL_AHEAD_TRIAL) {
        a->pays = a->seconds[1] < a->seconds[0];
        a->on = a->pays;
    }
    if (a->pass < SL_AHEAD_PERIOD) return;
    *a = (sl_ahead){ .on = true, .pays = a->pays };
}
