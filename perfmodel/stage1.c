/* perfmodel/stage1.c - the least time that a load can take with a plan: what must come in turn is
 * added up, all else overlaps. Walks the steps of each layer (sl_pipe.h) once for a token and once
 * for each size of pass of the prompt; what grows with the position is summed in closed form. */
#include "perfmodel/sl_bound.h"
#include "perfmodel/split.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const char *sl_grade_name(sl_grade g)
{
    static const char *const names[] = { "datasheet", "quick", "cold", "calibrated" };
    assert((size_t)g < SL_LEN(names));
    return names[g];
}

const char *sl_resource_name(sl_resource r)
{
    static const char *const names[SL_N_RESOURCES] = {
        "disk reads", "RAM bandwidth", "CPU arithmetic", "stages' fixed costs",
        "copies to the GPU", "copies from the GPU", "GPU arithmetic", "VRAM bandwidth"
    };
    assert((size_t)r < SL_LEN(names));
    return names[r];
}

/* What does not change from layer to layer. */
struct env {
    const sl_machine *m;
    const sl_shape *shape;
    const sl_plan *plan;
    const sl_forecast_in *in;
    uint32_t threads;
    double dram;                /* bytes/s that the threads read ... */
    double dram_all;            /* ... and that the memory gives at most */
    double disk_best;           /* bytes/s; 0: not measured */
    sl_machine_cost cost;
    bool corun;                 /* what cores and disk leave each other was measured: in disk */
    sl_disk_use disk;
};

static work product(const struct env *e, const sl_part *parts, uint32_t n, double bytes,
                    double rows)
{
    return work_product(e->m, e->threads, e->dram, parts, n, bytes, rows);
}

/* One row, or a prompt's, at so many positions together; n_read of them lie in RAM already. */
static work attention(const struct env *e, const sl_layer_shape *l, const sl_step *s,
                      double attended, double n_read, double rows, bool prompt)
{
    double flops = attended * (double)s->ctx_flops;
    double elems = attended * ((double)l->k_elems + l->v_elems);
    double arithmetic = sl_machine_decode_seconds(&e->cost, elems, flops);
    if (prompt) arithmetic = fmin(arithmetic, flops / e->cost.prefill_flops_s);
    double bytes = n_read * (double)s->ctx_bytes + rows * (double)s->row_bytes;
    return work_of(arithmetic, bytes / e->dram, arithmetic, bytes);
}

/* Embedding, one layer and head: what sl_pipe_build makes of a model with this layer alone. */
enum { LAYER_STEPS = 8 };
static uint32_t layer_steps(const struct env *e, const sl_layer_shape *l, sl_step *steps)
{
    sl_shape one = *e->shape;
    one.n_layer = 1;
    one.layers = l;
    assert(sl_pipe_max_steps(&one) <= LAYER_STEPS);
    return sl_pipe_build(&one, e->plan, steps);
}

/* A layer in a pass of some rows, attention apart. */
struct layer {
    work apart;          /* projections and router */
    work experts;        /* all of them, and the shared one; a dense FFN */
    double n_experts;           /* distinct ones that the router chose */
    const sl_step *attend;
    uint32_t n_stages;
    sl_step steps[LAYER_STEPS];
};

static void layer_set(const struct env *e, const sl_layer_shape *l, double rows, struct layer *ret)
{
    *ret = (struct layer){ .n_experts = 0 };
    uint32_t n = layer_steps(e, l, ret->steps);
    ret->n_stages = n - 2;
    for (uint32_t i = 0; i < n; i++) {
        const sl_step *s = &ret->steps[i];
        double bytes = (double)s->bytes;
        work w = { .s = 0 };
        switch (s->kind) {
        case SL_STEP_QKV: w = product(e, l->qkv, SL_SHAPE_TYPES, bytes, rows); break;
        case SL_STEP_POST: w = product(e, l->post, SL_SHAPE_TYPES, bytes, rows); break;
        case SL_STEP_ROUTE: w = product(e, &l->router, 1, bytes, rows); break;
        case SL_STEP_ATTEND: ret->attend = s; break;
        case SL_STEP_EXPERTS: ret->experts = product(e, l->ffn, SL_SHAPE_TYPES, bytes, rows); break;
        case SL_STEP_EMBED: case SL_STEP_HEAD: break;
        }
        work_add(&ret->apart, &w, 1);
    }
    if (!l->n_expert) return;
    ret->n_experts = rows > 1 ? sl_miss_distinct(e->in->miss, l->n_expert, l->n_used, rows)
                              : l->n_used;
    work one = work_product_spread(e->m, e->threads, e->dram, l->expert, SL_SHAPE_TYPES,
                                   (double)l->expert_bytes, rows * l->n_used / ret->n_experts);
    work_add(&ret->experts, &one, ret->n_experts);
}

