/* tests/t_hybrid.c - forecasts of passes that CPU and accelerator share: by hand on one layer of 4
 * experts top-2, and what they must be for any machine, model and split. */
#include <math.h>

#include "perfmodel/sl_queue.h"
#include "tests/t_case.h"

static sl_ctx *ctx;

static void near(double a, double b, double tol, const char *what)
{
    T_CHECK(fabs(a - b) <= tol * fabs(b), "%s: %.9g, expected %.9g", what, a, b);
}

/* t_simple_machine with a card of ten times its arithmetic, stages of 0.01 ms, a link of 1e9
 * bytes/s either way, copies 0.1 ms. */
static sl_machine simple_machine(void)
{
    sl_machine m = t_simple_machine();
    m.n_gpus = 1;
    m.gpu[0] = (sl_machine_gpu){ .name = "x", .vram_bytes = (uint64_t)1 << 30,
                                 .vram_bytes_s = 1e15, .flops_s = 1e15, .h2d_bytes_s = 1e9,
                                 .d2h_bytes_s = 1e9, .copy_s = 1e-4, .launch_s = 1e-5,
                                 .n_gemms = 1 };
    m.gpu[0].gemm[0] = (sl_machine_gemm){ .type = SL_Q8_0, .n = 2,
                                          .at = { { 1, 1e10 }, { 100, 1e10 } } };
    return m;
}

static sl_plan simple_plan(uint32_t n_stay)
{
    return (sl_plan){ .weights = SL_WEIGHTS_RESIDENT, .n_dense_layers = 1, .max_rows = 8,
                      .n_threads = 1, .n_seq = 1, .kv_type = SL_F16, .n_classes = 1,
                      .cls = { { 6100000, 4, 4 } }, .need_bytes = 77,
                      .split = { .accel = { .kind = SL_ACCEL_CUDA }, .kv = SL_ON_DEVICE,
                                 .prompts = SL_ON_DEVICE, .head = SL_ON_DEVICE,
                                 .head_stays = true, .n_lanes = 1, .n_dense_layers = 1,
                                 .n_stay = n_stay, .send_rows = 2, .send_all_rows = 100,
                                 .ring_bytes = 25000000, .piece_bytes = 1000000,
                                 .stored_runs = 48 } };
}

static sl_forecast run(const sl_machine *m, const sl_plan *plan, sl_load load,
                       sl_forecast *ret_bound)
{
    static const sl_miss_model miss = { .n_points = 1, .at = { { 0.5, 0.8, 1 } }, .n_distinct = 1,
                                        .distinct = { { 8, 1 } } };
    sl_shape shape = { .n_layer = 1, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                       .head = { SL_Q8_0, 1000000 }, .head_bytes = 1000000,
                       .layers = &t_simple_layer };
    sl_forecast_in in = { .machine = m, .shape = &shape, .plan = plan, .miss = &miss,
                          .load = load };
    sl_forecast f;
    T_NEED(sl_sim_run(ctx, &in, NULL, NULL, &f) == SL_OK, "%s", sl_error(ctx));
    *ret_bound = sl_stage1(&in);
    return f;
}

/* In ms: the CPU's embedding and its way up; qkv, attention, post, router; its way down; the last
 * call of the experts; head, logits down. */
#define APART (1 + 0.1 + 0.11 + 0.01 + 0.11 + 0.0101 + 0.1 + 0.01 + 0.11 + 0.1)

