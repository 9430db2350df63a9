/* perfmodel/machine.c - checks of and questions to a machine's numbers. */
#include "perfmodel/sl_machine.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Wider than any machine of today by a factor of ten or more: what is outside is a wrong unit. */
static const double dram_min = 1e8, dram_max = 1e14;
static const double peak_min = 1e8, peak_max = 1e16;
static const double barrier_min = 1e-9, barrier_max = 1;
static const double disk_min = 1e4, disk_max = 1e12;
static const double latency_min = 1e-7, latency_max = 10;
static const double gemm_min = 1e6, gemm_max = 1e17;        /* 1e6: one row on a slow core */
static const double attend_min = 1e7, attend_max = 1e16;
static const double stage_min = 1e-9, stage_max = 1, elem_min = 1e-14, elem_max = 1e-5;
static const double gpu_ops_min = 1e10, gpu_ops_max = 1e18, gpu_mem_min = 1e9, gpu_mem_max = 1e15;
static const double gpu_elem_min = 1e-16, link_min = 1e7, link_max = 1e13;

const char *sl_peak_name(sl_peak peak)
{
    static const char *const names[SL_N_PEAKS] = { "int8_avx2", "int8_avxvnni", "int8_avx512vnni",
                                                   "f32_avx2", "f32_avx512" };
    assert((unsigned)peak < SL_N_PEAKS);
    return names[peak];
}

const char *sl_machine_source_name(sl_machine_source s)
{
    static const char *const names[] = { "datasheet", "quick", "measured" };
    assert((unsigned)s < SL_LEN(names));
    return names[s];
}

static sl_status check_number(sl_ctx *ctx, const char *field, double v, double min, double max)
{
    if (v >= min && v <= max) return SL_OK;
    return sl_fail(ctx, SL_E_FORMAT, "machine: %s is %g, expected %g to %g", field, v, min, max);
}

static sl_status check_points(sl_ctx *ctx, const char *field, const sl_machine_point *p, uint32_t n,
                              double min, double max)
{
    char name[64];
    if (!n || n > SL_MACHINE_POINTS)
        return sl_fail(ctx, SL_E_FORMAT, "machine: %s has %u points, expected 1 to %d", field, n,
                       SL_MACHINE_POINTS);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s[%u]", field, i);
        SL_TRY(check_number(ctx, name, p[i].value, min, max));
        snprintf(name, sizeof name, "%s[%u].threads", field, i);
        SL_TRY(check_number(ctx, name, p[i].threads, i ? p[i - 1].threads + 1 : 1,
                            SL_MACHINE_MAX_THREADS));
    }
    return SL_OK;
}

static sl_status check_curve(sl_ctx *ctx, const sl_machine_disk *d, uint32_t i)
{
    const sl_machine_curve *c = &d->curve[i];
    char name[64];
    snprintf(name, sizeof name, "disk.reads[%u].bytes", i);
    SL_TRY(check_number(ctx, name, c->bytes, i ? d->curve[i - 1].bytes + 1 : 1,
                        SL_MACHINE_MAX_READ));
    if (!c->n || c->n > SL_MACHINE_POINTS)
        return sl_fail(ctx, SL_E_FORMAT, "machine: disk.reads[%u] has %u points, expected 1 to %d",
                       i, c->n, SL_MACHINE_POINTS);
    for (uint32_t k = 0; k < c->n; k++) {
        snprintf(name, sizeof name, "disk.reads[%u].points[%u].depth", i, k);
        SL_TRY(check_number(ctx, name, c->at[k].depth, k ? c->at[k - 1].depth + 1 : 1,
                            SL_MACHINE_MAX_DEPTH));
        snprintf(name, sizeof name, "disk.reads[%u].points[%u]", i, k);
        SL_TRY(check_number(ctx, name, c->at[k].bytes_s, disk_min, disk_max));
    }
    return SL_OK;
}

static sl_status check_disk(sl_ctx *ctx, const sl_machine_disk *d)
{
    if (!d->n_curves) return SL_OK;
    if (d->n_curves > SL_MACHINE_CURVES)
        return sl_fail(ctx, SL_E_FORMAT, "machine: disk.reads has %u sizes, expected %d at most",
                       d->n_curves, SL_MACHINE_CURVES);
    SL_TRY(check_number(ctx, "disk.latency_s", d->latency_s, latency_min, latency_max));
    for (uint32_t i = 0; i < d->n_curves; i++) SL_TRY(check_curve(ctx, d, i));
    return SL_OK;
}

