/* tests/t_config.c - config.json files of real families (tests/corpus/config, the published values)
 * have the shape of the preset of their name; dense models and unknown families; and what is wrong
 * in a file is named. */
#include "runtime/base/sl_json.h"
#include "runtime/sl_config.h"
#include "runtime/sl_source.h"
#include "tests/t.h"
#include "tests/t_same_shape.h"

#include <dirent.h>
#include <math.h>
#include <sys/stat.h>

static char folder[400];

static void path_of(const char *stem, char path[1024])
{
    snprintf(path, 1024, "%s/%s.json", folder, stem);
}

static void check_like_preset(sl_ctx *ctx, const char *stem, const char *quant)
{
    char path[1024];
    sl_source *c = NULL, *p = NULL;
    path_of(stem, path);
    T_NEED(sl_source_open(ctx, stem, quant, &p) == SL_OK, "%s", sl_error(ctx));
    sl_status st = sl_source_open(ctx, path, quant, &c);
    T_CHECK(st == SL_OK, "%s", sl_error(ctx));
    if (st == SL_OK) {
        same_shape(c->shape, p->shape, stem);
        T_CHECK(c->kind == SL_SOURCE_CONFIG && !c->exact && !strcmp(c->path, path), "%s", stem);
        T_CHECK(c->runs == p->runs && !strcmp(c->arch, p->arch) && !strcmp(c->quant, p->quant),
                "%s: %s, %s", stem, c->arch, c->quant);
        T_CHECK(c->active_params == p->active_params, "%s", stem);
    }
    sl_source_close(&c);
    sl_source_close(&p);
}

static void check_dense(sl_ctx *ctx)
{
    static const struct { const char *stem, *arch; double params; uint32_t k_elems;
    } models[] = {
        { "dense-llama-3.1-8b", "llama", 8.03, 1024 },
        { "dense-qwen2.5-7b", "qwen2", 7.616, 512 },
        { "dense-qwen3-8b", "qwen3", 8.19, 1024 },
    };
    char path[1024];
    for (size_t i = 0; i < SL_LEN(models); i++) {
        sl_source *s = NULL;
        path_of(models[i].stem, path);
        T_NEED(sl_source_open(ctx, path, "Q8_0", &s) == SL_OK, "%s", sl_error(ctx));
        const sl_layer_shape *l = &s->shape->layers[1];
        T_CHECK(fabs((double)s->shape->n_params * 1e-9 / models[i].params - 1) < 0.002, "%s: %llu",
                models[i].stem, (ull)s->shape->n_params);
        T_CHECK(s->runs && !strcmp(s->arch, models[i].arch) && !l->n_expert && !l->expert_bytes
                    && l->ffn_bytes && l->k_elems == models[i].k_elems
                    && !s->shape->experts_bytes,
                "%s", models[i].stem);
        sl_source_close(&s);
    }
}

/* 1e9 weights that the model classes of transformers 5.23 make of these very files
 * (tests/golden/count_config.py). */
static void check_counts(sl_ctx *ctx)
{
    static const struct { const char *stem; double params; } models[] = {
        { "dbrx", 131.5965 }, { "deepseek-v2-lite", 15.7065 }, { "deepseek-v2", 235.7414 },
        { "deepseek-v3", 671.0264 }, { "dense-llama-3.1-8b", 8.0303 },
        { "dense-qwen2.5-7b", 7.6156 }, { "dense-qwen3-8b", 8.1907 }, { "dots.llm1", 142.7744 },
        { "ernie-4.5-21b-a3b", 21.8254 }, { "ernie-4.5-300b-a47b", 299.4842 },
        { "glm-4.5-air", 106.8522 }, { "glm-4.6", 352.7978 }, { "glm-4.7-flash", 29.9434 },
        { "glm-5", 743.9112 }, { "gpt-oss-120b", 116.8292 }, { "gpt-oss-20b", 20.9148 },
        { "granite-3-3b-a800m", 3.2988 }, { "granite-4-h-small", 32.2073 },
        { "granite-4-h-tiny", 6.9390 }, { "hunyuan-a13b", 80.3932 },
        { "jamba-1.5-large", 398.5551 }, { "jamba-1.5-mini", 51.5703 }, { "lfm2-8b-a1b", 8.3399 },
        { "llama-4-maverick", 400.7118 }, { "llama-4-scout", 107.7699 },
        { "minimax-m2", 228.6897 }, { "mixtral-8x22b", 140.6206 }, { "mixtral-8x7b", 46.7028 },
        { "moonlight-16b-a3b", 15.9601 }, { "olmoe-1b-7b", 6.9192 }, { "phi-3.5-moe", 41.8732 },
        { "qwen1.5-moe-a2.7b", 14.3158 }, { "qwen2-57b-a14b", 57.4087 },
        { "qwen3-235b-a22b", 235.0936 }, { "qwen3-30b-a3b", 30.5321 },
        { "qwen3-next-80b-a3b", 79.6744 }, { "qwen3.5-35b-a3b", 34.6606 },
        { "solar-open-100b", 102.6518 }, { "trinity-mini", 26.1240 },
    };
    char path[1024];
    for (size_t i = 0; i < SL_LEN(models); i++) {
        sl_source *s = NULL;
        path_of(models[i].stem, path);
        T_NEED(sl_source_open(ctx, path, NULL, &s) == SL_OK, "%s", sl_error(ctx));
        double got = (double)s->shape->n_params * 1e-9, off = got / models[i].params - 1;
        /* GLM-5's indexer is left out. */
        T_CHECK(fabs(off) < (strcmp(models[i].stem, "glm-5") ? 2e-5 : 1e-3), "%s: %.4f, not %.4f",
                models[i].stem, got, models[i].params);
        sl_source_close(&s);
    }
}

