/* tests/t_plan.c - the plan and the pipe on a shape small enough to count by hand: 2 layers (dense,
 * then 4 experts top-2), d_model 8, vocabulary 10. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "perfmodel/sl_pipe.h"

static const sl_layer_shape layers[2] = {
    { .qkv_bytes = 100,
      .post_bytes = 50,
      .qkv_flops_row = 300,
      .post_flops_row = 120,
      .section_bytes = 6 * 8192,
      .ffn_bytes = 400,
      .ffn_flops_row = 900,
      .k_elems = 16,
      .v_elems = 8,
      .q_elems = 16,
      .att_elems = 16,
      .ctx_flops_row = 64 },
    { .qkv_bytes = 100,
      .post_bytes = 50,
      .qkv_flops_row = 300,
      .post_flops_row = 120,
      .router_bytes = 32,
      .expert_bytes = 70,
      .slot_bytes = 3 * 8192,
      .section_bytes = 4 * 8192,
      .expert_flops_row = 140,
      .n_expert = 4,
      .n_used = 2,
      .ffn_bytes = 30,
      .ffn_flops_row = 60,
      .k_elems = 24,
      .v_elems = 0,
      .q_elems = 24,
      .att_elems = 24,
      .ctx_flops_row = 96 },
};
static const sl_shape shape = { .n_layer = 2, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                                .embed_bytes = 320, .total_bytes = 5000, .row_scratch_bytes = 40,
                                .row_lane_bytes = 24, .ends_room = 8192, .vector_bytes = 64,
                                .layers = layers };

static int make_ctx(void **state)
{
    *state = sl_ctx_create(NULL, NULL);
    return *state ? 0 : -1;
}

static int drop_ctx(void **state)
{
    sl_ctx *ctx = *state;
    sl_ctx_destroy(&ctx);
    return 0;
}

static void plan_counts_by_hand(void **state)
{
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    p.n_seq = 3;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.n_ctx, 100);                  /* the model's */
    assert_int_equal(plan.n_kv_blocks, 3 * 4);          /* ceil(100 / 32) each */
    assert_int_equal(plan.kv_bytes, 12 * 32 * (16 + 8 + 24) * 2);
    assert_int_equal(plan.max_rows, 300);               /* 512 would never be filled */
    assert_int_equal(plan.max_logits, 16);
    assert_int_equal(plan.scratch_bytes, 300 * 40 + 16 * 10 * 4 + 10 * 10);
    p.kv_type = SL_F32;
    p.n_ctx = 32;
    p.n_seq = 1;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.kv_bytes, 32 * (16 + 8 + 24) * 4);
}

/* Hand-computed: a position of 64 + 32 elements in Q8_0 is 3 blocks of 34 bytes, in BF16 192
 * bytes. */
static void plan_counts_stored_types(void **state)
{
    sl_layer_shape layer = { .k_elems = 64, .v_elems = 32, .kv_unit = 32 };
    sl_shape s = { .n_layer = 1, .d_model = 8, .n_vocab = 10, .n_ctx_train = 64, .layers = &layer };
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    p.kv_type = SL_Q8_0;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    assert_int_equal(plan.kv_bytes, 64 * 3 * 34);
    p.kv_type = SL_BF16;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    assert_int_equal(plan.kv_bytes, 64 * 192);
    layer.kv_unit = 16;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    p.kv_type = SL_Q8_0;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_E_ARG);
}

static void plan_refuses(void **state)
{
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan = { .n_ctx = 7 };
    p.n_seq = 0;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_ARG);
    p = sl_plan_defaults();
    p.max_rows = 0;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_ARG);
    p = sl_plan_defaults();
    p.kv_type = SL_Q8_0;                                /* heads of 16 hold no block of 32 */
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_ARG);
    p.kv_type = SL_Q4_0;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_ARG);
    p = sl_plan_defaults();
    p.n_ctx = UINT32_MAX;
    p.n_seq = 4096;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_NOMEM);
}

/* Everything but weights, for 100 positions and 100 rows: keys and values, activations, logits of
 * 16 rows, room to draw, tokens, vectors. */
