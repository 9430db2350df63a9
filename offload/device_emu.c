/* offload/device_emu.c - an accelerator made of host parts: memory of its own with a limit, queues
 * (offload/emu_queue.h), stages run by a cpu device on a pool of its own cores, and every access
 * checked when it is submitted (offload/emu_check.h). What a GPU would compute wrong now and then
 * is an error here every time: the first misuse makes all later calls fail with SL_E_DEVICE and the
 * same message, and memory left at destroy is logged as an error.
 * Invariants: a stage owns copies of all it was given but device memory; d->inner is called by the
 * stages' thread only, with a context of its own. */
#include "offload/device_emu.h"
#include "offload/emu_check.h"
#include "offload/emu_stage.h"

#include <assert.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { EVENTS = 4096 };

struct event {
    uint64_t ticket;
    uint64_t n;                 /* operations of the queue */
    emu_clock clock;
};

/* Memory given out. */
struct given {
    struct given *next;
    void *p;
    size_t bytes;
    sl_account acc;
    emu_kind kind;
    bool pinned;                /* somebody else's */
};

struct emu_device {
    sl_device base;
    sl_ctx *ctx, *own_ctx;
    sl_pool *pool;
    sl_device *inner;
    emu_queues *queues;
    emu_check *check;
    struct given *given;
    sl_device_memory mem;
    uint64_t used_bytes;        /* of the limit */
    struct event *events;       /* [SL_N_QUEUES][EVENTS] */
    uint64_t n_events[SL_N_QUEUES];
    uint32_t max_rows;
};

static const char *const queue_names[] = { "compute", "weights", "up", "down" };

static uint32_t actor_of(sl_queue q)
{
    return 1 + (uint32_t)q;
}

/* What every call ends with: misuse, and stages that failed. */
static sl_status verdict(emu_device *d)
{
    const char *wrong = emu_check_error(d->check);
    if (wrong) return sl_fail(d->ctx, SL_E_DEVICE, "emu: %s", wrong);
    if (emu_queues_status(d->queues) != SL_OK)
        return sl_fail(d->ctx, SL_E_DEVICE, "emu: a stage failed: %s", sl_error(d->own_ctx));
    return SL_OK;
}

/* ---- memory ---- */

static sl_status give(emu_device *d, void *p, size_t bytes, sl_account acc, emu_kind kind,
                      bool pinned)
{
    struct given *g = malloc(sizeof *g);
    if (!g) return sl_fail(d->ctx, SL_E_NOMEM, "emu: a list entry for %zu bytes", bytes);
    *g = (struct given){ .next = d->given, .p = p, .bytes = bytes, .acc = acc, .kind = kind,
                         .pinned = pinned };
    d->given = g;
    emu_check_add(d->check, p, bytes, kind, pinned ? "pinned" : sl_account_name(acc));
    if (kind == EMU_HOST) d->mem.pinned_bytes += bytes;
    return SL_OK;
}

static sl_status emu_alloc(sl_device *dev, sl_account acc, size_t bytes, void **ret)
{
    emu_device *d = (emu_device *)dev;
    size_t room = (SL_MAX(bytes, 1) + 63) / 64 * 64;
    if (d->mem.limit_bytes && room > d->mem.limit_bytes - d->used_bytes)
        return sl_fail(d->ctx, SL_E_NOMEM,
                       "emu: %zu bytes for %s, %llu of %llu are taken", bytes,
                       sl_account_name(acc), (unsigned long long)d->used_bytes,
                       (unsigned long long)d->mem.limit_bytes);
    void *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
                   -1, 0);
    if (p == MAP_FAILED)
        return sl_fail(d->ctx, SL_E_NOMEM, "emu: the host has no %zu bytes for %s", bytes,
                       sl_account_name(acc));
    sl_status st = give(d, p, room, acc, EMU_DEVICE, false);
    if (st != SL_OK) {
        munmap(p, room);
        return st;
    }
    d->used_bytes += room;
    d->mem.bytes[acc] += room;
    d->mem.peak_bytes = SL_MAX(d->mem.peak_bytes, d->used_bytes);
    *ret = p;
    return SL_OK;
}

static sl_status emu_alloc_host(sl_device *dev, sl_account acc, size_t bytes, void **ret)
{
    emu_device *d = (emu_device *)dev;
    void *p = NULL;
    SL_TRY(sl_mem_alloc(d->ctx, acc, bytes, &p));
    sl_status st = give(d, p, bytes, acc, EMU_HOST, false);
    if (st != SL_OK) sl_mem_free(d->ctx, p);
    else *ret = p;
    return st;
}

