/* tools/cmd_bench.c - `sluice bench`: prompt and generation speed in llama-bench's table, each
 * beside the bound that this machine sets. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/sl_kernels.h"
#include "perfmodel/sl_bound.h"
#include "tools/bench.h"
#include "tools/machine_file.h"
#include "tools/session.h"

enum { MAX_LIST = 32 };

struct args {
    const char *model, *n_prompt, *n_gen, *n_threads, *isa, *machine, *types;
    uint32_t repeats, max_rows, format, blas;
    uint64_t ram_bytes;
    bool kernels, verbose;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-m,--model", CLI_STR, "FILE", "GGUF file (default: the bundled model)", AT(model), 0, 0 },
    { "-p,--n-prompt", CLI_STR, "N,...", "prompt lengths, 0: none (default: 512)", AT(n_prompt), 0,
      0 },
    { "-n,--n-gen", CLI_STR, "N,...",
      "tokens generated behind an empty context, 0: none (default: 128)", AT(n_gen), 0, 0 },
    { "-t,--threads", CLI_STR, "N,...", "threads (default: physical cores)", AT(n_threads), 0, 0 },
    { "-r,--repetitions", CLI_U32, "N",
      "timed runs of each test, after one that is not (default: 5)", AT(repeats), 1, 1000 },
    { "-b,--batch-size", CLI_U32, "N", "rows of a pass: prompt tokens at a time (default: 512)",
      AT(max_rows), 1, 65536 },
    { "-o,--output", CLI_CHOICE, "md|csv|json", "format on stdout (default: md)", AT(format), 0,
      0 },
    { "--isa", CLI_STR, "NAME",
      "at most these instructions: c, avx2, avxvnni, avx512, avx512vnni (default: all of the CPU's); "
      "a list with --kernels",
      AT(isa), 0, 0 },
    { "--blas", CLI_CHOICE, "off|on", "as for `sluice run` (default: off)", AT(blas), 0, 0 },
    { "--machine", CLI_STR, "FILE",
      "machine file for the bounds (default: the one that `sluice probe` keeps)", AT(machine), 0,
      0 },
    { "--ram", CLI_BYTES, "SIZE", "memory budget, 8G or auto (default: auto, what is available)",
      AT(ram_bytes), 0, 0 },
    { "--kernels", CLI_FLAG, NULL,
      "measure the kernels alone, each in turn with its peak; no model is read", AT(kernels), 0,
      0 },
    { "--type", CLI_STR, "TYPE,...",
      "with --kernels: weight types (default: Q4_K,Q5_K,Q6_K,Q8_0,Q4_0,MXFP4)", AT(types), 0, 0 },
    { "-v,--verbose", CLI_FLAG, NULL, "more on stderr", AT(verbose), 0, 0 },
};
#undef AT

static const char *const about =
    "Speed of a model: ppN reads a prompt of N random tokens, tgN draws N tokens one by one. `t/s` is\n"
    "mean and standard deviation of the runs. `bound` is what the machine allows at most: the bytes of\n"
    "each pass over what DRAM reads with so many threads, or its operations over the instruction peaks,\n"
    "whichever takes longer; `share` is how much of it was reached.\n"
    "--kernels measures single kernels with working sets of eight times the last cache.";

struct list { uint32_t v[MAX_LIST], n; };

/* "512,1024"; false: not whole numbers in [min, max], or too many. */
static bool parse_list(const char *text, uint32_t min, uint32_t max, struct list *ret)
{
    ret->n = 0;
    for (const char *p = text;; p++) {
        char *end;
        errno = 0;
        long long v = strtoll(p, &end, 10);
        if (errno || end == p || v < min || v > max || ret->n == MAX_LIST || (*end && *end != ','))
            return false;
        ret->v[ret->n++] = (uint32_t)v;
        if (!*end) return true;
        p = end;
    }
}

struct bench {
    const struct args *a;
    cli_session s;
    sl_machine machine;
    sl_rates rates;
    sl_step *steps;
    uint32_t n_steps, n_moe;
    int32_t *tokens;            /* [longest prompt] random */
    uint32_t max_prompt;
    char isa[32];
    bench_table table;
};

struct result { double mean, stddev, bound; };

