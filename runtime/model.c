/* runtime/model.c - a GGUF becomes layers: every tensor the architecture needs is found, its shape
 * checked and its place noted as a binding. No tensor byte is read here; weights.c follows the
 * bindings.
 * Widths of FFNs and experts come from the tensors themselves, everything else from the keys. */
#include "runtime/model.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct opener {
    sl_ctx *ctx;
    sl_model *m;
    /* where the matrices found next are counted; NULL: nowhere */
    uint64_t *bytes, *flops, *int_flops;
    sl_part *parts;             /* [n_parts] */
    uint32_t n_parts;
    uint64_t bound_bytes;       /* of all tensors used so far */
    uint8_t *used;              /* [n_tensors] */
    sl_layer *l;                /* the layer being read */
    sl_layer_shape *ls;
    uint32_t layer;
} opener;

static const sl_tensor *take(opener *o, const char *name)
{
    const sl_gguf *g = o->m->gguf;
    const sl_tensor *t = sl_gguf_find(g, name);
    if (!t) return NULL;
    uint64_t i = (uint64_t)(t - sl_gguf_tensor(g, 0));
    if (!o->used[i]) o->bound_bytes += t->bytes;
    o->used[i] = 1;
    return t;
}

static sl_status bind(opener *o, binding b)
{
    sl_model *m = o->m;
    if (m->n_bindings == m->cap_bindings) {
        uint32_t cap = m->cap_bindings ? m->cap_bindings * 2 : 256;
        binding *grown = realloc(m->bindings, cap * sizeof *grown);
        if (!grown) return sl_fail(o->ctx, SL_E_NOMEM, "table of %u tensors", cap);
        m->bindings = grown;
        m->cap_bindings = cap;
    }
    b.layer = o->l ? o->layer : BIND_NO_LAYER;
    m->bindings[m->n_bindings++] = b;
    return SL_OK;
}

static sl_status missing(opener *o, const char *name)
{
    return sl_fail(o->ctx, SL_E_FORMAT, "%s: tensor %s is missing (architecture %s)",
                   sl_gguf_path(o->m->gguf, 0), name, o->m->arch->name);
}

/* Type and shape [count][rows][cols] of a matrix; rows 0 on entry: any, and *rows gets it. */
static sl_status check_shape(opener *o, const sl_tensor *t, const char *name, uint32_t cols,
                             uint32_t *rows, uint32_t count)
{
    const sl_type_info *ti = sl_type_get(t->type);
    uint32_t elem_bytes = ti->block_elems == 1 ? ti->block_bytes : 2;
    if (!ti->matmul)
        return sl_fail(o->ctx, SL_E_UNSUPPORTED,
                       "%s: tensor %s has type %s, which no kernel multiplies by",
                       sl_gguf_path(o->m->gguf, t->file), name, ti->name ? ti->name : "unknown");
    if (t->ne[0] != cols || (*rows && t->ne[1] != *rows) || t->ne[2] != count || t->ne[3] != 1
        || t->ne[1] > UINT32_MAX)
        return sl_fail(o->ctx, SL_E_FORMAT,
                       "%s: tensor %s is %" PRIu64 " x %" PRIu64 " x %" PRIu64
                       ", expected %u x %u%s x %u",
                       sl_gguf_path(o->m->gguf, t->file), name, t->ne[0], t->ne[1], t->ne[2], cols,
                       *rows, *rows ? "" : " (any)", count);
    if (t->offset % elem_bytes)
        return sl_fail(o->ctx, SL_E_FORMAT,
                       "%s: tensor %s of type %s starts at byte %" PRIu64 ", expected a "
                       "multiple of %u",
                       sl_gguf_path(o->m->gguf, t->file), name, ti->name, t->offset, elem_bytes);
    *rows = (uint32_t)t->ne[1];
    return SL_OK;
}

static void count_into(opener *o, uint64_t *bytes, uint64_t *flops, uint64_t *int_flops,
                       sl_part *parts, uint32_t n_parts)
{
    o->bytes = bytes;
    o->flops = flops;
    o->int_flops = int_flops;
    o->parts = parts;
    o->n_parts = n_parts;
}
/* A class of a layer: its fields all begin with one name. */
#define COUNT_INTO(o, c) \
    count_into(o, &(o)->ls->c##_bytes, &(o)->ls->c##_flops_row, &(o)->ls->c##_int_flops_row, \
               (o)->ls->c, SL_SHAPE_TYPES)

static void count_mat(opener *o, const sl_mat *w)
{
    if (o->bytes) *o->bytes += w->row_bytes * w->rows * w->count;
    uint64_t elems = (uint64_t)w->cols * w->rows * w->count;
    if (o->flops) *o->flops += 2 * elems;
    if (o->int_flops && sl_type_get(w->type)->block_elems > 1) *o->int_flops += 2 * elems;
    sl_part_add(o->parts, o->n_parts, w->type, elems);
}

