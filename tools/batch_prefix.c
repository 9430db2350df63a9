/* tools/batch_prefix.c - a set of beginnings, each named by the hash of all its tokens. Two that
 * hash alike would cost a forecast a block's worth of error, nothing else. */
#include "tools/batch_prefix.h"

#include <stdlib.h>

#include "perfmodel/sl_plan.h"

/* The beginning's place: where it stands or would stand. */
static uint64_t *place(const batch_prefixes *p, uint64_t hash)
{
    uint64_t i = (hash ^ hash >> 32) & (p->cap - 1);
    while (p->at[i] && p->at[i] != hash) i = (i + 1) & (p->cap - 1);
    return &p->at[i];
}

static bool make_room(batch_prefixes *p, uint64_t more)
{
    if (2 * (p->n + more) <= p->cap) return true;
    batch_prefixes q = { .cap = p->cap ? p->cap : 1024, .n = p->n };
    while (q.cap < 2 * (p->n + more)) q.cap *= 2;
    q.at = calloc(q.cap, sizeof *q.at);
    if (!q.at) return false;
    for (uint64_t i = 0; i < p->cap; i++)
        if (p->at[i]) *place(&q, p->at[i]) = p->at[i];
    free(p->at);
    *p = q;
    return true;
}

bool batch_prefixes_add(batch_prefixes *p, const int32_t *ids, uint32_t n, uint32_t *ret_shared)
{
    uint64_t hash = 14695981039346656037u;      /* FNV-1a by words */
    uint32_t shared = 0;
    bool known = true;
    if (!make_room(p, n / SL_KV_BLOCK_ROWS)) return false;
    for (uint32_t i = 0; i + SL_KV_BLOCK_ROWS < n; i += SL_KV_BLOCK_ROWS) {
        for (uint32_t k = 0; k < SL_KV_BLOCK_ROWS; k++)
            hash = (hash ^ (uint32_t)ids[i + k]) * 1099511628211u;
        uint64_t *at = place(p, hash | 1);
        known = known && *at;
        shared += known * SL_KV_BLOCK_ROWS;
        p->n += !*at;
        *at = hash | 1;
    }
    *ret_shared = shared;
    return true;
}

void batch_prefixes_fini(batch_prefixes *p)
{
    free(p->at);
    *p = (batch_prefixes){ 0 };
}
