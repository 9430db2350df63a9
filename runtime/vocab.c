/* runtime/vocab.c - the tokenizer's entry points: reading tokenizer.* keys, added tokens, and the
 * way back. The two kinds of encoding are in vocab_bpe.c and vocab_spm.c. Added tokens are found
 * leftmost first, the longest of those that begin there. */
#include "runtime/vocab.h"

#include <assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* Entries that end an answer, whatever type a converter gave them; and such that are never plain
 * text. */
static const char *const ends_answer[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
};
static const char *const is_control[] = {
    "<|fim_prefix|>", "<fim-prefix>",    "<fim_prefix>",    "<｜fim▁begin｜>", "<PRE>",
    "▁<PRE>",         "<|code_prefix|>", "<|prefix|>",      "<|fim_suffix|>",  "<fim-suffix>",
    "<fim_suffix>",   "<｜fim▁hole｜>",  "<SUF>",           "▁<SUF>",          "<|code_suffix|>",
    "<|suffix|>",     "<|fim_middle|>",  "<fim-middle>",    "<fim_middle>",    "<｜fim▁end｜>",
    "<MID>",          "▁<MID>",          "<|code_middle|>", "<|middle|>",
};

/* What an id prints: added tokens are written as they are. */
static sl_str text_of(const sl_vocab *v, uint32_t id)
{
    bool as_is = v->attr[id] & (ATTR_CONTROL | ATTR_UNKNOWN | ATTR_USER);
    return vocab_tab_at(as_is ? &v->raw : &v->piece, id);
}

static bool raw_is(const sl_vocab *v, uint32_t id, const char *text)
{
    sl_str s = vocab_tab_at(&v->raw, id);
    return s.n == strlen(text) && !memcmp(s.p, text, s.n);
}

static sl_status array_of(sl_ctx *ctx, const sl_gguf *g, const char *key, bool strings, uint64_t n,
                          const sl_gguf_kv **ret)
{
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, key);
    *ret = kv;
    if (!kv) return SL_OK;
    if (kv->type != SL_GGUF_ARR || (kv->elem_type == SL_GGUF_STR) != strings)
        return sl_fail(ctx, SL_E_FORMAT, "%s: not an array of %s", key,
                       strings ? "strings" : "numbers");
    if (n && kv->n != n)
        return sl_fail(ctx, SL_E_FORMAT, "%s: %llu entries for %llu tokens", key,
                       (unsigned long long)kv->n, (unsigned long long)n);
    return SL_OK;
}

static uint16_t attr_of(int64_t type)
{
    static const uint16_t attrs[] = { 0,         ATTR_NORMAL, ATTR_UNKNOWN, ATTR_CONTROL,
                                      ATTR_USER, ATTR_UNUSED, ATTR_BYTE };
    return type >= 0 && type < (int64_t)SL_LEN(attrs) ? attrs[type] : 0;
}

static sl_status load_tokens(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g)
{
    const sl_gguf_kv *kv, *types;
    SL_TRY(array_of(ctx, g, "tokenizer.ggml.tokens", true, 0, &kv));
    if (!kv) return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.tokens: missing");
    if (!kv->n || kv->n > INT32_MAX / 4)
        return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.tokens: %llu entries",
                       (unsigned long long)kv->n);
    SL_TRY(array_of(ctx, g, "tokenizer.ggml.token_type", false, kv->n, &types));
    v->attr = calloc(kv->n, sizeof *v->attr);
    if (!v->attr)
        return sl_fail(ctx, SL_E_NOMEM, "table of %llu tokens", (unsigned long long)kv->n);
    for (uint64_t i = 0; i < kv->n; i++) {
        sl_str s = { "", 0 };
        int64_t type = 1;
        if (!sl_gguf_get_str(g, kv, i, &s) || (types && !sl_gguf_get_i64(g, types, i, &type)))
            return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.tokens: entry %llu is unreadable",
                           (unsigned long long)i);
        if (!vocab_tab_add(&v->raw, s.p, s.n, s.n > 0))
            return sl_fail(ctx, SL_E_NOMEM, "table of %llu tokens", (unsigned long long)kv->n);
        v->attr[i] = attr_of(type);
    }
    v->n = (uint32_t)kv->n;
    return SL_OK;
}

