/* tests/t_machine_rates.c - seconds of products and costs: measured points come back, points
 * between and beyond them by hand, rooflines by hand; and over random machines: never less for more
 * rows, never more for a faster machine, always finite and above 0. */
#include "perfmodel/sl_machine.h"
#include "tests/t.h"

#include <math.h>

static bool near(double a, double b) { return fabs(a / b - 1) < 1e-9; }

/* The CPU of docs/performance.md: 2 cores, 41 and 78 GB/s, 536 GMAC/s a core. */
static sl_machine plain(void)
{
    return (sl_machine){
        .id = { "Some CPU", "avx512vnni", 2, 2, 0, (uint64_t)24 << 30 },
        .n_dram = 2, .dram_read = { { 1, 41e9 }, { 2, 78e9 } },
        .peak_core = { [SL_PEAK_I8_VNNI512] = 536e9, [SL_PEAK_F32_AVX2] = 134e9 },
        .peak_all = { [SL_PEAK_I8_VNNI512] = 1060e9, [SL_PEAK_F32_AVX2] = 266e9 },
    };
}

static void check_roofline(void)
{
    sl_machine m = plain();
    double w = 1e6;
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 1, w, 1), w * 0.5625 / (0.85 * 41e9)),
            "one row is bound by DRAM");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 1, w, 64), w * (64 + 5.3) / (0.66 * 536e9)),
            "64 rows by the peak");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_F16, 2, w, 100), w * 105 / (0.5 * 133e9)),
            "floats");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 9, w, 1), w * 0.5625 / (0.85 * 78e9)),
            "more threads than there are");
    /* 3 to 5 GB/s a core, as measured */
    double table = w * 82 / 256 / sl_machine_gemm_seconds(&m, SL_IQ2_S, 1, w, 1);
    T_CHECK(table > 3e9 && table < 5e9, "IQ2_S: %g bytes/s", table);
    /* shares that were measured: 8, 64 and 128 rows of Q4_K at 43, 65 and 67 % of the peak */
    for (int i = 0; i < 3; i++) {
        double rows = (double[]){ 8, 64, 128 }[i], want = (double[]){ 0.40, 0.61, 0.63 }[i];
        double share = w * rows / sl_machine_gemm_seconds(&m, SL_Q4_K, 1, w, rows) / 536e9;
        T_CHECK(fabs(share - want) < 0.01, "%g rows: %g of the peak", rows, share);
    }
    /* ... and with AVX2 at 36, 71 and 76 % of a quarter of it, one row at 28-33 GB/s */
    m.peak_core[SL_PEAK_I8_AVX2] = 134e9;
    m.peak_core[SL_PEAK_I8_VNNI512] = m.peak_all[SL_PEAK_I8_VNNI512] = 0;
    m.peak_all[SL_PEAK_I8_AVX2] = 265e9;
    for (int i = 0; i < 4; i++) {
        double rows = (double[]){ 1, 8, 64, 128 }[i];
        double want = (double[]){ 0.40, 0.40, 0.68, 0.73 }[i];
        double share = w * rows / sl_machine_gemm_seconds(&m, SL_Q4_K, 1, w, rows) / 134e9;
        T_CHECK(fabs(share - want) < 0.01, "AVX2, %g rows: %g of the peak", rows, share);
    }
}

