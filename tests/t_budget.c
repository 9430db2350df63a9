/* tests/t_budget.c - the promise of sameness with weights that are streamed: logits have the bits
 * of the run in RAM for every budget from the floor up, policy, lookahead, depth of the disk's
 * queue, threads, chunks and sequences at once; the memory accounts stay within the budget, and
 * steps allocate nothing. Models: tiny ones of random weights, a dense one, and the bundled one. */
#include "offload/sl_ecache.h"
#include "tests/t_alloc.h"
#include "tests/t_run.h"
#include "tests/t_tiny.h"

enum {
    LONG = 100, TAIL = 8,       /* a prompt in chunks, then positions whose logits are compared */
    CROWD = 5, SHORT = 12,      /* sequences at once, and their length at least */
    N_VOCAB = 900,
    MIB = 1 << 20,
    PROCESS = 14 * MIB          /* tables, and what small blocks are rounded up to */
};

typedef struct how {
    uint64_t budget;            /* 0: none */
    uint32_t threads, chunk, depth, n_seq;
    sl_policy policy;
    bool no_ahead;
} how;

static const how in_ram = { .threads = 1, .chunk = 512, .n_seq = 1 };
static char path[64];
static const char *model;
static bool by_row;             /* a plan left the embedding on disk */
static uint32_t n_vocab;

static sl_plan_params params_of(const how *h)
{
    sl_plan_params p = sl_plan_defaults();
    p.n_ctx = LONG + TAIL;
    p.max_rows = SL_MIN(h->chunk, 64);  /* of few rows the embedding is read as they come */
    p.n_seq = h->n_seq;
    p.n_threads = h->threads;
    p.policy = h->policy;
    p.no_ahead = h->no_ahead;
    p.read_depth = h->depth;
    p.ram_bytes = h->budget;
    p.ram_hard = true;
    p.process_bytes = PROCESS;
    return p;
}

struct progress { uint64_t done, all; uint32_t calls; };

static void on_progress(void *user, uint64_t done, uint64_t all)
{
    struct progress *p = user;
    T_CHECK(done >= p->done && done <= all && (!p->calls || all == p->all),
            "%s: progress %llu of %llu", model, (unsigned long long)done, (unsigned long long)all);
    *p = (struct progress){ done, all, p->calls + 1 };
}

static t_run start(const how *h)
{
    t_run r = t_run_model(path);
    struct progress seen = { 0 };
    sl_plan_params p = params_of(h);
    sl_model_set_progress(r.m, on_progress, &seen);
    t_run_engine(&r, &p);
    T_CHECK(seen.calls && seen.done == seen.all && seen.all, "%s: %llu of %llu read in %u steps",
            model, (unsigned long long)seen.done, (unsigned long long)seen.all, seen.calls);
    return r;
}

static void end(t_run *r, const how *h)
{
    sl_mem_report mem;
    sl_mem_get(r->ctx, &mem);
    T_CHECK(!h->budget || mem.total_peak <= h->budget, "%s: %llu bytes of %llu", model,
            (unsigned long long)mem.total_peak, (unsigned long long)h->budget);
    T_CHECK(!h->budget || !mem.bytes[SL_ACC_MAPPED], "%s: mapped inside a budget", model);
    t_run_close(r);
}

/* t_run_drain, which allocates nothing. */
static void drain(t_run *r, sl_seq first, const uint32_t *at, uint32_t from, float *ret)
{
    sl_mem_report a, b;
    sl_mem_get(r->ctx, &a);
    t_alloc_reset(0);
    t_run_drain(r, first, at, from, ret);
    sl_mem_get(r->ctx, &b);
    T_CHECK(a.n_allocs == b.n_allocs && atomic_load(&t_alloc_calls) == 0, "%s: steps allocate",
            model);
}

static void compare(const char *what, const how *h, const t_run *r, const float *want,
                    const float *got, uint32_t rows)
{
    uint32_t bad = 0, n_layer = sl_model_shape(r->m)->n_layer;
    for (uint32_t i = 0; i < rows; i++)
        bad += memcmp(want + (size_t)i * n_vocab, got + (size_t)i * n_vocab,
                      n_vocab * sizeof *want) != 0;
    T_CHECK(!bad, "%s, %s: %llu bytes (slots %u and %u, %u of %u layers stay), %s%s, depth %u, %u "
            "threads, chunks of %u, %u sequences: %u of %u rows differ", model, what,
            (unsigned long long)h->budget, r->plan.cls[0].n_slots, r->plan.cls[1].n_slots,
            r->plan.n_dense_layers, n_layer, sl_policy_name(h->policy),
            h->no_ahead ? "" : ", ahead", h->depth, h->threads, h->chunk, h->n_seq, bad, rows);
}

/* A prompt in chunks, then positions with logits, in the same chunks; where there is a `want`, it
 * is what they should be. Returns what the plan was. */
static sl_plan prompt(const how *h, const int32_t *ids, const float *want, float *ret)
{
    const uint32_t at = 0;
    t_run r = start(h);
    sl_seq seq = t_run_submit(&r, 0, ids, LONG, h->chunk, false);
    drain(&r, seq, &at, 0, NULL);
    t_run_submit(&r, seq, ids + LONG, TAIL, h->chunk, true);
    drain(&r, seq, &at, LONG, ret);
    if (want) compare("a prompt", h, &r, want, ret, TAIL);
    sl_plan plan = r.plan;
    end(&r, h);
    return plan;
}

