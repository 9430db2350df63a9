/* tools/batch_file.h - files of requests and of results, as JSON lines: what `sluice batch` reads
 * and writes.
 * Owns the input's text, the table of its lines and the open results file. Threads: the main
 * thread. Tested by tests/t_batch_cli.py.
 *
 * A request is one line, in one of two forms:
 *     {"custom_id": "a", "prompt": TEXT or "messages": [{"role": .., "content": ..}], settings}
 *     {"custom_id": "a", "method": "POST", "url": .., "body": {the same}}     OpenAI's batch form
 * settings: max_tokens (or max_completion_tokens), temperature, top_k, top_p, min_p,
 * repeat_penalty, seed, stop (a text or a list); others that would change the answer are refused.
 * Without custom_id a line is called "line-N".
 *
 * A result is written in one piece when its request has ended: an interrupted run loses none that
 * was written, and at most its last line is torn, which the next run cuts off. Each holds
 * request_id, a hash of the request, the model and the settings: what the file has already is not
 * computed again, and a file of another run is told from it. */
#ifndef BATCH_FILE_H
#define BATCH_FILE_H

#include <jansson.h>

#include "runtime/sl_chat.h"
#include "runtime/sl_sampler.h"
#include "tools/cli.h"

typedef struct batch_line {
    size_t at, n;               /* in the input's text, without the newline */
    uint32_t number;            /* from 1 */
    char *id;
    uint64_t hash;
    bool todo;                  /* well-formed, and without a result yet */
} batch_line;

typedef struct batch_file {
    const char *in_name, *out_name;
    char *text;
    batch_line *lines;          /* [n] those that are well-formed, in the order of the input */
    uint32_t n, n_done, n_bad;  /* n_done: had a result already */
    bool hinted;                /* a misspelt field was named */
    uint32_t *by_id;            /* [n_ids] lines in the order of their ids */
    uint32_t n_ids;
    int out;                    /* -1: not open */
    uint64_t out_bytes;         /* written whole */
    int64_t sync_at;            /* when they go to the disk next */
} batch_file;

/* What one line asks for. Texts live as long as root. */
typedef struct batch_request {
    json_t *root;
    bool openai;
    bool chat;                  /* messages; otherwise a prompt */
    const char *prompt;
    size_t n_prompt;
    sl_chat_msg *messages;
    size_t n_messages;
    uint32_t max_tokens;
    sl_sampler_params sampler;
    cli_strings stops;
} batch_request;

typedef struct batch_defaults {
    uint32_t max_tokens;
    sl_sampler_params sampler;  /* seed: each request draws with one of its own made of it */
    cli_strings stops;
    const char *settings;       /* what else changes results, as a text: the model */
} batch_defaults;

/* Reads the input (a file, or "-") and looks at every line; malformed ones are reported, counted in
 * n_bad and left out. Returns CLI_DONE, or another code after one line. batch_close in any case. */
int batch_open(batch_file *f, sl_ctx *ctx, const char *in, const batch_defaults *d);
void batch_close(batch_file *f);

/* Opens the results and marks what has one already. CLI_FAILED after one line: it is no results
 * file, or of another run. */
int batch_open_results(batch_file *f, const char *out);
/* One result, a newline behind it; takes obj over. CLI_FAILED after one line: the disk is full or
 * broken, and the file ends with the last whole line. */
int batch_write(batch_file *f, json_t *obj);
/* Puts the results into the order of the input, under another name first. */
int batch_sort(batch_file *f, sl_ctx *ctx);

/* The request of a line; false: why [200] says what is wrong with it. batch_request_free in any
 * case. */
bool batch_parse(const batch_file *f, const batch_line *l, const batch_defaults *d,
                 batch_request *ret, char why[200]);
void batch_request_free(batch_request *r);

/* A result's object, text and error either of which is NULL. */
typedef struct batch_answer {
    const char *text;
    size_t n_text;
    const char *finish_reason;  /* "stop" or "length" */
    uint32_t n_prompt, n_completion;
    const char *model;
    int64_t created;            /* seconds since 1970 */
    const char *error;
} batch_answer;
json_t *batch_result(const batch_line *l, const batch_request *r, const batch_answer *a);

#endif
