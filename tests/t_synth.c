/* tests/t_synth.c - synthetic models: every type and every architecture opens and runs, weights
 * have the deviation they should have, the same seed gives the same bytes, skew skews, and what
 * cannot be written leaves nothing behind. Shapes are tiny copies of the table's rows. */
#include "kernels/sl_kernels.h"
#include "runtime/sl_synth.h"
#include "runtime/sluice.h"
#include "tests/t.h"

#include <math.h>

static char dir[] = "/tmp/t_synth_XXXXXX";
static char path[64];

static sl_preset tiny(const char *like)
{
    const sl_preset *row = sl_preset_find(like);
    T_NEED(row, "no preset %s", like);
    sl_preset p = *row;
    p.n_layer = 2;
    p.d_model = 256;
    p.n_vocab = 1200;
    p.n_ctx = 512;
    p.n_head = 4;
    p.n_expert = p.n_group ? 16 : 8;
    p.n_used = 2;
    p.d_expert = 256;
    if (p.n_group) p.n_group = 4, p.n_group_used = 2;
    if (p.d_shared) p.d_shared = p.n_shared ? p.n_shared * 256 : 512;
    if (p.d_dense) p.d_dense = 320;         /* no multiple of 256: types fall back */
    if (p.kv_lora) {
        p.q_lora = p.q_lora ? 96 : 0;
        p.kv_lora = 64, p.nope = 32, p.n_rot = 16, p.v_head = 32;
    } else {
        p.n_rot = p.n_rot * 64 / p.head_dim;
        p.head_dim = 64;
        p.n_head_kv = row->n_head == row->n_head_kv ? 4 : 2;
    }
    return p;
}

static sl_synth_report write_model(sl_ctx *ctx, const sl_preset *p, const char *quant, double skew,
                                   uint64_t seed, uint32_t n_threads)
{
    sl_synth_params sp = {
        .preset = p, .quant = quant, .skew = skew, .seed = seed, .n_threads = n_threads
    };
    sl_synth_report want, got;
    T_NEED(sl_synth_measure(ctx, &sp, &want) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_synth_write(ctx, &sp, path, &got) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(!memcmp(&want, &got, sizeof got), "%s %s: measured otherwise than written", p->name,
            quant);
    return got;
}

/* ---- running ---- */

typedef struct counts { uint64_t n[64]; } counts;

static void count_experts(void *user, uint64_t pass, sl_seq seq, uint32_t pos, uint32_t layer,
                          const uint32_t *ids, uint32_t n)
{
    (void)pass, (void)seq, (void)pos;
    for (uint32_t i = 0; layer == 0 && i < n; i++) ((counts *)user)->n[ids[i]]++;
}

/* Runs n_tokens different tokens and checks every logit; counts [1] gets layer 0's choices. */
static void run_model(sl_ctx *ctx, const char *what, uint32_t n_tokens, counts *ret)
{
    sl_model *m = NULL;
    sl_engine *e = NULL;
    sl_plan plan;
    sl_plan_params pp = sl_plan_defaults();
    pp.n_threads = 1;
    pp.n_ctx = 512;
    T_NEED(sl_model_open(ctx, path, &m) == SL_OK, "%s: %s", what, sl_error(ctx));
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), &pp, &plan) == SL_OK, "%s: %s", what,
           sl_error(ctx));
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s: %s", what, sl_error(ctx));
    if (ret) sl_engine_set_trace(e, count_experts, ret);
    int32_t *tokens = malloc(n_tokens * sizeof *tokens);
    for (uint32_t i = 0; i < n_tokens; i++) tokens[i] = (int32_t)(7 * i % 1200);
    sl_request r = { .tokens = tokens, .n_tokens = n_tokens, .want_logits = true };
    sl_seq id;
    T_NEED(sl_engine_submit(e, &r, &id) == SL_OK, "%s: %s", what, sl_error(ctx));
    uint32_t n_vocab = sl_model_shape(m)->n_vocab, rows = 0;
    while (sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s: %s", what, sl_error(ctx));
        for (uint32_t i = 0; i < n; i++) {
            if (ev[i].kind != SL_EV_LOGITS) continue;
            double sum = 0, sq = 0;
            for (uint32_t v = 0; v < n_vocab; v++) sum += ev[i].logits[v];
            for (uint32_t v = 0; v < n_vocab; v++) sq += pow(ev[i].logits[v] - sum / n_vocab, 2);
            double dev = sqrt(sq / n_vocab);
            T_CHECK(dev > 0.05 && dev < 6, "%s: logits' deviation is %g at %u", what, dev,
                    ev[i].pos);
            rows++;
        }
    }
    T_CHECK(rows == n_tokens, "%s: %u rows", what, rows);
    free(tokens);
    sl_engine_close(&e);
    sl_model_close(&m);
}

