/* runtime/weights.h - a model's weights where a plan wants them: read into RAM, mapped, or
 * streamed.
 * Belongs to one engine. Private to runtime/. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "runtime/model.h"

/* While weights are streamed a pass waits for the disk again and again, some ms at a time: neither
 * the driver nor the workers sleep at once, since waking up costs a layer 0.2 to 0.3 ms. But not
 * for long: below a virtual disk a host copies on the very cores that they would keep busy. */
#define STREAM_AWAKE_S 2e-4

typedef struct weights {
    sl_ctx *ctx;
    const sl_model *m;
    uint32_t n_dense_layers;    /* of the plan */
    bool embed_on_disk;         /* rows come by sl_stream_rows */
    uint64_t open_bytes, open_read; /* what open reads, and has read so far */
    sl_store *store;
    sl_stream *stream;
    ends ends;                  /* the model's, with data */
    sl_layer *layers;           /* [n_layer] with data; of streamed layers between use and done */
    char *dense;                /* matrices that stay */
    float *floats;              /* of all bindings but BIND_BYTES */
    uint64_t dense_bytes, floats_bytes;
    /* streamed layers: their bindings, and where each one's tensor starts in the section */
    uint32_t *first_binding;    /* [n_layer + 1] */
    uint64_t *section_at;       /* [n_bindings] */
    sl_slice *slices;           /* [n_slices] what the sections hold */
    uint32_t *first_slice;      /* [n_layer - n_dense_layers + 1] */
} weights;

/* Tells the model's progress. Errors: SL_E_IO, SL_E_NOMEM. weights_fini in either case. */
sl_status weights_init(sl_ctx *ctx, const sl_model *m, const sl_plan *plan, weights *w);
void weights_fini(weights *w);

/* Layer l's dense weights are wanted: its pointers hold until weights_done. Errors: SL_E_IO. */
sl_status weights_use(weights *w, uint32_t l);
void weights_done(weights *w, uint32_t l);

/* The engine's own copy of what a binding of the model points to. */
const void **weights_own(weights *w, const binding *b);
/* The first binding of matrices, from 0 on, that has the tensor of the i-th; i itself if there is
 * none before it. */
uint32_t weights_first(const weights *w, uint32_t i);

/* The divisors that a context of n_ctx positions uses; NULL: none. */
const float *weights_rope_freqs(const weights *w, uint32_t n_ctx);

#endif
