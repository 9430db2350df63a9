/* offload/cuda_stage.c - the stages of the cuda device, as calls of kernels/cuda. Here is its
 * policy: which product kernel, how attention is cut. */
#include "offload/cuda_host.h"

#include <assert.h>
#include <string.h>

/* Slots of a run up to which `few` is taken: it reads weights once for 4 of them. */
enum { FEW_SLOTS = 8 };

static cudaStream_t compute(const cuda_device *d)
{
    return d->queue[SL_Q_COMPUTE];
}

/* Activations that products read: n_rows rows of `count` parts of n floats. */
struct acts {
    const float *x;
    uint64_t ldx, step;
    uint32_t n_rows, count, n;
};

/* Chooses the kernel, and brings activations into the form it wants, in `buf` where that takes
 * room. */
static sl_status prepare(cuda_device *d, sl_cuda_product *p, const struct acts *a, char *buf,
                         size_t buf_bytes)
{
    bool few = p->most_slots <= FEW_SLOTS;
    uint32_t group = p->type == SL_Q4_K || p->type == SL_Q5_K || p->type == SL_Q6_K ? 256 : 32;
    sl_cuda_x form;
    int err;
    if (!(few ? sl_cuda_few_x(p->type, &form) : sl_cuda_many_x(p->type, &form)))
        return sl_fail(d->ctx, SL_E_UNSUPPORTED, "cuda: no kernel for matrices of type %s",
                       sl_type_get(p->type)->name);
    if (form == SL_CUDA_X_FLOAT) {
        p->x = a->x;
        p->x_bytes = a->ldx * sizeof(float);
        p->x_step = a->step * sizeof(float);
        return SL_OK;
    }
    p->x = buf;
    p->x_step = form == SL_CUDA_X_QUANT  ? sl_qx_bytes(group, a->n)
                : form == SL_CUDA_X_HALF ? sl_cuda_half_bytes(a->n)
                                         : sl_cuda_halves_bytes(a->n);
    p->x_bytes = p->x_step * a->count;
    assert(a->n_rows * p->x_bytes <= buf_bytes);
    (void)buf_bytes;
    if (form == SL_CUDA_X_QUANT)
        err = sl_cuda_quantise(compute(d), group, a->x, a->ldx, a->step, a->n_rows, a->count, a->n,
                               buf);
    else
        err = sl_cuda_halve(compute(d), form == SL_CUDA_X_HALVES, a->x, a->ldx, a->step, a->n_rows,
                            a->count, a->n, buf);
    return cuda_check(d, err, "start a conversion of activations");
}

static sl_status start_product(cuda_device *d, const sl_cuda_product *p)
{
    int err = p->most_slots <= FEW_SLOTS ? sl_cuda_few(compute(d), p) : sl_cuda_many(compute(d), p);
    return cuda_check(d, err, "start a product");
}

/* y[j][c][r] = scale * (m[c] x[j][c] + bias[c]); x and y as in struct acts. */
static sl_status multiply(cuda_device *d, const sl_mat *m, const float *x, uint64_t ldx,
                          uint64_t xstep, float *y, uint64_t ldy, uint64_t ystep, uint32_t n,
                          float scale)
{
    sl_cuda_product p = { .type = m->type, .rows = m->rows, .cols = m->cols,
                          .row_bytes = m->row_bytes, .n_runs = 1, .n_slots = n, .most_slots = n,
                          .one = { { m->data, NULL }, { m->bias, NULL }, 0, n },
                          .count = m->count ? m->count : 1, .y = y, .ldy = ldy, .y_step = ystep,
                          .scale = scale };
    struct acts a = { x, ldx, xstep, n, p.count, m->cols };
    SL_TRY(prepare(d, &p, &a, d->form, d->form_bytes));
    return start_product(d, &p);
}

/* ---- qkv ---- */

