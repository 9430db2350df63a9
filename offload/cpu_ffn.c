/* offload/cpu_ffn.c - the router and the experts of the cpu device.
 * Two parallel phases: activations of all runs, cut by (run, chunk of the expert's width); then y,
 * cut by columns of d_model, where each task adds the runs in the order given. So a row's sum has
 * one order, whatever the threads. */
#include "offload/device_cpu.h"

#include <assert.h>
#include <string.h>

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
    void *blas = d->blas.lib;
    d->blas.lib = NULL;     /* the choice of experts has one order of summation in any case */
    cpu_multiply(d, p, gated ? 2 : 1);
    d->blas.lib = blas;
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
    uint64_t work;          /* multiply-adds of phase 2 for each column of y */
    bool add;               /* phase 2 ends with x += residual_scale * y */
};

static uint32_t run_rows(const sl_expert_run *r, const sl_batch *b)
{
    return r->rows ? r->n_rows : b->n_rows;
}

/* Rows that this call computes for a run. */
static uint32_t computed_rows(const sl_expert_run *r, const sl_batch *b)
{
    return r->part == SL_RUN_ADD ? 0 : run_rows(r, b);
}

/* The batch's h in the form that a matrix is multiplied with. */
static cpu_acts h_for(const struct ffn *f, const sl_mat *m)
{
    uint32_t group = cpu_group(f->d, m);
    if (!group) return (cpu_acts){ (const char *)f->b->h, f->d->w.d_model * sizeof(float) };
    return f->d->h[group != 32];
}

/* Row j of the activations that a run's gate and up are multiplied with. */
static const char *h_row(cpu_acts a, const sl_expert_run *r, uint32_t j)
{
    return a.base + (r->rows ? r->rows[j] : j) * a.stride;
}

static uint32_t gate_up_unit(const struct ffn *f, const sl_expert_run *r)
{
    uint32_t n = run_rows(r, f->b);
    return SL_MIN(cpu_tile_rows(f->d, &r->ffn.gate, n), cpu_tile_rows(f->d, &r->ffn.up, n));
}

/* Rows [row, row + n) of gate and up on all rows of a run, activated, into ff. */
static void gate_up_tile(const struct ffn *f, uint32_t run, uint32_t row, uint32_t n, float *buf)
{
    const sl_expert_run *r = f->runs + run;
    const cpu_device *d = f->d;
    const sl_mat *g = &r->ffn.gate, *u = &r->ffn.up;
    float og[CPU_TILE_FLOATS], ou[CPU_TILE_FLOATS];
    const void *xg[CPU_TILE_X], *xu[CPU_TILE_X];
    uint32_t n_rows = run_rows(r, f->b);
    cpu_tile tg, tu;
    cpu_acts hg = h_for(f, g), hu = h_for(f, u);
    cpu_tile_load(d, g, 0, row, n, n_rows, buf, &tg);
    cpu_tile_load(d, u, 0, row, n, n_rows, buf + d->tile_floats, &tu);
    for (uint32_t j = 0; j < n_rows; j += CPU_TILE_X) {
        uint32_t nx = SL_MIN(n_rows - j, (uint32_t)CPU_TILE_X);
        for (uint32_t e = 0; e < nx; e++) {
            xg[e] = h_row(hg, r, j + e);
            xu[e] = h_row(hu, r, j + e);
        }
        cpu_tile_mul(d, &tg, xg, nx, og, n);
        cpu_tile_mul(d, &tu, xu, nx, ou, n);
        for (uint32_t e = 0; e < nx; e++) {
            float *a = og + e * n, *b = ou + e * n;
            for (uint32_t i = 0; g->bias && i < n; i++) a[i] += g->bias[row + i];
            for (uint32_t i = 0; u->bias && i < n; i++) b[i] += u->bias[row + i];
            d->k.act(&f->l->act, a, b, d->ff + d->run_at[run] + (size_t)(j + e) * g->rows + row, n);
        }
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
    uint32_t unit = gate_up_unit(f, &f->runs[lo]);
    for (; row < end; row += unit)
        gate_up_tile(f, lo, row, SL_MIN(end - row, unit), cpu_scratch(d, thread));
}

/* The activations of a run as its down wants them: quantised between the phases. */
static void quantise_ff_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct ffn *f = arg;
    const cpu_device *d = f->d;
    uint32_t run = 0;
    (void)thread;
    while (index >= computed_rows(&f->runs[run], f->b))
        index -= computed_rows(&f->runs[run++], f->b);
    const sl_mat *m = &f->runs[run].ffn.down;
    uint32_t group = cpu_group(d, m);
    if (group)
        d->k.quantise(group, d->ff + d->run_at[run] + (size_t)index * m->cols, m->cols,
                      d->qff + d->qff_at[run] + index * sl_qx_bytes(group, m->cols));
}