/* ret keeps its value when the key is missing. 0xffffffff is how some writers say "none". */
static sl_status token_id(sl_ctx *ctx, const sl_vocab *v, const sl_gguf *g, const char *key,
                          int32_t *ret)
{
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, key);
    int64_t id = -1;
    if (kv && !sl_gguf_get_i64(g, kv, 0, &id))
        return sl_fail(ctx, SL_E_FORMAT, "%s: not a token id", key);
    if (kv)
        *ret = id == UINT32_MAX || id == -1 ? -1 : id >= 0 && id < v->n ? (int32_t)id : INT32_MIN;
    if (kv && *ret == INT32_MIN)
        return sl_fail(ctx, SL_E_FORMAT, "%s: %lld, but there are %u tokens", key, (long long)id,
                       v->n);
    if (*ret >= (int64_t)v->n) *ret = -1;
    return SL_OK;
}

static void get_flag(const sl_gguf *g, const char *key, bool *ret)
{
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, key);
    bool b;
    if (kv && sl_gguf_get_bool(g, kv, 0, &b)) *ret = b;
}

/* Entries known by name, and the ids that the file calls an end. */
static sl_status load_ends(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g)
{
    static const char *const keys[] = { "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id" };
    for (size_t i = 0; i < SL_LEN(ends_answer); i++) {
        uint32_t id = vocab_tab_find(&v->raw, ends_answer[i], strlen(ends_answer[i]));
        if (id != NO_SYM) v->attr[id] |= ATTR_EOG | ATTR_CONTROL;
    }
    for (size_t i = 0; i < SL_LEN(is_control); i++) {
        uint32_t id = vocab_tab_find(&v->raw, is_control[i], strlen(is_control[i]));
        if (id != NO_SYM) v->attr[id] |= ATTR_CONTROL;
    }
    for (size_t i = 0; i < SL_LEN(keys); i++) {
        int32_t id = -1;
        SL_TRY(token_id(ctx, v, g, keys[i], &id));
        if (id >= 0) v->attr[id] |= ATTR_EOG;
    }
    if (v->eos >= 0) v->attr[v->eos] |= ATTR_EOG;
    /* Harmony ends a message with <|end|> and an answer with <|return|> or <|call|>. */
    uint32_t end = vocab_tab_find(&v->raw, "<|end|>", 7);
    bool call = vocab_tab_find(&v->raw, "<|call|>", 8) != NO_SYM ||
                vocab_tab_find(&v->raw, "<|calls|>", 9) != NO_SYM;
    bool other = vocab_tab_find(&v->raw, "<|return|>", 10) != NO_SYM ||
                 vocab_tab_find(&v->raw, "<|flush|>", 9) != NO_SYM;
    if (end != NO_SYM && call && other) v->attr[end] &= (uint16_t)~ATTR_EOG;
    return SL_OK;
}

static bool name_holds(const sl_gguf *g, const char *key, const char *word)
{
    sl_str s;
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, key);
    if (!kv || kv->type != SL_GGUF_STR || !sl_gguf_get_str(g, kv, 0, &s)) return false;
    size_t n = strlen(word);
    for (size_t i = 0; i + n <= s.n; i++) {
        size_t j = 0;
        while (j < n && tolower((unsigned char)s.p[i + j]) == word[j]) j++;
        if (j == n) return true;
    }
    return false;
}

/* Files do not say which added tokens swallow the space around them; models are known by name. */
static void load_strips(sl_vocab *v, const sl_gguf *g)
{
    uint32_t mask = NO_SYM;
    if (name_holds(g, "tokenizer.ggml.pre", "jina-v2-"))
        mask = vocab_tab_find(&v->raw, "<mask>", 6);
    else if (name_holds(g, "general.name", "modern-bert"))
        mask = vocab_tab_find(&v->raw, "[MASK]", 6);
    else if (name_holds(g, "general.name", "phi-3") || name_holds(g, "general.name", "phi3"))
        for (uint32_t i = 0; i < v->n; i++) {
            if (!(v->attr[i] & (ATTR_CONTROL | ATTR_USER | ATTR_UNKNOWN))) continue;
            if (!raw_is(v, i, "<unk>") && !raw_is(v, i, "<s>") && !raw_is(v, i, "<|endoftext|>"))
                v->attr[i] |= ATTR_RSTRIP;
        }
    if (mask != NO_SYM) v->attr[mask] |= ATTR_LSTRIP;
}