enum { FIXED = 4 * 32 * 48 * 2 + 100 * 40 + 16 * 10 * 4 + 10 * 10 + 100 * 4 + 64,
       DENSE = 8192 + 10 * 8192,
       SLOT = 3 * 8192, CACHE = 4 * 4 * 4, OUTS = 16 * 3 * (8 + 2) * 4 };

static void weights_stay_where_they_fit(void **state)
{
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    const uint64_t need = FIXED + DENSE + 4 * SLOT;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);   /* no limit */
    assert_int_equal(plan.weights, SL_WEIGHTS_RESIDENT);
    assert_false(plan.direct);
    p.ram_bytes = need + 5000;              /* beside the page cache's copy */
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_RESIDENT);
    assert_int_equal(plan.need_bytes, need);
    assert_false(plan.direct);
    p.ram_bytes--;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_MAPPED);
    assert_int_equal(plan.need_bytes, FIXED + 5000);
    p.ram_hard = true;                      /* the copy would count */
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_RESIDENT);
    assert_true(plan.direct);
    p.ram_bytes = need;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_RESIDENT);
    p.process_bytes = 1;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_STREAMED);
}

static void weights_are_streamed(void **state)
{
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    p.ram_hard = true;
    p.ram_bytes = FIXED + DENSE + 4 * SLOT - 1;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_STREAMED);
    assert_int_equal(plan.n_dense_layers, 2);
    assert_int_equal(plan.cls[0].n_slots, 3);
    assert_true(plan.need_bytes <= p.ram_bytes);
    /* the floor: all dense weights (two sections of the larger layer would take more), two slots */
    uint64_t floor = FIXED + CACHE + OUTS + DENSE + 2 * SLOT;
    for (uint64_t ram = p.ram_bytes; ram >= floor; ram -= 1024) {
        p.ram_bytes = ram;
        assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
        assert_true(plan.need_bytes <= ram);
        assert_true(plan.cls[0].n_slots >= 2 && plan.cls[0].n_slots <= 4);
        assert_int_equal(plan.n_classes, 1);
        assert_int_equal(plan.cls[0].n_experts, 4);
    }
    /* a third layer like the second: now the first one's stay, and sections take the others' */
    sl_layer_shape l[4] = { layers[0], layers[1], layers[1], layers[1] };
    sl_shape more = shape;
    more.n_layer = 4;
    more.layers = l;
    sl_plan_params q = p;
    q.ram_bytes = FIXED + 4 * 32 * 48 * 2 + 3 * CACHE + OUTS + 8192
                + (6 + 2 * 4) * 8192 + 2 * SLOT;
    assert_int_equal(sl_plan_make(*state, &more, &q, &plan), SL_OK);
    assert_int_equal(plan.n_dense_layers, 1);
    assert_int_equal(plan.section_bytes, 4 * 8192);
    assert_int_equal(plan.cls[0].n_slots, 2);
    assert_int_equal(plan.need_bytes, q.ram_bytes);
    /* fewer layers may be asked for: what they leave goes to slots */
    q.ram_bytes += 2 * SLOT;
    for (q.max_dense_layers = 0; q.max_dense_layers < 2; q.max_dense_layers++) {
        assert_int_equal(sl_plan_make(*state, &more, &q, &plan), SL_OK);
        assert_int_equal(plan.n_dense_layers, q.max_dense_layers);
        assert_true(plan.need_bytes <= q.ram_bytes);
    }
    sl_plan_params small = p;
    small.ram_bytes = 5000;
    plan.n_ctx = 7;
    assert_int_equal(sl_plan_make(*state, &shape, &small, &plan), SL_E_NOMEM);
    assert_non_null(strstr(sl_error(*state), "floor"));
    assert_int_equal(plan.n_ctx, 7);                /* no output written on failure */
    /* just below the floor a pass gets fewer rows, until that does not help either */
    p.ram_bytes = floor - 1;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_true(plan.max_rows < 100 && plan.max_rows >= 32);
    p.ram_bytes = floor - 68 * 40 - 1;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_NOMEM);
}

static void shapes_have_names(void **state)
{
    (void)state;
    sl_layer_shape l[2] = { layers[0], layers[1] };
    sl_shape same = shape;
    same.layers = l;
    assert_true(sl_plan_shape_id(&same) == sl_plan_shape_id(&shape));
    l[1].n_expert++;
    assert_false(sl_plan_shape_id(&same) == sl_plan_shape_id(&shape));
    l[1].n_expert--;
    same.total_bytes++;
    assert_false(sl_plan_shape_id(&same) == sl_plan_shape_id(&shape));
}

