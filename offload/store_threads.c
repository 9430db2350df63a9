/* offload/store_threads.c - reads by threads that pread: where io_uring cannot be had, and for
 * copies out of the page cache, which then run in parallel.
 * Invariants, under the lock: a request is in `todo`, with one thread, or in `done`; n_done counts
 * the latter. Idle threads sleep; nothing allocates after create. */
#include "offload/store_io.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct threads {
    io_way way;
    pthread_mutex_t lock;
    pthread_cond_t work, finished;
    io_request *todo, **todo_end, *done;
    _Atomic uint32_t n_done;
    uint32_t wanted;            /* the caller sleeps until n_done reaches it; 0: it does not */
    uint32_t n_sleeping;
    bool quit;
    uint32_t n_threads;
    pthread_t thread[];
};

static int32_t read_now(const io_request *r)
{
    if (r->delay_s > 0) {
        struct timespec t = { (time_t)r->delay_s,
                              (long)((r->delay_s - (double)(time_t)r->delay_s) * 1e9) };
        nanosleep(&t, NULL);
    }
    ssize_t got = pread(r->fd, r->dst, r->bytes, (off_t)r->offset);
    return got < 0 ? -errno : (int32_t)got;
}

static void *work(void *arg)
{
    struct threads *t = arg;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (!t->todo && !t->quit) {
            t->n_sleeping++;
            pthread_cond_wait(&t->work, &t->lock);
            t->n_sleeping--;
        }
        if (!t->todo) break;    /* quit */
        io_request *r = t->todo;
        t->todo = r->next;
        if (!t->todo) t->todo_end = &t->todo;
        pthread_mutex_unlock(&t->lock);
        int32_t result = read_now(r);
        pthread_mutex_lock(&t->lock);
        r->result = result;
        r->next = t->done;
        t->done = r;
        uint32_t n = atomic_fetch_add(&t->n_done, 1) + 1;
        if (t->wanted && n >= t->wanted) pthread_cond_signal(&t->finished);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static void threads_start(io_way *w, io_request *r)
{
    struct threads *t = (struct threads *)w;
    r->next = NULL;
    pthread_mutex_lock(&t->lock);
    *t->todo_end = r;
    t->todo_end = &r->next;
    bool wake = t->n_sleeping;
    pthread_mutex_unlock(&t->lock);
    if (wake) pthread_cond_signal(&t->work);
}

static void threads_submit(io_way *w)
{
    (void)w;                    /* they have begun */
}

static io_request *threads_land(io_way *w, uint32_t min)
{
    struct threads *t = (struct threads *)w;
    if (!min && !atomic_load(&t->n_done)) return NULL;
    pthread_mutex_lock(&t->lock);
    t->wanted = min;
    while (atomic_load(&t->n_done) < min) pthread_cond_wait(&t->finished, &t->lock);
    t->wanted = 0;
    io_request *list = t->done;
    t->done = NULL;
    atomic_store(&t->n_done, 0);
    pthread_mutex_unlock(&t->lock);
    return list;
}

static void threads_destroy(io_way *w)
{
    struct threads *t = (struct threads *)w;
    pthread_mutex_lock(&t->lock);
    t->quit = true;
    pthread_mutex_unlock(&t->lock);
    pthread_cond_broadcast(&t->work);
    for (uint32_t i = 0; i < t->n_threads; i++) pthread_join(t->thread[i], NULL);
    pthread_cond_destroy(&t->finished);
    pthread_cond_destroy(&t->work);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

sl_status io_threads_create(sl_ctx *ctx, uint32_t n_threads, io_way **ret)
{
    struct threads *t = calloc(1, sizeof *t + n_threads * sizeof t->thread[0]);
    if (!t) return sl_fail(ctx, SL_E_NOMEM, "%u threads that read", n_threads);
    t->way = (io_way){ .start = threads_start, .submit = threads_submit, .land = threads_land,
                       .destroy = threads_destroy };
    t->todo_end = &t->todo;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->work, NULL);
    pthread_cond_init(&t->finished, NULL);
    sigset_t all, before;       /* signals are for the threads of the program */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = 0;
    while (!err && t->n_threads < n_threads) {
        err = pthread_create(&t->thread[t->n_threads], NULL, work, t);
        if (!err) t->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!t->n_threads) {
        threads_destroy(&t->way);
        return sl_fail(ctx, SL_E_NOMEM, "start a thread that reads: %s", strerror(err));
    }
    *ret = &t->way;
    return SL_OK;
}
