/* tests/t_cuda_kernels.c - the CUDA kernels, compiled for the CPU (tests/cuda_shim.h) or, with
 * T_REAL_GPU, on a card in managed memory (`quick`: fewer cases, for compute-sanitizer), against
 * the C reference and sums in double with derived bounds: products of every type, runs of every
 * length, gathered rows, gated, per-head matrices; rows; router; attention. Odd sizes; what kernels
 * read and write ends on unmapped pages, and what they must not write stays as it was. */
#include "kernels/cpu/quant.h"
#include "kernels/cuda/sl_cuda.h"
#include "tests/t.h"

#include <float.h>
#include <math.h>

#define U 0x1p-24       /* unit roundoff of float32 */
#define H 0x1p-11       /* of float16 */
#define POISON 0x7fa5a5a5u

#if T_HAVE_SHIM || T_REAL_GPU
static sl_kernels ref;
static bool quick;

#if T_REAL_GPU
#include <cuda_runtime_api.h>

static void *dev(size_t n)
{
    void *p = NULL;
    T_NEED(cudaMallocManaged(&p, (n + 15) / 16 * 16, cudaMemAttachGlobal) == cudaSuccess,
           "%zu bytes of managed memory", n);
    return p;
}

static void dev_free(void *p, size_t n)
{
    (void)n;
    cudaFree(p);
}

/* A launch went well, and so did the kernel. */
static bool done(int err)
{
    return !err && cudaDeviceSynchronize() == cudaSuccess;
}
#else
/* n bytes as a device's allocator gives them: at a multiple of 16, a guard page close behind. */
static void *dev(size_t n)
{
    return t_guarded((n + 15) / 16 * 16);
}

static void dev_free(void *p, size_t n)
{
    t_guarded_free(p, (n + 15) / 16 * 16);
}

static bool done(int err)
{
    return !err;
}
#endif

