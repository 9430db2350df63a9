/* offload/probe_engine.c - how fast the engine's own stages run: layers made of noise, computed by
 * the cpu device. What is measured is a stage as a pass submits it; points are visited in turn,
 * all of them again and again, since a shared machine changes its mind from second to second.
 * Invariant: every byte of the weights' memory is such that any type of tensor finds sane numbers
 * there, so one piece of memory serves all types. */
#include "offload/probe.h"

#include <assert.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "offload/sl_device.h"
#include "runtime/base/sl_numa.h"

enum {
    D_MODEL = 2048, D_EXPERT = 1024, N_USED = 8,
    MAX_DIM = D_MODEL, DIM_UNIT = 256,
    N_HEAD = 32, N_HEAD_KV = 4, HEAD_DIM = 128,
    MAX_ROWS = 512,             /* of a pass: a prompt whose attention is timed */
    CONTEXT = 1024,             /* positions that a decoding row attends to */
    /* of the heads of a stage with next to nothing to do; its rows are so short that thrice as many
     * still stay in a core's second cache, or what is extrapolated falls below 0 */
    SMALL_DIM = 16, SMALL_COLS = 256,
    FEW_ROWS = 8,
    QX_GROUP = 256,
    ELEM_ROWS = 8,              /* of a task */
    ALL_ELEM_ROWS = 128,        /* so few that neighbours leave them in the last cache */
    CALL_ROWS = 64,             /* of an expert, to time calls of few and of many */
    KV_BLOCK = 64,              /* rows */
    MAX_CALLS = 1000            /* of one visit */
};

