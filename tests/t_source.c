/* tests/t_source.c - models from whatever describes them: presets, GGUF files of known
 * architectures, and files of unknown ones, described by their tensors' names. */
#include "runtime/sl_source.h"
#include "runtime/sluice.h"
#include "runtime/source.h"
#include "tests/t.h"
#include "tests/t_same_shape.h"

#include <dirent.h>

static char folder[400], patched[] = "/tmp/t_source_XXXXXX";

/* The names alone give what the loader makes of a file. Old MLA files keep their keys and values as
 * floats, which the names do not say. */
static void check_file(sl_ctx *ctx, const char *name)
{
    char path[1024];
    sl_model *m = NULL;
    sl_source *s = NULL;
    sl_shape by_names;
    sl_layer_shape *layers = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    T_NEED(sl_model_open(ctx, path, &m) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_source_open(ctx, path, NULL, &s) == SL_OK, "%s", sl_error(ctx));
    same_shape(s->shape, sl_model_shape(m), name);
    T_CHECK(s->kind == SL_SOURCE_GGUF && s->runs && s->exact && !s->why_not && !s->preset, "%s",
            name);
    T_CHECK(!strcmp(s->arch, sl_model_arch(m)) && !strcmp(s->title, sl_model_name(m)), "%s", name);
    T_CHECK(s->active_params > 0 && s->active_params <= s->shape->n_params, "%s", name);
    T_CHECK(sl_type_get(0) && s->quant && !strcmp(s->path, path), "%s", name);
    if (!strstr(name, "kvb")) {
        T_NEED(source_shape_by_names(ctx, sl_model_gguf(m), sl_model_arch(m), &by_names, &layers)
                   == SL_OK,
               "%s", sl_error(ctx));
        /* which layers have gpt-oss's window is in the table, not in the file */
        if (strstr(name, "gpt-oss"))
            for (uint32_t l = 1; l < by_names.n_layer; l += 2) layers[l].window = 0;
        same_shape(&by_names, sl_model_shape(m), name);
        free(layers);
    }
    sl_source_close(&s);
    sl_model_close(&m);
}

/* A golden file with every `from` replaced by `to` of the same length. */
static void patch(const char *name, const char *from, const char *to)
{
    char path[1024], buf[1 << 20];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *in = fopen(path, "rb"), *out = fopen(patched, "wb");
    T_NEED(in && out && strlen(from) == strlen(to), "open %s", path);
    size_t n = fread(buf, 1, sizeof buf, in);
    T_NEED(n > 0 && n < sizeof buf, "%s has %zu bytes", path, n);
    for (char *p; (p = memmem(buf, n, from, strlen(from)));) memcpy(p, to, strlen(to));
    T_NEED(fwrite(buf, n, 1, out) == 1, "write %s", patched);
    fclose(in);
    fclose(out);
}

static void check_unknown(sl_ctx *ctx)
{
    sl_source *known = NULL, *s = NULL;
    char path[1024];
    snprintf(path, sizeof path, "%s/qwen3moe.gguf", folder);
    T_NEED(sl_source_open(ctx, path, NULL, &known) == SL_OK, "%s", sl_error(ctx));
    patch("qwen3moe.gguf", "qwen3moe", "qwen9moe");
    T_NEED(sl_source_open(ctx, patched, NULL, &s) == SL_OK, "%s", sl_error(ctx));
    same_shape(s->shape, known->shape, "qwen9moe");
    T_CHECK(!s->runs && !strcmp(s->arch, "qwen9moe") && strstr(s->why_not, "qwen9moe"), "%s",
            s->why_not);
    sl_source_close(&s);
    sl_source_close(&known);
}

static void fails(sl_ctx *ctx, const char *what, const char *quant, sl_status st, const char *says)
{
    sl_source *s = NULL;
    sl_status got = sl_source_open(ctx, what, quant, &s);
    T_CHECK(got == st && !s && strstr(sl_error(ctx), says), "%s: %s: %s", what, sl_status_name(got),
            sl_error(ctx));
    sl_source_close(&s);
}

