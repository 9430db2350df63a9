/* tools/cmd_inspect.c - `sluice inspect`: what a GGUF file holds, from its header alone.
 * Works for any GGUF: unknown architectures, vocabularies without tensors, split files. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "kernels/sl_kernels.h"
#include "runtime/sl_gguf.h"
#include "tools/cli.h"

enum {
    MAX_LAYERS = 4096,      /* layers whose experts are told apart; more count as bytes only */
    SHOWN_TENSORS = 24,     /* without -v */
    SHOWN_ELEMENTS = 6,     /* of an array */
    SHOWN_CHARS = 56        /* of a string */
};

struct layer {
    uint64_t expert_bytes;  /* of one expert: its gate, up and down slices */
    uint64_t n_experts;
};

struct summary {
    uint64_t bytes, params, dense, embedding, experts, shared;
    uint64_t type_bytes[SL_N_TYPES], type_tensors[SL_N_TYPES];
    uint64_t n_moe_layers, n_experts, n_used;
    uint64_t expert_min, expert_max;    /* bytes of one expert, over the layers */
    uint64_t token_bytes;               /* weights that one token alone reads */
    bool tied;                          /* the embedding is the head, too */
    struct layer layer[MAX_LAYERS];
};

struct args { const char *model; bool json, verbose; };

/* ---- text of unknown bytes ---- */

/* Bytes of the UTF-8 character at p; 0: none (RFC 3629: overlong forms and surrogates are none). */
static size_t utf8_char(const unsigned char *p, size_t n)
{
    size_t len = p[0] < 0x80 ? 1 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 :
                 p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : 0;
    if (!len || len > n) return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f)) return 0;
    if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) return 0;
    return len;
}

/* Valid UTF-8 without NUL: what is neither becomes U+FFFD. */
static json_t *json_text(sl_str s)
{
    char *out = malloc(3 * s.n + 1);
    size_t n = 0;
    if (!out) return NULL;
    for (size_t i = 0; i < s.n;) {
        size_t len = s.p[i] ? utf8_char((const unsigned char *)s.p + i, s.n - i) : 0;
        memcpy(out + n, len ? s.p + i : "\xef\xbf\xbd", len ? len : 3);
        n += len ? len : 3;
        i += len ? len : 1;
    }
    out[n] = 0;
    json_t *j = json_stringn_nocheck(out, n);
    free(out);
    return j;
}

/* At most max characters on one line: control bytes escaped, what is no UTF-8 as \xNN. */
static void print_text(sl_str s, size_t max)
{
    size_t i = 0;
    for (size_t shown = 0; i < s.n && shown < max; shown++) {
        unsigned char c = (unsigned char)s.p[i];
        size_t len = utf8_char((const unsigned char *)s.p + i, s.n - i);
        if (c == '\n') fputs("\\n", stdout);
        else if (len && c >= 32 && c != 127) fwrite(s.p + i, 1, len, stdout);
        else printf("\\x%02x", c);
        i += len ? len : 1;
    }
    if (i < s.n) fputs("...", stdout);
}

/* ---- classes of tensors, by name ---- */

static bool starts(sl_str s, const char *with)
{
    size_t n = strlen(with);
    return s.n >= n && !memcmp(s.p, with, n);
}

static bool ends(sl_str s, const char *with)
{
    size_t n = strlen(with);
    return s.n >= n && !memcmp(s.p + s.n - n, with, n);
}

static bool take_number(sl_str *s, uint32_t *ret)
{
    uint64_t v = 0;
    size_t i = 0;
    while (i < s->n && i < 9 && s->p[i] >= '0' && s->p[i] <= '9')
        v = 10 * v + (uint64_t)(s->p[i++] - '0');
    *s = (sl_str){ s->p + i, s->n - i };
    *ret = (uint32_t)v;
    return i > 0;
}

/* Experts are "blk.L.ffn_gate_exps.weight" (and up, down, gate_up, chexps), all in one tensor, or,
 * in old files, "blk.L.ffn_gate.E.weight" each. Their biases are dense. *ret_n: experts in it. */
