/* kernels/cpu/quant_512.c - quantised products with 512-bit vectors, compiled for AVX-512-VNNI and
 * for AVX-512 without it. Lanes are runs of weights: a vector holds 4 elements of each of 16 runs,
 * and nothing is added across lanes before a group's end. `tile` unpacks a block of 32 rows into
 * the first-level cache and multiplies it by up to 6 activation rows at a time, whose dwords come
 * broadcast, 24 sums in registers. `rows` unpacks four runs of 256 elements of each of four rows
 * and multiplies them on the spot.
 * Per 32 elements (16 for types with finer scales): a chain of dot products that starts at
 * -zero * sum(a), one vpmulld by the scale, one add. Against vpdpwssd on int16 halves this costs
 * one multiplier slot in nine instead of two in ten (Zen 5: 88 % of the peak of vpdpbusd against 79
 * %). */
#include "kernels/cpu/quant_unpack512.h"

#include <assert.h>
#include <float.h>
#include <math.h>

typedef __m512 vf;

enum {
    TILE_VECTORS = 2,
    TILE_ROWS = 16 * TILE_VECTORS,
    FEW_X = 2,                  /* 3 rows take 0.55-0.8 of three times `rows` */
    MAX_X = 6,
    BLOCK_ELEMS = 256,
    MAX_SLOTS = 90
};

/* acc += w x, four products a lane, w unsigned. */
KX_INLINE vi dot4(vi acc, vi w, vi x, bool wide)
{
#ifdef __AVX512VNNI__
    (void)wide;     /* asm, because gcc copies registers around the intrinsic */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
#else
    vi ones = _mm512_set1_epi16(1);
    if (!wide) return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), ones));
    vi low = _mm512_maddubs_epi16(and8(w, 127), x),
       high = _mm512_maddubs_epi16(and8(shr(w, 7), 1), x);
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(low, ones));
    return _mm512_add_epi32(acc, _mm512_madd_epi16(high, _mm512_set1_epi16(128)));
#endif
}

typedef struct { uint32_t v; } __attribute__((packed, may_alias)) dword;

KX_INLINE vi bcast(const void *p)
{
    return _mm512_set1_epi32((int)((const dword *)p)->v);
}

/* dot4 with the dword at x in every lane. */
KX_INLINE vi dot4_at(vi acc, vi w, const void *x, bool wide)
{
#ifdef __AVX512VNNI__
    (void)wide;
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const dword *)x));
    return acc;
#else
    return dot4(acc, w, bcast(x), wide);
#endif
}

/* acc += products of two pairs of int16 a lane. */
KX_INLINE vi dot2(vi acc, vi w, vi x)
{
#ifdef __AVX512VNNI__
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(w, x));
#endif
}

/* 256 elements of an activation row (fewer at the end of one in groups of 32). */
struct xblock {
    const int8_t *a;
    const float *scale;
    /* without minima: -zero * sum of a, per scale (or group of 32); with: what the minima multiply:
     * pairs of int16, one sum for each; in groups of 32 a float */
    int32_t z[16];
};

KX_INLINE void xblock_init(struct kind k, int zero, const void *x, size_t n, size_t at,
                           struct xblock *ret)
{
    const char *base = x;
    const __m256i *s = (const void *)(base + sl_qx_sums((uint32_t)k.group, n) + at / 8);
    __m256i s16 = _mm256_loadu_si256(s);
    ret->a = (const int8_t *)base + at;
    /* else gcc keeps, and advances, an address for each of 64 dwords */
    __asm__("" : "+r"(ret->a));
    ret->scale = (const float *)(const void *)(base + sl_qx_scales(n)) + at / (size_t)k.group;
    if (k.mins && k.n_sc == 16) {
        _mm256_storeu_si256((void *)ret->z, s16);
    } else if (k.mins && k.n_sc == 8) {
        __m256i s32 = _mm256_madd_epi16(s16, _mm256_set1_epi16(1));
        _mm_storeu_si128((void *)ret->z, _mm256_cvtepi32_epi16(s32));
    } else if (k.mins) {
        __m256i s32 = _mm256_madd_epi16(s16, _mm256_set1_epi16(1));
        _mm256_storeu_ps((void *)ret->z, _mm256_cvtepi32_ps(s32));
    } else if (k.n_sc == 16) {
        vi s32 = _mm512_cvtepi16_epi32(s16);
        _mm512_storeu_si512(ret->z, _mm512_mullo_epi32(s32, _mm512_set1_epi32(-zero)));
    } else {
        _mm256_storeu_si256((void *)ret->z,
                            _mm256_madd_epi16(s16, _mm256_set1_epi16((short)-zero)));
    }
}

/* `steps` slots from w, weights of nv row groups, times nx activation rows from a[] + at; the sums
 * start at z[i] or at 0. */
