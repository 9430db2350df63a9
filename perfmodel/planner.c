/* perfmodel/planner.c - the search for a plan, its reasons, and what more of each resource gives.
 * Everything is deterministic: equal numbers in, equal plan out. */
#include "perfmodel/sl_planner.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_SEEN = 320,             /* candidates of one search */
    MAX_SIMULATED = 40, MAX_SHARED = 80,        /* with an accelerator: twice the knobs */
    MAX_VALUES = 12,            /* of a knob */
    SWEEPS = 3
};
#define TIE 1.01                /* plans whose times differ by less are equal */

/* Bytes in flight, and reads at least: what keeps a disk busy while experts are computed. */
#define FLYING ((uint32_t)32 << 20)
#define MIN_DEPTH 16u
#define MAX_DEPTH 64u

#define NEVER ((uint32_t)1 << 30)       /* rows that no pass has */

typedef enum knob {
    KNOB_ROWS, KNOB_THREADS, KNOB_READS, KNOB_AHEAD, KNOB_DENSE,
    /* of an accelerator: fields of sl_plan_params */
    KNOB_KV, KNOB_PROMPTS, KNOB_HEAD, KNOB_LANES, KNOB_STAY, KNOB_SEND, KNOB_SEND_ALL,
    N_KNOBS
} knob;

typedef struct candidate {
    sl_plan_params params;
    double bound_s, s;          /* of the load; s < 0: not simulated */
    bool impossible;            /* does not fit */
} candidate;

typedef struct search {
    sl_ctx *ctx;
    const sl_machine *machine;
    const sl_shape *shape;
    const sl_miss_model *miss;
    const sl_planner_params *p;
    sl_plan_params base;        /* with threads and the accelerator's wishes filled in */
    sl_plan base_plan;
    candidate seen[MAX_SEEN];
    uint32_t n_seen, n_simulated;
    uint32_t best;              /* of those simulated */
    sl_forecast best_f;
} search;

static double load_s(const sl_forecast *f)
{
    return f->prompt.seconds + f->decode.seconds;
}

/* ---- knobs ---- */

/* The field of a knob that has one. */
static uint32_t *field(sl_plan_params *p, knob k)
{
    switch (k) {
    case KNOB_THREADS: return &p->n_threads;
    case KNOB_ROWS: return &p->max_rows;
    case KNOB_DENSE: return &p->max_dense_layers;
    case KNOB_KV: return &p->kv_on;
    case KNOB_PROMPTS: return &p->prompts_on;
    case KNOB_HEAD: return &p->head_on;
    case KNOB_LANES: return &p->n_lanes;
    case KNOB_STAY: return &p->n_stay;
    case KNOB_SEND: return &p->send_rows;
    case KNOB_SEND_ALL: return &p->send_all_rows;
    case KNOB_READS: case KNOB_AHEAD: case N_KNOBS: break;
    }
    return NULL;
}

static uint32_t value(const sl_plan_params *p, knob k)
{
    sl_plan_params copy = *p;
    return *field(&copy, k);
}

static bool same(const sl_plan_params *a, const sl_plan_params *b, knob k)
{
    if (k == KNOB_READS) return a->read_bytes == b->read_bytes && a->read_depth == b->read_depth;
    if (k == KNOB_AHEAD) return a->no_ahead == b->no_ahead;
    return value(a, k) == value(b, k);
}

static void copy(sl_plan_params *to, const sl_plan_params *from, knob k)
{
    if (k == KNOB_READS) {
        to->read_bytes = from->read_bytes;
        to->read_depth = from->read_depth;
    } else if (k == KNOB_AHEAD) {
        to->no_ahead = from->no_ahead;
    } else {
        *field(to, k) = value(from, k);
    }
}

static uint32_t differences(const sl_plan_params *a, const sl_plan_params *b)
{
    uint32_t n = 0;
    for (knob k = 0; k < N_KNOBS; k++) n += !same(a, b, k);
    return n;
}

