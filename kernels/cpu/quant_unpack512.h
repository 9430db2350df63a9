/* kernels/cpu/quant_unpack512.h - one block (or eight small ones) of each of 16 rows, or other 16
 * places, into the layout of quant_512.c: lane r of a vector belongs to place r. Private to
 * quant_512.c, compiled with its flags.
 * The layout of a block is a run of slots of one vector for each 16 rows: G / 4 slots of weights (4
 * elements of a row in a lane), then scales as int32, then minima as pairs of int16, then d and
 * dmin as float32; they are put in this order.
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
#define PUT(slot, v) sink_put(o, k, how, slot, v)
#define PUTF(slot, v) PUT(slot, _mm512_castps_si512(v))
#ifdef __clang__
#define KX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KX_UNROLL _Pragma("GCC unroll 16")
#endif

/* How a type's blocks are multiplied: constants once inlined. */
struct kind {
    int group;
    int n_sc;       /* scales of a block of 256: 8 or 16; 0 in groups of 32 */
    bool mins;
    bool wide;      /* q may exceed 127 */
};

KX_INLINE int n_mins(struct kind k) { return k.mins ? k.n_sc / 2 : 0; }
KX_INLINE int slot_d(struct kind k) { return k.group / 4 + k.n_sc + n_mins(k); }
KX_INLINE int n_slots(struct kind k) { return slot_d(k) + 1 + k.mins; }

/* Where slots go: quant_512.c stores them, or multiplies them by an activation row, or by four runs
 * of it. Slot numbers are constants once inlined, so every loop around a PUT is unrolled; k and how
 * stand beside the struct, because clang leaves a constant in a struct in memory, and the struct
 * with it. */
struct sink;
enum how { STORE, MULTIPLY, MULTIPLY_RUNS };
#define SINK struct sink *o, const struct kind k, const enum how how
KX_INLINE void sink_put(SINK, const int slot, vi v);
/* Before the slots of block number `group` of 256 elements. */
KX_INLINE void sink_begin(SINK, const int group);

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
    /* lane l of u[q][c]: dword 4l + c of rows 4q .. 4q + 3 */
    KX_UNROLL for (int q = 0; q < 4; q++) {
        vi a[4];
        KX_UNROLL for (int c = 0; c < 4; c++) {
            a[c] = _mm512_loadu_si512(row[4 * q + c] + off);
            __asm__("" : "+v"(a[c]));   /* else both users load, most often across a line's end */
        }
        vi l0 = _mm512_unpacklo_epi32(a[0], a[1]), l1 = _mm512_unpacklo_epi32(a[2], a[3]);
        vi h0 = _mm512_unpackhi_epi32(a[0], a[1]), h1 = _mm512_unpackhi_epi32(a[2], a[3]);
        u[q][0] = _mm512_unpacklo_epi64(l0, l1);
        u[q][1] = _mm512_unpackhi_epi64(l0, l1);
        u[q][2] = _mm512_unpacklo_epi64(h0, h1);
        u[q][3] = _mm512_unpackhi_epi64(h0, h1);
    }
    KX_UNROLL for (int c = 0; c < 4; c++) {
        vi a = _mm512_shuffle_i32x4(u[0][c], u[1][c], 0x88),
           b = _mm512_shuffle_i32x4(u[2][c], u[3][c], 0x88);
        vi d = _mm512_shuffle_i32x4(u[0][c], u[1][c], 0xdd),
           e = _mm512_shuffle_i32x4(u[2][c], u[3][c], 0xdd);
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
    KX_UNROLL for (int i = 0; i < 4; i++) q[i] =
        _mm_set_epi32((int)sl_load_u32(row[4 * i + 3] + off),
                      (int)sl_load_u32(row[4 * i + 2] + off),
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
#define FIFTH(w, q, i) fifth(h, i, q)
#define LEVEL(w, q, i) _mm512_shuffle_epi8(level, q)

/* q with bits 4i .. 4i + 3 of h as bit 4 of the four bytes of a dword. */
KX_INLINE vi fifth(vi h, int i, vi q)
{
    vi from = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
    vi bytes = _mm512_shuffle_epi8(h, _mm512_add_epi8(from, _mm512_set1_epi8((char)(i / 2))));
    __mmask64 set =
        _mm512_test_epi8_mask(bytes, _mm512_set1_epi32(i % 2 ? (int)0x80402010 : 0x08040201));
    return _mm512_mask_add_epi8(q, set, q, _mm512_set1_epi8(16));
}

/* The bits of `low` that the byte mask m has, then those of `high`, of which only the ones in `all`
 * stay. */
KX_INLINE vi pick(vi low, vi high, int m, int all)
{
    return and8(_mm512_ternarylogic_epi32(_mm512_set1_epi8((char)m), low, high, 0xca), all);
}

/* v shifted to the left, or by a negative n to the right. */
KX_INLINE vi shift(vi v, int n)
{
    return n < 0 ? shr(v, (unsigned)-n) : n ? shl(v, (unsigned)n) : v;
}

KX_INLINE vi levels_at(int zero, const int8_t *level)
{
    int8_t v[16];
    KX_UNROLL for (int i = 0; i < 16; i++) v[i] = (int8_t)(zero + level[i]);
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)v));
}

