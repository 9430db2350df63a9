/* runtime/kv.c - paged KV cache: a list of free blocks, a table per sequence, and a hash table of
 * blocks whose content is known. */
#include "runtime/kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

/* ---- the free list ---- */

static void list_take(kv_cache *kv, uint32_t b)
{
    kv_block *k = &kv->blocks[b];
    if (k->prev != NONE) kv->blocks[k->prev].next = k->next;
    else kv->first_free = k->next;
    if (k->next != NONE) kv->blocks[k->next].prev = k->prev;
    else kv->last_free = k->prev;
    kv->n_free--;
}

/* What is known is kept as long as there is anything else to take. */
static void list_put(kv_cache *kv, uint32_t b)
{
    kv_block *k = &kv->blocks[b];
    bool last = k->known;
    k->prev = last ? kv->last_free : NONE;
    k->next = last ? NONE : kv->first_free;
    if (k->prev != NONE) kv->blocks[k->prev].next = b;
    else kv->first_free = b;
    if (k->next != NONE) kv->blocks[k->next].prev = b;
    else kv->last_free = b;
    kv->n_free++;
}

/* ---- known blocks ---- */

static const int32_t *tokens_of(const kv_cache *kv, uint32_t b)
{
    return kv->tokens + (size_t)b * kv->block_rows;
}

/* FNV-1a by words, its upper bits mixed down. */
static uint32_t bucket_of(const kv_cache *kv, uint64_t before, const int32_t *tokens)
{
    uint64_t h = (14695981039346656037u ^ before) * 1099511628211u;
    for (uint32_t i = 0; i < kv->block_rows; i++) h = (h ^ (uint32_t)tokens[i]) * 1099511628211u;
    return (uint32_t)(h ^ h >> 32) & (kv->n_buckets - 1);
}

static uint32_t find_known(const kv_cache *kv, uint64_t before, const int32_t *tokens)
{
    uint32_t b = kv->buckets[bucket_of(kv, before, tokens)];
    while (b != NONE && (kv->blocks[b].before != before
                         || memcmp(tokens_of(kv, b), tokens, kv->block_rows * sizeof *tokens)))
        b = kv->blocks[b].chain;
    return b;
}

static void make_known(kv_cache *kv, uint32_t b, uint64_t before, const int32_t *tokens)
{
    kv_block *k = &kv->blocks[b];
    uint32_t *bucket = &kv->buckets[bucket_of(kv, before, tokens)];
    memcpy(kv->tokens + (size_t)b * kv->block_rows, tokens, kv->block_rows * sizeof *tokens);
    k->known = true;
    k->filled = false;
    k->before = before;
    k->serial = kv->next_serial++;
    k->chain = *bucket;
    *bucket = b;
}

static void forget(kv_cache *kv, uint32_t b)
{
    kv_block *k = &kv->blocks[b];
    if (!k->known) return;
    uint32_t *at = &kv->buckets[bucket_of(kv, k->before, tokens_of(kv, b))];
    while (*at != b) at = &kv->blocks[*at].chain;
    *at = k->chain;
    k->known = k->filled = false;
    k->serial = 0;
}

/* ---- init and fini ---- */

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
    const sl_device_ops *o = kv->dev->ops;
    bool on_device = plan->split.kv == SL_ON_DEVICE;
    SL_TRY((on_device ? o->alloc : o->alloc_host)(kv->dev, SL_ACC_KV, total, &kv->bytes));
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

static sl_status init_sharing(kv_cache *kv)
{
    kv->n_buckets = 64;
    while (kv->n_buckets < kv->n_blocks) kv->n_buckets *= 2;
    kv->tokens = calloc((size_t)kv->n_blocks * kv->block_rows, sizeof *kv->tokens);
    kv->buckets = calloc(kv->n_buckets, sizeof *kv->buckets);
    if (!kv->tokens || !kv->buckets)
        return sl_fail(kv->ctx, SL_E_NOMEM, "tokens of %u KV blocks", kv->n_blocks);
    for (uint32_t i = 0; i < kv->n_buckets; i++) kv->buckets[i] = NONE;
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
                      .share = plan->share_prefixes,
                      .next_serial = 1,
                      .blocks_per_seq = (plan->n_ctx + plan->kv_block_rows - 1)
                                        / plan->kv_block_rows };
    kv->views = calloc(kv->n_layer, sizeof *kv->views);
    kv->table = calloc((size_t)kv->n_seq * kv->blocks_per_seq, sizeof *kv->table);
    kv->tables = calloc(kv->n_seq, sizeof *kv->tables);
    kv->n_used = calloc(kv->n_seq, sizeof *kv->n_used);
    kv->blocks = calloc(kv->n_blocks, sizeof *kv->blocks);
    if (!kv->views || !kv->table || !kv->tables || !kv->n_used || !kv->blocks)
        return sl_fail(ctx, SL_E_NOMEM, "tables of %u KV blocks", kv->n_blocks);
    for (uint32_t s = 0; s < kv->n_seq; s++)
        kv->tables[s] = kv->table + (size_t)s * kv->blocks_per_seq;
    kv->first_free = kv->last_free = NONE;
    for (uint32_t b = kv->n_blocks; b-- > 0; ) list_put(kv, b);
    if (kv->share) SL_TRY(init_sharing(kv));
    return place_layers(kv, shape, plan);
}