/* The least budget that a plan takes. */
static uint64_t floor_of(const how *h)
{
    t_run r = t_run_model(path);
    uint64_t lo = 0, hi = (uint64_t)1 << 30;
    while (hi - lo > 1) {
        how x = *h;
        x.budget = (lo + hi) / 2;
        sl_plan_params p = params_of(&x);
        if (sl_plan_make(r.ctx, sl_model_shape(r.m), &p, &r.plan) == SL_OK) hi = x.budget;
        else lo = x.budget;
    }
    T_CHECK(strstr(sl_error(r.ctx), "floor"), "%s", sl_error(r.ctx));
    t_run_close(&r);
    return hi;
}

static void check_prompts(const int32_t *ids, float *want, float *got)
{
    static const uint32_t chunks[] = { 512, 1, 64, 7 }, depths[] = { 64, 2, 1 };
    uint32_t n_budgets = getenv("SLUICE_SANITIZED") ? 5 : 10;
    uint64_t least = floor_of(&in_ram);
    uint64_t all = prompt(&in_ram, ids, NULL, want).need_bytes;
    bool places[3] = { false }, sections = false;
    for (uint32_t i = 0; i < n_budgets; i++) {
        /* closer together near the floor, where layers' dense weights come and go */
        double x = (double)i / (n_budgets - 1);
        how h = { .budget = least + (uint64_t)((double)(all - least) * x * x), .n_seq = 1,
                  .threads = 1 + i % 2, .chunk = chunks[i % 4], .depth = depths[i % 3],
                  .policy = (sl_policy)(i % SL_POLICY_STATIC), .no_ahead = i % 4 >= 2 };
        sl_plan plan = prompt(&h, ids, want, got);
        places[plan.weights] = true;
        sections |= plan.section_bytes > 0;
        by_row |= plan.embed_rows_bytes > 0;
    }
    T_CHECK(places[SL_WEIGHTS_STREAMED] && places[SL_WEIGHTS_RESIDENT] && sections,
            "%s: streamed %d, resident %d, sections %d", model, places[SL_WEIGHTS_STREAMED],
            places[SL_WEIGHTS_RESIDENT], sections);
    printf("%s: budgets of %.2f to %.2f MiB\n", model, (double)least / MIB, (double)all / MIB);
}

/* Sequences of different lengths at once, in few rows a pass and in many. */
static void check_crowds(const int32_t *ids, float *want, float *got)
{
    static const uint32_t chunks[] = { 1, 7, 512 };
    uint32_t at[CROWD + 1] = { 0 };
    for (uint32_t i = 0; i < CROWD; i++) {
        const uint32_t zero = 0;
        t_run r = start(&in_ram);
        sl_seq seq = t_run_submit(&r, 0, ids + i, SHORT + i % 3, 512, true);
        drain(&r, seq, &zero, 0, want + at[i] * (size_t)n_vocab);
        end(&r, &in_ram);
        at[i + 1] = at[i] + SHORT + i % 3;
    }
    for (uint32_t i = 0; i < SL_LEN(chunks); i++) {
        how h = { .threads = 2, .chunk = chunks[i], .n_seq = CROWD, .depth = 64 };
        h.budget = floor_of(&h) + i * MIB;
        t_run r = start(&h);
        sl_seq first = 0;
        memset(got, 0, at[CROWD] * (size_t)n_vocab * sizeof *got);
        for (uint32_t k = 0; k < CROWD; k++) {
            sl_seq seq = t_run_submit(&r, 0, ids + k, SHORT + k % 3, h.chunk, true);
            if (!k) first = seq;
            T_NEED(seq == first + k, "sequence %u is named %u", k, seq);
        }
        drain(&r, first, at, 0, got);
        compare("a crowd", &h, &r, want, got, at[CROWD]);
        end(&r, &h);
    }
}

static void check_model(const char *name)
{
    int32_t ids[LONG + TAIL];
    t_run r = t_run_model(path);
    model = name;
    n_vocab = sl_model_shape(r.m)->n_vocab;
    t_run_close(&r);
    for (uint32_t i = 0; i < LONG + TAIL; i++) ids[i] = (int32_t)t_below(n_vocab);
    size_t floats = SL_MAX(TAIL, CROWD * (SHORT + 3)) * (size_t)n_vocab;
    float *want = malloc(floats * sizeof *want), *got = malloc(floats * sizeof *got);
    T_NEED(want && got, "memory");
    check_prompts(ids, want, got);
    check_crowds(ids, want, got);
    free(want);
    free(got);
}

int main(void)
{
    static const struct { const char *like, *quant; } models[] = {
        { "qwen3-7b-a1b", "Q4_K_M" }, { "deepseek-v2-lite", "Q8_0" }, { "gpt-oss-20b", "MXFP4" },
    };
    alarm(280);
    t_begin();
    char dir[] = "/tmp/t_budget_XXXXXX";
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    T_NEED(mkdtemp(dir), "a folder %s", dir);
    uint32_t n_models = getenv("SLUICE_SANITIZED") ? 1 : SL_LEN(models);
    for (uint32_t i = 0; i < n_models; i++) {
        sl_preset p;
        sl_synth_params sp = { .preset = t_tiny(models[i].like, N_VOCAB, &p),
                               .quant = models[i].quant, .seed = 3 };
        sl_synth_report report;
        p.n_layer += 2;     /* two sections hold two layers */
        p.n_expert = 16;
        snprintf(path, sizeof path, "%s/m.gguf", dir);
        T_NEED(sl_synth_write(ctx, &sp, path, &report) == SL_OK, "%s", sl_error(ctx));
        check_model(p.name);
        remove(path);
    }
    rmdir(dir);
    sl_ctx_destroy(&ctx);
    snprintf(path, sizeof path, "tests/golden/arch/llama.gguf");
    check_model("llama, dense");
    snprintf(path, sizeof path, "models/sluice-bard-q8_0.gguf");
    check_model("bundled");
    T_CHECK(by_row, "no plan left the embedding on disk");
    return t_end();
}