KX_INLINE void chain(struct kind k, const uint8_t *w, const struct xblock *x, int at, int i,
                     const int steps, const int nv, const int nx, vi sum[TILE_VECTORS][MAX_X])
{
    KX_UNROLL for (int t = 0; t < nx; t++)
        KX_UNROLL for (int v = 0; v < nv; v++)
            sum[v][t] = k.mins ? _mm512_setzero_si512() : bcast(&x[t].z[i]);
    KX_UNROLL for (int s = 0; s < steps; s++) {
        vi wv[TILE_VECTORS];
        KX_UNROLL for (int v = 0; v < nv; v++) wv[v] = _mm512_load_si512(w + (s * nv + v) * 64);
        KX_UNROLL for (int t = 0; t < nx; t++) {
            vi b = bcast(x[t].a + at + 4 * s);
            KX_UNROLL for (int v = 0; v < nv; v++) sum[v][t] = dot4(sum[v][t], wv[v], b, k.wide);
        }
    }
}

/* acc = fma(dA, u, acc), u from a group's sums. summ: as float, used with minima. */
KX_INLINE void add_group(struct kind k, const uint8_t *w, const struct xblock *x, int group,
                         const int nv, const int nx, vi sum[TILE_VECTORS][MAX_X],
                         vf summ[TILE_VECTORS][MAX_X], vf acc[TILE_VECTORS][MAX_X])
{
    const float *d = (const float *)(const void *)(w + slot_d(k) * nv * 64);
    KX_UNROLL for (int t = 0; t < nx; t++) {
        vf scale = _mm512_set1_ps(x[t].scale[group]);
        KX_UNROLL for (int v = 0; v < nv; v++) {
            vf u = _mm512_mul_ps(_mm512_load_ps(d + 16 * v), _mm512_cvtepi32_ps(sum[v][t]));
            if (k.mins) u = _mm512_fnmadd_ps(_mm512_load_ps(d + 16 * (nv + v)), summ[v][t], u);
            acc[v][t] = _mm512_fmadd_ps(scale, u, acc[v][t]);
        }
    }
}

/* Weights that are needed later, asked for `step` bytes at a time between multiplications: all at
 * once they hold up the loads that are needed now. */
struct fetch {
    const uint8_t *at, *end;
    size_t step;
};

KX_INLINE void fetch_some(struct fetch *f)
{
    const uint8_t *at = f->at, *end = (size_t)(f->end - at) < f->step ? f->end : at + f->step;
    for (; at < end; at += 64) _mm_prefetch(at, _MM_HINT_T0);
    f->at = end;
}

/* A block of 256 elements: n_groups groups of 32, or one of 256. */
KX_INLINE void multiply(struct kind k, const uint8_t *w, const struct xblock *x, int n_groups,
                        const int nv, const int nx, struct fetch *f, vf acc[TILE_VECTORS][MAX_X])
{
    vi sum[TILE_VECTORS][MAX_X], part[TILE_VECTORS][MAX_X];
    vf summ[TILE_VECTORS][MAX_X];
    if (k.group == 32) {
        for (int g = 0; g < n_groups; g++, w += n_slots(k) * nv * 64) {
            fetch_some(f);
            chain(k, w, x, 32 * g, g, 8, nv, nx, sum);
            if (k.mins)
                KX_UNROLL for (int t = 0; t < nx; t++)
                    KX_UNROLL for (int v = 0; v < nv; v++)
                        summ[v][t] = _mm512_castsi512_ps(bcast(&x[t].z[g]));
            add_group(k, w, x, g, nv, nx, sum, summ, acc);
        }
        return;
    }
    const int steps = BLOCK_ELEMS / 4 / k.n_sc;
    const uint8_t *sc = w + 64 * nv * 64;
    KX_UNROLL for (int t = 0; t < nx; t++)
        KX_UNROLL for (int v = 0; v < nv; v++) sum[v][t] = _mm512_setzero_si512();
    for (int j = 0; j < k.n_sc; j++) {
        fetch_some(f);
        chain(k, w + j * steps * nv * 64, x, 4 * j * steps, j, steps, nv, nx, part);
        KX_UNROLL for (int v = 0; v < nv; v++) {
            vi scale = _mm512_load_si512(sc + (j * nv + v) * 64);
            KX_UNROLL for (int t = 0; t < nx; t++)
                sum[v][t] = _mm512_add_epi32(sum[v][t], _mm512_mullo_epi32(part[v][t], scale));
        }
    }
    if (k.mins) {
        const uint8_t *m = sc + k.n_sc * nv * 64;
        KX_UNROLL for (int t = 0; t < nx; t++)
            KX_UNROLL for (int v = 0; v < nv; v++) part[v][t] = _mm512_setzero_si512();
        KX_UNROLL for (int j = 0; j < n_mins(k); j++) KX_UNROLL for (int t = 0; t < nx; t++)
            KX_UNROLL for (int v = 0; v < nv; v++) part[v][t] =
                dot2(part[v][t], _mm512_load_si512(m + (j * nv + v) * 64), bcast(&x[t].z[j]));
        KX_UNROLL for (int t = 0; t < nx; t++)
            KX_UNROLL for (int v = 0; v < nv; v++) summ[v][t] = _mm512_cvtepi32_ps(part[v][t]);
    }
    add_group(k, w, x, 0, nv, nx, sum, summ, acc);
}

