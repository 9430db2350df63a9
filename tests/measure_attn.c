/* tests/measure_attn.c - attention of the cpu device against its bounds: keys and values over the
 * best read of memory, and FP32 operations over the peak of fma, each measured in turn with the
 * stage.
 *   measure_attn [threads [runs [isa [cpu]]]]      cpu: time on the CPUs over threads, for a busy
 * machine Shape: 32 query heads, 4 key/value heads of 128. Decode walks layers of 288 MiB together,
 * so that nothing stays in a cache. Medians. Built with the tests, not run by them. */
#include "offload/sl_device.h"
#include "tests/t.h"

#include <math.h>
#include <time.h>

enum { HEADS = 32, KV_HEADS = 4, DIM = 128, BLOCK = 32, MAX_LAYERS = 128, MAX_RUNS = 101 };
#define TOTAL ((size_t)288 << 20)

static clockid_t the_clock = CLOCK_MONOTONIC;
static uint32_t per = 1;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(the_clock, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / per;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return v[n / 2];
}

#if defined(__x86_64__)
#define PEAK_LOOP(reg) \
    uint64_t n_ = n; \
    __asm__ volatile( \
        "1:\n" \
        "vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "4\n vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "5\n" \
        "vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "6\n vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "7\n" \
        "vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "8\n vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "9\n" \
        "vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "10\n vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "11\n" \
        "vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "12\n vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "13\n" \
        "vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "14\n vfmadd231ps %%" reg "0, %%" reg "1, %%" reg "15\n" \
        "dec %0\n jnz 1b\n" \
        : "+r"(n_) : : "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
          "xmm14", "xmm15", "cc")

static void peak_512(uint64_t n) { PEAK_LOOP("zmm"); }
static void peak_256(uint64_t n) { PEAK_LOOP("ymm"); }

/* Four streams, 64 bytes of each a step. */
__attribute__((target("avx2"))) static void read_avx2(const char *p, size_t bytes)
{
    size_t q = bytes / 4 / 64 * 64;
    for (size_t i = 0; i < q; i += 64)
        __asm__ volatile(
            "vmovdqa (%0), %%ymm0\n vmovdqa 32(%0), %%ymm1\n"
            "vmovdqa (%1), %%ymm0\n vmovdqa 32(%1), %%ymm1\n"
            "vmovdqa (%2), %%ymm0\n vmovdqa 32(%2), %%ymm1\n"
            "vmovdqa (%3), %%ymm0\n vmovdqa 32(%3), %%ymm1\n"
            "prefetcht0 4096(%0)\n prefetcht0 4096(%1)\n prefetcht0 4096(%2)\n prefetcht0 4096(%3)\n"
            :
            : "r"(p + i), "r"(p + q + i), "r"(p + 2 * q + i), "r"(p + 3 * q + i)
            : "xmm0", "xmm1");
}
#endif

struct bench {
    sl_pool *pool;
    sl_device *dev;
    uint32_t threads;
    bool wide;
    sl_layer layer;
    sl_kv_view kv[MAX_LAYERS];
    uint32_t n_layer, n_ctx;
    uint32_t *table;
    const uint32_t *tables[1];
    char *mem;
};

#define PEAK_STEPS 2000000u

static void peak_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct bench *b = arg;
    (void)index;
    (void)thread;
    if (b->wide) peak_512(PEAK_STEPS);
    else peak_256(PEAK_STEPS);
}

/* FLOP/s of all threads together. */
static double peak(struct bench *b)
{
    double start = now_s();
    sl_pool_run(b->pool, peak_task, b, b->threads);
    return 2.0 * 12 * (b->wide ? 16 : 8) * PEAK_STEPS * b->threads / (now_s() - start);
}

static void read_task(void *arg, uint32_t index, uint32_t thread)
{
    const struct bench *b = arg;
    size_t n = TOTAL / 4 / 16;
    (void)thread;
    read_avx2(b->mem + index * n, n);
}

