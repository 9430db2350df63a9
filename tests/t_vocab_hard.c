/* tests/t_vocab_hard.c - what may not break a tokenizer: a megabyte of one thing in every
 * vocabulary of tests/golden/vocab (seconds, not hours), bytes that are no UTF-8, characters spread
 * over tokens, hostile metadata, added tokens that touch, and every allocation failing once. */
#include "runtime/sl_vocab.h"
#include "tests/t_alloc.h"
#include "tests/t_kv.h"

#include <dirent.h>
#include <time.h>

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static char folder[4096];

static sl_vocab *open_vocab(sl_ctx *ctx, const char *name)
{
    char path[8192];
    sl_gguf *g = NULL;
    sl_vocab *v = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    T_NEED(sl_gguf_open(ctx, path, &g) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_vocab_create(ctx, g, &v) == SL_OK, "%s: %s", name, sl_error(ctx));
    sl_gguf_close(&g);
    return v;
}

/* Do the pieces of the ids give exactly these bytes? */
static bool pieces_are(const sl_vocab *v, const int32_t *ids, uint32_t n_ids, const char *text,
                       size_t n)
{
    size_t at = 0;
    for (uint32_t i = 0; i < n_ids; i++) {
        sl_str s = sl_vocab_piece(v, ids[i]);
        if (s.n > n - at || memcmp(text + at, s.p, s.n)) return false;
        at += s.n;
    }
    return at == n;
}

/* SentencePiece puts a space in front and cannot tell U+2581 from one. */
static size_t as_spm(const char *text, size_t n, char *ret)
{
    size_t at = 0;
    ret[at++] = ' ';
    for (size_t i = 0; i < n; i++) {
        bool space = n - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3);
        ret[at++] = space ? ' ' : text[i];
        if (space) i += 2;
    }
    return at;
}

/* ---- long texts ---- */

static size_t make_long(char *buf, size_t n, int kind)
{
    static const char *const units[] = {
        "a",
        " ",
        "\n",
        "1",
        "\t ",
        "a ",
        "A",
        "aA",
        "\xc3\xa9",
        "\xe5\xad\x97",
        "\xcc\x81",
        "'",
        "! ",
        "\xff",
        "\xf0\x9f\x99\x82",
        "a\xcc\x81",
        "\xcc\x81\xcc\x96",
        "<|im_end|>",
        "<tool>",
        "  x",
        "\xe2\x96\x81",
        "123,",
        "\xe3\x80\x80",
        "\xe4\xb8\xad ",
        ". ",
        "\r",
        "<",
        "ab1 ",
    };
    if (kind >= (int)SL_LEN(units)) return 0;
    size_t u = strlen(units[kind]), at = 0;
    while (at + u + 1 <= n) memcpy(buf + at, units[kind], u), at += u;
    buf[at++] = '7';    /* what a run of spaces or letters cannot end with */
    return at;
}

static void check_long(sl_ctx *ctx, const char *name, char *buf, size_t n)
{
    sl_vocab *v = open_vocab(ctx, name);
    double slowest = 0;
    int worst = -1;
    for (int kind = 0;; kind++) {
        size_t len = make_long(buf, n, kind);
        if (!len) break;
        int32_t *ids = NULL;
        uint32_t n_ids = 0;
        double from_s = now_s();
        T_NEED(sl_vocab_encode(ctx, v, buf, len, true, true, &ids, &n_ids) == SL_OK, "%s: %s", name,
               sl_error(ctx));
        double took_s = now_s() - from_s;
        T_CHECK(n_ids > 0 && took_s < 5, "%s: text %d, %zu bytes: %.1f s", name, kind, len, took_s);
        if (took_s > slowest) slowest = took_s, worst = kind;
        free(ids);
    }
    printf("%s: %.2f MB of text %d took longest, %.2f s\n", name, (double)n / 1e6, worst, slowest);
    sl_vocab_destroy(&v);
}

static void long_texts(size_t n)
{
    struct dirent **list;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    char *buf = malloc(n + 16);
    int count = scandir(folder, &list, NULL, alphasort), seen = 0;
    T_NEED(count >= 0 && buf, "folder %s", folder);
    for (int i = 0; i < count; i++) {
        size_t len = strlen(list[i]->d_name);
        if (len > 5 && !strcmp(list[i]->d_name + len - 5, ".gguf"))
            seen++, check_long(ctx, list[i]->d_name, buf, n);
        free(list[i]);
    }
    free(list);
    free(buf);
    T_CHECK(seen > 10, "%d vocabularies", seen);
    sl_ctx_destroy(&ctx);
}

