/* kernels/cpu/route.c - one routing function for every architecture: score, select, weigh.
 * tests/golden/ARCH.md section 3 has the table of who uses what. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/expf.h"

#include <assert.h>
#include <math.h>

#define TAKEN NAN   /* a selection value that can never win */

/* Scores of all experts; NaN is worth nothing, so that it is chosen last. */
static void score_all(const sl_routing *r, const float *logits, float *score)
{
    uint32_t n = r->n_expert;
    float max = -INFINITY, sum = 0;
    switch (r->score) {
    case SL_SCORE_SOFTMAX:
        for (uint32_t i = 0; i < n; i++) max = logits[i] > max ? logits[i] : max;
        for (uint32_t i = 0; i < n; i++) sum += score[i] = kx_exp(logits[i] - max);
        for (uint32_t i = 0; i < n; i++) score[i] /= sum;
        break;
    case SL_SCORE_SIGMOID:
        for (uint32_t i = 0; i < n; i++) score[i] = kx_sigmoid(logits[i]);
        break;
    case SL_SCORE_SQRT_SOFTPLUS:
        for (uint32_t i = 0; i < n; i++)
            score[i] = sqrtf(logits[i] > 20 ? logits[i] : (float)log1p(exp((double)logits[i])));
        break;
    case SL_SCORE_TOPK_SOFTMAX:
    case SL_SCORE_SPARSEMIXER:
        for (uint32_t i = 0; i < n; i++) score[i] = logits[i];
        break;
    }
}

/* Index of the largest value that is not TAKEN, the lowest on ties. */
static uint32_t argmax(const float *v, uint32_t n)
{
    uint32_t best = n;
    for (uint32_t i = 0; i < n; i++)
        if (!isnan(v[i]) && (best == n || v[i] > v[best])) best = i;
    assert(best < n);
    return best;
}

/* What a group is worth: its largest value, or the sum of its two largest. */
static float group_value(const float *sel, uint32_t n, bool two)
{
    float a = -INFINITY, b = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (sel[i] > a) b = a, a = sel[i];
        else if (sel[i] > b) b = sel[i];
    }
    float v = two && n > 1 ? a + b : a;
    return isnan(v) ? -INFINITY : v;
}

/* Experts outside the best groups fall to -infinity. */
static void keep_groups(const sl_routing *r, float *sel, float *group)
{
    uint32_t g = r->n_group, per = r->n_expert / g;
    for (uint32_t i = 0; i < g; i++)
        group[i] = group_value(sel + i * per, per, r->score != SL_SCORE_SOFTMAX);
    for (uint32_t i = 0; i < r->n_group_used && i < g; i++) group[argmax(group, g)] = TAKEN;
    for (uint32_t i = 0; i < g; i++)
        for (uint32_t j = 0; j < per && !isnan(group[i]); j++) sel[i * per + j] = -INFINITY;
}

/* Weight of choice `top`: softmax over the experts whose distance to it is within eps. */
static float mixer_weight(const sl_routing *r, const float *logits, const float *sel, uint32_t top)
{
    float sum = 0, best = logits[top];
    for (uint32_t i = 0; i < r->n_expert; i++) {
        float floor_ = fabsf(logits[i]) > best ? fabsf(logits[i]) : best;
        if (isnan(sel[i]) || (best - logits[i]) / floor_ > r->mixer_eps) continue;
        sum += kx_exp(logits[i] - best);
    }
    return 1.0f / sum;
}

static void weigh(const sl_routing *r, const float *score, const uint32_t *id, float *w)
{
    float sum = 0;
    for (uint32_t i = 0; i < r->n_used; i++) w[i] = score[id[i]];
    if (r->score == SL_SCORE_TOPK_SOFTMAX) {
        float max = w[0];
        for (uint32_t i = 0; i < r->n_used; i++) sum += w[i] = kx_exp(w[i] - max);
        for (uint32_t i = 0; i < r->n_used; i++) w[i] /= sum;
    } else if (r->normalise) {
        for (uint32_t i = 0; i < r->n_used; i++) sum += w[i];
        for (uint32_t i = 0; i < r->n_used; i++) w[i] /= sum + 1e-20f;
    }
}

void sl_route_row(const sl_routing *r, const float *logits, float *scratch, uint32_t *ret_id,
                  float *ret_w)
{
    uint32_t n = r->n_expert;
    float *score = scratch, *sel = scratch + n, *group = scratch + 2 * (size_t)n;
    assert(r->n_used >= 1 && r->n_used <= n);
    score_all(r, logits, score);
    for (uint32_t i = 0; i < n; i++) {
        sel[i] = r->sel_bias ? score[i] + r->sel_bias[i] : score[i];
        if (isnan(sel[i])) sel[i] = -INFINITY;
    }
    if (r->n_group > 1) {
        assert(n % r->n_group == 0);
        keep_groups(r, sel, group);
    }
    for (uint32_t i = 0; i < r->n_used; i++) {
        ret_id[i] = argmax(sel, n);
        if (r->score == SL_SCORE_SPARSEMIXER) ret_w[i] = mixer_weight(r, logits, sel, ret_id[i]);
        sel[ret_id[i]] = TAKEN;
    }
    if (r->score != SL_SCORE_SPARSEMIXER) weigh(r, score, ret_id, ret_w);
    if (r->scale != 0)
        for (uint32_t i = 0; i < r->n_used; i++) ret_w[i] *= r->scale;
}
