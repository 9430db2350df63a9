/* perfmodel/miss.c - hits over the share of experts that have slots, misses of a turn, different
 * experts of many rows.
 * The default curve: hit = (1 - exp(-r x)) / (1 - exp(-r X)), x = slots over experts that a token
 * uses, X = all experts over them. r = 0.535 is the one number in it. It comes from a router of 8
 * of 64 that goes by topic, as large models' do, with the policy `markov` (docs/learned.md): x =
 * 0.96 / 2 / 4 hit 40.2 / 65.6 / 88.4 %, which is r = 0.535 / 0.533 / 0.539; and it gives Qwen3-30B
 * (8 of 128) 68.2 % at 13.4 %, x = 2.14, where LRU was measured to hit 65.9 and Belady's choice
 * 79.1 % (arXiv 2608.18261); 2505.16056 finds x of about 2 to be the knee in 20 models. Those all
 * have 16 experts or fewer for each that is used, so x is not taken to grow faster with the share
 * than it does there. A router without topics hits less: 24 / 40 / 65 % at 12 / 25 / 50 %.
 * Different experts of n rows of one text follow from the same: the next row brings those that
 * none of the n used, which are what LRU misses with slots for just these (Denning's working sets,
 * CACM 11(5), 1968). With LRU's hits in the form above dx/dn = 1 - hit(x) from x = 1 at one row,
 * which has a closed form. LRU hits less than `markov`: 29 / 53 / 83 % of the router by topic, r =
 * 0.36 / 0.40 / 0.39; Qwen3-30B's 65.9 % is r = 0.50; verse gives 0.1. That is known up to x = 4,
 * which is 16 rows: 38 of 64 experts, where even routing gives 56. What is used seldom is not in
 * so short a form: batches of 2,048 tokens are said to use nearly all experts (ik_llama.cpp pull
 * request 2262), so from 16 rows on the share goes to even routing's there. For 512 rows and 4 of
 * 128 this gives 97; llama.cpp counted 83 on average in eight layers (pull request 15346). */
#include "perfmodel/sl_miss.h"

#include <assert.h>
#include <math.h>

#define RATE 0.535
#define TEXT_RATE 0.4
#define MOST_PER_USED 16.0
/* Variance of the misses of a turn over a binomial's: see sl_miss_point. */
#define SPREAD 1.3

sl_miss_model sl_miss_default(uint32_t n_expert, uint32_t n_used)
{
    static const double shares[] = { 0.005, 0.01, 0.02, 0.04, 0.06, 0.09, 0.125, 0.17,
                                     0.22,  0.28, 0.35, 0.43, 0.52, 0.63, 0.76,  0.88 };
    sl_miss_model m = { .n_points = SL_LEN(shares) };
    _Static_assert(SL_LEN(shares) <= SL_MISS_POINTS, "the curve has room");
    double per = n_used ? fmin((double)n_expert / n_used, MOST_PER_USED) : 1;
    for (size_t i = 0; i < SL_LEN(shares); i++)
        m.at[i] = (sl_miss_point){ .share = shares[i], .spread = SPREAD,
                                   .hit = expm1(-RATE * per * shares[i]) / expm1(-RATE * per) };
    return m;
}

/* Linear between points, of which (0, 0) and (1, 1) are two; spread is the nearest at the ends. */
static sl_miss_point point_at(const sl_miss_model *m, double share)
{
    share = fmin(fmax(share, 0), 1);
    sl_miss_point a = { .spread = m->n_points ? m->at[0].spread : 1 };
    for (uint32_t i = 0; i <= m->n_points; i++) {
        sl_miss_point b = i < m->n_points ? m->at[i] : (sl_miss_point){ 1, 1, a.spread };
        if (b.share <= a.share || (i < m->n_points && b.share >= 1)) continue;
        b.hit = fmin(fmax(b.hit, a.hit), 1);    /* a trace's noise must not make it fall */
        if (share <= b.share) {
            double t = (share - a.share) / (b.share - a.share);
            return (sl_miss_point){ share, a.hit + t * (b.hit - a.hit),
                                    a.spread + t * (b.spread - a.spread) };
        }
        a = b;
    }
    return (sl_miss_point){ share, 1, a.spread };
}

double sl_miss_hit(const sl_miss_model *m, double share)
{
    return point_at(m, share).hit;
}

