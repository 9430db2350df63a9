/* tools/cmd_verify.c - `sluice verify`: predicts a run, runs it, and prints how far off it was.
 * Order is what it is about: measure the machine, record how another prompt is routed, predict and
 * write that down, only then run, and measure the machine again. */
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "offload/sl_probe.h"
#include "tools/machine_file.h"
#include "tools/session.h"
#include "tools/validation.h"
#include "tools/verify_batch.h"

enum { TRACE_TOKENS = 64, PROMPT = 512, PROBE_S = 6 };
enum { PART = 4 };              /* a request of the batch has so much of -p and -n */
#define MOST_MOVED 0.05         /* of the forecast, by the rates before and after */
enum { MOST_ATTEMPTS = 3 };     /* what moved that far is measured again so often in all */

struct args {
    const char *text, *trace, *machine, *log;
    uint32_t n_prompt, n_gen, repeats;      /* n_prompt 0: not given */
    uint32_t n_batch;
    bool cold, json;
};

struct verify {
    const struct args *a;
    cli_engine_args engine;
    cli_group *group;           /* of engine */
    sl_ctx *ctx;
    char *log, *path;           /* of the model */
    uint32_t n_prompt, n_expert;    /* n_expert: of the layer that has most */
    uint32_t d_model, d_expert;     /* of the last layer */
    int32_t *prompt, *other;    /* [n_prompt] each, one block */
    sl_type types[SL_N_TYPES];  /* of the model's matrices */
    uint32_t n_types;
    sl_machine machine;         /* before the runs */
    sl_trace *trace;            /* NULL: --cold */
    sl_plan plan;               /* the first session's, and all others' */
    verify_batch batch;
    bool has_peak;              /* cli_peak_rss counts from the session's opening on */
    /* of one attempt */
    uint32_t attempt;
    sl_forecast forecast;
    json_t *head;               /* what prediction and result have in common */
    validation_cell cells[VALIDATION_N];
    double moved;               /* < 0: not known */
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-p,--n-prompt", CLI_U32, "N",
      "tokens of the prompt (default: 512, or what the context holds)", AT(n_prompt), 1, 1 << 20 },
    { "-n,--n-gen", CLI_U32, "N", "tokens drawn behind it (default: 64)", AT(n_gen), 2, 1 << 20 },
    { "-r,--repetitions", CLI_U32, "N", "runs, of which the median counts (default: 3)",
      AT(repeats), 1, VALIDATION_RUNS },
    { "--batch", CLI_U32, "N",
      "requests at once besides, each with a quarter of -p and of -n; 0: none (default: 8)",
      AT(n_batch), 0, 4096 },
    { "-f,--file", CLI_STR, "FILE",
      "a text that begins with the prompt and ends with the other one (default: random tokens)",
      AT(text), 0, 0 },
    { "--trace", CLI_STR, "FILE",
      "forecast by this routing trace (of --trace-routing) instead of recording one", AT(trace), 0,
      0 },
    { "--cold", CLI_FLAG, NULL, "forecast without any trace: nothing of the model is run first",
      AT(cold), 0, 0 },
    { "--machine", CLI_STR, "FILE",
      "forecast by this machine file: the machine is not measured, neither before nor after",
      AT(machine), 0, 0 },
    { "--log", CLI_STR, "FILE",
      "append prediction and result here (default: validation.jsonl in the user's data folder)",
      AT(log), 0, 0 },
    { "--json", CLI_FLAG, NULL, "the log's line on stdout instead of the table", AT(json), 0, 0 },
};
#undef AT

static const char *const about =
    "Predicts, then runs, then says how far off it was. Measures memory, arithmetic and disk for about\n"
    "10 s, records which experts 64 tokens behind another prompt choose, writes down what that predicts,\n"
    "runs, and measures the machine again. Where its rates moved by more than 5 % (of what they\n"
    "forecast), all is done again, twice at most. `cold` is the forecast without the trace. Errors are predicted\n"
    "over measured, less 1; of shares, predicted less measured. Streamed runs begin with nothing in\n"
    "RAM but the dense weights; with all weights in RAM a run that does not count comes first. The\n"
    "batch is planned, forecast (without a trace) and run as `sluice batch` does it.";

