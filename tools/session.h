/* tools/session.h - a model opened and planned from the flags that all running commands share, and
 * the one loop that turns tokens into text.
 * Owns model, engine and trace file. Threads: the main thread. Units: tokens, bytes, seconds.
 * Tested by tests/t_cli.py through the commands. */
#ifndef SESSION_H
#define SESSION_H

#include "offload/sl_trace.h"
#include "runtime/sl_chat.h"
#include "runtime/sluice.h"
#include "tools/cli.h"
#include "tools/forecast.h"
#include "tools/stop.h"

/* ---- flags ---- */

typedef struct cli_engine_args {
    const char *model;          /* NULL: the bundled one */
    const char *trace;          /* --trace-routing FILE */
    uint32_t n_ctx;             /* 0: the model's own */
    uint32_t ctx_cap;           /* of the default context */
    uint32_t n_threads, max_rows;
    uint32_t kv_k, kv_v;        /* choices: 0 f16, 1 f32 */
    const char *device;         /* NULL: auto */
    uint64_t vram_bytes;        /* 0: auto */
    const char *isa;            /* NULL: all that this CPU has */
    uint32_t activations;       /* 0: q8; 1: f32 */
    uint32_t blas;              /* 0: off; 1: on */
    uint64_t ram_bytes;         /* 0: auto */
    const char *policy;         /* NULL: the default */
    uint32_t lookahead;         /* choices: 0 auto, 1 off */
    uint32_t read_depth;        /* requests in flight; 0: what the machine file says */
    uint64_t read_bytes;        /* of a request; 0: the same */
    const char *plan;           /* --plan FILE: what no other flag says is taken from there */
    bool force;                 /* the same for a plan of other hardware */
    uint32_t n_prompt;          /* no flag: what the context must hold, or nothing is loaded */
    bool verbose;
    /* instead of the kept machine file's; instead of any plan made here. May be NULL. */
    const sl_machine *machine;
    const sl_plan *ready;
    bool no_text;               /* a model without a tokenizer will do */
    bool no_banner;
} cli_engine_args;

/* The mask of an ISA's name, NULL being all of this CPU's. CLI_DONE, or CLI_USAGE after one
 * line. */
int cli_isa_mask(const char *isa, uint32_t *ret_mask);
/* Would a pool of n threads (0: the default) start? CLI_DONE, or CLI_USAGE after one line. */
int cli_check_threads(uint32_t n);

#define CLI_CTX_DEFAULT UINT32_MAX  /* n_ctx not given: min(model, ctx_cap) */

cli_engine_args cli_engine_defaults(void);
cli_group cli_engine_group(cli_engine_args *a);     /* "Model and machine" */
/* Of it only the options that are named, into rows [n]: for a command that has others in a form of
 * its own. */
cli_group cli_engine_some(cli_engine_args *a, const char *const *names, size_t n, cli_option *rows);

/* What the flags decide, and what is left to the planner. g: the group of a. available_bytes: what
 * --ram auto shares out; m (may be NULL): how its disk is read. load is left to the caller.
 * CLI_DONE, or another code after one line. */
int cli_planner_params(const cli_engine_args *a, const cli_group *g, sl_ctx *ctx,
                       const sl_shape *shape, const sl_machine *m, uint64_t available_bytes,
                       uint32_t n_seq, sl_planner_params *ret);

/* --device and --vram into the parameters; threads, where they are not given, leave an emulated
 * device its cores. CLI_DONE, or another code after one line. */
int cli_take_device(const cli_engine_args *a, const cli_group *g, sl_ctx *ctx, sl_plan_params *p);

/* What plan and report are asked: which model on which machine, and what is to be done there. */
typedef struct cli_asked {
    const char *quant, *machine, *trace;    /* may be NULL */
    uint32_t n_prompt, n_gen;
} cli_asked;

cli_asked cli_asked_defaults(void);
cli_group cli_asked_group(cli_asked *a);    /* "Forecast" */
/* cli_planner_params with load and, where nobody gave one, a context that holds it. here: m is this
 * machine. */
int cli_asked_params(const cli_asked *a, const cli_engine_args *e, const cli_group *g, sl_ctx *ctx,
                     const sl_shape *shape, const sl_machine *m, bool here,
                     sl_planner_params *ret);

typedef struct cli_sampler_args {
    sl_sampler_params p;
    bool ignore_eog;
    cli_strings stops;
} cli_sampler_args;

