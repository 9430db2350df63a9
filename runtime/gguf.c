/* runtime/gguf.c - GGUF files: the tensor table of each shard, splits, the handle and its
 * lookups. Layout of a shard: "GGUF", u32 version, u64 n_tensors, u64 n_kv, the pairs, the
 * tensor table (name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset), padding to
 * general.alignment, tensor bytes. A split file repeats that per shard, with split.no,
 * split.count and split.tensors.count as keys. */
#include "runtime/gguf_head.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct sl_gguf {
    sl_ctx *ctx;
    gguf_shard *shard;      /* metadata is shard 0's */
    uint32_t n_shards;
    sl_tensor *tensor;
    uint64_t n_tensors, cap_tensors;
    gguf_table names;
};

typedef unsigned long long ull;
#define TENSOR_MIN_BYTES 32     /* in the table: name length, n_dims, one dimension, type, offset */
#define SUFFIX_BYTES 20         /* "-00001-of-00002.gguf" */

static sl_status read_magic(gguf_shard *s, uint64_t *ret_n_kv)
{
    uint32_t magic = 0;
    if (s->file_bytes < 24)
        return gguf_bad(s, SL_E_FORMAT, "%llu bytes: too short for a GGUF header",
                        (ull)s->file_bytes);
    SL_TRY(gguf_u32(s, &magic));
    if (memcmp(s->p, "GGUF", 4))
        return gguf_bad(s, SL_E_FORMAT, "no GGUF file: expected \"GGUF\" at its start, found bytes "
                        "%02x %02x %02x %02x", s->p[0], s->p[1], s->p[2], s->p[3]);
    SL_TRY(gguf_u32(s, &s->version));
    uint32_t swapped = __builtin_bswap32(s->version);
    if (swapped == 2 || swapped == 3)
        return gguf_bad(s, SL_E_UNSUPPORTED,
                        "a big-endian GGUF file, expected a little-endian one");
    if (s->version != 2 && s->version != 3)
        return gguf_bad(s, SL_E_UNSUPPORTED, "GGUF version %u, expected 2 or 3", s->version);
    SL_TRY(gguf_u64(s, &s->n_tensors));
    return gguf_u64(s, ret_n_kv);
}

static bool gguf_shard_u64(const gguf_shard *s, const char *key, uint64_t *ret)
{
    return sl_gguf_get_u64(NULL, gguf_shard_find(s, key), 0, ret);
}

static sl_status read_alignment(gguf_shard *s)
{
    const sl_gguf_kv *kv = gguf_shard_find(s, "general.alignment");
    s->alignment = 32;
    if (!kv) return SL_OK;
    if (!sl_gguf_get_u64(NULL, kv, 0, &s->alignment))
        return gguf_bad(s, SL_E_FORMAT, "general.alignment is no unsigned number");
    if (!s->alignment || s->alignment & (s->alignment - 1) || s->alignment > 1u << 30)
        return gguf_bad(s, SL_E_FORMAT, "general.alignment is %llu, expected a power of two up to "
                        "2^30", (ull)s->alignment);
    return SL_OK;
}

/* Dimensions, type and sizes of one tensor; its offset is still relative to the data. */
static sl_status read_tensor(gguf_shard *s, sl_tensor *t)
{
    uint32_t type = 0;
    uint64_t elems = 1;
    SL_TRY(gguf_str(s, &t->name));
    if (!t->name.n || t->name.n > GGUF_NAME_MAX)
        return gguf_bad(s, SL_E_FORMAT, "a name of %zu bytes, expected 1 to %u", t->name.n,
                        GGUF_NAME_MAX);
    s->name = t->name;
    SL_TRY(gguf_u32(s, &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4)
        return gguf_bad(s, SL_E_FORMAT, "%u dimensions, expected 1 to 4", t->n_dims);
    for (uint32_t d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d < t->n_dims) SL_TRY(gguf_u64(s, &t->ne[d]));
        if (!t->ne[d] || t->ne[d] > INT64_MAX || !sl_mul_size(elems, t->ne[d], &elems))
            return gguf_bad(s, SL_E_FORMAT, "dimension %u is %llu: the size is zero or overflows",
                            d, (ull)t->ne[d]);
    }
    SL_TRY(gguf_u32(s, &type));
    const sl_type_info *info = sl_type_get(type);
    if (!info->name) return gguf_bad(s, SL_E_UNSUPPORTED, "tensor type %u is not known", type);
    if (t->ne[0] % info->block_elems)
        return gguf_bad(s, SL_E_FORMAT, "rows of %llu elements, expected a multiple of %u for %s",
                        (ull)t->ne[0], info->block_elems, info->name);
    t->type = (sl_type)type;
    if (!sl_type_row_bytes(type, elems, &t->bytes))
        return gguf_bad(s, SL_E_FORMAT, "%llu elements of %s overflow", (ull)elems, info->name);
    return gguf_u64(s, &t->offset);
}

