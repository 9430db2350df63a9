/* offload/emu_queue.c - threads that run lists of operations.
 * Invariants, under `m`: an operation runs when all before it in its queue are over; n_done counts
 * those, n_sent those submitted. Times of copies are a schedule of their own: one is on its link
 * from when it is due and the link is free, wherever the thread that makes it is by then, so that
 * late wake-ups are not added up. It is over when both the schedule and the thread say so. */
#include "offload/emu_queue.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum op_kind { COPY, STAGE, WAIT };

struct op {
    struct op *next;
    enum op_kind kind;
    uint32_t link, layer;
    sl_queue on;                /* WAIT */
    uint64_t n;                 /* WAIT: operations of `on`; COPY: bytes */
    void *dst;                  /* COPY; STAGE: what fn gets */
    const void *src;
    const char *what;
    double sent_s;
};

struct link {
    double bytes_s;             /* 0: no limit */
    double free_s;              /* when it is free again, by the schedule */
    uint64_t next_ticket, serving;
};

enum { DONE_TIMES = 8192 };     /* when the latest operations were over: more than events reach */

struct queue {
    emu_queues *e;
    sl_queue index;
    pthread_t thread;
    bool started;
    pthread_cond_t more;        /* an operation was submitted */
    struct op *first, *last;
    uint64_t n_sent, n_done;
    double ready_s;             /* when the next operation is due at the earliest */
    double *done_s;             /* [DONE_TIMES] */
};

struct emu_queues {
    pthread_mutex_t m;
    pthread_cond_t done;        /* an operation is over, or a link's turn has come */
    struct queue q[SL_N_QUEUES];
    struct link link[EMU_LINKS];
    double link_s;
    emu_stage_fn fn;
    void *user;
    cpu_set_t cpus;
    bool bound, quit;
    sl_status status;
    emu_busy busy;
    emu_span *spans;
    uint32_t n_spans, cap;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void sleep_until(double s)
{
    struct timespec t = { .tv_sec = (time_t)s };
    t.tv_nsec = (long)((s - (double)t.tv_sec) * 1e9);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0) {}
}

static void note(emu_queues *e, const struct queue *q, const struct op *o, double from, double to)
{
    if (e->n_spans == e->cap) return;
    e->spans[e->n_spans++] =
        (emu_span){ .queue = q->index, .what = o->what, .layer = o->layer,
                    .bytes = o->kind == COPY ? o->n : 0, .from_s = from, .to_s = to };
}

/* ---- operations; all are called and return with `m` held ---- */

/* Returns when it is over. */
static double run_copy(struct queue *q, const struct op *o)
{
    emu_queues *e = q->e;
    struct link *l = &e->link[o->link];
    uint64_t ticket = l->next_ticket++;
    while (l->serving != ticket) pthread_cond_wait(&e->done, &e->m);
    double due = SL_MAX(o->sent_s, q->ready_s);
    double start = l->bytes_s > 0 ? SL_MAX(due, l->free_s) : now_s();
    double wire = l->bytes_s > 0 ? (double)o->n / l->bytes_s : 0;
    pthread_mutex_unlock(&e->m);
    memcpy(o->dst, o->src, o->n);
    double off = start + wire, end = SL_MAX(off, now_s());
    sleep_until(end);
    pthread_mutex_lock(&e->m);
    l->free_s = q->ready_s = l->bytes_s > 0 ? off : end;
    l->serving++;
    pthread_cond_broadcast(&e->done);
    e->busy.link_s[o->link] += l->free_s - start;
    e->busy.link_bytes[o->link] += o->n;
    note(e, q, o, start, l->free_s);
    if (o->link == EMU_LINK_INSIDE || e->link_s <= 0) return end;
    pthread_mutex_unlock(&e->m);
    sleep_until(end + e->link_s);
    pthread_mutex_lock(&e->m);
    return end + e->link_s;
}

static double run_stage(struct queue *q, const struct op *o)
{
    emu_queues *e = q->e;
    bool skip = e->status != SL_OK;
    pthread_mutex_unlock(&e->m);
    double start = now_s();
    sl_status st = skip ? SL_OK : e->fn(e->user, o->dst);
    double end = now_s();
    free(o->dst);
    pthread_mutex_lock(&e->m);
    if (e->status == SL_OK) e->status = st;
    e->busy.compute_s += end - start;
    note(e, q, o, start, end);
    q->ready_s = end;
    return end;
}

static double run_wait(struct queue *q, const struct op *o)
{
    emu_queues *e = q->e;
    const struct queue *on = &e->q[o->on];
    while (on->n_done < o->n) pthread_cond_wait(&e->done, &e->m);
    double at = on->n_done - o->n < DONE_TIMES ? on->done_s[o->n % DONE_TIMES] : 0;
    q->ready_s = SL_MAX(q->ready_s, at);
    return q->ready_s;
}

static void *queue_main(void *arg)
{
    struct queue *q = arg;
    emu_queues *e = q->e;
    (void)prctl(PR_SET_TIMERSLACK, 1000ul, 0, 0, 0);
    if (q->index == SL_Q_COMPUTE && e->bound)
        (void)pthread_setaffinity_np(pthread_self(), sizeof e->cpus, &e->cpus);
    pthread_mutex_lock(&e->m);
    for (;;) {
        while (!q->first && !e->quit) pthread_cond_wait(&q->more, &e->m);
        struct op *o = q->first;
        if (!o) break;
        double end = o->kind == COPY    ? run_copy(q, o)
                   : o->kind == STAGE ? run_stage(q, o)
                                      : run_wait(q, o);
        q->first = o->next;
        if (!q->first) q->last = NULL;
        q->n_done++;
        q->done_s[q->n_done % DONE_TIMES] = end;
        pthread_cond_broadcast(&e->done);
        free(o);
    }
    pthread_mutex_unlock(&e->m);
    return NULL;
}

