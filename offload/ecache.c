/* offload/ecache.c - which expert sits in which slot. Policy only: no bytes move here.
 * Invariants, checked by sl_ecache_check() in tests after every change:
 *   I1  expert_in[s] == e  if and only if  slot_of[e] == s: no expert sits in two slots
 *   I2  a slot lies in one pool, and an expert only in slots of its layer's pool
 *   I3  each pool's list of free slots holds its empty slots, each once, and nothing else
 *   I4  an empty slot has no pins; a pinned slot is never a victim
 *   I5  slot_value[s] is the value of the expert in it, slot_layer[s] its layer
 *
 * MARKOV's value of an expert is an estimate of p, the share of the next pass's rows that will use
 * it, times a weight for how far off its layer is:
 *   f    its frequency: an exponential average over rows (half_life)
 *   m    the mean, over the experts a that each sequence's last row chose in this layer, of how
 *        often the expert was in the row after one with a, where PRIOR_ROWS such rows count as f
 *   w    what makes f + w * (m - f) the best forecast of the next pass: fitted to what the rows
 *        then chose, by least squares over some FIT_TOUCHES of the layer
 *   p    f + w * (m - f) * (1 - FADE * share of all experts that have a slot): the more there are,
 *        the more passes an expert stays, and those after the next have less of m in them
 *   value = p * (1 - DISTANCE * d / n_layer), d = layers that come before this one's next turn:
 *        what is kept for longer pays more rent. (MoE-Infinity, arXiv 2401.14361, algorithm 1, has
 *        the same form with d counted from layer 0.)
 * The constants are from replayed traces; docs/learned.md has their neighbours. */
#include "offload/sl_ecache.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define NONE SL_ECACHE_NONE
#define MAX_EXPERTS ((uint64_t)1 << 24)     /* of all layers: sizes of tables fit 64 bits */
#define HALF_LIFE 32.0f         /* rows */
#define FADE 0.5
#define FOLLOW_ROWS 144.0f      /* at most, behind a rate in `follow`: older ones fade */
#define PRIOR_ROWS 4.0f
#define FIT_TOUCHES 100
#define DISTANCE 0.4

typedef struct pool { uint32_t first, n_slots, n_free; } pool;

struct sl_ecache {
    sl_ctx *ctx;
    uint32_t n_layer, n_expert, n_used_max, n_seq, n_pools, n_slots, n_used;
    sl_policy policy;
    double decay;           /* of a frequency, per row */
    double trust;           /* in what follows what: 1 - FADE * share */
    uint64_t clock;         /* touches so far */
    pool *pools;            /* [n_layer], n_pools of them in use */
    uint32_t *layer_pool;   /* [n_layer], or NONE */
    uint32_t *free;         /* [n_slots], pool p's at its first */
    uint32_t *expert_in;    /* [n_slots], or NONE */
    uint32_t *slot_layer;   /* [n_slots] */
    uint32_t *pins;         /* [n_slots] */
    double *slot_value;     /* [n_slots] */
    uint32_t *slot_of;      /* [n_layer * n_expert], or NONE */
    double *value;          /* [n_layer * n_expert] */
    double *weight;         /* [n_layer]: the least value * weight of a pool is the victim */
    float *freq;            /* [n_layer * n_expert]: share of rows */
    uint32_t *count;        /* [n_expert]: rows of this touch, cleared afterwards */
    uint64_t *seen;         /* [n_seq]: clock of the touch that had rows of it */
    /* MARKOV only */
    float *follow;          /* [n_layer][n_expert a][n_expert]: share of rows after one with a */
    float *follow_rows;     /* [n_layer][n_expert a]: rows behind it, at most FOLLOW_ROWS */
    uint32_t *last;         /* [n_layer][n_seq][n_used_max]: the last row's experts, NONE-ended */
    float *next;            /* [n_layer * n_expert]: m */
    double *fit;            /* [n_layer][2]: w as sums of (chosen - f) * (m - f), (m - f)^2 */
};

