/* offload/emu_stage.c - arguments of stages. Each kind of stage has its row in three functions:
 * what it keeps, what it uses, what runs it. */
#include "offload/emu_stage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

const char *emu_stage_name(const emu_stage *s)
{
    static const char *const names[] = { "qkv", "attend", "post", "route", "experts", "head" };
    return names[s->kind];
}

uint32_t emu_stage_layer(const emu_stage *s)
{
    return s->kind == EMU_HEAD ? UINT32_MAX : s->layer.index;
}

/* ---- keeping ---- */

/* A pass over everything that is kept: first `at` is NULL and bytes are counted, then they are
 * copied and pointers turned. */
struct keep { char *at; size_t bytes; };

static const void *put(struct keep *k, const void *src, size_t bytes)
{
    char *to = k->at ? k->at + k->bytes : NULL;
    if (!src) return NULL;
    if (to) memcpy(to, src, bytes);
    k->bytes += (bytes + 63) / 64 * 64;
    return to;
}

#define KEEP(k, field, n) ((field) = put((k), (field), (n) * sizeof *(field)))

static void keep_blocks(struct keep *k, emu_stage *s)
{
    const sl_batch *b = &s->batch;
    sl_kv_view *kv = &s->kv;
    uint32_t n_seq = 0;
    for (uint32_t i = 0; i < b->n_rows; i++) n_seq = SL_MAX(n_seq, b->seq[i] + 1);
    const uint32_t *const *from = kv->blocks;
    const uint32_t **to = (const uint32_t **)(uintptr_t)put(k, from, n_seq * sizeof *from);
    for (uint32_t q = 0; q < n_seq; q++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < b->n_rows; i++)
            if (b->seq[i] == q) n = SL_MAX(n, b->pos[i] / kv->block_rows + 1);
        const uint32_t *table = n ? put(k, from[q], n * sizeof **from) : NULL;
        if (to) to[q] = table;
    }
    kv->blocks = to;
}

static void keep_runs(struct keep *k, emu_stage *s)
{
    const sl_expert_run *from = s->runs;
    sl_expert_run *to = (sl_expert_run *)(uintptr_t)put(k, from, s->n_runs * sizeof *from);
    for (uint32_t i = 0; i < s->n_runs; i++) {
        uint32_t n = from[i].rows ? from[i].n_rows : s->batch.n_rows;
        const uint32_t *rows = put(k, from[i].rows, from[i].n_rows * sizeof *rows);
        const float *weights = put(k, from[i].weights, n * sizeof *weights);
        if (!to) continue;
        to[i].rows = rows;
        to[i].weights = weights;
    }
    s->runs = to;
}

static void keep_arrays(struct keep *k, emu_stage *s)
{
    sl_batch *b = &s->batch;
    if (s->kind == EMU_QKV) KEEP(k, s->weights.rope.inv_freq, s->weights.rope.n_rot / 2);
    if (s->kind == EMU_ATTEND) {
        keep_blocks(k, s);
        KEEP(k, b->pos, b->n_rows);
        KEEP(k, b->seq, b->n_rows);
    }
    if (s->kind == EMU_EXPERTS) keep_runs(k, s);
    if (s->kind == EMU_HEAD) KEEP(k, b->logit_row, b->n_logits);
}

emu_stage *emu_stage_keep(const emu_stage *s)
{
    emu_stage count = *s;
    struct keep k = { NULL, 0 };
    size_t head = (sizeof *s + 63) / 64 * 64;
    keep_arrays(&k, &count);
    char *p = aligned_alloc(64, head + k.bytes);
    if (!p) return NULL;
    emu_stage *to = (emu_stage *)(void *)p;
    *to = *s;
    k = (struct keep){ p + head, 0 };
    keep_arrays(&k, to);
    return to;
}

/* ---- uses ---- */

struct uses { emu_use_fn fn; void *user; };

static void reads(const struct uses *u, const void *p, uint64_t floats, const char *what)
{
    if (p) u->fn(u->user, p, floats * sizeof(float), false, what);
}

static void writes(const struct uses *u, const void *p, uint64_t floats, const char *what)
{
    if (p) u->fn(u->user, p, floats * sizeof(float), true, what);
}

