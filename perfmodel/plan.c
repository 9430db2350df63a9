/* perfmodel/plan.c - where every byte lies, so that all of it fits the budget. Dense weights come
 * first, since every token reads them all; experts get what is left. */
#include "perfmodel/plan_split.h"

#include <assert.h>

#define MIN_LOGIT_ROWS 16u
#define MIN_ROWS 32u            /* of a pass: fewer are not tried to make a plan fit */
#define MIN_SLOTS 2u            /* of a class: one is computed while the next is read */
#define STORED_ROWS 16u
#define DRAW_BYTES 10u          /* of a sampler's room, for each id (runtime/sl_sampler.h) */

sl_plan_params sl_plan_defaults(void)
{
    return (sl_plan_params){ .n_seq = 1, .max_rows = 512, .kv_type = SL_F16,
                             .max_dense_layers = UINT32_MAX, .cpu_mask = ~0u,
                             .n_lanes = SL_PLAN_AUTO, .kv_on = SL_PLAN_AUTO,
                             .prompts_on = SL_PLAN_AUTO, .head_on = SL_PLAN_AUTO,
                             .n_stay = SL_PLAN_AUTO,
                             .send_rows = SL_PLAN_AUTO, .send_all_rows = SL_PLAN_AUTO };
}

/* Bytes of every layer's keys and values for n_pos positions; false on overflow. */
static bool kv_bytes(const sl_shape *s, sl_type type, uint64_t n_pos, uint64_t *ret)
{
    uint64_t row = 0, k, v;
    for (uint32_t l = 0; l < s->n_layer; l++) {
        const sl_layer_shape *ls = &s->layers[l];
        if (!sl_type_row_bytes(type, ls->k_elems, &k) || !sl_type_row_bytes(type, ls->v_elems, &v)
            || !sl_add_size(row, k, &row) || !sl_add_size(row, v, &row))
            return false;
    }
    return sl_mul_size(row, n_pos, ret);
}

static sl_status check_kv_type(sl_ctx *ctx, const sl_shape *s, sl_type type)
{
    const sl_type_info *t = sl_type_get(type);
    if (type != SL_F16 && type != SL_F32 && type != SL_BF16 && type != SL_Q8_0)
        return sl_fail(ctx, SL_E_ARG, "keys and values in %s: expected F16, F32, BF16 or Q8_0",
                       t->name ? t->name : "an unknown type");
    for (uint32_t l = 0; l < s->n_layer && t->block_elems > 1; l++)
        if (s->layers[l].kv_unit % t->block_elems || !s->layers[l].kv_unit)
            return sl_fail(ctx, SL_E_ARG,
                           "keys and values in %s: it has blocks of %u, and the heads of layer %u "
                           "are no multiple of that",
                           t->name, t->block_elems, l);
    return SL_OK;
}

static sl_status check_params(sl_ctx *ctx, const sl_shape *s, const sl_plan_params *p)
{
    if (p->n_seq < 1 || p->n_seq > 4096)
        return sl_fail(ctx, SL_E_ARG, "%u sequences: expected 1 to 4096", p->n_seq);
    if (p->max_rows < 1 || p->max_rows > 65536)
        return sl_fail(ctx, SL_E_ARG, "%u rows a pass: expected 1 to 65536", p->max_rows);
    SL_TRY(check_kv_type(ctx, s, p->kv_type));
    if (!p->n_ctx && !s->n_ctx_train)
        return sl_fail(ctx, SL_E_ARG, "the model names no context length: one must be given");
    return SL_OK;
}

/* What a plan takes whatever the weights do. */
static uint64_t fixed_bytes(const sl_shape *s, const sl_plan_params *p, const sl_plan *plan)
{
    return plan->kv_bytes + plan->scratch_bytes + plan->tables_bytes + s->vector_bytes
           + p->process_bytes;
}

