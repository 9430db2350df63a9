/* tools/cmd_batch.c - `sluice batch`: a file of prompts through a model, as many tokens an hour as
 * the machine gives. One pass over the weights serves all sequences that are alive. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "offload/sl_device.h"
#include "tools/batch_file.h"
#include "tools/batch_prefix.h"
#include "tools/machine_file.h"
#include "tools/queue_text.h"
#include "tools/session.h"

enum { BLIND_SEQS = 64, BLIND_ROWS = 512 };     /* on a machine that nobody knows */

struct args {
    const char *in, *out, *family;
    int64_t n;
    uint32_t parallel, order, kv_positions;
    bool json;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "-i,--input", CLI_STR, "FILE", "requests, one JSON object a line; -: stdin", AT(in), 0, 0 },
    { "-o,--output", CLI_STR, "FILE",
      "results, one JSON object a line; what it has already is not done again", AT(out), 0, 0 },
    { "-n,--predict,--n-predict", CLI_I64, "N",
      "tokens of an answer at most, where the request does not say (default: 256)", AT(n), 1,
      INT32_MAX },
    { "-np,--parallel", CLI_U32, "N",
      "sequences at once (default: as many as pay, by memory and machine)", AT(parallel), 1,
      4096 },
    { "--kv-positions", CLI_U32, "N",
      "tokens of all sequences together that there is room for (default: as many as pay)",
      AT(kv_positions), 1, 1 << 30 },
    { "--order", CLI_CHOICE, "finished|input",
      "results as they finish, or in the end in the order of the requests (default: finished)",
      AT(order), 0, 0 },
    { "--chat-template", CLI_STR, "NAME",
      "a family by its name, such as chatml (default: the file's own)", AT(family), 0, 0 },
    { "--json", CLI_FLAG, NULL, "a summary as one JSON object on stdout", AT(json), 0, 0 },
};
#undef AT

static const char *const about =
    "Requests are JSON lines: {\"custom_id\": \"a\", \"prompt\": \"...\"} or {\"custom_id\": "
    "\"a\", \"messages\": [{\"role\": \"user\", \"content\": \"...\"}]}, with max_tokens, "
    "temperature, top_p, top_k, min_p, repeat_penalty, seed and stop where they differ from the "
    "flags; or lines of OpenAI's batch form (custom_id, method, url, body), which are answered in "
    "that form. Results are written as they finish. Interrupted in any way, the same command goes "
    "on where it was. A request's answer depends on nothing but itself: its seed is made of -s "
    "(here 0 by default) and its custom_id.";

/* A sequence that is alive. */
struct slot {
    batch_line *line;           /* NULL: free */
    batch_request request;
    sl_seq seq;
    sl_detok detok;
    cli_stop stop;
    sl_chat_view view;
    uint32_t n_prompt, n_drawn;
    bool hit;                   /* a stop string was met */
    char *text;
    size_t n_text, cap_text;
};

struct batch {
    const struct args *a;
    const cli_sampler_args *sampler;
    cli_session s;
    batch_file file;
    batch_defaults defaults;
    char settings[400];
    bool has_chat;
    sl_chat chat;
    char no_chat[200];          /* why there is none */
    struct slot *slots;         /* [n_slots] */
    uint32_t n_slots, n_running, next;      /* next: line to be begun */
    char *piece;                /* [sl_vocab_max_text] */
    uint32_t n_answered, n_refused, n_broken;
    uint64_t n_prompt, n_completion;
    double start_s, shown_s;
    double middle_s[2], middle_tokens[2];       /* when a quarter and three quarters had ended */
    double n_tokens;            /* of all requests to come */
    bool has_forecast;
    sl_queue_choice choice;     /* plan, forecast and bound, if it has one */
};

/* ---- a request becomes tokens ---- */

static sl_status chat_text(struct batch *b, const batch_request *r, char **ret, char why[200])
{
    if (!b->has_chat) {
        snprintf(why, 200, "%s", b->no_chat);
        return SL_E_UNSUPPORTED;
    }
    sl_status st = sl_chat_format(b->s.ctx, &b->chat, r->messages, r->n_messages, true, ret);
    if (st != SL_OK) snprintf(why, 200, "%s", sl_error(b->s.ctx));
    return st;
}

