/* perfmodel/sim_split.c - stage 2 where CPU and accelerator share a pass: one driver walks the
 * steps of its lanes as sl_pipe.h says; what it submits to the device's queues, and weights on
 * their way through the ring, go on beside it.
 * The device: its operations in order of submission, each once the copies and weights that it
 * names are there. The link up: what a stage waits for goes before weights, once the piece on the
 * link is over; a copy is there copy_s after it left the link. The ring: first in, first out, an
 * item's room is free when every lane has used it (runtime/board.c).
 * Memory that CPU, copies and an emulated device share gives each its part where they want more
 * than it has; so do cores, where an emulated device's and its copies are the machine's own.
 * Time goes from one end of something to the next. */
#include "perfmodel/sim_split.h"

#include "perfmodel/sl_bound.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    MAX_GROUP = 16, GROUPS_A_RING = 8,          /* runtime/board.c: experts that go in one item */
    MAX_LANES = 2
};
#define GOLDEN 0.6180339887498949
#define NO_SPAN UINT32_MAX

typedef enum queue { Q_DEVICE, Q_UP, Q_DOWN, N_QUEUES } queue;

/* Names the first n operations of a queue; n 0: nothing. */
typedef struct event { queue q; uint64_t n; } event;

typedef struct op {
    event need;
    uint64_t item, frees;       /* of the ring, counted from 1: wanted, and used up; 0: none */
    double s, memory_s, arithmetic_s, start_s;          /* at full speed, all of it */
    sl_step_kind kind;          /* for the picture */
    uint32_t layer;
} op;

typedef struct fifo {
    op *ops;                    /* [cap] those that are not over */
    double *over_s;             /* [cap] when the latest were over, latency included */
    uint64_t n, n_done;
    double left_s;              /* of the first */
    bool begun;
} fifo;

/* Weights in the ring, or to be sent. */
typedef struct shipment {
    double s, bytes, room;
    uint32_t lanes_left;
    double over_s;
    sl_step_kind kind;
    uint32_t layer;
} shipment;

typedef struct lane {
    sl_rows *runs;              /* [n] */
    uint32_t n, at;             /* at: the next step */
    double rows, logits;
    event up, down;             /* that the next step on either side waits for */
} lane;

struct sim_split {
    split_env e;
    const sl_step *steps;
    uint32_t n_steps;
    split_layer *parts;         /* [n_layer], n_parts of them in use */
    uint32_t *parts_of;         /* [n_layer] */
    uint32_t n_parts;
    double parts_rows;
    bool parts_all;
    double together;            /* of their speed that cores of both sides keep beside each other */
    double (*stay_cdf)[SL_MAX_MISSED + 1];      /* [n_layer] as parts, one row */
    /* the pass */
    bool all;
    lane lanes[MAX_LANES];
    uint32_t n_lanes;
    const sl_step *step;
    uint64_t draw;
    double now;
    fifo q[N_QUEUES];
    uint32_t cap;
    /* the ring: items are wanted, then on the link, then there, then used up */
    shipment *items;               /* [cap_items] */
    uint32_t cap_items;
    uint64_t n_wanted, n_started, n_sent, n_freed;
    double ring_used, item_left_s;
    uint32_t sends_lanes;       /* for how many lanes those on their way were sent */
    /* [n_layer] items by number, 0: none. With `all`: of the next pass, whose weights go on behind
     * this one's; pass_items before them are this one's. */
    uint64_t *front, *back, *groups;
    uint64_t head;
    uint64_t pass_items;
    /* what the driver does at the moment */
    double cpu_left_s, cpu_share;       /* cpu_share: of its time it waits for memory */
    double busy[SL_N_RESOURCES], wait_s, began;
    sl_timeline *line;
    uint32_t last[SL_N_RESOURCES];
};

/* ---- the picture ---- */

static void span(sim_split *x, sl_resource on, sl_step_kind kind, uint32_t layer, double from,
                 bool waiting)
{
    sl_timeline *t = x->line;
    uint32_t *last = &x->last[on];
    if (!t || x->now <= from) return;
    sl_span s = { .on = on, .kind = kind, .layer = layer, .from_s = from - x->began,
                  .to_s = x->now - x->began, .waiting = waiting };
    if (*last != NO_SPAN) {
        sl_span *l = &t->spans[*last];
        if (l->kind == kind && l->layer == layer && l->waiting == waiting
            && s.from_s - l->to_s < 1e-9) {
            l->to_s = s.to_s;
            return;
        }
    }
    *last = t->n < t->cap ? t->n : NO_SPAN;
    if (t->n < t->cap) t->spans[t->n] = s;
    t->n++;
}

/* ---- what goes on beside the driver ---- */

