/* tests/t_kernels.c - the float32 kernels: every set this CPU runs gives the bits of the plain
 * reference, reads and writes nothing past its lengths, and stays within the stated errors.
 * In any order a dot is within n*u/(1-n*u) * sum|a_i*b_i| of exact (Higham, Accuracy and Stability,
 * 3.1). */
#include "kernels/sl_kernels.h"
#include "tests/t.h"

#include <float.h>
#include <math.h>

static sl_kernels sets[3];
static uint32_t n_sets;

static bool same(const float *a, const float *b, size_t n)
{
    return memcmp(a, b, n * sizeof *a) == 0;
}

/* The order that sl_kernels.h promises, written as it is said. */
static float dot_as_said(const float *a, const float *b, size_t n)
{
    float s[16] = { 0 };
    for (size_t i = 0; i < n; i++) {
        float p = a[i] * b[i];
        s[i % 16] += p;
    }
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

static void check_dots(const sl_kernels *k, size_t n)
{
    float *w[SL_DOTS_TILE], *x[SL_DOTS_TILE], ret[SL_DOTS_TILE * SL_DOTS_TILE];
    for (int i = 0; i < SL_DOTS_TILE; i++) {
        w[i] = t_guarded_f32(n);
        x[i] = t_guarded_f32(n);
    }
    for (uint32_t nw = 1; nw <= SL_DOTS_TILE; nw++)
        for (uint32_t nx = 1; nx <= SL_DOTS_TILE; nx++) {
            k->dots((const float *const *)w, nw, (const float *const *)x, nx, n, ret);
            for (uint32_t i = 0; i < nw; i++)
                for (uint32_t j = 0; j < nx; j++) {
                    float got = ret[j * SL_DOTS_TILE + i], want = dot_as_said(w[i], x[j], n);
                    double exact = 0, mag = 0, nu = (double)n * FLT_EPSILON / 2;
                    for (size_t e = 0; e < n; e++) {
                        exact += (double)w[i][e] * x[j][e];
                        mag += fabs((double)w[i][e] * x[j][e]);
                    }
                    T_CHECK(same(&got, &want, 1), "dots %s n=%zu %ux%u [%u][%u]: got %a want %a",
                            k->isa, n, nw, nx, i, j, got, want);
                    T_CHECK(fabs(got - exact) <= nu / (1 - nu) * mag,
                            "dots %s n=%zu: got %a exact %a", k->isa, n, got, exact);
                }
        }
    for (int i = 0; i < SL_DOTS_TILE; i++) {
        t_guarded_free(w[i], n * sizeof(float));
        t_guarded_free(x[i], n * sizeof(float));
    }
}

static double norm_exact(const sl_norm *p, const float *x, size_t n, size_t i)
{
    double mean = 0, var = 0;
    if (p->kind == SL_NORM_NONE) return x[i];
    for (size_t e = 0; e < n && p->kind == SL_NORM_LAYER; e++) mean += x[e] / (double)n;
    for (size_t e = 0; e < n; e++) var += (x[e] - mean) * (x[e] - mean) / (double)n;
    double y = (x[i] - mean) / sqrt(var + p->eps);
    return y * (p->weight ? p->weight[i] : 1) + (p->bias ? p->bias[i] : 0);
}

static void check_norm(size_t n, sl_norm_kind kind, bool weight, bool bias)
{
    float *x = t_guarded_f32(n), *w = t_guarded_f32(n), *b = t_guarded_f32(n),
          *y = t_guarded_f32(n);
    float *first = malloc(n * sizeof *first);
    sl_norm p = { weight ? w : NULL, bias ? b : NULL, kind, 1e-5f };
    for (uint32_t s = 0; s < n_sets; s++) {
        sets[s].norm(&p, x, y, n);
        if (s == 0) memcpy(first, y, n * sizeof *y);
        T_CHECK(same(y, first, n), "norm %s n=%zu kind=%d", sets[s].isa, n, (int)kind);
        memcpy(y, x, n * sizeof *y);
        sets[s].norm(&p, y, y, n);
        T_CHECK(same(y, first, n), "norm in place %s n=%zu kind=%d", sets[s].isa, n, (int)kind);
    }
    for (size_t i = 0; i < n; i++) {
        double want = norm_exact(&p, x, n, i);
        T_CHECK(fabs(first[i] - want) <= 1e-6 * (1 + fabs(want)) * 4,
                "norm n=%zu kind=%d: got %g want %g", n, (int)kind, first[i], want);
    }
    free(first);
    float *all[] = { x, w, b, y };
    for (size_t i = 0; i < SL_LEN(all); i++) t_guarded_free(all[i], n * sizeof(float));
}

/* Elementwise kernels: every set against the first, at every length. */
static void check_elementwise(size_t n)
{
    float *g = t_guarded_f32(n), *u = t_guarded_f32(n), *y = t_guarded_f32(n),
          *y0 = malloc((n + 1) * 4);
    for (size_t i = 0; i < n; i++) g[i] *= i % 7 == 0 ? 100.0f : 9.0f, u[i] *= 9;
    for (uint32_t s = 0; s < n_sets; s++)
        for (int what = 0; what < 6; what++) {
            sl_act a = { what < 3 ? (sl_act_kind)what : SL_ACT_SILU, 1.702f, 7 };
            const sl_kernels *k = sets + s, *c = sets;
            memcpy(y, u, n * 4);
            memcpy(y0, u, n * 4);
            if (what < 3) k->act(&a, g, u, y, n), c->act(&a, g, u, y0, n);
            if (what == 3) k->exp(g, y, n), c->exp(g, y0, n);
            if (what == 4) k->sigmoid(g, y, n), c->sigmoid(g, y0, n);
            if (what == 5) k->axpy(0.37f, g, y, n), c->axpy(0.37f, g, y0, n);
            T_CHECK(same(y, y0, n), "elementwise %d %s n=%zu", what, k->isa, n);
            for (size_t i = 0; i < n; i++) {
                double v = g[i], w = u[i], want = 0, sg = v > 7 ? 7 : v,
                       cu = w > 7    ? 7
                            : w < -7 ? -7
                                     : w;
                double th = tanh(sqrt(2 / acos(-1)) * (v + 0.044715 * v * v * v));
                if (what == 0) want = v / (1 + exp(-v)) * w;
                if (what == 1) want = 0.5 * v * (1 + th) * w;
                if (what == 2) want = sg / (1 + exp(-1.702 * sg)) * (cu + 1);
                if (what == 3) want = exp(v);
                if (what == 4) want = 1 / (1 + exp(-v));
                if (what == 5) want = w + 0.37 * v;
                double bound = what == 2 ? 8e-6 : what == 1 ? 1e-4 : 1e-5;
                if (isfinite((float)want) && fabs(want) > 1e-30)
                    T_CHECK(fabs(y0[i] - want) <= bound * (fabs(want) + (what == 5 ? 1 : 0)) + 1e-6,
                            "elementwise %d of %g, %g: got %g want %g", what, v, w, y0[i], want);
            }
        }
    t_guarded_free(g, n * 4);
    t_guarded_free(u, n * 4);
    t_guarded_free(y, n * 4);
    free(y0);
}

static double ulp_of(double v)
{
    int e;
    frexp(v, &e);
    return ldexp(1, SL_MAX(e - 24, -149));
}

/* e^x over all floats in steps of a prime number of bit patterns. */
static void check_exp_error(void)
{
    double worst = 0;
    float at = 0, x[64], y[64];
    uint32_t n = 0;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += 251) {
        uint32_t bits = (uint32_t)u;
        memcpy(&x[n], &bits, 4);
        if (isnan(x[n]) || ++n < 64) continue;
        sets[0].exp(x, y, n);
        while (n) {
            double want = exp((double)x[--n]), err;
            if (want > FLT_MAX || isinf(y[n])) {
                T_CHECK(isinf(y[n]) && want > FLT_MAX * (1 - 1e-7), "exp(%a): got %a", x[n], y[n]);
                continue;
            }
            err = fabs(y[n] - want) / ulp_of(want);
            if (err > worst) worst = err, at = x[n];
        }
    }
    T_CHECK(worst <= 2, "exp: %.2f ulp at %a", worst, at);
    printf("exp: at most %.3f ulp (at %a)\n", worst, at);
    float special[4] = { 0, -INFINITY, INFINITY, NAN };
    sets[0].exp(special, y, 4);
    T_CHECK(y[0] == 1 && y[1] == 0 && isinf(y[2]) && isnan(y[3]),
            "exp of 0, -inf, inf, nan: %g %g %g %g", y[0], y[1], y[2], y[3]);
}

