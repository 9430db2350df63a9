"""The rows of the architecture goldens: which transformers class, which config, which GGUF form.

Sizes are the smallest that keep every mechanism alive: head_dim differs from hidden_size / heads where the
architecture allows it, 8 experts (16 in 4 groups for DeepSeek V3), three layers (four where the window
alternates), and RoPE scaling that changes the logits of the 64 tokens by their own size.
"""
import math

N_PROMPT = 48
N_TOKENS = 64
CONTEXT = 128
ORIG_CONTEXT = 32
PHI_FACTORS = dict(short=[1.0, 1.02, 1.05, 1.1], long=[1.0, 1.3, 2.2, 4.5])
PHI_ATTN_FACTOR = math.sqrt(1 + math.log(CONTEXT / ORIG_CONTEXT) / math.log(ORIG_CONTEXT))

COMMON = dict(vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=CONTEXT, tie_word_embeddings=False, rms_norm_eps=1e-5,
              bos_token_id=None, eos_token_id=None, pad_token_id=None)


def theta(base):
    return dict(rope_parameters=dict(rope_type="default", rope_theta=float(base)))


def yarn(base, original=1024, **more):
    """YaRN shifts every position, so the original context may be long; beta 32 and 1, as in all released models:
    llama.cpp reads no others for these architectures."""
    return dict(max_position_embeddings=4 * original,
                rope_parameters=dict(rope_type="yarn", rope_theta=float(base), factor=4.0, beta_fast=32.0, beta_slow=1.0,
                                     original_max_position_embeddings=original, **more))


MLA = dict(num_key_value_heads=4, intermediate_size=64, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16,
           v_head_dim=16, moe_intermediate_size=32, first_k_dense_replace=1, rms_norm_eps=1e-6)
V3 = dict(MLA, intermediate_size=32, q_lora_rank=16, qk_nope_head_dim=24, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=3,
          n_shared_experts=1, norm_topk_prob=True, routed_scaling_factor=2.5,
          **yarn(100, mscale=1.0, mscale_all_dim=1.0))
GLM = dict(intermediate_size=64, head_dim=16, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=32,
           n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, norm_topk_prob=True, attention_bias=True,
           rms_norm_eps=1e-3,
           rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.5))
GRANITE = dict(intermediate_size=32, num_local_experts=8, num_experts_per_tok=3, embedding_multiplier=3.5,
               attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=2.5, **theta(1000))

# name: transformers class prefix, config over COMMON, GGUF form. "same_as" reuses the other row's weights and tokens.
ROWS = {
    "qwen3moe": dict(hf="Qwen3Moe", arch="qwen3moe", config=dict(
        intermediate_size=64, moe_intermediate_size=32, head_dim=16, num_experts=8, num_experts_per_tok=3,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], rms_norm_eps=1e-3, **theta(10000))),
    "qwen3": dict(hf="Qwen3", arch="qwen3", config=dict(
        intermediate_size=64, head_dim=16, num_attention_heads=8, num_key_value_heads=2, **theta(10000))),
    "llama": dict(hf="Llama", arch="llama", config=dict(
        vocab_size=128, intermediate_size=64, head_dim=16, num_attention_heads=4, num_key_value_heads=2,
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=ORIG_CONTEXT))),
    "llama-tied": dict(hf="Llama", arch="llama", config=dict(
        hidden_size=64, intermediate_size=32, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
        rms_norm_eps=1e-3, **theta(10000))),
    "mixtral": dict(hf="Mixtral", arch="llama", config=dict(
        intermediate_size=32, num_local_experts=8, num_experts_per_tok=2, **theta(1e6))),
    "mixtral-split": dict(note="blk.N.ffn_gate.E.weight and so on, as before experts were fused; llama.cpp no longer reads this",
        same_as="mixtral", split_experts=True),
    "olmoe": dict(hf="Olmoe", arch="olmoe", config=dict(
        intermediate_size=32, num_key_value_heads=4, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False,
        **theta(10000))),
    "qwen2": dict(hf="Qwen2", arch="qwen2", config=dict(
        vocab_size=101, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, **theta(1e6))),
    "qwen2moe": dict(hf="Qwen2Moe", arch="qwen2moe", config=dict(
        intermediate_size=64, moe_intermediate_size=32, shared_expert_intermediate_size=64, num_experts=8,
        num_experts_per_tok=3, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[], qkv_bias=True,
        **theta(1e6))),
    # this base and original context put the ramp's ends at 2.05 and 7.95: rounding them is visible, and small
    "gpt-oss": dict(note="YaRN correction range not rounded (truncate false); llama.cpp rounds it",
        hf="GptOss", arch="gpt-oss", also_same=dict(truncate=True), config=dict(
        num_hidden_layers=4, intermediate_size=32, head_dim=16, num_local_experts=8, num_experts_per_tok=3,
        sliding_window=8, **yarn(109.9, original=670, truncate=False))),
    "glm4moe": dict(hf="Glm4Moe", arch="glm4moe", config=dict(GLM, use_qk_norm=True, routed_scaling_factor=1.5)),
    "glm4moe-air": dict(hf="Glm4Moe", arch="glm4moe", config=dict(GLM, use_qk_norm=False, routed_scaling_factor=1.0)),
    "deepseek2-lite": dict(hf="DeepseekV2", arch="deepseek2", mla="split", config=dict(
        MLA, q_lora_rank=None, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, norm_topk_prob=False,
        routed_scaling_factor=1.0, topk_method="greedy", n_group=1, topk_group=1,
        **yarn(100, mscale=0.707, mscale_all_dim=0.707))),
    "deepseek2-v2": dict(
        note="groups of the 236B model: scored by their best expert; llama.cpp takes the sum of the two best",
        hf="DeepseekV2", arch="deepseek2", mla="split", config=dict(
            MLA, num_hidden_layers=2, q_lora_rank=16, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1,
            norm_topk_prob=False, routed_scaling_factor=4.0, topk_method="group_limited_greedy", n_group=4, topk_group=2,
            **yarn(100, mscale=0.707, mscale_all_dim=0.707))),
    "deepseek2-v3": dict(hf="DeepseekV3", arch="deepseek2", mla="split", config=V3),
    "deepseek2-v3-kvb": dict(note="the old attn_kv_b, key_length without the latent, no *_mla keys",
        same_as="deepseek2-v3", mla="kv_b"),
    "granitemoe": dict(hf="GraniteMoe", arch="granitemoe", config=GRANITE),
    "granitemoe-shared": dict(hf="GraniteMoeShared", arch="granitemoe", config=dict(GRANITE, shared_intermediate_size=64)),
    "phimoe": dict(note="long factors for all positions (transformers 5.23 would take the short ones); not what llama.cpp computes",
        hf="Phimoe", arch="phimoe", config=dict(
        intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        attention_bias=True, lm_head_bias=True, router_jitter_noise=0.01, sliding_window=None, rms_norm_eps=1e-3,
        rope_parameters=dict(rope_type="longrope", rope_theta=100.0, original_max_position_embeddings=ORIG_CONTEXT,
                             short_factor=PHI_FACTORS["short"], long_factor=PHI_FACTORS["long"],
                             short_mscale=PHI_ATTN_FACTOR, long_mscale=PHI_ATTN_FACTOR))),
}


def row(name):
    """The full description of a row, with what it takes from the row it copies."""
    r = dict(ROWS[name])
    if "same_as" in r:
        r = dict(ROWS[r["same_as"]], **r)
    r["config"] = dict(COMMON, **r["config"])
    r["name"] = name
    return r