/* ---- what is in the file ---- */

static void check_deviation(sl_ctx *ctx, const sl_gguf *g, const char *name, double want,
                            sl_type type, const char *what)
{
    const sl_tensor *t = sl_gguf_find(g, name);
    T_NEED(t, "%s: no tensor %s", what, name);
    T_CHECK(t->type == type, "%s: %s is %s", what, name, sl_type_get(t->type)->name);
    sl_kernels k;
    sl_kernels_init(&k, 0);
    uint64_t n = t->ne[0] * t->ne[1] * t->ne[2];
    void *raw = malloc(t->bytes);
    float *y = malloc(n * sizeof *y);
    double sum = 0, sq = 0;
    T_NEED(pread(sl_gguf_fd(g, 0), raw, t->bytes, (off_t)t->offset) == (ssize_t)t->bytes, "read %s",
           name);
    k.dequant[t->type](raw, y, n);
    for (uint64_t i = 0; i < n; i++) sum += y[i], sq += (double)y[i] * y[i];
    double dev = sqrt(sq / (double)n), mean = sum / (double)n;
    T_CHECK(fabs(dev / want - 1) < 0.06, "%s: %s deviates by %g, expected %g", what, name, dev,
            want);
    T_CHECK(fabs(mean) < want * (0.01 + 4 / sqrt((double)n)),
            "%s: mean of %s is %g, deviation %g", what, name, mean, want);
    free(raw);
    free(y);
    (void)ctx;
}

static uint64_t file_hash(void)
{
    uint64_t h = 14695981039346656037u;
    int c;
    FILE *f = fopen(path, "rb");
    T_NEED(f, "open %s", path);
    while ((c = getc(f)) != EOF) h = (h ^ (uint64_t)c) * 1099511628211u;
    fclose(f);
    return h;
}

static void check_types(sl_ctx *ctx)
{
    for (unsigned type = 0; type < SL_N_TYPES; type++) {
        const char *name = sl_type_get(type)->name;
        if (!sl_type_get(type)->matmul) continue;
        sl_preset p = tiny("qwen3-30b-a3b");
        p.n_layer = 1;
        sl_synth_report r = write_model(ctx, &p, name, 0, 1, 1);
        sl_gguf *g = NULL;
        T_NEED(sl_gguf_open(ctx, path, &g) == SL_OK, "%s: %s", name, sl_error(ctx));
        T_CHECK(sl_gguf_n_tensors(g) == r.n_tensors && sl_gguf_file_bytes(g, 0) == r.file_bytes,
                "%s", name);
        check_deviation(ctx, g, "blk.0.ffn_up_exps.weight", 1 / 16.0, type, name);
        check_deviation(ctx, g, "blk.0.ffn_gate_inp.weight", 1.5 / 16.0, SL_F32, name);
        sl_gguf_close(&g);
        run_model(ctx, name, 4, NULL);
    }
}

