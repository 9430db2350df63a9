/* kernels/sl_quant.h - products of quantised weights with 8-bit activations: one integer formula
 * for every type, so that each ISA and each shape of kernel gives the same bits.
 *
 * A weight row is a run of groups of G elements (G = 256 for the types with super-blocks, 32 for
 * the others). Element i of a group is  d * sc[i/16] * (q[i] - zero) - dmin * mn[i/16]  with q
 * unsigned, sc and mn small integers, zero a constant of the type; types without minima have dmin =
 * 0. An activation row is quantised in the same groups: x[i] ~ dA * a[i], a signed 8-bit, and
 * s[j] = sum of a over elements 16j .. 16j+15. The product of a row is, group by group in k order,
 *     sumi = sum_j sc[j] * (sum_{i in j} q[i] a[i] - zero * s[j])           exact in int32
 *     summ = sum_j mn[j] * s[j]                                             exact in int32
 *     u    = d * sumi;  u = fma(-dmin, summ, u)  (types with minima);  acc = fma(dA, u, acc)
 * d and dmin as float32, all three operations rounded once. Types of 32 elements have one sc = 1;
 * Q4_1 and Q5_1 have dmin = -m, mn = 1.
 * Must not allocate, block, do I/O or log. Threads: pure functions. Units: elements, bytes.
 * Tested by tests/t_quant.c: every set bit for bit against the reference, guard pages, and the
 * reference against the dequantised weights times the dequantised activations in double. */
#ifndef SL_QUANT_H
#define SL_QUANT_H

#include "runtime/base/sl_type.h"

/* A quantised activation row of n elements (a multiple of G), 64-byte aligned:
 *   int8_t a[n], padded to 64 bytes; float dA[n / G], padded to 64 bytes; int16_t s[n / 16]
 * dA = max|x| / 127 of the group; a = x * (127 / max|x|) rounded to nearest, ties to even; a group
 * so small that 127 / max|x| overflows counts as zeros, and a group of zeros has a = 0 and dA = 0.
 * A group that holds NaN or infinity has a = 0 and dA = NaN. The padding is never written nor
 * used. */
static inline size_t sl_qx_scales(size_t n) { return (n + 63) / 64 * 64; }
static inline size_t sl_qx_sums(uint32_t group, size_t n)
{
    return sl_qx_scales(n) + (n / group * sizeof(float) + 63) / 64 * 64;
}
static inline size_t sl_qx_bytes(uint32_t group, size_t n)
{
    return sl_qx_sums(group, n) + (n / 16 * sizeof(int16_t) + 63) / 64 * 64;
}

/* Integer kernels of one weight type. group 0: there are none, the row is dequantised instead. */
typedef struct sl_qmul {
    uint32_t group;         /* G: 256 or 32 */
    /* ret[r] = row r (at w + r * row_bytes) times x, n_rows rows. For few activation rows: streams
     * the weights once, at the speed of memory; the more rows in a call (64 or more), the fewer
     * starts. */
    void (*rows)(const void *w, size_t row_bytes, uint32_t n_rows, const void *x, size_t n,
                 float *ret);
    uint32_t few_x;         /* activation rows up to which `rows` for each is the quicker way */
    /* For many activation rows: `unpack` prepares n_rows <= tile_rows rows in the kernel's own form
     * of tile_bytes(n), 64-byte aligned; it may keep the address w, whose bytes must stay until the
     * last use.
     * `tile` multiplies them with each of n_x activation rows: ret[j * ld + r] is row r times x_j =
     * x[j], n_rows at most that of unpack. A call may unpack weights anew: hand it all activation
     * rows at once. */
    uint32_t tile_rows;
    size_t (*tile_bytes)(size_t n);
    void (*unpack)(const void *w, size_t row_bytes, uint32_t n_rows, size_t n, void *ret_tile);
    void (*tile)(const void *tile, uint32_t n_rows, const void *const *x, uint32_t n_x, size_t n,
                 float *ret, size_t ld);
} sl_qmul;

/* Part of sl_kernels (kernels/sl_kernels.h): qmul[SL_N_TYPES] and
 * void (*quantise)(uint32_t group, const float *x, size_t n, void *ret). */

#endif
