/* runtime/lane.c - the rows of a pass and the buffers of its lanes: one set in memory of the cpu
 * device, with an accelerator pinned and a second set on it. */
#include "runtime/exec.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Floats in whole cache lines. */
static uint64_t lines(uint64_t n)
{
    return (n + 15) / 16 * 16;
}

static uint32_t lane_rows(const sl_engine *e)
{
    return e->plan.split.accel.kind ? e->plan.split.lane_rows : e->plan.max_rows;
}

/* Runs whose outputs a lane has room for. */
static uint64_t stored_runs(const sl_engine *e)
{
    if (e->plan.split.accel.kind) return e->plan.split.stored_runs;
    return e->plan.stored_rows * (e->m->widths.n_used + 1ull);
}

/* One set of activations; ret_out: outputs that wait. With logits or without. */
static sl_status take_acts(sl_engine *e, bool on_device, bool logits, sl_batch *b, void **ret,
                           float **ret_out)
{
    const sl_widths *w = &e->m->widths;
    uint64_t rows = lane_rows(e), outs = stored_runs(e) * w->d_model, floats = 0;
    uint64_t answer = 2 * lines(rows * w->n_used) + rows;
    struct { void *p; uint64_t n; } parts[] = {
        { &b->x, rows * w->d_model }, { &b->h, rows * w->d_model }, { &b->y, rows * w->d_model },
        { &b->q, rows * w->q }, { &b->k, rows * w->k }, { &b->v, rows * w->v },
        { &b->att, rows * w->att }, { &b->cos, rows * (w->n_rot / 2) },
        { &b->sin, rows * (w->n_rot / 2) }, { &b->expert_id, answer },
        { &b->logits, logits ? (uint64_t)e->plan.max_logits * w->n_vocab : 0 }, { ret_out, outs },
    };
    for (size_t i = 0; i < SL_LEN(parts); i++) floats += lines(parts[i].n);
    sl_device *d = e->dev ? e->dev : e->cpu;
    SL_TRY((on_device ? d->ops->alloc : d->ops->alloc_host)(d, SL_ACC_SCRATCH,
                                                            floats * sizeof(float), ret));
    float *at = *ret;
    for (size_t i = 0; i < SL_LEN(parts); i++) {
        if (parts[i].n) memcpy(parts[i].p, &at, sizeof at);
        at += lines(parts[i].n);
    }
    return SL_OK;
}

/* Guesses at the next layer's experts: of streamed weights. */
static sl_status take_guess(sl_engine *e, lane *n)
{
    uint64_t rows = e->plan.stored_rows, k = e->m->widths.n_used;
    void *p = NULL;
    if (!rows) return SL_OK;
    SL_TRY(e->cpu->ops->alloc(e->cpu, SL_ACC_SCRATCH, rows * (2 * k + 1) * sizeof(float), &p));
    n->guess_w = p;
    n->guess_shared = n->guess_w + rows * k;
    n->guess = (uint32_t *)(void *)(n->guess_shared + rows);
    return SL_OK;
}

static sl_status take_tables(sl_engine *e, lane *n)
{
    uint64_t rows = lane_rows(e), experts = e->m->widths.n_expert + 1ull;
    uint64_t pairs = rows * e->m->widths.n_used + 1;
    struct { void *p; uint64_t n; size_t size; } all[] = {
        { &n->logit_row, e->plan.max_logits, sizeof *n->logit_row },
        { &n->row_at, rows, sizeof *n->row_at }, { &n->row_failed, rows, sizeof *n->row_failed },
        { &n->runs, experts, sizeof *n->runs }, { &n->run_rows, pairs, sizeof *n->run_rows },
        { &n->run_weights, pairs, sizeof *n->run_weights },
        { &n->run_start, experts, sizeof *n->run_start }, { &n->part, experts, sizeof *n->part },
        { &n->ids, experts, sizeof *n->ids }, { &n->ready, experts, sizeof *n->ready },
        { &n->data, experts, sizeof *n->data }, { &n->likely, experts, sizeof *n->likely },
    };
    for (size_t i = 0; i < SL_LEN(all); i++) {
        void *p = calloc(all[i].n, all[i].size);
        if (!p) return sl_fail(e->ctx, SL_E_NOMEM, "tables of a pass of %u rows", e->plan.max_rows);
        memcpy(all[i].p, &p, sizeof p);
    }
    for (uint32_t i = 0; i < rows; i++) n->row_at[i] = (int32_t)i;
    return SL_OK;
}