/* When an event is over; INFINITY: not known yet. */
static double over_s(const sim_split *x, event ev)
{
    const fifo *f = &x->q[ev.q];
    if (!ev.n) return 0;
    if (ev.n > f->n_done) return INFINITY;
    return f->n_done - ev.n < x->cap ? f->over_s[ev.n % x->cap] : 0;
}

static shipment *item_at(const sim_split *x, uint64_t i)
{
    return &x->items[i % x->cap_items];
}

static double item_s(const sim_split *x, uint64_t i)
{
    if (!i || i <= x->n_freed) return 0;
    return i <= x->n_sent ? item_at(x, i)->over_s : INFINITY;
}

static bool runs(const fifo *f) { return f->begun; }

static void begin_heads(sim_split *x)
{
    for (int k = 0; k < N_QUEUES; k++) {
        fifo *f = &x->q[k];
        if (f->begun || f->n == f->n_done) continue;
        const op *o = &f->ops[(f->n_done + 1) % x->cap];
        if (over_s(x, o->need) > x->now || item_s(x, o->item) > x->now) continue;
        f->begun = true;
        f->left_s = o->s;
    }
}

/* Is there room for the next item? */
static bool may_send(const sim_split *x)
{
    if (x->n_started == x->n_wanted) return false;
    const shipment *it = item_at(x, x->n_started + 1);
    return x->ring_used <= 0 || x->ring_used + it->room <= (double)x->e.x->ring_bytes;
}

static void start_item(sim_split *x)
{
    const shipment *it = item_at(x, ++x->n_started);
    x->ring_used += it->room;
    x->item_left_s = it->s;
}

/* Seconds on the link until it changes hands; 0: at once. Only between pieces. */
static double piece_left_s(const sim_split *x)
{
    double piece = split_up_s(&x->e, (double)x->e.x->piece_bytes);
    double done = item_at(x, x->n_started)->s - x->item_left_s;
    double next = ceil(done / piece - 1e-9) * piece;
    return fmin(next - done, x->item_left_s);
}

/* Who has the link up. */
typedef enum holder { HELD_BY_NONE, HELD_BY_UP, HELD_BY_ITEM } holder;

static holder link_holder(const sim_split *x)
{
    bool item = x->n_started > x->n_sent, up = x->q[Q_UP].begun;
    if (up && item && x->q[Q_UP].left_s >= x->q[Q_UP].ops[(x->q[Q_UP].n_done + 1) % x->cap].s
        && piece_left_s(x) > 1e-12 * item_at(x, x->n_started)->s)
        return HELD_BY_ITEM;
    return up ? HELD_BY_UP : item ? HELD_BY_ITEM : HELD_BY_NONE;
}

/* Shares of their own speeds that go on at the same time. */
typedef struct speeds { double cpu, device, up, down; } speeds;

static double slowed(double share, double by)
{
    return 1 / (share / by + 1 - share);
}

static speeds speeds_of(const sim_split *x, holder link)
{
    const split_env *e = &x->e;
    speeds v = { 1, 1, 1, 1 };
    bool device = runs(&x->q[Q_DEVICE]), up = link != HELD_BY_NONE, down = runs(&x->q[Q_DOWN]);
    bool cpu = x->cpu_left_s > 0;
    const op *o = &x->q[Q_DEVICE].ops[(x->q[Q_DEVICE].n_done + 1) % x->cap];
    double device_share = device && e->emu && o->s > 0 ? fmin(o->memory_s / o->s, 1) : 0;
    double cpu_share = cpu ? x->cpu_share : 0;
    double want = cpu_share * e->dram + device_share * e->gpu.vram_bytes_s
                + up * e->passes_s * e->gpu.h2d_bytes_s + down * e->passes_s * e->gpu.d2h_bytes_s;
    if (want > e->dram_all) {
        double by = e->dram_all / want;
        v = (speeds){ slowed(cpu_share, by), slowed(device_share, by), by, by };
    }
    if (!e->emu) return v;
    if (cpu && device) {
        v.cpu = fmin(v.cpu, x->together);
        v.device = fmin(v.device, x->together);
    }
    /* copies are made by threads: each for as long as the memory takes, not the link */
    double copied = sl_machine_dram_s(e->m, 1) / 2;
    double cores = cpu * (double)e->threads + device * (double)SL_MAX(e->x->accel.n_cores, 1)
                 + up * e->gpu.h2d_bytes_s / copied + down * e->gpu.d2h_bytes_s / copied;
    double by = fmin(1, e->m->id.cores / fmax(cores, 1));
    return (speeds){ v.cpu * by, v.device * by, v.up * by, v.down * by };
}

/* An emulated device's cores and the CPU's threads multiply at once: what all of them reach, as it
 * was measured, over what either side does alone, at the rows that an expert gets. */
