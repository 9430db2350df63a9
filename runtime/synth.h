/* runtime/synth.h - what the three parts of synth share: synth_model.c lists a model's keys and
 * tensors, synth_fill.c makes their bytes, synth.c writes the file. Private to runtime/. */
#ifndef SYNTH_H
#define SYNTH_H

#include "kernels/sl_kernels.h"
#include "runtime/gguf_write.h"
#include "runtime/sl_synth.h"

typedef enum synth_kind {
    SYNTH_WEIGHTS,              /* mean 0, deviation `value` */
    SYNTH_NEAR,                 /* value + 0.1 u, |u| < 1 */
    SYNTH_CONST,                /* value */
    SYNTH_RAMP,                 /* 1 to value: longrope's divisors */
    SYNTH_ROUTER                /* row r has deviation row_scale[r] */
} synth_kind;

typedef struct synth_tensor {
    char name[48];
    uint32_t n_dims;
    uint64_t ne[4];
    sl_type type;
    synth_kind kind;
    float value;
    uint32_t scales;            /* SYNTH_ROUTER: where row_scale begins in the model's table */
    uint64_t offset, bytes;     /* behind the header */
} synth_tensor;

typedef struct synth_model {
    gguf_out out;
    synth_tensor *tensors;
    uint32_t n_tensors, cap_tensors;
    float *row_scales;          /* [n_layer][n_expert] */
    uint64_t token_bytes, n_params;
    uint32_t n_layer;
} synth_model;

/* The caller ends it with synth_model_fini in every case. */
sl_status synth_model_make(sl_ctx *ctx, const sl_synth_params *p, synth_model *ret);
void synth_model_fini(synth_model *m);

/* Fields of a type's blocks that are not random, for one deviation. */
typedef struct synth_pattern {
    sl_type type;
    uint32_t block_bytes, block_elems;
    uint16_t d[16], m[16];      /* f16 scales, and minima that make the mean 0; picked at random */
    uint8_t e[16];              /* MXFP4: exponents */
} synth_pattern;

/* dev > 0 when t->kind is SYNTH_WEIGHTS. */
void synth_pattern_make(const sl_kernels *k, const synth_tensor *t, synth_pattern *ret);
/* Fill `bytes` of the tensor from byte `at` on, both multiples of the block; the bytes depend on
 * seed, at and the tensor only. */
void synth_fill(const sl_kernels *k, const synth_model *m, const synth_tensor *t,
                const synth_pattern *p, uint64_t seed, uint64_t at, size_t bytes, void *ret);

uint64_t synth_mix(uint64_t x);     /* splitmix64's finaliser */

#endif
