/* tools/cmd_bench.c - `sluice bench`: prompt and generation speed in llama-bench's table, each
 * beside the bound that this machine sets. */
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/sl_kernels.h"
#include "perfmodel/sl_bound.h"
#include "tools/bench.h"
#include "tools/device_flag.h"
#include "tools/machine_file.h"
#include "tools/session.h"

enum { MAX_LIST = 32 };

struct args {
    const char *n_prompt, *n_gen, *n_threads, *machine, *types;
    uint32_t repeats, format, warmup;
    float in_ram_pp, in_ram_tg;
    bool kernels;
    cli_engine_args engine;     /* engine_options */
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-p,--n-prompt", CLI_STR, "N,...", "prompt lengths, 0: none (default: 512)", AT(n_prompt), 0,
      0 },
    { "-n,--n-gen", CLI_STR, "N,...",
      "tokens generated behind an empty context, 0: none (default: 128)", AT(n_gen), 0, 0 },
    { "-t,--threads", CLI_STR, "N,...", "threads (default: physical cores)", AT(n_threads), 0, 0 },
    { "-r,--repetitions", CLI_U32, "N",
      "timed runs of each test, after one that is not (default: 5)", AT(repeats), 1, 1000 },
    { "--warmup", CLI_U32, "N",
      "where experts are streamed: tokens drawn before generation is timed (default: 64)",
      AT(warmup), 0, 1 << 16 },
    { "-o,--output", CLI_CHOICE, "md|csv|json", "format on stdout (default: md)", AT(format), 0,
      0 },
    { "--machine", CLI_STR, "FILE",
      "machine file for the bounds (default: the one that `sluice probe` keeps)", AT(machine), 0,
      0 },
    { "--in-ram-pp", CLI_F32, "X",
      "with --ram: tok/s of prompts with all weights in RAM; streamed ones are bound by that",
      AT(in_ram_pp), 0, 1e9 },
    { "--in-ram-tg", CLI_F32, "X",
      "the same of generation: bounds compute at that speed, not at DRAM's", AT(in_ram_tg), 0,
      1e9 },
    { "--kernels", CLI_FLAG, NULL,
      "measure the kernels alone, each in turn with its peak; no model is read; --isa may be a list",
      AT(kernels), 0, 0 },
    { "--type", CLI_STR, "TYPE,...",
      "with --kernels: weight types (default: Q4_K,Q5_K,Q6_K,Q8_0,Q4_0,MXFP4)", AT(types), 0, 0 },
};
#undef AT

/* Of the engine's: threads are a list here, contexts as long as the tests need. */
static const char *const engine_options[] = { "-m",    "-b",     "--ram", "--device", "--vram",
                                              "--isa", "--blas", "-v" };

static const char *const about =
    "Speed of a model: ppN reads a prompt of N random tokens, tgN draws N tokens one by one. "
    "`t/s` is mean and standard deviation of the runs. `bound` is what the machine allows at "
    "most: the bytes of each pass over what DRAM reads with so many threads, or its operations "
    "over the instruction peaks, whichever takes longer; `share` is how much of it was reached.\n\n"
    "Where weights are streamed from disk (--ram), DRAM and the model's file are measured in turn "
    "with the runs, and the bound of tgN counts the reads that no run could begin before a "
    "layer's router spoke, and what cores and disk leave each other; that of ppN what has to be "
    "read at all. ppN begins with nothing in RAM but the dense weights (`cold`); tgN goes on "
    "behind some tokens of its own (`warm N`), drawn at temperature 1 with one seed: hits depend "
    "on the text, and a model draws its own.\n\n"
    "With --device the plan is the one that `sluice run` makes for the longest tests, `bound` the "
    "least time of that plan: no link, device or CPU is done before all its work is, and `limited "
    "by` is who is busiest then; `forecast` is what the simulation expects.\n\n"
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

static uint32_t largest(const struct list *l)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < l->n; i++) most = SL_MAX(most, l->v[i]);
    return most;
}

