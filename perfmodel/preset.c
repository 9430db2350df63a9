/* perfmodel/preset.c - the table. Source of each row: the config.json that its maker published on
 * Hugging Face (organisation/model in the comment); n_ctx is max_position_embeddings.
 * qwen3-7b-a1b is no public model: a shape for benchmarks, small enough for any machine. */
#include "perfmodel/sl_preset.h"

#include <string.h>
#include <strings.h>

#define QWEN3 .arch = "qwen3moe", .runs = true, .head_dim = 128, .n_rot = 128, .normalise = true, \
    .eps = 1e-6f, .qk_norm = true
#define QWEN2 .arch = "qwen2moe", .runs = true, .shared_gate = true, .head_dim = 128, \
    .n_rot = 128, .eps = 1e-6f, .n_vocab = 151936, .rope_base = 1e6f, .qkv_bias = true
#define MIXTRAL .arch = "llama", .runs = true, .head_dim = 128, .n_rot = 128, .n_expert = 8, \
    .n_used = 2, .normalise = true, .eps = 1e-5f, .rope_base = 1e6f
#define GPT_OSS .arch = "gpt-oss", .runs = true, .o_bias = true, .sinks = true, \
    .router_bias = true, .expert_bias = true, .late_norm = true, .layout = "wf", .d_model = 2880, \
    .n_vocab = 201088, .n_ctx = 131072, .n_head = 64, .n_head_kv = 8, .head_dim = 64, .n_rot = 64, \
    .n_used = 4, .d_expert = 2880, .normalise = true, .qkv_bias = true, .window = 128, \
    .eps = 1e-5f, .rope_base = 150000, .yarn_factor = 32, .yarn_ctx = 4096
#define GLM4 .arch = "glm4moe", .runs = true, .late_norm = true, .n_vocab = 151552, .n_head = 96, \
    .n_head_kv = 8, .head_dim = 128, .n_rot = 64, .n_used = 8, .n_shared = 1, .sigmoid = true, \
    .normalise = true, .sel_bias = true, .qkv_bias = true, .eps = 1e-5f, .rope_base = 1e6f
#define MLA_OF(k, v) .kv_lora = 512, .nope = (k), .n_rot = 64, .v_head = (v)
#define MLA .arch = "deepseek2", .runs = true, MLA_OF(128, 128)
#define YARN(f, m) .yarn_factor = (f), .yarn_ctx = 4096, .yarn_log_mul = 0.1f * (m)
#define DEEPSEEK3 MLA, .n_layer = 61, .d_model = 7168, .n_vocab = 129280, .n_ctx = 163840, \
    .n_head = 128, .n_expert = 256, .n_used = 8, .d_expert = 2048, .d_shared = 2048, \
    .n_shared = 1, .n_dense = 3, .d_dense = 18432, .q_lora = 1536, .sigmoid = true, \
    .normalise = true, .sel_bias = true, .n_group = 8, .n_group_used = 4, .expert_scale = 2.5f, \
    .eps = 1e-6f, .rope_base = 10000, YARN(40, 1)
#define KIMI MLA, .n_vocab = 163840, .n_dense = 1, .sigmoid = true, .normalise = true, \
    .sel_bias = true, .rope_base = 50000
#define GRANITE .arch = "granitemoe", .runs = true, .n_vocab = 49155, .n_head_kv = 8, \
    .head_dim = 64, .n_rot = 64, .n_used = 8, .d_expert = 512, .normalise = true, .tied = true, \
    .eps = 1e-6f, .embed_scale = 12, .residual_scale = 0.22f, .logit_scale = 6, \
    .attn_scale = 0.015625f

#define LLAMA4 .arch = "llama4", .n_layer = 48, .d_model = 5120, .n_vocab = 202048, .n_head = 40, \
    .n_head_kv = 8, .head_dim = 128, .n_rot = 128, .n_used = 1, .d_expert = 8192, \
    .d_shared = 8192, .n_shared = 1, .sigmoid = true, .window = 8192, .layout = "wwwf", \
    .eps = 1e-5f, .rope_base = 500000
