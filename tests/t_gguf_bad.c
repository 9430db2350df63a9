/* tests/t_gguf_bad.c - files that are not what they say: hand-made ones, each with the status and a
 * word of the message it must get; then 200 truncations and 2,000 byte flips (seeded) of a small
 * GGUF, through the reader and the vocabulary, and of a tiny model, through opening and a pass of
 * four tokens (t_model_bad.c has the other architectures). Run under ASan and UBSan by tools/check.
 * Every case must end within five seconds and give all memory back. */
#include "tests/gguf_writer.h"
#include "runtime/sluice.h"
#include "tests/t.h"

#include <sys/stat.h>
#include <time.h>

#define SECONDS_ALLOWED 5.0
#define BAD_BYTES_ALLOWED (4u << 20)    /* that a hostile count may make the reader take */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- hand-made files ---- */

static const uint64_t one_row[] = { 32 };

static void start(gw *w) { gw_begin(w, 3); }
static void set_u64(gw *w, size_t at, uint64_t v) { memcpy(w->p + at, &v, 8); }

static void empty(gw *w) { start(w), w->n = 0; }
static void short_file(gw *w) { start(w), w->n = 23; }
static void other_magic(gw *w) { start(w), memcpy(w->p, "ggjt", 4); }
static void version_1(gw *w) { gw_begin(w, 1); }
static void version_4(gw *w) { gw_begin(w, 4); }
static void big_endian(gw *w) { gw_begin(w, 0x03000000); }
static void keys_2_60(gw *w) { start(w), set_u64(w, GW_N_KV, (uint64_t)1 << 60); }
static void keys_one_too_many(gw *w)
{
    start(w);
    gw_kv_str(w, "a", "long enough for two");
    set_u64(w, GW_N_KV, 2);
}
static void tensors_2_60(gw *w) { start(w), set_u64(w, GW_N_TENSORS, (uint64_t)1 << 60); }
static void key_too_long(gw *w)
{
    start(w);
    gw_kv_u32(w, "a", 1);
    set_u64(w, 24, (uint64_t)1 << 63);
}
static void key_of_70000(gw *w)
{
    char *name = calloc(1, 70001);
    start(w);
    memset(name, 'x', 70000);
    gw_kv_u32(w, name, 1);
    free(name);
}
static void key_empty(gw *w) { start(w), gw_kv_u32(w, "", 1); }
static void key_twice(gw *w) { start(w), gw_kv_u32(w, "a", 1), gw_kv_u32(w, "a", 2); }
static void value_type_13(gw *w) { start(w), gw_kv(w, "a", 13), gw_put_u64(w, 0); }
static void value_cut(gw *w) { start(w), gw_kv_u32(w, "a", 1), w->n -= 1; }
static void string_too_long(gw *w) { start(w), gw_kv(w, "a", 8), gw_put_u64(w, UINT64_MAX); }
static void array_overflows(gw *w) { start(w), gw_kv_array(w, "a", 10, (uint64_t)1 << 61); }
static void array_of_2_40(gw *w) { start(w), gw_kv_array(w, "a", 0, (uint64_t)1 << 40); }
static void strings_2_59(gw *w) { start(w), gw_kv_array(w, "a", 8, (uint64_t)1 << 59); }
static void strings_cut(gw *w)
{
    start(w);
    gw_kv_array(w, "a", 8, 3);
    for (int i = 0; i < 2; i++) gw_put_str(w, "abcdefghi");
}
static void array_of_arrays(gw *w)
{
    start(w);
    gw_kv_array(w, "a", 9, 1);
    gw_put_u32(w, 0);
    gw_put_u64(w, 0);
}
static void array_type_99(gw *w) { start(w), gw_kv_array(w, "a", 99, 1), gw_put_u64(w, 0); }
static void bool_2(gw *w) { start(w), gw_kv(w, "a", 7), gw_put_u8(w, 2); }
static void bools_255(gw *w) { start(w), gw_kv_array(w, "a", 7, 2), gw_put_u16(w, 0xff00); }
static void alignment_0(gw *w) { start(w), gw_kv_u32(w, "general.alignment", 0); }
static void alignment_24(gw *w) { start(w), gw_kv_u32(w, "general.alignment", 24); }
static void alignment_2_31(gw *w) { start(w), gw_kv_u32(w, "general.alignment", 1u << 31); }
static void alignment_text(gw *w) { start(w), gw_kv_str(w, "general.alignment", "32"); }