static double kept_together(const split_env *e, double rows)
{
    const sl_layer_shape *l = &e->shape->layers[e->shape->n_layer - 1];
    uint32_t cores = SL_MAX(e->x->accel.n_cores, 1), all = cores + e->threads;
    if (!e->emu || !l->n_expert || all > e->m->id.cores) return 1;
    sl_type type = l->expert[0].type;
    rows = fmax(rows * l->n_used / l->n_expert, 1);
    double there = 1 / sl_machine_gemm_seconds(e->m, type, cores, 1, rows);
    double here = 1 / sl_machine_gemm_seconds(e->m, type, e->threads, 1, rows);
    double both = 1 / sl_machine_gemm_seconds(e->m, type, all, 1, rows);
    return fmin(both / (there + here), 1);
}

static void free_item(sim_split *x, uint64_t i)
{
    if (!i) return;
    assert(item_at(x, i)->lanes_left);
    item_at(x, i)->lanes_left--;
    while (x->n_freed < x->n_sent && !item_at(x, x->n_freed + 1)->lanes_left)
        x->ring_used -= item_at(x, ++x->n_freed)->room;
}

static void end_op(sim_split *x, queue k)
{
    fifo *f = &x->q[k];
    op *o = &f->ops[++f->n_done % x->cap];
    f->over_s[f->n_done % x->cap] = x->now + (k == Q_DEVICE ? 0 : x->e.gpu.copy_s);
    f->begun = false;
    f->left_s = 0;
    free_item(x, o->frees);
    if (k == Q_DEVICE) {
        x->busy[SL_RES_GPU] += o->arithmetic_s;
        x->busy[SL_RES_VRAM] += o->memory_s;
        x->busy[SL_RES_SYNC] += o->start_s;
    } else {
        x->busy[k == Q_UP ? SL_RES_H2D : SL_RES_D2H] += o->s;
    }
}

static void end_item(sim_split *x)
{
    shipment *it = item_at(x, ++x->n_sent);
    it->over_s = x->now + x->e.gpu.copy_s;
    x->busy[SL_RES_H2D] += it->s;
}

/* The earliest end of a latency that something waits for. */
static double next_latency(const sim_split *x, event ev)
{
    double at = INFINITY;
    for (int k = 0; k < N_QUEUES; k++) {
        const fifo *f = &x->q[k];
        if (f->begun || f->n == f->n_done) continue;
        const op *o = &f->ops[(f->n_done + 1) % x->cap];
        double a = over_s(x, o->need), b = item_s(x, o->item);
        if (a > x->now) at = fmin(at, a);
        if (b > x->now) at = fmin(at, b);
    }
    double own = over_s(x, ev);
    return own > x->now ? fmin(at, own) : at;
}

/* How far to the next end. */
static double next_dt(const sim_split *x, holder link, speeds v, event ev)
{
    double dt = next_latency(x, ev) - x->now;
    if (x->cpu_left_s > 0) dt = fmin(dt, x->cpu_left_s / v.cpu);
    if (x->q[Q_DEVICE].begun) dt = fmin(dt, x->q[Q_DEVICE].left_s / v.device);
    if (x->q[Q_DOWN].begun) dt = fmin(dt, x->q[Q_DOWN].left_s / v.down);
    if (link == HELD_BY_UP) dt = fmin(dt, x->q[Q_UP].left_s / v.up);
    if (link == HELD_BY_ITEM)
        dt = fmin(dt, (x->q[Q_UP].begun ? piece_left_s(x) : x->item_left_s) / v.up);
    return dt;
}

static void spend(double *left, double dt, double speed, double all)
{
    *left -= dt * speed;
    if (*left < 1e-12 * all) *left = 0;
}

static void picture(sim_split *x, double from, holder link, bool waiting)
{
    const op *o;
    if (!x->line) return;
    span(x, SL_RES_CPU, x->step->kind, x->step->layer, from, waiting);
    static const struct { queue q; sl_resource on; } of[] = { { Q_DEVICE, SL_RES_GPU },
                                                              { Q_DOWN, SL_RES_D2H } };
    for (size_t i = 0; i < SL_LEN(of); i++)
        if (x->q[of[i].q].begun) {
            o = &x->q[of[i].q].ops[(x->q[of[i].q].n_done + 1) % x->cap];
            span(x, of[i].on, o->kind, o->layer, from, false);
        }
    o = &x->q[Q_UP].ops[(x->q[Q_UP].n_done + 1) % x->cap];
    const shipment *it = item_at(x, x->n_started);
    if (link == HELD_BY_UP) span(x, SL_RES_H2D, o->kind, o->layer, from, false);
    if (link == HELD_BY_ITEM) span(x, SL_RES_H2D, it->kind, it->layer, from, false);
}

