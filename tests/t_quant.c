/* tests/t_quant.c - products of quantised weights: the groups taken apart against the dequantisers,
 * the reference against the same numbers in double, every set this CPU runs bit for bit against the
 * reference (a NaN equals a NaN), all operands ending on unmapped pages. */
#include "kernels/cpu/quant.h"
#include "tests/t.h"

#include <float.h>
#include <math.h>

enum { MAX_ROWS = 70 };

static sl_kernels sets[5];
static uint32_t n_sets;

static bool same(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* What a block's bytes are: random ones, or all the same. Scales stay finite unless wild. */
enum fill { FILL_RANDOM, FILL_ONES, FILL_ZEROS, FILL_WILD, N_FILLS };

static void fill_weights(sl_type type, enum fill fill, uint8_t *w, size_t bytes)
{
    static const struct { sl_type type; int at[2];
    } halves[] = {
        { SL_Q4_0, { 0, 0 } },    { SL_Q4_1, { 0, 2 } },     { SL_Q5_0, { 0, 0 } },
        { SL_Q5_1, { 0, 2 } },    { SL_Q8_0, { 0, 0 } },     { SL_IQ4_NL, { 0, 0 } },
        { SL_Q2_K, { 80, 82 } },  { SL_Q3_K, { 108, 108 } }, { SL_Q4_K, { 0, 2 } },
        { SL_Q5_K, { 0, 2 } },    { SL_Q6_K, { 208, 208 } }, { SL_IQ4_XS, { 0, 0 } },
        { SL_IQ2_XXS, { 0, 0 } }, { SL_IQ2_XS, { 0, 0 } },   { SL_IQ2_S, { 0, 0 } },
        { SL_IQ3_XXS, { 0, 0 } }, { SL_IQ3_S, { 0, 0 } },
    };
    for (size_t i = 0; i < bytes; i++)
        w[i] = fill == FILL_ONES ? 0xff : fill == FILL_ZEROS ? 0 : (uint8_t)t_rand();
    if (fill == FILL_WILD) return;
    uint32_t step = sl_qtypes[type].block_bytes;
    for (uint8_t *b = w; b < w + bytes; b += step) {
        if (type == SL_MXFP4) b[0] = (uint8_t)(118 + t_below(8));
        for (size_t t = 0; t < SL_LEN(halves); t++)
            for (int i = 0; i < 2 && halves[t].type == type; i++) {
                uint16_t h = (uint16_t)((t_rand() & 0x83ff) | (8 + t_below(6)) << 10);
                memcpy(b + halves[t].at[i], &h, 2);
            }
    }
}

static void fill_x(float *x, size_t n, uint32_t which)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = t_unit();
        if (which == 1) x[i] = x[i] < 0 ? -3.0f : 3.0f;
        if (which == 2) x[i] = 1;
        if (which == 3 && i % 256 < 32) x[i] = i / 32 % 3 ? 0 : 1e-38f;
        if (which == 4 && i == n / 2) x[i] = NAN;
        if (which == 5 && i == 5) x[i] = -INFINITY;
        if (which == 6) x[i] *= 1e-30f;
        if (which == 7 && t_below(200) == 0) x[i] *= 1000;
    }
}

/* Each element of the groups against the dequantised one: the two round differently, 3 roundings
 * each. */
