/* offload/cpu_ffn.c - the router and the experts of the cpu device.
 * Two parallel phases: activations of all runs, cut by (run, chunk of the expert's width); then y, cut by
 * columns of d_model, where each task adds the runs in the order given. So a row's sum has one order,
 * whatever the threads. */
#include "offload/device_cpu.h"

#include <assert.h>

struct route {
    cpu_device *d;
    const sl_layer *l;
    uint32_t *id;
    float *w;
};

static void route_task(void *arg, uint32_t row, uint32_t thread)
{
    const struct route *r = arg;
    const sl_routing *g = &r->l->routing;
    sl_route_row(g, r->d->router + (size_t)row * g->n_expert, cpu_scratch(r->d, thread),
                 r->id + (size_t)row * g->n_used, r->w + (size_t)row * g->n_used);
}

sl_status cpu_route(sl_device *dev, const sl_layer *l, const float *h, uint32_t n_rows,
                    uint32_t *ret_id, float *ret_w, float *ret_shared_w)
{
    cpu_device *d = (cpu_device *)dev;
    bool gated = l->shared_gate.rows > 0;
    assert(n_rows <= d->max_rows && l->routing.n_expert <= d->w.n_expert);
    assert(l->router.rows == l->routing.n_expert);
    cpu_product p[2] = {
        { .mat = &l->router, .x = h, .ldx = l->router.cols, .y = d->router, .ldy = l->router.rows,
          .n = n_rows, .scale = 1 },
        { .mat = &l->shared_gate, .x = h, .ldx = l->router.cols, .y = ret_shared_w, .ldy = 1,
          .n = n_rows, .scale = 1 },
    };
    cpu_multiply(d, p, gated ? 2 : 1);
    if (gated) d->k.sigmoid(ret_shared_w, ret_shared_w, n_rows);
    struct route r = { d, l, ret_id, ret_w };
    cpu_run_rows(d, route_task, &r, n_rows);
    return SL_OK;
}

/* Some runs of a call, whose activations fit ff at once. */
struct ffn {
    cpu_device *d;
    const sl_layer *l;
    const sl_expert_run *runs;
    uint32_t n_runs;
    const sl_batch *b;
    uint32_t chunk;         /* rows of gate and up of a task of phase 1; columns of y in phase 2 */
    bool add;               /* phase 2 ends with x += residual_scale * y */
};

static uint32_t run_rows(const sl_expert_run *r, const sl_batch *b)
{
    return r->rows ? r->n_rows : b->n_rows;
}

/* Rows [row, row + n) of gate and up on all rows of a run, activated, into ff. */
static void gate_up_tile(const struct ffn *f, uint32_t run, uint32_t row, uint32_t n, float *buf)
{
    const sl_expert_run *r = f->runs + run;
    const cpu_device *d = f->d;
    const sl_mat *g = &r->ffn.gate, *u = &r->ffn.up;
    const float *wg[SL_DOTS_TILE], *wu[SL_DOTS_TILE], *x[SL_DOTS_TILE];
    float og[SL_DOTS_TILE * SL_DOTS_TILE] = { 0 }, ou[SL_DOTS_TILE * SL_DOTS_TILE] = { 0 };
    uint32_t n_rows = run_rows(r, f->b);
    cpu_weight_rows(d, g, 0, row, n, buf, wg);
    cpu_weight_rows(d, u, 0, row, n, buf + SL_DOTS_TILE * (size_t)d->w.cols, wu);
    for (uint32_t j = 0; j < n_rows; j += SL_DOTS_TILE) {
        uint32_t nx = SL_MIN(n_rows - j, (uint32_t)SL_DOTS_TILE);
        for (uint32_t e = 0; e < nx; e++)
            x[e] = f->b->h + (size_t)(r->rows ? r->rows[j + e] : j + e) * g->cols;
        d->k.dots(wg, n, x, nx, g->cols, og);
        d->k.dots(wu, n, x, nx, u->cols, ou);
        for (uint32_t e = 0; e < nx && (g->bias || u->bias); e++)
            for (uint32_t i = 0; i < n; i++) {
                og[e * SL_DOTS_TILE + i] += g->bias ? g->bias[row + i] : 0;
                ou[e * SL_DOTS_TILE + i] += u->bias ? u->bias[row + i] : 0;
            }
        d->k.act(&f->l->act, og, ou, og, SL_LEN(og));
        for (uint32_t e = 0; e < nx; e++)
            for (uint32_t i = 0; i < n; i++)
                d->ff[d->run_at[run] + (size_t)(j + e) * g->rows + row + i] = og[e * SL_DOTS_TILE + i];
    }
}

static void gate_up_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct ffn *f = arg;
    const cpu_device *d = f->d;
    uint32_t lo = 0, hi = f->n_runs;
    while (hi - lo > 1) {           /* the run whose tasks hold index */
        uint32_t mid = (lo + hi) / 2;
        if (index >= d->run_task[mid]) lo = mid;
        else hi = mid;
    }
    uint32_t row = (index - d->run_task[lo]) * f->chunk;
    uint32_t end = SL_MIN(row + f->chunk, f->runs[lo].ffn.gate.rows);
    for (; row < end; row += SL_DOTS_TILE)
        gate_up_tile(f, lo, row, SL_MIN(end - row, (uint32_t)SL_DOTS_TILE), cpu_scratch(d, thread));
}

