/* offload/sl_device.h - what computes: memory, queues, events, copies and the stages of a pass
 * behind one vtable.
 * Owns each device's memory and threads. Must not know an architecture's name.
 * Threads: one driver thread calls a device; any number of devices. Units: bytes, elements.
 *
 * `cpu` computes in host memory. An accelerator (`emu`, `cuda`) has memory of its own, of a limited
 * size, which only its stages and copies touch; the driver never follows a pointer into it.
 *
 * Order. Work is submitted to four queues. A queue's work runs in order of submission; two queues
 * are ordered by events only: record(q) names all work that q has so far, wait(q', event) holds
 * back what q' gets from there on, sync(event) holds back the driver. What the driver did before it
 * submitted is ordered before what it submitted. Whoever reads memory must be ordered behind
 * whoever wrote it, and whoever writes behind all who read and wrote; `free` is a write. On `cpu`
 * everything is finished when the call returns, its events are 0, and calls that order work do
 * nothing.
 *
 * Arguments. Structs, and the small host arrays that they point to, are read before the call
 * returns (sl_batch: token, pos, seq, logit_row; runs with their rows and weights; the blocks of a
 * KV view; a rope's inv_freq). All else that they point to - weights, norms, biases, activations,
 * keys and values - is memory of the device that runs the stage, and is used when the queue gets
 * there.
 *
 * Numbers: on `cpu` and `emu`, a row's results do not depend on the other rows, on the thread
 * count, or on how rows are cut into passes (DESIGN.md, the promise of sameness), and both give the
 * same bits.
 * Tested by tests/t_device.c (stages), tests/t_emu.c (order, memory, misuse). */
#ifndef SL_DEVICE_H
#define SL_DEVICE_H

#include "kernels/sl_kernels.h"
#include "kernels/sl_ops.h"
#include "perfmodel/sl_plan.h"
#include "runtime/base/sl_pool.h"

typedef struct sl_device sl_device;

typedef enum sl_queue {
    SL_Q_COMPUTE,               /* all stages */
    SL_Q_WEIGHTS,               /* copies of weights to the device, in pieces */
    SL_Q_UP,                    /* copies to the device that a stage waits for */
    SL_Q_DOWN,                  /* copies to host memory: activations, router ids, logits */
    SL_N_QUEUES
} sl_queue;

/* Work of one queue, up to a point. 0: already done. May be waited for until 4096 more were
 * recorded on its queue. */
typedef uint64_t sl_event;

typedef struct sl_device_memory {
    uint64_t limit_bytes;       /* of all that follows together; 0: none (`cpu`) */
    uint64_t own_bytes;         /* taken at create: context, workspaces, scratch of stages */
    uint64_t bytes[SL_N_ACCOUNTS];  /* given out by alloc now */
    uint64_t peak_bytes;        /* the most that own_bytes and alloc came to */
    uint64_t pinned_bytes;      /* host memory of alloc_host and pin */
} sl_device_memory;

/* For `experts`. */
enum {
    SL_EXPERTS_FIRST = 1,       /* the first call on this h of this layer */
    SL_EXPERTS_LAST = 2         /* the last call: behind its runs, x += residual_scale * y */
};

