/* offload/cpu_matmul.c - matrix products of the cpu device. A tile of weight rows is multiplied
 * with every row of activations: by the integer kernels where the type has them, as floats
 * otherwise. One output element is one sum of one fixed order, so its bits depend neither on the
 * cut nor on the tile's form. */
#include "offload/device_cpu.h"

#include <assert.h>
#include <string.h>

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

uint32_t cpu_chunk(const cpu_device *d, uint64_t rows, uint64_t work, uint32_t unit)
{
    const uint64_t min_work = 32768;    /* about 2 us; waking a thread costs about as much */
    /* A few ms, as a time slice: for so long others wait at the end for a thread that is late. */
    const uint64_t max_work = (uint64_t)1 << 28;
    uint64_t tasks = d->n_threads == 1 ? 1 : 4 * (uint64_t)d->n_threads;
    uint64_t chunk = (rows + tasks - 1) / tasks;
    if (d->n_threads > 1) chunk = SL_MIN(chunk, SL_MAX(max_work / SL_MAX(work, 1), 1));
    chunk = SL_MAX(chunk, min_work / SL_MAX(work, 1));
    chunk = (chunk + unit - 1) / unit * unit;
    return (uint32_t)SL_MIN(SL_MAX(chunk, (uint64_t)unit), (uint64_t)1 << 30);
}

/* ---- tiles of weights ---- */

/* Up to few_x activation rows weights are multiplied where they lie: unpacking costs about as much.
 * Each call waits for its first rows from memory and has nothing to fetch behind its last ones, so
 * it gets many; several activation rows come back to the same rows, which must still be in the
 * cache. Kernels take 16 of them at a time. */
enum { MOST_FEW_X = 4, ONE_X_ROWS = 2048, FEW_X_ROWS = 256, FEW_X_GRAIN = 16 };
_Static_assert(MOST_FEW_X * FEW_X_ROWS <= CPU_TILE_FLOATS && ONE_X_ROWS <= (int)CPU_TILE_FLOATS,
               "results of a call on few activation rows");

uint32_t cpu_tile_rows(const cpu_device *d, const sl_mat *m, uint32_t n_x)
{
    const sl_qmul *q = &d->k.qmul[m->type];
    if (cpu_blas_takes(d, m, n_x)) return CPU_BLAS_ROWS;
    if (!q->group) return SL_DOTS_TILE;
    return n_x > q->few_x ? q->tile_rows : n_x > 1 ? FEW_X_ROWS : ONE_X_ROWS;
}

uint32_t cpu_tile_grain(const cpu_device *d, const sl_mat *m, uint32_t n_x)
{
    const sl_qmul *q = &d->k.qmul[m->type];
    return q->group && n_x <= q->few_x ? FEW_X_GRAIN : cpu_tile_rows(d, m, n_x);
}

void cpu_tile_load(const cpu_device *d, const sl_mat *m, uint32_t c, uint32_t row, uint32_t n,
                   uint32_t n_x, float *buf, cpu_tile *ret)
{
    const char *data = (const char *)m->data + ((uint64_t)c * m->rows + row) * m->row_bytes;
    const sl_qmul *q = &d->k.qmul[m->type];
    *ret = (cpu_tile){
        .mul = q->group ? q : NULL, .row_bytes = m->row_bytes, .n = n, .cols = m->cols
    };
    assert(q->few_x <= MOST_FEW_X);
    if (q->group && n_x <= q->few_x) {
        ret->w = data;
    } else if (q->group) {
        assert(n * CPU_TILE_X <= CPU_TILE_FLOATS);
        q->unpack(data, m->row_bytes, n, m->cols, buf);
        ret->packed = buf;
    } else {
        bool blas = cpu_blas_takes(d, m, n_x);
        if (blas) ret->gather = buf + (size_t)CPU_BLAS_ROWS * m->cols;
        if (blas && m->type == SL_F32) {
            ret->rows[0] = (const float *)(const void *)data;
            return;
        }
        for (uint32_t i = 0; i < n; i++, data += m->row_bytes) {
            float *to = buf + (size_t)i * m->cols;
            if (m->type != SL_F32) d->k.dequant[m->type](data, to, m->cols);
            if (i < SL_DOTS_TILE)
                ret->rows[i] = m->type == SL_F32 ? (const float *)(const void *)data : to;
        }
    }
}