/* Every half survives the way there and back; what lies between two rounds to the nearer, ties to
 * even. */
static void check_f16(const sl_kernels *k)
{
    uint16_t h[2], back[3];
    float f[2], mid[3];
    for (uint32_t u = 0; u < 0xffff; u++) {
        h[0] = (uint16_t)u;
        h[1] = (uint16_t)(u + 1);
        k->from_f16(h, f, 2);
        k->to_f16(f, back, 1);
        bool nan = (u & 0x7fff) > 0x7c00;
        T_CHECK(nan ? isnan(f[0]) && (back[0] & 0x7fff) > 0x7c00 : back[0] == h[0],
                "f16 %s %04x -> %a -> %04x", k->isa, u, f[0], back[0]);
        if ((u & 0x7fff) >= 0x7bff) continue;
        mid[0] = (f[0] + f[1]) / 2;
        mid[1] = nextafterf(mid[0], f[0]);
        mid[2] = nextafterf(mid[0], f[1]);
        k->to_f16(mid, back, 3);
        T_CHECK(back[0] == (u & 1 ? h[1] : h[0]) && back[1] == h[0] && back[2] == h[1],
                "f16 %s above %04x: %04x %04x %04x", k->isa, u, back[0], back[1], back[2]);
    }
    float big[3] = { 65519.996f, 65520.0f, -1e30f };
    k->to_f16(big, back, 3);
    T_CHECK(back[0] == 0x7bff && back[1] == 0x7c00 && back[2] == 0xfc00,
            "f16 overflow: %04x %04x %04x", back[0], back[1], back[2]);
}

