/* tests/t_probe.c - a quick probe of this machine gives numbers that machines have, in plausible
 * relation to each other. Other load only lowers them, so the lower limits are generous. */
#include "offload/sl_probe.h"
#include "tests/t.h"

static sl_ctx *ctx;
static unsigned reports;

static void count_reports(void *user, const char *what, double share)
{
    (void)user;
    T_CHECK(what[0] && share >= 0 && share <= 1, "%s at %g", what, share);
    reports++;
}

static void check_machine(void)
{
    sl_machine m;
    sl_probe_params p = { .quick = true, .progress = count_reports };
    T_NEED(sl_probe_run(ctx, &p, &m) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(m.source == SL_MACHINE_QUICK && m.id.cpu[0] && m.id.cores && reports > 3,
            "source, name, cores");
    T_CHECK(sl_machine_check(ctx, &m) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(m.dram_read[0].threads == 1 && m.dram_read[m.n_dram - 1].threads == m.id.cores,
            "thread counts");
    for (uint32_t i = 0; i < m.n_dram; i++) {
        T_CHECK(m.dram_read[i].value > 2e8 && m.dram_read[i].value < 5e12, "read %u: %g", i,
                m.dram_read[i].value);
        T_CHECK(m.barrier[i].value < 0.05, "barrier %u: %g s", i, m.barrier[i].value);
    }
    for (int i = 0; i < SL_N_PEAKS; i++) {
        sl_peak k = (sl_peak)i;
        if (!sl_probe_has(k)) {
            T_CHECK(m.peak_core[i] == 0 && m.peak_all[i] == 0, "%s is not there", sl_peak_name(k));
            continue;
        }
        /* Four instructions of 512 bits a cycle at 7 GHz would be 1.8e12 multiply-adds. */
        T_CHECK(m.peak_core[i] > 1e9 && m.peak_core[i] < 2e12, "%s: %g", sl_peak_name(k),
                m.peak_core[i]);
        T_CHECK(m.peak_all[i] > 0.2 * m.peak_core[i]
                    && m.peak_all[i] < 1.3 * m.id.cores * m.peak_core[i],
                "%s: %g of one, %g of all", sl_peak_name(k), m.peak_core[i], m.peak_all[i]);
    }
    /* One instruction does the work of three, or twice as wide: never slower by much. */
    if (sl_probe_has(SL_PEAK_I8_VNNI512))
        T_CHECK(m.peak_core[SL_PEAK_I8_VNNI512] > 0.9 * m.peak_core[SL_PEAK_I8_AVX2],
                "VNNI below AVX2");
}

static void check_parts(void)
{
    sl_machine_id a, b;
    char why[200];
    T_NEED(sl_probe_identify(ctx, &a) == SL_OK && sl_probe_identify(ctx, &b) == SL_OK, "%s",
           sl_error(ctx));
    T_CHECK(sl_machine_same(&a, &b, why), "%s", why);
    sl_probe_reader *r = NULL;
    T_NEED(sl_probe_reader_create(ctx, 1, &r) == SL_OK, "%s", sl_error(ctx));
    double rate = sl_probe_read(r);
    T_CHECK(rate > 2e8 && rate < 5e12, "%g bytes/s", rate);
    sl_probe_reader_destroy(&r);
    T_CHECK(!r, "destroyed");
    sl_probe_reader_destroy(&r);
    sl_machine m = { .n_dram = 77 };
    sl_probe_params p = { .quick = true, .max_threads = SL_MACHINE_MAX_THREADS };
    T_CHECK(sl_probe_run(ctx, &p, &m) == SL_E_ARG && m.n_dram == 77, "%s", sl_error(ctx));
    sl_mem_report mem;
    sl_mem_get(ctx, &mem);
    T_CHECK(mem.total == 0, "%llu bytes are left", (unsigned long long)mem.total);
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    check_parts();
    check_machine();
    sl_ctx_destroy(&ctx);
    return t_end();
}
