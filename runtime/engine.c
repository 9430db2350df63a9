/* runtime/engine.c - sequences, the schedule of passes, and the events of a step.
 * Invariants:
 *   E1  n_past <= n_known <= n_ctx; tokens[n_past .. n_known) have no keys or values yet
 *   E2  a running sequence has at least one token to process
 *   E3  a pass holds at most max_rows rows and max_logits logit rows
 * Everything is taken at open or submit; step allocates nothing. */
#include "runtime/engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_EVENTS_PER_SEQ 3u   /* beside one per logit row: token, done, and a stop */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- open and close ---- */

static sl_status open_rope(sl_engine *e)
{
    const rope_keys *r = &e->m->hp.rope;
    e->inv_freq = calloc(r->n_rot / 2 + 1, sizeof *e->inv_freq);
    if (!e->inv_freq) return sl_fail(e->ctx, SL_E_NOMEM, "rope table");
    sl_rope *rope = &e->weights.rope;
    rope->kind = r->off ? SL_ROPE_NONE : e->m->arch->rope;
    rope->n_rot = r->n_rot;
    rope->inv_freq = e->inv_freq;
    rope_frequencies(r, e->m->arch->yarn_exact, weights_rope_freqs(&e->loaded, e->plan.n_ctx),
                     e->inv_freq, &rope->scale);
    return SL_OK;
}

static sl_status open_eog(sl_engine *e)
{
    const sl_vocab *v = e->m->vocab;
    uint32_t n = v ? sl_vocab_size(v) : 0;
    for (uint32_t turn = 0; turn < 2; turn++) {
        e->n_eog = 0;
        for (uint32_t id = 0; id < n; id++) {
            if (!sl_vocab_is_eog(v, (int32_t)id)) continue;
            if (turn) e->eog[e->n_eog] = (int32_t)id;
            e->n_eog++;
        }
        if (turn) break;
        e->eog = calloc(e->n_eog + 1u, sizeof *e->eog);
        if (!e->eog) return sl_fail(e->ctx, SL_E_NOMEM, "list of %u end tokens", e->n_eog);
    }
    return SL_OK;
}

static sl_status open_seqs(sl_engine *e)
{
    uint64_t n_seq = e->plan.n_seq, n_tokens = n_seq * e->plan.n_ctx;
    uint64_t n_events = e->plan.max_logits + MAX_EVENTS_PER_SEQ * n_seq;
    void *p = NULL;
    e->seqs = calloc(n_seq, sizeof *e->seqs);
    e->order = calloc(n_seq, sizeof *e->order);
    e->events = calloc(n_events, sizeof *e->events);
    if (!e->seqs || !e->order || !e->events)
        return sl_fail(e->ctx, SL_E_NOMEM, "tables of %u sequences", e->plan.n_seq);
    SL_TRY(sl_mem_alloc(e->ctx, SL_ACC_TABLES, n_tokens * sizeof *e->token_store, &p));
    e->token_store = p;
    SL_TRY(sl_sampler_room_create(e->ctx, e->weights.n_vocab, &e->room));
    for (uint64_t s = 0; s < n_seq; s++) e->seqs[s].tokens = e->token_store + s * e->plan.n_ctx;
    return SL_OK;
}

static sl_status open_device(sl_engine *e)
{
    SL_TRY(sl_pool_create(e->ctx, e->plan.n_threads, &e->pool));
    e->plan.n_threads = sl_pool_threads(e->pool);
    if (e->plan.weights == SL_WEIGHTS_STREAMED) sl_pool_stay_awake(e->pool, STREAM_AWAKE_S);
    const sl_split *x = &e->plan.split;
    sl_device_params p = { .pool = e->pool, .max_rows = e->plan.max_rows, .widths = e->m->widths,
                           .cpu_mask = e->plan.cpu_mask, .float_acts = e->plan.float_acts,
                           .blas = e->plan.blas };
    SL_TRY(sl_device_create_cpu(e->ctx, &p, &e->cpu));
    if (!x->accel.kind) return SL_OK;
    p.max_rows = x->lane_rows;
    p.max_logits = e->plan.max_logits;
    SL_TRY(sl_device_create_accel(e->ctx, &x->accel, &p, &e->dev));
    SL_TRY(board_init(e->ctx, e->dev, &e->loaded, &e->plan, &e->board));
    e->board.ends.weights.rope = e->weights.rope;
    return SL_OK;
}

