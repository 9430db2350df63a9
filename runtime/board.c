/* runtime/board.c - what stays on the device is copied once; the rest goes through a ring of bytes,
 * first in, first out. An item that goes into room that others had waits, on the copies' queue, for
 * the stages that used those. */
#include "runtime/board.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 4096u             /* of items: experts keep their place in a page, as in RAM */
#define NONE UINT32_MAX
#define GROUPS_A_RING 8u        /* experts are grouped so that the ring holds so many groups */
#define MAX_GROUP 16u
#define LOAD_AT_ONCE 16u        /* experts that stay, on their way from disk */
/* Who stays goes by frequency, and only for what that is worth: docs/learned.md has others. */
#define HALF_LIFE 64.0f         /* rows */
#define MARGIN 0.05             /* of rows: more than three uses within a half-life */
#define OLD 2048u               /* events that are waited for before they cannot be any more */

static uint64_t round_up(uint64_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* ---- sending ---- */

static sl_status send_bytes(board *b, char *dst, const char *src, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += b->split->piece_bytes) {
        uint64_t n = SL_MIN(b->split->piece_bytes, bytes - at);
        SL_TRY(b->dev->ops->copy(b->dev, SL_Q_WEIGHTS, dst + at, src + at, n));
    }
    b->sent_bytes += bytes;
    return SL_OK;
}

static const char *part_source(const board *b, const board_part *p)
{
    const binding *x = &b->m->bindings[p->binding];
    return (const char *)*weights_own(b->host, x) - x->skip;
}

static sl_status send_parts(board *b, const board_item *it, char *to)
{
    for (uint32_t i = it->first; i < it->first + it->n; i++)
        SL_TRY(send_bytes(b, to + b->parts[i].at, part_source(b, &b->parts[i]),
                          b->m->bindings[b->parts[i].binding].tensor->bytes));
    return SL_OK;
}

static const sl_expert_slices *slices_of(const board *b, uint32_t layer, uint32_t x)
{
    return &b->m->experts[(size_t)layer * b->m->hp.n_expert + x];
}

/* As in a slot in RAM (offload/sl_stream.h). */
static sl_expert_data expert_at(const board *b, uint32_t layer, uint32_t x, const char *slot)
{
    const sl_expert_slices *s = slices_of(b, layer, x);
    const char *up = slot + sl_store_room(s->gate), *down = up + sl_store_room(s->up);
    return (sl_expert_data){ slot + sl_store_lead(s->gate), up + sl_store_lead(s->up),
                             down + sl_store_lead(s->down) };
}

/* An expert's three slices go in one piece, with what lies between them. */
static sl_status send_expert(board *b, uint32_t layer, uint32_t x, const void *from, char *slot)
{
    sl_expert_data to = expert_at(b, layer, x, slot);
    const char *gate = to.gate, *end = (const char *)to.down + slices_of(b, layer, x)->down.bytes;
    assert(end <= slot + b->slot_bytes[layer]);
    return send_bytes(b, slot + (gate - slot), from, (uint64_t)(end - gate));
}

static const void *place_of(const board *b, uint32_t layer, uint32_t x)
{
    return sl_stream_place(b->host->stream, layer, x).gate;
}

/* ---- the device's own layers ---- */

static const void **own(board *b, const binding *x)
{
    const char *dst = (const char *)x->dst;
    if (x->layer != BIND_NO_LAYER)
        return (const void **)((char *)b->layers + (dst - (const char *)b->m->layers));
    return (const void **)((char *)&b->ends + (dst - (const char *)&b->m->ends));
}

/* The item's bindings point to where it lies. Those of one tensor stand close together. */
static void point(board *b, const board_item *it, const char *base)
{
    for (uint32_t i = it->first; i < it->first + it->n; i++) {
        const binding *all = b->m->bindings, *first = &all[b->parts[i].binding];
        for (const binding *x = first; x < all + b->m->n_bindings && x->layer == first->layer; x++)
            if (x->kind == BIND_BYTES && x->tensor == first->tensor)
                *own(b, x) = base + b->parts[i].at + x->skip;
    }
}

static void point_floats(board *b)
{
    for (uint32_t i = 0; i < b->m->n_bindings; i++) {
        const binding *x = &b->m->bindings[i];
        if (x->kind == BIND_BYTES) continue;
        *own(b, x) = b->floats + ((const char *)*weights_own(b->host, x)
                                  - (const char *)b->host->floats);
    }
}

