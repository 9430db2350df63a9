/* tools/cmd_probe.c - `sluice probe`: what this machine can do at most. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/sl_probe.h"
#include "tools/machine_file.h"

struct args {
    const char *out, *model, *types;
    uint32_t n_threads;
    bool quick, json, show;
};

enum { MAX_TYPES = 24 };

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-o,--output", CLI_STR, "FILE",
      "where to keep the result (default: in the user's cache folder)", AT(out), 0, 0 },
    { "-m,--model", CLI_STR, "FILE",
      "measure the disk on this file, which is only read (default: on a new one of 1 GiB, with "
      "--quick 256 MiB, beside the result)", AT(model), 0, 0 },
    { "--quick", CLI_FLAG, NULL, "about 4 s instead of 55; for a first forecast", AT(quick), 0, 0 },
    { "--types", CLI_STR, "TYPE,...",
      "measure products of these types of weights only, and all of it in about 10 s: for a forecast "
      "of a model that is made of them (Q4_K,Q6_K,F32)", AT(types), 0, 0 },
    { "-t,--threads", CLI_U32, "N", "measure up to so many threads (default: physical cores)",
      AT(n_threads), 1, SL_MACHINE_MAX_THREADS },
    { "--json", CLI_FLAG, NULL, "print the file's text instead of the table", AT(json), 0, 0 },
    { "--show", CLI_FLAG, NULL,
      "measure nothing: print the kept file, or -o's, and say whether it still fits", AT(show), 0,
      0 },
};
#undef AT

static const char *const about =
    "Measures what this machine can do at most: memory reads by threads, 8-bit and float32 "
    "arithmetic, the cost of a barrier, and what the disk gives past the page cache; and what the "
    "engine makes of it: products by type of weights and rows, attention, fixed costs. Forecasts "
    "and the shares that `bench` prints stand on these numbers. Of limits the best values are "
    "kept, of the engine and the disk medians, so other load costs accuracy only where it never "
    "pauses.";

static double of_cores(const sl_machine *m, int peak)
{
    return m->peak_core[peak] > 0 ? m->peak_all[peak] / m->peak_core[peak] : 0;
}

static void print_table(const sl_machine *m)
{
    static const char *const what[SL_N_PEAKS] = {
        "int8, AVX2 (vpmaddubsw)", "int8, AVX-VNNI", "int8, AVX-512 VNNI", "float32, AVX2 FMA",
        "float32, AVX-512",
    };
    char l3[24], ram[24];
    printf("%s, %" PRIu32 " cores, %" PRIu32 " hardware threads, last cache %s, memory %s\n",
           m->id.cpu, m->id.cores, m->id.hw_threads, cli_bytes(m->id.l3_bytes, l3),
           cli_bytes(m->id.ram_bytes, ram));
    printf("instructions: %s\n\n", m->id.isa[0] ? m->id.isa : "plain C only");
    printf("%-9s %16s %16s\n", "threads", "DRAM read GB/s", "barrier us");
    for (uint32_t i = 0; i < m->n_dram; i++) {
        printf("%-9" PRIu32 " %16.2f", m->dram_read[i].threads, m->dram_read[i].value * 1e-9);
        printf(" %16.2f\n", sl_machine_barrier_s(m, m->dram_read[i].threads) * 1e6);
    }
    printf("\n%-26s %13s %13s %9s\n", "peak", "one core", "all cores", "ratio");
    for (int i = 0; i < SL_N_PEAKS; i++) {
        if (m->peak_core[i] <= 0) continue;
        printf("%-26s %7.1f %-5s %7.1f %-5s %8.2f\n", what[i], m->peak_core[i] * 1e-9,
               i < SL_PEAK_F32_AVX2 ? "GMAC" : "GFLOP", m->peak_all[i] * 1e-9,
               i < SL_PEAK_F32_AVX2 ? "GMAC" : "GFLOP", of_cores(m, i));
    }
}

static void print_disk(const sl_machine_disk *d, const sl_machine *m)
{
    const sl_machine_curve *widest = d->curve;
    uint32_t bytes, depth;
    double best;
    if (!d->n_curves) return;
    for (uint32_t i = 1; i < d->n_curves; i++)
        if (d->curve[i].n > widest->n) widest = &d->curve[i];
    printf("\ndisk of %s: one read of 4 KiB takes %.0f us; GB/s by size and number of reads:\n",
           d->where, d->latency_s * 1e6);
    printf("%-10s", "in flight");
    for (uint32_t k = 0; k < widest->n; k++) printf(" %7" PRIu32, widest->at[k].depth);
    putchar('\n');
    for (uint32_t i = 0; i < d->n_curves; i++) {
        const sl_machine_curve *c = &d->curve[i];
        printf("%6" PRIu32 " KiB", c->bytes >> 10);
        for (uint32_t k = 0; k < c->n; k++) printf(" %7.2f", c->at[k].bytes_s * 1e-9);
        putchar('\n');
    }
    if (m->read_cpu_s > 0)
        printf("a request of 1 MiB takes %.1f us of CPU time\n", m->read_cpu_s * 1e6);
    if (m->read_host_s > 0)
        printf("the host takes %.2f s of these cores' time for each GB read\n",
               m->read_host_s * 1e9);
    for (uint32_t i = 0; i < m->n_costs; i++)
        if (m->cost[i].corun_cpu > 0)
            printf("beside products of %" PRIu32 " thread%s the disk keeps %.0f %%, they %.0f %%\n",
                   m->cost[i].threads, m->cost[i].threads > 1 ? "s" : "",
                   100 * m->cost[i].corun_disk, 100 * m->cost[i].corun_cpu);
    if (sl_machine_disk_best(m, &bytes, &depth, &best))
        printf("%.2f GB/s at most; %" PRIu32 " reads of %" PRIu32 " KiB in flight come near\n",
               best * 1e-9, depth, bytes >> 10);
}

/* "Q4_K 40.1 GB/s 71 | 213 | 317": bytes of weights at one row, multiply-adds at 1, 8, 64. */
static void print_gemms(const sl_machine *m)
{
    static const uint32_t rows[] = { 1, 8, 64 };
    if (!m->n_gemms) return;
    printf("\n%-10s %7s %14s %8s %23s\n%-10s %7s %14s %8s", "products", "", "weights, 1 row",
           "of DRAM", "GMAC/s by rows", "", "threads", "GB/s", "");
    for (size_t k = 0; k < SL_LEN(rows); k++) printf(" %7" PRIu32, rows[k]);
    putchar('\n');
    for (uint32_t i = 0; i < m->n_gemms; i++) {
        const sl_machine_gemm *g = &m->gemm[i];
        const sl_type_info *t = sl_type_get(g->type);
        double bytes_s = g->at[0].ops_s * t->block_bytes / t->block_elems;
        bool again = i && g[-1].type == g->type;
        printf("%-10s %7" PRIu32 " %14.1f %6.0f %%", again ? "" : t->name, g->threads,
               bytes_s * 1e-9, 100 * bytes_s / sl_machine_dram_s(m, g->threads));
        for (size_t k = 0; k < SL_LEN(rows); k++) {
            double s = sl_machine_gemm_seconds(m, g->type, g->threads, 1e9, rows[k]);
            printf(" %7.1f", rows[k] / s);
        }
        putchar('\n');
    }
}