struct bench {
    const struct args *a;
    cli_session s;
    sl_machine machine;
    bool described;             /* machine describes the device too */
    sl_rates rates;
    sl_step *steps;
    uint32_t n_steps, n_moe;
    int32_t *tokens;            /* [longest prompt] random */
    uint32_t max_prompt;
    char isa[32];
    bench_table table;
    bench_disk disk;
    char *path;                 /* of a streamed model */
    /* the engine's, and what opens it anew */
    cli_engine_args engine;
    cli_group group;
};

struct result {
    double mean, median, stddev, bound;
    /* where weights are streamed; the median rates of the disk's deepest queue */
    char cache[24];             /* "cold", "warm 64"; empty: in RAM */
    double hit_rate, disk_bytes_per_token, disk_bytes_s, stall_share, probed_bytes_s;
    sl_disk_use use;            /* with what cores and disk leave each other */
    double ttft_s;              /* prompts only */
    /* with a device; bound is 0 where nobody described it, and there is no forecast */
    double forecast;
    const char *limit;
};

/* Steps until n tokens more were drawn, or until the sequence is idle. */
static int draw(struct bench *b, uint32_t n)
{
    while (n && sl_engine_busy(b->s.engine)) {
        const sl_engine_event *ev;
        uint32_t n_ev;
        if (sl_engine_step(b->s.engine, &ev, &n_ev) != SL_OK) return cli_fail_ctx(b->s.ctx);
        for (uint32_t i = 0; i < n_ev; i++) {
            if (ev[i].error) return cli_fail("%s", ev[i].error);
            if (ev[i].kind == SL_EV_TOKEN) n--;
        }
        if (cli_interrupted()) return CLI_INTERRUPTED;
    }
    return CLI_DONE;
}

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
    int code = draw(b, n_gen);
    *ret_s = cli_now_s() - start;
    sl_engine_cancel(b->s.engine, seq);
    return code;
}

static void progress(const char *test, uint32_t threads, uint32_t i, uint32_t n)
{
    if (!isatty(2)) return;
    if (i > n) fprintf(stderr, "\r%60s\r", "");
    else
        fprintf(stderr, "\r%s, %" PRIu32 " thread%s: run %" PRIu32 " of %" PRIu32 "   ", test,
                threads, threads == 1 ? "" : "s", i, n);
}

struct series { double v[1000]; uint32_t n; };     /* tok/s of the runs */

static void summarise(struct series *s, struct result *ret)
{
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        sum += s->v[i];
        squares += s->v[i] * s->v[i];
    }
    ret->mean = sum / s->n;
    double var = s->n > 1 ? (squares - sum * ret->mean) / (s->n - 1) : 0;
    ret->stddev = sqrt(fmax(var, 0));
    ret->median = bench_median(s->v, s->n);
}

/* Distinct experts of a layer that has some, in the passes counted. */
static double mean_experts(const struct bench *b, const sl_engine_stats *first,
                           const sl_engine_stats *last)
{
    double passes = (double)(last->passes - first->passes);
    return b->n_moe ? (double)(last->expert_runs - first->expert_runs) / passes / b->n_moe : 0;
}

static bool has_device(const struct bench *b)
{
    return sl_engine_plan(b->s.engine)->split.accel.kind != SL_ACCEL_NONE;
}

/* What stage 1 and stage 2 say of the test under the plan that runs. */
static int expect_device(struct bench *b, bool gen, uint32_t n, struct result *ret)
{
    sl_forecast_in in = { .machine = &b->machine, .shape = sl_model_shape(b->s.model),
                          .plan = sl_engine_plan(b->s.engine),
                          .load = gen ? (sl_load){ 1, n } : (sl_load){ n, 0 } };
    sl_miss_model miss;
    sl_forecast f;
    if (!b->described) return CLI_DONE;
    /* random tokens are no text */
    int code = cli_miss_model(b->s.ctx, in.shape, NULL, false, &miss);
    in.miss = &miss;
    if (code != CLI_DONE) return code;
    sl_forecast bound = sl_stage1(&in);
    if (sl_sim_run(b->s.ctx, &in, NULL, NULL, &f) != SL_OK) return cli_fail_ctx(b->s.ctx);
    const sl_phase *least = gen ? &bound.decode : &bound.prompt;
    ret->bound = least->tok_per_s;
    ret->limit = sl_resource_name(least->binding);
    ret->forecast = gen ? f.decode.tok_per_s : f.prompt.tok_per_s;
    return CLI_DONE;
}

