/* tests/t_engine.c - the library's loop over many sequences: continuing, stopping, cancelling,
 * limits, the schedule of passes, no allocation in a step; and every allocation of open and submit
 * failing once.
 * Models: the tiny ones of tests/golden/arch. */
#include "tests/t_alloc.h"
#include "tests/t_run.h"

#define N_PROMPT 20u

static const char *model_path(const char *name)
{
    static char path[1024];
    const char *root = getenv("SLUICE_SOURCE_DIR");
    snprintf(path, sizeof path, "%s/tests/golden/arch/%s.gguf", root ? root : ".", name);
    return path;
}

static t_run open_engine(const char *name, uint32_t n_ctx, uint32_t n_seq, uint32_t max_rows,
                         uint32_t threads)
{
    t_run f = t_run_model(model_path(name));
    sl_plan_params p = sl_plan_defaults();
    p.n_ctx = n_ctx;
    p.n_seq = n_seq;
    p.max_rows = max_rows;
    p.n_threads = threads;
    t_run_engine(&f, &p);
    return f;
}

static void make_prompt(int32_t *ids, uint32_t n, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)t_below(n_vocab);
}

static sl_seq submit(t_run *f, sl_seq seq, const int32_t *ids, uint32_t n, uint32_t n_predict,
                     float temp)
{
    sl_request r = { .seq = seq,
                     .tokens = ids,
                     .n_tokens = n,
                     .n_predict = n_predict,
                     .ignore_eog = true,
                     .sampler = sl_sampler_defaults() };
    sl_seq id = 0;
    r.sampler.temp = temp;
    r.sampler.seed = 7;
    T_NEED(sl_engine_submit(f->e, &r, &id) == SL_OK, "%s", sl_error(f->ctx));
    return id;
}

/* Runs until idle; tokens of sequence `id` go to out; returns their number, *ret_reason how it
 * ended. */
static uint32_t drain(t_run *f, sl_seq id, int32_t *out, sl_done *ret_reason)
{
    uint32_t n_out = 0;
    while (sl_engine_busy(f->e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(f->e, &ev, &n) == SL_OK, "%s", sl_error(f->ctx));
        for (uint32_t i = 0; i < n; i++) {
            if (ev[i].seq != id) continue;
            if (ev[i].kind == SL_EV_TOKEN) out[n_out++] = ev[i].token;
            if (ev[i].kind == SL_EV_DONE) *ret_reason = ev[i].reason;
        }
    }
    return n_out;
}

/* A prompt in two submits, and generation in two, equal one of each. */
static void check_continue(void)
{
    t_run f = open_engine("qwen3moe", 96, 2, 32, 1);
    uint32_t n_vocab = sl_model_shape(f.m)->n_vocab;
    int32_t ids[N_PROMPT], whole[32], parts[32];
    sl_done why = SL_DONE_STOPPED;
    make_prompt(ids, N_PROMPT, n_vocab);
    sl_seq a = submit(&f, 0, ids, N_PROMPT, 16, 0);
    T_CHECK(drain(&f, a, whole, &why) == 16 && why == SL_DONE_N_PREDICT, "ended with %d", why);
    T_CHECK(sl_engine_length(f.e, a) == N_PROMPT + 16, "length %u", sl_engine_length(f.e, a));

    sl_seq b = submit(&f, 0, ids, 7, 0, 0);
    drain(&f, b, parts, &why);
    T_CHECK(why == SL_DONE_PROMPT, "ended with %d", why);
    submit(&f, b, ids + 7, N_PROMPT - 7, 16, 0);
    T_CHECK(drain(&f, b, parts, &why) == 16, "a prompt in two parts");
    T_CHECK(!memcmp(whole, parts, 16 * sizeof *whole), "a prompt in two parts gives other tokens");
    sl_engine_cancel(f.e, b);
    T_CHECK(sl_engine_length(f.e, b) == 0, "a cancelled sequence has a length");

    /* The token drawn last is still pending: the next submit processes it first. */
    b = submit(&f, 0, ids, N_PROMPT, 5, 0);
    T_CHECK(drain(&f, b, parts, &why) == 5, "five tokens");
    submit(&f, b, whole + 5, 1, 10, 0);
    T_CHECK(drain(&f, b, parts + 6, &why) == 10, "ten tokens");
    T_CHECK(!memcmp(whole + 6, parts + 6, 10 * sizeof *whole), "continuing gives other tokens");
    t_run_close(&f);
}