/* The model's header, for a moment: an engine of its own takes memory that counts. */
static int open_header(struct verify *v, sl_model **ret)
{
    return sl_model_open(v->ctx, v->path, ret) == SL_OK ? CLI_DONE : cli_fail_ctx(v->ctx);
}

/* ---- prompts ---- */

static void random_tokens(int32_t *ids, uint32_t n, uint32_t n_vocab, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u;
    for (uint32_t i = 0; i < n; i++) {          /* Knuth's MMIX generator */
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((x >> 33) % n_vocab);
    }
}

static int tokens_of_text(struct verify *v, const sl_model *m)
{
    const sl_vocab *vocab = sl_model_vocab(m);
    char *text = NULL;
    int32_t *ids = NULL;
    size_t n_text = 0;
    uint32_t n = 0;
    if (!vocab) return cli_fail("-f %s: the model has no tokenizer", v->a->text);
    sl_status st = cli_read_file(v->ctx, v->a->text, &text, &n_text);
    if (st == SL_OK) st = sl_vocab_encode(v->ctx, vocab, text, n_text, true, true, &ids, &n);
    free(text);
    if (st != SL_OK) return cli_fail_ctx(v->ctx);
    bool enough = n >= 2 * v->n_prompt;
    if (enough) {
        memcpy(v->prompt, ids, v->n_prompt * sizeof *ids);
        memcpy(v->other, ids + n - v->n_prompt, v->n_prompt * sizeof *ids);
    }
    free(ids);
    return enough ? CLI_DONE
                  : cli_fail("-f %s has %" PRIu32 " tokens: two prompts of %" PRIu32
                             " are needed (-p)", v->a->text, n, v->n_prompt);
}

/* How many tokens the prompt has, and which. The context is raised where the default is short. */
static int set_prompts(struct verify *v, const sl_model *m)
{
    const sl_shape *shape = sl_model_shape(m);
    uint32_t drawn = SL_MAX(v->a->n_gen, (uint32_t)TRACE_TOKENS), room = UINT32_MAX;
    bool own = v->engine.n_ctx != CLI_CTX_DEFAULT && v->engine.n_ctx;
    if (own) room = v->engine.n_ctx;
    else if (shape->n_ctx_train) room = shape->n_ctx_train;
    v->n_prompt = v->a->n_prompt ? v->a->n_prompt : PROMPT;
    if (room <= drawn && own)
        return cli_fail("-c %" PRIu32 " is too small: %" PRIu32
                        " tokens are drawn behind the prompt", room, drawn);
    if (!v->a->n_prompt && room > drawn) v->n_prompt = SL_MIN(v->n_prompt, room - drawn);
    if (v->n_prompt + drawn > room && own)
        return cli_fail("a prompt of %" PRIu32 " and %" PRIu32 " tokens drawn do not fit -c %"
                        PRIu32, v->n_prompt, drawn, room);
    if (v->n_prompt + drawn > room) v->engine.n_ctx = v->n_prompt + drawn;
    v->engine.ctx_cap = SL_MAX(v->engine.ctx_cap, v->n_prompt + drawn);
    v->prompt = calloc(2 * (size_t)v->n_prompt, sizeof *v->prompt);
    if (!v->prompt) return cli_fail("out of memory");
    v->other = v->prompt + v->n_prompt;
    if (v->a->text) return tokens_of_text(v, m);
    random_tokens(v->prompt, 2 * v->n_prompt, shape->n_vocab, 1);
    return CLI_DONE;
}

/* ---- what is said of the model and the plan ---- */