/* Adds p to v unless an equal value of the knob is there. */
static uint32_t add_value(sl_plan_params *v, uint32_t n, const sl_plan_params *p, knob k)
{
    for (uint32_t i = 0; i < n; i++)
        if (same(&v[i], p, k)) return n;
    assert(n < MAX_VALUES);
    v[n] = *p;
    return n + 1;
}

/* Cores that an emulated accelerator leaves to the CPU's part. */
static uint32_t free_cores(const sl_machine *m, const sl_accel *a)
{
    uint32_t taken = a->kind == SL_ACCEL_EMU ? a->n_cores : 0;
    return m->id.cores > taken ? m->id.cores - taken : 1;
}

static uint32_t thread_values(const search *s, sl_plan_params p, sl_plan_params *v, uint32_t n)
{
    uint32_t cores = free_cores(s->machine, &s->base.accel);
    const uint32_t want[] = { cores, cores - cores / 4, (cores + 1) / 2, (cores + 3) / 4, 1 };
    for (size_t i = 0; i < SL_LEN(want); i++) {
        p.n_threads = want[i];
        n = add_value(v, n, &p, KNOB_THREADS);
    }
    return n;
}

/* Passes longer than the prompt or the context are none. */
static uint32_t row_values(const search *s, sl_plan_params p, sl_plan_params *v, uint32_t n)
{
    uint32_t most = SL_MIN(s->p->load.n_prompt, s->base_plan.n_ctx);
    for (uint32_t rows = 32; rows <= 2048; rows *= 2) {
        p.max_rows = rows;
        n = add_value(v, n, &p, KNOB_ROWS);
        if (rows >= most) break;
    }
    return n;
}

static uint32_t read_values(sl_plan_params p, sl_plan_params *v, uint32_t n)
{
    for (uint32_t bytes = 128 << 10; bytes <= 2 << 20; bytes *= 2) {
        p.read_bytes = bytes;
        p.read_depth = SL_MIN(SL_MAX(FLYING / bytes, MIN_DEPTH), MAX_DEPTH);
        n = add_value(v, n, &p, KNOB_READS);
    }
    return n;
}

/* Leading layers whose dense weights stay: in RAM, or on an accelerator. */
static uint32_t most_dense(const search *s)
{
    return s->base.accel.kind ? s->base_plan.split.n_dense_layers : s->base_plan.n_dense_layers;
}

static uint32_t dense_values(const search *s, sl_plan_params p, sl_plan_params *v, uint32_t n)
{
    uint32_t most = most_dense(s);
    const uint32_t want[] = { most ? most - 1 : 0, most - most / 4, most / 2, 0 };
    for (size_t i = 0; i < SL_LEN(want) && most; i++) {
        p.max_dense_layers = want[i];
        n = add_value(v, n, &p, KNOB_DENSE);
    }
    return n;
}

/* Rows that an expert gets of a pass of the prompt: around that, some experts get more than they
 * take to be worth sending and some get fewer, and both sides have work. */
static uint32_t rows_of_expert(const search *s, const sl_plan_params *p)
{
    uint32_t n_expert = 1, n_used = 1;
    for (uint32_t i = 0; i < s->shape->n_layer; i++) {
        const sl_layer_shape *l = &s->shape->layers[i];
        if (l->n_expert > n_expert) n_expert = l->n_expert, n_used = l->n_used;
    }
    uint64_t rows = SL_MIN(p->max_rows, s->p->load.n_prompt);
    return (uint32_t)SL_MAX(rows * n_used / n_expert, 1);
}

