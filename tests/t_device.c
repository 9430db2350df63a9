/* tests/t_device.c - the stages of the cpu device on small random models: logits against a plain
 * forward pass in double, written from the papers' formulas (MLA not absorbed); and the promise of
 * sameness: the same bits in one prefill, in chunks, row by row, beside other sequences, on 1 and 2
 * threads, with runs of experts in one call, in many or in steps, and on the reference kernels.
 * Stages must not allocate. */
#include "tests/t_device_model.h"

/* ---- the reference, in double ---- */

/* What a matrix of this type is multiplied with: x, or x through 8 bits and back. */
static void ref_acts(const sl_mat *a, const double *x, double *ret)
{
    static _Alignas(64) char qx[8192];
    uint32_t group = reference.qmul[a->type].group;
    float f[2048];
    for (uint32_t i = 0; i < a->cols; i++) ret[i] = f[i] = (float)x[i];
    if (!group) {
        memcpy(ret, x, a->cols * sizeof *ret);
        return;
    }
    reference.quantise(group, f, a->cols, qx);
    const float *scale = (const float *)(qx + sl_qx_scales(a->cols));
    for (uint32_t i = 0; i < a->cols; i++) ret[i] = (double)scale[i / group] * (int8_t)qx[i];
}

static void ref_mul(const sl_mat *a, uint32_t c, const double *in, double *y)
{
    float row[2048];
    double x[2048];
    ref_acts(a, in, x);
    for (uint32_t r = 0; r < a->rows; r++) {
        reference.dequant[a->type]((const char *)a->data
                                       + ((uint64_t)c * a->rows + r) * a->row_bytes,
                                   row, a->cols);
        y[r] = a->bias ? a->bias[c * a->rows + r] : 0;
        for (uint32_t i = 0; i < a->cols; i++) y[r] += row[i] * x[i];
    }
}

