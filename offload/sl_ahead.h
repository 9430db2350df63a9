/* offload/sl_ahead.h - whether looking ahead pays, found out by trying. Passes take turns with and
 * without it for a while, then all go the way that was quicker, then they take turns again: what
 * paid with a cold cache may not with a warm one. Policy: reads no clock, the caller says how long
 * a pass took. Threads: plain data. Units: seconds, passes. Tested by tests/t_ahead.c. */
#ifndef SL_AHEAD_H
#define SL_AHEAD_H

#include "runtime/base/sl_base.h"

enum {
    SL_AHEAD_TRIAL = 64,        /* passes that take turns */
    SL_AHEAD_PERIOD = 1024      /* passes from one trial to the next: 3 % go the slower way */
};

typedef struct sl_ahead {
    uint32_t pass;              /* of the period */
    double seconds[2];          /* of the trial's passes: without, with */
    bool on;                    /* the pass at hand */
    bool pays;                  /* the last trial's result; true before the first one ends */
} sl_ahead;

SL_API sl_ahead sl_ahead_begin(void);
/* A pass took so long; a->on says what the next one does. */
SL_API void sl_ahead_pass(sl_ahead *a, double seconds);

#endif