/* Columns [col, col + n) of y: one run's weighted output added to each of its rows. */
static void down_tile(const struct ffn *f, uint32_t run, uint32_t col, uint32_t n, float *buf)
{
    const sl_expert_run *r = f->runs + run;
    const sl_mat *m = &r->ffn.down;
    const float *w[SL_DOTS_TILE], *x[SL_DOTS_TILE];
    float out[SL_DOTS_TILE * SL_DOTS_TILE];
    uint32_t n_rows = run_rows(r, f->b);
    cpu_weight_rows(f->d, m, 0, col, n, buf, w);
    for (uint32_t j = 0; j < n_rows; j += SL_DOTS_TILE) {
        uint32_t nx = SL_MIN(n_rows - j, (uint32_t)SL_DOTS_TILE);
        for (uint32_t e = 0; e < nx; e++) x[e] = f->d->ff + f->d->run_at[run] + (size_t)(j + e) * m->cols;
        f->d->k.dots(w, n, x, nx, m->cols, out);
        for (uint32_t e = 0; e < nx; e++) {
            float *y = f->b->y + (size_t)(r->rows ? r->rows[j + e] : j + e) * m->rows + col;
            float weight = r->weights ? r->weights[j + e] : 1;
            for (uint32_t i = 0; i < n; i++)
                y[i] += weight * (out[e * SL_DOTS_TILE + i] + (m->bias ? m->bias[col + i] : 0));
        }
    }
}

static void down_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct ffn *f = arg;
    uint32_t dm = f->d->w.d_model, first = index * f->chunk, end = SL_MIN(first + f->chunk, dm);
    for (uint32_t run = 0; run < f->n_runs; run++)
        for (uint32_t col = first; col < end; col += SL_DOTS_TILE)
            down_tile(f, run, col, SL_MIN(end - col, (uint32_t)SL_DOTS_TILE), cpu_scratch(f->d, thread));
    for (uint32_t row = 0; f->add && row < f->b->n_rows; row++) {
        size_t at = (size_t)row * dm + first;
        f->d->k.axpy(f->l->residual_scale, f->b->y + at, f->b->x + at, end - first);
    }
}

/* Lays the activations of as many runs as fit into ff; returns how many. */
static uint32_t place_runs(cpu_device *d, const sl_expert_run *runs, uint32_t n_runs, const sl_batch *b)
{
    size_t at = 0;
    uint32_t n = 0;
    for (; n < n_runs && n < d->max_runs; n++) {
        size_t want = (size_t)run_rows(runs + n, b) * runs[n].ffn.gate.rows;
        if (want > d->ff_floats - at) break;
        d->run_at[n] = at;
        at += want;
    }
    return n;
}

static void run_phases(cpu_device *d, struct ffn *f)
{
    uint64_t rows = 0, work = 0, dm = d->w.d_model;
    for (uint32_t i = 0; i < f->n_runs; i++) {
        const sl_expert_run *r = f->runs + i;
        assert(r->ffn.gate.cols == dm && r->ffn.up.rows == r->ffn.gate.rows);
        assert(r->ffn.down.cols == r->ffn.gate.rows && r->ffn.down.rows == dm);
        assert(SL_MAX(dm, r->ffn.down.cols) <= d->w.cols);
        rows += r->ffn.gate.rows;
        work += (uint64_t)r->ffn.gate.rows * run_rows(r, f->b);
    }
    if (f->n_runs) {
        f->chunk = cpu_chunk(d, rows, 2 * dm * work / SL_MAX(rows, 1));
        d->run_task[0] = 0;
        for (uint32_t i = 0; i < f->n_runs; i++)
            d->run_task[i + 1] = d->run_task[i] + (f->runs[i].ffn.gate.rows + f->chunk - 1) / f->chunk;
        cpu_run(d, gate_up_task, f, d->run_task[f->n_runs]);
    }
    f->chunk = cpu_chunk(d, dm, work);
    cpu_run(d, down_task, f, (uint32_t)((dm + f->chunk - 1) / f->chunk));
}

sl_status cpu_experts(sl_device *dev, const sl_layer *l, const sl_expert_run *runs, uint32_t n_runs,
                      bool last, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    uint32_t done = 0;
    do {
        struct ffn f = { .d = d, .l = l, .runs = runs + done, .b = b };
        f.n_runs = place_runs(d, f.runs, n_runs - done, b);
        if (!f.n_runs && done < n_runs)
            return sl_fail(d->ctx, SL_E_ARG, "experts: layer %u, a run of %u rows of width %u exceeds ff_sum",
                           l->index, run_rows(f.runs, b), f.runs->ffn.gate.rows);
        done += f.n_runs;
        f.add = last && done == n_runs;
        run_phases(d, &f);
    } while (done < n_runs);
    return SL_OK;
}
