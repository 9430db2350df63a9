/* kernels/cpu/attn.c - attention on stored keys and values (kernels/sl_attn.h), written once and
 * compiled once per set. One register tile serves prefill and decode: KX_NQ queries by two vectors,
 * of keys for the scores (keys transposed into a panel, which all queries of the call share) and of
 * dimensions for the weighted sum. */
#include "kernels/cpu/attn_load.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>

/* What the next call reads, a line every so many steps of the inner loops: memory works while this
 * call multiplies. Lines asked for faster than memory answers would occupy what the loops' own
 * misses of the first-level cache need. */
struct fetch {
    const char *const *at;
    size_t offset;
    uint32_t left, wait, pace;
};

/* n_steps: of all inner loops of the call, about. */
static struct fetch fetch_of(const sl_attn_fetch *f, uint32_t n_steps)
{
    uint32_t pace = SL_MAX(n_steps / SL_MAX(f->n, 1u), 1u);
    return (struct fetch){ f->line, f->offset, f->n, f->n ? pace : UINT32_MAX, pace };
}

KX_INLINE void fetch_one(struct fetch *f)
{
    if (__builtin_expect(--f->wait != 0, 1)) return;
    f->wait = --f->left ? f->pace : UINT32_MAX;
    __builtin_prefetch(*f->at++ + f->offset, 0, 2);
}

KX_INLINE void score_tile(const float *const *q, uint32_t k_dim, const float *panel, float scale,
                          float *s, struct fetch *fetch, const int nq)
{
    vf c[KX_NQ][2];
    struct fetch f = *fetch;
    KX_UNROLL for (int i = 0; i < nq; i++) c[i][0] = c[i][1] = vf_all(0);
    for (uint32_t d = 0; d < k_dim; d++) {
        vf b0 = vf_load(panel + (size_t)d * KX_P), b1 = vf_load(panel + (size_t)d * KX_P + KX_W);
        fetch_one(&f);
        KX_UNROLL for (int i = 0; i < nq; i++) {
            vf a = vf_all(q[i][d]);
            c[i][0] = vf_fma(a, b0, c[i][0]);
            c[i][1] = vf_fma(a, b1, c[i][1]);
        }
    }
    KX_UNROLL for (int i = 0; i < nq; i++) {
        vf_store(s + i * SL_ATTN_BLOCK, vf_mul(c[i][0], vf_all(scale)));
        vf_store(s + i * SL_ATTN_BLOCK + KX_W, vf_mul(c[i][1], vf_all(scale)));
    }
    *fetch = f;
}

/* Scores of all queries on all keys that are there, [n_q][SL_ATTN_BLOCK]. */
static void scores(const sl_attn_tile *t, float *s, float *panel)
{
    uint32_t n_tiles = (t->n_q + KX_NQ - 1) / KX_NQ, n_panels = SL_ATTN_BLOCK / KX_P;
    struct fetch f = fetch_of(&t->next_k, n_panels * n_tiles * t->k_dim);
    for (uint32_t j = t->first / KX_P * KX_P; j < t->end; j += KX_P) {
        const void *k[KX_P];
        for (uint32_t e = 0; e < KX_P; e++)
            k[e] = t->k[SL_MIN(SL_MAX(j + e, t->first), t->end - 1)];
        pack_keys(t->type, k, t->k_dim, panel);
        uint32_t i = 0;
        for (; i + KX_NQ <= t->n_q; i += KX_NQ)
            score_tile(t->q + i, t->k_dim, panel, t->scale, s + i * SL_ATTN_BLOCK + j, &f, KX_NQ);
        for (; i + 2 <= t->n_q; i += 2)
            score_tile(t->q + i, t->k_dim, panel, t->scale, s + i * SL_ATTN_BLOCK + j, &f, 2);
        if (i < t->n_q)
            score_tile(t->q + i, t->k_dim, panel, t->scale, s + i * SL_ATTN_BLOCK + j, &f, 1);
    }
}

