/* perfmodel/pipe.c - the steps of a pass for the plan "all in RAM, all on the CPU".
 * Order: embed, then per layer qkv, attend, post, [route,] experts, then head. A step needs the one
 * that wrote the activations it reads; `experts` needs the hidden state of `post` and the router's
 * answer. */
#include "perfmodel/sl_pipe.h"

#include <assert.h>

uint32_t sl_pipe_max_steps(const sl_shape *s)
{
    return 2 + 5 * s->n_layer;
}

static uint32_t push(sl_step *steps, uint32_t n, sl_step step)
{
    for (int i = 0; i < SL_STEP_MAX_NEEDS; i++)
        assert(step.needs[i] == SL_STEP_NONE || step.needs[i] < n);
    steps[n] = step;
    return n + 1;
}

/* The steps of layer l behind step `prev`; the last of them is the layer's result. */
static uint32_t push_layer(const sl_shape *s, sl_type kv_type, uint32_t l, sl_step *steps,
                           uint32_t n)
{
    const sl_layer_shape *ls = &s->layers[l];
    const sl_type_info *kv = sl_type_get(kv_type);
    uint64_t pos_bytes = ((uint64_t)ls->k_elems + ls->v_elems) / kv->block_elems * kv->block_bytes;
    n = push(steps, n, (sl_step){ .kind = SL_STEP_QKV, .layer = l, .needs = { n - 1, SL_STEP_NONE },
                                  .bytes = ls->qkv_bytes, .row_flops = ls->qkv_flops_row,
                                  .row_int_flops = ls->qkv_int_flops_row });
    n = push(steps, n,
             (sl_step){ .kind = SL_STEP_ATTEND,
                        .layer = l,
                        .needs = { n - 1, SL_STEP_NONE },
                        .row_bytes = pos_bytes,
                        .ctx_bytes = pos_bytes,
                        .ctx_flops = ls->ctx_flops_row });
    n = push(steps, n,
             (sl_step){ .kind = SL_STEP_POST,
                        .layer = l,
                        .needs = { n - 1, SL_STEP_NONE },
                        .bytes = ls->post_bytes,
                        .row_flops = ls->post_flops_row,
                        .row_int_flops = ls->post_int_flops_row });
    uint32_t post = n - 1, route = SL_STEP_NONE;
    if (ls->n_expert) {
        route = n;
        n = push(steps, n,
                 (sl_step){ .kind = SL_STEP_ROUTE,
                            .layer = l,
                            .needs = { post, SL_STEP_NONE },
                            .bytes = ls->router_bytes,
                            .row_flops = 2 * (uint64_t)s->d_model * ls->n_expert });
    }
    return push(steps, n, (sl_step){ .kind = SL_STEP_EXPERTS, .layer = l, .needs = { post, route },
                                     .bytes = ls->ffn_bytes, .expert_bytes = ls->expert_bytes,
                                     .row_flops = ls->ffn_flops_row
                                                + ls->n_used * ls->expert_flops_row,
                                     .row_int_flops = ls->ffn_int_flops_row
                                                    + ls->n_used * ls->expert_int_flops_row });
}

uint32_t sl_pipe_build(const sl_shape *s, const sl_plan *plan, sl_step *steps)
{
    uint32_t n = push(steps, 0, (sl_step){ .kind = SL_STEP_EMBED, .layer = SL_STEP_NONE,
                                           .needs = { SL_STEP_NONE, SL_STEP_NONE },
                                           .row_bytes = s->embed_bytes / s->n_vocab });
    for (uint32_t l = 0; l < s->n_layer; l++)
        n = push_layer(s, plan->kv_type, l, steps, n);
    uint64_t head_flops = 2 * (uint64_t)s->d_model * s->n_vocab;
    return push(steps, n,
                (sl_step){ .kind = SL_STEP_HEAD,
                           .layer = SL_STEP_NONE,
                           .needs = { n - 1, SL_STEP_NONE },
                           .bytes = s->head_bytes ? s->head_bytes : s->embed_bytes,
                           .row_flops = head_flops,
                           .row_int_flops = s->head_int ? head_flops : 0 });
}

const char *sl_step_name(sl_step_kind kind)
{
    static const char *const names[] = { "embed", "qkv",     "attend", "post",
                                         "route", "experts", "head" };
    assert((size_t)kind < SL_LEN(names));
    return names[kind];
}
