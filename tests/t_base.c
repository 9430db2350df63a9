/* tests/t_base.c - error text, log, memory accounts and their limit, byte sizes, checked sums. */
#include "runtime/base/sl_base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct heard {
    int n;
    sl_level level;
    char msg[2048];
};

static void listen(void *user, sl_level level, const char *msg)
{
    struct heard *h = user;
    h->n++;
    h->level = level;
    strncpy(h->msg, msg, sizeof h->msg - 1);
}

static int setup(void **state)
{
    *state = sl_ctx_create(NULL, NULL);
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    sl_ctx *ctx = *state;
    sl_ctx_destroy(&ctx);
    assert_null(ctx);
    sl_ctx_destroy(&ctx);   /* NULL is fine */
    return 0;
}

static void error_text_is_one_bounded_line(void **state)
{
    sl_ctx *ctx = *state;
    assert_string_equal(sl_error(ctx), "");
    assert_int_equal(sl_fail(ctx, SL_E_IO, "read %s: %d of %d", "a.gguf", 3, 4), SL_E_IO);
    assert_string_equal(sl_error(ctx), "read a.gguf: 3 of 4");
    char *longer = malloc(10001);
    memset(longer, 'x', 10000);
    longer[10000] = 0;
    assert_int_equal(sl_fail(ctx, SL_E_ARG, "%s", longer), SL_E_ARG);
    assert_true(strlen(sl_error(ctx)) < 10000 && strlen(sl_error(ctx)) > 500);
    free(longer);
}

static void every_status_and_account_has_a_name(void **state)
{
    (void)state;
    for (int st = SL_E_DEVICE; st <= SL_OK; st++)
        assert_string_not_equal(sl_status_name((sl_status)st), "unknown status");
    for (int a = 0; a < SL_N_ACCOUNTS; a++)
        assert_true(strlen(sl_account_name((sl_account)a)) > 0);
}

static void log_reaches_the_callback(void **state)
{
    struct heard h = { 0 };
    sl_ctx *ctx = sl_ctx_create(listen, &h);
    assert_non_null(ctx);
    sl_log(ctx, SL_WARN, "%d of %s", 7, "nine");
    assert_int_equal(h.n, 1);
    assert_int_equal(h.level, SL_WARN);
    assert_string_equal(h.msg, "7 of nine");
    sl_ctx_destroy(&ctx);
    sl_log(*state, SL_ERROR, "nobody listens");     /* silent, no crash */
}

static void memory_is_zeroed_aligned_and_charged(void **state)
{
    static const size_t sizes[] = { 0, 1, 63, 64, 4097, ((size_t)2 << 20) - 1, (size_t)2 << 20,
                                    ((size_t)5 << 20) + 3 };
    sl_ctx *ctx = *state;
    sl_mem_report r;
    uint64_t sum = 0;
    void *p[SL_LEN(sizes)];
    for (size_t i = 0; i < SL_LEN(sizes); i++) {
        assert_int_equal(sl_mem_alloc(ctx, SL_ACC_KV, sizes[i], &p[i]), SL_OK);
        size_t align = sizes[i] >= (size_t)2 << 20 ? (size_t)2 << 20 : 64;
        assert_int_equal((uintptr_t)p[i] % align, 0);
        const unsigned char *b = p[i];
        for (size_t k = 0; k < sizes[i]; k++) if (b[k]) fail_msg("byte %zu is not zero", k);
        memset(p[i], 0xa5, sizes[i]);
        sum += sizes[i];
        sl_mem_get(ctx, &r);
        assert_int_equal(r.bytes[SL_ACC_KV], sum);
        assert_int_equal(r.total, sum);
        assert_int_equal(r.n_allocs, i + 1);
    }
    for (size_t i = 0; i < SL_LEN(sizes); i++) sl_mem_free(ctx, p[i]);
    sl_mem_free(ctx, NULL);
    sl_mem_get(ctx, &r);
    assert_int_equal(r.total, 0);
    assert_int_equal(r.bytes[SL_ACC_KV], 0);
    assert_int_equal(r.peak[SL_ACC_KV], sum);
    assert_int_equal(r.total_peak, sum);
}

