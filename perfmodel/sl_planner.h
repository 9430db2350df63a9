/* perfmodel/sl_planner.h - searches plans: which decisions make this load fastest on this machine.
 * Candidates are bounded by stage 1, the best of them simulated by stage 2; ties go to the simpler
 * plan. Pure functions of numbers. Tested by tests/t_planner.c. */
#ifndef SL_PLANNER_H
#define SL_PLANNER_H

#include "perfmodel/sl_forecast.h"

/* What the caller decided; the rest is searched. */
typedef struct sl_planner_params {
    sl_plan_params base;        /* budget, context, sequences, KV type: never changed */
    bool fix_threads, fix_rows, fix_ahead, fix_reads;   /* base's values are taken as they are */
    sl_load load;               /* what the time is minimised of */
} sl_planner_params;

/* Tokens/s per unit more of a resource, everything planned anew. */
typedef struct sl_gain {
    sl_resource on;             /* what limits; capacity counts as its link (RAM: SL_RES_DISK) */
    char what[32];              /* "+4 GiB RAM", "+1 GB/s disk" */
    double prompt_tok_per_s, decode_tok_per_s;  /* gained */
} sl_gain;

enum { SL_PLANNER_GAINS = 8, SL_PLANNER_WHY = 12 };

typedef struct sl_choice {
    sl_plan_params params;      /* what sl_plan_make made the plan of */
    sl_plan plan;
    sl_forecast bound, forecast;        /* stage 1, stage 2 */
    uint32_t n_tried, n_simulated;
    uint32_t n_why;             /* one line each: a knob, its value, the reason */
    char why[SL_PLANNER_WHY][160];
    uint32_t n_gains;
    sl_gain gains[SL_PLANNER_GAINS];
} sl_choice;

/* gains: also plan the machine with more of each. Errors: those of sl_plan_make for the smallest
 * candidate (a budget below the floor), SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_planner_run(sl_ctx *ctx, const sl_machine *m,
                                             const sl_shape *shape, const sl_miss_model *miss,
                                             const sl_planner_params *p, bool gains,
                                             sl_choice *ret);

#endif
