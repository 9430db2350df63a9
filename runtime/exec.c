/* runtime/exec.c - one pass: walks the pipe and fills in the router's answer. It knows stages and
 * rows, no architecture. Each step's needs stand before it in the list, and one device runs in
 * submission order, so submitting in list order keeps them. */
#include "runtime/engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Floats of one row of a lane, in the order of lane_init's pointers. */
static uint64_t acts_floats(const sl_widths *w)
{
    return 3ull * w->d_model + w->q + w->k + w->v + w->att + w->n_rot + 2ull * w->n_used + 1;
}

/* Outputs that wait for their turn, and guesses at the next layer's experts: of streamed
 * weights. */
static sl_status stored_init(sl_engine *e)
{
    const sl_widths *w = &e->m->widths;
    lane *n = &e->lane;
    uint64_t rows = e->plan.stored_rows, outs = rows * (w->n_used + 1ull) * w->d_model;
    void *p = NULL;
    n->likely = calloc(w->n_expert + 1ull, sizeof *n->likely);
    if (!n->likely) return sl_fail(e->ctx, SL_E_NOMEM, "table of %u experts", w->n_expert);
    if (!rows) return SL_OK;
    outs += rows * (2ull * w->n_used + 1);
    SL_TRY(e->dev->ops->alloc(e->dev, SL_ACC_SCRATCH, outs * sizeof(float), &p));
    n->out = p;
    n->guess_w = n->out + rows * (w->n_used + 1ull) * w->d_model;
    n->guess_shared = n->guess_w + rows * w->n_used;
    n->guess = (uint32_t *)(void *)(n->guess_shared + rows);
    return SL_OK;
}

sl_status lane_init(sl_engine *e)
{
    const sl_widths *w = &e->m->widths;
    lane *n = &e->lane;
    uint64_t rows = e->plan.max_rows, pairs = rows * w->n_used;
    uint64_t logits = (uint64_t)e->plan.max_logits * w->n_vocab;
    uint64_t bytes = (rows * acts_floats(w) + logits) * sizeof(float);
    SL_TRY(e->dev->ops->alloc(e->dev, SL_ACC_SCRATCH, bytes + 64 * 14, &n->acts));
    char *at = n->acts;
    struct { void **p; uint64_t width; } parts[] = {
        { (void **)&n->batch.x, w->d_model }, { (void **)&n->batch.h, w->d_model },
        { (void **)&n->batch.y, w->d_model }, { (void **)&n->batch.q, w->q },
        { (void **)&n->batch.k, w->k }, { (void **)&n->batch.v, w->v },
        { (void **)&n->batch.att, w->att }, { (void **)&n->batch.cos, w->n_rot / 2 },
        { (void **)&n->batch.sin, w->n_rot / 2 }, { (void **)&n->batch.expert_id, w->n_used },
        { (void **)&n->batch.expert_w, w->n_used }, { (void **)&n->batch.shared_w, 1 },
    };
    for (size_t i = 0; i < SL_LEN(parts); i++) {
        *parts[i].p = at;
        at += (rows * parts[i].width * sizeof(float) + 63) / 64 * 64;
    }
    n->batch.logits = (float *)at;
    SL_TRY(stored_init(e));
    n->token = calloc(rows, sizeof *n->token);
    n->pos = calloc(rows, sizeof *n->pos);
    n->seq = calloc(rows, sizeof *n->seq);
    n->logit_row = calloc(e->plan.max_logits, sizeof *n->logit_row);
    n->row_at = calloc(rows, sizeof *n->row_at);
    n->row_failed = calloc(rows, sizeof *n->row_failed);
    n->runs = calloc(w->n_expert + 1ull, sizeof *n->runs);
    n->run_rows = calloc(pairs + 1, sizeof *n->run_rows);
    n->run_weights = calloc(pairs + 1, sizeof *n->run_weights);
    n->run_start = calloc(w->n_expert + 1ull, sizeof *n->run_start);
    n->part = calloc(w->n_expert + 1ull, sizeof *n->part);
    n->ids = calloc(w->n_expert + 1ull, sizeof *n->ids);
    n->ready = calloc(w->n_expert + 1ull, sizeof *n->ready);
    n->data = calloc(w->n_expert + 1ull, sizeof *n->data);
    if (!n->part || !n->ids || !n->ready || !n->data || !n->token || !n->pos || !n->seq
        || !n->logit_row || !n->runs || !n->run_rows || !n->run_weights || !n->run_start
        || !n->row_at || !n->row_failed)
        return sl_fail(e->ctx, SL_E_NOMEM, "tables of a pass of %u rows", e->plan.max_rows);
    for (uint32_t i = 0; i < rows; i++) n->row_at[i] = (int32_t)i;
    n->batch.token = n->token;
    n->batch.pos = n->pos;
    n->batch.seq = n->seq;
    n->batch.logit_row = n->logit_row;
    return SL_OK;
}

