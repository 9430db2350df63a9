/* sluice.h - the library: open a model, make a plan, open an engine on it, and turn one loop:
 *     submit a sequence's tokens; step until it is done; take each step's events, or let a
 *       callback take them; cancel at any time.
 * tools/examples/two_prompts.c shows all of it. Installed as one file with what it includes:
 *     cc program.c $(pkg-config --cflags --libs sluice)
 * Owns the model, the paged KV cache, the schedule of passes and the sequences. Must not print or
 * exit.
 * Threads: one thread per engine and its context; the engine's pool is its own.
 * Units: tokens, positions, bytes, seconds. Tested by tests/t_arch.c (against the reference
 * implementations), tests/t_engine.c (sameness, cancel, callbacks, limits, no allocation in step),
 * tests/t_budget.c (sameness and memory inside budgets), tests/t_faults.c (a disk that fails),
 * tests/t_install.py (as it is installed). */
#ifndef SLUICE_H
#define SLUICE_H

#include "perfmodel/sl_plan.h"
#include "runtime/base/sl_base.h"
#include "runtime/sl_chat.h"
#include "runtime/sl_gguf.h"
#include "runtime/sl_sampler.h"
#include "runtime/sl_vocab.h"

/* ---- a model: header, shape, vocabulary, weights in place ---- */

typedef struct sl_model sl_model;

/* Reads the header and checks that every tensor the architecture needs is there with its shape.
 * No tensor byte is read. Errors: those of sl_gguf_open; SL_E_UNSUPPORTED (an architecture that is
 * not in the table, named); SL_E_FORMAT (a key or tensor missing or of the wrong shape, named). */
SL_API SL_NODISCARD sl_status sl_model_open(sl_ctx *ctx, const char *path, sl_model **ret);
SL_API void sl_model_close(sl_model **m);           /* after the engines on it */
/* Called by sl_engine_open while it reads weights. fn may be NULL. */
SL_API void sl_model_set_progress(sl_model *m, sl_progress_fn fn, void *user);

SL_API const char *sl_model_name(const sl_model *m);    /* general.name, or the file's name */
SL_API const char *sl_model_arch(const sl_model *m);    /* "qwen3moe" */
SL_API const sl_gguf *sl_model_gguf(const sl_model *m);
SL_API const sl_vocab *sl_model_vocab(const sl_model *m);   /* NULL: the file has no tokenizer */
SL_API const sl_shape *sl_model_shape(const sl_model *m);

/* ---- an engine: a plan being run ---- */

typedef struct sl_engine sl_engine;

/* Reads or maps the weights that the plan keeps, takes all memory it names: nothing allocates in
 * step afterwards.
 * Errors: SL_E_ARG (a plan made for another model), SL_E_NOMEM, SL_E_IO. The caller owns *ret; the
 * model must outlive it. */
SL_API SL_NODISCARD sl_status sl_engine_open(sl_ctx *ctx, sl_model *m, const sl_plan *plan,
                                             sl_engine **ret);
SL_API void sl_engine_close(sl_engine **e);
SL_API const sl_plan *sl_engine_plan(const sl_engine *e);   /* n_threads filled in */

typedef uint32_t sl_seq;        /* names a sequence; 0: none */

typedef struct sl_engine_event sl_engine_event;
/* An event of one request, at the end of the step that made it. May call anything on the engine but
 * step and close: after a cancel no more come of that sequence. */
typedef void (*sl_event_fn)(void *user, sl_engine *e, const sl_engine_event *ev);

typedef struct sl_request {
    sl_seq seq;                 /* 0: a new sequence; else one that is idle: its KV is kept */
    const int32_t *tokens;      /* copied; new text only when seq continues */
    uint32_t n_tokens;          /* at least 1 */
    uint32_t n_predict;         /* tokens to draw after them; 0: none (logits only) */
    bool want_logits;           /* an SL_EV_LOGITS for every token processed, drawn ones too */
    bool ignore_eog;            /* end-of-generation tokens are never drawn */
    uint32_t max_chunk;         /* rows of this sequence per pass; 0: the plan's max_rows */
    sl_sampler_params sampler;  /* used when n_predict > 0 */
    sl_event_fn on_event;       /* may be NULL: the step's list has every event, too */
    void *user;                 /* for on_event */
} sl_request;

/* Errors: SL_E_ARG (an id outside the vocabulary; nothing to do; the sequence is not idle),
 * SL_E_NOMEM (n_seq sequences are alive; or the tokens do not fit the context: the message has both
 * numbers). A failed submit changes nothing. */
SL_API SL_NODISCARD sl_status sl_engine_submit(sl_engine *e, const sl_request *r, sl_seq *ret);

typedef enum sl_event_kind {
    SL_EV_LOGITS,               /* logits after the token at `pos` */
    SL_EV_TOKEN,                /* `token` was drawn; it will stand at `pos` */
    SL_EV_DONE                  /* the sequence is idle now; `reason` */
} sl_event_kind;