/* Of the accelerator's knobs. */
static uint32_t shared_values(const search *s, sl_plan_params p, knob k, sl_plan_params *v,
                              uint32_t n)
{
    uint32_t stay = s->base_plan.split.n_stay, all = s->base.send_all_rows;
    uint32_t mean = rows_of_expert(s, &p);
    const struct { uint32_t n, at[MAX_VALUES - 1]; } want[N_KNOBS] = {
        [KNOB_KV] = { 2, { SL_ON_CPU, SL_ON_DEVICE } },
        [KNOB_PROMPTS] = { 2, { SL_ON_CPU, SL_ON_DEVICE } },
        [KNOB_HEAD] = { 2, { SL_ON_CPU, SL_ON_DEVICE } },
        [KNOB_LANES] = { 2, { 1, 2 } },
        [KNOB_STAY] = { 4, { stay - stay / 4, stay / 2, stay / 4, 0 } },
        [KNOB_SEND] = { 11, { 1, 2, 3, 8, 16, 32, 96, SL_MAX(2 * mean / 3, 1), mean,
                              SL_MAX(3 * mean / 2, 1), NEVER } },
        [KNOB_SEND_ALL] = { 5, { SL_MAX(all / 2, 1), SL_MIN(2 * all, NEVER),
                                 SL_MIN(4 * all, NEVER), SL_MIN(8 * all, NEVER), NEVER } },
    };
    for (uint32_t i = 0; i < want[k].n; i++) {
        *field(&p, k) = want[k].at[i];
        n = add_value(v, n, &p, k);
    }
    return n;
}

/* Is the knob no choice of ours: the caller's, or without effect? */
static bool fixed(const search *s, knob k)
{
    const sl_planner_params *q = s->p;
    const bool streamed = s->base_plan.weights == SL_WEIGHTS_STREAMED;
    switch (k) {
    case KNOB_THREADS: return q->fix_threads;
    case KNOB_ROWS: return q->fix_rows;
    case KNOB_READS: return q->fix_reads || !streamed;
    case KNOB_AHEAD: return q->fix_ahead || !streamed;
    case KNOB_DENSE: return q->fix_dense || !(streamed || s->base.accel.kind);
    default: return !s->base.accel.kind || value(&q->base, k) != SL_PLAN_AUTO;
    }
}

/* Values of a knob that are worth a look, the others as in p; the base's own comes first. */
static uint32_t values(const search *s, const sl_plan_params *p, knob k,
                       sl_plan_params v[MAX_VALUES])
{
    sl_plan_params other = *p;
    copy(&other, &s->base, k);
    uint32_t n = add_value(v, 0, &other, k);
    if (fixed(s, k) || (k == KNOB_PROMPTS && p->kv_on == SL_ON_DEVICE)) return n;
    switch (k) {
    case KNOB_THREADS: return thread_values(s, other, v, n);
    case KNOB_ROWS: return row_values(s, other, v, n);
    case KNOB_READS: return read_values(other, v, n);
    case KNOB_AHEAD:
        other.no_ahead = !other.no_ahead;
        return add_value(v, n, &other, k);
    case KNOB_DENSE: return dense_values(s, other, v, n);
    default: return shared_values(s, other, k, v, n);
    }
}

/* ---- candidates ---- */

static sl_forecast_in input(const search *s, const sl_plan *plan)
{
    return (sl_forecast_in){ .machine = s->machine, .shape = s->shape, .plan = plan,
                             .miss = s->miss, .load = s->p->load };
}

/* Does the plan do what was asked for? A lane for which there is no room or use is left out. */
static bool meets(const sl_plan *plan, const sl_plan_params *p)
{
    return !p->accel.kind || p->n_lanes == SL_PLAN_AUTO || plan->split.n_lanes == p->n_lanes;
}

/* The candidate's place in s->seen, bounded; MAX_SEEN: no room. */
static uint32_t bound(search *s, const sl_plan_params *params)
{
    for (uint32_t i = 0; i < s->n_seen; i++)
        if (!differences(&s->seen[i].params, params)) return i;
    if (s->n_seen == MAX_SEEN) return MAX_SEEN;
    candidate *c = &s->seen[s->n_seen];
    sl_plan plan;
    *c = (candidate){ .params = *params, .s = -1 };
    c->impossible =
        sl_plan_make(s->ctx, s->shape, params, &plan) != SL_OK || !meets(&plan, params);
    if (!c->impossible) {
        sl_forecast_in in = input(s, &plan);
        sl_forecast f = sl_stage1(&in);
        c->bound_s = load_s(&f);
    }
    return s->n_seen++;
}

