#!/usr/bin/env python3
"""Writes kernels/cpu/grids.c: the codebooks of the IQ2 and IQ3 types, from the packed ones of the `gguf` package.

A row of a codebook has 8 (IQ2) or 4 (IQ3) magnitudes and fits 16 bits: 2 bits an element for IQ2 (3 levels),
4 bits for IQ3 (8 levels), element 0 lowest. The levels themselves stand in kernels/cpu/dequant_iq.c.
Usage: make_grids.py > kernels/cpu/grids.c
"""
from importlib.metadata import version

import numpy as np
from gguf import quants

TABLES = [("iq2_xxs", quants.IQ2_XXS), ("iq2_xs", quants.IQ2_XS), ("iq2_s", quants.IQ2_S),
          ("iq3_xxs", quants.IQ3_XXS), ("iq3_s", quants.IQ3_S)]


def rows_of(cls):
    cls.init_grid()
    grid = cls.grid.reshape(cls.grid_shape)
    bits = 16 // cls.grid_shape[1]
    levels = {float(v): i for i, v in enumerate(cls.grid_map)}
    return [sum(levels[float(v)] << (bits * i) for i, v in enumerate(row)) for row in grid]


def main():
    print("/* kernels/cpu/grids.c - codebooks of the IQ2 and IQ3 types, packed 16 bits a row.")
    print(f" * Made by kernels/tables/make_grids.py from gguf {version('gguf')}; do not edit. */")
    print('#include "kernels/cpu/dequant.h"')
    for name, cls in TABLES:
        rows = np.array(rows_of(cls))
        print(f"\nconst uint16_t sl_grid_{name}[{len(rows)}] = {{")
        for i in range(0, len(rows), 12):
            print("    " + " ".join(f"0x{r:04x}," for r in rows[i:i + 12]))
        print("};")


if __name__ == "__main__":
    main()