/* malloc'ed; false: why says what is wrong with the request. */
static bool encode(struct batch *b, const batch_request *r, int32_t **ret_ids, uint32_t *ret_n,
                   char why[200])
{
    cli_session *s = &b->s;
    char *made = NULL;
    const char *text = r->prompt;
    size_t n = r->n_prompt;
    if (r->chat) {
        if (chat_text(b, r, &made, why) != SL_OK) return false;
        text = made;
        n = strlen(made);
    }
    int code = cli_encode_open(s, text, n, true, ret_ids, ret_n);
    free(made);
    if (code != CLI_DONE) snprintf(why, 200, "%s", sl_error(s->ctx));
    else if (!*ret_n) {
        snprintf(why, 200, "the prompt is empty");
        free(*ret_ids);
        *ret_ids = NULL;
        code = CLI_FAILED;
    }
    return code == CLI_DONE;
}

/* ---- how many at once ---- */

/* Lengths of all requests to come, as far as they are computed: what a prompt shares with an
 * earlier one is not. */
struct lengths {
    sl_lens_length *at;         /* [n] */
    uint32_t n, longest;        /* prompt and answer, whole */
    double mean, all;           /* all: tokens, shared ones too */
};

static int add_length(struct lengths *l, batch_prefixes *seen, const int32_t *ids, uint32_t n,
                      uint32_t max_tokens, uint32_t n_ctx)
{
    uint32_t shared, all = SL_MIN(n, 1u << 24) + SL_MIN(max_tokens, 1u << 24);
    if (n > n_ctx) return CLI_DONE;     /* is refused */
    if (!batch_prefixes_add(seen, ids, n, &shared)) return cli_fail("out of memory");
    l->at[l->n++] = (sl_lens_length){ n - shared, max_tokens, 1 };
    l->longest = SL_MAX(l->longest, all);
    l->mean += all;
    l->all += all;
    return CLI_DONE;
}

static int measure_lengths(struct batch *b, uint32_t n_ctx, struct lengths *ret)
{
    char why[200];
    int code = CLI_DONE;
    batch_prefixes seen = { 0 };
    *ret = (struct lengths){ .at = calloc(b->file.n + 1ull, sizeof *ret->at) };
    if (!ret->at) return cli_fail("out of memory");
    for (uint32_t i = 0; i < b->file.n && code == CLI_DONE; i++) {
        batch_request r;
        int32_t *ids = NULL;
        uint32_t n = 0;
        if (!b->file.lines[i].todo) continue;
        if (batch_parse(&b->file, &b->file.lines[i], &b->defaults, &r, why)
            && encode(b, &r, &ids, &n, why))
            code = add_length(ret, &seen, ids, n, r.max_tokens, n_ctx);
        free(ids);
        batch_request_free(&r);
    }
    batch_prefixes_fini(&seen);
    ret->mean /= SL_MAX(ret->n, 1);
    return code;
}

static uint32_t round_up(double n, uint32_t unit)
{
    return (uint32_t)(ceil(fmax(n, 1) / unit) * unit);
}

/* Without a forecast: as many sequences as fit up to a plain number of them. */
static int fit(struct batch *b, sl_plan_params *p, const struct lengths *l)
{
    uint32_t n = b->a->parallel ? b->a->parallel : SL_MIN((uint32_t)BLIND_SEQS, SL_MAX(l->n, 1));
    for (;; n = (n + 1) / 2) {
        p->n_seq = n;
        p->kv_positions = b->a->kv_positions;
        if (!p->kv_positions) p->kv_positions = (uint64_t)n * round_up(l->mean, SL_KV_BLOCK_ROWS);
        if (sl_plan_make(b->s.ctx, sl_model_shape(b->s.model), p, &b->choice.plan) == SL_OK)
            return CLI_DONE;
        if (n == 1 || b->a->parallel) return cli_fail_ctx(b->s.ctx);
    }
}

