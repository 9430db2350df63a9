/* tools/cmd_tokenize.c - `sluice tokenize`: token ids of texts, and texts of token ids. Needs only
 * the vocabulary of a file. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/sl_vocab.h"
#include "tools/cli.h"

struct args {
    const char *model;
    bool no_bos, decode, special;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-m,--model", CLI_STR, "FILE", "model, or a file with a vocabulary only", AT(model), 0, 0 },
    { "--no-bos", CLI_FLAG, NULL, "no BOS in front, where the model wants one", AT(no_bos), 0, 0 },
    { "--decode", CLI_FLAG, NULL, "the way back: TEXT or each line of stdin is ids", AT(decode), 0,
      0 },
    { "--special", CLI_FLAG, NULL, "control tokens in the text count as such; --decode shows them",
      AT(special), 0, 0 },
};
#undef AT

static const char *const about =
    "Token ids, separated by spaces, a line for each input. TEXT is one input, line breaks "
    "included, and may be empty; without TEXT each line of stdin is one. Control tokens in the "
    "text, like <|im_end|>, are taken for plain text unless --special. --decode prints the text "
    "of ids, separated by spaces or commas, and a line break. Text that begins with - goes behind "
    "--.";

struct job {
    const struct args *a;
    sl_ctx *ctx;
    sl_vocab *v;
    char *buf;      /* what one id prints */
};

static int encode(const struct job *j, const char *text, size_t n)
{
    int32_t *ids = NULL;
    uint32_t n_ids = 0;
    if (sl_vocab_encode(j->ctx, j->v, text, n, !j->a->no_bos, j->a->special, &ids, &n_ids) != SL_OK)
        return cli_fail_ctx(j->ctx);
    for (uint32_t i = 0; i < n_ids; i++) printf(i ? " %" PRId32 : "%" PRId32, ids[i]);
    putchar('\n');
    free(ids);
    return CLI_DONE;
}

/* All ids are checked before the first is printed. */
static int check_ids(const struct job *j, const char *text, const char *end)
{
    for (const char *p = text; p < end;) {
        char *next;
        if (isspace((unsigned char)*p) || *p == ',') {
            p++;
            continue;
        }
        errno = 0;
        long long id = strtoll(p, &next, 10);
        bool whole = next != p && (next == end || isspace((unsigned char)*next) || *next == ',');
        int n = (int)strcspn(p, " ,\t\r\n");
        if (!whole || errno)
            return cli_fail("\"%.*s\" is no token id: expected whole numbers", SL_MIN(n, 40), p);
        if (id < 0 || id >= sl_vocab_size(j->v))
            return cli_fail("token id %lld: the vocabulary has %" PRIu32 " tokens", id,
                            sl_vocab_size(j->v));
        p = next;
    }
    return CLI_DONE;
}

static int decode(const struct job *j, const char *text, size_t n)
{
    const char *end = text + n;
    int code = check_ids(j, text, end);
    if (code != CLI_DONE) return code;
    sl_detok d;
    sl_detok_init(&d);
    for (const char *p = text; p < end;) {
        if (!isdigit((unsigned char)*p)) {
            p++;
            continue;
        }
        char *next;
        int32_t id = (int32_t)strtol(p, &next, 10);
        p = next;
        fwrite(j->buf, 1, sl_detok_push(&d, j->v, id, j->a->special, j->buf), stdout);
    }
    fwrite(j->buf, 1, sl_detok_flush(&d, j->buf), stdout);
    putchar('\n');
    return CLI_DONE;
}

static int one_input(const struct job *j, const char *text, size_t n)
{
    return j->a->decode ? decode(j, text, n) : encode(j, text, n);
}

static int each_line(const struct job *j)
{
    char *line = NULL;
    size_t cap = 0;
    int code = CLI_DONE;
    ssize_t n;
    while (code == CLI_DONE && !ferror(stdout) && (n = getline(&line, &cap, stdin)) >= 0) {
        if (n && line[n - 1] == '\n') line[--n] = 0;
        code = one_input(j, line, (size_t)n);
    }
    if (code == CLI_DONE && ferror(stdin)) code = cli_fail("read stdin: %s", strerror(errno));
    free(line);
    return code;
}

int cmd_tokenize(int argc, char **argv)
{
    struct args a = { 0 };
    cli_group groups[] = { { "Options", options, SL_LEN(options), &a, 0 } };
    cli_spec spec = { "tokenize", "[-m MODEL] [TEXT]", about, groups, SL_LEN(groups), 1 };
    char *text[1];
    int n_text, code;
    if (!cli_parse(&spec, argc, argv, text, &n_text, &code)) return code;

    struct job j = { .a = &a, .ctx = cli_ctx(false) };
    sl_gguf *g = NULL;
    char *path = j.ctx ? cli_model_path(a.model) : NULL;
    code = CLI_FAILED;
    if (!path) goto out;
    if (sl_gguf_open(j.ctx, path, &g) != SL_OK || sl_vocab_create(j.ctx, g, &j.v) != SL_OK) {
        cli_fail_ctx(j.ctx);
        goto out;
    }
    j.buf = malloc(sl_vocab_max_text(j.v));
    if (!j.buf) cli_fail("out of memory");
    else code = n_text ? one_input(&j, text[0], strlen(text[0])) : each_line(&j);
    code = cli_end_stdout(code);
out:
    free(j.buf);
    free(path);
    sl_vocab_destroy(&j.v);
    sl_gguf_close(&g);
    if (j.ctx) sl_ctx_destroy(&j.ctx);
    return code;
}
