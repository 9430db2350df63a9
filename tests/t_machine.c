/* tests/t_machine.c - machine files: there and back, every field spoiled in turn; and the questions
 * asked of a machine, by hand. */
#include "offload/sl_machine_json.h"
#include "tests/t.h"

#include <math.h>

static sl_ctx *ctx;

static sl_machine example(void)
{
    return (sl_machine){
        .source = SL_MACHINE_MEASURED,
        .id = { "Some CPU 9000", "avx2 avx512", 4, 8, 33554432, 17179869184 },
        .n_dram = 3, .dram_read = { { 1, 12e9 }, { 2, 20e9 }, { 4, 24e9 } },
        .n_barrier = 2, .barrier = { { 1, 1e-8 }, { 4, 2.5e-6 } },
        .peak_core = { [SL_PEAK_I8_AVX2] = 1e11, [SL_PEAK_F32_AVX512] = 1.5e11 },
        .peak_all = { [SL_PEAK_I8_AVX2] = 3.9e11, [SL_PEAK_F32_AVX512] = 5e11 },
        .disk = { .n_curves = 2, .where = "/models", .latency_s = 9e-5, .curve = {
            { .bytes = 4096, .n = 3, .at = { { 1, 4e7 }, { 4, 1.6e8 }, { 64, 4e8 } } },
            { .bytes = 1 << 20, .n = 3, .at = { { 1, 1e9 }, { 4, 1.96e9 }, { 16, 2e9 } } } } },
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
    check_spoiled("", "sluice_machine", "2",
                  "sluice_machine: expected a whole number from 1 to 1, found 2");
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
    check_spoiled("", "barrier", NULL, "barrier");
    check_spoiled("", "peaks", "5", "peaks: expected an object");
    check_spoiled("peaks", "int8_avx2", "5", "peaks.int8_avx2");
    check_spoiled("peaks.int8_avx2", "all", NULL, "peaks.int8_avx2.all");
    check_spoiled("peaks.f32_avx512", "core", "150", "peaks.f32_avx512.core");
    check_spoiled("peaks", "f32_avx512", NULL, NULL);       /* a machine without it */
    check_spoiled("", "gpu", "{\"later\": 1}", NULL);       /* a newer version's */
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

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    check_questions();
    check_round_trip();
    check_bad_fields();
    sl_machine m = example();
    m.dram_read[0].value = NAN;
    T_CHECK(sl_machine_check(ctx, &m) == SL_E_FORMAT, "NaN passed");
    sl_ctx_destroy(&ctx);
    return t_end();
}
