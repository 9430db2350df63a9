/* kernels/cpu/f32_avx2.c - the float32 kernels for -mavx2 -mf16c. */
#define KX_SET sl_f32_set_avx2
#include "kernels/cpu/f32_body.h"
