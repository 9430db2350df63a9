/* offload/store.c - reads of slices, split into requests that a way (store_io.h) carries out; and
 * the blocking reads and mappings.
 * A read is free, waiting (something of it has not started: in `demand` or `ahead`), flying
 * (all has), or over (done, failed or cancelled: in `over` until it is reaped).
 * Invariants:
 *   I1  a read is over when nothing of it flies and nothing of it waits; n_pending counts those
 *       that are waiting or flying, n_over the others that are not free
 *   I2  n_flying requests are out, depth at most; the others are in `idle`
 *   I3  a request stays with its read until it has all it needs, or an error
 *   I4  map is NULL or a mapping of exactly `bytes` bytes, charged once to SL_ACC_MAPPED
 */
#include "offload/sl_store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "offload/store_io.h"

typedef unsigned long long ull;
#define READ_MAX ((uint64_t)1 << 30)    /* of one pread: Linux stops at 2 GiB anyway */
#define NONE UINT32_MAX

enum {
    MAX_AGAIN = 1000,       /* EAGAINs in a row of one request */
    MAX_ERRORS = 16,        /* failed reads that one reap tells */
    ERROR_TEXT = 400,
    PLACES = 256,           /* that sl_store_cached_share looks at */
};

struct file {
    int fd, direct_fd;      /* the second -1: none */
    bool direct;            /* it works, as far as we know */
    char *path;
    uint64_t bytes;
    unsigned char *map;
};

enum where { FREE, WAITING, FLYING, OVER };

struct read {
    sl_slice slice;
    char *dst;
    uint64_t tag;
    enum where where;
    bool ahead, cancelled;
    uint64_t at, end;           /* of the file: what has not started */
    uint32_t n_flying;
    uint32_t prev, next;        /* in its list */
    int err;                    /* errno of the first failure, 0: the file ended; if failed */
    bool failed;
    uint64_t err_at, err_got;   /* the request that failed, and what it had got */
    double start_s, end_s;
};

struct request {
    io_request io;              /* first: a way hands this back */
    uint32_t read;
    uint64_t from, need;        /* what the slice needs of it: [from, from + need) */
    uint64_t got;               /* so far */
    uint64_t span;              /* with over-read */
    bool direct;
    uint32_t n_again;
    sl_store_fault fault;
    uint32_t next;              /* in idle */
};

struct list { uint32_t first, last; };

struct sl_store {
    sl_ctx *ctx;
    sl_store_params p;          /* no zeros */
    io_way *way;
    struct read *reads;         /* [max_reads] */
    struct request *requests;   /* [depth] */
    struct list demand, ahead, over, free;
    uint32_t idle;
    uint32_t n_free, n_pending, n_over, n_flying;
    uint32_t n_demanded;    /* of the pending ones: not `ahead` */
    sl_store_stats stats;
    double busy_since;
    char (*errors)[ERROR_TEXT]; /* [MAX_ERRORS] */
    char mode[400];
    char no_ring[120], no_memory[120], no_direct[160];  /* why not; empty: it is */
    bool registered, tried_memory;
    uint32_t n_files;
    struct file file[];
};

static uint64_t align_down(uint64_t v) { return v / SL_STORE_ALIGN * SL_STORE_ALIGN; }
static uint64_t align_up(uint64_t v) { return align_down(v + SL_STORE_ALIGN - 1); }

/* ---- create, destroy ---- */

static void write_mode(sl_store *s)
{
    size_t n = sizeof s->mode;
    char *at = s->mode;
    bool direct = false;
    for (uint32_t i = 0; i < s->n_files; i++) direct |= s->file[i].direct;
    const char *how = !s->p.direct ? "page cache" : !direct ? "no O_DIRECT" :
                      s->no_direct[0] ? "O_DIRECT in part" : "O_DIRECT";
    int k;
    if (s->p.threads || s->no_ring[0])
        k = snprintf(at, n, "%u threads with pread, %s", s->p.n_threads, how);
    else
        k = snprintf(at, n, "io_uring, %s%s", how, s->registered && !s->no_memory[0] ?
                     ", registered buffers" : s->registered ? ", buffers registered in part" :
                     s->tried_memory ? ", unregistered buffers" : "");
    static const char *const sep[] = { ": ", "; " };
    const char *const why[] = { s->no_ring, s->no_direct, s->no_memory };
    for (size_t i = 0, said = 0; i < SL_LEN(why); i++) {
        if (!why[i][0] || (size_t)k >= n) continue;
        k += snprintf(at + k, n - (size_t)k, "%s%s", sep[said > 0], why[i]);
        said++;
    }
}