struct by_bytes { sl_str s; uint32_t id; };

static int cmp_bytes(const void *x, const void *y)
{
    const struct by_bytes *a = x, *b = y;
    int c = memcmp(a->s.p, b->s.p, SL_MIN(a->s.n, b->s.n));
    return c ? c : a->s.n != b->s.n ? (a->s.n < b->s.n ? -1 : 1) : a->id < b->id ? -1 : 1;
}

static sl_status load_special(sl_ctx *ctx, sl_vocab *v)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->n; i++)
        n += !!(v->attr[i] & (ATTR_CONTROL | ATTR_USER | ATTR_UNKNOWN));
    struct by_bytes *list = malloc((n + 1) * sizeof *list);
    v->special = malloc((n + 1) * sizeof *v->special);
    if (!list || !v->special) {
        free(list);
        return sl_fail(ctx, SL_E_NOMEM, "table of %u added tokens", n);
    }
    for (uint32_t i = 0; i < v->n; i++) {
        sl_str s = vocab_tab_at(&v->raw, i);
        if (!(v->attr[i] & (ATTR_CONTROL | ATTR_USER | ATTR_UNKNOWN)) || !s.n ||
            s.n > MAX_SPECIAL_LEN)
            continue;
        list[v->n_special++] = (struct by_bytes){ s, i };
        v->special_first[(unsigned char)s.p[0]] = true;
    }
    qsort(list, v->n_special, sizeof *list, cmp_bytes);
    for (uint32_t i = 0; i < v->n_special; i++) v->special[i] = list[i].id;
    free(list);
    return SL_OK;
}

static sl_status load_kind(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g)
{
    sl_str model, pre = { "", 0 };
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, "tokenizer.ggml.model");
    if (!kv || kv->type != SL_GGUF_STR || !sl_gguf_get_str(g, kv, 0, &model))
        return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.model: %s",
                       kv ? "not a string" : "missing");
    v->spm = model.n == 5 && !memcmp(model.p, "llama", 5);
    if (!v->spm && (model.n != 4 || memcmp(model.p, "gpt2", 4)))
        return sl_fail(ctx, SL_E_UNSUPPORTED,
                       "tokenizer.ggml.model is \"%.*s\": only \"gpt2\" (byte-level BPE) and "
                       "\"llama\" (SentencePiece BPE) are supported",
                       (int)SL_MIN(model.n, 40), model.p);
    v->add_space_prefix = v->add_bos = v->spm;
    v->bos = v->spm ? 1 : -1;
    v->eos = v->spm ? 2 : -1;
    v->unk = v->spm ? 0 : -1;
    if (v->spm) return SL_OK;
    kv = sl_gguf_kv_find(g, "tokenizer.ggml.pre");
    if (kv && (kv->type != SL_GGUF_STR || !sl_gguf_get_str(g, kv, 0, &pre)))
        return sl_fail(ctx, SL_E_FORMAT, "tokenizer.ggml.pre: not a string");
    uint32_t row = 0;
    if (!kv) {
        (void)vocab_pre_find("default", 7, &row);
        sl_log(ctx, SL_WARN,
               "tokenizer.ggml.pre is missing: a default pattern splits the text, which may not be "
               "the "
               "model's");
    } else if (!vocab_pre_find(pre.p, pre.n, &row)) {
        (void)vocab_pre_find("gpt-2", 5, &row);
        sl_log(
            ctx, SL_WARN,
            "tokenizer.ggml.pre \"%.*s\" is unknown: the gpt-2 pattern splits the text, which may "
            "not be the model's",
            (int)SL_MIN(pre.n, 60), pre.p);
    }
    SL_TRY(vocab_pre_compile(ctx, v, row));
    v->add_bos = v->pre_flags & PRE_ADD_BOS;
    return SL_OK;
}