/* ---- who stays ---- */

/* Its slot among the layer's; NONE: it does not stay. */
static uint32_t slot_of(const board *b, uint32_t layer, uint32_t x)
{
    if (!b->cache) return x < b->split->n_stay ? x : NONE;
    uint32_t slot = sl_ecache_find(b->cache, layer, x);
    return slot == SL_ECACHE_NONE ? NONE : slot - b->first_slot[layer];
}

bool board_stays(const board *b, uint32_t layer, uint32_t x)
{
    return slot_of(b, layer, x) != NONE;
}

static char *stay_place(const board *b, uint32_t layer, uint32_t slot)
{
    return b->stay + b->stay_at[layer] + slot * b->slot_bytes[layer];
}

static uint32_t n_staying(const board *b, uint32_t layer)
{
    return SL_MIN(b->split->n_stay, b->m->shape.layers[layer].n_expert);
}

/* x goes, y comes. */
static void change_away(board *b, uint32_t layer, uint32_t x, uint32_t y)
{
    uint32_t *ids = b->away + (size_t)layer * b->m->hp.n_expert, i = 0;
    uint32_t n = b->m->shape.layers[layer].n_expert - n_staying(b, layer);
    while (ids[i] != x) i++;
    for (; i + 1 < n && ids[i + 1] < y; i++) ids[i] = ids[i + 1];
    for (; i > 0 && ids[i - 1] > y; i--) ids[i] = ids[i - 1];
    ids[i] = y;
}

void board_learn(board *b, uint32_t layer, const sl_batch *a, uint32_t n_used)
{
    if (b->cache && a->n_rows)
        sl_ecache_touch(b->cache, layer, a->expert_id, NULL, a->n_rows, n_used);
}

/* What was copied for the next pass is there for its stages. */
static sl_status wait_for_kept(board *b)
{
    sl_event ev = b->kept;
    b->kept = 0;
    return ev ? b->dev->ops->wait(b->dev, SL_Q_COMPUTE, ev) : SL_OK;
}

/* Nothing on its way uses what makes way: stages of earlier passes are over, and this pass's own
 * experts are pinned. */
static sl_status keep_one(board *b, uint32_t layer, uint32_t x)
{
    uint32_t gone = NONE, slot = sl_ecache_take(b->cache, layer, x, &gone);
    assert(slot != SL_ECACHE_NONE && gone != SL_ECACHE_NONE);
    change_away(b, layer, x, gone % b->m->hp.n_expert);
    b->n_kept++;
    return send_expert(b, layer, x, place_of(b, layer, x),
                       stay_place(b, layer, slot - b->first_slot[layer]));
}

sl_status board_keep(board *b, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    uint64_t before = b->n_kept;
    sl_status st = SL_OK;
    if (!b->cache) return SL_OK;
    assert(!b->all);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = sl_ecache_find(b->cache, layer, ids[i]);
        if (slot != SL_ECACHE_NONE) sl_ecache_pin(b->cache, slot);
        b->hits += slot != SL_ECACHE_NONE;
        b->misses += slot == SL_ECACHE_NONE;
    }
    for (uint32_t i = 0; i < n && st == SL_OK; i++)
        if (!board_stays(b, layer, ids[i])
            && sl_ecache_admits(b->cache, layer, ids[i], MARGIN))
            st = keep_one(b, layer, ids[i]);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = sl_ecache_find(b->cache, layer, ids[i]);
        if (slot != SL_ECACHE_NONE) sl_ecache_unpin(b->cache, slot);
    }
    if (st != SL_OK || b->n_kept == before) return st;
    b->kept_age = 0;
    return b->dev->ops->record(b->dev, SL_Q_WEIGHTS, &b->kept);
}

/* ---- the ring ---- */

static board_flight *flight(const board *b, uint32_t i)
{
    return &b->flights[(b->oldest + i) % b->cap_flights];
}

/* Takes the oldest flight's room; the copies wait until it was used. */
static sl_status retire(board *b, sl_event *last)
{
    board_flight *f = flight(b, 0);
    assert(!f->lanes_left);
    if (f->used != *last) SL_TRY(b->dev->ops->wait(b->dev, SL_Q_WEIGHTS, f->used));
    *last = f->used;
    b->oldest = (b->oldest + 1) % b->cap_flights;
    b->n_flights--;
    return SL_OK;
}