static void give_up_direct(sl_store *s, struct file *f, const char *what, int err)
{
    f->direct = false;
    snprintf(s->no_direct, sizeof s->no_direct, "%s: %.80s: %s", what, f->path, strerror(err));
}

/* A second descriptor of the same file, and one block read with it: some file systems refuse only
 * then. */
static sl_status open_direct(sl_store *s, struct file *f)
{
    char name[40];
    snprintf(name, sizeof name, "/proc/self/fd/%d", f->fd);
    f->direct_fd = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (f->direct_fd < 0) {
        snprintf(s->no_direct, sizeof s->no_direct, "cannot open %.80s with O_DIRECT: %s", f->path,
                 strerror(errno));
        return SL_OK;
    }
    void *block = aligned_alloc(SL_STORE_ALIGN, SL_STORE_ALIGN);
    if (!block) return sl_fail(s->ctx, SL_E_NOMEM, "block of %s", f->path);
    if (pread(f->direct_fd, block, SL_STORE_ALIGN, 0) < 0 && errno == EINVAL) {
        give_up_direct(s, f, "cannot read with O_DIRECT", EINVAL);
    } else {
        f->direct = true;
    }
    free(block);
    return SL_OK;
}

static sl_status open_files(sl_store *s, const int *fds, const uint64_t *file_bytes,
                            const char *const *paths, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct file *f = &s->file[s->n_files++];
        f->bytes = file_bytes[i];
        f->direct_fd = -1;
        f->path = strdup(paths[i]);
        f->fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (f->fd < 0)
            return sl_fail(s->ctx, SL_E_IO, "duplicate the descriptor of %s: %s", paths[i],
                           strerror(errno));
        if (!f->path) return sl_fail(s->ctx, SL_E_NOMEM, "path %s", paths[i]);
        if (s->p.direct) SL_TRY(open_direct(s, f));
    }
    return SL_OK;
}

static sl_status set_params(sl_ctx *ctx, const sl_store_params *given, sl_store_params *p)
{
    *p = given ? *given : (sl_store_params){ 0 };
    if (!p->depth) p->depth = 64;
    if (!p->request_bytes) p->request_bytes = 1 << 20;
    if (!p->ahead_depth) p->ahead_depth = SL_MAX(p->depth / 2, 1);
    if (!p->ahead_bytes) p->ahead_bytes = SL_MIN(256u << 10, p->request_bytes);
    if (!p->max_reads) p->max_reads = 4096;
    if (!p->n_threads) p->n_threads = 4;
    if (p->depth > SL_STORE_MAX_DEPTH || p->ahead_depth > p->depth || p->max_reads > 1u << 20
        || p->n_threads > 256)
        return sl_fail(ctx, SL_E_ARG, "a store of depth %u (%u at most), %u of it ahead, for %u "
                       "reads, %u threads", p->depth, SL_STORE_MAX_DEPTH, p->ahead_depth,
                       p->max_reads, p->n_threads);
    if (p->request_bytes % SL_STORE_ALIGN || p->request_bytes > SL_STORE_MAX_REQUEST
        || p->ahead_bytes % SL_STORE_ALIGN || p->ahead_bytes > SL_STORE_MAX_REQUEST)
        return sl_fail(ctx, SL_E_ARG, "requests of %u and %u bytes: expected multiples of %u, %u "
                       "at most", p->request_bytes, p->ahead_bytes, SL_STORE_ALIGN,
                       SL_STORE_MAX_REQUEST);
    return SL_OK;
}

static void push(sl_store *s, struct list *l, uint32_t i)
{
    s->reads[i].prev = l->last;
    s->reads[i].next = NONE;
    if (l->last == NONE) l->first = i;
    else s->reads[l->last].next = i;
    l->last = i;
}

