/* tests/fuzz_gguf.c - libFuzzer: any bytes as a GGUF, read whole. Built with -Dfuzz=true (clang);
 * seeds in tests/corpus/gguf/. The vocabulary has its own fuzzer. */
#include "tests/gguf_writer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* one file in memory for all inputs: creating them would cost more than reading */
    static int fd = -1;
    sl_gguf *g = NULL;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    if (fd < 0) fd = memfd_create("gguf", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    if (gguf_open_fd(ctx, dup(fd), "memory.gguf", &g) == SL_OK && gw_touch(g) == 1) abort();
    sl_gguf_close(&g);
    sl_ctx_destroy(&ctx);
    return 0;
}