static const char *quant_name(const sl_shape *shape)
{
    double bytes[SL_N_TYPES] = { 0 };
    int best = SL_N_TYPES;
    for (uint32_t l = 0; l < shape->n_layer; l++)
        for (int i = 0; i < SL_SHAPE_TYPES; i++) {
            const sl_layer_shape *s = &shape->layers[l];
            const sl_part *p = s->n_expert ? &s->expert[i] : &s->ffn[i];
            const sl_type_info *t = sl_type_get(p->type);
            if (!p->elems || !t->name) continue;
            bytes[p->type] += (double)p->elems * t->block_bytes / t->block_elems;
            if (best == SL_N_TYPES || bytes[p->type] > bytes[best]) best = p->type;
        }
    return best < SL_N_TYPES ? sl_type_get((uint32_t)best)->name : "";
}

static void iso_now(char ret[24])
{
    time_t now = time(NULL);
    struct tm t;
    gmtime_r(&now, &t);
    strftime(ret, 24, "%Y-%m-%dT%H:%M:%SZ", &t);
}

/* The fields that predictions and results share. */
static json_t *describe(const struct verify *v, const cli_session *s, const char *predicted_at)
{
    const sl_plan *p = &v->plan;
    const sl_shape *shape = sl_model_shape(s->model);
    char id[64];
    snprintf(id, sizeof id, "%s-%d-%" PRIu32, predicted_at, (int)getpid(), v->attempt);
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, "
                     "s:I, s:I, s:I, s:s, s:I, s:s*}",
                     "sluice_validation", 1, "id", id, "predicted_at", predicted_at, "model",
                     sl_model_name(s->model), "arch", sl_model_arch(s->model), "quant",
                     quant_name(shape), "model_bytes", (json_int_t)shape->total_bytes, "cpu",
                     v->machine.id.cpu, "isa", v->machine.id.isa, "probe",
                     sl_machine_source_name(v->machine.source), "mode", p->mode, "threads",
                     (json_int_t)p->n_threads, "max_rows", (json_int_t)p->max_rows, "budget_bytes",
                     (json_int_t)s->budget_bytes, "n_prompt", (json_int_t)v->n_prompt, "n_gen",
                     (json_int_t)v->a->n_gen, "repeats", (json_int_t)v->a->repeats, "n_batch",
                     (json_int_t)v->batch.n, "grade", sl_grade_name(v->forecast.grade), "attempt",
                     (json_int_t)v->attempt, "device",
                     p->split.accel.kind ? v->engine.device : NULL);
}

/* Appends the line of this kind to the log; *ret_line (may be NULL) is the caller's then. */
static int write_line(struct verify *v, const char *kind, json_t **ret_line)
{
    json_t *line = json_deep_copy(v->head);
    char now[24];
    iso_now(now);
    bool done = strcmp(kind, "prediction") != 0;
    int bad = json_object_set_new(line, "kind", json_string(kind));
    if (done) bad |= json_object_set_new(line, "date", json_string(now));
    if (done && v->moved >= 0) bad |= json_object_set_new(line, "moved", json_real(v->moved));
    bad |= json_object_set_new(line, "quantities",
                               validation_json(v->cells, v->trace != NULL));
    int code = bad ? cli_fail("out of memory") : CLI_DONE;
    if (!bad && validation_append(v->ctx, v->log, line) != SL_OK) code = cli_fail_ctx(v->ctx);
    if (code == CLI_DONE && ret_line) *ret_line = line;
    else json_decref(line);
    return code;
}

/* ---- what is known before the runs ---- */

static void add_types(struct verify *v, const sl_part *parts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bool known = !parts[i].elems || !sl_type_get(parts[i].type)->matmul;
        for (uint32_t k = 0; k < v->n_types; k++) known |= v->types[k] == parts[i].type;
        if (!known) v->types[v->n_types++] = parts[i].type;
    }
}

