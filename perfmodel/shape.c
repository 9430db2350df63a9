/* perfmodel/shape.c - a shape from a list of tensors: each is counted where its name says. */
#include "perfmodel/sl_shape.h"

#include <stdio.h>
#include <string.h>

/* A matrix, or the part of one that is counted in a class. */
typedef struct piece {
    sl_type type;
    uint64_t elems, bytes;
    bool vector;
} piece;

typedef struct bin {
    sl_part *parts;
    uint32_t n_parts;
    uint64_t *bytes, *flops, *int_flops;
} bin;

#define BIN(l, c) (bin){ (l)->c, SL_SHAPE_TYPES, &(l)->c##_bytes, &(l)->c##_flops_row, \
                         &(l)->c##_int_flops_row }

static void count(bin b, const piece *x)
{
    *b.bytes += x->bytes;
    if (x->vector) return;
    sl_part_add(b.parts, b.n_parts, x->type, x->elems);
    if (b.flops) *b.flops += 2 * x->elems;
    if (b.flops && sl_type_get(x->type)->block_elems > 1) *b.int_flops += 2 * x->elems;
}

static bool starts(const char *s, const char *head) { return !strncmp(s, head, strlen(head)); }

static bool ends_in(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

/* Experts of one kind in one tensor, or (old Mixtral files) a tensor for each: "ffn_up.7.weight".
 * False: no expert. *ret_one: the tensor is one expert's, *ret_index its number. */
static bool is_expert(const char *stem, bool *ret_one, unsigned *ret_index)
{
    *ret_one = sscanf(stem, "ffn_%*[a-z].%u.weight", ret_index) == 1;
    return *ret_one || (starts(stem, "ffn_") && strstr(stem, "_exps."));
}

static void add_expert(sl_shape_sum *m, sl_layer_shape *l, const char *stem, const uint64_t ne[4],
                       const piece *all, bool one)
{
    uint32_t n = one ? m->n_expert : (uint32_t)(ends_in(stem, ".bias") ? ne[1] : ne[2]);
    piece x = *all;
    if (!one) x.elems /= n, x.bytes /= n;
    count(BIN(l, expert), &x);
    l->n_expert = n;
    l->n_used = SL_MIN(m->n_used, n);
    if (x.vector) return;
    l->slot_bytes += starts(stem, "ffn_gate_up_") ? 2 * sl_shape_room(x.bytes / 2)
                                                  : sl_shape_room(x.bytes);
}

static void add_in_layer(sl_shape_sum *m, sl_layer_shape *l, const char *stem,
                         const uint64_t ne[4], const piece *x)
{
    unsigned index = 0;
    bool one = false;
    if (is_expert(stem, &one, &index)) {
        if (!index) add_expert(m, l, stem, ne, x, one);
        return;
    }
    if (!x->vector) l->section_bytes += sl_shape_room(x->bytes);
    if (!x->vector) m->widths.cols = SL_MAX(m->widths.cols, ne[0]);
    if (starts(stem, "attn_output") || starts(stem, "ssm_out") || starts(stem, "ffn_norm")
        || starts(stem, "post_attention_norm"))
        count(BIN(l, post), x);
    else if (starts(stem, "ffn_gate_inp.") || starts(stem, "exp_probs_b"))
        count((bin){ &l->router, 1, &l->router_bytes, NULL, NULL }, x);
    else if (starts(stem, "ffn_"))
        count(BIN(l, ffn), x);
    else
        count(BIN(l, qkv), x);
}

void sl_shape_sum_begin(sl_shape_sum *m, sl_layer_shape *layers, uint32_t n_layer)
{
    memset(layers, 0, n_layer * sizeof *layers);
    *m = (sl_shape_sum){ .layers = layers, .s = { .n_layer = n_layer, .layers = layers } };
}

bool sl_shape_sum_add(sl_shape_sum *m, const char *name, sl_type type, const uint64_t ne[4])
{
    uint64_t row = 0, rows = ne[1] * ne[2] * ne[3];
    unsigned layer = 0;
    int at = 0;
    if (!sl_type_row_bytes(type, ne[0], &row)) return false;
    piece x = { .type = type, .elems = ne[0] * rows, .bytes = row * rows,
                .vector = rows == 1 || ends_in(name, ".bias") };
    bool in_layer = sscanf(name, "blk.%u.%n", &layer, &at) == 1 && at;
    if (in_layer && layer >= m->s.n_layer) return true;     /* predicts further tokens (MTP) */
    m->s.total_bytes += x.bytes;
    m->s.n_params += x.elems;
    if (x.vector) m->s.vector_bytes += (x.elems + 15) / 16 * 16 * sizeof(float);
    if (in_layer) {
        add_in_layer(m, &m->layers[layer], name + at, ne, &x);
        return true;
    }
    if (!x.vector) m->s.ends_room += sl_shape_room(x.bytes);
    if (starts(name, "output.")) {
        count((bin){ &m->s.head, 1, &m->s.head_bytes, NULL, NULL }, &x);
    } else if (!strcmp(name, "token_embd.weight")) {
        m->s.embed_bytes = x.bytes;
        m->s.d_model = (uint32_t)ne[0];
        m->s.n_vocab = (uint32_t)ne[1];
        m->table = (sl_part){ type, x.elems };
    }
    return true;
}

#define WIDEN(field, value) (w->field = SL_MAX(w->field, (uint64_t)(value)))

void sl_shape_sum_attn(sl_shape_sum *m, uint32_t layer, const sl_shape_attn *a)
{
    sl_layer_shape *l = &m->layers[layer];
    sl_shape_widths *w = &m->widths;
    uint32_t both = a->k_dim | a->v_dim;
    l->k_elems = a->n_head_kv * a->k_dim;
    l->v_elems = a->latent ? 0 : a->n_head_kv * a->v_dim;
    l->kv_unit = both & -both;      /* their lowest common bit */
    l->window = a->window;
    l->q_elems = a->n_head * a->k_dim;
    l->att_elems = a->n_head * a->v_dim;
    l->ctx_flops_row = 2 * ((uint64_t)l->q_elems + l->att_elems);
    WIDEN(q, (uint64_t)a->n_head * a->k_dim);
    WIDEN(k, (uint64_t)a->n_head_kv * a->k_dim);
    WIDEN(v, (uint64_t)a->n_head_kv * a->v_dim);
    WIDEN(att, (uint64_t)a->n_head * a->v_dim);
    WIDEN(n_rot, a->n_rot);
    if (!a->latent) return;
    WIDEN(heads, a->n_head);
    WIDEN(mla, a->q_lora + (uint64_t)a->n_head * a->q_dim);
    WIDEN(mla, (uint64_t)a->n_head * a->v_head);
}

/* Activations of a lane, and what the cpu device takes beside them: floats of its own and the same
 * once more in 8 bits (offload/device_cpu.c, take_scratch). tests/t_engine.c holds them
 * together. */
uint64_t sl_shape_row_lane(const sl_shape_widths *w)
{
    return sizeof(float)
         * (3 * w->d_model + w->q + w->k + w->v + w->att + w->n_rot + 2 * w->n_used + 1);
}

uint64_t sl_shape_row_scratch(const sl_shape_widths *w)
{
    uint64_t device = w->mla + w->n_expert + w->ff_sum;
    uint64_t inputs = SL_MAX(2 * (w->cols * 5 / 4 + 192),
                             SL_MAX(w->mla, w->att) * 5 / 4 + 192 * w->heads);
    return sl_shape_row_lane(w) + sizeof(float) * device + inputs + w->ff_sum * 5 / 4
         + 192 * (w->n_used + 1);
}

static uint64_t elems_of(const sl_part *parts)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < SL_SHAPE_TYPES; i++) n += parts[i].elems;
    return n;
}