static uint64_t dense_room(const sl_shape *s, const sl_plan *plan, uint32_t n_layers)
{
    uint64_t bytes = s->ends_room - (plan->embed_rows_bytes ? sl_shape_room(s->embed_bytes) : 0);
    for (uint32_t l = 0; l < n_layers; l++) bytes += s->layers[l].section_bytes;
    return bytes;
}

static uint64_t largest_section(const sl_shape *s, uint32_t from)
{
    uint64_t most = 0;
    for (uint32_t l = from; l < s->n_layer; l++) most = SL_MAX(most, s->layers[l].section_bytes);
    return most;
}

static uint32_t most_used(const sl_shape *s)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < s->n_layer; l++) most = SL_MAX(most, s->layers[l].n_used);
    return most;
}

/* FNV-1a, 64 bits (Fowler, Noll, Vo). */
static uint64_t mixed(uint64_t h, uint64_t v)
{
    for (int i = 0; i < 8; i++) h = (h ^ (v >> 8 * i & 255)) * 0x100000001b3u;
    return h;
}

uint64_t sl_plan_shape_id(const sl_shape *s)
{
    uint64_t h = 0xcbf29ce484222325u;
    const uint64_t whole[] = { s->n_layer, s->d_model, s->n_vocab, s->embed_bytes, s->head_bytes,
                               s->dense_bytes, s->experts_bytes, s->total_bytes };
    for (size_t i = 0; i < SL_LEN(whole); i++) h = mixed(h, whole[i]);
    for (uint32_t l = 0; l < s->n_layer; l++) {
        const sl_layer_shape *ls = &s->layers[l];
        const uint64_t part[] = { ls->qkv_bytes, ls->post_bytes, ls->router_bytes, ls->expert_bytes,
                                  ls->ffn_bytes, ls->n_expert, ls->n_used, ls->k_elems,
                                  ls->v_elems, ls->window };
        for (size_t i = 0; i < SL_LEN(part); i++) h = mixed(h, part[i]);
    }
    return h;
}

uint64_t sl_plan_slots_bytes(uint64_t slot_bytes, uint64_t n)
{
    if (!n) return 0;
    uint64_t per_piece = SL_MAX(SL_SLOT_PIECE / slot_bytes, 1);
    uint64_t gap = SL_SLOT_PIECE > slot_bytes ? SL_SLOT_PIECE - per_piece * slot_bytes : 0;
    return n * slot_bytes + (n - 1) / per_piece * gap;
}

uint32_t sl_plan_class(const sl_plan *plan, const sl_layer_shape *l)
{
    uint32_t c = 0;
    while (c + 1 < plan->n_classes && plan->cls[c].slot_bytes != l->slot_bytes) c++;
    assert(plan->cls[c].slot_bytes >= l->slot_bytes);
    return c;
}

/* One class for each size of expert, in order of appearance. */
static void find_classes(const sl_shape *s, sl_plan *plan)
{
    uint64_t most = 0;
    uint32_t n = 0, n_experts = 0;
    for (uint32_t l = 0; l < s->n_layer; l++) {
        const sl_layer_shape *ls = &s->layers[l];
        if (!ls->n_expert) continue;
        uint32_t c = 0;
        while (c < SL_MIN(n, SL_SLOT_CLASSES) && plan->cls[c].slot_bytes != ls->slot_bytes) c++;
        if (c == n && n++ < SL_SLOT_CLASSES)
            plan->cls[c] = (sl_slot_class){ .slot_bytes = ls->slot_bytes };
        if (c < SL_SLOT_CLASSES) plan->cls[c].n_experts += ls->n_expert;
        most = SL_MAX(most, ls->slot_bytes);
        n_experts += ls->n_expert;
    }
    plan->n_classes = n;
    if (n <= SL_SLOT_CLASSES) return;
    plan->cls[0] = (sl_slot_class){ .slot_bytes = most, .n_experts = n_experts };
    plan->n_classes = 1;
}

/* At least `least` slots of each class, and the same share of the experts everywhere. Returns their
 * bytes. */
