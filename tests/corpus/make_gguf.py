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
FILES = {
    "vocab.gguf": gguf(VOCAB, []),
    "types.gguf": gguf(ALL_TYPES, []),
    "tensors.gguf": gguf(VOCAB[:1] + [("general.alignment", 4, 64)], TENSORS, alignment=64),
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
