/* runtime/source.h - what the parts of a source share. Private to runtime/. */
#ifndef SOURCE_H
#define SOURCE_H

#include "runtime/sl_gguf.h"
#include "runtime/sl_source.h"

/* The shape of a GGUF by its tensors' names and a few keys, for architectures that are not in the
 * table. layers: the caller frees them. Errors: SL_E_FORMAT (naming the key or tensor that is
 * missing or absurd), SL_E_NOMEM. */
sl_status source_shape_by_names(sl_ctx *ctx, const sl_gguf *g, const char *arch, sl_shape *ret,
                                sl_layer_shape **ret_layers);

#endif