static int forecast(struct batch *b, const sl_machine *m, const struct lengths *l,
                    sl_planner_params *q)
{
    const sl_shape *shape = sl_model_shape(b->s.model);
    sl_miss_model miss;
    sl_workload queue = { l->at, l->n, l->n };
    int code = cli_miss_model(b->s.ctx, shape, NULL, false, &miss);
    if (code != CLI_DONE) return code;
    q->base.n_seq = b->a->parallel;
    q->base.kv_positions = b->a->kv_positions;
    sl_status st = sl_planner_queue(b->s.ctx, m, shape, &miss, q, &queue, &b->choice);
    if (st == SL_E_UNSUPPORTED && q->base.accel.kind) {
        cli_note("no forecast: none knows of experts on disk beside a device");
        return fit(b, &q->base, l);
    }
    if (st != SL_OK) return cli_fail_ctx(b->s.ctx);
    b->has_forecast = b->choice.plan.weights != SL_WEIGHTS_STREAMED || m->disk.n_curves;
    /* what is shared comes for nothing, and counts */
    double computed = 0;
    for (uint32_t i = 0; i < l->n; i++) computed += (double)l->at[i].prompt + l->at[i].gen;
    b->choice.forecast.tok_per_s *= l->all / computed;
    b->choice.forecast.full_tok_per_s *= l->all / computed;
    b->choice.forecast.bound_tok_per_s *= l->all / computed;
    b->choice.bound.tok_per_s *= l->all / computed;
    return CLI_DONE;
}

/* Sequences, their room and the rows of a pass. */
static int choose(struct batch *b, const cli_engine_args *e, const cli_group *g)
{
    struct lengths l;
    sl_planner_params q;
    sl_machine machine;
    const sl_shape *shape = sl_model_shape(b->s.model);
    bool known = cli_machine_for_run(b->s.ctx, b->s.path, shape->total_bytes, &machine);
    const sl_machine *m = known ? &machine : NULL;
    int code = cli_planner_params(e, g, b->s.ctx, shape, m, cli_available_bytes(), 1, &q);
    if (code == CLI_DONE) code = cli_take_device(e, g, b->s.ctx, &q.base);
    if (code != CLI_DONE) return code;
    if (m && !cli_machine_card(b->s.ctx, &q.base.accel, &machine)) m = NULL;
    uint32_t most = shape->n_ctx_train ? shape->n_ctx_train : 4096;
    bool given = cli_given(g, "--ctx-size");
    if (!given || !q.base.n_ctx) q.base.n_ctx = most;
    code = measure_lengths(b, q.base.n_ctx, &l);
    if (code == CLI_DONE) {
        if (!given) q.base.n_ctx = SL_MIN(round_up(l.longest, SL_KV_BLOCK_ROWS), most);
        q.base.cpu_mask = b->s.cpu_mask;
        q.base.blas = e->blas && sl_device_has_blas();
        q.base.share_prefixes = true;
        if (!cli_given(g, "--batch-size")) q.base.max_rows = BLIND_ROWS;
        b->n_tokens = l.all;
        code = m && l.n ? forecast(b, m, &l, &q) : fit(b, &q.base, &l);
    }
    free(l.at);
    return code;
}

/* ---- answers ---- */

static int write_result(struct batch *b, const struct slot *s, const char *finish,
                        const char *error)
{
    batch_answer a = { .text = s->text ? s->text : "", .n_text = s->n_text,
                       .finish_reason = finish, .n_prompt = s->n_prompt,
                       .n_completion = s->n_drawn, .model = sl_model_name(b->s.model),
                       .created = (int64_t)time(NULL), .error = error };
    int code = batch_write(&b->file, batch_result(s->line, &s->request, &a));
    if (code == CLI_DONE) s->line->todo = false;
    return code;
}

static void end_slot(struct batch *b, struct slot *s)
{
    if (s->seq) {
        sl_engine_cancel(b->s.engine, s->seq);
        b->n_running--;
    }
    batch_request_free(&s->request);
    cli_stop_fini(&s->stop);
    free(s->text);
    *s = (struct slot){ .line = NULL };
}

/* A request that can never be done has a result too: it says why. */
static int refuse(struct batch *b, struct slot *s, bool never, const char *why)
{
    cli_warn("%s:%" PRIu32 ": %s", b->file.in_name, s->line->number, why);
    b->n_refused++;
    int code = never ? write_result(b, s, NULL, why) : CLI_DONE;
    end_slot(b, s);
    return code;
}

