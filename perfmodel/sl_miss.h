/* perfmodel/sl_miss.h - how often tokens find the experts they want in RAM, and how many different
 * ones many rows want: the two curves that a forecast needs of a router. From a trace (offload/
 * sl_trace.h replays it through the real cache), or a default for models that nobody ran yet.
 * Pure functions of numbers. Tested by tests/t_miss.c. */
#ifndef SL_MISS_H
#define SL_MISS_H

#include "perfmodel/sl_plan.h"

enum { SL_MISS_POINTS = 16 };

/* One row a pass, a cache that has settled. */
typedef struct sl_miss_point {
    double share;               /* of a class's experts that have a slot, 0 to 1, ascending */
    double hit;                 /* share of uses that find their expert there */
    /* of the number missing in a turn: variance over a binomial's of that mean; 1 or more */
    double spread;
} sl_miss_point;

/* Different experts of a layer that rows of one pass use together. */
typedef struct sl_distinct_point {
    uint32_t rows;              /* ascending */
    double share;               /* of the layer's experts, on average */
} sl_distinct_point;

typedef struct sl_miss_model {
    bool traced;                /* of this model's own routing; else the default */
    uint32_t n_points, n_distinct;      /* n_distinct 0: even routing */
    sl_miss_point at[SL_MISS_POINTS];
    sl_distinct_point distinct[SL_MISS_POINTS];
} sl_miss_model;

/* For a model with so many experts of which a token uses so many: what trained routers show on
 * average (the source stands in miss.c). */
SL_API sl_miss_model sl_miss_default(uint32_t n_expert, uint32_t n_used);

/* Gives a default the different experts of rows that follow each other in one text (miss.c has the
 * source); without it, and where rows are of many texts, routing counts as even. A trace's model
 * stays as it is. */
SL_API void sl_miss_one_text(sl_miss_model *m, uint32_t n_expert, uint32_t n_used);

/* Share of uses that hit when `share` of the experts have slots: monotone, 0 at 0 and 1 at 1. */
SL_API double sl_miss_hit(const sl_miss_model *m, double share);
/* ret_p[i]: probability that i of the n_used experts of a turn are missing, 0 to n_used (more than
 * SL_MAX_MISSED count as that many). Sums to 1, its mean is n_used * (1 - hit). */
SL_API void sl_miss_turn(const sl_miss_model *m, uint32_t n_used, double share,
                         double ret_p[SL_MAX_MISSED + 1]);
/* Different experts that n rows use in a layer, on average: E * (1 - (1 - k/E)^n) where routing is
 * even, from the curve otherwise; at least n_used, at most n_expert. */
SL_API double sl_miss_distinct(const sl_miss_model *m, uint32_t n_expert, uint32_t n_used,
                               double n_rows);

#endif
