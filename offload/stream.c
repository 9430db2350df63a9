/* offload/stream.c - moves weights: what the cache decides is read here.
 * Invariants, checked by sl_stream_check in tests after every call:
 *   S1  an expert LOADING or READY has a slot in the cache and `data` points into it; OUT has none
 *   S2  a slot is pinned once while its expert is LOADING, held or given out for the layer begun,
 *       or read ahead and not asked for yet; not otherwise
 *   S3  reads that the store was given: reads_left of the LOADING experts, and left of the sections
 * In order, the first expert not done always gets a slot: later ones give theirs back for it. */
#include "offload/sl_stream.h"
#include "runtime/base/sl_numa.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OUT, LOADING, READY };                               /* struct expert */
enum { W_WAITS, W_HELD, W_GIVEN, W_DONE, W_FAILED };        /* struct want */
enum { REAP = 64, AHEAD_MAX = 64, ROWS_IN_FLIGHT = 64 };
_Static_assert(SL_SLOT_PIECE == SL_STORE_PIECE, "slots keep to the pieces that are registered");
#define DENSE_TAG ((uint64_t)1 << 40)   /* | section; below it a tag is an expert */
#define ROW_TAG ((uint64_t)1 << 41)     /* | index of a row of the table */

struct expert {
    uint8_t state, reads_left;
    bool unasked;       /* read ahead and not asked for yet */
    bool unwanted;      /* read ahead in vain, still on its way */
    bool failed, cancelled;     /* one of its reads */
};

struct want { uint32_t id; uint8_t state; bool read; };    /* read: by this layer */

/* Weights of a layer that does not keep its own. */
struct section {
    char *base;
    uint32_t left;      /* reads on their way */
    bool failed;
};

