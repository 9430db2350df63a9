/* tools/batch_file.c - reads requests, writes results, and knows which of them are there. */
#include "tools/batch_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/sl_out.h"

/* FNV-1a. Source: Fowler, Noll, Vo. */
static uint64_t hash(uint64_t h, const void *p, size_t n)
{
    const unsigned char *c = p;
    if (!h) h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) h = (h ^ c[i]) * 1099511628211u;
    return h;
}

/* splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* ---- a line ---- */

static bool complain(char why[200], const char *field, const char *expected)
{
    snprintf(why, 200, "%s: expected %s", field, expected);
    return false;
}

/* A text without NUL, which would end it early where it is used; NULL: it is none. */
static const char *plain(const json_t *v)
{
    const char *s = json_string_value(v);
    return s && strlen(s) == json_string_length(v) ? s : NULL;
}

static bool read_float(const json_t *body, const char *key, double min, double max, float *ret,
                       char why[200])
{
    const json_t *v = json_object_get(body, key);
    char range[64];
    if (!v || json_is_null(v)) return true;
    double x = json_number_value(v);
    snprintf(range, sizeof range, "a number from %g to %g", min, max);
    if (!json_is_number(v) || !(x >= min && x <= max)) return complain(why, key, range);
    *ret = (float)x;
    return true;
}

static bool read_count(const json_t *body, const char *key, json_int_t min, json_int_t max,
                       uint32_t *ret, char why[200])
{
    const json_t *v = json_object_get(body, key);
    char range[64];
    if (!v || json_is_null(v)) return true;
    snprintf(range, sizeof range, "a whole number from %lld to %lld", (long long)min,
             (long long)max);
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
        return complain(why, key, range);
    *ret = (uint32_t)json_integer_value(v);
    return true;
}

static bool read_stops(const json_t *body, cli_strings *ret, char why[200])
{
    json_t *v = json_object_get(body, "stop");
    size_t n = json_is_array(v) ? json_array_size(v) : v && !json_is_null(v);
    if (!n) return true;
    if (n > CLI_MAX_STRINGS) return complain(why, "stop", "at most 16 texts");
    ret->n = 0;
    for (size_t i = 0; i < n; i++) {
        const char *s = plain(json_is_array(v) ? json_array_get(v, i) : v);
        if (!s) return complain(why, "stop", "a text or a list of texts");
        ret->s[ret->n++] = s;
    }
    return true;
}

/* What is not done here and would change the answer. */
static bool check_unsupported(const json_t *body, char why[200])
{
    static const char *const features[] = { "tools", "functions", "response_format", "logit_bias",
                                            "audio", "logprobs", "stream", "best_of", "suffix",
                                            "frequency_penalty", "presence_penalty" };
    const json_t *n = json_object_get(body, "n");
    if (n && !json_is_null(n) && json_integer_value(n) != 1)
        return complain(why, "n", "1, which is all that is done here");
    for (size_t i = 0; i < SL_LEN(features); i++) {
        const json_t *v = json_object_get(body, features[i]);
        bool off = !v || json_is_null(v) || json_is_false(v)
                   || (json_is_number(v) && json_number_value(v) == 0)
                   || (json_is_array(v) && !json_array_size(v))
                   || (json_is_object(v) && !json_object_size(v));
        if (!off) return complain(why, features[i], "nothing: it is not done here");
    }
    return true;
}

