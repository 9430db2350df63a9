/* runtime/vocab_pre.c - pre-tokenizers: which pattern tokenizer.ggml.pre names, and splitting by
 * it. A pre-tokenizer is a list of steps; each cuts the pieces of the step before, seeing one piece
 * at a time, so that the end of a piece is the end of the text for a look-ahead. What a pattern
 * leaves unmatched is a piece too. Patterns are those of the models' own tokenizer.json files.
 * Bytes that are no UTF-8 are pieces of one byte and no pattern sees them.
 * Cost: linear, whatever the text; what a regular expression cannot do so is a step of its own
 * kind, and a match that exceeds PCRE2's limits is tried again on a shorter stretch. */
#include "runtime/vocab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* White_Space of Unicode, which is what the original engines take \s for; PCRE2 adds U+180E. */
#define WS \
    "\\t-\\r " \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define S "[" WS "]"
#define APOS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NL "[\\r\\n]"
#define NOT_LN "[^\\r\\n\\p{L}\\p{N}]"
#define PUNCT " ?[^" WS "\\p{L}\\p{N}]+"
#define SPACES S "+(?!" "[^" WS "])|" S "+"
#define LINES S "*" NL "+|" SPACES

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" PUNCT "|" SPACES
#define LLAMA3 APOS "|" NOT_LN "?\\p{L}+|\\p{N}{1,3}|" PUNCT NL "*|" LINES
#define QWEN2 APOS "|" NOT_LN "?\\p{L}+|\\p{N}|" PUNCT NL "*|" LINES
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(tail) NOT_LN "?" UPPER "*" LOWER "+" tail "|" NOT_LN "?" UPPER "+" LOWER "*" tail
#define GPT4O CASED(APOS "?") "|\\p{N}{1,3}|" PUNCT "[\\r\\n/]*|" LINES
#define CJK3 "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"
#define ASCII_PUNCT "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
#define DEEPSEEK3 \
    ASCII_PUNCT "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+" NL \
                "*|" LINES
#define AFMOE_CJK \
    "[\\x{4e00}-\\x{9fff}\\x{3400}-\\x{4dbf}\\x{f900}-\\x{faff}\\x{3040}-\\x{309f}\\x{30a0}-" \
    "\\x{30ff}\\x{ff65}-\\x{ff9f}\\x{2f00}-\\x{2fdf}\\x{e40}-\\x{e7f}\\x{e80}-\\x{eff}" \
    "\\x{1780}-\\x{17ff}\\x{1000}-\\x{109f}\\x{aa60}-\\x{aa7f}\\x{a9e0}-\\x{a9ff}\\x{ac00}-" \
    "\\x{d7af}\\x{1100}-\\x{11ff}]+"
#define YOUTU_CJK \
    "[\\x{ac00}-\\x{d7a3}\\x{3131}-\\x{318e}]+|[\\x{ff01}\\x{2026}\\x{201c}\\x{201d}\\x{2018}" \
    "\\x{2019}\\x{2014}\\x{ff1a}\\x{ff1b}\\x{ff0c}\\x{3001}-\\x{303f}\\x{fe30}-\\x{fe4f}]+|[" \
    "\\x{3105}-\\x{312f}]+"
#define BLOOM " ?[^(" WS "|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"
/* Characters of \p{Han} are words of their own in Kimi's pattern. */
#define KIMI_UPPER "(?:(?!\\p{Han})" UPPER ")"
#define KIMI_LOWER "(?:(?!\\p{Han})" LOWER ")"
#define KIMI \
    "\\p{Han}+|" NOT_LN "?" KIMI_UPPER "*" KIMI_LOWER "+" APOS "?|" NOT_LN "?" KIMI_UPPER \
    "+" KIMI_LOWER "*" APOS "?|\\p{N}{1,3}|" PUNCT NL "*|" LINES
/* Cased letters, by the list in DeepSeek's file. */
#define DEEPSEEK_LETTERS \
    S "?[A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-" \
    "\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}" \
    "\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}" \
    "\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-" \
    "\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}" \
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-" \
    "\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-" \
    "\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-" \
    "\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}" \
    "\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}" \
    "\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-" \
    "\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-" \
    "\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}" \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-" \
    "\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-" \
    "\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-" \
    "\\x{118df}\\x{1e900}-\\x{1e943}]+"
