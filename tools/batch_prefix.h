/* tools/batch_prefix.h - how much of each prompt others began with: what the engine will find in
 * its KV cache (runtime/kv.h), for a forecast.
 * Owns a set of hashes. Threads: the main thread. Units: tokens.
 * Tested by tests/t_batch_cli.py through the command. */
#ifndef BATCH_PREFIX_H
#define BATCH_PREFIX_H

#include <stdbool.h>
#include <stdint.h>

typedef struct batch_prefixes {
    uint64_t *at;               /* [cap] open addressing, 0: empty; a power of 2 */
    uint64_t cap, n;
} batch_prefixes;               /* all zero: none yet */

/* Adds a prompt's whole KV blocks; *ret_shared: tokens in front that need not be computed, the last
 * one always does. False: no memory. */
bool batch_prefixes_add(batch_prefixes *p, const int32_t *ids, uint32_t n, uint32_t *ret_shared);
void batch_prefixes_fini(batch_prefixes *p);

#endif
