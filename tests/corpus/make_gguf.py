#!/usr/bin/env python3
"""Writes tests/corpus/gguf/: small right GGUF files, seeds of tests/fuzz_gguf.c."""
import os
import struct

FORMATS = dict(enumerate("B b H h I i f ?".split())) | {10: "Q", 11: "q", 12: "d"}
STR, ARR = 8, 9


def text(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def value(t, v):
    if t == STR:
        return text(v)
    if t == ARR:
        elem, items = v
        return struct.pack("<IQ", elem, len(items)) + b"".join(value(elem, i) for i in items)
    return struct.pack("<" + FORMATS[t], v)


def gguf(kvs, tensors, version=3, alignment=32):
    """kvs: (key, type, value); tensors: (name, dims, type, offset, bytes behind the data's start)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(kvs))
    for key, t, v in kvs:
        out += text(key) + struct.pack("<I", t) + value(t, v)
    end = 0
    for name, dims, t, offset, size in tensors:
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, t, offset)
        end = max(end, offset + size)
    if tensors:
        out += bytes(-len(out) % alignment) + bytes(i % 251 for i in range(end))
    return out


VOCAB = [
    ("general.architecture", STR, "llama"),
    ("tokenizer.ggml.model", STR, "gpt2"),
    ("tokenizer.ggml.tokens", ARR, (STR, ["t", "h", "e", "th", "the", "\u0120", "<|end|>"])),
    ("tokenizer.ggml.merges", ARR, (STR, ["t h", "th e"])),
    ("tokenizer.ggml.token_type", ARR, (5, [1] * 6 + [3])),
    ("tokenizer.ggml.eos_token_id", 4, 6),
]
ALL_TYPES = [(f"t{t}", t, 1) for t in FORMATS] + [(f"a{t}", ARR, (t, [0, 1])) for t in FORMATS]
TENSORS = [
    ("output_norm.weight", (8,), 0, 0, 32),
    ("token_embd.weight", (32, 7), 8, 64, 7 * 34),
    ("blk.0.ffn_up_exps.weight", (32, 2, 2), 2, 320, 4 * 18),
]
NEW = [     # of an architecture that nobody knows: its shape comes from the names
    ("general.architecture", STR, "new"),
    ("new.block_count", 4, 2),
    ("new.attention.head_count", 4, 2),
    ("new.attention.head_count_kv", ARR, (4, [1, 1])),
    ("new.attention.sliding_window", 4, 16),
    ("new.attention.sliding_window_pattern", ARR, (7, [True, False])),
    ("new.attention.kv_lora_rank", 4, 4),
    ("new.expert_count", 4, 2),
    ("new.expert_used_count", 4, 1),
]
NEW_TENSORS = [
    ("token_embd.weight", (8, 7), 0, 0, 224),
    ("blk.0.attn_k.weight", (8, 4), 0, 224, 128),
    ("blk.0.attn_v.weight", (8, 4), 0, 352, 128),
    ("blk.0.ffn_gate_inp.weight", (8, 2), 0, 480, 64),
    ("blk.0.ffn_gate_up_exps.weight", (8, 4, 2), 0, 544, 256),
    ("blk.0.ffn_down_exps.weight", (2, 8, 2), 0, 800, 128),
    ("blk.1.attn_kv_a_mqa.weight", (8, 6), 0, 928, 192),
    ("blk.1.ffn_up.1.weight", (8, 2), 0, 1120, 64),
]
FILES = {
    "vocab.gguf": gguf(VOCAB, []),
    "types.gguf": gguf(ALL_TYPES, []),
    "tensors.gguf": gguf(VOCAB[:1] + [("general.alignment", 4, 64)], TENSORS, alignment=64),
    "new.gguf": gguf(NEW, NEW_TENSORS),
    "v2.gguf": gguf(VOCAB[:2], TENSORS[:1], version=2),
    "split.gguf": gguf([("split.no", 2, 0), ("split.count", 2, 1), ("split.tensors.count", 5, 1)], TENSORS[:1]),
    "second.gguf": gguf([("split.no", 2, 1), ("split.count", 2, 2), ("split.tensors.count", 5, 1)], []),
}


def main():
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gguf")
    os.makedirs(folder, exist_ok=True)
    for name, data in FILES.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
