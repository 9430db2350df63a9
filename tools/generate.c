/* tools/generate.c - the one loop that turns a request into text, and what is reported
 * afterwards. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/session.h"

struct stream {
    cli_gen *g;
    sl_detok detok;
    cli_stop stop;
    char *piece;                /* [sl_vocab_max_text] */
    size_t cap_text;
    uint32_t cap_ids;
    bool hit;                   /* a stop string was met */
};

/* n bytes that a stop string cannot take back: to stdout and to g->text. */
static int emit(struct stream *t, const char *text, size_t n)
{
    cli_gen *g = t->g;
    if (!n) return CLI_DONE;
    if (g->n_text + n > t->cap_text) {
        size_t cap = 2 * (g->n_text + n) + 256;
        char *more = realloc(g->text, cap);
        if (!more) return cli_fail("out of memory after %zu bytes of text", g->n_text);
        g->text = more;
        t->cap_text = cap;
    }
    memcpy(g->text + g->n_text, text, n);
    g->n_text += n;
    if (!g->print) return CLI_DONE;
    fwrite(text, 1, n, stdout);
    return cli_end_stdout(CLI_DONE);
}

static int add_text(struct stream *t, const char *text, size_t n)
{
    const char *show;
    size_t n_show;
    if (!cli_stop_push(&t->stop, text, n, &show, &n_show, &t->hit))
        return cli_fail("out of memory");
    return emit(t, show, n_show);
}

static int add_token(cli_session *s, struct stream *t, int32_t id)
{
    cli_gen *g = t->g;
    if (g->n_ids == t->cap_ids) {
        uint32_t cap = 2 * t->cap_ids + 64;
        int32_t *more = realloc(g->ids, cap * sizeof *more);
        if (!more) return cli_fail("out of memory after %" PRIu32 " tokens", g->n_ids);
        g->ids = more;
        t->cap_ids = cap;
    }
    g->ids[g->n_ids++] = id;
    if (!s->vocab) return CLI_DONE;
    g->ended = sl_vocab_is_eog(s->vocab, id);
    bool shown = !g->view || sl_chat_view_push(g->view, s->vocab, id);
    if (g->ended || !shown) return CLI_DONE;
    return add_text(t, t->piece, sl_detok_push(&t->detok, s->vocab, id, false, t->piece));
}

/* The end of the text: a character left incomplete, and what could have become a stop string. */
static int finish(struct stream *t)
{
    const char *show;
    size_t n_show;
    if (t->hit || !t->piece) return CLI_DONE;
    int code = add_text(t, t->piece, sl_detok_flush(&t->detok, t->piece));
    if (code != CLI_DONE || t->hit) return code;
    cli_stop_flush(&t->stop, &show, &n_show);
    return emit(t, show, n_show);
}

static const char *reason_name(sl_done r)
{
    switch (r) {
    case SL_DONE_EOG: return "eog";
    case SL_DONE_N_PREDICT: return "length";
    case SL_DONE_CONTEXT: return "context";
    case SL_DONE_PROMPT: return "prompt";
    case SL_DONE_STOPPED: return "interrupted";
    case SL_DONE_FAILED: return "failed";
    }
    return "unknown";
}

/* Steps until the sequence is idle. */
static int turn(cli_session *s, struct stream *t, double start, sl_engine_stats *ret_first)
{
    cli_gen *g = t->g;
    bool stopped = false;
    while (!g->reason) {
        const sl_engine_event *ev;
        uint32_t n;
        if (sl_engine_step(s->engine, &ev, &n) != SL_OK) return cli_fail_ctx(s->ctx);
        if (!n && !sl_engine_busy(s->engine)) g->reason = "interrupted";
        for (uint32_t i = 0; i < n; i++) {
            if (ev[i].seq != g->seq) continue;
            if (ev[i].error) return cli_fail("%s", ev[i].error);
            if (ev[i].kind == SL_EV_DONE) g->reason = t->hit ? "stop" : reason_name(ev[i].reason);
            if (ev[i].kind != SL_EV_TOKEN || t->hit) continue;
            if (!g->n_ids) {
                g->ttft_s = cli_now_s() - start;
                sl_engine_get_stats(s->engine, ret_first);
            }
            int code = add_token(s, t, ev[i].token);
            if (code != CLI_DONE) return code;
        }
        if (!stopped && !g->reason && (t->hit || cli_interrupted())) {
            sl_engine_stop(s->engine, g->seq);
            stopped = true;
        }
    }
    return CLI_DONE;
}