void lane_fini(sl_engine *e)
{
    lane *n = &e->lane;
    if (n->acts) e->dev->ops->free(e->dev, n->acts);
    if (n->out) e->dev->ops->free(e->dev, n->out);
    free(n->token);
    free(n->pos);
    free(n->seq);
    free(n->logit_row);
    free(n->row_at);
    free(n->row_failed);
    free(n->runs);
    free(n->run_rows);
    free(n->run_weights);
    free(n->run_start);
    free(n->likely);
    free(n->part);
    free(n->ids);
    free(n->ready);
    free(n->data);
    *n = (lane){ 0 };
}

static const void *expert_bias(const float *base, uint32_t rows, uint32_t expert)
{
    return base ? base + (size_t)rows * expert : NULL;
}

/* The layer's expert x with its biases; its data come when it is in RAM. */
static sl_ffn expert_ffn(const sl_layer *l, uint32_t x)
{
    sl_ffn f = l->expert;
    f.gate.bias = expert_bias(l->expert.gate.bias, f.gate.rows, x);
    f.up.bias = expert_bias(l->expert.up.bias, f.up.rows, x);
    f.down.bias = expert_bias(l->expert.down.bias, f.down.rows, x);
    return f;
}

/* (row, expert) pairs sorted by expert, rows ascending inside: a counting sort. Runs ascend by
 * expert. */
static uint32_t group_by_expert(sl_engine *e, const sl_layer *l)
{
    lane *n = &e->lane;
    const sl_batch *b = &n->batch;
    uint32_t n_expert = l->routing.n_expert, k = l->routing.n_used, n_runs = 0, at = 0;
    memset(n->run_start, 0, (n_expert + 1ull) * sizeof *n->run_start);
    for (uint64_t i = 0; i < (uint64_t)b->n_rows * k; i++) n->run_start[b->expert_id[i]]++;
    for (uint32_t x = 0; x < n_expert; x++) {
        uint32_t count = n->run_start[x];
        n->run_start[x] = at;
        if (!count) continue;
        n->ids[n_runs] = x;
        n->runs[n_runs++] = (sl_expert_run){ .ffn = expert_ffn(l, x), .rows = n->run_rows + at,
                                             .weights = n->run_weights + at, .n_rows = count,
                                             .index = x };
        at += count;
    }
    for (uint32_t r = 0; r < b->n_rows; r++)
        for (uint32_t j = 0; j < k; j++) {
            uint32_t to = n->run_start[b->expert_id[(size_t)r * k + j]]++;
            n->run_rows[to] = r;
            n->run_weights[to] = b->expert_w[(size_t)r * k + j];
        }
    return n_runs;
}

static void report_routes(const sl_engine *e, const sl_layer *l)
{
    const sl_batch *b = &e->lane.batch;
    for (uint32_t r = 0; r < b->n_rows; r++)
        e->trace(e->trace_user, e->stats.passes, e->seqs[b->seq[r]].id, b->pos[r], l->index,
                 b->expert_id + (size_t)r * l->routing.n_used, l->routing.n_used);
}

/* The sequences of these rows cannot go on; the others are not affected, since no row depends on
 * another. rows NULL: all. */
static void fail_rows(sl_engine *e, const uint32_t *rows, uint32_t n, const char *why)
{
    const sl_batch *b = &e->lane.batch;
    snprintf(e->error, sizeof e->error, "%s", why);
    for (uint32_t i = 0; i < n; i++) e->seqs[b->seq[rows ? rows[i] : i]].failed = true;
}

/* Where the next layer's experts can be named before its router is asked; NULL: nowhere. */
static const sl_layer *layer_ahead(const sl_engine *e, const sl_layer *l)
{
    const sl_layer *next = l + 1;
    if (e->plan.weights != SL_WEIGHTS_STREAMED || l->index + 1 >= e->weights.n_layer) return NULL;
    return next->moe ? next : NULL;
}

/* A pass of many rows asks for nearly all experts of each layer: they are read on, in order, as
 * slots become free. n_now: what it asked for in this layer. */
static void read_on(sl_engine *e, const sl_layer *l, uint32_t n_now)
{
    lane *n = &e->lane;
    const sl_layer *next = layer_ahead(e, l);
    if (!next || 4 * n_now < 3 * l->routing.n_expert) return;
    for (uint32_t x = 0; x < next->routing.n_expert; x++) n->likely[x] = x;
    sl_stream_ahead(e->loaded.stream, next->index, n->likely, next->routing.n_expert, true);
}

