/* perfmodel/planner_queue.c - the search for the number of sequences, their room and the rows of a
 * pass that take a file of requests least. Deterministic. */
#include "perfmodel/sl_planner.h"

#include <assert.h>
#include <math.h>

enum {
    SEARCH_PASSES = 24,         /* simulated of each candidate ... */
    FINAL_PASSES = 150,         /* ... and of the choice */
    ROW_UNIT = 64, SWEEPS = 3
};
#define GAIN 0.99               /* a neighbour must take less than this of the best */

/* Positions for keys and values, as a share of what all sequences at once hold in their end: ages
 * are mixed, and who finds no room waits. */
static const double rooms[] = { 1, 0.85, 0.7, 0.55 };

typedef struct point { uint32_t n_seq, max_rows, room; } point;

typedef struct search {
    sl_ctx *ctx;
    sl_forecast_in in;
    const sl_planner_params *p;
    const sl_workload *queue;
    double mean;                /* positions of a request in its end, in blocks, and one more */
    sl_queue_choice *c;
    point best;
    double best_s;              /* INFINITY: none */
} search;

static uint32_t round_up(double n, uint32_t unit)
{
    return (uint32_t)(ceil(fmax(n, 1) / unit) * unit);
}

static sl_plan_params params(const search *s, point at)
{
    sl_plan_params p = s->p->base;
    p.n_seq = at.n_seq;
    p.resident |= p.accel.kind != SL_ACCEL_NONE;        /* no forecast of disk and device */
    if (!p.kv_positions)
        p.kv_positions = (uint64_t)(rooms[at.room] * at.n_seq * s->mean);
    if (!s->p->fix_rows) p.max_rows = at.max_rows;
    return p;
}

/* Simulates a point unless it was; one that does not fit is passed over. */
static sl_status try(search *s, point at, bool *ret_better)
{
    sl_plan_params p = params(s, at);
    sl_queue_choice *c = s->c;
    sl_queue_forecast f;
    sl_plan plan;
    *ret_better = false;
    if (c->n_tries == SL_PLANNER_TRIES
        || sl_plan_make(s->ctx, s->in.shape, &p, &plan) != SL_OK)
        return SL_OK;
    for (uint32_t i = 0; i < c->n_tries; i++)
        if (c->tries[i].n_seq == plan.n_seq && c->tries[i].max_rows == plan.max_rows
            && c->tries[i].kv_positions == (uint64_t)plan.n_kv_blocks * plan.kv_block_rows)
            return SL_OK;
    s->in.plan = &plan;
    SL_TRY(sl_queue_simulate(s->ctx, &s->in, s->queue, SEARCH_PASSES, &f));
    c->tries[c->n_tries++] =
        (sl_queue_try){ .n_seq = plan.n_seq, .max_rows = plan.max_rows, .seconds = f.seconds,
                        .kv_positions = (uint64_t)plan.n_kv_blocks * plan.kv_block_rows };
    if (f.seconds >= s->best_s * GAIN) return SL_OK;
    *ret_better = true;
    s->best_s = f.seconds;
    s->best = at;
    return SL_OK;
}

/* The next value of a knob in a direction; false: there is none. */
static bool step(const search *s, int knob, bool up, point *at)
{
    double most = fmin(SL_PLANNER_MAX_SEQ, (double)s->queue->n_requests);
    if (knob == 0) {
        double n = up ? at->n_seq * 1.5 : at->n_seq / 1.5;
        n = fmin(up ? ceil(n) : floor(n), most);
        if (s->p->base.n_seq || n < 1 || n == at->n_seq) return false;
        at->n_seq = (uint32_t)n;
    } else if (knob == 1) {
        uint32_t rows = up ? at->max_rows * 2 : round_up(at->max_rows / 2.0, ROW_UNIT);
        if (s->p->fix_rows || rows == at->max_rows || rows > SL_PLANNER_MAX_ROWS) return false;
        at->max_rows = rows;
    } else {
        if (s->p->base.kv_positions || at->room + !up == 0) return false;
        at->room = up ? at->room - 1 : at->room + 1;
        if (at->room >= SL_LEN(rooms)) return false;
    }
    return true;
}

static sl_status improve(search *s, int knob)
{
    for (int up = 0; up < 2; up++) {
        bool better = true;
        for (uint32_t turn = 0; better && turn < 8; turn++) {
            point at = s->best;
            if (!step(s, knob, up, &at)) break;
            SL_TRY(try(s, at, &better));
        }
    }
    return SL_OK;
}