static void check_unknown(sl_ctx *ctx)
{
    char path[1024];
    sl_source *s = NULL;
    path_of("unknown-moe", path);
    T_NEED(sl_source_open(ctx, path, NULL, &s) == SL_OK, "%s", sl_error(ctx));
    const sl_layer_shape *l = &s->shape->layers[1];
    T_CHECK(!s->runs && strstr(s->why_not, "new_moe") && !strcmp(s->arch, "new_moe"), "%s",
            s->why_not);
    T_CHECK(!strcmp(s->title, "unknown-moe"), "%s", s->title);
    T_CHECK(l->n_expert == 96 && l->n_used == 6 && l->window == 4096
                && !s->shape->layers[0].n_expert && l->expert_flops_row == 2ull * 3 * 2048 * 1024
                && l->ffn_flops_row == 2ull * 3 * 2048 * 1024,
            "%u of %u", l->n_used, l->n_expert);
    sl_source_close(&s);
}

/* The file with one field of its root (or of text_config) set to what the text says, "" removes
 * it. */
static void fails(sl_ctx *ctx, const char *stem, const char *inner, const char *field,
                  const char *value, sl_status want, const char *says)
{
    char path[1024];
    sl_json root;
    sl_config *c = NULL;
    path_of(stem, path);
    T_NEED(sl_json_load(ctx, path, &root) == SL_OK, "%s", sl_error(ctx));
    json_t *at = inner ? json_object_get(root.v, inner) : root.v;
    if (*value) json_object_set_new(at, field, json_loads(value, JSON_DECODE_ANY, NULL));
    else json_object_del(at, field);
    char *text = json_dumps(root.v, 0);
    sl_status st = sl_config_parse(ctx, "F", text, strlen(text), &c);
    T_CHECK(st == want && !c && strstr(sl_error(ctx), says), "%s %s: %s: %s", field, value,
            sl_status_name(st), sl_error(ctx));
    sl_config_free(&c);
    json_decref(root.v);
    free(text);
}

