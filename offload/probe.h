/* offload/probe.h - the loops and stages that a probe times. Private to offload/. */
#ifndef PROBE_H
#define PROBE_H

#include "offload/sl_probe.h"

/* `rounds` rounds of the loop of one peak, on the calling thread. Needs the instructions. */
void probe_peak_loop(sl_peak peak, uint64_t rounds);
uint32_t probe_peak_ops(sl_peak peak);      /* operations of a round; 0: not on this kind of CPU */

enum { PROBE_N_READS = 6 };     /* ways to read: 1, 2, 4 streams; without and with prefetch */
/* Reads n bytes, a multiple of PROBE_READ_UNIT at a multiple of 64; all loads are made. */
enum { PROBE_READ_UNIT = 4096 };
void probe_read_loop(uint32_t way, const void *p, size_t n);

enum { PROBE_MIN_WEIGHTS = 64 << 20 };
/* Bytes that no last cache holds: eight times as many, 256 MiB at least, half of free memory at
 * most, but always PROBE_MIN_WEIGHTS. */
size_t probe_buffer_bytes(void);

/* ---- the engine's stages on noise (probe_engine.c) ---- */

typedef struct probe_engine probe_engine;

/* Of the layer whose stages run; zeros: the default's. */
typedef struct probe_dims { uint32_t d_model, d_expert; } probe_dims;

/* Pools and devices for each thread count, and noise in `weights`, which stays the caller's: at
 * least PROBE_MIN_WEIGHTS bytes, on a page, and as many as the last cache does not hold. dims are
 * taken as sl_probe_params says. Errors: SL_E_ARG (more threads than the machine has), SL_E_NOMEM,
 * SL_E_DEVICE. The caller owns *ret. */
SL_NODISCARD sl_status probe_engine_create(sl_ctx *ctx, const uint32_t *threads,
                                           uint32_t n_threads, probe_dims dims, char *weights,
                                           size_t bytes, probe_engine **ret);
/* *e may be NULL, and is NULL afterwards */
void probe_engine_destroy(probe_engine **e);

typedef enum probe_what {
    PROBE_GEMM,                 /* `experts` on `rows` rows each */
    PROBE_STAGE, PROBE_STAGE3,  /* a stage of one row with a little work, and with thrice that */
    PROBE_ELEM,                 /* norm and quantising of many rows */
    PROBE_DECODE, PROBE_DECODE1, PROBE_PREFILL,     /* attention; 1: one query for each key */
    PROBE_CALL1, PROBE_CALL8,   /* `experts` of one and of eight, on 64 rows each */
    PROBE_N_WHATS
} probe_what;
typedef struct probe_point {
    probe_what what;
    uint32_t at;                /* index of the thread count */
    sl_type type;
    uint32_t rows;              /* gemm */
} probe_point;

/* One call of the stage, behind a visit with this thread count. */
SL_NODISCARD sl_status probe_engine_call(probe_engine *e, const probe_point *p);
/* Seconds of one call of the stage: the mean of the calls that fit in about `seconds`, one at
 * least. */
SL_NODISCARD sl_status probe_engine_visit(probe_engine *e, const probe_point *p, double seconds,
                                          double *ret);
/* Costs from the seconds of the points other than PROBE_GEMM; neither threads nor the co-run. */
void probe_engine_cost(const probe_engine *e, const double s[PROBE_N_WHATS],
                       sl_machine_cost *ret);
/* Multiply-adds/s of a PROBE_GEMM that took s, without what c says it takes beside them. */
double probe_engine_ops_s(const probe_engine *e, const sl_machine_cost *c, double s,
                          uint32_t rows);

/* ---- their curves (probe_curves.c) ---- */

/* m's gemms and costs, but for the co-run, at each of the thread counts (ascending), in about so
 * many seconds. At most SL_MACHINE_COSTS counts, and SL_MACHINE_GEMMS curves in all. Errors: as
 * probe_engine_create. */
SL_NODISCARD sl_status probe_curves(sl_ctx *ctx, const sl_probe_params *p, const uint32_t *threads,
                                    uint32_t n_threads, char *weights, size_t bytes,
                                    double seconds, sl_machine *m);

#endif
