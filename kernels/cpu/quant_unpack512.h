/* kernels/cpu/quant_unpack512.h - one block of each of 16 rows into the layout of quant_512.c: lane r of a
 * vector belongs to row r. Private to quant_512.c, compiled with its flags.
 * The layout of a block is a run of slots of one vector for each 16 rows: G / 4 slots of weights (4
 * elements of a row in a lane), then scales as int32, then minima as pairs of int16, then d and dmin as
 * float32; they are put in this order.
 * Blocks are bits of 32 or 16 elements side by side in their bytes, so rows are first transposed as
 * dwords and then taken apart with shifts and masks, 64 elements at a time. Layouts of the blocks:
 * kernels/cpu/dequant.c. No function reads outside its blocks. */
#ifndef QUANT_UNPACK512_H
#define QUANT_UNPACK512_H

#include "kernels/cpu/dequant.h"
#include "kernels/cpu/quant.h"

#include <immintrin.h>

typedef __m512i vi;
#define KX_INLINE static inline __attribute__((always_inline))
#define PUT(slot, v) sink_put(o, slot, v)
#define PUTF(slot, v) PUT(slot, _mm512_castps_si512(v))
#ifdef __clang__
#define KX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KX_UNROLL _Pragma("GCC unroll 16")
#endif

/* Where slots go: quant_512.c stores or multiplies them. Slot numbers are constants once inlined, so
 * every loop around a PUT is unrolled. */
struct sink;
KX_INLINE void sink_put(struct sink *o, const int slot, vi v);

KX_INLINE vi and8(vi v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8((char)mask)); }
KX_INLINE vi and32(vi v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi32(mask)); }
KX_INLINE vi shr(vi v, unsigned n) { return _mm512_srli_epi32(v, n); }
KX_INLINE vi shl(vi v, unsigned n) { return _mm512_slli_epi32(v, n); }
KX_INLINE vi or2(vi a, vi b) { return _mm512_or_si512(a, b); }

/* Dwords 0..3 of 16 bytes of each row. */
KX_INLINE void dwords4(const uint8_t *const *row, size_t off, vi *out)
{
    vi a[4];
    KX_UNROLL for (int c = 0; c < 4; c++) {
        a[c] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(row[c] + off)));
        a[c] = _mm512_inserti32x4(a[c], _mm_loadu_si128((const void *)(row[c + 4] + off)), 1);
        a[c] = _mm512_inserti32x4(a[c], _mm_loadu_si128((const void *)(row[c + 8] + off)), 2);
        a[c] = _mm512_inserti32x4(a[c], _mm_loadu_si128((const void *)(row[c + 12] + off)), 3);
    }
    vi l0 = _mm512_unpacklo_epi32(a[0], a[1]), l1 = _mm512_unpacklo_epi32(a[2], a[3]);
    vi h0 = _mm512_unpackhi_epi32(a[0], a[1]), h1 = _mm512_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm512_unpacklo_epi64(l0, l1);
    out[1] = _mm512_unpackhi_epi64(l0, l1);
    out[2] = _mm512_unpacklo_epi64(h0, h1);
    out[3] = _mm512_unpackhi_epi64(h0, h1);
}