static void measure(const cli_session *s, cli_gen *g, const sl_engine_stats *a,
                    const sl_engine_stats *first)
{
    sl_engine_stats end;
    sl_engine_get_stats(s->engine, &end);
    double prompt_s = end.prompt_s - a->prompt_s, decode_s = end.decode_s - a->decode_s;
    uint64_t n_prompt = end.prompt_tokens - a->prompt_tokens;
    if (prompt_s > 0) g->prompt_tok_per_s = (double)n_prompt / prompt_s;
    if (g->n_ids < 2) return;
    if (decode_s > 0) g->decode_tok_per_s = (g->n_ids - 1) / decode_s;
    g->bytes_per_token = (double)(end.bytes_touched - first->bytes_touched) / (g->n_ids - 1);
    g->streamed = sl_engine_plan(s->engine)->weights == SL_WEIGHTS_STREAMED;
    uint64_t hits = end.hits - first->hits, misses = end.misses - first->misses;
    uint64_t read = end.read_bytes - first->read_bytes;
    uint64_t ahead = end.ahead_bytes - first->ahead_bytes;
    if (hits + misses) g->hit_rate = (double)hits / (double)(hits + misses);
    g->disk_bytes_per_token = (double)read / (g->n_ids - 1);
    if (decode_s > 0) g->disk_bytes_s = (double)read / decode_s;
    if (decode_s > 0) g->stall_share = (end.stall_s - first->stall_s) / decode_s;
    g->ahead_off = end.ahead_off;
    g->ahead_used = ahead ? (double)(end.ahead_used_bytes - first->ahead_used_bytes) / (double)ahead
                          : -1;
}

int cli_generate(cli_session *s, cli_gen *g)
{
    struct stream t = { .g = g };
    if (s->vocab) t.piece = malloc(sl_vocab_max_text(s->vocab) + 8);
    if (s->vocab && !t.piece) return cli_fail("out of memory");
    cli_stop_init(&t.stop, g->stops);
    sl_detok_init(&t.detok);
    cli_catch_sigint();

    sl_engine_stats before, first = { .passes = 0 };
    sl_engine_get_stats(s->engine, &before);
    double start = cli_now_s();
    int code = CLI_DONE;
    if (sl_engine_submit(s->engine, &g->request, &g->seq) != SL_OK) code = cli_fail_ctx(s->ctx);
    if (code == CLI_DONE) code = turn(s, &t, start, &first);
    if (code == CLI_DONE) code = finish(&t);
    if (code == CLI_DONE) {
        measure(s, g, &before, &first);
        if (t.hit) g->reason = "stop";
        else if (!strcmp(g->reason, "interrupted")) code = CLI_INTERRUPTED;
    }
    cli_stop_fini(&t.stop);
    free(t.piece);
    return code;
}

void cli_gen_free(cli_gen *g)
{
    free(g->ids);
    free(g->text);
    g->ids = NULL;
    g->text = NULL;
}

static const char *say_reason(const char *reason)
{
    static const char *const says[][2] = {
        { "eog", "the model ended its text" }, { "length", "the limit of tokens is reached (-n)" },
        { "context", "the context is full (-c)" }, { "stop", "a stop string came" },
        { "interrupted", "Ctrl-C" }, { "prompt", "the prompt is read" },
    };
    for (size_t i = 0; i < SL_LEN(says); i++)
        if (!strcmp(says[i][0], reason)) return says[i][1];
    return reason;
}

/* Do stdout and stderr end up in one place: a terminal, or one file or pipe? */
static bool one_reader(void)
{
    struct stat out, err;
    return fstat(1, &out) == 0 && fstat(2, &err) == 0 && out.st_dev == err.st_dev
        && out.st_ino == err.st_ino;
}

/* What was predicted, and how far that was off. */
static void forecast_footer(const sl_forecast *f, const cli_gen *g)
{
    char error[24], decode[80] = "", prompt[80] = "";
    if (g->decode_tok_per_s > 0 && f->decode.tok_per_s > 0)
        snprintf(decode, sizeof decode, ", generation %.1f tok/s: %s", f->decode.tok_per_s,
                 cli_forecast_error(f->decode.tok_per_s, g->decode_tok_per_s, error));
    if (g->prompt_tok_per_s > 0 && f->prompt.tok_per_s > 0)
        snprintf(prompt, sizeof prompt, "prompt %.1f tok/s: %s", f->prompt.tok_per_s,
                 cli_forecast_error(f->prompt.tok_per_s, g->prompt_tok_per_s, error));
    if (*prompt) cli_note("forecast (%s): %s%s", sl_grade_name(f->grade), prompt, decode);
}

char *cli_peak_memory(const cli_session *s, char buf[120])
{
    char peak[24], budget[24] = "an unknown amount", device[24];
    const sl_split *split = &sl_engine_plan(s->engine)->split;
    if (s->budget_bytes) cli_bytes(s->budget_bytes, budget);
    int n = snprintf(buf, 120, "peak memory %s of %s", cli_bytes(cli_peak_rss(), peak), budget);
    /* an emulated device's memory is the process's, and in no budget */
    if (split->accel.kind == SL_ACCEL_EMU)
        snprintf(buf + n, 120 - (size_t)n, " and the device's %s",
                 cli_bytes(split->need_bytes, device));
    return buf;
}