/* A beta-binomial: n uses that miss with a probability which itself varies from turn to turn, so
 * that the variance is `spread` times a binomial's: a + b = (n - spread) / (spread - 1). Weights
 * from P(k + 1) / P(k), as logarithms. */
void sl_miss_turn(const sl_miss_model *m, uint32_t n_used, double share,
                  double ret_p[SL_MAX_MISSED + 1])
{
    sl_miss_point at = point_at(m, share);
    double miss = 1 - at.hit, n = n_used;
    for (int i = 0; i <= SL_MAX_MISSED; i++) ret_p[i] = 0;
    if (!n_used || miss <= 0 || miss >= 1) {
        ret_p[miss >= 1 ? SL_MIN(n_used, (uint32_t)SL_MAX_MISSED) : 0] = 1;
        return;
    }
    double spread = fmin(at.spread, 0.95 * n);      /* n: all or nothing */
    double ab = spread > 1 ? (n - spread) / (spread - 1) : INFINITY, sum = 0;
    /* the mode is near the mean: weights are taken relative to it, so that none overflows */
    double log_w = 0, log_mean = 0;
    for (int again = 0; again < 2; again++, log_w = 0)
        for (uint32_t k = 0; k <= n_used; k++) {
            if (!again && k == (uint32_t)(n * miss)) log_mean = log_w;
            if (again) {
                double w = exp(log_w - log_mean);
                ret_p[SL_MIN(k, (uint32_t)SL_MAX_MISSED)] += w;
                sum += w;
            }
            double up = isinf(ab) ? miss : miss * ab + k;
            double down = isinf(ab) ? 1 - miss : (1 - miss) * ab + (n - k - 1);
            if (k < n_used) log_w += log((n - k) / (k + 1.0) * up / down);
        }
    for (int i = 0; i <= SL_MAX_MISSED; i++) ret_p[i] /= sum;
}

/* The share that even routing uses. */
static double even(double n_expert, double n_used, double rows)
{
    return -expm1(rows * log1p(-n_used / n_expert));
}

void sl_miss_one_text(sl_miss_model *m, uint32_t n_expert, uint32_t n_used)
{
    static const uint32_t rows[] = { 2, 3, 4, 6, 8, 12, 16 };
    const uint32_t most = 2048;
    _Static_assert(SL_LEN(rows) < SL_MISS_POINTS, "the curve has room");
    if (m->traced || !n_used || n_used >= n_expert) return;
    /* u = exp(-r x) goes to q, that of all experts: du/dn = -r u (u - q) / (1 - q) */
    double per = (double)n_expert / n_used, q = exp(-TEXT_RATE * per);
    m->n_distinct = 0;
    for (size_t i = 0; i < SL_LEN(rows); i++) {
        double left = (1 - q / exp(-TEXT_RATE)) * exp(-TEXT_RATE * q / (1 - q) * (rows[i] - 1.0));
        double share = -log(q / (1 - left)) / (TEXT_RATE * per);
        m->distinct[m->n_distinct++] = (sl_distinct_point){ rows[i], share };
    }
    m->distinct[m->n_distinct++] = (sl_distinct_point){ most, even(n_expert, n_used, most) };
}

/* Between points, (1, n_used / n_expert) among them, linear in log rows; beyond the last its ratio
 * to even routing stays. */
double sl_miss_distinct(const sl_miss_model *m, uint32_t n_expert, uint32_t n_used, double n_rows)
{
    double e = n_expert, k = SL_MIN(n_used, n_expert);
    if (n_rows <= 1 || k <= 0 || k >= e) return k;
    sl_distinct_point a = { 1, k / e };
    double share = m->n_distinct ? 0 : even(e, k, n_rows);
    for (uint32_t i = 0; i < m->n_distinct && share <= 0; i++) {
        sl_distinct_point b = m->distinct[i];
        b.share = fmin(fmax(b.share, a.share), 1);
        if (n_rows <= b.rows && b.rows > a.rows)
            share = a.share + (b.share - a.share) * log(n_rows / a.rows)
                                  / log((double)b.rows / a.rows);
        a = b;
    }
    if (share <= 0) share = a.share * even(e, k, n_rows) / even(e, k, a.rows);
    return fmin(fmax(share * e, k), e);
}