/* Experts of two sizes: each gets slots for the same share of its experts. */
static void slots_come_in_classes(void **state)
{
    sl_layer_shape l[3] = { { .n_expert = 64, .n_used = 2, .slot_bytes = 1 << 20 },
                            { .n_expert = 64, .n_used = 2, .slot_bytes = 3 << 20 },
                            { .n_expert = 64, .n_used = 2, .slot_bytes = 1 << 20 } };
    sl_shape s = { .n_layer = 3, .d_model = 8, .n_vocab = 10, .n_ctx_train = 64, .layers = l,
                   .total_bytes = (uint64_t)5 * 64 << 20 };
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    p.ram_bytes = (uint64_t)161 << 20;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_STREAMED);
    assert_int_equal(plan.n_classes, 2);
    assert_int_equal(plan.cls[0].n_experts, 128);
    assert_int_equal(plan.cls[1].n_experts, 64);
    assert_in_range(plan.cls[0].n_slots, 62, 64);
    assert_in_range(plan.cls[1].n_slots, 31, 32);
    assert_int_equal(sl_plan_class(&plan, &l[1]), 1);
    assert_int_equal(sl_plan_class(&plan, &l[2]), 0);
    /* no slot lies across two pieces of 1 GiB: three of 300 MiB in the first, then a gap */
    assert_int_equal(sl_plan_slots_bytes((uint64_t)300 << 20, 3), (uint64_t)900 << 20);
    assert_int_equal(sl_plan_slots_bytes((uint64_t)300 << 20, 4), (uint64_t)(1024 + 300) << 20);
}

/* A table that is not the head too: rows of it are read where that takes less room. */
static void embedding_stays_on_disk(void **state)
{
    sl_shape s = shape;
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    s.n_vocab = 1000;
    s.embed_bytes = s.head_bytes = 1000 * 4096;     /* a row lies in two blocks */
    s.ends_room = 2 * sl_shape_room(s.embed_bytes);
    p.ram_hard = true;
    p.ram_bytes = s.ends_room + ((uint64_t)1 << 20);
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_RESIDENT);
    assert_int_equal(plan.embed_rows_bytes, 0);
    p.ram_bytes = s.ends_room;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_STREAMED);
    assert_int_equal(plan.max_rows, 100);
    assert_int_equal(plan.embed_rows_bytes, 100 * 8192 + 4096);
    assert_int_equal(plan.dense_bytes, s.ends_room / 2 + DENSE - 8192 + 64);
    assert_true(plan.need_bytes <= p.ram_bytes);
    p.max_rows = 16;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    assert_int_equal(plan.embed_rows_bytes, sl_plan_rows_bytes(4096, 16));
    s.head_bytes = 0;                               /* tied: the head reads all of it */
    s.ends_room /= 2;
    p.ram_bytes = s.ends_room;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_E_NOMEM);
    p.ram_bytes += 600000;
    assert_int_equal(sl_plan_make(*state, &s, &p, &plan), SL_OK);
    assert_int_equal(plan.embed_rows_bytes, 0);
}

static void pipe_is_in_order(void **state)
{
    static const sl_step_kind want[] = {
        SL_STEP_EMBED,
        SL_STEP_QKV, SL_STEP_ATTEND, SL_STEP_POST, SL_STEP_EXPERTS,
        SL_STEP_QKV, SL_STEP_ATTEND, SL_STEP_POST, SL_STEP_ROUTE, SL_STEP_EXPERTS,
        SL_STEP_HEAD,
    };
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    sl_step steps[14];
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(sl_pipe_max_steps(&shape), 14);
    assert_int_equal(sl_pipe_build(&shape, &plan, steps), SL_LEN(want));
    for (uint32_t i = 0; i < SL_LEN(want); i++) {
        assert_int_equal(steps[i].kind, want[i]);
        for (int n = 0; n < SL_STEP_MAX_NEEDS; n++)
            assert_true(steps[i].needs[n] == SL_STEP_NONE || steps[i].needs[n] < i);
    }
    assert_int_equal(steps[9].needs[0], 7);             /* experts of layer 1: post and route */
    assert_int_equal(steps[9].needs[1], 8);
    assert_int_equal(steps[10].needs[0], 9);
}

