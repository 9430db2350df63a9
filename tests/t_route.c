/* tests/t_route.c - the routing function: cases computed by hand for each kind of score, groups,
 * ties, and logits that are no numbers. */
#include "kernels/sl_kernels.h"
#include "tests/t.h"

#include <math.h>

#define MAX_E 256

struct want {
    uint32_t id[4];
    double w[4];
};

static void check(const char *name, const sl_routing *r, const float *logits, struct want want)
{
    float scratch[3 * MAX_E], w[MAX_E];
    uint32_t id[MAX_E];
    sl_route_row(r, logits, scratch, id, w);
    for (uint32_t i = 0; i < r->n_used; i++) {
        T_CHECK(id[i] == want.id[i], "%s: choice %u is %u, expected %u", name, i, id[i],
                want.id[i]);
        T_CHECK(fabs(w[i] - want.w[i]) < 1e-6 * (1 + fabs(want.w[i])),
                "%s: weight %u is %.8g, expected %.8g", name, i, w[i], want.w[i]);
    }
}

static double sig(double x)
{
    return 1 / (1 + exp(-x));
}

static void scores(void)
{
    static const float l[6] = { 0.5f, 2, -1, 1, 2, 0 };     /* 1 and 4 tie */
    double sum = 0;
    for (int i = 0; i < 6; i++) sum += exp(l[i]);
    sl_routing r = { .score = SL_SCORE_SOFTMAX, .n_expert = 6, .n_used = 3, .scale = 1 };
    check("softmax", &r, l,
          (struct want){ { 1, 4, 3 }, { exp(2) / sum, exp(2) / sum, exp(1) / sum } });
    r.normalise = true;
    double top = 2 * exp(2) + exp(1);
    check("softmax, normalised", &r, l,
          (struct want){ { 1, 4, 3 }, { exp(2) / top, exp(2) / top, exp(1) / top } });
    r = (sl_routing){ .score = SL_SCORE_TOPK_SOFTMAX, .n_expert = 6, .n_used = 3, .scale = 1 };
    check("softmax after top-k", &r, l,
          (struct want){ { 1, 4, 3 }, { exp(2) / top, exp(2) / top, exp(1) / top } });
    r = (sl_routing){
        .score = SL_SCORE_SIGMOID, .n_expert = 6, .n_used = 2, .scale = 2.5f, .normalise = true
    };
    check("sigmoid, normalised, scaled", &r, l, (struct want){ { 1, 4 }, { 1.25, 1.25 } });
    r.normalise = false;
    check("sigmoid, scaled", &r, l, (struct want){ { 1, 4 }, { 2.5 * sig(2), 2.5 * sig(2) } });
    r = (sl_routing){ .score = SL_SCORE_SQRT_SOFTPLUS, .n_expert = 6, .n_used = 3, .scale = 1 };
    check("sqrt of softplus", &r, l,
          (struct want){ { 1, 4, 3 },
                         { sqrt(log1p(exp(2))), sqrt(log1p(exp(2))), sqrt(log1p(exp(1))) } });
}

/* The bias moves the choice and never the weight. */
static void selection_bias(void)
{
    static const float l[4] = { 0, 1, 2, 3 }, bias[4] = { 1, 0, 0, -1 };
    sl_routing r = {
        .score = SL_SCORE_SIGMOID, .n_expert = 4, .n_used = 2, .scale = 1, .sel_bias = bias
    };
    check("selection bias", &r, l, (struct want){ { 0, 2 }, { 0.5, sig(2) } });
}

/* Small sums are not clamped: two scores of sigmoid(-30) share the weight 1. */
static void small_sums(void)
{
    static const float l[3] = { -30, -30, -31 };
    sl_routing r = {
        .score = SL_SCORE_SIGMOID, .n_expert = 3, .n_used = 2, .scale = 1, .normalise = true
    };
    check("small sums", &r, l, (struct want){ { 0, 1 }, { 0.5, 0.5 } });
}

/* Eight experts in four groups of two. Sums of two: 3.0, 3.4, 2.2, 1.0 before the sigmoid, in whose
 * terms 1.5+1.5 (0.818 + 0.818) beats 3+0.4 (0.953 + 0.599); the largest single value is in group
 * 1. */
