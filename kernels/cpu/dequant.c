/* kernels/cpu/dequant.c - blocks to float32: floats, legacy blocks of 32, K super-blocks of
 * 256. Each result is rounded as the `gguf` package rounds it: scale times small integer, then
 * the minimum subtracted (two roundings, no fused operation). Loops have fixed trip counts and
 * no branches, so that the compiler vectorises them. Source of the layouts: the GGUF
 * specification and ggml's block structs. */
#include "kernels/cpu/dequant.h"

void DEQUANT(f32)(const void *row, float *y, size_t n)
{
    memcpy(y, row, n * sizeof *y);
}

void DEQUANT(f16)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t i = 0; i < n; i++) y[i] = sl_load_f16(b + 2 * i);
}

void DEQUANT(bf16)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t i = 0; i < n; i++) y[i] = sl_bf16_to_f32(sl_load_u16(b + 2 * i));
}

/* Q4_0: f16 d | 16 bytes q. Low nibbles are elements 0..15, high ones 16..31; y = d (q - 8). */
void DEQUANT(q4_0)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK; k++, b += 18, y += QK) {
        float d = sl_load_f16(b);
        KX_ROLLED for (int i = 0; i < 16; i++) {
            y[i] = d * (float)((b[2 + i] & 15) - 8);
            y[16 + i] = d * (float)((b[2 + i] >> 4) - 8);
        }
    }
}

/* Q4_1: f16 d | f16 m | 16 bytes q as Q4_0; y = d q + m. */
void DEQUANT(q4_1)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK; k++, b += 20, y += QK) {
        float d = sl_load_f16(b), m = sl_load_f16(b + 2);
        KX_ROLLED for (int i = 0; i < 16; i++) {
            y[i] = d * (float)(b[4 + i] & 15) + m;
            y[16 + i] = d * (float)(b[4 + i] >> 4) + m;
        }
    }
}

/* Q5_0: f16 d | u32 h | 16 bytes q as Q4_0. Bit i of h is bit 4 of element i; y = d (q - 16). */
void DEQUANT(q5_0)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK; k++, b += 22, y += QK) {
        float d = sl_load_f16(b);
        uint32_t h = sl_load_u32(b + 2);
        KX_ROLLED for (int i = 0; i < 16; i++) {
            y[i] = d * (float)((int)((b[6 + i] & 15) | (h >> i & 1) << 4) - 16);
            y[16 + i] = d * (float)((int)(b[6 + i] >> 4 | (h >> (16 + i) & 1) << 4) - 16);
        }
    }
}

/* Q5_1: f16 d | f16 m | u32 h | 16 bytes q as Q5_0; y = d q + m. */
void DEQUANT(q5_1)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK; k++, b += 24, y += QK) {
        float d = sl_load_f16(b), m = sl_load_f16(b + 2);
        uint32_t h = sl_load_u32(b + 4);
        KX_ROLLED for (int i = 0; i < 16; i++) {
            y[i] = d * (float)(int)((b[8 + i] & 15) | (h >> i & 1) << 4) + m;
            y[16 + i] = d * (float)(int)(b[8 + i] >> 4 | (h >> (16 + i) & 1) << 4) + m;
        }
    }
}

/* Q8_0: f16 d | 32 signed bytes q; y = d q. */
void DEQUANT(q8_0)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK; k++, b += 34, y += QK) {
        float d = sl_load_f16(b);
        for (int i = 0; i < QK; i++) y[i] = d * (float)(int8_t)b[2 + i];
    }
}

/* Q2_K: 16 bytes, per 16 elements low nibble scale s and high nibble minimum m | 64 bytes q |
 * f16 d | f16 dm. In each half of 128, byte i of 32 holds elements i, 32 + i, 64 + i, 96 + i
 * from its low bits up; y = (d s) q - (dm m). */
void DEQUANT(q2_k)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 84, y += QK_K) {
        float d = sl_load_f16(b + 80), dm = sl_load_f16(b + 82);
        for (int g = 0; g < 16; g++) {      /* groups of 16: half, bit pair, side of the 32 bytes */
            const uint8_t *q = b + 16 + 32 * (g / 8) + 16 * (g % 2);
            int shift = 2 * (g / 2 % 4);
            float s = d * (float)(b[g] & 15), m = dm * (float)(b[g] >> 4);
            for (int i = 0; i < 16; i++) y[16 * g + i] = s * (float)(q[i] >> shift & 3) - m;
        }
    }
}

/* Q3_K: 32 bytes h | 64 bytes q as Q2_K | 12 bytes of scales | f16 d. Bit e / 32 of h[e % 32]
 * set means that nothing is subtracted from element e, clear means 4. Scale g of 16 has 6 bits:
 * four in nibble g / 8 of byte g % 8, two in bit pair g / 4 of byte 8 + g % 4; y = (d (s - 32))
 * (q - 4 or 0). */