struct sl_stream {
    sl_ctx *ctx;
    sl_store *store;
    sl_ecache *cache;           /* NULL: every expert has its place for good */
    sl_plan plan;
    uint32_t n_layer, n_expert;
    const sl_expert_slices *slices;
    struct expert *experts;     /* [n_layer][n_expert] */
    sl_expert_data *data;       /* [n_layer][n_expert] */
    uint32_t *layer_class;      /* [n_layer] */
    uint32_t *layer_experts;    /* [n_layer] experts that the layer has */
    char *slots[SL_SLOT_CLASSES];
    uint32_t first_slot[SL_SLOT_CLASSES + 1];
    /* the layer begun */
    uint32_t layer, last_layer, n_want, n_given;
    struct want *want;          /* [n_expert] */
    bool in_order;
    uint32_t n_read;            /* wanted, read by this layer, not done: in order at most `ring` */
    uint32_t ring[SL_SLOT_CLASSES];
    sl_read *reads;             /* [3 * n_expert, or the dense slices of a layer] */
    uint32_t n_reads;
    /* read ahead */
    uint32_t unasked[AHEAD_MAX], n_unasked;     /* keys of such experts */
    bool no_ahead;
    sl_ahead trial;             /* whether guesses pay */
    bool guessed;               /* ever: without a guess there is nothing to try */
    double pass_s;              /* when the pass of few rows at hand began; 0: none did */
    /* sections */
    const sl_slice *dense;
    const uint32_t *dense_first;
    struct section section[2];
    /* the layer computed next, and the one read next: counted in ring order for ever */
    uint64_t ring_at, ring_next;
    /* rows of a table */
    sl_slice table;
    uint64_t row_bytes;
    char *rows;                 /* NULL: the table is in RAM */
    void *rows_memory;
    uint32_t rows_left;         /* reads on their way */
    bool *row_failed;           /* the caller's, while there are */
    sl_stream_stats stats;
    char error[256];
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- places ---- */

static uint32_t key_of(const sl_stream *s, uint32_t layer, uint32_t id)
{
    return layer * s->n_expert + id;
}

static char *slot_base(const sl_stream *s, uint32_t class, uint64_t at)
{
    uint64_t bytes = s->plan.cls[class].slot_bytes;
    uint64_t per_piece = SL_MAX(SL_SLOT_PIECE / bytes, 1);
    return s->slots[class] + (at % per_piece) * bytes
         + at / per_piece * SL_MAX(SL_SLOT_PIECE, per_piece * bytes);
}

/* Points an expert at a slot and queues the reads of its slices. */
static void queue_expert(sl_stream *s, uint32_t key, char *at, bool ahead)
{
    const sl_expert_slices *e = &s->slices[key];
    const sl_slice parts[3] = { e->gate, e->up, e->down };
    const void **to[3] = { &s->data[key].gate, &s->data[key].up, &s->data[key].down };
    for (int i = 0; i < 3; i++) {
        s->reads[s->n_reads++] =
            (sl_read){ .slice = parts[i], .dst = at, .tag = key, .ahead = ahead };
        *to[i] = at + sl_store_lead(parts[i]);
        at += sl_store_room(parts[i]);
    }
    s->experts[key] = (struct expert){ .state = LOADING, .reads_left = 3, .unasked = ahead };
}

static uint64_t expert_bytes(const sl_stream *s, uint32_t key)
{
    const sl_expert_slices *e = &s->slices[key];
    return e->gate.bytes + e->up.bytes + e->down.bytes;
}

/* Sends what queue_expert has queued. The store has room: what is on its way at most is a layer's
 * experts, those read ahead, wanted or not, and two sections; weights.c makes max_reads larger. */
static sl_status send_reads(sl_ctx *ctx, sl_stream *s)
{
    sl_status st = s->n_reads ? sl_store_submit(ctx, s->store, s->reads, s->n_reads) : SL_OK;
    s->n_reads = 0;
    return st;
}

/* ---- what lands ---- */

static void keep_error(sl_stream *s, const char *text)
{
    size_t n = SL_MIN(strlen(text), sizeof s->error - 1);
    memcpy(s->error, text, n);
    s->error[n] = 0;
}

static void forget_unasked(sl_stream *s, uint32_t key)
{
    uint32_t i = 0;
    while (i < s->n_unasked && s->unasked[i] != key) i++;
    assert(i < s->n_unasked);
    s->unasked[i] = s->unasked[--s->n_unasked];
}

static void leave_ring(sl_stream *s, struct want *w)
{
    s->n_read -= w->read;
    w->read = false;
}

/* The last of an expert's three reads is there. */
static void expert_landed(sl_stream *s, uint32_t key)
{
    struct expert *e = &s->experts[key];
    uint32_t slot = sl_ecache_find(s->cache, key / s->n_expert, key % s->n_expert);
    assert(slot != SL_ECACHE_NONE);
    if (!e->failed && !e->cancelled) {
        e->state = READY;
        if (e->unwanted) sl_ecache_unpin(s->cache, slot);
        e->unwanted = false;
        return;
    }
    sl_ecache_drop(s->cache, slot);
    if (e->unasked) forget_unasked(s, key);
    for (uint32_t i = 0; !e->unasked && !e->unwanted && i < s->n_want; i++)
        if (key_of(s, s->layer, s->want[i].id) == key) {
            s->want[i].state = e->failed ? W_FAILED : W_WAITS;  /* cancelled, then asked for */
            leave_ring(s, &s->want[i]);
            s->stats.failed += e->failed;
        }
    *e = (struct expert){ .state = OUT };
}

static void landed(sl_stream *s, const sl_read_done *d)
{
    bool bad = d->status != SL_OK;
    if (bad && !d->cancelled) keep_error(s, d->error);
    if (d->tag & ROW_TAG) {
        s->rows_left--;
        s->row_failed[d->tag & ~ROW_TAG] = bad;
        return;
    }
    if (d->tag & DENSE_TAG) {
        struct section *sec = &s->section[d->tag & 1];
        sec->left--;
        sec->failed |= bad;
        return;
    }
    struct expert *e = &s->experts[d->tag];
    e->failed |= bad && !d->cancelled;
    e->cancelled |= d->cancelled;
    if (!--e->reads_left && s->cache) expert_landed(s, (uint32_t)d->tag);
}

/* Takes in what has landed, waiting for `min` reads. Returns how many landed. */
static uint32_t drain(sl_stream *s, uint32_t min)
{
    sl_read_done done[REAP];
    uint32_t n, all = 0;
    do {
        n = sl_store_reap(s->store, done, REAP, all ? 0 : min);
        for (uint32_t i = 0; i < n; i++) landed(s, done + i);
        all += n;
    } while (n == REAP);
    return all;
}

static uint32_t drain_waiting(sl_stream *s)
{
    double start = now_s();
    uint32_t n = drain(s, 1);
    s->stats.stall_s += now_s() - start;
    return n;
}

/* ---- a layer's experts ---- */

/* A slot that lookahead holds on speculation, given back. */
static bool give_back_unasked(sl_stream *s, uint32_t class)
{
    for (uint32_t i = 0; i < s->n_unasked; i++) {
        uint32_t key = s->unasked[i], layer = key / s->n_expert;
        if (s->experts[key].state != READY || s->layer_class[layer] != class) continue;
        sl_ecache_unpin(s->cache, sl_ecache_find(s->cache, layer, key % s->n_expert));
        s->experts[key].unasked = false;
        forget_unasked(s, key);
        return true;
    }
    return false;
}

/* In order: expert i is next and every slot is pinned. A later one that waits for its turn gives
 * its slot up, the last first. */
static bool give_back_held(sl_stream *s, uint32_t i)
{
    for (uint32_t e = 0; e < i; e++)
        if (s->want[e].state == W_HELD || s->want[e].state == W_GIVEN) return false;
    for (uint32_t e = s->n_want; e-- > i + 1; ) {
        uint32_t key = key_of(s, s->layer, s->want[e].id);
        if (s->want[e].state != W_HELD || s->experts[key].state != READY) continue;
        sl_ecache_unpin(s->cache, sl_ecache_find(s->cache, s->layer, s->want[e].id));
        s->want[e].state = W_WAITS;
        leave_ring(s, &s->want[e]);
        return true;
    }
    return false;
}

/* Slots and reads for those that have none yet, as far as slots go; in order through a small ring
 * of them, so that what is in the others stays for the next pass. */
static void assign(sl_stream *s)
{
    uint32_t class = s->layer_class[s->layer], evicted;
    bool next = true;           /* whatever the ring holds, the one whose turn it is gets a slot */
    for (uint32_t i = 0; i < s->n_want; i++) {
        struct want *w = &s->want[i];
        next = next && w->state != W_HELD && w->state != W_GIVEN;
        if (w->state != W_WAITS) continue;
        uint32_t slot = sl_ecache_find(s->cache, s->layer, w->id), key = key_of(s, s->layer, w->id);
        if (slot != SL_ECACHE_NONE) {       /* it gave its slot up, and nobody took it */
            sl_ecache_pin(s->cache, slot);
            w->state = W_HELD;
            next = false;
            continue;
        }
        if (s->in_order && !next && s->n_read + s->n_unasked >= s->ring[class]) break;
        do slot = sl_ecache_take(s->cache, s->layer, w->id, &evicted);
        while (slot == SL_ECACHE_NONE
               && (give_back_unasked(s, class) || (s->in_order && give_back_held(s, i))));
        if (slot == SL_ECACHE_NONE) break;
        if (evicted != SL_ECACHE_NONE) s->experts[evicted].state = OUT;
        w->state = W_HELD;
        w->read = true;
        s->n_read++;
        next = false;
        s->stats.read_bytes += expert_bytes(s, key);
        queue_expert(s, key, slot_base(s, class, slot - s->first_slot[class]), false);
    }
    sl_status st = send_reads(s->ctx, s);
    assert(st == SL_OK);
    (void)st;
}

/* What was read ahead for this layer and nobody asked for. */
static void drop_unwanted(sl_stream *s)
{
    for (uint32_t i = s->n_unasked; i-- > 0; ) {
        uint32_t key = s->unasked[i], layer = key / s->n_expert;
        struct expert *e = &s->experts[key];
        if (layer != s->layer) continue;
        e->unasked = false;
        s->unasked[i] = s->unasked[--s->n_unasked];
        if (e->state == READY) {
            sl_ecache_unpin(s->cache, sl_ecache_find(s->cache, layer, key % s->n_expert));
            continue;
        }
        e->unwanted = true;
        sl_store_cancel(s->store, key);
    }
}

/* The expert has a slot: held for this layer. */
static void take_hit(sl_stream *s, struct want *w, uint32_t key, uint32_t slot)
{
    struct expert *e = &s->experts[key];
    w->state = W_HELD;
    if (e->state == READY) s->stats.hits++;
    else s->stats.misses++;
    if (e->unasked) {           /* its pin becomes the layer's, its place in the ring too */
        w->read = true;
        s->n_read++;
        e->unasked = false;
        forget_unasked(s, key);
        s->stats.ahead_used_bytes += expert_bytes(s, key);
        s->stats.read_bytes += expert_bytes(s, key);
        if (e->state == LOADING) sl_store_promote(s->store, key);
    } else if (e->unwanted) {
        e->unwanted = false;
        sl_store_promote(s->store, key);
    } else {
        sl_ecache_pin(s->cache, slot);
    }
}

/* Passes of few rows show whether guesses pay, once there was something to guess. */
static void pass_begins(sl_stream *s, bool in_order)
{
    s->pass_s = in_order || s->no_ahead ? 0 : now_s();
}

void sl_stream_pass_done(sl_stream *s)
{
    if (s->pass_s > 0 && s->guessed) sl_ahead_pass(&s->trial, now_s() - s->pass_s);
    s->pass_s = 0;
}

void sl_stream_begin(sl_stream *s, const sl_stream_ask *a)
{
    assert(a->layer < s->n_layer && a->n <= s->layer_experts[a->layer] && s->n_given == s->n_want);
    s->layer = a->layer;
    s->n_want = a->n;
    s->n_given = s->n_read = 0;
    s->in_order = a->in_order;
    for (uint32_t i = 0; i < a->n; i++)
        s->want[i] = (struct want){ .id = a->ids[i], .state = W_WAITS };
    if (!s->cache) {
        s->stats.hits += a->n;
        return;
    }
    if (a->layer <= s->last_layer) pass_begins(s, a->in_order);
    s->last_layer = a->layer;
    drain(s, 0);
    sl_ecache_touch(s->cache, a->layer, a->expert_id, a->seq, a->n_rows, a->n_used);
    uint64_t before = s->stats.misses;
    for (uint32_t i = 0; i < a->n; i++) {
        uint32_t slot = sl_ecache_find(s->cache, a->layer, a->ids[i]);
        if (slot == SL_ECACHE_NONE) s->stats.misses++;
        else take_hit(s, &s->want[i], key_of(s, a->layer, a->ids[i]), slot);
    }
    uint64_t missed = SL_MIN(s->stats.misses - before, (uint64_t)SL_MAX_MISSED);
    if (a->n_rows == 1) s->stats.one_row.turns[s->layer_class[a->layer]][missed]++;
    drop_unwanted(s);
    assign(s);
}

/* Those that can be given out now. */
static uint32_t collect(sl_stream *s, uint32_t *ret_index, sl_expert_data *ret_data)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_want; i++) {
        struct want *w = &s->want[i];
        uint32_t key = key_of(s, s->layer, w->id);
        bool there = !s->cache || (w->state == W_HELD && s->experts[key].state == READY);
        if (w->state == W_GIVEN || w->state == W_DONE) continue;
        if (!there && w->state != W_FAILED) {
            if (s->in_order) break;
            continue;
        }
        ret_index[n] = i;
        ret_data[n++] = there ? s->data[key] : (sl_expert_data){ NULL, NULL, NULL };
        w->state = there ? W_GIVEN : W_DONE;
    }
    s->n_given += n;
    return n;
}

