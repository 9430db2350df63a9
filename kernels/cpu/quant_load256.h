/* kernels/cpu/quant_load256.h - blocks of every quantised type into 256-bit registers: 32 unsigned
 * elements and the scales as they go into the formula of kernels/sl_quant.h. Layouts:
 * kernels/cpu/quant_decode.c.
 * The constant `zero` is each type's own here: q is chosen small, so that sums stay within int16.
 * Part of quant_256.c. Private to kernels/cpu. */
#ifndef QUANT_LOAD256_H
#define QUANT_LOAD256_H

#include "kernels/cpu/dequant.h"
#include "kernels/cpu/quant.h"

#include <immintrin.h>

#define Q256_INLINE static inline __attribute__((always_inline))

/* A type of super-blocks of 256. */
typedef struct q256_super {
    uint32_t block_bytes;
    int zero;
    bool mins;
    bool half;      /* sc differs between the two 16s of 32 elements */
    bool sgn;       /* q is signed, zero is 0: 8 bits */
    __m256i (*q)(const uint8_t *b, int j);  /* elements 32j .. 32j + 31 */
    /* d and dmin; sc and mn, 16 x int16 each. Types without minima leave mn and d[1] alone. */
    void (*scales)(const uint8_t *b, float *d, __m256i *sc, __m256i *mn);
} q256_super;

/* Two blocks of 32, one after the other: elements 0 .. 15 of each, and 16 .. 31. */
typedef struct q256_two { __m256i lo, hi; } q256_two;

/* A type of blocks of 32. */
typedef struct q256_block {
    uint32_t block_bytes;
    int zero;
    bool mins, sgn;
    __m256i (*q)(const uint8_t *b);
    q256_two (*two)(const uint8_t *b);          /* q below 32; NULL: not for this type */
    __m256 (*d)(const uint8_t *const *b);       /* of 8 blocks */
    __m256 (*dmin)(const uint8_t *const *b);    /* with mins */
} q256_block;

Q256_INLINE float q256_f16(const uint8_t *p)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(sl_load_u16(p))));
}

Q256_INLINE __m256i q256_load(const void *p) { return _mm256_loadu_si256(p); }
Q256_INLINE __m256i q256_and(__m256i v, int mask)
{
    return _mm256_and_si256(v, _mm256_set1_epi8((char)mask));
}

Q256_INLINE uint64_t q256_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* Bit i of h as byte i, 0 or 0xff. */
Q256_INLINE __m256i q256_bits(uint32_t h)
{
    const __m256i spread =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32((int)h), spread);
    return _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit);
}

/* The 16 nibbles of each of two 8-byte halves, in order. */
Q256_INLINE __m256i q256_nibbles_in_order(__m128i v)
{
    const __m128i low = _mm_set1_epi8(15);
    __m128i a = _mm_and_si128(v, low), b = _mm_and_si128(_mm_srli_epi16(v, 4), low);
    return _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
}

/* 16 bytes: the low nibbles are elements 0 .. 15, the high ones 16 .. 31. */
Q256_INLINE __m256i q256_nibbles(const uint8_t *p)
{
    __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));
    return q256_and(_mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)), 15);
}

Q256_INLINE __m256i q256_levels(const uint8_t *p, const int8_t *level)
{
    __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)level));
    return _mm256_shuffle_epi8(table, q256_nibbles(p));
}

static const int8_t q256_iq4[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113 };
static const int8_t q256_e2m1[16] = { 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0 };

/* Blocks of 32. */
Q256_INLINE __m256i q256_q_q4_0(const uint8_t *b) { return q256_nibbles(b + 2); }
Q256_INLINE __m256i q256_q_q4_1(const uint8_t *b) { return q256_nibbles(b + 4); }
Q256_INLINE __m256i q256_q_q5_0(const uint8_t *b)
{
    return _mm256_or_si256(q256_nibbles(b + 6), q256_and(q256_bits(sl_load_u32(b + 2)), 16));
}

Q256_INLINE __m256i q256_q_q5_1(const uint8_t *b)
{
    return _mm256_or_si256(q256_nibbles(b + 8), q256_and(q256_bits(sl_load_u32(b + 4)), 16));
}