/* ---- any bytes ---- */

static uint32_t random_text(char *buf, uint32_t n)
{
    static const char *const bits[] = {
        "\xf0\x9f\x98\x80",
        "\xe2\x82\xac",
        "\xc3\xa9",
        "\xff",
        "\xc3",
        "\xe2\x82",
        "\xf0\x9f\x98",
        "\x80",
        "\xc0\x80",
        "\xed\xa0\x80",
        "\xf4\x90\x80\x80",
        "a",
        " ",
        "\n",
        "Hello",
        "123",
        "\xcc\x81",
        "<tool>",
        "<|im_end|>",
        "\xef\xbb\xbf",
        "\xe2\x96\x81",
        "'s",
    };
    uint32_t at = 0;
    while (at + 16 < n) {
        const char *s = bits[t_below(SL_LEN(bits))];
        if (t_below(4)) at += (uint32_t)sprintf(buf + at, "%s", s);
        else buf[at++] = (char)t_below(256);
    }
    return at;
}

static bool valid_utf8(const char *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)p[i];
        size_t len = c < 0x80                ? 1
                     : c >= 0xc2 && c < 0xe0 ? 2
                     : c >= 0xe0 && c < 0xf0 ? 3
                     : c >= 0xf0 && c < 0xf5 ? 4
                                             : 0;
        if (!len || i + len > n) return false;
        for (size_t j = 1; j < len; j++)
            if (((unsigned char)p[i + j] & 0xc0) != 0x80) return false;
        i += len;
    }
    return true;
}

/* Every push writes whole characters within its bound, and all of them are the text where it is
 * valid. */
static void check_stream(const sl_vocab *v, const int32_t *ids, uint32_t n_ids, const char *text,
                         size_t n)
{
    size_t max = sl_vocab_max_text(v), all = 0;
    char *whole = malloc((n_ids + 1) * max + 16);
    sl_detok d;
    sl_detok_init(&d);
    for (uint32_t i = 0; i <= n_ids; i++) {
        char *buf = t_guarded(max);     /* a byte behind it faults */
        size_t got = i < n_ids ? sl_detok_push(&d, v, ids[i], true, buf) : sl_detok_flush(&d, buf);
        T_CHECK(got <= max && valid_utf8(buf, got), "token %u: %zu bytes, not whole characters", i,
                got);
        memcpy(whole + all, buf, got);
        all += got;
        t_guarded_free(buf, max);
    }
    if (valid_utf8(text, n))
        T_CHECK(all == n && !memcmp(whole, text, n), "%zu bytes came back as %zu", n, all);
    free(whole);
}

static void any_bytes(void)
{
    static const char *const names[] = { "gpt-2.gguf",  "llama-bpe.gguf", "deepseek-llm.gguf",
                                         "falcon.gguf", "superbpe.gguf",  "kimi-k2.gguf",
                                         "spm.gguf" };
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    for (size_t k = 0; k < SL_LEN(names); k++) {
        sl_vocab *v = open_vocab(ctx, names[k]);
        for (int round = 0; round < 60; round++) {
            char text[512], spm[513];
            int32_t *ids = NULL;
            uint32_t n_ids, n = random_text(text, 16 + t_below(sizeof text - 16));
            T_NEED(sl_vocab_encode(ctx, v, text, n, false, round & 1, &ids, &n_ids) == SL_OK, "%s",
                   sl_error(ctx));
            bool is_spm = k == SL_LEN(names) - 1;
            size_t n_spm = as_spm(text, n, spm);
            T_CHECK(pieces_are(v, ids, n_ids, is_spm ? spm : text, is_spm ? n_spm : n),
                    "%s, round %d: bytes changed", names[k], round);
            if (round < 20)
                check_stream(v, ids, n_ids, is_spm ? spm + 1 : text, is_spm ? n_spm - 1 : n);
            free(ids);
        }
        sl_vocab_destroy(&v);
    }
    sl_ctx_destroy(&ctx);
}

