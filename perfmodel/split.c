/* perfmodel/split.c - the work of a pass that CPU and accelerator share, and the least that it
 * takes: no resource is done before all its work is, no lane before all its steps are.
 * Stage 2 (sim_split.c) makes a schedule of the same work. */
#include "perfmodel/split.h"

#include "perfmodel/sl_bound.h"

#include <assert.h>
#include <math.h>
#include <string.h>

void split_env_init(split_env *e, const sl_forecast_in *in)
{
    const sl_machine *m = in->machine;
    const sl_plan *plan = in->plan;
    *e = (split_env){ .m = m, .shape = in->shape, .plan = plan, .x = &plan->split,
                      .miss = in->miss, .emu = plan->split.accel.kind == SL_ACCEL_EMU,
                      .threads = plan->n_threads ? plan->n_threads : m->id.cores };
    bool known = sl_forecast_gpu(m, &e->x->accel, &e->gpu);
    assert(known && plan->weights == SL_WEIGHTS_RESIDENT);
    (void)known;
    e->dram = e->dram_all = sl_machine_dram_s(m, e->threads);
    for (uint32_t i = 0; i < m->n_dram; i++) e->dram_all = fmax(e->dram_all, m->dram_read[i].value);
    e->passes_s = e->emu ? 2 : 1;
    e->cost = sl_machine_cost_at(m, e->threads);
}

bool split_sends_all(const split_env *e, double rows)
{
    return rows >= e->x->send_all_rows;
}

uint32_t split_lanes(const split_env *e, double rows)
{
    return split_sends_all(e, rows) && rows >= e->x->n_lanes ? e->x->n_lanes : 1;
}

double split_stage_s(const split_env *e, double rows)
{
    return e->gpu.launch_s + rows * e->shape->d_model * e->gpu.elem_s;
}

double split_up_s(const split_env *e, double bytes) { return bytes / e->gpu.h2d_bytes_s; }
double split_down_s(const split_env *e, double bytes) { return bytes / e->gpu.d2h_bytes_s; }

/* ---- a layer ---- */

static work on_device(const split_env *e, const sl_part *parts, uint32_t n, uint64_t bytes,
                      double rows)
{
    return work_product_gpu(&e->gpu, parts, n, (double)bytes, rows);
}

static void set_experts(const split_env *e, split_layer *p)
{
    const sl_layer_shape *l = p->of;
    double rows[QUANTILES], many = 0, few = 0;
    p->n_experts = p->rows > 1 ? sl_miss_distinct(e->miss, l->n_expert, l->n_used, p->rows)
                               : l->n_used;
    p->stored = !p->all && p->rows * l->n_used <= e->x->stored_runs;
    rows_of_experts(l->n_expert, p->n_experts, p->rows * l->n_used, rows);
    for (int q = 0; q < QUANTILES; q++) {
        double r = p->rows > 1 ? rows[q] : 1;
        work w = on_device(e, l->expert, SL_SHAPE_TYPES, l->expert_bytes, r);
        work_add(&p->on_device, &w, 1.0 / QUANTILES);
        if (!p->stored || r >= e->x->send_rows) {
            work_add(&p->sent, &w, 1);
            many++;
            continue;
        }
        w = work_product(e->m, e->threads, e->dram, l->expert, SL_SHAPE_TYPES,
                         (double)l->expert_bytes, r);
        work_add(&p->on_cpu, &w, 1);
        p->cpu_rows += r;
        few++;
    }
    work sum = p->sent;
    p->sent = (work){ .s = 0 };
    if (many > 0) work_add(&p->sent, &sum, 1 / many);
    sum = p->on_cpu;
    p->on_cpu = (work){ .s = 0 };
    if (few > 0) work_add(&p->on_cpu, &sum, 1 / few);
    if (few > 0) p->cpu_rows /= few;
    p->few = few / QUANTILES;
}