/* Which kinds of products, and how many experts. */
static void note_shape(struct verify *v, const sl_shape *shape)
{
    v->d_model = shape->d_model;
    add_types(v, &shape->head, 1);
    for (uint32_t l = 0; l < shape->n_layer; l++) {
        const sl_layer_shape *s = &shape->layers[l];
        v->n_expert = SL_MAX(v->n_expert, s->n_expert);
        uint64_t flops = s->expert_flops_row ? s->expert_flops_row : s->ffn_flops_row;
        v->d_expert = (uint32_t)(flops / 6 / shape->d_model);      /* 3 products of d_model x it */
        add_types(v, s->qkv, SL_LEN(s->qkv));
        add_types(v, s->post, SL_LEN(s->post));
        add_types(v, &s->router, 1);
        add_types(v, s->ffn, SL_LEN(s->ffn));
        add_types(v, s->expert, SL_LEN(s->expert));
    }
}

static void probe_progress(void *user, const char *what, double share)
{
    (void)user;
    if (isatty(2)) fprintf(stderr, "\r%3.0f %%  %-40s", 100 * share, what);
}

/* What the run uses of this machine: its threads, the model's types, the model's own file. */
static int probe(const struct verify *v, sl_machine *ret)
{
    sl_machine_id id;
    double start_s = cli_now_s();
    cli_note("measuring this machine");
    if (sl_probe_identify(v->ctx, &id) != SL_OK) return cli_fail_ctx(v->ctx);
    /* without -t the planner chooses, and an emulated device has cores of its own */
    uint32_t given = v->engine.device ? 0 : v->engine.n_threads;
    uint32_t threads[] = { given ? given : 1, id.cores };
    sl_probe_params p = { .types = v->types, .n_types = v->n_types, .threads = threads,
                          .n_threads = given || id.cores == 1 ? 1 : 2, .d_model = v->d_model,
                          .d_expert = v->d_expert, .seconds = PROBE_S,
                          .progress = probe_progress };
    sl_status st = sl_probe_run(v->ctx, &p, ret);
    if (isatty(2)) fprintf(stderr, "\r%50s\r", "");
    if (st != SL_OK) return cli_fail_ctx(v->ctx);
    sl_probe_disk_params dp = { .brief = true, .file = v->path, .progress = probe_progress };
    st = sl_probe_disk(v->ctx, &dp, ret);
    if (isatty(2)) fprintf(stderr, "\r%50s\r", "");
    if (st != SL_OK) cli_warn("the disk is not measured: %s", sl_error(v->ctx));
    ret->disk.first_bytes_s = 0;        /* by then a trace was recorded, or another run was made */
    if (cli_interrupted()) return CLI_INTERRUPTED;
    if (v->engine.verbose) cli_note("measured in %.1f s", cli_now_s() - start_s);
    return CLI_DONE;
}

/* Is the trace of a model of this shape? */
static int check_trace(const struct verify *v, const sl_shape *shape)
{
    if (v->trace->n_layer == shape->n_layer && v->trace->n_expert == v->n_expert) return CLI_DONE;
    return cli_fail("the trace is of %" PRIu32 " layers of %" PRIu32
                    " experts, the model has %" PRIu32 " of %" PRIu32,
                    v->trace->n_layer, v->trace->n_expert, shape->n_layer, v->n_expert);
}

