#!/usr/bin/env python3
"""Runs every tests/golden/arch/*.gguf in llama.cpp (llama-cpp-python) and compares with its .ref.

The same hands wrote converter and reader; llama.cpp is a reader that they did not write. Per row: does the greedy
continuation of the 48 prompt tokens equal the reference's, and how far are the logits of all 64 positions from it,
relative to max|ref|. KV cache in F32. Rows named in EXPECTED differ for the reason given there; for them the reference
is computed once more with llama.cpp's arithmetic in transformers, and that must agree (needs --variants).
"""
import glob
import os
import struct
import sys

import numpy as np
import llama_cpp
from gguf import GGUFReader
from llama_cpp import Llama

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "arch")


def read_ref(path):
    with open(path, "rb") as f:
        data = f.read()
    assert data[:8] == b"SLREF001"
    n_prompt, n, vocab, _ = struct.unpack_from("<4I", data, 8)
    tokens = np.frombuffer(data, "<i4", n, 24)
    return n_prompt, tokens, np.frombuffer(data, "<f4", n * vocab, 24 + 4 * n).reshape(n, vocab)


def load(path, **more):
    """The keys yarn_beta_fast and yarn_beta_slow are never read by llama.cpp: they are given by hand, the rest of
    llama-cpp-python's YaRN defaults turned back into "from the file"."""
    fields = GGUFReader(path).fields
    beta = [float(f.contents()) for end in ("fast", "slow") for k, f in fields.items() if k.endswith("yarn_beta_" + end)]
    fast, slow = beta or (-1.0, -1.0)
    return Llama(path, n_ctx=128, n_batch=128, n_threads=1, logits_all=True, verbose=bool(os.environ.get("V")), use_mmap=False,
                 type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, yarn_ext_factor=-1.0, yarn_attn_factor=-1.0,
                 yarn_beta_fast=fast, yarn_beta_slow=slow, **more)


def main():
    for path in sorted(glob.glob(FOLDER + "/*.gguf")):
        name = os.path.basename(path)[:-5]
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        n_prompt, tokens, ref = read_ref(path[:-5] + ".ref")
        # llama.cpp wants the key where DeepSeek V2-Lite, recognised by its 27 layers, has none
        more = dict(kv_overrides={"deepseek2.attention.q_lora_rank": 0}) if name == "deepseek2-lite" else {}
        try:
            llm = load(path, **more)
        except Exception as e:
            print(name, "cannot load", e)
            continue
        out = tokens[:n_prompt].tolist()
        llm.eval(out)
        while len(out) < len(tokens):
            out.append(int(np.argmax(llm.scores[len(out) - 1])))
            llm.eval(out[-1:])
        same = sum(a == b for a, b in zip(out[n_prompt:], tokens[n_prompt:]))
        llm.reset()
        llm.eval(tokens.tolist())
        err = np.abs(llm.scores[:len(tokens)] - ref).max() / np.abs(ref).max()
        print(f"{name:20} greedy {same}/{len(tokens) - n_prompt}  max|diff|/max|ref| {err:.1e}", flush=True)


if __name__ == "__main__":
    main()
