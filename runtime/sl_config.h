/* runtime/sl_config.h - a Hugging Face config.json as a row like those of perfmodel/sl_preset.h.
 * Families are known by their model_type; of others the usual names of fields are recognised.
 * Models without experts become rows with n_expert 0 whose layers are all dense.
 * Owns the row. What changes no size (scales, routing, rope bases) is not read, so such a row is
 * for shapes, not for synth. Must not print. Units: elements, positions.
 * Tested by tests/t_config.c (real families against the table) and tests/fuzz_config.c. */
#ifndef SL_CONFIG_H
#define SL_CONFIG_H

#include "perfmodel/sl_preset.h"

enum { SL_CONFIG_LAYERS_MAX = 2048 };

typedef struct sl_config {
    sl_preset preset;           /* its texts are those below */
    /* last part of _name_or_path, else the folder of a config.json, else the file's name */
    char name[96];
    char arch[64];              /* GGUF's name; of an unknown family: its model_type */
    char layout[SL_CONFIG_LAYERS_MAX + 1];
} sl_config;

/* Every number is checked by itself, and then all together: a total above 10^14 weights is refused.
 * Errors: SL_E_IO, SL_E_FORMAT (naming the file, the path of the field, what was expected and what
 * was found), SL_E_UNSUPPORTED (layers of a kind whose sizes are not known), SL_E_NOMEM. The caller
 * frees *ret. */
SL_API SL_NODISCARD sl_status sl_config_load(sl_ctx *ctx, const char *path, sl_config **ret);
/* The same from text; path is only a name. */
SL_API SL_NODISCARD sl_status sl_config_parse(sl_ctx *ctx, const char *path, const char *text,
                                              size_t n, sl_config **ret);
SL_API void sl_config_free(sl_config **c);      /* *c may be NULL, and is NULL afterwards */

#endif