static bool read_settings(const json_t *body, const batch_defaults *d, batch_request *r,
                          char why[200])
{
    sl_sampler_params *p = &r->sampler;
    const json_t *seed = json_object_get(body, "seed");
    *p = d->sampler;
    r->stops = d->stops;
    r->max_tokens = d->max_tokens;
    if (seed && !json_is_null(seed)) {
        if (!json_is_integer(seed)) return complain(why, "seed", "a whole number");
        p->seed = (uint64_t)json_integer_value(seed);
    }
    return check_unsupported(body, why)
        && read_count(body, "max_tokens", 1, INT32_MAX, &r->max_tokens, why)
        && read_count(body, "max_completion_tokens", 1, INT32_MAX, &r->max_tokens, why)
        && read_float(body, "temperature", 0, 100, &p->temp, why)
        && read_float(body, "top_p", 0, 1, &p->top_p, why)
        && read_float(body, "min_p", 0, 1, &p->min_p, why)
        && read_float(body, "repeat_penalty", 0.001, 1000, &p->repeat_penalty, why)
        && read_count(body, "top_k", 0, INT32_MAX, &p->top_k, why)
        && read_stops(body, &r->stops, why);
}

/* Text, or OpenAI's list of parts, of which only texts are known here. A list is made into one text
 * that the message keeps. */
static bool read_content(json_t *message, const char **ret, char why[200])
{
    json_t *content = json_object_get(message, "content"), *part;
    size_t i, n = 0;
    if (json_is_string(content)) {
        *ret = plain(content);
        return *ret || complain(why, "content", "a text without NUL");
    }
    if (!json_is_array(content)) return complain(why, "content", "a text");
    json_array_foreach(content, i, part) {
        if (!json_is_string(json_object_get(part, "text")))
            return complain(why, "content", "parts of type text");
        n += json_string_length(json_object_get(part, "text"));
    }
    char *text = malloc(n + 1), *at = text;
    if (!text) return complain(why, "content", "memory");
    json_array_foreach(content, i, part) {
        const json_t *t = json_object_get(part, "text");
        memcpy(at, json_string_value(t), json_string_length(t));
        at += json_string_length(t);
    }
    json_object_set_new(message, "content", json_stringn(text, n));
    free(text);
    *ret = plain(json_object_get(message, "content"));
    return *ret || complain(why, "content", "a text without NUL");
}

static bool read_messages(const json_t *list, batch_request *r, char why[200])
{
    json_t *message;
    size_t i;
    if (!json_is_array(list) || !json_array_size(list))
        return complain(why, "messages", "a list of messages");
    r->chat = true;
    r->messages = calloc(json_array_size(list), sizeof *r->messages);
    if (!r->messages) return complain(why, "messages", "memory");
    json_array_foreach(list, i, message) {
        sl_chat_msg *m = &r->messages[i];
        m->role = plain(json_object_get(message, "role"));
        if (!m->role) return complain(why, "messages", "a role and a content in each");
        if (!read_content(message, &m->content, why)) return false;
    }
    r->n_messages = json_array_size(list);
    return true;
}

static bool read_prompt(const json_t *body, batch_request *r, char why[200])
{
    const json_t *prompt = json_object_get(body, "prompt");
    const json_t *messages = json_object_get(body, "messages");
    if (messages && prompt) return complain(why, "prompt", "either prompt or messages");
    if (messages) return read_messages(messages, r, why);
    if (json_is_array(prompt) && json_array_size(prompt) == 1) prompt = json_array_get(prompt, 0);
    r->prompt = json_string_value(prompt);
    r->n_prompt = json_string_length(prompt);
    return json_is_string(prompt) || complain(why, "prompt", "a text (or messages)");
}

static bool parse(const char *text, size_t n, const batch_defaults *d, batch_request *r,
                  char why[200])
{
    json_error_t err;
    *r = (batch_request){ .root = json_loadb(text, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES,
                                             &err) };
    if (!r->root) {
        snprintf(why, 200, "expected {\"prompt\": \"...\"} and found no JSON at byte %d: %.100s",
                 err.position, err.text);
        return false;
    }
    if (!json_is_object(r->root)) return complain(why, "the line", "an object");
    const json_t *body = json_object_get(r->root, "body"), *id;
    id = json_object_get(r->root, "custom_id");
    if (id && !plain(id)) return complain(why, "custom_id", "a text without NUL");
    r->openai = body != NULL;
    if (body && !json_is_object(body)) return complain(why, "body", "an object");
    if (!body) body = r->root;
    return read_prompt(body, r, why) && read_settings(body, d, r, why);
}

