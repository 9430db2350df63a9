/* runtime/base/sl_pool.h - a thread pool on hwloc: one thread per physical core of the process's
 * cpuset, the caller being one of them.
 * Owns its threads. Must not know what the tasks do. Threads: one driver calls sl_pool_run.
 * Tested by tests/t_pool.c. */
#ifndef SL_POOL_H
#define SL_POOL_H

#include "runtime/base/sl_base.h"

typedef struct sl_pool sl_pool;

/* A task: index in [0, n_tasks), thread in [0, n_threads). Tasks of one run are independent: which
 * thread runs which is not fixed, so results must not depend on it. */
typedef void (*sl_task_fn)(void *arg, uint32_t index, uint32_t thread);

/* Physical cores (not hardware threads) that the process's cpuset allows; at least 1. */
SL_API uint32_t sl_pool_cores(sl_ctx *ctx);

/* n_threads 0: sl_pool_cores. Errors: SL_E_ARG (above the allowed hardware threads), SL_E_NOMEM,
 * SL_E_DEVICE (a thread could not be started). The caller owns *ret. */
SL_API SL_NODISCARD sl_status sl_pool_create(sl_ctx *ctx, uint32_t n_threads, sl_pool **ret);
SL_API void sl_pool_destroy(sl_pool **pool);
SL_API uint32_t sl_pool_threads(const sl_pool *pool);

/* Run fn on every index and return when all are done. Threads take indices from one counter, so a
 * late thread leaves its share to others. Nothing allocates. */
SL_API void sl_pool_run(sl_pool *pool, sl_task_fn fn, void *arg, uint32_t n_tasks);

/* Workers wait for the next run so long before they sleep, 50 us at least (what they begin with):
 * for a driver that itself waits between runs, and wants them at once then. Never with more threads
 * than cores. */
SL_API void sl_pool_stay_awake(sl_pool *pool, double seconds);

#endif
