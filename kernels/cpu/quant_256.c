/* kernels/cpu/quant_256.c - quantised products in 256-bit registers, compiled twice: with AVX2, FMA
 * and F16C (KX_SET = avx2), and with AVX-VNNI beside them (avxvnni: vpdpbusd).
 *
 * Few activations: 4 or 8 rows at once. Pairs of products are int16 (vpmaddubsw), vpmaddwd applies
 * scales, and zero * sc or mn meet the sums of the activations in one more vpmaddwd per group.
 * Many: a tile is 16 rows with 4 consecutive elements of 8 rows in a register, so that an
 * activation's 4 elements are broadcast and the lanes are rows: no sum across lanes, and every
 * weight that is loaded meets 4 activation rows. Group by group over all activations, so that a
 * group stays in L1. int16 sums of `chain` products: q <= 16 takes 8, q <= 32 takes 4, q <= 64
 * takes 2, q <= 128 one (q * 2 * 127 * chain <= 32767); 8 bits are |q| times a with the sign of
 * q. */
#include "kernels/cpu/quant_load256.h"

#include <assert.h>
#include <float.h>
#include <math.h>

#ifdef __AVXVNNI__
#define Q256_VNNI 1
#else
#define Q256_VNNI 0
#endif

/* The compiler must take v as it is: gcc loads the same bytes twice, and turns a sum into a tree
 * whose leaves it spills. */
#define KEEP(v) __asm__("" : "+x"(v))
#define KEEP_STORED(v) __asm__("" : "+m"(v))

#define Q256_UNROLL _Pragma("GCC unroll 8")

enum {
    ROWS = 16,          /* of a tile */
    COLS = 4,           /* activation rows at once */
    MANY = 64,          /* activation rows whose sums are kept, while the tile's groups go by */
    AHEAD = 320         /* bytes that the prefetch of `rows` runs ahead in each row */
};

Q256_INLINE int sum8(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

static __m256i abs_top(const float *x, uint32_t n)
{
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i top = _mm256_setzero_si256();   /* of magnitudes as integers: NaN is above infinity */
    for (uint32_t i = 0; i < n; i += 8)
        top = _mm256_max_epi32(top, _mm256_and_si256(q256_load(x + i), mask));
    return top;
}

/* 32 elements to 8 bits, and the two sums of 16. */
Q256_INLINE void quantise_32(const float *x, __m256 inv, int8_t *a, int16_t *sum)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i v[4];
    for (int i = 0; i < 4; i++)
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inv));
    __m256i lo = _mm256_packs_epi32(v[0], v[1]), hi = _mm256_packs_epi32(v[2], v[3]);
    __m256i one = _mm256_set1_epi16(1);
    sum[0] = (int16_t)sum8(_mm256_madd_epi16(lo, one));
    sum[1] = (int16_t)sum8(_mm256_madd_epi16(hi, one));
    _mm256_storeu_si256((void *)a, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(lo, hi), order));
}

static void quantise(uint32_t group, const float *x, size_t n, void *ret)
{
    assert(group % 32 == 0 && n % group == 0);
    int8_t *a = ret;
    float *scale = (float *)(void *)((char *)ret + sl_qx_scales(n));
    int16_t *sum = (int16_t *)(void *)((char *)ret + sl_qx_sums(group, n));
    for (size_t k = 0; k < n / group; k++, x += group, a += group, sum += group / 16) {
        __m256i t = abs_top(x, group);
        __m128i h = _mm_max_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
        h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
        h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1));
        float top = _mm_cvtss_f32(_mm_castsi128_ps(h)), inv = 0;
        if (_mm_cvtsi128_si32(h) >= 0x7f800000) {
            memset(a, 0, group);
            memset(sum, 0, group / 8);
            scale[k] = NAN;
            continue;
        }
        if (top > 0) inv = 127 / top;
        if (inv > FLT_MAX) inv = top = 0;
        scale[k] = top / 127;
        for (uint32_t i = 0; i < group; i += 32)
            quantise_32(x + i, _mm256_set1_ps(inv), a + i, sum + i / 16);
    }
}

/* ---- few activations
 * ------------------------------------------------------------------------------ */

Q256_INLINE __m256i four(const void *a)
{
    int v;
    memcpy(&v, a, 4);
    return _mm256_set1_epi32(v);
}

/* Products of 32 elements as 16 sums of two. */
Q256_INLINE __m256i pairs(bool sgn, __m256i q, __m256i a)
{
    if (sgn) return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(a, q));
    return _mm256_maddubs_epi16(q, a);
}

Q256_INLINE __m256i add_madd(__m256i sum, __m256i p, __m256i sc)
{
#if Q256_VNNI
    return _mm256_dpwssd_avx_epi32(sum, p, sc);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(p, sc));
#endif
}

/* Rows that are in work together are a `step`-th of all rows apart: as many streams, each of which
 * the CPU's prefetchers follow; one stream is slower, whatever is fetched by hand.
 * Rows beyond the last are the last one again: their results are dropped. */
Q256_INLINE uint32_t rows_apart(uint32_t n_rows, uint32_t step)
{
    return (n_rows + step - 1) / step;
}

Q256_INLINE const uint8_t *row_at(const void *w, size_t row_bytes, uint32_t n_rows, uint32_t r)
{
    return (const uint8_t *)w + SL_MIN(r, n_rows - 1) * row_bytes;
}

