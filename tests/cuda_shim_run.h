/* tests/cuda_shim_run.h - the part of the CUDA shim that runs blocks of fibers: plain C, so that
 * tests can say where launches go. See tests/cuda_shim.h. */
#ifndef CUDA_SHIM_RUN_H
#define CUDA_SHIM_RUN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct shim_index { unsigned x, y, z; } shim_index;
typedef struct shim_where { shim_index thread, block, block_dim, grid_dim; } shim_where;
extern __thread shim_where shim_now;    /* of the fiber that runs on this host thread */

typedef enum shim_op { SHIM_NONE, SHIM_BLOCK, SHIM_WARP, SHIM_SHUFFLE, SHIM_BALLOT, SHIM_MMA,
                       SHIM_LDMATRIX, SHIM_ENDED } shim_op;
typedef struct shim_shuffle { uint32_t value; int from; uint32_t got, mask; } shim_shuffle;
typedef struct shim_mma { float *c; const uint32_t *a, *b; } shim_mma;
typedef struct shim_matrix { uint32_t *r; const void *row; } shim_matrix;

void shim_wait(shim_op op, void *arg, int unused);  /* until the warp or block has come to it */
void *shim_shared(size_t bytes);
void shim_copy16(void *to, const void *from);       /* from NULL: zeros */
void shim_copies_done(void);

/* Runs call(arg) as every thread of every block; returns when all have ended. */
void shim_run(const unsigned grid[3], const unsigned block[3], void (*call)(void *), void *arg);

/* Gives back what this host thread took for its launches. */
void shim_end(void);

/* Where launches go: shim_run at once, unless a test has set it. The call's arguments are copied by
 * whoever runs it later. Returns the launch's error. */
extern int (*shim_on_launch)(void *stream, const unsigned grid[3], const unsigned block[3],
                             void (*call)(void *), const void *arg, size_t bytes);
int shim_submit(void *stream, const unsigned grid[3], const unsigned block[3],
                void (*call)(void *), const void *arg, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