uint32_t sl_stream_ready(sl_stream *s, uint32_t *ret_index, sl_expert_data *ret_data)
{
    if (s->n_given == s->n_want) return 0;
    if (s->cache) drain(s, 0);
    for (;;) {
        if (s->cache) assign(s);
        uint32_t n = collect(s, ret_index, ret_data);
        if (n) return n;
        n = drain_waiting(s);
        assert(n);              /* a layer that waits has reads on their way */
    }
}

void sl_stream_done(sl_stream *s, uint32_t index)
{
    struct want *w = &s->want[index];
    assert(index < s->n_want && w->state == W_GIVEN);
    w->state = W_DONE;
    leave_ring(s, w);
    if (s->cache) sl_ecache_unpin(s->cache, sl_ecache_find(s->cache, s->layer, w->id));
}

/* ---- ahead ---- */

bool sl_stream_wants_guess(const sl_stream *s)
{
    return s->cache && !s->no_ahead && s->trial.on;
}

/* Somebody has asked for an expert and got no slot yet. */
static bool starved(const sl_stream *s)
{
    for (uint32_t i = 0; i < s->n_want; i++)
        if (s->want[i].state == W_WAITS) return true;
    return false;
}

void sl_stream_ahead(sl_stream *s, uint32_t layer, const uint32_t *ids, uint32_t n, bool surely)
{
    uint32_t class = s->layer_class[layer], evicted;
    if (!s->cache || s->no_ahead || starved(s)) return;
    s->guessed |= !surely;
    uint32_t most = SL_MIN((uint32_t)AHEAD_MAX, s->plan.cls[class].n_slots / 4);
    for (uint32_t i = 0; i < n && s->n_unasked < most; i++) {
        if (surely && s->n_read + s->n_unasked >= s->ring[class]) break;
        uint32_t key = key_of(s, layer, ids[i]);
        if (sl_ecache_find(s->cache, layer, ids[i]) != SL_ECACHE_NONE) continue;
        uint32_t slot = sl_ecache_take(s->cache, layer, ids[i], &evicted);
        if (slot == SL_ECACHE_NONE) break;
        if (evicted != SL_ECACHE_NONE) s->experts[evicted].state = OUT;
        queue_expert(s, key, slot_base(s, class, slot - s->first_slot[class]), !surely);
        s->experts[key].unasked = true;
        s->unasked[s->n_unasked++] = key;
        s->stats.ahead_bytes += expert_bytes(s, key);
    }
    sl_status st = send_reads(s->ctx, s);
    assert(st == SL_OK);
    (void)st;
}

