/* offload/store_io.h - private to offload/: what the store asks of a way to read. Two ways:
 * store_ring.c (io_uring) and store_threads.c (preads). The store bounds how many requests are
 * out; a way reports each exactly once. One thread calls. */
#ifndef OFFLOAD_STORE_IO_H
#define OFFLOAD_STORE_IO_H

#include "offload/sl_store.h"

#include <time.h>

/* One pread. Fields above the line are the store's to fill. */
typedef struct io_request {
    char *dst;
    uint64_t offset;
    uint32_t bytes;
    int fd;
    uint32_t fd_index;      /* of fd in the table given at create */
    double delay_s;         /* before it begins; 0 but in tests */
    /* ---- */
    int32_t result;         /* bytes, or -errno */
    int64_t delay[2];       /* the ring's: seconds, nanoseconds */
    struct io_request *next;
} io_request;

static inline double io_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct io_way io_way;
struct io_way {
    /* Takes a request; it may begin at once, and does with the next submit or land. */
    void (*start)(io_way *w, io_request *r);
    void (*submit)(io_way *w);
    /* Requests that are finished, linked by next, NULL when there are none; first waits until
     * there are min (never more than are out). */
    io_request *(*land)(io_way *w, uint32_t min);
    /* NULL in a way where it does nothing. True: registered. Otherwise why says why not. */
    bool (*add_memory)(io_way *w, char *base, uint64_t bytes, char *why, size_t why_size);
    void (*destroy)(io_way *w);     /* nothing is out */
    double poll_s;                  /* sl_store_params.poll_s */
    uint64_t submits, waits;        /* system calls, for the statistics */
};

/* Status OK and *ret NULL: this kernel or this process may not; why says why. */
sl_status io_ring_create(sl_ctx *ctx, uint32_t depth, const int *fds, uint32_t n_fds, io_way **ret,
                         char *why, size_t why_size);
sl_status io_threads_create(sl_ctx *ctx, uint32_t n_threads, io_way **ret);

#endif
