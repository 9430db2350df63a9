/* tests/t_emu.c - the emulated device: each misuse of memory and order is found, whatever the
 * timing, and right use is not; links take the time they should; limits hold. Stages are tested
 * through engines (tests/t_split.c); here one of them, the router, stands for all. */
#include "offload/device_emu.h"
#include "tests/t.h"

#include <math.h>
#include <time.h>

enum { D = 64, EXPERTS = 8, USED = 2, ROWS = 4, MIB = 1 << 20 };

typedef struct fixture {
    sl_ctx *ctx;
    sl_device *d;
    const sl_device_ops *o;
    sl_layer layer;
    float *dev_h, *dev_router, *dev_w, *dev_shared;     /* device memory */
    uint32_t *dev_id;
    float *host_h, *host_router, *host_w;               /* pinned */
    uint32_t *host_id;
    char log[512];
} fixture;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void keep_log(void *user, sl_level level, const char *msg)
{
    fixture *f = user;
    if (level == SL_ERROR) snprintf(f->log, sizeof f->log, "%s", msg);
}

static void open_device(fixture *f, const sl_accel *a)
{
    memset(f, 0, sizeof *f);
    f->ctx = sl_ctx_create(keep_log, f);
    sl_device_params p = { .max_rows = ROWS, .max_logits = ROWS, .cpu_mask = ~0u,
                           .widths = { .d_model = D, .cols = D, .n_expert = EXPERTS,
                                       .n_used = USED, .ff_sum = D, .n_head = 1, .head_dim = D } };
    T_NEED(sl_device_create_accel(f->ctx, a, &p, &f->d) == SL_OK, "%s", sl_error(f->ctx));
    f->o = f->d->ops;
}

static void *take(fixture *f, size_t bytes, bool host)
{
    void *p = NULL;
    sl_status st = host ? f->o->alloc_host(f->d, SL_ACC_SCRATCH, bytes, &p)
                        : f->o->alloc(f->d, SL_ACC_SCRATCH, bytes, &p);
    T_NEED(st == SL_OK, "%s", sl_error(f->ctx));
    return p;
}

static void begin(fixture *f)
{
    const sl_accel slow = { .kind = SL_ACCEL_EMU, .n_cores = 1, .mem_bytes = 64 * MIB,
                            .up_bytes_s = 1e8, .down_bytes_s = 1e8, .link_s = 1e-4 };
    open_device(f, &slow);
    f->dev_h = take(f, ROWS * D * 4, false);
    f->dev_router = take(f, EXPERTS * D * 4, false);
    f->dev_id = take(f, ROWS * USED * 4, false);
    f->dev_w = take(f, ROWS * USED * 4, false);
    f->dev_shared = take(f, ROWS * 4, false);
    f->host_h = take(f, ROWS * D * 4, true);
    f->host_router = take(f, EXPERTS * D * 4, true);
    f->host_id = take(f, ROWS * USED * 4, true);
    f->host_w = take(f, ROWS * USED * 4, true);
    for (int i = 0; i < ROWS * D; i++) f->host_h[i] = (float)t_below(1000) / 500 - 1;
    for (int i = 0; i < EXPERTS * D; i++) f->host_router[i] = (float)t_below(1000) / 500 - 1;
    f->layer.router = (sl_mat){ .data = f->dev_router, .row_bytes = D * 4, .rows = EXPERTS,
                                .cols = D, .count = 1, .type = SL_F32 };
    f->layer.routing = (sl_routing){ .score = SL_SCORE_SOFTMAX, .n_expert = EXPERTS,
                                     .n_used = USED, .scale = 1 };
}

static void end(fixture *f, bool all_freed)
{
    void *all[] = { f->dev_h, f->dev_router, f->dev_id, f->dev_w, f->dev_shared, f->host_h,
                    f->host_router, f->host_id, f->host_w };
    sl_mem_report r;
    for (size_t i = 0; i < SL_LEN(all) && all_freed; i++) f->o->free(f->d, all[i]);
    sl_device_destroy(&f->d);
    sl_mem_get(f->ctx, &r);
    T_CHECK(!r.total, "%llu bytes of host memory are left", (unsigned long long)r.total);
    sl_ctx_destroy(&f->ctx);
}

