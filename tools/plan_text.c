/* tools/plan_text.c - a plan and its forecast for a person, and as JSON. */
#include "tools/plan_text.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* ---- the model ---- */

/* Bytes that one token computes with. The embedding is a row. */
static uint64_t active_bytes(const sl_shape *s)
{
    uint64_t bytes = s->head_bytes ? s->head_bytes : s->embed_bytes;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const sl_layer_shape *l = &s->layers[i];
        bytes += l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes
               + l->n_used * l->expert_bytes;
    }
    return bytes;
}

/* Experts of the layer that has most; used [1]: of these a token uses. */
static uint32_t experts(const sl_shape *s, uint32_t *ret_used)
{
    uint32_t most = *ret_used = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        if (s->layers[i].n_expert <= most) continue;
        most = s->layers[i].n_expert;
        *ret_used = s->layers[i].n_used;
    }
    return most;
}

static uint64_t all_experts(const sl_shape *s)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) n += s->layers[i].n_expert;
    return n;
}

static uint64_t slots(const sl_plan *p)
{
    uint64_t n = 0;
    for (uint32_t c = 0; c < p->n_classes; c++) n += p->cls[c].n_slots;
    return n;
}

static void print_model(const plan_view *v)
{
    const sl_shape *s = v->src->shape;
    char size[24], used[24];
    uint32_t n_used, n = experts(s, &n_used);
    printf("%s (%s%s%s): %s\n", v->src->title, v->src->arch, *v->src->quant ? ", " : "",
           v->src->quant, cli_bytes(s->total_bytes, size));
    bool small = s->n_params < 100000000;
    const char *unit = small ? "million" : "billion";
    double scale = small ? 1e-6 : 1e-9;
    printf("  %.1f %s weights; each token computes with %.1f %s of them, %s\n",
           (double)s->n_params * scale, unit, (double)v->src->active_params * scale, unit,
           cli_bytes(active_bytes(s), used));
    if (n)
        printf("  %" PRIu32 " layers; of the %" PRIu32 " experts of a layer a token uses %" PRIu32
               "\n", s->n_layer, n, n_used);
    else printf("  %" PRIu32 " layers, no experts: every token needs all weights\n", s->n_layer);
}

static void print_machine(const plan_view *v)
{
    const sl_machine *m = v->machine;
    char ram[24], vram[24];
    uint32_t bytes, depth;
    double best;
    printf("\n%s: %s, %" PRIu32 " cores, %s of RAM read at %.1f GB/s",
           v->here ? "This machine" : "Machine", m->id.cpu, m->id.cores,
           cli_bytes(m->id.ram_bytes, ram), sl_machine_dram_s(m, m->id.cores) * 1e-9);
    if (sl_machine_disk_best(m, &bytes, &depth, &best))
        printf(", disk read at %.2f GB/s\n", best * 1e-9);
    else printf(", disk not measured\n");
    for (uint32_t i = 0; i < m->n_gpus; i++)
        printf("  with %s, %s (first without it)\n", m->gpu[i].name,
               cli_bytes(m->gpu[i].vram_bytes, vram));
}

/* ---- where the bytes lie ---- */

static void row(const char *what, uint64_t bytes, const char *where)
{
    char size[24];
    printf("  %-34s %10s%s%s\n", what, cli_bytes(bytes, size), *where ? "  " : "", where);
}

