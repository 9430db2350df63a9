/* runtime/vocab_spm.c - SentencePiece BPE ("llama"): the pair whose union has the highest score is
 * merged first, ties from the left; characters that are no token become byte tokens <0xXX>.
 * Spaces are U+2581 inside. O(n log n): a heap over a linked list, lookups no longer than a token.
 * Source: SentencePiece, Kudo and Richardson, EMNLP 2018 (model type bpe). */
#include "runtime/vocab.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPACE "\xe2\x96\x81"    /* U+2581 */

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

static bool byte_token(sl_str s, char *ret)
{
    if (s.n != 6 || memcmp(s.p, "<0x", 3) || s.p[5] != '>' || hex(s.p[3]) < 0 || hex(s.p[4]) < 0)
        return false;
    *ret = (char)(hex(s.p[3]) << 4 | hex(s.p[4]));
    return true;
}

/* The bytes token id prints. buf has room for the entry. */
static bool add_piece(sl_vocab *v, uint32_t id, char *buf)
{
    sl_str s = vocab_tab_at(&v->raw, id);
    size_t n = 0;
    if ((v->attr[id] & ATTR_BYTE) && byte_token(s, buf)) {
        n = 1;
    } else if (v->attr[id] & ATTR_NORMAL) {
        for (size_t i = 0; i < s.n; n++) {
            bool space = s.n - i >= 3 && !memcmp(s.p + i, SPACE, 3);
            buf[n] = space ? ' ' : s.p[i];
            i += space ? 3 : 1;
        }
    } else {
        memcpy(buf, s.p, s.n);
        n = s.n;
    }
    return vocab_tab_add(&v->piece, buf, n, false);
}

sl_status vocab_spm_load(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g)
{
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, "tokenizer.ggml.scores");
    if (!kv || kv->type != SL_GGUF_ARR || kv->n != v->n)
        return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.scores: %s (%u tokens)",
                       kv ? "not an array with one number per token" : "missing", v->n);
    size_t longest = 0;
    for (uint32_t i = 0; i < v->n; i++) longest = SL_MAX(longest, vocab_tab_at(&v->raw, i).n);
    v->score = malloc(v->n * sizeof *v->score);
    char *buf = malloc(longest + 1);
    bool ok = v->score && buf, number = true;
    for (uint32_t i = 0; i < v->n && ok && number; i++) {
        double d = 0;
        number = sl_gguf_get_f64(g, kv, i, &d) && !isnan(d);
        v->score[i] = (float)d;
        ok = add_piece(v, i, buf);
    }
    free(buf);
    if (!ok) return sl_fail(ctx, SL_E_NOMEM, "tables of %u tokens", v->n);
    if (!number) return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.scores: not all are numbers");
    for (uint32_t b = 0; b < 256; b++) {
        char name[8], c = (char)b;
        snprintf(name, sizeof name, "<0x%02X>", b);
        v->byte_sym[b] = vocab_tab_find(&v->raw, name, 6);
        if (v->byte_sym[b] == NO_SYM) v->byte_sym[b] = vocab_tab_find(&v->raw, &c, 1);
    }
    return SL_OK;
}

/* A symbol of the text being merged; len == 0: it was merged into its left neighbour. */
typedef struct spm_sym { uint32_t prev, next, at, len; } spm_sym;

/* Text never becomes a control, unknown or byte token by its spelling. */
static uint32_t find_text(const sl_vocab *v, const char *p, size_t n)
{
    uint32_t id = n > v->max_piece * 3 ? NO_SYM : vocab_tab_find(&v->raw, p, n);
    return id != NO_SYM && (v->attr[id] & (ATTR_CONTROL | ATTR_UNKNOWN | ATTR_BYTE)) ? NO_SYM : id;
}

/* Order of floats, highest first, as order of integers, lowest first. */
static uint32_t score_key(float score)
{
    uint32_t u;
    score += 0.0f;      /* -0 is 0 */
    memcpy(&u, &score, sizeof u);
    return u & 0x80000000u ? u : ~u & 0x7fffffffu;
}

static bool push_pair(vocab_work *w, const spm_sym *s, const char *text, uint32_t left)
{
    if (left == NO_SYM || s[left].next == NO_SYM) return true;
    uint32_t n = s[left].len + s[s[left].next].len;
    uint32_t id = find_text(w->v, text + s[left].at, n);
    if (id == NO_SYM) return true;
    return vocab_heap_push(w,
                           (vocab_cand){ (uint64_t)score_key(w->v->score[id]) << 32 | left, n, 0 });
}

static bool push_text(vocab_work *w, const char *p, uint32_t n)
{
    uint32_t id = find_text(w->v, p, n);
    if (id != NO_SYM) return vocab_push_id(w, id);
    for (uint32_t i = 0; i < n; i++) {
        id = w->v->byte_sym[(unsigned char)p[i]];
        if (id == NO_SYM && w->v->unk < 0) continue;
        if (!vocab_push_id(w, id == NO_SYM ? (uint32_t)w->v->unk : id)) return false;
    }
    return true;
}

static bool merge_text(vocab_work *w, const char *text, uint32_t n)
{
    uint32_t n_syms = 0;
    for (uint32_t i = 0; i < n; n_syms++) {
        int len = vocab_utf8((const unsigned char *)text + i, n - i);
        i += len > 0 ? (uint32_t)len : 1;
    }
    if (!vocab_reserve(w, &w->syms, n_syms * sizeof(spm_sym))) return false;
    spm_sym *s = w->syms.p;
    for (uint32_t i = 0, at = 0; i < n_syms; at += s[i++].len) {
        int len = vocab_utf8((const unsigned char *)text + at, n - at);
        s[i] = (spm_sym){ i ? i - 1 : NO_SYM, i + 1 < n_syms ? i + 1 : NO_SYM, at,
                          len > 0 ? (uint32_t)len : 1 };
    }
    w->n_heap = 0;
    for (uint32_t i = 0; i + 1 < n_syms; i++)
        if (!push_pair(w, s, text, i)) return false;
    while (w->n_heap) {
        vocab_cand c = vocab_heap_pop(w);
        uint32_t left = (uint32_t)c.key, right = s[left].next;
        if (!s[left].len || right == NO_SYM || s[left].len + s[right].len != c.a)
            continue; /* stale */
        s[left].len = c.a;
        s[left].next = s[right].next;
        s[right].len = 0;
        if (s[left].next != NO_SYM) s[s[left].next].prev = left;
        if (!push_pair(w, s, text, s[left].prev) || !push_pair(w, s, text, left)) return false;
    }
    for (uint32_t i = 0; i != NO_SYM; i = s[i].next)
        if (!push_text(w, text + s[i].at, s[i].len)) return false;
    return true;
}

sl_status vocab_spm_encode(vocab_work *w, const char *text, uint32_t n, bool after_special)
{
    bool ok = n < UINT32_MAX / 3 - 1 && vocab_reserve(w, &w->text, (size_t)n * 3 + 3);
    if (ok) {
        char *to = w->text.p;
        if (w->v->add_space_prefix && after_special) memcpy(to, SPACE, 3), to += 3;
        for (uint32_t i = 0; i < n; i++) {
            if (text[i] == ' ') memcpy(to, SPACE, 3), to += 3;
            else *to++ = text[i];
        }
        ok = merge_text(w, w->text.p, (uint32_t)(to - (char *)w->text.p));
    }
    return ok ? SL_OK : sl_fail(w->ctx, SL_E_NOMEM, "tokenizing %u bytes of text", n);
}
