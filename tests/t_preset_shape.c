/* tests/t_preset_shape.c - the shape of every preset that the engine runs, field by field, against
 * what the model loader makes of the header that synth would write: full headers, as sparse files
 * without data. */
#include "runtime/arch.h"
#include "runtime/sluice.h"
#include "runtime/synth.h"
#include "tests/t.h"

#include <fcntl.h>

static char path[] = "/tmp/t_preset_shape_XXXXXX";

/* The header of a synthetic model, and room for the tensors. */
static void write_header(sl_ctx *ctx, const sl_preset *p, const char *quant)
{
    synth_model m;
    sl_synth_params sp = { .preset = p, .quant = quant };
    unsigned char *head = NULL;
    size_t n = 0;
    T_NEED(synth_model_make(ctx, &sp, &m) == SL_OK, "%s", sl_error(ctx));
    T_NEED(gguf_out_finish(ctx, &m.out, &head, &n) == SL_OK, "%s", sl_error(ctx));
    int fd = open(path, O_WRONLY | O_TRUNC);
    T_NEED(fd >= 0 && write(fd, head, n) == (ssize_t)n, "write %s", path);
    T_NEED(ftruncate(fd, (off_t)(n + m.out.data_bytes)) == 0, "%llu sparse bytes",
           (unsigned long long)m.out.data_bytes);
    close(fd);
    free(head);
    synth_model_fini(&m);
}

typedef unsigned long long ull;
#define SAME(a, b, field) \
    T_CHECK((a)->field == (b)->field, "%s: " #field " is %llu, of the file %llu", what, \
            (ull)(a)->field, (ull)(b)->field)
#define SAME_PARTS(field, n) \
    for (uint32_t t_ = 0; t_ < (n); t_++) { \
        const sl_part *x_ = &(a)->field + t_, *y_ = &(b)->field + t_; \
        T_CHECK(x_->elems == y_->elems && x_->type == y_->type, \
                "%s: " #field "[%u] is %llu of type %d, of the file %llu of type %d", what, t_, \
                (ull)x_->elems, x_->type, (ull)y_->elems, y_->type); \
    }

static void same_layer(const sl_layer_shape *a, const sl_layer_shape *b, const char *what)
{
    SAME_PARTS(qkv[0], SL_SHAPE_TYPES);
    SAME_PARTS(post[0], SL_SHAPE_TYPES);
    SAME_PARTS(router, 1);
    SAME_PARTS(ffn[0], SL_SHAPE_TYPES);
    SAME_PARTS(expert[0], SL_SHAPE_TYPES);
    SAME(a, b, qkv_bytes);
    SAME(a, b, post_bytes);
    SAME(a, b, qkv_flops_row);
    SAME(a, b, post_flops_row);
    SAME(a, b, router_bytes);
    SAME(a, b, expert_bytes);
    SAME(a, b, expert_flops_row);
    SAME(a, b, slot_bytes);
    SAME(a, b, section_bytes);
    SAME(a, b, ffn_bytes);
    SAME(a, b, ffn_flops_row);
    SAME(a, b, n_expert);
    SAME(a, b, n_used);
    SAME(a, b, k_elems);
    SAME(a, b, v_elems);
    SAME(a, b, kv_unit);
    SAME(a, b, window);
    SAME(a, b, ctx_flops_row);
    SAME(a, b, qkv_int_flops_row);
    SAME(a, b, post_int_flops_row);
    SAME(a, b, expert_int_flops_row);
    SAME(a, b, ffn_int_flops_row);
}

static void same_shape(const sl_shape *a, const sl_shape *b, const char *name)
{
    const char *what = name;
    char in_layer[128];
    SAME(a, b, n_layer);
    SAME(a, b, d_model);
    SAME(a, b, n_vocab);
    SAME(a, b, n_ctx_train);
    SAME(a, b, embed_bytes);
    SAME(a, b, head_bytes);
    SAME_PARTS(head, 1);
    SAME(a, b, head_int);
    SAME(a, b, dense_bytes);
    SAME(a, b, experts_bytes);
    SAME(a, b, total_bytes);
    SAME(a, b, ends_room);
    SAME(a, b, vector_bytes);
    SAME(a, b, n_params);
    SAME(a, b, row_scratch_bytes);
    for (uint32_t l = 0; l < a->n_layer && a->n_layer == b->n_layer; l++) {
        snprintf(in_layer, sizeof in_layer, "%s layer %u", name, l);
        same_layer(&a->layers[l], &b->layers[l], in_layer);
    }
}

static void check_preset(sl_ctx *ctx, const sl_preset *p, const char *quant)
{
    char what[64];
    sl_model *m = NULL;
    sl_shape s;
    sl_layer_shape *layers = calloc(p->n_layer, sizeof *layers);
    T_NEED(layers, "memory");
    snprintf(what, sizeof what, "%s %s", p->name, quant);
    write_header(ctx, p, quant);
    T_NEED(sl_preset_shape(ctx, p, quant, layers, &s) == SL_OK, "%s: %s", what, sl_error(ctx));
    T_NEED(sl_model_open(ctx, path, &m) == SL_OK, "%s: %s", what, sl_error(ctx));
    same_shape(&s, sl_model_shape(m), what);
    sl_model_close(&m);
    free(layers);
}

int main(void)
{
    static const char *const quants[] = { "Q4_K_M", "Q4_K", "Q8_0", "MXFP4", "IQ2_XXS", "F16" };
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_layer_shape layers[16];
    sl_shape s = { .n_layer = 77 };
    int fd = mkstemp(path);
    T_NEED(fd >= 0, "temporary file");
    close(fd);
    t_begin();
    for (uint32_t i = 0; sl_preset_at(i); i++) {
        const sl_preset *p = sl_preset_at(i);
        T_CHECK(p->runs == (arch_find(p->arch, strlen(p->arch)) != NULL), "%s: architecture %s",
                p->name, p->arch);
        if (!p->runs) continue;
        check_preset(ctx, p, quants[0]);    /* the mix, and one of the others in turn */
        check_preset(ctx, p, quants[1 + i % (SL_LEN(quants) - 1)]);
    }
    T_CHECK(sl_preset_shape(ctx, sl_preset_at(0), "Q4_X", layers, &s) == SL_E_ARG && s.n_layer == 77
                && strstr(sl_error(ctx), "Q4_X"),
            "%s", sl_error(ctx));
    unlink(path);
    sl_ctx_destroy(&ctx);
    return t_end();
}