static sl_status place_tensor(gguf_shard *s, sl_tensor *t, uint64_t data_offset)
{
    uint64_t at = 0, end = 0;
    if (t->offset % s->alignment)
        return gguf_bad(s, SL_E_FORMAT, "offset %llu, expected a multiple of the alignment %llu",
                        (ull)t->offset, (ull)s->alignment);
    if (!sl_add_size(data_offset, t->offset, &at) || !sl_add_size(at, t->bytes, &end) ||
        end > s->file_bytes)
        return gguf_bad(s, SL_E_FORMAT,
                        "%llu bytes at offset %llu of the data (which starts at byte "
                        "%llu) go beyond the file's %llu bytes",
                        (ull)t->bytes, (ull)t->offset, (ull)data_offset, (ull)s->file_bytes);
    t->offset = at;
    return SL_OK;
}

static sl_status read_tensors(sl_gguf *g, gguf_shard *s)
{
    uint64_t first = g->n_tensors;
    if (s->n_tensors > GGUF_TENSORS_MAX - first ||
        s->n_tensors > (s->file_bytes - s->pos) / TENSOR_MIN_BYTES)
        return gguf_bad(s, SL_E_FORMAT, "%llu tensors in the %llu bytes that are left (at most %u)",
                        (ull)s->n_tensors, (ull)(s->file_bytes - s->pos), GGUF_TENSORS_MAX);
    for (uint64_t i = 0; i < s->n_tensors; i++) {
        s->kind = "tensor", s->item = i, s->name = (sl_str){ "", 0 };
        SL_TRY(gguf_grow(g->ctx, (void **)&g->tensor, g->n_tensors, &g->cap_tensors,
                         sizeof *g->tensor));
        sl_tensor *t = &g->tensor[g->n_tensors];
        *t = (sl_tensor){ .file = (uint32_t)(s - g->shard) };
        SL_TRY(read_tensor(s, t));
        g->n_tensors++;
    }
    uint64_t data = (s->pos + s->alignment - 1) & ~(s->alignment - 1);
    for (uint64_t i = 0; i < s->n_tensors; i++) {
        s->item = i, s->name = g->tensor[first + i].name;
        SL_TRY(place_tensor(s, &g->tensor[first + i], data));
    }
    s->kind = NULL;
    return SL_OK;
}

static sl_status read_shard(sl_gguf *g, uint32_t i, const char *path, int fd)
{
    gguf_shard *s = &g->shard[i];
    uint64_t n_kv = 0;
    g->n_shards = SL_MAX(g->n_shards, i + 1);
    SL_TRY(gguf_shard_open(g->ctx, path, fd, s));
    for (uint32_t o = 0; o < i; o++)
        if (s->dev == g->shard[o].dev && s->ino == g->shard[o].ino)
            return sl_fail(g->ctx, SL_E_FORMAT, "%s: the same file as shard %s", path,
                           g->shard[o].path);
    SL_TRY(read_magic(s, &n_kv));
    SL_TRY(gguf_read_kv(s, n_kv));
    SL_TRY(read_alignment(s));
    SL_TRY(read_tensors(g, s));
    gguf_shard_trim(s);
    return SL_OK;
}