/* Sums across each of 4 registers. */
Q256_INLINE __m128 sum_four(const __m256i *v)
{
    __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm_cvtepi32_ps(
        _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
}

/* What four rows' super-blocks are multiplied by, and where sums begin. */
typedef struct super_rows {
    __m256i sc[4];      /* with half: lanes of the first and of the second 16 elements' */
    __m256i sum[4];
    __m128 d, dmin, summ;
} super_rows;

/* Where scales are broadcast from (without half): [j / 4][row][4 * (j % 4)], twice as int16. */
typedef uint8_t twice4[2][4][16];

Q256_INLINE void start_rows(const q256_super *t, const uint8_t *const *b, const int16_t *s,
                            super_rows *g, twice4 twice)
{
    const __m256i split = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i zero = _mm256_set1_epi16((int16_t)-t->zero), null = _mm256_setzero_si256();
    __m256i corr[4];
    float d[4], dmin[4];
    Q256_UNROLL
    for (int r = 0; r < 4; r++) {
        __m256i sc, mn = null;
        float dm[2] = { 0, 0 };
        t->scales(b[r], dm, &sc, &mn);
        d[r] = dm[0];
        dmin[r] = dm[1];
        corr[r] = t->mins ? _mm256_madd_epi16(q256_load(s), mn) : null;
        g->sum[r] = t->zero ? _mm256_madd_epi16(q256_load(s), _mm256_mullo_epi16(sc, zero)) : null;
        if (t->half) {
            g->sc[r] = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(sc, split), 0xd8);
        } else {
            _mm_storeu_si128((void *)twice[0][r], _mm256_castsi256_si128(sc));
            _mm_storeu_si128((void *)twice[1][r], _mm256_extracti128_si256(sc, 1));
        }
    }
    g->d = _mm_loadu_ps(d);
    g->dmin = _mm_loadu_ps(dmin);
    g->summ = t->mins ? sum_four(corr) : _mm_setzero_ps();
}

/* acc with a super-block of each of four rows added: every activation that is loaded serves all
 * four. */
Q256_INLINE __m128 add_super(const q256_super *t, const uint8_t *const *b, const int8_t *a,
                             const int16_t *s, float scale, __m128 acc)
{
    super_rows g;
    twice4 twice;
    start_rows(t, b, s, &g, twice);
    KEEP_STORED(twice);
    Q256_UNROLL
    for (int j = 0; j < 8; j += 2) {
        __m256i a0 = q256_load(a + 32 * j), a1 = q256_load(a + 32 * j + 32);
        __m256i at0 = _mm256_set1_epi16((int16_t)(0x0100 + 0x0202 * j));
        __m256i at1 = _mm256_set1_epi16((int16_t)(0x0302 + 0x0202 * j));
        Q256_UNROLL
        for (int r = 0; r < 4; r++) {
            const uint8_t *from = twice[j / 4][r] + 4 * (j % 4);
            __m256i sc0 = t->half ? _mm256_shuffle_epi8(g.sc[r], at0) : four(from);
            __m256i sc1 = t->half ? _mm256_shuffle_epi8(g.sc[r], at1) : four(from + 4);
            g.sum[r] = add_madd(g.sum[r], pairs(t->sgn, t->q(b[r], j), a0), sc0);
            KEEP(g.sum[r]);
            g.sum[r] = add_madd(g.sum[r], pairs(t->sgn, t->q(b[r], j + 1), a1), sc1);
            KEEP(g.sum[r]);
        }
    }
    __m128 u = _mm_mul_ps(g.d, sum_four(g.sum));
    if (t->mins) u = _mm_fnmadd_ps(g.dmin, g.summ, u);
    return _mm_fmadd_ps(_mm_set1_ps(scale), u, acc);
}

/* Sums across each of 8 registers, of the i-th to lane i. */
Q256_INLINE __m256i sum_each(const __m256i *v)
{
    __m256i p[4], q[2];
    Q256_UNROLL
    for (int i = 0; i < 4; i++)
        p[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    Q256_UNROLL
    for (int i = 0; i < 2; i++)
        q[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(p[2 * i], p[2 * i + 1]),
                                _mm256_unpackhi_epi64(p[2 * i], p[2 * i + 1]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(q[0], q[1], 0x20),
                            _mm256_permute2x128_si256(q[0], q[1], 0x31));
}

/* Q4_K and Q5_K: two super-blocks of each of four rows, whose 8 heads of 16 bytes are taken apart
 * at once. Lane 4 * i + r is super-block i of row r; scales are broadcast from twice
 * [j / 4][2 * r + i][4 * (j % 4)], where they are int16 twice. */
typedef uint8_t twice8[2][8][16];
typedef struct two_heads { __m256 d, dmin, summ; } two_heads;

/* A head's dwords: d and dmin, then 6 bits each of scales 0-3, of minima 0-3, and the low 4 of
 * both's 4-7, whose high 2 are on top of the first ones. */
Q256_INLINE void start_two(uint32_t block_bytes, const uint8_t *const *b, const int16_t *s,
                           two_heads *g, twice8 twice)
{
    const __m256i m6 = _mm256_set1_epi8(63), m4 = _mm256_set1_epi8(15), m2 = _mm256_set1_epi8(48);
    __m256i h[4], w[4], sc[2], mn[2];
    Q256_UNROLL
    for (int r = 0; r < 4; r++)
        h[r] = _mm256_set_m128i(_mm_loadu_si128((const void *)(b[r] + block_bytes)),
                                _mm_loadu_si128((const void *)b[r]));
    __m256i l0 = _mm256_unpacklo_epi32(h[0], h[1]), l1 = _mm256_unpacklo_epi32(h[2], h[3]);
    __m256i h0 = _mm256_unpackhi_epi32(h[0], h[1]), h1 = _mm256_unpackhi_epi32(h[2], h[3]);
    w[0] = _mm256_unpacklo_epi64(l0, l1);
    w[1] = _mm256_unpackhi_epi64(l0, l1);
    w[2] = _mm256_unpacklo_epi64(h0, h1);
    w[3] = _mm256_unpackhi_epi64(h0, h1);
    sc[0] = _mm256_and_si256(w[1], m6);
    mn[0] = _mm256_and_si256(w[2], m6);
    sc[1] = _mm256_or_si256(_mm256_and_si256(w[3], m4),
                            _mm256_and_si256(_mm256_srli_epi16(w[1], 2), m2));
    mn[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(w[3], 4), m4),
                            _mm256_and_si256(_mm256_srli_epi16(w[2], 2), m2));
    Q256_UNROLL
    for (int r = 0; r < 4; r++) {
        __m256i spread = _mm256_broadcastsi128_si256(
            _mm_add_epi8(_mm_setr_epi8(0, -128, 0, -128, 1, -128, 1, -128, 2, -128, 2, -128, 3,
                                       -128, 3, -128), _mm_set1_epi8((char)(4 * r))));
        for (int i = 0; i < 2; i++)
            _mm256_storeu_si256((void *)twice[i][2 * r], _mm256_shuffle_epi8(sc[i], spread));
    }
    /* of each super-block sums of 32: 0 2 1 3 twice, 4 6 5 7 twice; minima 0, 2 and 1, 3 */
    const __m256i one = _mm256_set1_epi16(1), low = _mm256_set1_epi16(255);
    __m256i sums = _mm256_packs_epi32(_mm256_madd_epi16(q256_load(s), one),
                                      _mm256_madd_epi16(q256_load(s + 16), one)), summ[2];
    sums = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(sums, 0xd8), 0xd8);
    Q256_UNROLL
    for (int i = 0; i < 2; i++) {
        __m256i half = i ? _mm256_permute4x64_epi64(sums, 0xfa)
                         : _mm256_permute4x64_epi64(sums, 0x50);
        summ[i] = _mm256_add_epi32(
            _mm256_madd_epi16(_mm256_and_si256(mn[i], low), _mm256_shuffle_epi32(half, 0x00)),
            _mm256_madd_epi16(_mm256_srli_epi16(mn[i], 8), _mm256_shuffle_epi32(half, 0x55)));
    }
    g->summ = _mm256_cvtepi32_ps(_mm256_add_epi32(summ[0], summ[1]));
    const __m256i split = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256i d = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(w[0], split), 0xd8);
    g->d = _mm256_cvtph_ps(_mm256_castsi256_si128(d));
    g->dmin = _mm256_cvtph_ps(_mm256_extracti128_si256(d, 1));
}

