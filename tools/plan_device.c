/* tools/plan_device.c - the part of a plan that an accelerator has: where its bytes lie, and who
 * computes what. */
#include <inttypes.h>
#include <string.h>

#include "tools/plan_text.h"

#define NEVER ((uint32_t)1 << 30)       /* rows that no pass has: perfmodel/planner.c */

static uint32_t most_experts(const sl_shape *s)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) most = SL_MAX(most, s->layers[i].n_expert);
    return most;
}

static void row(const char *what, uint64_t bytes, const char *where)
{
    char size[24];
    if (bytes)
        printf("  %-34s %10s%s%s\n", what, cli_bytes(bytes, size), *where ? "  " : "", where);
}

void plan_print_device(const sl_shape *s, const sl_plan *p)
{
    const sl_split *x = &p->split;
    char text[160];
    uint32_t n = most_experts(s), stay = SL_MIN(x->n_stay, n);
    snprintf(text, sizeof text, "of %" PRIu32 " of %" PRIu32 " layers%s", x->n_dense_layers,
             s->n_layer, x->head_stays ? ", and the head" : "");
    row("weights that every token needs", x->dense_bytes, text);
    snprintf(text, sizeof text, "%" PRIu32 " of the %" PRIu32 " of each layer%s", stay, n,
             x->stay_follow ? ", those used most" : "");
    row("experts", x->stay_bytes, text);
    row("weights on their way", x->ring_bytes, "a ring; what does not stay is sent from RAM");
    row("keys and values", x->kv_bytes, "");
    row("buffers of a pass", x->scratch_bytes,
        x->n_lanes > 1 ? "of two lanes that take turns" : "");
    row("the device's own", x->accel.own_bytes, "");
    row("together", x->need_bytes, "");
}

void plan_print_work(const sl_shape *s, const sl_plan *p)
{
    const sl_split *x = &p->split;
    uint32_t n = most_experts(s);
    printf("The device computes all but the embedding%s%s.\n",
           x->kv == SL_ON_DEVICE          ? ""
           : x->prompts == SL_ON_DEVICE ? ", and attention of what is written (the CPU's, in RAM)"
                                        : ", and attention (the CPU's, in RAM)",
           x->head == SL_ON_DEVICE ? "" : ", and the head");
    if (x->n_stay >= n) return;
    char rows[64];
    snprintf(rows, sizeof rows, " if it gets fewer than %" PRIu32 " tokens of a pass",
             x->send_rows);
    if (x->send_rows > 1)
        printf("An expert that does not stay is the CPU's%s%s.\n", x->send_rows < NEVER ? rows : "",
               x->send_rows < NEVER ? ", else sent when a router asks" : "");
    else puts("An expert that does not stay is sent when a router asks for it.");
    if (x->send_all_rows < NEVER && x->send_all_rows <= p->max_rows)
        printf("Passes of %" PRIu32 " tokens or more send all of them.\n", x->send_all_rows);
}

json_t *plan_device_json(const sl_plan *p)
{
    const sl_split *x = &p->split;
    static const char *const where[] = { "cpu", "device" };
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:s,"
                     " s:I, s:I, s:I}",
                     "budget_bytes", (json_int_t)x->accel.mem_bytes, "need_bytes",
                     (json_int_t)x->need_bytes, "own_bytes", (json_int_t)x->accel.own_bytes,
                     "dense_bytes", (json_int_t)x->dense_bytes, "dense_layers",
                     (json_int_t)x->n_dense_layers, "experts_bytes", (json_int_t)x->stay_bytes,
                     "experts_a_layer", (json_int_t)x->n_stay, "ring_bytes",
                     (json_int_t)x->ring_bytes, "kv_bytes", (json_int_t)x->kv_bytes,
                     "scratch_bytes", (json_int_t)x->scratch_bytes, "kv", where[x->kv], "prompts",
                     where[x->kv == SL_ON_DEVICE ? SL_ON_DEVICE : x->prompts], "head",
                     where[x->head], "lanes", (json_int_t)x->n_lanes, "send_rows",
                     (json_int_t)x->send_rows, "send_all_rows", (json_int_t)x->send_all_rows);
}
