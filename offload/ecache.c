/* offload/ecache.c - which expert sits in which slot. Policy only: no bytes move here.
 * Invariants, checked by sl_ecache_check() in tests after every change:
 *   I1  expert_in[s] == e  if and only if  slot_of[e] == s: no expert sits in two slots
 *   I2  a slot lies in one pool, and an expert only in slots of its layer's pool
 *   I3  each pool's list of free slots holds its empty slots, each once, and nothing else
 *   I4  an empty slot has no pins; a pinned slot is never a victim
 *   I5  slot_value[s] is the value of the expert in it
 * Cost: find O(1), touch O(experts of a layer), take O(slots of the pool). */
#include "offload/sl_ecache.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define NONE SL_ECACHE_NONE
#define HALF_LIFE 64.0f     /* rows; see docs/learned.md */

typedef struct pool { uint32_t first, n_slots, n_free; } pool;

struct sl_ecache {
    sl_ctx *ctx;
    uint32_t n_layer, n_expert, n_pools, n_slots, n_used;
    sl_policy policy;
    double decay;           /* of a count, per row */
    uint64_t clock;         /* touches so far */
    pool *pools;            /* [n_pools] */
    uint32_t *layer_pool;   /* [n_layer], or NONE */
    uint32_t *free;         /* [n_slots], pool p's at its first */
    uint32_t *expert_in;    /* [n_slots], or NONE */
    uint32_t *pins;         /* [n_slots] */
    double *slot_value;     /* [n_slots] */
    uint32_t *slot_of;      /* [n_layer * n_expert], or NONE */
    double *value;          /* [n_layer * n_expert]: the least of a pool is the victim */
};

static const char *const policy_names[SL_N_POLICIES] = { "lru", "lfu", "static" };

const char *sl_policy_name(sl_policy p)
{
    assert(p < SL_N_POLICIES);
    return policy_names[p];
}

bool sl_policy_parse(const char *text, sl_policy *ret)
{
    for (uint32_t i = 0; i < SL_N_POLICIES; i++)
        if (!strcmp(text, policy_names[i])) {
            *ret = (sl_policy)i;
            return true;
        }
    return false;
}

static uint32_t layer_class(const sl_ecache_params *p, uint32_t layer)
{
    return p->layer_class ? p->layer_class[layer] : 0;
}

static sl_status check_params(sl_ctx *ctx, const sl_ecache_params *p)
{
    uint64_t slots = 0;
    if (!p->n_layer || !p->n_expert || !p->n_classes || !p->class_slots)
        return sl_fail(ctx, SL_E_ARG, "expert cache: %u layers, %u experts, %u slot classes",
                       p->n_layer, p->n_expert, p->n_classes);
    if ((uint64_t)p->n_layer * p->n_expert >= NONE)
        return sl_fail(ctx, SL_E_ARG, "expert cache: %u layers of %u experts are too many",
                       p->n_layer, p->n_expert);
    if (p->policy >= SL_N_POLICIES || !(p->half_life >= 0))
        return sl_fail(ctx, SL_E_ARG, "expert cache: policy %d, half-life %g", (int)p->policy,
                       (double)p->half_life);
    if (p->policy == SL_POLICY_STATIC && !p->popularity)
        return sl_fail(ctx, SL_E_ARG, "expert cache: policy static needs a table of popularity");
    for (uint32_t l = 0; l < p->n_layer; l++)
        if (layer_class(p, l) != SL_ECACHE_NO_CLASS && layer_class(p, l) >= p->n_classes)
            return sl_fail(ctx, SL_E_ARG, "expert cache: layer %u is of class %u of %u", l,
                           layer_class(p, l), p->n_classes);
    for (uint32_t k = 0; k < p->n_classes; k++) slots += p->class_slots[k];
    if (slots >= NONE)
        return sl_fail(ctx, SL_E_ARG, "expert cache: too many slots");
    return SL_OK;
}

