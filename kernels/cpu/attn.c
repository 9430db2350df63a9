/* kernels/cpu/attn.c - attention on stored keys and values (kernels/sl_attn.h), written once and
 * compiled once per set. Scores: a tile of KX_NQ queries by KX_NV vectors of keys in registers, the
 * keys converted and transposed into a panel that all queries of the call share. Weighted sums: the
 * same tile by vectors of dimensions, on a panel of values; few queries take the values as they are
 * stored. Two things count beside the products, because two threads of a core share them: a panel
 * leaves most of the first-level cache to others, and a step of a tile is as few instructions as
 * its registers allow. */
#include "kernels/cpu/attn_load.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>

/* c[i][v] += x[i][e] * panel[e][v], vectors. The last one is read each time: no register is left
 * for it. */
KX_INLINE void multiply_step(const float *const *x, const float *panel, vf c[][KX_NV],
                             const uint32_t e, const int nq)
{
    const float *row = panel + e * KX_P;
    vf b[KX_NV - 1];
    KX_UNROLL for (int v = 0; v < KX_NV - 1; v++) b[v] = vf_load(row + v * KX_W);
    KX_UNROLL for (int i = 0; i < nq; i++) {
        vf a = vf_all(x[i][e]);
        KX_UNROLL for (int v = 0; v < KX_NV - 1; v++) vf_add_product(&c[i][v], a, b[v]);
        vf_add_product_at(&c[i][KX_NV - 1], a, row + (KX_NV - 1) * KX_W);
    }
}

/* The sum of that over e in [0, n), ascending. */
KX_INLINE void multiply(const float **x, const float *panel, uint32_t n, vf c[][KX_NV],
                        struct fetch *f, const int nq)
{
    for (; n >= KX_LOOK; n -= KX_LOOK, panel += KX_LOOK * KX_P) {
        fetch_some(f);
        KX_UNROLL for (uint32_t e = 0; e < KX_LOOK; e++) multiply_step(x, panel, c, e, nq);
        KX_UNROLL for (int i = 0; i < nq; i++) x[i] += KX_LOOK;
    }
    for (; n; n--, panel += KX_P) {
        multiply_step(x, panel, c, 0, nq);
        KX_UNROLL for (int i = 0; i < nq; i++) x[i]++;
    }
}

/* Dimensions [from, from + n) of the keys. */
struct dims {
    uint32_t from, n;
    bool last;
};

/* Scores of nq queries on a panel: begun with dimension 0, scaled behind the last. */
KX_INLINE void score_tile(const float *const *q, struct dims d, const float *panel, float scale,
                          float *s, struct fetch *f, const int nq)
{
    vf c[KX_NQ][KX_NV], factor = vf_all(d.last ? scale : 1);
    const float *x[KX_NQ];
    KX_UNROLL for (int i = 0; i < nq; i++) {
        x[i] = q[i] + d.from;
        KX_UNROLL for (int v = 0; v < KX_NV; v++) {
            c[i][v] = vf_all(0);
            if (d.from) c[i][v] = vf_load(s + i * SL_ATTN_BLOCK + v * KX_W);
        }
    }
    multiply(x, panel, d.n, c, f, nq);
    KX_UNROLL for (int i = 0; i < nq; i++)
        KX_UNROLL for (int v = 0; v < KX_NV; v++)
            vf_store(s + i * SL_ATTN_BLOCK + v * KX_W, vf_mul(c[i][v], factor));
}

/* Queries (or vectors) of the next tile: `most`, 2 or 1 of so many. */
static inline uint32_t tile_of(uint32_t left, uint32_t most)
{
    return left >= most && (most != 3 || left != 4) ? most : SL_MIN(left, 2u);
}