/* The part of tensor t that starts at row `skip_rows`, as `rows` rows. */
static sl_status bind_rows(opener *o, const sl_tensor *t, uint32_t skip_rows, uint32_t rows,
                           uint32_t count, sl_mat *ret)
{
    uint64_t row_bytes = t->bytes / (t->ne[1] * t->ne[2]);
    ret->type = t->type;
    ret->rows = rows;
    ret->cols = (uint32_t)t->ne[0];
    ret->count = count;
    ret->row_bytes = row_bytes;
    count_mat(o, ret);
    return bind(o, (binding){ .tensor = t, .dst = &ret->data, .skip = skip_rows * row_bytes,
                              .kind = BIND_BYTES });
}

static sl_status floats(opener *o, const char *name, need nd, uint64_t n, const float **ret)
{
    const sl_tensor *t = nd == NEED_NO ? NULL : take(o, name);
    if (!t) return nd == NEED_YES ? missing(o, name) : SL_OK;
    if (t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3] != n || t->ne[0] > n)
        return sl_fail(o->ctx, SL_E_FORMAT,
                       "%s: tensor %s has %" PRIu64 " x %" PRIu64 " numbers, expected %" PRIu64,
                       sl_gguf_path(o->m->gguf, t->file), name, t->ne[0], t->ne[1], n);
    if (!sl_type_get(t->type)->matmul || t->offset % 4)
        return sl_fail(o->ctx, SL_E_UNSUPPORTED,
                       "%s: tensor %s has type %s at byte %" PRIu64 ", expected "
                       "floats at a multiple of 4",
                       sl_gguf_path(o->m->gguf, t->file), name, sl_type_get(t->type)->name,
                       t->offset);
    if (o->bytes) *o->bytes += t->bytes;
    return bind(o,
                (binding){ .tensor = t, .dst = (const void **)ret, .n = n, .kind = BIND_FLOATS });
}

/* Matrix `<stem>.weight` with its bias. rows 0: whatever the file has. */
static sl_status mat(opener *o, const char *stem, need nd, need bias, uint32_t cols, uint32_t rows,
                     uint32_t count, sl_mat *ret)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", stem);
    const sl_tensor *t = nd == NEED_NO ? NULL : take(o, name);
    if (!t) return nd == NEED_YES ? missing(o, name) : SL_OK;
    SL_TRY(check_shape(o, t, name, cols, &rows, count));
    SL_TRY(bind_rows(o, t, 0, rows, count, ret));
    snprintf(name, sizeof name, "%s.bias", stem);
    return floats(o, name, bias, (uint64_t)rows * count, &ret->bias);
}

static sl_status norm(opener *o, const char *stem, need nd, uint32_t n, sl_norm_kind kind,
                      sl_norm *ret)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", stem);
    SL_TRY(floats(o, name, nd, n, &ret->weight));
    ret->eps = o->m->hp.eps;
    if (!ret->weight && nd != NEED_YES && !sl_gguf_find(o->m->gguf, name)) return SL_OK;
    ret->kind = kind;
    snprintf(name, sizeof name, "%s.bias", stem);
    return floats(o, name, kind == SL_NORM_LAYER ? NEED_YES : NEED_NO, n, &ret->bias);
}

static const char *blk(const opener *o, char *buf, size_t n, const char *stem)
{
    snprintf(buf, n, "blk.%u.%s", o->layer, stem);
    return buf;
}
#define BLK(stem) blk(o, (char[96]){ 0 }, 96, stem)

/* Q, K and V: three tensors, or one with their rows in this order. */
static sl_status read_qkv(opener *o, sl_attn *a)
{
    const arch *ar = o->m->arch;
    uint32_t d = o->m->hp.d_model, nq = a->n_head * a->k_dim;
    uint32_t nk = a->n_head_kv * a->k_dim, nv = a->n_head_kv * a->v_dim, rows = nq + nk + nv;
    const sl_tensor *fused = take(o, BLK("attn_qkv.weight"));
    if (!fused) {
        SL_TRY(mat(o, BLK("attn_q"), NEED_YES, ar->qkv_bias, d, nq, 1, &a->q));
        SL_TRY(mat(o, BLK("attn_k"), NEED_YES, ar->qkv_bias, d, nk, 1, &a->k));
        return mat(o, BLK("attn_v"), NEED_YES, ar->qkv_bias, d, nv, 1, &a->v);
    }
    SL_TRY(check_shape(o, fused, BLK("attn_qkv.weight"), d, &rows, 1));
    SL_TRY(bind_rows(o, fused, 0, nq, 1, &a->q));
    SL_TRY(bind_rows(o, fused, nq, nk, 1, &a->k));
    SL_TRY(bind_rows(o, fused, nq + nk, nv, 1, &a->v));
    const sl_tensor *bias = ar->qkv_bias == NEED_NO ? NULL : take(o, BLK("attn_qkv.bias"));
    if (!bias) return ar->qkv_bias == NEED_YES ? missing(o, BLK("attn_qkv.bias")) : SL_OK;
    if (bias->type != SL_F32 || bias->ne[0] != rows)
        return sl_fail(o->ctx, SL_E_FORMAT, "%s: tensor %s: expected %u F32 numbers",
                       sl_gguf_path(o->m->gguf, bias->file), BLK("attn_qkv.bias"), rows);
    sl_mat *parts[] = { &a->q, &a->k, &a->v };
    uint64_t skip = 0;
    for (int i = 0; i < 3; skip += parts[i++]->rows)
        SL_TRY(bind(o, (binding){ .tensor = bias,
                                  .dst = (const void **)&parts[i]->bias,
                                  .skip = skip * sizeof(float),
                                  .n = parts[i]->rows,
                                  .kind = BIND_FLOATS }));
    return SL_OK;
}

