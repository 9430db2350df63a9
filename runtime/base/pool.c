/* runtime/base/pool.c - worker threads that take task indices from one counter.
 *
 * A run is open or closed. The driver fills in the task while the pool is closed and empty, opens
 * it, works along, closes it when no index is left, and waits for those who had joined. A worker
 * joins only while it is open. So a worker that wakes late is never waited for, and nobody reads
 * the task while it is written.
 *   I1  fn, arg, n_tasks change only while state == 0 (closed, nobody inside)
 *   I2  a worker runs tasks only between a successful join and its leave
 *   I3  every join happens before the close, so after it the count inside only falls
 * Workers wait for `gen` to move: they spin for spin_ns, then sleep on a futex.
 *
 * Workers are bound to physical cores until other programs want one of them. A thread that loses
 * its core inside a task keeps everybody waiting for milliseconds, where a run takes fractions of
 * one. So each thread looks now and then how often it was preempted, and how much of the time it
 * got. When it was crowded, a worker (for the driver, the first that comes by) gives up its core
 * for its NUMA node, where the kernel finds free ones, and rests while the others do its work:
 * longer each time, until all is calm again. Short visits by others cost less than a rest, and do
 * not count; nor do runs of many milliseconds, in which half a core is worth more than none.
 */
#include "runtime/base/sl_pool.h"

#include <assert.h>
#include <hwloc.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 50000       /* a stage of a small model is shorter */
#define SPIN_BATCH 16       /* pauses between two looks at the clock */
#define LOOK_NS 20000000    /* between two looks */
#define CROWDED_N 3         /* preemptions between two looks: time slices are about 3 ms */
#define CROWDED_SHARE 0.75  /* and less than this of the core's time */
#define LONG_RUN_NS 4000000 /* in such a run a lost core costs less than a rest */
#define REST_MIN_NS 10000000u
#define REST_MAX_NS 160000000u
#define LINE 64

#define OPEN 0x80000000u    /* workers may join */
#define WAITS 0x40000000u   /* the driver sleeps until the last one leaves */
#define INSIDE 0x0000ffffu  /* workers inside */

/* A thread's counts at its last look. */
struct looks {
    uint64_t at_ns, cpu_ns;
    long n_preempted;
    uint32_t n_runs;        /* since then */
};

struct worker {
    sl_pool *pool;
    uint32_t index;
    pthread_t thread;
    hwloc_cpuset_t cpus;    /* where to bind; NULL: nowhere */
    hwloc_cpuset_t node;    /* and when the core is shared; NULL as cpus */
    struct looks looks;
    uint64_t rest_ns, rested_ns;    /* the last rest and its end; 0: none */
};