/* vectors of 16 partial results; and rounds of them */
enum { LANES = 16 / KX_W, STEPS = SL_ATTN_BLOCK / 16 };

/* From scores to weights: s[j] = exp(s_j - mb), and their maximum and sum. */
KX_INLINE void weigh(float *s, uint32_t from, uint32_t to, float *ret_m, float *ret_l)
{
    vf x[STEPS][LANES], t[LANES];
    for (uint32_t j = 0; j < from; j++) s[j] = -INFINITY;
    for (uint32_t j = to; j < SL_ATTN_BLOCK; j++) s[j] = -INFINITY;
    KX_UNROLL for (int v = 0; v < LANES; v++) {
        KX_UNROLL for (int j = 0; j < STEPS; j++) x[j][v] = vf_load(s + 16 * j + v * KX_W);
        t[v] = x[0][v];
        KX_UNROLL for (int j = 1; j < STEPS; j++) t[v] = vf_max(x[j][v], t[v]);
    }
    *ret_m = tree_max(t);
    vf mb = vf_all(*ret_m);
    KX_UNROLL for (int v = 0; v < LANES; v++) {
        KX_UNROLL for (int j = 0; j < STEPS; j++) {
            x[j][v] = vf_exp(x[j][v] - mb);
            vf_store(s + 16 * j + v * KX_W, x[j][v]);
        }
        t[v] = x[0][v];
        KX_UNROLL for (int j = 1; j < STEPS; j++) t[v] = t[v] + x[j][v];
    }
    *ret_l = tree_add(t);
}

/* Weights of all queries; m and l merged; old and now [SL_ATTN_QUERIES]: the factors of acc and of
 * the block. */
static void weights(const sl_attn_tile *t, float *s, float *old, float *now)
{
    float lb[SL_ATTN_QUERIES];
    for (uint32_t i = 0; i < SL_ATTN_QUERIES; i++) old[i] = now[i] = 0;
    for (uint32_t i = 0; i < t->n_q; i++) {
        if (t->from[i] >= t->to[i]) continue;
        float mb, m = t->m[i];
        weigh(s + i * SL_ATTN_BLOCK, t->from[i], t->to[i], &mb, &lb[i]);
        t->m[i] = m > mb ? m : mb;
        old[i] = m - t->m[i];
        now[i] = mb - t->m[i];
    }
    for (uint32_t i = 0; i < t->n_q; i += KX_W) {
        vf_store(old + i, vf_exp(vf_load(old + i)));
        vf_store(now + i, vf_exp(vf_load(now + i)));
    }
    for (uint32_t i = 0; i < t->n_q; i++)
        if (t->from[i] < t->to[i]) t->l[i] = fmaf(lb[i], now[i], t->l[i] * old[i]);
}

/* Some queries that see the same keys, on nv vectors of dimensions. */
struct values {
    const void *const *v;       /* rows of the block */
    const float *p, *old, *now; /* [..][SL_ATTN_BLOCK], [..], [..] */
    float *acc;
    uint32_t v_dim, from, to;
};

KX_INLINE void value_tile(const sl_type type, const struct values *x, uint32_t d,
                          struct fetch *fetch, const int nq, const int nv)
{
    vf c[KX_NQ][2];
    struct fetch f = *fetch;
    KX_UNROLL for (int i = 0; i < nq; i++)
        KX_UNROLL for (int e = 0; e < nv; e++) c[i][e] = vf_all(0);
    for (uint32_t j = x->from; j < x->to; j++) {
        vf b[2];
        KX_UNROLL for (int e = 0; e < nv; e++)
            b[e] = load_row(type, x->v[j], d + (uint32_t)e * KX_W);
        fetch_one(&f);
        KX_UNROLL for (int i = 0; i < nq; i++) {
            vf a = vf_all(x->p[i * SL_ATTN_BLOCK + j]);
            KX_UNROLL for (int e = 0; e < nv; e++) c[i][e] = vf_fma(a, b[e], c[i][e]);
        }
    }
    KX_UNROLL for (int i = 0; i < nq; i++)
        KX_UNROLL for (int e = 0; e < nv; e++) {
            float *acc = x->acc + (size_t)i * x->v_dim + d + e * KX_W;
            vf_store(acc,
                     vf_fma(c[i][e], vf_all(x->now[i]), vf_mul(vf_load(acc), vf_all(x->old[i]))));
        }
    *fetch = f;
}

