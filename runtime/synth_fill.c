/* runtime/synth_fill.c - bytes of synthetic weights: random bits, and the few fields of each block
 * that are not free put in afterwards, so that the deviation is right and the mean 0. What
 * deviation a pattern has with scale 1 is measured with the dequantisers rather than derived per
 * type. */
#include "runtime/synth.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { LANES = 8, SAMPLE = 1 << 14 };   /* SAMPLE: bytes a deviation is measured on */

uint64_t synth_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* xorshift128+ (Vigna, 2014) in lanes that the compiler runs side by side. */
static void random_bytes(uint64_t seed, size_t bytes, unsigned char *ret)
{
    uint64_t s0[LANES], s1[LANES], out[LANES];
    for (int i = 0; i < LANES; i++) {
        s0[i] = synth_mix(seed + 2 * (uint64_t)i);
        s1[i] = synth_mix(seed + 2 * (uint64_t)i + 1) | 1;
    }
    for (size_t at = 0; at < bytes; at += sizeof out) {
        for (int i = 0; i < LANES; i++) {
            uint64_t a = s0[i], b = s1[i];
            out[i] = a + b;
            s0[i] = b;
            a ^= a << 23;
            s1[i] = a ^ b ^ (a >> 17) ^ (b >> 26);
        }
        memcpy(ret + at, out, SL_MIN(sizeof out, bytes - at));
    }
}

static void put_u16(unsigned char *p, uint16_t v)
{
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}

/* Q2_K: scale and minimum of each group are the same nibble, at least 8. */
static void patch_q2_k(unsigned char *b, const synth_pattern *p)
{
    for (int g = 0; g < 16; g++) {
        unsigned n = (b[g] & 15) | 8;
        b[g] = (unsigned char)(n | n << 4);
    }
    int i = b[80] & 15;
    put_u16(b + 80, p->d[i]);
    put_u16(b + 82, p->m[i]);
}

/* Q4_K, Q5_K: scale and minimum of each group are the same number from 32 to 63. */
static void patch_k4(unsigned char *b, const synth_pattern *p)
{
    for (int j = 0; j < 4; j++) {
        b[4 + j] |= 0xa0;       /* bit 5 of scale j, and bit 5 of scale 4 + j in bit 7 */
        b[8 + j] = b[4 + j];
        b[12 + j] = (unsigned char)((b[12 + j] & 15) | b[12 + j] << 4);
    }
    int i = b[0] & 15;
    put_u16(b, p->d[i]);
    put_u16(b + 2, p->m[i]);
}

/* Q6_K: group scales of magnitude 16 to 31. */
static void patch_q6_k(unsigned char *b, const synth_pattern *p)
{
    for (int g = 192; g < 208; g++) {
        int s = 16 + (b[g] & 15);
        b[g] = (unsigned char)(b[g] & 16 ? -s : s);
    }
    put_u16(b + 208, p->d[b[208] & 15]);
}

/* Q8_0: quantisers never make -128, and kernels may count on it. */
static void patch_q8_0(unsigned char *b, const synth_pattern *p)
{
    for (int i = 2; i < 34; i++) b[i] = (unsigned char)(b[i] + (b[i] == 0x80));
    put_u16(b, p->d[b[0] & 15]);
}

static void patch_at(unsigned char *b, const synth_pattern *p, size_t d_at)
{
    put_u16(b + d_at, p->d[b[d_at] & 15]);
}

static void patch_d_m(unsigned char *b, const synth_pattern *p)
{
    int i = b[0] & 15;
    put_u16(b, p->d[i]);
    put_u16(b + 2, p->m[i]);
}

static void patch(unsigned char *b, size_t n, const synth_pattern *p)
{
    for (const unsigned char *end = b + n * p->block_bytes; b < end; b += p->block_bytes)
        switch (p->type) {
        case SL_Q4_1: case SL_Q5_1: patch_d_m(b, p); break;
        case SL_Q8_0: patch_q8_0(b, p); break;
        case SL_Q2_K: patch_q2_k(b, p); break;
        case SL_Q3_K: patch_at(b, p, 108); break;
        case SL_Q4_K: case SL_Q5_K: patch_k4(b, p); break;
        case SL_Q6_K: patch_q6_k(b, p); break;
        case SL_MXFP4: b[0] = p->e[b[0] & 15]; break;
        default: patch_at(b, p, 0); break;      /* Q4_0, Q5_0, IQ*: an f16 scale comes first */
        }
}

/* What the minimum is in units of d, so that the mean is 0: half of the largest quant. */
static double middle(sl_type type)
{
    switch (type) {
    case SL_Q4_1: return -7.5;
    case SL_Q5_1: return -15.5;
    case SL_Q2_K: return 1.5;
    case SL_Q4_K: return 7.5;
    case SL_Q5_K: return 15.5;
    default: return 0;
    }
}

/* Types whose quantisers make negative scales too: with random signs their means vanish. */
static bool has_signed_scale(sl_type type)
{
    return type == SL_Q4_0 || type == SL_Q5_0 || type == SL_IQ4_NL;
}

