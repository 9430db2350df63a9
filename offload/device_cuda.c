/* offload/device_cuda.c - the cuda device: memory, queues and events of an NVIDIA GPU.
 * The CUDA runtime is linked statically and opens the driver when the first call is made, so one
 * binary starts on machines without a driver too.
 * Invariants: nothing allocates in a stage; all kernels are on the compute queue; after a failure
 * every call but free, memory and destroy returns SL_E_DEVICE with the first message. */
#include "offload/cuda_host.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MARGIN_MIB = 256,        /* that others may take meanwhile, of the memory that is free */
       CONTEXT_MIB = 448,       /* the driver's context and our kernels: to be measured on cards */
       SCRATCH_MIB = 320,       /* of stages: create refuses more */
       TABLES_MIB = 4 };        /* of one part, beside what grows with rows */
#define MIB ((uint64_t)1 << 20)
/* of the states of attention's parts at most */
#define PART_FLOATS ((size_t)8 << 20)

sl_status cuda_check(cuda_device *d, int err, const char *what)
{
    if (d->wrong[0]) return sl_fail(d->ctx, SL_E_DEVICE, "%s", d->wrong);
    if (err == cudaSuccess) return SL_OK;
    const char *why = err < 0 ? "no such kernel" : cudaGetErrorString((cudaError_t)err);
    sl_status st = sl_fail(d->ctx, SL_E_DEVICE, "cuda:%d: %s: %s", d->index, what, why);
    (void)cudaGetLastError();
    strncpy(d->wrong, sl_error(d->ctx), sizeof d->wrong - 1);
    return st;
}

/* The card is this thread's from here on. */
static sl_status use(cuda_device *d)
{
    return cuda_check(d, cudaSetDevice(d->index), "select the card");
}

/* ---- memory ---- */

static sl_status give(cuda_device *d, void *p, void *base, size_t bytes, sl_account acc, int kind)
{
    struct cuda_given *g = malloc(sizeof *g);
    if (!g) return sl_fail(d->ctx, SL_E_NOMEM, "cuda: a list entry for %zu bytes", bytes);
    *g = (struct cuda_given){ d->given, p, base, bytes, acc, kind };
    d->given = g;
    if (kind == CUDA_DEVICE) {
        d->used_bytes += bytes;
        d->mem.bytes[acc] += bytes;
        d->mem.peak_bytes = SL_MAX(d->mem.peak_bytes, d->used_bytes);
    } else if (kind != CUDA_HOST_PLAIN) {
        d->mem.pinned_bytes += bytes;
    }
    return SL_OK;
}

/* Zeroed device memory; `limited`: it counts. */
static sl_status take_device(cuda_device *d, size_t bytes, const char *what, void **ret)
{
    void *p = NULL;
    int err = cudaMalloc(&p, bytes);
    if (err == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return sl_fail(d->ctx, SL_E_NOMEM, "cuda:%d: %zu bytes for %s: the card has no more",
                       d->index, bytes, what);
    }
    SL_TRY(cuda_check(d, err, "allocate memory"));
    sl_status st = cuda_check(d, cudaMemsetAsync(p, 0, bytes, d->queue[SL_Q_COMPUTE]),
                              "clear memory");
    if (st == SL_OK)
        st = cuda_check(d, cudaStreamSynchronize(d->queue[SL_Q_COMPUTE]), "clear memory");
    if (st == SL_OK) *ret = p;
    else cudaFree(p);
    return st;
}

static sl_status cuda_alloc(sl_device *dev, sl_account acc, size_t bytes, void **ret)
{
    cuda_device *d = (cuda_device *)dev;
    size_t room = (SL_MAX(bytes, 1) + 511) / 512 * 512;
    void *p = NULL;
    SL_TRY(use(d));
    if (d->mem.limit_bytes && room > d->mem.limit_bytes - d->used_bytes)
        return sl_fail(d->ctx, SL_E_NOMEM, "cuda:%d: %zu bytes for %s, %llu of %llu are taken",
                       d->index, bytes, sl_account_name(acc), (unsigned long long)d->used_bytes,
                       (unsigned long long)d->mem.limit_bytes);
    SL_TRY(take_device(d, room, sl_account_name(acc), &p));
    sl_status st = give(d, p, NULL, room, acc, CUDA_DEVICE);
    if (st == SL_OK) *ret = p;
    else cudaFree(p);
    return st;
}

/* SL_OK, or why copies will be slower. */
static sl_status register_host(cuda_device *d, void *p, size_t bytes)
{
    int err = cudaHostRegister(p, bytes, cudaHostRegisterDefault);
    if (err == cudaSuccess) return SL_OK;
    const char *why = cudaGetErrorString((cudaError_t)err);
    (void)cudaGetLastError();
    return sl_fail(d->ctx, SL_E_UNSUPPORTED,
                   "cuda:%d: pin %zu bytes of host memory: %s (is `ulimit -l` large enough?)",
                   d->index, bytes, why);
}