/* The rows' tokens in the table. */
static work embed(const struct env *e, double rows)
{
    double bytes = rows * (double)e->shape->embed_bytes / e->shape->n_vocab;
    return work_of(0, bytes / e->dram, 0, bytes);
}

static work head(const struct env *e)
{
    const sl_shape *s = e->shape;
    return product(e, &s->head, 1, (double)(s->head_bytes ? s->head_bytes : s->embed_bytes), 1);
}

static bool same_layer(const sl_shape *s, uint32_t l)
{
    return l && !memcmp(&s->layers[l], &s->layers[l - 1], sizeof *s->layers);
}

/* Dense weights of layers that do not keep them: read in every pass. */
static double dense_streamed(const struct env *e)
{
    double bytes = 0;
    for (uint32_t i = e->plan->n_dense_layers; i < e->shape->n_layer; i++) {
        const sl_layer_shape *l = &e->shape->layers[i];
        bytes += (double)(l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes);
    }
    return e->plan->weights == SL_WEIGHTS_STREAMED ? bytes : 0;
}

/* ---- a phase's seconds, from what its parts take ---- */

static void phase_end(const struct env *e, const work *w, double s, double reading_s,
                      double disk_bytes, double sync_s, double n_tokens, sl_phase *ret)
{
    *ret = (sl_phase){ .disk_bytes = disk_bytes };
    double best = e->disk_best > 0 ? disk_bytes / e->disk_best : 0;
    ret->busy_s[SL_RES_DISK] = fmax(reading_s, best);
    ret->busy_s[SL_RES_DRAM] = w->memory_s;
    ret->busy_s[SL_RES_CPU] = w->arithmetic_s;
    ret->busy_s[SL_RES_SYNC] = sync_s;
    ret->seconds = fmax(s, w->s);
    for (int r = 0; r < SL_N_RESOURCES; r++) ret->seconds = fmax(ret->seconds, ret->busy_s[r]);
    /* what the disk writes goes through the memory too; what that does was measured, or the memory
     * gives no more than it gave to reads */
    double memory = (w->bytes + disk_bytes) / e->dram_all;
    if (!e->corun) ret->seconds = fmax(ret->seconds, memory);
    ret->busy_s[SL_RES_DRAM] = fmin(fmax(w->memory_s, memory), ret->seconds);
    ret->wait_s = ret->seconds - w->s;
    ret->tok_per_s = ret->seconds > 0 ? n_tokens / ret->seconds : 0;
    busiest(ret->busy_s, &ret->binding, &ret->next);
}

/* ---- tokens one after another ---- */

/* Probabilities that so many of a layer's experts are missing. */
static void missing(const struct env *e, const sl_layer_shape *l, double p[SL_MAX_MISSED + 1])
{
    uint32_t c = sl_plan_class(e->plan, l);
    double n = 0;
    memset(p, 0, (SL_MAX_MISSED + 1) * sizeof *p);
    for (uint32_t i = 0; e->in->misses && i <= SL_MAX_MISSED; i++)
        n += (double)e->in->misses->turns[c][i];
    for (uint32_t i = 0; n > 0 && i <= SL_MAX_MISSED; i++)
        p[SL_MIN(i, l->n_used)] += (double)e->in->misses->turns[c][i] / n;
    const sl_slot_class *k = &e->plan->cls[c];
    if (!(n > 0))
        sl_miss_turn(e->in->miss, l->n_used, (double)k->n_slots / SL_MAX(k->n_experts, 1), p);
}

