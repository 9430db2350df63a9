/* offload/emu_queue.h - the emulated device's queues: a thread each, that runs what was submitted
 * in order, and the links that copies share. Private to offload/ and to tests.
 * Owns the threads. Must not know what a stage is, or check who may touch what.
 * Threads: one driver; the queues' own. Units: bytes, seconds (CLOCK_MONOTONIC).
 *
 * A link carries one copy at a time, in the order in which they came up, each for bytes / rate; a
 * copy is over link_s after it left the link, while the next one is on it. Copies are really made,
 * so a link is no faster than the memory under it: it takes what is longer. */
#ifndef EMU_QUEUE_H
#define EMU_QUEUE_H

#include "offload/sl_device.h"

typedef struct emu_queues emu_queues;

enum { EMU_LINK_UP, EMU_LINK_DOWN, EMU_LINK_INSIDE, EMU_LINKS };

/* What one operation did, for timelines. */
typedef struct emu_span {
    sl_queue queue;
    const char *what;           /* "copy", or the stage */
    uint32_t layer;             /* of a stage; else UINT32_MAX */
    uint64_t bytes;             /* of a copy */
    double from_s, to_s;        /* of a copy: on its link */
} emu_span;

typedef struct emu_busy {
    double link_s[EMU_LINKS];           /* copies were on it */
    uint64_t link_bytes[EMU_LINKS];
    double compute_s;                   /* a stage ran */
    double queue_cpu_s[SL_N_QUEUES];    /* CPU time of the queues' own threads */
} emu_busy;

typedef sl_status (*emu_stage_fn)(void *user, void *stage);

/* fn runs stages. cpus: which CPUs the stages' thread may use, [n_cpus]; 0: any. Errors:
 * SL_E_NOMEM, SL_E_DEVICE (a thread could not be started). */
SL_NODISCARD sl_status emu_queues_create(sl_ctx *ctx, const sl_accel *a, emu_stage_fn fn,
                                         void *user, const uint32_t *cpus, uint32_t n_cpus,
                                         emu_queues **ret);
void emu_queues_destroy(emu_queues **q);    /* waits for all work */

/* Each returns the number of the operation in its queue; 0: no memory. A stage is freed by free()
 * when it ran. */
uint64_t emu_queue_copy(emu_queues *e, sl_queue q, void *dst, const void *src, size_t bytes,
                        uint32_t link);
uint64_t emu_queue_stage(emu_queues *e, void *stage, const char *what, uint32_t layer);
/* What q gets from here on waits until `on` has done its first n operations. */
uint64_t emu_queue_wait(emu_queues *e, sl_queue q, sl_queue on, uint64_t n);
uint64_t emu_queue_count(const emu_queues *e, sl_queue q);      /* submitted so far */
void emu_queue_sync(emu_queues *e, sl_queue q, uint64_t n);     /* the driver waits */
/* The first stage that failed; SL_OK: none did. After a failure stages are passed over. */
sl_status emu_queues_status(emu_queues *e);

void emu_queues_busy(emu_queues *e, emu_busy *ret);
/* From now on, spans go to spans [cap], which is the caller's until the next call; NULL: nowhere.
 * Returns how many spans the last call got. Between passes: nothing may be on its way. */
uint32_t emu_queues_trace(emu_queues *e, emu_span *spans, uint32_t cap);

#endif