/* Bytes that go through the memory in a second of that. */
static double dram_share(const sim_split *x, holder link, speeds v)
{
    const split_env *e = &x->e;
    double rate = 0;
    if (x->cpu_left_s > 0) rate += x->cpu_share * e->dram * v.cpu;
    if (link != HELD_BY_NONE) rate += e->passes_s * e->gpu.h2d_bytes_s * v.up;
    if (x->q[Q_DOWN].begun) rate += e->passes_s * e->gpu.d2h_bytes_s * v.down;
    return fmin(rate / e->dram_all, 1);
}

/* One step of time, to the next end of anything. The driver computes, or waits for ev. */
static void go_on(sim_split *x, event ev)
{
    begin_heads(x);
    if (x->n_started == x->n_sent && may_send(x)) start_item(x);
    holder link = link_holder(x);
    speeds v = speeds_of(x, link);
    double dt = next_dt(x, link, v, ev), from = x->now;
    if (isinf(dt)) {            /* the ring is too small for two lanes: it gives way */
        assert(x->n_started == x->n_sent && x->n_started < x->n_wanted);
        start_item(x);
        return;
    }
    bool computes = x->cpu_left_s > 0 || x->q[Q_DEVICE].begun;
    x->now += dt;
    picture(x, from, link, !(x->cpu_left_s > 0));
    x->busy[SL_RES_DRAM] += dt * dram_share(x, link, v);
    if (!computes) x->wait_s += dt;
    if (x->cpu_left_s > 0) spend(&x->cpu_left_s, dt, v.cpu, 1e-3);
    for (int k = 0; k < N_QUEUES; k++) {
        fifo *f = &x->q[k];
        double speed = k == Q_DEVICE ? v.device : k == Q_DOWN ? v.down : v.up;
        if (!f->begun || (k == Q_UP && link != HELD_BY_UP)) continue;
        spend(&f->left_s, dt, speed, f->ops[(f->n_done + 1) % x->cap].s);
        if (f->left_s <= 0) end_op(x, (queue)k);
    }
    if (link != HELD_BY_ITEM) return;
    spend(&x->item_left_s, dt, v.up, item_at(x, x->n_started)->s);
    if (x->item_left_s <= 0) end_item(x);
}

/* ---- the driver ---- */

static void wait_for(sim_split *x, event ev)
{
    while (over_s(x, ev) > x->now) go_on(x, ev);
}

/* A stage on the CPU: its fixed cost, what it does to each element of `rows` rows, its products. */
static void compute(sim_split *x, double fixed, double rows, const work *w)
{
    double elems = rows * x->e.shape->d_model * x->e.cost.elem_s, s = fixed + elems + w->s;
    x->busy[SL_RES_SYNC] += fixed;
    x->busy[SL_RES_CPU] += elems + w->arithmetic_s;
    x->cpu_left_s = s;
    x->cpu_share = s > 0 ? fmin(w->bytes / x->e.dram / s, 1) : 0;
    while (x->cpu_left_s > 0) go_on(x, (event){ Q_DEVICE, 0 });
}

static event push(sim_split *x, queue k, op o)
{
    fifo *f = &x->q[k];
    while (f->n - f->n_done + 1 >= x->cap) go_on(x, (event){ k, f->n_done + 1 });
    o.kind = x->step->kind;
    o.layer = x->step->layer;
    f->ops[++f->n % x->cap] = o;
    return (event){ k, f->n };
}

static event up(sim_split *x, double bytes)
{
    return push(x, Q_UP, (op){ .s = split_up_s(&x->e, bytes) });
}

static event down(sim_split *x, double bytes, event behind)
{
    return push(x, Q_DOWN, (op){ .need = behind, .s = split_down_s(&x->e, bytes) });
}

static event device(sim_split *x, const work *w, double rows, event need, uint64_t want,
                    uint64_t frees)
{
    double elems = rows * x->e.shape->d_model * x->e.gpu.elem_s;
    return push(x, Q_DEVICE,
                (op){ .need = need, .item = want, .frees = frees, .memory_s = w->memory_s,
                      .arithmetic_s = w->arithmetic_s + elems, .start_s = x->e.gpu.launch_s,
                      .s = x->e.gpu.launch_s + elems + w->s });
}

/* ---- weights on their way ---- */

static uint64_t want(sim_split *x, double bytes, double room, uint32_t layer)
{
    if (!(bytes > 0)) return 0;
    assert(x->n_wanted - x->n_freed < x->cap_items);
    *item_at(x, ++x->n_wanted) = (shipment){ .s = split_up_s(&x->e, bytes), .bytes = bytes,
                                         .room = room, .lanes_left = x->n_lanes, .layer = layer,
                                         .kind = x->step->kind };
    return x->n_wanted;
}

static const split_layer *part_of(const sim_split *x, uint32_t layer)
{
    return &x->parts[x->parts_of[layer]];
}

static uint32_t n_stay(const sim_split *x, const sl_layer_shape *l)
{
    return SL_MIN(x->e.x->n_stay, l->n_expert);
}

