/* tests/t_kv.h - writes small GGUF files with metadata and no tensors, well-formed or not. */
#ifndef T_KV_H
#define T_KV_H

#include "runtime/sl_gguf.h"
#include "tests/t.h"

typedef struct t_kv { unsigned char bytes[1 << 20]; size_t n; uint64_t n_kv; char path[64]; } t_kv;

T_UNUSED static void t_kv_raw(t_kv *k, const void *p, size_t n)
{
    T_NEED(k->n + n <= sizeof k->bytes, "test file too large");
    memcpy(k->bytes + k->n, p, n);
    k->n += n;
}

T_UNUSED static void t_kv_u32(t_kv *k, uint32_t v) { t_kv_raw(k, &v, 4); }
T_UNUSED static void t_kv_u64(t_kv *k, uint64_t v) { t_kv_raw(k, &v, 8); }

T_UNUSED static void t_kv_text(t_kv *k, const char *s, size_t n)
{
    t_kv_u64(k, n);
    t_kv_raw(k, s, n);
}

T_UNUSED static void t_kv_begin(t_kv *k)
{
    k->n = k->n_kv = 0;
    t_kv_raw(k, "GGUF\3\0\0\0", 8);
    t_kv_u64(k, 0);
    t_kv_u64(k, 0);     /* t_kv_end fills the count in */
}

T_UNUSED static void t_kv_key(t_kv *k, const char *key, sl_gguf_vtype type)
{
    t_kv_text(k, key, strlen(key));
    t_kv_u32(k, type);
    k->n_kv++;
}

T_UNUSED static void t_kv_str(t_kv *k, const char *key, const char *s)
{
    t_kv_key(k, key, SL_GGUF_STR);
    t_kv_text(k, s, strlen(s));
}

T_UNUSED static void t_kv_num(t_kv *k, const char *key, uint32_t v)
{
    t_kv_key(k, key, SL_GGUF_U32);
    t_kv_u32(k, v);
}

T_UNUSED static void t_kv_bool(t_kv *k, const char *key, bool b)
{
    t_kv_key(k, key, SL_GGUF_BOOL);
    t_kv_raw(k, b ? "\1" : "\0", 1);
}

T_UNUSED static void t_kv_arr(t_kv *k, const char *key, sl_gguf_vtype elem, uint64_t n)
{
    t_kv_key(k, key, SL_GGUF_ARR);
    t_kv_u32(k, elem);
    t_kv_u64(k, n);
}

T_UNUSED static void t_kv_strs(t_kv *k, const char *key, const char *const *s, uint64_t n)
{
    t_kv_arr(k, key, SL_GGUF_STR, n);
    for (uint64_t i = 0; i < n; i++) t_kv_text(k, s[i], strlen(s[i]));
}

T_UNUSED static void t_kv_nums(t_kv *k, const char *key, const int32_t *v, uint64_t n)
{
    t_kv_arr(k, key, SL_GGUF_I32, n);
    t_kv_raw(k, v, n * 4);
}

T_UNUSED static void t_kv_floats(t_kv *k, const char *key, const float *v, uint64_t n)
{
    t_kv_arr(k, key, SL_GGUF_F32, n);
    t_kv_raw(k, v, n * 4);
}

/* Opens what was written; the file is gone when the gguf is closed. */
T_UNUSED static sl_gguf *t_kv_end(t_kv *k, sl_ctx *ctx)
{
    sl_gguf *g = NULL;
    memcpy(k->bytes + 16, &k->n_kv, 8);
    strcpy(k->path, "/tmp/sluice-test-XXXXXX");
    int fd = mkstemp(k->path);
    T_NEED(fd >= 0 && write(fd, k->bytes, k->n) == (ssize_t)k->n, "write %s", k->path);
    close(fd);
    T_NEED(sl_gguf_open(ctx, k->path, &g) == SL_OK, "%s", sl_error(ctx));
    unlink(k->path);
    return g;
}

#endif