/* Whole pages that nobody shares: what is registered must not touch another registration. */
static sl_status cuda_alloc_host(sl_device *dev, sl_account acc, size_t bytes, void **ret)
{
    enum { PAGE = 4096 };
    cuda_device *d = (cuda_device *)dev;
    size_t room = (SL_MAX(bytes, 1) + PAGE - 1) / PAGE * PAGE;
    void *base = NULL;
    int kind = CUDA_HOST;
    SL_TRY(use(d));
    SL_TRY(sl_mem_alloc(d->ctx, acc, room + PAGE, &base));
    char *p = (char *)base + (PAGE - (uintptr_t)base % PAGE) % PAGE;
    if (register_host(d, p, room) != SL_OK) {
        sl_log(d->ctx, SL_WARN, "%s; copies will be slower", sl_error(d->ctx));
        kind = CUDA_HOST_PLAIN;
    }
    sl_status st = give(d, p, base, room, acc, kind);
    if (st == SL_OK) {
        *ret = p;
        return SL_OK;
    }
    if (kind == CUDA_HOST) cudaHostUnregister(p);
    sl_mem_free(d->ctx, base);
    return st;
}

static void cuda_free(sl_device *dev, void *p)
{
    cuda_device *d = (cuda_device *)dev;
    if (!p) return;
    struct cuda_given **at = &d->given;
    while (*at && (*at)->p != p) at = &(*at)->next;
    assert(*at && "memory of another device");
    struct cuda_given *g = *at;
    *at = g->next;
    cudaSetDevice(d->index);
    if (g->kind == CUDA_DEVICE) {
        d->used_bytes -= g->bytes;
        d->mem.bytes[g->acc] -= g->bytes;
        cudaFree(p);
    } else {
        if (g->kind != CUDA_HOST_PLAIN) {
            d->mem.pinned_bytes -= g->bytes;
            cudaHostUnregister(p);
        }
        if (g->kind != CUDA_PINNED) sl_mem_free(d->ctx, g->base);
    }
    (void)cudaGetLastError();   /* of a card that failed: all calls fail, and all goes the same */
    free(g);
}

static sl_status cuda_pin(sl_device *dev, void *p, size_t bytes)
{
    cuda_device *d = (cuda_device *)dev;
    SL_TRY(use(d));
    SL_TRY(register_host(d, p, bytes));
    sl_status st = give(d, p, NULL, bytes, SL_ACC_MAPPED, CUDA_PINNED);
    if (st != SL_OK) cudaHostUnregister(p);
    return st;
}

static void cuda_memory(const sl_device *dev, sl_device_memory *ret)
{
    *ret = ((const cuda_device *)dev)->mem;
}

static void cuda_touch(sl_device *dev, const void *p, size_t bytes, bool write)
{
    (void)dev;
    (void)p;
    (void)bytes;
    (void)write;
}

/* ---- order ---- */

static sl_status cuda_copy(sl_device *dev, sl_queue q, void *dst, const void *src, size_t bytes)
{
    cuda_device *d = (cuda_device *)dev;
    SL_TRY(use(d));
    if (!bytes) return SL_OK;
    return cuda_check(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, d->queue[q]), "copy");
}

/* An event is its queue in the two low bits and its number, from 1 on, above. */
static sl_status cuda_record(sl_device *dev, sl_queue q, sl_event *ret)
{
    cuda_device *d = (cuda_device *)dev;
    SL_TRY(use(d));
    uint64_t n = d->n_events[q] + 1;
    cudaEvent_t *ev = &d->events[q][n % CUDA_EVENTS];
    if (!*ev)
        SL_TRY(cuda_check(d, cudaEventCreateWithFlags(ev, cudaEventDisableTiming),
                          "make an event"));
    SL_TRY(cuda_check(d, cudaEventRecord(*ev, d->queue[q]), "record an event"));
    d->n_events[q] = n;
    *ret = n << 2 | (uint64_t)q;
    return SL_OK;
}

static cudaEvent_t event_of(const cuda_device *d, sl_event ev)
{
    uint32_t q = ev & 3;
    uint64_t n = ev >> 2;
    assert(n && n <= d->n_events[q] && d->n_events[q] - n < CUDA_EVENTS && "an event too old");
    return d->events[q][n % CUDA_EVENTS];
}

static sl_status cuda_wait(sl_device *dev, sl_queue q, sl_event ev)
{
    cuda_device *d = (cuda_device *)dev;
    SL_TRY(use(d));
    if (!ev) return SL_OK;
    return cuda_check(d, cudaStreamWaitEvent(d->queue[q], event_of(d, ev), 0), "wait for an event");
}

