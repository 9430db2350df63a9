/* runtime/vocab_bpe.c - byte-level BPE ("gpt2"): tables and the merging of one word.
 * A vocabulary writes bytes as printable characters (GPT-2's table); here every entry is kept as
 * the bytes it stands for, and a symbol is the number of such a string. Merges go by rank, ties
 * from the left, through a heap over a linked list: O(n log n) for a word of n bytes. Source:
 * Sennrich, Haddow, Birch, ACL 2016; the byte table is GPT-2's. */
#include "runtime/vocab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* The byte a character of GPT-2's table stands for, or -1: bytes 21-7e, a1-ac and ae-ff stand for
 * themselves, the other 68 in ascending order are U+0100 and up. */
static int byte_of(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xac) || (cp >= 0xae && cp <= 0xff))
        return (int)cp;
    if (cp < 0x100 || cp > 0x143) return -1;
    uint32_t i = cp - 0x100;    /* 00-20, 7f-a0, ad */
    return (int)(i < 0x21 ? i : i < 0x43 ? 0x7f + (i - 0x21) : 0xad);
}

/* An entry as bytes, in place of or behind what ret holds; false when a character is not in the
 * table (it is then copied as it stands). ret has room for s.n bytes. */
static bool decode(sl_str s, char *ret, size_t *ret_n)
{
    bool all = true;
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        const unsigned char *p = (const unsigned char *)s.p + i;
        int len = vocab_utf8(p, s.n - i);
        int b = len == 1   ? byte_of(p[0])
                : len == 2 ? byte_of((p[0] & 0x1fu) << 6 | (p[1] & 0x3fu))
                           : -1;
        if (len < 1) len = 1;
        if (b >= 0) {
            ret[n++] = (char)b;
        } else {
            memcpy(ret + n, p, (size_t)len);
            n += (size_t)len;
            all = false;
        }
        i += (size_t)len;
    }
    *ret_n = n;
    return all;
}

static uint32_t merge_slot(const sl_vocab *v, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    uint32_t mask = v->n_merge_slots - 1, at = (uint32_t)(h >> 32) & mask;
    while (v->merge[at].left != NO_SYM &&
           (v->merge[at].left != left || v->merge[at].right != right))
        at = (at + 1) & mask;
    return at;
}

static bool intern(vocab_tab *t, const char *p, size_t n, uint32_t *ret)
{
    *ret = vocab_tab_find(t, p, n);
    if (*ret != NO_SYM) return true;
    *ret = t->n;
    return vocab_tab_add(t, p, n, true);
}

/* Rule number `rank`, "left right"; the first space behind the first byte parts them. A rule with
 * characters outside the table can never apply and is left out. */
static sl_status add_merge(sl_ctx *ctx, sl_vocab *v, sl_str rule, uint32_t rank, char *buf)
{
    const char *gap = rule.n > 1 ? memchr(rule.p + 1, ' ', rule.n - 1) : NULL;
    if (!gap || gap + 1 == rule.p + rule.n)
        return sl_fail(ctx, SL_E_FORMAT,
                       "tokenizer.ggml.merges: rule %u of \"%.*s\" is not two pieces with a "
                       "space between",
                       rank, (int)SL_MIN(rule.n, 40), rule.p);
    sl_str l = { rule.p, (size_t)(gap - rule.p) };
    sl_str r = { gap + 1, rule.n - l.n - 1 };
    size_t nl, nr;
    uint32_t left, right, into;
    bool whole = decode(l, buf, &nl);
    whole &= decode(r, buf + nl, &nr);
    if (!whole) return SL_OK;
    if (!intern(&v->piece, buf, nl, &left) || !intern(&v->piece, buf + nl, nr, &right) ||
        !intern(&v->piece, buf, nl + nr, &into))
        return sl_fail(ctx, SL_E_NOMEM, "table of %u merges", rank);
    vocab_merge *m = &v->merge[merge_slot(v, left, right)];
    if (m->left == NO_SYM)
        *m = (vocab_merge){ left, right, rank, into }; /* the first of equals counts */
    return SL_OK;
}

static sl_status load_merges(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g)
{
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, "tokenizer.ggml.merges");
    if (!kv || kv->type != SL_GGUF_ARR || kv->elem_type != SL_GGUF_STR)
        return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.merges: %s",
                       kv ? "not an array of strings" : "missing");
    if (kv->n > UINT32_MAX / 8)
        return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.merges: %llu rules",
                       (unsigned long long)kv->n);
    v->n_merge_slots = 64;
    while (v->n_merge_slots < kv->n * 2) v->n_merge_slots *= 2;
    size_t bytes = v->n_merge_slots * sizeof *v->merge, longest = 0;
    v->merge = malloc(bytes);
    if (!v->merge)
        return sl_fail(ctx, SL_E_NOMEM, "table of %llu merges", (unsigned long long)kv->n);
    memset(v->merge, 0xff, bytes);
    sl_str rule;
    for (uint64_t i = 0; i < kv->n; i++)
        if (sl_gguf_get_str(g, kv, i, &rule)) longest = SL_MAX(longest, rule.n);
    char *buf = malloc(longest + 1);
    if (!buf) return sl_fail(ctx, SL_E_NOMEM, "a merge of %zu bytes", longest);
    sl_status st = SL_OK;
    for (uint64_t i = 0; i < kv->n && st == SL_OK; i++) {
        if (!sl_gguf_get_str(g, kv, i, &rule)) rule = (sl_str){ "", 0 };
        st = add_merge(ctx, v, rule, (uint32_t)i, buf);
    }
    free(buf);
    return st;
}

