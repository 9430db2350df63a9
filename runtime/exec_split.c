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
    unsigned mark, cpu_mark;    /* SL_EXPERTS_FIRST before the first call on that side */
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

/* From run `at` on, those of experts below `end`, which are there. Returns how many. */
static uint32_t give_below(struct turn *t, uint32_t at, uint32_t end)
{
    lane *n = t->n;
    uint32_t i = at;
    for (; i < t->n_routed && n->ids[i] < end; i++)
        give(&n->runs[i], board_expert(&t->e->board, t->l->index, n->ids[i]));
    return i - at;
}

/* All experts are on their way, in groups; those that stay come between them in their order. */
static sl_status run_groups(struct turn *t)
{
    board *b = &t->e->board;
    lane *n = t->n;
    uint32_t at = 0, layer = t->l->index, some;
    for (uint32_t i = b->first_group[layer], g = 0; g < b->n_groups[layer]; i++, g++) {
        some = give_below(t, at, board_group_first(b, i));
        SL_TRY(submit(t, n->runs + at, some, false));
        at += some;
        SL_TRY(board_use_group(b, i));
        some = give_below(t, at, board_group_last(b, i) + 1);
        SL_TRY(submit(t, n->runs + at, some, false));
        at += some;
        SL_TRY(board_done_group(b, i));
    }
    (void)give_below(t, at, UINT32_MAX);
    return submit_last(t, at);
}

typedef enum place { STAYS, SENT, ON_CPU } place;

static place place_of(const struct turn *t, const sl_expert_run *r, bool stored)
{
    if (board_stays(&t->e->board, t->l->index, r->index)) return STAYS;
    return stored && r->n_rows < t->e->plan.split.send_rows ? ON_CPU : SENT;
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
    SL_TRY(board_keep(&t->e->board, t->l->index, n->ids, t->n_routed));
    return submit_last(t, t->n_routed);
}

static const sl_layer *host_layer(const struct turn *t)
{
    return &t->e->loaded.layers[t->l->index];
}

/* The i-th expert of those that the CPU computes where they lie, n->part. Outputs stand in the
 * order of the runs: they have the same place on both sides. */
static void leave_to_cpu(struct turn *t, const sl_expert_run *r, sl_expert_data d, uint32_t i)
{
    lane *n = t->n;
    sl_expert_run *p = &n->part[i];
    *p = *r;
    p->ffn = exec_expert_ffn(host_layer(t), r->index);
    p->out = n->out + (r->out - n->dev_out);
    give(p, d);
}

/* h came down, their outputs go up. */
static sl_status run_on_cpu(struct turn *t, uint32_t n_part)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    uint64_t dm = e->weights.d_model;
    if (!n_part) return SL_OK;
    SL_TRY(e->dev->ops->sync(e->dev, n->down));
    split_read(e, n->host.h, n->host.n_rows * dm);
    for (uint32_t i = 0; i < n_part; i++) split_write(e, n->part[i].out, n->part[i].n_rows * dm);
    SL_TRY(e->cpu->ops->experts(e->cpu, host_layer(t), n->part, n_part, t->cpu_mark, &n->host));
    t->cpu_mark = 0;
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

/* Outputs get their places, and the device computes what it has. h comes down if it is wanted. */
static sl_status begin_stored(struct turn *t, bool want_h)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    uint64_t dm = e->weights.d_model, out = 0;
    uint32_t n_part = 0;
    for (uint32_t i = 0; i < t->n_routed; out += n->runs[i++].n_rows * dm) {
        sl_expert_run *r = &n->runs[i];
        place p = place_of(t, r, true);
        r->part = SL_RUN_STORE;
        r->out = n->dev_out + out;
        want_h |= p == ON_CPU;
        if (p != STAYS) continue;
        give(r, board_expert(&e->board, t->l->index, r->index));
        n->part[n_part++] = *r;
    }
    if (want_h) SL_TRY(begin_h_down(t));
    return submit(t, n->part, n_part, false);
}

/* All outputs are added; a run without rows, whose expert could not be read, has none. */
static sl_status end_stored(struct turn *t)
{
    uint32_t n_runs = 0;
    for (uint32_t i = 0; i < t->n_routed; i++) {
        sl_expert_run r = t->n->runs[i];
        r.part = SL_RUN_ADD;
        if (r.n_rows) t->n->runs[n_runs++] = r;
    }
    t->n_routed = n_runs;
    return submit_last(t, 0);
}

/* Few rows: the device computes what it has while the rest is on its way and the CPU is at work. */
static sl_status run_stored(struct turn *t)
{
    lane *n = t->n;
    uint32_t n_part = 0;
    SL_TRY(ask(t, true));
    SL_TRY(begin_stored(t, false));
    for (uint32_t i = 0; i < t->n_routed; i++) {
        sl_expert_run *r = &n->runs[i];
        place p = place_of(t, r, true);
        if (p == SENT) SL_TRY(run_sent(t, r));
        if (p == ON_CPU)
            leave_to_cpu(t, r, sl_stream_place(t->e->loaded.stream, t->l->index, r->index),
                         n_part++);
    }
    SL_TRY(board_keep(&t->e->board, t->l->index, n->ids, t->n_routed));
    SL_TRY(run_on_cpu(t, n_part));
    return end_stored(t);
}

/* ---- experts that come from disk ---- */

