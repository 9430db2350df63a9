/* tools/cmd_eval.c - `sluice eval`: perplexity of a text, and raw logits. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/sl_out.h"
#include "tools/session.h"

#define WINDOW 256u     /* default; papers use 2048 and more, the bundled model has 512 */

struct args {
    const char *file, *tokens, *logits;
    bool bos, json;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-f,--file", CLI_STR, "FILE", "the text, - is stdin", AT(file), 0, 0 },
    { "--tokens", CLI_STR, "1,2,3", "token ids instead of a text", AT(tokens), 0, 0 },
    { "--bos", CLI_FLAG, NULL, "the first token of each window is replaced by BOS", AT(bos), 0, 0 },
    { "--logits", CLI_STR, "FILE",
      "write the logits after each token: float32 [tokens][vocabulary]",
      AT(logits), 0, 0 },
    { "--json", CLI_FLAG, NULL, "one JSON object on stdout", AT(json), 0, 0 },
};
#undef AT

static const char *const about =
    "Perplexity of a text. The text is made into tokens at once, without BOS, and cut into "
    "windows of -c tokens (here at most 256 by default) that do not overlap; each starts with an "
    "empty context. The first token of a window is not scored, every other one is; a last window "
    "of one token is left out. Perplexity is exp of the mean of -log p. Ctrl-C ends it with exit "
    "code 130.";

struct eval {
    const struct args *a;
    int32_t *ids;
    uint32_t n_ids;
    sl_out logits;          /* its file is NULL: nobody wants them */
    double nll;             /* nats, of all scored tokens */
    uint64_t n_scored;
    uint32_t n_done, n_windows;     /* tokens processed; windows */
    double start_s, shown_s;
};

/* "1,2, 3" to ids, malloc'ed. */
static int parse_ids(const char *text, int32_t **ret_ids, uint32_t *ret_n)
{
    int32_t *ids = malloc((strlen(text) / 2 + 1) * sizeof *ids);
    if (!ids) return cli_fail("out of memory");
    uint32_t n = 0;
    for (const char *p = text; *p; ) {
        char *end;
        errno = 0;
        long long v = strtoll(p, &end, 10);
        end += strspn(end, " \t\r\n");
        if (end == p || errno || v < 0 || v > INT32_MAX || (*end && *end != ',')) {
            free(ids);
            return cli_fail("--tokens: expected ids separated by commas, found \"%.20s\"", p);
        }
        ids[n++] = (int32_t)v;
        p = *end ? end + 1 : end;
    }
    *ret_ids = ids;
    *ret_n = n;
    return CLI_DONE;
}

static int load_ids(cli_session *s, const struct args *a, int32_t **ret_ids, uint32_t *ret_n)
{
    if (a->tokens) return parse_ids(a->tokens, ret_ids, ret_n);
    char *text = NULL;
    size_t n = 0;
    sl_status st = cli_read_file(s->ctx, a->file, &text, &n);
    if (st == SL_OK) st = sl_vocab_encode(s->ctx, s->vocab, text, n, false, false, ret_ids, ret_n);
    free(text);
    return st == SL_OK ? CLI_DONE : cli_fail_ctx(s->ctx);
}

static int close_logits(cli_session *s, struct eval *e, int code)
{
    if (!e->logits.file) return code;
    sl_status st = sl_out_close(s->ctx, &e->logits, code == CLI_DONE ? SL_OK : SL_E_IO);
    return code == CLI_DONE && st != SL_OK ? cli_fail_ctx(s->ctx) : code;
}

