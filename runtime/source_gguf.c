/* runtime/source_gguf.c - the shape of a GGUF whose architecture is not in the table: what its
 * tensors' names and the keys that every architecture has say. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/source.h"

enum { MAX_LAYERS = 4096, MAX_HEADS = 1 << 14, MAX_DIM = 1 << 16, MAX_NAME = 96 };

typedef struct reader {
    sl_ctx *ctx;
    const sl_gguf *g;
    const char *arch;
} reader;

/* ARCH.KEY as a number, in this layer where it is an array. def NULL: it must be there. */
static sl_status get(const reader *r, const char *key, uint32_t layer, const uint32_t *def,
                     uint32_t min, uint32_t max, uint32_t *ret)
{
    char full[128];
    uint64_t v = 0;
    snprintf(full, sizeof full, "%s.%s", r->arch, key);
    const sl_gguf_kv *kv = sl_gguf_kv_find(r->g, full);
    if (!kv && def) {
        *ret = *def;
        return SL_OK;
    }
    if (!kv)
        return sl_fail(r->ctx, SL_E_FORMAT, "%s: key %s is missing", sl_gguf_path(r->g, 0), full);
    if (!sl_gguf_get_u64(r->g, kv, kv->type == SL_GGUF_ARR ? layer : 0, &v) || v < min || v > max)
        return sl_fail(r->ctx, SL_E_FORMAT, "%s: key %s%s: expected a whole number from %u to %u",
                       sl_gguf_path(r->g, 0), full, kv->type == SL_GGUF_ARR ? " of a layer" : "",
                       min, max);
    *ret = (uint32_t)v;
    return SL_OK;
}

static const sl_tensor *tensor(const reader *r, uint32_t layer, const char *stem)
{
    char name[MAX_NAME];
    snprintf(name, sizeof name, "blk.%u.%s.weight", layer, stem);
    return sl_gguf_find(r->g, name);
}

static sl_status absurd(const reader *r, uint32_t layer)
{
    return sl_fail(r->ctx, SL_E_FORMAT, "%s: layer %u: keys of %d or more numbers are absurd",
                   sl_gguf_path(r->g, 0), layer, MAX_HEADS * MAX_DIM);
}

/* Whether layer l sees the window only: every layer does, or those that the pattern says, which is
 * a list of them or how many of a period do (the last of it sees all). */
static sl_status read_window(const reader *r, uint32_t l, uint32_t *ret)
{
    char full[128];
    const uint32_t none = 0;
    uint32_t window, period = 0;
    bool windowed = true;
    SL_TRY(get(r, "attention.sliding_window", l, &none, 0, UINT32_MAX, &window));
    snprintf(full, sizeof full, "%s.attention.sliding_window_pattern", r->arch);
    const sl_gguf_kv *kv = sl_gguf_kv_find(r->g, full);
    if (kv && kv->type == SL_GGUF_ARR && kv->elem_type == SL_GGUF_BOOL) {
        if (!sl_gguf_get_bool(r->g, kv, l, &windowed)) windowed = true;
    } else if (kv && kv->type != SL_GGUF_ARR) {
        SL_TRY(get(r, "attention.sliding_window_pattern", l, &none, 0, MAX_LAYERS, &period));
        windowed = !period || (l + 1) % period != 0;
    }
    *ret = windowed ? window : 0;
    return SL_OK;
}

static sl_status read_latent(const reader *r, uint32_t l, const sl_tensor *kv_a, sl_shape_attn *a)
{
    const uint32_t none = 0;
    uint32_t key = 0, kv_lora;
    SL_TRY(get(r, "attention.kv_lora_rank", l, NULL, 1, MAX_DIM, &kv_lora));
    if (kv_a->ne[1] <= kv_lora || kv_a->ne[1] > MAX_DIM) return absurd(r, l);
    a->latent = true;
    a->n_head_kv = 1;
    a->k_dim = (uint32_t)kv_a->ne[1];
    a->v_dim = kv_lora;
    a->n_rot = a->k_dim - kv_lora;
    SL_TRY(get(r, "attention.q_lora_rank", l, &none, 0, MAX_DIM, &a->q_lora));
    SL_TRY(get(r, "attention.key_length", l, &none, 0, MAX_DIM, &key));
    SL_TRY(get(r, "attention.key_length_mla", l, &key, 0, MAX_DIM, &a->q_dim));
    SL_TRY(get(r, "attention.value_length", l, &none, 0, MAX_DIM, &key));
    return get(r, "attention.value_length_mla", l, &key, 0, MAX_DIM, &a->v_head);
}