static void check_measured(void)
{
    sl_machine m = plain();
    m.n_gemms = 3;
    m.gemm[0] = (sl_machine_gemm){ SL_Q4_K, 1, 3, { { 1, 60e9 }, { 8, 200e9 }, { 64, 320e9 } } };
    m.gemm[1] = (sl_machine_gemm){ SL_Q4_K, 4, 3, { { 1, 120e9 }, { 8, 400e9 }, { 64, 640e9 } } };
    m.gemm[2] = (sl_machine_gemm){ SL_F32, 1, 2, { { 1, 10e9 }, { 2, 30e9 } } };
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 1, 2, 8), 2 * 8 / 200e9), "a point");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 1, 1, 36), (8 / 200e9 + 64 / 320e9) / 2),
            "halfway between rows");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 1, 1, 128), 128 / 320e9), "beyond");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 1, 1, 0.3), 1 / 60e9), "below");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 2, 1, 1), 1 / 80e9), "between threads");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 4, 1, 8), 8 / 400e9), "the last threads");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_F32, 1, 1, 2), 1 / 10e9), "noise: not below a row");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q5_K, 1, 1, 1), 176 / 144.0 / 60e9),
            "another type of the kind: as its bytes");
    m.n_gemms = 1;
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 2, 1, 1), 41e9 / 78e9 / 60e9),
            "more threads than measured: one row as DRAM");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_Q4_K, 2, 1, 64), 64 / 320e9 * 536 / 1060),
            "... and many as the peak");
    T_CHECK(near(sl_machine_gemm_seconds(&m, SL_BF16, 1, 1, 1), 1 / (0.25 * 67e9)),
            "another kind: the roofline");
}

static void check_gpu(void)
{
    sl_machine_gpu g = { .name = "T4", .vram_bytes = (uint64_t)15 << 30, .vram_bytes_s = 300e9,
                         .flops_s = 65e12, .h2d_bytes_s = 12e9, .d2h_bytes_s = 12e9 };
    T_CHECK(near(sl_machine_gpu_gemm_seconds(&g, SL_F16, 1e6, 1), 2e6 / 240e9), "memory");
    T_CHECK(near(sl_machine_gpu_gemm_seconds(&g, SL_F16, 1e6, 1000), 2e9 / 39e12), "flops");
    g.n_gemms = 1;
    g.gemm[0] = (sl_machine_gemm){ SL_F16, 0, 2, { { 1, 1e11 }, { 32, 1e12 } } };
    T_CHECK(near(sl_machine_gpu_gemm_seconds(&g, SL_F16, 1, 32), 32 / 1e12), "measured");
    T_CHECK(near(sl_machine_gpu_gemm_seconds(&g, SL_Q8_0, 1, 1), 34 / 64.0 / 1e11),
            "another type: as its bytes");
}

static void check_costs(void)
{
    sl_machine m = plain();
    sl_machine_cost c = sl_machine_cost_at(&m, 2);
    T_CHECK(near(c.stage_s, 5e-7 + 3 * 2.2e-7) && near(c.prefill_flops_s, 0.52 * 266e9)
            && near(c.decode_flops_s, 0.45 * 266e9) && c.corun_cpu == 1 && c.corun_disk == 1,
            "derived: %g %g %g", c.stage_s, c.prefill_flops_s, c.decode_flops_s);
    m.disk = (sl_machine_disk){ .n_curves = 1, .latency_s = 1e-4, .curve = { {
        .bytes = 1 << 20, .n = 1, .at = { { 8, 7.8e9 } } } } };
    T_CHECK(near(sl_machine_cost_at(&m, 2).corun_cpu, 0.9), "a tenth of DRAM goes to the disk");
    T_CHECK(sl_machine_cost_at(&m, 1).corun_cpu == 1, "one thread leaves room");
    m.n_costs = 2;
    m.cost[0] = (sl_machine_cost){ 1, 1e-6, 4e-10, 50e9, 80e9, 0, 0.9, 0, 0, 0 };
    m.cost[1] = (sl_machine_cost){ 3, 3e-6, 2e-10, 90e9, 160e9, 0, 0.7, 0.8, 0.9, 0 };
    T_CHECK(sl_machine_cost_at(&m, 1).stage_s == 1e-6 && sl_machine_cost_at(&m, 3).stage_s == 3e-6,
            "points");
    c = sl_machine_cost_at(&m, 2);
    T_CHECK(near(c.stage_s, 2e-6) && near(c.elem_s, 1 / 3.75e9) && near(c.decode_flops_s, 70e9)
            && near(c.corun_cpu, 0.8) && near(c.corun_disk, 0.8), "between");
    m.n_costs = 1;
    c = sl_machine_cost_at(&m, 2);
    T_CHECK(near(c.prefill_flops_s, 80e9 * 266 / 134) && c.corun_disk == 1, "beyond: as peaks");
}

/* ---- properties ---- */

