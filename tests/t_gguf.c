/* tests/t_gguf.c - what the GGUF reader finds in right files: values, tensors, lookups, splits. */
#include "tests/gguf_writer.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
#include <sys/stat.h>
#include <cmocka.h>

struct fixture { sl_ctx *ctx; sl_gguf *g; gw w; char dir[64]; };

static int setup(void **state)
{
    struct fixture *fx = calloc(1, sizeof *fx);
    fx->ctx = sl_ctx_create(NULL, NULL);
    strcpy(fx->dir, "/tmp/sl-gguf-XXXXXX");
    assert_non_null(mkdtemp(fx->dir));
    *state = fx;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fx = *state;
    sl_mem_report r;
    char cmd[96];
    sl_gguf_close(&fx->g);
    assert_null(fx->g);
    sl_mem_get(fx->ctx, &r);
    assert_int_equal(r.total, 0);
    gw_free(&fx->w);
    sl_ctx_destroy(&fx->ctx);
    snprintf(cmd, sizeof cmd, "rm -r %s", fx->dir);
    assert_int_equal(system(cmd), 0);
    free(fx);
    return 0;
}

static void opens(struct fixture *fx)
{
    sl_status st = gw_open(fx->ctx, &fx->w, &fx->g);
    if (st != SL_OK) fail_msg("%s", sl_error(fx->ctx));
    assert_true(gw_touch(fx->g) > 0);
}

static const sl_gguf_kv *kv(const struct fixture *fx, const char *key)
{
    const sl_gguf_kv *k = sl_gguf_kv_find(fx->g, key);
    assert_non_null(k);
    assert_int_equal(k->key.n, strlen(key));
    assert_memory_equal(k->key.p, key, k->key.n);
    return k;
}

/* The largest and a negative value of each type, as the file stores them. */
static void every_scalar_type(void **state)
{
    struct fixture *fx = *state;
    gw *w = &fx->w;
    int64_t v = 0;
    uint64_t u = 0;
    double f = 0;
    bool b = false;
    sl_str s;
    gw_begin(w, 3);
    gw_kv(w, "u8", 0), gw_put_u8(w, 255);
    gw_kv(w, "i8", 1), gw_put_u8(w, 0x80);
    gw_kv(w, "u16", 2), gw_put_u16(w, 65535);
    gw_kv(w, "i16", 3), gw_put_u16(w, 0x8000);
    gw_kv(w, "u32", 4), gw_put_u32(w, UINT32_MAX);
    gw_kv(w, "i32", 5), gw_put_u32(w, 0x80000000);
    gw_kv(w, "f32", 6), gw_put_f32(w, -1.5f);
    gw_kv(w, "bool", 7), gw_put_u8(w, 1);
    gw_kv_str(w, "str", "h\xc3\xa9");
    gw_kv(w, "u64", 10), gw_put_u64(w, UINT64_MAX);
    gw_kv(w, "i64", 11), gw_put_u64(w, (uint64_t)INT64_MIN);
    gw_kv(w, "f64", 12), f = 1e300, gw_put(w, &f, 8);
    opens(fx);
    static const struct { const char *key; int64_t want; bool is_u64;
    } ints[] = {
        { "u8", 255, true },         { "i8", -128, false },       { "u16", 65535, true },
        { "i16", -32768, false },    { "u32", UINT32_MAX, true }, { "i32", INT32_MIN, false },
        { "i64", INT64_MIN, false },
    };
    for (size_t i = 0; i < SL_LEN(ints); i++) {
        assert_true(sl_gguf_get_i64(fx->g, kv(fx, ints[i].key), 0, &v));
        assert_true(v == ints[i].want);
        assert_true(sl_gguf_get_f64(fx->g, kv(fx, ints[i].key), 0, &f));
        assert_true(f == (double)ints[i].want);
        assert_int_equal(sl_gguf_get_u64(fx->g, kv(fx, ints[i].key), 0, &u), ints[i].is_u64);
        if (ints[i].is_u64) assert_true(u == (uint64_t)ints[i].want);
    }
    assert_true(sl_gguf_get_u64(fx->g, kv(fx, "u64"), 0, &u));
    assert_true(u == UINT64_MAX);
    assert_false(sl_gguf_get_i64(fx->g, kv(fx, "u64"), 0, &v));
    assert_true(sl_gguf_get_f64(fx->g, kv(fx, "u64"), 0, &f));
    assert_true(f == 0x1p64);
    assert_true(sl_gguf_get_f64(fx->g, kv(fx, "f32"), 0, &f));
    assert_true(f == -1.5);
    assert_true(sl_gguf_get_f64(fx->g, kv(fx, "f64"), 0, &f));
    assert_true(f == 1e300);
    assert_true(sl_gguf_get_bool(fx->g, kv(fx, "bool"), 0, &b));
    assert_true(b);
    assert_true(sl_gguf_get_str(fx->g, kv(fx, "str"), 0, &s));
    assert_int_equal(s.n, 3);
    assert_memory_equal(s.p, "h\xc3\xa9", 3);
}

