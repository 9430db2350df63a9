/* tests/t_tiny.h - models of random weights in tiny shapes of the preset table. */
#ifndef T_TINY_H
#define T_TINY_H

#include "runtime/sl_synth.h"
#include "tests/t.h"

/* The preset `like` with few and narrow layers; two of them with experts. */
static const sl_preset *t_tiny(const char *like, uint32_t n_vocab, sl_preset *p)
{
    const sl_preset *row = sl_preset_find(like);
    T_NEED(row, "no preset %s", like);
    *p = *row;
    p->n_layer = p->n_dense ? p->n_dense + 2 : 2;
    p->d_model = 512;
    p->n_vocab = n_vocab;
    p->n_ctx = 1024;
    p->n_head = 8;
    p->n_expert = 8;
    p->n_used = 3;
    p->d_expert = 256;
    if (p->d_shared) p->d_shared = 256 * p->n_shared;
    if (p->d_dense) p->d_dense = 768;
    if (p->kv_lora) {
        p->kv_lora = 128, p->nope = 64, p->n_rot = 32, p->v_head = 64;
    } else {
        p->n_rot = p->n_rot * 64 / p->head_dim;
        p->head_dim = 64;
        p->n_head_kv = 2;
    }
    return p;
}

#endif
