/* tools/bench_kernels.c - `sluice bench --kernels`: the products of quantised weights alone, in the
 * shape of an expert's gate (1024 x 2048), each run in turn with a run of its peak: what else the
 * machine does then slows both. Reported are the median rate, the median peak and the median of the
 * ratios. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/sl_kernels.h"
#include "tools/bench.h"
#include "tools/session.h"

/* a repeat is short */
enum { ROWS = 1024, COLS = 2048, CHUNK = 256, MAX_TOKENS = 128, TRIES = 3 };

struct kernel_bench {
    const bench_kernels_args *a;
    sl_ctx *ctx;
    bench_table table;
    uint8_t *weights;           /* `room` bytes, mapped: experts of the type one after another */
    size_t room, n_experts;
    uint32_t *order;            /* [n_experts] a random one */
    sl_type type;
    uint64_t row_bytes;
    sl_kernels k;
    const sl_qmul *q;
    unsigned mask;
    void *x[MAX_TOKENS];        /* quantised activations */
    char *x_mem;
    float *out;                 /* [MAX_TOKENS][ROWS] */
    void *tile;
    uint32_t expert;            /* the next one of `order` that the tile benchmark reads */
};

/* Where the f16 scales of a block are, so that random bytes are sane numbers; MXFP4 has an
 * exponent. */
static const struct { sl_type type; int at[2];
} scales[] = {
    { SL_Q4_0, { 0, 0 } },    { SL_Q4_1, { 0, 2 } },    { SL_Q5_0, { 0, 0 } },
    { SL_Q5_1, { 0, 2 } },    { SL_Q8_0, { 0, 0 } },    { SL_IQ4_NL, { 0, 0 } },
    { SL_MXFP4, { -1, -1 } }, { SL_Q2_K, { 80, 82 } },  { SL_Q3_K, { 108, 108 } },
    { SL_Q4_K, { 0, 2 } },    { SL_Q5_K, { 0, 2 } },    { SL_Q6_K, { 208, 208 } },
    { SL_IQ4_XS, { 0, 0 } },  { SL_IQ2_XXS, { 0, 0 } }, { SL_IQ2_XS, { 0, 0 } },
    { SL_IQ2_S, { 0, 0 } },   { SL_IQ3_XXS, { 0, 0 } }, { SL_IQ3_S, { 0, 0 } },
};

static uint64_t rnd(uint64_t *state)        /* xorshift64 */
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static size_t expert_bytes(const struct kernel_bench *b)
{
    return ROWS * (size_t)b->row_bytes;
}

/* One expert of random weights, copied to all. */
static void fill_weights(struct kernel_bench *b)
{
    uint64_t state = 88172645463325252u;
    const sl_type_info *t = sl_type_get(b->type);
    size_t one = expert_bytes(b);
    b->n_experts = b->room / one;
    for (size_t i = 0; i < one; i++) b->weights[i] = (uint8_t)(rnd(&state) >> 32);
    for (size_t s = 0; s < SL_LEN(scales); s++) {
        if (scales[s].type != b->type) continue;
        for (uint8_t *block = b->weights; block < b->weights + one; block += t->block_bytes) {
            uint16_t f16 = (uint16_t)(8 + rnd(&state) % 6) << 10;
            if (scales[s].at[0] < 0) block[0] = (uint8_t)(118 + rnd(&state) % 8);
            else for (int i = 0; i < 2; i++) memcpy(block + scales[s].at[i], &f16, 2);
        }
    }
    for (size_t e = 1; e < b->n_experts; e++) memcpy(b->weights + e * one, b->weights, one);
    for (uint32_t e = 0; e < b->n_experts; e++) b->order[e] = e;
    for (size_t e = b->n_experts; e > 1; e--) {
        size_t j = rnd(&state) % e;
        uint32_t swap = b->order[e - 1];
        b->order[e - 1] = b->order[j];
        b->order[j] = swap;
    }
    b->expert = 0;
}

static void fill_activations(struct kernel_bench *b)
{
    uint64_t state = 2463534242u;
    float row[COLS];
    size_t bytes = (sl_qx_bytes(b->q->group, COLS) + 63) / 64 * 64;
    for (uint32_t j = 0; j < MAX_TOKENS; j++) {
        for (uint32_t i = 0; i < COLS; i++) row[i] = (float)(int32_t)(rnd(&state) >> 32) * 0x1p-30f;
        b->x[j] = b->x_mem + j * bytes;
        b->k.quantise(b->q->group, row, COLS, b->x[j]);
    }
}

/* ---- what is timed ---- */

/* CHUNK rows of the whole working set, one after another. */
static void stream_task(void *arg, uint32_t index, uint32_t thread)
{
    struct kernel_bench *b = arg;
    b->q->rows(b->weights + (size_t)index * CHUNK * b->row_bytes, b->row_bytes, CHUNK, b->x[0],
               COLS, b->out + (size_t)(thread % MAX_TOKENS) * ROWS);
}