/* Forecasts of v->plan on a machine: the best there is, and without the trace. */
static int predict(const struct verify *v, const sl_shape *shape, const sl_machine *machine,
                   sl_forecast *ret, sl_forecast *ret_cold)
{
    sl_miss_model miss;
    sl_misses misses;
    int code = cli_miss_model(v->ctx, shape, NULL, true, &miss);
    if (code != CLI_DONE) return code;
    sl_machine m = *machine;
    if (!cli_machine_card(v->ctx, &v->plan.split.accel, &m)) return CLI_FAILED;
    miss.traced = !v->n_expert;         /* nothing is routed: nothing is left to know */
    sl_forecast_in in = { .machine = &m, .shape = shape, .plan = &v->plan, .miss = &miss,
                          .load = { v->n_prompt, v->a->n_gen } };
    if (sl_sim_run(v->ctx, &in, NULL, NULL, ret_cold) != SL_OK) return cli_fail_ctx(v->ctx);
    *ret = *ret_cold;
    if (!v->trace) return CLI_DONE;
    bool streamed = v->plan.weights == SL_WEIGHTS_STREAMED;
    sl_status st = sl_trace_miss_model(v->ctx, v->trace, (sl_policy)v->plan.policy, &miss);
    if (st == SL_OK && streamed)
        st = sl_trace_misses(v->ctx, v->trace, shape, &v->plan, 0, &misses);
    if (streamed) in.misses = &misses;
    if (st == SL_OK) st = sl_sim_run(v->ctx, &in, NULL, NULL, ret);
    return st == SL_OK ? CLI_DONE : cli_fail_ctx(v->ctx);
}

/* ---- running ---- */

static int generate(const struct verify *v, cli_session *s, const int32_t *prompt, uint32_t n_gen,
                    cli_gen *g)
{
    static const cli_strings no_stops = { .n = 0 };
    *g = (cli_gen){ .stops = &no_stops,
                    .request = { .tokens = prompt, .n_tokens = v->n_prompt, .n_predict = n_gen,
                                 .ignore_eog = true, .sampler = sl_sampler_defaults() } };
    g->request.sampler.seed = prompt == v->prompt ? 1 : 2;
    int code = cli_generate(s, g);
    if (code == CLI_DONE) sl_engine_cancel(s->engine, g->seq);
    cli_gen_free(g);
    return code;
}

/* From here on cli_peak_rss counts anew; false: this kernel does not let us. */
static bool forget_peak(void)
{
    malloc_trim(0);
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, "5", 1) == 1;
    if (fd >= 0) close(fd);
    return ok;
}

/* The first one plans, as `sluice run` does, the others take its plan. */
static int open_session(struct verify *v, cli_session *s)
{
    sl_load load = { v->n_prompt, v->a->n_gen };
    v->has_peak = forget_peak();
    int code = cli_session_model(&v->engine, s);
    if (code == CLI_DONE) code = cli_session_start(&v->engine, v->group, 1, &load, s);
    if (code != CLI_DONE) return code;
    v->plan = *sl_engine_plan(s->engine);
    v->engine.ready = &v->plan;
    v->engine.no_banner = true;
    return CLI_DONE;
}

/* Records the routing of the other prompt, into the file that the user named or one of our own. */
static int record_trace(struct verify *v)
{
    char path[] = "/tmp/sluice-trace-XXXXXX";
    const char *kept = v->engine.trace;
    int fd = kept ? -1 : mkstemp(path);
    if (!kept && fd < 0) return cli_fail("cannot make a file in /tmp for the routing trace");
    if (fd >= 0) close(fd);
    if (!kept) v->engine.trace = path;
    cli_session s;
    cli_gen g;
    cli_note("recording how %d tokens behind another prompt are routed", TRACE_TOKENS);
    int code = open_session(v, &s);
    if (code == CLI_DONE) code = generate(v, &s, v->other, TRACE_TOKENS, &g);
    code = cli_session_close(&s, code);
    if (code == CLI_DONE && sl_trace_load(v->ctx, v->engine.trace, &v->trace) != SL_OK)
        code = cli_fail_ctx(v->ctx);
    if (!kept) unlink(path);
    v->engine.trace = NULL;
    return code;
}

