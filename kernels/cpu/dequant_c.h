/* kernels/cpu/dequant_c.h - private to kernels: the C dequantisers, their tables, loads.
 * Every function is a sl_dequant_fn (sl_kernels.h). */
#ifndef DEQUANT_C_H
#define DEQUANT_C_H

#include "kernels/cpu/half.h"
#include "kernels/sl_kernels.h"

#include <string.h>

#define QK_K 256    /* elements of a super-block */
#define QK 32       /* elements of a legacy block */

/* dequant_c.c */
void sl_dequant_f32_c(const void *row, float *y, size_t n);
void sl_dequant_f16_c(const void *row, float *y, size_t n);
void sl_dequant_bf16_c(const void *row, float *y, size_t n);
void sl_dequant_q4_0_c(const void *row, float *y, size_t n);
void sl_dequant_q4_1_c(const void *row, float *y, size_t n);
void sl_dequant_q5_0_c(const void *row, float *y, size_t n);
void sl_dequant_q5_1_c(const void *row, float *y, size_t n);
void sl_dequant_q8_0_c(const void *row, float *y, size_t n);
void sl_dequant_q2_k_c(const void *row, float *y, size_t n);
void sl_dequant_q3_k_c(const void *row, float *y, size_t n);
void sl_dequant_q4_k_c(const void *row, float *y, size_t n);
void sl_dequant_q5_k_c(const void *row, float *y, size_t n);
void sl_dequant_q6_k_c(const void *row, float *y, size_t n);
/* dequant_iq_c.c: types with a codebook */
void sl_dequant_iq4_nl_c(const void *row, float *y, size_t n);
void sl_dequant_iq4_xs_c(const void *row, float *y, size_t n);
void sl_dequant_mxfp4_c(const void *row, float *y, size_t n);
void sl_dequant_iq2_xxs_c(const void *row, float *y, size_t n);
void sl_dequant_iq2_xs_c(const void *row, float *y, size_t n);
void sl_dequant_iq2_s_c(const void *row, float *y, size_t n);
void sl_dequant_iq3_xxs_c(const void *row, float *y, size_t n);
void sl_dequant_iq3_s_c(const void *row, float *y, size_t n);

/* grids.c: 8 levels of 2 bits (IQ2) or 4 of 4 bits (IQ3) in a row */
extern const uint16_t sl_grid_iq2_xxs[256], sl_grid_iq2_xs[512], sl_grid_iq2_s[1024];
extern const uint16_t sl_grid_iq3_xxs[256], sl_grid_iq3_s[512];

/* Blocks are packed: their fields have no alignment. */
static inline uint16_t sl_load_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t sl_load_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline float sl_load_f16(const uint8_t *p) { return sl_f16_to_f32(sl_load_u16(p)); }

#endif
