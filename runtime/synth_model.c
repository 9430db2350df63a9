/* runtime/synth_model.c - what a model of a preset's shape consists of: metadata keys, a synthetic
 * vocabulary, and what the preset's tensors (perfmodel/preset_tensors.c) are filled with. */
#include "runtime/synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/arch.h"

typedef struct maker {
    sl_ctx *ctx;
    const sl_synth_params *sp;
    const sl_preset *p;
    const arch *arch;
    synth_model *m;
    sl_type type;               /* of most matrices */
    bool mix;                   /* Q4_K_M, Q5_K_M */
    uint32_t n_dense;
} maker;

/* ---- tensors ---- */

/* What a tensor is filled with. Weights keep the size of what they multiply: deviation
 * 1 / sqrt(columns), times a gain. */
static void choose_fill(const sl_preset *p, synth_tensor *t, sl_role r)
{
    double one = 1 / sqrt((double)t->ne[0]), d = p->d_model,
           scale = p->embed_scale > 0 ? p->embed_scale : 1;
    t->kind = SYNTH_WEIGHTS;
    switch (r) {
    case SL_ROLE_ROUTER: t->kind = SYNTH_ROUTER; break;
    case SL_ROLE_NORM: t->kind = SYNTH_NEAR, t->value = 1; break;
    case SL_ROLE_BIAS: t->value = 0.1f; break;
    case SL_ROLE_BIAS_SMALL: t->value = 0.02f; break;
    case SL_ROLE_BIAS_ZERO: t->kind = SYNTH_CONST; break;
    case SL_ROLE_SINKS: t->value = 1; break;
    case SL_ROLE_ROPE_LONG: t->kind = SYNTH_RAMP, t->value = 64; break;
    case SL_ROLE_ROPE_SHORT: t->kind = SYNTH_RAMP, t->value = 3; break;
    case SL_ROLE_EMBED: t->value = (float)(sqrt(d) / scale * one); break;
    case SL_ROLE_HEAD: t->value = (float)(2 * one); break;
    /* Scores are sums over the latent's kv_lora numbers and are divided by sqrt(nope + n_rot). */
    case SL_ROLE_KEY_UP: t->value = (float)(sqrt((double)p->nope / p->kv_lora) * one); break;
    default: t->value = (float)one; break;
    }
}

/* Bytes of it that one decoded token reads. */
static uint64_t token_bytes(const sl_preset *p, const synth_tensor *t, sl_role r)
{
    if (r == SL_ROLE_EMBED && !p->tied) return t->bytes / t->ne[1];
    if (r == SL_ROLE_EXPERT || r == SL_ROLE_EXPERT_DOWN)
        return t->bytes / p->n_expert * p->n_used;
    /* Experts' biases have a row for each. */
    return r == SL_ROLE_BIAS_SMALL && t->n_dims == 2 ? t->bytes / t->ne[1] * p->n_used : t->bytes;
}

static sl_status add_tensor(void *user, const sl_preset_tensor *from)
{
    maker *k = user;
    synth_model *m = k->m;
    if (m->n_tensors == m->cap_tensors) {
        uint32_t cap = m->cap_tensors ? 2 * m->cap_tensors : 256;
        synth_tensor *grown = realloc(m->tensors, cap * sizeof *grown);
        if (!grown) return sl_fail(k->ctx, SL_E_NOMEM, "table of %u tensors", cap);
        m->tensors = grown;
        m->cap_tensors = cap;
    }
    synth_tensor *t = &m->tensors[m->n_tensors];
    *t = (synth_tensor){ .n_dims = from->n_dims, .type = from->type };
    memcpy(t->name, from->name, sizeof t->name);
    memcpy(t->ne, from->ne, sizeof t->ne);
    uint64_t n = t->ne[1] * t->ne[2];
    if (!sl_type_row_bytes(t->type, t->ne[0], &t->bytes))
        return sl_fail(k->ctx, SL_E_ARG, "tensor %s: rows of %llu numbers do not fit type %s",
                       t->name, (unsigned long long)t->ne[0], sl_type_get(t->type)->name);
    t->bytes *= n;
    choose_fill(k->p, t, from->role);
    if (from->role == SL_ROLE_ROUTER) t->scales = from->layer * k->p->n_expert;
    t->offset = gguf_out_tensor(&m->out, t->name, t->n_dims, t->ne, t->type, t->bytes);
    m->n_params += n * t->ne[0];
    m->token_bytes += token_bytes(k->p, t, from->role);
    m->n_tensors++;
    return SL_OK;
}

/* ---- routers ---- */

static double upper_tail(double z) { return 0.5 * erfc(z / sqrt(2)); }

