/* tests/t_stage1.c - stage 1 by hand on a model of two layers, one resource binding at a time; then
 * properties on random machines, plans and presets: finite, never negative, and never slower when
 * something of the machine gets faster. */
#include "tests/t.h"

#include <math.h>

#include "perfmodel/sl_bound.h"
#include "perfmodel/sl_forecast.h"
#include "perfmodel/sl_preset.h"

#define NEAR(a, b) (fabs((a) - (b)) <= 1e-12 * fabs(b))

/* ---- by hand ---- */

/* d_model 8, vocabulary 10; a dense layer of floats, then 4 experts of which a token uses 2. */
static const sl_layer_shape hand_layers[2] = {
    { .qkv = { { SL_F32, 100 } },
      .post = { { SL_F32, 50 } },
      .ffn = { { SL_F32, 400 } },
      .qkv_bytes = 400,
      .post_bytes = 200,
      .ffn_bytes = 1600,
      .k_elems = 16,
      .v_elems = 8,
      .ctx_flops_row = 64 },
    { .qkv = { { SL_F32, 100 } },
      .post = { { SL_F32, 50 } },
      .router = { SL_F32, 32 },
      .ffn = { { SL_F32, 30 } },
      .expert = { { SL_F32, 300 } },
      .qkv_bytes = 400,
      .post_bytes = 200,
      .router_bytes = 128,
      .ffn_bytes = 120,
      .expert_bytes = 1200,
      .slot_bytes = 4096,
      .n_expert = 4,
      .n_used = 2,
      .k_elems = 20,
      .v_elems = 4,
      .window = 3,
      .ctx_flops_row = 96 },
};
static const sl_shape hand_shape = { .n_layer = 2, .d_model = 8, .n_vocab = 10,
                                     .embed_bytes = 320, .head = { SL_F32, 80 },
                                     .layers = hand_layers };
enum { APART = 100 + 50 + 400 + 100 + 50 + 32 + 30 + 80, EXPERT = 300 };   /* weights */
enum { KV = 48, EMBED_ROW = 32 };                                           /* bytes */

/* 1000 bytes/s, weights of 4 bytes at exactly that, arithmetic for nothing. */
static sl_machine hand_machine(void)
{
    sl_machine m = { .source = SL_MACHINE_MEASURED, .id = { .cores = 1 }, .n_dram = 1,
                     .dram_read = { { 1, 1000 } }, .n_gemms = 1, .n_costs = 1 };
    m.gemm[0] = (sl_machine_gemm){ .type = SL_F32, .threads = 1, .n = 2,
                                   .at = { { 1, 250 }, { 1000, 250000 } } };
    m.cost[0] = (sl_machine_cost){ .threads = 1, .stage_s = 1e-9, .elem_s = 1e-12,
                                   .decode_flops_s = 1e12, .prefill_flops_s = 1e12,
                                   .corun_cpu = 1, .corun_disk = 1 };
    return m;
}

static sl_plan hand_plan(uint32_t n_slots)
{
    return (sl_plan){ .weights = n_slots < 4 ? SL_WEIGHTS_STREAMED : SL_WEIGHTS_RESIDENT,
                      .n_classes = 1, .cls = { { 4096, n_slots, 4 } }, .n_dense_layers = 2,
                      .max_rows = 4, .n_threads = 1, .kv_type = SL_F16, .need_bytes = 77 };
}

static sl_forecast ask(const sl_machine *m, const sl_plan *p, sl_load load, const sl_misses *misses)
{
    static const sl_miss_model miss = { .n_points = 0 };
    const sl_forecast_in in = { m, &hand_shape, p, &miss, load, misses };
    return sl_stage1(&in);
}

