#!/usr/bin/env python3
"""Writes tests/golden/dequant/<TYPE>.bin: raw blocks and the float32 values of the `gguf` package.

Layout, little endian: 8 bytes "SLDEQ001", u32 ggml_type, u32 n_blocks, u32 block_elems, u32 block_bytes,
n_blocks * block_bytes raw bytes, n_blocks * block_elems float32 values.

The blocks of a quantised type, in this order: all 0x00; all 0xff; one for each extreme value of the scale
fields (each field alone, the others plausible); 8 of uniform random bytes, scales included; the rest random
bytes under plausible scales. F16 and BF16 have one-element blocks: the extremes, then random bit patterns.
"""
import os
import struct
import warnings

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

MAGIC = b"SLDEQ001"
SEED = 20
# byte offsets of the float16 fields in a block
F16_FIELDS = {
    T.Q4_0: (0,), T.Q4_1: (0, 2), T.Q5_0: (0,), T.Q5_1: (0, 2), T.Q8_0: (0,),
    T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,),
    T.IQ4_NL: (0,), T.IQ4_XS: (0,), T.IQ2_XXS: (0,), T.IQ2_XS: (0,), T.IQ2_S: (0,),
    T.IQ3_XXS: (0,), T.IQ3_S: (0,),
}
# +inf, -inf, quiet NaN, signalling NaN with sign, smallest and largest denormal, max, -max, -0, 1
F16_EXTREME = (0x7C00, 0xFC00, 0x7E00, 0xFD01, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x8000, 0x3C00)
BF16_EXTREME = (0x7F80, 0xFF80, 0x7FC0, 0xFF81, 0x0001, 0x807F, 0x7F7F, 0xFF7F, 0x8000, 0x3F80, 0x0080)
E8M0_EXTREME = (0, 1, 2, 126, 127, 128, 253, 254, 255)
N_UNIFORM = 8
N_BLOCKS = 32


def put_f16(block, at, bits):
    block[at:at + 2] = np.array([bits], "<u2").view(np.uint8)


def plausible(rng, qtype, n_bytes):
    """Random quants under a scale as real files have them."""
    b = rng.integers(0, 256, n_bytes, dtype=np.uint8)
    if qtype == T.MXFP4:
        b[0] = rng.integers(110, 130)
    for at in F16_FIELDS.get(qtype, ()):
        scale = np.float16(rng.uniform(1e-4, 5e-2) * rng.choice((-1, 1)))
        put_f16(b, at, int(scale.view(np.uint16)))
    return b


def blocks_of(rng, qtype, n_bytes):
    out = [np.zeros(n_bytes, np.uint8), np.full(n_bytes, 255, np.uint8)]
    if qtype == T.MXFP4:
        for e in E8M0_EXTREME:
            out.append(plausible(rng, qtype, n_bytes))
            out[-1][0] = e
    for i, bits in enumerate(F16_EXTREME):
        fields = F16_FIELDS.get(qtype, ())
        if not fields:
            break
        for at in fields if i < 4 else fields[i % len(fields):][:1]:
            out.append(plausible(rng, qtype, n_bytes))
            put_f16(out[-1], at, bits)
    out += [rng.integers(0, 256, n_bytes, dtype=np.uint8) for _ in range(N_UNIFORM)]
    while len(out) < N_BLOCKS:
        out.append(plausible(rng, qtype, n_bytes))
    return np.stack(out)


def halves_of(rng, extreme):
    bits = np.concatenate([np.array(extreme, "<u2"), rng.integers(0, 65536, 1024 - len(extreme)).astype("<u2")])
    return bits.view(np.uint8).reshape(-1, 2)


def main():
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dequant")
    os.makedirs(folder, exist_ok=True)
    warnings.simplefilter("ignore")  # overflow and invalid are what the extreme blocks are for
    for qtype in [T.F16, T.BF16, T.MXFP4, *F16_FIELDS]:
        rng = np.random.default_rng([SEED, int(qtype)])
        elems, n_bytes = GGML_QUANT_SIZES[qtype]
        if elems == 1:
            blocks = halves_of(rng, F16_EXTREME if qtype == T.F16 else BF16_EXTREME)
        else:
            blocks = blocks_of(rng, qtype, n_bytes)
        with np.errstate(all="ignore"):
            values = np.ascontiguousarray(dequantize(blocks, qtype), "<f4").reshape(-1)
        assert values.size == len(blocks) * elems
        with open(os.path.join(folder, qtype.name + ".bin"), "wb") as f:
            f.write(MAGIC + struct.pack("<4I", int(qtype), len(blocks), elems, n_bytes))
            f.write(blocks.tobytes() + values.tobytes())
        finite = np.isfinite(values).mean()
        print(f"{qtype.name:8} type {int(qtype):2} {len(blocks):4} blocks of {elems:3} in {n_bytes:3} bytes, "
              f"{100 * finite:.1f} % finite")


if __name__ == "__main__":
    main()
