/* tools/stop.h - stop strings in a stream of text: what could be the start of one is held back, and
 * a stop string itself never comes out.
 * Owns its buffer. Threads: one per stream. Units: bytes. Tested by tests/t_stop.c.
 * The result does not depend on how the text was cut into pushes: the stop string that ends first
 * counts, and of those that end at the same byte the longest. */
#ifndef STOP_H
#define STOP_H

#include "tools/cli.h"

typedef struct cli_stop {
    const cli_strings *stops;   /* the caller's; empty strings never match */
    char *held;
    size_t n, cap;
    size_t max;                 /* bytes of the longest stop string */
} cli_stop;

void cli_stop_init(cli_stop *s, const cli_strings *stops);
void cli_stop_fini(cli_stop *s);

/* Takes n bytes. *ret_text [*ret_n] may be shown now; it is valid until the next call. *ret_hit: a
 * stop string was met, *ret_text is what stood before it, and the stream starts anew. False: no
 * memory. */
SL_NODISCARD bool cli_stop_push(cli_stop *s, const char *text, size_t n, const char **ret_text,
                                size_t *ret_n, bool *ret_hit);
/* The end of the stream: what was held back. */
void cli_stop_flush(cli_stop *s, const char **ret_text, size_t *ret_n);

#endif