static void dram_binds(void)
{
    sl_machine m = hand_machine();
    sl_plan p = hand_plan(4);
    sl_step steps[12];
    uint32_t n_steps = sl_pipe_build(&hand_shape, &p, steps);
    sl_rates rates = { .bytes_s = 1000 };
    sl_forecast f = ask(&m, &p, (sl_load){ 3, 2 }, NULL);
    /* positions 3 and 4; layer 1 sees two earlier ones of each */
    double want = 2 * (4 * (APART + 2 * EXPERT) + EMBED_ROW + 2 * KV) + (3 + 4 + 2 + 2) * KV;
    T_CHECK(NEAR(f.decode.seconds, want / 1000), "%g, want %g", f.decode.seconds, want / 1000);
    T_CHECK(NEAR(f.decode.tok_per_s, 2000 / want), "%g", f.decode.tok_per_s);
    double bound = 0;
    for (uint32_t at = 3; at < 5; at++) {
        sl_pass pass = { .first = at, .n_rows = 1, .logits = true };
        sl_work w = sl_bound_work(&hand_shape, steps, n_steps, &pass);
        bound += sl_bound_s(&w, &rates, NULL);
    }
    T_CHECK(NEAR(f.decode.seconds, bound), "%g, sl_bound %g", f.decode.seconds, bound);
    T_CHECK(f.decode.binding == SL_RES_DRAM && f.hit_rate == 1 && f.decode.disk_bytes == 0
            && f.peak_bytes == 77 && f.stall_share < 1e-12, "%g", f.stall_share);
    /* A prompt of 6 in passes of 4 and 2: even routing finds 3.75 and 3 experts. */
    f = ask(&m, &p, (sl_load){ 6, 0 }, NULL);
    bound = 6 / sl_bound_prompt(&hand_shape, steps, n_steps, 6, 4, 0, &rates);
    T_CHECK(NEAR(f.prompt.seconds, bound), "%g, sl_bound %g", f.prompt.seconds, bound);
    T_CHECK(f.decode.seconds == 0 && f.decode.tok_per_s == 0 && f.stall_share == 0, "no token");
    T_CHECK(f.ttft_s == f.prompt.seconds && f.grade == SL_GRADE_COLD, "%g", f.ttft_s);
}

static void arithmetic_binds(void)
{
    sl_machine m = hand_machine();
    sl_plan p = hand_plan(4);
    /* 125 weights/s whatever the rows: memory would do 250 */
    m.gemm[0].n = 1;
    m.gemm[0].at[0].ops_s = 125;
    sl_forecast f = ask(&m, &p, (sl_load){ 1, 1 }, NULL);
    double kv = ((1 + 1 + 2) * KV + EMBED_ROW) / 1000.0;
    double want = (APART + 2 * EXPERT) / 125.0 + kv;
    T_CHECK(NEAR(f.decode.seconds, want), "%g, want %g", f.decode.seconds, want);
    T_CHECK(f.decode.binding == SL_RES_CPU && f.decode.next == SL_RES_DRAM, "%d %d",
            f.decode.binding, f.decode.next);
    /* six rows, of which a weight is multiplied by all, an expert's by half; the head by one */
    m.gemm[0].at[0].ops_s = 50;
    f = ask(&m, &p, (sl_load){ 6, 0 }, NULL);
    want = (6 * (APART - 80) + 6 * 2 * EXPERT + 80) / 50.0;
    T_CHECK(f.prompt.seconds > want && f.prompt.seconds < want + 24 * KV / 1000.0, "%g, want %g",
            f.prompt.seconds, want);
    /* attention: 4 positions of 64 flops, the last three of 96 */
    m = hand_machine();
    m.dram_read[0].value = 1e9;
    m.gemm[0].at[0].ops_s = m.gemm[0].at[1].ops_s = 1e12;
    m.cost[0].decode_flops_s = 10;
    f = ask(&m, &p, (sl_load){ 3, 1 }, NULL);
    T_CHECK(fabs(f.decode.seconds - (4 * 64 + 3 * 96) / 10.0) < 1e-4, "%g", f.decode.seconds);
    /* fixed costs: four stages of a dense layer, five of one with experts, embedding and head */
    m.cost[0].decode_flops_s = 1e12;
    m.cost[0].stage_s = 2;
    f = ask(&m, &p, (sl_load){ 3, 1 }, NULL);
    T_CHECK(NEAR(f.decode.seconds, 22.0) && f.decode.binding == SL_RES_SYNC, "%g",
            f.decode.seconds);
}