static void check_decode(sl_type type)
{
    const sl_qtype *t = &sl_qtypes[type];
    uint8_t *w = t_guarded(t->block_bytes);
    float y[256];
    sl_qgroup g;
    T_NEED(t->block_bytes == sl_type_get(type)->block_bytes
               && t->group == sl_type_get(type)->block_elems,
           "%s: block", sl_type_get(type)->name);
    for (int trial = 0; trial < 100; trial++) {
        fill_weights(type, trial < 2 ? FILL_ONES + trial : FILL_RANDOM, w, t->block_bytes);
        t->decode(w, &g);
        sets[0].dequant[type](w, y, t->group);
        for (uint32_t i = 0; i < t->group; i++) {
            double a = (double)g.d * g.sc[i / 16] * (g.q[i] - t->zero),
                   b = (double)g.dmin * g.mn[i / 16];
            T_CHECK(fabs(a - b - y[i]) <= 3 * FLT_EPSILON * (fabs(a) + fabs(b)),
                    "decode %s element %u: got %g want %g", sl_type_get(type)->name, i, a - b,
                    y[i]);
        }
    }
    t_guarded_free(w, t->block_bytes);
}

static void check_quantise(uint32_t group, size_t n, uint32_t which)
{
    float *x = t_guarded_f32(n);
    size_t bytes = sl_qx_bytes(group, n);
    char *want = t_guarded(bytes), *got = t_guarded(bytes);
    fill_x(x, n, which);
    memset(want, 0, bytes);
    sets[0].quantise(group, x, n, want);
    const int8_t *a = (int8_t *)want;
    const float *scale = (float *)(void *)(want + sl_qx_scales(n));
    const int16_t *sum = (int16_t *)(void *)(want + sl_qx_sums(group, n));
    for (size_t i = 0; i < n; i++) {
        float dA = scale[i / group];
        int s = 0;
        for (int e = 0; e < 16; e++) s += a[i / 16 * 16 + e];
        T_CHECK(sum[i / 16] == s, "quantise sum %zu: got %d want %d", i / 16, sum[i / 16], s);
        T_CHECK(isnan(dA) || fabs(x[i] - (double)dA * a[i]) <= 0.50002 * dA + 1e-36,
                "quantise n=%zu which=%u element %zu: %g is %d * %g", n, which, i, x[i], a[i], dA);
    }
    for (uint32_t s = 1; s < n_sets; s++) {
        memset(got, 0, bytes);
        sets[s].quantise(group, x, n, got);
        T_CHECK(!memcmp(got, want, sl_qx_scales(n)), "quantise %s group=%u n=%zu which=%u: a",
                sets[s].isa, group, n, which);
        T_CHECK(same((float *)(void *)(got + sl_qx_scales(n)), scale, n / group),
                "quantise %s group=%u n=%zu which=%u: dA", sets[s].isa, group, n, which);
        T_CHECK(!memcmp(got + sl_qx_sums(group, n), sum, n / 8),
                "quantise %s group=%u n=%zu which=%u: s", sets[s].isa, group, n, which);
    }
    t_guarded_free(x, n * 4);
    t_guarded_free(want, bytes);
    t_guarded_free(got, bytes);
}

/* The reference against double. u has at most 4 roundings (two integers to float, two operations)
 * and acc one per group, each of a value that is at most the sum of the magnitudes of what went
 * into it. */
static void check_reference(sl_type type, size_t n, const uint8_t *w, size_t row_bytes,
                            const void *x, float got)
{
    const sl_qtype *t = &sl_qtypes[type];
    const int8_t *a = x;
    const float *scale = (const float *)(const void *)((const char *)x + sl_qx_scales(n));
    double want = 0, mag = 0, roundings = (double)(n / t->group) + 4;
    sl_qgroup g;
    for (size_t i = 0; i < n; i++) {
        if (i % t->group == 0) t->decode(w + i / t->group * t->block_bytes, &g);
        size_t e = i % t->group;
        double p = (double)g.d * g.sc[e / 16] * (g.q[e] - t->zero),
               m = (double)g.dmin * g.mn[e / 16];
        want += (p - m) * a[i] * scale[i / t->group];
        mag += (fabs(p) + fabs(m)) * abs(a[i]) * scale[i / t->group];
    }
    double bound = roundings * FLT_EPSILON / 2 * 1.01 * mag + 1e-40 * (double)n;
    T_CHECK(isnan(want) ? isnan(got) : fabs(got - want) <= bound,
            "%s n=%zu (row of %zu): got %g want %g, bound %g", sl_type_get(type)->name, n,
            row_bytes, got, want, bound);
}

