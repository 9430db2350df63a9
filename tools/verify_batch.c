/* tools/verify_batch.c - plans, forecasts and runs the batch of `sluice verify`. */
#include "tools/verify_batch.h"

#include "tools/machine_file.h"

enum { ROWS = 512 };        /* where the search for the rows of a pass begins, as `sluice batch` */

static sl_workload queue_of(const verify_batch *b, sl_lens_length *length)
{
    *length = (sl_lens_length){ b->n_prompt, b->n_gen, 1 };
    return (sl_workload){ length, 1, b->n };
}

static int choose(const cli_engine_args *a, const cli_group *g, const sl_machine *machine,
                  const cli_session *s, verify_batch *b)
{
    const sl_shape *shape = sl_model_shape(s->model);
    sl_planner_params q;
    sl_miss_model miss;
    sl_lens_length length;
    sl_workload queue = queue_of(b, &length);
    sl_machine m = *machine;
    int code = cli_planner_params(a, g, s->ctx, shape, &m, cli_available_bytes(), 1, &q);
    if (code == CLI_DONE) code = cli_take_device(a, g, s->ctx, &q.base);
    if (code == CLI_DONE) code = cli_miss_model(s->ctx, shape, NULL, false, &miss);
    if (code != CLI_DONE) return code;
    if (!cli_machine_card(s->ctx, &q.base.accel, &m)) return CLI_FAILED;
    uint32_t all = b->n_prompt + b->n_gen;
    q.base.n_ctx = (all + SL_KV_BLOCK_ROWS - 1) / SL_KV_BLOCK_ROWS * SL_KV_BLOCK_ROWS;
    q.base.n_seq = 0;
    q.base.cpu_mask = s->cpu_mask;
    if (!cli_given(g, "--batch-size")) q.base.max_rows = ROWS;
    sl_status st = sl_planner_queue(s->ctx, &m, shape, &miss, &q, &queue, &b->choice);
    if (st == SL_E_UNSUPPORTED) {
        cli_note("no batch: %s", sl_error(s->ctx));
        b->n = 0;
        return CLI_DONE;
    }
    return st == SL_OK ? CLI_DONE : cli_fail_ctx(s->ctx);
}

int verify_batch_plan(const cli_engine_args *a, const cli_group *g, const sl_machine *m,
                      verify_batch *b)
{
    cli_session s;
    int code = cli_session_model(a, &s);
    if (code == CLI_DONE) code = choose(a, g, m, &s, b);
    return cli_session_close(&s, code);
}

/* Pieces of the text in turn, each begun at another place: no two prompts are alike. */
static int submit(cli_session *s, const verify_batch *b, const int32_t *tokens, uint32_t n_tokens,
                  uint32_t index)
{
    uint32_t places = n_tokens - b->n_prompt + 1;
    sl_request r = { .tokens = tokens + (uint64_t)index * b->n_prompt * 5 / 8 % places,
                     .n_tokens = b->n_prompt, .n_predict = b->n_gen, .ignore_eog = true,
                     .sampler = sl_sampler_defaults() };
    sl_seq seq;
    r.sampler.seed = index + 1;
    return sl_engine_submit(s->engine, &r, &seq) == SL_OK ? CLI_DONE : cli_fail_ctx(s->ctx);
}

/* n requests, as many at once as the plan has sequences. */
static int run_requests(cli_session *s, const verify_batch *b, const int32_t *tokens,
                        uint32_t n_tokens, uint32_t n)
{
    uint32_t begun = 0, ended = 0, at_once = b->choice.plan.n_seq;
    while (ended < n) {
        const sl_engine_event *ev;
        uint32_t n_ev;
        if (cli_interrupted()) return CLI_INTERRUPTED;
        for (; begun < n && begun - ended < at_once; begun++) {
            int code = submit(s, b, tokens, n_tokens, begun);
            if (code != CLI_DONE) return code;
        }
        if (sl_engine_step(s->engine, &ev, &n_ev) != SL_OK) return cli_fail_ctx(s->ctx);
        for (uint32_t i = 0; i < n_ev; i++) {
            if (ev[i].kind != SL_EV_DONE) continue;
            if (ev[i].error) return cli_fail("a request of the batch: %s", ev[i].error);
            sl_engine_cancel(s->engine, ev[i].seq);
            ended++;
        }
    }
    return CLI_DONE;
}

int verify_batch_run(const cli_engine_args *a, const cli_group *g, const verify_batch *b,
                     const int32_t *tokens, uint32_t n_tokens, double *ret_tok_per_s)
{
    cli_engine_args e = *a;
    const sl_plan *plan = &b->choice.plan;
    cli_session s;
    e.ready = plan;
    int code = cli_session_model(&e, &s);
    if (code == CLI_DONE) code = cli_session_start(&e, g, plan->n_seq, NULL, &s);
    if (code == CLI_DONE && plan->weights != SL_WEIGHTS_STREAMED)
        code = run_requests(&s, b, tokens, n_tokens, 1);
    double start = cli_now_s();
    if (code == CLI_DONE) code = run_requests(&s, b, tokens, n_tokens, b->n);
    double seconds = cli_now_s() - start;
    if (code == CLI_DONE)
        *ret_tok_per_s = (double)b->n * (b->n_prompt + b->n_gen) / SL_MAX(seconds, 1e-9);
    return cli_session_close(&s, code);
}
