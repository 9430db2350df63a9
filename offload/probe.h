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

/* ---- the engine's stages on noise (probe_engine.c) ---- */

typedef struct probe_engine probe_engine;

enum { PROBE_MIN_WEIGHTS = 64 << 20 };
/* Pools and devices for each thread count, and noise in `weights`, which stays the caller's: at
 * least PROBE_MIN_WEIGHTS bytes, on a page, and as many as the last cache does not hold. Errors:
 * SL_E_ARG (more threads than the machine has), SL_E_NOMEM, SL_E_DEVICE. The caller owns *ret. */
SL_NODISCARD sl_status probe_engine_create(sl_ctx *ctx, const uint32_t *threads,
                                           uint32_t n_threads, char *weights, size_t bytes,
                                           probe_engine **ret);
/* *e may be NULL, and is NULL afterwards */
void probe_engine_destroy(probe_engine **e);

typedef enum probe_what {
    PROBE_GEMM,                 /* `experts` on `rows` rows each */
    PROBE_STAGE, PROBE_STAGE2,  /* a stage of one row with a little work, and with twice that */
    PROBE_ELEM,                 /* a stage of some rows without products worth mentioning */
    PROBE_DECODE, PROBE_PREFILL,    /* attention */
    PROBE_N_WHATS
} probe_what;
typedef struct probe_point {
    probe_what what;
    uint32_t at;                /* index of the thread count */
    sl_type type;
    uint32_t rows;              /* gemm */
} probe_point;

/* Seconds of one call of the stage: the mean of the calls that fit in about `seconds`, one at
 * least. */
SL_NODISCARD sl_status probe_engine_visit(probe_engine *e, const probe_point *p, double seconds,
                                          double *ret);
/* Weights that each of the rows of a PROBE_GEMM is multiplied by. */
double probe_engine_weights(void);
/* Costs from the seconds of the points other than PROBE_GEMM. */
void probe_engine_cost(const double s[PROBE_N_WHATS], sl_machine_cost *ret);

/* ---- their curves (probe_curves.c) ---- */

/* m's gemms and costs, but for the co-run, at each of the thread counts (ascending), in about so
 * many seconds. At most SL_MACHINE_COSTS counts, and SL_MACHINE_GEMMS curves in all. Errors: as
 * probe_engine_create. */
SL_NODISCARD sl_status probe_curves(sl_ctx *ctx, const sl_probe_params *p, const uint32_t *threads,
                                    uint32_t n_threads, char *weights, size_t bytes,
                                    double seconds, sl_machine *m);

#endif
