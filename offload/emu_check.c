/* offload/emu_check.c - memory as regions, each cut into segments whose bytes have one history: who
 * wrote them last, and who read them since, each by the number of the operation.
 * Invariants: regions are sorted by address and do not overlap; a region's segments cover it, in
 * order; a region that was removed stays known as such until its addresses are used anew. */
#include "offload/emu_check.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FREED_MAX = 256 };       /* removed regions that are remembered */

struct segment {
    size_t end;                 /* it starts where the one before it ends */
    uint32_t writer;
    const char *writer_did;
    uint64_t written;           /* 0: never */
    uint64_t read[EMU_ACTORS];
};

struct region {
    const char *base;
    size_t bytes;
    emu_kind kind;
    const char *what;
    bool freed;
    struct segment *seg;
    uint32_t n_seg, cap;
};

struct emu_check {
    emu_clock clock[EMU_ACTORS];
    const char *doing[EMU_ACTORS];      /* the operation submitted last */
    struct region *regions;
    uint32_t n, cap, n_freed;
    char error[320];
};

static const char *const kinds[] = { "device memory", "host memory" };

emu_check *emu_check_create(void)
{
    return calloc(1, sizeof(emu_check));
}

void emu_check_destroy(emu_check **c)
{
    if (!*c) return;
    for (uint32_t i = 0; i < (*c)->n; i++) free((*c)->regions[i].seg);
    free((*c)->regions);
    free(*c);
    *c = NULL;
}

const char *emu_check_error(const emu_check *c)
{
    return c->error[0] ? c->error : NULL;
}

static void wrong(emu_check *c, const char *fmt, ...) SL_PRINTF(2, 3);
static void wrong(emu_check *c, const char *fmt, ...)
{
    va_list args;
    if (c->error[0]) return;
    va_start(args, fmt);
    vsnprintf(c->error, sizeof c->error, fmt, args);
    va_end(args);
}

/* The first region that ends behind p. */
static uint32_t find(const emu_check *c, const char *p)
{
    uint32_t lo = 0, hi = c->n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (c->regions[mid].base + c->regions[mid].bytes <= p) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

static void drop_region(emu_check *c, uint32_t at)
{
    c->n_freed -= c->regions[at].freed;
    free(c->regions[at].seg);
    memmove(c->regions + at, c->regions + at + 1, (c->n - at - 1) * sizeof *c->regions);
    c->n--;
}

void emu_check_add(emu_check *c, const void *p, size_t bytes, emu_kind kind, const char *what)
{
    struct region r = { .base = p, .bytes = bytes, .kind = kind, .what = what, .n_seg = 1,
                        .cap = 16 };
    uint32_t at = find(c, p);
    if (!bytes || c->error[0]) return;
    while (at < c->n && c->regions[at].base < (const char *)p + bytes) {
        if (!c->regions[at].freed) {
            wrong(c, "%s of %zu bytes overlaps %s", what, bytes, c->regions[at].what);
            return;
        }
        drop_region(c, at);
    }
    if (c->n == c->cap) {
        uint32_t cap = c->cap ? 2 * c->cap : 64;
        struct region *more = realloc(c->regions, cap * sizeof *more);
        if (!more) {
        wrong(c, "no memory to check %s", what);
        return;
    }
        c->regions = more;
        c->cap = cap;
    }
    r.seg = calloc(r.cap, sizeof *r.seg);
    if (!r.seg) {
        wrong(c, "no memory to check %s", what);
        return;
    }
    r.seg[0].end = bytes;
    memmove(c->regions + at + 1, c->regions + at, (c->n - at) * sizeof *c->regions);
    c->regions[at] = r;
    c->n++;
}

bool emu_check_knows(const emu_check *c, const void *p, size_t bytes, emu_kind kind)
{
    uint32_t at = find(c, p);
    if (at == c->n) return false;
    const struct region *r = &c->regions[at];
    return r->base <= (const char *)p && (const char *)p + bytes <= r->base + r->bytes
        && r->kind == kind && !r->freed;
}

uint32_t emu_check_left(const emu_check *c, char *text, size_t room)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const struct region *r = &c->regions[i];
        if (r->freed) continue;
        if (!n++) snprintf(text, room, "%s, %zu bytes of %s", r->what, r->bytes, kinds[r->kind]);
    }
    return n;
}

void emu_check_submit(emu_check *c, uint32_t actor, const char *what)
{
    assert(actor != EMU_DRIVER && actor < EMU_ACTORS);
    emu_check_join(c, actor, &c->clock[EMU_DRIVER]);
    c->clock[actor].at[actor]++;
    c->doing[actor] = what;
}

emu_clock emu_check_now(const emu_check *c, uint32_t actor)
{
    return c->clock[actor];
}

void emu_check_join(emu_check *c, uint32_t actor, const emu_clock *event)
{
    emu_clock *own = &c->clock[actor];
    for (uint32_t i = 0; i < EMU_ACTORS; i++) own->at[i] = SL_MAX(own->at[i], event->at[i]);
}

/* ---- accesses ---- */

