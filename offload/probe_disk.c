/* offload/probe_disk.c - how fast a file can be read past the page cache, by the store itself.
 * Each cell of the table is visited a few times, all cells in turn, and its median kept: a shared
 * disk changes its mind from second to second. */
#include "offload/sl_probe.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "offload/probe.h"
#include "offload/sl_store.h"

enum {
    MAX_IN_FLIGHT = 64,
    BUFFER = 256 << 20,         /* reads land here in turn: in memory, not in a cache */
    LARGEST = 4 << 20,          /* of one read */
    MAX_VISITS = 3,
    N_LATENCIES = 200,
    FILL = 4 << 20,             /* of one write */
};
static const uint64_t full_bytes = (uint64_t)1 << 30, quick_bytes = (uint64_t)256 << 20;

struct grid {
    const uint32_t *bytes, *depth;
    uint32_t n_bytes, n_depth, n_visits;
    double window_s;            /* of a visit, at least */
};

static const uint32_t all_bytes[] = { 4096, 16384, 65536, 262144, 524288, 1 << 20, LARGEST };
static const uint32_t all_depths[] = { 1, 2, 4, 8, 16, 32, MAX_IN_FLIGHT };
static const uint32_t some_bytes[] = { 65536, 262144, 524288, 1 << 20 };
static const uint32_t some_depths[] = { 1, 4, 16, MAX_IN_FLIGHT };
static const uint32_t few_bytes[] = { 65536, 262144, 1 << 20 }, few_depths[] = { 1, 4, 16 };
static const struct grid full = {
    all_bytes, all_depths, SL_LEN(all_bytes), SL_LEN(all_depths), MAX_VISITS, 0.05
};
static const struct grid brief = {
    some_bytes, some_depths, SL_LEN(some_bytes), SL_LEN(some_depths), 2, 0.05
};
static const struct grid quick = {
    few_bytes, few_depths, SL_LEN(few_bytes), SL_LEN(few_depths), 1, 0.07
};

struct sl_probe_disk_reader {
    sl_ctx *ctx;
    sl_store *store;
    char *buf;
    uint64_t room;              /* of buf */
    uint64_t next;              /* read, counted from the first: its place in buf */
    uint64_t file_bytes, state;
    uint64_t from, window;      /* where in the file reads are; window 0: everywhere */
    double max_s;               /* of a visit */
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* splitmix64: Steele, Lea, Flood, OOPSLA 2014 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, ascending);
    return v[n / 2];
}

/* ---- reads ---- */

static sl_status start_reads(sl_probe_disk_reader *b, uint32_t bytes, const uint64_t *slots,
                             uint32_t n)
{
    sl_read reads[MAX_IN_FLIGHT];
    for (uint32_t i = 0; i < n; i++) {
        uint64_t places = ((b->window ? b->window : b->file_bytes) - bytes) / SL_STORE_ALIGN + 1;
        uint64_t at = b->from + next_random(&b->state) % places * SL_STORE_ALIGN;
        reads[i] = (sl_read){ .slice = { .offset = at, .bytes = bytes }, .tag = slots[i],
                              .dst = b->buf + b->next++ % (b->room / bytes) * bytes };
    }
    return sl_store_submit(b->ctx, b->store, reads, n);
}

/* Waits for min reads at least and returns how many came: their slots, and one's seconds. */
static sl_status end_reads(sl_probe_disk_reader *b, uint32_t min, uint64_t *slots, uint32_t *ret_n,
                           double *ret_s)
{
    sl_read_done done[MAX_IN_FLIGHT];
    *ret_n = sl_store_reap(b->store, done, MAX_IN_FLIGHT, min);
    for (uint32_t i = 0; i < *ret_n; i++) {
        if (done[i].status != SL_OK) return sl_fail(b->ctx, done[i].status, "%s", done[i].error);
        slots[i] = done[i].tag;
        *ret_s = done[i].seconds;
    }
    return SL_OK;
}