static sl_status read_gqa(opener *o, sl_attn *a)
{
    const arch *ar = o->m->arch;
    const hparams *h = &o->m->hp;
    const sl_gguf *g = o->m->gguf;
    const uint32_t limit = 1u << 20;
    SL_TRY(
        hparams_u32(o->ctx, g, ar, "attention.head_count", o->layer, NULL, 1, limit, &a->n_head));
    SL_TRY(hparams_u32(o->ctx, g, ar, "attention.head_count_kv", o->layer, &a->n_head, 1, limit,
                       &a->n_head_kv));
    if (a->n_head % a->n_head_kv)
        return sl_fail(o->ctx, SL_E_FORMAT,
                       "layer %u: %u query heads do not divide over %u key heads", o->layer,
                       a->n_head, a->n_head_kv);
    a->k_dim = h->k_dim;
    a->v_dim = h->v_dim;
    if ((uint64_t)a->n_head * (a->k_dim + a->v_dim) > UINT32_MAX / 16)
        return sl_fail(o->ctx, SL_E_FORMAT, "layer %u: %u heads of %u and %u dimensions are absurd",
                       o->layer, a->n_head, a->k_dim, a->v_dim);
    a->window = hparams_windowed(g, ar, o->layer) ? h->window : 0;
    SL_TRY(read_qkv(o, a));
    bool full = ar->qk_norm == SL_QK_NORM_FULL;
    uint32_t nq = full ? a->n_head * a->k_dim : a->k_dim,
             nk = full ? a->n_head_kv * a->k_dim : a->k_dim;
    SL_TRY(norm(o, BLK("attn_q_norm"), ar->qk_norm_need, nq, SL_NORM_RMS, &a->q_norm));
    SL_TRY(norm(o, BLK("attn_k_norm"), ar->qk_norm_need, nk, SL_NORM_RMS, &a->k_norm));
    a->qk_norm = a->q_norm.kind != SL_NORM_NONE ? ar->qk_norm : SL_QK_NORM_NONE;
    if (a->q_norm.kind != a->k_norm.kind)
        return missing(o, BLK("attn_q_norm.weight or attn_k_norm.weight"));
    return floats(o, BLK("attn_sinks.weight"), ar->sinks, a->n_head, &a->sinks);
}

/* attn_kv_b of old files [n_head*(nope + v_head)][kv_lora]: per head its key rows, which the
 * absorbed form wants turned round, then its value rows. Both are kept as floats. */
static sl_status read_old_kv_b(opener *o, sl_attn *a, uint32_t kv_lora)
{
    uint32_t rows = a->n_head * (a->nope + a->v_head);
    const sl_tensor *t = take(o, BLK("attn_kv_b.weight"));
    if (!t) return missing(o, BLK("attn_k_b.weight (or attn_kv_b.weight)"));
    SL_TRY(check_shape(o, t, BLK("attn_kv_b.weight"), kv_lora, &rows, 1));
    a->k_b = (sl_mat){ .type = SL_F32, .rows = kv_lora, .cols = a->nope, .count = a->n_head,
                       .row_bytes = a->nope * sizeof(float) };
    a->v_b = (sl_mat){ .type = SL_F32, .rows = a->v_head, .cols = kv_lora, .count = a->n_head,
                       .row_bytes = kv_lora * sizeof(float) };
    count_mat(o, &a->k_b);
    count_mat(o, &a->v_b);
    SL_TRY(bind(o, (binding){ .tensor = t, .dst = &a->k_b.data, .attn = a, .kind = BIND_KV_B_KEYS,
                              .n = (uint64_t)a->n_head * a->nope * kv_lora }));
    return bind(o, (binding){ .tensor = t, .dst = &a->v_b.data, .attn = a, .kind = BIND_KV_B_VALUES,
                              .n = (uint64_t)a->n_head * a->v_head * kv_lora });
}

