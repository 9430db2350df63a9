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

/* Cost as a function of the pass: `bytes` once, `row_bytes` a row, `expert_bytes` per distinct
 * expert that the router chose; `row_flops` a row (n_used experts included), `ctx_flops` and
 * `ctx_bytes` a row and position that the row attends to. */
typedef struct sl_step {
    sl_step_kind kind;
    uint32_t layer;             /* SL_STEP_NONE: belongs to no layer */
    uint32_t needs[SL_STEP_MAX_NEEDS];  /* earlier steps of this pass, SL_STEP_NONE where unused */
    uint64_t bytes, row_bytes, expert_bytes, ctx_bytes;
    uint64_t row_flops, ctx_flops;
    uint64_t row_int_flops;     /* of row_flops: multiplied as 8-bit integers */
} sl_step;

/* Steps of one pass: at most 2 + 5 * n_layer. */
SL_API uint32_t sl_pipe_max_steps(const sl_shape *shape);

/* Writes the steps in the order in which the driver submits them; every need stands before its
 * step.
 * The caller owns steps [sl_pipe_max_steps]. Returns their number. */
SL_API uint32_t sl_pipe_build(const sl_shape *shape, const sl_plan *plan, sl_step *steps);

SL_API const char *sl_step_name(sl_step_kind kind);     /* "qkv" */

#endif
