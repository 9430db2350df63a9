/* kernels/cuda/sl_cuda.h - the CUDA kernels: arithmetic on buffers in a GPU's memory.
 * Owns nothing; every call starts kernels on the caller's stream and returns at once. Holds no
 * policy: which kernel, how many rows, what lies where is the caller's.
 * Must not allocate, copy, wait or log. Threads: as the CUDA runtime: any. Units: elements, bytes.
 * `stream` is a cudaStream_t. Every call returns the cudaError_t of its launch, 0 when it started.
 * Pointers are to device memory unless said otherwise. Matrices start at addresses that are
 * multiples of 16 (GGUF aligns them to 32), their rows where row_bytes puts them.
 * Numbers: the same call on the same data gives the same bits. No kernel reads or writes past what
 * its parameters describe, but for the other bytes of aligned words of 4 that it needs a byte of.
 * Tested by tests/t_cuda_kernels.c: the very sources, compiled for the CPU by tests/cuda_shim.h,
 * against kernels/cpu; on a GPU by tests/gpu/run.sh. */
#ifndef SL_CUDA_H
#define SL_CUDA_H

#include "kernels/sl_ops.h"
#include "kernels/sl_quant.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- products ----
 * y[slot][r] = scale * (W x[slot] + bias), or act(gate x + bias, up x + bias) of gated products.
 * Slots are rows of y; a run is one expert (or dense) matrix on some slots that follow each other.
 * Both kernels take the same description:
 *   few    reads weights once for at most 4 slots of a run at a time: for few slots, at the speed
 *          of memory. Quantised weights are multiplied by 8-bit activations with the integer
 *          formula of kernels/sl_quant.h (sums in another order), float weights by floats.
 *   many   tensor cores, 128 rows of weights by 32, 64 or 128 slots: weights become float16 on
 *          their way (float32 ones two of them), activations were made float16 by sl_cuda_halve
 *          (two of them for float weights). Weights beyond 65504 in size become infinite. */
typedef struct sl_cuda_run {
    const void *w[2];           /* gate or the only one; up or NULL */
    const float *bias[2];       /* [rows], or NULL */
    uint32_t first, n_slots;    /* slots [first, first + n_slots) of y */
} sl_cuda_run;

typedef enum sl_cuda_x {
    SL_CUDA_X_FLOAT,    /* floats: few, with float weights */
    SL_CUDA_X_QUANT,    /* rows of sl_qx_bytes (kernels/sl_quant.h): few, with quantised weights */
    SL_CUDA_X_HALF,     /* rows of sl_cuda_half_bytes: many, with quantised weights */
    SL_CUDA_X_HALVES    /* rows of sl_cuda_halves_bytes: many, with float weights */
} sl_cuda_x;

typedef struct sl_cuda_product {
    sl_type type;
    uint32_t rows, cols;        /* of one matrix */
    uint64_t row_bytes;
    const sl_cuda_run *runs;    /* [n_runs], first ascending; NULL: `one` is the only run */
    sl_cuda_run one;
    uint32_t n_runs;
    uint32_t n_slots;           /* of all runs */
    uint32_t most_slots;        /* of the longest run: `few` reads weights once when it is 1 */
    uint32_t count;             /* matrices behind each other (MLA); 1 otherwise */
    const uint32_t *x_row;      /* [n_slots] row of x of a slot; NULL: the slot */
    const void *x;
    uint64_t x_bytes, x_step;   /* bytes from row to row, from matrix to matrix */
    float *y;
    uint64_t ldy, y_step;       /* floats from slot to slot, from matrix to matrix */
    float scale;                /* not for gated runs */
    bool gated;
    sl_act act;
} sl_cuda_product;

/* What x must be. SL_N_TYPES entries; false: no kernel for the type. */
bool sl_cuda_few_x(sl_type type, sl_cuda_x *ret);
bool sl_cuda_many_x(sl_type type, sl_cuda_x *ret);
int sl_cuda_few(void *stream, const sl_cuda_product *p);
int sl_cuda_many(void *stream, const sl_cuda_product *p);

/* Rows of x for products: n_rows rows of `count` parts of n elements, part c of row j at
 * x + j * ldx + c * step, to ret, part after part. A part takes sl_qx_bytes(group, n), or what the
 * functions below say: float16 elements padded with zeros to a multiple of 64, times a power of two
 * that makes the largest 2^13 to 2^14; then that power's inverse; `halves` has what the rounding
 * left as a second vector. Rows with infinity or NaN are not scaled. */
int sl_cuda_quantise(void *stream, uint32_t group, const float *x, uint64_t ldx, uint64_t step,
                     uint32_t n_rows, uint32_t count, uint32_t n, void *ret);
int sl_cuda_halve(void *stream, bool halves, const float *x, uint64_t ldx, uint64_t step,
                  uint32_t n_rows, uint32_t count, uint32_t n, void *ret);
