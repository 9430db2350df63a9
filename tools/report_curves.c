/* tools/report_curves.c - the parts of a report that charts are drawn of: the machine's curves, the
 * roofline, the steps of a pass, and forecasts over one quantity. */
#include <math.h>
#include <stdlib.h>

#include "perfmodel/sl_bound.h"
#include "tools/report_data.h"

enum { MAX_TYPES = 6, WINDOWS = 3000, N_RAM = 14 };

/* ---- the machine ---- */

static json_t *disk_json(const sl_machine_disk *d)
{
    json_t *curves = json_array();
    for (uint32_t i = 0; i < d->n_curves; i++) {
        const sl_machine_curve *c = &d->curve[i];
        json_t *points = json_array();
        for (uint32_t k = 0; k < c->n; k++)
            json_array_append_new(points, json_pack("{s:i, s:f}", "depth", c->at[k].depth,
                                                    "bytes_s", c->at[k].bytes_s));
        json_array_append_new(curves, json_pack("{s:i, s:o}", "bytes", c->bytes, "points", points));
    }
    return json_pack("{s:o, s:f, s:o}", "where", report_text(d->where), "latency_s", d->latency_s,
                     "curves", curves);
}

static void add_types(const sl_part *part, uint32_t n, sl_type types[MAX_TYPES], uint32_t *n_types)
{
    for (uint32_t i = 0; i < n && part[i].elems; i++) {
        uint32_t k = 0;
        while (k < *n_types && types[k] != part[i].type) k++;
        if (k == *n_types && k < MAX_TYPES) types[(*n_types)++] = part[i].type;
    }
}

/* Types of the model's weights, those of experts first. */
static uint32_t model_types(const sl_shape *s, sl_type types[MAX_TYPES])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_layer; i++)
        add_types(s->layers[i].expert, SL_SHAPE_TYPES, types, &n);
    for (uint32_t i = 0; i < s->n_layer; i++) {
        add_types(s->layers[i].qkv, SL_SHAPE_TYPES, types, &n);
        add_types(s->layers[i].post, SL_SHAPE_TYPES, types, &n);
        add_types(s->layers[i].ffn, SL_SHAPE_TYPES, types, &n);
    }
    add_types(&s->head, 1, types, &n);
    return n;
}

static json_t *gemm_json(const sl_machine *m, const sl_shape *shape, uint32_t threads)
{
    sl_type types[MAX_TYPES];
    uint32_t n = model_types(shape, types);
    json_t *list = json_array();
    for (uint32_t t = 0; t < n; t++) {
        json_t *points = json_array();
        bool measured = false;
        for (uint32_t i = 0; i < m->n_gemms; i++) measured |= m->gemm[i].type == types[t];
        for (uint32_t rows = 1; rows <= 512; rows *= 2) {
            double weights = 1e8;
            double s = sl_machine_gemm_seconds(m, types[t], threads, weights, rows);
            json_array_append_new(points, json_pack("{s:i, s:f}", "rows", rows, "ops_s",
                                                    weights * rows / s));
        }
        json_array_append_new(list, json_pack("{s:s, s:b, s:i, s:o}", "type",
                                              sl_type_get(types[t])->name, "measured", measured,
                                              "threads", threads, "points", points));
    }
    return list;
}

json_t *report_machine(const sl_machine *m, const sl_shape *shape, uint32_t threads)
{
    json_t *dram = json_array(), *gpus = json_array();
    for (uint32_t i = 0; i < m->n_dram; i++)
        json_array_append_new(dram, json_pack("{s:i, s:f}", "threads", m->dram_read[i].threads,
                                              "bytes_s", m->dram_read[i].value));
    for (uint32_t i = 0; i < m->n_gpus; i++) {
        const sl_machine_gpu *g = &m->gpu[i];
        json_array_append_new(gpus, json_pack("{s:o, s:I, s:f, s:f, s:f}", "name",
                                              report_text(g->name), "vram_bytes",
                                              (json_int_t)g->vram_bytes, "vram_bytes_s",
                                              g->vram_bytes_s, "flops_s", g->flops_s,
                                              "h2d_bytes_s", g->h2d_bytes_s));
    }
    return json_pack("{s:o, s:o, s:s, s:o, s:i, s:i, s:I, s:I, s:o, s:o, s:o, s:o}",
                     "name", report_text(m->id.cpu), "notes", report_text(m->notes), "source", sl_machine_source_name(m->source), "isa",
                     report_text(m->id.isa), "cores", m->id.cores, "hw_threads", m->id.hw_threads,
                     "l3_bytes", (json_int_t)m->id.l3_bytes, "ram_bytes",
                     (json_int_t)m->id.ram_bytes, "dram", dram, "disk", disk_json(&m->disk),
                     "gemm", gemm_json(m, shape, threads), "gpus", gpus);
}

