/* tests/t_batch.c - many requests at once in less room than they want: prompts that begin alike,
 * random lengths, cancellations at random moments, sequences that give their keys and values back.
 * Every one of them draws the tokens that it draws alone. The blocks' invariants hold after every
 * step.
 * With a number of seconds it is a soak instead: the same for so long, half of it with weights in
 * RAM and half with weights from disk; memory stays flat, and no request waits for ever. */
#include "runtime/engine.h"

#include <malloc.h>
#include <time.h>

#include "tests/t.h"

enum {
    N_REQUESTS = 1000, N_SEQ = 12, N_CTX = 256,
    BEGINNINGS = 5, MAX_PROMPT = 150, MAX_NEW = 40
};

typedef struct job {
    sl_request r;
    int32_t tokens[MAX_PROMPT];
    int32_t drawn[MAX_NEW];     /* alone */
    uint32_t n_drawn;
} job;

/* One that runs among others. */
typedef struct running {
    const job *job;             /* NULL: the place is free */
    sl_seq id;
    uint32_t n_drawn;
    uint64_t began;             /* pass */
} running;

static sl_ctx *ctx;
static sl_model *m;
static job jobs[N_REQUESTS];
static uint32_t n_jobs = N_REQUESTS;

static sl_plan_params params(uint32_t n_seq, uint64_t kv_positions, bool share)
{
    sl_plan_params p = sl_plan_defaults();
    p.n_ctx = N_CTX;
    p.n_seq = n_seq;
    p.max_rows = 96;
    p.n_threads = share ? 2 : 1;
    p.kv_positions = kv_positions;
    p.share_prefixes = share;
    return p;
}

static sl_engine *open_engine(uint32_t n_seq, uint64_t kv_positions, bool share)
{
    sl_plan_params p = params(n_seq, kv_positions, share);
    sl_plan plan;
    sl_engine *e = NULL;
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), &p, &plan) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s", sl_error(ctx));
    return e;
}

/* A beginning that some share, and what is its own. */
static void make_jobs(void)
{
    uint32_t n_vocab = sl_model_shape(m)->n_vocab;
    int32_t beginnings[BEGINNINGS][MAX_PROMPT];
    for (uint32_t b = 0; b < BEGINNINGS; b++)
        for (uint32_t i = 0; i < MAX_PROMPT; i++) beginnings[b][i] = (int32_t)t_below(n_vocab);
    for (uint32_t i = 0; i < n_jobs; i++) {
        job *j = &jobs[i];
        uint32_t n = 1 + t_below(MAX_PROMPT), own = t_below(n + 1), b = t_below(BEGINNINGS);
        for (uint32_t k = 0; k < n; k++)
            j->tokens[k] = k < n - own ? beginnings[b][k] : (int32_t)t_below(n_vocab);
        j->r = (sl_request){ .tokens = j->tokens, .n_tokens = n, .n_predict = 1 + t_below(MAX_NEW),
                             .max_chunk = t_below(4) ? 0 : 1 + t_below(40),
                             .ignore_eog = t_below(2), .sampler = sl_sampler_defaults() };
        j->r.sampler.temp = 1;
        j->r.sampler.top_k = 0;
        j->r.sampler.top_p = 1;
        j->r.sampler.min_p = 0;
        j->r.sampler.seed = i;
    }
}

static void run_alone(void)
{
    sl_engine *e = open_engine(1, 0, false);
    for (uint32_t i = 0; i < n_jobs; i++) {
        sl_seq id;
        T_NEED(sl_engine_submit(e, &jobs[i].r, &id) == SL_OK, "%s", sl_error(ctx));
        while (sl_engine_busy(e)) {
            const sl_engine_event *ev;
            uint32_t n;
            T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
            for (uint32_t k = 0; k < n; k++)
                if (ev[k].kind == SL_EV_TOKEN) jobs[i].drawn[jobs[i].n_drawn++] = ev[k].token;
        }
        sl_engine_cancel(e, id);
    }
    sl_engine_close(&e);
}

static running *find(running *r, sl_seq id)
{
    for (uint32_t i = 0; i < N_SEQ; i++)
        if (r[i].job && r[i].id == id) return &r[i];
    T_NEED(false, "an event of sequence %u, which is not there", id);
    return NULL;
}