static void groups(void)
{
    static const float l[8] = { 1.5f, 1.5f, 3, 0.4f, 1.2f, 1, 0.5f, 0.5f };
    sl_routing r = { .score = SL_SCORE_SIGMOID,
                     .n_expert = 8,
                     .n_used = 2,
                     .n_group = 4,
                     .n_group_used = 1,
                     .scale = 1 };
    check("groups by two", &r, l, (struct want){ { 0, 1 }, { sig(1.5), sig(1.5) } });
    r.n_group_used = 2;
    check("two groups by two", &r, l, (struct want){ { 2, 0 }, { sig(3), sig(1.5) } });
    double sum = 0;
    for (int i = 0; i < 8; i++) sum += exp(l[i]);
    r.score = SL_SCORE_SOFTMAX;
    r.n_group_used = 1;
    check("groups by one", &r, l, (struct want){ { 2, 3 }, { exp(3) / sum, exp(0.4f) / sum } });
    static const float bias[8] = { 0, 0, 0, 0, 0, 0, 2, 2 };
    r.score = SL_SCORE_SIGMOID;
    r.sel_bias = bias;
    check("groups by biased scores", &r, l, (struct want){ { 6, 7 }, { sig(0.5), sig(0.5) } });
}

/* eps 0.02 (jitter 0.01). First choice 1 (2.0): 1.98 is (2 - 1.98) / 2 = 0.01 away, kept; 1.0 is
 * 0.5 away, dropped; so exp(0) / (exp(0) + exp(-0.02)). Second: 1.98 alone. -2.5: (2 + 2.5) / 2.5
 * dropped. */
static void sparsemixer(void)
{
    static const float l[4] = { 1, 2, 1.98f, -2.5f };
    sl_routing r = {
        .score = SL_SCORE_SPARSEMIXER, .n_expert = 4, .n_used = 2, .scale = 1, .mixer_eps = 0.02f
    };
    check("sparsemixer", &r, l, (struct want){ { 1, 2 }, { 1 / (1 + exp((double)1.98f - 2)), 1 } });
    static const float tie[4] = { 0, 0, 0, 0 };     /* 0/0 is kept */
    check("sparsemixer, all zero", &r, tie, (struct want){ { 0, 1 }, { 1.0 / 4, 1.0 / 3 } });
}

/* Whatever the logits: n_used different experts, all there. */
static void no_numbers(void)
{
    static const float odd[] = { NAN, INFINITY, -INFINITY, 0, 1, -1, 3e38f, -3e38f };
    float l[MAX_E], bias[MAX_E], w[MAX_E], scratch[3 * MAX_E];
    for (int trial = 0; trial < 20000; trial++) {
        uint32_t id[MAX_E];
        sl_routing r = { .score = (sl_score)t_below(SL_SCORE_SPARSEMIXER + 1),
                         .scale = 1,
                         .n_expert = 8 * (1 + t_below(4)),
                         .mixer_eps = 0.02f,
                         .normalise = t_below(2) };
        r.n_used = r.score == SL_SCORE_SPARSEMIXER ? 2 : 1 + t_below(r.n_expert);
        if (t_below(2)) r.n_group = 4, r.n_group_used = 1 + t_below(4);
        if (t_below(2)) r.sel_bias = bias;
        bool all_odd = t_below(4) == 0;
        for (uint32_t i = 0; i < r.n_expert; i++) {
            l[i] = all_odd ? odd[t_below(3)] : odd[t_below(SL_LEN(odd))];
            bias[i] = odd[t_below(SL_LEN(odd))];
        }
        sl_route_row(&r, l, scratch, id, w);
        bool seen[MAX_E] = { false };
        for (uint32_t i = 0; i < r.n_used; i++) {
            T_CHECK(id[i] < r.n_expert && !seen[id[i]], "trial %d: expert %u of %u", trial, id[i],
                    r.n_expert);
            if (id[i] < r.n_expert) seen[id[i]] = true;
        }
    }
    static const float one[4] = { NAN, 1, NAN, 2 };
    sl_routing r = { .score = SL_SCORE_SIGMOID, .n_expert = 4, .n_used = 2, .scale = 1 };
    check("NaN comes last", &r, one, (struct want){ { 3, 1 }, { sig(2), sig(1) } });
}

int main(void)
{
    t_begin();
    scores();
    selection_bias();
    small_sums();
    groups();
    sparsemixer();
    no_numbers();
    return t_end();
}