Q256_INLINE __m256i q256_q_q8_0(const uint8_t *b) { return q256_load(b + 2); }
Q256_INLINE __m256i q256_q_iq4_nl(const uint8_t *b) { return q256_levels(b + 2, q256_iq4); }
Q256_INLINE __m256i q256_q_mxfp4(const uint8_t *b) { return q256_levels(b + 1, q256_e2m1); }

/* Types without it. */
#define q256_two_none NULL

/* Nibbles as q256_nibbles takes them, at p and at the same place of the next block. */
Q256_INLINE q256_two q256_two_nibbles(const uint8_t *p, uint32_t block_bytes)
{
    __m256i v = _mm256_set_m128i(_mm_loadu_si128((const void *)(p + block_bytes)),
                                 _mm_loadu_si128((const void *)p));
    return (q256_two){ q256_and(v, 15), q256_and(_mm256_srli_epi16(v, 4), 15) };
}

/* With the fifth bits at h. */
Q256_INLINE q256_two q256_two_fives(const uint8_t *p, const uint8_t *h, uint32_t block_bytes)
{
    uint32_t h0 = sl_load_u32(h), h1 = sl_load_u32(h + block_bytes);
    q256_two v = q256_two_nibbles(p, block_bytes);
    v.lo = _mm256_or_si256(v.lo, q256_and(q256_bits((h0 & 0xffff) | h1 << 16), 16));
    v.hi = _mm256_or_si256(v.hi, q256_and(q256_bits(h0 >> 16 | (h1 & 0xffff0000)), 16));
    return v;
}

Q256_INLINE q256_two q256_two_q4_0(const uint8_t *b) { return q256_two_nibbles(b + 2, 18); }
Q256_INLINE q256_two q256_two_q4_1(const uint8_t *b) { return q256_two_nibbles(b + 4, 20); }
Q256_INLINE q256_two q256_two_q5_0(const uint8_t *b) { return q256_two_fives(b + 6, b + 2, 22); }
Q256_INLINE q256_two q256_two_q5_1(const uint8_t *b) { return q256_two_fives(b + 8, b + 4, 24); }
Q256_INLINE q256_two q256_two_mxfp4(const uint8_t *b)
{
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)q256_e2m1));
    q256_two v = q256_two_nibbles(b + 1, 17);
    return (q256_two){ _mm256_shuffle_epi8(t, v.lo), _mm256_shuffle_epi8(t, v.hi) };
}

/* The dwords there of four blocks, which must have 16 bytes from there on. */
Q256_INLINE __m128i q256_four_at(const uint8_t *const *b, int at)
{
    __m128i v[2];
    for (int i = 0; i < 2; i++, b += 2)
        v[i] = _mm_unpacklo_epi32(_mm_cvtsi32_si128((int)sl_load_u32(b[0] + at)),
                                  _mm_loadu_si128((const void *)(b[1] + at)));
    return _mm_unpacklo_epi64(v[0], v[1]);
}

Q256_INLINE __m256 q256_f16_at(const uint8_t *const *b, int at)
{
    const __m128i low = _mm_set1_epi32(0xffff);
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm_and_si128(q256_four_at(b, at), low),
                                            _mm_and_si128(q256_four_at(b + 4, at), low)));
}

Q256_INLINE __m256 q256_d_f16(const uint8_t *const *b) { return q256_f16_at(b, 0); }
Q256_INLINE __m256 q256_m_f16(const uint8_t *const *b)
{
    return _mm256_xor_ps(q256_f16_at(b, 2), _mm256_set1_ps(-0.0f));
}

/* 2^(byte - 128), for the levels are doubled: (byte - 1) << 23, below 2 a denormal. */
Q256_INLINE __m256 q256_d_e8m0(const uint8_t *const *b)
{
    __m256i n = _mm256_set_m128i(q256_four_at(b + 4, 0), q256_four_at(b, 0));
    n = _mm256_and_si256(n, _mm256_set1_epi32(255));
    __m256i v = _mm256_slli_epi32(_mm256_sub_epi32(n, _mm256_set1_epi32(1)), 23);
    __m256i small = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(1)), 21);
    return _mm256_castsi256_ps(_mm256_max_epi32(v, small));
}