static sl_status load(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g)
{
    SL_TRY(load_kind(ctx, v, g));
    SL_TRY(load_tokens(ctx, v, g));
    SL_TRY(token_id(ctx, v, g, "tokenizer.ggml.bos_token_id", &v->bos));
    SL_TRY(token_id(ctx, v, g, "tokenizer.ggml.eos_token_id", &v->eos));
    SL_TRY(token_id(ctx, v, g, "tokenizer.ggml.unknown_token_id", &v->unk));
    if (v->spm) get_flag(g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix);
    get_flag(g, "tokenizer.ggml.add_bos_token", &v->add_bos);
    get_flag(g, "tokenizer.ggml.add_eos_token", &v->add_eos);
    if (v->bos < 0 && v->add_bos) {
        if (sl_gguf_kv_find(g, "tokenizer.ggml.add_bos_token"))
            sl_log(ctx, SL_WARN, "tokenizer.ggml.add_bos_token is set, but there is no BOS token");
        v->add_bos = false;
    }
    if (v->eos < 0) v->add_eos = false;
    SL_TRY(load_ends(ctx, v, g));
    SL_TRY(v->spm ? vocab_spm_load(ctx, v, g) : vocab_bpe_load(ctx, v, g));
    load_strips(v, g);
    SL_TRY(load_special(ctx, v));
    for (uint32_t i = 0; i < v->n; i++) v->max_piece = SL_MAX(v->max_piece, text_of(v, i).n);
    return SL_OK;
}

static int64_t tab_bytes(const vocab_tab *t)
{
    return (int64_t)(t->cap_bytes + ((size_t)t->cap + t->n_slots) * sizeof(uint32_t));
}

sl_status sl_vocab_create(sl_ctx *ctx, const sl_gguf *g, sl_vocab **ret)
{
    assert(ctx && g && ret);
    sl_vocab *v = calloc(1, sizeof *v);
    if (!v) return sl_fail(ctx, SL_E_NOMEM, "vocabulary");
    v->ctx = ctx;
    sl_status st = load(ctx, v, g);
    if (st != SL_OK) {
        sl_vocab_destroy(&v);
        return st;
    }
    v->charged = tab_bytes(&v->raw) + tab_bytes(&v->piece) +
                 (int64_t)(v->n_merge_slots * sizeof *v->merge) +
                 (int64_t)(v->n * (sizeof *v->attr + sizeof(float)));
    sl_mem_charge(ctx, SL_ACC_TABLES, v->charged);
    *ret = v;
    return SL_OK;
}

void sl_vocab_destroy(sl_vocab **pv)
{
    assert(pv);
    sl_vocab *v = *pv;
    if (!v) return;
    sl_mem_charge(v->ctx, SL_ACC_TABLES, -v->charged);
    vocab_pre_fini(v);
    vocab_tab_fini(&v->raw);
    vocab_tab_fini(&v->piece);
    free(v->attr);
    free(v->score);
    free(v->merge);
    free(v->special);
    free(v);
    *pv = NULL;
}

static bool in_range(const sl_vocab *v, int32_t id)
{
    return id >= 0 && (uint32_t)id < v->n;
}

uint32_t sl_vocab_size(const sl_vocab *v) { return v->n; }
int32_t sl_vocab_bos(const sl_vocab *v) { return v->bos; }
int32_t sl_vocab_eos(const sl_vocab *v) { return v->eos; }
bool sl_vocab_add_bos(const sl_vocab *v) { return v->add_bos; }
bool sl_vocab_add_eos(const sl_vocab *v) { return v->add_eos; }
size_t sl_vocab_max_text(const sl_vocab *v) { return 4 * v->max_piece + 16; }

bool sl_vocab_is_eog(const sl_vocab *v, int32_t id)
{
    return in_range(v, id) && (v->attr[id] & ATTR_EOG);
}