static sl_status take_pass(sl_engine *e)
{
    pass *p = &e->pass;
    uint64_t rows = e->plan.max_rows, n_vocab = e->m->widths.n_vocab;
    sl_device *d = e->dev ? e->dev : e->cpu;
    void *logits = NULL;
    p->token = calloc(rows, sizeof *p->token);
    p->pos = calloc(rows, sizeof *p->pos);
    p->seq = calloc(rows, sizeof *p->seq);
    p->logit_row = calloc(e->plan.max_logits, sizeof *p->logit_row);
    if (!p->token || !p->pos || !p->seq || !p->logit_row)
        return sl_fail(e->ctx, SL_E_NOMEM, "tables of a pass of %u rows", e->plan.max_rows);
    SL_TRY(d->ops->alloc_host(d, SL_ACC_SCRATCH, e->plan.max_logits * n_vocab * sizeof(float),
                              &logits));
    p->logits = logits;
    return SL_OK;
}

sl_status lanes_init(sl_engine *e)
{
    const sl_split *x = &e->plan.split;
    SL_TRY(take_pass(e));
    for (uint32_t i = 0; i < (e->dev ? x->n_lanes : 1); i++) {
        lane *n = &e->lanes[i];
        SL_TRY(take_acts(e, false, false, &n->host, &n->host_memory, &n->out));
        if (e->dev)
            SL_TRY(take_acts(e, true, x->head == SL_ON_DEVICE, &n->dev, &n->dev_memory,
                             &n->dev_out));
        SL_TRY(take_guess(e, n));
        SL_TRY(take_tables(e, n));
        SL_TRY(prompts_init(e, n));
    }
    return SL_OK;
}

void lanes_fini(sl_engine *e)
{
    sl_device *d = e->dev ? e->dev : e->cpu;
    pass *p = &e->pass;
    for (uint32_t i = 0; i < MAX_LANES; i++) {
        lane *n = &e->lanes[i];
        void *tables[] = { n->logit_row, n->row_at, n->row_failed, n->runs, n->run_rows,
                           n->run_weights, n->run_start, n->part, n->ids, n->ready, n->data,
                           n->likely };
        for (size_t t = 0; t < SL_LEN(tables); t++) free(tables[t]);
        prompts_fini(e, n);
        if (n->host_memory) d->ops->free(d, n->host_memory);
        if (n->dev_memory) d->ops->free(d, n->dev_memory);
        if (n->guess_w) e->cpu->ops->free(e->cpu, n->guess_w);
        *n = (lane){ 0 };
    }
    if (p->logits) d->ops->free(d, p->logits);
    free(p->token);
    free(p->pos);
    free(p->seq);
    free(p->logit_row);
    *p = (pass){ 0 };
}

/* The rows of a set of buffers: arrays of the pass, the router's answer in one piece. */
static void set_rows(const sl_engine *e, const lane *n, uint32_t first, uint32_t n_rows,
                     uint32_t n_logits, sl_batch *b)
{
    const pass *p = &e->pass;
    uint64_t pairs = lines((uint64_t)n_rows * e->m->widths.n_used);
    b->n_rows = n_rows;
    b->n_logits = n_logits;
    b->token = p->token + first;
    b->pos = p->pos + first;
    b->seq = p->seq + first;
    b->logit_row = n->logit_row;
    b->expert_w = (float *)(void *)b->expert_id + pairs;
    b->shared_w = b->expert_w + pairs;
}

/* A pass of few rows, whose experts are sent as they are asked for, is one lane's. */
uint32_t lanes_cut(sl_engine *e)
{
    const sl_split *x = &e->plan.split;
    pass *p = &e->pass;
    bool all = x->accel.kind && p->n_rows >= x->send_all_rows, fits = true;
    uint32_t n_lanes = all && p->n_rows > 1 ? x->n_lanes : 1, first = 0, logit = 0;
    for (uint32_t i = 0; i < n_lanes; i++) {
        lane *n = &e->lanes[i];
        uint32_t rows = (p->n_rows - first + n_lanes - i - 1) / (n_lanes - i), n_logits = 0;
        float *logits = p->logits + (uint64_t)logit * e->weights.n_vocab;
        assert(rows && rows <= lane_rows(e));
        for (; logit < p->n_logits && p->logit_row[logit] < first + rows; logit++)
            n->logit_row[n_logits++] = p->logit_row[logit] - first;
        set_rows(e, n, first, rows, n_logits, &n->host);
        if (e->dev) set_rows(e, n, first, rows, n_logits, &n->dev);
        n->host.logits = logits;
        fits &= prompts_cut(n, p->n_decode > first ? SL_MIN(p->n_decode - first, rows) : 0);
        n->step = 0;
        n->down = 0;
        first += rows;
    }
    /* A lane's rows may go on where the other's end: one side attends for all of them. */
    for (uint32_t i = 0; i < n_lanes && !fits; i++) e->lanes[i].n_decode = e->lanes[i].host.n_rows;
    return n_lanes;
}