typedef enum sl_done {
    /* an end-of-generation token was drawn (its SL_EV_TOKEN came before) */
    SL_DONE_EOG,
    SL_DONE_N_PREDICT,
    SL_DONE_CONTEXT,            /* the context is full */
    SL_DONE_PROMPT,             /* n_predict was 0: the tokens are processed */
    SL_DONE_STOPPED,            /* sl_engine_stop */
    /* weights it needed could not be read, or idle sequences hold all keys and values: `error`;
     * cancel it */
    SL_DONE_FAILED
} sl_done;

struct sl_engine_event {
    sl_event_kind kind;
    sl_seq seq;
    uint32_t pos;
    int32_t token;
    sl_done reason;
    const float *logits;        /* [n_vocab], valid until the next step */
    const char *error;          /* SL_DONE_FAILED: one line, valid until the next step; else NULL */
};

/* One pass over up to max_rows rows: every decoding sequence first, then prompts in order of
 * submission. A prompt begins when there is room for all of its keys and values; when decoding
 * needs more than there is, the sequence submitted last gives its room back and is computed anew
 * when there is some: the oldest never waits. With plan->share_prefixes a prompt that begins like
 * another starts behind what they have in common, if need be when that is computed. None of it
 * changes a sequence's tokens or logits.
 * *ret_ev [*ret_n] is valid until the next step; both may be NULL where callbacks take the events.
 * *ret_n == 0 with nothing left to do: sl_engine_busy is false. A read that fails ends the
 * sequences that needed it (SL_DONE_FAILED), others go on. Errors: SL_E_DEVICE: the engine can only
 * be closed then. */
SL_API SL_NODISCARD sl_status sl_engine_step(sl_engine *e, const sl_engine_event **ret_ev,
                                             uint32_t *ret_n);
SL_API bool sl_engine_busy(const sl_engine *e);

/* Ends drawing: the sequence becomes idle with its KV (a token drawn last is processed with what is
 * submitted next). The next step reports SL_DONE_STOPPED. Idle or unknown sequences: no effect. */
SL_API void sl_engine_stop(sl_engine *e, sl_seq seq);
/* Forgets the sequence and frees its KV blocks, in whatever state it is. */
SL_API void sl_engine_cancel(sl_engine *e, sl_seq seq);
/* Positions of the sequence so far, the pending token included; 0 for an unknown one. */
SL_API uint32_t sl_engine_length(const sl_engine *e, sl_seq seq);

/* What became of a sequence's last request, so far. */
typedef struct sl_request_stats {
    uint32_t prompt_tokens;     /* submitted with it */
    uint32_t shared_tokens;     /* of them not computed: others begin alike (share_prefixes) */
    uint32_t drawn_tokens;
    uint32_t preemptions;       /* its keys and values were given back and computed again */
    double ttft_s;              /* from submit to the first token drawn; 0: none yet */
    double total_s;             /* from submit to its end; 0: it is running */
} sl_request_stats;
/* Until the sequence is cancelled. Zeros for an unknown one. */
SL_API void sl_engine_request_stats(const sl_engine *e, sl_seq seq, sl_request_stats *ret);

/* Counters since open. */
typedef struct sl_engine_stats {
    uint64_t prompt_tokens, drawn_tokens, passes;
    double prompt_s;            /* passes that held prompt rows */
    double decode_s;            /* passes that held decode rows only */
    /* of sequences that begin like others: tokens that were not computed; of sequences that gave
     * their keys and values back: how often, and tokens that were computed again */
    uint64_t shared_tokens, preemptions, recomputed_tokens;
    uint64_t expert_runs;       /* (layer, pass, expert) computed */
    uint64_t bytes_touched;     /* weight bytes computed with in all passes, each once a pass */
    /* of weights that are streamed (all hits otherwise): experts that were in RAM when a layer
     * asked for them, and not; what was read for it; ahead of being asked for, and of that in vain
     * or not */
    uint64_t hits, misses, read_bytes, ahead_bytes, ahead_used_bytes;
    bool ahead_off;             /* looking ahead was measured and did not pay */
    double stall_s;             /* nothing was computed for want of weights */
    sl_misses one_row;          /* of passes of one row, where weights are streamed */
    uint64_t sent_bytes;        /* of weights, to an accelerator, since all that stays there was */
    /* where experts that stay on it follow the routing: of those that passes of few rows asked
     * for, how many were there; and how many came to stay */
    uint64_t stay_hits, stay_misses, stay_changes;
} sl_engine_stats;
/* How the disk is read: "io_uring, O_DIRECT, registered buffers". */
SL_API const char *sl_engine_store_mode(const sl_engine *e);
SL_API void sl_engine_get_stats(const sl_engine *e, sl_engine_stats *ret);

/* Which experts each row of the last pass chose: called after a layer's router, inside step. */
typedef void (*sl_trace_fn)(void *user, uint64_t pass, sl_seq seq, uint32_t pos, uint32_t layer,
                            const uint32_t *ids, uint32_t n);
SL_API void sl_engine_set_trace(sl_engine *e, sl_trace_fn fn, void *user);

#endif
