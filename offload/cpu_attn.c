/* offload/cpu_attn.c - attention of the cpu device: projections, paged keys and values, output.
 * Blocks and spans of keys and their order are those of kernels/sl_attn.h, whatever rows and
 * sequences share the pass, and however a long row's spans are shared out to threads. */
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
    uint32_t parts;         /* attend: tasks that share the KV heads of a tile */
};

static void turn(const struct rows_of *r, uint32_t row, float *x)
{
    const sl_rope *p = &r->w->rope;
    size_t at = (size_t)row * (p->n_rot / 2);
    if (p->kind != SL_ROPE_NONE) r->d->k.rope(p->kind, r->b->cos + at, r->b->sin + at, p->n_rot, x);
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
        { .mat = &a->q,
          .x = r->b->h,
          .ldx = dm,
          .y = r->b->q,
          .ldy = a->q.rows,
          .n = n,
          .scale = 1 },
        { .mat = &a->k,
          .x = r->b->h,
          .ldx = dm,
          .y = r->b->k,
          .ldy = a->k.rows,
          .n = n,
          .scale = 1 },
        { .mat = &a->v,
          .x = r->b->h,
          .ldx = dm,
          .y = r->b->v,
          .ldy = a->v.rows,
          .n = n,
          .scale = 1 },
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

/* One row of MLA behind q: each head's last n_rot elements move behind its latent part, and
 * turn. */
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
    cpu_product kv = {
        .mat = &a->kv_a, .x = r->b->h, .ldx = dm, .y = r->b->k, .ldy = a->k_dim, .n = n, .scale = 1
    };
    cpu_product q = {
        .mat = &a->q, .x = r->b->h, .ldx = dm, .y = full, .ldy = width, .n = n, .scale = 1
    };
    if (r->mla_q_a) {
        cpu_product q_a = {
            .mat = &a->q_a, .x = r->b->h, .ldx = dm, .y = d->mla, .ldy = width, .n = n, .scale = 1
        };
        cpu_multiply(d, (cpu_product[]){ kv, q_a }, 2);
        cpu_run_rows(d, mla_key_task, r, n);
        q.x = d->mla;
        q.ldx = width;
        cpu_multiply(d, &q, 1);
    } else {
        cpu_multiply(d, (cpu_product[]){ kv, q }, 2);
        cpu_run_rows(d, mla_key_task, r, n);
    }
    cpu_product k_b = { .mat = &a->k_b,
                        .x = full,
                        .ldx = width,
                        .xstep = head,
                        .y = r->b->q,
                        .ldy = (size_t)a->n_head * a->k_dim,
                        .ystep = a->k_dim,
                        .n = n,
                        .scale = 1 };
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

static void append_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows_of *r = arg;
    const sl_kv_view *kv = r->kv;
    const sl_attn *a = &r->l->attn;
    uint32_t seq = r->b->seq[row], pos = r->b->pos[row];
    size_t nk = (size_t)a->n_head_kv * a->k_dim, nv = (size_t)a->n_head_kv * a->v_dim;
    (void)thread;
    r->d->k.kv_put(kv->type, r->b->k + row * nk, kv->k + kv_at(kv, seq, pos, kv->k_bytes), nk);
    if (kv->v_bytes)
        r->d->k.kv_put(kv->type, r->b->v + row * nv, kv->v + kv_at(kv, seq, pos, kv->v_bytes), nv);
}

/* First position that a row sees. */
static uint32_t sees_from(const sl_attn *a, uint32_t pos)
{
    return a->window && pos + 1 > a->window ? pos + 1 - a->window : 0;
}

/* States (m, l, acc) of n queries, behind each other at p. */
struct state {
    float *m, *l, *acc;
};

static struct state state_at(float *p, size_t n)
{
    return (struct state){ p, p + n, p + 2 * n };
}

static void reset(struct state s, size_t n, uint32_t v_dim)
{
    for (size_t i = 0; i < n; i++) s.m[i] = -INFINITY;
    memset(s.l, 0, n * sizeof *s.l);
    memset(s.acc, 0, n * v_dim * sizeof *s.acc);
}