/* Takes p off the list; NULL: it is not there. */
static struct given *take_back(emu_device *d, const void *p)
{
    struct given **at = &d->given;
    while (*at && (*at)->p != p) at = &(*at)->next;
    struct given *g = *at;
    emu_check_remove(d->check, p);
    if (!g) return NULL;
    *at = g->next;
    if (g->kind == EMU_HOST) {
        d->mem.pinned_bytes -= g->bytes;
    } else {
        d->used_bytes -= g->bytes;
        d->mem.bytes[g->acc] -= g->bytes;
    }
    return g;
}

/* After misuse memory may be in use still, and what uses it must not hit somebody else's. */
static void finish_all(emu_device *d)
{
    for (uint32_t q = 0; q < SL_N_QUEUES; q++)
        emu_queue_sync(d->queues, (sl_queue)q, emu_queue_count(d->queues, (sl_queue)q));
}

static void emu_free(sl_device *dev, void *p)
{
    emu_device *d = (emu_device *)dev;
    if (!p) return;
    struct given *g = take_back(d, p);
    if (!g) return;
    if (emu_check_error(d->check)) finish_all(d);
    if (g->kind == EMU_DEVICE) munmap(p, g->bytes);
    else if (!g->pinned) sl_mem_free(d->ctx, p);
    free(g);
}

static sl_status emu_pin(sl_device *dev, void *p, size_t bytes)
{
    return give((emu_device *)dev, p, bytes, SL_ACC_MAPPED, EMU_HOST, true);
}

static void emu_memory(const sl_device *dev, sl_device_memory *ret)
{
    *ret = ((const emu_device *)dev)->mem;
}

static void emu_touch(sl_device *dev, const void *p, size_t bytes, bool write)
{
    emu_device *d = (emu_device *)dev;
    emu_check_access(d->check, EMU_DRIVER, p, bytes, EMU_HOST, write, "host memory");
}

/* ---- order ---- */

static sl_status emu_copy(sl_device *dev, sl_queue q, void *dst, const void *src, size_t bytes)
{
    emu_device *d = (emu_device *)dev;
    bool to = emu_check_knows(d->check, dst, bytes, EMU_DEVICE);
    bool from = emu_check_knows(d->check, src, bytes, EMU_DEVICE);
    bool slow = (!to && !emu_check_knows(d->check, dst, bytes, EMU_HOST))
             || (!from && !emu_check_knows(d->check, src, bytes, EMU_HOST));
    SL_TRY(verdict(d));
    if (!bytes) return SL_OK;
    emu_check_submit(d->check, actor_of(q), "a copy");
    emu_check_access(d->check, actor_of(q), src, bytes, from ? EMU_DEVICE : EMU_HOST, false,
                     "its source");
    emu_check_access(d->check, actor_of(q), dst, bytes, to ? EMU_DEVICE : EMU_HOST, true,
                     "its destination");
    SL_TRY(verdict(d));
    uint32_t link = to && from ? EMU_LINK_INSIDE : to ? EMU_LINK_UP : EMU_LINK_DOWN;
    uint64_t n = emu_queue_copy(d->queues, q, dst, src, bytes, link);
    if (!n) return sl_fail(d->ctx, SL_E_NOMEM, "emu: a copy");
    if (slow) {                 /* host memory that is not pinned: the driver is held up */
        emu_clock now = emu_check_now(d->check, actor_of(q));
        emu_queue_sync(d->queues, q, n);
        emu_check_join(d->check, EMU_DRIVER, &now);
    }
    return SL_OK;
}

static sl_status emu_record(sl_device *dev, sl_queue q, sl_event *ret)
{
    emu_device *d = (emu_device *)dev;
    SL_TRY(verdict(d));
    uint64_t ticket = ++d->n_events[q];
    d->events[q * EVENTS + ticket % EVENTS] =
        (struct event){ .ticket = ticket, .n = emu_queue_count(d->queues, q),
                        .clock = emu_check_now(d->check, actor_of(q)) };
    *ret = ticket * SL_N_QUEUES + q;
    return SL_OK;
}

static sl_status find_event(emu_device *d, sl_event ev, struct event *ret)
{
    *ret = d->events[ev % SL_N_QUEUES * EVENTS + ev / SL_N_QUEUES % EVENTS];
    if (ret->ticket != ev / SL_N_QUEUES)
        return sl_fail(d->ctx, SL_E_DEVICE, "emu: event %llu of queue %s is not known any more",
                       (unsigned long long)(ev / SL_N_QUEUES), queue_names[ev % SL_N_QUEUES]);
    return SL_OK;
}

