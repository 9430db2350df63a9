/* kernels/cpu/quant_decode.c - blocks of every quantised type taken apart into sl_qgroup: the
 * plainest code that is right, for the reference and the tests. Layouts: kernels/cpu/dequant.c,
 * dequant_iq.c.
 * Types with a codebook have q = level + 128, or + 64 where that keeps q below 128 (which spares
 * sets without VNNI a saturation). The fractions in the scales of IQ2 and IQ3 go into d:
 * d (0.5 + s) / 4 is (d / 8) (1 + 2 s), exact since d came from a float16. */
#define KX_SET c
#include "kernels/cpu/dequant.h"
#include "kernels/cpu/quant.h"

static const int8_t iq4_levels[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
};
static const int8_t e2m1_levels[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
static const uint8_t iq2_levels[4] = { 8, 25, 43, 0 };
static const uint8_t iq3_xxs_levels[8] = { 4, 12, 20, 28, 36, 44, 52, 62 };

static void one_scale(sl_qgroup *g, float d, float dmin, int mn)
{
    g->d = d;
    g->dmin = dmin;
    for (int j = 0; j < 2; j++) {
        g->sc[j] = 1;
        g->mn[j] = (int16_t)mn;
    }
}

static void no_mins(sl_qgroup *g)
{
    g->dmin = 0;
    memset(g->mn, 0, sizeof g->mn);
}

static void nibbles(const uint8_t *b, uint8_t *q)
{
    for (int i = 0; i < 16; i++) {
        q[i] = b[i] & 15;
        q[16 + i] = b[i] >> 4;
    }
}

static void levels(const uint8_t *b, const int8_t *level, int zero, uint8_t *q)
{
    nibbles(b, q);
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)(zero + level[q[i]]);
}

static void fifth_bits(const uint8_t *b, uint8_t *q)
{
    uint32_t h = sl_load_u32(b);
    for (int i = 0; i < 32; i++) q[i] |= (uint8_t)((h >> i & 1) << 4);
}

static void q4_0(const uint8_t *b, sl_qgroup *g)
{
    one_scale(g, sl_load_f16(b), 0, 0);
    nibbles(b + 2, g->q);
}

static void q4_1(const uint8_t *b, sl_qgroup *g)
{
    one_scale(g, sl_load_f16(b), -sl_load_f16(b + 2), 1);
    nibbles(b + 4, g->q);
}

static void q5_0(const uint8_t *b, sl_qgroup *g)
{
    one_scale(g, sl_load_f16(b), 0, 0);
    nibbles(b + 6, g->q);
    fifth_bits(b + 2, g->q);
}

static void q5_1(const uint8_t *b, sl_qgroup *g)
{
    one_scale(g, sl_load_f16(b), -sl_load_f16(b + 2), 1);
    nibbles(b + 8, g->q);
    fifth_bits(b + 4, g->q);
}

static void q8_0(const uint8_t *b, sl_qgroup *g)
{
    one_scale(g, sl_load_f16(b), 0, 0);
    for (int i = 0; i < 32; i++) g->q[i] = b[2 + i] ^ 0x80;
}

static void iq4_nl(const uint8_t *b, sl_qgroup *g)
{
    one_scale(g, sl_load_f16(b), 0, 0);
    levels(b + 2, iq4_levels, 128, g->q);
}

static void mxfp4(const uint8_t *b, sl_qgroup *g)
{
    union { uint32_t u; float f; } d;
    d.u = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
    one_scale(g, d.f, 0, 0);
    levels(b + 1, e2m1_levels, 64, g->q);
}

static void q2_k(const uint8_t *b, sl_qgroup *g)
{
    g->d = sl_load_f16(b + 80);
    g->dmin = sl_load_f16(b + 82);
    for (int j = 0; j < 16; j++) {
        const uint8_t *q = b + 16 + 32 * (j / 8) + 16 * (j % 2);
        g->sc[j] = b[j] & 15;
        g->mn[j] = b[j] >> 4;
        for (int i = 0; i < 16; i++) g->q[16 * j + i] = q[i] >> 2 * (j / 2 % 4) & 3;
    }
}