/* Where "-00001-of-000NN.gguf" starts in the name of a first shard; NULL: another name. */
static char *split_suffix(char *path, uint64_t count)
{
    char want[40];
    size_t n = strlen(path);
    snprintf(want, sizeof want, "-00001-of-%05llu.gguf", (ull)count);
    if (n < SUFFIX_BYTES || strcmp(path + n - SUFFIX_BYTES, want)) return NULL;
    return path + n - SUFFIX_BYTES;
}

static sl_status check_shard(gguf_shard *s, uint64_t want_no, uint64_t want_count)
{
    uint64_t no = 0, count = 0;
    if (!gguf_shard_u64(s, "split.no", &no) || !gguf_shard_u64(s, "split.count", &count))
        return gguf_bad(s, SL_E_FORMAT,
                        "shard %llu of %llu by its name, but without the keys split.no "
                        "and split.count",
                        (ull)want_no + 1, (ull)want_count);
    if (no != want_no || count != want_count)
        return gguf_bad(s, SL_E_FORMAT,
                        "expected shard %llu of %llu (split.no %llu), found split.no "
                        "%llu and split.count %llu",
                        (ull)want_no + 1, (ull)want_count, (ull)want_no, (ull)no, (ull)count);
    return SL_OK;
}

static sl_status open_others(sl_gguf *g, uint64_t count)
{
    gguf_shard *first = &g->shard[0], *all = NULL;
    char *suffix = count <= 99999 ? split_suffix(first->path, count) : NULL;
    if (!suffix)
        return gguf_bad(first, SL_E_FORMAT, "its split.count is %llu, so its name must end in "
                        "-00001-of-%05llu.gguf for the others to be found", (ull)count, (ull)count);
    SL_TRY(sl_mem_alloc(g->ctx, SL_ACC_TABLES, count * sizeof *all, (void **)&all));
    all[0] = *first;
    sl_mem_free(g->ctx, g->shard);
    g->shard = all;
    size_t stem = (size_t)(suffix - all[0].path), size = stem + SUFFIX_BYTES + 16;
    char *path = malloc(size);
    if (!path) return sl_fail(g->ctx, SL_E_NOMEM, "path of a shard of %s", all[0].path);
    sl_status st = SL_OK;
    for (uint32_t i = 1; i < count && st == SL_OK; i++) {
        snprintf(path, size, "%.*s-%05u-of-%05u.gguf", (int)stem, all[0].path, i + 1,
                 (unsigned)count);
        st = read_shard(g, i, path, -1);
        if (st == SL_OK) st = check_shard(&all[i], i, count);
    }
    free(path);
    return st;
}

static sl_status open_splits(sl_gguf *g)
{
    gguf_shard *s = &g->shard[0];
    const sl_gguf_kv *kv = gguf_shard_find(s, "split.count");
    uint64_t count = 0, no = 0, total = 0;
    if (!kv) return SL_OK;
    if (!sl_gguf_get_u64(g, kv, 0, &count) || !gguf_shard_u64(s, "split.no", &no))
        return gguf_bad(s, SL_E_FORMAT, "split.count or split.no is no unsigned number");
    if (no)
        return gguf_bad(s, SL_E_FORMAT, "it is shard %llu of %llu: open the first, "
                        "...-00001-of-%05llu.gguf", (ull)no + 1, (ull)count, (ull)count);
    if (count > 1) SL_TRY(open_others(g, count));
    kv = gguf_shard_find(&g->shard[0], "split.tensors.count");
    if (!kv) return SL_OK;
    if (!sl_gguf_get_u64(g, kv, 0, &total) || total != g->n_tensors)
        return gguf_bad(&g->shard[0], SL_E_FORMAT, "split.tensors.count is %llu, but its %u files "
                        "hold %llu tensors", (ull)total, g->n_shards, (ull)g->n_tensors);
    return SL_OK;
}