static const char *const policy_names[SL_N_POLICIES] = { "markov", "lfu", "lru", "static" };

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
    if (!p->n_layer || !p->n_expert || !p->n_used || p->n_used > p->n_expert || !p->n_seq
        || !p->n_classes || !p->class_slots)
        return sl_fail(ctx, SL_E_ARG, "expert cache: %u layers, %u of %u experts, %u sequences, %u "
                       "slot classes", p->n_layer, p->n_used, p->n_expert, p->n_seq, p->n_classes);
    if ((uint64_t)p->n_layer * p->n_expert >= MAX_EXPERTS)
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

/* Bytes of a cache; its tables are laid out behind the struct when at is not NULL. Wide elements
 * first, so that each is aligned. */
static uint64_t lay_out(const sl_ecache_params *p, sl_ecache *c, char *at)
{
    uint64_t layers = p->n_layer, experts = layers * p->n_expert, slots = 0, bytes = 0;
    bool markov = p->policy == SL_POLICY_MARKOV;
    sl_ecache none;
    if (!c) c = &none;
    for (uint32_t k = 0; k < p->n_classes; k++) slots += p->class_slots[k];
    struct { void **table; uint64_t n, size; } tables[] = {
        { (void **)&c->slot_value, slots, sizeof(double) },
        { (void **)&c->value, experts, sizeof(double) },
        { (void **)&c->weight, layers, sizeof(double) },
        { (void **)&c->fit, markov ? 2 * layers : 0, sizeof(double) },
        { (void **)&c->seen, p->n_seq, sizeof(uint64_t) },
        { (void **)&c->pools, layers, sizeof(pool) },
        { (void **)&c->layer_pool, layers, sizeof(uint32_t) },
        { (void **)&c->free, slots, sizeof(uint32_t) },
        { (void **)&c->expert_in, slots, sizeof(uint32_t) },
        { (void **)&c->slot_layer, slots, sizeof(uint32_t) },
        { (void **)&c->pins, slots, sizeof(uint32_t) },
        { (void **)&c->slot_of, experts, sizeof(uint32_t) },
        { (void **)&c->freq, experts, sizeof(float) },
        { (void **)&c->count, p->n_expert, sizeof(uint32_t) },
        { (void **)&c->follow, markov ? experts * p->n_expert : 0, sizeof(float) },
        { (void **)&c->follow_rows, markov ? experts : 0, sizeof(float) },
        { (void **)&c->last, markov ? layers * p->n_seq * p->n_used : 0, sizeof(uint32_t) },
        { (void **)&c->next, markov ? experts : 0, sizeof(float) },
    };
    for (size_t i = 0; i < SL_LEN(tables); i++) {
        if (at) *tables[i].table = at + bytes;
        bytes += tables[i].n * tables[i].size;
    }
    return bytes;
}

uint64_t sl_ecache_bytes(const sl_ecache_params *p)
{
    return (sizeof(sl_ecache) + 7) / 8 * 8 + lay_out(p, NULL, NULL);
}

static void fill_tables(sl_ecache *c, const sl_ecache_params *p)
{
    uint32_t n_experts = c->n_layer * c->n_expert;
    memset(c->slot_of, 0xff, n_experts * sizeof *c->slot_of);
    memset(c->expert_in, 0xff, c->n_slots * sizeof *c->expert_in);
    memset(c->layer_pool, 0xff, c->n_layer * sizeof *c->layer_pool);
    for (uint32_t s = 0; s < c->n_slots; s++) c->free[s] = s;
    for (uint32_t l = 0; l < c->n_layer; l++) c->weight[l] = 1;
    for (uint32_t e = 0; p->policy == SL_POLICY_STATIC && e < n_experts; e++)
        c->value[e] = (double)p->popularity[e];
    if (p->policy != SL_POLICY_MARKOV) return;
    memset(c->last, 0xff, (size_t)c->n_layer * c->n_seq * c->n_used_max * sizeof *c->last);
    for (uint32_t l = 0; l < c->n_layer; l++) {     /* as if one pass had found w to be a half */
        c->fit[2 * l] = 0.5;
        c->fit[2 * l + 1] = 1;
    }
}