static void questions_a_value_cannot_answer(void **state)
{
    struct fixture *fx = *state;
    gw *w = &fx->w;
    int64_t v = 7;
    uint64_t u = 7;
    double f = 7;
    bool b = true;
    sl_str s = { NULL, 7 };
    gw_begin(w, 3);
    gw_kv_str(w, "str", "1");
    gw_kv_u32(w, "u32", 1);
    gw_kv_f32(w, "f32", 1);
    gw_kv(w, "bool", 7), gw_put_u8(w, 0);
    opens(fx);
    assert_false(sl_gguf_get_u64(fx->g, kv(fx, "str"), 0, &u));
    assert_false(sl_gguf_get_f64(fx->g, kv(fx, "str"), 0, &f));
    assert_false(sl_gguf_get_bool(fx->g, kv(fx, "str"), 0, &b));
    assert_false(sl_gguf_get_str(fx->g, kv(fx, "u32"), 0, &s));
    assert_false(sl_gguf_get_bool(fx->g, kv(fx, "u32"), 0, &b));
    assert_false(sl_gguf_get_u64(fx->g, kv(fx, "f32"), 0, &u));
    assert_false(sl_gguf_get_i64(fx->g, kv(fx, "f32"), 0, &v));
    assert_false(sl_gguf_get_i64(fx->g, kv(fx, "bool"), 0, &v));
    assert_false(sl_gguf_get_u64(fx->g, kv(fx, "u32"), 1, &u));
    assert_false(sl_gguf_get_u64(fx->g, NULL, 0, &u));
    assert_false(sl_gguf_get_str(fx->g, NULL, 0, &s));
    assert_null(sl_gguf_kv_find(fx->g, "none"));
    assert_null(sl_gguf_find(fx->g, "none"));
    assert_true(v == 7 && u == 7 && f == 7 && b && s.n == 7);   /* nothing written on failure */
}

static void arrays_of_every_type(void **state)
{
    struct fixture *fx = *state;
    static const uint8_t bytes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    gw *w = &fx->w;
    gw_begin(w, 3);
    for (uint32_t t = 0; t < SL_LEN(bytes); t++) {
        char key[8];
        if (!bytes[t]) continue;
        snprintf(key, sizeof key, "t%u", t);
        gw_kv_array(w, key, t, 3);
        for (uint64_t i = 0; i < 3; i++) {
            float f = (float)i;
            double d = (double)i;
            uint64_t u = t == 7 ? i & 1 : i;
            gw_put(w, t == 6 ? (void *)&f : t == 12 ? (void *)&d : (void *)&u, bytes[t]);
        }
    }
    gw_kv_array(w, "none", 8, 0);
    opens(fx);
    for (uint32_t t = 0; t < SL_LEN(bytes); t++) {
        char key[8];
        double f = 0;
        bool b = false;
        if (!bytes[t]) continue;
        snprintf(key, sizeof key, "t%u", t);
        const sl_gguf_kv *k = kv(fx, key);
        assert_true(k->type == SL_GGUF_ARR && k->elem_type == (sl_gguf_vtype)t && k->n == 3);
        for (uint64_t i = 0; i < 3; i++) {
            if (t == 7) assert_true(sl_gguf_get_bool(fx->g, k, i, &b) && b == (i == 1));
            else assert_true(sl_gguf_get_f64(fx->g, k, i, &f) && f == (double)i);
        }
        assert_false(sl_gguf_get_f64(fx->g, k, 3, &f));
    }
    assert_int_equal(kv(fx, "none")->n, 0);
}