static void tokens_by_hand(void)
{
    sl_machine m = simple_machine();
    sl_plan plan = simple_plan(4);
    sl_forecast b, f = run(&m, &plan, (sl_load){ 8, 10 }, &b);
    near(f.decode.seconds, 10e-3 * (APART + 0.01 + 0.2), 1e-3, "all on the device");
    near(f.decode.busy_s[SL_RES_SYNC], 10e-3 * (1 + 7 * 0.01), 1e-3, "starts of stages");
    near(f.decode.busy_s[SL_RES_GPU], 10e-3 * (5 * 0.1 + 0.0001), 1e-3, "the device");
    near(b.decode.seconds, f.decode.seconds, 0.02, "the bound");
    T_CHECK(f.hit_rate == 1 && f.disk_bytes_per_token == 0 && f.peak_bytes == 77, "no disk");

    /* The CPU computes both: their input comes down, 1 ms of a stage and 2 of arithmetic, up. */
    plan = simple_plan(0);
    f = run(&m, &plan, (sl_load){ 8, 10 }, &b);
    near(f.decode.seconds, 10e-3 * (APART + 0.1 + 1 + 2 + 0.1), 1e-3, "on the CPU");
    near(f.decode.busy_s[SL_RES_CPU], 20e-3, 1e-3, "the CPU");
    near(b.decode.seconds, f.decode.seconds, 0.02, "the bound on the CPU");

    /* Both are sent, 6 ms each; the last one is computed when it is there. */
    plan.split.send_rows = 1;
    f = run(&m, &plan, (sl_load){ 8, 10 }, &b);
    near(f.decode.seconds, 10e-3 * (APART + 12 + 0.1 + 0.11), 1e-3, "sent");
    near(f.decode.busy_s[SL_RES_H2D], 120e-3, 1e-3, "the link");
    T_CHECK(f.decode.binding == SL_RES_H2D, "what binds: %d", f.decode.binding);
    /* Beside the dense weights: 2.001 MB more, on their way while nothing else is. */
    plan.split.n_dense_layers = 0;
    sl_forecast g = run(&m, &plan, (sl_load){ 8, 10 }, &b);
    near(g.decode.busy_s[SL_RES_H2D], 140.01e-3, 1e-3, "dense weights on the link");
    T_CHECK(g.decode.seconds > f.decode.seconds && g.decode.seconds < f.decode.seconds + 21e-3,
            "dense weights take %g s more", g.decode.seconds - f.decode.seconds);
    /* Two of four stay: 2, 1 or none of a row's two are there, with 1, 4 and 1 in 6. */
    plan = simple_plan(2);
    f = run(&m, &plan, (sl_load){ 8, 1000 }, &b);
    double cpu = 0.2 + 1, both = APART + 0.01 + 0.2, one = APART + cpu + 1, none = APART + cpu + 2;
    near(f.decode.seconds, both / 6 + 4 * one / 6 + none / 6, 0.02, "half of them stay");
    /* They follow a router of which half of the experts hit 80 %: 0.64, 0.32, 0.04. */
    plan.split.stay_follow = true;
    f = run(&m, &plan, (sl_load){ 8, 1000 }, &b);
    near(f.decode.seconds, 0.64 * both + 0.32 * one + 0.04 * none, 0.02, "they follow routing");
    near(b.decode.seconds, f.decode.seconds, 0.1, "its bound");
}

/* 8 rows use all 4 experts, 4 rows each. */
static void prompts_by_hand(void)
{
    sl_machine m = simple_machine();
    sl_plan plan = simple_plan(0);
    sl_forecast b, f;
    double apart = 1 + 0.1 + 0.81 + 0.01 + 0.81 + 0.0108 + 0.1 + 0.01 + 0.11 + 0.1;
    plan.split.send_all_rows = 1;
    f = run(&m, &plan, (sl_load){ 8, 0 }, &b);
    /* 24 MB on the link from the start, the last expert behind it (4 rows) */
    near(f.prompt.seconds, 1e-3 * (24 + 0.1 + 0.41 + 0.01 + 0.21), 0.002, "sent at once");
    T_CHECK(f.prompt.binding == SL_RES_H2D, "what binds: %d", f.prompt.binding);
    m.gpu[0].h2d_bytes_s = 1e12;
    f = run(&m, &plan, (sl_load){ 8, 0 }, &b);
    near(f.prompt.seconds, 1e-3 * (apart + 4 * 0.41), 0.01, "a link without end");
    /* All experts on the CPU: 8 rows down, 16 up. */
    plan.split.send_all_rows = 100;
    plan.split.send_rows = 100;
    f = run(&m, &plan, (sl_load){ 8, 0 }, &b);
    near(f.prompt.seconds, 1e-3 * (apart + 0.2 + 1 + 16), 0.01, "on the CPU");
}