static bool is_expert(const sl_tensor *t, uint32_t *ret_layer, uint64_t *ret_n)
{
    sl_str s = t->name;
    uint32_t expert;
    if (!starts(s, "blk.") || !ends(s, ".weight")) return false;
    s = (sl_str){ s.p + 4, s.n - 4 };
    if (!take_number(&s, ret_layer) || !starts(s, ".ffn_")) return false;
    if (ends(s, "exps.weight") && !ends(s, "shexps.weight")) {
        *ret_n = t->ne[t->n_dims - 1];
        return t->n_dims > 2;
    }
    const char *dot = memchr(s.p + 1, '.', s.n - 1);
    s = (sl_str){ dot + 1, s.n - (size_t)(dot + 1 - s.p) };
    *ret_n = 1;
    return take_number(&s, &expert) && s.n == strlen(".weight");
}

static bool is_shared(sl_str name)
{
    for (size_t i = 0; i + 6 <= name.n; i++)
        if (!memcmp(name.p + i, "_shexp", 6)) return true;
    return false;
}

static void add_expert(struct summary *s, const sl_tensor *t, uint32_t layer, uint64_t n)
{
    s->experts += t->bytes;
    if (layer >= MAX_LAYERS) return;
    struct layer *l = &s->layer[layer];
    sl_str rest = t->name;
    bool single = n == 1 && t->n_dims < 3;
    if (!single) {
        l->expert_bytes += t->bytes / n;
        l->n_experts = n;
        return;
    }
    /* One tensor per expert: the first expert stands for all, gate tensors count them. */
    rest = (sl_str){ rest.p, rest.n - strlen(".weight") };
    if (ends(rest, ".0")) l->expert_bytes += t->bytes;
    for (size_t i = 0; i + 9 <= rest.n; i++)
        if (!memcmp(rest.p + i, "ffn_down.", 9)) l->n_experts++;
}

static uint64_t arch_key(const sl_gguf *g, const char *name)
{
    sl_str arch;
    char key[128];
    uint64_t v = 0;
    if (!sl_gguf_get_str(g, sl_gguf_kv_find(g, "general.architecture"), 0, &arch)) return 0;
    snprintf(key, sizeof key, "%.*s.%s", (int)SL_MIN(arch.n, (size_t)64), arch.p, name);
    return sl_gguf_get_u64(g, sl_gguf_kv_find(g, key), 0, &v) ? v : 0;
}

static void add_layers(struct summary *s)
{
    s->token_bytes = s->dense + (s->tied ? s->embedding : 0);
    for (size_t i = 0; i < MAX_LAYERS; i++) {
        const struct layer *l = &s->layer[i];
        if (!l->n_experts) continue;
        s->n_moe_layers++;
        s->n_experts = SL_MAX(s->n_experts, l->n_experts);
        if (s->n_moe_layers == 1) s->expert_min = l->expert_bytes;
        s->expert_min = SL_MIN(s->expert_min, l->expert_bytes);
        s->expert_max = SL_MAX(s->expert_max, l->expert_bytes);
        s->token_bytes += SL_MIN(s->n_used, l->n_experts) * l->expert_bytes;
    }
}

static void summarise(const sl_gguf *g, struct summary *s)
{
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const sl_tensor *t = sl_gguf_tensor(g, i);
        uint32_t layer;
        uint64_t n = 0;
        s->bytes += t->bytes;
        s->params += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        s->type_bytes[t->type] += t->bytes;
        s->type_tensors[t->type]++;
        if (is_expert(t, &layer, &n)) add_expert(s, t, layer, n);
        else if (starts(t->name, "token_embd.")) s->embedding += t->bytes;
        else s->dense += t->bytes;
        if (is_shared(t->name)) s->shared += t->bytes;
    }
    s->tied = s->embedding && !sl_gguf_find(g, "output.weight");
    s->n_used = arch_key(g, "expert_used_count");
    add_layers(s);
}

/* Types with tensors, most bytes first; returns how many. */
static size_t types_by_bytes(const struct summary *s, uint32_t order[SL_N_TYPES])
{
    size_t n = 0;
    for (uint32_t t = 0; t < SL_N_TYPES; t++) {
        if (!s->type_tensors[t]) continue;
        size_t at = n++;
        for (; at && s->type_bytes[order[at - 1]] < s->type_bytes[t]; at--)
            order[at] = order[at - 1];
        order[at] = t;
    }
    return n;
}

