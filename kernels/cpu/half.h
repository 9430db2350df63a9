/* kernels/cpu/half.h - private to kernels: float16 and bfloat16 to and from float32, one number. */
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

/* To nearest, ties to even: adding 0.5 lets the float adder round denormal halves (0.5's last bit
 * is 2^-24), normal ones round by integer arithmetic. 65520 and above is infinity. */
static inline uint16_t sl_f32_to_f16(float x)
{
    union { float f; uint32_t u; } v = { .f = x }, tiny;
    uint32_t sign = v.u >> 16 & 0x8000, a = v.u & 0x7fffffff;
    /* exponent bias 127 -> 15 */
    uint32_t normal = (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
    tiny.u = a;
    tiny.f += 0.5f;
    uint32_t h = a < 0x38800000 ? tiny.u - 0x3f000000 : normal;
    h = a >= 0x477ff000 ? 0x7c00 : h;
    h = a > 0x7f800000 ? 0x7e00 : h;
    return (uint16_t)(h | sign);
}

/* To nearest, ties to even; NaN stays NaN. */
static inline uint16_t sl_f32_to_bf16(float x)
{
    union { float f; uint32_t u; } v = { .f = x };
    uint32_t near = (v.u + 0x7fff + (v.u >> 16 & 1)) >> 16;
    return (uint16_t)((v.u & 0x7fffffff) > 0x7f800000 ? v.u >> 16 | 0x40 : near);
}

static inline float sl_bf16_to_f32(uint16_t h)
{
    union { uint32_t u; float f; } r = { .u = (uint32_t)h << 16 };
    return r.f;
}

#endif