static void take(struct verify *v, const cli_gen *g)
{
    double now[VALIDATION_N] = { 0 };
    now[VALIDATION_PROMPT] = g->prompt_tok_per_s;
    now[VALIDATION_TTFT] = g->ttft_s;
    now[VALIDATION_DECODE] = g->decode_tok_per_s;
    now[VALIDATION_HITS] = g->hit_rate;
    now[VALIDATION_DISK] = g->disk_bytes_per_token;
    now[VALIDATION_STALL] = g->stall_share;
    now[VALIDATION_PEAK] = (double)cli_peak_rss();
    for (int q = 0; q < VALIDATION_N; q++)
        if (v->cells[q].there && q != VALIDATION_BATCH)
            v->cells[q].run[v->cells[q].n_runs++] = now[q];
}

/* Writes the prediction down for the plan of the session, which has run nothing yet. */
static int predict_first(struct verify *v, const cli_session *s)
{
    char now[24];
    double best[VALIDATION_N], cold[VALIDATION_N];
    sl_forecast f, f_cold;
    int code = predict(v, sl_model_shape(s->model), &v->machine, &f, &f_cold);
    if (code != CLI_DONE) return code;
    v->forecast = f;
    validation_of_forecast(&f, best);
    validation_of_forecast(&f_cold, cold);
    bool streamed = v->plan.weights == SL_WEIGHTS_STREAMED;
    for (int q = 0; q < VALIDATION_N; q++) {
        bool of_streams = q == VALIDATION_HITS || q == VALIDATION_DISK || q == VALIDATION_STALL;
        v->cells[q] = (validation_cell){ .there = of_streams ? streamed : true,
                                         .predicted = best[q], .cold = cold[q] };
    }
    v->cells[VALIDATION_BATCH] = (validation_cell){ .there = v->batch.n > 0 };
    v->cells[VALIDATION_BATCH].predicted = v->cells[VALIDATION_BATCH].cold =
        v->batch.choice.forecast.tok_per_s;
    /* an emulated device's memory is the process's too, and in no plan */
    v->cells[VALIDATION_PEAK].there = v->has_peak && v->plan.split.accel.kind != SL_ACCEL_EMU;
    iso_now(now);
    json_decref(v->head);
    v->head = describe(v, s, now);
    if (!v->head) return cli_fail("out of memory, or a name of the model is no UTF-8");
    return write_line(v, "prediction", NULL);
}

static void progress(const struct verify *v, uint32_t i)
{
    if (!isatty(2)) return;
    if (i == v->a->repeats) fprintf(stderr, "\r%40s\r", "");
    else fprintf(stderr, "\rrun %" PRIu32 " of %" PRIu32 "   ", i + 1, v->a->repeats);
}

static int plan_batch(struct verify *v)
{
    v->batch = (verify_batch){ .n = v->a->n_batch, .n_prompt = SL_MAX(v->n_prompt / PART, 1),
                               .n_gen = SL_MAX(v->a->n_gen / PART, 1) };
    return v->batch.n ? verify_batch_plan(&v->engine, v->group, &v->machine, &v->batch) : CLI_DONE;
}

static int run_batch(struct verify *v)
{
    validation_cell *c = &v->cells[VALIDATION_BATCH];
    int code = CLI_DONE;
    while (code == CLI_DONE && v->batch.n && c->n_runs < v->a->repeats)
        code = verify_batch_run(&v->engine, v->group, &v->batch, v->prompt, 2 * v->n_prompt,
                                &c->run[c->n_runs++]);
    return code;
}

/* Streamed experts: every run has an engine of its own, whose slots are empty. In RAM all share
 * one, warmed up. */
static int run_all(struct verify *v)
{
    cli_session s;
    cli_gen g;
    int code = plan_batch(v);
    if (code != CLI_DONE) return code;
    code = open_session(v, &s);
    if (code == CLI_DONE) code = predict_first(v, &s);
    bool streamed = v->plan.weights == SL_WEIGHTS_STREAMED;
    if (code == CLI_DONE && !streamed) code = generate(v, &s, v->other, 4, &g);
    for (uint32_t i = 0; i < v->a->repeats && code == CLI_DONE; i++) {
        progress(v, i);
        if (i && streamed) {
            code = cli_session_close(&s, code);
            if (code == CLI_DONE) code = open_session(v, &s);
        }
        if (code == CLI_DONE && cli_interrupted()) code = CLI_INTERRUPTED;
        if (code == CLI_DONE) code = generate(v, &s, v->prompt, v->a->n_gen, &g);
        if (code == CLI_DONE) take(v, &g);
    }
    progress(v, v->a->repeats);
    code = cli_session_close(&s, code);
    return code == CLI_DONE ? run_batch(v) : code;
}

