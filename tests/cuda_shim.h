/* tests/cuda_shim.h - enough of CUDA to compile kernels/cuda as C++ and run it on the CPU.
 * Included before a .cu file by tests/cuda_shim_unit.cpp. A launch runs its blocks one after
 * another; the threads of a block are fibers, each of which runs until it waits for its warp or its
 * block. Odd blocks run their warps and lanes backwards, so that a missing barrier shows in one or
 * the other; shared memory ends on an unmapped page and is filled with NaN before each block; an
 * asynchronous copy is made when it is waited for, not before. Threads that wait for different
 * things, or for one that has ended, end the program with a message.
 * Fragments of tensor cores are those of the PTX manual (mma.m16n8k16, ldmatrix); products are
 * summed in double and rounded once, hardware is a little worse. */
#ifndef CUDA_SHIM_H
#define CUDA_SHIM_H
#define SL_CUDA_SHIM 1

#include "kernels/cpu/half.h"
#include "tests/cuda_shim_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define __device__
#define __host__
#define __global__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct uint4 { uint32_t x, y, z, w; } __attribute__((aligned(16)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return uint4{ x, y, z, w };
}

#define threadIdx shim_now.thread
#define blockIdx shim_now.block
#define blockDim shim_now.block_dim
#define gridDim shim_now.grid_dim

static inline int min(int a, int b) { return a < b ? a : b; }
static inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

static inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline uint32_t __funnelshift_r(uint32_t lo, uint32_t hi, uint32_t n)
{
    return (uint32_t)(((uint64_t)hi << 32 | lo) >> (n & 31));
}
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t pick)
{
    uint64_t all = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++, pick >>= 4) {
        uint32_t byte = (uint32_t)(all >> 8 * (pick & 7)) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << 8 * i;
    }
    return r;
}
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}

static inline void __syncthreads() { shim_wait(SHIM_BLOCK, NULL, 0); }
static inline void __syncwarp() { shim_wait(SHIM_WARP, NULL, 0); }
template <class V> static inline V __shfl_sync(uint32_t mask, V v, int lane)
{
    static_assert(sizeof(V) == 4, "words");
    shim_shuffle s = { 0, lane & 31, 0, mask };
    memcpy(&s.value, &v, 4);
    shim_wait(SHIM_SHUFFLE, &s, 0);
    memcpy(&v, &s.got, 4);
    return v;
}
template <class V> static inline V __shfl_xor_sync(uint32_t mask, V v, int bits)
{
    return __shfl_sync(mask, v, (int)(shim_now.thread.x % 32) ^ bits);
}
template <class V> static inline V __shfl_down_sync(uint32_t mask, V v, int n)
{
    int lane = (int)(shim_now.thread.x % 32);
    return __shfl_sync(mask, v, lane + n < 32 ? lane + n : lane);
}
static inline uint32_t __ballot_sync(uint32_t mask, int yes)
{
    shim_shuffle s = { (uint32_t)(yes != 0), 0, 0, mask };
    shim_wait(SHIM_BALLOT, &s, 0);
    return s.got;
}

#define CU_SHARED(type, name) type &name = *(type *)shim_shared(sizeof(type))

static inline float cu_from_half(uint16_t h) { return sl_f16_to_f32(h); }
static inline uint16_t cu_to_half(float x) { return sl_f32_to_f16(x); }
static inline uint32_t cu_to_halves(float lo, float hi)
{
    return sl_f32_to_f16(lo) | (uint32_t)sl_f32_to_f16(hi) << 16;
}
static inline void cu_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    shim_mma m = { c, a, b };
    shim_wait(SHIM_MMA, &m, 0);
}
static inline void cu_ldmatrix(uint32_t r[4], const void *row)
{
    shim_matrix m = { r, row };
    shim_wait(SHIM_LDMATRIX, &m, 0);
}
static inline void cu_copy16(void *to, const void *from, bool valid)
{
    shim_copy16(to, valid ? from : NULL);
}
static inline void cu_copies_done() { shim_copies_done(); }

/* A launch: the call with its arguments, kept until the stream comes to it. */
template <class F> struct shim_call {
    F f;
    static void run(void *p) { ((shim_call *)p)->f(); }
};
template <class F> static inline int shim_launch(dim3 grid, dim3 block, void *stream, F f)
{
    shim_call<F> call = { f };
    unsigned g[3] = { grid.x, grid.y, grid.z }, b[3] = { block.x, block.y, block.z };
    return shim_submit(stream, g, b, shim_call<F>::run, &call, sizeof call);
}
#define CU_LAUNCH(kernel, grid, block, stream, ...) \
    shim_launch(grid, block, stream, shim_bind(kernel, __VA_ARGS__))
template <class K, class... A> static inline auto shim_bind(K k, A... a)
{
    return [=]() { k(a...); };
}

#endif