/* n_rows rows times n_x activation rows, all sets, both ways. */
static void check_product(sl_type type, size_t n, uint32_t n_rows, uint32_t n_x, enum fill fill,
                          uint32_t which)
{
    const sl_qtype *t = &sl_qtypes[type];
    const char *name = sl_type_get(type)->name;
    size_t row_bytes = n / t->group * t->block_bytes, bytes = row_bytes * n_rows, ld = n_rows + 3;
    size_t x_bytes = sl_qx_bytes(t->group, n);
    uint8_t *w = t_guarded(bytes);
    float *f = t_guarded(n * 4), *want = malloc((size_t)n_rows * n_x * 4),
          *got = t_guarded(n_rows * 4);
    void *x[MAX_ROWS];
    fill_weights(type, fill, w, bytes);
    for (uint32_t j = 0; j < n_x; j++) {
        x[j] = t_guarded(x_bytes);
        fill_x(f, n, which == 99 ? j % 8 : which);
        sets[0].quantise(t->group, f, n, x[j]);
    }
    for (uint32_t s = 0; s < n_sets; s++) {
        const sl_qmul *q = &sets[s].qmul[type];
        T_NEED(q->group == t->group && q->tile_rows, "%s %s: no kernels", name, sets[s].isa);
        for (uint32_t j = 0; j < n_x; j++) {
            q->rows(w, row_bytes, n_rows, x[j], n, got);
            if (!s) memcpy(want + (size_t)j * n_rows, got, n_rows * 4);
            T_CHECK(same(got, want + (size_t)j * n_rows, n_rows),
                    "rows %s %s n=%zu rows=%u x %u fill=%d which=%u", name, sets[s].isa, n, n_rows,
                    j, (int)fill, which);
            if (!s && fill != FILL_WILD)
                check_reference(type, n, w, row_bytes, x[j], got[0]);
        }
        size_t tile_bytes = (q->tile_bytes(n) + 63) / 64 * 64,
               out = ((size_t)(n_x - 1) * ld + n_rows) * 4;
        void *tile = t_guarded(tile_bytes);
        float *y = t_guarded(out);
        for (size_t i = 0; i < out / 4; i++) y[i] = 123;
        for (uint32_t r = 0; r < n_rows; r += q->tile_rows) {
            uint32_t nr = SL_MIN(n_rows - r, q->tile_rows);
            q->unpack(w + r * row_bytes, row_bytes, nr, n, tile);
            q->tile(tile, nr, (const void *const *)x, n_x, n, y + r, ld);
        }
        for (uint32_t j = 0; j < n_x; j++) {
            T_CHECK(same(y + j * ld, want + (size_t)j * n_rows, n_rows),
                    "tile %s %s n=%zu rows=%u x %u of %u fill=%d which=%u", name, sets[s].isa, n,
                    n_rows, j, n_x, (int)fill, which);
            for (size_t i = n_rows; i < ld && j + 1 < n_x; i++)
                T_CHECK(y[j * ld + i] == 123, "tile %s %s wrote behind its rows", name,
                        sets[s].isa);
        }
        t_guarded_free(tile, tile_bytes);
        t_guarded_free(y, out);
    }
    for (uint32_t j = 0; j < n_x; j++) t_guarded_free(x[j], x_bytes);
    t_guarded_free(w, bytes);
    t_guarded_free(f, n * 4);
    t_guarded_free(got, n_rows * 4);
    free(want);
}