KX_INLINE vi iq4_levels(void)
{
    static const int8_t l[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113 };
    return levels_at(-128, l);      /* + 128 modulo 256 */
}

/* ---- types of 32 elements ---- */

/* Where a block of 32 has its parts, in bytes: d is in front, a float16 or MXFP4's byte. */
struct layout {
    int bytes;
    int h, q, n_q;  /* fifth bits (0: none), elements, and how many dwords of these */
    bool m;         /* a second float16 behind d */
};

/* The parts of a block of each of 16 rows. d has its own in the low bits. */
struct parts {
    vi d, h, q[8];
};

KX_INLINE void take_block(const struct layout l, const uint8_t *const *row, size_t off,
                          struct parts *ret)
{
    ret->d = l.m ? dwords1(row, off) : words1(row, off);
    if (l.h) ret->h = dwords1(row, off + (size_t)l.h);
    KX_UNROLL for (int i = 0; i < l.n_q; i += 4)
        dwords4(row, off + (size_t)(l.q + 4 * i), ret->q + i);
}

/* Rotated to the right by 8, 16 or 24 bits. */
KX_INLINE vi rotate(vi v, int bits)
{
    return bits == 8    ? _mm512_ror_epi32(v, 8)
           : bits == 16 ? _mm512_ror_epi32(v, 16)
                        : _mm512_ror_epi32(v, 24);
}

/* The dword at byte `at` of dwords w. */
KX_INLINE vi dword_at(const vi *w, int at)
{
    const int bits = at % 4 * 8, i = at / 4;
    if (!bits) return w[i];
    vi low = rotate(w[i], bits), high = rotate(w[i + 1], bits);
    if (bits == 16) return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
    return _mm512_mask_blend_epi8(bits == 8 ? 0x8888888888888888 : 0xeeeeeeeeeeeeeeee, low, high);
}

/* Dwords 16c .. 16c + 15 of n, as far as they go, of the bytes at off of each row. */
KX_INLINE void dwords_chunk(const uint8_t *const *row, size_t off, const int n, const int c, vi *w)
{
    const int at = 16 * c;
    if (n - at >= 16) {
        dwords16(row, off + 4 * (size_t)at, w + at);
        return;
    }
    KX_UNROLL for (int e = at; e < n; e += 4) {
        const int from = n - e < 4 ? n - 4 : e;     /* the end again */
        vi t[4];
        dwords4(row, off + 4 * (size_t)from, t);
        KX_UNROLL for (int i = e - from; i < 4; i++) w[from + i] = t[i];
    }
}

/* Eight blocks of each row at once, which is a whole number of dwords: loads and shuffles are half
 * of those of eight single blocks. */
