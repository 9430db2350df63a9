/* tests/measure_three_way.c - who computes experts that an accelerator has no room for, measured on
 * emulated ones: the planner's choice beside the pure rules of tests/t_three_way.c, each the best
 * plan of its kind by forecast. The table stands in docs/prediction.md.
 *     measure_three_way MODEL.gguf MACHINE.json MEM_MIB LINK_GB_S [ROUNDS [PROMPT [GEN]]]
 * One core computes for the device; the others attend, drive, make the copies and compute what is
 * left to the CPU, and without a device all of it. A round runs every plan once, in turn. ROUNDS 0:
 * forecasts only. */
#include "offload/sl_machine_json.h"
#include "perfmodel/sl_planner.h"
#include "runtime/sluice.h"
#include "tests/t.h"

#include <math.h>
#include <time.h>

#define NEVER ((uint32_t)1 << 30)       /* rows that no pass has */

enum { MAX_ROUNDS = 16, WARM = 4 };

typedef struct rule {
    const char *name;
    bool device;
    uint32_t n_stay, send_rows, send_all_rows;
} rule;
static const rule rules[] = {
    { "the planner's", true, SL_PLAN_AUTO, SL_PLAN_AUTO, SL_PLAN_AUTO },
    { "all sent", true, 0, 1, SL_PLAN_AUTO },
    { "all on the CPU", true, 0, NEVER, NEVER },
    { "some stay, CPU", true, SL_PLAN_AUTO, NEVER, NEVER },
    { "some stay, sent", true, SL_PLAN_AUTO, 1, SL_PLAN_AUTO },
    { "no device", false, SL_PLAN_AUTO, SL_PLAN_AUTO, SL_PLAN_AUTO },
};
enum { N = SL_LEN(rules) };

static struct run {
    bool fits;
    sl_choice choice;
    uint32_t n;
    double prompt_s[MAX_ROUNDS], gen_s[MAX_ROUNDS];
} runs[N];

static sl_ctx *ctx;
static sl_model *m;
static sl_machine machine;
static sl_load load;
static int32_t *tokens;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *v, uint32_t n)
{
    double s[MAX_ROUNDS];
    memcpy(s, v, n * sizeof *v);
    qsort(s, n, sizeof *s, ascending);
    return n % 2 ? s[n / 2] : (s[n / 2 - 1] + s[n / 2]) / 2;
}

/* As `sluice run` plans, but for what the rule fixes. */
static void make_plan(const rule *r, const sl_accel *accel, const sl_miss_model *miss,
                      struct run *ret)
{
    sl_planner_params q = { .base = sl_plan_defaults(), .keep = 0.05, .load = load };
    q.base.n_ctx = load.n_prompt + load.n_gen + 32;
    if (r->device) q.base.accel = *accel;
    else q.base.n_threads = machine.id.cores - accel->n_cores, q.fix_threads = true;
    q.base.n_stay = r->n_stay;
    q.base.send_rows = r->send_rows;
    q.base.send_all_rows = r->send_all_rows;
    ret->fits = sl_planner_run(ctx, &machine, sl_model_shape(m), miss, &q, false, &ret->choice)
             == SL_OK;
    if (!ret->fits) printf("%s: %s\n", r->name, sl_error(ctx));
}

/* Until the sequence is idle; *ret_first: when the first token came. */
static void steps(sl_engine *e, const sl_request *r, double *ret_first)
{
    sl_seq id;
    *ret_first = 0;
    T_NEED(sl_engine_submit(e, r, &id) == SL_OK, "%s", sl_error(ctx));
    while (sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
        for (uint32_t i = 0; i < n && *ret_first == 0; i++)
            if (ev[i].kind == SL_EV_TOKEN) *ret_first = now_s();
    }
    sl_engine_cancel(e, id);
}

/* Tokens are drawn at temperature 1 with one seed: the same ones under every plan. */
static void run_once(const char *name, struct run *r)
{
    sl_engine *e = NULL;
    double first;
    sl_request req = { .tokens = tokens, .n_tokens = load.n_prompt, .n_predict = WARM,
                       .ignore_eog = true, .sampler = sl_sampler_defaults() };
    req.sampler.temp = 1;
    req.sampler.top_k = 0;
    req.sampler.top_p = 1;
    req.sampler.min_p = 0;
    req.sampler.seed = 1;
    T_NEED(sl_engine_open(ctx, m, &r->choice.plan, &e) == SL_OK, "%s", sl_error(ctx));
    req.n_tokens = SL_MIN(load.n_prompt, 16);
    steps(e, &req, &first);
    req.n_tokens = load.n_prompt;
    req.n_predict = load.n_gen;
    double start = now_s();
    steps(e, &req, &first);
    r->prompt_s[r->n] = first - start;
    r->gen_s[r->n] = now_s() - first;
    printf("%s: %.3f + %.3f s\n", name, r->prompt_s[r->n], r->gen_s[r->n]);
    r->n++;
    sl_engine_close(&e);
}