/* Class k's slots from `first` on, as one pool or one for each of its layers. */
static sl_status make_pools(sl_ecache *c, const sl_ecache_params *p, uint32_t k, uint32_t first)
{
    uint32_t n_layers = 0, n_slots = p->class_slots[k], made = 0;
    for (uint32_t l = 0; l < p->n_layer; l++) n_layers += layer_class(p, l) == k;
    uint32_t n_pools = p->per_layer ? n_layers : SL_MIN(n_layers, 1);
    if (n_slots < n_pools)
        return sl_fail(c->ctx, SL_E_ARG, "expert cache: class %u has %u slots for %u pools", k,
                       n_slots, n_pools);
    for (uint32_t l = 0; l < p->n_layer; l++) {
        if (layer_class(p, l) != k) continue;
        if (made < n_pools) {
            uint32_t share = n_slots / n_pools + (made < n_slots % n_pools);
            c->pools[c->n_pools++] = (pool){ first, share, share };
            first += share;
            made++;
        }
        c->layer_pool[l] = c->n_pools - 1;
    }
    return SL_OK;
}

sl_status sl_ecache_create(sl_ctx *ctx, const sl_ecache_params *p, sl_ecache **ret)
{
    assert(ctx && p && ret);
    SL_TRY(check_params(ctx, p));
    size_t n_experts = (size_t)p->n_layer * p->n_expert, n_slots = 0;
    for (uint32_t k = 0; k < p->n_classes; k++) n_slots += p->class_slots[k];
    size_t bytes = sizeof(sl_ecache) + n_experts * (sizeof(double) + sizeof(uint32_t))
                   + n_slots * (sizeof(double) + 3 * sizeof(uint32_t))
                   + p->n_layer * (sizeof(pool) + sizeof(uint32_t));
    sl_ecache *c = NULL;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, bytes, (void **)&c));
    *c = (sl_ecache){ .ctx = ctx, .n_layer = p->n_layer, .n_expert = p->n_expert,
                      .n_slots = (uint32_t)n_slots, .policy = p->policy };
    c->decay = exp2(-1.0 / (double)(p->half_life > 0 ? p->half_life : HALF_LIFE));
    c->value = (double *)(c + 1);
    c->slot_value = c->value + n_experts;
    c->slot_of = (uint32_t *)(c->slot_value + n_slots);
    c->expert_in = c->slot_of + n_experts;
    c->pins = c->expert_in + n_slots;
    c->free = c->pins + n_slots;
    c->layer_pool = c->free + n_slots;
    c->pools = (pool *)(c->layer_pool + p->n_layer);
    memset(c->slot_of, 0xff, n_experts * sizeof *c->slot_of);
    memset(c->expert_in, 0xff, n_slots * sizeof *c->expert_in);
    memset(c->layer_pool, 0xff, p->n_layer * sizeof *c->layer_pool);
    for (uint32_t s = 0; s < n_slots; s++) c->free[s] = s;
    for (size_t e = 0; p->policy == SL_POLICY_STATIC && e < n_experts; e++)
        c->value[e] = (double)p->popularity[e];
    sl_status st = SL_OK;
    for (uint32_t k = 0, first = 0; k < p->n_classes && st == SL_OK; k++) {
        st = make_pools(c, p, k, first);
        first += p->class_slots[k];
    }
    if (st == SL_OK) *ret = c;
    else sl_ecache_destroy(&c);
    return st;
}

void sl_ecache_destroy(sl_ecache **c)
{
    if (*c) sl_mem_free((*c)->ctx, *c);
    *c = NULL;
}

uint32_t sl_ecache_n_slots(const sl_ecache *c) { return c->n_slots; }
uint32_t sl_ecache_n_used(const sl_ecache *c) { return c->n_used; }

/* Rows are tokens: a pass of many counts as so many passes of one, in which the expert was used by
 * its share of the rows. */
static void touch_lfu(sl_ecache *c, double *value, const uint32_t *ids, const uint32_t *rows,
                      uint32_t n, uint32_t n_rows)
{
    double keep = pow(c->decay, n_rows), gain = (1 - keep) / n_rows;
    for (uint32_t e = 0; e < c->n_expert; e++) value[e] *= keep;
    for (uint32_t i = 0; i < n; i++) value[ids[i]] += gain * rows[i];
}

void sl_ecache_touch(sl_ecache *c, uint32_t layer, const uint32_t *ids, const uint32_t *rows,
                     uint32_t n, uint32_t n_rows)
{
    assert(layer < c->n_layer && c->layer_pool[layer] != NONE && n_rows);
    size_t first = (size_t)layer * c->n_expert;
    double *value = c->value + first;
    c->clock++;
    if (c->policy == SL_POLICY_LRU)
        for (uint32_t i = 0; i < n; i++) value[ids[i]] = (double)c->clock;
    else if (c->policy == SL_POLICY_LFU)
        touch_lfu(c, value, ids, rows, n, n_rows);
    for (uint32_t e = 0; e < c->n_expert; e++)
        if (c->slot_of[first + e] != NONE) c->slot_value[c->slot_of[first + e]] = value[e];
}

