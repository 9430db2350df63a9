/* offload/sl_machine_json.h - a machine as a JSON file: every field is checked, and named when it
 * is wrong. Fields that this version does not know are left alone. Format:
 *   { "sluice_machine": 2, "source": "measured",
 *     "notes": "where the numbers come from",                              may be missing
 *     "hardware": { "cpu", "isa", "cores", "hw_threads", "l3_bytes", "ram_bytes" },
 *     "dram_read": [ { "threads": 1, "bytes_s": 1.2e10 }, ... ],
 *   and what may be missing:
 *     "barrier": [ { "threads": 1, "s": 1e-7 }, ... ],
 *     "peaks": { "int8_avx2": { "core": 1e11, "all": 2e11 }, ... },        operations/s
 *     "disk": { "where": "/models", "latency_s": 9e-5,
 *       "reads": [ { "bytes": 4096, "points": [ { "depth": 1, "bytes_s": 4e7 }, ... ] }, ... ] },
 *     "read_cpu_s": 5e-6, "read_host_s": 3e-10,
 *     "gemms": [ { "type": "Q4_K", "threads": 1,
 *       "points": [ { "rows": 1, "ops_s": 6e10 }, ... ] }, ... ],          multiply-adds/s
 *     "costs": [ { "threads", "stage_s", "elem_s", "decode_flops_s", "prefill_flops_s",
 *       "decode_bytes_s", "corun_cpu", "corun_disk", "corun_tiles", "call_s" (may be missing) },
 *       ... ],
 *     "gpus": [ { "name", "vram_bytes", "vram_bytes_s", "flops_s", "h2d_bytes_s", "d2h_bytes_s",
 *       and perhaps "h2d_pageable_bytes_s", "d2h_pageable_bytes_s", "copy_s", "launch_s",
 *       "decode_flops_s", "prefill_flops_s", "decode_bytes_s", "elem_s", "gemms" (without
 *       threads) }, ... ] }
 * sl_machine.h says what each means. Files of format 1 are refused: they lack what forecasts need.
 * Tested by tests/t_machine.c. */
#ifndef SL_MACHINE_JSON_H
#define SL_MACHINE_JSON_H

#include "perfmodel/sl_machine.h"
#include "runtime/base/sl_json.h"

/* Errors: SL_E_IO, SL_E_FORMAT, SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_machine_load(sl_ctx *ctx, const char *file, sl_machine *ret);
SL_API SL_NODISCARD sl_status sl_machine_read(const sl_json *root, sl_machine *ret);
SL_API SL_NODISCARD sl_status sl_machine_save(sl_ctx *ctx, const sl_machine *m, const char *file);
SL_API json_t *sl_machine_to_json(const sl_machine *m);     /* the caller's; NULL: no memory */

#endif
