/* perfmodel/preset.c - the table. Source of each row: the config.json that its maker published on
 * Hugging Face (organisation/model in the comment); n_ctx is max_position_embeddings.
 * qwen3-7b-a1b is no public model: a shape for benchmarks, small enough for any machine. */
#include "perfmodel/sl_preset.h"

#include <strings.h>

#define QWEN3 .arch = "qwen3moe", .runs = true, .head_dim = 128, .n_rot = 128, .normalise = true, .eps = 1e-6f, \
    .qk_norm = true
#define QWEN2 .arch = "qwen2moe", .runs = true, .shared_gate = true, .head_dim = 128, .n_rot = 128, .eps = 1e-6f, .n_vocab = 151936, \
    .rope_base = 1e6f, .qkv_bias = true
#define MIXTRAL .arch = "llama", .runs = true, .head_dim = 128, .n_rot = 128, .n_expert = 8, .n_used = 2, \
    .normalise = true, .eps = 1e-5f, .rope_base = 1e6f
#define GPT_OSS .arch = "gpt-oss", .runs = true, .o_bias = true, .sinks = true, \
    .router_bias = true, .expert_bias = true, .late_norm = true, .full_every = 2, .d_model = 2880, \
    .n_vocab = 201088, .n_ctx = 131072, .n_head = 64, \
    .n_head_kv = 8, .head_dim = 64, .n_rot = 64, .n_used = 4, .d_expert = 2880, .normalise = true, \
    .qkv_bias = true, .window = 128, .eps = 1e-5f, .rope_base = 150000, .yarn_factor = 32, \
    .yarn_ctx = 4096
#define GLM4 .arch = "glm4moe", .runs = true, .late_norm = true, .n_vocab = 151552, .n_head = 96, .n_head_kv = 8, .head_dim = 128, \
    .n_rot = 64, .n_used = 8, .n_shared = 1, .sigmoid = true, .normalise = true, .sel_bias = true, \
    .qkv_bias = true, .eps = 1e-5f, .rope_base = 1e6f
#define MLA .arch = "deepseek2", .runs = true, .kv_lora = 512, .nope = 128, .n_rot = 64, \
    .v_head = 128
#define YARN(f, m) .yarn_factor = (f), .yarn_ctx = 4096, .yarn_log_mul = 0.1f * (m)
#define DEEPSEEK3 MLA, .n_layer = 61, .d_model = 7168, .n_vocab = 129280, .n_ctx = 163840, .n_head = 128, \
    .n_expert = 256, .n_used = 8, .d_expert = 2048, .d_shared = 2048, .n_shared = 1, .n_dense = 3, \
    .d_dense = 18432, .q_lora = 1536, .sigmoid = true, .normalise = true, .sel_bias = true, .n_group = 8, \
    .n_group_used = 4, .expert_scale = 2.5f, .eps = 1e-6f, .rope_base = 10000, YARN(40, 1)
#define KIMI MLA, .n_vocab = 163840, .n_dense = 1, .sigmoid = true, .normalise = true, .sel_bias = true, \
    .rope_base = 50000
#define GRANITE .arch = "granitemoe", .runs = true, .n_vocab = 49155, .n_head_kv = 8, .head_dim = 64, .n_rot = 64, \
    .n_used = 8, .d_expert = 512, .normalise = true, .tied = true, .eps = 1e-6f, .embed_scale = 12, \
    .residual_scale = 0.22f, .logit_scale = 6, .attn_scale = 0.015625f

