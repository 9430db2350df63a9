/* tests/t_case.h - machines, models and plans for tests of forecasts: one that can be computed by
 * hand, and random ones. */
#ifndef T_CASE_H
#define T_CASE_H

#include <math.h>

#include "perfmodel/sl_forecast.h"
#include "tests/t.h"

/* One thread, 1e9 multiply-adds/s at any number of rows, memory that costs nothing, stages of 1 ms;
 * a disk of 1e9 bytes/s with 0.1 ms before the first byte. */
static sl_machine t_simple_machine(void)
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
static const sl_layer_shape t_simple_layer = {
    .qkv = { { SL_Q8_0, 1000000 } }, .post = { { SL_Q8_0, 1000000 } },
    .router = { SL_Q8_0, 1000 }, .expert = { { SL_Q8_0, 1000000 } },
    .qkv_bytes = 1000000, .post_bytes = 1000000, .router_bytes = 1000, .expert_bytes = 6000000,
    .slot_bytes = 6100000, .n_expert = 4, .n_used = 2,
};

static double t_between(double lo, double hi)
{
    return lo * pow(hi / lo, 0.5 * (t_unit() + 1));
}

static sl_machine t_machine(void)
{
    static const sl_type types[] = { SL_F32, SL_Q4_K, SL_Q8_0 };
    sl_machine m = t_simple_machine();
    uint32_t cores = m.id.cores = 1 + t_below(8);
    m.dram_read[0] = (sl_machine_point){ cores, t_between(1e10, 1e11) };
    m.n_gemms = SL_LEN(types);
    for (uint32_t i = 0; i < m.n_gemms; i++) {
        double one = t_between(2e9, 3e10), many = one * t_between(1.5, 20);
        m.gemm[i] = (sl_machine_gemm){ .type = types[i], .threads = cores, .n = 3,
                                       .at = { { 1, one }, { 16, sqrt(one * many) },
                                               { 128, many } } };
    }
    m.cost[0] = (sl_machine_cost){ .threads = cores, .stage_s = t_between(1e-6, 3e-5),
                                   .elem_s = t_between(1e-11, 1e-9),
                                   .decode_flops_s = t_between(1e10, 1e11),
                                   .prefill_flops_s = t_between(1e10, 1e12),
                                   .corun_cpu = t_between(0.5, 1),
                                   .corun_disk = t_between(0.5, 1) };
    m.read_cpu_s = t_between(1e-6, 3e-5);
    double best = t_between(5e8, 1e10), latency = t_between(2e-5, 1e-3);
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

static sl_layer_shape t_layer(uint32_t d)
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

typedef struct t_case {
    sl_machine m;
    sl_layer_shape layers[12];
    sl_shape shape;
    sl_plan plan;
    sl_miss_model miss;
    sl_load load;
} t_case;

/* of n_seq sequences; c->load of one */
static void t_make_case(sl_ctx *ctx, t_case *c, uint32_t n_seq)
{
    uint32_t n = 1 + t_below(12), d = 256 * (1 + t_below(8));
    *c = (t_case){ .m = t_machine() };
    c->layers[0] = t_layer(d);
    for (uint32_t i = 1; i < n; i++) c->layers[i] = t_below(3) ? c->layers[i - 1] : t_layer(d);
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
    p.n_seq = n_seq;
    if (n_seq > 1) p.n_ctx = 512;
    if (n_seq > 1 && t_below(2)) p.kv_positions = 512ull * (1 + t_below(n_seq));
    p.no_ahead = t_below(2);
    p.ram_hard = true;
    p.read_bytes = t_below(2) ? 256 << 10 : 0;
    p.read_depth = t_below(2) ? 1 + t_below(64) : 0;
    p.max_dense_layers = t_below(3) ? UINT32_MAX : t_below(n);
    for (double share = t_between(0.05, 1.5);; share *= 1.3) {
        p.ram_bytes = (uint64_t)(share * (double)all);
        if (sl_plan_make(ctx, &c->shape, &p, &c->plan) == SL_OK) break;
    }
}

#endif
