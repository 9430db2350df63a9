/* tests/t_preset_shape.c - the shape of every preset that the engine runs, field by field, against
 * what the model loader makes of the header that synth would write: full headers, as sparse files
 * without data. */
#include "runtime/arch.h"
#include "runtime/sluice.h"
#include "runtime/synth.h"
#include "tests/t.h"
#include "tests/t_same_shape.h"

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
    static const char *const quants[] = { "Q4_K_M", "Q4_K", "Q8_0", "MXFP4", "IQ2_XXS", "F16",
                                          "Q5_K_M" };
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
