/* tests/t_model_bad.c - damaged models, from the header to drawn tokens: every architecture's tiny
 * model with header bytes flipped, numbers of its metadata replaced, or its end cut off. Each
 * ends in a status with a message or in a model that runs; the sanitizers watch. */
#include "runtime/sluice.h"

#include <dirent.h>
#include <fcntl.h>
#include <time.h>

#include "tests/t.h"

#define FOLDER "tests/golden/arch"
#define FLIPS 60            /* damaged copies of each model; SL_TEST_ROUNDS multiplies them */
#define MAX_SECONDS 5.0
#define MAX_MODEL_BYTES (4u << 20)

static unsigned n_refused, n_ran;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Everything a first prompt needs. Plans are small: a hostile context length must not matter. */
static sl_status use_model(sl_ctx *ctx, const char *path)
{
    static const int32_t tokens[] = { 1, 2, 3, 0, 5 };
    sl_plan_params params = sl_plan_defaults();
    params.n_ctx = 32;
    params.max_rows = 8;
    params.n_threads = 1;
    params.ram_bytes = (uint64_t)256 << 20;
    sl_model *m = NULL;
    sl_engine *e = NULL;
    sl_plan plan;
    sl_status st = sl_model_open(ctx, path, &m);
    if (st == SL_OK) st = sl_plan_make(ctx, sl_model_shape(m), &params, &plan);
    if (st == SL_OK) st = sl_engine_open(ctx, m, &plan, &e);
    sl_seq seq = 0;
    sl_request r = { .tokens = tokens, .n_tokens = SL_LEN(tokens), .n_predict = 3,
                     .ignore_eog = true, .sampler = sl_sampler_defaults() };
    if (e) st = sl_engine_submit(e, &r, &seq);
    while (e && st == SL_OK && sl_engine_busy(e)) {
        const sl_engine_event *ev;
        uint32_t n;
        st = sl_engine_step(e, &ev, &n);
    }
    sl_engine_close(&e);
    sl_model_close(&m);
    return st;
}

static void check(const char *name, const char *path, const char *what)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    double start = seconds();
    sl_status st = use_model(ctx, path);
    double took = seconds() - start;
    sl_mem_report r;
    sl_mem_get(ctx, &r);
    T_CHECK(st == SL_OK || sl_error(ctx)[0], "%s, %s: no message", name, what);
    T_CHECK(!strchr(sl_error(ctx), '\n'), "%s, %s: %s", name, what, sl_error(ctx));
    T_CHECK(r.total == 0, "%s, %s: memory stays charged", name, what);
    T_CHECK(took < MAX_SECONDS, "%s, %s: %.1f s", name, what, took);
    n_ran += st == SL_OK;
    n_refused += st != SL_OK;
    if (getenv("SL_TEST_VERBOSE"))
        printf("%s, %s: %s: %s\n", name, what, sl_status_name(st), sl_error(ctx));
    sl_ctx_destroy(&ctx);
}

/* The damaged file lies in memory and is opened by name; only what differs is written each time. */
static int tmp_fd;
static char tmp[64];

static void write_file(const unsigned char *bytes, size_t n, size_t file_bytes)
{
    T_NEED(ftruncate(tmp_fd, (off_t)file_bytes) == 0, "ftruncate");
    T_NEED(pwrite(tmp_fd, bytes, n, 0) == (ssize_t)n, "write %s", tmp);
}

/* Where tensor data begins, near enough: the header of these models is most of what is readable. */
static size_t header_bytes(const char *path, size_t file_bytes)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_gguf *g = NULL;
    T_NEED(ctx && sl_gguf_open(ctx, path, &g) == SL_OK, "%s", path);
    uint64_t first = file_bytes;
    for (uint64_t i = 0; i < sl_gguf_n_tensors(g); i++)
        first = SL_MIN(first, sl_gguf_tensor(g, i)->offset);
    sl_gguf_close(&g);
    sl_ctx_destroy(&ctx);
    return (size_t)first;
}

/* One to four bytes of the header become something else: random, a flipped bit, or an extreme. */
static void damage(unsigned char *bytes, size_t header, char what[80])
{
    static const unsigned char extremes[] = { 0x00, 0x01, 0x7f, 0x80, 0xff };
    unsigned n = 1 + t_below(4);
    size_t at = t_below((uint32_t)header);
    for (unsigned i = 0; i < n && at + i < header; i++) {
        unsigned char *b = &bytes[at + i];
        switch (t_below(3)) {
        case 0: *b = (unsigned char)t_rand(); break;
        case 1: *b ^= (unsigned char)(1u << t_below(8)); break;
        default: *b = extremes[t_below(SL_LEN(extremes))];
        }
    }
    snprintf(what, 80, "%u bytes at %zu", n, at);
}

