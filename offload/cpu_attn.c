/* offload/cpu_attn.c - attention of the cpu device: projections, paged keys and values, output.
 * A row's blocks of 64 keys are aligned to position 0 and merged in ascending order by the kernel
 * `attend`, whatever rows and sequences share the pass. */
#include "offload/device_cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

struct rows_of {
    cpu_device *d;
    const sl_weights *w;
    const sl_layer *l;
    const sl_kv_view *kv;
    sl_batch *b;
    uint32_t mla_q_a;       /* floats of q_a's output at the start of a row of d->mla */
};

static void turn(const struct rows_of *r, uint32_t row, float *x)
{
    const sl_rope *p = &r->w->rope;
    size_t at = (size_t)row * (p->n_rot / 2);
    if (p->kind != SL_ROPE_NONE) r->d->k.rope(p->kind, r->d->cos + at, r->d->sin + at, p->n_rot, x);
}

static void norm_in_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows_of *r = arg;
    size_t dm = r->d->w.d_model;
    (void)thread;
    r->d->k.norm(&r->l->attn.norm, r->b->x + row * dm, r->b->h + row * dm, dm);
}

/* One row of GQA: norms of q and k, then rope. */
static void gqa_row_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows_of *r = arg;
    const sl_attn *a = &r->l->attn;
    float *x[2] = { r->b->q + (size_t)row * a->q.rows, r->b->k + (size_t)row * a->k.rows };
    const sl_norm *norm[2] = { &a->q_norm, &a->k_norm };
    uint32_t heads[2] = { a->n_head, a->n_head_kv };
    (void)thread;
    for (int s = 0; s < 2; s++) {
        if (a->qk_norm == SL_QK_NORM_FULL)
            r->d->k.norm(norm[s], x[s], x[s], (size_t)heads[s] * a->k_dim);
        for (uint32_t h = 0; h < heads[s]; h++) {
            float *head = x[s] + (size_t)h * a->k_dim;
            if (a->qk_norm == SL_QK_NORM_HEAD) r->d->k.norm(norm[s], head, head, a->k_dim);
            turn(r, row, head);
        }
    }
}

static void gqa_qkv(cpu_device *d, struct rows_of *r)
{
    const sl_attn *a = &r->l->attn;
    size_t dm = d->w.d_model;
    uint32_t n = r->b->n_rows;
    assert(a->q.rows == a->n_head * a->k_dim && a->k.rows == a->n_head_kv * a->k_dim);
    assert(a->v.rows == a->n_head_kv * a->v_dim && r->w->rope.n_rot <= a->k_dim);
    cpu_product p[3] = {
        { .mat = &a->q, .x = r->b->h, .ldx = dm, .y = r->b->q, .ldy = a->q.rows, .n = n, .scale = 1 },
        { .mat = &a->k, .x = r->b->h, .ldx = dm, .y = r->b->k, .ldy = a->k.rows, .n = n, .scale = 1 },
        { .mat = &a->v, .x = r->b->h, .ldx = dm, .y = r->b->v, .ldy = a->v.rows, .n = n, .scale = 1 },
    };
    cpu_multiply(d, p, 3);
    cpu_run_rows(d, gqa_row_task, r, n);
}

/* One row of MLA behind q_a and kv_a: the key is finished in place; q_a's output is normed. */
static void mla_key_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows_of *r = arg;
    const sl_attn *a = &r->l->attn;
    uint32_t latent = a->k_dim - r->w->rope.n_rot;
    float *k = r->b->k + (size_t)row * a->k_dim, *qa = r->d->mla + (size_t)row * r->d->w.mla;
    (void)thread;
    r->d->k.norm(&a->kv_a_norm, k, k, latent);
    turn(r, row, k + latent);
    if (r->mla_q_a) r->d->k.norm(&a->q_a_norm, qa, qa, r->mla_q_a);
}

/* One row of MLA behind q: each head's last n_rot elements move behind its latent part, and turn. */
static void mla_query_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows_of *r = arg;
    const sl_attn *a = &r->l->attn;
    uint32_t n_rot = r->w->rope.n_rot, latent = a->k_dim - n_rot;
    const float *full = r->d->mla + (size_t)row * r->d->w.mla + r->mla_q_a;
    float *q = r->b->q + (size_t)row * a->n_head * a->k_dim;
    (void)thread;
    for (uint32_t h = 0; h < a->n_head; h++) {
        float *to = q + (size_t)h * a->k_dim + latent;
        memcpy(to, full + (size_t)h * (a->nope + n_rot) + a->nope, n_rot * sizeof *to);
        turn(r, row, to);
    }
}

