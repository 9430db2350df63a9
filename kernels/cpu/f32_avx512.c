/* kernels/cpu/f32_avx512.c - the float32 kernels for AVX-512 F BW VL DQ. */
#define KX_SET sl_f32_set_avx512
#include "kernels/cpu/f32_body.h"