/* A warm-up and the repeats of one test. gen: n tokens are drawn, otherwise read. */
static int measure(struct bench *b, const char *test, bool gen, uint32_t n, struct result *ret)
{
    uint32_t n_prompt = gen ? 1 : n, n_gen = gen ? n : 1, repeats = b->a->repeats;
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    sl_engine_stats first = { .passes = 0 }, last;
    struct series runs = { .n = 0 };
    double s = 0;
    int code = CLI_DONE;
    for (uint32_t i = 0; i <= repeats && code == CLI_DONE; i++) {
        progress(test, plan->n_threads, i, repeats);
        if (i == 1) sl_engine_get_stats(b->s.engine, &first);
        code = run_once(b, n_prompt, n_gen, &s);
        if (i && code == CLI_DONE) runs.v[runs.n++] = n / s;
    }
    progress(test, plan->n_threads, repeats + 1, repeats);
    if (code != CLI_DONE) return code;
    sl_engine_get_stats(b->s.engine, &last);
    *ret = (struct result){ .mean = 0 };
    summarise(&runs, ret);
    if (has_device(b)) return expect_device(b, gen, n, ret);
    const sl_shape *shape = sl_model_shape(b->s.model);
    ret->bound =
        gen ? sl_bound_decode(shape, b->steps, b->n_steps, n, &b->rates)
            : sl_bound_prompt(shape, b->steps, b->n_steps, n, plan->max_rows,
                              mean_experts(b, &first, &last), &b->rates);
    return CLI_DONE;
}

/* ---- weights streamed from disk ---- */

/* Counters of what was timed. */
struct streamed { uint64_t hits, misses, read_bytes, passes, expert_runs; double stall_s, s; };

static void add_stats(struct streamed *t, const sl_engine_stats *a, const sl_engine_stats *z)
{
    t->hits += z->hits - a->hits;
    t->misses += z->misses - a->misses;
    t->read_bytes += z->read_bytes - a->read_bytes;
    t->passes += z->passes - a->passes;
    t->expert_runs += z->expert_runs - a->expert_runs;
    t->stall_s += z->stall_s - a->stall_s;
}

static void set_streamed(struct bench *b, const struct streamed *t, uint32_t n_tokens,
                         struct result *ret)
{
    uint64_t asked = t->hits + t->misses;
    uint32_t bytes, depth;
    ret->hit_rate = asked ? (double)t->hits / (double)asked : 1;
    ret->disk_bytes_per_token = (double)t->read_bytes / n_tokens;
    ret->disk_bytes_s = (double)t->read_bytes / t->s;
    ret->stall_share = t->stall_s / t->s;
    bench_disk_take(&b->disk, &b->machine, &ret->use);
    sl_machine_disk_best(&b->machine, &bytes, &depth, &ret->probed_bytes_s);
}

/* An engine with nothing in its slots. In between there is memory to measure DRAM: what else the
 * machine does only takes away, so the best of these medians counts. */
static int reopen(struct bench *b)
{
    int code = cli_session_close(&b->s, CLI_DONE);
    if (code == CLI_DONE)
        code = bench_disk_visit(&b->disk, b->path, b->engine.n_threads, b->engine.verbose);
    b->rates.bytes_s = SL_MAX(b->rates.bytes_s, bench_disk_dram(&b->disk));
    malloc_trim(0);             /* what the C library keeps counts as held by the process */
    return code == CLI_DONE ? cli_session_open(&b->engine, &b->group, 1, &b->s) : code;
}

/* What prompts have to read: every expert that they use once, and streamed dense weights once a
 * pass. */
