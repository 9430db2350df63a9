/* tests/t_probe.c - a quick probe of this machine gives numbers that machines have, in plausible
 * relation to each other. Other load only lowers them, so the lower limits are generous. */
#include <math.h>

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

/* Each type at 1 and all threads; more rows are never served slower, one row not faster than RAM
 * could send its weights several times over. */
static void check_curves(const sl_machine *m, uint32_t n_types, uint32_t n_points)
{
    uint32_t n_threads = m->id.cores > 1 ? 2 : 1;
    T_CHECK(m->n_gemms == n_types * n_threads && m->n_costs == n_threads, "%u curves, %u costs",
            m->n_gemms, m->n_costs);
    for (uint32_t i = 0; i < m->n_gemms; i++) {
        const sl_machine_gemm *g = &m->gemm[i];
        const sl_type_info *t = sl_type_get(g->type);
        double bytes_s = g->at[0].ops_s * t->block_bytes / t->block_elems;
        T_CHECK(g->threads == (i % n_threads ? m->id.cores : 1), "%u threads", g->threads);
        T_CHECK(g->n >= n_points && g->at[0].rows == 1, "%s: %u points", t->name, g->n);
        T_CHECK(bytes_s < 8 * m->dram_read[m->n_dram - 1].value, "%s: %g bytes/s", t->name,
                bytes_s);
        T_CHECK(g->at[g->n - 1].ops_s > 0.5 * g->at[0].ops_s, "%s: %g of 1 row, %g of %u", t->name,
                g->at[0].ops_s, g->at[g->n - 1].ops_s, g->at[g->n - 1].rows);
    }
    for (uint32_t i = 0; i < m->n_costs; i++)
        T_CHECK(m->cost[i].stage_s < 0.05 && m->cost[i].elem_s < 1e-6,
                "%g s a stage, %g an element", m->cost[i].stage_s, m->cost[i].elem_s);
}