static void disk_binds(void)
{
    sl_machine m = hand_machine();
    sl_plan p = hand_plan(2);
    const sl_misses misses = { .turns = { { 1, 2, 1 } } };
    m.disk.n_curves = 1;
    m.disk.latency_s = 1;
    m.disk.curve[0] = (sl_machine_curve){ .bytes = 400, .n = 2, .at = { { 3, 100 }, { 6, 400 } } };
    /* One missing: 1200 bytes by three reads, 12 s; two: 2400 by six, 6 s; computing takes 2.52. */
    double kv = (7 * KV + EMBED_ROW) / 1000.0, apart = 4 * (APART - 30) / 1000.0 + kv;
    double experts = 4 * (30 + 2 * EXPERT) / 1000.0;
    sl_forecast f = ask(&m, &p, (sl_load){ 3, 1 }, &misses);
    double want = apart + experts / 4 + 12.0 / 2 + 6.0 / 4;
    T_CHECK(NEAR(f.decode.seconds, want), "%g, want %g", f.decode.seconds, want);
    T_CHECK(NEAR(f.decode.busy_s[SL_RES_DISK], 7.5) && f.hit_rate == 0.5
            && f.grade == SL_GRADE_CALIBRATED, "%g", f.decode.busy_s[SL_RES_DISK]);
    T_CHECK(f.decode.binding == SL_RES_DISK && f.decode.next == SL_RES_DRAM, "%d %d",
            f.decode.binding, f.decode.next);
    T_CHECK(NEAR(f.disk_bytes_per_token, 1200.0), "%g", f.disk_bytes_per_token);
    T_CHECK(NEAR(f.decode.wait_s, want - apart - experts), "%g", f.decode.wait_s);
    /* Two in flight, four seconds at least: three requests take one turn and a half, six three. */
    p.read_depth = 2;
    m.disk.curve[0].at[0].bytes_s = m.disk.curve[0].at[1].bytes_s = 1e6;
    m.disk.latency_s = 4;
    f = ask(&m, &p, (sl_load){ 3, 1 }, &misses);
    want = apart + experts / 4 + 6.0 / 2 + 12.0 / 4;
    T_CHECK(NEAR(f.decode.seconds, want), "%g, want %g", f.decode.seconds, want);
    /* The disk loses a quarter for as long as the cores would read alone: 2.52 s beside 12 s. */
    p.read_depth = 0;
    m.disk.latency_s = 1;
    m.disk.curve[0].at[0].bytes_s = m.disk.curve[0].at[1].bytes_s = 100;
    m.cost[0].corun_cpu = 0.5;
    m.cost[0].corun_disk = 0.75;
    const sl_misses one = { .turns = { { 0, 1 } } };
    f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    want = apart + 12 + 0.25 * experts;
    T_CHECK(NEAR(f.decode.seconds, want), "%g, want %g", f.decode.seconds, want);
    /* The cores keep half while the disk is busy, for one second: 2.52 s take half a one more. */
    m.disk.curve[0].at[0].bytes_s = m.disk.curve[0].at[1].bytes_s = 1200;
    f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    T_CHECK(NEAR(f.decode.seconds, apart + experts + 0.5), "%g", f.decode.seconds);
    /* A prompt reads its 3.75 experts, then those of 3 that two slots cannot keep, at the best. */
    m = hand_machine();
    m.dram_read[0].value = 1e4;
    m.gemm[0].at[0].ops_s = 2500;
    m.disk.n_curves = 1;
    m.disk.curve[0] = (sl_machine_curve){ .bytes = 400, .n = 2, .at = { { 3, 100 }, { 6, 400 } } };
    f = ask(&m, &p, (sl_load){ 6, 0 }, NULL);
    T_CHECK(NEAR(f.prompt.disk_bytes, (3.75 + 1) * 1200) && f.prompt.binding == SL_RES_DISK
            && NEAR(f.prompt.seconds, 4.75 * 3), "%g s", f.prompt.seconds);
    /* ... and dense weights that do not stay, in each of its two passes */
    p.n_dense_layers = 1;
    f = ask(&m, &p, (sl_load){ 6, 0 }, NULL);
    double section = 400 + 200 + 128 + 120;
    T_CHECK(NEAR(f.prompt.disk_bytes, 4.75 * 1200 + 2 * section), "%g", f.prompt.disk_bytes);
    f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    T_CHECK(NEAR(f.disk_bytes_per_token, 1200 + section), "%g", f.disk_bytes_per_token);
    /* nobody measured the disk: it bounds nothing */
    m = hand_machine();
    p.n_dense_layers = 2;
    m.dram_read[0].value = 1e9;
    f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    want = (APART + 2 * EXPERT) / 250.0;
    T_CHECK(fabs(f.decode.seconds - want) < 1e-4, "%g, want %g", f.decode.seconds, want);
}