/* Attention of 1 ms a row on the CPU; two lanes: one attends while the other is multiplied. */
static void lanes_by_hand(void)
{
    sl_machine m = simple_machine();
    sl_plan plan = simple_plan(4);
    static sl_layer_shape layers[32];
    sl_shape shape = { .n_layer = 32, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                       .head = { SL_Q8_0, 1000 }, .head_bytes = 1000, .layers = layers };
    static const sl_miss_model miss = { .n_distinct = 1, .distinct = { { 8, 1 } } };
    for (uint32_t i = 0; i < shape.n_layer; i++) {
        layers[i] = t_simple_layer;
        layers[i].k_elems = layers[i].v_elems = 32;
        layers[i].ctx_flops_row = 100000;
    }
    m.cost[0].prefill_flops_s = 1e9;            /* 64 rows on 32.5 positions: 208 ms, in all */
    plan.split.kv = plan.split.prompts = SL_ON_CPU;
    plan.split.n_dense_layers = 32;
    plan.max_rows = 64;
    plan.split.send_all_rows = 1;
    sl_forecast_in in = { .machine = &m, .shape = &shape, .plan = &plan, .miss = &miss,
                          .load = { 64, 0 } };
    sl_forecast f, b, two;
    T_NEED(sl_sim_run(ctx, &in, NULL, NULL, &f) == SL_OK, "%s", sl_error(ctx));
    double cpu = 64 * 32.5 * 1e5 / 1e9 + 1e-3, device = 64e-4 * (1 + 1 + 2);
    near(f.prompt.seconds, 32 * (cpu + device), 0.02, "one lane: in turn");
    plan.split.n_lanes = 2;
    T_NEED(sl_sim_run(ctx, &in, NULL, NULL, &two) == SL_OK, "%s", sl_error(ctx));
    b = sl_stage1(&in);
    /* the driver waits for each lane's router: its way up, post and router of 32 rows, down */
    double route = 1e-4 + 32e-4 + 1e-5 + 3e-6 + 1e-5 + 1e-4;
    near(two.prompt.seconds, 32 * (cpu + 1e-3 + 2 * route), 0.02, "two lanes");
    T_CHECK(two.prompt.seconds >= b.prompt.seconds && b.prompt.seconds > 32 * cpu * 0.99,
            "bound %g of %g", b.prompt.seconds, two.prompt.seconds);
}

/* ---- any machine, model and split ---- */

static void make_split(t_case *c)
{
    sl_machine_gpu *g = &c->m.gpu[0];
    sl_split *x = &c->plan.split;
    bool emu = t_below(2);
    c->m.n_gpus = 1;
    *g = (sl_machine_gpu){ .name = "x", .vram_bytes = (uint64_t)1 << 34,
                           .vram_bytes_s = t_between(1e11, 2e12),
                           .flops_s = t_between(1e13, 1e15), .h2d_bytes_s = t_between(1e9, 6e10),
                           .d2h_bytes_s = t_between(1e9, 6e10), .copy_s = t_between(1e-6, 3e-5),
                           .launch_s = t_between(1e-6, 3e-5) };
    c->plan.weights = SL_WEIGHTS_RESIDENT;
    c->plan.n_dense_layers = c->shape.n_layer;
    *x = (sl_split){ .accel = { .kind = emu ? SL_ACCEL_EMU : SL_ACCEL_CUDA, .n_cores = 1,
                                .up_bytes_s = t_below(2) ? t_between(1e8, 1e10) : 0,
                                .down_bytes_s = t_below(2) ? t_between(1e8, 1e10) : 0,
                                .link_s = t_below(2) ? 1e-5 : 0 },
                     .kv = t_below(2) ? SL_ON_DEVICE : SL_ON_CPU,
                     .head = t_below(2) ? SL_ON_DEVICE : SL_ON_CPU,
                     .n_dense_layers = t_below(2) ? t_below(c->shape.n_layer + 1)
                                                  : c->shape.n_layer,
                     .n_stay = t_below(3) ? t_below(64) : 0, .stay_follow = t_below(2),
                     .send_rows = t_below(12),
                     .send_all_rows = 1 + t_below(100), .piece_bytes = 4 << 20,
                     .stored_runs = t_below(200) };
    x->prompts = x->kv == SL_ON_DEVICE || t_below(2) ? SL_ON_DEVICE : SL_ON_CPU;
    x->head_stays = x->head == SL_ON_DEVICE && t_below(2);
    x->n_lanes = x->kv == SL_ON_CPU ? 1 + t_below(2) : 1;
    for (uint32_t i = 0; i < c->shape.n_layer; i++) {
        const sl_layer_shape *l = &c->layers[i];
        x->ring_bytes = SL_MAX(x->ring_bytes, 2 * (l->section_bytes + l->n_expert * l->slot_bytes));
    }
}