/* Dwords 0..15 of 64 bytes of each row. */
KX_INLINE void dwords16(const uint8_t *const *row, size_t off, vi *out)
{
    vi u[4][4];
    KX_UNROLL for (int q = 0; q < 4; q++) {       /* rows 4q .. 4q + 3: lane l of u[q][c] is dword 4l + c of each */
        vi a[4];
        KX_UNROLL for (int c = 0; c < 4; c++) a[c] = _mm512_loadu_si512(row[4 * q + c] + off);
        vi l0 = _mm512_unpacklo_epi32(a[0], a[1]), l1 = _mm512_unpacklo_epi32(a[2], a[3]);
        vi h0 = _mm512_unpackhi_epi32(a[0], a[1]), h1 = _mm512_unpackhi_epi32(a[2], a[3]);
        u[q][0] = _mm512_unpacklo_epi64(l0, l1);
        u[q][1] = _mm512_unpackhi_epi64(l0, l1);
        u[q][2] = _mm512_unpacklo_epi64(h0, h1);
        u[q][3] = _mm512_unpackhi_epi64(h0, h1);
    }
    KX_UNROLL for (int c = 0; c < 4; c++) {
        vi a = _mm512_shuffle_i32x4(u[0][c], u[1][c], 0x88), b = _mm512_shuffle_i32x4(u[2][c], u[3][c], 0x88);
        vi d = _mm512_shuffle_i32x4(u[0][c], u[1][c], 0xdd), e = _mm512_shuffle_i32x4(u[2][c], u[3][c], 0xdd);
        out[c] = _mm512_shuffle_i32x4(a, b, 0x88);
        out[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
        out[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
        out[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
}

/* The dword at off of each row. */
KX_INLINE vi dwords1(const uint8_t *const *row, size_t off)
{
    __m128i q[4];
    KX_UNROLL for (int i = 0; i < 4; i++)
        q[i] = _mm_set_epi32((int)sl_load_u32(row[4 * i + 3] + off), (int)sl_load_u32(row[4 * i + 2] + off),
                             (int)sl_load_u32(row[4 * i + 1] + off), (int)sl_load_u32(row[4 * i] + off));
    __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(q[0]), q[1], 1);
    __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(q[2]), q[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

/* The 16 bits at off of each row, zero-extended. */
KX_INLINE vi words1(const uint8_t *const *row, size_t off)
{
    __m128i q[2];
    KX_UNROLL for (int i = 0; i < 2; i++) {
        const uint8_t *const *r = row + 8 * i;
        q[i] = _mm_cvtsi32_si128(sl_load_u16(r[0] + off));
        q[i] = _mm_insert_epi16(q[i], sl_load_u16(r[1] + off), 1);
        q[i] = _mm_insert_epi16(q[i], sl_load_u16(r[2] + off), 2);
        q[i] = _mm_insert_epi16(q[i], sl_load_u16(r[3] + off), 3);
        q[i] = _mm_insert_epi16(q[i], sl_load_u16(r[4] + off), 4);
        q[i] = _mm_insert_epi16(q[i], sl_load_u16(r[5] + off), 5);
        q[i] = _mm_insert_epi16(q[i], sl_load_u16(r[6] + off), 6);
        q[i] = _mm_insert_epi16(q[i], sl_load_u16(r[7] + off), 7);
    }
    return _mm512_cvtepu16_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(q[0]), q[1], 1));
}

/* float16 in the low half of each dword to float32. */
KX_INLINE __m512 floats(vi v)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}

/* 16 bytes of nibbles: 4 dwords to the 8 slots of 32 elements. */
#define NIBBLES(first, w, EXPR) \
    KX_UNROLL for (int i = 0; i < 4; i++) { \
        vi q = and8((w)[i], 15); \
        PUT((first) + i, EXPR((w)[i], q, i)); \
        q = and8(shr((w)[i], 4), 15); \
        PUT((first) + 4 + i, EXPR((w)[i], q, i + 4)); \
    }
#define PLAIN(w, q, i) (q)
#define FIFTH(w, q, i) or2(q, fifth(h, i))
#define LEVEL(w, q, i) _mm512_shuffle_epi8(level, q)

/* Bits 4i .. 4i + 3 of h to bit 4 of the four bytes of a dword. */
KX_INLINE vi fifth(vi h, int i)
{
    vi bits = and32(shr(h, 4 * (unsigned)i), 15);
    vi spread = or2(or2(bits, shl(bits, 7)), or2(shl(bits, 14), shl(bits, 21)));
    return shl(and8(spread, 1), 4);
}

KX_INLINE vi levels_at(int zero, const int8_t *level)
{
    int8_t v[16];
    KX_UNROLL for (int i = 0; i < 16; i++) v[i] = (int8_t)(zero + level[i]);
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)v));
}

