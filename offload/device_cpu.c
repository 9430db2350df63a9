/* offload/device_cpu.c - the cpu device: memory, creation, embed and head.
 * Invariants: every stage is finished when it returns; nothing allocates in a stage; a scratch
 * buffer is used by one stage at a time, but for a layer's quantised h (device_cpu.h). */
#include "offload/device_cpu.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static sl_status cpu_alloc(sl_device *dev, sl_account acc, size_t bytes, void **ret)
{
    cpu_device *d = (cpu_device *)dev;
    struct cpu_owned *o = malloc(sizeof *o);
    if (!o) return sl_fail(d->ctx, SL_E_NOMEM, "cpu: a list entry for %zu bytes", bytes);
    sl_status st = sl_mem_alloc(d->ctx, acc, bytes, &o->p);
    if (st != SL_OK) {
        free(o);
        return st;
    }
    o->next = d->owned;
    d->owned = o;
    *ret = o->p;
    return SL_OK;
}

static void cpu_free(sl_device *dev, void *p)
{
    cpu_device *d = (cpu_device *)dev;
    if (!p) return;
    struct cpu_owned **at = &d->owned;
    while (*at && (*at)->p != p) at = &(*at)->next;
    assert(*at && "memory of another device");
    struct cpu_owned *o = *at;
    *at = o->next;
    sl_mem_free(d->ctx, o->p);
    free(o);
}

static sl_status cpu_pin(sl_device *dev, void *p, size_t bytes)
{
    (void)dev;
    (void)p;
    (void)bytes;
    return SL_OK;
}

static void cpu_unpin(sl_device *dev, void *p)
{
    (void)dev;
    (void)p;
}

static void cpu_memory(const sl_device *dev, sl_device_memory *ret)
{
    (void)dev;
    *ret = (sl_device_memory){ 0 };     /* all of it is in the context's accounts */
}

static void cpu_touch(sl_device *dev, const void *p, size_t bytes, bool write)
{
    (void)dev;
    (void)p;
    (void)bytes;
    (void)write;
}

static sl_status cpu_copy(sl_device *dev, sl_queue q, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    (void)q;
    memmove(dst, src, bytes);
    return SL_OK;
}

static sl_status cpu_record(sl_device *dev, sl_queue q, sl_event *ret)
{
    (void)dev;
    (void)q;
    *ret = 0;
    return SL_OK;
}

static sl_status cpu_wait(sl_device *dev, sl_queue q, sl_event ev)
{
    (void)dev;
    (void)q;
    (void)ev;
    return SL_OK;
}

static sl_status cpu_sync(sl_device *dev, sl_event ev)
{
    (void)dev;
    (void)ev;
    return SL_OK;
}

struct embed {
    cpu_device *d;
    const sl_weights *w;
    const sl_batch *b;
};

/* One row: the token's embedding, and the angles of its position. Angles are taken in double, so
 * that they hold at any position. */
static void embed_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct embed *e = arg;
    const sl_mat *m = &e->w->embed;
    const sl_rope *r = &e->w->rope;
    float *x = e->b->x + (size_t)row * e->w->d_model;
    const char *data = (const char *)m->data + (uint64_t)e->b->token[row] * m->row_bytes;
    (void)thread;
    e->d->k.dequant[m->type](data, x, m->cols);
    if (e->w->embed_scale != 1)
        for (uint32_t i = 0; i < e->w->d_model; i++) x[i] *= e->w->embed_scale;
    if (r->kind == SL_ROPE_NONE) return;
    uint32_t half = r->n_rot / 2;
    float *c = e->b->cos + (size_t)row * half, *s = e->b->sin + (size_t)row * half;
    for (uint32_t i = 0; i < half; i++) {
        double angle = (double)e->b->pos[row] * r->inv_freq[i];
        c[i] = (float)(cos(angle) * (double)r->scale);
        s[i] = (float)(sin(angle) * (double)r->scale);
    }
}