static void print_places(const plan_view *v)
{
    const sl_plan *p = &v->choice->plan;
    const sl_plan_params *q = &v->choice->params;
    char text[160], size[24];
    uint64_t n = slots(p), all = all_experts(v->src->shape);
    uint64_t weights = p->dense_bytes + p->slots_bytes;
    printf("\nWhere the bytes lie, of a budget of %s:\n",
           q->ram_bytes ? cli_bytes(q->ram_bytes, size) : "any size");
    if (p->weights == SL_WEIGHTS_MAPPED) {
        weights = v->src->shape->total_bytes;
        row("weights", weights, "in the system's file cache, mapped");
    } else {
        text[0] = 0;
        if (p->n_dense_layers < v->src->shape->n_layer)
            snprintf(text, sizeof text, "of %" PRIu32 " of %" PRIu32
                     " layers; the others' are read from disk for each token", p->n_dense_layers,
                     v->src->shape->n_layer);
        row(all ? "weights that every token needs" : "weights",
            p->dense_bytes + p->section_bytes * 2, text);
    }
    if (all && p->weights != SL_WEIGHTS_MAPPED) {
        snprintf(text, sizeof text, "all %" PRIu64, all);
        if (p->weights == SL_WEIGHTS_STREAMED)
            snprintf(text, sizeof text, "%" PRIu64 " of %" PRIu64 " (%.0f %%), the others are read "
                     "as tokens want them", n, all, 100.0 * (double)n / (double)all);
        row("experts", p->slots_bytes, text);
    }
    snprintf(text, sizeof text, "keys and values (%s)", cli_kv_name(p->kv_type));
    char context[64];
    snprintf(context, sizeof context, "a context of %" PRIu32 " tokens", p->n_ctx);
    row(text, p->kv_bytes, context);
    uint64_t known = weights + p->section_bytes * 2 + p->kv_bytes + p->scratch_bytes;
    row("buffers of a pass", p->scratch_bytes, "");
    row("the program, tables", p->need_bytes - SL_MIN(known, p->need_bytes), "");
    row("together", p->need_bytes, "");
    if (!p->split.accel.kind) return;
    printf("Of these on the device, of %s:\n", cli_bytes(p->split.accel.mem_bytes, size));
    plan_print_device(v->src->shape, p);
    plan_print_work(v->src->shape, p);
}

/* ---- how fast ---- */

static void rates(const char *what, double forecast, double bound, const char *unit, int digits)
{
    printf("  %-34s %8.*f %-6s %8.*f %s\n", what, digits, forecast, unit, digits, bound, unit);
}

/* Three figures, of what is below 1 two. */
static int digits(double v)
{
    int n = v >= 100 ? 0 : v >= 10 ? 1 : 2;
    for (double least = 0.1; v > 0 && v < least && n < 6; least /= 10) n++;
    return n;
}

/* What is read before the first token. */
static uint64_t start_bytes(const plan_view *v)
{
    const sl_plan *p = &v->choice->plan;
    return p->weights == SL_WEIGHTS_STREAMED ? p->dense_bytes : v->src->shape->total_bytes;
}

static double start_s(const plan_view *v)
{
    uint32_t bytes, depth;
    double best;
    if (!sl_machine_disk_best(v->machine, &bytes, &depth, &best)) return 0;
    return (double)start_bytes(v) / best;
}

static void print_rates(const plan_view *v, const sl_choice *c)
{
    const sl_forecast *f = &c->forecast, *b = &c->bound;
    char what[80];
    printf("\n%-36s %10s    %13s\n", "How fast", "forecast", "at most");
    snprintf(what, sizeof what, "reading a prompt of %" PRIu32 " token%s", v->load.n_prompt,
             v->load.n_prompt == 1 ? "" : "s");
    rates(what, f->prompt.tok_per_s, b->prompt.tok_per_s, "tok/s", digits(f->prompt.tok_per_s));
    snprintf(what, sizeof what, "then writing %" PRIu32 " token%s", v->load.n_gen,
             v->load.n_gen == 1 ? "" : "s");
    if (v->load.n_gen)
        rates(what, f->decode.tok_per_s, b->decode.tok_per_s, "tok/s", digits(f->decode.tok_per_s));
    rates("first token after", f->ttft_s, b->ttft_s, "s", digits(f->ttft_s));
}

static void print_forecast(const plan_view *v)
{
    const sl_forecast *f = &v->choice->forecast;
    char size[24];
    print_rates(v, v->choice);
    if (start_s(v) > 0)
        printf("  %-34s %8.1f s, %s from disk\n", "loading before that, the first time", start_s(v),
               cli_bytes(start_bytes(v), size));
    else printf("  loading before that                unknown: the disk was not measured\n");
    printf("Grade: %s (%s).\n", sl_grade_name(f->grade), cli_grade_text(f->grade));
    const char *raise = cli_grade_raise(f->grade);
    bool moe = all_experts(v->src->shape) && v->choice->plan.weights == SL_WEIGHTS_STREAMED;
    if (raise && (f->grade != SL_GRADE_COLD || moe)) printf("Better: %s.\n", raise);
}

static void print_limit(const char *what, const sl_phase *p)
{
    if (!(p->seconds > 0)) return;
    printf("%s is limited by %s (busy %.0f %% of the time), then by %s (%.0f %%).\n", what,
           sl_resource_name(p->binding), 100 * p->busy_s[p->binding] / p->seconds,
           sl_resource_name(p->next), 100 * p->busy_s[p->next] / p->seconds);
}