static void mul_floats(const cpu_device *d, const cpu_tile *t, const void *const *x, uint32_t n_x,
                       float *ret, size_t ld)
{
    float out[SL_DOTS_TILE * SL_DOTS_TILE];
    const float *xf[SL_DOTS_TILE];
    for (uint32_t j = 0; j < n_x; j += SL_DOTS_TILE) {
        uint32_t nx = SL_MIN(n_x - j, (uint32_t)SL_DOTS_TILE);
        for (uint32_t e = 0; e < nx; e++) xf[e] = x[j + e];
        d->k.dots(t->rows, t->n, xf, nx, t->cols, out);
        for (uint32_t e = 0; e < nx; e++)
            memcpy(ret + (j + e) * ld, out + e * SL_DOTS_TILE, t->n * sizeof(float));
    }
}

void cpu_tile_mul(const cpu_device *d, const cpu_tile *t, const void *const *x, uint32_t n_x,
                  float *ret, size_t ld)
{
    if (t->gather) {
        cpu_blas_mul(&d->blas, t, x, n_x, ret, ld);
    } else if (!t->mul) {
        mul_floats(d, t, x, n_x, ret, ld);
    } else if (t->packed) {
        t->mul->tile(t->packed, t->n, x, n_x, t->cols, ret, ld);
    } else {
        for (uint32_t j = 0; j < n_x; j++)
            t->mul->rows(t->w, t->row_bytes, t->n, x[j], t->cols, ret + j * ld);
    }
}

struct quantise {
    const cpu_device *d;
    const float *x;
    char *ret;
    size_t ldx, stride;
    uint32_t group, cols;
};

static void quantise_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct quantise *q = arg;
    (void)thread;
    q->d->k.quantise(q->group, q->x + row * q->ldx, q->cols, q->ret + row * q->stride);
}

void cpu_quantise(cpu_device *d, uint32_t group, const float *x, size_t ldx, uint32_t cols,
                  uint32_t n, char *ret)
{
    struct quantise q = { .d = d,
                          .x = x,
                          .ret = ret,
                          .ldx = ldx,
                          .stride = sl_qx_bytes(group, cols),
                          .group = group,
                          .cols = cols };
    cpu_run_rows(d, quantise_task, &q, n);
}

/* ---- products ---- */

/* activation rows of a task on F32 weights: a quarter MiB at 2048 columns */
enum { F32_X_ROWS = 32 };

struct multiply {
    cpu_device *d;
    const cpu_product *p;
    uint32_t n;
    uint32_t chunk[4], per[4], first[5];    /* rows of a chunk, chunks of a matrix, first task */
    uint32_t x_rows[4], x_per[4];           /* activation rows of a task, and how many such cuts */
    const char *x[4];                       /* activation rows as their tiles want them, */
    size_t ldx[4], xstep[4];                /* with their strides in bytes */
};

/* Rows [row, row + n) of matrix c of product `at`, against activation rows [j, end). */
static void multiply_tile(const struct multiply *m, uint32_t at, uint32_t c, uint32_t row,
                          uint32_t n, uint32_t j, uint32_t end, float *buf)
{
    const cpu_product *p = m->p + at;
    const float *bias = p->mat->bias ? p->mat->bias + (size_t)c * p->mat->rows + row : NULL;
    const void *x[CPU_TILE_X];
    cpu_tile t;
    cpu_tile_load(m->d, p->mat, c, row, n, p->n, buf, &t);
    for (; j < end; j += CPU_TILE_X) {
        uint32_t nx = SL_MIN(end - j, (uint32_t)CPU_TILE_X);
        float *y = p->y + j * p->ldy + c * p->ystep + row;
        for (uint32_t e = 0; e < nx; e++) x[e] = m->x[at] + (j + e) * m->ldx[at] + c * m->xstep[at];
        cpu_tile_mul(m->d, &t, x, nx, y, p->ldy);
        for (uint32_t e = 0; e < nx && (bias || p->scale != 1); e++)
            for (uint32_t i = 0; i < n; i++)
                y[e * p->ldy + i] = (y[e * p->ldy + i] + (bias ? bias[i] : 0)) * p->scale;
    }
}

