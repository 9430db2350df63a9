/* tests/t_machine.c - machine files: there and back, every field spoiled in turn; the questions
 * asked of a machine, by hand; and the described machines that are shipped. */
#include "offload/sl_machine_json.h"
#include "tests/t.h"

#include <glob.h>
#include <math.h>

static sl_ctx *ctx;

static sl_machine example(void)
{
    return (sl_machine){
        .source = SL_MACHINE_MEASURED, .notes = "by hand",
        .id = { "Some CPU 9000", "avx2 avx512", 4, 8, 33554432, 17179869184 },
        .n_dram = 3, .dram_read = { { 1, 12e9 }, { 2, 20e9 }, { 4, 24e9 } },
        .n_barrier = 2, .barrier = { { 1, 1e-8 }, { 4, 2.5e-6 } },
        .peak_core = { [SL_PEAK_I8_AVX2] = 1e11, [SL_PEAK_F32_AVX512] = 1.5e11 },
        .peak_all = { [SL_PEAK_I8_AVX2] = 3.9e11, [SL_PEAK_F32_AVX512] = 5e11 },
        .disk = { .n_curves = 2, .where = "/models", .latency_s = 9e-5, .curve = {
            { .bytes = 4096, .n = 3, .at = { { 1, 4e7 }, { 4, 1.6e8 }, { 64, 4e8 } } },
            { .bytes = 1 << 20, .n = 3, .at = { { 1, 1e9 }, { 4, 1.96e9 }, { 16, 2e9 } } } } },
        .read_cpu_s = 6e-6, .read_host_s = 3e-10, .n_gemms = 3, .n_costs = 2, .n_gpus = 1,
        .gemm = { { SL_Q4_K, 1, 2, { { 1, 6e10 }, { 8, 2e11 } } },
                  { SL_Q4_K, 2, 1, { { 1, 1.1e11 } } },
                  { SL_F16, 1, 2, { { 1, 1e10 }, { 64, 5e10 } } } },
        .cost = { { 1, 1e-6, 4e-10, 5e10, 8e10, 1.9e10, 0.9, 0.8, 0.95, 2e-5 },
                  { 4, 3e-6, 1e-10, 2e11, 3e11, 6e10, 0, 0, 0, 0 } },
        .gpu = { { "Some GPU", (uint64_t)12 << 30, 3.6e11, 5.1e13, 2.4e10, 2.3e10, 1.1e10, 9e9,
                   8e-6, 5e-6, 4e12, 3e13, 3e11, 1e-13, 1,
                   { { SL_Q8_0, 0, 2, { { 1, 2e11 }, { 512, 2e13 } } } } } },
    };
}

static bool near(double a, double b) { return fabs(a / b - 1) < 1e-9; }

/* Halfway in logarithms is the geometric mean. */
static void check_disk_questions(sl_machine *m)
{
    uint32_t bytes, depth;
    double best = -1;
    T_CHECK(near(sl_machine_disk_s(m, 4096, 1), 4e7)
            && near(sl_machine_disk_s(m, 1 << 20, 4), 1.96e9),
            "measured points");
    T_CHECK(near(sl_machine_disk_s(m, 4096, 2), 8e7), "%g", sl_machine_disk_s(m, 4096, 2));
    T_CHECK(near(sl_machine_disk_s(m, 65536, 1), 2e8), "%g", sl_machine_disk_s(m, 65536, 1));
    T_CHECK(near(sl_machine_disk_s(m, 65536, 2), sqrt(8e7 * sqrt(1e9 * 1.96e9))), "both: %g",
            sl_machine_disk_s(m, 65536, 2));
    T_CHECK(near(sl_machine_disk_s(m, 1, 0.5), 4e7) && near(sl_machine_disk_s(m, 1e9, 99), 2e9),
            "beyond");
    T_CHECK(sl_machine_disk_best(m, &bytes, &depth, &best) && bytes == 1 << 20 && depth == 4
            && best == 2e9, "%u of %u: %g", depth, bytes, best);
    m->disk.curve[0].at[2].bytes_s = 1.95e9;    /* less in flight */
    T_CHECK(sl_machine_disk_best(m, &bytes, &depth, &best) && bytes == 4096 && depth == 64,
            "%u of %u", depth, bytes);
    sl_machine none = *m;
    none.disk.n_curves = 0;
    T_CHECK(sl_machine_disk_s(&none, 4096, 1) == 0, "not measured");
    T_CHECK(!sl_machine_disk_best(&none, &bytes, &depth, &best) && bytes == 1 << 20 && depth == 16
            && best == 0, "not measured: %u of %u", depth, bytes);
}

