/* perfmodel/machine_rates.c - how fast a machine multiplies and attends: from what was measured
 * where there is such a point, from rooflines over typical shares where there is none. */
#include "perfmodel/sl_machine.h"

#include <math.h>

/* Shares of the machine's limits that this engine's kernels reach, rounded from
 * docs/performance.md and from probes of the same machine (Zen 5).
 * Matrix-vector: 0.72-0.91 of DRAM's read rate; where weights come from a cache, 90 GMAC/s a core
 * with AVX-512, 55 with AVX2. Tiles of 8 / 64 / 128 rows of the int8 peak: 0.34-0.43 / 0.57-0.65 /
 * 0.59-0.67 with VNNI, 0.26-0.37 / 0.57-0.71 / 0.59-0.78 with AVX2: a weight is unpacked for the
 * price of some rows and then multiplied at a share of the peak. IQ2 and IQ3 are looked up in
 * tables, at 3-5 GB/s a core: 0.1 weights a flop of the 256-bit FP32 peak. */
static const double dram_share = 0.85, table_share = 0.1;
static const struct { double vector, tile, unpack_rows; } int_share[] = {
    [SL_PEAK_I8_AVX2] = { 0.4, 0.78, 9 },
    [SL_PEAK_I8_AVXVNNI] = { 0.3, 0.66, 5.3 },
    [SL_PEAK_I8_VNNI512] = { 0.16, 0.66, 5.3 },
};
/* Float weights: 0.39-0.45 of the FP32 peak with 64 rows, less with few. */
static const double float_share = 0.5, float_rows = 5, float_vector_share = 0.25;
/* A core without any of the peaks' instructions: plain C, multiply-adds/s. */
static const double plain_ops_s = 4e9;
/* Attention: 0.38-0.50 of FP32 in decode, where each byte of F16 keys and values serves 8 flops
 * for 8 query heads on one; 0.45-0.65 in a prompt. */
static const double decode_share = 0.45, prefill_share = 0.52, decode_flops_byte = 8;
/* A GPU's matrix products: 60-65 % of the data sheet for MoE-Lens's A40 (its n_real against its
 * peak); tensor cores take 16 rows at a time. */
static const double gpu_share = 0.6, gpu_vram_share = 0.8, gpu_rows = 16;

typedef enum kind { KIND_FLOAT, KIND_BLOCKS, KIND_TABLES } kind;

static kind kind_of(sl_type t)
{
    switch (t) {
    case SL_F32: case SL_F16: case SL_BF16: case SL_F64: return KIND_FLOAT;
    case SL_IQ1_S: case SL_IQ1_M: case SL_IQ2_XXS: case SL_IQ2_XS: case SL_IQ2_S:
    case SL_IQ3_XXS: case SL_IQ3_S: return KIND_TABLES;
    default: return KIND_BLOCKS;
    }
}

static double weight_bytes(sl_type t)
{
    const sl_type_info *i = sl_type_get(t);
    return i->block_elems ? (double)i->block_bytes / i->block_elems : 4;
}

/* Multiply-adds/s of FP32; flops are two each. */
static double float_ops_s(const sl_machine *m, uint32_t threads)
{
    double best = fmax(sl_machine_peak_s(m, SL_PEAK_F32_AVX2, threads),
                       sl_machine_peak_s(m, SL_PEAK_F32_AVX512, threads)) / 2;
    return best > 0 ? best : plain_ops_s * threads;
}

/* Seconds of one 8-bit multiply-add of `rows` rows by the best instructions there are. */
static double multiply_s(const sl_machine *m, uint32_t threads, double rows)
{
    double best = INFINITY;
    for (int i = SL_PEAK_I8_AVX2; i <= SL_PEAK_I8_VNNI512; i++) {
        double ops_s = sl_machine_peak_s(m, (sl_peak)i, threads);
        double vector = rows / int_share[i].vector;
        double tile = (rows + int_share[i].unpack_rows) / int_share[i].tile;
        if (ops_s > 0) best = fmin(best, fmin(vector, tile) / ops_s);
    }
    return isfinite(best) ? best : rows / (float_share * float_ops_s(m, threads));
}

static double table_weights_s(const sl_machine *m, uint32_t threads)
{
    double flops_s = sl_machine_peak_s(m, SL_PEAK_F32_AVX2, threads);
    return table_share * (flops_s > 0 ? flops_s : 2 * float_ops_s(m, threads));
}

/* Seconds of one weight on so many rows where nothing was measured. Never falls with rows, nor
 * rises with a rate. */
static double roofline_s(const sl_machine *m, sl_type type, uint32_t threads, double rows)
{
    double from_ram = weight_bytes(type) / (dram_share * sl_machine_dram_s(m, threads));
    if (kind_of(type) == KIND_FLOAT)
        return fmax(from_ram, fmin(rows / float_vector_share, (rows + float_rows) / float_share)
                                  / float_ops_s(m, threads));
    double multiply = multiply_s(m, threads, rows);
    if (kind_of(type) == KIND_TABLES) multiply += 1 / table_weights_s(m, threads);
    return fmax(from_ram, multiply);
}

