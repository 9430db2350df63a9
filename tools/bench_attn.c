/* tools/bench_attn.c - attention for `sluice bench --kernels`, through the device's stage, so that
 * cutting the work and handing it to threads counts: 32 query heads on 4 key/value heads of 128.
 * Decode reads the whole working set, context by context; its peak is DRAM. A prompt's peak is one
 * core's FP32. */
#include <stdlib.h>
#include <string.h>

#include "offload/sl_device.h"
#include "tools/bench.h"

enum { HEADS = 32, KV_HEADS = 4, DIM = 128, BLOCK = 32, PROMPT = 2048, MAX_CTX = 16384, TRIES = 3 };

struct attn_bench {
    const bench_attention *a;
    sl_device *dev;
    sl_layer layer;
    sl_batch batch;
    sl_kv_view kv;
    uint32_t *pos, *seq, *blocks;
    const uint32_t *blocks_of[1];
    float *acts;
    const char *isa;
};

static const sl_type kv_types[] = { SL_F16, SL_BF16, SL_Q8_0 };

static uint32_t rnd(uint32_t *state)        /* xorshift32 */
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

/* Bytes of keys and values, all of them below 1 in size. */
static void fill(sl_type type, char *mem, size_t bytes)
{
    static const struct { uint16_t keep, set; } halves[] = {
        { 0x83ff, 13 << 10 },               /* float16: 0.25 to 0.5 */
        { 0x807f, 0x3e80 },                 /* bfloat16: the same, and the upper half of a float */
    };
    size_t unit = SL_MIN(bytes, (size_t)34 << 15);  /* whole blocks of every type */
    uint32_t state = 2463534242u;
    for (size_t i = 0; i < unit; i += 2) {
        uint16_t v = (uint16_t)rnd(&state);
        if (type == SL_Q8_0 && i % 34 == 0) v = 8 << 10;
        if (type == SL_F16 || type == SL_BF16)
            v = (v & halves[type == SL_BF16].keep) | halves[type == SL_BF16].set;
        if (type == SL_F32 && i % 4) v = (v & halves[1].keep) | halves[1].set;
        memcpy(mem + i, &v, 2);
    }
    for (size_t at = unit; at < bytes; at += unit) memcpy(mem + at, mem, SL_MIN(unit, bytes - at));
}

static int make(struct attn_bench *b)
{
    sl_kernels k;
    sl_kernels_init(&k, sl_cpu_detect() & b->a->mask);
    b->isa = k.isa;
    sl_device_params p = { .pool = b->a->pool,
                           .max_rows = PROMPT,
                           .cpu_mask = b->a->mask,
                           .widths = { .d_model = DIM,
                                       .q = HEADS * DIM,
                                       .k = KV_HEADS * DIM,
                                       .v = KV_HEADS * DIM,
                                       .att = HEADS * DIM,
                                       .cols = HEADS * DIM,
                                       .n_head = HEADS,
                                       .head_dim = DIM } };
    if (sl_device_create_cpu(b->a->ctx, &p, &b->dev) != SL_OK) return cli_fail_ctx(b->a->ctx);
    size_t row = 2 * HEADS * DIM + 2 * KV_HEADS * DIM, n_acts = PROMPT * row;
    b->pos = calloc(PROMPT, sizeof *b->pos);
    b->seq = calloc(PROMPT, sizeof *b->seq);
    b->blocks = calloc(MAX_CTX / BLOCK, sizeof *b->blocks);
    b->acts = calloc(n_acts, sizeof *b->acts);
    if (!b->pos || !b->seq || !b->blocks || !b->acts) return cli_fail("out of memory");
    for (uint32_t i = 0; i < MAX_CTX / BLOCK; i++) b->blocks[i] = i;
    uint32_t state = 88675123u;
    for (size_t i = 0; i < n_acts; i++) b->acts[i] = (float)(int32_t)rnd(&state) * 0x1p-31f;
    b->blocks_of[0] = b->blocks;
    b->batch = (sl_batch){ .pos = b->pos, .seq = b->seq, .q = b->acts };
    b->batch.att = b->batch.q + (size_t)PROMPT * HEADS * DIM;
    b->batch.k = b->batch.att + (size_t)PROMPT * HEADS * DIM;
    b->batch.v = b->batch.k + (size_t)PROMPT * KV_HEADS * DIM;
    b->layer.attn = (sl_attn){ .kind = SL_ATTN_GQA,
                               .n_head = HEADS,
                               .n_head_kv = KV_HEADS,
                               .k_dim = DIM,
                               .v_dim = DIM,
                               .scale = 0.088388f };
    b->kv = (sl_kv_view){ .blocks = b->blocks_of, .block_rows = BLOCK };
    return CLI_DONE;
}