/* Bytes/s with so many reads always in flight: from when the first `depth` have come until so
 * many more have, and the window is over. */
static sl_status visit(sl_probe_disk_reader *b, uint32_t bytes, uint32_t depth, double window_s,
                       double *ret)
{
    uint64_t slots[MAX_IN_FLIGHT], came = 0, counted = 0;
    double one, begin = now_s(), from = 0, to = 0;
    uint32_t n = depth;
    for (uint32_t i = 0; i < depth; i++) slots[i] = i;
    do {
        SL_TRY(start_reads(b, bytes, slots, n));
        SL_TRY(end_reads(b, 1, slots, &n, &one));
        to = now_s();
        came += n;
        if (from > 0) counted += n;
        else if (came >= depth) from = to;
    } while (counted < depth || (to - from < window_s && to - begin < b->max_s));
    *ret = (double)counted * bytes / SL_MAX(to - from, 1e-9);
    for (uint32_t left = depth - n; left; left -= n) SL_TRY(end_reads(b, left, slots, &n, &one));
    return SL_OK;
}

/* Chooses a part of the file and reads it once: a host may have a cache of its own, and of what a
 * model streams nearly all was read before. Where this first time was much slower, *ret is its
 * rate, 0 otherwise: a disk with no such cache reads at one rate, give or take. */
static sl_status read_first(sl_probe_disk_reader *b, uint64_t most, double *ret)
{
    enum { BYTES = 1 << 20, DEPTH = 16 };
    const double much = 0.5;
    uint64_t slots[MAX_IN_FLIGHT];
    uint32_t flying = 0, n;
    double one, start = now_s(), again;
    b->window = SL_MIN(b->file_bytes, most) / BYTES * BYTES;
    b->from = next_random(&b->state) % ((b->file_bytes - b->window) / BYTES + 1) * BYTES;
    for (uint64_t at = 0; at < b->window || flying; flying -= n) {
        for (; at < b->window && flying < DEPTH; at += BYTES, flying++) {
            sl_read r = { .slice = { .offset = b->from + at, .bytes = BYTES },
                          .dst = b->buf + at % b->room };
            SL_TRY(sl_store_submit(b->ctx, b->store, &r, 1));
        }
        SL_TRY(end_reads(b, 1, slots, &n, &one));
    }
    double first = (double)b->window / (now_s() - start);
    SL_TRY(visit(b, BYTES, DEPTH, 0.05, &again));
    *ret = first < much * again ? first : 0;
    return SL_OK;
}

static sl_status measure_latency(sl_probe_disk_reader *b, double seconds, double *ret)
{
    double s[N_LATENCIES], end = now_s() + seconds;
    uint32_t n = 0, one;
    uint64_t slot = 0;
    do {
        SL_TRY(start_reads(b, SL_STORE_ALIGN, &slot, 1));
        SL_TRY(end_reads(b, 1, &slot, &one, &s[n]));
        n++;
    } while (n < N_LATENCIES && now_s() < end);
    *ret = median(s, n);
    return SL_OK;
}

/* Cells with more in flight than the buffer holds are left out. */
static sl_status measure_grid(sl_probe_disk_reader *b, const struct grid *g,
                              const sl_probe_disk_params *p, sl_machine_disk *d)
{
    double rate[SL_MACHINE_CURVES][SL_MACHINE_POINTS][MAX_VISITS];
    uint32_t n_cells = g->n_bytes * g->n_depth, all = n_cells * g->n_visits;
    for (uint32_t c = 0; c < all; c++) {
        uint32_t i = c % n_cells / g->n_depth, k = c % g->n_depth;
        char what[64];
        if ((uint64_t)g->bytes[i] * g->depth[k] > BUFFER) continue;
        snprintf(what, sizeof what, "disk reads, %u KiB, %u in flight", g->bytes[i] >> 10,
                 g->depth[k]);
        if (p->progress) p->progress(p->user, what, 0.9 * c / all);
        SL_TRY(visit(b, g->bytes[i], g->depth[k], g->window_s, &rate[i][k][c / n_cells]));
    }
    for (uint32_t i = 0; i < g->n_bytes; i++) {
        sl_machine_curve *c = &d->curve[i];
        c->bytes = g->bytes[i];
        c->n = 0;
        for (uint32_t k = 0; k < g->n_depth; k++)
            if ((uint64_t)g->bytes[i] * g->depth[k] <= BUFFER)
                c->at[c->n++] = (sl_machine_disk_point){
                    g->depth[k], median(rate[i][k], g->n_visits)
                };
    }
    d->n_curves = g->n_bytes;
    return SL_OK;
}