static void check_architectures(sl_ctx *ctx)
{
    static const char *const likes[] = { "qwen3-30b-a3b", "qwen1.5-moe-a2.7b", "olmoe-1b-7b",
                                         "mixtral-8x7b",  "gpt-oss-20b",       "glm-4.5-air",
                                         "glm-4.5",       "deepseek-v2-lite",  "deepseek-v2",
                                         "deepseek-v3",   "kimi-k2",           "granite-3-1b-a400m",
                                         "phi-3.5-moe" };
    for (size_t i = 0; i < SL_LEN(likes); i++) {
        sl_preset p = tiny(likes[i]);
        sl_synth_report r = write_model(ctx, &p, i % 2 ? "Q4_K_M" : "mxfp4", 0.5, i, 2);
        T_CHECK(r.token_bytes < r.tensor_bytes && r.file_bytes > r.tensor_bytes, "%s", likes[i]);
        run_model(ctx, likes[i], 5, NULL);
    }
}

/* llama.cpp's mix: which layers get more bits, and the exceptions of models with eight experts. */
static void check_mix(sl_ctx *ctx)
{
    sl_preset p = tiny("qwen3-30b-a3b");
    sl_gguf *g = NULL;
    char name[64];
    p.n_layer = 16;
    p.n_expert = 10;
    write_model(ctx, &p, "q4_k_m", 0, 3, 1);
    T_NEED(sl_gguf_open(ctx, path, &g) == SL_OK, "%s", sl_error(ctx));
    for (unsigned l = 0; l < 16; l++) {
        static const bool more[16] = { 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 1 };
        sl_type want = more[l] ? SL_Q6_K : SL_Q4_K;
        snprintf(name, sizeof name, "blk.%u.attn_v.weight", l);
        T_CHECK(sl_gguf_find(g, name)->type == want, "%s", name);
        snprintf(name, sizeof name, "blk.%u.ffn_down_exps.weight", l);
        T_CHECK(sl_gguf_find(g, name)->type == want, "%s", name);
        snprintf(name, sizeof name, "blk.%u.attn_k.weight", l);
        T_CHECK(sl_gguf_find(g, name)->type == SL_Q4_K, "%s", name);
    }
    T_CHECK(sl_gguf_find(g, "output.weight")->type == SL_Q6_K, "output");
    T_CHECK(sl_gguf_find(g, "token_embd.weight")->type == SL_Q4_K, "token_embd");
    sl_gguf_close(&g);
    p = tiny("mixtral-8x7b");
    write_model(ctx, &p, "q4_k_m", 0, 3, 1);
    T_NEED(sl_gguf_open(ctx, path, &g) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_gguf_find(g, "blk.0.attn_v.weight")->type == SL_Q8_0, "attn_v");
    T_CHECK(sl_gguf_find(g, "blk.0.attn_k.weight")->type == SL_Q8_0, "attn_k");
    T_CHECK(sl_gguf_find(g, "blk.0.attn_output.weight")->type == SL_Q5_K, "attn_output");
    sl_gguf_close(&g);
}

static void check_same_bytes(sl_ctx *ctx)
{
    sl_preset p = tiny("gpt-oss-20b");
    uint64_t h[4];
    p.n_layer = 6;      /* several windows of the writer */
    p.n_vocab = 9000;
    for (int i = 0; i < 4; i++) {
        write_model(ctx, &p, "Q5_K", 0, i == 3 ? 2 : 1, i == 1 ? 2 : 1);
        h[i] = file_hash();
    }
    T_CHECK(h[0] == h[1] && h[0] == h[2], "threads or repetition change the bytes");
    T_CHECK(h[0] != h[3], "another seed gives the same bytes");
}