/* Same seed, same tokens: alone, in a crowd, with 1 and 2 threads. */
static void check_crowd(void)
{
    int32_t alone[24], crowd[24], ids[4][N_PROMPT], rest[64];
    sl_done why = 0;
    for (uint32_t threads = 1; threads <= 2; threads++) {
        t_run f = open_engine("gpt-oss", 64, 4, 16, threads);
        t_begin();
        for (uint32_t i = 0; i < 4; i++)
            make_prompt(ids[i], N_PROMPT, sl_model_shape(f.m)->n_vocab);
        sl_seq a = submit(&f, 0, ids[0], N_PROMPT, 24, 0.9f);
        int32_t *out = threads == 1 ? alone : crowd;
        T_CHECK(drain(&f, a, out, &why) == 24, "24 tokens");
        T_CHECK(!memcmp(alone, out, sizeof alone), "2 threads draw other tokens");
        sl_engine_cancel(f.e, a);
        for (uint32_t i = 1; i < 4; i++) submit(&f, 0, ids[i], N_PROMPT - i, 8 * i, 1);
        a = submit(&f, 0, ids[0], N_PROMPT, 24, 0.9f);
        T_CHECK(drain(&f, a, crowd, &why) == 24, "24 tokens");
        T_CHECK(!memcmp(alone, crowd, sizeof alone), "a crowd changes the tokens");
        sl_request r = {
            .tokens = ids[0], .n_tokens = 1, .n_predict = 1, .sampler = sl_sampler_defaults()
        };
        sl_seq more = 99;
        T_CHECK(sl_engine_submit(f.e, &r, &more) == SL_E_NOMEM && more == 99,
                "a fifth of 4 sequences");
        (void)rest;
        t_run_close(&f);
    }
}

/* What the plan says a pass takes is what the engine takes, but for tables that do not grow with
 * rows. */
static void check_scratch(const char *name)
{
    t_run f = open_engine(name, 2048, 1, 2048, 1);
    sl_mem_report mem;
    sl_mem_get(f.ctx, &mem);
    uint64_t got = mem.bytes[SL_ACC_SCRATCH], said = f.plan.scratch_bytes;
    T_CHECK(got <= said + (1 << 20) && said <= got + got / 4,
            "%s: scratch of %llu bytes, planned %llu", name, (unsigned long long)got,
            (unsigned long long)said);
    T_CHECK(mem.bytes[SL_ACC_KV] == f.plan.kv_bytes, "%s: KV of %llu bytes, planned %llu", name,
            (unsigned long long)mem.bytes[SL_ACC_KV], (unsigned long long)f.plan.kv_bytes);
    t_run_close(&f);
}

static void check_limits(void)
{
    t_run f = open_engine("llama", 40, 2, 8, 1);
    int32_t ids[64], out[64];
    sl_done why = 0;
    sl_seq id = 42;
    make_prompt(ids, 64, sl_model_shape(f.m)->n_vocab);
    sl_request bad = {
        .tokens = ids, .n_tokens = 41, .n_predict = 1, .sampler = sl_sampler_defaults()
    };
    T_CHECK(sl_engine_submit(f.e, &bad, &id) == SL_E_NOMEM && strstr(sl_error(f.ctx), "41")
            && strstr(sl_error(f.ctx), "40"), "too long a prompt: %s", sl_error(f.ctx));
    bad.n_tokens = 0;
    T_CHECK(sl_engine_submit(f.e, &bad, &id) == SL_E_ARG, "no tokens");
    int32_t foreign = (int32_t)sl_model_shape(f.m)->n_vocab;
    bad = (sl_request){ .tokens = &foreign, .n_tokens = 1 };
    T_CHECK(sl_engine_submit(f.e, &bad, &id) == SL_E_ARG, "an id outside the vocabulary");
    bad = (sl_request){ .seq = 77, .tokens = ids, .n_tokens = 1 };
    T_CHECK(sl_engine_submit(f.e, &bad, &id) == SL_E_ARG && id == 42,
            "a sequence that is not there");
    T_CHECK(!sl_engine_busy(f.e), "failed submits leave work behind");

    id = submit(&f, 0, ids, 30, 64, 0);
    T_CHECK(drain(&f, id, out, &why) == 11 && why == SL_DONE_CONTEXT,
            "context of 40 after 30: reason %d", why);
    T_CHECK(sl_engine_length(f.e, id) == 40, "length %u", sl_engine_length(f.e, id));
    sl_seq other = submit(&f, 0, ids, 40, 1, 0);
    T_CHECK(drain(&f, other, out, &why) == 1, "a prompt that fills the context still draws one");
    t_run_close(&f);
}