/* Where `bytes` would go, and how many of the oldest flights must go for it; false: no room now. */
static bool find_room(const board *b, uint64_t bytes, uint64_t *ret_at, uint32_t *ret_n)
{
    uint64_t at = b->head + bytes <= b->split->ring_bytes ? b->head : 0;
    bool wraps = at != b->head;
    uint32_t n = 0;
    if (b->n_flights == b->cap_flights && flight(b, 0)->lanes_left) return false;
    for (; n < b->n_flights; n++) {
        const board_flight *f = flight(b, n);
        /* what lies between the head and the ring's end is older than what begins it */
        bool skipped = wraps && f->at >= b->head;
        bool meets = f->at < at + bytes && at < f->at + f->bytes;
        if (!skipped && !meets) break;
        if (f->lanes_left) return false;
    }
    if (b->n_flights == b->cap_flights) n = SL_MAX(n, 1);
    *ret_at = at;
    *ret_n = n;
    return true;
}

static sl_status launch(board *b, board_flight f, bool *ret_sent)
{
    uint64_t at;
    uint32_t n;
    sl_event last = 0;
    *ret_sent = false;
    assert(f.bytes <= b->split->ring_bytes);
    if (!find_room(b, f.bytes, &at, &n)) return SL_OK;
    while (n--) SL_TRY(retire(b, &last));
    f.at = at;
    f.lanes_left = b->n_lanes;
    b->head = at + f.bytes;
    char *to = b->ring + at;
    if (f.item == NONE) {
        SL_TRY(send_expert(b, f.layer, f.expert, f.from, to));
    } else {
        const board_item *it = &b->items[f.item];
        if (it->kind != ITEM_EXPERTS) SL_TRY(send_parts(b, it, to));
        const uint32_t *ids = b->away + (size_t)it->layer * b->m->hp.n_expert + it->first;
        for (uint32_t i = 0; it->kind == ITEM_EXPERTS && i < it->n; i++)
            SL_TRY(send_expert(b, it->layer, ids[i], place_of(b, it->layer, ids[i]),
                               to + i * b->slot_bytes[it->layer]));
    }
    SL_TRY(b->dev->ops->record(b->dev, SL_Q_WEIGHTS, &f.sent));
    if (++b->kept_age == OLD) SL_TRY(wait_for_kept(b));
    *flight(b, b->n_flights++) = f;
    *ret_sent = true;
    return SL_OK;
}

static sl_status launch_expert(board *b, uint32_t layer, uint32_t x, const void *from,
                               bool *ret_sent)
{
    return launch(b, (board_flight){ .item = NONE, .layer = layer, .expert = x, .from = from,
                                     .bytes = b->slot_bytes[layer] }, ret_sent);
}

/* The next item, or expert that was asked for. *ret_sent: there was one, and room for it. */
static sl_status send_next(board *b, bool *ret_sent)
{
    *ret_sent = false;
    if (b->asked_at < b->n_asked) {
        uint32_t x = b->asked[b->asked_at];
        SL_TRY(launch_expert(b, b->asked_layer, x, place_of(b, b->asked_layer, x), ret_sent));
        b->asked_at += *ret_sent;
        return SL_OK;
    }
    const board_item *it = &b->items[b->next];
    if (!b->n_items) return SL_OK;
    if (it->kind == ITEM_EXPERTS && !b->all) return SL_OK;      /* its router has not spoken */
    SL_TRY(launch(b, (board_flight){ .item = b->next, .layer = it->layer, .bytes = it->bytes },
                  ret_sent));
    if (*ret_sent) b->next = (b->next + 1) % b->n_items;
    return SL_OK;
}

sl_status board_pump(board *b)
{
    bool sent = true;
    while (sent) SL_TRY(send_next(b, &sent));
    return SL_OK;
}

/* What nobody will use: its copies are on the same queue as those that will take its room. */
static void drop_all(board *b)
{
    for (uint32_t i = 0; i < b->n_flights; i++) flight(b, i)->lanes_left = 0;
    b->next = 0;
    b->n_asked = b->asked_at = 0;
}

