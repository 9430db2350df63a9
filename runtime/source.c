/* runtime/source.c - a model's shape from whatever describes it. */
#include "runtime/source.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "runtime/model.h"
#include "runtime/sl_config.h"

typedef struct source {
    sl_source pub;              /* first */
    sl_shape shape;
    sl_layer_shape *layers;
    sl_config *config;          /* of a config.json; pub.preset is in it */
    char *text[5];              /* what pub's strings point to */
    uint32_t n_text;
} source;

static sl_status keep(sl_ctx *ctx, source *s, const char *text, const char **ret)
{
    assert(s->n_text < SL_LEN(s->text));
    char *copy = strdup(text);
    if (!copy) return sl_fail(ctx, SL_E_NOMEM, "name of a model");
    *ret = s->text[s->n_text++] = copy;
    return SL_OK;
}

static uint64_t elems(const sl_part *parts)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < SL_SHAPE_TYPES; i++) n += parts[i].elems;
    return n;
}

/* The table is read by row where it is not the head, and n_used experts of a layer. */
static uint64_t count_active(const sl_shape *s)
{
    uint64_t n = s->n_params - (s->head_bytes ? (uint64_t)s->d_model * s->n_vocab : 0);
    for (uint32_t i = 0; i < s->n_layer; i++)
        n -= elems(s->layers[i].expert) * (s->layers[i].n_expert - s->layers[i].n_used);
    return n;
}

/* The type of most weights. */
static const char *main_type(const sl_gguf *g)
{
    uint64_t sum[SL_N_TYPES] = { 0 };
    uint32_t best = 0;
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const sl_tensor *t = sl_gguf_tensor(g, i);
        sum[t->type] += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
    }
    for (uint32_t t = 1; t < SL_N_TYPES; t++)
        if (sum[t] > sum[best]) best = t;
    return sl_type_get(best)->name;
}

static sl_status name_gguf(sl_ctx *ctx, source *s, const sl_gguf *g, const char *name)
{
    char *title = model_name_of(g);
    if (!title) return sl_fail(ctx, SL_E_NOMEM, "name of a model");
    s->text[s->n_text++] = title;
    s->pub.title = title;
    SL_TRY(keep(ctx, s, name, &s->pub.arch));
    s->pub.quant = main_type(g);
    s->pub.exact = true;
    return SL_OK;
}

/* What the table of architectures does not have, or types that no kernel multiplies by. */
static sl_status read_by_names(sl_ctx *ctx, source *s, const char *path)
{
    sl_gguf *g = NULL;
    sl_str v;
    char name[64] = "";
    SL_TRY(keep(ctx, s, sl_error(ctx), &s->pub.why_not));
    SL_TRY(sl_gguf_open(ctx, path, &g));
    sl_status st = SL_OK;
    if (sl_gguf_get_str(g, sl_gguf_kv_find(g, "general.architecture"), 0, &v))
        snprintf(name, sizeof name, "%.*s", (int)SL_MIN(v.n, sizeof name - 1), v.p);
    if (!sl_gguf_n_tensors(g))
        st = sl_fail(ctx, SL_E_FORMAT, "%s: the file holds no tensors: a vocabulary only", path);
    if (st == SL_OK) st = source_shape_by_names(ctx, g, name, &s->shape, &s->layers);
    if (st == SL_OK) st = name_gguf(ctx, s, g, name);
    sl_gguf_close(&g);
    return st;
}

static sl_status read_gguf(sl_ctx *ctx, source *s, const char *path, const char *quant)
{
    sl_model *m = NULL;
    s->pub.kind = SL_SOURCE_GGUF;
    if (quant)
        return sl_fail(ctx, SL_E_ARG, "%s has its types already: %s cannot be asked for", path,
                       quant);
    SL_TRY(keep(ctx, s, path, &s->pub.path));
    sl_status st = model_open(ctx, path, false, &m);
    if (st == SL_E_UNSUPPORTED) return read_by_names(ctx, s, path);
    if (st != SL_OK) return st;
    size_t bytes = m->shape.n_layer * sizeof *s->layers;
    s->pub.runs = true;
    s->shape = m->shape;
    s->layers = malloc(bytes);
    if (s->layers) memcpy(s->layers, m->layer_shapes, bytes);
    else st = sl_fail(ctx, SL_E_NOMEM, "shapes of %u layers", m->shape.n_layer);
    if (st == SL_OK) st = name_gguf(ctx, s, m->gguf, m->arch->name);
    sl_model_close(&m);
    return st;
}