#define DEEPSEEK_CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"

/* A step that is no pattern is written as one of these. */
#define TRAILING_SPACE "\\s+$"
#define DIGITS_RIGHT "digits in threes from the right"
#define DIGITS_RIGHT_WORD "\\d{1,3}(?=(?:\\d{3})*\\b)"

static const struct pre_row {
    const char *names;              /* of tokenizer.ggml.pre, with a space on either side of each */
    uint32_t flags;
    const char *step[MAX_STEPS];
} rows[] = {
    { " gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert "
      "jina-v1-en jina-v2-code roberta-bpe exaone4 jais trillion granite-docling ",
      0,
      { GPT2 } },
    { " olmo mpt gpt-neox ", PRE_NFC, { GPT2 } },
    { " llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano ",
      PRE_WHOLE_WORDS | PRE_ADD_BOS,
      { LLAMA3 } },
    { " dbrx smaug-bpe ", 0, { LLAMA3 } },
    { " chatglm-bpe ", 0, { LLAMA3 } },
    { " glm4 glm5 ", PRE_WHOLE_WORDS, { LLAMA3 } },
    { " minicpm5 ",
      PRE_WHOLE_WORDS,
      { "\\p{N}{1,3}", APOS "|" NOT_LN "?\\p{L}+|\\p{N}+|" PUNCT NL "*|" LINES } },
    { " qwen2 deepseek-r1-qwen kormo f2llmv2 megrez ", PRE_NFC, { QWEN2 } },
    { " stablelm2 grok-2 hunyuan solar-open ", 0, { QWEN2 } },
    { " laguna ", 0, { "[^\\n]+|\\n+", QWEN2 } },
    { " ufakzeka ", 0, { NOT_LN "?\\p{L}+|\\p{N}|" PUNCT NL "*|" LINES } },
    { " qwen35 ",
      PRE_NFC,
      { APOS "|" NOT_LN "?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS "\\p{L}\\p{M}\\p{N}]+" NL "*|" LINES } },
    { " deepseek-llm ",
      0,
      { NL, DEEPSEEK_LETTERS,
        S "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
        TRAILING_SPACE, DEEPSEEK_CJK, "\\p{N}" } },
    { " deepseek-coder ", 0, { NL, S "?\\p{L}+", S "?\\p{P}+", DEEPSEEK_CJK, "\\p{N}" } },
    { " deepseek-v3 hunyuan-dense joyai-llm hy_v4 ", 0, { "\\p{N}{1,3}", CJK3, DEEPSEEK3 } },
    { " afmoe ", 0, { DIGITS_RIGHT, AFMOE_CJK, DEEPSEEK3 } },
    { " youtu ",
      PRE_WHOLE_WORDS,
      { YOUTU_CJK "|" CJK3, CASED(APOS "?") "|\\p{N}|" PUNCT "[\\r\\n/]*|" LINES } },
    { " gpt-4o llama4 kanana2 talkie minimax-m2 ", 0, { GPT4O } },
    { " granite-embed-multi-97m ", PRE_WHOLE_WORDS, { GPT4O } },
    { " tiny_aya cohere2moe ", 0, { DIGITS_RIGHT_WORD, GPT4O } },
    { " tekken ",
      PRE_WHOLE_WORDS | PRE_ADD_BOS,
      { CASED("") "|\\p{N}|" PUNCT "[\\r\\n/]*|" LINES } },
    { " kimi-k2 ", 0, { KIMI } },
    { " starcoder refact smollm codeshell exaone minerva-7b mellum2 ", 0, { "\\p{N}", GPT2 } },
    { " command-r ", PRE_NFC, { "\\p{N}", GPT2 } },
    { " chameleon ",
      PRE_ADD_BOS,
      { "<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", "[\\t\\n]|    |  ", "\\p{N}",
        "[\\p{P}!-/:-@\\[-`{-~]", GPT2 } },
    { " falcon ", 0, { "[\\p{P}$+<=>^~|`]+", GPT2, "[0-9]{3}" } },
    { " default ", 0, { "[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9]{3}" } },
    { " poro-chat bloom gpt3-finnish ", 0, { BLOOM } },
    { " viking ", 0, { BLOOM, "\\p{N}" } },
    { " superbpe ", 0, { "\\p{N}+", DIGITS_RIGHT } },
    { " bailingmoe bailingmoe2 llada-moe ",
      0,
      { "'(?i:[sdmt]|ll|ve|re)|" NOT_LN "?+\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}]++" NL "*|" S
        "*" NL "|" SPACES } },
    { " seed-coder ",
      0,
      { APOS "|" NOT_LN "?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]+|" LINES } },
    { " exaone-moe ",
      0,
      { APOS "|" NOT_LN "?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}|" PUNCT "[\\r\\n/]?|" S
             "*" NL "|" SPACES } },
    { " jais-2 ",
      0,
      { APOS "|" NOT_LN "?\\p{L}+|\\p{N}{1,3}|" PUNCT NL "*|" S "*" NL "+|" S "{512}(?![^" WS
             "])|" S "{256}(?![^" WS "])|" S "{128}(?![^" WS "])|" S "{64}(?![^" WS "])|" S
             "{32}(?![^" WS "])|" S "{16}(?![^" WS "])|" S "{8}(?![^" WS "])|" S "{4}(?![^" WS
             "])|" S "{1,2}(?![^" WS "])|" S } },
};

bool vocab_pre_find(const char *name, size_t n, uint32_t *ret_row)
{
    for (uint32_t i = 0; i < SL_LEN(rows) && n; i++) {
        for (const char *at = rows[i].names + 1; *at;) {
            size_t len = strcspn(at, " ");
            if (len == n && !memcmp(at, name, n)) {
                *ret_row = i;
                return true;
            }
            at += len + 1;
        }
    }
    return false;
}

static sl_status compile_step(sl_ctx *ctx, const char *pattern, vocab_step *ret)
{
    static const struct { const char *text; vocab_step_kind kind; } own[] = {
        { TRAILING_SPACE, STEP_TRAILING_SPACE }, { DIGITS_RIGHT, STEP_DIGITS_RIGHT },
        { DIGITS_RIGHT_WORD, STEP_DIGITS_RIGHT_WORD },
    };
    for (size_t i = 0; i < SL_LEN(own); i++) {
        if (strcmp(pattern, own[i].text)) continue;
        *ret = (vocab_step){ .kind = own[i].kind };
        return SL_OK;
    }
    int err;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &err, &at, NULL);
    if (!code) {
        char why[128] = "";
        pcre2_get_error_message(err, (PCRE2_UCHAR *)why, sizeof why);
        return sl_fail(ctx, SL_E_UNSUPPORTED, "pattern \"%s\", byte %zu: %s", pattern, (size_t)at,
                       why);
    }
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  /* without it, PCRE2 interprets */
    *ret = (vocab_step){ .kind = STEP_REGEX, .code = code };
    return SL_OK;
}