/* 0 where nobody knows */
static sl_status check_known(sl_ctx *ctx, const char *field, double v, double min, double max)
{
    return v == 0 ? SL_OK : check_number(ctx, field, v, min, max);
}

/* One of a list of products; list is "gemms" or "gpus[0].gemms". */
static sl_status check_gemm(sl_ctx *ctx, const char *list, const sl_machine_gemm *g, uint32_t i,
                            double max)
{
    char name[96];
    if (!sl_type_get(g->type)->name)
        return sl_fail(ctx, SL_E_FORMAT, "machine: %s[%u].type is %u, expected a tensor type", list,
                       i, (unsigned)g->type);
    if (!g->n || g->n > SL_MACHINE_GEMM_POINTS)
        return sl_fail(ctx, SL_E_FORMAT, "machine: %s[%u] has %u points, expected 1 to %d", list, i,
                       g->n, SL_MACHINE_GEMM_POINTS);
    for (uint32_t k = 0; k < g->n; k++) {
        snprintf(name, sizeof name, "%s[%u].points[%u].rows", list, i, k);
        SL_TRY(check_number(ctx, name, g->at[k].rows, k ? g->at[k - 1].rows + 1.0 : 1,
                            k ? SL_MACHINE_MAX_ROWS : 1));
        snprintf(name, sizeof name, "%s[%u].points[%u].ops_s", list, i, k);
        SL_TRY(check_number(ctx, name, g->at[k].ops_s, gemm_min, max));
    }
    return SL_OK;
}

static sl_status check_gemms(sl_ctx *ctx, const sl_machine *m)
{
    char name[64];
    if (m->n_gemms > SL_MACHINE_GEMMS)
        return sl_fail(ctx, SL_E_FORMAT, "machine: gemms has %u curves, expected %d at most",
                       m->n_gemms, SL_MACHINE_GEMMS);
    for (uint32_t i = 0; i < m->n_gemms; i++) {
        const sl_machine_gemm *g = &m->gemm[i], *before = i ? g - 1 : NULL;
        SL_TRY(check_gemm(ctx, "gemms", g, i, gemm_max));
        bool same = before && before->type == g->type;
        snprintf(name, sizeof name, "gemms[%u].threads", i);
        SL_TRY(check_number(ctx, name, g->threads, same ? before->threads + 1.0 : 1,
                            SL_MACHINE_MAX_THREADS));
        for (uint32_t k = 0; !same && k + 1 < i; k++)
            if (m->gemm[k].type == g->type)
                return sl_fail(ctx, SL_E_FORMAT, "machine: gemms[%u].type is %s, expected it behind"
                               " the other curves of this type", i, sl_type_get(g->type)->name);
    }
    return SL_OK;
}

static sl_status check_cost(sl_ctx *ctx, const sl_machine *m, uint32_t i)
{
    const sl_machine_cost *c = &m->cost[i];
    const struct { const char *field; double v, min, max; } of[] = {
        { "threads", c->threads, i ? c[-1].threads + 1.0 : 1, SL_MACHINE_MAX_THREADS },
        { "stage_s", c->stage_s, stage_min, stage_max },
        { "elem_s", c->elem_s, elem_min, elem_max },
        { "decode_flops_s", c->decode_flops_s, attend_min, attend_max },
        { "prefill_flops_s", c->prefill_flops_s, attend_min, attend_max },
        { "decode_bytes_s", c->decode_bytes_s, c->decode_bytes_s != 0 ? dram_min : 0, dram_max },
        { "corun_cpu", c->corun_cpu, 0, 1 },
        { "corun_disk", c->corun_disk, 0, 1 },
        { "corun_tiles", c->corun_tiles, 0, 1 },
        { "call_s", c->call_s, c->call_s != 0 ? stage_min : 0, stage_max },
    };
    char name[64];
    for (size_t k = 0; k < SL_LEN(of); k++) {
        snprintf(name, sizeof name, "costs[%u].%s", i, of[k].field);
        SL_TRY(check_number(ctx, name, of[k].v, of[k].min, of[k].max));
    }
    return SL_OK;
}