static void check_type(sl_type type)
{
    static const uint32_t n_rows[] = { 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 65 };
    static const uint32_t n_x[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 33, MAX_ROWS };
    uint32_t group = sl_qtypes[type].group;
    check_decode(type);
    for (uint32_t i = 0; i < SL_LEN(n_rows); i++)
        check_product(type, 256 + 256 * (i % 3), n_rows[i], 2, FILL_RANDOM, 99);
    for (uint32_t i = 0; i < SL_LEN(n_x); i++)
        check_product(type, 512, 16 + i, n_x[i], FILL_RANDOM, 99);
    for (uint32_t fill = 0; fill < N_FILLS; fill++)
        for (uint32_t which = 0; which < 8; which++)
            check_product(type, 768, 3, 1, (enum fill)fill, which);
    check_product(type, 4096, 2, 3, FILL_RANDOM, 0);
    for (size_t n = group; group == 32 && n < 700; n += 32 + 64 * (n / 256))
        check_product(type, n, 18, 5, FILL_RANDOM, 0);
    check_product(type, 2816, 5, 5, FILL_ONES, 1);
    /* more columns than the activations of which kernels bring into their form at a time */
    check_product(type, 8448, 18, 1, FILL_RANDOM, 0);
    check_product(type, 33792, 9, 1, FILL_RANDOM, 0);
    /* long rows of other lengths than multiples of 1024; one begins anew just before its end */
    check_product(type, 33024, 9, 1, FILL_RANDOM, 0);
    check_product(type, 7936, 13, 1, FILL_WILD, 7);
    if (group == 32) check_product(type, 2880, 21, 1, FILL_RANDOM, 7);
    /* an eighth of the rows near a multiple of 4 KiB: Q4_0 and Q8_0, MXFP4 */
    check_product(type, 2048, 259, 1, FILL_RANDOM, 7);
    check_product(type, 2048, 155, 1, FILL_RANDOM, 7);
}

static void check_isa_names(void)
{
    unsigned mask = 7;
    T_CHECK(sl_cpu_from_isa("c", 0, &mask) == SL_OK && mask == 0, "isa c");
    mask = 7;
    T_CHECK(sl_cpu_from_isa("avx2", 0, &mask) == SL_E_UNSUPPORTED && mask == 7,
            "avx2 on a CPU without");
    T_CHECK(sl_cpu_from_isa("sse9", ~0u, &mask) == SL_E_ARG && mask == 7, "no such isa");
    T_CHECK(sl_cpu_from_isa("avx2", ~0u, &mask) == SL_OK && mask == SL_CPU_AVX2, "isa avx2");
}

int main(void)
{
    static const char *const isas[] = { "c", "avx2", "avxvnni", "avx512", "avx512vnni" };
    static const size_t sizes[] = { 32, 64, 96, 256, 512, 768, 2048, 4096 };
    t_begin();
    check_isa_names();
    for (size_t v = 0; v < SL_LEN(isas); v++) {
        unsigned mask;
        if (sl_cpu_from_isa(isas[v], sl_cpu_detect(), &mask) != SL_OK) {
            printf("skipped: %s, which this CPU lacks\n", isas[v]);
            continue;
        }
        sl_kernels_init(&sets[n_sets], mask);
        T_CHECK(!strcmp(sets[n_sets].isa, isas[v]), "set %s is called %s", isas[v],
                sets[n_sets].isa);
        n_sets++;
    }
    for (uint32_t which = 0; which < 8; which++)
        for (size_t i = 0; i < SL_LEN(sizes); i++) {
            check_quantise(32, sizes[i], which);
            if (sizes[i] % 256 == 0) check_quantise(256, sizes[i], which);
        }
    for (uint32_t t = 0; t < SL_N_TYPES; t++) {
        const sl_type_info *info = sl_type_get(t);
        bool quantised = info->matmul && info->block_elems > 1;
        T_CHECK(quantised == (sets[0].qmul[t].group > 0), "type %u: integer kernels", t);
        if (quantised) check_type((sl_type)t);
    }
    printf("%u sets, up to %s\n", n_sets, sets[n_sets - 1].isa);
    return t_end();
}