void kv_fini(kv_cache *kv)
{
    if (kv->bytes) kv->dev->ops->free(kv->dev, kv->bytes);
    free(kv->views);
    free(kv->table);
    free(kv->tables);
    free(kv->n_used);
    free(kv->blocks);
    free(kv->tokens);
    free(kv->buckets);
    *kv = (kv_cache){ 0 };
}

/* ---- sequences ---- */

uint32_t kv_missing(const kv_cache *kv, uint32_t s, uint32_t n)
{
    uint32_t want = n / kv->block_rows + (n % kv->block_rows != 0);
    assert(want <= kv->blocks_per_seq);
    return want - SL_MIN(kv->n_used[s], want);
}

bool kv_reserve(kv_cache *kv, uint32_t s, uint32_t n)
{
    uint32_t *table = kv->table + (size_t)s * kv->blocks_per_seq;
    uint32_t missing = kv_missing(kv, s, n);
    if (missing > kv->n_free) return false;
    for (; missing; missing--) {
        uint32_t b = kv->first_free;
        list_take(kv, b);
        forget(kv, b);
        kv->blocks[b].refs = 1;
        table[kv->n_used[s]++] = b;
    }
    return true;
}

/* The last block first: beginnings are what others share, so they are the last to go. */
void kv_release(kv_cache *kv, uint32_t s)
{
    const uint32_t *table = kv->table + (size_t)s * kv->blocks_per_seq;
    while (kv->n_used[s]) {
        uint32_t b = table[--kv->n_used[s]];
        if (!--kv->blocks[b].refs) list_put(kv, b);
    }
}

/* What stands in front of the slot's block i. */
static uint64_t serial_before(const kv_cache *kv, uint32_t s, uint32_t i)
{
    return i ? kv->blocks[kv->tables[s][i - 1]].serial : 0;
}

uint32_t kv_share(kv_cache *kv, uint32_t s, const int32_t *tokens, uint32_t n_past, uint32_t n,
                  bool *ret_wait)
{
    *ret_wait = false;
    if (!kv->share || n_past % kv->block_rows) return n_past;
    uint32_t *table = kv->table + (size_t)s * kv->blocks_per_seq, i = n_past / kv->block_rows;
    if (kv->n_used[s] != i) return n_past;          /* blocks of its own follow already */
    for (; (i + 1) * kv->block_rows <= n; i++) {
        uint64_t before = serial_before(kv, s, i);
        if (i && !before) break;
        uint32_t b = find_known(kv, before, tokens + (size_t)i * kv->block_rows);
        if (b == NONE) break;
        if (!kv->blocks[b].filled) {
            *ret_wait = true;
            break;
        }
        if (!kv->blocks[b].refs++) list_take(kv, b);
        table[kv->n_used[s]++] = b;
    }
    return i * kv->block_rows;
}

void kv_begin(kv_cache *kv, uint32_t s, const int32_t *tokens, uint32_t from, uint32_t to)
{
    if (!kv->share) return;
    for (uint32_t i = from / kv->block_rows; (i + 1) * kv->block_rows <= to; i++) {
        const int32_t *at = tokens + (size_t)i * kv->block_rows;
        uint64_t before = serial_before(kv, s, i);
        uint32_t b = kv->tables[s][i];
        /* Another slot may have begun the same: one of them is known. */
        if ((i && !before) || kv->blocks[b].known || find_known(kv, before, at) != NONE) continue;
        make_known(kv, b, before, at);
    }
}

void kv_end(kv_cache *kv, uint32_t s, uint32_t from, uint32_t to, bool ok)
{
    if (!kv->share) return;
    for (uint32_t i = from / kv->block_rows; (i + 1) * kv->block_rows <= to; i++) {
        uint32_t b = kv->tables[s][i];
        if (!kv->blocks[b].known || kv->blocks[b].filled) continue;
        if (ok) kv->blocks[b].filled = true;
        else forget(kv, b);
    }
}

void kv_check(const kv_cache *kv)
{
    uint32_t uses = 0, refs = 0, n_free = 0;
    for (uint32_t s = 0; s < kv->n_seq; s++)
        for (uint32_t i = 0; i < kv->n_used[s]; i++, uses++)
            assert(kv->blocks[kv->tables[s][i]].refs);
    for (uint32_t b = 0; b < kv->n_blocks; b++) {
        const kv_block *k = &kv->blocks[b];
        refs += k->refs;
        n_free += !k->refs;
        assert(k->known == (k->serial != 0) && (!k->filled || k->known));
        assert(!k->known || find_known(kv, k->before, tokens_of(kv, b)) == b);     /* K3 */
    }
    assert(uses == refs && n_free == kv->n_free);                                   /* K1 */
    for (uint32_t b = kv->first_free, prev = NONE; b != NONE; prev = b, b = kv->blocks[b].next) {
        assert(!kv->blocks[b].refs && kv->blocks[b].prev == prev && n_free--);      /* K1 */
        if (kv->blocks[b].next == NONE) assert(kv->last_free == b && !n_free);
    }
}
