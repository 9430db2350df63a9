/* tests/fuzz_config.c - libFuzzer: any bytes as a config.json; what is accepted has a shape whose
 * sums hold. Built with -Dfuzz=true (clang); seeds in tests/corpus/config/. */
#include "runtime/sl_config.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_config *c = NULL;
    sl_shape s;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    if (sl_config_parse(ctx, "fuzz", (const char *)data, size, &c) == SL_OK) {
        const sl_preset *p = &c->preset;
        sl_layer_shape *layers = calloc(p->n_layer, sizeof *layers);
        if (!layers || sl_preset_shape(ctx, p, "Q4_K_M", layers, &s) != SL_OK) __builtin_trap();
        if (s.n_params < sl_preset_params(p) / 2 || s.n_params > UINT64_C(400000000000000)
            || s.dense_bytes + s.experts_bytes != s.total_bytes)
            __builtin_trap();
        free(layers);
    }
    sl_config_free(&c);
    sl_ctx_destroy(&ctx);
    return 0;
}