/* Reads for those that do not stay leave. Returns how many do: they are the first. */
static uint32_t begin_reads(struct turn *t, bool in_order)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    uint32_t at = 0;
    while (at < t->n_routed && n->ids[at] < e->plan.split.n_stay) at++;
    sl_stream_ask a = { .layer = t->l->index, .ids = n->ids + at, .n = t->n_routed - at,
                        .expert_id = n->host.expert_id, .seq = n->host.seq,
                        .n_rows = n->host.n_rows, .n_used = t->l->routing.n_used,
                        .in_order = in_order };
    sl_stream_begin(e->loaded.stream, &a);
    return at;
}

/* From its slot. */
static sl_status send_landed(struct turn *t, sl_expert_run *r, sl_expert_data d)
{
    SL_TRY(board_send(&t->e->board, t->l->index, r->index, d));
    return run_sent(t, r);
}

/* What was given out is sent, or computed: the disk may write there again. */
static sl_status give_back(struct turn *t, const sl_expert_run *runs, uint32_t got)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    const sl_expert_slices *all = e->m->experts + (size_t)t->l->index * e->m->hp.n_expert;
    if (got) SL_TRY(board_sync(&e->board));
    for (uint32_t i = 0; i < got; i++) {
        const char *gate = n->data[i].gate, *down = n->data[i].down;
        if (!gate) continue;
        uint64_t bytes = (uint64_t)(down - gate) + all[runs[n->ready[i]].index].down.bytes;
        e->dev->ops->touch(e->dev, gate, bytes, true);
        sl_stream_done(e->loaded.stream, n->ready[i]);
    }
    return SL_OK;
}

/* No more experts of this layer: what comes behind them may be sent. */
static sl_status go_on(struct turn *t)
{
    board_ask(&t->e->board, t->l->index, t->n->ids, 0);
    return board_pump(&t->e->board);
}

/* More rows than there is room to store outputs for: in order, and all of them sent. */
static sl_status run_landed_in_order(struct turn *t)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    uint32_t n_stay = begin_reads(t, true), n_named = t->n_routed, got;
    for (uint32_t i = 0; i < n_stay; i++)
        give(&n->runs[i], board_expert(&e->board, t->l->index, n->ids[i]));
    SL_TRY(submit(t, n->runs, n_stay, false));
    do {
        exec_read_on(e, n, host_layer(t), n_named);
        got = exec_landed(e, n, n->runs + n_stay);
        for (uint32_t i = 0; i < got; i++) {
            sl_expert_run *r = &n->runs[n_stay + n->ready[i]];
            if (r->n_rows) SL_TRY(send_landed(t, r, n->data[i]));
        }
        SL_TRY(give_back(t, n->runs + n_stay, got));
    } while (got);
    SL_TRY(go_on(t));
    return submit_last(t, t->n_routed);
}

/* Few rows: each is sent, or computed by the CPU, when it lands. */
static sl_status run_landed(struct turn *t)
{
    sl_engine *e = t->e;
    lane *n = t->n;
    bool guesses = sl_stream_wants_guess(e->loaded.stream);
    uint32_t n_stay = begin_reads(t, false), got;
    SL_TRY(begin_stored(t, guesses));
    if (guesses) {
        SL_TRY(e->dev->ops->sync(e->dev, n->down));
        split_read(e, n->host.h, (uint64_t)n->host.n_rows * e->weights.d_model);
        SL_TRY(exec_guess(e, n, host_layer(t)));
    }
    do {
        uint32_t n_part = 0;
        got = exec_landed(e, n, n->runs + n_stay);
        for (uint32_t i = 0; i < got; i++) {
            sl_expert_run *r = &n->runs[n_stay + n->ready[i]];
            if (!r->n_rows) continue;
            if (place_of(t, r, true) == SENT) SL_TRY(send_landed(t, r, n->data[i]));
            else leave_to_cpu(t, r, n->data[i], n_part++);
        }
        SL_TRY(run_on_cpu(t, n_part));
        SL_TRY(give_back(t, n->runs + n_stay, got));
    } while (got);
    SL_TRY(go_on(t));
    return end_stored(t);
}

/* ---- */

sl_status split_experts(sl_engine *e, lane *n, const sl_step *step)
{
    struct turn t = { .e = e, .n = n, .l = &e->board.layers[step->layer],
                      .mark = SL_EXPERTS_FIRST, .cpu_mark = SL_EXPERTS_FIRST };
    if (!t.l->moe) return submit_last(&t, 0);
    SL_TRY(e->dev->ops->sync(e->dev, n->down));     /* the router's answer */
    split_read(e, n->host.expert_id,
               (uint64_t)(n->host.shared_w - (float *)(void *)n->host.expert_id) + n->host.n_rows);
    if (e->trace) exec_report(e, n, t.l);
    t.n_routed = exec_group(n, t.l);
    e->stats.expert_runs += t.n_routed;
    e->stats.bytes_touched += t.n_routed * step->expert_bytes;
    board_learn(&e->board, t.l->index, &n->host, t.l->routing.n_used);
    if (e->board.all) return run_groups(&t);
    uint64_t pairs = (uint64_t)n->host.n_rows * t.l->routing.n_used;
    bool stored = pairs <= e->plan.split.stored_runs;
    if (e->board.streamed) return stored ? run_landed(&t) : run_landed_in_order(&t);
    return stored ? run_stored(&t) : run_in_order(&t);
}