static sl_status check_gpu(sl_ctx *ctx, const sl_machine_gpu *g, uint32_t i)
{
    const struct { const char *field; double v, min, max; bool may_miss; } of[] = {
        { "vram_bytes", (double)g->vram_bytes, 1e8, 1e14, false },
        { "vram_bytes_s", g->vram_bytes_s, gpu_mem_min, gpu_mem_max, false },
        { "flops_s", g->flops_s, gpu_ops_min, gpu_ops_max, false },
        { "h2d_bytes_s", g->h2d_bytes_s, link_min, link_max, false },
        { "d2h_bytes_s", g->d2h_bytes_s, link_min, link_max, false },
        { "h2d_pageable_bytes_s", g->h2d_pageable_bytes_s, link_min, link_max, true },
        { "d2h_pageable_bytes_s", g->d2h_pageable_bytes_s, link_min, link_max, true },
        { "copy_s", g->copy_s, latency_min, latency_max, true },
        { "launch_s", g->launch_s, latency_min, latency_max, true },
        { "decode_flops_s", g->decode_flops_s, attend_min, gpu_ops_max, true },
        { "prefill_flops_s", g->prefill_flops_s, attend_min, gpu_ops_max, true },
        { "decode_bytes_s", g->decode_bytes_s, attend_min, gpu_mem_max, true },
        { "elem_s", g->elem_s, gpu_elem_min, elem_max, true },
    };
    char name[64];
    if (!g->name[0])
        return sl_fail(ctx, SL_E_FORMAT, "machine: gpus[%u].name is empty, expected a name", i);
    for (size_t k = 0; k < SL_LEN(of); k++) {
        snprintf(name, sizeof name, "gpus[%u].%s", i, of[k].field);
        SL_TRY((of[k].may_miss ? check_known : check_number)(ctx, name, of[k].v, of[k].min,
                                                             of[k].max));
    }
    if (g->n_gemms > SL_MACHINE_GPU_GEMMS)
        return sl_fail(ctx, SL_E_FORMAT, "machine: gpus[%u].gemms has %u curves, expected %d at "
                       "most", i, g->n_gemms, SL_MACHINE_GPU_GEMMS);
    snprintf(name, sizeof name, "gpus[%u].gemms", i);
    for (uint32_t k = 0; k < g->n_gemms; k++)
        SL_TRY(check_gemm(ctx, name, &g->gemm[k], k, gpu_ops_max));
    return SL_OK;
}

static sl_status check_stages(sl_ctx *ctx, const sl_machine *m)
{
    SL_TRY(check_known(ctx, "read_cpu_s", m->read_cpu_s, 1e-8, 1));
    SL_TRY(check_known(ctx, "read_host_s", m->read_host_s, 1e-13, 1e-6));
    if (m->n_costs > SL_MACHINE_COSTS || m->n_gpus > SL_MACHINE_GPUS)
        return sl_fail(ctx, SL_E_FORMAT, "machine: %u costs and %u gpus, expected %d and %d at "
                       "most", m->n_costs, m->n_gpus, SL_MACHINE_COSTS, SL_MACHINE_GPUS);
    for (uint32_t i = 0; i < m->n_costs; i++) SL_TRY(check_cost(ctx, m, i));
    for (uint32_t i = 0; i < m->n_gpus; i++) SL_TRY(check_gpu(ctx, &m->gpu[i], i));
    return SL_OK;
}

sl_status sl_machine_check(sl_ctx *ctx, const sl_machine *m)
{
    char name[64];
    if (!m->id.cpu[0])
        return sl_fail(ctx, SL_E_FORMAT, "machine: hardware.cpu is empty, expected a name");
    SL_TRY(check_number(ctx, "hardware.cores", m->id.cores, 1, SL_MACHINE_MAX_THREADS));
    SL_TRY(check_number(ctx, "hardware.hw_threads", m->id.hw_threads, m->id.cores,
                        SL_MACHINE_MAX_THREADS));
    SL_TRY(check_number(ctx, "hardware.ram_bytes", (double)m->id.ram_bytes, 1e8, 1e15));
    SL_TRY(check_points(ctx, "dram_read", m->dram_read, m->n_dram, dram_min, dram_max));
    if (m->n_barrier)
        SL_TRY(check_points(ctx, "barrier", m->barrier, m->n_barrier, barrier_min,
                            barrier_max));
    for (int i = 0; i < SL_N_PEAKS; i++) {
        if (m->peak_core[i] == 0 && m->peak_all[i] == 0) continue;
        snprintf(name, sizeof name, "peaks.%s.core", sl_peak_name((sl_peak)i));
        SL_TRY(check_number(ctx, name, m->peak_core[i], peak_min, peak_max));
        snprintf(name, sizeof name, "peaks.%s.all", sl_peak_name((sl_peak)i));
        SL_TRY(check_number(ctx, name, m->peak_all[i], peak_min, peak_max));
    }
    SL_TRY(check_gemms(ctx, m));
    SL_TRY(check_stages(ctx, m));
    return check_disk(ctx, &m->disk);
}

