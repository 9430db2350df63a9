/* runtime/vocab_tab.c - the tokenizer's containers: string table, queue of merges, growing scratch,
 * and the one place that knows what valid UTF-8 is.
 * Cost: lookups O(length), queue O(log n); every buffer is bounded by a multiple of the text. */
#include "runtime/vocab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* FNV-1a with a final mix: the table takes the low bits. */
static uint32_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 32);
}

static bool tab_rehash(vocab_tab *t, uint32_t n_slots)
{
    uint32_t *slot = calloc(n_slots, sizeof *slot);
    if (!slot) return false;
    for (uint32_t s = 0; s < t->n_slots; s++) {
        if (!t->slot[s]) continue;
        sl_str str = vocab_tab_at(t, t->slot[s] - 1);
        uint32_t at = hash_bytes(str.p, str.n) & (n_slots - 1);
        while (slot[at]) at = (at + 1) & (n_slots - 1);
        slot[at] = t->slot[s];
    }
    free(t->slot);
    t->slot = slot;
    t->n_slots = n_slots;
    return true;
}

static bool tab_room(vocab_tab *t, size_t n)
{
    if (t->n == t->cap) {
        uint32_t cap = t->cap ? t->cap * 2 : 1024;
        uint32_t *start = realloc(t->start, ((size_t)cap + 1) * sizeof *start);
        if (!start) return false;
        if (!t->cap) start[0] = 0;
        t->start = start;
        t->cap = cap;
    }
    if (t->n_bytes + n > t->cap_bytes) {
        size_t cap = SL_MAX(t->cap_bytes * 2, t->n_bytes + n + 4096);
        char *bytes = realloc(t->bytes, cap);
        if (!bytes) return false;
        t->bytes = bytes;
        t->cap_bytes = cap;
    }
    return t->n_hashed < t->n_slots / 2 || tab_rehash(t, t->n_slots ? t->n_slots * 2 : 2048);
}

/* Of equal strings the newest is found. */
bool vocab_tab_add(vocab_tab *t, const char *p, size_t n, bool hashed)
{
    if (t->n >= UINT32_MAX / 4 || t->n_bytes + n >= UINT32_MAX || !tab_room(t, n)) return false;
    if (n) memcpy(t->bytes + t->n_bytes, p, n);
    t->n_bytes += n;
    t->start[t->n + 1] = (uint32_t)t->n_bytes;
    uint32_t id = t->n++;
    if (!hashed) return true;
    uint32_t at = hash_bytes(p, n) & (t->n_slots - 1);
    while (t->slot[at]) {
        sl_str s = vocab_tab_at(t, t->slot[at] - 1);
        if (s.n == n && !memcmp(s.p, p, n)) break;
        at = (at + 1) & (t->n_slots - 1);
    }
    if (!t->slot[at]) t->n_hashed++;
    t->slot[at] = id + 1;
    return true;
}

uint32_t vocab_tab_find(const vocab_tab *t, const char *p, size_t n)
{
    if (!t->n_slots) return NO_SYM;
    for (uint32_t at = hash_bytes(p, n) & (t->n_slots - 1); t->slot[at];
         at = (at + 1) & (t->n_slots - 1)) {
        sl_str s = vocab_tab_at(t, t->slot[at] - 1);
        if (s.n == n && !memcmp(s.p, p, n)) return t->slot[at] - 1;
    }
    return NO_SYM;
}

void vocab_tab_fini(vocab_tab *t)
{
    free(t->bytes);
    free(t->start);
    free(t->slot);
    *t = (vocab_tab){ 0 };
}

bool vocab_reserve(vocab_work *w, vocab_buf *b, size_t bytes)
{
    if (bytes <= b->cap) return true;
    size_t cap = SL_MAX(bytes, b->cap + b->cap / 2);
    void *p = realloc(b->p, cap);
    if (!p) return false;
    sl_mem_charge(w->ctx, SL_ACC_SCRATCH, (int64_t)(cap - b->cap));
    b->p = p;
    b->cap = cap;
    return true;
}

bool vocab_push_id(vocab_work *w, uint32_t id)
{
    if (!vocab_reserve(w, &w->ids, ((size_t)w->n_ids + 1) * sizeof(int32_t))) return false;
    ((int32_t *)w->ids.p)[w->n_ids++] = (int32_t)id;
    return true;
}

bool vocab_heap_push(vocab_work *w, vocab_cand c)
{
    if (!vocab_reserve(w, &w->heap, ((size_t)w->n_heap + 1) * sizeof c)) return false;
    vocab_cand *h = w->heap.p;
    uint32_t i = w->n_heap++;
    for (; i && h[(i - 1) / 2].key > c.key; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = c;
    return true;
}

vocab_cand vocab_heap_pop(vocab_work *w)
{
    assert(w->n_heap);
    vocab_cand *h = w->heap.p, top = h[0], last = h[--w->n_heap];
    size_t i = 0, n = w->n_heap;
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1].key < h[c].key) c++;
        if (h[c].key >= last.key) break;
        h[i] = h[c];
    }
    if (n) h[i] = last;
    return top;
}

/* Unicode 15, table 3-7: well-formed byte sequences. */
int vocab_utf8(const unsigned char *p, size_t n)
{
    if (!n) return 0;
    unsigned c = p[0], lo = 0x80, hi = 0xbf;
    if (c < 0x80) return 1;
    if (c < 0xc2 || c > 0xf4) return -1;
    int len = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (c == 0xe0) lo = 0xa0;
    if (c == 0xed) hi = 0x9f;
    if (c == 0xf0) lo = 0x90;
    if (c == 0xf4) hi = 0x8f;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n) return 0;
        if (p[i] < lo || p[i] > hi) return -1;
        lo = 0x80, hi = 0xbf;
    }
    return len;
}
