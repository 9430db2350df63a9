/* perfmodel/sim.c - stage 2: one driver walks the steps of a pass in their order (runtime/exec.c),
 * and a disk delivers what it asked for meanwhile (offload/stream.c). All threads together are one
 * server, since a stage ends with a barrier.
 * The disk: reads are delivered in the order in which they were asked for, at the machine's rate
 * for so many requests of that size in flight; new ones start only when the driver calls the store,
 * so a disk that is quick with what the depth allows waits for a long stage to end. An idle disk
 * needs its latency first: n requests take max(n s / B(s, n), latency + n s / best B(s)); they
 * share it, so none is there before all that fly with it could be.
 * While both are at work each keeps the share of its speed that the machine file says, the CPU of
 * the part of its time in which it waits for memory. Where a host copies what is read and both
 * have one CPU quota, all stand still from when it is used up to the end of its period.
 * Chance is spread evenly: the i-th draw of a distribution is its quantile at i times the golden
 * ratio, so results are the same every time and their error falls with the number of draws. */
#include "perfmodel/sim.h"
#include "perfmodel/sim_split.h"
#include "perfmodel/sl_bound.h"
#include "perfmodel/work.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    AHEAD_MAX = 64,                             /* offload/stream.c: experts read ahead */
    DRAWS = 2048,                               /* layers' turns that decoding is averaged over */
    MIN_TOKENS = 8, MAX_TOKENS = 256,           /* ... in so many passes */
    MAX_PASSES = 6                              /* of a prompt's, the others are between these */
};
#define GOLDEN 0.6180339887498949
/* A layer's parts in a pass of some rows. Equal layers share one. */
struct parts {
    const sl_layer_shape *of;
    work qkv, post, route, all_rows;            /* all_rows: dense FFN or shared expert */
    double n_experts;                           /* distinct ones that the router chooses */
    work expert[QUANTILES];              /* the busiest sixteenth of them last */
    uint32_t requests;                          /* of one expert's reads */
    double request_bytes;
    double cdf[SL_MAX_MISSED + 1];              /* of a turn's misses, one row */
};

struct read { double end, earliest_s; };

enum { RATES = 64 };
struct disk {
    uint32_t depth, max_request;
    double latency_s;
    double host_s;              /* CPU time of the host for a byte */
    double lag_s;               /* until an idle disk delivers */
    double bytes_s;             /* then */
    /* bytes asked for, of these in requests that were started, of these delivered */
    double asked, started, got;
    double request_bytes;       /* of the latest */
    uint64_t n_asked, n_started, n_landed;      /* reads; the first is 1 */
    struct read *ring;          /* [cap] of those that have not landed */
    uint32_t cap;
    /* rates at so many requests in flight (modulo RATES), which are asked for again and again */
    struct rate { double size, flying, bytes_s; } rates[RATES];
};

struct sim {
    const sl_forecast_in *in;
    const sl_shape *shape;
    const sl_plan *plan;
    const sl_machine *m;
    uint32_t threads;
    sl_machine_cost cost;
    double dram_s;
    bool streamed;
    sl_step *steps;
    uint32_t n_steps;
    struct parts *parts;        /* [n_layer], n_parts of them in use */
    uint32_t *parts_of;         /* [n_layer] */
    uint32_t n_parts;
    /* the pass */
    double rows, logits;
    const sl_rows *runs;        /* [n_runs] of each sequence */
    uint32_t n_runs;
    double parts_rows;          /* that the parts were made for; 0: none */
    bool settled;               /* the slots hold what earlier passes left there */
    double now, began;
    double quota_end_s, quota_left_s;   /* of the period at hand: see read_host_s */
    struct disk disk;
    /* dense weights of layers that do not keep theirs: their reads, and as stream.c counts them */
    uint64_t section[2], ring_at, ring_next;
    uint64_t draw;
    double scale;               /* of what a layer's experts take: see draw_rows */
    /* reads of the experts of the layer at hand and of the next one; 0: none, HIT */
    uint64_t *have[2];          /* [n_expert] */
    uint32_t n_expert;          /* most of a layer */
    uint32_t *class_first;      /* [n_layer] experts of the same class in layers before it */
    uint32_t n_ahead, ahead_at; /* experts of the next layer; where to look for more */
    double busy[SL_N_RESOURCES], wait;
    sl_timeline *line;
    uint32_t last[2];           /* spans of the CPU and of the disk that may go on */
    const sl_step *step;
    sim_split *split;           /* an accelerator has its part; NULL: none */
};

#define HIT UINT64_MAX
#define NO_SPAN UINT32_MAX

/* ---- the picture ---- */

static void span(sim *s, sl_resource on, double from, double to, bool waiting)
{
    sl_timeline *t = s->line;
    uint32_t *last = &s->last[on == SL_RES_DISK];
    if (!t || to <= from) return;
    sl_span now = { .on = on, .kind = s->step->kind, .layer = s->step->layer,
                    .from_s = from - s->began, .to_s = to - s->began, .waiting = waiting };
    if (*last != NO_SPAN) {
        sl_span *l = &t->spans[*last];
        if (l->kind == now.kind && l->layer == now.layer && l->waiting == waiting
            && now.from_s - l->to_s < 1e-9) {
            l->to_s = now.to_s;
            return;
        }
    }
    *last = t->n < t->cap ? t->n : NO_SPAN;
    if (t->n < t->cap) t->spans[t->n] = now;
    t->n++;
}