static sl_forecast sim(const t_case *c, sl_forecast *ret_bound)
{
    sl_forecast_in in = { &c->m, &c->shape, &c->plan, &c->miss, c->load, NULL };
    sl_forecast f;
    T_NEED(sl_sim_run(ctx, &in, NULL, NULL, &f) == SL_OK, "%s", sl_error(ctx));
    *ret_bound = sl_stage1(&in);
    return f;
}

static void phase_holds(const sl_phase *f, const sl_phase *b, uint32_t n, const char *what, int i)
{
    T_CHECK(isfinite(f->seconds) && (f->seconds > 0) == (n > 0), "%s %d: %g s", what, i,
            f->seconds);
    T_CHECK(f->wait_s >= 0 && f->wait_s <= f->seconds * (1 + 1e-9), "%s %d: waits %g of %g", what,
            i, f->wait_s, f->seconds);
    for (int r = 0; r < SL_N_RESOURCES; r++) {
        T_CHECK(f->busy_s[r] >= 0 && f->busy_s[r] <= f->seconds * 1.001,
                "%s %d: resource %d busy %g of %g", what, i, r, f->busy_s[r], f->seconds);
        T_CHECK(b->busy_s[r] >= 0 && b->busy_s[r] <= b->seconds * (1 + 1e-9),
                "%s %d: resource %d bound busy %g of %g", what, i, r, b->busy_s[r], b->seconds);
    }
    T_CHECK(f->seconds >= b->seconds * (1 - 1e-9), "%s %d: %g s, %g at least", what, i, f->seconds,
            b->seconds);
}

/* More of something is never slower, but where copies that come sooner take memory from the CPU's
 * work instead of from nobody's, and for what chance makes of it. */
static void faster(const t_case *c, const sl_forecast *before, const sl_forecast *bound, int i)
{
    static t_case d;
    sl_forecast f, b;
    for (int what = 0; what < 4; what++) {
        static const char *const names[] = { "link", "card", "stay", "latency" };
        d = *c;
        sl_machine_gpu *g = &d.m.gpu[0];
        double by = 1.5;
        if (what == 0) g->h2d_bytes_s *= by, g->d2h_bytes_s *= by;
        if (what == 1) g->flops_s *= by, g->vram_bytes_s *= by;
        if (what == 2) d.plan.split.n_stay += 4;
        if (what == 3) g->copy_s /= by, g->launch_s /= by;
        if (what == 2 && c->plan.split.accel.kind == SL_ACCEL_EMU) continue;
        f = sim(&d, &b);
        T_CHECK(b.prompt.seconds <= bound->prompt.seconds * 1.0000001 || what == 2,
                "case %d, %s: bound of the prompt %g -> %g", i, names[what], bound->prompt.seconds,
                b.prompt.seconds);
        T_CHECK(f.prompt.seconds <= before->prompt.seconds * 1.05 || what == 2,
                "case %d, %s: prompt %g -> %g s", i, names[what], before->prompt.seconds,
                f.prompt.seconds);
        T_CHECK(f.decode.seconds <= before->decode.seconds * 1.05 || what == 2,
                "case %d, %s: tokens %g -> %g s", i, names[what], before->decode.seconds,
                f.decode.seconds);
    }
}

