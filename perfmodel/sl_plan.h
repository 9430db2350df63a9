/* perfmodel/sl_plan.h - every decision taken before a run. The engine takes nothing else.
 * Weights are all in RAM, or experts (and dense weights that do not fit) are read from disk as they
 * are needed; the CPU computes everything, or shares the work with an accelerator. Pure functions
 * of numbers.
 * Units: bytes, positions, rows. Tested by tests/t_plan.c. */
#ifndef SL_PLAN_H
#define SL_PLAN_H

#include "perfmodel/sl_shape.h"
#include "runtime/base/sl_type.h"

/* An accelerator beside the CPU, and what an emulated one is like. */
typedef enum sl_accel_kind { SL_ACCEL_NONE, SL_ACCEL_EMU, SL_ACCEL_CUDA } sl_accel_kind;
typedef struct sl_accel {
    sl_accel_kind kind;
    uint32_t index;         /* cuda: which card */
    char name[64];          /* cuda: what its driver calls it; empty: nobody asked */
    uint32_t n_cores;       /* emu: of the machine's cores, those that compute for it */
    uint64_t mem_bytes;     /* what all of it may come to on the device */
    uint64_t own_bytes;     /* of these, what the device takes for itself: context, workspaces */
    double up_bytes_s, down_bytes_s;    /* emu: of its links; 0: no limit */
    double link_s;          /* emu: from the end of a copy on its link until it is over */
} sl_accel;

typedef enum sl_where { SL_ON_CPU, SL_ON_DEVICE } sl_where;

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
    bool resident;          /* all weights in RAM, or there is no plan */
    /* of the budget, for what the plan does not see: code, tables, stacks */
    uint64_t process_bytes;
    uint32_t policy;        /* which experts keep their slots: sl_policy (offload/sl_ecache.h) */
    bool no_ahead;          /* experts are read only when a router asked for them */
    uint32_t read_depth, read_bytes;    /* of the disk's requests; 0: the store's defaults */
    /* of streamed models: at most so many leading layers keep their dense weights in RAM; with an
     * accelerator, whatever the model: on it. Default UINT32_MAX: as many as fit */
    uint32_t max_dense_layers;
    /* instructions kernels may use: sl_cpu_from_isa's; default ~0u: all there are */
    uint32_t cpu_mask;
    /* multiply quantised weights by float32 activations: slower, for comparing */
    bool float_acts;
    bool blas;              /* sl_device_params (offload/sl_device.h); default false */
    sl_accel accel;         /* default: none, and what follows is not looked at */
    /* wishes, taken where they fit; SL_PLAN_AUTO (the default): the plan chooses */
    uint32_t n_lanes;       /* 1 or 2 */
    uint32_t kv_on, prompts_on, head_on;    /* sl_where */
    uint32_t n_stay, send_rows, send_all_rows;  /* as in sl_split */
    bool stay_fixed;        /* the first experts stay, whatever is used */
} sl_plan_params;

#define SL_PLAN_AUTO UINT32_MAX
#define SL_PLAN_NEVER (UINT32_MAX - 1)

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

/* What an accelerator has of a pass, and how the rest of it gets there. It computes qkv, post,
 * route, dense FFNs and shared experts; embed is the CPU's. Norms, biases and other vectors stay on
 * it. All else that it multiplies with either stays there or is sent up in each pass, in the order
 * of use, through a ring. */
typedef struct sl_split {
    sl_accel accel;         /* kind SL_ACCEL_NONE: the CPU does everything; all of this is 0 then */
    /* Where keys and values lie. On the device: it attends for all rows. On the CPU: the CPU
     * attends for rows that decode, and `prompts` says who does for the other rows. */
    sl_where kv, prompts;
    sl_where head;          /* who multiplies with the head */
    bool head_stays;        /* head on the device: its matrix stays there */
    /* Parts of a pass's rows that take turns, of lane_rows at most; each has its own buffers. A
     * pass of fewer than send_all_rows rows is one part. */
    uint32_t n_lanes, lane_rows;
    uint32_t n_dense_layers;    /* leading layers whose dense matrices stay on the device */
    /* Routed experts: n_stay of each layer stay on the device: the first, or, with stay_follow, as
     * routing goes those that are used most (runtime/board.h; on a card, whose bits are not the
     * CPU's, results then depend on what was computed before). Of the others, one that gets at
     * least send_rows rows of a lane is sent up and computed there; with fewer the CPU computes it
     * where it lies (Fiddler's rule). A pass of at least send_all_rows rows sends up all of them,
     * before its routers have spoken; SL_PLAN_NEVER where they come from disk. */
    uint32_t n_stay, send_rows, send_all_rows;
    bool stay_follow;
    uint64_t ring_bytes;    /* what is sent up passes through; of at most piece_bytes a copy */
    uint64_t piece_bytes;
    /* Room for outputs of experts that wait for their turn to be added: this many [d_model] of a
     * lane, on the device and in RAM. */
    uint32_t stored_runs;
    /* Prompts on the device while KV lies in RAM, else 0: it has room for so many positions of one
     * layer and lane, a multiple of the KV block. Where a lane's prompt rows see more, the CPU
     * attends for them. */
    uint32_t prompt_positions;
    /* device memory, by account; their sum with accel.own_bytes is need_bytes */
    uint64_t dense_bytes;   /* SL_ACC_DENSE: what stays, but for experts */
    uint64_t stay_bytes;    /* SL_ACC_SLOTS: experts that stay; the ring besides */
    uint64_t kv_bytes;      /* SL_ACC_KV */
    uint64_t scratch_bytes; /* SL_ACC_SCRATCH: activations of all lanes */
    uint64_t need_bytes;
} sl_split;

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
    sl_split split;         /* of the work with an accelerator */
} sl_plan;

SL_API sl_plan_params sl_plan_defaults(void);

/* Errors: SL_E_ARG (zero rows or sequences; another KV type, or blocks of it that heads cannot
 * hold; a context above what the model was made for is allowed), SL_E_NOMEM (ram_bytes is below
 * the floor: keys and values, scratch, embedding and head, two sections and two slots of each
 * class; the message prints it and what would lower it; or an accelerator's memory is below its
 * own: vectors, scratch, and a ring for one layer). A pass gets fewer rows before that is said.
 * SL_E_UNSUPPORTED: an accelerator, and more weights beside the experts than fit RAM; p->resident,
 * and not all weights fit. */
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