/* ---- the disk ---- */

static double disk_rate(sim *s, double size, double flying)
{
    struct rate *r = &s->disk.rates[(uint32_t)flying % RATES];
    if (r->size != size || r->flying != flying)
        *r = (struct rate){ size, flying, sl_machine_disk_s(s->m, size, flying) };
    /* what fills the slots was not read before */
    bool first = !s->settled && s->m->disk.first_bytes_s > 0;
    return first ? fmin(r->bytes_s, s->m->disk.first_bytes_s) : r->bytes_s;
}

/* Starts what the depth allows, as every call of the store does; without the time that it takes
 * the driver. Returns how many requests. */
static double start_reads(sim *s)
{
    struct disk *d = &s->disk;
    double size = d->request_bytes, until = fmin(d->asked, d->got + d->depth * size);
    double n = (until - d->started) / size;
    if (!(n > 1e-6)) return 0;
    if (d->started - d->got < 1) d->lag_s = d->latency_s;   /* it was idle */
    d->started = until;
    double left = until - d->got, flying = fmin(ceil(left / size - 1e-6), d->depth);
    double rate = disk_rate(s, size, flying), best = fmax(rate, disk_rate(s, size, d->depth));
    /* nobody measured a disk: it takes no time */
    double whole = rate > 0 ? fmax(left / rate, d->lag_s + left / best) : d->lag_s;
    d->bytes_s = left / (whole - d->lag_s);
    for (; d->n_started < d->n_asked; d->n_started++) {
        struct read *r = &d->ring[d->n_started % d->cap];
        if (r->end > d->started + 0.5) break;
        r->earliest_s = s->now + whole;
    }
    return n;
}

/* Queues `bytes` as n requests; returns the read's number. */
static uint64_t ask(sim *s, double bytes, uint32_t n)
{
    struct disk *d = &s->disk;
    assert(d->n_asked - d->n_landed < d->cap);
    d->request_bytes = bytes / n;
    d->asked += bytes;
    d->ring[d->n_asked++ % d->cap] = (struct read){ .end = d->asked };
    return d->n_asked;
}

static bool landed(const sim *s, uint64_t read)
{
    return read == HIT || read <= s->disk.n_landed;
}

static bool flying(const struct disk *d)
{
    return d->n_asked > d->n_landed
        && (d->started - d->got >= 1 || d->ring[d->n_landed % d->cap].end <= d->started + 0.5);
}

/* Seconds until the next read lands, or else until what was started is delivered. */
static double disk_next(const sim *s, double speed)
{
    const struct disk *d = &s->disk;
    const struct read *r = &d->ring[d->n_landed % d->cap];
    double left = fmax(fmin(r->end, d->started) - d->got, 0);
    double land = d->lag_s + left / (d->bytes_s * speed);
    return r->end <= d->started + 0.5 ? fmax(land, r->earliest_s - s->now) : land;
}

/* Time passes, at most until disk_next. */
static void disk_passes(sim *s, double dt, double speed)
{
    struct disk *d = &s->disk;
    const struct read *r = &d->ring[d->n_landed % d->cap];
    double from = s->now, lag = fmin(dt, d->lag_s);
    bool all = dt >= disk_next(s, speed) * (1 - 1e-12);
    s->now += dt;
    d->lag_s -= lag;
    if (dt > lag) d->got = fmin(d->got + (dt - lag) * d->bytes_s * speed, d->started);
    if (all) d->got = fmax(d->got, fmin(r->end, d->started));
    if (all && r->end <= d->started + 0.5) d->n_landed++;
    s->busy[SL_RES_DISK] += dt;
    span(s, SL_RES_DISK, from, s->now, false);
}

/* ---- a host that copies what the disk delivers, in this machine's time ---- */

static double quota_s(const sim *s)
{
    return SL_MAX(s->m->id.hw_threads, 1u) * SL_MACHINE_QUOTA_S;
}

/* Seconds for which so many cores and the disk can go on, at most to the end of the period. */
static double until_frozen(sim *s, double cores, double speed)
{
    if (!(s->disk.host_s > 0)) return INFINITY;
    if (s->now >= s->quota_end_s) {
        s->quota_end_s = s->now + SL_MACHINE_QUOTA_S;
        s->quota_left_s = quota_s(s);
    }
    double use = cores;
    if (flying(&s->disk) && s->disk.lag_s <= 0) use += s->disk.host_s * s->disk.bytes_s * speed;
    return fmin(s->quota_end_s - s->now, s->quota_left_s / fmax(use, 1e-3));
}

/* dt passes, in which so many cores are busy and, where reads are in flight, the disk; then what is
 * left of a period without time. */
static void run(sim *s, double dt, double cores, double speed)
{
    struct disk *d = &s->disk;
    double got = d->got;
    if (flying(d)) disk_passes(s, dt, speed);
    else s->now += dt;
    if (!(d->host_s > 0)) return;
    s->quota_left_s -= dt * cores + (d->got - got) * d->host_s;
    double still = s->quota_end_s - s->now;
    if (s->quota_left_s > 1e-9 * quota_s(s) || !(still > 0)) return;
    s->now = s->quota_end_s;
    for (uint64_t i = d->n_landed; i < d->n_started; i++) d->ring[i % d->cap].earliest_s += still;
}

/* ---- the threads ---- */