static void check_rope(uint32_t n_rot)
{
    float *c = t_guarded_f32(n_rot / 2), *s = t_guarded_f32(n_rot / 2), *x = t_guarded_f32(n_rot);
    float *y = t_guarded_f32(n_rot), *first = malloc(n_rot * sizeof *first);
    for (int kind = SL_ROPE_PAIRS; kind <= SL_ROPE_HALVES; kind++)
        for (uint32_t v = 0; v < n_sets; v++) {
            memcpy(y, x, n_rot * sizeof *y);
            sets[v].rope((sl_rope_kind)kind, c, s, n_rot, y);
            if (!v) memcpy(first, y, n_rot * sizeof *y);
            T_CHECK(same(y, first, n_rot), "rope %s kind=%d n=%u", sets[v].isa, kind, n_rot);
            for (uint32_t i = 0; i < n_rot / 2; i++) {
                uint32_t a = kind == SL_ROPE_PAIRS ? 2 * i : i,
                         b = kind == SL_ROPE_PAIRS ? a + 1 : i + n_rot / 2;
                T_CHECK(fabs(y[a] - ((double)x[a] * c[i] - (double)x[b] * s[i])) < 1e-6
                            && fabs(y[b] - ((double)x[a] * s[i] + (double)x[b] * c[i])) < 1e-6,
                        "rope pair %u", i);
            }
        }
    t_guarded_free(c, n_rot / 2 * sizeof *c);
    t_guarded_free(s, n_rot / 2 * sizeof *s);
    t_guarded_free(x, n_rot * sizeof *x);
    t_guarded_free(y, n_rot * sizeof *y);
    free(first);
}

/* Some queries with ranges of their own on two blocks, ended, in every set; against the softmax in
 * double over what was stored. Every stored vector ends on an unmapped page. */