/* One tensor "t" of these dimensions, and 4096 bytes of data. */
static void tensor(gw *w, uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset)
{
    start(w);
    gw_tensor(w, "t", n_dims, ne, type, offset);
    gw_data(w, 32, 4096);
}
static void dims_0(gw *w) { tensor(w, 0, one_row, 0, 0); }
static void dims_5(gw *w) { tensor(w, 5, (uint64_t[]){ 1, 1, 1, 1, 1 }, 0, 0); }
static void dims_many(gw *w) { tensor(w, 1, one_row, 0, 0), memset(w->p + 24 + 9, 0x7f, 4); }
static void size_zero(gw *w) { tensor(w, 2, (uint64_t[]){ 32, 0 }, 0, 0); }
static void size_negative(gw *w) { tensor(w, 1, (uint64_t[]){ UINT64_MAX }, 0, 0); }
static void size_overflows(gw *w)
{
    tensor(w, 3, (uint64_t[]){ 1u << 31, 1u << 31, 1u << 31 }, 0, 0);
}
static void bytes_overflow(gw *w) { tensor(w, 2, (uint64_t[]){ (uint64_t)1 << 62, 2 }, 27, 0); }
static void row_no_block(gw *w) { tensor(w, 1, (uint64_t[]){ 33 }, 8, 0); }
static void type_removed(gw *w) { tensor(w, 1, one_row, 4, 0); }
static void type_200(gw *w) { tensor(w, 1, one_row, 200, 0); }
static void offset_odd(gw *w) { tensor(w, 1, one_row, 0, 33); }
static void offset_beyond(gw *w) { tensor(w, 1, one_row, 0, 4096); }
static void offset_overflows(gw *w) { tensor(w, 1, one_row, 0, UINT64_MAX - 31); }
static void data_cut(gw *w) { tensor(w, 1, one_row, 0, 4096 - 128), w->n -= 1; }
static void tensor_twice(gw *w)
{
    start(w);
    for (int i = 0; i < 2; i++) gw_vector(w, "t", 1, 0);
    gw_data(w, 32, 32);
}
static void tensor_no_name(gw *w) { start(w), gw_vector(w, "", 1, 0), gw_data(w, 32, 32); }
static void tensor_table_cut(gw *w)
{
    start(w), gw_vector(w, "a.rather.long.name", 1, 0), w->n -= 9;
}
static void split_text(gw *w) { start(w), gw_kv_str(w, "split.count", "2"); }
static void split_no_number(gw *w) { start(w), gw_kv_u16(w, "split.count", 2); }
static void split_other_name(gw *w)
{
    start(w);
    gw_kv_u16(w, "split.no", 0);
    gw_kv_u16(w, "split.count", 2);
}
static void ugly_name(gw *w) { start(w), gw_kv(w, "a\x1b[31m\n\xff", 13), gw_put_u64(w, 0); }

