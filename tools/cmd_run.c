/* tools/cmd_run.c - `sluice run`: one prompt, continued. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tools/session.h"

struct args {
    const char *prompt, *file;
    int64_t n;
    bool json, hide_prompt;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-p,--prompt", CLI_STR, "TEXT",
      "the text to continue, as it stands: \\n in it is no line break, $'...\\n' of the shell is one",
      AT(prompt), 0, 0 },
    { "-f,--file", CLI_STR, "FILE",
      "the same from a file, - is stdin; one newline at its end is dropped",
      AT(file), 0, 0 },
    { "-n,--predict,--n-predict", CLI_I64, "N",
      "tokens to make; -1: until the text or the context ends (default: 256)", AT(n), -1,
      INT32_MAX },
    { "--no-display-prompt", CLI_FLAG, NULL, "print only what is new", AT(hide_prompt), 0, 0 },
    { "--json", CLI_FLAG, NULL,
      "one JSON object on stdout: text (without the prompt), tokens, speed",
      AT(json), 0, 0 },
};
#undef AT

static const char *const about =
    "Continues a text. The text goes to stdout as it comes, everything else to stderr. Ctrl-C "
    "ends it with the footer and exit code 130; a second one kills. Special tokens in the prompt, "
    "such as <|im_start|>, are recognised. The same seed gives the same text for any number of "
    "threads.";

#define BUNDLED_PROMPT "ROMEO:\n"   /* what the bundled model continues when it is told nothing */

/* The prompt's bytes, malloc'ed. */
static int read_prompt(const struct args *a, sl_ctx *ctx, char **ret_text, size_t *ret_n)
{
    if (a->file) {
        if (cli_read_file(ctx, a->file, ret_text, ret_n) != SL_OK) return cli_fail_ctx(ctx);
        if (*ret_n && (*ret_text)[*ret_n - 1] == '\n') --*ret_n;
        return CLI_DONE;
    }
    const char *p = a->prompt ? a->prompt : BUNDLED_PROMPT;
    *ret_text = strdup(p);
    *ret_n = strlen(p);
    return *ret_text ? CLI_DONE : cli_fail("out of memory");
}

/* Tokens of the prompt; an empty one becomes BOS, or a newline where the model has no BOS. */
static int encode_prompt(cli_session *s, const char *text, size_t n, int32_t **ret_ids,
                         uint32_t *ret_n)
{
    int code = cli_encode_open(s, text, n, true, ret_ids, ret_n);
    if (code != CLI_DONE || *ret_n) return code;
    free(*ret_ids);
    *ret_ids = NULL;
    int32_t bos = sl_vocab_bos(s->vocab);
    if (bos < 0) {
        if (sl_vocab_encode(s->ctx, s->vocab, "\n", 1, false, false, ret_ids, ret_n) != SL_OK)
            return cli_fail_ctx(s->ctx);
        if (*ret_n) return CLI_DONE;
        return cli_fail("the prompt is empty, and the vocabulary has no BOS and no newline");
    }
    *ret_ids = malloc(sizeof bos);
    if (!*ret_ids) return cli_fail("out of memory");
    **ret_ids = bos;
    *ret_n = 1;
    return CLI_DONE;
}

/* Context limits are said, not hit. Fills in n_predict. */
static void fit_context(const cli_session *s, const struct args *a, sl_request *r)
{
    uint32_t room = s->n_ctx - r->n_tokens + 1;     /* the last token drawn need not stand in it */
    if (a->n > (int64_t)room)
        cli_note("%" PRId64 " tokens do not fit: generation ends at the context of %" PRIu32
                 ", of which the prompt takes %" PRIu32 " (-c raises it)", a->n, s->n_ctx,
                 r->n_tokens);
    r->n_predict = a->n < 0 ? UINT32_MAX : (uint32_t)a->n;
}

static int print_json(const cli_session *s, const cli_gen *g, int code)
{
    json_t *obj = json_object();
    if (obj && cli_gen_json(g, obj) && cli_session_json(s, obj)
        && (!s->has_forecast || cli_predicted_json(&s->forecast, obj)))
        return cli_print_json(obj, code);
    json_decref(obj);
    return cli_fail("the result is no valid JSON, or memory ran out");
}

/* The planner is told how much is to be read and written; a text without end counts as one of 256
 * tokens. */
static int start(cli_session *s, const struct args *a, const cli_engine_args *engine,
                 const cli_group *group, uint32_t n_prompt)
{
    sl_load load = { n_prompt, a->n < 0 ? 256 : (uint32_t)a->n };
    cli_engine_args with = *engine;
    with.n_prompt = n_prompt;
    return cli_session_start(&with, group, 1, &load, s);
}

static int run(cli_session *s, const struct args *a, const cli_sampler_args *sampler,
               const cli_engine_args *engine, const cli_group *group, const char *text,
               size_t n_text)
{
    int32_t *ids = NULL;
    cli_gen g = { .stops = &sampler->stops, .print = !a->json };
    int code = encode_prompt(s, text, n_text, &ids, &g.request.n_tokens);
    if (code == CLI_DONE) code = start(s, a, engine, group, g.request.n_tokens);
    g.request.tokens = ids;
    g.request.sampler = sampler->p;
    g.request.ignore_eog = sampler->ignore_eog;
    if (code == CLI_DONE) fit_context(s, a, &g.request);
    if (code == CLI_DONE && g.print && !a->hide_prompt) {
        fwrite(text, 1, n_text, stdout);
        code = cli_end_stdout(CLI_DONE);
    }
    if (code == CLI_DONE) {
        code = cli_generate(s, &g);
        if (code != CLI_FAILED) {
            if (a->json) code = print_json(s, &g, code);
            cli_footer(s, &g);
            if (sampler->p.temp > 0 && g.n_ids)
                cli_note("seed %" PRIu64 " (-s repeats this text)", sampler->p.seed);
        }
    }
    cli_gen_free(&g);
    free(ids);
    return code;
}

int cmd_run(int argc, char **argv)
{
    struct args a = { .n = 256 };
    cli_engine_args engine = cli_engine_defaults();
    cli_sampler_args sampler = cli_sampler_defaults();
    cli_group groups[] = {
        { "Text", options, SL_LEN(options), &a, 0 },
        cli_sampler_group(&sampler),
        cli_engine_group(&engine),
    };
    cli_spec spec = { "run", "[-m FILE] [-p TEXT | -f FILE] [-n N] [options]", about, groups,
                      SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (a.prompt && a.file) return cli_usage_error(&spec, "-p and -f exclude each other");
    if (!a.prompt && !a.file && engine.model)
        return cli_usage_error(&spec, "a prompt is needed: -p TEXT or -f FILE");
    cli_sampler_warn(&groups[1]);
    if (a.json && a.hide_prompt) cli_warn("--no-display-prompt has no effect with --json");

    /* The prompt first: an unreadable file should not cost the load of a model. */
    char *text = NULL;
    size_t n_text = 0;
    sl_ctx *ctx = cli_ctx(false);
    code = ctx ? read_prompt(&a, ctx, &text, &n_text) : CLI_FAILED;
    sl_ctx_destroy(&ctx);
    if (code == CLI_DONE) {
        cli_session s;
        code = cli_session_model(&engine, &s);
        if (code == CLI_DONE) code = run(&s, &a, &sampler, &engine, &groups[2], text, n_text);
        code = cli_session_close(&s, code);
    }
    free(text);
    return code;
}
