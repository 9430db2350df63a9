/* offload/device.c - which accelerators are built in. */
#include "offload/sl_device.h"

static sl_status absent(sl_ctx *ctx, const sl_accel *a)
{
    static const char *const names[] = { "none", "emu", "cuda" };
    return sl_fail(ctx, SL_E_UNSUPPORTED, "there is no accelerator \"%s\" in this build",
                   (size_t)a->kind < SL_LEN(names) ? names[a->kind] : "?");
}

sl_status sl_accel_find(sl_ctx *ctx, sl_accel *a)
{
    return absent(ctx, a);
}

sl_status sl_device_create_accel(sl_ctx *ctx, const sl_accel *a, const sl_device_params *p,
                                 sl_device **ret)
{
    (void)p;
    (void)ret;
    return absent(ctx, a);
}

void sl_device_destroy(sl_device **d)
{
    if (*d) (*d)->ops->destroy(*d);
    *d = NULL;
}