KX_INLINE void value_rows(const sl_type type, const struct values *x, struct fetch *f, const int nq)
{
    uint32_t d = 0;
    for (; d + 2 * KX_W <= x->v_dim; d += 2 * KX_W) value_tile(type, x, d, f, nq, 2);
    for (; d + KX_W <= x->v_dim; d += KX_W) value_tile(type, x, d, f, nq, 1);
    for (; d < x->v_dim; d++)
        for (int i = 0; i < nq; i++) {
            float ab = 0, *acc = x->acc + (size_t)i * x->v_dim + d;
            for (uint32_t j = x->from; j < x->to; j++)
                ab = fmaf(x->p[i * SL_ATTN_BLOCK + j], element(type, x->v[j], d), ab);
            *acc = fmaf(ab, x->now[i], *acc * x->old[i]);
        }
}

#define VALUES(name, type) \
    static void values_##name(const struct values *x, uint32_t nq, struct fetch *f) \
    { \
        if (nq == KX_NQ) value_rows(type, x, f, KX_NQ); \
        else if (nq == 2) value_rows(type, x, f, 2); \
        else value_rows(type, x, f, 1); \
    }
VALUES(f32, SL_F32)
VALUES(f16, SL_F16)
VALUES(bf16, SL_BF16)
VALUES(q8, SL_Q8_0)

/* Queries from i on that see the same keys: KX_NQ, 2 or 1 of them. */
static uint32_t alike(const sl_attn_tile *t, uint32_t i)
{
    uint32_t n = 1;
    while (n < KX_NQ && i + n < t->n_q && t->from[i + n] == t->from[i] && t->to[i + n] == t->to[i])
        n++;
    return n == KX_NQ ? n : n >= 2 ? 2 : 1;
}

/* Rows of values as float32, for calls that read them several times. */
static void widen(const sl_attn_tile *t, float *to, const void **rows)
{
    for (uint32_t j = t->first; j < t->end; j++) {
        float *row = to + (size_t)j * t->v_dim;
        uint32_t d = 0;
        for (; d + KX_W <= t->v_dim; d += KX_W) {
            vf v = t->type == SL_F16    ? load_row(SL_F16, t->v[j], d)
                   : t->type == SL_BF16 ? load_row(SL_BF16, t->v[j], d)
                                        : load_row(SL_Q8_0, t->v[j], d);
            vf_store(row + d, v);
        }
        for (; d < t->v_dim; d++) row[d] = element(t->type, t->v[j], d);
        rows[j] = row;
    }
}

static void attend(const sl_attn_tile *t)
{
    assert(t->n_q <= SL_ATTN_QUERIES && t->first < t->end && t->end <= SL_ATTN_BLOCK);
    assert(t->type != SL_Q8_0 || (t->k_dim % 32 == 0 && t->v_dim % 32 == 0));
    float *s = t->scratch, *old = s + SL_ATTN_QUERIES * SL_ATTN_BLOCK, *now = old + SL_ATTN_QUERIES;
    float *panel = now + 3 * SL_ATTN_QUERIES, *wide = panel + 32 * (size_t)t->k_dim;
    uint32_t n_tiles = (t->n_q + KX_NQ - 1) / KX_NQ, n_vectors = (t->v_dim + KX_P - 1) / KX_P;
    struct fetch f = fetch_of(&t->next_v, n_vectors * n_tiles * (t->end - t->first));
    const void *rows[SL_ATTN_BLOCK];
    scores(t, s, panel);
    weights(t, s, old, now);
    bool widened = t->type != SL_F32 && t->n_q > KX_NQ;
    if (widened) widen(t, wide, rows);
    sl_type type = widened ? SL_F32 : t->type;
    for (uint32_t i = 0, n; i < t->n_q; i += n) {
        n = alike(t, i);
        if (t->from[i] >= t->to[i]) continue;
        struct values x = { .v = widened ? rows : t->v, .p = s + i * SL_ATTN_BLOCK, .old = old + i,
                            .now = now + i, .acc = t->acc + (size_t)i * t->v_dim, .v_dim = t->v_dim,
                            .from = t->from[i], .to = t->to[i] };
        if (type == SL_F16) values_f16(&x, n, &f);
        else if (type == SL_BF16) values_bf16(&x, n, &f);
        else if (type == SL_Q8_0) values_q8(&x, n, &f);
        else values_f32(&x, n, &f);
    }
}

