/* kernels/cuda/attend.cu - attention over paged keys and values as they are stored, in float32: one
 * kernel for prefill and decode. A block has up to 32 queries (some neighbouring rows times some of
 * the heads that share a key head), 4 for each warp; it stages 64 keys at a time, a lane scores two
 * of them, and owns every 32nd element of the outputs. Online softmax (Milakov, Gimelshein 2018).
 * Positions may be cut into parts; their states are then merged. */
#include "kernels/cuda/blocks.cuh"

enum { KEYS = 64, DIMS = 32, VALUES = 64, QUERIES = 32, MINE = 4 };

struct attn_shared {
    union {
        struct {
            float k[KEYS][DIMS + 1];
            float4 q[DIMS][QUERIES / MINE];
        };
        float v[KEYS][VALUES];
    };
    float4 p[QUERIES / MINE][KEYS];     /* weights of a warp's queries */
    const char *k_row[KEYS], *v_row[KEYS];
};

__device__ __forceinline__ float lowest(void)
{
    return __uint_as_float(0xff800000);
}

/* ---- keys and values to memory ---- */

template <int T>
__global__ void append(sl_cuda_attn a, const float *k, const float *v)
{
    uint32_t row = blockIdx.x, pos = a.pos[row], lane = threadIdx.x % 32;
    bool is_v = blockIdx.y != 0;
    uint32_t n = a.n_head_kv * (is_v ? a.v_dim : a.k_dim);
    uint64_t at = (uint64_t)a.kv.blocks[(uint64_t)a.seq[row] * a.kv.table_stride
                                        + pos / a.kv.block_rows]
                  * a.kv.block_rows + pos % a.kv.block_rows;
    const float *x = (is_v ? v : k) + (uint64_t)row * n;
    char *to = is_v ? a.kv.v + at * a.kv.v_bytes : a.kv.k + at * a.kv.k_bytes;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        if (T == SL_F32) {
            ((float *)to)[i] = x[i];
        } else if (T == SL_F16) {
            ((uint16_t *)to)[i] = cu_to_half(x[i]);
        } else if (T == SL_BF16) {
            uint32_t u = __float_as_uint(x[i]), near = (u + 0x7fff + (u >> 16 & 1)) >> 16;
            ((uint16_t *)to)[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : near);
        } else {        /* a warp has the 32 elements of a block: n is a multiple of 32 */
            float size = fabsf(x[i]), bad = !(size <= 65504 * 127.0f), top = cu_warp_max(size);
            bad = cu_warp_max(bad);
            uint16_t h = bad != 0 ? 0x7e00 : cu_to_half(top / 127);
            float inv = bad != 0 || !h ? 0 : 1 / cu_from_half(h), f = bad != 0 ? 0 : x[i] * inv;
            char *block = to + i / 32 * 34;
            f = f > 127 ? 127 : f < -127 ? -127 : f;
            block[2 + lane] = (char)(int)rintf(f);
            if (lane == 0) *(uint16_t *)block = h;
        }
    }
}

int sl_cuda_append(void *stream, const sl_cuda_attn *a, const float *k, const float *v)
{
    if (!a->n_rows) return 0;
    dim3 grid(a->n_rows, a->kv.v_bytes ? 2 : 1);
    switch (a->kv.type) {
    case SL_F32: return CU_LAUNCH(append<SL_F32>, grid, 128, stream, *a, k, v);
    case SL_F16: return CU_LAUNCH(append<SL_F16>, grid, 128, stream, *a, k, v);
    case SL_BF16: return CU_LAUNCH(append<SL_BF16>, grid, 128, stream, *a, k, v);
    case SL_Q8_0: return CU_LAUNCH(append<SL_Q8_0>, grid, 128, stream, *a, k, v);
    default: return -1;
    }
}

/* ---- attention ---- */

/* Elements d .. d + 7 of a stored vector; those from dim on are 0. */
template <int T>
__device__ __forceinline__ void load_8(const char *row, uint32_t d, uint32_t dim, float *ret)
{
    if (T == SL_Q8_0) {
        const uint8_t *b = (const uint8_t *)row + d / 32 * 34;
        float f = cu_from_half(load_u16(b));
        uint32_t w[2] = { load_u32(b + 2 + d % 32), load_u32(b + 6 + d % 32) };
#pragma unroll
        for (int i = 0; i < 8; i++) ret[i] = d < dim ? f * byte_to_float(w[i / 4], i % 4) : 0;
        return;
    }
    const uint8_t *p = (const uint8_t *)row + (T == SL_F32 ? 4 : 2) * d;
    if (T != SL_F32 && d + 8 <= dim && !((uintptr_t)p & 15)) {
        uint4 v = *(const uint4 *)p;
        uint32_t w[4] = { v.x, v.y, v.z, v.w };
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint16_t h = (uint16_t)(w[i / 2] >> 16 * (i % 2));
            ret[i] = T == SL_F16 ? cu_from_half(h) : bf16_to_float(h);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) ret[i] = d + i < dim ? load_float<T>(p, (uint32_t)i) : 0;
}

