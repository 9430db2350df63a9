/* perfmodel/work.h - a unit at work: how long a product takes it, and how long the memory under it
 * and its arithmetic alone would take. */
#ifndef WORK_H
#define WORK_H

#include "perfmodel/sl_forecast.h"

/* `s` in all; memory_s and arithmetic_s overlap, neither is more than s. */
typedef struct work { double s, memory_s, arithmetic_s, bytes; } work;

void work_add(work *to, const work *w, double times);
/* Work of s seconds, at least memory_s, whose parts take so long each at their own best: the slower
 * one is busy for all of it, since it is what the unit waits for. */
work work_of(double s, double memory_s, double arithmetic_s, double bytes);
/* Matrices of some types (parts [n], up to the first without elements) with `rows` rows each, of
 * which `bytes` are read: by so many threads whose memory gives bytes_s, or by an accelerator. */
work work_product(const sl_machine *m, uint32_t threads, double bytes_s, const sl_part *parts,
                  uint32_t n, double bytes, double rows);
/* The same for matrices of which some get more rows and some fewer, `rows` on average: the least
 * that this can take on average. */
work work_product_spread(const sl_machine *m, uint32_t threads, double bytes_s,
                         const sl_part *parts, uint32_t n, double bytes, double rows);
work work_product_gpu(const sl_machine_gpu *g, const sl_part *parts, uint32_t n, double bytes,
                      double rows);

/* Means of the sixteenths of the rows that a chosen expert gets: a Poisson distribution, or, where
 * fewer different experts are chosen than even routing would, one whose rate is itself spread
 * (gamma), so that as many get none. */
enum { QUANTILES = 16 };
void rows_of_experts(double n_expert, double chosen, double pairs, double ret[QUANTILES]);

/* card: of a plan that has one, else NULL. Where nobody measured its products it is from a data
 * sheet. */
sl_grade grade_of(const sl_machine *m, const sl_machine_gpu *card, bool traced);

/* The busiest resource and the one behind it. */
void busiest(const double busy_s[SL_N_RESOURCES], sl_resource *ret_first, sl_resource *ret_next);

#endif