bool sl_machine_same(const sl_machine_id *kept, const sl_machine_id *now, char why[200])
{
    double ram = (double)now->ram_bytes / (double)SL_MAX(kept->ram_bytes, 1);
    why[0] = 0;
    if (strcmp(kept->cpu, now->cpu))
        snprintf(why, 200, "it is of %.80s, this is %.80s", kept->cpu, now->cpu);
    else if (strcmp(kept->isa, now->isa))
        snprintf(why, 200, "instructions were \"%s\", are \"%s\"", kept->isa, now->isa);
    else if (kept->cores != now->cores || kept->hw_threads != now->hw_threads)
        snprintf(why, 200, "it had %u cores and %u hardware threads, now %u and %u", kept->cores,
                 kept->hw_threads, now->cores, now->hw_threads);
    else if (!(fabs(ram - 1) <= 0.05))
        snprintf(why, 200, "it had %.1f GiB of memory, now %.1f GiB",
                 (double)kept->ram_bytes / 0x1p30, (double)now->ram_bytes / 0x1p30);
    return !why[0];
}

static double at(const sl_machine_point *p, uint32_t n, uint32_t threads)
{
    uint32_t i = 0;
    if (!n) return 0;
    while (i < n && p[i].threads < threads) i++;
    if (i == n) return p[n - 1].value;
    if (!i || p[i].threads == threads) return p[i].value;
    double share = (double)(threads - p[i - 1].threads) / (p[i].threads - p[i - 1].threads);
    return p[i - 1].value + share * (p[i].value - p[i - 1].value);
}

double sl_machine_dram_s(const sl_machine *m, uint32_t threads)
{
    return at(m->dram_read, m->n_dram, threads);
}

double sl_machine_barrier_s(const sl_machine *m, uint32_t threads)
{
    if (!m->n_barrier) return 2e-8 + (threads > 1 ? 1e-7 * threads : 0);
    return at(m->barrier, m->n_barrier, threads);
}

double sl_machine_peak_s(const sl_machine *m, sl_peak peak, uint32_t threads)
{
    assert((unsigned)peak < SL_N_PEAKS);
    /* Noise may leave all cores a little above or below so many times one. */
    if (threads >= m->id.cores) return m->peak_all[peak];
    return fmin(threads * m->peak_core[peak], fmax(m->peak_all[peak], m->peak_core[peak]));
}

/* y at x between (x0, y0) and (x1, y1), all in logarithms. */
static double between(double x, double x0, double y0, double x1, double y1)
{
    double share = log(x / x0) / log(x1 / x0);
    return exp(log(y0) + share * log(y1 / y0));
}

static double on_curve(const sl_machine_curve *c, double depth)
{
    const sl_machine_disk_point *p = c->at;
    uint32_t i = 0;
    while (i < c->n && p[i].depth < depth) i++;
    if (i == c->n) return p[i - 1].bytes_s;
    if (!i) return p[0].bytes_s;
    return between(depth, p[i - 1].depth, p[i - 1].bytes_s, p[i].depth, p[i].bytes_s);
}

double sl_machine_disk_s(const sl_machine *m, double bytes, double depth)
{
    const sl_machine_disk *d = &m->disk;
    const sl_machine_curve *c = d->curve;
    uint32_t i = 0;
    if (!d->n_curves) return 0;
    while (i < d->n_curves && c[i].bytes < bytes) i++;
    if (i == d->n_curves) return on_curve(&c[i - 1], depth);
    if (!i) return on_curve(&c[0], depth);
    return between(bytes, c[i - 1].bytes, on_curve(&c[i - 1], depth), c[i].bytes,
                   on_curve(&c[i], depth));
}

bool sl_machine_disk_best(const sl_machine *m, uint32_t *ret_bytes, uint32_t *ret_depth,
                          double *ret_bytes_s)
{
    const double near = 0.95;
    const sl_machine_disk *d = &m->disk;
    double best = 0, least = 0;
    *ret_bytes = 1 << 20;
    *ret_depth = 16;
    for (uint32_t i = 0; i < d->n_curves; i++)
        for (uint32_t k = 0; k < d->curve[i].n; k++) best = fmax(best, d->curve[i].at[k].bytes_s);
    for (uint32_t i = 0; i < d->n_curves; i++)
        for (uint32_t k = 0; k < d->curve[i].n; k++) {
            const sl_machine_disk_point *p = &d->curve[i].at[k];
            double flying = (double)d->curve[i].bytes * p->depth;
            if (p->bytes_s < near * best || (least > 0 && flying > least)) continue;
            least = flying;
            *ret_bytes = d->curve[i].bytes;
            *ret_depth = p->depth;
        }
    *ret_bytes_s = best;
    return best > 0;
}
