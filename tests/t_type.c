/* tests/t_type.c - the table of tensor types against GGML_QUANT_SIZES of the gguf package 0.19.0,
 * printed as `for t in GGMLQuantizationType: t, t.name, *GGML_QUANT_SIZES[t]`. One number differs
 * there: Q8_1, which no file holds, has 40 bytes in the package and 36 in ggml itself, the format's
 * definition. */
#include "runtime/base/sl_type.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static const struct { uint32_t type; const char *name; uint16_t elems, bytes; } want[] = {
    { 0, "F32", 1, 4 }, { 1, "F16", 1, 2 }, { 2, "Q4_0", 32, 18 },
    { 3, "Q4_1", 32, 20 }, { 6, "Q5_0", 32, 22 }, { 7, "Q5_1", 32, 24 },
    { 8, "Q8_0", 32, 34 }, { 9, "Q8_1", 32, 36 }, { 10, "Q2_K", 256, 84 },
    { 11, "Q3_K", 256, 110 }, { 12, "Q4_K", 256, 144 }, { 13, "Q5_K", 256, 176 },
    { 14, "Q6_K", 256, 210 }, { 15, "Q8_K", 256, 292 }, { 16, "IQ2_XXS", 256, 66 },
    { 17, "IQ2_XS", 256, 74 }, { 18, "IQ3_XXS", 256, 98 }, { 19, "IQ1_S", 256, 50 },
    { 20, "IQ4_NL", 32, 18 }, { 21, "IQ3_S", 256, 110 }, { 22, "IQ2_S", 256, 82 },
    { 23, "IQ4_XS", 256, 136 }, { 24, "I8", 1, 1 }, { 25, "I16", 1, 2 },
    { 26, "I32", 1, 4 }, { 27, "I64", 1, 8 }, { 28, "F64", 1, 8 },
    { 29, "IQ1_M", 256, 56 }, { 30, "BF16", 1, 2 }, { 34, "TQ1_0", 256, 54 },
    { 35, "TQ2_0", 256, 66 }, { 39, "MXFP4", 32, 17 }, { 40, "NVFP4", 64, 36 },
    { 41, "Q1_0", 128, 18 },
};

static void table_is_the_gguf_package_s(void **state)
{
    (void)state;
    for (size_t i = 0; i < SL_LEN(want); i++) {
        const sl_type_info *t = sl_type_get(want[i].type);
        assert_non_null(t->name);
        assert_string_equal(t->name, want[i].name);
        assert_int_equal(t->block_elems, want[i].elems);
        assert_int_equal(t->block_bytes, want[i].bytes);
    }
}

static void no_other_type_is_known(void **state)
{
    (void)state;
    for (uint32_t type = 0, i = 0; type < 300; type++) {
        if (i < SL_LEN(want) && want[i].type == type) {
            i++;
            continue;
        }
        assert_null(sl_type_get(type)->name);
        assert_int_equal(sl_type_get(type)->block_elems, 0);
        assert_false(sl_type_get(type)->matmul);
    }
    assert_null(sl_type_get(UINT32_MAX)->name);
}

static void row_bytes(void **state)
{
    (void)state;
    uint64_t b = 7;
    assert_true(sl_type_row_bytes(SL_Q4_K, 1024, &b));
    assert_true(b == 4 * 144);
    assert_true(sl_type_row_bytes(SL_F32, 0, &b));
    assert_true(b == 0);
    b = 7;
    assert_false(sl_type_row_bytes(SL_Q4_K, 1000, &b));             /* no multiple of the block */
    assert_false(sl_type_row_bytes(SL_F64, UINT64_MAX / 4, &b));    /* overflows */
    assert_false(sl_type_row_bytes(4, 32, &b));                     /* no such type */
    assert_false(sl_type_row_bytes(UINT32_MAX, 32, &b));
    assert_true(b == 7);
}

static void names(void **state)
{
    (void)state;
    sl_type t = SL_I8;
    assert_true(sl_type_from_name("q4_k", &t) && t == SL_Q4_K);
    assert_true(sl_type_from_name("BF16", &t) && t == SL_BF16);
    for (size_t i = 0; i < SL_LEN(want); i++)
        assert_true(sl_type_from_name(want[i].name, &t) && t == want[i].type);
    t = SL_I8;
    assert_false(sl_type_from_name("Q4_K_M", &t));
    assert_false(sl_type_from_name("", &t));
    assert_true(t == SL_I8);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_the_gguf_package_s),
        cmocka_unit_test(no_other_type_is_known),
        cmocka_unit_test(row_bytes),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