struct probe_engine {
    sl_ctx *ctx;
    uint32_t n_threads;         /* devices */
    uint32_t threads[SL_MACHINE_COSTS];
    probe_dims dims;
    sl_pool *pool[SL_MACHINE_COSTS];
    sl_device *dev[SL_MACHINE_COSTS];
    char *weights;              /* the caller's */
    size_t bytes;
    uint64_t turn;              /* matrices taken from weights so far */
    float *acts;
    sl_batch b;
    sl_kernels k;
    uint32_t pos[MAX_ROWS], seq[MAX_ROWS];
    float expert_w[MAX_ROWS];
    uint32_t blocks[CONTEXT / KV_BLOCK];
    float ones[D_MODEL];
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- memory ---- */

/* splitmix64: Steele, Lea, Flood, OOPSLA 2014. As float16, bfloat16 or float32 at an even address
 * every word is a normal number from 2^-63 to 1; as the scale of MXFP4 a power of two of that kind;
 * no byte is -128, which quantisers never make. */
static void noise(uint64_t seed, void *to, size_t n)
{
    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t z = (seed += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z = ((z ^ (z >> 31)) & 0x1f7f1f7f1f7f1f7fu) | 0x2000200020002000u;
        memcpy((char *)to + i, &z, sizeof z);
    }
}

enum { NOISE_PIECE = 1 << 20 };

static void noise_task(void *arg, uint32_t index, uint32_t thread)
{
    const probe_engine *e = arg;
    size_t at = (size_t)index * NOISE_PIECE;
    (void)thread;
    noise(index * 0x100000001b3u, e->weights + at, SL_MIN(e->bytes - at, (size_t)NOISE_PIECE));
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    for (uint64_t r; b; a = b, b = r) r = a % b;
    return a;
}

/* A matrix of noise, each time at another place, so that its bytes come from RAM: places follow
 * each other in strides of about 0.618 of the memory, and none comes again before all others
 * have. */
static sl_mat matrix(probe_engine *e, sl_type type, uint32_t rows, uint32_t cols)
{
    sl_mat m = { .rows = rows, .cols = cols, .count = 1, .type = type };
    bool ok = sl_type_row_bytes(type, cols, &m.row_bytes);
    assert(ok);
    (void)ok;
    uint64_t room = (m.row_bytes * rows + 8191) / 4096 * 4096, n = e->bytes / room;
    assert(n);
    uint64_t step = SL_MAX((uint64_t)(0.618 * (double)n), (uint64_t)1);
    while (common_divisor(step, n) > 1) step--;
    m.data = e->weights + e->turn * step % n * room + 32 * (e->turn % 128);
    e->turn++;
    return m;
}

/* ---- what is timed ---- */

static sl_norm norm_of(const probe_engine *e)
{
    return (sl_norm){ .kind = SL_NORM_RMS, .eps = 1e-6f, .weight = e->ones };
}

/* Rows of the pass in which experts get n of them each: one in eight of a prompt, all of a few that
 * decode. */
static uint32_t pass_rows(uint32_t n)
{
    return n < FEW_ROWS ? n : SL_MIN(n * N_USED, (uint32_t)MAX_ROWS);
}

/* One call of `experts`: n_runs of a layer's, each on n rows. */
static sl_status experts(probe_engine *e, uint32_t at, sl_type type, uint32_t n, uint32_t n_runs)
{
    uint32_t d = e->dims.d_model, ff = e->dims.d_expert;
    uint32_t rows[N_USED][MAX_ROWS], all = pass_rows(n);
    sl_expert_run runs[N_USED];
    sl_layer l = { .moe = true, .residual_scale = 1, .act = { .kind = SL_ACT_SILU } };
    e->b.n_rows = all;
    for (uint32_t i = 0; i < n_runs; i++) {
        for (uint32_t j = 0; j < n; j++) rows[i][j] = j * (all / n) + i % (all / n);
        runs[i] = (sl_expert_run){ .ffn = { .gate = matrix(e, type, ff, d),
                                            .up = matrix(e, type, ff, d),
                                            .down = matrix(e, type, d, ff) },
                                   .rows = rows[i], .weights = e->expert_w, .n_rows = n,
                                   .index = i };
    }
    return e->dev[at]->ops->experts(e->dev[at], &l, runs, n_runs, 0, &e->b);
}

/* One call of `qkv` with n_head heads of dim elements, whose few weights stay in the cache. */
static sl_status small_stage(probe_engine *e, uint32_t at, uint32_t n_head, uint32_t dim,
                             uint32_t n_rows)
{
    n_head = SL_MIN(n_head, (uint32_t)(N_HEAD * HEAD_DIM) / dim);
    sl_weights w = { .d_model = SMALL_COLS, .n_layer = 1 };
    sl_mat m = { .data = e->weights, .rows = n_head * dim, .cols = SMALL_COLS, .count = 1,
                 .type = SL_Q8_0 };
    bool ok = sl_type_row_bytes(m.type, m.cols, &m.row_bytes);
    assert(ok);
    (void)ok;
    sl_layer l = { .attn = { .kind = SL_ATTN_GQA, .n_head = n_head, .n_head_kv = n_head,
                             .k_dim = dim, .v_dim = dim, .q = m, .k = m, .v = m,
                             .norm = norm_of(e) } };
    e->b.n_rows = n_rows;
    return e->dev[at]->ops->qkv(e->dev[at], &w, &l, &e->b);
}

/* One call of `attend`: n_head queries a row, n_rows of one sequence, the last at position
 * `last`. */
static sl_status attend(probe_engine *e, uint32_t at, uint32_t n_head, uint32_t n_rows,
                        uint32_t last)
{
    const uint32_t *blocks = e->blocks;
    uint64_t half = (uint64_t)CONTEXT * N_HEAD_KV * HEAD_DIM * 2;
    uint64_t n = e->bytes / (2 * half), turn = e->turn++ % n;
    sl_layer l = { .attn = { .kind = SL_ATTN_GQA, .n_head = n_head, .n_head_kv = N_HEAD_KV,
                             .k_dim = HEAD_DIM, .v_dim = HEAD_DIM, .scale = 0.088f } };
    sl_kv_view kv = { .k = e->weights + 2 * turn * half, .v = e->weights + (2 * turn + 1) * half,
                      .k_bytes = N_HEAD_KV * HEAD_DIM * 2, .v_bytes = N_HEAD_KV * HEAD_DIM * 2,
                      .blocks = &blocks, .block_rows = KV_BLOCK, .type = SL_F16 };
    for (uint32_t i = 0; i < n_rows; i++) e->pos[i] = last + 1 - n_rows + i;
    e->b.n_rows = n_rows;
    return e->dev[at]->ops->attend(e->dev[at], &l, &kv, &e->b);
}

/* What `qkv` does to each row beside products: norm, quantise, norm and turn heads. */
static void norm_task(void *arg, uint32_t index, uint32_t thread)
{
    const probe_engine *e = arg;
    size_t d = e->dims.d_model;
    sl_norm norm = norm_of(e);
    (void)thread;
    for (uint32_t i = index * ELEM_ROWS; i < (index + 1) * ELEM_ROWS; i++)
        e->k.norm(&norm, e->b.x + i * d, e->b.h + i * d, (uint32_t)d);
}

static void quantise_task(void *arg, uint32_t index, uint32_t thread)
{
    const probe_engine *e = arg;
    size_t d = e->dims.d_model;
    (void)thread;
    for (uint32_t i = index * ELEM_ROWS; i < (index + 1) * ELEM_ROWS; i++)
        e->k.quantise(QX_GROUP, e->b.h + i * d, d, (char *)(e->b.att + i * d));
}

static void heads_task(void *arg, uint32_t index, uint32_t thread)
{
    const probe_engine *e = arg;
    sl_norm norm = norm_of(e);
    (void)thread;
    for (uint32_t i = index * ELEM_ROWS; i < (index + 1) * ELEM_ROWS; i++)
        for (uint32_t h = 0; h < N_HEAD + N_HEAD_KV; h++) {
            float *q = h < N_HEAD ? e->b.q + ((size_t)i * N_HEAD + h) * HEAD_DIM
                                  : e->b.k + ((size_t)i * N_HEAD_KV + h - N_HEAD) * HEAD_DIM;
            e->k.norm(&norm, q, q, HEAD_DIM);
            e->k.rope(SL_ROPE_HALVES, e->ones, e->ones, HEAD_DIM, q);
        }
}

static void run_elems(probe_engine *e, uint32_t at)
{
    sl_pool_run(e->pool[at], norm_task, e, ALL_ELEM_ROWS / ELEM_ROWS);
    sl_pool_run(e->pool[at], quantise_task, e, ALL_ELEM_ROWS / ELEM_ROWS);
    sl_pool_run(e->pool[at], heads_task, e, ALL_ELEM_ROWS / ELEM_ROWS);
}

sl_status probe_engine_call(probe_engine *e, const probe_point *p)
{
    switch (p->what) {
    case PROBE_GEMM: return experts(e, p->at, p->type, p->rows, N_USED);
    case PROBE_CALL1: return experts(e, p->at, SL_Q4_K, CALL_ROWS, 1);
    case PROBE_CALL8: return experts(e, p->at, SL_Q4_K, CALL_ROWS, 8);
    case PROBE_STAGE: return small_stage(e, p->at, 2 * e->threads[p->at], SMALL_DIM, 1);
    case PROBE_STAGE3: return small_stage(e, p->at, 6 * e->threads[p->at], SMALL_DIM, 1);
    case PROBE_ELEM: run_elems(e, p->at); return SL_OK;
    case PROBE_DECODE: return attend(e, p->at, N_HEAD, 1, CONTEXT - 1);
    case PROBE_DECODE1: return attend(e, p->at, N_HEAD_KV, 1, CONTEXT - 1);
    case PROBE_PREFILL: return attend(e, p->at, N_HEAD, MAX_ROWS, MAX_ROWS - 1);
    case PROBE_N_WHATS: break;
    }
    assert(!"a point");
    return SL_E_ARG;
}

/* Activations as a pass has them, for stages add to some of them. */
static void fresh_rows(probe_engine *e, uint32_t n_rows)
{
    sl_batch *b = &e->b;
    const struct { float *p; size_t width; } of[] = {
        { b->x, D_MODEL }, { b->h, D_MODEL }, { b->q, N_HEAD * HEAD_DIM },
        { b->k, N_HEAD * HEAD_DIM }, { b->v, N_HEAD * HEAD_DIM },
    };
    for (size_t i = 0; i < SL_LEN(of); i++)
        for (size_t k = 0; k < n_rows * of[i].width; k++)
            of[i].p[k] = (float)((k * 37 + i) % 101) * 0.02f - 1;
    memset(b->y, 0, (size_t)n_rows * D_MODEL * sizeof *b->y);
}

/* Rows of activations that a visit needs. */
static uint32_t visit_rows(const probe_point *p)
{
    switch (p->what) {
    case PROBE_GEMM: return pass_rows(p->rows);
    case PROBE_ELEM: return ALL_ELEM_ROWS;
    case PROBE_PREFILL: case PROBE_CALL1: case PROBE_CALL8: return MAX_ROWS;
    default: return 1;
    }
}

/* To where a pool leaves its driver when it is created: no worker is bound to the first core. With
 * one thread the driver may have been moved to another. */
static void go_home(void)
{
    cpu_set_t mask, first;
    if (sched_getaffinity(0, sizeof mask, &mask)) return;
    int cpu = 0;
    while (cpu < CPU_SETSIZE && !CPU_ISSET(cpu, &mask)) cpu++;
    if (cpu == CPU_SETSIZE) return;
    CPU_ZERO(&first);
    CPU_SET(cpu, &first);
    if (sched_setaffinity(0, sizeof first, &first) == 0)
        (void)sched_setaffinity(0, sizeof mask, &mask);
}

sl_status probe_engine_visit(probe_engine *e, const probe_point *p, double seconds, double *ret)
{
    uint32_t n = 0;
    fresh_rows(e, visit_rows(p));
    go_home();
    /* wakes the threads, brings activations into caches */
    SL_TRY(small_stage(e, p->at, 2 * e->threads[p->at], SMALL_DIM, 1));
    /* what is a difference of two of these holds no first call, which costs one of them more; and a
     * stage finds in a cache what the one before it wrote, not what fresh_rows did */
    if (p->what == PROBE_CALL1 || p->what == PROBE_CALL8 || p->what == PROBE_ELEM)
        SL_TRY(probe_engine_call(e, p));
    double start = now_s(), s;
    do {
        SL_TRY(probe_engine_call(e, p));
        s = now_s() - start;
    } while (++n < MAX_CALLS && s < seconds);
    *ret = s / n;
    return SL_OK;
}

/* ---- from times to rates ---- */

double probe_engine_ops_s(const probe_engine *e, const sl_machine_cost *c, double s, uint32_t rows)
{
    double d_model = e->dims.d_model;
    /* A layer of 64 experts quantises its rows once, these few do it as often; quantising is about
     * a fifth of elem_s. */
    double more = 0.2 * (pass_rows(rows) - rows);
    double beside = c->stage_s + c->elem_s * (N_USED * rows + more) * d_model;
    return 3.0 * N_USED * e->dims.d_expert * d_model * rows / fmax(s - beside, s / 2);
}

void probe_engine_cost(const probe_engine *e, const double s[PROBE_N_WHATS], sl_machine_cost *ret)
{
    const double d_model = e->dims.d_model;
    const double row = 2.0 * N_HEAD * 2 * HEAD_DIM;     /* flops of one row on one position */
    double elem_s = s[PROBE_ELEM] / (ALL_ELEM_ROWS * d_model);
    double decode_s = s[PROBE_DECODE], prefill_s = s[PROBE_PREFILL];
    ret->elem_s = elem_s;
    ret->stage_s = fmax(1.5 * s[PROBE_STAGE] - 0.5 * s[PROBE_STAGE3] - elem_s * SMALL_COLS, 1e-8);
    double one_s = s[PROBE_DECODE1];
    decode_s = fmax(decode_s - ret->stage_s - elem_s * d_model, decode_s / 2);
    one_s = fmax(one_s - ret->stage_s - elem_s * d_model, one_s / 2);
    ret->decode_bytes_s = 2.0 * N_HEAD_KV * HEAD_DIM * 2 * CONTEXT / one_s;
    prefill_s = fmax(prefill_s - ret->stage_s - elem_s * d_model * MAX_ROWS, prefill_s / 2);
    ret->call_s = fmax((8 * s[PROBE_CALL1] - s[PROBE_CALL8]) / 7, ret->stage_s);
    ret->decode_flops_s = row * CONTEXT / decode_s;
    ret->prefill_flops_s = row * MAX_ROWS * (MAX_ROWS + 1) / 2 / prefill_s;
}

/* ---- */

static sl_status take_acts(probe_engine *e)
{
    enum { WIDTH = 3 * D_MODEL + 4 * N_HEAD * HEAD_DIM };
    void *p = NULL;
    SL_TRY(sl_mem_alloc(e->ctx, SL_ACC_SCRATCH, (size_t)MAX_ROWS * WIDTH * sizeof(float), &p));
    float *at = e->acts = p;
    float **of[] = { &e->b.x, &e->b.h, &e->b.y, &e->b.q, &e->b.k, &e->b.v, &e->b.att };
    for (size_t i = 0; i < SL_LEN(of); i++) {
        *of[i] = at;
        at += MAX_ROWS * (i < 3 ? D_MODEL : N_HEAD * HEAD_DIM);
    }
    for (uint32_t i = 0; i < MAX_ROWS; i++) e->expert_w[i] = 1.0f / N_USED;
    for (uint32_t i = 0; i < CONTEXT / KV_BLOCK; i++) e->blocks[i] = i;
    for (uint32_t i = 0; i < D_MODEL; i++) e->ones[i] = 1;
    e->b.pos = e->pos;
    e->b.seq = e->seq;
    return SL_OK;
}

/* A multiple of what types of super-blocks ask for; long rows differ from longer ones no more. */
static uint32_t dim(uint32_t wanted, uint32_t otherwise)
{
    if (!wanted) return otherwise;
    return SL_MAX(SL_MIN(wanted, (uint32_t)MAX_DIM) / DIM_UNIT, 1u) * DIM_UNIT;
}

sl_status probe_engine_create(sl_ctx *ctx, const uint32_t *threads, uint32_t n_threads,
                              probe_dims dims, char *weights, size_t bytes, probe_engine **ret)
{
    assert(n_threads && n_threads <= SL_MACHINE_COSTS);
    probe_engine *e = calloc(1, sizeof *e);
    if (!e) return sl_fail(ctx, SL_E_NOMEM, "probe of the engine");
    e->ctx = ctx;
    e->dims = (probe_dims){ dim(dims.d_model, D_MODEL), dim(dims.d_expert, D_EXPERT) };
    e->weights = weights;
    e->bytes = bytes;
    sl_kernels_init(&e->k, sl_cpu_detect());
    sl_device_params p = {
        .max_rows = MAX_ROWS, .cpu_mask = ~0u,
        .widths = { .d_model = e->dims.d_model, .q = N_HEAD * HEAD_DIM, .k = N_HEAD_KV * HEAD_DIM,
                    .v = N_HEAD_KV * HEAD_DIM, .att = N_HEAD * HEAD_DIM,
                    .ff_sum = N_USED * e->dims.d_expert, .n_used = N_USED, .n_expert = N_USED,
                    .cols = N_HEAD * HEAD_DIM, .n_head = N_HEAD, .head_dim = HEAD_DIM },
    };
    sl_status st = take_acts(e);
    for (uint32_t i = 0; st == SL_OK && i < n_threads; i++, e->n_threads++) {
        e->threads[i] = threads[i];
        st = sl_pool_create(ctx, threads[i], &e->pool[i]);
        p.pool = e->pool[i];
        if (st == SL_OK) st = sl_device_create_cpu(ctx, &p, &e->dev[i]);
    }
    if (st == SL_OK) {
        (void)sl_mem_interleave(weights, bytes);
        sl_pool_run(e->pool[n_threads - 1], noise_task, e,
                    (uint32_t)((bytes + NOISE_PIECE - 1) / NOISE_PIECE));
        *ret = e;
    } else {
        probe_engine_destroy(&e);
    }
    return st;
}

void probe_engine_destroy(probe_engine **engine)
{
    probe_engine *e = *engine;
    if (!e) return;
    for (uint32_t i = 0; i < SL_MACHINE_COSTS; i++) {
        sl_device_destroy(&e->dev[i]);
        sl_pool_destroy(&e->pool[i]);
    }
    sl_mem_free(e->ctx, e->acts);
    free(e);
    *engine = NULL;
}