struct bad { const char *name; void (*make)(gw *w); sl_status want; const char *word; };
#define F(name, word) { #name, name, SL_E_FORMAT, word }
#define U(name, word) { #name, name, SL_E_UNSUPPORTED, word }
static const struct bad bad_files[] = {
    F(empty, "0 bytes"),
    F(short_file, "too short"),
    F(other_magic, "expected \"GGUF\""),
    U(version_1, "version 1"),
    U(version_4, "version 4"),
    U(big_endian, "big-endian"),
    F(keys_2_60, "1152921504606846976 keys"),
    F(keys_one_too_many, "end of the file"),
    F(tensors_2_60, "1152921504606846976 tensors"),
    F(key_too_long, "end of the file"),
    F(key_of_70000, "70000 bytes"),
    F(key_empty, "0 bytes"),
    F(key_twice, "duplicate key"),
    F(value_type_13, "key 0 \"a\": value type 13"),
    F(value_cut, "expected 4 more bytes"),
    F(string_too_long, "end of the file"),
    F(array_overflows, "overflows"),
    F(array_of_2_40, "expected 1099511627776 more bytes"),
    F(strings_2_59, "strings"),
    F(strings_cut, "end of the file"),
    U(array_of_arrays, "array of arrays"),
    F(array_type_99, "type 99"),
    F(bool_2, "bool 2"),
    F(bools_255, "bool 255"),
    F(alignment_0, "general.alignment is 0"),
    F(alignment_24, "power of two"),
    F(alignment_2_31, "2147483648"),
    F(alignment_text, "no unsigned number"),
    F(dims_0, "tensor 0 \"t\": 0 dimensions"),
    F(dims_5, "5 dimensions"),
    F(dims_many, "2139062143"),
    F(size_zero, "zero or overflows"),
    F(size_negative, "zero or overflows"),
    F(size_overflows, "zero or overflows"),
    F(bytes_overflow, "overflow"),
    F(row_no_block, "multiple of 32 for Q8_0"),
    U(type_removed, "type 4"),
    U(type_200, "type 200"),
    F(offset_odd, "multiple of the alignment"),
    F(offset_beyond, "beyond the file"),
    F(offset_overflows, "beyond the file"),
    F(data_cut, "beyond the file"),
    F(tensor_twice, "duplicate tensor \"t\""),
    F(tensor_no_name, "0 bytes"),
    F(tensor_table_cut, "end of the file"),
    F(split_text, "split.count"),
    F(split_no_number, "split.no"),
    F(split_other_name, "-00001-of-00002.gguf"),
    F(ugly_name, "a?[31m??"),
};

static void check_freed(sl_ctx *ctx, const char *name, uint64_t allowed)
{
    sl_mem_report r;
    sl_mem_get(ctx, &r);
    T_CHECK(r.total == 0 && r.bytes[SL_ACC_MAPPED] == 0, "%s: %llu bytes stay", name,
            (unsigned long long)r.total);
    T_CHECK(r.total_peak <= allowed, "%s took %llu bytes", name, (unsigned long long)r.total_peak);
}

static void check_bad(const struct bad *b)
{
    gw w;
    sl_gguf *g = NULL;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    b->make(&w);
    double t0 = now_s();
    sl_status st = gw_open(ctx, &w, &g);
    double took = now_s() - t0;
    T_CHECK(st == b->want && !g, "%s: %s (%s)", b->name, sl_status_name(st), sl_error(ctx));
    T_CHECK(strstr(sl_error(ctx), b->word), "%s: \"%s\" lacks \"%s\"", b->name, sl_error(ctx),
            b->word);
    T_CHECK(strstr(sl_error(ctx), "memory.gguf"), "%s: no path in \"%s\"", b->name, sl_error(ctx));
    T_CHECK(!strchr(sl_error(ctx), '\n') && took < SECONDS_ALLOWED, "%s: %.1f s, %s", b->name, took,
            sl_error(ctx));
    sl_gguf_close(&g);
    check_freed(ctx, b->name, BAD_BYTES_ALLOWED);
    sl_ctx_destroy(&ctx);
    gw_free(&w);
}

/* A hostile count backed by a large (sparse) file passes the first check: it must still be
 * bounded. */
static void check_sparse(void)
{
    gw w;
    sl_gguf *g = NULL;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    int fd = memfd_create("sparse", MFD_CLOEXEC);
    gw_begin(&w, 3);
    gw_kv_array(&w, "a", 8, (uint64_t)1 << 36);
    T_NEED(write(fd, w.p, w.n) == (ssize_t)w.n && !ftruncate(fd, (off_t)1 << 40), "sparse file");
    double t0 = now_s();
    T_CHECK(gguf_open_fd(ctx, fd, "sparse.gguf", &g) == SL_E_FORMAT, "sparse: %s", sl_error(ctx));
    T_CHECK(now_s() - t0 < SECONDS_ALLOWED, "sparse: %.1f s", now_s() - t0);
    check_freed(ctx, "sparse", BAD_BYTES_ALLOWED);
    sl_ctx_destroy(&ctx);
    gw_free(&w);
}