static sl_status simulate(search *s, uint32_t i)
{
    candidate *c = &s->seen[i];
    sl_plan plan;
    sl_forecast f;
    if (c->s >= 0) return SL_OK;
    SL_TRY(sl_plan_make(s->ctx, s->shape, &c->params, &plan));
    sl_forecast_in in = input(s, &plan);
    SL_TRY(sl_sim_run(s->ctx, &in, NULL, NULL, &f));
    c->s = load_s(&f);
    if (!s->n_simulated++ || c->s < s->seen[s->best].s) {
        s->best = i;
        s->best_f = f;
    }
    return SL_OK;
}

/* Could it still be as good as the best, or equal to it? */
static bool worth(const search *s, const candidate *c)
{
    return !c->impossible && c->s < 0 && c->bound_s < s->seen[s->best].s * TIE;
}

/* Simulates the values of a knob around the best candidate, those with the least bounds first. */
static sl_status turn(search *s, knob k)
{
    sl_plan_params v[MAX_VALUES];
    uint32_t at[MAX_VALUES], n = values(s, &s->seen[s->best].params, k, v), n_at = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = bound(s, &v[i]), to = n_at;
        if (c == MAX_SEEN) break;
        while (to && s->seen[at[to - 1]].bound_s > s->seen[c].bound_s) to--;
        memmove(&at[to + 1], &at[to], (n_at - to) * sizeof *at);
        at[to] = c;
        n_at++;
    }
    for (uint32_t i = 0; i < n_at; i++)
        if (worth(s, &s->seen[at[i]])
            && s->n_simulated < (s->base.accel.kind ? MAX_SHARED : MAX_SIMULATED))
            SL_TRY(simulate(s, at[i]));
    return SL_OK;
}

/* Of candidates that are as good as the best the one with the fewest differences from the base;
 * the base itself where the best gains too little. */
static uint32_t pick(const search *s)
{
    double best_s = s->seen[s->best].s;
    uint32_t at = s->best, least = differences(&s->seen[at].params, &s->base);
    if (best_s >= s->seen[0].s * (1 - s->p->keep)) return 0;
    for (uint32_t i = 0; i < s->n_seen; i++) {
        const candidate *c = &s->seen[i];
        uint32_t n = differences(&c->params, &s->base);
        if (c->s < 0 || c->s > best_s * TIE) continue;
        if (n > least || (n == least && c->s >= s->seen[at].s)) continue;
        at = i;
        least = n;
    }
    return at;
}

/* From the best candidate back to the base, one knob at a time, as long as that costs nothing. */
static sl_status simplify(search *s)
{
    sl_plan_params p = s->seen[s->best].params;
    for (knob k = 0; k < N_KNOBS; k++) {
        sl_plan_params q = p;
        if (same(&p, &s->base, k)) continue;
        copy(&q, &s->base, k);
        uint32_t i = bound(s, &q);
        if (i == MAX_SEEN || s->seen[i].impossible) continue;
        if (worth(s, &s->seen[i])) SL_TRY(simulate(s, i));
        if (s->seen[i].s >= 0 && s->seen[i].s <= s->seen[s->best].s * TIE) p = q;
    }
    return SL_OK;
}

/* What the base leaves to the plan, as the plan does it; experts that stay: as many as fit. */
static void fill_base(search *s)
{
    const sl_split *x = &s->base_plan.split;
    const uint32_t did[N_KNOBS] = { [KNOB_KV] = x->kv, [KNOB_PROMPTS] = x->prompts,
                                    [KNOB_HEAD] = x->head, [KNOB_LANES] = x->n_lanes,
                                    [KNOB_STAY] = SL_PLAN_AUTO, [KNOB_SEND] = x->send_rows,
                                    [KNOB_SEND_ALL] = x->send_all_rows };
    for (knob k = KNOB_KV; x->accel.kind && k < N_KNOBS; k++)
        if (value(&s->base, k) == SL_PLAN_AUTO || k == KNOB_LANES) *field(&s->base, k) = did[k];
}

