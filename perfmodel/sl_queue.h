/* perfmodel/sl_queue.h - a file of requests: which rows each pass holds, and how long all of them
 * take. The rows are those that runtime/engine.c schedules, sequence by sequence and block by
 * block; tests/t_queue.c holds both against each other. Each pass is then timed as sl_forecast.h's
 * stage 2 times one of a single sequence.
 * Pure functions of numbers. Units: tokens, positions, seconds. Tested by tests/t_queue.c. */
#ifndef SL_QUEUE_H
#define SL_QUEUE_H

#include "perfmodel/sl_lens.h"

/* Requests in the order in which they begin: the i-th has length i % n_lengths. Weights are not
 * looked at. */
typedef struct sl_workload {
    const sl_lens_length *lengths;      /* prompt >= 1, prompt <= the plan's context */
    uint32_t n_lengths;
    uint64_t n_requests;
} sl_workload;

/* Rows of one sequence in a pass, at positions first to first + n - 1. */
typedef struct sl_rows {
    uint32_t first, n;
    bool draws;                 /* the last one's logits are wanted */
} sl_rows;

typedef struct sl_schedule sl_schedule;

typedef struct sl_schedule_stats {
    uint64_t passes, rows, recomputed_rows, preemptions;
    uint64_t prompt_tokens, drawn_tokens;       /* each computed, or drawn, for the first time */
    uint64_t finished;          /* requests */
    uint32_t running;           /* sequences alive in the last pass */
} sl_schedule_stats;

/* The plan's n_seq sequences, KV blocks and max_rows; no two prompts begin alike, and every answer
 * has all its tokens. plan and queue must outlive it. Errors: SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_schedule_create(sl_ctx *ctx, const sl_plan *plan,
                                                 const sl_workload *queue, sl_schedule **ret);
SL_API void sl_schedule_destroy(sl_schedule **s);
/* The next pass: decoding sequences first, then prompts. Returns how many sequences have rows in
 * it, 0: all requests are done. *ret is valid until the next call. */
SL_API uint32_t sl_schedule_next(sl_schedule *s, const sl_rows **ret);
SL_API sl_schedule_stats sl_schedule_get_stats(const sl_schedule *s);

typedef struct sl_queue_forecast {
    sl_grade grade;
    double seconds;             /* of all passes, filling and draining included */
    double tok_per_s, gen_tok_per_s;    /* prompts and drawn tokens; drawn ones alone */
    /* while a quarter to three quarters of the requests end; tok_per_s where that is no pass */
    double full_tok_per_s;
    double bound_tok_per_s;     /* the same passes, each in the time of its busiest resource */
    double passes, preemptions, recomputed_rows;
    double pass_rows, sequences;        /* means */
    double disk_bytes, wait_s;  /* of all passes; wait_s: nothing is computed meanwhile */
    double busy_s[SL_N_RESOURCES];
    sl_resource binding, next;
} sl_queue_forecast;

/* Stage 2 of a queue. Every pass is bounded in closed form, and at most `most_passes` of them, all
 * where there are fewer, are simulated: they stand for those around them as their bounds compare.
 * Of very many requests those that are alike in the middle are counted, not walked. in->load and
 * in->misses are not used. Not faster than bound_tok_per_s. Errors: SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_queue_simulate(sl_ctx *ctx, const sl_forecast_in *in,
                                                const sl_workload *queue, uint32_t most_passes,
                                                sl_queue_forecast *ret);

#endif
