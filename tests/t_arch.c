/* tests/t_arch.c - every architecture's forward pass against its reference implementation: tiny
 * models with random weights and their logits (tests/golden/README.md says how they were made), 48
 * prompt tokens and 16 more. Cut in four ways, and the four are bit-identical:
 *   whole     the prompt in one pass, then the continuation token by token
 *   sevens    in passes of 7 rows
 *   singles   token by token
 *   crowd     beside three other sequences
 * Passes with F32 keys and values; F16 ones must stay near, and be as identical among
 * themselves. */
#include "runtime/sluice.h"
#include "tests/t.h"

#include <dirent.h>
#include <math.h>

#define TOLERANCE 1e-4

typedef struct reference {
    uint32_t n_prompt, n_tokens, n_vocab;
    int32_t *tokens;
    float *logits;      /* [n_tokens][n_vocab] */
} reference;

static void quiet(void *user, sl_level level, const char *msg)
{
    (void)user;
    if (level <= SL_WARN) fprintf(stderr, "%s\n", msg);
}

static reference read_reference(const char *path)
{
    char magic[8];
    uint32_t head[4];
    reference r;
    FILE *f = fopen(path, "rb");
    T_NEED(f, "open %s", path);
    T_NEED(fread(magic, 8, 1, f) == 1 && !memcmp(magic, "SLREF001", 8), "magic of %s", path);
    T_NEED(fread(head, sizeof head, 1, f) == 1, "head of %s", path);
    r = (reference){ .n_prompt = head[0], .n_tokens = head[1], .n_vocab = head[2] };
    r.tokens = malloc(r.n_tokens * sizeof *r.tokens);
    r.logits = malloc(sizeof *r.logits * r.n_tokens * r.n_vocab);
    T_NEED(fread(r.tokens, sizeof *r.tokens, r.n_tokens, f) == r.n_tokens, "tokens of %s", path);
    T_NEED(fread(r.logits, sizeof *r.logits * r.n_vocab, r.n_tokens, f) == r.n_tokens,
           "logits of %s", path);
    fclose(f);
    return r;
}

/* Step until idle; logits of sequence `want` land in out by position. */
static void drain(sl_ctx *ctx, sl_engine *e, sl_seq want, uint32_t n_vocab, float *out)
{
    while (sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "step: %s", sl_error(ctx));
        for (uint32_t i = 0; i < n; i++)
            if (ev[i].kind == SL_EV_LOGITS && ev[i].seq == want)
                memcpy(out + (size_t)ev[i].pos * n_vocab, ev[i].logits, n_vocab * sizeof *out);
    }
}

static sl_seq submit(sl_ctx *ctx, sl_engine *e, sl_seq seq, const int32_t *tokens, uint32_t n,
                     uint32_t chunk)
{
    sl_request r = {
        .seq = seq, .tokens = tokens, .n_tokens = n, .want_logits = true, .max_chunk = chunk
    };
    sl_seq id = 0;
    T_NEED(sl_engine_submit(e, &r, &id) == SL_OK, "submit: %s", sl_error(ctx));
    return id;
}

typedef enum cut { WHOLE, SEVENS, SINGLES, CROWD, N_CUTS } cut;
static const char *const cut_names[N_CUTS] = { "whole", "sevens", "singles", "crowd" };

static void run_cut(sl_ctx *ctx, sl_engine *e, const reference *r, cut c, float *out)
{
    sl_seq others[3] = { 0 }, id = 0;
    if (c == CROWD)
        for (uint32_t i = 0; i < 3; i++)
            others[i] = submit(ctx, e, 0, r->tokens + 3 * i + 1, 20 + 7 * i, 5 + i);
    if (c == WHOLE || c == CROWD) {
        id = submit(ctx, e, 0, r->tokens, r->n_prompt, 0);
        drain(ctx, e, id, r->n_vocab, out);
        for (uint32_t t = r->n_prompt; t < r->n_tokens; t++) {
            submit(ctx, e, id, r->tokens + t, 1, 0);
            if (c == CROWD && t < r->n_prompt + 8)
                submit(ctx, e, others[t % 3], r->tokens + t % 5, 1 + t % 4, 0);
            drain(ctx, e, id, r->n_vocab, out);
        }
    } else {
        id = submit(ctx, e, 0, r->tokens, r->n_tokens, c == SEVENS ? 7 : 1);
        drain(ctx, e, id, r->n_vocab, out);
    }
    sl_engine_cancel(e, id);
    for (uint32_t i = 0; i < 3; i++) sl_engine_cancel(e, others[i]);
}