/* What `rows` multiplies by, side by side for four runs of 256 elements: dword i of run j of the
 * activations is at dword 4 * slot_of(i) + j, and z[i][j] is z[i] of struct xblock for run j. */
enum {
    RUNS = 4,
    MAX_QUADS = 32,
    SETS = 2,               /* of four rows, at a time */
    AHEAD = 8192            /* bytes fetched ahead of those rows at least */
};
struct quad {
    int8_t a[RUNS * BLOCK_ELEMS];
    int32_t z[16][RUNS];
};

/* Where a run's dword i is among the dwords of the run. */
KX_INLINE int slot_of(int i) { return i / 16 * 16 + i % 4 * 4 + i % 16 / 4; }

/* asm, because gcc loads all of them into memory of its own first */
KX_INLINE vi bcast4(const void *p)
{
    vi v;
    __asm__("vbroadcasti32x4 %1, %0" : "=v"(v) : "m"(*(const __m128i *)p));
    return v;
}

/* What becomes of the slots of a block: either they are stored, the vectors of nv row groups side
 * by side, or they are multiplied on the spot: 256 elements of 16 rows, or four such runs of four
 * rows. */
struct sink {
    uint8_t *to;                /* place of the first block plus 64 times the row group's index */
    int nv;
    const struct xblock *x;     /* MULTIPLY: the sums go to acc */
    vf acc;
    const struct quad *runs;    /* MULTIPLY_RUNS: those of each group to u */
    vf u[8];
    int group;                  /* in a block of 256 elements, for groups of 32 */
    vi sum[16], total, summ;
};

/* z[i] of what is multiplied by. */
KX_INLINE vi sink_z(SINK, const int i)
{
    (void)k;
    return how == MULTIPLY ? bcast(&o->x->z[i]) : bcast4(o->runs->z[i]);
}

KX_INLINE void sink_begin(SINK, const int group)
{
    const int n = k.group == 32 ? 1 : k.n_sc;
    o->group = group;
    if (how == STORE) return;
    KX_UNROLL for (int c = 0; c < n; c++)
        o->sum[c] = k.mins ? _mm512_setzero_si512()
                           : sink_z(o, k, how, k.group == 32 ? group : c);
    o->total = o->summ = _mm512_setzero_si512();
}

KX_INLINE void sink_put(SINK, const int slot, vi v)
{
    const int n_w = k.group / 4, chain = k.n_sc ? 64 / k.n_sc : 8, d = slot_d(k);
    const int g = how == MULTIPLY ? 0 : o->group;
    if (how == STORE) {
        int at = o->group * n_slots(k) + slot;
        _mm512_store_si512(o->to + (size_t)(at * o->nv) * 64, v);
    } else if (slot < n_w) {
        vi *sum = &o->sum[slot / chain];
        if (how == MULTIPLY) *sum = dot4_at(*sum, v, o->x->a + o->group * 32 + 4 * slot, k.wide);
        else *sum = dot4(*sum, v, bcast4(o->runs->a + 16 * slot_of(g * 8 + slot)), k.wide);
    } else if (slot < n_w + k.n_sc) {
        o->total = _mm512_add_epi32(o->total, _mm512_mullo_epi32(o->sum[slot - n_w], v));
    } else if (slot < d) {
        o->summ = dot2(o->summ, v, sink_z(o, k, how, slot - n_w - k.n_sc));
    } else if (slot == d) {
        o->u[g] = _mm512_mul_ps(_mm512_castsi512_ps(v),
                                _mm512_cvtepi32_ps(k.n_sc ? o->total : o->sum[0]));
    } else {
        vf summ = k.n_sc ? _mm512_cvtepi32_ps(o->summ)
                         : _mm512_castsi512_ps(sink_z(o, k, how, o->group));
        o->u[g] = _mm512_fnmadd_ps(_mm512_castsi512_ps(v), summ, o->u[g]);
    }
    if (how == MULTIPLY && slot == d + k.mins)
        o->acc = _mm512_fmadd_ps(_mm512_set1_ps(o->x->scale[o->group]), o->u[g], o->acc);
}

typedef void (*unpack_fn)(const uint8_t *const *row, size_t off, SINK);

/* How a type's blocks are unpacked: one, or eight at once (types of 32 elements). */
struct unpacker {
    unpack_fn one, eight;
    size_t block_bytes;
};

