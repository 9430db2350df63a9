/* kernels/cuda/blocks.cuh - weights as files store them, 16 elements of a row at a time.
 * Quantised types: a unit has 16 signed bytes q, and element i is f * q[i] - m (m is 0 where the
 * type has no minima); f and m are exact products of a float16 and a small integer. Layouts:
 * kernels/cpu/dequant.c. Float types: 16 floats.
 * Private to kernels/cuda. */
#ifndef BLOCKS_CUH
#define BLOCKS_CUH

#include "kernels/cuda/cu.cuh"

__host__ __device__ constexpr bool is_float(int type)
{
    return type == SL_F32 || type == SL_F16 || type == SL_BF16;
}

/* G of kernels/sl_quant.h. */
__host__ __device__ constexpr int group_of(int type)
{
    return type == SL_Q4_K || type == SL_Q5_K || type == SL_Q6_K ? 256 : 32;
}

__host__ __device__ constexpr bool has_mins(int type)
{
    return type == SL_Q4_K || type == SL_Q5_K;
}

typedef struct unit {
    uint32_t q[4];
    float f, m;
} unit;

/* 4 bytes at any address, in aligned words; none is read that has no byte of the 4. */
__device__ __forceinline__ uint32_t load_u32(const uint8_t *p)
{
    uint32_t off = (uint32_t)(uintptr_t)p & 3;
    const uint32_t *w = (const uint32_t *)(p - off);
    uint32_t lo = w[0], hi = off ? w[1] : 0;
    return __funnelshift_r(lo, hi, 8 * off);
}

/* 16 bytes, likewise. */
__device__ __forceinline__ void load_16(const uint8_t *p, uint32_t *ret)
{
    uint32_t off = (uint32_t)(uintptr_t)p & 3, w[5];
    const uint32_t *at = (const uint32_t *)(p - off);
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = at[i];
    w[4] = off ? at[4] : 0;
#pragma unroll
    for (int i = 0; i < 4; i++) ret[i] = __funnelshift_r(w[i], w[i + 1], 8 * off);
}

__device__ __forceinline__ uint16_t load_u16(const uint8_t *p)      /* p even */
{
    return *(const uint16_t *)p;
}

/* Scale and minimum of group g (0 .. 7) in the 12 bytes of Q4_K and Q5_K. */
__device__ __forceinline__ void scale_k4(const uint8_t *p, int g, int *s, int *m)
{
    int j = g & 3, a = p[j], b = p[4 + j], c = p[8 + j];
    *s = g < 4 ? a & 63 : (c & 15) | a >> 6 << 4;
    *m = g < 4 ? b & 63 : c >> 4 | b >> 6 << 4;
}

/* Four 4-bit floats (the low nibbles of w's bytes) to bytes: 0, 1, 2, 3, 4, 6, 8, 12 with sign. */
__device__ __forceinline__ uint32_t e2m1(uint32_t w)
{
    w &= 0x0f0f0f0f;
    uint32_t pairs = w | w >> 4, pick = __byte_perm(pairs, 0, 0x4420) & 0x7777;
    uint32_t plus = __byte_perm(0x03020100, 0x0c080604, pick);
    uint32_t minus = __byte_perm(0xfdfeff00, 0xf4f8fafc, pick);
    uint32_t sign = (w >> 3 & 0x01010101) * 255;
    return (minus & sign) | (plus & ~sign);
}

/* Unit u of a row: elements 16u .. 16u + 15. */
template <int T> __device__ __forceinline__ unit load_unit(const uint8_t *row, uint32_t u)
{
    unit r;
    r.m = 0;
    if (T == SL_Q4_0) {
        const uint8_t *b = row + u / 2 * 18ull;
        r.f = cu_from_half(load_u16(b));
        load_16(b + 2, r.q);
#pragma unroll
        for (int i = 0; i < 4; i++)     /* q - 8: no byte carries into the next */
            r.q[i] = ((r.q[i] >> 4 * (u & 1) & 0x0f0f0f0f) + 0x78787878) ^ 0x80808080;
    } else if (T == SL_Q8_0) {
        const uint8_t *b = row + u / 2 * 34ull;
        r.f = cu_from_half(load_u16(b));
        load_16(b + 2 + 16 * (u & 1), r.q);
    } else if (T == SL_MXFP4) {
        const uint8_t *b = row + u / 2 * 17ull;
        uint32_t e = b[0];      /* 2^(e - 128), half of the type's scale: the bytes are doubled */
        r.f = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        load_16(b + 1, r.q);
#pragma unroll
        for (int i = 0; i < 4; i++) r.q[i] = e2m1(r.q[i] >> 4 * (u & 1));
    } else if (T == SL_Q4_K || T == SL_Q5_K) {
        const uint8_t *b = row + u / 16 * (T == SL_Q4_K ? 144ull : 176ull);
        uint32_t g = u / 2 % 8, side = 16 * (u & 1), d = *(const uint32_t *)b;
        int s, m;
        scale_k4(b + 4, (int)g, &s, &m);
        r.f = cu_from_half((uint16_t)d) * (float)s;
        r.m = cu_from_half((uint16_t)(d >> 16)) * (float)m;
        uint4 v = *(const uint4 *)(b + (T == SL_Q4_K ? 16 : 48) + 32 * (g / 2) + side);
        uint32_t q[4] = { v.x, v.y, v.z, v.w };
#pragma unroll
        for (int i = 0; i < 4; i++) r.q[i] = q[i] >> 4 * (g & 1) & 0x0f0f0f0f;
        if (T == SL_Q5_K) {
            uint4 h = *(const uint4 *)(b + 16 + side);
            uint32_t five[4] = { h.x, h.y, h.z, h.w };
#pragma unroll
            for (int i = 0; i < 4; i++) r.q[i] |= (five[i] >> g & 0x01010101) << 4;
        }
    } else if (T == SL_Q6_K) {
        const uint8_t *b = row + u / 16 * 210ull;
        uint32_t g = u % 16, half = g / 8, run = g / 2 % 4, side = 16 * (g & 1), h[4];
        r.f = cu_from_half(load_u16(b + 208)) * (float)(int8_t)b[192 + g];
        load_16(b + 64 * half + 32 * (run & 1) + side, r.q);
        load_16(b + 128 + 32 * half + side, h);
#pragma unroll
        for (int i = 0; i < 4; i++) {   /* q - 32 */
            uint32_t q = (r.q[i] >> 4 * (run / 2) & 0x0f0f0f0f)
                         | (h[i] >> 2 * run & 0x03030303) << 4;
            r.q[i] = (q + 0x60606060) ^ 0x80808080;
        }
    }
    return r;
}