/* Chosen types and thread counts, in a given time. */
static void check_chosen(void)
{
    static const sl_type types[] = { SL_F32, SL_Q4_K }, none[] = { SL_F64 };
    static const uint32_t one[] = { 1 }, back[] = { 1, 1 };
    sl_machine m = { .n_dram = 77 };
    sl_probe_params p = { .types = types, .n_types = 2, .threads = one, .n_threads = 1,
                          .seconds = 3 };
    T_NEED(sl_probe_run(ctx, &p, &m) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(m.source == SL_MACHINE_MEASURED && m.n_dram == 1 && m.n_gemms == 2 && m.n_costs == 1
                && m.gemm[0].type == SL_F32 && m.gemm[1].type == SL_Q4_K && m.gemm[1].n == 8,
            "%u counts, %u curves", m.n_dram, m.n_gemms);
    const sl_probe_params bad[] = {
        { .types = none, .n_types = 1 }, { .types = types }, { .types = types, .n_types = 33 },
        { .threads = back, .n_threads = 2 }, { .threads = one },
        { .threads = one, .n_threads = 1, .max_threads = 1 }, { .seconds = 1 }, { .seconds = NAN },
        { .quick = true, .max_threads = SL_MACHINE_MAX_THREADS },
    };
    for (size_t i = 0; i < SL_LEN(bad); i++) {
        m = (sl_machine){ .n_dram = 77 };
        T_CHECK(sl_probe_run(ctx, &bad[i], &m) == SL_E_ARG && m.n_dram == 77 && sl_error(ctx)[0],
                "%zu: %s", i, sl_error(ctx));
    }
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
    check_curves(&m, 4, 2);
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
    check_chosen();
    sl_mem_report mem;
    sl_mem_get(ctx, &mem);
    T_CHECK(mem.total == 0, "%llu bytes are left", (unsigned long long)mem.total);
}

/* One rate at a time of a file of zeros; more in flight than there is room for, sizes that no disk
 * reads. */
static void check_rates(const char *folder)
{
    static const struct { uint64_t bytes; uint32_t depth; } asks[] = {
        { 65536, 4 }, { 1 << 20, 64 }, { 1000, 1 }, { 64 << 20, 2 }, { 300001, 500 }
    };
    char path[512];
    snprintf(path, sizeof path, "%s/t_probe-rates.bin", folder);
    FILE *out = fopen(path, "wb");
    if (!out) return;
    static char zeros[1 << 20];
    for (int i = 0; i < 16; i++) fwrite(zeros, 1, sizeof zeros, out);
    fclose(out);
    sl_probe_disk_reader *r = NULL;
    sl_status st = sl_probe_disk_open(ctx, path, 8 << 20, &r);
    T_CHECK(st == SL_OK || st == SL_E_UNSUPPORTED, "%s", sl_error(ctx));
    for (size_t i = 0; r && i < SL_LEN(asks); i++) {
        double rate = 0;
        st = sl_probe_disk_rate(r, asks[i].bytes, asks[i].depth, 0.01, &rate);
        T_CHECK(st == SL_OK && rate > 1e3 && rate < 2e11, "%zu: %g bytes/s", i, rate);
    }
    sl_probe_disk_close(&r);
    sl_probe_disk_close(&r);
    sl_machine m = { .n_costs = 0 };
    sl_probe_disk_params p = { .quick = true, .file = path };
    if (st == SL_OK) st = sl_probe_disk(ctx, &p, &m);
    double best = 0;
    for (uint32_t i = 0; st == SL_OK && i < m.disk.n_curves; i++)
        for (uint32_t k = 0; k < m.disk.curve[i].n; k++)
            best = fmax(best, m.disk.curve[i].at[k].bytes_s);
    T_CHECK(st != SL_OK || (m.disk.n_curves == 3 && m.disk.first_bytes_s >= 0
                            && m.disk.first_bytes_s < best),
            "first read at %g bytes/s, then %g", m.disk.first_bytes_s, best);
    remove(path);
}

/* Writes and reads a test file; refuses what cannot be measured. */
static void check_disk(const char *folder)
{
    sl_machine m = { .id = { .hw_threads = 1 }, .n_costs = 1, .cost = { { .threads = 1 } } };
    sl_machine_disk *d = &m.disk;
    sl_probe_disk_params p = { .quick = true, .folder = folder, .progress = count_reports };
    sl_status st = sl_probe_disk(ctx, &p, &m);
    if (st != SL_OK)    /* no O_DIRECT, or no room: said, and nothing written */
        printf("SKIP part: %s\n", sl_error(ctx));
    T_CHECK(st == SL_OK || ((st == SL_E_UNSUPPORTED || st == SL_E_IO) && !d->n_curves), "%s: %s",
            sl_status_name(st), sl_error(ctx));
    T_CHECK(st != SL_OK || (d->n_curves == 3 && !strcmp(d->where, folder)), "%u sizes in %s",
            d->n_curves, d->where);
    T_CHECK(st != SL_OK || (d->latency_s > 1e-7 && d->latency_s < 10), "%g s", d->latency_s);
    T_CHECK(st != SL_OK || (m.read_cpu_s > 1e-8 && m.read_cpu_s < 0.1), "%g s", m.read_cpu_s);
    T_CHECK(st != SL_OK || (m.read_host_s >= 0 && m.read_host_s < 1e-6), "%g s", m.read_host_s);
    T_CHECK(st != SL_OK || (m.cost[0].corun_cpu > 0 && m.cost[0].corun_cpu <= 1
                            && m.cost[0].corun_disk > 0 && m.cost[0].corun_disk <= 1),
            "%g of the CPU, %g of the disk", m.cost[0].corun_cpu, m.cost[0].corun_disk);
    for (uint32_t i = 0; i < d->n_curves; i++)
        for (uint32_t k = 0; k < d->curve[i].n; k++)
            T_CHECK(d->curve[i].at[k].bytes_s > 1e5 && d->curve[i].at[k].bytes_s < 2e11,
                    "%u of %u bytes: %g bytes/s", d->curve[i].at[k].depth, d->curve[i].bytes,
                    d->curve[i].at[k].bytes_s);
    static const struct { const char *file, *folder, *word; sl_status st; } bad[] = {
        { "meson.build", NULL, "4 MiB", SL_E_ARG },
        { "/dev/null", NULL, "4 MiB", SL_E_ARG },
        { "no/such/file", NULL, "no/such/file", SL_E_IO },
        { NULL, "no/such/folder", "no/such/folder", SL_E_IO },
    };
    for (size_t i = 0; i < SL_LEN(bad); i++) {
        sl_machine none = { .disk = { .n_curves = 77 } };
        p = (sl_probe_disk_params){ .file = bad[i].file, .folder = bad[i].folder };
        st = sl_probe_disk(ctx, &p, &none);
        T_CHECK(st == bad[i].st && strstr(sl_error(ctx), bad[i].word) && none.disk.n_curves == 77,
                "%zu: %s", i, sl_error(ctx));
    }
    for (size_t i = 0; i < 3; i++) {
        sl_probe_disk_reader *r = NULL;
        st = sl_probe_disk_open(ctx, bad[i].file, 8 << 20, &r);
        T_CHECK(st == bad[i].st && strstr(sl_error(ctx), bad[i].word) && !r, "%zu: %s", i,
                sl_error(ctx));
    }
    check_rates(folder);
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
    const char *folder = getenv("SLUICE_BUILD_DIR");
    check_disk(folder ? folder : ".");
    sl_ctx_destroy(&ctx);
    return t_end();
}
