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
    /* Two in flight, each a second at least: three requests take two turns, six take three. */
    p.read_depth = 2;
    m.disk.curve[0].at[0].bytes_s = m.disk.curve[0].at[1].bytes_s = 1e6;
    m.disk.latency_s = 4;
    f = ask(&m, &p, (sl_load){ 3, 1 }, &misses);
    want = apart + experts / 4 + 8.0 / 2 + 12.0 / 4;
    T_CHECK(NEAR(f.decode.seconds, want), "%g, want %g", f.decode.seconds, want);
    /* While both run the cores keep half and the disk a quarter: 2.52 s beside 12 s. */
    p.read_depth = 0;
    m.disk.latency_s = 1;
    m.disk.curve[0].at[0].bytes_s = m.disk.curve[0].at[1].bytes_s = 100;
    m.cost[0].corun_cpu = 0.5;
    m.cost[0].corun_disk = 0.75;
    const sl_misses one = { .turns = { { 0, 1 } } };
    f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    want = apart + 12 + 0.25 * experts / 0.5;
    T_CHECK(NEAR(f.decode.seconds, want), "%g, want %g", f.decode.seconds, want);
    /* together they may be worse than one after the other */
    m.cost[0].corun_cpu = 0.25;
    m.cost[0].corun_disk = 0.1;
    f = ask(&m, &p, (sl_load){ 3, 1 }, &one);
    T_CHECK(NEAR(f.decode.seconds, apart + 12 + experts), "%g", f.decode.seconds);
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

int main(void)
{
    t_begin();
    dram_binds();
    arithmetic_binds();
    disk_binds();
    memory_is_shared();
    return t_end();
}