/* Super-blocks. 8 scales of 32 elements each, as dwords: twice as int16. */
Q256_INLINE __m256i q256_twice(__m256i s)
{
    return _mm256_or_si256(_mm256_and_si256(s, _mm256_set1_epi32(0xffff)),
                           _mm256_slli_epi32(s, 16));
}

/* `bits` bits (at most 4) at each of 8 places `bits` apart, from bit 0 on. */
Q256_INLINE __m256i q256_fields(uint32_t v, int bits)
{
    __m256i at =
        _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(bits));
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)v), at),
                            _mm256_set1_epi32((1 << bits) - 1));
}

Q256_INLINE void q256_two_f16(const uint8_t *b, float *d)
{
    __m128 v = _mm_cvtph_ps(_mm_cvtsi32_si128((int)sl_load_u32(b)));
    d[0] = _mm_cvtss_f32(v);
    d[1] = _mm_cvtss_f32(_mm_movehdup_ps(v));
}

/* Dwords of a block: d and dmin, then 6 bits each of scales 0-3, of minima 0-3, and the low 4 of
 * both's 4-7, whose high 2 are on top of the first ones. */
Q256_INLINE void q256_scales_k4(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    __m128i v = _mm_loadu_si128((const void *)b);
    __m128i l = _mm_srlv_epi32(_mm_shuffle_epi32(v, 0xed), _mm_setr_epi32(0, 0, 0, 4));
    __m128i h = _mm_srli_epi32(_mm_shuffle_epi32(v, 0xa5), 2);
    l = _mm_and_si128(l, _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    h = _mm_and_si128(h, _mm_setr_epi32(0, 0x30303030, 0, 0x30303030));
    l = _mm_or_si128(l, h);
    *sc = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(l, l));
    *mn = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(l, l));
    __m128 f = _mm_cvtph_ps(v);
    d[0] = _mm_cvtss_f32(f);
    d[1] = _mm_cvtss_f32(_mm_movehdup_ps(f));
}

Q256_INLINE __m256i q256_half_byte(const uint8_t *b, int j)
{
    __m256i v = q256_load(b + 32 * (j / 2));
    __asm__("" : "+x"(v));     /* else gcc loads it for each j */
    return q256_and(j % 2 ? _mm256_srli_epi16(v, 4) : v, 15);
}

Q256_INLINE __m256i q256_q_q4_k(const uint8_t *b, int j) { return q256_half_byte(b + 16, j); }
Q256_INLINE __m256i q256_q_q5_k(const uint8_t *b, int j)
{
    __m256i h = q256_load(b + 16);
    h = j < 4 ? _mm256_slli_epi16(h, 4 - j) : _mm256_srli_epi16(h, j - 4);
    return _mm256_or_si256(q256_half_byte(b + 48, j), q256_and(h, 16));
}

Q256_INLINE __m256i q256_q_q6_k(const uint8_t *b, int j)
{
    int run = j % 4;
    __m256i l = q256_load(b + 64 * (j / 4) + 32 * (run % 2)), h = q256_load(b + 128 + 32 * (j / 4));
    l = q256_and(run / 2 ? _mm256_srli_epi16(l, 4) : l, 15);
    h = run < 2 ? _mm256_slli_epi16(h, 4 - 2 * run) : _mm256_srli_epi16(h, 2 * run - 4);
    return _mm256_or_si256(l, q256_and(h, 48));
}

Q256_INLINE void q256_scales_q6_k(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    (void)mn;
    *sc = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(b + 192)));
    d[0] = q256_f16(b + 208);
}

Q256_INLINE __m256i q256_q_q2_k(const uint8_t *b, int j)
{
    return q256_and(_mm256_srli_epi16(q256_load(b + 16 + 32 * (j / 4)), 2 * (j % 4)), 3);
}

Q256_INLINE void q256_scales_q2_k(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    __m128i v = _mm_loadu_si128((const void *)b), low = _mm_set1_epi8(15);
    *sc = _mm256_cvtepu8_epi16(_mm_and_si128(v, low));
    *mn = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(v, 4), low));
    q256_two_f16(b + 80, d);
}