static sl_status open_pipe(sl_engine *e)
{
    e->steps = calloc(sl_pipe_max_steps(&e->m->shape), sizeof *e->steps);
    if (!e->steps) return sl_fail(e->ctx, SL_E_NOMEM, "pipe of %u layers", e->m->shape.n_layer);
    e->n_steps = sl_pipe_build(&e->m->shape, &e->plan, e->steps);
    return SL_OK;
}

sl_status sl_engine_open(sl_ctx *ctx, sl_model *m, const sl_plan *plan, sl_engine **ret)
{
    assert(ctx && m && plan && ret);
    if (plan->weights_bytes != m->shape.total_bytes)
        return sl_fail(ctx, SL_E_ARG, "a plan for a model of %llu bytes, this one has %llu",
                       (unsigned long long)plan->weights_bytes,
                       (unsigned long long)m->shape.total_bytes);
    sl_engine *e = calloc(1, sizeof *e);
    if (!e) return sl_fail(ctx, SL_E_NOMEM, "engine handle");
    e->ctx = ctx;
    e->m = m;
    e->plan = *plan;
    e->next_id = 1;
    sl_status st = weights_init(ctx, m, plan, &e->loaded);
    e->weights = e->loaded.ends.weights;
    if (st == SL_OK) st = open_rope(e);
    if (st == SL_OK) st = open_eog(e);
    if (st == SL_OK) st = open_seqs(e);
    if (st == SL_OK) st = open_pipe(e);
    if (st == SL_OK) st = open_device(e);
    if (st == SL_OK) st = kv_init(ctx, e->dev ? e->dev : e->cpu, &m->shape, &e->plan, &e->kv);
    if (st == SL_OK) st = lanes_init(e);
    if (st != SL_OK) sl_engine_close(&e);
    else *ret = e;
    return st;
}

void sl_engine_close(sl_engine **engine)
{
    assert(engine);
    sl_engine *e = *engine;
    if (!e) return;
    board_fini(&e->board);      /* waits for the device */
    lanes_fini(e);
    kv_fini(&e->kv);
    sl_device_destroy(&e->dev);
    sl_device_destroy(&e->cpu);
    sl_pool_destroy(&e->pool);
    for (uint32_t s = 0; e->seqs && s < e->plan.n_seq; s++) sl_sampler_destroy(&e->seqs[s].sampler);
    sl_sampler_room_destroy(&e->room);
    sl_mem_free(e->ctx, e->token_store);
    weights_fini(&e->loaded);
    free(e->seqs);
    free(e->order);
    free(e->events);
    free(e->eog);
    free(e->steps);
    free(e->inv_freq);
    free(e);
    *engine = NULL;
}

const sl_plan *sl_engine_plan(const sl_engine *e) { return &e->plan; }

void sl_engine_get_stats(const sl_engine *e, sl_engine_stats *ret)
{
    sl_stream_stats s;
    sl_stream_get_stats(e->loaded.stream, &s);
    *ret = e->stats;
    ret->hits = s.hits;
    ret->misses = s.misses;
    ret->read_bytes = s.read_bytes;
    ret->ahead_bytes = s.ahead_bytes;
    ret->ahead_used_bytes = s.ahead_used_bytes;
    ret->ahead_off = s.ahead_off;
    ret->stall_s = s.stall_s;
    ret->one_row = s.one_row;
    ret->sent_bytes = e->board.sent_bytes;
    ret->stay_hits = e->board.hits;
    ret->stay_misses = e->board.misses;
    ret->stay_changes = e->board.n_kept;
}

const char *sl_engine_store_mode(const sl_engine *e) { return sl_store_mode(e->loaded.store); }