static void pipe_costs(void **state)
{
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    sl_step s[14];
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    sl_pipe_build(&shape, &plan, s);
    assert_int_equal(s[0].row_bytes, 32);               /* one row of the table */
    assert_int_equal(s[2].ctx_bytes, (16 + 8) * 2);
    assert_int_equal(s[2].ctx_flops, 64);
    assert_int_equal(s[3].bytes, 50);
    assert_int_equal(s[8].bytes, 32);
    assert_int_equal(s[8].row_flops, 2 * 8 * 4);
    assert_int_equal(s[9].expert_bytes, 70);
    assert_int_equal(s[9].bytes, 30);
    assert_int_equal(s[9].row_flops, 60 + 2 * 140);
    assert_int_equal(s[10].bytes, 320);                 /* tied: the head reads the table */
}

/* 16 MiB of device memory, of which the device takes 8 and 16 bytes a row. Layer 0 keeps its dense
 * matrices there, each layer its first expert. */
static sl_plan_params shared(void)
{
    sl_plan_params p = sl_plan_defaults();
    p.n_ctx = 32;
    p.accel = (sl_accel){ .kind = SL_ACCEL_EMU, .n_cores = 1, .mem_bytes = 16 << 20 };
    p.kv_on = p.prompts_on = p.head_on = SL_ON_CPU;
    p.n_lanes = 1;
    p.n_stay = 1;
    p.max_dense_layers = 1;
    p.send_all_rows = 1;
    return p;
}

static void split_counts_by_hand(void **state)
{
    sl_plan_params p = shared();
    sl_plan plan;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    const sl_split *x = &plan.split;
    assert_int_equal(plan.weights, SL_WEIGHTS_RESIDENT);
    assert_int_equal(x->n_lanes, 1);
    assert_int_equal(x->lane_rows, 32);
    assert_int_equal(x->n_dense_layers, 1);
    assert_int_equal(x->n_stay, 1);
    assert_int_equal(x->stored_runs, 0);        /* each pass sends all experts, in order */
    assert_int_equal(x->dense_bytes, 64 + 6 * 8192);
    assert_int_equal(x->stay_bytes, 3 * 8192);
    /* layer 1 twice: dense matrices and three experts */
    assert_int_equal(x->ring_bytes, 2 * (4 * 8192 + 3 * 3 * 8192));
    assert_int_equal(x->scratch_bytes, 32 * 24 + 4096);
    assert_int_equal(x->accel.own_bytes, (8 << 20) + 32 * 16);
    assert_int_equal(x->need_bytes, x->dense_bytes + x->stay_bytes + x->ring_bytes
                                        + x->scratch_bytes + x->accel.own_bytes);
    p.send_all_rows = 9;            /* up to 8 rows' outputs wait for their turn */
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(x->stored_runs, 8 * (2 + 1));
    assert_int_equal(x->scratch_bytes, 32 * 24 + 4096 + 24 * 8 * 4);
    p.send_all_rows = 1;
    p.n_lanes = 2;
    p.prompts_on = SL_ON_DEVICE;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(x->n_lanes, 2);
    assert_int_equal(x->lane_rows, 16);
    assert_int_equal(x->prompt_positions, 32);
    assert_int_equal(x->scratch_bytes, 2 * (16 * 24 + 4096 + 32 * 24 * 2));
    p.kv_on = SL_ON_DEVICE;         /* nobody waits for the CPU then: one lane is enough */
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(x->n_lanes, 1);
    assert_int_equal(x->prompt_positions, 0);
    assert_int_equal(x->kv_bytes, plan.kv_bytes);
    p.n_stay = p.max_dense_layers = SL_PLAN_AUTO;   /* all of it fits */
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(x->n_stay, 4);
    assert_int_equal(x->n_dense_layers, 2);
    assert_int_equal(x->ring_bytes, 0);
}

/* 3 of 4 experts have a slot: room of one less, the outputs of 16 rows that wait and what followed
 * what more. */