static void compute(sim *s, const work *w)
{
    double share = w->s > 0 ? fmin(w->memory_s / w->s, 1) : 0, left = w->s, from = s->now;
    double cpu = 1 / (share / s->cost.corun_cpu + (1 - share) / s->cost.corun_tiles);
    double disk = 1 - share * (1 - s->cost.corun_disk);
    s->busy[SL_RES_DRAM] += w->memory_s;
    s->busy[SL_RES_CPU] += w->arithmetic_s;
    while (left > 0) {
        bool both = flying(&s->disk);
        double speed = both ? cpu : 1, dt = left / speed;
        if (both) dt = fmin(dt, disk_next(s, disk));
        dt = fmin(dt, until_frozen(s, s->threads, disk));
        run(s, dt, s->threads, disk);
        left -= dt * speed;
        if (left < 1e-12 * w->s) left = 0;
    }
    span(s, SL_RES_CPU, from, s->now, false);
}

/* What only the driver does. */
static void fixed(sim *s, double seconds)
{
    s->busy[SL_RES_SYNC] += seconds;
    compute(s, &(work){ .s = seconds });
}

/* The store is called: all that is there has landed, and what may start does, which is the driver's
 * work. */
static void pump(sim *s)
{
    while (flying(&s->disk) && disk_next(s, 1) < 1e-12) disk_passes(s, disk_next(s, 1), 1);
    double n = start_reads(s);
    if (n > 0) fixed(s, n * s->m->read_cpu_s);
}

static void wait_for(sim *s, uint64_t read)
{
    double from = s->now;
    while (!landed(s, read)) {
        (void)start_reads(s);
        run(s, fmin(disk_next(s, 1), until_frozen(s, 0, 1)), 0, 1);
    }
    s->wait += s->now - from;
    span(s, SL_RES_CPU, from, s->now, true);
    pump(s);
}

/* Matrices of some types times as many rows as the pass has, or some. */
static work product(const sim *s, const sl_part *p, uint32_t n, double bytes, double rows)
{
    return work_product(s->m, s->threads, s->dram_s, p, n, bytes, rows);
}

/* A stage: its fixed costs, its products, and what it does to each element of `rows` rows. */
static void stage(sim *s, work w, double rows)
{
    double elems = rows * s->shape->d_model * s->cost.elem_s;
    w.s += elems;
    w.arithmetic_s += elems;
    bool tiles = s->step->kind == SL_STEP_EXPERTS && s->rows > 1;
    /* however unevenly threads share a call, it takes no longer than one of them alone */
    double uneven = fmin(s->cost.call_s, (s->threads - 1) * w.s);
    fixed(s, tiles ? fmax(uneven, s->cost.stage_s) : s->cost.stage_s);
    compute(s, &w);
}

/* Every row of a decoding sequence comes alone; a prompt's rows share their keys. */
static work attention(const sim *s, uint32_t layer, uint64_t ctx_flops, uint64_t ctx_bytes,
                      uint64_t row_bytes)
{
    const sl_layer_shape *l = &s->shape->layers[layer];
    double drawn = 0, read = 0, before = 0, width = (double)l->k_elems + l->v_elems;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const sl_rows *r = &s->runs[i];
        double positions = sl_bound_attended(r->first, r->n, l->window);
        before += l->window ? SL_MIN(r->first, l->window - 1) : r->first;
        if (r->n > 1) read += positions;
        else drawn += positions;
    }
    double seconds = sl_machine_decode_seconds(&s->cost, drawn * width, drawn * (double)ctx_flops)
                   + read * (double)ctx_flops / s->cost.prefill_flops_s;
    double bytes = before * (double)ctx_bytes + s->rows * (double)row_bytes;
    return work_of(seconds, bytes / s->dram_s, seconds, bytes);
}

static void attend(sim *s)
{
    const sl_step *st = s->step;
    stage(s, attention(s, st->layer, st->ctx_flops, st->ctx_bytes, st->row_bytes), s->rows);
}

/* ---- what a layer's parts take in passes of some rows ---- */

static void set_misses(const sim *s, struct parts *p)
{
    const sl_layer_shape *l = p->of;
    uint32_t c = sl_plan_class(s->plan, l);
    const sl_slot_class *k = &s->plan->cls[c];
    double prob[SL_MAX_MISSED + 1] = { 0 }, n = 0;
    for (uint32_t i = 0; s->in->misses && i <= SL_MAX_MISSED; i++) {
        double turns = (double)s->in->misses->turns[c][i];
        prob[SL_MIN(i, l->n_used)] += turns;
        n += turns;
    }
    if (!(n > 0))
        sl_miss_turn(s->in->miss, l->n_used, (double)k->n_slots / SL_MAX(k->n_experts, 1), prob);
    double sum = 0;
    for (uint32_t i = 0; i <= SL_MAX_MISSED; i++) p->cdf[i] = sum += prob[i] / (n > 0 ? n : 1);
}

static void set_experts(const sim *s, struct parts *p)
{
    const sl_layer_shape *l = p->of;
    double rows[QUANTILES], bytes = (double)l->expert_bytes;
    p->n_experts = s->rows > 1
                       ? sl_miss_distinct(s->in->miss, l->n_expert, l->n_used, s->rows)
                       : l->n_used;
    rows_of_experts(l->n_expert, p->n_experts, s->rows * l->n_used, rows);
    for (int q = 0; q < QUANTILES; q++)
        p->expert[q] = product(s, l->expert, SL_SHAPE_TYPES, bytes, s->rows > 1 ? rows[q] : 1);
    double cuts = ceil(bytes / 3 / s->disk.max_request);
    p->requests = (uint32_t)(3 * cuts);
    p->request_bytes = bytes / p->requests;
    if (s->streamed && s->rows == 1) set_misses(s, p);
}

