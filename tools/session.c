/* tools/session.c - a model opened and planned from the flags that all running commands share. */
#include "tools/session.h"

#include <float.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/sl_kernels.h"
#include "offload/sl_device.h"
#include "offload/sl_ecache.h"
#include "offload/sl_probe.h"
#include "offload/sl_store.h"
#include "perfmodel/sl_preset.h"
#include "runtime/base/sl_pool.h"
#include "tools/device_flag.h"
#include "tools/machine_file.h"

#define CTX_CAP 4096u   /* of the default context: 128 K positions can outweigh a model */

#define AT(field) offsetof(cli_engine_args, field)
static const cli_option engine_options[] = {
    { "-m,--model", CLI_STR, "FILE",
      "GGUF file, the first of a split one (default: the bundled model)", AT(model), 0, 0 },
    { "-c,--ctx-size", CLI_U32, "N",
      "positions of context; 0: the model's (default: that, at most 4096)", AT(n_ctx), 0, 1 << 24 },
    { "-t,--threads", CLI_U32, "N", "threads (default: physical cores)", AT(n_threads), 1, 4096 },
    { "-b,--batch-size", CLI_U32, "N", "rows of a pass: prompt tokens at a time (default: 512)",
      AT(max_rows), 1, 65536 },
    { "-ctk,--cache-type-k", CLI_CHOICE, "f16|f32|bf16|q8_0",
      "type of the KV cache, K and V alike (default: f16)", AT(kv_k), 0, 0 },
    { "-ctv,--cache-type-v", CLI_CHOICE, "f16|f32|bf16|q8_0", "the same", AT(kv_v), 0, 0 },
    { "--ram", CLI_BYTES, "SIZE", "memory budget, 8G or auto (default: auto, what is available)",
      AT(ram_bytes), 0, 0 },
    { "--policy", CLI_STR, "NAME",
      "which experts keep their place in RAM when not all fit: markov, lfu or lru (default: markov)",
      AT(policy), 0, 0 },
    { "--lookahead", CLI_CHOICE, "auto|off",
      "read experts that will probably be asked for, while the disk is idle (default: auto)",
      AT(lookahead), 0, 0 },
    { "--read-depth", CLI_U32, "N",
      "requests to the disk at a time (default: by the machine file, see `sluice probe`)",
      AT(read_depth), 1, 4096 },
    { "--read-size", CLI_BYTES, "SIZE", "of a request (default: the same)", AT(read_bytes), 0, 0 },
    { "--plan", CLI_STR, "FILE",
      "a plan that `sluice plan -o` saved; other flags go before it", AT(plan), 0, 0 },
    { "--force", CLI_FLAG, NULL, "take a plan that was made for other hardware", AT(force), 0, 0 },
    { "--device", CLI_STR, "NAME",
      "what computes: auto, cpu, cuda:N, or an emulated accelerator, for trying things out, as in "
      "emu:mem=512M,h2d=2G,d2h=2G,lat=10us,cores=1 (default: auto, which is cpu)",
      AT(device), 0, 0 },
    { "--vram", CLI_BYTES, "SIZE",
      "budget of the device's memory, 6G or auto (default: auto, what is free)", AT(vram_bytes), 0,
      0 },
    { "--isa", CLI_STR, "NAME",
      "at most these instructions: c, avx2, avxvnni, avx512, avx512vnni (default: all of the CPU's)",
      AT(isa), 0, 0 },
    { "--activations", CLI_CHOICE, "q8|f32",
      "what quantised weights are multiplied by: 8 bits as fast as can be, or floats to compare with "
      "(default: q8)",
      AT(activations), 0, 0 },
    { "--blas", CLI_CHOICE, "off|on",
      "prompts through OpenBLAS where weights are F32, F16 or BF16; bits may then depend on how a "
      "prompt is cut (default: off)",
      AT(blas), 0, 0 },
    { "--trace-routing", CLI_STR, "FILE",
      "write which experts were chosen, as JSON lines: one per token and layer", AT(trace), 0, 0 },
    { "-v,--verbose", CLI_FLAG, NULL, "more on stderr: notes, memory by account", AT(verbose), 0,
      0 },
};
#undef AT

