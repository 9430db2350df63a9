/* kernels/cuda/pick.cu - the router: scores, groups, the best experts and their weights, a warp for
 * each row. Semantics and their sources: kernels/cpu/route.c, step for step; only sums over experts
 * have another order. */
#include "kernels/cuda/cu.cuh"

struct pick_shared {
    float score[SL_CUDA_EXPERTS];
    float sel[SL_CUDA_EXPERTS];     /* selection values; NaN: taken */
    float group[SL_CUDA_EXPERTS];
};

__device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

__device__ __forceinline__ float minus_infinity(void)
{
    return __uint_as_float(0xff800000);
}

__device__ __forceinline__ float taken(void)
{
    return __uint_as_float(0x7fc00000);
}

__device__ __forceinline__ bool is_nan(float x)
{
    return x != x;
}

/* Index of the largest value that is not NaN, the lowest on ties; the same for all lanes. */
__device__ __forceinline__ uint32_t best_of(const float *v, uint32_t n)
{
    uint32_t best = n;
    float top = 0;
    for (uint32_t i = threadIdx.x; i < n; i += 32)
        if (!is_nan(v[i]) && (best == n || v[i] > top)) best = i, top = v[i];
    for (int d = 16; d > 0; d /= 2) {
        uint32_t other = __shfl_xor_sync(CU_FULL, best, d);
        float value = __shfl_xor_sync(CU_FULL, top, d);
        bool wins = other < n && (best == n || value > top || (value == top && other < best));
        if (wins) best = other, top = value;
    }
    return best;
}

__device__ __forceinline__ void score_all(const sl_routing &r, const float *logits, float *score)
{
    uint32_t n = r.n_expert;
    float top = minus_infinity(), sum = 0;
    if (r.score == SL_SCORE_SOFTMAX) {
        for (uint32_t i = threadIdx.x; i < n; i += 32) top = logits[i] > top ? logits[i] : top;
        for (int d = 16; d > 0; d /= 2) {
            float other = __shfl_xor_sync(CU_FULL, top, d);
            top = other > top ? other : top;
        }
    }
    for (uint32_t i = threadIdx.x; i < n; i += 32) {
        float x = logits[i];
        if (r.score == SL_SCORE_SOFTMAX) x = expf(x - top);
        if (r.score == SL_SCORE_SIGMOID) x = sigmoid(x);
        if (r.score == SL_SCORE_SQRT_SOFTPLUS)
            x = sqrtf(x > 20 ? x : (float)log1p(exp((double)x)));
        score[i] = x;
        sum += x;
    }
    if (r.score != SL_SCORE_SOFTMAX) return;
    sum = cu_warp_sum(sum);
    for (uint32_t i = threadIdx.x; i < n; i += 32) score[i] /= sum;
}

/* What a group is worth: its largest value, or the sum of its two largest. */
__device__ __forceinline__ float group_value(const float *sel, uint32_t n, bool two)
{
    float a = minus_infinity(), b = a;
    for (uint32_t i = 0; i < n; i++) {
        if (sel[i] > a) b = a, a = sel[i];
        else if (sel[i] > b) b = sel[i];
    }
    float v = two && n > 1 ? a + b : a;
    return is_nan(v) ? minus_infinity() : v;
}

__device__ __forceinline__ void keep_groups(const sl_routing &r, float *sel, float *group)
{
    uint32_t per = r.n_expert / r.n_group;
    for (uint32_t i = threadIdx.x; i < r.n_group; i += 32)
        group[i] = group_value(sel + i * per, per, r.score != SL_SCORE_SOFTMAX);
    __syncwarp();
    for (uint32_t i = 0; i < r.n_group_used && i < r.n_group; i++) {
        uint32_t g = best_of(group, r.n_group);
        __syncwarp();
        if (threadIdx.x == 0) group[g] = taken();
        __syncwarp();
    }
    for (uint32_t i = threadIdx.x; i < r.n_expert; i += 32)
        if (!is_nan(group[i / per])) sel[i] = minus_infinity();
    __syncwarp();
}

/* Sparsemixer: softmax over the experts whose distance to the choice is within eps. */
__device__ __forceinline__ float mixer_weight(const sl_routing &r, const float *logits,
                                              const float *sel, uint32_t top)
{
    float sum = 0, best = logits[top];
    for (uint32_t i = threadIdx.x; i < r.n_expert; i += 32) {
        float least = fabsf(logits[i]) > best ? fabsf(logits[i]) : best;
        if (is_nan(sel[i]) || (best - logits[i]) / least > r.mixer_eps) continue;
        sum += expf(logits[i] - best);
    }
    return 1.0f / cu_warp_sum(sum);
}

/* Weights of the choices from their scores; n_used may exceed a warp. */
__device__ __forceinline__ void weigh(const sl_routing &r, const float *score, const uint32_t *id,
                                      float *w)
{
    float sum = 0, top = score[id[0]];
    for (uint32_t i = threadIdx.x; i < r.n_used; i += 32) {
        float v = score[id[i]];
        if (r.score == SL_SCORE_TOPK_SOFTMAX) v = expf(v - top);
        w[i] = v;
        sum += v;
    }
    sum = cu_warp_sum(sum);
    bool soft = r.score == SL_SCORE_TOPK_SOFTMAX;
    for (uint32_t i = threadIdx.x; i < r.n_used; i += 32)
        if (soft || r.normalise) w[i] /= soft ? sum : sum + 1e-20f;
}

__global__ __launch_bounds__(32) void pick(sl_routing r, const float *logits, uint32_t *ret_id,
                                           float *ret_w, float *shared)
{
    CU_SHARED(pick_shared, s);
    uint64_t row = blockIdx.x;
    uint32_t lane = threadIdx.x, n = r.n_expert;
    const float *l = logits + row * n;
    uint32_t *id = ret_id + row * r.n_used;
    float *w = ret_w + row * r.n_used;
    if (shared && lane == 0) shared[row] = sigmoid(shared[row]);
    score_all(r, l, s.score);
    for (uint32_t i = lane; i < n; i += 32) {   /* a lane's experts are its own so far */
        float v = r.sel_bias ? s.score[i] + r.sel_bias[i] : s.score[i];
        s.sel[i] = is_nan(v) ? minus_infinity() : v;
    }
    __syncwarp();
    if (r.n_group > 1) keep_groups(r, s.sel, s.group);
    for (uint32_t i = 0; i < r.n_used; i++) {
        uint32_t best = best_of(s.sel, n);
        float mixed = r.score == SL_SCORE_SPARSEMIXER ? mixer_weight(r, l, s.sel, best) : 0;
        __syncwarp();
        if (lane == 0) {
            id[i] = best;
            w[i] = mixed;
            s.sel[best] = taken();
        }
        __syncwarp();
    }
    if (r.score != SL_SCORE_SPARSEMIXER) weigh(r, s.score, id, w);
    __syncwarp();
    for (uint32_t i = lane; r.scale != 0 && i < r.n_used; i += 32) w[i] *= r.scale;
}

int sl_cuda_route(void *stream, const sl_routing *r, const float *logits, uint32_t n_rows,
                  uint32_t *ret_id, float *ret_w, float *shared)
{
    if (!n_rows) return 0;
    return CU_LAUNCH(pick, n_rows, 32, stream, *r, logits, ret_id, ret_w, shared);
}
