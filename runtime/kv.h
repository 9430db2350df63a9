/* runtime/kv.h - which block of the KV cache holds which positions of which sequence. The bytes
 * come from a device's arena. Private to runtime/. Invariants, checked by kv_check() in tests and
 * debug builds:
 *   K1  a block is free, or in exactly one sequence's table
 *   K2  a sequence of n positions has ceil(n / block_rows) blocks
 * Cost: O(1) a block. Nothing allocates after init. */
#ifndef KV_H
#define KV_H

#include "offload/sl_device.h"
#include "perfmodel/sl_plan.h"

typedef struct kv_cache {
    sl_device *dev;
    sl_ctx *ctx;
    uint32_t n_layer, n_seq, n_blocks, block_rows, blocks_per_seq;
    sl_kv_view *views;          /* [n_layer] */
    uint32_t *table;            /* [n_seq][blocks_per_seq] */
    const uint32_t **tables;    /* [n_seq] -> rows of table: what views show */
    uint32_t *n_used;           /* [n_seq] blocks in use */
    uint32_t *free;             /* [n_free] stack */
    uint32_t n_free;
    void *bytes;                /* of all layers */
} kv_cache;

/* Errors: SL_E_NOMEM. fini accepts a half-built cache. */
sl_status kv_init(sl_ctx *ctx, sl_device *dev, const sl_shape *shape, const sl_plan *plan,
                  kv_cache *kv);
void kv_fini(kv_cache *kv);
/* Blocks for positions [0, n) of sequence slot s. SL_E_NOMEM when there are no more: nothing
 * changes. */
sl_status kv_reserve(kv_cache *kv, uint32_t s, uint32_t n);
void kv_release(kv_cache *kv, uint32_t s);
void kv_check(const kv_cache *kv);

#endif
