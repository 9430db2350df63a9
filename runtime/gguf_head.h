/* runtime/gguf_head.h - private to runtime: the header bytes of one shard, and what reads them.
 * The bytes are read with pread, never mapped: a file that shrinks gives an error, not a signal.
 * Address space for the longest header is reserved once and filled as parsing goes on, so pointers
 * into it stay good. Tested by tests/t_gguf_bad.c and tests/fuzz_gguf.c. */
#ifndef GGUF_HEAD_H
#define GGUF_HEAD_H

#include "runtime/sl_gguf.h"

#include <string.h>

/* Bounds. The longest header seen (150,000 tokens and merges) has 12 MB. */
#define GGUF_HEADER_MAX ((uint64_t)1 << 30)
#define GGUF_KV_MAX 65536u
#define GGUF_TENSORS_MAX (1u << 20)
#define GGUF_NAME_MAX 65535u    /* bytes of a key, by the specification */

typedef struct gguf_value {
    sl_gguf_kv kv;          /* first: a kv of the public interface is the value it came from */
    const uint8_t *data;    /* the payload in the header: scalars, elements, or length and bytes */
    const uint32_t *index;  /* arrays of strings: where element i starts in the header */
} gguf_value;

/* Strings by content, for O(1) lookups. Holds pointers: the strings must not move. The seed keeps a
 * hostile file from choosing a million names that collide. */
typedef struct gguf_table { const sl_str **slot; uint64_t mask, seed; } gguf_table;

typedef struct gguf_shard {
    sl_ctx *ctx;
    char *path;
    int fd;
    uint64_t file_bytes, dev, ino;
    uint8_t *p;             /* header bytes: n_max reserved, n_read there, pos parsed */
    uint64_t n_max, n_read, pos;
    uint32_t version;
    uint64_t n_tensors, alignment;
    gguf_value *kv;
    uint64_t n_kv;
    gguf_table keys;
    const char *kind;       /* what is being parsed, for messages: "header", "key", "tensor" */
    uint64_t item;
    sl_str name;
} gguf_shard;

/* gguf_head.c. Shard memory is the caller's, zeroed, with fd -1; fini accepts every half-built
 * state. */
SL_NODISCARD sl_status gguf_shard_open(sl_ctx *ctx, const char *path, int fd, gguf_shard *s);
void gguf_shard_trim(gguf_shard *s);    /* the header is parsed: give back the reserved rest */
void gguf_shard_fini(gguf_shard *s);

/* "PATH: key 3 "general.name": MESSAGE" into the context; returns st. */
sl_status gguf_bad(gguf_shard *s, sl_status st, const char *fmt, ...) SL_PRINTF(3, 4);
void gguf_printable(sl_str s, char buf[64]);    /* for a message: cut, control bytes as '?' */

SL_NODISCARD sl_status gguf_fill(gguf_shard *s, uint64_t n);    /* the slow path of gguf_need */
SL_NODISCARD sl_status gguf_u32(gguf_shard *s, uint32_t *ret);
SL_NODISCARD sl_status gguf_u64(gguf_shard *s, uint64_t *ret);
SL_NODISCARD sl_status gguf_str(gguf_shard *s, sl_str *ret);

/* n more bytes are in memory at p + pos. */
static inline SL_NODISCARD sl_status gguf_need(gguf_shard *s, uint64_t n)
{
    return n <= s->n_read - s->pos ? SL_OK : gguf_fill(s, n);
}

static inline uint32_t gguf_load_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t gguf_load_u64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }

SL_NODISCARD sl_status gguf_table_init(sl_ctx *ctx, gguf_table *t, uint64_t n);
/* an equal one put before, or NULL */
const sl_str *gguf_table_put(gguf_table *t, const sl_str *s);
const sl_str *gguf_table_get(const gguf_table *t, const char *p, size_t n);

/* Room for one more in an array that grows by doubling; n of the elements are used. */
SL_NODISCARD sl_status gguf_grow(sl_ctx *ctx, void **array, uint64_t n, uint64_t *cap, size_t elem);

/* gguf_kv.c: n_kv pairs at pos, checked, with their table. */
SL_NODISCARD sl_status gguf_read_kv(gguf_shard *s, uint64_t n_kv);
const sl_gguf_kv *gguf_shard_find(const gguf_shard *s, const char *key);

/* gguf.c: as sl_gguf_open on a descriptor, which becomes the gguf's, also on failure. path names
 * the file in messages and the other shards. For fuzzing files that live in memory. */
SL_NODISCARD sl_status gguf_open_fd(sl_ctx *ctx, int fd, const char *path, sl_gguf **ret);

#endif