void batch_request_free(batch_request *r)
{
    free(r->messages);
    json_decref(r->root);
    *r = (batch_request){ .root = NULL };
}

bool batch_parse(const batch_file *f, const batch_line *l, const batch_defaults *d,
                 batch_request *ret, char why[200])
{
    bool ok = parse(f->text + l->at, l->n, d, ret, why);
    if (ok && ret->sampler.seed == d->sampler.seed
        && !json_is_integer(json_object_get(ret->openai ? json_object_get(ret->root, "body")
                                                        : ret->root, "seed")))
        ret->sampler.seed = mix(d->sampler.seed ^ hash(0, l->id, strlen(l->id))) >> 1;
    return ok;
}

/* ---- the input ---- */

struct key { const char *id; uint32_t line; };

static int by_id(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    int c = strcmp(x->id, y->id);
    return c ? c : x->line < y->line ? -1 : x->line > y->line;
}

/* Sorts; lines with the id of an earlier one are reported and left out. */
static int index_ids(batch_file *f)
{
    struct key *keys = calloc(f->n + 1ull, sizeof *keys);
    f->by_id = calloc(f->n + 1ull, sizeof *f->by_id);
    if (!keys || !f->by_id) {
        free(keys);
        return cli_fail("out of memory");
    }
    for (uint32_t i = 0; i < f->n; i++) keys[i] = (struct key){ f->lines[i].id, i };
    qsort(keys, f->n, sizeof *keys, by_id);
    for (uint32_t i = 0; i < f->n; i++) {
        batch_line *l = &f->lines[keys[i].line];
        const batch_line *last = f->n_ids ? &f->lines[f->by_id[f->n_ids - 1]] : NULL;
        if (last && !strcmp(last->id, l->id)) {
            cli_warn("%s:%" PRIu32 ": custom_id \"%.80s\" is line %" PRIu32 "'s too: left out",
                     f->in_name, l->number, l->id, last->number);
            l->todo = false;
            f->n_bad++;
            continue;
        }
        f->by_id[f->n_ids++] = keys[i].line;
    }
    free(keys);
    return CLI_DONE;
}

/* Fields that mean nothing here may be the user's own; one that nearly means something is said. */
static void hint_field(batch_file *f, const batch_request *r, uint32_t number)
{
    static const char *const known = "prompt,messages,max_tokens,max_completion_tokens,temperature,"
                                     "top_p,min_p,top_k,repeat_penalty,seed,stop,custom_id,body";
    const char *key;
    json_t *body = r->openai ? json_object_get(r->root, "body") : r->root, *v;
    json_object_foreach(body, key, v) {
        const char *near = NULL;
        size_t best = SIZE_MAX, n = 0;
        cli_nearest(key, known, &best, &near, &n);
        if (!near || !best) continue;
        cli_warn("%s:%" PRIu32 ": \"%s\" has no effect: is %.*s meant?", f->in_name, number, key,
                 (int)n, near);
        f->hinted = true;
        return;
    }
}

/* One line of the input into the table. */
static int take_line(batch_file *f, size_t at, size_t n, uint32_t number, const batch_defaults *d)
{
    batch_request r;
    char why[200];
    bool ok = parse(f->text + at, n, d, &r, why);
    const char *id = json_string_value(json_object_get(r.root, "custom_id"));
    char named[32];
    snprintf(named, sizeof named, "line-%" PRIu32, number);
    if (ok) {
        if (!f->hinted) hint_field(f, &r, number);
        batch_line *l = &f->lines[f->n++];
        uint64_t h = hash(hash(0, d->settings, strlen(d->settings)), f->text + at, n);
        *l = (batch_line){ .at = at, .n = n, .number = number, .todo = true, .hash = h,
                           .id = strdup(id ? id : named) };
        ok = l->id != NULL;
        batch_request_free(&r);
        return ok ? CLI_DONE : cli_fail("out of memory");
    }
    batch_request_free(&r);
    cli_warn("%s:%" PRIu32 ": %s: left out", f->in_name, number, why);
    f->n_bad++;
    return CLI_DONE;
}