/* ---- dense weights through sections ---- */

static uint32_t ring_units(const sl_stream *s)
{
    return s->n_layer - s->plan.n_dense_layers;
}

static sl_status read_section(sl_ctx *ctx, sl_stream *s)
{
    uint32_t unit = (uint32_t)(s->ring_next % ring_units(s)), which = s->ring_next % 2;
    struct section *sec = &s->section[which];
    char *at = sec->base;
    assert(!sec->left && !s->n_reads);
    for (uint32_t i = s->dense_first[unit]; i < s->dense_first[unit + 1]; i++) {
        s->reads[s->n_reads++] =
            (sl_read){ .slice = s->dense[i], .dst = at, .tag = DENSE_TAG | which };
        at += sl_store_room(s->dense[i]);
        s->stats.read_bytes += s->dense[i].bytes;
    }
    sec->left = s->n_reads;
    sec->failed = false;
    s->ring_next++;
    return send_reads(ctx, s);
}

/* Begins the ring anew at a layer: at the start, and when a pass ended early. */
static sl_status restart_ring(sl_ctx *ctx, sl_stream *s, uint32_t unit)
{
    while (s->section[0].left || s->section[1].left) drain_waiting(s);
    s->ring_at = s->ring_next = unit;
    SL_TRY(read_section(ctx, s));
    return read_section(ctx, s);
}

