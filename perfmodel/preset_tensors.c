/* perfmodel/preset_tensors.c - the tensors of a preset's file, in the order that synth writes them,
 * and the rules for their types. Names and shapes: tests/golden/ARCH.md. */
#include "perfmodel/sl_preset.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

typedef struct lister {
    sl_ctx *ctx;
    const sl_preset *p;
    sl_preset_tensor_fn fn;
    void *user;
    sl_type type;               /* of most matrices */
    bool mix;                   /* Q4_K_M, Q5_K_M */
    uint32_t n_layer, layer;
    sl_status st;               /* of the first call that failed */
} lister;

/* ---- types ---- */

/* llama.cpp's choice of layers that deserve more bits: the first and last eighth, and every
 * third. */
static bool more_bits(uint32_t i, uint32_t n)
{
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

/* A type of the same size or more whose blocks divide a row. */
static sl_type fitting(sl_type type, uint64_t cols)
{
    if (cols % sl_type_get(type)->block_elems == 0) return type;
    switch (type) {
    case SL_Q4_K: type = SL_Q5_0; break;
    case SL_Q5_K: type = SL_Q5_1; break;
    case SL_Q6_K: type = SL_Q8_0; break;
    default: type = SL_IQ4_NL; break;
    }
    return cols % sl_type_get(type)->block_elems ? SL_F16 : type;
}

static sl_type head_type(const lister *k, uint64_t cols)
{
    switch (k->type) {
    case SL_F32: case SL_F16: case SL_BF16: case SL_Q8_0: return k->type;
    case SL_MXFP4: return SL_Q8_0;
    case SL_IQ2_XXS: case SL_IQ2_XS: case SL_IQ2_S: case SL_IQ3_XXS:
        return cols % 256 ? SL_Q8_0 : SL_Q5_K;
    default: return cols % 256 ? SL_Q8_0 : SL_Q6_K;
    }
}

/* Source: llama.cpp's quantiser (src/llama-quant.cpp): the output in 6 bits, MXFP4 for experts
 * only, and the rules of Q4_K_M and Q5_K_M. */
static sl_type pick(const lister *k, sl_role r, uint64_t cols)
{
    sl_type type = k->type;
    bool more = k->mix && more_bits(k->layer, k->n_layer), eight = k->mix && k->p->n_expert == 8;
    if (r == SL_ROLE_HEAD || (r == SL_ROLE_EMBED && k->p->tied))
        return fitting(head_type(k, cols), cols);
    if (type == SL_MXFP4 && r != SL_ROLE_EXPERT && r != SL_ROLE_EXPERT_DOWN) type = SL_Q8_0;
    if ((r == SL_ROLE_ATTN_V || r == SL_ROLE_FFN_DOWN || r == SL_ROLE_EXPERT_DOWN) && more)
        type = SL_Q6_K;
    if ((r == SL_ROLE_ATTN_V || r == SL_ROLE_ATTN_K) && eight) type = SL_Q8_0;
    if (r == SL_ROLE_ATTN_O && eight) type = SL_Q5_K;
    return fitting(type, cols);
}

sl_status sl_preset_quant(sl_ctx *ctx, const char *quant, sl_type *ret_type, bool *ret_mix)
{
    bool five = !strcasecmp(quant, "Q5_K_M"), mix = five || !strcasecmp(quant, "Q4_K_M");
    sl_type type = five ? SL_Q5_K : SL_Q4_K;
    if (mix || (sl_type_from_name(quant, &type) && sl_type_get(type)->matmul)) {
        *ret_type = type;
        *ret_mix = mix;
        return SL_OK;
    }
    char known[400] = "Q4_K_M, Q5_K_M";
    for (unsigned t = 0; t < SL_N_TYPES; t++) {
        size_t n = strlen(known);
        if (sl_type_get(t)->matmul)
            snprintf(known + n, sizeof known - n, ", %s", sl_type_get(t)->name);
    }
    return sl_fail(ctx, SL_E_ARG, "\"%s\" is no type of weights; these are: %s", quant, known);
}

/* ---- tensors ---- */

static void emit(lister *k, const char *stem, const char *tail, sl_role role, uint32_t n_dims,
                 const uint64_t ne[3], sl_type type)
{
    sl_preset_tensor t = { .layer = k->layer, .n_dims = n_dims, .type = type, .role = role,
                           .ne = { 1, 1, 1, 1 } };
    if (k->st != SL_OK) return;
    for (uint32_t d = 0; d < n_dims; d++) t.ne[d] = ne[d];
    if (k->layer == SL_NO_LAYER) snprintf(t.name, sizeof t.name, "%s.%s", stem, tail);
    else snprintf(t.name, sizeof t.name, "blk.%u.%s.%s", k->layer, stem, tail);
    k->st = k->fn(k->user, &t);
}

/* [count][rows][cols]; count 0: [rows][cols] */
static void mat(lister *k, const char *stem, sl_role r, uint64_t cols, uint64_t rows,
                uint64_t count)
{
    emit(k, stem, "weight", r, count ? 3 : 2, (uint64_t[]){ cols, rows, count }, pick(k, r, cols));
}

/* [rows][n]; rows 0: [n] */
static void vec(lister *k, const char *stem, const char *tail, sl_role r, uint64_t n, uint64_t rows)
{
    emit(k, stem, tail, r, rows ? 2 : 1, (uint64_t[]){ n, rows, 0 }, SL_F32);
}

static void norm(lister *k, const char *stem, uint64_t n)
{
    vec(k, stem, "weight", SL_ROLE_NORM, n, 0);
    if (k->p->norm_bias) vec(k, stem, "bias", SL_ROLE_BIAS_SMALL, n, 0);
}

static void list_gqa(lister *k)
{
    const sl_preset *p = k->p;
    uint64_t d = p->d_model, q = (uint64_t)p->n_head * p->head_dim,
             kv = (uint64_t)p->n_head_kv * p->head_dim, dv = p->v_dim ? p->v_dim : p->head_dim,
             v = p->n_head_kv * dv;
    mat(k, "attn_q", SL_ROLE_MATRIX, d, p->q_gate ? 2 * q : q, 0);
    mat(k, "attn_k", SL_ROLE_ATTN_K, d, kv, 0);
    mat(k, "attn_v", SL_ROLE_ATTN_V, d, v, 0);
    mat(k, "attn_output", SL_ROLE_ATTN_O, p->n_head * dv, d, 0);
    if (p->qkv_bias) {
        vec(k, "attn_q", "bias", SL_ROLE_BIAS, q, 0);
        vec(k, "attn_k", "bias", SL_ROLE_BIAS, kv, 0);
        vec(k, "attn_v", "bias", SL_ROLE_BIAS, v, 0);
    }
    if (p->o_bias) vec(k, "attn_output", "bias", SL_ROLE_BIAS_SMALL, d, 0);
    if (p->qk_norm) {
        vec(k, "attn_q_norm", "weight", SL_ROLE_NORM, p->qk_norm_full ? q : p->head_dim, 0);
        vec(k, "attn_k_norm", "weight", SL_ROLE_NORM, p->qk_norm_full ? kv : p->head_dim, 0);
    }
    if (p->sinks) vec(k, "attn_sinks", "weight", SL_ROLE_SINKS, p->n_head, 0);
}

static void list_mla(lister *k)
{
    const sl_preset *p = k->p;
    uint64_t d = p->d_model, h = p->n_head, q = h * (p->nope + p->n_rot);
    if (p->q_lora) {
        mat(k, "attn_q_a", SL_ROLE_MATRIX, d, p->q_lora, 0);
        vec(k, "attn_q_a_norm", "weight", SL_ROLE_NORM, p->q_lora, 0);
        mat(k, "attn_q_b", SL_ROLE_MATRIX, p->q_lora, q, 0);
    } else {
        mat(k, "attn_q", SL_ROLE_MATRIX, d, q, 0);
    }
    mat(k, "attn_kv_a_mqa", SL_ROLE_MATRIX, d, p->kv_lora + p->n_rot, 0);
    vec(k, "attn_kv_a_norm", "weight", SL_ROLE_NORM, p->kv_lora, 0);
    mat(k, "attn_k_b", SL_ROLE_KEY_UP, p->nope, p->kv_lora, h);
    mat(k, "attn_v_b", SL_ROLE_MATRIX, p->kv_lora, p->v_head, h);
    mat(k, "attn_output", SL_ROLE_ATTN_O, h * p->v_head, d, 0);
}

/* Linear attention or a state space model: its matrices by their sizes. */
static void list_mixer(lister *k)
{
    const sl_preset *p = k->p;
    mat(k, "ssm_in", SL_ROLE_MATRIX, p->d_model, p->mixer_in, 0);
    uint32_t rows = p->mixer_params / p->mixer_out, rest = p->mixer_params % p->mixer_out;
    if (rows) mat(k, "ssm_x", SL_ROLE_MATRIX, p->mixer_out, rows, 0);
    if (rest) vec(k, "ssm_a", "weight", SL_ROLE_NORM, rest, 0);
    mat(k, "ssm_out", SL_ROLE_MATRIX, p->mixer_out, p->d_model, 0);
}

static void list_moe(lister *k)
{
    const sl_preset *p = k->p;
    uint64_t d = p->d_model, ff = p->d_expert, n = p->n_expert, sh = p->d_shared;
    emit(k, "ffn_gate_inp", "weight", SL_ROLE_ROUTER, 2, (uint64_t[]){ d, n, 0 }, SL_F32);
    if (p->router_bias) vec(k, "ffn_gate_inp", "bias", SL_ROLE_BIAS_ZERO, n, 0);
    if (p->sel_bias) vec(k, "exp_probs_b", "bias", SL_ROLE_BIAS_ZERO, n, 0);
    mat(k, "ffn_gate_exps", SL_ROLE_EXPERT, d, ff, n);
    mat(k, "ffn_up_exps", SL_ROLE_EXPERT, d, ff, n);
    mat(k, "ffn_down_exps", SL_ROLE_EXPERT_DOWN, ff, d, n);
    if (p->expert_bias) {
        vec(k, "ffn_gate_exps", "bias", SL_ROLE_BIAS_SMALL, ff, n);
        vec(k, "ffn_up_exps", "bias", SL_ROLE_BIAS_SMALL, ff, n);
        vec(k, "ffn_down_exps", "bias", SL_ROLE_BIAS_SMALL, d, n);
    }
    if (!sh) return;
    mat(k, "ffn_gate_shexp", SL_ROLE_MATRIX, d, sh, 0);
    mat(k, "ffn_up_shexp", SL_ROLE_MATRIX, d, sh, 0);
    mat(k, "ffn_down_shexp", SL_ROLE_FFN_DOWN, sh, d, 0);
    if (p->shared_gate) vec(k, "ffn_gate_inp_shexp", "weight", SL_ROLE_SHARED_GATE, d, 0);
}

static void list_layer(lister *k, uint32_t layer)
{
    const sl_preset *p = k->p;
    k->layer = layer;
    norm(k, "attn_norm", p->d_model);
    if (sl_preset_layer(p, layer) == SL_LAYER_MIXER) list_mixer(k);
    else if (p->kv_lora) list_mla(k);
    else list_gqa(k);
    norm(k, p->late_norm ? "post_attention_norm" : "ffn_norm", p->d_model);
    /* Of few layers of a large model the last has experts all the same. */
    if (sl_preset_moe(p, layer) || (p->n_expert && layer == k->n_layer - 1)) {
        list_moe(k);
        return;
    }
    mat(k, "ffn_gate", SL_ROLE_MATRIX, p->d_model, p->d_dense, 0);
    mat(k, "ffn_up", SL_ROLE_MATRIX, p->d_model, p->d_dense, 0);
    mat(k, "ffn_down", SL_ROLE_FFN_DOWN, p->d_dense, p->d_model, 0);
}

static void list_ends(lister *k)
{
    const sl_preset *p = k->p;
    k->layer = SL_NO_LAYER;
    mat(k, "token_embd", SL_ROLE_EMBED, p->d_model, p->n_vocab, 0);
    if (!p->tied) mat(k, "output", SL_ROLE_HEAD, p->d_model, p->n_vocab, 0);
    norm(k, "output_norm", p->d_model);
    if (p->head_bias) vec(k, "output", "bias", SL_ROLE_BIAS, p->n_vocab, 0);
    if (p->rope_attn_factor > 0) {
        vec(k, "rope_factors_long", "weight", SL_ROLE_ROPE_LONG, p->n_rot / 2, 0);
        vec(k, "rope_factors_short", "weight", SL_ROLE_ROPE_SHORT, p->n_rot / 2, 0);
    }
}

sl_status sl_preset_tensors(sl_ctx *ctx, const sl_preset *p, const char *quant, uint32_t n_layer,
                            sl_preset_tensor_fn fn, void *user)
{
    lister k = { .ctx = ctx, .p = p, .fn = fn, .user = user,
                 .n_layer = n_layer ? n_layer : p->n_layer };
    SL_TRY(sl_preset_quant(ctx, quant, &k.type, &k.mix));
    list_ends(&k);
    for (uint32_t l = 0; l < k.n_layer; l++) list_layer(&k, l);
    return k.st;
}
