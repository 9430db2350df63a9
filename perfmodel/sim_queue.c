/* perfmodel/sim_queue.c - stage 2 of a file of requests. A first walk through the schedule bounds
 * every pass; a second one simulates some. Passes with about as many rows are as far above their
 * bounds as those of them that were simulated. */
#include "perfmodel/sim.h"
#include "perfmodel/work.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum { GRID = 52 };             /* numbers of rows at which weights are bounded */
#define MOST_STEPS (1u << 21)   /* passes of all sequences that are walked */

/* Bounds of passes by their rows: linear between the points of the grid. */
struct grid {
    double rows[GRID];
    sim_least at[GRID];
    uint32_t n;
};

/* `jump`: from so many rows on passes go another way; 0: none. */
static void make_grid(sim *s, uint32_t max_rows, double jump, struct grid *g)
{
    double rows = 1;
    for (g->n = 0; g->n < GRID; g->n++) {
        g->rows[g->n] = fmin(rows, max_rows);
        g->at[g->n] = sim_weights(s, g->rows[g->n]);
        if (rows >= max_rows) {
            g->n++;
            return;
        }
        double next = fmax(rows + 1, floor(rows * 1.25));
        rows = rows < jump - 1 && next >= jump ? jump - 1 : next;
        if (g->rows[g->n] == jump - 1) rows = jump;
    }
}

/* The point at or above so many rows. */
static uint32_t grid_at(const struct grid *g, double rows)
{
    uint32_t i = 0;
    while (i + 1 < g->n && g->rows[i] < rows) i++;
    return i;
}

static double between(double a, double b, double t) { return a + t * (b - a); }

static double pass_bound(sim *s, const struct grid *g, double disk_bytes_s, const sl_rows *rows,
                         uint32_t n, double all, uint32_t at)
{
    const sim_least *lo = &g->at[at ? at - 1 : 0], *hi = &g->at[at];
    double t = at ? (all - g->rows[at - 1]) / (g->rows[at] - g->rows[at - 1]) : 0;
    sim_least w = { .compute_s = between(lo->compute_s, hi->compute_s, t),
                    .disk_bytes = between(lo->disk_bytes, hi->disk_bytes, t) };
    w.shared.chain_s = between(lo->shared.chain_s, hi->shared.chain_s, t);
    for (int r = 0; r < SL_N_RESOURCES; r++)
        w.shared.busy_s[r] = between(lo->shared.busy_s[r], hi->shared.busy_s[r], t);
    return sim_bound_s(s, &w, disk_bytes_s, rows, n);
}

/* Passes with about as many rows: sums of bounds. */
struct kind {
    double bound_s, middle_s;
    /* one is simulated for every step_s; walked_s: so far */
    double step_s, next_s, walked_s;
    double seconds;             /* as simulated, of all */
};

struct walk {
    sim *s;
    const sl_forecast_in *in;
    const sl_workload *queue;
    struct grid grid;
    struct kind kinds[GRID + 1];        /* the last: the first pass, which finds nothing in RAM */
    bool every;                 /* every pass is simulated */
    double disk_bytes_s;
    uint64_t middle[2];         /* requests that ended before the passes of the middle, and then */
    double bound_s, middle_tokens;
    double sequences;           /* summed over passes */
    sl_schedule_stats stats;
    sl_phase f;
};

static double tokens(const sl_schedule_stats *st)
{
    return (double)(st->prompt_tokens + st->drawn_tokens);
}

static bool in_middle(const struct walk *w, const sl_schedule_stats *st)
{
    return st->finished >= w->middle[0] && st->finished < w->middle[1];
}

static void simulate(struct walk *w, struct kind *k, const sl_rows *rows, uint32_t n,
                     double bound_s, double times)
{
    double s = sim_pass(w->s, rows, n, times, NULL, &w->f), more = bound_s - s;
    if (more > 0) {             /* chance and rounding win nothing */
        w->f.seconds += times * more;
        w->f.wait_s += times * more;
    }
    k->seconds += times * fmax(s, bound_s);
}

static sl_status walk(sl_ctx *ctx, struct walk *w, bool simulated)
{
    sl_schedule *sc;
    const sl_rows *rows;
    SL_TRY(sl_schedule_create(ctx, w->in->plan, w->queue, &sc));
    sim_begin(w->s, false);
    for (;;) {
        sl_schedule_stats before = sl_schedule_get_stats(sc);
        uint32_t n = sl_schedule_next(sc, &rows);
        if (!n) break;
        sl_schedule_stats st = sl_schedule_get_stats(sc);
        double all = (double)(st.rows - before.rows);
        uint32_t at = grid_at(&w->grid, all);
        struct kind *k = &w->kinds[before.passes ? at : GRID];
        double b = pass_bound(w->s, &w->grid, w->disk_bytes_s, rows, n, all, at);
        if (simulated) {
            double times = w->every;
            k->walked_s += b;
            for (; !w->every && k->next_s <= k->walked_s; k->next_s += k->step_s)
                times += k->step_s / b;
            if (times > 0) simulate(w, k, rows, n, b, times);
            continue;
        }
        k->bound_s += b;
        w->bound_s += b;
        w->sequences += st.running;
        if (!in_middle(w, &before)) continue;
        k->middle_s += b;
        w->middle_tokens += tokens(&st) - tokens(&before);
    }
    w->stats = sl_schedule_get_stats(sc);
    sl_schedule_destroy(&sc);
    return SL_OK;
}

