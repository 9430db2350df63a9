/* kernels/cpu/f32_c.c - the float32 kernels for the build's baseline. */
#define KX_SET sl_f32_set_c
#include "kernels/cpu/f32_body.h"