/* ---- beside the CPU ---- */

enum { MAX_STAGES = 1000, CORUN_ROUNDS = 5, CPU_VISITS = 5, MEBIBYTE = 1 << 20, CPU_DEPTH = 16 };

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Of the whole process, since the store may have threads; nobody else works meanwhile. */
static sl_status measure_read_cpu(sl_probe_disk_reader *b, double *ret)
{
    double v[CPU_VISITS], rate;
    for (int i = 0; i < CPU_VISITS; i++) {
        sl_store_stats before, after;
        double start = cpu_s();
        sl_store_get_stats(b->store, &before);
        SL_TRY(visit(b, MEBIBYTE, CPU_DEPTH, 0.04, &rate));
        sl_store_get_stats(b->store, &after);
        v[i] = (cpu_s() - start) / (double)SL_MAX(after.requests - before.requests, 1u);
    }
    *ret = SL_MAX(median(v, CPU_VISITS), 2e-8);
    return SL_OK;
}

struct corun {
    sl_probe_disk_reader *b;
    probe_engine *e;
    probe_point point;          /* what the CPU does */
    double sleep_s;             /* not 0: it sleeps so long instead */
    uint32_t bytes, depth;
};

static void doze(double seconds)
{
    struct timespec t = { (time_t)seconds, (long)(fmod(seconds, 1) * 1e9) };
    nanosleep(&t, NULL);
}

/* Both at once, as a streamed pass has them: the thread that computes looks for what has landed
 * and asks for more between two stages. The median stage, the share of the time in which stages
 * stood still beyond that, and the disk's bytes/s in the rest of it. */
static sl_status visit_both(struct corun *c, double seconds, double *ret_stage_s,
                            double *ret_frozen, double *ret_rate)
{
    uint64_t slots[MAX_IN_FLIGHT], came = 0;
    uint32_t n = c->depth, stages = 0;
    double one, stage_s[MAX_STAGES], in_stages = 0, begin = now_s(), s;
    for (uint32_t i = 0; i < n; i++) slots[i] = i;
    do {
        SL_TRY(start_reads(c->b, c->bytes, slots, n));
        s = now_s();
        if (c->sleep_s > 0) doze(c->sleep_s);
        else SL_TRY(probe_engine_call(c->e, &c->point));
        stage_s[stages] = now_s() - s;
        in_stages += stage_s[stages];
        SL_TRY(end_reads(c->b, 0, slots, &n, &one));
        came += n;
        s = now_s() - begin;
    } while (++stages < MAX_STAGES && s < seconds);
    *ret_stage_s = median(stage_s, stages);
    double still = SL_MAX(in_stages - stages * *ret_stage_s, 0);
    *ret_frozen = still / s;
    *ret_rate = (double)came * c->bytes / (s - still);
    for (uint32_t left = c->depth - n; left; left -= n)
        SL_TRY(end_reads(c->b, left, slots, &n, &one));
    return SL_OK;
}

static double share_of(double *v, uint32_t n)
{
    return SL_MIN(SL_MAX(median(v, n), 0.01), 1);
}