sl_shape sl_shape_sum_end(sl_shape_sum *m)
{
    sl_shape *s = &m->s;
    sl_shape_widths *w = &m->widths;
    if (!s->head.elems) s->head = m->table;     /* tied */
    s->head_int = s->head.elems && sl_type_get(s->head.type)->block_elems > 1;
    w->d_model = s->d_model;
    WIDEN(cols, s->d_model);
    for (uint32_t i = 0; i < s->n_layer && s->d_model; i++) {
        const sl_layer_shape *l = &m->layers[i];
        uint64_t ff = elems_of(l->ffn) / 3 / s->d_model,    /* gate, up, down */
                 expert = elems_of(l->expert) / 3 / s->d_model;
        s->experts_bytes += l->expert_bytes * l->n_expert;
        WIDEN(n_used, l->n_used);
        WIDEN(n_expert, l->n_expert);
        WIDEN(cols, expert);
        WIDEN(ff_sum, l->n_used * expert + ff);
    }
    s->dense_bytes = s->total_bytes - SL_MIN(s->experts_bytes, s->total_bytes);
    s->n_rot = (uint32_t)w->n_rot;
    s->row_scratch_bytes = sl_shape_row_scratch(w);
    s->row_lane_bytes = sl_shape_row_lane(w);
    return *s;
}