static void mat(const struct uses *u, const sl_mat *m, const char *what)
{
    if (!m->rows) return;
    u->fn(u->user, m->data, m->row_bytes * m->rows * m->count, false, what);
    reads(u, m->bias, (uint64_t)m->rows * m->count, what);
}

static void norm(const struct uses *u, const sl_norm *n, uint64_t width, const char *what)
{
    if (n->kind == SL_NORM_NONE) return;
    reads(u, n->weight, width, what);
    reads(u, n->bias, width, what);
}

static void qkv_uses(const struct uses *u, const emu_stage *s)
{
    const sl_attn *a = &s->layer.attn;
    const sl_batch *b = &s->batch;
    uint64_t n = b->n_rows, dm = s->weights.d_model, half = s->weights.rope.n_rot / 2;
    bool full = a->qk_norm == SL_QK_NORM_FULL, mla = a->kind == SL_ATTN_MLA;
    norm(u, &a->norm, dm, "the attention's norm");
    mat(u, &a->q, "Q's matrix");
    if (mla) {
        mat(u, &a->q_a, "Q's first matrix");
        mat(u, &a->kv_a, "the latent's matrix");
        mat(u, &a->k_b, "the keys' matrix");
        norm(u, &a->kv_a_norm, a->v_dim, "the latent's norm");
        if (a->q_a.rows) norm(u, &a->q_a_norm, a->q_a.rows, "Q's norm");
    } else {
        mat(u, &a->k, "K's matrix");
        mat(u, &a->v, "V's matrix");
    }
    if (a->qk_norm != SL_QK_NORM_NONE) {
        norm(u, &a->q_norm, full ? (uint64_t)a->n_head * a->k_dim : a->k_dim, "Q's norm");
        norm(u, &a->k_norm, full ? (uint64_t)a->n_head_kv * a->k_dim : a->k_dim, "K's norm");
    }
    reads(u, b->x, n * dm, "x");
    if (s->weights.rope.kind != SL_ROPE_NONE) {
        reads(u, b->cos, n * half, "angles");
        reads(u, b->sin, n * half, "angles");
    }
    writes(u, b->h, n * dm, "h");
    writes(u, b->q, n * a->n_head * a->k_dim, "q");
    writes(u, b->k, n * a->n_head_kv * a->k_dim, "k");
    if (!mla) writes(u, b->v, n * a->n_head_kv * a->v_dim, "v");
}

/* Keys and values are marked by the blocks that lie between the first and the last in use. */
static void attend_uses(const struct uses *u, const emu_stage *s)
{
    const sl_attn *a = &s->layer.attn;
    const sl_batch *b = &s->batch;
    const sl_kv_view *kv = &s->kv;
    uint64_t n = b->n_rows, first = UINT32_MAX, end = 0;
    for (uint32_t i = 0; i < b->n_rows; i++)
        for (uint32_t j = 0; j <= b->pos[i] / kv->block_rows; j++) {
            first = SL_MIN(first, (uint64_t)kv->blocks[b->seq[i]][j]);
            end = SL_MAX(end, (uint64_t)kv->blocks[b->seq[i]][j] + 1);
        }
    uint64_t rows = (end - first) * kv->block_rows, at = first * kv->block_rows;
    u->fn(u->user, kv->k + at * kv->k_bytes, rows * kv->k_bytes, true, "keys");
    if (kv->v_bytes) u->fn(u->user, kv->v + at * kv->v_bytes, rows * kv->v_bytes, true, "values");
    reads(u, a->sinks, a->n_head, "sinks");
    reads(u, b->q, n * a->n_head * a->k_dim, "q");
    reads(u, b->k, n * a->n_head_kv * a->k_dim, "k");
    if (kv->v_bytes) reads(u, b->v, n * a->n_head_kv * a->v_dim, "v");
    writes(u, b->att, n * a->n_head * a->v_dim, "att");
}

static void post_uses(const struct uses *u, const emu_stage *s)
{
    const sl_attn *a = &s->layer.attn;
    const sl_batch *b = &s->batch;
    uint64_t n = b->n_rows, dm = a->o.rows;
    if (a->kind == SL_ATTN_MLA) mat(u, &a->v_b, "the values' matrix");
    mat(u, &a->o, "O's matrix");
    norm(u, &s->layer.ffn_norm, dm, "the FFN's norm");
    reads(u, b->att, n * a->n_head * a->v_dim, "att");
    reads(u, b->x, n * dm, "x");
    writes(u, b->x, n * dm, "x");
    writes(u, b->h, n * dm, "h");
    writes(u, b->y, n * dm, "y");
}

