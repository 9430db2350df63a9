/* tools/forecast.h - forecasts as text and JSON, the same for plan, run, chat and verify; and what
 * they are made of besides a model: a machine, routing, a budget.
 * Owns nothing. Threads: the main thread. Units: bytes, seconds, tokens.
 * Tested by tests/t_plan_cli.py. */
#ifndef FORECAST_H
#define FORECAST_H

#include <jansson.h>

#include "perfmodel/sl_planner.h"
#include "tools/cli.h"

/* ---- ingredients ---- */

/* What --ram (0: auto) means for a plan: a promise on all that the process has resident; or what is
 * available (bytes; 0: unknown) less a margin for everybody else. */
void cli_set_budget(uint64_t ram_bytes, uint64_t available, sl_plan_params *p);

/* What --ram auto shares out: on this machine (here) what is available now; on another one its
 * memory but for what the system takes. */
uint64_t cli_plan_available(const sl_machine *m, bool here);

/* Sizes and number of the disk's reads where nothing else is said: by the machine's disk, or as
 * most disks like it. m may be NULL. */
void cli_set_reads(const sl_machine *m, sl_plan_params *p);

/* A named machine (a file, or one that is shipped), which may be other hardware: *ret_here says.
 * NULL: this one, as it is kept; else measured in about 3 s, the disk on the model's file (NULL:
 * where results are kept), and kept unless another file stands there; notes say so. CLI_DONE, or
 * another code after one line. */
int cli_machine_for_plan(sl_ctx *ctx, const char *name, const char *model, sl_machine *ret,
                         bool *ret_here);
/* This one for a run, which does not wait for it where its weights load in less than that. False:
 * no forecast. */
bool cli_machine_for_run(sl_ctx *ctx, const char *model, uint64_t weights_bytes, sl_machine *ret);

/* How the model routes: from a routing trace, or typical where trace is NULL: of one text at a time,
 * or of many together. CLI_DONE, or another code after one line. */
int cli_miss_model(sl_ctx *ctx, const sl_shape *shape, const char *trace, bool one_text,
                   sl_miss_model *ret);

/* ---- text ---- */

/* What a grade stands on, in words. */
const char *cli_grade_text(sl_grade g);
/* What would raise it; NULL: nothing. */
const char *cli_grade_raise(sl_grade g);
/* "forecast 18.2 tok/s (cold), limited by disk reads; prompt 350 tok/s" */
char *cli_forecast_line(const sl_forecast *f, char buf[160]);
/* "+4.6 %": predicted over measured, less 1. */
char *cli_forecast_error(double predicted, double measured, char buf[24]);

/* ---- JSON ---- */

/* One object: grade, prompt_tok_per_s, decode_tok_per_s, ttft_s, hit_rate, disk_bytes_per_token,
 * stall_share, peak_rss_bytes; prompt and decode with seconds, wait_s, busy_s by resource, binding
 * and next. NULL: no memory. */
json_t *cli_forecast_json(const sl_forecast *f);
/* forecast_grade, predicted_prompt_tok_per_s, predicted_decode_tok_per_s, predicted_ttft_s into
 * obj; false: no memory. */
bool cli_predicted_json(const sl_forecast *f, json_t *obj);

/* ---- saved plans: what `sluice plan -o` wrote ---- */

typedef struct cli_plan_file {
    char model[160], cpu[96];   /* it was made for; cpu: sl_machine_id's */
    uint64_t shape_id;          /* sl_plan_shape_id */
    sl_load load;
    /* ram_bytes 0: what is available; process_bytes and cpu_mask are not set */
    sl_plan_params params;
    sl_forecast forecast;       /* grade, rates and ttft_s only */
} cli_plan_file;

json_t *cli_plan_params_json(const sl_plan_params *p);
/* Every field is checked, and named when it is wrong. SL_E_IO, SL_E_FORMAT, SL_E_NOMEM. */
SL_NODISCARD sl_status cli_plan_load(sl_ctx *ctx, const char *file, cli_plan_file *ret);

/* ---- choices of -ctk ---- */

sl_type cli_kv_type(uint32_t choice);
const char *cli_kv_name(sl_type type);      /* "f16" */

#endif