static void print_gains(const sl_choice *c)
{
    if (!c->n_gains) return;
    printf("\nWhat more would give:\n");
    for (uint32_t i = 0; i < c->n_gains; i++) {
        const sl_gain *g = &c->gains[i];
        double write = g->decode_tok_per_s, read = g->prompt_tok_per_s;
        double a = 100 * write / fmax(c->forecast.decode.tok_per_s, 1e-9);
        double b = 100 * read / fmax(c->forecast.prompt.tok_per_s, 1e-9);
        printf("  %-26s", g->what);
        if (a < 1 && b < 1) printf(" next to nothing");
        if (a >= 1) printf(" writing %+.*f tok/s (%+.0f %%)", digits(write), write, a);
        if (b >= 1)
            printf("%s prompt %+.*f tok/s (%+.0f %%)", a >= 1 ? "," : "", digits(read), read, b);
        putchar('\n');
    }
}

static void print_why(const sl_choice *c)
{
    printf("\nChosen by forecast (%" PRIu32 " plans compared):\n", c->n_tried);
    for (uint32_t i = 0; i < c->n_why; i++) printf("  %s\n", c->why[i]);
}

/* The bound is of any program: it says whether a GPU is worth it. */
static void print_gpu(const plan_view *v, uint32_t i)
{
    const sl_machine_gpu *g = &v->machine->gpu[i];
    const sl_choice *c = &v->gpu[i].choice;
    const sl_forecast *bound = &v->gpu[i].bound;
    char size[24];
    if (!v->gpu[i].planned) {
        printf("\nWith the %s: at most %.0f tok/s of the prompt, %.1f tok/s written (a bound).\n"
               "No plan: %s.\n", g->name, bound->prompt.tok_per_s, bound->decode.tok_per_s,
               v->gpu[i].why_not);
        return;
    }
    printf("\nWith the %s, of %s (this path has run on emulated devices only):\n", g->name,
           cli_bytes(c->plan.split.accel.mem_bytes, size));
    plan_print_device(v->src->shape, &c->plan);
    plan_print_work(v->src->shape, &c->plan);
    print_rates(v, c);
    printf("Any program: at most %.0f tok/s of the prompt, %.1f tok/s written.\n",
           bound->prompt.tok_per_s, bound->decode.tok_per_s);
    print_limit("Writing", &c->forecast.decode);
    print_limit("Reading the prompt", &c->forecast.prompt);
    print_gains(c);
    print_why(c);
}

static void print_run_line(const plan_view *v)
{
    if (v->src->runs) printf("\nRun it:\n  %s\n", v->command);
    else printf("\nsluice cannot run this model yet (%s); this is what it would take.\n",
                v->src->why_not);
}

void plan_print(const plan_view *v)
{
    const sl_choice *c = v->choice;
    const sl_forecast *f = &c->forecast;
    char size[24];
    print_model(v);
    print_machine(v);
    print_places(v);
    print_forecast(v);
    putchar('\n');
    print_limit("Writing", &f->decode);
    if (c->plan.weights == SL_WEIGHTS_STREAMED && v->load.n_gen)
        printf("  %.*f %% of the experts that tokens want are in RAM; %s are read from disk for "
               "each token.\n", f->hit_rate < 0.99 ? 0 : 1, 100 * f->hit_rate,
               cli_bytes((uint64_t)f->disk_bytes_per_token, size));
    print_limit("Reading the prompt", &f->prompt);
    print_gains(c);
    print_why(c);
    for (uint32_t i = 0; i < v->machine->n_gpus && !c->params.accel.kind; i++) print_gpu(v, i);
    print_run_line(v);
}

/* ---- a file of requests ---- */

static void print_tries(const sl_queue_choice *c)
{
    const sl_plan *p = &c->plan;
    double best = INFINITY;
    for (uint32_t i = 0; i < c->n_tries; i++) best = fmin(best, c->tries[i].seconds);
    bool first = true;
    for (uint32_t i = 0; i < c->n_tries; i++) {
        const sl_queue_try *t = &c->tries[i];
        uint64_t room = (uint64_t)p->n_kv_blocks * p->kv_block_rows;
        if (t->n_seq == p->n_seq && t->max_rows == p->max_rows && t->kv_positions == room) continue;
        if (first) printf("\nChosen by forecast; beside it:\n");
        first = false;
        printf("  %4" PRIu32 " at once, room for %7" PRIu64 " positions, passes of %4" PRIu32
               ": %+5.0f %%\n", t->n_seq, t->kv_positions, t->max_rows,
               100 * (t->seconds / best - 1));
    }
}