sl_status sl_stream_dense(sl_ctx *ctx, sl_stream *s, uint32_t layer, const char **ret)
{
    assert(layer >= s->plan.n_dense_layers && layer < s->n_layer);
    uint32_t unit = layer - s->plan.n_dense_layers;
    if (s->ring_next == s->ring_at || s->ring_at % ring_units(s) != unit)
        SL_TRY(restart_ring(ctx, s, unit));
    struct section *sec = &s->section[s->ring_at % 2];
    drain(s, 0);
    while (sec->left) drain_waiting(s);
    if (sec->failed) {
        s->ring_next = s->ring_at;      /* the next try reads it again */
        return sl_fail(ctx, SL_E_IO, "layer %u: %s", layer, s->error);
    }
    *ret = sec->base;
    return SL_OK;
}

void sl_stream_dense_done(sl_stream *s, uint32_t layer)
{
    assert(s->ring_at % ring_units(s) == layer - s->plan.n_dense_layers);
    s->ring_at++;
    if (s->ring_next != s->ring_at + 1) return;     /* begun anew */
    sl_status st = read_section(s->ctx, s);
    assert(st == SL_OK);
    (void)st;
}

/* ---- rows of a table ---- */

void sl_stream_rows(sl_stream *s, const int32_t *ids, uint32_t n, const void **ret,
                    bool *ret_failed)
{
    uint64_t room = sl_shape_room(s->row_bytes);
    assert(s->rows && n <= s->plan.max_rows && !s->rows_left);
    s->row_failed = ret_failed;
    for (uint32_t i = 0; i < n; i++) {
        sl_slice row = s->table;
        row.offset += (uint64_t)ids[i] * s->row_bytes;
        row.bytes = s->row_bytes;
        sl_read r = { .slice = row, .dst = s->rows + i * room, .tag = ROW_TAG | i };
        while (s->rows_left >= ROWS_IN_FLIGHT) drain_waiting(s);
        sl_status st = sl_store_submit(s->ctx, s->store, &r, 1);
        assert(st == SL_OK);
        (void)st;
        s->rows_left++;
        s->stats.read_bytes += s->row_bytes;
    }
    while (s->rows_left) drain_waiting(s);
    for (uint32_t i = 0; i < n; i++) {      /* closes the gaps; no row moves over a later one */
        uint64_t at = s->table.offset + (uint64_t)ids[i] * s->row_bytes;
        memmove(s->rows + i * s->row_bytes,
                s->rows + i * room + sl_store_lead((sl_slice){ .offset = at }), s->row_bytes);
    }
    *ret = s->rows;
}

/* ---- create and destroy ---- */

