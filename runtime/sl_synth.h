/* runtime/sl_synth.h - model files with random weights in the shapes of real models, for
 * benchmarks, tests and simulations of models that are too large to download.
 * Weights of a matrix with n columns have mean 0 and deviation about 1/sqrt(n), so that activations
 * stay near 1 in every layer; norms are near 1; the vocabulary is synthetic: bytes, pairs of
 * letters, invented words. The same parameters give the same bytes on every machine and number of
 * threads.
 * Owns the file while it is written. Must not print. Units: bytes. Tested by tests/t_synth.c. */
#ifndef SL_SYNTH_H
#define SL_SYNTH_H

#include "perfmodel/sl_preset.h"

/* done and total in bytes; false ends the work with SL_E_IO and removes what was written. */
typedef bool (*sl_synth_progress_fn)(void *user, uint64_t done, uint64_t total);

typedef struct sl_synth_params {
    const sl_preset *preset;    /* its architecture must be one that the engine runs */
    const char *quant;          /* a type that can be multiplied by ("Q4_K"), or Q4_K_M, Q5_K_M */
    uint32_t n_layer;           /* 1 to the preset's; 0: the preset's. At least one has experts */
    double skew;                /* popularity of the expert of rank r is ~ (r + 1)^-skew; 0: even */
    uint64_t seed;
    uint32_t n_threads;         /* 0: physical cores */
    sl_synth_progress_fn progress;  /* may be NULL */
    void *user;
} sl_synth_params;

typedef struct sl_synth_report {
    uint64_t file_bytes;
    uint64_t tensor_bytes;
    uint64_t token_bytes;       /* weights that one decoded token reads */
    uint64_t n_params;
    uint32_t n_tensors, n_layer;
} sl_synth_report;

/* What the file would be; writes nothing. Errors: SL_E_ARG (an unknown type, no such number of
 * layers, skew not in [0, 4]), SL_E_UNSUPPORTED (an architecture that is not run), SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_synth_measure(sl_ctx *ctx, const sl_synth_params *p,
                                               sl_synth_report *ret);

/* Writes path under a temporary name beside it and renames it at the end. Errors: as above; SL_E_IO
 * (the free disk is too small, which is checked before anything is written; a failed write;
 * progress said no). Nothing is left behind after an error. */
SL_API SL_NODISCARD sl_status sl_synth_write(sl_ctx *ctx, const sl_synth_params *p,
                                             const char *path, sl_synth_report *ret);

#endif
