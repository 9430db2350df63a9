"""Writes a tiny transformers model as the GGUF that llama.cpp's converters would make of it."""
import math

import numpy as np
import torch
from gguf import ExpertGatingFuncType, GGUFWriter, LlamaFileType, RopeScalingType, TokenType

from arch_rows import PHI_FACTORS

EMBED = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "model.norm.bias": "output_norm.bias", "lm_head.weight": "output.weight", "lm_head.bias": "output.bias"}
LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
         "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
         "self_attn.kv_b_proj": "attn_kv_b",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "mlp.gate": "ffn_gate_inp", "mlp.router": "ffn_gate_inp", "block_sparse_moe.router": "ffn_gate_inp",
         "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
         "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
         "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
         "mlp.shared_experts.down_proj": "ffn_down_shexp",
         "shared_mlp.output_linear": "ffn_down_shexp"}


def unpermute(w, heads):
    """Rows of Q or K from half-split pairs (i, i + d/2) to neighbours (2i, 2i + 1), head by head."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def expert_tensors(prefix, leaf, w, row):
    """transformers' fused expert tensors, split as GGUF wants them. Linear layers are [out, in]."""
    interleaved = row["hf"] == "GptOss"
    if leaf == "down_proj_bias":
        return [(prefix + "ffn_down_exps.bias", w)]
    if leaf == "gate_up_proj_bias":
        return [(prefix + "ffn_gate_exps.bias", w[..., ::2]), (prefix + "ffn_up_exps.bias", w[..., 1::2])]
    if interleaved:                                   # stored [expert, in, out]
        w = w.swapaxes(-1, -2)
    if leaf == "down_proj":
        parts = [("ffn_down", w)]
    elif interleaved:
        parts = [("ffn_gate", w[:, ::2]), ("ffn_up", w[:, 1::2])]
    else:
        half = w.shape[1] // 2
        parts = [("ffn_gate", w[:, :half]), ("ffn_up", w[:, half:])]
    if row.get("split_experts"):
        return [(f"{prefix}{n}.{e}.weight", p[e]) for n, p in parts for e in range(len(p))]
    return [(f"{prefix}{n}_exps.weight", p) for n, p in parts]


def latent_tensors(prefix, w, row):
    """kv_b_proj: kept whole in old files, in new ones split per head, the key half transposed."""
    c = row["config"]
    if row["mla"] == "kv_b":
        return [(prefix + "attn_kv_b.weight", w)]
    nope, v = c["qk_nope_head_dim"], c["v_head_dim"]
    per_head = w.reshape(c["num_attention_heads"], nope + v, -1)
    return [(prefix + "attn_k_b.weight", per_head[:, :nope].swapaxes(1, 2)), (prefix + "attn_v_b.weight", per_head[:, nope:])]


def layer_tensors(n, rest, w, row):
    c, prefix = row["config"], f"blk.{n}."
    if ".experts." in rest:
        return expert_tensors(prefix, rest.split(".experts.")[1], w, row)
    if rest == "self_attn.sinks":
        return [(prefix + "attn_sinks.weight", w)]
    if rest.endswith("e_score_correction_bias"):
        return [(prefix + "exp_probs_b.bias", w)]
    if rest == "shared_mlp.input_linear.weight":
        half = len(w) // 2
        return [(prefix + "ffn_gate_shexp.weight", w[:half]), (prefix + "ffn_up_shexp.weight", w[half:])]
    if rest == "self_attn.kv_b_proj.weight":
        return latent_tensors(prefix, w, row)
    stem, kind = rest.rsplit(".", 1)
    if row["arch"] in ("llama", "granitemoe") and stem in ("self_attn.q_proj", "self_attn.k_proj"):
        w = unpermute(w, c["num_attention_heads" if "q_proj" in stem else "num_key_value_heads"])
    name = LAYER[stem]
    if name == "ffn_norm" and row["arch"] in ("gpt-oss", "glm4moe"):
        name = "post_attention_norm"
    return [(f"{prefix}{name}.{kind}", w)]