Q256_INLINE __m256i q256_q_q3_k(const uint8_t *b, int j)
{
    __m256i h = q256_load(b),
            l = q256_and(_mm256_srli_epi16(q256_load(b + 32 + 32 * (j / 4)), 2 * (j % 4)), 3);
    h = j < 2 ? _mm256_slli_epi16(h, 2 - j) : _mm256_srli_epi16(h, j - 2);
    return _mm256_or_si256(l, q256_and(h, 4));
}

Q256_INLINE void q256_scales_q3_k(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    uint64_t l = q256_u64(b + 96), low = 0x0f0f0f0f0f0f0f0f;
    __m128i h =
        _mm_srlv_epi32(_mm_set1_epi32((int)sl_load_u32(b + 104)), _mm_setr_epi32(0, 2, 4, 6));
    __m128i s = _mm_set_epi64x((long long)(l >> 4 & low), (long long)(l & low));
    h = _mm_slli_epi16(_mm_and_si128(h, _mm_set1_epi8(3)), 4);
    (void)mn;
    *sc = _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_or_si128(s, h), _mm_set1_epi8(32)));
    d[0] = q256_f16(b + 108);
}

Q256_INLINE __m256i q256_q_iq4_xs(const uint8_t *b, int j)
{
    return q256_levels(b + 8 + 16 * j, q256_iq4);
}
Q256_INLINE void q256_scales_iq4_xs(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    __m256i h = _mm256_slli_epi32(q256_fields(sl_load_u16(b + 2), 2), 4);
    __m256i s = _mm256_or_si256(q256_fields(sl_load_u32(b + 4), 4), h);
    (void)mn;
    *sc = q256_twice(_mm256_sub_epi32(s, _mm256_set1_epi32(32)));
    d[0] = q256_f16(b);
}

/* Types with a grid: 32 levels from 4 rows of 2 bits (IQ2) or 8 rows of 4 bits (IQ3), then
 * signs. */
Q256_INLINE __m256i q256_grid2(const uint16_t *grid, unsigned i, unsigned j, unsigned k, unsigned l)
{
    const __m128i even = _mm_setr_epi8(8, 25, 43, 0, 8, 25, 43, 0, 8, 25, 43, 0, 8, 25, 43, 0);
    const __m128i odd = _mm_setr_epi8(8, 8, 8, 8, 25, 25, 25, 25, 43, 43, 43, 43, 0, 0, 0, 0);
    uint64_t v = grid[i] | (uint64_t)grid[j] << 16 | (uint64_t)grid[k] << 32
                 | (uint64_t)grid[l] << 48;
    __m128i n = _mm256_castsi256_si128(q256_nibbles_in_order(_mm_cvtsi64_si128((long long)v)));
    __m128i a = _mm_shuffle_epi8(even, n), b = _mm_shuffle_epi8(odd, n);
    return _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
}

/* levels: 8 bytes. q: the low 8 bits of the 8 row numbers, high: their ninth bits. */
Q256_INLINE __m256i q256_grid3(const uint16_t *grid, uint64_t levels, const uint8_t *q,
                               unsigned high)
{
    uint64_t v[2] = { 0, 0 };
    for (int i = 0; i < 8; i++)
        v[i / 4] |= (uint64_t)grid[q[i] | (high >> i & 1) << 8] << 16 * (i % 4);
    __m256i n = q256_nibbles_in_order(_mm_set_epi64x((long long)v[1], (long long)v[0]));
    return _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)levels), n);
}

Q256_INLINE __m256i q256_signed(__m256i v, uint32_t signs, int zero)
{
    __m256i m = q256_bits(signs);
    v = _mm256_sub_epi8(_mm256_xor_si256(v, m), m);
    return _mm256_add_epi8(v, _mm256_set1_epi8((char)zero));
}

/* Four times 7 signs from bit 0 on; the eighth makes their number even. */
Q256_INLINE uint32_t q256_even_signs(uint32_t w)
{
    uint32_t s = (w & 127) | (w & 127 << 7) << 1 | (w & 127 << 14) << 2 | (w & 127 << 21) << 3;
    uint32_t p = s ^ s >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    return s | (p & 0x01010101) << 7;
}

enum { Q256_IQ2_ZERO = 64, Q256_IQ3_ZERO = 64, Q256_IQ3_S_ZERO = 16 };