/* The next 256 elements of 16 rows, fewer at the end of rows in groups of 32. */
KX_INLINE void unpack_groups(struct unpacker u, const uint8_t *const *row, size_t off, int n_groups,
                             SINK)
{
    if (u.eight && n_groups == 8) {
        u.eight(row, off, o, k, how);
        return;
    }
    for (int i = 0; i < n_groups; i++, off += u.block_bytes) {
        sink_begin(o, k, how, i);
        u.one(row, off, o, k, how);
    }
}

/* Rows of weights times activation rows. */
struct product {
    const uint8_t *w;
    size_t row_bytes, n, ld;
    uint32_t n_rows, n_x;
    const void *const *x;
    float *ret;
};

/* nx activation rows from x[first] on times the block w at element `at`; ret holds the sums between
 * blocks. */
KX_INLINE void tile_block(struct kind k, int zero, const struct product *p, const uint8_t *w,
                          const __mmask16 *mask, uint32_t first, size_t at, struct fetch *f,
                          const int nx)
{
    vf acc[TILE_VECTORS][MAX_X];
    struct xblock x[MAX_X];
    float *ret = p->ret + first * p->ld;
    KX_UNROLL for (int t = 0; t < nx; t++) {
        xblock_init(k, zero, p->x[first + (uint32_t)t], p->n, at, x + t);
        KX_UNROLL for (int v = 0; v < TILE_VECTORS; v++)
            acc[v][t] = at ? _mm512_maskz_loadu_ps(mask[v], ret + (size_t)t * p->ld + 16 * v)
                           : _mm512_setzero_ps();
    }
    multiply(k, w, x, (int)(SL_MIN(p->n - at, (size_t)BLOCK_ELEMS) / 32), TILE_VECTORS, nx, f,
             acc);
    KX_UNROLL for (int t = 0; t < nx; t++)
        KX_UNROLL for (int v = 0; v < TILE_VECTORS; v++)
            _mm512_mask_storeu_ps(ret + (size_t)t * p->ld + 16 * v, mask[v], acc[v][t]);
}

/* All activation rows times the block w, in pieces of nearly equal size: 8 are 4 + 4, not 6 + 2. */
KX_INLINE void all_pieces(struct kind k, int zero, const struct product *p, const uint8_t *w,
                          size_t at, struct fetch f)
{
    uint32_t low = SL_MIN(p->n_rows, 16u), n_pieces = (p->n_x + MAX_X - 1) / MAX_X;
    const __mmask16 mask[TILE_VECTORS] = { (__mmask16)((1u << low) - 1),
                                           (__mmask16)((1u << (p->n_rows - low)) - 1) };
    uint32_t steps = n_pieces * (uint32_t)(k.group == 32 ? 8 : k.n_sc);
    f.step = (size_t)(f.end - f.at) / steps + 1;
    for (uint32_t i = 0, first = 0; i < n_pieces; i++) {
        uint32_t nx = p->n_x / n_pieces + (i < p->n_x % n_pieces);
        switch (nx) {
        case 1: tile_block(k, zero, p, w, mask, first, at, &f, 1); break;
        case 2: tile_block(k, zero, p, w, mask, first, at, &f, 2); break;
        case 3: tile_block(k, zero, p, w, mask, first, at, &f, 3); break;
        case 4: tile_block(k, zero, p, w, mask, first, at, &f, 4); break;
        case 5: tile_block(k, zero, p, w, mask, first, at, &f, 5); break;
        default: tile_block(k, zero, p, w, mask, first, at, &f, 6);
        }
        first += nx;
    }
}

typedef void (*pieces_fn)(int zero, const struct product *p, const uint8_t *w, size_t at,
                          struct fetch f);

/* 16 rows from `first` on; the last one stands for those behind it, whose results nobody stores. */
KX_INLINE void row_pointers(const uint8_t *w, size_t row_bytes, uint32_t first, uint32_t n_rows,
                            const uint8_t **row)
{
    for (uint32_t r = 0; r < 16; r++) row[r] = w + SL_MIN(first + r, n_rows - 1) * row_bytes;
}

/* In the order of addresses, whatever the order of use, by one instruction in a loop: the same
 * unrolled reaches two thirds of the speed. */
KX_INLINE void prefetch(const uint8_t *from, size_t bytes)
{
    _Pragma("GCC unroll 1") for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch(from + i, _MM_HINT_T0);
}

/* Block by block of 256 elements, so that the unpacked weights of 32 rows stay in the first-level
 * cache for all activation rows. The rows behind these are fetched meanwhile. */
