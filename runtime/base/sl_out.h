/* runtime/base/sl_out.h - files that stand under their name when they are whole, and not before.
 * Owns the temporary name. Must not know what is written. Threads: one per context.
 * Tested by tests/t_out.c. */
#ifndef SL_OUT_H
#define SL_OUT_H

#include <stdio.h>

#include "runtime/base/sl_base.h"

typedef struct sl_out {
    FILE *file;                 /* to be written, not closed */
    char *path;                 /* where it will stand: the name asked for, links followed */
    char *part;                 /* its name until then; NULL: path is a device or a pipe, which no
                                 * new file may replace, and is written as it is */
} sl_out;

/* Errors: SL_E_IO, SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_out_open(sl_ctx *ctx, const char *path, sl_out *ret);
/* st SL_OK: the file gets its name, unless a write had failed (SL_E_IO). Otherwise what was written
 * is dropped and st comes back: what stood under the name before still does. */
SL_API SL_NODISCARD sl_status sl_out_close(sl_ctx *ctx, sl_out *out, sl_status st);

#endif