/* A vocabulary larger than the first read, so that the header grows while strings are indexed. */
static void strings_of_a_large_vocabulary(void **state)
{
    enum { N = 100000 };
    struct fixture *fx = *state;
    char text[24];
    sl_str s;
    gw_begin(&fx->w, 3);
    gw_kv_str(&fx->w, "first", "one");
    gw_kv_array(&fx->w, "tokens", 8, N);
    for (int i = 0; i < N; i++)
        snprintf(text, sizeof text, "%*d", i % 19, i), gw_put_str(&fx->w, text);
    gw_kv_u32(&fx->w, "last", 9);
    opens(fx);
    const sl_gguf_kv *k = kv(fx, "tokens");
    for (int i = N - 1; i >= 0; i--) {
        int n = snprintf(text, sizeof text, "%*d", i % 19, i);
        assert_true(sl_gguf_get_str(fx->g, k, (uint64_t)i, &s));
        assert_true(s.n == (size_t)n && !memcmp(s.p, text, s.n));
    }
    assert_true(sl_gguf_get_str(fx->g, kv(fx, "first"), 0, &s));
    assert_memory_equal(s.p, "one", 3);
    assert_false(sl_gguf_get_str(fx->g, k, N, &s));
}

static void tensors_and_their_places(void **state)
{
    struct fixture *fx = *state;
    static const uint64_t ne[4] = { 64, 3, 2, 5 };
    for (uint32_t version = 2; version <= 3; version++) {
        gw *w = &fx->w;
        gw_begin(w, version);
        gw_kv_u32(w, "general.alignment", 64);
        gw_vector(w, "v", 10, 0);
        gw_tensor(w, "q", 2, ne, 8, 64);        /* Q8_0: 3 rows of 2 blocks of 34 bytes */
        gw_tensor(w, "four", 4, ne, 2, 320);    /* Q4_0: 30 rows of 2 blocks of 18 bytes */
        gw_data(w, 64, 320 + 30 * 36);
        opens(fx);
        uint64_t data = fx->w.n - 320 - 30 * 36;
        assert_int_equal(sl_gguf_version(fx->g), version);
        assert_int_equal(sl_gguf_n_tensors(fx->g), 3);
        assert_int_equal(sl_gguf_file_bytes(fx->g, 0), w->n);
        const sl_tensor *t = sl_gguf_find(fx->g, "q");
        assert_ptr_equal(t, sl_gguf_tensor(fx->g, 1));
        assert_true(t->type == SL_Q8_0 && t->n_dims == 2 && t->file == 0);
        assert_true(t->ne[0] == 64 && t->ne[1] == 3 && t->ne[2] == 1 && t->ne[3] == 1);
        assert_true(t->offset == data + 64 && t->bytes == 3 * 2 * 34);
        t = sl_gguf_find(fx->g, "four");
        assert_true(t->n_dims == 4 && t->bytes == 30 * 36 && t->offset + t->bytes == w->n);
        sl_gguf_close(&fx->g);
        gw_free(w);
    }
}

static void many_names_are_found(void **state)
{
    enum { N = 5000 };
    struct fixture *fx = *state;
    char name[48];
    gw_begin(&fx->w, 3);
    for (uint32_t i = 0; i < N; i++) {
        snprintf(name, sizeof name, "key.%u", i);
        gw_kv_u32(&fx->w, name, i);
    }
    for (uint32_t i = 0; i < N; i++) {
        snprintf(name, sizeof name, "blk.%u.ffn_up.%u.weight", i / 64, i % 64);
        gw_vector(&fx->w, name, 1, 0);
    }
    gw_data(&fx->w, 32, 4);
    opens(fx);
    for (uint32_t i = 0; i < N; i++) {
        uint64_t v = 0;
        snprintf(name, sizeof name, "key.%u", i);
        assert_true(sl_gguf_get_u64(fx->g, kv(fx, name), 0, &v) && v == i);
        snprintf(name, sizeof name, "blk.%u.ffn_up.%u.weight", i / 64, i % 64);
        assert_ptr_equal(sl_gguf_find(fx->g, name), sl_gguf_tensor(fx->g, i));
        assert_null(sl_gguf_kv_find(fx->g, name));
    }
}

static void a_vocabulary_alone(void **state)
{
    struct fixture *fx = *state;
    gw_begin(&fx->w, 3);
    gw_kv_str(&fx->w, "general.architecture", "unheard-of");
    opens(fx);      /* no padding behind the header, no data */
    assert_int_equal(sl_gguf_n_tensors(fx->g), 0);
    assert_null(sl_gguf_find(fx->g, ""));
}