/* Each alone and both together, in turn. */
static sl_status measure_corun(struct corun *c, const sl_probe_disk_params *p, double *ret_cpu,
                               double *ret_disk)
{
    double cpu[CORUN_ROUNDS], disk[CORUN_ROUNDS];
    uint32_t rounds = p->quick ? 2 : CORUN_ROUNDS;
    for (uint32_t i = 0; i < rounds; i++) {
        double alone_s, both_s, alone, both, frozen;
        c->sleep_s = 0;
        SL_TRY(probe_engine_visit(c->e, &c->point, 0.03, &alone_s));
        SL_TRY(visit_both(c, 0.06, &both_s, &frozen, &both));
        cpu[i] = alone_s / both_s;
        /* the disk waits as often to be asked for more */
        c->sleep_s = both_s;
        SL_TRY(visit_both(c, 0.06, &both_s, &frozen, &alone));
        disk[i] = both / alone;
    }
    c->sleep_s = 0;
    *ret_cpu = share_of(cpu, rounds);
    *ret_disk = share_of(disk, rounds);
    return SL_OK;
}

/* Seconds of CPU time that the host takes for a byte, of those that it gives to all our threads: a
 * quota lets both run together for a part of its period, and then neither. Shorter visits than a
 * few periods do not see that. */
static sl_status measure_host(struct corun *c, uint32_t n_threads, bool is_quick, double *ret)
{
    const double little = 0.03;     /* of the time stand still stages on any machine */
    double stage_s, frozen, rate;
    SL_TRY(visit_both(c, SL_MACHINE_QUOTA_S, &stage_s, &frozen, &rate));
    SL_TRY(visit_both(c, (is_quick ? 4 : 8) * SL_MACHINE_QUOTA_S, &stage_s, &frozen, &rate));
    *ret = frozen > little ? n_threads * frozen / ((1 - frozen) * rate) : 0;
    return SL_OK;
}

/* The disk at its best, with so much in flight that it does not run dry during a stage. Of many
 * rows one expert at a time: eight of them take longer than all reads. */
static sl_status measure_coruns(sl_probe_disk_reader *b, const sl_probe_disk_params *p,
                                sl_machine *m)
{
    const uint64_t flying = 16 << 20;
    uint32_t threads[SL_MACHINE_COSTS];
    size_t bytes = probe_buffer_bytes();
    struct corun c = { .b = b };
    double rate;
    void *weights = NULL;
    (void)sl_machine_disk_best(m, &c.bytes, &c.depth, &rate);
    while ((uint64_t)c.bytes * c.depth < flying && c.depth < MAX_IN_FLIGHT) c.depth *= 2;
    c.depth = SL_MIN(c.depth, (uint32_t)MAX_IN_FLIGHT);
    for (uint32_t i = 0; i < m->n_costs; i++) threads[i] = m->cost[i].threads;
    SL_TRY(sl_mem_alloc(b->ctx, SL_ACC_SCRATCH, bytes, &weights));
    sl_status st = probe_engine_create(b->ctx, threads, m->n_costs, (probe_dims){ 0 },
                                       weights, bytes, &c.e);
    for (uint32_t i = 0; st == SL_OK && i < m->n_costs; i++) {
        if (p->progress) p->progress(p->user, "disk and CPU together", 0.9 + 0.1 * i / m->n_costs);
        sl_machine_cost *cost = &m->cost[i];
        c.point = (probe_point){ PROBE_GEMM, i, SL_Q4_K, 1 };
        st = measure_corun(&c, p, &cost->corun_cpu, &cost->corun_disk);
        c.point.what = PROBE_CALL1;
        double both;
        if (st == SL_OK) st = measure_corun(&c, p, &cost->corun_tiles, &both);
        if (st == SL_OK && cost->threads == m->id.hw_threads)
            st = measure_host(&c, cost->threads, p->quick, &m->read_host_s);
    }
    probe_engine_destroy(&c.e);
    sl_mem_free(b->ctx, weights);
    return st;
}

/* ---- the file ---- */

