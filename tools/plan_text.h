/* tools/plan_text.h - a plan and its forecast as `sluice plan` shows them: text for a person, one
 * JSON object, and the flags that ask llama.cpp for the same.
 * Owns nothing. Threads: the main thread. Tested by tests/t_plan_cli.py. */
#ifndef PLAN_TEXT_H
#define PLAN_TEXT_H

#include "runtime/sl_source.h"
#include "tools/queue_text.h"
#include "tools/forecast.h"

typedef struct plan_view {
    const sl_source *src;
    const sl_machine *machine;
    bool here;                  /* it is this machine */
    uint64_t vram_bytes;        /* --vram, of each GPU; 0: the machine's */
    sl_load load;
    const sl_choice *choice;
    const char *command;        /* the line that runs it */
    /* For each of the machine's GPUs: what a program that used it could reach at most, and the plan
     * with it, or why there is none. */
    struct {
        sl_forecast bound;
        bool planned;
        sl_choice choice;
        char why_not[200];
    } gpu[SL_MACHINE_GPUS];
} plan_view;

void plan_print(const plan_view *v);
/* What `sluice run --plan` reads, too. NULL: no memory, or text that is not UTF-8. */
json_t *plan_json(const plan_view *v);
void plan_print_llama_cpp(const plan_view *v);

/* What lies on a plan's accelerator, a line each; who computes what; both as JSON. */
void plan_print_device(const sl_shape *s, const sl_plan *p);
void plan_print_work(const sl_shape *s, const sl_plan *p);
json_t *plan_device_json(const sl_plan *p);

/* The same of a file of so many requests of v->load each; v->choice: c's params and plan. */
void plan_print_queue(const plan_view *v, uint64_t n_requests, const sl_queue_choice *c);
json_t *plan_queue_json(const plan_view *v, uint64_t n_requests, const sl_queue_choice *c);

#endif