static void split_characters(void)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_vocab *v = open_vocab(ctx, "gpt-2.gguf");
    char *buf = malloc(sl_vocab_max_text(v));
    int32_t byte_id[256];
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        int32_t *ids;
        uint32_t n;
        T_NEED(sl_vocab_encode(ctx, v, &c, 1, false, false, &ids, &n) == SL_OK && n == 1, "byte %d",
               b);
        byte_id[b] = ids[0];
        free(ids);
    }
    static const struct { const char *bytes, *out[8]; const char *flush; } cases[] = {
        { "\xf0\x9f\x98\x80", { "", "", "", "\xf0\x9f\x98\x80" }, "" },
        { "a\xe2\x82z", { "a", "", "", "\xef\xbf\xbdz" }, "" },
        { "\xf0\x9f", { "", "" }, "\xef\xbf\xbd" },
        { "\x80\xff", { "\xef\xbf\xbd", "\xef\xbf\xbd" }, "" },
        { "\xe2\x82\xf0\x9f\x98\x80", { "", "", "\xef\xbf\xbd", "", "", "\xf0\x9f\x98\x80" }, "" },
    };
    for (size_t i = 0; i < SL_LEN(cases); i++) {
        sl_detok d;
        sl_detok_init(&d);
        for (size_t j = 0; cases[i].bytes[j]; j++) {
            size_t n = sl_detok_push(&d, v, byte_id[(unsigned char)cases[i].bytes[j]], false, buf);
            T_CHECK(n == strlen(cases[i].out[j]) && !memcmp(buf, cases[i].out[j], n),
                    "case %zu, byte %zu: %zu bytes", i, j, n);
        }
        size_t n = sl_detok_flush(&d, buf);
        T_CHECK(n == strlen(cases[i].flush) && !memcmp(buf, cases[i].flush, n),
                "case %zu, flush: %zu bytes", i, n);
    }
    T_CHECK(sl_detok_push(&(sl_detok){ 0 }, v, -1, true, buf) == 0, "id -1");
    T_CHECK(sl_detok_push(&(sl_detok){ 0 }, v, 1 << 20, true, buf) == 0, "id beyond the end");
    free(buf);
    sl_vocab_destroy(&v);
    sl_ctx_destroy(&ctx);
}

/* ---- metadata ---- */

/* A SentencePiece vocabulary whose one fault is number `fault`; 0: none. */
static void write_spm(t_kv *k, int fault)
{
    static const char *const tokens[] = { "<unk>", "<s>", "</s>",         "<0x41>",   "a",
                                          "b",     "ab",  "\xe2\x96\x81", "<|mark|>", "<|ma" };
    int32_t types[] = { 2, 3, 3, 6, 1, 1, 1, 1, 4, 4 };
    float scores[] = { 0, 0, 0, 0, -1, -2, -3, -4, 0, 0 };
    uint64_t n = SL_LEN(tokens);
    t_kv_begin(k);
    if (fault != 1) t_kv_str(k, "tokenizer.ggml.model", fault == 2 ? "bert" : "llama");
    t_kv_str(k, "general.name", fault == -3 ? "Phi-3 test" : "test");
    if (fault != 3) t_kv_strs(k, "tokenizer.ggml.tokens", tokens, fault == 4 ? 0 : n);
    if (fault == 5) types[0] = 77;      /* an unknown type is no fault */
    t_kv_nums(k, "tokenizer.ggml.token_type", types, fault == 6 ? n - 1 : n);
    if (fault == 7) scores[3] = __builtin_nanf("");
    if (fault != 8) t_kv_floats(k, "tokenizer.ggml.scores", scores, fault == 9 ? n - 1 : n);
    t_kv_num(k, "tokenizer.ggml.bos_token_id", fault == 10 ? 10 : fault == 11 ? UINT32_MAX : 1);
    if (fault == 12) t_kv_str(k, "tokenizer.ggml.eos_token_id", "2");
    if (fault == 13) t_kv_num(k, "tokenizer.ggml.eot_token_id", 1000);
    if (fault == 14) t_kv_bool(k, "tokenizer.ggml.add_eos_token", true);
}