static sl_status take_preset(sl_ctx *ctx, source *s, const sl_preset *p, const char *quant)
{
    char why[160];
    if (!quant) quant = !strcmp(p->arch, "gpt-oss") ? "MXFP4" : "Q4_K_M";
    s->pub.preset = p;
    s->pub.title = p->title;
    s->pub.arch = p->arch;
    s->pub.runs = p->runs;
    SL_TRY(keep(ctx, s, quant, &s->pub.quant));
    for (char *c = s->text[s->n_text - 1]; *c; c++)
        if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A');
    if (!p->runs) {
        snprintf(why, sizeof why, "architecture \"%.40s\" cannot be run yet", p->arch);
        SL_TRY(keep(ctx, s, why, &s->pub.why_not));
    }
    s->layers = calloc(p->n_layer, sizeof *s->layers);
    if (!s->layers) return sl_fail(ctx, SL_E_NOMEM, "shapes of %u layers", p->n_layer);
    return sl_preset_shape(ctx, p, quant, s->layers, &s->shape);
}

static sl_status read_config(sl_ctx *ctx, source *s, const char *path, const char *quant)
{
    s->pub.kind = SL_SOURCE_CONFIG;
    SL_TRY(keep(ctx, s, path, &s->pub.path));
    SL_TRY(sl_config_load(ctx, path, &s->config));
    return take_preset(ctx, s, &s->config->preset, quant);
}

static bool ends_in(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcasecmp(s + n - m, tail);
}

/* Presets that begin alike, or all there is room for. */
static sl_status no_such(sl_ctx *ctx, const char *what)
{
    char names[600] = "";
    size_t n = 0, alike = strlen(what), same = 0;
    for (; alike >= 3 && !same; alike--)
        for (uint32_t i = 0; sl_preset_at(i); i++)
            same += !strncasecmp(sl_preset_at(i)->name, what, alike);
    if (same) alike++;
    else alike = 0;
    for (uint32_t i = 0; sl_preset_at(i) && n < sizeof names - 40; i++)
        if (!strncasecmp(sl_preset_at(i)->name, what, alike))
            n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "",
                                  sl_preset_at(i)->name);
    return sl_fail(ctx, SL_E_ARG, "\"%.200s\" is no file and no preset; %spresets: %s", what,
                   same ? "similar " : "some ", names);
}

static sl_status read_what(sl_ctx *ctx, source *s, const char *what, const char *quant)
{
    struct stat info;
    char in_folder[4096];
    const sl_preset *p = sl_preset_find(what);
    if (p) {
        s->pub.kind = SL_SOURCE_PRESET;
        return take_preset(ctx, s, p, quant);
    }
    if (stat(what, &info)) {
        if (strchr(what, '/') || ends_in(what, ".gguf") || ends_in(what, ".json"))
            return sl_fail(ctx, SL_E_IO, "open %s: %s", what, strerror(errno));
        return no_such(ctx, what);
    }
    if (S_ISDIR(info.st_mode)) {
        if ((size_t)snprintf(in_folder, sizeof in_folder, "%s/config.json", what)
            >= sizeof in_folder)
            return sl_fail(ctx, SL_E_ARG, "a path of more than %zu bytes", sizeof in_folder);
        return read_config(ctx, s, in_folder, quant);
    }
    return ends_in(what, ".json") ? read_config(ctx, s, what, quant)
                                  : read_gguf(ctx, s, what, quant);
}

sl_status sl_source_open(sl_ctx *ctx, const char *what, const char *quant, sl_source **ret)
{
    assert(ctx && what && ret);
    source *s = calloc(1, sizeof *s);
    if (!s) return sl_fail(ctx, SL_E_NOMEM, "handle of %s", what);
    sl_source *pub = &s->pub;
    sl_status st = read_what(ctx, s, what, quant);
    if (st != SL_OK) {
        sl_source_close(&pub);
        return st;
    }
    s->shape.layers = s->layers;
    pub->shape = &s->shape;
    pub->active_params = count_active(&s->shape);
    *ret = pub;
    return SL_OK;
}

void sl_source_close(sl_source **src)
{
    assert(src);
    source *s = (source *)*src;
    if (!s) return;
    for (uint32_t i = 0; i < s->n_text; i++) free(s->text[i]);
    free(s->layers);
    sl_config_free(&s->config);
    free(s);
    *src = NULL;
}