/* One sequence from nothing: n_prompt tokens read, then n_gen drawn. */
static int run_once(struct bench *b, uint32_t n_prompt, uint32_t n_gen, double *ret_s)
{
    sl_request r = { .tokens = b->tokens,
                     .n_tokens = n_prompt,
                     .n_predict = n_gen,
                     .ignore_eog = true,
                     .sampler = sl_sampler_defaults() };
    sl_seq seq;
    r.sampler.temp = 0;
    double start = cli_now_s();
    if (sl_engine_submit(b->s.engine, &r, &seq) != SL_OK) return cli_fail_ctx(b->s.ctx);
    while (sl_engine_busy(b->s.engine)) {
        const sl_engine_event *ev;
        uint32_t n;
        if (sl_engine_step(b->s.engine, &ev, &n) != SL_OK) return cli_fail_ctx(b->s.ctx);
        if (cli_interrupted()) return CLI_INTERRUPTED;
    }
    *ret_s = cli_now_s() - start;
    sl_engine_cancel(b->s.engine, seq);
    return CLI_DONE;
}

static void progress(const char *test, uint32_t threads, uint32_t i, uint32_t n)
{
    if (!isatty(2)) return;
    if (i > n) fprintf(stderr, "\r%60s\r", "");
    else
        fprintf(stderr, "\r%s, %" PRIu32 " thread%s: run %" PRIu32 " of %" PRIu32 "   ", test,
                threads, threads == 1 ? "" : "s", i, n);
}

/* A warm-up and the repeats of one test. gen: n tokens are drawn, otherwise read. */
static int measure(struct bench *b, const char *test, bool gen, uint32_t n, struct result *ret)
{
    uint32_t n_prompt = gen ? 1 : n, n_gen = gen ? n : 1, repeats = b->a->repeats;
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    sl_engine_stats first = { .passes = 0 }, last;
    double sum = 0, squares = 0, s = 0;
    int code = CLI_DONE;
    for (uint32_t i = 0; i <= repeats && code == CLI_DONE; i++) {
        progress(test, plan->n_threads, i, repeats);
        if (i == 1) sl_engine_get_stats(b->s.engine, &first);
        code = run_once(b, n_prompt, n_gen, &s);
        if (!i || code != CLI_DONE) continue;
        sum += n / s;
        squares += n / s * (n / s);
    }
    progress(test, plan->n_threads, repeats + 1, repeats);
    if (code != CLI_DONE) return code;
    sl_engine_get_stats(b->s.engine, &last);
    ret->mean = sum / repeats;
    double var = repeats > 1 ? (squares - sum * ret->mean) / (repeats - 1) : 0;
    ret->stddev = sqrt(fmax(var, 0));
    const sl_shape *shape = sl_model_shape(b->s.model);
    double passes = (double)(last.passes - first.passes);
    double experts = b->n_moe ? (double)(last.expert_runs - first.expert_runs) / passes / b->n_moe
                              : 0;
    ret->bound =
        gen ? sl_bound_decode(shape, b->steps, b->n_steps, n, &b->rates)
            : sl_bound_prompt(shape, b->steps, b->n_steps, n, plan->max_rows, experts, &b->rates);
    return CLI_DONE;
}

/* '|' would end a cell, control characters a line. */
static void md_text(const char *text, char *ret, size_t size)
{
    snprintf(ret, size, "%s", text);
    for (char *c = ret; *c; c++)
        if (*c == '|' || (unsigned char)*c < ' ') *c = ' ';
}

