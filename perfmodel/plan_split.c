/* perfmodel/plan_split.c - what lies on an accelerator, and what is sent there in each pass.
 * Order of preference for its memory: vectors and activations, which must be there; a ring; the
 * head, if it leaves most of the rest; keys and values, if they are few; dense matrices, which
 * every row needs; experts. With a ring for two layers two lanes can take turns: one is a layer
 * ahead of the other, and both find their weights in it. */
#include "perfmodel/plan_split.h"

#include <assert.h>
#include <math.h>

/* Pieces of copies: small enough not to keep activations waiting, large enough for the link's full
 * speed. 1 ms at 4 GB/s, 160 us at 25 GB/s. */
#define PIECE_BYTES ((uint64_t)4 << 20)
#define SEND_ROWS 4u            /* AUTO: below, reading an expert from RAM beats sending it */
#define NEARLY_ALL 0.9          /* AUTO: of the experts, in a pass that sends all of them */
#define RING_EXPERTS 8u         /* at least so many fit the ring */

static uint64_t sent_layer(const sl_shape *s, const sl_split *x, uint32_t l)
{
    const sl_layer_shape *ls = &s->layers[l];
    uint64_t bytes = l < x->n_dense_layers ? 0 : ls->section_bytes;
    return bytes + (uint64_t)(ls->n_expert - SL_MIN(x->n_stay, ls->n_expert)) * ls->slot_bytes;
}

/* A ring for what is not on the device: two layers and a little, so that one can come while the
 * other is in use. With one lane less will do: a layer's dense matrices twice, and some experts. */
static uint64_t ring_for(const sl_shape *s, const sl_split *x, bool least)
{
    uint64_t layer = 0, parts = 0;
    for (uint32_t l = 0; l < s->n_layer; l++) {
        const sl_layer_shape *ls = &s->layers[l];
        bool some = x->n_stay < ls->n_expert;
        uint64_t dense = l < x->n_dense_layers ? 0 : ls->section_bytes;
        layer = SL_MAX(layer, sent_layer(s, x, l));
        parts = SL_MAX(parts, 2 * dense + (some ? RING_EXPERTS * ls->slot_bytes : 0));
    }
    if (x->head == SL_ON_DEVICE && !x->head_stays) {
        uint64_t head = s->head_bytes ? s->head_bytes : s->embed_bytes;
        layer = SL_MAX(layer, sl_shape_room(head));
        parts = SL_MAX(parts, sl_shape_room(head));
    }
    return least ? SL_MIN(parts, 2 * layer) : 2 * layer;
}

static uint64_t dense_bytes(const sl_shape *s, uint32_t n_layers)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < n_layers; l++) bytes += s->layers[l].section_bytes;
    return bytes;
}

static uint64_t stay_bytes(const sl_shape *s, uint32_t n)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < s->n_layer; l++)
        bytes += (uint64_t)SL_MIN(n, s->layers[l].n_expert) * s->layers[l].slot_bytes;
    return bytes;
}

static uint32_t most_experts(const sl_shape *s)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < s->n_layer; l++) most = SL_MAX(most, s->layers[l].n_expert);
    return most;
}

static uint32_t most_used(const sl_shape *s)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < s->n_layer; l++) most = SL_MAX(most, s->layers[l].n_used);
    return most;
}

/* Rows from which on a layer's router names nearly all of its experts, if it likes all equally. */
static uint32_t all_rows(const sl_shape *s)
{
    double n = most_experts(s), k = most_used(s);
    return k > 0 && k < n ? (uint32_t)ceil(log(1 - NEARLY_ALL) / log(1 - k / n)) : 1;
}

static bool wants(uint32_t wish, bool otherwise)
{
    return wish == SL_PLAN_AUTO ? otherwise : wish == SL_ON_DEVICE;
}

/* Dense layers and experts from what is left beside the ring. False: not even the ring fits. */
static bool fill(const sl_shape *s, const sl_plan_params *p, uint64_t room, bool least, sl_split *x)
{
    uint32_t most = p->n_stay == SL_PLAN_AUTO ? most_experts(s) : p->n_stay;
    x->n_stay = 0;
    x->n_dense_layers = SL_MIN(s->n_layer, p->max_dense_layers);
    while (x->n_dense_layers
           && dense_bytes(s, x->n_dense_layers) + ring_for(s, x, least) > room)
        x->n_dense_layers--;
    if (dense_bytes(s, x->n_dense_layers) + ring_for(s, x, least) > room) return false;
    for (uint32_t n = 1; n <= most; n++) {
        sl_split more = *x;
        more.n_stay = n;
        if (dense_bytes(s, x->n_dense_layers) + stay_bytes(s, n) + ring_for(s, &more, least) > room)
            break;
        x->n_stay = n;
    }
    uint64_t used = dense_bytes(s, x->n_dense_layers) + stay_bytes(s, x->n_stay);
    x->ring_bytes = SL_MIN(ring_for(s, x, false), room - used);
    return true;
}

static sl_status refuse(sl_ctx *ctx, const sl_split *x, uint64_t fixed, uint64_t ring)
{
    return sl_fail(ctx, SL_E_NOMEM,
                   "%llu MiB of device memory: vectors, activations of %u rows and the device's own "
                   "take %llu, and weights on their way %llu",
                   (unsigned long long)x->accel.mem_bytes >> 20, x->lane_rows,
                   (unsigned long long)fixed >> 20, (unsigned long long)ring >> 20);
}