static void take_out(sl_store *s, struct list *l, uint32_t i)
{
    const struct read *r = &s->reads[i];
    if (r->prev == NONE) l->first = r->next;
    else s->reads[r->prev].next = r->next;
    if (r->next == NONE) l->last = r->prev;
    else s->reads[r->next].prev = r->prev;
}

static sl_status make_tables(sl_store *s)
{
    const sl_store_params *p = &s->p;
    void *at = NULL;
    SL_TRY(sl_mem_alloc(s->ctx, SL_ACC_TABLES, p->max_reads * sizeof *s->reads, &at));
    s->reads = at;
    SL_TRY(sl_mem_alloc(s->ctx, SL_ACC_TABLES, p->depth * sizeof *s->requests, &at));
    s->requests = at;
    SL_TRY(sl_mem_alloc(s->ctx, SL_ACC_TABLES, MAX_ERRORS * sizeof *s->errors, &at));
    s->errors = at;
    s->demand = s->ahead = s->over = s->free = (struct list){ NONE, NONE };
    for (uint32_t i = 0; i < p->max_reads; i++) push(s, &s->free, i);
    s->n_free = p->max_reads;
    s->idle = NONE;
    for (uint32_t i = p->depth; i-- > 0; s->idle = i) s->requests[i].next = s->idle;
    return SL_OK;
}

/* The ring's table of files: those for O_DIRECT first. */
static sl_status make_way(sl_store *s)
{
    if (!s->p.threads) {
        int *table = calloc(2 * s->n_files, sizeof *table);
        if (!table) return sl_fail(s->ctx, SL_E_NOMEM, "table of %u files", s->n_files);
        for (uint32_t i = 0; i < s->n_files; i++) {
            table[i] = s->file[i].direct_fd;
            table[s->n_files + i] = s->file[i].fd;
        }
        sl_status st = io_ring_create(s->ctx, s->p.depth, table, 2 * s->n_files, &s->way,
                                      s->no_ring, sizeof s->no_ring);
        free(table);
        SL_TRY(st);
        if (s->way) s->way->poll_s = s->p.poll_s;
    }
    return s->way ? SL_OK : io_threads_create(s->ctx, s->p.n_threads, &s->way);
}

sl_status sl_store_create(sl_ctx *ctx, const int *fds, const uint64_t *file_bytes,
                          const char *const *paths, uint32_t n_files, const sl_store_params *p,
                          sl_store **ret)
{
    assert(ctx && ret);
    sl_store_params params;
    if (!n_files) return sl_fail(ctx, SL_E_ARG, "a store needs at least one file");
    SL_TRY(set_params(ctx, p, &params));
    sl_store *s = NULL;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, sizeof *s + n_files * sizeof s->file[0], (void **)&s));
    s->ctx = ctx;
    s->p = params;
    sl_status st = open_files(s, fds, file_bytes, paths, n_files);
    if (st == SL_OK) st = make_tables(s);
    if (st == SL_OK) st = make_way(s);
    if (st == SL_OK) {
        write_mode(s);
        *ret = s;
    } else {
        sl_store_destroy(&s);
    }
    return st;
}

void sl_store_destroy(sl_store **store)
{
    sl_store *s = *store;
    if (!s) return;
    if (s->way) {
        s->way->submit(s->way);
        while (s->n_flying)     /* their memory is the caller's */
            for (io_request *r = s->way->land(s->way, s->n_flying); r; r = r->next) s->n_flying--;
        s->way->destroy(s->way);
    }
    for (uint32_t i = 0; i < s->n_files; i++) {
        struct file *f = &s->file[i];
        if (f->map) {
            munmap(f->map, (size_t)f->bytes);
            sl_mem_charge(s->ctx, SL_ACC_MAPPED, -(int64_t)f->bytes);
        }
        if (f->direct_fd >= 0) close(f->direct_fd);
        if (f->fd >= 0) close(f->fd);
        free(f->path);
    }
    sl_mem_free(s->ctx, s->reads);
    sl_mem_free(s->ctx, s->requests);
    sl_mem_free(s->ctx, s->errors);
    sl_mem_free(s->ctx, s);
    *store = NULL;
}

void sl_store_set_faults(sl_store *s, const sl_store_faults *faults) { s->p.faults = faults; }

