/* tests/t_run.h - a model, a plan and an engine for a test: opened, fed, drained, closed. */
#ifndef T_RUN_H
#define T_RUN_H

#include <string.h>

#include "runtime/sluice.h"
#include "tests/t.h"

typedef struct t_run {
    sl_ctx *ctx;
    sl_model *m;
    sl_plan plan;
    sl_engine *e;
} t_run;

static inline t_run t_run_model(const char *path)
{
    t_run r = { .ctx = sl_ctx_create(NULL, NULL) };
    T_NEED(sl_model_open(r.ctx, path, &r.m) == SL_OK, "%s", sl_error(r.ctx));
    return r;
}

static inline void t_run_engine(t_run *r, const sl_plan_params *p)
{
    T_NEED(sl_plan_make(r->ctx, sl_model_shape(r->m), p, &r->plan) == SL_OK, "%s",
           sl_error(r->ctx));
    T_NEED(sl_engine_open(r->ctx, r->m, &r->plan, &r->e) == SL_OK, "%s", sl_error(r->ctx));
}

/* Nothing is left behind. */
static inline void t_run_close(t_run *r)
{
    sl_mem_report mem;
    sl_engine_close(&r->e);
    sl_model_close(&r->m);
    sl_mem_get(r->ctx, &mem);
    T_CHECK(!mem.total, "%llu bytes left behind", (unsigned long long)mem.total);
    sl_ctx_destroy(&r->ctx);
}

/* Tokens to be processed, at most chunk of them a pass; none is drawn. */
static inline sl_seq t_run_submit(t_run *r, sl_seq id, const int32_t *ids, uint32_t n,
                                  uint32_t chunk, bool logits)
{
    sl_request q = {
        .seq = id, .tokens = ids, .n_tokens = n, .want_logits = logits, .max_chunk = chunk
    };
    sl_seq ret = 0;
    T_NEED(sl_engine_submit(r->e, &q, &ret) == SL_OK, "%s", sl_error(r->ctx));
    return ret;
}

/* Steps until idle. Logits of sequence `first` + i at position p go to row at[i] + p - from. */
static inline void t_run_drain(t_run *r, sl_seq first, const uint32_t *at, uint32_t from,
                               float *ret)
{
    size_t n_vocab = sl_model_shape(r->m)->n_vocab;
    while (sl_engine_busy(r->e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(r->e, &ev, &n) == SL_OK, "%s", sl_error(r->ctx));
        for (uint32_t i = 0; i < n; i++) {
            T_CHECK(!ev[i].error, "%s", ev[i].error);
            if (ev[i].kind == SL_EV_LOGITS)
                memcpy(ret + (at[ev[i].seq - first] + ev[i].pos - from) * n_vocab, ev[i].logits,
                       n_vocab * sizeof *ret);
        }
    }
}

#endif