Q256_INLINE __m128 add_two(const q256_super *t, const uint8_t *const *b, const int8_t *a,
                           const int16_t *s, const float *scale, __m128 acc)
{
    two_heads g;
    twice8 twice;
    __m256i sum[8];
    start_two(t->block_bytes, b, s, &g, twice);
    KEEP_STORED(twice);
    Q256_UNROLL
    for (int i = 0; i < 8; i++) sum[i] = _mm256_setzero_si256();
    Q256_UNROLL
    for (int i = 0; i < 2; i++, a += 256) {
        Q256_UNROLL
        for (int j = 0; j < 8; j += 2) {
            __m256i a0 = q256_load(a + 32 * j), a1 = q256_load(a + 32 * j + 32);
            KEEP(a0);
            KEEP(a1);
            Q256_UNROLL
            for (int r = 0; r < 4; r++) {
                const uint8_t *sc = twice[j / 4][2 * r + i] + 4 * (j % 4);
                const uint8_t *at = b[r] + (uint32_t)i * t->block_bytes;
                __m256i *to = sum + 4 * i + r;
                *to = add_madd(*to, pairs(false, t->q(at, j), a0), four(sc));
                KEEP(*to);
                *to = add_madd(*to, pairs(false, t->q(at, j + 1), a1), four(sc + 4));
                KEEP(*to);
            }
        }
    }
    __m256 u = _mm256_mul_ps(g.d, _mm256_cvtepi32_ps(sum_each(sum)));
    u = _mm256_fnmadd_ps(g.dmin, g.summ, u);
    acc = _mm_fmadd_ps(_mm_set1_ps(scale[0]), _mm256_castps256_ps128(u), acc);
    return _mm_fmadd_ps(_mm_set1_ps(scale[1]), _mm256_extractf128_ps(u, 1), acc);
}

/* Into the first-level cache: what the CPU fetches by itself it leaves in the second. */
Q256_INLINE void fetch_rows(const uint8_t *const *b, uint32_t bytes)
{
    Q256_UNROLL
    for (int r = 0; r < 4; r++)
        for (uint32_t i = 0; i < bytes; i += 64) _mm_prefetch(b[r] + AHEAD + i, _MM_HINT_T0);
}

Q256_INLINE void rows_super(const q256_super *t, const void *w, size_t row_bytes, uint32_t n_rows,
                            const void *x, size_t n, float *ret)
{
    const int8_t *a = x;
    const float *scale = (const float *)(const void *)(a + sl_qx_scales(n));
    const int16_t *s = (const int16_t *)(const void *)(a + sl_qx_sums(256, n));
    const uint32_t apart = rows_apart(n_rows, 4);
    const bool k4 = t->mins && !t->half;        /* only Q4_K and Q5_K */
    float got[4];
    for (uint32_t r = 0; r < apart; r++) {
        const uint8_t *b[4];
        __m128 acc = _mm_setzero_ps();
        size_t k = 0;
        for (uint32_t i = 0; i < 4; i++) b[i] = row_at(w, row_bytes, n_rows, r + i * apart);
        for (; k4 && k + 2 <= n / 256; k += 2) {
            fetch_rows(b, 2 * t->block_bytes);
            acc = add_two(t, b, a + 256 * k, s + 16 * k, scale + k, acc);
            Q256_UNROLL
            for (uint32_t i = 0; i < 4; i++) b[i] += 2 * t->block_bytes;
        }
        for (; k < n / 256; k++) {
            fetch_rows(b, t->block_bytes);
            acc = add_super(t, b, a + 256 * k, s + 16 * k, scale[k], acc);
            Q256_UNROLL
            for (uint32_t i = 0; i < 4; i++) b[i] += t->block_bytes;
        }
        _mm_storeu_ps(got, acc);
        for (uint32_t i = 0; i < 4 && r + i * apart < n_rows; i++) ret[r + i * apart] = got[i];
    }
}

