/* tools/cli.h - what the commands of `sluice` share: options from tables, logs, exit codes, files.
 * Owns flags and text. Must not be included outside tools/. Threads: the main thread only.
 * Units: bytes. Tested by tests/t_opt.c and tests/t_cli.py.
 *
 * A command is `int cmd_NAME(int argc, char **argv)` in tools/cmd_NAME.c: argv[0] is the command's
 * name, the return value the exit code. Results go to stdout, everything else to stderr. */
#ifndef CLI_H
#define CLI_H

#include <stdio.h>

#include "runtime/base/sl_base.h"

enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

int cmd_run(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_batch(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_probe(int argc, char **argv);
int cmd_report(int argc, char **argv);
int cmd_synth(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_verify(int argc, char **argv);

/* ---- options ----
 * Tables are static const; `offset` says where in the command's own struct a value lands, so:
 *
 *     struct args { const char *model; uint32_t n; bool json; };
 *     static const cli_option options[] = {
 *         { "-m,--model", CLI_STR, "FILE", "model to read", offsetof(struct args, model), 0, 0 },
 *         { "-n,--rows", CLI_U32, "N", "rows to show", offsetof(struct args, n), 1, 1e6 },
 *         { "--json", CLI_FLAG, NULL, "one JSON object on stdout",
 *           offsetof(struct args, json), 0, 0 },
 *     };
 *     struct args a = { .n = 10 };
 *     cli_group groups[] = { { "Options", options, SL_LEN(options), &a, 0 } };
 *     static const char *const about = "Shows what a file holds.";
 *     cli_spec spec = { "show", "[-m FILE] NAME", about, groups, SL_LEN(groups), 1 };
 *     int code, n;
 *     char *names[1];
 *     if (!cli_parse(&spec, argc, argv, names, &n, &code)) return code;
 */
enum { CLI_LEAST_BYTES = 4096 };    /* --ram 8 was meant to be 8G, --vram 0 none */
typedef enum cli_type {
    CLI_FLAG,       /* bool; takes no value */
    CLI_STR,        /* const char * into argv */
    CLI_STRS,       /* cli_strings: may be given several times */
    CLI_U32,        /* uint32_t in [min, max] */
    CLI_I64,        /* int64_t in [min, max] */
    CLI_SEED,       /* uint64_t up to INT64_MAX; "-1" is random */
    CLI_F32,        /* float in [min, max] */
    CLI_BYTES,      /* uint64_t from CLI_LEAST_BYTES on; "8G"; "auto" is 0 */
    CLI_CHOICE      /* uint32_t, which one of `arg`: "f16|f32" gives 0 or 1 */
} cli_type;

typedef struct cli_option {
    const char *names;      /* "-n,--predict,--n-predict": all mean the same */
    cli_type type;
    const char *arg;        /* the value's name in the help, or its choices; NULL for a flag */
    const char *help;
    size_t offset;
    double min, max;
} cli_option;

typedef struct cli_group {
    const char *title;
    const cli_option *options;  /* at most 64 */
    size_t n;
    void *base;             /* the struct that offsets count from; holds the defaults */
    uint64_t set;           /* bit i: options[i] was given */
} cli_group;

typedef struct cli_spec {
    const char *name;       /* "run" */
    const char *usage;      /* what follows the name in the usage line */
    const char *about;      /* for the help, which breaks lines itself; \n\n: a paragraph */
    cli_group *groups;
    size_t n_groups;
    int max_pos;            /* positional arguments allowed */
} cli_spec;

#define CLI_MAX_STRINGS 16
typedef struct cli_strings { const char *s[CLI_MAX_STRINGS]; uint32_t n; } cli_strings;

/* True: go on; pos [max_pos] (NULL when max_pos is 0) and *ret_n_pos are filled. False: end with
 * *ret_code, all is said: help on stdout and CLI_DONE, or a line and the usage on stderr and
 * CLI_USAGE. A value is the next argument whatever it looks like, or follows '='. "--" ends the
 * options. */
bool cli_parse(cli_spec *spec, int argc, char **argv, char **pos, int *ret_n_pos, int *ret_code);
/* The option of the group with that name, which it must have. */
const cli_option *cli_find_option(const cli_group *g, const char *name);
/* Was one of the group's options given? name is any one of its names. */
bool cli_given(const cli_group *g, const char *name);
/* One line and the usage on stderr; returns CLI_USAGE: for what a table cannot check. */
int cli_usage_error(const cli_spec *spec, const char *fmt, ...) SL_PRINTF(2, 3);

/* Of names "-a,--b" the one that was meant by what was typed, if it is nearer than *best, which is
 * SIZE_MAX at first, and near at all. */
void cli_nearest(const char *typed, const char *names, size_t *best, const char **ret,
                 size_t *ret_n);

/* ---- text to stderr, exit codes ---- */

/* A context that logs to stderr: errors and warnings; notes too when verbose. NULL: no memory,
 * said. */
sl_ctx *cli_ctx(bool verbose);
void cli_note(const char *fmt, ...) SL_PRINTF(1, 2);        /* "sluice: ..." */
void cli_warn(const char *fmt, ...) SL_PRINTF(1, 2);        /* "sluice: warning: ..." */
int cli_fail(const char *fmt, ...) SL_PRINTF(1, 2);         /* "sluice: ..."; returns CLI_FAILED */
int cli_fail_ctx(const sl_ctx *ctx);                        /* the same with sl_error(ctx) */

/* "1.5 GiB", "17.0 MiB", "812 B" into buf, which is returned. */
char *cli_bytes(uint64_t bytes, char buf[24]);

/* Flushes stdout and reports whether all of it was written, in one line otherwise (a full disk, a
 * closed pipe). Returns code, or CLI_FAILED. To end every command that prints a result. */
int cli_end_stdout(int code);

/* ---- files ---- */

/* Where `rest` ("models/NAME", "machines") of what is shipped lies: beside the program, in the
 * source tree it was built in, or installed; malloc'ed. NULL: nowhere, or no memory. */
char *cli_shipped(const char *rest);
/* `model`, or the bundled model's path when it is NULL; the caller frees. NULL: said. */
char *cli_model_path(const char *model);
/* A whole file, or stdin for "-". Any bytes; a NUL follows the last one. The caller frees
 * *ret_text. Errors: SL_E_IO, SL_E_NOMEM. */
SL_NODISCARD sl_status cli_read_file(sl_ctx *ctx, const char *path, char **ret_text, size_t *ret_n);

/* ---- signals ---- */

/* From now on the first Ctrl-C only sets what cli_interrupted tells; the next one kills. Clears
 * it. */
void cli_catch_sigint(void);
bool cli_interrupted(void);
/* Blocks until stdin has something to read; false: Ctrl-C came first. */
bool cli_wait_stdin(void);

/* Bytes: the most memory that was ever resident (getrusage). */
uint64_t cli_peak_rss(void);

double cli_now_s(void);     /* a monotonic clock */
uint64_t cli_random_seed(void);     /* 32 random bits: short enough to be typed again */

#endif