/* z with P(normal > z) = p; at least 0.1. */
static double tail_point(double p)
{
    double lo = 0.1, hi = 40;
    for (int i = 0; i < 60; i++) *(upper_tail((lo + hi) / 2) > p ? &lo : &hi) = (lo + hi) / 2;
    return lo;
}

/* Sum over ranks of min(cap, c (r + 1)^-skew). */
static double popularity_sum(double c, double skew, uint32_t n, double cap)
{
    double sum = 0;
    for (uint32_t r = 0; r < n; r++) sum += fmin(cap, c * pow(r + 1, -skew));
    return sum;
}

/* A router's logits are normal with deviation s_e; the k largest are chosen, those above t or so,
 * hence expert e with probability P(normal > t / s_e), which shall be its popularity. Which expert
 * has which rank differs from layer to layer. With skew 0 all s_e are the same. */
static sl_status make_row_scales(maker *k)
{
    /* deviation of logits: a softmax that prefers, but does not collapse */
    const double even = 1.5;
    uint32_t n = k->p->n_expert, n_layer = k->m->n_layer;
    double used = k->p->n_used, cap = fmax(0.45, used / n), lo = 0, hi = n * used,
           t = even * tail_point(used / n);
    uint32_t *rank = malloc(n * sizeof *rank);
    k->m->row_scales = malloc((size_t)n_layer * n * sizeof *k->m->row_scales);
    if (!rank || !k->m->row_scales) {
        free(rank);
        return sl_fail(k->ctx, SL_E_NOMEM, "routers of %u layers", n_layer);
    }
    while (popularity_sum(hi, k->sp->skew, n, cap) < used && hi < 1e18) hi *= 2;
    for (int i = 0; i < 80; i++)
        *(popularity_sum((lo + hi) / 2, k->sp->skew, n, cap) < used ? &lo : &hi) = (lo + hi) / 2;
    for (uint32_t l = 0; l < n_layer; l++) {
        uint64_t s = synth_mix(k->sp->seed ^ synth_mix(0x726f7574u + l));
        for (uint32_t e = 0; e < n; e++) {      /* a random permutation, grown from its front */
            uint32_t j = (uint32_t)((s = synth_mix(s)) % (e + 1));
            rank[e] = rank[j];
            rank[j] = e;
        }
        for (uint32_t e = 0; e < n; e++) {
            double z = tail_point(fmin(cap, hi * pow(rank[e] + 1, -k->sp->skew)));
            k->m->row_scales[(size_t)l * n + e] = (float)(t / z / sqrt((double)k->p->d_model));
        }
    }
    free(rank);
    return SL_OK;
}

/* ---- keys ---- */

static const char *key(const maker *k, char *buf, const char *tail)
{
    snprintf(buf, 96, "%s.%s", k->arch->name, tail);
    return buf;
}
#define U32(tail, v) gguf_out_u32(&k->m->out, key(k, (char[96]){ 0 }, tail), v)
#define F32(tail, v) gguf_out_f32(&k->m->out, key(k, (char[96]){ 0 }, tail), v)

static void add_attention_keys(maker *k)
{
    const sl_preset *p = k->p;
    U32("attention.head_count", p->n_head);
    F32("attention.layer_norm_rms_epsilon", p->eps);
    if (p->kv_lora) {
        U32("attention.head_count_kv", 1);
        if (p->q_lora) U32("attention.q_lora_rank", p->q_lora);
        U32("attention.kv_lora_rank", p->kv_lora);
        U32("attention.key_length", p->kv_lora + p->n_rot);
        U32("attention.value_length", p->kv_lora);
        U32("attention.key_length_mla", p->nope + p->n_rot);
        U32("attention.value_length_mla", p->v_head);
    } else {
        U32("attention.head_count_kv", p->n_head_kv);
        U32("attention.key_length", p->head_dim);
        U32("attention.value_length", p->head_dim);
    }
    if (p->window) U32("attention.sliding_window", p->window);
    if (p->rope_attn_factor > 0) U32("attention.sliding_window", 0);
    if (p->attn_scale > 0) F32("attention.scale", p->attn_scale);
    if (p->embed_scale > 0) F32("embedding_scale", p->embed_scale);
    if (p->residual_scale > 0) F32("residual_scale", p->residual_scale);
    if (p->logit_scale > 0) F32("logit_scale", p->logit_scale);
    U32("rope.dimension_count", p->n_rot);
    F32("rope.freq_base", p->rope_base);
    if (p->yarn_factor > 0) {
        gguf_out_str(&k->m->out, key(k, (char[96]){ 0 }, "rope.scaling.type"), "yarn");
        F32("rope.scaling.factor", p->yarn_factor);
        F32("rope.scaling.yarn_beta_fast", 32);
        F32("rope.scaling.yarn_beta_slow", 1);
        if (p->yarn_log_mul > 0) F32("rope.scaling.yarn_log_multiplier", p->yarn_log_mul);
    }
    if (p->yarn_ctx) U32("rope.scaling.original_context_length", p->yarn_ctx);
    if (p->rope_attn_factor > 0) F32("rope.scaling.attn_factor", p->rope_attn_factor);
}

