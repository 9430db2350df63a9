/* kernels/cuda/many.cu - products with many activation rows, on tensor cores. A block computes 128
 * rows of weights (gated: 64 of gate and 64 of up, 16 by 16 in turns, so that a thread has both
 * halves of what it activates) by BN slots, 32 elements along k at a time. While one step is
 * multiplied, the next one's weights are on their way to registers, still in blocks, and its
 * activations to shared memory.
 * With quantised weights activations are rounded to float16, which costs less than the 8 bits that
 * the CPU gives them. With float weights they are two halves, and float32 weights are too: then two
 * or three products are added, and results are as good as float32's. */
#include "kernels/cuda/blocks.cuh"

enum { BM = 128, BK = 32, LD = BK + 8 };    /* LD: rows of 80 bytes, so that ldmatrix's 8 rows lie
                                             * in 8 different quarters of the banks */

/* Blocks of 256 threads at once that registers must do for. Two hide latency; sm_75, whose mma
 * takes half the k, would spill. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define LARGE_BLOCKS 1
#else
#define LARGE_BLOCKS 2
#endif

/* WM x WN warps, each with MI x 4 fragments of 16 weights by 8 slots. */
template <int T, int WM_, int WN_> struct shape {
    enum {
        WM = WM_, WN = WN_, MI = BM / 16 / WM_, BN = 32 * WN_, THREADS = 32 * WM_ * WN_,
        WP = T == SL_F32 ? 2 : 1,               /* halves of a weight, of an activation */
        XP = is_float(T) ? 2 : 1,
        STAGES = T == SL_F32 ? 1 : 2,           /* 48 KiB of shared memory hold no more */
        UNITS = BM * BK / 16 / THREADS,         /* of weights, for each thread and step */
        CHUNKS = BN * BK / 8 * XP / THREADS     /* 16 bytes of activations, likewise */
    };
    struct shared {
        alignas(16) uint16_t w[STAGES][WP][BM][LD];
        alignas(16) uint16_t x[STAGES][XP][BN][LD];
    };
};

/* A unit of weights on its way: blocks of quantised types, 16 floats, or 16 halves. */
template <int T> struct cargo {
    unit u;
};
template <> struct cargo<SL_F16> {
    uint32_t h[8];
};
template <> struct cargo<SL_BF16> {
    uint32_t h[8];
};
template <> struct cargo<SL_F32> {
    float f[16];
};

template <int T>
__device__ __forceinline__ void fetch(const uint8_t *row, uint32_t u, uint32_t n, cargo<T> *ret)
{
    if constexpr (T == SL_F32) {
        if (row) load_floats<T>(row, u, n, ret->f);
        else
            for (int i = 0; i < 16; i++) ret->f[i] = 0;
    } else if constexpr (is_float(T)) {
        const uint8_t *p = row + 32ull * u;
        if (row && 16 * u + 16 <= n && !((uintptr_t)p & 15)) {
            uint4 a = ((const uint4 *)p)[0], b = ((const uint4 *)p)[1];
            ret->h[0] = a.x, ret->h[1] = a.y, ret->h[2] = a.z, ret->h[3] = a.w;
            ret->h[4] = b.x, ret->h[5] = b.y, ret->h[6] = b.z, ret->h[7] = b.w;
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t at = 16 * u + 2 * i, lo = 0, hi = 0;
            if (row && at < n) lo = ((const uint16_t *)p)[2 * i];
            if (row && at + 1 < n) hi = ((const uint16_t *)p)[2 * i + 1];
            ret->h[i] = lo | hi << 16;
        }
    } else {
        if (row && 16 * u < n) {
            ret->u = load_unit<T>(row, u);
        } else {
            ret->u.q[0] = ret->u.q[1] = ret->u.q[2] = ret->u.q[3] = 0;
            ret->u.f = ret->u.m = 0;
        }
    }
}

/* Elements 2i, 2i + 1 of a unit as two halves. */
template <int T> __device__ __forceinline__ uint32_t two_halves(const cargo<T> *c, int i)
{
    if constexpr (T == SL_F16) return c->h[i];
    else if constexpr (T == SL_BF16)
        return cu_to_halves(bf16_to_float((uint16_t)c->h[i]),
                            bf16_to_float((uint16_t)(c->h[i] >> 16)));
    else if constexpr (T == SL_F32) return cu_to_halves(c->f[2 * i], c->f[2 * i + 1]);
    else
        return cu_to_halves(c->u.f * byte_to_float(c->u.q[i / 2], 2 * i % 4) - c->u.m,
                            c->u.f * byte_to_float(c->u.q[i / 2], 2 * i % 4 + 1) - c->u.m);
}