/* ---- splits: three shards with two tensors, none and one ---- */

static void shard_path(const struct fixture *fx, int i, char path[128])
{
    snprintf(path, 128, "%s/m-%05d-of-00003.gguf", fx->dir, i + 1);
}

static void write_shard(struct fixture *fx, int i, uint16_t no, uint16_t count, int32_t total)
{
    static const char *const names[3][2] = { { "a", "b" }, { NULL, NULL }, { "c", NULL } };
    char path[128];
    gw_begin(&fx->w, 3);
    if (!i) gw_kv_str(&fx->w, "general.architecture", "split");
    gw_kv_u16(&fx->w, "split.no", no);
    gw_kv_u16(&fx->w, "split.count", count);
    gw_kv_i32(&fx->w, "split.tensors.count", total);
    for (int t = 0; t < 2 && names[i][t]; t++)
        gw_vector(&fx->w, names[i][t], 4, (uint64_t)(32 * t));
    gw_data(&fx->w, 32, 64);
    shard_path(fx, i, path);
    assert_true(gw_save(&fx->w, path));
    gw_free(&fx->w);
}

static void write_shards(struct fixture *fx)
{
    for (int i = 0; i < 3; i++) write_shard(fx, i, (uint16_t)i, 3, 3);
}

static void split_fails(struct fixture *fx, int open_shard, sl_status want, const char *word)
{
    char path[128];
    shard_path(fx, open_shard, path);
    assert_int_equal(sl_gguf_open(fx->ctx, path, &fx->g), want);
    assert_null(fx->g);
    if (!strstr(sl_error(fx->ctx), word)) fail_msg("%s", sl_error(fx->ctx));
}

static void a_split_file_opens_whole(void **state)
{
    struct fixture *fx = *state;
    char path[128];
    write_shards(fx);
    shard_path(fx, 0, path);
    assert_int_equal(sl_gguf_open(fx->ctx, path, &fx->g), SL_OK);
    assert_int_equal(sl_gguf_n_files(fx->g), 3);
    assert_int_equal(sl_gguf_n_tensors(fx->g), 3);
    assert_int_equal(sl_gguf_find(fx->g, "b")->file, 0);
    assert_int_equal(sl_gguf_find(fx->g, "c")->file, 2);
    shard_path(fx, 2, path);
    assert_string_equal(sl_gguf_path(fx->g, 2), path);
    char byte = 0;
    assert_int_equal(pread(sl_gguf_fd(fx->g, 2), &byte, 1,
                           (off_t)sl_gguf_find(fx->g, "c")->offset + 3),
                     1);
    assert_int_equal(byte, 3);
}

static void splits_that_do_not_fit_together(void **state)
{
    struct fixture *fx = *state;
    char path[128], other[128];
    write_shards(fx);
    split_fails(fx, 1, SL_E_FORMAT, "shard 2 of 3: open the first");
    write_shard(fx, 1, 2, 3, 3);
    split_fails(fx, 0, SL_E_FORMAT, "expected shard 2 of 3 (split.no 1), found split.no 2");
    write_shard(fx, 1, 1, 4, 3);
    split_fails(fx, 0, SL_E_FORMAT, "split.count 4");
    write_shard(fx, 1, 1, 3, 3);
    write_shard(fx, 0, 0, 3, 4);
    split_fails(fx, 0, SL_E_FORMAT, "split.tensors.count is 4");
    write_shard(fx, 0, 0, 2, 3);
    split_fails(fx, 0, SL_E_FORMAT, "-00001-of-00002.gguf");
    write_shard(fx, 0, 0, 65535, 3);
    split_fails(fx, 0, SL_E_FORMAT, "-00001-of-65535.gguf");
    write_shard(fx, 0, 0, 3, 3);
    shard_path(fx, 2, path);
    assert_int_equal(unlink(path), 0);
    split_fails(fx, 0, SL_E_IO, "m-00003-of-00003.gguf");
    shard_path(fx, 0, other);
    assert_int_equal(symlink(other, path), 0);      /* a cycle */
    split_fails(fx, 0, SL_E_FORMAT, "the same file as shard");
}