static double prompt_reads(const struct bench *b, const struct streamed *t)
{
    const sl_shape *shape = sl_model_shape(b->s.model);
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    double n_experts = 0, dense = 0;
    for (uint32_t l = 0; l < shape->n_layer; l++) {
        const sl_layer_shape *s = &shape->layers[l];
        n_experts += s->n_expert;
        if (l >= plan->n_dense_layers)
            dense += (double)(s->qkv_bytes + s->post_bytes + s->router_bytes + s->ffn_bytes);
    }
    double used = fmin((double)t->expert_runs / b->a->repeats, n_experts);
    return used * (double)shape->experts_bytes / fmax(n_experts, 1)
         + dense * (double)t->passes / b->a->repeats;
}

static int measure_cold(struct bench *b, const char *test, uint32_t n, struct result *ret)
{
    uint32_t repeats = b->a->repeats;
    struct series runs = { .n = 0 };
    struct streamed t = { .hits = 0 };
    const sl_engine_stats none = { .passes = 0 };
    for (uint32_t i = 0; i < repeats; i++) {
        sl_engine_stats end;
        double s = 0;
        int code = reopen(b);
        progress(test, b->engine.n_threads, i + 1, repeats);
        if (code == CLI_DONE) code = run_once(b, n, 1, &s);
        if (code != CLI_DONE) return code;
        sl_engine_get_stats(b->s.engine, &end);
        add_stats(&t, &none, &end);
        t.s += s;
        runs.v[runs.n++] = n / s;
    }
    progress(test, 1, repeats + 1, repeats);
    *ret = (struct result){ .cache = "cold", .ttft_s = t.s / repeats };
    summarise(&runs, ret);
    set_streamed(b, &t, n * repeats, ret);
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    double experts = b->n_moe ? (double)t.expert_runs / (double)t.passes / b->n_moe : 0;
    double in_ram = sl_bound_prompt(sl_model_shape(b->s.model), b->steps, b->n_steps, n,
                                    plan->max_rows, experts, &b->rates);
    if (b->a->in_ram_pp > 0) in_ram = (double)b->a->in_ram_pp;
    ret->bound = fmin(in_ram, n / (prompt_reads(b, &t) / ret->probed_bytes_s));
    return CLI_DONE;
}

/* What a token's weights are computed at: the machine's rates, or as fast as with all of them in
 * RAM. */
static sl_rates compute_rates(const struct bench *b, uint32_t first)
{
    if (!(b->a->in_ram_tg > 0)) return b->rates;
    const sl_pass p = { .first = first, .n_rows = 1, .logits = true };
    sl_work w = sl_bound_work(sl_model_shape(b->s.model), b->steps, b->n_steps, &p);
    return (sl_rates){ .bytes_s = (double)b->a->in_ram_tg * w.bytes };
}

/* Repeats of n tokens, one sequence without a break, behind the warm-up: a sequence that began anew
 * would find in its slots what it used the last time. */