sl_status sl_ecache_create(sl_ctx *ctx, const sl_ecache_params *p, sl_ecache **ret)
{
    assert(ctx && p && ret);
    SL_TRY(check_params(ctx, p));
    sl_ecache *c = NULL;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, sl_ecache_bytes(p), (void **)&c));
    *c = (sl_ecache){ .ctx = ctx, .n_layer = p->n_layer, .n_expert = p->n_expert,
                      .n_used_max = p->n_used, .n_seq = p->n_seq, .policy = p->policy };
    for (uint32_t k = 0; k < p->n_classes; k++) c->n_slots += p->class_slots[k];
    c->decay = exp2(-1.0 / (double)(p->half_life > 0 ? p->half_life : HALF_LIFE));
    c->trust = 1 - FADE * SL_MIN(1, (double)c->n_slots / ((double)c->n_layer * c->n_expert));
    lay_out(p, c, (char *)c + (sizeof *c + 7) / 8 * 8);
    fill_tables(c, p);
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

/* The forecasts that the layer's last touch left, against what was chosen. */
static void fit_forecasts(sl_ecache *c, uint32_t layer, uint32_t n_rows)
{
    const float *f = c->freq + (size_t)layer * c->n_expert;
    const float *m = c->next + (size_t)layer * c->n_expert;
    double product = 0, square = 0, keep = 1 - 1.0 / FIT_TOUCHES, *fit = c->fit + 2 * layer;
    for (uint32_t e = 0; e < c->n_expert; e++) {
        double chosen = (double)c->count[e] / n_rows, d = (double)(m[e] - f[e]);
        product += (chosen - (double)f[e]) * d;
        square += d * d;
    }
    fit[0] = fit[0] * keep + product * (1 - keep);
    fit[1] = fit[1] * keep + square * (1 - keep);
}

/* What followed each of the last row's experts, with this row as one more example. */
static void learn_row(sl_ecache *c, uint32_t layer, uint32_t *last, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < c->n_used_max && last[i] != NONE; i++) {
        size_t a = (size_t)layer * c->n_expert + last[i];
        float *restrict f = c->follow + a * c->n_expert;
        float rows = c->follow_rows[a];
        rows += rows < FOLLOW_ROWS;
        c->follow_rows[a] = rows;
        for (uint32_t e = 0; e < c->n_expert; e++) f[e] -= f[e] / rows;
        for (uint32_t j = 0; j < n; j++) f[ids[j]] += 1 / rows;
    }
    for (uint32_t j = 0; j < c->n_used_max; j++) last[j] = j < n ? ids[j] : NONE;
}

/* Adds to the layer's c->next the shares expected in the row after this one. */
static void expect_next(sl_ecache *c, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    const float *restrict freq = c->freq + (size_t)layer * c->n_expert;
    float *restrict next = c->next + (size_t)layer * c->n_expert;
    for (uint32_t i = 0; i < n; i++) {
        size_t a = (size_t)layer * c->n_expert + ids[i];
        const float *restrict f = c->follow + a * c->n_expert;
        float rows = c->follow_rows[a], share = 1 / ((rows + PRIOR_ROWS) * (float)n);
        for (uint32_t e = 0; e < c->n_expert; e++)
            next[e] += (rows * f[e] + PRIOR_ROWS * freq[e]) * share;
    }
}