static void a_name_in_two_shards(void **state)
{
    struct fixture *fx = *state;
    char path[128];
    write_shards(fx);
    gw_begin(&fx->w, 3);
    gw_kv_u16(&fx->w, "split.no", 1);
    gw_kv_u16(&fx->w, "split.count", 3);
    gw_vector(&fx->w, "a", 1, 0);
    gw_data(&fx->w, 32, 4);
    shard_path(fx, 1, path);
    assert_true(gw_save(&fx->w, path));
    gw_free(&fx->w);
    write_shard(fx, 0, 0, 3, 4);
    split_fails(fx, 0, SL_E_FORMAT, "duplicate tensor \"a\"");
}

static void one_file_may_say_that_it_is_the_only_shard(void **state)
{
    struct fixture *fx = *state;
    gw_begin(&fx->w, 3);
    gw_kv_u16(&fx->w, "split.no", 0);
    gw_kv_u16(&fx->w, "split.count", 1);
    opens(fx);
}

/* The header of a 17 GB mixture of experts: 48 layers, 579 tensors, 150,000 tokens and merges.
 * The data is a hole. Takes 5 to 12 ms warm; the promise is 0.2 s. */
static void a_17_gb_file_opens_at_once(void **state)
{
    enum { LAYERS = 48, TOKENS = 150000 };
    static const char *const parts[] = { "attn_q", "attn_k", "attn_v", "attn_output", "attn_norm",
        "ffn_norm", "attn_q_norm", "attn_k_norm", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps",
        "ffn_down_exps" };
    struct fixture *fx = *state;
    struct timespec t0, t1;
    uint64_t offset = 0, ne[3] = { 2048, 768, 128 };
    char name[64];
    gw *w = &fx->w;
    gw_begin(w, 3);
    for (int a = 0; a < 2; a++) {
        gw_kv_array(w, a ? "tokenizer.ggml.merges" : "tokenizer.ggml.tokens", 8, TOKENS);
        for (int i = 0; i < TOKENS; i++)
            snprintf(name, sizeof name, "a%d b%d", i, i), gw_put_str(w, name);
    }
    for (int l = 0; l < LAYERS; l++) {
        for (size_t p = 0; p < SL_LEN(parts); p++) {
            bool experts = p >= SL_LEN(parts) - 3;
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, parts[p]);
            gw_tensor(w, name, experts ? 3 : 1, ne, experts ? SL_Q4_K : SL_F32, offset);
            offset += experts ? ne[0] * ne[1] * ne[2] / 256 * 144 : 4 * ne[0];
        }
    }
    gw_data(w, 32, 0);
    int fd = memfd_create("17gb", MFD_CLOEXEC);
    assert_true(fd >= 0 && write(fd, w->p, w->n) == (ssize_t)w->n);
    assert_int_equal(ftruncate(fd, (off_t)(w->n + offset)), 0);
    assert_true(w->n + offset > 16000000000u);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
    assert_int_equal(gguf_open_fd(fx->ctx, fd, "17gb.gguf", &fx->g), SL_OK);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
    double s = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    print_message("a file of %.1f GB opened in %.1f ms\n", (double)(w->n + offset) / 1e9, 1e3 * s);
    assert_true(s < 2);     /* ten times the promise: sanitizers and valgrind run this, too */
    assert_non_null(sl_gguf_find(fx->g, "blk.47.ffn_down_exps.weight"));
}

static void golden_models_open(void **state)
{
    struct fixture *fx = *state;
    sl_status st = sl_gguf_open(fx->ctx, "tests/golden/arch/qwen3moe.gguf", &fx->g);
    if (st != SL_OK) fail_msg("%s", sl_error(fx->ctx));
    assert_true(gw_touch(fx->g) > 0);
    assert_int_equal(sl_gguf_find(fx->g, "blk.0.ffn_gate_exps.weight")->ne[2], 8);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    static const struct CMUnitTest tests[] = {
        T(every_scalar_type),
        T(questions_a_value_cannot_answer),
        T(arrays_of_every_type),
        T(strings_of_a_large_vocabulary),
        T(tensors_and_their_places),
        T(many_names_are_found),
        T(a_vocabulary_alone),
        T(a_split_file_opens_whole),
        T(splits_that_do_not_fit_together),
        T(a_name_in_two_shards),
        T(one_file_may_say_that_it_is_the_only_shard),
        T(golden_models_open),
        T(a_17_gb_file_opens_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