static void check_attend(sl_type type, uint32_t n_q, uint32_t n_keys, uint32_t k_dim,
                         uint32_t v_dim, const float *sink)
{
    const sl_type_info *info = sl_type_get(type);
    size_t n_out = (size_t)n_q * v_dim, n_scratch = SL_ATTN_SCRATCH;
    size_t bytes[2] = { (size_t)k_dim / info->block_elems * info->block_bytes,
                        (size_t)v_dim / info->block_elems * info->block_bytes };
    uint32_t dims[2] = { k_dim, v_dim };
    float *q = t_guarded_f32((size_t)n_q * k_dim), *out = t_guarded_f32(n_out),
          *first = malloc(n_out * 4);
    float *scratch = t_guarded_f32(n_scratch), *wide[2], m[SL_ATTN_QUERIES], l[SL_ATTN_QUERIES];
    float *acc = malloc(n_out * 4);
    const float *qs[SL_ATTN_QUERIES];
    const void *rows[2][2][SL_ATTN_BLOCK] = { { { 0 } } };
    uint8_t from[SL_ATTN_QUERIES], to[SL_ATTN_QUERIES];
    uint32_t skip = n_keys > 20 ? 3 : 0;
    for (uint32_t i = 0; i < n_q; i++) {
        qs[i] = q + (size_t)i * k_dim;
        from[i] = (uint8_t)(i % 16 < 8 ? skip : t_below(n_keys));
        to[i] = (uint8_t)(i % 16 < 8 ? n_keys : from[i] + t_below(n_keys - from[i] + 1));
        from[i] = (uint8_t)SL_MAX(from[i], skip);
        to[i] = SL_MAX(to[i], from[i]);
    }
    for (int x = 0; x < 2; x++) {
        wide[x] = malloc(2 * (size_t)SL_ATTN_BLOCK * dims[x] * 4);
        for (uint32_t j = skip; j < 2 * SL_ATTN_BLOCK; j++) {
            if (j % SL_ATTN_BLOCK < skip || j % SL_ATTN_BLOCK >= n_keys) continue;
            float *f = t_guarded_f32(dims[x]);
            void *row = t_guarded(bytes[x]);
            sets[0].kv_put(type, f, row, dims[x]);
            sets[0].dequant[type](row, wide[x] + (size_t)j * dims[x], dims[x]);
            rows[x][j / SL_ATTN_BLOCK][j % SL_ATTN_BLOCK] = row;
            for (uint32_t s = 1; s < n_sets; s++) {
                char copy[4096];
                sets[s].kv_put(type, f, copy, dims[x]);
                T_CHECK(memcmp(copy, row, bytes[x]) == 0, "kv_put %s %s n=%u", info->name,
                        sets[s].isa, dims[x]);
            }
            t_guarded_free(f, dims[x] * 4);
        }
    }
    for (uint32_t s = 0; s < n_sets; s++) {
        sl_attn_tile t = { .type = type,
                           .n_q = n_q,
                           .k_dim = k_dim,
                           .v_dim = v_dim,
                           .q = qs,
                           .first = skip,
                           .end = n_keys,
                           .from = from,
                           .to = to,
                           .scale = 0.7f,
                           .m = m,
                           .l = l,
                           .acc = acc,
                           .scratch = scratch };
        for (uint32_t i = 0; i < n_q; i++) m[i] = -INFINITY, l[i] = 0;
        memset(acc, 0, n_out * 4);
        for (uint32_t b = 0; b < 2; b++) {
            t.k = rows[0][b];
            t.v = rows[1][b];
            sets[s].attend(&t);
        }
        for (uint32_t i = 0; i < n_q; i++)
            sets[s].attend_end(sink, m[i], l[i], acc + (size_t)i * v_dim, v_dim,
                               out + (size_t)i * v_dim);
        if (!s) memcpy(first, out, n_out * 4);
        for (uint32_t i = 0; i < n_q; i++)
            T_CHECK(same(out + (size_t)i * v_dim, first + (size_t)i * v_dim, v_dim)
                        || (!sink && !l[i]),
                    "attend %s %s query %u of %u, keys=%u k=%u v=%u", info->name, sets[s].isa, i,
                    n_q, n_keys, k_dim, v_dim);
    }
    for (uint32_t i = 0; i < n_q; i++) {
        double sum = sink ? exp(*sink) : 0, want[600] = { 0 }, bound = k_dim > 128 ? 4e-5 : 1e-5;
        for (uint32_t j = 0; j < 2 * SL_ATTN_BLOCK; j++) {
            if (j % SL_ATTN_BLOCK < from[i] || j % SL_ATTN_BLOCK >= to[i]) continue;
            double s = 0;
            for (uint32_t e = 0; e < k_dim; e++)
                s += (double)qs[i][e] * wide[0][(size_t)j * k_dim + e];
            sum += s = exp(s * 0.7f);
            for (uint32_t e = 0; e < v_dim; e++) want[e] += s * wide[1][(size_t)j * v_dim + e];
        }
        for (uint32_t e = 0; e < v_dim && sum > 0; e++)
            T_CHECK(fabs(first[i * v_dim + e] - want[e] / sum) < bound,
                    "attend %s q=%u keys=%u: got %g want %g", info->name, n_q, n_keys,
                    first[i * v_dim + e], want[e] / sum);
    }
    for (int x = 0; x < 2; x++) {
        for (uint32_t j = 0; j < 2 * SL_ATTN_BLOCK; j++)
            t_guarded_free((void *)(uintptr_t)rows[x][j / SL_ATTN_BLOCK][j % SL_ATTN_BLOCK],
                           bytes[x]);
        free(wide[x]);
    }
    free(acc);
    free(first);
    t_guarded_free(q, (size_t)n_q * k_dim * 4);
    t_guarded_free(scratch, n_scratch * 4);
    t_guarded_free(out, n_out * 4);
}