/* The end of a sequence, done or not; what was its own goes to sum. */
static void leave(sl_engine *e, sl_seq id, sl_engine_stats *sum)
{
    sl_request_stats s;
    sl_engine_request_stats(e, id, &s);
    sum->drawn_tokens += s.drawn_tokens;
    sum->shared_tokens += s.shared_tokens;
    sum->preemptions += s.preemptions;
    sl_engine_cancel(e, id);
}

static void take(const char *name, sl_engine *e, running *r, const sl_engine_event *ev,
                 sl_engine_stats *sum, uint32_t *done)
{
    running *x = find(r, ev->seq);
    const job *j = x->job;
    if (ev->kind == SL_EV_TOKEN) {
        T_CHECK(x->n_drawn < j->n_drawn && j->drawn[x->n_drawn] == ev->token,
                "%s: request %d: token %u is %d", name, (int)(j - jobs), x->n_drawn, ev->token);
        x->n_drawn++;
        return;
    }
    T_CHECK(ev->kind == SL_EV_DONE && !ev->error, "%s: %s", name, ev->error ? ev->error : "logits");
    T_CHECK(x->n_drawn == j->n_drawn, "%s: request %d ends after %u tokens, alone after %u", name,
            (int)(j - jobs), x->n_drawn, j->n_drawn);
    leave(e, x->id, sum);
    x->job = NULL;
    ++*done;
}

/* Cancels about one in eight of those that run, sooner or later; returns its number or -1. */
static int maybe_cancel(sl_engine *e, running *r, sl_engine_stats *sum)
{
    if (!r->job || t_below(400)) return -1;
    int number = (int)(r->job - jobs);
    leave(e, r->id, sum);
    r->job = NULL;
    return number;
}

/* All requests, in any order; about one in eight of those that run is cancelled and comes again. */
static sl_engine_stats crowd(const char *name, uint64_t kv_positions, bool share)
{
    sl_engine *e = open_engine(N_SEQ, kv_positions, share);
    running r[N_SEQ] = { { 0 } };
    sl_engine_stats sum = { .passes = 0 };
    uint32_t next = 0, done = 0, cancelled = 0, again[N_REQUESTS], n_again = 0;
    while (done < n_jobs) {
        for (uint32_t i = 0; i < N_SEQ; i++) {
            int gone = maybe_cancel(e, &r[i], &sum);
            if (gone >= 0) again[n_again++] = (uint32_t)gone;
            cancelled += gone >= 0;
            if (r[i].job || (next == n_jobs && !n_again) || !t_below(3)) continue;
            r[i] = (running){ .job = &jobs[n_again ? again[--n_again] : next++] };
            T_NEED(sl_engine_submit(e, &r[i].job->r, &r[i].id) == SL_OK, "%s", sl_error(ctx));
        }
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
        kv_check(&e->kv);
        for (uint32_t k = 0; k < n; k++) take(name, e, r, &ev[k], &sum, &done);
    }
    sl_engine_stats st;
    sl_engine_get_stats(e, &st);
    T_CHECK(sum.drawn_tokens == st.drawn_tokens && sum.shared_tokens == st.shared_tokens
            && sum.preemptions == st.preemptions, "%s: requests' own statistics add up to others",
            name);
    T_CHECK(e->kv.n_free == e->kv.n_blocks, "%s: %u of %u blocks are free", name, e->kv.n_free,
            e->kv.n_blocks);
    printf("%s: %u requests, %u cancelled, %llu passes, %llu preemptions, %llu tokens shared, "
           "%llu computed again\n", name, n_jobs, cancelled, (unsigned long long)st.passes,
           (unsigned long long)st.preemptions, (unsigned long long)st.shared_tokens,
           (unsigned long long)st.recomputed_tokens);
    sl_engine_close(&e);
    return st;
}

/* Equal prompts at once: the first computes, the others wait for it. */
static void check_common_beginning(void)
{
    sl_engine *e = open_engine(N_SEQ, 0, true);
    int32_t tokens[MAX_PROMPT];
    for (uint32_t i = 0; i < MAX_PROMPT; i++) tokens[i] = (int32_t)(i % 200);
    for (uint32_t i = 0; i < N_SEQ; i++) {
        sl_request r = { .tokens = tokens, .n_tokens = MAX_PROMPT };
        sl_seq id;
        T_NEED(sl_engine_submit(e, &r, &id) == SL_OK, "%s", sl_error(ctx));
    }
    while (sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
        kv_check(&e->kv);
    }
    sl_engine_stats st;
    sl_engine_get_stats(e, &st);
    uint32_t common = MAX_PROMPT / 32 * 32, own = MAX_PROMPT - common;
    T_CHECK(st.prompt_tokens == common + N_SEQ * own, "%llu tokens computed",
            (unsigned long long)st.prompt_tokens);
    T_CHECK(st.shared_tokens == (N_SEQ - 1) * common, "%llu shared",
            (unsigned long long)st.shared_tokens);
    T_CHECK(e->kv.n_blocks - e->kv.n_free == common / 32 + N_SEQ, "%u blocks in use",
            e->kv.n_blocks - e->kv.n_free);
    sl_engine_close(&e);
}

