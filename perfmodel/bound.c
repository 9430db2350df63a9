/* perfmodel/bound.c - bytes and operations of a pass, and the least time that they and its reads
 * take. */
#include "perfmodel/sl_bound.h"

#include <assert.h>
#include <math.h>

double sl_bound_attended(uint32_t first_row, uint32_t n_rows, uint32_t window)
{
    double n = n_rows, first = first_row;
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

static void add_step(const sl_shape *shape, const sl_step *s, const sl_pass *p, sl_work *w)
{
    double rows = p->n_rows;
    if (s->kind == SL_STEP_HEAD) {
        if (!p->logits) return;
        rows = 1;
    }
    w->bytes += (double)s->bytes + rows * (double)s->row_bytes;
    w->int_ops += rows * (double)s->row_int_flops / 2;
    w->flops += rows * (double)(s->row_flops - s->row_int_flops);
    if (s->layer == SL_STEP_NONE) return;
    const sl_layer_shape *l = &shape->layers[s->layer];
    if (s->expert_bytes) w->bytes += distinct_experts(l, p) * (double)s->expert_bytes;
    if (s->ctx_bytes) w->bytes += earlier(p, l->window) * (double)s->ctx_bytes;
    w->flops += sl_bound_attended(p->first, p->n_rows, l->window) * (double)s->ctx_flops;
}

sl_work sl_bound_work(const sl_shape *shape, const sl_step *steps, uint32_t n_steps,
                      const sl_pass *p)
{
    sl_work w = { .bytes = 0 };
    for (uint32_t i = 0; i < n_steps; i++) add_step(shape, &steps[i], p, &w);
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

/* ---- weights streamed from disk ---- */

/* D of a pass of one row at a position: everything but the experts step of layers with experts. */
static double apart_s(const sl_shape *shape, const sl_step *steps, uint32_t n_steps, uint32_t at,
                      const sl_rates *rates)
{
    sl_pass p = { .first = at, .n_rows = 1, .logits = true };
    sl_work w = { .bytes = 0 };
    for (uint32_t i = 0; i < n_steps; i++)
        if (steps[i].kind != SL_STEP_EXPERTS || !shape->layers[steps[i].layer].n_expert)
            add_step(shape, &steps[i], &p, &w);
    return sl_bound_s(&w, rates, NULL);
}

double sl_bound_together(double cpu_s, double memory_s, double disk_s, const sl_disk_use *d)
{
    double cpu_keeps = d->cpu_keeps > 0 ? fmin(d->cpu_keeps, 1) : 1;
    double disk_keeps = d->disk_keeps > 0 ? fmin(d->disk_keeps, 1) : 1;
    memory_s = fmin(memory_s, cpu_s);
    double share = cpu_s > 0 ? memory_s / cpu_s : 0;
    double keeps = 1 / (1 + share * (1 / cpu_keeps - 1));
    double s = fmax(disk_s + memory_s * (1 - disk_keeps), cpu_s + disk_s * (1 - keeps));
    return fmin(s, cpu_s + disk_s);
}

/* C: the shared expert and so many routed ones on one row. */
static double compute_s(const sl_layer_shape *l, double hits, const sl_rates *rates,
                        double *ret_memory_s)
{
    double ints = (double)l->ffn_int_flops_row + hits * (double)l->expert_int_flops_row;
    double all = (double)l->ffn_flops_row + hits * (double)l->expert_flops_row;
    sl_work w = { .bytes = (double)l->ffn_bytes + hits * (double)l->expert_bytes,
                  .int_ops = ints / 2, .flops = all - ints };
    *ret_memory_s = w.bytes / rates->bytes_s;
    return sl_bound_s(&w, rates, NULL);
}

double sl_bound_read_s(const sl_layer_shape *l, double n_missing, const sl_disk_use *d)
{
    double bytes = (double)l->expert_bytes / 3, n = 3 * n_missing;
    if (d->request_bytes && bytes > d->request_bytes) {
        n *= ceil(bytes / d->request_bytes);
        bytes = d->request_bytes;
    }
    double depth = d->depth ? fmin(n, d->depth) : n;
    double rate = n_missing > 0 ? sl_machine_disk_s(d->machine, bytes, depth) : 0;
    if (rate <= 0) return 0;
    double waits = d->machine->disk.latency_s * fmax(n / depth, 1);
    return fmax(n_missing * (double)l->expert_bytes / rate, waits);
}

/* Experts of one pass, their turns as counted, and the bytes that are missing. Each layer of a
 * class has the class's turns. */
static double experts_s(const sl_shape *shape, const sl_plan *plan, const sl_misses *misses,
                        const sl_rates *rates, const sl_disk_use *disk, double *ret_missing)
{
    double seconds = 0;
    *ret_missing = 0;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        const sl_layer_shape *l = &shape->layers[i];
        if (!l->n_expert) continue;
        const uint64_t *turns = misses->turns[sl_plan_class(plan, l)];
        double n = 0, s = 0, missing = 0;
        for (uint32_t m = 0; m <= SL_MAX_MISSED; m++) {
            double missed = SL_MIN(m, l->n_used), count = (double)turns[m];
            n += count;
            missing += count * missed;
            double memory_s, there = compute_s(l, l->n_used - missed, rates, &memory_s);
            s += count * sl_bound_together(there, memory_s, sl_bound_read_s(l, missed, disk), disk);
        }
        if (n > 0) seconds += s / n;
        if (n > 0) *ret_missing += missing / n * (double)l->expert_bytes;
    }
    return seconds;
}

double sl_bound_causal(const sl_shape *shape, const sl_plan *plan, const sl_step *steps,
                       uint32_t n_steps, uint32_t first, uint32_t n_gen, const sl_misses *misses,
                       const sl_rates *rates, const sl_disk_use *disk)
{
    double bytes, best, seconds = 0;
    uint32_t some_bytes, some_depth;
    double experts = experts_s(shape, plan, misses, rates, disk, &bytes);
    for (uint32_t i = plan->n_dense_layers; i < shape->n_layer; i++) {
        const sl_layer_shape *l = &shape->layers[i];
        bytes += (double)(l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes);
    }
    double reading =
        sl_machine_disk_best(disk->machine, &some_bytes, &some_depth, &best) ? bytes / best : 0;
    for (uint32_t i = 0; i < n_gen; i++)
        seconds += fmax(apart_s(shape, steps, n_steps, first + i, rates) + experts, reading);
    return n_gen / seconds;
}