/* A file of noise in the folder, without a name. */
static sl_status make_file(sl_ctx *ctx, const char *folder, uint64_t bytes, char *buf, int *ret_fd)
{
    char path[4096];
    struct statvfs room;
    if (snprintf(path, sizeof path, "%s/sluice-probe-XXXXXX", folder) >= (int)sizeof path)
        return sl_fail(ctx, SL_E_ARG, "folder %.80s...: too long", folder);
    if (statvfs(folder, &room)) return sl_fail(ctx, SL_E_IO, "%s: %s", folder, strerror(errno));
    double spare = (double)room.f_bavail * (double)room.f_frsize;
    if (spare < 2.0 * (double)bytes)
        return sl_fail(ctx, SL_E_IO, "%s: a test file of %.2f GiB leaves too little of the free "
                       "%.2f GiB", folder, (double)bytes / 0x1p30, spare / 0x1p30);
    int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0) return sl_fail(ctx, SL_E_IO, "test file in %s: %s", folder, strerror(errno));
    unlink(path);
    uint64_t state = (uint64_t)(now_s() * 1e9);
    for (uint64_t at = 0; at < bytes;) {
        for (size_t i = 0; i < FILL; i += sizeof state) {
            uint64_t noise = next_random(&state);
            memcpy(buf + i, &noise, sizeof noise);
        }
        ssize_t n = write(fd, buf, (size_t)SL_MIN(bytes - at, (uint64_t)FILL));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            int err = n ? errno : ENOSPC;
            close(fd);
            return sl_fail(ctx, SL_E_IO, "write a test file in %s: %s", folder, strerror(err));
        }
        at += (uint64_t)n;
    }
    /* On the disk, so that its pages can be dropped; advice: O_DIRECT needs neither. */
    if (fdatasync(fd) == 0) (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    *ret_fd = fd;
    return SL_OK;
}

static sl_status open_file(sl_ctx *ctx, const char *path, int *ret_fd, uint64_t *ret_bytes)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info)) {
        int err = errno;
        if (fd >= 0) close(fd);
        return sl_fail(ctx, SL_E_IO, "open %s: %s", path, strerror(err));
    }
    *ret_bytes = S_ISREG(info.st_mode) ? (uint64_t)info.st_size : 0;
    *ret_fd = fd;
    if (*ret_bytes >= LARGEST) return SL_OK;
    close(fd);
    return sl_fail(ctx, SL_E_ARG, "measure reads of %s: expected a file of %d MiB at least, found "
                   "%.1f MiB", path, LARGEST >> 20, (double)*ret_bytes / 0x1p20);
}

static sl_status open_store(sl_probe_disk_reader *b, int fd, const char *name)
{
    sl_store_params sp = { .depth = MAX_IN_FLIGHT, .request_bytes = LARGEST, .direct = true,
                           .max_reads = MAX_IN_FLIGHT };
    SL_TRY(sl_store_create(b->ctx, &fd, &b->file_bytes, &name, 1, &sp, &b->store));
    if (strstr(sl_store_mode(b->store), "no O_DIRECT"))
        return sl_fail(b->ctx, SL_E_UNSUPPORTED, "%s cannot be read past the page cache: its rate "
                       "would be that of memory", name);
    return sl_store_register(b->ctx, b->store, b->buf, b->room);
}

static sl_status measure(sl_probe_disk_reader *b, const sl_probe_disk_params *p, int fd,
                         const char *name, sl_machine *m)
{
    SL_TRY(open_store(b, fd, name));
    b->max_s = p->quick ? 0.2 : 0.3;
    if (p->file)
        SL_TRY(read_first(b, p->quick || p->brief ? quick_bytes : full_bytes,
                          &m->disk.first_bytes_s));
    SL_TRY(measure_latency(b, p->quick ? 0.05 : p->brief ? 0.1 : 0.5, &m->disk.latency_s));
    SL_TRY(measure_grid(b, p->quick ? &quick : p->brief ? &brief : &full, p, &m->disk));
    SL_TRY(measure_read_cpu(b, &m->read_cpu_s));
    m->read_host_s = 0;
    return m->n_costs ? measure_coruns(b, p, m) : SL_OK;
}

