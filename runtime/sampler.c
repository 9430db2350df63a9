/* runtime/sampler.c - repeat penalty, top-k, top-p, min-p, temperature, draw.
 * Candidates are ordered by logit, then by id: which ones are kept never depends on how they are
 * selected. top-k keeps a heap of k, top-p pops a heap until its mass is reached, and nothing sorts
 * a whole vocabulary. exp is computed here with operations that IEEE 754 defines exactly, so that a
 * seed gives the same tokens on every machine.
 * Invariants:
 *   I1  the ring holds the last n_ring tokens that were accepted
 *   I2  banned[] and seen[] of a room are all zero between draws */
#include "runtime/sl_sampler.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define MAX_LAST_N 4096u

struct cand {
    float logit;
    int32_t id;
};

struct sl_sampler_room {
    sl_ctx *ctx;
    uint32_t n_vocab;
    struct cand *cand;              /* [n_vocab] */
    unsigned char *banned, *seen;   /* [n_vocab] */
};

struct sl_sampler {
    sl_ctx *ctx;
    sl_sampler_params p;
    uint32_t n_vocab, n_keep;       /* candidates; 0: greedy */
    int32_t *ring;                  /* [repeat_last_n]; NULL: no penalty */
    uint32_t n_ring, ring_at;
    uint64_t rng[4];
};

/* splitmix64, to fill the state from a seed. Source: Steele, Lea, Flood, OOPSLA 2014; constants of
 * Vigna's public-domain splitmix64.c. */
static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* xoshiro256**. Source: Blackman, Vigna, Scrambled Linear Pseudorandom Number Generators, ACM TOMS
 * 47(4), 2021. */
static uint64_t next_random(uint64_t s[4])
{
    uint64_t r = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return r;
}

/* exp(x) for x <= 0, within 2 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^13 (the next term
 * is below 2^-57), scaled by 2^n. ln 2 in two parts: Cody, Waite, Software Manual for the
 * Elementary Functions, 1980, chapter 6. Below 2^-1000 it is 0. */
