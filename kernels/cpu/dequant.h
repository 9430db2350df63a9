/* kernels/cpu/dequant.h - the dequantisers, compiled once per set (cpu.h), their tables and loads.
 * Private to kernels. Every function is a sl_dequant_fn (sl_kernels.h). */
#ifndef DEQUANT_H
#define DEQUANT_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/half.h"

#include <string.h>

#define DEQUANT(name) KX_NAME(sl_dequant_##name, KX_SET)   /* sl_dequant_q4_k_avx2 */

/* In front of a loop with a constant count: gcc must not unroll it, else its vectoriser never sees
 * it. */
#ifdef __clang__
#define KX_ROLLED
#else
#define KX_ROLLED _Pragma("GCC unroll 1")
#endif

#define QK_K 256    /* elements of a super-block */
#define QK 32       /* elements of a legacy block */

/* dequant.c */
void DEQUANT(f32)(const void *row, float *y, size_t n);
void DEQUANT(f16)(const void *row, float *y, size_t n);
void DEQUANT(bf16)(const void *row, float *y, size_t n);
void DEQUANT(q4_0)(const void *row, float *y, size_t n);
void DEQUANT(q4_1)(const void *row, float *y, size_t n);
void DEQUANT(q5_0)(const void *row, float *y, size_t n);
void DEQUANT(q5_1)(const void *row, float *y, size_t n);
void DEQUANT(q8_0)(const void *row, float *y, size_t n);
void DEQUANT(q2_k)(const void *row, float *y, size_t n);
void DEQUANT(q3_k)(const void *row, float *y, size_t n);
void DEQUANT(q4_k)(const void *row, float *y, size_t n);
void DEQUANT(q5_k)(const void *row, float *y, size_t n);
void DEQUANT(q6_k)(const void *row, float *y, size_t n);
/* dequant_iq.c: types with a codebook */
void DEQUANT(iq4_nl)(const void *row, float *y, size_t n);
void DEQUANT(iq4_xs)(const void *row, float *y, size_t n);
void DEQUANT(mxfp4)(const void *row, float *y, size_t n);
void DEQUANT(iq2_xxs)(const void *row, float *y, size_t n);
void DEQUANT(iq2_xs)(const void *row, float *y, size_t n);
void DEQUANT(iq2_s)(const void *row, float *y, size_t n);
void DEQUANT(iq3_xxs)(const void *row, float *y, size_t n);
void DEQUANT(iq3_s)(const void *row, float *y, size_t n);

/* grids.c: 8 levels of 2 bits (IQ2) or 4 of 4 bits (IQ3) in a row */
extern const uint16_t sl_grid_iq2_xxs[256], sl_grid_iq2_xs[512], sl_grid_iq2_s[1024];
extern const uint16_t sl_grid_iq3_xxs[256], sl_grid_iq3_s[512];

/* Blocks are packed: their fields have no alignment. */
static inline uint16_t sl_load_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t sl_load_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline float sl_load_f16(const uint8_t *p) { return sl_f16_to_f32(sl_load_u16(p)); }

#endif
