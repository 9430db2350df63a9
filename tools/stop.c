/* tools/stop.c - stop strings in a stream of text.
 * Invariant: between calls held[0..n) is a proper prefix of some stop string, so n < max; text that
 * was shown is dropped at the start of the next push. Cost: n * stops * length, on a few bytes per
 * token. */
#include "tools/stop.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void cli_stop_init(cli_stop *s, const cli_strings *stops)
{
    *s = (cli_stop){ .stops = stops };
    for (uint32_t i = 0; i < stops->n; i++) s->max = SL_MAX(s->max, strlen(stops->s[i]));
}

void cli_stop_fini(cli_stop *s)
{
    free(s->held);
    *s = (cli_stop){ .stops = NULL };
}

/* Where in text[0..end) a stop string starts that ends at `end`; end when there is none. */
static size_t match_at(const cli_stop *s, const char *text, size_t end)
{
    size_t start = end;
    for (uint32_t i = 0; i < s->stops->n; i++) {
        size_t len = strlen(s->stops->s[i]);
        if (!len || len > end || memcmp(text + end - len, s->stops->s[i], len)) continue;
        start = SL_MIN(start, end - len);
    }
    return start;
}

/* Bytes at the end of text[0..n) that are the start of a stop string: the most there can be. */
static size_t pending(const cli_stop *s, const char *text, size_t n)
{
    for (size_t len = SL_MIN(n, s->max ? s->max - 1 : 0); len > 0; len--)
        for (uint32_t i = 0; i < s->stops->n; i++)
            if (strlen(s->stops->s[i]) > len && !memcmp(text + n - len, s->stops->s[i], len))
                return len;
    return 0;
}

bool cli_stop_push(cli_stop *s, const char *text, size_t n, const char **ret_text, size_t *ret_n,
                   bool *ret_hit)
{
    *ret_hit = false;
    if (!s->max) {          /* no stop strings: nothing to hold */
        *ret_text = text;
        *ret_n = n;
        return true;
    }
    size_t old = s->n, want = 2 * (old + n);   /* the shown text and a copy of what stays */
    if (want > s->cap) {
        char *more = realloc(s->held, want);
        if (!more) return false;
        s->held = more;
        s->cap = want;
    }
    if (n) memcpy(s->held + old, text, n);
    size_t all = old + n, show = 0;
    for (size_t end = old + 1; end <= all && !*ret_hit; end++) {
        size_t start = match_at(s, s->held, end);
        if (start == end) continue;
        show = start;
        *ret_hit = true;
    }
    s->n = 0;
    if (!*ret_hit) {
        s->n = pending(s, s->held, all);
        show = all - s->n;
    }
    /* What is held moves to the front, and what is shown behind it. */
    char *tail = s->held + all;
    memcpy(tail, s->held, show);
    memmove(s->held, s->held + show, s->n);
    *ret_text = tail;
    *ret_n = show;
    return true;
}

void cli_stop_flush(cli_stop *s, const char **ret_text, size_t *ret_n)
{
    *ret_text = s->held;
    *ret_n = s->n;
    s->n = 0;
}
