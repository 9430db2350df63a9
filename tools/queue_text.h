/* tools/queue_text.h - the forecast of a file of requests, the same for `sluice batch` and for
 * `sluice plan --requests`.
 * Owns nothing. Threads: the main thread. Tested by tests/t_batch_cli.py, tests/t_plan_cli.py. */
#ifndef QUEUE_TEXT_H
#define QUEUE_TEXT_H

#include <jansson.h>

#include "perfmodel/sl_planner.h"

/* "3 h 12 min", "4 min 10 s", "12.5 s" */
char *cli_duration(double seconds, char buf[32]);
/* "forecast 152 tok/s (cold), 4 min 10 s, limited by arithmetic; at most 180 tok/s" */
char *cli_queue_line(const sl_queue_choice *c, char buf[200]);
/* forecast_grade, predicted_tok_per_s, predicted_gen_tok_per_s, predicted_full_tok_per_s,
 * predicted_s, bound_tok_per_s (stage 1), plan_bound_tok_per_s into obj; false: no memory. */
bool cli_queue_json(const sl_queue_choice *c, json_t *obj);

#endif
