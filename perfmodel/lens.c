/* perfmodel/lens.c - the papers' formulas. Sources: sl_lens.h. */
#include "perfmodel/sl_lens.h"

#include <assert.h>
#include <math.h>

double sl_lens_intensity(const sl_lens_layer *l, double n)
{
    double h2 = l->model * l->model, attention = 4 * h2 + 4 * h2 / l->group;
    double expert = 6 * l->model * l->ffn;
    return 2 / l->weight_bytes * n * (expert * l->n_used + attention)
         / (expert * l->n_expert + attention);
}

double sl_lens_saturating(const sl_lens_layer *l, double flops_s, double link_bytes_s)
{
    return flops_s / link_bytes_s / sl_lens_intensity(l, 1);
}

/* sum of ceil(i / block), i = 1 .. n */
static double blocks_to(double n, double block)
{
    double q = floor(n / block), rest = n - q * block;
    return block * q * (q + 1) / 2 + rest * (q + 1);
}

/* sum of ceil((p + j) / block), j = 0 .. g */
static double blocks_held(double p, double g, double block)
{
    return blocks_to(p + g, block) - (p > 0 ? blocks_to(p - 1, block) : 0);
}

sl_lens_mix sl_lens_mean(const sl_lens_length *lengths, uint32_t n, uint32_t block)
{
    sl_lens_mix m = { .prompt = 0 };
    double all = 0;
    assert(block);
    for (uint32_t i = 0; i < n; i++) {
        const sl_lens_length *l = &lengths[i];
        all += l->weight;
        m.prompt += l->weight * l->prompt;
        m.gen += l->weight * l->gen;
        m.held += l->weight * block * blocks_held(l->prompt, l->gen, block);
    }
    assert(all > 0);
    m.prompt /= all;
    m.gen /= all;
    m.held /= all;
    return m;
}

double sl_lens_pme(const sl_lens_mix *m)
{
    return (m->prompt + m->gen) / m->held;
}

double sl_lens_tokens_s(double pme, double kv_positions, double pass_s, double compute_tok_s)
{
    return fmin(pme * kv_positions / pass_s, compute_tok_s);
}

double sl_lens_kv_bytes_s(double kv_bytes, double pass_s)
{
    return kv_bytes / pass_s;
}

double sl_lens_attention_flops_s(double group, double elem_bytes, double kv_bytes_s)
{
    return 2 * group / elem_bytes * kv_bytes_s;
}

double sl_lens_overlap_gain(double p, double g)
{
    return (p + g) / (p + g / 2);
}

sl_lens_run sl_lens_requests(double n_requests, uint32_t prompt, uint32_t gen, uint32_t block,
                             double kv_positions, double pass_s, double compute_tok_s)
{
    double p = prompt, g = gen, tokens = n_requests * (p + g), most = compute_tok_s * pass_s;
    double held = floor(kv_positions / block) / blocks_held(p, g, block);
    sl_lens_run r = { .starts = fmin(held, most / (p + g)) };
    r.pass_tokens = r.starts * (p + g);
    r.passes = ceil(n_requests / r.starts) + g;
    r.tok_per_s = tokens / (r.passes * pass_s);
    r.gen_tok_per_s = r.tok_per_s * g / (p + g);
    r.compute_share = r.tok_per_s / compute_tok_s;
    /* passes are as full as Eq. 4 has them, only what drains at the end is lost */
    double full = fmin(most, (p + g) / blocks_held(p, g, 1) * kv_positions);
    double filled = (tokens - held * g * g / 2) / full + g;
    r.compute_share_filled = fmin(tokens / (filled * pass_s) / compute_tok_s, 1);
    return r;
}

double sl_lens_ring_s(double n_layers, double n_pinned, double compute_s, double copy_s)
{
    return fmax(n_layers * compute_s, (n_layers - n_pinned) * copy_s);
}

double sl_lens_two_streams(double first_s, double second_s)
{
    double most = fmax(first_s, second_s);
    return most > 0 ? (first_s + second_s) / most : 1;
}

double sl_lens_one_stream_s(uint32_t n_layers, const double *apart_s, const double *compute_s,
                            const double *copy_s, double latency_s)
{
    double s = 2 * latency_s * n_layers;
    for (uint32_t i = 0; i < n_layers; i++) s += apart_s[i] + fmax(compute_s[i], copy_s[i]);
    return s;
}

double sl_lens_distinct(const double *p, uint32_t n_expert, double n_rows)
{
    double n = 0;
    for (uint32_t i = 0; i < n_expert; i++) n += -expm1(n_rows * log1p(-fmin(p[i], 1)));
    return n;
}
