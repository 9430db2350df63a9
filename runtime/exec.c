/* runtime/exec.c - one pass: walks the pipe for each lane and fills in the router's answer. It
 * knows stages and rows, no architecture. Each step's needs stand before it in the list, and each
 * queue runs in submission order; where a step's results go to the other side, the copy is
 * submitted with it and the side that goes on waits for it. */
#include "runtime/exec.h"

#include <assert.h>

/* Of a table on disk only the tokens' own rows come to RAM. */
static sl_status look_up(sl_engine *e, lane *n)
{
    sl_batch *b = &n->host, by_row = *b;
    sl_weights w = e->weights;
    if (!e->plan.embed_rows_bytes) return e->cpu->ops->embed(e->cpu, &e->weights, b);
    sl_stream_rows(e->loaded.stream, b->token, b->n_rows, &w.embed.data, n->row_failed);
    for (uint32_t i = 0; i < b->n_rows; i++)
        if (n->row_failed[i]) exec_fail(e, n, &i, 1, sl_stream_error(e->loaded.stream));
    w.embed.rows = b->n_rows;
    by_row.token = n->row_at;
    return e->cpu->ops->embed(e->cpu, &w, &by_row);
}

static sl_status embed(sl_engine *e, lane *n, const sl_step *s)
{
    const sl_batch *h = &n->host, *d = &n->dev;
    uint64_t rows = h->n_rows, x = rows * e->weights.d_model;
    uint64_t half = rows * (e->weights.rope.n_rot / 2);
    if (!s->link_row_bytes) return look_up(e, n);
    split_write(e, h->x, x);
    split_write(e, h->cos, half);
    split_write(e, h->sin, half);
    SL_TRY(look_up(e, n));
    SL_TRY(split_up(e, d->x, h->x, x));
    SL_TRY(split_up(e, d->cos, h->cos, half));
    SL_TRY(split_up(e, d->sin, h->sin, half));
    return split_end_up(e);
}

static sl_status qkv(sl_engine *e, lane *n, const sl_step *s)
{
    const sl_batch *h = &n->host, *d = &n->dev;
    const sl_layer *l = &e->loaded.layers[s->layer];
    uint64_t rows = n->n_decode, k = rows * l->attn.n_head_kv * l->attn.k_dim;
    uint64_t v = l->attn.kind == SL_ATTN_MLA ? 0 : rows * l->attn.n_head_kv * l->attn.v_dim;
    if (s->on == SL_ON_CPU) return e->cpu->ops->qkv(e->cpu, &e->weights, l, &n->host);
    SL_TRY(board_use(&e->board, ITEM_FRONT, s->layer));
    SL_TRY(e->dev->ops->qkv(e->dev, &e->board.ends.weights, &e->board.layers[s->layer], &n->dev));
    if (!s->link_row_bytes || !rows) return SL_OK;
    SL_TRY(split_begin_down(e));
    SL_TRY(split_down(e, h->q, d->q, rows * l->attn.n_head * l->attn.k_dim));
    SL_TRY(split_down(e, h->k, d->k, k));
    SL_TRY(split_down(e, h->v, d->v, v));
    return split_end_down(e, &n->down);
}

static sl_status attend(sl_engine *e, lane *n, const sl_step *s)
{
    sl_batch *h = &n->host, first = *h;
    const sl_layer *l = &e->loaded.layers[s->layer];
    const sl_kv_view *kv = &e->kv.views[s->layer];
    uint64_t rows = n->n_decode, att = rows * l->attn.n_head * l->attn.v_dim;
    if (s->rows == SL_ROWS_PROMPT) return prompts_attend(e, n, s);
    if (s->on == SL_ON_DEVICE)
        return e->dev->ops->attend(e->dev, &e->board.layers[s->layer], kv, &n->dev);
    if (!s->link_row_bytes) return e->cpu->ops->attend(e->cpu, l, kv, h);
    if (!rows) return SL_OK;
    SL_TRY(e->dev->ops->sync(e->dev, n->down));
    split_read(e, h->q, rows * l->attn.n_head * l->attn.k_dim);
    split_read(e, h->k, rows * l->attn.n_head_kv * l->attn.k_dim);
    if (kv->v_bytes) split_read(e, h->v, rows * l->attn.n_head_kv * l->attn.v_dim);
    split_write(e, h->att, att);
    first.n_rows = n->n_decode;
    SL_TRY(e->cpu->ops->attend(e->cpu, l, kv, &first));
    SL_TRY(split_up(e, n->dev.att, h->att, att));
    return split_end_up(e);
}

static sl_status post(sl_engine *e, lane *n, const sl_step *s)
{
    const sl_layer *l = &e->loaded.layers[s->layer];
    if (s->on == SL_ON_CPU) return e->cpu->ops->post(e->cpu, l, &n->host);
    SL_TRY(e->dev->ops->post(e->dev, &e->board.layers[s->layer], &n->dev));
    return l->moe ? SL_OK : board_done(&e->board, ITEM_FRONT, s->layer);
}

/* The router's answer comes down in one copy. */
static sl_status route(sl_engine *e, lane *n, const sl_step *s)
{
    const sl_batch *h = &n->host;
    sl_batch *d = &n->dev;
    const sl_layer *l = &e->loaded.layers[s->layer];
    if (s->on == SL_ON_CPU)
        return e->cpu->ops->route(e->cpu, l, h->h, h->n_rows, h->expert_id, h->expert_w,
                                  h->shared_w);
    SL_TRY(e->dev->ops->route(e->dev, &e->board.layers[s->layer], d->h, d->n_rows, d->expert_id,
                              d->expert_w, d->shared_w));
    SL_TRY(board_done(&e->board, ITEM_FRONT, s->layer));
    SL_TRY(split_begin_down(e));
    SL_TRY(split_down(e, h->expert_id, d->expert_id,
                      (uint64_t)(h->shared_w - (float *)(void *)h->expert_id) + h->n_rows));
    return split_end_down(e, &n->down);
}