static int measure_warm(struct bench *b, const char *test, uint32_t n, struct result *ret)
{
    uint32_t repeats = b->a->repeats, before = 1 + b->a->warmup;
    struct series runs = { .n = 0 };
    struct streamed t = { .hits = 0 };
    sl_engine_stats first, last;
    sl_request r = { .tokens = b->tokens, .n_tokens = 1, .n_predict = before + repeats * n,
                     .ignore_eog = true, .sampler = sl_sampler_defaults() };
    r.sampler.temp = 1;
    r.sampler.top_k = 0;
    r.sampler.top_p = 1;
    r.sampler.min_p = 0;
    r.sampler.seed = 1;
    sl_seq seq;
    int code = reopen(b);
    if (code == CLI_DONE && sl_engine_submit(b->s.engine, &r, &seq) != SL_OK)
        code = cli_fail_ctx(b->s.ctx);
    progress(test, b->engine.n_threads, 0, repeats);
    if (code == CLI_DONE) code = draw(b, before);
    if (code != CLI_DONE) return code;
    sl_engine_get_stats(b->s.engine, &first);
    for (uint32_t i = 0; i < repeats && code == CLI_DONE; i++) {
        progress(test, b->engine.n_threads, i + 1, repeats);
        double start = cli_now_s();
        code = draw(b, n);
        double s = cli_now_s() - start;
        t.s += s;
        runs.v[runs.n++] = n / s;
    }
    progress(test, 1, repeats + 1, repeats);
    if (code != CLI_DONE) return code;
    sl_engine_get_stats(b->s.engine, &last);
    add_stats(&t, &first, &last);
    *ret = (struct result){ .mean = 0 };
    snprintf(ret->cache, sizeof ret->cache, "warm %" PRIu32, b->a->warmup);
    summarise(&runs, ret);
    code = reopen(b);           /* disk and DRAM behind the runs too */
    if (code != CLI_DONE) return code;
    set_streamed(b, &t, n * repeats, ret);
    sl_misses misses = last.one_row;
    for (uint32_t c = 0; c < SL_SLOT_CLASSES; c++)
        for (uint32_t m = 0; m <= SL_MAX_MISSED; m++)
            misses.turns[c][m] -= first.one_row.turns[c][m];
    sl_rates rates = compute_rates(b, before);
    ret->bound = sl_bound_causal(sl_model_shape(b->s.model), sl_engine_plan(b->s.engine), b->steps,
                                 b->n_steps, before, n * repeats, &misses, &rates, &ret->use);
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
    char hits[16], disk[24], waits[16], forecast[24];
    bool device = has_device(b), bounded = r->bound > 0;
    double part = bounded ? r->mean / r->bound : 0, p = (double)shape->n_params;
    md_text(sl_model_name(b->s.model), name, sizeof name);
    cli_bytes(shape->total_bytes, size);
    snprintf(params, sizeof params, p < 1e9 ? "%.2f M" : "%.2f B", p < 1e9 ? p * 1e-6 : p * 1e-9);
    int len = snprintf(backend, sizeof backend, "cpu %s", b->isa);
    const sl_accel *a = &plan->split.accel;
    if (device && a->kind == SL_ACCEL_EMU) strcpy(backend + len, " + emu");
    else if (device)
        snprintf(backend + len, sizeof backend - (size_t)len, " + cuda:%" PRIu32, a->index);
    snprintf(threads, sizeof threads, "%" PRIu32, plan->n_threads);
    snprintf(speed, sizeof speed, "%.2f ± %.2f", r->mean, r->stddev);
    snprintf(bound, sizeof bound, bounded ? "%.2f" : "unknown", r->bound);
    snprintf(share, sizeof share, bounded ? "%.1f %%" : "-", 100 * part);
    snprintf(forecast, sizeof forecast, bounded ? "%.2f" : "-", r->forecast);
    snprintf(hits, sizeof hits, "%.1f %%", 100 * r->hit_rate);
    snprintf(disk, sizeof disk, "%.2f GB/s", r->disk_bytes_s * 1e-9);
    snprintf(waits, sizeof waits, "%.0f %%", 100 * r->stall_share);
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
          .in_json = bounded },
        { .title = "share",
          .key = "share",
          .width = 8,
          .text = share,
          .number = part,
          .is_number = true,
          .in_json = bounded },
        { .title = device ? "limited by" : NULL,
          .key = device ? "limited_by" : NULL,
          .width = -20,
          .text = r->limit ? r->limit : "",
          .in_json = bounded },
        { .title = device ? "forecast" : NULL,
          .key = device ? "forecast_tok_per_s" : NULL,
          .width = 10,
          .text = forecast,
          .number = r->forecast,
          .is_number = true,
          .in_json = bounded },
        /* from here on, where weights are streamed */
        { .title = "cache", .key = "cache", .width = -8, .text = r->cache, .in_json = true },
        { .title = "hits", .key = "hit_rate", .width = 7, .text = hits, .number = r->hit_rate,
          .is_number = true, .in_json = true },
        { .title = "disk", .key = "disk_bytes_per_s", .width = 10, .text = disk,
          .number = r->disk_bytes_s, .is_number = true, .in_json = true },
        { .title = "waits", .key = "stall_share", .width = 6, .text = waits,
          .number = r->stall_share, .is_number = true, .in_json = true },
        { .key = "disk_bytes_per_token", .number = r->disk_bytes_per_token, .is_number = true,
          .in_json = true },
        { .key = "probed_disk_bytes_per_s", .number = r->probed_bytes_s, .is_number = true,
          .in_json = true },
        { .key = "cpu_keeps", .number = r->use.cpu_keeps, .is_number = true, .in_json = true },
        { .key = "disk_keeps", .number = r->use.disk_keeps, .is_number = true, .in_json = true },
        { .key = "probed_dram_bytes_per_s", .number = b->rates.bytes_s, .is_number = true,
          .in_json = true },
        { .key = "median_tok_per_s", .number = r->median, .is_number = true, .in_json = true },
        { .key = "budget_bytes", .number = (double)b->s.budget_bytes, .is_number = true,
          .integer = true, .in_json = true },
        { .key = "peak_rss_bytes", .number = (double)cli_peak_rss(), .is_number = true,
          .integer = true, .in_json = true },
        { .key = "ttft_s", .number = r->ttft_s, .is_number = true, .in_json = r->ttft_s > 0 },
    };
    size_t n = 0;
    while (n < SL_LEN(cells) && (r->cache[0] || cells[n].text != r->cache)) n++;
    return bench_row(&b->table, cells, n);
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
            bool streamed = sl_engine_plan(b->s.engine)->weights == SL_WEIGHTS_STREAMED;
            int code = !streamed ? measure(b, test, gen, l->v[i], &r)
                     : gen ? measure_warm(b, test, l->v[i], &r)
                           : measure_cold(b, test, l->v[i], &r);
            if (code == CLI_DONE) code = print_row(b, test, &r);
            if (code != CLI_DONE) return code;
        }
    }
    return CLI_DONE;
}

