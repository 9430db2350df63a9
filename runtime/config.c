/* runtime/config.c - config.json files. The names of their fields are those of the model classes in
 * the transformers library (src/transformers/models, Apache-2.0) and of the makers' own files. */
#include "runtime/sl_config.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/arch.h"
#include "runtime/base/sl_json.h"

/* What a family has whatever its file says. */
enum {
    QKV_BIAS = 1 << 0,
    ALL_BIAS = 1 << 1,          /* attention_bias is about the output too */
    QK_NORM = 1 << 2,
    QK_FULL = 1 << 3,           /* over the whole projection */
    SEL_BIAS = 1 << 4,
    SHARED_GATE = 1 << 5,
    Q_GATE = 1 << 6,
    LATE_NORM = 1 << 7,
    OPENAI = 1 << 8,            /* sinks, biases of router and experts */
    PHI = 1 << 9,               /* LayerNorm, biases everywhere */
    TIED = 1 << 10,             /* unless it says otherwise */
    /* A shared expert as wide as the others, every fourth layer without a window, norms of queries
     * and keys that have no weights. */
    LLAMA4 = 1 << 11,
    SHARED_MODEL = 1 << 12,     /* a dense FFN as wide as the model beside the experts */
    LIGHTNING = 1 << 13,        /* linear attention with a gate, as wide as the heads */
    ALL_MOE = 1 << 14           /* intermediate_size is the experts' width */
};

typedef struct family {
    const char *model_type, *arch;
    unsigned has;
} family;

static const family families[] = {
    { "llama", "llama", ALL_BIAS },
    { "mistral", "llama", 0 },
    { "mixtral", "llama", ALL_MOE },
    { "qwen2", "qwen2", QKV_BIAS },
    { "qwen3", "qwen3", QK_NORM },
    { "qwen2_moe", "qwen2moe", QKV_BIAS | SHARED_GATE },
    { "qwen3_moe", "qwen3moe", QK_NORM },
    { "qwen3_next", "qwen3next", QK_NORM | Q_GATE | SHARED_GATE },
    { "qwen3_5_moe", "qwen35moe", QK_NORM | Q_GATE | SHARED_GATE },
    { "qwen3_5_moe_text", "qwen35moe", QK_NORM | Q_GATE | SHARED_GATE },
    { "olmoe", "olmoe", QK_NORM | QK_FULL | ALL_MOE },
    { "gpt_oss", "gpt-oss", QKV_BIAS | ALL_BIAS | OPENAI | LATE_NORM | ALL_MOE },
    { "glm4_moe", "glm4moe", SEL_BIAS | LATE_NORM },
    { "glm4_moe_lite", "deepseek2", SEL_BIAS },
    { "glm_moe_dsa", "glm-dsa", SEL_BIAS },
    { "deepseek_v2", "deepseek2", 0 },
    { "deepseek_v3", "deepseek2", SEL_BIAS },
    { "kimi_k2", "deepseek2", SEL_BIAS },
    { "deepseek_v32", "deepseek32", SEL_BIAS },
    { "granitemoe", "granitemoe", TIED | ALL_MOE },
    { "granitemoeshared", "granitemoe", TIED | ALL_MOE },
    { "granitemoehybrid", "granitehybrid", TIED | ALL_MOE },
    { "phimoe", "phimoe", QKV_BIAS | ALL_BIAS | PHI | ALL_MOE },
    { "dbrx", "dbrx", 0 },
    { "llama4", "llama4", LLAMA4 | ALL_MOE },
    { "llama4_text", "llama4", LLAMA4 | ALL_MOE },
    { "minimax_text_01", "minimax", LIGHTNING | ALL_MOE },
    { "minimax_m1", "minimax", LIGHTNING | ALL_MOE },
    { "minimax", "minimax", LIGHTNING | ALL_MOE },
    { "minimax_m2", "minimax-m2", QK_NORM | QK_FULL | SEL_BIAS | ALL_MOE },
    { "hunyuan_v1_moe", "hunyuan-moe", 0 },
    { "hunyuan", "hunyuan-moe", 0 },
    { "ernie4_5_moe", "ernie4_5-moe", SEL_BIAS },
    { "bailing_moe", "bailingmoe", 0 },
    { "bailing_moe_v2", "bailingmoe2", SEL_BIAS | QK_NORM },
    { "dots1", "dots1", SEL_BIAS | QK_NORM },
    { "arctic", "arctic", SHARED_MODEL | ALL_MOE },
    { "afmoe", "afmoe", SEL_BIAS | QK_NORM | Q_GATE },
    { "jamba", "jamba", ALL_MOE },
    { "lfm2_moe", "lfm2moe", SEL_BIAS | QK_NORM | TIED },
    { "solar_open", "solar-open", SEL_BIAS },
};

