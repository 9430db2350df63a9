/* runtime/base/sl_numa.h - where memory lies on a machine with several NUMA nodes.
 * Owns nothing. Threads: any. Units: bytes. Tested by tests/t_numa.c. */
#ifndef SL_NUMA_H
#define SL_NUMA_H

#include "runtime/base/sl_base.h"

/* Spreads the whole pages in [p, p + bytes) over the NUMA nodes whose cores the calling thread may
 * use: those not touched yet are taken from the nodes in turn. For large blocks that all threads
 * read, such as weights, before they are filled: it looks at the machine anew, which takes some
 * milliseconds. Returns how many nodes the block is spread over; 1: there is one, or the system
 * refused, and nothing has changed. */
SL_API uint32_t sl_mem_interleave(void *p, size_t bytes);

#endif