/* What the disk writes shares the memory with what the cores read. */
static void memory_is_shared(void)
{
    sl_machine m = hand_machine();
    sl_plan p = hand_plan(2);
    const sl_misses one = { .turns = { { 0, 1 } } };
    m.cost[0].corun_cpu = m.cost[0].corun_disk = 0;     /* nobody measured that */
    m.disk.n_curves = 1;
    m.disk.curve[0] = (sl_machine_curve){ .bytes = 400, .n = 1, .at = { { 3, 1e6 } } };
    sl_forecast f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    double bytes = 4 * (APART + 2 * EXPERT) + EMBED_ROW + 7 * KV + 1200;
    T_CHECK(NEAR(f.decode.seconds, bytes / 1000) && f.decode.binding == SL_RES_DRAM, "%g",
            f.decode.seconds);
    /* one thread draws half of what the memory gives: there is room for the disk */
    m.n_dram = 2;
    m.dram_read[1] = (sl_machine_point){ 2, 2000 };
    f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    T_CHECK(NEAR(f.decode.seconds, (bytes - 1200) / 1000), "%g", f.decode.seconds);
}

/* ---- any machine, model and plan ---- */

static sl_ctx *ctx;

static double between(double lo, double hi)
{
    return lo * pow(hi / lo, 0.5 * (t_unit() + 1.0));
}

/* Rates of several thread counts, everything measured or nothing. */
static sl_machine any_machine(void)
{
    static const sl_type types[] = { SL_F32, SL_F16, SL_Q4_K, SL_Q5_0, SL_Q6_K, SL_Q8_0 };
    uint32_t cores = 1 + t_below(32);
    sl_machine m = { .source = (sl_machine_source)t_below(3), .n_dram = 1,
                     .id = { .cpu = "x", .cores = cores, .hw_threads = cores } };
    m.dram_read[0] = (sl_machine_point){ cores, between(1e10, 3e11) };
    for (int i = 0; i < SL_N_PEAKS; i++) {
        m.peak_core[i] = between(1e10, 1e12);
        m.peak_all[i] = m.peak_core[i] * cores;
    }
    if (t_below(8)) {
        m.disk.latency_s = between(1e-5, 1e-2);
        m.disk.n_curves = 1 + t_below(3);
        for (uint32_t c = 0; c < m.disk.n_curves; c++) {
            m.disk.curve[c].bytes = 4096u << (4 * c);
            m.disk.curve[c].n = 3;
            for (uint32_t k = 0; k < 3; k++)
                m.disk.curve[c].at[k] =
                    (sl_machine_disk_point){ 1u << (3 * k), between(1e7, 1e10) };
        }
    }
    if (!t_below(3)) return m;
    m.n_gemms = SL_LEN(types);
    for (uint32_t i = 0; i < m.n_gemms; i++)
        m.gemm[i] = (sl_machine_gemm){ .type = types[i], .threads = cores, .n = 3,
                                       .at = { { 1, between(1e9, 1e11) },
                                               { 16, between(1e10, 1e12) },
                                               { 128, between(1e11, 1e13) } } };
    m.n_costs = 1;
    m.cost[0] = (sl_machine_cost){ .threads = cores, .stage_s = between(1e-7, 1e-3),
                                   .elem_s = between(1e-12, 1e-8),
                                   .decode_flops_s = between(1e9, 1e12),
                                   .prefill_flops_s = between(1e9, 1e13) };
    if (t_below(2)) m.cost[0].corun_cpu = between(0.2, 1), m.cost[0].corun_disk = between(0.2, 1);
    return m;
}

struct any { sl_machine m; sl_shape shape; sl_plan plan; sl_miss_model miss; sl_load load; };

static void any_plan(struct any *a)
{
    static sl_layer_shape layers[256];
    static const char *const quants[] = { "Q4_K", "Q4_K_M", "Q8_0", "F16" };
    uint32_t n = 0;
    while (sl_preset_at(n)) n++;
    const sl_preset *p = sl_preset_at(t_below(n));
    sl_plan_params params = sl_plan_defaults();
    T_NEED(p->n_layer <= SL_LEN(layers), "%s", p->name);
    T_NEED(sl_preset_shape(ctx, p, quants[t_below(4)], layers, &a->shape) == SL_OK, "%s",
           sl_error(ctx));
    a->m = any_machine();
    a->load = (sl_load){ 1 + t_below(3000), t_below(500) };
    const sl_layer_shape *l = &layers[p->n_layer - 1];
    a->miss = sl_miss_default(l->n_expert, l->n_used);
    params.n_ctx = 4096;
    params.max_rows = 1 + t_below(1024);
    params.n_threads = t_below(2) ? a->m.id.cores : 0;
    params.read_bytes = t_below(2) ? 4096u << t_below(10) : 0;
    params.read_depth = t_below(2) ? 1 + t_below(64) : 0;
    params.ram_hard = t_below(2);
    for (double share = between(0.02, 3);; share *= 1.3) {
        params.ram_bytes = (uint64_t)(share * (double)a->shape.total_bytes);
        if (sl_plan_make(ctx, &a->shape, &params, &a->plan) == SL_OK) break;
    }
}