Q256_INLINE __m256i q256_q_iq2_xxs(const uint8_t *b, int j)
{
    const uint8_t *q = b + 2 + 8 * j;
    return q256_signed(q256_grid2(sl_grid_iq2_xxs, q[0], q[1], q[2], q[3]),
                       q256_even_signs(sl_load_u32(q + 4)), Q256_IQ2_ZERO);
}

Q256_INLINE __m256i q256_q_iq2_xs(const uint8_t *b, int j)
{
    uint64_t q = q256_u64(b + 2 + 8 * j);
    uint32_t s =
        (uint32_t)((q >> 9 & 127) | (q >> 25 & 127) << 7 | (q >> 41 & 127) << 14 | q >> 57 << 21);
    return q256_signed(q256_grid2(sl_grid_iq2_xs, q & 511, q >> 16 & 511, q >> 32 & 511,
                                  q >> 48 & 511),
                       q256_even_signs(s), Q256_IQ2_ZERO);
}

Q256_INLINE __m256i q256_q_iq2_s(const uint8_t *b, int j)
{
    const uint8_t *q = b + 2 + 4 * j;
    unsigned h = b[66 + j];
    return q256_signed(q256_grid2(sl_grid_iq2_s, q[0] | (h & 3) << 8, q[1] | (h & 12) << 6,
                                  q[2] | (h & 48) << 4, q[3] | (h & 192) << 2),
                       sl_load_u32(b + 34 + 4 * j), Q256_IQ2_ZERO);
}

Q256_INLINE __m256i q256_q_iq3_xxs(const uint8_t *b, int j)
{
    return q256_signed(q256_grid3(sl_grid_iq3_xxs, 0x3e342c241c140c04, b + 2 + 8 * j, 0),
                       q256_even_signs(sl_load_u32(b + 66 + 4 * j)), Q256_IQ3_ZERO);
}

Q256_INLINE __m256i q256_q_iq3_s(const uint8_t *b, int j)
{
    return q256_signed(q256_grid3(sl_grid_iq3_s, 0x0f0d0b0907050301, b + 2 + 8 * j, b[66 + j]),
                       sl_load_u32(b + 74 + 4 * j), Q256_IQ3_S_ZERO);
}

/* 1 + 2 s for s of 4 bits; of XXS types at the top of each 32 elements' signs. */
Q256_INLINE __m256i q256_odd(__m256i s)
{
    return _mm256_or_si256(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
}

Q256_INLINE void q256_scales_iq2_xxs(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    __m256 lo = _mm256_castsi256_ps(q256_load(b + 2)), hi = _mm256_castsi256_ps(q256_load(b + 34));
    __m256i w = _mm256_castps_si256(_mm256_shuffle_ps(lo, hi, 0xdd));   /* 0 1 4 5 2 3 6 7 */
    (void)mn;
    *sc = q256_odd(q256_twice(_mm256_srli_epi32(_mm256_permute4x64_epi64(w, 0xd8), 28)));
    d[0] = q256_f16(b) * 0.125f;
}

Q256_INLINE __m256i q256_nibble_scales(const uint8_t *b)
{
    __m256i n = q256_nibbles_in_order(_mm_cvtsi64_si128((long long)q256_u64(b)));
    return q256_odd(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(n)));
}

Q256_INLINE void q256_scales_iq2_xs(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    (void)mn;
    *sc = q256_nibble_scales(b + 66);
    d[0] = q256_f16(b) * 0.125f;
}

Q256_INLINE void q256_scales_iq2_s(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    (void)mn;
    *sc = q256_nibble_scales(b + 74);
    d[0] = q256_f16(b) * 0.125f;
}

Q256_INLINE void q256_scales_iq3_xxs(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    (void)mn;
    *sc = q256_odd(q256_twice(_mm256_srli_epi32(q256_load(b + 66), 28)));
    d[0] = q256_f16(b) * 0.25f;
}

Q256_INLINE void q256_scales_iq3_s(const uint8_t *b, float *d, __m256i *sc, __m256i *mn)
{
    (void)mn;
    *sc = q256_odd(q256_twice(q256_fields(sl_load_u32(b + 106), 4)));
    d[0] = q256_f16(b);
}

#endif