/* What a block works on. */
struct task {
    uint32_t row, n_rows;       /* rows of the tile */
    uint32_t head, n_heads;     /* query heads of the tile */
    uint32_t kv_head;
};

__device__ __forceinline__ task find_task(const sl_cuda_attn &a, uint32_t heads_a_tile)
{
    uint32_t group = a.n_head / a.n_head_kv, cuts = (group + heads_a_tile - 1) / heads_a_tile;
    task t;
    t.row = blockIdx.x * a.rows_a_tile;
    t.n_rows = min(a.rows_a_tile, a.n_rows - t.row);
    t.kv_head = blockIdx.y / cuts;
    t.head = t.kv_head * group + blockIdx.y % cuts * heads_a_tile;
    t.n_heads = min(heads_a_tile, group - blockIdx.y % cuts * heads_a_tile);
    return t;
}

__device__ __forceinline__ uint32_t sees_from(const sl_cuda_attn &a, uint32_t pos)
{
    return a.window && pos + 1 > a.window ? pos + 1 - a.window : 0;
}

__device__ __forceinline__ uint64_t vector_bytes(sl_type type, uint32_t dim)
{
    return type == SL_F32 ? 4ull * dim : type == SL_Q8_0 ? dim / 32 * 34ull : 2ull * dim;
}

/* Where 64 keys from position `from` lie; NULL outside [lo, hi]. */
__device__ __forceinline__ void find_rows(const sl_cuda_attn &a, attn_shared *s, const task &t,
                                          uint32_t seq, uint32_t from, uint32_t lo, uint32_t hi)
{
    for (uint32_t i = threadIdx.x; i < KEYS; i += blockDim.x) {
        uint32_t pos = from + i;
        s->k_row[i] = s->v_row[i] = nullptr;
        if (pos < lo || pos > hi) continue;
        uint64_t at = (uint64_t)a.kv.blocks[(uint64_t)seq * a.kv.table_stride
                                            + pos / a.kv.block_rows]
                      * a.kv.block_rows + pos % a.kv.block_rows;
        s->k_row[i] = a.kv.k + at * a.kv.k_bytes + t.kv_head * vector_bytes(a.kv.type, a.k_dim);
        s->v_row[i] = a.kv.v_bytes ? a.kv.v + at * a.kv.v_bytes
                                         + t.kv_head * vector_bytes(a.kv.type, a.v_dim)
                                   : s->k_row[i];
    }
}

/* Scores of this warp's 4 queries on this lane's keys, lane and lane + 32. */
template <int T>
__device__ __forceinline__ void score(const sl_cuda_attn &a, attn_shared *s, const task &t,
                                      float (&ret)[MINE][2])
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < MINE; i++) ret[i][0] = ret[i][1] = 0;
    for (uint32_t d0 = 0; d0 < a.k_dim; d0 += DIMS) {
        __syncthreads();        /* what lay here has been read */
        for (uint32_t i = threadIdx.x; i < KEYS * DIMS / 8; i += blockDim.x) {
            uint32_t key = i / (DIMS / 8), d = i % (DIMS / 8) * 8;
            float v[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
            if (s->k_row[key] && d0 + d < a.k_dim) load_8<T>(s->k_row[key], d0 + d, a.k_dim, v);
#pragma unroll
            for (int e = 0; e < 8; e++) s->k[key][d + e] = v[e];
        }
        for (uint32_t i = threadIdx.x; i < DIMS * blockDim.x / 32 * MINE; i += blockDim.x) {
            uint32_t query = i / DIMS, d = i % DIMS, row = query / t.n_heads;
            float v = 0;
            if (row < t.n_rows && d0 + d < a.k_dim)
                v = a.q[((uint64_t)(t.row + row) * a.n_head + t.head + query % t.n_heads) * a.k_dim
                        + d0 + d];
            ((float *)&s->q[d][query / MINE])[query % MINE] = v;
        }
        __syncthreads();
#pragma unroll 8
        for (int d = 0; d < DIMS; d++) {
            float4 q = s->q[d][warp];
            float k0 = s->k[lane][d], k1 = s->k[lane + 32][d];
            ret[0][0] = fmaf(q.x, k0, ret[0][0]), ret[0][1] = fmaf(q.x, k1, ret[0][1]);
            ret[1][0] = fmaf(q.y, k0, ret[1][0]), ret[1][1] = fmaf(q.y, k1, ret[1][1]);
            ret[2][0] = fmaf(q.z, k0, ret[2][0]), ret[2][1] = fmaf(q.z, k1, ret[2][1]);
            ret[3][0] = fmaf(q.w, k0, ret[3][0]), ret[3][1] = fmaf(q.w, k1, ret[3][1]);
        }
    }
}