static float *dev_floats(size_t n, float scale)
{
    float *v = dev(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = t_unit() * scale;
    return v;
}

static float *dev_poison(size_t n)
{
    uint32_t *v = dev(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = POISON;
    return (float *)v;
}

static bool poisoned(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u == POISON;
}

/* ---- products ---- */

static const sl_type types[] = { SL_F32, SL_F16, SL_BF16, SL_Q4_0, SL_Q8_0, SL_MXFP4, SL_Q4_K,
                                 SL_Q5_K, SL_Q6_K };

/* Random weights of about +-size. */
static void fill_weights(sl_type type, void *w, size_t elems, float size)
{
    const sl_type_info *t = sl_type_get(type);
    size_t blocks = elems / t->block_elems;
    uint8_t *b = w;
    if (t->block_elems == 1) {
        for (size_t i = 0; i < elems; i++) {
            float x = t_unit() * size;
            if (type == SL_F32) ((float *)w)[i] = x;
            else if (type == SL_F16) ref.to_f16(&x, (uint16_t *)w + i, 1);
            else memcpy((uint16_t *)w + i, (char *)&x + 2, 2);
        }
        return;
    }
    float scale = type == SL_Q8_0   ? size / 128
                  : type == SL_Q4_0 ? size / 8
                  : type == SL_Q6_K ? size / (32 * 127)
                                    : size / (type == SL_Q4_K ? 16 * 63 : 32 * 63);
    float min = size / 63;
    for (size_t k = 0; k < blocks; k++, b += t->block_bytes) {
        float d = scale * (1.5f + t_unit()) / 2, m = min * (1.5f + t_unit()) / 2;
        for (size_t i = 0; i < t->block_bytes; i++) b[i] = (uint8_t)t_rand();
        if (type == SL_MXFP4) b[0] = (uint8_t)(t_below(20) ? 120 + t_below(7) : t_below(2));
        else ref.to_f16(&d, (uint16_t *)(void *)(b + (type == SL_Q6_K ? 208 : 0)), 1);
        if (type == SL_Q4_K || type == SL_Q5_K) ref.to_f16(&m, (uint16_t *)(void *)(b + 2), 1);
    }
}

struct shape {
    uint32_t rows, cols, count, n_runs;
    uint32_t slots[6];      /* of each run */
    bool gather, gated, table;      /* x_row; act(gate, up); runs from a table */
    bool bias;
    sl_act_kind act;
};

/* cols of quantised types are multiplied by 32 or 256 where they must be multiples of it */
static const struct shape shapes[] = {
    { 5, 1, 1, 1, { 1 }, false, false, false, true, 0 },
    { 37, 3, 1, 1, { 3 }, false, false, false, false, 0 },
    { 130, 2, 1, 3, { 1, 0, 1 }, true, true, true, true, SL_ACT_SILU },
    { 65, 1, 1, 4, { 4, 9, 0, 33 }, true, true, true, false, SL_ACT_SWIGLU_OAI },
    { 67, 2, 1, 5, { 31, 0, 1, 40, 2 }, true, false, true, true, 0 },
    { 20, 1, 3, 1, { 7 }, false, false, false, true, 0 },
    { 33, 1, 2, 1, { 1 }, false, false, false, false, 0 },
    { 40, 1, 1, 2, { 130, 5 }, true, true, true, true, SL_ACT_GELU },
};

struct product {
    const struct shape *s;
    sl_type type;
    uint32_t cols, n_slots, n_x, most;
    sl_cuda_run *runs;      /* [6] */
    void *w[6][2];
    float *bias[6][2];
    size_t w_bytes, row_bytes;
    float *x;               /* [n_x][count][cols] */
    uint32_t *x_row;
    sl_cuda_product p;
};

static void make_product(struct product *r, const struct shape *s, sl_type type)
{
    static const uint32_t float_cols[] = { 12, 33, 64, 48, 75, 8, 160, 96 };
    uint32_t block = sl_type_get(type)->block_elems;
    *r = (struct product){ .s = s, .type = type };
    r->cols = block == 1 ? float_cols[s - shapes] : s->cols * block * (block == 32 ? 3 : 1);
    uint64_t bytes;
    T_NEED(sl_type_row_bytes(type, r->cols, &bytes), "row bytes");
    r->row_bytes = bytes;
    r->w_bytes = bytes * s->rows * s->count;
    r->runs = dev(s->n_runs * sizeof *r->runs);
    for (uint32_t i = 0; i < s->n_runs; i++) {
        for (int m = 0; m < (s->gated ? 2 : 1); m++) {
            r->w[i][m] = dev(r->w_bytes);
            fill_weights(type, r->w[i][m], (size_t)r->cols * s->rows * s->count, 1);
            if (s->bias) r->bias[i][m] = dev_floats((size_t)s->rows * s->count, 1);
        }
        r->runs[i] = (sl_cuda_run){ { r->w[i][0], r->w[i][1] }, { r->bias[i][0], r->bias[i][1] },
                                    r->n_slots, s->slots[i] };
        r->n_slots += s->slots[i];
        r->most = SL_MAX(r->most, s->slots[i]);
    }
    r->n_x = s->gather ? r->n_slots / 2 + 3 : r->n_slots;
    r->x = dev_floats((size_t)r->n_x * s->count * r->cols, 2);
    if (s->gather) r->x_row = dev(r->n_slots * sizeof *r->x_row);
    for (uint32_t i = 0; s->gather && i < r->n_slots; i++) r->x_row[i] = t_below(r->n_x);
    r->p = (sl_cuda_product){ .type = type, .rows = s->rows, .cols = r->cols,
                              .row_bytes = r->row_bytes, .runs = s->table ? r->runs : NULL,
                              .one = r->runs[0], .n_runs = s->n_runs, .n_slots = r->n_slots,
                              .most_slots = r->most, .count = s->count, .x_row = r->x_row,
                              .ldy = (uint64_t)s->rows * s->count + 3, .y_step = s->rows,
                              .scale = 0.5f, .gated = s->gated, .act = { s->act, 1.702f, 0.9f } };
}

static void free_product(struct product *r)
{
    for (uint32_t i = 0; i < r->s->n_runs; i++)
        for (int m = 0; m < 2; m++) {
            if (r->w[i][m]) dev_free(r->w[i][m], r->w_bytes);
            if (r->bias[i][m]) dev_free(r->bias[i][m], (size_t)r->s->rows * r->s->count * 4);
        }
    dev_free(r->runs, r->s->n_runs * sizeof *r->runs);
    dev_free(r->x, (size_t)r->n_x * r->s->count * r->cols * 4);
    if (r->x_row) dev_free(r->x_row, r->n_slots * sizeof *r->x_row);
}

/* What a product should be, and how far a float may be from it. */
struct want {
    double value, bound;
};

/* Quantised times 8 bits: integers are exact, each unit of 16 and the sum round. */
static struct want want_quant(const uint8_t *row, sl_type type, const void *x, uint32_t n)
{
    const sl_qtype *t = &sl_qtypes[type];
    const int8_t *a = x;
    const float *scale = (const float *)(const void *)((const char *)x + sl_qx_scales(n));
    struct want r = { 0, 0 };
    for (uint32_t k = 0; k < n / t->group; k++) {
        sl_qgroup g;
        t->decode(row + k * t->block_bytes, &g);
        for (uint32_t j = 0; j < t->group / 16; j++) {
            double dot = 0, sum = 0;
            for (uint32_t i = 16 * j; i < 16 * j + 16; i++) {
                dot += (g.q[i] - t->zero) * a[k * t->group + i];
                sum += a[k * t->group + i];
            }
            double u = (double)g.d * g.sc[j] * dot, v = (double)g.dmin * g.mn[j] * sum;
            r.value += scale[k] * (u - v);
            r.bound += scale[k] * (fabs(u) + fabs(v));
        }
    }
    r.bound *= (n / 16 + 8) * U;
    return r;
}

/* rel: what roundings do to the two factors. float32 sums of n terms, each of which hardware may
 * truncate: 2 U instead of U. tiny: half the spacing of float16 near 0, where weights lose more. */
static struct want want_float(const uint8_t *row, sl_type type, const float *x, uint32_t n,
                              double rel, double tiny)
{
    static float w[4096];
    struct want r = { 0, 0 };
    double sum = 0;
    ref.dequant[type](row, w, n);
    for (uint32_t i = 0; i < n; i++) {
        r.value += (double)w[i] * x[i];
        sum += fabs((double)w[i] * x[i]);
        r.bound += tiny * fabs(x[i]);
    }
    r.bound += sum * (rel + 2 * U * (n + 8));
    return r;
}

static struct want add_bias(struct want v, const float *bias, size_t at)
{
    if (!bias) return v;
    v.value += bias[at];
    v.bound += 2 * U * (fabs(v.value) + fabs(bias[at]));
    return v;
}

static double act_of(const sl_act *a, double g, double u)
{
    if (a->kind == SL_ACT_SILU) return g / (1 + exp(-g)) * u;
    if (a->kind == SL_ACT_GELU)
        return g / (1 + exp(-2 * 0.7978845608 * (g + 0.044715 * g * g * g))) * u;
    double limit = a->limit;
    g = fmin(g, limit);
    u = fmax(fmin(u, limit), -limit);
    return g / (1 + exp(-(double)a->alpha * g)) * (u + 1);
}

/* The derivative of each activation's gate part is below 1.2, and its size at most |g|. */
static struct want want_act(const sl_act *a, struct want g, struct want u)
{
    double one = a->kind == SL_ACT_SWIGLU_OAI ? 1 : 0, value = act_of(a, g.value, u.value);
    double slope = fabs(u.value) + one + u.bound;
    return (struct want){ value, 1.2 * slope * g.bound + (fabs(g.value) + g.bound) * u.bound
                                     + 16 * U * fabs(g.value) * slope };
}

static void check_product(struct product *r, bool many)
{
    const struct shape *s = r->s;
    const char *kind = many ? "many" : "few";
    const sl_type_info *t = sl_type_get(r->type);
    uint32_t group = sl_qtypes[r->type].group, n = r->cols, parts = r->n_x * s->count;
    sl_cuda_x form;
    T_NEED(many ? sl_cuda_many_x(r->type, &form) : sl_cuda_few_x(r->type, &form), "%s", t->name);
    size_t step = form == SL_CUDA_X_FLOAT ? n * sizeof(float) : form == SL_CUDA_X_QUANT
                  ? sl_qx_bytes(group, n) : form == SL_CUDA_X_HALF ? sl_cuda_half_bytes(n)
                  : sl_cuda_halves_bytes(n);
    void *x = form == SL_CUDA_X_FLOAT ? r->x : dev(parts * step);
    int err = 0;
    if (form == SL_CUDA_X_QUANT)
        err = sl_cuda_quantise(NULL, group, r->x, (uint64_t)s->count * n, n, r->n_x, s->count, n,
                               x);
    else if (form != SL_CUDA_X_FLOAT)
        err = sl_cuda_halve(NULL, form == SL_CUDA_X_HALVES, r->x, (uint64_t)s->count * n, n, r->n_x,
                            s->count, n, x);
    T_CHECK(done(err), "%s %s: activations: %d", kind, t->name, err);
    size_t y_floats = r->p.ldy * (r->n_slots - 1) + (size_t)s->rows * s->count;
    float *y = dev_poison(y_floats);
    r->p.x = x;
    r->p.x_step = step;
    r->p.x_bytes = step * s->count;
    r->p.y = y;
    err = many ? sl_cuda_many(NULL, &r->p) : sl_cuda_few(NULL, &r->p);
    T_CHECK(done(err), "%s %s: %d", kind, t->name, err);
    double worst = 0, rel = !many ? 0 : t->block_elems == 1 ? 8 * H * H : 2 * H + 2 * H * H;
    for (uint32_t i = 0; i < s->n_runs; i++)
        for (uint32_t j = 0; j < s->slots[i]; j++)
            for (uint32_t c = 0; c < s->count; c++)
                for (uint32_t row = 0; row < s->rows; row++) {
                    uint32_t slot = r->runs[i].first + j, from = r->x_row ? r->x_row[slot] : slot;
                    size_t at = (size_t)c * s->rows + row, part = (size_t)from * s->count + c;
                    struct want v[2];
                    for (int m = 0; m < (s->gated ? 2 : 1); m++) {
                        const uint8_t *w = (const uint8_t *)r->w[i][m] + at * r->row_bytes;
                        v[m] = group && !many ? want_quant(w, r->type, (char *)x + part * step, n)
                               : want_float(w, r->type, r->x + part * n, n, rel,
                                            many ? 0x1p-25 : 0);
                        v[m] = add_bias(v[m], r->bias[i][m], at);
                    }
                    if (s->gated) v[0] = want_act(&r->p.act, v[0], v[1]);
                    else v[0].value *= r->p.scale, v[0].bound *= r->p.scale;
                    float got = y[slot * r->p.ldy + at];
                    double off = fabs(got - v[0].value);
                    worst = fmax(worst, off / fmax(v[0].bound, 1e-30));
                    T_CHECK(off <= v[0].bound + 1e-30,
                            "%s %s shape %td run %u slot %u row %zu: got %g want %g +- %g", kind,
                            t->name, s - shapes, i, j, at, got, v[0].value, v[0].bound);
                }
    for (uint32_t j = 0; j + 1 < r->n_slots; j++)
        for (uint32_t e = s->rows * s->count; e < r->p.ldy; e++)
            T_CHECK(poisoned(y[j * r->p.ldy + e]), "%s %s: wrote between rows", kind, t->name);
    if (getenv("SL_TEST_VERBOSE"))
        printf("%s %s shape %td: at most %.3f of the bound\n", kind, t->name, s - shapes, worst);
    dev_free(y, y_floats * 4);
    if (x != r->x) dev_free(x, parts * step);
}

static void products(void)
{
    for (size_t t = 0; t < SL_LEN(types); t++)
        for (size_t i = 0; i < SL_LEN(shapes); i += quick ? 3 : 1) {
            struct product r;
            make_product(&r, shapes + i, types[t]);
            check_product(&r, false);
            check_product(&r, true);
            free_product(&r);
        }
    sl_cuda_x form;
    T_CHECK(!sl_cuda_few_x(SL_IQ2_XS, &form) && !sl_cuda_many_x(SL_I32, &form), "unknown types");
}

/* ---- rows ---- */

static void check_quantise(uint32_t group, uint32_t n)
{
    size_t bytes = sl_qx_bytes(group, n);
    float *x = dev_floats(n * 3, 3);
    char *got = dev(3 * bytes), *want = aligned_alloc(64, bytes);
    x[n + 1] = NAN;
    for (uint32_t i = 0; i < group; i++) x[2 * n + i] = 0;
    for (uint32_t i = group; i < 2 * group && i < n; i++) x[2 * n + i] = 1e-42f * t_unit();
    memset(got, 0x5a, 3 * bytes);
    T_CHECK(done(sl_cuda_quantise(NULL, group, x, n, 0, 3, 1, n, got)), "quantise");
    for (int r = 0; r < 3; r++) {
        memset(want, 0x5a, bytes);
        ref.quantise(group, x + r * n, n, want);
        for (size_t i = 0; i < n / group; i++) {        /* NaN is NaN whatever its bits */
            float *a = (float *)(void *)(got + r * bytes + sl_qx_scales(n)) + i;
            float *b = (float *)(void *)(want + sl_qx_scales(n)) + i;
            if (isnan(*a) && isnan(*b)) *a = *b;
        }
        T_CHECK(!memcmp(got + r * bytes, want, bytes), "quantise %u, %u elements, row %d", group, n,
                r);
    }
    free(want);
    dev_free(got, 3 * bytes);
    dev_free(x, n * 3 * 4);
}

static void check_halve(bool halves, uint32_t n, float size)
{
    size_t bytes = halves ? sl_cuda_halves_bytes(n) : sl_cuda_half_bytes(n);
    size_t pad = sl_cuda_half_pad(n);
    float *x = dev_floats(2 * n, size), *y = malloc(pad * 2 * sizeof *y), back;
    char *got = dev(2 * bytes);
    T_NEED(y, "memory");
    T_CHECK(done(sl_cuda_halve(NULL, halves, x, n, 0, 2, 1, n, got)), "halve");
    for (int r = 0; r < 2; r++) {
        double top = 0;
        for (uint32_t i = 0; i < n; i++) top = fmax(top, fabs(x[r * n + i]));
        memcpy(&back, got + r * bytes + (halves ? 4 : 2) * pad, 4);
        ref.from_f16((const uint16_t *)(const void *)(got + r * bytes), y, (halves ? 2 : 1) * pad);
        for (size_t i = 0; i < pad; i++) {
            double v = ((double)y[i] + (halves ? y[pad + i] : 0)) * back;
            double want = i < n ? x[r * n + i] : 0;
            double off = fabs(v - want), rel = halves ? H * H : H;
            T_CHECK(off <= rel * fabs(want) + top * 0x1p-38,
                    "halve n=%u size %g: %zu is %g, not %g", n, size, i, v, want);
        }
        T_CHECK(top == 0 || (top / back >= 0x1p13 && top / back < 0x1p14) || size < 1e-30f
                || size > 1e30f, "halve: the largest became %g", top / back);
    }
    dev_free(got, 2 * bytes);
    dev_free(x, 2 * n * 4);
    free(y);
}

static void near_row(const char *what, const float *got, const float *want, size_t n, double tol)
{
    double worst = 0, top = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs(want[i]));
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)got[i] - want[i]));
    T_CHECK(worst <= tol * top, "%s, %zu elements: off by %g of %g", what, n, worst, top);
    for (size_t i = 0; i < n; i++) T_CHECK(!isnan(got[i]), "%s: NaN at %zu", what, i);
}

