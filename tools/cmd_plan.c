/* tools/cmd_plan.c - `sluice plan`: what a model would take on a machine, and how fast it would be,
 * from its header alone. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "perfmodel/sl_lens.h"
#include "runtime/base/sl_json.h"
#include "tools/machine_file.h"
#include "tools/plan_text.h"
#include "tools/session.h"

struct args {
    const char *out;
    uint32_t n_requests, parallel;
    bool json, llama_cpp;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "--requests", CLI_U32, "N",
      "a file of so many of these for `sluice batch`: tokens an hour, and how many at once",
      AT(n_requests), 1, 1e9 },
    { "-np,--parallel", CLI_U32, "N",
      "with --requests: sequences at once (default: as many as pay)", AT(parallel), 1, 4096 },
    { "--json", CLI_FLAG, NULL, "one JSON object on stdout", AT(json), 0, 0 },
    { "-o,--output", CLI_STR, "FILE", "save the plan, for `sluice run --plan FILE`", AT(out), 0,
      0 },
    { "--llama-cpp", CLI_FLAG, NULL, "print the flags that place the model so in llama.cpp",
      AT(llama_cpp), 0, 0 },
};
#undef AT

static const char *const about =
    "Says before a download, from a model's header, a preset's name (`sluice synth --list`) or a "
    "Hugging Face config.json, how fast the model would be on this machine or another one: where "
    "every byte would lie, the forecast beside the bound that physics sets, what limits it, and "
    "what more of each part would give. No weight is read and nothing is run. With --requests the "
    "same for a file of so many prompts of -p tokens, each answered with -n.";

/* The options that decide something, as they were given. */
static char *command_line(int argc, char **argv, const char *model, const sl_source *src,
                          bool batch, bool device)
{
    static const char *const plain =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+=@%-";
    static const char *const keep[] = { "-c", "--ctx-size", "-t", "--threads", "-b", "--batch-size",
                                        "-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "--ram",
                                        "--policy", "--lookahead", "--read-depth", "--read-size",
                                        "-np", "--parallel", "--device", "--vram" };
    char *line = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&line, &n);
    if (!out) return NULL;
    const char *file = src->kind == SL_SOURCE_GGUF ? src->path : "MODEL.gguf";
    const char *quote = file[strspn(file, plain)] ? "'" : "";
    fprintf(out, "sluice %s", batch ? "batch" : "run");
    if (model) fprintf(out, " -m %s%s%s", quote, file, quote);
    for (int i = 1; i < argc; i++)
        for (size_t k = 0; k < SL_LEN(keep) - !device; k++) {   /* --vram needs one */
            size_t len = strlen(keep[k]);
            if (!strcmp(argv[i], keep[k]) && i + 1 < argc)
                fprintf(out, " %s %s", argv[i], argv[i + 1]);
            else if (!strncmp(argv[i], keep[k], len) && argv[i][len] == '=' && len > 2)
                fprintf(out, " %s", argv[i]);
        }
    fprintf(out, batch ? " -i prompts.jsonl -o results.jsonl" : " -p \"...\"");
    if (!fclose(out)) return line;
    free(line);
    return NULL;
}

static int show(const struct args *a, sl_ctx *ctx, const plan_view *v)
{
    json_t *obj = a->json || a->out ? plan_json(v) : NULL;
    if ((a->json || a->out) && !obj)
        return cli_fail("the plan is no valid JSON, or memory ran out");
    if (a->out) {
        if (sl_json_save(ctx, json_incref(obj), a->out) != SL_OK) {
            json_decref(obj);
            return cli_fail_ctx(ctx);
        }
        cli_note("plan kept in %s: `sluice run --plan %s`", a->out, a->out);
    }
    if (a->json) return cli_print_json(obj, CLI_DONE);
    json_decref(obj);
    if (a->llama_cpp) plan_print_llama_cpp(v);
    else plan_print(v);
    return cli_end_stdout(CLI_DONE);
}

