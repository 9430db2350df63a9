/* offload/sl_stream.h - weights on their way from disk to where a layer computes: experts in slots,
 * and the dense weights of layers that do not fit, through two sections in the order of the layers.
 * Owns the slots, the sections and what is read into them; decides nothing that sl_ecache.h
 * decides.
 * Must not compute, or know what a model is. Threads: the one that made the store. Nothing
 * allocates after create. Units: bytes, seconds. Tested by tests/t_stream.c.
 *
 * A layer's life:
 *     begin(ask)                  reads for the misses leave at once
 *     ready(...) until all n      weights in RAM, as they land or in ascending order
 *     done(index) for each        computed: the slot may be used anew
 * and around it, for layers whose dense weights are streamed: dense(layer) ...
 * dense_done(layer). */
#ifndef SL_STREAM_H
#define SL_STREAM_H

#include "offload/sl_ahead.h"
#include "offload/sl_ecache.h"
#include "offload/sl_store.h"
#include "perfmodel/sl_plan.h"

typedef struct sl_stream sl_stream;

typedef struct sl_expert_slices { sl_slice gate, up, down; } sl_expert_slices;
/* The slices' bytes in RAM, until the expert is done. gate NULL: they could not be read. */
typedef struct sl_expert_data { const void *gate, *up, *down; } sl_expert_data;

typedef struct sl_stream_params {
    const sl_plan *plan;                /* classes, sections, where weights lie; copied */
    const sl_shape *shape;              /* layers, experts, slot classes; used at create only */
    uint32_t n_expert, n_used;          /* most of any layer; n_expert is the stride of `experts` */
    const sl_expert_slices *experts;    /* [n_layer][n_expert]; must outlive the stream */
    /* dense slices of the layers from plan->n_dense_layers on: those of layer l are
     * dense[dense_first[l - n_dense_layers] .. dense_first[l - n_dense_layers + 1]). NULL: none.
     * Both must outlive the stream. */
    const sl_slice *dense;
    const uint32_t *dense_first;
    /* a table of rows that stays on disk, with room for plan->embed_rows_bytes of them; unused
     * where that is 0 */
    sl_slice table;
    uint64_t row_bytes;
    sl_policy policy;
    bool no_ahead;                      /* never read what nobody asked for yet */
} sl_stream_params;

/* Takes slots and sections (SL_ACC_SLOTS) and registers them with the store, which must outlive the
 * stream. With a slot for every expert (plan->weights SL_WEIGHTS_RESIDENT) sl_stream_fill must come
 * next; SL_WEIGHTS_MAPPED: slices are mapped here. Errors: SL_E_NOMEM, SL_E_ARG, SL_E_IO (map). The
 * caller owns *ret. */
SL_API SL_NODISCARD sl_status sl_stream_create(sl_ctx *ctx, sl_store *store,
                                               const sl_stream_params *p, sl_stream **ret);
SL_API void sl_stream_destroy(sl_stream **s);   /* *s may be NULL, and is NULL afterwards */

/* Reads every expert into its slot, in the files' order. progress may be NULL. Errors: SL_E_IO. */
SL_API SL_NODISCARD sl_status sl_stream_fill(sl_ctx *ctx, sl_stream *s, sl_progress_fn progress,
                                             void *user);

/* Experts of a layer from `first` on, in slots: for who copies them elsewhere before the first
 * layer begins. As many as fit, n at most; they hold until the next call. Errors: SL_E_IO. */
SL_API SL_NODISCARD sl_status sl_stream_load(sl_ctx *ctx, sl_stream *s, uint32_t layer,
                                             uint32_t first, uint32_t n, sl_expert_data *ret_data,
                                             uint32_t *ret_n);

/* Where an expert lies, of a stream that has a place for each (SL_WEIGHTS_RESIDENT): its slices are
 * in one slot, in this order. */