static sl_status index_tensors(sl_gguf *g)
{
    SL_TRY(gguf_table_init(g->ctx, &g->names, g->n_tensors));
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        sl_tensor *t = &g->tensor[i];
        const sl_str *seen = gguf_table_put(&g->names, &t->name);
        if (!seen) continue;
        char name[64];
        gguf_printable(t->name, name);
        return sl_fail(g->ctx, SL_E_FORMAT, "%s: duplicate tensor \"%s\", first in %s",
                       g->shard[t->file].path, name,
                       g->shard[((const sl_tensor *)seen)->file].path);
    }
    return SL_OK;
}

sl_status gguf_open_fd(sl_ctx *ctx, int fd, const char *path, sl_gguf **ret)
{
    assert(ctx && path && ret);
    sl_gguf *g = NULL;
    sl_status st = sl_mem_alloc(ctx, SL_ACC_TABLES, sizeof *g, (void **)&g);
    if (st == SL_OK) g->ctx = ctx;
    if (st == SL_OK) st = sl_mem_alloc(ctx, SL_ACC_TABLES, sizeof *g->shard, (void **)&g->shard);
    if (st != SL_OK) {
        if (fd >= 0) close(fd);
        goto fail;
    }
    st = read_shard(g, 0, path, fd);
    if (st != SL_OK) goto fail;
    st = open_splits(g);
    if (st != SL_OK) goto fail;
    st = index_tensors(g);
    if (st != SL_OK) goto fail;
    *ret = g;
    return SL_OK;
fail:
    sl_gguf_close(&g);
    return st;
}

sl_status sl_gguf_open(sl_ctx *ctx, const char *path, sl_gguf **ret)
{
    return gguf_open_fd(ctx, -1, path, ret);
}

void sl_gguf_close(sl_gguf **gguf)
{
    sl_gguf *g = *gguf;
    if (!g) return;
    for (uint32_t i = 0; i < g->n_shards; i++) gguf_shard_fini(&g->shard[i]);
    sl_mem_free(g->ctx, g->shard);
    sl_mem_free(g->ctx, g->tensor);
    sl_mem_free(g->ctx, g->names.slot);
    sl_mem_free(g->ctx, g);
    *gguf = NULL;
}

uint32_t sl_gguf_version(const sl_gguf *g) { return g->shard[0].version; }
uint32_t sl_gguf_n_files(const sl_gguf *g) { return g->n_shards; }

const char *sl_gguf_path(const sl_gguf *g, uint32_t file)
{
    assert(file < g->n_shards);
    return g->shard[file].path;
}

int sl_gguf_fd(const sl_gguf *g, uint32_t file)
{
    assert(file < g->n_shards);
    return g->shard[file].fd;
}

uint64_t sl_gguf_file_bytes(const sl_gguf *g, uint32_t file)
{
    assert(file < g->n_shards);
    return g->shard[file].file_bytes;
}

uint64_t sl_gguf_n_tensors(const sl_gguf *g) { return g->n_tensors; }

const sl_tensor *sl_gguf_tensor(const sl_gguf *g, uint64_t i)
{
    assert(i < g->n_tensors);
    return &g->tensor[i];
}

const sl_tensor *sl_gguf_find(const sl_gguf *g, const char *name)
{
    return (const sl_tensor *)gguf_table_get(&g->names, name, strlen(name));
}

uint64_t sl_gguf_n_kv(const sl_gguf *g) { return g->shard[0].n_kv; }

const sl_gguf_kv *sl_gguf_kv_at(const sl_gguf *g, uint64_t i)
{
    assert(i < g->shard[0].n_kv);
    return &g->shard[0].kv[i].kv;
}

const sl_gguf_kv *sl_gguf_kv_find(const sl_gguf *g, const char *key)
{
    return gguf_shard_find(&g->shard[0], key);
}

/* String element i: a scalar string's data, or what the index points at, which lies in the
 * header. */
bool sl_gguf_get_str(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, sl_str *ret)
{
    const gguf_value *v = (const gguf_value *)kv;
    if (!kv || i >= kv->n || kv->elem_type != SL_GGUF_STR) return false;
    const uint8_t *p = kv->type == SL_GGUF_ARR ? g->shard[0].p + v->index[i] : v->data;
    *ret = (sl_str){ (const char *)p + 8, (size_t)gguf_load_u64(p) };
    return true;
}