/* Few rows: the next layer's router is asked already, of this layer's hidden states, which the
 * steps between change little. */
static sl_status guess(sl_engine *e, const sl_layer *l)
{
    lane *n = &e->lane;
    const sl_layer *next = layer_ahead(e, l);
    uint32_t rows = n->batch.n_rows, n_likely = 0;
    if (!next || !next->router.data || next->index >= e->plan.n_dense_layers
        || !sl_stream_wants_guess(e->loaded.stream))
        return SL_OK;
    uint32_t k = next->routing.n_used;
    SL_TRY(e->dev->ops->route(e->dev, next, n->batch.h, rows, n->guess, n->guess_w,
                              n->guess_shared));
    for (uint32_t j = 0; j < k; j++)
        for (uint32_t r = 0; r < rows; r++) {
            uint32_t id = n->guess[r * k + j], at = 0;
            while (at < n_likely && n->likely[at] != id) at++;
            if (at == n_likely) n->likely[n_likely++] = id;
        }
    sl_stream_ahead(e->loaded.stream, next->index, n->likely, n_likely, false);
    return SL_OK;
}

/* Data for `got` runs that sl_stream_ready named. */
static void give_data(sl_engine *e, uint32_t got)
{
    lane *n = &e->lane;
    for (uint32_t i = 0; i < got; i++) {
        sl_expert_run *r = &n->runs[n->ready[i]];
        r->ffn.gate.data = n->data[i].gate;
        r->ffn.up.data = n->data[i].up;
        r->ffn.down.data = n->data[i].down;
        if (n->data[i].gate) continue;
        fail_rows(e, r->rows, r->n_rows, sl_stream_error(e->loaded.stream));
        r->n_rows = 0;              /* adds nothing */
        r->part = SL_RUN_ADD;
        r->out = n->batch.y;
    }
}

static void computed(sl_engine *e, uint32_t got)
{
    for (uint32_t i = 0; i < got; i++)
        if (e->lane.data[i].gate) sl_stream_done(e->loaded.stream, e->lane.ready[i]);
}

/* What has arrived is computed while the rest is on its way, and all of it added in ascending order
 * behind the last: that costs `out`, so only passes of few rows can. The shared expert (behind the
 * routed ones) needs no read. */
static sl_status run_as_they_land(sl_engine *e, const sl_layer *l, uint32_t n_routed,
                                  uint32_t n_runs)
{
    lane *n = &e->lane;
    uint32_t left = n_routed, extra = n_runs - n_routed;
    float *out = n->out;
    for (unsigned mark = SL_EXPERTS_FIRST; ; mark = 0) {
        uint32_t got = sl_stream_ready(e->loaded.stream, n->ready, n->data), n_part = 0;
        give_data(e, got);
        left -= got;
        if (!left) {
            sl_status st = e->dev->ops->experts(e->dev, l, n->runs, n_runs,
                                                mark | SL_EXPERTS_LAST, &n->batch);
            computed(e, got);
            return st;
        }
        for (uint32_t i = 0; i < got + extra; i++) {
            sl_expert_run *r = &n->runs[i < got ? n->ready[i] : n_routed];
            if (r->part == SL_RUN_ADD) continue;
            r->out = out;
            r->part = SL_RUN_STORE;
            out += (size_t)(r->rows ? r->n_rows : n->batch.n_rows) * l->expert.down.rows;
            n->part[n_part++] = *r;
            r->part = SL_RUN_ADD;
        }
        extra = 0;
        SL_TRY(e->dev->ops->experts(e->dev, l, n->part, n_part, mark, &n->batch));
        computed(e, got);
    }
}

/* Ascending: each is added in place. */
static sl_status run_in_order(sl_engine *e, const sl_layer *l, uint32_t n_routed, uint32_t n_runs)
{
    lane *n = &e->lane;
    for (uint32_t at = 0; at < n_routed; ) {
        read_on(e, l, n_routed);
        uint32_t got = sl_stream_ready(e->loaded.stream, n->ready, n->data);
        bool last = at + got == n_routed;
        assert(n->ready[0] == at && n->ready[got - 1] == at + got - 1);
        give_data(e, got);
        unsigned mark = (at ? 0 : SL_EXPERTS_FIRST) | (last ? SL_EXPERTS_LAST : 0);
        SL_TRY(e->dev->ops->experts(e->dev, l, n->runs + at, last ? n_runs - at : got, mark,
                                    &n->batch));
        computed(e, got);
        at += got;
    }
    read_on(e, l, n_routed);
    return SL_OK;
}