static sl_status gqa(cuda_device *d, const sl_rope *rope, const sl_attn *a, sl_batch *b)
{
    uint64_t dm = d->w.d_model;
    uint32_t n = b->n_rows;
    sl_norm none = { .kind = SL_NORM_NONE };
    bool per_head = a->qk_norm == SL_QK_NORM_HEAD;
    SL_TRY(multiply(d, &a->q, b->h, dm, 0, b->q, a->q.rows, 0, n, 1));
    SL_TRY(multiply(d, &a->k, b->h, dm, 0, b->k, a->k.rows, 0, n, 1));
    SL_TRY(multiply(d, &a->v, b->h, dm, 0, b->v, a->v.rows, 0, n, 1));
    if (a->qk_norm == SL_QK_NORM_FULL) {
        SL_TRY(cuda_check(d, sl_cuda_norm(compute(d), &a->q_norm, b->q, a->q.rows, NULL, b->q,
                                          a->q.rows, n, a->q.rows), "start a norm"));
        SL_TRY(cuda_check(d, sl_cuda_norm(compute(d), &a->k_norm, b->k, a->k.rows, NULL, b->k,
                                          a->k.rows, n, a->k.rows), "start a norm"));
    }
    if (!per_head && rope->kind == SL_ROPE_NONE) return SL_OK;
    sl_cuda_heads h = { b->q, b->k, a->n_head, a->n_head_kv, a->k_dim, per_head ? a->q_norm : none,
                        per_head ? a->k_norm : none, rope->kind, rope->n_rot, b->cos, b->sin };
    return cuda_check(d, sl_cuda_turn_heads(compute(d), &h, n), "start rope");
}

static sl_status mla(cuda_device *d, const sl_rope *rope, const sl_attn *a, sl_batch *b)
{
    uint64_t dm = d->w.d_model, width = d->w.mla, head = a->nope + rope->n_rot;
    uint32_t n = b->n_rows, q_a = a->q_a.rows, latent = a->k_dim - rope->n_rot;
    float *full = d->mla + q_a;
    assert(a->n_head_kv == 1 && a->kv_a.rows == a->k_dim && a->q.rows == a->n_head * head);
    assert(q_a + a->q.rows <= width && a->k_b.rows == latent && a->k_b.count == a->n_head);
    SL_TRY(multiply(d, &a->kv_a, b->h, dm, 0, b->k, a->k_dim, 0, n, 1));
    if (q_a) {
        SL_TRY(multiply(d, &a->q_a, b->h, dm, 0, d->mla, width, 0, n, 1));
        SL_TRY(cuda_check(d, sl_cuda_norm(compute(d), &a->q_a_norm, d->mla, width, NULL, d->mla,
                                          width, n, q_a), "start a norm"));
        SL_TRY(multiply(d, &a->q, d->mla, width, 0, full, width, 0, n, 1));
    } else {
        SL_TRY(multiply(d, &a->q, b->h, dm, 0, full, width, 0, n, 1));
    }
    SL_TRY(multiply(d, &a->k_b, full, width, head, b->q, (uint64_t)a->n_head * a->k_dim, a->k_dim,
                    n, 1));
    sl_cuda_mla m = { b->k, b->q, full, width, a->n_head, a->nope, latent, rope->n_rot,
                      a->kv_a_norm, rope->kind, b->cos, b->sin };
    return cuda_check(d, sl_cuda_turn_mla(compute(d), &m, n), "start rope");
}

sl_status cuda_qkv(sl_device *dev, const sl_weights *w, const sl_layer *l, sl_batch *b)
{
    cuda_device *d = (cuda_device *)dev;
    uint32_t dm = d->w.d_model;
    assert(b->n_rows <= d->max_rows);
    SL_TRY(cuda_check(d, cudaSetDevice(d->index), "select the card"));
    SL_TRY(cuda_check(d, sl_cuda_norm(compute(d), &l->attn.norm, b->x, dm, NULL, b->h, dm,
                                      b->n_rows, dm), "start a norm"));
    return l->attn.kind == SL_ATTN_MLA ? mla(d, &w->rope, &l->attn, b)
                                       : gqa(d, &w->rope, &l->attn, b);
}

/* ---- attention ---- */

/* The sequences of a batch, numbered as they come: *ret_seq [n_rows] on the way up, and the tables
 * of the blocks that their positions reach. */