void split_layer_set(const split_env *e, const sl_layer_shape *l, double rows, bool all,
                     split_layer *ret)
{
    *ret = (split_layer){ .of = l, .rows = rows, .all = all };
    ret->qkv = on_device(e, l->qkv, SL_SHAPE_TYPES, l->qkv_bytes, rows);
    ret->post = on_device(e, l->post, SL_SHAPE_TYPES, l->post_bytes, rows);
    ret->ffn = on_device(e, l->ffn, SL_SHAPE_TYPES, l->ffn_bytes, rows);
    if (!l->n_expert) return;
    ret->route = on_device(e, &l->router, 1, l->router_bytes, rows);
    set_experts(e, ret);
}

split_turn split_turn_of(const split_layer *p, double n_stay)
{
    split_turn t = { .n_stay = n_stay };
    double others = p->n_experts - n_stay;
    t.n_cpu = others * p->few;
    t.n_sent = others - t.n_cpu;
    t.stay_runs = n_stay * p->rows * p->of->n_used / p->n_experts;
    t.cpu_runs = t.n_cpu * p->cpu_rows;
    t.sent_runs = fmax(p->rows * p->of->n_used - t.stay_runs - t.cpu_runs, 0);
    work_add(&t.stay, &p->on_device, t.n_stay);
    work_add(&t.sent, &p->sent, t.n_sent);
    work_add(&t.cpu, &p->on_cpu, t.n_cpu);
    return t;
}

static double share_staying(const split_env *e, const sl_layer_shape *l)
{
    return fmin((double)e->x->n_stay / l->n_expert, 1);
}

static void follow(const split_env *e, const sl_layer_shape *l, double ret_p[SL_MAX_MISSED + 1])
{
    double missing[SL_MAX_MISSED + 1];
    uint32_t most = SL_MIN(l->n_used, (uint32_t)SL_MAX_MISSED);
    memset(ret_p, 0, (SL_MAX_MISSED + 1) * sizeof *ret_p);
    sl_miss_turn(e->miss, l->n_used, share_staying(e, l), missing);
    for (uint32_t i = 0; i <= most; i++) ret_p[most - i] = missing[i];
}

/* The first ones are as good as drawn without putting back: hypergeometric. */
void split_staying(const split_env *e, const sl_layer_shape *l, double ret_p[SL_MAX_MISSED + 1])
{
    double n = l->n_expert, s = SL_MIN(e->x->n_stay, l->n_expert), u = l->n_used, sum = 0;
    if (e->x->stay_follow) {
        follow(e, l, ret_p);
        return;
    }
    memset(ret_p, 0, (SL_MAX_MISSED + 1) * sizeof *ret_p);
    double lo = fmax(0, u - (n - s)), hi = fmin(u, s);
    for (double i = lo; i <= hi; i++) {
        double log_p = lgamma(s + 1) - lgamma(i + 1) - lgamma(s - i + 1) + lgamma(n - s + 1)
                     - lgamma(u - i + 1) - lgamma(n - s - u + i + 1) - lgamma(n + 1)
                     + lgamma(u + 1) + lgamma(n - u + 1);
        ret_p[(uint32_t)fmin(i, SL_MAX_MISSED)] += exp(log_p);
    }
    for (int i = 0; i <= SL_MAX_MISSED; i++) sum += ret_p[i];
    for (int i = 0; i <= SL_MAX_MISSED; i++) ret_p[i] /= sum;
}

/* A slot serves one of the experts that the rows choose, once. */
double split_staying_of(const split_env *e, const sl_layer_shape *l, double n)
{
    double share = share_staying(e, l);
    if (!e->x->stay_follow) return n * share;
    return fmin(n * sl_miss_hit(e->miss, share), share * l->n_expert);
}

bool split_fetches(const split_env *e, const sl_step *st)
{
    return st->kind == SL_STEP_ATTEND && st->on == SL_ON_DEVICE && e->x->kv == SL_ON_CPU;
}