static void check_errors(sl_ctx *ctx)
{
    static const struct { const char *stem, *inner, *field, *value, *says;
    } bad[] = {
        { "qwen3-30b-a3b", NULL, "hidden_size", "", "F: hidden_size: expected a value" },
        { "qwen3-30b-a3b", NULL, "hidden_size", "0", "hidden_size: expected a whole number" },
        { "qwen3-30b-a3b", NULL, "hidden_size", "-1", "found -1" },
        { "qwen3-30b-a3b", NULL, "hidden_size", "2048.5", "found 2048.5" },
        { "qwen3-30b-a3b", NULL, "hidden_size", "\"2048\"", "found \"2048\"" },
        { "qwen3-30b-a3b", NULL, "hidden_size", "9000000000000000000", "hidden_size" },
        { "qwen3-30b-a3b", NULL, "hidden_size", "null", "hidden_size: expected a whole number" },
        { "qwen3-30b-a3b", NULL, "num_hidden_layers", "1000000", "num_hidden_layers" },
        { "qwen3-30b-a3b", NULL, "num_experts", "1000000", "num_experts" },
        { "qwen3-30b-a3b", NULL, "num_experts_per_tok", "129", "from 1 to 128, found 129" },
        { "qwen3-30b-a3b", NULL, "num_experts_per_tok", "", "num_experts_per_tok" },
        { "qwen3-30b-a3b", NULL, "moe_intermediate_size", "[768, 768, 769]",
          "moe_intermediate_size[2]" },
        { "qwen3-30b-a3b", NULL, "num_key_value_heads", "5", "divisor of the 32" },
        { "qwen3-30b-a3b", NULL, "decoder_sparse_step", "0", "decoder_sparse_step" },
        { "qwen3-30b-a3b", NULL, "mlp_only_layers", "[3]", "mlp_only_layers: expected an empty" },
        { "qwen3-30b-a3b", NULL, "tie_word_embeddings", "1", "tie_word_embeddings: expected true" },
        { "llama-4-scout", "text_config", "vocab_size", "0", "text_config.vocab_size" },
        { "gpt-oss-20b", NULL, "layer_types", "[\"x\"]", "layer_types: expected an array of 24" },
        { "trinity-mini", NULL, "sliding_window", "", "sliding_window" },
        { "jamba-1.5-mini", NULL, "expert_layer_offset", "0", "expert_layer_offset" },
        { "jamba-1.5-mini", NULL, "mamba_d_state", "0", "mamba_d_state" },
        { "jamba-1.5-mini", NULL, "attn_layer_offset", "8", "attn_layer_offset" },
        { "minimax-m1", NULL, "attn_type_list", "[]", "attn_type_list" },
        { "deepseek-v3", NULL, "v_head_dim", "", "v_head_dim" },
        { "deepseek-v3", NULL, "n_shared_experts", "16384", "shared experts" },
        { "dbrx", "ffn_config", "moe_top_k", "17", "ffn_config.moe_top_k" },
    };
    for (size_t i = 0; i < SL_LEN(bad); i++)
        fails(ctx, bad[i].stem, bad[i].inner, bad[i].field, bad[i].value, SL_E_FORMAT,
              bad[i].says);
    fails(ctx, "jamba-1.5-mini", NULL, "mamba_d_state", "", SL_E_UNSUPPORTED, "jamba");
    /* each size passes, all together do not */
    static const char *const huge[] = {
        "{\"hidden_size\":131072,\"num_hidden_layers\":2048,\"vocab_size\":1000,"
        "\"num_attention_heads\":64,\"num_experts\":16384,\"num_experts_per_tok\":1,"
        "\"moe_intermediate_size\":1048576}",
        "[1]", "", "{", "{\"hidden_size\":NaN}", "{\"hidden_size\":1,\"hidden_size\":1}", "null",
    };
    for (size_t i = 0; i < SL_LEN(huge); i++) {
        sl_config *c = NULL;
        sl_status st = sl_config_parse(ctx, "F", huge[i], strlen(huge[i]), &c);
        T_CHECK(st == SL_E_FORMAT && !c && !strncmp(sl_error(ctx), "F: ", 3), "%s: %s", huge[i],
                sl_error(ctx));
        if (!i) T_CHECK(strstr(sl_error(ctx), "1e14"), "%s", sl_error(ctx));
    }
}

/* A folder with a config.json is named after the folder. */
static void check_folder(sl_ctx *ctx)
{
    char dir[] = "/tmp/t_config_XXXXXX", from[1024], inner[64], to[128];
    sl_source *s = NULL;
    T_NEED(mkdtemp(dir), "temporary folder");
    snprintf(inner, sizeof inner, "%s/Qwen3-30B-A3B", dir);
    snprintf(to, sizeof to, "%s/config.json", inner);
    path_of("qwen3-30b-a3b", from);
    char *full = realpath(from, NULL);
    T_NEED(full && mkdir(inner, 0777) == 0 && symlink(full, to) == 0, "link to %s", from);
    free(full);
    T_NEED(sl_source_open(ctx, inner, "Q8_0", &s) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(!strcmp(s->title, "Qwen3-30B-A3B") && !strcmp(s->quant, "Q8_0"), "%s", s->title);
    sl_source_close(&s);
    unlink(to);
    T_CHECK(sl_source_open(ctx, inner, NULL, &s) == SL_E_IO && strstr(sl_error(ctx), to), "%s",
            sl_error(ctx));
    rmdir(inner);
    rmdir(dir);
}

int main(void)
{
    const char *root = getenv("SLUICE_SOURCE_DIR");
    struct dirent **names;
    uint32_t n_alike = 0;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    snprintf(folder, sizeof folder, "%s/tests/corpus/config", root ? root : ".");
    int n = scandir(folder, &names, NULL, alphasort);
    T_NEED(n > 0, "read %s", folder);
    for (int i = 0; i < n; i++) {
        char *dot = strstr(names[i]->d_name, ".json");
        if (dot) *dot = '\0';
        if (dot && sl_preset_find(names[i]->d_name)) {
            check_like_preset(ctx, names[i]->d_name, NULL);
            check_like_preset(ctx, names[i]->d_name, "Q8_0");
            n_alike++;
        }
        free(names[i]);
    }
    free(names);
    T_CHECK(n_alike >= 40, "%u files of presets", n_alike);
    check_dense(ctx);
    check_counts(ctx);
    check_unknown(ctx);
    check_errors(ctx);
    check_folder(ctx);
    sl_ctx_destroy(&ctx);
    return t_end();
}