/* Byte i of w, as signed, to float: 2^23 + (byte + 128) has the byte in its low bits. */
__device__ __forceinline__ float byte_to_float(uint32_t w, int i)
{
    uint32_t bits = __byte_perm(w ^ 0x80808080, 0x4b000000, 0x7440 + i);
    return __uint_as_float(bits) - 8388736.0f;
}

__device__ __forceinline__ float bf16_to_float(uint16_t h)
{
    return __uint_as_float((uint32_t)h << 16);
}

template <int T> __device__ __forceinline__ float load_float(const uint8_t *row, uint32_t i)
{
    if (T == SL_F32) return ((const float *)row)[i];
    uint16_t h = ((const uint16_t *)row)[i];
    return T == SL_F16 ? cu_from_half(h) : bf16_to_float(h);
}

/* Elements 16u .. of a row of n as floats; those from n on are 0. n is a multiple of 16 for
 * quantised types. */
template <int T>
__device__ __forceinline__ void load_floats(const uint8_t *row, uint32_t u, uint32_t n, float *ret)
{
    if (!is_float(T)) {
        unit r = load_unit<T>(row, u);
#pragma unroll
        for (int i = 0; i < 16; i++) ret[i] = r.f * byte_to_float(r.q[i / 4], i % 4) - r.m;
        return;
    }
    const uint8_t *p = row + (T == SL_F32 ? 64ull : 32ull) * u;
    if (16 * u + 16 > n || ((uintptr_t)p & 15)) {
#pragma unroll
        for (int i = 0; i < 16; i++)
            ret[i] = 16 * u + i < n ? load_float<T>(p, (uint32_t)i) : 0;
    } else if (T == SL_F32) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 v = ((const float4 *)p)[i];
            ret[4 * i] = v.x;
            ret[4 * i + 1] = v.y;
            ret[4 * i + 2] = v.z;
            ret[4 * i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint4 v = ((const uint4 *)p)[i];
            uint32_t w[4] = { v.x, v.y, v.z, v.w };
#pragma unroll
            for (int e = 0; e < 8; e++) {
                uint16_t h = (uint16_t)(w[e / 2] >> 16 * (e % 2));
                ret[8 * i + e] = T == SL_F16 ? cu_from_half(h) : bf16_to_float(h);
            }
        }
    }
}

/* X(type) for each type that products know. */
#define CU_TYPES(X) \
    X(SL_F32) X(SL_F16) X(SL_BF16) X(SL_Q4_0) X(SL_Q8_0) X(SL_MXFP4) X(SL_Q4_K) X(SL_Q5_K) \
    X(SL_Q6_K)

/* The run of `few` and `many` that tile `tile` belongs to, when each run's tiles of `step` slots
 * start at first / step + index: room for all of them, whatever the lengths. Returns the slot at
 * which the tile starts, relative to the run's first; beyond its end there is nothing to do. */
__device__ __forceinline__ uint32_t find_tile(const sl_cuda_product *p, uint32_t tile,
                                              uint32_t step, sl_cuda_run *ret)
{
    if (!p->runs) {
        *ret = p->one;
        return tile * step;
    }
    uint32_t lo = 0, hi = p->n_runs;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if (p->runs[mid].first / step + mid <= tile) lo = mid;
        else hi = mid;
    }
    *ret = p->runs[lo];
    return (tile - ret->first / step - lo) * step;
}

/* Tiles that a grid needs for find_tile. */
static inline uint32_t n_tiles(const sl_cuda_product *p, uint32_t step)
{
    return p->runs ? p->n_slots / step + p->n_runs : (p->n_slots + step - 1) / step;
}

#endif