/* Where row j of a run's output goes or lies. */
static float *out_row(const sl_expert_run *r, uint32_t j)
{
    return r->out + (size_t)j * r->ffn.down.rows;
}

/* Columns [col, col + n) of y: row j of a run's output, weighted, added to its row. */
static void add_output(const struct ffn *f, const sl_expert_run *r, uint32_t j, uint32_t col,
                       const float *out, uint32_t n)
{
    float *y = f->b->y + (size_t)(r->rows ? r->rows[j] : j) * r->ffn.down.rows + col;
    f->d->k.axpy(r->weights ? r->weights[j] : 1, out, y, n);
}

/* Columns [col, col + n) of a run's output on all its rows, stored or added to y. */
static void down_tile(const struct ffn *f, uint32_t run, uint32_t col, uint32_t n, float *buf)
{
    const sl_expert_run *r = f->runs + run;
    const cpu_device *d = f->d;
    const sl_mat *m = &r->ffn.down;
    const void *x[CPU_TILE_X];
    float out[CPU_TILE_FLOATS];
    uint32_t n_rows = run_rows(r, f->b), group = cpu_group(d, m);
    const char *base = group ? d->qff + d->qff_at[run] : (const char *)(d->ff + d->run_at[run]);
    size_t stride = group ? sl_qx_bytes(group, m->cols) : m->cols * sizeof(float);
    cpu_tile t;
    cpu_tile_load(d, m, 0, col, n, n_rows, buf, &t);
    for (uint32_t j = 0; j < n_rows; j += CPU_TILE_X) {
        uint32_t nx = SL_MIN(n_rows - j, (uint32_t)CPU_TILE_X);
        for (uint32_t e = 0; e < nx; e++) x[e] = base + (j + e) * stride;
        cpu_tile_mul(d, &t, x, nx, out, n);
        for (uint32_t e = 0; e < nx; e++) {
            float *o = out + e * n;
            for (uint32_t i = 0; m->bias && i < n; i++) o[i] += m->bias[col + i];
            if (r->part == SL_RUN_STORE) memcpy(out_row(r, j + e) + col, o, n * sizeof *o);
            else add_output(f, r, j + e, col, o, n);
        }
    }
}

static void down_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct ffn *f = arg;
    uint32_t dm = f->d->w.d_model, first = index * f->chunk, end = SL_MIN(first + f->chunk, dm);
    for (uint32_t run = 0; run < f->n_runs; run++) {
        const sl_expert_run *r = &f->runs[run];
        if (r->part == SL_RUN_ADD) {
            for (uint32_t j = 0; j < run_rows(r, f->b); j++)
                add_output(f, r, j, first, out_row(r, j) + first, end - first);
            continue;
        }
        uint32_t unit = cpu_tile_rows(f->d, &r->ffn.down, run_rows(r, f->b));
        for (uint32_t col = first; col < end; col += unit)
            down_tile(f, run, col, SL_MIN(end - col, unit), cpu_scratch(f->d, thread));
    }
    for (uint32_t row = 0; f->add && row < f->b->n_rows; row++) {
        size_t at = (size_t)row * dm + first;
        f->d->k.axpy(f->l->residual_scale, f->b->y + at, f->b->x + at, end - first);
    }
}

/* Lays the activations of as many runs as fit into ff; returns how many. */
static uint32_t place_runs(cpu_device *d, const sl_expert_run *runs, uint32_t n_runs,
                           const sl_batch *b)
{
    size_t at = 0, q_at = 0;
    uint32_t n = 0;
    for (; n < n_runs && n < d->max_runs; n++) {
        uint32_t rows = computed_rows(runs + n, b), cols = runs[n].ffn.gate.rows;
        uint32_t group = cpu_group(d, &runs[n].ffn.down);
        size_t want = (size_t)rows * cols, q_want = group ? rows * sl_qx_bytes(group, cols) : 0;
        if (want > d->ff_floats - at || q_want > d->qff_bytes - q_at) break;
        d->run_at[n] = at;
        d->qff_at[n] = q_at;
        at += want;
        q_at += q_want;
    }
    return n;
}