/* Both sum n squares, in some order: n U each at most, and a handful of roundings. */
static void check_norms(sl_norm_kind kind, uint32_t n)
{
    uint32_t rows = 3;
    float *x = dev_floats(rows * n, 2), *w = dev_floats(n, 1), *b = dev_floats(n, 1);
    float *y = dev_poison(rows * n), *h = dev_poison(rows * n), *xx = dev_floats(rows * n, 2);
    float *want = malloc(n * 4), *sum = malloc(n * 4);
    uint32_t *pick = dev(8);
    sl_norm p = { w, kind == SL_NORM_LAYER ? b : NULL, kind, 1e-5f };
    double tol = 2 * U * (n + 16);
    T_NEED(want && sum, "memory");
    pick[0] = 2, pick[1] = 0;
    T_CHECK(done(sl_cuda_norm(NULL, &p, x, n, pick, y, n, 2, n)), "norm");
    for (int i = 0; i < 2; i++) {
        ref.norm(&p, x + pick[i] * n, want, n);
        near_row("norm", y + i * n, want, n, tol);
    }
    T_CHECK(poisoned(y[2 * n]), "norm wrote too much");
    for (uint32_t i = 0; i < rows * n; i++) y[i] = t_unit();
    float *keep = malloc(rows * n * 8);
    T_NEED(keep, "memory");
    memcpy(keep, xx, rows * n * 4);
    memcpy(keep + rows * n, y, rows * n * 4);
    T_CHECK(done(sl_cuda_add_norm(NULL, &p, 0.5f, xx, y, h, rows, n)), "add_norm");
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < n; i++)
            sum[i] = keep[r * n + i] + 0.5f * keep[rows * n + r * n + i];
        near_row("x of add_norm", xx + r * n, sum, n, 2 * U);
        ref.norm(&p, sum, want, n);
        near_row("h of add_norm", h + r * n, want, n, tol);
        for (uint32_t i = 0; i < n; i++) T_CHECK(y[r * n + i] == 0, "y of add_norm");
    }
    free(keep);
    free(want);
    free(sum);
    dev_free(pick, 8);
    dev_free(w, n * 4);
    dev_free(b, n * 4);
    dev_free(x, rows * n * 4);
    dev_free(xx, rows * n * 4);
    dev_free(y, rows * n * 4);
    dev_free(h, rows * n * 4);
}

