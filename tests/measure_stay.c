/* tests/measure_stay.c - experts that stay on an emulated accelerator: the first ones against those
 * that follow the routing (runtime/board.h), in turn.
 *     measure_stay MODEL.gguf MEM_MIB LINK_GB_S STAY [TOKENS [ROUNDS [PROMPT_TEXT]]]
 * One sequence, tokens drawn at temperature 0.8 with one seed: both compute the same ones. One core
 * computes for the device; the other one computes the experts that do not stay, drives, and makes
 * the copies. The table stands in docs/learned.md. */
#include "runtime/sluice.h"
#include "tests/t.h"

#include <time.h>

enum { MAX_ROUNDS = 32, MAX_PROMPT = 256 };

static sl_ctx *ctx;
static sl_model *m;
static int32_t prompt[MAX_PROMPT];
static uint32_t n_prompt, n_tokens = 128;

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

static double median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* Seconds a token, of the second half, and a hash of what was drawn. */
static double run(const sl_plan_params *p, sl_engine_stats *ret_stats, uint64_t *ret_hash)
{
    sl_engine *e = NULL;
    sl_plan plan;
    sl_seq id;
    sl_request r = { .tokens = prompt, .n_tokens = n_prompt, .n_predict = n_tokens,
                     .ignore_eog = true, .sampler = sl_sampler_defaults() };
    r.sampler.temp = 0.8f;
    r.sampler.seed = 1;
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), p, &plan) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_engine_submit(e, &r, &id) == SL_OK, "%s", sl_error(ctx));
    double half = 0;
    uint32_t drawn = 0;
    *ret_hash = 0;
    while (sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
        for (uint32_t i = 0; i < n; i++) {
            if (ev[i].kind != SL_EV_TOKEN) continue;
            if (++drawn == n_tokens / 2) half = now_s();
            *ret_hash = *ret_hash * 1000003 + (uint64_t)ev[i].token;
        }
    }
    double s = (now_s() - half) / (n_tokens - n_tokens / 2);
    sl_engine_get_stats(e, ret_stats);
    sl_engine_close(&e);
    return s;
}

static double number(int argc, char **argv, int i, double otherwise)
{
    return argc > i ? strtod(argv[i], NULL) : otherwise;
}

int main(int argc, char **argv)
{
    static double s[2][MAX_ROUNDS], ratio[MAX_ROUNDS];
    T_NEED(argc > 4, "usage: measure_stay MODEL MEM_MIB LINK_GB_S STAY [numbers]");
    double rate = 1e9 * number(argc, argv, 3, 2);
    n_tokens = (uint32_t)number(argc, argv, 5, 128);
    uint32_t rounds = SL_MIN((uint32_t)number(argc, argv, 6, 3), (uint32_t)MAX_ROUNDS);
    const char *text = argc > 7 ? argv[7] : "ROMEO:";
    sl_engine_stats st[2] = { { 0 }, { 0 } };
    uint64_t hash[2] = { 0, 0 };
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(sl_model_open(ctx, argv[1], &m) == SL_OK, "%s", sl_error(ctx));
    n_prompt = (uint32_t)SL_MIN(strlen(text), (size_t)MAX_PROMPT);
    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] = (int32_t)((uint8_t)text[i] % sl_model_shape(m)->n_vocab);
    sl_plan_params p = sl_plan_defaults();
    p.n_ctx = n_prompt + n_tokens + 32;
    p.n_threads = 1;
    p.n_stay = (uint32_t)number(argc, argv, 4, 1);
    p.accel = (sl_accel){ .kind = SL_ACCEL_EMU, .n_cores = 1, .up_bytes_s = rate,
                          .mem_bytes = (uint64_t)number(argc, argv, 2, 512) << 20,
                          .down_bytes_s = rate, .link_s = 10e-6 };
    for (uint32_t k = 0; k < rounds; k++)
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t which = (k + i) % 2;
            p.stay_fixed = !which;
            s[which][k] = run(&p, &st[which], &hash[which]);
        }
    T_CHECK(hash[0] == hash[1], "the two drew different tokens");
    for (uint32_t k = 0; k < rounds; k++) ratio[k] = s[0][k] / s[1][k];
    double uses = (double)(st[1].stay_hits + st[1].stay_misses);
    printf("%u stay: fixed %.2f tok/s, following %.2f, ratio %.3f", p.n_stay,
           1 / median(s[0], rounds), 1 / median(s[1], rounds), median(ratio, rounds));
    printf(" (%.3f to %.3f); %.1f %% of uses hit, %.2f changes a token\n", ratio[0],
           ratio[rounds - 1], 100 * (double)st[1].stay_hits / uses,
           (double)st[1].stay_changes / n_tokens);
    sl_model_close(&m);
    sl_ctx_destroy(&ctx);
    return t_end();
}
