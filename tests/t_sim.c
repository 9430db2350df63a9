/* tests/t_sim.c - stage 2 by hand on one layer of 4 experts top-2, and what it must be for any
 * machine, model and plan. */
#include <math.h>
#include <time.h>

#include "perfmodel/sl_forecast.h"
#include "tests/t_case.h"

static sl_ctx *ctx;

static void near(double a, double b, double tol, const char *what)
{
    T_CHECK(fabs(a - b) <= tol * fabs(b), "%s: %.9g, expected %.9g", what, a, b);
}

static sl_forecast run(const sl_machine *m, const sl_shape *shape, const sl_plan *plan,
                       const sl_misses *misses, sl_load load)
{
    sl_miss_model miss = sl_miss_default(4, 2);
    miss.n_distinct = 1;
    miss.distinct[0] = (sl_distinct_point){ 8, 1 };     /* 8 rows use all experts */
    sl_forecast_in in = { .machine = m, .shape = shape, .plan = plan, .miss = &miss, .load = load,
                          .misses = misses };
    sl_forecast f;
    T_NEED(sl_sim_run(ctx, &in, NULL, NULL, &f) == SL_OK, "%s", sl_error(ctx));
    return f;
}

static void by_hand(void)
{
    sl_machine m = t_simple_machine();
    sl_shape shape = { .n_layer = 1, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                       .head = { SL_Q8_0, 1000000 }, .head_bytes = 1000000,
                       .layers = &t_simple_layer };
    sl_plan plan = { .weights = SL_WEIGHTS_RESIDENT, .n_dense_layers = 1, .max_rows = 8,
                     .n_threads = 1, .kv_type = SL_F16, .stored_rows = 4, .n_classes = 1,
                     .cls = { { 6100000, 4, 4 } }, .need_bytes = 77 };
    /* 7 stages; qkv, post, router, two experts, head */
    double token = 7 + 1 + 1 + 0.001 + 2 + 1;
    sl_forecast f = run(&m, &shape, &plan, NULL, (sl_load){ 8, 10 });
    near(f.decode.seconds, 10e-3 * token, 1e-9, "10 tokens in RAM");
    near(f.decode.tok_per_s, 1e3 / token, 1e-9, "tokens/s");
    near(f.prompt.seconds, 1e-3 * (7 + 8 * (1 + 1 + 0.001 + 2) + 1), 1e-3, "8 rows in RAM");
    near(f.decode.busy_s[SL_RES_SYNC], 70e-3, 1e-9, "stages' fixed costs");
    T_CHECK(f.hit_rate == 1 && f.disk_bytes_per_token == 0 && f.decode.wait_s == 0, "no disk");
    T_CHECK(f.decode.binding == SL_RES_SYNC && f.decode.next == SL_RES_CPU, "what binds: %d, %d",
            f.decode.binding, f.decode.next);
    T_CHECK(f.peak_bytes == 77 && f.grade == SL_GRADE_COLD && f.ttft_s == f.prompt.seconds,
            "what it is made of");

    /* One of two missing, always: the other is computed (2 ms with its stage) while 6.1 ms of
     * reading go on, then the one that landed in a stage of its own. */
    sl_misses misses = { .turns = { { 0, 5 } } };
    plan.weights = SL_WEIGHTS_STREAMED;
    f = run(&m, &shape, &plan, &misses, (sl_load){ 8, 10 });
    near(f.decode.seconds, 10e-3 * (token - 3 + 6.1 + 2), 1e-6, "one missing");
    near(f.decode.wait_s, 10e-3 * (6.1 - 2), 1e-6, "waiting");
    near(f.decode.busy_s[SL_RES_DISK], 61e-3, 1e-6, "the disk");
    near(f.hit_rate, 0.5, 1e-9, "hits");
    near(f.disk_bytes_per_token, 6e6, 1e-9, "bytes");
    near(f.decode.disk_bytes, 6e7, 1e-9, "bytes of all tokens");
    T_CHECK(f.grade == SL_GRADE_CALIBRATED, "misses were counted");
    /* A host that takes 3 s of the only core for each GB: while anything is read or computed, at
     * least that core's whole quota is used, so all of it together is the time. */
    m.id.hw_threads = 1;
    m.read_host_s = 3e-9;
    sl_forecast h = run(&m, &shape, &plan, &misses, (sl_load){ 8, 100 });
    near(h.decode.seconds, 100e-3 * (token + 1 + 6 * 3), 0.02, "a host's share of the core");
    m.read_host_s = 1e-13;
    h = run(&m, &shape, &plan, &misses, (sl_load){ 8, 10 });
    near(h.decode.seconds, f.decode.seconds, 1e-3, "a host that takes next to nothing");
    m.read_host_s = 0;
    /* The threads wait for memory in half of that call, and then keep half of their speed: 3 ms. */
    m.dram_read[0].value = 6e9;
    m.cost[0].corun_cpu = 0.5;
    sl_forecast g = run(&m, &shape, &plan, &misses, (sl_load){ 8, 10 });
    near(g.decode.wait_s, 10e-3 * (6.1 - 3), 1e-3, "waiting beside slower threads");
    near(g.decode.seconds, f.decode.seconds, 1e-6, "which nobody sees");
    /* A prompt in one pass: 4 experts, which land together and are computed behind that. */
    double rest = f.prompt.seconds - 1e-3 * (6 + 8 * (1 + 1 + 0.001) + 1);
    near(rest, 24.1e-3 + 1e-3 * (1 + 4 * 4), 1e-3, "experts of a prompt");
    near(f.prompt.disk_bytes, 24e6, 1e-9, "all experts, once");
    /* Where a first read comes at half the rate, only what fills the slots is later. */
    m.disk.first_bytes_s = 5e8;
    g = run(&m, &shape, &plan, &misses, (sl_load){ 8, 10 });
    near(g.prompt.seconds, f.prompt.seconds + 24e-3, 1e-3, "a prompt's first reads");
    near(g.decode.seconds, f.decode.seconds, 1e-6, "what was read before");
    m.disk.first_bytes_s = 0;
    /* Nothing fits: dense weights through sections, too: 2.001 ms of reading more, in turn. */
    plan.n_dense_layers = 0;
    g = run(&m, &shape, &plan, &misses, (sl_load){ 8, 10 });
    near(g.disk_bytes_per_token, 6e6 + 2001000, 1e-9, "bytes with sections");
    T_CHECK(g.decode.seconds >= f.decode.seconds, "sections take no less");
}