void plan_print_queue(const plan_view *v, uint64_t n_requests, const sl_queue_choice *c)
{
    const sl_queue_forecast *f = &c->forecast;
    char time[32], size[24];
    print_model(v);
    print_machine(v);
    print_places(v);
    printf("\n%" PRIu64 " request%s of %" PRIu32 " tokens, each answered with %" PRIu32 ":\n",
           n_requests, n_requests == 1 ? "" : "s", v->load.n_prompt, v->load.n_gen);
    printf("  %-34s %8s\n", "all of them take", cli_duration(f->seconds, time));
    printf("  %-34s %8.*f tok/s, at most %.*f\n", "prompts and answers", digits(f->tok_per_s),
           f->tok_per_s, digits(c->bound.tok_per_s), c->bound.tok_per_s);
    printf("  %-34s %8.*f tok/s\n", "once the pipeline is full", digits(f->full_tok_per_s),
           f->full_tok_per_s);
    printf("  %-34s %8.0f thousand tokens, %.0f thousand of them written\n", "in an hour",
           3.6 * f->tok_per_s, 3.6 * f->gen_tok_per_s);
    printf("  %" PRIu32 " at once in room for %" PRIu64 " positions, passes of up to %" PRIu32
           " tokens, %.0f on average\n", c->plan.n_seq,
           (uint64_t)c->plan.n_kv_blocks * c->plan.kv_block_rows, c->plan.max_rows, f->pass_rows);
    printf("Grade: %s (%s).\n", sl_grade_name(f->grade), cli_grade_text(f->grade));
    printf("Limited by %s (busy %.0f %% of the time), then by %s (%.0f %%).\n",
           sl_resource_name(f->binding), 100 * f->busy_s[f->binding] / f->seconds,
           sl_resource_name(f->next), 100 * f->busy_s[f->next] / f->seconds);
    if (f->disk_bytes > 0)
        printf("  A pass takes %s and reads %s from disk.\n",
               cli_duration(f->seconds / f->passes, time),
               cli_bytes((uint64_t)(f->disk_bytes / f->passes), size));
    print_tries(c);
    print_run_line(v);
}

/* ---- JSON ---- */

static json_t *model_json(const plan_view *v)
{
    char id[20];
    snprintf(id, sizeof id, "%016" PRIx64, sl_plan_shape_id(v->src->shape));
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:b}", "name", v->src->title, "arch",
                     v->src->arch, "quant", v->src->quant, "bytes",
                     (json_int_t)v->src->shape->total_bytes, "weights",
                     (json_int_t)v->src->shape->n_params, "active_weights",
                     (json_int_t)v->src->active_params, "active_bytes",
                     (json_int_t)active_bytes(v->src->shape), "shape", id, "runs",
                     v->src->runs);
}

static json_t *machine_json(const plan_view *v)
{
    const sl_machine *m = v->machine;
    uint32_t bytes, depth;
    double best;
    if (!sl_machine_disk_best(m, &bytes, &depth, &best)) best = 0;
    return json_pack("{s:s, s:I, s:I, s:s, s:b, s:f, s:f}", "cpu", m->id.cpu, "cores",
                     (json_int_t)m->id.cores, "ram_bytes", (json_int_t)m->id.ram_bytes, "source",
                     sl_machine_source_name(m->source), "here", v->here, "dram_bytes_per_s",
                     sl_machine_dram_s(m, m->id.cores), "disk_bytes_per_s", best);
}

static json_t *placement_json(const plan_view *v)
{
    const sl_plan *p = &v->choice->plan;
    static const char *const places[] = { "resident", "mapped", "streamed" };
    json_t *device = p->split.accel.kind ? plan_device_json(p) : NULL;
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o*}", "mode",
                     p->mode, "weights", places[p->weights], "budget_bytes",
                     (json_int_t)p->ram_bytes, "need_bytes", (json_int_t)p->need_bytes,
                     "dense_bytes", (json_int_t)p->dense_bytes, "dense_layers", (json_int_t)p->n_dense_layers,
                     "experts_bytes", (json_int_t)p->slots_bytes, "experts_in_ram",
                     (json_int_t)slots(p), "experts", (json_int_t)all_experts(v->src->shape),
                     "kv_bytes", (json_int_t)p->kv_bytes, "scratch_bytes",
                     (json_int_t)p->scratch_bytes, "load_bytes", (json_int_t)start_bytes(v),
                     "device", device);
}