split_attend split_attend_rows(const sl_layer_shape *l, const sl_rows *rows, uint32_t n,
                               bool prompt)
{
    split_attend a = { .rows = 0 };
    for (uint32_t i = 0; i < n; i++) {
        const sl_rows *r = &rows[i];
        if ((r->n > 1) != prompt) continue;
        a.rows += r->n;
        a.attended += sl_bound_attended(r->first, r->n, l->window);
        a.before += l->window ? SL_MIN(r->first, l->window - 1) : r->first;
        a.fetched += r->first;
    }
    return a;
}

double split_cpu_rows(const split_env *e, const sl_rows *rows, uint32_t n)
{
    double sum = 0;
    if (e->x->kv == SL_ON_DEVICE) return 0;
    for (uint32_t i = 0; i < n; i++)
        if (rows[i].n == 1 || e->x->prompts == SL_ON_CPU) sum += rows[i].n;
    return sum;
}

work split_attend_work(const split_env *e, const sl_step *st, const split_attend *a, bool prompt)
{
    const sl_layer_shape *l = &e->shape->layers[st->layer];
    double elems = a->attended * ((double)l->k_elems + l->v_elems);
    double flops = a->attended * (double)st->ctx_flops;
    double bytes = a->before * (double)st->ctx_bytes + a->rows * (double)st->row_bytes, s;
    if (st->on == SL_ON_DEVICE) {
        s = sl_machine_gpu_attend_seconds(&e->gpu, elems, bytes, flops, prompt);
        return work_of(s, bytes / e->gpu.vram_bytes_s, s, bytes);
    }
    s = prompt ? flops / e->cost.prefill_flops_s
               : sl_machine_decode_seconds(&e->cost, elems, flops);
    return work_of(s, bytes / e->dram, s, bytes);
}

/* ---- the least ---- */

/* Embedding, a layer and the head: what sl_pipe_build makes of a model with this layer alone. */
enum { LAYER_STEPS = 8 };
static uint32_t layer_steps(const split_env *e, const sl_layer_shape *l, sl_step *steps)
{
    sl_shape one = *e->shape;
    one.n_layer = 1;
    one.layers = l;
    assert(sl_pipe_max_steps(&one) <= LAYER_STEPS);
    return sl_pipe_build(&one, e->plan, steps);
}

static const sl_step *find(const sl_step *steps, sl_step_kind kind)
{
    while (steps->kind != kind) steps++;
    return steps;
}

static void device(const work *w, double times, split_sum *to)
{
    to->busy_s[SL_RES_GPU] += times * w->arithmetic_s;
    to->busy_s[SL_RES_VRAM] += times * w->memory_s;
}

static void cpu(const split_env *e, const work *w, double times, split_sum *to)
{
    to->busy_s[SL_RES_CPU] += times * w->arithmetic_s;
    to->busy_s[SL_RES_DRAM] += times * w->bytes / e->dram_all;
}

/* A copy; its seconds with its latency. */
static double up(const split_env *e, double bytes, double times, split_sum *to)
{
    to->busy_s[SL_RES_H2D] += times * split_up_s(e, bytes);
    to->busy_s[SL_RES_DRAM] += times * e->passes_s * bytes / e->dram_all;
    return split_up_s(e, bytes) + e->gpu.copy_s;
}

static double down(const split_env *e, double bytes, double times, split_sum *to)
{
    to->busy_s[SL_RES_D2H] += times * split_down_s(e, bytes);
    to->busy_s[SL_RES_DRAM] += times * e->passes_s * bytes / e->dram_all;
    return split_down_s(e, bytes) + e->gpu.copy_s;
}

/* Where the CPU computes some: their inputs come down, their outputs go up and are added. */
static double cpu_experts(const split_env *e, const split_layer *p, const split_turn *t,
                          double times, split_sum *to)
{
    double row = e->shape->d_model * sizeof(float);
    if (!(t->n_cpu > 0)) return 0;
    double s = down(e, p->rows * row, times, to) + up(e, t->cpu_runs * row, times, to);
    double fixed = p->rows > 1 ? e->cost.call_s : e->cost.stage_s;
    double elems = t->cpu_runs * e->shape->d_model * e->cost.elem_s;
    cpu(e, &t->cpu, times, to);
    to->busy_s[SL_RES_CPU] += times * elems;
    to->busy_s[SL_RES_SYNC] += times * fixed;
    return s + fixed + elems + t->cpu.s;
}

