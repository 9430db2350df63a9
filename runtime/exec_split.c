/* runtime/exec_split.c - a layer's experts between an accelerator and the CPU, and the copies
 * between a lane's two sets of buffers.
 * Sums have one order, ascending by expert, wherever an expert is computed and whenever its weights
 * come: either in that order, each added in place; or outputs are stored, and added at the end. */
#include "runtime/exec.h"

#include <assert.h>

/* ---- copies ---- */

sl_status split_begin_down(sl_engine *e)
{
    sl_event ev;
    SL_TRY(e->dev->ops->record(e->dev, SL_Q_COMPUTE, &ev));
    return e->dev->ops->wait(e->dev, SL_Q_DOWN, ev);
}

sl_status split_down(sl_engine *e, void *dst, const void *src, uint64_t n_floats)
{
    return e->dev->ops->copy(e->dev, SL_Q_DOWN, dst, src, n_floats * sizeof(float));
}

sl_status split_end_down(sl_engine *e, sl_event *ret_there)
{
    return e->dev->ops->record(e->dev, SL_Q_DOWN, ret_there);
}

sl_status split_up(sl_engine *e, void *dst, const void *src, uint64_t n_floats)
{
    return e->dev->ops->copy(e->dev, SL_Q_UP, dst, src, n_floats * sizeof(float));
}

sl_status split_end_up(sl_engine *e)
{
    sl_event ev;
    SL_TRY(e->dev->ops->record(e->dev, SL_Q_UP, &ev));
    return e->dev->ops->wait(e->dev, SL_Q_COMPUTE, ev);
}

void split_read(sl_engine *e, const void *p, uint64_t n_floats)
{
    e->dev->ops->touch(e->dev, p, n_floats * sizeof(float), false);
}

void split_write(sl_engine *e, const void *p, uint64_t n_floats)
{
    e->dev->ops->touch(e->dev, p, n_floats * sizeof(float), true);
}

/* ---- experts ---- */

/* A layer's turn. */
struct turn {
    sl_engine *e;
    lane *n;
    const sl_layer *l;          /* on the device */
    uint32_t n_routed;
    unsigned mark;              /* SL_EXPERTS_FIRST before the first call on the device */
};

static sl_status submit(struct turn *t, const sl_expert_run *runs, uint32_t n, bool last)
{
    unsigned mark = t->mark | (last ? SL_EXPERTS_LAST : 0);
    if (!n && !last) return SL_OK;
    t->mark = 0;
    return t->e->dev->ops->experts(t->e->dev, t->l, runs, n, mark, &t->n->dev);
}

static void give(sl_expert_run *r, sl_expert_data d)
{
    r->ffn.gate.data = d.gate;
    r->ffn.up.data = d.up;
    r->ffn.down.data = d.down;
}

/* What every row goes through comes last: so do its weights. `at`: runs that are to be submitted
 * with it. */
static sl_status submit_last(struct turn *t, uint32_t at)
{
    lane *n = t->n;
    SL_TRY(board_use(&t->e->board, ITEM_BACK, t->l->index));
    uint32_t n_runs = t->n_routed + exec_all_rows(n, t->l, &n->runs[t->n_routed]);
    SL_TRY(submit(t, n->runs + at, n_runs - at, true));
    return board_done(&t->e->board, ITEM_BACK, t->l->index);
}

/* All experts are on their way, in groups. */
static sl_status run_groups(struct turn *t)
{
    board *b = &t->e->board;
    lane *n = t->n;
    uint32_t at = 0, layer = t->l->index, from;
    for (; at < t->n_routed && n->ids[at] < b->split->n_stay; at++)
        give(&n->runs[at], board_expert(b, layer, n->ids[at]));
    SL_TRY(submit(t, n->runs, at, false));
    for (uint32_t i = b->first_group[layer], g = 0; g < b->n_groups[layer]; i++, g++) {
        uint32_t end = b->items[i].first + b->items[i].n;
        SL_TRY(board_use_group(b, i));
        for (from = at; at < t->n_routed && n->ids[at] < end; at++)
            give(&n->runs[at], board_expert(b, layer, n->ids[at]));
        SL_TRY(submit(t, n->runs + from, at - from, false));
        SL_TRY(board_done_group(b, i));
    }
    return submit_last(t, at);
}

typedef enum place { STAYS, SENT, ON_CPU } place;

static place place_of(const struct turn *t, const sl_expert_run *r, bool stored)
{
    const sl_split *x = &t->e->plan.split;
    if (r->index < x->n_stay) return STAYS;
    return stored && r->n_rows < x->send_rows ? ON_CPU : SENT;
}

/* One expert that was asked for. */
static sl_status run_sent(struct turn *t, sl_expert_run *r)
{
    board *b = &t->e->board;
    SL_TRY(board_use_expert(b, t->l->index, r->index));
    give(r, board_expert(b, t->l->index, r->index));
    SL_TRY(submit(t, r, 1, false));
    return board_done_expert(b, t->l->index, r->index);
}

