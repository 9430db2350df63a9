/* offload/device_cuda.h - an NVIDIA GPU through the CUDA runtime; in builds without nvcc a stub
 * with the same two functions. Private to offload/ and to tests. */
#ifndef DEVICE_CUDA_H
#define DEVICE_CUDA_H

#include "offload/sl_device.h"

/* As sl_accel_find and sl_device_create_accel. */
sl_status sl_cuda_find(sl_ctx *ctx, sl_accel *a);
sl_status sl_cuda_create(sl_ctx *ctx, const sl_accel *a, const sl_device_params *p,
                         sl_device **ret);

#endif
