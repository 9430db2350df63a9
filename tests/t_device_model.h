/* tests/t_device_model.h - small random models, layer by layer, for tests of devices: attention of
 * both kinds with all that belongs to it, dense and routed experts, several types. */
#ifndef T_DEVICE_MODEL_H
#define T_DEVICE_MODEL_H

#include "offload/sl_device.h"
#include "tests/t.h"

#include <math.h>

#define D 64            /* d_model */
#define VOCAB 96
#define LAYERS 2
#define N 150           /* positions of a sequence: three attention blocks */
#define SEQS 4
#define ROWS 200        /* of a pass at most */
#define BLOCK 16        /* rows of a KV block */

/* What a case asks for; 0 is the plain choice everywhere. */
struct shape {
    const char *name;
    sl_type type, kv_type;
    sl_attn_kind kind;
    uint32_t n_head, n_head_kv, k_dim, v_dim, n_rot;
    uint32_t nope, v_head, q_a;
    sl_qk_norm qk_norm;
    sl_rope_kind rope;
    sl_norm_kind norm;
    uint32_t window;        /* on even layers */
    bool bias, sinks;
    uint32_t ff, n_expert, n_used, shared;
    bool shared_gate, dense_first;
    sl_score score;
    sl_act_kind act;
    uint32_t n_group;
    float residual, embed, logit;
    double tolerance;
};

/* Where weights are quantised, so are activations, here and in the reference: where a rounding
 * falls the other way, one element changes by 1/127 of its group's largest. */
static const struct shape shapes[] = {
    { "dense gqa", SL_F32, SL_F32, SL_ATTN_GQA, 6, 2, 20, 20, 20, .qk_norm = SL_QK_NORM_HEAD,
      .rope = SL_ROPE_HALVES, .norm = SL_NORM_RMS, .ff = 100, .tolerance = 1e-5 },
    { "moe, sinks, windows, biases",
      SL_Q8_0,
      SL_F32,
      SL_ATTN_GQA,
      18,
      2,
      16,
      32,
      16,
      .rope = SL_ROPE_HALVES,
      .norm = SL_NORM_RMS,
      .window = 40,
      .bias = true,
      .sinks = true,
      .ff = 64,
      .n_expert = 8,
      .n_used = 3,
      .score = SL_SCORE_TOPK_SOFTMAX,
      .act = SL_ACT_SWIGLU_OAI,
      .tolerance = 2e-2 },
    { "moe, gated shared expert",
      SL_Q4_0,
      SL_F32,
      SL_ATTN_GQA,
      4,
      4,
      32,
      32,
      16,
      .qk_norm = SL_QK_NORM_FULL,
      .rope = SL_ROPE_PAIRS,
      .norm = SL_NORM_RMS,
      .ff = 32,
      .n_expert = 6,
      .n_used = 2,
      .shared = 96,
      .shared_gate = true,
      .residual = 0.5f,
      .embed = 3,
      .logit = 0.25f,
      .tolerance = 2e-2 },
    { "mla with q_a, groups",
      SL_F32,
      SL_F32,
      SL_ATTN_MLA,
      5,
      1,
      40,
      32,
      8,
      .nope = 12,
      .v_head = 10,
      .q_a = 24,
      .rope = SL_ROPE_PAIRS,
      .norm = SL_NORM_RMS,
      .ff = 48,
      .n_expert = 8,
      .n_used = 3,
      .shared = 40,
      .dense_first = true,
      .score = SL_SCORE_SIGMOID,
      .n_group = 4,
      .tolerance = 1e-5 },
    { "mla plain q, f16", SL_F16, SL_F16, SL_ATTN_MLA, 16, 1, 72, 64, 8, .nope = 80, .v_head = 100,
      .rope = SL_ROPE_PAIRS, .norm = SL_NORM_RMS, .ff = 48, .n_expert = 4, .n_used = 2,
      .tolerance = 2e-3 },
    { "layer norm, sparsemixer", SL_F32, SL_F32, SL_ATTN_GQA, 4, 1, 16, 16, 16,
      .rope = SL_ROPE_HALVES, .norm = SL_NORM_LAYER, .bias = true, .ff = 40, .n_expert = 4,
      .n_used = 2, .act = SL_ACT_GELU, .score = SL_SCORE_SPARSEMIXER, .tolerance = 1e-5 },
};

