/* offload/sl_store.h - where tensor bytes are read from: the files of a model. Reads are
 * asynchronous (io_uring, or a pool of threads with pread), and past the page cache where asked;
 * sl_store_read is the simple blocking one, sl_store_map the page cache's own pages.
 * Owns duplicates of the descriptors, the ring or the threads, and the mappings. Must not parse a
 * file, know what a slice is for, or own the memory that reads land in.
 * Threads: the asynchronous calls (register, submit, reap, cancel, promote, stats, mode, destroy)
 * are for one thread at a time; sl_store_read may run on several when each has its own ctx;
 * sl_store_map on one at a time. Nothing allocates after create but sl_store_map.
 * Units: bytes, seconds. Tested by tests/t_store.c, tests/t_store_async.c. */
#ifndef SL_STORE_H
#define SL_STORE_H

#include "runtime/base/sl_type.h"

typedef struct sl_store sl_store;

typedef struct sl_slice {
    uint32_t file;      /* index in the store */
    sl_type type;
    uint64_t offset, bytes;
} sl_slice;

/* Of every dst, and of offsets and sizes that O_DIRECT reads. */
#define SL_STORE_ALIGN 4096u
/* The kernel registers memory in pieces of this at most, from the registered base on. A read
 * whose dst crosses from one into the next works, but as if its memory were not registered. */
#define SL_STORE_PIECE ((uint64_t)1 << 30)
#define SL_STORE_MAX_DEPTH 4096u
#define SL_STORE_MAX_REQUEST (64u << 20)

/* For tests: what happens to a request instead of what the disk says. */
typedef enum sl_store_fault_kind {
    SL_FAULT_NONE,
    SL_FAULT_EIO,       /* fails */
    SL_FAULT_AGAIN,     /* EAGAIN: is tried again */
    SL_FAULT_INVAL,     /* EINVAL: with O_DIRECT the file goes on without it */
    SL_FAULT_SHORT,     /* gives `bytes` bytes (1 at least) at most: is continued */
    SL_FAULT_END,       /* finds the end of the file */
    SL_FAULT_DELAY      /* begins `seconds` later */
} sl_store_fault_kind;
typedef struct sl_store_fault {
    sl_store_fault_kind kind;
    uint64_t bytes;
    double seconds;
} sl_store_fault;
typedef struct sl_store_faults {
    /* Asked on the store's thread before each request, repeated and continued ones too. */
    sl_store_fault (*ask)(void *user, uint32_t file, uint64_t offset, uint64_t bytes);
    void *user;
} sl_store_faults;

typedef struct sl_store_params {
    uint32_t depth;         /* requests in flight at most; 0: 64 */
    uint32_t request_bytes; /* of one at most, a multiple of SL_STORE_ALIGN; 0: 1 MiB */
    uint32_t ahead_depth;   /* `ahead` requests start while fewer than this are in flight, and no
                             * demanded read is; 0: half the depth */
    uint32_t ahead_bytes;   /* of one `ahead` request at most; 0: 256 KiB */
    uint32_t max_reads;     /* submitted and not yet reaped, at most; 0: 4096 */
    /* a reap that waits looks for so long before it sleeps; io_uring only */
    double poll_s;
    bool direct;            /* past the page cache (O_DIRECT) where the file system allows it */
    bool threads;           /* preads on threads, not io_uring: for files in the page cache, whose
                             * copies then run in parallel */
    uint32_t n_threads;     /* of them; 0: 4. Also where io_uring cannot be had. */
    const sl_store_faults *faults;  /* NULL: none; must outlive the store */
} sl_store_params;

/* file_bytes: the sizes the files had when their headers were checked; paths name them in
 * messages. Descriptors are duplicated, so the caller may close its own, and a file that is
 * replaced under its name stays what it was. p may be NULL: all fields 0. The ctx must outlive the
 * store, which charges it. Where io_uring or O_DIRECT cannot be had the store does without, and
 * sl_store_mode says so. Errors: SL_E_ARG (n_files 0, a parameter out of bounds), SL_E_IO (dup),
 * SL_E_NOMEM. The caller owns *ret. */
SL_API SL_NODISCARD sl_status sl_store_create(sl_ctx *ctx, const int *fds,
                                              const uint64_t *file_bytes,
                                              const char *const *paths, uint32_t n_files,
                                              const sl_store_params *p, sl_store **ret);
/* Waits for the requests in flight; reads that were not reaped are forgotten. *store may be NULL,
 * and is NULL afterwards. */
SL_API void sl_store_destroy(sl_store **store);

/* From the next request on; NULL: none. For tests. faults must outlive the store, or be taken
 * back. */
SL_API void sl_store_set_faults(sl_store *store, const sl_store_faults *faults);

/* ---- asynchronous reads ---- */

/* A slice's first byte lands at dst + sl_store_lead, and dst has sl_store_room bytes of room (a
 * multiple of SL_STORE_ALIGN), of which all may be written. Functions of the slice alone. */
