/* tests/t_queue.c - the schedule on numbers against the engine's own; a file of requests by hand,
 * and what its forecast and its plan must be for any machine and model. */
#include <math.h>

#include "perfmodel/sl_planner.h"
#include "runtime/sluice.h"
#include "tests/t_case.h"

static sl_ctx *ctx;

/* ---- against the engine ---- */

static void fill(sl_engine *e, const sl_workload *q, uint64_t *next, uint32_t *alive)
{
    static const int32_t tokens[256];
    while (*alive < sl_engine_plan(e)->n_seq && *next < q->n_requests) {
        const sl_lens_length *l = &q->lengths[(*next)++ % q->n_lengths];
        sl_request r = { .tokens = tokens, .n_tokens = l->prompt, .n_predict = l->gen,
                         .ignore_eog = true, .sampler = sl_sampler_defaults() };
        sl_seq id;
        T_NEED(sl_engine_submit(e, &r, &id) == SL_OK, "%s", sl_error(ctx));
        ++*alive;
    }
}

/* Passes, rows computed anew and preemptions, pass by pass. */
static void same_as_engine(sl_model *m, int number)
{
    sl_lens_length lengths[40];
    sl_workload q = { lengths, 1 + t_below(40), 1 + t_below(60) };
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    sl_engine *e = NULL;
    sl_schedule *s = NULL;
    p.n_ctx = 256;
    p.n_seq = 1 + t_below(20);
    p.max_rows = 1 + t_below(200);
    p.n_threads = 1;
    p.kv_positions = 256 * (1 + t_below(p.n_seq));
    for (uint32_t i = 0; i < q.n_lengths; i++)
        lengths[i] = (sl_lens_length){ 1 + t_below(t_below(4) ? 60 : 256), t_below(60), 1 };
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), &p, &plan) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_schedule_create(ctx, &plan, &q, &s) == SL_OK, "%s", sl_error(ctx));
    uint64_t next = 0;
    uint32_t alive = 0;
    for (;;) {
        const sl_engine_event *ev;
        const sl_rows *rows;
        sl_engine_stats st;
        uint32_t n;
        fill(e, &q, &next, &alive);
        if (!alive) break;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
        for (uint32_t i = 0; i < n; i++) {
            if (ev[i].kind != SL_EV_DONE) continue;
            sl_engine_cancel(e, ev[i].seq);
            alive--;
        }
        T_NEED(sl_schedule_next(s, &rows), "case %d: the schedule ended early", number);
        sl_schedule_stats now = sl_schedule_get_stats(s);
        sl_engine_get_stats(e, &st);
        T_NEED(now.passes == st.passes && now.preemptions == st.preemptions
                   && now.recomputed_rows == st.recomputed_tokens
                   && now.drawn_tokens == st.drawn_tokens
                   && now.prompt_tokens == st.prompt_tokens,
               "case %d, pass %llu: %llu preemptions and %llu rows again, %llu and %llu", number,
               (unsigned long long)st.passes, (unsigned long long)st.preemptions,
               (unsigned long long)st.recomputed_tokens, (unsigned long long)now.preemptions,
               (unsigned long long)now.recomputed_rows);
    }
    const sl_rows *rows;
    T_CHECK(!sl_schedule_next(s, &rows), "case %d: the schedule goes on", number);
    sl_schedule_destroy(&s);
    sl_engine_close(&e);
}

static void against_engine(void)
{
    sl_model *m;
    uint32_t n = getenv("SLUICE_SANITIZED") ? 4 : 12;
    T_NEED(sl_model_open(ctx, "models/sluice-bard-q8_0.gguf", &m) == SL_OK, "%s", sl_error(ctx));
    for (uint32_t i = 0; i < n; i++) same_as_engine(m, (int)i);
    sl_model_close(&m);
}

/* ---- by hand ---- */