/* What the device does to each element of so many rows times experts. */
static double run_elems(const split_env *e, double runs, double times, split_sum *to)
{
    double s = runs * e->shape->d_model * e->gpu.elem_s;
    to->busy_s[SL_RES_GPU] += times * s;
    return s;
}

/* One lane's experts that were asked for: the chain's seconds, by the numbers that stay. */
static double asked(const split_env *e, const split_layer *p, double times, split_sum *to)
{
    const sl_layer_shape *l = p->of;
    double prob[SL_MAX_MISSED + 1] = { 0 }, s = 0;
    bool one = p->rows <= 1;
    double mean = split_staying_of(e, l, p->n_experts);
    if (one) split_staying(e, l, prob);
    else prob[0] = 1;
    for (uint32_t i = 0; i <= SL_MAX_MISSED; i++) {
        if (!(prob[i] > 0)) continue;
        split_turn t = split_turn_of(p, one ? i : mean);
        double n = times * prob[i];
        device(&t.stay, n, to);
        device(&t.sent, n, to);
        double there = t.stay.s + t.sent.s + run_elems(e, t.stay_runs + t.sent_runs, n, to);
        double sent = t.n_sent > 0 ? up(e, t.n_sent * (double)l->expert_bytes, n, to) : 0;
        double here = cpu_experts(e, p, &t, n, to);
        s += prob[i] * fmax(fmax(there, sent), here);
    }
    return s;
}

/* A layer of every lane; what one lane takes in turn. */
static double layer_chain(const split_env *e, const split_layer *p, const sl_step *steps,
                          double times, double n_lanes, split_sum *to)
{
    const sl_layer_shape *l = p->of;
    double n = times * n_lanes, s = 0, stage = split_stage_s(e, p->rows);
    const work *const on[] = { &p->qkv, &p->post, &p->route, &p->ffn };
    uint32_t n_stages = l->n_expert ? 4 : 3;
    for (size_t i = 0; i < SL_LEN(on); i++) {
        device(on[i], n, to);
        s += on[i]->s;
    }
    to->busy_s[SL_RES_SYNC] += n * n_stages * e->gpu.launch_s;
    to->busy_s[SL_RES_GPU] += n * n_stages * (stage - e->gpu.launch_s);
    s += n_stages * stage;
    if (!l->n_expert) return s;
    s += down(e, p->rows * (double)find(steps, SL_STEP_ROUTE)->link_row_bytes, n, to);
    if (!p->all) return s + asked(e, p, n, to);
    split_turn t = split_turn_of(p, p->n_experts);
    device(&t.stay, n, to);
    up(e, (l->n_expert - (double)SL_MIN(e->x->n_stay, l->n_expert)) * (double)l->expert_bytes,
       times, to);
    return s + t.stay.s + run_elems(e, p->rows * l->n_used, n, to);
}

/* Every lane's tokens are looked up in RAM and sent. */
static double embed_chain(const split_env *e, const sl_step *st, double rows, double times,
                          split_sum *to)
{
    double elems = rows * e->shape->d_model * e->cost.elem_s, fixed = e->cost.stage_s;
    to->busy_s[SL_RES_SYNC] += times * fixed;
    to->busy_s[SL_RES_CPU] += times * elems;
    return fixed + elems + up(e, rows * (double)st->link_row_bytes, times, to);
}

