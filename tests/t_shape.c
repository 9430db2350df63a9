/* tests/t_shape.c - the parts of a shape (weights by type) against its byte and operation counts,
 * for every golden architecture: matrices by type plus norms and biases are a class's bytes, and
 * two operations a weight are its flops. */
#include "runtime/sluice.h"
#include "tests/t.h"

#include <dirent.h>

static const char *const classes[] = { "qkv", "post", "router", "ffn", "expert" };
enum { QKV, POST, ROUTER, FFN, EXPERT, N_CLASSES };

/* Class of a vector "blk.N.STEM...": norms, biases and the shared expert's gate; -1: none counted
 * in a class. */
static int class_of(const char *stem, size_t n)
{
    static const struct { const char *stem; int c;
    } table[] = {
        { "attn_output", POST },    { "attn_", QKV },       { "ffn_gate_inp.", ROUTER },
        { "exp_probs_b", ROUTER },  { "ffn_norm", POST },   { "post_attention_norm", POST },
        { "ffn_gate_exps", EXPERT }, { "ffn_up_exps", EXPERT }, { "ffn_down_exps", EXPERT },
        { "ffn_", FFN },
    };
    for (size_t i = 0; i < SL_LEN(table); i++)
        if (n >= strlen(table[i].stem) && !memcmp(stem, table[i].stem, strlen(table[i].stem)))
            return table[i].c;
    return -1;
}

static bool ends(sl_str s, const char *tail)
{
    size_t n = strlen(tail);
    return s.n >= n && !memcmp(s.p + s.n - n, tail, n);
}

static void sum_vectors(const sl_gguf *g, uint32_t layer, uint64_t ret[N_CLASSES])
{
    char prefix[24];
    int n = snprintf(prefix, sizeof prefix, "blk.%u.", layer);
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const sl_tensor *t = sl_gguf_tensor(g, i);
        if (t->name.n < (size_t)n || memcmp(t->name.p, prefix, (size_t)n)) continue;
        if (!ends(t->name, ".bias") && !ends(t->name, "norm.weight")
            && !ends(t->name, "sinks.weight") && !ends(t->name, "gate_inp_shexp.weight"))
            continue;
        int c = class_of(t->name.p + n, t->name.n - (size_t)n);
        T_NEED(c >= 0, "%.*s", (int)t->name.n, t->name.p);
        ret[c] += t->bytes;
    }
}

static void check_class(const char *file, uint32_t layer, int c, const sl_part *parts, uint32_t n,
                        uint64_t vectors, uint64_t bytes, uint64_t flops, uint64_t int_flops)
{
    uint64_t part_bytes = 0, elems = 0, int_elems = 0;
    for (uint32_t i = 0; i < n && parts[i].elems; i++) {
        const sl_type_info *t = sl_type_get(parts[i].type);
        for (uint32_t j = 0; j < i; j++) T_CHECK(parts[j].type != parts[i].type, "%s", file);
        part_bytes += parts[i].elems / t->block_elems * t->block_bytes;
        elems += parts[i].elems;
        if (t->block_elems > 1) int_elems += parts[i].elems;
    }
    T_CHECK(part_bytes + vectors == bytes, "%s layer %u %s: %llu + %llu bytes, expected %llu", file,
            layer, classes[c], (unsigned long long)part_bytes, (unsigned long long)vectors,
            (unsigned long long)bytes);
    T_CHECK(c == ROUTER || (2 * elems == flops && 2 * int_elems == int_flops),
            "%s layer %u %s: %llu weights, %llu flops", file, layer, classes[c],
            (unsigned long long)elems, (unsigned long long)flops);
}

static void check_file(sl_ctx *ctx, const char *file)
{
    sl_model *m = NULL;
    T_NEED(sl_model_open(ctx, file, &m) == SL_OK, "%s", sl_error(ctx));
    const sl_shape *s = sl_model_shape(m);
    for (uint32_t l = 0; l < s->n_layer; l++) {
        const sl_layer_shape *x = &s->layers[l];
        uint64_t v[N_CLASSES] = { 0 };
        sum_vectors(sl_model_gguf(m), l, v);
        if (x->n_expert) v[EXPERT] /= x->n_expert;
        check_class(file, l, QKV, x->qkv, SL_SHAPE_TYPES, v[QKV], x->qkv_bytes, x->qkv_flops_row,
                    x->qkv_int_flops_row);
        check_class(file, l, POST, x->post, SL_SHAPE_TYPES, v[POST], x->post_bytes,
                    x->post_flops_row, x->post_int_flops_row);
        check_class(file, l, ROUTER, &x->router, 1, v[ROUTER], x->router_bytes, 0, 0);
        check_class(file, l, FFN, x->ffn, SL_SHAPE_TYPES, v[FFN], x->ffn_bytes, x->ffn_flops_row,
                    x->ffn_int_flops_row);
        check_class(file, l, EXPERT, x->expert, SL_SHAPE_TYPES, v[EXPERT], x->expert_bytes,
                    x->expert_flops_row, x->expert_int_flops_row);
    }
    const sl_type_info *t = sl_type_get(s->head.type);
    T_CHECK(s->head.elems == (uint64_t)s->d_model * s->n_vocab, "%s", file);
    T_CHECK(s->head_int == (t->block_elems > 1), "%s", file);
    sl_model_close(&m);
}

int main(void)
{
    char folder[400], path[1024];
    const char *root = getenv("SLUICE_SOURCE_DIR");
    struct dirent **names;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    snprintf(folder, sizeof folder, "%s/tests/golden/arch", root ? root : ".");
    int n = scandir(folder, &names, NULL, alphasort);
    T_NEED(n > 0, "read %s", folder);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        if (strstr(path, ".gguf")) check_file(ctx, path);
        free(names[i]);
    }
    free(names);
    sl_ctx_destroy(&ctx);
    return t_end();
}
