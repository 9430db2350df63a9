/* tests/t_stop.c - stop strings: every way of cutting a text into pushes gives the same result,
 * which is the one of a search over the whole text. */
#include "tests/t.h"
#include "tools/stop.h"

/* Text before the stop string that ends first; the longest of those that end there. */
static size_t reference(const cli_strings *stops, const char *text, bool *ret_hit)
{
    for (size_t end = 1; end <= strlen(text); end++) {
        size_t longest = 0;
        for (uint32_t i = 0; i < stops->n; i++) {
            size_t len = strlen(stops->s[i]);
            if (len && len <= end && !memcmp(text + end - len, stops->s[i], len) && len > longest)
                longest = len;
        }
        if (longest) return *ret_hit = true, end - longest;
    }
    *ret_hit = false;
    return strlen(text);
}

/* One run, cut where the bits of `cuts` say; what comes out, and whether a stop string was met. */
static void run(const cli_strings *stops, const char *text, unsigned cuts, char *out, bool *ret_hit)
{
    cli_stop s;
    cli_stop_init(&s, stops);
    size_t n = strlen(text), n_out = 0, shown;
    const char *show;
    *ret_hit = false;
    for (size_t from = 0, i = 1; i <= n && !*ret_hit; i++) {
        if (i < n && !(cuts >> ((i - 1) % 16) & 1)) continue;
        T_NEED(cli_stop_push(&s, text + from, i - from, &show, &shown, ret_hit), "no memory");
        memcpy(out + n_out, show, shown);
        n_out += shown;
        from = i;
    }
    cli_stop_flush(&s, &show, &shown);
    T_CHECK(!*ret_hit || !shown, "nothing is held after a stop string");
    if (shown) memcpy(out + n_out, show, shown);
    out[n_out + shown] = 0;
    cli_stop_fini(&s);
}

static void check(const cli_strings *stops, const char *text, unsigned cuts)
{
    char out[64];
    bool want_hit, hit;
    size_t want = reference(stops, text, &want_hit);
    run(stops, text, cuts, out, &hit);
    T_CHECK(hit == want_hit && strlen(out) == want && !memcmp(out, text, want),
            "\"%s\" cuts %x stops \"%s\"...: got \"%s\" %d, want %zu bytes, %d", text, cuts,
            stops->s[0], out, hit, want, want_hit);
}

int main(void)
{
    t_begin();
    static const cli_strings sets[] = {
        { { "STOP" }, 1 }, { { "aab" }, 1 }, { { "abcdef", "cd" }, 2 }, { { "cd", "abcd" }, 2 },
        { { "" }, 1 }, { { "", "a" }, 2 }, { { "\n\n", "User:" }, 2 }, { { "abab" }, 1 },
        { { NULL }, 0 },
    };
    static const char *const texts[] = {
        "", "a", "no match here", "xSTOP", "STOPx", "STO", "STOSTOP!", "aaab", "aaaaab!", "xabcdef",
        "abcde",
        "abcdx", "line\nline\n\nrest", "Use User: hi", "abaabab", "ababab", "\xc3\xa4STOP",
    };
    for (size_t s = 0; s < SL_LEN(sets); s++)
        for (size_t t = 0; t < SL_LEN(texts); t++)
            for (int r = 0; r < 70; r++)
                check(&sets[s], texts[t], r == 0 ? 0 : r == 1 ? 0xffff : (unsigned)t_rand());
    for (int r = 0; r < 20000; r++) {       /* random strings over two letters: many near matches */
        char text[33] = "", a[6] = "", b[6] = "";
        for (uint32_t i = 0, n = t_below(33); i < n; i++) text[i] = "ab"[t_below(2)];
        for (uint32_t i = 0, n = 1 + t_below(5); i < n; i++) a[i] = "ab"[t_below(2)];
        for (uint32_t i = 0, n = 1 + t_below(5); i < n; i++) b[i] = "ab"[t_below(2)];
        cli_strings stops = { { a, b }, 2 };
        check(&stops, text, (unsigned)t_rand());
    }
    return t_end();
}