KX_INLINE void take_eight(const struct layout l, const uint8_t *const *row, size_t off, SINK,
                          void (*put)(const struct parts *b, SINK))
{
    vi w[8 * 36 / 4];
    KX_UNROLL for (int i = 0; i < 8; i++) {
        const int at = i * l.bytes, end = at + l.bytes;
        KX_UNROLL for (int c = 0; c < 5; c++)   /* what the last block had not begun */
            if (64 * c < end && (i == 0 || 64 * c >= at))
                dwords_chunk(row, off, 2 * l.bytes, c, w);
        struct parts b;
        b.d = shr(w[at / 4], (unsigned)(at % 4 * 8));
        if (l.h) b.h = dword_at(w, at + l.h);
        KX_UNROLL for (int j = 0; j < l.n_q; j++) b.q[j] = dword_at(w, at + l.q + 4 * j);
        sink_begin(o, k, how, i);
        put(&b, o, k, how);
    }
}

KX_INLINE void put_q4_0(const struct parts *b, SINK)
{
    NIBBLES(0, b->q, PLAIN)
    PUTF(8, floats(b->d));
}

KX_INLINE vi negate_f32(__m512 v)
{
    return _mm512_xor_si512(_mm512_castps_si512(v), _mm512_set1_epi32((int)0x80000000));
}

KX_INLINE void put_q4_1(const struct parts *b, SINK)
{
    NIBBLES(0, b->q, PLAIN)
    PUTF(8, floats(b->d));
    PUT(9, negate_f32(floats(shr(b->d, 16))));
}

KX_INLINE void put_q5_0(const struct parts *b, SINK)
{
    vi h = b->h;
    NIBBLES(0, b->q, FIFTH)
    PUTF(8, floats(b->d));
}

KX_INLINE void put_q5_1(const struct parts *b, SINK)
{
    vi h = b->h;
    NIBBLES(0, b->q, FIFTH)
    PUTF(8, floats(b->d));
    PUT(9, negate_f32(floats(shr(b->d, 16))));
}

KX_INLINE void put_q8_0(const struct parts *b, SINK)
{
    KX_UNROLL for (int i = 0; i < 8; i++)
        PUT(i, _mm512_xor_si512(b->q[i], _mm512_set1_epi8((char)0x80)));
    PUTF(8, floats(b->d));
}

KX_INLINE void put_iq4_nl(const struct parts *b, SINK)
{
    vi level = iq4_levels();
    NIBBLES(0, b->q, LEVEL)
    PUTF(8, floats(b->d));
}

