/* tests/t_pool.c - every index runs exactly once, whatever the counts; refusals; cost of a run. */
#include "runtime/base/sl_pool.h"

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "tests/t.h"

#define MAX_TASKS 1000
#define QUICK_RUNS 10000

struct job {
    _Atomic unsigned hits[MAX_TASKS];
    unsigned plain[MAX_TASKS];      /* not atomic: a race between two runs shows under TSan */
    unsigned salt, n_threads;
    _Atomic unsigned bad_thread;
};

static void task(void *arg, uint32_t index, uint32_t thread)
{
    struct job *j = arg;
    atomic_fetch_add_explicit(&j->hits[index], 1, memory_order_relaxed);
    j->plain[index] += j->salt + index;
    if (thread >= j->n_threads) atomic_store(&j->bad_thread, 1);
}

static void nothing(void *arg, uint32_t index, uint32_t thread)
{
    (void)arg, (void)index, (void)thread;
}

static uint32_t hw_threads(void)
{
    cpu_set_t set;
    T_NEED(sched_getaffinity(0, sizeof set, &set) == 0, "sched_getaffinity");
    return (uint32_t)CPU_COUNT(&set);
}

/* One run of n tasks; all hits and sums must be this run's. */
static void check_run(sl_pool *p, struct job *j, uint32_t n)
{
    memset(j, 0, sizeof *j);
    j->salt = (unsigned)t_rand();
    j->n_threads = sl_pool_threads(p);
    sl_pool_run(p, task, j, n);
    unsigned wrong = 0;
    for (uint32_t i = 0; i < MAX_TASKS; i++)
        wrong += j->hits[i] != (i < n) || j->plain[i] != (i < n ? j->salt + i : 0);
    T_CHECK(!wrong, "%u threads, %u tasks: %u of them wrong", j->n_threads, n, wrong);
    T_CHECK(!j->bad_thread, "%u threads, %u tasks: a thread number too high", j->n_threads, n);
}

/* Runs follow each other at once, so workers of one may still be leaving when the next begins;
 * sleeps in between let them park. */
static void check_quick_runs(sl_pool *p)
{
    struct job *j = calloc(1, sizeof *j);
    T_NEED(j, "calloc");
    j->n_threads = sl_pool_threads(p);
    unsigned want[8] = { 0 };
    for (unsigned r = 0; r < QUICK_RUNS; r++) {
        uint32_t n = t_below(9);
        sl_pool_run(p, task, j, n);
        for (uint32_t i = 0; i < n; i++) want[i]++;
        struct timespec nap = { .tv_nsec = 200000 };
        if (r % 100 == 99) nanosleep(&nap, NULL);
    }
    for (uint32_t i = 0; i < 8; i++)
        T_CHECK(j->hits[i] == want[i], "%u threads: index %u ran %u times, not %u", j->n_threads, i,
                j->hits[i], want[i]);
    free(j);
}

static void check_pool(sl_ctx *ctx, uint32_t n_threads)
{
    sl_pool *p = NULL;
    T_NEED(sl_pool_create(ctx, n_threads, &p) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_pool_threads(p) == n_threads, "%u threads", sl_pool_threads(p));
    struct job *j = calloc(1, sizeof *j);
    T_NEED(j, "calloc");
    for (uint32_t n = 0; n <= 40; n++) check_run(p, j, n);
    for (int i = 0; i < 20; i++) check_run(p, j, 41 + t_below(MAX_TASKS - 40));
    check_quick_runs(p);
    free(j);
    sl_pool_destroy(&p);
    T_CHECK(!p, "destroy leaves NULL");
    sl_pool_destroy(&p);
}

static void check_refusals(sl_ctx *ctx)
{
    sl_pool *p = NULL;
    uint32_t hw = hw_threads(), cores = sl_pool_cores(ctx);
    T_CHECK(cores >= 1 && cores <= hw, "%u cores, %u hardware threads", cores, hw);
    T_CHECK(sl_pool_create(ctx, hw + 1, &p) == SL_E_ARG && !p, "%u threads taken", hw + 1);
    T_CHECK(strstr(sl_error(ctx), "hardware threads"), "message: %s", sl_error(ctx));
    T_CHECK(sl_pool_create(ctx, UINT32_MAX, &p) == SL_E_ARG && !p, "2^32-1 threads taken");
    T_NEED(sl_pool_create(ctx, 0, &p) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_pool_threads(p) == cores, "0 means %u cores, got %u", cores, sl_pool_threads(p));
    sl_pool_destroy(&p);
}

/* A narrower cpuset is respected, and a pool leaves the caller's own affinity alone. */
static void check_cpuset(sl_ctx *ctx)
{
    cpu_set_t before, after, one;
    CPU_ZERO(&one);
    T_NEED(sched_getaffinity(0, sizeof before, &before) == 0, "sched_getaffinity");
    sl_pool *p = NULL;
    T_NEED(sl_pool_create(ctx, 0, &p) == SL_OK, "%s", sl_error(ctx));
    sl_pool_destroy(&p);
    T_NEED(sched_getaffinity(0, sizeof after, &after) == 0, "sched_getaffinity");
    T_CHECK(CPU_EQUAL(&before, &after), "the caller's affinity changed");
    int first = 0;
    while (!CPU_ISSET(first, &before)) first++;
    CPU_SET(first, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) return;    /* a sandbox may refuse */
    T_CHECK(sl_pool_cores(ctx) == 1, "one CPU allowed, %u cores", sl_pool_cores(ctx));
    T_CHECK(sl_pool_create(ctx, 2, &p) == SL_E_ARG, "two threads on one CPU must be refused");
    (void)sched_setaffinity(0, sizeof before, &before);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Holds a thread until all have come, or a millisecond has passed: no thread does two of these. */
static void meet(void *arg, uint32_t index, uint32_t thread)
{
    (void)index, (void)thread;
    struct job *j = arg;
    double start = seconds();
    atomic_fetch_add(&j->hits[0], 1);
    while (atomic_load(&j->hits[0]) < j->n_threads && seconds() - start < 1e-3) { }
}

/* Printed, not judged: other processes decide. The best of many short series. */
static void print_latency(sl_ctx *ctx, uint32_t n_threads)
{
    static struct job j;
    sl_pool *p = NULL;
    T_NEED(sl_pool_create(ctx, n_threads, &p) == SL_OK, "%s", sl_error(ctx));
    double empty = 1, met = 1;
    j.n_threads = n_threads;
    for (int s = 0; s < 50; s++) {
        double start = seconds();
        for (int i = 0; i < 20; i++) sl_pool_run(p, nothing, NULL, n_threads);
        double middle = seconds();
        for (int i = 0; i < 20; i++) {
            atomic_store(&j.hits[0], 0);
            sl_pool_run(p, meet, &j, n_threads);
        }
        empty = SL_MIN(empty, (middle - start) / 20);
        met = SL_MIN(met, (seconds() - middle) / 20);
    }
    printf("%u threads: empty run %.2f us, with all threads in it %.2f us\n", n_threads,
           empty * 1e6, met * 1e6);
    sl_pool_destroy(&p);
}

int main(void)
{
    t_begin();
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    uint32_t hw = SL_MIN(hw_threads(), 8u);
    for (uint32_t n = 1; n <= hw; n++) check_pool(ctx, n);
    check_refusals(ctx);
    check_cpuset(ctx);
    for (uint32_t n = 1; n <= hw; n *= 2) print_latency(ctx, n);
    sl_ctx_destroy(&ctx);
    return t_end();
}
