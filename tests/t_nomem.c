/* tests/t_nomem.c - what opens things, with each of its allocations failing in turn: a status and
 * a message come back, nothing is written to the caller, and nothing leaks (ASan's leak checker
 * looks at that). And what runs, the engine's steps, allocates nothing. */
#include "offload/sl_store.h"
#include "runtime/base/sl_pool.h"
#include "runtime/sluice.h"

#include "tests/t.h"
#include "tests/t_alloc.h"

#include <fcntl.h>

#define MAX_ALLOCS 100000   /* of one scenario: a bound for the loop */

typedef sl_status (*scenario_fn)(sl_ctx *ctx);

static const char *bundled = "models/sluice-bard-q8_0.gguf";
static const char *model_path;

static sl_status open_memory(sl_ctx *ctx)
{
    void *p = NULL;
    sl_status st = sl_mem_alloc(ctx, SL_ACC_KV, 3 << 20, &p);
    T_CHECK((st == SL_OK) == (p != NULL), "sl_mem_alloc: %s, %p", sl_status_name(st), p);
    sl_mem_free(ctx, p);
    return st;
}

static sl_status open_pool(sl_ctx *ctx)
{
    sl_pool *p = NULL;
    sl_status st = sl_pool_create(ctx, 0, &p);
    T_CHECK((st == SL_OK) == (p != NULL), "sl_pool_create: %s", sl_status_name(st));
    sl_pool_destroy(&p);
    return st;
}

/* Past the page cache by io_uring, and by threads. */
static sl_status open_store(sl_ctx *ctx)
{
    sl_status st = SL_OK;
    uint64_t bytes = 4096;
    int fd = open(bundled, O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < 2 && st == SL_OK; i++) {
        sl_store *s = NULL;
        sl_store_params p = { .direct = true, .threads = i, .n_threads = 1 };
        st = sl_store_create(ctx, &fd, &bytes, &bundled, 1, &p, &s);
        T_CHECK((st == SL_OK) == (s != NULL), "sl_store_create: %s", sl_status_name(st));
        sl_store_destroy(&s);
    }
    close(fd);
    return st;
}

static sl_status open_gguf(sl_ctx *ctx)
{
    sl_gguf *g = NULL;
    sl_status st = sl_gguf_open(ctx, model_path, &g);
    T_CHECK((st == SL_OK) == (g != NULL), "sl_gguf_open: %s", sl_status_name(st));
    sl_gguf_close(&g);
    return st;
}

static sl_status open_vocab(sl_ctx *ctx)
{
    sl_gguf *g = NULL;
    sl_vocab *v = NULL;
    int32_t *ids = NULL;
    uint32_t n = 0;
    sl_status st = sl_gguf_open(ctx, bundled, &g);
    if (st == SL_OK) st = sl_vocab_create(ctx, g, &v);
    T_CHECK((st == SL_OK) == (v != NULL), "sl_vocab_create: %s", sl_status_name(st));
    static const char text[] = "Speak, \xf0\x9f\x8c\x8a I charge thee, speak!";
    if (v) st = sl_vocab_encode(ctx, v, text, sizeof text - 1, true, true, &ids, &n);
    T_CHECK((st == SL_OK) == (ids != NULL), "sl_vocab_encode: %s", sl_status_name(st));
    free(ids);
    sl_vocab_destroy(&v);
    sl_gguf_close(&g);
    return st;
}

static sl_status open_model(sl_ctx *ctx)
{
    sl_model *m = NULL;
    sl_status st = sl_model_open(ctx, model_path, &m);
    T_CHECK((st == SL_OK) == (m != NULL), "sl_model_open: %s", sl_status_name(st));
    sl_model_close(&m);
    return st;
}

/* Calls of allocators in the last open_engine after its submit: steps must make none. */
static long calls_in_steps;