/* Experts of an item. */
static uint32_t group_size(const sim_split *x, const sl_layer_shape *l)
{
    uint64_t fit = x->e.x->ring_bytes / GROUPS_A_RING / SL_MAX(l->slot_bytes, 1);
    return (uint32_t)SL_MIN(SL_MAX(fit, 1), (uint64_t)MAX_GROUP);
}

static void want_front(sim_split *x, uint32_t layer)
{
    const sl_layer_shape *l = &x->e.shape->layers[layer];
    double bytes = (double)(l->qkv_bytes + l->post_bytes + l->router_bytes);
    x->front[layer] = layer < x->e.x->n_dense_layers ? 0 : want(x, bytes, bytes, layer);
}

static void want_back(sim_split *x, uint32_t layer)
{
    double bytes = (double)x->e.shape->layers[layer].ffn_bytes;
    x->back[layer] = layer < x->e.x->n_dense_layers ? 0 : want(x, bytes, bytes, layer);
}

static void want_head(sim_split *x)
{
    double bytes = (double)x->steps[x->n_steps - 1].send_bytes;
    x->head = want(x, bytes, bytes, SL_STEP_NONE);
}

static void want_groups(sim_split *x, uint32_t layer)
{
    const sl_layer_shape *l = &x->e.shape->layers[layer];
    uint32_t stay = n_stay(x, l), size = group_size(x, l);
    x->groups[layer] = stay < l->n_expert ? x->n_wanted + 1 : 0;
    for (uint32_t at = stay, k; at < l->n_expert; at += k) {
        k = SL_MIN(size, l->n_expert - at);
        want(x, k * (double)l->expert_bytes, k * (double)l->slot_bytes, layer);
    }
}

/* All that one pass sends, in its order. */
static void want_pass(sim_split *x)
{
    uint64_t before = x->n_wanted;
    for (uint32_t i = 0; i < x->e.shape->n_layer; i++) {
        want_front(x, i);
        want_groups(x, i);
        want_back(x, i);
    }
    want_head(x);
    x->pass_items = x->n_wanted - before;
}

/* Without experts: from layer `from` on, as far as no router has to speak first. */
static void want_on(sim_split *x, uint32_t from)
{
    for (uint32_t i = from; i < x->e.shape->n_layer; i++) {
        const sl_layer_shape *l = &x->e.shape->layers[i];
        want_front(x, i);
        if (n_stay(x, l) < l->n_expert) return;
        want_back(x, i);
    }
    want_head(x);
}

static void drop_all(sim_split *x)
{
    for (int k = 0; k < N_QUEUES; k++) assert(x->q[k].n == x->q[k].n_done);
    x->n_freed = x->n_sent = x->n_started = x->n_wanted;
    x->ring_used = x->item_left_s = 0;
    x->pass_items = 0;
}

/* What is on its way already belongs to a pass of the same kind, or is dropped. */
static void begin_weights(sim_split *x)
{
    bool same = x->all && x->pass_items && x->sends_lanes == x->n_lanes;
    x->step = &x->steps[0];
    if (!same) drop_all(x);
    x->sends_lanes = x->n_lanes;
    if (!x->all) {
        want_on(x, 0);
        return;
    }
    if (!same) want_pass(x);
    want_pass(x);
}

static uint64_t this_pass(const sim_split *x, uint64_t item)
{
    return item && x->all ? item - x->pass_items : item;
}

/* ---- experts ---- */

static double quantile(uint64_t draw)
{
    double u = (double)draw * GOLDEN;
    return u - floor(u);
}

static double whole(sim_split *x, double n)
{
    return floor(n + quantile(++x->draw));
}

/* All of them on the device, group by group as they arrive. */
static void all_experts(sim_split *x, lane *ln, const split_layer *p)
{
    const sl_layer_shape *l = p->of;
    uint32_t stay = n_stay(x, l), size = group_size(x, l);
    uint64_t item = this_pass(x, x->groups[x->step->layer]);
    work w = { .s = 0 };
    double share = p->n_experts / l->n_expert, runs = ln->rows * l->n_used / l->n_expert;
    event none = { Q_DEVICE, 0 };
    if (stay) {
        work_add(&w, &p->on_device, stay * share);
        device(x, &w, stay * runs, none, 0, 0);
    }
    for (uint32_t at = stay, k; at < l->n_expert; at += k, item++) {
        k = SL_MIN(size, l->n_expert - at);
        w = (work){ .s = 0 };
        work_add(&w, &p->on_device, k * share);
        device(x, &w, k * runs, none, item, item);
    }
}