static void write_bpe(t_kv *k, int fault)
{
    static const char *const tokens[] = { "a", "b", "ab", "", "ab", "\xff", "<|x|>" };
    const char *merges[] = { fault == 21 ? "ab" : "a b", fault == 22   ? "a "
                                                         : fault == 23 ? ""
                                                                       : "b a" };
    int32_t types[] = { 1, 1, 1, 1, 1, 1, -5 };
    t_kv_begin(k);
    t_kv_str(k, "tokenizer.ggml.model", "gpt2");
    if (fault == 24) t_kv_num(k, "tokenizer.ggml.pre", 5);
    else
        t_kv_str(k, "tokenizer.ggml.pre",
                 fault == 25   ? "never-heard-of"
                 : fault == 26 ? ""
                               : "llama-bpe");
    t_kv_strs(k, "tokenizer.ggml.tokens", tokens, SL_LEN(tokens));
    t_kv_nums(k, "tokenizer.ggml.token_type", types, SL_LEN(tokens));
    if (fault == 27) t_kv_nums(k, "tokenizer.ggml.merges", types, 3);
    else if (fault != 28) t_kv_strs(k, "tokenizer.ggml.merges", merges, 2);
}

static void count_warnings(void *user, sl_level level, const char *msg)
{
    (void)msg;
    if (level == SL_WARN) ++*(int *)user;
}

static void metadata(void)
{
    static const struct { int fault; sl_status want; int warnings;
    } cases[] = {
        { 0, SL_OK, 0 },        { 1, SL_E_FORMAT, 0 },  { 2, SL_E_UNSUPPORTED, 0 },
        { 3, SL_E_FORMAT, 0 },  { 4, SL_E_FORMAT, 0 },  { 5, SL_OK, 0 },
        { 6, SL_E_FORMAT, 0 },  { 7, SL_E_FORMAT, 0 },  { 8, SL_E_FORMAT, 0 },
        { 9, SL_E_FORMAT, 0 },  { 10, SL_E_FORMAT, 0 }, { 11, SL_OK, 0 },
        { 12, SL_E_FORMAT, 0 }, { 13, SL_E_FORMAT, 0 }, { 14, SL_OK, 0 },
        { 20, SL_OK, 0 },       { 21, SL_E_FORMAT, 0 }, { 22, SL_E_FORMAT, 0 },
        { 23, SL_E_FORMAT, 0 }, { 24, SL_E_FORMAT, 0 }, { 25, SL_OK, 1 },
        { 26, SL_OK, 1 },       { 27, SL_E_FORMAT, 0 }, { 28, SL_E_FORMAT, 0 },
    };
    static t_kv k;
    for (size_t i = 0; i < SL_LEN(cases); i++) {
        int warnings = 0;
        sl_ctx *ctx = sl_ctx_create(count_warnings, &warnings);
        sl_vocab *v = NULL;
        int32_t *ids;
        uint32_t n;
        if (cases[i].fault < 20) write_spm(&k, cases[i].fault);
        else write_bpe(&k, cases[i].fault);
        sl_gguf *g = t_kv_end(&k, ctx);
        sl_status st = sl_vocab_create(ctx, g, &v);
        T_CHECK(st == cases[i].want, "fault %d: %s: \"%s\"", cases[i].fault, sl_status_name(st),
                sl_error(ctx));
        T_CHECK((st == SL_OK) == (v != NULL) &&
                    (st == SL_OK || (*sl_error(ctx) && !strchr(sl_error(ctx), '\n'))),
                "fault %d: \"%s\"", cases[i].fault, sl_error(ctx));
        T_CHECK(warnings == cases[i].warnings, "fault %d: %d warnings", cases[i].fault, warnings);
        if (v) {
            T_NEED(sl_vocab_encode(ctx, v, "ab \xf0\x9f zz", 8, true, true, &ids, &n) == SL_OK,
                   "%s", sl_error(ctx));
            free(ids);
        }
        sl_vocab_destroy(&v);
        sl_gguf_close(&g);
        sl_ctx_destroy(&ctx);
    }
}

/* ---- added tokens ---- */