static void attend_merge(uint32_t n_q, uint32_t v_dim, const float *m2, const float *l2,
                         const float *acc2, float *m, float *l, float *acc)
{
    for (uint32_t i = 0; i < n_q; i++, acc += v_dim, acc2 += v_dim) {
        if (l2[i] == 0) continue;
        float top = m[i] > m2[i] ? m[i] : m2[i];
        float old = kx_exp(m[i] - top), now = kx_exp(m2[i] - top);
        m[i] = top;
        l[i] = fmaf(l2[i], now, l[i] * old);
        uint32_t d = 0;
        for (; d + KX_W <= v_dim; d += KX_W)
            vf_store(acc + d,
                     vf_fma(vf_load(acc2 + d), vf_all(now), vf_mul(vf_load(acc + d), vf_all(old))));
        for (; d < v_dim; d++) acc[d] = fmaf(acc2[d], now, acc[d] * old);
    }
}

static void attend_end(const float *sink, float m, float l, const float *acc, uint32_t v_dim,
                       float *out)
{
    float old = 1;
    if (sink) {
        float top = m > *sink ? m : *sink;
        old = kx_exp(m - top);
        l = fmaf(l, old, kx_exp(*sink - top));
    }
    float f = old / l;
    for (uint32_t d = 0; d < v_dim; d++) out[d] = acc[d] * f;
}

/* A block of 32: the scale is the rounded one, so that its error is no element's. */
static void put_q8(const float *x, char *to)
{
    float top = 0, scale;
    bool bad = false;
    for (int i = 0; i < 32; i++) {
        float v = fabsf(x[i]);
        bad |= !(v <= 65504 * 127.0f);
        top = v > top ? v : top;
    }
    uint16_t h = bad ? 0x7e00 : sl_f32_to_f16(top / 127);
    memcpy(to, &h, sizeof h);
    scale = bad || !h ? 0 : 1 / sl_f16_to_f32(h);
    for (int i = 0; i < 32; i++) {
        const float magic = 12582912;   /* 1.5 * 2^23: the sum's ulp is 1 */
        float v = bad ? 0 : x[i] * scale;
        v = v > 127 ? 127 : v;
        v = v < -127 ? -127 : v;
        to[2 + i] = (char)(int8_t)(int)((v + magic) - magic);
    }
}

static void kv_put(sl_type type, const float *x, void *ret, size_t n)
{
    char *to = ret;
    assert(sl_attn_type(type) && (type != SL_Q8_0 || n % 32 == 0));
    if (type == SL_F32) {
        memcpy(to, x, n * sizeof *x);
    } else if (type == SL_Q8_0) {
        for (size_t i = 0; i < n; i += 32, to += Q8_BYTES) put_q8(x + i, to);
    } else {
        for (size_t i = 0; i < n; i++, to += 2) {
            uint16_t h = type == SL_F16 ? sl_f32_to_f16(x[i]) : sl_f32_to_bf16(x[i]);
            memcpy(to, &h, sizeof h);
        }
    }
}

void KX_NAME(sl_attn_set, KX_SET)(sl_kernels *k)
{
    k->kv_put = kv_put;
    k->attend = attend;
    k->attend_merge = attend_merge;
    k->attend_end = attend_end;
}