/* rows at positions first, first + 1, ... of context number i. Seconds, or negative after one
 * line. */
static double attend(struct attn_bench *b, uint32_t n_ctx, uint32_t i, uint32_t first,
                     uint32_t rows)
{
    b->kv.k = b->a->mem + (size_t)i * n_ctx * (b->kv.k_bytes + b->kv.v_bytes);
    b->kv.v = b->kv.k + (size_t)n_ctx * b->kv.k_bytes;
    for (uint32_t r = 0; r < rows; r++) b->pos[r] = first + r;
    b->batch.n_rows = rows;
    double start = cli_now_s();
    if (b->dev->ops->attend(b->dev, &b->layer, &b->kv, &b->batch) != SL_OK) {
        cli_fail_ctx(b->a->ctx);
        return -1;
    }
    return cli_now_s() - start;
}

static int decode(struct attn_bench *b, uint32_t n_ctx, bench_table *t, bench_series *s)
{
    size_t bytes = (size_t)n_ctx * (b->kv.k_bytes + b->kv.v_bytes);
    uint32_t n = (uint32_t)(b->a->room / bytes);
    char name[32];
    snprintf(name, sizeof name, "attend %u", n_ctx);
    for (uint32_t i = 0; i <= TRIES * b->a->repeats; i++) {
        double peak = sl_probe_read(b->a->reader), seconds = 0;
        for (uint32_t c = 0; c < n; c++) {
            double one = attend(b, n_ctx, c, n_ctx - 1, 1);
            if (one < 0) return CLI_FAILED;
            seconds += one;
        }
        if (i) bench_add(s, (double)bytes * n / seconds, peak);
        if (cli_interrupted()) return CLI_INTERRUPTED;
    }
    bench_kernel row = { name,        sl_type_get(b->kv.type)->name,
                         b->isa,      sl_pool_threads(b->a->pool),
                         1,           "GB/s",
                         "DRAM reads" };
    return bench_kernel_row(t, &row, s);
}

static int prompt(struct attn_bench *b, bench_table *t, bench_series *s)
{
    sl_peak peak = bench_float_peak(b->a->mask);
    double flops = 2.0 * HEADS * 2 * DIM * PROMPT * (PROMPT + 1) / 2;
    if (!sl_probe_has(peak) || !b->a->mask) return CLI_DONE;
    for (uint32_t i = 0; i < b->a->repeats; i++) {
        double limit = sl_probe_peak(peak, 0.02), seconds = attend(b, PROMPT, 0, 0, PROMPT);
        if (seconds < 0) return CLI_FAILED;
        bench_add(s, flops / seconds, limit);
        if (cli_interrupted()) return CLI_INTERRUPTED;
    }
    bench_kernel row = { "attend 2048", sl_type_get(b->kv.type)->name, b->isa, 1, PROMPT, "GFLOP/s",
                         sl_peak_name(peak) };
    return bench_kernel_row(t, &row, s);
}

int bench_attend(const bench_attention *a, bench_table *t, bench_series *s)
{
    struct attn_bench b = { .a = a };
    int code = make(&b);
    for (size_t i = 0; i < SL_LEN(kv_types) && code == CLI_DONE; i++) {
        uint64_t row = 0;
        (void)sl_type_row_bytes(kv_types[i], KV_HEADS * DIM, &row);
        b.kv.type = kv_types[i];
        b.kv.k_bytes = b.kv.v_bytes = row;
        fill(kv_types[i], a->mem, a->room);
        code = decode(&b, 4096, t, s);
        if (code == CLI_DONE) code = decode(&b, MAX_CTX, t, s);
        if (code == CLI_DONE && sl_pool_threads(a->pool) == 1) code = prompt(&b, t, s);
    }
    sl_device_destroy(&b.dev);
    free(b.pos);
    free(b.seq);
    free(b.blocks);
    free(b.acts);
    return code;
}
