/* runtime/hparams.h - a GGUF's <arch>.* keys as numbers, checked. Private to runtime/. */
#ifndef HPARAMS_H
#define HPARAMS_H

#include "runtime/arch.h"
#include "runtime/sl_gguf.h"

typedef enum rope_scaling { SCALING_NONE, SCALING_LINEAR, SCALING_YARN } rope_scaling;

typedef struct rope_keys {
    rope_scaling scaling;
    double base, factor, attn_factor;
    double beta_fast, beta_slow, ext_factor;
    double log_multiplier;      /* deepseek2: 0.1 * mscale_all_dim; 0: absent */
    uint32_t n_rot, n_ctx_orig;
    bool off;                   /* rope.scaling.finetuned = false */
} rope_keys;

typedef struct hparams {
    uint32_t n_layer, d_model, n_ctx_train;
    uint32_t n_expert, n_used, n_group, n_group_used;
    uint32_t k_dim, v_dim;      /* GQA: of a head */
    uint32_t q_lora, kv_lora, nope, v_head;     /* MLA */
    uint32_t window;
    float eps, attn_scale, embed_scale, residual_scale, logit_scale, expert_scale;
    bool normalise;
    sl_score score;
    rope_keys rope;
} hparams;

/* Numbers that every layer shares. Errors: SL_E_FORMAT naming the key, what was expected and
 * found. */
sl_status hparams_read(sl_ctx *ctx, const sl_gguf *g, const arch *a, hparams *ret);

/* One key, in this layer when it is an array per layer. def NULL: it must be there. [min, max]
 * checked. */
sl_status hparams_u32(sl_ctx *ctx, const sl_gguf *g, const arch *a, const char *key, uint32_t layer,
                      const uint32_t *def, uint32_t min, uint32_t max, uint32_t *ret);
/* Whether the layer attends to a window only. */
bool hparams_windowed(const sl_gguf *g, const arch *a, uint32_t layer);

/* inv_freq [n_rot / 2] and the factor on cos and sin for contexts of n_ctx positions. freqs: the
 * per-pair divisors of rope_freqs or rope_factors_*, or NULL.
 * Source: YaRN, arXiv 2309.00071, sec. 3.2 and 3.4; LongRoPE, arXiv 2402.13753. */
void rope_frequencies(const rope_keys *r, bool exact, const float *freqs, double *inv_freq,
                      float *ret_scale);

#endif