static void check_questions(void)
{
    sl_machine m = example();
    T_CHECK(sl_machine_dram_s(&m, 1) == 12e9 && sl_machine_dram_s(&m, 2) == 20e9,
            "measured points");
    T_CHECK(sl_machine_dram_s(&m, 3) == 22e9, "between: %g", sl_machine_dram_s(&m, 3));
    T_CHECK(sl_machine_dram_s(&m, 9) == 24e9 && sl_machine_dram_s(&m, 0) == 12e9, "beyond");
    T_CHECK(sl_machine_barrier_s(&m, 4) == 2.5e-6, "barrier");
    T_CHECK(sl_machine_peak_s(&m, SL_PEAK_I8_AVX2, 1) == 1e11, "one core");
    T_CHECK(sl_machine_peak_s(&m, SL_PEAK_I8_AVX2, 3) == 3e11, "three cores");
    T_CHECK(sl_machine_peak_s(&m, SL_PEAK_I8_AVX2, 4) == 3.9e11, "all cores");
    T_CHECK(sl_machine_peak_s(&m, SL_PEAK_I8_VNNI512, 4) == 0, "not there");

    check_disk_questions(&m);

    sl_machine_id a = m.id, b = m.id;
    char why[200];
    b.ram_bytes += b.ram_bytes / 50;
    T_CHECK(sl_machine_same(&a, &b, why) && !why[0], "%s", why);
    b.ram_bytes *= 2;
    T_CHECK(!sl_machine_same(&a, &b, why) && strstr(why, "32.6 GiB"), "%s", why);
    b = a, b.cores = 2;
    T_CHECK(!sl_machine_same(&a, &b, why) && strstr(why, "4 cores"), "%s", why);
    b = a, strcpy(b.isa, "avx2");
    T_CHECK(!sl_machine_same(&a, &b, why) && strstr(why, "avx512"), "%s", why);
    b = a, strcpy(b.cpu, "Other");
    T_CHECK(!sl_machine_same(&a, &b, why) && strstr(why, "Other"), "%s", why);
}

static bool same_gemm(const sl_machine_gemm *a, const sl_machine_gemm *b)
{
    bool same = a->type == b->type && a->threads == b->threads && a->n == b->n;
    for (uint32_t i = 0; same && i < a->n; i++)
        same = a->at[i].rows == b->at[i].rows && near(a->at[i].ops_s, b->at[i].ops_s);
    return same;
}

/* What forecasts need beside the rest. */
static void check_rates_back(const sl_machine *m, const sl_machine *back)
{
    T_CHECK(near(back->read_cpu_s, 6e-6) && near(back->read_host_s, 3e-10)
            && !strcmp(back->notes, "by hand"), "single fields");
    T_NEED(back->n_gemms == 3 && back->n_costs == 2 && back->n_gpus == 1, "counts");
    for (int i = 0; i < 3; i++)
        T_CHECK(same_gemm(&m->gemm[i], &back->gemm[i]), "gemm %d", i);
    for (int i = 0; i < 2; i++) {
        const sl_machine_cost *a = &m->cost[i], *b = &back->cost[i];
        T_CHECK(a->threads == b->threads && near(a->stage_s, b->stage_s)
                && near(a->elem_s, b->elem_s) && near(a->decode_flops_s, b->decode_flops_s)
                && near(a->prefill_flops_s, b->prefill_flops_s)
                && near(a->decode_bytes_s, b->decode_bytes_s) && a->corun_cpu == b->corun_cpu
                && a->corun_disk == b->corun_disk && a->corun_tiles == b->corun_tiles
                && a->call_s == b->call_s, "cost %d", i);
    }
    const sl_machine_gpu *a = m->gpu, *b = back->gpu;
    T_CHECK(!strcmp(a->name, b->name) && a->vram_bytes == b->vram_bytes
            && near(a->vram_bytes_s, b->vram_bytes_s) && near(a->flops_s, b->flops_s)
            && near(a->h2d_bytes_s, b->h2d_bytes_s) && near(a->d2h_bytes_s, b->d2h_bytes_s)
            && near(a->h2d_pageable_bytes_s, b->h2d_pageable_bytes_s)
            && near(a->d2h_pageable_bytes_s, b->d2h_pageable_bytes_s) && near(a->copy_s, b->copy_s)
            && near(a->launch_s, b->launch_s) && near(a->decode_flops_s, b->decode_flops_s)
            && near(a->prefill_flops_s, b->prefill_flops_s)
            && near(a->decode_bytes_s, b->decode_bytes_s) && near(a->elem_s, b->elem_s)
            && b->n_gemms == 1 && same_gemm(a->gemm, b->gemm),
            "gpu");
}