/* ---- how far the machine moved ---- */

static double apart(double a, double b)
{
    return a > 0 && b > 0 ? fabs(b / a - 1) : 0;
}

/* The same plan forecast by what the machine does now. */
static int find_moved(struct verify *v, const sl_machine *after)
{
    sl_model *m = NULL;
    sl_forecast f, cold;
    int code = open_header(v, &m);
    if (code == CLI_DONE) code = predict(v, sl_model_shape(m), after, &f, &cold);
    if (code == CLI_DONE)
        v->moved = fmax(apart(v->forecast.prompt.tok_per_s, f.prompt.tok_per_s),
                        apart(v->forecast.decode.tok_per_s, f.decode.tok_per_s));
    sl_model_close(&m);
    return code;
}

/* Runs, and again where the rates moved. *ret_line is what counts. */
static int run_cell(struct verify *v, json_t **ret_line)
{
    sl_machine after;
    for (v->attempt = 1;; v->attempt++) {
        v->moved = -1;
        int code = run_all(v);
        if (code == CLI_DONE && !v->a->machine) {
            code = probe(v, &after);
            if (code == CLI_DONE) code = find_moved(v, &after);
        }
        if (code != CLI_DONE) return code;
        bool again = v->moved > MOST_MOVED && v->attempt < MOST_ATTEMPTS;
        code = write_line(v, again ? "moved" : "verified", again ? NULL : ret_line);
        if (code != CLI_DONE || !again) return code;
        cli_note("the machine's rates moved by %.1f %%: again", 100 * v->moved);
        v->machine = after;
    }
}

/* ---- the result ---- */

/* A value as the table shows it. */
static void show(validation_quantity q, double x, char ret[24])
{
    switch (q) {
    case VALIDATION_TTFT: snprintf(ret, 24, "%.3f s", x); break;
    case VALIDATION_HITS:
    case VALIDATION_STALL: snprintf(ret, 24, "%.1f %%", 100 * x); break;
    case VALIDATION_DISK:
    case VALIDATION_PEAK: cli_bytes((uint64_t)x, ret); break;
    default: snprintf(ret, 24, "%.2f", x);
    }
}

static void print_table(const struct verify *v)
{
    static const char *const titles[VALIDATION_N] = {
        "prompt tok/s", "first token", "decode tok/s", "batch tok/s", "hits", "read per token",
        "waiting", "peak memory",
    };
    bool cold = v->trace != NULL;
    char a[24], b[24], c[24];
    printf("%-15s %12s %12s %12s %9s %9s\n", "", "predicted", cold ? "cold" : "",
           "measured", "error", "spread");
    for (int i = 0; i < VALIDATION_N; i++) {
        const validation_cell *cell = &v->cells[i];
        validation_quantity q = (validation_quantity)i;
        if (!cell->there) continue;
        double measured = validation_measured(cell);
        show(q, cell->predicted, a);
        show(q, cell->cold, b);
        show(q, measured, c);
        printf("%-15s %12s %12s %12s %+7.1f %% %7.1f %%\n", titles[i], a, cold ? b : "", c,
               100 * validation_error(q, cell->predicted, measured),
               100 * validation_spread(q, cell));
    }
    printf("\nprompt of %" PRIu32 ", %" PRIu32 " drawn, median of %" PRIu32 " run%s; predicted "
           "(%s) at %s", v->n_prompt, v->a->n_gen, v->a->repeats, v->a->repeats == 1 ? "" : "s",
           sl_grade_name(v->forecast.grade),
           json_string_value(json_object_get(v->head, "predicted_at")));
    if (v->batch.n)
        printf("; batch of %" PRIu32 " prompts of %" PRIu32 ", %" PRIu32 " drawn each, %" PRIu32
               " at once", v->batch.n, v->batch.n_prompt, v->batch.n_gen,
               v->batch.choice.plan.n_seq);
    if (v->moved >= 0)
        printf("; rates before and after forecast %.1f %% apart%s", 100 * v->moved,
               v->attempt > 1 ? ", after tries that were given up" : "");
    putchar('\n');
}