/* ---- one operation each ---- */

static sl_status up(fixture *f, sl_queue q, void *dst, const void *src, size_t bytes)
{
    return f->o->copy(f->d, q, dst, src, bytes);
}

static sl_status order(fixture *f, sl_queue before, sl_queue behind)
{
    sl_event ev;
    SL_TRY(f->o->record(f->d, before, &ev));
    return f->o->wait(f->d, behind, ev);
}

static sl_status finish(fixture *f, sl_queue q)
{
    sl_event ev;
    SL_TRY(f->o->record(f->d, q, &ev));
    return f->o->sync(f->d, ev);
}

static sl_status route(fixture *f)
{
    return f->o->route(f->d, &f->layer, f->dev_h, ROWS, f->dev_id, f->dev_w, f->dev_shared);
}

/* Weights and activations go up; the compute queue waits for them, or not. */
static sl_status send(fixture *f, bool wait_weights, bool wait_up)
{
    SL_TRY(up(f, SL_Q_WEIGHTS, f->dev_router, f->host_router, EXPERTS * D * 4));
    if (wait_weights) SL_TRY(order(f, SL_Q_WEIGHTS, SL_Q_COMPUTE));
    SL_TRY(up(f, SL_Q_UP, f->dev_h, f->host_h, ROWS * D * 4));
    if (wait_up) SL_TRY(order(f, SL_Q_UP, SL_Q_COMPUTE));
    return SL_OK;
}

static sl_status fetch(fixture *f, bool wait)
{
    if (wait) SL_TRY(order(f, SL_Q_COMPUTE, SL_Q_DOWN));
    SL_TRY(up(f, SL_Q_DOWN, f->host_id, f->dev_id, ROWS * USED * 4));
    return up(f, SL_Q_DOWN, f->host_w, f->dev_w, ROWS * USED * 4);
}

/* ---- right use ---- */

static void check_right_use(void)
{
    fixture f;
    begin(&f);
    for (int turn = 0; turn < 3; turn++) {
        f.o->touch(f.d, f.host_h, ROWS * D * 4, true);
        for (int i = 0; i < ROWS * D; i++) f.host_h[i] += 0.5f;
        T_CHECK(send(&f, true, true) == SL_OK, "%s", sl_error(f.ctx));
        T_CHECK(route(&f) == SL_OK, "%s", sl_error(f.ctx));
        T_CHECK(fetch(&f, true) == SL_OK, "%s", sl_error(f.ctx));
        T_CHECK(finish(&f, SL_Q_DOWN) == SL_OK, "%s", sl_error(f.ctx));
        f.o->touch(f.d, f.host_id, ROWS * USED * 4, false);
        for (uint32_t r = 0; r < ROWS; r++) {
            double best = -INFINITY;
            uint32_t at = 0;
            for (uint32_t x = 0; x < EXPERTS; x++) {
                double s = 0;
                for (uint32_t i = 0; i < D; i++)
                    s += (double)f.host_router[x * D + i] * f.host_h[r * D + i];
                if (s > best) best = s, at = x;
            }
            T_CHECK(f.host_id[r * USED] == at, "row %u: expert %u, expected %u", r,
                    f.host_id[r * USED], at);
        }
        /* what the stage read is written anew behind it */
        T_CHECK(order(&f, SL_Q_COMPUTE, SL_Q_WEIGHTS) == SL_OK
                    && order(&f, SL_Q_COMPUTE, SL_Q_UP) == SL_OK,
                "%s", sl_error(f.ctx));
    }
    end(&f, true);
    T_CHECK(!f.log[0], "%s", f.log);
}

/* ---- misuse ---- */

typedef enum misuse {
    NO_WAIT_FOR_WEIGHTS, NO_WAIT_FOR_UP, NO_WAIT_FOR_STAGE, NO_SYNC, SOURCE_CHANGED, SLOT_REUSED,
    USED_AFTER_FREE, FREED_IN_FLIGHT, FREED_TWICE, HOST_POINTER, BEYOND_THE_END, STALE_EVENT,
    UNPINNED_IN_FLIGHT, N_MISUSES
} misuse;

