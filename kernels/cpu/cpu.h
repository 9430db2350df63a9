/* kernels/cpu/cpu.h - what the files of kernels/cpu share: the functions that fill a kernel table.
 * Private to kernels/cpu. */
#ifndef KX_CPU_H
#define KX_CPU_H

#include "kernels/sl_kernels.h"

void sl_f32_set_c(sl_kernels *k);       /* float32 kernels of f32_body.h, for the baseline */
void sl_f32_set_avx2(sl_kernels *k);    /* the same compiled for AVX2 and F16C */
void sl_f32_set_avx512(sl_kernels *k);  /* the same compiled for AVX-512 F BW VL DQ */

#endif