#define AT(field) offsetof(cli_asked, field)
static const cli_option asked_options[] = {
    { "--quant", CLI_STR, "TYPE",
      "of a preset or config.json: what the weights are to be, such as Q4_K_M or Q8_0", AT(quant),
      0, 0 },
    { "--machine", CLI_STR, "FILE|NAME",
      "another machine: a file of `sluice probe`, or a described one (default: this one)",
      AT(machine), 0, 0 },
    { "-p,--n-prompt", CLI_U32, "N", "tokens of the prompt (default: 512)", AT(n_prompt), 1,
      1 << 24 },
    { "-n,--n-gen", CLI_U32, "N", "tokens written after it (default: 128)", AT(n_gen), 0, 1 << 24 },
    { "--trace", CLI_STR, "FILE",
      "how the model routes, recorded by `sluice run --trace-routing FILE`: a better forecast",
      AT(trace), 0, 0 },
};
#undef AT

#define AT(field) offsetof(cli_sampler_args, field)
static const cli_option sampler_options[] = {
    { "-s,--seed", CLI_SEED, "N", "random seed, -1: a new one each time (default: -1)",
      AT(p.seed), 0, 0 },
    { "--temp,--temperature", CLI_F32, "T",
      "temperature, 0: always the likeliest token (default: 0.8)",
      AT(p.temp), 0, 100 },
    { "--top-k", CLI_U32, "N", "draw from the N likeliest, 0: all (default: 40)",
      AT(p.top_k), 0, INT32_MAX },
    { "--top-p", CLI_F32, "P", "draw from the likeliest that make up P, 1: off (default: 0.95)",
      AT(p.top_p), 0, 1 },
    { "--min-p", CLI_F32, "P", "drop those below P times the likeliest, 0: off (default: 0.05)",
      AT(p.min_p), 0, 1 },
    { "--repeat-penalty", CLI_F32, "X", "make seen tokens less likely, 1: off (default: 1)",
      AT(p.repeat_penalty), FLT_MIN, 1000 },
    { "--repeat-last-n", CLI_U32, "N", "tokens that the penalty looks back on (default: 64)",
      AT(p.repeat_last_n), 0, 4096 },
    { "--ignore-eos", CLI_FLAG, NULL, "never draw a token that ends the text",
      AT(ignore_eog), 0, 0 },
    { "-r,--stop,--reverse-prompt", CLI_STRS, "TEXT", "end before TEXT would come; may be repeated",
      AT(stops), 0, 0 },
};
#undef AT

cli_engine_args cli_engine_defaults(void)
{
    return (cli_engine_args){ .n_ctx = CLI_CTX_DEFAULT, .ctx_cap = CTX_CAP,
                              .max_rows = sl_plan_defaults().max_rows };
}

cli_group cli_engine_group(cli_engine_args *a)
{
    return (cli_group){ "Model and machine", engine_options, SL_LEN(engine_options), a, 0 };
}

cli_group cli_engine_some(cli_engine_args *a, const char *const *names, size_t n, cli_option *rows)
{
    cli_group g = cli_engine_group(a);
    for (size_t i = 0; i < n; i++) rows[i] = *cli_find_option(&g, names[i]);
    g.options = rows;
    g.n = n;
    return g;
}

cli_asked cli_asked_defaults(void)
{
    return (cli_asked){ .n_prompt = 512, .n_gen = 128 };
}

cli_group cli_asked_group(cli_asked *a)
{
    return (cli_group){ "Forecast", asked_options, SL_LEN(asked_options), a, 0 };
}

cli_sampler_args cli_sampler_defaults(void)
{
    cli_sampler_args a = { .p = sl_sampler_defaults() };
    a.p.seed = cli_random_seed();
    return a;
}