typedef struct reader {
    sl_ctx *ctx;
    sl_json j;                  /* the object of the language model */
    sl_json sub[2];             /* objects in it whose fields count as its own; v NULL: none */
    unsigned has;
    sl_config *c;
} reader;

/* ---- fields ---- */

/* The first of these names that has a value, in the object or those in it. False: none. */
static bool find(const reader *r, const char *const *names, sl_json *ret_in, const char **ret_name)
{
    for (; *names; names++) {
        const sl_json *at[] = { &r->j, &r->sub[0], &r->sub[1] };
        for (size_t i = 0; i < SL_LEN(at); i++) {
            json_t *v = at[i]->v ? json_object_get(at[i]->v, *names) : NULL;
            if (!v || json_is_null(v)) continue;
            *ret_in = *at[i];
            *ret_name = *names;
            return true;
        }
    }
    return false;
}

/* A field of one number, or of one for each layer that are all the same. */
static sl_status one_number(const sl_json *in, const char *name, uint32_t min, uint32_t max,
                            uint32_t *ret)
{
    sl_json f, e;
    size_t n;
    SL_TRY(sl_json_get(in, name, &f));
    if (!json_is_array(f.v)) return sl_json_u32(in, name, min, max, ret);
    SL_TRY(sl_json_array(in, name, 1, SL_CONFIG_LAYERS_MAX, &f, &n));
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&f, i, &e);
        json_int_t v = json_integer_value(e.v);
        if (!json_is_integer(e.v) || v < min || v > max || !json_equal(e.v, json_array_get(f.v, 0)))
            return sl_json_expected(&e, "the same whole number for every layer, in range");
        *ret = (uint32_t)v;
    }
    return SL_OK;
}

/* By any of its names; def NULL: it must be there. */
static sl_status number(const reader *r, const char *const *names, const uint32_t *def,
                        uint32_t min, uint32_t max, uint32_t *ret)
{
    sl_json in;
    const char *name;
    if (find(r, names, &in, &name)) return one_number(&in, name, min, max, ret);
    if (!def) return sl_json_u32(&r->j, names[0], min, max, ret);   /* says what is missing */
    *ret = *def;
    return SL_OK;
}
#define NAMES(...) (const char *const[]){ __VA_ARGS__, NULL }

static sl_status flag(const reader *r, const char *const *names, bool def, bool *ret)
{
    sl_json in, f;
    const char *name;
    *ret = def;
    if (!find(r, names, &in, &name)) return SL_OK;
    SL_TRY(sl_json_get(&in, name, &f));
    if (!json_is_boolean(f.v)) return sl_json_expected(&f, "true or false");
    *ret = json_is_true(f.v);
    return SL_OK;
}

enum {
    MAX_WIDTH = 1 << 17, MAX_FF = 1 << 20, MAX_HEADS = 1 << 12, MAX_DIM = 1 << 13,
    MAX_EXPERTS = 1 << 14, MAX_VOCAB = 1 << 24
};
static const uint32_t none = 0;

/* ---- attention ---- */

static sl_status read_latent(reader *r, sl_preset *p)
{
    SL_TRY(number(r, NAMES("q_lora_rank"), &none, 0, MAX_WIDTH, &p->q_lora));
    SL_TRY(number(r, NAMES("qk_nope_head_dim"), NULL, 1, MAX_DIM, &p->nope));
    SL_TRY(number(r, NAMES("qk_rope_head_dim"), NULL, 2, MAX_DIM, &p->n_rot));
    SL_TRY(number(r, NAMES("v_head_dim"), NULL, 1, MAX_DIM, &p->v_head));
    p->n_head_kv = p->head_dim = 0;
    return SL_OK;
}

