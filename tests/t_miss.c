/* tests/t_miss.c - the default curve against what its source says, and what every curve must be. */
#include "perfmodel/sl_miss.h"
#include "tests/t.h"

#include <math.h>

static void near(double a, double b, double tol, const char *what)
{
    T_CHECK(fabs(a - b) <= tol, "%s: %.6f, expected %.6f", what, a, b);
}

static void defaults(void)
{
    sl_miss_model m = sl_miss_default(64, 8);
    T_CHECK(!m.traced && m.n_points && !m.n_distinct, "a default is none of a trace");
    near(sl_miss_hit(&m, 0.12), 0.402, 0.02, "router of 8 of 64, 12 %");
    near(sl_miss_hit(&m, 0.25), 0.656, 0.02, "25 %");
    near(sl_miss_hit(&m, 0.50), 0.884, 0.02, "50 %");
    m = sl_miss_default(128, 8);
    double hit = sl_miss_hit(&m, 0.134);
    T_CHECK(hit > 0.659 && hit < 0.791, "8 of 128 at 13.4 %%: %.3f between LRU and Belady", hit);
    m = sl_miss_default(8, 8);      /* every expert in every turn: no order of use to go by */
    hit = sl_miss_hit(&m, 0.5);
    T_CHECK(hit >= 0.5 && hit < 0.6, "8 of 8, half: %.3f", hit);
    m = sl_miss_default(0, 0);
    sl_miss_one_text(&m, 0, 0);
    T_CHECK(isfinite(sl_miss_hit(&m, 0.5)) && !m.n_distinct, "no experts");
}

/* Against dx/dn = (exp(-0.4 x) - q) / (1 - q), x = 1 at one row, in small steps. */
static void one_text(void)
{
    const uint32_t n_expert = 64, n_used = 8;
    const double q = exp(-0.4 * 8), step = 1e-4;
    sl_miss_model m = sl_miss_default(n_expert, n_used);
    sl_miss_one_text(&m, n_expert, n_used);
    double x = 1, rows = 1;
    for (uint32_t i = 0; i < m.n_distinct && m.distinct[i].rows <= 16; i++) {
        for (; rows < m.distinct[i].rows; rows += step) x += step * (exp(-0.4 * x) - q) / (1 - q);
        near(sl_miss_distinct(&m, n_expert, n_used, m.distinct[i].rows), n_used * x, 0.01,
             "rows of one text");
    }
    near(sl_miss_distinct(&m, n_expert, n_used, 16), 38, 0.5, "16 rows, 8 of 64");
    near(sl_miss_distinct(&m, n_expert, n_used, 4096), 64, 1e-6, "a long one uses all");
    m = sl_miss_default(128, 4);
    sl_miss_one_text(&m, 128, 4);
    double counted = sl_miss_distinct(&m, 128, 4, 512);
    T_CHECK(counted > 72 && counted < 105, "512 rows, 4 of 128: %.1f, counted were 72 to 95",
            counted);
    sl_miss_model traced = { .traced = true };
    sl_miss_one_text(&traced, 64, 8);
    T_CHECK(!traced.n_distinct, "a trace's stays");
}

/* Any points, even those of a trace that is short: falling, doubled, beyond 1. */
static sl_miss_model any_model(void)
{
    sl_miss_model m = { .traced = true, .n_points = t_below(SL_MISS_POINTS + 1),
                        .n_distinct = t_below(SL_MISS_POINTS + 1) };
    double share = 0;
    uint32_t rows = 1;
    for (uint32_t i = 0; i < m.n_points; i++) {
        share = fmin(share + 0.15 * (t_unit() + 1), 1);
        m.at[i] = (sl_miss_point){ share, 0.5 + 0.51 * t_unit(), 1 + 3 * (t_unit() + 1) };
    }
    for (uint32_t i = 0; i < m.n_distinct; i++) {
        rows += t_below(50);
        m.distinct[i] = (sl_distinct_point){ rows, 0.5 + 0.51 * t_unit() };
    }
    return m;
}

