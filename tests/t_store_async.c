/* tests/t_store_async.c - reads that are in flight: every way to read against the file's own bytes,
 * random orders of submit, reap, cancel and promote, injected faults, what the machine refuses,
 * and how many requests and system calls it takes. */
#include "offload/sl_store.h"

#include "tests/t.h"
#include "tests/t_alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MIB (1u << 20)

enum {
    FILE_BYTES = 20 * MIB + 12345,
    MAX_READS = 12,         /* of one round */
    GAP = 2 * SL_STORE_ALIGN,   /* between slices: an offset belongs to one */
    FAULTS = 1000,          /* of each kind */
    HANG_S = 120,           /* a part that takes longer hangs: SIGALRM */
    MAX_LOG = 4096
};

struct file { int fd; char path[200]; };

/* What the store asked, and what to answer. */
struct faults {
    sl_store_fault_kind kind;   /* given in one of `in` requests */
    uint32_t in, given;
    double delay_s;             /* of every request besides; 0: none */
    uint32_t n_log;
    uint64_t log[MAX_LOG];      /* offsets */
    const sl_read *reads;       /* of the round: those that a fault ends are marked */
    uint32_t n_reads;
    bool ends[MAX_READS];
};

struct way {
    const char *name;
    bool direct, threads, registered;
};

static const struct way ways[] = {
    { "ring, direct, registered", true, false, true },
    { "ring, direct", true, false, false },
    { "ring, page cache, registered", false, false, true },
    { "ring, page cache", false, false, false },
    { "threads, direct", true, true, false },
    { "threads, page cache", false, true, false },
};

static sl_ctx *ctx;
static unsigned char *content;      /* of the file */
static char *arena;                 /* MAX_READS slots */
static const size_t slot_bytes = 5 * MIB;
static struct file file;

static struct file make_file(const char *folder, size_t bytes)
{
    struct file f;
    snprintf(f.path, sizeof f.path, "%s/sl-store-XXXXXX", folder);
    f.fd = mkstemp(f.path);
    if (f.fd < 0) return f;
    for (size_t at = 0; at < bytes;) {
        ssize_t n = write(f.fd, content + at, bytes - at);
        T_NEED(n > 0, "write %s: %s", f.path, strerror(errno));
        at += (size_t)n;
    }
    return f;
}

static void drop_file(struct file *f)
{
    close(f->fd);
    unlink(f->path);
}

static sl_store *make_store(const struct file *f, sl_store_params p, bool registered)
{
    static const uint64_t bytes = FILE_BYTES;
    const char *path = f->path;
    sl_store *s = NULL;
    T_NEED(sl_store_create(ctx, &f->fd, &bytes, &path, 1, &p, &s) == SL_OK, "%s", sl_error(ctx));
    if (registered)
        T_NEED(sl_store_register(ctx, s, arena, MAX_READS * slot_bytes) == SL_OK, "%s",
               sl_error(ctx));
    return s;
}

/* ---- random rounds ---- */

/* Disjoint slices in random order: large, small and empty ones at any offset, up to the last. */
static uint32_t random_reads(sl_read *reads)
{
    uint32_t n = 0;
    uint64_t at = t_below(MIB);
    while (n < MAX_READS) {
        uint64_t bytes = t_below(4) ? 1 + t_below(t_below(3) ? MIB : 4 * MIB) : t_below(5000);
        if (!t_below(40)) bytes = 0;
        if (at + bytes > FILE_BYTES) bytes = FILE_BYTES - at;
        reads[n] = (sl_read){ .slice = { .offset = at, .bytes = bytes }, .tag = n,
                              .ahead = !t_below(3), .dst = arena + n * slot_bytes };
        n++;
        at += bytes + GAP + t_below(20000);
        if (at >= FILE_BYTES) break;
    }
    for (uint32_t i = n; i-- > 1;) {
        uint32_t j = t_below(i + 1);
        sl_read r = reads[i];
        reads[i] = reads[j];
        reads[j] = r;
    }
    for (uint32_t i = 0; i < n; i++) reads[i].tag = i;
    return n;
}

