/* perfmodel/sl_planner.h - searches plans: which decisions make this load fastest on this machine.
 * One knob after another, until none changes: a value whose bound (stage 1) is no better than the
 * best simulation so far is passed over, the others are simulated (stage 2). Plans within 1 % of
 * the best count as equal, and the one with fewer differences from the caller's wins.
 * Pure functions of numbers. Tested by tests/t_planner.c. */
#ifndef SL_PLANNER_H
#define SL_PLANNER_H

#include "perfmodel/sl_queue.h"

/* What the caller decided; the rest is searched. */
typedef struct sl_planner_params {
    /* budget, context, sequences, KV type, accelerator: never changed, nor wishes about it that are
     * not SL_PLAN_AUTO; the rest is where the search begins. n_threads 0: the machine's cores, less
     * those of an emulated accelerator; read_depth and read_bytes: not 0 where reads are fixed */
    sl_plan_params base;
    bool fix_threads, fix_rows, fix_ahead, fix_reads, fix_dense;    /* base's values are kept */
    /* base is kept where the best plan takes no less than 1 - keep of its time: forecasts err.
     * 0.05 is a good value. */
    double keep;
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
    /* seconds of the load: of this plan, of base's, of the best that was found. The last never
     * rises when a resource grows. */
    double seconds, base_s, best_s;
    uint32_t n_tried, n_simulated;
    uint32_t n_why;             /* one line each: a knob, its value, the next best one */
    char why[SL_PLANNER_WHY][208];
    uint32_t n_gains;
    sl_gain gains[SL_PLANNER_GAINS];
} sl_choice;

/* gains: also plan the machine with more of each. Errors: those of sl_plan_make for base (a budget
 * below the floor), SL_E_ARG (an accelerator that the machine does not have), SL_E_UNSUPPORTED (an
 * accelerator, and not all weights fit RAM: nothing here knows of both), SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_planner_run(sl_ctx *ctx, const sl_machine *m,
                                             const sl_shape *shape, const sl_miss_model *miss,
                                             const sl_planner_params *p, bool gains,
                                             sl_choice *ret);

/* ---- many sequences ---- */

enum { SL_PLANNER_MAX_SEQ = 512, SL_PLANNER_MAX_ROWS = 2048 };

/* What was tried beside the choice. */
typedef struct sl_queue_try {
    uint32_t n_seq, max_rows;
    uint64_t kv_positions;
    double seconds;
} sl_queue_try;
enum { SL_PLANNER_TRIES = 48 };

typedef struct sl_queue_choice {
    sl_plan_params params;
    sl_plan plan;
    /* stage 1: any number of sequences in this budget, ages mixed or all of one age, and at least
     * what this very schedule could reach */
    sl_lens_bound bound;
    sl_queue_forecast forecast; /* stage 2 of this plan */
    uint32_t n_tries;
    sl_queue_try tries[SL_PLANNER_TRIES];       /* each as it was simulated */
} sl_queue_choice;

/* How many sequences at once, in room for how many positions, in passes of how many rows: what
 * takes the queue least. Begins with what stage 1 finds best and goes on to neighbours as long as
 * stage 2 gains 1 %. p->base: as above, but its n_seq (0: searched), kv_positions (0: searched) and
 * max_rows (p->fix_rows); its n_ctx holds every prompt. p->load and p->keep are not used.
 * Errors: those of sl_plan_make for one sequence, SL_E_ARG and SL_E_UNSUPPORTED as above,
 * SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_planner_queue(sl_ctx *ctx, const sl_machine *m,
                                               const sl_shape *shape, const sl_miss_model *miss,
                                               const sl_planner_params *p, const sl_workload *queue,
                                               sl_queue_choice *ret);

/* The machine with `factor` times as much of a resource, factor >= 1: SL_RES_DISK (bytes/s of
 * every measured point), SL_RES_DRAM, SL_RES_CPU, SL_RES_H2D (links of its cards, both ways). A
 * measured product is then as fast as what binds it lets it be: its other part is the best rate of
 * its curve (arithmetic) or DRAM's own. */
SL_API void sl_planner_grow(sl_machine *m, sl_resource on, double factor);

#endif
