/* runtime/sl_source.h - a model as a forecast needs it, from whatever describes one: a GGUF file, a
 * Hugging Face config.json (or a folder with one), or a preset's name.
 * Owns the shape. Must not read tensor bytes, print or exit. Threads: a const sl_source may be
 * shared. Units: those of sl_shape.h. Tested by tests/t_source.c, tests/t_config.c and
 * tests/fuzz_config.c. */
#ifndef SL_SOURCE_H
#define SL_SOURCE_H

#include "perfmodel/sl_preset.h"

typedef enum sl_source_kind { SL_SOURCE_GGUF, SL_SOURCE_CONFIG, SL_SOURCE_PRESET } sl_source_kind;

typedef struct sl_source {
    sl_source_kind kind;
    const char *title;          /* "Qwen3 30B-A3B"; of a file: its general.name or file name */
    const char *arch;           /* GGUF's general.architecture, or the model_type of a config.json
                                 * that has no such name */
    const char *quant;          /* as asked for; of a GGUF: the type of most of its weights */
    const char *path;           /* the file that was read; NULL: a preset */
    bool runs;                  /* the engine runs this model */
    const char *why_not;        /* runs is false: a line that says what is missing; else NULL */
    bool exact;                 /* bytes are those of a tensor list; else computed from sizes */
    uint64_t active_params;     /* that a token is multiplied by */
    const sl_shape *shape;
    const sl_preset *preset;    /* NULL: a GGUF */
} sl_source;

/* what: a preset's name, a folder with a config.json, a path ending in .json, or else a GGUF file;
 * tried in this order. quant: what the weights are to be ("Q4_K", or a mix: "Q4_K_M"); NULL: what
 * the model is published in where that is a type of GGUF (gpt-oss: MXFP4), else Q4_K_M; a GGUF has
 * its types already: NULL. Only headers are read, and of a GGUF nothing is kept open.
 * A GGUF of an architecture that the engine does not know is described by its tensors' names.
 * Errors: SL_E_ARG (an unknown quant, or one for a GGUF; neither file nor preset: the message names
 * similar ones), SL_E_IO, SL_E_FORMAT (naming the key or field), SL_E_UNSUPPORTED, SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_source_open(sl_ctx *ctx, const char *what, const char *quant,
                                             sl_source **ret);
SL_API void sl_source_close(sl_source **src);   /* *src may be NULL, and is NULL afterwards */

#endif