void cli_footer(const cli_session *s, const cli_gen *g)
{
    char a[24], b[24], peak[120], line[256] = "";
    int n = 0;
    fflush(stdout);
    bool open_line = !g->n_text || g->text[g->n_text - 1] != '\n';
    if (g->print && open_line && one_reader()) fputc('\n', stderr);
    if (g->n_ids) n = snprintf(line, sizeof line, ", first token after %.3f s", g->ttft_s);
    snprintf(line + n, sizeof line - (size_t)n, "; generated %" PRIu32 " token%s", g->n_ids,
             g->n_ids == 1 ? "" : "s");
    n = (int)strlen(line);
    if (g->decode_tok_per_s > 0)
        snprintf(line + n, sizeof line - (size_t)n, " at %.1f tok/s", g->decode_tok_per_s);
    cli_note("prompt %" PRIu32 " token%s at %.1f tok/s%s; ended: %s", g->request.n_tokens,
             g->request.n_tokens == 1 ? "" : "s", g->prompt_tok_per_s, line, say_reason(g->reason));
    line[0] = 0;
    if (g->streamed && g->n_ids > 1) {
        snprintf(line, sizeof line, "looked ahead in vain: %.0f %%%s",
                 100 * (1 - g->ahead_used), g->ahead_off ? " (given up: it did not pay)" : "");
        cli_note(
            "experts: %.1f %% hits, %s read per token at %.2f GB/s, %.0f %% of the time waiting"
            "%s%s",
            100 * g->hit_rate, cli_bytes((uint64_t)g->disk_bytes_per_token, a),
            g->disk_bytes_s * 1e-9, 100 * g->stall_share, g->ahead_used < 0 ? "" : ", ",
            g->ahead_used < 0 ? "" : line);
        line[0] = 0;
    }
    if (g->bytes_per_token > 0)
        snprintf(line, sizeof line, "%s of weights computed with per token; ",
                 cli_bytes((uint64_t)g->bytes_per_token, a));
    cli_note("%s%s", line, cli_peak_memory(s, peak));
    if (s->has_forecast) forecast_footer(&s->forecast, g);
    if (!s->verbose) return;
    sl_mem_report r;
    sl_mem_get(s->ctx, &r);
    for (int i = 0; i < SL_N_ACCOUNTS; i++)
        if (r.peak[i]) cli_note("  memory %-8s %s (peak %s)", sl_account_name((sl_account)i),
                                cli_bytes(r.bytes[i], a), cli_bytes(r.peak[i], b));
    cli_note("  opened in %.3f s", s->load_s);
}

bool cli_gen_json(const cli_gen *g, json_t *obj)
{
    int bad = 0;
    json_t *ids = json_array();
    for (uint32_t i = 0; i < g->n_ids; i++)
        bad |= json_array_append_new(ids, json_integer(g->ids[i]));
    bad |= json_object_set_new(obj, "text", json_stringn(g->text ? g->text : "", g->n_text));
    bad |= json_object_set_new(obj, "tokens", ids);
    bad |= json_object_set_new(obj, "n_prompt", json_integer(g->request.n_tokens));
    bad |= json_object_set_new(obj, "n_generated", json_integer(g->n_ids));
    bad |= json_object_set_new(obj, "stop_reason", json_string(g->reason));
    bad |= json_object_set_new(obj, "seed", json_integer((json_int_t)g->request.sampler.seed));
    if (g->prompt_tok_per_s > 0)
        bad |= json_object_set_new(obj, "prompt_tok_per_s", json_real(g->prompt_tok_per_s));
    if (g->decode_tok_per_s > 0)
        bad |= json_object_set_new(obj, "decode_tok_per_s", json_real(g->decode_tok_per_s));
    if (g->n_ids) bad |= json_object_set_new(obj, "ttft_s", json_real(g->ttft_s));
    if (g->bytes_per_token > 0)
        bad |= json_object_set_new(obj, "bytes_per_token", json_real(g->bytes_per_token));
    if (!g->streamed || g->n_ids < 2) return !bad;
    bad |= json_object_set_new(obj, "hit_rate", json_real(g->hit_rate));
    bad |= json_object_set_new(obj, "disk_bytes_per_token", json_real(g->disk_bytes_per_token));
    bad |= json_object_set_new(obj, "disk_bytes_per_s", json_real(g->disk_bytes_s));
    bad |= json_object_set_new(obj, "stall_share", json_real(g->stall_share));
    return !bad;
}

int cli_print_json(json_t *obj, int code)
{
    char *text = obj ? json_dumps(obj, JSON_REAL_PRECISION(9)) : NULL;
    json_decref(obj);
    if (!text) return cli_fail("out of memory");
    puts(text);
    free(text);
    return cli_end_stdout(code);
}