static uint64_t set_slots(sl_plan *plan, uint32_t least, double share)
{
    uint64_t bytes = 0;
    for (uint32_t c = 0; c < plan->n_classes; c++) {
        sl_slot_class *k = &plan->cls[c];
        uint32_t n = (uint32_t)(share * k->n_experts);
        k->n_slots = SL_MIN(SL_MAX(n, least), k->n_experts);
        bytes += sl_plan_slots_bytes(k->slot_bytes, k->n_slots);
    }
    return bytes;
}

/* Slots from what is left of the budget: shares in steps of 1/4096, the largest that fits. */
static void fill_slots(sl_plan *plan, uint32_t least, uint64_t room)
{
    uint32_t lo = 0, hi = 4096;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if (set_slots(plan, least, mid / 4096.0) <= room) lo = mid;
        else hi = mid;
    }
    plan->slots_bytes = set_slots(plan, least, lo / 4096.0);
}

/* Bytes beside the slots when the first n layers keep their dense weights. */
static uint64_t dense_need(const sl_shape *s, const sl_plan *plan, uint32_t n)
{
    return dense_room(s, plan, n) + 2 * largest_section(s, n);
}

/* Most layers, up to `most`, that can keep their dense weights with `least` slots of each class in
 * `room` bytes; false: none, and *ret_least is what it would take. */
static bool most_layers(const sl_shape *s, uint64_t room, uint32_t least, uint32_t most,
                        sl_plan *plan, uint64_t *ret_least)
{
    uint64_t slots = set_slots(plan, least, 0);
    uint32_t best = 0;
    *ret_least = UINT64_MAX;
    for (uint32_t n = SL_MIN(most, s->n_layer) + 1; n-- > 0; ) {
        uint64_t need = dense_need(s, plan, n) + slots;
        plan->n_dense_layers = n;
        if (need <= room) return true;
        if (need >= *ret_least) continue;
        *ret_least = need;
        best = n;
    }
    plan->n_dense_layers = best;
    return false;
}

static void set_dense(const sl_shape *s, sl_plan *plan)
{
    plan->section_bytes = largest_section(s, plan->n_dense_layers);
    plan->dense_bytes = dense_room(s, plan, plan->n_dense_layers) + s->vector_bytes;
}

/* Experts in slots, and the dense weights of as many layers as fit beside the slots that one token
 * uses at a time; with fewer slots only where that does not fit at all. Returns what is needed at
 * least; that is above the budget when nothing fits. */
static uint64_t place_streamed(const sl_shape *s, const sl_plan_params *p, uint64_t budget,
                               uint64_t fixed, sl_plan *plan)
{
    uint64_t room = budget - SL_MIN(fixed, budget), need;
    uint32_t least = SL_MAX(most_used(s), MIN_SLOTS);
    /* with an accelerator that is a wish for its own memory, and copies run from RAM */
    uint32_t most = p->accel.kind ? UINT32_MAX : p->max_dense_layers;
    if (!most_layers(s, room, least, most, plan, &need)) {
        least = MIN_SLOTS;
        if (!most_layers(s, room, least, most, plan, &need)) {
            set_dense(s, plan);
            return fixed + need;
        }
    }
    plan->weights = SL_WEIGHTS_STREAMED;
    plan->direct = true;
    plan->mode = plan->n_dense_layers < s->n_layer
                     ? "all weights streamed from disk, all on the CPU"
                     : "experts streamed from disk, all on the CPU";
    set_dense(s, plan);
    uint64_t rest = dense_need(s, plan, plan->n_dense_layers);
    fill_slots(plan, least, room - rest);
    plan->need_bytes = fixed + rest + plan->slots_bytes;
    return plan->need_bytes;
}

/* Of the expert cache: what followed what in each layer, as floats. */
static uint64_t cache_bytes(const sl_shape *s)
{
    uint64_t n = 0;
    for (uint32_t l = 0; l < s->n_layer; l++)
        n += (uint64_t)s->layers[l].n_expert * s->layers[l].n_expert;
    return n * sizeof(float);
}