static void print_costs(const sl_machine *m)
{
    if (!m->n_costs) return;
    printf("\n%-18s %12s %16s %16s %18s\n", "stages, threads", "fixed us", "ns per 1000 x",
           "decode GFLOP/s", "prompt GFLOP/s");
    for (uint32_t i = 0; i < m->n_costs; i++) {
        const sl_machine_cost *c = &m->cost[i];
        printf("%-18" PRIu32 " %12.2f %16.0f %16.1f %18.1f\n", c->threads, c->stage_s * 1e6,
               c->elem_s * 1e12, c->decode_flops_s * 1e-9, c->prefill_flops_s * 1e-9);
    }
}

static int print_result(const sl_machine *m, bool as_json)
{
    if (!as_json) {
        print_table(m);
        print_gemms(m);
        print_costs(m);
        print_disk(&m->disk, m);
        return cli_end_stdout(CLI_DONE);
    }
    json_t *v = sl_machine_to_json(m);
    bool ok = v && !json_dumpf(v, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
    json_decref(v);
    putchar('\n');
    return ok ? cli_end_stdout(CLI_DONE) : cli_fail("out of memory, or stdout takes no more");
}

static void progress(void *user, const char *what, double share)
{
    if (*(const bool *)user) fprintf(stderr, "\r%3.0f %%  %-40s", 100 * share, what);
}

static int show(const struct args *a, sl_ctx *ctx, const char *path)
{
    sl_machine m;
    sl_machine_id now;
    char why[200];
    if (sl_machine_load(ctx, path, &m) != SL_OK || sl_probe_identify(ctx, &now) != SL_OK)
        return cli_fail_ctx(ctx);
    if (!sl_machine_same(&m.id, &now, why)) cli_warn("%s is stale: %s", path, why);
    else cli_note("%s (%s) fits this machine", path, sl_machine_source_name(m.source));
    return print_result(&m, a->json);
}

static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return !slash ? strdup(".") : slash == path ? strdup("/") : strndup(path, slash - path);
}

