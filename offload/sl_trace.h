/* offload/sl_trace.h - which experts a run's tokens chose: the one format, its writer, its reader,
 * and playing it through an expert cache. Owns the tables of a trace that was read.
 * Threads: one at a time. Units: experts, rows (a row is one token of one sequence in one pass).
 * Tested by tests/t_trace.c, fuzzed by tests/fuzz_trace.c.
 *
 * The format is JSON lines. The first one says what wrote it, for any number of further fields:
 *     {"trace": "sluice-routing", "version": 1, "model": "Sluice Bard MoE", "layers": 6,
 *      "experts": 32, "used": 4}
 * layers: of the model, those without experts included; experts, used: the most of a layer. Each
 * further line is one row in one layer of one pass:
 *     {"pass": 0, "sequence": 1, "layer": 0, "position": 0, "experts": [17, 24, 30, 19]}
 * Passes ascend, layers ascend in a pass, and the rows of a layer stand together in the order in
 * which the pass has them, a sequence's by position. experts: in the router's order, the heaviest
 * first; distinct; equally many in all rows of a layer and pass. A run that was cut off ends within
 * a pass. */
#ifndef SL_TRACE_H
#define SL_TRACE_H

#include "offload/sl_ecache.h"
#include "perfmodel/sl_miss.h"

/* ---- writing ---- */

typedef struct sl_trace_info {
    const char *model;          /* a name, cut to 127 bytes */
    uint32_t n_layer, n_expert, n_used;
} sl_trace_info;

typedef struct sl_trace_writer sl_trace_writer;

/* Makes the file and writes its first line. Errors: SL_E_IO, SL_E_NOMEM. The caller owns *ret. */
SL_API SL_NODISCARD sl_status sl_trace_create(sl_ctx *ctx, const char *path,
                                              const sl_trace_info *info, sl_trace_writer **ret);
/* One row, buffered. An error shows in close. */
SL_API void sl_trace_add(sl_trace_writer *w, uint64_t pass, uint32_t seq, uint32_t pos,
                         uint32_t layer, const uint32_t *ids, uint32_t n);
/* *w may be NULL, and is NULL afterwards. Errors: SL_E_IO, the file is not whole. */
SL_API SL_NODISCARD sl_status sl_trace_close(sl_ctx *ctx, sl_trace_writer **w);

/* ---- reading ---- */

/* A layer in a pass. */
typedef struct sl_trace_step {
    uint64_t pass;
    uint32_t layer;
    uint32_t n_rows, n_used;    /* at least 1 */
    const uint32_t *experts;    /* [n_rows][n_used] */
    const uint32_t *seq;        /* [n_rows], numbered from 0 in the order of appearance; one
                                 * that 256 younger ones came after is taken for another */
    const uint32_t *pos;        /* [n_rows] */
} sl_trace_step;

typedef struct sl_trace {
    char model[128];
    uint32_t n_layer, n_expert, n_used; /* n_layer * n_expert below 2^24 */
    uint32_t n_steps, n_seq;
    const sl_trace_step *steps;         /* [n_steps] */
} sl_trace;

/* Errors: SL_E_IO, SL_E_NOMEM; SL_E_FORMAT: file, line, field, what was expected and found. The
 * caller owns *ret; ctx must outlive it. */
SL_API SL_NODISCARD sl_status sl_trace_load(sl_ctx *ctx, const char *path, sl_trace **ret);
/* The same from text of n bytes; name is for messages. */
SL_API SL_NODISCARD sl_status sl_trace_parse(sl_ctx *ctx, const char *name, const char *text,
                                             size_t n, sl_trace **ret);
SL_API void sl_trace_free(sl_ctx *ctx, sl_trace **t);   /* *t may be NULL, and is NULL afterwards */

/* ---- playing ---- */

/* In a pass that reaches a layer, each expert that at least one row chose is used once. */
typedef struct sl_trace_hits { uint64_t uses, hits; } sl_trace_hits;

/* What a cache of these parameters, empty at first, would have served. n_layer, n_expert, n_used
 * and n_seq are the trace's, whatever p says. Hits before the pass from_pass are not counted, nor
 * uses. When a layer's experts in use do not all fit, those that do not count as misses.
 * Errors: those of sl_ecache_create. */
SL_API SL_NODISCARD sl_status sl_trace_play(sl_ctx *ctx, const sl_trace *t,
                                            const sl_ecache_params *p, uint64_t from_pass,
                                            sl_trace_hits *ret);

/* ---- what a forecast needs ---- */

/* Passes of one row through caches of 12 sizes, those of more rows only before them: hits and
 * their spread, counted once a cache is full (or half of those passes are over). And how many
 * different experts a layer's consecutive rows use together: 2, 4, 8 of them, as far as there are.
 * n_points is 0 where no pass has one row. Errors: those of sl_ecache_create. */
SL_API SL_NODISCARD sl_status sl_trace_miss_model(sl_ctx *ctx, const sl_trace *t, sl_policy policy,
                                                  sl_miss_model *ret);
/* A run with this plan of this shape, which streams experts: its misses in passes of one row from
 * from_pass on. Passes of more rows than the plan's are cut as the engine would. Errors: those of
 * sl_ecache_create, SL_E_ARG (the trace is of a model with other layers or experts). */
SL_API SL_NODISCARD sl_status sl_trace_misses(sl_ctx *ctx, const sl_trace *t,
                                              const sl_shape *shape, const sl_plan *plan,
                                              uint64_t from_pass, sl_misses *ret);

#endif
