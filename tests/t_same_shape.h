/* tests/t_same_shape.h - two shapes, field by field. */
#ifndef T_SAME_SHAPE_H
#define T_SAME_SHAPE_H

#include "perfmodel/sl_shape.h"
#include "tests/t.h"

typedef unsigned long long ull;
#define SAME(a, b, field) \
    T_CHECK((a)->field == (b)->field, "%s: " #field " is %llu, expected %llu", what, \
            (ull)(a)->field, (ull)(b)->field)
#define SAME_PARTS(field, n) \
    for (uint32_t t_ = 0; t_ < (n); t_++) { \
        const sl_part *x_ = &(a)->field + t_, *y_ = &(b)->field + t_; \
        T_CHECK(x_->elems == y_->elems && x_->type == y_->type, \
                "%s: " #field "[%u] is %llu of type %d, expected %llu of type %d", what, t_, \
                (ull)x_->elems, x_->type, (ull)y_->elems, y_->type); \
    }

static void same_layer(const sl_layer_shape *a, const sl_layer_shape *b, const char *what)
{
    SAME_PARTS(qkv[0], SL_SHAPE_TYPES);
    SAME_PARTS(post[0], SL_SHAPE_TYPES);
    SAME_PARTS(router, 1);
    SAME_PARTS(ffn[0], SL_SHAPE_TYPES);
    SAME_PARTS(expert[0], SL_SHAPE_TYPES);
    SAME(a, b, qkv_bytes);
    SAME(a, b, post_bytes);
    SAME(a, b, qkv_flops_row);
    SAME(a, b, post_flops_row);
    SAME(a, b, router_bytes);
    SAME(a, b, expert_bytes);
    SAME(a, b, expert_flops_row);
    SAME(a, b, slot_bytes);
    SAME(a, b, section_bytes);
    SAME(a, b, ffn_bytes);
    SAME(a, b, ffn_flops_row);
    SAME(a, b, n_expert);
    SAME(a, b, n_used);
    SAME(a, b, k_elems);
    SAME(a, b, v_elems);
    SAME(a, b, kv_unit);
    SAME(a, b, window);
    SAME(a, b, q_elems);
    SAME(a, b, att_elems);
    SAME(a, b, ctx_flops_row);
    SAME(a, b, qkv_int_flops_row);
    SAME(a, b, post_int_flops_row);
    SAME(a, b, expert_int_flops_row);
    SAME(a, b, ffn_int_flops_row);
}

static void same_shape(const sl_shape *a, const sl_shape *b, const char *name)
{
    const char *what = name;
    char in_layer[128];
    SAME(a, b, n_layer);
    SAME(a, b, d_model);
    SAME(a, b, n_vocab);
    SAME(a, b, n_ctx_train);
    SAME(a, b, n_rot);
    SAME(a, b, embed_bytes);
    SAME(a, b, head_bytes);
    SAME_PARTS(head, 1);
    SAME(a, b, head_int);
    SAME(a, b, dense_bytes);
    SAME(a, b, experts_bytes);
    SAME(a, b, total_bytes);
    SAME(a, b, ends_room);
    SAME(a, b, vector_bytes);
    SAME(a, b, n_params);
    SAME(a, b, row_scratch_bytes);
    SAME(a, b, row_lane_bytes);
    for (uint32_t l = 0; l < a->n_layer && a->n_layer == b->n_layer; l++) {
        snprintf(in_layer, sizeof in_layer, "%s layer %u", name, l);
        same_layer(&a->layers[l], &b->layers[l], in_layer);
    }
}

#endif