void DEQUANT(q3_k)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 110, y += QK_K) {
        const uint8_t *sc = b + 96;
        float d = sl_load_f16(b + 108);
        for (int g = 0; g < 16; g++) {
            const uint8_t *q = b + 32 + 32 * (g / 8) + 16 * (g % 2), *h = b + 16 * (g % 2);
            int shift = 2 * (g / 2 % 4), bit = g / 2;
            int s = (sc[g % 8] >> 4 * (g / 8) & 15) | (sc[8 + g % 4] >> 2 * (g / 4) & 3) << 4;
            float ds = d * (float)(s - 32);
            for (int i = 0; i < 16; i++)
                y[16 * g + i] = ds * (float)((q[i] >> shift & 3) + ((h[i] >> bit & 1) << 2) - 4);
        }
    }
}

/* The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes: j < 4 has its scale in
 * byte j and its minimum in byte 4 + j, low 6 bits; j >= 4 has four bits of each in byte 4 + j
 * (scale low, minimum high) and two in the top of bytes j - 4 and j. */
static void scales_k4(const uint8_t *p, uint8_t *s, uint8_t *m)
{
    for (int j = 0; j < 4; j++) {
        s[j] = p[j] & 63;
        m[j] = p[4 + j] & 63;
        s[4 + j] = (uint8_t)((p[8 + j] & 15) | p[j] >> 6 << 4);
        m[4 + j] = (uint8_t)(p[8 + j] >> 4 | p[4 + j] >> 6 << 4);
    }
}

/* Q4_K: f16 d | f16 dm | 12 bytes of scales | 128 bytes q. Byte i of each 32 holds element i of
 * one group of 32 in its low nibble and of the next group in its high one; y = (d s) q - (dm m). */
void DEQUANT(q4_k)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 144, y += QK_K) {
        float d = sl_load_f16(b), dm = sl_load_f16(b + 2);
        uint8_t s[8], m[8];
        scales_k4(b + 4, s, m);
        for (int c = 0; c < 4; c++) {
            const uint8_t *q = b + 16 + 32 * c;
            float *restrict z = y + 64 * c;
            float s0 = d * (float)s[2 * c], m0 = dm * (float)m[2 * c];
            float s1 = d * (float)s[2 * c + 1], m1 = dm * (float)m[2 * c + 1];
            for (int i = 0; i < 32; i++) {
                z[i] = s0 * (float)(q[i] & 15) - m0;
                z[32 + i] = s1 * (float)(q[i] >> 4) - m1;
            }
        }
    }
}

/* Q5_K: f16 d | f16 dm | 12 bytes of scales | 32 bytes h | 128 bytes q as Q4_K. Bit g of h[i] is
 * bit 4 of element i of group g; y = (d s) q - (dm m). */
void DEQUANT(q5_k)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 176, y += QK_K) {
        const uint8_t *h = b + 16;
        float d = sl_load_f16(b), dm = sl_load_f16(b + 2);
        uint8_t s[8], m[8];
        scales_k4(b + 4, s, m);
        for (int c = 0; c < 4; c++) {
            const uint8_t *q = b + 48 + 32 * c;
            float *restrict z = y + 64 * c;
            float s0 = d * (float)s[2 * c], m0 = dm * (float)m[2 * c];
            float s1 = d * (float)s[2 * c + 1], m1 = dm * (float)m[2 * c + 1];
            for (int i = 0; i < 32; i++) {
                z[i] = s0 * (float)((q[i] & 15) | (h[i] >> 2 * c & 1) << 4) - m0;
                z[32 + i] = s1 * (float)(q[i] >> 4 | (h[i] >> (2 * c + 1) & 1) << 4) - m1;
            }
        }
    }
}

/* Q6_K: 128 bytes l | 64 bytes h | 16 signed bytes s | f16 d. In each half of 128, four runs of
 * 32: low four bits from l[i], l[32 + i] (low nibbles, then high ones), high two from the bit
 * pairs of h[i] upwards; y = (d s) (q - 32), one s per 16 elements. */
void DEQUANT(q6_k)(const void *row, float *restrict y, size_t n)
{
    const uint8_t *restrict b = row;
    for (size_t k = 0; k < n / QK_K; k++, b += 210, y += QK_K) {
        float d = sl_load_f16(b + 208);
        for (int g = 0; g < 16; g++) {
            int half = g / 8, run = g / 2 % 4, side = 16 * (g % 2);
            const uint8_t *l = b + 64 * half + 32 * (run % 2) + side;
            const uint8_t *h = b + 128 + 32 * half + side;
            int ls = 4 * (run / 2), hs = 2 * run;
            float ds = d * (float)(int8_t)b[192 + g];
            for (int i = 0; i < 16; i++)
                y[16 * g + i] = ds * (float)((l[i] >> ls & 15) + ((h[i] >> hs & 3) << 4) - 32);
        }
    }
}