KX_INLINE void tile(struct kind k, int zero, struct unpacker u, pieces_fn pieces,
                    const struct product *p)
{
    _Alignas(64) uint8_t block[MAX_SLOTS * TILE_VECTORS * 64];
    const uint8_t *row[TILE_VECTORS][16];
    const uint8_t *ahead = p->w + TILE_ROWS * p->row_bytes;
    for (uint32_t v = 0; v < TILE_VECTORS; v++)
        row_pointers(p->w, p->row_bytes, 16 * v, p->n_rows, row[v]);
    for (size_t at = 0; at < p->n; at += BLOCK_ELEMS) {
        int n_groups = k.group == 32 ? (int)(SL_MIN(p->n - at, (size_t)BLOCK_ELEMS) / 32) : 1;
        size_t bytes = 16 * u.block_bytes * (size_t)n_groups;
        for (int v = 0; v < TILE_VECTORS; v++) {
            struct sink o = { .nv = TILE_VECTORS, .to = block + v * 64 };
            unpack_groups(u, row[v], at / (size_t)k.group * u.block_bytes, n_groups, &o, k, STORE);
        }
        struct fetch f = { .at = ahead, .end = ahead + TILE_VECTORS * bytes };
        pieces(zero, p, block, at, f);
        ahead = f.end;
    }
}

/* Elements [at, at + 1024) of an activation row; a group begins at `at`. */
static void quad_init(struct kind k, int zero, const void *x, size_t n, size_t at, struct quad *ret)
{
    const int8_t *a = (const int8_t *)x + at;
    for (size_t j = 0; j < RUNS; j++) {
        struct xblock b = { 0 };
        xblock_init(k, zero, x, n, at + j * BLOCK_ELEMS, &b);
        for (int i = 0; i < 16; i++) ret->z[i][j] = b.z[i];
    }
    for (size_t i = 0; i < BLOCK_ELEMS; i += 64) {
        vi v[RUNS];
        for (size_t j = 0; j < RUNS; j++) v[j] = _mm512_loadu_si512(a + j * BLOCK_ELEMS + i);
        vi l0 = _mm512_unpacklo_epi32(v[0], v[1]), l1 = _mm512_unpacklo_epi32(v[2], v[3]);
        vi h0 = _mm512_unpackhi_epi32(v[0], v[1]), h1 = _mm512_unpackhi_epi32(v[2], v[3]);
        int8_t *to = ret->a + RUNS * i;
        _mm512_store_si512(to, _mm512_unpacklo_epi64(l0, l1));
        _mm512_store_si512(to + 64, _mm512_unpackhi_epi64(l0, l1));
        _mm512_store_si512(to + 128, _mm512_unpacklo_epi64(h0, h1));
        _mm512_store_si512(to + 192, _mm512_unpackhi_epi64(h0, h1));
    }
}

/* acc = fma(dA, u, acc) for the groups of four runs in ascending order, of two sets of rows: each
 * is a chain that waits for itself. A row's four lanes of acc are the same. */
KX_INLINE void add_runs(const vf (*u)[8], const float *scale, const int per_run, vf *acc)
{
    for (int i = 0; i < per_run; i++)
        KX_UNROLL for (int e = 0; e < SETS; e++)
            acc[e] = _mm512_fmadd_ps(_mm512_set1_ps(scale[i]), _mm512_permute_ps(u[e][i], 0x00),
                                     acc[e]);
    for (int i = 0; i < per_run; i++)
        KX_UNROLL for (int e = 0; e < SETS; e++)
            acc[e] = _mm512_fmadd_ps(_mm512_set1_ps(scale[per_run + i]),
                                     _mm512_permute_ps(u[e][i], 0x55), acc[e]);
    for (int i = 0; i < per_run; i++)
        KX_UNROLL for (int e = 0; e < SETS; e++)
            acc[e] = _mm512_fmadd_ps(_mm512_set1_ps(scale[2 * per_run + i]),
                                     _mm512_permute_ps(u[e][i], 0xaa), acc[e]);
    for (int i = 0; i < per_run; i++)
        KX_UNROLL for (int e = 0; e < SETS; e++)
            acc[e] = _mm512_fmadd_ps(_mm512_set1_ps(scale[3 * per_run + i]),
                                     _mm512_permute_ps(u[e][i], 0xff), acc[e]);
}

/* The same without the first `skip` groups. */
static __attribute__((noinline)) void add_last(const vf (*u)[8], const float *scale, int skip,
                                               int per_run, vf *acc)
{
    for (int i = skip; i < RUNS * per_run; i++) {
        vi run = _mm512_set1_epi32(i / per_run);
        KX_UNROLL for (int e = 0; e < SETS; e++)
            acc[e] = _mm512_fmadd_ps(_mm512_set1_ps(scale[i]),
                                     _mm512_permutevar_ps(u[e][i % per_run], run), acc[e]);
    }
}

/* Rows of weights times one activation row. */
struct row_product {
    const uint8_t *w;
    size_t row_bytes;
    uint32_t n_rows;
    const struct quad *x;
    const float *scale;
    size_t n;
    bool more;              /* ret holds the sums over what is in front */
    float *ret;
};