/* For passes of s->rows rows. */
static void set_parts(sim *s)
{
    if (s->parts_rows == s->rows) return;
    s->parts_rows = s->rows;
    s->n_parts = 0;
    for (uint32_t i = 0; i < s->shape->n_layer; i++) {
        const sl_layer_shape *l = &s->shape->layers[i];
        uint32_t k = 0;
        while (k < s->n_parts && memcmp(s->parts[k].of, l, sizeof *l)) k++;
        s->parts_of[i] = k;
        if (k < s->n_parts) continue;
        struct parts *p = &s->parts[s->n_parts++];
        *p = (struct parts){ .of = l };
        p->qkv = product(s, l->qkv, SL_SHAPE_TYPES, (double)l->qkv_bytes, s->rows);
        p->post = product(s, l->post, SL_SHAPE_TYPES, (double)l->post_bytes, s->rows);
        p->all_rows = product(s, l->ffn, SL_SHAPE_TYPES, (double)l->ffn_bytes, s->rows);
        if (!l->n_expert) continue;
        p->route = product(s, &l->router, 1, (double)l->router_bytes, s->rows);
        set_experts(s, p);
    }
}

/* ---- experts ---- */

static double quantile(uint64_t draw)
{
    double u = (double)draw * GOLDEN;
    return u - floor(u);
}

static uint32_t expert_bin(const sim *s, uint64_t draw)
{
    return s->rows > 1 ? (uint32_t)(quantile(draw) * QUANTILES) : 0;
}

/* The next n draws are a layer's experts, which together take what their mean says. */
static void draw_rows(sim *s, const struct parts *p, uint32_t n)
{
    double mean = 0, sum = 0;
    for (int q = 0; q < QUANTILES; q++) mean += p->expert[q].s / QUANTILES;
    for (uint32_t i = 0; i < n; i++) sum += p->expert[expert_bin(s, s->draw + i + 1)].s;
    s->scale = sum > 0 ? p->n_experts * mean / sum : 1;
}

/* Experts that one stage computes, and the rows of all of them. */
struct call { work w; double rows; };

static void call_add(sim *s, struct call *c, const struct parts *p)
{
    c->rows += s->rows * p->of->n_used / p->n_experts;
    work_add(&c->w, &p->expert[expert_bin(s, ++s->draw)], s->scale);
}

static void call_run(sim *s, struct call *c, const struct parts *p, bool shared)
{
    if (shared && p->of->ffn_bytes) {
        work_add(&c->w, &p->all_rows, 1);
        c->rows += s->rows;
    }
    stage(s, c->w, c->rows);
    *c = (struct call){ .rows = 0 };
}

static uint64_t ask_expert(sim *s, const struct parts *p)
{
    return ask(s, p->request_bytes * p->requests, p->requests);
}

/* Few rows: what is there is computed first, then the others as they land. */
static void as_they_land(sim *s, const struct parts *p, uint32_t n, uint32_t n_missing)
{
    uint64_t next = s->disk.n_asked + 1, end = next + n_missing;
    struct call c = { .rows = 0 };
    for (uint32_t i = 0; i < n_missing; i++) ask_expert(s, p);
    pump(s);
    for (uint32_t i = n_missing; i < n; i++) call_add(s, &c, p);
    bool shared = true;
    if (n == n_missing) wait_for(s, next);
    while (next < end && landed(s, next)) {
        call_add(s, &c, p);
        next++;
    }
    for (;;) {
        call_run(s, &c, p, shared);
        shared = false;
        if (next == end) return;
        pump(s);
        if (!landed(s, next)) wait_for(s, next);
        while (next < end && landed(s, next)) {
            call_add(s, &c, p);
            next++;
        }
    }
}

/* Does a pass of many rows find the layer's expert x there? The one that is used latest again goes
 * first, which is one of the layer just computed: the first layers of a class keep theirs, but for
 * what reads go through. */
static bool kept(const sim *s, uint32_t layer, uint32_t x)
{
    const sl_layer_shape *l = &s->shape->layers[layer];
    uint32_t c = sl_plan_class(s->plan, l);
    const sl_slot_class *k = &s->plan->cls[c];
    if (!s->settled) return false;
    uint32_t ring = k->n_slots < k->n_experts ? sl_plan_ring(s->plan, c) : 0;
    return s->class_first[layer] + x + ring < k->n_slots;
}

static const struct parts *parts_of(const sim *s, uint32_t layer)
{
    return &s->parts[s->parts_of[layer]];
}

/* Is the layer's expert x one of those that the rows of a pass choose? */
static bool chosen(const sim *s, uint32_t x)
{
    const struct parts *p = parts_of(s, s->step->layer);
    double share = p->n_experts / p->of->n_expert, from = s->step->layer * GOLDEN;
    from += x * share - floor(from) + 1e-9;
    return floor(from + share) > floor(from);
}