static sl_status check_slice(sl_ctx *ctx, const sl_store *s, sl_slice slice)
{
    if (slice.file >= s->n_files)
        return sl_fail(ctx, SL_E_ARG, "slice of file %u: the store has %u files", slice.file,
                       s->n_files);
    const struct file *f = &s->file[slice.file];
    if (slice.offset > f->bytes || slice.bytes > f->bytes - slice.offset)
        return sl_fail(ctx, SL_E_ARG,
                       "%s: slice of %llu bytes at offset %llu leaves its %llu bytes", f->path,
                       (ull)slice.bytes, (ull)slice.offset, (ull)f->bytes);
    return SL_OK;
}

/* ---- requests ---- */

/* Hands over what is left of q; its read and range are set. */
static void launch(sl_store *s, struct request *q)
{
    const struct read *r = &s->reads[q->read];
    const struct file *f = &s->file[r->slice.file];
    uint64_t at = q->from + q->got;
    /* What a short read left may start anywhere: the page cache has it. */
    q->direct = f->direct && at % SL_STORE_ALIGN == 0;
    uint64_t end = q->direct ? q->from + q->span : q->from + q->need;
    q->io.dst = r->dst + (at - align_down(r->slice.offset));
    q->io.offset = at;
    q->io.bytes = (uint32_t)(end - at);
    q->io.fd = q->direct ? f->direct_fd : f->fd;
    q->io.fd_index = q->direct ? r->slice.file : s->n_files + r->slice.file;
    q->io.delay_s = 0;
    q->fault.kind = SL_FAULT_NONE;
    if (s->p.faults) {
        q->fault = s->p.faults->ask(s->p.faults->user, r->slice.file, at, q->io.bytes);
        if (q->fault.kind == SL_FAULT_DELAY) q->io.delay_s = q->fault.seconds;
    }
    s->stats.requests++;
    s->way->start(s->way, &q->io);
}

/* The next piece of a waiting read: all of one size, but for alignment. */
static void start_request(sl_store *s, uint32_t index)
{
    struct read *r = &s->reads[index];
    struct request *q = &s->requests[s->idle];
    s->idle = q->next;
    uint64_t max = r->ahead ? s->p.ahead_bytes : s->p.request_bytes, left = r->end - r->at;
    uint64_t n = (left + max - 1) / max;
    uint64_t to = SL_MIN(align_up(r->at + (left + n - 1) / n), r->end);
    *q = (struct request){ .read = index, .from = r->at, .need = to - r->at,
                           .span = align_up(to) - r->at };
    if (!s->n_flying++) s->busy_since = io_now_s();
    s->stats.max_in_flight = SL_MAX(s->stats.max_in_flight, s->n_flying);
    r->n_flying++;
    r->at = to;
    if (r->at == r->end) {
        take_out(s, r->ahead ? &s->ahead : &s->demand, index);
        r->where = FLYING;
    }
    launch(s, q);
}

/* Starts what may start. */
static void pump(sl_store *s)
{
    while (s->n_flying < s->p.depth && s->demand.first != NONE)
        start_request(s, s->demand.first);
    while (s->n_flying < s->p.ahead_depth && !s->n_demanded && s->ahead.first != NONE)
        start_request(s, s->ahead.first);
}

static void end_if_over(sl_store *s, uint32_t index)
{
    struct read *r = &s->reads[index];
    if (r->where != FLYING || r->n_flying) return;
    r->where = OVER;
    r->end_s = io_now_s();
    s->n_pending--;
    s->n_demanded -= !r->ahead;
    s->n_over++;
    push(s, &s->over, index);
}

/* Nothing more of it starts. */
static void stop_read(sl_store *s, uint32_t index)
{
    struct read *r = &s->reads[index];
    if (r->where != WAITING) return;
    take_out(s, r->ahead ? &s->ahead : &s->demand, index);
    r->at = r->end;
    r->where = FLYING;
}

static void fail_read(sl_store *s, const struct request *q, int err)
{
    struct read *r = &s->reads[q->read];
    stop_read(s, q->read);
    if (r->failed) return;
    r->failed = true;
    r->err = err;
    r->err_at = q->from;
    r->err_got = q->got;
}

