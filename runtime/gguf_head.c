/* runtime/gguf_head.c - header bytes of a GGUF shard: read as needed, bounded, with named
 * errors. */
#include "runtime/gguf_head.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are used as stored");

#define FIRST_READ ((uint64_t)256 << 10)    /* then doubling: 6 reads for a 12 MB header */
#define PAGE ((uint64_t)65536)              /* no page of ours is larger */

typedef unsigned long long ull;

void gguf_printable(sl_str s, char buf[64])
{
    size_t n = SL_MIN(s.n, (size_t)60);
    for (size_t i = 0; i < n; i++)
        buf[i] = (unsigned char)s.p[i] >= 32 && (unsigned char)s.p[i] < 127 ? s.p[i] : '?';
    strcpy(buf + n, n < s.n ? "..." : "");
}

sl_status gguf_bad(gguf_shard *s, sl_status st, const char *fmt, ...)
{
    char text[512], name[64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!s->kind) return sl_fail(s->ctx, st, "%s: %s", s->path, text);
    gguf_printable(s->name, name);
    return sl_fail(s->ctx, st, "%s: %s %llu%s%s%s: %s", s->path, s->kind, (ull)s->item,
                   s->name.n ? " \"" : "", name, s->name.n ? "\"" : "", text);
}

static sl_status take_descriptor(gguf_shard *s)
{
    struct stat info;
    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    if (s->fd < 0) s->fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0) return sl_fail(s->ctx, SL_E_IO, "open %s: %s", s->path, strerror(errno));
    if (fstat(s->fd, &info))
        return sl_fail(s->ctx, SL_E_IO, "stat %s: %s", s->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return sl_fail(s->ctx, SL_E_IO, "open %s: it is no regular file", s->path);
    s->file_bytes = (uint64_t)info.st_size;
    s->dev = info.st_dev;
    s->ino = info.st_ino;
    return SL_OK;
}

sl_status gguf_shard_open(sl_ctx *ctx, const char *path, int fd, gguf_shard *s)
{
    *s = (gguf_shard){ .ctx = ctx, .fd = fd, .path = strdup(path) };
    if (!s->path) return sl_fail(ctx, SL_E_NOMEM, "GGUF path %s", path);
    SL_TRY(take_descriptor(s));
    uint64_t want = SL_MIN(s->file_bytes, GGUF_HEADER_MAX);
    want = (want + PAGE - 1) / PAGE * PAGE + PAGE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *p = mmap(NULL, (size_t)want, PROT_NONE, flags, -1, 0);
    if (p == MAP_FAILED)
        return sl_fail(ctx, SL_E_NOMEM, "%s: %llu bytes of address space for its header: %s", path,
                       (ull)want, strerror(errno));
    s->p = p;
    s->n_max = want;
    return SL_OK;
}

void gguf_shard_trim(gguf_shard *s)
{
    uint64_t keep = (s->pos + PAGE - 1) / PAGE * PAGE;
    if (keep >= s->n_max || !keep) return;
    munmap(s->p + keep, (size_t)(s->n_max - keep));
    s->n_max = keep;
    if (s->n_read <= keep) return;
    sl_mem_charge(s->ctx, SL_ACC_TABLES, -(int64_t)(s->n_read - keep));
    s->n_read = keep;
}

void gguf_shard_fini(gguf_shard *s)
{
    for (uint64_t i = 0; i < s->n_kv; i++) sl_mem_free(s->ctx, (void *)(uintptr_t)s->kv[i].index);
    sl_mem_free(s->ctx, s->kv);
    sl_mem_free(s->ctx, s->keys.slot);
    if (s->p) {
        munmap(s->p, (size_t)s->n_max);
        sl_mem_charge(s->ctx, SL_ACC_TABLES, -(int64_t)s->n_read);
    }
    if (s->fd >= 0) close(s->fd);
    free(s->path);
    *s = (gguf_shard){ .fd = -1 };
}