/* Idle sequences keep what they have, so one that needs more fails in words. */
static void check_idle_hold_all(void)
{
    sl_engine *e = open_engine(3, N_CTX, false);
    const sl_engine_event *ev;
    uint32_t n;
    sl_seq ids[2];
    for (uint32_t i = 0; i < 2; i++) {
        sl_request r = { .tokens = jobs[i].tokens, .n_tokens = 1 };
        r.tokens = (int32_t[N_CTX]){ 1, 2, 3 };
        r.n_tokens = i ? 40 : N_CTX - 32;
        T_NEED(sl_engine_submit(e, &r, &ids[i]) == SL_OK, "%s", sl_error(ctx));
        const char *error = NULL;
        while (sl_engine_busy(e)) {
            T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
            if (n && ev[n - 1].kind == SL_EV_DONE) error = ev[n - 1].error;
            T_CHECK((error != NULL) == (i == 1 && n), "%s", error ? error : "no error");
        }
        if (error) T_CHECK(strstr(error, "idle sequences hold"), "%s", error);
    }
    sl_engine_cancel(e, ids[0]);
    sl_engine_cancel(e, ids[1]);
    kv_check(&e->kv);
    T_CHECK(e->kv.n_free == e->kv.n_blocks, "%u blocks are free", e->kv.n_free);
    sl_engine_close(&e);
}

/* Two that go on and together want more than there is: the younger gives back what it has. */
static void check_two_go_on(void)
{
    sl_engine *e = open_engine(2, N_CTX, false);
    int32_t tokens[N_CTX] = { 0 };
    sl_seq ids[2] = { 0, 0 };
    uint32_t done = 0;
    for (uint32_t turn = 0; turn < 2; turn++) {
        for (uint32_t i = 0; i < 2; i++) {
            sl_request r = { .seq = ids[i], .tokens = tokens,
                             .n_tokens = turn ? 40 : i ? 3 * 32 : 5 * 32 };
            T_NEED(sl_engine_submit(e, &r, &ids[i]) == SL_OK, "%s", sl_error(ctx));
        }
        while (sl_engine_busy(e)) {
            const sl_engine_event *ev;
            uint32_t n;
            T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
            kv_check(&e->kv);
            for (uint32_t k = 0; k < n; k++) {
                T_CHECK(!ev[k].error, "turn %u: %s", turn, ev[k].error);
                done++;
                if (turn) sl_engine_cancel(e, ev[k].seq);
            }
        }
    }
    T_CHECK(done == 4, "%u turns done", done);
    sl_engine_close(&e);
}

/* ---- a soak ---- */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double resident_mib(void)
{
    unsigned long all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    T_NEED(f && fscanf(f, "%lu %lu", &all, &resident) == 2, "/proc/self/statm");
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
}

/* The least budget that a plan of streamed weights fits. */
static sl_engine *open_streamed(void)
{
    sl_plan_params p = params(N_SEQ, 2 * N_CTX, true);
    sl_plan plan;
    sl_engine *e = NULL;
    p.ram_hard = true;
    for (p.ram_bytes = 1 << 20;; p.ram_bytes += 1 << 18)
        if (sl_plan_make(ctx, sl_model_shape(m), &p, &plan) == SL_OK) break;
    T_NEED(plan.weights == SL_WEIGHTS_STREAMED, "a plan of %llu bytes streams nothing",
           (unsigned long long)p.ram_bytes);
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s", sl_error(ctx));
    return e;
}

/* The oldest of N_SEQ never waits, and each lasts so many passes at most. */
#define LONGEST ((uint64_t)N_SEQ * (MAX_PROMPT + MAX_NEW))

