/* tools/bench.h - what `sluice bench` and its --kernels part share: rows of a table in three
 * formats, and which of a machine's peaks belongs to which kernels. Threads: the main thread.
 * Units: operations/s.
 * Tested by tests/t_cli.py. */
#ifndef BENCH_H
#define BENCH_H

#include <jansson.h>

#include "offload/sl_probe.h"
#include "perfmodel/sl_bound.h"
#include "perfmodel/sl_shape.h"
#include "runtime/base/sl_pool.h"
#include "tools/cli.h"

typedef enum bench_format { BENCH_MD, BENCH_CSV, BENCH_JSON } bench_format;

/* One value of a row, with its column. */
typedef struct bench_cell {
    const char *title;          /* of the column in md; NULL: not in md */
    const char *key;            /* its name in csv and json; NULL: in neither */
    int width;                  /* in md; negative: to the left */
    const char *text;           /* md; csv and json too when it is no number */
    double number;
    bool is_number, integer;
    bool in_json;
} bench_cell;

typedef struct bench_table {
    bench_format format;
    bool begun;
    json_t *rows;
} bench_table;

/* Prints a row, the header before the first one; json waits for the end. CLI_DONE or CLI_FAILED. */
int bench_row(bench_table *t, const bench_cell *cells, size_t n);
/* Prints what is left, a last line in md; to be called in every case. Returns code or
 * CLI_FAILED. */
int bench_end(bench_table *t, int code);

double bench_median(double *v, uint32_t n);     /* sorts v */

/* 8-bit multiply-adds/s at most with the instructions of mask (SL_CPU_*): peak_s(SL_PEAK_...) times
 * the factor. AVX-512 without VNNI does twice AVX2's in the same instructions; the C reference is
 * measured against AVX2, which compilers do not reach. */
sl_peak bench_int_peak(unsigned mask, double *ret_factor);
sl_peak bench_float_peak(unsigned mask);

/* ---- streamed models beside their disk ---- */

enum { BENCH_DISK_DEPTHS = 8, BENCH_DISK_VISITS = 512 };

/* Rates of the model's own file, in turn with a test: reads of one slice of an expert, three for
 * each of 1, 2, 4 ... experts in flight. */
typedef struct bench_disk {
    uint64_t bytes;             /* of one read */
    uint64_t room;              /* that the reads land in, one behind the other */
    uint32_t n, depth[BENCH_DISK_DEPTHS];
    uint32_t visits;
    double rate[BENCH_DISK_DEPTHS][BENCH_DISK_VISITS];
    double dram[BENCH_DISK_VISITS];     /* bytes/s; shares of both when they run together: */
    double cpu_keeps[BENCH_DISK_VISITS], disk_keeps[BENCH_DISK_VISITS];
} bench_disk;

/* Which reads that model's experts take. */
void bench_disk_init(bench_disk *d, const sl_shape *shape);
/* About a second: the disk alone, DRAM alone as so many threads read it, both together. Takes 256
 * MiB for the disk, and what sl_probe_reader takes: to be called while no engine is open. CLI_DONE,
 * or CLI_FAILED after one line. */
int bench_disk_visit(bench_disk *d, const char *path, uint32_t threads, bool verbose);
/* The last visit's rate of DRAM alone, bytes/s. */
double bench_disk_dram(const bench_disk *d);
/* The medians of the visits, which start anew: the disk of a machine, and what both leave each
 * other. */
void bench_disk_take(bench_disk *d, sl_machine *ret, sl_disk_use *ret_use);

/* ---- kernels beside their peaks ---- */

enum { BENCH_MAX_SERIES = 3000 };

/* Rates measured in turn with a peak, both in units/s. */
typedef struct bench_series {
    double rate[BENCH_MAX_SERIES], peak[BENCH_MAX_SERIES], share[BENCH_MAX_SERIES];
    uint32_t n;
} bench_series;

void bench_add(bench_series *s, double rate, double peak);

typedef struct bench_kernel {
    const char *kernel, *type, *isa;
    uint32_t threads, tokens;
    const char *unit;           /* "GB/s": units of 1e9 */
    const char *peak_name;
} bench_kernel;

/* A row with the series' medians, of the ratios too. Empties the series. */
int bench_kernel_row(bench_table *t, const bench_kernel *k, bench_series *s);

typedef struct bench_kernels_args {
    /* lists with commas; NULL: those that matter most, the CPU's best */
    const char *types, *isas;
    uint32_t repeats;
    bench_format format;
} bench_kernels_args;

int bench_kernels(const bench_kernels_args *a);

/* Attention of one pass through the device that the pool's threads make, on `room` bytes of mem,
 * which it fills. threads 1: prompts too. */
typedef struct bench_attention {
    sl_ctx *ctx;
    sl_pool *pool;
    sl_probe_reader *reader;
    char *mem;
    size_t room;
    unsigned mask;              /* SL_CPU_* */
    uint32_t repeats;
} bench_attention;

int bench_attend(const bench_attention *a, bench_table *t, bench_series *s);

#endif