static void check_stop(void)
{
    t_run f = open_engine("olmoe", 64, 2, 8, 1);
    int32_t ids[N_PROMPT], out[64], ref[64];
    const sl_engine_event *ev;
    uint32_t n, drawn = 0;
    sl_done why = 0;
    make_prompt(ids, N_PROMPT, sl_model_shape(f.m)->n_vocab);
    sl_seq a = submit(&f, 0, ids, N_PROMPT, 12, 0);
    drain(&f, a, ref, &why);
    sl_seq b = submit(&f, 0, ids, N_PROMPT, 12, 0);
    sl_request r = { .seq = b, .tokens = ids, .n_tokens = 1 };
    T_CHECK(sl_engine_submit(f.e, &r, &b) == SL_E_ARG, "a running sequence takes no tokens");
    while (drawn < 4) {
        T_NEED(sl_engine_step(f.e, &ev, &n) == SL_OK, "%s", sl_error(f.ctx));
        for (uint32_t i = 0; i < n; i++) drawn += ev[i].kind == SL_EV_TOKEN;
    }
    sl_engine_stop(f.e, b);
    T_NEED(sl_engine_step(f.e, &ev, &n) == SL_OK && n == 1, "%u events", n);
    T_CHECK(ev[0].kind == SL_EV_DONE && ev[0].reason == SL_DONE_STOPPED, "reason %d", ev[0].reason);
    T_CHECK(!sl_engine_busy(f.e), "stopped, but busy");
    submit(&f, b, ref + 4, 1, 7, 0);
    T_CHECK(drain(&f, b, out, &why) == 7 && !memcmp(out, ref + 5, 7 * sizeof *out),
            "tokens after a stop");
    t_run_close(&f);
}

/* What callbacks of one request were told. */
typedef struct told {
    uint32_t n_tokens, n_done, cancel_at;   /* cancel_at 0: never */
    int32_t ids[64];
    sl_seq seq;
} told;

static void on_event(void *user, sl_engine *e, const sl_engine_event *ev)
{
    told *t = user;
    T_CHECK(ev->seq == t->seq, "an event of sequence %u, not %u", ev->seq, t->seq);
    if (ev->kind == SL_EV_DONE) t->n_done++;
    if (ev->kind == SL_EV_TOKEN) t->ids[t->n_tokens++] = ev->token;
    if (t->cancel_at && t->n_tokens == t->cancel_at) sl_engine_cancel(e, ev->seq);
}

/* Callbacks get the tokens of the list, each those of its own request; one that cancels gets no
 * more. Statistics of each request are its own. */
static void check_callbacks(void)
{
    t_run f = open_engine("qwen3moe", 64, 3, 32, 1);
    enum { N = 3, N_NEW = 12 };
    told t[N] = { { 0 }, { 0 }, { .cancel_at = 5 } };
    sl_request_stats s;
    int32_t ids[N_PROMPT], alone[N_NEW];
    sl_done why = 0;
    make_prompt(ids, N_PROMPT, sl_model_shape(f.m)->n_vocab);
    sl_seq a = submit(&f, 0, ids, N_PROMPT, N_NEW, 0);
    drain(&f, a, alone, &why);
    sl_engine_cancel(f.e, a);
    for (uint32_t i = 0; i < N; i++) {
        sl_request r = { .tokens = ids, .n_tokens = N_PROMPT, .n_predict = N_NEW - i,
                         .ignore_eog = true, .on_event = on_event, .user = &t[i] };
        r.sampler = sl_sampler_defaults();
        r.sampler.temp = 0;
        T_NEED(sl_engine_submit(f.e, &r, &t[i].seq) == SL_OK, "%s", sl_error(f.ctx));
        sl_engine_request_stats(f.e, t[i].seq, &s);
        T_CHECK(s.prompt_tokens == N_PROMPT && !s.drawn_tokens && !s.ttft_s && !s.total_s,
                "statistics before the first step");
    }
    while (sl_engine_busy(f.e))
        T_NEED(sl_engine_step(f.e, NULL, NULL) == SL_OK, "%s", sl_error(f.ctx));
    for (uint32_t i = 0; i < N; i++) {
        uint32_t want = t[i].cancel_at ? t[i].cancel_at : N_NEW - i;
        sl_engine_request_stats(f.e, t[i].seq, &s);
        T_CHECK(t[i].n_tokens == want && t[i].n_done == !t[i].cancel_at, "%u: %u tokens, %u ends",
                i, t[i].n_tokens, t[i].n_done);
        T_CHECK(!memcmp(t[i].ids, alone, want * sizeof *alone), "%u: other tokens", i);
        if (t[i].cancel_at) T_CHECK(!s.prompt_tokens && !s.total_s, "statistics after a cancel");
        else T_CHECK(s.drawn_tokens == want && s.ttft_s > 0 && s.total_s > s.ttft_s,
                     "%u: %u drawn, the first after %g s of %g", i, s.drawn_tokens, s.ttft_s,
                     s.total_s);
    }
    t_run_close(&f);
}