static int64_t result_of(const struct request *q)
{
    int64_t got = q->io.result;
    switch (q->fault.kind) {
    case SL_FAULT_EIO: return -EIO;
    case SL_FAULT_AGAIN: return -EAGAIN;
    case SL_FAULT_INVAL: return -EINVAL;
    case SL_FAULT_END: return 0;
    case SL_FAULT_SHORT: return SL_MIN(got, (int64_t)SL_MIN(SL_MAX(q->fault.bytes, 1), READ_MAX));
    case SL_FAULT_NONE:
    case SL_FAULT_DELAY: break;
    }
    return got;
}

/* True: it goes on. */
static bool goes_on(sl_store *s, struct request *q)
{
    int64_t got = result_of(q);
    struct file *f = &s->file[s->reads[q->read].slice.file];
    if (got > 0) {
        s->stats.read_bytes += (uint64_t)got;
        q->got += (uint64_t)got;
        q->n_again = 0;
        return q->got < q->need && !s->reads[q->read].failed;
    }
    if ((got == -EAGAIN || got == -EINTR) && q->n_again++ < MAX_AGAIN) return true;
    if (got == -EINVAL && q->direct) {
        give_up_direct(s, f, "cannot read with O_DIRECT", EINVAL);
        write_mode(s);
        return true;
    }
    fail_read(s, q, (int)-got);
    return false;
}

static void land(sl_store *s, io_request *io)
{
    struct request *q = (struct request *)(void *)io;
    if (goes_on(s, q)) {
        launch(s, q);
        return;
    }
    uint32_t index = q->read;
    q->next = s->idle;
    s->idle = (uint32_t)(q - s->requests);
    s->reads[index].n_flying--;
    if (!--s->n_flying) s->stats.busy_s += io_now_s() - s->busy_since;
    end_if_over(s, index);
}

static void land_all(sl_store *s, uint32_t min)
{
    io_request *next;
    for (io_request *io = s->way->land(s->way, min); io; io = next) {
        next = io->next;
        land(s, io);
    }
    pump(s);
}

/* ---- reads ---- */

sl_status sl_store_register(sl_ctx *ctx, sl_store *s, void *base, uint64_t bytes)
{
    if (s->n_flying)
        return sl_fail(ctx, SL_E_ARG, "register memory while %u reads are in flight", s->n_flying);
    if ((uintptr_t)base % SL_STORE_ALIGN)
        return sl_fail(ctx, SL_E_ARG, "register memory at %p: expected a multiple of %u", base,
                       SL_STORE_ALIGN);
    if (!s->way->add_memory || !bytes) return SL_OK;
    s->tried_memory = true;
    if (s->way->add_memory(s->way, base, bytes, s->no_memory, sizeof s->no_memory))
        s->registered = true;
    write_mode(s);
    return SL_OK;
}

static void queue(sl_store *s, const sl_read *read, double now)
{
    uint32_t index = s->free.first;
    take_out(s, &s->free, index);
    s->n_free--;
    struct read *r = &s->reads[index];
    const sl_slice *c = &read->slice;
    uint64_t from = s->file[c->file].direct ? align_down(c->offset) : c->offset;
    *r = (struct read){ .slice = *c, .dst = read->dst, .tag = read->tag, .ahead = read->ahead,
                        .at = from, .end = c->offset + c->bytes, .start_s = now,
                        .where = c->bytes ? WAITING : FLYING };
    s->n_pending++;
    s->n_demanded += !r->ahead;
    if (c->bytes) push(s, r->ahead ? &s->ahead : &s->demand, index);
    else end_if_over(s, index);
}

sl_status sl_store_submit(sl_ctx *ctx, sl_store *s, const sl_read *reads, uint32_t n)
{
    if (n > s->n_free)
        return sl_fail(ctx, SL_E_ARG, "submit %u reads: %u of %u are not reaped", n,
                       s->p.max_reads - s->n_free, s->p.max_reads);
    for (uint32_t i = 0; i < n; i++) {
        SL_TRY(check_slice(ctx, s, reads[i].slice));
        if ((uintptr_t)reads[i].dst % SL_STORE_ALIGN)
            return sl_fail(ctx, SL_E_ARG, "read to %p: expected a multiple of %u", reads[i].dst,
                           SL_STORE_ALIGN);
    }
    double now = io_now_s();
    for (uint32_t i = 0; i < n; i++) queue(s, &reads[i], now);
    pump(s);
    s->way->submit(s->way);
    return SL_OK;
}

