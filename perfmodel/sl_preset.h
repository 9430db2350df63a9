/* perfmodel/sl_preset.h - the one table of public Mixture-of-Experts models: what their config.json
 * says, as numbers. The planner and `sluice synth` both read it, so a forecast and a synthetic file
 * of one name describe the same shape.
 * Owns constants only. Must not read a clock, file or device. Threads: constant. Units: elements,
 * positions. Tested by tests/t_preset.c (parameter counts against the ones that the makers
 * publish). */
#ifndef SL_PRESET_H
#define SL_PRESET_H

#include "perfmodel/sl_shape.h"

typedef struct sl_preset {
    const char *name;           /* "qwen3-30b-a3b" */
    const char *title;          /* "Qwen3 30B-A3B" */
    const char *arch;           /* GGUF's general.architecture */
    uint32_t n_layer;           /* layers that predict further tokens (MTP) are not counted */
    uint32_t d_model, n_vocab, n_ctx;
    uint32_t n_head, n_head_kv, head_dim;   /* MLA: n_head only */
    uint32_t n_rot;             /* dimensions of a head that turn; MLA: of the shared rope key */
    uint32_t n_expert, n_used, d_expert;
    uint32_t d_shared;          /* width of all shared experts together; 0: none */
    /* how many experts the file says they are; 0 where it names the width */
    uint32_t n_shared;
    uint32_t n_dense, d_dense;  /* the first n_dense layers have one FFN of this width */
    /* MLA (kv_lora > 0) */
    uint32_t q_lora, kv_lora, nope, v_head;
    /* routing */
    bool sigmoid;               /* scores; otherwise softmax */
    bool normalise;             /* weights of the chosen experts sum to 1 (before expert_scale) */
    bool sel_bias;              /* a bias that only the selection sees */
    uint32_t n_group, n_group_used;     /* 0: no groups */
    float expert_scale;         /* 0: 1 */
    /* what else differs between models of one architecture */
    bool tied;                  /* the head is the embedding table */
    bool qk_norm, qkv_bias;     /* glm4moe has them or not; the others' architecture says so */
    uint32_t window;            /* of every other layer (gpt-oss); 0: none */
    float eps, rope_base;
    float yarn_factor;          /* 0: none */
    uint32_t yarn_ctx;          /* original context of YaRN and longrope */
    float yarn_log_mul;         /* 0.1 * mscale_all_dim (deepseek2) */
    float rope_attn_factor;     /* longrope's factor on cos and sin; 0: no longrope */
    float embed_scale, residual_scale, logit_scale, attn_scale;     /* granitemoe; 0: not given */
} sl_preset;

SL_API const sl_preset *sl_preset_at(uint32_t i);               /* NULL past the end */
/* any case of letters; NULL: none */
SL_API const sl_preset *sl_preset_find(const char *name);

/* Weights of the model: matrices, biases and norms, without MTP layers. */
SL_API uint64_t sl_preset_params(const sl_preset *p);
/* Of these, what one token multiplies by: the embedding table counts only where it is the head. */
SL_API uint64_t sl_preset_active_params(const sl_preset *p);

/* The shape of a file of this model whose matrices are as `quant` says: a type ("Q4_K", norms and
 * router F32), or the mix "Q4_K_M"; the same bytes as `sluice synth --quant` writes, so that a
 * forecast needs no file. Where the architecture is not one the engine runs, from the published
 * matrices all the same. Errors: SL_E_ARG (an unknown quant). The caller owns layers [n_layer],
 * which *ret points to. */
SL_API SL_NODISCARD sl_status sl_preset_shape(sl_ctx *ctx, const sl_preset *p, const char *quant,
                                              sl_layer_shape *layers, sl_shape *ret);

#endif
