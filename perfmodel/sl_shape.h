/* perfmodel/sl_shape.h - numbers that describe a model: bytes and operations per layer and class.
 * Plain data; runtime fills it from a GGUF (later also from presets and config.json).
 * Must not read a clock, file or device. Units: bytes, flops (a multiply-add is 2), elements. */
#ifndef SL_SHAPE_H
#define SL_SHAPE_H

#include "runtime/base/sl_base.h"
#include "runtime/base/sl_type.h"

/* Room that n bytes of a file take in memory: the disk is read in whole blocks of 4 KiB, and the
 * bytes may start anywhere in one. */
static inline uint64_t sl_shape_room(uint64_t n)
{
    return (n + 4095) / 4096 * 4096 + 4096;
}

/* Weights of one type among the matrices of a class; elems 0: no more. Types beyond the last are
 * counted with it. Norms and biases are in a class's bytes, but no part. */
enum { SL_SHAPE_TYPES = 4 };
typedef struct sl_part { sl_type type; uint64_t elems; } sl_part;

static inline void sl_part_add(sl_part *parts, uint32_t n, sl_type type, uint64_t elems)
{
    uint32_t i = 0;
    if (!n) return;
    while (i + 1 < n && parts[i].elems && parts[i].type != type) i++;
    if (!parts[i].elems) parts[i].type = type;
    parts[i].elems += elems;
}

typedef struct sl_layer_shape {
    /* what a row is multiplied by */
    sl_part qkv[SL_SHAPE_TYPES], post[SL_SHAPE_TYPES], router, ffn[SL_SHAPE_TYPES];
    sl_part expert[SL_SHAPE_TYPES];     /* of one expert */
    uint64_t qkv_bytes, post_bytes;     /* projections in front of and behind the attention */
    uint64_t qkv_flops_row, post_flops_row;
    uint64_t router_bytes;      /* 0: a dense layer */
    uint64_t expert_bytes;      /* one expert: gate, up, down */
    uint64_t expert_flops_row;  /* one expert on one row */
    uint64_t slot_bytes;        /* room of one expert in RAM: sl_shape_room of its three slices */
    uint64_t section_bytes;     /* room of the layer's other matrices, the router's included */
    uint64_t ffn_bytes;         /* dense FFN or shared expert */
    uint64_t ffn_flops_row;
    uint32_t n_expert, n_used;
    /* one cached position, all KV heads; v_elems 0: V is a prefix of K */
    uint32_t k_elems, v_elems;
    /* a power of two that divides each head's key and value; 0: not known */
    uint32_t kv_unit;
    uint32_t window;            /* 0: all positions */
    /* of a row, all query heads: queries, and what attention makes of them */
    uint32_t q_elems, att_elems;
    uint64_t ctx_flops_row;     /* scores and values: one row on one position */
    /* What of the flops is on quantised weights, which are multiplied as 8-bit integers. */
    uint64_t qkv_int_flops_row, post_int_flops_row, expert_int_flops_row, ffn_int_flops_row;
} sl_layer_shape;

typedef struct sl_shape {
    uint32_t n_layer, d_model, n_vocab;
    uint32_t n_ctx_train;       /* context the model was made for */
    uint32_t n_rot;             /* rope angles of a row, a cosine and a sine for each two */
    uint64_t embed_bytes;       /* the table; a row of it is read per token */
    uint64_t head_bytes;        /* 0 when tied: then the head reads the table */
    sl_part head;               /* what the head multiplies by, the table's when tied */
    bool head_int;              /* the matrix that the head reads is quantised */
    uint64_t dense_bytes;       /* everything that every token needs, embedding and head included */
    uint64_t experts_bytes;     /* all experts of all layers */
    uint64_t total_bytes;
    uint64_t ends_room;         /* room of embedding and head */
    uint64_t vector_bytes;      /* norms, biases and the like, kept as floats */
    uint64_t n_params;
    uint64_t row_scratch_bytes; /* activations of one row of a pass, and what computing it takes */
    uint64_t row_lane_bytes;    /* of these, the activations */
    const sl_layer_shape *layers;   /* [n_layer], owned by whoever filled the shape */
} sl_shape;

/* ---- a shape from a list of tensors ---- */

/* Widest of all layers, in elements: what the activations of a row take. */
typedef struct sl_shape_widths {
    uint64_t d_model, q, k, v, att;     /* att: query heads times v_dim */
    uint64_t n_used, n_expert, n_rot;
    uint64_t cols;              /* columns of the widest matrix */
    uint64_t heads, mla;        /* MLA, else 0: query heads; width of its inner activations */
    uint64_t ff_sum;            /* n_used * expert width + shared or dense width */
} sl_shape_widths;
SL_API uint64_t sl_shape_row_scratch(const sl_shape_widths *w);
SL_API uint64_t sl_shape_row_lane(const sl_shape_widths *w);

/* What no tensor says about a layer's attention. */
typedef struct sl_shape_attn {
    uint32_t n_head, n_head_kv, k_dim, v_dim;   /* as cached; MLA: one head of the latent */
    uint32_t n_rot, window;
    bool latent;                /* MLA, with these: */
    uint32_t q_lora, q_dim, v_head;     /* q_dim, v_head: of a head in front and behind */
} sl_shape_attn;

typedef struct sl_shape_sum {
    sl_shape s;
    sl_layer_shape *layers;
    uint32_t n_expert, n_used;  /* the caller's, before tensors are added */
    sl_shape_widths widths;
    sl_part table;
} sl_shape_sum;

/* layers [n_layer], the caller's; they become the shape's. */
SL_API void sl_shape_sum_begin(sl_shape_sum *m, sl_layer_shape *layers, uint32_t n_layer);
/* Counts a tensor where its GGUF name says: "blk.3.ffn_up_exps.weight". Names that are not known
 * count in front of the attention; layers past the last are passed over. False: such rows do not
 * exist in the type. The caller knows that the sizes do not overflow. */
SL_API bool sl_shape_sum_add(sl_shape_sum *m, const char *name, sl_type type,
                             const uint64_t ne[4]);
/* Layers it is not called for do not attend to other positions. */
SL_API void sl_shape_sum_attn(sl_shape_sum *m, uint32_t layer, const sl_shape_attn *a);
SL_API sl_shape sl_shape_sum_end(sl_shape_sum *m);

#endif
