/* perfmodel/sl_forecast.h - what a run will take: the one result of stage 1 (closed-form upper
 * bounds) and of stage 2 (the simulation), so that both are printed, ranked and checked alike.
 * Pure functions of numbers. Units: seconds, bytes, tokens.
 * Tested by tests/t_stage1.c and tests/t_sim.c. */
#ifndef SL_FORECAST_H
#define SL_FORECAST_H

#include "perfmodel/sl_machine.h"
#include "perfmodel/sl_miss.h"
#include "perfmodel/sl_pipe.h"

/* How much stands behind a forecast. */
typedef enum sl_grade {
    SL_GRADE_DATASHEET,         /* a described machine */
    SL_GRADE_QUICK,             /* a probe of 2 s */
    SL_GRADE_COLD,              /* a full probe, the default miss curve */
    SL_GRADE_CALIBRATED         /* a full probe, this model's routing trace */
} sl_grade;
SL_API const char *sl_grade_name(sl_grade g);           /* "cold" */

typedef enum sl_resource {
    SL_RES_DISK,                /* disk->ram */
    SL_RES_DRAM,                /* reads of RAM by CPU, disk DMA and copies together */
    SL_RES_CPU,                 /* arithmetic of the cores */
    SL_RES_SYNC,                /* stages' fixed costs: barriers, launches */
    SL_RES_H2D, SL_RES_D2H,     /* ram->vram, vram->ram */
    SL_RES_GPU,                 /* arithmetic of the device */
    SL_RES_VRAM,                /* reads of its memory */
    SL_N_RESOURCES
} sl_resource;
SL_API const char *sl_resource_name(sl_resource r);     /* "disk reads" */

/* The accelerator of a plan in this machine's numbers: the card that the machine has of its name
 * (of a nameless one: the machine's card of that number), or, for an emulated one, what the
 * machine's memory and so many of its cores give (as they were measured, or derived) behind links
 * of that speed. Copies of an emulated device are the host's own: each byte is read and written, by
 * one thread, and two threads are woken. False: the machine has no such card. */
SL_API bool sl_forecast_gpu(const sl_machine *m, const sl_accel *a, sl_machine_gpu *ret);

/* One sequence: a prompt, then tokens drawn one after another. */
typedef struct sl_load { uint32_t n_prompt, n_gen; } sl_load;   /* n_prompt >= 1 */

typedef struct sl_phase {
    double seconds;             /* of the whole phase; 0: it has no token */
    double tok_per_s;
    double busy_s[SL_N_RESOURCES];      /* of the phase's seconds, each resource for itself */
    double wait_s;              /* in which nothing is computed, since bytes are awaited */
    double disk_bytes;
    sl_resource binding, next;  /* the busiest and the one behind it */
} sl_phase;

typedef struct sl_forecast {
    sl_grade grade;
    sl_phase prompt, decode;
    double ttft_s;              /* prompt's seconds and the first token's drawing */
    double hit_rate;            /* of decoding; 1 where nothing is streamed */
    double disk_bytes_per_token, stall_share;           /* of decoding */
    uint64_t peak_bytes;        /* plan->need_bytes */
} sl_forecast;

typedef struct sl_forecast_in {
    const sl_machine *machine;
    const sl_shape *shape;
    const sl_plan *plan;
    const sl_miss_model *miss;
    sl_load load;
    /* from where the decoded tokens' own misses are known (a trace was replayed with this very
     * plan's slots): used instead of miss's curve. May be NULL. */
    const sl_misses *misses;
} sl_forecast_in;

/* Stage 1: each resource at its own best, all overlapping but for what must come in turn. An upper
 * bound of speed for this plan, monotone in every rate. Never fails for a checked machine and a
 * plan of this shape. What it adds up:
 *   tokens    n_gen passes of one row behind n_prompt positions, each
 *               sum over layers of D_l + E[max(C_l, R(missing experts of l))] + head
 *             (DESIGN.md 6: no read before the router spoke; a right guess ahead of it can beat
 *             this). D: projections, attention, router; C: all experts of the layer; R:
 *             sl_bound_read_s; E: over the misses of a turn.
 *   prompt    passes of max_rows rows that read and compute side by side as a whole: distinct
 *             experts by sl_miss_distinct, each multiplied by its share of the rows, however the
 *             rows are spread; slots are empty at first and then used as well as can be.
 *   products  at the machine's own rates for that type and number of rows
 *             (sl_machine_gemm_seconds), at least the time that their bytes take from RAM.
 *   memory    that cores and disk share: what each keeps of its speed beside the other, where that
 *             was measured; else all bytes over what the memory gives.
 *   at least  all read bytes at the disk's best rate, and the fixed costs of the stages alone.
 * Not counted: norms and the like, rows of an embedding that stays on disk, reads' blocks.
 * busy_s: a product or attention counts wholly for the slower of memory and arithmetic (at the rate
 * that many rows reach), for the other with what that one takes. Where a type was not measured, its
 * seconds are those of another by their rooflines' ratio: monotone in every rate only with that
 * type's own scaled along. */
SL_API sl_forecast sl_stage1(const sl_forecast_in *in);

/* What the simulation did when: for a picture. */
typedef struct sl_span {
    sl_resource on;             /* SL_RES_DISK, SL_RES_CPU */
    sl_step_kind kind;
    uint32_t layer;             /* SL_STEP_NONE: none */
    double from_s, to_s;        /* of the pass */
    bool waiting;               /* the CPU waits for bytes */
} sl_span;
typedef struct sl_timeline {
    uint32_t cap, n;            /* the caller's spans [cap]; n counts on beyond cap */
    sl_span *spans;
} sl_timeline;

/* Stage 2: walks the steps of each pass as the engine does, with the machine's measured curves.
 *   threads   one server: a stage lasts what sl_machine_cost says beside its products
 *   disk      reads in the order of asking, so many at a time as the plan says; new ones start
 *             when the driver calls the store, so a long stage may leave it idle; what flies
 *             together lands together
 *   prompt    passes of max_rows; the rows of an expert are those of a distribution, not a mean;
 *             reads run ahead into the next layer as slots allow. Slots are empty at first; then
 *             the first layers of each class keep theirs. Of many like passes a few are simulated.
 *   tokens    some positions and draws of a turn's misses stand for all, spread evenly
 * Not counted: guesses (offload/sl_ahead.h: kept up only where they gain), page faults of a mapped
 * file, other sequences. Not faster than sl_stage1 says; the same every time. More slots or a
 * faster disk cost nothing, but for a few per cent of a prompt, where more reads at once delay the
 * first. decode_pass, prompt_pass (may be NULL): one typical pass of each. Time: 61 layers of 256
 * experts in 15 ms. Errors: SL_E_NOMEM,
 * SL_E_UNSUPPORTED (an accelerator, and experts on disk: sl_stage1 and sl_queue.h do not know of
 * both either). */
SL_API SL_NODISCARD sl_status sl_sim_run(sl_ctx *ctx, const sl_forecast_in *in,
                                         sl_timeline *decode_pass, sl_timeline *prompt_pass,
                                         sl_forecast *ret);

#endif