sl_status board_begin(board *b, bool all, uint32_t n_lanes)
{
    /* what is there already belongs to a pass of the same kind */
    bool fresh = all != b->all || n_lanes != b->n_lanes;
    for (uint32_t i = 0, seen = 0; i < b->n_flights; i++) {
        board_flight *f = flight(b, i);
        if (f->lanes_left) fresh |= f->item != seen++;
        else f->used = 0;       /* of a pass that is over, and perhaps too old to be waited for */
    }
    if (fresh) drop_all(b);
    b->all = all;
    b->n_lanes = n_lanes;
    SL_TRY(wait_for_kept(b));
    return board_pump(b);
}

void board_ask(board *b, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    assert(!b->all && b->asked_at == b->n_asked);
    memcpy(b->asked, ids, n * sizeof *ids);
    b->n_asked = n;
    b->asked_at = 0;
    b->asked_layer = layer;
    if (b->n_items && b->items[b->next].kind == ITEM_EXPERTS)   /* the layer's: go on behind them */
        while (b->items[b->next].kind == ITEM_EXPERTS && b->items[b->next].layer == layer)
            b->next = (b->next + 1) % b->n_items;
}

/* The flight of an item, or of an expert that was asked for; NULL: not sent yet. */
static board_flight *find_flight(const board *b, uint32_t item, uint32_t layer, uint32_t expert)
{
    for (uint32_t i = 0; i < b->n_flights; i++) {
        board_flight *f = flight(b, i);
        if (!f->lanes_left || f->item != item) continue;
        if (item != NONE || (f->layer == layer && f->expert == expert)) return f;
    }
    return NULL;
}

static sl_status too_small(board *b, uint32_t layer)
{
    return sl_fail(b->ctx, SL_E_DEVICE, "layer %u: a ring of %llu bytes is too small", layer,
                   (unsigned long long)b->split->ring_bytes);
}

sl_status board_send(board *b, uint32_t layer, uint32_t expert, sl_expert_data from)
{
    bool sent;
    assert(!b->all && b->asked_at == b->n_asked);
    SL_TRY(launch_expert(b, layer, expert, from.gate, &sent));
    return sent ? SL_OK : too_small(b, layer);
}

sl_status board_sync(board *b)
{
    sl_event ev;
    SL_TRY(b->dev->ops->record(b->dev, SL_Q_WEIGHTS, &ev));
    return b->dev->ops->sync(b->dev, ev);
}

static sl_status use(board *b, uint32_t item, uint32_t layer, uint32_t expert, board_flight **ret)
{
    bool sent = true;
    while (!(*ret = find_flight(b, item, layer, expert)) && sent) SL_TRY(send_next(b, &sent));
    if (!*ret) return too_small(b, layer);
    return b->dev->ops->wait(b->dev, SL_Q_COMPUTE, (*ret)->sent);
}

static sl_status done(board *b, board_flight *f)
{
    assert(f && f->lanes_left);
    if (!--f->lanes_left) SL_TRY(b->dev->ops->record(b->dev, SL_Q_COMPUTE, &f->used));
    return board_pump(b);
}

/* NONE: it stays, or there is none. */
static uint32_t item_of(const board *b, item_kind kind, uint32_t layer)
{
    for (uint32_t i = 0; i < b->n_items; i++)
        if (b->items[i].kind == kind && (kind == ITEM_HEAD || b->items[i].layer == layer)) return i;
    return NONE;
}

sl_status board_use(board *b, item_kind kind, uint32_t layer)
{
    uint32_t i = item_of(b, kind, layer);
    board_flight *f;
    if (i == NONE) return SL_OK;
    SL_TRY(use(b, i, layer, 0, &f));
    point(b, &b->items[i], b->ring + f->at);
    return SL_OK;
}

sl_status board_done(board *b, item_kind kind, uint32_t layer)
{
    uint32_t i = item_of(b, kind, layer);
    return i == NONE ? SL_OK : done(b, find_flight(b, i, layer, 0));
}

sl_status board_use_group(board *b, uint32_t i)
{
    board_flight *f;
    return use(b, i, b->items[i].layer, 0, &f);
}

sl_status board_done_group(board *b, uint32_t i)
{
    return done(b, find_flight(b, i, 0, 0));
}

sl_status board_use_expert(board *b, uint32_t layer, uint32_t expert)
{
    board_flight *f;
    return use(b, NONE, layer, expert, &f);
}