static sl_status read_mla(opener *o, sl_attn *a)
{
    const arch *ar = o->m->arch;
    const hparams *h = &o->m->hp;
    uint32_t d = h->d_model, R = h->kv_lora, n_rot = h->rope.n_rot, q_in = d;
    SL_TRY(hparams_u32(o->ctx, o->m->gguf, ar, "attention.head_count", o->layer, NULL, 1, 1u << 20,
                       &a->n_head));
    a->n_head_kv = 1;
    a->k_dim = R + n_rot;
    a->v_dim = R;
    a->nope = h->nope;
    a->v_head = h->v_head;
    if ((uint64_t)a->n_head * (a->k_dim + a->nope + a->v_head) > UINT32_MAX / 16)
        return sl_fail(o->ctx, SL_E_FORMAT, "layer %u: %u heads of %u dimensions are absurd",
                       o->layer, a->n_head, a->k_dim);
    if (h->q_lora) {
        SL_TRY(mat(o, BLK("attn_q_a"), NEED_YES, NEED_NO, d, h->q_lora, 1, &a->q_a));
        SL_TRY(norm(o, BLK("attn_q_a_norm"), NEED_YES, h->q_lora, SL_NORM_RMS, &a->q_a_norm));
        q_in = h->q_lora;
    }
    SL_TRY(mat(o, h->q_lora ? BLK("attn_q_b") : BLK("attn_q"), NEED_YES, NEED_NO, q_in,
               a->n_head * (a->nope + n_rot), 1, &a->q));
    SL_TRY(mat(o, BLK("attn_kv_a_mqa"), NEED_YES, NEED_NO, d, R + n_rot, 1, &a->kv_a));
    SL_TRY(norm(o, BLK("attn_kv_a_norm"), NEED_YES, R, SL_NORM_RMS, &a->kv_a_norm));
    SL_TRY(mat(o, BLK("attn_k_b"), NEED_MAYBE, NEED_NO, a->nope, R, a->n_head, &a->k_b));
    if (!a->k_b.rows) return read_old_kv_b(o, a, R);
    return mat(o, BLK("attn_v_b"), NEED_YES, NEED_NO, R, a->v_head, a->n_head, &a->v_b);
}

static sl_status read_attn(opener *o)
{
    const arch *ar = o->m->arch;
    const hparams *h = &o->m->hp;
    sl_attn *a = &o->l->attn;
    a->kind = ar->attn;
    a->scale = h->attn_scale;
    COUNT_INTO(o, qkv);
    SL_TRY(norm(o, BLK("attn_norm"), NEED_YES, h->d_model, ar->norm, &a->norm));
    SL_TRY(ar->attn == SL_ATTN_MLA ? read_mla(o, a) : read_gqa(o, a));
    uint32_t o_in = a->n_head * (ar->attn == SL_ATTN_MLA ? a->v_head : a->v_dim);
    COUNT_INTO(o, post);
    SL_TRY(mat(o, BLK("attn_output"), NEED_YES, ar->o_bias, o_in, h->d_model, 1, &a->o));
    o->ls->k_elems = a->n_head_kv * a->k_dim;
    /* their lowest common bit */
    o->ls->kv_unit = (a->k_dim | a->v_dim) & -(a->k_dim | a->v_dim);
    o->ls->v_elems = ar->attn == SL_ATTN_MLA ? 0 : a->n_head_kv * a->v_dim;
    o->ls->window = a->window;
    o->ls->q_elems = a->n_head * a->k_dim;
    o->ls->att_elems = a->n_head * a->v_dim;
    o->ls->ctx_flops_row = 2 * ((uint64_t)o->ls->q_elems + o->ls->att_elems);
    return SL_OK;
}

static sl_status read_ffn(opener *o, const char *suffix, need nd, need bias, sl_ffn *f)
{
    uint32_t d = o->m->hp.d_model;
    char stem[32];
    snprintf(stem, sizeof stem, "ffn_gate%s", suffix);
    SL_TRY(mat(o, BLK(stem), nd, bias, d, 0, 1, &f->gate));
    if (!f->gate.rows) return SL_OK;
    snprintf(stem, sizeof stem, "ffn_up%s", suffix);
    SL_TRY(mat(o, BLK(stem), NEED_YES, bias, d, f->gate.rows, 1, &f->up));
    snprintf(stem, sizeof stem, "ffn_down%s", suffix);
    return mat(o, BLK(stem), NEED_YES, bias, f->gate.rows, d, 1, &f->down);
}

/* Slices of every expert from a [n_expert][rows][cols] tensor, and the template of their matrix.
 * The tensor may hold more rows per expert than are wanted (gate and up fused): part 1 starts
 * behind part 0's rows. */
static sl_status split_experts(opener *o, const sl_tensor *t, uint32_t rows, uint32_t part,
                               size_t which, sl_mat *ret)
{
    const hparams *h = &o->m->hp;
    uint64_t row_bytes = t->bytes / (t->ne[1] * t->ne[2]);
    *ret = (sl_mat){ .type = t->type, .rows = rows, .cols = (uint32_t)t->ne[0], .count = 1,
                     .row_bytes = row_bytes };
    for (uint32_t e = 0; e < h->n_expert; e++) {
        sl_slice *s =
            (sl_slice *)((char *)&o->m->experts[(size_t)o->layer * h->n_expert + e] + which);
        *s = (sl_slice){ .file = t->file, .type = t->type, .bytes = rows * row_bytes,
                         .offset = t->offset + (e * t->ne[1] + (uint64_t)part * rows) * row_bytes };
    }
    count_mat(o, ret);
    return SL_OK;
}