static void near(double a, double b, double tol, const char *what)
{
    T_CHECK(fabs(a - b) <= tol * fabs(b), "%s: %.9g, expected %.9g", what, a, b);
}

static sl_queue_forecast simulate(const sl_machine *m, const sl_shape *shape, const sl_plan *plan,
                                  const sl_miss_model *miss, const sl_workload *q, uint32_t most)
{
    sl_forecast_in in = { .machine = m, .shape = shape, .plan = plan, .miss = miss };
    sl_queue_forecast f;
    T_NEED(sl_queue_simulate(ctx, &in, q, most, &f) == SL_OK, "%s", sl_error(ctx));
    return f;
}

static void by_hand(void)
{
    sl_machine m = t_simple_machine();
    sl_shape shape = { .n_layer = 1, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                       .head = { SL_Q8_0, 1000000 }, .head_bytes = 1000000,
                       .layers = &t_simple_layer };
    sl_plan plan = { .weights = SL_WEIGHTS_RESIDENT, .n_dense_layers = 1, .n_ctx = 100, .n_seq = 2,
                     .max_rows = 8, .max_logits = 8, .n_threads = 1, .kv_type = SL_F16,
                     .n_kv_blocks = 8, .kv_block_rows = 32, .n_classes = 1,
                     .cls = { { 6100000, 4, 4 } } };
    sl_miss_model miss = sl_miss_default(4, 2);
    miss.n_distinct = 1;
    miss.distinct[0] = (sl_distinct_point){ 8, 1 };     /* 8 rows use all experts */
    /* Rows 4 + 4, 2, 2, then the third request alone: 4, 1, 1. A pass has 7 stages of 1 ms, a row
     * takes 4.001 ms, the head 1 ms for each token. */
    sl_lens_length l = { 4, 3, 1 };
    sl_workload q = { &l, 1, 3 };
    sl_queue_forecast f = simulate(&m, &shape, &plan, &miss, &q, 100);
    near(f.seconds, 1e-3 * (6 * 7 + 18 * 4.001 + 9), 2e-3, "three requests in RAM");
    near(f.tok_per_s, 21 / f.seconds, 1e-9, "tokens/s");
    near(f.gen_tok_per_s, 9 / f.seconds, 1e-9, "drawn tokens/s");
    near(f.bound_tok_per_s, f.tok_per_s, 1e-3, "nothing waits");
    near(f.pass_rows, 18.0 / 6, 1e-9, "rows");
    near(f.sequences, 9.0 / 6, 1e-9, "sequences");
    T_CHECK(f.passes == 6 && f.preemptions == 0 && f.wait_s < 1e-3 * f.seconds && f.disk_bytes == 0,
            "%g passes", f.passes);
    /* The middle: the passes behind the end of the first 3/4 of a request (none) to that of 3 of
     * 3, all six. */
    near(f.full_tok_per_s, f.tok_per_s, 1e-9, "all is the middle");

    /* Two such layers, 6 slots for their 8 experts, of which reads go through 4: three prompts of 8
     * rows in turn read 8 experts, then 6 and 6. */
    const sl_layer_shape layers[2] = { t_simple_layer, t_simple_layer };
    shape.n_layer = plan.n_dense_layers = 2;
    shape.layers = layers;
    plan.weights = SL_WEIGHTS_STREAMED;
    plan.n_seq = 1;
    plan.cls[0] = (sl_slot_class){ 6100000, 6, 8 };
    plan.read_depth = 1;
    plan.stored_rows = 4;
    l = (sl_lens_length){ 8, 1, 1 };
    f = simulate(&m, &shape, &plan, &miss, &q, 100);
    near(f.disk_bytes, 120e6, 1e-9, "bytes");
    T_CHECK(f.passes == 3 && f.tok_per_s < f.bound_tok_per_s, "%g passes", f.passes);
    near(f.bound_tok_per_s, 27 / (3 * 1e-3 * (12 + 2 * 8 * 4.001 + 1)), 1e-3, "computing alone");
    T_CHECK(f.wait_s > 0 && f.wait_s < 120e-3, "waits %g s", f.wait_s);
}

