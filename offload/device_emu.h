/* offload/device_emu.h - what tests see of an emulated device. Private to offload/ and to tests. */
#ifndef DEVICE_EMU_H
#define DEVICE_EMU_H

#include "offload/emu_queue.h"

/* As sl_device_create_accel. */
sl_status sl_emu_create(sl_ctx *ctx, const sl_accel *a, const sl_device_params *p, sl_device **ret);

emu_queues *sl_emu_queues(sl_device *d);    /* for emu_queues_busy, emu_queues_trace */

#endif