/* Experts of one kind: one tensor of all, or (old Mixtral files) one tensor each. */
static sl_status read_experts(opener *o, const char *stem, uint32_t cols, uint32_t rows,
                              size_t which, sl_mat *ret)
{
    const hparams *h = &o->m->hp;
    char name[96], first[96];
    snprintf(name, sizeof name, "blk.%u.%s_exps.weight", o->layer, stem);
    const sl_tensor *t = take(o, name);
    if (t) {
        SL_TRY(check_shape(o, t, name, cols, &rows, h->n_expert));
        SL_TRY(split_experts(o, t, rows, 0, which, ret));
        snprintf(name, sizeof name, "blk.%u.%s_exps.bias", o->layer, stem);
        uint64_t before = *o->bytes;
        SL_TRY(floats(o, name, o->m->arch->expert_bias, (uint64_t)rows * h->n_expert, &ret->bias));
        *o->bytes = before + (*o->bytes - before) / h->n_expert;    /* one expert's */
        return SL_OK;
    }
    snprintf(first, sizeof first, "blk.%u.%s.0.weight", o->layer, stem);
    for (uint32_t e = 0; e < h->n_expert; e++) {
        snprintf(name, sizeof name, "blk.%u.%s.%u.weight", o->layer, stem, e);
        if (!(t = take(o, name))) {
            snprintf(first, sizeof first, "blk.%u.%s_exps.weight", o->layer, stem);
            return missing(o, e ? name : first);
        }
        SL_TRY(check_shape(o, t, name, cols, &rows, 1));
        if (e && t->type != ret->type)
            return sl_fail(o->ctx, SL_E_UNSUPPORTED,
                           "%s: tensor %s is %s, expert 0 is %s: one type a layer "
                           "is expected",
                           sl_gguf_path(o->m->gguf, t->file), name, sl_type_get(t->type)->name,
                           sl_type_get(ret->type)->name);
        sl_slice *s =
            (sl_slice *)((char *)&o->m->experts[(size_t)o->layer * h->n_expert + e] + which);
        *s = (sl_slice){ .file = t->file, .type = t->type, .bytes = t->bytes, .offset = t->offset };
        if (e) continue;
        *ret = (sl_mat){ .type = t->type, .rows = rows, .cols = cols, .count = 1,
                         .row_bytes = t->bytes / rows };
        count_mat(o, ret);
    }
    return SL_OK;
}

static sl_status read_gate_up(opener *o, sl_ffn *x)
{
    uint32_t d = o->m->hp.d_model, rows = 0;
    const sl_tensor *t = take(o, BLK("ffn_gate_up_exps.weight"));
    if (!t) {
        SL_TRY(read_experts(o, "ffn_gate", d, 0, offsetof(sl_expert_slices, gate), &x->gate));
        return read_experts(o, "ffn_up", d, x->gate.rows, offsetof(sl_expert_slices, up), &x->up);
    }
    SL_TRY(check_shape(o, t, BLK("ffn_gate_up_exps.weight"), d, &rows, o->m->hp.n_expert));
    if (rows % 2 || o->m->arch->expert_bias != NEED_NO)
        return sl_fail(o->ctx, SL_E_UNSUPPORTED, "layer %u: fused gate and up of %u rows%s",
                       o->layer, rows, rows % 2 ? ", expected an even number" : " with biases");
    SL_TRY(split_experts(o, t, rows / 2, 0, offsetof(sl_expert_slices, gate), &x->gate));
    return split_experts(o, t, rows / 2, 1, offsetof(sl_expert_slices, up), &x->up);
}

static sl_status read_moe(opener *o)
{
    const arch *ar = o->m->arch;
    const hparams *h = &o->m->hp;
    sl_layer *l = o->l;
    l->moe = true;
    l->routing = (sl_routing){ .score = h->score, .n_expert = h->n_expert, .n_used = h->n_used,
                               .n_group = h->n_group, .n_group_used = h->n_group_used,
                               .normalise = h->normalise, .scale = h->expert_scale,
                               .mixer_eps = ar->mixer_eps };
    if (h->score == SL_SCORE_SPARSEMIXER && (h->n_used != 2 || h->n_expert < 2))
        return sl_fail(o->ctx, SL_E_UNSUPPORTED, "%s routes to 2 experts, the file says %u of %u",
                       ar->name, h->n_used, h->n_expert);
    count_into(o, &o->ls->router_bytes, NULL, NULL, &o->ls->router, 1);
    SL_TRY(mat(o, BLK("ffn_gate_inp"), NEED_YES, ar->router_bias, h->d_model, h->n_expert, 1,
               &l->router));
    SL_TRY(floats(o, BLK("exp_probs_b.bias"), ar->sel_bias, h->n_expert, &l->routing.sel_bias));
    COUNT_INTO(o, expert);
    SL_TRY(read_gate_up(o, &l->expert));
    SL_TRY(read_experts(o, "ffn_down", l->expert.gate.rows, h->d_model,
                        offsetof(sl_expert_slices, down), &l->expert.down));
    o->ls->n_expert = h->n_expert;
    o->ls->n_used = h->n_used;
    COUNT_INTO(o, ffn);
    SL_TRY(read_ffn(o, "_shexp", ar->shared, NEED_NO, &l->shared));
    if (!l->shared.gate.rows || ar->shared_gate == NEED_NO) return SL_OK;
    /* One number a token: the file has it as a vector. */
    l->shared_gate = (sl_mat){ .type = SL_F32, .rows = 1, .cols = h->d_model, .count = 1,
                               .row_bytes = h->d_model * sizeof(float) };
    return floats(o, BLK("ffn_gate_inp_shexp.weight"), ar->shared_gate, h->d_model,
                  (const float **)&l->shared_gate.data);
}