static sl_status send_blocks(cuda_device *d, const sl_kv_view *kv, const sl_batch *b,
                             sl_cuda_attn *a)
{
    uint32_t n = b->n_rows, n_seq = 0, stride = 0, longest = 0;
    for (uint32_t i = 0; i < n; i++) {
        stride = SL_MAX(stride, b->pos[i] / kv->block_rows + 1);
        n_seq += !i || b->seq[i] != b->seq[i - 1];      /* at most so many */
    }
    size_t need = 3 * cuda_padded(n * sizeof(uint32_t))
                  + cuda_padded((size_t)n_seq * stride * sizeof(uint32_t));
    SL_TRY(cuda_tables_begin(d, need));
    const void *dev_seq, *dev_blocks;
    uint32_t *seq = cuda_tables_room(d, n * sizeof *seq, &dev_seq);
    a->pos = cuda_tables_put(d, b->pos, n * sizeof *b->pos);
    uint32_t *blocks = cuda_tables_room(d, (size_t)n_seq * stride * sizeof *blocks, &dev_blocks);
    for (uint32_t i = 0, run = 0, at = 0; i < n; i++) {
        if (i && b->seq[i] != b->seq[i - 1]) run++, at = 0;
        uint32_t have = b->pos[i] / kv->block_rows + 1;
        seq[i] = run;
        longest = SL_MAX(longest, ++at);
        memcpy(blocks + (size_t)run * stride, kv->blocks[b->seq[i]], have * sizeof *blocks);
    }
    a->seq = dev_seq;
    a->kv = (sl_cuda_kv){ kv->k, kv->v, kv->k_bytes, kv->v_bytes, dev_blocks, stride,
                          kv->block_rows, kv->type };
    a->rows_a_tile = longest;
    return cuda_tables_send(d);
}

/* Rows of a tile: what of a run of rows fits 32 queries. Parts: enough blocks for two a processor,
 * but 256 positions in each, and their states must fit. */
static void cut(const cuda_device *d, sl_cuda_attn *a, uint32_t longest, uint32_t positions)
{
    uint32_t group = a->n_head / a->n_head_kv, most = SL_MAX(32 / group, 1u);
    a->rows_a_tile = SL_MIN(most, longest);
    uint64_t blocks = (uint64_t)((a->n_rows + a->rows_a_tile - 1) / a->rows_a_tile) * a->n_head_kv
                      * ((group + 31) / 32);
    uint64_t splits = SL_MIN(2 * (uint64_t)d->n_sm / blocks, (uint64_t)positions / 256);
    splits = SL_MIN(splits, d->part_floats / sl_cuda_attn_part(a->n_rows, a->n_head, a->v_dim, 1));
    a->n_splits = (uint32_t)SL_MAX(SL_MIN(splits, 32u), 1u);
}

sl_status cuda_attend(sl_device *dev, const sl_layer *l, const sl_kv_view *kv, sl_batch *b)
{
    cuda_device *d = (cuda_device *)dev;
    const sl_attn *t = &l->attn;
    sl_cuda_attn a = { .n_head = t->n_head, .n_head_kv = t->n_head_kv, .k_dim = t->k_dim,
                       .v_dim = t->v_dim, .window = t->window, .scale = t->scale,
                       .sinks = t->sinks, .q = b->q, .att = b->att, .n_rows = b->n_rows,
                       .part = d->part };
    uint32_t positions = 0;
    assert(b->n_rows <= d->max_rows && t->n_head % t->n_head_kv == 0);
    SL_TRY(cuda_check(d, cudaSetDevice(d->index), "select the card"));
    if (!b->n_rows) return SL_OK;
    if (t->v_dim > 512)
        return sl_fail(d->ctx, SL_E_UNSUPPORTED, "cuda: values of %u elements, 512 at most",
                       t->v_dim);
    for (uint32_t i = 0; i < b->n_rows; i++) positions = SL_MAX(positions, b->pos[i] + 1);
    SL_TRY(send_blocks(d, kv, b, &a));
    cut(d, &a, a.rows_a_tile, t->window ? SL_MIN(positions, t->window) : positions);
    SL_TRY(cuda_check(d, sl_cuda_append(compute(d), &a, b->k, b->v), "start keys and values"));
    return cuda_check(d, sl_cuda_attend(compute(d), &a), "start attention");
}

sl_status cuda_post(sl_device *dev, const sl_layer *l, sl_batch *b)
{
    cuda_device *d = (cuda_device *)dev;
    const sl_attn *a = &l->attn;
    uint64_t att = (uint64_t)a->n_head * a->v_dim, dm = d->w.d_model;
    const float *x = b->att;
    SL_TRY(cuda_check(d, cudaSetDevice(d->index), "select the card"));
    if (a->kind == SL_ATTN_MLA) {
        assert(a->v_b.count == a->n_head && a->n_head * a->v_head <= d->w.mla);
        SL_TRY(multiply(d, &a->v_b, b->att, att, a->v_dim, d->mla, d->w.mla, a->v_head, b->n_rows,
                        1));
        x = d->mla;
        att = d->w.mla;
    }
    SL_TRY(multiply(d, &a->o, x, att, 0, b->y, dm, 0, b->n_rows, 1));
    return cuda_check(d, sl_cuda_add_norm(compute(d), &l->ffn_norm, l->residual_scale, b->x, b->y,
                                          b->h, b->n_rows, d->w.d_model), "start a norm");
}