#define QWEN_NEXT .d_model = 2048, .n_ctx = 262144, .n_head = 16, .n_head_kv = 2, .head_dim = 256, \
    .n_rot = 64, .d_expert = 512, .d_shared = 512, .shared_gate = true, .normalise = true, \
    .qk_norm = true, .q_gate = true, .layout = "mmmf", .mixer_in = 3 * 4096 + 2 * 32, \
    .mixer_out = 4096, .mixer_params = 4 * 8192 + 128 + 2 * 32, .eps = 1e-6f, .rope_base = 1e7f
#define ERNIE .arch = "ernie4_5-moe", .n_vocab = 103424, .n_ctx = 131072, .head_dim = 128, \
    .n_rot = 128, .n_expert = 64, .normalise = true, .sel_bias = true, .eps = 1e-5f, \
    .rope_base = 500000
#define LING2 .arch = "bailingmoe2", .n_vocab = 157184, .head_dim = 128, .n_rot = 64, \
    .n_expert = 256, .n_used = 8, .n_shared = 1, .sigmoid = true, .normalise = true, \
    .sel_bias = true, .n_group = 8, .n_group_used = 4, .expert_scale = 2.5f, .qk_norm = true, \
    .eps = 1e-6f, .rope_base = 600000
#define JAMBA(d, dt) .arch = "jamba", .d_model = (d), .n_vocab = 65536, .n_ctx = 262144, \
    .n_head_kv = 8, .head_dim = 128, .n_rot = 128, .n_expert = 16, .n_used = 2, .moe_every = 2, \
    .layout = "mmmmfmmm", .mixer_in = 4 * (d), .mixer_out = 2 * (d), \
    .mixer_params = 2 * (d) * ((dt) + 2 * 16 + (dt) + 5 + 16 + 2) + (dt) + 2 * 16, .eps = 1e-6f, \
    .rope_base = 10000
