/* runtime/kv.h - which block of the KV cache holds which positions of which sequence, and which
 * blocks may serve a second one. The bytes come from a device's arena. Private to runtime/.
 *
 * A block whose positions are all filled is known by its tokens and by the block in front of it: a
 * sequence that begins with the same tokens takes it instead of computing it (keys and values
 * depend on nothing else). Such blocks are never written again, so nothing is copied. One that
 * nobody uses stays known until its place is needed.
 *
 * Invariants, checked by kv_check() in tests:
 *   K1  refs of a block says in how many tables it stands; it is on the free list when that is 0
 *   K2  a sequence has the blocks of its positions, in ascending order of them
 *   K3  a known block is found by its key, and no two have the same
 * Cost: O(1) a block. Nothing allocates after init. Tested by tests/t_batch.c. */
#ifndef KV_H
#define KV_H

#include "offload/sl_device.h"
#include "perfmodel/sl_plan.h"

typedef struct kv_block {
    uint32_t refs;
    uint32_t next, prev;        /* of the free list */
    uint32_t chain;             /* the next known block of the bucket */
    bool known, filled;         /* known and not filled: a pass computes it now */
    /* names what is in it, never used again; 0: unknown. before: the block's in front, 0: none */
    uint64_t serial, before;
} kv_block;

typedef struct kv_cache {
    sl_device *dev;
    sl_ctx *ctx;
    uint32_t n_layer, n_seq, n_blocks, block_rows, blocks_per_seq;
    bool share;
    sl_kv_view *views;          /* [n_layer] */
    uint32_t *table;            /* [n_seq][blocks_per_seq] */
    const uint32_t **tables;    /* [n_seq] -> rows of table: what views show */
    uint32_t *n_used;           /* [n_seq] blocks in use */
    kv_block *blocks;           /* [n_blocks] */
    int32_t *tokens;            /* [n_blocks][block_rows] of known blocks; NULL: none is shared */
    uint32_t *buckets;          /* [n_buckets] a power of two */
    uint32_t n_buckets;
    /* taken from the front: blocks that hold nothing come there, others at the end */
    uint32_t first_free, last_free, n_free;
    uint64_t next_serial;
    void *bytes;                /* of all layers */
} kv_cache;

/* Errors: SL_E_NOMEM. fini accepts a half-built cache. */
sl_status kv_init(sl_ctx *ctx, sl_device *dev, const sl_shape *shape, const sl_plan *plan,
                  kv_cache *kv);
void kv_fini(kv_cache *kv);

/* Blocks for positions [0, n) of sequence slot s; false: there are not so many, nothing changes.
 * n must be within the context. */
bool kv_reserve(kv_cache *kv, uint32_t s, uint32_t n);
/* Blocks that reserve would take. */
uint32_t kv_missing(const kv_cache *kv, uint32_t s, uint32_t n);
void kv_release(kv_cache *kv, uint32_t s);

/* The slot has full blocks only, for tokens[0 .. n_past). Adds known ones that continue with its
 * tokens, for n positions at most. Returns how many positions it has now. *ret_wait: the next block
 * is being computed by a pass at this moment. Without plan->share_prefixes: n_past, false. */
uint32_t kv_share(kv_cache *kv, uint32_t s, const int32_t *tokens, uint32_t n_past, uint32_t n,
                  bool *ret_wait);
/* A pass computes tokens[from .. to) of the slot: blocks that this fills become known, so that
 * others can wait for them. */
void kv_begin(kv_cache *kv, uint32_t s, const int32_t *tokens, uint32_t from, uint32_t to);
/* The pass is over: those blocks are filled, or (ok false) what is in them is worth nothing. */
void kv_end(kv_cache *kv, uint32_t s, uint32_t from, uint32_t to, bool ok);

void kv_check(const kv_cache *kv);

#endif
