/* runtime/kv.c - paged KV cache: a stack of free blocks and a table per sequence. */
#include "runtime/kv.h"

#include <assert.h>
#include <stdlib.h>

static uint64_t round64(uint64_t n)
{
    return (n + 63) / 64 * 64;
}

/* Per layer all keys, then all values; each starts a cache line. */
static sl_status place_layers(kv_cache *kv, const sl_shape *shape, const sl_plan *plan)
{
    const sl_type_info *type = sl_type_get(plan->kv_type);
    /* the plan saw that blocks divide heads */
    uint64_t elems = type->block_elems, bytes = type->block_bytes;
    uint64_t rows = (uint64_t)plan->n_kv_blocks * plan->kv_block_rows, total = 0;
    for (uint32_t l = 0; l < shape->n_layer; l++) {
        const sl_layer_shape *ls = &shape->layers[l];
        total += round64(rows * (ls->k_elems / elems * bytes))
                 + round64(rows * (ls->v_elems / elems * bytes));
    }
    SL_TRY(kv->dev->ops->alloc(kv->dev, SL_ACC_KV, total, &kv->bytes));
    char *at = kv->bytes;
    for (uint32_t l = 0; l < shape->n_layer; l++) {
        const sl_layer_shape *ls = &shape->layers[l];
        sl_kv_view *v = &kv->views[l];
        *v = (sl_kv_view){ .k_bytes = ls->k_elems / elems * bytes, .k = at,
                           .v_bytes = ls->v_elems / elems * bytes, .blocks = kv->tables,
                           .block_rows = plan->kv_block_rows, .type = plan->kv_type };
        at += round64(rows * v->k_bytes);
        v->v = at;
        at += round64(rows * v->v_bytes);
    }
    return SL_OK;
}

sl_status kv_init(sl_ctx *ctx, sl_device *dev, const sl_shape *shape, const sl_plan *plan,
                  kv_cache *kv)
{
    *kv = (kv_cache){ .dev = dev,
                      .ctx = ctx,
                      .n_layer = shape->n_layer,
                      .n_seq = plan->n_seq,
                      .n_blocks = plan->n_kv_blocks,
                      .block_rows = plan->kv_block_rows,
                      .blocks_per_seq = (plan->n_ctx + plan->kv_block_rows - 1)
                                        / plan->kv_block_rows };
    kv->views = calloc(kv->n_layer, sizeof *kv->views);
    kv->table = calloc((size_t)kv->n_seq * kv->blocks_per_seq, sizeof *kv->table);
    kv->tables = calloc(kv->n_seq, sizeof *kv->tables);
    kv->n_used = calloc(kv->n_seq, sizeof *kv->n_used);
    kv->free = calloc(kv->n_blocks, sizeof *kv->free);
    if (!kv->views || !kv->table || !kv->tables || !kv->n_used || !kv->free)
        return sl_fail(ctx, SL_E_NOMEM, "tables of %u KV blocks", kv->n_blocks);
    for (uint32_t s = 0; s < kv->n_seq; s++)
        kv->tables[s] = kv->table + (size_t)s * kv->blocks_per_seq;
    for (uint32_t b = kv->n_blocks; b-- > 0; ) kv->free[kv->n_free++] = b;
    return place_layers(kv, shape, plan);
}

void kv_fini(kv_cache *kv)
{
    if (kv->bytes) kv->dev->ops->free(kv->dev, kv->bytes);
    free(kv->views);
    free(kv->table);
    free(kv->tables);
    free(kv->n_used);
    free(kv->free);
    *kv = (kv_cache){ 0 };
}

sl_status kv_reserve(kv_cache *kv, uint32_t s, uint32_t n)
{
    uint32_t want = n / kv->block_rows + (n % kv->block_rows != 0);
    if (want <= kv->n_used[s]) return SL_OK;
    if (want > kv->blocks_per_seq || want - kv->n_used[s] > kv->n_free)
        return sl_fail(kv->ctx, SL_E_NOMEM, "%u positions need %u more KV blocks, %u are free", n,
                       want - kv->n_used[s], kv->n_free);
    uint32_t *table = kv->table + (size_t)s * kv->blocks_per_seq;
    while (kv->n_used[s] < want) table[kv->n_used[s]++] = kv->free[--kv->n_free];
    return SL_OK;
}

void kv_release(kv_cache *kv, uint32_t s)
{
    const uint32_t *table = kv->table + (size_t)s * kv->blocks_per_seq;
    while (kv->n_used[s]) kv->free[kv->n_free++] = table[--kv->n_used[s]];
}

void kv_check(const kv_cache *kv)
{
    uint32_t used = 0;
    uint64_t sum = 0;
    for (uint32_t s = 0; s < kv->n_seq; s++) {
        used += kv->n_used[s];
        for (uint32_t i = 0; i < kv->n_used[s]; i++) sum += kv->tables[s][i];
    }
    for (uint32_t i = 0; i < kv->n_free; i++) sum += kv->free[i];
    assert(used + kv->n_free == kv->n_blocks);                              /* K1 by count, */
    assert(sum == (uint64_t)kv->n_blocks * (kv->n_blocks - 1) / 2);         /* and by sum */
}