/* Requests that have to land before `more` further reads can be over. */
static uint32_t landings(const sl_store *s, uint32_t more)
{
    assert(s->n_flying);        /* what may start has */
    if (s->demand.first != NONE) return 1;      /* room for its next request */
    if (more >= s->n_pending) return s->ahead.first == NONE ? s->n_flying : 1;
    uint32_t least = s->n_flying;
    /* Idle requests name reads that were: they fly with 0. */
    for (uint32_t i = 0; i < s->p.depth; i++) {
        const struct read *r = &s->reads[s->requests[i].read];
        if (r->where == FLYING && r->n_flying) least = SL_MIN(least, r->n_flying);
    }
    return least;
}

static void tell_failure(sl_store *s, const struct read *r, char *text)
{
    const char *path = s->file[r->slice.file].path;
    char slice[80];
    snprintf(slice, sizeof slice, "slice of %llu bytes at offset %llu", (ull)r->slice.bytes,
             (ull)r->slice.offset);
    if (r->err)
        snprintf(text, ERROR_TEXT, "read %.200s: %s: at offset %llu: %s", path, slice,
                 (ull)(r->err_at + r->err_got), strerror(r->err));
    else
        snprintf(text, ERROR_TEXT, "read %.200s: %s: found the end of the file at offset %llu",
                 path, slice, (ull)(r->err_at + r->err_got));
}

uint32_t sl_store_reap(sl_store *s, sl_read_done *ret, uint32_t max, uint32_t min)
{
    uint32_t n = 0, n_errors = 0;
    min = SL_MIN(min, max);
    if (s->n_over >= min || !s->n_pending) land_all(s, 0);
    while (s->n_over < min && s->n_pending) land_all(s, landings(s, min - s->n_over));
    s->way->submit(s->way);
    while (n < max && s->over.first != NONE && n_errors < MAX_ERRORS) {
        uint32_t index = s->over.first;
        struct read *r = &s->reads[index];
        sl_read_done *d = &ret[n++];
        *d = (sl_read_done){ .tag = r->tag, .seconds = r->end_s - r->start_s };
        s->stats.reads++;
        if (r->failed) {
            d->status = SL_E_IO;
            d->error = s->errors[n_errors];
            tell_failure(s, r, s->errors[n_errors++]);
            s->stats.errors++;
        } else if (r->cancelled) {
            d->status = SL_E_ARG;
            d->cancelled = true;
            d->error = "cancelled";
            s->stats.cancelled++;
        } else {
            s->stats.bytes += r->slice.bytes;
        }
        take_out(s, &s->over, index);
        r->where = FREE;
        push(s, &s->free, index);
        s->n_over--;
        s->n_free++;
    }
    return n;
}

void sl_store_cancel(sl_store *s, uint64_t tag)
{
    for (uint32_t i = s->ahead.first, next; i != NONE; i = next) {
        next = s->reads[i].next;
        if (s->reads[i].tag != tag) continue;
        s->reads[i].cancelled = true;
        stop_read(s, i);
        end_if_over(s, i);
    }
}

void sl_store_promote(sl_store *s, uint64_t tag)
{
    for (uint32_t i = s->ahead.first, next; i != NONE; i = next) {
        next = s->reads[i].next;
        if (s->reads[i].tag != tag) continue;
        take_out(s, &s->ahead, i);
        s->reads[i].ahead = false;
        s->n_demanded++;
        push(s, &s->demand, i);
    }
    pump(s);
    s->way->submit(s->way);
}

const char *sl_store_mode(const sl_store *s) { return s->mode; }

void sl_store_get_stats(const sl_store *s, sl_store_stats *ret)
{
    *ret = s->stats;
    ret->in_flight = s->n_flying;
    ret->open = s->p.max_reads - s->n_free;
    ret->submits = s->way->submits;
    ret->waits = s->way->waits;
    if (s->n_flying) ret->busy_s += io_now_s() - s->busy_since;
}

/* ---- the page cache ---- */

#ifndef __NR_cachestat
#define __NR_cachestat 451      /* the same on every architecture; Linux 6.5 */
#endif