void sl_engine_set_trace(sl_engine *e, sl_trace_fn fn, void *user)
{
    e->trace = fn;
    e->trace_user = user;
}

/* ---- sequences ---- */

static seq *find_seq(const sl_engine *e, sl_seq id)
{
    for (uint32_t s = 0; s < e->plan.n_seq; s++)
        if (id && e->seqs[s].id == id && e->seqs[s].state != SEQ_FREE) return &e->seqs[s];
    return NULL;
}

static seq *free_seq(const sl_engine *e)
{
    for (uint32_t s = 0; s < e->plan.n_seq; s++)
        if (e->seqs[s].state == SEQ_FREE) return &e->seqs[s];
    return NULL;
}

static sl_status check_request(sl_engine *e, const sl_request *r, const seq *s)
{
    uint32_t known = r->seq ? s->n_known : 0;
    if (!r->tokens || !r->n_tokens) return sl_fail(e->ctx, SL_E_ARG, "a request without tokens");
    for (uint32_t i = 0; i < r->n_tokens; i++)
        if (r->tokens[i] < 0 || (uint32_t)r->tokens[i] >= e->weights.n_vocab)
            return sl_fail(e->ctx, SL_E_ARG, "token %d at %u, the vocabulary has %u", r->tokens[i],
                           i, e->weights.n_vocab);
    if (r->n_tokens > e->plan.n_ctx - known)
        return sl_fail(e->ctx, SL_E_NOMEM, "%u tokens behind %u do not fit a context of %u (-c)",
                       r->n_tokens, known, e->plan.n_ctx);
    return SL_OK;
}

sl_status sl_engine_submit(sl_engine *e, const sl_request *r, sl_seq *ret)
{
    assert(e && r && ret);
    sl_sampler *sampler = NULL;
    seq *s = r->seq ? find_seq(e, r->seq) : free_seq(e);
    if (!s && r->seq) return sl_fail(e->ctx, SL_E_ARG, "there is no sequence %u", r->seq);
    if (!s)
        return sl_fail(e->ctx, SL_E_NOMEM, "all %u sequences of the plan are alive", e->plan.n_seq);
    if (s->state == SEQ_RUNNING)
        return sl_fail(e->ctx, SL_E_ARG, "sequence %u is not idle", r->seq);
    if (s->failed && r->seq)
        return sl_fail(e->ctx, SL_E_ARG, "sequence %u failed: it can only be cancelled", r->seq);
    SL_TRY(check_request(e, r, s));
    if (r->n_predict) SL_TRY(sl_sampler_create(e->ctx, &r->sampler, e->weights.n_vocab, &sampler));

    if (!r->seq) *s = (seq){ .tokens = s->tokens, .sampler = s->sampler, .id = e->next_id++ };
    sl_sampler_destroy(&s->sampler);
    s->sampler = sampler;
    memcpy(s->tokens + s->n_known, r->tokens, r->n_tokens * sizeof *r->tokens);
    s->n_known += r->n_tokens;
    s->n_prompt_end = s->n_known;
    s->n_left = r->n_predict;
    s->draw = r->n_predict > 0;
    s->want_logits = r->want_logits;
    s->ignore_eog = r->ignore_eog;
    s->max_chunk = r->max_chunk ? SL_MIN(r->max_chunk, e->plan.max_rows) : e->plan.max_rows;
    s->stopped = s->has_room = false;
    s->on_event = r->on_event;
    s->user = r->user;
    s->submit_s = now_s();
    s->stats = (sl_request_stats){ .prompt_tokens = r->n_tokens };
    s->order = e->next_order++;
    s->state = SEQ_RUNNING;
    for (uint32_t i = 0; s->sampler && i < s->n_known; i++)
        sl_sampler_accept(s->sampler, s->tokens[i]);
    *ret = s->id;
    return SL_OK;
}

void sl_engine_stop(sl_engine *e, sl_seq id)
{
    seq *s = find_seq(e, id);
    if (s && s->state == SEQ_RUNNING) s->stopped = true;
}