static void check_no_files(void)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_gguf *g = NULL;
    char fifo[] = "/tmp/sl-fifo-XXXXXX";
    T_NEED(mkdtemp(fifo), "scratch folder");
    T_CHECK(sl_gguf_open(ctx, fifo, &g) == SL_E_IO && strstr(sl_error(ctx), "regular file"),
            "folder");
    T_NEED(!rmdir(fifo) && !mkfifo(fifo, 0600), "fifo");
    T_CHECK(sl_gguf_open(ctx, fifo, &g) == SL_E_IO && strstr(sl_error(ctx), "regular file"),
            "fifo");
    unlink(fifo);
    T_CHECK(sl_gguf_open(ctx, fifo, &g) == SL_E_IO && strstr(sl_error(ctx), "No such file"),
            "no file");
    T_CHECK(sl_gguf_open(ctx, "/dev/null", &g) == SL_E_IO, "device");
    check_freed(ctx, "no files", BAD_BYTES_ALLOWED);
    sl_ctx_destroy(&ctx);
}

/* ---- truncations and flips ---- */

typedef void (*try_fn)(const unsigned char *p, size_t n, const char *what, unsigned i);

/* The reader and the vocabulary: whatever comes, a status. */
static void try_reader(const unsigned char *p, size_t n, const char *what, unsigned i)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_gguf *g = NULL;
    sl_vocab *v = NULL;
    int32_t *ids = NULL;
    uint32_t n_ids = 0;
    sl_status st = gw_open_bytes(ctx, p, n, &g);
    T_CHECK((st == SL_OK) == (g != NULL) && (st == SL_OK || sl_error(ctx)[0]), "%s %u: %d", what, i,
            st);
    if (g) {
        T_CHECK(gw_touch(g) > 0, "%s %u", what, i);
        st = sl_vocab_create(ctx, g, &v);
    }
    if (v && sl_vocab_encode(ctx, v, "the inner <|end|>", 17, true, true, &ids, &n_ids) == SL_OK)
        free(ids);
    sl_vocab_destroy(&v);
    sl_gguf_close(&g);
    check_freed(ctx, what, UINT64_MAX);
    sl_ctx_destroy(&ctx);
}

static void run_pass(sl_ctx *ctx, sl_model *m)
{
    sl_plan_params params = sl_plan_defaults();
    sl_engine *e = NULL;
    sl_plan plan;
    sl_seq seq;
    static const int32_t tokens[] = { 1, 2, 3, 4 };
    params.n_ctx = 32, params.max_rows = 4, params.n_threads = 1, params.ram_bytes = 256 << 20;
    if (sl_plan_make(ctx, sl_model_shape(m), &params, &plan) != SL_OK) return;
    if (sl_engine_open(ctx, m, &plan, &e) != SL_OK) return;
    sl_request r = { .tokens = tokens, .n_tokens = 4, .want_logits = true };
    sl_status st = sl_engine_submit(e, &r, &seq);
    while (st == SL_OK && sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        st = sl_engine_step(e, &ev, &n);
    }
    sl_engine_close(&e);
}

/* A model: opened, mapped, four tokens through all layers. */
static void try_model(const unsigned char *p, size_t n, const char *what, unsigned i)
{
    char path[64];
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_model *m = NULL;
    int fd = memfd_create("model", MFD_CLOEXEC);
    T_NEED(fd >= 0 && write(fd, p, n) == (ssize_t)n, "%s %u: memory file", what, i);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    sl_status st = sl_model_open(ctx, path, &m);
    T_CHECK((st == SL_OK) == (m != NULL) && (st == SL_OK || sl_error(ctx)[0]), "%s %u: %d", what, i,
            st);
    if (m) run_pass(ctx, m);
    sl_model_close(&m);
    close(fd);
    check_freed(ctx, what, UINT64_MAX);
    sl_ctx_destroy(&ctx);
}

static void timed(try_fn try, const unsigned char *p, size_t n, const char *what, unsigned i)
{
    double t0 = now_s();
    try(p, n, what, i);
    T_CHECK(now_s() - t0 < SECONDS_ALLOWED, "%s %u: %.1f s", what, i, now_s() - t0);
}

static void truncations(try_fn try, const unsigned char *p, size_t n, unsigned times)
{
    for (unsigned i = 0; i < times; i++) timed(try, p, n * i / times, "truncation", i);
}