/* ---- the driver's side ---- */

static uint64_t submit(emu_queues *e, sl_queue index, struct op op)
{
    struct queue *q = &e->q[index];
    struct op *o = malloc(sizeof *o);
    if (!o) return 0;
    *o = op;
    o->sent_s = now_s();
    pthread_mutex_lock(&e->m);
    if (q->last) q->last->next = o;
    else q->first = o;
    q->last = o;
    uint64_t n = ++q->n_sent;
    pthread_cond_signal(&q->more);
    pthread_mutex_unlock(&e->m);
    return n;
}

uint64_t emu_queue_copy(emu_queues *e, sl_queue q, void *dst, const void *src, size_t bytes,
                        uint32_t link)
{
    return submit(e, q, (struct op){ .kind = COPY, .link = link, .layer = UINT32_MAX, .n = bytes,
                                     .dst = dst, .src = src, .what = "copy" });
}

uint64_t emu_queue_stage(emu_queues *e, void *stage, const char *what, uint32_t layer)
{
    return submit(e, SL_Q_COMPUTE,
                  (struct op){ .kind = STAGE, .layer = layer, .dst = stage, .what = what });
}

uint64_t emu_queue_wait(emu_queues *e, sl_queue q, sl_queue on, uint64_t n)
{
    assert(n <= e->q[on].n_sent);
    return submit(e, q, (struct op){ .kind = WAIT, .on = on, .n = n, .layer = UINT32_MAX });
}

/* Only the driver changes n_sent. */
uint64_t emu_queue_count(const emu_queues *e, sl_queue q)
{
    return e->q[q].n_sent;
}

void emu_queue_sync(emu_queues *e, sl_queue q, uint64_t n)
{
    assert(n <= e->q[q].n_sent);
    pthread_mutex_lock(&e->m);
    while (e->q[q].n_done < n) pthread_cond_wait(&e->done, &e->m);
    pthread_mutex_unlock(&e->m);
}

sl_status emu_queues_status(emu_queues *e)
{
    pthread_mutex_lock(&e->m);
    sl_status st = e->status;
    pthread_mutex_unlock(&e->m);
    return st;
}

void emu_queues_busy(emu_queues *e, emu_busy *ret)
{
    pthread_mutex_lock(&e->m);
    *ret = e->busy;
    pthread_mutex_unlock(&e->m);
    for (uint32_t i = 0; i < SL_N_QUEUES; i++) {
        clockid_t id;
        struct timespec t;
        if (!e->q[i].started || pthread_getcpuclockid(e->q[i].thread, &id) != 0
            || clock_gettime(id, &t) != 0)
            continue;
        ret->queue_cpu_s[i] = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
}

uint32_t emu_queues_trace(emu_queues *e, emu_span *spans, uint32_t cap)
{
    pthread_mutex_lock(&e->m);
    uint32_t n = e->n_spans;
    e->spans = spans;
    e->cap = spans ? cap : 0;
    e->n_spans = 0;
    pthread_mutex_unlock(&e->m);
    return n;
}

sl_status emu_queues_create(sl_ctx *ctx, const sl_accel *a, emu_stage_fn fn, void *user,
                            const uint32_t *cpus, uint32_t n_cpus, emu_queues **ret)
{
    emu_queues *e = calloc(1, sizeof *e);
    if (!e) return sl_fail(ctx, SL_E_NOMEM, "emu: queues");
    pthread_mutex_init(&e->m, NULL);
    pthread_cond_init(&e->done, NULL);
    e->fn = fn;
    e->user = user;
    e->link[EMU_LINK_UP].bytes_s = a->up_bytes_s;
    e->link[EMU_LINK_DOWN].bytes_s = a->down_bytes_s;
    e->link_s = a->link_s;
    e->bound = n_cpus > 0;
    CPU_ZERO(&e->cpus);
    for (uint32_t i = 0; i < n_cpus; i++) CPU_SET(cpus[i], &e->cpus);
    sl_status st = SL_OK;
    for (uint32_t i = 0; i < SL_N_QUEUES; i++) {
        struct queue *q = &e->q[i];
        q->e = e;
        q->index = (sl_queue)i;
        pthread_cond_init(&q->more, NULL);
        q->done_s = calloc(DONE_TIMES, sizeof *q->done_s);
        if (!q->done_s) st = sl_fail(ctx, SL_E_NOMEM, "emu: a queue");
        q->started = st == SL_OK && pthread_create(&q->thread, NULL, queue_main, q) == 0;
        if (st == SL_OK && !q->started) st = sl_fail(ctx, SL_E_DEVICE, "emu: a queue's thread");
    }
    if (st != SL_OK) emu_queues_destroy(&e);
    else *ret = e;
    return st;
}

void emu_queues_destroy(emu_queues **queues)
{
    emu_queues *e = *queues;
    if (!e) return;
    pthread_mutex_lock(&e->m);
    e->quit = true;
    for (uint32_t i = 0; i < SL_N_QUEUES; i++) pthread_cond_signal(&e->q[i].more);
    pthread_mutex_unlock(&e->m);
    for (uint32_t i = 0; i < SL_N_QUEUES; i++) {
        if (e->q[i].started) pthread_join(e->q[i].thread, NULL);
        pthread_cond_destroy(&e->q[i].more);
        free(e->q[i].done_s);
    }
    pthread_cond_destroy(&e->done);
    pthread_mutex_destroy(&e->m);
    free(e);
    *queues = NULL;
}
