/* tests/gpu/gpu_bench.c - what a card does: copies from and to pinned memory, products with few
 * rows as bytes of weights per second, with many rows as flop per second beside cuBLAS on the same
 * sizes (float16, float32 sums), attention. One line each; tests/gpu/run.sh puts them into its
 * table. Needs a GPU; cuBLAS is opened at run time, and its column is empty without it. */
#include "kernels/cuda/sl_cuda.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK(call) do { int e_ = (int)(call); if (e_) fail(#call, e_); } while (0)

enum { RUNS = 9, MAX_SLOTS = 512 };

static cudaStream_t stream;
static cudaEvent_t begin_ev, end_ev;

static void fail(const char *what, int err)
{
    fprintf(stderr, "gpu_bench: %s: %s\n", what, cudaGetErrorString((cudaError_t)err));
    exit(1);
}

static void *take(size_t bytes)
{
    void *p;
    OK(cudaMalloc(&p, bytes));
    OK(cudaMemset(p, 0, bytes));
    return p;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Median seconds of work(arg), which puts it on the stream. */
static double seconds(void (*work)(void *), void *arg)
{
    float ms[RUNS];
    work(arg);
    for (int i = 0; i < RUNS; i++) {
        OK(cudaEventRecord(begin_ev, stream));
        work(arg);
        OK(cudaEventRecord(end_ev, stream));
        OK(cudaEventSynchronize(end_ev));
        OK(cudaEventElapsedTime(&ms[i], begin_ev, end_ev));
    }
    qsort(ms, RUNS, sizeof *ms, by_size);
    return ms[RUNS / 2] / 1e3;
}

/* ---- copies ---- */

struct copies {
    char *to, *from;
    size_t bytes, piece;
};

static void copy(void *arg)
{
    struct copies *c = arg;
    for (size_t at = 0; at < c->bytes; at += c->piece)
        OK(cudaMemcpyAsync(c->to + at, c->from + at, c->piece, cudaMemcpyDefault, stream));
}

static void bench_copies(void)
{
    static const size_t pieces[] = { 256 << 20, 4 << 20, 256 << 10 };
    size_t bytes = (size_t)256 << 20;
    char *dev = take(bytes), *host;
    OK(cudaMallocHost((void **)&host, bytes));
    memset(host, 1, bytes);
    for (size_t i = 0; i < SL_LEN(pieces); i++) {
        struct copies up = { dev, host, bytes, pieces[i] }, down = { host, dev, bytes, pieces[i] };
        printf("copy up, pieces of %zu KiB: %.2f GB/s\n", pieces[i] >> 10,
               (double)bytes / seconds(copy, &up) / 1e9);
        printf("copy down, pieces of %zu KiB: %.2f GB/s\n", pieces[i] >> 10,
               (double)bytes / seconds(copy, &down) / 1e9);
    }
    OK(cudaFreeHost(host));
    OK(cudaFree(dev));
}

/* ---- products ---- */

struct product {
    sl_cuda_product p;
    bool few;
};

static void multiply(void *arg)
{
    struct product *r = arg;
    OK(r->few ? sl_cuda_few(stream, &r->p) : sl_cuda_many(stream, &r->p));
}

/* cublasGemmEx, by the numbers of its public header. */
struct cublas {
    void *handle;
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int,
                const void *, int, int, const void *, void *, int, int, int, int);
    int rows, slots, cols;
    void *w, *x, *y;
};

static void cublas_multiply(void *arg)
{
    enum { OP_N = 0, OP_T = 1, R_32F = 0, R_16F = 2, COMPUTE_32F = 68, DEFAULT = -1 };
    const struct cublas *c = arg;
    float one = 1, zero = 0;
    OK(c->gemm(c->handle, OP_T, OP_N, c->rows, c->slots, c->cols, &one, c->w, R_16F, c->cols, c->x,
               R_16F, c->cols, &zero, c->y, R_32F, c->rows, COMPUTE_32F, DEFAULT));
}