static void check_ids(sl_ctx *ctx, const sl_vocab *v, const char *text, bool special,
                      const char *want)
{
    char got[256] = "";
    int32_t *ids;
    uint32_t n;
    T_NEED(sl_vocab_encode(ctx, v, text, strlen(text), true, special, &ids, &n) == SL_OK, "%s",
           sl_error(ctx));
    for (uint32_t i = 0; i < n; i++) sprintf(got + strlen(got), "%s%d", i ? " " : "", ids[i]);
    T_CHECK(!strcmp(got, want), "\"%s\": %s, want %s", text, got, want);
    free(ids);
}

static void added_tokens(void)
{
    static t_kv k;
    for (int phi = 0; phi < 2; phi++) {
        sl_ctx *ctx = sl_ctx_create(NULL, NULL);
        sl_vocab *v = NULL;
        write_spm(&k, phi ? -3 : 0);
        sl_gguf *g = t_kv_end(&k, ctx);
        T_NEED(sl_vocab_create(ctx, g, &v) == SL_OK, "%s", sl_error(ctx));
        check_ids(ctx, v, "", true, "1");
        check_ids(ctx, v, "ab", true, "1 7 6");
        check_ids(ctx, v, "ab</s>ab", true, "1 7 6 2 7 6");
        check_ids(ctx, v, "a<|mark|>b", false, "1 7 4 8 7 5");
        check_ids(ctx, v, "a<|mab", false, "1 7 4 9 7 5");          /* the longest that matches */
        check_ids(ctx, v, "a<|mark|> \tb", false, phi ? "1 7 4 8 7 5" : "1 7 4 8 7 7 0 5");
        check_ids(ctx, v, "a <|mark|>", false, "1 7 4 7 8");
        check_ids(ctx, v, "A", true, "1 7 3");                      /* a byte token */
        check_ids(ctx, v, "C", true, "1 7 0");                      /* neither: unknown */
        T_CHECK(sl_vocab_is_eog(v, 2) && !sl_vocab_is_eog(v, 1) && !sl_vocab_is_eog(v, -1) &&
                    sl_vocab_is_control(v, 1) && !sl_vocab_is_control(v, 8) &&
                    !sl_vocab_is_control(v, 100),
                "attributes");
        T_CHECK(sl_vocab_find(v, "ab") == 6 && sl_vocab_find(v, "abc") == -1, "find");
        sl_vocab_destroy(&v);
        sl_gguf_close(&g);
        sl_ctx_destroy(&ctx);
    }
}

/* ---- no memory ---- */

static void failing_allocations(const char *name)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    char path[8192];
    sl_gguf *g = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    T_NEED(sl_gguf_open(ctx, path, &g) == SL_OK, "%s", sl_error(ctx));
    long fail_at = 1, failures = 0;
    for (bool clean = false; !clean && fail_at < 4000; fail_at++) {
        sl_vocab *v = NULL;
        int32_t *ids = NULL;
        uint32_t n;
        t_alloc_reset(fail_at);
        sl_status st = sl_vocab_create(ctx, g, &v);
        if (st == SL_OK)
            st = sl_vocab_encode(ctx, v, "Hello w\xc3\xb6rld, e\xcc\x81 12345 <tool> \xff", 33,
                                 true, true, &ids, &n);
        clean = t_alloc_calls < fail_at;
        t_alloc_reset(0);
        T_CHECK(st == SL_OK ? clean || ids : st == SL_E_NOMEM, "%s: call %ld: %s", name, fail_at,
                sl_status_name(st));
        failures += st != SL_OK;
        free(ids);
        sl_vocab_destroy(&v);
    }
    T_CHECK(failures > 10, "%s: %ld failures", name, failures);
    sl_mem_report mem;
    sl_gguf_close(&g);
    sl_mem_get(ctx, &mem);
    T_CHECK(mem.total == 0, "%s: %llu bytes are still charged", name,
            (unsigned long long)mem.total);
    sl_ctx_destroy(&ctx);
}

int main(int argc, char **argv)
{
    const char *root = getenv("SLUICE_SOURCE_DIR");
    snprintf(folder, sizeof folder, "%s/tests/golden/vocab", root ? root : ".");
    t_begin();
    any_bytes();
    split_characters();
    metadata();
    added_tokens();
    failing_allocations("qwen2.gguf");
    failing_allocations("spm.gguf");
    long_texts(argc > 1 ? (size_t)atol(argv[1]) : 50000);
    return t_end();
}
