#!/usr/bin/env python3
"""Writes tests/golden/arch/<row>.gguf, <row>.ref and manifest.json. With arguments, only the rows named.

A row's seed is the first whose decisions are all clear: every routing decision of the 64 tokens in every layer is
more than 1e-3 from going another way, every greedy token leads by more than 1e-2. Logits are computed in double
precision (arch_model.double_precision) from one forward of the whole sequence, and rounded to float32.

<row>.ref, little endian: 8 bytes "SLREF001", u32 n_prompt, u32 n_tokens, u32 n_vocab, u32 0, i32 tokens[n_tokens]
(the prompt, then the greedy continuation), f32 logits[n_tokens][n_vocab] (row i is after token i).
"""
import json
import os
import struct
import sys

import gguf
import numpy as np
import torch
import transformers
from importlib.metadata import version

import arch_gguf
import arch_model
from arch_rows import N_PROMPT, N_TOKENS, ROWS, row

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "arch")
MIN_ROUTER_GAP = 1e-3
MIN_GREEDY_GAP = 1e-2
MAX_BYTES = 600 * 1024


def greedy(model, tokens, n_tokens, tap=None):
    """Continues tokens to n_tokens; None as soon as a decision is too close."""
    tokens, lead = list(tokens), float("inf")
    while len(tokens) < n_tokens:
        last = arch_model.logits(model, tokens)[-1]
        best = torch.topk(last, 2).values
        lead = min(lead, (best[0] - best[1]).item())
        if lead < MIN_GREEDY_GAP or (tap and tap.gap < MIN_ROUTER_GAP):
            return None, lead
        tokens.append(int(last.argmax()))
    return tokens, lead


def search(r):
    """The first seed of a row with clear decisions: seed, model, tokens, gaps."""
    vocab = r["config"]["vocab_size"]
    for seed in range(1, 100000):
        model = arch_model.build(r, seed)
        tap = arch_model.RouterTap(model, r["hf"])
        prompt = np.random.default_rng([seed, 48]).integers(0, vocab - 1, N_PROMPT).tolist()
        tokens, lead = greedy(model, prompt, N_TOKENS, tap)
        if tokens is None:
            continue
        tap.reset()
        ref = arch_model.logits(model, tokens)
        if tap.gap < MIN_ROUTER_GAP:
            continue
        if "also_same" in r:
            other = arch_model.build(r, seed, rope=r["also_same"])
            if greedy(other, prompt, N_TOKENS)[0] != tokens:
                continue
        return seed, model, tokens, ref, (tap.gap, len(tap.used)), lead


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def sensitivity(model, tokens, ref):
    """The tensor that matters least: how far the logits move when its elements change by up to a tenth."""
    least, rng = (float("inf"), ""), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, t in model.named_parameters():
            keep = t.clone()
            t.mul_(0.9 + 0.2 * torch.rand(t.shape, generator=rng, dtype=t.dtype))
            least = min(least, (relative(arch_model.logits(model, tokens), ref), name))
            t.copy_(keep)
    return least


def describe(r, seed, model, tokens, ref, routing, lead):
    plain = arch_model.logits(arch_model.build(r, seed, double=False), tokens)
    least, tensor = sensitivity(model, tokens, ref)
    entry = dict(architecture=r["arch"], transformers_class=r["hf"] + "ForCausalLM", seed=seed,
                 min_router_gap=routing[0] if routing[1] else None, min_greedy_gap=lead,
                 max_abs_logit=ref.abs().max().item(), logit_stddev=ref.std().item(),
                 float32_error=relative(plain, ref), least_tensor=tensor, least_tensor_effect=least)
    if routing[1]:
        entry["experts_used"] = routing[1]
    if r["config"]["rope_parameters"]["rope_type"] != "default":
        rope = dict(r["config"]["rope_parameters"], rope_type="default")
        bare = dict(r, config=dict(r["config"], rope_parameters=rope))
        entry["effect_of_rope_scaling"] = relative(arch_model.logits(arch_model.build(bare, seed), tokens), ref)
    if "also_same" in r:
        other = arch_model.build(r, seed, rope=r["also_same"])
        entry["effect_of_" + "_".join(r["also_same"])] = relative(arch_model.logits(other, tokens), ref)
    return entry


def write_ref(path, tokens, ref):
    with open(path, "wb") as f:
        f.write(b"SLREF001" + struct.pack("<4I", N_PROMPT, len(tokens), ref.shape[1], 0))
        f.write(np.array(tokens, "<i4").tobytes() + ref.numpy().astype("<f4").tobytes())


def make(name, manifest):
    r = row(name)
    found = search(dict(r, name=r.get("same_as", name)))
    seed, model, tokens, ref, _, _ = found
    path = os.path.join(FOLDER, name + ".gguf")
    arch_gguf.write(path, model, r)
    write_ref(os.path.join(FOLDER, name + ".ref"), tokens, ref)
    entry = describe(r, *found)
    if "same_as" in r:
        entry["same_weights_as"] = r["same_as"]
    if "note" in r:
        entry["note"] = r["note"]
    entry["gguf_bytes"] = os.path.getsize(path)
    assert entry["gguf_bytes"] <= MAX_BYTES, (name, entry["gguf_bytes"])
    manifest[name] = entry
    print(name, json.dumps(entry), flush=True)


def main():
    os.makedirs(FOLDER, exist_ok=True)
    torch.set_num_threads(1)
    path = os.path.join(FOLDER, "manifest.json")
    manifest = json.load(open(path))["rows"] if os.path.exists(path) else {}
    for name in sys.argv[1:] or ROWS:
        make(name, manifest)
        versions = dict(python=sys.version.split()[0], torch=torch.__version__, transformers=transformers.__version__,
                        gguf=version("gguf"), numpy=np.__version__)
        rows = {n: manifest[n] for n in ROWS if n in manifest}
        with open(path, "w") as f:
            json.dump(dict(made_with=versions, precision="float64, rounded to float32", rows=rows), f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