static bool open_cublas(struct cublas *c)
{
    static const char *const names[] = { "libcublas.so.13", "libcublas.so.12", "libcublas.so" };
    void *lib = NULL, *create, *set, *gemm;
    int (*create_fn)(void **), (*set_fn)(void *, cudaStream_t);
    for (size_t i = 0; i < SL_LEN(names) && !lib; i++) lib = dlopen(names[i], RTLD_NOW);
    if (!lib) return false;
    create = dlsym(lib, "cublasCreate_v2");
    set = dlsym(lib, "cublasSetStream_v2");
    gemm = dlsym(lib, "cublasGemmEx");
    if (!create || !set || !gemm) return false;
    memcpy(&create_fn, &create, sizeof create);
    memcpy(&set_fn, &set, sizeof set);
    memcpy(&c->gemm, &gemm, sizeof gemm);
    return !create_fn(&c->handle) && !set_fn(c->handle, stream);
}

static void bench_products(struct cublas *blas)
{
    static const sl_type types[] = { SL_F16,  SL_Q4_0, SL_Q8_0, SL_MXFP4,
                                     SL_Q4_K, SL_Q5_K, SL_Q6_K };
    static const uint32_t slots[] = { 1, 4, 32, 128, 512 };
    enum { ROWS = 4096, COLS = 4096, COPIES = 8 };      /* more weights than caches hold */
    size_t most = (size_t)ROWS * COLS * 2 * COPIES;
    char *w = take(most), *x = take((size_t)MAX_SLOTS * sl_cuda_halves_bytes(COLS));
    float *y = take((size_t)MAX_SLOTS * ROWS * 4 * COPIES);
    for (size_t t = 0; t < SL_LEN(types); t++)
        for (size_t i = 0; i < SL_LEN(slots); i++) {
            sl_cuda_run runs[COPIES], *dev = take(sizeof runs);
            struct product r = { .few = slots[i] <= 8 };
            uint64_t row;
            sl_cuda_x form;
            if (!sl_type_row_bytes(types[t], COLS, &row)) exit(1);
            for (uint32_t c = 0; c < COPIES; c++)
                runs[c] = (sl_cuda_run){ { w + c * row * ROWS, NULL }, { NULL, NULL },
                                         c * slots[i], slots[i] };
            OK(cudaMemcpy(dev, runs, sizeof runs, cudaMemcpyHostToDevice));
            if (!(r.few ? sl_cuda_few_x : sl_cuda_many_x)(types[t], &form)) exit(1);
            uint32_t group = types[t] == SL_Q4_K || types[t] == SL_Q5_K || types[t] == SL_Q6_K
                             ? 256 : 32;
            size_t step = form == SL_CUDA_X_FLOAT   ? COLS * sizeof(float)
                          : form == SL_CUDA_X_QUANT ? sl_qx_bytes(group, COLS)
                          : form == SL_CUDA_X_HALF  ? sl_cuda_half_bytes(COLS)
                                                    : sl_cuda_halves_bytes(COLS);
            uint32_t rows[COPIES * MAX_SLOTS], *x_row = take(sizeof rows);   /* x serves all runs */
            for (uint32_t e = 0; e < SL_LEN(rows); e++) rows[e] = e % slots[i];
            OK(cudaMemcpy(x_row, rows, sizeof rows, cudaMemcpyHostToDevice));
            r.p = (sl_cuda_product){ .type = types[t], .rows = ROWS, .cols = COLS, .row_bytes = row,
                                     .runs = dev, .n_runs = COPIES, .n_slots = COPIES * slots[i],
                                     .most_slots = slots[i], .count = 1, .x_row = x_row, .x = x,
                                     .x_bytes = step, .x_step = step, .y = y, .ldy = ROWS,
                                     .scale = 1 };
            double s = seconds(multiply, &r), flop = 2.0 * ROWS * COLS * COPIES * slots[i], b = 0;
            if (blas->handle && !r.few) {
                *blas = (struct cublas){ blas->handle, blas->gemm, ROWS, (int)slots[i], COLS, w, x,
                                         y };
                b = COPIES * seconds(cublas_multiply, blas);
            }
            printf("product %s, %u rows: %.1f GB/s of weights, %.2f Tflop/s",
                   sl_type_get(types[t])->name, slots[i], (double)row * ROWS * COPIES / s / 1e9,
                   flop / s / 1e12);
            if (b > 0) printf(", cuBLAS F16 %.2f, share %.0f %%", flop / b / 1e12, 100 * b / s);
            printf("\n");
            OK(cudaFree(dev));
            OK(cudaFree(x_row));
        }
    OK(cudaFree(w));
    OK(cudaFree(x));
    OK(cudaFree(y));
}