static void mla_qkv(cpu_device *d, struct rows_of *r)
{
    const sl_attn *a = &r->l->attn;
    size_t dm = d->w.d_model, width = d->w.mla;
    uint32_t n = r->b->n_rows, head = a->nope + r->w->rope.n_rot;
    r->mla_q_a = a->q_a.rows;
    float *full = d->mla + r->mla_q_a;
    assert(a->n_head_kv == 1 && a->kv_a.rows == a->k_dim && a->q.rows == a->n_head * head);
    assert(a->k_b.count == a->n_head && a->k_b.cols == a->nope);
    assert(r->mla_q_a + a->q.rows <= width && a->k_b.rows == a->k_dim - r->w->rope.n_rot);
    cpu_product kv = { .mat = &a->kv_a, .x = r->b->h, .ldx = dm, .y = r->b->k, .ldy = a->k_dim, .n = n,
                       .scale = 1 };
    cpu_product q = { .mat = &a->q, .x = r->b->h, .ldx = dm, .y = full, .ldy = width, .n = n, .scale = 1 };
    if (r->mla_q_a) {
        cpu_product q_a = { .mat = &a->q_a, .x = r->b->h, .ldx = dm, .y = d->mla, .ldy = width, .n = n,
                            .scale = 1 };
        cpu_multiply(d, (cpu_product[]){ kv, q_a }, 2);
        cpu_run_rows(d, mla_key_task, r, n);
        q.x = d->mla;
        q.ldx = width;
        cpu_multiply(d, &q, 1);
    } else {
        cpu_multiply(d, (cpu_product[]){ kv, q }, 2);
        cpu_run_rows(d, mla_key_task, r, n);
    }
    cpu_product k_b = { .mat = &a->k_b, .x = full, .ldx = width, .xstep = head, .y = r->b->q,
                        .ldy = (size_t)a->n_head * a->k_dim, .ystep = a->k_dim, .n = n, .scale = 1 };
    cpu_multiply(d, &k_b, 1);
    cpu_run_rows(d, mla_query_task, r, n);
}

sl_status cpu_qkv(sl_device *dev, const sl_weights *w, const sl_layer *l, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    struct rows_of r = { .d = d, .w = w, .l = l, .b = b };
    assert(b->n_rows <= d->max_rows);
    cpu_run_rows(d, norm_in_task, &r, b->n_rows);
    if (l->attn.kind == SL_ATTN_MLA) mla_qkv(d, &r);
    else gqa_qkv(d, &r);
    return SL_OK;
}

/* Byte offset of a position's row. */
static uint64_t kv_at(const sl_kv_view *kv, uint32_t seq, uint32_t pos, uint64_t bytes)
{
    uint64_t block = kv->blocks[seq][pos / kv->block_rows];
    return (block * kv->block_rows + pos % kv->block_rows) * bytes;
}

static void put(const cpu_device *d, sl_type type, const float *from, char *to, size_t n)
{
    if (type == SL_F16) d->k.to_f16(from, (uint16_t *)(void *)to, n);
    else memcpy(to, from, n * sizeof *from);
}

static void append_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows_of *r = arg;
    const sl_kv_view *kv = r->kv;
    const sl_attn *a = &r->l->attn;
    uint32_t seq = r->b->seq[row], pos = r->b->pos[row];
    size_t nk = (size_t)a->n_head_kv * a->k_dim, nv = (size_t)a->n_head_kv * a->v_dim;
    (void)thread;
    put(r->d, kv->type, r->b->k + row * nk, kv->k + kv_at(kv, seq, pos, kv->k_bytes), nk);
    if (kv->v_bytes) put(r->d, kv->type, r->b->v + row * nv, kv->v + kv_at(kv, seq, pos, kv->v_bytes), nv);
}