sl_status board_done_expert(board *b, uint32_t layer, uint32_t expert)
{
    return done(b, find_flight(b, NONE, layer, expert));
}

uint32_t board_group_first(const board *b, uint32_t i)
{
    const board_item *it = &b->items[i];
    return b->away[(size_t)it->layer * b->m->hp.n_expert + it->first];
}

uint32_t board_group_last(const board *b, uint32_t i)
{
    const board_item *it = &b->items[i];
    return b->away[(size_t)it->layer * b->m->hp.n_expert + it->first + it->n - 1];
}

sl_expert_data board_expert(const board *b, uint32_t layer, uint32_t x)
{
    const uint32_t *away = b->away + (size_t)layer * b->m->hp.n_expert;
    uint32_t slot = slot_of(b, layer, x), i = b->first_group[layer], at;
    if (slot != NONE) return expert_at(b, layer, x, stay_place(b, layer, slot));
    board_flight *f = b->all ? NULL : find_flight(b, NONE, layer, x);
    if (f) return expert_at(b, layer, x, b->ring + f->at);
    for (uint32_t end = i + b->n_groups[layer]; i < end; i++) {
        if (x > board_group_last(b, i)) continue;
        for (at = 0; away[b->items[i].first + at] != x;) at++;
        f = find_flight(b, i, layer, 0);
        assert(f);
        return expert_at(b, layer, x, b->ring + f->at + at * b->slot_bytes[layer]);
    }
    assert(!"an expert that is nowhere");
    return (sl_expert_data){ NULL, NULL, NULL };
}

/* ---- init and fini ---- */

static bool behind_experts(const board *b, const binding *x)
{
    const sl_layer *l = &b->m->layers[x->layer];
    const char *dst = (const char *)x->dst;
    return (dst >= (const char *)&l->ffn && dst < (const char *)(&l->ffn + 1))
        || (dst >= (const char *)&l->shared && dst < (const char *)(&l->shared + 1));
}

/* Is binding i a matrix of that item? The first of its tensor in the layer stands for all. */
static bool belongs(const board *b, uint32_t i, item_kind kind, uint32_t layer)
{
    const binding *x = &b->m->bindings[i];
    if (x->kind != BIND_BYTES) return false;
    if (kind == ITEM_HEAD) return x->dst == &b->m->ends.weights.head.data;
    return x->layer == layer && weights_first(b->host, i) == i
        && behind_experts(b, x) == (kind == ITEM_BACK);
}

/* The parts of an item; n 0: it has none. */
static board_item gather(board *b, item_kind kind, uint32_t layer)
{
    board_item it = { .kind = kind, .layer = layer, .first = b->n_parts };
    for (uint32_t i = 0; i < b->m->n_bindings; i++) {
        if (!belongs(b, i, kind, layer)) continue;
        b->parts[b->n_parts++] = (board_part){ i, it.bytes };
        it.bytes += (b->m->bindings[i].tensor->bytes + 255) / 256 * 256;
        it.n++;
    }
    it.bytes = round_up(it.bytes);
    return it;
}

static void push_item(board *b, board_item it)
{
    if (it.n) b->items[b->n_items++] = it;
}

static void push_groups(board *b, uint32_t layer)
{
    uint32_t first = n_staying(b, layer), n = b->m->shape.layers[layer].n_expert - first, at = 0;
    uint64_t slot = b->slot_bytes[layer];
    b->first_group[layer] = b->n_items;
    for (uint32_t i = 0; i < n; i++) b->away[(size_t)layer * b->m->hp.n_expert + i] = first + i;
    for (uint32_t k; at < n; at += k) {
        k = (uint32_t)SL_MIN(b->split->ring_bytes / GROUPS_A_RING / slot, (uint64_t)MAX_GROUP);
        k = SL_MIN(SL_MAX(k, 1), n - at);
        push_item(b, (board_item){ .kind = ITEM_EXPERTS, .layer = layer, .first = at, .n = k,
                                   .bytes = k * slot });
    }
    b->n_groups[layer] = b->n_items - b->first_group[layer];
}

