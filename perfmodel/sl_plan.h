/* perfmodel/sl_plan.h - every decision taken before a run. The engine takes nothing else.
 * Here: the plan "all in RAM, all on the CPU". Pure functions of numbers.
 * Units: bytes, positions, rows. Tested by tests/t_plan.c. */
#ifndef SL_PLAN_H
#define SL_PLAN_H

#include "perfmodel/sl_shape.h"
#include "runtime/base/sl_type.h"

typedef struct sl_plan_params {
    uint32_t n_ctx;         /* positions a sequence may reach; 0: the model's own */
    uint32_t n_seq;         /* sequences alive at once; default 1 */
    uint32_t max_rows;      /* rows of a pass; default 512 */
    uint32_t n_threads;     /* 0: physical cores */
    sl_type kv_type;        /* SL_F16 (default), SL_F32, SL_BF16 or SL_Q8_0 */
    uint64_t ram_bytes;     /* budget; 0: no limit given */
    /* instructions kernels may use: sl_cpu_from_isa's; default ~0u: all there are */
    uint32_t cpu_mask;
    /* multiply quantised weights by float32 activations: slower, for comparing */
    bool float_acts;
    bool blas;              /* sl_device_params (offload/sl_device.h); default false */
} sl_plan_params;

#define SL_KV_BLOCK_ROWS 32u    /* positions of a KV block; divides the attention key block of 64 */

typedef struct sl_plan {
    const char *mode;       /* "all in RAM, all on the CPU": the banner prints it */
    uint32_t n_ctx, n_seq, max_rows, n_threads;
    uint32_t max_logits;    /* rows of a pass whose logits are kept */
    sl_type kv_type;
    uint32_t kv_block_rows; /* SL_KV_BLOCK_ROWS */
    uint32_t n_kv_blocks;   /* of every layer: n_seq sequences of n_ctx positions fit */
    uint64_t kv_bytes;      /* all blocks of all layers */
    uint64_t scratch_bytes; /* activations and logits of a pass */
    uint64_t weights_bytes; /* mapped or resident */
    uint64_t ram_bytes;     /* the budget it was made for; 0: none */
    uint32_t cpu_mask;      /* as in the params */
    bool float_acts, blas;  /* as in the params */
} sl_plan;

SL_API sl_plan_params sl_plan_defaults(void);

/* Errors: SL_E_ARG (zero rows or sequences; another KV type, or blocks of it that heads cannot
 * hold; a context above what the model was made for is allowed), SL_E_NOMEM (the plan's bytes are
 * above ram_bytes: the message prints the floor and what would lower it). */
SL_API SL_NODISCARD sl_status sl_plan_make(sl_ctx *ctx, const sl_shape *shape,
                                           const sl_plan_params *p, sl_plan *ret);

#endif