static double head_chain(const split_env *e, const sl_step *st, double logits, double times,
                         split_sum *to)
{
    const sl_shape *s = e->shape;
    double copy = down(e, logits * (double)st->link_row_bytes, times, to);
    double elems = logits * s->d_model, fixed = e->cost.stage_s;
    if (st->on == SL_ON_DEVICE) {
        work w = on_device(e, &s->head, 1, st->bytes, logits);
        device(&w, times, to);
        to->busy_s[SL_RES_SYNC] += times * e->gpu.launch_s;
        to->busy_s[SL_RES_GPU] += times * elems * e->gpu.elem_s;
        return copy + w.s + split_stage_s(e, logits);
    }
    work w = work_product(e->m, e->threads, e->dram, &s->head, 1, (double)st->bytes, logits);
    cpu(e, &w, times, to);
    to->busy_s[SL_RES_SYNC] += times * fixed;
    to->busy_s[SL_RES_CPU] += times * elems * e->cost.elem_s;
    return copy + w.s + fixed + elems * e->cost.elem_s;
}

static bool same_layer(const sl_shape *s, uint32_t l)
{
    return l && !memcmp(&s->layers[l], &s->layers[l - 1], sizeof *s->layers);
}

void split_sum_pass(const split_env *e, double rows, double logits, double times, split_sum *to)
{
    double n_lanes = split_lanes(e, rows), chain = 0;
    bool all = split_sends_all(e, rows);
    split_sum one;
    sl_step steps[LAYER_STEPS];
    for (uint32_t i = 0; i < e->shape->n_layer; i++) {
        const sl_layer_shape *l = &e->shape->layers[i];
        if (!same_layer(e->shape, i)) {
            split_layer p;
            one = (split_sum){ .chain_s = 0 };
            split_layer_set(e, l, rows / n_lanes, all, &p);
            layer_steps(e, l, steps);
            one.chain_s = layer_chain(e, &p, steps, 1, n_lanes, &one);
        }
        chain += one.chain_s;
        for (int r = 0; r < SL_N_RESOURCES; r++) to->busy_s[r] += times * one.busy_s[r];
        if (i >= e->x->n_dense_layers)
            up(e, (double)(l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes), times,
               to);
    }
    chain += embed_chain(e, find(steps, SL_STEP_EMBED), rows / n_lanes, times * n_lanes, to);
    to->chain_s += times * chain;
    split_sum_head(e, logits, n_lanes, times, to);
}

/* Logits of one row may be of one lane. */
void split_sum_head(const split_env *e, double logits, double lanes, double times, split_sum *to)
{
    sl_step steps[LAYER_STEPS];
    layer_steps(e, e->shape->layers, steps);
    const sl_step *head = find(steps, SL_STEP_HEAD);
    if (head->send_bytes) up(e, (double)head->send_bytes, times, to);
    if (!(logits > 0)) return;
    lanes = fmin(lanes, fmax(logits, 1));
    to->chain_s += times * head_chain(e, head, logits / lanes, times * lanes, to);
}

void split_sum_attention(const split_env *e, uint32_t layer, const split_attend *a, bool prompt,
                         double lanes, double passes, split_sum *to)
{
    if (!(a->rows > 0)) return;
    sl_step steps[LAYER_STEPS];
    uint32_t n = layer_steps(e, &e->shape->layers[layer], steps);
    const sl_step *st = find(steps, SL_STEP_ATTEND);
    if (st->rows == SL_ROWS_PROMPT && !prompt) st++;
    assert(st < steps + n && st->kind == SL_STEP_ATTEND);
    sl_step here = *st;
    here.layer = layer;
    work w = split_attend_work(e, &here, a, prompt);
    double elems = a->rows * e->shape->d_model, stages = lanes * passes, s = w.s;
    double fetched = (double)(split_fetches(e, st) ? st->ctx_bytes : 0) * a->fetched;
    if (st->on == SL_ON_DEVICE) {
        device(&w, 1, to);
        to->busy_s[SL_RES_SYNC] += stages * e->gpu.launch_s;
        to->busy_s[SL_RES_GPU] += elems * e->gpu.elem_s;
        s += elems * e->gpu.elem_s + stages * e->gpu.launch_s;
        if (fetched > 0) s += up(e, fetched, 1, to);
        if (st->link_row_bytes) down(e, a->rows * (double)st->link_row_bytes, 1, to);
    } else {
        cpu(e, &w, 1, to);
        to->busy_s[SL_RES_SYNC] += stages * e->cost.stage_s;
        to->busy_s[SL_RES_CPU] += elems * e->cost.elem_s;
        double qkv = a->rows * (double)find(steps, SL_STEP_QKV)->link_row_bytes;
        double att = a->rows * (double)st->link_row_bytes;
        up(e, att, 1, to);
        down(e, qkv, 1, to);
        s += elems * e->cost.elem_s + stages * (e->cost.stage_s + 2 * e->gpu.copy_s)
           + split_down_s(e, qkv) + split_up_s(e, att);
    }
    to->chain_s += s / lanes;
}

