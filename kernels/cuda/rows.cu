/* kernels/cuda/rows.cu - what happens to rows of activations between products. */
#include "kernels/cuda/cu.cuh"

enum { ROW_THREADS = 256 };

struct row_shared {
    float part[ROW_THREADS / 32];
};

/* Sum (or maximum) over the block, the same for every thread, in one order. */
__device__ __forceinline__ float block_sum(row_shared *s, float x)
{
    x = cu_warp_sum(x);
    __syncthreads();        /* the last use of part is over */
    if (threadIdx.x % 32 == 0) s->part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < ROW_THREADS / 32; i++) x += s->part[i];
    return x;
}

__device__ __forceinline__ float block_max(row_shared *s, float x)
{
    x = cu_warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s->part[threadIdx.x / 32] = x;
    __syncthreads();
    x = s->part[0];
    for (int i = 1; i < ROW_THREADS / 32; i++) x = fmaxf(x, s->part[i]);
    return x;
}

/* ---- activations for products ---- */

/* A warp for each group of G elements; the arithmetic of sl_quantise_c, bit for bit. */
template <int G>
__global__ void quantise(const float *x, uint64_t ldx, uint64_t step, uint32_t count, uint32_t n,
                         char *ret, uint64_t part_bytes, uint64_t scales, uint64_t sums)
{
    enum { E = G / 32 };
    uint32_t group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t row = blockIdx.y, c = blockIdx.z;
    if (group >= n / G) return;
    const float *from = x + row * ldx + c * step + group * G + lane * E;
    char *to = ret + (row * (uint64_t)count + c) * part_bytes;
    float v[E], top = 0, bad = 0;
#pragma unroll
    for (int i = 0; i < E; i++) {
        v[i] = from[i];
        float size = fabsf(v[i]);
        if (!(size <= 3.402823466e38f)) bad = 1;
        top = size > top ? size : top;
    }
    top = cu_warp_max(top);
    bad = cu_warp_max(bad);
    float inv = bad != 0 || top == 0 ? 0 : 127 / top;
    if (inv > 3.402823466e38f) inv = top = 0;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < E; i++) {
        int a = bad != 0 ? 0 : (int)rintf(v[i] * inv);
        ((int8_t *)to)[group * G + lane * E + i] = (int8_t)a;
        sum += (float)a;
    }
    for (uint32_t i = 1; i < 16 / E; i *= 2) sum += __shfl_xor_sync(CU_FULL, sum, (int)i);
    if (lane % (16 / E) == 0)
        ((int16_t *)(to + sums))[(group * G + lane * E) / 16] = (int16_t)sum;
    if (lane == 0)
        ((float *)(to + scales))[group] = bad != 0 ? __uint_as_float(0x7fc00000) : top / 127;
}

int sl_cuda_quantise(void *stream, uint32_t group, const float *x, uint64_t ldx, uint64_t step,
                     uint32_t n_rows, uint32_t count, uint32_t n, void *ret)
{
    dim3 grid((n / group + 3) / 4, n_rows, count);
    uint64_t bytes = sl_qx_bytes(group, n), scales = sl_qx_scales(n), sums = sl_qx_sums(group, n);
    if (!n_rows || !n) return 0;
    if (group == 32)
        return CU_LAUNCH(quantise<32>, grid, 128, stream, x, ldx, step, count, n, (char *)ret,
                         bytes, scales, sums);
    return CU_LAUNCH(quantise<256>, grid, 128, stream, x, ldx, step, count, n, (char *)ret, bytes,
                     scales, sums);
}

__global__ __launch_bounds__(ROW_THREADS) void halve(bool halves, const float *x, uint64_t ldx,
                                                     uint64_t step, uint32_t count, uint32_t n,
                                                     uint64_t pad, char *ret, uint64_t part_bytes)
{
    CU_SHARED(row_shared, s);
    uint32_t row = blockIdx.x, c = blockIdx.y;
    const float *from = x + row * ldx + c * step;
    uint16_t *to = (uint16_t *)(ret + (row * (uint64_t)count + c) * part_bytes);
    float top = 0, bad = 0;
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) {
        float size = fabsf(from[i]);
        if (!(size <= 3.402823466e38f)) bad = 1;
        top = size > top ? size : top;
    }
    top = block_max(&s, top);
    bad = block_max(&s, bad);
    /* The exponent of top moves to 13, as far as a float's range lets a power of two and its
     * inverse be normal. */
    int e = (int)(__float_as_uint(top) >> 23) - 127 - 13;
    e = bad != 0 || top == 0 ? 0 : min(max(e, -126), 126);
    float scale = __uint_as_float((uint32_t)(127 - e) << 23);
    for (uint32_t i = threadIdx.x; i < pad; i += ROW_THREADS) {
        float v = i < n ? from[i] * scale : 0;
        uint16_t h = cu_to_half(v);
        to[i] = h;
        if (halves) to[pad + i] = cu_to_half(bad != 0 ? 0 : v - cu_from_half(h));
    }
    if (threadIdx.x == 0)
        *(float *)(to + (halves ? 2 : 1) * pad) = __uint_as_float((uint32_t)(127 + e) << 23);
}

