/* runtime/model.h - a model behind its handle: what the engine sees. Private to runtime/. */
#ifndef MODEL_H
#define MODEL_H

#include "offload/sl_store.h"
#include "runtime/hparams.h"
#include "runtime/sluice.h"

/* Where a pointer of a layer comes from: the file's bytes as they are, or floats made from them. */
typedef enum bind_kind {
    BIND_BYTES,             /* *dst = mapped bytes of the tensor, `skip` of them passed over */
    BIND_FLOATS,            /* *dst = the tensor as n floats */
    /* *dst = k_b [n_head][kv_lora][nope] as floats, turned round from attn_kv_b */
    BIND_KV_B_KEYS,
    /* *dst = v_b [n_head][v_head][kv_lora] as floats, picked from attn_kv_b */
    BIND_KV_B_VALUES
} bind_kind;

typedef struct binding {
    const sl_tensor *tensor;
    const void **dst;
    uint64_t skip, n;       /* bytes; floats */
    const sl_attn *attn;    /* BIND_KV_B_*: whose dimensions hold */
    bind_kind kind;
} binding;

/* The three slices of one expert; its biases are in the layer's template. */
typedef struct expert_slices { sl_slice gate, up, down; } expert_slices;
typedef struct expert_data { const void *gate, *up, *down; } expert_data;

struct sl_model {
    sl_ctx *ctx;
    sl_gguf *gguf;
    sl_vocab *vocab;
    const arch *arch;
    char *name;
    hparams hp;
    sl_widths widths;
    sl_shape shape;
    sl_layer_shape *layer_shapes;
    sl_weights weights;         /* rope is the engine's: it depends on the context */
    sl_layer *layers;
    expert_slices *experts;     /* [n_layer][n_expert]; layers without experts are zero */
    const float *rope_freqs, *rope_long, *rope_short;   /* divisors of the frequencies, or NULL */
    binding *bindings;
    uint32_t n_bindings, cap_bindings;
    /* after model_load */
    sl_store *store;
    expert_data *expert_data;   /* [n_layer][n_expert] */
    float *floats;              /* of all bindings but BIND_BYTES */
};

/* Maps the files and fills every pointer; the second call does nothing. */
sl_status model_load(sl_ctx *ctx, sl_model *m);
/* The divisors that a context of n_ctx positions uses; NULL: none. */
const float *model_rope_freqs(const sl_model *m, uint32_t n_ctx);

#endif
