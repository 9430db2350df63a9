/* tests/t_sim.c - stage 2 by hand on one layer of 4 experts top-2, and what it must be for any
 * machine, model and plan. */
#include <math.h>
#include <time.h>

#include "perfmodel/sl_forecast.h"
#include "tests/t.h"

static sl_ctx *ctx;

static void near(double a, double b, double tol, const char *what)
{
    T_CHECK(fabs(a - b) <= tol * fabs(b), "%s: %.9g, expected %.9g", what, a, b);
}

/* One thread, 1e9 multiply-adds/s at any number of rows, memory that costs nothing, stages of 1 ms;
 * a disk of 1e9 bytes/s with 0.1 ms before the first byte. */
static sl_machine simple(void)
{
    sl_machine m = { .source = SL_MACHINE_MEASURED, .id = { .cpu = "x", .cores = 1 }, .n_dram = 1,
                     .dram_read = { { 1, 1e15 } }, .n_gemms = 1, .n_costs = 1 };
    m.gemm[0] = (sl_machine_gemm){ .type = SL_Q8_0, .threads = 1, .n = 2,
                                   .at = { { 1, 1e9 }, { 100, 1e9 } } };
    m.cost[0] = (sl_machine_cost){ .threads = 1, .stage_s = 1e-3, .elem_s = 1e-18,
                                   .decode_flops_s = 1e9, .prefill_flops_s = 1e9, .corun_cpu = 1,
                                   .corun_disk = 1 };
    m.disk = (sl_machine_disk){ .n_curves = 1, .latency_s = 1e-4 };
    m.disk.curve[0] = (sl_machine_curve){ .bytes = 1 << 20, .n = 1, .at = { { 1, 1e9 } } };
    return m;
}

/* 1e6 weights in each matrix: 1 ms a row. An expert's bytes take 6 ms to read. */
static const sl_layer_shape layer = {
    .qkv = { { SL_Q8_0, 1000000 } }, .post = { { SL_Q8_0, 1000000 } },
    .router = { SL_Q8_0, 1000 }, .expert = { { SL_Q8_0, 1000000 } },
    .qkv_bytes = 1000000, .post_bytes = 1000000, .router_bytes = 1000, .expert_bytes = 6000000,
    .slot_bytes = 6100000, .n_expert = 4, .n_used = 2,
};

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
    sl_machine m = simple();
    sl_shape shape = { .n_layer = 1, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                       .head = { SL_Q8_0, 1000000 }, .head_bytes = 1000000, .layers = &layer };
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
    /* Nothing fits: dense weights through sections, too: 2.001 ms of reading more, in turn. */
    plan.n_dense_layers = 0;
    g = run(&m, &shape, &plan, &misses, (sl_load){ 8, 10 });
    near(g.disk_bytes_per_token, 6e6 + 2001000, 1e-9, "bytes with sections");
    T_CHECK(g.decode.seconds >= f.decode.seconds, "sections take no less");
}

/* ---- any machine, model and plan ---- */

static double between(double lo, double hi)
{
    return lo * pow(hi / lo, 0.5 * (t_unit() + 1));
}

static sl_machine any_machine(void)
{
    static const sl_type types[] = { SL_F32, SL_Q4_K, SL_Q8_0 };
    sl_machine m = simple();
    uint32_t cores = m.id.cores = 1 + t_below(8);
    m.dram_read[0] = (sl_machine_point){ cores, between(1e10, 1e11) };
    m.n_gemms = SL_LEN(types);
    for (uint32_t i = 0; i < m.n_gemms; i++) {
        double one = between(2e9, 3e10), many = one * between(1.5, 20);
        m.gemm[i] = (sl_machine_gemm){ .type = types[i], .threads = cores, .n = 3,
                                       .at = { { 1, one }, { 16, sqrt(one * many) },
                                               { 128, many } } };
    }
    m.cost[0] = (sl_machine_cost){ .threads = cores, .stage_s = between(1e-6, 3e-5),
                                   .elem_s = between(1e-11, 1e-9),
                                   .decode_flops_s = between(1e10, 1e11),
                                   .prefill_flops_s = between(1e10, 1e12),
                                   .corun_cpu = between(0.5, 1), .corun_disk = between(0.5, 1) };
    m.read_cpu_s = between(1e-6, 3e-5);
    double best = between(5e8, 1e10), latency = between(2e-5, 1e-3);
    m.disk.n_curves = 3;
    m.disk.latency_s = latency;
    for (uint32_t i = 0; i < 3; i++) {
        sl_machine_curve *c = &m.disk.curve[i];
        *c = (sl_machine_curve){ .bytes = 65536u << (2 * i), .n = 7 };
        for (uint32_t k = 0; k < c->n; k++)
            c->at[k] = (sl_machine_disk_point){
                1u << k, fmin(best, (1u << k) * c->bytes / (latency + c->bytes / best))
            };
    }
    return m;
}