static sl_status run_experts(sl_engine *e, const sl_step *step, const sl_layer *l)
{
    lane *n = &e->lane;
    uint32_t n_runs = 0, n_routed = 0;
    bool in_order = n->batch.n_rows > e->plan.stored_rows;
    if (l->moe) {
        sl_event ev;
        SL_TRY(e->dev->ops->record(e->dev, SL_Q_COMPUTE, &ev));
        SL_TRY(e->dev->ops->sync(e->dev, ev));      /* the router's answer is in host memory */
        if (e->trace) report_routes(e, l);
        n_runs = n_routed = group_by_expert(e, l);
        sl_stream_ask ask = { .layer = l->index, .ids = n->ids, .n = n_routed,
                              .expert_id = n->batch.expert_id, .seq = n->batch.seq,
                              .n_rows = n->batch.n_rows, .n_used = l->routing.n_used,
                              .in_order = in_order };
        sl_stream_begin(e->loaded.stream, &ask);
        if (!in_order) SL_TRY(guess(e, l));
        e->stats.expert_runs += n_runs;
        e->stats.bytes_touched += n_runs * step->expert_bytes;
    }
    const sl_ffn *all_rows = l->moe ? &l->shared : &l->ffn;
    if (all_rows->gate.rows)
        n->runs[n_runs++] =
            (sl_expert_run){ .ffn = *all_rows,
                             .n_rows = n->batch.n_rows,
                             .weights = l->shared_gate.rows ? n->batch.shared_w : NULL,
                             .index = l->moe ? l->routing.n_expert : 0 };
    if (!n_routed)
        return e->dev->ops->experts(e->dev, l, n->runs, n_runs,
                                    SL_EXPERTS_FIRST | SL_EXPERTS_LAST, &n->batch);
    return in_order ? run_in_order(e, l, n_routed, n_runs)
                    : run_as_they_land(e, l, n_routed, n_runs);
}

/* Of a table on disk only the tokens' own rows come to RAM. */
static sl_status embed(sl_engine *e)
{
    sl_batch *b = &e->lane.batch, by_row = *b;
    sl_weights w = e->weights;
    if (!e->plan.embed_rows_bytes) return e->dev->ops->embed(e->dev, &e->weights, b);
    sl_stream_rows(e->loaded.stream, b->token, b->n_rows, &w.embed.data, e->lane.row_failed);
    for (uint32_t i = 0; i < b->n_rows; i++)
        if (e->lane.row_failed[i]) fail_rows(e, &i, 1, sl_stream_error(e->loaded.stream));
    w.embed.rows = b->n_rows;
    by_row.token = e->lane.row_at;
    return e->dev->ops->embed(e->dev, &w, &by_row);
}

static sl_status run_step(sl_engine *e, const sl_step *s)
{
    const sl_device_ops *ops = e->dev->ops;
    sl_batch *b = &e->lane.batch;
    const sl_layer *l = s->layer == SL_STEP_NONE ? NULL : &e->loaded.layers[s->layer];
    switch (s->kind) {
    case SL_STEP_EMBED: return embed(e);
    case SL_STEP_QKV: return ops->qkv(e->dev, &e->weights, l, b);
    case SL_STEP_ATTEND: return ops->attend(e->dev, l, &e->kv.views[s->layer], b);
    case SL_STEP_POST: return ops->post(e->dev, l, b);
    case SL_STEP_ROUTE:
        return ops->route(e->dev, l, b->h, b->n_rows, b->expert_id, b->expert_w, b->shared_w);
    case SL_STEP_EXPERTS: return run_experts(e, s, l);
    case SL_STEP_HEAD: return b->n_logits ? ops->head(e->dev, &e->weights, b) : SL_OK;
    }
    assert(!"a step the pipe cannot hold");
    return SL_E_ARG;
}

sl_status exec_pass(sl_engine *e)
{
    sl_event done;
    for (uint32_t i = 0; i < e->n_steps; i++) {
        const sl_step *s = &e->steps[i];
        if (s->kind == SL_STEP_QKV && weights_use(&e->loaded, s->layer) != SL_OK) {
            fail_rows(e, NULL, e->lane.batch.n_rows, sl_error(e->ctx));
            break;
        }
        SL_TRY(run_step(e, s));
        if (s->kind == SL_STEP_EXPERTS) weights_done(&e->loaded, s->layer);
        if (s->kind != SL_STEP_HEAD || e->lane.batch.n_logits) e->stats.bytes_touched += s->bytes;
        e->stats.bytes_touched += s->row_bytes * e->lane.batch.n_rows;
    }
    SL_TRY(e->dev->ops->record(e->dev, SL_Q_COMPUTE, &done));
    SL_TRY(e->dev->ops->sync(e->dev, done));
    sl_stream_pass_done(e->loaded.stream);
    e->stats.passes++;
    return SL_OK;
}
