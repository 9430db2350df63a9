/* offload/probe.h - the loops that a probe times. Private to offload/. */
#ifndef PROBE_H
#define PROBE_H

#include "perfmodel/sl_machine.h"

/* `rounds` rounds of the loop of one peak, on the calling thread. Needs the instructions. */
void probe_peak_loop(sl_peak peak, uint64_t rounds);
uint32_t probe_peak_ops(sl_peak peak);      /* operations of a round; 0: not on this kind of CPU */

enum { PROBE_N_READS = 6 };     /* ways to read: 1, 2, 4 streams; without and with prefetch */
/* Reads n bytes, a multiple of PROBE_READ_UNIT at a multiple of 64; all loads are made. */
enum { PROBE_READ_UNIT = 4096 };
void probe_read_loop(uint32_t way, const void *p, size_t n);

#endif
