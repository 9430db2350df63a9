/* tests/t_bound.c - bounds counted by hand on a shape of 2 layers: a dense float one, then 4
 * experts top-2 of quantised weights in a window of 3; d_model 8, vocabulary 10, keys and values in
 * 2 bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "perfmodel/sl_bound.h"

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
      .k_elems = 20,
      .v_elems = 4,
      .window = 3,
      .ctx_flops_row = 96,
      .qkv_int_flops_row = 300,
      .post_int_flops_row = 120,
      .expert_int_flops_row = 140,
      .ffn_int_flops_row = 60 },
};
static const sl_shape shape = { .n_layer = 2, .d_model = 8, .n_vocab = 10, .n_ctx_train = 100,
                                .embed_bytes = 320, .total_bytes = 5000, .row_scratch_bytes = 40,
                                .head_int = true, .layers = layers };
/* In every pass: both layers' dense bytes, router, shared expert; the head is apart. */
enum {
    DENSE = 100 + 50 + 400 + 100 + 50 + 32 + 30,
    HEAD = 320,
    KV = 48,
    EXPERT = 70,
    EMBED_ROW = 32
};
/* Of a row: float projections, dense FFN and router; integers are multiply-adds. */
enum { FLOPS = 300 + 120 + 900 + 2 * 8 * 4, INTS = (300 + 120 + 60 + 2 * 140) / 2, HEAD_INTS = 80 };

static sl_step steps[12];
static uint32_t n_steps;

static int make_steps(void **state)
{
    sl_plan plan = { .kv_type = SL_F16 };
    (void)state;
    n_steps = sl_pipe_build(&shape, &plan, steps);
    return n_steps == 11 ? 0 : -1;
}

static sl_work work(sl_pass p)
{
    return sl_bound_work(&shape, steps, n_steps, &p);
}

static void one_row(void **state)
{
    (void)state;
    sl_work w = work((sl_pass){ .first = 0, .n_rows = 1, .logits = true });
    /* own keys are written */
    assert_true(w.bytes == DENSE + HEAD + EMBED_ROW + 2 * KV + 2 * EXPERT);
    assert_true(w.int_ops == INTS + HEAD_INTS);
    assert_true(w.flops == FLOPS + 64 + 96);
    /* Ten positions back: layer 0 reads all ten, layer 1 the two others of its window. */
    w = work((sl_pass){ .first = 10, .n_rows = 1, .logits = true });
    assert_true(w.bytes == DENSE + HEAD + EMBED_ROW + 2 * KV + 2 * EXPERT + 10 * KV + 2 * KV);
    assert_true(w.flops == FLOPS + 11 * 64 + 3 * 96);
    w = work((sl_pass){ .first = 0, .n_rows = 1 });
    assert_true(w.bytes == DENSE + EMBED_ROW + 2 * KV + 2 * EXPERT);
    assert_true(w.int_ops == INTS);
}

static void many_rows(void **state)
{
    (void)state;
    /* Even routing: 4 * (1 - (1/2)^3) = 3.5 distinct experts for three rows. */
    sl_work w = work((sl_pass){ .first = 2, .n_rows = 3 });
    assert_true(w.bytes == DENSE + 3 * (EMBED_ROW + 2 * KV) + 3.5 * EXPERT + 2 * 2 * KV);
    assert_true(w.int_ops == 3 * INTS);
    assert_true(w.flops == 3 * FLOPS + (3 + 4 + 5) * 64 + (3 + 3 + 3) * 96);
    /* A window that fills up on the way: rows see 2, 3, 3, 3 positions. */
    w = work((sl_pass){ .first = 1, .n_rows = 4, .experts = 2.5 });
    assert_true(w.bytes == DENSE + 4 * (EMBED_ROW + 2 * KV) + 2.5 * EXPERT + 1 * 2 * KV);
    assert_true(w.flops == 4 * FLOPS + (2 + 3 + 4 + 5) * 64 + (2 + 3 + 3 + 3) * 96);
    /* there are only 4 */
    w = work((sl_pass){ .first = 0, .n_rows = 1, .experts = 9 });
    assert_true(w.bytes == DENSE + EMBED_ROW + 2 * KV + 4 * EXPERT);
}

static void slowest_counts(void **state)
{
    sl_work w = { .bytes = 600, .int_ops = 80, .flops = 30 };
    sl_rates r = { .bytes_s = 100, .int_ops_s = 20, .flops_s = 10 };
    sl_limit limit;
    (void)state;
    assert_true(sl_bound_s(&w, &r, &limit) == 6);
    assert_int_equal(limit, SL_LIMIT_DRAM);
    r.int_ops_s = 10;
    assert_true(sl_bound_s(&w, &r, &limit) == 8);
    assert_int_equal(limit, SL_LIMIT_INT8);
    r.flops_s = 2;
    assert_true(sl_bound_s(&w, &r, &limit) == 15);
    assert_int_equal(limit, SL_LIMIT_FLOAT);
    r.int_ops_s = r.flops_s = 0;                        /* unknown: they bound nothing */
    assert_true(sl_bound_s(&w, &r, NULL) == 6);
}

