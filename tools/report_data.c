/* tools/report_data.c - the forecast, the plan and the model's bytes as the report's object. */
#include "tools/report_data.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "perfmodel/sl_bound.h"

enum { MAX_SPANS = 1 << 16 };

json_t *report_text(const char *s)
{
    json_t *v = json_string(s);
    if (v) return v;
    char *t = strdup(s);
    if (!t) return NULL;
    for (char *c = t; *c; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    v = json_string(t);
    free(t);
    return v;
}

const char *report_resource(sl_resource r)
{
    static const char *const names[SL_N_RESOURCES] = {
        [SL_RES_DISK] = "disk", [SL_RES_DRAM] = "dram", [SL_RES_CPU] = "cpu",
        [SL_RES_SYNC] = "sync", [SL_RES_H2D] = "h2d", [SL_RES_D2H] = "d2h",
        [SL_RES_GPU] = "gpu", [SL_RES_VRAM] = "vram",
    };
    return names[r];
}

static json_t *resource_names(void)
{
    json_t *o = json_object();
    for (int r = 0; r < SL_N_RESOURCES; r++)
        json_object_set_new(o, report_resource(r), json_string(sl_resource_name(r)));
    return o;
}

static json_t *phase_json(const sl_phase *p)
{
    json_t *busy = json_object();
    for (int r = 0; r < SL_N_RESOURCES; r++)
        if (p->busy_s[r] > 0)
            json_object_set_new(busy, report_resource(r), json_real(p->busy_s[r]));
    return json_pack("{s:f, s:f, s:o, s:f, s:f, s:s, s:s}", "seconds", p->seconds, "tok_per_s",
                     p->tok_per_s, "busy", busy, "wait_s", p->wait_s, "disk_bytes", p->disk_bytes,
                     "binding", report_resource(p->binding), "next", report_resource(p->next));
}

static json_t *forecast_json(const sl_forecast *f)
{
    return json_pack("{s:s, s:o, s:o, s:f, s:f, s:f, s:f, s:I}", "grade", sl_grade_name(f->grade),
                     "prompt", phase_json(&f->prompt), "decode", phase_json(&f->decode), "ttft_s",
                     f->ttft_s, "hit_rate", f->hit_rate, "disk_bytes_per_token",
                     f->disk_bytes_per_token, "stall_share", f->stall_share, "peak_bytes",
                     (json_int_t)f->peak_bytes);
}

static json_t *model_json(const report_in *in)
{
    const sl_shape *s = in->shape;
    uint32_t n_moe = 0, n_expert = 0, n_used = 0;
    uint64_t expert_bytes = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const sl_layer_shape *l = &s->layers[i];
        if (!l->n_expert) continue;
        n_moe++;
        n_expert = SL_MAX(n_expert, l->n_expert);
        n_used = SL_MAX(n_used, l->n_used);
        expert_bytes = SL_MAX(expert_bytes, l->expert_bytes);
    }
    return json_pack("{s:o, s:o, s:o, s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:I, s:I}", "name",
                     report_text(in->model), "arch", report_text(in->arch), "quant",
                     report_text(in->quant), "exact", in->exact, "n_layer", s->n_layer,
                     "n_moe_layers", n_moe, "n_expert", n_expert, "n_used", n_used, "d_model",
                     s->d_model, "n_ctx_train", s->n_ctx_train, "n_params",
                     (json_int_t)s->n_params, "bytes", (json_int_t)s->total_bytes,
                     "expert_bytes", (json_int_t)expert_bytes);
}