sl_status sl_probe_disk(sl_ctx *ctx, const sl_probe_disk_params *p, sl_machine *m)
{
    assert(ctx && p && m && !p->file != !p->folder);
    const char *name = p->file ? p->file : p->folder;
    sl_probe_disk_reader b = { .ctx = ctx, .state = (uint64_t)(now_s() * 1e9), .room = BUFFER };
    sl_machine *now = calloc(1, sizeof *now);   /* large for a stack */
    void *buf = NULL;
    int fd = -1;
    sl_status st = now ? SL_OK : sl_fail(ctx, SL_E_NOMEM, "machine");
    if (st == SL_OK) st = sl_mem_alloc(ctx, SL_ACC_SCRATCH, BUFFER, &buf);
    if (st != SL_OK) {
        free(now);
        return st;
    }
    *now = *m;
    now->disk = (sl_machine_disk){ 0 };
    b.buf = buf;
    snprintf(now->disk.where, sizeof now->disk.where, "%s", name);
    if (p->progress) p->progress(p->user, p->file ? "disk" : "test file for the disk", 0);
    if (p->file) {
        st = open_file(ctx, name, &fd, &b.file_bytes);
    } else {
        b.file_bytes = p->quick ? quick_bytes : full_bytes;
        st = make_file(ctx, name, b.file_bytes, b.buf, &fd);
    }
    if (st == SL_OK) {
        st = measure(&b, p, fd, name, now);
        close(fd);
    }
    sl_store_destroy(&b.store);
    sl_mem_free(ctx, buf);
    if (st == SL_OK) *m = *now;
    free(now);
    return st;
}

/* ---- one rate at a time ---- */

sl_status sl_probe_disk_open(sl_ctx *ctx, const char *file, uint64_t room_bytes,
                             sl_probe_disk_reader **ret)
{
    assert(ctx && file && room_bytes >= SL_STORE_ALIGN);
    sl_probe_disk_reader *r = calloc(1, sizeof *r);
    if (!r) return sl_fail(ctx, SL_E_NOMEM, "disk reader");
    *r = (sl_probe_disk_reader){ .ctx = ctx, .state = (uint64_t)(now_s() * 1e9) };
    /* Memory that the disk writes to starts on a page: sl_mem_alloc gives that from 2 MiB on. */
    r->room = SL_MAX(room_bytes, (uint64_t)2 << 20);
    void *buf = NULL;
    int fd = -1;
    sl_status st = sl_mem_alloc(ctx, SL_ACC_SCRATCH, r->room, &buf);
    r->buf = buf;
    if (st == SL_OK) st = open_file(ctx, file, &fd, &r->file_bytes);
    if (st == SL_OK) st = open_store(r, fd, file);
    if (fd >= 0) close(fd);
    if (st != SL_OK) sl_probe_disk_close(&r);
    else *ret = r;
    return st;
}

void sl_probe_disk_close(sl_probe_disk_reader **reader)
{
    sl_probe_disk_reader *r = *reader;
    if (!r) return;
    sl_store_destroy(&r->store);
    sl_mem_free(r->ctx, r->buf);
    free(r);
    *reader = NULL;
}

sl_status sl_probe_disk_rate(sl_probe_disk_reader *r, uint64_t bytes, uint32_t depth,
                             double seconds, double *ret)
{
    uint64_t n = (bytes + SL_STORE_ALIGN - 1) / SL_STORE_ALIGN * SL_STORE_ALIGN;
    n = SL_MIN(n, SL_MIN((uint64_t)LARGEST, r->room));
    depth = (uint32_t)SL_MIN((uint64_t)SL_MIN(depth, (uint32_t)MAX_IN_FLIGHT), r->room / n);
    r->max_s = 3 * seconds;
    return visit(r, (uint32_t)n, SL_MAX(depth, 1), seconds, ret);
}