/* Reads until n_read is goal, which is within the file and within the reservation. */
static sl_status read_to(gguf_shard *s, uint64_t goal)
{
    uint64_t rw = SL_MIN((goal + PAGE - 1) / PAGE * PAGE, s->n_max);
    if (mprotect(s->p, (size_t)rw, PROT_READ | PROT_WRITE))
        return sl_fail(s->ctx, SL_E_NOMEM, "%s: %llu bytes for its header: %s", s->path, (ull)goal,
                       strerror(errno));
    while (s->n_read < goal) {
        ssize_t got = pread(s->fd, s->p + s->n_read, (size_t)(goal - s->n_read), (off_t)s->n_read);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return sl_fail(s->ctx, SL_E_IO, "read %s at byte %llu: %s", s->path, (ull)s->n_read,
                           strerror(errno));
        if (!got)
            return sl_fail(s->ctx, SL_E_IO, "read %s: it ended at byte %llu, expected %llu: it "
                           "shrank while being read", s->path, (ull)s->n_read, (ull)s->file_bytes);
        s->n_read += (uint64_t)got;
        sl_mem_charge(s->ctx, SL_ACC_TABLES, got);
    }
    return SL_OK;
}

sl_status gguf_fill(gguf_shard *s, uint64_t n)
{
    if (n > s->file_bytes - s->pos)
        return gguf_bad(s, SL_E_FORMAT,
                        "expected %llu more bytes at byte %llu, found the end of the "
                        "file at %llu",
                        (ull)n, (ull)s->pos, (ull)s->file_bytes);
    if (n > GGUF_HEADER_MAX - s->pos)
        return gguf_bad(s, SL_E_FORMAT, "expected %llu more bytes at byte %llu: a header may have "
                        "%llu", (ull)n, (ull)s->pos, (ull)GGUF_HEADER_MAX);
    uint64_t most = SL_MIN(s->file_bytes, GGUF_HEADER_MAX);
    uint64_t goal = SL_MAX(s->pos + n, SL_MAX(FIRST_READ, 2 * s->n_read));
    return read_to(s, SL_MIN(goal, most));
}

sl_status gguf_u32(gguf_shard *s, uint32_t *ret)
{
    SL_TRY(gguf_need(s, 4));
    *ret = gguf_load_u32(s->p + s->pos);
    s->pos += 4;
    return SL_OK;
}

sl_status gguf_u64(gguf_shard *s, uint64_t *ret)
{
    SL_TRY(gguf_need(s, 8));
    *ret = gguf_load_u64(s->p + s->pos);
    s->pos += 8;
    return SL_OK;
}

sl_status gguf_str(gguf_shard *s, sl_str *ret)
{
    uint64_t n = 0;
    SL_TRY(gguf_u64(s, &n));
    SL_TRY(gguf_need(s, n));
    *ret = (sl_str){ (const char *)s->p + s->pos, (size_t)n };
    s->pos += n;
    return SL_OK;
}

/* FNV-1a from a seeded start, its high half folded in. */
static uint64_t hash_of(uint64_t seed, const char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u ^ seed;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 0x100000001b3u;
    return h ^ h >> 32;
}

sl_status gguf_table_init(sl_ctx *ctx, gguf_table *t, uint64_t n)
{
    uint64_t slots = 8;
    while (slots < 2 * n) slots *= 2;
    t->mask = slots - 1;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, slots * sizeof *t->slot, (void **)&t->slot));
    /* The allocator's address is not known to who wrote the file; no result depends on the seed. */
    t->seed = (uint64_t)(uintptr_t)t->slot * 0x9e3779b97f4a7c15u;
    return SL_OK;
}

static const sl_str **find_slot(const gguf_table *t, const char *p, size_t n)
{
    uint64_t i = hash_of(t->seed, p, n) & t->mask;
    while (t->slot[i] && (t->slot[i]->n != n || memcmp(t->slot[i]->p, p, n))) i = (i + 1) & t->mask;
    return &t->slot[i];
}

const sl_str *gguf_table_put(gguf_table *t, const sl_str *s)
{
    const sl_str **slot = find_slot(t, s->p, s->n);
    if (*slot) return *slot;
    *slot = s;
    return NULL;
}

const sl_str *gguf_table_get(const gguf_table *t, const char *p, size_t n)
{
    return *find_slot(t, p, n);
}

sl_status gguf_grow(sl_ctx *ctx, void **array, uint64_t n, uint64_t *cap, size_t elem)
{
    void *bigger = NULL;
    if (n < *cap) return SL_OK;
    uint64_t want = *cap ? 2 * *cap : 64;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, want * elem, &bigger));
    if (n) memcpy(bigger, *array, n * elem);
    sl_mem_free(ctx, *array);
    *array = bigger;
    *cap = want;
    return SL_OK;
}