/* A model, an engine on it, one sequence of three tokens, four drawn. */
static sl_status open_engine_in(sl_ctx *ctx, uint64_t budget)
{
    static const int32_t tokens[] = { 1, 2, 3 };
    sl_plan_params params = sl_plan_defaults();
    params.n_ctx = 64;
    params.n_threads = 1;
    params.ram_bytes = budget;
    params.ram_hard = budget > 0;
    sl_model *m = NULL;
    sl_engine *e = NULL;
    sl_plan plan;
    sl_status st = sl_model_open(ctx, model_path, &m);
    if (st == SL_OK) st = sl_plan_make(ctx, sl_model_shape(m), &params, &plan);
    if (st == SL_OK) st = sl_engine_open(ctx, m, &plan, &e);
    T_CHECK((st == SL_OK) == (e != NULL), "sl_engine_open: %s", sl_status_name(st));
    sl_seq seq = 0;
    sl_request r = { .tokens = tokens, .n_tokens = SL_LEN(tokens), .n_predict = 4,
                     .ignore_eog = true, .sampler = sl_sampler_defaults() };
    if (e) st = sl_engine_submit(e, &r, &seq);
    long before = atomic_load(&t_alloc_calls);
    while (e && st == SL_OK && sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        st = sl_engine_step(e, &ev, &n);
    }
    calls_in_steps = atomic_load(&t_alloc_calls) - before;
    sl_engine_close(&e);
    sl_model_close(&m);
    return st;
}

static sl_status open_engine(sl_ctx *ctx) { return open_engine_in(ctx, 0); }

static uint64_t least_budget;

/* Weights through slots and sections. */
static sl_status open_streamed(sl_ctx *ctx) { return open_engine_in(ctx, least_budget); }

static void find_least_budget(void)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_plan_params params = sl_plan_defaults();
    sl_model *m = NULL;
    sl_plan plan;
    uint64_t lo = 0;
    params.n_ctx = 64;
    params.ram_hard = true;
    T_NEED(sl_model_open(ctx, model_path, &m) == SL_OK, "%s", sl_error(ctx));
    for (least_budget = 1u << 30; least_budget - lo > 1; ) {
        params.ram_bytes = (lo + least_budget) / 2;
        if (sl_plan_make(ctx, sl_model_shape(m), &params, &plan) != SL_OK) lo = params.ram_bytes;
        else least_budget = params.ram_bytes;
    }
    params.ram_bytes = least_budget;
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), &params, &plan) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(plan.weights == SL_WEIGHTS_STREAMED, "%s: mode %s", model_path, plan.mode);
    sl_model_close(&m);
    sl_ctx_destroy(&ctx);
}

static void check(const char *name, scenario_fn run)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    T_NEED(run(ctx) == SL_OK, "%s: %s", name, sl_error(ctx));
    long n = 1;
    for (; n < MAX_ALLOCS; n++) {
        sl_mem_report r;
        t_alloc_reset(n);
        sl_status st = run(ctx);
        bool failed = atomic_load(&t_alloc_calls) >= n;
        t_alloc_reset(0);
        if (!failed) {
            T_CHECK(st == SL_OK, "%s with all its memory: %s", name, sl_error(ctx));
            break;
        }
        T_CHECK(st == SL_E_NOMEM, "%s, allocation %ld fails: %s (%s)", name, n, sl_status_name(st),
                sl_error(ctx));
        T_CHECK(sl_error(ctx)[0], "%s, allocation %ld fails: no message", name, n);
        sl_mem_get(ctx, &r);
        T_CHECK(r.total == 0, "%s, allocation %ld fails: %llu bytes stay charged", name, n,
                (unsigned long long)r.total);
    }
    T_CHECK(n < MAX_ALLOCS, "%s does not come to an end", name);
    printf("%s: %ld allocations, each failed once\n", name, n - 1);
    sl_ctx_destroy(&ctx);
}

int main(void)
{
    static const char *const models[] = {
        "tests/golden/arch/qwen3moe.gguf", "tests/golden/arch/deepseek2-v3.gguf",
        "tests/golden/arch/gpt-oss.gguf", "models/sluice-bard-q8_0.gguf",
    };
    t_begin();
    t_alloc_reset(1);
    T_CHECK(!sl_ctx_create(NULL, NULL), "a context without memory");
    t_alloc_reset(0);
    check("memory", open_memory);
    check("pool", open_pool);
    check("store", open_store);
    check("vocab", open_vocab);
    for (size_t i = 0; i < SL_LEN(models); i++) {
        model_path = models[i];
        printf("%s\n", model_path);
        check("gguf", open_gguf);
        check("model", open_model);
        check("engine", open_engine);
        T_CHECK(calls_in_steps == 0, "%ld allocations in steps", calls_in_steps);
        find_least_budget();
        check("streamed", open_streamed);
        T_CHECK(calls_in_steps == 0, "%ld allocations in steps", calls_in_steps);
    }
    return t_end();
}