static int begin(struct batch *b, struct slot *s, batch_line *line)
{
    int32_t *ids = NULL;
    char why[200];
    *s = (struct slot){ .line = line };
    if (!batch_parse(&b->file, line, &b->defaults, &s->request, why)
        || !encode(b, &s->request, &ids, &s->n_prompt, why))
        return refuse(b, s, true, why);
    if (s->n_prompt > b->s.n_ctx) {
        free(ids);
        snprintf(why, sizeof why, "the prompt has %" PRIu32 " tokens and the context %" PRIu32
                 " (-c)", s->n_prompt, b->s.n_ctx);
        return refuse(b, s, false, why);    /* another run may have a larger one */
    }
    sl_request r = { .tokens = ids, .n_tokens = s->n_prompt, .n_predict = s->request.max_tokens,
                     .ignore_eog = b->sampler->ignore_eog, .sampler = s->request.sampler };
    sl_status st = sl_engine_submit(b->s.engine, &r, &s->seq);
    free(ids);
    if (st == SL_E_ARG) return refuse(b, s, true, sl_error(b->s.ctx));
    if (st != SL_OK) return cli_fail_ctx(b->s.ctx);
    sl_detok_init(&s->detok);
    cli_stop_init(&s->stop, &s->request.stops);
    if (s->request.chat) sl_chat_view_init(&s->view, &b->chat, b->s.vocab);
    b->n_running++;
    return CLI_DONE;
}

static int add_text(struct slot *s, const char *text, size_t n)
{
    if (!n) return CLI_DONE;
    if (s->n_text + n > s->cap_text) {
        size_t cap = 2 * (s->n_text + n) + 256;
        char *more = realloc(s->text, cap);
        if (!more) return cli_fail("out of memory");
        s->text = more;
        s->cap_text = cap;
    }
    memcpy(s->text + s->n_text, text, n);
    s->n_text += n;
    return CLI_DONE;
}

static int push_text(struct slot *s, const char *text, size_t n)
{
    const char *show;
    size_t n_show;
    if (!cli_stop_push(&s->stop, text, n, &show, &n_show, &s->hit))
        return cli_fail("out of memory");
    return add_text(s, show, n_show);
}

static int on_token(struct batch *b, struct slot *s, int32_t id)
{
    if (s->hit) return CLI_DONE;
    s->n_drawn++;
    bool shown = !s->request.chat || sl_chat_view_push(&s->view, b->s.vocab, id);
    if (sl_vocab_is_eog(b->s.vocab, id) || !shown) return CLI_DONE;
    int code = push_text(s, b->piece, sl_detok_push(&s->detok, b->s.vocab, id, false, b->piece));
    if (s->hit) sl_engine_stop(b->s.engine, s->seq);
    return code;
}

static int on_done(struct batch *b, struct slot *s, const sl_engine_event *ev)
{
    const char *show;
    size_t n_show;
    int code = CLI_DONE;
    if (ev->error) {            /* no result: the next run tries it again */
        cli_warn("%s:%" PRIu32 ": %s", b->file.in_name, s->line->number, ev->error);
        b->n_broken++;
        end_slot(b, s);
        return CLI_DONE;
    }
    if (!s->hit) code = push_text(s, b->piece, sl_detok_flush(&s->detok, b->piece));
    if (code == CLI_DONE && !s->hit) {
        cli_stop_flush(&s->stop, &show, &n_show);
        code = add_text(s, show, n_show);
    }
    bool cut = ev->reason == SL_DONE_N_PREDICT || ev->reason == SL_DONE_CONTEXT;
    if (code == CLI_DONE) code = write_result(b, s, cut && !s->hit ? "length" : "stop", NULL);
    b->n_answered++;
    b->n_prompt += s->n_prompt;
    b->n_completion += s->n_drawn;
    end_slot(b, s);
    return code;
}

/* ---- the loop ---- */

/* Tokens so far, drawn ones and those of prompts that have begun. */
static double tokens(const struct batch *b)
{
    sl_engine_stats st;
    sl_engine_get_stats(b->s.engine, &st);
    return (double)(st.prompt_tokens + st.shared_tokens + st.drawn_tokens);
}

/* By what is done so far, and in the beginning by the forecast. Negative: unknown. */
static double left_s(const struct batch *b, double elapsed_s)
{
    double share = b->n_tokens > 0 ? fmin(tokens(b) / b->n_tokens, 1) : 0;
    double trust = fmin(share / 0.05, 1), by_share = share > 0 ? elapsed_s / share - elapsed_s : 0;
    if (!b->has_forecast) return share > 0.01 ? by_share : -1;
    return trust * by_share + (1 - trust) * fmax(b->choice.forecast.seconds - elapsed_s, 0);
}