/* The ways to serve experts that are not there, pure ones and mixed: knobs that only help together
 * are not found one after another. */
static sl_status corners(search *s)
{
    for (int i = 0; i < 8; i++) {
        sl_plan_params p = s->base;
        if (i & 1 && !fixed(s, KNOB_STAY)) p.n_stay = 0;
        if (!fixed(s, KNOB_SEND)) p.send_rows = i & 2 ? NEVER : 1;
        if (i & 4 && !fixed(s, KNOB_SEND_ALL)) p.send_all_rows = NEVER;
        uint32_t at = bound(s, &p);
        if (at < MAX_SEEN && worth(s, &s->seen[at])) SL_TRY(simulate(s, at));
    }
    return SL_OK;
}

/* The best candidate's prompts as the work of both sides, which takes two knobs at once. */
static sl_status share_prompts(search *s)
{
    sl_plan_params p = s->seen[s->best].params;
    if (fixed(s, KNOB_SEND) || fixed(s, KNOB_SEND_ALL)) return SL_OK;
    p.send_rows = rows_of_expert(s, &p);
    p.send_all_rows = NEVER;
    uint32_t at = bound(s, &p);
    return at < MAX_SEEN && worth(s, &s->seen[at]) ? simulate(s, at) : SL_OK;
}

/* Until no knob helps. */
static sl_status sweep(search *s)
{
    for (uint32_t i = 0, before = UINT32_MAX; i < SWEEPS && before != s->best; i++) {
        before = s->best;
        for (knob k = 0; k < N_KNOBS; k++) SL_TRY(turn(s, k));
    }
    return SL_OK;
}

static sl_status run_search(search *s)
{
    SL_TRY(sl_plan_make(s->ctx, s->shape, &s->base, &s->base_plan));
    fill_base(s);
    s->n_seen = s->n_simulated = s->best = 0;
    bound(s, &s->base);
    SL_TRY(simulate(s, 0));
    if (s->base.accel.kind) SL_TRY(corners(s));
    SL_TRY(sweep(s));
    uint32_t before = s->best;
    if (s->base.accel.kind) SL_TRY(share_prompts(s));
    if (s->best != before) SL_TRY(sweep(s));
    return simplify(s);
}

/* ---- reasons ---- */

enum { TEXT = 64 };            /* bytes of a knob's value */

static void describe_shared(const sl_plan_params *p, knob k, char text[TEXT])
{
    uint32_t n = value(p, k);
    switch (k) {
    case KNOB_KV:
        snprintf(text, TEXT, "%s", n == SL_ON_DEVICE ? "keys and values on the device"
                                                     : "the CPU attends to keys and values in RAM");
        return;
    case KNOB_PROMPTS:
        snprintf(text, TEXT, "the %s attends to prompts", n == SL_ON_DEVICE ? "device" : "CPU");
        return;
    case KNOB_HEAD:
        snprintf(text, TEXT, "the head on the %s", n == SL_ON_DEVICE ? "device" : "CPU");
        return;
    case KNOB_LANES:
        snprintf(text, TEXT, "%s", n > 1 ? "two lanes that take turns" : "one lane");
        return;
    case KNOB_STAY:
        if (n == SL_PLAN_AUTO) snprintf(text, TEXT, "as many experts on the device as fit");
        else snprintf(text, TEXT, "%u experts of a layer on the device", n);
        return;
    case KNOB_SEND:
        if (n == NEVER) snprintf(text, TEXT, "the CPU computes missing experts");
        else if (n <= 1) snprintf(text, TEXT, "missing experts are sent up");
        else snprintf(text, TEXT, "missing experts are sent up for %u rows or more", n);
        return;
    default:
        if (n >= NEVER) snprintf(text, TEXT, "only experts that routers named are sent");
        else snprintf(text, TEXT, "passes of %u rows or more send all experts", n);
    }
}

