/* tests/fuzz_trace.c - libFuzzer: any bytes as a routing trace, read and played through a small
 * cache. Built with -Dfuzz=true (clang); seeds in tests/corpus/trace/. */
#include "offload/sl_trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t slots = 7;
    sl_ecache_params p = { .n_classes = 1, .class_slots = &slots };
    sl_trace_hits hits;
    sl_trace *t = NULL;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_mem_set_limit(ctx, 64 << 20);    /* a header may ask for 2^24 experts */
    if (sl_trace_parse(ctx, "fuzz", (const char *)data, size, &t) == SL_OK) {
        sl_status st = sl_trace_play(ctx, t, &p, 1, &hits);
        if (st == SL_OK && hits.hits > hits.uses) __builtin_trap();
    }
    sl_trace_free(ctx, &t);
    sl_ctx_destroy(&ctx);
    return 0;
}