static void ref_norm(const sl_norm *p, const double *x, double *y, uint32_t n)
{
    double mean = 0, var = 0;
    for (uint32_t i = 0; i < n && p->kind == SL_NORM_LAYER; i++) mean += x[i] / n;
    for (uint32_t i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / n;
    for (uint32_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) / sqrt(var + p->eps) * p->weight[i] + (p->bias ? p->bias[i] : 0);
}

static void ref_rope(const sl_rope *r, uint32_t pos, double *x)
{
    for (uint32_t i = 0; i < r->n_rot / 2; i++) {
        double c = cos(pos * r->inv_freq[i]) * r->scale, s = sin(pos * r->inv_freq[i]) * r->scale;
        uint32_t a = r->kind == SL_ROPE_PAIRS ? 2 * i : i,
                 b = r->kind == SL_ROPE_PAIRS ? a + 1 : i + r->n_rot / 2;
        double u = x[a], v = x[b];
        x[a] = u * c - v * s;
        x[b] = u * s + v * c;
    }
}

static double ref_act(const sl_act *a, double g, double u)
{
    if (a->kind == SL_ACT_SILU) return g / (1 + exp(-g)) * u;
    if (a->kind == SL_ACT_GELU)
        return 0.5 * g * (1 + tanh(sqrt(2 / acos(-1)) * (g + 0.044715 * g * g * g))) * u;
    g = g > a->limit ? a->limit : g;
    u = u > a->limit ? a->limit : u < -a->limit ? -a->limit : u;
    return g / (1 + exp(-(double)a->alpha * g)) * (u + 1);
}

static void ref_ffn(const sl_layer *l, const sl_ffn *f, const double *h, double weight, double *y)
{
    double g[512], u[512], out[D];
    ref_mul(&f->gate, 0, h, g);
    ref_mul(&f->up, 0, h, u);
    for (uint32_t i = 0; i < f->gate.rows; i++) g[i] = ref_act(&l->act, g[i], u[i]);
    ref_mul(&f->down, 0, g, out);
    for (uint32_t i = 0; i < D; i++) y[i] += weight * out[i];
}

static double ref_k[N][2048], ref_v[N][2048];   /* [position][head][dim]: what attention reads */

/* Keys, values and queries of one position: per head, rope turned. MLA: keys [k_b^T latent |
 * rope]. */
static void ref_qkv(const struct model *m, const sl_layer *l, uint32_t pos, const double *h,
                    double *q)
{
    const sl_attn *a = &l->attn;
    uint32_t rot = m->w.rope.n_rot, latent = a->k_dim - rot, full = a->nope + rot;
    if (a->kind == SL_ATTN_MLA) {
        double qa[512], kv[512], per[2048];
        if (a->q_a.rows) {
            ref_mul(&a->q_a, 0, h, qa);
            ref_norm(&a->q_a_norm, qa, qa, a->q_a.rows);
        }
        ref_mul(&a->q, 0, a->q_a.rows ? qa : h, q);
        ref_mul(&a->kv_a, 0, h, kv);
        ref_norm(&a->kv_a_norm, kv, kv, latent);
        ref_rope(&m->w.rope, pos, kv + latent);
        for (uint32_t n = 0; n < a->n_head; n++) {
            float row[2048];
            double *k = ref_k[pos] + n * full;
            ref_rope(&m->w.rope, pos, q + n * full + a->nope);
            memset(k, 0, a->nope * sizeof *k);
            for (uint32_t r = 0; r < latent; r++) {     /* k_nope = k_b^T latent */
                reference.dequant[a->k_b.type]((const char *)a->k_b.data
                                                   + ((uint64_t)n * latent + r) * a->k_b.row_bytes,
                                               row, a->nope);
                for (uint32_t i = 0; i < a->nope; i++) k[i] += row[i] * kv[r];
            }
            memcpy(k + a->nope, kv + latent, rot * sizeof *k);
            ref_mul(&a->v_b, n, kv, per);
            memcpy(ref_v[pos] + n * a->v_head, per, a->v_head * sizeof *per);
        }
        return;
    }
    double *out[2] = { q, ref_k[pos] };
    const sl_norm *norms[2] = { &a->q_norm, &a->k_norm };
    uint32_t heads[2] = { a->n_head, a->n_head_kv };
    ref_mul(&a->q, 0, h, q);
    ref_mul(&a->k, 0, h, ref_k[pos]);
    ref_mul(&a->v, 0, h, ref_v[pos]);
    for (int s = 0; s < 2; s++) {
        if (a->qk_norm == SL_QK_NORM_FULL) ref_norm(norms[s], out[s], out[s], heads[s] * a->k_dim);
        for (uint32_t n = 0; n < heads[s]; n++) {
            double *x = out[s] + n * a->k_dim;
            if (a->qk_norm == SL_QK_NORM_HEAD) ref_norm(norms[s], x, x, a->k_dim);
            ref_rope(&m->w.rope, pos, x);
        }
    }
}

static void ref_attend(const sl_attn *a, uint32_t rot, uint32_t pos, const double *q, double *att)
{
    bool mla = a->kind == SL_ATTN_MLA;
    uint32_t dk = mla ? a->nope + rot : a->k_dim, dv = mla ? a->v_head : a->v_dim;
    uint32_t group = mla ? 1 : a->n_head / a->n_head_kv;
    for (uint32_t n = 0; n < a->n_head; n++) {
        double sum = a->sinks ? exp((double)a->sinks[n]) : 0, *out = att + n * dv;
        memset(out, 0, dv * sizeof *out);
        for (uint32_t j = a->window && pos >= a->window ? pos - a->window + 1 : 0; j <= pos; j++) {
            double s = 0;
            for (uint32_t i = 0; i < dk; i++) s += q[n * dk + i] * ref_k[j][n / group * dk + i];
            sum += s = exp(s * a->scale);
            for (uint32_t i = 0; i < dv; i++) out[i] += s * ref_v[j][n / group * dv + i];
        }
        for (uint32_t i = 0; i < dv; i++) out[i] /= sum;
    }
}

static void ref_experts(const struct model *m, const sl_layer *l, const double *h, double *y)
{
    if (!l->moe) {
        ref_ffn(l, &l->ffn, h, 1, y);
        return;
    }
    double score[64], gate = 1;
    float logits[64], scratch[256], w[64];
    uint32_t id[64];
    ref_mul(&l->router, 0, h, score);
    for (uint32_t e = 0; e < l->routing.n_expert; e++) logits[e] = (float)score[e];
    sl_route_row(&l->routing, logits, scratch, id, w);
    for (uint32_t i = 0; i < l->routing.n_used; i++)
        ref_ffn(l, &m->experts[l->index][id[i]], h, w[i], y);
    if (l->shared_gate.rows) {
        ref_mul(&l->shared_gate, 0, h, &gate);
        gate = 1 / (1 + exp(-gate));
    }
    if (l->shared.gate.rows) ref_ffn(l, &l->shared, h, gate, y);
}

static void ref_forward(const struct model *m, const int32_t *token, double (*logits)[VOCAB])
{
    static double x[N][D], q[N][2048];
    for (uint32_t p = 0; p < N; p++) {
        float row[D];
        reference.dequant[m->w.embed.type]((const char *)m->w.embed.data
                                               + token[p] * m->w.embed.row_bytes,
                                           row, D);
        for (uint32_t i = 0; i < D; i++) x[p][i] = (double)row[i] * m->w.embed_scale;
    }
    for (const sl_layer *l = m->layers; l < m->layers + LAYERS; l++) {
        for (uint32_t p = 0; p < N; p++) {
            double h[D];
            ref_norm(&l->attn.norm, x[p], h, D);
            ref_qkv(m, l, p, h, q[p]);
        }
        for (uint32_t p = 0; p < N; p++) {
            double att[2048], out[D], h[D], y[D] = { 0 };
            ref_attend(&l->attn, m->w.rope.n_rot, p, q[p], att);
            ref_mul(&l->attn.o, 0, att, out);
            for (uint32_t i = 0; i < D; i++) x[p][i] += l->residual_scale * out[i];
            ref_norm(&l->ffn_norm, x[p], h, D);
            ref_experts(m, l, h, y);
            for (uint32_t i = 0; i < D; i++) x[p][i] += l->residual_scale * y[i];
        }
    }
    for (uint32_t p = 0; p < N; p++) {
        double h[D];
        ref_norm(&m->w.out_norm, x[p], h, D);
        ref_mul(&m->w.head, 0, h, logits[p]);
        for (uint32_t i = 0; i < VOCAB; i++) logits[p][i] *= m->w.logit_scale;
    }
}

/* ---- the device, driven as the executor does ---- */

struct engine {
    sl_ctx *ctx;
    sl_pool *pool;
    sl_device *dev;
    const struct model *m;
    sl_batch b;
    sl_kv_view kv[LAYERS];
    uint32_t tables[SEQS][N / BLOCK + 1];
    const uint32_t *blocks[SEQS];
    int32_t token[ROWS];
    uint32_t pos[ROWS], seq[ROWS], rows[ROWS], run_rows[ROWS * 9];
    float run_w[ROWS * 9];
    enum { ONE_CALL, CALL_EACH, OUT_OF_ORDER } calls;   /* how runs of experts are cut */
    float out[ROWS * 9 * D];    /* OUT_OF_ORDER: outputs stored early */
};

static void *take(struct engine *e, size_t bytes)
{
    void *p = NULL;
    T_NEED(e->dev->ops->alloc(e->dev, SL_ACC_SCRATCH, bytes + 64, &p) == SL_OK, "%s",
           sl_error(e->ctx));
    return p;
}

static void open_engine(struct engine *e, const struct model *m, uint32_t threads, unsigned mask)
{
    const struct shape *s = m->s;
    const sl_widths *w = &m->widths;
    memset(e, 0, sizeof *e);
    e->m = m;
    e->ctx = sl_ctx_create(NULL, NULL);
    T_NEED(sl_pool_create(e->ctx, threads, &e->pool) == SL_OK, "%s", sl_error(e->ctx));
    sl_device_params p = { .pool = e->pool, .max_rows = ROWS, .widths = *w, .cpu_mask = mask };
    T_NEED(sl_device_create_cpu(e->ctx, &p, &e->dev) == SL_OK, "%s", sl_error(e->ctx));
    size_t elem = s->kv_type == SL_F16 ? 2 : 4, blocks = SEQS * (N / BLOCK + 1);
    for (uint32_t l = 0; l < LAYERS; l++) {
        e->kv[l] = (sl_kv_view){ .k_bytes = w->k * elem,
                                 .v_bytes = s->kind == SL_ATTN_MLA ? 0 : w->v * elem,
                                 .blocks = e->blocks,
                                 .block_rows = BLOCK,
                                 .type = s->kv_type };
        e->kv[l].k = take(e, blocks * BLOCK * e->kv[l].k_bytes);
        e->kv[l].v = take(e, blocks * BLOCK * e->kv[l].v_bytes);
    }
    for (uint32_t i = 0; i < blocks; i++)       /* sequences lie interleaved, last block first */
        e->tables[i % SEQS][i / SEQS] = (uint32_t)blocks - 1 - i;
    for (uint32_t i = 0; i < SEQS; i++) e->blocks[i] = e->tables[i];
    e->b = (sl_batch){ .token = e->token, .pos = e->pos, .seq = e->seq, .logit_row = e->rows };
    e->b.x = take(e, ROWS * D * 4);
    e->b.h = take(e, ROWS * D * 4);
    e->b.y = take(e, ROWS * D * 4);
    e->b.q = take(e, (size_t)ROWS * w->q * 4);
    e->b.k = take(e, (size_t)ROWS * w->k * 4);
    e->b.v = take(e, (size_t)ROWS * w->v * 4);
    e->b.att = take(e, (size_t)ROWS * w->att * 4);
    e->b.cos = take(e, (size_t)ROWS * w->n_rot * 2);
    e->b.sin = take(e, (size_t)ROWS * w->n_rot * 2);
    e->b.expert_id = take(e, (size_t)ROWS * w->n_used * 4);
    e->b.expert_w = take(e, (size_t)ROWS * w->n_used * 4);
    e->b.shared_w = take(e, ROWS * 4);
    e->b.logits = take(e, (size_t)ROWS * VOCAB * 4);
}

static void close_engine(struct engine *e)
{
    sl_mem_report r;
    sl_device_destroy(&e->dev);
    sl_mem_get(e->ctx, &r);
    T_CHECK(r.total == 0, "%llu bytes left behind", (unsigned long long)r.total);
    sl_pool_destroy(&e->pool);
    sl_ctx_destroy(&e->ctx);
}

/* Runs by ascending expert, then the shared expert. */
static uint32_t group_rows(struct engine *e, const sl_layer *l, sl_expert_run *runs)
{
    const sl_batch *b = &e->b;
    uint32_t n = 0, at = 0;
    if (!l->moe) {
        runs[0] = (sl_expert_run){ .ffn = l->ffn };
        return 1;
    }
    for (uint32_t x = 0; x < l->routing.n_expert; x++) {
        uint32_t first = at;
        for (uint32_t i = 0; i < b->n_rows * l->routing.n_used; i++)
            if (b->expert_id[i] == x) {
                e->run_rows[at] = i / l->routing.n_used;
                e->run_w[at++] = b->expert_w[i];
            }
        if (at > first)
            runs[n++] = (sl_expert_run){ .ffn = e->m->experts[l->index][x],
                                         .rows = e->run_rows + first,
                                         .weights = e->run_w + first,
                                         .n_rows = at - first,
                                         .index = x };
    }
    if (l->shared.gate.rows)
        runs[n++] = (sl_expert_run){ .ffn = l->shared,
                                     .weights = l->shared_gate.rows ? b->shared_w : NULL };
    return n;
}

/* Every second run is computed ahead of its turn, the last of them first. */
static sl_status out_of_order(struct engine *e, const sl_layer *l, sl_expert_run *runs, uint32_t n)
{
    float *out = e->out;
    sl_status st = SL_OK;
    unsigned ends = SL_EXPERTS_FIRST;
    for (uint32_t i = n; i-- > 0 && st == SL_OK; ) {
        if (i % 2 == 0) continue;
        runs[i].part = SL_RUN_STORE;
        runs[i].out = out;
        out += (runs[i].rows ? runs[i].n_rows : e->b.n_rows) * (size_t)D;
        st = e->dev->ops->experts(e->dev, l, runs + i, 1, ends, &e->b);
        ends = 0;
        runs[i].part = SL_RUN_ADD;
        runs[i].ffn.gate.data = runs[i].ffn.up.data = runs[i].ffn.down.data = NULL;
    }
    return st == SL_OK ? e->dev->ops->experts(e->dev, l, runs, n, ends | SL_EXPERTS_LAST, &e->b)
                       : st;
}

static sl_status run_experts(struct engine *e, const sl_layer *l)
{
    sl_expert_run runs[16];
    sl_status st = SL_OK;
    uint32_t n = group_rows(e, l, runs);
    if (e->calls == ONE_CALL)
        return e->dev->ops->experts(e->dev, l, runs, n, SL_EXPERTS_FIRST | SL_EXPERTS_LAST, &e->b);
    if (e->calls == OUT_OF_ORDER) return out_of_order(e, l, runs, n);
    for (uint32_t i = 0; i < n && st == SL_OK; i++)
        st = e->dev->ops->experts(e->dev, l, runs + i, 1,
                                  (i ? 0 : SL_EXPERTS_FIRST) | (i + 1 == n ? SL_EXPERTS_LAST : 0),
                                  &e->b);
    return st;
}

static void pass(struct engine *e)
{
    const sl_device_ops *o = e->dev->ops;
    const sl_weights *w = &e->m->w;
    sl_batch *b = &e->b;
    sl_status st = o->embed(e->dev, w, b);
    for (const sl_layer *l = w->layers; l < w->layers + LAYERS && st == SL_OK; l++) {
        st = o->qkv(e->dev, w, l, b);
        if (st == SL_OK) st = o->attend(e->dev, l, e->kv + l->index, b);
        if (st == SL_OK) st = o->post(e->dev, l, b);
        if (st == SL_OK && l->moe)
            st = o->route(e->dev, l, b->h, b->n_rows, b->expert_id, b->expert_w, b->shared_w);
        if (st == SL_OK) st = run_experts(e, l);
    }
    if (st == SL_OK) st = o->head(e->dev, w, b);
    T_CHECK(st == SL_OK, "pass of %u rows: %s", b->n_rows, sl_error(e->ctx));
}

/* All N logits of sequence `which`, `chunk` rows a pass, with rows of `others` more sequences
 * around. */
static void sequence(struct engine *e, const int32_t *token, uint32_t which, uint32_t chunk,
                     uint32_t others, float (*logits)[VOCAB])
{
    for (uint32_t at = 0; at < N; at += chunk) {
        uint32_t n = SL_MIN(chunk, N - at), r = 0;
        e->b.n_logits = 0;
        for (uint32_t s = 0; s < SEQS; s++) {       /* ours is not the first where it has company */
            bool ours = s == which;
            if (!ours && s >= others) continue;
            for (uint32_t i = 0; i < (ours ? n : 1 + s % 2); i++, r++) {
                e->pos[r] = ours ? at + i : at / chunk * (1 + s % 2) + i;
                e->token[r] = ours ? token[at + i] : (int32_t)t_below(VOCAB);
                e->seq[r] = s;
                if (ours) e->rows[e->b.n_logits++] = r;
            }
        }
        e->b.n_rows = r;
        pass(e);
        memcpy(logits[at], e->b.logits, (size_t)n * VOCAB * sizeof(float));
    }
}

static float base[N][VOCAB], other[N][VOCAB];
static double exact[N][VOCAB];

static void same_bits(const struct shape *s, const char *what)
{
    uint32_t bad = N;
    for (uint32_t p = N; p-- > 0; )
        if (memcmp(base[p], other[p], sizeof base[p])) bad = p;
    T_CHECK(bad == N, "%s: %s: bits differ from position %u on", s->name, what, bad);
}

static void check_shape(const struct shape *s)
{
    static struct model m;
    static struct engine e;
    int32_t token[N];
    sl_mem_report before, after;
    make_model(&m, s);
    for (int i = 0; i < N; i++) token[i] = (int32_t)t_below(VOCAB);

    open_engine(&e, &m, 1, ~0u);
    sl_mem_get(e.ctx, &before);
    sequence(&e, token, 0, N, 0, base);
    ref_forward(&m, token, exact);
    double worst = 0, max = 0;
    for (uint32_t p = 0; p < N; p++)
        for (uint32_t i = 0; i < VOCAB; i++) {
            worst = fmax(worst, fabs(base[p][i] - exact[p][i]));
            max = fmax(max, fabs(exact[p][i]));
            T_CHECK(isfinite(base[p][i]), "%s: logit %u of position %u", s->name, i, p);
        }
    printf("%-30s max|logit - ref| / max|ref| = %.2e\n", s->name, worst / max);
    T_CHECK(worst <= s->tolerance * max, "%s: off by %g of %g", s->name, worst, max);

    sequence(&e, token, 1, 7, 0, other);
    same_bits(s, "chunks of 7");
    sequence(&e, token, 2, 1, 0, other);
    same_bits(s, "row by row");
    sequence(&e, token, 3, 2, 3, other);
    same_bits(s, "beside three sequences");
    e.calls = CALL_EACH;
    sequence(&e, token, 0, 100, 0, other);
    same_bits(s, "one call per expert");
    e.calls = OUT_OF_ORDER;
    sequence(&e, token, 0, 100, 0, other);
    same_bits(s, "experts stored out of order");
    sequence(&e, token, 1, 1, 0, other);
    same_bits(s, "experts stored out of order, row by row");
    sl_mem_get(e.ctx, &after);
    T_CHECK(before.n_allocs == after.n_allocs, "%s: stages allocated", s->name);
    close_engine(&e);

    open_engine(&e, &m, 2, ~0u);
    sequence(&e, token, 1, N, 0, other);
    same_bits(s, "2 threads");
    sequence(&e, token, 3, 3, 3, other);
    same_bits(s, "2 threads, beside three sequences");
    close_engine(&e);
    open_engine(&e, &m, 1, 0);
    sequence(&e, token, 0, N, 0, other);
    same_bits(s, "the reference kernels");
    close_engine(&e);

    /* scratch for one expert of a row: several steps */
    m.widths.ff_sum = SL_MAX(s->ff, s->shared);
    open_engine(&e, &m, 2, ~0u);
    sequence(&e, token, 0, N, 0, other);
    same_bits(s, "runs of experts in several steps");
    close_engine(&e);
    free_model(&m);
}

/* What a caller gets wrong is said, and nothing is left behind. */
static void check_errors(void)
{
    static struct model m;
    static struct engine e;
    sl_device *none = NULL;
    make_model(&m, shapes);
    open_engine(&e, &m, 1, ~0u);
    sl_device_params p = { .max_rows = 1 };
    T_CHECK(sl_device_create_cpu(e.ctx, &p, &none) == SL_E_ARG && !none, "a device without a pool");
    e.b.n_rows = 1;
    e.token[0] = VOCAB;
    T_CHECK(e.dev->ops->embed(e.dev, &m.w, &e.b) == SL_E_ARG, "a token beyond the vocabulary");
    e.token[0] = -1;
    T_CHECK(e.dev->ops->embed(e.dev, &m.w, &e.b) == SL_E_ARG, "a negative token");
    sl_expert_run run = { .ffn = m.layers[0].ffn };
    run.ffn.gate.rows = ROWS * m.widths.ff_sum + 1;
    T_CHECK(e.dev->ops->experts(e.dev, m.layers, &run, 1, SL_EXPERTS_LAST, &e.b) == SL_E_ARG,
            "a run beyond ff_sum");
    sl_mem_report r;
    sl_mem_get(e.ctx, &r);
    sl_mem_set_limit(e.ctx, r.total + 4096);
    p = (sl_device_params){ .pool = e.pool, .max_rows = ROWS, .widths = m.widths };
    T_CHECK(sl_device_create_cpu(e.ctx, &p, &none) == SL_E_NOMEM && !none,
            "a device beyond the budget");
    void *q = take(&e, 100);
    e.dev->ops->free(e.dev, q);
    close_engine(&e);
    free_model(&m);
}

int main(void)
{
    t_begin();
    sl_kernels_init(&reference, 0);
    for (size_t i = 0; i < SL_LEN(shapes); i++) check_shape(shapes + i);
    check_errors();
    return t_end();
}