/* Positions [first, first + n) of one KV head as float32, dim elements at stride dim. */
static void gather(const struct rows_of *r, const char *base, uint64_t bytes, uint32_t seq, uint32_t first,
                   uint32_t n, size_t head_at, uint32_t dim, float *to)
{
    const sl_kv_view *kv = r->kv;
    for (uint32_t j = 0; j < n; j++, to += dim) {
        const char *from = base + kv_at(kv, seq, first + j, bytes);
        if (kv->type == SL_F16) r->d->k.from_f16((const uint16_t *)(const void *)from + head_at, to, dim);
        else memcpy(to, from + head_at * sizeof *to, dim * sizeof *to);
    }
}

/* First position that a row sees. */
static uint32_t sees_from(const sl_attn *a, uint32_t pos)
{
    return a->window && pos + 1 > a->window ? pos + 1 - a->window : 0;
}

/* Some rows of one sequence, some query heads of one KV head, with the state of every (row, head). */
struct tile {
    uint32_t row, n_rows, head, n_q, kv_head;
    float *k, *v, *m, *l, *acc;
    sl_attn_tile t;
};

/* Block of keys [from, from + SL_ATTN_BLOCK), as far as the rows see it. */
static void attend_block(const struct rows_of *r, struct tile *t, uint32_t from, uint32_t lo, uint32_t hi)
{
    const sl_attn *a = &r->l->attn;
    uint32_t seq = r->b->seq[t->row], first = SL_MAX(from, lo);
    uint32_t n = SL_MIN(from + SL_ATTN_BLOCK - 1, hi) - first + 1;
    gather(r, r->kv->k, r->kv->k_bytes, seq, first, n, (size_t)t->kv_head * a->k_dim, a->k_dim, t->k);
    if (r->kv->v_bytes)
        gather(r, r->kv->v, r->kv->v_bytes, seq, first, n, (size_t)t->kv_head * a->v_dim, a->v_dim, t->v);
    for (uint32_t i = 0; i < t->n_rows; i++) {
        uint32_t pos = r->b->pos[t->row + i], start = SL_MAX(first, sees_from(a, pos));
        uint32_t end = SL_MIN(first + n - 1, pos);
        if (start > end) continue;
        sl_attn_tile *s = &t->t;
        size_t at = (size_t)i * SL_ATTN_HEADS;
        s->q = r->b->q + ((size_t)(t->row + i) * a->n_head + t->head) * a->k_dim;
        s->k = t->k + (size_t)(start - first) * a->k_dim;
        s->v = r->kv->v_bytes ? t->v + (size_t)(start - first) * a->v_dim : s->k;
        s->n_keys = end - start + 1;
        s->m = t->m + at;
        s->l = t->l + at;
        s->acc = t->acc + at * a->v_dim;
        r->d->k.attend(s);
    }
}

static void attend_tile(const struct rows_of *r, struct tile *t)
{
    const sl_attn *a = &r->l->attn;
    uint32_t lo = UINT32_MAX, hi = 0;
    for (uint32_t i = 0; i < t->n_rows; i++) {
        uint32_t pos = r->b->pos[t->row + i];
        lo = SL_MIN(lo, sees_from(a, pos));
        hi = SL_MAX(hi, pos);
    }
    for (uint32_t i = 0; i < t->n_rows * SL_ATTN_HEADS; i++) t->m[i] = -INFINITY;
    memset(t->l, 0, t->n_rows * SL_ATTN_HEADS * sizeof *t->l);
    memset(t->acc, 0, (size_t)t->n_rows * SL_ATTN_HEADS * a->v_dim * sizeof *t->acc);
    for (uint32_t from = lo / SL_ATTN_BLOCK * SL_ATTN_BLOCK; from <= hi; from += SL_ATTN_BLOCK)
        attend_block(r, t, from, lo, hi);
    for (uint32_t i = 0; i < t->n_rows; i++)
        for (uint32_t h = 0; h < t->n_q; h++) {
            size_t at = (size_t)i * SL_ATTN_HEADS + h;
            float *out = r->b->att + ((size_t)(t->row + i) * a->n_head + t->head + h) * a->v_dim;
            r->d->k.attend_end(a->sinks ? a->sinks + t->head + h : NULL, t->m[at], t->l[at],
                               t->acc + at * a->v_dim, a->v_dim, out);
        }
}

