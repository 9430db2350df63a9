/* runtime/sl_sampler.h - picks the next token from logits.
 * Order as in llama.cpp's default chain: repeat penalty, top-k, top-p, min-p, temperature, draw.
 * Owns its random state and the last tokens. Threads: one sampler per sequence, one room per
 * thread.
 * Numbers: the same seed and logits give the same tokens everywhere (own generator, no libm in the
 * draw beyond the kernel's exp). Tested by tests/t_sampler.c. */
#ifndef SL_SAMPLER_H
#define SL_SAMPLER_H

#include "runtime/base/sl_base.h"

typedef struct sl_sampler_params {
    float temp;             /* <= 0: greedy (lowest id on ties); default 0.8 */
    uint32_t top_k;         /* 0: all; default 40 */
    float top_p;            /* 1: off; default 0.95 */
    float min_p;            /* 0: off; default 0.05 */
    float repeat_penalty;   /* 1: off (default); divides positive, multiplies negative logits */
    uint32_t repeat_last_n; /* tokens the penalty looks back on; default 64, at most 4096 */
    uint64_t seed;          /* default 0: the caller puts a random one for variety */
} sl_sampler_params;

typedef struct sl_sampler sl_sampler;
/* What a draw needs for its own time: shared by all samplers of a vocabulary. */
typedef struct sl_sampler_room sl_sampler_room;

SL_API sl_sampler_params sl_sampler_defaults(void);
/* Errors: SL_E_ARG (a parameter outside its range), SL_E_NOMEM. The caller owns *ret. */
SL_API SL_NODISCARD sl_status sl_sampler_create(sl_ctx *ctx, const sl_sampler_params *p,
                                                uint32_t n_vocab, sl_sampler **ret);
SL_API void sl_sampler_destroy(sl_sampler **s);
/* For samplers of up to n_vocab ids: 10 bytes for each. Errors: SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_sampler_room_create(sl_ctx *ctx, uint32_t n_vocab,
                                                     sl_sampler_room **ret);
SL_API void sl_sampler_room_destroy(sl_sampler_room **r);   /* *r may be NULL, is NULL afterwards */
/* A token that was seen (prompt or drawn): for the penalty. */
SL_API void sl_sampler_accept(sl_sampler *s, int32_t token);
/* logits [n_vocab] is not changed; NaN counts as -inf; banned (NULL: none) lists ids that may not
 * be drawn (--ignore-eos). Nothing allocates. Always returns an id in [0, n_vocab). */
SL_API int32_t sl_sampler_draw(sl_sampler *s, sl_sampler_room *room, const float *logits,
                               const int32_t *banned, uint32_t n_banned);

#endif
