/* kernels/cuda/cu.cuh - what the kernels take from the hardware, behind thin functions: launches,
 * shared memory, float16, fragments of tensor cores, asynchronous copies. Compiled by nvcc; or,
 * with SL_CUDA_SHIM, for the CPU: then tests/cuda_shim.h came first and has defined all of this.
 * Private to kernels/cuda. */
#ifndef CU_CUH
#define CU_CUH

#include "kernels/cuda/sl_cuda.h"

#ifndef SL_CUDA_SHIM
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* Starts kernel(args) on blocks of threads; the value is the launch's error, 0 when it started. */
#define CU_LAUNCH(kernel, grid, block, stream, ...) \
    (kernel<<<grid, block, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__), (int)cudaGetLastError())
/* The one shared variable of a kernel; its content is undefined at first. */
#define CU_SHARED(type, name) __shared__ type name

__device__ __forceinline__ float cu_from_half(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}
__device__ __forceinline__ uint16_t cu_to_half(float x)
{
    return __half_as_ushort(__float2half_rn(x));
}
/* Two halves, lo in the low bits. */
__device__ __forceinline__ uint32_t cu_to_halves(float lo, float hi)
{
    __half2 h = __floats2half2_rn(lo, hi);
    return *(uint32_t *)&h;
}

/* Fragments, as the PTX manual lays them out over the 32 lanes (g = lane / 4, t = lane % 4):
 *   a, 16 rows by 16 of k: a[0] row g, k 2t and 2t + 1; a[1] row g + 8; a[2], a[3] those 8 k on
 *   b, 16 of k by 8 columns: b[0] k 2t and 2t + 1, column g; b[1] 8 k on
 *   c, 16 by 8: c[0], c[1] row g, columns 2t, 2t + 1; c[2], c[3] row g + 8
 * c += a b; products exact, sums in float32. */
__device__ __forceinline__ void cu_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int i = 0; i < 2; i++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

/* Four 8 x 8 matrices of halves: lanes 8i .. 8i + 7 give the addresses of matrix i's rows in
 * shared memory (16 bytes each, aligned); r[i] of a lane is row lane / 4, elements 2 (lane % 4)
 * and + 1. */
__device__ __forceinline__ void cu_ldmatrix(uint32_t r[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

/* 16 bytes to shared memory, zeros when !valid (`from` is then not read). The bytes are there after
 * cu_copies_done, for this thread. */
__device__ __forceinline__ void cu_copy16(void *to, const void *from, bool valid)
{
#if __CUDA_ARCH__ >= 800
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(at), "l"(from), "r"(bytes) : "memory");
#else
    uint4 v = make_uint4(0, 0, 0, 0);
    if (valid) v = *(const uint4 *)from;
    *(uint4 *)to = v;
#endif
}
__device__ __forceinline__ void cu_copies_done(void)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
#endif

#define CU_FULL 0xffffffffu     /* all lanes of a warp */

__device__ __forceinline__ float cu_warp_sum(float x)
{
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(CU_FULL, x, i);
    return x;
}

__device__ __forceinline__ float cu_warp_max(float x)
{
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(CU_FULL, x, i));
    return x;
}

__device__ __forceinline__ float cu_act(const sl_act a, float gate, float up)
{
    if (a.kind == SL_ACT_SILU) return gate / (1.0f + expf(-gate)) * up;
    if (a.kind == SL_ACT_GELU) {
        float u = 0.79788456f * (gate + 0.044715f * gate * gate * gate);
        return gate / (1.0f + expf(-2.0f * u)) * up;
    }
    float g = gate > a.limit ? a.limit : gate, u = up > a.limit ? a.limit : up;
    u = u < -a.limit ? -a.limit : u;
    return g / (1.0f + expf(-a.alpha * g)) * (u + 1.0f);
}

#endif