static void check_skew(sl_ctx *ctx)
{
    sl_preset p = tiny("qwen3-30b-a3b");
    p.n_expert = 64;
    p.n_used = 8;
    uint64_t top[2] = { 0, 0 }, none[2] = { 0, 0 };
    for (int s = 0; s < 2; s++) {
        counts c = { { 0 } };
        write_model(ctx, &p, "Q8_0", s, 5, 2);
        run_model(ctx, s ? "skewed" : "even", 480, &c);
        for (int e = 0; e < 64; e++) {
            top[s] = SL_MAX(top[s], c.n[e]);
            none[s] += c.n[e] < 25;
        }
    }
    /* Even: 60 each. Zipf: c / rank of 480, at most 0.45, c = 2.2: 216 for the first, 17 for the
     * last. */
    T_CHECK(top[0] > 50 && top[0] < 110 && none[0] == 0, "even: top %u, rare %u", (unsigned)top[0],
            (unsigned)none[0]);
    T_CHECK(top[1] > 160 && top[1] < 300 && none[1] >= 8, "skewed: top %u, rare %u",
            (unsigned)top[1], (unsigned)none[1]);
}

/* ---- refusals ---- */

static bool say_no(void *user, uint64_t done, uint64_t total)
{
    *(uint64_t *)user = total;
    return done > total;
}

static void check_refused(sl_ctx *ctx, sl_synth_params sp, sl_status want, const char *word)
{
    sl_synth_report r = { .file_bytes = 77 };
    sl_status st = sl_synth_write(ctx, &sp, path, &r);
    T_CHECK(st == want && strstr(sl_error(ctx), word), "%d: %s, expected \"%s\"", st, sl_error(ctx),
            word);
    T_CHECK(r.file_bytes == 77, "%s: a report was written", word);
    char part[80];
    snprintf(part, sizeof part, "%s.part%ld", path, (long)getpid());
    T_CHECK(access(path, F_OK) && access(part, F_OK), "%s: a file is left", word);
}

static void check_refusals(sl_ctx *ctx)
{
    sl_preset p = tiny("qwen3-30b-a3b"), strange = p, odd = p;
    uint64_t total = 0;
    strange.arch = "mamba";
    odd.d_model = 250;
    remove(path);
    check_refused(ctx, (sl_synth_params){ .preset = &p, .quant = "Q9_X" }, SL_E_ARG, "Q4_K_M");
    check_refused(ctx, (sl_synth_params){ .preset = &p, .quant = "Q8_K" }, SL_E_ARG, "Q8_K");
    check_refused(ctx, (sl_synth_params){ .preset = &p, .quant = "F32", .n_layer = 3 }, SL_E_ARG,
                  "layers");
    check_refused(ctx, (sl_synth_params){ .preset = &p, .quant = "F32", .skew = NAN }, SL_E_ARG,
                  "skew");
    check_refused(ctx, (sl_synth_params){ .preset = &strange, .quant = "F32" }, SL_E_UNSUPPORTED,
                  "mamba");
    check_refused(ctx,
                  (sl_synth_params){
                      .preset = &p, .quant = "F32", .progress = say_no, .user = &total },
                  SL_E_IO, "interrupted");
    T_CHECK(total > 1000000, "progress never asked");
    sl_preset huge = *sl_preset_find("kimi-k2");
    huge.d_expert = 1 << 19;    /* a petabyte */
    check_refused(ctx, (sl_synth_params){ .preset = &huge, .quant = "F32" }, SL_E_IO, "free");
    sl_synth_report r;
    sl_synth_params sp = { .preset = &odd, .quant = "Q4_0" };
    /* falls back to F16 */
    T_CHECK(sl_synth_write(ctx, &sp, path, &r) == SL_OK, "%s", sl_error(ctx));
    sp.preset = &p;
    T_CHECK(sl_synth_write(ctx, &sp, "/nonexistent/x.gguf", &r) == SL_E_IO, "%s", sl_error(ctx));
}

int main(void)
{
    t_begin();
    T_NEED(mkdtemp(dir), "mkdtemp");
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    check_refusals(ctx);
    check_types(ctx);
    check_architectures(ctx);
    check_mix(ctx);
    check_same_bytes(ctx);
    check_skew(ctx);
    sl_ctx_destroy(&ctx);
    remove(path);
    rmdir(dir);
    return t_end();
}