static inline uint64_t sl_store_lead(sl_slice s) { return s.offset % SL_STORE_ALIGN; }
static inline uint64_t sl_store_room(sl_slice s)
{
    uint64_t end = sl_store_lead(s) + s.bytes;
    return (end + SL_STORE_ALIGN - 1) / SL_STORE_ALIGN * SL_STORE_ALIGN;
}

/* Memory that later reads land in: pinned, so its pages become resident, and spared the kernel's
 * page look-up with every request. base: aligned to SL_STORE_ALIGN. Memory that the kernel will not
 * register (RLIMIT_MEMLOCK) is no error: reads land there all the same, and sl_store_mode says it.
 * Pinned until destroy, so unmap it afterwards. To be called while nothing is in flight.
 * Errors: SL_E_ARG (something is in flight, base not aligned). */
SL_API SL_NODISCARD sl_status sl_store_register(sl_ctx *ctx, sl_store *store, void *base,
                                                uint64_t bytes);

typedef struct sl_read {
    sl_slice slice;
    void *dst;          /* aligned to SL_STORE_ALIGN; the store's until the read is reaped */
    uint64_t tag;       /* the caller's; need not be unique */
    /* a guess: its requests are small and start only while no demanded read is waiting or in
     * flight, and fewer than ahead_depth fly; may be cancelled */
    bool ahead;
} sl_read;

/* Queues the reads and starts what the depth allows, in this order and with one io_uring_enter.
 * Errors: SL_E_ARG (a slice that leaves its file, dst not aligned, more than max_reads are
 * submitted and not reaped); then none of them is queued. */
SL_API SL_NODISCARD sl_status sl_store_submit(sl_ctx *ctx, sl_store *store, const sl_read *reads,
                                              uint32_t n);

typedef struct sl_read_done {
    uint64_t tag;
    sl_status status;   /* SL_OK, SL_E_IO, or SL_E_ARG with cancelled */
    bool cancelled;
    const char *error;  /* one line with path, slice and cause; until the next reap. NULL: ok */
    double seconds;     /* from submit until the store saw its end */
} sl_read_done;

/* Reads that are done, in any order, at most max of them; first blocks until min of them are
 * (fewer when fewer were submitted; min 1: the next one); it tells 16 failed ones at most and
 * leaves the rest to the next call. Starts waiting requests as room appears. A failed read's dst is
 * undefined; others are not affected. Makes no system call with min 0 when
 * nothing new has landed and nothing that waits can start. Returns how many were written. */
SL_API uint32_t sl_store_reap(sl_store *store, sl_read_done *ret, uint32_t max, uint32_t min);

/* What of the `ahead` reads with this tag has not started never will; they are reaped, cancelled,
 * when what has started is done. No effect on reads that started whole, and on demanded ones. */
SL_API void sl_store_cancel(sl_store *store, uint64_t tag);
/* `ahead` reads with this tag are demanded now: what has not started queues behind the demanded. */
SL_API void sl_store_promote(sl_store *store, uint64_t tag);

/* One line for a banner: "io_uring, O_DIRECT, registered buffers", or what was fallen back to and
 * why. Until the next reap or register. */
SL_API const char *sl_store_mode(const sl_store *store);

typedef struct sl_store_stats {
    uint64_t reads, errors, cancelled;  /* reaped; the latter two are among them */
    uint64_t bytes;         /* of slices that arrived whole */
    uint64_t read_bytes;    /* that the kernel delivered: over-read counts */
    uint64_t requests;      /* continued and repeated ones count again */
    uint64_t submits;       /* io_uring_enter calls that started requests and did not wait */
    uint64_t waits;         /* those that waited, or fetched what had landed */
    uint32_t in_flight, max_in_flight;  /* requests */
    uint32_t open;          /* reads submitted and not reaped */
    double busy_s;          /* time with something in flight, as seen by submit and reap */
} sl_store_stats;
SL_API void sl_store_get_stats(const sl_store *store, sl_store_stats *ret);

/* The share (0..1) of the files' bytes that the page cache holds now: by cachestat, where the
 * kernel has none by looking at 256 places; 0 where it cannot tell. */
SL_API double sl_store_cached_share(const sl_store *store);

/* ---- blocking reads ---- */

/* The slice's bytes, read-only, until destroy. The first slice of a file maps the whole of it
 * (shared: the page cache's pages) and charges its size to SL_ACC_MAPPED; each slice is asked of
 * the disk ahead of use (MADV_WILLNEED), so a cold model is read once, in the order of these
 * calls. Only for models that fit in memory. A file that shrinks later ends the process with
 * SIGBUS: the documented exception; one that has already another size is refused here.
 * Errors: SL_E_ARG (no such file, or the slice leaves it), SL_E_IO (size changed, mmap failed). */
SL_API SL_NODISCARD sl_status sl_store_map(sl_ctx *ctx, sl_store *store, sl_slice slice,
                                           const void **ret);

/* Copy the slice's bytes to dst, which has room for slice.bytes. Restarts after signals and
 * short reads. Errors: SL_E_ARG as above, SL_E_IO (the read failed, or the file ended early);
 * dst is then undefined. */
SL_API SL_NODISCARD sl_status sl_store_read(sl_ctx *ctx, const sl_store *store, sl_slice slice,
                                            void *dst);

#endif