static double worst(const reference *r, const float *got, uint32_t *ret_pos)
{
    double ref = 0, diff = 0;
    for (size_t i = 0; i < (size_t)r->n_tokens * r->n_vocab; i++) {
        double d = fabs((double)got[i] - r->logits[i]);
        if (!(d <= diff)) diff = d, *ret_pos = (uint32_t)(i / r->n_vocab);
        ref = fmax(ref, fabs(r->logits[i]));
    }
    return diff / ref;
}

/* The largest error over the largest reference logit. */
static double check_model(const char *name, sl_model *m, sl_ctx *ctx, const reference *r,
                          sl_type kv, uint32_t threads)
{
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    sl_engine *e = NULL;
    size_t n = (size_t)r->n_tokens * r->n_vocab;
    float *first = malloc(n * sizeof *first), *other = malloc(n * sizeof *other);
    uint32_t at = 0;
    p.n_ctx = r->n_tokens;
    p.n_seq = 4;
    p.max_rows = 64;
    p.kv_type = kv;
    p.n_threads = threads;
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), &p, &plan) == SL_OK, "%s: %s", name, sl_error(ctx));
    plan.max_logits = plan.max_rows;    /* so that a prompt is one pass with all its logits */
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s: %s", name, sl_error(ctx));
    for (cut c = 0; c < N_CUTS; c++) {
        float *out = c ? other : first;
        for (size_t i = 0; i < n; i++) out[i] = NAN;
        run_cut(ctx, e, r, c, out);
        T_CHECK(!c || !memcmp(first, other, n * sizeof *first),
                "%s: %s differs from whole (%u threads)", name, cut_names[c], threads);
    }
    double err = worst(r, first, &at);
    /* Halves have 11 bits, BF16 8, Q8_0 steps of 1/127 of the largest of 32. phimoe's router picks
     * between near equals: 8 bits turn a choice. */
    double bound = kv == SL_F32                  ? TOLERANCE
                   : kv == SL_F16                ? 1e-2
                   : strcmp(name, "phimoe.gguf") ? 5e-2
                                                 : 1;
    T_CHECK(err <= bound, "%s: error %.2e at token %u (KV %s)", name, err, at,
            sl_type_get(kv)->name);
    sl_engine_close(&e);
    free(first);
    free(other);
    return err;
}

static void check_file(const char *folder, const char *gguf)
{
    char path[1024], ref_path[1024];
    int stem = (int)(strlen(gguf) - strlen(".gguf"));
    snprintf(path, sizeof path, "%s/%s", folder, gguf);
    snprintf(ref_path, sizeof ref_path, "%s/%.*s.ref", folder, stem, gguf);
    reference r = read_reference(ref_path);
    sl_ctx *ctx = sl_ctx_create(quiet, NULL);
    sl_model *m = NULL;
    sl_mem_report mem;
    sl_status st = sl_model_open(ctx, path, &m);
    T_CHECK(st == SL_OK, "%s: %s", gguf, sl_error(ctx));
    if (st == SL_OK) {
        double f32 = check_model(gguf, m, ctx, &r, SL_F32, 1);
        check_model(gguf, m, ctx, &r, SL_F32, 2);
        double f16 = check_model(gguf, m, ctx, &r, SL_F16, 1),
               bf16 = check_model(gguf, m, ctx, &r, SL_BF16, 1);
        bool q8 = true;     /* where heads hold its blocks */
        for (uint32_t l = 0; l < sl_model_shape(m)->n_layer; l++)
            q8 = q8 && sl_model_shape(m)->layers[l].kv_unit % 32 == 0;
        printf("%-24.*s %-10s  error %.1e  (keys and values F16 %.1e, BF16 %.1e", stem, gguf,
               sl_model_arch(m), f32, f16, bf16);
        if (q8) printf(", Q8_0 %.1e", check_model(gguf, m, ctx, &r, SL_Q8_0, 1));
        printf(")\n");
    }
    sl_model_close(&m);
    sl_mem_get(ctx, &mem);
    T_CHECK(mem.total == 0 && mem.bytes[SL_ACC_MAPPED] == 0, "%s: %llu bytes left behind", gguf,
            (unsigned long long)mem.total);
    sl_ctx_destroy(&ctx);
    free(r.tokens);
    free(r.logits);
}

int main(int argc, char **argv)
{
    char folder[400];
    const char *root = getenv("SLUICE_SOURCE_DIR");
    struct dirent **names;
    snprintf(folder, sizeof folder, "%s/tests/golden/arch", root ? root : ".");
    int n = scandir(folder, &names, NULL, alphasort);
    T_NEED(n > 0, "read %s", folder);
    for (int i = 0; i < n; i++) {
        const char *dot = strrchr(names[i]->d_name, '.');
        if (dot && !strcmp(dot, ".gguf") && (argc < 2 || strstr(names[i]->d_name, argv[1])))
            check_file(folder, names[i]->d_name);
        free(names[i]);
    }
    free(names);
    return t_end();
}
