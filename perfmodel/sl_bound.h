/* perfmodel/sl_bound.h - how fast a pass can be at most: its bytes and operations from the pipe,
 * over what a machine reads and multiplies. All weights and keys come from RAM once a pass;
 * whatever overlaps overlaps fully, so the slowest resource alone counts (roofline: Williams,
 * Waterman, Patterson, CACM 52(4), 2009). A model that stays in a cache between passes can be
 * faster.
 * Pure functions of numbers. Threads: any. Units: bytes, seconds; an integer operation is an 8-bit
 * multiply-add, a float multiply-add is 2 flops. Tested by tests/t_bound.c. */
#ifndef SL_BOUND_H
#define SL_BOUND_H

#include "perfmodel/sl_pipe.h"

/* Rows of one sequence at positions first to first + n_rows - 1. */
typedef struct sl_pass {
    uint32_t first, n_rows;
    bool logits;                /* the head runs, on one row */
    /* Distinct experts of a layer that has some, on average; 0: what even routing expects,
     * E * (1 - (1 - n_used/E)^n_rows), n_used for one row. */
    double experts;
} sl_pass;

typedef struct sl_work {
    /* weights once, keys and values of earlier positions once, new ones written */
    double bytes;
    double int_ops;             /* on quantised weights */
    double flops;               /* on float weights, keys and values */
} sl_work;

typedef struct sl_rates {
    double bytes_s;             /* DRAM reads */
    double int_ops_s, flops_s;  /* 0: unknown, which bounds nothing */
} sl_rates;

typedef enum sl_limit { SL_LIMIT_DRAM, SL_LIMIT_INT8, SL_LIMIT_FLOAT } sl_limit;

/* steps [n_steps]: sl_pipe_build of that shape. */
SL_API sl_work sl_bound_work(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                             const sl_pass *pass);

/* The largest of the three times; ret_limit (may be NULL) says whose it is. bytes_s > 0. */
SL_API double sl_bound_s(const sl_work *work, const sl_rates *rates, sl_limit *ret_limit);

/* n_gen tokens drawn one after another behind an empty context and one token: tokens/s. */
SL_API double sl_bound_decode(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                              uint32_t n_gen, const sl_rates *rates);
/* A prompt of n tokens in passes of at most max_rows rows, the last row's logits included:
 * tokens/s. experts as in sl_pass, the same for every pass. */
SL_API double sl_bound_prompt(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                              uint32_t n, uint32_t max_rows, double experts, const sl_rates *rates);

#endif