/* Bytes/s of a quarter of the memory, another one each time. */
static double read_rate(struct bench *b, uint32_t turn)
{
    struct bench part = *b;
    part.mem += turn % 4 * (TOTAL / 4);
    double start = now_s();
    sl_pool_run(b->pool, read_task, &part, 16);
    return (double)TOTAL / 4 / (now_s() - start);
}

static void cut_layers(struct bench *b, sl_type type, uint32_t n_ctx)
{
    const sl_type_info *t = sl_type_get(type);
    size_t row = (size_t)KV_HEADS * DIM / t->block_elems * t->block_bytes, bytes = row * n_ctx;
    b->n_ctx = n_ctx;
    b->n_layer = (uint32_t)SL_MIN(TOTAL / (2 * bytes), (size_t)MAX_LAYERS);
    for (uint32_t l = 0; l < b->n_layer; l++)
        b->kv[l] = (sl_kv_view){ .k = b->mem + 2 * l * bytes,
                                 .v = b->mem + (2 * l + 1) * bytes,
                                 .k_bytes = row,
                                 .v_bytes = row,
                                 .blocks = b->tables,
                                 .block_rows = BLOCK,
                                 .type = type };
    for (uint32_t i = 0; i < n_ctx / BLOCK; i++) b->table[i] = i;
}

static void attend(struct bench *b, uint32_t layer, uint32_t pos0, uint32_t n_rows,
                   float *const *buf)
{
    static uint32_t pos[4096], seq[4096];
    for (uint32_t i = 0; i < n_rows; i++) pos[i] = pos0 + i;
    sl_batch batch = { .n_rows = n_rows,
                       .pos = pos,
                       .seq = seq,
                       .q = buf[0],
                       .k = buf[1],
                       .v = buf[2],
                       .att = buf[3] };
    T_NEED(b->dev->ops->attend(b->dev, &b->layer, &b->kv[layer], &batch) == SL_OK, "attend");
}

/* A decode row at the end of the context, in every layer. */
static void decode(struct bench *b, sl_type type, uint32_t n_ctx, uint32_t runs, float *const *buf)
{
    static double share[MAX_RUNS], rate[MAX_RUNS], best[MAX_RUNS], flops[MAX_RUNS],
        fshare[MAX_RUNS];
    cut_layers(b, type, n_ctx);
    for (uint32_t pos = 0; pos + 1 < n_ctx; pos += 512)     /* any finite numbers */
        for (uint32_t l = 0; l < b->n_layer; l++) attend(b, l, pos, 1, buf);
    for (uint32_t l = 0; l < b->n_layer; l++)
        for (uint32_t pos = 0; pos < n_ctx; pos++) {
            memcpy(b->kv[l].k + pos * b->kv[l].k_bytes, b->kv[l].k, b->kv[l].k_bytes);
            memcpy(b->kv[l].v + pos * b->kv[l].v_bytes, b->kv[l].v, b->kv[l].v_bytes);
        }
    double bytes = 2.0 * (double)b->kv[0].k_bytes * n_ctx;
    for (uint32_t r = 0; r < runs; r++) {
        best[r] = read_rate(b, r);
        double top = peak(b), time = 0, start = now_s();
        for (uint32_t l = 0; l < b->n_layer; l++) attend(b, l, n_ctx - 1, 1, buf);
        time = now_s() - start;
        best[r] = SL_MAX(best[r], read_rate(b, r + 1));
        rate[r] = bytes * b->n_layer / time;
        share[r] = rate[r] / best[r];
        flops[r] = 4.0 * HEADS * DIM * n_ctx * b->n_layer / time;
        fshare[r] = flops[r] / top;
    }
    printf("decode %5u %-5s %6.2f GB/s of %6.2f: %3.0f %%   %6.1f GFLOP/s: %3.0f %% of the peak\n",
           n_ctx, sl_type_get(type)->name, median(rate, runs) / 1e9, median(best, runs) / 1e9,
           100 * median(share, runs), median(flops, runs) / 1e9, 100 * median(fshare, runs));
    fflush(stdout);
}