static sl_status read_layer(opener *o, uint32_t i)
{
    const arch *ar = o->m->arch;
    const hparams *h = &o->m->hp;
    o->layer = i;
    o->l = &o->m->layers[i];
    o->ls = &o->m->layer_shapes[i];
    o->l->index = i;
    o->l->residual_scale = h->residual_scale;
    o->l->act = ar->act;
    SL_TRY(read_attn(o));
    SL_TRY(norm(o, BLK(ar->ffn_norm), NEED_YES, h->d_model, ar->norm, &o->l->ffn_norm));
    COUNT_INTO(o, ffn);
    if (h->n_expert && sl_gguf_find(o->m->gguf, BLK("ffn_gate_inp.weight"))) return read_moe(o);
    return read_ffn(o, "", NEED_YES, ar->ffn_bias, &o->l->ffn);
}

/* Embedding, head and frequency divisors. */
static sl_status read_ends(opener *o)
{
    sl_model *m = o->m;
    sl_weights *w = &m->ends.weights;
    const hparams *h = &m->hp;
    uint32_t half = h->rope.n_rot / 2;
    count_into(o, &m->shape.embed_bytes, NULL, NULL, NULL, 0);
    SL_TRY(mat(o, "token_embd", NEED_YES, NEED_NO, h->d_model, 0, 1, &w->embed));
    count_into(o, &m->shape.head_bytes, NULL, NULL, &m->shape.head, 1);
    if (!w->embed.rows) return sl_fail(o->ctx, SL_E_FORMAT, "tensor token_embd.weight has no rows");
    SL_TRY(
        mat(o, "output", NEED_MAYBE, m->arch->head_bias, h->d_model, w->embed.rows, 1, &w->head));
    if (!w->head.rows) {    /* tied */
        uint32_t rows = w->embed.rows;
        SL_TRY(bind_rows(o, take(o, "token_embd.weight"), 0, rows, 1, &w->head));
        m->shape.head_bytes = 0;
        SL_TRY(floats(o, "output.bias", m->arch->head_bias, rows, &w->head.bias));
    }
    count_into(o, NULL, NULL, NULL, NULL, 0);
    m->shape.head_int = sl_type_get(w->head.type)->block_elems > 1;
    SL_TRY(norm(o, "output_norm", NEED_YES, h->d_model, m->arch->norm, &w->out_norm));
    SL_TRY(floats(o, "rope_freqs.weight", NEED_MAYBE, half, &m->ends.rope_freqs));
    SL_TRY(floats(o, "rope_factors_long.weight", NEED_MAYBE, half, &m->ends.rope_long));
    SL_TRY(floats(o, "rope_factors_short.weight", NEED_MAYBE, half, &m->ends.rope_short));
    w->d_model = h->d_model;
    w->n_vocab = w->embed.rows;
    w->n_layer = h->n_layer;
    w->embed_scale = h->embed_scale;
    w->logit_scale = h->logit_scale;
    w->layers = m->layers;
    return SL_OK;
}

#define WIDEN(field, value) \
    do { uint64_t v_ = (value); if (v_ > UINT32_MAX / 8) return false; \
         if (v_ > w->field) w->field = (uint32_t)v_; } while (0)

/* The widest of every layer; false when a width is absurd. */
static bool measure_widths(sl_model *m)
{
    sl_widths *w = &m->widths;
    *w = (sl_widths){ .d_model = m->hp.d_model, .n_used = m->hp.n_used, .n_expert = m->hp.n_expert,
                      .n_vocab = m->ends.weights.n_vocab, .n_rot = m->hp.rope.n_rot };
    for (uint32_t i = 0; i < m->hp.n_layer; i++) {
        const sl_layer *l = &m->layers[i];
        const sl_attn *a = &l->attn;
        WIDEN(q, (uint64_t)a->n_head * a->k_dim);
        WIDEN(k, (uint64_t)a->n_head_kv * a->k_dim);
        WIDEN(v, (uint64_t)a->n_head_kv * a->v_dim);
        WIDEN(att, (uint64_t)a->n_head * a->v_dim);
        WIDEN(n_head, a->n_head);
        WIDEN(head_dim, SL_MAX(a->k_dim, a->v_dim));
        if (a->kind == SL_ATTN_MLA) {
            WIDEN(heads, a->n_head);
            WIDEN(mla, (uint64_t)a->q_a.rows + (uint64_t)a->n_head * (a->nope + m->hp.rope.n_rot));
            WIDEN(mla, (uint64_t)a->n_head * a->v_head);
        }
        WIDEN(cols, SL_MAX(a->o.cols, SL_MAX(a->q.cols, a->k_b.cols)));
        WIDEN(cols, SL_MAX(a->v_b.cols, m->hp.d_model));
        WIDEN(cols, SL_MAX(l->ffn.down.cols, SL_MAX(l->expert.down.cols, l->shared.down.cols)));
        WIDEN(ff_sum, l->moe ? (uint64_t)m->hp.n_used * l->expert.gate.rows + l->shared.gate.rows
                             : l->ffn.gate.rows);
    }
    return true;
}

