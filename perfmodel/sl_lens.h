/* perfmodel/sl_lens.h - many sequences at once: bounds of tokens/s from the papers' closed forms,
 * corrected where they are off, and of a described machine with or without an accelerator.
 * Owns formulas. Pure functions of numbers. Units: seconds, bytes, tokens, flops (a multiply-add
 * is 2). Tested by tests/t_lens.c (MoE-Lens's tables, MoE-Lightning's figures).
 * Sources: MoE-Lens, arXiv 2504.09345, equations 1 to 7; SE-MoE, 2205.10034, 3.3.2; MoE-Lightning,
 * 2411.11217, equations 12 to 14; Fiddler, 2402.07033. "Ours": no paper says so.
 *
 * What goes beyond these papers: bytes per weight and link; sums with g + 1 terms, whole KV blocks
 * and distributions of lengths; distinct experts by popularity; pinned weights and a small ring;
 * experts over the link and on the CPU side by side in the best proportion, with the memory under
 * both counted once; the disk as a tier; GEMM rates by rows per expert; prompt and decode attention
 * apart, windows, latents (MLA); the busiest resource and the next.
 * Not here: recomputing preempted sequences, other rates across sockets, GPUs in parallel. */
#ifndef SL_LENS_H
#define SL_LENS_H

#include "perfmodel/sl_forecast.h"

/* ---- formulas ---- */

/* One layer as MoE-Lens sees it: FFN of three matrices [ffn][model], QKV and output projections. */
typedef struct sl_lens_layer {
    uint32_t n_expert, n_used;
    double model, ffn;          /* elements */
    double group;               /* query heads per key head */
    double weight_bytes;        /* of one weight where it is read; the paper's are 2 */
} sl_lens_layer;

/* Flops per byte of weights when n tokens share a pass. Eq. 1, the form with h (its second form
 * has 2 where h^2 leaves 4), with 2 / weight_bytes put back. */
SL_API double sl_lens_intensity(const sl_lens_layer *l, double n_tokens);
/* Tokens at which so many flops/s take as long as the weights on the link. Eq. 2, from Eq. 1
 * instead of its approximation n_used / n_expert. */
SL_API double sl_lens_saturating(const sl_lens_layer *l, double flops_s, double link_bytes_s);

/* How often requests of this length come. */
typedef struct sl_lens_length { uint32_t prompt, gen; double weight; } sl_lens_length;

/* Means over a distribution. A request is alive for gen + 1 passes: its prompt's, then one for each
 * token. */
typedef struct sl_lens_mix {
    double prompt, gen;
    double held;    /* sum of positions held over the passes of a life, in whole KV blocks */
} sl_lens_mix;
/* n lengths with weights above 0 in all; block: positions of a KV block, 1: no rounding. */
SL_API sl_lens_mix sl_lens_mean(const sl_lens_length *lengths, uint32_t n, uint32_t block);
/* Tokens that a pass advances per position of KV held: E[P + G] / E[sum of P + j, j = 0 .. G].
 * Eq. 3 with all g + 1 terms. */
SL_API double sl_lens_pme(const sl_lens_mix *mix);
/* Tokens/s, prompts' included, when a pass takes pass_s however many tokens there are, and no
 * more than compute_tok_s. Eq. 4. */
SL_API double sl_lens_tokens_s(double pme, double kv_positions, double pass_s,
                               double compute_tok_s);
/* What keys and values are read at, once a pass: B_KV; the memory gives that and the link. Eq. 5 */
SL_API double sl_lens_kv_bytes_s(double kv_bytes, double pass_s);
/* Flops/s of the CPU's attention, 2 s I B_KV with I elements in a byte. Eq. 6 */
SL_API double sl_lens_attention_flops_s(double group, double elem_bytes, double kv_bytes_s);
/* Requests at once by mixing ages instead of each holding room for all of itself. Eq. 7 */
SL_API double sl_lens_overlap_gain(double prompt, double gen);

/* A number of requests through a KV cache, one cohort for each age: ours, in the place of the
 * paper's equations 8 to 14, to which it tends for many requests and blocks of 1. */
typedef struct sl_lens_run {
    double starts;              /* requests that begin in a pass, once it is full */
    double pass_tokens;
    double passes;              /* filling and draining included */
    double tok_per_s, gen_tok_per_s;
    double compute_share;       /* of compute_tok_s */
    /* the same if filling wastes nothing, since spare room goes to more prompts */
    double compute_share_filled;
} sl_lens_run;
SL_API sl_lens_run sl_lens_requests(double n_requests, uint32_t prompt, uint32_t gen,
                                    uint32_t block, double kv_positions, double pass_s,
                                    double compute_tok_s);