static uint32_t blocks(uint32_t positions)
{
    return (positions + SL_KV_BLOCK_ROWS - 1) / SL_KV_BLOCK_ROWS;
}

/* Of the layer with the largest keys and values. */
static uint64_t position_bytes(const sl_shape *s, sl_type kv)
{
    const sl_type_info *t = sl_type_get(kv);
    uint64_t most = 0;
    for (uint32_t l = 0; l < s->n_layer; l++)
        most = SL_MAX(most, (uint64_t)s->layers[l].k_elems + s->layers[l].v_elems);
    return (most + t->block_elems - 1) / t->block_elems * t->block_bytes;
}

/* Activations, and the room for outputs that wait: every pass that does not send all experts may
 * compute them out of order. The stages' scratch is the device's own. */
static void size_lanes(const sl_shape *s, const sl_plan *plan, sl_split *x)
{
    x->lane_rows = plan->max_rows;
    if (x->n_lanes == 2)
        x->lane_rows = SL_MIN(plan->max_rows,
                              SL_MAX((plan->max_rows + 1) / 2, x->send_all_rows));
    uint32_t stored = SL_MIN(x->lane_rows, SL_MAX(x->send_all_rows, 1) - 1);
    if (plan->weights == SL_WEIGHTS_STREAMED) stored = plan->stored_rows;
    x->stored_runs = stored * (most_used(s) + 1);
    if (x->prompts == SL_ON_DEVICE)
        x->prompt_positions = blocks(SL_MAX(plan->n_ctx, x->lane_rows)) * SL_KV_BLOCK_ROWS;
    uint64_t logits = x->head == SL_ON_DEVICE ? (uint64_t)plan->max_logits * s->n_vocab : 0;
    x->scratch_bytes = x->n_lanes * (x->lane_rows * s->row_lane_bytes + 4096
                                     + (logits + (uint64_t)x->stored_runs * s->d_model)
                                           * sizeof(float)
                                     + x->prompt_positions * position_bytes(s, plan->kv_type));
    x->accel.own_bytes += x->lane_rows * (s->row_scratch_bytes - s->row_lane_bytes) + (8u << 20);
}

sl_status plan_split(sl_ctx *ctx, const sl_shape *s, const sl_plan_params *p, sl_plan *plan)
{
    bool streamed = plan->weights == SL_WEIGHTS_STREAMED;
    if (plan->n_dense_layers < s->n_layer)
        return sl_fail(ctx, SL_E_UNSUPPORTED,
                       "with an accelerator all weights but experts must fit RAM: those are %llu "
                       "MiB, and the budget is %llu",
                       (unsigned long long)s->dense_bytes >> 20,
                       (unsigned long long)p->ram_bytes >> 20);
    uint64_t mem = p->accel.mem_bytes;
    uint64_t head = sl_shape_room(s->head_bytes ? s->head_bytes : s->embed_bytes);
    sl_split x = { .accel = p->accel, .piece_bytes = PIECE_BYTES };
    x.kv = wants(p->kv_on, plan->kv_bytes <= mem / 8) ? SL_ON_DEVICE : SL_ON_CPU;
    if (x.kv == SL_ON_CPU && wants(p->prompts_on, true)) x.prompts = SL_ON_DEVICE;
    x.head = wants(p->head_on, head <= mem / 4) ? SL_ON_DEVICE : SL_ON_CPU;
    x.head_stays = x.head == SL_ON_DEVICE && head <= mem / 2;
    x.kv_bytes = x.kv == SL_ON_DEVICE ? plan->kv_bytes : 0;
    x.send_rows = p->send_rows == SL_PLAN_AUTO ? SEND_ROWS : p->send_rows;
    x.send_all_rows = streamed ? SL_PLAN_NEVER
                    : p->send_all_rows == SL_PLAN_AUTO ? all_rows(s)
                                                       : p->send_all_rows;
    bool two = p->n_lanes != 1 && plan->max_rows >= 2 && x.send_all_rows <= plan->max_rows
            && x.kv == SL_ON_CPU;
    for (uint32_t lanes = two ? 2 : 1; ; lanes--) {
        sl_split try = x;
        try.n_lanes = lanes;
        size_lanes(s, plan, &try);
        uint64_t fixed = s->vector_bytes + try.scratch_bytes + try.accel.own_bytes + try.kv_bytes
                       + (try.head_stays ? head : 0);
        bool fits = fixed <= mem && fill(s, p, mem - fixed, lanes == 1, &try);
        if (!fits && lanes > 1) continue;
        if (!fits) return refuse(ctx, &try, fixed, ring_for(s, &try, true));
        try.dense_bytes = s->vector_bytes + dense_bytes(s, try.n_dense_layers)
                        + (try.head_stays ? head : 0);
        try.stay_bytes = stay_bytes(s, try.n_stay);
        try.stay_follow = !p->stay_fixed && !streamed && try.n_stay
                        && try.n_stay < most_experts(s);
        try.need_bytes = try.dense_bytes + try.stay_bytes + try.ring_bytes + try.kv_bytes
                       + try.scratch_bytes + try.accel.own_bytes;
        assert(try.need_bytes <= mem);
        plan->split = try;
        plan->mode = !try.ring_bytes ? "all weights on the device"
                   : streamed ? "experts streamed from disk, sent to the device as it needs them"
                              : "weights in RAM, sent to the device as it needs them";
        return SL_OK;
    }
}