static sl_forecast of(const struct any *a)
{
    const sl_forecast_in in = { &a->m, &a->shape, &a->plan, &a->miss, a->load, NULL };
    return sl_stage1(&in);
}

static void holds(const sl_phase *p, uint32_t n)
{
    T_CHECK(isfinite(p->seconds) && (p->seconds > 0) == (n > 0), "%g s", p->seconds);
    T_CHECK(isfinite(p->tok_per_s) && p->tok_per_s >= 0, "%g tok/s", p->tok_per_s);
    T_CHECK(p->wait_s >= 0 && p->wait_s <= p->seconds && p->disk_bytes >= 0, "waits %g", p->wait_s);
    T_CHECK(p->binding != p->next, "%d twice", p->next);
    for (int r = 0; r < SL_N_RESOURCES; r++)
        T_CHECK(p->busy_s[r] >= 0 && p->busy_s[r] <= p->seconds
                && p->busy_s[r] <= p->busy_s[p->binding]
                && (r == (int)p->binding || p->busy_s[r] <= p->busy_s[p->next]),
                "resource %d is busy for %g of %g s", r, p->busy_s[r], p->seconds);
}

/* One thing of the machine gets better. Returns its name, NULL: there are no more. */
static const char *improve(sl_machine *m, int what)
{
    double by = between(1, 4);
    uint32_t any = t_below(3);
    switch (what) {
    case 0:
        /* products that were measured with less stay as they are */
        for (uint32_t i = 0; i < m->n_dram; i++) m->dram_read[i].value *= by;
        return "DRAM";
    case 1:
        for (int i = 0; i < SL_N_PEAKS; i++) m->peak_core[i] *= by, m->peak_all[i] *= by;
        return "peaks";
    case 2:
        for (uint32_t c = 0; c < m->disk.n_curves; c++) m->disk.curve[c].at[any].bytes_s *= by;
        return "one depth of the disk";
    case 3:
        if (m->disk.n_curves)
            for (int k = 0; k < 3; k++)
                m->disk.curve[any % m->disk.n_curves].at[k].bytes_s *= by;
        return "one size of reads";
    case 4: m->disk.latency_s /= by; return "latency";
    case 5:
        for (uint32_t i = 0; i < m->n_gemms; i++) m->gemm[i].at[any].ops_s *= by;
        return "one number of rows";
    case 6: m->cost[0].decode_flops_s *= by; return "decode attention";
    case 7: m->cost[0].prefill_flops_s *= by; return "prompt attention";
    case 8: m->cost[0].stage_s /= by; return "stages";
    case 9: m->cost[0].corun_cpu = fmin(by * m->cost[0].corun_cpu, 1); return "co-run, CPU";
    case 10: m->cost[0].corun_disk = fmin(by * m->cost[0].corun_disk, 1); return "co-run, disk";
    default: return NULL;
    }
}

static void properties(void)
{
    static struct any a, b;
    for (int i = 0; i < 150; i++) {
        const char *name;
        any_plan(&a);
        sl_forecast f = of(&a), g;
        holds(&f.prompt, a.load.n_prompt);
        holds(&f.decode, a.load.n_gen);
        T_CHECK(f.hit_rate >= 0 && f.hit_rate <= 1 && f.stall_share >= 0 && f.stall_share <= 1
                && f.disk_bytes_per_token >= 0, "%g %g", f.hit_rate, f.stall_share);
        T_CHECK(a.plan.weights == SL_WEIGHTS_STREAMED || f.prompt.disk_bytes == 0, "resident");
        for (int what = 0; b = a, (name = improve(&b.m, what)); what++) {
            g = of(&b);
            T_CHECK(g.prompt.seconds <= f.prompt.seconds * (1 + 1e-9)
                    && g.decode.seconds <= f.decode.seconds * (1 + 1e-9),
                    "case %d, better %s: prompt %g -> %g s, decode %g -> %g", i, name,
                    f.prompt.seconds, g.prompt.seconds, f.decode.seconds, g.decode.seconds);
        }
    }
}

int main(void)
{
    t_begin();
    dram_binds();
    arithmetic_binds();
    disk_binds();
    memory_is_shared();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    properties();
    sl_ctx_destroy(&ctx);
    return t_end();
}
