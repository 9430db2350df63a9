/* offload/cuda_host.h - what the files of the cuda device share. Private to them.
 * device_cuda.c: memory, queues, events, create; cuda_tables.c: small host arrays on their way up;
 * cuda_stage.c: stages as calls of kernels/cuda. */
#ifndef CUDA_HOST_H
#define CUDA_HOST_H

#include "kernels/cuda/sl_cuda.h"
#include "offload/device_cuda.h"

#include <cuda_runtime_api.h>

/* An event may be waited for until so many more were recorded on its queue. */
enum { CUDA_EVENTS = 4096 + 1, CUDA_PARTS = 4 };

/* Memory given out. */
struct cuda_given {
    struct cuda_given *next;
    void *p;
    void *base;                 /* of host memory: what sl_mem_alloc gave; p starts a page */
    size_t bytes;
    sl_account acc;
    enum { CUDA_DEVICE, CUDA_HOST, CUDA_HOST_PLAIN, CUDA_PINNED } kind;  /* PLAIN: not pinned */
};

/* The small arrays that stages take from the driver (rows, runs, block tables) go through a pinned
 * buffer of CUDA_PARTS parts to its image on the device, by one copy a stage on the compute queue.
 * A part of the pinned buffer is written anew when the copies from it are done; its image is in
 * order by itself, as all its readers are on the same queue. */
typedef struct cuda_tables {
    char *host, *dev;
    size_t part_bytes;
    uint32_t part;
    size_t start, at;           /* in the part: what this stage has so far */
    cudaEvent_t left[CUDA_PARTS];
    bool used[CUDA_PARTS];      /* left was recorded */
} cuda_tables;

typedef struct cuda_device {
    sl_device base;
    sl_ctx *ctx;
    int index;
    uint32_t n_sm, max_rows;
    sl_widths w;
    cudaStream_t queue[SL_N_QUEUES];
    cudaEvent_t *events[SL_N_QUEUES];   /* [CUDA_EVENTS], made when first used */
    uint64_t n_events[SL_N_QUEUES];
    struct cuda_given *given;
    sl_device_memory mem;
    uint64_t used_bytes;        /* of the limit */
    char wrong[256];            /* the first failure: all later calls repeat it */
    cuda_tables tables;
    /* Scratch of stages, on the device. */
    char *form, *ff_form;       /* activations as products want them: of inputs, of ff */
    size_t form_bytes, ff_form_bytes;
    float *mla, *router;        /* [max_rows][w.mla], [max_rows][n_expert] */
    float *ff;                  /* activations of the runs of one step of `experts` */
    float *out;                 /* [out_slots][d_model] their outputs */
    float *part;                /* attention: states of parts */
    size_t ff_floats, part_floats;
    uint32_t out_slots;
} cuda_device;

/* SL_OK, or SL_E_DEVICE with what was tried and what the runtime says; errors of earlier work come
 * up here too. */
sl_status cuda_check(cuda_device *d, int err, const char *what);

/* Of a stage's arrays: room for `bytes` in all (each array is padded to 16), the arrays one by one
 * (their address on the device), and the copy. Errors: SL_E_ARG (more than a part). */
sl_status cuda_tables_begin(cuda_device *d, size_t bytes);
void *cuda_tables_room(cuda_device *d, size_t bytes, const void **ret_dev);
const void *cuda_tables_put(cuda_device *d, const void *from, size_t bytes);
sl_status cuda_tables_send(cuda_device *d);
static inline size_t cuda_padded(size_t bytes) { return (bytes + 15) / 16 * 16; }

/* Stages (sl_device.h). */
sl_status cuda_qkv(sl_device *dev, const sl_weights *w, const sl_layer *l, sl_batch *b);
sl_status cuda_attend(sl_device *dev, const sl_layer *l, const sl_kv_view *kv, sl_batch *b);
sl_status cuda_post(sl_device *dev, const sl_layer *l, sl_batch *b);
sl_status cuda_route(sl_device *dev, const sl_layer *l, const float *h, uint32_t n_rows,
                     uint32_t *ret_id, float *ret_w, float *ret_shared_w);
sl_status cuda_experts(sl_device *dev, const sl_layer *l, const sl_expert_run *runs,
                       uint32_t n_runs, unsigned ends, sl_batch *b);
sl_status cuda_head(sl_device *dev, const sl_weights *w, sl_batch *b);

#endif
