/* tests/t_vocab.c - every NAME.gguf with NAME.inp and NAME.out beside it: the cases of .inp (parted
 * by the line __ggml_vocab_test__), tokenised as plain text without BOS, give the lines of .out,
 * and the ids give the text again, or its NFC. Folders: the arguments (our own vectors are in
 * tests/golden/vocab), else SLUICE_VOCAB_DIR (77 without it; another text may then come back, with
 * a note). A kind of tokenizer that is not supported is skipped, and said. */
#include "runtime/sl_vocab.h"
#include "tests/t.h"

#include <dirent.h>
#include <utf8proc.h>

static bool strict;     /* the way back must be exact, too: not every tokenizer keeps every text */
static const char sep[] = "\n__ggml_vocab_test__\n";

static char *read_file(const char *path, size_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    T_NEED(!fseek(f, 0, SEEK_END), "seek %s", path);
    long n = ftell(f);
    rewind(f);
    char *p = malloc((size_t)n + 1);
    T_NEED(p && fread(p, 1, (size_t)n, f) == (size_t)n, "read %s", path);
    p[n] = 0;
    *ret_n = (size_t)n;
    fclose(f);
    return p;
}

static void on_log(void *user, sl_level level, const char *msg)
{
    if (level <= SL_WARN) fprintf(stderr, "%s: %s\n", (const char *)user, msg);
}

static size_t decode(const sl_vocab *v, const int32_t *ids, uint32_t n, char *buf)
{
    sl_detok d;
    size_t at = 0;
    sl_detok_init(&d);
    for (uint32_t i = 0; i < n; i++) at += sl_detok_push(&d, v, ids[i], true, buf + at);
    return at + sl_detok_flush(&d, buf + at);
}

/* Equal, or what a tokenizer that normalises to NFC makes of it. */
static bool same_text(const char *got, size_t n_got, const char *text, size_t n)
{
    utf8proc_uint8_t *nfc = NULL;
    if (n == n_got && !memcmp(got, text, n)) return true;
    utf8proc_ssize_t n_nfc = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &nfc,
                                          UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    bool same = n_nfc == (utf8proc_ssize_t)n_got && !memcmp(nfc, got, n_got);
    free(nfc);
    return same;
}

/* line: the expected ids, ended by a newline or the end. Returns what follows it. */
static const char *check_case(sl_ctx *ctx, const sl_vocab *v, const char *name, int no,
                              const char *text, size_t n, const char *line)
{
    int32_t *ids = NULL;
    uint32_t n_ids = 0, i = 0;
    T_NEED(sl_vocab_encode(ctx, v, text, n, false, false, &ids, &n_ids) == SL_OK, "%s: %s", name,
           sl_error(ctx));
    const char *at = line;
    bool same = true;
    for (; *at && *at != '\n'; i++) {
        char *end;
        while (*at == ' ' || *at == '\r') at++;
        if (!*at || *at == '\n') break;
        long want = strtol(at, &end, 10);
        T_NEED(end != at, "%s: case %d: \"%.20s\" in .out is no id", name, no, at);
        if (same && (i >= n_ids || ids[i] != want)) {
            same = false;
            T_CHECK(false, "%s: case %d, token %u: got %d want %ld, text \"%.60s\"", name, no, i,
                    i < n_ids ? ids[i] : -1, want, text);
        }
        at = end;
    }
    T_CHECK(!same || i == n_ids, "%s: case %d: %u ids, want %u, text \"%.60s\"", name, no, n_ids, i,
            text);
    char *back = malloc((size_t)n_ids * sl_vocab_max_text(v) + 16);
    T_NEED(back, "memory");
    size_t nb = decode(v, ids, n_ids, back);
    bool same_back = same_text(back, nb, text, n);
    T_CHECK(!strict || same_back, "%s: case %d: back is \"%.*s\" of \"%.60s\"", name, no, (int)nb,
            back, text);
    if (!strict && !same_back) printf("%s: case %d: another text comes back\n", name, no);
    free(back);
    free(ids);
    return *at == '\n' ? at + 1 : at;
}

static int check_file(const char *dir, const char *name)
{
    char path[4096];
    size_t n_inp, n_out;
    snprintf(path, sizeof path, "%s/%s.inp", dir, name);
    char *inp = read_file(path, &n_inp);
    snprintf(path, sizeof path, "%s/%s.out", dir, name);
    char *out = read_file(path, &n_out);
    if (!inp || !out) {
        free(inp);
        free(out);
        return 0;
    }
    sl_ctx *ctx = sl_ctx_create(on_log, (void *)(uintptr_t)name);
    sl_gguf *g = NULL;
    sl_vocab *v = NULL;
    snprintf(path, sizeof path, "%s/%s.gguf", dir, name);
    T_NEED(sl_gguf_open(ctx, path, &g) == SL_OK, "%s: %s", name, sl_error(ctx));
    sl_status st = sl_vocab_create(ctx, g, &v);
    if (st == SL_E_UNSUPPORTED) printf("SKIP %s: %s\n", name, sl_error(ctx));
    T_CHECK(st == SL_OK || st == SL_E_UNSUPPORTED, "%s: %s", name, sl_error(ctx));
    sl_gguf_close(&g);      /* the vocabulary keeps its own copy */
    int no = 0;
    const char *at = inp, *line = out;
    while (v && at <= inp + n_inp) {
        const char *end = memmem(at, (size_t)(inp + n_inp - at), sep, sizeof sep - 1);
        if (!end) end = inp + n_inp;
        if (end == inp + n_inp && end == at && !*line) break;   /* a separator ended the file */
        line = check_case(ctx, v, name, no++, at, (size_t)(end - at), line);
        at = end + sizeof sep - 1;
    }
    T_CHECK(!v || !*line, "%s: more lines in .out than the %d cases of .inp", name, no);
    if (v) printf("%s: %u tokens, %d cases\n", name, sl_vocab_size(v), no);
    sl_vocab_destroy(&v);
    sl_mem_report mem;
    sl_mem_get(ctx, &mem);
    T_CHECK(mem.total == 0, "%s: %llu bytes are still charged", name,
            (unsigned long long)mem.total);
    sl_ctx_destroy(&ctx);
    free(inp);
    free(out);
    return no;
}

int main(int argc, char **argv)
{
    int cases = 0;
    const char *dirs[16] = { getenv("SLUICE_VOCAB_DIR") };
    strict = argc > 1;
    for (int i = 1; i < argc && i <= 16; i++) dirs[i - 1] = argv[i];
    if (!dirs[0] || !*dirs[0]) return t_skip("SLUICE_VOCAB_DIR is not set");
    for (int i = 0; i < 16 && dirs[i]; i++) {
        struct dirent **list;
        int n = scandir(dirs[i], &list, NULL, alphasort);
        T_NEED(n >= 0, "folder %s", dirs[i]);
        for (int j = 0; j < n; j++) {
            size_t len = strlen(list[j]->d_name);
            if (len > 5 && !strcmp(list[j]->d_name + len - 5, ".gguf")) {
                list[j]->d_name[len - 5] = 0;
                cases += check_file(dirs[i], list[j]->d_name);
            }
            free(list[j]);
        }
        free(list);
    }
    T_CHECK(cases > 0, "no cases in %s", dirs[0]);
    printf("%d cases\n", cases);
    return t_end();
}