static void check_round_trip(void)
{
    char path[] = "/tmp/t_machine_XXXXXX";
    int fd = mkstemp(path);
    T_NEED(fd >= 0 && !close(fd), "mkstemp");
    sl_machine m = example(), back;
    memset(&back, 0, sizeof back);
    T_NEED(sl_machine_save(ctx, &m, path) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_machine_load(ctx, path, &back) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(back.source == m.source && !memcmp(&back.id, &m.id, sizeof m.id), "identity");
    T_CHECK(back.n_dram == 3 && back.n_barrier == 2, "counts");
    for (int i = 0; i < 3; i++)
        T_CHECK(back.dram_read[i].threads == m.dram_read[i].threads
                && fabs(back.dram_read[i].value / m.dram_read[i].value - 1) < 1e-9, "point %d", i);
    T_CHECK(back.disk.n_curves == 2 && !strcmp(back.disk.where, "/models")
            && near(back.disk.latency_s, 9e-5), "disk");
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t k = 0; k < 3; k++)
            T_CHECK(back.disk.curve[i].bytes == m.disk.curve[i].bytes && back.disk.curve[i].n == 3
                    && back.disk.curve[i].at[k].depth == m.disk.curve[i].at[k].depth
                    && near(back.disk.curve[i].at[k].bytes_s, m.disk.curve[i].at[k].bytes_s),
                    "disk %u %u", i, k);
    for (int i = 0; i < SL_N_PEAKS; i++)
        T_CHECK(fabs(back.peak_core[i] - m.peak_core[i]) <= 1e-9 * m.peak_core[i]
                    && fabs(back.peak_all[i] - m.peak_all[i]) <= 1e-9 * m.peak_all[i],
                "%s", sl_peak_name((sl_peak)i));
    check_rates_back(&m, &back);
    remove(path);
}

/* The example's JSON with one value replaced (or, with value NULL, left out), read back. */
static void check_spoiled(const char *path, const char *key, const char *value, const char *word)
{
    sl_machine m = example(), back = { .n_dram = 77 };
    json_t *root = sl_machine_to_json(&m), *at = root;
    char steps[64], *save = NULL;
    snprintf(steps, sizeof steps, "%s", path);
    for (char *s = strtok_r(steps, ".", &save); s; s = strtok_r(NULL, ".", &save))
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(s)) : json_object_get(at, s);
    T_NEED(at, "no %s", path);
    if (value) json_object_set_new(at, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else json_object_del(at, key);
    sl_json j = { .ctx = ctx, .file = "spoiled.json", .v = root };
    sl_status st = sl_machine_read(&j, &back);
    if (!word)
        T_CHECK(st == SL_OK, "%s.%s = %s: %s", path, key, value ? value : "gone", sl_error(ctx));
    else
        T_CHECK(st == SL_E_FORMAT && strstr(sl_error(ctx), word) && back.n_dram == 77,
                "%s.%s = %s: %s lacks \"%s\"", path, key, value ? value : "gone", sl_error(ctx),
                word);
    json_decref(root);
}