static int need_disk(const plan_view *v)
{
    if (v->choice->plan.weights != SL_WEIGHTS_STREAMED || v->machine->disk.n_curves)
        return CLI_DONE;
    return cli_fail("%s does not fit in RAM whole, and nobody measured the machine's disk: "
                    "`sluice probe` does", v->src->title);
}

/* A file of requests of one length. */
static int plan_queue(const struct args *a, const cli_asked *asked, const cli_group *g,
                      sl_ctx *ctx, const sl_miss_model *miss, sl_planner_params *q, plan_view *v)
{
    sl_lens_length length = { asked->n_prompt, asked->n_gen, 1 };
    sl_workload queue = { &length, 1, a->n_requests };
    sl_queue_choice c;
    sl_choice places = { .n_tried = 0 };
    if (!cli_given(g, "--ctx-size") || !q->base.n_ctx)
        q->base.n_ctx = asked->n_prompt + asked->n_gen;
    q->base.n_seq = a->parallel;
    q->base.share_prefixes = true;
    if (sl_planner_queue(ctx, v->machine, v->src->shape, miss, q, &queue, &c) != SL_OK)
        return cli_fail_ctx(ctx);
    places.params = c.params;
    places.plan = c.plan;
    v->choice = &places;
    int code = need_disk(v);
    if (code != CLI_DONE) return code;
    if (a->json) {
        json_t *obj = plan_queue_json(v, a->n_requests, &c);
        return obj ? cli_print_json(obj, CLI_DONE)
                   : cli_fail("the plan is no valid JSON, or memory ran out");
    }
    plan_print_queue(v, a->n_requests, &c);
    return cli_end_stdout(CLI_DONE);
}

/* The one that was asked for, if one was; threads are the planner's choice. */
static int take_device(const cli_engine_args *e, const cli_group *g, sl_ctx *ctx, sl_machine *m,
                       sl_plan_params *p)
{
    uint32_t threads = p->n_threads;
    int code = cli_given(g, "--device") ? cli_take_device(e, g, ctx, p) : CLI_DONE;
    p->n_threads = threads;
    if (code == CLI_DONE && !cli_machine_card(ctx, &p->accel, m)) code = CLI_FAILED;
    return code;
}

/* What a CUDA context and its libraries take of a card. */
#define CONTEXT_BYTES ((uint64_t)512 << 20)

/* The same model with one of the machine's GPUs. */
static void plan_gpu(sl_ctx *ctx, const sl_shape *shape, const sl_miss_model *miss,
                     const sl_planner_params *without, uint32_t i, plan_view *v)
{
    const sl_machine *m = v->machine;
    const sl_choice *c = v->choice;
    sl_planner_params q = *without;
    uint64_t vram = v->vram_bytes ? SL_MIN(v->vram_bytes, m->gpu[i].vram_bytes)
                                  : m->gpu[i].vram_bytes;
    sl_lens_box box = { .machine = m, .gpu = &m->gpu[i], .shape = shape, .miss = miss,
                        .threads = c->plan.n_threads, .vram_bytes = (double)vram,
                        .ram_bytes = (double)c->params.ram_bytes, .kv_type = c->params.kv_type,
                        .kv_block = SL_KV_BLOCK_ROWS };
    v->gpu[i].bound = sl_lens_latency(&box, v->load, c->plan.max_rows);
    q.base.accel = (sl_accel){ .kind = SL_ACCEL_CUDA, .index = i, .mem_bytes = vram,
                               .own_bytes = CONTEXT_BYTES };
    v->gpu[i].planned = sl_planner_run(ctx, m, shape, miss, &q, true, &v->gpu[i].choice) == SL_OK;
    if (!v->gpu[i].planned)
        snprintf(v->gpu[i].why_not, sizeof v->gpu[i].why_not, "%s", sl_error(ctx));
}