static void curves(const sl_miss_model *m)
{
    double before = 0;
    near(sl_miss_hit(m, 0), 0, 0, "no slots");
    near(sl_miss_hit(m, 1), 1, 0, "slots for all");
    for (int i = 0; i <= 200; i++) {
        double hit = sl_miss_hit(m, i / 200.0);
        T_CHECK(hit >= before && hit <= 1, "share %d / 200: %.6f behind %.6f", i, hit, before);
        before = hit;
    }
    uint32_t n = 1 + t_below(200), k = 1 + t_below(n);
    before = 0;
    for (double rows = 1; rows < 5000; rows *= 1.3) {
        double d = sl_miss_distinct(m, n, k, rows);
        T_CHECK(d >= k && d <= n && d >= before * (1 - 1e-12), "%u of %u, %.0f rows: %.3f, %.3f", k,
                n, rows, d, before);
        before = d;
    }
    near(sl_miss_distinct(m, n, k, 1), k, 1e-12, "one row");
}

static void turns(const sl_miss_model *m)
{
    double p[SL_MAX_MISSED + 1];
    uint32_t k = t_below(SL_MAX_MISSED + 1);
    double share = 0.5 + 0.5 * t_unit(), sum = 0, mean = 0, square = 0;
    sl_miss_turn(m, k, share, p);
    for (int i = 0; i <= SL_MAX_MISSED; i++) {
        T_CHECK(p[i] >= 0 && (i <= (int)k || p[i] == 0), "%u used: P(%d) = %g", k, i, p[i]);
        sum += p[i];
        mean += i * p[i];
        square += i * (double)i * p[i];
    }
    double miss = 1 - sl_miss_hit(m, share), binomial = k * miss * (1 - miss);
    near(sum, 1, 1e-9, "sum");
    near(mean, k * miss, 1e-7 * (1 + k), "mean");
    if (binomial > 1e-6) {
        double spread = (square - mean * mean) / binomial;
        T_CHECK(spread > 1 - 1e-4 && spread < k + 1e-4, "spread %g of %u", spread, k);
    }
}

/* The numbers themselves. */
static void by_hand(void)
{
    double p[SL_MAX_MISSED + 1];
    sl_miss_model m = { .n_points = 2, .at = { { 0.25, 0.5, 1 }, { 0.5, 0.75, 1.5 } } };
    near(sl_miss_hit(&m, 0.125), 0.25, 1e-12, "half way to the first point");
    near(sl_miss_hit(&m, 0.375), 0.625, 1e-12, "between");
    near(sl_miss_hit(&m, 0.75), 0.875, 1e-12, "half way to 1");
    sl_miss_turn(&m, 2, 0.25, p);       /* a binomial of 1/2 */
    near(p[0], 0.25, 1e-12, "none of 2");
    near(p[1], 0.5, 1e-12, "one of 2");
    /* 1/4, spread 1.5 of 2: a + b = 1, so P(0) = (3/4 * 7/4) / (1 * 2) */
    sl_miss_turn(&m, 2, 0.5, p);
    near(p[0], 0.75 * 1.75 / 2, 1e-12, "none of 2, spread");
    near(p[2], 0.25 * 1.25 / 2, 1e-12, "both of 2, spread");
    sl_miss_turn(&m, 100, 0, p);        /* more than the table: all in its last place */
    near(p[SL_MAX_MISSED], 1, 0, "100 of 100");
    m = (sl_miss_model){ .n_distinct = 1, .distinct = { { 4, 0.625 } } };
    near(sl_miss_distinct(&m, 8, 2, 4), 5, 1e-12, "at the point");
    near(sl_miss_distinct(&m, 8, 2, 2), 3.5, 1e-12, "half the way there, in log rows");
    near(sl_miss_distinct(&m, 8, 2, 8), 5 * (1 - pow(0.75, 8)) / (1 - pow(0.75, 4)), 1e-12,
         "beyond: as even routing grows");
    m.n_distinct = 0;
    near(sl_miss_distinct(&m, 8, 2, 4), 8 * (1 - pow(0.75, 4)), 1e-12, "even");
}

int main(void)
{
    t_begin();
    defaults();
    one_text();
    by_hand();
    for (int i = 0; i < 300; i++) {
        sl_miss_model m = any_model();
        curves(&m);
        turns(&m);
    }
    return t_end();
}