/* ---- products that were measured ---- */

/* What a weight costs at the i-th point of g, for another type and another number of threads: as
 * much more or less as their rooflines differ. */
static double point_s(const sl_machine *m, const sl_machine_gemm *g, uint32_t i, sl_type type,
                      uint32_t threads)
{
    double rows = g->at[i].rows, s = rows / g->at[i].ops_s;
    if (type == g->type && threads == g->threads) return s;
    return s * roofline_s(m, type, threads, rows) / roofline_s(m, g->type, g->threads, rows);
}

/* s[] of one weight at g's rows: noise never makes more rows cheaper. */
static double along(const sl_machine_gemm *g, const double *s, double rows)
{
    double before = s[0], before_rows = g->at[0].rows;
    if (rows <= before_rows) return before;
    for (uint32_t i = 1; i < g->n; i++) {
        double now = fmax(before, s[i]), now_rows = g->at[i].rows;
        if (rows <= now_rows)
            return before + (rows - before_rows) / (now_rows - before_rows) * (now - before);
        before = now;
        before_rows = now_rows;
    }
    return before * rows / before_rows;
}

static double curve_s(const sl_machine *m, const sl_machine_gemm *g, sl_type type,
                      uint32_t threads, double rows)
{
    double s[SL_MACHINE_GEMM_POINTS] = { 0 };
    for (uint32_t i = 0; i < g->n; i++) s[i] = point_s(m, g, i, type, threads);
    return along(g, s, rows);
}

/* The type itself where it was measured, otherwise the one of the same kind whose weights are
 * nearest in size. False: none. */
static bool stand_in(const sl_machine *m, sl_type type, sl_type *ret)
{
    double nearest = INFINITY, bytes = weight_bytes(type);
    kind k = kind_of(type);
    *ret = type;
    for (uint32_t i = 0; i < m->n_gemms; i++)
        if (m->gemm[i].type == type) return true;
    for (uint32_t i = 0; i < m->n_gemms; i++) {
        sl_type t = m->gemm[i].type;
        double apart = fmax(weight_bytes(t) / bytes, bytes / weight_bytes(t));
        if (kind_of(t) != k || apart >= nearest) continue;
        nearest = apart;
        *ret = t;
    }
    return isfinite(nearest);
}

double sl_machine_gemm_seconds(const sl_machine *m, sl_type type, uint32_t threads,
                               double n_weights, double rows)
{
    const sl_machine_gemm *below = NULL, *above = NULL;
    sl_type from;
    threads = SL_MAX(threads, 1);
    rows = fmax(rows, 1);
    if (!stand_in(m, type, &from)) return n_weights * roofline_s(m, type, threads, rows);
    for (uint32_t i = 0; i < m->n_gemms; i++) {
        const sl_machine_gemm *g = &m->gemm[i];
        if (g->type != from) continue;
        if (g->threads <= threads) below = g;
        else if (!above) above = g;
    }
    if (!below || !above || below->threads == threads)
        return n_weights * curve_s(m, below ? below : above, type, threads, rows);
    double share = (double)(threads - below->threads) / (above->threads - below->threads);
    double slow = 1 / curve_s(m, below, type, below->threads, rows);
    double fast = 1 / curve_s(m, above, type, above->threads, rows);
    return n_weights / (slow + share * (fast - slow));
}

static double gpu_roofline_s(const sl_machine_gpu *g, sl_type type, double rows)
{
    return fmax(weight_bytes(type) / (gpu_vram_share * g->vram_bytes_s),
                2 * fmax(rows, gpu_rows) / (gpu_share * g->flops_s));
}

double sl_machine_gpu_gemm_seconds(const sl_machine_gpu *g, sl_type type, double n_weights,
                                   double rows)
{
    double s[SL_MACHINE_GEMM_POINTS] = { 0 }, nearest = INFINITY;
    const sl_machine_gemm *from = NULL;
    rows = fmax(rows, 1);
    for (uint32_t i = 0; i < g->n_gemms; i++) {
        double ratio = weight_bytes(g->gemm[i].type) / weight_bytes(type);
        double apart = g->gemm[i].type == type ? 0 : fmax(ratio, 1 / ratio);
        if (apart >= nearest) continue;
        nearest = apart;
        from = &g->gemm[i];
    }
    if (!from) return n_weights * gpu_roofline_s(g, type, rows);
    for (uint32_t k = 0; k < from->n; k++) {
        double at = from->at[k].rows;
        s[k] = at / from->at[k].ops_s;
        if (type != from->type)
            s[k] *= gpu_roofline_s(g, type, at) / gpu_roofline_s(g, from->type, at);
    }
    return n_weights * along(from, s, rows);
}