cli_group cli_sampler_group(cli_sampler_args *a)
{
    return (cli_group){ "Sampling", sampler_options, SL_LEN(sampler_options), a, 0 };
}

void cli_sampler_warn(const cli_group *g)
{
    static const char *const random_only[] = { "--seed", "--top-k", "--top-p", "--min-p" };
    const cli_sampler_args *a = g->base;
    for (size_t i = 0; a->p.temp <= 0 && i < SL_LEN(random_only); i++)
        if (cli_given(g, random_only[i]))
            cli_warn("%s has no effect with --temp 0", random_only[i]);
    if (cli_given(g, "--repeat-last-n") && a->p.repeat_penalty == 1)
        cli_warn("--repeat-last-n has no effect without --repeat-penalty");
    if (cli_given(g, "--repeat-penalty") && a->p.repeat_penalty != 1 && !a->p.repeat_last_n)
        cli_warn("--repeat-penalty has no effect with --repeat-last-n 0");
}

static void write_trace(void *user, uint64_t pass, sl_seq seq, uint32_t pos, uint32_t layer,
                        const uint32_t *ids, uint32_t n)
{
    sl_trace_add(user, pass, seq, pos, layer, ids, n);
}

static sl_status open_trace(cli_session *s, const char *path)
{
    const sl_shape *shape = sl_model_shape(s->model);
    sl_trace_info info = { .model = sl_model_name(s->model), .n_layer = shape->n_layer };
    for (uint32_t l = 0; l < shape->n_layer; l++) {
        info.n_expert = SL_MAX(info.n_expert, shape->layers[l].n_expert);
        info.n_used = SL_MAX(info.n_used, shape->layers[l].n_used);
    }
    SL_TRY(sl_trace_create(s->ctx, path, &info, &s->trace));
    sl_engine_set_trace(s->engine, write_trace, s->trace);
    return SL_OK;
}

int cli_isa_mask(const char *isa, uint32_t *ret_mask)
{
    static const char *const names = "c, avx2, avxvnni, avx512 or avx512vnni";
    unsigned cpu = sl_cpu_detect(), mask = cpu;
    sl_kernels k;
    sl_status st = isa ? sl_cpu_from_isa(isa, cpu, &mask) : SL_OK;
    if (st == SL_OK) {
        *ret_mask = mask;
        return CLI_DONE;
    }
    sl_kernels_init(&k, cpu);
    if (st == SL_E_UNSUPPORTED)
        cli_fail("--isa %s: this CPU lacks it; the most it has is %s", isa, k.isa);
    else cli_fail("--isa %s: expected %s", isa, names);
    return CLI_USAGE;
}

int cli_check_threads(uint32_t n)
{
    sl_pool *pool = NULL;
    sl_ctx *ctx = n ? cli_ctx(false) : NULL;
    int code = n && !ctx ? CLI_FAILED : CLI_DONE;
    sl_status st = ctx ? sl_pool_create(ctx, n, &pool) : SL_OK;
    if (st == SL_E_ARG) {
        cli_fail("-t %" PRIu32 ": %s", n, sl_error(ctx));
        code = CLI_USAGE;
    }
    sl_pool_destroy(&pool);
    sl_ctx_destroy(&ctx);
    return code;
}

/* Whether OpenBLAS is to be used: warns where that has no effect. */
static bool want_blas(const cli_engine_args *a, const sl_shape *s)
{
    bool floats = a->activations != 0 || !s->head_int;
    if (!a->blas) return false;
    for (uint32_t l = 0; l < s->n_layer; l++) {
        const sl_layer_shape *ls = &s->layers[l];
        floats |= ls->qkv_flops_row > ls->qkv_int_flops_row
               || ls->post_flops_row > ls->post_int_flops_row
               || ls->expert_flops_row > ls->expert_int_flops_row
               || ls->ffn_flops_row > ls->ffn_int_flops_row;
    }
    bool found = floats && sl_device_has_blas();
    if (!floats) cli_warn("--blas on has no effect: the model has no F32, F16 or BF16 matrices");
    else if (!found)
        cli_warn("--blas on has no effect: no OpenBLAS in this build or on this machine");
    return found;
}