bool sl_vocab_is_control(const sl_vocab *v, int32_t id)
{
    return in_range(v, id) && (v->attr[id] & (ATTR_CONTROL | ATTR_UNKNOWN));
}

int32_t sl_vocab_find(const sl_vocab *v, const char *piece)
{
    uint32_t id = vocab_tab_find(&v->raw, piece, strlen(piece));
    return id == NO_SYM ? -1 : (int32_t)id;
}

sl_str sl_vocab_piece(const sl_vocab *v, int32_t id)
{
    return in_range(v, id) ? text_of(v, (uint32_t)id) : (sl_str){ "", 0 };
}

/* The longest added token that text[0..n) begins with. The list is ordered, so those that share the
 * bytes seen so far are the range lo..hi, the shortest first. */
static uint32_t match_special(const sl_vocab *v, const char *text, size_t n, bool parse_special)
{
    uint32_t lo = 0, hi = v->n_special, best = NO_SYM;
    for (size_t d = 0; d < n && lo < hi; d++) {
        unsigned char c = (unsigned char)text[d];
        uint32_t bound[2];
        for (int side = 0; side < 2; side++) {  /* the first entry whose byte d is >= c, then > c */
            uint32_t a = lo, b = hi;
            while (a < b) {
                uint32_t mid = a + (b - a) / 2;
                if ((unsigned char)vocab_tab_at(&v->raw, v->special[mid]).p[d] < c + side)
                    a = mid + 1;
                else b = mid;
            }
            bound[side] = a;
        }
        lo = bound[0], hi = bound[1];
        for (; lo < hi && vocab_tab_at(&v->raw, v->special[lo]).n == d + 1; lo++)
            if (parse_special || !(v->attr[v->special[lo]] & (ATTR_CONTROL | ATTR_UNKNOWN)))
                best = v->special[lo];
    }
    return best;
}

static sl_status encode_plain(vocab_work *w, const char *text, size_t n, bool after_special)
{
    if (!n) return SL_OK;
    return w->v->spm ? vocab_spm_encode(w, text, (uint32_t)n, after_special)
                     : vocab_bpe_encode(w, text, (uint32_t)n);
}

static sl_status encode_all(vocab_work *w, const char *text, size_t n, bool parse_special)
{
    const sl_vocab *v = w->v;
    bool after_special = true;
    size_t from = 0;
    for (size_t pos = 0; pos < n;) {
        uint32_t id = v->special_first[(unsigned char)text[pos]]
                          ? match_special(v, text + pos, n - pos, parse_special)
                          : NO_SYM;
        if (id == NO_SYM) {
            pos++;
            continue;
        }
        size_t to = pos;
        if (v->attr[id] & ATTR_LSTRIP)
            while (to > from && isspace((unsigned char)text[to - 1])) to--;
        SL_TRY(encode_plain(w, text + from, to - from, after_special));
        if (!vocab_push_id(w, id))
            return sl_fail(w->ctx, SL_E_NOMEM, "tokenizing %zu bytes of text", n);
        pos += vocab_tab_at(&v->raw, id).n;
        if (v->attr[id] & ATTR_RSTRIP)
            while (pos < n && isspace((unsigned char)text[pos])) pos++;
        from = pos;
        after_special = true;
    }
    return encode_plain(w, text + from, n - from, after_special);
}

static sl_status work_init(vocab_work *w)
{
    if (w->v->spm) return SL_OK;
    w->md = pcre2_match_data_create(1, NULL);
    w->mc = pcre2_match_context_create(NULL);
    w->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL);
    if (!w->md || !w->mc || !w->stack) return sl_fail(w->ctx, SL_E_NOMEM, "tokenizer scratch");
    pcre2_set_match_limit(w->mc, 10000000);
    pcre2_set_heap_limit(w->mc, 64 << 10);  /* KiB */
    pcre2_jit_stack_assign(w->mc, NULL, w->stack);
    return SL_OK;
}