/* Layers through a ring of two slots, n_pinned others always there: max(N t_c, (N - r) t_x); r = 0
 * is SE-MoE's ring, however many slots it has. Ours. */
SL_API double sl_lens_ring_s(double n_layers, double n_pinned, double compute_s, double copy_s);
/* Two micro-batches that take turns on two units: at most so many times the speed of one. */
SL_API double sl_lens_two_streams(double first_s, double second_s);
/* One stream: sum over layers of apart + max(compute, copy), and two latencies each. */
SL_API double sl_lens_one_stream_s(uint32_t n_layers, const double *apart_s,
                                   const double *compute_s, const double *copy_s,
                                   double latency_s);
/* Different experts that n rows use, each expert with probability p[i] in a row:
 * sum of 1 - (1 - p)^n. */
SL_API double sl_lens_distinct(const double *p, uint32_t n_expert, double n_rows);
/* ---- a machine ---- */

typedef struct sl_lens_box {
    const sl_machine *machine;          /* passed sl_machine_check */
    const sl_machine_gpu *gpu;          /* NULL: none, all on the CPU */
    const sl_shape *shape;
    const sl_miss_model *miss;          /* popularity of experts */
    uint32_t threads;                   /* 0: all cores */
    double ram_bytes, vram_bytes;       /* for weights, keys and values; 0: all there is */
    sl_type kv_type;
    uint32_t kv_block;                  /* positions; 0: 1 */
    /* experts are multiplied by the GPU alone, as in MoE-Lens and MoE-Lightning; else by the CPU
     * too, where that is faster */
    bool gpu_experts;
    /* A pass's rows go through the GPU in so many parts (MoE-Lightning's N / mu), each of which
     * reads the layer's weights from VRAM. 0: 1 */
    uint32_t micro_batches;
} sl_lens_box;

typedef struct sl_lens_bound {
    double tok_per_s, gen_tok_per_s;    /* 0: not even one request fits */
    /* the same if nothing overlapped: disk, link, GPU and CPU in turn. FlexGen's own cost model
     * adds them in pairs, since its overlap fell short of the maximum. */
    double gen_tok_per_s_in_turn;
    double pass_s, pass_tokens;
    double sequences;           /* alive at once */
    double kv_bytes, vram_weights, ram_weights;     /* where bytes lie; the rest on disk */
    double link_share;          /* of the expert bytes that are not pinned: over the link */
    double busy_s[SL_N_RESOURCES];      /* of a pass */
    sl_resource binding, next;
} sl_lens_bound;

/* Requests of these lengths, n_requests of them (0: without end), ages mixed, each pass one walk
 * through all weights. With a GPU: it multiplies, weights pinned in VRAM or over the link, the CPU
 * attends to keys and values in RAM. Without: all on the CPU. Weights that RAM does not hold beside
 * keys and values come from disk in every pass; the number of sequences that is best is searched,
 * from one to as many as RAM has room for. */
SL_API sl_lens_bound sl_lens_batch(const sl_lens_box *box, const sl_lens_length *lengths,
                                   uint32_t n, double n_requests);

/* n sequences of one length together from prompt to end, then the next n (MoE-Lightning's way): a
 * prompt pass, which draws the first tokens, then gen - 1 passes of n rows. gen_tok_per_s counts
 * drawn tokens over both; busy_s and pass_s are a decoding pass's. kv_bytes: what they hold in the
 * end. */
SL_API sl_lens_bound sl_lens_round(const sl_lens_box *box, double n_sequences, uint32_t prompt,
                                   uint32_t gen);

/* One sequence with part of the weights in VRAM: dense weights and KV first (or KV in RAM, where
 * that is better), then the most popular experts. Of the others the link brings some and the CPU
 * computes the rest where they lie, in the best proportion (Fiddler's choice per expert, ours as a
 * share), from RAM; beyond RAM they come from disk. The engine has no such path yet: a bound only.
 * box->gpu is not NULL. max_rows: of a prompt's pass. hit_rate: of uses that need no disk;
 * peak_bytes: in RAM; wait_s and stall_share stay 0. */
SL_API sl_forecast sl_lens_latency(const sl_lens_box *box, sl_load load, uint32_t max_rows);

#endif
