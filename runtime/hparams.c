/* runtime/hparams.c - keys of a GGUF to checked numbers, and rope frequencies from them. */
#include "runtime/hparams.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_LAYERS 4096u
#define MAX_WIDTH (1u << 20)
#define MAX_EXPERTS 65536u

static const sl_gguf_kv *find(const sl_gguf *g, const arch *a, const char *key, char *full,
                              size_t n)
{
    snprintf(full, n, "%s.%s", a->name, key);
    return sl_gguf_kv_find(g, full);
}

sl_status hparams_u32(sl_ctx *ctx, const sl_gguf *g, const arch *a, const char *key, uint32_t layer,
                      const uint32_t *def, uint32_t min, uint32_t max, uint32_t *ret)
{
    char full[128];
    const sl_gguf_kv *kv = find(g, a, key, full, sizeof full);
    uint64_t v = 0;
    if (!kv) {
        if (!def) return sl_fail(ctx, SL_E_FORMAT, "key %s is missing", full);
        *ret = *def;
        return SL_OK;
    }
    if (!sl_gguf_get_u64(g, kv, kv->type == SL_GGUF_ARR ? layer : 0, &v))
        return sl_fail(ctx, SL_E_FORMAT, "key %s: expected an unsigned number%s", full,
                       kv->type == SL_GGUF_ARR ? " for every layer" : "");
    if (v < min || v > max)
        return sl_fail(ctx, SL_E_FORMAT, "key %s is %llu, expected %u to %u", full,
                       (unsigned long long)v, min, max);
    *ret = (uint32_t)v;
    return SL_OK;
}

static sl_status get_f64(sl_ctx *ctx, const sl_gguf *g, const arch *a, const char *key, double def,
                         double *ret)
{
    char full[128];
    const sl_gguf_kv *kv = find(g, a, key, full, sizeof full);
    double v = def;
    if (kv && (!sl_gguf_get_f64(g, kv, 0, &v) || !isfinite(v)))
        return sl_fail(ctx, SL_E_FORMAT, "key %s: expected a finite number", full);
    *ret = v;
    return SL_OK;
}

static sl_status get_bool(sl_ctx *ctx, const sl_gguf *g, const arch *a, const char *key, bool def,
                          bool *ret)
{
    char full[128];
    const sl_gguf_kv *kv = find(g, a, key, full, sizeof full);
    bool v = def;
    if (kv && !sl_gguf_get_bool(g, kv, 0, &v))
        return sl_fail(ctx, SL_E_FORMAT, "key %s: expected true or false", full);
    *ret = v;
    return SL_OK;
}

static sl_status read_scaling(sl_ctx *ctx, const sl_gguf *g, const arch *a, rope_keys *r)
{
    static const struct { const char *name; rope_scaling scaling; } kinds[] = {
        { "none", SCALING_NONE }, { "linear", SCALING_LINEAR }, { "yarn", SCALING_YARN },
        { "longrope", SCALING_NONE },   /* its factors are tensors, in files that name it or not */
    };
    char full[128];
    const sl_gguf_kv *kv = find(g, a, "rope.scaling.type", full, sizeof full);
    sl_str s;
    if (!kv) return SL_OK;
    if (!sl_gguf_get_str(g, kv, 0, &s))
        return sl_fail(ctx, SL_E_FORMAT, "key %s: expected a text", full);
    for (size_t i = 0; i < SL_LEN(kinds); i++) {
        if (strlen(kinds[i].name) != s.n || memcmp(kinds[i].name, s.p, s.n)) continue;
        r->scaling = kinds[i].scaling;
        return SL_OK;
    }
    return sl_fail(ctx, SL_E_UNSUPPORTED,
                   "key %s is \"%.*s\", expected none, linear, yarn or longrope", full,
                   (int)SL_MIN(s.n, 64), s.p);
}