/* One pass of n rows from position 0. */
static void prefill(struct bench *b, sl_type type, uint32_t n, uint32_t runs, float *const *buf)
{
    static double share[MAX_RUNS], rate[MAX_RUNS], best[MAX_RUNS];
    cut_layers(b, type, n);
    for (uint32_t r = 0; r < runs; r++) {
        best[r] = peak(b);
        double start = now_s();
        attend(b, r % b->n_layer, 0, n, buf);
        rate[r] = 4.0 * HEADS * DIM * ((double)n * (n + 1) / 2) / (now_s() - start);
        best[r] = SL_MAX(best[r], peak(b));
        share[r] = rate[r] / best[r];
    }
    printf("prefill %4u %-5s %6.1f GFLOP/s of %6.1f: %3.0f %%\n", n, sl_type_get(type)->name,
           median(rate, runs) / 1e9, median(best, runs) / 1e9, 100 * median(share, runs));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const sl_type types[] = { SL_F16, SL_BF16, SL_Q8_0, SL_F32 };
    uint32_t threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 2,
             runs = argc > 2 ? (uint32_t)atoi(argv[2]) : 9;
    unsigned mask = ~0u;
    size_t width[4] = { HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM, HEADS * DIM };
    float *buf[4];
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    struct bench b = { .threads = threads };
#if !defined(__x86_64__)
    return T_SKIP;
#endif
    t_begin();
    runs = SL_MIN(runs, (uint32_t)MAX_RUNS);
    if (argc > 3)
        T_NEED(sl_cpu_from_isa(argv[3], sl_cpu_detect(), &mask) == SL_OK, "isa %s", argv[3]);
    if (argc > 4 && !strcmp(argv[4], "cpu")) {
        the_clock = CLOCK_PROCESS_CPUTIME_ID;
        per = threads;
    }
    b.wide = sl_cpu_detect() & mask & SL_CPU_AVX512;
    T_NEED(sl_cpu_detect() & SL_CPU_AVX2, "the measuring loops need AVX2");
    T_NEED(sl_pool_create(ctx, threads, &b.pool) == SL_OK, "%s", sl_error(ctx));
    sl_device_params p = { .pool = b.pool, .max_rows = 4096, .cpu_mask = mask };
    p.widths = (sl_widths){ .d_model = 8, .cols = 8, .n_head = HEADS, .head_dim = DIM };
    T_NEED(sl_device_create_cpu(ctx, &p, &b.dev) == SL_OK, "%s", sl_error(ctx));
    b.layer.attn = (sl_attn){ .n_head = HEADS, .n_head_kv = KV_HEADS, .k_dim = DIM, .v_dim = DIM,
                              .scale = 1 / sqrtf(DIM) };
    T_NEED(b.dev->ops->alloc(b.dev, SL_ACC_KV, TOTAL, (void **)&b.mem) == SL_OK, "%s",
           sl_error(ctx));
    b.table = calloc(1 << 16, sizeof *b.table);
    b.tables[0] = b.table;
    memset(b.mem, 0, TOTAL);
    for (int i = 0; i < 4; i++) {
        buf[i] = malloc(4096 * width[i] * sizeof(float));
        for (size_t j = 0; j < 4096 * width[i]; j++) buf[i][j] = t_unit();
    }
    for (size_t t = 0; t < SL_LEN(types); t++) {
        decode(&b, types[t], 4096, runs, buf);
        decode(&b, types[t], 16384, runs, buf);
    }
    for (size_t t = 0; t < SL_LEN(types); t++) prefill(&b, types[t], 2048, runs, buf);
    sl_device_destroy(&b.dev);
    sl_pool_destroy(&b.pool);
    sl_ctx_destroy(&ctx);
    for (int i = 0; i < 4; i++) free(buf[i]);
    free(b.table);
    return 0;
}