/* A unit to shared memory as halves; of float32 also what the first half's rounding left. */
template <int T>
__device__ __forceinline__ void unload(const cargo<T> *c, uint16_t *to, uint16_t *to_rest)
{
    uint32_t h[8];
#pragma unroll
    for (int i = 0; i < 8; i++) h[i] = two_halves<T>(c, i);
    ((uint4 *)to)[0] = make_uint4(h[0], h[1], h[2], h[3]);
    ((uint4 *)to)[1] = make_uint4(h[4], h[5], h[6], h[7]);
    if constexpr (T == SL_F32) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            h[i] = cu_to_halves(c->f[2 * i] - cu_from_half((uint16_t)h[i]),
                                c->f[2 * i + 1] - cu_from_half((uint16_t)(h[i] >> 16)));
        ((uint4 *)to_rest)[0] = make_uint4(h[0], h[1], h[2], h[3]);
        ((uint4 *)to_rest)[1] = make_uint4(h[4], h[5], h[6], h[7]);
    }
}

/* acc += one stage. */
template <class S>
__device__ __forceinline__ void multiply(const typename S::shared *s, int stage,
                                         float (&acc)[S::MI][4][4])
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, m = lane / 8, r = lane % 8;
    uint32_t w_row = warp % S::WM * 16 * S::MI + r + 8 * (m & 1), w_k = 8 * (m >> 1);
    uint32_t x_row = warp / S::WM * 32 + r + 8 * (m >> 1), x_k = 8 * (m & 1);
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
#pragma unroll
        for (int part = 0; part < S::WP + S::XP - 1; part++) {
            int wp = part == 2, xp = part == 1;     /* w x, w x', w' x */
            uint32_t a[S::MI][4], b[2][4];
#pragma unroll
            for (int i = 0; i < S::MI; i++)
                cu_ldmatrix(a[i], &s->w[stage][wp][w_row + 16 * i][w_k + k]);
#pragma unroll
            for (int j = 0; j < 2; j++)
                cu_ldmatrix(b[j], &s->x[stage][xp][x_row + 16 * j][x_k + k]);
#pragma unroll
            for (int i = 0; i < S::MI; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) cu_mma(acc[i][j], a[i], &b[j / 2][j % 2 * 2]);
        }
    }
}

/* Row of the matrix and which matrix, of row i of a block's 128. */
__device__ __forceinline__ uint32_t weight_row(bool gated, uint32_t i, uint32_t *ret_matrix)
{
    *ret_matrix = gated ? i / 16 % 2 : 0;
    return gated ? blockIdx.x * (BM / 2) + i / 32 * 16 + i % 16 : blockIdx.x * BM + i;
}

template <class S>
__device__ __forceinline__ void finish(const sl_cuda_product &p, const sl_cuda_run &run,
                                       uint32_t first, uint64_t pad, float (&acc)[S::MI][4][4])
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.z;
    uint64_t scale_at = 2 * S::XP * pad;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            uint32_t at = first + warp / S::WM * 32 + 8 * j + 2 * (lane % 4) + e;
            if (at >= run.n_slots) continue;
            uint32_t slot = run.first + at, x_row = p.x_row ? p.x_row[slot] : slot;
            float back = *(const float *)((const char *)p.x + x_row * p.x_bytes + c * p.x_step
                                          + scale_at);
            float *y = p.y + slot * p.ldy + c * p.y_step;
#pragma unroll
            for (int i = 0; i < S::MI; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t m, in_block = warp % S::WM * 16 * S::MI + 16 * i + 8 * half + lane / 4;
                    uint32_t r = weight_row(p.gated, in_block, &m);
                    if (r >= p.rows || m) continue;
                    uint64_t b = (uint64_t)c * p.rows + r;
                    float v = acc[i][j][2 * half + e] * back + (run.bias[0] ? run.bias[0][b] : 0);
                    if (p.gated) {          /* MI is even: i + 1 is the same row of up */
                        float up = acc[i + 1 < S::MI ? i + 1 : i][j][2 * half + e] * back;
                        y[r] = cu_act(p.act, v, up + (run.bias[1] ? run.bias[1][b] : 0));
                    } else {
                        y[r] = p.scale * v;
                    }
                }
        }
}