/* A layer's turn with its experts: computing all of them and reading those that miss overlap. */
struct turn { double s, reading_s, n_missing; };
static struct turn layer_turn(const struct env *e, const sl_layer_shape *l,
                              const work *experts)
{
    if (e->plan->weights != SL_WEIGHTS_STREAMED || !l->n_expert)
        return (struct turn){ .s = experts->s };
    double p[SL_MAX_MISSED + 1];
    struct turn t = { .s = 0 };
    missing(e, l, p);
    for (uint32_t i = 0; i <= SL_MAX_MISSED; i++) {
        if (!(p[i] > 0)) continue;
        double reading = sl_bound_read_s(l, i, &e->disk);
        /* behind reads of dense weights more may be in flight than these */
        if (e->plan->n_dense_layers < e->shape->n_layer && e->disk_best > 0)
            reading = i * (double)l->expert_bytes / e->disk_best;
        t.s += p[i] * sl_bound_together(experts->s, experts->bytes / e->dram, reading, &e->disk);
        t.reading_s += p[i] * reading;
        t.n_missing += p[i] * i;
    }
    return t;
}

static void decode(const struct env *e, sl_forecast *ret)
{
    const sl_load *load = &e->in->load;
    work all = head(e), row = embed(e, 1);
    double s = 0, reading = 0, disk = dense_streamed(e), used = 0, missed = 0, n_stages = 2;
    double n = load->n_gen ? load->n_gen : 1;
    struct layer l;
    struct turn t = { .s = 0 };
    for (uint32_t i = 0; i < e->shape->n_layer; i++) {
        const sl_layer_shape *ls = &e->shape->layers[i];
        if (!same_layer(e->shape, i)) {
            layer_set(e, ls, 1, &l);
            double attended = sl_bound_attended(load->n_prompt, (uint32_t)n, ls->window) / n;
            work att = attention(e, ls, l.attend, attended, attended - 1, 1, false);
            work_add(&l.apart, &att, 1);
            t = layer_turn(e, ls, &l.experts);
        }
        work_add(&all, &l.apart, 1);
        work_add(&all, &l.experts, 1);
        s += t.s - l.experts.s;
        reading += t.reading_s;
        disk += t.n_missing * (double)ls->expert_bytes;
        missed += t.n_missing;
        used += ls->n_used;
        n_stages += l.n_stages;
    }
    work phase = { .s = 0 };
    work_add(&all, &row, 1);
    work_add(&phase, &all, load->n_gen);
    phase_end(e, &phase, load->n_gen * (all.s + s), load->n_gen * reading, load->n_gen * disk,
              load->n_gen * n_stages * e->cost.stage_s, load->n_gen, &ret->decode);
    ret->hit_rate = used > 0 ? fmax(1 - missed / used, 0) : 1;
    ret->disk_bytes_per_token = disk;
    ret->stall_share =
        ret->decode.seconds > 0 ? ret->decode.wait_s / ret->decode.seconds : 0;
}

/* ---- a prompt ---- */

/* Bytes of one pass's experts: of all that its layers want, and of those for which there is no
 * slot, however well the slots are used. */
struct wanted { double all, beyond_slots; };
static struct wanted wanted_bytes(const struct env *e, const double *n, const double *bytes)
{
    struct wanted w = { .all = 0 };
    for (uint32_t c = 0; c < e->plan->n_classes; c++) {
        w.all += bytes[c];
        double beyond = n[c] - e->plan->cls[c].n_slots;
        if (beyond > 0) w.beyond_slots += bytes[c] * beyond / n[c];
    }
    return w;
}

/* One pass of so many rows: adds `times` of them. */
static struct wanted prompt_pass(const struct env *e, uint32_t rows, double times, work *all,
                                 double *n_stages)
{
    double n[SL_SLOT_CLASSES] = { 0 }, bytes[SL_SLOT_CLASSES] = { 0 };
    struct layer l;
    for (uint32_t i = 0; i < e->shape->n_layer; i++) {
        const sl_layer_shape *ls = &e->shape->layers[i];
        if (!same_layer(e->shape, i)) layer_set(e, ls, rows, &l);
        work_add(all, &l.apart, times);
        work_add(all, &l.experts, times);
        *n_stages += times * l.n_stages;
        if (e->plan->weights != SL_WEIGHTS_STREAMED || !ls->n_expert) continue;
        uint32_t c = sl_plan_class(e->plan, ls);
        n[c] += l.n_experts;
        bytes[c] += l.n_experts * (double)ls->expert_bytes;
    }
    *n_stages += times;
    work tokens = embed(e, rows);
    work_add(all, &tokens, times);
    return wanted_bytes(e, n, bytes);
}