void sl_engine_cancel(sl_engine *e, sl_seq id)
{
    seq *s = find_seq(e, id);
    if (!s) return;
    kv_release(&e->kv, (uint32_t)(s - e->seqs));
    sl_sampler_destroy(&s->sampler);
    *s = (seq){ .tokens = s->tokens };
}

uint32_t sl_engine_length(const sl_engine *e, sl_seq id)
{
    const seq *s = find_seq(e, id);
    return s ? s->n_known : 0;
}

void sl_engine_request_stats(const sl_engine *e, sl_seq id, sl_request_stats *ret)
{
    const seq *s = find_seq(e, id);
    *ret = s ? s->stats : (sl_request_stats){ .prompt_tokens = 0 };
}

bool sl_engine_busy(const sl_engine *e)
{
    for (uint32_t s = 0; s < e->plan.n_seq; s++)
        if (e->seqs[s].state == SEQ_RUNNING) return true;
    return false;
}

/* ---- one pass ---- */

/* Only the token drawn last is to be processed. */
static bool decoding(const seq *s)
{
    return s->n_past >= s->n_prompt_end && s->n_known - s->n_past == 1;
}

/* Rows that sequence slot i adds; its last row's logits are wanted when the next token is to be
 * drawn. */
static void add_rows(sl_engine *e, uint32_t i)
{
    pass *b = &e->pass;
    seq *s = &e->seqs[i];
    uint32_t rows =
        SL_MIN(s->n_known - s->n_past, SL_MIN(s->max_chunk, e->plan.max_rows - b->n_rows));
    uint32_t room = e->plan.max_logits - b->n_logits;
    if (s->want_logits) rows = SL_MIN(rows, room);
    bool last = s->n_past + rows == s->n_known;
    if (last && s->draw && !room) rows--;       /* the row whose logits would not fit waits */
    last = s->n_past + rows == s->n_known;
    if (!rows) return;
    if (!kv_reserve(&e->kv, i, s->n_past + rows)) return;
    kv_begin(&e->kv, i, s->tokens, s->n_past, s->n_past + rows);
    for (uint32_t r = 0; r < rows; r++) {
        if (s->want_logits || (s->draw && last && r == rows - 1))
            b->logit_row[b->n_logits++] = b->n_rows;
        b->token[b->n_rows] = s->tokens[s->n_past + r];
        b->pos[b->n_rows] = s->n_past + r;
        b->seq[b->n_rows] = i;
        b->n_rows++;
    }
    s->n_rows = rows;
}

/* Running slots by order of submission: insertion sort, they are few and nearly sorted. */
static uint32_t sort_running(sl_engine *e)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < e->plan.n_seq; s++) {
        if (e->seqs[s].state != SEQ_RUNNING) continue;
        uint32_t at = n++;
        while (at && e->seqs[e->order[at - 1]].order > e->seqs[s].order) {
            e->order[at] = e->order[at - 1];
            at--;
        }
        e->order[at] = s;
    }
    return n;
}

/* Keys and values go; all tokens are computed anew, when there is room. */
static void preempt(sl_engine *e, uint32_t i)
{
    seq *s = &e->seqs[i];
    kv_release(&e->kv, i);
    s->n_past = 0;
    s->has_room = false;
    s->stats.preemptions++;
    e->stats.preemptions++;
}

/* A block for one more position of order[at], from sequences that were submitted later, the last
 * first; false: the sequence gave its own back. Those later ones have no rows in this pass yet. */
static bool grow(sl_engine *e, uint32_t at, uint32_t n)
{
    uint32_t i = e->order[at];
    while (kv_missing(&e->kv, i, e->seqs[i].n_past + 1) > e->kv.n_free) {
        uint32_t k = n;
        while (k > at + 1 && !e->kv.n_used[e->order[k - 1]]) k--;
        preempt(e, e->order[k - 1]);
        if (k == at + 1) return false;
    }
    return true;
}

/* Room for all tokens of a prompt, and behind it a block for each that decodes already. *ret_wait:
 * what it begins with is computed by this very pass. */
