/* tests/t_blas.c - the cpu device's products against an independent GEMM: OpenBLAS on the
 * dequantised weights and, where activations are quantised, on the dequantised activations; every
 * type, every set this CPU runs, as few and as many activation rows, several matrices, bias, scale.
 * The bound: in any order a sum of n products is within n*u/(1-n*u) of its magnitudes (Higham,
 * Accuracy and Stability, 3.1), once for each side; a dequantised weight d*q - m has 3 roundings of
 * |d*q| + |m|, an activation one, our own group 4, bias and scale 2. And the device with OpenBLAS
 * inside (--blas on) within the same bound. Without OpenBLAS: skipped. */
#include "tests/t.h"

#if SL_HAVE_OPENBLAS
#include "kernels/cpu/quant.h"
#include "offload/device_cpu.h"

#include <cblas.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

enum { MAX_ROWS = 144, MAX_COLS = 2048, MAX_X = 200, COUNT = 2 };

static sl_ctx *ctx;
static sl_pool *pool;
static sl_kernels ref;

/* One product's operands. w, mag_w [COUNT][rows][cols]: weights as floats, |d*q| + |m| of each. */
struct product {
    sl_mat mat;
    uint32_t n;
    uint8_t *data;
    float *w, *mag_w, *bias, *x, *want, *mag, *got;
};

static float *floats(size_t n)
{
    float *p = malloc(n * sizeof *p);
    T_NEED(p, "%zu floats", n);
    return p;
}

/* Random blocks: scales are F16 of moderate size, whatever else is in the bytes. */
static void fill_blocks(sl_type type, uint8_t *data, size_t bytes)
{
    const uint32_t step = sl_type_get(type)->block_bytes;
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)t_rand();
    for (uint8_t *b = data; b < data + bytes; b += step) {
        static const uint8_t at[SL_N_TYPES][2] = {
            [SL_Q4_1] = { 0, 2 },     [SL_Q5_1] = { 0, 2 },   [SL_Q2_K] = { 80, 82 },
            [SL_Q3_K] = { 108, 108 }, [SL_Q4_K] = { 0, 2 },   [SL_Q5_K] = { 0, 2 },
            [SL_Q6_K] = { 208, 208 },
        };
        if (type == SL_MXFP4) {
            b[0] = (uint8_t)(118 + t_below(8));     /* a power of two */
            continue;
        }
        for (int i = 0; i < 2; i++) {               /* 2^-7 to 2^-4, either sign */
            b[at[type][i] + 1] = (uint8_t)((t_below(2) << 7) | (0x20 + t_below(12)));
            if (at[type][0] == at[type][1]) break;
        }
    }
}

static void fill_weights(struct product *p)
{
    const sl_mat *m = &p->mat;
    const sl_qtype *t = &sl_qtypes[m->type];
    const size_t rows = (size_t)m->rows * m->count, n = rows * m->cols;
    if (m->type == SL_F32 || m->type == SL_F16 || m->type == SL_BF16) {
        for (size_t i = 0; i < n; i++) {
            float v = t_unit();
            uint16_t h;
            uint32_t bits;
            memcpy(&bits, &v, 4);
            if (m->type == SL_F16) ref.to_f16(&v, &h, 1);
            else h = (uint16_t)(bits >> 16);
            if (m->type == SL_F32) memcpy(p->data + 4 * i, &v, 4);
            else memcpy(p->data + 2 * i, &h, 2);
        }
    } else {
        fill_blocks(m->type, p->data, rows * m->row_bytes);
    }
    for (size_t r = 0; r < rows; r++) {
        float *w = p->w + r * m->cols, *mag = p->mag_w + r * m->cols;
        ref.dequant[m->type](p->data + r * m->row_bytes, w, m->cols);
        for (uint32_t i = 0; i < m->cols; i++) mag[i] = fabsf(w[i]);
        sl_qgroup g;
        for (uint32_t i = 0; t->group && i < m->cols; i++) {
            if (i % t->group == 0)
                t->decode(p->data + r * m->row_bytes + i / t->group * t->block_bytes, &g);
            uint32_t e = i % t->group;
            mag[i] = fabsf(g.d * (float)g.sc[e / 16] * (float)(g.q[e] - t->zero))
                   + fabsf(g.dmin * (float)g.mn[e / 16]);
        }
    }
}