/* Neighbouring rows of one sequence, KV heads [h0, h1), and the positions they see. */
struct tile {
    uint32_t row, n_rows, h0, h1, lo, hi;
};

static struct tile tile_at(const struct rows_of *r, uint32_t index, uint32_t h0, uint32_t h1)
{
    const uint32_t *at = r->d->tile_at + index;
    struct tile t = { .row = at[0], .n_rows = at[1] - at[0], .h0 = h0, .h1 = h1, .lo = UINT32_MAX };
    for (uint32_t i = 0; i < t.n_rows; i++) {
        uint32_t pos = r->b->pos[t.row + i];
        t.lo = SL_MIN(t.lo, sees_from(&r->l->attn, pos));
        t.hi = SL_MAX(t.hi, pos);
    }
    return t;
}

/* Queries of a tile on one KV head. */
static uint32_t queries(const struct rows_of *r, const struct tile *t)
{
    return t->n_rows * (r->l->attn.n_head / r->l->attn.n_head_kv);
}

/* One block of keys: where the rows of all KV heads lie. */
struct block {
    const char *k[SL_ATTN_BLOCK], *v[SL_ATTN_BLOCK];
    /* from: its first position; keys [first, end) are there */
    uint32_t from, first, end;
};

/* Rows [first, end) of a block that starts at position `from`. */
static void find_rows(const sl_kv_view *kv, const uint32_t *blocks, const char *base,
                      uint64_t bytes, const struct block *b, const char **ret)
{
    for (uint32_t j = b->first; j < b->end; ) {
        uint32_t pos = b->from + j, at = pos % kv->block_rows,
                 n = SL_MIN(kv->block_rows - at, b->end - j);
        const char *row = base
                          + ((uint64_t)blocks[pos / kv->block_rows] * kv->block_rows + at) * bytes;
        for (uint32_t i = 0; i < n; i++) ret[j++] = row + i * bytes;
    }
}

static size_t vector_bytes(const sl_kv_view *kv, uint32_t dim)
{
    const sl_type_info *type = sl_type_get(kv->type);
    return (size_t)dim / type->block_elems * type->block_bytes;
}

static void find_block(const struct rows_of *r, const struct tile *t, uint32_t from,
                       struct block *b)
{
    const sl_kv_view *kv = r->kv;
    const uint32_t *blocks = kv->blocks[r->b->seq[t->row]];
    b->from = from;
    b->first = SL_MAX(from, t->lo) - from;
    b->end = SL_MIN(t->hi - from + 1, (uint32_t)SL_ATTN_BLOCK);
    find_rows(kv, blocks, kv->k, kv->k_bytes, b, b->k);
    if (kv->v_bytes) find_rows(kv, blocks, kv->v, kv->v_bytes, b, b->v);
}

/* A share of the rows of a block, for all heads of the tile: whole rows in ascending order, because
 * one head's vectors, equally far apart, would come from few of the memory's banks. */
static sl_attn_fetch fetch_share(const struct tile *t, const struct block *b,
                                 const char *const *rows, uint32_t kv_head, size_t bytes)
{
    uint32_t n = b->end - b->first, heads = t->h1 - t->h0, i = kv_head - t->h0;
    uint32_t from = i * n / heads, to = (i + 1) * n / heads;
    return (sl_attn_fetch){ rows + b->first + from, to - from, t->h0 * bytes, heads * bytes };
}

/* All queries of the tile on one block of one KV head; s: their states. A share of the next block
 * (or NULL) is fetched meanwhile. */
