/* perfmodel/plan.c - the plan "all in RAM, all on the CPU": what it needs, and whether it fits. */
#include "perfmodel/sl_plan.h"

#include <assert.h>

#define MIN_LOGIT_ROWS 16u
#define GIB (1024.0 * 1024.0 * 1024.0)

sl_plan_params sl_plan_defaults(void)
{
    return (sl_plan_params){ .n_seq = 1, .max_rows = 512, .kv_type = SL_F16,
                             .cpu_mask = ~0u };
}

/* Bytes of every layer's keys and values for n_pos positions; false on overflow. */
static bool kv_bytes(const sl_shape *s, sl_type type, uint64_t n_pos, uint64_t *ret)
{
    uint64_t row = 0, k, v;
    for (uint32_t l = 0; l < s->n_layer; l++) {
        const sl_layer_shape *ls = &s->layers[l];
        if (!sl_type_row_bytes(type, ls->k_elems, &k) || !sl_type_row_bytes(type, ls->v_elems, &v)
            || !sl_add_size(row, k, &row) || !sl_add_size(row, v, &row))
            return false;
    }
    return sl_mul_size(row, n_pos, ret);
}

static sl_status check_kv_type(sl_ctx *ctx, const sl_shape *s, sl_type type)
{
    const sl_type_info *t = sl_type_get(type);
    if (type != SL_F16 && type != SL_F32 && type != SL_BF16 && type != SL_Q8_0)
        return sl_fail(ctx, SL_E_ARG, "keys and values in %s: expected F16, F32, BF16 or Q8_0",
                       t->name ? t->name : "an unknown type");
    for (uint32_t l = 0; l < s->n_layer && t->block_elems > 1; l++)
        if (s->layers[l].kv_unit % t->block_elems || !s->layers[l].kv_unit)
            return sl_fail(ctx, SL_E_ARG,
                           "keys and values in %s: it has blocks of %u, and the heads of layer %u "
                           "are no multiple of that",
                           t->name, t->block_elems, l);
    return SL_OK;
}

static sl_status check_params(sl_ctx *ctx, const sl_shape *s, const sl_plan_params *p)
{
    if (p->n_seq < 1 || p->n_seq > 4096)
        return sl_fail(ctx, SL_E_ARG, "%u sequences: expected 1 to 4096", p->n_seq);
    if (p->max_rows < 1 || p->max_rows > 65536)
        return sl_fail(ctx, SL_E_ARG, "%u rows a pass: expected 1 to 65536", p->max_rows);
    SL_TRY(check_kv_type(ctx, s, p->kv_type));
    if (!p->n_ctx && !s->n_ctx_train)
        return sl_fail(ctx, SL_E_ARG, "the model names no context length: one must be given");
    return SL_OK;
}

sl_status sl_plan_make(sl_ctx *ctx, const sl_shape *s, const sl_plan_params *p, sl_plan *ret)
{
    assert(ctx && s && p && ret);
    SL_TRY(check_params(ctx, s, p));
    sl_plan plan = {
        .mode = "all in RAM, all on the CPU",
        .n_ctx = p->n_ctx ? p->n_ctx : s->n_ctx_train,
        .n_seq = p->n_seq,
        .n_threads = p->n_threads,
        .kv_type = p->kv_type,
        .kv_block_rows = SL_KV_BLOCK_ROWS,
        .weights_bytes = s->total_bytes,
        .ram_bytes = p->ram_bytes,
        .cpu_mask = p->cpu_mask,
        .float_acts = p->float_acts,
        .blas = p->blas,
    };
    uint64_t per_seq = ((uint64_t)plan.n_ctx + SL_KV_BLOCK_ROWS - 1) / SL_KV_BLOCK_ROWS;
    uint64_t n_blocks = per_seq * p->n_seq;
    /* More rows than all sequences together can hold are never filled. */
    plan.max_rows = (uint32_t)SL_MIN((uint64_t)p->max_rows, (uint64_t)plan.n_ctx * p->n_seq);
    plan.max_rows = SL_MAX(plan.max_rows, p->n_seq);
    plan.max_logits = SL_MIN(plan.max_rows, SL_MAX(p->n_seq, MIN_LOGIT_ROWS));
    if (n_blocks > UINT32_MAX
        || !kv_bytes(s, p->kv_type, n_blocks * SL_KV_BLOCK_ROWS, &plan.kv_bytes))
        return sl_fail(ctx, SL_E_NOMEM,
                       "a context of %u positions for %u sequences is beyond any memory",
                       plan.n_ctx, p->n_seq);
    plan.n_kv_blocks = (uint32_t)n_blocks;
    plan.scratch_bytes = plan.max_rows * s->row_scratch_bytes
                       + (uint64_t)plan.max_logits * s->n_vocab * sizeof(float);
    uint64_t need = plan.weights_bytes + plan.kv_bytes + plan.scratch_bytes;
    if (p->ram_bytes && need > p->ram_bytes)
        return sl_fail(
            ctx, SL_E_NOMEM,
            "a budget of %.2f GiB is below the floor of %.2f GiB: weights %.2f, "
            "keys and values of %u positions %.2f (-c lowers it), activations of %u rows %.2f "
            "(-b lowers it)",
            (double)p->ram_bytes / GIB, (double)need / GIB, (double)plan.weights_bytes / GIB,
            plan.n_ctx, (double)plan.kv_bytes / GIB, plan.max_rows,
            (double)plan.scratch_bytes / GIB);
    *ret = plan;
    return SL_OK;
}