static sl_status read_rope(sl_ctx *ctx, const sl_gguf *g, const arch *a, uint32_t head_dim,
                           rope_keys *r)
{
    const uint32_t zero = 0;
    bool finetuned = true;
    *r = (rope_keys){ 0 };
    SL_TRY(hparams_u32(ctx, g, a, "rope.dimension_count", 0, &head_dim, 2, MAX_WIDTH, &r->n_rot));
    if (r->n_rot % 2 || (a->attn == SL_ATTN_GQA && r->n_rot > head_dim))
        return sl_fail(ctx, SL_E_FORMAT,
                       "key %s.rope.dimension_count is %u, expected an even number up to "
                       "the key length %u",
                       a->name, r->n_rot, head_dim);
    SL_TRY(get_f64(ctx, g, a, "rope.freq_base", 10000, &r->base));
    SL_TRY(read_scaling(ctx, g, a, r));
    SL_TRY(get_f64(ctx, g, a, "rope.scaling.factor", 1, &r->factor));
    SL_TRY(get_f64(ctx, g, a, "rope.scaling.attn_factor", 1, &r->attn_factor));
    SL_TRY(get_f64(ctx, g, a, "rope.scaling.yarn_attn_factor", r->attn_factor, &r->attn_factor));
    SL_TRY(get_f64(ctx, g, a, "rope.scaling.yarn_beta_fast", 32, &r->beta_fast));
    SL_TRY(get_f64(ctx, g, a, "rope.scaling.yarn_beta_slow", 1, &r->beta_slow));
    SL_TRY(get_f64(ctx, g, a, "rope.scaling.yarn_ext_factor", 1, &r->ext_factor));
    SL_TRY(get_f64(ctx, g, a, "rope.scaling.yarn_log_multiplier", 0, &r->log_multiplier));
    SL_TRY(hparams_u32(ctx, g, a, "rope.scaling.original_context_length", 0, &zero, 0, UINT32_MAX,
                       &r->n_ctx_orig));
    SL_TRY(get_bool(ctx, g, a, "rope.scaling.finetuned", true, &finetuned));
    r->off = a->scales && !finetuned;
    if (!(r->base > 1))
        return sl_fail(ctx, SL_E_FORMAT, "key %s.rope.freq_base is %g, expected more than 1",
                       a->name, r->base);
    if (r->scaling != SCALING_NONE && !(r->factor > 0))
        return sl_fail(ctx, SL_E_FORMAT, "key %s.rope.scaling.factor is %g, expected more than 0",
                       a->name, r->factor);
    if (r->scaling == SCALING_YARN
        && (!r->n_ctx_orig || !(r->beta_fast > 0) || !(r->beta_slow > 0)))
        return sl_fail(ctx, SL_E_FORMAT,
                       "YaRN needs %s.rope.scaling.original_context_length and positive "
                       "yarn_beta keys, found %u, %g, %g",
                       a->name, r->n_ctx_orig, r->beta_fast, r->beta_slow);
    return SL_OK;
}

static sl_status read_routing(sl_ctx *ctx, const sl_gguf *g, const arch *a, hparams *h)
{
    static const sl_score by_key[] = { SL_SCORE_SOFTMAX, SL_SCORE_SOFTMAX, SL_SCORE_SIGMOID,
                                       SL_SCORE_TOPK_SOFTMAX, SL_SCORE_SQRT_SOFTPLUS };
    const uint32_t zero = 0, one = 1;
    uint32_t gating = 0;
    double scale;
    SL_TRY(hparams_u32(ctx, g, a, "expert_count", 0, &zero, 0, MAX_EXPERTS, &h->n_expert));
    if (!h->n_expert) return SL_OK;
    SL_TRY(hparams_u32(ctx, g, a, "expert_used_count", 0, NULL, 1, h->n_expert, &h->n_used));
    SL_TRY(hparams_u32(ctx, g, a, "expert_group_count", 0, &one, 0, h->n_expert, &h->n_group));
    SL_TRY(hparams_u32(ctx, g, a, "expert_group_used_count", 0, &one, 0, h->n_expert,
                       &h->n_group_used));
    SL_TRY(hparams_u32(ctx, g, a, "expert_gating_func", 0, &zero, 0, SL_LEN(by_key) - 1, &gating));
    SL_TRY(get_f64(ctx, g, a, "expert_weights_scale", 1, &scale));
    SL_TRY(get_bool(ctx, g, a, "expert_weights_norm", a->normalise, &h->normalise));
    h->expert_scale = scale == 0 ? 1 : (float)scale;
    h->score = a->gating_key && gating ? by_key[gating] : a->score;
    if (h->n_group <= 1) return SL_OK;
    if (h->n_expert % h->n_group || h->n_group_used < 1 || h->n_group_used > h->n_group
        || h->n_expert / h->n_group * h->n_group_used < h->n_used)
        return sl_fail(ctx, SL_E_FORMAT,
                       "%u experts in %u groups, %u of them used: no way to choose %u "
                       "experts",
                       h->n_expert, h->n_group, h->n_group_used, h->n_used);
    return SL_OK;
}