/* Three of four flips hit the first n_head bytes, where the header is. */
static void flips(try_fn try, unsigned char *p, size_t n, size_t n_head, unsigned times)
{
    for (unsigned i = 0; i < times; i++) {
        size_t at = t_below((uint32_t)(t_below(4) ? n_head : n));
        unsigned char was = p[at];
        p[at] ^= (unsigned char)(1 + t_below(255));
        timed(try, p, n, "flip", i);
        p[at] = was;
    }
}

/* Every value type, a byte-level BPE vocabulary, three tensors: 2 kB that are nearly all header. */
static void small_gguf(gw *w)
{
    static const char *const tokens[] = {
        "t", "h", "e", "th", "the", "i", "n", "in", "\xc4\xa0", "<|end|>"
    };
    static const char *const merges[] = { "t h", "th e", "i n" };
    gw_begin(w, 3);
    gw_kv_str(w, "general.architecture", "llama");
    gw_kv_u32(w, "general.alignment", 64);
    gw_kv_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gw_kv(w, "u64", 10), gw_put_u64(w, 5);
    gw_kv(w, "bool", 7), gw_put_u8(w, 1);
    gw_kv_str(w, "tokenizer.ggml.model", "gpt2");
    gw_kv_str(w, "tokenizer.ggml.pre", "gpt-2");
    gw_kv_strs(w, "tokenizer.ggml.tokens", tokens, SL_LEN(tokens));
    gw_kv_strs(w, "tokenizer.ggml.merges", merges, SL_LEN(merges));
    gw_kv_array(w, "tokenizer.ggml.token_type", 5, SL_LEN(tokens));
    for (size_t i = 0; i < SL_LEN(tokens); i++) gw_put_u32(w, i == SL_LEN(tokens) - 1 ? 3 : 1);
    gw_kv_array(w, "tokenizer.ggml.scores", 6, SL_LEN(tokens));
    for (size_t i = 0; i < SL_LEN(tokens); i++) gw_put_f32(w, -(float)i);
    gw_kv_u32(w, "tokenizer.ggml.eos_token_id", 9);
    gw_kv(w, "tokenizer.ggml.add_bos_token", 7), gw_put_u8(w, 0);
    gw_kv_u16(w, "split.no", 0);
    gw_kv_u16(w, "split.count", 1);
    gw_kv_i32(w, "split.tensors.count", 3);
    gw_vector(w, "output_norm.weight", 16, 0);
    gw_tensor(w, "token_embd.weight", 2, (uint64_t[]){ 32, 10 }, 8, 64);
    gw_tensor(w, "blk.0.ffn_up_exps.weight", 3, (uint64_t[]){ 32, 2, 2 }, 2, 448);
    gw_data(w, 64, 448 + 4 * 18);
}

static void check_reader(void)
{
    gw w;
    small_gguf(&w);
    try_reader(w.p, w.n, "whole", 0);
    truncations(try_reader, w.p, w.n, 200);
    flips(try_reader, w.p, w.n, w.n, 2000);
    gw_free(&w);
}

static void check_model(const char *path, unsigned n_cuts, unsigned n_flips)
{
    struct stat info;
    FILE *f = fopen(path, "rb");
    T_NEED(f && !fstat(fileno(f), &info), "open %s", path);
    size_t n = (size_t)info.st_size;
    unsigned char *p = malloc(n);
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_model *m = NULL;
    T_NEED(p && fread(p, 1, n, f) == n, "read %s", path);
    fclose(f);
    T_NEED(sl_model_open(ctx, path, &m) == SL_OK, "%s", sl_error(ctx));
    size_t n_head = (size_t)sl_gguf_tensor(sl_model_gguf(m), 0)->offset;
    sl_model_close(&m);
    sl_ctx_destroy(&ctx);
    try_model(p, n, "whole", 0);
    truncations(try_model, p, n, n_cuts);
    flips(try_model, p, n, n_head, n_flips);
    free(p);
}

int main(void)
{
    t_begin();
    for (size_t i = 0; i < SL_LEN(bad_files); i++) check_bad(&bad_files[i]);
    check_sparse();
    check_no_files();
    check_reader();
    check_model("tests/golden/arch/qwen3moe.gguf", 200, 2000);
    return t_end();
}