static void print_plan(const rule *r, const struct run *x)
{
    const sl_split *s = &x->choice.plan.split;
    const sl_forecast *f = &x->choice.forecast;
    printf("%s: %.3f s forecast, %s binds the prompt, %s the rest; ", r->name,
           f->prompt.seconds + f->decode.seconds, sl_resource_name(f->prompt.binding),
           sl_resource_name(f->decode.binding));
    if (r->device)
        printf("%u experts of a layer stay, %u layers' dense matrices, sent from %u rows on, all "
               "from %u, %u lanes, KV %d, prompts %d, head %d; ",
               s->n_stay, s->n_dense_layers, s->send_rows, s->send_all_rows, s->n_lanes, s->kv,
               s->prompts, s->head);
    printf("passes of %u rows, %u threads\n", x->choice.plan.max_rows, x->choice.plan.n_threads);
}

/* Of the seconds of both phases: the rule's over the planner's, in each round. */
static double against_planned(const struct run *x)
{
    double ratio[MAX_ROUNDS];
    for (uint32_t i = 0; i < x->n; i++)
        ratio[i] = (x->prompt_s[i] + x->gen_s[i]) / (runs[0].prompt_s[i] + runs[0].gen_s[i]);
    return median(ratio, x->n);
}

static void print_row(const rule *r, const struct run *x)
{
    const sl_forecast *f = &x->choice.forecast;
    double prompt = median(x->prompt_s, x->n), gen = median(x->gen_s, x->n), all = prompt + gen;
    double forecast = f->prompt.seconds + f->decode.seconds;
    printf("| %s | %.0f / %.1f | %.0f / %.1f | %.2f s | %.2f s | %+.0f %% | %.2f |\n", r->name,
           f->prompt.tok_per_s, f->decode.tok_per_s, load.n_prompt / prompt,
           (load.n_gen - 1) / gen, forecast, all, 100 * (all / forecast - 1),
           against_planned(x));
}

int main(int argc, char **argv)
{
    T_NEED(argc > 4, "usage: measure_three_way MODEL MACHINE MEM_MIB LINK_GB_S [numbers]");
    double rate = 1e9 * strtod(argv[4], NULL);
    uint32_t n_rounds = argc > 5 ? (uint32_t)strtoul(argv[5], NULL, 10) : 3;
    load.n_prompt = argc > 6 ? (uint32_t)strtoul(argv[6], NULL, 10) : 192;
    load.n_gen = argc > 7 ? (uint32_t)strtoul(argv[7], NULL, 10) : 32;
    T_NEED(n_rounds <= MAX_ROUNDS && load.n_prompt && load.n_gen > 1, "numbers");
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(sl_model_open(ctx, argv[1], &m) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_machine_load(ctx, argv[2], &machine) == SL_OK, "%s", sl_error(ctx));
    const sl_shape *shape = sl_model_shape(m);
    sl_miss_model miss = { .n_points = 0 };     /* a random router: hits are the share that stays */
    sl_accel accel = { .kind = SL_ACCEL_EMU, .n_cores = 1, .up_bytes_s = rate,
                       .down_bytes_s = rate, .link_s = 10e-6,
                       .mem_bytes = (uint64_t)strtoull(argv[3], NULL, 10) << 20 };
    tokens = calloc(load.n_prompt, sizeof *tokens);
    T_NEED(tokens, "memory");
    for (uint32_t i = 0; i < load.n_prompt; i++) tokens[i] = (int32_t)t_below(shape->n_vocab);
    for (int i = 0; i < N; i++) {
        make_plan(&rules[i], &accel, &miss, &runs[i]);
        if (runs[i].fits) print_plan(&rules[i], &runs[i]);
    }
    for (uint32_t k = 0; k < n_rounds; k++)
        for (int i = 0; i < N; i++)
            if (runs[i].fits) run_once(rules[i].name, &runs[i]);
    if (n_rounds)
        puts("| | forecast: prompt / writing, tok/s | measured | forecast | measured | measured "
             "over forecast | over the planner's |\n|---|---:|---:|---:|---:|---:|---:|");
    for (int i = 0; i < N && n_rounds; i++)
        if (runs[i].fits) print_row(&rules[i], &runs[i]);
    free(tokens);
    sl_model_close(&m);
    sl_ctx_destroy(&ctx);
    return 0;
}