static bool admit(sl_engine *e, uint32_t i, uint32_t n_decoding, bool *ret_wait)
{
    seq *s = &e->seqs[i];
    *ret_wait = false;
    if (s->has_room) return true;
    if (!s->want_logits) {      /* the last token is computed for its logits */
        uint32_t n = kv_share(&e->kv, i, s->tokens, s->n_past, s->n_known - 1, ret_wait);
        if (n > s->n_computed) {
            uint32_t shared = n - SL_MAX(s->n_computed, s->n_past);
            s->stats.shared_tokens += shared;
            e->stats.shared_tokens += shared;
        }
        s->n_past = n;
        s->n_computed = SL_MAX(s->n_computed, n);
        if (*ret_wait) return false;
    }
    uint64_t missing = kv_missing(&e->kv, i, s->n_known);
    uint32_t spare = e->pass.n_rows ? n_decoding : 0;
    if (missing + spare > e->kv.n_free) return false;
    s->has_room = kv_reserve(&e->kv, i, s->n_known);
    return s->has_room;
}

/* Decoding sequences first, so that a long prompt never stalls them; then prompts, none of which
 * begins before one that was submitted earlier and finds no room. Returns whether there are
 * prompts. */
static bool build_pass(sl_engine *e)
{
    pass *b = &e->pass;
    uint32_t n = sort_running(e), n_decoding = 0;
    bool prompt = false, wait, full = false;
    b->n_rows = b->n_logits = 0;
    for (uint32_t s = 0; s < e->plan.n_seq; s++) e->seqs[s].n_rows = 0;
    for (uint32_t i = 0; i < n && b->n_rows < e->plan.max_rows; i++) {
        if (!decoding(&e->seqs[e->order[i]]) || !grow(e, i, n)) continue;
        add_rows(e, e->order[i]);
        n_decoding++;
    }
    b->n_decode = b->n_rows;
    for (uint32_t i = 0; i < n && b->n_rows < e->plan.max_rows; i++) {
        const seq *s = &e->seqs[e->order[i]];
        if (s->n_rows || decoding(s) || (full && !s->has_room)) continue;
        if (admit(e, e->order[i], n_decoding, &wait)) add_rows(e, e->order[i]);
        else full |= !wait;
        prompt |= s->n_rows > 0;
    }
    return prompt;
}

static void emit(sl_engine *e, sl_engine_event ev)
{
    assert(e->n_events < e->plan.max_logits + MAX_EVENTS_PER_SEQ * e->plan.n_seq);
    e->events[e->n_events++] = ev;
}

static void finish(sl_engine *e, seq *s, sl_done reason)
{
    s->state = SEQ_IDLE;
    s->stats.total_s = now_s() - s->submit_s;
    emit(e, (sl_engine_event){
                .kind = SL_EV_DONE, .seq = s->id, .pos = s->n_known, .reason = reason,
                .error = reason == SL_DONE_FAILED ? e->error : NULL });
}

static bool is_eog(const sl_engine *e, int32_t id)
{
    for (uint32_t i = 0; i < e->n_eog; i++)
        if (e->eog[i] == id) return true;
    return false;
}

/* The sequence has processed all it knows: draw the next token, or end. */
static void draw_or_finish(sl_engine *e, seq *s, const float *logits)
{
    if (!s->draw) {
        finish(e, s, SL_DONE_PROMPT);
        return;
    }
    int32_t id = sl_sampler_draw(s->sampler, e->room, logits, s->ignore_eog ? e->eog : NULL,
                                 s->ignore_eog ? e->n_eog : 0);
    sl_sampler_accept(s->sampler, id);
    emit(e, (sl_engine_event){ .kind = SL_EV_TOKEN, .seq = s->id, .pos = s->n_known, .token = id });
    if (!s->stats.drawn_tokens++) s->stats.ttft_s = now_s() - s->submit_s;
    e->stats.drawn_tokens++;
    s->n_left--;
    bool fits = s->n_known < e->plan.n_ctx;
    if (fits) s->tokens[s->n_known++] = id;
    if (is_eog(e, id)) finish(e, s, SL_DONE_EOG);
    else if (!s->n_left) finish(e, s, SL_DONE_N_PREDICT);
    else if (!fits) finish(e, s, SL_DONE_CONTEXT);
}

