/* offload/device_cpu.h - what the files of the cpu device share. Private to offload/.
 * device_cpu.c: memory, create, embed, head; cpu_matmul.c: products over the pool; cpu_attn.c: qkv,
 * attend, post; cpu_ffn.c: route, experts. Arithmetic is in kernels/; here it is cut into tasks. */
#ifndef DEVICE_CPU_H
#define DEVICE_CPU_H

#include "offload/sl_device.h"

/* Memory given out by `alloc`, so that destroy can free what is left. */
struct cpu_owned {
    struct cpu_owned *next;
    void *p;
};

typedef struct cpu_device {
    sl_device base;
    sl_ctx *ctx;
    sl_pool *pool;
    uint32_t n_threads, max_rows;
    sl_widths w;
    sl_kernels k;
    struct cpu_owned *owned;
    /* Scratch, taken at create. */
    float *cos, *sin;           /* [max_rows][n_rot / 2]: angles of the pass in flight */
    float *mla;                 /* [max_rows][w.mla] */
    float *router;              /* [max_rows][n_expert] */
    float *ff;                  /* [max_rows * ff_sum]: activations of the runs of one `experts` step */
    size_t ff_floats;
    uint32_t *tile_at;          /* [max_rows + 1] first row of each tile of attention */
    size_t *run_at;             /* [max_runs] where a run's activations start in ff */
    uint32_t *run_task;         /* [max_runs + 1] first task of a run */
    uint32_t max_runs;
    float *thread;              /* [n_threads][thread_floats] */
    size_t thread_floats;
} cpu_device;

enum { CPU_ATTN_ROWS = 8 };     /* rows of a sequence that share each key block they convert */

static inline float *cpu_scratch(const cpu_device *d, uint32_t thread)
{
    return d->thread + thread * d->thread_floats;
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

/* Rows [row, row + n), n <= SL_DOTS_TILE, of matrix c as float32: pointers into the file's bytes (F32),
 * or into buf [SL_DOTS_TILE][cols] after dequantising. */
void cpu_weight_rows(const cpu_device *d, const sl_mat *m, uint32_t c, uint32_t row, uint32_t n, float *buf,
                     const float **ret_rows);

/* sl_pool_run, but one task runs on the caller without waking anybody. */
void cpu_run(cpu_device *d, sl_task_fn fn, void *arg, uint32_t n_tasks);

/* fn on every row, some rows to a task; few rows run on the caller. */
void cpu_run_rows(cpu_device *d, sl_task_fn fn, void *arg, uint32_t n_rows);

/* Rows (a multiple of the tile) of a chunk, so that `rows` rows of `work` multiply-adds each make a few
 * tasks a thread, none of them tiny. */
uint32_t cpu_chunk(const cpu_device *d, uint64_t rows, uint64_t work);

/* Stages (sl_device.h). */
sl_status cpu_qkv(sl_device *dev, const sl_weights *w, const sl_layer *l, sl_batch *b);
sl_status cpu_attend(sl_device *dev, const sl_layer *l, const sl_kv_view *kv, sl_batch *b);
sl_status cpu_post(sl_device *dev, const sl_layer *l, sl_batch *b);
sl_status cpu_route(sl_device *dev, const sl_layer *l, const float *h, uint32_t n_rows,
                    uint32_t *ret_id, float *ret_w, float *ret_shared_w);
sl_status cpu_experts(sl_device *dev, const sl_layer *l, const sl_expert_run *runs, uint32_t n_runs,
                      bool last, sl_batch *b);

#endif
