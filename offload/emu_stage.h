/* offload/emu_stage.h - a stage as a value: its arguments, what memory they make it touch, and how
 * a cpu device runs it. Private to offload/.
 * Must not know who orders or runs it. Tested by tests/t_emu.c. */
#ifndef EMU_STAGE_H
#define EMU_STAGE_H

#include "offload/sl_device.h"

typedef struct emu_device emu_device;

typedef enum emu_stage_kind {
    EMU_QKV, EMU_ATTEND, EMU_POST, EMU_ROUTE, EMU_EXPERTS, EMU_HEAD
} emu_stage_kind;

typedef struct emu_stage {
    emu_stage_kind kind;
    unsigned ends;
    sl_weights weights;
    sl_layer layer;
    sl_kv_view kv;
    sl_batch batch;             /* route: where its results go */
    const float *route_h;
    const sl_expert_run *runs;
    uint32_t n_runs;
} emu_stage;

const char *emu_stage_name(const emu_stage *s);     /* "qkv" */
uint32_t emu_stage_layer(const emu_stage *s);       /* UINT32_MAX: none */

/* A copy with all host arrays that it needs, in one piece for free(); NULL: no memory. */
emu_stage *emu_stage_keep(const emu_stage *s);

typedef void (*emu_use_fn)(void *user, const void *p, size_t bytes, bool write, const char *what);
/* Every piece of device memory that it reads or writes. */
void emu_stage_uses(const emu_stage *s, emu_use_fn fn, void *user);

sl_status emu_stage_run(emu_stage *s, sl_device *cpu);

#endif
