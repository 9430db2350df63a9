/* offload/device.c - which accelerators are built in. */
#include "offload/device_emu.h"

static sl_status absent(sl_ctx *ctx, const sl_accel *a)
{
    static const char *const names[] = { "none", "emu", "cuda" };
    return sl_fail(ctx, SL_E_UNSUPPORTED, "there is no accelerator \"%s\" in this build",
                   (size_t)a->kind < SL_LEN(names) ? names[a->kind] : "?");
}

#define EMU_BYTES ((uint64_t)1 << 30)   /* of an emulated device that is not told its size */

sl_status sl_accel_find(sl_ctx *ctx, sl_accel *a)
{
    if (a->kind != SL_ACCEL_EMU) return absent(ctx, a);
    if (!a->mem_bytes) a->mem_bytes = EMU_BYTES;
    return SL_OK;
}

sl_status sl_device_create_accel(sl_ctx *ctx, const sl_accel *a, const sl_device_params *p,
                                 sl_device **ret)
{
    return a->kind == SL_ACCEL_EMU ? sl_emu_create(ctx, a, p, ret) : absent(ctx, a);
}

void sl_device_destroy(sl_device **d)
{
    if (*d) (*d)->ops->destroy(*d);
    *d = NULL;
}