static void attend_block(const struct rows_of *r, const struct tile *t, const struct block *b,
                         uint32_t kv_head, const struct block *next, struct state s,
                         float *scratch)
{
    const sl_attn *a = &r->l->attn;
    const float *q[SL_ATTN_QUERIES];
    const void *k[SL_ATTN_BLOCK], *v[SL_ATTN_BLOCK];
    uint8_t from[SL_ATTN_QUERIES], to[SL_ATTN_QUERIES];
    uint32_t group = a->n_head / a->n_head_kv, n = t->n_rows * group;
    size_t k_bytes = vector_bytes(r->kv, a->k_dim), v_bytes = vector_bytes(r->kv, a->v_dim);
    sl_attn_tile x = { .type = r->kv->type,
                       .k_dim = a->k_dim,
                       .v_dim = a->v_dim,
                       .q = q,
                       .k = k,
                       .v = r->kv->v_bytes ? v : k,
                       .first = b->first,
                       .end = b->end,
                       .from = from,
                       .to = to,
                       .scale = a->scale,
                       .scratch = scratch };
    for (uint32_t j = b->first; j < b->end; j++) k[j] = b->k[j] + kv_head * k_bytes;
    for (uint32_t j = b->first; r->kv->v_bytes && j < b->end; j++)
        v[j] = b->v[j] + kv_head * v_bytes;
    if (next) x.next_k = fetch_share(t, next, next->k, kv_head, k_bytes);
    if (next && r->kv->v_bytes) x.next_v = fetch_share(t, next, next->v, kv_head, v_bytes);
    for (uint32_t at = 0; at < n; at += x.n_q, x.next_k.n = x.next_v.n = 0) {
        x.n_q = SL_MIN(n - at, (uint32_t)SL_ATTN_QUERIES);
        for (uint32_t i = 0; i < x.n_q; i++) {
            uint32_t row = t->row + (at + i) / group, head = kv_head * group + (at + i) % group;
            uint32_t pos = r->b->pos[row], lo = SL_MAX(sees_from(a, pos), b->from) - b->from;
            uint32_t hi = pos < b->from ? 0 : SL_MIN(pos - b->from + 1, (uint32_t)SL_ATTN_BLOCK);
            q[i] = r->b->q + ((size_t)row * a->n_head + head) * a->k_dim;
            from[i] = (uint8_t)SL_MIN(lo, hi);
            to[i] = (uint8_t)hi;
        }
        x.m = s.m + at;
        x.l = s.l + at;
        x.acc = s.acc + (size_t)at * a->v_dim;
        r->d->k.attend(&x);
    }
}

/* The first block was fetched by nobody. Reading a byte of each line, in ascending order, is
 * quicker than meeting them head by head. */
static void touch(const struct tile *t, const struct block *b, const char *const *rows,
                  size_t bytes)
{
    for (uint32_t j = b->first; j < b->end; j++) {
        const char *at = rows[j] + t->h0 * bytes, *end = rows[j] + t->h1 * bytes;
        for (; at < end; at += 64) (void)*(const volatile char *)at;
    }
}

/* Spans [span, end) of a tile: done(arg, span) behind each with its states in what begin gave,
 * whose queries lie KV head by KV head. While a block is computed the next one is fetched. */
static void attend_spans(const struct rows_of *r, const struct tile *t, uint32_t span, uint32_t end,
                         float *scratch, struct state (*begin)(void *arg, uint32_t span),
                         void (*done)(void *arg, uint32_t span), void *arg)
{
    const sl_attn *a = &r->l->attn;
    struct block blocks[2], *b = blocks, *next = blocks + 1;
    uint32_t nq = queries(r, t),
             from = SL_MAX(span * SL_ATTN_SPAN, t->lo / SL_ATTN_BLOCK * SL_ATTN_BLOCK);
    uint32_t stop = (uint32_t)SL_MIN((uint64_t)end * SL_ATTN_SPAN - 1, t->hi);
    struct state s = begin(arg, span);
    find_block(r, t, from, b);
    touch(t, b, b->k, vector_bytes(r->kv, a->k_dim));
    if (r->kv->v_bytes) touch(t, b, b->v, vector_bytes(r->kv, a->v_dim));
    for (;;) {
        bool last = stop - from < SL_ATTN_BLOCK;
        if (!last) find_block(r, t, from + SL_ATTN_BLOCK, next);
        for (uint32_t h = t->h0; h < t->h1; h++) {
            size_t at = (size_t)(h - t->h0) * nq;
            attend_block(r, t, b, h, last ? NULL : next,
                         (struct state){ s.m + at, s.l + at, s.acc + at * a->v_dim }, scratch);
        }
        from += SL_ATTN_BLOCK;
        if (last || from % SL_ATTN_SPAN == 0) done(arg, span++);
        if (last) return;
        if (from % SL_ATTN_SPAN == 0) s = begin(arg, span);
        struct block *other = b;
        b = next;
        next = other;
    }
}