/* Slots that a layer's reads go through. */
static uint32_t ring_of(const sim *s, const struct parts *p)
{
    uint32_t c = sl_plan_class(s->plan, p->of);
    return SL_MIN(sl_plan_ring(s->plan, c), s->plan->cls[c].n_slots);
}

/* Where sure reads ahead go: the next layer, if it has experts. n_ring: read for the one at hand,
 * not computed yet. */
static void read_on(sim *s, uint32_t layer, uint32_t n_now, uint32_t n_ring)
{
    if (s->plan->no_ahead || layer + 1 >= s->shape->n_layer) return;
    const struct parts *p = parts_of(s, layer + 1);
    uint32_t n = p->of->n_expert;
    if (!n || 4 * n_now < 3 * s->shape->layers[layer].n_expert) return;
    uint32_t n_slots = s->plan->cls[sl_plan_class(s->plan, p->of)].n_slots;
    uint32_t most = SL_MIN(n_slots / 4, (uint32_t)AHEAD_MAX), ring = ring_of(s, p);
    for (; s->ahead_at < n && s->n_ahead < most && n_ring + s->n_ahead < ring; s->ahead_at++) {
        if (kept(s, layer + 1, s->ahead_at)) continue;
        s->have[1][s->ahead_at] = ask_expert(s, p);
        s->n_ahead++;
    }
    pump(s);
}

/* Reads for experts of the layer from `from` on, as far as the ring goes; the one whose turn it is
 * has room in any case. Returns the first without. */
static uint32_t assign(sim *s, const struct parts *p, uint32_t from, uint32_t at, uint32_t *n_ring)
{
    uint32_t ring = ring_of(s, p);
    for (; from < p->of->n_expert; from++) {
        if (s->have[0][from] || !chosen(s, from)) continue;
        if (*n_ring >= ring && from > at) break;
        s->have[0][from] = ask_expert(s, p);
        ++*n_ring;
    }
    pump(s);
    return from;
}

/* Many rows: in ascending order, the next layer's reads behind this one's. */
static void in_order(sim *s, const struct parts *p)
{
    uint32_t layer = s->step->layer, n = p->of->n_expert, n_now = 0, n_ring = 0, at = 0;
    uint64_t *swap = s->have[0];
    s->have[0] = s->have[1];
    s->have[1] = swap;
    memset(s->have[1], 0, s->n_expert * sizeof *swap);
    s->n_ahead = s->ahead_at = 0;
    for (uint32_t x = 0; x < n; x++) {
        n_now += chosen(s, x);
        n_ring += chosen(s, x) && s->have[0][x];
        if (kept(s, layer, x)) s->have[0][x] = HIT;
    }
    uint32_t next = assign(s, p, 0, 0, &n_ring), left = n_now;
    draw_rows(s, p, n_now);
    while (left) {
        struct call c = { .rows = 0 };
        uint32_t got = 0;
        if (next == n) read_on(s, layer, n_now, n_ring);
        while (at < n && !chosen(s, at)) at++;
        next = assign(s, p, next, at, &n_ring);
        if (!landed(s, s->have[0][at])) wait_for(s, s->have[0][at]);
        uint32_t n_read = 0;
        for (; at < n && (!chosen(s, at) || (s->have[0][at] && landed(s, s->have[0][at]))); at++)
            if (chosen(s, at)) {
                n_read += s->have[0][at] != HIT;
                call_add(s, &c, p);
                got++;
            }
        left -= got;
        call_run(s, &c, p, !left);
        n_ring -= n_read;
    }
    read_on(s, layer, n_now, n_ring);
}

static void experts(sim *s)
{
    const struct parts *p = parts_of(s, s->step->layer);
    const sl_layer_shape *l = p->of;
    if (!l->n_expert) {
        stage(s, p->all_rows, s->rows);
        return;
    }
    if (s->streamed && s->rows > s->plan->stored_rows) {
        in_order(s, p);
        return;
    }
    uint32_t n = (uint32_t)(p->n_experts + (s->rows > 1 ? quantile(++s->draw) : 0)), missing = 0;
    if (s->streamed && s->rows == 1 && s->settled) {
        double u = quantile(++s->draw);
        while (missing < SL_MAX_MISSED && missing < n && p->cdf[missing] < u) missing++;
    } else if (s->streamed) {
        const sl_slot_class *k = &s->plan->cls[sl_plan_class(s->plan, l)];
        double share = s->settled ? (double)k->n_slots / SL_MAX(k->n_experts, 1) : 0;
        /* a slot serves one of the experts that the pass chooses, once */
        double hit = fmin(sl_miss_hit(s->in->miss, share), share * l->n_expert / n);
        missing = (uint32_t)(n * (1 - hit) + 0.5);
    }
    draw_rows(s, p, n);
    as_they_land(s, p, n, missing);
}

/* ---- dense weights through two sections ---- */

static void ask_section(sim *s)
{
    uint32_t first = s->plan->n_dense_layers, n = s->shape->n_layer - first;
    const sl_layer_shape *l = &s->shape->layers[first + s->ring_next % n];
    double bytes = (double)(l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes);
    uint32_t n_requests = (uint32_t)ceil(bytes / s->disk.max_request);
    s->section[s->ring_next++ % 2] = n_requests ? ask(s, bytes, n_requests) : 0;
    pump(s);
}

/* ---- a pass ---- */