static sl_status take(sl_stream *s, sl_account acc, uint64_t n, size_t size, void *ret)
{
    void *p = NULL;
    uint64_t bytes;
    if (!sl_mul_size(n, size, &bytes))
        return sl_fail(s->ctx, SL_E_NOMEM, "stream: %llu entries", (unsigned long long)n);
    SL_TRY(sl_mem_alloc(s->ctx, acc, SL_MAX(bytes, 1), &p));
    memcpy(ret, &p, sizeof p);
    return SL_OK;
}

/* Memory that the disk writes to starts on a page: sl_mem_alloc gives 64 bytes below 2 MiB. */
static sl_status take_pages(sl_ctx *ctx, sl_stream *s, uint64_t bytes, char **ret)
{
    void *p = NULL;
    SL_TRY(sl_mem_alloc(s->ctx, SL_ACC_SLOTS, SL_MAX(bytes, (uint64_t)2 << 20), &p));
    sl_mem_interleave(p, bytes);    /* every thread reads weights */
    *ret = p;
    return sl_store_register(ctx, s->store, p, bytes);
}

static sl_status take_slots(sl_ctx *ctx, sl_stream *s)
{
    for (uint32_t c = 0; c < s->plan.n_classes; c++) {
        const sl_slot_class *k = &s->plan.cls[c];
        uint64_t bytes = sl_plan_slots_bytes(k->slot_bytes, k->n_slots);
        s->first_slot[c + 1] = s->first_slot[c] + k->n_slots;
        if (bytes) SL_TRY(take_pages(ctx, s, bytes, &s->slots[c]));
    }
    for (uint32_t i = 0; i < 2 && s->plan.section_bytes; i++)
        SL_TRY(take_pages(ctx, s, s->plan.section_bytes, &s->section[i].base));
    return SL_OK;
}

/* Small, and not registered: rows are few bytes, and the budget counts every page. */
static sl_status take_rows(sl_ctx *ctx, sl_stream *s)
{
    if (!s->plan.embed_rows_bytes) return SL_OK;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_SLOTS, s->plan.embed_rows_bytes, &s->rows_memory));
    uintptr_t at = (uintptr_t)s->rows_memory;
    s->rows = (char *)s->rows_memory + (0 - at) % SL_STORE_ALIGN;
    return SL_OK;
}

static sl_status make_cache(sl_ctx *ctx, sl_stream *s, const sl_stream_params *params)
{
    uint32_t class_slots[SL_SLOT_CLASSES] = { 0 };
    for (uint32_t c = 0; c < s->plan.n_classes; c++) class_slots[c] = s->plan.cls[c].n_slots;
    sl_ecache_params p = { .n_layer = s->n_layer, .n_expert = s->n_expert,
                           .n_used = params->n_used, .n_seq = s->plan.n_seq,
                           .layer_class = s->layer_class, .n_classes = s->plan.n_classes,
                           .class_slots = class_slots, .policy = params->policy };
    return sl_ecache_create(ctx, &p, &s->cache);
}

static sl_status map_experts(sl_ctx *ctx, sl_stream *s)
{
    for (uint32_t l = 0; l < s->n_layer; l++)
        for (uint32_t x = 0; x < s->layer_experts[l]; x++) {
            uint32_t key = key_of(s, l, x);
            const sl_expert_slices *e = &s->slices[key];
            SL_TRY(sl_store_map(ctx, s->store, e->gate, &s->data[key].gate));
            SL_TRY(sl_store_map(ctx, s->store, e->up, &s->data[key].up));
            SL_TRY(sl_store_map(ctx, s->store, e->down, &s->data[key].down));
        }
    return SL_OK;
}

static uint64_t most_reads(const sl_stream *s)
{
    uint64_t most = 3ull * SL_MAX(s->n_expert, (uint32_t)AHEAD_MAX);
    for (uint32_t u = 0; s->dense_first && u < ring_units(s); u++)
        most = SL_MAX(most, s->dense_first[u + 1] - s->dense_first[u]);
    return most;
}