/* Which experts keep their slots. CLI_DONE, or CLI_USAGE after one line. */
static int parse_policy(const char *name, uint32_t *ret)
{
    sl_policy policy = SL_POLICY_DEFAULT;
    /* static takes a table of what is popular, which nobody has here */
    if (name && (!sl_policy_parse(name, &policy) || policy == SL_POLICY_STATIC)) {
        char names[160] = "";
        for (int i = 0; i < SL_N_POLICIES; i++)
            if (i != SL_POLICY_STATIC)
                snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s",
                         *names ? ", " : "", sl_policy_name((sl_policy)i));
        cli_fail("--policy %s: expected one of %s", name, names);
        return CLI_USAGE;
    }
    *ret = policy;
    return CLI_DONE;
}

/* A saved plan's decisions, which the flags that were given override. */
static int take_plan(const cli_engine_args *a, const cli_group *g, sl_ctx *ctx,
                     const sl_shape *shape, uint64_t available, sl_plan_params *p)
{
    cli_plan_file f;
    sl_machine_id now;
    if (cli_plan_load(ctx, a->plan, &f) != SL_OK) return cli_fail_ctx(ctx);
    if (f.shape_id != sl_plan_shape_id(shape))
        return cli_fail("%s was made for another model: %s, of shape %016" PRIx64
                        "; this one's is %016" PRIx64, a->plan, f.model, f.shape_id,
                        sl_plan_shape_id(shape));
    if (sl_probe_identify(ctx, &now) != SL_OK) return cli_fail_ctx(ctx);
    if (strcmp(f.cpu, now.cpu)) {
        if (!a->force)
            return cli_fail("%s was made for %s, this is %s: --force uses it all the same", a->plan,
                            f.cpu, now.cpu);
        cli_warn("%s was made for %s, this is %s", a->plan, f.cpu, now.cpu);
    }
    uint64_t ram = cli_given(g, "--ram") ? a->ram_bytes : f.params.ram_bytes;
    cli_set_budget(ram, available, p);
    p->n_ctx = f.params.n_ctx;
    p->n_threads = f.params.n_threads;
    p->max_rows = f.params.max_rows;
    p->kv_type = f.params.kv_type;
    p->policy = f.params.policy;
    p->no_ahead = f.params.no_ahead;
    p->read_bytes = f.params.read_bytes;
    p->read_depth = f.params.read_depth;
    p->max_dense_layers = f.params.max_dense_layers;
    return CLI_DONE;
}

/* What the flags say themselves. */
static int take_flags(const cli_engine_args *a, const cli_group *g, sl_plan_params *p)
{
    enum { ALIGN = 4096 };
    if (a->read_bytes > SL_STORE_MAX_REQUEST || a->read_bytes % ALIGN) {
        cli_fail("--read-size: expected a multiple of 4K, at most 64M");
        return CLI_USAGE;
    }
    bool both = cli_given(g, "-ctk") && cli_given(g, "-ctv");
    if (both && a->kv_k != a->kv_v)
        return cli_fail("-ctk and -ctv differ: the K and V caches have one type");
    if (cli_given(g, "-ctk") || cli_given(g, "-ctv"))
        p->kv_type = cli_kv_type(cli_given(g, "-ctk") ? a->kv_k : a->kv_v);
    if (cli_given(g, "--ctx-size")) p->n_ctx = a->n_ctx;
    if (cli_given(g, "--threads")) p->n_threads = a->n_threads;
    if (cli_given(g, "--batch-size")) p->max_rows = a->max_rows;
    if (cli_given(g, "--lookahead")) p->no_ahead = a->lookahead == 1;
    if (cli_given(g, "--read-depth")) p->read_depth = a->read_depth;
    if (cli_given(g, "--read-size")) p->read_bytes = (uint32_t)a->read_bytes;
    p->float_acts = a->activations != 0;
    return a->policy ? parse_policy(a->policy, &p->policy) : CLI_DONE;
}