/* Old files give the unabsorbed lengths as key_length and value_length; newer ones have *_mla
 * keys. */
static sl_status read_mla(sl_ctx *ctx, const sl_gguf *g, const arch *a, hparams *h)
{
    const uint32_t zero = 0;
    uint32_t key;
    SL_TRY(hparams_u32(ctx, g, a, "attention.q_lora_rank", 0, &zero, 0, MAX_WIDTH, &h->q_lora));
    SL_TRY(hparams_u32(ctx, g, a, "attention.kv_lora_rank", 0, NULL, 1, MAX_WIDTH, &h->kv_lora));
    SL_TRY(hparams_u32(ctx, g, a, "attention.key_length_mla", 0, &h->k_dim, 1, MAX_WIDTH, &key));
    SL_TRY(hparams_u32(ctx, g, a, "attention.value_length_mla", 0, &h->v_dim, 1, MAX_WIDTH,
                       &h->v_head));
    if (key <= h->rope.n_rot)
        return sl_fail(ctx, SL_E_FORMAT,
                       "%s: a key of %u dimensions, %u of which turn: expected more than "
                       "those",
                       a->name, key, h->rope.n_rot);
    h->nope = key - h->rope.n_rot;
    h->attn_scale = 1 / sqrtf((float)key);
    if (h->rope.scaling == SCALING_YARN && h->rope.log_multiplier != 0 && h->rope.factor > 1) {
        double m = 1 + h->rope.log_multiplier * log(h->rope.factor);
        h->attn_scale = (float)(m * m / sqrt((double)key));
    }
    return SL_OK;
}

static sl_status read_scales(sl_ctx *ctx, const sl_gguf *g, const arch *a, hparams *h)
{
    double embed, residual, logit, attn;
    h->embed_scale = h->residual_scale = h->logit_scale = 1;
    if (!a->scales) return SL_OK;
    SL_TRY(get_f64(ctx, g, a, "embedding_scale", 1, &embed));
    SL_TRY(get_f64(ctx, g, a, "residual_scale", 1, &residual));
    SL_TRY(get_f64(ctx, g, a, "logit_scale", 1, &logit));
    SL_TRY(get_f64(ctx, g, a, "attention.scale", 0, &attn));
    h->embed_scale = embed == 0 ? 1 : (float)embed;
    h->residual_scale = residual == 0 ? 1 : (float)residual;
    h->logit_scale = logit == 0 ? 1 : (float)(1 / logit);   /* the file's number divides */
    if (attn != 0) h->attn_scale = (float)attn;
    return SL_OK;
}