static void describe(const search *s, const sl_plan_params *p, knob k, char text[TEXT])
{
    switch (k) {
    case KNOB_THREADS:
        snprintf(text, TEXT, "%u thread%s", p->n_threads, p->n_threads == 1 ? "" : "s");
        return;
    case KNOB_ROWS: snprintf(text, TEXT, "%u prompt tokens a pass", p->max_rows); return;
    case KNOB_READS:
        snprintf(text, TEXT, "%u reads of %u KiB in flight", p->read_depth, p->read_bytes >> 10);
        return;
    case KNOB_AHEAD: snprintf(text, TEXT, "%s", p->no_ahead ? "no lookahead" : "lookahead"); return;
    case KNOB_DENSE:
        snprintf(text, TEXT, "dense weights of %u layers %s",
                 SL_MIN(p->max_dense_layers, most_dense(s)),
                 p->accel.kind ? "on the device" : "in RAM");
        return;
    default: describe_shared(p, k, text);
    }
}

/* The quickest other value of a knob, simulated unless its bound is slower than the choice already;
 * MAX_SEEN: it has none. */
static sl_status next_best(search *s, const candidate *c, knob k, uint32_t *ret)
{
    sl_plan_params v[MAX_VALUES];
    uint32_t n = values(s, &c->params, k, v);
    double least = INFINITY;
    *ret = MAX_SEEN;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = same(&v[i], &c->params, k) ? MAX_SEEN : bound(s, &v[i]);
        if (at == MAX_SEEN || s->seen[at].impossible) continue;
        if (s->seen[at].bound_s < SL_MIN(least, c->s)) SL_TRY(simulate(s, at));
        double t = s->seen[at].s >= 0 ? s->seen[at].s : s->seen[at].bound_s;
        if (t < least) least = t, *ret = at;
    }
    return SL_OK;
}

/* One line for each knob that had a choice: its value, and the best other one. */
static sl_status explain(search *s, uint32_t chosen, sl_choice *ret)
{
    const candidate *c = &s->seen[chosen];
    ret->n_why = 0;
    for (knob k = 0; k < N_KNOBS; k++) {
        uint32_t other;
        SL_TRY(next_best(s, c, k, &other));
        if (other == MAX_SEEN) continue;
        char value[TEXT], instead[TEXT], more[64];
        bool simulated = s->seen[other].s >= 0;
        double percent =
            100 * ((simulated ? s->seen[other].s : s->seen[other].bound_s) / c->s - 1);
        const char *at_least = simulated ? "" : "at least ";
        describe(s, &c->params, k, value);
        describe(s, &s->seen[other].params, k, instead);
        if (fabs(percent) < 1) snprintf(more, sizeof more, "would be as quick");
        else
            snprintf(more, sizeof more, "would take %s%.0f %% %s", at_least, fabs(percent),
                     percent > 0 ? "longer" : "less: too little to trust");
        snprintf(ret->why[ret->n_why++], sizeof ret->why[0], "%s: %s %s", value, instead, more);
    }
    return SL_OK;
}

/* ---- more of everything ---- */

/* What binds a product of so many rows: the weights' way from RAM, or the best rate of its curve.
 * The part that grows gets faster, the other stays a floor. */
static void grow_gemm(const sl_machine *m, sl_machine_gemm *g, sl_resource on, double factor)
{
    const sl_type_info *t = sl_type_get(g->type);
    double best = 0, bytes = (double)t->block_bytes / t->block_elems;
    for (uint32_t i = 0; i < g->n; i++) best = fmax(best, g->at[i].ops_s);
    for (uint32_t i = 0; i < g->n; i++) {
        sl_machine_gemm_point *p = &g->at[i];
        double most = on == SL_RES_DRAM ? best
                                        : p->rows * sl_machine_dram_s(m, g->threads) / bytes;
        p->ops_s = fmax(p->ops_s, fmin(p->ops_s * factor, most));
    }
}