KX_INLINE void put_mxfp4(const struct parts *b, SINK)
{
    static const int8_t l[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
    vi level = levels_at(64, l), one = _mm512_set1_epi32(1), e = and32(b->d, 255);
    NIBBLES(0, b->q, LEVEL)
    __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    vi d = shl(_mm512_sub_epi32(e, one), 23);
    PUT(8, _mm512_mask_sllv_epi32(d, small, _mm512_set1_epi32(0x00200000), e));
}

#define LAYOUT(name, ...) \
    KX_INLINE void unpack_##name(const uint8_t *const *row, size_t off, SINK) \
    { \
        struct parts b; \
        take_block((struct layout){ __VA_ARGS__ }, row, off, &b); \
        put_##name(&b, o, k, how); \
    } \
    KX_INLINE void eight_##name(const uint8_t *const *row, size_t off, SINK) \
    { \
        take_eight((struct layout){ __VA_ARGS__ }, row, off, o, k, how, put_##name); \
    }
LAYOUT(q4_0, 18, 0, 2, 4, false)
LAYOUT(q4_1, 20, 0, 4, 4, true)
LAYOUT(q5_0, 22, 2, 6, 4, false)
LAYOUT(q5_1, 24, 4, 8, 4, true)
LAYOUT(q8_0, 34, 0, 2, 8, false)
LAYOUT(iq4_nl, 18, 0, 2, 4, false)
LAYOUT(mxfp4, 17, 0, 1, 4, false)

/* ---- types of 256 elements ---- */

/* Byte i % 4 of dword i / 4. */
KX_INLINE vi byte_of(const vi *w, int i)
{
    return and32(shr(w[i / 4], 8 * (unsigned)(i % 4)), 255);
}

/* 6-bit scales and minima of Q4_K and Q5_K (dequant.c), d and dmin: slots from `first`. */
KX_INLINE void head_k4(const uint8_t *const *row, size_t off, SINK, int first)
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

KX_INLINE void unpack_q4_k(const uint8_t *const *row, size_t off, SINK)
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
    head_k4(row, off, o, k, how, 64);
}

KX_INLINE void unpack_q5_k(const uint8_t *const *row, size_t off, SINK)
{
    vi h[8];
    dwords4(row, off + 16, h);
    dwords4(row, off + 32, h + 4);
    KX_UNROLL for (int half = 0; half < 2; half++) {
        vi w[16];
        dwords16(row, off + 48 + 64 * (size_t)half, w);
        KX_UNROLL for (int i = 0; i < 16; i++) {
            int slot = 32 * half + 16 * (i / 8) + i % 8;
            int bit = 4 * half + 2 * (i / 8);
            PUT(slot, pick(w[i], shift(h[i % 8], 4 - bit), 15, 31));
            PUT(slot + 8, pick(shr(w[i], 4), shift(h[i % 8], 3 - bit), 15, 31));
        }
    }
    head_k4(row, off, o, k, how, 64);
}

KX_INLINE void unpack_q6_k(const uint8_t *const *row, size_t off, SINK)
{
    vi h[16], s[4];
    dwords16(row, off + 128, h);
    KX_UNROLL for (int half = 0; half < 2; half++) {
        vi l[16];
        dwords16(row, off + 64 * (size_t)half, l);
        KX_UNROLL for (int run = 0; run < 4; run++)
            KX_UNROLL for (int i = 0; i < 8; i++) {
                vi low = shift(l[8 * (run % 2) + i], -4 * (run / 2));
                PUT(32 * half + 8 * run + i,
                    pick(low, shift(h[8 * half + i], 4 - 2 * run), 15, 63));
            }
    }
    dwords4(row, off + 192, s);
    KX_UNROLL for (int j = 0; j < 16; j++)
        PUT(64 + j, _mm512_srai_epi32(shl(s[j / 4], 24 - 8 * (unsigned)(j % 4)), 24));
    PUTF(80, floats(words1(row, off + 208)));
}

KX_INLINE void unpack_q2_k(const uint8_t *const *row, size_t off, SINK)
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

KX_INLINE void unpack_q3_k(const uint8_t *const *row, size_t off, SINK)
{
    vi w[16], h[8], t[4], s[3];
    dwords4(row, off, h);
    dwords4(row, off + 16, h + 4);
    dwords16(row, off + 32, w);
    KX_UNROLL for (int run = 0; run < 8; run++)
        KX_UNROLL for (int i = 0; i < 8; i++) {
            vi low = shift(w[8 * (run / 4) + i], -2 * (run % 4));
            PUT(8 * run + i, pick(low, shift(h[i], 2 - run), 3, 7));
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

KX_INLINE void unpack_iq4_xs(const uint8_t *const *row, size_t off, SINK)
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

/* ---- types with codebooks of rows (dequant_iq.c): each row's elements to bytes, then transposed
 * ---- */

struct book {
    _Alignas(64) uint8_t q[16][256];
    int16_t sc[16][16];
    float d[16];
};

/* 64 levels + 64, those negated whose bit in `signs` is set. */
KX_INLINE void put_levels(vi v, uint64_t signs, uint8_t *q)
{
    v = _mm512_mask_sub_epi8(v, signs, _mm512_setzero_si512(), v);
    _mm512_store_si512(q, _mm512_add_epi8(v, _mm512_set1_epi8(64)));
}

KX_INLINE __m128i codes8(const uint16_t *grid, const uint32_t *at)
{
    __m128i c = _mm_cvtsi32_si128(grid[at[0]]);
    c = _mm_insert_epi16(c, grid[at[1]], 1);
    c = _mm_insert_epi16(c, grid[at[2]], 2);
    c = _mm_insert_epi16(c, grid[at[3]], 3);
    c = _mm_insert_epi16(c, grid[at[4]], 4);
    c = _mm_insert_epi16(c, grid[at[5]], 5);
    c = _mm_insert_epi16(c, grid[at[6]], 6);
    return _mm_insert_epi16(c, grid[at[7]], 7);
}

/* 8 rows of 8 levels of 2 bits. Each byte is brought to a copy of the byte that holds its bits, and
 * these to the nibble's lower or upper half: the table has both. */
KX_INLINE vi levels_iq2(const uint16_t *grid, const uint32_t *at)
{
    const __m128i copy = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 8, 8, 8, 8, 9, 9, 9, 9);
    const __m128i level = _mm_setr_epi8(8, 25, 43, 0, 25, 0, 0, 0, 43, 0, 0, 0, 0, 0, 0, 0);
    __m128i c = codes8(grid, at);
    vi v = _mm512_shuffle_epi8(_mm512_cvtepu16_epi64(c), _mm512_broadcast_i32x4(copy));
    v = _mm512_mask_blend_epi8(0xcccccccccccccccc, v, _mm512_srli_epi16(v, 4));
    v = and32(v, 0x0c030c03);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(level), v);
}

/* 16 rows of 4 levels of 4 bits. */
KX_INLINE vi levels_iq3(const uint16_t *grid, const uint32_t *at, __m128i level)
{
    const __m128i copy = _mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13);
    __m256i c =
        _mm256_inserti128_si256(_mm256_castsi128_si256(codes8(grid, at)), codes8(grid, at + 8), 1);
    vi v = _mm512_cvtepu16_epi32(c);
    v = _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(copy));
    v = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, v, _mm512_srli_epi16(v, 4));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(level), and8(v, 7));
}