static void check_bytes(const char *what, const sl_read *r)
{
    const char *at = (const char *)r->dst + sl_store_lead(r->slice);
    uint64_t room = sl_store_room(r->slice);
    T_CHECK(!memcmp(at, content + r->slice.offset, r->slice.bytes),
            "%s: %llu bytes at %llu differ", what, (unsigned long long)r->slice.bytes,
            (unsigned long long)r->slice.offset);
    T_CHECK(room >= sl_store_lead(r->slice) + r->slice.bytes && room % SL_STORE_ALIGN == 0
            && room < sl_store_lead(r->slice) + r->slice.bytes + SL_STORE_ALIGN, "%s: room", what);
    for (int i = 0; i < 64; i++)
        T_CHECK(((const char *)r->dst)[room + (uint64_t)i] == 0x5a, "%s: written behind the room",
                what);
}

static void check_done(const char *what, const sl_read *reads, const sl_read_done *d,
                       const struct faults *faults)
{
    const sl_read *r = &reads[d->tag];
    bool ends = faults && faults->ends[d->tag];
    T_CHECK(d->seconds >= 0, "%s: %g s", what, d->seconds);
    if (d->status == SL_OK) {
        T_CHECK(!ends && !d->error && !d->cancelled, "%s: read %llu is ok", what,
                (unsigned long long)d->tag);
        check_bytes(what, r);
    } else if (d->cancelled) {
        T_CHECK(d->status == SL_E_ARG && r->ahead && !ends, "%s: cancelled %llu", what,
                (unsigned long long)d->tag);
    } else {
        char slice[80];
        snprintf(slice, sizeof slice, "slice of %llu bytes at offset %llu",
                 (unsigned long long)r->slice.bytes, (unsigned long long)r->slice.offset);
        T_CHECK(d->status == SL_E_IO && ends, "%s: read %llu: %s", what,
                (unsigned long long)d->tag, d->error);
        T_CHECK(strstr(d->error, file.path) && strstr(d->error, slice), "%s: %s", what, d->error);
    }
}

/* Submits in portions, reaps between them, cancels and promotes; every read comes back once. */
static void round_of_reads(const char *what, sl_store *s, struct faults *faults)
{
    sl_read reads[MAX_READS];
    sl_read_done done[MAX_READS];
    bool seen[MAX_READS] = { false };
    uint32_t n = random_reads(reads), submitted = 0, reaped = 0;
    for (uint32_t i = 0; i < n; i++)
        memset((char *)reads[i].dst + sl_store_room(reads[i].slice), 0x5a, 64);
    if (faults) {
        memset(faults->ends, 0, sizeof faults->ends);
        faults->reads = reads;
        faults->n_reads = n;
    }
    while (reaped < n) {
        uint32_t more = t_below(n - submitted + 1);
        T_NEED(sl_store_submit(ctx, s, reads + submitted, more) == SL_OK, "%s", sl_error(ctx));
        submitted += more;
        if (!t_below(3)) sl_store_cancel(s, t_below(n));
        if (!t_below(3)) sl_store_promote(s, t_below(n));
        uint32_t max = 1 + t_below(MAX_READS), min = t_below(3);
        uint32_t k = sl_store_reap(s, done, max, min);
        T_CHECK(k <= max && k >= SL_MIN(SL_MIN(min, max), submitted - reaped), "%s: %u reaped",
                what, k);
        for (uint32_t i = 0; i < k; i++) {
            T_NEED(done[i].tag < submitted && !seen[done[i].tag], "%s: tag %llu", what,
                   (unsigned long long)done[i].tag);
            seen[done[i].tag] = true;
            check_done(what, reads, &done[i], faults);
        }
        reaped += k;
    }
    T_CHECK(sl_store_reap(s, done, MAX_READS, 1) == 0, "%s: more reads than submitted", what);
}