/* Numbers of the metadata, one by one, become each of the values that hurt. A scalar's bytes stand
 * behind key and type: u64 length, key, u32 type, value. */
static void check_numbers(const char *name, const char *path, const unsigned char *bytes, size_t n,
                          size_t header)
{
    static const uint32_t values[] = { 0, 1, 3, 7, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fc00000 };
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_gguf *g = NULL;
    unsigned char *copy = malloc(header);
    T_NEED(ctx && copy && sl_gguf_open(ctx, path, &g) == SL_OK, "%s", path);
    for (uint64_t k = 0; k < sl_gguf_n_kv(g); k++) {
        const sl_gguf_kv *kv = sl_gguf_kv_at(g, k);
        bool wide = kv->type == SL_GGUF_U32 || kv->type == SL_GGUF_I32 || kv->type == SL_GGUF_F32;
        if (!wide || kv->key.n > 60) continue;
        const unsigned char *at = memmem(bytes, header, kv->key.p, kv->key.n);
        T_NEED(at, "%s: key %.*s", path, (int)kv->key.n, kv->key.p);
        size_t pos = (size_t)(at - bytes) + kv->key.n + 4;
        for (size_t v = 0; v < SL_LEN(values); v++) {
            char what[100];
            memcpy(copy, bytes, header);
            memcpy(copy + pos, &values[v], 4);
            write_file(copy, header, n);
            snprintf(what, sizeof what, "%.*s = 0x%x", (int)kv->key.n, kv->key.p, values[v]);
            check(name, tmp, what);
        }
    }
    free(copy);
    sl_gguf_close(&g);
    sl_ctx_destroy(&ctx);
}

static void check_model(const char *name, unsigned rounds)
{
    char path[300], what[80];
    snprintf(path, sizeof path, FOLDER "/%s", name);
    unsigned char *bytes = malloc(MAX_MODEL_BYTES), *copy = malloc(MAX_MODEL_BYTES);
    FILE *f = fopen(path, "rb");
    T_NEED(bytes && copy && f, "open %s", path);
    size_t n = fread(bytes, 1, MAX_MODEL_BYTES, f), header = header_bytes(path, n);
    T_NEED(n < MAX_MODEL_BYTES, "%s is larger than the test's buffer", path);
    fclose(f);
    write_file(bytes, n, n);
    check(name, tmp, "undamaged");
    check_numbers(name, path, bytes, n, header);
    for (unsigned i = 0; i < FLIPS * rounds; i++) {
        memcpy(copy, bytes, header);
        damage(copy, header, what);
        write_file(copy, header, n);
        check(name, tmp, what);
    }
    for (unsigned i = 0; i < 4 * rounds; i++) {     /* the last: what follows the cut is gone */
        size_t cut = t_below((uint32_t)n);
        write_file(bytes, SL_MIN(cut, header), cut);
        snprintf(what, sizeof what, "cut at %zu", cut);
        check(name, tmp, what);
    }
    free(bytes);
    free(copy);
}

int main(void)
{
    t_begin();
    const char *rounds = getenv("SL_TEST_ROUNDS");
    tmp_fd = memfd_create("damaged", MFD_CLOEXEC);
    T_NEED(tmp_fd >= 0, "memfd_create");
    snprintf(tmp, sizeof tmp, "/proc/self/fd/%d", tmp_fd);
    struct dirent **names;
    int n = scandir(FOLDER, &names, NULL, alphasort);
    T_NEED(n > 0, "scandir " FOLDER);
    for (int i = 0; i < n; i++) {
        const char *dot = strrchr(names[i]->d_name, '.');
        if (dot && !strcmp(dot, ".gguf"))
            check_model(names[i]->d_name, rounds ? (unsigned)atoi(rounds) : 1);
        free(names[i]);
    }
    free(names);
    close(tmp_fd);
    printf("%u damaged models refused, %u ran\n", n_refused, n_ran);
    T_CHECK(n_refused && n_ran, "%u refused, %u ran", n_refused, n_ran);
    return t_end();
}