/* *ret_attends: the layer caches keys. */
static sl_status read_attention(const reader *r, uint32_t l, uint32_t d_model, sl_shape_attn *a,
                                bool *ret_attends)
{
    const sl_tensor *k = tensor(r, l, "attn_k"), *v = tensor(r, l, "attn_v"),
                    *kv_a = tensor(r, l, "attn_kv_a_mqa"), *fused = tensor(r, l, "attn_qkv");
    uint32_t kv, dim;
    *a = (sl_shape_attn){ 0 };
    *ret_attends = k || kv_a || (fused && !tensor(r, l, "ssm_out"));
    if (!*ret_attends) return SL_OK;
    SL_TRY(get(r, "attention.head_count", l, NULL, 0, MAX_HEADS, &a->n_head));
    SL_TRY(get(r, "attention.head_count_kv", l, &a->n_head, 0, MAX_HEADS, &kv));
    *ret_attends = a->n_head && kv;
    if (!*ret_attends) return SL_OK;
    SL_TRY(read_window(r, l, &a->window));
    if (kv_a) return read_latent(r, l, kv_a, a);
    dim = d_model / a->n_head;
    a->n_head_kv = kv;
    SL_TRY(get(r, "attention.key_length", l, &dim, 1, MAX_DIM, &a->k_dim));
    SL_TRY(get(r, "attention.value_length", l, &a->k_dim, 1, MAX_DIM, &a->v_dim));
    SL_TRY(get(r, "rope.dimension_count", l, &a->k_dim, 0, MAX_DIM, &a->n_rot));
    if (k && (k->ne[1] % kv || k->ne[1] / kv > MAX_DIM)) return absurd(r, l);
    if (v && (v->ne[1] % kv || v->ne[1] / kv > MAX_DIM)) return absurd(r, l);
    if (k) a->k_dim = (uint32_t)(k->ne[1] / kv);
    if (v) a->v_dim = (uint32_t)(v->ne[1] / kv);
    return SL_OK;
}

static bool has_experts(const sl_gguf *g)
{
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        sl_str s = sl_gguf_tensor(g, i)->name;
        if (memmem(s.p, s.n, "_exps.", 6)) return true;
    }
    return false;
}

static sl_status add_tensors(const reader *r, sl_shape_sum *m)
{
    char name[MAX_NAME];
    for (uint64_t i = 0; i < sl_gguf_n_tensors(r->g); i++) {
        const sl_tensor *t = sl_gguf_tensor(r->g, i);
        snprintf(name, sizeof name, "%.*s", (int)SL_MIN(t->name.n, sizeof name - 1), t->name.p);
        if (t->ne[0] > UINT32_MAX || t->ne[1] > UINT32_MAX || t->ne[2] > UINT32_MAX)
            return sl_fail(r->ctx, SL_E_FORMAT, "%s: tensor %s is %" PRIu64 " x %" PRIu64
                           " x %" PRIu64 ": absurd", sl_gguf_path(r->g, 0), name, t->ne[0],
                           t->ne[1], t->ne[2]);
        if (!sl_shape_sum_add(m, name, t->type, t->ne))
            return sl_fail(r->ctx, SL_E_FORMAT, "%s: tensor %s: rows of %" PRIu64
                           " numbers do not fit its type", sl_gguf_path(r->g, 0), name, t->ne[0]);
    }
    return SL_OK;
}

static sl_status fill(const reader *r, sl_shape_sum *m, sl_shape *ret)
{
    const uint32_t none = 0;
    SL_TRY(get(r, "context_length", 0, &none, 0, UINT32_MAX, &m->s.n_ctx_train));
    SL_TRY(get(r, "expert_count", 0, &none, 0, 1 << 20, &m->n_expert));
    if (m->n_expert || has_experts(r->g))
        SL_TRY(get(r, "expert_used_count", 0, NULL, 1, 1 << 16, &m->n_used));
    SL_TRY(add_tensors(r, m));
    if (!m->s.d_model)
        return sl_fail(r->ctx, SL_E_FORMAT, "%s: tensor token_embd.weight is missing",
                       sl_gguf_path(r->g, 0));
    for (uint32_t l = 0; l < m->s.n_layer; l++) {
        sl_shape_attn a;
        bool attends;
        SL_TRY(read_attention(r, l, m->s.d_model, &a, &attends));
        if (attends) sl_shape_sum_attn(m, l, &a);
    }
    *ret = sl_shape_sum_end(m);
    return SL_OK;
}

sl_status source_shape_by_names(sl_ctx *ctx, const sl_gguf *g, const char *arch, sl_shape *ret,
                                sl_layer_shape **ret_layers)
{
    reader r = { .ctx = ctx, .g = g, .arch = arch };
    const uint32_t none = 0;
    uint32_t n_layer = 0, skipped = 0;
    sl_shape_sum m;
    sl_shape s;
    SL_TRY(get(&r, "block_count", 0, NULL, 1, MAX_LAYERS, &n_layer));
    SL_TRY(get(&r, "nextn_predict_layers", 0, &none, 0, n_layer - 1, &skipped));
    n_layer -= skipped;
    sl_layer_shape *layers = calloc(n_layer, sizeof *layers);
    if (!layers) return sl_fail(ctx, SL_E_NOMEM, "shapes of %u layers", n_layer);
    sl_shape_sum_begin(&m, layers, n_layer);
    sl_status st = fill(&r, &m, &s);
    if (st != SL_OK) {
        free(layers);
        return st;
    }
    *ret = s;
    *ret_layers = layers;
    return SL_OK;
}
