/* tools/validation.c - the validation log. */
#include "tools/validation.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/machine_file.h"

const char *const validation_names[VALIDATION_N] = {
    "prompt_tok_per_s", "ttft_s", "decode_tok_per_s", "batch_tok_per_s", "hit_rate",
    "disk_bytes_per_token", "stall_share", "peak_rss_bytes",
};

static bool is_share(validation_quantity q)
{
    return q == VALIDATION_HITS || q == VALIDATION_STALL;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double validation_measured(const validation_cell *c)
{
    double v[VALIDATION_RUNS];
    memcpy(v, c->run, c->n_runs * sizeof *v);
    qsort(v, c->n_runs, sizeof *v, ascending);
    return c->n_runs % 2 ? v[c->n_runs / 2] : (v[c->n_runs / 2 - 1] + v[c->n_runs / 2]) / 2;
}

double validation_error(validation_quantity q, double predicted, double measured)
{
    if (is_share(q)) return predicted - measured;
    return measured > 0 ? predicted / measured - 1 : predicted > 0 ? 1 : 0;
}

double validation_spread(validation_quantity q, const validation_cell *c)
{
    double least = c->run[0], most = c->run[0], middle = validation_measured(c);
    for (uint32_t i = 1; i < c->n_runs; i++) {
        least = SL_MIN(least, c->run[i]);
        most = SL_MAX(most, c->run[i]);
    }
    if (is_share(q)) return most - least;
    return middle > 0 ? (most - least) / middle : 0;
}

void validation_of_forecast(const sl_forecast *f, double ret[VALIDATION_N])
{
    ret[VALIDATION_PROMPT] = f->prompt.tok_per_s;
    ret[VALIDATION_TTFT] = f->ttft_s;
    ret[VALIDATION_DECODE] = f->decode.tok_per_s;
    ret[VALIDATION_BATCH] = 0;
    ret[VALIDATION_HITS] = f->hit_rate;
    ret[VALIDATION_DISK] = f->disk_bytes_per_token;
    ret[VALIDATION_STALL] = f->stall_share;
    ret[VALIDATION_PEAK] = (double)f->peak_bytes;
}

static int put(json_t *obj, const char *key, double v)
{
    return json_object_set_new(obj, key, json_real(v));
}

static json_t *cell_json(validation_quantity q, const validation_cell *c, bool calibrated)
{
    json_t *obj = json_object();
    int bad = put(obj, "predicted", c->predicted);
    if (calibrated) bad |= put(obj, "cold", c->cold);
    if (c->n_runs) {
        double measured = validation_measured(c);
        bad |= put(obj, "measured", measured);
        bad |= put(obj, "error", validation_error(q, c->predicted, measured));
        if (calibrated) bad |= put(obj, "cold_error", validation_error(q, c->cold, measured));
        bad |= put(obj, "spread", validation_spread(q, c));
        json_t *runs = json_array();
        for (uint32_t i = 0; i < c->n_runs; i++)
            bad |= json_array_append_new(runs, json_real(c->run[i]));
        bad |= json_object_set_new(obj, "runs", runs);
    }
    if (!bad) return obj;
    json_decref(obj);
    return NULL;
}

json_t *validation_json(const validation_cell cells[VALIDATION_N], bool calibrated)
{
    json_t *all = json_object();
    int bad = !all;
    for (int q = 0; q < VALIDATION_N && !bad; q++)
        if (cells[q].there)
            bad = json_object_set_new(all, validation_names[q],
                                      cell_json((validation_quantity)q, &cells[q], calibrated));
    if (!bad) return all;
    json_decref(all);
    return NULL;
}

char *validation_path(void)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int n = -1;
    if (data && data[0] == '/') n = asprintf(&path, "%s/sluice/validation.jsonl", data);
    else if (home && home[0]) n = asprintf(&path, "%s/.local/share/sluice/validation.jsonl", home);
    return n < 0 ? NULL : path;
}

sl_status validation_append(sl_ctx *ctx, const char *path, const json_t *line)
{
    char *json = json_dumps(line, JSON_REAL_PRECISION(9)), *text = NULL;
    int n = json ? asprintf(&text, "%s\n", json) : -1;
    free(json);
    if (n < 0) return sl_fail(ctx, SL_E_NOMEM, "a line of %s", path);
    sl_status st = cli_make_parents(ctx, path);
    int fd = st == SL_OK ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    if (st == SL_OK && fd < 0) st = sl_fail(ctx, SL_E_IO, "open %s: %s", path, strerror(errno));
    errno = ENOSPC;             /* what a short write means */
    if (st == SL_OK && write(fd, text, (size_t)n) != n)
        st = sl_fail(ctx, SL_E_IO, "append to %s: %s", path, strerror(errno));
    if (fd >= 0 && close(fd) && st == SL_OK)
        st = sl_fail(ctx, SL_E_IO, "append to %s: %s", path, strerror(errno));
    free(text);
    return st;
}

static bool is_verified(const json_t *v)
{
    const char *kind = json_string_value(json_object_get(v, "kind"));
    return json_integer_value(json_object_get(v, "sluice_validation")) == 1 && kind
        && !strcmp(kind, "verified") && json_is_object(json_object_get(v, "quantities"));
}

sl_status validation_load(sl_ctx *ctx, const char *path, json_t **ret)
{
    json_t *all = json_array();
    FILE *in = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0;
    ssize_t n = 0;
    sl_status st = all ? SL_OK : sl_fail(ctx, SL_E_NOMEM, "lines of %s", path);
    if (!in && errno != ENOENT) st = sl_fail(ctx, SL_E_IO, "open %s: %s", path, strerror(errno));
    for (uint32_t at = 1; st == SL_OK && in && (n = getline(&line, &cap, in)) >= 0; at++) {
        json_t *v = json_loadb(line, (size_t)n, 0, NULL);
        if (!v) sl_log(ctx, SL_WARN, "%s, line %" PRIu32 ": no JSON, left out", path, at);
        if (v && is_verified(v) && json_array_append(all, v))
            st = sl_fail(ctx, SL_E_NOMEM, "lines of %s", path);
        json_decref(v);
    }
    if (st == SL_OK && in && ferror(in))
        st = sl_fail(ctx, SL_E_IO, "read %s: %s", path, strerror(errno));
    free(line);
    if (in) fclose(in);
    if (st == SL_OK) *ret = all;
    else json_decref(all);
    return st;
}