/* Bytes of 7 sign bits, completed to an even number. */
KX_INLINE uint64_t even_signs(uint64_t s)
{
    uint64_t p = s ^ (s >> 4 & 0x0f0f0f0f0f0f0f0f);
    p ^= p >> 2;
    p ^= p >> 1;
    return s | (p & 0x0101010101010101) << 7;
}

/* Four times 7 bits to bytes. */
KX_INLINE uint64_t sevens(uint32_t w)
{
    return (w & 127) | (w >> 7 & 127) << 8 | (w >> 14 & 127) << 16 | (w >> 21 & 127) << 24;
}

KX_INLINE void book_iq2_xxs(const uint8_t *b, uint8_t *q, int16_t *sc)
{
    for (int i = 0; i < 4; i++) {
        const uint8_t *p = b + 2 + 16 * i;
        uint32_t w0 = sl_load_u32(p + 4), w1 = sl_load_u32(p + 12);
        uint32_t at[8] = { p[0], p[1], p[2], p[3], p[8], p[9], p[10], p[11] };
        put_levels(levels_iq2(sl_grid_iq2_xxs, at), even_signs(sevens(w0) | sevens(w1) << 32),
                   q + 64 * i);
        sc[2 * i] = (int16_t)(1 + 2 * (w0 >> 28));
        sc[2 * i + 1] = (int16_t)(1 + 2 * (w1 >> 28));
    }
}

/* 16 scales 1 + 2 s, s in nibbles. */
KX_INLINE void scales_iq2(const uint8_t *b, int16_t *sc)
{
    __m128i v = _mm_loadl_epi64((const void *)b), m = _mm_set1_epi8(15);
    v = _mm_unpacklo_epi8(_mm_and_si128(v, m), _mm_and_si128(_mm_srli_epi16(v, 4), m));
    v = _mm_add_epi8(_mm_add_epi8(v, v), _mm_set1_epi8(1));
    _mm256_storeu_si256((void *)sc, _mm256_cvtepu8_epi16(v));
}

KX_INLINE void book_iq2_xs(const uint8_t *b, uint8_t *q, int16_t *sc)
{
    for (int i = 0; i < 4; i++) {
        __m128i v = _mm_loadu_si128((const void *)(b + 2 + 16 * i)), s = _mm_srli_epi16(v, 9);
        uint32_t at[8];
        _mm256_storeu_si256((void *)at,
                            _mm256_cvtepu16_epi32(_mm_and_si128(v, _mm_set1_epi16(511))));
        uint64_t signs = (uint64_t)_mm_cvtsi128_si64(_mm_packus_epi16(s, s));
        put_levels(levels_iq2(sl_grid_iq2_xs, at), even_signs(signs), q + 64 * i);
    }
    scales_iq2(b + 66, sc);
}