/* Of all passes: rows over rows of the same prompt, keys and values of earlier passes read anew by
 * each. */
static void prompt_attention(const struct env *e, work *all)
{
    uint32_t n = e->in->load.n_prompt, step = e->plan->max_rows;
    work att = { .s = 0 };
    sl_step steps[LAYER_STEPS];
    for (uint32_t i = 0; i < e->shape->n_layer; i++) {
        const sl_layer_shape *l = &e->shape->layers[i];
        if (!same_layer(e->shape, i)) {
            double earlier = 0;
            for (uint64_t at = 0; at < n; at += step)
                earlier += l->window ? fmin((double)at, l->window - 1.0) : (double)at;
            uint32_t k = 0, n_steps = layer_steps(e, l, steps);
            while (k < n_steps && steps[k].kind != SL_STEP_ATTEND) k++;
            assert(k < n_steps);
            att = attention(e, l, &steps[k], sl_bound_attended(0, n, l->window), earlier, n,
                            true);
        }
        work_add(all, &att, 1);
    }
}

static void prompt(const struct env *e, sl_forecast *ret)
{
    uint32_t n = e->in->load.n_prompt, rows = SL_MIN(n, e->plan->max_rows);
    double n_full = floor((double)n / rows), n_stages = 1;
    uint32_t rest = n - (uint32_t)n_full * rows;
    work all = head(e);
    /* the first pass finds its slots empty */
    struct wanted w = prompt_pass(e, rows, n_full, &all, &n_stages);
    double disk = w.all + (n_full - 1) * w.beyond_slots + n_full * dense_streamed(e);
    if (rest) {
        w = prompt_pass(e, rest, 1, &all, &n_stages);
        disk += w.beyond_slots + dense_streamed(e);
    }
    prompt_attention(e, &all);
    phase_end(e, &all, 0, 0, disk, n_stages * e->cost.stage_s, n, &ret->prompt);
    ret->ttft_s = ret->prompt.seconds;
}

sl_forecast sl_stage1(const sl_forecast_in *in)
{
    assert(in->load.n_prompt && in->plan->max_rows && in->miss);
    if (in->plan->split.accel.kind) return split_stage1(in);
    const sl_machine *m = in->machine;
    struct env e = { .m = m, .shape = in->shape, .plan = in->plan, .in = in,
                     .threads = in->plan->n_threads ? in->plan->n_threads : m->id.cores,
                     .disk = { .machine = m, .request_bytes = in->plan->read_bytes,
                               .depth = in->plan->read_depth } };
    if (!e.disk.request_bytes) e.disk.request_bytes = SL_STORE_READ_BYTES;
    if (!e.disk.depth) e.disk.depth = SL_STORE_READ_DEPTH;
    uint32_t some_bytes, some_depth;
    e.dram = e.dram_all = sl_machine_dram_s(m, e.threads);
    for (uint32_t i = 0; i < m->n_dram; i++) e.dram_all = fmax(e.dram_all, m->dram_read[i].value);
    e.cost = sl_machine_cost_at(m, e.threads);
    for (uint32_t i = 0; i < m->n_costs; i++)
        e.corun |= m->cost[i].corun_cpu > 0 && m->cost[i].corun_disk > 0;
    if (e.corun) {
        e.disk.cpu_keeps = e.cost.corun_cpu;
        e.disk.disk_keeps = e.cost.corun_disk;
    }
    if (!sl_machine_disk_best(m, &some_bytes, &some_depth, &e.disk_best)) e.disk_best = 0;
    sl_forecast f = { .grade = grade_of(m, NULL, in->misses || in->miss->traced),
                      .peak_bytes = in->plan->need_bytes };
    prompt(&e, &f);
    decode(&e, &f);
    return f;
}