uint32_t sl_plan_ring(const sl_plan *plan, uint32_t slot_class)
{
    uint64_t depth = plan->read_depth ? plan->read_depth : SL_STORE_READ_DEPTH;
    uint64_t bytes = plan->read_bytes ? plan->read_bytes : SL_STORE_READ_BYTES;
    uint64_t slot = SL_MAX(plan->cls[slot_class].slot_bytes, 1);
    return (uint32_t)SL_MAX((2 * depth * bytes + slot - 1) / slot, 4);
}

uint64_t sl_plan_rows_bytes(uint64_t row_bytes, uint32_t n)
{
    return n * sl_shape_room(row_bytes) + 4096;     /* to begin at a block of the disk */
}

/* A token needs one row of the embedding: reading it takes next to no time, and the table's room is
 * better spent on experts. */
static uint64_t embed_rows(const sl_shape *s, const sl_plan *plan)
{
    uint64_t rows = sl_plan_rows_bytes(s->embed_bytes / s->n_vocab, plan->max_rows);
    return s->head_bytes && rows < sl_shape_room(s->embed_bytes) ? rows : 0;
}

static uint64_t place_weights(const sl_shape *s, const sl_plan_params *p, sl_plan *plan)
{
    uint64_t fixed = fixed_bytes(s, p, plan), budget = p->ram_bytes ? p->ram_bytes : UINT64_MAX;
    find_classes(s, plan);
    plan->n_dense_layers = s->n_layer;
    plan->dense_bytes = dense_room(s, plan, s->n_layer) + s->vector_bytes;
    plan->slots_bytes = set_slots(plan, 0, 1);
    plan->need_bytes = fixed + dense_room(s, plan, s->n_layer) + plan->slots_bytes;
    /* Through the page cache the next start is quick, but it keeps a copy as long as it can. */
    bool twice = plan->need_bytes <= budget && s->total_bytes <= budget - plan->need_bytes;
    bool own = p->ram_hard || p->accel.kind;    /* copies to a device run from memory of ours */
    plan->weights = SL_WEIGHTS_RESIDENT;
    plan->direct = !twice;
    if (twice || (own && plan->need_bytes <= budget)) return plan->need_bytes;
    if (!own && fixed <= budget && s->total_bytes <= budget - fixed) {
        plan->weights = SL_WEIGHTS_MAPPED;
        plan->direct = false;
        plan->dense_bytes = s->vector_bytes;
        plan->slots_bytes = plan->n_classes = 0;
        return plan->need_bytes = fixed + s->total_bytes;
    }
    fixed += cache_bytes(s);
    plan->stored_rows = SL_MIN(plan->max_rows, STORED_ROWS);
    uint64_t runs = plan->stored_rows * (most_used(s) + 1ull);
    uint64_t stored = (runs * s->d_model + 2 * runs) * sizeof(float);
    plan->scratch_bytes += stored;
    plan->embed_rows_bytes = embed_rows(s, plan);
    return place_streamed(s, p, budget, fixed + stored + plan->embed_rows_bytes, plan);
}

static sl_status size_caches(sl_ctx *ctx, const sl_shape *s, const sl_plan_params *p,
                             uint32_t max_rows, sl_plan *plan)
{
    uint64_t per_seq = ((uint64_t)plan->n_ctx + SL_KV_BLOCK_ROWS - 1) / SL_KV_BLOCK_ROWS;
    uint64_t n_blocks = per_seq * p->n_seq;
    if (p->kv_positions)
        n_blocks = SL_MIN(n_blocks, SL_MAX(p->kv_positions / SL_KV_BLOCK_ROWS, per_seq));
    /* More rows than all sequences together can hold are never filled. */
    plan->max_rows = (uint32_t)SL_MIN((uint64_t)max_rows, (uint64_t)plan->n_ctx * p->n_seq);
    plan->max_rows = SL_MAX(plan->max_rows, p->n_seq);
    plan->max_logits = SL_MIN(plan->max_rows, SL_MAX(p->n_seq, MIN_LOGIT_ROWS));
    if (n_blocks > UINT32_MAX
        || !kv_bytes(s, p->kv_type, n_blocks * SL_KV_BLOCK_ROWS, &plan->kv_bytes)
        || plan->kv_bytes > UINT64_MAX / 4)
        return sl_fail(ctx, SL_E_NOMEM,
                       "a context of %u positions for %u sequences is beyond any memory",
                       plan->n_ctx, p->n_seq);
    plan->n_kv_blocks = (uint32_t)n_blocks;
    plan->scratch_bytes = plan->max_rows * s->row_scratch_bytes
                        + (uint64_t)plan->max_logits * s->n_vocab * sizeof(float)
                        + DRAW_BYTES * (uint64_t)s->n_vocab;
    plan->tables_bytes = (uint64_t)plan->n_seq * plan->n_ctx * sizeof(int32_t);
    return SL_OK;
}