/* ---- the roofline ---- */

enum { N_STAGES = SL_STEP_HEAD + 1 };
struct stage { double bytes, ops, seconds; };

/* Bytes and multiply-adds of a pass by kind of step, all layers together. */
static void add_work(const report_in *in, const sl_step *steps, uint32_t n, sl_pass pass,
                     struct stage stages[N_STAGES])
{
    for (uint32_t i = 0; i < n; i++) {
        const sl_step *s = &steps[i];
        pass.experts = 0;
        if (s->layer != SL_STEP_NONE && in->shape->layers[s->layer].n_expert) {
            const sl_layer_shape *l = &in->shape->layers[s->layer];
            pass.experts = sl_miss_distinct(in->miss, l->n_expert, l->n_used, pass.n_rows);
        }
        sl_work w = sl_bound_work(in->shape, s, 1, &pass);
        stages[s->kind].bytes += w.bytes;
        stages[s->kind].ops += w.int_ops + w.flops / 2;
    }
}

/* Seconds that the cores spend in each kind of step; none where not all spans are kept. */
static void add_seconds(const sl_timeline *t, struct stage stages[N_STAGES])
{
    if (t->n > t->cap) return;
    for (uint32_t i = 0; i < t->n; i++) {
        const sl_span *s = &t->spans[i];
        if (s->on == SL_RES_CPU && !s->waiting) stages[s->kind].seconds += s->to_s - s->from_s;
    }
}

static void append_stages(json_t *list, const char *phase, const struct stage stages[N_STAGES])
{
    for (int k = 0; k < N_STAGES; k++) {
        const struct stage *s = &stages[k];
        if (s->ops <= 0 || s->bytes <= 0) continue;
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:f}", "phase", phase, "stage",
                            sl_step_name((sl_step_kind)k), "bytes", s->bytes, "ops", s->ops,
                            "intensity", s->ops / s->bytes, "seconds", s->seconds, "ops_s",
                            s->seconds > 0 ? s->ops / s->seconds : 0));
    }
}

static double best_peak(const sl_machine *m, sl_peak from, sl_peak to, uint32_t threads)
{
    double best = 0;
    for (int p = from; p <= (int)to; p++)
        best = fmax(best, sl_machine_peak_s(m, (sl_peak)p, threads));
    return best;
}

json_t *report_roofline(const report_in *in, const sl_timeline *decode, const sl_timeline *prompt)
{
    const sl_machine *m = in->machine;
    const sl_plan *plan = &in->choice->plan;
    uint32_t threads = plan->n_threads ? plan->n_threads : m->id.cores, bytes, depth;
    uint32_t rows = SL_MIN(plan->max_rows, in->load.n_prompt);
    struct stage of_decode[N_STAGES] = { 0 }, of_prompt[N_STAGES] = { 0 };
    sl_step *steps = calloc(sl_pipe_max_steps(in->shape), sizeof *steps);
    if (!steps) return NULL;
    uint32_t n = sl_pipe_build(in->shape, plan, steps);
    sl_pass one = { .first = in->load.n_prompt, .n_rows = 1, .logits = true };
    sl_pass many = { .n_rows = rows, .logits = true };
    add_work(in, steps, n, one, of_decode);
    add_work(in, steps, n, many, of_prompt);
    free(steps);
    add_seconds(decode, of_decode);
    add_seconds(prompt, of_prompt);
    json_t *list = json_array();
    double disk = 0;
    if (in->load.n_gen) append_stages(list, "decode", of_decode);
    append_stages(list, "prompt", of_prompt);
    if (!sl_machine_disk_best(m, &bytes, &depth, &disk)) disk = 0;
    return json_pack("{s:i, s:f, s:f, s:f, s:f, s:o}", "rows", rows, "dram_bytes_s",
                     sl_machine_dram_s(m, threads), "int8_ops_s",
                     best_peak(m, SL_PEAK_I8_AVX2, SL_PEAK_I8_VNNI512, threads), "f32_ops_s",
                     best_peak(m, SL_PEAK_F32_AVX2, SL_PEAK_F32_AVX512, threads) / 2,
                     "disk_bytes_s", disk, "stages", list);
}

/* ---- a pass ---- */

enum { K_EXPERTS, K_ATTENTION, K_HEAD, K_WAIT, K_DISK, N_KINDS };