void sl_planner_grow(sl_machine *m, sl_resource on, double factor)
{
    assert(factor >= 1);
    for (uint32_t i = 0; i < m->n_gpus && on == SL_RES_H2D; i++) {
        m->gpu[i].h2d_bytes_s *= factor;
        m->gpu[i].d2h_bytes_s *= factor;
    }
    if (on == SL_RES_DISK)
        for (uint32_t i = 0; i < m->disk.n_curves; i++)
            for (uint32_t k = 0; k < m->disk.curve[i].n; k++)
                m->disk.curve[i].at[k].bytes_s *= factor;
    if (on != SL_RES_DRAM && on != SL_RES_CPU) return;
    for (uint32_t i = 0; i < m->n_gemms; i++) grow_gemm(m, &m->gemm[i], on, factor);
    for (uint32_t i = 0; i < m->n_costs; i++) {
        sl_machine_cost *c = &m->cost[i];
        if (on == SL_RES_DRAM) c->decode_flops_s *= factor, c->decode_bytes_s *= factor;
        else c->prefill_flops_s *= factor, c->elem_s /= factor;
    }
    for (uint32_t i = 0; i < m->n_dram && on == SL_RES_DRAM; i++) m->dram_read[i].value *= factor;
    for (int i = 0; i < SL_N_PEAKS && on == SL_RES_CPU; i++) {
        m->peak_core[i] *= factor;
        m->peak_all[i] *= factor;
    }
}

/* Of what the plan is given, not the machine. */
struct more { uint64_t ram_bytes, vram_bytes; double link_bytes_s; };

/* The accelerator's knobs that the caller left to us are searched again. */
static void free_wishes(const search *s, sl_plan_params *p)
{
    for (knob k = KNOB_KV; k < N_KNOBS; k++)
        if (value(&s->p->base, k) == SL_PLAN_AUTO) *field(p, k) = SL_PLAN_AUTO;
}

/* The load's phases under the best plan of a machine or budget that has more. */
static sl_status add_gain(const search *from, const sl_plan_params *start, const sl_forecast *now,
                          const sl_machine *m, const struct more *more, sl_resource on,
                          const char *what, sl_choice *ret)
{
    search s;
    sl_planner_params p = *from->p;
    p.base = *start;
    p.base.ram_bytes += more->ram_bytes;
    p.base.accel.mem_bytes += more->vram_bytes;
    if (p.base.accel.up_bytes_s > 0) p.base.accel.up_bytes_s += more->link_bytes_s;
    if (p.base.accel.down_bytes_s > 0) p.base.accel.down_bytes_s += more->link_bytes_s;
    free_wishes(from, &p.base);
    s.ctx = from->ctx;
    s.machine = m;
    s.shape = from->shape;
    s.miss = from->miss;
    s.p = &p;
    s.base = p.base;
    SL_TRY(run_search(&s));
    const sl_forecast *f = &s.best_f;
    sl_gain *g = &ret->gains[ret->n_gains++];
    *g = (sl_gain){ .on = on };
    snprintf(g->what, sizeof g->what, "%s", what);
    if (now->prompt.seconds > 0) g->prompt_tok_per_s = f->prompt.tok_per_s - now->prompt.tok_per_s;
    if (now->decode.seconds > 0) g->decode_tok_per_s = f->decode.tok_per_s - now->decode.tok_per_s;
    return SL_OK;
}

