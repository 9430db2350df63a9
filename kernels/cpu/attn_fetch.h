/* kernels/cpu/attn_fetch.h - asking for the keys and values of the next call while one computes.
 * Private to kernels/cpu/attn.c.
 *
 * Some lines at each look, and a look every few steps of the inner loops, those that convert
 * included: more at once than a core can have on their way (some two dozen) seem to be dropped. */
#ifndef KX_ATTN_FETCH_H
#define KX_ATTN_FETCH_H

#include "kernels/sl_attn.h"

#define KX_INLINE static inline __attribute__((always_inline))

enum { KX_LOOK = 8 };       /* steps of an inner loop from one look to the next */

struct fetch {
    const char *at, *end;       /* in the rows begun, which lie side by side */
    const char *const *row;     /* behind them */
    size_t offset, bytes;
    uint32_t left, fours, wait, pace;   /* rows; four lines each; looks until the next lines */
};

static inline void fetch_rows(struct fetch *f)
{
    f->wait = f->left ? f->pace : UINT32_MAX;
    if (!f->left) return;
    f->at = f->end = *f->row + f->offset;
    for (; f->left && *f->row + f->offset == f->end; f->left--, f->row++) f->end += f->bytes;
    f->at -= (uintptr_t)f->at % 64;
}

/* looks: so many there will be, about. */
static inline struct fetch fetch_of(const sl_attn_fetch *f, uint32_t looks)
{
    struct fetch r = { .row = f->row, .offset = f->offset, .bytes = f->bytes, .left = f->n };
    uint32_t fours = f->n * (uint32_t)((f->bytes + 255) / 256);
    looks = SL_MAX(looks, 1u);
    r.fours = (fours + looks - 1) / looks;
    r.pace = SL_MAX(looks / SL_MAX(fours, 1u), 1u);
    fetch_rows(&r);
    return r;
}

KX_INLINE void fetch_some(struct fetch *f)
{
    if (__builtin_expect(--f->wait != 0, 1)) return;
    const char *at = f->at;
    uint32_t i = f->fours;
    do {
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + 64, 0, 2);
        __builtin_prefetch(at + 128, 0, 2);
        __builtin_prefetch(at + 192, 0, 2);
        at += 256;
    } while (--i);
    f->at = at;
    f->wait = f->pace;
    if (at >= f->end) fetch_rows(f);
}

#endif
