/* perfmodel/sl_preset.h - the one table of public Mixture-of-Experts models: what their config.json
 * says, as numbers. The planner and `sluice synth` both read it, so a forecast and a synthetic file
 * of one name describe the same shape. runtime/sl_config.h makes such a row from any config.json.
 * Owns constants only. Must not read a clock, file or device. Threads: constant. Units: elements,
 * positions. Tested by tests/t_preset.c (parameter counts against the ones that the makers
 * publish) and tests/t_preset_shape.c (shapes against what the loader makes of synth's headers). */
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
    uint32_t v_dim;             /* of a head's value; 0: head_dim */
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
    bool qk_norm, qk_norm_full; /* of each head; over the whole projection */
    bool qkv_bias, o_bias, sinks, router_bias, expert_bias, head_bias;
    bool norm_bias;             /* LayerNorm */
    bool late_norm;             /* the FFN's norm is called post_attention_norm */
    bool shared_gate;
    bool q_gate;                /* queries come with a gate of their size */
    /* A letter for each layer, repeated from the start when the text ends: SL_LAYER_*. NULL: all
     * attend to all positions, or to the window where there is one. */
    const char *layout;
    uint32_t window;            /* positions; 0: none */
    /* What stands in the place of attention in SL_LAYER_MIXER, as sizes: linear attention, a state
     * space model, a convolution. */
    uint32_t mixer_in, mixer_out;       /* rows of the way in, columns of the way out */
    uint32_t mixer_params;      /* weights of what else it has, rows of mixer_out about */
    uint32_t moe_every;         /* layers with (l + 1) % n == 0 have experts; 0: all */
    bool runs;                  /* the engine runs the architecture */
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

/* ---- its tensors ---- */

typedef enum sl_role {
    SL_ROLE_MATRIX,             /* none of those below */
    SL_ROLE_EMBED, SL_ROLE_HEAD, SL_ROLE_ATTN_K, SL_ROLE_ATTN_V, SL_ROLE_ATTN_O,
    SL_ROLE_KEY_UP,             /* MLA: attn_k_b */
    SL_ROLE_FFN_DOWN, SL_ROLE_EXPERT, SL_ROLE_EXPERT_DOWN,
    SL_ROLE_ROUTER,             /* F32 like all that follow */
    SL_ROLE_NORM, SL_ROLE_BIAS, SL_ROLE_BIAS_SMALL, SL_ROLE_BIAS_ZERO, SL_ROLE_SINKS,
    SL_ROLE_SHARED_GATE, SL_ROLE_ROPE_LONG, SL_ROLE_ROPE_SHORT
} sl_role;

#define SL_NO_LAYER UINT32_MAX

typedef struct sl_preset_tensor {
    char name[48];              /* as GGUF has it */
    uint32_t layer;             /* SL_NO_LAYER: of none */
    uint32_t n_dims;
    uint64_t ne[4];             /* unused ones are 1 */
    sl_type type;
    sl_role role;
} sl_preset_tensor;
typedef sl_status (*sl_preset_tensor_fn)(void *user, const sl_preset_tensor *t);

/* All tensors in the order of the file, until fn fails, whose status is returned. n_layer: 1 to the
 * preset's (at least one then has experts); 0: the preset's. Errors: those of sl_preset_quant. */
SL_API SL_NODISCARD sl_status sl_preset_tensors(sl_ctx *ctx, const sl_preset *p, const char *quant,
                                                uint32_t n_layer, sl_preset_tensor_fn fn,
                                                void *user);

/* What a quant's name says: the type of most matrices, and whether it is a mix, Q4_K_M or Q5_K_M.
 * Errors: SL_E_ARG (no type that can be multiplied by). */
SL_API SL_NODISCARD sl_status sl_preset_quant(sl_ctx *ctx, const char *quant, sl_type *ret_type,
                                              bool *ret_mix);

enum { SL_LAYER_FULL = 'f', SL_LAYER_WINDOW = 'w', SL_LAYER_MIXER = 'm' };
SL_API char sl_preset_layer(const sl_preset *p, uint32_t layer);
/* Whether a layer has experts. */
SL_API bool sl_preset_moe(const sl_preset *p, uint32_t layer);

/* The shape of a file of this model whose matrices are as `quant` says: a type ("Q4_K", norms and
 * router F32), or a mix (Q4_K_M, Q5_K_M); the same bytes as `sluice synth --quant` writes, so that
 * a forecast needs no file. Where the architecture is not one the engine runs, from the published
 * matrices all the same. Errors: SL_E_ARG (an unknown quant). The caller owns layers [n_layer],
 * which *ret points to. */
SL_API SL_NODISCARD sl_status sl_preset_shape(sl_ctx *ctx, const sl_preset *p, const char *quant,
                                              sl_layer_shape *layers, sl_shape *ret);

#endif
