/* perfmodel/preset_shape.c - a preset's shape from its list of tensors. */
#include "perfmodel/sl_preset.h"

static sl_status add_tensor(void *user, const sl_preset_tensor *t)
{
    /* Only types whose blocks divide the rows are picked. */
    return sl_shape_sum_add(user, t->name, t->type, t->ne) ? SL_OK : SL_E_ARG;
}

static sl_shape_attn attn_of(const sl_preset *p, uint32_t layer)
{
    sl_shape_attn a = { .n_head = p->n_head, .n_head_kv = p->n_head_kv, .k_dim = p->head_dim,
                        .v_dim = p->v_dim ? p->v_dim : p->head_dim, .n_rot = p->n_rot };
    if (sl_preset_layer(p, layer) == SL_LAYER_WINDOW) a.window = p->window;
    if (!p->kv_lora) return a;
    a.latent = true;
    a.n_head_kv = 1;
    a.k_dim = p->kv_lora + p->n_rot;
    a.v_dim = p->kv_lora;
    a.q_lora = p->q_lora;
    a.q_dim = p->nope + p->n_rot;
    a.v_head = p->v_head;
    return a;
}

sl_status sl_preset_shape(sl_ctx *ctx, const sl_preset *p, const char *quant,
                          sl_layer_shape *layers, sl_shape *ret)
{
    sl_shape_sum m;
    sl_shape_sum_begin(&m, layers, p->n_layer);
    m.n_expert = p->n_expert;
    m.n_used = p->n_used;
    m.s.n_ctx_train = p->n_ctx;
    SL_TRY(sl_preset_tensors(ctx, p, quant, 0, add_tensor, &m));
    for (uint32_t l = 0; l < p->n_layer; l++) {
        sl_shape_attn a = attn_of(p, l);
        if (sl_preset_layer(p, l) != SL_LAYER_MIXER) sl_shape_sum_attn(&m, l, &a);
    }
    *ret = sl_shape_sum_end(&m);
    return SL_OK;
}