static void check_bad_fields(void)
{
    check_spoiled("", "sluice_machine", "3",
                  "sluice_machine: expected a whole number from 1 to 2, found 3");
    check_spoiled("", "sluice_machine", "1", "run `sluice probe` again");
    check_spoiled("", "sluice_machine", NULL, "sluice_machine");
    check_spoiled("", "source", "\"guess\"",
                  "source: expected datasheet, quick or measured, found \"guess\"");
    check_spoiled("", "source", "3", "source");
    check_spoiled("", "hardware", "[]", "hardware: expected an object, found an array of 0");
    check_spoiled("hardware", "cpu", "\"\"", "hardware.cpu");
    check_spoiled("hardware", "cpu", "7", "hardware.cpu: expected a text");
    check_spoiled("hardware", "cores", "0", "hardware.cores");
    check_spoiled("hardware", "cores", "2.5", "hardware.cores");
    check_spoiled("hardware", "hw_threads", "2",
                  "hardware.hw_threads: expected a whole number from 4");
    check_spoiled("hardware", "ram_bytes", "12", "hardware.ram_bytes");
    check_spoiled("hardware", "l3_bytes", "-1", "hardware.l3_bytes");
    check_spoiled("", "dram_read", "[]", "dram_read: expected an array of 1 to");
    check_spoiled("", "dram_read", "{}", "dram_read");
    check_spoiled("dram_read.1", "threads", "1",
                  "dram_read[1].threads: expected a whole number from 2");
    check_spoiled("dram_read.1", "bytes_s", "0",
                  "spoiled.json: machine: dram_read[1] is 0, expected 1e+08");
    check_spoiled("dram_read.1", "bytes_s", "1e300", "dram_read[1]");
    check_spoiled("dram_read.1", "bytes_s", "20", "dram_read[1]");     /* in GB/s: the wrong unit */
    check_spoiled("dram_read.2", "bytes_s", "\"fast\"", "dram_read[2].bytes_s: expected a number");
    check_spoiled("barrier.0", "s", "null", "barrier[0].s");
    check_spoiled("barrier.1", "s", "25", "barrier[1]");
    check_spoiled("", "barrier", NULL, NULL);
    check_spoiled("", "barrier", "[]", "barrier: expected an array of 1 to");
    check_spoiled("", "peaks", "5", "peaks: expected an object");
    check_spoiled("peaks", "int8_avx2", "5", "peaks.int8_avx2");
    check_spoiled("peaks.int8_avx2", "all", NULL, "peaks.int8_avx2.all");
    check_spoiled("peaks.f32_avx512", "core", "150", "peaks.f32_avx512.core");
    check_spoiled("peaks", "f32_avx512", NULL, NULL);       /* a machine without it */
    check_spoiled("", "peaks", NULL, NULL);
    check_spoiled("", "npu", "{\"later\": 1}", NULL);       /* a newer version's */
    check_spoiled("", "disk", NULL, NULL);                  /* not measured */
    check_spoiled("", "disk", "7", "disk");
    check_spoiled("disk", "where", "7", "disk.where: expected a text");
    check_spoiled("disk", "latency_s", "90", "disk.latency_s");     /* in us: the wrong unit */
    check_spoiled("disk", "reads", "[]", "disk.reads: expected an array of 1 to");
    check_spoiled("disk.reads.1", "bytes", "4096",
                  "disk.reads[1].bytes: expected a whole number from 4097");
    check_spoiled("disk.reads.0", "bytes", "0", "disk.reads[0].bytes");
    check_spoiled("disk.reads.0", "points", "[]", "disk.reads[0].points");
    check_spoiled("disk.reads.0.points.1", "depth", "1",
                  "disk.reads[0].points[1].depth: expected a whole number from 2");
    check_spoiled("disk.reads.1.points.2", "bytes_s", "2.0", "disk.reads[1].points[2]");
    check_spoiled("disk.reads.1.points.2", "bytes_s", NULL, "disk.reads[1].points[2].bytes_s");
}