static void add_expert_keys(maker *k)
{
    const sl_preset *p = k->p;
    bool named = !strcmp(p->arch, "deepseek2") || !strcmp(p->arch, "glm4moe");
    U32("feed_forward_length", p->n_dense ? p->d_dense : p->d_expert);
    U32("expert_count", p->n_expert);
    U32("expert_used_count", p->n_used);
    U32("expert_feed_forward_length", p->d_expert);
    if (p->d_shared && !p->n_shared) U32("expert_shared_feed_forward_length", p->d_shared);
    if (!named) return;
    U32("expert_shared_count", p->n_shared);
    U32("leading_dense_block_count", k->n_dense);
    U32("expert_gating_func", p->sigmoid ? 2 : 1);
    F32("expert_weights_scale", p->expert_scale > 0 ? p->expert_scale : 1);
    gguf_out_bool(&k->m->out, key(k, (char[96]){ 0 }, "expert_weights_norm"), p->normalise);
    if (p->n_group) U32("expert_group_count", p->n_group);
    if (p->n_group) U32("expert_group_used_count", p->n_group_used);
    if (!strcmp(p->arch, "glm4moe")) U32("nextn_predict_layers", 0);
}

/* llama.cpp's number for "mostly this type"; it is shown, nothing depends on it. */
static uint32_t file_type(const maker *k)
{
    static const struct { uint8_t type, ftype;
    } known[] = {
        { SL_F32, 0 },      { SL_F16, 1 },     { SL_Q4_0, 2 },     { SL_Q4_1, 3 },
        { SL_Q8_0, 7 },     { SL_Q5_0, 8 },    { SL_Q5_1, 9 },     { SL_Q2_K, 10 },
        { SL_Q3_K, 11 },    { SL_Q4_K, 14 },   { SL_Q5_K, 16 },    { SL_Q6_K, 18 },
        { SL_IQ2_XXS, 19 }, { SL_IQ2_XS, 20 }, { SL_IQ3_XXS, 23 }, { SL_IQ4_NL, 25 },
        { SL_IQ3_S, 26 },   { SL_IQ2_S, 28 },  { SL_IQ4_XS, 30 },  { SL_BF16, 32 },
        { SL_MXFP4, 38 },
    };
    if (k->mix) return k->type == SL_Q5_K ? 17 : 15;
    for (size_t i = 0; i < SL_LEN(known); i++)
        if (known[i].type == k->type) return known[i].ftype;
    return 1024;    /* "guessed" */
}

/* ---- the vocabulary ---- */

/* GPT-2's character for a byte, as UTF-8: printable ones stand for themselves, the others are
 * U+0100 and up. Returns its length. */
static size_t byte_char(int b, char ret[2])
{
    bool plain = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    unsigned cp = (unsigned)b;
    if (!plain) cp = 0x100u + (unsigned)(b <= 0x20 ? b : b == 0xad ? 0x43 : b - 0x7f + 0x21);
    if (cp < 0x80) return ret[0] = (char)cp, 1;
    ret[0] = (char)(0xc0 | cp >> 6);
    ret[1] = (char)(0x80 | (cp & 63));
    return 2;
}

enum { N_PAIRS = 26 * 26, N_STARTS = 26, N_SYLLABLES = 17 * 5 };
#define SPACE "\xc4\xa0"     /* the character that stands for a space */

/* Token i behind the bytes: "th", then " t", then " wo", " kali", ... Unique, as numbers are. */
static size_t make_token(uint32_t i, char ret[32])
{
    static const char consonants[] = "bdfghjklmnprstvwz", vowels[] = "aeiou";
    if (i < N_PAIRS) return (size_t)snprintf(ret, 32, "%c%c", 'a' + i / 26, 'a' + i % 26);
    i -= N_PAIRS;
    if (i < N_STARTS) return (size_t)snprintf(ret, 32, SPACE "%c", 'a' + i);
    i -= N_STARTS;
    size_t n = (size_t)snprintf(ret, 32, SPACE);
    uint32_t len = 1, below = N_SYLLABLES;
    for (; i >= below && len < 4; len++) i -= below, below *= N_SYLLABLES;
    for (; len; len--, i /= N_SYLLABLES) {
        ret[n++] = consonants[i % N_SYLLABLES / 5];
        ret[n++] = vowels[i % 5];
    }
    return n;
}

