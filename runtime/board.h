/* runtime/board.h - a model's weights on an accelerator: what a plan keeps there, and what passes
 * through a ring in each pass.
 * Weights are sent in the order in which a pass uses them, in items: the matrices of a layer in
 * front of its experts, experts, the matrices behind them (dense FFN, shared expert), the head. A
 * pass either sends all experts, then items of the next layers and of the next pass are on their
 * way as soon as there is room; or those that are asked for, which may come from disk.
 * Which experts stay: at first those with the lowest numbers. Where the plan says so they follow
 * the routing: behind a layer's turn one that is missing there may take the place of one that is
 * used less (sl_ecache.h decides), and is there from the next pass on.
 *
 * Invariants, checked with asserts:
 *   B1  items in the ring lie in the order in which they were sent, and none is written over before
 *       all lanes have used it and the copies wait for that (board_done)
 *   B2  pointers of a layer hold from board_use to board_done of the item behind them
 *   B3  experts change places in passes that do not send all of them only, and never one that the
 *       pass uses; `away` has those of a layer that do not stay
 * The driver never waits here: queues do. Belongs to one engine; private to runtime/. Nothing
 * allocates after init. Tested by tests/t_split.c. */
#ifndef BOARD_H
#define BOARD_H

#include "offload/sl_device.h"
#include "offload/sl_ecache.h"
#include "runtime/weights.h"

typedef enum item_kind { ITEM_FRONT, ITEM_EXPERTS, ITEM_BACK, ITEM_HEAD } item_kind;

/* A matrix of an item. */
typedef struct board_part {
    uint32_t binding;           /* the first one with its tensor */
    uint64_t at;                /* behind the item's start */
} board_part;

typedef struct board_item {
    item_kind kind;
    uint32_t layer;
    uint32_t first, n;          /* of the layer's `away`, or parts */
    uint64_t bytes;
} board_item;

/* An item in the ring. */
typedef struct board_flight {
    uint32_t item;              /* UINT32_MAX: an expert that was asked for */
    uint32_t layer, expert;
    const void *from;           /* of an expert */
    uint64_t at, bytes;
    uint32_t lanes_left;        /* that will use it; 0: its room may be taken behind `used` */
    sl_event sent, used;
} board_flight;

typedef struct board {
    sl_ctx *ctx;
    sl_device *dev;
    const sl_model *m;
    weights *host;
    const sl_split *split;
    bool streamed;              /* experts come from disk, when a router asks for them */
    sl_layer *layers;           /* [n_layer] pointers into the device */
    ends ends;
    char *floats, *dense, *stay, *ring;     /* device memory */
    board_part *parts;
    uint32_t n_parts;
    uint64_t *stay_at;          /* [n_layer] the layer's experts that stay, [n_stay] slots each */
    sl_ecache *cache;           /* which slot has which of them; NULL: expert x is in slot x */
    uint32_t *first_slot;       /* [n_layer] of the cache */
    uint32_t *away;             /* [n_layer][n_expert] those that do not stay, ascending */
    sl_event kept;              /* copies of those that came to stay, until stages wait for them */
    uint32_t kept_age;          /* events on that queue since */
    uint64_t hits, misses;      /* experts asked for, of layers where some stay and some do not */
    uint64_t n_kept;            /* that came to stay */
    uint64_t *slot_bytes;       /* [n_layer] room of one */
    board_item *items;          /* of a pass that sends all experts */
    uint32_t n_items, next;
    uint32_t *first_group, *n_groups;   /* [n_layer] the layer's items of experts */
    bool all;                   /* this pass sends all experts */
    uint32_t n_lanes;           /* of this pass */
    /* asked for and not sent yet */
    uint32_t *asked, n_asked, asked_at, asked_layer;
    board_flight *flights;      /* a ring of cap_flights, n of them from `oldest` on */
    uint32_t cap_flights, oldest, n_flights;
    uint64_t head;              /* where the next item goes */
    void *pinned[SL_SLOT_CLASSES + 2];
    uint32_t n_pinned;
    uint64_t sent_bytes;        /* so far */
} board;

/* Takes all memory, sends what stays, and waits for it. Errors: SL_E_NOMEM, SL_E_DEVICE. board_fini
 * in either case. */
sl_status board_init(sl_ctx *ctx, sl_device *dev, weights *host, const sl_plan *plan, board *b);
void board_fini(board *b);

/* A pass begins, when all work of the one before is over: which experts are sent, and how many
 * lanes will use each item. */
sl_status board_begin(board *b, bool all, uint32_t n_lanes);
/* Sends on as far as there is room. */
sl_status board_pump(board *b);
/* Without `all`: experts that the layer's router named, ascending, and which do not stay. */
void board_ask(board *b, uint32_t layer, const uint32_t *ids, uint32_t n);

/* Instead, where experts come from disk: one of the layer whose router answered last, from its
 * slot. Behind the last of them board_ask without any. */
sl_status board_send(board *b, uint32_t layer, uint32_t expert, sl_expert_data from);
/* The driver waits until all that was sent is there: slots may be used anew. */
sl_status board_sync(board *b);

/* The compute queue waits for the layer's matrices in front of its experts, or behind them, or for
 * the head; their pointers are in b->layers and b->ends then. */
sl_status board_use(board *b, item_kind kind, uint32_t layer);
/* The lane has submitted everything that uses them. */
sl_status board_done(board *b, item_kind kind, uint32_t layer);

/* With `all`: a layer's experts come in n_groups[l] items from first_group[l] on. The compute
 * queue waits for item i. */
sl_status board_use_group(board *b, uint32_t i);
sl_status board_done_group(board *b, uint32_t i);
/* Without: for one expert that was asked for. */
sl_status board_use_expert(board *b, uint32_t layer, uint32_t expert);
sl_status board_done_expert(board *b, uint32_t layer, uint32_t expert);

/* Does the expert stay, that is: may stages use it without asking? */
bool board_stays(const board *b, uint32_t layer, uint32_t expert);
/* Of those that do not stay, the first and the last in group i. */
uint32_t board_group_first(const board *b, uint32_t i);
uint32_t board_group_last(const board *b, uint32_t i);
/* The layer's router answered, for the rows of one lane. */
void board_learn(board *b, uint32_t layer, const sl_batch *answer, uint32_t n_used);
/* Without `all`: of the layer's experts of this pass, ids [n], those that had better stay are sent
 * to where others stayed. From here on board_stays says so, of the next pass. */
sl_status board_keep(board *b, uint32_t layer, const uint32_t *ids, uint32_t n);

/* Where an expert's slices lie on the device: one that stays, or is in use. */
sl_expert_data board_expert(const board *b, uint32_t layer, uint32_t expert);

#endif