/* vpdpbusd takes signed weights too, as unsigned ones with a zero of 128. */
Q256_INLINE int zero_of(bool sgn, int zero) { return sgn && Q256_VNNI ? 128 : zero; }
Q256_INLINE __m256i stored(bool sgn, __m256i q)
{
    return sgn && Q256_VNNI ? _mm256_xor_si256(q, _mm256_set1_epi8((char)0x80)) : q;
}

/* Sums across each of 8 registers of int32, or of int16 whose sums of four fit (q < 32). */
Q256_INLINE __m256i sum_eight(bool words, const __m256i *v)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i h[2];
    Q256_UNROLL
    for (int i = 0; i < 2; i++, v += 4) {
        if (words)
            h[i] = _mm256_madd_epi16(_mm256_hadd_epi16(_mm256_hadd_epi16(v[0], v[1]),
                                                       _mm256_hadd_epi16(v[2], v[3])), ones);
        else
            h[i] = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    }
    return _mm256_add_epi32(_mm256_permute2x128_si256(h[0], h[1], 0x20),
                            _mm256_permute2x128_si256(h[0], h[1], 0x31));
}

/* acc with a block of each of eight rows added: sum, of the products; s: sums of 16 activations. */
Q256_INLINE __m256 end_block(const q256_block *t, const uint8_t *const *b, __m256i sum,
                             const int16_t *s, const float *scale, __m256 acc)
{
    const int zero = zero_of(t->sgn, t->zero);
    __m256i corr = four(s);
    if (t->mins || zero)
        corr = _mm256_madd_epi16(corr, _mm256_set1_epi16((int16_t)(t->mins ? 1 : -zero)));
    if (zero) sum = _mm256_add_epi32(sum, corr);
    __m256 u = _mm256_mul_ps(t->d(b), _mm256_cvtepi32_ps(sum));
    if (t->mins) u = _mm256_fnmadd_ps(t->dmin(b), _mm256_cvtepi32_ps(corr), u);
    return _mm256_fmadd_ps(_mm256_set1_ps(*scale), u, acc);
}

Q256_INLINE __m256 add_block(const q256_block *t, const uint8_t *const *b, const int8_t *a,
                             const int16_t *s, const float *scale, __m256 acc)
{
    __m256i p[8], x = q256_load(a);
    Q256_UNROLL
    for (int i = 0; i < 8; i++) {
        __m256i q = t->q(b[i]);
#if Q256_VNNI
        p[i] = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), stored(t->sgn, q), x);
#else
        p[i] = pairs(t->sgn, q, x);
        if (t->sgn) p[i] = _mm256_madd_epi16(p[i], _mm256_set1_epi16(1));
#endif
    }
    return end_block(t, b, sum_eight(!Q256_VNNI && !t->sgn, p), s, scale, acc);
}

/* Two blocks of each row: one tree of sums for both, a half of a register each. Eight products of
 * q < 32 are within int16. */
Q256_INLINE __m256 add_two_blocks(const q256_block *t, const uint8_t *const *b, const int8_t *a,
                                  const int16_t *s, const float *scale, __m256 acc)
{
    __m256i a0 = q256_load(a), a1 = q256_load(a + 32), p[8], h[4], g[2];
    __m256i lo = _mm256_permute2x128_si256(a0, a1, 0x20);
    __m256i hi = _mm256_permute2x128_si256(a0, a1, 0x31);
    const uint8_t *next[8];
    Q256_UNROLL
    for (int r = 0; r < 8; r++) {
        q256_two v = t->two(b[r]);
        p[r] = _mm256_add_epi16(pairs(false, v.lo, lo), pairs(false, v.hi, hi));
        KEEP(p[r]);
        next[r] = b[r] + t->block_bytes;
    }
    Q256_UNROLL
    for (int i = 0; i < 4; i++)
        h[i] = _mm256_madd_epi16(_mm256_add_epi16(_mm256_unpacklo_epi32(p[2 * i], p[2 * i + 1]),
                                                  _mm256_unpackhi_epi32(p[2 * i], p[2 * i + 1])),
                                 _mm256_set1_epi16(1));
    Q256_UNROLL
    for (int i = 0; i < 2; i++)
        g[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(h[2 * i], h[2 * i + 1]),
                                _mm256_unpackhi_epi64(h[2 * i], h[2 * i + 1]));
    acc = end_block(t, b, _mm256_permute2x128_si256(g[0], g[1], 0x20), s, scale, acc);
    return end_block(t, next, _mm256_permute2x128_si256(g[0], g[1], 0x31), s + 2, scale + 1, acc);
}

/* Rows [0, 8 * apart), eight at a time, a lane each: the sums of one are a chain of fma that takes
 * longer than memory. */
Q256_INLINE void band_block(const q256_block *t, const void *w, size_t row_bytes, uint32_t n_rows,
                            uint32_t apart, const void *x, size_t n, float *ret)
{
    const int8_t *a = x;
    const float *scale = (const float *)(const void *)(a + sl_qx_scales(n));
    const int16_t *s = (const int16_t *)(const void *)(a + sl_qx_sums(32, n));
    float got[8];
    for (uint32_t r = 0; r < apart; r++) {
        const uint8_t *b[8];
        __m256 acc = _mm256_setzero_ps();
        size_t k = 0;
        for (uint32_t i = 0; i < 8; i++) b[i] = row_at(w, row_bytes, n_rows, r + i * apart);
        for (; t->two && k + 2 <= n / 32; k += 2) {
            Q256_UNROLL
            for (uint32_t i = 0; i < 8; i++) _mm_prefetch(b[i] + AHEAD, _MM_HINT_T0);
            acc = add_two_blocks(t, b, a + 32 * k, s + 2 * k, scale + k, acc);
            Q256_UNROLL
            for (uint32_t i = 0; i < 8; i++) b[i] += 2 * t->block_bytes;
        }
        for (; k < n / 32; k++) {
            acc = add_block(t, b, a + 32 * k, s + 2 * k, scale + k, acc);
            Q256_UNROLL
            for (uint32_t i = 0; i < 8; i++) b[i] += t->block_bytes;
        }
        _mm256_storeu_ps(got, acc);
        for (uint32_t i = 0; i < 8 && r + i * apart < n_rows; i++) ret[r + i * apart] = got[i];
    }
}