/* ---- router, head ---- */

sl_status cuda_route(sl_device *dev, const sl_layer *l, const float *h, uint32_t n_rows,
                     uint32_t *ret_id, float *ret_w, float *ret_shared_w)
{
    cuda_device *d = (cuda_device *)dev;
    bool gated = l->shared_gate.rows > 0;
    uint64_t dm = l->router.cols;
    assert(n_rows <= d->max_rows && l->routing.n_expert <= d->w.n_expert);
    if (l->routing.n_expert > SL_CUDA_EXPERTS)
        return sl_fail(d->ctx, SL_E_UNSUPPORTED, "cuda: %u experts, %d at most",
                       l->routing.n_expert, (int)SL_CUDA_EXPERTS);
    SL_TRY(cuda_check(d, cudaSetDevice(d->index), "select the card"));
    SL_TRY(multiply(d, &l->router, h, dm, 0, d->router, l->router.rows, 0, n_rows, 1));
    if (gated) SL_TRY(multiply(d, &l->shared_gate, h, dm, 0, ret_shared_w, 1, 0, n_rows, 1));
    return cuda_check(d, sl_cuda_route(compute(d), &l->routing, d->router, n_rows, ret_id, ret_w,
                                       gated ? ret_shared_w : NULL), "start the router");
}

sl_status cuda_head(sl_device *dev, const sl_weights *w, sl_batch *b)
{
    cuda_device *d = (cuda_device *)dev;
    uint64_t dm = w->d_model;
    SL_TRY(cuda_check(d, cudaSetDevice(d->index), "select the card"));
    if (!b->n_logits) return SL_OK;
    size_t bytes = b->n_logits * sizeof *b->logit_row;
    SL_TRY(cuda_tables_begin(d, cuda_padded(bytes)));
    const uint32_t *row = cuda_tables_put(d, b->logit_row, bytes);
    SL_TRY(cuda_tables_send(d));
    SL_TRY(cuda_check(d, sl_cuda_norm(compute(d), &w->out_norm, b->x, dm, row, b->h, dm,
                                      b->n_logits, w->d_model), "start a norm"));
    return multiply(d, &w->head, b->h, dm, 0, b->logits, w->head.rows, 0, b->n_logits,
                    w->logit_scale);
}

/* ---- experts ---- */

/* Some runs of a call, whose activations and outputs fit: a run's rows are slots behind each
 * other. Tables, here and on the device. */
struct step {
    const sl_layer *l;
    const sl_expert_run *runs;
    uint32_t n_runs, n_slots;
    sl_batch *b;
    uint32_t *row;              /* [n_slots] of the batch */
    sl_cuda_run *up, *down;     /* [n_runs] */
    const uint32_t *dev_row, *dev_at, *dev_slot;
    const float *dev_weight;
    const sl_cuda_run *dev_up, *dev_down;
};

static uint32_t run_rows(const sl_expert_run *r, const sl_batch *b)
{
    return r->rows ? r->n_rows : b->n_rows;
}

static bool same_kind(const sl_mat *a, const sl_mat *b)
{
    return a->type == b->type && a->rows == b->rows && a->cols == b->cols
           && a->row_bytes == b->row_bytes;
}

/* As many runs as fit. */
static void place(const cuda_device *d, struct step *s, uint32_t n_runs)
{
    uint64_t floats = 0;
    for (s->n_runs = s->n_slots = 0; s->n_runs < n_runs; s->n_runs++) {
        const sl_expert_run *r = s->runs + s->n_runs;
        uint32_t rows = run_rows(r, s->b);
        if (r->part != SL_RUN_ADD) floats += (uint64_t)rows * r->ffn.gate.rows;
        if (floats > d->ff_floats || rows > d->out_slots - s->n_slots) return;
        s->n_slots += rows;
    }
}