/* What the device's bounds stand on. */
static void note_device(struct bench *b)
{
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    const sl_accel *a = &plan->split.accel;
    sl_machine_gpu g;
    b->described = plan->weights != SL_WEIGHTS_STREAMED     /* disk and device: nobody knows */
                && cli_machine_card(b->s.ctx, a, &b->machine)
                && sl_forecast_gpu(&b->machine, a, &g);
    if (b->described)
        cli_note("bounds (%s): %s, its memory %.1f GB/s, link %.1f up and %.1f GB/s down; DRAM "
                 "%.1f GB/s", g.n_gemms ? sl_machine_source_name(b->machine.source) : "datasheet",
                 g.name, g.vram_bytes_s * 1e-9, g.h2d_bytes_s * 1e-9, g.d2h_bytes_s * 1e-9,
                 b->rates.bytes_s * 1e-9);
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
    if (has_device(b)) {
        note_device(b);
        return;
    }
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

/* The engine was opened and will stream: disk and DRAM are to be measured, DRAM while nothing else
 * takes memory, and sequences grow longer. */
static int prepare_streamed(struct bench *b, const struct list *gens)
{
    char w[24];
    uint32_t threads = sl_engine_plan(b->s.engine)->n_threads, longest = 0;
    for (uint32_t i = 0; i < gens->n; i++) longest = SL_MAX(longest, gens->v[i]);
    b->path = cli_model_path(b->engine.model);
    if (!b->path) return CLI_FAILED;
    if (longest)
        b->engine.n_ctx = SL_MAX(b->engine.n_ctx, 2 + b->a->warmup + b->a->repeats * longest);
    b->engine.no_banner = true;
    bench_disk_init(&b->disk, sl_model_shape(b->s.model));
    int code = cli_session_close(&b->s, CLI_DONE);
    if (code == CLI_DONE) code = bench_disk_visit(&b->disk, b->path, threads, b->engine.verbose);
    b->rates.bytes_s = bench_disk_dram(&b->disk);
    if (code == CLI_DONE) code = cli_session_open(&b->engine, &b->group, 1, &b->s);
    if (code == CLI_DONE)
        cli_note("streamed: DRAM now %.1f GB/s; the disk is read in turn with the runs, "
                 "%s at a time",
                 b->rates.bytes_s * 1e-9, cli_bytes(b->disk.bytes, w));
    return code;
}

/* --device names one; whether it is there is found out when the session starts. */
static bool wants_device(const cli_engine_args *e)
{
    char why[160];
    sl_accel a;
    return cli_parse_device(e->device, &a, why) && a.kind != SL_ACCEL_NONE;
}

static int bench_threads(struct bench *b, uint32_t threads, unsigned mask, uint32_t n_ctx,
                         const struct list *prompts, const struct list *gens)
{
    cli_engine_args *e = &b->engine;
    *e = b->a->engine;
    b->group = cli_engine_group(e);
    e->n_ctx = n_ctx;
    e->n_threads = threads;
    e->no_text = true;
    /* On the CPU the flags are the plan; what a device gets is the planner's choice. */
    bool device = wants_device(e);
    sl_load load = { SL_MAX(b->max_prompt, 1), largest(gens) };
    if (device) e->machine = &b->machine;
    int code = cli_session_model(e, &b->s);
    if (code == CLI_DONE)
        code = cli_session_start(e, &b->group, 1, device ? &load : NULL, &b->s);
    if (code == CLI_DONE) code = prepare(b);
    if (code == CLI_DONE) {
        set_rates(b, mask);
        if (sl_engine_plan(b->s.engine)->weights == SL_WEIGHTS_STREAMED)
            code = prepare_streamed(b, gens);
    }
    if (code == CLI_DONE) code = run_tests(b, prompts, gens);
    free(b->steps);
    free(b->tokens);
    b->steps = NULL;
    b->tokens = NULL;
    code = cli_session_close(&b->s, code);
    free(b->path);
    b->path = NULL;
    return code;
}

static int bench_model(const struct args *a, const struct list *prompts, const struct list *gens,
                       const struct list *threads)
{
    struct bench b = { .a = a,
                       .table.format = (bench_format)a->format,
                       .max_prompt = largest(prompts) };
    uint32_t mask, n_ctx = SL_MAX(b.max_prompt, largest(gens)) + 1;
    int code = cli_isa_mask(a->engine.isa, &mask);
    for (uint32_t i = 0; i < threads->n && code == CLI_DONE; i++)
        code = cli_check_threads(threads->v[i]);
    if (code != CLI_DONE) return code;
    /* A model that cannot be read should not cost a probe. */
    sl_ctx *ctx = cli_ctx(a->engine.verbose);
    if (!ctx) return CLI_FAILED;
    char *path = cli_model_path(a->engine.model);
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
        .n_prompt = "512", .n_gen = "128", .repeats = 5, .warmup = 64,
        .engine = cli_engine_defaults()
    };
    cli_option rows[SL_LEN(engine_options)];
    struct list prompts, gens, threads = { .n = 1 };
    cli_group groups[] = {
        { "Tests", options, SL_LEN(options), &a, 0 },
        cli_engine_some(&a.engine, engine_options, SL_LEN(engine_options), rows),
    };
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
        static const char *const tests[] = { "-p", "-n", "-t", "--machine", "--warmup" };
        static const char *const engine[] = { "-m", "-b", "--ram", "--device", "--blas" };
        for (size_t i = 0; i < SL_LEN(tests); i++)
            if (cli_given(&groups[0], tests[i]))
                cli_warn("%s has no effect with --kernels", tests[i]);
        for (size_t i = 0; i < SL_LEN(engine); i++)
            if (cli_given(&groups[1], engine[i]))
                cli_warn("%s has no effect with --kernels", engine[i]);
        return bench_kernels(
            &(bench_kernels_args){ a.types, a.engine.isa, a.repeats, (bench_format)a.format });
    }
    if (!largest(&prompts) && !largest(&gens))
        return cli_usage_error(&spec, "-p 0 -n 0 leaves nothing to test");
    if (cli_given(&groups[0], "--type")) cli_warn("--type has no effect without --kernels");
    return bench_model(&a, &prompts, &gens, &threads);
}