/* In bands of eight streams. Lines a multiple of 4 KiB apart share a set of the first-level cache,
 * which holds eight of them and is to hold the activations too: a band near such a distance takes
 * some rows fewer. */
Q256_INLINE void rows_block(const q256_block *t, const void *w, size_t row_bytes, uint32_t n_rows,
                            const void *x, size_t n, float *ret)
{
    const size_t page = 4096, near = 512;
    const uint8_t *b = w;
    for (uint32_t apart; n_rows; n_rows -= SL_MIN(8 * apart, n_rows)) {
        apart = SL_MAX(n_rows / 8, 1u);
        while (apart > 16 && (apart * row_bytes + near) % page < 2 * near) apart--;
        band_block(t, b, row_bytes, n_rows, apart, x, n, ret);
        b += 8 * apart * row_bytes;
        ret += 8 * apart;
    }
}

/* ---- many activations: the tile
 * ------------------------------------------------------------------- */

typedef __m256i q256_w[8][2];   /* 32 elements: 4 of 8 rows each, two times 8 rows */

typedef struct super_tile {
    q256_w w[8];
    /* mn, or -zero * sc, as two int16: with half those of 32 elements [8], else of 64 [4] */
    __m256i corr[8][2];
    __m256 d[2], dmin[2];
    __m256i sc[][2];            /* [8], with half [16]; AVX2: twice as int16, VNNI: int32 */
} super_tile;

typedef struct block_tile {
    q256_w w;
    __m256 d[2];
    __m256 dmin[];              /* [2] with mins */
} block_tile;

/* A prefetch: bytes in the order of their addresses. A tile starts with the rows behind its own,
 * which the next one is most likely of: they are fetched while this one is multiplied. */
typedef struct ahead { const char *next, *end; } ahead;

Q256_INLINE void fetch(ahead *f, size_t bytes)
{
    if (f->next >= f->end) return;
    _Pragma("GCC unroll 1") for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch(f->next + i, _MM_HINT_T0);
    f->next += bytes;
}

enum { TILE_HEAD = 64 };
_Static_assert(sizeof(ahead) <= TILE_HEAD, "the head of a tile");

Q256_INLINE char *start_tile(const void *w, size_t row_bytes, uint32_t n_rows, void *ret)
{
    const char *next = (const char *)w + n_rows * row_bytes;
    ahead *head = ret;
    *head = (ahead){ next, next + n_rows * row_bytes };
    return (char *)ret + TILE_HEAD;
}

/* What a sub-block is multiplied with. */
typedef struct tile_kind {
    int chain;
    bool sgn, half, mins, corr;
} tile_kind;

Q256_INLINE size_t super_bytes(bool half)
{
    return sizeof(super_tile) + (half ? 16 : 8) * sizeof(__m256i[2]);
}
Q256_INLINE size_t block_bytes(bool mins)
{
    return sizeof(block_tile) + (mins ? sizeof(__m256[2]) : 0);
}

/* Eight registers of 8 dwords, row r to lane r. */
Q256_INLINE void transpose(const __m256i *v, __m256i *ret, size_t step)
{
    __m256i a[8], b[8];
    Q256_UNROLL
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    Q256_UNROLL
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; h++) {
            b[i + 2 * h] = _mm256_unpacklo_epi64(a[i + h], a[i + 2 + h]);
            b[i + 2 * h + 1] = _mm256_unpackhi_epi64(a[i + h], a[i + 2 + h]);
        }
    Q256_UNROLL
    for (int i = 0; i < 4; i++) {
        ret[(size_t)i * step] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
        ret[(size_t)(4 + i) * step] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
    }
}

Q256_INLINE void unpack_scales(const q256_super *t, const uint8_t *const *b, super_tile *g, int h)
{
    const __m256i low = _mm256_set1_epi32(0xffff);
    __m256i sc[8], corr[8], both[8];
    for (int r = 0; r < 8; r++) {
        float d[2];
        t->scales(b[r], d, &sc[r], &corr[r]);
        ((float *)&g->d[h])[r] = d[0];
        if (t->mins) ((float *)&g->dmin[h])[r] = d[1];
        else
            corr[r] =
                _mm256_mullo_epi16(sc[r], _mm256_set1_epi16((int16_t)-zero_of(t->sgn, t->zero)));
    }
    transpose(corr, t->half ? &g->corr[0][h] : both, t->half ? 2 : 1);
    for (int j = 0; j < 4 && !t->half; j++)
        g->corr[j][h] = _mm256_blend_epi16(both[2 * j], both[2 * j + 1], 0xaa);
    transpose(sc, both, 1);
    for (int j = 0; j < 8; j++) {
        __m256i first = _mm256_srai_epi32(_mm256_slli_epi32(both[j], 16), 16);
        __m256i second = _mm256_srai_epi32(both[j], 16);
        if (!Q256_VNNI) {
            first = _mm256_or_si256(_mm256_and_si256(first, low), _mm256_slli_epi32(first, 16));
            second = _mm256_or_si256(_mm256_and_si256(second, low), _mm256_slli_epi32(second, 16));
        }
        g->sc[t->half ? 2 * j : j][h] = first;
        if (t->half) g->sc[2 * j + 1][h] = second;
    }
}

