/* kernels/sl_kernels.h - the kernel table: arithmetic on the caller's buffers, one set per ISA.
 * Must not allocate, block, do I/O or log. Threads: pure functions. Units: elements.
 * Numbers: a kernel accumulates in one fixed order per ISA whatever the tile, thread or batch.
 * Tested by tests/t_dequant.c (bit for bit against the gguf package) and tests/t_kernels.c. */
#ifndef SL_KERNELS_H
#define SL_KERNELS_H

#include "kernels/sl_ops.h"

enum { SL_CPU_AVX2 = 1, SL_CPU_AVX512 = 2 };    /* AVX2 with FMA and F16C; AVX-512 F BW VL DQ */

/* n elements (a multiple of the type's block) of a row to float32. No read past the row. */
typedef void (*sl_dequant_fn)(const void *row, float *y, size_t n);

typedef struct sl_kernels {
    const char *isa;                    /* "c", "avx2", ...: shown by `sluice inspect`, capped by `--isa` */
    sl_dequant_fn dequant[SL_N_TYPES];  /* NULL: a type that cannot be multiplied by */
} sl_kernels;

SL_API unsigned sl_cpu_detect(void);    /* SL_CPU_* bits of this CPU */
/* Pure: a mask of 0 gives the C reference. */
SL_API void sl_kernels_init(sl_kernels *k, unsigned cpu);

/* Select and weigh experts for one row from the router's logits [n_expert] (bias included).
 * ids [n_used] in selection order (score descending, lower index first on ties); w [n_used].
 * scratch: n_expert + n_group floats at least (2 * n_expert suffice). */
SL_API void sl_route_row(const sl_routing *r, const float *logits, float *scratch,
                         uint32_t *ret_id, float *ret_w);

#endif