SL_API sl_expert_data sl_stream_place(const sl_stream *s, uint32_t layer, uint32_t expert);
/* Pieces of memory that all slots lie in; false: there is no i-th. */
SL_API bool sl_stream_memory(const sl_stream *s, uint32_t i, void **ret, uint64_t *ret_bytes);

/* What a layer's router answered. */
typedef struct sl_stream_ask {
    uint32_t layer;
    const uint32_t *ids;                /* [n] the distinct experts, ascending */
    uint32_t n;
    /* [n_rows][n_used], [n_rows]: as sl_ecache_touch wants them */
    const uint32_t *expert_id, *seq;
    uint32_t n_rows, n_used;
    bool in_order;                      /* ready gives them as ids has them, else as they land */
} sl_stream_ask;

/* Reads for the misses leave. Only one layer at a time; ids is copied. */
SL_API void sl_stream_begin(sl_stream *s, const sl_stream_ask *ask);
/* Begun experts whose weights are there and that were not given out yet: their indices into ids,
 * ascending, and their data. Waits until there is one. Returns how many (0: all were given out).
 * Those given out before must be done by now: others may wait for their slots.
 * One that could not be read is given out once, without data; sl_stream_error says why. */
SL_API uint32_t sl_stream_ready(sl_stream *s, uint32_t *ret_index, sl_expert_data *ret_data);
SL_API void sl_stream_done(sl_stream *s, uint32_t index);   /* of an expert given out with data */

/* The layer's router will ask for these soon: surely (read like what is asked for), or probably
 * (read while the disk has nothing else to do). As many as a quarter of the slots takes; to be
 * called again as slots become free. */
SL_API void sl_stream_ahead(sl_stream *s, uint32_t layer, const uint32_t *ids, uint32_t n,
                            bool surely);
/* Are guesses wanted for this pass? No where there is nothing to stream, and no where they were
 * tried and did not pay (offload/sl_ahead.h). */
SL_API bool sl_stream_wants_guess(const sl_stream *s);

/* All layers of a pass are computed: passes with guesses are timed against those without, from the
 * first begin to here. */
SL_API void sl_stream_pass_done(sl_stream *s);

/* The layer's dense slices, one after another, each at sl_store_lead behind a multiple of
 * SL_STORE_ALIGN and sl_store_room long. Waits for them. Errors: SL_E_IO. */
SL_API SL_NODISCARD sl_status sl_stream_dense(sl_ctx *ctx, sl_stream *s, uint32_t layer,
                                              const char **ret);
SL_API void sl_stream_dense_done(sl_stream *s, uint32_t layer);

/* Rows ids [n] of the table, until the next call: *ret [n][row_bytes]. ret_failed [n]: a row that
 * could not be read, whose bytes mean nothing. Waits for them. n <= plan->max_rows. */
SL_API void sl_stream_rows(sl_stream *s, const int32_t *ids, uint32_t n, const void **ret,
                           bool *ret_failed);

/* Why the last expert without data has none: one line with the file and the slice. */
SL_API const char *sl_stream_error(const sl_stream *s);

typedef struct sl_stream_stats {
    /* of experts that layers asked for; one read ahead in time is a hit */
    uint64_t hits, misses;
    uint64_t read_bytes;        /* of slices that layers asked for, dense ones included */
    uint64_t ahead_bytes;       /* of slices read ahead ... */
    uint64_t ahead_used_bytes;  /* ... and of those that were then asked for */
    double stall_s;             /* in which a layer waited and nothing was computed */
    uint64_t failed;            /* experts that could not be read */
    bool ahead_off;             /* guesses were tried and do not pay */
    sl_misses one_row;          /* of the layers' turns in passes of one row */
} sl_stream_stats;
SL_API void sl_stream_get_stats(const sl_stream *s, sl_stream_stats *ret);

/* Asserts the invariants of offload/stream.c, the cache's included. Between any two calls; the
 * stream must be the store's only user. O(slots^2 + experts): for tests. */
SL_API void sl_stream_check(const sl_stream *s);

#endif
