/* runtime/gguf_write.c - the header of a new GGUF. Numbers are little-endian, as on every machine
 * that the reader supports. */
#include "runtime/gguf_write.h"

#include <stdlib.h>
#include <string.h>

static void put(gguf_buf *b, const void *p, size_t n)
{
    if (b->failed) return;
    if (b->n + n > b->cap) {
        size_t cap = 2 * (b->n + n) + 4096;
        unsigned char *grown = realloc(b->p, cap);
        if (!grown) {
            b->failed = true;
            return;
        }
        b->p = grown;
        b->cap = cap;
    }
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void put_u32(gguf_buf *b, uint32_t v) { put(b, &v, sizeof v); }
static void put_u64(gguf_buf *b, uint64_t v) { put(b, &v, sizeof v); }

static void put_text(gguf_buf *b, const char *p, size_t n)
{
    put_u64(b, n);
    put(b, p, n);
}

static void put_key(gguf_out *o, const char *key, sl_gguf_vtype type)
{
    o->n_kv++;
    put_text(&o->kv, key, strlen(key));
    put_u32(&o->kv, type);
}

void gguf_out_init(gguf_out *o)
{
    *o = (gguf_out){ 0 };
}

void gguf_out_fini(gguf_out *o)
{
    free(o->kv.p);
    free(o->tensors.p);
    *o = (gguf_out){ 0 };
}

void gguf_out_u32(gguf_out *o, const char *key, uint32_t v)
{
    put_key(o, key, SL_GGUF_U32);
    put_u32(&o->kv, v);
}

void gguf_out_f32(gguf_out *o, const char *key, float v)
{
    put_key(o, key, SL_GGUF_F32);
    put(&o->kv, &v, sizeof v);
}

void gguf_out_bool(gguf_out *o, const char *key, bool v)
{
    put_key(o, key, SL_GGUF_BOOL);
    put(&o->kv, &(uint8_t){ v }, 1);
}

void gguf_out_str(gguf_out *o, const char *key, const char *v)
{
    put_key(o, key, SL_GGUF_STR);
    put_text(&o->kv, v, strlen(v));
}

void gguf_out_array(gguf_out *o, const char *key, sl_gguf_vtype elem_type, uint64_t n)
{
    put_key(o, key, SL_GGUF_ARR);
    put_u32(&o->kv, elem_type);
    put_u64(&o->kv, n);
}

void gguf_out_elem_str(gguf_out *o, const char *v, size_t n)
{
    put_text(&o->kv, v, n);
}

void gguf_out_elem_i32(gguf_out *o, int32_t v)
{
    put(&o->kv, &v, sizeof v);
}

uint64_t gguf_out_tensor(gguf_out *o, const char *name, uint32_t n_dims, const uint64_t *ne,
                         sl_type type, uint64_t bytes)
{
    uint64_t offset = o->data_bytes;
    o->n_tensors++;
    put_text(&o->tensors, name, strlen(name));
    put_u32(&o->tensors, n_dims);
    put(&o->tensors, ne, n_dims * sizeof *ne);
    put_u32(&o->tensors, type);
    put_u64(&o->tensors, offset);
    o->data_bytes = (offset + bytes + GGUF_OUT_ALIGN - 1) / GGUF_OUT_ALIGN * GGUF_OUT_ALIGN;
    return offset;
}

sl_status gguf_out_finish(sl_ctx *ctx, const gguf_out *o, unsigned char **ret, size_t *ret_n)
{
    gguf_buf b = { 0 };
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, o->n_tensors);
    put_u64(&b, o->n_kv);
    if (o->kv.n) put(&b, o->kv.p, o->kv.n);
    if (o->tensors.n) put(&b, o->tensors.p, o->tensors.n);
    static const unsigned char zeros[GGUF_OUT_ALIGN];
    put(&b, zeros, (GGUF_OUT_ALIGN - b.n % GGUF_OUT_ALIGN) % GGUF_OUT_ALIGN);
    if (b.failed || o->kv.failed || o->tensors.failed) {
        free(b.p);
        return sl_fail(ctx, SL_E_NOMEM, "header of a new model file: %zu bytes",
                       o->kv.n + o->tensors.n);
    }
    *ret = b.p;
    *ret_n = b.n;
    return SL_OK;
}
