/* offload/sl_ecache.h - which expert sits in which slot: the table, the pins, and the policy that
 * names a victim. Owns its tables. Must not move a byte, read a clock or know a model: it sees
 * layers, sequences and expert numbers, so a recorded trace tests it (tests/replay.c).
 * Threads: one at a time. Nothing allocates after create. Tested by tests/t_ecache.c.
 *
 * The use, in a pass that reaches a layer and knows its router's answer:
 *     touch(layer, the answer)                        what the policy learns from
 *     for each expert: find -> slot, pin(slot)        the hits, all pinned before the first take
 *     for each miss: take -> slot, pinned             its bytes are read to there; or drop(slot)
 *     compute; unpin every slot                       from here on each may be a victim
 * Bypass: every expert that is computed needs a slot for the moment, but a victim is the unpinned
 * slot of least value, the experts just used included. One of low value is the next victim. */
#ifndef SL_ECACHE_H
#define SL_ECACHE_H

#include "runtime/base/sl_base.h"

#define SL_ECACHE_NONE UINT32_MAX       /* no slot, no expert */
#define SL_ECACHE_NO_CLASS UINT32_MAX   /* of a layer without experts */

typedef enum sl_policy {
    SL_POLICY_MARKOV,       /* least likely to be used by the next pass, weighed by how far off that
                             * is: from its frequency and from what followed the layer's choices */
    SL_POLICY_LFU,          /* least frequently used, older uses counting less (half_life) */
    SL_POLICY_LRU,          /* least recently used; experts of one layer and pass are equal */
    SL_POLICY_STATIC,       /* least popular by the table of the parameters */
    SL_N_POLICIES
} sl_policy;
#define SL_POLICY_DEFAULT SL_POLICY_MARKOV  /* best on recorded traces: docs/learned.md */

SL_API const char *sl_policy_name(sl_policy p);             /* "markov" */
SL_API bool sl_policy_parse(const char *text, sl_policy *ret);

typedef struct sl_ecache_params {
    uint32_t n_layer, n_expert;
    uint32_t n_used;                /* most experts of a row in a layer */
    uint32_t n_seq;                 /* sequences are numbered below it; at least 1 */
    /* [n_layer] slot class of a layer's experts, or SL_ECACHE_NO_CLASS. NULL: all in class 0 */
    const uint32_t *layer_class;
    uint32_t n_classes;             /* at least 1 */
    const uint32_t *class_slots;    /* [n_classes] */
    sl_policy policy;
    bool per_layer;                 /* the slots of a class divided evenly among its layers; false:
                                     * one pool for them all */
    float half_life;                /* of counted frequencies, in rows; 0: the default, 32 */
    const float *popularity;        /* [n_layer][n_expert], finite; STATIC only, NULL otherwise */
} sl_ecache_params;

typedef struct sl_ecache sl_ecache;

/* Slots are numbered through all classes in their order: class k has those from the sum of
 * class_slots before it. All are free. The parameters are copied; memory is SL_ACC_TABLES. Errors:
 * SL_E_ARG (no layers, experts, sequences or classes; a class that does not exist; fewer slots in a
 * class than pools; STATIC without popularity), SL_E_NOMEM. The caller owns *ret; ctx must outlive
 * it. */
SL_API SL_NODISCARD sl_status sl_ecache_create(sl_ctx *ctx, const sl_ecache_params *p,
                                               sl_ecache **ret);
/* Bytes that create takes: MARKOV needs n_layer * n_expert^2 floats for what follows what. */
SL_API uint64_t sl_ecache_bytes(const sl_ecache_params *p);
SL_API void sl_ecache_destroy(sl_ecache **c);   /* *c may be NULL, and is NULL afterwards */

SL_API uint32_t sl_ecache_n_slots(const sl_ecache *c);
SL_API uint32_t sl_ecache_n_used(const sl_ecache *c);       /* slots that hold an expert */

/* A pass reached this layer, and its router chose expert_id [n_rows][n_used], distinct in a row,
 * for the rows of the sequences seq [n_rows] (NULL: all of sequence 0), a sequence's rows in the
 * order of their positions. Each layer with experts is touched once a pass, in ascending order.
 * O(n_rows * n_used * n_expert), about 1 us for a row of 8 of 128 experts. */
SL_API void sl_ecache_touch(sl_ecache *c, uint32_t layer, const uint32_t *expert_id,
                            const uint32_t *seq, uint32_t n_rows, uint32_t n_used);

/* The expert's slot, or SL_ECACHE_NONE. O(1). */
SL_API uint32_t sl_ecache_find(const sl_ecache *c, uint32_t layer, uint32_t id);
/* The expert in the slot as layer * n_expert + id, or SL_ECACHE_NONE. O(1). */
SL_API uint32_t sl_ecache_expert_in(const sl_ecache *c, uint32_t slot);

/* A slot for an expert that has none: a free one, else the victim's. It holds the expert from now
 * on (find sees it) and is pinned once. *ret_evicted: the expert that sat there, or SL_ECACHE_NONE.
 * SL_ECACHE_NONE: every slot of the pool is pinned; nothing changed, *ret_evicted is not written.
 * O(slots of the pool): about 1 ns each. */
SL_API uint32_t sl_ecache_take(sl_ecache *c, uint32_t layer, uint32_t id, uint32_t *ret_evicted);

/* For who can do without a slot: is an expert that has none worth more, by `margin` at least, than
 * what would make way for it? True where a slot is free, false where all are pinned. LFU's values
 * are shares of rows: with m / half_life an expert gets its slot when it is likely to be used m
 * times more than the other while that lasts. O(slots of the pool). */
SL_API bool sl_ecache_admits(const sl_ecache *c, uint32_t layer, uint32_t id, double margin);

/* Counted; a pinned slot is never a victim. */
SL_API void sl_ecache_pin(sl_ecache *c, uint32_t slot);
SL_API void sl_ecache_unpin(sl_ecache *c, uint32_t slot);
SL_API uint32_t sl_ecache_pins(const sl_ecache *c, uint32_t slot);
/* The read into the slot failed or was given up: the slot is empty, free, and has no pins. */
SL_API void sl_ecache_drop(sl_ecache *c, uint32_t slot);

/* Asserts the invariants of offload/ecache.c. O(slots + experts): for tests. */
SL_API void sl_ecache_check(const sl_ecache *c);

#endif
