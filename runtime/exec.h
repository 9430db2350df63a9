/* runtime/exec.h - what the files of the executor share. exec.c walks the pipe; experts.c computes
 * a layer's experts on the CPU; exec_split.c shares them with an accelerator, exec_prompts.c
 * attends to prompts there. Private to runtime/. */
#ifndef EXEC_H
#define EXEC_H

#include "runtime/engine.h"

/* The router's answer, grouped: n->runs, n->ids; their biases are l's. Returns how many experts. */
uint32_t exec_group(lane *n, const sl_layer *l);
/* The layer's expert x with its biases; its data come when they are there. */
sl_ffn exec_expert_ffn(const sl_layer *l, uint32_t x);
/* The run that takes every row: the dense FFN, or the shared expert. Returns how many: 0 or 1. */
uint32_t exec_all_rows(const lane *n, const sl_layer *l, sl_expert_run *ret);
/* What sl_stream_ready gives out next, in n->ready and n->data: `runs` are those that it was begun
 * for. Sequences of one that could not be read fail, and its run has no rows any more. */
uint32_t exec_landed(sl_engine *e, lane *n, sl_expert_run *runs);
/* Reads ahead what the layer behind l will want: in passes of many rows, when this layer's router
 * has named so many experts, and again as slots become free; or by a guess, of few rows, whose h is
 * in RAM. */
void exec_read_on(sl_engine *e, lane *n, const sl_layer *l, uint32_t n_now);
sl_status exec_guess(sl_engine *e, lane *n, const sl_layer *l);
/* Calls e->trace. */
void exec_report(const sl_engine *e, const lane *n, const sl_layer *l);
/* The sequences of these rows of the lane cannot go on; the others are not affected, since no row
 * depends on another. rows NULL: all. */
void exec_fail(sl_engine *e, const lane *l, const uint32_t *rows, uint32_t n, const char *why);

/* Room for prompts on the accelerator; none where the plan has none. */
sl_status prompts_init(sl_engine *e, lane *n);
void prompts_fini(sl_engine *e, lane *n);
/* Room for all of the lane's rows but the first n_decode, which becomes n->n_decode. False: there
 * is not so much. */
bool prompts_cut(lane *n, uint32_t n_decode);
/* Their attention step. */
sl_status prompts_attend(sl_engine *e, lane *n, const sl_step *step);

/* An experts step on the CPU. */
sl_status exec_experts(sl_engine *e, lane *n, const sl_step *step, const sl_layer *l);
/* The same where an accelerator has the layer, and may leave some experts to the CPU. */
sl_status split_experts(sl_engine *e, lane *n, const sl_step *step);

/* Copies between a lane's two sets of buffers. Down: begin, behind what SL_Q_COMPUTE has so far;
 * copies; end, which names them. Up: copies, and then SL_Q_COMPUTE waits for them. */
sl_status split_begin_down(sl_engine *e);
sl_status split_down(sl_engine *e, void *dst, const void *src, uint64_t n_floats);
sl_status split_end_down(sl_engine *e, sl_event *ret_there);
sl_status split_up(sl_engine *e, void *dst, const void *src, uint64_t n_floats);
sl_status split_end_up(sl_engine *e);
/* The driver waits for copies down and reads, or is about to write, one of the lane's buffers. */
void split_read(sl_engine *e, const void *p, uint64_t n_floats);
void split_write(sl_engine *e, const void *p, uint64_t n_floats);

#endif