/* CHUNK rows of the expert that is on. */
static void expert_task(void *arg, uint32_t index, uint32_t thread)
{
    struct kernel_bench *b = arg;
    size_t row = (size_t)b->order[b->expert] * ROWS + (size_t)index * CHUNK;
    b->q->rows(b->weights + row * b->row_bytes, b->row_bytes, CHUNK, b->x[0], COLS,
               b->out + (size_t)(thread % MAX_TOKENS) * ROWS);
}

/* Bytes/s of one pass over the working set; barriers: experts in random order, a barrier behind
 * each. */
static double run_rows(struct kernel_bench *b, sl_pool *pool, bool barriers)
{
    double start = cli_now_s();
    if (!barriers) sl_pool_run(pool, stream_task, b, (uint32_t)(b->n_experts * (ROWS / CHUNK)));
    for (b->expert = 0; barriers && b->expert < b->n_experts; b->expert++)
        sl_pool_run(pool, expert_task, b, ROWS / CHUNK);
    return (double)b->n_experts * (double)expert_bytes(b) / (cli_now_s() - start);
}

/* Multiply-adds/s of whole experts on n tokens for about `seconds`, on the calling thread; the next
 * call goes on with the experts that were not read for longest. */
static double run_tiles(struct kernel_bench *b, uint32_t n, double seconds)
{
    double start = cli_now_s(), s = 0;
    uint32_t done = 0;
    while (s < seconds) {
        if (b->expert >= b->n_experts) b->expert = 0;
        const uint8_t *w = b->weights + (size_t)b->order[b->expert++] * expert_bytes(b);
        for (uint32_t r = 0; r < ROWS; r += b->q->tile_rows) {
            uint32_t rows = SL_MIN(b->q->tile_rows, ROWS - r);
            b->q->unpack(w + r * b->row_bytes, b->row_bytes, rows, COLS, b->tile);
            b->q->tile(b->tile, rows, (const void *const *)b->x, n, COLS, b->out + r, ROWS);
        }
        done++;
        s = cli_now_s() - start;
    }
    return (double)done * n * ROWS * COLS / s;
}

/* ---- each in turn with its peak ---- */

static int bench_rows(struct kernel_bench *b, bench_series *s, uint32_t threads, sl_pool *pool,
                      sl_probe_reader *reader)
{
    for (uint32_t barriers = 0; barriers < 2; barriers++) {
        s->n = 0;
        (void)run_rows(b, pool, barriers);
        for (uint32_t i = 0; i < TRIES * b->a->repeats; i++) {
            double peak = sl_probe_read(reader);
            bench_add(s, run_rows(b, pool, barriers), peak);
            if (cli_interrupted()) return CLI_INTERRUPTED;
        }
        bench_kernel row = { barriers ? "rows, barriers" : "rows",
                             sl_type_get(b->type)->name,
                             b->k.isa,
                             threads,
                             1,
                             "GB/s",
                             "DRAM reads" };
        int code = bench_kernel_row(&b->table, &row, s);
        if (code != CLI_DONE) return code;
    }
    return CLI_DONE;
}

static int bench_tiles(struct kernel_bench *b, bench_series *s)
{
    static const uint32_t tokens[] = { 1, 8, 64, MAX_TOKENS };
    double factor;
    sl_peak peak = bench_int_peak(b->mask, &factor);
    char name[40];
    if (!sl_probe_has(peak)) return CLI_DONE;
    snprintf(name, sizeof name, factor == 1 ? "%s" : "%s x 2", sl_peak_name(peak));
    for (size_t t = 0; t < SL_LEN(tokens); t++) {
        s->n = 0;
        (void)run_tiles(b, tokens[t], 0.005);
        for (uint32_t i = 0; i < TRIES * b->a->repeats; i++) {
            double limit = factor * sl_probe_peak(peak, 0.008);
            bench_add(s, run_tiles(b, tokens[t], 0.015), limit);
            if (cli_interrupted()) return CLI_INTERRUPTED;
        }
        bench_kernel row = { "tile", sl_type_get(b->type)->name, b->k.isa, 1, tokens[t], "GMAC/s",
                             name };
        int code = bench_kernel_row(&b->table, &row, s);
        if (code != CLI_DONE) return code;
    }
    return CLI_DONE;
}

/* ---- the plan of the day ---- */

/* The i-th name of a list into ret; false past the end. */
static bool list_at(const char *list, uint32_t i, char ret[24])
{
    for (; i && *list; i--) {
        list += strcspn(list, ",");
        if (!*list) return false;
        list++;
    }
    size_t n = strcspn(list, ",");
    snprintf(ret, 24, "%.*s", (int)SL_MIN(n, 23), list);
    return n > 0 || *list;
}

static int set_isa(struct kernel_bench *b, const char *name)
{
    uint32_t mask;
    int code = cli_isa_mask(name, &mask);
    if (code != CLI_DONE) return code;
    b->mask = mask;
    sl_kernels_init(&b->k, mask);
    return CLI_DONE;
}