uint32_t sl_ecache_find(const sl_ecache *c, uint32_t layer, uint32_t id)
{
    assert(layer < c->n_layer && id < c->n_expert);
    return c->slot_of[(size_t)layer * c->n_expert + id];
}

uint32_t sl_ecache_expert_in(const sl_ecache *c, uint32_t slot)
{
    assert(slot < c->n_slots);
    return c->expert_in[slot];
}

/* The unpinned slot of least value, the first of equals; NONE. */
static uint32_t find_victim(const sl_ecache *c, const pool *p)
{
    uint32_t victim = NONE;
    double least = INFINITY;
    for (uint32_t s = p->first; s < p->first + p->n_slots; s++)
        if (c->slot_value[s] < least && !c->pins[s]) {
            least = c->slot_value[s];
            victim = s;
        }
    return victim;
}

uint32_t sl_ecache_take(sl_ecache *c, uint32_t layer, uint32_t id, uint32_t *ret_evicted)
{
    assert(sl_ecache_find(c, layer, id) == NONE && c->layer_pool[layer] != NONE);
    pool *p = &c->pools[c->layer_pool[layer]];
    uint32_t expert = layer * c->n_expert + id;
    uint32_t slot = p->n_free ? c->free[p->first + --p->n_free] : find_victim(c, p);
    if (slot == NONE) return NONE;
    *ret_evicted = c->expert_in[slot];
    if (*ret_evicted == NONE) c->n_used++;
    else c->slot_of[*ret_evicted] = NONE;
    c->expert_in[slot] = expert;
    c->slot_of[expert] = slot;
    c->slot_value[slot] = c->value[expert];
    c->pins[slot] = 1;
    return slot;
}

void sl_ecache_pin(sl_ecache *c, uint32_t slot)
{
    assert(slot < c->n_slots && c->expert_in[slot] != NONE);
    c->pins[slot]++;
}

void sl_ecache_unpin(sl_ecache *c, uint32_t slot)
{
    assert(slot < c->n_slots && c->pins[slot]);
    c->pins[slot]--;
}

void sl_ecache_drop(sl_ecache *c, uint32_t slot)
{
    assert(slot < c->n_slots && c->expert_in[slot] != NONE);
    uint32_t expert = c->expert_in[slot];
    pool *p = &c->pools[c->layer_pool[expert / c->n_expert]];
    c->slot_of[expert] = NONE;
    c->expert_in[slot] = NONE;
    c->pins[slot] = 0;
    c->free[p->first + p->n_free++] = slot;
    c->n_used--;
}

void sl_ecache_check(const sl_ecache *c)
{
    uint32_t used = 0, placed = 0, n_slots = 0;
    for (uint32_t i = 0; i < c->n_pools; i++) {
        const pool *p = &c->pools[i];
        uint32_t empty = 0;
        assert(p->first == n_slots || i == 0 || p->first > n_slots);
        for (uint32_t s = p->first; s < p->first + p->n_slots; s++) {
            uint32_t e = c->expert_in[s];
            if (e == NONE) {
                assert(!c->pins[s]);                                    /* I4 */
                empty++;
                continue;
            }
            assert(c->slot_of[e] == s);                                 /* I1 */
            assert(c->layer_pool[e / c->n_expert] == i);                /* I2 */
            assert(c->slot_value[s] == c->value[e]);                    /* I5 */
            used++;
        }
        assert(empty == p->n_free);                                     /* I3 */
        for (uint32_t j = 0; j < p->n_free; j++) {
            uint32_t s = c->free[p->first + j];
            assert(s >= p->first && s < p->first + p->n_slots && c->expert_in[s] == NONE);
            for (uint32_t k = 0; k < j; k++) assert(c->free[p->first + k] != s);
        }
        n_slots = p->first + p->n_slots;
    }
    for (uint32_t e = 0; e < c->n_layer * c->n_expert; e++) placed += c->slot_of[e] != NONE;
    assert(used == c->n_used && placed == used && n_slots <= c->n_slots);   /* I1 */
}
