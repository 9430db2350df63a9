/* runtime/engine.h - the engine behind its handle. engine.c keeps sequences and schedules passes,
 * lane.c has their buffers, exec.c walks the pipe for one pass. Private to runtime/. */
#ifndef ENGINE_H
#define ENGINE_H

#include "perfmodel/sl_pipe.h"
#include "runtime/board.h"
#include "runtime/kv.h"
#include "runtime/weights.h"

typedef enum seq_state { SEQ_FREE, SEQ_IDLE, SEQ_RUNNING } seq_state;

/* tokens[0 .. n_past) are in the KV cache, tokens[n_past .. n_known) are still to be processed: the
 * rest of a prompt, or the one token that was drawn last. */
typedef struct seq {
    sl_seq id;
    seq_state state;
    uint32_t n_past, n_known;
    uint32_t n_computed;        /* the most that n_past ever was */
    uint32_t n_prompt_end;      /* positions below it were submitted, not drawn */
    uint32_t n_left;            /* tokens still to draw */
    uint32_t max_chunk;
    uint32_t n_rows;            /* of the pass being built */
    bool has_room;              /* blocks for all of its tokens so far are its own */
    uint64_t order;             /* of submission */
    bool want_logits, draw, ignore_eog, stopped;
    bool failed;                /* a weight could not be read: only cancel is left */
    int32_t *tokens;            /* [n_ctx] */
    sl_sampler *sampler;        /* made at the first request that draws */
    sl_event_fn on_event;
    void *user;
    double submit_s;            /* on the clock of now_s */
    sl_request_stats stats;     /* of the last request */
} seq;

/* The rows of a pass, in host memory: those that decode first, then prompts. */
typedef struct pass {
    uint32_t n_rows, n_logits;
    uint32_t n_decode;          /* of n_rows */
    int32_t *token;             /* [max_rows], as the next two */
    uint32_t *pos, *seq;
    uint32_t *logit_row;        /* [max_logits] ascending */
    float *logits;              /* [max_logits][n_vocab] */
} pass;

/* Keys and values of one layer, of the sequences that a lane's prompt rows belong to: on an
 * accelerator, while those of all layers lie in RAM. */
typedef struct prompt_room {
    sl_kv_view view;            /* its blocks [n_seq], in the memory below */
    void *memory;
    const uint32_t **tables;    /* [n_seq] -> table, of sequences that are there */
    uint32_t *table;            /* [n_blocks] 0, 1, 2 ... */
    uint32_t n_blocks;
} prompt_room;

/* Some neighbouring rows of a pass, and everything that their stages write. */
typedef struct lane {
    /* What stages of the cpu device get; without an accelerator that is all there is. */
    sl_batch host;
    sl_batch dev;               /* what an accelerator's stages get: its own memory */
    void *host_memory, *dev_memory;     /* behind their pointers */
    uint32_t step;              /* of the pipe, to be submitted next */
    uint32_t n_decode;          /* the first rows, which an accelerator does not attend for */
    prompt_room prompts;
    sl_event down;              /* copies down that the next step on the CPU reads */
    uint32_t *logit_row;        /* [max_logits] counted from the lane's first row */
    int32_t *row_at;            /* [rows] 0, 1, 2 ...: tokens of an embedding of single rows */
    bool *row_failed;           /* [rows] */
    sl_expert_run *runs;        /* [n_expert + 1] */
    uint32_t *run_rows;         /* [rows * n_used] rows grouped by expert */
    float *run_weights;
    uint32_t *run_start;        /* [n_expert + 1] */
    /* weights that arrive out of order */
    sl_expert_run *part;        /* [n_expert + 1] what one call computes */
    float *out;                 /* [stored runs][d_model] outputs that wait */
    float *dev_out;             /* the same on an accelerator */
    uint32_t *ids;              /* [n_expert] the layer's distinct experts */
    uint32_t *ready;            /* [n_expert] */
    sl_expert_data *data;       /* [n_expert] */
    /* a guess at the next layer: what its router says of this layer's hidden states */
    uint32_t *guess;            /* [stored_rows][n_used] */
    float *guess_w, *guess_shared;
    uint32_t *likely;           /* [n_expert] distinct guesses, the likeliest first */
} lane;

enum { MAX_LANES = 2 };

struct sl_engine {
    sl_ctx *ctx;
    sl_model *m;
    sl_plan plan;
    sl_pool *pool;
    sl_device *cpu;
    sl_device *dev;             /* the plan's accelerator; NULL: it has none */
    weights loaded;
    board board;                /* weights on the accelerator */
    sl_weights weights;         /* the model's, with data and this context's rope */
    double *inv_freq;
    sl_step *steps;
    uint32_t n_steps;
    kv_cache kv;
    pass pass;
    lane lanes[MAX_LANES];
    seq *seqs;                  /* [n_seq] */
    int32_t *token_store;       /* [n_seq][n_ctx] */
    uint32_t *order;            /* [n_seq] scratch: slots by order of submission */
    sl_sampler_room *room;
    int32_t *eog;               /* ids that end generation */
    uint32_t n_eog;
    sl_engine_event *events;
    uint32_t n_events;
    sl_seq next_id;
    uint64_t next_order;
    sl_engine_stats stats;
    sl_trace_fn trace;
    void *trace_user;
    char error[320];            /* why sequences failed in this step */
};

/* The pass's arrays and all lanes. lanes_fini accepts what lanes_init left half done. */
sl_status lanes_init(sl_engine *e);
void lanes_fini(sl_engine *e);
/* The pass's rows, shared out. Returns how many lanes have some. */
uint32_t lanes_cut(sl_engine *e);
/* Runs every step of the pipe on the rows of the pass, whose logits are there afterwards. */
sl_status exec_pass(sl_engine *e);

#endif