static void show_progress(struct batch *b)
{
    double now = cli_now_s(), s = now - b->start_s, left = left_s(b, s);
    uint32_t all = b->file.n_ids - b->file.n_done;
    uint32_t done = b->n_answered + b->n_refused + b->n_broken;
    char time[32];
    if (!isatty(2) || now - b->shown_s < 0.5) return;
    b->shown_s = now;
    fprintf(stderr, "\rsluice: %" PRIu32 " of %" PRIu32 " requests, %" PRIu32
            " at once, %.1f tok/s", done, all, b->n_running, tokens(b) / fmax(s, 1e-9));
    if (b->has_forecast)
        fprintf(stderr, " (forecast %.1f)", b->choice.forecast.tok_per_s);
    if (left >= 0) fprintf(stderr, ", %s left", cli_duration(left, time));
    fputs("\033[K", stderr);
}

static int fill_slots(struct batch *b)
{
    for (uint32_t i = 0; i < b->n_slots; i++) {
        struct slot *s = &b->slots[i];
        while (!s->line && b->next < b->file.n) {
            batch_line *line = &b->file.lines[b->next++];
            if (!line->todo) continue;
            int code = begin(b, s, line);
            if (code != CLI_DONE) return code;
        }
    }
    return CLI_DONE;
}

/* While these pass the pipeline is full. */
static void note_middle(struct batch *b)
{
    uint32_t all = b->file.n_ids - b->file.n_done;
    uint32_t done = b->n_answered + b->n_refused + b->n_broken;
    for (uint32_t i = 0; i < 2; i++)
        if (b->middle_s[i] == 0 && done >= (i ? all - all / 4 : all / 4)) {
            b->middle_s[i] = cli_now_s();
            b->middle_tokens[i] = tokens(b);
        }
}

static int take_events(struct batch *b, const sl_engine_event *ev, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++) {
        struct slot *s = b->slots;
        while (s->seq != ev[k].seq) s++;
        int code = ev[k].kind == SL_EV_TOKEN ? on_token(b, s, ev[k].token)
                                             : on_done(b, s, &ev[k]);
        if (code != CLI_DONE) return code;
    }
    return CLI_DONE;
}

static int loop(struct batch *b)
{
    for (;;) {
        const sl_engine_event *ev;
        uint32_t n;
        if (cli_interrupted()) return CLI_INTERRUPTED;
        int code = fill_slots(b);
        if (code != CLI_DONE || !b->n_running) return code;
        if (sl_engine_step(b->s.engine, &ev, &n) != SL_OK) return cli_fail_ctx(b->s.ctx);
        code = take_events(b, ev, n);
        if (code != CLI_DONE) return code;
        note_middle(b);
        show_progress(b);
    }
}

static int print_summary(const struct batch *b, double s, int code)
{
    sl_engine_stats st;
    sl_engine_get_stats(b->s.engine, &st);
    double tok_s = s > 0 ? (double)(b->n_prompt + b->n_completion) / s : 0;
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    json_t *obj = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
        "s:I, s:f}", "requests", (json_int_t)b->file.n_ids, "answered", (json_int_t)b->n_answered,
        "had_results", (json_int_t)b->file.n_done, "refused",
        (json_int_t)(b->n_refused + b->file.n_bad), "failed", (json_int_t)b->n_broken,
        "prompt_tokens", (json_int_t)b->n_prompt, "completion_tokens",
        (json_int_t)b->n_completion, "seconds", s, "tok_per_s", tok_s, "sequences",
        (json_int_t)b->n_slots, "max_rows", (json_int_t)plan->max_rows, "kv_positions",
        (json_int_t)plan->n_kv_blocks * plan->kv_block_rows, "kv_bytes",
        (json_int_t)plan->kv_bytes, "passes", (json_int_t)st.passes, "shared_tokens",
        (json_int_t)st.shared_tokens, "preemptions", (json_int_t)st.preemptions,
        "recomputed_tokens", (json_int_t)st.recomputed_tokens, "disk_bytes",
        (json_int_t)st.read_bytes, "stall_share", s > 0 ? st.stall_s / s : 0);
    bool ok = obj && cli_session_json(&b->s, obj);
    double full = (b->middle_tokens[1] - b->middle_tokens[0])
                / (b->middle_s[1] - b->middle_s[0]);
    if (ok && b->middle_s[1] > b->middle_s[0])
        ok = !json_object_set_new(obj, "full_tok_per_s", json_real(full));
    if (ok && b->has_forecast) ok = cli_queue_json(&b->choice, obj);
    if (ok) return cli_print_json(obj, code);
    json_decref(obj);
    return cli_fail("the summary is no valid JSON, or memory ran out");
}

