/* tests/gguf_writer.h - builds GGUF files in memory, right ones and wrong ones, for the reader's
 * tests.
 * Order of calls: gw_begin, gw_kv_*, gw_tensor, gw_data. The header's counts follow the calls;
 * gw_put_* writes raw bytes, and any byte of w->p may be changed afterwards. gw_free ends it. */
#ifndef GGUF_WRITER_H
#define GGUF_WRITER_H

#include "runtime/gguf_head.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GW_UNUSED __attribute__((unused))
enum { GW_N_TENSORS = 8, GW_N_KV = 16 };   /* where the counts stand in the file */

typedef struct gw { unsigned char *p; size_t n, cap; } gw;

GW_UNUSED static void gw_put(gw *w, const void *p, size_t n)
{
    if (w->n + n > w->cap) {
        w->cap = 2 * (w->n + n) + 256;
        w->p = realloc(w->p, w->cap);
        if (!w->p) abort();
    }
    if (n) memcpy(w->p + w->n, p, n);
    w->n += n;
}

GW_UNUSED static void gw_put_u8(gw *w, uint8_t v) { gw_put(w, &v, 1); }
GW_UNUSED static void gw_put_u16(gw *w, uint16_t v) { gw_put(w, &v, 2); }
GW_UNUSED static void gw_put_u32(gw *w, uint32_t v) { gw_put(w, &v, 4); }
GW_UNUSED static void gw_put_u64(gw *w, uint64_t v) { gw_put(w, &v, 8); }
GW_UNUSED static void gw_put_f32(gw *w, float v) { gw_put(w, &v, 4); }

GW_UNUSED static void gw_put_str(gw *w, const char *s)
{
    gw_put_u64(w, strlen(s));
    gw_put(w, s, strlen(s));
}

GW_UNUSED static void gw_count(gw *w, size_t at)
{
    uint64_t v;
    memcpy(&v, w->p + at, 8);
    v++;
    memcpy(w->p + at, &v, 8);
}

GW_UNUSED static void gw_begin(gw *w, uint32_t version)
{
    *w = (gw){ 0 };
    gw_put(w, "GGUF", 4);
    gw_put_u32(w, version);
    gw_put_u64(w, 0);
    gw_put_u64(w, 0);
}

GW_UNUSED static void gw_kv(gw *w, const char *key, uint32_t type)  /* the value is the caller's */
{
    gw_count(w, GW_N_KV);
    gw_put_str(w, key);
    gw_put_u32(w, type);
}

GW_UNUSED static void gw_kv_u16(gw *w, const char *k, uint16_t v)
{
    gw_kv(w, k, 2);
    gw_put_u16(w, v);
}
GW_UNUSED static void gw_kv_u32(gw *w, const char *k, uint32_t v)
{
    gw_kv(w, k, 4);
    gw_put_u32(w, v);
}
GW_UNUSED static void gw_kv_i32(gw *w, const char *k, int32_t v)
{
    gw_kv(w, k, 5);
    gw_put(w, &v, 4);
}
GW_UNUSED static void gw_kv_f32(gw *w, const char *k, float v) { gw_kv(w, k, 6); gw_put_f32(w, v); }
GW_UNUSED static void gw_kv_str(gw *w, const char *k, const char *v)
{
    gw_kv(w, k, 8);
    gw_put_str(w, v);
}

GW_UNUSED static void gw_kv_array(gw *w, const char *key, uint32_t elem_type, uint64_t n)
{
    gw_kv(w, key, 9);
    gw_put_u32(w, elem_type);
    gw_put_u64(w, n);
}

GW_UNUSED static void gw_kv_strs(gw *w, const char *key, const char *const *s, uint64_t n)
{
    gw_kv_array(w, key, 8, n);
    for (uint64_t i = 0; i < n; i++) gw_put_str(w, s[i]);
}

GW_UNUSED static void gw_tensor(gw *w, const char *name, uint32_t n_dims, const uint64_t *ne,
                                uint32_t type, uint64_t offset)
{
    gw_count(w, GW_N_TENSORS);
    gw_put_str(w, name);
    gw_put_u32(w, n_dims);
    for (uint32_t d = 0; d < n_dims; d++) gw_put_u64(w, ne[d]);
    gw_put_u32(w, type);
    gw_put_u64(w, offset);
}

GW_UNUSED static void gw_vector(gw *w, const char *name, uint64_t n, uint64_t offset)  /* float32 */
{
    gw_tensor(w, name, 1, &n, 0, offset);
}

/* Padding, then n bytes that count up. */
GW_UNUSED static void gw_data(gw *w, size_t alignment, size_t n)
{
    while (w->n % alignment) gw_put_u8(w, 0);
    for (size_t i = 0; i < n; i++) gw_put_u8(w, (uint8_t)i);
}

GW_UNUSED static void gw_free(gw *w)
{
    free(w->p);
    *w = (gw){ 0 };
}

GW_UNUSED static bool gw_save(const gw *w, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (!f) return false;
    bool ok = fwrite(w->p, 1, w->n, f) == w->n;
    return !fclose(f) && ok;
}

/* Opens bytes as a file that lives in memory. */
GW_UNUSED static sl_status gw_open_bytes(sl_ctx *ctx, const void *p, size_t n, sl_gguf **ret)
{
    int fd = memfd_create("gguf", MFD_CLOEXEC);
    if (fd < 0 || write(fd, p, n) != (ssize_t)n) abort();
    return gguf_open_fd(ctx, fd, "memory.gguf", ret);
}

GW_UNUSED static sl_status gw_open(sl_ctx *ctx, const gw *w, sl_gguf **ret)
{
    return gw_open_bytes(ctx, w->p, w->n, ret);
}

/* Reads all that the reader promises to be readable; the sum keeps the reads alive. */
GW_UNUSED static uint64_t gw_touch(const sl_gguf *g)
{
    uint64_t sum = sl_gguf_version(g) + sl_gguf_n_files(g), u;
    int64_t v;
    double f;
    bool b;
    sl_str s;
    for (uint64_t i = 0; i < sl_gguf_n_kv(g); i++) {
        const sl_gguf_kv *kv = sl_gguf_kv_at(g, i);
        for (size_t c = 0; c < kv->key.n; c++) sum += (unsigned char)kv->key.p[c];
        for (uint64_t e = 0; e < kv->n; e++) {
            if (sl_gguf_get_u64(g, kv, e, &u)) sum += u;
            if (sl_gguf_get_i64(g, kv, e, &v)) sum += (uint64_t)v;
            if (sl_gguf_get_f64(g, kv, e, &f)) sum += f > 0;
            if (sl_gguf_get_bool(g, kv, e, &b)) sum += b;
            if (!sl_gguf_get_str(g, kv, e, &s)) continue;
            for (size_t c = 0; c < s.n; c++) sum += (unsigned char)s.p[c];
        }
    }
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const sl_tensor *t = sl_gguf_tensor(g, i);
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)SL_MIN(t->name.n, sizeof name - 1), t->name.p);
        sum += sl_gguf_find(g, name) == t;
        if (t->offset + t->bytes > sl_gguf_file_bytes(g, t->file)) abort();
        sum += t->ne[0] + t->ne[3] + t->bytes;
    }
    return sum;
}

#endif