static void touch_markov(sl_ecache *c, uint32_t layer, const uint32_t *expert_id,
                         const uint32_t *seq, uint32_t n_rows, uint32_t n_used)
{
    uint32_t n_last = 0;
    size_t first = (size_t)layer * c->n_expert;
    double *value = c->value + first;
    const float *freq = c->freq + first, *next = c->next + first;
    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t *last = c->last + ((size_t)layer * c->n_seq + (seq ? seq[r] : 0)) * c->n_used_max;
        learn_row(c, layer, last, expert_id + (size_t)r * n_used, n_used);
    }
    memset(c->next + first, 0, c->n_expert * sizeof *c->next);
    for (uint32_t r = n_rows; r-- > 0;) {   /* from the end: a sequence's last row comes first */
        uint64_t *seen = &c->seen[seq ? seq[r] : 0];
        if (*seen == c->clock) continue;
        *seen = c->clock;
        expect_next(c, layer, expert_id + (size_t)r * n_used, n_used);
        n_last++;
    }
    for (uint32_t e = 0; e < c->n_expert; e++) c->next[first + e] /= (float)n_last;
    double best = c->fit[2 * layer + 1] > 0 ? c->fit[2 * layer] / c->fit[2 * layer + 1] : 0;
    double w = c->trust * SL_MAX(0, SL_MIN(best, 1));
    for (uint32_t e = 0; e < c->n_expert; e++)
        value[e] = (double)freq[e] + w * (double)(next[e] - freq[e]);
    for (uint32_t l = 0; l < c->n_layer; l++) {
        uint32_t before = (l + c->n_layer - layer - 1) % c->n_layer;
        c->weight[l] = 1 - DISTANCE * before / c->n_layer;
    }
}

/* Rows are tokens: a pass of many counts as so many passes of one, in which the expert was used by
 * its share of the rows. */
static void update_freq(sl_ecache *c, float *restrict freq, uint32_t n_rows)
{
    double keep = pow(c->decay, n_rows);
    float f = (float)keep, gain = (float)((1 - keep) / n_rows);
    for (uint32_t e = 0; e < c->n_expert; e++) freq[e] = freq[e] * f + gain * (float)c->count[e];
}

void sl_ecache_touch(sl_ecache *c, uint32_t layer, const uint32_t *expert_id, const uint32_t *seq,
                     uint32_t n_rows, uint32_t n_used)
{
    assert(layer < c->n_layer && c->layer_pool[layer] != NONE);
    assert(n_rows && n_used && n_used <= c->n_used_max);
    size_t first = (size_t)layer * c->n_expert;
    c->clock++;
    for (size_t i = 0; i < (size_t)n_rows * n_used; i++) c->count[expert_id[i]]++;
    if (c->policy == SL_POLICY_MARKOV) fit_forecasts(c, layer, n_rows);
    update_freq(c, c->freq + first, n_rows);
    if (c->policy == SL_POLICY_MARKOV) touch_markov(c, layer, expert_id, seq, n_rows, n_used);
    for (uint32_t e = 0; e < c->n_expert; e++) {
        double *value = &c->value[first + e];
        uint32_t slot = c->slot_of[first + e];
        if (c->policy == SL_POLICY_LFU) *value = (double)c->freq[first + e];
        if (c->policy == SL_POLICY_LRU && c->count[e]) *value = (double)c->clock;
        if (slot != NONE) c->slot_value[slot] = *value;
        c->count[e] = 0;
    }
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
    for (uint32_t s = p->first; s < p->first + p->n_slots; s++) {
        double value = c->slot_value[s] * c->weight[c->slot_layer[s]];
        if (value < least && !c->pins[s]) {
            least = value;
            victim = s;
        }
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
    c->slot_layer[slot] = layer;
    c->slot_value[slot] = c->value[expert];
    c->pins[slot] = 1;
    return slot;
}

bool sl_ecache_admits(const sl_ecache *c, uint32_t layer, uint32_t id, double margin)
{
    assert(sl_ecache_find(c, layer, id) == NONE && c->layer_pool[layer] != NONE);
    const pool *p = &c->pools[c->layer_pool[layer]];
    if (p->n_free) return true;
    uint32_t victim = find_victim(c, p);
    return victim != NONE
        && c->value[(size_t)layer * c->n_expert + id] * c->weight[layer]
               >= c->slot_value[victim] * c->weight[c->slot_layer[victim]] + margin;
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

uint32_t sl_ecache_pins(const sl_ecache *c, uint32_t slot)
{
    assert(slot < c->n_slots);
    return c->pins[slot];
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
            assert(c->slot_layer[s] == e / c->n_expert);
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
