/* perfmodel/accel.c - the accelerator that a plan names, as numbers of the machine. */
#include "perfmodel/sl_forecast.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Types whose products are described where the machine's file has none. */
static const sl_type usual[] = { SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q6_K, SL_Q5_K, SL_Q4_K,
                                 SL_Q4_0, SL_MXFP4, SL_Q3_K, SL_Q2_K, SL_IQ2_XXS };
static const uint32_t some_rows[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048 };

/* The products of so many cores as a curve of its own. */
static void add_gemm(const sl_machine *m, sl_type type, uint32_t threads, sl_machine_gpu *g)
{
    for (uint32_t i = 0; i < g->n_gemms; i++)
        if (g->gemm[i].type == type) return;
    if (g->n_gemms == SL_MACHINE_GPU_GEMMS) return;
    sl_machine_gemm *to = &g->gemm[g->n_gemms++];
    *to = (sl_machine_gemm){ .type = type };
    for (size_t i = 0; i < SL_LEN(some_rows) && i < SL_MACHINE_GEMM_POINTS; i++) {
        double s = sl_machine_gemm_seconds(m, type, threads, 1, some_rows[i]);
        to->at[to->n++] = (sl_machine_gemm_point){ some_rows[i], some_rows[i] / s };
    }
}

/* From the moment that an emulated device's thread (or the driver) is woken until it runs: 30 to 60
 * us between two virtual cores of a Zen 3, timelines of tokens, 2026-11-30. A copy wakes the thread
 * that makes it, and then the one that waits for it. */
#define WAKE_S 40e-6

static double link_s(double wish, double copied)
{
    return wish > 0 ? fmin(wish, copied) : copied;
}

static sl_machine_gpu emulated(const sl_machine *m, const sl_accel *a)
{
    uint32_t threads = SL_MAX(a->n_cores, 1);
    sl_machine_cost c = sl_machine_cost_at(m, threads);
    double copied = sl_machine_dram_s(m, 1) / 2;
    sl_machine_gpu g = {
        .vram_bytes = a->mem_bytes,
        .vram_bytes_s = sl_machine_dram_s(m, threads),
        .flops_s = c.prefill_flops_s,
        .h2d_bytes_s = link_s(a->up_bytes_s, copied),
        .d2h_bytes_s = link_s(a->down_bytes_s, copied),
        .copy_s = a->link_s + 2 * WAKE_S,
        .launch_s = c.stage_s,
        .decode_flops_s = c.decode_flops_s,
        .prefill_flops_s = c.prefill_flops_s,
        .decode_bytes_s = c.decode_bytes_s,
        .elem_s = c.elem_s,
    };
    snprintf(g.name, sizeof g.name, "emulated, %u core%s", threads, threads == 1 ? "" : "s");
    for (uint32_t i = 0; i < m->n_gemms; i++) add_gemm(m, m->gemm[i].type, threads, &g);
    for (size_t i = 0; i < SL_LEN(usual); i++) add_gemm(m, usual[i], threads, &g);
    return g;
}

bool sl_forecast_gpu(const sl_machine *m, const sl_accel *a, sl_machine_gpu *ret)
{
    if (a->kind == SL_ACCEL_EMU) {
        *ret = emulated(m, a);
        return true;
    }
    uint32_t i = a->index;
    if (a->name[0])
        for (i = 0; i < m->n_gpus && strcmp(m->gpu[i].name, a->name); ) i++;
    if (a->kind != SL_ACCEL_CUDA || i >= m->n_gpus) return false;
    *ret = m->gpu[i];
    return true;
}