static inline uint64_t sl_cuda_half_pad(uint32_t n) { return ((uint64_t)n + 63) / 64 * 64; }
static inline uint64_t sl_cuda_half_bytes(uint32_t n) { return 2 * sl_cuda_half_pad(n) + 16; }
static inline uint64_t sl_cuda_halves_bytes(uint32_t n) { return 4 * sl_cuda_half_pad(n) + 16; }

/* ---- rows ---- */

/* y[j] = norm(x[row ? row[j] : j]), n elements; y may be x. */
int sl_cuda_norm(void *stream, const sl_norm *norm, const float *x, uint64_t ldx,
                 const uint32_t *row, float *y, uint64_t ldy, uint32_t n_rows, uint32_t n);
/* x += scale * y; h = norm(x); y = 0. Rows of n floats. */
int sl_cuda_add_norm(void *stream, const sl_norm *norm, float scale, float *x, float *y, float *h,
                     uint32_t n_rows, uint32_t n);
/* y[row] += sum over e in [at[row], at[row + 1]) of weight[e] * out[slot[e]], in that order; then,
 * when x is not NULL, x[row] += residual_scale * y[row]. weight NULL: 1. Rows of n floats. */
int sl_cuda_combine(void *stream, const float *out, const uint32_t *at, const uint32_t *slot,
                    const float *weight, float *y, float residual_scale, float *x, uint32_t n_rows,
                    uint32_t n);
/* Per head of q and k: norm over dim (kind SL_NORM_NONE: none), then rope on the first n_rot. */
typedef struct sl_cuda_heads {
    float *q, *k;               /* [n_rows][n_q * dim], [n_rows][n_k * dim] */
    uint32_t n_q, n_k, dim;
    sl_norm q_norm, k_norm;
    sl_rope_kind rope;
    uint32_t n_rot;
    const float *cos, *sin;     /* [n_rows][n_rot / 2] */
} sl_cuda_heads;
int sl_cuda_turn_heads(void *stream, const sl_cuda_heads *h, uint32_t n_rows);

/* MLA. The key [latent | rope] in place: norm over the first `latent`, rope on the last n_rot. Each
 * query head's last n_rot of `full` [n_head][nope + n_rot] go behind its latent part in q
 * [n_head][latent + n_rot], turned. */
typedef struct sl_cuda_mla {
    float *k, *q;
    const float *full;
    uint64_t ld_full;           /* floats from row to row of full */
    uint32_t n_head, nope, latent, n_rot;
    sl_norm k_norm;
    sl_rope_kind rope;
    const float *cos, *sin;
} sl_cuda_mla;
int sl_cuda_turn_mla(void *stream, const sl_cuda_mla *m, uint32_t n_rows);

/* ---- router ---- */

/* As sl_route_row for each row of logits [n_rows][n_expert]; r->sel_bias is device memory;
 * n_expert <= SL_CUDA_EXPERTS. shared NULL, or [n_rows]: shared = sigmoid(shared). */
enum { SL_CUDA_EXPERTS = 1024 };
int sl_cuda_route(void *stream, const sl_routing *r, const float *logits, uint32_t n_rows,
                  uint32_t *ret_id, float *ret_w, float *shared);

/* ---- attention ---- */

/* sl_kv_view whose tables are device memory: blocks[seq * table_stride + position / block_rows]. */
typedef struct sl_cuda_kv {
    char *k, *v;
    uint64_t k_bytes, v_bytes;
    const uint32_t *blocks;
    uint32_t table_stride, block_rows;
    sl_type type;
} sl_cuda_kv;

typedef struct sl_cuda_attn {
    sl_cuda_kv kv;
    uint32_t n_head, n_head_kv, k_dim, v_dim, window;
    float scale;
    const float *sinks;
    const uint32_t *seq, *pos;  /* [n_rows] */
    const float *q;             /* [n_rows][n_head][k_dim] */
    float *att;                 /* [n_rows][n_head][v_dim] */
    uint32_t n_rows;
    uint32_t rows_a_tile;       /* neighbouring rows that share the keys they read: 1 to 32; rows of
                                 * a tile may be of different sequences, which costs time only */
    uint32_t n_splits;          /* the positions a tile sees, cut into so many parts at once */
    float *part;                /* [sl_cuda_attn_part] when n_splits > 1 */
} sl_cuda_attn;

static inline uint64_t sl_cuda_attn_part(uint32_t n_rows, uint32_t n_head, uint32_t v_dim,
                                         uint32_t n_splits)
{
    return (uint64_t)n_rows * n_head * n_splits * (v_dim + 2ull);
}

/* Rows' keys and values into memory: k [n_rows][n_head_kv * k_dim], v alike (unused when v_bytes is
 * 0). Then attention of every row over positions up to its own. v_dim <= 512; Q8_0: multiples of
 * 32. */
int sl_cuda_append(void *stream, const sl_cuda_attn *a, const float *k, const float *v);
int sl_cuda_attend(void *stream, const sl_cuda_attn *a);

#ifdef __cplusplus
}
#endif
#endif
