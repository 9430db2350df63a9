/* tests/fuzz_vocab.c - libFuzzer: any bytes as text under five small vocabularies (byte 0 says
 * which, its top bit whether control tokens count), and, when they begin with "GGUF", as a
 * vocabulary that then has to encode. Checked: ids in range, the bytes come back, what is shown is
 * whole characters. Built with -Dfuzz=true (clang), run from the source folder; seeds in
 * tests/corpus/vocab/. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/gguf_head.h"
#include "runtime/sl_chat.h"
#include "runtime/sl_vocab.h"

static const char *const names[] = { "gpt-2", "gpt-4o", "deepseek-llm", "superbpe", "spm" };
enum { SPM = SL_LEN(names) - 1 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const sl_vocab *vocab(sl_ctx *ctx, size_t which)
{
    static sl_vocab *all[SL_LEN(names)];    /* live as long as the process */
    const char *root = getenv("SLUICE_SOURCE_DIR");
    char path[4096];
    if (all[which]) return all[which];
    sl_gguf *g = NULL;
    snprintf(path, sizeof path, "%s/tests/golden/vocab/%s.gguf", root ? root : ".", names[which]);
    if (sl_gguf_open(ctx, path, &g) != SL_OK || sl_vocab_create(ctx, g, &all[which]) != SL_OK) {
        fprintf(stderr, "%s\n", sl_error(ctx));
        exit(1);
    }
    sl_gguf_close(&g);
    return all[which];
}

/* The pieces of the ids are the text; n_skip bytes of the first are not compared. */
static void check_bytes(const sl_vocab *v, const int32_t *ids, uint32_t n_ids, const char *text,
                        size_t n)
{
    size_t at = 0;
    for (uint32_t i = 0; i < n_ids; i++) {
        sl_str s = sl_vocab_piece(v, ids[i]);
        if (s.n > n - at || memcmp(text + at, s.p, s.n)) abort();
        at += s.n;
    }
    if (at != n) abort();
}

static void check_shown(const sl_vocab *v, const int32_t *ids, uint32_t n_ids)
{
    size_t max = sl_vocab_max_text(v);
    char *buf = malloc(max);
    sl_detok d;
    sl_detok_init(&d);
    for (uint32_t i = 0; i <= n_ids; i++) {
        if (i < n_ids && (ids[i] < 0 || (uint32_t)ids[i] >= sl_vocab_size(v))) abort();
        size_t n = i < n_ids ? sl_detok_push(&d, v, ids[i], i & 1, buf) : sl_detok_flush(&d, buf);
        if (n > max || (n && ((unsigned char)buf[0] & 0xc0) == 0x80)) abort();
    }
    free(buf);
}

static void any_text(const uint8_t *data, size_t size)
{
    static sl_ctx *ctx;
    if (!ctx) ctx = sl_ctx_create(NULL, NULL);
    size_t which = (data[0] & 0x7f) % SL_LEN(names);
    bool special = data[0] & 0x80;
    const sl_vocab *v = vocab(ctx, which);
    char *text = malloc(size);      /* a copy of its own, so that a read behind it is seen */
    memcpy(text, data + 1, size - 1);
    int32_t *ids = NULL;
    uint32_t n;
    if (sl_vocab_encode(ctx, v, text, size - 1, special, special, &ids, &n) != SL_OK) abort();
    check_shown(v, ids, n);
    if (which != SPM && !special) check_bytes(v, ids, n, text, size - 1);
    free(ids);
    free(text);
}

static void any_vocabulary(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello <|im_end|> w\xc3\xb6rld 12345  \xff\xe2\x96\x81 \n\n's";
    static int fd = -1;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_gguf *g = NULL;
    sl_vocab *v = NULL;
    sl_chat chat;
    if (fd < 0) fd = memfd_create("gguf", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    if (gguf_open_fd(ctx, dup(fd), "memory.gguf", &g) == SL_OK &&
        sl_vocab_create(ctx, g, &v) == SL_OK) {
        int32_t *ids = NULL;
        uint32_t n;
        if (sl_vocab_encode(ctx, v, text, sizeof text - 1, true, true, &ids, &n) != SL_OK) abort();
        check_shown(v, ids, n);
        free(ids);
        if (sl_chat_detect(ctx, g, v, &chat) == SL_OK) {
            char *turn;
            if (sl_chat_format_turn(ctx, &chat, NULL, text, SL_CHAT_ENDED, &turn) != SL_OK) abort();
            free(turn);
        }
    }
    sl_vocab_destroy(&v);
    sl_gguf_close(&g);
    sl_ctx_destroy(&ctx);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size >= 4 && !memcmp(data, "GGUF", 4)) any_vocabulary(data, size);
    else if (size) any_text(data, size);
    return 0;
}
