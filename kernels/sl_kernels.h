/* kernels/sl_kernels.h - the kernel table: arithmetic on the caller's buffers, one set per ISA.
 * Must not allocate, block, do I/O or log. Threads: pure functions. Units: elements.
 * Tested by tests/t_dequant.c (bit for bit against the gguf package) and tests/t_kernels.c. */
#ifndef SL_KERNELS_H
#define SL_KERNELS_H

#include "runtime/base/sl_type.h"

/* n elements (a multiple of the type's block) of a row to float32. No read past the row. */
typedef void (*sl_dequant_fn)(const void *row, float *y, size_t n);

typedef struct sl_kernels {
    const char *isa;                    /* "c": shown by `sluice inspect`, capped by `--isa` */
    sl_dequant_fn dequant[SL_N_TYPES];  /* NULL: a type that cannot be multiplied by */
} sl_kernels;

/* Pure: a mask of 0 gives the C reference. */
SL_API void sl_kernels_init(sl_kernels *k, unsigned cpu);

static inline float sl_f16_to_f32(uint16_t h)   /* exact; NaN payloads kept */
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7fff;
    union { uint32_t u; float f; } r;
    if (mag >= 0x7c00) r.u = sign | 0x7f800000 | ((mag & 0x3ff) << 13);
    else if (mag >= 0x400) r.u = sign | ((mag << 13) + 0x38000000);
    else { r.f = (float)mag * 0x1p-24f; r.u |= sign; }
    return r.f;
}

static inline float sl_bf16_to_f32(uint16_t h)
{
    union { uint32_t u; float f; } r = { .u = (uint32_t)h << 16 };
    return r.f;
}

#endif