static sl_status emu_wait(sl_device *dev, sl_queue q, sl_event ev)
{
    emu_device *d = (emu_device *)dev;
    struct event e;
    SL_TRY(verdict(d));
    if (!ev || ev % SL_N_QUEUES == q) return SL_OK;
    SL_TRY(find_event(d, ev, &e));
    emu_check_join(d->check, actor_of(q), &e.clock);
    if (!emu_queue_wait(d->queues, q, (sl_queue)(ev % SL_N_QUEUES), e.n))
        return sl_fail(d->ctx, SL_E_NOMEM, "emu: a wait");
    return SL_OK;
}

static sl_status emu_sync(sl_device *dev, sl_event ev)
{
    emu_device *d = (emu_device *)dev;
    struct event e;
    if (ev) {
        SL_TRY(find_event(d, ev, &e));
        emu_queue_sync(d->queues, (sl_queue)(ev % SL_N_QUEUES), e.n);
        emu_check_join(d->check, EMU_DRIVER, &e.clock);
    }
    return verdict(d);
}

/* ---- stages ---- */

static void use(void *user, const void *p, size_t bytes, bool write, const char *what)
{
    emu_device *d = user;
    emu_check_access(d->check, actor_of(SL_Q_COMPUTE), p, bytes, EMU_DEVICE, write, what);
}

/* Keeps the arguments, checks what the stage will touch, and sends it off. */
static sl_status send(emu_device *d, const emu_stage *args)
{
    SL_TRY(verdict(d));
    assert(args->batch.n_rows <= d->max_rows);
    emu_check_submit(d->check, actor_of(SL_Q_COMPUTE), emu_stage_name(args));
    emu_stage_uses(args, use, d);
    SL_TRY(verdict(d));
    emu_stage *kept = emu_stage_keep(args);
    if (!kept) return sl_fail(d->ctx, SL_E_NOMEM, "emu: arguments of a stage");
    if (!emu_queue_stage(d->queues, kept, emu_stage_name(args), emu_stage_layer(args))) {
        free(kept);
        return sl_fail(d->ctx, SL_E_NOMEM, "emu: a stage");
    }
    return SL_OK;
}

static sl_status run(void *user, void *stage)
{
    emu_device *d = user;
    return emu_stage_run(stage, d->inner);
}

static sl_status emu_qkv(sl_device *dev, const sl_weights *w, const sl_layer *l, sl_batch *b)
{
    return send((emu_device *)dev, &(emu_stage){ .kind = EMU_QKV, .weights = *w, .layer = *l,
                                                 .batch = *b });
}

static sl_status emu_attend(sl_device *dev, const sl_layer *l, const sl_kv_view *kv, sl_batch *b)
{
    return send((emu_device *)dev, &(emu_stage){ .kind = EMU_ATTEND, .layer = *l, .kv = *kv,
                                                 .batch = *b });
}

static sl_status emu_post(sl_device *dev, const sl_layer *l, sl_batch *b)
{
    return send((emu_device *)dev, &(emu_stage){ .kind = EMU_POST, .layer = *l, .batch = *b });
}

static sl_status emu_route(sl_device *dev, const sl_layer *l, const float *h, uint32_t n_rows,
                           uint32_t *ret_id, float *ret_w, float *ret_shared_w)
{
    emu_stage s = { .kind = EMU_ROUTE, .layer = *l };
    s.batch.n_rows = n_rows;
    s.route_h = h;
    s.batch.expert_id = ret_id;
    s.batch.expert_w = ret_w;
    s.batch.shared_w = ret_shared_w;
    return send((emu_device *)dev, &s);
}

static sl_status emu_experts(sl_device *dev, const sl_layer *l, const sl_expert_run *runs,
                             uint32_t n_runs, unsigned ends, sl_batch *b)
{
    return send((emu_device *)dev, &(emu_stage){ .kind = EMU_EXPERTS, .layer = *l, .batch = *b,
                                                 .runs = runs, .n_runs = n_runs, .ends = ends });
}

static sl_status emu_head(sl_device *dev, const sl_weights *w, sl_batch *b)
{
    return send((emu_device *)dev, &(emu_stage){ .kind = EMU_HEAD, .weights = *w, .batch = *b });
}

/* ---- create and destroy ---- */

