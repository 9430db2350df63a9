/* tools/cmd_chat.c - `sluice chat`: a conversation through the model's chat template. Earlier turns
 * stay in the KV cache: only what a turn adds is read by the model. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/session.h"

struct args {
    const char *system, *family;
    int64_t n;
    bool json;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-sys,--system-prompt", CLI_STR, "TEXT", "what the model is told first", AT(system), 0, 0 },
    { "--chat-template", CLI_STR, "NAME",
      "a family by its name, such as chatml (default: the file's own)",
      AT(family), 0, 0 },
    { "-n,--predict,--n-predict", CLI_I64, "N",
      "tokens of an answer at most; -1: until it ends (default: -1)",
      AT(n), -1, INT32_MAX },
    { "--json", CLI_FLAG, NULL, "one JSON object a line on stdout for each answer",
      AT(json), 0, 0 },
};
#undef AT

static const char *const about =
    "A conversation. Each line is a message; a \\ at its end goes on with the next line. With "
    "stdin not a terminal, its lines are the messages. Answers go to stdout, everything else to "
    "stderr. /reset starts anew, /exit ends, /help lists these. Ctrl-C stops an answer, and ends "
    "the conversation at the prompt.";

struct chat {
    cli_session *s;
    const struct args *a;
    const cli_sampler_args *sampler;
    sl_chat format;
    sl_seq seq;                 /* 0: nothing was said yet */
    sl_chat_before before;
    bool interactive;
    uint32_t n_answers;
    uint64_t n_prompt, n_generated;
};

enum { TERMINAL_LINE = 4095 };  /* bytes of a line that Linux keeps; the rest is dropped unseen */

/* A message without its newline, malloc'ed; empty: there is nothing to be answered; NULL at the end
 * of stdin or on Ctrl-C. */
static char *read_message(const struct chat *c)
{
    char *line = NULL, *message = NULL;
    size_t cap = 0, n = 0;
    for (bool more = true; more; ) {
        if (c->interactive) fputs(message ? ". " : "> ", stderr);
        if (c->interactive && !cli_wait_stdin()) break;     /* a terminal gives a line at a time */
        ssize_t got = getline(&line, &cap, stdin);
        if (got < 0) break;
        if (got && line[got - 1] == '\n') got--;
        more = got && line[got - 1] == '\\';
        if (more) line[got - 1] = '\n';
        if (c->interactive && got == TERMINAL_LINE) {
            cli_note("a terminal keeps %d bytes of a line, and this one may have been longer: "
                     "nothing was sent; \\ at the end of lines makes one message of several, and a "
                     "pipe takes any", TERMINAL_LINE);
            n = 0, got = 0, more = false;
        }
        char *longer = realloc(message, n + (size_t)got + 1);
        if (!longer) break;
        message = longer;
        memcpy(message + n, line, (size_t)got);
        n += (size_t)got;
        message[n] = 0;
    }
    free(line);
    for (size_t i = 0; i < n; i++)
        if (!message[i]) message[i] = ' ';      /* templates are made of C strings */
    if (!cli_interrupted()) return message;
    free(message);
    return NULL;
}

static void reset(struct chat *c)
{
    sl_engine_cancel(c->s->engine, c->seq);
    c->seq = 0;
    c->before = SL_CHAT_FIRST;
}

/* What helps against a full context besides /reset. */
static const char *raises(const struct chat *c)
{
    uint32_t most = sl_model_shape(c->s->model)->n_ctx_train;
    return most && c->s->n_ctx >= most ? "" : ", -c raises it";
}

static void end_answer(const struct chat *c, const cli_gen *g)
{
    if (!strcmp(g->reason, "interrupted")) cli_note("stopped");
    else if (!strcmp(g->reason, "length"))
        cli_note("the answer was cut at %" PRId64 " tokens (-n)", c->a->n);
    else if (!strcmp(g->reason, "context"))
        cli_note("the context of %" PRIu32 " is full: /reset starts anew%s", c->s->n_ctx,
                 raises(c));
    if (c->s->verbose) cli_footer(c->s, g);
}

/* Tokens [n] that the turn adds are submitted, and the answer is shown. */
static int answer(struct chat *c, const int32_t *ids, uint32_t n)
{
    sl_chat_view view;
    cli_gen g = { .stops = &c->sampler->stops, .view = &view, .print = !c->a->json };
    g.request = (sl_request){ .seq = c->seq, .tokens = ids, .n_tokens = n, .sampler = c->sampler->p,
                              .ignore_eog = c->sampler->ignore_eog,
                              .n_predict = c->a->n < 0 ? UINT32_MAX : (uint32_t)c->a->n };
    g.request.sampler.seed += c->n_answers;
    sl_chat_view_init(&view, &c->format, c->s->vocab);
    int code = cli_generate(c->s, &g);
    if (g.seq) c->seq = g.seq;
    if (code != CLI_FAILED) {
        c->before = g.ended ? SL_CHAT_ENDED : SL_CHAT_CUT;
        c->n_answers++;
        c->n_prompt += n;
        c->n_generated += g.n_ids;
        int written;
        if (c->a->json) {
            json_t *obj = json_object();
            bool ok = obj && cli_gen_json(&g, obj);
            if (!ok) json_decref(obj);
            written = ok ? cli_print_json(obj, CLI_DONE) : cli_fail("the answer is no valid JSON");
        } else {
            putchar('\n');
            written = cli_end_stdout(CLI_DONE);
        }
        if (written != CLI_DONE) code = written;
        else end_answer(c, &g);
    }
    cli_gen_free(&g);
    return code;
}