/* How many of a row's experts stay on the device: drawn; of many rows' the mean. */
static double staying(sim_split *x, const split_layer *p)
{
    const sl_layer_shape *l = p->of;
    if (p->rows > 1) return split_staying_of(&x->e, l, p->n_experts);
    const double *cdf = x->stay_cdf[x->parts_of[x->step->layer]];
    double u = quantile(++x->draw);
    uint32_t i = 0;
    while (i < SL_MAX_MISSED && i < l->n_used && cdf[i] < u) i++;
    return i;
}

/* Those that the router named: what stays and what is sent on the device, the others on the CPU;
 * all are added on the device. */
static void asked_experts(sim_split *x, lane *ln, const split_layer *p)
{
    const sl_layer_shape *l = p->of;
    split_turn t = split_turn_of(p, staying(x, p));
    event none = { Q_DEVICE, 0 };
    double row = x->e.shape->d_model * sizeof(float), n = t.n_sent > 0 ? whole(x, t.n_sent) : 0;
    uint64_t first = x->n_wanted + 1;
    for (double i = 0; i < n; i++)
        want(x, t.n_sent / n * (double)l->expert_bytes, (double)l->slot_bytes, x->step->layer);
    if (n_stay(x, l) < l->n_expert) {
        want_back(x, x->step->layer);
        want_on(x, x->step->layer + 1);
    }
    event h = { Q_DEVICE, 0 };
    if (t.n_cpu > 0) h = down(x, ln->rows * row, none);
    /* those that stay in one call where outputs may wait, else each in its turn */
    double calls = p->stored ? fmin(t.n_stay, 1) : t.n_stay;
    for (double i = 0; i < calls; i++) {
        work w = { .s = 0 };
        work_add(&w, &t.stay, 1 / ceil(calls));
        device(x, &w, t.stay_runs / ceil(calls), none, 0, 0);
    }
    for (double i = 0; i < n; i++) {
        work w = { .s = 0 };
        work_add(&w, &t.sent, 1 / n);
        device(x, &w, t.sent_runs / n, none, first, first);
        first++;
    }
    if (!(t.n_cpu > 0)) return;
    wait_for(x, h);
    compute(x, ln->rows > 1 ? x->e.cost.call_s : x->e.cost.stage_s, t.cpu_runs, &t.cpu);
    ln->up = up(x, t.cpu_runs * row);
}

static void experts(sim_split *x, lane *ln)
{
    const split_layer *p = part_of(x, x->step->layer);
    uint64_t back = this_pass(x, x->back[x->step->layer]);
    if (p->of->n_expert) {
        wait_for(x, ln->down);
        if (x->all) all_experts(x, ln, p);
        else asked_experts(x, ln, p);
        back = this_pass(x, x->back[x->step->layer]);
    }
    device(x, &p->ffn, ln->rows, ln->up, back, back);
    ln->up = (event){ Q_DEVICE, 0 };
}

/* ---- a pass ---- */

static void attend(sim_split *x, lane *ln)
{
    const sl_step *st = x->step;
    work w = { .s = 0 };
    double rows = 0, fetched = 0;
    for (int prompt = 0; prompt < 2; prompt++) {
        split_attend a = split_attend_rows(&x->e.shape->layers[st->layer], ln->runs, ln->n, prompt);
        if (!(a.rows > 0) || st->rows == (prompt ? SL_ROWS_DECODE : SL_ROWS_PROMPT)) continue;
        work some = split_attend_work(&x->e, st, &a, prompt);
        work_add(&w, &some, 1);
        rows += a.rows;
        fetched += a.fetched;
    }
    if (!(rows > 0)) return;
    if (st->on == SL_ON_DEVICE) {
        event need = { Q_DEVICE, 0 }, behind = { Q_DEVICE, x->q[Q_DEVICE].n };
        if (split_fetches(&x->e, st) && fetched > 0)
            need = push(x, Q_UP, (op){ .need = behind,
                                       .s = split_up_s(&x->e, fetched * (double)st->ctx_bytes) });
        event over = device(x, &w, rows, need, 0, 0);
        if (st->link_row_bytes) down(x, rows * (double)st->link_row_bytes, over);
        return;
    }
    wait_for(x, ln->down);
    compute(x, x->e.cost.stage_s, rows, &w);
    ln->up = up(x, rows * (double)st->link_row_bytes);
}

static void head(sim_split *x, lane *ln)
{
    const sl_step *st = x->step;
    const sl_part *part = &x->e.shape->head;
    uint64_t item = this_pass(x, x->head);
    if (!(ln->logits > 0)) {
        if (item) push(x, Q_DEVICE, (op){ .item = item, .frees = item });
        return;
    }
    double bytes = ln->logits * (double)st->link_row_bytes;
    if (st->on == SL_ON_DEVICE) {
        work w = work_product_gpu(&x->e.gpu, part, 1, (double)st->bytes, ln->logits);
        event over = device(x, &w, ln->logits, (event){ Q_DEVICE, 0 }, item, item);
        ln->down = down(x, bytes, over);
        return;
    }
    wait_for(x, down(x, bytes, (event){ Q_DEVICE, x->q[Q_DEVICE].n }));
    work w = work_product(x->e.m, x->e.threads, x->e.dram, part, 1, (double)st->bytes, ln->logits);
    compute(x, x->e.cost.stage_s, ln->logits, &w);
}