/* Sequences come and go at random for a while; a step allocates nothing. */
static void check_churn(void)
{
    t_run f = open_engine("deepseek2-v3", 48, 3, 16, 2);
    sl_seq live[3] = { 0 };
    sl_engine_stats st;
    int32_t ids[48];
    make_prompt(ids, 48, sl_model_shape(f.m)->n_vocab);
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t i = t_below(3);
        const sl_engine_event *ev;
        uint32_t n;
        if (live[i] && t_below(4) == 0) sl_engine_cancel(f.e, live[i]), live[i] = 0;
        else if (!live[i])
            live[i] = submit(&f, 0, ids + t_below(10), 1 + t_below(38), 1 + t_below(60), 1);
        t_alloc_reset(0);
        T_NEED(sl_engine_step(f.e, &ev, &n) == SL_OK, "%s", sl_error(f.ctx));
        T_CHECK(t_alloc_calls == 0, "%ld allocations in a step", (long)t_alloc_calls);
        for (uint32_t k = 0; k < n; k++)
            if (ev[k].kind == SL_EV_DONE && t_below(2)) {
                sl_engine_cancel(f.e, ev[k].seq);
                for (uint32_t s = 0; s < 3; s++) if (live[s] == ev[k].seq) live[s] = 0;
            } else if (ev[k].kind == SL_EV_DONE) {
                for (uint32_t s = 0; s < 3; s++) if (live[s] == ev[k].seq) live[s] = 0;
                sl_engine_cancel(f.e, ev[k].seq);
            }
    }
    sl_engine_get_stats(f.e, &st);
    T_CHECK(st.passes > 100 && st.drawn_tokens > 100 && st.bytes_touched && st.expert_runs,
            "statistics");
    t_run_close(&f);
}

/* The n-th allocation of opening everything fails: a status with a message, and nothing is left
 * behind. */
static void check_allocations(const char *name)
{
    bool done = false;
    for (long at = 1; !done && at < 2000; at++) {
        sl_ctx *ctx = sl_ctx_create(NULL, NULL);
        sl_plan_params p = sl_plan_defaults();
        sl_model *m = NULL;
        sl_engine *e = NULL;
        sl_plan plan;
        sl_mem_report mem;
        sl_seq id;
        int32_t ids[] = { 1, 2, 3 };
        sl_request r = {
            .tokens = ids, .n_tokens = 3, .n_predict = 1, .sampler = sl_sampler_defaults()
        };
        p.n_threads = 1;
        p.n_ctx = 32;
        p.max_rows = 8;
        t_alloc_reset(at);
        sl_status st = sl_model_open(ctx, model_path(name), &m);
        if (st == SL_OK) st = sl_plan_make(ctx, sl_model_shape(m), &p, &plan);
        if (st == SL_OK) st = sl_engine_open(ctx, m, &plan, &e);
        if (st == SL_OK) st = sl_engine_submit(e, &r, &id);
        done = t_alloc_calls < at;
        t_alloc_reset(0);
        T_CHECK(done || st == SL_E_NOMEM, "%s: allocation %ld fails with %d", name, at, st);
        T_CHECK(st == SL_OK || *sl_error(ctx), "%s: allocation %ld fails without a word", name, at);
        sl_engine_close(&e);
        sl_model_close(&m);
        sl_mem_get(ctx, &mem);
        T_CHECK(!mem.total && !mem.bytes[SL_ACC_MAPPED], "%s: allocation %ld leaves %llu bytes",
                name, at, (unsigned long long)mem.total);
        sl_ctx_destroy(&ctx);
    }
    T_CHECK(done, "%s: opening never succeeded", name);
}

int main(void)
{
    t_begin();
    check_continue();
    check_crowd();
    check_limits();
    check_scratch("qwen3moe");
    check_scratch("llama");
    check_scratch("deepseek2-v3");
    check_stop();
    check_callbacks();
    check_churn();
    check_allocations("qwen3moe");
    check_allocations("deepseek2-v3-kvb");
    return t_end();
}