double split_sum_s(const split_sum *s)
{
    double most = s->chain_s;
    for (int r = 0; r < SL_N_RESOURCES; r++) most = fmax(most, s->busy_s[r]);
    return most;
}

/* ---- stage 1 ---- */

void split_sum_add(split_sum *to, const split_sum *s)
{
    to->chain_s += s->chain_s;
    for (int r = 0; r < SL_N_RESOURCES; r++) to->busy_s[r] += s->busy_s[r];
}

/* Rows first to first + n - 1 of one sequence, in passes of `step`, all of whose rows are new. */
static split_attend attend_of(const sl_layer_shape *l, uint32_t first, uint32_t n, uint32_t step)
{
    split_attend a = { .rows = n, .attended = sl_bound_attended(first, n, l->window) };
    for (uint64_t at = first; at < (uint64_t)first + n; at += step) {
        a.before += l->window ? fmin((double)at, l->window - 1.0) : (double)at;
        a.fetched += (double)at;
    }
    return a;
}

/* `logits` of the passes draw. */
static void sum_passes(const split_env *e, uint32_t first, uint32_t n, uint32_t step, bool prompt,
                       double logits, split_sum *to)
{
    double passes = (double)n / step, lanes = split_lanes(e, step);
    split_sum one;
    if (!n) return;
    if (passes > logits) split_sum_pass(e, step, 0, passes - logits, to);
    if (logits > 0) split_sum_pass(e, step, 1, logits, to);
    for (uint32_t i = 0; i < e->shape->n_layer; i++) {
        if (!same_layer(e->shape, i)) {
            split_attend a = attend_of(&e->shape->layers[i], first, n, step);
            one = (split_sum){ .chain_s = 0 };
            split_sum_attention(e, i, &a, prompt && step > 1, lanes, passes, &one);
        }
        split_sum_add(to, &one);
    }
}

static sl_phase phase_of(const split_sum *s, double n_tokens)
{
    sl_phase f = { .seconds = split_sum_s(s) };
    memcpy(f.busy_s, s->busy_s, sizeof f.busy_s);
    f.tok_per_s = f.seconds > 0 ? n_tokens / f.seconds : 0;
    busiest(f.busy_s, &f.binding, &f.next);
    return f;
}

sl_forecast split_stage1(const sl_forecast_in *in)
{
    split_env e;
    sl_load load = in->load;
    uint32_t rows = SL_MIN(load.n_prompt, in->plan->max_rows), rest = load.n_prompt % rows;
    split_sum prompt = { .chain_s = 0 }, decode = { .chain_s = 0 };
    split_env_init(&e, in);
    sum_passes(&e, 0, load.n_prompt - rest, rows, true, !rest, &prompt);
    sum_passes(&e, load.n_prompt - rest, rest, rest, true, 1, &prompt);
    sum_passes(&e, load.n_prompt, load.n_gen, 1, false, load.n_gen, &decode);
    sl_forecast f = { .grade = grade_of(in->machine, &e.gpu, in->miss->traced), .hit_rate = 1,
                      .prompt = phase_of(&prompt, load.n_prompt),
                      .decode = phase_of(&decode, load.n_gen),
                      .peak_bytes = in->plan->need_bytes };
    f.ttft_s = f.prompt.seconds;
    return f;
}