static void run_step(sim_split *x, lane *ln)
{
    const sl_step *st = x->step = &x->steps[ln->at++];
    const split_layer *p = st->layer == SL_STEP_NONE ? NULL : part_of(x, st->layer);
    uint64_t front = p ? this_pass(x, x->front[st->layer]) : 0;
    event none = { Q_DEVICE, 0 }, over;
    double rows;
    switch (st->kind) {
    case SL_STEP_EMBED:
        compute(x, x->e.cost.stage_s, ln->rows, &(work){ .s = 0 });
        ln->up = up(x, ln->rows * (double)st->link_row_bytes);
        break;
    case SL_STEP_QKV:
        over = device(x, &p->qkv, ln->rows, ln->up, front, 0);
        ln->up = none;
        rows = split_cpu_rows(&x->e, ln->runs, ln->n);
        if (rows > 0) ln->down = down(x, rows * (double)st->link_row_bytes, over);
        break;
    case SL_STEP_ATTEND: attend(x, ln); break;
    case SL_STEP_POST:
        over = device(x, &p->post, ln->rows, ln->up, 0, p->of->n_expert ? 0 : front);
        ln->up = none;
        break;
    case SL_STEP_ROUTE:
        over = device(x, &p->route, ln->rows, none, 0, front);
        ln->down = down(x, ln->rows * (double)st->link_row_bytes, over);
        break;
    case SL_STEP_EXPERTS: experts(x, ln); break;
    case SL_STEP_HEAD: head(x, ln); break;
    }
}

/* Until the lane gives way, or is done. */
static void serve(sim_split *x, lane *ln)
{
    do run_step(x, ln);
    while (ln->at < x->n_steps && !x->steps[ln->at].gives_way);
}

/* For lanes of so many rows. */
static void set_parts(sim_split *x, double rows)
{
    if (x->parts_rows == rows && x->parts_all == x->all) return;
    x->parts_rows = rows;
    x->parts_all = x->all;
    x->together = kept_together(&x->e, rows);
    x->n_parts = 0;
    for (uint32_t i = 0; i < x->e.shape->n_layer; i++) {
        const sl_layer_shape *l = &x->e.shape->layers[i];
        uint32_t k = 0;
        while (k < x->n_parts && memcmp(x->parts[k].of, l, sizeof *l)) k++;
        x->parts_of[i] = k;
        if (k < x->n_parts) continue;
        split_layer_set(&x->e, l, rows, x->all, &x->parts[x->n_parts++]);
        double sum = 0, p[SL_MAX_MISSED + 1];
        split_staying(&x->e, l, p);
        for (int j = 0; j <= SL_MAX_MISSED; j++) x->stay_cdf[k][j] = sum += p[j];
    }
}

/* A pass's rows one behind the other, cut into equal lanes. */
static void set_lanes(sim_split *x, const sl_rows *rows, uint32_t n)
{
    double all = 0, before = 0;
    for (uint32_t i = 0; i < n; i++) all += rows[i].n;
    x->all = split_sends_all(&x->e, all);
    x->n_lanes = split_lanes(&x->e, all);
    double each = ceil(all / x->n_lanes);
    for (uint32_t k = 0; k < x->n_lanes; k++) {
        lane *ln = &x->lanes[k];
        double from = k * each, to = fmin(from + each, all);
        ln->n = ln->at = 0;
        ln->rows = to - from;
        ln->logits = 0;
        ln->up = ln->down = (event){ Q_DEVICE, 0 };
        before = 0;
        for (uint32_t i = 0; i < n; before += rows[i++].n) {
            double a = fmax(from, before), b = fmin(to, before + rows[i].n);
            if (a >= b) continue;
            bool last = b >= before + rows[i].n;
            ln->runs[ln->n++] = (sl_rows){ .first = rows[i].first + (uint32_t)(a - before),
                                           .n = (uint32_t)(b - a), .draws = last && rows[i].draws };
            ln->logits += last && rows[i].draws;
        }
    }
    set_parts(x, all / x->n_lanes);
}