static void split_streams_by_hand(void **state)
{
    sl_plan_params p = shared();
    sl_plan plan;
    const sl_split *x = &plan.split;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    p.ram_bytes = plan.need_bytes - 3 * 8192 + 16 * 3 * (8 + 2) * 4 + 4 * 4 * 4;
    p.n_lanes = 2;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(plan.weights, SL_WEIGHTS_STREAMED);
    assert_int_equal(plan.cls[0].n_slots, 3);
    assert_int_equal(plan.n_dense_layers, 2);   /* the wish is for the device's memory */
    assert_int_equal(x->n_dense_layers, 1);
    assert_int_equal(plan.need_bytes, p.ram_bytes);
    assert_int_equal(x->send_all_rows, SL_PLAN_NEVER);
    assert_int_equal(x->n_lanes, 1);
    assert_int_equal(x->stored_runs, 16 * (2 + 1));
    assert_int_equal(x->scratch_bytes, 32 * 24 + 4096 + 16 * 3 * 8 * 4);
}

static void split_refuses(void **state)
{
    sl_plan_params p = shared();
    sl_plan plan = { .n_ctx = 77 };
    p.accel.mem_bytes = 8 << 20;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_NOMEM);
    assert_non_null(strstr(sl_error(*state), "8 MiB of device memory"));
    assert_int_equal(plan.n_ctx, 77);
    p.accel.mem_bytes = 16 << 20;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    p.ram_bytes = plan.need_bytes - 1;
    p.resident = true;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_UNSUPPORTED);
    assert_non_null(strstr(sl_error(*state), "do not fit RAM"));
}

static void pipe_crosses_the_link(void **state)
{
    sl_plan_params p = shared();
    sl_plan plan;
    sl_step s[14];
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(sl_pipe_build(&shape, &plan, s), 11);
    assert_true(s[0].on == SL_ON_CPU && s[0].link_row_bytes == 8 * 4);
    assert_true(s[1].on == SL_ON_DEVICE && s[1].send_bytes == 0);   /* layer 0 stays */
    assert_int_equal(s[1].link_row_bytes, (16 + 16 + 8) * 4);
    assert_true(s[2].on == SL_ON_CPU && s[2].gives_way && s[2].link_row_bytes == 16 * 4);
    assert_int_equal(s[5].send_bytes, 100);
    assert_int_equal(s[5].link_row_bytes, (24 + 24) * 4);           /* V is a part of K */
    assert_true(s[8].kind == SL_STEP_ROUTE && s[8].link_row_bytes == (2 * 2 + 1) * 4);
    assert_true(s[9].on == SL_ON_DEVICE && s[9].send_bytes == 30 && !s[9].link_row_bytes);
    assert_true(s[10].on == SL_ON_CPU && s[10].gives_way && s[10].link_row_bytes == 8 * 4);
    p.prompts_on = SL_ON_DEVICE;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(sl_pipe_build(&shape, &plan, s), 13);
    assert_true(s[2].on == SL_ON_DEVICE && s[2].rows == SL_ROWS_PROMPT && !s[2].gives_way);
    assert_int_equal(s[2].link_row_bytes, (16 + 8) * 2);
    assert_true(s[3].on == SL_ON_CPU && s[3].rows == SL_ROWS_DECODE && s[3].gives_way);
    p.kv_on = p.head_on = SL_ON_DEVICE;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(sl_pipe_build(&shape, &plan, s), 11);
    assert_true(s[2].on == SL_ON_DEVICE && !s[2].gives_way && !s[1].link_row_bytes);
    assert_true(s[10].on == SL_ON_DEVICE && s[10].link_row_bytes == 10 * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_counts_by_hand), cmocka_unit_test(plan_counts_stored_types),
        cmocka_unit_test(plan_refuses), cmocka_unit_test(weights_stay_where_they_fit),
        cmocka_unit_test(weights_are_streamed), cmocka_unit_test(shapes_have_names),
        cmocka_unit_test(slots_come_in_classes),
        cmocka_unit_test(embedding_stays_on_disk),
        cmocka_unit_test(pipe_is_in_order), cmocka_unit_test(pipe_costs),
        cmocka_unit_test(split_counts_by_hand), cmocka_unit_test(split_streams_by_hand),
        cmocka_unit_test(split_refuses),
        cmocka_unit_test(pipe_crosses_the_link),
    };
    return cmocka_run_group_tests(tests, make_ctx, drop_ctx);
}
