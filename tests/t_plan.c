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
      .ffn_bytes = 400,
      .ffn_flops_row = 900,
      .k_elems = 16,
      .v_elems = 8,
      .ctx_flops_row = 64 },
    { .qkv_bytes = 100,
      .post_bytes = 50,
      .qkv_flops_row = 300,
      .post_flops_row = 120,
      .router_bytes = 32,
      .expert_bytes = 70,
      .expert_flops_row = 140,
      .n_expert = 4,
      .n_used = 2,
      .ffn_bytes = 30,
      .ffn_flops_row = 60,
      .k_elems = 24,
      .v_elems = 0,
      .ctx_flops_row = 96 },
};
static const sl_shape shape = { .n_layer = 2, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                                .embed_bytes = 320, .total_bytes = 5000, .row_scratch_bytes = 40,
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
    assert_int_equal(plan.scratch_bytes, 300 * 40 + 16 * 10 * 4);
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
    p = sl_plan_defaults();
    p.ram_bytes = 5000;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_NOMEM);
    assert_non_null(strstr(sl_error(*state), "floor"));
    assert_int_equal(plan.n_ctx, 7);                    /* no output written on failure */
    /* weights + 4 blocks of 32 positions + 100 rows of scratch + 16 rows of logits, exactly */
    p.ram_bytes = 5000 + 4 * 32 * 48 * 2 + 100 * 40 + 16 * 10 * 4;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    p.ram_bytes--;
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_E_NOMEM);
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
    sl_step steps[12];
    assert_int_equal(sl_plan_make(*state, &shape, &p, &plan), SL_OK);
    assert_int_equal(sl_pipe_max_steps(&shape), 12);
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
    sl_step s[12];
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_counts_by_hand), cmocka_unit_test(plan_counts_stored_types),
        cmocka_unit_test(plan_refuses),
        cmocka_unit_test(pipe_is_in_order), cmocka_unit_test(pipe_costs),
    };
    return cmocka_run_group_tests(tests, make_ctx, drop_ctx);
}