/* Those kinds of passes that take long are simulated often, each at least twice. */
static void choose_steps(struct walk *w, uint32_t most_passes)
{
    w->every = w->stats.passes <= most_passes;
    for (uint32_t i = 0; i <= GRID; i++) {
        struct kind *k = &w->kinds[i];
        k->step_s = fmin(w->bound_s / most_passes, k->bound_s / (i < GRID ? 2 : 1));
        k->next_s = k->bound_s > 0 ? k->step_s / 2 : INFINITY;
    }
}

/* How many requests are walked; the tokens of all of them, as far as the context goes. */
static uint64_t size_of(const sl_workload *q, const sl_plan *plan, double *ret_all, double *ret_gen)
{
    double prompt = 0, gen = 0;
    uint64_t rest = q->n_requests % q->n_lengths;
    double rounds = (double)(q->n_requests / q->n_lengths);
    for (uint32_t i = 0; i < q->n_lengths; i++) {
        const sl_lens_length *l = &q->lengths[i];
        double times = rounds + (i < rest);
        prompt += times * l->prompt;
        gen += times * SL_MIN(l->gen, plan->n_ctx - l->prompt + 1);
    }
    *ret_all = prompt + gen;
    *ret_gen = gen;
    double most = MOST_STEPS / (gen / (double)q->n_requests + 1);
    return (uint64_t)fmin(fmax(most, 8.0 * plan->n_seq), (double)q->n_requests);
}

sl_status sl_queue_simulate(sl_ctx *ctx, const sl_forecast_in *in, const sl_workload *queue,
                            uint32_t most_passes, sl_queue_forecast *ret)
{
    assert(queue->n_requests && queue->n_lengths && in->miss && most_passes);
    double all, gen;
    sl_workload some = *queue;
    some.n_requests = size_of(queue, in->plan, &all, &gen);
    struct walk w = { .in = in, .queue = &some,
                      .middle = { some.n_requests / 4, some.n_requests - some.n_requests / 4 } };
    uint32_t bytes, depth;
    SL_TRY(sim_create(ctx, in, &w.s));
    if (!sl_machine_disk_best(in->machine, &bytes, &depth, &w.disk_bytes_s)) w.disk_bytes_s = 0;
    make_grid(w.s, in->plan->max_rows, in->plan->split.send_all_rows, &w.grid);
    sl_status st = walk(ctx, &w, false);
    choose_steps(&w, most_passes);
    if (st == SL_OK) st = walk(ctx, &w, true);
    free(w.s);
    if (st != SL_OK) return st;

    double walked = tokens(&w.stats), walked_s = w.f.seconds, middle_s = 0, middle_bound_s = 0;
    for (uint32_t i = 0; i <= GRID; i++) {
        const struct kind *k = &w.kinds[i];
        middle_bound_s += k->middle_s;
        if (k->bound_s > 0) middle_s += k->middle_s * k->seconds / k->bound_s;
    }
    double full = middle_s > 0 ? w.middle_tokens / middle_s : walked / walked_s;
    double rest_s = fmax(all - walked, 0) / full, more = 1 + rest_s / walked_s;
    double bound_s = w.bound_s + (rest_s > 0 ? rest_s * middle_bound_s / middle_s : 0);
    sl_machine_gpu card;
    bool has_card = sl_forecast_gpu(in->machine, &in->plan->split.accel, &card);
    sl_queue_forecast f = {
        .grade = grade_of(in->machine, has_card ? &card : NULL, in->miss->traced),
        .seconds = more * walked_s, .full_tok_per_s = full, .bound_tok_per_s = all / bound_s,
        .passes = more * (double)w.stats.passes, .preemptions = more * (double)w.stats.preemptions,
        .recomputed_rows = more * (double)w.stats.recomputed_rows,
        .pass_rows = (double)w.stats.rows / (double)w.stats.passes,
        .sequences = w.sequences / (double)w.stats.passes,
        .disk_bytes = more * w.f.disk_bytes, .wait_s = more * w.f.wait_s,
    };
    f.tok_per_s = all / f.seconds;
    f.gen_tok_per_s = gen / f.seconds;
    for (int r = 0; r < SL_N_RESOURCES; r++) f.busy_s[r] = more * w.f.busy_s[r];
    busiest(f.busy_s, &f.binding, &f.next);
    *ret = f;
    return SL_OK;
}