static const struct { const char *name, *says; } misuses[N_MISUSES] = {
    { "a stage does not wait for its weights", "no event orders them" },
    { "a stage does not wait for its input", "no event orders them" },
    { "a copy does not wait for the stage", "no event orders them" },
    { "the driver reads what is on its way", "no event orders them" },
    { "the driver writes what a copy reads", "no event orders them" },
    { "a slot is filled while a stage reads it", "no event orders them" },
    { "a stage uses freed memory", "after it was freed" },
    { "memory is freed while a stage uses it", "no event orders them" },
    { "memory is freed twice", "freed twice" },
    { "a stage gets host memory", "is not device memory" },
    { "a copy reaches beyond its memory", "" },
    { "an event that is too old", "not known any more" },
    { "host memory is unpinned under a copy", "no event orders them" },
};

static sl_status stale_event(fixture *f)
{
    sl_event first, ev;
    SL_TRY(f->o->record(f->d, SL_Q_UP, &first));
    for (int i = 0; i < 5000; i++) SL_TRY(f->o->record(f->d, SL_Q_UP, &ev));
    return f->o->wait(f->d, SL_Q_COMPUTE, first);
}

static sl_status unpin_in_flight(fixture *f)
{
    static float mine[ROWS * D];
    SL_TRY(f->o->pin(f->d, mine, sizeof mine));
    SL_TRY(up(f, SL_Q_UP, f->dev_h, mine, sizeof mine));
    f->o->unpin(f->d, mine);
    return finish(f, SL_Q_UP);
}

static sl_status do_wrong(fixture *f, misuse m)
{
    switch (m) {
    case STALE_EVENT: return stale_event(f);
    case UNPINNED_IN_FLIGHT: return unpin_in_flight(f);
    case BEYOND_THE_END:
        SL_TRY(up(f, SL_Q_UP, f->dev_h + ROWS * D - 8, f->host_h, 256));
        return finish(f, SL_Q_UP);
    case HOST_POINTER: f->layer.router.data = f->host_router; break;
    case FREED_TWICE:
        f->o->free(f->d, f->dev_h);
        f->o->free(f->d, f->dev_h);
        return finish(f, SL_Q_UP);
    default: break;
    }
    SL_TRY(send(f, m != NO_WAIT_FOR_WEIGHTS, m != NO_WAIT_FOR_UP));
    if (m == SOURCE_CHANGED) {
        f->o->touch(f->d, f->host_h, 4, true);
        return finish(f, SL_Q_UP);
    }
    if (m == USED_AFTER_FREE) {
        SL_TRY(finish(f, SL_Q_WEIGHTS));
        f->o->free(f->d, f->dev_router);
    }
    SL_TRY(route(f));
    if (m == SLOT_REUSED) return up(f, SL_Q_WEIGHTS, f->dev_router, f->host_router, 64);
    if (m == FREED_IN_FLIGHT) {
        f->o->free(f->d, f->dev_router);
        return finish(f, SL_Q_COMPUTE);
    }
    SL_TRY(fetch(f, m != NO_WAIT_FOR_STAGE));
    if (m == NO_SYNC) f->o->touch(f->d, f->host_id, 4, false);
    return finish(f, SL_Q_DOWN);
}

static void check_misuse(misuse m)
{
    fixture f;
    begin(&f);
    sl_status st = do_wrong(&f, m);
    T_CHECK(st == SL_E_DEVICE, "%s: %s", misuses[m].name, sl_status_name(st));
    T_CHECK(strstr(sl_error(f.ctx), misuses[m].says), "%s: %s", misuses[m].name, sl_error(f.ctx));
    if (m != STALE_EVENT)
        T_CHECK(finish(&f, SL_Q_COMPUTE) == SL_E_DEVICE, "%s: forgotten", misuses[m].name);
    end(&f, false);
}

static void check_leak(void)
{
    fixture f;
    begin(&f);
    end(&f, false);
    T_CHECK(strstr(f.log, "9 pieces of memory in use"), "%s", f.log);
}

