/* offload/device_cpu.h - what the files of the cpu device share. Private to offload/.
 * device_cpu.c: memory, create, embed, head; cpu_matmul.c: products over the pool; cpu_blas.c:
 * OpenBLAS; cpu_attn.c: qkv, attend, post; cpu_ffn.c: route, experts. Arithmetic is in kernels/;
 * here it is cut into tasks. */
#ifndef DEVICE_CPU_H
#define DEVICE_CPU_H

#include "offload/sl_device.h"

/* Memory given out by `alloc`, so that destroy can free what is left. */
struct cpu_owned {
    struct cpu_owned *next;
    void *p;
};

/* OpenBLAS, opened at run time. lib NULL: it is not used. */
typedef struct cpu_blas {
    void *lib;
    void (*sgemm)(void);        /* cblas_sgemm */
} cpu_blas;

/* Rows of activations: floats, or quantised in groups. */
typedef struct cpu_acts {
    const char *base;
    size_t stride;              /* bytes */
} cpu_acts;

typedef struct cpu_device {
    sl_device base;
    sl_ctx *ctx;
    sl_pool *pool;
    uint32_t n_threads, max_rows;
    sl_widths w;
    sl_kernels k;
    cpu_blas blas;
    struct cpu_owned *owned;
    /* Scratch, taken at create. */
    float *mla;                 /* [max_rows][w.mla] */
    float *router;              /* [max_rows][n_expert] */
    /* [max_rows * ff_sum]: activations of the runs of one `experts` step */
    float *ff;
    size_t ff_floats;
    uint32_t *tile_at;          /* [max_rows + 1] first row of each tile of attention */
    size_t *run_at;             /* [max_runs] where a run's activations start in ff */
    uint32_t *run_task;         /* [max_runs + 1] first task of a run */
    uint32_t max_runs;
    /* quantised activations: of a product's inputs, of the runs in ff */
    char *qx, *qff;
    size_t qx_bytes, qff_bytes;
    /* What of qx is the layer's h for `experts`, which may come in several calls: in groups of 32,
     * of 256. base NULL: not there. */
    cpu_acts h[2];
    size_t h_bytes;
    size_t *qff_at;             /* [max_runs] where a run's quantised activations start in qff */
    float *part;                /* [n_slots]: attention states of a row's heads on one span */
    uint32_t n_slots;
    float **thread;             /* [n_threads]: thread_floats each, touched by their thread first */
    size_t thread_floats, tile_floats;  /* tile_floats: of one tile of weights */
} cpu_device;

/* rows of a tile whose spans are shared out to threads at most */
enum { CPU_ATTN_SPLIT_ROWS = 8 };

/* Queries whose attention states a thread has room for, twice: a tile's on one KV head, or a
 * row's. */
static inline size_t cpu_attn_queries(const sl_widths *w)
{
    return SL_MAX((size_t)SL_ATTN_QUERIES, (size_t)w->n_head);
}

/* h changes, or something else goes into qx. */
static inline void cpu_forget_h(cpu_device *d)
{
    d->h[0].base = d->h[1].base = NULL;
    d->h_bytes = 0;
}

static inline float *cpu_scratch(const cpu_device *d, uint32_t thread)
{
    return d->thread[thread];
}

/* y[j][c][r] = scale * (mat[c] x[j][c] + bias[c]) for n rows j, mat->count matrices c:
 * x at x + j * ldx + c * xstep, y at y + j * ldy + c * ystep. */
typedef struct cpu_product {
    const sl_mat *mat;
    const float *x;
    float *y;
    size_t ldx, ldy, xstep, ystep;
    uint32_t n;
    float scale;
} cpu_product;

/* All products at once, cut into chunks of matrix rows. n <= 4. */
void cpu_multiply(cpu_device *d, const cpu_product *p, uint32_t n);

/* Some rows of a matrix, brought into the form in which they are multiplied: where they lie
 * (integer kernels, few activation rows), unpacked (integer kernels, many), or as floats (types
 * without integer kernels). Activation rows are quantised for the integer kernels, floats
 * otherwise: cpu_group says. */
