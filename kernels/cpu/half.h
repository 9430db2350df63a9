/* kernels/cpu/half.h - private to kernels: one float16 or bfloat16 number to float32. */
#ifndef HALF_H
#define HALF_H

#include <stdint.h>

/* Exact; NaN payloads kept. Selections are masks, so that loops vectorise: a normal number moves
 * its exponent by 112, a denormal is mag * 2^-24, found as (0.5 + mag ulps of 0.5) - 0.5. */
static inline float sl_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7fff;
    union { uint32_t u; float f; } small = { .u = 0x3f000000 + mag }, r;
    small.f -= 0.5f;
    uint32_t is_small = -(uint32_t)(mag < 0x400), is_inf = -(uint32_t)(mag >= 0x7c00);
    uint32_t normal = ((mag << 13) + 0x38000000) | (is_inf & 0x7f800000);
    r.u = sign | (small.u & is_small) | (normal & ~is_small);
    return r.f;
}

static inline float sl_bf16_to_f32(uint16_t h)
{
    union { uint32_t u; float f; } r = { .u = (uint32_t)h << 16 };
    return r.f;
}

#endif