static unsigned long long mib(uint64_t bytes)   /* rounded up */
{
    return (bytes >> 20) + (bytes % (1u << 20) != 0);
}

/* What the process itself takes differs so much from start to start. */
#define PROCESS_SPREAD ((uint64_t)2 << 20)

/* Whole MiB, the floor rounded up: the number that is printed will do. */
static sl_status refuse(sl_ctx *ctx, const sl_plan_params *p, sl_plan plan, uint64_t floor)
{
    return sl_fail(
        ctx, SL_E_NOMEM,
        "a budget of %llu MiB is below the floor of %llu MiB: embedding, head and sections of "
        "weights %llu, two experts of each size %llu, keys and values of %u positions %llu "
        "(-c and -ctk q8_0 lower it), activations of %u rows %llu, the process %llu",
        (unsigned long long)p->ram_bytes >> 20,
        mib(floor + (p->process_bytes ? PROCESS_SPREAD : 0)),
        mib(plan.dense_bytes + 2 * plan.section_bytes), mib(set_slots(&plan, MIN_SLOTS, 0)),
        plan.n_ctx, mib(plan.kv_bytes), plan.max_rows, mib(plan.scratch_bytes),
        mib(p->process_bytes));
}

sl_status sl_plan_make(sl_ctx *ctx, const sl_shape *s, const sl_plan_params *p, sl_plan *ret)
{
    assert(ctx && s && p && ret);
    SL_TRY(check_params(ctx, s, p));
    sl_plan plan = {
        .mode = "all in RAM, all on the CPU",
        .n_ctx = p->n_ctx ? p->n_ctx : s->n_ctx_train,
        .n_seq = p->n_seq,
        .n_threads = p->n_threads,
        .kv_type = p->kv_type,
        .kv_block_rows = SL_KV_BLOCK_ROWS,
        .weights_bytes = s->total_bytes,
        .ram_bytes = p->ram_bytes,
        .cpu_mask = p->cpu_mask,
        .float_acts = p->float_acts,
        .blas = p->blas,
        .policy = p->policy,
        .no_ahead = p->no_ahead,
        .share_prefixes = p->share_prefixes,
        .read_depth = p->read_depth,
        .read_bytes = p->read_bytes,
    };
    sl_plan base = plan;
    uint64_t floor = 0;
    for (uint32_t rows = p->max_rows; ; rows = (rows + 1) / 2) {
        plan = base;
        SL_TRY(size_caches(ctx, s, p, rows, &plan));
        floor = place_weights(s, p, &plan);
        if (!p->ram_bytes || floor <= p->ram_bytes) break;
        if (rows / 2 >= MIN_ROWS) continue;
        return refuse(ctx, p, plan, floor);
    }
    if (p->resident && plan.weights == SL_WEIGHTS_STREAMED)
        return sl_fail(ctx, SL_E_UNSUPPORTED, "%llu MiB of weights do not fit RAM of %llu MiB",
                       mib(s->total_bytes), (unsigned long long)p->ram_bytes >> 20);
    if (p->accel.kind) SL_TRY(plan_split(ctx, s, p, &plan));
    *ret = plan;
    return SL_OK;
}