template <int T, int WM, int WN>
__global__ __launch_bounds__(32 * WM * WN, WN == 1 ? 1 : LARGE_BLOCKS)
void many(sl_cuda_product p, uint64_t pad)
{
    typedef shape<T, WM, WN> S;
    CU_SHARED(typename S::shared, s);
    sl_cuda_run run;
    uint32_t first = find_tile(&p, blockIdx.y, S::BN, &run), c = blockIdx.z;
    if (first >= run.n_slots) return;

    const uint8_t *w_row[S::UNITS];     /* NULL: beyond the matrix */
    uint32_t w_unit = threadIdx.x % 2;
#pragma unroll
    for (int i = 0; i < S::UNITS; i++) {
        uint32_t m, r = weight_row(p.gated, (threadIdx.x + i * S::THREADS) / 2, &m);
        const uint8_t *w = (const uint8_t *)(m ? run.w[1] : run.w[0]);
        w_row[i] = r < p.rows ? w + ((uint64_t)c * p.rows + r) * p.row_bytes : nullptr;
    }
    const char *x_at[S::CHUNKS];        /* NULL: beyond the run */
#pragma unroll
    for (int i = 0; i < S::CHUNKS; i++) {
        uint32_t chunk = threadIdx.x + i * S::THREADS, part = chunk / (S::BN * 4);
        uint32_t at = first + chunk / 4 % S::BN;
        uint32_t slot = run.first + (at < run.n_slots ? at : 0);
        const char *x = (const char *)p.x + (p.x_row ? p.x_row[slot] : slot) * p.x_bytes
                        + c * p.x_step + 2 * pad * part + chunk % 4 * 16;
        x_at[i] = at < run.n_slots ? x : nullptr;
    }

    cargo<T> w[S::UNITS];
    float acc[S::MI][4][4];
#pragma unroll
    for (int i = 0; i < S::MI; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0;

    uint32_t steps = (p.cols + BK - 1) / BK;
    for (uint32_t step = 0; step <= steps; step++) {
        int next = step % S::STAGES, now = S::STAGES == 2 ? (int)(step + 1) % 2 : 0;
        if (step < steps) {             /* what step `step` needs sets out */
#pragma unroll
            for (int i = 0; i < S::CHUNKS; i++) {
                uint32_t chunk = threadIdx.x + i * S::THREADS;
                if (S::STAGES == 2)
                    cu_copy16(&s.x[next][chunk / (S::BN * 4)][chunk / 4 % S::BN][chunk % 4 * 8],
                              x_at[i] ? x_at[i] + 2 * BK * step : (const char *)p.x,
                              x_at[i] != nullptr);
            }
#pragma unroll
            for (int i = 0; i < S::UNITS; i++)
                fetch<T>(w_row[i], step * (BK / 16) + w_unit, p.cols, &w[i]);
        }
        if (step) multiply<S>(&s, now, acc);
        if (step == steps) break;
        if (S::STAGES == 1) {           /* the only stage must have been read by all */
            __syncthreads();
#pragma unroll
            for (int i = 0; i < S::CHUNKS; i++) {
                uint32_t chunk = threadIdx.x + i * S::THREADS;
                cu_copy16(&s.x[0][chunk / (S::BN * 4)][chunk / 4 % S::BN][chunk % 4 * 8],
                          x_at[i] ? x_at[i] + 2 * BK * step : (const char *)p.x,
                          x_at[i] != nullptr);
            }
        }
#pragma unroll
        for (int i = 0; i < S::UNITS; i++) {
            uint32_t r = (threadIdx.x + i * S::THREADS) / 2;
            unload<T>(&w[i], &s.w[next][0][r][16 * w_unit],
                      &s.w[next][S::WP - 1][r][16 * w_unit]);
        }
        cu_copies_done();
        __syncthreads();
    }
    finish<S>(p, run, first, pad, acc);
}

bool sl_cuda_many_x(sl_type type, sl_cuda_x *ret)
{
    switch (type) {
#define CASE(t) case t: *ret = is_float(t) ? SL_CUDA_X_HALVES : SL_CUDA_X_HALF; return true;
    CU_TYPES(CASE)
#undef CASE
    default: return false;
    }
}

int sl_cuda_many(void *stream, const sl_cuda_product *p)
{
    uint32_t rows = p->gated ? BM / 2 : BM, x = (p->rows + rows - 1) / rows, z = p->count;
    uint64_t pad = sl_cuda_half_pad(p->cols);
    if (!p->rows || !p->n_slots || !z) return 0;
    if (p->most_slots <= 32) {
        dim3 grid(x, n_tiles(p, 32), z);
        switch (p->type) {
#define CASE(t) case t: return CU_LAUNCH((many<t, 4, 1>), grid, 128, stream, *p, pad);
        CU_TYPES(CASE)
#undef CASE
        default: return -1;
        }
    }
    dim3 grid(x, n_tiles(p, is_float(p->type) ? 64 : 128), z);
    switch (p->type) {
#define CASE(t) case t: return CU_LAUNCH((many<t, is_float(t) ? 4 : 2, is_float(t) ? 2 : 4>), \
                                         grid, 256, stream, *p, pad);
    CU_TYPES(CASE)
#undef CASE
    default: return -1;
    }
}