static void set_scale(const sl_kernels *k, double d, synth_pattern *p)
{
    float ds[16], ms[16];
    for (int i = 0; i < 16; i++) {
        double v = d * (0.75 + (i % 8) / 14.0);
        if (i >= 8 && has_signed_scale(p->type)) v = -v;
        ds[i] = (float)v;
        ms[i] = (float)(v * middle(p->type));
    }
    k->to_f16(ds, p->d, 16);
    k->to_f16(ms, p->m, 16);
}

static double measure(const sl_kernels *k, const synth_pattern *p)
{
    unsigned char raw[SAMPLE];
    float y[256];
    size_t n = SAMPLE / p->block_bytes, n_y = 0;
    double sum = 0;
    random_bytes(synth_mix(p->type), n * p->block_bytes, raw);
    patch(raw, n, p);
    for (size_t b = 0; b < n; b++) {
        k->dequant[p->type](raw + b * p->block_bytes, y, p->block_elems);
        for (uint32_t i = 0; i < p->block_elems; i++, n_y++) sum += (double)y[i] * y[i];
    }
    return sqrt(sum / (double)n_y);
}

void synth_pattern_make(const sl_kernels *k, const synth_tensor *t, synth_pattern *ret)
{
    const sl_type_info *ti = sl_type_get(t->type);
    *ret = (synth_pattern){ .type = t->type, .block_bytes = ti->block_bytes,
                            .block_elems = ti->block_elems };
    if (ti->block_elems == 1 || t->kind != SYNTH_WEIGHTS) return;
    memset(ret->e, 128, sizeof ret->e);
    const double probe = 0.01;      /* any scale whose multiples are normal float16 numbers */
    set_scale(k, probe, ret);
    double ratio = t->value / measure(k, ret);
    set_scale(k, probe * ratio, ret);
    /* MXFP4 has powers of two: `share` of 16 blocks get the one above, the others that below. */
    double up = ceil(log2(ratio));
    double f = (ratio * ratio / exp2(2 * up) - 0.25) / 0.75;
    for (int i = 0; i < 16; i++) ret->e[i] = (uint8_t)(128 + up - (i >= lround(16 * f)));
}

/* Uniform with the given deviation: variance of [-a, a] is a^2 / 3. */
static float spread(uint32_t bits, float dev)
{
    return (float)(int32_t)bits * (dev * 1.7320508f / 2147483648.0f);
}

static float value_at(const synth_model *m, const synth_tensor *t, uint64_t i, uint32_t bits)
{
    switch (t->kind) {
    case SYNTH_WEIGHTS: return spread(bits, t->value);
    case SYNTH_NEAR: return t->value + (float)(int32_t)bits * (0.1f / 2147483648.0f);
    case SYNTH_CONST: return t->value;
    case SYNTH_RAMP: return 1 + (t->value - 1) * (float)i / (float)t->ne[0];
    case SYNTH_ROUTER: return spread(bits, m->row_scales[t->scales + i / t->ne[0]]);
    }
    return 0;
}

static void fill_floats(const sl_kernels *k, const synth_model *m, const synth_tensor *t,
                        uint64_t seed, uint64_t at, size_t bytes, unsigned char *ret)
{
    enum { RUN = 1024 };
    uint32_t bits[RUN];
    float y[RUN];
    uint16_t h[RUN];
    uint32_t size = sl_type_get(t->type)->block_bytes;
    for (size_t done = 0; done < bytes; done += RUN * size) {
        size_t n = SL_MIN((size_t)RUN, (bytes - done) / size);
        random_bytes(synth_mix(seed ^ (at + done)), n * sizeof *bits, (unsigned char *)bits);
        for (size_t i = 0; i < n; i++) y[i] = value_at(m, t, (at + done) / size + i, bits[i]);
        if (t->type == SL_F32) memcpy(ret + done, y, n * size);
        if (t->type == SL_F32) continue;
        if (t->type == SL_F16) k->to_f16(y, h, n);
        for (size_t i = 0; t->type == SL_BF16 && i < n; i++) {
            memcpy(bits, &y[i], sizeof *bits);
            h[i] = (uint16_t)(bits[0] >> 16);
        }
        memcpy(ret + done, h, n * size);
    }
}

void synth_fill(const sl_kernels *k, const synth_model *m, const synth_tensor *t,
                const synth_pattern *p, uint64_t seed, uint64_t at, size_t bytes, void *ret)
{
    uint64_t own = synth_mix(seed ^ synth_mix((uint64_t)(t - m->tensors)));
    if (p->block_elems == 1) {
        fill_floats(k, m, t, own, at, bytes, ret);
        return;
    }
    assert(t->kind == SYNTH_WEIGHTS && at % p->block_bytes == 0 && bytes % p->block_bytes == 0);
    random_bytes(synth_mix(own ^ at), bytes, ret);
    patch(ret, bytes / p->block_bytes, p);
}
