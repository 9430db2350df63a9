/* perfmodel/sl_machine.h - numbers that describe a machine: what its parts can do at most, measured
 * by offload/sl_probe.h or written down from data sheets. Kept as JSON (offload/sl_machine_json.h).
 * Must not read a clock, file or device. Threads: plain data. Units: bytes/s, operations/s,
 * seconds.
 * Tested by tests/t_machine.c. */
#ifndef SL_MACHINE_H
#define SL_MACHINE_H

#include "runtime/base/sl_type.h"

typedef enum sl_machine_source {
    SL_MACHINE_DATASHEET,       /* nobody measured */
    SL_MACHINE_QUICK,           /* a probe of 2 s */
    SL_MACHINE_MEASURED         /* a full probe */
} sl_machine_source;

/* Instruction peaks, each by the loop that a kernel of that ISA is made of. */
typedef enum sl_peak {
    SL_PEAK_I8_AVX2,            /* vpmaddubsw + vpmaddwd + vpaddd, 256 bits: 8-bit multiply-adds */
    SL_PEAK_I8_AVXVNNI,         /* vpdpbusd, 256 bits */
    SL_PEAK_I8_VNNI512,         /* vpdpbusd, 512 bits */
    SL_PEAK_F32_AVX2,           /* vfmadd, 256 bits: flops, a multiply-add is 2 */
    SL_PEAK_F32_AVX512,         /* vfmadd, 512 bits */
    SL_N_PEAKS
} sl_peak;

enum {
    SL_MACHINE_POINTS = 24, SL_MACHINE_MAX_THREADS = 4096,
    SL_MACHINE_CURVES = 12,                 /* sizes of disk reads */
    SL_MACHINE_MAX_DEPTH = 4096,            /* of them in flight */
    SL_MACHINE_MAX_READ = 64 << 20,         /* bytes of one */
    SL_MACHINE_MAX_ROWS = 1 << 20,
    SL_MACHINE_GEMMS = 64, SL_MACHINE_GEMM_POINTS = 12, SL_MACHINE_COSTS = 8,
    SL_MACHINE_GPUS = 8, SL_MACHINE_GPU_GEMMS = 16
};

/* What makes a kept file fit the machine that it is read on. */
typedef struct sl_machine_id {
    char cpu[96];               /* "AMD EPYC 9654 96-Core Processor" */
    char isa[64];               /* "avx2 avxvnni avx512 avx512vnni"; empty: none of these */
    uint32_t cores;             /* physical ones that the process may use */
    uint32_t hw_threads;
    uint64_t l3_bytes;          /* of the last cache level; 0: unknown */
    uint64_t ram_bytes;
} sl_machine_id;

typedef struct sl_machine_point { uint32_t threads; double value; } sl_machine_point;

/* Reads past the page cache at random places of one file, so many of so many bytes always in
 * flight. */
typedef struct sl_machine_disk_point { uint32_t depth; double bytes_s; } sl_machine_disk_point;
typedef struct sl_machine_curve {
    uint32_t bytes;             /* of one read */
    uint32_t n;                 /* points, depth ascending */
    sl_machine_disk_point at[SL_MACHINE_POINTS];
} sl_machine_curve;
typedef struct sl_machine_disk {
    uint32_t n_curves;          /* bytes ascending; 0: not measured */
    char where[256];            /* the file or folder that was read */
    double latency_s;           /* median of one read of 4 KiB with nothing else in flight */
    /* of places that nobody had read for a while, where a cache below this machine makes later
     * reads faster: bytes/s. True of a file right behind the probe only, so not kept. 0: the curves
     * hold for them too */
    double first_bytes_s;
    sl_machine_curve curve[SL_MACHINE_CURVES];
} sl_machine_disk;

/* Products with weights of one type that come from RAM, by the engine's own kernels. */
typedef struct sl_machine_gemm_point {
    uint32_t rows;              /* of activations that each weight is multiplied by */
    double ops_s;               /* multiply-adds/s of all threads together, stage_s and elem_s of
                                 * sl_machine_cost taken off */
} sl_machine_gemm_point;
typedef struct sl_machine_gemm {
    sl_type type;
    uint32_t threads;
    uint32_t n;                 /* points, at least one, rows ascending, the first has 1 */
    sl_machine_gemm_point at[SL_MACHINE_GEMM_POINTS];
} sl_machine_gemm;