/* Rows of one set, or of two: few enough that they and as many behind them stay in the first-level
 * cache. */
KX_INLINE uint32_t rows_at_once(size_t row_bytes)
{
    return 4 * (8 * row_bytes > 24576 ? 1 : SETS);
}

/* Rows from r on in sets of four, 1024 elements of each in four runs. Lane l of a set belongs to
 * row l / 4 and run l % 4. What is left at the end is taken with so much in front of it that it is
 * 1024 elements, whose sums are dropped. */
KX_INLINE void rows_8(struct kind k, struct unpacker u, const struct row_product *p, uint32_t r,
                      const uint8_t **ahead)
{
    const vi four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const size_t run_bytes = BLOCK_ELEMS / (size_t)k.group * u.block_bytes;
    const int per_run = BLOCK_ELEMS / k.group;
    const uint8_t *end = p->w + p->n_rows * p->row_bytes, *base[4 * SETS];
    vf part[SETS][8] = { 0 }, acc[SETS];
    __mmask16 mask[SETS];
    KX_UNROLL for (uint32_t e = 0; e < SETS; e++) {
        uint32_t end_row = SL_MIN(p->n_rows, r + rows_at_once(p->row_bytes)),
                 left = r + 4 * e < end_row ? end_row - r - 4 * e : 0;
        mask[e] = (__mmask16)((1u << SL_MIN(left, 4u)) - 1);
        acc[e] = p->more ? _mm512_permutexvar_ps(four, _mm512_maskz_loadu_ps(mask[e],
                                                                             p->ret + r + 4 * e))
                         : _mm512_setzero_ps();
    }
    for (uint32_t i = 0; i < 4 * SETS; i++)
        base[i] = p->w + SL_MIN(r + i, p->n_rows - 1) * p->row_bytes;
    for (size_t at = 0, q = 0; at < p->n; at += RUNS * BLOCK_ELEMS, q++) {
        const size_t groups = SL_MIN((p->n - at) / (size_t)k.group, (size_t)(RUNS * per_run)),
                     seen = (size_t)(RUNS * per_run) - groups, bytes = 4 * groups * u.block_bytes;
        const float *scale = p->scale + at / (size_t)k.group - seen;
        for (uint32_t i = 0; seen && i < 4 * SETS; i++) base[i] -= seen * u.block_bytes;
        for (uint32_t e = 0; e < SETS && mask[e]; e++) {
            const uint8_t *row[16];
            struct sink o = { .runs = p->x + q };
            /* else gcc computes, and keeps, the address of every dword */
            __asm__ volatile("" : "+r"(o.runs));
            if (*ahead < end) prefetch(*ahead, bytes);
            *ahead += bytes;
            KX_UNROLL for (uint32_t l = 0; l < 16; l++)
                row[l] = base[4 * e + l / 4] + l % 4 * run_bytes;
            unpack_groups(u, row, 0, k.group == 32 ? 8 : 1, &o, k, MULTIPLY_RUNS);
            memcpy(part[e], o.u, sizeof(vf) * (size_t)per_run);
        }
        if (seen) add_last(part, scale, (int)seen, per_run, acc);
        else add_runs(part, scale, per_run, acc);
        for (uint32_t i = 0; i < 4 * SETS; i++) base[i] += RUNS * run_bytes;
    }
    KX_UNROLL for (uint32_t e = 0; e < SETS; e++)
        _mm512_mask_storeu_ps(p->ret + r + 4 * e, mask[e],
                              _mm512_maskz_compress_ps(0x1111, acc[e]));
}

/* Rows of 1024 elements and more in sets of four: so few rows, and the bytes that are
 * fetched AHEAD of them, fit the first-level cache, however long rows are. Nothing behind the last
 * row is fetched, here or below: another thread may have it. */
KX_INLINE void rows_of_runs(struct kind k, int zero, struct unpacker u, const void *w,
                            size_t row_bytes, uint32_t n_rows, const void *x, size_t n, float *ret)
{
    const size_t each = RUNS * BLOCK_ELEMS;
    const uint32_t step = rows_at_once(row_bytes);
    const float *scale = (const float *)(const void *)((const char *)x + sl_qx_scales(n));
    _Alignas(64) struct quad quads[MAX_QUADS];
    for (size_t at = 0; at < n; at += MAX_QUADS * each) {
        size_t part = SL_MIN(n - at, MAX_QUADS * each), group = at / (size_t)k.group;
        for (size_t i = 0; i < part; i += each)
            quad_init(k, zero, x, n, SL_MIN(at + i, n - each), quads + i / each);
        struct row_product p = { (const uint8_t *)w + group * u.block_bytes, row_bytes, n_rows,
                                 quads, scale + group, part, at > 0, ret };
        size_t bytes = n_rows * row_bytes;
        const uint8_t *ahead = p.w + SL_MIN(SL_MAX((size_t)AHEAD, step * row_bytes), bytes);
        prefetch(p.w, (size_t)(ahead - p.w));
        for (uint32_t r = 0; r < n_rows; r += step) rows_8(k, u, &p, r, &ahead);
    }
}

