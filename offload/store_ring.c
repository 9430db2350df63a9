/* offload/store_ring.c - reads by io_uring, with registered files and memory where they can be had.
 * Invariants:
 *   I1  every request that start took is in the submission queue, with the kernel, or in `failed`
 *   I2  n_new counts those in the submission queue that no io_uring_enter has taken
 *   I3  after a call that failed for good (broken), nothing is submitted again; what the kernel
 *       already has still lands, looked for without calls */
#include "offload/store_io.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MAX_PIECES = 1024,      /* of SL_STORE_PIECE: 1 TiB of registered memory */
    MAX_RETRIES = 1000,     /* of a call that the kernel asks to repeat, a millisecond apart */
};

struct piece { char *base; uint64_t bytes; };

struct ring {
    io_way way;
    struct io_uring ring;
    bool files_registered, table_registered;
    uint32_t n_pieces, last_piece;
    uint32_t n_new;             /* I2 */
    int broken;                 /* errno of I3; 0: fine */
    io_request **new;           /* [depth] those of n_new, in order */
    io_request *failed;
    struct piece pieces[MAX_PIECES];
};

static void sleep_1ms(void)
{
    struct timespec t = { 0, 1000000 };
    nanosleep(&t, NULL);
}

/* Index of the registered memory that holds all of it; -1: none does. */
static int find_piece(struct ring *g, const char *dst, uint32_t bytes)
{
    for (uint32_t i = 0; i < g->n_pieces; i++) {
        uint32_t at = (g->last_piece + i) % g->n_pieces;
        const struct piece *p = &g->pieces[at];
        if (dst < p->base || (uint64_t)(dst - p->base) + bytes > p->bytes) continue;
        g->last_piece = at;
        return (int)at;
    }
    return -1;
}

static void fail(struct ring *g, io_request *r, int err)
{
    r->result = -err;
    r->next = g->failed;
    g->failed = r;
}

static void ring_start(io_way *w, io_request *r)
{
    struct ring *g = (struct ring *)w;
    if (g->broken) {
        fail(g, r, g->broken);
        return;
    }
    struct io_uring_sqe *sqe;
    if (r->delay_s > 0) {       /* a timeout, and the read linked to its end */
        sqe = io_uring_get_sqe(&g->ring);
        assert(sqe);
        r->delay[0] = (int64_t)r->delay_s;
        r->delay[1] = (int64_t)((r->delay_s - (double)r->delay[0]) * 1e9);
        io_uring_prep_timeout(sqe, (struct __kernel_timespec *)(void *)r->delay, 0,
                              IORING_TIMEOUT_ETIME_SUCCESS);
        io_uring_sqe_set_data(sqe, NULL);
        sqe->flags |= IOSQE_IO_LINK;
    }
    sqe = io_uring_get_sqe(&g->ring);
    assert(sqe);                /* room for 2 * depth */
    int piece = find_piece(g, r->dst, r->bytes);
    int fd = g->files_registered ? (int)r->fd_index : r->fd;
    if (piece >= 0) io_uring_prep_read_fixed(sqe, fd, r->dst, r->bytes, r->offset, piece);
    else io_uring_prep_read(sqe, fd, r->dst, r->bytes, r->offset);
    if (g->files_registered) sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, r);
    g->new[g->n_new++] = r;
}

/* One io_uring_enter that submits, and waits for so many; again while the kernel asks for it. */
static void enter(struct ring *g, uint32_t wait)
{
    for (int tries = 0; !g->broken; tries++) {
        int err = io_uring_submit_and_wait(&g->ring, wait);
        if (err >= 0 && !io_uring_sq_ready(&g->ring)) g->n_new = 0;
        if (err >= 0 && !g->n_new) return;
        if (err >= 0 || err == -EINTR) continue;
        bool again = err == -EAGAIN || err == -EBUSY || err == -ENOMEM;
        if (again && tries < MAX_RETRIES) {
            sleep_1ms();
            if (io_uring_cq_ready(&g->ring)) return;    /* make room by landing first */
            continue;
        }
        /* The queue is in order, so what the kernel has not taken is its end. */
        uint32_t left = SL_MIN(io_uring_sq_ready(&g->ring), g->n_new);
        g->broken = -err;
        for (uint32_t i = g->n_new - left; i < g->n_new; i++) fail(g, g->new[i], g->broken);
        g->n_new = 0;
    }
}

static void ring_submit(io_way *w)
{
    struct ring *g = (struct ring *)w;
    if (!g->n_new) return;
    w->submits++;
    enter(g, 0);
}

