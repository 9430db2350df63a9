/* tests/t_store.c - mapped and copied slices of files, and files that are not what they were. */
#include "offload/sl_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { N = 300000 };    /* bytes of a file: many pages, and no multiple of one */

struct fixture {
    sl_ctx *ctx;
    sl_store *store;
    int fds[2];
    unsigned char *bytes;
};

static uint64_t account(const sl_ctx *ctx, sl_account acc)
{
    sl_mem_report r;
    sl_mem_get(ctx, &r);
    return r.bytes[acc];
}

static int setup(void **state)
{
    static const uint64_t sizes[2] = { N, N - 7 };
    static const char *const paths[2] = { "first.gguf", "second.gguf" };
    struct fixture *fx = calloc(1, sizeof *fx);
    fx->ctx = sl_ctx_create(NULL, NULL);
    fx->bytes = malloc(N);
    for (int i = 0; i < N; i++) fx->bytes[i] = (unsigned char)(i * 2654435761u >> 13);
    for (int f = 0; f < 2; f++) {
        char name[] = "/tmp/sl-store-XXXXXX";
        fx->fds[f] = mkstemp(name);
        assert_true(fx->fds[f] >= 0);
        unlink(name);
        assert_int_equal(write(fx->fds[f], fx->bytes + 7 * f, sizes[f]), sizes[f]);
    }
    assert_int_equal(sl_store_create(fx->ctx, fx->fds, sizes, paths, 2, NULL, &fx->store), SL_OK);
    *state = fx;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fx = *state;
    sl_store_destroy(&fx->store);
    assert_null(fx->store);
    assert_int_equal(account(fx->ctx, SL_ACC_MAPPED), 0);
    assert_int_equal(account(fx->ctx, SL_ACC_TABLES), 0);
    for (int f = 0; f < 2; f++) close(fx->fds[f]);
    sl_ctx_destroy(&fx->ctx);
    free(fx->bytes);
    free(fx);
    return 0;
}

static void maps_a_file_once(void **state)
{
    struct fixture *fx = *state;
    const void *p = NULL, *q = NULL;
    close(fx->fds[0]);      /* the store has its own */
    sl_slice a = { .file = 0, .offset = 0, .bytes = N };
    sl_slice b = { .file = 0, .offset = 12345, .bytes = 678 };
    assert_int_equal(sl_store_map(fx->ctx, fx->store, a, &p), SL_OK);
    assert_int_equal(sl_store_map(fx->ctx, fx->store, b, &q), SL_OK);
    assert_memory_equal(p, fx->bytes, N);
    assert_ptr_equal(q, (const char *)p + 12345);
    assert_int_equal(account(fx->ctx, SL_ACC_MAPPED), N);
    b.file = 1;
    assert_int_equal(sl_store_map(fx->ctx, fx->store, b, &q), SL_OK);
    assert_memory_equal(q, fx->bytes + 12345 + 7, 678);
    assert_int_equal(account(fx->ctx, SL_ACC_MAPPED), 2 * N - 7);
    fx->fds[0] = dup(fx->fds[1]);
}

static void reads_copies(void **state)
{
    struct fixture *fx = *state;
    unsigned char *dst = malloc(N);
    sl_slice a = { .file = 0, .offset = 3, .bytes = N - 3 };
    sl_slice none = { .file = 1, .offset = N - 7, .bytes = 0 };
    assert_int_equal(sl_store_read(fx->ctx, fx->store, a, dst), SL_OK);
    assert_memory_equal(dst, fx->bytes + 3, N - 3);
    assert_int_equal(sl_store_read(fx->ctx, fx->store, none, dst), SL_OK);
    free(dst);
}

static void refuses_what_leaves_the_file(void **state)
{
    struct fixture *fx = *state;
    static const sl_slice bad[] = {
        { .file = 2, .offset = 0, .bytes = 1 },
        { .file = 1, .offset = N - 7, .bytes = 1 },
        { .file = 0, .offset = N + 1, .bytes = 0 },
        { .file = 0, .offset = 1, .bytes = UINT64_MAX },
        { .file = 0, .offset = UINT64_MAX, .bytes = 2 },
    };
    char byte = 0;
    const void *p = &byte;
    for (size_t i = 0; i < SL_LEN(bad); i++) {
        assert_int_equal(sl_store_read(fx->ctx, fx->store, bad[i], &byte), SL_E_ARG);
        assert_int_equal(sl_store_map(fx->ctx, fx->store, bad[i], &p), SL_E_ARG);
    }
    assert_ptr_equal(p, &byte);
    sl_store *none = NULL;
    assert_int_equal(sl_store_create(fx->ctx, NULL, NULL, NULL, 0, NULL, &none), SL_E_ARG);
}

static void a_file_that_shrank_is_an_error(void **state)
{
    struct fixture *fx = *state;
    char dst[64];
    const void *p = NULL;
    sl_slice s = { .file = 1, .offset = 1000, .bytes = 64 };
    assert_int_equal(ftruncate(fx->fds[1], 1010), 0);
    assert_int_equal(sl_store_read(fx->ctx, fx->store, s, dst), SL_E_IO);
    assert_non_null(strstr(sl_error(fx->ctx), "second.gguf"));
    assert_non_null(strstr(sl_error(fx->ctx), "expected 64 bytes at offset 1000"));
    assert_int_equal(sl_store_map(fx->ctx, fx->store, s, &p), SL_E_IO);
    assert_non_null(strstr(sl_error(fx->ctx), "found 1010"));
    assert_null(p);
}

static void an_unreadable_descriptor_is_an_error(void **state)
{
    struct fixture *fx = *state;
    static const char *const path = "pipe";
    int ends[2];
    char byte;
    uint64_t size = 100;
    sl_store *s = NULL;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(sl_store_create(fx->ctx, ends, &size, &path, 1, NULL, &s), SL_OK);
    assert_int_equal(sl_store_read(fx->ctx, s, (sl_slice){ .bytes = 1 }, &byte), SL_E_IO);
    assert_non_null(strstr(sl_error(fx->ctx), "read pipe: 1 bytes at offset 0"));
    sl_store_destroy(&s);
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(sl_store_create(fx->ctx, ends, &size, &path, 1, NULL, &s), SL_E_IO);
    assert_null(s);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(maps_a_file_once, setup, teardown),
        cmocka_unit_test_setup_teardown(reads_copies, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_what_leaves_the_file, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_that_shrank_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(an_unreadable_descriptor_is_an_error, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
