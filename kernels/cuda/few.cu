/* kernels/cuda/few.cu - products with few activation rows: a warp for each row of weights, lanes
 * take every 32nd unit of 16 elements, and each unit serves all slots of the tile. */
#include "kernels/cuda/blocks.cuh"

enum { FEW_WARPS = 4 };

/* Where a quantised row of activations has its scales and sums. */
typedef struct qx_offsets {
    uint64_t scales, sums;
} qx_offsets;

/* One row of weights times NX activation rows: this lane's share of the sums. */
template <int T, int NX>
__device__ __forceinline__ void row_share(const uint8_t *row, uint32_t cols, qx_offsets at,
                                          const char *const (&x)[NX], float (&acc)[NX])
{
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < NX; j++) acc[j] = 0;
    if constexpr (is_float(T)) {
        for (uint32_t u = lane; u < (cols + 15) / 16; u += 32) {
            float w[16];
            load_floats<T>(row, u, cols, w);
            uint32_t n = min(cols - 16 * u, 16u);
#pragma unroll
            for (int j = 0; j < NX; j++) {
                const float *v = (const float *)x[j] + 16 * u;
#pragma unroll
                for (int i = 0; i < 16; i++)
                    if (i < (int)n) acc[j] = fmaf(w[i], v[i], acc[j]);
            }
        }
    } else {
#pragma unroll 2
        for (uint32_t u = lane; u < cols / 16; u += 32) {
            unit w = load_unit<T>(row, u);
#pragma unroll
            for (int j = 0; j < NX; j++) {
                uint4 a = ((const uint4 *)x[j])[u];
                int dot = __dp4a((int)w.q[0], (int)a.x, 0);
                dot = __dp4a((int)w.q[1], (int)a.y, dot);
                dot = __dp4a((int)w.q[2], (int)a.z, dot);
                dot = __dp4a((int)w.q[3], (int)a.w, dot);
                float v = w.f * (float)dot;
                if (has_mins(T)) v -= w.m * (float)((const int16_t *)(x[j] + at.sums))[u];
                acc[j] = fmaf(((const float *)(x[j] + at.scales))[u * 16 / group_of(T)], v, acc[j]);
            }
        }
    }
}

template <int T, int NX> __global__ __launch_bounds__(32 * FEW_WARPS) void few(sl_cuda_product p,
                                                                            qx_offsets at)
{
    uint32_t r = blockIdx.x * FEW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t c = blockIdx.z;
    sl_cuda_run run;
    uint32_t first = find_tile(&p, blockIdx.y, NX, &run);
    if (r >= p.rows || first >= run.n_slots) return;
    const char *x[NX];
    uint32_t nx = min(run.n_slots - first, (uint32_t)NX);
#pragma unroll
    for (int j = 0; j < NX; j++) {      /* what is not there is the first again, and dropped */
        uint32_t slot = run.first + first + (j < (int)nx ? j : 0);
        x[j] = (const char *)p.x + (p.x_row ? p.x_row[slot] : slot) * p.x_bytes + c * p.x_step;
    }
    float sum[2][NX];
    uint64_t row = (uint64_t)c * p.rows + r;
#pragma unroll
    for (int m = 0; m < 2; m++) {
        if (m && !p.gated) break;
        row_share<T, NX>((const uint8_t *)run.w[m] + row * p.row_bytes, p.cols, at, x,
                         sum[m]);
        float bias = run.bias[m] ? run.bias[m][row] : 0;
#pragma unroll
        for (int j = 0; j < NX; j++) sum[m][j] = cu_warp_sum(sum[m][j]) + bias;
    }
#pragma unroll
    for (int j = 0; j < NX; j++) {
        if (j >= (int)nx || (int)lane != j) continue;
        float v = p.gated ? cu_act(p.act, sum[0][j], sum[1][j]) : p.scale * sum[0][j];
        p.y[(run.first + first + j) * p.ldy + c * p.y_step + r] = v;
    }
}

bool sl_cuda_few_x(sl_type type, sl_cuda_x *ret)
{
    switch (type) {
#define CASE(t) case t: *ret = is_float(t) ? SL_CUDA_X_FLOAT : SL_CUDA_X_QUANT; return true;
    CU_TYPES(CASE)
#undef CASE
    default: return false;
    }
}

int sl_cuda_few(void *stream, const sl_cuda_product *p)
{
    uint32_t x = (p->rows + FEW_WARPS - 1) / FEW_WARPS, z = p->count;
    qx_offsets at = { sl_qx_scales(p->cols), sl_qx_sums((uint32_t)group_of(p->type), p->cols) };
    if (!p->rows || !p->n_slots || !z) return 0;
    if (p->most_slots == 1) {
        dim3 grid(x, n_tiles(p, 1), z);
        switch (p->type) {
#define CASE(t) case t: return CU_LAUNCH((few<t, 1>), grid, 32 * FEW_WARPS, stream, *p, at);
        CU_TYPES(CASE)
#undef CASE
        default: return -1;
        }
    }
    dim3 grid(x, n_tiles(p, 4), z);
    switch (p->type) {
#define CASE(t) case t: return CU_LAUNCH((few<t, 4>), grid, 32 * FEW_WARPS, stream, *p, at);
    CU_TYPES(CASE)
#undef CASE
    default: return -1;
    }
}