#define GRANITE4(inner, heads) .arch = "granitehybrid", .n_layer = 40, .n_vocab = 100352, \
    .n_ctx = 131072, .head_dim = 128, .n_rot = 128, .normalise = true, .tied = true, \
    .layout = "mmmmmfmmmm", .mixer_in = 2 * (inner) + 2 * 128 + (heads), .mixer_out = (inner), \
    .mixer_params = 5 * ((inner) + 2 * 128) + 3 * (heads) + (inner), .eps = 1e-5f, \
    .rope_base = 10000

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
    /* deepseek-ai/DeepSeek-V3.1 */
    { DEEPSEEK3, .name = "deepseek-v3.1", .title = "DeepSeek-V3.1" },
    /* zai-org/GLM-4.7-Flash */
    { MLA_OF(192, 256), .arch = "deepseek2", .runs = true, .name = "glm-4.7-flash",
      .title = "GLM-4.7 Flash 30B-A3B", .n_layer = 47, .d_model = 2048, .n_vocab = 154880,
      .n_ctx = 202752, .n_head = 20, .n_expert = 64,
      .n_used = 4, .d_expert = 1536, .d_shared = 1536, .n_shared = 1, .n_dense = 1,
      .d_dense = 10240, .q_lora = 768, .sigmoid = true, .normalise = true, .sel_bias = true,
      .expert_scale = 1.8f, .eps = 1e-5f, .rope_base = 1e6f },

    /* Rows below: architectures that the engine does not run yet. */

    /* databricks/dbrx-instruct */
    { .name = "dbrx", .title = "DBRX", .arch = "dbrx", .n_layer = 40, .d_model = 6144,
      .n_vocab = 100352, .n_ctx = 32768, .n_head = 48, .n_head_kv = 8, .head_dim = 128,
      .n_rot = 128, .n_expert = 16, .n_used = 4, .d_expert = 10752, .normalise = true,
      .eps = 1e-5f, .rope_base = 500000 },
    /* xai-org/grok-1 */
    { .name = "grok-1", .title = "Grok-1", .arch = "grok", .n_layer = 64, .d_model = 6144,
      .n_vocab = 131072, .n_ctx = 8192, .n_head = 48, .n_head_kv = 8, .head_dim = 128,
      .n_rot = 128, .n_expert = 8, .n_used = 2, .d_expert = 32768, .eps = 1e-5f,
      .rope_base = 10000, .tied = true },
    /* meta-llama/Llama-4-Scout-17B-16E, Llama-4-Maverick-17B-128E (the text model) */
    { LLAMA4, .name = "llama-4-scout", .title = "Llama 4 Scout 17B-16E", .n_ctx = 10485760,
      .n_expert = 16 },
    { LLAMA4, .name = "llama-4-maverick", .title = "Llama 4 Maverick 17B-128E", .n_ctx = 1048576,
      .n_expert = 128, .moe_every = 2, .d_dense = 16384 },
    /* Qwen/Qwen3-Next-80B-A3B-Instruct: of four layers three have a gated delta net (queries, keys,
     * values, gate; two numbers a head; a convolution over 4 positions) */
    { QWEN_NEXT, .name = "qwen3-next-80b-a3b", .title = "Qwen3 Next 80B-A3B", .arch = "qwen3next",
      .n_layer = 48, .n_vocab = 151936, .n_expert = 512, .n_used = 10 },
    /* Qwen/Qwen3.5-35B-A3B (the text model) */
    { QWEN_NEXT, .name = "qwen3.5-35b-a3b", .title = "Qwen3.5 35B-A3B", .arch = "qwen35moe",
      .n_layer = 40, .n_vocab = 248320, .n_expert = 256, .n_used = 8 },
    /* MiniMaxAI/MiniMax-M1-80k: seven of eight layers have lightning attention */
    { .name = "minimax-m1", .title = "MiniMax-M1", .arch = "minimax", .n_layer = 80,
      .d_model = 6144, .n_vocab = 200064, .n_ctx = 10240000, .n_head = 64, .n_head_kv = 8,
      .head_dim = 128, .n_rot = 64, .n_expert = 32, .n_used = 2, .d_expert = 9216,
      .normalise = true, .layout = "mmmmmmmf", .mixer_in = 4 * 8192, .mixer_out = 8192,
      .mixer_params = 8192, .eps = 1e-5f, .rope_base = 1e7f },
    /* MiniMaxAI/MiniMax-M2 */
    { .name = "minimax-m2", .title = "MiniMax-M2", .arch = "minimax-m2", .n_layer = 62,
      .d_model = 3072, .n_vocab = 200064, .n_ctx = 196608, .n_head = 48, .n_head_kv = 8,
      .head_dim = 128, .n_rot = 64, .n_expert = 256, .n_used = 8, .d_expert = 1536,
      .sigmoid = true, .normalise = true, .sel_bias = true, .qk_norm = true, .qk_norm_full = true,
      .eps = 1e-6f, .rope_base = 5e6f },
    /* tencent/Hunyuan-A13B-Instruct */
    { .name = "hunyuan-a13b", .title = "Hunyuan A13B", .arch = "hunyuan-moe", .n_layer = 32,
      .d_model = 4096, .n_vocab = 128167, .n_ctx = 32768, .n_head = 32, .n_head_kv = 8,
      .head_dim = 128, .n_rot = 128, .n_expert = 64, .n_used = 8, .d_expert = 3072,
      .d_shared = 3072, .n_shared = 1, .normalise = true, .tied = true, .qk_norm = true,
      .eps = 1e-5f, .rope_base = 10000 },
    /* baidu/ERNIE-4.5-21B-A3B-PT, ERNIE-4.5-300B-A47B-PT */
    { ERNIE, .name = "ernie-4.5-21b-a3b", .title = "ERNIE 4.5 21B-A3B", .n_layer = 28,
      .d_model = 2560, .n_head = 20, .n_head_kv = 4, .n_used = 6, .d_expert = 1536,
      .d_shared = 3072, .n_shared = 2, .n_dense = 1, .d_dense = 12288, .tied = true },
    { ERNIE, .name = "ernie-4.5-300b-a47b", .title = "ERNIE 4.5 300B-A47B", .n_layer = 54,
      .d_model = 8192, .n_head = 64, .n_head_kv = 8, .n_used = 8, .d_expert = 3584, .n_dense = 3,
      .d_dense = 28672 },
    /* inclusionAI/Ling-lite-1.5 */
    { .name = "ling-lite-1.5", .title = "Ling lite 1.5", .arch = "bailingmoe", .n_layer = 28,
      .d_model = 2048, .n_vocab = 126464, .n_ctx = 131072, .n_head = 16, .n_head_kv = 4,
      .head_dim = 128, .n_rot = 128, .n_expert = 64, .n_used = 6, .d_expert = 1408,
      .d_shared = 2816, .n_shared = 2, .normalise = true, .eps = 1e-6f, .rope_base = 600000 },
    /* inclusionAI/Ling-mini-2.0, Ling-flash-2.0, Ling-1T; the Ring models have the same shapes */
    { LING2, .name = "ling-mini-2.0", .title = "Ling mini 2.0", .n_layer = 20, .d_model = 2048,
      .n_ctx = 32768, .n_head = 16, .n_head_kv = 4, .d_expert = 512, .d_shared = 512,
      .n_dense = 1, .d_dense = 5120 },
    { LING2, .name = "ling-flash-2.0", .title = "Ling flash 2.0", .n_layer = 32, .d_model = 4096,
      .n_ctx = 32768, .n_head = 32, .n_head_kv = 4, .d_expert = 1024, .d_shared = 1024,
      .n_dense = 1, .d_dense = 9216 },
    { LING2, .name = "ling-1t", .title = "Ling 1T", .n_layer = 80, .d_model = 8192,
      .n_ctx = 32768, .n_head = 64, .n_head_kv = 8, .d_expert = 2048, .d_shared = 2048,
      .n_dense = 4, .d_dense = 18432 },
    /* rednote-hilab/dots.llm1.inst */
    { .name = "dots.llm1", .title = "dots.llm1", .arch = "dots1", .n_layer = 62, .d_model = 4096,
      .n_vocab = 152064, .n_ctx = 32768, .n_head = 32, .n_head_kv = 32, .head_dim = 128,
      .n_rot = 128, .n_expert = 128, .n_used = 6, .d_expert = 1408, .d_shared = 2816,
      .n_shared = 2, .n_dense = 1, .d_dense = 10944, .sigmoid = true, .normalise = true,
      .sel_bias = true, .expert_scale = 2.5f, .qk_norm = true, .eps = 1e-5f, .rope_base = 1e7f },
    /* Snowflake/snowflake-arctic-instruct: a dense FFN as wide as the model beside the experts */
    { .name = "arctic", .title = "Snowflake Arctic", .arch = "arctic", .n_layer = 35,
      .d_model = 7168, .n_vocab = 32000, .n_ctx = 4096, .n_head = 56, .n_head_kv = 8,
      .head_dim = 128, .n_rot = 128, .n_expert = 128, .n_used = 2, .d_expert = 4864,
      .d_shared = 7168, .normalise = true, .eps = 1e-5f, .rope_base = 10000 },
    /* arcee-ai/Trinity-Mini */
    { .name = "trinity-mini", .title = "Trinity Mini 26B-A3B", .arch = "afmoe", .n_layer = 32,
      .d_model = 2048, .n_vocab = 200192, .n_ctx = 131072, .n_head = 32, .n_head_kv = 4,
      .head_dim = 128, .n_rot = 128, .n_expert = 128, .n_used = 8, .d_expert = 1024,
      .d_shared = 1024, .n_shared = 1, .n_dense = 2, .d_dense = 6144, .sigmoid = true,
      .normalise = true, .sel_bias = true, .qk_norm = true, .q_gate = true, .window = 2048,
      .layout = "wwwf", .eps = 1e-5f, .rope_base = 10000 },
    /* ai21labs/AI21-Jamba-1.5-Mini, -Large: Mamba layers with dt_rank of d_model / 16, 16 states */
    { JAMBA(4096, 256), .name = "jamba-1.5-mini", .title = "Jamba 1.5 Mini", .n_layer = 32,
      .n_head = 32, .d_expert = 14336, .d_dense = 14336 },
    { JAMBA(8192, 512), .name = "jamba-1.5-large", .title = "Jamba 1.5 Large", .n_layer = 72,
      .n_head = 64, .d_expert = 24576, .d_dense = 24576 },
    /* ibm-granite/granite-4.0-h-small, granite-4.0-h-tiny: Mamba-2 layers of heads of 64, one group
     * of 128 states */
    { GRANITE4(8192, 128), .name = "granite-4-h-small", .title = "Granite 4.0 H Small 32B-A9B",
      .d_model = 4096, .n_head = 32, .n_head_kv = 8, .n_expert = 72, .n_used = 10,
      .d_expert = 768, .d_shared = 1536 },
    { GRANITE4(3072, 48), .name = "granite-4-h-tiny", .title = "Granite 4.0 H Tiny 7B-A1B",
      .d_model = 1536, .n_head = 12, .n_head_kv = 4, .n_expert = 64, .n_used = 6,
      .d_expert = 512, .d_shared = 1024 },
    /* LiquidAI/LFM2-8B-A1B: short convolutions between the attention layers */
    { .name = "lfm2-8b-a1b", .title = "LFM2 8B-A1B", .arch = "lfm2moe", .n_layer = 24,
      .d_model = 2048, .n_vocab = 65536, .n_ctx = 128000, .n_head = 32, .n_head_kv = 8,
      .head_dim = 64, .n_rot = 64, .n_expert = 32, .n_used = 4, .d_expert = 1792, .n_dense = 2,
      .d_dense = 7168, .sigmoid = true, .normalise = true, .sel_bias = true, .tied = true,
      .qk_norm = true, .layout = "mmfmmmfmmmfmmmfmmmfmmfmm", .mixer_in = 3 * 2048,
      .mixer_out = 2048, .mixer_params = 3 * 2048, .eps = 1e-5f, .rope_base = 1e6f },
    /* upstage/Solar-Open-100B */
    { .name = "solar-open-100b", .title = "Solar Open 100B", .arch = "solar-open", .n_layer = 48,
      .d_model = 4096, .n_vocab = 196608, .n_ctx = 131072, .n_head = 64, .n_head_kv = 8,
      .head_dim = 128, .n_rot = 128, .n_expert = 128, .n_used = 8, .d_expert = 1280,
      .d_shared = 1280, .n_shared = 1, .sigmoid = true, .normalise = true, .sel_bias = true,
      .eps = 1e-5f, .rope_base = 1e6f },
    /* zai-org/GLM-5: its sparse attention's indexer (1 % of the attention) is left out */
    { MLA_OF(192, 256), .name = "glm-5", .title = "GLM-5 744B-A40B", .arch = "glm-dsa",
      .n_layer = 78, .d_model = 6144, .n_vocab = 154880, .n_ctx = 202752,
      .n_head = 64, .n_expert = 256, .n_used = 8, .d_expert = 2048, .d_shared = 2048,
      .n_shared = 1, .n_dense = 3, .d_dense = 12288, .q_lora = 2048, .sigmoid = true,
      .normalise = true, .sel_bias = true, .expert_scale = 2.5f, .eps = 1e-5f,
      .rope_base = 1e6f },
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