static sl_status init(sl_ctx *ctx, sl_stream *s, const sl_stream_params *p)
{
    const sl_shape *shape = p->shape;
    uint64_t n = (uint64_t)s->n_layer * s->n_expert;
    if (n > UINT32_MAX / 4)
        return sl_fail(ctx, SL_E_ARG, "%u layers of %u experts", s->n_layer, s->n_expert);
    SL_TRY(take(s, SL_ACC_TABLES, n, sizeof *s->experts, &s->experts));
    SL_TRY(take(s, SL_ACC_TABLES, n, sizeof *s->data, &s->data));
    SL_TRY(take(s, SL_ACC_TABLES, s->n_layer, sizeof *s->layer_class, &s->layer_class));
    SL_TRY(take(s, SL_ACC_TABLES, s->n_layer, sizeof *s->layer_experts, &s->layer_experts));
    SL_TRY(take(s, SL_ACC_TABLES, s->n_expert, sizeof *s->want, &s->want));
    SL_TRY(take(s, SL_ACC_TABLES, most_reads(s), sizeof *s->reads, &s->reads));
    for (uint32_t l = 0; l < s->n_layer; l++) {
        s->layer_experts[l] = shape->layers[l].n_expert;
        s->layer_class[l] = SL_ECACHE_NO_CLASS;
        if (s->layer_experts[l] && s->plan.n_classes)
            s->layer_class[l] = sl_plan_class(&s->plan, &shape->layers[l]);
    }
    if (s->plan.weights == SL_WEIGHTS_MAPPED) return map_experts(ctx, s);
    for (uint32_t c = 0; c < s->plan.n_classes; c++)
        s->ring[c] = sl_plan_ring(&s->plan, c);
    SL_TRY(take_slots(ctx, s));
    SL_TRY(take_rows(ctx, s));
    if (s->plan.weights == SL_WEIGHTS_STREAMED && s->plan.n_classes)
        return make_cache(ctx, s, p);
    return SL_OK;
}

sl_status sl_stream_create(sl_ctx *ctx, sl_store *store, const sl_stream_params *p, sl_stream **ret)
{
    assert(ctx && store && p->plan && p->shape && (p->experts || !p->n_expert));
    sl_stream *s = calloc(1, sizeof *s);
    if (!s) return sl_fail(ctx, SL_E_NOMEM, "stream handle");
    s->ctx = ctx;
    s->store = store;
    s->plan = *p->plan;
    s->n_layer = p->shape->n_layer;
    s->n_expert = p->n_expert;
    s->slices = p->experts;
    s->dense = p->dense;
    s->dense_first = p->dense_first;
    s->table = p->table;
    s->row_bytes = p->row_bytes;
    s->no_ahead = p->no_ahead;
    s->trial = sl_ahead_begin();
    sl_status st = init(ctx, s, p);
    if (st != SL_OK) sl_stream_destroy(&s);
    else *ret = s;
    return st;
}

/* Reads on their way end in memory that goes away, so they are waited for. */
static void wait_for_all(sl_stream *s)
{
    sl_store_stats st;
    do {
        sl_store_get_stats(s->store, &st);
    } while (st.in_flight && drain(s, 1));
}

void sl_stream_destroy(sl_stream **stream)
{
    sl_stream *s = *stream;
    if (!s) return;
    wait_for_all(s);
    sl_ecache_destroy(&s->cache);
    for (uint32_t c = 0; c < SL_SLOT_CLASSES; c++) sl_mem_free(s->ctx, s->slots[c]);
    for (uint32_t i = 0; i < 2; i++) sl_mem_free(s->ctx, s->section[i].base);
    sl_mem_free(s->ctx, s->rows_memory);
    sl_mem_free(s->ctx, s->experts);
    sl_mem_free(s->ctx, s->data);
    sl_mem_free(s->ctx, s->layer_class);
    sl_mem_free(s->ctx, s->layer_experts);
    sl_mem_free(s->ctx, s->want);
    sl_mem_free(s->ctx, s->reads);
    free(s);
    *stream = NULL;
}

sl_status sl_stream_fill(sl_ctx *ctx, sl_stream *s, sl_progress_fn progress, void *user)
{
    uint32_t at[SL_SLOT_CLASSES] = { 0 };
    uint64_t all = 0, n_all = 0, sent = 0, arrived = 0;
    assert(s->plan.weights == SL_WEIGHTS_RESIDENT);
    s->error[0] = 0;
    for (uint32_t l = 0; l < s->n_layer; l++)
        for (uint32_t x = 0; x < s->layer_experts[l]; x++, n_all += 3)
            all += expert_bytes(s, key_of(s, l, x));
    for (uint32_t l = 0; l < s->n_layer; l++) {
        uint32_t c = s->layer_class[l];
        for (uint32_t x = 0; x < s->layer_experts[l]; x++)
            queue_expert(s, key_of(s, l, x), slot_base(s, c, at[c]++), false);
        sent += s->n_reads;
        SL_TRY(send_reads(ctx, s));
        while (sent - arrived > 3 * s->layer_experts[l]) {  /* a layer waits behind another */
            arrived += drain(s, 1);
            if (progress) progress(user, (uint64_t)((double)all * arrived / n_all), all);
        }
    }
    while (arrived < sent) arrived += drain(s, 1);
    s->stats.read_bytes += all;
    if (progress) progress(user, all, all);
    return s->error[0] ? sl_fail(ctx, SL_E_IO, "%s", s->error) : SL_OK;
}