/* Which rows are faster in runs: multiples of 1024 elements, and of others those of which 16, and
 * the 16 behind them, outgrow the first-level cache (what is left at the end costs as much as 1024
 * elements). In small blocks of 4 bits unpacking takes longer than memory, and four runs longest of
 * all, whose sums are one chain. */
KX_INLINE bool in_runs(struct unpacker u, size_t n, size_t row_bytes)
{
    return u.block_bytes > 20 && (n % (RUNS * BLOCK_ELEMS) == 0 || row_bytes >= 1600);
}

/* 16 at a time, while the 16 behind them are fetched. */
KX_INLINE void rows_16(struct kind k, int zero, struct unpacker u, const void *w, size_t row_bytes,
                       uint32_t n_rows, const void *x, size_t n, float *ret)
{
    const uint8_t *end = (const uint8_t *)w + n_rows * row_bytes;
    prefetch(w, SL_MIN(16u, n_rows) * row_bytes);
    for (uint32_t r = 0; r < n_rows; r += 16) {
        const uint8_t *row[16], *ahead = (const uint8_t *)w + (r + 16) * row_bytes;
        const __mmask16 mask = (__mmask16)((1u << SL_MIN(n_rows - r, 16u)) - 1);
        struct xblock xb;
        struct sink o = { .x = &xb, .acc = _mm512_setzero_ps() };
        row_pointers(w, row_bytes, r, n_rows, row);
        for (size_t at = 0; at < n; at += BLOCK_ELEMS) {
            int n_groups = k.group == 32 ? (int)(SL_MIN(n - at, (size_t)BLOCK_ELEMS) / 32) : 1;
            size_t bytes = 16 * u.block_bytes * (size_t)n_groups;
            xblock_init(k, zero, x, n, at, &xb);
            if (ahead < end) prefetch(ahead, bytes);
            ahead += bytes;
            unpack_groups(u, row, at / (size_t)k.group * u.block_bytes, n_groups, &o, k, MULTIPLY);
        }
        _mm512_mask_storeu_ps(ret + r, mask, o.acc);
    }
}

static void quantise(uint32_t group, const float *x, size_t n, void *ret)
{
    assert(group && n % group == 0);
    int8_t *a = ret;
    float *scale = (float *)(void *)((char *)ret + sl_qx_scales(n));
    int16_t *sum = (int16_t *)(void *)((char *)ret + sl_qx_sums(group, n));
    for (size_t k = 0; k < n / group; k++, x += group, a += group) {
        vf top = _mm512_setzero_ps(), most = _mm512_set1_ps(FLT_MAX);
        __mmask16 bad = 0;
        for (uint32_t i = 0; i < group; i += 16) {
            vf v = _mm512_abs_ps(_mm512_loadu_ps(x + i));
            bad |= _mm512_cmp_ps_mask(v, most, _CMP_NLE_UQ);
            top = _mm512_max_ps(top, v);
        }
        float m = _mm512_reduce_max_ps(top), inv = bad || m == 0 ? 0 : 127 / m;
        if (inv > FLT_MAX) inv = m = 0;
        scale[k] = bad ? NAN : m / 127;
        for (uint32_t i = 0; i < group; i += 16, sum++) {
            vi q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inv)));
            if (bad) q = _mm512_setzero_si512();
            _mm_storeu_si128((void *)(a + i), _mm512_cvtepi32_epi8(q));
            *sum = (int16_t)_mm512_reduce_add_epi32(q);
        }
    }
}

/* id, name, block bytes, zero, kind of tile */
#define BLOCKS(X) \
    X(SL_Q4_0, q4_0, 18, 8, legacy) X(SL_Q4_1, q4_1, 20, 0, legacy_m) X(SL_Q5_0, q5_0, 22, 16, legacy) \
    X(SL_Q5_1, q5_1, 24, 0, legacy_m) X(SL_Q8_0, q8_0, 34, 128, legacy_w) \
    X(SL_IQ4_NL, iq4_nl, 18, 128, legacy_w) X(SL_MXFP4, mxfp4, 17, 64, legacy)
#define SUPERS(X) \
    X(SL_Q2_K, q2_k, 84, 0, fine_m) X(SL_Q3_K, q3_k, 110, 4, fine) X(SL_Q4_K, q4_k, 144, 0, super_m) \
    X(SL_Q5_K, q5_k, 176, 0, super_m) X(SL_Q6_K, q6_k, 210, 32, fine) \
    X(SL_IQ4_XS, iq4_xs, 136, 128, super_w) X(SL_IQ2_XXS, iq2_xxs, 66, 64, super) \
    X(SL_IQ2_XS, iq2_xs, 74, 64, fine) X(SL_IQ2_S, iq2_s, 82, 64, fine) \
    X(SL_IQ3_XXS, iq3_xxs, 98, 64, super) X(SL_IQ3_S, iq3_s, 110, 64, super)