int cli_take_device(const cli_engine_args *a, const cli_group *g, sl_ctx *ctx, sl_plan_params *p)
{
    char why[160];
    sl_accel accel;
    if (!cli_parse_device(a->device, &accel, why)) {
        cli_fail("%s", why);
        return CLI_USAGE;
    }
    if (!accel.kind) {
        if (cli_given(g, "--vram")) cli_warn("--vram has no effect: the CPU computes everything");
        return CLI_DONE;
    }
    if (a->vram_bytes) accel.mem_bytes = a->vram_bytes;
    if (sl_accel_find(ctx, &accel) != SL_OK) return cli_fail_ctx(ctx);
    if (accel.kind == SL_ACCEL_EMU && !p->n_threads) {      /* the device has cores of its own */
        uint32_t cores = sl_pool_cores(ctx);
        p->n_threads = cores > accel.n_cores ? cores - accel.n_cores : 1;
    }
    p->accel = accel;
    return CLI_DONE;
}

int cli_planner_params(const cli_engine_args *a, const cli_group *g, sl_ctx *ctx,
                       const sl_shape *shape, const sl_machine *m, uint64_t available_bytes,
                       uint32_t n_seq, sl_planner_params *ret)
{
    sl_planner_params q = { .base = sl_plan_defaults(), .keep = 0.05 };
    sl_plan_params *p = &q.base;
    int code = CLI_DONE;
    p->n_ctx = a->n_ctx;
    if (a->n_ctx == CLI_CTX_DEFAULT)
        p->n_ctx = shape->n_ctx_train ? SL_MIN(shape->n_ctx_train, a->ctx_cap) : a->ctx_cap;
    p->n_seq = n_seq;
    p->max_rows = a->max_rows;
    p->n_threads = a->n_threads;
    p->policy = SL_POLICY_DEFAULT;
    cli_set_budget(a->ram_bytes, available_bytes, p);
    cli_set_reads(m, p);
    if (a->plan) code = take_plan(a, g, ctx, shape, available_bytes, p);
    if (code == CLI_DONE) code = take_flags(a, g, p);
    /* two seconds beside whatever else runs say too little about threads */
    q.fix_threads = a->plan || a->n_threads || (m && m->source == SL_MACHINE_QUICK);
    q.fix_rows = a->plan || cli_given(g, "--batch-size");
    q.fix_ahead = a->plan || cli_given(g, "--lookahead");
    q.fix_reads = a->plan || cli_given(g, "--read-depth") || cli_given(g, "--read-size");
    q.fix_dense = a->plan != NULL;
    *ret = q;
    return code;
}

int cli_asked_params(const cli_asked *a, const cli_engine_args *e, const cli_group *g, sl_ctx *ctx,
                     const sl_shape *shape, const sl_machine *m, bool here, sl_planner_params *ret)
{
    int code = cli_planner_params(e, g, ctx, shape, m, cli_plan_available(m, here), 1, ret);
    if (code != CLI_DONE) return code;
    uint64_t n_ctx = ret->base.n_ctx ? ret->base.n_ctx : shape->n_ctx_train;
    ret->load = (sl_load){ a->n_prompt, a->n_gen };
    if ((uint64_t)a->n_prompt + a->n_gen <= n_ctx) return CLI_DONE;
    if (cli_given(g, "--ctx-size"))
        return cli_fail("%" PRIu32 " tokens of a prompt and %" PRIu32
                        " written do not fit a context of %" PRIu64 ": raise it with -c",
                        a->n_prompt, a->n_gen, n_ctx);
    ret->base.n_ctx = a->n_prompt + a->n_gen;
    return CLI_DONE;
}