static void a_limit_holds_and_leaves_no_trace(void **state)
{
    sl_ctx *ctx = *state;
    sl_mem_report r;
    void *a = NULL, *b = NULL, *mark = &r;
    sl_mem_set_limit(ctx, 1000);
    assert_int_equal(sl_mem_alloc(ctx, SL_ACC_DENSE, 600, &a), SL_OK);
    b = mark;
    assert_int_equal(sl_mem_alloc(ctx, SL_ACC_KV, 401, &b), SL_E_NOMEM);
    assert_ptr_equal(b, mark);          /* no output written on failure */
    assert_non_null(strstr(sl_error(ctx), "kv"));
    assert_non_null(strstr(sl_error(ctx), "401"));
    assert_int_equal(sl_mem_alloc(ctx, SL_ACC_KV, SIZE_MAX, &b), SL_E_NOMEM);
    assert_int_equal(sl_mem_alloc(ctx, SL_ACC_KV, SIZE_MAX - 100, &b), SL_E_NOMEM);
    sl_mem_get(ctx, &r);
    assert_int_equal(r.total, 600);
    assert_int_equal(r.limit, 1000);
    assert_int_equal(r.n_allocs, 1);
    assert_int_equal(sl_mem_alloc(ctx, SL_ACC_KV, 400, &b), SL_OK);
    sl_mem_free(ctx, a);
    sl_mem_free(ctx, b);
    sl_mem_set_limit(ctx, 0);
    assert_int_equal(sl_mem_alloc(ctx, SL_ACC_KV, 2000, &b), SL_OK);
    sl_mem_free(ctx, b);
    assert_int_equal(sl_mem_alloc(ctx, SL_ACC_KV, SIZE_MAX / 2 - 4096, &b), SL_E_NOMEM);
}

static void mapped_bytes_stand_beside_the_total(void **state)
{
    sl_ctx *ctx = *state;
    sl_mem_report r;
    sl_mem_charge(ctx, SL_ACC_MAPPED, 5000);
    sl_mem_charge(ctx, SL_ACC_TABLES, 70);
    sl_mem_get(ctx, &r);
    assert_int_equal(r.bytes[SL_ACC_MAPPED], 5000);
    assert_int_equal(r.total, 70);
    sl_mem_charge(ctx, SL_ACC_MAPPED, -5000);
    sl_mem_charge(ctx, SL_ACC_TABLES, -70);
    sl_mem_get(ctx, &r);
    assert_int_equal(r.bytes[SL_ACC_MAPPED], 0);
    assert_int_equal(r.peak[SL_ACC_MAPPED], 5000);
    assert_int_equal(r.total_peak, 70);
}

static void byte_sizes_as_people_write_them(void **state)
{
    static const struct { const char *text; uint64_t bytes; } good[] = {
        { "0", 0 }, { "123", 123 }, { "1K", 1024 }, { "1k", 1024 }, { "1.5K", 1536 },
        { "512M", 512ull << 20 }, { "8G", 8ull << 30 }, { "8g", 8ull << 30 },
        { "8GiB", 8ull << 30 }, { "8GB", 8ull << 30 }, { "2T", 2ull << 40 }, { "7B", 7 },
    };
    static const char *const bad[] = {
        "", " ", "G", "-1", "+1", " 1", "1 G", "1Q", "8GG", "8G!", "nan", "inf", "0x10", "1e400",
        "99999999T", ".5G", "auto", "8Gi B",
    };
    sl_ctx *ctx = *state;
    for (size_t i = 0; i < SL_LEN(good); i++) {
        uint64_t v = 77;
        if (sl_parse_bytes(ctx, good[i].text, &v) != SL_OK) fail_msg("%s", sl_error(ctx));
        assert_int_equal(v, good[i].bytes);
    }
    for (size_t i = 0; i < SL_LEN(bad); i++) {
        uint64_t v = 77;
        if (sl_parse_bytes(ctx, bad[i], &v) != SL_E_ARG) fail_msg("\"%s\" was taken", bad[i]);
        assert_int_equal(v, 77);
    }
}

static void sizes_do_not_wrap(void **state)
{
    (void)state;
    uint64_t v = 5;
    assert_true(sl_mul_size(1ull << 32, (1ull << 32) - 1, &v));
    assert_true(v == (1ull << 32) * ((1ull << 32) - 1));
    v = 5;
    assert_false(sl_mul_size(1ull << 32, 1ull << 32, &v));
    assert_int_equal(v, 5);
    assert_true(sl_mul_size(0, UINT64_MAX, &v));
    assert_int_equal(v, 0);
    assert_true(sl_add_size(UINT64_MAX - 1, 1, &v));
    assert_true(v == UINT64_MAX);
    assert_false(sl_add_size(UINT64_MAX, 1, &v));
    assert_true(v == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(error_text_is_one_bounded_line, setup, teardown),
        cmocka_unit_test(every_status_and_account_has_a_name),
        cmocka_unit_test_setup_teardown(log_reaches_the_callback, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_is_zeroed_aligned_and_charged, setup, teardown),
        cmocka_unit_test_setup_teardown(a_limit_holds_and_leaves_no_trace, setup, teardown),
        cmocka_unit_test_setup_teardown(mapped_bytes_stand_beside_the_total, setup, teardown),
        cmocka_unit_test_setup_teardown(byte_sizes_as_people_write_them, setup, teardown),
        cmocka_unit_test(sizes_do_not_wrap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