enum {
    /* results of a call at most: rows of the tile times activation rows */
    CPU_TILE_FLOATS = 8192,
    CPU_TILE_X = 128,           /* activation rows of a call: a tile may be unpacked anew in each */
    CPU_BLAS_ROWS = 64,         /* rows of a tile that OpenBLAS multiplies */
    CPU_BLAS_MIN_X = 8          /* activation rows from which on it does */
};
_Static_assert(CPU_BLAS_ROWS * CPU_TILE_X <= CPU_TILE_FLOATS, "results of a call of OpenBLAS");
typedef struct cpu_tile {
    const sl_qmul *mul;         /* NULL: floats */
    const void *w;              /* rows where they lie, or NULL when unpacked */
    const void *packed;
    const float *rows[SL_DOTS_TILE];
    /* NULL: our own kernels; else [CPU_TILE_X][cols], and rows one after another from rows[0] on */
    float *gather;
    uint64_t row_bytes;
    uint32_t n, cols;
} cpu_tile;

/* Group of the quantised activations that a matrix is multiplied with; 0: floats. */
static inline uint32_t cpu_group(const cpu_device *d, const sl_mat *m)
{
    return d->k.qmul[m->type].group;
}

/* Rows that a tile of m holds at most when n_x activation rows come, and of which a task takes a
 * multiple. */
uint32_t cpu_tile_rows(const cpu_device *d, const sl_mat *m, uint32_t n_x);
uint32_t cpu_tile_grain(const cpu_device *d, const sl_mat *m, uint32_t n_x);
/* Rows [row, row + n) of matrix c of m, for n_x activation rows in all. buf: d->tile_floats
 * floats. */
void cpu_tile_load(const cpu_device *d, const sl_mat *m, uint32_t c, uint32_t row, uint32_t n,
                   uint32_t n_x, float *buf, cpu_tile *ret);
/* ret[j * ld + i] = row i times x[j]; any n_x. */
void cpu_tile_mul(const cpu_device *d, const cpu_tile *t, const void *const *x, uint32_t n_x,
                  float *ret, size_t ld);

/* OpenBLAS for tiles of floats; its threads are set to one, for the whole process. Its own buffers
 * belong to no account. Errors: SL_E_UNSUPPORTED (not built in, not installed). */
SL_NODISCARD sl_status cpu_blas_open(sl_ctx *ctx, cpu_blas *ret);
void cpu_blas_close(cpu_blas *b);
/* As cpu_tile_mul, n_x <= CPU_TILE_X, on a tile that has `gather`. */
void cpu_blas_mul(const cpu_blas *b, const cpu_tile *t, const void *const *x, uint32_t n_x,
                  float *ret, size_t ld);

/* Does OpenBLAS multiply m with n_x activation rows? */
static inline bool cpu_blas_takes(const cpu_device *d, const sl_mat *m, uint32_t n_x)
{
    return d->blas.lib && !cpu_group(d, m) && n_x >= CPU_BLAS_MIN_X;
}

/* Quantises n rows of cols floats at x + j * ldx into ret + j * sl_qx_bytes(group, cols), in
 * parallel. */
void cpu_quantise(cpu_device *d, uint32_t group, const float *x, size_t ldx, uint32_t cols,
                  uint32_t n, char *ret);

/* sl_pool_run, but one task runs on the caller without waking anybody. */
void cpu_run(cpu_device *d, sl_task_fn fn, void *arg, uint32_t n_tasks);

/* fn on every row, some rows to a task; few rows run on the caller. */
void cpu_run_rows(cpu_device *d, sl_task_fn fn, void *arg, uint32_t n_rows);

/* Rows (a multiple of unit) of a chunk, so that `rows` rows of `work` multiply-adds each make a few
 * tasks a thread, none of them tiny. */
uint32_t cpu_chunk(const cpu_device *d, uint64_t rows, uint64_t work, uint32_t unit);

/* Stages (sl_device.h). */
sl_status cpu_qkv(sl_device *dev, const sl_weights *w, const sl_layer *l, sl_batch *b);
sl_status cpu_attend(sl_device *dev, const sl_layer *l, const sl_kv_view *kv, sl_batch *b);
sl_status cpu_post(sl_device *dev, const sl_layer *l, sl_batch *b);
sl_status cpu_route(sl_device *dev, const sl_layer *l, const float *h, uint32_t n_rows,
                    uint32_t *ret_id, float *ret_w, float *ret_shared_w);
sl_status cpu_experts(sl_device *dev, const sl_layer *l, const sl_expert_run *runs, uint32_t n_runs,
                      unsigned ends, sl_batch *b);

#endif
