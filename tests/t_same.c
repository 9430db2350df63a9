/* tests/t_same.c - with quantised weights, logits have the same bits whatever the threads, the
 * sequences in a pass, the rows of a chunk and the instructions. Models: random weights in tiny
 * shapes of the table. */
#include "kernels/sl_kernels.h"
#include "tests/t_run.h"
#include "tests/t_tiny.h"

enum {
    LONG = 512, TAIL = 12,      /* a prompt in chunks, then positions whose logits are compared */
    MANY = 33, SHORT = 24,      /* sequences at once, and their length at least */
    N_VOCAB = 900
};

typedef struct how {
    uint32_t threads, chunk;
    unsigned cpu;               /* SL_CPU_* */
} how;

static char path[64];

static t_run start(const how *h, uint32_t n_ctx, uint32_t n_seq)
{
    t_run r = t_run_model(path);
    sl_plan_params p = sl_plan_defaults();
    p.n_ctx = n_ctx;
    p.n_seq = n_seq;
    p.n_threads = h->threads;
    p.cpu_mask = h->cpu;
    t_run_engine(&r, &p);
    return r;
}

static void compare(const char *model, const char *what, const how *h, const float *want,
                    const float *got, uint32_t rows)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; i < rows; i++)
        bad += memcmp(want + (size_t)i * N_VOCAB, got + (size_t)i * N_VOCAB, N_VOCAB * sizeof *want)
               != 0;
    T_CHECK(!bad, "%s, %s: %u threads, chunks of %u, instructions %#x: %u of %u rows differ", model,
            what, h->threads, h->chunk, h->cpu, bad, rows);
}

/* A prompt in chunks, then positions with logits, in the same chunks. */
static void prompt(const how *h, const int32_t *ids, uint32_t n, float *ret)
{
    const uint32_t at = 0;
    t_run r = start(h, LONG + TAIL, 1);
    sl_seq seq = t_run_submit(&r, 0, ids, n, h->chunk, false);
    t_run_drain(&r, seq, &at, 0, NULL);
    t_run_submit(&r, seq, ids + n, TAIL, h->chunk, true);
    t_run_drain(&r, seq, &at, n, ret);
    t_run_close(&r);
}

static void check_prompts(const char *model, const int32_t *ids, float *want, float *got)
{
    static const uint32_t chunks[] = { 512, 64, 7, 1 };
    const how ref = { .threads = 1, .chunk = 512, .cpu = ~0u };
    prompt(&ref, ids, LONG, want);
    for (uint32_t i = 0; i < 2 * SL_LEN(chunks); i++) {
        how h = { .threads = 1 + i % 2, .chunk = chunks[i / 2], .cpu = ~0u };
        prompt(&h, ids, LONG, got);
        compare(model, "a prompt", &h, want, got, TAIL);
    }
}

static void check_instructions(const char *model, const int32_t *ids, float *want, float *got)
{
    static const char *const isa[] = { "c", "avx2", "avxvnni", "avx512", "avx512vnni" };
    const how ref = { .threads = 1, .chunk = 64, .cpu = ~0u };
    prompt(&ref, ids, 40, want);
    for (uint32_t i = 0; i < SL_LEN(isa); i++) {
        how h = ref;
        sl_ctx *ctx = sl_ctx_create(NULL, NULL);
        if (sl_cpu_from_isa(isa[i], sl_cpu_detect(), &h.cpu) == SL_OK) {
            prompt(&h, ids, 40, got);
            compare(model, isa[i], &h, want, got, TAIL);
        } else {
            printf("not on this CPU: %s\n", isa[i]);
        }
        sl_ctx_destroy(&ctx);
    }
}

/* n_seq sequences of different lengths, one row of each a pass, as in decoding; the first n_seq of
 * MANY. */
static void crowd(const how *h, const int32_t *ids, uint32_t n_seq, const uint32_t *at, float *ret)
{
    t_run r = start(h, SHORT + MANY, n_seq);
    sl_seq first = 0;
    for (uint32_t i = 0; i < n_seq; i++) {
        sl_seq seq = t_run_submit(&r, 0, ids + i, SHORT + i % 9, h->chunk, true);
        if (!i) first = seq;
        T_NEED(seq == first + i, "sequence %u is named %u", i, seq);
    }
    t_run_drain(&r, first, at, 0, ret);
    t_run_close(&r);
}

static void check_crowds(const char *model, const int32_t *ids, float *want, float *got)
{
    static const uint32_t sizes[] = { 8, MANY };
    const how ref = { .threads = 1, .chunk = SHORT + 9, .cpu = ~0u };
    uint32_t at[MANY + 1] = { 0 };
    for (uint32_t i = 0; i < MANY; i++) {
        const uint32_t zero = 0;
        at[i + 1] = at[i] + SHORT + i % 9;
        t_run r = start(&ref, SHORT + MANY, 1);
        sl_seq seq = t_run_submit(&r, 0, ids + i, SHORT + i % 9, ref.chunk, true);
        t_run_drain(&r, seq, &zero, 0, want + at[i] * (size_t)N_VOCAB);
        t_run_close(&r);
    }
    for (uint32_t i = 0; i < 2 * SL_LEN(sizes); i++) {
        how h = { .threads = 1 + i % 2, .chunk = 1, .cpu = ~0u };
        char what[32];
        snprintf(what, sizeof what, "%u sequences", sizes[i / 2]);
        memset(got, 0, at[MANY] * (size_t)N_VOCAB * sizeof *got);
        crowd(&h, ids, sizes[i / 2], at, got);
        compare(model, what, &h, want, got, at[sizes[i / 2]]);
    }
}

int main(void)
{
    static const struct { const char *like, *quant; } models[] = {
        { "qwen3-7b-a1b", "Q4_K_M" }, { "gpt-oss-20b", "MXFP4" }, { "deepseek-v2-lite", "Q8_0" },
    };
    char dir[] = "/tmp/t_same_XXXXXX";
    size_t floats = MANY * (SHORT + 9) * (size_t)N_VOCAB;
    float *want = malloc(floats * sizeof *want), *got = malloc(floats * sizeof *got);
    int32_t ids[LONG + TAIL];
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    t_begin();
    T_NEED(want && got && mkdtemp(dir), "a folder %s", dir);
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    for (uint32_t i = 0; i < LONG + TAIL; i++) ids[i] = (int32_t)t_below(N_VOCAB);
    /* all of them take a minute there */
    uint32_t n_models = getenv("SLUICE_SANITIZED") ? 1 : SL_LEN(models);
    for (uint32_t i = 0; i < n_models; i++) {
        sl_preset p;
        sl_synth_params sp = { .preset = t_tiny(models[i].like, N_VOCAB, &p),
                               .quant = models[i].quant,
                               .seed = 3 };
        sl_synth_report report;
        T_NEED(sl_synth_write(ctx, &sp, path, &report) == SL_OK, "%s", sl_error(ctx));
        check_prompts(p.name, ids, want, got);
        check_crowds(p.name, ids, want, got);
        check_instructions(p.name, ids, want, got);
    }
    remove(path);
    rmdir(dir);
    sl_ctx_destroy(&ctx);
    free(want);
    free(got);
    return t_end();
}