static bool blank(const char *p, size_t n)
{
    while (n && strchr(" \t\r", *p)) p++, n--;
    return !n;
}

int batch_open(batch_file *f, sl_ctx *ctx, const char *in, const batch_defaults *d)
{
    size_t n, n_lines = 1;
    *f = (batch_file){ .in_name = in, .out = -1 };
    if (cli_read_file(ctx, in, &f->text, &n) != SL_OK) return cli_fail_ctx(ctx);
    for (size_t i = 0; i < n; i++) n_lines += f->text[i] == '\n';
    if (n_lines > UINT32_MAX) return cli_fail("%s: more than %u lines", in, UINT32_MAX);
    f->lines = calloc(n_lines, sizeof *f->lines);
    if (!f->lines) return cli_fail("out of memory");
    uint32_t number = 1;
    for (size_t at = 0; at < n; number++) {
        const char *end = memchr(f->text + at, '\n', n - at);
        size_t len = end ? (size_t)(end - (f->text + at)) : n - at;
        int code = blank(f->text + at, len) ? CLI_DONE : take_line(f, at, len, number, d);
        if (code != CLI_DONE) return code;
        at += len + 1;
    }
    if (!f->n && !f->n_bad) return cli_fail("%s: no request in it", in);
    return index_ids(f);
}

void batch_close(batch_file *f)
{
    for (uint32_t i = 0; i < f->n; i++) free(f->lines[i].id);
    free(f->lines);
    free(f->by_id);
    free(f->text);
    if (f->out >= 0) close(f->out);
    *f = (batch_file){ .out = -1 };
}

/* ---- results ---- */

static batch_line *find_id(const batch_file *f, const char *id)
{
    uint32_t lo = 0, hi = f->n_ids;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        batch_line *l = &f->lines[f->by_id[mid]];
        int c = strcmp(l->id, id);
        if (!c) return l;
        if (c < 0) lo = mid + 1;
        else hi = mid;
    }
    return NULL;
}

static void request_id(const batch_line *l, char ret[24])
{
    snprintf(ret, 24, "req_%016" PRIx64, l->hash);
}

/* The line of the input that a result is of; NULL: it is none of ours, and one line said why. */
static batch_line *line_of(const batch_file *f, const char *text, size_t n, uint32_t number)
{
    json_t *root = json_loadb(text, n, JSON_ALLOW_NUL, NULL);
    const char *id = json_string_value(json_object_get(root, "custom_id"));
    const char *request = json_string_value(json_object_get(root, "request_id"));
    batch_line *l = id ? find_id(f, id) : NULL;
    char want[24] = "";
    if (l) request_id(l, want);
    if (!root || !id || !request)
        cli_fail("%s:%" PRIu32 ": no result of `sluice batch`; -o names a file of its own",
                 f->out_name, number);
    else if (!l)
        cli_fail("%s:%" PRIu32 ": a result of another run: %s has no custom_id \"%.80s\"",
                 f->out_name, number, f->in_name, id);
    else if (strcmp(want, request)) {
        cli_fail("%s:%" PRIu32 ": a result of another run: \"%.80s\" was asked for with another "
                 "line, model or setting", f->out_name, number, id);
        l = NULL;
    }
    json_decref(root);
    return l;
}

/* Could this have become a result? */
static bool torn(const char *text, size_t n)
{
    static const char *const begins[] = { "{\"custom_id\":", "{\"id\":\"batch_req_" };
    for (size_t i = 0; i < SL_LEN(begins); i++)
        if (!memcmp(text, begins[i], SL_MIN(n, strlen(begins[i])))) return true;
    return false;
}