/* The batch's h in every form that a run's gate or up wants, once a layer. */
static void prepare_h(struct ffn *f)
{
    cpu_device *d = f->d;
    uint32_t dm = d->w.d_model;
    for (uint32_t i = 0; i < f->n_runs; i++)
        for (uint32_t m = 0; m < 2 && f->runs[i].part != SL_RUN_ADD; m++) {
            uint32_t group = cpu_group(d, m ? &f->runs[i].ffn.up : &f->runs[i].ffn.gate);
            cpu_acts *a = &d->h[group != 32];
            if (!group || a->base) continue;
            *a = (cpu_acts){ d->qx + d->h_bytes, sl_qx_bytes(group, dm) };
            cpu_quantise(d, group, f->b->h, dm, dm, f->b->n_rows, d->qx + d->h_bytes);
            d->h_bytes += a->stride * f->b->n_rows;
            assert(d->h_bytes <= d->qx_bytes);
        }
}

/* Phase 1, and what phase 2 reads. */
static void activate_runs(struct ffn *f)
{
    cpu_device *d = f->d;
    uint64_t rows = 0, work = 0, pairs = 0, dm = d->w.d_model;
    uint32_t unit = 1;
    bool quantised = false;
    for (uint32_t i = 0; i < f->n_runs; i++) {
        const sl_expert_run *r = f->runs + i;
        assert((r->part == SL_RUN_WHOLE) == !r->out);
        if (r->part == SL_RUN_ADD) continue;
        assert(r->ffn.gate.cols == dm && r->ffn.up.rows == r->ffn.gate.rows);
        assert(r->ffn.down.cols == r->ffn.gate.rows && r->ffn.down.rows == dm);
        assert(SL_MAX(dm, r->ffn.down.cols) <= d->w.cols);
        rows += r->ffn.gate.rows;
        work += (uint64_t)r->ffn.gate.rows * run_rows(r, f->b);
        pairs += run_rows(r, f->b);
        unit = SL_MAX(unit, SL_MAX(cpu_tile_grain(d, &r->ffn.gate, run_rows(r, f->b)),
                                   cpu_tile_grain(d, &r->ffn.up, run_rows(r, f->b))));
        quantised |= cpu_group(d, &r->ffn.down) != 0;
    }
    f->work = work;
    prepare_h(f);
    f->chunk = cpu_chunk(d, rows, 2 * dm * work / SL_MAX(rows, 1), unit);
    d->run_task[0] = 0;
    for (uint32_t i = 0; i < f->n_runs; i++) {
        uint32_t gate_rows = f->runs[i].part == SL_RUN_ADD ? 0 : f->runs[i].ffn.gate.rows;
        d->run_task[i + 1] = d->run_task[i] + (gate_rows + f->chunk - 1) / f->chunk;
    }
    cpu_run(d, gate_up_task, f, d->run_task[f->n_runs]);
    if (quantised) cpu_run_rows(d, quantise_ff_task, f, (uint32_t)pairs);
}

static void run_phases(cpu_device *d, struct ffn *f)
{
    uint32_t unit = SL_DOTS_TILE;
    if (f->n_runs) activate_runs(f);
    for (uint32_t i = 0; i < f->n_runs; i++)
        if (f->runs[i].part != SL_RUN_ADD)
            unit = SL_MAX(unit,
                          cpu_tile_grain(d, &f->runs[i].ffn.down, run_rows(&f->runs[i], f->b)));
    f->chunk = cpu_chunk(d, d->w.d_model, f->work, unit);
    cpu_run(d, down_task, f, (d->w.d_model + f->chunk - 1) / f->chunk);
}

sl_status cpu_experts(sl_device *dev, const sl_layer *l, const sl_expert_run *runs, uint32_t n_runs,
                      unsigned ends, sl_batch *b)
{
    cpu_device *d = (cpu_device *)dev;
    uint32_t done = 0;
    if (ends & SL_EXPERTS_FIRST) cpu_forget_h(d);
    do {
        struct ffn f = { .d = d, .l = l, .runs = runs + done, .b = b };
        f.n_runs = place_runs(d, f.runs, n_runs - done, b);
        if (!f.n_runs && done < n_runs)
            return sl_fail(d->ctx, SL_E_ARG,
                           "experts: layer %u, a run of %u rows of width %u exceeds ff_sum",
                           l->index, run_rows(f.runs, b), f.runs->ffn.gate.rows);
        done += f.n_runs;
        f.add = (ends & SL_EXPERTS_LAST) && done == n_runs;
        run_phases(d, &f);
    } while (done < n_runs);
    return SL_OK;
}