int sl_cuda_halve(void *stream, bool halves, const float *x, uint64_t ldx, uint64_t step,
                  uint32_t n_rows, uint32_t count, uint32_t n, void *ret)
{
    uint64_t bytes = halves ? sl_cuda_halves_bytes(n) : sl_cuda_half_bytes(n);
    if (!n_rows) return 0;
    return CU_LAUNCH(halve, dim3(n_rows, count), ROW_THREADS, stream, halves, x, ldx, step, count,
                     n, sl_cuda_half_pad(n), (char *)ret, bytes);
}

/* ---- norms ---- */

__device__ __forceinline__ float normed(const sl_norm &p, float x, float mean, float f, uint32_t i)
{
    float v = (x - mean) * f;
    if (p.weight) v *= p.weight[i];
    return p.bias ? v + p.bias[i] : v;
}

__device__ __forceinline__ void norm_row(const sl_norm &p, row_shared *s, const float *x, float *y,
                                         uint32_t n)
{
    float mean = 0, sum = 0;
    if (p.kind == SL_NORM_LAYER) {
        for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) sum += x[i];
        mean = block_sum(s, sum) / (float)n;
    }
    sum = 0;
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) {
        float v = x[i] - mean;
        sum = fmaf(v, v, sum);
    }
    float f = 1.0f / sqrtf(block_sum(s, sum) / (float)n + p.eps);
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS)
        y[i] = p.kind == SL_NORM_NONE ? x[i] : normed(p, x[i], mean, f, i);
}

__global__ __launch_bounds__(ROW_THREADS) void norm(sl_norm p, const float *x, uint64_t ldx,
                                                    const uint32_t *row, float *y, uint64_t ldy,
                                                    uint32_t n)
{
    CU_SHARED(row_shared, s);
    uint32_t j = blockIdx.x;
    norm_row(p, &s, x + (row ? row[j] : j) * ldx, y + j * ldy, n);
}

int sl_cuda_norm(void *stream, const sl_norm *p, const float *x, uint64_t ldx, const uint32_t *row,
                 float *y, uint64_t ldy, uint32_t n_rows, uint32_t n)
{
    if (!n_rows) return 0;
    return CU_LAUNCH(norm, n_rows, ROW_THREADS, stream, *p, x, ldx, row, y, ldy, n);
}

__global__ __launch_bounds__(ROW_THREADS) void add_norm(sl_norm p, float scale, float *x, float *y,
                                                        float *h, uint32_t n)
{
    CU_SHARED(row_shared, s);
    uint64_t at = (uint64_t)blockIdx.x * n;
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) {   /* norm_row has the same cut */
        x[at + i] += scale * y[at + i];
        y[at + i] = 0;
    }
    norm_row(p, &s, x + at, h + at, n);
}

int sl_cuda_add_norm(void *stream, const sl_norm *p, float scale, float *x, float *y, float *h,
                     uint32_t n_rows, uint32_t n)
{
    if (!n_rows) return 0;
    return CU_LAUNCH(add_norm, n_rows, ROW_THREADS, stream, *p, scale, x, y, h, n);
}

/* ---- elements ---- */

__global__ void combine(const float *out, const uint32_t *at, const uint32_t *slot,
                        const float *weight, float *y, float residual_scale, float *x, uint32_t n)
{
    uint32_t i = blockIdx.y * ROW_THREADS + threadIdx.x;
    uint64_t row = blockIdx.x, here = row * n + i;
    if (i >= n) return;
    float sum = y[here];
    for (uint32_t e = at[row]; e < at[row + 1]; e++)
        sum += (weight ? weight[e] : 1) * out[(uint64_t)slot[e] * n + i];
    y[here] = sum;
    if (x) x[here] += residual_scale * sum;
}