KX_INLINE vi iq4_levels(void)
{
    static const int8_t l[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
    return levels_at(-128, l);      /* + 128 modulo 256 */
}

KX_INLINE void unpack_q4_0(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[4];
    dwords4(row, off + 2, w);
    NIBBLES(0, w, PLAIN)
    PUTF(8, floats(words1(row, off)));
}

KX_INLINE vi negate_f32(__m512 v)
{
    return _mm512_xor_si512(_mm512_castps_si512(v), _mm512_set1_epi32((int)0x80000000));
}

KX_INLINE void unpack_q4_1(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[4], d = dwords1(row, off);
    dwords4(row, off + 4, w);
    NIBBLES(0, w, PLAIN)
    PUTF(8, floats(d));
    PUT(9, negate_f32(floats(shr(d, 16))));
}

KX_INLINE void unpack_q5_0(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[4], h = dwords1(row, off + 2);
    dwords4(row, off + 6, w);
    NIBBLES(0, w, FIFTH)
    PUTF(8, floats(words1(row, off)));
}

KX_INLINE void unpack_q5_1(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[4], head[4];
    dwords4(row, off, head);
    dwords4(row, off + 8, w);
    vi h = head[1];
    NIBBLES(0, w, FIFTH)
    PUTF(8, floats(head[0]));
    PUT(9, negate_f32(floats(shr(head[0], 16))));
}

KX_INLINE void unpack_q8_0(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[8];
    dwords4(row, off + 2, w);
    dwords4(row, off + 18, w + 4);
    KX_UNROLL for (int i = 0; i < 8; i++) PUT(i, _mm512_xor_si512(w[i], _mm512_set1_epi8((char)0x80)));
    PUTF(8, floats(words1(row, off)));
}

KX_INLINE void unpack_iq4_nl(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[4], level = iq4_levels();
    dwords4(row, off + 2, w);
    NIBBLES(0, w, LEVEL)
    PUTF(8, floats(words1(row, off)));
}

KX_INLINE void unpack_mxfp4(const uint8_t *const *row, size_t off, struct sink *o)
{
    static const int8_t l[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
    vi w[4], level = levels_at(64, l), one = _mm512_set1_epi32(1), e = and32(words1(row, off), 255);
    dwords4(row, off + 1, w);
    NIBBLES(0, w, LEVEL)
    __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    vi d = shl(_mm512_sub_epi32(e, one), 23);
    PUT(8, _mm512_mask_sllv_epi32(d, small, _mm512_set1_epi32(0x00200000), e));
}

/* Byte i % 4 of dword i / 4. */
KX_INLINE vi byte_of(const vi *w, int i)
{
    return and32(shr(w[i / 4], 8 * (unsigned)(i % 4)), 255);
}

/* 6-bit scales and minima of Q4_K and Q5_K (dequant.c), d and dmin: slots from `first`. */
KX_INLINE void head_k4(const uint8_t *const *row, size_t off, struct sink *o, int first)
{
    vi w[4], m[8];
    dwords4(row, off, w);
    KX_UNROLL for (int j = 0; j < 4; j++) {
        unsigned at = 8 * (unsigned)j;
        vi low = and32(shr(w[3], at), 15), high = and32(shr(w[3], at + 4), 15);
        PUT(first + j, and32(shr(w[1], at), 63));
        PUT(first + 4 + j, or2(low, shl(and32(shr(w[1], at + 6), 3), 4)));
        m[j] = and32(shr(w[2], at), 63);
        m[4 + j] = or2(high, shl(and32(shr(w[2], at + 6), 3), 4));
    }
    KX_UNROLL for (int j = 0; j < 4; j++) PUT(first + 8 + j, or2(m[2 * j], shl(m[2 * j + 1], 16)));
    PUTF(first + 12, floats(w[0]));
    PUTF(first + 13, floats(shr(w[0], 16)));
}

KX_INLINE void unpack_q4_k(const uint8_t *const *row, size_t off, struct sink *o)
{
    KX_UNROLL for (int half = 0; half < 2; half++) {
        vi w[16];
        dwords16(row, off + 16 + 64 * (size_t)half, w);
        KX_UNROLL for (int i = 0; i < 16; i++) {
            int slot = 32 * half + 16 * (i / 8) + i % 8;
            PUT(slot, and8(w[i], 15));
            PUT(slot + 8, and8(shr(w[i], 4), 15));
        }
    }
    head_k4(row, off, o, 64);
}

KX_INLINE void unpack_q5_k(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi h[8];
    dwords4(row, off + 16, h);
    dwords4(row, off + 32, h + 4);
    KX_UNROLL for (int half = 0; half < 2; half++) {
        vi w[16];
        dwords16(row, off + 48 + 64 * (size_t)half, w);
        KX_UNROLL for (int i = 0; i < 16; i++) {
            int slot = 32 * half + 16 * (i / 8) + i % 8;
            unsigned bit = 4 * (unsigned)half + 2 * (unsigned)(i / 8);
            PUT(slot, or2(and8(w[i], 15), shl(and8(shr(h[i % 8], bit), 1), 4)));
            PUT(slot + 8, or2(and8(shr(w[i], 4), 15), shl(and8(shr(h[i % 8], bit + 1), 1), 4)));
        }
    }
    head_k4(row, off, o, 64);
}

KX_INLINE void unpack_q6_k(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi h[16], s[4];
    dwords16(row, off + 128, h);
    KX_UNROLL for (int half = 0; half < 2; half++) {
        vi l[16];
        dwords16(row, off + 64 * (size_t)half, l);
        KX_UNROLL for (int run = 0; run < 4; run++)
            KX_UNROLL for (int i = 0; i < 8; i++) {
                vi low = and8(shr(l[8 * (run % 2) + i], 4 * (unsigned)(run / 2)), 15);
                vi high = and8(shr(h[8 * half + i], 2 * (unsigned)run), 3);
                PUT(32 * half + 8 * run + i, or2(low, shl(high, 4)));
            }
    }
    dwords4(row, off + 192, s);
    KX_UNROLL for (int j = 0; j < 16; j++)
        PUT(64 + j, _mm512_srai_epi32(shl(s[j / 4], 24 - 8 * (unsigned)(j % 4)), 24));
    PUTF(80, floats(words1(row, off + 208)));
}

KX_INLINE void unpack_q2_k(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[16], s[4], d = dwords1(row, off + 80);
    dwords16(row, off + 16, w);
    KX_UNROLL for (int run = 0; run < 8; run++)
        KX_UNROLL for (int i = 0; i < 8; i++)
            PUT(8 * run + i, and8(shr(w[8 * (run / 4) + i], 2 * (unsigned)(run % 4)), 3));
    dwords4(row, off, s);
    KX_UNROLL for (int j = 0; j < 16; j++) PUT(64 + j, and32(byte_of(s, j), 15));
    KX_UNROLL for (int j = 0; j < 16; j += 2)
        PUT(80 + j / 2, or2(shr(byte_of(s, j), 4), shl(shr(byte_of(s, j + 1), 4), 16)));
    PUTF(88, floats(d));
    PUTF(89, floats(shr(d, 16)));
}

KX_INLINE void unpack_q3_k(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi w[16], h[8], t[4], s[3];
    dwords4(row, off, h);
    dwords4(row, off + 16, h + 4);
    dwords16(row, off + 32, w);
    KX_UNROLL for (int run = 0; run < 8; run++)
        KX_UNROLL for (int i = 0; i < 8; i++) {
            vi low = and8(shr(w[8 * (run / 4) + i], 2 * (unsigned)(run % 4)), 3);
            PUT(8 * run + i, or2(low, shl(and8(shr(h[i], (unsigned)run), 1), 2)));
        }
    dwords4(row, off + 94, t);      /* two bytes of w, twelve of scales, d */
    KX_UNROLL for (int i = 0; i < 3; i++) s[i] = or2(shr(t[i], 16), shl(t[i + 1], 16));
    KX_UNROLL for (int j = 0; j < 16; j++) {
        vi low = and32(shr(byte_of(s, j % 8), 4 * (unsigned)(j / 8)), 15);
        vi high = and32(shr(byte_of(s, 8 + j % 4), 2 * (unsigned)(j / 4)), 3);
        PUT(64 + j, _mm512_sub_epi32(or2(low, shl(high, 4)), _mm512_set1_epi32(32)));
    }
    PUTF(80, floats(shr(t[3], 16)));
}

KX_INLINE void unpack_iq4_xs(const uint8_t *const *row, size_t off, struct sink *o)
{
    vi level = iq4_levels(), head[4];
    KX_UNROLL for (int half = 0; half < 2; half++) {
        vi w[16];
        dwords16(row, off + 8 + 64 * (size_t)half, w);
        KX_UNROLL for (int g = 0; g < 4; g++) NIBBLES(32 * half + 8 * g, w + 4 * g, LEVEL)
    }
    dwords4(row, off, head);        /* d and h, four bytes l, eight of w */
    KX_UNROLL for (int j = 0; j < 8; j++) {
        vi low = and32(shr(head[1], 4 * (unsigned)j), 15);
        vi high = and32(shr(head[0], 16 + 2 * (unsigned)j), 3);
        PUT(64 + j, _mm512_sub_epi32(or2(low, shl(high, 4)), _mm512_set1_epi32(32)));
    }
    PUTF(72, floats(head[0]));
}

/* The types with codebooks of rows: taken apart by quant_decode.c, then transposed. */
KX_INLINE void unpack_book(sl_type type, const uint8_t *const *row, size_t off, struct sink *o,
                           const int n_sc)
{
    sl_qgroup g[16];
    const uint8_t *q[16], *s[16];
    vi w[16], d;
    KX_UNROLL for (int r = 0; r < 16; r++) {
        sl_qtypes[type].decode(row[r] + off, g + r);
        q[r] = g[r].q;
        s[r] = (const uint8_t *)g[r].sc;
    }
    KX_UNROLL for (int c = 0; c < 4; c++) {
        dwords16(q, 64 * (size_t)c, w);
        KX_UNROLL for (int i = 0; i < 16; i++) PUT(16 * c + i, w[i]);
    }
    KX_UNROLL for (int i = 0; i < 2; i++) dwords4(s, 16 * (size_t)i, w + 4 * i);
    KX_UNROLL for (int j = 0; j < n_sc; j++) {
        vi pair = w[n_sc == 16 ? j / 2 : j];
        PUT(64 + j, n_sc == 16 && j % 2 ? _mm512_srai_epi32(pair, 16) : _mm512_srai_epi32(shl(pair, 16), 16));
    }
    KX_UNROLL for (int r = 0; r < 16; r++) s[r] = (const uint8_t *)&g[r].d;
    d = dwords1(s, 0);
    PUT(64 + n_sc, d);
}

#define BOOK(id, name, n_sc) \
    KX_INLINE void unpack_##name(const uint8_t *const *row, size_t off, struct sink *o) \
    { \
        unpack_book(id, row, off, o, n_sc); \
    }
BOOK(SL_IQ2_XXS, iq2_xxs, 8)
BOOK(SL_IQ2_XS, iq2_xs, 16)
BOOK(SL_IQ2_S, iq2_s, 16)
BOOK(SL_IQ3_XXS, iq3_xxs, 8)
BOOK(SL_IQ3_S, iq3_s, 8)

#endif
