/* kernels/sl_ops.h - the stage structs: numbers and pointers that runtime fills and devices
 * consume.
 * They describe weights, rows and key/value memory; they own nothing. Everything a layer does is
 * said here as numbers, so a device knows no architecture's name.
 * Threads: const after the model is open. Units: elements, floats in [row][column] order.
 * Tested through offload/device_cpu.c by tests/t_device.c and, end to end, by tests/t_arch.c. */
#ifndef SL_OPS_H
#define SL_OPS_H

#include "runtime/base/sl_type.h"

/* W[count][rows][cols], row by row as in the file; y[rows] = W x[cols] + bias. rows 0: absent. */
typedef struct sl_mat {
    const void *data;       /* readable by the device that runs the stage; NULL in a template */
    const float *bias;      /* [count][rows], or NULL */
    uint64_t row_bytes;
    uint32_t rows, cols;
    uint32_t count;         /* matrices one after another (per-head MLA matrices); 1 otherwise */
    sl_type type;
} sl_mat;

typedef enum sl_norm_kind { SL_NORM_NONE, SL_NORM_RMS, SL_NORM_LAYER } sl_norm_kind;

/* RMS:   y = x / sqrt(mean(x^2) + eps) * weight            (Zhang, Sennrich 2019)
 * LAYER: y = (x - mean) / sqrt(var + eps) * weight + bias  (Ba, Kiros, Hinton 2016) */
typedef struct sl_norm {
    const float *weight, *bias; /* weight NULL: 1; bias NULL: 0 */
    sl_norm_kind kind;
    float eps;
} sl_norm;

typedef enum sl_rope_kind {
    SL_ROPE_NONE,
    SL_ROPE_PAIRS,          /* rotates (2i, 2i+1); llama.cpp calls it NORM */
    SL_ROPE_HALVES          /* rotates (i, i + n_rot/2); llama.cpp calls it NEOX */
} sl_rope_kind;

/* Angle of pair i at position p: p * inv_freq[i]; cos and sin are both multiplied by scale (YaRN's
 * attention factor). Scaling of any kind is already inside inv_freq. */
typedef struct sl_rope {
    const double *inv_freq; /* [n_rot / 2] */
    sl_rope_kind kind;
    uint32_t n_rot;         /* dimensions of a head that turn, the first ones; MLA: the last ones */
    float scale;
} sl_rope;

typedef enum sl_attn_kind {
    SL_ATTN_GQA,            /* n_head query heads share n_head_kv key/value heads */
    /* latent attention, absorbed: one key = [latent | rope], value = latent */
    SL_ATTN_MLA
} sl_attn_kind;

typedef enum sl_qk_norm { SL_QK_NORM_NONE, SL_QK_NORM_HEAD, SL_QK_NORM_FULL } sl_qk_norm;

/* GQA: q [n_head*k_dim][d], k [n_head_kv*k_dim][d], v [n_head_kv*v_dim][d], o [d][n_head*v_dim].
 * MLA (DeepSeek-V2, arXiv 2405.04434, 2.1.2), with R = k_dim - n_rot the latent width (v_dim = R):
 *   q: either q [n_head*(nope+n_rot)][d], or q_a [r][d] then q_a_norm then q
 *     [n_head*(nope+n_rot)][r]
 *   kv_a [R + n_rot][d], kv_a_norm over the first R; the cached key is [norm(latent) | rope(rest)]
 *   k_b  n_head x [R][nope]: q' = [k_b q_nope | rope(q_rest)], so that q'.key is the score
 *   v_b  n_head x [v_head][R]: applied to the attended latent in `post`; o [d][n_head*v_head] */
typedef struct sl_attn {
    sl_attn_kind kind;
    sl_qk_norm qk_norm;
    uint32_t n_head, n_head_kv;
    uint32_t k_dim, v_dim;      /* of one cached key and value, per KV head */
    uint32_t nope, v_head;      /* MLA only */
    uint32_t window;            /* a row sees keys at position > pos - window; 0: all */
    float scale;                /* multiplies q.k */
    /* [n_head]: a score that only adds to the softmax's sum; NULL: none */
    const float *sinks;
    sl_norm norm;               /* in front of the projections */
    sl_norm q_norm, k_norm;     /* over k_dim (HEAD) or over all heads at once (FULL) */
    sl_norm q_a_norm, kv_a_norm;
    sl_mat q, k, v, o;
    sl_mat q_a, kv_a, k_b, v_b;
} sl_attn;

typedef enum sl_act_kind {
    SL_ACT_SILU,            /* a = silu(gate) * up */
    SL_ACT_GELU,            /* a = gelu_tanh(gate) * up */
    SL_ACT_SWIGLU_OAI       /* gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit),
                             * a = g * sigmoid(alpha * g) * (u + 1) */
} sl_act_kind;

typedef struct sl_act { sl_act_kind kind; float alpha, limit; } sl_act;

/* y = down (act(gate x, up x)). The dense FFN, a shared expert, or the template of a layer's
 * experts. */
typedef struct sl_ffn { sl_mat gate, up, down; } sl_ffn;

typedef enum sl_score {
    SL_SCORE_SOFTMAX, SL_SCORE_SIGMOID, SL_SCORE_SQRT_SOFTPLUS,
    SL_SCORE_TOPK_SOFTMAX,  /* select on the logits, softmax over the selected (gpt-oss, granite) */
    SL_SCORE_SPARSEMIXER    /* Phi-3.5-MoE, arXiv 2409.12136: top-2, each a masked softmax */
} sl_score;