/* Moves what has landed to the front of *list and returns how many. */
static uint32_t fetch(struct ring *g, io_request **list)
{
    struct io_uring_cqe *cqe;
    unsigned head, n_cqe = 0;
    uint32_t n = 0;
    io_uring_for_each_cqe(&g->ring, head, cqe) {
        io_request *r = io_uring_cqe_get_data(cqe);
        n_cqe++;
        if (!r) continue;       /* a delay */
        r->result = cqe->res;
        r->next = *list;
        *list = r;
        n++;
    }
    io_uring_cq_advance(&g->ring, n_cqe);
    for (; g->failed; n++) {
        io_request *r = g->failed;
        g->failed = r->next;
        r->next = *list;
        *list = r;
    }
    return n;
}

/* The kernel says when it holds back completions until it is entered. */
static bool held_back(const struct ring *g)
{
    return IO_URING_READ_ONCE(*g->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Looks until something has landed; false: not before `end`. */
static bool look(struct ring *g, double end)
{
    enum { BATCH = 32 };
    do
        for (int i = 0; i < BATCH; i++)
            if (io_uring_cq_ready(&g->ring) || held_back(g) || g->failed) return true;
    while (io_now_s() < end);
    return false;
}

/* Fetches what has landed, after telling the kernel where it must be told. */
static uint32_t collect(struct ring *g, io_request **list)
{
    uint32_t n = fetch(g, list);
    if (n || !held_back(g)) return n;
    g->way.waits++;
    return io_uring_get_events(&g->ring) >= 0 ? fetch(g, list) : 0;
}

static io_request *ring_land(io_way *w, uint32_t min)
{
    struct ring *g = (struct ring *)w;
    io_request *list = NULL;
    uint32_t n = collect(g, &list);
    if (n < min && w->poll_s > 0) {     /* a core that sleeps takes long to wake */
        double end = io_now_s() + w->poll_s;
        ring_submit(w);
        while (n < min && look(g, end) && io_now_s() < end) n += collect(g, &list);
    }
    while (n < min) {
        if (g->broken) sleep_1ms();
        else w->waits++, enter(g, min - n);
        n += fetch(g, &list);
    }
    return list;
}

static bool ring_add_memory(io_way *w, char *base, uint64_t bytes, char *why, size_t why_size)
{
    struct ring *g = (struct ring *)w;
    if (!g->table_registered) {
        snprintf(why, why_size, "this kernel has no table for them");
        return false;
    }
    for (uint64_t at = 0; at < bytes; at += SL_STORE_PIECE) {
        struct piece p = { base + at, SL_MIN(bytes - at, SL_STORE_PIECE) };
        struct iovec v = { p.base, (size_t)p.bytes };
        if (g->n_pieces == MAX_PIECES) {
            snprintf(why, why_size, "more than %d pieces", MAX_PIECES);
            return false;
        }
        int err = io_uring_register_buffers_update_tag(&g->ring, g->n_pieces, &v, NULL, 1);
        if (err < 0) {
            snprintf(why, why_size, "%s%s", strerror(-err),
                     err == -ENOMEM ? ", see ulimit -l" : "");
            return false;
        }
        g->pieces[g->n_pieces++] = p;
    }
    return true;
}

static void ring_destroy(io_way *w)
{
    struct ring *g = (struct ring *)w;
    io_uring_queue_exit(&g->ring);
    free(g->new);
    free(g);
}

/* Newer kernels interrupt no computation for a completion, and leave a note that there is one. (To
 * defer all of it to our calls measured no different, and would bind the ring to one thread.) */
static int set_up(struct io_uring *ring, uint32_t depth)
{
    static const unsigned flags[] = {
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0
    };
    int err = -EINVAL;
    /* 2 * depth: a read may have a delay before it */
    for (size_t i = 0; err == -EINVAL && i < SL_LEN(flags); i++)
        err = io_uring_queue_init(2 * depth, ring, flags[i]);
    return err;
}

sl_status io_ring_create(sl_ctx *ctx, uint32_t depth, const int *fds, uint32_t n_fds, io_way **ret,
                         char *why, size_t why_size)
{
    struct ring *g = calloc(1, sizeof *g);
    *ret = NULL;
    if (g) g->new = calloc(depth, sizeof *g->new);
    if (!g || !g->new) {
        free(g);
        return sl_fail(ctx, SL_E_NOMEM, "ring for %u reads", depth);
    }
    int err = set_up(&g->ring, depth);
    if (err < 0) {
        const char *what = err == -EPERM ? "io_uring is not permitted" :
                           err == -ENOSYS ? "this kernel has no io_uring" : "io_uring";
        snprintf(why, why_size, "%s (%s)", what, strerror(-err));
        free(g->new);
        free(g);
        return SL_OK;
    }
    g->files_registered = io_uring_register_files(&g->ring, fds, n_fds) == 0;
    g->table_registered = io_uring_register_buffers_sparse(&g->ring, MAX_PIECES) == 0;
    g->way = (io_way){ .start = ring_start, .submit = ring_submit, .land = ring_land,
                       .add_memory = ring_add_memory, .destroy = ring_destroy };
    *ret = &g->way;
    return SL_OK;
}
