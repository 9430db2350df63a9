/* tools/device_flag.h - what --device and --vram say.
 * Threads: the main thread. Units: bytes, bytes/s, seconds. Tested by tests/t_opt.c. */
#ifndef DEVICE_FLAG_H
#define DEVICE_FLAG_H

#include "perfmodel/sl_plan.h"

/* "auto", "cpu", "cuda:N", or "emu" with any of mem=512M,h2d=2G,d2h=2G,lat=10us,cores=1 behind a
 * colon (sizes in powers of 2, rates of 10). NULL: auto. "auto" is the CPU while no accelerator is
 * chosen by itself. The accelerator as far as the text describes it, kind SL_ACCEL_NONE for the
 * CPU. False: why holds what was expected. */
bool cli_parse_device(const char *text, sl_accel *ret, char why[160]);

#endif
