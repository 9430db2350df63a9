/* kernels/cpu/cpu.h - what the files of kernels/cpu share: the sets of kernels, and how they are
 * filled.
 * A file compiled per set (f32.c, dequant*.c; see meson.build) is compiled with KX_SET = c, avx2 or
 * avx512 and that ISA's flags; KX_NAME puts the set at the end of its public names. Private to
 * kernels/cpu. */
#ifndef KX_CPU_H
#define KX_CPU_H

#include "kernels/sl_kernels.h"

#define KX_NAME(name, set) KX_JOIN(name, set)
#define KX_JOIN(name, set) name##_##set

/* float32 kernels: f32.c */
void sl_f32_set_c(sl_kernels *k);
void sl_f32_set_avx2(sl_kernels *k);
void sl_f32_set_avx512(sl_kernels *k);
/* attention: attn.c */
void sl_attn_set_c(sl_kernels *k);
void sl_attn_set_avx2(sl_kernels *k);
void sl_attn_set_avx512(sl_kernels *k);
/* dequantisers: dequant_set.c */
void sl_dequant_set_c(sl_kernels *k);
void sl_dequant_set_avx2(sl_kernels *k);
void sl_dequant_set_avx512(sl_kernels *k);

#endif
