#!/usr/bin/env python3
"""Runs every tests/golden/arch/*.gguf in llama.cpp (llama-cpp-python 0.3.36) and compares with its .ref.

The same hands wrote the converter here and the reader in C; llama.cpp is a reader that they did not write. Per row: does
the greedy continuation of the 48 prompt tokens equal the reference's, and how far are the logits of all 64 positions
from it, relative to max|ref|. KV cache in F32. Where llama.cpp computes something else than the model's own code, the
reference is computed once more with llama.cpp's arithmetic put into transformers: the file is right if that agrees.
Exits 1 unless every row passes or fails as EXPECTED says.
"""
import contextlib
import glob
import io
import json
import os
import struct
import sys

import llama_cpp
import numpy as np
import torch
from gguf import GGUFReader
from llama_cpp import Llama

import arch_model
from arch_rows import row

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "arch")
TOLERANCE = 1e-5
# what llama.cpp does otherwise, per row
EXPECTED = {
    "mixtral-split": "no longer reads one tensor per expert (wants blk.0.ffn_down_exps.weight)",
    "phimoe": "computes RMSNorm for LayerNorm, and softmax, top-2, normalised for sparsemixer",
    "deepseek2-v2": "scores a group by the sum of its two best experts, DeepSeek V2 by the best",
    "gpt-oss": "rounds YaRN's correction range outwards; the models' config says truncate false",
}
# DeepSeek V2-Lite has no q_lora_rank; llama.cpp asks for the key unless the model has 27 layers
OVERRIDES = {"deepseek2-lite": {"deepseek2.attention.q_lora_rank": 0}}


def read_ref(path):
    with open(path, "rb") as f:
        data = f.read()
    assert data[:8] == b"SLREF001"
    n_prompt, n, vocab, _ = struct.unpack_from("<4I", data, 8)
    tokens = np.frombuffer(data, "<i4", n, 24)
    return n_prompt, tokens, np.frombuffer(data, "<f4", n * vocab, 24 + 4 * n).reshape(n, vocab)


def load(path, overrides):
    """llama-cpp-python's YaRN defaults are turned back into "from the file"; the keys of the two betas llama.cpp reads
    for few architectures only, so they are given by hand."""
    fields = GGUFReader(path).fields
    beta = [float(f.contents()) for end in ("fast", "slow") for k, f in fields.items() if k.endswith("yarn_beta_" + end)]
    fast, slow = beta or (-1.0, -1.0)
    return Llama(path, n_ctx=128, n_batch=128, n_threads=1, logits_all=True, verbose=False, use_mmap=False,
                 type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, yarn_ext_factor=-1.0,
                 yarn_attn_factor=-1.0, yarn_beta_fast=fast, yarn_beta_slow=slow, kv_overrides=overrides)


def run(llm, tokens, n_prompt):
    """The greedy tokens after the prompt, and the logits after each of the reference's tokens."""
    out = tokens[:n_prompt].tolist()
    llm.eval(out)
    while len(out) < len(tokens):
        out.append(int(np.argmax(llm.scores[len(out) - 1])))
        llm.eval(out[-1:])
    llm.reset()
    llm.eval(tokens.tolist())
    return out, llm.scores[:len(tokens)].copy()


def phimoe_as_llama_cpp(model):
    """RMSNorm with a bias, and the two best of one softmax, normalised."""
    def norm(self, x):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return y * self.weight + self.bias

    def route(router, args, out):
        best = out[0].softmax(-1).topk(2)
        return out[0], best.values / best.values.sum(-1, keepdim=True), best.indices

    for m in model.modules():
        if isinstance(m, torch.nn.LayerNorm):
            m.forward = norm.__get__(m)
        if type(m).__name__ == "PhimoeTopKRouter":
            m.register_forward_hook(route)
    return model


def deepseek2_v2_as_llama_cpp(model):
    """Groups of softmax scores chosen by the sum of their two best."""
    def route(router, args, out):
        scores = out[0].softmax(-1)
        groups = scores.view(len(scores), router.num_group, -1)
        keep = groups.topk(2).values.sum(-1).topk(router.topk_group).indices
        mask = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter_(1, keep, True)
        best = (groups * mask[:, :, None]).reshape(len(scores), -1).topk(router.top_k)
        return out[0], best.values * router.routed_scaling_factor, best.indices

    for m in model.modules():
        if type(m).__name__ == "DeepseekV2TopkRouter":
            m.register_forward_hook(route)
    return model


def as_llama_cpp(name, seed, tokens):
    """The logits of the row with what llama.cpp does otherwise put into transformers; None if there is no such thing."""
    if name == "phimoe":
        model = phimoe_as_llama_cpp(arch_model.build(row(name), seed))
    elif name == "deepseek2-v2":
        model = deepseek2_v2_as_llama_cpp(arch_model.build(row(name), seed))
    elif name == "gpt-oss":
        model = arch_model.build(row(name), seed, rope=dict(truncate=True))
    else:
        return None
    return arch_model.logits(model, tokens.tolist()).numpy()


def splits_equal(split, fused):
    """Whether the per-expert tensors of one file are the slices of the other's."""
    a, b = ({t.name: t.data for t in GGUFReader(p).tensors} for p in (split, fused))
    for name in [n for n in b if "_exps" in n]:
        for e, part in enumerate(b.pop(name)):
            b[name.replace("_exps", f".{e}")] = part
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def worst(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def check(path, seed):
    """One line of the table; whether it is as expected."""
    name = os.path.basename(path)[:-5]
    n_prompt, tokens, ref = read_ref(path[:-5] + ".ref")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            llm = load(path, OVERRIDES.get(name))
    except ValueError:
        same = name == "mixtral-split" and splits_equal(path, path.replace("-split", ""))
        print(f"| {name} | does not load | | {EXPECTED.get(name, '')}{'; bytes equal mixtral.gguf' if same else ''} |")
        return same
    out, scores = run(llm, tokens, n_prompt)
    same = sum(a == b for a, b in zip(out[n_prompt:], tokens[n_prompt:].tolist()))
    error, total = worst(scores, ref), len(tokens) - n_prompt
    good, note = same == total and error < TOLERANCE, EXPECTED.get(name, "")
    if name in EXPECTED:
        error_as = worst(scores, as_llama_cpp(name, seed, tokens))
        good, note = error_as < TOLERANCE, note + f"; transformers made to do the same: {error_as:.1e}"
    print(f"| {name} | {same}/{total} | {error:.1e} | {note} |", flush=True)
    return good


def main():
    torch.set_num_threads(1)
    seeds = {n: e["seed"] for n, e in json.load(open(os.path.join(FOLDER, "manifest.json")))["rows"].items()}
    print("| row | greedy tokens that agree | max abs difference / max abs ref | llama.cpp |\n|---|---|---|---|")
    good = [check(p, seeds[os.path.basename(p)[:-5]]) for p in sorted(glob.glob(FOLDER + "/*.gguf"))
            if not sys.argv[1:] or os.path.basename(p)[:-5] in sys.argv[1:]]
    print(f"\n{sum(good)} of {len(good)} as expected")
    return 0 if good and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