/* Outputs of a tile's heads from their states. */
static void end_tile(const struct rows_of *r, const struct tile *t, struct state s)
{
    const sl_attn *a = &r->l->attn;
    uint32_t group = a->n_head / a->n_head_kv, n = queries(r, t) * (t->h1 - t->h0);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t row = t->row + i / group % t->n_rows,
                 head = (t->h0 + i / group / t->n_rows) * group + i % group;
        float *out = r->b->att + ((size_t)row * a->n_head + head) * a->v_dim;
        r->d->k.attend_end(a->sinks ? a->sinks + head : NULL, s.m[i], s.l[i],
                           s.acc + (size_t)i * a->v_dim, a->v_dim, out);
    }
}

/* A whole tile on one thread: spans merged as they come. */
struct whole {
    const struct rows_of *r;
    struct state span, all;
    uint32_t n;
};

static struct state whole_begin(void *arg, uint32_t span)
{
    const struct whole *w = arg;
    (void)span;
    reset(w->span, w->n, w->r->l->attn.v_dim);
    return w->span;
}

static void whole_done(void *arg, uint32_t span)
{
    const struct whole *w = arg;
    (void)span;
    w->r->d->k.attend_merge(w->n, w->r->l->attn.v_dim, w->span.m, w->span.l, w->span.acc, w->all.m,
                            w->all.l, w->all.acc);
}

static void tile_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct rows_of *r = arg;
    const sl_attn *a = &r->l->attn;
    uint32_t part = index % r->parts;
    struct tile t = tile_at(r, index / r->parts, part * a->n_head_kv / r->parts,
                            (part + 1) * a->n_head_kv / r->parts);
    float *scratch = cpu_scratch(r->d, thread), *states = scratch + SL_ATTN_SCRATCH;
    struct whole w = { .r = r, .n = queries(r, &t) * (t.h1 - t.h0) };
    assert(w.n <= cpu_attn_queries(&r->d->w));
    w.span = state_at(states, w.n);
    w.all = state_at(states + (size_t)w.n * (2 + a->v_dim), w.n);
    reset(w.all, w.n, a->v_dim);
    attend_spans(r, &t, t.lo / SL_ATTN_SPAN, t.hi / SL_ATTN_SPAN + 1, scratch, whole_begin,
                 whole_done, &w);
    end_tile(r, &t, w.all);
}

/* A long tile on all threads, in rounds of at most n_slots spans: a slot keeps a span's states
 * until they are merged, in ascending order, into those of slot 0. */
struct split {
    struct rows_of *r;
    struct tile t;
    uint32_t first, end, n_tasks;   /* spans of this round, and the tasks they are shared out to */
    size_t n, slot_floats;
    uint32_t h0;                    /* of one task: its first head */
};

static struct state split_slot(const struct split *x, uint32_t slot, uint32_t h0)
{
    struct state s = state_at(x->r->d->part + slot * x->slot_floats, x->n);
    size_t at = (size_t)h0 * queries(x->r, &x->t);
    return (struct state){ s.m + at, s.l + at, s.acc + at * x->r->l->attn.v_dim };
}

static struct state split_begin(void *arg, uint32_t span)
{
    const struct split *x = arg;
    struct state s = split_slot(x, 1 + span - x->first, x->t.h0);
    reset(s, (size_t)queries(x->r, &x->t) * (x->t.h1 - x->t.h0), x->r->l->attn.v_dim);
    return s;
}

static void split_done(void *arg, uint32_t span)
{
    (void)arg;
    (void)span;
}

static void split_task(void *arg, uint32_t index, uint32_t thread)
{
    struct split x = *(const struct split *)arg;
    uint32_t part = index % x.r->parts, n = x.end - x.first, heads = x.r->l->attn.n_head_kv;
    uint32_t at = index / x.r->parts;
    x.t.h0 = part * heads / x.r->parts;
    x.t.h1 = (part + 1) * heads / x.r->parts;
    attend_spans(x.r, &x.t, x.first + at * n / x.n_tasks, x.first + (at + 1) * n / x.n_tasks,
                 cpu_scratch(x.r->d, thread), split_begin, split_done, &x);
}