static void add_vocabulary(maker *k)
{
    gguf_out *o = &k->m->out;
    uint32_t n = k->p->n_vocab, made = n - 257, n_merges = SL_MIN(made, N_PAIRS + N_STARTS);
    char text[40];
    gguf_out_str(o, "tokenizer.ggml.model", "gpt2");
    gguf_out_str(o, "tokenizer.ggml.pre", "gpt-2");
    gguf_out_array(o, "tokenizer.ggml.tokens", SL_GGUF_STR, n);
    for (int b = 0; b < 256; b++) gguf_out_elem_str(o, text, byte_char(b, text));
    for (uint32_t i = 0; i < made; i++) gguf_out_elem_str(o, text, make_token(i, text));
    gguf_out_elem_str(o, "<|endoftext|>", 13);
    gguf_out_array(o, "tokenizer.ggml.token_type", SL_GGUF_I32, n);
    /* control, normal */
    for (uint32_t i = 0; i < n; i++) gguf_out_elem_i32(o, i == n - 1 ? 3 : 1);
    gguf_out_array(o, "tokenizer.ggml.merges", SL_GGUF_STR, n_merges);
    for (uint32_t i = 0; i < n_merges; i++) {   /* token i is its two characters merged */
        int len = i < N_PAIRS ? snprintf(text, sizeof text, "%c %c", 'a' + i / 26, 'a' + i % 26)
                              : snprintf(text, sizeof text, SPACE " %c", 'a' + i - N_PAIRS);
        gguf_out_elem_str(o, text, (size_t)len);
    }
    gguf_out_u32(o, "tokenizer.ggml.bos_token_id", n - 1);
    gguf_out_u32(o, "tokenizer.ggml.eos_token_id", n - 1);
    gguf_out_bool(o, "tokenizer.ggml.add_bos_token", false);
}

/* ---- all of it ---- */

static sl_status check(maker *k)
{
    const sl_preset *p = k->p;
    uint32_t n = k->sp->n_layer;
    k->arch = arch_find(p->arch, strlen(p->arch));
    if (!k->arch)
        return sl_fail(k->ctx, SL_E_UNSUPPORTED, "%s has architecture %s, which cannot be run yet",
                       p->name, p->arch);
    if (n > p->n_layer)
        return sl_fail(k->ctx, SL_E_ARG, "%s has %u layers, asked for %u", p->name, p->n_layer, n);
    if (!(k->sp->skew >= 0 && k->sp->skew <= 4))
        return sl_fail(k->ctx, SL_E_ARG, "skew %g: expected a number from 0 to 4", k->sp->skew);
    if (p->n_vocab < 257 || !p->n_expert || p->n_used > p->n_expert)
        return sl_fail(k->ctx, SL_E_ARG,
                       "%s: %u tokens and %u of %u experts, expected 257 tokens or more "
                       "and some experts",
                       p->name, p->n_vocab, p->n_used, p->n_expert);
    k->m->n_layer = n ? n : p->n_layer;
    k->n_dense = SL_MIN(p->n_dense, k->m->n_layer - 1);
    return sl_preset_quant(k->ctx, k->sp->quant, &k->type, &k->mix);
}

sl_status synth_model_make(sl_ctx *ctx, const sl_synth_params *sp, synth_model *ret)
{
    *ret = (synth_model){ 0 };
    maker own = { .ctx = ctx, .sp = sp, .p = sp->preset, .m = ret }, *k = &own;
    gguf_out *o = &ret->out;
    gguf_out_init(o);
    SL_TRY(check(k));
    SL_TRY(make_row_scales(k));
    char name[128];
    snprintf(name, sizeof name, "%s, random weights", k->p->title);
    gguf_out_str(o, "general.architecture", k->arch->name);
    gguf_out_str(o, "general.name", name);
    gguf_out_str(o, "general.description",
                 "Synthetic: real shapes, random weights, an invented vocabulary");
    gguf_out_u32(o, "general.file_type", file_type(k));
    gguf_out_u32(o, "general.quantization_version", 2);
    U32("block_count", ret->n_layer);
    U32("context_length", k->p->n_ctx);
    U32("embedding_length", k->p->d_model);
    U32("vocab_size", k->p->n_vocab);
    add_attention_keys(k);
    add_expert_keys(k);
    add_vocabulary(k);
    return sl_preset_tensors(ctx, k->p, sp->quant, sp->n_layer, add_tensor, k);
}

void synth_model_fini(synth_model *m)
{
    gguf_out_fini(&m->out);
    free(m->tensors);
    free(m->row_scales);
    *m = (synth_model){ 0 };
}