/* Scores of all queries on all keys that are there, [n_q][SL_ATTN_BLOCK]. */
static void scores(const sl_attn_tile *t, float *s, float *panel)
{
    uint32_t begin = t->first / KX_P * KX_P;
    uint32_t n_panels = (t->end - begin + KX_P - 1) / KX_P;
    uint32_t n_tiles = (t->n_q + KX_NQ - 1) / KX_NQ;
    struct fetch f = fetch_of(&t->next_k, n_panels * (n_tiles * t->k_dim / KX_LOOK
                                                      + KX_NV * t->k_dim / pack_dims(t->type)));
    for (uint32_t j = begin; j < t->end; j += KX_P) {
        const void *k[KX_P];
        for (uint32_t e = 0; e < KX_P; e++)
            k[e] = t->k[SL_MIN(SL_MAX(j + e, t->first), t->end - 1)];
        for (struct dims d = { 0 }; d.from < t->k_dim; d.from += d.n) {
            d.n = SL_MIN(t->k_dim - d.from, (uint32_t)KX_ND);
            d.last = d.from + d.n == t->k_dim;
            pack_keys(t->type, k, d.from, d.n, panel, &f);
            for (uint32_t i = 0, n; i < t->n_q; i += n) {
                float *to = s + i * SL_ATTN_BLOCK + j;
                n = tile_of(t->n_q - i, KX_NQ);
                if (n == KX_NQ) score_tile(t->q + i, d, panel, t->scale, to, &f, KX_NQ);
                else if (n == 2) score_tile(t->q + i, d, panel, t->scale, to, &f, 2);
                else score_tile(t->q + i, d, panel, t->scale, to, &f, 1);
            }
        }
    }
}

/* vectors of 16 partial results; and rounds of them */
enum { LANES = 16 / KX_W, STEPS = SL_ATTN_BLOCK / 16 };

static float top_of(const float *s)
{
    vf t[LANES];
    KX_UNROLL for (int v = 0; v < LANES; v++) {
        t[v] = vf_load(s + v * KX_W);
        KX_UNROLL for (int j = 1; j < STEPS; j++)
            t[v] = vf_max(vf_load(s + 16 * j + v * KX_W), t[v]);
    }
    return tree_max(t);
}

/* From scores to weights: s[j] = exp(s_j - mb), and their sum. */
static float weigh(float *s, float mb)
{
    enum { AT_ONCE = 2 * LANES };
    vf t[LANES], x[AT_ONCE];
    KX_UNROLL for (int v = 0; v < LANES; v++) t[v] = vf_all(0);
    for (int j = 0; j < STEPS; j += 2, s += AT_ONCE * KX_W) {
        KX_UNROLL for (int v = 0; v < AT_ONCE; v++) x[v] = vf_load(s + v * KX_W) - vf_all(mb);
        vf_exps(x, AT_ONCE);
        KX_UNROLL for (int v = 0; v < AT_ONCE; v++) vf_store(s + v * KX_W, x[v]);
        KX_UNROLL for (int v = 0; v < LANES; v++) t[v] = t[v] + x[v] + x[LANES + v];
    }
    return tree_add(t);
}

/* Weights of all queries; m and l merged; old and now [SL_ATTN_QUERIES]: the factors of acc and of
 * the block. In steps, so that no query waits for another's. */
static void weights(const sl_attn_tile *t, float *s, float *old, float *now)
{
    float lb[SL_ATTN_QUERIES], mb[SL_ATTN_QUERIES];
    for (uint32_t i = 0; i < SL_ATTN_QUERIES; i++) old[i] = now[i] = 0;
    for (uint32_t i = 0; i < t->n_q; i++) {
        float *row = s + i * SL_ATTN_BLOCK;
        if (t->from[i] >= t->to[i]) continue;
        for (uint32_t j = 0; j < t->from[i]; j++) row[j] = -INFINITY;
        for (uint32_t j = t->to[i]; j < SL_ATTN_BLOCK; j++) row[j] = -INFINITY;
        mb[i] = top_of(row);
    }
    for (uint32_t i = 0; i < t->n_q; i++) {
        float m = t->m[i];
        if (t->from[i] >= t->to[i]) continue;
        lb[i] = weigh(s + i * SL_ATTN_BLOCK, mb[i]);
        t->m[i] = m > mb[i] ? m : mb[i];
        old[i] = m - t->m[i];
        now[i] = mb[i] - t->m[i];
    }
    for (uint32_t i = 0; i < t->n_q; i += KX_W) {
        vf x[2] = { vf_load(old + i), vf_load(now + i) };
        vf_exps(x, 2);
        vf_store(old + i, x[0]);
        vf_store(now + i, x[1]);
    }
    for (uint32_t i = 0; i < t->n_q; i++)
        if (t->from[i] < t->to[i]) t->l[i] = fmaf(lb[i], now[i], t->l[i] * old[i]);
}

/* Some queries that see the same keys, and dimensions of the values from d on. */
struct values {
    const float *panel;         /* [to][KX_P], these dimensions of all keys; or */
    const void *const *v;       /* the keys' rows as they are stored */
    uint32_t d;
    const float *p, *old, *now; /* [..][SL_ATTN_BLOCK], [..], [..] */
    float *acc;                 /* of the first dimension, rows v_dim apart */
    uint32_t v_dim, from, to;
};

