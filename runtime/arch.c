/* runtime/arch.c - the table. Fields that are not named are "no", GQA, RMS norm, softmax and
 * SILU. */
#include "runtime/arch.h"

#include <string.h>

#define RMS .norm = SL_NORM_RMS
#define SOFTMAX_NORM .score = SL_SCORE_SOFTMAX, .normalise = true

static const arch rows[] = {
    /* LLaMA, Mistral, and Mixtral when expert_count > 0 */
    { .name = "llama", RMS, .rope = SL_ROPE_PAIRS, .ffn_norm = "ffn_norm", .qkv_bias = NEED_MAYBE,
      .o_bias = NEED_MAYBE, .ffn_bias = NEED_MAYBE, SOFTMAX_NORM },
    { .name = "qwen2", RMS, .rope = SL_ROPE_HALVES, .ffn_norm = "ffn_norm", .qkv_bias = NEED_YES },
    { .name = "qwen3", RMS, .rope = SL_ROPE_HALVES, .ffn_norm = "ffn_norm",
      .qk_norm = SL_QK_NORM_HEAD, .qk_norm_need = NEED_YES },
    { .name = "qwen2moe", RMS, .rope = SL_ROPE_HALVES, .ffn_norm = "ffn_norm", .qkv_bias = NEED_YES,
      .score = SL_SCORE_SOFTMAX, .shared = NEED_YES, .shared_gate = NEED_YES },
    { .name = "qwen3moe", RMS, .rope = SL_ROPE_HALVES, .ffn_norm = "ffn_norm",
      .qk_norm = SL_QK_NORM_HEAD, .qk_norm_need = NEED_YES, SOFTMAX_NORM },
    { .name = "olmoe", RMS, .rope = SL_ROPE_HALVES, .ffn_norm = "ffn_norm",
      .qk_norm = SL_QK_NORM_FULL, .qk_norm_need = NEED_YES, .score = SL_SCORE_SOFTMAX },
    { .name = "gpt-oss", RMS, .rope = SL_ROPE_HALVES, .ffn_norm = "post_attention_norm",
      .qkv_bias = NEED_YES, .o_bias = NEED_YES, .sinks = NEED_YES, .window = WINDOW_EVEN,
      .router_bias = NEED_YES, .expert_bias = NEED_YES, .score = SL_SCORE_TOPK_SOFTMAX,
      .act = { .kind = SL_ACT_SWIGLU_OAI, .alpha = 1.702f, .limit = 7.0f }, .yarn_exact = true },
    { .name = "glm4moe", RMS, .rope = SL_ROPE_HALVES, .ffn_norm = "post_attention_norm",
      .qkv_bias = NEED_MAYBE, .qk_norm = SL_QK_NORM_HEAD, .qk_norm_need = NEED_MAYBE,
      .score = SL_SCORE_SIGMOID, .gating_key = true, .sel_bias = NEED_MAYBE, .shared = NEED_MAYBE },
    /* DeepSeek-V2, V3, R1, Kimi-K2, Moonlight */
    { .name = "deepseek2", RMS, .attn = SL_ATTN_MLA, .rope = SL_ROPE_PAIRS, .ffn_norm = "ffn_norm",
      .score = SL_SCORE_SOFTMAX, .gating_key = true, .sel_bias = NEED_MAYBE, .shared = NEED_MAYBE },
    { .name = "granitemoe", RMS, .rope = SL_ROPE_PAIRS, .ffn_norm = "ffn_norm", SOFTMAX_NORM,
      .shared = NEED_MAYBE, .scales = true },
    /* Phi-3.5-MoE */
    { .name = "phimoe", .norm = SL_NORM_LAYER, .rope = SL_ROPE_HALVES, .ffn_norm = "ffn_norm",
      .qkv_bias = NEED_YES, .o_bias = NEED_YES, .score = SL_SCORE_SPARSEMIXER, .mixer_eps = 0.02f,
      .head_bias = NEED_YES },
};

const arch *arch_find(const char *name, size_t n)
{
    for (uint32_t i = 0; i < SL_LEN(rows); i++)
        if (strlen(rows[i].name) == n && !memcmp(rows[i].name, name, n)) return &rows[i];
    return NULL;
}

const arch *arch_at(uint32_t i)
{
    return i < SL_LEN(rows) ? &rows[i] : NULL;
}