/* How much of a head turns: a number, or a share, here or in rope_parameters. */
static sl_status read_rotation(reader *r, sl_preset *p)
{
    double share = 1;
    sl_json rope;
    SL_TRY(number(r, NAMES("rotary_dim"), &none, 0, p->head_dim, &p->n_rot));
    if (p->n_rot) return SL_OK;
    if (json_is_number(json_object_get(r->j.v, "partial_rotary_factor")))
        SL_TRY(sl_json_f64(&r->j, "partial_rotary_factor", 0, 1, &share));
    else if (json_is_object(json_object_get(r->j.v, "rope_parameters"))
             && sl_json_get(&r->j, "rope_parameters", &rope) == SL_OK
             && sl_json_has(&rope, "partial_rotary_factor"))
        SL_TRY(sl_json_f64(&rope, "partial_rotary_factor", 0, 1, &share));
    p->n_rot = (uint32_t)(share * p->head_dim) / 2 * 2;
    if (!p->n_rot) p->n_rot = p->head_dim;
    return SL_OK;
}

static sl_status read_heads(reader *r, sl_preset *p)
{
    SL_TRY(number(r, NAMES("num_attention_heads", "n_heads", "n_head"), NULL, 1, MAX_HEADS,
                  &p->n_head));
    SL_TRY(number(r, NAMES("kv_lora_rank"), &none, 0, MAX_WIDTH, &p->kv_lora));
    if (p->kv_lora) return read_latent(r, p);
    uint32_t dim = SL_MIN(p->d_model / p->n_head, (uint32_t)MAX_DIM);
    SL_TRY(number(r, NAMES("num_key_value_heads", "kv_n_heads", "n_head_kv"), &p->n_head, 1,
                  p->n_head, &p->n_head_kv));
    if (p->n_head % p->n_head_kv)
        return sl_fail(r->ctx, SL_E_FORMAT,
                       "%s: num_key_value_heads: expected a divisor of the %u heads, found %u",
                       r->j.file, p->n_head, p->n_head_kv);
    SL_TRY(number(r, NAMES("head_dim", "attention_head_dim"), &dim, 1, MAX_DIM, &p->head_dim));
    if (!p->head_dim)
        return sl_fail(r->ctx, SL_E_FORMAT, "%s: num_attention_heads: expected at most the %u of "
                       "hidden_size, found %u", r->j.file, p->d_model, p->n_head);
    SL_TRY(number(r, NAMES("v_head_dim"), &none, 0, MAX_DIM, &p->v_dim));
    return read_rotation(r, p);
}

static sl_status read_biases(reader *r, sl_preset *p)
{
    bool bias, norm;
    SL_TRY(flag(r, NAMES("attention_bias", "qkv_bias", "use_qkv_bias", "use_bias"),
                (r->has & QKV_BIAS) != 0, &bias));
    SL_TRY(flag(r, NAMES("use_qk_norm", "qk_layernorm"), (r->has & QK_NORM) != 0, &norm));
    p->qkv_bias = (bias || (r->has & QKV_BIAS)) && !p->kv_lora;
    p->o_bias = bias && (r->has & ALL_BIAS);
    p->qk_norm = norm && !p->kv_lora && !(r->has & LLAMA4);
    p->qk_norm_full = (r->has & QK_FULL) != 0;
    p->late_norm = (r->has & LATE_NORM) != 0;
    p->sinks = p->router_bias = p->expert_bias = (r->has & OPENAI) != 0;
    p->norm_bias = p->head_bias = (r->has & PHI) != 0;
    p->q_gate = (r->has & Q_GATE) != 0;
    if (r->has & PHI) p->rope_attn_factor = 1;      /* longrope: its factors are tensors */
    return SL_OK;
}

/* ---- kinds of layers ---- */

static char kind_of(const char *s)
{
    static const struct { const char *name; char kind; } kinds[] = {
        { "full_attention", SL_LAYER_FULL },      { "attention", SL_LAYER_FULL },
        { "deepseek_sparse_attention", SL_LAYER_FULL }, { "indexer_attention", SL_LAYER_FULL },
        { "sliding_attention", SL_LAYER_WINDOW }, { "chunked_attention", SL_LAYER_WINDOW },
        { "linear_attention", SL_LAYER_MIXER },   { "mamba", SL_LAYER_MIXER },
        { "mamba2", SL_LAYER_MIXER },             { "conv", SL_LAYER_MIXER },
    };
    for (size_t i = 0; i < SL_LEN(kinds); i++)
        if (!strcmp(s, kinds[i].name)) return kinds[i].kind;
    return 0;
}