static sl_status cuda_sync(sl_device *dev, sl_event ev)
{
    cuda_device *d = (cuda_device *)dev;
    SL_TRY(use(d));
    if (!ev) return SL_OK;
    return cuda_check(d, cudaEventSynchronize(event_of(d, ev)), "wait for the card");
}

/* ---- begin and end ---- */

static void cuda_destroy(sl_device *dev)
{
    cuda_device *d = (cuda_device *)dev;
    cudaSetDevice(d->index);
    for (uint32_t q = 0; q < SL_N_QUEUES; q++)
        if (d->queue[q]) cudaStreamSynchronize(d->queue[q]);
    while (d->given) cuda_free(dev, d->given->p);
    for (uint32_t i = 0; i < CUDA_PARTS; i++)
        if (d->tables.left[i]) cudaEventDestroy(d->tables.left[i]);
    for (uint32_t q = 0; q < SL_N_QUEUES; q++) {
        for (uint32_t i = 0; d->events[q] && i < CUDA_EVENTS; i++)
            if (d->events[q][i]) cudaEventDestroy(d->events[q][i]);
        free(d->events[q]);
        if (d->queue[q]) cudaStreamDestroy(d->queue[q]);
    }
    (void)cudaGetLastError();
    free(d);
}

static const sl_device_ops cuda_ops = {
    .name = "cuda", .alloc = cuda_alloc, .alloc_host = cuda_alloc_host, .free = cuda_free,
    .pin = cuda_pin, .unpin = cuda_free, .memory = cuda_memory, .touch = cuda_touch,
    .copy = cuda_copy, .record = cuda_record, .wait = cuda_wait, .sync = cuda_sync,
    .qkv = cuda_qkv, .attend = cuda_attend, .post = cuda_post, .route = cuda_route,
    .experts = cuda_experts, .head = cuda_head, .destroy = cuda_destroy,
};

/* Scratch of stages: it is own_bytes, not an account's. */
static sl_status scratch(cuda_device *d, uint64_t bytes, uint64_t *sum, void *ret)
{
    void *p = NULL;
    *sum += bytes;
    if (*sum > SCRATCH_MIB * MIB)
        return sl_fail(d->ctx, SL_E_NOMEM, "cuda:%d: stages of %u rows need more than %d MiB of "
                       "scratch: use smaller passes", d->index, d->max_rows, (int)SCRATCH_MIB);
    SL_TRY(take_device(d, SL_MAX(bytes, 512), "scratch", &p));
    sl_status st = give(d, p, NULL, 0, SL_ACC_SCRATCH, CUDA_DEVICE);
    if (st != SL_OK) {
        cudaFree(p);
        return st;
    }
    memcpy(ret, &p, sizeof p);
    return SL_OK;
}

/* The largest form of n elements in `parts` vectors: float16 in two halves, each padded. */
static uint64_t form_most(uint64_t n, uint64_t parts)
{
    return 4 * n + parts * (4 * 64 + 16);
}

static sl_status take_scratch(cuda_device *d)
{
    const sl_widths *w = &d->w;
    uint64_t rows = d->max_rows, slots = rows * (w->n_used + 1ull), sum = 0;
    uint64_t wide = SL_MAX(w->mla, w->att);
    d->form_bytes = rows * SL_MAX(form_most(w->cols, 1), form_most(wide, SL_MAX(w->n_head, 1)));
    d->ff_form_bytes = rows * form_most(w->ff_sum, w->n_used + 1ull);
    d->ff_floats = rows * w->ff_sum;
    d->out_slots = (uint32_t)slots;
    d->part_floats = SL_MIN(sl_cuda_attn_part((uint32_t)rows, w->n_head, w->head_dim, 32),
                            (uint64_t)PART_FLOATS);
    SL_TRY(scratch(d, d->form_bytes, &sum, &d->form));
    SL_TRY(scratch(d, d->ff_form_bytes, &sum, &d->ff_form));
    SL_TRY(scratch(d, rows * w->mla * 4, &sum, &d->mla));
    SL_TRY(scratch(d, rows * w->n_expert * 4, &sum, &d->router));
    SL_TRY(scratch(d, d->ff_floats * 4, &sum, &d->ff));
    SL_TRY(scratch(d, slots * w->d_model * 4, &sum, &d->out));
    SL_TRY(scratch(d, d->part_floats * 4, &sum, &d->part));
    cuda_tables *t = &d->tables;
    void *host = NULL;
    t->part_bytes = TABLES_MIB * MIB + slots * 32 + (w->n_expert + 2ull) * 2 * sizeof(sl_cuda_run);
    t->part_bytes = cuda_padded(t->part_bytes);
    SL_TRY(cuda_alloc_host(&d->base, SL_ACC_SCRATCH, CUDA_PARTS * t->part_bytes, &host));
    t->host = host;
    SL_TRY(scratch(d, CUDA_PARTS * t->part_bytes, &sum, &t->dev));
    for (uint32_t i = 0; i < CUDA_PARTS; i++)
        SL_TRY(cuda_check(d, cudaEventCreateWithFlags(&t->left[i], cudaEventDisableTiming),
                          "make an event"));
    return SL_OK;
}