static json_t *plan_json(const sl_plan *p, const sl_plan_params *params, uint32_t n_threads)
{
    static const char *const places[] = {
        [SL_WEIGHTS_RESIDENT] = "all weights in memory of our own",
        [SL_WEIGHTS_MAPPED] = "all weights mapped from the page cache",
        [SL_WEIGHTS_STREAMED] = "experts read when they are asked for",
    };
    json_int_t n_slots = 0, n_experts = 0;
    bool reads = p->weights == SL_WEIGHTS_STREAMED;
    for (uint32_t c = 0; c < p->n_classes; c++) {
        n_slots += p->cls[c].n_slots;
        n_experts += p->cls[c].n_experts;
    }
    return json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i}",
        "mode", p->mode, "weights", places[p->weights], "n_threads", n_threads, "n_ctx", p->n_ctx,
        "n_seq", p->n_seq, "max_rows", p->max_rows, "kv_type", sl_type_get(p->kv_type)->name,
        "kv_bytes", (json_int_t)p->kv_bytes, "dense_bytes", (json_int_t)p->dense_bytes, "n_slots",
        n_slots, "n_experts", n_experts, "slots_bytes", (json_int_t)p->slots_bytes,
        "scratch_bytes", (json_int_t)p->scratch_bytes, "process_bytes",
        (json_int_t)params->process_bytes, "need_bytes", (json_int_t)p->need_bytes, "budget_bytes",
        (json_int_t)p->ram_bytes, "read_depth", reads ? p->read_depth : 0, "read_bytes",
        reads ? p->read_bytes : 0);
}

static json_t *gains_json(const sl_choice *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->n_gains; i++) {
        const sl_gain *g = &c->gains[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:f, s:f}", "on", report_resource(g->on),
                                              "what", g->what, "prompt_tok_per_s",
                                              g->prompt_tok_per_s, "decode_tok_per_s",
                                              g->decode_tok_per_s));
    }
    return list;
}

static json_t *why_json(const sl_choice *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->n_why; i++) json_array_append_new(list, report_text(c->why[i]));
    return list;
}

/* ---- where the bytes are ---- */

enum part { EMBEDDING, ATTENTION, SHARED, EXPERTS, KV, WORK, N_PARTS };
struct parts { double file[N_PARTS], ram[N_PARTS], token[N_PARTS]; };

static uint64_t kv_row_bytes(const sl_layer_shape *l, sl_type type)
{
    uint64_t k = 0, v = 0;
    if (!sl_type_row_bytes(type, l->k_elems, &k) || !sl_type_row_bytes(type, l->v_elems, &v))
        return 0;
    return k + v;
}

static void add_layer(const report_in *in, uint32_t i, struct parts *p)
{
    const sl_layer_shape *l = &in->shape->layers[i];
    const sl_plan *plan = &in->choice->plan;
    double attention = (double)(l->qkv_bytes + l->post_bytes + l->router_bytes);
    double past = in->load.n_prompt + in->load.n_gen / 2.0;
    bool stays = plan->weights != SL_WEIGHTS_STREAMED || i < plan->n_dense_layers;
    if (l->window) past = SL_MIN(past, (double)l->window);
    p->file[ATTENTION] += attention;
    p->file[SHARED] += (double)l->ffn_bytes;
    if (stays) p->ram[ATTENTION] += attention;
    if (stays) p->ram[SHARED] += (double)l->ffn_bytes;
    p->token[ATTENTION] += attention;
    p->token[SHARED] += (double)l->ffn_bytes;
    p->file[EXPERTS] += (double)l->expert_bytes * l->n_expert;
    p->token[EXPERTS] += (double)l->expert_bytes * l->n_used;
    p->token[KV] += past * (double)kv_row_bytes(l, plan->kv_type);
}