static int set_type(struct kernel_bench *b, const char *name)
{
    if (!sl_type_from_name(name, &b->type))
        return cli_fail("--type %s: no such type of weights", name), CLI_USAGE;
    b->q = &b->k.qmul[b->type];
    if (!b->q->group || !sl_type_row_bytes(b->type, COLS, &b->row_bytes))
        return cli_fail("--type %s: there are no 8-bit kernels for it", name), CLI_USAGE;
    return CLI_DONE;
}

/* Every type with every ISA: rows with `threads`, tiles when that is 1. dry: only the names are
 * checked. */
static int each(struct kernel_bench *b, bench_series *s, uint32_t threads, sl_pool *pool,
                sl_probe_reader *reader, bool dry)
{
    const char *types = b->a->types ? b->a->types : "Q4_K,Q5_K,Q6_K,Q8_0,Q4_0,MXFP4";
    char type[24], isa[24];
    int code = CLI_DONE;
    for (uint32_t t = 0; code == CLI_DONE && list_at(types, t, type); t++)
        for (uint32_t i = 0; code == CLI_DONE && (b->a->isas ? list_at(b->a->isas, i, isa) : !i);
             i++) {
            code = set_isa(b, b->a->isas ? isa : NULL);
            if (code == CLI_DONE) code = set_type(b, type);
            if (code != CLI_DONE || dry) continue;
            if (!i) fill_weights(b);
            size_t tile = (b->q->tile_bytes(COLS) + 63) / 64 * 64;
            b->tile = aligned_alloc(64, tile);
            if (!b->tile) return cli_fail("out of memory");
            fill_activations(b);
            code = bench_rows(b, s, threads, pool, reader);
            if (code == CLI_DONE && threads == 1) code = bench_tiles(b, s);
            free(b->tile);
            b->tile = NULL;
        }
    return code;
}

static int take_memory(struct kernel_bench *b)
{
    sl_machine_id id;
    if (sl_probe_identify(b->ctx, &id) != SL_OK) return cli_fail_ctx(b->ctx);
    uint64_t room = SL_MAX(8 * id.l3_bytes, (uint64_t)256 << 20), available = cli_available_bytes();
    if (available) room = SL_MIN(room, available / 3);
    room = SL_MAX(room, (uint64_t)32 << 20) >> 21 << 21;
    if (room < 8 * id.l3_bytes)
        cli_warn("the working set of %" PRIu64 " MiB is below 8 times the last-level cache",
                 room >> 20);
    void *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return cli_fail("no memory for a working set of %" PRIu64 " MiB", room >> 20);
    (void)madvise(p, room, MADV_HUGEPAGE);      /* a wish */
    b->weights = p;
    b->room = room;
    b->order = calloc(room / 4096, sizeof *b->order);
    b->out = calloc(MAX_TOKENS * ROWS, sizeof *b->out);
    b->x_mem = aligned_alloc(64, MAX_TOKENS * ((sl_qx_bytes(32, COLS) + 63) / 64 * 64));
    return b->order && b->out && b->x_mem ? CLI_DONE : cli_fail("out of memory");
}

static int with_threads(struct kernel_bench *b, bench_series *s, uint32_t threads)
{
    sl_probe_reader *reader = NULL;
    sl_pool *pool = NULL;
    int code = CLI_DONE;
    if (sl_probe_reader_create(b->ctx, threads, &reader) != SL_OK
        || sl_pool_create(b->ctx, threads, &pool) != SL_OK)
        code = cli_fail_ctx(b->ctx);
    if (code == CLI_DONE) code = each(b, s, threads, pool, reader, false);
    char isa[24];
    for (uint32_t i = 0; code == CLI_DONE && (b->a->isas ? list_at(b->a->isas, i, isa) : !i); i++) {
        code = set_isa(b, b->a->isas ? isa : NULL);
        bench_attention at = { b->ctx,  pool,    reader,       (char *)b->weights,
                               b->room, b->mask, b->a->repeats };
        if (code == CLI_DONE) code = bench_attend(&at, &b->table, s);
    }
    sl_pool_destroy(&pool);
    sl_probe_reader_destroy(&reader);
    return code;
}

int bench_kernels(const bench_kernels_args *a)
{
    struct kernel_bench *b = calloc(1, sizeof *b);
    bench_series *s = calloc(1, sizeof *s);
    int code = CLI_FAILED;
    if (!b || !s) cli_fail("out of memory");
    else {
        *b = (struct kernel_bench){ .a = a, .table.format = a->format, .ctx = cli_ctx(false) };
        if (b->ctx) code = each(b, s, 0, NULL, NULL, true);
        if (b->ctx && code == CLI_DONE) code = take_memory(b);
        cli_catch_sigint();
        uint32_t cores = code == CLI_DONE ? sl_pool_cores(b->ctx) : 0;
        for (uint32_t t = 1; t <= cores && code == CLI_DONE; t = t < cores ? cores : cores + 1)
            code = with_threads(b, s, t);
        if (b->ctx) code = bench_end(&b->table, code);
        if (b->weights) munmap(b->weights, b->room);
        free(b->order);
        free(b->out);
        free(b->x_mem);
        sl_ctx_destroy(&b->ctx);
    }
    free(b);
    free(s);
    return code;
}