typedef struct sl_routing {
    sl_score score;
    uint32_t n_expert, n_used;
    uint32_t n_group, n_group_used;     /* 0 or 1: no groups */
    bool normalise;                     /* weights of the selected sum to 1 */
    float scale;                        /* multiplies the weights at the end */
    float mixer_eps;                    /* sparsemixer's 2 * jitter_eps */
    const float *sel_bias;              /* [n_expert] added for the selection only; NULL: none */
} sl_routing;

/* One layer. moe: router and `expert` (a template without data) hold; otherwise `ffn` does. */
typedef struct sl_layer {
    uint32_t index;
    bool moe;
    float residual_scale;   /* x += residual_scale * (attention or FFN output) */
    sl_attn attn;
    sl_norm ffn_norm;
    sl_ffn ffn;
    sl_mat router;
    sl_routing routing;
    sl_ffn expert;          /* types and shapes; data and biases come with each sl_expert_run */
    sl_ffn shared;          /* gate.rows 0: none */
    /* [1][d]: the shared output is multiplied by its sigmoid; rows 0: none */
    sl_mat shared_gate;
    sl_act act;
} sl_layer;

typedef struct sl_weights {
    uint32_t d_model, n_vocab, n_layer;
    sl_mat embed;           /* [n_vocab][d]: rows are looked up */
    sl_mat head;            /* [n_vocab][d] */
    float embed_scale, logit_scale;     /* x = embed_scale * row; logits *= logit_scale */
    sl_norm out_norm;
    sl_rope rope;
    const sl_layer *layers; /* [n_layer] */
} sl_weights;

/* Widest buffers that any layer of a model needs, per row: what a lane allocates. */
typedef struct sl_widths {
    /* ff_sum: n_used * expert width + shared or dense width */
    uint32_t d_model, q, k, v, att, ff_sum;
    uint32_t n_used, n_expert, n_vocab, n_rot;
    uint32_t cols;      /* columns of the widest matrix, router and head included */
    uint32_t n_head;    /* most query heads of a layer */
    uint32_t head_dim;  /* largest k_dim or v_dim of a layer */
    uint32_t heads;     /* query heads of MLA layers; else 0 */
    /* max(q_a.rows + n_head * (nope + n_rot), n_head * v_head) of MLA layers; else 0 */
    uint32_t mla;
} sl_widths;

/* The rows of one pass. Activations are [n_rows][width] in memory of the device, owned by the
 * lane. */
typedef struct sl_batch {
    uint32_t n_rows;
    const int32_t *token;       /* [n_rows] */
    const uint32_t *pos;        /* [n_rows] position in its sequence */
    const uint32_t *seq;        /* [n_rows] index into sl_kv_view.blocks */
    const uint32_t *logit_row;  /* [n_logits] rows whose logits are wanted, ascending */
    uint32_t n_logits;
    float *cos, *sin;           /* [n_rot / 2] of the rows' positions, times the rope's scale */
    float *x;                   /* residual stream [d_model] */
    float *h;                   /* normed input of the current half layer [d_model] */
    float *y;                   /* sum of expert outputs [d_model], zeroed by `post` */
    float *q, *k, *v;           /* outputs of `qkv`; MLA: q [n_head][k_dim], k [k_dim], v unused */
    float *att;                 /* [n_head][v_dim] */
    uint32_t *expert_id;        /* [n_rows][n_used], ascending selection order of the router */
    float *expert_w;            /* [n_rows][n_used] */
    float *shared_w;            /* [n_rows] weight of the shared expert */
    float *logits;              /* [n_logits][n_vocab] */
} sl_batch;

/* Paged keys and values of one layer. Row of position p of sequence s:
 *   base + (blocks[s][p / block_rows] * block_rows + p % block_rows) * bytes
 * with base, bytes = k, k_bytes or v, v_bytes. v_bytes 0: the value is the first v_dim elements of
 * the key (the MLA latent). A row holds n_head_kv vectors of the layer's k_dim or v_dim, head by
 * head. */
typedef struct sl_kv_view {
    char *k, *v;
    uint64_t k_bytes, v_bytes;
    const uint32_t *const *blocks;
    uint32_t block_rows;
    sl_type type;               /* one of sl_attn_type */
} sl_kv_view;

/* What a call does for a run. Weights of a streamed expert arrive when they please, and sums have
 * one order all the same: what comes early is stored, and added in its turn. */
typedef enum sl_run_part {
    SL_RUN_WHOLE,               /* compute, weight, add to y */
    SL_RUN_STORE,               /* compute into `out` */
    SL_RUN_ADD                  /* weight what an earlier call left in `out`, add to y */
} sl_run_part;

/* One expert (or dense FFN, or shared expert) on its rows. rows NULL: every row of the batch;
 * weights NULL: 1. Both are host memory. */
typedef struct sl_expert_run {
    sl_ffn ffn;                 /* with data, but for SL_RUN_ADD */
    sl_run_part part;
    float *out;                 /* [n_rows][d_model]; NULL for SL_RUN_WHOLE */
    const uint32_t *rows;       /* [n_rows] ascending */
    const float *weights;       /* [n_rows] */
    uint32_t n_rows;
    uint32_t index;             /* expert index; runs of a call ascend */
} sl_expert_run;

#endif