/* ---- any machine, model and plan ---- */

static sl_forecast sim(const t_case *c)
{
    sl_forecast_in in = { &c->m, &c->shape, &c->plan, &c->miss, c->load, NULL };
    sl_forecast f;
    T_NEED(sl_sim_run(ctx, &in, NULL, NULL, &f) == SL_OK, "%s", sl_error(ctx));
    return f;
}

static void phase_holds(const sl_phase *f, uint32_t n, const char *what)
{
    T_CHECK(isfinite(f->seconds) && (f->seconds > 0) == (n > 0), "%s: %g s", what, f->seconds);
    T_CHECK(f->wait_s >= 0 && f->wait_s <= f->seconds * (1 + 1e-9), "%s: waits %g of %g", what,
            f->wait_s, f->seconds);
    if (f->seconds > 0) near(f->tok_per_s, n / f->seconds, 1e-9, what);
    for (int r = 0; r < SL_N_RESOURCES; r++)
        T_CHECK(f->busy_s[r] >= 0 && f->busy_s[r] <= f->seconds * 1.001
                    && f->busy_s[r] <= f->busy_s[f->binding],
                "%s: resource %d busy %g of %g", what, r, f->busy_s[r], f->seconds);
    T_CHECK(f->binding != f->next, "%s: two resources", what);
}

/* Stage 1 bounds stage 2. */
static void bounded(const t_case *c, const sl_forecast *f, int number)
{
    sl_forecast_in in = { &c->m, &c->shape, &c->plan, &c->miss, c->load, NULL };
    sl_forecast b = sl_stage1(&in);
    T_CHECK(f->prompt.seconds >= b.prompt.seconds * (1 - 1e-9),
            "case %d: a prompt in %g s, %g at least", number, f->prompt.seconds, b.prompt.seconds);
    T_CHECK(f->decode.seconds >= b.decode.seconds * (1 - 1e-9),
            "case %d: tokens in %g s, %g at least", number, f->decode.seconds, b.decode.seconds);
    T_CHECK(fabs(f->hit_rate - b.hit_rate) < 1e-9
                && fabs(f->disk_bytes_per_token - b.disk_bytes_per_token)
                       <= 1e-9 * b.disk_bytes_per_token,
            "case %d: hits %g and %g, bytes %g and %g", number, f->hit_rate, b.hit_rate,
            f->disk_bytes_per_token, b.disk_bytes_per_token);
}

