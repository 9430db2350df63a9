/* tests/t_nomem.c - what opens things, with each of its allocations failing in turn: a status and
 * a message come back, nothing is written to the caller, and nothing leaks (ASan's leak checker
 * looks at that). */
#include "runtime/base/sl_pool.h"
#include "runtime/sl_gguf.h"

#include "tests/t.h"
#include "tests/t_alloc.h"

#define MAX_ALLOCS 100000   /* of one scenario: a bound for the loop */

typedef sl_status (*scenario_fn)(sl_ctx *ctx);

static const char *model_path = "tests/golden/arch/qwen3moe.gguf";

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

static sl_status open_gguf(sl_ctx *ctx)
{
    sl_gguf *g = NULL;
    sl_status st = sl_gguf_open(ctx, model_path, &g);
    T_CHECK((st == SL_OK) == (g != NULL), "sl_gguf_open: %s", sl_status_name(st));
    sl_gguf_close(&g);
    return st;
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
    t_begin();
    t_alloc_reset(1);
    T_CHECK(!sl_ctx_create(NULL, NULL), "a context without memory");
    t_alloc_reset(0);
    check("memory", open_memory);
    check("pool", open_pool);
    check("gguf", open_gguf);
    return t_end();
}