Q256_INLINE void unpack_super(const q256_super *t, const void *w, size_t row_bytes, uint32_t n_rows,
                              size_t n, void *ret)
{
    char *to = start_tile(w, row_bytes, n_rows, ret);
    for (size_t k = 0; k < n / 256; k++, to += super_bytes(t->half)) {
        super_tile *g = (super_tile *)(void *)to;
        for (int h = 0; h < 2; h++) {
            const uint8_t *b[8];
            for (uint32_t r = 0; r < 8; r++)
                b[r] = row_at(w, row_bytes, n_rows, 8 * (uint32_t)h + r) + k * t->block_bytes;
            unpack_scales(t, b, g, h);
            Q256_UNROLL
            for (int j = 0; j < 8; j++) {
                __m256i v[8];
                Q256_UNROLL
                for (int r = 0; r < 8; r++) v[r] = stored(t->sgn, t->q(b[r], j));
                transpose(v, &g->w[j][0][h], 2);
            }
        }
    }
}

Q256_INLINE void unpack_block(const q256_block *t, const void *w, size_t row_bytes, uint32_t n_rows,
                              size_t n, void *ret)
{
    char *to = start_tile(w, row_bytes, n_rows, ret);
    for (size_t k = 0; k < n / 32; k++, to += block_bytes(t->mins)) {
        block_tile *g = (block_tile *)(void *)to;
        for (int h = 0; h < 2; h++) {
            const uint8_t *b[8];
            for (uint32_t r = 0; r < 8; r++)
                b[r] = row_at(w, row_bytes, n_rows, 8 * (uint32_t)h + r) + k * t->block_bytes;
            g->d[h] = t->d(b);
            if (t->mins) g->dmin[h] = t->dmin(b);
            __m256i v[8];
            Q256_UNROLL
            for (int r = 0; r < 8; r++) v[r] = stored(t->sgn, t->q(b[r]));
            transpose(v, &g->w[0][h], 2);
        }
    }
}

/* ---- many activations: the product
 * ---------------------------------------------------------------- */

#if Q256_VNNI
/* sum[][x] += sc * the products of `count` times 4 elements. */
Q256_INLINE void add_part(tile_kind kind, const __m256i (*w)[2], int count, const int8_t *const *a,
                          uint32_t cols, const __m256i *sc, __m256i (*sum)[COLS])
{
    (void)kind;
    __m256i p[2][COLS];
    Q256_UNROLL
    for (uint32_t x = 0; x < cols; x++) p[0][x] = p[1][x] = _mm256_setzero_si256();
    Q256_UNROLL
    for (int e = 0; e < count; e++) {
        Q256_UNROLL
        for (uint32_t x = 0; x < cols; x++) {
            __m256i v = four(a[x] + 4 * e);
            p[0][x] = _mm256_dpbusd_avx_epi32(p[0][x], w[e][0], v);
            p[1][x] = _mm256_dpbusd_avx_epi32(p[1][x], w[e][1], v);
        }
    }
    Q256_UNROLL
    for (uint32_t x = 0; x < cols; x++)
        for (int h = 0; h < 2; h++)
            sum[h][x] =
                _mm256_add_epi32(sum[h][x], sc ? _mm256_mullo_epi32(p[h][x], sc[h]) : p[h][x]);
}
#else
/* The compiler would add a chain's products as a tree, and has no registers for its leaves. */
Q256_INLINE void add_part(tile_kind kind, const __m256i (*w)[2], int count, const int8_t *const *a,
                          uint32_t cols, const __m256i *sc, __m256i (*sum)[COLS])
{
    __m256i p[2][COLS];
    Q256_UNROLL
    for (int e = 0; e < count; e++) {
        __m256i w0 = w[e][0], w1 = w[e][1];
        Q256_UNROLL
        for (uint32_t x = 0; x < cols; x++) {
            __m256i v = four(a[x] + 4 * e);
            __m256i p0 = pairs(kind.sgn, w0, v), p1 = pairs(kind.sgn, w1, v);
            p[0][x] = e % kind.chain ? _mm256_add_epi16(p[0][x], p0) : p0;
            p[1][x] = e % kind.chain ? _mm256_add_epi16(p[1][x], p1) : p1;
            if (kind.chain < 4) continue;
            KEEP(p[0][x]);
            KEEP(p[1][x]);
        }
        if (e % kind.chain != kind.chain - 1) continue;
        Q256_UNROLL
        for (uint32_t x = 0; x < cols; x++)
            for (int h = 0; h < 2; h++) {
                __m256i by = sc ? sc[h] : _mm256_set1_epi16(1);
                sum[h][x] = _mm256_add_epi32(sum[h][x], _mm256_madd_epi16(p[h][x], by));
            }
    }
}
#endif

/* Where activation rows have their parts. */
typedef struct q256_x {
    const void *const *x;
    size_t scales, sums;
} q256_x;

/* acc += dA * (d * sum - dmin * summ) */
Q256_INLINE void finish(bool mins, const __m256 *d, const __m256 *dmin, __m256i (*sum)[COLS],
                        __m256i (*summ)[COLS], uint32_t cols, const q256_x *x, size_t k,
                        float (*acc)[ROWS])
{
    Q256_UNROLL
    for (uint32_t c = 0; c < cols; c++) {
        const char *scales = (const char *)x->x[c] + x->scales;
        __m256 scale = _mm256_broadcast_ss((const float *)(const void *)scales + k);
        for (int h = 0; h < 2; h++) {
            __m256 u = _mm256_mul_ps(d[h], _mm256_cvtepi32_ps(sum[h][c]));
            if (mins) u = _mm256_fnmadd_ps(dmin[h], _mm256_cvtepi32_ps(summ[h][c]), u);
            _mm256_store_ps(acc[c] + 8 * h,
                            _mm256_fmadd_ps(scale, u, _mm256_load_ps(acc[c] + 8 * h)));
        }
    }
}