KX_INLINE void merge(const struct values *x, vf c, int i, int v)
{
    float *acc = x->acc + (size_t)i * x->v_dim + v * KX_W;
    vf_store(acc, vf_fma(c, vf_all(x->now[i]), vf_mul(vf_load(acc), vf_all(x->old[i]))));
}

KX_INLINE void panel_tile(const struct values *x, struct fetch *f, const int nq)
{
    vf c[KX_NQ][KX_NV];
    const float *p[KX_NQ];
    KX_UNROLL for (int i = 0; i < nq; i++) {
        p[i] = x->p + i * SL_ATTN_BLOCK + x->from;
        KX_UNROLL for (int v = 0; v < KX_NV; v++) c[i][v] = vf_all(0);
    }
    multiply(p, x->panel + x->from * KX_P, x->to - x->from, c, f, nq);
    KX_UNROLL for (int i = 0; i < nq; i++)
        KX_UNROLL for (int v = 0; v < KX_NV; v++) merge(x, c[i][v], i, v);
}

static void value_panel(const struct values *x, uint32_t nq, struct fetch *f)
{
    if (nq == KX_NQ) panel_tile(x, f, KX_NQ);
    else if (nq == 2) panel_tile(x, f, 2);
    else panel_tile(x, f, 1);
}

/* The same with the values as they are stored. */
KX_INLINE void direct_step(const sl_type type, const void *row, uint32_t d, const float *p,
                           vf c[][KX_DV], const int nq, const int nv)
{
    vf b[KX_DV];
    KX_UNROLL for (int v = 0; v < nv; v++) b[v] = load_row(type, row, d + (uint32_t)v * KX_W);
    KX_UNROLL for (int i = 0; i < nq; i++) {
        vf a = vf_all(p[i * SL_ATTN_BLOCK]);
        KX_UNROLL for (int v = 0; v < nv; v++) vf_add_product(&c[i][v], a, b[v]);
    }
}

KX_INLINE void direct_tile(const sl_type type, const struct values *x, struct fetch *f,
                           const int nq, const int nv)
{
    vf c[KX_DQ][KX_DV];
    const float *p = x->p + x->from;
    const void *const *row = x->v + x->from, *const *end = x->v + x->to;
    KX_UNROLL for (int i = 0; i < nq; i++)
        KX_UNROLL for (int v = 0; v < nv; v++) c[i][v] = vf_all(0);
    for (; row + KX_LOOK <= end; row += KX_LOOK, p += KX_LOOK) {
        fetch_some(f);
        KX_UNROLL for (int j = 0; j < KX_LOOK; j++)
            direct_step(type, row[j], x->d, p + j, c, nq, nv);
    }
    for (; row < end; row++, p++) direct_step(type, *row, x->d, p, c, nq, nv);
    KX_UNROLL for (int i = 0; i < nq; i++)
        KX_UNROLL for (int v = 0; v < nv; v++) merge(x, c[i][v], i, v);
}

#define DIRECT_N(type, nq) \
    if (nv == KX_DV) direct_tile(type, x, f, nq, KX_DV); \
    else if (nv == 2) direct_tile(type, x, f, nq, 2); \
    else direct_tile(type, x, f, nq, 1)
#define DIRECT(name, type) \
    static void direct_##name(const struct values *x, uint32_t nq, uint32_t nv, struct fetch *f) \
    { \
        if (nq == KX_DQ) { DIRECT_N(type, KX_DQ); } \
        else if (nq == 2) { DIRECT_N(type, 2); } \
        else { DIRECT_N(type, 1); } \
    }
DIRECT(f32, SL_F32)
DIRECT(f16, SL_F16)
DIRECT(bf16, SL_BF16)
DIRECT(q8, SL_Q8_0)

/* Fewer dimensions than a vector has. */
static void value_tail(sl_type type, const struct values *x, uint32_t nq, uint32_t n)
{
    for (uint32_t i = 0; i < nq; i++)
        for (uint32_t d = 0; d < n; d++) {
            float ab = 0, *acc = x->acc + (size_t)i * x->v_dim + d;
            for (uint32_t j = x->from; j < x->to; j++)
                ab = fmaf(x->p[i * SL_ATTN_BLOCK + j], element(type, x->v[j], x->d + d), ab);
            *acc = fmaf(ab, x->now[i], *acc * x->old[i]);
        }
}

