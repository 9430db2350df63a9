/* runtime/experts.c - a layer's experts on the CPU: rows grouped by expert, and computed as their
 * weights come from disk, or at once where they are in RAM. */
#include "runtime/exec.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static const void *expert_bias(const float *base, uint32_t rows, uint32_t expert)
{
    return base ? base + (size_t)rows * expert : NULL;
}

/* The layer's expert x with its biases; its data come when it is in RAM. */
sl_ffn exec_expert_ffn(const sl_layer *l, uint32_t x)
{
    sl_ffn f = l->expert;
    f.gate.bias = expert_bias(l->expert.gate.bias, f.gate.rows, x);
    f.up.bias = expert_bias(l->expert.up.bias, f.up.rows, x);
    f.down.bias = expert_bias(l->expert.down.bias, f.down.rows, x);
    return f;
}

/* (row, expert) pairs sorted by expert, rows ascending inside: a counting sort. Runs ascend by
 * expert. */
uint32_t exec_group(lane *n, const sl_layer *l)
{
    const sl_batch *b = &n->host;
    uint32_t n_expert = l->routing.n_expert, k = l->routing.n_used, n_runs = 0, at = 0;
    memset(n->run_start, 0, (n_expert + 1ull) * sizeof *n->run_start);
    for (uint64_t i = 0; i < (uint64_t)b->n_rows * k; i++) n->run_start[b->expert_id[i]]++;
    for (uint32_t x = 0; x < n_expert; x++) {
        uint32_t count = n->run_start[x];
        n->run_start[x] = at;
        if (!count) continue;
        n->ids[n_runs] = x;
        n->runs[n_runs++] = (sl_expert_run){ .ffn = exec_expert_ffn(l, x), .rows = n->run_rows + at,
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

void exec_report(const sl_engine *e, const lane *n, const sl_layer *l)
{
    const sl_batch *b = &n->host;
    for (uint32_t r = 0; r < b->n_rows; r++)
        e->trace(e->trace_user, e->stats.passes, e->seqs[b->seq[r]].id, b->pos[r], l->index,
                 b->expert_id + (size_t)r * l->routing.n_used, l->routing.n_used);
}

/* The sequences of these rows cannot go on; the others are not affected, since no row depends on
 * another. rows NULL: all. */
void exec_fail(sl_engine *e, const lane *l, const uint32_t *rows, uint32_t n, const char *why)
{
    const sl_batch *b = &l->host;
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
void exec_read_on(sl_engine *e, lane *n, const sl_layer *l, uint32_t n_now)
{
    const sl_layer *next = layer_ahead(e, l);
    uint32_t n_likely = 0;
    if (!next || 4 * n_now < 3 * l->routing.n_expert) return;
    for (uint32_t x = e->plan.split.n_stay; x < next->routing.n_expert; x++)
        n->likely[n_likely++] = x;
    sl_stream_ahead(e->loaded.stream, next->index, n->likely, n_likely, true);
}

/* Few rows: the next layer's router is asked already, of this layer's hidden states, which the
 * steps between change little. */
sl_status exec_guess(sl_engine *e, lane *n, const sl_layer *l)
{
    const sl_layer *next = layer_ahead(e, l);
    uint32_t rows = n->host.n_rows, n_likely = 0;
    if (!next || !next->router.data || next->index >= e->plan.n_dense_layers
        || !sl_stream_wants_guess(e->loaded.stream))
        return SL_OK;
    uint32_t k = next->routing.n_used;
    SL_TRY(e->cpu->ops->route(e->cpu, next, n->host.h, rows, n->guess, n->guess_w,
                              n->guess_shared));
    for (uint32_t j = 0; j < k; j++)
        for (uint32_t r = 0; r < rows; r++) {
            uint32_t id = n->guess[r * k + j], at = 0;
            if (id < e->plan.split.n_stay) continue;
            while (at < n_likely && n->likely[at] != id) at++;
            if (at == n_likely) n->likely[n_likely++] = id;
        }
    sl_stream_ahead(e->loaded.stream, next->index, n->likely, n_likely, false);
    return SL_OK;
}

uint32_t exec_landed(sl_engine *e, lane *n, sl_expert_run *runs)
{
    uint32_t got = sl_stream_ready(e->loaded.stream, n->ready, n->data);
    for (uint32_t i = 0; i < got; i++) {
        sl_expert_run *r = &runs[n->ready[i]];
        if (n->data[i].gate) continue;
        exec_fail(e, n, r->rows, r->n_rows, sl_stream_error(e->loaded.stream));
        r->n_rows = 0;
    }
    return got;
}

/* Waits for what lands next, and gives its runs their data. */
static uint32_t wait_for_data(sl_engine *e, lane *n)
{
    uint32_t got = exec_landed(e, n, n->runs);
    for (uint32_t i = 0; i < got; i++) {
        sl_expert_run *r = &n->runs[n->ready[i]];
        r->ffn.gate.data = n->data[i].gate;
        r->ffn.up.data = n->data[i].up;
        r->ffn.down.data = n->data[i].down;
        if (r->n_rows) continue;
        r->part = SL_RUN_ADD;       /* adds nothing */
        r->out = n->host.y;
    }
    return got;
}

static void computed(sl_engine *e, lane *n, uint32_t got)
{
    for (uint32_t i = 0; i < got; i++)
        if (n->data[i].gate) sl_stream_done(e->loaded.stream, n->ready[i]);
}

/* What has arrived is computed while the rest is on its way, and all of it added in ascending order
 * behind the last: that costs `out`, so only passes of few rows can. The shared expert (behind the
 * routed ones) needs no read. */
static sl_status run_as_they_land(sl_engine *e, lane *n, const sl_layer *l, uint32_t n_routed,
                                  uint32_t n_runs)
{
    uint32_t left = n_routed, extra = n_runs - n_routed;
    float *out = n->out;
    for (unsigned mark = SL_EXPERTS_FIRST; ; mark = 0) {
        uint32_t got = wait_for_data(e, n), n_part = 0;
        left -= got;
        if (!left) {
            sl_status st = e->cpu->ops->experts(e->cpu, l, n->runs, n_runs,
                                                mark | SL_EXPERTS_LAST, &n->host);
            computed(e, n, got);
            return st;
        }
        for (uint32_t i = 0; i < got + extra; i++) {
            sl_expert_run *r = &n->runs[i < got ? n->ready[i] : n_routed];
            if (r->part == SL_RUN_ADD) continue;
            r->out = out;
            r->part = SL_RUN_STORE;
            out += (size_t)(r->rows ? r->n_rows : n->host.n_rows) * l->expert.down.rows;
            n->part[n_part++] = *r;
            r->part = SL_RUN_ADD;
        }
        extra = 0;
        SL_TRY(e->cpu->ops->experts(e->cpu, l, n->part, n_part, mark, &n->host));
        computed(e, n, got);
    }
}

/* Ascending: each is added in place. */
static sl_status run_in_order(sl_engine *e, lane *n, const sl_layer *l, uint32_t n_routed,
                              uint32_t n_runs)
{
    for (uint32_t at = 0; at < n_routed; ) {
        exec_read_on(e, n, l, n_routed);
        uint32_t got = wait_for_data(e, n);
        bool last = at + got == n_routed;
        assert(n->ready[0] == at && n->ready[got - 1] == at + got - 1);
        unsigned mark = (at ? 0 : SL_EXPERTS_FIRST) | (last ? SL_EXPERTS_LAST : 0);
        SL_TRY(e->cpu->ops->experts(e->cpu, l, n->runs + at, last ? n_runs - at : got, mark,
                                    &n->host));
        computed(e, n, got);
        at += got;
    }
    exec_read_on(e, n, l, n_routed);
    return SL_OK;
}

uint32_t exec_all_rows(const lane *n, const sl_layer *l, sl_expert_run *ret)
{
    const sl_ffn *all_rows = l->moe ? &l->shared : &l->ffn;
    if (!all_rows->gate.rows) return 0;
    *ret = (sl_expert_run){ .ffn = *all_rows,
                            .n_rows = n->host.n_rows,
                            .weights = l->shared_gate.rows ? n->host.shared_w : NULL,
                            .index = l->moe ? l->routing.n_expert : 0 };
    return 1;
}

sl_status exec_experts(sl_engine *e, lane *n, const sl_step *step, const sl_layer *l)
{
    uint32_t n_runs = 0, n_routed = 0;
    bool in_order = n->host.n_rows > e->plan.stored_rows;
    if (l->moe) {
        if (e->trace) exec_report(e, n, l);
        n_runs = n_routed = exec_group(n, l);
        sl_stream_ask ask = { .layer = l->index, .ids = n->ids, .n = n_routed,
                              .expert_id = n->host.expert_id, .seq = n->host.seq,
                              .n_rows = n->host.n_rows, .n_used = l->routing.n_used,
                              .in_order = in_order };
        sl_stream_begin(e->loaded.stream, &ask);
        if (!in_order) SL_TRY(exec_guess(e, n, l));
        e->stats.expert_runs += n_runs;
        e->stats.bytes_touched += n_runs * step->expert_bytes;
    }
    n_runs += exec_all_rows(n, l, &n->runs[n_runs]);
    if (!n_routed)
        return e->cpu->ops->experts(e->cpu, l, n->runs, n_runs,
                                    SL_EXPERTS_FIRST | SL_EXPERTS_LAST, &n->host);
    return in_order ? run_in_order(e, n, l, n_routed, n_runs)
                    : run_as_they_land(e, n, l, n_routed, n_runs);
}