static sl_status shared_gains(const search *s, const sl_plan_params *start, sl_choice *ret)
{
    const sl_forecast *now = &s->best_f;
    const double link = 1e10;
    struct more more = { .vram_bytes = (uint64_t)4 << 30 };
    SL_TRY(add_gain(s, start, now, s->machine, &more, SL_RES_VRAM, "+4 GiB on the device", ret));
    sl_machine_gpu g;
    sl_machine m = *s->machine;
    if (!sl_forecast_gpu(&m, &start->accel, &g)) return SL_OK;
    more = (struct more){ .link_bytes_s = link };
    sl_planner_grow(&m, SL_RES_H2D, (g.h2d_bytes_s + link) / g.h2d_bytes_s);
    return add_gain(s, start, now, &m, &more, SL_RES_H2D, "+10 GB/s link", ret);
}

static sl_status add_gains(const search *s, sl_choice *ret)
{
    const sl_plan_params *start = &s->seen[s->best].params;
    const bool streamed = s->base_plan.weights == SL_WEIGHTS_STREAMED;
    const sl_forecast *now = &s->best_f;
    const struct more none = { 0 }, ram = { .ram_bytes = (uint64_t)4 << 30 };
    sl_machine m;
    uint32_t bytes, depth;
    double best;
    if (streamed && start->ram_bytes)
        SL_TRY(add_gain(s, start, now, s->machine, &ram, SL_RES_DISK, "+4 GiB RAM", ret));
    if (streamed && sl_machine_disk_best(s->machine, &bytes, &depth, &best)) {
        m = *s->machine;
        sl_planner_grow(&m, SL_RES_DISK, (best + 1e9) / best);
        SL_TRY(add_gain(s, start, now, &m, &none, SL_RES_DISK, "+1 GB/s disk", ret));
    }
    if (start->accel.kind) SL_TRY(shared_gains(s, start, ret));
    m = *s->machine;
    best = sl_machine_dram_s(&m, m.id.cores);
    sl_planner_grow(&m, SL_RES_DRAM, (best + 1e10) / best);
    SL_TRY(add_gain(s, start, now, &m, &none, SL_RES_DRAM, "+10 GB/s DRAM", ret));
    m = *s->machine;
    sl_planner_grow(&m, SL_RES_CPU, 2);
    return add_gain(s, start, now, &m, &none, SL_RES_CPU,
                    start->accel.kind ? "twice the CPU's arithmetic" : "twice the arithmetic", ret);
}

sl_status sl_planner_run(sl_ctx *ctx, const sl_machine *m, const sl_shape *shape,
                         const sl_miss_model *miss, const sl_planner_params *p, bool gains,
                         sl_choice *ret)
{
    assert(ctx && m && shape && miss && p && ret && p->load.n_prompt);
    search s = { .ctx = ctx, .machine = m, .shape = shape, .miss = miss, .p = p, .base = p->base };
    sl_machine_gpu g;
    if (p->base.accel.kind && !sl_forecast_gpu(m, &p->base.accel, &g))
        return sl_fail(ctx, SL_E_ARG, "GPU %u: the machine's file does not describe it",
                       p->base.accel.index);
    s.base.resident |= s.base.accel.kind != SL_ACCEL_NONE;      /* no forecast of disk and device */
    if (!s.base.n_threads) s.base.n_threads = free_cores(m, &s.base.accel);
    if (!s.base.read_bytes) s.base.read_bytes = 512 << 10;
    if (!s.base.read_depth) s.base.read_depth = MAX_DEPTH;
    SL_TRY(run_search(&s));
    uint32_t at = pick(&s);
    sl_choice c = { .params = s.seen[at].params, .seconds = s.seen[at].s, .base_s = s.seen[0].s,
                    .best_s = s.seen[s.best].s };
    SL_TRY(sl_plan_make(ctx, shape, &c.params, &c.plan));
    sl_forecast_in in = input(&s, &c.plan);
    c.bound = sl_stage1(&in);
    SL_TRY(sl_sim_run(ctx, &in, NULL, NULL, &c.forecast));
    SL_TRY(explain(&s, at, &c));
    c.n_tried = s.n_seen;
    c.n_simulated = s.n_simulated;
    if (gains) SL_TRY(add_gains(&s, &c));
    *ret = c;
    return SL_OK;
}