static void q3_k(const uint8_t *b, sl_qgroup *g)
{
    const uint8_t *sc = b + 96;
    no_mins(g);
    g->d = sl_load_f16(b + 108);
    for (int j = 0; j < 16; j++) {
        const uint8_t *q = b + 32 + 32 * (j / 8) + 16 * (j % 2), *h = b + 16 * (j % 2);
        int s = (sc[j % 8] >> 4 * (j / 8) & 15) | (sc[8 + j % 4] >> 2 * (j / 4) & 3) << 4;
        g->sc[j] = (int16_t)(s - 32);
        for (int i = 0; i < 16; i++)
            g->q[16 * j + i] = (uint8_t)((q[i] >> 2 * (j / 2 % 4) & 3) | (h[i] >> j / 2 & 1) << 2);
    }
}

/* The scales of Q4_K and Q5_K: scales_k4 of dequant.c, each for two runs of 16. */
static void scales_k4(const uint8_t *p, sl_qgroup *g)
{
    for (int j = 0; j < 8; j++) {
        int s = j < 4 ? p[j] & 63 : (p[4 + j] & 15) | p[j - 4] >> 6 << 4;
        int m = j < 4 ? p[4 + j] & 63 : p[4 + j] >> 4 | p[j] >> 6 << 4;
        g->sc[2 * j] = g->sc[2 * j + 1] = (int16_t)s;
        g->mn[2 * j] = g->mn[2 * j + 1] = (int16_t)m;
    }
}

static void q4_k(const uint8_t *b, sl_qgroup *g)
{
    g->d = sl_load_f16(b);
    g->dmin = sl_load_f16(b + 2);
    scales_k4(b + 4, g);
    for (int i = 0; i < 256; i++)
        g->q[i] = b[16 + 32 * (i / 64) + i % 32] >> 4 * (i / 32 % 2) & 15;
}

static void q5_k(const uint8_t *b, sl_qgroup *g)
{
    g->d = sl_load_f16(b);
    g->dmin = sl_load_f16(b + 2);
    scales_k4(b + 4, g);
    for (int i = 0; i < 256; i++) {
        int low = b[48 + 32 * (i / 64) + i % 32] >> 4 * (i / 32 % 2) & 15;
        g->q[i] = (uint8_t)(low | (b[16 + i % 32] >> i / 32 & 1) << 4);
    }
}

static void q6_k(const uint8_t *b, sl_qgroup *g)
{
    no_mins(g);
    g->d = sl_load_f16(b + 208);
    for (int j = 0; j < 16; j++) {
        int half = j / 8, run = j / 2 % 4, side = 16 * (j % 2);
        const uint8_t *l = b + 64 * half + 32 * (run % 2) + side, *h = b + 128 + 32 * half + side;
        g->sc[j] = (int8_t)b[192 + j];
        for (int i = 0; i < 16; i++)
            g->q[16 * j + i] = (uint8_t)((l[i] >> 4 * (run / 2) & 15) | (h[i] >> 2 * run & 3) << 4);
    }
}

static void iq4_xs(const uint8_t *b, sl_qgroup *g)
{
    uint32_t h = sl_load_u16(b + 2);
    no_mins(g);
    g->d = sl_load_f16(b);
    for (int j = 0; j < 8; j++) {
        int s = (int)((b[4 + j / 2] >> 4 * (j % 2) & 15) | (h >> 2 * j & 3) << 4);
        g->sc[2 * j] = g->sc[2 * j + 1] = (int16_t)(s - 32);
        levels(b + 8 + 16 * j, iq4_levels, 128, g->q + 32 * j);
    }
}

static unsigned even_signs(unsigned bits)
{
    return bits | (unsigned)__builtin_parity(bits) << 7;
}

static void row_iq2(unsigned row, unsigned signs, uint8_t *q)
{
    for (int i = 0; i < 8; i++) {
        int v = iq2_levels[row >> 2 * i & 3];
        q[i] = (uint8_t)(64 + (signs >> i & 1 ? -v : v));
    }
}

static void iq2_xxs(const uint8_t *b, sl_qgroup *g)
{
    no_mins(g);
    g->d = sl_load_f16(b) * 0.125f;
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 2 + 8 * j;
        uint32_t w = sl_load_u32(q + 4);
        g->sc[2 * j] = g->sc[2 * j + 1] = (int16_t)(1 + 2 * (w >> 28));
        for (int i = 0; i < 4; i++)
            row_iq2(sl_grid_iq2_xxs[q[i]], even_signs(w >> 7 * i & 127), g->q + 32 * j + 8 * i);
    }
}