static void soak(const char *name, sl_engine *e, double seconds)
{
    running r[N_SEQ] = { { 0 } };
    double from = now_s(), now = from, settled = 0, slowest = 0;
    uint32_t done = 0, cancelled = 0;
    uint64_t longest = 0;
    sl_engine_stats sum = { .passes = 0 };
    size_t heap = 0;
    bool sanitized = getenv("SLUICE_SANITIZED") != NULL;
    while (now - from < seconds) {
        sl_engine_stats st;
        sl_engine_get_stats(e, &st);
        for (uint32_t i = 0; i < N_SEQ; i++) {
            cancelled += maybe_cancel(e, &r[i], &sum) >= 0;
            if (r[i].job) longest = SL_MAX(longest, st.passes - r[i].began);
            if (r[i].job || !t_below(3)) continue;
            r[i] = (running){ .job = &jobs[t_below(n_jobs)], .began = st.passes };
            T_NEED(sl_engine_submit(e, &r[i].job->r, &r[i].id) == SL_OK, "%s", sl_error(ctx));
        }
        const sl_engine_event *ev;
        uint32_t n;
        alarm(60);              /* a step that hangs ends the soak */
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
        for (uint32_t k = 0; k < n; k++) take(name, e, r, &ev[k], &sum, &done);
        double was = now;
        now = now_s();
        slowest = now - was > slowest ? now - was : slowest;
        if (st.passes % 64 == 0) kv_check(&e->kv);
        if (settled > 0 || now - from < 0.2 * seconds) continue;
        settled = resident_mib();
        heap = mallinfo2().uordblks;
    }
    double grown = resident_mib() - settled;
    size_t heap_now = mallinfo2().uordblks;
    sl_engine_stats st;
    sl_engine_get_stats(e, &st);
    printf("%s, %.0f s: %u requests, %u cancelled, %llu passes, %llu preemptions, %llu tokens "
           "shared; at most %llu passes each, %.2f s a pass; %.1f MiB resident, %+.2f since a fifth "
           "of the time\n", name, seconds, done, cancelled, (unsigned long long)st.passes,
           (unsigned long long)st.preemptions, (unsigned long long)st.shared_tokens,
           (unsigned long long)longest, slowest, settled, grown);
    T_CHECK(done && st.preemptions && st.shared_tokens, "%s: nothing was short or shared", name);
    T_CHECK(longest < LONGEST, "%s: a request waited for %llu passes", name,
            (unsigned long long)longest);
    /* sanitizers keep freed memory for a while, and know of leaks themselves */
    T_CHECK(sanitized || grown < 1, "%s: %.2f MiB more", name, grown);
    T_CHECK(sanitized || heap_now < heap + (256 << 10), "%s: %zu bytes of the heap, %zu before",
            name, heap_now, heap);
    for (uint32_t i = 0; i < N_SEQ; i++)
        if (r[i].job) sl_engine_cancel(e, r[i].id);
    kv_check(&e->kv);
    T_CHECK(e->kv.n_free == e->kv.n_blocks, "%s: %u of %u blocks are free", name, e->kv.n_free,
            e->kv.n_blocks);
    sl_engine_close(&e);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 0;
    alarm(280);
    t_begin();
    if (getenv("SLUICE_SANITIZED")) n_jobs = 100;
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(sl_model_open(ctx, "models/sluice-bard-q8_0.gguf", &m) == SL_OK, "%s", sl_error(ctx));
    make_jobs();
    run_alone();
    if (seconds > 0) {
        soak("in RAM", open_engine(N_SEQ, 2 * N_CTX, true), seconds / 2);
        soak("from disk", open_streamed(), seconds / 2);
        sl_model_close(&m);
        sl_ctx_destroy(&ctx);
        return t_end();
    }
    sl_engine_stats st = crowd("room for all", 0, false);
    T_CHECK(!st.preemptions && !st.shared_tokens && !st.recomputed_tokens, "nothing was short");
    st = crowd("room for 1, nothing shared", N_CTX, false);
    T_CHECK(st.preemptions && st.recomputed_tokens && !st.shared_tokens, "nothing was short");
    st = crowd("room for 2", 2 * N_CTX, true);
    T_CHECK(st.shared_tokens && (st.preemptions || n_jobs < N_REQUESTS),
            "nothing was short or shared");
    check_common_beginning();
    check_idle_hold_all();
    check_two_go_on();
    sl_model_close(&m);
    sl_ctx_destroy(&ctx);
    return t_end();
}
