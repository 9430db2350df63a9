/* offload/cuda_none.c - what takes the cuda device's place in builds without nvcc. */
#include "offload/device_cuda.h"

sl_status sl_cuda_find(sl_ctx *ctx, sl_accel *a)
{
    (void)a;
    return sl_fail(ctx, SL_E_UNSUPPORTED, "cuda: this build has no CUDA");
}

sl_status sl_cuda_create(sl_ctx *ctx, const sl_accel *a, const sl_device_params *p, sl_device **ret)
{
    (void)p;
    (void)ret;
    sl_accel copy = *a;
    return sl_cuda_find(ctx, &copy);
}
