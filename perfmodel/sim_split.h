/* perfmodel/sim_split.h - the simulation of a pass that CPU and accelerator share. Private to
 * perfmodel/. */
#ifndef SIM_SPLIT_H
#define SIM_SPLIT_H

#include "perfmodel/split.h"

typedef struct sim_split sim_split;

/* Room that it takes; init fills it. in and steps [n_steps] must outlive it. */
size_t sim_split_bytes(const sl_forecast_in *in);
sim_split *sim_split_init(void *room, const sl_forecast_in *in, const sl_step *steps,
                          uint32_t n_steps);
/* Nothing is on its way. */
void sim_split_begin(sim_split *x);
/* As sim_pass (sim.h). */
double sim_split_pass(sim_split *x, const sl_rows *rows, uint32_t n, double times,
                      sl_timeline *line, sl_phase *f);

/* What stage 1 needs, too. */
const split_env *sim_split_env(const sim_split *x);
/* As sim_bound_s. */
double sim_split_bound_s(const sim_split *x, const split_sum *weights, const sl_rows *rows,
                         uint32_t n);

#endif