def llama3_factors(c):
    """What llama3 scaling divides each frequency by."""
    p = c["rope_parameters"]
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    out = []
    for i in range(c["head_dim"] // 2):
        turns = p["original_max_position_embeddings"] * p["rope_theta"] ** (-2 * i / c["head_dim"]) / (2 * math.pi)
        smooth = min(1, max(0, (turns - low) / (high - low)))
        out.append(1 / ((1 - smooth) / p["factor"] + smooth))
    return np.array(out)


def tensors_of(model, row):
    out = []
    state = list(model.named_parameters()) + [(k, v) for k, v in model.named_buffers() if "e_score" in k]
    for name, t in state:
        w = t.detach().to(torch.float64).numpy()
        if name in EMBED:
            out.append((EMBED[name], w))
        else:
            n, rest = name.removeprefix("model.layers.").split(".", 1)
            out += layer_tensors(n, rest, w, row)
    rope = row["config"]["rope_parameters"]["rope_type"]
    if rope == "llama3":
        out.append(("rope_freqs.weight", llama3_factors(row["config"])))
    if rope == "longrope":
        out += [(f"rope_factors_{k}.weight", np.array(v)) for k, v in PHI_FACTORS.items()]
    return [(k, np.ascontiguousarray(v, np.float32)) for k, v in out]


def add_vocabulary(g, n):
    """Byte-level tokens: newline, space, printable ASCII as far as it goes, pairs, an end-of-text token."""
    tokens = ["Ċ", "Ġ"] + [chr(c) for c in range(ord("a"), ord("z") + 1)] + [chr(c) for c in range(ord("!"), ord("a"))]
    tokens = tokens[:n - 4]
    letters = [t for t in tokens if t.isalpha() and t.islower()]
    pairs = ["t h", "i n", "e r"] + [f"{a} {b}" for a in letters for b in letters if a + b not in ("th", "in", "er")]
    pairs = [p for p in pairs if "Ċ" not in p and "Ġ" not in p][:n - 1 - len(tokens)]
    tokens += [p.replace(" ", "") for p in pairs] + ["<|endoftext|>"]
    assert len(tokens) == n and len(set(tokens)) == n
    g.add_tokenizer_model("gpt2")
    g.add_tokenizer_pre("gpt-2")
    g.add_token_list(tokens)
    g.add_token_types([TokenType.NORMAL] * (n - 1) + [TokenType.CONTROL])
    g.add_token_merges(pairs)
    g.add_bos_token_id(n - 1)
    g.add_eos_token_id(n - 1)
    g.add_add_bos_token(False)


def add_rope(g, row):
    c, p = row["config"], row["config"]["rope_parameters"]
    g.add_rope_freq_base(p["rope_theta"])
    if p["rope_type"] == "yarn":
        g.add_rope_scaling_type(RopeScalingType.YARN)
        g.add_rope_scaling_factor(p["factor"])
        g.add_rope_scaling_orig_ctx_len(p["original_max_position_embeddings"])
        g.add_rope_scaling_yarn_beta_fast(p["beta_fast"])
        g.add_rope_scaling_yarn_beta_slow(p["beta_slow"])
        if "mscale_all_dim" in p:
            g.add_rope_scaling_yarn_log_mul(0.1 * p["mscale_all_dim"])
    if p["rope_type"] == "longrope":
        g.add_rope_scaling_orig_ctx_len(p["original_max_position_embeddings"])
        g.add_rope_scaling_attn_factors(p["long_mscale"])
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    if row["arch"] == "deepseek2":
        g.add_rope_dimension_count(c["qk_rope_head_dim"])
    elif row["arch"] in ("llama", "granitemoe", "glm4moe", "phimoe"):
        g.add_rope_dimension_count(int(head_dim * p.get("partial_rotary_factor", 1)))


def add_experts(g, row):
    c, arch = row["config"], row["arch"]
    n = c.get("num_local_experts", c.get("num_experts", c.get("n_routed_experts")))
    if n is None:
        return
    g.add_expert_count(n)
    g.add_expert_used_count(c["num_experts_per_tok"])
    if "moe_intermediate_size" in c:
        g.add_expert_feed_forward_length(c["moe_intermediate_size"])
    if arch == "gpt-oss":
        g.add_expert_feed_forward_length(c["intermediate_size"])
    shared = c.get("shared_expert_intermediate_size", c.get("shared_intermediate_size"))
    if shared:
        g.add_expert_shared_feed_forward_length(shared)
    if arch not in ("glm4moe", "deepseek2"):
        return
    sigmoid = row["hf"] in ("Glm4Moe", "DeepseekV3")
    g.add_expert_gating_func(ExpertGatingFuncType.SIGMOID if sigmoid else ExpertGatingFuncType.SOFTMAX)
    g.add_expert_shared_count(c["n_shared_experts"])
    g.add_leading_dense_block_count(c["first_k_dense_replace"])
    g.add_expert_weights_scale(c["routed_scaling_factor"])
    g.add_expert_group_count(c["n_group"])
    g.add_expert_group_used_count(c["topk_group"])
    if c["norm_topk_prob"] or arch == "glm4moe":
        g.add_expert_weights_norm(c["norm_topk_prob"])
    if arch == "glm4moe":
        g.add_nextn_predict_layers(0)


def add_attention(g, row):
    c, arch = row["config"], row["arch"]
    g.add_head_count(c["num_attention_heads"])
    if arch == "deepseek2":
        nope_rope = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
        if c["q_lora_rank"] is not None:
            g.add_q_lora_rank(c["q_lora_rank"])
        g.add_kv_lora_rank(c["kv_lora_rank"])
        split = row["mla"] == "split"
        g.add_head_count_kv(1 if split else c["num_attention_heads"])
        g.add_key_length(c["kv_lora_rank"] + c["qk_rope_head_dim"] if split else nope_rope)
        g.add_value_length(c["kv_lora_rank"] if split else c["v_head_dim"])
        if split:
            g.add_key_length_mla(nope_rope)
            g.add_value_length_mla(c["v_head_dim"])
        return
    g.add_head_count_kv(c["num_key_value_heads"])
    if "head_dim" in c:
        g.add_key_length(c["head_dim"])
        g.add_value_length(c["head_dim"])
    if arch == "gpt-oss":
        g.add_sliding_window(c["sliding_window"])
    if arch == "phimoe":
        g.add_sliding_window(0)
    if arch == "granitemoe":
        g.add_attention_scale(c["attention_multiplier"])
        g.add_embedding_scale(c["embedding_multiplier"])
        g.add_residual_scale(c["residual_multiplier"])
        g.add_logit_scale(c["logits_scaling"])


def write(path, model, row):
    c = row["config"]
    g = GGUFWriter(path, row["arch"])
    g.add_name("golden " + row["name"])
    g.add_file_type(LlamaFileType.ALL_F32)
    g.add_block_count(c["num_hidden_layers"])
    g.add_context_length(c["max_position_embeddings"])
    g.add_embedding_length(c["hidden_size"])
    g.add_feed_forward_length(c["intermediate_size"])
    g.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if row["arch"] in ("llama", "granitemoe", "deepseek2"):
        g.add_vocab_size(c["vocab_size"])
    add_attention(g, row)
    add_rope(g, row)
    add_experts(g, row)
    add_vocabulary(g, c["vocab_size"])
    for name, data in tensors_of(model, row):
        g.add_tensor(name, data)
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