/* acc += p v for 64 keys. */
template <int T, int V>
__device__ __forceinline__ void add_values(const sl_cuda_attn &a, attn_shared *s,
                                           float (&acc)[MINE][V / 32])
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int c = 0; c < V / VALUES; c++) {
        if (c * VALUES >= (int)a.v_dim) break;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < KEYS * VALUES / 8; i += blockDim.x) {
            uint32_t key = i / (VALUES / 8), d = i % (VALUES / 8) * 8, at = c * VALUES + d;
            float v[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
            if (s->v_row[key] && at < a.v_dim) load_8<T>(s->v_row[key], at, a.v_dim, v);
#pragma unroll
            for (int e = 0; e < 8; e++) s->v[key][d + e] = v[e];
        }
        __syncthreads();
#pragma unroll 4
        for (int key = 0; key < KEYS; key++) {
            float4 p = s->p[warp][key];
            float v0 = s->v[key][lane], v1 = s->v[key][lane + 32];
            acc[0][2 * c] = fmaf(p.x, v0, acc[0][2 * c]);
            acc[0][2 * c + 1] = fmaf(p.x, v1, acc[0][2 * c + 1]);
            acc[1][2 * c] = fmaf(p.y, v0, acc[1][2 * c]);
            acc[1][2 * c + 1] = fmaf(p.y, v1, acc[1][2 * c + 1]);
            acc[2][2 * c] = fmaf(p.z, v0, acc[2][2 * c]);
            acc[2][2 * c + 1] = fmaf(p.z, v1, acc[2][2 * c + 1]);
            acc[3][2 * c] = fmaf(p.w, v0, acc[3][2 * c]);
            acc[3][2 * c + 1] = fmaf(p.w, v1, acc[3][2 * c + 1]);
        }
    }
}

/* Scores to weights, in this warp's p; m and l move on, acc is scaled to the new m. Query i is row
 * row_of[i] of the batch, or none; rows outside [first, end) see nothing here. */
template <int V>
__device__ __forceinline__ void soften(const sl_cuda_attn &a, attn_shared *s, uint32_t from,
                                       const uint32_t (&row_of)[MINE], uint32_t first, uint32_t end,
                                       const float (&x)[MINE][2], float (&m)[MINE],
                                       float (&l)[MINE], float (&acc)[MINE][V / 32])
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        bool there = row_of[i] >= first && row_of[i] < end;
        uint32_t pos = there ? a.pos[row_of[i]] : 0, lo = sees_from(a, pos);
        float v[2], p[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            uint32_t at = from + lane + 32 * e;
            v[e] = there && at >= lo && at <= pos ? x[i][e] * a.scale : lowest();
        }
        float top = fmaxf(m[i], cu_warp_max(fmaxf(v[0], v[1])));
        bool none = top == lowest();        /* nothing seen so far */
        float old = none ? 1 : expf(m[i] - top);
#pragma unroll
        for (int e = 0; e < 2; e++) p[e] = none ? 0 : expf(v[e] - top);
        l[i] = l[i] * old + cu_warp_sum(p[0] + p[1]);
        m[i] = top;
#pragma unroll
        for (int e = 0; e < V / 32; e++) acc[i][e] *= old;
#pragma unroll
        for (int e = 0; e < 2; e++) ((float *)&s->p[warp][lane + 32 * e])[i] = p[e];
    }       /* add_values waits for all before anybody reads p */
}

/* What a sink adds to l, and how much of what was there stays. */
__device__ __forceinline__ float end_factor(const float *sink, float m, float l)
{
    if (!sink) return 1 / l;
    float top = fmaxf(m, *sink), old = expf(m - top);
    return old / (l * old + expf(*sink - top));
}