sl_status hparams_read(sl_ctx *ctx, const sl_gguf *g, const arch *a, hparams *ret)
{
    const uint32_t zero = 0;
    uint32_t skipped, n_head, head_dim;
    double eps;
    hparams h = { 0 };
    SL_TRY(hparams_u32(ctx, g, a, "block_count", 0, NULL, 1, MAX_LAYERS, &h.n_layer));
    SL_TRY(hparams_u32(ctx, g, a, "nextn_predict_layers", 0, &zero, 0, h.n_layer - 1, &skipped));
    h.n_layer -= skipped;
    SL_TRY(hparams_u32(ctx, g, a, "embedding_length", 0, NULL, 1, MAX_WIDTH, &h.d_model));
    SL_TRY(hparams_u32(ctx, g, a, "context_length", 0, &zero, 0, UINT32_MAX, &h.n_ctx_train));
    SL_TRY(hparams_u32(ctx, g, a, "attention.head_count", 0, NULL, 1, MAX_WIDTH, &n_head));
    head_dim = h.d_model / n_head;
    SL_TRY(hparams_u32(ctx, g, a, "attention.key_length", 0, &head_dim, 1, MAX_WIDTH, &h.k_dim));
    SL_TRY(hparams_u32(ctx, g, a, "attention.value_length", 0, &h.k_dim, 1, MAX_WIDTH, &h.v_dim));
    SL_TRY(get_f64(ctx, g, a, "attention.layer_norm_rms_epsilon", 1e-5, &eps));
    if (a->norm == SL_NORM_LAYER)
        SL_TRY(get_f64(ctx, g, a, "attention.layer_norm_epsilon", eps, &eps));
    if (a->window != WINDOW_NONE)
        SL_TRY(
            hparams_u32(ctx, g, a, "attention.sliding_window", 0, &zero, 0, UINT32_MAX, &h.window));
    h.eps = (float)eps;
    h.attn_scale = 1 / sqrtf((float)h.k_dim);
    SL_TRY(read_rope(ctx, g, a, h.k_dim, &h.rope));
    SL_TRY(read_routing(ctx, g, a, &h));
    SL_TRY(read_scales(ctx, g, a, &h));
    if (a->attn == SL_ATTN_MLA) SL_TRY(read_mla(ctx, g, a, &h));
    *ret = h;
    return SL_OK;
}

bool hparams_windowed(const sl_gguf *g, const arch *a, uint32_t layer)
{
    char full[128];
    const sl_gguf_kv *kv = find(g, a, "attention.sliding_window_pattern", full, sizeof full);
    bool windowed;
    if (a->window == WINDOW_NONE) return false;
    if (kv && kv->type == SL_GGUF_ARR && sl_gguf_get_bool(g, kv, layer, &windowed)) return windowed;
    return layer % 2 == 0;
}

/* The dimension (as a real number) whose wave turns `turns` times over the original context. */
static double yarn_dim(const rope_keys *r, double turns)
{
    const double pi = 3.14159265358979323846;
    return r->n_rot * log(r->n_ctx_orig / (2 * pi * turns)) / (2 * log(r->base));
}

static void yarn(const rope_keys *r, bool exact, double *inv_freq, float *ret_scale)
{
    double lo = yarn_dim(r, r->beta_fast), hi = yarn_dim(r, r->beta_slow);
    if (!exact) lo = floor(lo), hi = ceil(hi);
    lo = fmax(lo, 0);
    hi = fmin(hi, r->n_rot - 1);
    if (hi - lo < 0.001) hi = lo + 0.001;
    for (uint32_t i = 0; i < r->n_rot / 2; i++) {
        double keep = (1 - fmin(fmax((i - lo) / (hi - lo), 0), 1)) * r->ext_factor;
        inv_freq[i] = inv_freq[i] * keep + inv_freq[i] / r->factor * (1 - keep);
    }
    *ret_scale = 1;
    if (r->log_multiplier == 0 && r->factor > 1)
        *ret_scale = (float)(r->attn_factor * (1 + 0.1 * log(r->factor)));
}

void rope_frequencies(const rope_keys *r, bool exact, const float *freqs, double *inv_freq,
                      float *ret_scale)
{
    for (uint32_t i = 0; i < r->n_rot / 2; i++) {
        inv_freq[i] = pow(r->base, -2.0 * i / r->n_rot);
        if (freqs) inv_freq[i] /= freqs[i];
    }
    *ret_scale = (float)r->attn_factor;
    if (r->scaling == SCALING_LINEAR)
        for (uint32_t i = 0; i < r->n_rot / 2; i++) inv_freq[i] /= r->factor;
    if (r->scaling == SCALING_YARN) yarn(r, exact, inv_freq, ret_scale);
}
