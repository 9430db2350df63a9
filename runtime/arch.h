/* runtime/arch.h - the table of architectures: what a GGUF's general.architecture implies and its
 * keys do not say. Adding an architecture is adding a row. Private to runtime/.
 * Facts: tests/golden/ARCH.md, where each row's source is named. */
#ifndef ARCH_H
#define ARCH_H

#include "kernels/sl_ops.h"

/* Whether a tensor belongs to an architecture. */
typedef enum need { NEED_NO, NEED_MAYBE, NEED_YES } need;

typedef enum window_pattern {
    WINDOW_NONE,
    /* layers 0, 2, 4, ... unless attention.sliding_window_pattern says otherwise */
    WINDOW_EVEN
} window_pattern;

typedef struct arch {
    const char *name;
    sl_attn_kind attn;
    sl_norm_kind norm;
    sl_rope_kind rope;
    sl_qk_norm qk_norm;
    need qk_norm_need;
    need qkv_bias, o_bias;  /* biases of the attention's projections */
    need sinks;
    window_pattern window;
    const char *ffn_norm;   /* tensor in front of the FFN */
    need router_bias, expert_bias, sel_bias;
    sl_score score;         /* unless expert_gating_func says otherwise */
    bool gating_key;        /* expert_gating_func is looked at */
    bool normalise;         /* unless expert_weights_norm says otherwise */
    need shared;
    need shared_gate;
    need ffn_bias;          /* of the dense FFN */
    need head_bias;
    sl_act act;
    bool scales;            /* embedding_scale, residual_scale, logit_scale, attention.scale keys */
    bool yarn_exact;        /* YaRN's correction range is not rounded to whole dimensions */
    float mixer_eps;        /* sparsemixer */
} arch;

/* NULL: not in the table. */
const arch *arch_find(const char *name, size_t n);
const arch *arch_at(uint32_t i);    /* NULL past the end: to list the names */

#endif