static int print_row(struct bench *b, const char *test, const struct result *r)
{
    const sl_shape *shape = sl_model_shape(b->s.model);
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    char name[64], size[24], params[24], backend[40], threads[16], speed[64], bound[24], share[24];
    double part = r->mean / r->bound, p = (double)shape->n_params;
    md_text(sl_model_name(b->s.model), name, sizeof name);
    cli_bytes(shape->total_bytes, size);
    snprintf(params, sizeof params, p < 1e9 ? "%.2f M" : "%.2f B", p < 1e9 ? p * 1e-6 : p * 1e-9);
    snprintf(backend, sizeof backend, "cpu %s", b->isa);
    snprintf(threads, sizeof threads, "%" PRIu32, plan->n_threads);
    snprintf(speed, sizeof speed, "%.2f ± %.2f", r->mean, r->stddev);
    snprintf(bound, sizeof bound, "%.2f", r->bound);
    snprintf(share, sizeof share, "%.1f %%", 100 * part);
    const bench_cell cells[] = {
        { .title = "model",
          .key = "model",
          .width = -SL_MAX((int)strlen(name), 16),
          .text = name,
          .in_json = true },
        { .title = "size",
          .key = "size_bytes",
          .width = 10,
          .text = size,
          .number = (double)shape->total_bytes,
          .is_number = true,
          .integer = true },
        { .title = "params",
          .key = "n_params",
          .width = 10,
          .text = params,
          .number = p,
          .is_number = true,
          .integer = true },
        { .title = "backend", .key = "backend", .width = -14, .text = backend },
        { .title = "threads",
          .key = "threads",
          .width = 7,
          .text = threads,
          .number = plan->n_threads,
          .is_number = true,
          .integer = true,
          .in_json = true },
        { .title = "test", .key = "test", .width = 8, .text = test, .in_json = true },
        { .title = "t/s",
          .key = "tok_per_s",
          .width = 19,
          .text = speed,
          .number = r->mean,
          .is_number = true,
          .in_json = true },
        { .key = "stddev", .number = r->stddev, .is_number = true, .in_json = true },
        { .title = "bound",
          .key = "bound_tok_per_s",
          .width = 10,
          .text = bound,
          .number = r->bound,
          .is_number = true,
          .in_json = true },
        { .title = "share",
          .key = "share",
          .width = 8,
          .text = share,
          .number = part,
          .is_number = true,
          .in_json = true },
    };
    return bench_row(&b->table, cells, SL_LEN(cells));
}

static int run_tests(struct bench *b, const struct list *prompts, const struct list *gens)
{
    struct result r;
    char test[24];
    for (uint32_t gen = 0; gen < 2; gen++) {
        const struct list *l = gen ? gens : prompts;
        for (uint32_t i = 0; i < l->n; i++) {
            if (!l->v[i]) continue;
            snprintf(test, sizeof test, "%s%" PRIu32, gen ? "tg" : "pp", l->v[i]);
            int code = measure(b, test, gen, l->v[i], &r);
            if (code == CLI_DONE) code = print_row(b, test, &r);
            if (code != CLI_DONE) return code;
        }
    }
    return CLI_DONE;
}

/* The limits for the threads and instructions of the engine that was opened. */
static void set_rates(struct bench *b, unsigned mask)
{
    uint32_t threads = sl_engine_plan(b->s.engine)->n_threads;
    const sl_machine *m = &b->machine;
    double factor;
    sl_peak peak = bench_int_peak(mask, &factor);
    sl_kernels k;
    sl_kernels_init(&k, mask);
    snprintf(b->isa, sizeof b->isa, "%s", k.isa);
    b->rates = (sl_rates){ .bytes_s = sl_machine_dram_s(m, threads),
                           .int_ops_s = factor * sl_machine_peak_s(m, peak, threads),
                           .flops_s = sl_machine_peak_s(m, bench_float_peak(mask), threads) };
    cli_note("bounds (%s): DRAM %.1f GB/s, int8 %.0f GMAC/s, FP32 %.0f GFLOP/s with %" PRIu32
             " thread%s",
             sl_machine_source_name(m->source), b->rates.bytes_s * 1e-9, b->rates.int_ops_s * 1e-9,
             b->rates.flops_s * 1e-9, threads, threads == 1 ? "" : "s");
    uint64_t weights = sl_engine_plan(b->s.engine)->weights_bytes;
    char w[24], l3[24];
    if (weights < m->id.l3_bytes)
        cli_note("the weights (%s) fit in the last-level cache (%s): the DRAM bound does not hold",
                 cli_bytes(weights, w), cli_bytes(m->id.l3_bytes, l3));
}

/* Steps and random tokens of the opened model. */
static int prepare(struct bench *b)
{
    const sl_shape *shape = sl_model_shape(b->s.model);
    b->steps = calloc(sl_pipe_max_steps(shape), sizeof *b->steps);
    b->tokens = calloc(b->max_prompt + 1u, sizeof *b->tokens);
    if (!b->steps || !b->tokens) return cli_fail("out of memory");
    b->n_steps = sl_pipe_build(shape, sl_engine_plan(b->s.engine), b->steps);
    b->n_moe = 0;
    for (uint32_t l = 0; l < shape->n_layer; l++) b->n_moe += shape->layers[l].n_expert > 0;
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (uint32_t i = 0; i <= b->max_prompt; i++) {     /* Knuth's MMIX generator */
        x = x * 6364136223846793005u + 1442695040888963407u;
        b->tokens[i] = (int32_t)((x >> 33) % shape->n_vocab);
    }
    return CLI_DONE;
}