sl_status vocab_pre_compile(sl_ctx *ctx, sl_vocab *v, uint32_t row)
{
    v->pre_flags = rows[row].flags;
    for (uint32_t i = 0; i < MAX_STEPS && rows[row].step[i]; i++, v->n_steps++)
        SL_TRY(compile_step(ctx, rows[row].step[i], &v->step[i]));
    return SL_OK;
}

void vocab_pre_fini(sl_vocab *v)
{
    for (uint32_t i = 0; i < v->n_steps; i++) pcre2_code_free(v->step[i].code);
    v->n_steps = 0;
}

/* Pieces on their way through a step: cuts[i] is where piece i ends. */
typedef struct cuts {
    vocab_work *w;
    vocab_buf *buf;
    uint32_t n, last;
    bool failed;        /* no memory */
} cuts;

static void cut(cuts *c, uint32_t at)
{
    if (at == c->last || c->failed) return;
    if (!vocab_reserve(c->w, c->buf, ((size_t)c->n + 1) * sizeof(uint32_t))) {
        c->failed = true;
        return;
    }
    ((uint32_t *)c->buf->p)[c->n++] = at;
    c->last = at;
}

static bool begins_character(char c)
{
    return ((unsigned char)c & 0xc0) != 0x80;
}

/* The next match in text[0..n): 1 and where it is, 0 when there is none, negative when memory is
 * exhausted. *ret_seen is how much was searched: less than n after a match that hit a limit. */