static const sl_preset rows[] = {
    { QWEN3, .name = "qwen3-7b-a1b", .title = "Qwen3-like 7B-A1B (synthetic shape)", .n_layer = 16,
      .n_vocab = 50304, .d_model = 2048, .n_ctx = 40960, .n_head = 32, .n_head_kv = 4,
      .n_expert = 64, .n_used = 8, .d_expert = 1024, .rope_base = 1e6f },
    /* Qwen/Qwen3-30B-A3B */
    { QWEN3, .name = "qwen3-30b-a3b", .title = "Qwen3 30B-A3B", .n_layer = 48, .d_model = 2048,
      .n_vocab = 151936, .n_ctx = 40960, .n_head = 32, .n_head_kv = 4, .n_expert = 128, .n_used = 8,
      .d_expert = 768, .rope_base = 1e6f },
    /* Qwen/Qwen3-Coder-30B-A3B-Instruct */
    { QWEN3, .name = "qwen3-coder-30b-a3b", .title = "Qwen3 Coder 30B-A3B", .n_layer = 48,
      .d_model = 2048, .n_vocab = 151936, .n_ctx = 262144, .n_head = 32, .n_head_kv = 4,
      .n_expert = 128, .n_used = 8, .d_expert = 768, .rope_base = 1e7f },
    /* Qwen/Qwen3-235B-A22B */
    { QWEN3, .name = "qwen3-235b-a22b", .title = "Qwen3 235B-A22B", .n_layer = 94, .d_model = 4096,
      .n_vocab = 151936, .n_ctx = 40960, .n_head = 64, .n_head_kv = 4, .n_expert = 128, .n_used = 8,
      .d_expert = 1536, .rope_base = 1e6f },
    /* Qwen/Qwen3-Coder-480B-A35B-Instruct */
    { QWEN3, .name = "qwen3-coder-480b-a35b", .title = "Qwen3 Coder 480B-A35B", .n_layer = 62,
      .d_model = 6144, .n_vocab = 151936, .n_ctx = 262144, .n_head = 96, .n_head_kv = 8,
      .n_expert = 160, .n_used = 8, .d_expert = 2560, .rope_base = 1e7f },
    /* Qwen/Qwen1.5-MoE-A2.7B */
    { QWEN2, .name = "qwen1.5-moe-a2.7b", .title = "Qwen1.5 MoE A2.7B", .n_layer = 24,
      .d_model = 2048, .n_ctx = 8192, .n_head = 16, .n_head_kv = 16, .n_expert = 60, .n_used = 4,
      .d_expert = 1408, .d_shared = 5632 },
    /* Qwen/Qwen2-57B-A14B */
    { QWEN2, .name = "qwen2-57b-a14b", .title = "Qwen2 57B-A14B", .n_layer = 28, .d_model = 3584,
      .n_ctx = 131072, .n_head = 28, .n_head_kv = 4, .n_expert = 64, .n_used = 8, .d_expert = 2560,
      .d_shared = 20480 },
    /* allenai/OLMoE-1B-7B-0924 */
    { .name = "olmoe-1b-7b",
      .title = "OLMoE 1B-7B",
      .arch = "olmoe",
      .runs = true,
      .qk_norm_full = true,
      .n_layer = 16,
      .d_model = 2048,
      .n_vocab = 50304,
      .n_ctx = 4096,
      .n_head = 16,
      .n_head_kv = 16,
      .head_dim = 128,
      .n_rot = 128,
      .n_expert = 64,
      .n_used = 8,
      .d_expert = 1024,
      .qk_norm = true,
      .eps = 1e-5f,
      .rope_base = 10000 },
    /* mistralai/Mixtral-8x7B-v0.1 */
    { MIXTRAL, .name = "mixtral-8x7b", .title = "Mixtral 8x7B", .n_layer = 32, .d_model = 4096,
      .n_vocab = 32000, .n_ctx = 32768, .n_head = 32, .n_head_kv = 8, .d_expert = 14336 },
    /* mistralai/Mixtral-8x22B-v0.1 */
    { MIXTRAL, .name = "mixtral-8x22b", .title = "Mixtral 8x22B", .n_layer = 56, .d_model = 6144,
      .n_vocab = 32000, .n_ctx = 65536, .n_head = 48, .n_head_kv = 8, .d_expert = 16384 },
    /* openai/gpt-oss-20b, openai/gpt-oss-120b */
    { GPT_OSS, .name = "gpt-oss-20b", .title = "gpt-oss 20B", .n_layer = 24, .n_expert = 32 },
    { GPT_OSS, .name = "gpt-oss-120b", .title = "gpt-oss 120B", .n_layer = 36, .n_expert = 128 },
    /* zai-org/GLM-4.5-Air */
    { GLM4, .name = "glm-4.5-air", .title = "GLM-4.5 Air", .n_layer = 46, .d_model = 4096,
      .n_ctx = 131072, .n_expert = 128, .d_expert = 1408, .d_shared = 1408, .n_dense = 1,
      .d_dense = 10944, .expert_scale = 1 },
    /* zai-org/GLM-4.5, zai-org/GLM-4.6 */
    { GLM4, .name = "glm-4.5", .title = "GLM-4.5", .n_layer = 92, .d_model = 5120, .n_ctx = 131072,
      .n_expert = 160, .d_expert = 1536, .d_shared = 1536, .n_dense = 3, .d_dense = 12288,
      .expert_scale = 2.5f, .qk_norm = true },
    { GLM4, .name = "glm-4.6", .title = "GLM-4.6", .n_layer = 92, .d_model = 5120, .n_ctx = 202752,
      .n_expert = 160, .d_expert = 1536, .d_shared = 1536, .n_dense = 3, .d_dense = 12288,
      .expert_scale = 2.5f, .qk_norm = true },
    /* deepseek-ai/DeepSeek-V2-Lite */
    { MLA, .name = "deepseek-v2-lite", .title = "DeepSeek-V2 Lite", .n_layer = 27, .d_model = 2048,
      .n_vocab = 102400, .n_ctx = 163840, .n_head = 16, .n_expert = 64, .n_used = 6,
      .d_expert = 1408, .d_shared = 2816, .n_shared = 2, .n_dense = 1, .d_dense = 10944,
      .expert_scale = 1, .eps = 1e-6f, .rope_base = 10000, YARN(40, 0.707f) },
    /* deepseek-ai/DeepSeek-V2 */
    { MLA,
      .name = "deepseek-v2",
      .title = "DeepSeek-V2",
      .n_layer = 60,
      .d_model = 5120,
      .n_vocab = 102400,
      .n_ctx = 163840,
      .n_head = 128,
      .n_expert = 160,
      .n_used = 6,
      .d_expert = 1536,
      .d_shared = 3072,
      .n_shared = 2,
      .n_dense = 1,
      .d_dense = 12288,
      .q_lora = 1536,
      .n_group = 8,
      .n_group_used = 3,
      .expert_scale = 16,
      .eps = 1e-6f,
      .rope_base = 10000,
      YARN(40, 0.707f) },
    /* deepseek-ai/DeepSeek-V3, deepseek-ai/DeepSeek-R1 */
    { DEEPSEEK3, .name = "deepseek-v3", .title = "DeepSeek-V3" },
    { DEEPSEEK3, .name = "deepseek-r1", .title = "DeepSeek-R1" },
    /* moonshotai/Moonlight-16B-A3B */
    { KIMI, .name = "moonlight-16b-a3b", .title = "Moonlight 16B-A3B", .n_layer = 27,
      .d_model = 2048, .n_ctx = 8192, .n_head = 16, .n_expert = 64, .n_used = 6, .d_expert = 1408,
      .d_shared = 2816, .n_shared = 2, .d_dense = 11264, .expert_scale = 2.446f, .eps = 1e-5f },
    /* moonshotai/Kimi-K2-Instruct */
    { KIMI, .name = "kimi-k2", .title = "Kimi K2", .n_layer = 61, .d_model = 7168, .n_ctx = 131072,
      .n_head = 64, .n_expert = 384, .n_used = 8, .d_expert = 2048, .d_shared = 2048, .n_shared = 1,
      .d_dense = 18432, .q_lora = 1536, .expert_scale = 2.827f, .eps = 1e-6f, YARN(32, 1) },
    /* ibm-granite/granite-3.0-1b-a400m-base, granite-3.0-3b-a800m-base */
    { GRANITE, .name = "granite-3-1b-a400m", .title = "Granite 3.0 1B-A400M", .n_layer = 24,
      .d_model = 1024, .n_ctx = 4096, .n_head = 16, .n_expert = 32, .rope_base = 10000 },
    { GRANITE, .name = "granite-3-3b-a800m", .title = "Granite 3.0 3B-A800M", .n_layer = 32,
      .d_model = 1536, .n_ctx = 4096, .n_head = 24, .n_expert = 40, .rope_base = 10000 },
    /* microsoft/Phi-3.5-MoE-instruct */
    { .name = "phi-3.5-moe",
      .title = "Phi 3.5 MoE",
      .arch = "phimoe",
      .runs = true,
      .o_bias = true,
      .head_bias = true,
      .norm_bias = true,
      .n_layer = 32,
      .d_model = 4096,
      .n_vocab = 32064,
      .n_ctx = 131072,
      .n_head = 32,
      .n_head_kv = 8,
      .head_dim = 128,
      .n_rot = 128,
      .n_expert = 16,
      .n_used = 2,
      .d_expert = 6400,
      .qkv_bias = true,
      .eps = 1e-5f,
      .rope_base = 10000,
      .yarn_ctx = 4096,
      .rope_attn_factor = 1.243163121016122f },
};

