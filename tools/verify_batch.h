/* tools/verify_batch.h - the batch of `sluice verify`: some requests of one length, through the
 * planner, the engine and the loop that a file of them has in `sluice batch`.
 * Owns nothing. Threads: the main thread. Units: tokens, tok/s. Tested by tests/t_verify_cli.py. */
#ifndef VERIFY_BATCH_H
#define VERIFY_BATCH_H

#include "perfmodel/sl_planner.h"
#include "tools/session.h"

typedef struct verify_batch {
    uint32_t n, n_prompt, n_gen;    /* requests; tokens of each; n 0: there is none */
    sl_queue_choice choice;         /* plan, forecast and bound */
} verify_batch;

/* The plan that `sluice batch` would make on m for these requests, and its forecast, which knows no
 * trace. Call it while no engine is open: it asks what memory is free. b->n becomes 0, after a
 * note, where nothing forecasts such a plan. g: the group of a. CLI_DONE, or another code after one
 * line. */
int verify_batch_plan(const cli_engine_args *a, const cli_group *g, const sl_machine *m,
                      verify_batch *b);

/* Runs it on an engine of its own, warmed up where all weights are in RAM: prompt and drawn tokens
 * a second. Prompts are pieces of tokens [n_tokens >= b->n_prompt]. CLI_DONE, or another code after
 * one line. */
int verify_batch_run(const cli_engine_args *a, const cli_group *g, const verify_batch *b,
                     const int32_t *tokens, uint32_t n_tokens, double *ret_tok_per_s);

#endif