/* Marks what the results have; *ret_whole: bytes up to the last newline. */
static int take_results(batch_file *f, const char *text, size_t n, size_t *ret_whole)
{
    size_t at = 0;
    for (uint32_t number = 1;; number++) {
        const char *end = memchr(text + at, '\n', n - at);
        if (!end) break;
        size_t len = (size_t)(end - (text + at));
        batch_line *l = line_of(f, text + at, len, number);
        if (!l) return CLI_FAILED;
        f->n_done += l->todo;
        l->todo = false;
        at += len + 1;
    }
    *ret_whole = at;
    if (at == n || torn(text + at, n - at)) return CLI_DONE;
    return cli_fail("%s: its end is no result of `sluice batch`; -o names a file of its own",
                    f->out_name);
}

/* The whole of an open file; NULL: said. */
static char *read_all(const batch_file *f, size_t *ret_n)
{
    struct stat st;
    if (fstat(f->out, &st) != 0 || !S_ISREG(st.st_mode)) {
        cli_fail("%s: expected a file", f->out_name);
        return NULL;
    }
    size_t n = 0, all = (size_t)st.st_size;
    char *text = malloc(all + 1);
    while (text && n < all) {
        ssize_t got = pread(f->out, text + n, all - n, (off_t)n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (!text || n < all) {
        cli_fail("read %s: %s", f->out_name, text ? strerror(errno) : "out of memory");
        free(text);
        return NULL;
    }
    *ret_n = n;
    return text;
}

int batch_open_results(batch_file *f, const char *out)
{
    size_t n, whole = 0;
    f->out_name = out;
    f->out = open(out, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (f->out < 0) return cli_fail("open %s: %s", out, strerror(errno));
    struct stat a, b;
    if (!fstat(f->out, &a) && !stat(f->in_name, &b) && a.st_dev == b.st_dev
        && a.st_ino == b.st_ino)
        return cli_fail("%s: results would go into the file of requests", out);
    if (flock(f->out, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return cli_fail("%s: another run is writing to it", out);
    char *text = read_all(f, &n);
    if (!text) return CLI_FAILED;
    int code = take_results(f, text, n, &whole);
    free(text);
    if (code != CLI_DONE) return code;
    if (whole < n) cli_note("%s: its last line was torn off and is done again", out);
    if (ftruncate(f->out, (off_t)whole) != 0) return cli_fail("cut %s: %s", out, strerror(errno));
    f->out_bytes = whole;
    return CLI_DONE;
}

int batch_write(batch_file *f, json_t *obj)
{
    char *text = obj ? json_dumps(obj, JSON_COMPACT) : NULL;
    json_decref(obj);
    if (!text) return cli_fail("out of memory, or a result is no valid JSON");
    size_t n = strlen(text), done = 0;
    text[n++] = '\n';           /* in the place of the NUL */
    while (done < n) {
        ssize_t put = pwrite(f->out, text + done, n - done, (off_t)(f->out_bytes + done));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) break;
        done += (size_t)put;
    }
    free(text);
    if (done == n) {
        f->out_bytes += n;
        if (time(NULL) >= f->sync_at) {     /* a power cut loses seconds */
            (void)fdatasync(f->out);
            f->sync_at = time(NULL) + 5;
        }
        return CLI_DONE;
    }
    int err = errno;
    if (ftruncate(f->out, (off_t)f->out_bytes) != 0) err = errno;
    return cli_fail("write %s: %s; what it holds is whole, and the same command goes on from there",
                    f->out_name, strerror(err));
}

/* Results as read [n], one text for each line of the input. */
static sl_status write_sorted(sl_ctx *ctx, const batch_file *f, const char *text, size_t n,
                              FILE *out)
{
    struct part { const char *at; size_t n; } *parts = calloc(f->n + 1ull, sizeof *parts);
    if (!parts) return sl_fail(ctx, SL_E_NOMEM, "table of %" PRIu32 " results", f->n);
    for (size_t at = 0, len; at < n; at += len) {
        const char *end = memchr(text + at, '\n', n - at);
        if (!end) break;
        len = (size_t)(end - (text + at)) + 1;
        const batch_line *l = line_of(f, text + at, len - 1, 0);
        if (!l) {
            free(parts);
            return sl_fail(ctx, SL_E_FORMAT, "a result of none of the requests");
        }
        parts[l - f->lines] = (struct part){ text + at, len };
    }
    for (uint32_t i = 0; i < f->n; i++)
        if (parts[i].n) fwrite(parts[i].at, 1, parts[i].n, out);
    free(parts);
    if (fflush(out) || fsync(fileno(out)))
        return sl_fail(ctx, SL_E_IO, "write: %s", strerror(errno));
    return SL_OK;
}

int batch_sort(batch_file *f, sl_ctx *ctx)
{
    size_t n;
    sl_out out;
    char *text = read_all(f, &n);
    if (!text) return CLI_FAILED;
    sl_status st = sl_out_open(ctx, f->out_name, &out);
    if (st == SL_OK) st = sl_out_close(ctx, &out, write_sorted(ctx, f, text, n, out.file));
    free(text);
    if (st == SL_OK) return CLI_DONE;
    return cli_fail("put %s in order: %s; it is whole as it is", f->out_name, sl_error(ctx));
}

/* ---- a result ---- */

/* A text that may have been cut within a character. */
static json_t *readable(const char *text)
{
    char copy[256];
    json_t *v = json_string(text);
    if (v) return v;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *c = copy; *c; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    return json_string(copy);
}

static json_t *usage(const batch_answer *a)
{
    return json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)a->n_prompt,
                     "completion_tokens", (json_int_t)a->n_completion, "total_tokens",
                     (json_int_t)a->n_prompt + a->n_completion);
}

static json_t *openai_body(const batch_line *l, const batch_request *r, const batch_answer *a)
{
    char id[40];
    json_t *text = json_stringn(a->text, a->n_text), *choice;
    snprintf(id, sizeof id, "%s-%016" PRIx64, r->chat ? "chatcmpl" : "cmpl", l->hash);
    if (r->chat)
        choice = json_pack("{s:i, s:{s:s, s:o}, s:n, s:s}", "index", 0, "message", "role",
                           "assistant", "content", text, "logprobs", "finish_reason",
                           a->finish_reason);
    else
        choice = json_pack("{s:i, s:o, s:n, s:s}", "index", 0, "text", text, "logprobs",
                           "finish_reason", a->finish_reason);
    return json_pack("{s:s, s:s, s:I, s:o, s:[o], s:o}", "id", id, "object",
                     r->chat ? "chat.completion" : "text_completion", "created",
                     (json_int_t)a->created, "model", readable(a->model), "choices", choice,
                     "usage", usage(a));
}

json_t *batch_result(const batch_line *l, const batch_request *r, const batch_answer *a)
{
    char request[24], id[40];
    request_id(l, request);
    snprintf(id, sizeof id, "batch_%s", request);
    if (r->openai && a->error)
        return json_pack("{s:s, s:s, s:s, s:n, s:{s:s, s:o}}", "id", id, "custom_id", l->id,
                         "request_id", request, "response", "error", "code", "invalid_request",
                         "message", readable(a->error));
    if (r->openai)
        return json_pack("{s:s, s:s, s:s, s:{s:i, s:s, s:o}, s:n}", "id", id, "custom_id", l->id,
                         "request_id", request, "response", "status_code", 200, "request_id",
                         request, "body", openai_body(l, r, a), "error");
    if (a->error)
        return json_pack("{s:s, s:o, s:s}", "custom_id", l->id, "error", readable(a->error),
                         "request_id", request);
    return json_pack("{s:s, s:o, s:s, s:o, s:s}", "custom_id", l->id, "text",
                     json_stringn(a->text, a->n_text), "finish_reason", a->finish_reason, "usage",
                     usage(a), "request_id", request);
}