static void check_combine(uint32_t n)
{
    enum { ROWS = 4, PAIRS = 9 };
    float *out = dev_floats(PAIRS * n, 1), *w = dev_floats(PAIRS, 1), *y = dev_floats(ROWS * n, 1);
    float *x = dev_floats(ROWS * n, 1), *want = malloc(ROWS * n * 8);
    uint32_t *at = dev((ROWS + 1) * 4), *slot = dev(PAIRS * 4);
    static const uint32_t ends[ROWS + 1] = { 0, 3, 3, 5, 9 };
    T_NEED(want, "memory");
    memcpy(at, ends, sizeof ends);
    for (uint32_t i = 0; i < PAIRS; i++) slot[i] = i * 4 % PAIRS;
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < n; i++) {
            float s = y[r * n + i];
            for (uint32_t e = at[r]; e < at[r + 1]; e++) s += w[e] * out[slot[e] * n + i];
            want[r * n + i] = s;
            want[(ROWS + r) * n + i] = x[r * n + i] + 0.25f * s;
        }
    T_CHECK(done(sl_cuda_combine(NULL, out, at, slot, w, y, 0.25f, x, ROWS, n)), "combine");
    near_row("y of combine", y, want, ROWS * n, 16 * U);
    near_row("x of combine", x, want + ROWS * n, ROWS * n, 16 * U);
    free(want);
    dev_free(out, PAIRS * n * 4);
    dev_free(w, PAIRS * 4);
    dev_free(y, ROWS * n * 4);
    dev_free(x, ROWS * n * 4);
    dev_free(at, (ROWS + 1) * 4);
    dev_free(slot, PAIRS * 4);
}