/* ---- any machine, model and plan ---- */

static void check_one(const t_case *c, const sl_workload *q, int number)
{
    sl_queue_forecast f = simulate(&c->m, &c->shape, &c->plan, &c->miss, q, UINT32_MAX);
    sl_queue_forecast g = simulate(&c->m, &c->shape, &c->plan, &c->miss, q, 60);
    T_CHECK(isfinite(f.seconds) && f.seconds > 0 && f.tok_per_s <= f.bound_tok_per_s * (1 + 1e-9),
            "case %d: %g tok/s, %g at most", number, f.tok_per_s, f.bound_tok_per_s);
    T_CHECK(f.wait_s >= 0 && f.wait_s <= f.seconds && f.gen_tok_per_s <= f.tok_per_s,
            "case %d: waits %g of %g s", number, f.wait_s, f.seconds);
    T_CHECK(fabs(g.seconds / f.seconds - 1) < 0.06 && g.passes == f.passes,
            "case %d: %g s by 60 of %g passes, %g by all", number, g.seconds, f.passes, f.seconds);
    T_CHECK(f.pass_rows <= c->plan.max_rows && f.sequences <= c->plan.n_seq, "case %d: %g rows",
            number, f.pass_rows);
    for (int r = 0; r < SL_N_RESOURCES; r++)
        T_CHECK(f.busy_s[r] <= f.seconds * 1.001 && f.busy_s[r] <= f.busy_s[f.binding],
                "case %d: resource %d busy %g of %g s", number, r, f.busy_s[r], f.seconds);

    static t_case d;
    d = *c;
    for (uint32_t k = 0; k < d.m.disk.n_curves; k++)
        for (uint32_t j = 0; j < d.m.disk.curve[k].n; j++) d.m.disk.curve[k].at[j].bytes_s *= 2;
    d.m.disk.latency_s /= 2;
    g = simulate(&d.m, &d.shape, &d.plan, &d.miss, q, UINT32_MAX);
    T_CHECK(g.seconds <= f.seconds * 1.01, "case %d, twice the disk: %g -> %g s", number,
            f.seconds, g.seconds);
    sl_workload more = *q;
    more.n_requests *= 3;
    g = simulate(&c->m, &c->shape, &c->plan, &c->miss, &more, UINT32_MAX);
    T_CHECK(g.seconds > f.seconds, "case %d, three times as many: %g -> %g s", number, f.seconds,
            g.seconds);
}

static void properties(void)
{
    static t_case c;
    for (int i = 0; i < 24; i++) {
        sl_lens_length lengths[8];
        sl_workload q = { lengths, 1 + t_below(8), 1 + t_below(100) };
        t_make_case(ctx, &c, 1 + t_below(24));
        for (uint32_t k = 0; k < q.n_lengths; k++)
            lengths[k] = (sl_lens_length){ 1 + t_below(300), 1 + t_below(60), 1 };
        check_one(&c, &q, i);
    }
}

/* Ages mixed and as many sequences as stage 1 finds best: that is what it bounds. */
static void below_stage_1(void)
{
    static t_case c;
    for (int i = 0; i < 24; i++) {
        sl_lens_length l = { 20 + t_below(200), 10 + t_below(60), 1 };
        t_make_case(ctx, &c, 1 + t_below(64));
        sl_workload q = { &l, 1, 20 * c.plan.n_seq };
        sl_lens_box box = { .machine = &c.m, .shape = &c.shape, .miss = &c.miss,
                            .threads = c.plan.n_threads, .ram_bytes = (double)c.plan.ram_bytes,
                            .kv_type = SL_F16, .kv_block = SL_KV_BLOCK_ROWS };
        sl_queue_forecast f = simulate(&c.m, &c.shape, &c.plan, &c.miss, &q, 200);
        sl_lens_bound b = sl_lens_batch(&box, &l, 1, 0);
        T_CHECK(f.full_tok_per_s <= b.tok_per_s * (1 + 1e-9), "case %d: %g tok/s, stage 1 %g", i,
                f.full_tok_per_s, b.tok_per_s);
    }
}