static void run_step(sim *s)
{
    const sl_step *st = s->step;
    const struct parts *p = st->layer == SL_STEP_NONE ? NULL : parts_of(s, st->layer);
    bool ring = s->streamed && p && st->layer >= s->plan->n_dense_layers;
    if (ring && st->kind == SL_STEP_QKV) pump(s);
    if (ring && st->kind == SL_STEP_QKV) wait_for(s, s->section[s->ring_at % 2]);
    switch (st->kind) {
    case SL_STEP_EMBED: stage(s, (work){ .s = 0 }, s->rows); break;
    case SL_STEP_QKV: stage(s, p->qkv, s->rows); break;
    case SL_STEP_ATTEND: attend(s); break;
    case SL_STEP_POST: stage(s, p->post, s->rows); break;
    case SL_STEP_ROUTE: stage(s, p->route, s->rows); break;
    case SL_STEP_EXPERTS: experts(s); break;
    case SL_STEP_HEAD:
        stage(s, product(s, &s->shape->head, 1, (double)st->bytes, s->logits), s->logits);
        break;
    }
    if (!ring || st->kind != SL_STEP_EXPERTS) return;
    s->ring_at++;
    ask_section(s);
}

static void set_rows(sim *s, const sl_rows *rows, uint32_t n)
{
    s->runs = rows;
    s->n_runs = n;
    s->rows = s->logits = 0;
    for (uint32_t i = 0; i < n; i++) {
        s->rows += rows[i].n;
        s->logits += rows[i].draws;
    }
    set_parts(s);
}

/* Seconds of a pass of s->rows rows. */
static double run_pass(sim *s, sl_timeline *line)
{
    double from = s->now;
    s->line = line;
    s->began = from;
    s->last[0] = s->last[1] = NO_SPAN;
    for (uint32_t i = 0; i < s->n_steps; i++) {
        s->step = &s->steps[i];
        if (s->step->kind != SL_STEP_HEAD || s->logits > 0) run_step(s);
    }
    s->line = NULL;
    return s->now - from;
}

void sim_begin(sim *s, bool settled)
{
    if (s->split) sim_split_begin(s->split);
    s->now = s->quota_end_s = s->quota_left_s = 0;
    s->settled = settled;
    s->ring_at = s->ring_next = 0;
    s->step = &s->steps[0];
    memset(s->have[1], 0, s->n_expert * sizeof *s->have[1]);
    s->disk.n_asked = s->disk.n_started = s->disk.n_landed = 0;
    s->disk.asked = s->disk.started = s->disk.got = s->disk.lag_s = 0;
    for (int i = 0; i < 2 && s->streamed && s->plan->n_dense_layers < s->shape->n_layer; i++)
        ask_section(s);
}

double sim_pass(sim *s, const sl_rows *rows, uint32_t n, double times, sl_timeline *line,
                sl_phase *f)
{
    if (s->split) return sim_split_pass(s->split, rows, n, times, line, f);
    double bytes = s->disk.asked;
    set_rows(s, rows, n);
    memset(s->busy, 0, sizeof s->busy);
    s->wait = 0;
    double seconds = run_pass(s, line);
    f->seconds += times * seconds;
    f->wait_s += times * s->wait;
    f->disk_bytes += times * (s->disk.asked - bytes);
    for (int r = 0; r < SL_N_RESOURCES; r++) f->busy_s[r] += times * s->busy[r];
    s->settled = true;
    return seconds;
}

/* ---- the least that a pass takes ---- */

/* Experts of a layer that a pass has to read. */
static double least_missing(const sim *s, uint32_t layer)
{
    const struct parts *p = parts_of(s, layer);
    const sl_layer_shape *l = p->of;
    const sl_slot_class *k = &s->plan->cls[sl_plan_class(s->plan, l)];
    double share = (double)k->n_slots / SL_MAX(k->n_experts, 1), missed = 0;
    if (s->rows > s->plan->stored_rows) {
        double here = fmax((double)k->n_slots - s->class_first[layer], 0);
        return p->n_experts * (1 - fmin(here / l->n_expert, 1));
    }
    if (s->rows > 1)
        return p->n_experts
             * (1 - fmin(sl_miss_hit(s->in->miss, share), share * l->n_expert / p->n_experts));
    for (uint32_t m = 0; m < SL_MAX_MISSED; m++) missed += 1 - p->cdf[m];
    return missed;
}

static void least_of_layer(const sim *s, uint32_t layer, double elem_s, sim_least *ret)
{
    const struct parts *p = parts_of(s, layer);
    const sl_layer_shape *l = p->of;
    uint32_t n_stages = l->n_expert ? 4 : 3;            /* experts apart */
    double routed = s->rows * l->n_used, each = 0;
    for (int q = 0; q < QUANTILES; q++) each += p->expert[q].s / QUANTILES;
    ret->compute_s += p->qkv.s + p->post.s + p->all_rows.s
                    + n_stages * (s->cost.stage_s + s->rows * elem_s);
    if (s->streamed && layer >= s->plan->n_dense_layers)
        ret->disk_bytes +=
            (double)(l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes);
    if (!l->n_expert) return;
    ret->compute_s += p->route.s + p->n_experts * each + routed * elem_s
                    + (s->rows > 1 ? s->cost.call_s : s->cost.stage_s)
                    + (l->ffn_bytes ? s->rows * elem_s : 0);
    if (s->streamed) ret->disk_bytes += least_missing(s, layer) * (double)l->expert_bytes;
}