/* From the sums of 16 elements. */
Q256_INLINE __m128i sums_of_32(const int16_t *s)
{
    __m256i v = _mm256_madd_epi16(q256_load(s), _mm256_set1_epi16(1));
    return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

Q256_INLINE void super_cols(tile_kind kind, const super_tile *g, const q256_x *x, uint32_t cols,
                            size_t k, float (*acc)[ROWS])
{
    __m256i sum[2][COLS], corr[2][COLS];
    const int8_t *a[COLS];
    Q256_UNROLL
    for (uint32_t c = 0; c < cols; c++) {
        const int16_t *s = (const int16_t *)(const void *)((const char *)x->x[c] + x->sums)
                           + 16 * k;
        a[c] = (const int8_t *)x->x[c] + 256 * k;
        __m256i c0 = _mm256_setzero_si256(), c1 = c0;
        int16_t s32[8];
        _mm_storeu_si128((void *)s32, sums_of_32(s));
        KEEP_STORED(s32);
        const int n_corr = !kind.corr ? 0 : kind.half ? 8 : 4;
        for (int j = 0; j < n_corr; j++) {
            __m256i v = four((kind.half ? s : s32) + 2 * j);
            c0 = add_madd(c0, g->corr[j][0], v);
            c1 = add_madd(c1, g->corr[j][1], v);
        }
        corr[0][c] = c0;
        corr[1][c] = c1;
        sum[0][c] = kind.mins ? _mm256_setzero_si256() : c0;
        sum[1][c] = kind.mins ? _mm256_setzero_si256() : c1;
    }
    for (int j = 0; j < 8; j++) {
        if (kind.half) {
            add_part(kind, g->w[j], 4, a, cols, g->sc[2 * j], sum);
            Q256_UNROLL
            for (uint32_t c = 0; c < cols; c++) a[c] += 16;
            add_part(kind, g->w[j] + 4, 4, a, cols, g->sc[2 * j + 1], sum);
            Q256_UNROLL
            for (uint32_t c = 0; c < cols; c++) a[c] += 16;
        } else {
            add_part(kind, g->w[j], 8, a, cols, g->sc[j], sum);
            Q256_UNROLL
            for (uint32_t c = 0; c < cols; c++) a[c] += 32;
        }
    }
    finish(kind.mins, g->d, g->dmin, sum, corr, cols, x, k, acc);
}

Q256_INLINE void block_cols(tile_kind kind, int zero, const block_tile *g, const q256_x *x,
                            uint32_t cols, size_t k, float (*acc)[ROWS])
{
    __m256i sum[2][COLS], corr[2][COLS];
    const int8_t *a[COLS];
    Q256_UNROLL
    for (uint32_t c = 0; c < cols; c++) {
        __m256i v = _mm256_setzero_si256(),
                by = _mm256_set1_epi16((int16_t)(kind.mins ? 1 : -zero));
        if (kind.corr) v = _mm256_madd_epi16(four((const int8_t *)x->x[c] + x->sums + 4 * k), by);
        a[c] = (const int8_t *)x->x[c] + 32 * k;
        corr[0][c] = corr[1][c] = v;
        sum[0][c] = sum[1][c] = kind.mins ? _mm256_setzero_si256() : v;
    }
    add_part(kind, g->w, 8, a, cols, NULL, sum);
    finish(kind.mins, g->d, g->dmin, sum, corr, cols, x, k, acc);
}

/* Up to MANY activation rows; super: groups of 256, else of 32. */
Q256_INLINE void tile_many(bool super, tile_kind kind, int zero, const void *tile, uint32_t n_rows,
                           const void *const *x, uint32_t n_x, size_t n, float *ret, size_t ld,
                           ahead *f)
{
    _Alignas(32) float acc[MANY][ROWS];
    uint32_t group = super ? 256 : 32;
    q256_x at = { x, sl_qx_scales(n), sl_qx_sums(group, n) };
    const char *g = (const char *)tile + TILE_HEAD;
    const size_t n_steps = n / group * ((n_x + COLS - 1) / COLS);
    const size_t step = ((size_t)(f->end - f->next) / SL_MAX(n_steps, 1) + 63) / 64 * 64;
    memset(acc, 0, n_x * sizeof acc[0]);
    for (size_t k = 0; k < n / group;
         k++, g += super ? super_bytes(kind.half) : block_bytes(kind.mins)) {
        const super_tile *s = (const void *)g;
        const block_tile *b = (const void *)g;
        for (uint32_t j = 0; j < n_x; j += COLS) {
            at.x = x + j;
            fetch(f, step);
#define COLUMNS(c) (super ? super_cols(kind, s, &at, c, k, acc + j) \
                          : block_cols(kind, zero, b, &at, c, k, acc + j))
            switch (n_x - j) {
            case 1: COLUMNS(1); break;
            case 2: COLUMNS(2); break;
            case 3: COLUMNS(3); break;
            default: COLUMNS(4);
            }
#undef COLUMNS
        }
    }
    for (uint32_t j = 0; j < n_x; j++) memcpy(ret + j * ld, acc[j], n_rows * sizeof(float));
}

Q256_INLINE void tile_all(bool super, tile_kind kind, int zero, const void *tile, uint32_t n_rows,
                          const void *const *x, uint32_t n_x, size_t n, float *ret, size_t ld)
{
    ahead f = *(const ahead *)tile;
    for (uint32_t j = 0; j < n_x; j += MANY)
        tile_many(super, kind, zero, tile, n_rows, x + j, SL_MIN(n_x - j, MANY), n, ret + j * ld,
                  ld, &f);
}

/* Kernels of tiles: name, chain, sgn, half, mins, zero (of groups of 32). */
#define TILE(name, super, zero, ...) \
    static void tile_##name(const void *data, uint32_t n_rows, const void *const *x, uint32_t n_x, size_t n, \
                            float *ret, size_t ld) \
    { \
        tile_all(super, (tile_kind){ __VA_ARGS__ }, zero, data, n_rows, x, n_x, n, ret, ld); \
    }
