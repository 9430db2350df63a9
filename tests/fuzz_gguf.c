/* tests/fuzz_gguf.c - libFuzzer: any bytes as a GGUF, read whole, and its shape by its tensors'
 * names. Built with -Dfuzz=true (clang); seeds in tests/corpus/gguf/. The vocabulary has its own
 * fuzzer. */
#include "runtime/source.h"
#include "tests/gguf_writer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void shape_of(sl_ctx *ctx, const sl_gguf *g)
{
    char arch[64] = "";
    sl_str v;
    sl_shape s;
    sl_layer_shape *layers = NULL;
    if (sl_gguf_get_str(g, sl_gguf_kv_find(g, "general.architecture"), 0, &v))
        snprintf(arch, sizeof arch, "%.*s", (int)SL_MIN(v.n, sizeof arch - 1), v.p);
    if (source_shape_by_names(ctx, g, arch, &s, &layers) == SL_OK && s.dense_bytes > s.total_bytes)
        abort();
    free(layers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* one file in memory for all inputs: creating them would cost more than reading */
    static int fd = -1;
    sl_gguf *g = NULL;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    if (fd < 0) fd = memfd_create("gguf", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    if (gguf_open_fd(ctx, dup(fd), "memory.gguf", &g) == SL_OK) {
        if (gw_touch(g) == 1) abort();
        shape_of(ctx, g);
    }
    sl_gguf_close(&g);
    sl_ctx_destroy(&ctx);
    return 0;
}
