/* runtime/gguf_kv.c - metadata of a GGUF: key, type, value. Values stay in the header bytes;
 * arrays of strings get an index of offsets, so that element i is found without walking the
 * others. */
#include "runtime/gguf_head.h"

#include <assert.h>

typedef unsigned long long ull;
#define KV_MIN_BYTES 13     /* key length, type, one byte of value */

/* Bytes of a scalar; 0: a string or an array. */
static const uint8_t scalar_bytes[] = {
    [SL_GGUF_U8] = 1, [SL_GGUF_I8] = 1, [SL_GGUF_U16] = 2, [SL_GGUF_I16] = 2, [SL_GGUF_U32] = 4,
    [SL_GGUF_I32] = 4, [SL_GGUF_F32] = 4, [SL_GGUF_BOOL] = 1, [SL_GGUF_STR] = 0, [SL_GGUF_ARR] = 0,
    [SL_GGUF_U64] = 8, [SL_GGUF_I64] = 8, [SL_GGUF_F64] = 8,
};

static sl_status read_vtype(gguf_shard *s, const char *what, sl_gguf_vtype *ret)
{
    uint32_t v = 0;
    SL_TRY(gguf_u32(s, &v));
    if (v >= SL_LEN(scalar_bytes))
        return gguf_bad(s, SL_E_FORMAT, "%s type %u, expected 0 to 12", what, v);
    *ret = (sl_gguf_vtype)v;
    return SL_OK;
}

/* The strings are walked once: their lengths are what must be checked, and the walk makes the
 * index. */
static sl_status read_strings(gguf_shard *s, gguf_value *v)
{
    uint32_t *index = NULL;
    if (v->kv.n > (SL_MIN(s->file_bytes, GGUF_HEADER_MAX) - s->pos) / 8)
        return gguf_bad(s, SL_E_FORMAT, "array of %llu strings in the %llu bytes that are left",
                        (ull)v->kv.n, (ull)(s->file_bytes - s->pos));
    SL_TRY(sl_mem_alloc(s->ctx, SL_ACC_TABLES, v->kv.n * sizeof *index, (void **)&index));
    v->index = index;
    for (uint64_t i = 0; i < v->kv.n; i++) {
        sl_str text;
        index[i] = (uint32_t)s->pos;
        SL_TRY(gguf_str(s, &text));
    }
    return SL_OK;
}

static sl_status read_scalars(gguf_shard *s, gguf_value *v, sl_gguf_vtype type)
{
    uint64_t bytes;
    if (!sl_mul_size(v->kv.n, scalar_bytes[type], &bytes))
        return gguf_bad(s, SL_E_FORMAT, "array of %llu elements overflows", (ull)v->kv.n);
    SL_TRY(gguf_need(s, bytes));
    v->data = s->p + s->pos;
    for (uint64_t i = 0; type == SL_GGUF_BOOL && i < v->kv.n; i++)
        if (v->data[i] > 1) return gguf_bad(s, SL_E_FORMAT, "bool %u, expected 0 or 1", v->data[i]);
    s->pos += bytes;
    return SL_OK;
}

static sl_status read_value(gguf_shard *s, gguf_value *v)
{
    v->kv.n = 1;
    SL_TRY(read_vtype(s, "value", &v->kv.type));
    v->kv.elem_type = v->kv.type;
    if (v->kv.type == SL_GGUF_STR) {
        sl_str text;
        uint64_t at = s->pos;
        SL_TRY(gguf_str(s, &text));
        v->data = s->p + at;
        return SL_OK;
    }
    if (v->kv.type != SL_GGUF_ARR) return read_scalars(s, v, v->kv.type);
    SL_TRY(read_vtype(s, "array element", &v->kv.elem_type));
    SL_TRY(gguf_u64(s, &v->kv.n));
    if (v->kv.elem_type == SL_GGUF_ARR)
        return gguf_bad(s, SL_E_UNSUPPORTED, "an array of arrays; none is known");
    if (v->kv.elem_type == SL_GGUF_STR) return read_strings(s, v);
    return read_scalars(s, v, v->kv.elem_type);
}