/* Heads with norm and rope, MLA's keys and queries, against the CPU's norm and rope. */
static void check_turns(sl_rope_kind kind, sl_norm_kind norm, uint32_t dim, uint32_t n_rot)
{
    enum { ROWS = 3, NQ = 5, NK = 2 };
    uint32_t half = n_rot / 2, nope = 6, latent = dim;
    float *c = dev_floats(ROWS * half, 1), *s = dev_floats(ROWS * half, 1);
    float *w = dev_floats(2 * dim, 1);
    float *q = dev_floats(ROWS * NQ * dim, 1), *k = dev_floats(ROWS * NK * dim, 1);
    float *want = malloc(ROWS * (NQ + NK) * dim * 4);
    T_NEED(want, "memory");
    sl_cuda_heads h = { q, k, NQ, NK, dim, { w, NULL, norm, 1e-6f }, { w + dim, NULL, norm, 1e-6f },
                        kind, n_rot, c, s };
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < NQ + NK; i++) {
            float *to = want + (r * (NQ + NK) + i) * dim;
            const float *x = i < NQ ? q + (r * NQ + i) * dim : k + (r * NK + i - NQ) * dim;
            ref.norm(i < NQ ? &h.q_norm : &h.k_norm, x, to, dim);
            ref.rope(kind, c + r * half, s + r * half, n_rot, to);
        }
    T_CHECK(done(sl_cuda_turn_heads(NULL, &h, ROWS)), "turn_heads");
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < NQ + NK; i++)
            near_row("head", i < NQ ? q + (r * NQ + i) * dim : k + (r * NK + i - NQ) * dim,
                     want + (r * (NQ + NK) + i) * dim, dim, 4 * U * (dim + 16));
    free(want);
    dev_free(q, ROWS * NQ * dim * 4);
    dev_free(k, ROWS * NK * dim * 4);

    uint32_t width = latent + n_rot, head = nope + n_rot, ld = NQ * head + 5;
    float *key = dev_floats(ROWS * width, 1), *full = dev_floats(ROWS * ld - 5, 1);
    q = dev_poison(ROWS * NQ * width);
    sl_cuda_mla m = { key, q, full, ld, NQ, nope, latent, n_rot, { w, NULL, norm, 1e-6f }, kind, c,
                      s };
    want = malloc(ROWS * width * 4);
    T_NEED(want, "memory");
    for (uint32_t r = 0; r < ROWS; r++) {
        ref.norm(&m.k_norm, key + r * width, want + r * width, latent);
        memcpy(want + r * width + latent, key + r * width + latent, n_rot * 4);
        ref.rope(kind, c + r * half, s + r * half, n_rot, want + r * width + latent);
    }
    T_CHECK(done(sl_cuda_turn_mla(NULL, &m, ROWS)), "turn_mla");
    for (uint32_t r = 0; r < ROWS; r++) {
        near_row("mla key", key + r * width, want + r * width, width, 4 * U * (latent + 16));
        for (uint32_t i = 0; i < NQ; i++) {
            float turned[256];
            memcpy(turned, full + r * ld + i * head + nope, n_rot * 4);
            ref.rope(kind, c + r * half, s + r * half, n_rot, turned);
            near_row("mla query", q + (r * NQ + i) * width + latent, turned, n_rot, 4 * U);
            for (uint32_t e = 0; e < latent; e++)
                T_CHECK(poisoned(q[(r * NQ + i) * width + e]), "mla query: wrote the latent");
        }
    }
    free(want);
    dev_free(key, ROWS * width * 4);
    dev_free(full, (ROWS * ld - 5) * 4);
    dev_free(q, ROWS * NQ * width * 4);
    dev_free(c, ROWS * half * 4);
    dev_free(s, ROWS * half * 4);
    dev_free(w, 2 * dim * 4);
}