/* The block more is what a prompt that begins leaves to each that decodes. */
static double mean_positions(const sl_workload *q, uint32_t n_ctx)
{
    double sum = 0;
    for (uint32_t i = 0; i < q->n_lengths; i++)
        sum += round_up(fmin((double)q->lengths[i].prompt + q->lengths[i].gen, n_ctx),
                        SL_KV_BLOCK_ROWS);
    return sum / q->n_lengths + SL_KV_BLOCK_ROWS;
}

/* Ages mixed, as many sequences as are best; or so many from prompt to end together, which is
 * quicker where few want different experts in every pass. */
static sl_lens_bound stage_1(const sl_lens_box *box, const sl_workload *q)
{
    double n_requests = (double)q->n_requests;
    sl_lens_bound b = sl_lens_batch(box, q->lengths, q->n_lengths, n_requests);
    sl_lens_mix mix = sl_lens_mean(q->lengths, q->n_lengths, 1);
    double most = fmin(n_requests, SL_PLANNER_MAX_SEQ);
    for (double n = 1;; n = fmin(2 * n, most)) {
        sl_lens_bound r = sl_lens_round(box, n, (uint32_t)(mix.prompt + 0.5),
                                        (uint32_t)ceil(mix.gen));
        if (r.tok_per_s > b.tok_per_s) b = r;
        if (n >= most) return b;
    }
}

/* What stage 1 finds best, or fewer sequences where that does not fit: it does not know of every
 * buffer. */
static sl_status begin(search *s, const sl_lens_bound *bound)
{
    double n = bound->sequences > 0 ? ceil(bound->sequences) : 1;
    point at = { .n_seq = (uint32_t)fmin(fmin(n, SL_PLANNER_MAX_SEQ), (double)s->queue->n_requests),
                 .max_rows = SL_MIN(round_up(bound->pass_tokens, ROW_UNIT),
                                    (uint32_t)SL_PLANNER_MAX_ROWS) };
    if (s->p->base.n_seq) at.n_seq = s->p->base.n_seq;
    for (;;) {
        bool better;
        SL_TRY(try(s, at, &better));
        if (better) return SL_OK;
        if (at.n_seq == 1 || s->p->base.n_seq) {
            sl_plan plan;
            sl_plan_params p = params(s, at);
            return sl_plan_make(s->ctx, s->in.shape, &p, &plan);        /* says why */
        }
        at.n_seq = (at.n_seq + 1) / 2;
    }
}

sl_status sl_planner_queue(sl_ctx *ctx, const sl_machine *m, const sl_shape *shape,
                           const sl_miss_model *miss, const sl_planner_params *p,
                           const sl_workload *queue, sl_queue_choice *ret)
{
    assert(ctx && m && shape && miss && p && p->base.n_ctx);
    assert(queue->n_requests && queue->n_lengths);
    sl_queue_choice c = { .n_tries = 0 };
    search s = { .ctx = ctx, .p = p, .queue = queue, .c = &c, .best_s = INFINITY,
                 .in = { .machine = m, .shape = shape, .miss = miss } };
    sl_lens_box box = { .machine = m, .shape = shape, .miss = miss, .threads = p->base.n_threads,
                        .ram_bytes = p->base.ram_bytes ? (double)p->base.ram_bytes
                                                             - (double)p->base.process_bytes
                                                       : 0,
                        .kv_type = p->base.kv_type, .kv_block = SL_KV_BLOCK_ROWS };
    sl_machine_gpu card;
    if (p->base.accel.kind) {
        if (!sl_forecast_gpu(m, &p->base.accel, &card)) 
            return sl_fail(ctx, SL_E_ARG, "GPU %u: the machine's file does not describe it",
                           p->base.accel.index);
        box.gpu = &card;
        box.vram_bytes = (double)p->base.accel.mem_bytes;
    }
    s.mean = mean_positions(queue, p->base.n_ctx);
    c.bound = stage_1(&box, queue);
    SL_TRY(begin(&s, &c.bound));
    double before = INFINITY;
    for (int i = 0; i < SWEEPS && s.best_s < before; i++) {
        before = s.best_s;
        for (int knob = 0; knob < 3; knob++) SL_TRY(improve(&s, knob));
    }
    c.params = params(&s, s.best);
    SL_TRY(sl_plan_make(ctx, shape, &c.params, &c.plan));
    s.in.plan = &c.plan;
    SL_TRY(sl_queue_simulate(ctx, &s.in, queue, FINAL_PASSES, &c.forecast));
    /* a mixture of both ways may be better than either */
    c.bound.tok_per_s = fmax(c.bound.tok_per_s, c.forecast.bound_tok_per_s);
    *ret = c;
    return SL_OK;
}