static sl_status read_layer_types(reader *r, uint32_t n_layer, char *ret)
{
    sl_json a, e;
    size_t n;
    SL_TRY(sl_json_array(&r->j, "layer_types", n_layer, SL_CONFIG_LAYERS_MAX, &a, &n));
    for (uint32_t l = 0; l < n_layer; l++) {
        sl_json_at(&a, l, &e);
        ret[l] = json_is_string(e.v) ? kind_of(json_string_value(e.v)) : 0;
        if (!ret[l]) return sl_json_expected(&e, "full_attention, sliding_attention, mamba, ...");
    }
    return SL_OK;
}

/* MiniMax: 1 for softmax, 0 for linear attention. */
static sl_status read_type_list(reader *r, uint32_t n_layer, char *ret)
{
    sl_json a, e;
    size_t n;
    SL_TRY(sl_json_array(&r->j, "attn_type_list", n_layer, SL_CONFIG_LAYERS_MAX, &a, &n));
    for (uint32_t l = 0; l < n_layer; l++) {
        sl_json_at(&a, l, &e);
        json_int_t v = json_integer_value(e.v);
        if (!json_is_integer(e.v) || v < 0 || v > 1) return sl_json_expected(&e, "0 or 1");
        ret[l] = v ? SL_LAYER_FULL : SL_LAYER_MIXER;
    }
    return SL_OK;
}

/* LFM2: the numbers of the layers with attention. */
static sl_status read_full_list(reader *r, uint32_t n_layer, char *ret)
{
    sl_json a, e;
    size_t n;
    SL_TRY(sl_json_array(&r->j, "full_attn_idxs", 1, n_layer, &a, &n));
    memset(ret, SL_LAYER_MIXER, n_layer);
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&a, i, &e);
        json_int_t v = json_integer_value(e.v);
        if (!json_is_integer(e.v) || v < 0 || v >= n_layer)
            return sl_json_expected(&e, "the number of a layer");
        ret[v] = SL_LAYER_FULL;
    }
    return SL_OK;
}

/* Every so many layers one of another kind; false: no such field. */
static sl_status read_period(reader *r, uint32_t n_layer, char *ret, bool *ret_found)
{
    uint32_t period = 0, at = 0;
    char others = SL_LAYER_MIXER;
    SL_TRY(number(r, NAMES("full_attention_interval", "attn_layer_period"), &none, 0,
                  SL_CONFIG_LAYERS_MAX, &period));
    if (!period) {
        others = SL_LAYER_WINDOW;
        SL_TRY(number(r, NAMES("global_attn_every_n_layers", "sliding_window_pattern"), &none, 0,
                      SL_CONFIG_LAYERS_MAX, &period));
    }
    if (!period && r->has & LLAMA4) period = 4;
    if (!period && r->has & OPENAI) period = 2;
    *ret_found = period > 0;
    if (!period) return SL_OK;
    at = period - 1;
    SL_TRY(number(r, NAMES("attn_layer_offset"), &at, 0, period - 1, &at));
    for (uint32_t l = 0; l < n_layer; l++) ret[l] = l % period == at ? SL_LAYER_FULL : others;
    return SL_OK;
}

static sl_status read_layout(reader *r, sl_preset *p)
{
    char *to = r->c->layout;
    bool found = true, use = true;
    SL_TRY(flag(r, NAMES("use_sliding_window"), true, &use));
    if (json_is_array(json_object_get(r->j.v, "layer_types")))
        SL_TRY(read_layer_types(r, p->n_layer, to));
    else if (json_is_array(json_object_get(r->j.v, "attn_type_list")))
        SL_TRY(read_type_list(r, p->n_layer, to));
    else if (json_is_array(json_object_get(r->j.v, "full_attn_idxs")))
        SL_TRY(read_full_list(r, p->n_layer, to));
    else
        SL_TRY(read_period(r, p->n_layer, to, &found));
    to[found ? p->n_layer : 0] = '\0';
    if (strchr(to, SL_LAYER_WINDOW)) {
        const uint32_t chunk = 8192;
        SL_TRY(number(r, NAMES("sliding_window", "attention_chunk_size"),
                      r->has & LLAMA4 ? &chunk : NULL, 1, INT32_MAX, &p->window));
    } else if (!found && use && !p->runs) {
        SL_TRY(number(r, NAMES("sliding_window"), &none, 0, INT32_MAX, &p->window));
    }
    if (found) p->layout = to;
    return SL_OK;
}