static json_t *report_bytes(const report_in *in)
{
    static const char *const ids[N_PARTS][2] = {
        [EMBEDDING] = { "embedding", "embedding and head" },
        [ATTENTION] = { "attention", "attention and router" },
        [SHARED] = { "shared", "shared and dense FFN" },
        [EXPERTS] = { "experts", "experts" },
        [KV] = { "kv", "keys and values" },
        [WORK] = { "work", "activations, reading, process" },
    };
    const sl_shape *s = in->shape;
    const sl_plan *plan = &in->choice->plan;
    struct parts p = { .file = { 0 } };
    json_t *list = json_array();
    for (uint32_t i = 0; i < s->n_layer; i++) add_layer(in, i, &p);
    p.file[EMBEDDING] = p.ram[EMBEDDING] = (double)(s->embed_bytes + s->head_bytes);
    p.token[EMBEDDING] = (double)(s->head_bytes ? s->head_bytes : s->embed_bytes);
    p.ram[KV] = (double)plan->kv_bytes;
    p.ram[EXPERTS] = plan->weights == SL_WEIGHTS_STREAMED ? (double)plan->slots_bytes
                                                          : p.file[EXPERTS];
    double known = 0;
    for (int i = 0; i < N_PARTS; i++) known += p.ram[i];
    p.ram[WORK] = SL_MAX((double)plan->need_bytes - known, 0);
    for (int i = 0; i < N_PARTS; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:f, s:f, s:f}", "id", ids[i][0], "name",
                                              ids[i][1], "file", p.file[i], "ram", p.ram[i],
                                              "token", p.token[i]));
    return json_pack("{s:[{s:s, s:s}, {s:s, s:s}, {s:s, s:s}], s:o}", "bars", "key", "file",
                     "name", "the model", "key", "ram", "name", "in RAM", "key", "token", "name",
                     "a token", "parts", list);
}

/* ---- one pass of each kind ---- */

static sl_status simulate(sl_ctx *ctx, const report_in *in, sl_timeline *decode,
                          sl_timeline *prompt)
{
    sl_forecast f;
    sl_forecast_in fi = { in->machine, in->shape, &in->choice->plan, in->miss, in->load, NULL };
    *decode = *prompt = (sl_timeline){ .cap = MAX_SPANS };
    decode->spans = calloc(MAX_SPANS, sizeof *decode->spans);
    prompt->spans = calloc(MAX_SPANS, sizeof *prompt->spans);
    if (!decode->spans || !prompt->spans) return sl_fail(ctx, SL_E_NOMEM, "the report's passes");
    return sl_sim_run(ctx, &fi, decode, prompt, &f);
}

static json_t *whole(const report_in *in, const sl_timeline *decode, const sl_timeline *prompt,
                     json_t *sweeps)
{
    const sl_choice *c = in->choice;
    uint32_t threads = c->plan.n_threads ? c->plan.n_threads : in->machine->id.cores;
    uint32_t rows = SL_MIN(c->plan.max_rows, in->load.n_prompt);
    char date[16];
    time_t now = time(NULL);
    struct tm tm;
    strftime(date, sizeof date, "%Y-%m-%d", gmtime_r(&now, &tm));
    json_t *validation = in->validation ? json_incref(in->validation) : json_array();
    return json_pack(
        "{s:s, s:s, s:o, s:o, s:o, s:{s:i, s:i}, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o,"
        " s:{s:o, s:o}, s:o}",
        "sluice", SL_VERSION, "date", date, "resources", resource_names(), "model", model_json(in),
        "machine", report_machine(in->machine, in->shape, threads), "load", "n_prompt",
        in->load.n_prompt, "n_gen", in->load.n_gen, "plan",
        plan_json(&c->plan, &c->params, threads), "forecast", forecast_json(&c->forecast), "bound",
        forecast_json(&c->bound), "why", why_json(c), "gains", gains_json(c), "bytes",
        report_bytes(in), "roofline", report_roofline(in, decode, prompt), "sweeps", sweeps,
        "timeline", "decode", report_timeline(decode, 1), "prompt", report_timeline(prompt, rows),
        "validation", validation);
}

sl_status report_data(sl_ctx *ctx, const report_in *in, json_t **ret)
{
    sl_timeline decode = { .cap = 0 }, prompt = { .cap = 0 };
    json_t *sweeps = NULL;
    sl_status st = simulate(ctx, in, &decode, &prompt);
    if (st == SL_OK) st = report_sweeps(ctx, in, &sweeps);
    if (st == SL_OK) {
        *ret = whole(in, &decode, &prompt, sweeps);
        if (!*ret) st = sl_fail(ctx, SL_E_NOMEM, "the report's numbers");
    } else json_decref(sweeps);
    free(decode.spans);
    free(prompt.spans);
    return st;
}