static void multiply_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct multiply *m = arg;
    uint32_t at = 0;
    while (index >= m->first[at + 1]) at++;
    const cpu_product *p = m->p + at;
    uint32_t chunks = m->per[at] * p->mat->count;   /* neighbours share activation rows */
    uint32_t rest = (index - m->first[at]) % chunks, c = rest / m->per[at],
             part = rest % m->per[at];
    uint32_t x_first = (index - m->first[at]) / chunks * m->x_rows[at];
    uint32_t x_end = SL_MIN(x_first + m->x_rows[at], p->n);
    uint32_t end = SL_MIN((part + 1) * m->chunk[at], p->mat->rows);
    uint32_t unit = cpu_tile_rows(m->d, p->mat, p->n);
    for (uint32_t row = part * m->chunk[at]; row < end; row += unit)
        multiply_tile(m, at, c, row, SL_MIN(end - row, unit), x_first, x_end,
                      cpu_scratch(m->d, thread));
}

static bool same_acts(const cpu_product *a, const cpu_product *b)
{
    return a->x == b->x && a->ldx == b->ldx && a->xstep == b->xstep && a->mat->cols == b->mat->cols
        && a->mat->count == b->mat->count;
}

/* Activations of product i: as they are, or quantised once for all products that share them. */
static void place_acts(struct multiply *m, uint32_t i, size_t *used)
{
    cpu_device *d = m->d;
    const cpu_product *p = m->p + i;
    uint32_t group = cpu_group(d, p->mat), cols = p->mat->cols, count = p->mat->count;
    m->x[i] = (const char *)p->x;
    m->ldx[i] = p->ldx * sizeof(float);
    m->xstep[i] = p->xstep * sizeof(float);
    if (!group) return;
    for (uint32_t e = 0; e < i; e++) {
        if (cpu_group(d, m->p[e].mat) != group || !same_acts(p, m->p + e)) continue;
        m->x[i] = m->x[e];
        m->ldx[i] = m->ldx[e];
        m->xstep[i] = m->xstep[e];
        return;
    }
    size_t bytes = sl_qx_bytes(group, cols);
    cpu_forget_h(d);
    m->x[i] = d->qx + *used;
    m->ldx[i] = bytes;
    m->xstep[i] = bytes * p->n;
    for (uint32_t c = 0; c < count; c++, *used += bytes * p->n)
        cpu_quantise(d, group, p->x + c * p->xstep, p->ldx, cols, p->n, d->qx + *used);
    assert(*used <= d->qx_bytes);
}

void cpu_multiply(cpu_device *d, const cpu_product *p, uint32_t n)
{
    struct multiply m = { .d = d, .p = p, .n = n };
    uint64_t rows = 0;
    size_t used = 0;
    assert(n <= 4);
    for (uint32_t i = 0; i < n; i++) {
        assert(p[i].n && p[i].mat->cols <= d->w.cols && d->k.dequant[p[i].mat->type]
               && p[i].mat->data);
        rows += (uint64_t)p[i].mat->rows * p[i].mat->count;
        place_acts(&m, i, &used);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t unit = cpu_tile_grain(d, p[i].mat, p[i].n);
        /* F32 weights cost nothing to load again, while all activations as floats outgrow the
         * cache. */
        bool cut = p[i].mat->type == SL_F32 && !cpu_blas_takes(d, p[i].mat, p[i].n);
        m.x_rows[i] = cut ? F32_X_ROWS : p[i].n;
        m.x_per[i] = (p[i].n + m.x_rows[i] - 1) / m.x_rows[i];
        m.chunk[i] =
            SL_MIN(cpu_chunk(d, rows, (uint64_t)p[i].mat->cols * p[i].n, unit), p[i].mat->rows);
        m.per[i] = (p[i].mat->rows + m.chunk[i] - 1) / m.chunk[i];
        m.first[i + 1] = m.first[i] + m.per[i] * m.x_per[i] * p[i].mat->count;
    }
    cpu_run(d, multiply_task, &m, m.first[n]);
}
