/* runtime/base/sl_json.h - reading JSON files field by field: every complaint names the file, the
 * path of the field, what was expected and what was found. Writing is jansson's own business.
 * Owns nothing: an sl_json points into a tree that the caller holds. Threads: one per context.
 * Tested by tests/t_json.c. */
#ifndef SL_JSON_H
#define SL_JSON_H

#include <jansson.h>

#include "runtime/base/sl_base.h"

/* A value and where it stands, for messages. */
typedef struct sl_json {
    sl_ctx *ctx;
    const char *file;
    json_t *v;
    char path[120];             /* "dram_read[2].threads"; empty at the root */
} sl_json;

/* The file's text as a tree, whose root is in ret; the caller ends it with json_decref(ret->v).
 * Errors: SL_E_IO, SL_E_FORMAT (line and column), SL_E_NOMEM. file must outlive ret. */
SL_API SL_NODISCARD sl_status sl_json_load(sl_ctx *ctx, const char *file, sl_json *ret);
/* The same from text; file is only a name. */
SL_API SL_NODISCARD sl_status sl_json_parse(sl_ctx *ctx, const char *file, const char *text,
                                            size_t n, sl_json *ret);

/* Fields of an object. Errors: SL_E_FORMAT: it is no object, the field is missing, of another type,
 * or outside [min, max] (numbers are finite). */
SL_API SL_NODISCARD sl_status sl_json_get(const sl_json *j, const char *key, sl_json *ret);
SL_API SL_NODISCARD sl_status sl_json_f64(const sl_json *j, const char *key, double min, double max,
                                          double *ret);
SL_API SL_NODISCARD sl_status sl_json_u64(const sl_json *j, const char *key, uint64_t min,
                                          uint64_t max, uint64_t *ret);
SL_API SL_NODISCARD sl_status sl_json_u32(const sl_json *j, const char *key, uint32_t min,
                                          uint32_t max, uint32_t *ret);
/* At most size - 1 bytes without a NUL, copied. */
SL_API SL_NODISCARD sl_status sl_json_str(const sl_json *j, const char *key, char *ret,
                                          size_t size);
SL_API bool sl_json_has(const sl_json *j, const char *key);

/* An array of min to max values: its length, then its values. */
SL_API SL_NODISCARD sl_status sl_json_array(const sl_json *j, const char *key, size_t min,
                                            size_t max, sl_json *ret, size_t *ret_n);
SL_API void sl_json_at(const sl_json *array, size_t i, sl_json *ret);   /* i below its length */

/* "FILE: PATH: expected WHAT, found ..." as SL_E_FORMAT. */
SL_API sl_status sl_json_expected(const sl_json *j, const char *what);

/* Writes v, indented, by way of sl_out. Takes v over; v NULL: no memory.
 * Errors: SL_E_IO, SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_json_save(sl_ctx *ctx, json_t *v, const char *file);

#endif