static int bench_threads(struct bench *b, uint32_t threads, unsigned mask, uint32_t n_ctx,
                         const struct list *prompts, const struct list *gens)
{
    cli_engine_args e = cli_engine_defaults();
    cli_group g = cli_engine_group(&e);
    e.model = b->a->model;
    e.n_ctx = n_ctx;
    e.n_threads = threads;
    e.max_rows = b->a->max_rows;
    e.isa = b->a->isa;
    e.blas = b->a->blas;
    e.ram_bytes = b->a->ram_bytes;
    e.verbose = b->a->verbose;
    e.no_text = true;
    int code = cli_session_open(&e, &g, 1, &b->s);
    if (code == CLI_DONE) code = prepare(b);
    if (code == CLI_DONE) {
        set_rates(b, mask);
        code = run_tests(b, prompts, gens);
    }
    free(b->steps);
    free(b->tokens);
    b->steps = NULL;
    b->tokens = NULL;
    return cli_session_close(&b->s, code);
}

static uint32_t largest(const struct list *l)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < l->n; i++) most = SL_MAX(most, l->v[i]);
    return most;
}

static int bench_model(const struct args *a, const struct list *prompts, const struct list *gens,
                       const struct list *threads)
{
    struct bench b = { .a = a,
                       .table.format = (bench_format)a->format,
                       .max_prompt = largest(prompts) };
    uint32_t mask, n_ctx = SL_MAX(b.max_prompt, largest(gens)) + 1;
    int code = cli_isa_mask(a->isa, &mask);
    for (uint32_t i = 0; i < threads->n && code == CLI_DONE; i++)
        code = cli_check_threads(threads->v[i]);
    if (code != CLI_DONE) return code;
    /* A model that cannot be read should not cost a probe. */
    sl_ctx *ctx = cli_ctx(a->verbose);
    if (!ctx) return CLI_FAILED;
    char *path = cli_model_path(a->model);
    sl_model *m = NULL;
    code = path ? CLI_DONE : CLI_FAILED;
    if (path && sl_model_open(ctx, path, &m) != SL_OK) code = cli_fail_ctx(ctx);
    sl_model_close(&m);
    free(path);
    if (code == CLI_DONE) code = cli_machine(ctx, a->machine, &b.machine, NULL);
    sl_ctx_destroy(&ctx);
    if (code != CLI_DONE) return code;
    cli_catch_sigint();
    for (uint32_t i = 0; i < threads->n && code == CLI_DONE; i++)
        code = bench_threads(&b, threads->v[i], mask, n_ctx, prompts, gens);
    return bench_end(&b.table, code);
}

int cmd_bench(int argc, char **argv)
{
    struct args a = {
        .n_prompt = "512", .n_gen = "128", .repeats = 5, .max_rows = sl_plan_defaults().max_rows
    };
    struct list prompts, gens, threads = { .n = 1 };
    cli_group groups[] = { { "Options", options, SL_LEN(options), &a, 0 } };
    cli_spec spec = {
        "bench",        "[-m FILE] [-p 512] [-n 128] [-t LIST] [-r 5] [-o md|csv|json] [options]",
        about,          groups,
        SL_LEN(groups), 0
    };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (!parse_list(a.n_prompt, 0, 1 << 20, &prompts) || !parse_list(a.n_gen, 0, 1 << 20, &gens))
        return cli_usage_error(
            &spec, "-p %s -n %s: expected whole numbers up to %d, with commas between them",
            a.n_prompt, a.n_gen, 1 << 20);
    if (a.n_threads && !parse_list(a.n_threads, 1, 4096, &threads))
        return cli_usage_error(
            &spec, "-t %s: expected whole numbers from 1 to 4096, with commas between them",
            a.n_threads);
    if (a.kernels) {
        static const char *const others[] = { "-m", "-p", "-n", "-t", "-b", "--machine", "--ram" };
        for (size_t i = 0; i < SL_LEN(others); i++)
            if (cli_given(&groups[0], others[i]))
                cli_warn("%s has no effect with --kernels", others[i]);
        return bench_kernels(
            &(bench_kernels_args){ a.types, a.isa, a.repeats, (bench_format)a.format });
    }
    if (!largest(&prompts) && !largest(&gens))
        return cli_usage_error(&spec, "-p 0 -n 0 leaves nothing to test");
    if (cli_given(&groups[0], "--type")) cli_warn("--type has no effect without --kernels");
    return bench_model(&a, &prompts, &gens, &threads);
}