/* Spans of one lane on their way into the list. Where there are more of them than a picture shows,
 * short ones of a layer are summed over a window first, and stand in it kind by kind. */
struct lane {
    json_t *list;
    double gap_s, window_s;     /* spans closer than this are one; 0: nothing is summed */
    int kind;                   /* of the span that is open, -1: none */
    uint32_t layer;
    double from_s, to_s;
    double sum_s[N_KINDS];      /* of the window that is open */
    uint32_t sum_layer;
    double sum_from_s, sum_to_s;    /* to 0: none is open */
};

static int span_kind(const sl_span *s)
{
    if (s->on == SL_RES_DISK) return K_DISK;
    if (s->waiting) return K_WAIT;
    if (s->kind == SL_STEP_EXPERTS) return K_EXPERTS;
    return s->kind == SL_STEP_EMBED || s->kind == SL_STEP_HEAD ? K_HEAD : K_ATTENTION;
}

static void end_span(struct lane *l)
{
    if (l->kind < 0) return;
    json_t *layer = l->layer == SL_STEP_NONE ? json_null() : json_integer(l->layer);
    json_array_append_new(l->list, json_pack("[i, o, f, f]", l->kind, layer, l->from_s, l->to_s));
    l->kind = -1;
}

static void add_span(struct lane *l, int kind, uint32_t layer, double from_s, double to_s)
{
    if (l->kind == kind && l->layer == layer && from_s - l->to_s <= l->gap_s) {
        l->to_s = fmax(l->to_s, to_s);
        return;
    }
    end_span(l);
    l->kind = kind;
    l->layer = layer;
    l->from_s = from_s;
    l->to_s = to_s;
}

static void end_window(struct lane *l)
{
    double at = l->sum_from_s;
    for (int k = 0; k < N_KINDS && l->sum_to_s > 0; k++) {
        if (l->sum_s[k] > 0) add_span(l, k, l->sum_layer, at, at + l->sum_s[k]);
        at += l->sum_s[k];
        l->sum_s[k] = 0;
    }
    l->sum_to_s = 0;
}

static void add_to_lane(struct lane *l, const sl_span *s)
{
    bool fits = l->sum_to_s > 0 && l->sum_layer == s->layer
             && s->to_s - l->sum_from_s <= l->window_s;
    if (!fits) end_window(l);
    if (s->to_s - s->from_s >= l->window_s) {
        add_span(l, span_kind(s), s->layer, s->from_s, s->to_s);
        return;
    }
    if (!fits) l->sum_from_s = s->from_s;
    l->sum_layer = s->layer;
    l->sum_to_s = s->to_s;
    l->sum_s[span_kind(s)] += s->to_s - s->from_s;
}

/* [kind, layer or null, from, to] of the cores, then of the disk. */
json_t *report_timeline(const sl_timeline *t, uint32_t rows)
{
    uint32_t n = SL_MIN(t->n, t->cap);
    double end = 0;
    for (uint32_t i = 0; i < n; i++) end = fmax(end, t->spans[i].to_s);
    json_t *list = json_array();
    for (int disk = 0; disk < 2; disk++) {
        struct lane lane = { .list = list, .gap_s = end / WINDOWS / 4, .kind = -1,
                             .window_s = n > WINDOWS ? end / WINDOWS : 0 };
        for (uint32_t i = 0; i < n; i++) {
            const sl_span *s = &t->spans[i];
            if ((s->on == SL_RES_DISK) == (disk != 0) && s->to_s > s->from_s)
                add_to_lane(&lane, s);
        }
        end_window(&lane);
        end_span(&lane);
    }
    return json_pack("{s:i, s:f, s:i, s:o}", "rows", rows, "seconds", end, "left_out", t->n - n,
                     "spans", list);
}

/* ---- forecasts over one quantity ---- */

static json_t *point_half(const sl_forecast *f)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:s, s:s}", "peak_bytes",
                     (json_int_t)f->peak_bytes, "hit_rate", f->hit_rate, "decode_tok_per_s",
                     f->decode.tok_per_s, "prompt_tok_per_s", f->prompt.tok_per_s, "ttft_s",
                     f->ttft_s, "decode_binding", report_resource(f->decode.binding),
                     "prompt_binding", report_resource(f->prompt.binding));
}