/* Is card a->index there? Its memory, and what is free. */
static sl_status look(sl_ctx *ctx, const sl_accel *a, size_t *ret_free)
{
    int n = 0, err = cudaGetDeviceCount(&n);
    size_t all;
    if (err == cudaSuccess && (uint32_t)n <= a->index) {
        return sl_fail(ctx, SL_E_UNSUPPORTED, "cuda:%u: there is no such card, %d are there",
                       a->index, n);
    }
    if (err == cudaSuccess) err = cudaSetDevice((int)a->index);
    if (err == cudaSuccess) err = cudaMemGetInfo(ret_free, &all);
    if (err == cudaSuccess) return SL_OK;
    const char *why = cudaGetErrorString((cudaError_t)err);
    (void)cudaGetLastError();
    return sl_fail(ctx, SL_E_UNSUPPORTED, "cuda:%u: open the card: %s", a->index, why);
}

sl_status sl_cuda_find(sl_ctx *ctx, sl_accel *a)
{
    size_t left = 0;
    uint64_t own = (CONTEXT_MIB + SCRATCH_MIB) * MIB;
    SL_TRY(look(ctx, a, &left));
    /* The context is there already and not in what is free. */
    uint64_t most = left > MARGIN_MIB * MIB ? left - MARGIN_MIB * MIB + CONTEXT_MIB * MIB : 0;
    if (a->mem_bytes > most)
        return sl_fail(ctx, SL_E_ARG, "cuda:%u: %llu MiB wanted, %llu MiB can be had", a->index,
                       (unsigned long long)(a->mem_bytes / MIB), (unsigned long long)(most / MIB));
    if ((a->mem_bytes ? a->mem_bytes : most) <= own)
        return sl_fail(ctx, SL_E_ARG, "cuda:%u: %llu MiB of memory, the device itself takes %llu",
                       a->index, (unsigned long long)((a->mem_bytes ? a->mem_bytes : most) / MIB),
                       (unsigned long long)(own / MIB));
    struct cudaDeviceProp is;
    if (cudaGetDeviceProperties(&is, (int)a->index) == cudaSuccess)
        snprintf(a->name, sizeof a->name, "%.63s", is.name);
    else (void)cudaGetLastError();      /* a card without a name will do */
    if (!a->mem_bytes) a->mem_bytes = most;
    a->own_bytes = own;
    return SL_OK;
}

static sl_status start(cuda_device *d)
{
    int n_sm = 0;
    SL_TRY(use(d));
    SL_TRY(cuda_check(d, cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, d->index),
                      "ask the card"));
    d->n_sm = (uint32_t)SL_MAX(n_sm, 1);
    for (uint32_t q = 0; q < SL_N_QUEUES; q++) {
        SL_TRY(cuda_check(d, cudaStreamCreateWithFlags(&d->queue[q], cudaStreamNonBlocking),
                          "make a queue"));
        d->events[q] = calloc(CUDA_EVENTS, sizeof(cudaEvent_t));
        if (!d->events[q]) return sl_fail(d->ctx, SL_E_NOMEM, "cuda: events");
    }
    return take_scratch(d);
}

sl_status sl_cuda_create(sl_ctx *ctx, const sl_accel *a, const sl_device_params *p, sl_device **ret)
{
    size_t left;
    if (!p->max_rows || !p->widths.d_model || !p->widths.cols)
        return sl_fail(ctx, SL_E_ARG, "cuda device: rows, d_model and cols are needed");
    SL_TRY(look(ctx, a, &left));
    cuda_device *d = calloc(1, sizeof *d);
    if (!d) return sl_fail(ctx, SL_E_NOMEM, "cuda device");
    d->base.ops = &cuda_ops;
    d->ctx = ctx;
    d->index = (int)a->index;
    d->max_rows = p->max_rows;
    d->w = p->widths;
    d->mem.limit_bytes = a->mem_bytes;
    d->mem.own_bytes = d->used_bytes = d->mem.peak_bytes = a->own_bytes;
    sl_status st = start(d);
    if (st != SL_OK) {
        cuda_destroy(&d->base);
        return st;
    }
    *ret = &d->base;
    return SL_OK;
}