/* The segment that holds byte `at`. */
static uint32_t segment_of(const struct region *r, size_t at)
{
    uint32_t lo = 0, hi = r->n_seg;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (r->seg[mid].end <= at) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* Cuts the region at `at`; false: no memory. */
static bool cut(struct region *r, size_t at)
{
    uint32_t i = segment_of(r, at);
    if (!at || at == r->bytes || r->seg[i - (i > 0)].end == at) return true;
    if (r->n_seg == r->cap) {
        struct segment *more = realloc(r->seg, 2 * r->cap * sizeof *more);
        if (!more) return false;
        r->seg = more;
        r->cap *= 2;
    }
    memmove(r->seg + i + 1, r->seg + i, (r->n_seg - i) * sizeof *r->seg);
    r->seg[i].end = at;
    r->n_seg++;
    return true;
}

static bool alike(const struct segment *a, const struct segment *b)
{
    return a->writer == b->writer && a->written == b->written
        && !memcmp(a->read, b->read, sizeof a->read);
}

/* Segments [from, to) and their neighbours. */
static void join_alike(struct region *r, uint32_t from, uint32_t to)
{
    from -= from > 0;
    to = SL_MIN(to + 1, r->n_seg);
    uint32_t n = from;
    for (uint32_t i = from + 1; i < to; i++) {
        if (alike(&r->seg[n], &r->seg[i])) r->seg[n].end = r->seg[i].end;
        else r->seg[++n] = r->seg[i];
    }
    memmove(r->seg + n + 1, r->seg + to, (r->n_seg - to) * sizeof *r->seg);
    r->n_seg -= to - n - 1;
}

struct use {
    uint32_t actor;
    bool write;
    const char *what;
};

/* Is all that happened to the segment ordered before this use of it? */
static void check_segment(emu_check *c, const struct region *r, const struct segment *s, size_t at,
                          const struct use *u)
{
    const uint64_t *known = c->clock[u->actor].at;
    const char *who = u->actor == EMU_DRIVER ? "the driver" : c->doing[u->actor];
    if (s->written > known[s->writer])
        wrong(c, "%s %s %s (%s + %zu) while \"%s\" may still be writing it: no event orders them",
              who, u->write ? "writes" : "reads", u->what, r->what, at, s->writer_did);
    for (uint32_t i = 0; i < EMU_ACTORS && u->write; i++)
        if (s->read[i] > known[i])
            wrong(c, "%s writes %s (%s + %zu) while others may still be reading it: no event "
                     "orders them",
                  who, u->what, r->what, at);
}

static void use_region(emu_check *c, struct region *r, size_t lo, size_t hi, const struct use *u)
{
    uint64_t now = c->clock[u->actor].at[u->actor];
    if (!cut(r, lo) || !cut(r, hi)) {
        wrong(c, "no memory to check %s", r->what);
        return;
    }
    uint32_t first = segment_of(r, lo), i = first;
    for (; i < r->n_seg && r->seg[i].end <= hi; i++) {
        struct segment *s = &r->seg[i];
        check_segment(c, r, s, lo, u);
        if (!u->write) {
            s->read[u->actor] = now;
            continue;
        }
        *s = (struct segment){ .end = s->end, .writer = u->actor, .written = now,
                               .writer_did = u->actor == EMU_DRIVER ? "the driver"
                                                                    : c->doing[u->actor] };
    }
    join_alike(r, first, i);
}

void emu_check_access(emu_check *c, uint32_t actor, const void *p, size_t bytes, emu_kind kind,
                      bool write, const char *what)
{
    const char *at = p;
    if (!bytes || c->error[0]) return;
    if (actor == EMU_DRIVER) c->clock[EMU_DRIVER].at[EMU_DRIVER]++;
    const char *who = actor == EMU_DRIVER ? "the driver" : c->doing[actor];
    uint32_t i = find(c, at);
    struct region *r = i < c->n && c->regions[i].base < at + bytes ? &c->regions[i] : NULL;
    if (r && r->freed) {
        wrong(c, "%s uses %s after it was freed (%s)", who, what, r->what);
        return;
    }
    if (!r && kind == EMU_HOST) return;
    if (!r || r->kind != kind) {
        wrong(c, "%s: %s is not %s", who, what, kinds[kind]);
        return;
    }
    if (at < r->base || at + bytes > r->base + r->bytes) {
        wrong(c, "%s: %zu bytes of %s reach beyond %s of %zu", who, bytes, what, r->what,
                     r->bytes);
        return;
    }
    size_t lo = (size_t)(at - r->base);
    use_region(c, r, lo, lo + bytes, &(struct use){ actor, write, what });
}

void emu_check_remove(emu_check *c, const void *p)
{
    uint32_t at = find(c, p);
    struct region *r = at < c->n && c->regions[at].base == p ? &c->regions[at] : NULL;
    if (c->error[0]) return;
    if (!r) {
        wrong(c, "what is freed was never given out");
        return;
    }
    if (r->freed) {
        wrong(c, "%s is freed twice", r->what);
        return;
    }
    emu_check_access(c, EMU_DRIVER, p, r->bytes, r->kind, true, "what it frees");
    r->freed = true;
    if (++c->n_freed <= FREED_MAX) return;
    for (uint32_t i = 0; i < c->n; i++)
        if (c->regions[i].freed && i != at) return drop_region(c, i);
}