static void iq2_xs(const uint8_t *b, sl_qgroup *g)
{
    no_mins(g);
    g->d = sl_load_f16(b) * 0.125f;
    for (int j = 0; j < 32; j++) {
        unsigned q = sl_load_u16(b + 2 + 2 * j);
        g->sc[j / 2] = (int16_t)(1 + 2 * (b[66 + j / 4] >> 4 * (j / 2 % 2) & 15));
        row_iq2(sl_grid_iq2_xs[q & 511], even_signs(q >> 9), g->q + 8 * j);
    }
}

static void iq2_s(const uint8_t *b, sl_qgroup *g)
{
    no_mins(g);
    g->d = sl_load_f16(b) * 0.125f;
    for (int j = 0; j < 32; j++) {
        unsigned q = b[2 + j] | (b[66 + j / 4] >> 2 * (j % 4) & 3u) << 8;
        g->sc[j / 2] = (int16_t)(1 + 2 * (b[74 + j / 4] >> 4 * (j / 2 % 2) & 15));
        row_iq2(sl_grid_iq2_s[q], b[34 + j], g->q + 8 * j);
    }
}

static void iq3_xxs(const uint8_t *b, sl_qgroup *g)
{
    no_mins(g);
    g->d = sl_load_f16(b) * 0.25f;
    for (int j = 0; j < 64; j++) {
        uint32_t w = sl_load_u32(b + 66 + 4 * (j / 8));
        unsigned signs = even_signs(w >> 7 * (j / 2 % 4) & 127) >> 4 * (j % 2);
        unsigned grid = sl_grid_iq3_xxs[b[2 + j]];
        g->sc[j / 4] = (int16_t)(1 + 2 * (w >> 28));
        for (int i = 0; i < 4; i++) {
            int v = iq3_xxs_levels[grid >> 4 * i & 7];
            g->q[4 * j + i] = (uint8_t)(64 + (signs >> i & 1 ? -v : v));
        }
    }
}

static void iq3_s(const uint8_t *b, sl_qgroup *g)
{
    no_mins(g);
    g->d = sl_load_f16(b);
    for (int j = 0; j < 64; j++) {
        unsigned grid = sl_grid_iq3_s[b[2 + j] | (b[66 + j / 8] >> j % 8 & 1u) << 8];
        unsigned signs = b[74 + j / 2] >> 4 * (j % 2);
        g->sc[j / 4] = (int16_t)(1 + 2 * (b[106 + j / 16] >> 4 * (j / 8 % 2) & 15));
        for (int i = 0; i < 4; i++) {
            int v = 2 * (int)(grid >> 4 * i & 7) + 1;
            g->q[4 * j + i] = (uint8_t)(64 + (signs >> i & 1 ? -v : v));
        }
    }
}

const sl_qtype sl_qtypes[SL_N_TYPES] = {
    [SL_Q4_0] = { 32, 18, 8, false, false, q4_0 },
    [SL_Q4_1] = { 32, 20, 0, true, false, q4_1 },
    [SL_Q5_0] = { 32, 22, 16, false, false, q5_0 },
    [SL_Q5_1] = { 32, 24, 0, true, false, q5_1 },
    [SL_Q8_0] = { 32, 34, 128, false, false, q8_0 },
    [SL_IQ4_NL] = { 32, 18, 128, false, false, iq4_nl },
    [SL_MXFP4] = { 32, 17, 64, false, false, mxfp4 },
    [SL_Q2_K] = { 256, 84, 0, true, true, q2_k },
    [SL_Q3_K] = { 256, 110, 4, false, true, q3_k },
    [SL_Q4_K] = { 256, 144, 0, true, false, q4_k },
    [SL_Q5_K] = { 256, 176, 0, true, false, q5_k },
    [SL_Q6_K] = { 256, 210, 32, false, true, q6_k },
    [SL_IQ4_XS] = { 256, 136, 128, false, false, iq4_xs },
    [SL_IQ2_XXS] = { 256, 66, 64, false, false, iq2_xxs },
    [SL_IQ2_XS] = { 256, 74, 64, false, true, iq2_xs },
    [SL_IQ2_S] = { 256, 82, 64, false, true, iq2_s },
    [SL_IQ3_XXS] = { 256, 98, 64, false, false, iq3_xxs },
    [SL_IQ3_S] = { 256, 110, 64, false, false, iq3_s },
};