static int next_match(vocab_work *w, const pcre2_code *code, const char *text, uint32_t n,
                      uint32_t *ret_from, uint32_t *ret_to, uint32_t *ret_seen)
{
    for (;;) {
        int rc = pcre2_match(code, (PCRE2_SPTR)text, n, 0, PCRE2_NO_UTF_CHECK, w->md, w->mc);
        *ret_seen = n;
        if (rc >= 0) {
            const PCRE2_SIZE *at = pcre2_get_ovector_pointer(w->md);
            *ret_from = (uint32_t)at[0];
            *ret_to = (uint32_t)at[1];
            return 1;
        }
        if (rc == PCRE2_ERROR_NOMATCH || n <= 4) return 0;
        if (rc == PCRE2_ERROR_NOMEMORY) return -1;
        for (n /= 2; n > 1 && !begins_character(text[n]); n--) { }
    }
}

static bool split_regex(vocab_work *w, const pcre2_code *code, const char *text, uint32_t pos,
                        uint32_t end, cuts *c)
{
    while (pos < end) {
        uint32_t from, to, seen;
        int rc = next_match(w, code, text + pos, end - pos, &from, &to, &seen);
        if (rc < 0) return false;
        if (!rc) {
            pos += seen;
            continue;
        }
        cut(c, pos + from);
        cut(c, pos + to);
        pos += to;
        if (from == to && pos < end)    /* an empty match: go on behind the next character */
            for (pos++; pos < end && !begins_character(text[pos]); pos++) { }
    }
    return true;
}

static int32_t char_at(const char *text, uint32_t pos, uint32_t end, uint32_t *ret_len)
{
    utf8proc_int32_t cp = -1;
    utf8proc_ssize_t len =
        pos < end ? utf8proc_iterate((const utf8proc_uint8_t *)text + pos, end - pos, &cp) : 0;
    *ret_len = len > 0 ? (uint32_t)len : 1;
    return cp;
}

static bool is_space(int32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x85 ||
           (cp >= 0 && (utf8proc_category(cp) == UTF8PROC_CATEGORY_ZS ||
                        utf8proc_category(cp) == UTF8PROC_CATEGORY_ZL ||
                        utf8proc_category(cp) == UTF8PROC_CATEGORY_ZP));
}

static void split_trailing_space(const char *text, uint32_t pos, uint32_t end, cuts *c)
{
    uint32_t at = end, len;
    while (at > pos) {
        uint32_t prev = at - 1;
        while (prev > pos && !begins_character(text[prev])) prev--;
        if (!is_space(char_at(text, prev, end, &len))) break;
        at = prev;
    }
    cut(c, at);
}

static bool is_digit(int32_t cp, bool decimal_only)
{
    utf8proc_category_t cat = cp < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(cp);
    return cat == UTF8PROC_CATEGORY_ND ||
           (!decimal_only && (cat == UTF8PROC_CATEGORY_NL || cat == UTF8PROC_CATEGORY_NO));
}

static bool is_word(int32_t cp)     /* \w: letters, marks, decimal digits, connectors */
{
    if (cp < 0) return false;
    utf8proc_category_t cat = utf8proc_category(cp);
    return (cat >= UTF8PROC_CATEGORY_LU && cat <= UTF8PROC_CATEGORY_ME) ||
           cat == UTF8PROC_CATEGORY_ND || cat == UTF8PROC_CATEGORY_PC;
}

static void split_digits_right(const char *text, uint32_t pos, uint32_t end, bool word, cuts *c)
{
    uint32_t len;
    while (pos < end) {
        if (!is_digit(char_at(text, pos, end, &len), word)) {
            pos += len;
            continue;
        }
        uint32_t from = pos, n = 0, at = pos;
        for (; at < end && is_digit(char_at(text, at, end, &len), word); at += len) n++;
        pos = at;
        if (word && is_word(char_at(text, at, end, &len))) continue;
        cut(c, from);
        for (at = from; n; n--) {
            (void)char_at(text, at, end, &len);
            at += len;
            if (n % 3 == 1) cut(c, at);
        }
    }
}

