/* perfmodel/sl_plan.h - every decision taken before a run. The engine takes nothing else.
 * Here: all on the CPU, with all weights in RAM, or experts (and dense weights that do not fit)
 * read from disk as they are needed. Pure functions of numbers.
 * Units: bytes, positions, rows. Tested by tests/t_plan.c. */
#ifndef SL_PLAN_H
#define SL_PLAN_H

#include "perfmodel/sl_shape.h"
#include "runtime/base/sl_type.h"

typedef struct sl_plan_params {
    uint32_t n_ctx;         /* positions a sequence may reach; 0: the model's own */
    uint32_t n_seq;         /* sequences alive at once; default 1 */
    /* positions of all sequences together, at least n_ctx; 0: n_seq * n_ctx. With fewer, sequences
     * wait for room, and the youngest give theirs back and are computed anew later */
    uint64_t kv_positions;
    bool share_prefixes;    /* sequences that begin alike share keys and values */
    uint32_t max_rows;      /* rows of a pass; default 512 */
    uint32_t n_threads;     /* 0: physical cores */
    sl_type kv_type;        /* SL_F16 (default), SL_F32, SL_BF16 or SL_Q8_0 */
    uint64_t ram_bytes;     /* budget; 0: no limit given */
    /* the budget is a promise: what the page cache holds for us counts too */
    bool ram_hard;
    /* of the budget, for what the plan does not see: code, tables, stacks */
    uint64_t process_bytes;
    uint32_t policy;        /* which experts keep their slots: sl_policy (offload/sl_ecache.h) */
    bool no_ahead;          /* experts are read only when a router asked for them */
    uint32_t read_depth, read_bytes;    /* of the disk's requests; 0: the store's defaults */
    /* of streamed models: at most so many leading layers keep their dense weights in RAM; default
     * UINT32_MAX: as many as fit */
    uint32_t max_dense_layers;
    /* instructions kernels may use: sl_cpu_from_isa's; default ~0u: all there are */
    uint32_t cpu_mask;
    /* multiply quantised weights by float32 activations: slower, for comparing */
    bool float_acts;
    bool blas;              /* sl_device_params (offload/sl_device.h); default false */
} sl_plan_params;

#define SL_KV_BLOCK_ROWS 32u    /* positions of a KV block; divides the attention key block of 64 */

typedef enum sl_weights_place {
    SL_WEIGHTS_RESIDENT,    /* read once, into memory of our own */
    SL_WEIGHTS_MAPPED,      /* the page cache's own pages: a copy beside them would not fit */
    SL_WEIGHTS_STREAMED     /* experts in slots, read when a router asks; never mapped */
} sl_weights_place;

/* Slots for experts of one size (files of mixed types have several). */
typedef struct sl_slot_class {
    uint64_t slot_bytes;
    uint32_t n_slots, n_experts;
} sl_slot_class;

/* The disk's requests where the plan says 0: offload/sl_store.h's defaults. */
#define SL_STORE_READ_DEPTH 64u
#define SL_STORE_READ_BYTES (1u << 20)

enum { SL_SLOT_CLASSES = 8 };   /* more sizes than this: all slots have the largest */
/* Memory that reads are registered for comes in pieces of this at most; no slot lies across two. */
#define SL_SLOT_PIECE ((uint64_t)1 << 30)

/* How often a layer's turn in a pass of one row found so many of its experts missing, by class of
 * slots: what the causal bound of such a pass is made of. */
enum { SL_MAX_MISSED = 64 };    /* more count as so many */
typedef struct sl_misses { uint64_t turns[SL_SLOT_CLASSES][SL_MAX_MISSED + 1]; } sl_misses;

typedef struct sl_plan {
    const char *mode;       /* "all in RAM, all on the CPU": the banner prints it */
    sl_weights_place weights;
    bool direct;            /* weights are read past the page cache */
    sl_slot_class cls[SL_SLOT_CLASSES];
    uint32_t n_classes;     /* not mapped: slots for every expert, or for some */
    uint32_t n_dense_layers;    /* leading layers whose dense weights stay in RAM */
    /* of each of two sections that the other layers' come through; 0: none */
    uint64_t section_bytes;
    uint64_t dense_bytes;   /* dense weights that stay */
    /* room of the rows of the embedding that a pass reads, where the table stays on disk; 0: it is
     * in RAM, as it must be when the head is the same table */
    uint64_t embed_rows_bytes;
    uint64_t slots_bytes;
    uint32_t stored_rows;   /* passes of at most so many rows compute experts as they arrive */
    uint64_t need_bytes;    /* all of it together, process_bytes included */
    uint32_t policy;        /* as in the params, as the next three */
    bool no_ahead;
    uint32_t read_depth, read_bytes;
    uint32_t n_ctx, n_seq, max_rows, n_threads;
    uint32_t max_logits;    /* rows of a pass whose logits are kept */
    sl_type kv_type;
    uint32_t kv_block_rows; /* SL_KV_BLOCK_ROWS */
    uint32_t n_kv_blocks;   /* of every layer */
    bool share_prefixes;    /* as in the params */
    uint64_t kv_bytes;      /* all blocks of all layers */
    uint64_t scratch_bytes; /* activations and logits of a pass, room to draw from them */
    uint64_t tables_bytes;  /* tokens of all sequences */
    uint64_t weights_bytes; /* of the model */
    uint64_t ram_bytes;     /* the budget it was made for; 0: none */
    uint32_t cpu_mask;      /* as in the params */
    bool float_acts, blas;  /* as in the params */
} sl_plan;

SL_API sl_plan_params sl_plan_defaults(void);

/* Errors: SL_E_ARG (zero rows or sequences; another KV type, or blocks of it that heads cannot
 * hold; a context above what the model was made for is allowed), SL_E_NOMEM (ram_bytes is below
 * the floor: keys and values, scratch, embedding and head, two sections and two slots of each
 * class; the message prints it and what would lower it). A pass gets fewer rows before that is
 * said. */
SL_API SL_NODISCARD sl_status sl_plan_make(sl_ctx *ctx, const sl_shape *shape,
                                           const sl_plan_params *p, sl_plan *ret);

/* Names a shape: equal for equal bytes, operations and layers. A saved plan is refused for a model
 * with another one. */
SL_API uint64_t sl_plan_shape_id(const sl_shape *shape);

/* The class of a layer's slots. The layer has experts. */
SL_API uint32_t sl_plan_class(const sl_plan *plan, const sl_layer_shape *layer);
/* Slots of a class that passes of many rows read through, the others keeping what they have: twice
 * what the disk has in flight, so that as much is computed meanwhile; at least 4. */
SL_API uint32_t sl_plan_ring(const sl_plan *plan, uint32_t slot_class);
/* Room of so many rows of an embedding table in which they are row_bytes apart. */
SL_API uint64_t sl_plan_rows_bytes(uint64_t row_bytes, uint32_t n);
/* Bytes of n slots, gaps at the ends of pieces included. */
SL_API uint64_t sl_plan_slots_bytes(uint64_t slot_bytes, uint64_t n);

#endif