#if Q256_VNNI
TILE(super_mins, true, 0, 8, false, false, true, true)
TILE(super_half_mins, true, 0, 8, false, true, true, true)
TILE(super_zero, true, 0, 8, false, false, false, true)
TILE(super_half_zero, true, 0, 8, false, true, false, true)
#define tile_q4_k tile_super_mins
#define tile_q5_k tile_super_mins
#define tile_q2_k tile_super_half_mins
#define tile_q3_k tile_super_half_zero
#define tile_q6_k tile_super_half_zero
#define tile_iq4_xs tile_super_zero
#define tile_iq3_s tile_super_zero
#define tile_grid tile_super_zero
#define tile_grid_half tile_super_half_zero
#else
TILE(q4_k, true, 0, 8, false, false, true, true)
TILE(q5_k, true, 0, 4, false, false, true, true)
TILE(q2_k, true, 0, 4, false, true, true, true)
TILE(q3_k, true, 0, 4, false, true, false, true)
TILE(q6_k, true, 0, 2, false, true, false, true)
TILE(iq4_xs, true, 0, 1, true, false, false, false)
TILE(iq3_s, true, 0, 4, false, false, false, true)
TILE(grid, true, 0, 1, false, false, false, true)
TILE(grid_half, true, 0, 1, false, true, false, true)
#endif
TILE(q4_0, false, 8, 8, false, false, false, true)
TILE(q4_1, false, 0, 8, false, false, true, true)
TILE(q5_0, false, 16, 4, false, false, false, true)
TILE(q5_1, false, 0, 4, false, false, true, true)
TILE(mxfp4, false, 12, 4, false, false, false, true)
TILE(q8_0, false, 128, 1, true, false, false, Q256_VNNI)

/* X(id, name, tile, block_bytes, zero, mins, half, sgn, q, scales) */
#define SUPERS(X) \
    X(SL_Q2_K, q2_k, q2_k, 84, 0, true, true, false, q2_k, q2_k) \
    X(SL_Q3_K, q3_k, q3_k, 110, 4, false, true, false, q3_k, q3_k) \
    X(SL_Q4_K, q4_k, q4_k, 144, 0, true, false, false, q4_k, k4) \
    X(SL_Q5_K, q5_k, q5_k, 176, 0, true, false, false, q5_k, k4) \
    X(SL_Q6_K, q6_k, q6_k, 210, 32, false, true, false, q6_k, q6_k) \
    X(SL_IQ4_XS, iq4_xs, iq4_xs, 136, 0, false, false, true, iq4_xs, iq4_xs) \
    X(SL_IQ2_XXS, iq2_xxs, grid, 66, Q256_IQ2_ZERO, false, false, false, iq2_xxs, iq2_xxs) \
    X(SL_IQ2_XS, iq2_xs, grid_half, 74, Q256_IQ2_ZERO, false, true, false, iq2_xs, iq2_xs) \
    X(SL_IQ2_S, iq2_s, grid_half, 82, Q256_IQ2_ZERO, false, true, false, iq2_s, iq2_s) \
    X(SL_IQ3_XXS, iq3_xxs, grid, 98, Q256_IQ3_ZERO, false, false, false, iq3_xxs, iq3_xxs) \
    X(SL_IQ3_S, iq3_s, iq3_s, 110, Q256_IQ3_S_ZERO, false, false, false, iq3_s, iq3_s)
/* X(id, name, tile, block_bytes, zero, mins, sgn, q, two, d) */
#define BLOCKS(X) \
    X(SL_Q4_0, q4_0, q4_0, 18, 8, false, false, q4_0, q4_0, f16) \
    X(SL_Q4_1, q4_1, q4_1, 20, 0, true, false, q4_1, q4_1, f16) \
    X(SL_Q5_0, q5_0, q5_0, 22, 16, false, false, q5_0, q5_0, f16) \
    X(SL_Q5_1, q5_1, q5_1, 24, 0, true, false, q5_1, q5_1, f16) \
    X(SL_Q8_0, q8_0, q8_0, 34, 0, false, true, q8_0, none, f16) \
    X(SL_IQ4_NL, iq4_nl, q8_0, 18, 0, false, true, iq4_nl, none, f16) \
    X(SL_MXFP4, mxfp4, mxfp4, 17, 12, false, false, mxfp4, mxfp4, e8m0)

#define FUNCTIONS(name, kind) \
    static void rows_##name(const void *w, size_t row_bytes, uint32_t n_rows, const void *x, size_t n, \
                            float *ret) \
    { \
        rows_##kind(&type_##name, w, row_bytes, n_rows, x, n, ret); \
    } \
    static void unpack_##name(const void *w, size_t row_bytes, uint32_t n_rows, size_t n, void *ret) \
    { \
        unpack_##kind(&type_##name, w, row_bytes, n_rows, n, ret); \
    }
#define SUPER(id, name, tile, bytes, zero, mins, half, sgn, load, sc) \
    static const q256_super type_##name = { bytes, zero, mins, half, sgn, q256_q_##load, q256_scales_##sc }; \
    FUNCTIONS(name, super) \
    static size_t tile_bytes_##name(size_t n) { return TILE_HEAD + n / 256 * super_bytes(half); }
#define BLOCK(id, name, tile, bytes, zero, mins, sgn, load, two, dd) \
    static const q256_block type_##name = { bytes, zero, mins, sgn, q256_q_##load, q256_two_##two, q256_d_##dd, q256_m_f16 }; \
    FUNCTIONS(name, block) \
    static size_t tile_bytes_##name(size_t n) { return TILE_HEAD + n / 32 * block_bytes(mins); }
SUPERS(SUPER)
BLOCKS(BLOCK)

void KX_NAME(sl_quant_set, KX_SET)(sl_kernels *k)
{
    k->quantise = quantise;
#define SUPER_ENTRY(id, name, tile, ...) \
    k->qmul[id] = (sl_qmul){ 256, rows_##name, 4, ROWS, tile_bytes_##name, unpack_##name, \
                             tile_##tile };
#define BLOCK_ENTRY(id, name, tile, ...) \
    k->qmul[id] = (sl_qmul){ 32, rows_##name, 4, ROWS, tile_bytes_##name, unpack_##name, \
                             tile_##tile };
    SUPERS(SUPER_ENTRY)
    BLOCKS(BLOCK_ENTRY)
}