#define LEGACY   ((struct kind){ 32, 0, false, false })
#define LEGACY_W ((struct kind){ 32, 0, false, true })
#define LEGACY_M ((struct kind){ 32, 0, true, false })
#define SUPER    ((struct kind){ 256, 8, false, false })
#define SUPER_W  ((struct kind){ 256, 8, false, true })
#define SUPER_M  ((struct kind){ 256, 8, true, false })
#define FINE     ((struct kind){ 256, 16, false, false })
#define FINE_M   ((struct kind){ 256, 16, true, false })
#define KINDS(X) \
    X(legacy, LEGACY) X(legacy_m, LEGACY_M) X(super, SUPER) X(super_m, SUPER_M) X(fine, FINE) X(fine_m, FINE_M)
#ifdef __AVX512VNNI__       /* wide makes no difference: no kinds of its own */
#define KINDS_WIDE(X)
#define kind_legacy_w kind_legacy
#define pieces_legacy_w pieces_legacy
#define kind_super_w kind_super
#define pieces_super_w pieces_super
#else
#define KINDS_WIDE(X) X(legacy_w, LEGACY_W) X(super_w, SUPER_W)
#endif

#define KIND(name, K) \
    static const struct kind kind_##name = K; \
    static __attribute__((noinline)) void pieces_##name(int zero, const struct product *p, \
        const uint8_t *w, size_t at, struct fetch f) \
    { \
        all_pieces(K, zero, p, w, at, f); \
    }
KINDS(KIND)
KINDS_WIDE(KIND)

/* `unpack` leaves the work to `tile`, which unpacks a block at a time into the first-level cache: a
 * tile of all blocks would go through the second-level cache. At 8 activation rows that is 0.44 of
 * the peak against 0.33. */
struct deferred {
    const uint8_t *w;
    size_t row_bytes;
    uint32_t n_rows;
};

static size_t tile_bytes(size_t n)
{
    (void)n;
    return sizeof(struct deferred);
}

static void unpack(const void *w, size_t row_bytes, uint32_t n_rows, size_t n, void *ret)
{
    (void)n;
    *(struct deferred *)ret = (struct deferred){ w, row_bytes, n_rows };
}

#define FUNCTIONS(name, zero, kind, bytes, ...) \
    static __attribute__((noinline)) void runs_##name( \
        const void *w, size_t row_bytes, uint32_t n_rows, const void *x, size_t n, float *ret) \
    { \
        rows_of_runs(kind_##kind, zero, (struct unpacker){ __VA_ARGS__, bytes }, w, row_bytes, \
                     n_rows, x, n, ret); \
    } \
    static void rows_##name(const void *w, size_t row_bytes, uint32_t n_rows, const void *x, size_t n, \
                            float *ret) \
    { \
        const struct unpacker u = { __VA_ARGS__, bytes }; \
        if (in_runs(u, n, row_bytes)) runs_##name(w, row_bytes, n_rows, x, n, ret); \
        else rows_16(kind_##kind, zero, u, w, row_bytes, n_rows, x, n, ret); \
    } \
    static void tile_##name(const void *data, uint32_t n_rows, const void *const *x, uint32_t n_x, \
                            size_t n, float *ret, size_t ld) \
    { \
        const struct deferred *t = data; \
        struct product p = { t->w, t->row_bytes, n, ld, n_rows, n_x, x, ret }; \
        assert(n_rows && n_rows <= t->n_rows); \
        tile(kind_##kind, zero, (struct unpacker){ __VA_ARGS__, bytes }, pieces_##kind, &p); \
    }
#define BLOCK_FUNCTIONS(id, name, bytes, zero, kind) \
    FUNCTIONS(name, zero, kind, bytes, unpack_##name, eight_##name)
#define SUPER_FUNCTIONS(id, name, bytes, zero, kind) \
    FUNCTIONS(name, zero, kind, bytes, unpack_##name, NULL)
BLOCKS(BLOCK_FUNCTIONS)
SUPERS(SUPER_FUNCTIONS)

void KX_NAME(sl_quant_set, KX_SET)(sl_kernels *k)
{
    k->quantise = quantise;
#define ENTRY(id, name, bytes, zero, kind) \
    k->qmul[id] = (sl_qmul){ (uint32_t)kind_##kind.group, rows_##name, FEW_X, TILE_ROWS, \
                             tile_bytes, unpack, tile_##name };
    BLOCKS(ENTRY)
    SUPERS(ENTRY)
}