static void attend_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct rows_of *r = arg;
    const sl_attn *a = &r->l->attn;
    cpu_device *d = r->d;
    uint32_t group = a->n_head / a->n_head_kv, parts = (group + SL_ATTN_HEADS - 1) / SL_ATTN_HEADS;
    uint32_t part = index % parts, kv_head = index / parts % a->n_head_kv;
    uint32_t tile = index / parts / a->n_head_kv;
    const size_t states = CPU_ATTN_ROWS * SL_ATTN_HEADS;
    struct tile t = { .row = d->tile_at[tile], .kv_head = kv_head };
    t.n_rows = d->tile_at[tile + 1] - t.row;
    t.head = kv_head * group + part * SL_ATTN_HEADS;
    t.n_q = SL_MIN(group - part * SL_ATTN_HEADS, (uint32_t)SL_ATTN_HEADS);
    t.k = cpu_scratch(d, thread);
    t.v = t.k + (size_t)SL_ATTN_BLOCK * d->w.head_dim;
    t.acc = t.v + (size_t)SL_ATTN_BLOCK * d->w.head_dim;
    t.m = t.acc + states * d->w.head_dim;
    t.l = t.m + states;
    t.t = (sl_attn_tile){ .k_ld = a->k_dim, .v_ld = r->kv->v_bytes ? a->v_dim : a->k_dim, .n_q = t.n_q,
                          .k_dim = a->k_dim, .v_dim = a->v_dim, .scale = a->scale,
                          .scratch = t.l + states };
    attend_tile(r, &t);
}

sl_status cpu_attend(sl_device *dev, const sl_layer *l, const sl_kv_view *kv, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    const sl_attn *a = &l->attn;
    struct rows_of r = { .d = d, .l = l, .kv = kv, .b = b };
    uint32_t n_tiles = 0, group = a->n_head / a->n_head_kv;
    assert(b->n_rows <= d->max_rows && a->n_head % a->n_head_kv == 0);
    assert(SL_MAX(a->k_dim, a->v_dim) <= d->w.head_dim && (kv->v_bytes || a->v_dim <= a->k_dim));
    assert(kv->type == SL_F16 || kv->type == SL_F32);
    cpu_run_rows(d, append_task, &r, b->n_rows);    /* first all, so that rows see rows of this pass */
    for (uint32_t row = 0; row < b->n_rows; row++) {
        bool joins = row && b->seq[row] == b->seq[row - 1] &&
                     row - d->tile_at[n_tiles - 1] < CPU_ATTN_ROWS;
        if (!joins) d->tile_at[n_tiles++] = row;
    }
    d->tile_at[n_tiles] = b->n_rows;
    cpu_run(d, attend_task, &r, n_tiles * a->n_head_kv * ((group + SL_ATTN_HEADS - 1) / SL_ATTN_HEADS));
    return SL_OK;
}

/* x += residual_scale * output; h = norm(x); y = 0. */
static void post_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows_of *r = arg;
    size_t dm = r->d->w.d_model;
    float *x = r->b->x + row * dm, *y = r->b->y + row * dm;
    (void)thread;
    r->d->k.axpy(r->l->residual_scale, y, x, dm);
    r->d->k.norm(&r->l->ffn_norm, x, r->b->h + row * dm, dm);
    memset(y, 0, dm * sizeof *y);
}

sl_status cpu_post(sl_device *dev, const sl_layer *l, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    const sl_attn *a = &l->attn;
    size_t dm = d->w.d_model, att = (size_t)a->n_head * a->v_dim;
    struct rows_of r = { .d = d, .l = l, .b = b };
    cpu_product o = { .mat = &a->o, .x = b->att, .ldx = att, .y = b->y, .ldy = dm, .n = b->n_rows,
                      .scale = 1 };
    if (a->kind == SL_ATTN_MLA) {
        assert(a->v_b.count == a->n_head && a->v_b.rows == a->v_head && a->v_b.cols == a->v_dim);
        assert(a->n_head * a->v_head <= d->w.mla);
        cpu_product v_b = { .mat = &a->v_b, .x = b->att, .ldx = att, .xstep = a->v_dim, .y = d->mla,
                            .ldy = d->w.mla, .ystep = a->v_head, .n = b->n_rows, .scale = 1 };
        cpu_multiply(d, &v_b, 1);
        o.x = d->mla;
        o.ldx = d->w.mla;
    }
    assert(a->o.rows == dm && a->o.cols == (a->kind == SL_ATTN_MLA ? a->n_head * a->v_head : att));
    cpu_multiply(d, &o, 1);
    cpu_run_rows(d, post_task, &r, b->n_rows);
    return SL_OK;
}