/* Row by row, the slots that are added to it, in the order of the runs. */
static void sum_tables(cuda_device *d, struct step *s)
{
    uint32_t n = s->b->n_rows, first = 0;
    const void *dev_at, *dev_slot, *dev_weight;
    uint32_t *at = cuda_tables_room(d, (n + 1) * sizeof *at, &dev_at);
    uint32_t *slot = cuda_tables_room(d, s->n_slots * sizeof *slot, &dev_slot);
    float *weight = cuda_tables_room(d, s->n_slots * sizeof *weight, &dev_weight);
    memset(at, 0, (n + 1) * sizeof *at);
    for (uint32_t i = 0; i < s->n_runs; i++) {
        uint32_t rows = run_rows(s->runs + i, s->b);
        for (uint32_t j = 0; j < rows && s->runs[i].part != SL_RUN_STORE; j++)
            at[s->row[first + j] + 1]++;
        first += rows;
    }
    for (uint32_t i = 0; i < n; i++) at[i + 1] += at[i];
    first = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {      /* at moves on, and back behind the loop */
        const sl_expert_run *r = s->runs + i;
        uint32_t rows = run_rows(r, s->b);
        for (uint32_t j = 0; j < rows && r->part != SL_RUN_STORE; j++) {
            uint32_t e = at[s->row[first + j]]++;
            slot[e] = first + j;
            weight[e] = r->weights ? r->weights[j] : 1;
        }
        first += rows;
    }
    memmove(at + 1, at, n * sizeof *at);
    at[0] = 0;
    s->dev_at = dev_at;
    s->dev_slot = dev_slot;
    s->dev_weight = dev_weight;
}

/* Runs [i, ..) whose matrices are of one kind, which one launch computes. A run that is only added
 * stands alone. */
static uint32_t group_end(const struct step *s, uint32_t i)
{
    const sl_expert_run *r = s->runs + i;
    uint32_t end = i + 1;
    while (r->part != SL_RUN_ADD && end < s->n_runs && s->runs[end].part != SL_RUN_ADD
           && same_kind(&s->runs[end].ffn.gate, &r->ffn.gate)
           && same_kind(&s->runs[end].ffn.up, &r->ffn.up)
           && same_kind(&s->runs[end].ffn.down, &r->ffn.down))
        end++;
    return end;
}

/* In the runs' tables slots count from the first one of their group. */
static sl_status make_tables(cuda_device *d, struct step *s)
{
    size_t slots = cuda_padded(s->n_slots * sizeof(uint32_t));
    size_t runs = cuda_padded(s->n_runs * sizeof(sl_cuda_run));
    const void *dev_row, *dev_up, *dev_down;
    uint32_t first = 0, in_group = 0, end = 0;
    SL_TRY(cuda_tables_begin(d, 3 * slots + 2 * runs
                                    + cuda_padded((s->b->n_rows + 1) * sizeof(uint32_t))));
    s->row = cuda_tables_room(d, s->n_slots * sizeof *s->row, &dev_row);
    s->up = cuda_tables_room(d, s->n_runs * sizeof *s->up, &dev_up);
    s->down = cuda_tables_room(d, s->n_runs * sizeof *s->down, &dev_down);
    s->dev_row = dev_row;
    s->dev_up = dev_up;
    s->dev_down = dev_down;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const sl_expert_run *r = s->runs + i;
        const sl_ffn *f = &r->ffn;
        uint32_t rows = run_rows(r, s->b);
        if (i == end) in_group = 0, end = group_end(s, i);
        for (uint32_t j = 0; j < rows; j++) s->row[first + j] = r->rows ? r->rows[j] : j;
        s->up[i] = (sl_cuda_run){ { f->gate.data, f->up.data }, { f->gate.bias, f->up.bias },
                                  in_group, rows };
        s->down[i] = (sl_cuda_run){ { f->down.data, NULL }, { f->down.bias, NULL }, in_group,
                                    rows };
        first += rows;
        in_group += rows;
    }
    sum_tables(d, s);
    return cuda_tables_send(d);
}