/* ---- attention ---- */

static void attend(void *arg)
{
    OK(sl_cuda_attend(stream, arg));
}

/* 32 heads on 8, 128 wide, F16: a prompt of n rows, or rows of n sequences at position p. */
static void bench_attention(uint32_t rows, uint32_t positions, bool prompt, uint32_t splits)
{
    enum { HEADS = 32, KV = 8, DIM = 128, BLOCK = 32 };
    uint32_t seqs = prompt ? 1 : rows, per = (positions + BLOCK - 1) / BLOCK;
    size_t kv = (size_t)seqs * per * BLOCK * KV * DIM * 2;
    uint32_t *host = malloc(sizeof *host * (2 * rows + seqs * per));
    if (!host) exit(1);
    for (uint32_t i = 0; i < rows; i++) {
        host[i] = prompt ? 0 : i;
        host[rows + i] = prompt ? positions - rows + i : positions - 1;
    }
    for (uint32_t i = 0; i < seqs * per; i++) host[2 * rows + i] = i;
    uint32_t *dev = take(sizeof *dev * (2 * rows + seqs * per));
    OK(cudaMemcpy(dev, host, sizeof *dev * (2 * rows + seqs * per), cudaMemcpyHostToDevice));
    sl_cuda_attn a = { .kv = { take(kv), take(kv), KV * DIM * 2, KV * DIM * 2, dev + 2 * rows, per,
                               BLOCK, SL_F16 },
                       .n_head = HEADS, .n_head_kv = KV, .k_dim = DIM, .v_dim = DIM, .scale = 0.1f,
                       .seq = dev, .pos = dev + rows, .q = take((size_t)rows * HEADS * DIM * 4),
                       .att = take((size_t)rows * HEADS * DIM * 4), .n_rows = rows,
                       .rows_a_tile = prompt ? 8 : 1, .n_splits = splits,
                       .part = take(4 * sl_cuda_attn_part(rows, HEADS, DIM, splits)) };
    double s = seconds(attend, &a), seen = 0;
    for (uint32_t i = 0; i < rows; i++) seen += host[rows + i] + 1;
    if (prompt)
        printf("attention, %u rows of a prompt up to %u: %.2f Tflop/s\n", rows, positions,
               4 * seen * HEADS * DIM / s / 1e12);
    else
        printf("attention, %u rows at %u: %.1f GB/s of keys and values\n", rows, positions,
               seen * KV * DIM * 4 / s / 1e9);
    free(host);
    OK(cudaFree(a.kv.k));
    OK(cudaFree(a.kv.v));
    OK(cudaFree((void *)(uintptr_t)a.q));
    OK(cudaFree(a.att));
    OK(cudaFree(a.part));
    OK(cudaFree(dev));
}

int main(void)
{
    struct cublas blas = { 0 };
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || !n) {
        printf("SKIP: no GPU here\n");
        return 77;
    }
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&begin_ev, 0));
    OK(cudaEventCreateWithFlags(&end_ev, 0));
    if (!open_cublas(&blas)) blas.handle = NULL;
    bench_copies();
    bench_products(&blas);
    bench_attention(512, 512, true, 1);
    bench_attention(512, 8192, true, 1);
    bench_attention(1, 8192, false, 16);
    bench_attention(64, 2048, false, 1);
    return 0;
}