static const char *isa(void)
{
    sl_kernels k;
    sl_kernels_init(&k, sl_cpu_detect());
    return k.isa;
}

/* ---- text ---- */

static const char *const vtype_names[] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64",
};

static void print_element(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i, bool quoted)
{
    sl_str s;
    int64_t v;
    uint64_t u;
    bool b;
    double f;
    if (sl_gguf_get_str(g, kv, i, &s)) {
        if (quoted) putchar('"');
        print_text(s, SHOWN_CHARS);
        if (quoted) putchar('"');
    }
    else if (sl_gguf_get_bool(g, kv, i, &b)) fputs(b ? "true" : "false", stdout);
    else if (sl_gguf_get_i64(g, kv, i, &v)) printf("%" PRId64, v);
    else if (sl_gguf_get_u64(g, kv, i, &u)) printf("%" PRIu64, u);
    else if (sl_gguf_get_f64(g, kv, i, &f)) printf("%.7g", f);
}

static void print_metadata(const sl_gguf *g)
{
    printf("\nmetadata, %" PRIu64 " keys\n", sl_gguf_n_kv(g));
    for (uint64_t i = 0; i < sl_gguf_n_kv(g); i++) {
        const sl_gguf_kv *kv = sl_gguf_kv_at(g, i);
        char type[40];
        bool array = kv->type == SL_GGUF_ARR;
        snprintf(type, sizeof type, array ? "%s[%" PRIu64 "]" : "%s", vtype_names[kv->elem_type],
                 kv->n);
        fputs("  ", stdout);
        print_text(kv->key, 128);
        printf("%*s %-12s ", (int)(kv->key.n < 44 ? 44 - kv->key.n : 0), "", type);
        for (uint64_t e = 0; e < SL_MIN(kv->n, (uint64_t)SHOWN_ELEMENTS); e++) {
            if (e) fputs(", ", stdout);
            print_element(g, kv, e, array);
        }
        puts(kv->n > SHOWN_ELEMENTS ? ", ..." : "");
    }
}

static void print_classes(const struct summary *s)
{
    char a[24], b[24];
    printf("\nbytes by class\n  %-12s %10s\n", "dense", cli_bytes(s->dense, a));
    if (s->shared) printf("  %-12s %10s  of the dense ones\n", "  shared", cli_bytes(s->shared, a));
    printf("  %-12s %10s%s\n", "embedding", cli_bytes(s->embedding, a),
           s->tied && s->token_bytes ? "  also the output head" : "");
    printf("  %-12s %10s\n", "experts", cli_bytes(s->experts, a));
    if (s->n_moe_layers) {
        printf("  %-12s %10s", "one expert", cli_bytes(s->expert_min, a));
        if (s->expert_max != s->expert_min) printf(" to %s", cli_bytes(s->expert_max, b));
        printf("  %" PRIu64 " of %" PRIu64 " used in each of %" PRIu64 " layers\n", s->n_used,
               s->n_experts, s->n_moe_layers);
    }
    printf("  %-12s %10s  weights that one token alone reads\n", "per token",
           cli_bytes(s->token_bytes, a));
}

static void print_types(const struct summary *s)
{
    uint32_t order[SL_N_TYPES];
    size_t n = types_by_bytes(s, order);
    char a[24];
    puts("\nbytes by type");
    for (size_t i = 0; i < n; i++)
        printf("  %-12s %10s  %" PRIu64 " tensors\n", sl_type_get(order[i])->name,
               cli_bytes(s->type_bytes[order[i]], a), s->type_tensors[order[i]]);
}