/* Nobody found room: whoever was submitted last and has some gives it back, so that the oldest
 * never waits for a younger one. False: the oldest itself is all that is left. */
static bool make_room(sl_engine *e)
{
    for (uint32_t n = sort_running(e); n-- > 1; ) {
        if (!e->kv.n_used[e->order[n]]) continue;
        preempt(e, e->order[n]);
        return true;
    }
    return false;
}

/* Blocks that this pass filled can serve others now. */
static void end_rows(sl_engine *e)
{
    for (uint32_t i = 0; i < e->plan.n_seq; i++) {
        const seq *s = &e->seqs[i];
        if (s->n_rows) kv_end(&e->kv, i, s->n_past, s->n_past + s->n_rows, !s->failed);
    }
}

/* Not even the oldest finds room: idle sequences hold it. */
static void fail_oldest(sl_engine *e)
{
    if (!sort_running(e)) return;
    seq *s = &e->seqs[e->order[0]];
    snprintf(e->error, sizeof e->error, "idle sequences hold %u of %u KV blocks, %u are missing",
             e->kv.n_blocks - e->kv.n_free, e->kv.n_blocks,
             kv_missing(&e->kv, e->order[0], s->n_known) - e->kv.n_free);
    s->failed = true;
    finish(e, s, SL_DONE_FAILED);
}

/* Logit rows stand in row order, so one walk over the rows meets them in turn. */
static void take_results(sl_engine *e)
{
    const pass *b = &e->pass;
    uint32_t at = 0;
    for (uint32_t r = 0; r < b->n_rows; r++) {
        seq *s = &e->seqs[b->seq[r]];
        bool wanted = at < b->n_logits && b->logit_row[at] == r;
        const float *logits = wanted ? b->logits + (size_t)at * e->weights.n_vocab : NULL;
        at += wanted;
        if (s->failed) {
            if (s->state == SEQ_RUNNING) finish(e, s, SL_DONE_FAILED);
            continue;
        }
        bool again = s->n_past < s->n_computed;
        e->stats.recomputed_tokens += again;
        e->stats.prompt_tokens += !again && s->n_past < s->n_prompt_end;
        s->n_past++;
        s->n_computed = SL_MAX(s->n_computed, s->n_past);
        if (s->want_logits && !again)
            emit(e, (sl_engine_event){ .kind = SL_EV_LOGITS, .seq = s->id, .pos = b->pos[r],
                                       .token = b->token[r], .logits = logits });
        if (s->n_past == s->n_known) draw_or_finish(e, s, logits);
    }
}

/* Every event to the callback of its request; one may cancel or submit anything. */
static void call_back(sl_engine *e)
{
    for (uint32_t i = 0; i < e->n_events; i++) {
        const seq *s = find_seq(e, e->events[i].seq);
        if (s && s->on_event) s->on_event(s->user, e, &e->events[i]);
    }
}

sl_status sl_engine_step(sl_engine *e, const sl_engine_event **ret_ev, uint32_t *ret_n)
{
    assert(e && !ret_ev == !ret_n);
    e->n_events = 0;
    for (uint32_t s = 0; s < e->plan.n_seq; s++)
        if (e->seqs[s].state == SEQ_RUNNING && e->seqs[s].stopped)
            finish(e, &e->seqs[s], SL_DONE_STOPPED);
    bool prompt = build_pass(e);
    while (!e->pass.n_rows && make_room(e)) prompt = build_pass(e);
    if (!e->pass.n_rows) {
        fail_oldest(e);
    } else {
        double start_s = now_s();
        SL_TRY(exec_pass(e));
        *(prompt ? &e->stats.prompt_s : &e->stats.decode_s) += now_s() - start_s;
        end_rows(e);
        take_results(e);
    }
    call_back(e);
    if (ret_ev) *ret_ev = e->events;
    if (ret_n) *ret_n = e->n_events;
    return SL_OK;
}