/* Runs [i, end), a group of n slots from slot `first` on; *ff_at: where ff is free. */
static sl_status compute_runs(cuda_device *d, const struct step *s, uint32_t i, uint32_t end,
                              uint32_t first, uint32_t n, uint64_t *ff_at)
{
    const sl_ffn *f = &s->runs[i].ffn;
    uint32_t longest = 0, width = f->gate.rows, dm = d->w.d_model;
    for (uint32_t e = i; e < end; e++) longest = SL_MAX(longest, s->up[e].n_slots);
    if (!same_kind(&f->gate, &f->up))
        return sl_fail(d->ctx, SL_E_UNSUPPORTED, "cuda: layer %u has gate and up of two types",
                       s->l->index);
    assert(f->gate.cols == dm && f->down.cols == width && f->down.rows == dm);
    float *ff = d->ff + *ff_at;
    *ff_at += (uint64_t)n * width;
    sl_cuda_product up = { .type = f->gate.type, .rows = width, .cols = dm,
                           .row_bytes = f->gate.row_bytes, .runs = s->dev_up + i,
                           .n_runs = end - i, .n_slots = n, .most_slots = longest, .count = 1,
                           .x_row = s->dev_row + first, .y = ff, .ldy = width, .gated = true,
                           .act = s->l->act };
    struct acts h = { s->b->h, dm, 0, s->b->n_rows, 1, dm };
    SL_TRY(prepare(d, &up, &h, d->form, d->form_bytes));
    SL_TRY(start_product(d, &up));
    sl_cuda_product down = { .type = f->down.type, .rows = dm, .cols = width,
                             .row_bytes = f->down.row_bytes, .runs = s->dev_down + i,
                             .n_runs = end - i, .n_slots = n, .most_slots = longest, .count = 1,
                             .y = d->out + (uint64_t)first * dm, .ldy = dm, .scale = 1 };
    struct acts a = { ff, width, 0, n, 1, width };
    SL_TRY(prepare(d, &down, &a, d->ff_form, d->ff_form_bytes));
    return start_product(d, &down);
}

/* Between out and a run's own memory. */
static sl_status move_out(cuda_device *d, const sl_expert_run *r, uint32_t first, uint32_t rows)
{
    float *slots = d->out + (uint64_t)first * d->w.d_model;
    bool store = r->part == SL_RUN_STORE;
    size_t bytes = (size_t)rows * d->w.d_model * sizeof(float);
    return cuda_check(d, cudaMemcpyAsync(store ? r->out : slots, store ? slots : r->out, bytes,
                                         cudaMemcpyDeviceToDevice, compute(d)),
                      "move an output");
}

static sl_status run_step(cuda_device *d, struct step *s, bool last)
{
    uint64_t ff_at = 0;
    uint32_t first = 0;
    bool adds = false;
    SL_TRY(make_tables(d, s));
    for (uint32_t i = 0, end; i < s->n_runs; i = end) {
        uint32_t n = 0;
        end = group_end(s, i);
        for (uint32_t e = i; e < end; e++) n += run_rows(s->runs + e, s->b);
        if (s->runs[i].part != SL_RUN_ADD && n)
            SL_TRY(compute_runs(d, s, i, end, first, n, &ff_at));
        first += n;
    }
    first = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        uint32_t rows = run_rows(s->runs + i, s->b);
        adds |= s->runs[i].part != SL_RUN_STORE;
        if (s->runs[i].part != SL_RUN_WHOLE && rows)
            SL_TRY(move_out(d, s->runs + i, first, rows));
        first += rows;
    }
    if (!adds && !last) return SL_OK;
    return cuda_check(d, sl_cuda_combine(compute(d), d->out, s->dev_at, s->dev_slot, s->dev_weight,
                                         s->b->y, s->l->residual_scale, last ? s->b->x : NULL,
                                         s->b->n_rows, d->w.d_model), "start a sum of experts");
}

sl_status cuda_experts(sl_device *dev, const sl_layer *l, const sl_expert_run *runs,
                       uint32_t n_runs, unsigned ends, sl_batch *b)
{
    cuda_device *d = (cuda_device *)dev;
    uint32_t done = 0;
    SL_TRY(cuda_check(d, cudaSetDevice(d->index), "select the card"));
    do {
        struct step s = { .l = l, .runs = runs + done, .b = b };
        place(d, &s, n_runs - done);
        if (!s.n_runs && done < n_runs)
            return sl_fail(d->ctx, SL_E_ARG, "experts: layer %u, a run of %u rows of width %u "
                           "exceeds ff_sum", l->index, run_rows(s.runs, b), s.runs->ffn.gate.rows);
        done += s.n_runs;
        SL_TRY(run_step(d, &s, (ends & SL_EXPERTS_LAST) && done == n_runs));
    } while (done < n_runs);
    return SL_OK;
}