/* Pages of a file that are cached; false: the kernel cannot tell. */
static bool cached_bytes(const struct file *f, double *ret)
{
    struct { uint64_t offset, bytes; } range = { 0, f->bytes };
    struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } pages = { 0 };
    if (syscall(__NR_cachestat, f->fd, &range, &pages, 0)) return false;
    *ret = SL_MIN((double)pages.cached * (double)sysconf(_SC_PAGESIZE), (double)f->bytes);
    return true;
}

/* A place that is not there may be read ahead, so each call looks at others. */
static double cached_places(const struct file *f)
{
    uint32_t hits = 0, seed = (uint32_t)(io_now_s() * 1e6);
    for (uint32_t i = 0; i < PLACES; i++) {
        seed = seed * 1664525u + 1013904223u;
        char byte;
        struct iovec v = { &byte, 1 };
        double at = (i + (double)seed * 0x1p-32) / PLACES * (double)f->bytes;
        hits += preadv2(f->fd, &v, 1, (off_t)at, RWF_NOWAIT) == 1;
    }
    return (double)f->bytes * hits / PLACES;
}

double sl_store_cached_share(const sl_store *s)
{
    double cached = 0, all = 0;
    for (uint32_t i = 0; i < s->n_files; i++) {
        const struct file *f = &s->file[i];
        double bytes = 0;
        if (!f->bytes) continue;
        if (!cached_bytes(f, &bytes)) bytes = cached_places(f);
        cached += bytes;
        all += (double)f->bytes;
    }
    return all > 0 ? cached / all : 0;
}

/* ---- blocking reads ---- */

static sl_status map_file(sl_ctx *ctx, sl_store *s, struct file *f)
{
    struct stat info;
    if (fstat(f->fd, &info)) return sl_fail(ctx, SL_E_IO, "stat %s: %s", f->path, strerror(errno));
    if ((uint64_t)info.st_size != f->bytes)
        return sl_fail(ctx, SL_E_IO,
                       "map %s: expected the %llu bytes it had when opened, found %llu", f->path,
                       (ull)f->bytes, (ull)info.st_size);
    void *p = mmap(NULL, (size_t)f->bytes, PROT_READ, MAP_SHARED, f->fd, 0);
    if (p == MAP_FAILED)
        return sl_fail(ctx, SL_E_IO, "map %llu bytes of %s: %s", (ull)f->bytes, f->path,
                       strerror(errno));
    f->map = p;
    sl_mem_charge(s->ctx, SL_ACC_MAPPED, (int64_t)f->bytes);
    return SL_OK;
}

sl_status sl_store_map(sl_ctx *ctx, sl_store *store, sl_slice slice, const void **ret)
{
    SL_TRY(check_slice(ctx, store, slice));
    struct file *f = &store->file[slice.file];
    if (!f->bytes) return sl_fail(ctx, SL_E_ARG, "map %s: it is empty", f->path);
    if (!f->map) SL_TRY(map_file(ctx, store, f));
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), from = slice.offset / page * page;
    /* Advice only: where it fails, the page faults read the bytes. */
    (void)madvise(f->map + from, (size_t)(slice.offset + slice.bytes - from), MADV_WILLNEED);
    *ret = f->map + slice.offset;
    return SL_OK;
}

sl_status sl_store_read(sl_ctx *ctx, const sl_store *store, sl_slice slice, void *dst)
{
    SL_TRY(check_slice(ctx, store, slice));
    const struct file *f = &store->file[slice.file];
    uint64_t done = 0;
    while (done < slice.bytes) {
        size_t want = (size_t)SL_MIN(slice.bytes - done, READ_MAX);
        ssize_t got = pread(f->fd, (char *)dst + done, want, (off_t)(slice.offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return sl_fail(ctx, SL_E_IO, "read %s: %zu bytes at offset %llu: %s", f->path, want,
                           (ull)(slice.offset + done), strerror(errno));
        if (!got)
            return sl_fail(ctx, SL_E_IO,
                           "read %s: expected %llu bytes at offset %llu, found the end of "
                           "the file after %llu",
                           f->path, (ull)slice.bytes, (ull)slice.offset, (ull)done);
        done += (uint64_t)got;
    }
    return SL_OK;
}
