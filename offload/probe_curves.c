/* offload/probe_curves.c - which points of the engine's stages are measured, in which order, and
 * what becomes of the times: medians of short visits that are spread over the whole time. */
#include "offload/probe.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_ROUNDS = 16 };

/* Types that many model files are made of get all points, the others three. */
static const sl_type common[] = { SL_F32, SL_F16, SL_BF16, SL_Q4_0, SL_Q8_0, SL_Q2_K, SL_Q3_K,
                                  SL_Q4_K, SL_Q5_K, SL_Q6_K, SL_IQ4_XS, SL_MXFP4 };
static const sl_type few_types[] = { SL_F16, SL_Q8_0, SL_Q4_K, SL_Q6_K };
static const uint32_t all_rows[] = { 1, 2, 4, 8, 16, 32, 64, 128 }, some_rows[] = { 1, 8, 64 },
                      few_rows[] = { 1, 64 };

struct curves {
    const sl_probe_params *p;
    probe_engine *e;
    probe_point *points;        /* [n]: types by type, then threads, then rows */
    double (*s)[MAX_ROUNDS];    /* [n] seconds of a call */
    uint32_t n, n_rounds;
    uint32_t threads[SL_MACHINE_COSTS], n_threads;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static bool is_common(sl_type t)
{
    for (size_t i = 0; i < SL_LEN(common); i++)
        if (common[i] == t) return true;
    return false;
}

static void add_points(struct curves *c, sl_type type)
{
    const uint32_t *rows = c->p->quick ? few_rows : is_common(type) ? all_rows : some_rows;
    size_t n = c->p->quick ? SL_LEN(few_rows)
             : is_common(type) ? SL_LEN(all_rows) : SL_LEN(some_rows);
    for (uint32_t at = 0; at < c->n_threads; at++)
        for (size_t i = 0; i < n; i++)
            c->points[c->n++] = (probe_point){ PROBE_GEMM, at, type, rows[i] };
}

/* Costs first: the same for all types. */
static void list_points(struct curves *c)
{
    for (uint32_t at = 0; at < c->n_threads; at++)
        for (int what = PROBE_GEMM + 1; what < PROBE_N_WHATS; what++)
            c->points[c->n++] = (probe_point){ (probe_what)what, at, SL_F32, 1 };
    bool wanted[SL_N_TYPES] = { false };
    const sl_type *list = c->p->types ? c->p->types : few_types;
    size_t n = c->p->types ? c->p->n_types : SL_LEN(few_types);
    for (size_t i = 0; (c->p->types || c->p->quick) && i < n; i++) wanted[list[i]] = true;
    for (uint32_t t = 0; t < SL_N_TYPES; t++)
        if (wanted[t] || (!c->p->types && !c->p->quick && sl_type_get(t)->matmul))
            add_points(c, (sl_type)t);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, ascending);
    return (v[(n - 1) / 2] + v[n / 2]) / 2;
}

/* Rounds over all points until the time is over, one at least. */
static sl_status visit_all(struct curves *c, double seconds)
{
    const double visit_s = 0.012;
    double begin = now_s(), round_s = 0;
    do {
        double start = now_s();
        for (uint32_t i = 0; i < c->n; i++) {
            const probe_point *p = &c->points[i];
            double share = (now_s() - begin) / seconds;
            if (c->p->progress)
                c->p->progress(c->p->user, p->what == PROBE_GEMM ? sl_type_get(p->type)->name
                                                                 : "stages", SL_MIN(share, 1));
            SL_TRY(probe_engine_visit(c->e, p, visit_s, &c->s[i][c->n_rounds]));
        }
        c->n_rounds++;
        round_s = now_s() - start;
    } while (c->n_rounds < MAX_ROUNDS && now_s() - begin + round_s / 2 < seconds);
    return SL_OK;
}

/* Medians of each round's costs: what they are differences of was measured at once. */
static void fill_costs(const struct curves *c, uint32_t first, sl_machine_cost *ret)
{
    double v[6][MAX_ROUNDS];
    for (uint32_t r = 0; r < c->n_rounds; r++) {
        double s[PROBE_N_WHATS];
        sl_machine_cost cost;
        for (int what = PROBE_GEMM + 1; what < PROBE_N_WHATS; what++)
            s[what] = c->s[first + (uint32_t)what - 1][r];
        probe_engine_cost(c->e, s, &cost);
        v[0][r] = cost.stage_s;
        v[1][r] = cost.elem_s;
        v[2][r] = cost.decode_flops_s;
        v[3][r] = cost.prefill_flops_s;
        v[4][r] = cost.decode_bytes_s;
        v[5][r] = cost.call_s;
    }
    *ret = (sl_machine_cost){ .threads = c->threads[c->points[first].at],
                              .stage_s = median(v[0], c->n_rounds),
                              .elem_s = median(v[1], c->n_rounds),
                              .decode_flops_s = median(v[2], c->n_rounds),
                              .prefill_flops_s = median(v[3], c->n_rounds),
                              .decode_bytes_s = median(v[4], c->n_rounds),
                              .call_s = median(v[5], c->n_rounds) };
}

static void fill_in(struct curves *c, sl_machine *m)
{
    enum { PER_COUNT = PROBE_N_WHATS - 1 };
    sl_machine_gemm *g = NULL;
    m->n_costs = c->n_threads;
    m->n_gemms = 0;
    for (uint32_t at = 0; at < c->n_threads; at++) fill_costs(c, at * PER_COUNT, &m->cost[at]);
    for (uint32_t i = c->n_threads * PER_COUNT; i < c->n; i++) {
        const probe_point *p = &c->points[i];
        double s = median(c->s[i], c->n_rounds);
        if (!g || g->type != p->type || g->threads != c->threads[p->at]) {
            g = &m->gemm[m->n_gemms++];
            *g = (sl_machine_gemm){ .type = p->type, .threads = c->threads[p->at] };
        }
        g->at[g->n++] = (sl_machine_gemm_point){
            p->rows, probe_engine_ops_s(c->e, &m->cost[p->at], s, p->rows)
        };
    }
}

sl_status probe_curves(sl_ctx *ctx, const sl_probe_params *p, const uint32_t *threads,
                       uint32_t n_threads, char *weights, size_t bytes, double seconds,
                       sl_machine *m)
{
    enum { MOST = SL_MACHINE_GEMMS * SL_MACHINE_GEMM_POINTS + SL_MACHINE_COSTS * PROBE_N_WHATS };
    struct curves c = { .p = p, .n_threads = n_threads };
    assert(n_threads && n_threads <= SL_MACHINE_COSTS);
    memcpy(c.threads, threads, n_threads * sizeof *threads);
    c.points = calloc(MOST, sizeof *c.points);
    c.s = calloc(MOST, sizeof *c.s);
    sl_status st = c.points && c.s ? SL_OK : sl_fail(ctx, SL_E_NOMEM, "points of the engine");
    probe_dims dims = { p->d_model, p->d_expert };
    if (st == SL_OK)
        st = probe_engine_create(ctx, threads, n_threads, dims, weights, bytes, &c.e);
    if (st == SL_OK) list_points(&c);
    if (st == SL_OK) st = visit_all(&c, seconds);
    if (st == SL_OK) fill_in(&c, m);
    probe_engine_destroy(&c.e);
    free(c.points);
    free(c.s);
    return st;
}