static void measure_rows(const sl_widths *w, sl_shape *s)
{
    sl_shape_widths x = { .d_model = w->d_model, .q = w->q, .k = w->k, .v = w->v, .att = w->att,
                          .n_used = w->n_used, .n_expert = w->n_expert, .n_rot = w->n_rot,
                          .cols = w->cols, .heads = w->heads, .mla = w->mla, .ff_sum = w->ff_sum };
    s->row_scratch_bytes = sl_shape_row_scratch(&x);
    s->row_lane_bytes = sl_shape_row_lane(&x);
}

/* Room of the matrices, and of what is kept as floats. A tensor with several bindings (fused Q, K
 * and V; a tied head) is there once. */
static void measure_rooms(opener *o)
{
    sl_model *m = o->m;
    for (uint32_t i = 0; i < m->n_bindings; i++) {
        const binding *b = &m->bindings[i];
        uint8_t *used = &o->used[b->tensor - sl_gguf_tensor(m->gguf, 0)];
        if (b->kind != BIND_BYTES) {
            m->shape.vector_bytes += (b->n + 15) / 16 * 16 * sizeof(float);
            continue;
        }
        if (*used == 2) continue;
        *used = 2;
        uint64_t room = sl_shape_room(b->tensor->bytes);
        if (b->layer == BIND_NO_LAYER) m->shape.ends_room += room;
        else m->layer_shapes[b->layer].section_bytes += room;
    }
    for (uint32_t l = 0; l < m->hp.n_layer; l++) {
        if (!m->layers[l].moe) continue;
        const sl_expert_slices *e = &m->experts[(size_t)l * m->hp.n_expert];
        m->layer_shapes[l].slot_bytes = sl_shape_room(e->gate.bytes) + sl_shape_room(e->up.bytes)
                                      + sl_shape_room(e->down.bytes);
    }
}

static void measure_shape(opener *o)
{
    sl_model *m = o->m;
    sl_shape *s = &m->shape;
    const sl_widths *w = &m->widths;
    s->n_layer = m->hp.n_layer;
    s->d_model = m->hp.d_model;
    s->n_vocab = m->ends.weights.n_vocab;
    s->n_ctx_train = m->hp.n_ctx_train;
    s->layers = m->layer_shapes;
    s->total_bytes = o->bound_bytes;
    for (uint32_t i = 0; i < s->n_layer; i++)
        s->experts_bytes += m->layer_shapes[i].expert_bytes * m->layer_shapes[i].n_expert;
    s->dense_bytes = s->total_bytes - SL_MIN(s->experts_bytes, s->total_bytes);
    s->n_rot = w->n_rot;
    measure_rows(w, s);
    for (uint64_t i = 0; i < sl_gguf_n_tensors(m->gguf); i++) {
        const sl_tensor *t = sl_gguf_tensor(m->gguf, i);
        if (o->used[i]) s->n_params += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
    }
}

/* Tensors nobody asked for mean that the file is not quite what its architecture's name says. */
static void warn_unused(const opener *o)
{
    const sl_gguf *g = o->m->gguf;
    const sl_tensor *first = NULL;
    unsigned n = 0;
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const sl_tensor *t = sl_gguf_tensor(g, i);
        unsigned layer = 0;
        if (o->used[i]) continue;
        /* Layers behind the last one predict further tokens (MTP) and are left out on purpose. */
        if (sscanf(t->name.p, "blk.%u.", &layer) == 1 && layer >= o->m->hp.n_layer) continue;
        if (!n++) first = t;
    }
    if (n)
        sl_log(o->ctx, SL_WARN,
               "%u tensors of the file have no use in architecture %s, %.*s the first of "
               "them: results may be wrong",
               n, o->m->arch->name, (int)first->name.n, first->name.p);
}