static sl_status cpu_embed(sl_device *dev, const sl_weights *w, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    assert(b->n_rows <= d->max_rows && w->rope.n_rot <= d->w.n_rot && w->d_model == w->embed.cols);
    for (uint32_t i = 0; i < b->n_rows; i++)
        if (b->token[i] < 0 || (uint32_t)b->token[i] >= w->embed.rows)
            return sl_fail(d->ctx, SL_E_ARG, "embed: row %u has token %d, the model has %u", i,
                           b->token[i], w->embed.rows);
    struct embed e = { d, w, b };
    cpu_run_rows(d, embed_task, &e, b->n_rows);
    return SL_OK;
}

static sl_status cpu_head(sl_device *dev, const sl_weights *w, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    size_t dm = w->d_model;
    assert(b->n_logits <= b->n_rows);
    if (!b->n_logits) return SL_OK;
    for (uint32_t i = 0; i < b->n_logits; i++)      /* h is free behind the last layer */
        d->k.norm(&w->out_norm, b->x + b->logit_row[i] * dm, b->h + i * dm, dm);
    cpu_product p = { .mat = &w->head, .x = b->h, .ldx = dm, .y = b->logits, .ldy = w->head.rows,
                      .n = b->n_logits, .scale = w->logit_scale };
    cpu_multiply(d, &p, 1);
    return SL_OK;
}

static void cpu_destroy(sl_device *dev)
{
    cpu_device *d = (cpu_device *)dev;
    while (d->owned) cpu_free(dev, d->owned->p);
    cpu_blas_close(&d->blas);
    free(d);
}

static const sl_device_ops cpu_ops = {
    .name = "cpu", .alloc = cpu_alloc, .alloc_host = cpu_alloc, .free = cpu_free, .pin = cpu_pin,
    .unpin = cpu_unpin, .memory = cpu_memory, .touch = cpu_touch, .copy = cpu_copy,
    .record = cpu_record, .wait = cpu_wait, .sync = cpu_sync, .embed = cpu_embed, .qkv = cpu_qkv,
    .attend = cpu_attend, .post = cpu_post, .route = cpu_route, .experts = cpu_experts,
    .head = cpu_head, .destroy = cpu_destroy,
};

/* a * b * size bytes on the scratch account, with room for one cache line more. */
static sl_status take(cpu_device *d, uint64_t a, uint64_t b, size_t size, void *ret)
{
    uint64_t n;
    void *p = NULL;
    if (!sl_mul_size(a, b, &n) || !sl_mul_size(n, size, &n) || !sl_add_size(n, 64, &n))
        return sl_fail(d->ctx, SL_E_NOMEM, "cpu: scratch of %llu x %llu elements overflows",
                       (unsigned long long)a, (unsigned long long)b);
    SL_TRY(cpu_alloc(&d->base, SL_ACC_SCRATCH, n, &p));
    memcpy(ret, &p, sizeof p);
    return SL_OK;
}

/* Floats of one tile of weights in whichever form is largest, in whole cache lines. */
static size_t tile_floats(const cpu_device *d)
{
    size_t rows = d->blas.lib ? CPU_BLAS_ROWS + CPU_TILE_X : SL_DOTS_TILE;
    size_t bytes = rows * sizeof(float) * (size_t)d->w.cols;
    for (uint32_t t = 0; t < SL_N_TYPES; t++)
        if (d->k.qmul[t].group)     /* whole groups: the widest matrix of this type has them */
            bytes = SL_MAX(bytes, d->k.qmul[t].tile_bytes((d->w.cols + 255) / 256 * 256));
    return (bytes + 63) / 64 * 16;
}

/* Floats of one thread: two tiles (gate and up), one block of attention, or a row's routing;
 * whichever is largest, in whole cache lines. */
