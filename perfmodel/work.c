/* perfmodel/work.c - what products cost, and which half of the unit they keep busy. */
#include "perfmodel/work.h"

#include <math.h>

#define MANY_ROWS 65536.0       /* weights come for free beside so many */

void work_add(work *to, const work *w, double times)
{
    to->s += times * w->s;
    to->memory_s += times * w->memory_s;
    to->arithmetic_s += times * w->arithmetic_s;
    to->bytes += times * w->bytes;
}

work work_of(double s, double memory_s, double arithmetic_s, double bytes)
{
    bool memory = memory_s >= arithmetic_s;
    work w = { .s = fmax(s, memory_s), .bytes = bytes };
    w.memory_s = memory ? w.s : memory_s;
    w.arithmetic_s = memory ? arithmetic_s : w.s;
    return w;
}

/* Numbers of rows between which seconds may bend: where this type, or one that stands in for it,
 * was measured. Returns how many. */
enum { BENDS = 2 + SL_MACHINE_GEMMS * SL_MACHINE_GEMM_POINTS };
static uint32_t bends(const sl_machine *m, double rows[BENDS])
{
    uint32_t n = 0;
    rows[n++] = 1;
    rows[n++] = MANY_ROWS;
    for (uint32_t i = 0; i < m->n_gemms; i++)
        for (uint32_t k = 0; k < m->gemm[i].n; k++) {
            uint32_t at = 0;
            while (at < n && rows[at] != m->gemm[i].at[k].rows) at++;
            if (at == n) rows[n++] = m->gemm[i].at[k].rows;
        }
    return n;
}

/* The largest convex curve below the seconds of one weight, at `rows`. */
static double least_on_average(const sl_machine *m, sl_type type, uint32_t threads, double rows)
{
    double at[BENDS], s[BENDS], least = sl_machine_gemm_seconds(m, type, threads, 1, rows);
    uint32_t n = bends(m, at);
    for (uint32_t i = 0; i < n; i++) s[i] = sl_machine_gemm_seconds(m, type, threads, 1, at[i]);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < n && at[i] < rows; k++)
            if (at[k] > rows)
                least = fmin(least, s[i] + (s[k] - s[i]) * (rows - at[i]) / (at[k] - at[i]));
    return least;
}

static work product(const sl_machine *m, uint32_t threads, double bytes_s, const sl_part *parts,
                    uint32_t n, double bytes, double rows, bool spread)
{
    double s = 0, arithmetic = 0;
    for (uint32_t i = 0; i < n && parts[i].elems; i++) {
        double elems = (double)parts[i].elems;
        s += spread ? elems * least_on_average(m, parts[i].type, threads, rows)
                    : sl_machine_gemm_seconds(m, parts[i].type, threads, elems, rows);
        arithmetic += rows / MANY_ROWS
                    * sl_machine_gemm_seconds(m, parts[i].type, threads, elems, MANY_ROWS);
    }
    return work_of(s, bytes / bytes_s, fmin(arithmetic, s), bytes);
}

work work_product(const sl_machine *m, uint32_t threads, double bytes_s, const sl_part *parts,
                  uint32_t n, double bytes, double rows)
{
    return product(m, threads, bytes_s, parts, n, bytes, rows, false);
}

work work_product_spread(const sl_machine *m, uint32_t threads, double bytes_s,
                         const sl_part *parts, uint32_t n, double bytes, double rows)
{
    return product(m, threads, bytes_s, parts, n, bytes, rows, rows > 1);
}

work work_product_gpu(const sl_machine_gpu *g, const sl_part *parts, uint32_t n, double bytes,
                      double rows)
{
    double s = 0, arithmetic = 0;
    for (uint32_t i = 0; i < n && parts[i].elems; i++) {
        double elems = (double)parts[i].elems;
        s += sl_machine_gpu_gemm_seconds(g, parts[i].type, elems, rows);
        arithmetic += rows / MANY_ROWS
                    * sl_machine_gpu_gemm_seconds(g, parts[i].type, elems, MANY_ROWS);
    }
    double memory = g->vram_bytes_s > 0 ? bytes / g->vram_bytes_s : 0;
    return work_of(s, memory, fmin(arithmetic, s), bytes);
}

void rows_of_experts(double n_expert, double chosen, double pairs, double ret[QUANTILES])
{
    double mean = pairs / chosen, mu = pairs / n_expert, none = 1 - chosen / n_expert, r = 0;
    if (none > 1.001 * exp(-mu)) {
        double lo = -7, hi = 14;                /* log r */
        for (int i = 0; i < 50; i++) {
            r = exp((lo + hi) / 2);
            if (-r * log1p(mu / r) > log(none)) lo = (lo + hi) / 2;
            else hi = (lo + hi) / 2;
        }
    }
    double log_p = r > 0 ? -r * log1p(mu / r) : -mu, all = -expm1(log_p), now = 0;
    double sum = 0, in_bin = 0;
    uint32_t bin = 0;
    for (int q = 0; q < QUANTILES; q++) ret[q] = 0;
    double most = mu + 12 * sqrt(mu + (r > 0 ? mu * mu / r : 0)) + 8;
    for (double k = 1; k < most && k < 1e6 && bin < QUANTILES; k++) {
        double step = r > 0 ? (k - 1 + r) / k * mu / (mu + r) : mu / k;
        if (now > 0) now *= step;
        else if ((log_p += log(step)) > -40) now = exp(log_p) / all;    /* less is nothing */
        double p = now;
        while (p > 0 && bin < QUANTILES) {
            double take = fmin(p, 1.0 / QUANTILES - in_bin);
            ret[bin] += take * QUANTILES * k;
            in_bin += take;
            p -= take;
            if (in_bin < (1 - 1e-9) / QUANTILES) break;
            in_bin = 0;
            bin++;
        }
    }
    for (int q = 0; q < QUANTILES; q++) {
        ret[q] = fmax(ret[q], 1);               /* the last one may have lost its tail */
        sum += ret[q] / QUANTILES;
    }
    for (int q = 0; q < QUANTILES; q++) ret[q] = fmax(ret[q] * mean / sum, 1);
}

void busiest(const double busy_s[SL_N_RESOURCES], sl_resource *ret_first, sl_resource *ret_next)
{
    int first = 0, next = 1;
    for (int r = 1; r < SL_N_RESOURCES; r++) {
        if (busy_s[r] > busy_s[first]) {
            next = first;
            first = r;
        } else if (busy_s[r] > busy_s[next]) {
            next = r;
        }
    }
    *ret_first = (sl_resource)first;
    *ret_next = (sl_resource)next;
}

sl_grade grade_of(const sl_machine *m, const sl_machine_gpu *card, bool traced)
{
    if (m->source == SL_MACHINE_DATASHEET || (card && !card->n_gemms)) return SL_GRADE_DATASHEET;
    if (m->source == SL_MACHINE_QUICK) return SL_GRADE_QUICK;
    return traced ? SL_GRADE_CALIBRATED : SL_GRADE_COLD;
}
