/* runtime/sl_gguf.h - GGUF model files, v2 and v3, single and split: metadata and the tensor table.
 * Owns the header bytes and the descriptors of the shards. Must not read tensor bytes:
 * offload/sl_store.h does, from the slices given here. Threads: a const sl_gguf may be shared.
 * Units: bytes, elements.
 * Tested by tests/t_gguf.c, tests/t_gguf_bad.c (truncations, byte flips) and tests/fuzz_gguf.c.
 * Source: the GGUF specification (ggml docs/gguf.md). */
#ifndef SL_GGUF_H
#define SL_GGUF_H

#include "runtime/base/sl_base.h"
#include "runtime/base/sl_type.h"

typedef struct sl_gguf sl_gguf;

typedef enum sl_gguf_vtype {    /* value types of metadata, ids as in the file */
    SL_GGUF_U8, SL_GGUF_I8, SL_GGUF_U16, SL_GGUF_I16, SL_GGUF_U32, SL_GGUF_I32, SL_GGUF_F32,
    SL_GGUF_BOOL, SL_GGUF_STR, SL_GGUF_ARR, SL_GGUF_U64, SL_GGUF_I64, SL_GGUF_F64
} sl_gguf_vtype;

/* bytes, not terminated; may hold any byte */
typedef struct sl_str { const char *p; size_t n; } sl_str;

typedef struct sl_gguf_kv {
    sl_str key;
    sl_gguf_vtype type;     /* SL_GGUF_ARR: an array of elem_type */
    sl_gguf_vtype elem_type;
    uint64_t n;             /* array length; 1 otherwise */
} sl_gguf_kv;

typedef struct sl_tensor {
    sl_str name;
    sl_type type;
    uint32_t n_dims;        /* 1..4 */
    uint64_t ne[4];         /* ne[0] is the contiguous (row) dimension; unused ones are 1 */
    uint32_t file;          /* shard index */
    uint64_t offset;        /* absolute, in that shard */
    uint64_t bytes;         /* offset + bytes lies inside the shard: checked at open */
} sl_tensor;

/* Opens path and, when it is shard 1 of a split file, the others beside it. Everything is checked
 * here: counts, sizes that overflow, offsets outside the file, duplicate names, split numbering.
 * Errors: SL_E_IO, SL_E_FORMAT, SL_E_UNSUPPORTED (version, big-endian), SL_E_NOMEM. The caller owns
 * *ret. */
SL_API SL_NODISCARD sl_status sl_gguf_open(sl_ctx *ctx, const char *path, sl_gguf **ret);
SL_API void sl_gguf_close(sl_gguf **gguf);

SL_API uint32_t sl_gguf_version(const sl_gguf *g);
SL_API uint32_t sl_gguf_n_files(const sl_gguf *g);
SL_API const char *sl_gguf_path(const sl_gguf *g, uint32_t file);
SL_API int sl_gguf_fd(const sl_gguf *g, uint32_t file);           /* stays the gguf's */
SL_API uint64_t sl_gguf_file_bytes(const sl_gguf *g, uint32_t file);  /* size when opened */

SL_API uint64_t sl_gguf_n_tensors(const sl_gguf *g);
SL_API const sl_tensor *sl_gguf_tensor(const sl_gguf *g, uint64_t i);   /* file order */
SL_API const sl_tensor *sl_gguf_find(const sl_gguf *g, const char *name);  /* NULL: none; O(1) */

SL_API uint64_t sl_gguf_n_kv(const sl_gguf *g);
SL_API const sl_gguf_kv *sl_gguf_kv_at(const sl_gguf *g, uint64_t i);
/* NULL: none; O(1) */
SL_API const sl_gguf_kv *sl_gguf_kv_find(const sl_gguf *g, const char *key);

/* Element i of a value (i = 0 for scalars), converted. False when kv is NULL, i is out of range, or
 * the stored type cannot hold the question (an integer asked of a string, a negative asked as
 * u64). */
SL_API bool sl_gguf_get_u64(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, uint64_t *ret);
SL_API bool sl_gguf_get_i64(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, int64_t *ret);
/* ints too */
SL_API bool sl_gguf_get_f64(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, double *ret);
SL_API bool sl_gguf_get_bool(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, bool *ret);
/* O(1) */
SL_API bool sl_gguf_get_str(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, sl_str *ret);

#endif
