/* tests/t_three_way.c - experts that stay on the device, are sent to it, or are computed by the
 * CPU: the planner's mixture against the best pure choice, on described machines. The table stands
 * in docs/prediction.md. */
#include <math.h>

#include "perfmodel/sl_planner.h"
#include "perfmodel/sl_preset.h"
#include "tests/t.h"
#include "tools/machine_file.h"

#define NEVER ((uint32_t)1 << 30)

static sl_ctx *ctx;

/* One rule for all experts that do not stay, in every pass: all sent (MoE-Lens); all on the CPU
 * (KTransformers); some stay and the CPU has the others, or they are sent; no device at all. */
typedef struct pure {
    const char *name;
    bool device;
    uint32_t n_stay, send_rows;
} pure;
static const pure choices[] = {
    { "all sent", true, 0, 1 },
    { "all on the CPU", true, 0, NEVER },
    { "some stay, CPU", true, SL_PLAN_AUTO, NEVER },
    { "some stay, sent", true, SL_PLAN_AUTO, 1 },
    { "no device", false, SL_PLAN_AUTO, SL_PLAN_AUTO },
};
enum { PURE = SL_LEN(choices) };

static const struct { const char *preset, *quant; } models[] = {
    { "qwen3-30b-a3b", "Q4_K_M" }, { "mixtral-8x7b", "Q4_K_M" }, { "gpt-oss-120b", "MXFP4" },
};
static const char *const machines[] = { "desktop-64gb-rtx3060", "desktop-64gb-rtx4070",
                                        "desktop-96gb-rtx5090", "laptop-32gb-rtx4060",
                                        "server-l4" };

static struct fixture {
    sl_layer_shape layers[256];
    sl_shape shape;
    sl_miss_model miss;
    sl_machine m;
} fx;

static sl_planner_params params(bool device)
{
    sl_planner_params q = { .base = sl_plan_defaults(), .load = { 1024, 256 } };
    q.base.n_ctx = 4096;
    q.base.ram_bytes = fx.m.id.ram_bytes - ((uint64_t)2 << 30);
    q.base.ram_hard = true;
    q.base.n_threads = fx.m.id.cores;
    q.fix_threads = true;
    if (device)
        q.base.accel = (sl_accel){ .kind = SL_ACCEL_CUDA, .mem_bytes = fx.m.gpu[0].vram_bytes,
                                   .own_bytes = (uint64_t)512 << 20 };
    return q;
}

static double load_s(const sl_forecast *f) { return f->prompt.seconds + f->decode.seconds; }

/* A pure choice at its best: every place for keys, values and head, lanes, and rows of a pass. */
static double pure_s(const pure *p, sl_forecast *ret)
{
    sl_planner_params q = params(p->device);
    double best = INFINITY;
    if (!p->device) {
        static sl_choice c;
        if (sl_planner_run(ctx, &fx.m, &fx.shape, &fx.miss, &q, false, &c) != SL_OK) return best;
        *ret = c.forecast;
        return load_s(&c.forecast);
    }
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t rows = 64; rows <= 2048; rows *= 2) {
            sl_plan_params b = q.base;
            sl_plan plan;
            sl_forecast f;
            b.kv_on = i & 1;
            b.head_on = i >> 1 & 1;
            b.n_lanes = 1 + (i >> 2);
            b.max_rows = rows;
            b.n_stay = p->n_stay;
            b.send_rows = p->send_rows;
            b.send_all_rows = p->send_rows == NEVER ? NEVER : SL_PLAN_AUTO;
            if (sl_plan_make(ctx, &fx.shape, &b, &plan) != SL_OK) continue;
            sl_forecast_in in = { &fx.m, &fx.shape, &plan, &fx.miss, q.load, NULL };
            T_NEED(sl_sim_run(ctx, &in, NULL, NULL, &f) == SL_OK, "%s", sl_error(ctx));
            if (load_s(&f) >= best) continue;
            best = load_s(&f);
            *ret = f;
        }
    return best;
}

static char *rates(const sl_forecast *f, char text[48])
{
    snprintf(text, 48, "%.0f / %.1f", f->prompt.tok_per_s, f->decode.tok_per_s);
    return text;
}

/* The gain over the best pure choice; 0: the model does not fit the machine's RAM. */
static double compare(const char *machine, size_t model)
{
    static sl_choice mixed;
    sl_planner_params q = params(true);
    sl_forecast f = { .ttft_s = 0 }, other = f;
    double best = INFINITY;
    const char *name = "";
    char text[2][48];
    if (sl_planner_run(ctx, &fx.m, &fx.shape, &fx.miss, &q, false, &mixed) != SL_OK) return 0;
    T_CHECK(mixed.plan.split.need_bytes <= fx.m.gpu[0].vram_bytes, "%s: %llu bytes", machine,
            (unsigned long long)mixed.plan.split.need_bytes);
    for (size_t i = 0; i < PURE; i++) {
        double s = pure_s(&choices[i], &f);
        T_CHECK(mixed.best_s <= s * 1.002, "%s, %s: mixed %g s, %s %g s", machine,
                models[model].preset, mixed.best_s, choices[i].name, s);
        if (s >= best) continue;
        best = s;
        other = f;
        name = choices[i].name;
    }
    printf("| %s | %s | %s | %u of %u | %s: %s | %+.0f %% |\n", machine, models[model].preset,
           rates(&mixed.forecast, text[0]), mixed.plan.split.n_stay,
           fx.layers[fx.shape.n_layer - 1].n_expert, name, rates(&other, text[1]),
           100 * (best / mixed.best_s - 1));
    return best / mixed.best_s;
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    int better = 0;
    puts("| machine | model | mixed: prompt / writing, tok/s | stay | best pure choice | gain |\n"
         "|---|---|---:|---:|---|---:|");
    for (size_t k = 0; k < SL_LEN(machines); k++) {
        double most = 0;
        T_NEED(cli_machine_load(ctx, machines[k], &fx.m) == CLI_DONE, "%s", machines[k]);
        for (size_t i = 0; i < SL_LEN(models); i++) {
            const sl_preset *p = sl_preset_find(models[i].preset);
            T_NEED(p && sl_preset_shape(ctx, p, models[i].quant, fx.layers, &fx.shape) == SL_OK,
                   "%s", models[i].preset);
            fx.miss = sl_miss_default(p->n_expert, p->n_used);
            most = fmax(most, compare(machines[k], i));
        }
        better += most > 1.03;
    }
    T_CHECK(better >= 3, "better on %d machines", better);
    sl_ctx_destroy(&ctx);
    return t_end();
}