static void check_way(const struct way *w)
{
    static const uint32_t depths[] = { 1, 3, 64 }, sizes[] = { 4096, 65536, 1 << 20 };
    for (size_t i = 0; i < SL_LEN(depths); i++)
        for (size_t j = 0; j < SL_LEN(sizes); j++) {
            if (depths[i] < 64 && sizes[j] < 65536) continue;
            sl_store_stats t;
            sl_store *s = make_store(&file, (sl_store_params){
                .depth = depths[i], .request_bytes = sizes[j], .direct = w->direct,
                .ahead_bytes = SL_MIN(sizes[j], 16384u), .threads = w->threads, .n_threads = 3 },
                w->registered);
            if (i == 0 && j == 1) printf("%s: %s\n", w->name, sl_store_mode(s));
            long before = atomic_load(&t_alloc_calls);
            for (int k = 0; k < 4; k++) round_of_reads(w->name, s, NULL);
            T_CHECK(atomic_load(&t_alloc_calls) == before, "%s: allocates", w->name);
            sl_store_get_stats(s, &t);
            T_CHECK(t.max_in_flight <= depths[i] && t.in_flight == 0, "%s: depth %u of %u", w->name,
                    t.max_in_flight, depths[i]);
            T_CHECK(t.errors == 0 && t.bytes <= t.read_bytes && t.busy_s > 0, "%s: %llu errors",
                    w->name, (unsigned long long)t.errors);
            sl_store_destroy(&s);
        }
}

/* ---- faults ---- */

static sl_store_fault ask(void *user, uint32_t index, uint64_t offset, uint64_t bytes)
{
    struct faults *f = user;
    (void)index, (void)bytes;
    if (f->n_log < MAX_LOG) f->log[f->n_log++] = offset;
    sl_store_fault none = { f->delay_s > 0 ? SL_FAULT_DELAY : SL_FAULT_NONE, 0, f->delay_s };
    if (!f->in || t_below(f->in)) return none;
    f->given++;
    if (f->kind == SL_FAULT_EIO || f->kind == SL_FAULT_END)
        for (uint32_t i = 0; i < f->n_reads; i++) {
            const sl_slice *s = &f->reads[i].slice;
            if (offset + SL_STORE_ALIGN > s->offset && offset < s->offset + s->bytes)
                f->ends[i] = true;
        }
    return (sl_store_fault){ f->kind, t_below(3) ? 1 + t_below(50000) : 0, 1e-4 };
}

static void check_faults(const struct way *w, sl_store_fault_kind kind, const char *name)
{
    struct faults f = { .kind = kind, .in = 10 };
    sl_store_faults seam = { ask, &f };
    char what[120];
    snprintf(what, sizeof what, "%s, %s", w->name, name);
    sl_store *s = make_store(&file, (sl_store_params){ .depth = 16, .request_bytes = 65536,
        .direct = w->direct, .threads = w->threads, .faults = &seam }, w->registered);
    long before = atomic_load(&t_alloc_calls);
    while (f.given < FAULTS) round_of_reads(what, s, &f);
    T_CHECK(atomic_load(&t_alloc_calls) == before, "%s: allocates", what);
    sl_store_destroy(&s);
}

/* EINVAL: with O_DIRECT the file falls back to the page cache and the mode says so; an error
 * where there is nothing to fall back to. */
static void check_inval(const struct way *w)
{
    struct faults f = { .kind = SL_FAULT_INVAL, .in = 1 };
    sl_store_faults seam = { ask, &f };
    sl_read_done d;
    sl_store *s = make_store(&file, (sl_store_params){ .direct = w->direct, .threads = w->threads,
                                                       .faults = &seam }, w->registered);
    bool direct = !strstr(sl_store_mode(s), "no O_DIRECT") && w->direct;
    sl_read r = { .slice = { .offset = 5, .bytes = 70000 }, .dst = arena };
    memset(arena + sl_store_room(r.slice), 0x5a, 64);
    T_NEED(sl_store_submit(ctx, s, &r, 1) == SL_OK, "%s", sl_error(ctx));
    f.in = 0;
    T_CHECK(sl_store_reap(s, &d, 1, 1) == 1 && (d.status == SL_OK) == direct, "%s: %s", w->name,
            d.error ? d.error : "ok");
    if (direct) {
        check_bytes(w->name, &r);
        T_CHECK(strstr(sl_store_mode(s), "no O_DIRECT") && strstr(sl_store_mode(s), file.path),
                "%s", sl_store_mode(s));
    }
    sl_store_destroy(&s);
}