/* What the engine's stages take beside their products. A stage of some rows lasts
 *     stage_s + elem_s * rows * d_model + the seconds of its products or its attention
 * where a stage of experts counts a row once for each expert that it goes to. */
typedef struct sl_machine_cost {
    uint32_t threads;
    double stage_s;             /* a stage with next to nothing to do: submit, its barriers */
    double elem_s;              /* norms, rope, quantising, adding: per row and element of d_model
                                 * in one stage */
    /* attention of one row to F16 keys and values in RAM with 8 queries for each, heads of 128;
     * and of a prompt's rows over each other */
    double decode_flops_s, prefill_flops_s;
    /* the same of one row with one query for each, in bytes of keys and values; 0: unknown */
    double decode_bytes_s;
    /* While these threads multiply one row with Q4_K weights from RAM and the disk is kept busy:
     * the share of its own speed that each keeps, 0 to 1. 0: not measured. */
    double corun_cpu, corun_disk;
    double corun_tiles;         /* the CPU's while it multiplies many rows: memory has room then */
    /* what a stage of experts of many rows takes whatever the number of experts: threads share few
     * of them less evenly. Of small experts less: no call takes longer than one thread alone.
     * 0: stage_s */
    double call_s;
} sl_machine_cost;

/* The Linux kernel's usual period of a CPU quota (cpu.max). */
#define SL_MACHINE_QUOTA_S 0.1

/* An accelerator and its link. Rates are what is sustained; those of pageable memory and the
 * latencies are 0 where nobody knows. */
typedef struct sl_machine_gpu {
    char name[96];
    uint64_t vram_bytes;
    double vram_bytes_s;        /* reads of its own memory */
    double flops_s;             /* 16-bit matrix products with 32-bit sums, dense: what its data
                                 * sheet says; flops */
    double h2d_bytes_s, d2h_bytes_s;                    /* from and to pinned memory */
    double h2d_pageable_bytes_s, d2h_pageable_bytes_s;
    double copy_s, launch_s;    /* latency of a copy, of a stage's start */
    /* attention and what stages do to each element, as in sl_machine_cost; 0: not measured */
    double decode_flops_s, prefill_flops_s, decode_bytes_s, elem_s;
    uint32_t n_gemms;           /* as above, threads 0 */
    sl_machine_gemm gemm[SL_MACHINE_GPU_GEMMS];
} sl_machine_gpu;

typedef struct sl_machine {
    sl_machine_source source;
    char notes[1024];           /* where the numbers come from, for a person; may be empty */
    sl_machine_id id;
    uint32_t n_dram, n_barrier; /* points, threads ascending; 0 barriers: not measured */
    sl_machine_point dram_read[SL_MACHINE_POINTS];  /* bytes/s that so many threads read together */
    sl_machine_point barrier[SL_MACHINE_POINTS];    /* s of an empty task on every thread */
    double peak_core[SL_N_PEAKS];   /* operations/s of one core alone; 0: not on this machine */
    double peak_all[SL_N_PEAKS];    /* of all cores together */
    sl_machine_disk disk;
    double read_cpu_s;          /* CPU time of one disk request; 0: unknown */
    /* CPU time that a virtual machine's host takes for each byte read, where it is counted as this
     * machine's own: together they have as much as hw_threads give in each SL_MACHINE_QUOTA_S, and
     * all stand still for the rest of it when that is used up. 0: nothing is taken, or unknown */
    double read_host_s;
    uint32_t n_gemms, n_costs, n_gpus;
    sl_machine_gemm gemm[SL_MACHINE_GEMMS];     /* by type, then threads ascending */
    sl_machine_cost cost[SL_MACHINE_COSTS];     /* threads ascending */
    sl_machine_gpu gpu[SL_MACHINE_GPUS];
} sl_machine;

/* Errors: SL_E_FORMAT naming the field, what was expected and what was found. */
SL_API SL_NODISCARD sl_status sl_machine_check(sl_ctx *ctx, const sl_machine *m);

/* Is the kept identity that of this machine? If not, why holds the first difference in one line.
 * Memory may differ by 5 %: firmware and kernels take their share. */