static void print_tensors(const sl_gguf *g, bool all)
{
    uint64_t n = sl_gguf_n_tensors(g), shown = all ? n : SL_MIN(n, (uint64_t)SHOWN_TENSORS);
    printf("\ntensors, %" PRIu64 "\n", n);
    for (uint64_t i = 0; i < shown; i++) {
        const sl_tensor *t = sl_gguf_tensor(g, i);
        char shape[96], bytes[24];
        int at = 0;
        for (uint32_t d = 0; d < t->n_dims; d++)
            at += snprintf(shape + at, sizeof shape - (size_t)at, d ? " x %" PRIu64 : "%" PRIu64,
                           t->ne[d]);
        fputs("  ", stdout);
        print_text(t->name, 128);
        printf("%*s %-8s %-24s %10s\n", (int)(t->name.n < 36 ? 36 - t->name.n : 0), "",
               sl_type_get(t->type)->name, shape, cli_bytes(t->bytes, bytes));
    }
    if (shown < n) printf("  ... and %" PRIu64 " more: -v shows them\n", n - shown);
}

static void print_all(const sl_gguf *g, const struct summary *s, bool all_tensors)
{
    sl_str arch = { "unknown architecture", 20 };
    char a[24];
    sl_gguf_get_str(g, sl_gguf_kv_find(g, "general.architecture"), 0, &arch);
    printf("%s: GGUF v%u, ", sl_gguf_path(g, 0), sl_gguf_version(g));
    print_text(arch, 64);
    printf(", %u file%s, %" PRIu64 " tensors, %s, %.4g million parameters\n", sl_gguf_n_files(g),
           sl_gguf_n_files(g) > 1 ? "s" : "", sl_gguf_n_tensors(g), cli_bytes(s->bytes, a),
           (double)s->params / 1e6);
    print_metadata(g);
    if (!sl_gguf_n_tensors(g)) {
        puts("\nno tensors: a vocabulary");
        return;
    }
    print_classes(s);
    print_types(s);
    printf("\nkernels on this machine: %s\n", isa());
    print_tensors(g, all_tensors);
}

/* ---- JSON ---- */

static json_t *json_element(const sl_gguf *g, const sl_gguf_kv *kv, uint64_t i)
{
    sl_str s;
    int64_t v;
    double f = 0;
    bool b;
    if (sl_gguf_get_str(g, kv, i, &s)) return json_text(s);
    if (sl_gguf_get_bool(g, kv, i, &b)) return json_boolean(b);
    if (sl_gguf_get_i64(g, kv, i, &v)) return json_integer(v);
    sl_gguf_get_f64(g, kv, i, &f);
    json_t *j = json_real(f);       /* NULL for what JSON has no number for */
    return j ? j : json_null();
}

static json_t *json_metadata(const sl_gguf *g)
{
    json_t *all = json_object();
    for (uint64_t i = 0; i < sl_gguf_n_kv(g); i++) {
        const sl_gguf_kv *kv = sl_gguf_kv_at(g, i);
        json_t *key = json_text(kv->key), *v;
        if (kv->type == SL_GGUF_ARR) {
            json_t *first = json_array();
            for (uint64_t e = 0; e < SL_MIN(kv->n, (uint64_t)SHOWN_ELEMENTS); e++)
                json_array_append_new(first, json_element(g, kv, e));
            v = json_pack("{s:s, s:I, s:o}", "type", vtype_names[kv->elem_type], "n",
                          (json_int_t)kv->n, "first", first);
        } else v = json_element(g, kv, 0);
        json_object_set_new_nocheck(all, json_string_value(key), v);
        json_decref(key);
    }
    return all;
}

static json_t *json_tensors(const sl_gguf *g)
{
    json_t *all = json_array();
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const sl_tensor *t = sl_gguf_tensor(g, i);
        json_t *shape = json_array();
        for (uint32_t d = 0; d < t->n_dims; d++)
            json_array_append_new(shape, json_integer((json_int_t)t->ne[d]));
        json_t *one = json_pack("{s:o, s:s, s:o, s:I, s:i, s:I}", "name", json_text(t->name),
                                "type", sl_type_get(t->type)->name, "shape", shape, "bytes",
                                (json_int_t)t->bytes, "file", (int)t->file, "offset",
                                (json_int_t)t->offset);
        json_array_append_new(all, one);
    }
    return all;
}

static json_t *json_classes(const struct summary *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "dense", (json_int_t)s->dense,
                     "shared_experts", (json_int_t)s->shared, "embedding", (json_int_t)s->embedding,
                     "experts", (json_int_t)s->experts, "expert_min", (json_int_t)s->expert_min,
                     "expert_max", (json_int_t)s->expert_max, "token", (json_int_t)s->token_bytes);
}