/* ---- the planner ---- */

static sl_queue_choice choose(const t_case *c, const sl_planner_params *p, const sl_workload *q)
{
    sl_queue_choice ret;
    T_NEED(sl_planner_queue(ctx, &c->m, &c->shape, &c->miss, p, q, &ret) == SL_OK, "%s",
           sl_error(ctx));
    return ret;
}

static void choices(void)
{
    static t_case c;
    for (int i = 0; i < 8; i++) {
        sl_lens_length l = { 20 + t_below(200), 1 + t_below(60), 1 };
        sl_workload q = { &l, 1, 1 + t_below(i % 3 ? 300 : 4) };
        t_make_case(ctx, &c, 1);
        sl_planner_params p = { .base = sl_plan_defaults() };
        p.base.n_ctx = 512;
        p.base.n_seq = 0;
        p.base.ram_hard = true;
        p.base.ram_bytes = c.plan.ram_bytes;
        sl_queue_choice a = choose(&c, &p, &q);
        double best = INFINITY;
        for (uint32_t k = 0; k < a.n_tries; k++) best = fmin(best, a.tries[k].seconds);
        T_CHECK(a.plan.need_bytes <= p.base.ram_bytes, "case %d: beyond the budget", i);
        T_CHECK(a.plan.n_seq <= q.n_requests, "case %d: %u at once of %llu", i, a.plan.n_seq,
                (unsigned long long)q.n_requests);
        T_CHECK(a.forecast.tok_per_s <= a.bound.tok_per_s * (1 + 1e-9),
                "case %d: %g tok/s, at most %g", i, a.forecast.tok_per_s, a.bound.tok_per_s);
        T_CHECK(a.forecast.seconds <= best * 1.1, "case %d: %g s, the best try %g", i,
                a.forecast.seconds, best);
        /* what the caller decided stays, and gains nothing */
        p.base.n_seq = a.plan.n_seq > 1 ? a.plan.n_seq / 2 : 1;
        p.base.max_rows = 64;
        p.fix_rows = true;
        sl_queue_choice b = choose(&c, &p, &q);
        T_CHECK(b.plan.n_seq == p.base.n_seq && b.plan.max_rows <= SL_MAX(64u, b.plan.n_seq),
                "case %d: %u at once, %u rows", i, b.plan.n_seq, b.plan.max_rows);
        T_CHECK(b.forecast.seconds >= a.forecast.seconds * 0.93, "case %d: %g s, chosen %g", i,
                b.forecast.seconds, a.forecast.seconds);
        p.base.n_seq = 0;
        p.fix_rows = false;
        p.base.ram_bytes *= 3;
        b = choose(&c, &p, &q);
        T_CHECK(b.forecast.seconds <= a.forecast.seconds * 1.07, "case %d, more RAM: %g, was %g s",
                i, b.forecast.seconds, a.forecast.seconds);
    }
    t_make_case(ctx, &c, 1);
    sl_lens_length l = { 100, 10, 1 };
    sl_workload q = { &l, 1, 5 };
    sl_planner_params p = { .base = sl_plan_defaults() };
    sl_queue_choice a;
    p.base.ram_bytes = 1000;
    p.base.n_ctx = 512;
    T_CHECK(sl_planner_queue(ctx, &c.m, &c.shape, &c.miss, &p, &q, &a) == SL_E_NOMEM
                && strstr(sl_error(ctx), "floor"), "a budget below the floor: %s", sl_error(ctx));
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    by_hand();
    properties();
    below_stage_1();
    choices();
    against_engine();
    sl_ctx_destroy(&ctx);
    return t_end();
}