static size_t thread_floats(const cpu_device *d)
{
    const sl_widths *w = &d->w;
    size_t attn = SL_ATTN_SCRATCH + 2 * cpu_attn_queries(w) * (w->head_dim + 2);
    size_t most = SL_MAX(SL_MAX(2 * d->tile_floats, attn), 3 * (size_t)w->n_expert);
    return (most + 31) / 16 * 16;
}

/* Bytes of n quantised elements in `parts` rows, whatever their group: sl_qx_bytes in the worst
 * case. */
static uint64_t qx_most(uint64_t n, uint64_t parts)
{
    return n + n / 8 + n / 8 + 192 * parts;
}

static sl_status take_scratch(cpu_device *d)
{
    const sl_widths *w = &d->w;
    uint64_t rows = d->max_rows;
    d->tile_floats = tile_floats(d);
    d->thread_floats = thread_floats(d);
    /* Inputs of a product: one row in both groups, or (MLA) one part for each head. */
    d->qx_bytes = rows * SL_MAX(2 * qx_most(w->cols, 1), qx_most(SL_MAX(w->mla, w->att), w->heads));
    d->qff_bytes = rows * qx_most(w->ff_sum, w->n_used + 1ull);
    d->max_runs = w->n_expert + 2;
    SL_TRY(take(d, rows, w->mla, sizeof(float), &d->mla));
    SL_TRY(take(d, rows, w->n_expert, sizeof(float), &d->router));
    SL_TRY(take(d, rows, w->ff_sum, sizeof(float), &d->ff));
    d->ff_floats = (size_t)rows * w->ff_sum;
    SL_TRY(take(d, d->qx_bytes, 1, 1, &d->qx));
    SL_TRY(take(d, d->qff_bytes, 1, 1, &d->qff));
    SL_TRY(take(d, d->max_runs, 1, sizeof(size_t), &d->qff_at));
    SL_TRY(take(d, rows + 1, 1, sizeof(uint32_t), &d->tile_at));
    SL_TRY(take(d, d->max_runs, 1, sizeof(size_t), &d->run_at));
    SL_TRY(take(d, d->max_runs + 1, 1, sizeof(uint32_t), &d->run_task));
    d->n_slots = d->n_threads == 1 ? 0 : 16 * d->n_threads + CPU_ATTN_SPLIT_ROWS;
    SL_TRY(take(d, d->n_slots, (uint64_t)w->n_head * (w->head_dim + 2), sizeof(float), &d->part));
    SL_TRY(take(d, d->n_threads, 1, sizeof(float *), &d->thread));
    for (uint32_t i = 0; i < d->n_threads; i++)
        SL_TRY(take(d, d->thread_floats, 1, sizeof(float), &d->thread[i]));
    return SL_OK;
}

sl_status sl_device_create_cpu(sl_ctx *ctx, const sl_device_params *p, sl_device **ret)
{
    if (!p->pool || !p->max_rows || !p->widths.d_model || !p->widths.cols)
        return sl_fail(ctx, SL_E_ARG, "cpu device: a pool, rows, d_model and cols are needed");
    cpu_device *d = calloc(1, sizeof *d);
    if (!d) return sl_fail(ctx, SL_E_NOMEM, "cpu device");
    d->base.ops = &cpu_ops;
    d->ctx = ctx;
    d->pool = p->pool;
    d->n_threads = sl_pool_threads(p->pool);
    d->max_rows = p->max_rows;
    d->w = p->widths;
    sl_kernels_init(&d->k, sl_cpu_detect() & p->cpu_mask);
    /* no type has integer kernels then */
    if (p->float_acts) memset(d->k.qmul, 0, sizeof d->k.qmul);
    sl_status st = p->blas ? cpu_blas_open(ctx, &d->blas) : SL_OK;
    if (st == SL_OK) st = take_scratch(d);
    if (st != SL_OK) {
        cpu_destroy(&d->base);
        return st;
    }
    *ret = &d->base;
    return SL_OK;
}