static void merge_task(void *arg, uint32_t head, uint32_t thread)
{
    const struct split *x = arg;
    uint32_t n = queries(x->r, &x->t);
    struct state all = split_slot(x, 0, head);
    (void)thread;
    for (uint32_t i = 0; i < x->end - x->first; i++) {
        struct state s = split_slot(x, 1 + i, head);
        x->r->d->k.attend_merge(n, x->r->l->attn.v_dim, s.m, s.l, s.acc, all.m, all.l, all.acc);
    }
}

static void attend_split(struct rows_of *r, uint32_t index)
{
    const sl_attn *a = &r->l->attn;
    cpu_device *d = r->d;
    struct split x = { .r = r, .t = tile_at(r, index, 0, a->n_head_kv) };
    uint32_t last = x.t.hi / SL_ATTN_SPAN, slots = d->n_slots / x.t.n_rows,
             tasks = 4 * d->n_threads;
    x.n = (size_t)x.t.n_rows * a->n_head;
    x.slot_floats = x.n * (2 + a->v_dim);
    reset(state_at(d->part, x.n), x.n, a->v_dim);
    for (x.first = x.t.lo / SL_ATTN_SPAN; x.first <= last; x.first = x.end) {
        x.end = SL_MIN(x.first + slots - 1, last + 1);
        x.n_tasks = SL_MIN(x.end - x.first, tasks);
        r->parts = SL_MIN((tasks + x.n_tasks - 1) / x.n_tasks, a->n_head_kv);
        cpu_run(d, split_task, &x, x.n_tasks * r->parts);
        cpu_run(d, merge_task, &x, a->n_head_kv);
    }
    end_tile(r, &x.t, state_at(d->part, x.n));
}

/* Rows of a sequence that follow each other share the keys that they bring to registers. */
static uint32_t cut_tiles(cpu_device *d, const sl_attn *a, const sl_batch *b)
{
    uint32_t n = 0, most = SL_ATTN_QUERIES / (a->n_head / a->n_head_kv);
    most = SL_MAX(most, 1u);
    for (uint32_t row = 0; row < b->n_rows; row++) {
        bool joins = row && b->seq[row] == b->seq[row - 1] && row - d->tile_at[n - 1] < most;
        if (!joins) d->tile_at[n++] = row;
    }
    d->tile_at[n] = b->n_rows;
    return n;
}

sl_status cpu_attend(sl_device *dev, const sl_layer *l, const sl_kv_view *kv, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    const sl_attn *a = &l->attn;
    struct rows_of r = { .d = d, .l = l, .kv = kv, .b = b };
    assert(b->n_rows <= d->max_rows && a->n_head % a->n_head_kv == 0 && a->n_head <= d->w.n_head);
    assert(SL_MAX(a->k_dim, a->v_dim) <= d->w.head_dim && (kv->v_bytes || a->v_dim <= a->k_dim));
    assert(sl_attn_type(kv->type));
    /* first all, so that rows see rows of this pass */
    cpu_run_rows(d, append_task, &r, b->n_rows);
    uint32_t n_tiles = cut_tiles(d, a, b), want = d->n_threads == 1 ? 1 : 4 * d->n_threads;
    uint32_t most_rows = 0, most_spans = 0;
    for (uint32_t i = 0; i < n_tiles; i++) {
        struct tile t = tile_at(&r, i, 0, 0);
        most_rows = SL_MAX(most_rows, t.n_rows);
        most_spans = SL_MAX(most_spans, t.hi / SL_ATTN_SPAN - t.lo / SL_ATTN_SPAN + 1);
    }
    if (most_spans > 1 && most_rows <= CPU_ATTN_SPLIT_ROWS
        && (uint64_t)n_tiles * a->n_head_kv < want) {
        for (uint32_t i = 0; i < n_tiles; i++) attend_split(&r, i);
        return SL_OK;
    }
    /* Few rows: a task takes all heads of its positions, which lie side by side. */
    r.parts = SL_MIN((want + n_tiles - 1) / n_tiles, a->n_head_kv);
    if ((size_t)most_rows * a->n_head > cpu_attn_queries(&d->w)) r.parts = a->n_head_kv;
    cpu_run(d, tile_task, &r, n_tiles * r.parts);
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