int sl_cuda_combine(void *stream, const float *out, const uint32_t *at, const uint32_t *slot,
                    const float *weight, float *y, float residual_scale, float *x, uint32_t n_rows,
                    uint32_t n)
{
    if (!n_rows) return 0;
    return CU_LAUNCH(combine, dim3(n_rows, (n + ROW_THREADS - 1) / ROW_THREADS), ROW_THREADS,
                     stream, out, at, slot, weight, y, residual_scale, x, n);
}

/* ---- positions ---- */

/* A warp turns n_rot elements from `from` into `to` (which may be the same). */
__device__ __forceinline__ void turn(sl_rope_kind kind, const float *c, const float *s,
                                     uint32_t n_rot, const float *from, float *to)
{
    uint32_t half = n_rot / 2;
    bool pairs = kind == SL_ROPE_PAIRS;
    for (uint32_t i = threadIdx.x % 32; i < half; i += 32) {
        uint32_t at = pairs ? 2 * i : i, other = at + (pairs ? 1 : half);
        float a = from[at], b = from[other];
        if (kind == SL_ROPE_NONE) {
            to[at] = a;
            to[other] = b;
        } else {
            to[at] = a * c[i] - b * s[i];
            to[other] = a * s[i] + b * c[i];
        }
    }
}

/* A warp's norm, in place. */
__device__ __forceinline__ void norm_head(const sl_norm &p, float *x, uint32_t n)
{
    uint32_t lane = threadIdx.x % 32;
    float mean = 0, sum = 0;
    if (p.kind == SL_NORM_LAYER) {
        for (uint32_t i = lane; i < n; i += 32) sum += x[i];
        mean = cu_warp_sum(sum) / (float)n;
    }
    sum = 0;
    for (uint32_t i = lane; i < n; i += 32) sum = fmaf(x[i] - mean, x[i] - mean, sum);
    float f = 1.0f / sqrtf(cu_warp_sum(sum) / (float)n + p.eps);
    for (uint32_t i = lane; i < n; i += 32) x[i] = normed(p, x[i], mean, f, i);
    __syncwarp();       /* other lanes turn what this one wrote */
}

__global__ void turn_heads(sl_cuda_heads p)
{
    uint32_t head = blockIdx.y * 4 + threadIdx.x / 32;
    uint64_t row = blockIdx.x, half = p.n_rot / 2;
    if (head >= p.n_q + p.n_k) return;
    bool is_q = head < p.n_q;
    float *x = is_q ? p.q + (row * p.n_q + head) * p.dim
                    : p.k + (row * p.n_k + head - p.n_q) * p.dim;
    sl_norm n = is_q ? p.q_norm : p.k_norm;
    if (n.kind != SL_NORM_NONE) norm_head(n, x, p.dim);
    turn(p.rope, p.cos + row * half, p.sin + row * half, p.n_rot, x, x);
}

int sl_cuda_turn_heads(void *stream, const sl_cuda_heads *h, uint32_t n_rows)
{
    if (!n_rows) return 0;
    return CU_LAUNCH(turn_heads, dim3(n_rows, (h->n_q + h->n_k + 3) / 4), 128, stream, *h);
}

__global__ void turn_mla(sl_cuda_mla p)
{
    uint32_t head = blockIdx.y * 4 + threadIdx.x / 32, width = p.latent + p.n_rot;
    uint64_t row = blockIdx.x, half = p.n_rot / 2;
    const float *c = p.cos + row * half, *s = p.sin + row * half;
    if (head > p.n_head) return;
    if (head == p.n_head) {
        float *k = p.k + row * width;
        if (p.k_norm.kind != SL_NORM_NONE) norm_head(p.k_norm, k, p.latent);
        turn(p.rope, c, s, p.n_rot, k + p.latent, k + p.latent);
        return;
    }
    const float *from = p.full + row * p.ld_full + head * (p.nope + p.n_rot) + p.nope;
    turn(p.rope, c, s, p.n_rot, from, p.q + (row * p.n_head + head) * width + p.latent);
}

int sl_cuda_turn_mla(void *stream, const sl_cuda_mla *m, uint32_t n_rows)
{
    if (!n_rows) return 0;
    return CU_LAUNCH(turn_mla, dim3(n_rows, m->n_head / 4 + 1), 128, stream, *m);
}