static int plan(const struct args *a, const cli_asked *asked, const cli_engine_args *e,
                const cli_group *g, sl_ctx *ctx, const sl_source *src, char *command)
{
    sl_machine m;
    sl_miss_model miss;
    sl_planner_params q;
    sl_choice choice;
    plan_view v = { .src = src, .machine = &m, .vram_bytes = e->vram_bytes, .command = command,
                    .load = { asked->n_prompt, asked->n_gen }, .choice = &choice };
    const char *file = src->kind == SL_SOURCE_GGUF ? src->path : NULL;
    int code = cli_machine_for_plan(ctx, asked->machine, file, &m, &v.here);
    if (code == CLI_DONE)
        code = cli_miss_model(ctx, src->shape, asked->trace, !a->n_requests, &miss);
    if (code == CLI_DONE) code = cli_asked_params(asked, e, g, ctx, src->shape, &m, v.here, &q);
    if (code == CLI_DONE) code = take_device(e, g, ctx, &m, &q.base);
    if (code != CLI_DONE) return code;
    if (a->n_requests) return plan_queue(a, asked, g, ctx, &miss, &q, &v);
    if (sl_planner_run(ctx, &m, src->shape, &miss, &q, !a->llama_cpp, &choice) != SL_OK)
        return cli_fail_ctx(ctx);
    code = need_disk(&v);
    if (code != CLI_DONE) return code;
    if (!a->llama_cpp && !q.base.accel.kind)
        for (uint32_t i = 0; i < m.n_gpus; i++) plan_gpu(ctx, src->shape, &miss, &q, i, &v);
    return show(a, ctx, &v);
}

/* Options of running that no forecast knows of. */
static void warn(const cli_group *g)
{
    static const char *const none[] = { "--isa", "--activations", "--blas", "--trace-routing",
                                        "--verbose" };
    for (size_t i = 0; i < SL_LEN(none); i++)
        if (cli_given(g, none[i])) cli_warn("%s has no effect on a plan", none[i]);
}

int cmd_plan(int argc, char **argv)
{
    struct args a = { .out = NULL };
    cli_asked asked = cli_asked_defaults();
    cli_engine_args engine = cli_engine_defaults();
    cli_group groups[] = {
        cli_asked_group(&asked),
        { "Requests and output", options, SL_LEN(options), &a, 0 },
        cli_engine_group(&engine),
    };
    cli_spec spec = { "plan", "-m MODEL.gguf|PRESET|config.json [--machine FILE|NAME] [options]",
                      about, groups, SL_LEN(groups), 0 };
    sl_source *src = NULL;
    char *command = NULL;
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (a.json && a.llama_cpp)
        return cli_usage_error(&spec, "--json and --llama-cpp exclude each other");
    if (a.n_requests && (a.out || a.llama_cpp || !asked.n_gen))
        return cli_usage_error(&spec, "--requests plans for `sluice batch`: no -o, no --llama-cpp, "
                                      "and at least one token written (-n)");
    if (a.parallel && !a.n_requests) return cli_usage_error(&spec, "-np goes with --requests");
    if (engine.plan) return cli_usage_error(&spec, "--plan is for running; -o saves one");
    if (a.out && !strcmp(a.out, "-"))
        return cli_usage_error(&spec, "-o saves a file; --json prints the plan");
    warn(&groups[2]);
    sl_ctx *ctx = cli_ctx(false);
    char *path = ctx ? cli_model_path(engine.model) : NULL;
    code = path ? CLI_DONE : CLI_FAILED;
    if (path && sl_source_open(ctx, path, asked.quant, &src) != SL_OK) code = cli_fail_ctx(ctx);
    if (src && !(command = command_line(argc, argv, engine.model, src, a.n_requests > 0,
                                        engine.device != NULL)))
        code = cli_fail("out of memory");
    if (code == CLI_DONE) code = plan(&a, &asked, &engine, &groups[2], ctx, src, command);
    sl_source_close(&src);
    sl_ctx_destroy(&ctx);
    free(path);
    free(command);
    return code;
}