/* ---- what stands in the place of attention ---- */

static sl_status set_mixer(reader *r, uint64_t in, uint64_t out, uint64_t rest)
{
    sl_preset *p = &r->c->preset;
    if (in > INT32_MAX || out > INT32_MAX || rest > INT32_MAX || !out)
        return sl_fail(r->ctx, SL_E_FORMAT,
                       "%s: layers that do not attend: expected fewer than 2^31 weights "
                       "in a vector, found more", r->j.file);
    p->mixer_in = (uint32_t)in;
    p->mixer_out = (uint32_t)out;
    p->mixer_params = (uint32_t)rest;
    return SL_OK;
}

/* Gated delta nets: queries and keys of one size, values and a gate of another. */
static sl_status read_delta_net(reader *r)
{
    uint32_t nk, nv, dk, dv, conv;
    const uint32_t four = 4;
    SL_TRY(number(r, NAMES("linear_num_key_heads"), NULL, 1, MAX_HEADS, &nk));
    SL_TRY(number(r, NAMES("linear_num_value_heads"), NULL, 1, MAX_HEADS, &nv));
    SL_TRY(number(r, NAMES("linear_key_head_dim"), NULL, 1, MAX_DIM, &dk));
    SL_TRY(number(r, NAMES("linear_value_head_dim"), NULL, 1, MAX_DIM, &dv));
    SL_TRY(number(r, NAMES("linear_conv_kernel_dim"), &four, 1, 64, &conv));
    uint64_t k = (uint64_t)nk * dk, v = (uint64_t)nv * dv;
    return set_mixer(r, 2 * k + 2 * v + 2 * nv, v, conv * (2 * k + v) + dv + 2 * nv);
}

static sl_status read_mamba(reader *r, uint64_t d)
{
    uint32_t expand, states, conv, groups, heads, dim, rank, auto_rank;
    const uint32_t two = 2, four = 4, one = 1;
    SL_TRY(number(r, NAMES("mamba_expand"), &two, 1, 64, &expand));
    SL_TRY(number(r, NAMES("mamba_d_state"), NULL, 1, MAX_DIM, &states));
    SL_TRY(number(r, NAMES("mamba_d_conv"), &four, 1, 64, &conv));
    if (sl_json_has(&r->j, "mamba_n_heads")) {      /* Mamba-2 */
        SL_TRY(number(r, NAMES("mamba_n_heads"), NULL, 1, MAX_HEADS, &heads));
        SL_TRY(number(r, NAMES("mamba_d_head"), NULL, 1, MAX_DIM, &dim));
        SL_TRY(number(r, NAMES("mamba_n_groups"), &one, 1, MAX_HEADS, &groups));
        uint64_t inner = (uint64_t)heads * dim, bc = 2 * (uint64_t)groups * states;
        return set_mixer(r, 2 * inner + bc + heads, inner,
                         (conv + 1) * (inner + bc) + 3 * (uint64_t)heads + inner);
    }
    auto_rank = (uint32_t)((d + 15) / 16);
    SL_TRY(number(r, NAMES("mamba_dt_rank"), &auto_rank, 1, MAX_WIDTH, &rank));
    uint64_t inner = expand * d, small = rank + 2 * (uint64_t)states;
    return set_mixer(r, 2 * inner, inner,
                     inner * (small + rank + conv + 1 + states + 2) + small);
}