static void check_limit(void)
{
    fixture f;
    sl_device_memory m;
    void *p = NULL;
    begin(&f);
    f.o->memory(f.d, &m);
    size_t left = m.limit_bytes - m.own_bytes - m.bytes[SL_ACC_SCRATCH];
    T_CHECK(m.limit_bytes == 64 * MIB && m.own_bytes > 0, "limit %llu, own %llu",
            (unsigned long long)m.limit_bytes, (unsigned long long)m.own_bytes);
    T_CHECK(f.o->alloc(f.d, SL_ACC_KV, left + 1, &p) == SL_E_NOMEM && !p, "beyond the limit");
    T_CHECK(f.o->alloc(f.d, SL_ACC_KV, left / 64 * 64, &p) == SL_OK, "%s", sl_error(f.ctx));
    f.o->free(f.d, p);
    f.o->memory(f.d, &m);
    T_CHECK(!m.bytes[SL_ACC_KV] && m.peak_bytes > 64 * MIB - 64, "peak %llu",
            (unsigned long long)m.peak_bytes);
    end(&f, true);
}

/* ---- links ---- */

/* 24 copies on two queues share the link up; the link down is another one. */
static void check_links(void)
{
    const sl_accel a = { .kind = SL_ACCEL_EMU, .n_cores = 1, .mem_bytes = 64 * MIB,
                         .up_bytes_s = 2e8, .down_bytes_s = 1e8, .link_s = 1e-5 };
    fixture f;
    emu_busy busy;
    sl_event ev[3];
    open_device(&f, &a);
    char *dev = take(&f, 4 * MIB, false), *host = take(&f, 4 * MIB, true);
    double start = now_s();
    for (int i = 0; i < 12; i++) {
        sl_status st = up(&f, SL_Q_WEIGHTS, dev, host, MIB);
        if (st == SL_OK) st = up(&f, SL_Q_UP, dev + MIB, host + MIB, MIB);
        if (st == SL_OK) st = up(&f, SL_Q_DOWN, host + 3 * MIB, dev + 3 * MIB, MIB);
        T_CHECK(st == SL_OK, "%s", sl_error(f.ctx));
    }
    for (int i = 0; i < 3; i++)
        T_CHECK(f.o->record(f.d, (sl_queue)(SL_Q_WEIGHTS + i), &ev[i]) == SL_OK, "record");
    for (int i = 0; i < 3; i++) T_CHECK(f.o->sync(f.d, ev[i]) == SL_OK, "%s", sl_error(f.ctx));
    double s = now_s() - start, want = 24 * MIB / 2e8;
    emu_queues_busy(sl_emu_queues(f.d), &busy);
    T_CHECK(s >= want * 0.999, "24 MiB at 200 MB/s in %.4f s, not less than %.4f", s, want);
    T_CHECK(fabs(busy.link_s[EMU_LINK_UP] - want) < 1e-6, "the link up was busy for %.4f of %.4f",
            busy.link_s[EMU_LINK_UP], want);
    T_CHECK(fabs(busy.link_s[EMU_LINK_DOWN] - 12 * MIB / 1e8) < 1e-6, "the link down for %.4f",
            busy.link_s[EMU_LINK_DOWN]);
    printf("24 MiB up and 12 MiB down: %.4f s, the links need %.4f\n", s, want);
    f.o->free(f.d, dev);
    f.o->free(f.d, host);
    end(&f, false);
}

/* Host memory that nobody pinned: right, and the driver waits. */
static void check_unpinned(void)
{
    fixture f;
    float plain[ROWS * D];
    begin(&f);
    for (int i = 0; i < ROWS * D; i++) plain[i] = (float)i;
    T_CHECK(up(&f, SL_Q_UP, f.dev_h, plain, sizeof plain) == SL_OK, "%s", sl_error(f.ctx));
    memset(plain, 0, sizeof plain);
    T_CHECK(order(&f, SL_Q_UP, SL_Q_DOWN) == SL_OK, "%s", sl_error(f.ctx));
    T_CHECK(up(&f, SL_Q_DOWN, plain, f.dev_h, sizeof plain) == SL_OK, "%s", sl_error(f.ctx));
    for (int i = 0; i < ROWS * D; i++)
        T_CHECK(plain[i] == (float)i, "element %d is %g", i, (double)plain[i]);
    end(&f, true);
}

int main(void)
{
    t_begin();
    check_right_use();
    for (int m = 0; m < N_MISUSES; m++) check_misuse((misuse)m);
    check_leak();
    check_limit();
    check_links();
    check_unpinned();
    return t_end();
}