double sl_machine_gpu_attend_seconds(const sl_machine_gpu *g, double elems, double bytes,
                                     double flops, bool prompt)
{
    if (prompt && g->prefill_flops_s > 0) return flops / g->prefill_flops_s;
    if (!prompt && g->decode_flops_s > 0) {
        sl_machine_cost c = { .decode_flops_s = g->decode_flops_s,
                              .decode_bytes_s = g->decode_bytes_s };
        return sl_machine_decode_seconds(&c, elems, flops);
    }
    return fmax(bytes / (gpu_vram_share * g->vram_bytes_s), flops / (gpu_share * g->flops_s));
}

/* ---- costs beside products ---- */

static sl_machine_cost derived(const sl_machine *m, uint32_t threads)
{
    double flops_s = 2 * float_ops_s(m, threads), dram = sl_machine_dram_s(m, threads);
    double all_dram = dram, disk = 0;
    uint32_t bytes, depth;
    sl_machine_disk_best(m, &bytes, &depth, &disk);
    for (uint32_t i = 0; i < m->n_dram; i++) all_dram = fmax(all_dram, m->dram_read[i].value);
    return (sl_machine_cost){
        .threads = threads,
        .stage_s = 5e-7 + 3 * sl_machine_barrier_s(m, threads),
        .elem_s = 70 / flops_s,         /* some ten operations, most of the time waiting */
        .decode_flops_s = fmin(decode_share * flops_s, dram_share * dram * decode_flops_byte),
        .prefill_flops_s = prefill_share * flops_s,
        /* the disk's writes to RAM come first, the cores share what is left */
        .corun_cpu = fmin(1, fmax(0.3, (all_dram - disk) / dram)),
        .corun_disk = 1,
        .corun_tiles = 1,
        .call_s = 5e-7 + 3 * sl_machine_barrier_s(m, threads),
    };
}

/* 0: not measured */
static double mix(double a, double b, double share)
{
    return a > 0 && b > 0 ? a + share * (b - a) : fmax(a, b);
}

sl_machine_cost sl_machine_cost_at(const sl_machine *m, uint32_t threads)
{
    threads = SL_MAX(threads, 1);
    sl_machine_cost now = derived(m, threads);
    uint32_t i = 0, n = m->n_costs;
    if (!n) return now;
    while (i < n - 1 && m->cost[i].threads < threads) i++;
    const sl_machine_cost *b = &m->cost[i], *a = i && b->threads > threads ? b - 1 : b;
    bool inside = a->threads < threads && threads < b->threads;
    if (!inside) a = b;
    double share = inside ? (double)(threads - a->threads) / (b->threads - a->threads) : 0;
    sl_machine_cost r = {
        .threads = threads,
        .stage_s = mix(a->stage_s, b->stage_s, share),
        .elem_s = 1 / mix(1 / a->elem_s, 1 / b->elem_s, share),
        .decode_flops_s = mix(a->decode_flops_s, b->decode_flops_s, share),
        .prefill_flops_s = mix(a->prefill_flops_s, b->prefill_flops_s, share),
        .decode_bytes_s = mix(a->decode_bytes_s, b->decode_bytes_s, share),
        .corun_cpu = mix(a->corun_cpu, b->corun_cpu, share),
        .corun_disk = mix(a->corun_disk, b->corun_disk, share),
        .corun_tiles = mix(a->corun_tiles, b->corun_tiles, share),
        .call_s = mix(a->call_s, b->call_s, share),
    };
    if (!inside && a->threads != threads) {     /* as much more or less as the derived ones */
        sl_machine_cost then = derived(m, a->threads);
        r.stage_s *= now.stage_s / then.stage_s;
        r.elem_s *= now.elem_s / then.elem_s;
        r.decode_flops_s *= now.decode_flops_s / then.decode_flops_s;
        r.decode_bytes_s *= now.decode_flops_s / then.decode_flops_s;
        r.prefill_flops_s *= now.prefill_flops_s / then.prefill_flops_s;
    }
    if (r.corun_cpu <= 0) r.corun_cpu = now.corun_cpu;
    if (r.corun_disk <= 0) r.corun_disk = now.corun_disk;
    if (r.corun_tiles <= 0) r.corun_tiles = now.corun_tiles;
    r.call_s = fmax(r.call_s, r.stage_s);
    return r;
}

double sl_machine_decode_seconds(const sl_machine_cost *c, double elems, double flops)
{
    if (!(c->decode_bytes_s > 0)) return flops / c->decode_flops_s;
    /* an element is multiplied by one query with 2 flops, by 8 with 16 */
    double eight = 16 / c->decode_flops_s, one = 2 / c->decode_bytes_s;
    double flop_s = fmax(eight - one, 0) / 14, load_s = fmax(one - 2 * flop_s, 0);
    return elems * load_s + flops * flop_s;
}
