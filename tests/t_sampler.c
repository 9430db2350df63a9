/* tests/t_sampler.c - the sampler against probabilities computed by hand and against a slow
 * reference (full sort), its edges, and its use of memory. */
#include <math.h>

#include "runtime/sl_sampler.h"
#include "tests/t.h"

enum { N_VOCAB = 8192 };
static sl_sampler_room *room;

static sl_sampler_params plain(void)    /* draws from the softmax itself */
{
    return (sl_sampler_params){ .temp = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1,
                                .repeat_last_n = 64, .seed = 1 };
}

static sl_sampler *make(sl_ctx *ctx, sl_sampler_params p, uint32_t n)
{
    sl_sampler *s = NULL;
    T_NEED(sl_sampler_create(ctx, &p, n, &s) == SL_OK, "%s", sl_error(ctx));
    return s;
}

static int32_t once(sl_ctx *ctx, sl_sampler_params p, const float *logits, uint32_t n)
{
    sl_sampler *s = make(ctx, p, n);
    int32_t id = sl_sampler_draw(s, room, logits, NULL, 0);
    sl_sampler_destroy(&s);
    T_CHECK(!s, "destroy clears the handle");
    return id;
}

#define DRAWS 100000

/* Counts against probabilities want[n]: impossible ids never, the others within a chi-square limit
 * that a right sampler exceeds once in 10^5 (Wilson, Hilferty: k (1 - 2/(9k) + 4.265
 * sqrt(2/(9k)))^3). */
static void check_draws(const char *what, sl_ctx *ctx, sl_sampler_params p, const float *logits,
                        uint32_t n, const double *want)
{
    sl_sampler *s = make(ctx, p, n);
    unsigned count[16] = { 0 };
    for (int i = 0; i < DRAWS; i++) {
        int32_t id = sl_sampler_draw(s, room, logits, NULL, 0);
        T_NEED(id >= 0 && (uint32_t)id < n, "%s: id %d", what, id);
        count[id]++;
    }
    double chi = 0, k = -1;
    for (uint32_t i = 0; i < n; i++) {
        if (want[i] <= 0) {
            T_CHECK(!count[i], "%s: id %u drawn %u times", what, i, count[i]);
            continue;
        }
        double d = count[i] - want[i] * DRAWS;
        chi += d * d / (want[i] * DRAWS);
        k++;
    }
    double limit = k < 1 ? 1e-9 : k * pow(1 - 2 / (9 * k) + 4.265 * sqrt(2 / (9 * k)), 3);
    T_CHECK(chi <= limit, "%s: chi-square %g over %g degrees, limit %g", what, chi, k, limit);
    sl_sampler_destroy(&s);
}

/* Logits are logs of 8 4 2 1 1 over 16, in another order; so every filter's answer is a
 * fraction. */
static void distributions(sl_ctx *ctx)
{
    float l[5];
    static const double p[5] = { 1 / 16., 8 / 16., 1 / 16., 4 / 16., 2 / 16. };
    for (int i = 0; i < 5; i++) l[i] = (float)log(p[i]) + 3;
    sl_sampler_params q = plain();
    check_draws("softmax", ctx, q, l, 5, p);
    q.top_k = 5;
    check_draws("top-k of all", ctx, q, l, 5, p);
    q.top_k = 3;
    check_draws("top-k 3", ctx, q, l, 5, (double[]){ 0, 8 / 14., 0, 4 / 14., 2 / 14. });
    q.top_k = 4;    /* ids 0 and 2 are equal: the lower one stays */
    check_draws("top-k 4", ctx, q, l, 5, (double[]){ 1 / 15., 8 / 15., 0, 4 / 15., 2 / 15. });
    q = plain();
    q.top_p = 0.7f; /* 1/2 is too little, 3/4 is enough */
    check_draws("top-p 0.7", ctx, q, l, 5, (double[]){ 0, 8 / 12., 0, 4 / 12., 0 });
    q.top_k = 2;    /* of two left: 2/3 and 1/3; 0.66 is reached by the first */
    q.top_p = 0.66f;
    check_draws("top-p after top-k", ctx, q, l, 5, (double[]){ 0, 1, 0, 0, 0 });
    q = plain();
    q.min_p = 0.2f; /* of the highest, 1/2: from 1/10 on */
    check_draws("min-p 0.2", ctx, q, l, 5, (double[]){ 0, 8 / 14., 0, 4 / 14., 2 / 14. });
    q = plain();
    q.temp = 0.5f;  /* squares: 1 64 1 16 4 */
    check_draws("temperature 0.5", ctx, q, l, 5,
                (double[]){ 1 / 86., 64 / 86., 1 / 86., 16 / 86., 4 / 86. });
    q.temp = 2;
    q.top_p = 0.7f; /* chosen at temperature 1, drawn at 2 */
    double r = sqrt(2);
    check_draws("top-p, then temperature 2", ctx, q, l, 5,
                (double[]){ 0, r / (r + 1), 0, 1 / (r + 1), 0 });
}

