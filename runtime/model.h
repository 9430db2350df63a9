/* runtime/model.h - a model behind its handle: what the engine sees. Private to runtime/. */
#ifndef MODEL_H
#define MODEL_H

#include "offload/sl_stream.h"
#include "runtime/hparams.h"
#include "runtime/sluice.h"

/* Where a pointer of a layer comes from: the file's bytes as they are, or floats made from them. */
typedef enum bind_kind {
    BIND_BYTES,             /* *dst = the tensor's bytes, `skip` of them passed over */
    BIND_FLOATS,            /* *dst = the tensor as n floats */
    /* *dst = k_b [n_head][kv_lora][nope] as floats, turned round from attn_kv_b */
    BIND_KV_B_KEYS,
    /* *dst = v_b [n_head][v_head][kv_lora] as floats, picked from attn_kv_b */
    BIND_KV_B_VALUES
} bind_kind;

#define BIND_NO_LAYER UINT32_MAX

typedef struct binding {
    const sl_tensor *tensor;
    /* in the model's own layers or ends: weights.c finds it in an engine's */
    const void **dst;
    uint32_t layer;         /* BIND_NO_LAYER: of the ends */
    uint64_t skip, n;       /* bytes; floats */
    const sl_attn *attn;    /* BIND_KV_B_*: whose dimensions hold */
    bind_kind kind;
} binding;

/* What belongs to no layer. */
typedef struct ends {
    sl_weights weights;         /* rope is the engine's: it depends on the context */
    const float *rope_freqs, *rope_long, *rope_short;   /* divisors of the frequencies, or NULL */
} ends;

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
    ends ends;                  /* without data, like the layers: templates */
    sl_layer *layers;
    /* [n_layer][n_expert]; biases are in the layer's template; layers without experts are zero */
    sl_expert_slices *experts;
    binding *bindings;          /* the ends', then layer by layer */
    uint32_t n_bindings, cap_bindings;
    sl_progress_fn progress;    /* of engines that open; may be NULL */
    void *progress_user;
};

/* As sl_model_open; without the vocabulary it is a shape and no more. */
sl_status model_open(sl_ctx *ctx, const char *path, bool with_vocab, sl_model **ret);
/* A name to show, the caller's: general.name, or the file's. NULL: no memory. */
char *model_name_of(const sl_gguf *g);

#endif