cli_sampler_args cli_sampler_defaults(void);        /* a random seed */
cli_group cli_sampler_group(cli_sampler_args *a);   /* "Sampling" */
/* Warns of flags without effect, such as --top-k with --temp 0. */
void cli_sampler_warn(const cli_group *g);

/* ---- a session ---- */

typedef struct cli_session {
    sl_ctx *ctx;
    char *path;
    sl_model *model;
    const sl_vocab *vocab;      /* NULL only with no_text */
    sl_engine *engine;
    sl_trace_writer *trace;
    uint32_t n_ctx;
    uint32_t cpu_mask;          /* --isa */
    uint64_t budget_bytes;      /* --ram, or what is available */
    double load_s;
    bool verbose;
    bool has_forecast;
    sl_forecast forecast;       /* of the load that it was started for */
} cli_session;

/* Opens the model: header and vocabulary. Returns CLI_DONE, or another code after one line; close
 * the session in either case. */
int cli_session_model(const cli_engine_args *a, cli_session *ret);
/* Plans for a load and opens the engine, prints banner and forecast. n_seq sequences; g: the group
 * of a, for warnings. load NULL: the flags and defaults are the plan, and there is no forecast. */
int cli_session_start(const cli_engine_args *a, const cli_group *g, uint32_t n_seq,
                      const sl_load *load, cli_session *s);
/* Both, without a load. */
int cli_session_open(const cli_engine_args *a, const cli_group *g, uint32_t n_seq,
                     cli_session *ret);
/* Returns code, or CLI_FAILED after one line when the trace could not be written whole. */
int cli_session_close(cli_session *s, int code);

/* Tokens of a text that goes on: special tokens in it are recognised, BOS comes in front when
 * `first` and the model wants it, EOS never behind. *ret_ids is malloc'ed. CLI_DONE, or CLI_FAILED
 * after one line. */
int cli_encode_open(cli_session *s, const char *text, size_t n, bool first, int32_t **ret_ids,
                    uint32_t *ret_n);

/* ---- text out ---- */

typedef struct cli_gen {
    /* the request */
    sl_request request;
    const cli_strings *stops;
    sl_chat_view *view;         /* which tokens are shown; NULL: all */
    bool print;                 /* text to stdout as it comes */
    /* the result */
    sl_seq seq;                 /* idle when the call returns */
    int32_t *ids;               /* [n_ids] drawn, malloc'ed */
    uint32_t n_ids;
    char *text;                 /* [n_text] shown or to be shown, malloc'ed */
    size_t n_text;
    const char *reason;         /* "eog", "length", "context", "stop", "interrupted" */
    bool ended;                 /* the last id is an end of generation */
    double ttft_s;              /* from the submit to the first token */
    double prompt_tok_per_s;    /* 0: nothing was measured */
    double decode_tok_per_s;
    double bytes_per_token;     /* weights computed with per decoded token */
    /* of the decoded tokens, where experts are streamed (streamed is set) */
    bool streamed;
    double hit_rate, disk_bytes_per_token, disk_bytes_s, stall_share;
    /* share of what was read ahead that was asked for; < 0: nothing was */
    bool ahead_off;             /* reading ahead was tried and did not pay */
    double ahead_used;
} cli_gen;

/* Runs g->request to its end, a stop string, or Ctrl-C; without a vocabulary there are ids and no
 * text. Returns CLI_DONE, CLI_INTERRUPTED, or CLI_FAILED after one line. cli_gen_free in every
 * case. */
int cli_generate(cli_session *s, cli_gen *g);
void cli_gen_free(cli_gen *g);

/* "peak memory 1.0 GiB of 4.0 GiB" into buf, which is returned. */
char *cli_peak_memory(const cli_session *s, char buf[120]);
/* The footer on stderr. */
void cli_footer(const cli_session *s, const cli_gen *g);

#include <jansson.h>
/* The fields of DESIGN's list that were measured, added to obj; false: no memory. */
bool cli_gen_json(const cli_gen *g, json_t *obj);
/* What was run and in how much memory: model, arch, mode, threads, n_ctx, peak_rss_bytes,
 * budget_bytes. */
bool cli_session_json(const cli_session *s, json_t *obj);
/* One object and a newline on stdout; takes obj over. Returns code, or CLI_FAILED after one
 * line. */
int cli_print_json(json_t *obj, int code);

/* What this process holds now and a plan does not know of: its own pages, and the files of program
 * and libraries whole. 0: unknown. */
uint64_t cli_held_bytes(void);
/* Memory a process may take now: the least of MemAvailable and what cgroups leave. 0: unknown. */
uint64_t cli_available_bytes(void);

#endif
