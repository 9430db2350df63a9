#!/usr/bin/env python3
"""What 8-bit activations cost, sluice beside llama.cpp: KL divergence and perplexity of a GGUF's logits.

Each program against itself with float activations: sluice by --activations f32, llama.cpp (llama-cpp-python) by a copy of
the file dequantised to F32 with the gguf package; and the two float runs against each other. TEXT may be a number: so many
random tokens. Windows of 256 tokens with an empty context. Development only: needs gguf, llama_cpp, numpy.

    check_kl.py MODEL.gguf TEXT|N [build/tools/sluice]

docs/learned.md has what it printed on 2026-11-22.
"""
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize
from llama_cpp import Llama

WINDOW = 256


def write_f32(source, target):
    r = GGUFReader(source)
    w = GGUFWriter(target, r.fields["general.architecture"].contents())
    for key, f in r.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, value = f.types[0], 0 if key == "general.file_type" else f.contents()
        w.add_key_value(key, value, kind, f.types[-1] if kind == GGUFValueType.ARRAY else None)
    for t in r.tensors:
        rows = dequantize(t.data, t.tensor_type).astype(np.float32)
        w.add_tensor(t.name, np.ascontiguousarray(rows.reshape([int(n) for n in reversed(t.shape)])))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def log_p(logits):
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def of_llama_cpp(path, ids):
    m = Llama(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)
    rows = []
    for at in range(0, len(ids), WINDOW):
        part = ids[at:at + WINDOW]
        m.reset()
        m.eval([int(i) for i in part])
        rows.append(np.array(m.scores[:len(part)], dtype=np.float32))
    return log_p(np.concatenate(rows))


def of_sluice(exe, path, ids, acts, folder):
    out = os.path.join(folder, "logits")
    subprocess.run([exe, "eval", "-m", path, "--tokens", ",".join(map(str, ids)), "-c", str(WINDOW), "--activations", acts,
                    "--logits", out], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return log_p(np.fromfile(out, dtype=np.float32).reshape(len(ids), -1))


def show(name, a, b, ids):
    kl = (np.exp(a) * (a - b)).sum(1)
    scored = np.array([i for i in range(len(ids) - 1) if (i + 1) % WINDOW])
    d = (a - b)[scored, ids[scored + 1]]
    print(f"{name:34} KL mean {kl.mean():.2e}, median {np.median(kl):.2e}; perplexity {100 * np.expm1(d.mean()):+.3f} % "
          f"+- {100 * d.std() / len(d) ** 0.5:.3f}")


def main():
    path, text = sys.argv[1:3]
    exe = sys.argv[3] if len(sys.argv) > 3 else "build/tools/sluice"
    if text.isdigit():
        n_vocab = Llama(path, vocab_only=True, verbose=False).n_vocab()
        ids = np.random.default_rng(1).integers(0, n_vocab, int(text))
    else:
        with open(text, encoding="utf-8") as f:
            out = subprocess.run([exe, "tokenize", "-m", path, "--no-bos", f.read(10000)], check=True, capture_output=True)
        ids = np.array([int(i) for i in re.findall(r"\d+", out.stdout.decode())])
    with tempfile.TemporaryDirectory() as folder:
        floats = os.path.join(folder, "f32.gguf")
        write_f32(path, floats)
        ours, fast = (of_sluice(exe, path, ids, acts, folder) for acts in ("f32", "q8"))
        theirs, their_fast = of_llama_cpp(floats, ids), of_llama_cpp(path, ids)
    show("sluice, 8 bits against floats:", ours, fast, ids)
    show("llama.cpp, 8 bits against floats:", theirs, their_fast, ids)
    show("floats, sluice against llama.cpp:", theirs, ours, ids)


main()