struct model {
    const struct shape *s;
    sl_weights w;
    sl_layer layers[LAYERS];
    sl_ffn experts[LAYERS][8];
    sl_widths widths;
    double inv_freq[64];
    void *owned[512];
    uint32_t n_owned;
};

static sl_kernels reference;    /* dequantisers of the C set, for the reference pass */

static float *floats(struct model *m, size_t n, float scale, float shift)
{
    float *v = malloc(n * sizeof *v);
    T_NEED(v && m->n_owned < SL_LEN(m->owned), "memory");
    for (size_t i = 0; i < n; i++) v[i] = t_unit() * scale + shift;
    m->owned[m->n_owned++] = v;
    return v;
}

static sl_mat mat(struct model *m, sl_type type, uint32_t rows, uint32_t cols, uint32_t count,
                  bool bias)
{
    sl_mat a = { .rows = rows, .cols = cols, .count = count, .type = type };
    size_t n = (size_t)rows * cols * count;
    float size = 2 / sqrtf((float)cols);
    if (cols % sl_type_get(type)->block_elems) a.type = SL_F32;
    T_NEED(sl_type_row_bytes(a.type, cols, &a.row_bytes), "row bytes");
    float *f = floats(m, n, size, 0);
    a.data = f;
    /* in place: the halves run behind */
    if (a.type == SL_F16) reference.to_f16(f, (uint16_t *)f, n);
    if (a.type == SL_Q8_0 || a.type == SL_Q4_0) {
        uint8_t *b = (uint8_t *)f;
        size_t bytes = sl_type_get(a.type)->block_bytes;
        for (size_t i = 0; i < n / 32 * bytes; i++) b[i] = (uint8_t)t_rand();
        for (size_t i = 0; i < n / 32; i++) {
            float d = size / (a.type == SL_Q8_0 ? 128.0f : 8.0f);
            uint16_t h;
            reference.to_f16(&d, &h, 1);
            memcpy(b + i * bytes, &h, 2);
        }
    }
    if (bias) a.bias = floats(m, (size_t)rows * count, 0.1f, 0);
    return a;
}

static sl_norm norm(struct model *m, sl_norm_kind kind, uint32_t n)
{
    return (sl_norm){ .weight = floats(m, n, 0.3f, 1), .kind = kind, .eps = 1e-6f,
                      .bias = kind == SL_NORM_LAYER ? floats(m, n, 0.1f, 0) : NULL };
}

static sl_ffn ffn(struct model *m, uint32_t width, bool bias)
{
    return (sl_ffn){ .gate = mat(m, m->s->type, width, D, 1, bias),
                     .up = mat(m, m->s->type, width, D, 1, bias),
                     .down = mat(m, m->s->type, D, width, 1, bias) };
}

static void make_attn(struct model *m, sl_layer *l)
{
    const struct shape *s = m->s;
    sl_attn *a = &l->attn;
    *a = (sl_attn){ .kind = s->kind,
                    .qk_norm = s->qk_norm,
                    .n_head = s->n_head,
                    .n_head_kv = s->n_head_kv,
                    .k_dim = s->k_dim,
                    .v_dim = s->v_dim,
                    .nope = s->nope,
                    .v_head = s->v_head,
                    .window = l->index % 2 == 0 ? s->window : 0,
                    .scale = 1 / sqrtf((float)s->k_dim) };
    a->norm = norm(m, s->norm, D);
    if (s->sinks) a->sinks = floats(m, s->n_head, 2, 0);
    if (s->kind == SL_ATTN_MLA) {
        uint32_t latent = s->k_dim - s->n_rot, q = s->n_head * (s->nope + s->n_rot);
        if (s->q_a) {
            a->q_a = mat(m, s->type, s->q_a, D, 1, false);
            a->q_a_norm = norm(m, SL_NORM_RMS, s->q_a);
        }
        a->q = mat(m, s->type, q, s->q_a ? s->q_a : D, 1, false);
        a->kv_a = mat(m, s->type, s->k_dim, D, 1, false);
        a->kv_a_norm = norm(m, SL_NORM_RMS, latent);
        a->k_b = mat(m, s->type, latent, s->nope, s->n_head, false);
        a->v_b = mat(m, s->type, s->v_head, latent, s->n_head, false);
        a->o = mat(m, s->type, D, s->n_head * s->v_head, 1, false);
        return;
    }
    a->q = mat(m, s->type, s->n_head * s->k_dim, D, 1, s->bias);
    a->k = mat(m, s->type, s->n_head_kv * s->k_dim, D, 1, s->bias);
    a->v = mat(m, s->type, s->n_head_kv * s->v_dim, D, 1, s->bias);
    a->o = mat(m, s->type, D, s->n_head * s->v_dim, 1, s->bias);
    bool full = s->qk_norm == SL_QK_NORM_FULL;
    a->q_norm = norm(m, SL_NORM_RMS, full ? s->n_head * s->k_dim : s->k_dim);
    a->k_norm = norm(m, SL_NORM_RMS, full ? s->n_head_kv * s->k_dim : s->k_dim);
}

