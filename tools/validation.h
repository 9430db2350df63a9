/* tools/validation.h - the validation log: what `sluice verify` predicted and then measured, one
 * JSON object a line, which `sluice report` draws. Threads: the main thread; several processes may
 * append to one file. Units: tok/s, seconds, bytes, shares.
 * Tested by tests/t_verify_cli.py.
 *
 * A line:
 *   { "sluice_validation": 1, "kind": "verified", "id": "20261122T063000-4711-1",
 *     "date": "2026-11-22T06:30:41Z", "predicted_at": "2026-11-22T06:30:12Z",
 *     "model", "arch", "quant": "Q4_K", "model_bytes", "cpu", "isa", "probe": "measured",
 *     "mode", "threads", "max_rows", "budget_bytes", "n_prompt", "n_gen", "repeats",
 *     "n_batch": 8,                                requests of batch_tok_per_s; 0: it is missing
 *     "grade": "calibrated",                       of `predicted`
 *     "device": "emu:mem=512M",                    only where there is one, as --device named it
 *     "quantities": { "decode_tok_per_s":
 *       { "predicted": 41.2, "cold": 39.0, "measured": 40.1, "error": 0.027,
 *         "cold_error": -0.027, "spread": 0.03, "runs": [ 40.1, 39.5, 40.7 ] }, ... },
 *     "moved": 0.02, "attempt": 1 }
 * Before anything is timed the same line is written with "kind": "prediction": no date, measured,
 * error, spread, runs or moved. Quantities: validation_names, those that the run has (hit_rate,
 * disk_bytes_per_token and stall_share only where experts are streamed). measured: the median of
 * runs. error, cold_error: predicted over measured, less 1; of hit_rate and stall_share predicted
 * less measured. spread: largest less smallest of the runs, over the median; of the two shares
 * without the division. "cold" and "cold_error" stand only where `predicted` knows a routing trace.
 * moved: how far the forecasts by the probes before and after the runs lie apart, the worse of
 * prompt and decode; missing with --machine. A first attempt that was given up because of it has
 * the kind "moved". */
#ifndef VALIDATION_H
#define VALIDATION_H

#include <jansson.h>

#include "perfmodel/sl_forecast.h"
#include "tools/cli.h"

typedef enum validation_quantity {
    VALIDATION_PROMPT, VALIDATION_TTFT, VALIDATION_DECODE, VALIDATION_BATCH, VALIDATION_HITS,
    VALIDATION_DISK, VALIDATION_STALL, VALIDATION_PEAK, VALIDATION_N
} validation_quantity;
/* "prompt_tok_per_s", ... "peak_rss_bytes" */
extern const char *const validation_names[VALIDATION_N];

enum { VALIDATION_RUNS = 64 };

typedef struct validation_cell {
    bool there;                 /* the run has such a quantity */
    double predicted, cold;
    double run[VALIDATION_RUNS];
    uint32_t n_runs;
} validation_cell;

/* run[0..n_runs): the middle one, and largest less smallest as error is said above. n_runs > 0. */
double validation_measured(const validation_cell *c);
double validation_spread(validation_quantity q, const validation_cell *c);
double validation_error(validation_quantity q, double predicted, double measured);
/* The quantities of a forecast, in the order above; a batch has one of its own: 0. */
void validation_of_forecast(const sl_forecast *f, double ret[VALIDATION_N]);

/* "quantities" of a line; calibrated: `predicted` is, and `cold` stands beside it. NULL: no
 * memory. */
json_t *validation_json(const validation_cell cells[VALIDATION_N], bool calibrated);

/* Where the log is: $XDG_DATA_HOME/sluice/validation.jsonl, or ~/.local/share/sluice/...;
 * malloc'ed. NULL: no place, or no memory, without a word. */
char *validation_path(void);
/* Appends a line in one write; folders on the way are made. SL_E_IO, SL_E_NOMEM. */
SL_NODISCARD sl_status validation_append(sl_ctx *ctx, const char *path, const json_t *line);
/* The lines of kind "verified", oldest first, as an array that the caller decrefs; other lines are
 * left out, and so are damaged ones, after a warning with their number. A missing file is an empty
 * array. SL_E_IO, SL_E_NOMEM. */
SL_NODISCARD sl_status validation_load(sl_ctx *ctx, const char *path, json_t **ret);

#endif
