/* tools/cmd_synth.c - `sluice synth`: a model file with random weights in a real model's shape. */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "runtime/sl_synth.h"
#include "tools/cli.h"

struct args {
    const char *like, *quant, *out;
    uint32_t n_layer, n_threads;
    float skew;
    uint64_t seed;
    bool list;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "--like", CLI_STR, "PRESET", "the model whose shape it gets (--list names them)", AT(like), 0,
      0 },
    { "-q,--quant", CLI_STR, "TYPE",
      "Q4_K, Q8_0, F16, MXFP4, ... or Q4_K_M, llama.cpp's mix (default: Q4_K)", AT(quant), 0, 0 },
    { "-o,--output", CLI_STR, "FILE", "the GGUF to write", AT(out), 0, 0 },
    { "--layers", CLI_U32, "N", "only so many layers (default: all)", AT(n_layer), 1, 10000 },
    { "--skew", CLI_F32, "S",
      "popularity of experts falls as 1 / rank^S; input still decides (default: 0, even)", AT(skew),
      0, 4 },
    { "-s,--seed", CLI_SEED, "N", "the same seed gives the same file (default: 0)", AT(seed), 0,
      0 },
    { "-t,--threads", CLI_U32, "N", "threads (default: physical cores)", AT(n_threads), 1, 4096 },
    { "--list", CLI_FLAG, NULL, "print the presets and their sizes, write nothing", AT(list), 0,
      0 },
};
#undef AT

static const char *const about =
    "Writes a model file with random weights in the shape of a public model: for benchmarks and "
    "tests of models that need not be downloaded. It runs like the real one and talks nonsense.";

static void list_presets(void)
{
    printf("%-22s %-13s %7s %6s %7s %5s %9s %8s\n", "preset", "arch", "layers", "width", "experts",
           "used", "params", "active");
    for (uint32_t i = 0; sl_preset_at(i); i++) {
        const sl_preset *p = sl_preset_at(i);
        printf("%-22s %-13s %7" PRIu32 " %6" PRIu32 " %7" PRIu32 " %5" PRIu32 " %8.1fB %7.1fB%s\n",
               p->name, p->arch, p->n_layer, p->d_model, p->n_expert, p->n_used,
               (double)sl_preset_params(p) * 1e-9, (double)sl_preset_active_params(p) * 1e-9,
               p->runs ? "" : "  only planned");
    }
}

static int unknown_preset(const char *name)
{
    char known[1024] = "";
    for (uint32_t i = 0; sl_preset_at(i); i++) {
        size_t n = strlen(known);
        if (sl_preset_at(i)->runs)
            snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", sl_preset_at(i)->name);
    }
    return cli_fail("\"%s\" is no preset; these are: %s", name, known);
}

struct bar { double start_s; bool tty; };

static bool progress(void *user, uint64_t done, uint64_t total)
{
    const struct bar *b = user;
    double s = cli_now_s() - b->start_s, rate = s > 0 ? (double)done / s : 0;
    if (b->tty)
        fprintf(stderr, "\r%5.1f %%  %.2f GB/s  %.0f s left   ",
                100.0 * (double)done / (double)total, rate * 1e-9,
                rate > 0 ? (double)(total - done) / rate : 0);
    if (b->tty && done == total) fprintf(stderr, "\r%40s\r", "");
    return !cli_interrupted();
}

static int run(const struct args *a, sl_ctx *ctx)
{
    sl_synth_params p = { .preset = sl_preset_find(a->like),
                          .quant = a->quant,
                          .n_layer = a->n_layer,
                          .skew = a->skew,
                          .seed = a->seed,
                          .n_threads = a->n_threads,
                          .progress = progress };
    sl_synth_report r;
    struct bar bar = { cli_now_s(), isatty(2) };
    p.user = &bar;
    if (!p.preset) return unknown_preset(a->like);
    cli_catch_sigint();
    if (sl_synth_write(ctx, &p, a->out, &r) != SL_OK) {
        if (bar.tty) fputc('\n', stderr);
        int code = cli_fail_ctx(ctx);
        return cli_interrupted() ? CLI_INTERRUPTED : code;
    }
    double s = cli_now_s() - bar.start_s;
    cli_note("%s: %" PRIu32
             " layer%s, %.3f billion parameters, %.3f GB, %.3f GB of weights per decoded token; "
             "%.1f s, %.2f GB/s",
             a->out, r.n_layer, r.n_layer == 1 ? "" : "s", (double)r.n_params * 1e-9,
             (double)r.file_bytes * 1e-9, (double)r.token_bytes * 1e-9, s,
             (double)r.file_bytes * 1e-9 / s);
    return CLI_DONE;
}

int cmd_synth(int argc, char **argv)
{
    struct args a = { .quant = "Q4_K" };
    cli_group groups[] = { { "Options", options, SL_LEN(options), &a, 0 } };
    cli_spec spec = { "synth",        "--like PRESET [--quant TYPE] -o FILE [options]",
                      about,          groups,
                      SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (a.list) {
        list_presets();
        return cli_end_stdout(CLI_DONE);
    }
    if (!a.like) return cli_usage_error(&spec, "--like PRESET is needed (--list names them)");
    if (!a.out) return cli_usage_error(&spec, "-o FILE is needed");
    sl_ctx *ctx = cli_ctx(false);
    code = ctx ? run(&a, ctx) : CLI_FAILED;
    sl_ctx_destroy(&ctx);
    return code;
}
