/* tests/t_split.c - the work shared with an emulated accelerator: logits have the bits of the cpu
 * device alone, for every architecture, whatever stays on the device, is sent in every pass or when
 * asked for, or is left to the CPU, in one lane or two, with keys and values and attention on
 * either side, several sequences and prompts in chunks, some of which decode; with all weights in
 * RAM, and with budgets in which experts come from disk. The device checks every access on the way,
 * and the accounts stay within the budget. */
#include "runtime/sluice.h"
#include "tests/t_tiny.h"

#include <dirent.h>

enum {
    SEQS = 5, PROMPT = 26, DRAWN = 7, LENGTH = PROMPT + DRAWN, MIB = 1 << 20,
    PROCESS = 14 * MIB          /* tables, and what small blocks are rounded up to */
};

/* How the work is shared. */
typedef struct share {
    const char *name;
    uint32_t lanes, kv, prompts, head, stay, send_rows, send_all_rows, dense_layers, max_rows;
    bool few;                   /* on few of the models */
    double ram;                 /* 0: for all; of the way there from the least that will do */
    bool fixed;                 /* what stays does not follow the routing */
} share;

enum { CPU = SL_ON_CPU, DEV = SL_ON_DEVICE };
#define NEVER (UINT32_MAX - 1)
#define ALL SL_PLAN_AUTO       /* what fits */

static const share shares[] = {
    { "all sent, two lanes", 2, CPU, CPU, CPU, 0, 1, 1, 0, 24, false, 0, false },
    { "all sent, two lanes, prompts there", 2, CPU, DEV, DEV, 0, 1, 1, 0, 24, false, 0, false },
    { "all sent, two lanes of a row at least", 2, CPU, DEV, DEV, 1, 1, 2, 1, 3, true, 0, false },
    { "all sent, one lane", 1, CPU, CPU, DEV, 0, 1, 1, 0, 7, true, 0, false },
    { "sent when asked for", 1, DEV, DEV, DEV, 1, 1, NEVER, 0, 24, false, 0, false },
    { "some left to the CPU", 1, CPU, DEV, DEV, 1, 2, 20, 1, 24, false, 0, false },
    { "some left to the CPU, two lanes", 2, CPU, CPU, CPU, 2, 3, 6, 1, 9, false, 0, false },
    { "what stays is fixed", 1, CPU, DEV, DEV, 1, 2, 20, 1, 24, true, 0, true },
    { "more than can be stored", 1, DEV, DEV, DEV, 2, 2, NEVER, 0, 24, true, 0, false },
    { "all left to the CPU", 1, CPU, CPU, CPU, 0, NEVER, NEVER, 0, 5, true, 0, false },
    { "all on the device", 1, DEV, DEV, DEV, ALL, 1, 20, ALL, 16, false, 0, false },
    { "from disk, all sent", 2, CPU, CPU, CPU, 0, 1, 1, 0, 64, false, 0.01, false },
    { "from disk, some left to the CPU", 1, CPU, DEV, DEV, 1, 2, 20, 1, 24, false, 0.3, false },
    { "from disk, all left to the CPU", 1, DEV, DEV, DEV, 1, NEVER, NEVER, 0, 5, true, 0.1, false },
    { "from disk, what does not stay",
      2, CPU, DEV, DEV, 2, SL_PLAN_AUTO, 1, 1, 9, true, 0.6, false },
};
static uint32_t n_from_disk;    /* runs */
static uint64_t n_followed, n_fixed;    /* experts that came to stay, where they may or not */

static char complaint[300];

static void keep_complaint(void *user, sl_level level, const char *msg)
{
    (void)user;
    if (level <= SL_WARN) snprintf(complaint, sizeof complaint, "%s", msg);
}

static sl_plan_params params_of(const share *s)
{
    sl_plan_params p = sl_plan_defaults();
    p.n_ctx = 64;
    p.n_seq = SEQS;
    p.n_threads = 1;
    p.max_rows = s ? s->max_rows : 24;
    if (!s) return p;
    p.accel = (sl_accel){ .kind = SL_ACCEL_EMU, .n_cores = 1, .mem_bytes = 192 * MIB,
                          .up_bytes_s = 4e9, .down_bytes_s = 4e9, .link_s = 2e-6 };
    p.n_lanes = s->lanes;
    p.kv_on = s->kv;
    p.prompts_on = s->prompts;
    p.head_on = s->head;
    p.n_stay = s->stay;
    p.send_rows = s->send_rows;
    p.send_all_rows = s->send_all_rows;
    p.max_dense_layers = s->dense_layers;
    p.stay_fixed = s->fixed;
    return p;
}

