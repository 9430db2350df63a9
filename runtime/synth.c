/* runtime/synth.c - writes synthetic models. The file is a row of windows; threads take them in
 * turn, make what lies in them (header, tensors, gaps of zeros) and write them past the page cache:
 * a model may be larger than memory, and the kernel's write-back is slower than the disk. Tensors
 * are made in grains counted from their own start, so that their bytes do not depend on where
 * windows begin. */
#include "runtime/synth.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "runtime/base/sl_out.h"
#include "runtime/base/sl_pool.h"

enum {
    WINDOW = 4 << 20,           /* bytes of a write */
    GRAIN = 64 << 10,           /* bytes that one random sequence fills, about */
    ROUND = 8,                  /* writes per thread between two reports */
    /* what O_DIRECT wants offsets, sizes and addresses to be multiples of */
    PAGE = 4096
};

typedef struct writer {
    const synth_model *m;
    const sl_kernels *kernels;
    const synth_pattern *patterns;  /* [n_tensors] */
    uint64_t seed;
    const unsigned char *head;
    uint64_t n_head;            /* the tensors' bytes begin there */
    uint64_t total;             /* bytes of the file */
    uint64_t first;             /* number of the window that is task 0 */
    int fd;
    unsigned char *buf;         /* [n_threads][WINDOW + GRAIN] */
    int *err;                   /* [n_threads] errno of a failed write */
} writer;