/* A request that is always asked to try again ends with an error, not in a loop. */
static void check_again_for_ever(const struct way *w)
{
    struct faults f = { .kind = SL_FAULT_AGAIN, .in = 1 };
    sl_store_faults seam = { ask, &f };
    sl_read_done d;
    sl_store *s = make_store(&file, (sl_store_params){ .direct = w->direct, .threads = w->threads,
                                                       .faults = &seam }, w->registered);
    sl_read r = { .slice = { .offset = 5, .bytes = 70000 }, .dst = arena };
    T_NEED(sl_store_submit(ctx, s, &r, 1) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_store_reap(s, &d, 1, 1) == 1 && d.status == SL_E_IO, "%s", w->name);
    sl_store_destroy(&s);
}

/* ---- order ---- */

/* Depth 4, 2 of it for guesses, requests of 64 KiB: what starts, in which order. */
static void check_order(const struct way *w)
{
    enum { K = 65536, A = 0, B = 4 * MIB, C = 8 * MIB };
    struct faults f = { .delay_s = 0.002 };
    sl_store_faults seam = { ask, &f };
    sl_read_done d[4];
    sl_store_stats t;
    sl_store *s = make_store(&file, (sl_store_params){ .depth = 4, .ahead_depth = 2,
        .request_bytes = K, .ahead_bytes = K, .direct = w->direct, .threads = w->threads,
        .faults = &seam }, w->registered);
    sl_read reads[] = {
        { .slice = { .offset = A, .bytes = 8 * K }, .dst = arena, .tag = A, .ahead = true },
        { .slice = { .offset = B, .bytes = 3 * K }, .dst = arena + slot_bytes, .tag = B,
          .ahead = true },
        { .slice = { .offset = C, .bytes = 8 * K }, .dst = arena + 2 * slot_bytes, .tag = C },
    };
    for (size_t i = 0; i < SL_LEN(reads); i++)
        memset((char *)reads[i].dst + sl_store_room(reads[i].slice), 0x5a, 64);
    T_NEED(sl_store_submit(ctx, s, reads, 2) == SL_OK, "%s", sl_error(ctx));
    sl_store_get_stats(s, &t);
    T_CHECK(t.in_flight == 2, "%s: %u guesses in flight", w->name, t.in_flight);
    T_NEED(sl_store_submit(ctx, s, reads + 2, 1) == SL_OK, "%s", sl_error(ctx));
    sl_store_promote(s, B);
    sl_store_cancel(s, A);      /* its first two requests are on their way */
    sl_store_cancel(s, C);      /* demanded: no effect */
    sl_store_cancel(s, B);      /* is now, too */
    uint32_t n = sl_store_reap(s, d, 4, 3);
    T_CHECK(n == 3, "%s: %u of 3", w->name, n);
    for (uint32_t i = 0; i < n; i++) {
        T_CHECK(d[i].cancelled == (d[i].tag == A), "%s: %s", w->name, d[i].error);
        for (size_t j = 0; j < SL_LEN(reads); j++)
            if (d[i].status == SL_OK && reads[j].tag == d[i].tag) check_bytes(w->name, &reads[j]);
    }
    T_CHECK(f.n_log == 2 + 8 + 3, "%s: %u requests", w->name, f.n_log);
    for (uint32_t i = 0; i < f.n_log; i++) {
        uint64_t want = i < 2 ? A + i * K : i < 10 ? C + (i - 2) * K : B + (i - 10) * K;
        T_CHECK(f.log[i] == want, "%s: request %u is at %llu, not %llu", w->name, i,
                (unsigned long long)f.log[i], (unsigned long long)want);
    }
    sl_store_get_stats(s, &t);
    T_CHECK(t.max_in_flight == 4 && t.cancelled == 1 && t.reads == 3 && t.errors == 0,
            "%s: at most %u in flight", w->name, t.max_in_flight);
    sl_store_destroy(&s);
}

/* A batch that the depth holds: one call starts it, one waits for it, and none looks for more. A
 * signal or a short read of the system may cost a call now and then. */
