/* tests/t_ahead.c - passes take turns, the quicker way is kept, and it is tried again later. */
#include "offload/sl_ahead.h"
#include "tests/t.h"

/* One period in which a pass takes with_s or without_s, and a drift that both see. Returns how many
 * passes looked ahead. */
static uint32_t period(sl_ahead *a, double with_s, double without_s, double drift)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < SL_AHEAD_PERIOD; i++) {
        n += a->on;
        sl_ahead_pass(a, (a->on ? with_s : without_s) + drift * i);
    }
    return n;
}

int main(void)
{
    const uint32_t half = SL_AHEAD_TRIAL / 2, rest = SL_AHEAD_PERIOD - SL_AHEAD_TRIAL;
    sl_ahead a = sl_ahead_begin();
    t_begin();
    T_CHECK(a.on && a.pays, "it begins with looking ahead");
    T_CHECK(period(&a, 0.9, 1, 0) == half + rest, "it pays: all but half of the trial");
    T_CHECK(a.pays && a.on, "the next trial begins with it too");
    T_CHECK(period(&a, 1.01, 1, 0) == half, "it does not: half of the trial alone");
    T_CHECK(!a.pays, "and it says so");
    /* ten times the gain as drift over the trial: turns share it, but for one pass's worth */
    T_CHECK(period(&a, 0.9, 1, 1.0 / SL_AHEAD_TRIAL) == half + rest, "a drift is no gain");
    T_CHECK(period(&a, 1, 1, 0) == half, "equal is not quicker");
    return t_end();
}