SL_API bool sl_machine_same(const sl_machine_id *kept, const sl_machine_id *now, char why[200]);

/* Bytes/s that n threads read: between measured points linear in threads, beyond them the
 * nearest. */
SL_API double sl_machine_dram_s(const sl_machine *m, uint32_t threads);
/* The same of barriers; not measured: 20 ns, and 100 ns for each of several threads, since they
 * take turns at one counter (2 threads on Zen 5: 225 ns). */
SL_API double sl_machine_barrier_s(const sl_machine *m, uint32_t threads);
/* Operations/s of n cores: n times one core, at most peak_all. 0: no such instructions. */
SL_API double sl_machine_peak_s(const sl_machine *m, sl_peak peak, uint32_t threads);

/* Bytes/s of the disk while `depth` reads of `bytes` are in flight. Between measured points log
 * bytes/s is linear in log depth and log bytes (a rate that grows with either until something is
 * full looks so); beyond them the nearest. 0: not measured. */
SL_API double sl_machine_disk_s(const sl_machine *m, double bytes, double depth);
/* How to read best: the largest rate measured, and the size and number of reads that come within
 * 5 % of it with the fewest bytes in flight (so a batch is large enough the soonest), of those with
 * the larger reads. Returns false, and 1 MiB and 16, where the disk was not measured. */
SL_API bool sl_machine_disk_best(const sl_machine *m, uint32_t *ret_bytes, uint32_t *ret_depth,
                                 double *ret_bytes_s);

/* Seconds in which n threads multiply n_weights weights of a type by `rows` rows each (1 at least),
 * from RAM. Between measured points the seconds are linear in rows, beyond the last the rate stays;
 * a point that is faster than one with fewer rows counts as equal. Between thread counts the rate
 * is linear in threads. For other counts, and for types that were not measured, the measured curve
 * (of the kind - float, blocks, tables of IQ1 to IQ3 - the type nearest in size) is
 * stretched by what the rooflines differ at its points; where no type of the kind was
 * measured, the roofline itself: DRAM, and the best int8 (float types: FP32) peak, each times the
 * share of it that kernels reach on a measured machine (perfmodel/machine_rates.c).
 * Always > 0 for n_weights > 0, proportional to n_weights, never less for more rows; and never more
 * for faster DRAM or peaks where no type of the kind was measured. */
SL_API double sl_machine_gemm_seconds(const sl_machine *m, sl_type type, uint32_t threads,
                                      double n_weights, double rows);
/* Costs of so many threads: between measured counts rates (and stage_s) are linear in threads,
 * beyond them they change as the derived ones do. Derived from DRAM, peaks and barriers where none
 * was measured. Every field is > 0, the co-run shares too: not measured, the disk takes its rate
 * out of DRAM's before the CPU. */
SL_API sl_machine_cost sl_machine_cost_at(const sl_machine *m, uint32_t threads);
/* Seconds of a row's attention to so many elements of keys and values (F16) with so many flops:
 * each element takes its time to load, and each flop on it, as the two measured groupings of
 * queries say. Where one was measured: by its flops alone. */
SL_API double sl_machine_decode_seconds(const sl_machine_cost *c, double elems, double flops);
/* The same products on an accelerator, without copies and launches: from the measured curve of that
 * type or the one nearest in size as above; with none measured the larger of weights over 0.8 of
 * its memory's rate and operations over 0.6 of its flops_s, of 16 rows at least. */
SL_API double sl_machine_gpu_gemm_seconds(const sl_machine_gpu *g, sl_type type, double n_weights,
                                          double rows);
/* Attention on it, of a prompt's rows or of rows that decode, to so many elements of keys and
 * values (that take so many bytes) with so many flops: at the rates that were measured; else the
 * larger of bytes and flops at the same shares of its memory's rate and of flops_s. */
SL_API double sl_machine_gpu_attend_seconds(const sl_machine_gpu *g, double elems, double bytes,
                                            double flops, bool prompt);

/* "int8_avx512vnni": also the field in the file */
SL_API const char *sl_peak_name(sl_peak peak);
/* "datasheet", "quick", "measured" */
SL_API const char *sl_machine_source_name(sl_machine_source s);

#endif