/* From where they lie; or, where experts are streamed, some at a time through their slots. */
static sl_status send_staying(board *b, uint32_t layer)
{
    uint32_t n = n_staying(b, layer), got = 0, gone;
    sl_expert_data data[LOAD_AT_ONCE];
    for (uint32_t x = 0; b->cache && x < n; x++)
        sl_ecache_unpin(b->cache, sl_ecache_take(b->cache, layer, x, &gone));
    if (!b->streamed) {
        for (uint32_t x = 0; x < n; x++)
            SL_TRY(send_expert(b, layer, x, place_of(b, layer, x),
                               stay_place(b, layer, slot_of(b, layer, x))));
        return SL_OK;
    }
    for (uint32_t at = 0; at < n; at += got) {
        SL_TRY(sl_stream_load(b->ctx, b->host->stream, layer, at, SL_MIN(n - at, LOAD_AT_ONCE),
                              data, &got));
        for (uint32_t i = 0; i < got; i++)
            SL_TRY(send_expert(b, layer, at + i, data[i].gate, stay_place(b, layer, at + i)));
        SL_TRY(board_sync(b));
    }
    return SL_OK;
}

/* What is sent in each pass becomes items; what stays is sent now. */
static sl_status place(board *b)
{
    uint64_t at = 0, stay = 0;
    for (uint32_t l = 0; l < b->m->hp.n_layer; l++) {
        board_item parts[2] = { gather(b, ITEM_FRONT, l), gather(b, ITEM_BACK, l) };
        bool stays = l < b->split->n_dense_layers;
        if (!stays) push_item(b, parts[0]);
        push_groups(b, l);
        if (!stays) push_item(b, parts[1]);
        for (int i = 0; i < 2 && stays; at += parts[i++].bytes) {
            SL_TRY(send_parts(b, &parts[i], b->dense + at));
            point(b, &parts[i], b->dense + at);
        }
        b->stay_at[l] = stay;
        SL_TRY(send_staying(b, l));
        stay += n_staying(b, l) * b->slot_bytes[l];
    }
    if (b->split->head == SL_ON_CPU) return SL_OK;
    board_item head = gather(b, ITEM_HEAD, BIND_NO_LAYER);
    if (!b->split->head_stays) {
        push_item(b, head);
        return SL_OK;
    }
    point(b, &head, b->dense + at);
    return send_parts(b, &head, b->dense + at);
}

static sl_status take(board *b, sl_account acc, uint64_t bytes, char **ret)
{
    void *p = NULL;
    if (!bytes) return SL_OK;
    SL_TRY(b->dev->ops->alloc(b->dev, acc, bytes, &p));
    *ret = p;
    return SL_OK;
}

/* Copies from memory that the driver refuses to pin are slower, and right. */
static sl_status pin(board *b, void *p, uint64_t bytes)
{
    if (!bytes) return SL_OK;
    sl_status st = b->dev->ops->pin(b->dev, p, bytes);
    if (st == SL_OK) b->pinned[b->n_pinned++] = p;
    else if (st == SL_E_UNSUPPORTED) sl_log(b->ctx, SL_WARN, "%s", sl_error(b->ctx));
    return st == SL_E_UNSUPPORTED ? SL_OK : st;
}

static sl_status take_all(board *b)
{
    const sl_split *x = b->split;
    void *p;
    uint64_t bytes;
    SL_TRY(take(b, SL_ACC_DENSE, b->host->floats_bytes, &b->floats));
    SL_TRY(take(b, SL_ACC_DENSE, x->dense_bytes - b->m->shape.vector_bytes, &b->dense));
    SL_TRY(take(b, SL_ACC_SLOTS, x->stay_bytes, &b->stay));
    SL_TRY(take(b, SL_ACC_SLOTS, x->ring_bytes, &b->ring));
    SL_TRY(pin(b, b->host->floats, b->host->floats_bytes));
    SL_TRY(pin(b, b->host->dense, b->host->dense_bytes));
    for (uint32_t i = 0; sl_stream_memory(b->host->stream, i, &p, &bytes); i++)
        SL_TRY(pin(b, p, bytes));
    return SL_OK;
}