KX_INLINE void book_iq2_s(const uint8_t *b, uint8_t *q, int16_t *sc)
{
    for (int i = 0; i < 4; i++) {
        uint32_t at[8];
        uint64_t signs;
        for (int j = 0; j < 8; j++)
            at[j] = b[2 + 8 * i + j] | (b[66 + 2 * i + j / 4] >> 2 * (j % 4) & 3u) << 8;
        memcpy(&signs, b + 34 + 8 * i, 8);
        put_levels(levels_iq2(sl_grid_iq2_s, at), signs, q + 64 * i);
    }
    scales_iq2(b + 74, sc);
}

KX_INLINE void book_iq3_xxs(const uint8_t *b, uint8_t *q, int16_t *sc)
{
    const __m128i level = _mm_setr_epi8(4, 12, 20, 28, 36, 44, 52, 62, 0, 0, 0, 0, 0, 0, 0, 0);
    for (int i = 0; i < 4; i++) {
        uint32_t w0 = sl_load_u32(b + 66 + 8 * i), w1 = sl_load_u32(b + 70 + 8 * i), at[16];
        for (int j = 0; j < 16; j++) at[j] = b[2 + 16 * i + j];
        put_levels(levels_iq3(sl_grid_iq3_xxs, at, level),
                   even_signs(sevens(w0) | sevens(w1) << 32), q + 64 * i);
        sc[2 * i] = (int16_t)(1 + 2 * (w0 >> 28));
        sc[2 * i + 1] = (int16_t)(1 + 2 * (w1 >> 28));
    }
}

KX_INLINE void book_iq3_s(const uint8_t *b, uint8_t *q, int16_t *sc)
{
    const __m128i level = _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0);
    for (int i = 0; i < 4; i++) {
        uint32_t at[16];
        uint64_t signs;
        for (int j = 0; j < 16; j++)
            at[j] = b[2 + 16 * i + j] | (b[66 + 2 * i + j / 8] >> j % 8 & 1u) << 8;
        memcpy(&signs, b + 74 + 8 * i, 8);
        put_levels(levels_iq3(sl_grid_iq3_s, at, level), signs, q + 64 * i);
        sc[2 * i] = (int16_t)(1 + 2 * (b[106 + i] & 15));
        sc[2 * i + 1] = (int16_t)(1 + 2 * (b[106 + i] >> 4));
    }
}

/* The elements, scales and d of 16 rows, apart. Scale j is number j of n_sc. */
KX_INLINE void put_book(const struct book *b, SINK, const int n_sc)
{
    const uint8_t *q[16], *s[16];
    vi w[16];
    for (int r = 0; r < 16; r++) {
        q[r] = b->q[r];
        s[r] = (const uint8_t *)b->sc[r];
    }
    KX_UNROLL for (int c = 0; c < 4; c++) {
        dwords16(q, 64 * (size_t)c, w);
        KX_UNROLL for (int i = 0; i < 16; i++) PUT(16 * c + i, w[i]);
    }
    dwords4(s, 0, w);
    if (n_sc == 16) dwords4(s, 16, w + 4);
    KX_UNROLL for (int j = 0; j < n_sc; j++)
        PUT(64 + j, _mm512_srai_epi32(j % 2 ? w[j / 2] : shl(w[j / 2], 16), 16));
    PUTF(64 + n_sc, _mm512_loadu_ps(b->d));
}

#define BOOK(name, n_sc, d_scale) \
    KX_INLINE void unpack_##name(const uint8_t *const *row, size_t off, SINK) \
    { \
        struct book b; \
        for (int r = 0; r < 16; r++) { \
            book_##name(row[r] + off, b.q[r], b.sc[r]); \
            b.d[r] = sl_load_f16(row[r] + off) * d_scale; \
        } \
        put_book(&b, o, k, how, n_sc); \
    }
BOOK(iq2_xxs, 8, 0.125f)
BOOK(iq2_xs, 16, 0.125f)
BOOK(iq2_s, 16, 0.125f)
BOOK(iq3_xxs, 8, 0.25f)
BOOK(iq3_s, 8, 1)

#endif