static void emu_destroy(sl_device *dev)
{
    emu_device *d = (emu_device *)dev;
    char left[160];
    if (d->queues) finish_all(d);
    uint32_t n = d->check ? emu_check_left(d->check, left, sizeof left) : 0;
    if (n) sl_log(d->ctx, SL_ERROR, "emu: destroyed with %u pieces of memory in use: %s", n, left);
    while (d->given) emu_free(dev, d->given->p);
    emu_queues_destroy(&d->queues);
    if (d->inner) sl_device_destroy(&d->inner);
    sl_pool_destroy(&d->pool);
    sl_ctx_destroy(&d->own_ctx);
    emu_check_destroy(&d->check);
    free(d->events);
    free(d);
}

static const sl_device_ops emu_ops = {
    .name = "emu", .alloc = emu_alloc, .alloc_host = emu_alloc_host, .free = emu_free,
    .pin = emu_pin, .unpin = emu_free, .memory = emu_memory, .touch = emu_touch, .copy = emu_copy,
    .record = emu_record, .wait = emu_wait, .sync = emu_sync, .qkv = emu_qkv,
    .attend = emu_attend, .post = emu_post, .route = emu_route, .experts = emu_experts,
    .head = emu_head, .destroy = emu_destroy,
};

emu_queues *sl_emu_queues(sl_device *d)
{
    assert(d->ops == &emu_ops);
    return ((emu_device *)d)->queues;
}

/* The last n CPUs that this thread may use; fewer where there are no more. */
static uint32_t pick_cpus(uint32_t n, uint32_t *ret)
{
    cpu_set_t all;
    uint32_t got = 0;
    if (sched_getaffinity(0, sizeof all, &all) != 0) return 0;
    for (uint32_t c = CPU_SETSIZE; c-- > 0 && got < n; )
        if (CPU_ISSET(c, &all)) ret[got++] = c;
    return got;
}

/* A pool takes its cores from those that its maker may use. */
static sl_status make_pool(emu_device *d, const uint32_t *cpus, uint32_t n)
{
    cpu_set_t before, own;
    bool bound = n && sched_getaffinity(0, sizeof before, &before) == 0;
    CPU_ZERO(&own);
    for (uint32_t i = 0; i < n; i++) CPU_SET(cpus[i], &own);
    bound = bound && sched_setaffinity(0, sizeof own, &own) == 0;
    sl_status st = sl_pool_create(d->own_ctx, SL_MAX(n, 1), &d->pool);
    if (bound) (void)sched_setaffinity(0, sizeof before, &before);
    return st;
}

static sl_status make_inner(emu_device *d, const sl_accel *a, const sl_device_params *p)
{
    uint32_t cpus[64], n = pick_cpus(SL_MIN(SL_MAX(a->n_cores, 1), SL_LEN(cpus)), cpus);
    sl_device_params own = *p;
    sl_mem_report mem;
    sl_status st = make_pool(d, cpus, n);
    own.pool = d->pool;
    if (st == SL_OK) st = sl_device_create_cpu(d->own_ctx, &own, &d->inner);
    if (st != SL_OK) return sl_fail(d->ctx, st, "emu: %s", sl_error(d->own_ctx));
    sl_mem_get(d->own_ctx, &mem);
    d->mem.own_bytes = d->used_bytes = d->mem.peak_bytes = mem.total;
    d->mem.limit_bytes = a->mem_bytes;
    if (a->mem_bytes && mem.total > a->mem_bytes)
        return sl_fail(d->ctx, SL_E_NOMEM, "emu: %llu bytes of memory, the stages need %llu",
                       (unsigned long long)a->mem_bytes, (unsigned long long)mem.total);
    return emu_queues_create(d->ctx, a, run, d, cpus, n, &d->queues);
}

sl_status sl_emu_create(sl_ctx *ctx, const sl_accel *a, const sl_device_params *p, sl_device **ret)
{
    emu_device *d = calloc(1, sizeof *d);
    if (!d) return sl_fail(ctx, SL_E_NOMEM, "emu device");
    d->base.ops = &emu_ops;
    d->ctx = ctx;
    d->max_rows = p->max_rows;
    d->own_ctx = sl_ctx_create(NULL, NULL);
    d->check = emu_check_create();
    d->events = calloc(SL_N_QUEUES * EVENTS, sizeof *d->events);
    sl_status st = d->own_ctx && d->check && d->events
                       ? SL_OK : sl_fail(ctx, SL_E_NOMEM, "emu device");
    if (st == SL_OK) st = make_inner(d, a, p);
    if (st != SL_OK) emu_destroy(&d->base);
    else *ret = &d->base;
    return st;
}