static json_t *json_types(const struct summary *s)
{
    uint32_t order[SL_N_TYPES];
    size_t n = types_by_bytes(s, order);
    json_t *all = json_object();
    for (size_t i = 0; i < n; i++)
        json_object_set_new(all, sl_type_get(order[i])->name,
                            json_pack("{s:I, s:I}", "tensors",
                                      (json_int_t)s->type_tensors[order[i]], "bytes",
                                      (json_int_t)s->type_bytes[order[i]]));
    return all;
}

static int print_json(const sl_gguf *g, const struct summary *s)
{
    json_t *files = json_array(), *arch;
    sl_str name;
    for (uint32_t f = 0; f < sl_gguf_n_files(g); f++) {
        sl_str path = { sl_gguf_path(g, f), strlen(sl_gguf_path(g, f)) };
        json_array_append_new(files, json_pack("{s:o, s:I}", "path", json_text(path), "bytes",
                                               (json_int_t)sl_gguf_file_bytes(g, f)));
    }
    bool known = sl_gguf_get_str(g, sl_gguf_kv_find(g, "general.architecture"), 0, &name);
    arch = known ? json_text(name) : json_null();
    json_t *all = json_pack("{s:o, s:i, s:o, s:I, s:I, s:I, s:I, s:I, s:I}", "files", files,
                            "version", (int)sl_gguf_version(g), "architecture", arch, "n_tensors",
                            (json_int_t)sl_gguf_n_tensors(g), "bytes", (json_int_t)s->bytes,
                            "parameters", (json_int_t)s->params, "n_moe_layers",
                            (json_int_t)s->n_moe_layers, "n_experts", (json_int_t)s->n_experts,
                            "n_experts_used", (json_int_t)s->n_used);
    json_object_set_new(all, "isa", json_string(isa()));
    json_object_set_new(all, "bytes_by_class", json_classes(s));
    json_object_set_new(all, "by_type", json_types(s));
    json_object_set_new(all, "metadata", json_metadata(g));
    json_object_set_new(all, "tensors", json_tensors(g));
    if (json_dumpf(all, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8))) {
        json_decref(all);
        return cli_fail("the JSON text could not be written");
    }
    putchar('\n');
    json_decref(all);
    return CLI_DONE;
}

int cmd_inspect(int argc, char **argv)
{
    static const cli_option options[] = {
        { "-m,--model", CLI_STR, "MODEL", "the same as MODEL (default: the bundled model)",
          offsetof(struct args, model), 0, 0 },
        { "-v,--verbose", CLI_FLAG, NULL, "list every tensor", offsetof(struct args, verbose), 0,
          0 },
        { "--json", CLI_FLAG, NULL, "one JSON object on stdout", offsetof(struct args, json), 0,
          0 },
    };
    struct args a = { 0 };
    cli_group groups[] = { { "Options", options, SL_LEN(options), &a, 0 } };
    static const char *const about =
        "Shows a GGUF's metadata, tensors and bytes per class, from its header. Of a split model, "
        "name the first file.";
    cli_spec spec = { "inspect", "[-v] [--json] [MODEL]", about, groups, SL_LEN(groups), 1 };
    char *path[1];
    int code, n;
    if (!cli_parse(&spec, argc, argv, path, &n, &code)) return code;
    if (n && a.model) return cli_usage_error(&spec, "MODEL is given twice");
    char *file = cli_model_path(n ? path[0] : a.model);
    sl_ctx *ctx = cli_ctx(a.verbose);
    struct summary *s = calloc(1, sizeof *s);
    sl_gguf *g = NULL;
    if (!file) code = CLI_FAILED;
    else if (!ctx || !s) code = cli_fail("out of memory");
    else if (sl_gguf_open(ctx, file, &g) != SL_OK) code = cli_fail_ctx(ctx);
    else {
        summarise(g, s);
        code = CLI_DONE;
        if (a.json) code = print_json(g, s);
        else print_all(g, s, a.verbose);
        code = cli_end_stdout(code);
    }
    sl_gguf_close(&g);
    sl_ctx_destroy(&ctx);
    free(s);
    free(file);
    return code;
}