sim_least sim_weights(sim *s, double n_rows)
{
    double elem_s = s->shape->d_model * s->cost.elem_s;
    sim_least all = { .compute_s = s->cost.stage_s + n_rows * elem_s };     /* embedding */
    if (s->split) {
        split_sum_pass(sim_split_env(s->split), n_rows, 0, 1, &all.shared);
        return all;
    }
    s->rows = n_rows;
    set_parts(s);
    for (uint32_t i = 0; i < s->shape->n_layer; i++) least_of_layer(s, i, elem_s, &all);
    return all;
}

static double others_s(sim *s, const sl_rows *rows, uint32_t n)
{
    double seconds = 0, layer_s = 0;
    uint32_t logits = 0;
    const sl_layer_shape *before = NULL;
    s->runs = rows;
    s->n_runs = n;
    s->rows = 0;
    for (uint32_t i = 0; i < n; i++) s->rows += rows[i].n, logits += rows[i].draws;
    for (uint32_t i = 0; i < s->n_steps; i++) {
        const sl_step *st = &s->steps[i];
        if (st->kind != SL_STEP_ATTEND) continue;
        const sl_layer_shape *l = &s->shape->layers[st->layer];
        if (!before || memcmp(before, l, sizeof *l))
            layer_s = attention(s, st->layer, st->ctx_flops, st->ctx_bytes, st->row_bytes).s;
        seconds += layer_s;
        before = l;
    }
    double head = (double)(s->shape->head_bytes ? s->shape->head_bytes : s->shape->embed_bytes);
    if (logits)
        seconds += s->cost.stage_s + logits * s->shape->d_model * s->cost.elem_s
                 + product(s, &s->shape->head, 1, head, logits).s;
    return seconds;
}

double sim_bound_s(sim *s, const sim_least *weights, double disk_bytes_s, const sl_rows *rows,
                   uint32_t n)
{
    if (s->split) return sim_split_bound_s(s->split, &weights->shared, rows, n);
    return fmax(weights->compute_s + others_s(s, rows, n),
                disk_bytes_s > 0 ? weights->disk_bytes / disk_bytes_s : 0);
}

/* ---- one sequence ---- */

static void end_phase(sl_phase *f, double n_tokens)
{
    f->tok_per_s = f->seconds > 0 ? n_tokens / f->seconds : 0;
    busiest(f->busy_s, &f->binding, &f->next);
}

/* The first pass finds its slots empty; of those behind it that have all rows some stand for the
 * others; the last one may have fewer. */
static void prompt(sim *s, sl_timeline *line, sl_phase *f)
{
    uint32_t n = s->in->load.n_prompt, rows = SL_MIN(n, s->plan->max_rows);
    uint32_t n_full = n / rows, rest = n % rows, n_some = SL_MIN(n_full - 1, MAX_PASSES - 2);
    sl_rows r = { .n = rows, .draws = n == rows };
    sim_begin(s, false);
    sim_pass(s, &r, 1, 1, line, f);
    for (uint32_t i = 0; i < n_some; i++) {
        double times = (n_full - 1.0) / n_some;
        r.first = (uint32_t)(rows * (1 + times * (i + 0.5) - 0.5));
        r.draws = i + 1 == n_some && !rest;
        sim_pass(s, &r, 1, times, NULL, f);
    }
    r = (sl_rows){ .first = n - rest, .n = rest, .draws = true };
    if (rest) sim_pass(s, &r, 1, 1, NULL, f);
    end_phase(f, n);
}

/* What decoding misses on average: exact, where the passes are a sample. */
static void expected_misses(const sim *s, sl_forecast *f)
{
    double used = 0, missed = 0, bytes = 0;
    for (uint32_t i = 0; i < s->shape->n_layer; i++) {
        const struct parts *p = parts_of(s, i);
        double mean = 0;
        for (uint32_t m = 0; s->streamed && p->of->n_expert && m < SL_MAX_MISSED; m++)
            mean += 1 - p->cdf[m];
        used += p->of->n_used;
        missed += mean;
        bytes += mean * (double)p->of->expert_bytes;
        if (s->streamed && i >= s->plan->n_dense_layers)
            bytes += (double)(p->of->qkv_bytes + p->of->post_bytes + p->of->router_bytes
                              + p->of->ffn_bytes);
    }
    f->hit_rate = used > 0 ? 1 - missed / used : 1;
    f->disk_bytes_per_token = bytes;
}

static void decode(sim *s, sl_timeline *line, sl_forecast *f)
{
    double n_gen = s->in->load.n_gen, seconds[MAX_TOKENS];
    uint64_t draw[MAX_TOKENS];
    uint32_t n_turns = 1, at[MAX_TOKENS];
    for (uint32_t i = 0; i < s->shape->n_layer; i++) n_turns += s->shape->layers[i].n_expert > 0;
    bool drawn = s->streamed || s->split;
    uint32_t n = drawn ? SL_MIN(SL_MAX(DRAWS / n_turns, MIN_TOKENS), MAX_TOKENS) : MIN_TOKENS;
    sl_rows r = { .n = 1, .draws = true };
    set_rows(s, &r, 1);
    sim_begin(s, true);
    expected_misses(s, f);
    for (uint32_t i = 0; i < n; i++) {
        draw[i] = s->draw;
        r.first = at[i] = (uint32_t)(s->in->load.n_prompt + fmax((i + 0.5) / n * n_gen - 0.5, 0));
        seconds[i] = sim_pass(s, &r, 1, n_gen / n, NULL, &f->decode);
    }
    end_phase(&f->decode, n_gen);
    if (!line || !(n_gen > 0)) return;
    uint32_t best = 0;                  /* the one nearest to the mean */
    double mean = f->decode.seconds / n_gen;
    for (uint32_t i = 1; i < n; i++)
        if (fabs(seconds[i] - mean) < fabs(seconds[best] - mean)) best = i;
    sl_phase again = { .seconds = 0 };
    s->draw = draw[best];
    r.first = at[best];
    sim_pass(s, &r, 1, 1, line, &again);
}

