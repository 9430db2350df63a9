/* perfmodel/pipe.c - the steps of a pass for a plan.
 * Order: embed, then per layer qkv, attend, post, [route,] experts, then head. A step needs the one
 * that wrote the activations it reads; `experts` needs the hidden state of `post` and the router's
 * answer. With an accelerator attention may be two steps, one after the other: rows that decode on
 * one side, rows of prompts on the other. */
#include "perfmodel/sl_pipe.h"

#include <assert.h>

uint32_t sl_pipe_max_steps(const sl_shape *s)
{
    return 2 + 6 * s->n_layer;
}

static uint32_t push(sl_step *steps, uint32_t n, sl_step step)
{
    for (int i = 0; i < SL_STEP_MAX_NEEDS; i++)
        assert(step.needs[i] == SL_STEP_NONE || step.needs[i] < n);
    steps[n] = step;
    return n + 1;
}

static uint64_t floats(uint64_t n)
{
    return n * sizeof(float);
}

/* What of a layer's weights is sent up in each pass. */
static uint64_t sent(const sl_split *x, uint32_t l, uint64_t bytes)
{
    return x->accel.kind && l >= x->n_dense_layers ? bytes : 0;
}

/* Attention: by the side that keeps keys and values; or the CPU for rows that decode and the
 * device for prompts, whose keys and values come down as they are kept. */
static uint32_t push_attend(const sl_shape *s, const sl_plan *plan, uint32_t l, sl_step *steps,
                            uint32_t n)
{
    const sl_layer_shape *ls = &s->layers[l];
    const sl_split *x = &plan->split;
    const sl_type_info *kv = sl_type_get(plan->kv_type);
    uint64_t pos_bytes = ((uint64_t)ls->k_elems + ls->v_elems) / kv->block_elems * kv->block_bytes;
    bool two = x->accel.kind && x->kv == SL_ON_CPU && x->prompts == SL_ON_DEVICE;
    sl_step step = { .kind = SL_STEP_ATTEND, .layer = l, .needs = { n - 1, SL_STEP_NONE },
                     .row_bytes = pos_bytes, .ctx_bytes = pos_bytes,
                     .ctx_flops = ls->ctx_flops_row };
    if (two) {
        step.rows = SL_ROWS_PROMPT;
        step.on = SL_ON_DEVICE;
        step.link_row_bytes = pos_bytes;
        n = push(steps, n, step);
        step.rows = SL_ROWS_DECODE;
    }
    step.on = x->kv;
    step.gives_way = x->accel.kind && x->kv == SL_ON_CPU;
    step.link_row_bytes = step.gives_way ? floats(ls->att_elems) : 0;
    return push(steps, n, step);
}

/* The steps of layer l behind step n - 1; the last of them is the layer's result. */
static uint32_t push_layer(const sl_shape *s, const sl_plan *plan, uint32_t l, sl_step *steps,
                           uint32_t n)
{
    const sl_layer_shape *ls = &s->layers[l];
    const sl_split *x = &plan->split;
    sl_where on = x->accel.kind ? SL_ON_DEVICE : SL_ON_CPU;
    bool down = on == SL_ON_DEVICE && x->kv == SL_ON_CPU;
    n = push(steps, n, (sl_step){ .kind = SL_STEP_QKV, .layer = l, .needs = { n - 1, SL_STEP_NONE },
                                  .on = on, .bytes = ls->qkv_bytes,
                                  .send_bytes = sent(x, l, ls->qkv_bytes),
                                  .link_row_bytes = down ? floats((uint64_t)ls->q_elems
                                                                  + ls->k_elems + ls->v_elems)
                                                         : 0,
                                  .row_flops = ls->qkv_flops_row,
                                  .row_int_flops = ls->qkv_int_flops_row });
    n = push_attend(s, plan, l, steps, n);
    n = push(steps, n,
             (sl_step){ .kind = SL_STEP_POST,
                        .layer = l,
                        .needs = { n - 1, SL_STEP_NONE },
                        .on = on,
                        .bytes = ls->post_bytes,
                        .send_bytes = sent(x, l, ls->post_bytes),
                        .row_flops = ls->post_flops_row,
                        .row_int_flops = ls->post_int_flops_row });
    uint32_t post = n - 1, route = SL_STEP_NONE;
    if (ls->n_expert) {
        route = n;
        n = push(steps, n,
                 (sl_step){ .kind = SL_STEP_ROUTE,
                            .layer = l,
                            .needs = { post, SL_STEP_NONE },
                            .on = on,
                            .bytes = ls->router_bytes,
                            .send_bytes = sent(x, l, ls->router_bytes),
                            .link_row_bytes = on == SL_ON_DEVICE ? floats(2 * ls->n_used + 1) : 0,
                            .row_flops = 2 * (uint64_t)s->d_model * ls->n_expert });
    }
    return push(steps, n, (sl_step){ .kind = SL_STEP_EXPERTS, .layer = l, .needs = { post, route },
                                     .on = on, .bytes = ls->ffn_bytes,
                                     .send_bytes = sent(x, l, ls->ffn_bytes),
                                     .expert_bytes = ls->expert_bytes,
                                     .row_flops = ls->ffn_flops_row
                                                + ls->n_used * ls->expert_flops_row,
                                     .row_int_flops = ls->ffn_int_flops_row
                                                    + ls->n_used * ls->expert_int_flops_row });
}

uint32_t sl_pipe_build(const sl_shape *s, const sl_plan *plan, sl_step *steps)
{
    const sl_split *x = &plan->split;
    uint32_t n = push(steps, 0, (sl_step){ .kind = SL_STEP_EMBED, .layer = SL_STEP_NONE,
                                           .needs = { SL_STEP_NONE, SL_STEP_NONE },
                                           .link_row_bytes = x->accel.kind
                                                               ? floats(s->d_model + s->n_rot)
                                                               : 0,
                                           .row_bytes = s->embed_bytes / s->n_vocab });
    for (uint32_t l = 0; l < s->n_layer; l++) n = push_layer(s, plan, l, steps, n);
    uint64_t head_flops = 2 * (uint64_t)s->d_model * s->n_vocab;
    uint64_t head_bytes = s->head_bytes ? s->head_bytes : s->embed_bytes;
    sl_step head = { .kind = SL_STEP_HEAD,
                     .layer = SL_STEP_NONE,
                     .needs = { n - 1, SL_STEP_NONE },
                     .on = x->head,
                     .bytes = head_bytes,
                     .row_flops = head_flops,
                     .row_int_flops = s->head_int ? head_flops : 0 };
    if (x->accel.kind) {
        head.gives_way = x->head == SL_ON_CPU;
        head.link_row_bytes = floats(x->head == SL_ON_CPU ? s->d_model : s->n_vocab);
        if (x->head == SL_ON_DEVICE && !x->head_stays) head.send_bytes = head_bytes;
    }
    return push(steps, n, head);
}

const char *sl_step_name(sl_step_kind kind)
{
    static const char *const names[] = { "embed", "qkv",     "attend", "post",
                                         "route", "experts", "head" };
    assert((size_t)kind < SL_LEN(names));
    return names[kind];
}