static int say_missing(const struct batch *b, int code)
{
    uint32_t missing = b->n_refused + b->n_broken + b->file.n_bad;
    if (missing)
        cli_note("%" PRIu32 " request%s could not be done: see above", missing,
                 missing == 1 ? "" : "s");
    return code == CLI_DONE && missing ? CLI_FAILED : code;
}

static int summary(const struct batch *b, int code)
{
    double s = cli_now_s() - b->start_s;
    sl_engine_stats st;
    char peak[120], more[120] = "", error[24];
    double tok_s = s > 0 ? (double)(b->n_prompt + b->n_completion) / s : 0;
    sl_engine_get_stats(b->s.engine, &st);
    if (isatty(2)) fputs("\r\033[K", stderr);
    if (st.shared_tokens || st.preemptions)
        snprintf(more, sizeof more, "; %" PRIu64 " prompt tokens shared, %" PRIu64
                 " preemptions (%" PRIu64 " tokens again)", st.shared_tokens, st.preemptions,
                 st.recomputed_tokens);
    cli_note("%" PRIu32 " answer%s in %.1f s: %" PRIu64 " prompt and %" PRIu64
             " new tokens, %.1f tok/s%s", b->n_answered, b->n_answered == 1 ? "" : "s", s,
             b->n_prompt, b->n_completion, tok_s, more);
    if (b->has_forecast && tok_s > 0)
        cli_note("forecast %.1f tok/s (%s), error %s; at most %.1f tok/s",
                 b->choice.forecast.tok_per_s, sl_grade_name(b->choice.forecast.grade),
                 cli_forecast_error(b->choice.forecast.tok_per_s, tok_s, error),
                 b->choice.bound.tok_per_s);
    cli_note("%s", cli_peak_memory(&b->s, peak));
    if (code == CLI_INTERRUPTED) cli_note("interrupted: the same command goes on from here");
    code = say_missing(b, code);
    return b->a->json ? print_summary(b, s, code) : code;
}

/* All results were there already: what `summary` says without a run. */
static int nothing_to_do(const struct batch *b)
{
    int code = say_missing(b, CLI_DONE);
    if (!b->a->json) return code;
    json_t *obj = json_pack("{s:I, s:i, s:I, s:I, s:i, s:i, s:i}", "requests",
                            (json_int_t)b->file.n_ids, "answered", 0, "had_results",
                            (json_int_t)b->file.n_done, "refused", (json_int_t)b->file.n_bad,
                            "failed", 0, "prompt_tokens", 0, "completion_tokens", 0);
    return obj ? cli_print_json(obj, code) : cli_fail("out of memory");
}

/* ---- */

static int run(struct batch *b, cli_engine_args *e, const cli_group *g)
{
    int code = choose(b, e, g);
    uint32_t n_seq = b->choice.plan.n_seq;
    e->ready = &b->choice.plan;
    if (code == CLI_DONE) code = cli_session_start(e, g, n_seq, NULL, &b->s);
    if (code != CLI_DONE) return code;
    b->slots = calloc(n_seq, sizeof *b->slots);
    b->piece = malloc(sl_vocab_max_text(b->s.vocab) + 8);
    if (!b->slots || !b->piece) return cli_fail("out of memory");
    b->n_slots = n_seq;
    const sl_plan *plan = sl_engine_plan(b->s.engine);
    uint32_t todo = b->file.n_ids - b->file.n_done;
    cli_note("%" PRIu32 " request%s, %" PRIu32 " at once in room for %" PRIu64
             " positions, passes of up to %" PRIu32 " rows", todo, todo == 1 ? "" : "s", n_seq,
             (uint64_t)plan->n_kv_blocks * plan->kv_block_rows, plan->max_rows);
    char line[200];
    if (b->has_forecast) cli_note("%s", cli_queue_line(&b->choice, line));
    cli_catch_sigint();         /* before, there is nothing to be ended in order */
    b->start_s = cli_now_s();
    code = loop(b);
    code = summary(b, code);
    for (uint32_t i = 0; i < b->n_slots; i++)
        if (b->slots[i].line) end_slot(b, &b->slots[i]);
    return code;
}