/* A budget between what all weights take and the least that a plan takes. False: there is none,
 * since the model has no experts, or hardly any. */
static bool limit_ram(sl_ctx *ctx, const sl_shape *shape, double way, sl_plan_params *p)
{
    sl_plan plan;
    p->ram_hard = true;
    p->process_bytes = PROCESS;
    T_NEED(sl_plan_make(ctx, shape, p, &plan) == SL_OK, "%s", sl_error(ctx));
    uint64_t lo = 0, hi = plan.need_bytes, all = hi;
    while (hi - lo > 1) {
        p->ram_bytes = (lo + hi) / 2;
        if (sl_plan_make(ctx, shape, p, &plan) == SL_OK) hi = p->ram_bytes;
        else lo = p->ram_bytes;
    }
    p->ram_bytes = hi + (uint64_t)((double)(all - hi) * way);
    T_NEED(sl_plan_make(ctx, shape, p, &plan) == SL_OK, "%s", sl_error(ctx));
    return plan.weights == SL_WEIGHTS_STREAMED;
}

/* Sequences of different lengths and chunks, some of which still read their prompt when others
 * draw; the logits of all their tokens. False: the model cannot be run so. */
static bool run(const char *path, const share *s, float *ret)
{
    sl_ctx *ctx = sl_ctx_create(keep_complaint, NULL);
    sl_model *m = NULL;
    sl_engine *e = NULL;
    sl_plan plan;
    sl_mem_report mem;
    sl_engine_stats stats;
    sl_seq ids[SEQS];
    int32_t tokens[SEQS][PROMPT];
    sl_plan_params p = params_of(s);
    const char *what = s ? s->name : "the CPU alone";
    T_NEED(sl_model_open(ctx, path, &m) == SL_OK, "%s", sl_error(ctx));
    bool streamed = s && s->ram > 0;
    if (streamed && !limit_ram(ctx, sl_model_shape(m), s->ram, &p)) {
        sl_model_close(&m);
        sl_ctx_destroy(&ctx);
        complaint[0] = 0;
        return false;
    }
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), &p, &plan) == SL_OK, "%s: %s", what, sl_error(ctx));
    complaint[0] = 0;           /* of plans that were tried */
    if (s)
        T_CHECK(plan.split.n_lanes == (streamed ? 1 : s->lanes), "%s: %u lanes", what,
                plan.split.n_lanes);
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s, %s: %s", path, what, sl_error(ctx));
    uint32_t n_vocab = sl_model_shape(m)->n_vocab;
    t_begin();
    for (uint32_t i = 0; i < SEQS; i++) {
        for (uint32_t t = 0; t < PROMPT; t++) tokens[i][t] = (int32_t)t_below(n_vocab);
        sl_request r = { .tokens = tokens[i], .n_tokens = PROMPT - 3 * i, .want_logits = true,
                         .max_chunk = i < 2 ? 0 : 1 + i, .n_predict = DRAWN,
                         .ignore_eog = true, .sampler = sl_sampler_defaults() };
        r.sampler.temp = 0;
        T_NEED(sl_engine_submit(e, &r, &ids[i]) == SL_OK, "%s", sl_error(ctx));
    }
    while (sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s, %s: %s", path, what, sl_error(ctx));
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t q = 0; q < SEQS && ev[i].kind == SL_EV_LOGITS; q++)
                if (ev[i].seq == ids[q])
                    memcpy(ret + ((size_t)q * LENGTH + ev[i].pos) * n_vocab, ev[i].logits,
                           n_vocab * sizeof *ret);
    }
    sl_engine_get_stats(e, &stats);
    bool sends = s && plan.split.ring_bytes;
    T_CHECK(sends == (stats.sent_bytes > 0), "%s: %llu bytes sent", what,
            (unsigned long long)stats.sent_bytes);
    T_CHECK(streamed == (stats.misses > 0) && streamed == (plan.weights == SL_WEIGHTS_STREAMED),
            "%s: %llu misses, %s", what, (unsigned long long)stats.misses, plan.mode);
    n_from_disk += streamed;
    *(s && s->fixed ? &n_fixed : &n_followed) += stats.stay_changes;
    sl_engine_close(&e);
    sl_model_close(&m);
    sl_mem_get(ctx, &mem);
    T_CHECK(!mem.total, "%s: %llu bytes left behind", what, (unsigned long long)mem.total);
    T_CHECK(!streamed || mem.total_peak <= p.ram_bytes, "%s: %llu bytes of %llu", what,
            (unsigned long long)mem.total_peak, (unsigned long long)p.ram_bytes);
    T_CHECK(!complaint[0], "%s: %s", what, complaint);
    complaint[0] = 0;
    sl_ctx_destroy(&ctx);
    return true;
}