static void work_fini(vocab_work *w)
{
    vocab_buf *bufs[] = { &w->ids, &w->cuts[0], &w->cuts[1], &w->syms, &w->heap, &w->text };
    for (size_t i = 0; i < SL_LEN(bufs); i++) {
        free(bufs[i]->p);
        sl_mem_charge(w->ctx, SL_ACC_SCRATCH, -(int64_t)bufs[i]->cap);
    }
    pcre2_match_data_free(w->md);
    pcre2_match_context_free(w->mc);
    pcre2_jit_stack_free(w->stack);
}

sl_status sl_vocab_encode(sl_ctx *ctx, const sl_vocab *v, const char *text, size_t n,
                          bool add_bos_eos, bool parse_special, int32_t **ret_ids, uint32_t *ret_n)
{
    assert(ctx && v && (text || !n) && ret_ids && ret_n);
    if (n > INT32_MAX / 4)
        return sl_fail(ctx, SL_E_ARG, "%zu bytes of text: too long to tokenize at once", n);
    vocab_work w = { .ctx = ctx, .v = v };
    sl_status st = work_init(&w);
    bool ok = vocab_reserve(&w, &w.ids, n / 3 * sizeof(int32_t) + 16);
    if (add_bos_eos && v->add_bos) ok = ok && vocab_push_id(&w, (uint32_t)v->bos);
    if (st == SL_OK && ok) st = encode_all(&w, text, n, parse_special);
    if (add_bos_eos && v->add_eos) ok = ok && vocab_push_id(&w, (uint32_t)v->eos);
    if (st == SL_OK && !ok) st = sl_fail(ctx, SL_E_NOMEM, "tokenizing %zu bytes of text", n);
    if (st == SL_OK) {
        sl_mem_charge(ctx, SL_ACC_SCRATCH, -(int64_t)w.ids.cap);
        *ret_ids = w.ids.p;
        *ret_n = w.n_ids;
        w.ids = (vocab_buf){ 0 };
    }
    work_fini(&w);
    return st;
}

void sl_detok_init(sl_detok *d)
{
    *d = (sl_detok){ 0 };
}

/* Writes the whole characters of held + p[0..n) and holds the rest, at most three bytes. */
static size_t put_text(sl_detok *d, const unsigned char *p, size_t n, char *buf)
{
    size_t out = 0;
    while (n) {
        /* Bytes join the held ones singly until they are a character or can be none. */
        int len = d->n_held ? 0 : vocab_utf8(p, n);
        if (len > 0) {
            memcpy(buf + out, p, (size_t)len);
            out += (size_t)len, p += len, n -= (size_t)len;
            continue;
        }
        d->held[d->n_held] = *p;
        len = vocab_utf8(d->held, d->n_held + 1);
        if (len < 0) { /* U+FFFD for what was held, or for this byte when nothing was */
            memcpy(buf + out, "\xef\xbf\xbd", 3);
            out += 3;
            if (!d->n_held) p++, n--;
            d->n_held = 0;
            continue;
        }
        d->n_held++, p++, n--;
        if (len > 0) {
            memcpy(buf + out, d->held, (size_t)len);
            out += (size_t)len;
            d->n_held = 0;
        }
    }
    return out;
}

size_t sl_detok_push(sl_detok *d, const sl_vocab *v, int32_t id, bool show_special, char *buf)
{
    if (!in_range(v, id)) return 0;
    uint16_t attr = v->attr[id];
    if (!show_special && (attr & (ATTR_CONTROL | ATTR_UNKNOWN))) return 0;
    if (!(attr & (ATTR_CONTROL | ATTR_UNKNOWN | ATTR_USER | ATTR_NORMAL | ATTR_BYTE))) return 0;
    sl_str s = text_of(v, (uint32_t)id);
    bool drop = !d->started && v->add_space_prefix && s.n && s.p[0] == ' ';
    d->started = true;
    return put_text(d, (const unsigned char *)s.p + drop, s.n - drop, buf);
}

size_t sl_detok_flush(sl_detok *d, char *buf)
{
    size_t n = d->n_held ? 3 : 0;
    memcpy(buf, "\xef\xbf\xbd", n);
    d->n_held = 0;
    return n;
}