char sl_preset_layer(const sl_preset *p, uint32_t layer)
{
    if (!p->layout) return p->window ? SL_LAYER_WINDOW : SL_LAYER_FULL;
    return p->layout[layer % strlen(p->layout)];
}

bool sl_preset_moe(const sl_preset *p, uint32_t layer)
{
    return p->n_expert && layer >= p->n_dense
        && (!p->moe_every || (layer + 1) % p->moe_every == 0);
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
    uint64_t dv = p->v_dim ? p->v_dim : p->head_dim, q = h * p->head_dim,
             k = (uint64_t)p->n_head_kv * p->head_dim, v = p->n_head_kv * dv;
    return (p->q_gate ? 2 : 1) * d * q + d * (k + v) + h * dv * d + (p->qkv_bias ? q + k + v : 0);
}

/* Everything but the embedding; n experts a layer are counted. */
static uint64_t body_params(const sl_preset *p, uint64_t n)
{
    uint64_t d = p->d_model, sum = d + (p->tied ? 0 : d * p->n_vocab),
             mixer = d * ((uint64_t)p->mixer_in + p->mixer_out) + p->mixer_params,
             moe = n * 3 * d * p->d_expert + 3 * d * p->d_shared + d * p->n_expert,
             dense = 3 * d * p->d_dense;
    for (uint32_t l = 0; l < p->n_layer; l++)
        sum += 2 * d + (sl_preset_layer(p, l) == SL_LAYER_MIXER ? mixer : attn_params(p))
             + (sl_preset_moe(p, l) ? moe : dense);
    return sum;
}

uint64_t sl_preset_params(const sl_preset *p)
{
    return body_params(p, p->n_expert) + (uint64_t)p->d_model * p->n_vocab;
}

uint64_t sl_preset_active_params(const sl_preset *p)
{
    return body_params(p, p->n_used) + (p->tied ? (uint64_t)p->d_model * p->n_vocab : 0);
}