static void value_direct(sl_type type, const struct values *x, uint32_t nq, uint32_t nv,
                         struct fetch *f)
{
    if (type == SL_F16) direct_f16(x, nq, nv, f);
    else if (type == SL_BF16) direct_bf16(x, nq, nv, f);
    else if (type == SL_Q8_0) direct_q8(x, nq, nv, f);
    else direct_f32(x, nq, nv, f);
}

/* Queries [i, i + n) see the same keys. */
struct group {
    uint32_t i, n;
};

/* Groups of `most`, 2 or 1 queries that see some keys. */
static uint32_t find_groups(const sl_attn_tile *t, uint32_t most, struct group *ret)
{
    uint32_t n_groups = 0;
    for (uint32_t i = 0, end = 0; i < t->n_q; i = end) {
        while (end < t->n_q && t->from[end] == t->from[i] && t->to[end] == t->to[i]) end++;
        if (t->from[i] >= t->to[i]) continue;
        for (uint32_t n; i < end; i += n) {
            n = tile_of(end - i, most);
            ret[n_groups++] = (struct group){ i, n };
        }
    }
    return n_groups;
}

/* What `values` is about. */
struct values_of {
    const sl_attn_tile *t;
    const float *s, *old, *now;
    struct fetch f;
};

static struct values values_at(const struct values_of *o, uint32_t i, uint32_t d)
{
    const sl_attn_tile *t = o->t;
    return (struct values){ .v = t->v, .d = d, .p = o->s + i * SL_ATTN_BLOCK, .old = o->old + i,
                            .now = o->now + i, .acc = t->acc + (size_t)i * t->v_dim + d,
                            .v_dim = t->v_dim, .from = t->from[i], .to = t->to[i] };
}

/* Dimensions from d on, converted once for all queries. Returns where less than a panel is left. */
static uint32_t values_packed(struct values_of *o, float *panel)
{
    const sl_attn_tile *t = o->t;
    struct group g[SL_ATTN_QUERIES];
    uint32_t d = 0, n_groups = find_groups(t, KX_NQ, g);
    for (; d + KX_P <= t->v_dim; d += KX_P) {
        pack_values(t->type, t->v, t->first, t->end, d, panel);
        for (uint32_t e = 0; e < n_groups; e++) {
            struct values x = values_at(o, g[e].i, d);
            x.panel = panel;
            value_panel(&x, g[e].n, &o->f);
        }
    }
    return d;
}

/* Dimensions from d on, converted for each few queries. */
static void values_direct(struct values_of *o, uint32_t d)
{
    const sl_attn_tile *t = o->t;
    struct group g[SL_ATTN_QUERIES];
    uint32_t n_groups = find_groups(t, KX_DQ, g);
    for (uint32_t nv; d < t->v_dim; d += SL_MAX(nv, 1u) * KX_W) {
        nv = tile_of((t->v_dim - d) / KX_W, KX_DV);
        for (uint32_t e = 0; e < n_groups; e++) {
            struct values x = values_at(o, g[e].i, d);
            if (nv) value_direct(t->type, &x, g[e].n, nv, &o->f);
            else value_tail(t->type, &x, g[e].n, t->v_dim - d);
        }
    }
}

static void values(const sl_attn_tile *t, const float *s, const float *old, const float *now,
                   float *panel)
{
    struct values_of o = { t, s, old, now, { 0 } };
    bool packed = t->n_q > (t->type == SL_Q8_0 ? KX_DQ : 2 * KX_DQ);
    uint32_t nq = packed ? KX_NQ : KX_DQ, nv = packed ? KX_NV : KX_DV, width = nv * KX_W;
    o.f = fetch_of(&t->next_v, (t->n_q + nq - 1) / nq * ((t->v_dim + width - 1) / width)
                               * ((t->end - t->first) / KX_LOOK));
    values_direct(&o, packed ? values_packed(&o, panel) : 0);
}

static void attend(const sl_attn_tile *t)
{
    assert(t->n_q <= SL_ATTN_QUERIES && t->first < t->end && t->end <= SL_ATTN_BLOCK);
    assert(t->type != SL_Q8_0 || (t->k_dim % 32 == 0 && t->v_dim % 32 == 0));
    float *s = t->scratch, *old = s + SL_ATTN_QUERIES * SL_ATTN_BLOCK, *now = old + SL_ATTN_QUERIES;
    float *panel = now + SL_ATTN_QUERIES;
    scores(t, s, panel);
    weights(t, s, old, now);
    values(t, s, old, now, panel);
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