/* Asks for those that are to be sent. */
static sl_status ask(struct turn *t, bool stored)
{
    lane *n = t->n;
    uint32_t n_sent = 0;
    for (uint32_t i = 0; i < t->n_routed; i++)
        if (place_of(t, &n->runs[i], stored) == SENT) n->ready[n_sent++] = n->ids[i];
    board_ask(&t->e->board, t->l->index, n->ready, n_sent);
    return board_pump(&t->e->board);
}

/* More rows than there is room to store outputs for: in order. */
static sl_status run_in_order(struct turn *t)
{
    lane *n = t->n;
    SL_TRY(ask(t, false));
    for (uint32_t i = 0; i < t->n_routed; i++) {
        sl_expert_run *r = &n->runs[i];
        if (place_of(t, r, false) == SENT) {
            SL_TRY(run_sent(t, r));
            continue;
        }
        give(r, board_expert(&t->e->board, t->l->index, r->index));
        SL_TRY(submit(t, r, 1, false));
    }
    return submit_last(t, t->n_routed);
}

/* Experts that the CPU computes where they lie: h comes down, their outputs go up. Outputs stand in
 * the order of the runs, so those of the CPU's, which are n->part, have the same place on both
 * sides. */
static sl_status run_on_cpu(struct turn *t, uint32_t n_part)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    const sl_layer *l = &e->loaded.layers[t->l->index];
    uint64_t dm = e->weights.d_model;
    SL_TRY(e->dev->ops->sync(e->dev, n->down));
    split_read(e, n->host.h, n->host.n_rows * dm);
    for (uint32_t i = 0; i < n_part; i++) {
        sl_expert_run *r = &n->part[i];
        r->ffn = exec_expert_ffn(l, r->index);
        give(r, sl_stream_place(e->loaded.stream, l->index, r->index));
        split_write(e, r->out, r->n_rows * dm);
    }
    SL_TRY(e->cpu->ops->experts(e->cpu, l, n->part, n_part, SL_EXPERTS_FIRST, &n->host));
    for (uint32_t i = 0; i < n_part; i++) {
        const sl_expert_run *r = &n->part[i];
        SL_TRY(split_up(e, n->dev_out + (r->out - n->out), r->out, r->n_rows * dm));
    }
    return split_end_up(e);
}

/* What the CPU's experts multiply with: begun before the device's own, which it would wait for. */
static sl_status begin_h_down(struct turn *t)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    SL_TRY(split_begin_down(e));
    SL_TRY(split_down(e, n->host.h, n->dev.h, (uint64_t)n->host.n_rows * e->weights.d_model));
    return split_end_down(e, &n->down);
}

/* Few rows: the device computes what it has while the rest is on its way and the CPU is at work;
 * all outputs are added at the end. */
static sl_status run_stored(struct turn *t)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    uint64_t dm = e->weights.d_model, out = 0;
    uint32_t n_part = 0;
    bool on_cpu = false;
    SL_TRY(ask(t, true));
    for (uint32_t i = 0; i < t->n_routed; out += n->runs[i++].n_rows * dm) {
        sl_expert_run *r = &n->runs[i];
        place p = place_of(t, r, true);
        r->part = SL_RUN_STORE;
        r->out = n->dev_out + out;
        on_cpu |= p == ON_CPU;
        if (p != STAYS) continue;
        give(r, board_expert(&e->board, t->l->index, r->index));
        n->part[n_part++] = *r;
    }
    if (on_cpu) SL_TRY(begin_h_down(t));
    SL_TRY(submit(t, n->part, n_part, false));
    n_part = 0;
    for (uint32_t i = 0; i < t->n_routed; i++) {
        sl_expert_run *r = &n->runs[i];
        place p = place_of(t, r, true);
        if (p == SENT) SL_TRY(run_sent(t, r));
        if (p == ON_CPU) {
            n->part[n_part] = *r;
            n->part[n_part++].out = n->out + (r->out - n->dev_out);
        }
        r->part = SL_RUN_ADD;
    }
    if (n_part) SL_TRY(run_on_cpu(t, n_part));
    return submit_last(t, 0);
}

sl_status split_experts(sl_engine *e, lane *n, const sl_step *step)
{
    struct turn t = { .e = e, .n = n, .l = &e->board.layers[step->layer],
                      .mark = SL_EXPERTS_FIRST };
    if (!t.l->moe) return submit_last(&t, 0);
    SL_TRY(e->dev->ops->sync(e->dev, n->down));     /* the router's answer */
    split_read(e, n->host.expert_id,
               (uint64_t)(n->host.shared_w - (float *)(void *)n->host.expert_id) + n->host.n_rows);
    if (e->trace) exec_report(e, n, t.l);
    t.n_routed = exec_group(n, t.l);
    e->stats.expert_runs += t.n_routed;
    e->stats.bytes_touched += t.n_routed * step->expert_bytes;
    if (e->board.all) return run_groups(&t);
    uint64_t pairs = (uint64_t)n->host.n_rows * t.l->routing.n_used;
    return pairs <= e->plan.split.stored_runs ? run_stored(&t) : run_in_order(&t);
}
