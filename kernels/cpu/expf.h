/* kernels/cpu/expf.h - e^x and what follows from it, one float at a time, without a branch, so that
 * the compiler turns loops over them into vector code and every lane, tail and scalar use gives the
 * same bits. Error of kx_exp: 1.0 ulp at most over all floats (tests/t_kernels.c asks for 2).
 * Private to kernels/. */
#ifndef KX_EXPF_H
#define KX_EXPF_H

#include <stdint.h>
#include <string.h>

static inline float kx_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t kx_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* x = n ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + r + r^2 P(r), P a minimax fit of relative error
 * 3.1e-9. ln 2 is cut in two so that n * HI is exact. 2^n is multiplied in two steps, which reaches
 * the denormals and infinity. Below -104 the result is 0, above 89 infinity; NaN stays NaN. */
static inline float kx_exp(float x)
{
    const float round = 12582912.0f;                    /* 1.5 * 2^23: its last bit is worth 1 */
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float t = x * 0x1.715476p+0f + round;
    float n = t - round;
    float r = x - n * 0x1.62e4p-1f;                     /* 15 bits of ln 2 */
    r = r - n * 0x1.7f7d1cp-20f;
    float p = 0x1.6a2256p-10f;
    p = p * r + 0x1.123b02p-7f;
    p = p * r + 0x1.5558f8p-5f;
    p = p * r + 0x1.555490p-3f;
    p = p * r + 0x1.fffffcp-2f;
    float y = p * (r * r) + r + 1.0f;
    int32_t k = (int32_t)(kx_bits(t) - kx_bits(round));
    int32_t half = k >> 1;
    y *= kx_from_bits((uint32_t)(half + 127) << 23);
    return y * kx_from_bits((uint32_t)(k - half + 127) << 23);
}

static inline float kx_sigmoid(float x)
{
    return 1.0f / (1.0f + kx_exp(-x));
}

static inline float kx_silu(float x)
{
    return x / (1.0f + kx_exp(-x));
}

/* The tanh form: 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). */
static inline float kx_gelu(float x)
{
    float u = 0.79788456f * (x + 0.044715f * x * x * x);
    return x / (1.0f + kx_exp(-2.0f * u));
}

#endif