static double exp_neg(double x)
{
    static const double ln2_hi = 0x1.62e42fee00000p-1, ln2_lo = 0x1.a39ef35793c76p-33;
    static const double inv[14] = {     /* 1 / i! */
        1, 1, 1 / 2., 1 / 6., 1 / 24., 1 / 120., 1 / 720., 1 / 5040., 1 / 40320., 1 / 362880.,
        1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.,
    };
    if (!(x > -690)) return 0;
    int n = (int)(x * 0x1.71547652b82fep+0 - 0.5);  /* to the nearest: x is not positive */
    double r = (x - n * ln2_hi) - n * ln2_lo, sum = inv[13];
    for (int i = 12; i >= 0; i--) sum = sum * r + inv[i];
    uint64_t bits = (uint64_t)(1023 + n) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* The total order of candidates: higher logit first, lower id first on ties. */
static bool before(struct cand a, struct cand b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Heaps: on top stands the first of the order, or the last one when `last` is true. */
static void sift_down(struct cand *h, uint32_t n, uint32_t i, bool last)
{
    struct cand v = h[i];
    for (;;) {
        uint32_t c = 2 * i + 1;
        if (c >= n) break;
        if (c + 1 < n && before(h[c + 1], h[c]) != last) c++;
        if (before(h[c], v) == last) break;
        h[i] = h[c];
        i = c;
    }
    h[i] = v;
}

static void heapify(struct cand *h, uint32_t n, bool last)
{
    for (uint32_t i = n / 2; i-- > 0; ) sift_down(h, n, i, last);
}

/* An id's logit after bans and penalty; false when it cannot be drawn (NaN, -inf, banned). */
static bool adjusted(const sl_sampler *s, const sl_sampler_room *room, const float *logits,
                     uint32_t id, float *ret)
{
    float v = logits[id];
    if (room->seen[id]) v = v > 0 ? v / s->p.repeat_penalty : v * s->p.repeat_penalty;
    if (!(v > -INFINITY) || room->banned[id]) return false;
    *ret = v < FLT_MAX ? v : FLT_MAX;       /* +inf would make every difference NaN */
    return true;
}

static int32_t draw_greedy(const sl_sampler *s, const sl_sampler_room *room, const float *logits)
{
    struct cand best = { .logit = -INFINITY, .id = -1 };
    for (uint32_t id = 0; id < s->n_vocab; id++) {
        float v;
        if (adjusted(s, room, logits, id, &v) && (best.id < 0 || v > best.logit))
            best = (struct cand){ v, (int32_t)id };
    }
    return best.id;
}

/* Fills cand with the n_keep first ids of the order, in no particular order; returns their
 * number. */
static uint32_t select_top_k(const sl_sampler *s, const sl_sampler_room *room, const float *logits)
{
    struct cand *h = room->cand;
    uint32_t n = 0;
    for (uint32_t id = 0; id < s->n_vocab; id++) {
        struct cand c = { .id = (int32_t)id };
        if (!adjusted(s, room, logits, id, &c.logit)) continue;
        if (n < s->n_keep) {
            h[n++] = c;
            if (n == s->n_keep && n < s->n_vocab) heapify(h, n, true);
        } else if (before(c, h[0])) {
            h[0] = c;
            sift_down(h, n, 0, true);
        }
    }
    return n;
}

/* Keeps candidates in the order until their share of the mass reaches top_p, one at least; the kept
 * ones stand in front of cand afterwards. */
static uint32_t keep_top_p(const sl_sampler *s, struct cand *h, uint32_t n, float max)
{
    double sum = 0, mass = 0;
    for (uint32_t i = 0; i < n; i++) sum += exp_neg((double)h[i].logit - max);
    heapify(h, n, false);
    uint32_t rest = n;
    while (rest > 0) {              /* pop to the back: the order runs from n - 1 down */
        struct cand c = h[0];
        h[0] = h[--rest];
        if (rest) sift_down(h, rest, 0, false);
        h[rest] = c;
        mass += exp_neg((double)c.logit - max);
        if (mass >= (double)s->p.top_p * sum) break;
    }
    memmove(h, h + rest, (n - rest) * sizeof *h);
    return n - rest;
}

static uint32_t keep_min_p(const sl_sampler *s, struct cand *h, uint32_t n, float max)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (exp_neg((double)h[i].logit - max) >= (double)s->p.min_p) h[kept++] = h[i];
    return kept;
}

static int32_t draw_random(sl_sampler *s, const sl_sampler_room *room, const float *logits)
{
    struct cand *h = room->cand;
    uint32_t n = select_top_k(s, room, logits);
    if (!n) return -1;
    float max = -INFINITY;
    for (uint32_t i = 0; i < n; i++) max = SL_MAX(max, h[i].logit);
    if (s->p.top_p < 1) n = keep_top_p(s, h, n, max);
    if (s->p.min_p > 0) n = keep_min_p(s, h, n, max);
    assert(n);                      /* the highest logit passes both */

    double sum = 0, at = (double)(next_random(s->rng) >> 11) * 0x1p-53;
    for (uint32_t i = 0; i < n; i++) sum += exp_neg(((double)h[i].logit - max) / s->p.temp);
    at *= sum;
    int32_t last = -1;
    for (uint32_t i = 0; i < n; i++) {
        double w = exp_neg(((double)h[i].logit - max) / s->p.temp);
        if (w > 0) last = h[i].id;
        if (at < w) return last;
        at -= w;
    }
    return last;                    /* rounding: the last one that has any weight */
}

static sl_status check_params(sl_ctx *ctx, const sl_sampler_params *p, uint32_t n_vocab)
{
    if (!n_vocab || n_vocab > INT32_MAX)
        return sl_fail(ctx, SL_E_ARG, "sampler: %u tokens", n_vocab);
    if (!isfinite(p->temp))
        return sl_fail(ctx, SL_E_ARG, "temperature %g: expected a finite number", p->temp);
    if (!(p->top_p >= 0 && p->top_p <= 1))
        return sl_fail(ctx, SL_E_ARG, "top-p %g: expected 0 to 1", p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return sl_fail(ctx, SL_E_ARG, "min-p %g: expected 0 to 1", p->min_p);
    if (!(p->repeat_penalty > 0) || !isfinite(p->repeat_penalty))
        return sl_fail(ctx, SL_E_ARG, "repeat penalty %g: expected a number above 0",
                       p->repeat_penalty);
    if (p->repeat_last_n > MAX_LAST_N)
        return sl_fail(ctx, SL_E_ARG, "repeat penalty over %u tokens: at most %u",
                       p->repeat_last_n, MAX_LAST_N);
    return SL_OK;
}

sl_sampler_params sl_sampler_defaults(void)
{
    return (sl_sampler_params){ .temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f,
                                .repeat_penalty = 1, .repeat_last_n = 64, .seed = 0 };
}

sl_status sl_sampler_create(sl_ctx *ctx, const sl_sampler_params *p, uint32_t n_vocab,
                            sl_sampler **ret)
{
    assert(ctx && p && ret);
    SL_TRY(check_params(ctx, p, n_vocab));
    void *mem = NULL;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_SCRATCH, sizeof(sl_sampler), &mem));
    sl_sampler *s = mem;
    *s = (sl_sampler){ .ctx = ctx, .p = *p, .n_vocab = n_vocab };
    s->n_keep = p->temp <= 0 ? 0 : p->top_k ? SL_MIN(p->top_k, n_vocab) : n_vocab;
    uint64_t seed = p->seed;
    for (int i = 0; i < 4; i++) s->rng[i] = splitmix64(&seed);

    if (p->repeat_penalty != 1 && p->repeat_last_n) {
        sl_status st =
            sl_mem_alloc(ctx, SL_ACC_SCRATCH, p->repeat_last_n * sizeof *s->ring, &mem);
        if (st != SL_OK) {
            sl_sampler_destroy(&s);
            return st;
        }
        s->ring = mem;
    }
    *ret = s;
    return SL_OK;
}

