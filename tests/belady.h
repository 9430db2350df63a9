/* tests/belady.h - the most hits that any cache of objects of one size can have on a sequence that
 * is known in advance: Belady's MIN (IBM Systems Journal 5(2), 1966), which evicts what is used
 * again latest. With bypass an object that is used again later than all that are there is not
 * kept: the bound for a cache whose misses need not enter it. Compared with a search of every
 * choice in tests/t_ecache.c. */
#ifndef BELADY_H
#define BELADY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/* Hits of uses [n], objects below n_objects, among the uses from `from` on. O(n * capacity).
 * UINT64_MAX: no memory. */
static inline uint64_t belady_hits(const uint32_t *uses, uint64_t n, uint32_t n_objects,
                                   uint32_t capacity, bool bypass, uint64_t from)
{
    uint64_t *next = malloc((n + 1) * sizeof *next);            /* use after this one */
    uint64_t *seen = malloc(((uint64_t)n_objects + 1) * sizeof *seen);
    uint64_t *due = malloc((capacity + 1ull) * sizeof *due);    /* next use of what is in a slot */
    uint32_t *slot_of = malloc(((uint64_t)n_objects + 1) * sizeof *slot_of);
    uint32_t *object = malloc((capacity + 1ull) * sizeof *object);
    uint64_t hits = next && seen && due && slot_of && object ? 0 : UINT64_MAX;
    if (hits) goto out;
    for (uint32_t o = 0; o < n_objects; o++) {
        seen[o] = UINT64_MAX;
        slot_of[o] = UINT32_MAX;
    }
    for (uint64_t i = n; i-- > 0;) {
        next[i] = seen[uses[i]];
        seen[uses[i]] = i;
    }
    uint32_t n_full = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t s = slot_of[uses[i]];
        if (s != UINT32_MAX) {
            hits += i >= from;
            due[s] = next[i];
            continue;
        }
        if (n_full < capacity) s = n_full++;
        else {
            uint64_t latest = 0;
            for (uint32_t k = 0; k < capacity; k++)
                if (due[k] >= latest) {
                    latest = due[k];
                    s = k;
                }
            if (!capacity || (bypass && next[i] >= latest)) continue;
            slot_of[object[s]] = UINT32_MAX;
        }
        object[s] = uses[i];
        due[s] = next[i];
        slot_of[uses[i]] = s;
    }
out:
    free(next);
    free(seen);
    free(due);
    free(slot_of);
    free(object);
    return hits;
}

#endif