static void rows(void)
{
    static const uint32_t sizes[] = { 1, 20, 64, 255, 700 };
    check_quantise(32, 32);
    check_quantise(32, 160);
    check_quantise(256, 512);
    check_quantise(256, 1280);
    for (size_t i = 0; i < SL_LEN(sizes); i++) {
        static const float scale[] = { 1, 1e-3f, 1e5f, 1e-36f, 1e38f };
        check_halve(false, sizes[i], scale[i]);
        check_halve(true, sizes[i], scale[i]);
        check_norms(SL_NORM_RMS, sizes[i]);
        check_norms(SL_NORM_LAYER, sizes[i] + 1);
        check_combine(sizes[i]);
    }
    check_turns(SL_ROPE_PAIRS, SL_NORM_RMS, 20, 12);
    check_turns(SL_ROPE_HALVES, SL_NORM_RMS, 128, 128);
    check_turns(SL_ROPE_HALVES, SL_NORM_LAYER, 70, 40);
    check_turns(SL_ROPE_PAIRS, SL_NORM_NONE, 72, 64);
    check_turns(SL_ROPE_NONE, SL_NORM_RMS, 36, 8);
}

/* ---- router ---- */

/* Logits are multiples of 1/8, so that the choice never hangs on a rounding. */
static void router(void)
{
    static const float odd[] = { NAN, INFINITY, -INFINITY, 0, 1, -1, 30, -30 };
    enum { MAX_E = 160, ROWS = 2 };
    for (int trial = 0; trial < (quick ? 30 : 600); trial++) {
        sl_routing r = { .score = (sl_score)(trial % (SL_SCORE_SPARSEMIXER + 1)),
                         .n_expert = 4 * (1 + t_below(MAX_E / 4)), .mixer_eps = 0.02f,
                         .normalise = t_below(2), .scale = t_below(2) ? 2.5f : 0 };
        uint32_t n = r.n_expert, want_id[MAX_E];
        r.n_used = 1 + t_below(t_below(4) ? SL_MIN(n, 8u) : n);
        if (r.score == SL_SCORE_SPARSEMIXER) r.n_used = 2;
        if (t_below(2)) r.n_group = 4, r.n_group_used = 1 + t_below(4);
        bool wild = t_below(4) == 0;
        float *l = dev(ROWS * n * 4), *bias = dev(n * 4), *w = dev_poison(ROWS * r.n_used);
        float *shared = dev(ROWS * 4), scratch[3 * MAX_E], want_w[MAX_E], was[ROWS];
        uint32_t *id = dev(ROWS * r.n_used * 4);
        for (uint32_t i = 0; i < ROWS * n; i++)
            l[i] = wild ? odd[t_below(SL_LEN(odd))] : (float)((int)t_below(65) - 32) / 8;
        for (uint32_t i = 0; i < n; i++) bias[i] = (float)((int)t_below(9) - 4) / 4;
        if (t_below(2)) r.sel_bias = bias;
        for (int i = 0; i < ROWS; i++) was[i] = shared[i] = t_unit() * 4;
        T_CHECK(done(sl_cuda_route(NULL, &r, l, ROWS, id, w, shared)), "route");
        for (int row = 0; row < ROWS; row++) {
            sl_route_row(&r, l + row * n, scratch, want_id, want_w);
            for (uint32_t i = 0; i < r.n_used; i++) {
                uint32_t at = (uint32_t)row * r.n_used + i;
                bool same = fabs(w[at] - want_w[i]) <= 1e-5 * fabs(want_w[i]) + 1e-12
                            || (isnan(w[at]) && isnan(want_w[i])) || w[at] == want_w[i];
                T_CHECK(id[at] == want_id[i], "route trial %d score %d: choice %u is %u, not %u",
                        trial, r.score, i, id[at], want_id[i]);
                T_CHECK(same, "route trial %d score %d: weight %u is %g, not %g", trial, r.score, i,
                        w[at], want_w[i]);
            }
            T_CHECK(fabs(shared[row] - 1 / (1 + exp(-(double)was[row]))) < 1e-6, "shared weight");
        }
        dev_free(l, ROWS * n * 4);
        dev_free(bias, n * 4);
        dev_free(w, ROWS * r.n_used * 4);
        dev_free(shared, ROWS * 4);
        dev_free(id, ROWS * r.n_used * 4);
    }
}

/* ---- attention ---- */

enum { SEQS = 3, MAX_N = 150, MAX_WIDTH = 2880 };

struct heads {
    uint32_t n_head, n_head_kv, k_dim, v_dim, window, block_rows, n;    /* n: positions */
    bool sinks, prefix;     /* prefix: the value is the first v_dim elements of the key */
    sl_type type;
    float scale;
    uint32_t rows_a_tile, n_splits;
};

