/* offload/sl_device.h - what computes: memory, events and the stages of a pass behind one vtable.
 * Owns each device's memory and threads. Must not know an architecture's name.
 * Threads: one driver thread per device. Units: bytes, elements.
 * Order: work submitted to a device runs in submission order. On `cpu` a stage is finished when it
 * returns; elsewhere the driver records an event behind it and syncs before it reads host memory.
 * Numbers: on `cpu`, a row's results do not depend on the other rows, on the thread count, or on
 * how rows are cut into passes (DESIGN.md, the promise of sameness).
 * Tested by tests/t_device.c. */
#ifndef SL_DEVICE_H
#define SL_DEVICE_H

#include "kernels/sl_kernels.h"
#include "kernels/sl_ops.h"
#include "runtime/base/sl_pool.h"

typedef struct sl_device sl_device;
typedef uint64_t sl_event;      /* 0: already done */

typedef struct sl_device_ops {
    const char *name;           /* "cpu" */

    /* Memory that stages may read and write; zeroed; freed by `free` or with the device. */
    sl_status (*alloc)(sl_device *d, sl_account acc, size_t bytes, void **ret);
    void (*free)(sl_device *d, void *p);
    /* Copy between host memory and the device's, behind the work submitted so far. */
    sl_status (*copy)(sl_device *d, void *dst, const void *src, size_t bytes);
    sl_status (*record)(sl_device *d, sl_event *ret);
    sl_status (*sync)(sl_device *d, sl_event ev);

    /* Stages. Errors: SL_E_DEVICE, with the message in the context given to create. */
    /* x; rope angles of the pass */
    sl_status (*embed)(sl_device *d, const sl_weights *w, sl_batch *b);
    /* x -> q, k, v */
    sl_status (*qkv)(sl_device *d, const sl_weights *w, const sl_layer *l, sl_batch *b);
    /* -> att */
    sl_status (*attend)(sl_device *d, const sl_layer *l, const sl_kv_view *kv, sl_batch *b);
    sl_status (*post)(sl_device *d, const sl_layer *l, sl_batch *b);    /* att -> x, h; y = 0 */
    /* The router of any layer on any hidden state h [n_rows][d_model]: ids and weights
     * [n_rows][n_used], and the shared expert's weight [n_rows] when the layer has a shared gate
     * (else untouched). */
    sl_status (*route)(sl_device *d, const sl_layer *l, const float *h, uint32_t n_rows,
                       uint32_t *ret_id, float *ret_w, float *ret_shared_w);
    /* y += the runs' weighted outputs, added in the order given (SL_RUN_STORE: nothing is added);
     * last: then x += residual_scale * y. However a layer's runs are cut into calls and parts, y
     * has the same bits as long as they are added in one order. */
    sl_status (*experts)(sl_device *d, const sl_layer *l, const sl_expert_run *runs,
                         uint32_t n_runs, bool last, sl_batch *b);
    sl_status (*head)(sl_device *d, const sl_weights *w, sl_batch *b);      /* x -> logits */
    void (*destroy)(sl_device *d);
} sl_device_ops;

struct sl_device {
    const sl_device_ops *ops;   /* first member of every device's own struct */
};

typedef struct sl_device_params {
    sl_pool *pool;          /* cpu: the threads that compute; stays the caller's */
    uint32_t max_rows;      /* rows of a pass at most */
    sl_widths widths;       /* of the model: scratch is taken once, at create */
    unsigned cpu_mask;      /* SL_CPU_* allowed (kernels/sl_kernels.h); ~0u: all this CPU has */
    bool float_acts;        /* quantised weights are dequantised, activations stay float32 */
    /* OpenBLAS multiplies matrices of float types (with float_acts: all) with 8 and more rows, but
     * not the router: faster in prefill, and bits then depend on the rows of a pass */
    bool blas;
} sl_device_params;

/* Is OpenBLAS built in and installed? Opens it for a moment. */
SL_API bool sl_device_has_blas(void);

/* Errors: SL_E_ARG, SL_E_NOMEM, SL_E_UNSUPPORTED (blas, and there is none). The caller owns *ret
 * and destroys it with sl_device_destroy. */
SL_API SL_NODISCARD sl_status sl_device_create_cpu(sl_ctx *ctx, const sl_device_params *p,
                                                   sl_device **ret);
SL_API void sl_device_destroy(sl_device **d);

#endif