/* "Q4_K,Q6_K": false, and one line, where a name is no type, or none that can be multiplied by. */
static bool read_types(const char *list, sl_type *ret, uint32_t *ret_n)
{
    char name[16];
    for (const char *at = list;; at++) {
        size_t n = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)SL_MIN(n, sizeof name - 1), at);
        if (*ret_n == MAX_TYPES || !sl_type_from_name(name, &ret[*ret_n])
            || !sl_type_get(ret[*ret_n])->matmul) {
            if (*ret_n == MAX_TYPES) cli_fail("--types: %d at most", MAX_TYPES);
            else cli_fail("--types: the engine multiplies by no type \"%s\"", name);
            return false;
        }
        ++*ret_n;
        at += n;
        if (!*at) return true;
    }
}

static int probe(const struct args *a, sl_ctx *ctx, const char *path)
{
    bool tty = isatty(2);
    sl_machine m;
    sl_type types[MAX_TYPES];
    sl_probe_params p = {
        .quick = a->quick, .max_threads = a->n_threads, .progress = progress, .user = &tty
    };
    double start_s = cli_now_s();
    if (a->types && !read_types(a->types, types, &p.n_types)) return CLI_FAILED;
    if (a->types) p.types = types;
    if (a->types && !a->quick) p.seconds = 6;
    if (cli_make_parents(ctx, path) != SL_OK) return cli_fail_ctx(ctx);     /* before the work */
    sl_status st = sl_probe_run(ctx, &p, &m);
    char *folder = st == SL_OK ? folder_of(path) : NULL;
    sl_probe_disk_params dp = { .quick = a->quick, .brief = a->types != NULL, .file = a->model,
                                .folder = a->model ? NULL : folder, .progress = progress,
                                .user = &tty };
    if (st == SL_OK && !folder) return cli_fail("out of memory");
    bool no_disk = folder && sl_probe_disk(ctx, &dp, &m) != SL_OK;
    if (no_disk && a->model) st = SL_E_IO;      /* was asked for */
    free(folder);
    if (tty) fprintf(stderr, "\r%50s\r", "");
    if (st == SL_OK && no_disk) cli_warn("the disk is not measured: %s", sl_error(ctx));
    /* a part must not take the place of the whole that other commands forecast by */
    bool keep = a->out || !(a->types || a->n_threads);
    if (st == SL_OK && keep) st = sl_machine_save(ctx, &m, path);
    if (st != SL_OK) return cli_fail_ctx(ctx);
    int code = print_result(&m, a->json);
    double s = cli_now_s() - start_s;
    if (keep) cli_note("measured in %.1f s, kept in %s", s, path);
    else cli_note("measured in %.1f s; only a part, so not kept (-o FILE does)", s);
    return code;
}

int cmd_probe(int argc, char **argv)
{
    struct args a = { 0 };
    cli_group groups[] = { { "Options", options, SL_LEN(options), &a, 0 } };
    cli_spec spec = { "probe", "[-m MODEL] [-o FILE] [--quick] [--types LIST] [--json]", about,
                      groups, SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (a.show && (a.quick || a.types))
        return cli_usage_error(&spec, "--show measures nothing: %s has no place",
                               a.quick ? "--quick" : "--types");
    char *path = a.out ? strdup(a.out) : cli_machine_path();
    sl_ctx *ctx = path ? cli_ctx(false) : NULL;
    code = !ctx ? CLI_FAILED : a.show ? show(&a, ctx, path) : probe(&a, ctx, path);
    sl_ctx_destroy(&ctx);
    free(path);
    return code;
}