/* The model's header, its prompts, the machine, a trace: all that comes before the runs. */
static int prepare(struct verify *v)
{
    sl_model *m = NULL;
    int code = open_header(v, &m);
    if (code == CLI_DONE) code = set_prompts(v, m);
    if (code == CLI_DONE) note_shape(v, sl_model_shape(m));
    if (code == CLI_DONE && v->a->trace && sl_trace_load(v->ctx, v->a->trace, &v->trace) != SL_OK)
        code = cli_fail_ctx(v->ctx);
    if (code == CLI_DONE && v->trace) code = check_trace(v, sl_model_shape(m));
    sl_model_close(&m);
    if (code == CLI_DONE)
        code = v->a->machine ? cli_machine(v->ctx, v->a->machine, &v->machine, NULL)
                             : probe(v, &v->machine);
    if (code == CLI_DONE && v->n_expert && !v->a->trace && !v->a->cold) code = record_trace(v);
    return code;
}

static int run_verify(struct verify *v)
{
    json_t *line = NULL;
    v->ctx = cli_ctx(v->engine.verbose);
    v->path = v->ctx ? cli_model_path(v->engine.model) : NULL;
    v->log = v->a->log ? strdup(v->a->log) : validation_path();
    if (!v->ctx || !v->path) return CLI_FAILED;
    if (!v->log) return cli_fail("neither XDG_DATA_HOME nor HOME is set: name the log with --log");
    int code = cli_check_threads(v->engine.n_threads);
    if (code == CLI_DONE) code = prepare(v);
    if (code == CLI_DONE) code = run_cell(v, &line);
    if (code != CLI_DONE) return code;
    cli_note("written to %s", v->log);
    if (v->a->json) return cli_print_json(line, CLI_DONE);
    print_table(v);
    json_decref(line);
    return cli_end_stdout(CLI_DONE);
}

int cmd_verify(int argc, char **argv)
{
    struct args a = { .n_gen = 64, .repeats = 3, .n_batch = 8 };
    struct verify v = { .a = &a, .engine = cli_engine_defaults() };
    cli_group groups[] = { { "Options", options, SL_LEN(options), &a, 0 },
                           cli_engine_group(&v.engine) };
    cli_spec spec = { "verify", "[-m MODEL] [-p N] [-n N] [-r N] [--ram SIZE] [options]", about,
                      groups, SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (a.trace && a.cold) return cli_usage_error(&spec, "--trace and --cold exclude each other");
    if (v.engine.isa || v.engine.activations || v.engine.blas)
        return cli_usage_error(&spec, "--isa, --activations and --blas: measured are the kernels "
                                      "that run by default");
    if (v.engine.trace && (a.trace || a.cold)) {
        cli_warn("--trace-routing has no effect: with --trace or --cold nothing is recorded");
        v.engine.trace = NULL;
    }
    v.group = &groups[1];
    v.engine.no_text = true;
    v.engine.machine = &v.machine;
    code = run_verify(&v);
    json_decref(v.head);
    sl_trace_free(v.ctx, &v.trace);
    sl_ctx_destroy(&v.ctx);
    free(v.prompt);
    free(v.path);
    free(v.log);
    return code;
}