static double rate(double least, double most)
{
    return least * pow(most / least, (double)t_below(1000) / 999);
}

static sl_machine any(bool measured)
{
    static const sl_type types[] = { SL_Q8_0, SL_Q4_K, SL_F16, SL_IQ3_S };
    sl_machine m = { .id = { "Any", "", 1 + t_below(64), 128, 0, (uint64_t)1 << 36 }, .n_dram = 3 };
    double dram = rate(5e9, 5e10);
    for (uint32_t i = 0; i < 3; i++)
        m.dram_read[i] = (sl_machine_point){ 1 + i * 3, dram *= rate(1, 2) };
    for (int i = 0; i < SL_N_PEAKS; i++) {
        if (t_below(2)) continue;
        m.peak_core[i] = rate(1e10, 1e12);
        m.peak_all[i] = m.peak_core[i] * m.id.cores * rate(0.5, 1);
    }
    for (uint32_t i = 0; measured && i < SL_LEN(types); i++)
        for (uint32_t k = 0, n = t_below(3); k < n; k++) {
            sl_machine_gemm *g = &m.gemm[m.n_gemms++];
            *g = (sl_machine_gemm){ .type = types[i], .threads = 1 + 5 * k, .n = 1 + t_below(12) };
            for (uint32_t p = 0; p < g->n; p++)
                g->at[p] = (sl_machine_gemm_point){ p ? g->at[p - 1].rows * 2 + t_below(9) : 1,
                                                    rate(1e9, 1e12) };
        }
    return m;
}

static sl_type any_type(void)
{
    sl_type t = (sl_type)t_below(SL_N_TYPES);
    return sl_type_get(t)->name ? t : SL_Q6_K;
}

static void check_rows(void)
{
    for (int round = 0; round < 400; round++) {
        sl_machine m = any(round % 4);
        sl_type type = any_type();
        uint32_t threads = t_below(70);
        double before = 0;
        for (double rows = 0.5; rows < 5000; rows *= rate(1, 2)) {
            double s = sl_machine_gemm_seconds(&m, type, threads, 1e7, rows);
            T_CHECK(isfinite(s) && s > 0 && s >= before * (1 - 1e-12), "%s, %g rows: %g after %g",
                    sl_type_get(type)->name, rows, s, before);
            before = s;
        }
        double two = sl_machine_gemm_seconds(&m, type, threads, 2e7, 30);
        T_CHECK(near(two, 2 * sl_machine_gemm_seconds(&m, type, threads, 1e7, 30)), "weights");
    }
}

static void check_faster(void)
{
    for (int round = 0; round < 2000; round++) {
        sl_machine m = any(false), fast = m;
        sl_type type = any_type();
        uint32_t threads = 1 + t_below(70), peak = t_below(SL_N_PEAKS + 1);
        double rows = rate(1, 1000), more = rate(1, 10);
        for (uint32_t i = 0; i < m.n_dram && peak == SL_N_PEAKS; i++)
            fast.dram_read[i].value *= more;
        if (peak < SL_N_PEAKS && m.peak_core[peak] > 0) {
            fast.peak_core[peak] *= more;
            fast.peak_all[peak] *= more;
        }
        double a = sl_machine_gemm_seconds(&m, type, threads, 1, rows);
        double b = sl_machine_gemm_seconds(&fast, type, threads, 1, rows);
        T_CHECK(b <= a * (1 + 1e-12), "%s, %g rows, %u threads, peak %u by %g: %g became %g",
                sl_type_get(type)->name, rows, threads, peak, more, a, b);
        sl_machine_cost c = sl_machine_cost_at(&m, threads), d = sl_machine_cost_at(&fast, threads);
        T_CHECK(d.decode_flops_s >= c.decode_flops_s && d.prefill_flops_s >= c.prefill_flops_s
                && d.elem_s <= c.elem_s && d.stage_s <= c.stage_s && c.corun_cpu > 0, "costs");
    }
}

int main(void)
{
    t_begin();
    check_roofline();
    check_measured();
    check_gpu();
    check_costs();
    check_rows();
    check_faster();
    return t_end();
}