struct ref { float l; int32_t id; };

static int by_order(const void *a, const void *b)
{
    const struct ref *x = a, *y = b;
    if (x->l != y->l) return x->l > y->l ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* The ids that may be drawn, by a full sort, for random logits with many ties; every id drawn must
 * be among them, and every one of them must be drawn in the end. */
static void against_sort(sl_ctx *ctx)
{
    enum { N = 300 };
    for (int round = 0; round < 60; round++) {
        float l[N];
        struct ref r[N];
        for (int i = 0; i < N; i++) {
            l[i] = (float)(t_below(9)) / 2 - 2;
            r[i] = (struct ref){ l[i], i };
        }
        qsort(r, N, sizeof *r, by_order);
        sl_sampler_params q = plain();
        q.top_k = t_below(2) ? 1 + t_below(N) : 0;
        q.top_p = t_below(2) ? 0.05f + (float)t_below(90) / 100 : 1;
        q.seed = (uint64_t)round;
        uint32_t n = q.top_k ? q.top_k : N, keep = 0;
        double sum = 0, mass = 0;
        for (uint32_t i = 0; i < n; i++) sum += exp((double)r[i].l - r[0].l);
        while (keep < n && (!keep || mass < (double)q.top_p * sum))
            mass += exp((double)r[keep++].l - r[0].l);
        char may[N] = { 0 };
        uint32_t seen = 0;
        for (uint32_t i = 0; i < keep; i++) may[r[i].id] = 1;
        q.temp = 100;   /* nearly even, so that every one is drawn */
        sl_sampler *s = make(ctx, q, N);
        for (int i = 0; i < 20 * N; i++) {
            int32_t id = sl_sampler_draw(s, room, l, NULL, 0);
            T_CHECK(may[id], "round %d top_k %u top_p %g: id %d is beyond the %u kept", round,
                    q.top_k,
                    (double)q.top_p, id, keep);
            if (may[id] == 1) may[id] = 2, seen++;
        }
        T_CHECK(seen == keep, "round %d: %u of %u kept ids were drawn", round, seen, keep);
        sl_sampler_destroy(&s);
    }
}

static void edges(sl_ctx *ctx)
{
    float tie[6] = { 1, 5, 5, 2, 5, NAN }, nan[4] = { NAN, NAN, NAN, NAN };
    float inf[3] = { 1, INFINITY, 2 };
    float low[3] = { -INFINITY, -3e38f, -INFINITY }, huge[3] = { 3e38f, -3e38f, 0 };
    sl_sampler_params q = plain(), greedy = plain();
    greedy.temp = 0;
    T_CHECK(once(ctx, greedy, tie, 6) == 1, "greedy takes the lowest id on ties");
    greedy.temp = -1;
    T_CHECK(once(ctx, greedy, tie, 6) == 1, "a negative temperature is greedy");
    T_CHECK(once(ctx, greedy, inf, 3) == 1, "greedy and +inf");
    T_CHECK(once(ctx, greedy, nan, 4) == 0, "greedy on NaN only");
    T_CHECK(once(ctx, greedy, low, 3) == 1, "greedy skips -inf");
    for (uint64_t seed = 0; seed < 50; seed++) {
        q.seed = seed;
        T_CHECK(once(ctx, q, nan, 4) == 0, "NaN only: the lowest id");
        T_CHECK(once(ctx, q, inf, 3) == 1, "+inf takes all");
        T_CHECK(once(ctx, q, low, 3) == 1, "-inf is never drawn");
        T_CHECK(once(ctx, q, huge, 3) == 0, "logits far apart");
        int32_t id = once(ctx, q, tie, 6);
        T_CHECK(id >= 0 && id < 5, "NaN among others: %d", id);
        sl_sampler_params k1 = q, p0 = q, m1 = q, cold = q;
        k1.top_k = 1;
        p0.top_p = 0;
        m1.min_p = 1;
        cold.temp = 1e-30f;
        T_CHECK(once(ctx, k1, tie, 6) == 1, "top-k 1");
        T_CHECK(once(ctx, p0, tie, 6) == 1, "top-p 0");
        id = once(ctx, m1, tie, 6);
        T_CHECK(id == 1 || id == 2 || id == 4, "min-p 1 keeps the highest only: %d", id);
        id = once(ctx, cold, tie, 6);
        T_CHECK(id == 1 || id == 2 || id == 4, "a temperature next to 0: %d", id);
        k1.top_k = 1000;
        T_CHECK(once(ctx, k1, inf, 3) == 1, "top-k above the vocabulary");
    }
    float one = 0;
    T_CHECK(once(ctx, q, &one, 1) == 0, "a vocabulary of one");
}

static void bans(sl_ctx *ctx)
{
    float l[4] = { 0, 9, 8, 1 };
    static const int32_t ban[] = { 1, -5, 99, 1 }, all[] = { 0, 1, 2, 3 }, but2[] = { 3, 1, 0 };
    for (int g = 0; g < 2; g++) {
        sl_sampler_params q = plain();
        q.temp = g ? 0 : 1;
        sl_sampler *s = make(ctx, q, 4);
        for (int i = 0; i < 200; i++)
            T_CHECK(sl_sampler_draw(s, room, l, ban, 4) != 1, "banned id drawn");
        for (int i = 0; i < 50; i++)
            T_CHECK(sl_sampler_draw(s, room, l, but2, 3) == 2, "all but 2 are banned");
        T_CHECK(sl_sampler_draw(s, room, l, all, 4) == 0, "all banned");
        float nan[4] = { NAN, NAN, NAN, NAN };
        T_CHECK(sl_sampler_draw(s, room, nan, ban, 4) == 0, "NaN: the lowest that is not banned");
        T_CHECK(sl_sampler_draw(s, room, nan, all, 2) == 2, "NaN: the lowest that is not banned");
        int seen = 0;
        for (int i = 0; i < 200; i++) seen += sl_sampler_draw(s, room, l, NULL, 0) == 1;
        T_CHECK(seen > 50, "a ban ends with its draw: %d", seen);
        T_CHECK(l[1] == 9, "the logits are not changed");
        sl_sampler_destroy(&s);
    }
}

static void penalty(sl_ctx *ctx)
{
    float l[4] = { 4, 3, -1, -1.5f };
    sl_sampler_params q = plain();
    q.temp = 0;
    q.repeat_penalty = 2;
    q.repeat_last_n = 2;
    sl_sampler *s = make(ctx, q, 4);
    T_CHECK(sl_sampler_draw(s, room, l, NULL, 0) == 0, "nothing seen");
    sl_sampler_accept(s, 0);
    T_CHECK(sl_sampler_draw(s, room, l, NULL, 0) == 1, "4 / 2 is below 3");
    sl_sampler_accept(s, 0);
    T_CHECK(sl_sampler_draw(s, room, l, NULL, 0) == 1, "twice seen is penalised once");
    sl_sampler_accept(s, 1);
    T_CHECK(sl_sampler_draw(s, room, l, NULL, 0) == 0, "both: 2 and 1.5");
    sl_sampler_accept(s, -1);
    sl_sampler_accept(s, 4);
    sl_sampler_accept(s, 3);
    sl_sampler_accept(s, 3);
    T_CHECK(sl_sampler_draw(s, room, l, NULL, 0) == 0, "0 and 1 left the window");
    float neg[4] = { -2, -3, -9, -9 };
    sl_sampler_accept(s, 0);
    T_CHECK(sl_sampler_draw(s, room, neg, NULL, 0) == 1,
            "negative logits are multiplied: -4 is below -3");
    sl_sampler_destroy(&s);

    q.repeat_penalty = 1;
    s = make(ctx, q, 4);
    sl_sampler_accept(s, 0);
    T_CHECK(sl_sampler_draw(s, room, l, NULL, 0) == 0, "penalty 1 is off");
    sl_sampler_destroy(&s);
    q.repeat_penalty = 2;
    q.repeat_last_n = 0;
    s = make(ctx, q, 4);
    sl_sampler_accept(s, 0);
    T_CHECK(sl_sampler_draw(s, room, l, NULL, 0) == 0, "a window of 0 is off");
    sl_sampler_destroy(&s);
}

/* The same seed gives the same tokens: these stand here since 2026-11, for every compiler and
 * machine. */
static void reproducible(sl_ctx *ctx)
{
    enum { N = 1000, DRAWN = 12 };
    static const int32_t want[DRAWN] = { 541, 686, 343, 277, 765, 66, 831, 798, 66, 620, 343, 963 };
    static float l[N];
    for (int i = 0; i < N; i++) l[i] = (float)((i * 7919) % 1009) / 100;
    sl_sampler_params q = sl_sampler_defaults();
    q.seed = 42;
    sl_sampler *a = make(ctx, q, N), *b = make(ctx, q, N);
    q.seed = 43;
    sl_sampler *c = make(ctx, q, N);
    sl_mem_report before, after;
    sl_mem_get(ctx, &before);
    int differ = 0;
    for (int i = 0; i < DRAWN; i++) {
        int32_t x = sl_sampler_draw(a, room, l, NULL, 0), y = sl_sampler_draw(b, room, l, NULL, 0);
        T_CHECK(x == y, "draw %d: %d and %d", i, x, y);
        T_CHECK(x == want[i], "draw %d: %d, not the recorded %d", i, x, want[i]);
        differ += sl_sampler_draw(c, room, l, NULL, 0) != x;
        sl_sampler_accept(a, x);
    }
    T_CHECK(differ > DRAWN / 2, "another seed differs: %d", differ);
    sl_mem_get(ctx, &after);
    T_CHECK(before.n_allocs == after.n_allocs, "draws allocate");
    sl_sampler_destroy(&a);
    sl_sampler_destroy(&b);
    sl_sampler_destroy(&c);
    sl_sampler_destroy(&c);
}

static void bad_params(sl_ctx *ctx)
{
    sl_sampler_params good = plain(), bad[8];
    sl_mem_report before, after;
    sl_mem_get(ctx, &before);
    for (int i = 0; i < 8; i++) bad[i] = good;
    bad[0].temp = NAN;
    bad[1].temp = INFINITY;
    bad[2].top_p = 1.5f;
    bad[3].top_p = NAN;
    bad[4].min_p = -0.1f;
    bad[5].repeat_penalty = 0;
    bad[6].repeat_penalty = NAN;
    bad[7].repeat_last_n = 4097;
    sl_sampler *s = NULL;
    for (int i = 0; i < 8; i++)
        T_CHECK(sl_sampler_create(ctx, &bad[i], 10, &s) == SL_E_ARG && !s, "case %d", i);
    T_CHECK(sl_sampler_create(ctx, &good, 0, &s) == SL_E_ARG && !s, "no vocabulary");
    /* Every allocation fails once, and nothing leaks. */
    good.repeat_penalty = 2;
    sl_status st = SL_E_NOMEM;
    for (uint64_t limit = 1; st != SL_OK && limit < 1 << 20; limit *= 2) {
        sl_mem_set_limit(ctx, before.total + limit);
        st = sl_sampler_create(ctx, &good, 5000, &s);
        T_CHECK(st == SL_OK || (st == SL_E_NOMEM && !s), "limit %llu", (unsigned long long)limit);
    }
    T_CHECK(st == SL_OK, "1 MiB is enough");
    sl_sampler_destroy(&s);
    sl_mem_set_limit(ctx, 0);
    sl_mem_get(ctx, &after);
    T_CHECK(after.total == before.total, "%llu bytes left",
            (unsigned long long)(after.total - before.total));
}

int main(void)
{
    t_begin();
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "no memory");
    T_NEED(sl_sampler_room_create(ctx, N_VOCAB, &room) == SL_OK, "%s", sl_error(ctx));
    distributions(ctx);
    against_sort(ctx);
    edges(ctx);
    bans(ctx);
    penalty(ctx);
    reproducible(ctx);
    bad_params(ctx);
    sl_sampler_room_destroy(&room);
    sl_mem_report r;
    sl_mem_get(ctx, &r);
    T_CHECK(!r.total, "%llu bytes left", (unsigned long long)r.total);
    sl_ctx_destroy(&ctx);
    return t_end();
}