static void check_bad_rates(void)
{
    static const char *const optional[] = { "notes", "read_cpu_s", "read_host_s", "gemms", "costs",
                                            "gpus" };
    for (size_t i = 0; i < SL_LEN(optional); i++) check_spoiled("", optional[i], NULL, NULL);
    check_spoiled("", "notes", "7", "notes: expected a text");
    check_spoiled("", "read_cpu_s", "6", "read_cpu_s is 6, expected 1e-08");
    check_spoiled("", "read_cpu_s", "-1", "read_cpu_s: expected a number");
    check_spoiled("", "read_host_s", "1", "read_host_s is 1, expected 1e-13");

    check_spoiled("", "gemms", "{}", "gemms: expected an array of 0 to 64 values");
    check_spoiled("", "gemms", "[]", NULL);
    check_spoiled("gemms.0", "type", "\"Q9\"",
                  "gemms[0].type: expected a tensor type as \"Q4_K\", found \"Q9\"");
    check_spoiled("gemms.1", "type", "12", "gemms[1].type");
    check_spoiled("gemms.1", "type", "\"q5_k\"", NULL);
    check_spoiled("gemms.2", "type", "\"Q4_K\"", "gemms[2].threads is 1, expected 3");
    check_spoiled("gemms.1", "type", "\"F16\"", "gemms[2].threads");
    check_spoiled("gemms.0", "threads", "2", "gemms[1].threads is 2, expected 3");
    check_spoiled("gemms.0", "threads", "0", "gemms[0].threads: expected a whole number from 1");
    check_spoiled("gemms.0", "threads", NULL, "gemms[0].threads");
    check_spoiled("gemms.0", "points", "[]", "gemms[0].points: expected an array of 1 to 12");
    check_spoiled("gemms.0.points.0", "rows", "2",
                  "gemms[0].points[0].rows: expected a whole number from 1 to 1, found 2");
    check_spoiled("gemms.0.points.1", "rows", "1",
                  "gemms[0].points[1].rows: expected a whole number from 2");
    check_spoiled("gemms.0.points.1", "ops_s", "200", "gemms[0].points[1].ops_s is 200, expected");
    check_spoiled("gemms.2.points.0", "ops_s", "null", "gemms[2].points[0].ops_s");

    check_spoiled("costs.1", "threads", "1", "costs[1].threads: expected a whole number from 2");
    check_spoiled("costs.0", "stage_s", "0", "costs[0].stage_s is 0, expected");
    check_spoiled("costs.0", "stage_s", "12", "costs[0].stage_s");          /* in us */
    check_spoiled("costs.0", "elem_s", NULL, "costs[0].elem_s: expected a value");
    check_spoiled("costs.0", "elem_s", "0.4", "costs[0].elem_s is 0.4");
    check_spoiled("costs.1", "decode_flops_s", "80", "costs[1].decode_flops_s is 80");
    check_spoiled("costs.1", "prefill_flops_s", "-4",
                  "costs[1].prefill_flops_s: expected a number");
    check_spoiled("costs.0", "decode_bytes_s", "16", "costs[0].decode_bytes_s is 16");
    check_spoiled("costs.0", "decode_bytes_s", NULL, NULL);
    check_spoiled("costs.0", "corun_cpu", "90",
                  "costs[0].corun_cpu: expected a number from 0 to 1, found 90");
    check_spoiled("costs.0", "corun_disk", "1.01", "costs[0].corun_disk");
    check_spoiled("costs.0", "corun_disk", NULL, NULL);
    check_spoiled("costs.0", "corun_tiles", "2", "costs[0].corun_tiles");
    check_spoiled("costs.0", "call_s", "20", "costs[0].call_s is 20");
}

static void check_bad_gpus(void)
{
    static const char *const needed[] = { "name", "vram_bytes", "vram_bytes_s", "flops_s",
                                          "h2d_bytes_s", "d2h_bytes_s" };
    static const char *const optional[] = { "h2d_pageable_bytes_s", "d2h_pageable_bytes_s",
                                            "copy_s", "launch_s", "gemms", "decode_flops_s",
                                            "prefill_flops_s", "decode_bytes_s", "elem_s" };
    for (size_t i = 0; i < SL_LEN(needed); i++) {
        char path[64];
        snprintf(path, sizeof path, "gpus[0].%s: expected a value, found nothing", needed[i]);
        check_spoiled("gpus.0", needed[i], NULL, path);
    }
    for (size_t i = 0; i < SL_LEN(optional); i++) check_spoiled("gpus.0", optional[i], NULL, NULL);
    check_spoiled("", "gpus", "[3]", "gpus[0]: expected an object, found 3");
    check_spoiled("gpus.0", "name", "\"\"", "gpus[0].name is empty");
    check_spoiled("gpus.0", "vram_bytes", "12", "gpus[0].vram_bytes is 12, expected 1e+08");
    check_spoiled("gpus.0", "vram_bytes_s", "360", "gpus[0].vram_bytes_s is 360");
    check_spoiled("gpus.0", "flops_s", "51", "gpus[0].flops_s is 51");      /* in TFLOP/s */
    check_spoiled("gpus.0", "h2d_bytes_s", "0", "gpus[0].h2d_bytes_s is 0");
    check_spoiled("gpus.0", "d2h_bytes_s", "24", "gpus[0].d2h_bytes_s is 24");
    check_spoiled("gpus.0", "h2d_pageable_bytes_s", "11", "gpus[0].h2d_pageable_bytes_s is 11");
    check_spoiled("gpus.0", "d2h_pageable_bytes_s", "11", "gpus[0].d2h_pageable_bytes_s is 11");
    check_spoiled("gpus.0", "copy_s", "80", "gpus[0].copy_s is 80");
    check_spoiled("gpus.0", "launch_s", "[]", "gpus[0].launch_s: expected a number");
    check_spoiled("gpus.0", "prefill_flops_s", "30", "gpus[0].prefill_flops_s is 30");
    check_spoiled("gpus.0", "decode_bytes_s", "300", "gpus[0].decode_bytes_s is 300");
    check_spoiled("gpus.0", "elem_s", "1", "gpus[0].elem_s is 1");
    check_spoiled("gpus.0.gemms.0", "type", "\"?\"", "gpus[0].gemms[0].type");
    check_spoiled("gpus.0.gemms.0.points.1", "ops_s", "1e19",
                  "gpus[0].gemms[0].points[1].ops_s: expected a number");
    check_spoiled("gpus.0.gemms.0.points.1", "ops_s", "1",
                  "gpus[0].gemms[0].points[1].ops_s is 1, expected");
}