static bool split_step(vocab_work *w, const vocab_step *s, const char *text, const uint32_t *in,
                       uint32_t n_in, cuts *c)
{
    for (uint32_t i = 0, from = 0; i < n_in; from = in[i++]) {
        bool invalid = in[i] - from == 1 && (unsigned char)text[from] >= 0x80;
        if (invalid) {
        } else if (s->kind == STEP_REGEX && !split_regex(w, s->code, text, from, in[i], c))
            return false;
        else if (s->kind == STEP_TRAILING_SPACE) split_trailing_space(text, from, in[i], c);
        else if (s->kind != STEP_REGEX)
            split_digits_right(text, from, in[i], s->kind == STEP_DIGITS_RIGHT_WORD, c);
        cut(c, in[i]);
    }
    return !c->failed;
}

static void split_utf8(const char *text, uint32_t n, cuts *c)
{
    for (uint32_t i = 0; i < n;) {
        int len = vocab_utf8((const unsigned char *)text + i, n - i);
        if (len < 1) cut(c, i);
        i += len < 1 ? 1 : (uint32_t)len;
        if (len < 1) cut(c, i);
    }
    cut(c, n);
}

sl_status vocab_pre_split(vocab_work *w, const char *text, uint32_t n, const uint32_t **ret_cuts,
                          uint32_t *ret_n)
{
    cuts now = { .w = w, .buf = &w->cuts[0] };
    split_utf8(text, n, &now);
    bool ok = !now.failed;
    for (uint32_t i = 0; i < w->v->n_steps && ok; i++) {
        cuts next = { .w = w, .buf = now.buf == &w->cuts[0] ? &w->cuts[1] : &w->cuts[0] };
        ok = split_step(w, &w->v->step[i], text, now.buf->p, now.n, &next);
        now = next;
    }
    if (!ok) return sl_fail(w->ctx, SL_E_NOMEM, "splitting %u bytes of text", n);
    *ret_cuts = now.buf->p;
    *ret_n = now.n;
    return SL_OK;
}

/* A character that never joins the one before it: everything below U+0300. Beyond that, a run of
 * combining marks this long is cut, because sorting them takes quadratic time. */
#define MAX_MARKS 256

/* Where the stretch that begins at pos, all valid UTF-8, may end for normalising. */
static uint32_t nfc_stretch(const char *text, uint32_t pos, uint32_t n)
{
    uint32_t marks = 0, at = pos;
    while (at < n) {
        const unsigned char *p = (const unsigned char *)text + at;
        int len = vocab_utf8(p, n - at);
        if (len < 1 || (at > pos && p[0] < 0xcc)) break;
        utf8proc_int32_t cp;
        (void)utf8proc_iterate(p, len, &cp);
        marks = utf8proc_get_property(cp)->combining_class ? marks + 1 : 0;
        if (marks > MAX_MARKS) break;
        at += (uint32_t)len;
    }
    return at;
}

sl_status vocab_pre_nfc(vocab_work *w, const char *text, uint32_t n, uint32_t *ret_n)
{
    size_t out = 0;
    for (uint32_t pos = 0; pos < n;) {
        uint32_t end = nfc_stretch(text, pos, n);
        utf8proc_uint8_t *nfc = NULL;
        utf8proc_ssize_t len = 0;
        if (end == pos) end = pos + 1;          /* a byte that is no UTF-8 */
        else if (end - pos > 2)                 /* shorter ones hold nothing to join */
            len = utf8proc_map((const utf8proc_uint8_t *)text + pos, end - pos, &nfc,
                               UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        size_t add = nfc && len > 0 ? (size_t)len : end - pos;
        bool ok = out + add < UINT32_MAX && vocab_reserve(w, &w->text, out + add + (n - end));
        if (ok)
            memcpy((char *)w->text.p + out, nfc && len > 0 ? (const char *)nfc : text + pos, add);
        free(nfc);
        if (!ok) return sl_fail(w->ctx, SL_E_NOMEM, "normalising %u bytes of text", n);
        out += add;
        pos = end;
    }
    *ret_n = (uint32_t)out;
    return SL_OK;
}