static void properties(void)
{
    static t_case c, d;
    for (int i = 0; i < 300; i++) {
        t_make_case(ctx, &c, 1);
        sl_forecast f = sim(&c), g = sim(&c);
        phase_holds(&f.prompt, c.load.n_prompt, "prompt");
        phase_holds(&f.decode, c.load.n_gen, "decode");
        T_CHECK(!memcmp(&f, &g, sizeof f), "case %d: the same again", i);
        bounded(&c, &f, i);
        d = c;
        double faster = 1 + t_below(4);
        for (uint32_t k = 0; k < d.m.disk.n_curves; k++)
            for (uint32_t j = 0; j < d.m.disk.curve[k].n; j++)
                d.m.disk.curve[k].at[j].bytes_s *= faster;
        d.m.disk.latency_s /= faster;
        g = sim(&d);
        T_CHECK(g.prompt.seconds <= f.prompt.seconds * 1.01
                    && g.decode.seconds <= f.decode.seconds * 1.01,
                "case %d, %g times the disk: %g -> %g s, %g -> %g s", i, faster, f.prompt.seconds,
                g.prompt.seconds, f.decode.seconds, g.decode.seconds);
        d = c;
        d.m.id.hw_threads = SL_MAX(c.plan.n_threads, 1u) + t_below(2);
        d.m.read_host_s = t_between(1e-11, 2e-9);
        g = sim(&d);
        phase_holds(&g.prompt, c.load.n_prompt, "prompt and a host");
        phase_holds(&g.decode, c.load.n_gen, "decode and a host");
        T_CHECK(g.prompt.seconds >= f.prompt.seconds * 0.99
                    && g.decode.seconds >= f.decode.seconds * 0.99,
                "case %d, a host takes %g s a byte: %g -> %g s, %g -> %g s", i, d.m.read_host_s,
                f.prompt.seconds, g.prompt.seconds, f.decode.seconds, g.decode.seconds);
        d = c;
        for (uint32_t k = 0; k < d.plan.n_classes; k++) {
            sl_slot_class *s = &d.plan.cls[k];
            s->n_slots = SL_MIN(s->n_slots + s->n_experts / 8 + 1, s->n_experts);
        }
        g = sim(&d);
        /* of more reads at once the first lands later */
        T_CHECK(g.prompt.seconds <= f.prompt.seconds * 1.3
                    && g.decode.seconds <= f.decode.seconds * 1.02,
                "case %d, more slots: %g -> %g s, %g -> %g s", i, f.prompt.seconds,
                g.prompt.seconds, f.decode.seconds, g.decode.seconds);
    }
}

static void timelines(void)
{
    static t_case c;
    static sl_span a[4000], b[40000];
    for (int i = 0; i < 20; i++) {
        t_make_case(ctx, &c, 1);
        c.load.n_gen = 10;
        sl_timeline t[2] = { { SL_LEN(a), 0, a }, { SL_LEN(b), 0, b } };
        sl_forecast_in in = { &c.m, &c.shape, &c.plan, &c.miss, c.load, NULL };
        sl_forecast f;
        T_NEED(sl_sim_run(ctx, &in, &t[0], &t[1], &f) == SL_OK, "%s", sl_error(ctx));
        for (int k = 0; k < 2; k++) {
            double end[2] = { 0 };
            T_CHECK(t[k].n > 0 && t[k].n <= t[k].cap, "%u spans", t[k].n);
            for (uint32_t j = 0; j < SL_MIN(t[k].n, t[k].cap); j++) {
                const sl_span *s = &t[k].spans[j];
                bool disk = s->on == SL_RES_DISK;
                T_CHECK(s->from_s >= end[disk] - 1e-9 && s->to_s > s->from_s,
                        "span %u: %g to %g behind %g", j, s->from_s, s->to_s, end[disk]);
                end[disk] = s->to_s;
            }
        }
    }
}

/* A planner simulates dozens of these: 61 layers of 256 experts, half of them in RAM. */
static void quick(void)
{
    static sl_layer_shape layers[61];
    sl_machine m = t_machine();
    for (uint32_t i = 0; i < 61; i++) {
        layers[i] = t_simple_layer;
        layers[i].n_expert = 256;
        layers[i].n_used = 8;
    }
    sl_shape shape = { .n_layer = 61, .d_model = 7168, .n_vocab = 10, .n_ctx_train = 100,
                       .head = { SL_Q8_0, 1000000 }, .head_bytes = 1000000, .layers = layers };
    sl_plan plan = { .weights = SL_WEIGHTS_STREAMED, .n_dense_layers = 61, .max_rows = 512,
                     .kv_type = SL_F16, .stored_rows = 16, .n_classes = 1,
                     .cls = { { 6100000, 61 * 128, 61 * 256 } } };
    clock_t from = clock();
    for (int i = 0; i < 10; i++) run(&m, &shape, &plan, NULL, (sl_load){ 4096, 256 });
    double s = (double)(clock() - from) / CLOCKS_PER_SEC;
    printf("61 layers of 256 experts: %.1f ms\n", 100 * s);
    T_CHECK(s < 10 * 0.5, "%.3f s for one simulation", s / 10);
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    by_hand();
    properties();
    timelines();
    quick();
    sl_ctx_destroy(&ctx);
    return t_end();
}