static void check_calls(const struct way *w)
{
    sl_store_stats a, b;
    uint32_t n_more = 0;
    sl_read reads[MAX_READS];
    sl_read_done d[MAX_READS];
    sl_store *s = make_store(&file, (sl_store_params){ .direct = w->direct }, w->registered);
    for (uint32_t i = 0; i < MAX_READS; i++)
        reads[i] = (sl_read){ .slice = { .offset = 100 + i * 1500000u, .bytes = 1400000 },
                              .dst = arena + i * slot_bytes };
    for (int k = 0; k < 20; k++) {
        sl_store_get_stats(s, &a);
        T_NEED(sl_store_submit(ctx, s, reads, MAX_READS) == SL_OK, "%s", sl_error(ctx));
        sl_store_get_stats(s, &b);
        T_CHECK(b.submits - a.submits <= 1 && b.waits == a.waits, "%s: %llu calls to submit",
                w->name, (unsigned long long)(b.submits - a.submits));
        T_CHECK(sl_store_reap(s, d, MAX_READS, MAX_READS) == MAX_READS, "%s: reap", w->name);
        sl_store_get_stats(s, &b);
        uint64_t calls = b.submits - a.submits + b.waits - a.waits;
        if (calls > 2) {
            n_more++;
            printf("%s: %llu calls for a batch\n", w->name, (unsigned long long)calls);
        }
        T_CHECK(sl_store_reap(s, d, MAX_READS, 0) == 0, "%s: reap", w->name);
        sl_store_get_stats(s, &a);
        n_more += a.waits != b.waits || a.submits != b.submits;
    }
    T_CHECK(n_more <= 2, "%s: %u of 20 batches took more than two calls", w->name, n_more);
    sl_store_destroy(&s);
}

static void check_refusals(void)
{
    sl_store *s = make_store(&file, (sl_store_params){ .max_reads = 3 }, false);
    sl_read_done d[4];
    sl_read r[4];
    for (int i = 0; i < 4; i++)
        r[i] = (sl_read){ .slice = { .offset = 9, .bytes = 5000 }, .dst = arena + i * slot_bytes };
    T_CHECK(sl_store_submit(ctx, s, r, 4) == SL_E_ARG, "four reads of three");
    T_CHECK(sl_store_submit(ctx, s, r, 3) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_store_submit(ctx, s, r, 1) == SL_E_ARG, "a fourth");
    T_CHECK(sl_store_reap(s, d, 1, 1) == 1, "reap");
    T_CHECK(sl_store_submit(ctx, s, r, 1) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_store_reap(s, d, 4, 4) == 3, "reap");
    r[1].dst = arena + 64;
    T_CHECK(sl_store_submit(ctx, s, r, 2) == SL_E_ARG, "dst not aligned");
    r[1] = (sl_read){ .slice = { .offset = FILE_BYTES - 1, .bytes = 2 }, .dst = arena };
    T_CHECK(sl_store_submit(ctx, s, r, 2) == SL_E_ARG, "beyond the end");
    T_CHECK(sl_store_reap(s, d, 4, 1) == 0, "a refused batch is queued");
    T_CHECK(sl_store_register(ctx, s, arena + 8, 4096) == SL_E_ARG, "memory not aligned");
    sl_store_destroy(&s);
    static const sl_store_params bad[] = {
        { .depth = SL_STORE_MAX_DEPTH + 1 }, { .request_bytes = 4097 },
        { .request_bytes = SL_STORE_MAX_REQUEST + SL_STORE_ALIGN }, { .ahead_bytes = 100 },
        { .depth = 4, .ahead_depth = 5 }, { .n_threads = 1000 },
    };
    const uint64_t bytes = FILE_BYTES;
    const char *path = file.path;
    for (size_t i = 0; i < SL_LEN(bad); i++)
        T_CHECK(sl_store_create(ctx, &file.fd, &bytes, &path, 1, &bad[i], &s) == SL_E_ARG && !s,
                "bad parameters %zu", i);
}

/* ---- what the machine and the file do ---- */

static bool read_one(sl_store *s, sl_slice slice, char *error, size_t size)
{
    sl_read_done d = { 0 };
    sl_read r = { .slice = slice, .dst = arena };
    memset(arena + sl_store_room(slice), 0x5a, 64);
    T_NEED(sl_store_submit(ctx, s, &r, 1) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_store_reap(s, &d, 1, 1) == 1, "reap");
    snprintf(error, size, "%s", d.error ? d.error : "");
    if (d.status == SL_OK) check_bytes("one read", &r);
    return d.status == SL_OK;
}

