/* kernels/cpu/quant_c.c - quantised products, the reference: groups taken apart (quant_decode.c),
 * then the formula of kernels/sl_quant.h word for word. Its tile is the rows' groups, taken apart
 * once. */
#include "kernels/cpu/quant.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

enum { TILE_ROWS = 8 };

void sl_quantise_c(uint32_t group, const float *x, size_t n, void *ret)
{
    assert(group && n % group == 0);
    int8_t *a = ret;
    float *scale = (float *)(void *)((char *)ret + sl_qx_scales(n));
    int16_t *sum = (int16_t *)(void *)((char *)ret + sl_qx_sums(group, n));
    for (size_t k = 0; k < n / group; k++) {
        const float *xk = x + k * group;
        float top = 0;
        bool bad = false;
        for (uint32_t i = 0; i < group; i++) {
            float v = fabsf(xk[i]);
            bad |= !(v <= FLT_MAX);
            top = v > top ? v : top;
        }
        float inv = bad || top == 0 ? 0 : 127 / top;
        if (inv > FLT_MAX) inv = top = 0;
        scale[k] = bad ? NAN : top / 127;
        for (uint32_t i = 0; i < group; i++) {
            const float magic = 12582912;   /* 1.5 * 2^23: the sum's ulp is 1 */
            float v = bad ? 0 : xk[i] * inv + magic;
            a[k * group + i] = (int8_t)(int)(bad ? 0 : v - magic);
        }
    }
    for (size_t j = 0; j < n / 16; j++) {
        int s = 0;
        for (int i = 0; i < 16; i++) s += a[16 * j + i];
        sum[j] = (int16_t)s;
    }
}

/* acc with group k added. */
static float add_group(const sl_qtype *t, const sl_qgroup *g, const void *x, size_t n, size_t k,
                       float acc)
{
    const int8_t *a = (const int8_t *)x + k * t->group;
    const float *scale = (const float *)(const void *)((const char *)x + sl_qx_scales(n));
    const int16_t *s = (const int16_t *)(const void *)((const char *)x + sl_qx_sums(t->group, n));
    int sumi = 0, summ = 0;
    s += k * t->group / 16;
    for (uint32_t j = 0; j < t->group / 16; j++) {
        int dot = 0;
        for (int i = 0; i < 16; i++) dot += g->q[16 * j + i] * a[16 * j + i];
        sumi += g->sc[j] * (dot - t->zero * s[j]);
        summ += g->mn[j] * s[j];
    }
    float u = g->d * (float)sumi;
    if (t->mins) u = fmaf(-g->dmin, (float)summ, u);
    return fmaf(scale[k], u, acc);
}

static void rows(const sl_qtype *t, const void *w, size_t row_bytes, uint32_t n_rows, const void *x,
                 size_t n, float *ret)
{
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *b = (const uint8_t *)w + r * row_bytes;
        sl_qgroup g;
        ret[r] = 0;
        for (size_t k = 0; k < n / t->group; k++) {
            t->decode(b + k * t->block_bytes, &g);
            ret[r] = add_group(t, &g, x, n, k, ret[r]);
        }
    }
}

static size_t tile_bytes(const sl_qtype *t, size_t n)
{
    return TILE_ROWS * (n / t->group) * sl_qgroup_bytes(t->group);
}

static void unpack(const sl_qtype *t, const void *w, size_t row_bytes, uint32_t n_rows, size_t n,
                   void *ret)
{
    size_t step = sl_qgroup_bytes(t->group);
    char *to = ret;
    sl_qgroup g;
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *b = (const uint8_t *)w + r * row_bytes;
        for (size_t k = 0; k < n / t->group; k++, to += step) {
            t->decode(b + k * t->block_bytes, &g);
            memcpy(to, &g, step);
        }
    }
}

static void tile(const sl_qtype *t, const void *data, uint32_t n_rows, const void *const *x,
                 uint32_t n_x, size_t n, float *ret, size_t ld)
{
    size_t step = sl_qgroup_bytes(t->group);
    for (uint32_t j = 0; j < n_x; j++)
        for (uint32_t r = 0; r < n_rows; r++) {
            const char *from = (const char *)data + r * (n / t->group) * step;
            float acc = 0;
            for (size_t k = 0; k < n / t->group; k++, from += step)
                acc = add_group(t, (const sl_qgroup *)(const void *)from, x[j], n, k, acc);
            ret[j * ld + r] = acc;
        }
}

#define TYPE(id, name) \
    static void rows_##name(const void *w, size_t row_bytes, uint32_t n_rows, const void *x, size_t n, \
                            float *ret) \
    { \
        rows(&sl_qtypes[id], w, row_bytes, n_rows, x, n, ret); \
    } \
    static size_t tile_bytes_##name(size_t n) { return tile_bytes(&sl_qtypes[id], n); } \
    static void unpack_##name(const void *w, size_t row_bytes, uint32_t n_rows, size_t n, void *ret) \
    { \
        unpack(&sl_qtypes[id], w, row_bytes, n_rows, n, ret); \
    } \
    static void tile_##name(const void *data, uint32_t n_rows, const void *const *x, uint32_t n_x, \
                            size_t n, float *ret, size_t ld) \
    { \
        tile(&sl_qtypes[id], data, n_rows, x, n_x, n, ret, ld); \
    }
SL_QTYPES(TYPE)

void sl_quant_set_c(sl_kernels *k)
{
    k->quantise = sl_quantise_c;
#define ENTRY(id, name) \
    k->qmul[id] = (sl_qmul){ sl_qtypes[id].group, rows_##name, 4, TILE_ROWS, \
                             tile_bytes_##name, unpack_##name, tile_##name };
    SL_QTYPES(ENTRY)
}
