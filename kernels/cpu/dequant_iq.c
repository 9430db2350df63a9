/* kernels/cpu/dequant_iq.c - blocks to float32: types whose values come from a codebook. IQ4
 * and MXFP4 look single values up; IQ2 and IQ3 whole rows of 8 or 4 magnitudes (grids.c), with
 * signs beside them. Rounding is that of the `gguf` package: the scale is formed first, then
 * multiplied by the magnitude (a sign changes no rounding). */
#include "kernels/cpu/dequant.h"

static const int8_t iq4_levels[16] = {      /* IQ4_NL and IQ4_XS: denser near zero */
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
};
/* MXFP4: sign, two bits exponent, one mantissa; doubled */
static const int8_t e2m1_levels[16] = {
    0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12,
};
static const uint8_t iq2_levels[4] = { 8, 25, 43, 0 };
static const uint8_t iq3_xxs_levels[8] = { 4, 12, 20, 28, 36, 44, 52, 62 };

/* 16 bytes: low nibbles are elements 0..15, high ones 16..31. */
static inline void nibbles(const uint8_t *restrict q, const int8_t *levels, float d,
                           float *restrict y)
{
    KX_ROLLED for (int i = 0; i < 16; i++) {
        y[i] = d * (float)levels[q[i] & 15];
        y[16 + i] = d * (float)levels[q[i] >> 4];
    }
}

/* IQ4_NL: f16 d | 16 bytes q; y = d level(q). */
void DEQUANT(iq4_nl)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK; k++, b += 18, y += QK)
        nibbles(b + 2, iq4_levels, sl_load_f16(b), y);
}

/* IQ4_XS: f16 d | u16 h | 4 bytes l | 128 bytes q, 16 per group of 32. Scale g of 8 has four
 * bits in nibble g % 2 of l[g / 2] and two in bit pair g of h; y = (d (s - 32)) level(q). */
void DEQUANT(iq4_xs)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 136, y += QK_K) {
        float d = sl_load_f16(b);
        uint32_t h = sl_load_u16(b + 2);
        for (int g = 0; g < 8; g++) {
            int s = (int)((b[4 + g / 2] >> 4 * (g % 2) & 15) | (h >> 2 * g & 3) << 4);
            nibbles(b + 8 + 16 * g, iq4_levels, d * (float)(s - 32), y + 32 * g);
        }
    }
}

/* MXFP4: e8m0 exponent e | 16 bytes q; y = 2^(e - 128) level(q), levels being doubled. Exponents
 * 0 and 1 are the denormals 2^-128 and 2^-127 (OCP microscaling formats 1.0, with 255 taken as a
 * number). */
void DEQUANT(mxfp4)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK; k++, b += 17, y += QK) {
        union { uint32_t u; float f; } d;
        d.u = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
        nibbles(b + 1, e2m1_levels, d.f, y);
    }
}

/* 7 sign bits name 8 signs: the eighth makes their number even. */
static inline unsigned even_signs(unsigned bits)
{
    return bits | (unsigned)__builtin_parity(bits) << 7;
}

static inline void row_iq2(unsigned row, unsigned signs, float d, float *restrict y)
{
    for (int i = 0; i < 8; i++) {
        int v = iq2_levels[row >> 2 * i & 3];
        y[i] = d * (float)(signs >> i & 1 ? -v : v);
    }
}

/* IQ2_XXS: f16 d | per 32 elements: 4 bytes of row numbers, then a u32 of four times 7 sign bits
 * and 4 bits s; y = (d (0.5 + s) / 4) row. */
void DEQUANT(iq2_xxs)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 66, y += QK_K) {
        float d = sl_load_f16(b);
        for (int g = 0; g < 8; g++) {
            const uint8_t *q = b + 2 + 8 * g;
            uint32_t w = sl_load_u32(q + 4);
            float ds = d * (0.5f + (float)(w >> 28)) * 0.25f;
            for (int j = 0; j < 4; j++)
                row_iq2(sl_grid_iq2_xxs[q[j]], even_signs(w >> 7 * j & 127), ds,
                        y + 32 * g + 8 * j);
        }
    }
}

/* IQ2_XS: f16 d | 32 u16: 9 bits row number, 7 sign bits | 8 bytes, a nibble s per 16 elements;
 * y = (d (0.5 + s) / 4) row. */
void DEQUANT(iq2_xs)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 74, y += QK_K) {
        float d = sl_load_f16(b);
        for (int j = 0; j < 32; j++) {
            unsigned q = sl_load_u16(b + 2 + 2 * j), s = b[66 + j / 4] >> 4 * (j / 2 % 2) & 15;
            float ds = d * (0.5f + (float)s) * 0.25f;
            row_iq2(sl_grid_iq2_xs[q & 511], even_signs(q >> 9), ds, y + 8 * j);
        }
    }
}

/* IQ2_S: f16 d | 32 bytes q | 32 bytes of signs | 8 bytes h | 8 bytes, a nibble s per 16
 * elements. Row number j is q[j] and bit pair j % 4 of h[j / 4]; y = (d (0.5 + s) / 4) row. */
void DEQUANT(iq2_s)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 82, y += QK_K) {
        float d = sl_load_f16(b);
        for (int j = 0; j < 32; j++) {
            unsigned q = b[2 + j] | (b[66 + j / 4] >> 2 * (j % 4) & 3u) << 8;
            unsigned s = b[74 + j / 4] >> 4 * (j / 2 % 2) & 15;
            row_iq2(sl_grid_iq2_s[q], b[34 + j], d * (0.5f + (float)s) * 0.25f, y + 8 * j);
        }
    }
}

/* IQ3_XXS: f16 d | 64 bytes of row numbers | per 32 elements a u32 of four times 7 sign bits (8
 * elements each) and 4 bits s; y = (d (0.5 + s) / 2) row. */
void DEQUANT(iq3_xxs)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 98, y += QK_K) {
        float d = sl_load_f16(b);
        for (int j = 0; j < 64; j++) {
            uint32_t w = sl_load_u32(b + 66 + 4 * (j / 8));
            unsigned signs = even_signs(w >> 7 * (j / 2 % 4) & 127) >> 4 * (j % 2);
            unsigned grid = sl_grid_iq3_xxs[b[2 + j]];
            float ds = d * (0.5f + (float)(w >> 28)) * 0.5f;
            for (int i = 0; i < 4; i++) {
                int v = iq3_xxs_levels[grid >> 4 * i & 7];
                y[4 * j + i] = ds * (float)(signs >> i & 1 ? -v : v);
            }
        }
    }
}

/* IQ3_S: f16 d | 64 bytes q | 8 bytes h | 32 bytes of signs | 4 bytes, a nibble s per 32
 * elements. Row number j is q[j] and bit j % 8 of h[j / 8]; levels are odd numbers; y = (d (1 +
 * 2 s)) row. */
void DEQUANT(iq3_s)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 110, y += QK_K) {
        float d = sl_load_f16(b);
        for (int j = 0; j < 64; j++) {
            unsigned grid = sl_grid_iq3_s[b[2 + j] | (b[66 + j / 8] >> j % 8 & 1u) << 8];
            unsigned signs = b[74 + j / 2] >> 4 * (j % 2);
            unsigned s = b[106 + j / 16] >> 4 * (j / 8 % 2) & 15;
            float ds = d * (float)(1 + 2 * s);
            for (int i = 0; i < 4; i++) {
                int v = 2 * (int)(grid >> 4 * i & 7) + 1;
                y[4 * j + i] = ds * (float)(signs >> i & 1 ? -v : v);
            }
        }
    }
}