/* Warns of flags that this plan has no use for. */
static void warn_of_plan(const cli_group *g, const sl_shape *shape, const sl_plan *plan)
{
    static const char *const streamed_only[] = { "--policy", "--lookahead", "--read-depth",
                                                "--read-size" };
    if (plan->n_ctx > shape->n_ctx_train && shape->n_ctx_train)
        cli_warn("a context of %" PRIu32 " is beyond the %" PRIu32
                 " positions the model was made for", plan->n_ctx, shape->n_ctx_train);
    for (size_t i = 0; plan->weights != SL_WEIGHTS_STREAMED && i < SL_LEN(streamed_only); i++)
        if (cli_given(g, streamed_only[i]))
            cli_warn("%s has no effect: all weights fit in RAM", streamed_only[i]);
}

/* The planner's choice for the load where this machine is known; the flags and defaults
 * otherwise. */
static int make_plan(const cli_engine_args *a, const cli_group *g, uint32_t n_seq,
                     const sl_load *load, cli_session *s, sl_plan *ret_plan)
{
    const sl_shape *shape = sl_model_shape(s->model);
    sl_planner_params q;
    sl_machine m;
    char need[24], free_now[24];
    /* measured were the kernels that run by default */
    if (a->isa || a->activations || a->blas) load = NULL;
    bool known = a->machine != NULL;
    if (known) m = *a->machine;
    else if (load) known = cli_machine_for_run(s->ctx, s->path, shape->total_bytes, &m);
    else known = cli_machine_kept(s->ctx, &m);
    int code = cli_planner_params(a, g, s->ctx, shape, known ? &m : NULL, cli_available_bytes(),
                                  n_seq, &q);
    if (code == CLI_DONE) code = cli_take_device(a, g, s->ctx, &q.base);
    if (code != CLI_DONE) return code;
    known = known && cli_machine_card(s->ctx, &q.base.accel, &m);
    q.base.cpu_mask = s->cpu_mask;
    q.base.blas = want_blas(a, shape);
    s->budget_bytes = q.base.ram_bytes;
    if (a->ready) *ret_plan = *a->ready;
    else if (load && known) {
        sl_choice c;
        sl_miss_model miss;
        q.load = *load;
        code = cli_miss_model(s->ctx, shape, NULL, n_seq == 1, &miss);
        if (code != CLI_DONE) return code;
        sl_status st = sl_planner_run(s->ctx, &m, shape, &miss, &q, false, &c);
        if (st == SL_E_UNSUPPORTED && q.base.accel.kind) {
            if (!a->no_banner)
                cli_note("no forecast: none knows of experts on disk beside a device");
            c = (sl_choice){ .n_tried = 0 };
            st = sl_plan_make(s->ctx, shape, &q.base, &c.plan);
        } else if (st == SL_OK) {
            s->has_forecast = c.plan.weights != SL_WEIGHTS_STREAMED || m.disk.n_curves;
            if (!s->has_forecast && !a->no_banner)
                cli_note("no forecast: the disk was not measured: `sluice probe` does it");
        }
        if (st != SL_OK) return cli_fail_ctx(s->ctx);
        *ret_plan = c.plan;
        s->forecast = c.forecast;
    } else if (sl_plan_make(s->ctx, shape, &q.base, ret_plan) != SL_OK) return cli_fail_ctx(s->ctx);
    if (!a->no_banner) warn_of_plan(g, shape, ret_plan);
    uint64_t there = cli_available_bytes();
    if (!a->no_banner && cli_given(g, "--ram") && there && ret_plan->need_bytes > there)
        cli_warn("%s are to be used and %s are free: the system may swap or end programs",
                 cli_bytes(ret_plan->need_bytes, need), cli_bytes(there, free_now));
    return CLI_DONE;
}