static json_t *gains_json(const sl_choice *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->n_gains; i++) {
        const sl_gain *g = &c->gains[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:f, s:f}", "what", g->what, "on",
                                              sl_resource_name(g->on), "prompt_tok_per_s",
                                              g->prompt_tok_per_s, "decode_tok_per_s",
                                              g->decode_tok_per_s));
    }
    return list;
}

static json_t *why_json(const sl_choice *c)
{
    json_t *why = json_array();
    for (uint32_t i = 0; i < c->n_why; i++) json_array_append_new(why, json_string(c->why[i]));
    return why;
}

static json_t *gpus_json(const plan_view *v)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < v->machine->n_gpus && !v->choice->params.accel.kind; i++) {
        const sl_choice *c = &v->gpu[i].choice;
        json_t *obj = json_pack("{s:s, s:I, s:o}", "name", v->machine->gpu[i].name, "vram_bytes",
                                (json_int_t)v->machine->gpu[i].vram_bytes, "bound",
                                cli_forecast_json(&v->gpu[i].bound));
        json_t *plan = NULL;
        if (v->gpu[i].planned)
            plan = json_pack("{s:o, s:o, s:o, s:o, s:o, s:I, s:I}", "placement",
                             plan_device_json(&c->plan), "forecast",
                             cli_forecast_json(&c->forecast), "bound", cli_forecast_json(&c->bound),
                             "why", why_json(c), "gains", gains_json(c), "threads",
                             (json_int_t)c->plan.n_threads, "max_rows",
                             (json_int_t)c->plan.max_rows);
        if (obj && plan) json_object_set_new(obj, "plan", plan);
        else if (obj) json_object_set_new(obj, "no_plan", json_string(v->gpu[i].why_not));
        json_array_append_new(list, obj);
    }
    return list;
}

json_t *plan_json(const plan_view *v)
{
    const sl_choice *c = v->choice;
    json_t *root = json_pack(
        "{s:i, s:o, s:o, s:{s:I, s:I}, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:s}", "sluice_plan", 1,
        "model", model_json(v), "machine", machine_json(v), "load", "n_prompt",
        (json_int_t)v->load.n_prompt, "n_gen", (json_int_t)v->load.n_gen, "params",
        cli_plan_params_json(&c->params), "placement", placement_json(v), "forecast",
        cli_forecast_json(&c->forecast), "bound", cli_forecast_json(&c->bound), "why",
        why_json(c), "gains", gains_json(c), "gpus", gpus_json(v), "command", v->command);
    if (root && start_s(v) > 0 && json_object_set_new(root, "load_s", json_real(start_s(v)))) {
        json_decref(root);
        root = NULL;
    }
    return root;
}

json_t *plan_queue_json(const plan_view *v, uint64_t n_requests, const sl_queue_choice *c)
{
    json_t *tried = json_array(), *forecast = json_object();
    const sl_queue_forecast *f = &c->forecast;
    sl_plan_params params = c->params;
    if (!params.n_threads) params.n_threads = v->machine->id.cores;     /* as forecast */
    bool ok = forecast && cli_queue_json(c, forecast);
    for (uint32_t i = 0; i < c->n_tries; i++) {
        const sl_queue_try *t = &c->tries[i];
        json_array_append_new(tried, json_pack("{s:I, s:I, s:I, s:f}", "sequences",
                                               (json_int_t)t->n_seq, "max_rows",
                                               (json_int_t)t->max_rows, "kv_positions",
                                               (json_int_t)t->kv_positions, "seconds",
                                               t->seconds));
    }
    json_t *root = json_pack(
        "{s:o, s:o, s:{s:I, s:I, s:I}, s:o, s:o, s:o, s:f, s:f, s:f, s:s, s:s, s:I, s:o, s:s}",
        "model", model_json(v), "machine", machine_json(v), "load", "requests",
        (json_int_t)n_requests, "n_prompt", (json_int_t)v->load.n_prompt, "n_gen",
        (json_int_t)v->load.n_gen, "params", cli_plan_params_json(&params), "placement",
        placement_json(v), "forecast", forecast, "tok_per_hour", 3600 * f->tok_per_s, "pass_rows",
        f->pass_rows, "passes", f->passes, "binding", sl_resource_name(f->binding), "next",
        sl_resource_name(f->next), "sequences", (json_int_t)c->plan.n_seq, "tried", tried,
        "command", v->command);
    if (ok) return root;
    json_decref(root);
    return NULL;
}