static void check_nan(void)
{
    sl_machine m = example();
    T_CHECK(sl_machine_check(ctx, &m) == SL_OK, "%s", sl_error(ctx));
    double *const values[] = { &m.dram_read[0].value, &m.barrier[1].value, &m.read_cpu_s,
                               &m.read_host_s, &m.peak_all[SL_PEAK_I8_AVX2], &m.disk.latency_s,
                               &m.gemm[0].at[1].ops_s, &m.cost[0].corun_cpu, &m.cost[1].elem_s,
                               &m.gpu[0].flops_s, &m.gpu[0].copy_s, &m.gpu[0].gemm[0].at[0].ops_s };
    for (size_t i = 0; i < SL_LEN(values); i++) {
        double was = *values[i];
        *values[i] = NAN;
        T_CHECK(sl_machine_check(ctx, &m) == SL_E_FORMAT, "NaN passed, number %zu", i);
        *values[i] = -was;
        T_CHECK(sl_machine_check(ctx, &m) == SL_E_FORMAT, "below 0 passed, number %zu", i);
        *values[i] = was;
    }
    T_CHECK(sl_machine_check(ctx, &m) == SL_OK, "%s", sl_error(ctx));
}

/* Data sheets say no more than they must: what is asked of them is answered all the same. */
static void check_shipped(const char *path)
{
    static const sl_type types[] = { SL_Q4_K, SL_Q8_0, SL_BF16, SL_MXFP4, SL_IQ2_XXS };
    sl_machine m;
    if (sl_machine_load(ctx, path, &m) != SL_OK) {
        T_CHECK(false, "%s", sl_error(ctx));
        return;
    }
    uint32_t bytes, depth, all = m.id.cores;
    double best;
    T_CHECK(m.source == SL_MACHINE_DATASHEET && strlen(m.notes) > 80, "%s: its sources", path);
    T_CHECK(sl_machine_disk_best(&m, &bytes, &depth, &best) && best > 4e8, "%s: its disk", path);
    T_CHECK(sl_machine_dram_s(&m, all) >= sl_machine_dram_s(&m, 1), "%s: its memory", path);
    for (size_t i = 0; i < SL_LEN(types); i++) {
        double one = sl_machine_gemm_seconds(&m, types[i], all, 1e9, 1);
        double many = sl_machine_gemm_seconds(&m, types[i], all, 1e9, 512);
        /* a GB of weights: 1 ms to 1 s, and 512 rows of it below 5 minutes */
        T_CHECK(one > 1e-4 && one < 1 && many > one && many < 300, "%s: %s %g %g", path,
                sl_type_get(types[i])->name, one, many);
        for (uint32_t g = 0; g < m.n_gpus; g++)
            T_CHECK(sl_machine_gpu_gemm_seconds(&m.gpu[g], types[i], 1e9, 512) < many,
                    "%s: GPU %u is slower than the CPU", path, g);
    }
    T_CHECK(sl_machine_barrier_s(&m, all) > 0 && sl_machine_cost_at(&m, all).stage_s < 1e-4,
            "%s: costs", path);
}

static void check_all_shipped(void)
{
    const char *root = getenv("SLUICE_SOURCE_DIR");
    char pattern[4096];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/machines/*.json", root ? root : ".");
    T_NEED(glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc >= 14, "%s", pattern);
    for (size_t i = 0; i < found.gl_pathc; i++) check_shipped(found.gl_pathv[i]);
    globfree(&found);
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    check_questions();
    check_round_trip();
    check_bad_fields();
    check_bad_rates();
    check_bad_gpus();
    check_nan();
    check_all_shipped();
    sl_ctx_destroy(&ctx);
    return t_end();
}
