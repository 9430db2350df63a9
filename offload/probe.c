/* offload/probe.c - what this machine is, and how fast it can read, multiply and meet at a
 * barrier. */
#include "offload/sl_probe.h"

#include <assert.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernels/sl_kernels.h"
#include "offload/probe.h"
#include "runtime/base/sl_pool.h"

enum {
    MIN_BUFFER = 256 << 20,     /* also where no cache is known: eight times 32 MiB */
    /* tasks per thread, so that a late thread leaves its share to others */
    PIECES = 8
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- identity ---- */

/* "model name" of /proc/cpuinfo; CPUs that have none are named by their family of instructions. */
static void cpu_name(char *ret, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");
#if defined(__x86_64__)
    snprintf(ret, size, "x86-64");
#elif defined(__aarch64__)
    snprintf(ret, size, "aarch64");
#else
    snprintf(ret, size, "unknown");
#endif
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, "model name", 10)) continue;
        colon += 1 + (colon[1] == ' ');
        colon[strcspn(colon, "\n")] = 0;
        if (*colon) snprintf(ret, size, "%.*s", (int)size - 1, colon);
        break;
    }
    if (f) fclose(f);
}

/* One number from a file of sysfs; -1: there is none. */
static long sysfs_number(int cpu, int index, const char *name)
{
    char path[112];
    long v = -1;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cache/index%d/%s", cpu, index, name);
    FILE *f = fopen(path, "re");
    if (!f) return -1;
    if (fscanf(f, "%ld", &v) != 1) v = -1;      /* of "32768K" and "0-7,16" the first */
    fclose(f);
    return v;
}

/* All caches of the last level together: each is counted at the first CPU that shares it. (The C
 * library's number is the whole package's even where a virtual machine has a part of it.) */
static uint64_t last_cache_bytes(void)
{
    uint64_t sum = 0;
    int last = 0;
    for (int i = 0; i < 8; i++)
        if (sysfs_number(0, i, "level") > sysfs_number(0, last, "level")) last = i;
    for (int cpu = 0; cpu < SL_MACHINE_MAX_THREADS; cpu++) {
        long kib = sysfs_number(cpu, last, "size");
        if (kib < 0 && cpu >= sysconf(_SC_NPROCESSORS_CONF)) break;
        if (kib > 0 && sysfs_number(cpu, last, "shared_cpu_list") == cpu)
            sum += (uint64_t)kib * 1024;
    }
    return sum;
}

