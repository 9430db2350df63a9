/* tests/fuzz_machine.c - libFuzzer: any bytes as a machine file. What is accepted must answer every
 * question with a finite number and survive being written and read again. Built with -Dfuzz=true
 * (clang); seeds in tests/corpus/machine/. */
#include "offload/sl_machine_json.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(bool ok)
{
    if (!ok) __builtin_trap();
}

static void ask(const sl_machine *m)
{
    static const uint32_t threads[] = { 1, 3, 4096 };
    uint32_t bytes, depth;
    double best;
    sl_machine_disk_best(m, &bytes, &depth, &best);
    need(isfinite(best) && isfinite(sl_machine_disk_s(m, 3e5, 7)));
    for (size_t t = 0; t < SL_LEN(threads); t++) {
        sl_machine_cost c = sl_machine_cost_at(m, threads[t]);
        double costs[] = { c.stage_s, c.elem_s, c.decode_flops_s, c.prefill_flops_s, c.corun_cpu,
                           c.corun_disk, c.corun_tiles, sl_machine_decode_seconds(&c, 9, 70) };
        for (size_t i = 0; i < SL_LEN(costs); i++) need(isfinite(costs[i]) && costs[i] > 0);
        for (uint32_t type = 0; type < SL_N_TYPES; type++) {
            double before = 0;
            for (double rows = 1; rows < 1e4; rows *= 7) {
                double s = sl_machine_gemm_seconds(m, (sl_type)type, threads[t], 1e6, rows);
                need(isfinite(s) && s > 0 && s >= before * (1 - 1e-9));
                before = s;
                for (uint32_t g = 0; g < m->n_gpus; g++) {
                    s = sl_machine_gpu_gemm_seconds(&m->gpu[g], (sl_type)type, 1e6, rows);
                    need(isfinite(s) && s > 0);
                }
            }
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static sl_machine m, back;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_json root;
    if (sl_json_parse(ctx, "fuzz", (const char *)data, size, &root) == SL_OK) {
        if (sl_machine_read(&root, &m) == SL_OK) {
            ask(&m);
            sl_json again = { .ctx = ctx, .file = "again", .v = sl_machine_to_json(&m) };
            need(again.v && sl_machine_read(&again, &back) == SL_OK);
            need(back.n_gemms == m.n_gemms && back.n_gpus == m.n_gpus && back.n_costs == m.n_costs);
            json_decref(again.v);
        }
        json_decref(root.v);
    }
    sl_ctx_destroy(&ctx);
    return 0;
}