static void check_errors(sl_ctx *ctx)
{
    fails(ctx, "qwen3-30b", NULL, SL_E_ARG, "qwen3-30b-a3b");
    fails(ctx, "qwen3-30b", NULL, SL_E_ARG, "similar presets: qwen3-30b-a3b");
    fails(ctx, "Mixtral", NULL, SL_E_ARG, "similar presets: mixtral-8x7b, mixtral-8x22b");
    fails(ctx, "", NULL, SL_E_ARG, "no preset");
    fails(ctx, "/nowhere/model.gguf", NULL, SL_E_IO, "/nowhere/model.gguf");
    fails(ctx, "qwen3-30b-a3b", "Q4_Y", SL_E_ARG, "Q4_Y");
    patch("qwen3moe.gguf", "qwen3moe", "qwen9moe");
    fails(ctx, patched, "Q4_K", SL_E_ARG, "has its types already");
    static const struct { const char *from, *to, *says;
    } keys[] = {
        { "qwen3moe.expert_used_count", "qwen9moe.expert_xxxx_count", "expert_used_count is" },
        { "qwen3moe.block_count", "qwen9moe.xxxxx_count", "block_count is missing" },
        { "qwen3moe.attention.head_count", "qwen9moe.attention.xxxx_count", "head_count is" },
        { "token_embd.weight", "xoken_embd.weight", "token_embd.weight is missing" },
    };
    for (size_t i = 0; i < SL_LEN(keys); i++) {
        char from[64], to[64];
        patch("qwen3moe.gguf", keys[i].from, keys[i].to);
        /* then the rest of the names */
        FILE *f = fopen(patched, "r+b");
        char buf[1 << 20];
        size_t n = fread(buf, 1, sizeof buf, f);
        snprintf(from, sizeof from, "qwen3moe");
        snprintf(to, sizeof to, "qwen9moe");
        for (char *p; (p = memmem(buf, n, from, 8));) memcpy(p, to, 8);
        rewind(f);
        T_NEED(fwrite(buf, n, 1, f) == 1, "write");
        fclose(f);
        fails(ctx, patched, NULL, SL_E_FORMAT, keys[i].says);
    }
}

static void check_presets(sl_ctx *ctx)
{
    for (uint32_t i = 0; sl_preset_at(i); i++) {
        const sl_preset *p = sl_preset_at(i);
        sl_source *s = NULL;
        T_NEED(sl_source_open(ctx, p->name, NULL, &s) == SL_OK, "%s", sl_error(ctx));
        T_CHECK(s->kind == SL_SOURCE_PRESET && s->preset == p && !s->path && !s->exact, "%s",
                p->name);
        T_CHECK(s->runs == p->runs && !s->runs == (s->why_not != NULL), "%s", p->name);
        T_CHECK(!strcmp(s->quant, strstr(p->name, "gpt-oss") ? "MXFP4" : "Q4_K_M"), "%s", s->quant);
        /* norms and biases are all that the table's own counts leave out */
        double all = (double)s->shape->n_params / (double)sl_preset_params(p),
               active = (double)s->active_params / (double)sl_preset_active_params(p);
        T_CHECK(all > 0.999 && all < 1.006, "%s: %g of the parameters", p->name, all);
        T_CHECK(active > 0.98 && active < 1.02, "%s: %g of the active ones", p->name, active);
        sl_source_close(&s);
    }
}

int main(void)
{
    const char *root = getenv("SLUICE_SOURCE_DIR");
    struct dirent **names;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_mem_report mem;
    int fd = mkstemp(patched);
    T_NEED(fd >= 0, "temporary file");
    close(fd);
    snprintf(folder, sizeof folder, "%s/tests/golden/arch", root ? root : ".");
    int n = scandir(folder, &names, NULL, alphasort);
    T_NEED(n > 0, "read %s", folder);
    for (int i = 0; i < n; i++) {
        if (strstr(names[i]->d_name, ".gguf")) check_file(ctx, names[i]->d_name);
        free(names[i]);
    }
    free(names);
    check_unknown(ctx);
    check_errors(ctx);
    check_presets(ctx);
    unlink(patched);
    sl_mem_get(ctx, &mem);
    T_CHECK(mem.total == 0, "%llu bytes left behind", (unsigned long long)mem.total);
    sl_ctx_destroy(&ctx);
    return t_end();
}
