/* offload/sl_probe.h - measures this machine: DRAM reads by threads, instruction peaks, barriers;
 * the engine's own stages; and its disk.
 * The loops are written in assembly: compilers insert register copies that hide up to 40 % of an
 * int8 peak, and a bound must not depend on who compiled it. Bests are reported, since whatever
 * else the machine does only takes away. Barriers are medians, since they are costs; and so are the
 * engine's curves, since forecasts are made of them: of visits that are spread over the whole
 * time.
 * Owns its buffers and threads while it runs. Must not print. Threads: one probe at a time.
 * Units: bytes/s, operations/s, seconds. Tested by tests/t_probe.c. */
#ifndef SL_PROBE_H
#define SL_PROBE_H

#include "perfmodel/sl_machine.h"

typedef struct sl_probe_params {
    bool quick;                 /* about 3 s instead of some 40; few types, few points */
    uint32_t max_threads;       /* 0: physical cores of the process */
    /* Types whose products are measured; NULL: all that the engine multiplies by (quick: four). */
    const sl_type *types;
    uint32_t n_types;
    /* Of the layer whose stages are measured, experts of [d_expert][d_model]: a row of weights
     * costs something beside its bytes, which short rows feel. Taken as multiples of 256 up to
     * 2048; 0: 2048 and 1024. */
    uint32_t d_model, d_expert;
    /* Thread counts, ascending, SL_MACHINE_COSTS at most, max_threads then 0; NULL: for products 1
     * and the most, for reads some between too. */
    const uint32_t *threads;
    uint32_t n_threads;
    double seconds;             /* 0: as above; else about so long in all, 3 at least */
    /* may be NULL; share done, 0 to 1 */
    void (*progress)(void *user, const char *what, double share);
    void *user;
} sl_probe_params;

/* What this machine is, without measuring. Errors: SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_probe_identify(sl_ctx *ctx, sl_machine_id *ret);

/* All but the disk, and what it and the CPU leave each other. Takes memory of eight times the last
 * cache level, 256 MiB at least, and some 70 MiB for each thread count. Errors: SL_E_ARG (more
 * threads than the machine has, a type that the engine does not multiply by, threads out of order,
 * too many of either), SL_E_NOMEM, SL_E_DEVICE (no threads). */
SL_API SL_NODISCARD sl_status sl_probe_run(sl_ctx *ctx, const sl_probe_params *p, sl_machine *ret);

typedef struct sl_probe_disk_params {
    bool quick;                 /* about 2 s and 3 x 3 points instead of some 11 s and 7 x 7 */
    bool brief;                 /* about 4 s and 4 x 4 points */
    /* One of the two: an existing file of 4 MiB at least, which is only read; or a folder for a
     * file of noise (1 GiB; quick: 256 MiB) that has no name and is gone afterwards. Of a file that
     * exists a part as large is read (brief, too: 256 MiB), once before anything is timed: a host
     * may have in its own cache what was read before, which is most of what a model streams. */
    const char *file, *folder;
    void (*progress)(void *user, const char *what, double share);   /* may be NULL */
    void *user;
} sl_probe_disk_params;

/* Reads at random places, past the page cache, through sl_store: medians of bytes/s by
 * size and number in flight, and of the latency of one; the CPU time of a request; and, for the
 * thread counts of m's costs, what is left of their speed and the disk's when both are busy; and,
 * where these are all cores, the CPU time that the host takes. Fills in m's disk, read_cpu_s,
 * read_host_s and the costs' co-run shares, the rest is not touched. Takes 256 MiB of
 * memory and, where m has costs, what sl_probe_run takes. Errors: SL_E_ARG (the file is too small),
 * SL_E_IO (open, read, write; no room for the file: twice its size must be free), SL_E_UNSUPPORTED
 * (the file system has no O_DIRECT), SL_E_NOMEM, SL_E_DEVICE (no threads); m is then as before. */
SL_API SL_NODISCARD sl_status sl_probe_disk(sl_ctx *ctx, const sl_probe_disk_params *p,
                                            sl_machine *m);

/* Reads of one file, for a benchmark that measures itself and the disk in turn. */
typedef struct sl_probe_disk_reader sl_probe_disk_reader;
/* file as above; takes room_bytes of memory, at least SL_STORE_ALIGN, which are what may be in
 * flight. Errors: as sl_probe_disk. The caller owns *ret. */
SL_API SL_NODISCARD sl_status sl_probe_disk_open(sl_ctx *ctx, const char *file, uint64_t room_bytes,
                                                 sl_probe_disk_reader **ret);
/* *r may be NULL, and is NULL afterwards */
SL_API void sl_probe_disk_close(sl_probe_disk_reader **r);
/* About `seconds` of reads of `bytes` (rounded up to 4 KiB, 4 MiB at most), `depth` of them in
 * flight (64 at most, and as many as have room): bytes/s. Errors: SL_E_IO. */
SL_API SL_NODISCARD sl_status sl_probe_disk_rate(sl_probe_disk_reader *r, uint64_t bytes,
                                                 uint32_t depth, double seconds, double *ret);

/* ---- parts, for benchmarks that measure a kernel and its bound in turn ---- */

SL_API bool sl_probe_has(sl_peak peak);         /* this CPU has the instructions */
/* One run of the peak loop on the calling thread, about `seconds` long: operations/s. Needs
 * sl_probe_has. */
SL_API double sl_probe_peak(sl_peak peak, double seconds);

typedef struct sl_probe_reader sl_probe_reader;
/* Threads and a buffer of at least eight times the last cache level, in huge pages where they are
 * to be had; n_threads 0: physical cores. Errors: as sl_probe_run. */
SL_API SL_NODISCARD sl_status sl_probe_reader_create(sl_ctx *ctx, uint32_t n_threads,
                                                     sl_probe_reader **ret);
/* *r may be NULL, and is NULL afterwards */
SL_API void sl_probe_reader_destroy(sl_probe_reader **r);
/* One pass of all threads over the buffer, in the way (streams, prefetch) that was best at create:
 * bytes/s. A shared host may let one pass burst: compare medians of passes. */
SL_API double sl_probe_read(sl_probe_reader *r);

#endif
