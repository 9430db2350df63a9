/* tools/report_data.h - what a report shows, as one JSON object that tools/report/report.js draws.
 * Numbers only: nothing is measured here. Threads: the main thread. Units: as in perfmodel/: bytes,
 * seconds, tokens/s, multiply-adds/s. Tested by tests/t_report.py. */
#ifndef REPORT_DATA_H
#define REPORT_DATA_H

#include <jansson.h>

#include "perfmodel/sl_planner.h"

typedef struct report_in {
    const char *model, *arch, *quant;   /* any bytes: what is no UTF-8 becomes '?' */
    bool exact;                 /* bytes are a file's, not computed */
    const sl_machine *machine;
    const sl_shape *shape;
    const sl_miss_model *miss;
    const sl_choice *choice;
    sl_load load;
    json_t *validation;         /* lines of the log, borrowed; NULL: none */
} report_in;

/* The caller ends *ret with json_decref. Errors: SL_E_NOMEM. */
SL_NODISCARD sl_status report_data(sl_ctx *ctx, const report_in *in, json_t **ret);

/* A text of unknown bytes as a JSON string. NULL: no memory. */
json_t *report_text(const char *s);

/* Parts of the object, NULL: no memory. */
json_t *report_machine(const sl_machine *m, const sl_shape *shape, uint32_t threads);
/* decode, prompt: one pass of each as the simulation timed it. */
json_t *report_roofline(const report_in *in, const sl_timeline *decode, const sl_timeline *prompt);
json_t *report_timeline(const sl_timeline *t, uint32_t rows);
/* null where the machine or load has nothing of the kind */
json_t *report_batch(const report_in *in);
json_t *report_vram(const report_in *in);
sl_status report_sweeps(sl_ctx *ctx, const report_in *in, json_t **ret);

/* "disk", "dram": names of resources in the object. */
const char *report_resource(sl_resource r);

#endif