static sl_status experts(sl_engine *e, lane *n, const sl_step *s)
{
    if (s->on == SL_ON_DEVICE) return split_experts(e, n, s);
    return exec_experts(e, n, s, &e->loaded.layers[s->layer]);
}

/* The CPU's head has its rows one after another. */
static sl_status head_on_cpu(sl_engine *e, lane *n, const sl_step *s)
{
    sl_batch b = n->host;
    uint64_t dm = e->weights.d_model;
    if (!s->link_row_bytes) return e->cpu->ops->head(e->cpu, &e->weights, &b);
    SL_TRY(split_begin_down(e));
    for (uint32_t i = 0; i < b.n_logits; i++)
        SL_TRY(split_down(e, b.x + i * dm, n->dev.x + b.logit_row[i] * dm, dm));
    SL_TRY(split_end_down(e, &n->down));
    SL_TRY(e->dev->ops->sync(e->dev, n->down));
    split_read(e, b.x, b.n_logits * dm);
    split_write(e, b.h, b.n_logits * dm);
    b.n_rows = b.n_logits;
    b.logit_row = (const uint32_t *)n->row_at;
    return e->cpu->ops->head(e->cpu, &e->weights, &b);
}

static sl_status head(sl_engine *e, lane *n, const sl_step *s)
{
    const sl_batch *h = &n->host;
    SL_TRY(s->on == SL_ON_DEVICE ? board_use(&e->board, ITEM_HEAD, 0) : SL_OK);
    if (h->n_logits && s->on == SL_ON_CPU) SL_TRY(head_on_cpu(e, n, s));
    if (s->on == SL_ON_CPU) return SL_OK;
    if (h->n_logits) {
        SL_TRY(e->dev->ops->head(e->dev, &e->board.ends.weights, &n->dev));
        SL_TRY(split_begin_down(e));
        SL_TRY(split_down(e, h->logits, n->dev.logits, (uint64_t)h->n_logits * e->weights.n_vocab));
        SL_TRY(split_end_down(e, &n->down));
    }
    return board_done(&e->board, ITEM_HEAD, 0);
}

static sl_status run_step(sl_engine *e, lane *n, const sl_step *s)
{
    switch (s->kind) {
    case SL_STEP_EMBED: return embed(e, n, s);
    case SL_STEP_QKV: return qkv(e, n, s);
    case SL_STEP_ATTEND: return attend(e, n, s);
    case SL_STEP_POST: return post(e, n, s);
    case SL_STEP_ROUTE: return route(e, n, s);
    case SL_STEP_EXPERTS: return experts(e, n, s);
    case SL_STEP_HEAD: return head(e, n, s);
    }
    assert(!"a step the pipe cannot hold");
    return SL_E_ARG;
}

/* Steps up to the next one that gives way to the other lane, or to the end. *ret_over: nothing is
 * left to do for this lane. */
static sl_status run_turn(sl_engine *e, lane *n, bool *ret_over)
{
    do {
        const sl_step *s = &e->steps[n->step++];
        if (s->kind == SL_STEP_QKV && s->on == SL_ON_CPU
            && weights_use(&e->loaded, s->layer) != SL_OK) {
            exec_fail(e, n, NULL, n->host.n_rows, sl_error(e->ctx));
            n->step = e->n_steps;
            break;
        }
        SL_TRY(run_step(e, n, s));
        if (s->kind == SL_STEP_EXPERTS && s->on == SL_ON_CPU) weights_done(&e->loaded, s->layer);
        if (s->kind != SL_STEP_HEAD || n->host.n_logits) e->stats.bytes_touched += s->bytes;
        e->stats.bytes_touched += s->row_bytes * n->host.n_rows;
    } while (n->step < e->n_steps && !e->steps[n->step].gives_way);
    *ret_over = n->step == e->n_steps;
    return SL_OK;
}

/* All that was submitted is over: the next pass may use every buffer. */
static sl_status finish(sl_engine *e)
{
    sl_event ev;
    if (!e->dev) return SL_OK;
    SL_TRY(e->dev->ops->record(e->dev, SL_Q_COMPUTE, &ev));
    SL_TRY(e->dev->ops->sync(e->dev, ev));
    SL_TRY(e->dev->ops->record(e->dev, SL_Q_DOWN, &ev));
    SL_TRY(e->dev->ops->sync(e->dev, ev));
    if (e->plan.split.head == SL_ON_DEVICE)
        split_read(e, e->pass.logits, (uint64_t)e->pass.n_logits * e->weights.n_vocab);
    return SL_OK;
}

sl_status exec_pass(sl_engine *e)
{
    bool over[MAX_LANES] = { false };
    uint32_t n_lanes = lanes_cut(e), left = n_lanes;
    if (e->dev)
        SL_TRY(board_begin(&e->board, e->pass.n_rows >= e->plan.split.send_all_rows, n_lanes));
    for (uint32_t i = 0; left; i = (i + 1) % n_lanes) {
        if (over[i]) continue;
        SL_TRY(run_turn(e, &e->lanes[i], &over[i]));
        left -= over[i];
    }
    SL_TRY(finish(e));
    sl_stream_pass_done(e->loaded.stream);
    e->stats.passes++;
    return SL_OK;
}