sl_status sl_probe_identify(sl_ctx *ctx, sl_machine_id *ret)
{
    static const struct { unsigned bit; const char *name; } isas[] = {
        { SL_CPU_AVX2, "avx2" }, { SL_CPU_AVXVNNI, "avxvnni" }, { SL_CPU_AVX512, "avx512" },
        { SL_CPU_VNNI512, "avx512vnni" },
    };
    sl_machine_id id = { .cores = sl_pool_cores(ctx), .l3_bytes = last_cache_bytes() };
    unsigned cpu = sl_cpu_detect();
    long hw = sysconf(_SC_NPROCESSORS_ONLN), pages = sysconf(_SC_PHYS_PAGES);
    cpu_name(id.cpu, sizeof id.cpu);
    for (size_t i = 0; i < SL_LEN(isas); i++) {
        size_t n = strlen(id.isa);
        if (cpu & isas[i].bit)
            snprintf(id.isa + n, sizeof id.isa - n, "%s%s", n ? " " : "", isas[i].name);
    }
    id.hw_threads = SL_MAX(hw > 0 ? (uint32_t)hw : 1, id.cores);
    id.ram_bytes = pages > 0 ? (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
    *ret = id;
    return SL_OK;
}

/* ---- peaks ---- */

bool sl_probe_has(sl_peak peak)
{
    static const unsigned need[SL_N_PEAKS] = {
        [SL_PEAK_I8_AVX2] = SL_CPU_AVX2, [SL_PEAK_I8_AVXVNNI] = SL_CPU_AVXVNNI,
        [SL_PEAK_I8_VNNI512] = SL_CPU_VNNI512, [SL_PEAK_F32_AVX2] = SL_CPU_AVX2,
        [SL_PEAK_F32_AVX512] = SL_CPU_AVX512,
    };
    assert((unsigned)peak < SL_N_PEAKS);
    return probe_peak_ops(peak) && (sl_cpu_detect() & need[peak]) == need[peak];
}

double sl_probe_peak(sl_peak peak, double seconds)
{
    assert(sl_probe_has(peak));
    /* A first short run says how many rounds fill the time; 1e9 rounds/s of 24 instructions do not
     * exist. */
    const uint64_t first = 4000;
    double t = now_s();
    probe_peak_loop(peak, first);
    double per_round = SL_MAX((now_s() - t) / (double)first, 1e-9);
    uint64_t rounds = (uint64_t)SL_MIN(SL_MAX(seconds / per_round, 1000), 1e9);
    t = now_s();
    probe_peak_loop(peak, rounds);
    return (double)rounds * probe_peak_ops(peak) / (now_s() - t);
}

/* A place where n threads wait for each other. */
struct meeting { _Atomic uint32_t arrived; uint32_t n; };

static void wait_for_all(struct meeting *m)
{
    atomic_fetch_add(&m->arrived, 1);
    for (int i = 1; atomic_load(&m->arrived) < m->n; i++)
        if (i % 4096 == 0) sched_yield();
}

struct peak_run {
    sl_peak peak;
    uint64_t rounds;
    struct meeting meeting;
    double *start_s, *end_s;    /* [n] */
};

/* All begin together: the pool alone would let one thread do what another is late for. */
static void peak_task(void *arg, uint32_t index, uint32_t thread)
{
    struct peak_run *r = arg;
    (void)thread;
    wait_for_all(&r->meeting);
    r->start_s[index] = now_s();
    probe_peak_loop(r->peak, r->rounds);
    r->end_s[index] = now_s();
}

/* Operations/s of n threads from the first begin to the last end. */
static double peak_of_all(sl_pool *pool, struct peak_run *r)
{
    uint32_t n = sl_pool_threads(pool);
    atomic_store(&r->meeting.arrived, 0);
    r->meeting.n = n;
    sl_pool_run(pool, peak_task, r, n);
    double start = r->start_s[0], end = r->end_s[0];
    for (uint32_t i = 1; i < n; i++) {
        start = fmin(start, r->start_s[i]);
        end = fmax(end, r->end_s[i]);
    }
    return (double)n * (double)r->rounds * probe_peak_ops(r->peak) / (end - start);
}

/* Best of some slices, first of one core, then of all threads of the pool. Slices are short, so
 * that some fall between whatever else the cores have to do. */
static void measure_peak(sl_machine *m, sl_pool *pool, sl_peak peak, double *times)
{
    enum { SLICES = 8 };
    const double slice_s = 0.001;
    for (int i = 0; i < SLICES; i++)
        m->peak_core[peak] = fmax(m->peak_core[peak], sl_probe_peak(peak, slice_s));
    uint32_t n = sl_pool_threads(pool);
    struct peak_run r = { .peak = peak,
                          .start_s = times,
                          .end_s = times + n,
                          .rounds = (uint64_t)(slice_s * m->peak_core[peak] / probe_peak_ops(peak))
                                    + 1 };
    for (int i = 0; i < SLICES; i++)
        m->peak_all[peak] = fmax(m->peak_all[peak], peak_of_all(pool, &r));
    if (n == 1)
        m->peak_all[peak] = m->peak_core[peak] = fmax(m->peak_all[peak], m->peak_core[peak]);
}

/* ---- reads ---- */

struct sl_probe_reader {
    sl_ctx *ctx;
    sl_pool *pool;
    char *buf;                  /* not the reader's while borrowed */
    bool borrowed;
    size_t bytes, piece;
    uint32_t n_pieces;
    uint32_t way, best_way;
};

static void touch_task(void *arg, uint32_t index, uint32_t thread)
{
    const sl_probe_reader *r = arg;
    (void)thread;
    memset(r->buf + index * r->piece, (int)(index + 1), r->piece);
}

static void read_task(void *arg, uint32_t index, uint32_t thread)
{
    const sl_probe_reader *r = arg;
    (void)thread;
    probe_read_loop(r->way, r->buf + index * r->piece, r->piece);
}

/* Passes over the buffer, one at least, until so much time is gone: bytes/s of all of them. */
static double read_for(sl_probe_reader *r, uint32_t way, double seconds)
{
    double start = now_s(), s = 0, bytes = 0;
    r->way = way;
    do {
        sl_pool_run(r->pool, read_task, r, r->n_pieces);
        bytes += (double)r->piece * r->n_pieces;
        s = now_s() - start;
    } while (s < seconds);
    return bytes / s;
}

size_t probe_buffer_bytes(void)
{
    uint64_t want = SL_MAX(8 * last_cache_bytes(), (uint64_t)MIN_BUFFER);
    long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t room = pages > 0 ? (uint64_t)pages * (uint64_t)page / 2 : want;
    return (size_t)(SL_MAX(SL_MIN(want, room), (uint64_t)PROBE_MIN_WEIGHTS) >> 21 << 21);
}

/* buf NULL: an own one. */
static sl_status reader_create(sl_ctx *ctx, uint32_t n_threads, char *buf, size_t bytes,
                               sl_probe_reader **ret)
{
    sl_probe_reader *r = calloc(1, sizeof *r);
    if (!r) return sl_fail(ctx, SL_E_NOMEM, "reader");
    *r = (sl_probe_reader){ .ctx = ctx, .buf = buf, .borrowed = buf != NULL, .bytes = bytes };
    sl_status st = sl_pool_create(ctx, n_threads, &r->pool);
    if (st == SL_OK && !buf) {
        void *p = NULL;
        st = sl_mem_alloc(ctx, SL_ACC_SCRATCH, bytes, &p);
        r->buf = p;
        /* a wish; before the first touch */
        if (st == SL_OK) (void)madvise(p, bytes, MADV_HUGEPAGE);
    }
    if (st == SL_OK) {
        r->n_pieces = PIECES * sl_pool_threads(r->pool);
        r->piece = bytes / r->n_pieces / PROBE_READ_UNIT * PROBE_READ_UNIT;
        if (!buf) sl_pool_run(r->pool, touch_task, r, r->n_pieces);
        *ret = r;
        return SL_OK;
    }
    sl_probe_reader_destroy(&r);
    return st;
}

/* The way with the best of two tries, all ways in turn. */
static void choose_way(sl_probe_reader *r, double seconds)
{
    double best = 0;
    for (uint32_t i = 0; i < 2 * PROBE_N_READS; i++) {
        double rate = read_for(r, i % PROBE_N_READS, seconds);
        if (rate > best) best = rate, r->best_way = i % PROBE_N_READS;
    }
}

sl_status sl_probe_reader_create(sl_ctx *ctx, uint32_t n_threads, sl_probe_reader **ret)
{
    SL_TRY(reader_create(ctx, n_threads, NULL, probe_buffer_bytes(), ret));
    choose_way(*ret, 0.03);
    return SL_OK;
}

void sl_probe_reader_destroy(sl_probe_reader **r)
{
    assert(r);
    if (!*r) return;
    if (!(*r)->borrowed) sl_mem_free((*r)->ctx, (*r)->buf);
    sl_pool_destroy(&(*r)->pool);
    free(*r);
    *r = NULL;
}

double sl_probe_read(sl_probe_reader *r)
{
    return read_for(r, r->best_way, 0);
}

/* The best rate that held for a while: a shared host lets single passes of some 10 ms run at
 * several times what it gives for longer, and no model is read in 10 ms. */
static double measure_read(sl_probe_reader *r, double seconds)
{
    const double window_s = 0.2;
    double best = 0, end = now_s() + seconds;
    choose_way(r, 0.02);
    do best = fmax(best, read_for(r, r->best_way, window_s)); while (now_s() < end);
    return best;
}

/* ---- barriers ---- */

static void meet(void *arg, uint32_t index, uint32_t thread)
{
    (void)index, (void)thread;
    wait_for_all(arg);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The median of runs of 20: a run that something interrupted does not count. */
static double measure_barrier(sl_pool *pool)
{
    enum { RUNS = 101, EACH = 20 };
    double s[RUNS];
    uint32_t n = sl_pool_threads(pool);
    for (int i = 0; i < RUNS; i++) {
        double t = now_s();
        for (int j = 0; j < EACH; j++) {
            struct meeting m = { 0, n };
            sl_pool_run(pool, meet, &m, n);
        }
        s[i] = (now_s() - t) / EACH;
    }
    qsort(s, RUNS, sizeof *s, ascending);
    return SL_MAX(s[RUNS / 2], 1e-9);
}

/* ---- all of it ---- */

/* 1, 2, 3, 4, 6, 8, 12, ... and the last; quick: the first and the last. */
static uint32_t thread_counts(uint32_t max, bool quick, uint32_t ret[SL_MACHINE_POINTS])
{
    uint32_t n = 0;
    for (uint32_t t = 1; t < max && n + 1 < SL_MACHINE_POINTS; t += SL_MAX(1u, t / 3)) {
        ret[n++] = t;
        if (quick) break;
    }
    ret[n++] = max;
    return n;
}

/* What is measured and how long: all of it takes 1. */
struct scope {
    uint32_t read_threads[SL_MACHINE_POINTS], n_read;
    uint32_t threads[SL_MACHINE_COSTS], n_threads;
    double read_s;              /* of one thread count */
    double engine_s;
    int peak_rounds;
    double engine_from;         /* share of the time that is over when the engine's turn comes */
};

static sl_status check_params(sl_ctx *ctx, const sl_probe_params *p)
{
    uint32_t n_threads = p->threads ? p->n_threads : 2;
    uint32_t most = SL_MACHINE_GEMMS / SL_MAX(n_threads, 1);
    if (p->threads && (!p->n_threads || p->n_threads > SL_MACHINE_COSTS || p->max_threads))
        return sl_fail(ctx, SL_E_ARG, "probe: %u thread counts, expected 1 to %d and no maximum",
                       p->n_threads, SL_MACHINE_COSTS);
    for (uint32_t i = 0; p->threads && i < p->n_threads; i++)
        if (p->threads[i] <= (i ? p->threads[i - 1] : 0))
            return sl_fail(ctx, SL_E_ARG, "probe: thread count %u is %u, expected more than %u", i,
                           p->threads[i], i ? p->threads[i - 1] : 0);
    if (p->types && (!p->n_types || p->n_types > most))
        return sl_fail(ctx, SL_E_ARG, "probe: %u types, expected 1 to %u", p->n_types, most);
    for (uint32_t i = 0; p->types && i < p->n_types; i++) {
        const sl_type_info *t = sl_type_get(p->types[i]);
        if (!t->matmul)
            return sl_fail(ctx, SL_E_ARG, "probe: the engine does not multiply by type %s",
                           t->name ? t->name : "?");
    }
    if (p->seconds && !(p->seconds >= 3 && p->seconds <= 3600))
        return sl_fail(ctx, SL_E_ARG, "probe: %g seconds, expected 3 to 3600", p->seconds);
    return SL_OK;
}

static struct scope scope_of(const sl_probe_params *p, uint32_t cores)
{
    struct scope s = { .n_read = p->n_threads, .n_threads = p->threads ? p->n_threads : 0 };
    double all_s = p->seconds > 0 ? p->seconds : p->quick ? 3 : 40;
    uint32_t max = p->max_threads ? p->max_threads : cores;
    if (p->threads) {
        memcpy(s.read_threads, p->threads, p->n_threads * sizeof *p->threads);
        memcpy(s.threads, p->threads, p->n_threads * sizeof *p->threads);
    } else {
        s.n_read = thread_counts(max, p->quick || p->seconds > 0, s.read_threads);
        s.threads[s.n_threads++] = 1;
        if (max > 1) s.threads[s.n_threads++] = max;
    }
    s.read_s = SL_MIN(4, 0.3 * all_s / s.n_read);
    s.peak_rounds = SL_MAX((int)(1.5 * all_s), 5);
    s.engine_s = 0.55 * all_s - 1;
    s.engine_from = 1 - s.engine_s / all_s;
    return s;
}

struct progress {
    const sl_probe_params *p;
    double from, to;            /* of all, what the part at hand takes */
};

static void report(void *user, const char *what, double share)
{
    const struct progress *g = user;
    if (g->p->progress) g->p->progress(g->p->user, what, g->from + share * (g->to - g->from));
}

static sl_status measure_threads(sl_ctx *ctx, const struct scope *s, struct progress *g,
                                 sl_probe_reader *whole, sl_machine *m)
{
    for (uint32_t i = 0; i < s->n_read; i++) {
        sl_probe_reader *r = NULL;
        uint32_t n = s->read_threads[i];
        char what[48];
        snprintf(what, sizeof what, "DRAM reads, %u thread%s", n, n > 1 ? "s" : "");
        report(g, what, 0.7 * i / s->n_read);
        SL_TRY(reader_create(ctx, n, whole->buf, whole->bytes, &r));
        double rate = measure_read(r, s->read_s);
        /* More threads can leave the reading to fewer: where they seem slower, something disturbed
         * them. */
        if (i) rate = fmax(rate, m->dram_read[i - 1].value);
        m->dram_read[i] = (sl_machine_point){ n, rate };
        m->barrier[i] = (sl_machine_point){ n, measure_barrier(r->pool) };
        sl_probe_reader_destroy(&r);
    }
    m->n_dram = m->n_barrier = s->n_read;
    return SL_OK;
}

/* All peaks in turn: a busy second hits none of them alone. */
static sl_status measure_peaks(sl_ctx *ctx, const struct scope *s, struct progress *g,
                               sl_pool *pool, sl_machine *m)
{
    uint32_t n = sl_pool_threads(pool);
    double *times = calloc(2 * n, sizeof *times);
    if (!times) return sl_fail(ctx, SL_E_NOMEM, "times of %u threads", n);
    for (int i = 0; i < s->peak_rounds * SL_N_PEAKS; i++) {
        sl_peak peak = (sl_peak)(i % SL_N_PEAKS);
        report(g, "instruction peaks", 0.7 + 0.3 * i / (s->peak_rounds * SL_N_PEAKS));
        if (sl_probe_has(peak)) measure_peak(m, pool, peak, times);
    }
    free(times);
    return SL_OK;
}

sl_status sl_probe_run(sl_ctx *ctx, const sl_probe_params *p, sl_machine *ret)
{
    assert(ctx && p && ret);
    sl_machine *m = calloc(1, sizeof *m);   /* large for a stack */
    sl_probe_reader *whole = NULL;
    sl_status st = m ? check_params(ctx, p) : sl_fail(ctx, SL_E_NOMEM, "machine");
    if (st == SL_OK) st = sl_probe_identify(ctx, &m->id);
    if (st != SL_OK) {
        free(m);
        return st;
    }
    m->source = p->quick ? SL_MACHINE_QUICK : SL_MACHINE_MEASURED;
    struct scope s = scope_of(p, m->id.cores);
    struct progress g = { p, 0, s.engine_from };
    sl_probe_params inner = *p;
    inner.progress = report;
    inner.user = &g;
    report(&g, "memory", 0);
    st = reader_create(ctx, s.threads[s.n_threads - 1], NULL, probe_buffer_bytes(), &whole);
    if (st == SL_OK) st = measure_threads(ctx, &s, &g, whole, m);
    if (st == SL_OK) st = measure_peaks(ctx, &s, &g, whole->pool, m);
    g = (struct progress){ p, s.engine_from, 1 };
    if (st == SL_OK)
        st = probe_curves(ctx, &inner, s.threads, s.n_threads, whole->buf, whole->bytes, s.engine_s,
                          m);
    sl_probe_reader_destroy(&whole);
    if (st == SL_OK) st = sl_machine_check(ctx, m);
    if (st == SL_OK) *ret = *m;
    free(m);
    return st;
}