static uint32_t vocab_of(const char *path)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_model *m = NULL;
    T_NEED(sl_model_open(ctx, path, &m) == SL_OK, "%s", sl_error(ctx));
    uint32_t n = sl_model_shape(m)->n_vocab;
    sl_model_close(&m);
    sl_ctx_destroy(&ctx);
    return n;
}

static void check_model(const char *path, const char *name, bool all)
{
    uint32_t n_vocab = vocab_of(path);
    size_t floats = (size_t)SEQS * LENGTH * n_vocab;
    float *want = calloc(floats, sizeof *want), *got = malloc(floats * sizeof *got);
    T_NEED(want && got, "logits of %u ids", n_vocab);
    run(path, NULL, want);
    for (uint32_t i = 0; i < SL_LEN(shares); i++) {
        const share *s = &shares[i];
        uint32_t bad = 0;
        if (s->few && !all) continue;
        memset(got, 0, floats * sizeof *got);
        if (!run(path, s, got)) continue;
        for (uint32_t r = 0; r < SEQS * LENGTH; r++)
            bad += memcmp(want + (size_t)r * n_vocab, got + (size_t)r * n_vocab,
                          n_vocab * sizeof *want) != 0;
        T_CHECK(!bad, "%s, %s: %u of %u rows differ", name, s->name, bad, SEQS * LENGTH);
    }
    printf("%s: same\n", name);
    free(want);
    free(got);
}

static void check_quantised(const char *like, const char *quant)
{
    char dir[] = "/tmp/t_split_XXXXXX", path[64];
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_preset p;
    sl_synth_report report;
    T_NEED(mkdtemp(dir), "a folder %s", dir);
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    sl_synth_params sp = { .preset = t_tiny(like, 300, &p), .quant = quant, .seed = 3 };
    T_NEED(sl_synth_write(ctx, &sp, path, &report) == SL_OK, "%s", sl_error(ctx));
    sl_ctx_destroy(&ctx);
    check_model(path, like, true);
    remove(path);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    char folder[400], path[800];
    const char *root = getenv("SLUICE_SOURCE_DIR");
    struct dirent **names;
    bool quick = getenv("SLUICE_SANITIZED") != NULL;
    snprintf(folder, sizeof folder, "%s/tests/golden/arch", root ? root : ".");
    check_quantised("qwen3-7b-a1b", "Q4_K_M");
    if (!quick) check_quantised("deepseek-v2-lite", "Q8_0");
    int n = scandir(folder, &names, NULL, alphasort);
    T_NEED(n > 0, "read %s", folder);
    for (int i = 0; i < n; i++) {
        const char *name = names[i]->d_name, *dot = strrchr(name, '.');
        snprintf(path, sizeof path, "%s/%s", folder, name);
        if (dot && !strcmp(dot, ".gguf") && (argc < 2 || strstr(name, argv[1]))
            && (!quick || strstr(name, "qwen2moe") || strstr(name, "v3.")))
            check_model(path, name, false);
        free(names[i]);
    }
    free(names);
    T_CHECK(n_from_disk > 3, "%u runs had experts on disk", n_from_disk);
    T_CHECK(n_followed > 20 && !n_fixed, "%llu experts came to stay, and %llu where none may",
            (unsigned long long)n_followed, (unsigned long long)n_fixed);
    printf("%llu experts came to stay\n", (unsigned long long)n_followed);
    return t_end();
}