sl_status gguf_read_kv(gguf_shard *s, uint64_t n_kv)
{
    uint64_t cap = 0;
    if (n_kv > GGUF_KV_MAX || n_kv > (s->file_bytes - s->pos) / KV_MIN_BYTES)
        return gguf_bad(s, SL_E_FORMAT, "%llu keys in %llu bytes (at most %u)", (ull)n_kv,
                        (ull)(s->file_bytes - s->pos), GGUF_KV_MAX);
    for (uint64_t i = 0; i < n_kv; i++) {
        s->kind = "key", s->item = i, s->name = (sl_str){ "", 0 };
        SL_TRY(gguf_grow(s->ctx, (void **)&s->kv, s->n_kv, &cap, sizeof *s->kv));
        gguf_value *v = &s->kv[s->n_kv++];      /* counted first: fini frees its index */
        SL_TRY(gguf_str(s, &v->kv.key));
        if (!v->kv.key.n || v->kv.key.n > GGUF_NAME_MAX)
            return gguf_bad(s, SL_E_FORMAT, "a name of %zu bytes, expected 1 to %u", v->kv.key.n,
                            GGUF_NAME_MAX);
        s->name = v->kv.key;
        SL_TRY(read_value(s, v));
    }
    SL_TRY(gguf_table_init(s->ctx, &s->keys, n_kv));
    for (uint64_t i = 0; i < n_kv; i++) {
        s->item = i, s->name = s->kv[i].kv.key;
        if (gguf_table_put(&s->keys, &s->kv[i].kv.key))
            return gguf_bad(s, SL_E_FORMAT, "duplicate key");
    }
    s->kind = NULL;
    return SL_OK;
}

const sl_gguf_kv *gguf_shard_find(const gguf_shard *s, const char *key)
{
    return (const sl_gguf_kv *)gguf_table_get(&s->keys, key, strlen(key));
}

/* The payload of element i when it is a scalar; NULL otherwise. */
static const uint8_t *scalar_at(const sl_gguf_kv *kv, uint64_t i)
{
    if (!kv || i >= kv->n || !scalar_bytes[kv->elem_type]) return NULL;
    return ((const gguf_value *)kv)->data + i * scalar_bytes[kv->elem_type];
}

bool sl_gguf_get_i64(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, int64_t *ret)
{
    (void)g;
    const uint8_t *p = scalar_at(kv, i);
    if (!p) return false;
    switch (kv->elem_type) {
    case SL_GGUF_U8: *ret = p[0]; return true;
    case SL_GGUF_I8: *ret = (int8_t)p[0]; return true;
    case SL_GGUF_U16: *ret = (uint16_t)(p[0] | p[1] << 8); return true;
    case SL_GGUF_I16: *ret = (int16_t)(uint16_t)(p[0] | p[1] << 8); return true;
    case SL_GGUF_U32: *ret = gguf_load_u32(p); return true;
    case SL_GGUF_I32: *ret = (int32_t)gguf_load_u32(p); return true;
    case SL_GGUF_I64: *ret = (int64_t)gguf_load_u64(p); return true;
    case SL_GGUF_U64:
        if (gguf_load_u64(p) > INT64_MAX) return false;
        *ret = (int64_t)gguf_load_u64(p);
        return true;
    default: return false;
    }
}

bool sl_gguf_get_u64(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, uint64_t *ret)
{
    int64_t v;
    const uint8_t *p = scalar_at(kv, i);
    if (p && kv->elem_type == SL_GGUF_U64) {
        *ret = gguf_load_u64(p);
        return true;
    }
    if (!sl_gguf_get_i64(g, kv, i, &v) || v < 0) return false;
    *ret = (uint64_t)v;
    return true;
}

bool sl_gguf_get_f64(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, double *ret)
{
    int64_t v;
    float f;
    const uint8_t *p = scalar_at(kv, i);
    if (!p) return false;
    switch (kv->elem_type) {
    case SL_GGUF_F32: memcpy(&f, p, 4); *ret = (double)f; return true;
    case SL_GGUF_F64: memcpy(ret, p, 8); return true;
    case SL_GGUF_U64: *ret = (double)gguf_load_u64(p); return true;
    default: break;
    }
    if (!sl_gguf_get_i64(g, kv, i, &v)) return false;
    *ret = (double)v;
    return true;
}

bool sl_gguf_get_bool(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, bool *ret)
{
    (void)g;
    const uint8_t *p = scalar_at(kv, i);
    if (!p || kv->elem_type != SL_GGUF_BOOL) return false;
    *ret = p[0] != 0;
    return true;
}
