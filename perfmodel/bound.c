/* perfmodel/bound.c - bytes and operations of a pass, and the least time that they take. */
#include "perfmodel/sl_bound.h"

#include <assert.h>
#include <math.h>

/* Positions that the rows attend to, their own included, summed over rows. window 0: all. */
static double attended(const sl_pass *p, uint32_t window)
{
    double n = p->n_rows, first = p->first;
    /* rows that see all before them */
    double growing = window ? fmin(fmax((double)window - first, 0), n) : n;
    return growing * first + growing * (growing + 1) / 2 + (n - growing) * window;
}

/* Earlier positions that at least one row sees. */
static double earlier(const sl_pass *p, uint32_t window)
{
    return window ? fmin(p->first, window - 1) : p->first;
}

static double distinct_experts(const sl_layer_shape *l, const sl_pass *p)
{
    if (p->experts > 0) return fmin(p->experts, l->n_expert);
    if (p->n_rows == 1) return l->n_used;
    return l->n_expert * (1 - pow(1 - (double)l->n_used / l->n_expert, p->n_rows));
}

sl_work sl_bound_work(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                      const sl_pass *p)
{
    sl_work w = { .bytes = 0 };
    for (uint32_t i = 0; i < n_steps; i++) {
        const sl_step *s = &steps[i];
        double rows = p->n_rows;
        if (s->kind == SL_STEP_HEAD) {
            if (!p->logits) continue;
            rows = 1;
        }
        w.bytes += (double)s->bytes + rows * (double)s->row_bytes;
        w.int_ops += rows * (double)s->row_int_flops / 2;
        w.flops += rows * (double)(s->row_flops - s->row_int_flops);
        if (s->layer == SL_STEP_NONE) continue;
        const sl_layer_shape *l = &shape->layers[s->layer];
        if (s->expert_bytes) w.bytes += distinct_experts(l, p) * (double)s->expert_bytes;
        if (s->ctx_bytes) w.bytes += earlier(p, l->window) * (double)s->ctx_bytes;
        w.flops += attended(p, l->window) * (double)s->ctx_flops;
    }
    return w;
}

double sl_bound_s(const sl_work *w, const sl_rates *r, sl_limit *ret_limit)
{
    assert(r->bytes_s > 0);
    double s[] = { [SL_LIMIT_DRAM] = w->bytes / r->bytes_s,
                   [SL_LIMIT_INT8] = r->int_ops_s > 0 ? w->int_ops / r->int_ops_s : 0,
                   [SL_LIMIT_FLOAT] = r->flops_s > 0 ? w->flops / r->flops_s : 0 };
    size_t most = SL_LIMIT_DRAM;
    for (size_t i = 1; i < SL_LEN(s); i++)
        if (s[i] > s[most]) most = i;
    if (ret_limit) *ret_limit = (sl_limit)most;
    return s[most];
}

double sl_bound_decode(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                       uint32_t n_gen, const sl_rates *rates)
{
    double seconds = 0;
    for (uint32_t i = 0; i < n_gen; i++) {
        sl_pass p = { .first = i, .n_rows = 1, .logits = true };
        sl_work w = sl_bound_work(shape, steps, n_steps, &p);
        seconds += sl_bound_s(&w, rates, NULL);
    }
    return n_gen / seconds;
}

double sl_bound_prompt(const sl_shape *shape, const sl_step *steps, uint32_t n_steps, uint32_t n,
                       uint32_t max_rows, double experts, const sl_rates *rates)
{
    assert(n && max_rows);
    double seconds = 0;
    for (uint32_t at = 0; at < n; at += SL_MIN(max_rows, n - at)) {
        sl_pass p = { .first = at, .n_rows = SL_MIN(max_rows, n - at), .experts = experts };
        p.logits = p.n_rows == n - at;
        sl_work w = sl_bound_work(shape, steps, n_steps, &p);
        seconds += sl_bound_s(&w, rates, NULL);
    }
    return n / seconds;
}
