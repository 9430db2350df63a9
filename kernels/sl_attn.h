/* kernels/sl_attn.h - attention over keys and values as they are stored, one order of operations
 * for every set of kernels, so that all give the same bits.
 *
 * Positions form blocks of SL_ATTN_BLOCK and spans of SL_ATTN_SPAN, both aligned to position 0. A
 * query has a state (m, l, acc) that starts as (-inf, 0, 0). `attend` merges one block into it:
 *   s_j = (q.k_j: one chain of fma, d ascending from 0) * scale
 *   mb  = max s_j;  p_j = exp(s_j - mb);  lb = sum p_j: 16 partial sums (j mod 16) and the tree of
 *         kernels/sl_kernels.h, keys that the query does not see counting as 0
 *   ab  = sum p_j v_j: one chain of fma, j ascending over the keys that the query sees
 *   m'  = max(m, mb);  l = fma(lb, exp(mb - m'), l * exp(m - m'));  acc likewise with ab;  m = m'
 * A span's blocks are merged in ascending order into a state of its own, and the spans' states in
 * ascending order into the row's (`attend_merge`, the same formula with (m, l, acc) of the span).
 * What is computed together (rows, heads, threads) does not matter. fma is rounded once, in the C
 * reference too. Source: Milakov, Gimelshein 2018 (online softmax).
 *
 * Stored types: SL_F32, SL_F16, SL_BF16, and SL_Q8_0 (32 elements: float16 scale, 32 signed bytes),
 * whose elements are scale * byte in float32. Q8_0 needs dimensions that are multiples of 32.
 * Must not allocate, block, do I/O or log. Threads: pure functions. Units: elements, bytes.
 * Tested by tests/t_kernels.c (sets bit for bit, guard pages, softmax in double) and
 * tests/t_attn.c. */
#ifndef SL_ATTN_H
#define SL_ATTN_H

#include "runtime/base/sl_type.h"

enum {
    SL_ATTN_BLOCK = 64,     /* keys of a block */
    SL_ATTN_SPAN = 512,     /* keys of a span: what threads share out */
    SL_ATTN_QUERIES = 64,   /* queries that one call takes at most */
    /* floats: scores, two factors of each query, and a panel of keys or values */
    SL_ATTN_SCRATCH = SL_ATTN_QUERIES * (SL_ATTN_BLOCK + 2) + 4096
};

/* What later calls will read: `bytes` at each row[i] + offset. None is read, only asked for. */
typedef struct sl_attn_fetch {
    const char *const *row;     /* [n] */
    uint32_t n;
    size_t offset, bytes;
} sl_attn_fetch;

/* Some queries on one block of keys of the key/value head they share. */
typedef struct sl_attn_tile {
    sl_type type;
    uint32_t n_q, k_dim, v_dim;
    const float *const *q;      /* [n_q] -> [k_dim] */
    const void *const *k, *const *v;    /* [SL_ATTN_BLOCK] -> k_dim, v_dim elements of `type` */
    /* keys [first, end) of the block are there, the others' pointers not read */
    uint32_t first, end;
    /* [n_q] a query sees keys [from, to) within [first, end); from == to: none */
    const uint8_t *from, *to;
    float scale;                /* multiplies q.k */
    float *m, *l, *acc;         /* [n_q], [n_q], [n_q][v_dim] */
    float *scratch;             /* [SL_ATTN_SCRATCH] */
    sl_attn_fetch next_k, next_v;
} sl_attn_tile;

/* Types that keys and values can have. */
static inline bool sl_attn_type(sl_type t)
{
    return t == SL_F32 || t == SL_F16 || t == SL_BF16 || t == SL_Q8_0;
}

/* Part of sl_kernels (kernels/sl_kernels.h): kv_put, attend, attend_merge, attend_end. */

#endif