struct sl_pool {
    _Alignas(LINE) _Atomic uint32_t gen;    /* moves with every run, and at the end */
    _Atomic uint32_t n_parked;
    _Atomic uint32_t quit;
    _Alignas(LINE) _Atomic uint32_t state;
    _Alignas(LINE) _Atomic uint64_t next;   /* 64 bits: late takers cannot wrap it */
    _Alignas(LINE) sl_task_fn fn;
    void *arg;
    uint32_t n_tasks;
    _Atomic bool busy;
    _Atomic bool crowded;   /* the driver was: one worker should rest */
    struct looks looks;     /* the driver's */
    uint32_t n_threads, n_started;
    _Atomic uint64_t spin_ns;   /* how long a worker spins between two runs */
    bool spin;              /* false when threads outnumber cores: spinning would starve a peer */
    struct worker *workers; /* [n_threads]; 0 is the driver and has no thread */
    hwloc_topology_t topo;
};

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Sleeps while *word == seen, at most for max_ns (0: for ever); may return early. */
static void futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t max_ns)
{
    struct timespec t = { (time_t)(max_ns / 1000000000u), (long)(max_ns % 1000000000u) };
    syscall(SYS_futex, (void *)word, FUTEX_WAIT_PRIVATE, seen, max_ns ? &t : NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, uint32_t n)
{
    int count = n > INT_MAX ? INT_MAX : (int)n;
    syscall(SYS_futex, (void *)word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Spins until *word is not `seen`; false when spin_ns went by in vain. */
static bool spin_while(_Atomic uint32_t *word, uint32_t seen, uint64_t spin_ns)
{
    uint64_t start = now_ns();
    do {
        for (int i = 0; i < SPIN_BATCH; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
            cpu_relax();
        }
    } while (now_ns() - start < spin_ns);
    return false;
}

/* The next generation after `seen`. n_parked rises before gen is looked at once more, and the
 * driver moves gen before it looks at n_parked: one of the two sees the other. */
static uint32_t next_gen(sl_pool *p, uint32_t seen)
{
    if (!p->spin || !spin_while(&p->gen, seen, atomic_load(&p->spin_ns))) {
        atomic_fetch_add(&p->n_parked, 1);
        while (atomic_load(&p->gen) == seen) futex_wait(&p->gen, seen, 0);
        atomic_fetch_sub(&p->n_parked, 1);
    }
    return atomic_load_explicit(&p->gen, memory_order_acquire);
}

static bool join(sl_pool *p)
{
    uint32_t s = atomic_load_explicit(&p->state, memory_order_relaxed);
    do {
        if (!(s & OPEN)) return false;
    } while (!atomic_compare_exchange_weak_explicit(&p->state, &s, s + 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return true;
}

static void leave(sl_pool *p)
{
    uint32_t before = atomic_fetch_sub_explicit(&p->state, 1, memory_order_acq_rel);
    assert(before & INSIDE);
    if (before == (WAITS | 1)) futex_wake(&p->state, 1);
}

static uint64_t ns_of(struct timeval t)
{
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_usec * 1000u;
}

/* Whether the calling thread, behind a run, has been crowded since its last look, if that is some
 * time ago and runs are short. */
static bool is_crowded(struct looks *l)
{
    struct rusage u;
    l->n_runs++;
    uint64_t now = now_ns(), past = now - l->at_ns;
    if (past < LOOK_NS || getrusage(RUSAGE_THREAD, &u) != 0) return false;
    uint64_t cpu = ns_of(u.ru_utime) + ns_of(u.ru_stime);
    bool ret = past < 2 * LOOK_NS && past < (uint64_t)l->n_runs * LONG_RUN_NS
            && u.ru_nivcsw - l->n_preempted >= CROWDED_N
            && (double)(cpu - l->cpu_ns) < CROWDED_SHARE * (double)past;
    *l = (struct looks){ now, cpu, u.ru_nivcsw, 0 };
    return ret;
}

static void rest(struct worker *w)
{
    sl_pool *p = w->pool;
    bool again = w->rest_ns && now_ns() - w->rested_ns < 2 * REST_MAX_NS;
    w->rest_ns = again ? SL_MIN(2 * w->rest_ns, REST_MAX_NS) : REST_MIN_NS;
    if (w->node) (void)hwloc_set_cpubind(p->topo, w->node, HWLOC_CPUBIND_THREAD);
    futex_wait(&p->quit, 0, w->rest_ns);
    w->rested_ns = now_ns();
}

static void work(sl_pool *p, uint32_t thread)
{
    const uint64_t n = p->n_tasks;
    for (;;) {
        uint64_t i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (i >= n) return;
        p->fn(p->arg, (uint32_t)i, thread);
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    sl_pool *p = w->pool;
    /* A refusal (a container, a changed cpuset) costs speed at most. */
    if (w->cpus) (void)hwloc_set_cpubind(p->topo, w->cpus, HWLOC_CPUBIND_THREAD);
    uint32_t seen = 0;
    for (;;) {
        seen = next_gen(p, seen);
        if (atomic_load(&p->quit)) return NULL;
        if (!join(p)) continue;
        work(p, w->index);
        leave(p);
        bool for_driver = atomic_load_explicit(&p->crowded, memory_order_relaxed)
                       && atomic_exchange(&p->crowded, false);
        if (is_crowded(&w->looks) || for_driver) rest(w);
    }
}

/* Closes the run and waits until the last worker has left. */
static void close_run(sl_pool *p)
{
    uint32_t s = atomic_fetch_and_explicit(&p->state, ~OPEN, memory_order_acq_rel) & ~OPEN;
    uint64_t start = s && p->spin ? now_ns() : 0;
    while (s) {
        bool sleep = !p->spin || now_ns() - start > SPIN_NS;
        for (int i = 0; s && !sleep && i < SPIN_BATCH; i++) {
            cpu_relax();
            s = atomic_load_explicit(&p->state, memory_order_acquire);
        }
        if (!s || !sleep) continue;
        s = atomic_fetch_or_explicit(&p->state, WAITS, memory_order_acq_rel) | WAITS;
        while (s & INSIDE) {
            futex_wait(&p->state, s, 0);
            s = atomic_load_explicit(&p->state, memory_order_acquire);
        }
        atomic_store_explicit(&p->state, 0, memory_order_relaxed);
        return;
    }
}

void sl_pool_stay_awake(sl_pool *p, double seconds)
{
    atomic_store(&p->spin_ns, SL_MAX((uint64_t)(seconds * 1e9), (uint64_t)SPIN_NS));
}

void sl_pool_run(sl_pool *p, sl_task_fn fn, void *arg, uint32_t n_tasks)
{
    assert(p && fn);
    bool was_busy = atomic_exchange_explicit(&p->busy, true, memory_order_acquire);
    assert(!was_busy);      /* one driver, no run inside a task */
    if (p->n_threads == 1 || n_tasks <= 1) {
        for (uint32_t i = 0; i < n_tasks; i++) fn(arg, i, 0);
    } else {
        p->fn = fn;
        p->arg = arg;
        p->n_tasks = n_tasks;
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        atomic_store_explicit(&p->state, OPEN, memory_order_release);
        atomic_fetch_add(&p->gen, 1);
        if (atomic_load(&p->n_parked)) futex_wake(&p->gen, SL_MIN(n_tasks - 1, p->n_threads - 1));
        work(p, 0);
        close_run(p);
        if (is_crowded(&p->looks)) atomic_store_explicit(&p->crowded, true, memory_order_relaxed);
    }
    atomic_store_explicit(&p->busy, false, memory_order_release);
}

/* What the process may use: its cpuset on this machine, physical cores in it, hardware threads. */
struct cpus {
    hwloc_topology_t topo;
    hwloc_bitmap_t set;
    uint32_t n_cores, n_hw;
};

static void cpus_fini(struct cpus *c)
{
    if (c->set) hwloc_bitmap_free(c->set);
    if (c->topo) hwloc_topology_destroy(c->topo);
    *c = (struct cpus){ 0 };
}

/* The i-th core that the set allows; NULL behind the last. */
static hwloc_obj_t core_at(const struct cpus *c, uint32_t i)
{
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(c->topo, HWLOC_OBJ_CORE, o));) {
        if (!hwloc_bitmap_intersects(o->cpuset, c->set)) continue;
        if (i-- == 0) return o;
    }
    return NULL;
}

/* Never fails: where hwloc cannot tell, the kernel's count of online CPUs stands for both. */
static void cpus_init(struct cpus *c)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    *c = (struct cpus){ .n_cores = online > 0 ? (uint32_t)online : 1 };
    c->n_hw = c->n_cores;
    if (hwloc_topology_init(&c->topo) < 0) { c->topo = NULL; return; }
    hwloc_topology_set_all_types_filter(c->topo, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(c->topo, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (hwloc_topology_load(c->topo) < 0) { cpus_fini(c); goto online_only; }
    c->set = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(c->topo));
    hwloc_bitmap_t bound = hwloc_bitmap_alloc();
    if (!c->set || !bound) {
        hwloc_bitmap_free(bound);
        cpus_fini(c);
        goto online_only;
    }
    /* The caller's own mask: its threads inherit it, and other threads of the process (a
     * sanitizer's, an embedding program's) do not widen or narrow it. */
    if (hwloc_get_cpubind(c->topo, bound, HWLOC_CPUBIND_THREAD) == 0
        && hwloc_bitmap_intersects(bound, c->set))
        hwloc_bitmap_and(c->set, c->set, bound);
    hwloc_bitmap_free(bound);
    int hw = hwloc_bitmap_weight(c->set);
    if (hw < 1) { cpus_fini(c); goto online_only; }
    c->n_hw = (uint32_t)hw;
    uint32_t cores = 0;
    while (core_at(c, cores)) cores++;
    c->n_cores = cores ? cores : c->n_hw;   /* some virtual machines show no cores */
    return;
online_only:
    c->n_cores = c->n_hw = online > 0 ? (uint32_t)online : 1;
}

uint32_t sl_pool_cores(sl_ctx *ctx)
{
    struct cpus c;
    assert(ctx);
    cpus_init(&c);
    uint32_t n = c.n_cores;
    cpus_fini(&c);
    return n;
}

/* Moves the caller to core 0 and gives it its mask back: it begins where no worker is bound, tends
 * to stay there, and what it starts later may run anywhere. */
static void visit_first_core(const struct cpus *c)
{
    hwloc_obj_t core = core_at(c, 0);
    if (core && hwloc_set_cpubind(c->topo, core->cpuset, HWLOC_CPUBIND_THREAD) == 0)
        (void)hwloc_set_cpubind(c->topo, c->set, HWLOC_CPUBIND_THREAD);
}

/* The worker's own core and, for later, its NUMA node, both as far as the process may use them. */
static void set_places(struct worker *w, hwloc_obj_t core, const struct cpus *c)
{
    w->cpus = hwloc_bitmap_dup(core->cpuset);
    w->node = hwloc_bitmap_dup(c->set);
    if (w->cpus) hwloc_bitmap_and(w->cpus, w->cpus, c->set);
    for (hwloc_obj_t o = NULL; w->node
         && (o = hwloc_get_next_obj_by_type(c->topo, HWLOC_OBJ_NUMANODE, o)) != NULL;)
        if (hwloc_bitmap_isincluded(core->cpuset, o->cpuset))
            hwloc_bitmap_and(w->node, w->node, o->cpuset);
}

/* Workers start with every signal blocked, so that Ctrl-C reaches the caller's thread. */
static sl_status start_workers(sl_ctx *ctx, sl_pool *p, const struct cpus *c)
{
    bool bind = p->n_threads > 1 && p->n_threads == c->n_cores && c->topo;
    if (bind) visit_first_core(c);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = 0;
    for (uint32_t i = 1; i < p->n_threads && !err; i++) {
        struct worker *w = &p->workers[i];
        hwloc_obj_t core = bind ? core_at(c, i) : NULL;
        *w = (struct worker){ .pool = p, .index = i };
        if (core) set_places(w, core, c);
        err = pthread_create(&w->thread, NULL, worker_main, w);
        if (!err) p->n_started = i;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!err) return SL_OK;
    return sl_fail(ctx, SL_E_DEVICE, "thread pool: start thread %u of %u: %s", p->n_started + 1,
                   p->n_threads - 1, strerror(err));
}

sl_status sl_pool_create(sl_ctx *ctx, uint32_t n_threads, sl_pool **ret)
{
    assert(ctx && ret);
    struct cpus c;
    cpus_init(&c);
    sl_pool *p = NULL;
    sl_status st = SL_OK;
    if (n_threads == 0) n_threads = c.n_cores;
    if (n_threads > c.n_hw || n_threads > INSIDE) {
        st = sl_fail(ctx, SL_E_ARG, "%u threads wanted, but this process may use %u hardware "
                     "threads (%u cores)", n_threads, c.n_hw, c.n_cores);
        goto fail;
    }
    p = aligned_alloc(LINE, sizeof *p);
    if (p) memset(p, 0, sizeof *p);
    if (p) p->workers = calloc(n_threads, sizeof *p->workers);
    if (!p || !p->workers) {
        st = sl_fail(ctx, SL_E_NOMEM, "thread pool of %u threads", n_threads);
        goto fail;
    }
    p->n_threads = n_threads;
    p->spin = n_threads <= c.n_cores;
    p->spin_ns = SPIN_NS;
    p->topo = c.topo;
    c.topo = NULL;          /* the pool's from here on */
    struct cpus view = { .topo = p->topo, .set = c.set, .n_cores = c.n_cores, .n_hw = c.n_hw };
    st = start_workers(ctx, p, &view);
    if (st != SL_OK) goto fail;
    cpus_fini(&c);
    *ret = p;
    return SL_OK;
fail:
    cpus_fini(&c);
    sl_pool_destroy(&p);
    return st;
}

void sl_pool_destroy(sl_pool **pool)
{
    assert(pool);
    sl_pool *p = *pool;
    *pool = NULL;
    if (!p) return;
    atomic_store(&p->quit, 1);
    atomic_fetch_add(&p->gen, 1);
    futex_wake(&p->gen, INT_MAX);
    futex_wake(&p->quit, INT_MAX);
    for (uint32_t i = 1; i <= p->n_started; i++) pthread_join(p->workers[i].thread, NULL);
    for (uint32_t i = 1; p->workers && i < p->n_threads; i++) {
        hwloc_bitmap_free(p->workers[i].cpus);
        hwloc_bitmap_free(p->workers[i].node);
    }
    free(p->workers);
    if (p->topo) hwloc_topology_destroy(p->topo);
    free(p);
}

uint32_t sl_pool_threads(const sl_pool *pool)
{
    return pool->n_threads;
}