double sim_split_pass(sim_split *x, const sl_rows *rows, uint32_t n, double times,
                      sl_timeline *line, sl_phase *f)
{
    set_lanes(x, rows, n);
    memset(x->busy, 0, sizeof x->busy);
    x->wait_s = 0;
    x->began = x->now;
    x->line = line;
    for (int r = 0; r < SL_N_RESOURCES; r++) x->last[r] = NO_SPAN;
    begin_weights(x);
    for (bool some = true; some; ) {
        some = false;
        for (uint32_t k = 0; k < x->n_lanes; k++) {
            if (x->lanes[k].at == x->n_steps) continue;
            serve(x, &x->lanes[k]);
            some = true;
        }
    }
    for (int k = 0; k < N_QUEUES; k++) wait_for(x, (event){ (queue)k, x->q[k].n });
    x->line = NULL;
    double seconds = x->now - x->began;
    f->seconds += times * seconds;
    f->wait_s += times * x->wait_s;
    for (int r = 0; r < SL_N_RESOURCES; r++) f->busy_s[r] += times * x->busy[r];
    return seconds;
}

void sim_split_begin(sim_split *x)
{
    for (int k = 0; k < N_QUEUES; k++) x->q[k].n = x->q[k].n_done = 0;
    x->n_wanted = x->n_started = x->n_sent = x->n_freed = 0;
    drop_all(x);
    x->now = 0;
}

const split_env *sim_split_env(const sim_split *x)
{
    return &x->e;
}

double sim_split_bound_s(const sim_split *x, const split_sum *weights, const sl_rows *rows,
                         uint32_t n)
{
    split_sum sum = *weights, one = { .chain_s = 0 };
    const sl_shape *s = x->e.shape;
    double all = 0, logits = 0;
    for (uint32_t i = 0; i < n; i++) all += rows[i].n, logits += rows[i].draws;
    uint32_t lanes = split_lanes(&x->e, all);
    for (uint32_t l = 0; l < s->n_layer; l++) {
        if (!l || memcmp(&s->layers[l], &s->layers[l - 1], sizeof *s->layers)) {
            split_attend prompt = split_attend_rows(&s->layers[l], rows, n, true);
            split_attend draw = split_attend_rows(&s->layers[l], rows, n, false);
            one = (split_sum){ .chain_s = 0 };
            split_sum_attention(&x->e, l, &prompt, true, lanes, 1, &one);
            split_sum_attention(&x->e, l, &draw, false, lanes, !(prompt.rows > 0), &one);
        }
        split_sum_add(&sum, &one);
    }
    split_sum_head(&x->e, logits, lanes, 1, &sum);
    return split_sum_s(&sum);
}

/* ---- memory ---- */

static uint32_t most_experts(const sl_forecast_in *in)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < in->shape->n_layer; i++)
        most = SL_MAX(most, in->shape->layers[i].n_expert);
    return most;
}

/* Items of two passes. */
static uint32_t most_items(const sl_forecast_in *in)
{
    uint32_t n = 2;
    for (uint32_t i = 0; i < in->shape->n_layer; i++) n += in->shape->layers[i].n_expert + 2;
    return 2 * n;
}

/* Room that is given out; at NULL it is only counted. */
struct room { char *at; size_t n; };

static void *take(struct room *r, size_t n, size_t size)
{
    void *p = r->at ? r->at + r->n : NULL;
    r->n += (n * size + 63) / 64 * 64;
    return p;
}

static void lay_out(sim_split *x, struct room *r, const sl_forecast_in *in)
{
    uint32_t n = in->shape->n_layer;
    x->cap = 2 * most_experts(in) + 64;
    x->cap_items = most_items(in);
    x->parts = take(r, n, sizeof *x->parts);
    x->parts_of = take(r, n, sizeof *x->parts_of);
    x->stay_cdf = take(r, n, sizeof *x->stay_cdf);
    for (int k = 0; k < N_QUEUES; k++) {
        x->q[k].ops = take(r, x->cap, sizeof *x->q[k].ops);
        x->q[k].over_s = take(r, x->cap, sizeof *x->q[k].over_s);
    }
    x->items = take(r, x->cap_items, sizeof *x->items);
    x->front = take(r, n, sizeof *x->front);
    x->back = take(r, n, sizeof *x->back);
    x->groups = take(r, n, sizeof *x->groups);
    for (int k = 0; k < MAX_LANES; k++)
        x->lanes[k].runs = take(r, in->plan->n_seq + 1ull, sizeof *x->lanes[k].runs);
}

size_t sim_split_bytes(const sl_forecast_in *in)
{
    sim_split count = { .cap = 0 };
    struct room r = { NULL, sizeof count + 64 };
    lay_out(&count, &r, in);
    return r.n;
}

sim_split *sim_split_init(void *room, const sl_forecast_in *in, const sl_step *steps,
                          uint32_t n_steps)
{
    sim_split *x = room;
    struct room r = { room, (sizeof *x + 63) / 64 * 64 };
    *x = (sim_split){ .steps = steps, .n_steps = n_steps };
    split_env_init(&x->e, in);
    lay_out(x, &r, in);
    sim_split_begin(x);
    return x;
}