static void open_product(struct product *p, sl_type type, uint32_t rows, uint32_t cols, uint32_t n)
{
    uint64_t row_bytes;
    T_NEED(sl_type_row_bytes(type, cols, &row_bytes), "%u columns of type %d", cols, (int)type);
    size_t all = (size_t)COUNT * rows;
    *p = (struct product){ .n = n };
    p->data = malloc(all * row_bytes);
    T_NEED(p->data, "%zu rows", all);
    p->w = floats(all * cols), p->mag_w = floats(all * cols), p->bias = floats(all);
    p->x = floats((size_t)n * COUNT * cols);
    p->want = floats(n * all), p->mag = floats(n * all), p->got = floats(n * all);
    p->mat = (sl_mat){ .data = p->data, .bias = p->bias, .row_bytes = row_bytes, .rows = rows,
                       .cols = cols, .count = COUNT, .type = type };
    fill_weights(p);
    for (size_t i = 0; i < all; i++) p->bias[i] = t_unit();
    for (size_t i = 0; i < (size_t)n * COUNT * cols; i++) p->x[i] = t_unit();
}

static void close_product(struct product *p)
{
    free(p->data), free(p->w), free(p->mag_w), free(p->bias);
    free(p->x), free(p->want), free(p->mag), free(p->got);
}

/* x [n][COUNT][cols] quantised and back; as it is for group 0. */
static float *rounded_x(const struct product *p, uint32_t group)
{
    const uint32_t cols = p->mat.cols;
    float *ret = floats((size_t)p->n * COUNT * cols);
    char *q = group ? aligned_alloc(64, sl_qx_bytes(group, cols)) : NULL;
    memcpy(ret, p->x, (size_t)p->n * COUNT * cols * sizeof *ret);
    for (uint32_t r = 0; q && r < p->n * COUNT; r++) {
        ref.quantise(group, p->x + (size_t)r * cols, cols, q);
        const float *scale = (const float *)(const void *)(q + sl_qx_scales(cols));
        for (uint32_t i = 0; i < cols; i++)
            ret[(size_t)r * cols + i] = scale[i / group] * (float)((int8_t *)q)[i];
    }
    free(q);
    return ret;
}

/* want[j][c][r] and the sums of magnitudes, by OpenBLAS. */
static void multiply_blas(struct product *p, uint32_t group)
{
    const int rows = (int)p->mat.rows, cols = (int)p->mat.cols, n = (int)p->n;
    float *x = rounded_x(p, group), *abs_x = floats((size_t)n * COUNT * p->mat.cols);
    for (size_t i = 0; i < (size_t)n * COUNT * p->mat.cols; i++) abs_x[i] = fabsf(x[i]);
    for (int c = 0; c < COUNT; c++) {
        size_t w_at = (size_t)c * p->mat.rows * p->mat.cols;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, rows, cols, 1, x + c * cols,
                    COUNT * cols, p->w + w_at, cols, 0, p->want + c * rows, COUNT * rows);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, rows, cols, 1, abs_x + c * cols,
                    COUNT * cols, p->mag_w + w_at, cols, 0, p->mag + c * rows, COUNT * rows);
    }
    free(x);
    free(abs_x);
}

