/* tests/replay.c - plays recorded routing traces through expert caches of several sizes, and prints
 * what every policy hits, and its share of what Belady with bypass hits.
 *     replay [--csv] [--shares 12,25,50] [--from PASS] TRACE...
 * Shares are slots in percent of the model's experts. --from counts the passes from PASS on, so
 * that a prompt can be what the cache learns from and decoding what is counted. Policies that the
 * library does not have, since they did not pay, are tried here, on a plain table of values. */
#include "offload/sl_trace.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/belady.h"

#define NONE UINT32_MAX
enum { MAX_SHARES = 16 };

typedef struct replay {
    sl_ctx *ctx;
    const sl_trace *t;
    uint64_t from_pass;
    uint32_t n_experts;         /* of all layers */
    uint32_t *uses;             /* [n_uses]: layer * n_expert + id, distinct in a step */
    uint64_t *first_use;        /* [n_steps + 1] */
    uint64_t n_uses, first_counted;
} replay;

static void *need(void *p)
{
    if (p) return p;
    fprintf(stderr, "replay: out of memory\n");
    exit(1);
}

static void list_uses(replay *r)
{
    const sl_trace *t = r->t;
    uint64_t most = 0;
    for (uint32_t i = 0; i < t->n_steps; i++)
        most += (uint64_t)t->steps[i].n_rows * t->steps[i].n_used;
    r->n_experts = t->n_layer * t->n_expert;
    r->uses = need(calloc(most + 1, sizeof *r->uses));
    r->first_use = need(calloc(t->n_steps + 1ull, sizeof *r->first_use));
    uint32_t *seen = need(calloc(r->n_experts, sizeof *seen));
    r->n_uses = r->first_counted = 0;
    for (uint32_t i = 0; i < t->n_steps; i++) {
        const sl_trace_step *s = &t->steps[i];
        r->first_use[i] = r->n_uses;
        if (s->pass < r->from_pass) r->first_counted = r->n_uses;
        for (uint64_t j = 0; j < (uint64_t)s->n_rows * s->n_used; j++) {
            uint32_t e = s->layer * t->n_expert + s->experts[j];
            if (seen[e] != i + 1) r->uses[r->n_uses++] = e;
            seen[e] = i + 1;
        }
        if (s->pass < r->from_pass) r->first_counted = r->n_uses;
    }
    r->first_use[t->n_steps] = r->n_uses;
    free(seen);
}

/* ---- policies on a table of values ---- */

typedef struct cache {
    const replay *r;
    uint32_t *in, *slot_of;             /* [slots], [experts] */
    uint32_t *step_of;                  /* [experts]: last step + 1 with a use */
    uint32_t capacity, n_full, step;
    double *value;                      /* [experts] */
    double *f[4];                       /* [experts]: frequencies of four half-lives */
} cache;

typedef struct candidate {
    const char *name;
    /* Sets c->value of the layer's experts after a step that used uses [n]. */
    void (*touch)(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n);
    double distance;            /* of the weight 1 - distance * d / layers */
} candidate;

static void frequencies(cache *c, const sl_trace_step *s, uint32_t k, double half_life)
{
    double keep = exp2(-(double)s->n_rows / half_life), gain = (1 - keep) / s->n_rows;
    double *f = c->f[k] + (size_t)s->layer * c->r->t->n_expert;
    for (uint32_t e = 0; e < c->r->t->n_expert; e++) f[e] *= keep;
    for (uint64_t j = 0; j < (uint64_t)s->n_rows * s->n_used; j++) f[s->experts[j]] += gain;
}

static void touch_random(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)s;
    for (uint32_t i = 0; i < n; i++)        /* a hash of the expert and the step */
        c->value[uses[i]] = (double)((uses[i] + 1) * 2654435761u ^ c->step * 40503u) * 0x1p-32;
}

static void touch_fifo(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)s;
    for (uint32_t i = 0; i < n; i++)
        if (c->slot_of[uses[i]] == NONE) c->value[uses[i]] = c->step;
}

static void touch_freq32(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)uses, (void)n;
    size_t first = (size_t)s->layer * c->r->t->n_expert;
    frequencies(c, s, 0, 32);
    memcpy(c->value + first, c->f[0] + first, c->r->t->n_expert * sizeof *c->value);
}