static void banner(const cli_session *s)
{
    char line[160];
    const sl_plan *p = sl_engine_plan(s->engine);
    sl_kernels k;
    sl_kernels_init(&k, sl_cpu_detect() & p->cpu_mask);
    char w[24], kv[24], stay[24], ring[24];
    cli_note("%s (%s, %s): %s; %" PRIu32 " thread%s, %s; context %" PRIu32 ", KV %s %s",
             sl_model_name(s->model), sl_model_arch(s->model), cli_bytes(p->weights_bytes, w),
             p->mode, p->n_threads, p->n_threads == 1 ? "" : "s", k.isa, p->n_ctx,
             cli_kv_name(p->kv_type), cli_bytes(p->kv_bytes, kv));
    if (p->blas)
        cli_note("OpenBLAS for prompts: the same bits whatever the batch and chunks are not "
                 "promised");
    uint32_t slots = 0, experts = 0;
    for (uint32_t c = 0; c < p->n_classes; c++) {
        slots += p->cls[c].n_slots;
        experts += p->cls[c].n_experts;
    }
    if (p->weights == SL_WEIGHTS_STREAMED)
        cli_note("memory for %" PRIu32 " of %" PRIu32 " experts (%s), %s of dense weights%s; %s",
                 slots, experts, cli_bytes(p->slots_bytes, w), cli_bytes(p->dense_bytes, kv),
                 p->section_bytes ? ", the rest of them streamed" : "",
                 sl_engine_store_mode(s->engine));
    if (p->split.accel.kind)
        cli_note("device: %s of %s; %s of weights stay there (%" PRIu32 " of %" PRIu32
                 " layers' dense matrices, %" PRIu32 " experts of each), a ring of %s; keys and "
                 "values %s, head %s",
                 cli_bytes(p->split.need_bytes, w), cli_bytes(p->split.accel.mem_bytes, kv),
                 cli_bytes(p->split.dense_bytes + p->split.stay_bytes, stay),
                 p->split.n_dense_layers, sl_model_shape(s->model)->n_layer, p->split.n_stay,
                 cli_bytes(p->split.ring_bytes, ring),
                 p->split.kv == SL_ON_DEVICE ? "there" : "in RAM",
                 p->split.head == SL_ON_DEVICE ? "there" : "on the CPU");
    if (s->has_forecast) cli_note("%s", cli_forecast_line(&s->forecast, line));
}

/* Reading weights, on a terminal, where it takes longer than a moment. */
struct loading {
    double open_s;
    double start_s, shown_s;    /* of reading: memory is taken before it */
    bool tty, shown;
};

static void on_loading(void *user, uint64_t done, uint64_t all)
{
    struct loading *l = user;
    double now = cli_now_s();
    char size[24];
    if (!l->start_s) l->start_s = now;
    if (!l->tty || now - l->open_s < 1 || now - l->shown_s < 0.1) return;
    l->shown_s = now;
    l->shown = true;
    double rate = (double)done / SL_MAX(now - l->start_s, 1e-3);
    fprintf(stderr, "\rsluice: reading weights: %.0f %% of %s, %.2f GB/s, %.0f s left\033[K",
            100.0 * (double)done / (double)all, cli_bytes(all, size), rate * 1e-9,
            rate > 0 ? (double)(all - done) / rate : 0);
}

static sl_status open_engine(cli_session *s, const sl_plan *plan)
{
    struct loading l = { .open_s = cli_now_s(), .tty = isatty(2) };
    sl_model_set_progress(s->model, on_loading, &l);
    sl_status st = sl_engine_open(s->ctx, s->model, plan, &s->engine);
    sl_model_set_progress(s->model, NULL, NULL);
    if (l.shown) fputs("\r\033[K", stderr);
    return st;
}