typedef struct sl_device_ops {
    const char *name;           /* "cpu", "emu", "cuda" */

    /* ---- memory ---- */

    /* Memory that stages may read and write; zeroed; aligned to 64 bytes at least. Freed by `free`
     * or with the device. Errors: SL_E_NOMEM (beyond the limit, or the driver refuses). */
    sl_status (*alloc)(sl_device *d, sl_account acc, size_t bytes, void **ret);
    /* Host memory, zeroed, that copies run from and to at full speed and without holding the driver
     * up; charged to the host's account. `cpu`: as alloc. Errors: SL_E_NOMEM. */
    sl_status (*alloc_host)(sl_device *d, sl_account acc, size_t bytes, void **ret);
    /* Of either; nothing on its way may touch it any more. NULL is fine. */
    void (*free)(sl_device *d, void *p);
    /* Host memory of somebody else's gets what alloc_host's has, until unpin; [p, p + bytes) lies
     * in one mapping. Without it copies are right, but slower, and may hold the driver up. Errors:
     * SL_E_UNSUPPORTED (the driver or a limit refuses: the message says what); the caller goes on
     * without. */
    sl_status (*pin)(sl_device *d, void *p, size_t bytes);
    void (*unpin)(sl_device *d, void *p);
    /* Never fails; valid at any time. */
    void (*memory)(const sl_device *d, sl_device_memory *ret);
    /* The driver itself is about to read (or write) [p, p + bytes) of host memory that copies use:
     * a device that checks the order of accesses learns of it here; nothing else happens. */
    void (*touch)(sl_device *d, const void *p, size_t bytes, bool write);

    /* ---- order ---- */

    /* Between host memory and the device's, in either direction, or inside it. A copy that has
     * begun keeps its link until it is over: what others wait for does not, if weights come in
     * pieces. Errors, as of all that follows: SL_E_DEVICE, of this call or of earlier work, with
     * the message in the context given to create; the device can only be destroyed then. */
    sl_status (*copy)(sl_device *d, sl_queue q, void *dst, const void *src, size_t bytes);
    sl_status (*record)(sl_device *d, sl_queue q, sl_event *ret);
    sl_status (*wait)(sl_device *d, sl_queue q, sl_event ev);
    sl_status (*sync)(sl_device *d, sl_event ev);

    /* ---- stages: on SL_Q_COMPUTE ---- */

    /* x, cos, sin of every row. NULL on accelerators: the table stays in RAM, and what the cpu
     * device wrote is copied. Errors: SL_E_ARG (a token outside the table). */
    sl_status (*embed)(sl_device *d, const sl_weights *w, sl_batch *b);
    /* x, cos, sin -> h; q, k, v. Of w only d_model and rope are used. */
    sl_status (*qkv)(sl_device *d, const sl_weights *w, const sl_layer *l, sl_batch *b);
    /* k, v -> rows of kv; q and kv -> att. Of l only attn is used. */
    sl_status (*attend)(sl_device *d, const sl_layer *l, const sl_kv_view *kv, sl_batch *b);
    sl_status (*post)(sl_device *d, const sl_layer *l, sl_batch *b);    /* att -> x, h; y = 0 */
    /* The router of any layer on any hidden state h [n_rows][d_model]: ids and weights
     * [n_rows][n_used], and the shared expert's weight [n_rows] when the layer has a shared gate
     * (else untouched). */
    sl_status (*route)(sl_device *d, const sl_layer *l, const float *h, uint32_t n_rows,
                       uint32_t *ret_id, float *ret_w, float *ret_shared_w);
    /* y += the runs' weighted outputs, added in the order given (SL_RUN_STORE: nothing is added, y
     * and x are not touched). However a layer's runs are cut into calls and parts, y has the same
     * bits as long as they are added in one order. `ends`: SL_EXPERTS_*. n_runs may be 0. Errors:
     * SL_E_ARG (a run is wider than the device was made for). */
    sl_status (*experts)(sl_device *d, const sl_layer *l, const sl_expert_run *runs,
                         uint32_t n_runs, unsigned ends, sl_batch *b);
    sl_status (*head)(sl_device *d, const sl_weights *w, sl_batch *b);  /* x -> h, logits */

    /* Waits for all work. Memory that was not freed goes too. */
    void (*destroy)(sl_device *d);
} sl_device_ops;

struct sl_device {
    const sl_device_ops *ops;   /* first member of every device's own struct */
};

typedef struct sl_device_params {
    sl_pool *pool;          /* cpu: the threads that compute; stays the caller's */
    uint32_t max_rows;      /* rows of a pass at most */
    uint32_t max_logits;    /* accelerators: logit rows of a pass at most */
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
/* Completes what is known of an accelerator before a plan is made: own_bytes, a card's name, and
 * mem_bytes where that is 0 (all that is free on it, less a margin). Errors: SL_E_UNSUPPORTED (not
 * built in, no driver, no such card), SL_E_ARG. */
SL_API SL_NODISCARD sl_status sl_accel_find(sl_ctx *ctx, sl_accel *a);
/* As sl_device_create_cpu; SL_E_DEVICE: it is there and does not start. p->pool is not used: an
 * emulated device has cores of its own. */
SL_API SL_NODISCARD sl_status sl_device_create_accel(sl_ctx *ctx, const sl_accel *a,
                                                     const sl_device_params *p, sl_device **ret);
SL_API void sl_device_destroy(sl_device **d);

#endif