/* Frequencies in which a row's heaviest expert counts most, falling evenly to its lightest. */
static void touch_rank(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)uses, (void)n;
    size_t first = (size_t)s->layer * c->r->t->n_expert;
    double keep = exp2(-(double)s->n_rows / 32), gain = (1 - keep) / s->n_rows;
    for (size_t e = first; e < first + c->r->t->n_expert; e++) c->value[e] *= keep;
    for (uint64_t j = 0; j < (uint64_t)s->n_rows * s->n_used; j++)
        c->value[first + s->experts[j]] += gain * (double)(s->n_used - j % s->n_used);
}

/* Frequencies over 1, 8, 64 and 1,000 rows. */
static void touch_mix(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    static const double half_life[4] = { 1, 8, 64, 1000 }, share[4] = { 0.1, 0.1, 0.4, 0.4 };
    (void)uses, (void)n;
    size_t first = (size_t)s->layer * c->r->t->n_expert;
    memset(c->value + first, 0, c->r->t->n_expert * sizeof *c->value);
    for (uint32_t k = 0; k < 4; k++) {
        frequencies(c, s, k, half_life[k]);
        for (size_t e = first; e < first + c->r->t->n_expert; e++)
            c->value[e] += share[k] * c->f[k][e];
    }
}

/* Recency and frequency in equal parts, as HOBBIT scores (arXiv 2411.01433), frequency per
 * sequence: here over a long half-life. Recency falls by half in four passes. */
static void touch_hobbit(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)uses, (void)n;
    size_t first = (size_t)s->layer * c->r->t->n_expert;
    frequencies(c, s, 0, 1000);
    frequencies(c, s, 1, 4);
    for (size_t e = first; e < first + c->r->t->n_expert; e++)
        c->value[e] = c->f[0][e] + c->f[1][e];
}

/* MoE-Infinity (arXiv 2401.14361, algorithm 1) without its library of past requests: counts of this
 * sequence, early layers weighing more. */
static void touch_infinity(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)uses, (void)n;
    size_t first = (size_t)s->layer * c->r->t->n_expert;
    if (s->pos[0] == 0)
        memset(c->f[0] + first, 0, c->r->t->n_expert * sizeof *c->value);
    for (uint64_t j = 0; j < (uint64_t)s->n_rows * s->n_used; j++)
        c->f[0][first + s->experts[j]]++;
    double weight = (1 - (double)s->layer / c->r->t->n_layer) / (s->pos[s->n_rows - 1] + 1.0);
    for (size_t e = first; e < first + c->r->t->n_expert; e++)
        c->value[e] = (c->f[0][e] + 1e-3) * weight;
}

/* Not to be had: it is told every choice of the layers to come, until this one has had n_passes
 * more turns, and values the rest by frequency. What a perfect forecast would be worth. */
static void told(cache *c, const sl_trace_step *s, uint32_t n_passes)
{
    const replay *r = c->r;
    touch_freq32(c, s, NULL, 0);
    uint32_t end = c->step + 1;
    uint64_t pass = s->pass;
    for (uint32_t passes = 0; end < r->t->n_steps; end++) {
        passes += r->t->steps[end].pass != pass;
        pass = r->t->steps[end].pass;
        if (passes > n_passes || (passes == n_passes && r->t->steps[end].layer > s->layer)) break;
    }
    for (uint32_t e = 0; e < r->n_experts; e++)
        c->value[e] = c->f[0][e] / 2;
    for (uint32_t i = end; i-- > c->step + 1;)
        for (uint64_t j = r->first_use[i]; j < r->first_use[i + 1]; j++)
            c->value[r->uses[j]] = 1 + 1.0 / (i - c->step);
}

static void touch_told1(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)uses, (void)n;
    told(c, s, 1);
}

static void touch_told2(cache *c, const sl_trace_step *s, const uint32_t *uses, uint32_t n)
{
    (void)uses, (void)n;
    told(c, s, 2);
}

static const candidate candidates[] = {
    { "random", touch_random, 0 },
    { "fifo", touch_fifo, 0 },
    { "lfu 32, distance 0.4", touch_freq32, 0.4 },
    { "lfu 32, weighed by the router's order", touch_rank, 0 },
    { "lfu of 1, 8, 64, 1000", touch_mix, 0 },
    { "the same, distance 0.4", touch_mix, 0.4 },
    { "recency + frequency", touch_hobbit, 0 },
    { "sequence counts, early layers", touch_infinity, 0 },
    { "(told the next pass)", touch_told1, 0 },
    { "(told the next two)", touch_told2, 0 },
};

