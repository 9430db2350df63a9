/* perfmodel/split.h - what a pass takes where CPU and accelerator share it: the work of each lane
 * on either side, for stage 1 and for the simulation. Private to perfmodel/. Only of plans
 * that keep all weights in RAM. */
#ifndef SPLIT_H
#define SPLIT_H

#include "perfmodel/sl_queue.h"
#include "perfmodel/work.h"

typedef struct split_env {
    const sl_machine *m;
    const sl_shape *shape;
    const sl_plan *plan;
    const sl_split *x;
    const sl_miss_model *miss;
    sl_machine_gpu gpu;
    bool emu;
    uint32_t threads;
    double dram;                /* bytes/s of the threads ... */
    double dram_all;            /* ... and of the memory */
    double passes_s;            /* of a byte on the link through the memory: 1, emulated 2 */
    sl_machine_cost cost;
} split_env;

void split_env_init(split_env *e, const sl_forecast_in *in);

/* Do passes of so many rows send up all experts before their routers spoke? They have the plan's
 * lanes, the others one. */
bool split_sends_all(const split_env *e, double rows);
uint32_t split_lanes(const split_env *e, double rows);

/* A layer in one lane of so many rows. */
typedef struct split_layer {
    const sl_layer_shape *of;
    bool all;                   /* as split_sends_all */
    /* not all, and outputs may wait for their turn to be added; else the CPU takes no expert */
    bool stored;
    double rows;
    work qkv, post, route, ffn;         /* on the device, its elements included */
    /* distinct experts that the rows choose, and one of them: mean of those that get at least
     * send_rows rows (or all), and of the others */
    double n_experts, few;      /* few: share of the others */
    work on_device, sent, on_cpu;       /* on_device: mean of all */
    double cpu_rows;            /* of each of the others */
} split_layer;
void split_layer_set(const split_env *e, const sl_layer_shape *l, double rows, bool all,
                     split_layer *ret);

/* Who computes a layer's experts when n_stay of the chosen ones stay on the device. */
typedef struct split_turn {
    double n_stay, n_sent, n_cpu;
    work stay, sent, cpu;       /* of all of them */
    double stay_runs, sent_runs, cpu_runs;      /* rows times experts, of each */
} split_turn;
split_turn split_turn_of(const split_layer *p, double n_stay);
/* Of n_used different ones among n_expert, i are among those that stay: ret_p[i]. Where those
 * follow the routing they are a cache like the one in RAM, and its curve says so. */
void split_staying(const split_env *e, const sl_layer_shape *l, double ret_p[SL_MAX_MISSED + 1]);
/* Of n different ones that some rows chose: the mean. */
double split_staying_of(const split_env *e, const sl_layer_shape *l, double n);

/* Rows that attend. */
typedef struct split_attend {
    double rows, attended;      /* rows times positions */
    /* positions that lie in memory already, for all rows of a sequence: read, and, where the device
     * attends for the CPU, sent to it */
    double before, fetched;
} split_attend;
/* Of a pass or a lane: prompts' rows, or those that decode. */
split_attend split_attend_rows(const sl_layer_shape *l, const sl_rows *rows, uint32_t n,
                               bool prompt);
work split_attend_work(const split_env *e, const sl_step *st, const split_attend *a, bool prompt);
/* Rows whose keys and values the CPU wants: those it attends for. */
double split_cpu_rows(const split_env *e, const sl_rows *rows, uint32_t n);
/* Does an attention on the device want earlier keys and values sent up? */
bool split_fetches(const split_env *e, const sl_step *st);

/* What a stage takes on the device beside its products: its start, each element. */
double split_stage_s(const split_env *e, double rows);
double split_up_s(const split_env *e, double bytes);    /* on the link, latency apart */
double split_down_s(const split_env *e, double bytes);

/* ---- the least ---- */

/* Sums over passes: steps of the longest lane in turn; each resource for itself. */
typedef struct split_sum {
    double chain_s;
    double busy_s[SL_N_RESOURCES];
} split_sum;

/* `times` passes of so many rows, of which `logits` draw; attention apart. */
void split_sum_pass(const split_env *e, double rows, double logits, double times, split_sum *to);
/* Attention in a layer of so many passes with so many lanes each, all of it together. */
void split_sum_attention(const split_env *e, uint32_t layer, const split_attend *a, bool prompt,
                         double lanes, double passes, split_sum *to);
/* The head of such passes; sent, where it must be, in each. */
void split_sum_head(const split_env *e, double logits, double lanes, double times, split_sum *to);
void split_sum_add(split_sum *to, const split_sum *s);
double split_sum_s(const split_sum *s);

/* sl_stage1 of a plan with a split. */
sl_forecast split_stage1(const sl_forecast_in *in);

#endif
