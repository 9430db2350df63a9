/* perfmodel/sl_bound.h - how fast a pass can be at most: its bytes and operations from the pipe,
 * over what a machine reads and multiplies. All weights and keys come from RAM once a pass;
 * whatever overlaps overlaps fully, so the slowest resource alone counts (roofline: Williams,
 * Waterman, Patterson, CACM 52(4), 2009). A model that stays in a cache between passes can be
 * faster.
 * Where experts are streamed from disk a token cannot have its misses before its router spoke: the
 * causal bound.
 * Pure functions of numbers. Threads: any. Units: bytes, seconds; an integer operation is an 8-bit
 * multiply-add, a float multiply-add is 2 flops. Tested by tests/t_bound.c. */
#ifndef SL_BOUND_H
#define SL_BOUND_H

#include "perfmodel/sl_machine.h"
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

/* Positions that rows first to first + n_rows - 1 attend to, their own included, summed over the
 * rows. window 0: all positions. */
SL_API double sl_bound_attended(uint32_t first, uint32_t n_rows, uint32_t window);

/* The largest of the three times; ret_limit (may be NULL) says whose it is. bytes_s > 0. */
SL_API double sl_bound_s(const sl_work *work, const sl_rates *rates, sl_limit *ret_limit);

/* n_gen tokens drawn one after another behind an empty context and one token: tokens/s. */
SL_API double sl_bound_decode(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                              uint32_t n_gen, const sl_rates *rates);
/* A prompt of n tokens in passes of at most max_rows rows, the last row's logits included:
 * tokens/s. experts as in sl_pass, the same for every pass. */
SL_API double sl_bound_prompt(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                              uint32_t n, uint32_t max_rows, double experts, const sl_rates *rates);

/* ---- weights streamed from disk ---- */

typedef struct sl_disk_use {
    const sl_machine *machine;  /* its disk */
    uint32_t request_bytes;     /* of one read at most; 0: any */
    uint32_t depth;             /* reads in flight at most; 0: any */
    /* What each keeps of its speed while cores read memory and the disk writes it; 0: all. */
    double cpu_keeps, disk_keeps;
} sl_disk_use;

/* Seconds of computing for cpu_s, memory_s of which wait for DRAM, and of reads for disk_s, both
 * begun at once: what the longer of the two takes, slowed down by the other one; one behind the
 * other where that is sooner. Nothing kept back: the longer of the two. */
SL_API double sl_bound_together(double cpu_s, double memory_s, double disk_s,
                                const sl_disk_use *disk);

/* Seconds in which so many experts of a layer arrive that all are asked for at once: three slices
 * each, cut at request_bytes, all in flight as far as depth allows, at the disk's rate for reads of
 * that size and number; at least its latency for every depth's worth of requests, once in all. 0
 * where the disk was not measured. */
SL_API double sl_bound_read_s(const sl_layer_shape *layer, double n_missing,
                              const sl_disk_use *disk);

/* n_gen tokens drawn one after another behind `first` positions, with experts missing as counted
 * (misses: of those passes, or of others like them): tokens/s. Seconds of a token, DESIGN.md 6:
 *     sum over layers of D_l + max(C_l, R_l), as sl_bound_together has it
 * D_l: attention and router, the head once a pass, over DRAM and the arithmetic; C_l: the experts
 * that are there and the shared one (no read keeps them waiting), from DRAM; R_l: sl_bound_read_s
 * of the experts that are not. At least what dense weights that do not stay in RAM
 * (plan->n_dense_layers) and all missing experts together take at that disk's best. A read that
 * left before the router spoke and has not ended counts as missing whole, so a run that guesses
 * well may beat the bound. Without a miss, and where DRAM binds, it is sl_bound_decode's. */
SL_API double sl_bound_causal(const sl_shape *shape, const sl_plan *plan, const sl_step *steps,
                              uint32_t n_steps, uint32_t first, uint32_t n_gen,
                              const sl_misses *misses, const sl_rates *rates,
                              const sl_disk_use *disk);

#endif