static uint32_t victim_slot(const cache *c, const candidate *p, uint32_t layer)
{
    uint32_t victim = NONE, n_layer = c->r->t->n_layer;
    double least = INFINITY;
    for (uint32_t s = 0; s < c->capacity; s++) {
        uint32_t e = c->in[s];
        if (c->step_of[e] == c->step + 1) continue;     /* in use by this step */
        uint32_t before = (e / c->r->t->n_expert + n_layer - layer - 1) % n_layer;
        double value = c->value[e] * (1 - p->distance * before / n_layer);
        if (value < least) {
            least = value;
            victim = s;
        }
    }
    return victim;
}

static uint64_t play_step(cache *c, const candidate *p)
{
    const replay *r = c->r;
    const sl_trace_step *s = &r->t->steps[c->step];
    const uint32_t *uses = r->uses + r->first_use[c->step];
    uint32_t n = (uint32_t)(r->first_use[c->step + 1] - r->first_use[c->step]);
    uint64_t hits = 0;
    p->touch(c, s, uses, n);
    for (uint32_t i = 0; i < n; i++) {
        hits += c->slot_of[uses[i]] != NONE;
        c->step_of[uses[i]] = c->step + 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (c->slot_of[uses[i]] != NONE) continue;
        uint32_t slot = c->n_full < c->capacity ? c->n_full++ : victim_slot(c, p, s->layer);
        if (slot == NONE) continue;
        if (c->in[slot] != NONE) c->slot_of[c->in[slot]] = NONE;
        c->in[slot] = uses[i];
        c->slot_of[uses[i]] = slot;
    }
    return s->pass >= r->from_pass ? hits : 0;
}

static uint64_t play_candidate(const replay *r, const candidate *p, uint32_t capacity)
{
    cache c = { .r = r, .capacity = capacity };
    uint64_t hits = 0;
    size_t n = r->n_experts;
    c.in = need(malloc((capacity + 1ull) * sizeof *c.in));
    c.slot_of = need(malloc(n * sizeof *c.slot_of));
    c.step_of = need(calloc(n, sizeof *c.step_of));
    c.value = need(calloc(n * 5, sizeof *c.value));
    for (uint32_t k = 0; k < 4; k++) c.f[k] = c.value + n * (k + 1);
    memset(c.in, 0xff, (capacity + 1ull) * sizeof *c.in);
    memset(c.slot_of, 0xff, n * sizeof *c.slot_of);
    for (; c.step < r->t->n_steps; c.step++) hits += play_step(&c, p);
    free(c.in);
    free(c.slot_of);
    free(c.step_of);
    free(c.value);
    return hits;
}

/* ---- the library's policies ---- */

typedef struct library {
    const char *name;
    sl_policy policy;
    float half_life;
    bool per_layer;
} library;

static const library libraries[] = {
    { "markov (default)", SL_POLICY_MARKOV, 0, false },
    { "markov, per layer", SL_POLICY_MARKOV, 0, true },
    { "lfu 8", SL_POLICY_LFU, 8, false },
    { "lfu 32", SL_POLICY_LFU, 32, false },
    { "lfu 32, per layer", SL_POLICY_LFU, 32, true },
    { "lfu 128", SL_POLICY_LFU, 128, false },
    { "lfu 1000", SL_POLICY_LFU, 1000, false },
    { "lfu 1e6", SL_POLICY_LFU, 1e6f, false },
    { "lru", SL_POLICY_LRU, 0, false },
    { "lru, per layer", SL_POLICY_LRU, 0, true },
    { "static, in hindsight", SL_POLICY_STATIC, 0, false },
};

/* UINT64_MAX: the cache cannot be made (fewer slots than pools). */
static uint64_t play_library(const replay *r, const library *l, uint32_t capacity)
{
    float *popular = need(calloc(r->n_experts, sizeof *popular));
    for (uint64_t i = 0; i < r->n_uses; i++) popular[r->uses[i]]++;
    sl_ecache_params p = { .n_classes = 1, .class_slots = &capacity, .policy = l->policy,
                           .per_layer = l->per_layer, .half_life = l->half_life,
                           .popularity = popular };
    sl_trace_hits h;
    sl_status st = sl_trace_play(r->ctx, r->t, &p, r->from_pass, &h);
    free(popular);
    return st == SL_OK ? h.hits : UINT64_MAX;
}

/* ---- the table ---- */

typedef struct table {
    bool csv;
    const char *trace;
    uint32_t n_shares, percent[MAX_SHARES];
    uint64_t best[MAX_SHARES];      /* of Belady with bypass */
    uint64_t n_counted;
} table;

static void print_head(const table *t)
{
    if (t->csv) return;
    printf("| policy |");
    for (uint32_t i = 0; i < t->n_shares; i++) printf(" %u %% |", t->percent[i]);
    printf("\n|---|");
    for (uint32_t i = 0; i < t->n_shares; i++) printf("--:|");
    printf("\n");
}