static sl_layer_shape any_layer(uint32_t d)
{
    sl_layer_shape l = { .n_expert = t_below(8) ? 4 + t_below(60) : 0, .k_elems = 128,
                         .v_elems = 128, .kv_unit = 64, .ctx_flops_row = 4096 };
    sl_type type = t_below(2) ? SL_Q4_K : SL_Q8_0;
    const sl_type_info *t = sl_type_get(type);
    uint64_t dense = (uint64_t)d * d, ff = (uint64_t)d * (256 + 256 * t_below(4)) * 3;
    double per = (double)t->block_bytes / t->block_elems;
    l.qkv[0] = l.post[0] = (sl_part){ type, dense };
    l.qkv_bytes = l.post_bytes = (uint64_t)(per * (double)dense);
    if (!l.n_expert || t_below(3) == 0) {
        l.ffn[0] = (sl_part){ type, ff };
        l.ffn_bytes = (uint64_t)(per * (double)ff);
    }
    l.section_bytes = sl_shape_room(2 * l.qkv_bytes + l.ffn_bytes + 4ull * d * l.n_expert);
    if (!l.n_expert) return l;
    l.n_used = 1 + t_below(SL_MIN(l.n_expert, 9));
    l.router = (sl_part){ SL_F32, (uint64_t)d * l.n_expert };
    l.router_bytes = 4ull * d * l.n_expert;
    l.expert[0] = (sl_part){ type, ff };
    l.expert_bytes = (uint64_t)(per * (double)ff);
    l.slot_bytes = sl_shape_room(l.expert_bytes);
    return l;
}

struct any_case {
    sl_machine m;
    sl_layer_shape layers[12];
    sl_shape shape;
    sl_plan plan;
    sl_miss_model miss;
    sl_load load;
};

static void any_case(struct any_case *c)
{
    uint32_t n = 1 + t_below(12), d = 256 * (1 + t_below(8));
    *c = (struct any_case){ .m = any_machine() };
    c->layers[0] = any_layer(d);
    for (uint32_t i = 1; i < n; i++) c->layers[i] = t_below(3) ? c->layers[i - 1] : any_layer(d);
    c->shape = (sl_shape){ .n_layer = n, .d_model = d, .n_vocab = 1000, .n_ctx_train = 4096,
                           .head = { SL_Q8_0, 1000ull * d }, .head_bytes = 1000ull * d,
                           .ends_room = 5000ull * d, .row_scratch_bytes = 8 * d,
                           .layers = c->layers };
    uint64_t all = c->shape.ends_room;
    uint32_t experts = 0, used = 1;
    for (uint32_t i = 0; i < n; i++) {
        all += c->layers[i].section_bytes + c->layers[i].n_expert * c->layers[i].slot_bytes;
        experts = SL_MAX(experts, c->layers[i].n_expert);
        used = SL_MAX(used, c->layers[i].n_used);
    }
    c->shape.total_bytes = all;
    c->miss = sl_miss_default(experts, used);
    c->load = (sl_load){ 1 + t_below(1500), t_below(100) };
    sl_plan_params p = sl_plan_defaults();
    p.max_rows = 1 + t_below(600);
    p.n_ctx = 2048;
    p.no_ahead = t_below(2);
    p.ram_hard = true;
    p.read_bytes = t_below(2) ? 256 << 10 : 0;
    p.read_depth = t_below(2) ? 1 + t_below(64) : 0;
    p.max_dense_layers = t_below(3) ? UINT32_MAX : t_below(n);
    for (double share = between(0.05, 1.5);; share *= 1.3) {
        p.ram_bytes = (uint64_t)(share * (double)all);
        if (sl_plan_make(ctx, &c->shape, &p, &c->plan) == SL_OK) break;
    }
}

static sl_forecast sim(const struct any_case *c)
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
static void bounded(const struct any_case *c, const sl_forecast *f, int number)
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
    static struct any_case c, d;
    for (int i = 0; i < 300; i++) {
        any_case(&c);
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
    static struct any_case c;
    static sl_span a[4000], b[40000];
    for (int i = 0; i < 20; i++) {
        any_case(&c);
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
    sl_machine m = any_machine();
    for (uint32_t i = 0; i < 61; i++) {
        layers[i] = layer;
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