int cli_session_model(const cli_engine_args *a, cli_session *ret)
{
    cli_session *s = ret;
    *s = (cli_session){ .verbose = a->verbose };
    double start = cli_now_s();
    int code = cli_isa_mask(a->isa, &s->cpu_mask);
    if (code == CLI_DONE) code = cli_check_threads(a->n_threads);
    if (code != CLI_DONE) return code;
    s->ctx = cli_ctx(a->verbose);
    if (!s->ctx) return CLI_FAILED;
    s->path = cli_model_path(a->model);
    if (!s->path) return CLI_FAILED;
    if (sl_model_open(s->ctx, s->path, &s->model) != SL_OK) {
        const char *why = sl_error(s->ctx);     /* names the file once, whoever wrote it */
        code = strstr(why, s->path) ? cli_fail("%s", why) : cli_fail("%s: %s", s->path, why);
        if (sl_preset_find(s->path))
            cli_note("%s is a preset: `sluice plan -m %s` forecasts it, `sluice synth --like %s` "
                     "writes a model of its shape", s->path, s->path, s->path);
        return code;
    }
    s->vocab = sl_model_vocab(s->model);
    if (!s->vocab && !a->no_text)
        return cli_fail("%s has no tokenizer: text cannot be made into tokens", s->path);
    s->load_s = cli_now_s() - start;
    return CLI_DONE;
}

int cli_session_start(const cli_engine_args *a, const cli_group *g, uint32_t n_seq,
                      const sl_load *load, cli_session *s)
{
    double start = cli_now_s();
    sl_plan plan;
    int code = make_plan(a, g, n_seq, load, s, &plan);
    if (code != CLI_DONE) return code;
    if (a->n_prompt > plan.n_ctx)
        return cli_fail("the prompt has %" PRIu32 " tokens and the context %" PRIu32
                        ": raise it with -c", a->n_prompt, plan.n_ctx);
    if (open_engine(s, &plan) != SL_OK) return cli_fail_ctx(s->ctx);
    s->n_ctx = sl_engine_plan(s->engine)->n_ctx;
    if (a->trace && open_trace(s, a->trace) != SL_OK) return cli_fail_ctx(s->ctx);
    s->load_s += cli_now_s() - start;
    if (!a->no_banner) banner(s);
    return CLI_DONE;
}

int cli_session_open(const cli_engine_args *a, const cli_group *g, uint32_t n_seq, cli_session *ret)
{
    int code = cli_session_model(a, ret);
    return code == CLI_DONE ? cli_session_start(a, g, n_seq, NULL, ret) : code;
}

int cli_encode_open(cli_session *s, const char *text, size_t n, bool first, int32_t **ret_ids,
                    uint32_t *ret_n)
{
    if (sl_vocab_encode(s->ctx, s->vocab, text, n, first, true, ret_ids, ret_n) != SL_OK)
        return cli_fail_ctx(s->ctx);
    int32_t eos = sl_vocab_eos(s->vocab);
    if (first && sl_vocab_add_eos(s->vocab) && *ret_n && (*ret_ids)[*ret_n - 1] == eos) --*ret_n;
    return CLI_DONE;
}

bool cli_session_json(const cli_session *s, json_t *obj)
{
    const sl_plan *p = sl_engine_plan(s->engine);
    int bad = json_object_set_new(obj, "model", json_string(sl_model_name(s->model)));
    bad |= json_object_set_new(obj, "arch", json_string(sl_model_arch(s->model)));
    bad |= json_object_set_new(obj, "mode", json_string(p->mode));
    bad |= json_object_set_new(obj, "threads", json_integer(p->n_threads));
    bad |= json_object_set_new(obj, "n_ctx", json_integer(p->n_ctx));
    bad |= json_object_set_new(obj, "peak_rss_bytes", json_integer((json_int_t)cli_peak_rss()));
    if (s->budget_bytes)
        bad |= json_object_set_new(obj, "budget_bytes", json_integer((json_int_t)s->budget_bytes));
    return !bad;
}

int cli_session_close(cli_session *s, int code)
{
    if (s->trace && sl_trace_close(s->ctx, &s->trace) != SL_OK) {
        int failed = cli_fail_ctx(s->ctx);
        code = code == CLI_DONE ? failed : code;
    }
    if (s->engine) sl_engine_close(&s->engine);
    if (s->model) sl_model_close(&s->model);
    free(s->path);
    sl_ctx_destroy(&s->ctx);
    *s = (cli_session){ .vocab = NULL };
    return code;
}