void sl_sampler_destroy(sl_sampler **ps)
{
    sl_sampler *s = *ps;
    if (!s) return;
    sl_mem_free(s->ctx, s->ring);
    sl_mem_free(s->ctx, s);
    *ps = NULL;
}

sl_status sl_sampler_room_create(sl_ctx *ctx, uint32_t n_vocab, sl_sampler_room **ret)
{
    assert(ctx && ret);
    void *mem = NULL;
    size_t n = n_vocab;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_SCRATCH,
                        sizeof(sl_sampler_room) + n * (sizeof(struct cand) + 2), &mem));
    sl_sampler_room *r = mem;
    *r = (sl_sampler_room){ .ctx = ctx, .n_vocab = n_vocab };
    r->cand = (struct cand *)(void *)(r + 1);
    r->banned = (unsigned char *)(r->cand + n);
    r->seen = r->banned + n;
    *ret = r;
    return SL_OK;
}

void sl_sampler_room_destroy(sl_sampler_room **r)
{
    if (*r) sl_mem_free((*r)->ctx, *r);
    *r = NULL;
}

void sl_sampler_accept(sl_sampler *s, int32_t token)
{
    if (!s->ring || token < 0 || (uint32_t)token >= s->n_vocab) return;
    if (s->n_ring < s->p.repeat_last_n) s->n_ring++;
    s->ring[s->ring_at] = token;
    s->ring_at = (s->ring_at + 1) % s->p.repeat_last_n;
}

/* What is left when no id has a finite logit: the lowest one that is not banned, or else 0. */
static int32_t fallback(const sl_sampler *s, const sl_sampler_room *room)
{
    const unsigned char *at = memchr(room->banned, 0, s->n_vocab);
    return at ? (int32_t)(at - room->banned) : 0;
}

/* Marks the banned ids and those that the penalty is for, or takes the marks away. */
static void mark(const sl_sampler *s, sl_sampler_room *room, const int32_t *banned,
                 uint32_t n_banned, unsigned char value)
{
    for (uint32_t i = 0; i < n_banned; i++)
        if (banned[i] >= 0 && (uint32_t)banned[i] < s->n_vocab) room->banned[banned[i]] = value;
    for (uint32_t i = 0; i < s->n_ring; i++) room->seen[s->ring[i]] = value;
}

int32_t sl_sampler_draw(sl_sampler *s, sl_sampler_room *room, const float *logits,
                        const int32_t *banned, uint32_t n_banned)
{
    assert(s && logits && room->n_vocab >= s->n_vocab);
    mark(s, room, banned, n_banned, 1);
    int32_t id = s->p.temp <= 0 ? draw_greedy(s, room, logits) : draw_random(s, room, logits);
    if (id < 0) id = fallback(s, room);
    mark(s, room, banned, n_banned, 0);
    return id;
}