static sl_status read_mixer(reader *r, sl_preset *p)
{
    if (!p->layout || !strchr(p->layout, SL_LAYER_MIXER)) return SL_OK;
    uint64_t q = (uint64_t)p->n_head * p->head_dim, d = p->d_model;
    uint32_t width;
    if (r->has & LIGHTNING) return set_mixer(r, 4 * q, q, q);
    if (sl_json_has(&r->j, "linear_num_value_heads")) return read_delta_net(r);
    if (sl_json_has(&r->j, "mamba_d_state")) return read_mamba(r, d);
    if (sl_json_has(&r->j, "conv_L_cache")) {
        SL_TRY(number(r, NAMES("conv_L_cache"), NULL, 1, 64, &width));
        return set_mixer(r, 3 * d, d, width * d);
    }
    return sl_fail(r->ctx, SL_E_UNSUPPORTED,
                   "%s: architecture %s has layers without attention whose sizes cannot be "
                   "read yet", r->j.file, r->c->arch);
}

/* ---- FFNs ---- */

/* mlp_layer_types, or moe_layer_freq as a list: dense layers first, experts in all others. */
static sl_status read_moe_list(reader *r, const char *name, sl_preset *p)
{
    sl_json a, e;
    size_t n;
    bool seen = false;
    SL_TRY(sl_json_array(&r->j, name, p->n_layer, SL_CONFIG_LAYERS_MAX, &a, &n));
    for (uint32_t l = 0; l < p->n_layer; l++) {
        sl_json_at(&a, l, &e);
        const char *s = json_string_value(e.v);
        json_int_t v = json_integer_value(e.v);
        bool moe = s ? !strcmp(s, "sparse") || !strcmp(s, "moe") : v == 1;
        if (!(s ? moe || !strcmp(s, "dense") : json_is_integer(e.v) && (v == 0 || v == 1))
            || (seen && !moe))
            return sl_json_expected(&e, "dense layers, then layers with experts");
        seen = moe;
        if (!moe) p->n_dense = l + 1;
    }
    return SL_OK;
}