/* Nothing is appended where no plan fits. */
static sl_status append_point(sl_ctx *ctx, const report_in *in, const sl_plan_params *params,
                              sl_load load, double x, json_t *points)
{
    sl_plan plan;
    sl_forecast f;
    if (sl_plan_make(ctx, in->shape, params, &plan) != SL_OK) return SL_OK;
    sl_forecast_in fi = { in->machine, in->shape, &plan, in->miss, load, NULL };
    SL_TRY(sl_sim_run(ctx, &fi, NULL, NULL, &f));
    sl_forecast bound = sl_stage1(&fi);
    json_array_append_new(points, json_pack("{s:f, s:o, s:o}", "x", x, "forecast", point_half(&f),
                                            "bound", point_half(&bound)));
    return SL_OK;
}

static bool fits(sl_ctx *ctx, const report_in *in, uint64_t ram)
{
    sl_plan_params p = in->choice->params;
    sl_plan plan;
    p.ram_bytes = ram;
    return sl_plan_make(ctx, in->shape, &p, &plan) == SL_OK;
}

/* From the least budget that runs to a little more than the whole model needs. */
static sl_status ram_sweep(sl_ctx *ctx, const report_in *in, json_t **ret)
{
    sl_plan_params p = in->choice->params;
    sl_plan plan;
    uint64_t mib = 1 << 20, lo = 0, hi;
    p.ram_bytes = 0;
    SL_TRY(sl_plan_make(ctx, in->shape, &p, &plan));
    uint64_t all = (plan.need_bytes + mib - 1) / mib;
    for (hi = all; hi - lo > 1; ) {
        uint64_t mid = (lo + hi) / 2;
        if (fits(ctx, in, mid * mib)) hi = mid;
        else lo = mid;
    }
    bool steep = all > 8 * hi;
    json_t *points = json_array();
    sl_status st = SL_OK;
    for (int i = 0; i <= N_RAM && st == SL_OK; i++) {
        double share = (double)i / (N_RAM - 1), least = (double)hi, most = (double)all;
        double at = i == N_RAM ? 1.1 * most
                  : steep ? least * pow(most / least, share) : least + (most - least) * share;
        p.ram_bytes = (uint64_t)ceil(at) * mib;
        st = append_point(ctx, in, &p, in->load, (double)p.ram_bytes, points);
    }
    *ret = json_pack("{s:f, s:I, s:I, s:I, s:b, s:o}", "unit", (double)(1 << 30), "at",
                     (json_int_t)in->choice->params.ram_bytes, "floor", (json_int_t)(hi * mib),
                     "whole", (json_int_t)(all * mib), "log", steep, "points", points);
    return st;
}

static sl_status ctx_sweep(sl_ctx *ctx, const report_in *in, json_t **ret)
{
    sl_plan_params p = in->choice->params;
    uint32_t n_gen = in->load.n_gen, most = SL_MIN(in->shape->n_ctx_train, 131072u);
    json_t *points = json_array();
    sl_status st = SL_OK;
    for (p.n_ctx = 256; p.n_ctx <= most && st == SL_OK; p.n_ctx *= 2) {
        sl_load load = { p.n_ctx - n_gen, n_gen };
        if (n_gen < p.n_ctx) st = append_point(ctx, in, &p, load, p.n_ctx, points);
    }
    *ret = json_pack("{s:f, s:I, s:b, s:o}", "unit", 1.0, "at",
                     (json_int_t)(in->load.n_prompt + n_gen), "log", true, "points", points);
    return st;
}

static sl_status rows_sweep(sl_ctx *ctx, const report_in *in, json_t **ret)
{
    sl_plan_params p = in->choice->params;
    json_t *points = json_array();
    sl_status st = SL_OK;
    for (p.max_rows = 16; p.max_rows < 2 * in->load.n_prompt && p.max_rows <= 4096; p.max_rows *= 2)
        if (st == SL_OK) st = append_point(ctx, in, &p, in->load, p.max_rows, points);
    *ret = json_pack("{s:f, s:I, s:b, s:o}", "unit", 1.0, "at",
                     (json_int_t)in->choice->plan.max_rows, "log", true, "points", points);
    return st;
}

sl_status report_sweeps(sl_ctx *ctx, const report_in *in, json_t **ret)
{
    json_t *ram = NULL, *context = NULL, *rows = NULL;
    sl_status st = ram_sweep(ctx, in, &ram);
    if (st == SL_OK) st = ctx_sweep(ctx, in, &context);
    if (st == SL_OK) st = rows_sweep(ctx, in, &rows);
    *ret = json_pack("{s:o, s:o, s:o, s:o, s:o}", "ram", ram ? ram : json_null(), "ctx",
                     context ? context : json_null(), "rows", rows ? rows : json_null(), "batch",
                     report_batch(in), "vram", report_vram(in));
    if (st == SL_OK && !*ret) st = sl_fail(ctx, SL_E_NOMEM, "the report's curves");
    return st;
}