static int write_all(int fd, const unsigned char *p, size_t n, uint64_t at)
{
    while (n) {
        ssize_t got = pwrite(fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got ? errno : EIO;
        p += got;
        n -= (size_t)got;
        at += (uint64_t)got;
    }
    return 0;
}

/* The part of tensor i that lies in bytes [lo, hi) of the file, into buf, which begins at lo. A
 * grain that lies there only in part is made in spare. */
static void make_tensor(const writer *w, uint32_t i, uint64_t lo, uint64_t hi, unsigned char *buf,
                        unsigned char *spare)
{
    const synth_tensor *t = &w->m->tensors[i];
    uint64_t start = w->n_head + t->offset,
             size = GRAIN / w->patterns[i].block_bytes * w->patterns[i].block_bytes;
    uint64_t from = SL_MAX(lo, start) - start, to = SL_MIN(hi - start, t->bytes);
    for (uint64_t at = from / size * size; at < to; at += size) {
        size_t n = (size_t)SL_MIN(size, t->bytes - at);
        bool whole = at >= from && at + n <= to;
        unsigned char *dst = whole ? buf + (start + at - lo) : spare;
        synth_fill(w->kernels, w->m, t, &w->patterns[i], w->seed, at, n, dst);
        uint64_t a = SL_MAX(at, from), b = SL_MIN(at + n, to);
        if (!whole) memcpy(buf + (start + a - lo), spare + (a - at), (size_t)(b - a));
    }
}

static void write_window(void *arg, uint32_t index, uint32_t thread)
{
    writer *w = arg;
    uint64_t lo = (w->first + index) * WINDOW, hi = SL_MIN(lo + WINDOW, w->total);
    unsigned char *buf = w->buf + (size_t)thread * (WINDOW + GRAIN);
    if (w->err[thread]) return;
    memset(buf, 0, WINDOW);
    if (lo < w->n_head) memcpy(buf, w->head + lo, (size_t)(SL_MIN(hi, w->n_head) - lo));
    /* the last tensor that begins at or before lo, or the first */
    uint32_t a = 0, b = w->m->n_tensors;
    while (b - a > 1)
        *(w->n_head + w->m->tensors[(a + b) / 2].offset <= lo ? &a : &b) = (a + b) / 2;
    for (; a < w->m->n_tensors && w->n_head + w->m->tensors[a].offset < hi; a++)
        if (w->n_head + w->m->tensors[a].offset + w->m->tensors[a].bytes > lo)
            make_tensor(w, a, lo, hi, buf, buf + WINDOW);
    w->err[thread] = write_all(w->fd, buf, (size_t)((hi - lo + PAGE - 1) / PAGE * PAGE), lo);
}

static sl_status write_windows(sl_ctx *ctx, const sl_synth_params *p, const char *path, writer *w,
                               sl_pool *pool)
{
    uint64_t n = (w->total + WINDOW - 1) / WINDOW;
    uint32_t n_threads = sl_pool_threads(pool);
    for (uint64_t c = 0; c < n; c += ROUND * n_threads) {
        w->first = c;
        sl_pool_run(pool, write_window, w, (uint32_t)SL_MIN(n - c, (uint64_t)ROUND * n_threads));
        for (uint32_t i = 0; i < n_threads; i++)
            if (w->err[i]) return sl_fail(ctx, SL_E_IO, "write %s: %s", path, strerror(w->err[i]));
        if (p->progress
            && !p->progress(p->user, SL_MIN(w->total, (c + ROUND * n_threads) * WINDOW), w->total))
            return sl_fail(ctx, SL_E_IO, "write %s: interrupted", path);
    }
    /* The last window was rounded up. */
    if (ftruncate(w->fd, (off_t)w->total))
        return sl_fail(ctx, SL_E_IO, "write %s: %s", path, strerror(errno));
    return SL_OK;
}

/* All that the windows need, and then the windows. */
static sl_status write_all_windows(sl_ctx *ctx, const sl_synth_params *p, const char *path,
                                   writer *w)
{
    const synth_model *m = w->m;
    sl_pool *pool = NULL;
    sl_kernels k;
    void *buf = NULL;
    sl_kernels_init(&k, 0);     /* the reference set: the same bytes on every machine */
    SL_TRY(sl_pool_create(ctx, p->n_threads, &pool));
    uint32_t n_threads = sl_pool_threads(pool);
    synth_pattern *patterns = calloc(m->n_tensors, sizeof *patterns);
    w->err = calloc(n_threads, sizeof *w->err);
    sl_status st = patterns && w->err
        ? sl_mem_alloc(ctx, SL_ACC_SCRATCH, (size_t)n_threads * (WINDOW + GRAIN) + PAGE, &buf)
        : sl_fail(ctx, SL_E_NOMEM, "table of %u tensors", m->n_tensors);
    if (st == SL_OK) {
        w->kernels = &k;
        w->patterns = patterns;
        w->buf = (unsigned char *)(((uintptr_t)buf + PAGE - 1) / PAGE * PAGE);
        for (uint32_t i = 0; i < m->n_tensors; i++)
            synth_pattern_make(&k, &m->tensors[i], &patterns[i]);
        st = write_windows(ctx, p, path, w, pool);
    }
    sl_mem_free(ctx, buf);
    free(patterns);
    free(w->err);
    sl_pool_destroy(&pool);
    return st;
}

/* Room for the whole file, or a line that says how much is missing. */
static sl_status reserve(sl_ctx *ctx, int fd, const char *path, uint64_t bytes)
{
    struct statvfs v;
    if (fstatvfs(fd, &v))
        return sl_fail(ctx, SL_E_IO, "free space for %s: %s", path, strerror(errno));
    uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;
    if (bytes > room)
        return sl_fail(ctx, SL_E_IO, "%s would take %.2f GB, and the disk has %.2f GB free", path,
                       (double)bytes * 1e-9, (double)room * 1e-9);
    if (!fallocate(fd, 0, 0, (off_t)bytes)) return SL_OK;
    if (errno == EOPNOTSUPP && !ftruncate(fd, (off_t)bytes)) return SL_OK;
    return sl_fail(ctx, SL_E_IO, "%.2f GB for %s: %s", (double)bytes * 1e-9, path, strerror(errno));
}

static sl_status write_file(sl_ctx *ctx, const sl_synth_params *p, const synth_model *m,
                            const unsigned char *head, size_t n_head, const char *path)
{
    sl_out out;
    SL_TRY(sl_out_open(ctx, path, &out));
    writer w = { .m = m, .seed = p->seed, .head = head, .n_head = n_head,
                 .total = n_head + m->out.data_bytes, .fd = fileno(out.file) };
    (void)fcntl(w.fd, F_SETFL, O_DIRECT);       /* where the file system has it: tmpfs has not */
    sl_status st = reserve(ctx, w.fd, path, w.total);
    if (st == SL_OK) st = write_all_windows(ctx, p, path, &w);
    return sl_out_close(ctx, &out, st);
}

/* path NULL: only measure. */
static sl_status make(sl_ctx *ctx, const sl_synth_params *p, const char *path, sl_synth_report *ret)
{
    synth_model m;
    unsigned char *head = NULL;
    size_t n_head = 0;
    sl_status st = synth_model_make(ctx, p, &m);
    if (st == SL_OK) st = gguf_out_finish(ctx, &m.out, &head, &n_head);
    if (st == SL_OK && path) st = write_file(ctx, p, &m, head, n_head, path);
    if (st == SL_OK) {
        *ret = (sl_synth_report){ .file_bytes = n_head + m.out.data_bytes, .n_params = m.n_params,
                                  .token_bytes = m.token_bytes, .n_tensors = m.n_tensors,
                                  .n_layer = m.n_layer };
        for (uint32_t i = 0; i < m.n_tensors; i++) ret->tensor_bytes += m.tensors[i].bytes;
    }
    free(head);
    synth_model_fini(&m);
    return st;
}

sl_status sl_synth_measure(sl_ctx *ctx, const sl_synth_params *p, sl_synth_report *ret)
{
    assert(ctx && p && p->preset && p->quant && ret);
    return make(ctx, p, NULL, ret);
}

sl_status sl_synth_write(sl_ctx *ctx, const sl_synth_params *p, const char *path,
                         sl_synth_report *ret)
{
    assert(ctx && p && p->preset && p->quant && path && ret);
    return make(ctx, p, path, ret);
}