/* What chance and rounding win over the bound is given back, as time in which nothing is done. */
static void not_below(const sl_phase *bound, sl_phase *f)
{
    double more = bound->seconds - f->seconds;
    if (!(more > 0)) return;
    f->tok_per_s *= f->seconds / bound->seconds;
    f->seconds += more;
    f->wait_s += more;
}

static void *take(char **at, size_t n, size_t size)
{
    void *p = *at;
    *at += (n * size + 63) / 64 * 64;
    return p;
}

/* The handle and tables of all layers, in one block. */
sl_status sim_create(sl_ctx *ctx, const sl_forecast_in *in, sim **ret)
{
    const sl_machine *m = in->machine;
    const sl_plan *plan = in->plan;
    const sl_layer_shape *l = in->shape->layers;
    uint32_t n = in->shape->n_layer, n_steps = sl_pipe_max_steps(in->shape), n_expert = 0;
    for (uint32_t i = 0; i < n; i++) n_expert = SL_MAX(n_expert, l[i].n_expert);
    /* a layer's experts, those read ahead (wanted or not), two sections */
    uint32_t cap = n_expert + 2 * AHEAD_MAX + 2;
    size_t bytes = sizeof(sim) + n_steps * sizeof(sl_step)
                 + n * (sizeof(struct parts) + 2 * sizeof(uint32_t)) + cap * sizeof(struct read)
                 + 2 * n_expert * sizeof(uint64_t) + 10 * 64
                 + (plan->split.accel.kind ? sim_split_bytes(in) : 0);
    char *at = calloc(1, bytes);
    if (!at) return sl_fail(ctx, SL_E_NOMEM, "simulation of %u layers: %zu bytes", n, bytes);
    sim *s = take(&at, 1, sizeof *s);
    *s = (sim){ .in = in, .shape = in->shape, .plan = plan, .m = m, .n_expert = n_expert,
                .threads = plan->n_threads ? plan->n_threads : m->id.cores,
                .streamed = plan->weights == SL_WEIGHTS_STREAMED,
                .disk = { .cap = cap,
                          .depth = plan->read_depth ? plan->read_depth : SL_STORE_READ_DEPTH,
                          .max_request = plan->read_bytes ? plan->read_bytes : SL_STORE_READ_BYTES,
                          .latency_s = m->disk.n_curves ? m->disk.latency_s : 0,
                          .host_s = m->disk.n_curves ? m->read_host_s : 0 } };
    s->cost = sl_machine_cost_at(m, s->threads);
    s->dram_s = sl_machine_dram_s(m, s->threads);
    s->steps = take(&at, n_steps, sizeof *s->steps);
    s->parts = take(&at, n, sizeof *s->parts);
    s->parts_of = take(&at, n, sizeof *s->parts_of);
    s->class_first = take(&at, n, sizeof *s->class_first);
    s->disk.ring = take(&at, cap, sizeof *s->disk.ring);
    s->have[0] = take(&at, n_expert, sizeof *s->have[0]);
    s->have[1] = take(&at, n_expert, sizeof *s->have[1]);
    s->n_steps = sl_pipe_build(s->shape, plan, s->steps);
    if (plan->split.accel.kind) s->split = sim_split_init(at, in, s->steps, s->n_steps);
    uint32_t before[SL_SLOT_CLASSES] = { 0 };
    for (uint32_t i = 0; s->streamed && i < n; i++) {
        uint32_t c = l[i].n_expert ? sl_plan_class(plan, &l[i]) : 0;
        s->class_first[i] = before[c];
        before[c] += l[i].n_expert;
    }
    *ret = s;
    return SL_OK;
}

sl_status sl_sim_run(sl_ctx *ctx, const sl_forecast_in *in, sl_timeline *decode_pass,
                     sl_timeline *prompt_pass, sl_forecast *ret)
{
    assert(in->load.n_prompt && in->plan->max_rows && in->miss);
    sim *s;
    if (in->plan->split.accel.kind && in->plan->weights == SL_WEIGHTS_STREAMED)
        return sl_fail(ctx, SL_E_UNSUPPORTED,
                       "no forecast knows of experts on disk beside a device");
    SL_TRY(sim_create(ctx, in, &s));
    sl_forecast bound = sl_stage1(in), f = { .grade = bound.grade, .peak_bytes = bound.peak_bytes };
    prompt(s, prompt_pass, &f.prompt);
    decode(s, decode_pass, &f);
    not_below(&bound.prompt, &f.prompt);
    not_below(&bound.decode, &f.decode);
    f.ttft_s = f.prompt.seconds;
    f.stall_share = f.decode.seconds > 0 ? f.decode.wait_s / f.decode.seconds : 0;
    free(s);
    *ret = f;
    return SL_OK;
}
