/* runtime/base/json.c - fields of JSON files with messages that name them. */
#include "runtime/base/sl_json.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/sl_out.h"

/* What a value is, as a person would say it, into buf. */
static const char *found(const json_t *v, char buf[64])
{
    if (!v) return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: snprintf(buf, 64, "an array of %zu", json_array_size(v)); return buf;
    case JSON_STRING: snprintf(buf, 64, "\"%.40s\"", json_string_value(v)); return buf;
    case JSON_INTEGER:
        snprintf(buf, 64, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        return buf;
    case JSON_REAL: snprintf(buf, 64, "%g", json_real_value(v)); return buf;
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "?";
}

sl_status sl_json_expected(const sl_json *j, const char *what)
{
    char buf[64];
    return sl_fail(j->ctx, SL_E_FORMAT, "%s: %s: expected %s, found %s", j->file,
                   j->path[0] ? j->path : "(root)", what, found(j->v, buf));
}

static sl_status take(sl_ctx *ctx, const char *file, json_t *v, const json_error_t *e, sl_json *ret)
{
    if (!v)
        return sl_fail(ctx, SL_E_FORMAT, "%s: line %d, column %d: %s", file, e->line, e->column,
                       e->text);
    *ret = (sl_json){ .ctx = ctx, .file = file, .v = v };
    return SL_OK;
}

sl_status sl_json_load(sl_ctx *ctx, const char *file, sl_json *ret)
{
    json_error_t e;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return sl_fail(ctx, SL_E_IO, "open %s: %s", file, strerror(errno));
    json_t *v = json_loadfd(fd, JSON_REJECT_DUPLICATES, &e);
    close(fd);
    return take(ctx, file, v, &e, ret);
}

sl_status sl_json_parse(sl_ctx *ctx, const char *file, const char *text, size_t n, sl_json *ret)
{
    json_error_t e;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    return take(ctx, file, v, &e, ret);
}

bool sl_json_has(const sl_json *j, const char *key)
{
    return json_object_get(j->v, key) != NULL;      /* no object: false */
}

sl_status sl_json_get(const sl_json *j, const char *key, sl_json *ret)
{
    if (!json_is_object(j->v)) return sl_json_expected(j, "an object");
    sl_json r = { .ctx = j->ctx, .file = j->file, .v = json_object_get(j->v, key) };
    snprintf(r.path, sizeof r.path, "%.*s%s%.60s", (int)sizeof r.path - 64, j->path,
             j->path[0] ? "." : "", key);
    if (!r.v) return sl_json_expected(&r, "a value");
    *ret = r;
    return SL_OK;
}

sl_status sl_json_f64(const sl_json *j, const char *key, double min, double max, double *ret)
{
    sl_json f;
    char want[80];
    SL_TRY(sl_json_get(j, key, &f));
    double v = json_number_value(f.v);
    snprintf(want, sizeof want, "a number from %g to %g", min, max);
    if (!json_is_number(f.v) || !isfinite(v) || v < min || v > max)
        return sl_json_expected(&f, want);
    *ret = v;
    return SL_OK;
}

sl_status sl_json_u64(const sl_json *j, const char *key, uint64_t min, uint64_t max, uint64_t *ret)
{
    sl_json f;
    char want[96];
    SL_TRY(sl_json_get(j, key, &f));
    json_int_t v = json_integer_value(f.v);
    snprintf(want, sizeof want, "a whole number from %llu to %llu", (unsigned long long)min,
             (unsigned long long)max);
    if (!json_is_integer(f.v) || v < 0 || (uint64_t)v < min || (uint64_t)v > max)
        return sl_json_expected(&f, want);
    *ret = (uint64_t)v;
    return SL_OK;
}

sl_status sl_json_u32(const sl_json *j, const char *key, uint32_t min, uint32_t max, uint32_t *ret)
{
    uint64_t v;
    SL_TRY(sl_json_u64(j, key, min, max, &v));
    *ret = (uint32_t)v;
    return SL_OK;
}

sl_status sl_json_str(const sl_json *j, const char *key, char *ret, size_t size)
{
    sl_json f;
    char want[64];
    SL_TRY(sl_json_get(j, key, &f));
    size_t n = json_string_length(f.v);
    snprintf(want, sizeof want, "a text of at most %zu bytes", size - 1);
    if (!json_is_string(f.v) || n >= size || strlen(json_string_value(f.v)) != n)
        return sl_json_expected(&f, want);
    memcpy(ret, json_string_value(f.v), n + 1);
    return SL_OK;
}

sl_status sl_json_array(const sl_json *j, const char *key, size_t min, size_t max, sl_json *ret,
                        size_t *ret_n)
{
    sl_json f;
    char want[80];
    SL_TRY(sl_json_get(j, key, &f));
    size_t n = json_array_size(f.v);
    snprintf(want, sizeof want, "an array of %zu to %zu values", min, max);
    if (!json_is_array(f.v) || n < min || n > max) return sl_json_expected(&f, want);
    *ret = f;
    *ret_n = n;
    return SL_OK;
}

void sl_json_at(const sl_json *array, size_t i, sl_json *ret)
{
    assert(i < json_array_size(array->v));
    sl_json r = { .ctx = array->ctx, .file = array->file, .v = json_array_get(array->v, i) };
    snprintf(r.path, sizeof r.path, "%.*s[%zu]", (int)sizeof r.path - 24, array->path, i);
    *ret = r;
}

sl_status sl_json_save(sl_ctx *ctx, json_t *v, const char *file)
{
    sl_out out;
    char *text = v ? json_dumps(v, JSON_INDENT(2) | JSON_REAL_PRECISION(10)) : NULL;
    json_decref(v);
    if (!text) return sl_fail(ctx, SL_E_NOMEM, "text of %s", file);
    sl_status st = sl_out_open(ctx, file, &out);
    if (st == SL_OK) {
        fprintf(out.file, "%s\n", text);
        st = sl_out_close(ctx, &out, SL_OK);
    }
    free(text);
    return st;
}
