/* offload/store.c - tensor bytes from files: whole-file mappings and positioned reads.
 * Invariant: map[f] is NULL or a mapping of exactly bytes[f] bytes, charged once to
 * SL_ACC_MAPPED. */
#include "offload/sl_store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef unsigned long long ull;
#define READ_MAX ((uint64_t)1 << 30)    /* of one pread: Linux stops at 2 GiB anyway */

struct file {
    int fd;
    char *path;
    uint64_t bytes;
    unsigned char *map;
};

struct sl_store {
    sl_ctx *ctx;
    uint32_t n_files;
    struct file file[];
};

sl_status sl_store_create(sl_ctx *ctx, const int *fds, const uint64_t *file_bytes,
                          const char *const *paths, uint32_t n_files, sl_store **ret)
{
    assert(ctx && ret);
    if (!n_files) return sl_fail(ctx, SL_E_ARG, "a store needs at least one file");
    sl_store *s = NULL;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, sizeof *s + n_files * sizeof s->file[0], (void **)&s));
    s->ctx = ctx;
    sl_status st = SL_OK;
    for (uint32_t i = 0; i < n_files && st == SL_OK; i++) {
        struct file *f = &s->file[s->n_files++];
        f->bytes = file_bytes[i];
        f->path = strdup(paths[i]);
        f->fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (f->fd < 0)
            st = sl_fail(ctx, SL_E_IO, "duplicate the descriptor of %s: %s", paths[i],
                         strerror(errno));
        else if (!f->path)
            st = sl_fail(ctx, SL_E_NOMEM, "path %s", paths[i]);
    }
    if (st == SL_OK) *ret = s;
    else sl_store_destroy(&s);
    return st;
}

void sl_store_destroy(sl_store **store)
{
    sl_store *s = *store;
    if (!s) return;
    for (uint32_t i = 0; i < s->n_files; i++) {
        struct file *f = &s->file[i];
        if (f->map) {
            munmap(f->map, (size_t)f->bytes);
            sl_mem_charge(s->ctx, SL_ACC_MAPPED, -(int64_t)f->bytes);
        }
        if (f->fd >= 0) close(f->fd);
        free(f->path);
    }
    sl_mem_free(s->ctx, s);
    *store = NULL;
}

uint32_t sl_store_n_files(const sl_store *store) { return store->n_files; }

const char *sl_store_path(const sl_store *store, uint32_t file)
{
    assert(file < store->n_files);
    return store->file[file].path;
}

uint64_t sl_store_file_bytes(const sl_store *store, uint32_t file)
{
    assert(file < store->n_files);
    return store->file[file].bytes;
}

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
