/* perfmodel/sl_pipe.h - the ordered steps of a pass that a plan implies. The executor walks this
 * very list and fills in the router's answer; a simulator walks it and fills in a miss-curve model.
 * Pure functions of numbers. Units: bytes, flops. Tested by tests/t_pipe.c. */
#ifndef SL_PIPE_H
#define SL_PIPE_H

#include "perfmodel/sl_plan.h"

typedef enum sl_step_kind {
    SL_STEP_EMBED, SL_STEP_QKV, SL_STEP_ATTEND, SL_STEP_POST, SL_STEP_ROUTE,
    SL_STEP_EXPERTS,        /* routed experts, or the dense FFN; the shared expert too */
    SL_STEP_HEAD
} sl_step_kind;

#define SL_STEP_MAX_NEEDS 2
#define SL_STEP_NONE UINT32_MAX

/* Rows of a pass that a step is for. */
typedef enum sl_step_rows { SL_ROWS_ALL, SL_ROWS_DECODE, SL_ROWS_PROMPT } sl_step_rows;

/* Cost as a function of the pass: `bytes` once, `row_bytes` a row, `expert_bytes` per distinct
 * expert that the router chose; `row_flops` a row (n_used experts included), `ctx_flops` and
 * `ctx_bytes` a row and position that the row attends to.
 *
 * With an accelerator (plan->split) a pass's rows are cut into n_lanes lanes, and each lane walks
 * the steps. The driver submits a lane's steps until it comes to one that `gives_way`; then it
 * serves the other lane as far, comes back, and waits for what that step needs. Steps on the device
 * run there in order of submission, beside the CPU's, and the driver waits for the router's answer
 * before it submits `experts`. Weights are sent up beside both, in the order of the steps and once
 * a pass for all lanes; a step starts when its own are there. That is send_bytes, and for experts
 * what the split's n_stay, send_rows and send_all_rows say of expert_bytes. Experts that the CPU
 * computes cost, beside that, d_model floats a row down, and as many up for each of their rows. */
typedef struct sl_step {
    sl_step_kind kind;
    uint32_t layer;             /* SL_STEP_NONE: belongs to no layer */
    sl_where on;                /* experts: as far as the CPU does not take some */
    sl_step_rows rows;
    bool gives_way;
    uint64_t send_bytes;        /* of `bytes`, sent up in each pass */
    /* Behind the step its results cross the link, to the side that does not compute it: so many
     * bytes a row. On the head step: a row whose logits are wanted; where the CPU computes it, its
     * input before it. */
    uint64_t link_row_bytes;
    uint32_t needs[SL_STEP_MAX_NEEDS];  /* earlier steps of this pass, SL_STEP_NONE where unused */
    uint64_t bytes, row_bytes, expert_bytes, ctx_bytes;
    uint64_t row_flops, ctx_flops;
    uint64_t row_int_flops;     /* of row_flops: multiplied as 8-bit integers */
} sl_step;

/* Steps of one pass: at most 2 + 6 * n_layer. */
SL_API uint32_t sl_pipe_max_steps(const sl_shape *shape);

/* Writes the steps in the order in which the driver submits them; every need stands before its
 * step.
 * The caller owns steps [sl_pipe_max_steps]. Returns their number. */
SL_API uint32_t sl_pipe_build(const sl_shape *shape, const sl_plan *plan, sl_step *steps);

SL_API const char *sl_step_name(sl_step_kind kind);     /* "qkv" */

#endif