/* hits [n_shares], UINT64_MAX: none. */
static void print_row(const table *t, const char *name, const uint64_t *hits)
{
    if (!t->csv) printf("| %s |", name);
    for (uint32_t i = 0; i < t->n_shares; i++) {
        double rate = 100.0 * (double)hits[i] / (double)t->n_counted;
        double share = t->best[i] ? 100.0 * (double)hits[i] / (double)t->best[i] : 100;
        if (t->csv && hits[i] != UINT64_MAX)
            printf("%s,%s,%u,%" PRIu64 ",%.3f,%.2f\n", t->trace, name, t->percent[i], hits[i],
                   rate, share);
        else if (!t->csv && hits[i] == UINT64_MAX) printf(" - |");
        else if (!t->csv) printf(" %.1f (%.1f) |", rate, share);
    }
    if (!t->csv) printf("\n");
    fflush(stdout);
}

static uint32_t slots_of(const replay *r, uint32_t percent)
{
    uint32_t n = (uint32_t)(((uint64_t)r->n_experts * percent + 50) / 100);
    return SL_MAX(n, 1);
}

static void print_table(const replay *r, table *t)
{
    uint64_t hits[MAX_SHARES];
    t->n_counted = r->n_uses - r->first_counted;
    if (!t->csv)
        printf("\n%s: %s, %u layers of %u experts, %u a row; %" PRIu64 " uses counted. "
               "Hits in %% of uses (in %% of belady with bypass):\n\n", t->trace, r->t->model,
               r->t->n_layer, r->t->n_expert, r->t->n_used, t->n_counted);
    print_head(t);
    for (int bypass = 1; bypass >= 0; bypass--) {
        for (uint32_t i = 0; i < t->n_shares; i++)
            hits[i] = belady_hits(r->uses, r->n_uses, r->n_experts, slots_of(r, t->percent[i]),
                                  bypass, r->first_counted);
        if (bypass) memcpy(t->best, hits, sizeof t->best);
        print_row(t, bypass ? "belady with bypass" : "belady", hits);
    }
    for (size_t l = 0; l < SL_LEN(libraries); l++) {
        for (uint32_t i = 0; i < t->n_shares; i++)
            hits[i] = play_library(r, &libraries[l], slots_of(r, t->percent[i]));
        print_row(t, libraries[l].name, hits);
    }
    for (size_t c = 0; c < SL_LEN(candidates); c++) {
        for (uint32_t i = 0; i < t->n_shares; i++)
            hits[i] = play_candidate(r, &candidates[c], slots_of(r, t->percent[i]));
        print_row(t, candidates[c].name, hits);
    }
}

static bool parse_shares(table *t, char *text)
{
    t->n_shares = 0;
    for (char *p = strtok(text, ","); p; p = strtok(NULL, ",")) {
        unsigned long v = strtoul(p, NULL, 10);
        if (!v || v > 100 || t->n_shares == MAX_SHARES) return false;
        t->percent[t->n_shares++] = (uint32_t)v;
    }
    return t->n_shares > 0;
}

int main(int argc, char **argv)
{
    table t = { .n_shares = 5, .percent = { 6, 12, 25, 50, 75 } };
    uint64_t from_pass = 0;
    bool good = true;
    int i = 1;
    for (; good && i < argc && argv[i][0] == '-'; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--csv")) t.csv = true;
        else if (!strcmp(argv[i], "--from") && more) from_pass = strtoull(argv[++i], NULL, 10);
        else good = !strcmp(argv[i], "--shares") && more && parse_shares(&t, argv[++i]);
    }
    if (!good || i >= argc) {
        fprintf(stderr, "usage: replay [--csv] [--shares 12,25,50] [--from PASS] TRACE...\n");
        return 2;
    }
    if (t.csv) printf("trace,policy,percent,hits,hit_rate,share\n");
    for (; i < argc; i++) {
        sl_trace *trace = NULL;
        replay r = { .ctx = sl_ctx_create(NULL, NULL), .from_pass = from_pass };
        if (sl_trace_load(r.ctx, argv[i], &trace) != SL_OK) {
            fprintf(stderr, "replay: %s\n", sl_error(r.ctx));
            return 1;
        }
        t.trace = argv[i];
        r.t = trace;
        list_uses(&r);
        print_table(&r, &t);
        free(r.uses);
        free(r.first_use);
        sl_trace_free(r.ctx, &trace);
        sl_ctx_destroy(&r.ctx);
    }
    return 0;
}
