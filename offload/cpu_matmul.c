/* offload/cpu_matmul.c - matrix products of the cpu device: rows of weights dequantised into a
 * thread's scratch, four at a time, and multiplied with every row of activations.
 * One output element is one `dots` sum, so its bits do not depend on the cut. */
#include "offload/device_cpu.h"

#include <assert.h>

void cpu_run(cpu_device *d, sl_task_fn fn, void *arg, uint32_t n_tasks)
{
    if (n_tasks == 1)
        fn(arg, 0, 0);
    else if (n_tasks > 1)
        sl_pool_run(d->pool, fn, arg, n_tasks);
}

enum { ROWS_A_TASK = 8 };

struct rows {
    sl_task_fn fn;
    void *arg;
    uint32_t n;
};

static void rows_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct rows *r = arg;
    uint32_t end = SL_MIN((index + 1) * ROWS_A_TASK, r->n);
    for (uint32_t row = index * ROWS_A_TASK; row < end; row++) r->fn(r->arg, row, thread);
}

void cpu_run_rows(cpu_device *d, sl_task_fn fn, void *arg, uint32_t n_rows)
{
    struct rows r = { fn, arg, n_rows };
    cpu_run(d, rows_task, &r, (n_rows + ROWS_A_TASK - 1) / ROWS_A_TASK);
}

uint32_t cpu_chunk(const cpu_device *d, uint64_t rows, uint64_t work)
{
    const uint64_t min_work = 32768;    /* about 5 us; waking a thread costs about as much */
    uint64_t tasks = d->n_threads == 1 ? 1 : 4 * (uint64_t)d->n_threads;
    uint64_t chunk = (rows + tasks - 1) / tasks;
    chunk = SL_MAX(chunk, min_work / SL_MAX(work, 1));
    chunk = (chunk + SL_DOTS_TILE - 1) / SL_DOTS_TILE * SL_DOTS_TILE;
    return (uint32_t)SL_MIN(SL_MAX(chunk, SL_DOTS_TILE), (uint64_t)1 << 30);
}

void cpu_weight_rows(const cpu_device *d, const sl_mat *m, uint32_t c, uint32_t row, uint32_t n, float *buf,
                     const float **ret_rows)
{
    const char *data = (const char *)m->data + ((uint64_t)c * m->rows + row) * m->row_bytes;
    for (uint32_t i = 0; i < n; i++, data += m->row_bytes) {
        if (m->type == SL_F32) {
            ret_rows[i] = (const float *)(const void *)data;
            continue;
        }
        float *to = buf + (size_t)i * m->cols;
        d->k.dequant[m->type](data, to, m->cols);
        ret_rows[i] = to;
    }
}

struct multiply {
    cpu_device *d;
    const cpu_product *p;
    uint32_t n;
    uint32_t chunk[4], per[4], first[5];    /* rows of a chunk, chunks of a matrix, first task */
};

/* Rows [row, row + n) of matrix c, against all activation rows. */
static void multiply_tile(const cpu_device *d, const cpu_product *p, uint32_t c, uint32_t row, uint32_t n,
                          float *buf)
{
    const float *w[SL_DOTS_TILE], *x[SL_DOTS_TILE];
    float out[SL_DOTS_TILE * SL_DOTS_TILE];
    const float *bias = p->mat->bias ? p->mat->bias + (size_t)c * p->mat->rows + row : NULL;
    cpu_weight_rows(d, p->mat, c, row, n, buf, w);
    for (uint32_t j = 0; j < p->n; j += SL_DOTS_TILE) {
        uint32_t nx = SL_MIN(p->n - j, (uint32_t)SL_DOTS_TILE);
        for (uint32_t e = 0; e < nx; e++) x[e] = p->x + (j + e) * p->ldx + c * p->xstep;
        d->k.dots(w, n, x, nx, p->mat->cols, out);
        for (uint32_t e = 0; e < nx; e++) {
            float *y = p->y + (j + e) * p->ldy + c * p->ystep + row;
            for (uint32_t i = 0; i < n; i++)
                y[i] = (out[e * SL_DOTS_TILE + i] + (bias ? bias[i] : 0)) * p->scale;
        }
    }
}

static void multiply_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct multiply *m = arg;
    uint32_t at = 0;
    while (index >= m->first[at + 1]) at++;
    const cpu_product *p = m->p + at;
    uint32_t c = (index - m->first[at]) / m->per[at], part = (index - m->first[at]) % m->per[at];
    uint32_t end = SL_MIN((part + 1) * m->chunk[at], p->mat->rows);
    for (uint32_t row = part * m->chunk[at]; row < end; row += SL_DOTS_TILE)
        multiply_tile(m->d, p, c, row, SL_MIN(end - row, (uint32_t)SL_DOTS_TILE),
                      cpu_scratch(m->d, thread));
}

void cpu_multiply(cpu_device *d, const cpu_product *p, uint32_t n)
{
    struct multiply m = { .d = d, .p = p, .n = n };
    uint64_t rows = 0;
    assert(n <= 4);
    for (uint32_t i = 0; i < n; i++) {
        assert(p[i].mat->cols <= d->w.cols && d->k.dequant[p[i].mat->type] && p[i].mat->data);
        rows += (uint64_t)p[i].mat->rows * p[i].mat->count;
    }
    for (uint32_t i = 0; i < n; i++) {
        m.chunk[i] = SL_MIN(cpu_chunk(d, rows, (uint64_t)p[i].mat->cols * p[i].n), p[i].mat->rows);
        m.per[i] = (p[i].mat->rows + m.chunk[i] - 1) / m.chunk[i];
        m.first[i + 1] = m.first[i] + m.per[i] * p[i].mat->count;
    }
    cpu_run(d, multiply_task, &m, m.first[n]);
}