static void check_shrunk(const char *folder, const struct way *w)
{
    char error[400];
    struct file f = make_file(folder, FILE_BYTES), other = make_file(folder, 5000);
    sl_store *s = make_store(&f, (sl_store_params){ .direct = w->direct, .threads = w->threads },
                             w->registered);
    T_NEED(rename(other.path, f.path) == 0, "rename");      /* replaced: we hold the old one */
    close(other.fd);
    T_CHECK(read_one(s, (sl_slice){ .offset = 3 * MIB + 1, .bytes = MIB }, error, sizeof error),
            "%s: %s", w->name, error);
    T_NEED(ftruncate(f.fd, 2 * MIB + 777) == 0, "ftruncate");
    static const sl_slice gone[] = {
        { .offset = 2 * MIB + 700, .bytes = 78 }, { .offset = 3 * MIB, .bytes = 1 },
        { .offset = 100, .bytes = 3 * MIB }, { .offset = 2 * MIB + 700, .bytes = 100000 },
    };
    for (size_t i = 0; i < SL_LEN(gone); i++) {
        T_CHECK(!read_one(s, gone[i], error, sizeof error), "%s: read %zu of what is gone", w->name,
                i);
        T_CHECK(strstr(error, "end of the file") && strstr(error, f.path), "%s", error);
    }
    T_CHECK(read_one(s, (sl_slice){ .offset = 2 * MIB + 700, .bytes = 77 }, error, sizeof error),
            "%s: %s", w->name, error);
    sl_store_destroy(&s);
    drop_file(&f);
}

/* A file that O_DIRECT cannot open: the page cache, and the mode says it. */
static void check_no_direct(void)
{
    struct file f = { open("/proc/version", O_RDONLY), "/proc/version" };
    char want[10], error[200];
    if (f.fd < 0 || pread(f.fd, want, sizeof want, 0) != sizeof want) {
        printf("SKIP part: no /proc/version\n");
        return;
    }
    sl_store *s = make_store(&f, (sl_store_params){ .direct = true }, true);
    T_CHECK(strstr(sl_store_mode(s), "no O_DIRECT") && strstr(sl_store_mode(s), f.path), "%s",
            sl_store_mode(s));
    printf("a file without O_DIRECT: %s\n", sl_store_mode(s));
    memcpy(content, want, sizeof want);
    T_CHECK(read_one(s, (sl_slice){ .bytes = sizeof want }, error, sizeof error), "%s", error);
    T_CHECK(read_one(s, (sl_slice){ .offset = 3, .bytes = 4 }, error, sizeof error), "%s", error);
    sl_store_destroy(&s);
    close(f.fd);
    T_NEED(pread(file.fd, content, sizeof want, 0) == sizeof want, "pread");
}

static void check_memory_files(void)
{
    struct file f = make_file("/dev/shm", FILE_BYTES);
    if (f.fd < 0) {
        printf("SKIP part: no file in /dev/shm\n");
        return;
    }
    struct file disk = file;
    file = f;
    sl_store *s = make_store(&f, (sl_store_params){ .direct = true }, true);
    printf("a file in memory: %s\n", sl_store_mode(s));
    for (int k = 0; k < 3; k++) round_of_reads("file in memory", s, NULL);
    double share = sl_store_cached_share(s);
    T_CHECK(share >= 0 && share <= 1, "cached share %g", share);
    sl_store_destroy(&s);
    file = disk;
    drop_file(&f);
}

/* All of a file just read, and (where the kernel drops it) none. */
static void check_cached(void)
{
    sl_store *s = make_store(&file, (sl_store_params){ 0 }, false);
    T_NEED(fdatasync(file.fd) == 0, "fdatasync");
    T_CHECK(sl_store_read(ctx, s, (sl_slice){ .bytes = slot_bytes }, arena) == SL_OK, "%s",
            sl_error(ctx));
    double warm = sl_store_cached_share(s);
    T_NEED(posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "fadvise");
    double cold = sl_store_cached_share(s);
    printf("cached: %.3f after writing and reading, %.3f after dropping\n", warm, cold);
    T_CHECK(warm >= 0 && warm <= 1 && cold >= 0 && cold <= warm, "cached %g, %g", warm, cold);
    sl_store_destroy(&s);
}