static void make_ffn(struct model *m, sl_layer *l)
{
    const struct shape *s = m->s;
    l->moe = s->n_expert && !(s->dense_first && l->index == 0);
    l->ffn_norm = norm(m, s->norm, D);
    l->act = (sl_act){ s->act, 1.702f, 7 };
    if (!l->moe) {
        l->ffn = ffn(m, s->ff, s->bias);
        return;
    }
    l->router = mat(m, SL_F32, s->n_expert, D, 1, s->bias);
    l->routing = (sl_routing){ .score = s->score,
                               .n_expert = s->n_expert,
                               .n_used = s->n_used,
                               .scale = 1.5f,
                               .n_group = s->n_group,
                               .n_group_used = s->n_group / 2,
                               .mixer_eps = 0.02f };
    if (s->n_group) {
        l->routing.sel_bias = floats(m, s->n_expert, 0.1f, 0);
        l->routing.normalise = true;
    }
    for (uint32_t e = 0; e < s->n_expert; e++) m->experts[l->index][e] = ffn(m, s->ff, s->bias);
    if (s->shared) l->shared = ffn(m, s->shared, false);
    if (s->shared_gate) l->shared_gate = mat(m, SL_F32, 1, D, 1, false);
}

static void make_model(struct model *m, const struct shape *s)
{
    *m = (struct model){ .s = s };
    for (uint32_t i = 0; i < s->n_rot / 2; i++) m->inv_freq[i] = pow(10000, -2.0 * i / s->n_rot);
    for (uint32_t i = 0; i < LAYERS; i++) {
        m->layers[i] = (sl_layer){ .index = i, .residual_scale = s->residual ? s->residual : 1 };
        make_attn(m, m->layers + i);
        make_ffn(m, m->layers + i);
    }
    m->w = (sl_weights){ .d_model = D,
                         .n_vocab = VOCAB,
                         .n_layer = LAYERS,
                         .layers = m->layers,
                         .embed = mat(m, s->type, VOCAB, D, 1, false),
                         .head = mat(m, s->type, VOCAB, D, 1, s->bias),
                         .embed_scale = s->embed ? s->embed : 1,
                         .logit_scale = s->logit ? s->logit : 1,
                         .out_norm = norm(m, s->norm, D),
                         .rope = { m->inv_freq, s->rope, s->n_rot, 1.1f } };
    uint32_t mla = s->q_a + s->n_head * (s->nope + s->n_rot),
             cols = SL_MAX(D, SL_MAX(s->ff, s->shared));
    cols = SL_MAX(cols, s->n_head * SL_MAX(s->v_dim, s->v_head));
    m->widths = (sl_widths){
        .d_model = D,
        .q = s->n_head * s->k_dim,
        .k = s->n_head_kv * s->k_dim,
        .v = s->n_head_kv * s->v_dim,
        .att = s->n_head * s->v_dim,
        .ff_sum = SL_MAX(s->ff, s->n_used * s->ff + s->shared),
        .n_used = s->n_used,
        .n_expert = s->n_expert,
        .n_vocab = VOCAB,
        .n_rot = s->n_rot,
        .cols = cols,
        .n_head = s->n_head,
        .head_dim = SL_MAX(s->k_dim, s->v_dim),
        .mla = s->kind == SL_ATTN_MLA ? SL_MAX(mla, s->n_head * s->v_head) : 0,
    };
}

static void free_model(struct model *m)
{
    while (m->n_owned) free(m->owned[--m->n_owned]);
}

#endif