static void check_product(cpu_device *d, struct product *p, const char *what)
{
    const sl_mat *m = &p->mat;
    const float scale = 0.75f;
    cpu_product c = { .mat = m, .x = p->x, .y = p->got, .ldx = (size_t)COUNT * m->cols,
                      .ldy = (size_t)COUNT * m->rows, .xstep = m->cols, .ystep = m->rows,
                      .n = p->n, .scale = scale };
    size_t n_y = (size_t)p->n * COUNT * m->rows;
    double worst = 0;
    for (size_t i = 0; i < n_y; i++) p->got[i] = NAN;
    cpu_multiply(d, &c, 1);
    for (size_t i = 0; i < n_y; i++) {
        double bias = p->bias[i % ((size_t)COUNT * m->rows)];
        double want = (p->want[i] + bias) * scale;
        double mag = (p->mag[i] * 1.001 + fabs(bias)) * scale;
        double bound = (2.0 * m->cols + 12) * FLT_EPSILON / 2 * 1.001 * mag + 1e-35;
        double off = fabs(p->got[i] - want);
        if (!(off <= worst * bound)) worst = off / bound;
        if (!(off <= bound))
            T_CHECK(false, "%s %s %s: %u x %u, %u rows, element %zu: got %g want %g, bound %g",
                    sl_type_get(m->type)->name, d->k.isa, what, m->rows, m->cols, p->n, i,
                    p->got[i], want, bound);
    }
    T_CHECK(worst <= 1, "%s %s %s: %.3f of the bound", sl_type_get(m->type)->name, d->k.isa, what,
            worst);
}

static cpu_device *open_device(unsigned mask, bool float_acts, bool blas)
{
    sl_device *d = NULL;
    sl_device_params p = { .pool = pool, .max_rows = MAX_X, .cpu_mask = mask,
                           .float_acts = float_acts, .blas = blas };
    p.widths = (sl_widths){ .d_model = MAX_COLS, .cols = MAX_COLS, .n_head = 1, .head_dim = 64,
                            .heads = COUNT, .mla = COUNT * MAX_COLS, .att = COUNT * MAX_COLS };
    T_NEED(sl_device_create_cpu(ctx, &p, &d) == SL_OK, "%s", sl_error(ctx));
    return (cpu_device *)(void *)d;
}

static void check_type(sl_type type, cpu_device *const *sets, uint32_t n_sets, cpu_device *floats_d,
                       cpu_device *blas_d)
{
    static const uint32_t sizes[][3] = {    /* rows, columns, activation rows */
        { 5, 256, 1 },   { 33, 512, 3 },  { 16, 2048, 4 },         { MAX_ROWS, 768, 7 },
        { 70, 256, 64 }, { 64, 256, 129 }, { 100, MAX_COLS, 18 }, { 3, 512, MAX_X },
    };
    for (uint32_t i = 0; i < SL_LEN(sizes); i++) {
        struct product p;
        open_product(&p, type, sizes[i][0], sizes[i][1], sizes[i][2]);
        multiply_blas(&p, ref.qmul[type].group);
        for (uint32_t s = 0; s < n_sets; s++) check_product(sets[s], &p, "");
        if (ref.qmul[type].group) multiply_blas(&p, 0);
        check_product(floats_d, &p, "float activations");
        check_product(blas_d, &p, "OpenBLAS inside");
        close_product(&p);
    }
}

int main(void)
{
    static const char *const isas[] = { "c", "avx2", "avxvnni", "avx512", "avx512vnni" };
    cpu_device *sets[SL_LEN(isas)];
    uint32_t n_sets = 0;
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx && sl_pool_create(ctx, 0, &pool) == SL_OK, "a pool");
    sl_kernels_init(&ref, 0);
    for (size_t i = 0; i < SL_LEN(isas); i++) {
        unsigned mask;
        if (sl_cpu_from_isa(isas[i], sl_cpu_detect(), &mask) == SL_OK)
            sets[n_sets++] = open_device(mask, false, false);
        else printf("skipped: %s, which this CPU lacks\n", isas[i]);
    }
    cpu_device *floats_d = open_device(~0u, true, false), *blas_d = open_device(~0u, true, true);
    for (uint32_t t = 0; t < SL_N_TYPES; t++)
        if (sl_type_get(t)->matmul) check_type((sl_type)t, sets, n_sets, floats_d, blas_d);
    for (uint32_t i = 0; i < n_sets; i++) sets[i]->base.ops->destroy(&sets[i]->base);
    floats_d->base.ops->destroy(&floats_d->base);
    blas_d->base.ops->destroy(&blas_d->base);
    sl_pool_destroy(&pool);
    sl_ctx_destroy(&ctx);
    return t_end();
}

#else

int main(void)
{
    return t_skip("built without OpenBLAS");
}

#endif