static sl_status take_tables(board *b)
{
    uint32_t n_layer = b->m->hp.n_layer, n_expert = b->m->hp.n_expert;
    uint64_t n_items = n_layer * (2ull + n_expert) + 1;
    b->cap_flights = (uint32_t)SL_MIN(n_items + n_expert, (uint64_t)4096);
    b->layers = calloc(n_layer, sizeof *b->layers);
    b->parts = calloc(b->m->n_bindings + 1ull, sizeof *b->parts);
    b->stay_at = calloc(n_layer, sizeof *b->stay_at);
    b->slot_bytes = calloc(n_layer, sizeof *b->slot_bytes);
    b->items = calloc(n_items, sizeof *b->items);
    b->first_slot = calloc(n_layer, sizeof *b->first_slot);
    b->away = calloc((size_t)n_layer * n_expert + 1, sizeof *b->away);
    b->first_group = calloc(n_layer, sizeof *b->first_group);
    b->n_groups = calloc(n_layer, sizeof *b->n_groups);
    b->asked = calloc(n_expert + 1ull, sizeof *b->asked);
    b->flights = calloc(b->cap_flights, sizeof *b->flights);
    if (!b->layers || !b->parts || !b->stay_at || !b->slot_bytes || !b->items || !b->first_slot
        || !b->away || !b->first_group || !b->n_groups || !b->asked || !b->flights)
        return sl_fail(b->ctx, SL_E_NOMEM, "tables of %u layers for the device", n_layer);
    memcpy(b->layers, b->m->layers, n_layer * sizeof *b->layers);
    b->ends = b->m->ends;
    b->ends.weights.layers = b->layers;
    for (uint32_t l = 0; l < n_layer; l++)
        b->slot_bytes[l] = round_up(b->m->shape.layers[l].slot_bytes);
    return SL_OK;
}

/* A pool for each layer: what a pass sends has the same size whoever stays. */
static sl_status make_cache(board *b)
{
    uint32_t n_layer = b->m->hp.n_layer, at = 0, *both = calloc(2ull * n_layer, sizeof *both);
    if (!both) return sl_fail(b->ctx, SL_E_NOMEM, "tables of %u layers for the device", n_layer);
    for (uint32_t l = 0; l < n_layer; at += both[l++]) {
        both[l] = n_staying(b, l);
        both[n_layer + l] = both[l] ? l : SL_ECACHE_NO_CLASS;
        b->first_slot[l] = at;
    }
    sl_ecache_params p = { .n_layer = n_layer, .n_expert = b->m->hp.n_expert,
                           .n_used = b->m->widths.n_used, .n_seq = 1, .layer_class = both + n_layer,
                           .n_classes = n_layer, .class_slots = both, .policy = SL_POLICY_LFU,
                           .half_life = HALF_LIFE };
    sl_status st = sl_ecache_create(b->ctx, &p, &b->cache);
    free(both);
    return st;
}

sl_status board_init(sl_ctx *ctx, sl_device *dev, weights *host, const sl_plan *plan, board *b)
{
    *b = (board){ .ctx = ctx, .dev = dev, .m = host->m, .host = host, .split = &plan->split,
                  .streamed = plan->weights == SL_WEIGHTS_STREAMED, .n_lanes = 1 };
    SL_TRY(take_tables(b));
    if (b->split->stay_follow) SL_TRY(make_cache(b));
    SL_TRY(take_all(b));
    SL_TRY(send_bytes(b, b->floats, (const char *)host->floats, host->floats_bytes));
    point_floats(b);
    SL_TRY(place(b));
    SL_TRY(board_sync(b));
    b->sent_bytes = 0;
    return SL_OK;
}

void board_fini(board *b)
{
    if (!b->dev) return;
    for (uint32_t q = 0; q < SL_N_QUEUES; q++) {    /* what is on its way uses this memory */
        sl_event ev;
        if (b->dev->ops->record(b->dev, (sl_queue)q, &ev) == SL_OK)
            (void)(b->dev->ops->sync(b->dev, ev) == SL_OK);
    }
    b->dev->ops->free(b->dev, b->floats);
    b->dev->ops->free(b->dev, b->dense);
    b->dev->ops->free(b->dev, b->stay);
    b->dev->ops->free(b->dev, b->ring);
    for (uint32_t i = 0; i < b->n_pinned; i++) b->dev->ops->unpin(b->dev, b->pinned[i]);
    free(b->layers);
    free(b->parts);
    free(b->stay_at);
    free(b->slot_bytes);
    free(b->items);
    sl_ecache_destroy(&b->cache);
    free(b->first_slot);
    free(b->away);
    free(b->first_group);
    free(b->n_groups);
    free(b->asked);
    free(b->flights);
    *b = (board){ 0 };
}