/* Nothing else is on its way, and the cache knows of none of them. */
sl_status sl_stream_load(sl_ctx *ctx, sl_stream *s, uint32_t layer, uint32_t first, uint32_t n,
                         sl_expert_data *ret_data, uint32_t *ret_n)
{
    sl_read_done done[REAP];
    uint32_t class = s->layer_class[layer], open = 0;
    n = SL_MIN(n, s->plan.cls[class].n_slots);
    assert(s->cache && first + n <= s->layer_experts[layer]);
    s->error[0] = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = key_of(s, layer, first + i);
        queue_expert(s, key, slot_base(s, class, i), false);
        s->experts[key] = (struct expert){ .state = OUT };
        ret_data[i] = s->data[key];
    }
    open = s->n_reads;
    SL_TRY(send_reads(ctx, s));
    while (open) {
        uint32_t got = sl_store_reap(s->store, done, REAP, 1);
        for (uint32_t i = 0; i < got; i++)
            if (done[i].status != SL_OK) keep_error(s, done[i].error);
        open -= got;
    }
    *ret_n = n;
    return s->error[0] ? sl_fail(ctx, SL_E_IO, "%s", s->error) : SL_OK;
}

sl_expert_data sl_stream_place(const sl_stream *s, uint32_t layer, uint32_t expert)
{
    assert(s->plan.weights == SL_WEIGHTS_RESIDENT && expert < s->layer_experts[layer]);
    return s->data[key_of(s, layer, expert)];
}

bool sl_stream_memory(const sl_stream *s, uint32_t i, void **ret, uint64_t *ret_bytes)
{
    if (i >= s->plan.n_classes) return false;
    *ret = s->slots[i];
    *ret_bytes = sl_plan_slots_bytes(s->plan.cls[i].slot_bytes, s->plan.cls[i].n_slots);
    return true;
}

static uint32_t check_expert(const sl_stream *s, uint32_t key)
{
    const struct expert *e = &s->experts[key];
    const sl_expert_slices *x = &s->slices[key];
    uint32_t layer = key / s->n_expert, slot = sl_ecache_find(s->cache, layer, key % s->n_expert);
    assert((e->state == OUT) == (slot == SL_ECACHE_NONE));                          /* S1 */
    assert((e->state == LOADING) == (e->reads_left > 0));                           /* S3 */
    if (e->state == OUT) return 0;
    uint32_t class = s->layer_class[layer];
    const char *at = slot_base(s, class, slot - s->first_slot[class]), *from = at;
    assert(s->data[key].gate == at + sl_store_lead(x->gate));                       /* S1 */
    at += sl_store_room(x->gate);
    assert(s->data[key].up == at + sl_store_lead(x->up));
    at += sl_store_room(x->up);
    assert(s->data[key].down == at + sl_store_lead(x->down));
    assert(at + sl_store_room(x->down) <= from + s->plan.cls[class].slot_bytes);
    uint32_t pins = e->unasked + e->unwanted;
    for (uint32_t i = 0; layer == s->layer && i < s->n_want; i++)
        if (s->want[i].id == key % s->n_expert)
            pins += s->want[i].state == W_HELD || s->want[i].state == W_GIVEN;
    assert(pins == sl_ecache_pins(s->cache, slot) && pins <= 1);                    /* S2 */
    assert(pins || e->state == READY);
    return e->reads_left;
}

void sl_stream_check(const sl_stream *s)
{
    sl_store_stats st;
    uint32_t reads = s->section[0].left + s->section[1].left, n_unasked = 0;
    if (!s->cache) return;      /* experts stay where they are */
    for (uint32_t l = 0; l < s->n_layer; l++)
        for (uint32_t x = 0; x < s->layer_experts[l]; x++) {
            reads += check_expert(s, key_of(s, l, x));
            n_unasked += s->experts[key_of(s, l, x)].unasked;
        }
    sl_store_get_stats(s->store, &st);
    assert(reads == st.open);                                                       /* S3 */
    assert(n_unasked == s->n_unasked);
    sl_ecache_check(s->cache);
}

const char *sl_stream_error(const sl_stream *s) { return s->error; }

void sl_stream_get_stats(const sl_stream *s, sl_stream_stats *ret)
{
    *ret = s->stats;
    ret->ahead_off = s->cache && !s->trial.pays;
}
