/* perfmodel/sim.h - the simulation of a pass, for those that know which passes there are. Private
 * to perfmodel/. */
#ifndef SIM_H
#define SIM_H

#include "perfmodel/split.h"

typedef struct sim sim;

/* in must outlive it; free() ends it. Errors: SL_E_NOMEM. */
sl_status sim_create(sl_ctx *ctx, const sl_forecast_in *in, sim **ret);
/* Nothing is on its way but the first sections; slots are empty, or hold what passes leave. */
void sim_begin(sim *s, bool settled);
/* Runs a pass and adds `times` of it to f. Returns its seconds. line may be NULL. */
double sim_pass(sim *s, const sl_rows *rows, uint32_t n, double times, sl_timeline *line,
                sl_phase *f);
/* The least that a pass takes, nothing waiting for anything. Its weights' products and stages, and
 * the bytes that settled slots do not hold, by the number of rows alone; where an accelerator
 * shares the pass, each resource's part. */
typedef struct sim_least {
    double compute_s, disk_bytes;
    split_sum shared;
} sim_least;
sim_least sim_weights(sim *s, double n_rows);
/* Together with its attention and head. */
double sim_bound_s(sim *s, const sim_least *weights, double disk_bytes_s, const sl_rows *rows,
                   uint32_t n);

#endif