static sl_status read_which_moe(reader *r, sl_preset *p)
{
    uint32_t step = 1, at;
    sl_json f;
    SL_TRY(number(r, NAMES("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
                  &none, 0, p->n_layer, &p->n_dense));
    if (json_is_array(json_object_get(r->j.v, "mlp_layer_types")))
        return read_moe_list(r, "mlp_layer_types", p);
    if (json_is_array(json_object_get(r->j.v, "moe_layer_freq")))
        return read_moe_list(r, "moe_layer_freq", p);
    SL_TRY(number(r, NAMES("expert_layer_period", "interleave_moe_layer_step",
                           "decoder_sparse_step", "moe_layer_interval", "moe_layer_frequency",
                           "moe_layer_freq"),
                  &step, 1, p->n_layer, &step));
    at = step - 1;
    SL_TRY(number(r, NAMES("expert_layer_offset"), &at, 0, step - 1, &at));
    if (at != step - 1 && sl_json_get(&r->j, "expert_layer_offset", &f) == SL_OK)
        return sl_json_expected(&f, "one less than expert_layer_period");
    p->moe_every = step > 1 ? step : 0;
    if (json_array_size(json_object_get(r->j.v, "mlp_only_layers"))
        && sl_json_get(&r->j, "mlp_only_layers", &f) == SL_OK)
        return sl_json_expected(&f, "an empty list");
    return SL_OK;
}

static sl_status read_shared(reader *r, sl_preset *p)
{
    uint32_t n = 0, d = 0;
    SL_TRY(number(r, NAMES("n_shared_experts", "num_shared_experts", "num_shared_expert",
                           "moe_num_shared_experts"),
                  &none, 0, MAX_EXPERTS, &n));
    if ((uint64_t)n * p->d_expert > MAX_FF)
        return sl_fail(r->ctx, SL_E_FORMAT,
                       "%s: %u shared experts of %u: expected at most %u wide in all", r->j.file, n,
                       p->d_expert, MAX_FF);
    d = n * p->d_expert;
    if (r->has & LLAMA4) d = p->d_expert;
    if (r->has & SHARED_MODEL) d = p->d_model;
    SL_TRY(number(r, NAMES("shared_expert_intermediate_size", "shared_intermediate_size",
                           "moe_shared_expert_intermediate_size"),
                  &d, 0, MAX_FF, &p->d_shared));
    p->shared_gate = (r->has & SHARED_GATE) && p->d_shared;
    return flag(r, NAMES("use_routing_bias", "use_expert_bias", "moe_router_enable_expert_bias"),
                (r->has & SEL_BIAS) != 0, &p->sel_bias);
}

static sl_status read_ffn(reader *r, sl_preset *p)
{
    static const char *const width[] = { "intermediate_size", "ffn_hidden_size", "ffn_dim",
                                         "n_inner", NULL };
    static const char *const dense[] = { "intermediate_size_mlp", "dense_intermediate_size",
                                         "intermediate_size", "ffn_hidden_size", NULL };
    SL_TRY(number(r, NAMES("num_local_experts", "n_routed_experts", "num_experts",
                           "moe_num_experts", "num_moe_experts"),
                  &none, 0, MAX_EXPERTS, &p->n_expert));
    if (p->n_expert == 1 && !(r->has & ALL_MOE)) p->n_expert = 0;   /* a class's default */
    if (!p->n_expert) {
        p->n_dense = p->n_layer;
        return number(r, width, NULL, 1, MAX_FF, &p->d_dense);
    }
    SL_TRY(number(r, NAMES("num_experts_per_tok", "num_experts_per_token", "experts_per_token",
                           "moe_topk", "moe_top_k", "moe_k", "num_selected_experts"),
                  NULL, 1, p->n_expert, &p->n_used));
    SL_TRY(read_which_moe(r, p));
    if (r->has & ALL_MOE)
        SL_TRY(number(r, NAMES("intermediate_size"), NULL, 1, MAX_FF, &p->d_expert));
    else
        SL_TRY(number(r, NAMES("moe_intermediate_size", "expert_ffn_hidden_size",
                               "moe_ffn_hidden_size", "ffn_hidden_size", "intermediate_size"),
                      NULL, 1, MAX_FF, &p->d_expert));
    SL_TRY(read_shared(r, p));
    if (p->n_dense || p->moe_every) return number(r, dense, NULL, 1, MAX_FF, &p->d_dense);
    return SL_OK;
}

/* ---- all of it ---- */

/* The object of the language model: the root, or what holds it in models that also see or hear. */
static sl_status find_text(reader *r, const sl_json *root)
{
    static const char *const inner[] = { "text_config", "llm_config", "language_config" };
    static const char *const parts[] = { "ffn_config", "attn_config" };
    r->j = *root;
    if (!json_is_object(root->v)) return sl_json_expected(root, "an object");
    for (size_t i = 0; i < SL_LEN(inner); i++) {
        json_t *v = json_object_get(root->v, inner[i]);
        if (!json_is_object(v) || sl_json_has(root, "hidden_size")) continue;
        SL_TRY(sl_json_get(root, inner[i], &r->j));
        break;
    }
    for (size_t i = 0; i < SL_LEN(parts); i++)
        if (json_is_object(json_object_get(r->j.v, parts[i])))
            SL_TRY(sl_json_get(&r->j, parts[i], &r->sub[i]));
    return SL_OK;
}

static sl_status find_family(reader *r, const sl_json *root)
{
    const char *type = json_string_value(json_object_get(r->j.v, "model_type"));
    if (!type || !*type) type = json_string_value(json_object_get(root->v, "model_type"));
    if (!type) type = "unknown";
    snprintf(r->c->arch, sizeof r->c->arch, "%s", type);
    for (char *c = r->c->arch; *c; c++)
        if ((unsigned char)*c < 32 || (unsigned char)*c > 126) *c = '?';
    for (size_t i = 0; i < SL_LEN(families); i++) {
        if (strcmp(families[i].model_type, type)) continue;
        r->has = families[i].has;
        snprintf(r->c->arch, sizeof r->c->arch, "%s", families[i].arch);
        r->c->preset.runs = arch_find(r->c->arch, strlen(r->c->arch)) != NULL;
    }
    return SL_OK;
}

/* "/models/Qwen3-30B-A3B/config.json" gives the folder, "qwen.json" gives "qwen". */
static void find_name(reader *r, const sl_json *root)
{
    const char *s = json_string_value(json_object_get(root->v, "_name_or_path"));
    char *to = r->c->name;
    if (!s || !*s) s = root->file;
    size_t n = strlen(s), size = sizeof r->c->name;
    const char tail[] = "/config.json";
    if (n > sizeof tail && !strcmp(s + n - (sizeof tail - 1), tail)) n -= sizeof tail - 1;
    else if (n > 5 && !strcmp(s + n - 5, ".json")) n -= 5;
    while (n > 1 && s[n - 1] == '/') n--;
    size_t from = n;
    while (from && s[from - 1] != '/') from--;
    snprintf(to, size, "%.*s", (int)SL_MIN(n - from, size - 1), s + from);
    for (; *to; to++)
        if ((unsigned char)*to < 32) *to = '?';
}

static sl_status check_total(reader *r, const sl_preset *p)
{
    double d = p->d_model, ff = p->n_expert * (double)p->d_expert + p->d_shared + p->d_dense;
    double attn = p->n_head * ((double)p->head_dim + p->v_dim + p->nope + p->n_rot + p->v_head)
                + p->q_lora + p->kv_lora + (double)p->mixer_in + p->mixer_out;
    double wide = SL_MAX(d, SL_MAX(p->q_lora, p->kv_lora));
    double all = p->n_layer * (3 * d * ff + 4 * wide * attn + p->mixer_params) + 2 * d * p->n_vocab;
    if (all < 1e14) return SL_OK;
    return sl_fail(r->ctx, SL_E_FORMAT,
                   "%s: about %.1e weights by its sizes: expected fewer than 1e14", r->j.file, all);
}

static sl_status read_model(reader *r)
{
    sl_preset *p = &r->c->preset;
    const uint32_t ctx = 4096;
    bool tied = (r->has & TIED) != 0;
    SL_TRY(number(r, NAMES("num_hidden_layers", "n_layers", "n_layer", "num_layers"), NULL, 1,
                  SL_CONFIG_LAYERS_MAX, &p->n_layer));
    SL_TRY(number(r, NAMES("hidden_size", "d_model", "n_embd"), NULL, 1, MAX_WIDTH, &p->d_model));
    SL_TRY(number(r, NAMES("vocab_size"), NULL, 1, MAX_VOCAB, &p->n_vocab));
    SL_TRY(number(r, NAMES("max_position_embeddings", "max_seq_len", "model_max_length",
                           "seq_length", "n_positions"),
                  &ctx, 1, INT32_MAX, &p->n_ctx));
    SL_TRY(flag(r, NAMES("tie_word_embeddings", "tie_embedding"), tied, &p->tied));
    SL_TRY(read_heads(r, p));
    SL_TRY(read_biases(r, p));
    SL_TRY(read_layout(r, p));
    SL_TRY(read_mixer(r, p));
    SL_TRY(read_ffn(r, p));
    return check_total(r, p);
}

static sl_status read_config(sl_ctx *ctx, const sl_json *root, sl_config **ret)
{
    sl_config *c = calloc(1, sizeof *c);
    if (!c) return sl_fail(ctx, SL_E_NOMEM, "configuration %s", root->file);
    reader r = { .ctx = ctx, .c = c };
    c->preset = (sl_preset){ .name = c->name, .title = c->name, .arch = c->arch };
    sl_status st = find_text(&r, root);
    if (st == SL_OK) st = find_family(&r, root);
    if (st == SL_OK) find_name(&r, root);
    if (st == SL_OK) st = read_model(&r);
    if (st == SL_OK) *ret = c;
    else sl_config_free(&c);
    return st;
}

sl_status sl_config_parse(sl_ctx *ctx, const char *path, const char *text, size_t n,
                          sl_config **ret)
{
    sl_json root;
    assert(ctx && path && text && ret);
    SL_TRY(sl_json_parse(ctx, path, text, n, &root));
    sl_status st = read_config(ctx, &root, ret);
    json_decref(root.v);
    return st;
}

sl_status sl_config_load(sl_ctx *ctx, const char *path, sl_config **ret)
{
    sl_json root;
    assert(ctx && path && ret);
    SL_TRY(sl_json_load(ctx, path, &root));
    sl_status st = read_config(ctx, &root, ret);
    json_decref(root.v);
    return st;
}

void sl_config_free(sl_config **c)
{
    assert(c);
    free(*c);
    *c = NULL;
}