static bool forbid_io_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425 /* io_uring_setup everywhere */, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { SL_LEN(code), code };
    return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
           && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static bool forbid_memlock(void)
{
    struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct caps[2];
    struct rlimit none = { 65536, 65536 };
    if (syscall(SYS_capget, &head, caps)) return false;
    caps[0].effective &= ~(1u << CAP_IPC_LOCK);
    caps[0].permitted &= ~(1u << CAP_IPC_LOCK);
    return !setrlimit(RLIMIT_MEMLOCK, &none) && !syscall(SYS_capset, &head, caps);
}

/* In a child, since what is forbidden stays so. */
static void check_forbidden(const char *name, bool (*forbid)(void), const char *mode,
                            const char *instead)
{
    fflush(stdout);
    pid_t child = fork();
    T_NEED(child >= 0, "fork");
    if (!child) {
        alarm(60);
        if (!forbid()) _exit(T_SKIP);
        sl_store *s = make_store(&file, (sl_store_params){ .direct = true }, true);
        const char *is = sl_store_mode(s);
        printf("%s: %s\n", name, is);
        T_CHECK(strstr(is, mode) || strstr(is, instead), "%s: %s", name, is);
        for (int k = 0; k < 5; k++) round_of_reads(name, s, NULL);
        sl_store_destroy(&s);
        fflush(stdout);
        _exit(t_failed ? 1 : 0);
    }
    int status = 0;
    T_NEED(waitpid(child, &status, 0) == child, "waitpid");
    if (WIFEXITED(status) && WEXITSTATUS(status) == T_SKIP)
        printf("SKIP part: %s cannot be had here\n", name);
    else
        T_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %x", name, status);
}

int main(void)
{
    static const struct { sl_store_fault_kind kind; const char *name; } kinds[] = {
        { SL_FAULT_EIO, "EIO" }, { SL_FAULT_AGAIN, "EAGAIN" }, { SL_FAULT_SHORT, "short" },
        { SL_FAULT_END, "end of file" }, { SL_FAULT_DELAY, "delay" },
    };
    t_begin();
    t_alloc_reset(0);
    const char *folder = getenv("SLUICE_BUILD_DIR");    /* rather a disk than /tmp */
    folder = folder ? folder : ".";
    ctx = sl_ctx_create(NULL, NULL);
    content = malloc(FILE_BYTES);
    arena = aligned_alloc(2 * MIB, (MAX_READS * slot_bytes + 2 * MIB - 1) / (2 * MIB) * (2 * MIB));
    T_NEED(ctx && content && arena, "memory");
    memset(arena, 0, MAX_READS * slot_bytes);   /* valgrind does not see what a ring writes */
    for (size_t i = 0; i < FILE_BYTES; i++) content[i] = (unsigned char)(i * 2654435761u >> 13);
    file = make_file(folder, FILE_BYTES);
    T_NEED(file.fd >= 0, "file in %s: %s", folder, strerror(errno));
    alarm(HANG_S);
    check_cached();
    check_refusals();
    check_forbidden("without io_uring", forbid_io_uring, "pread", "pread");
    check_forbidden("without memlock", forbid_memlock, "unregistered", "threads with pread");
    for (size_t i = 0; i < SL_LEN(ways); i++) {
        alarm(HANG_S);
        check_way(&ways[i]);
        check_order(&ways[i]);
        check_inval(&ways[i]);
        check_again_for_ever(&ways[i]);
        check_shrunk(folder, &ways[i]);
        if (!ways[i].threads) check_calls(&ways[i]);
        /* two ways with all faults, the others share what they test */
        if (i == 0 || i + 1 == SL_LEN(ways) || i == 4)
            for (size_t k = 0; k < SL_LEN(kinds); k++) {
                alarm(HANG_S);
                check_faults(&ways[i], kinds[k].kind, kinds[k].name);
            }
    }
    check_no_direct();
    check_memory_files();
    drop_file(&file);
    free(content);
    free(arena);
    sl_ctx_destroy(&ctx);
    return t_end();
}