static void route_uses(const struct uses *u, const emu_stage *s)
{
    const sl_layer *l = &s->layer;
    uint64_t n = s->batch.n_rows;
    mat(u, &l->router, "the router");
    mat(u, &l->shared_gate, "the shared gate");
    reads(u, l->routing.sel_bias, l->routing.n_expert, "the router's bias");
    reads(u, s->route_h, n * l->router.cols, "h");
    writes(u, s->batch.expert_id, n * l->routing.n_used, "expert ids");
    writes(u, s->batch.expert_w, n * l->routing.n_used, "expert weights");
    if (l->shared_gate.rows) writes(u, s->batch.shared_w, n, "shared weights");
}

static void experts_uses(const struct uses *u, const emu_stage *s)
{
    const sl_batch *b = &s->batch;
    bool adds = s->ends & SL_EXPERTS_LAST, computes = false;
    uint64_t dm = s->layer.attn.o.rows;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const sl_expert_run *r = &s->runs[i];
        uint64_t n = r->rows ? r->n_rows : b->n_rows;
        adds |= r->part != SL_RUN_STORE;
        computes |= r->part != SL_RUN_ADD;
        if (r->part == SL_RUN_ADD) {
            reads(u, r->out, n * dm, "an expert's output");
            continue;
        }
        mat(u, &r->ffn.gate, "an expert's gate");
        mat(u, &r->ffn.up, "an expert's up");
        mat(u, &r->ffn.down, "an expert's down");
        if (r->part == SL_RUN_STORE) writes(u, r->out, n * dm, "an expert's output");
    }
    if (computes) reads(u, b->h, b->n_rows * dm, "h");
    if (adds) writes(u, b->y, b->n_rows * dm, "y");
    if (s->ends & SL_EXPERTS_LAST) writes(u, b->x, b->n_rows * dm, "x");
}

static void head_uses(const struct uses *u, const emu_stage *s)
{
    const sl_batch *b = &s->batch;
    uint64_t dm = s->weights.d_model;
    if (!b->n_logits) return;
    norm(u, &s->weights.out_norm, dm, "the last norm");
    mat(u, &s->weights.head, "the head");
    for (uint32_t i = 0; i < b->n_logits; i++) reads(u, b->x + b->logit_row[i] * dm, dm, "x");
    writes(u, b->h, b->n_logits * dm, "h");
    writes(u, b->logits, (uint64_t)b->n_logits * s->weights.head.rows, "logits");
}

void emu_stage_uses(const emu_stage *s, emu_use_fn fn, void *user)
{
    const struct uses u = { fn, user };
    switch (s->kind) {
    case EMU_QKV: qkv_uses(&u, s); break;
    case EMU_ATTEND: attend_uses(&u, s); break;
    case EMU_POST: post_uses(&u, s); break;
    case EMU_ROUTE: route_uses(&u, s); break;
    case EMU_EXPERTS: experts_uses(&u, s); break;
    case EMU_HEAD: head_uses(&u, s); break;
    }
}

/* ---- running ---- */

sl_status emu_stage_run(emu_stage *s, sl_device *cpu)
{
    const sl_device_ops *o = cpu->ops;
    sl_batch *b = &s->batch;
    switch (s->kind) {
    case EMU_QKV: return o->qkv(cpu, &s->weights, &s->layer, b);
    case EMU_ATTEND: return o->attend(cpu, &s->layer, &s->kv, b);
    case EMU_POST: return o->post(cpu, &s->layer, b);
    case EMU_ROUTE:
        return o->route(cpu, &s->layer, s->route_h, b->n_rows, b->expert_id, b->expert_w,
                        b->shared_w);
    case EMU_EXPERTS: return o->experts(cpu, &s->layer, s->runs, s->n_runs, s->ends, b);
    case EMU_HEAD: return o->head(cpu, &s->weights, b);
    }
    assert(!"a stage that there is not");
    return SL_E_ARG;
}