static const struct heads heads[] = {
    { 1, 1, 8, 8, 0, 16, 5, false, false, SL_F32, 1, 1, 1 },
    { 6, 2, 20, 12, 0, 32, 70, false, false, SL_F32, 0.5f, 10, 1 },
    { 9, 3, 64, 64, 0, 64, 130, false, false, SL_F16, 0.125f, 8, 2 },
    { 8, 8, 32, 32, 5, 16, 66, true, false, SL_F16, 0.3f, 32, 3 },
    { 4, 1, 16, 24, 64, 1, 129, true, false, SL_F32, 0.3f, 1, 4 },
    { 10, 1, 16, 16, 65, 16, 130, false, false, SL_F16, 0.3f, 3, 1 },
    { 2, 2, 16, 16, 1, 8, 30, false, false, SL_F32, 1, 7, 2 },
    { 40, 1, 72, 64, 0, 32, 70, false, true, SL_F16, 0.1f, 1, 1 },
    { 20, 1, 40, 33, 100, 64, 120, true, true, SL_F32, 0.2f, 2, 3 },
    { 4, 2, 16, 16, 0, 16, 40, false, false, SL_F32, 300, 16, 1 },
    { 12, 2, 80, 48, 0, 32, 65, false, false, SL_BF16, 0.1f, 5, 5 },
    { 8, 1, 64, 32, 70, 32, 100, true, false, SL_Q8_0, 0.2f, 4, 2 },
    { 5, 1, 128, 100, 0, 32, 33, false, false, SL_F16, 0.1f, 6, 1 },
    { 4, 1, 288, 260, 0, 32, 40, false, true, SL_BF16, 0.05f, 8, 2 },
};

static float in_q[SEQS][MAX_N][MAX_WIDTH], in_k[SEQS][MAX_N][MAX_WIDTH],
    in_v[SEQS][MAX_N][MAX_WIDTH];

struct rig {
    const struct heads *h;
    sl_cuda_attn a;
    uint32_t *blocks;
    size_t k_mem, v_mem, table;
    float *sinks;
};

static uint64_t vector_bytes(sl_type type, uint32_t n)
{
    const sl_type_info *t = sl_type_get(type);
    return (uint64_t)n / t->block_elems * t->block_bytes;
}

static void open_rig(struct rig *r, const struct heads *h)
{
    uint32_t per_seq = (h->n + h->block_rows - 1) / h->block_rows, n = SEQS * per_seq;
    uint32_t shift = t_below(n);
    *r = (struct rig){ .h = h, .table = n };
    r->blocks = dev(n * 4);
    for (uint32_t i = 0; i < n; i++) r->blocks[i % SEQS * per_seq + i / SEQS] = (i + shift) % n;
    sl_cuda_kv kv = { .k_bytes = vector_bytes(h->type, h->n_head_kv * h->k_dim), .type = h->type,
                      .v_bytes = h->prefix ? 0 : vector_bytes(h->type, h->n_head_kv * h->v_dim),
                      .blocks = r->blocks, .table_stride = per_seq, .block_rows = h->block_rows };
    r->k_mem = n * h->block_rows * kv.k_bytes;
    r->v_mem = n * h->block_rows * kv.v_bytes;
    kv.k = dev(r->k_mem);
    memset(kv.k, 0xff, r->k_mem);       /* NaN: what nobody wrote must not count */
    if (r->v_mem) memset(kv.v = dev(r->v_mem), 0xff, r->v_mem);
    r->sinks = dev(h->n_head * 4);
    for (uint32_t i = 0; i < h->n_head; i++) r->sinks[i] = (float)i * 0.5f - 2;
    r->a = (sl_cuda_attn){ .kv = kv, .n_head = h->n_head, .n_head_kv = h->n_head_kv,
                           .k_dim = h->k_dim, .v_dim = h->v_dim, .window = h->window,
                           .scale = h->scale, .sinks = h->sinks ? r->sinks : NULL,
                           .rows_a_tile = h->rows_a_tile, .n_splits = h->n_splits };
}

static void close_rig(struct rig *r)
{
    dev_free(r->blocks, r->table * 4);
    dev_free(r->a.kv.k, r->k_mem);
    if (r->v_mem) dev_free(r->a.kv.v, r->v_mem);
    dev_free(r->sinks, r->h->n_head * 4);
}

/* What memory holds of a row of n floats. */
static void stored(sl_type type, const float *from, float *ret, uint32_t n)
{
    static char row[4 * MAX_WIDTH];
    ref.kv_put(type, from, row, n);
    ref.dequant[type](row, ret, n);
}

static void check_rows(const struct rig *r, const uint32_t *seq, const uint32_t *pos, uint32_t n)
{
    static float key[MAX_N][MAX_WIDTH], value[MAX_N][MAX_WIDTH];
    static double score[MAX_N];
    const struct heads *h = r->h;
    uint32_t group = h->n_head / h->n_head_kv;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t p = 0; p <= pos[i]; p++) {
            stored(h->type, in_k[seq[i]][p], key[p], h->n_head_kv * h->k_dim);
            if (!h->prefix) stored(h->type, in_v[seq[i]][p], value[p], h->n_head_kv * h->v_dim);
        }
        for (uint32_t e = 0; e < h->n_head; e++) {
            uint32_t first = h->window && pos[i] >= h->window ? pos[i] - h->window + 1 : 0;
            uint32_t kv = e / group;
            const float *q = in_q[seq[i]][pos[i]] + e * h->k_dim;
            double top = h->sinks ? r->sinks[e] : -INFINITY, sum, worst = 0;
            for (uint32_t j = first; j <= pos[i]; j++) {
                score[j] = 0;
                for (uint32_t d = 0; d < h->k_dim; d++)
                    score[j] += (double)q[d] * h->scale * key[j][kv * h->k_dim + d];
                top = fmax(top, score[j]);
            }
            sum = h->sinks ? exp(r->sinks[e] - top) : 0;
            for (uint32_t j = first; j <= pos[i]; j++) sum += score[j] = exp(score[j] - top);
            for (uint32_t d = 0; d < h->v_dim; d++) {
                double want = 0;
                for (uint32_t j = first; j <= pos[i]; j++)
                    want += score[j] / sum * (h->prefix ? key[j][kv * h->k_dim + d]
                                                        : value[j][kv * h->v_dim + d]);
                double off = fabs(r->a.att[((size_t)i * h->n_head + e) * h->v_dim + d] - want);
                if (!(off <= worst)) worst = off;
            }
            /* A score of size S is off by S * 2^-24 and some, and so is its weight. */
            T_CHECK(worst < 4e-6 * (1 + h->scale * h->k_dim),
                    "attention %td seq %u row %u head %u: off by %g", h - heads, seq[i], pos[i], e,
                    worst);
        }
    }
}