static int say(struct chat *c, const char *message)
{
    char *text = NULL;
    int32_t *ids = NULL;
    uint32_t n = 0, held = sl_engine_length(c->s->engine, c->seq);
    if (sl_chat_format_turn(c->s->ctx, &c->format, c->a->system, message, c->before,
                            &text) != SL_OK)
        return cli_fail_ctx(c->s->ctx);
    int code = cli_encode_open(c->s, text, strlen(text), c->before == SL_CHAT_FIRST, &ids, &n);
    free(text);
    if (code == CLI_DONE && n > c->s->n_ctx - held)
        code = cli_fail("the message has %" PRIu32 " tokens, and %" PRIu32 " of the context's %"
                        PRIu32 " are left: /reset starts anew%s", n,
                        c->s->n_ctx - held, c->s->n_ctx, raises(c));
    else if (code == CLI_DONE) {
        code = answer(c, ids, n);
        free(ids);
        return code;
    }
    free(ids);
    return c->interactive ? CLI_DONE : code;    /* at a terminal the user can help it */
}

/* True when the line was a command; *ret_exit when it ends the conversation. */
static bool command(struct chat *c, const char *line, bool *ret_exit)
{
    if (line[0] != '/' || strpbrk(line, " \n")) return false;
    if (!strcmp(line, "/exit") || !strcmp(line, "/quit") || !strcmp(line, "/bye")) *ret_exit = true;
    else if (!strcmp(line, "/reset")) {
        reset(c);
        cli_note("a new conversation");
    } else if (!strcmp(line, "/help") || !strcmp(line, "/?"))
        cli_note("/reset starts anew, /exit ends; a \\ at the end of a line goes on with the next "
                 "one; Ctrl-C stops an answer");
    else cli_note("%s is no command: /help lists them", line);
    return true;
}

static int talk(struct chat *c)
{
    int code = CLI_DONE;
    bool over = false;
    while (!over) {
        cli_catch_sigint();
        char *message = read_message(c);
        if (!message) {
            if (c->interactive) fputc('\n', stderr);
            if (cli_interrupted()) code = CLI_INTERRUPTED;
            else if (ferror(stdin)) code = cli_fail("read stdin: %s", strerror(errno));
            break;
        }
        if (*message && !command(c, message, &over)) {
            code = say(c, message);
            if (code == CLI_INTERRUPTED && c->interactive) code = CLI_DONE;
            over = code != CLI_DONE;
        }
        free(message);
    }
    return code;
}

/* Comes first: a model that was not made for chat should not be loaded to say so. */
static int find_template(struct chat *c)
{
    sl_ctx *ctx = c->s->ctx;
    const sl_gguf *g = sl_model_gguf(c->s->model);
    sl_status st = c->a->family ? sl_chat_pick(ctx, c->s->vocab, c->a->family, &c->format)
                                : sl_chat_detect(ctx, g, c->s->vocab, &c->format);
    if (st == SL_E_UNSUPPORTED)
        return cli_fail("%s; --chat-template NAME sets one, `sluice run` continues plain text",
                        sl_error(ctx));
    return st == SL_OK ? CLI_DONE : cli_fail_ctx(ctx);
}

static int chat(struct chat *c)
{
    if (c->interactive) cli_note("template %s; /help lists commands", sl_chat_name(c->format.kind));
    int code = talk(c);

    sl_engine_stats e;
    char peak[120], error[24];
    sl_engine_get_stats(c->s->engine, &e);
    if (code == CLI_FAILED || !c->n_answers) return code;
    /* The first token of an answer comes from the pass that reads the message. */
    uint64_t n_decoded = c->n_generated - SL_MIN(c->n_generated, c->n_answers);
    cli_note("%" PRIu32 " answer%s: read %" PRIu64 " tokens at %.1f tok/s, wrote %" PRIu64
             " at %.1f tok/s; %s", c->n_answers, c->n_answers == 1 ? "" : "s", c->n_prompt,
             e.prompt_s > 0 ? (double)e.prompt_tokens / e.prompt_s : 0, c->n_generated,
             e.decode_s > 0 ? (double)n_decoded / e.decode_s : 0,
             cli_peak_memory(c->s, peak));
    if (c->s->has_forecast && e.decode_s > 0 && n_decoded)
        cli_note("the forecast was %.1f tok/s: off by %s", c->s->forecast.decode.tok_per_s,
                 cli_forecast_error(c->s->forecast.decode.tok_per_s, (double)n_decoded / e.decode_s,
                                    error));
    return code;
}

int cmd_chat(int argc, char **argv)
{
    struct args a = { .n = -1 };
    cli_engine_args engine = cli_engine_defaults();
    cli_sampler_args sampler = cli_sampler_defaults();
    cli_group groups[] = {
        { "Conversation", options, SL_LEN(options), &a, 0 }, cli_sampler_group(&sampler),
        cli_engine_group(&engine),
    };
    cli_spec spec = { "chat", "[-m FILE] [-sys TEXT] [options]", about, groups, SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (!a.n) return cli_usage_error(&spec, "-n 0: an answer needs a token");
    cli_sampler_warn(&groups[1]);
    cli_session s;
    const sl_load turn = { 128, a.n < 0 ? 256 : (uint32_t)SL_MIN(a.n, 4096) };  /* a typical one */
    struct chat c = { .s = &s, .a = &a, .sampler = &sampler, .interactive = isatty(0) };
    code = cli_session_model(&engine, &s);
    if (code == CLI_DONE) code = find_template(&c);
    if (code == CLI_DONE) code = cli_session_start(&engine, &groups[2], 1, &turn, &s);
    if (code == CLI_DONE) code = chat(&c);
    return cli_session_close(&s, code);
}
