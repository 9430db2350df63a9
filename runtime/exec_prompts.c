/* runtime/exec_prompts.c - attention of prompts on an accelerator while keys and values lie in RAM.
 * The device has room for one layer's of the lane's prompts: what earlier passes, and the lane
 * before, left of these sequences goes up; the stage adds this pass's rows to it and attends; they
 * come down to where they stay, in the form in which they are kept, so bits are as on the CPU. */
#include "runtime/exec.h"

#include <assert.h>
#include <stdlib.h>

sl_status prompts_init(sl_engine *e, lane *n)
{
    const sl_split *x = &e->plan.split;
    prompt_room *p = &n->prompts;
    uint64_t bytes = 0;
    if (!x->prompt_positions) return SL_OK;
    p->n_blocks = x->prompt_positions / e->plan.kv_block_rows;
    p->tables = calloc(e->plan.n_seq, sizeof *p->tables);
    p->table = calloc(p->n_blocks, sizeof *p->table);
    if (!p->tables || !p->table) return sl_fail(e->ctx, SL_E_NOMEM, "tables of prompts");
    for (uint32_t i = 0; i < p->n_blocks; i++) p->table[i] = i;
    for (uint32_t l = 0; l < e->m->shape.n_layer; l++)      /* of a position: keys, then values */
        bytes = SL_MAX(bytes, e->kv.views[l].k_bytes + e->kv.views[l].v_bytes);
    SL_TRY(e->dev->ops->alloc(e->dev, SL_ACC_SCRATCH, bytes * x->prompt_positions, &p->memory));
    p->view = (sl_kv_view){ .blocks = p->tables, .block_rows = e->plan.kv_block_rows,
                            .type = e->plan.kv_type };
    return SL_OK;
}

void prompts_fini(sl_engine *e, lane *n)
{
    if (n->prompts.memory) e->dev->ops->free(e->dev, n->prompts.memory);
    free(n->prompts.tables);
    free(n->prompts.table);
    n->prompts = (prompt_room){ .memory = NULL };
}

/* Rows of one sequence, neighbours in the lane. */
struct stretch { uint32_t row, end, seq, from, to; };

/* The stretch that starts at a row; false: there is none. Positions ascend by one. */
static bool stretch_at(const lane *n, uint32_t row, struct stretch *ret)
{
    const sl_batch *b = &n->host;
    if (row >= b->n_rows) return false;
    *ret = (struct stretch){ .row = row, .end = row, .seq = b->seq[row], .from = b->pos[row] };
    while (ret->end < b->n_rows && b->seq[ret->end] == ret->seq) ret->end++;
    ret->to = ret->from + (ret->end - row);
    return true;
}

bool prompts_cut(lane *n, uint32_t n_decode)
{
    prompt_room *p = &n->prompts;
    uint32_t rows = p->view.block_rows, used = 0;
    if (!p->n_blocks) return false;
    for (struct stretch s = { .end = n_decode }; stretch_at(n, s.end, &s); ) {
        uint32_t blocks = (s.to + rows - 1) / rows;
        if (blocks > p->n_blocks - used) return false;
        p->tables[s.seq] = p->table + used;
        used += blocks;
    }
    n->n_decode = n_decode;
    return true;
}

/* Rows [from, to) of a sequence between RAM and the device, block by block. */
static sl_status move(sl_engine *e, const sl_kv_view *dst, const sl_kv_view *src, sl_queue q,
                      const struct stretch *of, uint32_t from, uint32_t to)
{
    for (uint32_t n; from < to; from += n) {
        uint32_t rows = src->block_rows, at = from % rows;
        uint64_t d = (uint64_t)dst->blocks[of->seq][from / rows] * rows + at;
        uint64_t s = (uint64_t)src->blocks[of->seq][from / rows] * rows + at;
        n = SL_MIN(rows - at, to - from);
        SL_TRY(e->dev->ops->copy(e->dev, q, dst->k + d * dst->k_bytes, src->k + s * src->k_bytes,
                                 n * src->k_bytes));
        if (src->v_bytes)
            SL_TRY(e->dev->ops->copy(e->dev, q, dst->v + d * dst->v_bytes,
                                     src->v + s * src->v_bytes, n * src->v_bytes));
    }
    return SL_OK;
}

/* What is kept of these sequences already, behind what came down before and behind the stages that
 * used the room. */
static sl_status bring_up(sl_engine *e, lane *n, const sl_kv_view *ram)
{
    static const sl_queue before[] = { SL_Q_COMPUTE, SL_Q_DOWN };
    sl_event ev;
    for (size_t i = 0; i < SL_LEN(before); i++) {
        SL_TRY(e->dev->ops->record(e->dev, before[i], &ev));
        SL_TRY(e->dev->ops->wait(e->dev, SL_Q_UP, ev));
    }
    for (struct stretch s = { .end = n->n_decode }; stretch_at(n, s.end, &s); )
        SL_TRY(move(e, &n->prompts.view, ram, SL_Q_UP, &s, 0, s.from));
    return split_end_up(e);
}

sl_status prompts_attend(sl_engine *e, lane *n, const sl_step *step)
{
    const sl_kv_view *ram = &e->kv.views[step->layer];
    const sl_layer *l = &e->board.layers[step->layer];
    sl_kv_view *room = &n->prompts.view;
    sl_batch b = n->dev;
    uint64_t first = n->n_decode, kv = first * l->attn.n_head_kv;
    if (first == n->host.n_rows) return SL_OK;
    room->k_bytes = ram->k_bytes;
    room->v_bytes = ram->v_bytes;
    room->k = n->prompts.memory;
    room->v = room->k + ram->k_bytes * e->plan.split.prompt_positions;
    SL_TRY(bring_up(e, n, ram));
    b.n_rows = n->host.n_rows - n->n_decode;
    b.pos += first;
    b.seq += first;
    b.q += first * l->attn.n_head * l->attn.k_dim;
    b.k += kv * l->attn.k_dim;
    if (ram->v_bytes) b.v += kv * l->attn.v_dim;
    b.att += first * l->attn.n_head * l->attn.v_dim;
    SL_TRY(e->dev->ops->attend(e->dev, l, room, &b));
    SL_TRY(split_begin_down(e));
    for (struct stretch s = { .end = n->n_decode }; stretch_at(n, s.end, &s); )
        SL_TRY(move(e, ram, room, SL_Q_DOWN, &s, s.from, s.to));
    return SL_OK;
}