/* One pass over rows (seq[i], pos[i]): appended, checked byte by byte, attended. */
static void pass(struct rig *r, const uint32_t *seq, const uint32_t *pos, uint32_t n)
{
    const struct heads *h = r->h;
    size_t nq = h->n_head * h->k_dim, nk = h->n_head_kv * h->k_dim, nv = h->n_head_kv * h->v_dim;
    size_t na = h->n_head * h->v_dim;
    size_t parts = sl_cuda_attn_part(n, h->n_head, h->v_dim, h->n_splits);
    float *q = dev(n * nq * 4), *k = dev(n * nk * 4), *v = dev(n * nv * 4);
    float *att = dev_poison(n * na);
    float *part = h->n_splits > 1 ? dev_poison(parts) : NULL;
    uint32_t *s = dev(n * 4), *p = dev(n * 4);
    static char want[4 * MAX_WIDTH];
    memcpy(s, seq, n * 4);
    memcpy(p, pos, n * 4);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(q + i * nq, in_q[seq[i]][pos[i]], nq * 4);
        memcpy(k + i * nk, in_k[seq[i]][pos[i]], nk * 4);
        memcpy(v + i * nv, in_v[seq[i]][pos[i]], nv * 4);
    }
    r->a.seq = s, r->a.pos = p, r->a.q = q, r->a.att = att, r->a.part = part, r->a.n_rows = n;
    T_CHECK(done(sl_cuda_append(NULL, &r->a, k, h->prefix ? NULL : v)), "append");
    for (uint32_t i = 0; i < n; i++) {
        size_t at = (size_t)r->blocks[seq[i] * r->a.kv.table_stride + pos[i] / h->block_rows]
                    * h->block_rows + pos[i] % h->block_rows;
        ref.kv_put(h->type, k + i * nk, want, nk);
        T_CHECK(!memcmp(r->a.kv.k + at * r->a.kv.k_bytes, want, r->a.kv.k_bytes), "key of row %u",
                i);
        if (h->prefix) continue;
        ref.kv_put(h->type, v + i * nv, want, nv);
        T_CHECK(!memcmp(r->a.kv.v + at * r->a.kv.v_bytes, want, r->a.kv.v_bytes), "value of row %u",
                i);
    }
    T_CHECK(done(sl_cuda_attend(NULL, &r->a)), "attend");
    check_rows(r, seq, pos, n);
    dev_free(q, n * nq * 4);
    dev_free(k, n * nk * 4);
    dev_free(v, n * nv * 4);
    dev_free(att, n * na * 4);
    dev_free(s, n * 4);
    dev_free(p, n * 4);
    if (part) dev_free(part, parts * 4);
}

/* Sequences side by side: a prefill, then chunks and single rows, in passes that mix them. */
static void attention(void)
{
    for (size_t i = 0; i < SL_LEN(heads); i += quick ? 4 : 1) {
        const struct heads *h = heads + i;
        uint32_t seq[SEQS * MAX_N], pos[SEQS * MAX_N], done[SEQS] = { 0 };
        struct rig r;
        for (uint32_t s = 0; s < SEQS; s++)
            for (uint32_t p = 0; p < h->n; p++)
                for (uint32_t e = 0; e < MAX_WIDTH; e++)
                    in_q[s][p][e] = t_unit(), in_k[s][p][e] = t_unit(), in_v[s][p][e] = t_unit();
        open_rig(&r, h);
        for (uint32_t step = 0; done[0] < h->n || done[1] < h->n || done[2] < h->n; step++) {
            uint32_t n = 0;
            for (uint32_t s = 0; s < SEQS; s++) {
                uint32_t len = s == 1 ? h->n / 2 + 1 : 1 + t_below(9);
                if (step == 0) len = s == 0 ? h->n - h->n / 3 : 3;
                for (uint32_t e = 0; e < len && done[s] < h->n; e++) {
                    seq[n] = s;
                    pos[n++] = done[s]++;
                }
            }
            pass(&r, seq, pos, n);
        }
        close_rig(&r);
    }
}

int main(int argc, char **argv)
{
    quick = argc > 1 && !strcmp(argv[1], "quick");
#if T_REAL_GPU
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || !n) return t_skip("no GPU here");
#endif
    t_begin();
    sl_kernels_init(&ref, 0);
    products();
    rows();
    router();
    attention();
    return t_end();
}
#else
int main(void)
{
    return t_skip("no C++ compiler, with which CUDA kernels run on the CPU");
}
#endif