template <int T, int V>
__global__ __launch_bounds__(256) void attend(sl_cuda_attn a, uint32_t heads_a_tile)
{
    CU_SHARED(attn_shared, s);
    task t = find_task(a, heads_a_tile);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, row_of[MINE];
    float m[MINE], l[MINE], acc[MINE][V / 32];
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        uint32_t row = (warp * MINE + i) / t.n_heads;
        row_of[i] = row < t.n_rows ? t.row + row : 0xffffffff;
        m[i] = lowest();
        l[i] = 0;
#pragma unroll
        for (int e = 0; e < V / 32; e++) acc[i][e] = 0;
    }
    for (uint32_t first = t.row, end; first < t.row + t.n_rows; first = end) {
        uint32_t seq = a.seq[first], lo = 0xffffffff, hi = 0;   /* rows [first, end) share it */
        for (end = first; end < t.row + t.n_rows && a.seq[end] == seq; end++) {
            lo = min(lo, sees_from(a, a.pos[end]));
            hi = max(hi, a.pos[end]);
        }
        uint32_t blocks = hi / KEYS - lo / KEYS + 1;
        uint32_t b = lo / KEYS + (uint32_t)((uint64_t)blocks * blockIdx.z / a.n_splits);
        uint32_t stop = lo / KEYS + (uint32_t)((uint64_t)blocks * (blockIdx.z + 1) / a.n_splits);
        for (; b < stop; b++) {
            float x[MINE][2];       /* add_values is behind its last look at s.v_row */
            find_rows(a, &s, t, seq, b * KEYS, lo, hi);
            score<T>(a, &s, t, x);
            soften<V>(a, &s, b * KEYS, row_of, first, end, x, m, l, acc);
            add_values<T, V>(a, &s, acc);
        }
    }
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        if (row_of[i] == 0xffffffff) continue;
        uint32_t head = t.head + (warp * MINE + i) % t.n_heads;
        uint64_t at = (uint64_t)row_of[i] * a.n_head + head;
        float f = 1, *to = a.att + at * a.v_dim;
        if (a.n_splits > 1) {
            to = a.part + (at * a.n_splits + blockIdx.z) * (a.v_dim + 2);
            if (lane == 0) to[0] = m[i], to[1] = l[i];
            to += 2;
        } else {
            f = end_factor(a.sinks ? a.sinks + head : nullptr, m[i], l[i]);
        }
#pragma unroll
        for (int e = 0; e < V / 32; e++)
            if (32 * e + lane < a.v_dim) to[32 * e + lane] = acc[i][e] * f;
    }
}

/* The parts of one row and head into one. */
__global__ void merge(sl_cuda_attn a)
{
    uint64_t at = (uint64_t)blockIdx.x * a.n_head + blockIdx.y;
    const float *part = a.part + at * a.n_splits * (a.v_dim + 2);
    float m = lowest(), l = 0;
    for (uint32_t i = 0; i < a.n_splits; i++) m = fmaxf(m, part[(uint64_t)i * (a.v_dim + 2)]);
    for (uint32_t i = 0; i < a.n_splits; i++) {
        const float *p = part + (uint64_t)i * (a.v_dim + 2);
        if (p[1] != 0) l += p[1] * expf(p[0] - m);
    }
    float f = end_factor(a.sinks ? a.sinks + blockIdx.y : nullptr, m, l);
    for (uint32_t d = threadIdx.x; d < a.v_dim; d += blockDim.x) {
        float sum = 0;
        for (uint32_t i = 0; i < a.n_splits; i++) {
            const float *p = part + (uint64_t)i * (a.v_dim + 2);
            if (p[1] != 0) sum += p[2 + d] * expf(p[0] - m);
        }
        a.att[at * a.v_dim + d] = sum * f;
    }
}

template <int T> static int start(void *stream, const sl_cuda_attn *a)
{
    uint32_t group = a->n_head / a->n_head_kv;
    uint32_t heads = SL_MIN(group, QUERIES / a->rows_a_tile), cuts = (group + heads - 1) / heads;
    uint32_t warps = (a->rows_a_tile * heads + MINE - 1) / MINE;
    dim3 grid((a->n_rows + a->rows_a_tile - 1) / a->rows_a_tile, a->n_head_kv * cuts, a->n_splits);
    if (a->v_dim <= 64) return CU_LAUNCH((attend<T, 64>), grid, 32 * warps, stream, *a, heads);
    if (a->v_dim <= 128) return CU_LAUNCH((attend<T, 128>), grid, 32 * warps, stream, *a, heads);
    return CU_LAUNCH((attend<T, 512>), grid, 32 * warps, stream, *a, heads);
}

int sl_cuda_attend(void *stream, const sl_cuda_attn *a)
{
    int err = -1;
    if (!a->n_rows) return 0;
    if (a->v_dim > 512 || !a->rows_a_tile || a->rows_a_tile > QUERIES || !a->n_splits) return -1;
    switch (a->kv.type) {
    case SL_F32: err = start<SL_F32>(stream, a); break;
    case SL_F16: err = start<SL_F16>(stream, a); break;
    case SL_BF16: err = start<SL_BF16>(stream, a); break;
    case SL_Q8_0: err = start<SL_Q8_0>(stream, a); break;
    default: break;
    }
    if (err || a->n_splits == 1) return err;
    return CU_LAUNCH(merge, dim3(a->n_rows, a->n_head), 128, stream, *a);
}