static int start(struct batch *b, cli_engine_args *e, const cli_group *g)
{
    int code = cli_session_model(e, &b->s);
    if (code != CLI_DONE) return code;
    const sl_gguf *gguf = sl_model_gguf(b->s.model);
    sl_status st = b->a->family ? sl_chat_pick(b->s.ctx, b->s.vocab, b->a->family, &b->chat)
                                : sl_chat_detect(b->s.ctx, gguf, b->s.vocab, &b->chat);
    if (st != SL_OK && b->a->family) return cli_fail_ctx(b->s.ctx);
    b->has_chat = st == SL_OK;
    snprintf(b->no_chat, sizeof b->no_chat, "messages: %.120s; --chat-template NAME sets one",
             sl_error(b->s.ctx));
    const sl_sampler_params *p = &b->sampler->p;
    uint64_t stops = 0;
    for (uint32_t i = 0; i < b->defaults.stops.n; i++)
        for (const char *c = b->defaults.stops.s[i];; c++) {
            stops = (stops ^ (unsigned char)*c) * 1099511628211u + 1;
            if (!*c) break;
        }
    snprintf(b->settings, sizeof b->settings,
             "%.100s %016" PRIx64 " kv %u %u acts %u blas %u stops %" PRIx64 " %s n %" PRIu32
             " temp %g top_k %u top_p %g min_p %g penalty %g %u seed %" PRIu64 " eos %d",
             sl_model_name(b->s.model), sl_plan_shape_id(sl_model_shape(b->s.model)), e->kv_k,
             e->kv_v, e->activations, e->blas, stops,
             b->has_chat ? sl_chat_name(b->chat.kind) : "text", b->defaults.max_tokens,
             (double)p->temp, p->top_k, (double)p->top_p, (double)p->min_p,
             (double)p->repeat_penalty, p->repeat_last_n, p->seed, b->sampler->ignore_eog);
    b->defaults.settings = b->settings;
    code = batch_open(&b->file, b->s.ctx, b->a->in, &b->defaults);
    if (code == CLI_DONE) code = batch_open_results(&b->file, b->a->out);
    if (code != CLI_DONE) return code;
    if (b->file.n_done)
        cli_note("%s has %" PRIu32 " of %" PRIu32 " results already", b->a->out, b->file.n_done,
                 b->file.n_ids);
    code = b->file.n_done < b->file.n_ids ? run(b, e, g) : nothing_to_do(b);
    if (b->a->order == 1 && (code == CLI_DONE || code == CLI_FAILED)) {
        int sorted = batch_sort(&b->file, b->s.ctx);
        code = code == CLI_DONE ? sorted : code;
    }
    return code;
}

int cmd_batch(int argc, char **argv)
{
    struct args a = { .n = 256 };
    cli_engine_args engine = cli_engine_defaults();
    cli_sampler_args sampler = cli_sampler_defaults();
    cli_group groups[] = {
        { "Requests", options, SL_LEN(options), &a, 0 }, cli_sampler_group(&sampler),
        cli_engine_group(&engine),
    };
    cli_spec spec = { "batch", "-i FILE -o FILE [-m FILE] [options]", about, groups,
                      SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (!a.in || !a.out)
        return cli_usage_error(&spec, "requests (-i) and a results file (-o) are needed");
    if (!strcmp(a.out, "-"))
        return cli_usage_error(&spec, "-o -: results go to a file, from which a run goes on");
    if (!cli_given(&groups[1], "--seed")) sampler.p.seed = 0;
    struct batch b = { .a = &a, .sampler = &sampler, .file = { .out = -1 },
                       .defaults = { .max_tokens = (uint32_t)a.n, .sampler = sampler.p,
                                     .stops = sampler.stops } };
    code = start(&b, &engine, &groups[2]);
    free(b.slots);
    free(b.piece);
    batch_close(&b.file);
    return cli_session_close(&b.s, code);
}