sl_status vocab_bpe_load(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g)
{
    size_t longest = 0;
    for (uint32_t i = 0; i < v->n; i++) longest = SL_MAX(longest, vocab_tab_at(&v->raw, i).n);
    char *buf = malloc(longest + 1);
    bool ok = buf != NULL;
    for (uint32_t i = 0; i < v->n && ok; i++) {
        sl_str raw = vocab_tab_at(&v->raw, i);
        size_t n;
        bool lookup = decode(raw, buf, &n) && n;
        if (lookup || (v->attr[i] & ATTR_NORMAL)) ok = vocab_tab_add(&v->piece, buf, n, lookup);
        else ok = vocab_tab_add(&v->piece, raw.p, raw.n, false);
    }
    free(buf);
    for (uint32_t b = 0; b < 256 && ok; b++) {
        char c = (char)b;
        ok = intern(&v->piece, &c, 1, &v->byte_sym[b]);
    }
    if (!ok) return sl_fail(ctx, SL_E_NOMEM, "tables of %u tokens", v->n);
    return load_merges(ctx, v, g);
}

/* A symbol of the word being merged: a list threaded through an array. A symbol that was merged
 * into its left neighbour has sym == NO_SYM. */
typedef struct bpe_sym { uint32_t prev, next, sym; } bpe_sym;

static bool push_pair(vocab_work *w, const bpe_sym *s, uint32_t left)
{
    if (left == NO_SYM || s[left].next == NO_SYM) return true;
    uint32_t a = s[left].sym, b = s[s[left].next].sym;
    const vocab_merge *m = &w->v->merge[merge_slot(w->v, a, b)];
    if (m->left == NO_SYM) return true;
    return vocab_heap_push(w, (vocab_cand){ (uint64_t)m->rank << 32 | left, a, b });
}

/* A string that is no token (only merges name it): its bytes, as far as they are tokens. */
static bool push_bytes(vocab_work *w, uint32_t sym)
{
    sl_str s = vocab_tab_at(&w->v->piece, sym);
    for (size_t i = 0; i < s.n; i++) {
        uint32_t id = w->v->byte_sym[(unsigned char)s.p[i]];
        if (id >= w->v->n && w->v->unk >= 0) id = (uint32_t)w->v->unk;
        if (id < w->v->n && !vocab_push_id(w, id)) return false;
    }
    return true;
}

static bool encode_word(vocab_work *w, const char *p, uint32_t n)
{
    const sl_vocab *v = w->v;
    if (v->pre_flags & PRE_WHOLE_WORDS) {
        uint32_t id = vocab_tab_find(&v->piece, p, n);
        if (id < v->n) return vocab_push_id(w, id);
    }
    if (!vocab_reserve(w, &w->syms, n * sizeof(bpe_sym))) return false;
    bpe_sym *s = w->syms.p;
    for (uint32_t i = 0; i < n; i++)
        s[i] = (bpe_sym){ i ? i - 1 : NO_SYM, i + 1 < n ? i + 1 : NO_SYM,
                          v->byte_sym[(unsigned char)p[i]] };
    w->n_heap = 0;
    for (uint32_t i = 0; i + 1 < n; i++)
        if (!push_pair(w, s, i)) return false;
    while (w->n_heap) {
        vocab_cand c = vocab_heap_pop(w);
        uint32_t left = (uint32_t)c.key, right = s[left].next;
        if (s[left].sym != c.a || right == NO_SYM || s[right].sym != c.b) continue;     /* stale */
        s[left].sym = v->merge[merge_slot(v, c.a, c.b)].into;
        s[left].next = s[right].next;
        s[right].sym = NO_SYM;
        if (s[left].next != NO_SYM) s[s[left].next].prev = left;
        if (!push_pair(w, s, s[left].prev) || !push_pair(w, s, left)) return false;
    }
    for (uint32_t i = 0; i != NO_SYM; i = s[i].next)
        if (s[i].sym < v->n ? !vocab_push_id(w, s[i].sym) : !push_bytes(w, s[i].sym)) return false;
    return true;
}

sl_status vocab_bpe_encode(vocab_work *w, const char *text, uint32_t n)
{
    const uint32_t *cuts;
    uint32_t n_cuts;
    if (w->v->pre_flags & PRE_NFC) {
        SL_TRY(vocab_pre_nfc(w, text, n, &n));
        text = w->text.p;
    }
    SL_TRY(vocab_pre_split(w, text, n, &cuts, &n_cuts));
    for (uint32_t i = 0, from = 0; i < n_cuts; from = cuts[i++]) {
        assert(cuts[i] > from);
        if (!encode_word(w, text + from, cuts[i] - from))
            return sl_fail(w->ctx, SL_E_NOMEM, "tokenizing %u bytes of text", n);
    }
    return SL_OK;
}