static sl_status read_all(opener *o)
{
    sl_model *m = o->m;
    const hparams *h = &m->hp;
    uint64_t n_experts = (uint64_t)h->n_layer * h->n_expert;
    /* Every layer has at least two tensors and every expert a byte of the file: hostile counts end
     * here. */
    uint64_t file_bytes = 0;
    for (uint32_t f = 0; f < sl_gguf_n_files(m->gguf); f++)
        file_bytes += sl_gguf_file_bytes(m->gguf, f);
    if (!sl_gguf_n_tensors(m->gguf))
        return sl_fail(o->ctx, SL_E_FORMAT, "the file holds no tensors: a vocabulary only");
    if (h->n_layer > sl_gguf_n_tensors(m->gguf) || n_experts > file_bytes)
        return sl_fail(o->ctx, SL_E_FORMAT,
                       "%u layers of %u experts in a file of %" PRIu64 " tensors", h->n_layer,
                       h->n_expert, sl_gguf_n_tensors(m->gguf));
    m->layers = calloc(h->n_layer, sizeof *m->layers);
    m->layer_shapes = calloc(h->n_layer, sizeof *m->layer_shapes);
    o->used = calloc(sl_gguf_n_tensors(m->gguf) + 1, 1);
    if (!m->layers || !m->layer_shapes || !o->used)
        return sl_fail(o->ctx, SL_E_NOMEM, "tables of %u layers", h->n_layer);
    if (n_experts) {
        void *p = NULL;
        SL_TRY(sl_mem_alloc(o->ctx, SL_ACC_TABLES, n_experts * sizeof(sl_expert_slices), &p));
        m->experts = p;
    }
    SL_TRY(read_ends(o));
    for (uint32_t i = 0; i < h->n_layer; i++) SL_TRY(read_layer(o, i));
    if (!measure_widths(m))
        return sl_fail(o->ctx, SL_E_FORMAT, "%s: layers of absurd width", sl_gguf_path(m->gguf, 0));
    measure_shape(o);
    measure_rooms(o);
    warn_unused(o);
    return SL_OK;
}

/* A name to show: general.name, or the file's. */
char *model_name_of(const sl_gguf *g)
{
    sl_str s;
    if (sl_gguf_get_str(g, sl_gguf_kv_find(g, "general.name"), 0, &s) && s.n)
        return strndup(s.p, s.n);
    const char *slash = strrchr(sl_gguf_path(g, 0), '/');
    return strdup(slash ? slash + 1 : sl_gguf_path(g, 0));
}

static sl_status open_vocab(sl_ctx *ctx, sl_model *m)
{
    if (!sl_gguf_kv_find(m->gguf, "tokenizer.ggml.model")) return SL_OK;
    SL_TRY(sl_vocab_create(ctx, m->gguf, &m->vocab));
    if (sl_vocab_size(m->vocab) <= m->ends.weights.n_vocab) return SL_OK;
    return sl_fail(ctx, SL_E_FORMAT,
                   "%s: %u tokens in the vocabulary, but token_embd.weight has %u rows",
                   sl_gguf_path(m->gguf, 0), sl_vocab_size(m->vocab), m->ends.weights.n_vocab);
}

static sl_status find_arch(sl_ctx *ctx, sl_model *m, const char *path)
{
    sl_str s;
    char known[256] = "";
    if (!sl_gguf_get_str(m->gguf, sl_gguf_kv_find(m->gguf, "general.architecture"), 0, &s))
        return sl_fail(ctx, SL_E_FORMAT, "%s: key general.architecture is missing", path);
    m->arch = arch_find(s.p, s.n);
    if (m->arch) return SL_OK;
    for (uint32_t i = 0; arch_at(i); i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", arch_at(i)->name);
    }
    return sl_fail(ctx, SL_E_UNSUPPORTED,
                   "%s: architecture \"%.*s\" cannot be run yet; these can: %s", path,
                   (int)SL_MIN(s.n, 64), s.p, known);
}

sl_status model_open(sl_ctx *ctx, const char *path, bool with_vocab, sl_model **ret)
{
    sl_model *m = calloc(1, sizeof *m);
    if (!m) return sl_fail(ctx, SL_E_NOMEM, "model handle for %s", path);
    opener o = { .ctx = ctx, .m = m };
    m->ctx = ctx;
    sl_status st = sl_gguf_open(ctx, path, &m->gguf);
    if (st == SL_OK) st = find_arch(ctx, m, path);
    if (st == SL_OK) st = hparams_read(ctx, m->gguf, m->arch, &m->hp);
    if (st == SL_OK) st = read_all(&o);
    if (st == SL_OK && with_vocab) st = open_vocab(ctx, m);
    if (st == SL_OK && !(m->name = model_name_of(m->gguf)))
        st = sl_fail(ctx, SL_E_NOMEM, "name of %s", path);
    free(o.used);
    if (st != SL_OK) sl_model_close(&m);
    else *ret = m;
    return st;
}

sl_status sl_model_open(sl_ctx *ctx, const char *path, sl_model **ret)
{
    assert(ctx && path && ret);
    return model_open(ctx, path, true, ret);
}

void sl_model_close(sl_model **m)
{
    assert(m);
    sl_model *d = *m;
    if (!d) return;
    sl_mem_free(d->ctx, d->experts);
    sl_vocab_destroy(&d->vocab);
    sl_gguf_close(&d->gguf);
    free(d->bindings);
    free(d->layers);
    free(d->layer_shapes);
    free(d->name);
    free(d);
    *m = NULL;
}

void sl_model_set_progress(sl_model *m, sl_progress_fn fn, void *user)
{
    m->progress = fn;
    m->progress_user = user;
}

const char *sl_model_name(const sl_model *m) { return m->name; }
const char *sl_model_arch(const sl_model *m) { return m->arch->name; }
const sl_gguf *sl_model_gguf(const sl_model *m) { return m->gguf; }
const sl_vocab *sl_model_vocab(const sl_model *m) { return m->vocab; }
const sl_shape *sl_model_shape(const sl_model *m) { return &m->shape; }