const sl_preset *sl_preset_at(uint32_t i)
{
    return i < SL_LEN(rows) ? &rows[i] : NULL;
}

const sl_preset *sl_preset_find(const char *name)
{
    for (uint32_t i = 0; i < SL_LEN(rows); i++)
        if (!strcasecmp(rows[i].name, name)) return &rows[i];
    return NULL;
}

static uint64_t attn_params(const sl_preset *p)
{
    uint64_t d = p->d_model, h = p->n_head;
    if (p->kv_lora) {
        uint64_t q = h * (p->nope + p->n_rot);
        uint64_t into = p->q_lora ? d * p->q_lora + p->q_lora + p->q_lora * q : d * q;
        return into + d * (p->kv_lora + p->n_rot) + p->kv_lora
            + (uint64_t)p->kv_lora * h * (p->nope + p->v_head) + h * p->v_head * d;
    }
    uint64_t q = h * p->head_dim, kv = (uint64_t)p->n_head_kv * p->head_dim;
    return 2 * d * q + 2 * d * kv + (p->qkv_bias ? q + 2 * kv : 0);
}

/* Everything but the embedding; n experts a layer are counted. */
static uint64_t body_params(const sl_preset *p, uint64_t n)
{
    uint64_t d = p->d_model, moe_layers = p->n_layer - p->n_dense;
    uint64_t ffn = n * 3 * d * p->d_expert + 3 * d * p->d_shared + d * p->n_expert;
    return p->n_layer * (attn_params(p) + 2 * d) + moe_layers * ffn
        + (uint64_t)p->n_dense * 3 * d * p->d_dense + d + (p->tied ? 0 : d * p->n_vocab);
}

uint64_t sl_preset_params(const sl_preset *p)
{
    return body_params(p, p->n_expert) + (uint64_t)p->d_model * p->n_vocab;
}

uint64_t sl_preset_active_params(const sl_preset *p)
{
    return body_params(p, p->n_used) + (p->tied ? (uint64_t)p->d_model * p->n_vocab : 0);
}
