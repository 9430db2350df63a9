/* runtime/gguf_write.h - the header of a new GGUF (version 3), built in memory: metadata, then the
 * tensor table with offsets that leave every tensor aligned. Private to runtime/.
 * Calls: gguf_out_init, gguf_out_* in any order, gguf_out_finish, gguf_out_fini. Memory that runs
 * out is noted and reported by finish. Source: the GGUF specification (ggml docs/gguf.md). */
#ifndef GGUF_WRITE_H
#define GGUF_WRITE_H

#include "runtime/sl_gguf.h"

enum { GGUF_OUT_ALIGN = 32 };

typedef struct gguf_buf { unsigned char *p; size_t n, cap; bool failed; } gguf_buf;

typedef struct gguf_out {
    gguf_buf kv, tensors;
    uint64_t n_kv, n_tensors;
    uint64_t data_bytes;        /* of all tensors so far, padding between them included */
} gguf_out;

void gguf_out_init(gguf_out *o);
void gguf_out_fini(gguf_out *o);

void gguf_out_u32(gguf_out *o, const char *key, uint32_t v);
void gguf_out_f32(gguf_out *o, const char *key, float v);
void gguf_out_bool(gguf_out *o, const char *key, bool v);
void gguf_out_str(gguf_out *o, const char *key, const char *v);
/* An array: its head, then n values of elem_type by gguf_out_elem_*. */
void gguf_out_array(gguf_out *o, const char *key, sl_gguf_vtype elem_type, uint64_t n);
void gguf_out_elem_str(gguf_out *o, const char *v, size_t n);
void gguf_out_elem_i32(gguf_out *o, int32_t v);

/* ne [n_dims], ne[0] is the row. Returns the tensor's offset behind the header. */
uint64_t gguf_out_tensor(gguf_out *o, const char *name, uint32_t n_dims, const uint64_t *ne,
                         sl_type type, uint64_t bytes);

/* The header, padded to GGUF_OUT_ALIGN: the tensors' bytes begin behind it. malloc'ed, the caller
 * frees.
 * Errors: SL_E_NOMEM. */
sl_status gguf_out_finish(sl_ctx *ctx, const gguf_out *o, unsigned char **ret, size_t *ret_n);

#endif