static void check_attention(void)
{
    static const sl_type types[] = { SL_F32, SL_F16, SL_BF16, SL_Q8_0 };
    static const float sink = 0.4f;
    static const struct { uint32_t n_q, n_keys, k_dim, v_dim; bool sink;
    } shapes[] = {
        { 1, 1, 32, 32, false },     { 3, 63, 20, 12, false },  { 8, 64, 64, 64, true },
        { 5, 64, 128, 128, false },  { 64, 50, 64, 96, false }, { 17, 64, 72, 40, true },
        { 16, 33, 576, 512, false }, { 9, 17, 8, 33, true },
    };
    for (size_t i = 0; i < SL_LEN(shapes); i++)
        for (size_t t = 0; t < SL_LEN(types); t++) {
            if (types[t] == SL_Q8_0 && (shapes[i].k_dim % 32 || shapes[i].v_dim % 32)) continue;
            check_attend(types[t], shapes[i].n_q, shapes[i].n_keys, shapes[i].k_dim,
                         shapes[i].v_dim, shapes[i].sink ? &sink : NULL);
        }
}

/* A dequantiser may differ between sets in its code, never in its bits. */
static void check_dequant(sl_type type)
{
    const sl_type_info *info = sl_type_get(type);
    size_t n = 3 * (size_t)info->block_elems, bytes = 3 * (size_t)info->block_bytes;
    uint8_t *row = t_guarded(bytes);
    float *y = t_guarded(n * 4), *first = malloc(n * 4);
    for (int trial = 0; trial < 50; trial++) {
        for (size_t i = 0; i < bytes; i++) row[i] = (uint8_t)t_rand();
        for (uint32_t s = 0; s < n_sets; s++) {
            sets[s].dequant[type](row, y, n);
            if (!s) memcpy(first, y, n * 4);
            for (size_t i = 0; i < n; i++)
                T_CHECK(same(y + i, first + i, 1) || (isnan(y[i]) && isnan(first[i])),
                        "dequant %s %s element %zu: got %a want %a", info->name, sets[s].isa, i,
                        y[i], first[i]);
        }
    }
    t_guarded_free(row, bytes);
    t_guarded_free(y, n * 4);
    free(first);
}

int main(void)
{
    static const unsigned masks[] = { 0, SL_CPU_AVX2, SL_CPU_AVX2 | SL_CPU_AVX512 };
    static const size_t sizes[] = { 1, 7, 8, 15, 16, 17, 31, 32, 33, 255, 1024, 4097 };
    t_begin();
    for (size_t v = 0; v < SL_LEN(masks); v++)
        if ((sl_cpu_detect() & masks[v]) == masks[v]) sl_kernels_init(&sets[n_sets++], masks[v]);
    for (size_t j = 0; j < SL_LEN(sizes); j++) {
        for (uint32_t s = 0; s < n_sets; s++) check_dots(sets + s, sizes[j]);
        check_norm(sizes[j], SL_NORM_RMS, true, false);
        check_norm(sizes[j], SL_NORM_LAYER, true, true);
        check_norm(sizes[j], SL_NORM_NONE, false, false);
        check_elementwise(sizes[j]);
    }
    check_exp_error();
    for (uint32_t s = 0; s < n_sets; s++) check_f16(sets + s);
    for (uint32_t n = 2; n <= 130; n += 16) check_rope(n);
    check_attention();
    for (uint32_t t = 0; t < SL_N_TYPES; t++)
        if (sets[0].dequant[t]) check_dequant((sl_type)t);
    printf("%u sets, up to %s\n", n_sets, sets[n_sets - 1].isa);
    return t_end();
}