static void properties(void)
{
    static t_case c;
    double sum[2] = { 0 }, most[2] = { 0 };
    enum { CASES = 300 };
    for (int i = 0; i < CASES; i++) {
        sl_forecast b, again;
        t_make_case(ctx, &c, 1);
        make_split(&c);
        sl_forecast f = sim(&c, &b), g = sim(&c, &again);
        T_CHECK(!memcmp(&f, &g, sizeof f), "case %d: the same again", i);
        phase_holds(&f.prompt, &b.prompt, c.load.n_prompt, "prompt", i);
        phase_holds(&f.decode, &b.decode, c.load.n_gen, "decode", i);
        double over[2] = { f.prompt.seconds / b.prompt.seconds,
                           c.load.n_gen ? f.decode.seconds / b.decode.seconds : 1 };
        for (int k = 0; k < 2; k++) sum[k] += over[k], most[k] = fmax(most[k], over[k]);
        faster(&c, &f, &b, i);
    }
    printf("over the bound: prompts %.2f times (at most %.2f), tokens %.2f (%.2f)\n",
           sum[0] / CASES, most[0], sum[1] / CASES, most[1]);
}

/* A forecast is no better than what is known of the card. */
static void grades(void)
{
    sl_machine m = simple_machine();
    sl_plan plan = simple_plan(4);
    sl_forecast b, f = run(&m, &plan, (sl_load){ 8, 10 }, &b);
    T_CHECK(f.grade == SL_GRADE_COLD && b.grade == SL_GRADE_COLD, "measured: %d", f.grade);
    m.gpu[0].n_gemms = 0;
    f = run(&m, &plan, (sl_load){ 8, 10 }, &b);
    T_CHECK(f.grade == SL_GRADE_DATASHEET && b.grade == SL_GRADE_DATASHEET, "nobody measured: %d",
            f.grade);
    plan.split.accel.kind = SL_ACCEL_EMU;
    f = run(&m, &plan, (sl_load){ 8, 10 }, &b);
    T_CHECK(f.grade == SL_GRADE_COLD, "emulated with what was measured: %d", f.grade);
}

/* Files of requests, pass by pass. */
static void queues(void)
{
    static t_case c;
    double sum = 0, most = 0;
    enum { CASES = 60 };
    for (int i = 0; i < CASES; i++) {
        t_make_case(ctx, &c, 1 + t_below(40));
        make_split(&c);
        sl_lens_length lengths[2] = { { 1 + t_below(200), 1 + t_below(60), 1 },
                                      { 1 + t_below(200), 1 + t_below(60), 1 } };
        sl_workload q = { lengths, 2, 1 + t_below(60) };
        sl_forecast_in in = { &c.m, &c.shape, &c.plan, &c.miss, c.load, NULL };
        sl_queue_forecast f, some;
        T_NEED(sl_queue_simulate(ctx, &in, &q, 1u << 20, &f) == SL_OK, "%s", sl_error(ctx));
        T_CHECK(f.tok_per_s <= f.bound_tok_per_s * (1 + 1e-9) && f.seconds > 0,
                "queue %d: %g of %g tok/s", i, f.tok_per_s, f.bound_tok_per_s);
        for (int r = 0; r < SL_N_RESOURCES; r++)
            T_CHECK(f.busy_s[r] >= 0 && f.busy_s[r] <= f.seconds * 1.001,
                    "queue %d: resource %d busy %g of %g", i, r, f.busy_s[r], f.seconds);
        T_NEED(sl_queue_simulate(ctx, &in, &q, 40, &some) == SL_OK, "%s", sl_error(ctx));
        double off = fabs(some.seconds / f.seconds - 1);
        sum += off;
        most = fmax(most, off);
        T_CHECK(off < 0.15, "queue %d: %g s by 40 passes, %g by all", i, some.seconds, f.seconds);
    }
    printf("queues by 40 passes off by %.1f %% on average, %.1f %% at most\n", 100 * sum / CASES,
           100 * most);
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    tokens_by_hand();
    prompts_by_hand();
    lanes_by_hand();
    properties();
    queues();
    grades();
    sl_ctx_destroy(&ctx);
    return t_end();
}