/* -log of the softmax of logits [n] at id. */
static double nll_of(const float *logits, uint32_t n, int32_t id)
{
    float max = -INFINITY;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) max = SL_MAX(max, logits[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp((double)logits[i] - max);
    return log(sum) + max - (double)logits[id];
}

static void progress(struct eval *e)
{
    double now = cli_now_s(), spent = now - e->start_s;
    if (now - e->shown_s < 0.5 || !isatty(2)) return;
    e->shown_s = now;
    double rate = e->n_done / spent;
    fprintf(stderr, "\r%3.0f %%  %.1f tok/s  %.0f s left  perplexity %.4f  ",
            100.0 * e->n_done / e->n_ids, rate, (e->n_ids - e->n_done) / rate,
            exp(e->nll / (double)SL_MAX(e->n_scored, 1u)));
}

static int take_row(struct eval *e, const sl_engine_event *ev, uint32_t n_vocab,
                    const int32_t *window, uint32_t n)
{
    e->n_done++;
    if (e->logits.file
        && fwrite(ev->logits, sizeof(float), n_vocab, e->logits.file) != n_vocab)
        return cli_fail("write %s: %s", e->a->logits, strerror(errno));
    if (ev->pos + 1 >= n) return CLI_DONE;
    double nll = nll_of(ev->logits, n_vocab, window[ev->pos + 1]);
    if (!isfinite(nll))
        return cli_fail("the logits after token %" PRIu32 " are not finite", e->n_done - 1);
    e->nll += nll;
    e->n_scored++;
    return CLI_DONE;
}

static int score_window(cli_session *s, struct eval *e, const int32_t *window, uint32_t n)
{
    sl_request r = { .tokens = window, .n_tokens = n, .want_logits = true };
    sl_seq seq;
    uint32_t n_vocab = sl_model_shape(s->model)->n_vocab;
    if (sl_engine_submit(s->engine, &r, &seq) != SL_OK) return cli_fail_ctx(s->ctx);
    int code = CLI_DONE;
    while (code == CLI_DONE && sl_engine_busy(s->engine)) {
        const sl_engine_event *ev;
        uint32_t n_ev;
        if (sl_engine_step(s->engine, &ev, &n_ev) != SL_OK) return cli_fail_ctx(s->ctx);
        for (uint32_t i = 0; i < n_ev && code == CLI_DONE; i++)
            if (ev[i].kind == SL_EV_LOGITS) code = take_row(e, &ev[i], n_vocab, window, n);
        if (code == CLI_DONE && cli_interrupted()) code = CLI_INTERRUPTED;
        progress(e);
    }
    sl_engine_cancel(s->engine, seq);
    return code;
}

static int score(cli_session *s, struct eval *e)
{
    uint32_t window = s->n_ctx;
    int32_t bos = e->a->bos ? sl_vocab_bos(s->vocab) : -1;
    if (e->a->bos && bos < 0) return cli_fail("--bos: the model has no BOS token");
    e->start_s = e->shown_s = cli_now_s();
    for (uint32_t at = 0; at < e->n_ids; at += window) {
        uint32_t n = SL_MIN(window, e->n_ids - at);
        if (n < 2 && !e->logits.file) break;
        if (bos >= 0) e->ids[at] = bos;
        int code = score_window(s, e, e->ids + at, n);
        if (code != CLI_DONE) return code;
        e->n_windows++;
    }
    return CLI_DONE;
}

static int print_json(const cli_session *s, const struct eval *e, double tok_per_s)
{
    json_t *obj = json_object();
    int bad = obj ? 0 : -1;
    if (e->n_scored) {
        double nll = e->nll / (double)e->n_scored;
        bad |= json_object_set_new(obj, "perplexity", json_real(exp(nll)));
        bad |= json_object_set_new(obj, "nll", json_real(nll));
    }
    bad |= json_object_set_new(obj, "n_tokens", json_integer(e->n_ids));
    bad |= json_object_set_new(obj, "n_scored", json_integer((json_int_t)e->n_scored));
    bad |= json_object_set_new(obj, "n_windows", json_integer(e->n_windows));
    bad |= json_object_set_new(obj, "window", json_integer(s->n_ctx));
    bad |= json_object_set_new(obj, "prompt_tok_per_s", json_real(tok_per_s));
    if (!bad && cli_session_json(s, obj)) return cli_print_json(obj, CLI_DONE);
    json_decref(obj);
    return cli_fail("the result is no valid JSON, or memory ran out");
}

static int report(const cli_session *s, const struct eval *e)
{
    double tok_per_s = e->n_done / SL_MAX(cli_now_s() - e->start_s, 1e-9);
    char peak[120];
    int code = CLI_DONE;
    if (e->shown_s > e->start_s) fprintf(stderr, "\r%79s\r", "");
    if (e->a->json) code = print_json(s, e, tok_per_s);
    else if (e->n_scored) {
        printf("perplexity %.4f over %" PRIu64 " scored of %" PRIu32 " tokens, %" PRIu32
               " window%s of %" PRIu32 "\n", exp(e->nll / (double)e->n_scored), e->n_scored,
               e->n_ids, e->n_windows, e->n_windows == 1 ? "" : "s", s->n_ctx);
        code = cli_end_stdout(CLI_DONE);
    }
    cli_note("%" PRIu32 " tokens at %.1f tok/s; %s", e->n_done, tok_per_s,
             cli_peak_memory(s, peak));
    return code;
}

static int eval(cli_session *s, const struct args *a, const cli_engine_args *engine,
                const cli_group *group)
{
    struct eval e = { .a = a };
    int code = load_ids(s, a, &e.ids, &e.n_ids);
    if (code == CLI_DONE && e.n_ids < (a->logits ? 1u : 2u))
        code = cli_fail("%s gives %" PRIu32 " token%s, and perplexity needs 2",
                        a->tokens ? "--tokens" : a->file, e.n_ids, e.n_ids == 1 ? "" : "s");
    /* last: a text that is none should not cost the load of a model */
    if (code == CLI_DONE) code = cli_session_start(engine, group, 1, NULL, s);
    if (code == CLI_DONE && a->logits && sl_out_open(s->ctx, a->logits, &e.logits) != SL_OK)
        code = cli_fail_ctx(s->ctx);
    if (code == CLI_DONE) {
        cli_catch_sigint();
        code = score(s, &e);
        if (code == CLI_INTERRUPTED)
            cli_note("ended by Ctrl-C: perplexity %.4f over the first %" PRIu64 " scored tokens",
                     exp(e.nll / (double)SL_MAX(e.n_scored, 1u)), e.n_scored);
    }
    code = close_logits(s, &e, code);
    if (code == CLI_DONE) code = report(s, &e);
    free(e.ids);
    return code;
}

int cmd_eval(int argc, char **argv)
{
    struct args a = { .file = NULL };
    cli_engine_args engine = cli_engine_defaults();
    engine.ctx_cap = WINDOW;
    cli_group groups[] = { { "Evaluation", options, SL_LEN(options), &a, 0 },
                           cli_engine_group(&engine) };
    cli_spec spec = { "eval", "[-m FILE] -f TEXT | --tokens IDS [--logits FILE] [options]", about,
                      groups, SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (!a.file == !a.tokens)
        return cli_usage_error(&spec, "one of -f TEXT and --tokens IDS is needed");
    cli_session s;
    engine.no_text = a.tokens && !a.bos;
    code = cli_session_model(&engine, &s);
    if (code == CLI_DONE) code = eval(&s, &a, &engine, &groups[1]);
    return cli_session_close(&s, code);
}