static void tokens_per_second(void **state)
{
    (void)state;
    sl_rates r = { .bytes_s = 1000 };
    /* Decode: one token more in layer 0 each time, in layer 1 until the window is full. */
    double token = DENSE + HEAD + EMBED_ROW + 2 * KV + 2 * EXPERT;
    double want = 4 / ((4 * token + (0 + 1 + 2 + 3) * KV + (0 + 1 + 2 + 2) * KV) / 1000);
    assert_true(fabs(sl_bound_decode(&shape, steps, n_steps, 4, &r) / want - 1) < 1e-14);
    /* A prompt of 5 in passes of 3 and 2, experts given; the head runs at the end only. */
    double a = DENSE + 3 * (EMBED_ROW + 2 * KV) + 3 * EXPERT;
    double b = DENSE + 2 * (EMBED_ROW + 2 * KV) + 3 * EXPERT + HEAD + 3 * KV + 2 * KV;
    want = 5 / ((a + b) / 1000);
    assert_true(fabs(sl_bound_prompt(&shape, steps, n_steps, 5, 3, 3, &r) / want - 1) < 1e-14);
    /* Integers bind: bytes for free. */
    r = (sl_rates){ .bytes_s = 1e12, .int_ops_s = 50 };
    want = 5 / ((5 * INTS + HEAD_INTS) / 50.0);
    assert_true(fabs(sl_bound_prompt(&shape, steps, n_steps, 5, 3, 0, &r) / want - 1) < 1e-14);
}

/* 4 s of computing, 3 of them waiting for DRAM; a disk. */
static void both_at_once(void **state)
{
    sl_disk_use disk = { .machine = NULL };
    (void)state;
#define IS(seconds, want) assert_true(fabs((seconds) - (want)) < 1e-14)
    IS(sl_bound_together(4, 3, 2, &disk), 4);
    IS(sl_bound_together(4, 3, 7, &disk), 7);
    disk = (sl_disk_use){ .cpu_keeps = 0.6, .disk_keeps = 0.5 };
    IS(sl_bound_together(0, 0, 7, &disk), 7);
    IS(sl_bound_together(4, 3, 0, &disk), 4);
    IS(sl_bound_together(4, 3, 7, &disk), 7 + 3 * 0.5);     /* the disk, behind the 3 s */
    IS(sl_bound_together(4, 3, 1, &disk), 4 + 1 / 3.0);     /* 4 s become 6 beside it */
    IS(sl_bound_together(4, 9, 3, &disk), 4 + 3 * 0.4);     /* all 4 s wait */
    disk.disk_keeps = 0.01;
    IS(sl_bound_together(4, 4, 2, &disk), 2 + 4 * 0.99);
    disk.cpu_keeps = 0.01;
    IS(sl_bound_together(4, 4, 2, &disk), 4 + 2 * 0.99);    /* no better than in turn */
#undef IS
}

/* One token, half of the layers' turns with one of two experts missing. */
static void causal(void **state)
{
    static sl_machine m;
    sl_plan plan = { .n_classes = 1, .n_dense_layers = 2 };
    sl_rates r = { .bytes_s = 1000 };
    sl_misses misses = { .turns = { { 1, 2, 1 } } };
    sl_disk_use disk = { .machine = &m };
    (void)state;
    m.disk.n_curves = 1;
    m.disk.curve[0] = (sl_machine_curve){ .bytes = 4096, .n = 2, .at = { { 3, 10 }, { 6, 35 } } };
#define RATE() sl_bound_causal(&shape, &plan, steps, n_steps, 0, 1, &misses, &r, &disk)
#define IS(want) assert_true(fabs(RATE() / (want) - 1) < 1e-14)
    double d = (DENSE - 30 + HEAD + EMBED_ROW + 2 * KV) / 1000.0;   /* 30: the shared expert */
    /* no read: 30 + 2 * 70 bytes of RAM; one missing: 70 bytes by three reads; both: by six */
    IS(1 / (d + (0.17 + 2 * (70 / 10.0) + 140 / 35.0) / 4));
    disk.depth = 3;
    IS(1 / (d + (0.17 + 2 * (70 / 10.0) + 140 / 10.0) / 4));
    disk = (sl_disk_use){ .machine = &m, .request_bytes = 12 };     /* a slice is 23.3: two reads */
    IS(1 / (d + (0.17 + 2 * (70 / 35.0) + 140 / 35.0) / 4));
    /* The disk is so fast that what is there takes longer: 30 + 70 bytes, 30 bytes. */
    m.disk.curve[0].at[0].bytes_s = m.disk.curve[0].at[1].bytes_s = 1e9;
    IS(1 / (d + (0.17 + 2 * 0.1 + 0.03) / 4));
    /* Dense weights that come from disk: they and one missing expert a token. */
    plan.n_dense_layers = 0;
    m.disk.curve[0].at[0].bytes_s = m.disk.curve[0].at[1].bytes_s = 35;
    IS(1 / ((DENSE + 70) / 35.0));
    plan.n_dense_layers = 1;
    m.disk.curve[0].at[0].bytes_s = 10;
    IS(1 / ((100 + 50 + 32 + 30 + 70) / 35.0));
    /* Nothing missing: what one token takes in RAM. */
    plan.n_dense_layers = 2;
    misses = (sl_misses){ .turns = { { 5 } } };
    IS(sl_bound_decode(&shape, steps, n_steps, 1, &r));
    misses = (sl_misses){ .turns = { { 0, 1 } } };      /* a disk that nobody measured: no bound */
    m.disk.n_curves = 0;
    IS(1 / (d + 0.1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_row), cmocka_unit_test(many_rows), cmocka_unit_test(slowest_counts),
        cmocka_unit_test(tokens_per_second), cmocka_unit_test(causal),
        cmocka_unit_test(both_at_once),
    };
    return cmocka_run_group_tests(tests, make_steps, NULL);
}
