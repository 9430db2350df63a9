/* kernels/cpu/attn_load.h - vectors of the set being compiled, and stored keys and values brought
 * into them: rows of values as they lie, keys transposed. Private to kernels/cpu/attn.c. */
#ifndef KX_ATTN_LOAD_H
#define KX_ATTN_LOAD_H

#include "kernels/cpu/attn_fetch.h"
#include "kernels/cpu/expf.h"
#include "kernels/cpu/half.h"
#include "kernels/sl_attn.h"

#include <math.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* A build with sanitizers defines it empty: checks in unrolled loops take minutes to compile. */
#if defined(KX_UNROLL)
#elif defined(__clang__)
#define KX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KX_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__AVX512F__)
#define KX_W 16
#define KX_NQ 8             /* queries of a register tile */
#define KX_NV 2             /* vectors of it: keys, or dimensions of values */
#define KX_DQ 8             /* the same for values as they are stored */
#define KX_DV 2
typedef __m512 vf;
typedef __m512i vi;
#define KX_I(op) _mm512_##op
#define vf_load(p) _mm512_loadu_ps(p)
#define vf_store(p, v) _mm512_storeu_ps(p, v)
#define vf_all(x) _mm512_set1_ps(x)
#define vf_mul(a, b) _mm512_mul_ps(a, b)
#define vf_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vf_max(a, b) _mm512_max_ps(a, b)
#define vf_min(a, b) _mm512_min_ps(a, b)
#elif defined(__AVX2__)
#define KX_W 8
#define KX_NQ 3
#define KX_NV 4
#define KX_DQ 4
#define KX_DV 3
typedef __m256 vf;
typedef __m256i vi;
#define KX_I(op) _mm256_##op
#define vf_load(p) _mm256_loadu_ps(p)
#define vf_store(p, v) _mm256_storeu_ps(p, v)
#define vf_all(x) _mm256_set1_ps(x)
#define vf_mul(a, b) _mm256_mul_ps(a, b)
#define vf_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vf_max(a, b) _mm256_max_ps(a, b)
#define vf_min(a, b) _mm256_min_ps(a, b)
#else
#define KX_W 4
#define KX_NQ 2
#define KX_NV 2
#define KX_DQ 2
#define KX_DV 2
typedef float vf __attribute__((vector_size(16)));
typedef float vf_any __attribute__((vector_size(16), aligned(4), may_alias));
#define vf_load(p) ((vf)*(const vf_any *)(p))
#define vf_store(p, v) (*(vf_any *)(p) = (v))
#define vf_all(x) ((vf){ (x), (x), (x), (x) })
#define vf_mul(a, b) ((a) * (b))
/* a > b ? a : b */
KX_INLINE vf vf_max(vf a, vf b)
{
    for (int i = 0; i < 4; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

KX_INLINE vf vf_fma(vf a, vf b, vf c)
{
    vf r;
    for (int i = 0; i < 4; i++) r[i] = fmaf(a[i], b[i], c[i]);
    return r;
}
#endif

enum {
    KX_P = KX_NV * KX_W,    /* keys, or dimensions of values, of a panel */
    KX_ND = 64,             /* dimensions of a panel of keys */
    Q8_BYTES = 34           /* a Q8_0 block of 32 elements */
};

/* Dimensions of a vector of keys that are packed between two looks at what to fetch. */
static inline uint32_t pack_dims(sl_type type)
{
    return type == SL_Q8_0 ? 32 : type == SL_F32 ? 8 : 16;
}

/* *c += a * b, and a * (the vector at p), which the instruction itself reads. All registers are
 * taken in a tile, and compilers would move them about. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define vf_add_product(c, a, b) __asm__("vfmadd231ps %2, %1, %0" : "+x"(*(c)) : "x"(a), "x"(b))
#define vf_add_product_at(c, a, p) \
    __asm__("vfmadd231ps %2, %1, %0" \
            : "+x"(*(c)) \
            : "x"(a), "m"(*(const __m256_u *)(const void *)(p)))
#else
#define vf_add_product(c, a, b) (*(c) = vf_fma(a, b, *(c)))
#define vf_add_product_at(c, a, p) (*(c) = vf_fma(a, vf_load(p), *(c)))
#endif

KX_INLINE float half_at(const void *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
#if defined(__AVX2__)
    return _cvtsh_ss(h);
#else
    return sl_f16_to_f32(h);
#endif
}

/* Element d of a stored vector. */
KX_INLINE float element(sl_type type, const void *row, uint32_t d)
{
    const char *p = row;
    uint16_t h;
    float f;
    switch (type) {
    case SL_F16:
        return half_at(p + 2 * (size_t)d);
    case SL_BF16:
        memcpy(&h, p + 2 * (size_t)d, sizeof h);
        return sl_bf16_to_f32(h);
    case SL_Q8_0:
        p += d / 32 * Q8_BYTES;
        return half_at(p) * (float)(int8_t)p[2 + d % 32];
    default:
        memcpy(&f, p + 4 * (size_t)d, sizeof f);
        return f;
    }
}

#if !defined(__AVX2__)

KX_INLINE void vf_exps(vf *x, const int n)
{
    for (int v = 0; v < n; v++)
        for (int i = 0; i < KX_W; i++) x[v][i] = kx_exp(x[v][i]);
}

/* The tree over 16 partial sums, and over 16 partial maxima. */
KX_INLINE float tree_add(const vf *t)
{
    vf a = (t[0] + t[2]) + (t[1] + t[3]);
    a[0] += a[2];
    a[1] += a[3];
    return a[0] + a[1];
}

KX_INLINE float tree_max(const vf *t)
{
    vf a = vf_max(vf_max(t[0], t[2]), vf_max(t[1], t[3]));
    float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
    return x > y ? x : y;
}

KX_INLINE vf load_row(const sl_type type, const void *row, uint32_t d)
{
    vf r;
    for (uint32_t i = 0; i < KX_W; i++) r[i] = element(type, row, d + i);
    return r;
}

/* to[d][j] = element from + d of key j, for a panel of KX_P keys. */
static void pack_keys(sl_type type, const void *const *k, uint32_t from, uint32_t n, float *to,
                      struct fetch *f)
{
    (void)f;
    for (uint32_t d = 0; d < n; d++)
        for (uint32_t j = 0; j < KX_P; j++) to[d * KX_P + j] = element(type, k[j], from + d);
}

#else

#if defined(__AVX512F__)
#define load_half(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define load_bytes(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define f16_lanes(h) _mm512_cvtph_ps(h)
#define as_floats(i) _mm512_castsi512_ps(i)
#define as_ints(f) _mm512_castps_si512(f)
#define low_half(v) _mm512_castsi512_si256(v)
#define high_half(v) _mm512_extracti64x4_epi64(v, 1)
typedef __m256i vi_half;
/* 32 bytes of key j below those of key j + 8. */
KX_INLINE vi key_bytes(const void *const *k, uint32_t j, size_t at)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_half((const char *)k[j] + at)),
                              load_half((const char *)k[j + 8] + at), 1);
}
#else
#define load_half(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define load_bytes(p) _mm_loadl_epi64((const __m128i *)(const void *)(p))
#define f16_lanes(h) _mm256_cvtph_ps(h)
#define as_floats(i) _mm256_castsi256_ps(i)
#define as_ints(f) _mm256_castps_si256(f)
#define low_half(v) _mm256_castsi256_si128(v)
#define high_half(v) _mm256_extracti128_si256(v, 1)
typedef __m128i vi_half;
KX_INLINE vi key_bytes(const void *const *k, uint32_t j, size_t at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)((const char *)k[j] + at));
}
#endif

/* kx_exp of every lane of n vectors, operation by operation: a chain of some 70 cycles each. */
KX_INLINE void vf_exps(vf *x, const int n)
{
    const vf round = vf_all(12582912.0f);
    const vi bias = KX_I(set1_epi32)(127);
    vf t[4], r[4], p[4];
#define EACH KX_UNROLL for (int v = 0; v < n; v++)
    EACH x[v] = vf_min(vf_all(89.0f), vf_max(vf_all(-104.0f), x[v]));
    EACH t[v] = x[v] * vf_all(0x1.715476p+0f);
    EACH t[v] = t[v] + round;
    EACH r[v] = (t[v] - round) * vf_all(0x1.62e4p-1f);
    EACH x[v] = x[v] - r[v];
    EACH r[v] = (t[v] - round) * vf_all(0x1.7f7d1cp-20f);
    EACH r[v] = x[v] - r[v];
    EACH p[v] = vf_all(0x1.6a2256p-10f) * r[v] + vf_all(0x1.123b02p-7f);
    EACH p[v] = p[v] * r[v] + vf_all(0x1.5558f8p-5f);
    EACH p[v] = p[v] * r[v] + vf_all(0x1.555490p-3f);
    EACH p[v] = p[v] * r[v] + vf_all(0x1.fffffcp-2f);
    EACH p[v] = p[v] * (r[v] * r[v]);
    EACH p[v] = p[v] + r[v] + vf_all(1.0f);
    EACH
    {
        vi k = KX_I(sub_epi32)(as_ints(t[v]), as_ints(round)), half = KX_I(srai_epi32)(k, 1);
        vf a = as_floats(KX_I(slli_epi32)(KX_I(add_epi32)(half, bias), 23));
        vf b = as_floats(KX_I(slli_epi32)(KX_I(add_epi32)(KX_I(sub_epi32)(k, half), bias), 23));
        x[v] = p[v] * a * b;
    }
#undef EACH
}

#if defined(__AVX512F__)
#define upper_8(t) _mm512_extractf32x8_ps((t)[0], 1)
#define lower_8(t) _mm512_castps512_ps256((t)[0])
#else
#define upper_8(t) (t)[1]
#define lower_8(t) (t)[0]
#endif

/* The tree over 16 partial sums, and over 16 partial maxima. */
KX_INLINE float tree_add(const vf *t)
{
    __m256 a = _mm256_add_ps(lower_8(t), upper_8(t));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

KX_INLINE float tree_max(const vf *t)
{
    __m256 a = _mm256_max_ps(lower_8(t), upper_8(t));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

KX_INLINE vf bf16_lanes(vi_half h)
{
    return as_floats(KX_I(slli_epi32)(KX_I(cvtepu16_epi32)(h), 16));
}

/* Elements [d, d + KX_W) of a stored vector. */
KX_INLINE vf load_row(const sl_type type, const void *row, uint32_t d)
{
    const char *p = row;
    switch (type) {
    case SL_F16:
        return f16_lanes(load_half(p + 2 * (size_t)d));
    case SL_BF16:
        return bf16_lanes(load_half(p + 2 * (size_t)d));
    case SL_Q8_0:
        p += d / 32 * Q8_BYTES;
        return vf_mul(vf_all(half_at(p)),
                      KX_I(cvtepi32_ps)(KX_I(cvtepi8_epi32)(load_bytes(p + 2 + d % 32))));
    default:
        return vf_load((const float *)(const void *)p + d);
    }
}

/* 16 dimensions of KX_W keys of 2-byte elements: three rounds of interleaving leave the eight keys
 * of one dimension in every 128 bits. */
KX_INLINE void pack_words(const bool bf16, const void *const *k, uint32_t d, float *to)
{
    vi r[8], t[8], u[8];
    KX_UNROLL for (uint32_t i = 0; i < 8; i++) r[i] = key_bytes(k, i, 2 * (size_t)d);
    KX_UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = KX_I(unpacklo_epi16)(r[i], r[i + 1]);
        t[i + 1] = KX_I(unpackhi_epi16)(r[i], r[i + 1]);
    }
    KX_UNROLL for (int h = 0; h < 2; h++) {
        KX_UNROLL for (int i = 0; i < 8; i += 4) {
            u[i] = KX_I(unpacklo_epi32)(t[i + h], t[i + h + 2]);
            u[i + 1] = KX_I(unpackhi_epi32)(t[i + h], t[i + h + 2]);
        }
        KX_UNROLL for (uint32_t c = 0; c < 4; c++) {
            vi w = c % 2 ? KX_I(unpackhi_epi64)(u[c / 2], u[c / 2 + 4])
                         : KX_I(unpacklo_epi64)(u[c / 2], u[c / 2 + 4]);
            float *at = to + (4 * h + c) * KX_P;
#if defined(__AVX512F__)
            /* both halves of the keys of a dimension side by side */
            w = _mm512_shuffle_i64x2(w, w, 0xd8);
#endif
            vi_half lo = low_half(w), hi = high_half(w);
            vf_store(at, bf16 ? bf16_lanes(lo) : f16_lanes(lo));
            vf_store(at + 8 * KX_P, bf16 ? bf16_lanes(hi) : f16_lanes(hi));
        }
    }
}

#if !defined(__AVX512F__)
/* 8 dimensions of 8 keys of bfloat16: two dimensions of a key move as one dword. */
KX_INLINE void pack_pairs(const void *const *k, uint32_t d, float *to)
{
    vi r[4], t[4];
    const vi odd = _mm256_set1_epi32((int)0xffff0000);
    KX_UNROLL for (uint32_t i = 0; i < 4; i++)
        r[i] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(load_half((const char *)k[i] + 2 * (size_t)d)),
            load_half((const char *)k[i + 4] + 2 * (size_t)d), 1);
    KX_UNROLL for (int i = 0; i < 4; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    KX_UNROLL for (int c = 0; c < 4; c++) {
        vi w = c % 2 ? _mm256_unpackhi_epi64(t[c / 2], t[c / 2 + 2])
                     : _mm256_unpacklo_epi64(t[c / 2], t[c / 2 + 2]);
        vf_store(to + 2 * c * KX_P, as_floats(_mm256_slli_epi32(w, 16)));
        vf_store(to + (2 * c + 1) * KX_P, as_floats(_mm256_and_si256(w, odd)));
    }
}
#endif

/* Bytes 4c .. 4c+3 of each key: one dimension a vector. */
KX_INLINE void store_bytes(vi w, vf scale, float *to)
{
    vf_store(to, vf_mul(scale, KX_I(cvtepi32_ps)(KX_I(srai_epi32)(KX_I(slli_epi32)(w, 24), 24))));
    vf_store(to + KX_P,
             vf_mul(scale, KX_I(cvtepi32_ps)(KX_I(srai_epi32)(KX_I(slli_epi32)(w, 16), 24))));
    vf_store(to + 2 * KX_P,
             vf_mul(scale, KX_I(cvtepi32_ps)(KX_I(srai_epi32)(KX_I(slli_epi32)(w, 8), 24))));
    vf_store(to + 3 * KX_P, vf_mul(scale, KX_I(cvtepi32_ps)(KX_I(srai_epi32)(w, 24))));
}

/* A block of 32 dimensions of KX_W keys: four bytes of a key move as one dword. */
KX_INLINE void pack_q8(const void *const *k, uint32_t d, float *to)
{
    size_t at = (size_t)d / 32 * Q8_BYTES;
    uint16_t half[KX_W];
    vi r[8], w[8];
    KX_UNROLL for (uint32_t j = 0; j < KX_W; j++) memcpy(half + j, (const char *)k[j] + at, 2);
    vf scale = f16_lanes(load_half(half));
    KX_UNROLL for (uint32_t i = 0; i < 8; i++) r[i] = key_bytes(k, i, at + 2);
    KX_UNROLL for (int i = 0; i < 8; i += 4) {
        vi a = KX_I(unpacklo_epi32)(r[i], r[i + 1]), b = KX_I(unpacklo_epi32)(r[i + 2], r[i + 3]);
        vi c = KX_I(unpackhi_epi32)(r[i], r[i + 1]), e = KX_I(unpackhi_epi32)(r[i + 2], r[i + 3]);
        w[i] = KX_I(unpacklo_epi64)(a, b);
        w[i + 1] = KX_I(unpackhi_epi64)(a, b);
        w[i + 2] = KX_I(unpacklo_epi64)(c, e);
        w[i + 3] = KX_I(unpackhi_epi64)(c, e);
    }
    KX_UNROLL for (uint32_t c = 0; c < 4; c++) {
#if defined(__AVX512F__)
        vi lo =
            _mm512_permutex2var_epi64(w[c], _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0), w[c + 4]);
        vi hi =
            _mm512_permutex2var_epi64(w[c], _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2), w[c + 4]);
#else
        vi lo = _mm256_permute2x128_si256(w[c], w[c + 4], 0x20);
        vi hi = _mm256_permute2x128_si256(w[c], w[c + 4], 0x31);
#endif
        store_bytes(lo, scale, to + 4 * c * KX_P);
        store_bytes(hi, scale, to + (16 + 4 * c) * KX_P);
    }
}

/* 8 dimensions of 8 keys of floats. */
KX_INLINE void pack_floats(const void *const *k, uint32_t d, float *to)
{
    __m256 r[8], t[8], u[8];
    KX_UNROLL for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps((const float *)k[i] + d);
    KX_UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    KX_UNROLL for (int i = 0; i < 8; i += 4)
        KX_UNROLL for (int h = 0; h < 2; h++) {
            u[i + 2 * h] = _mm256_shuffle_ps(t[i + h], t[i + h + 2], 0x44);
            u[i + 2 * h + 1] = _mm256_shuffle_ps(t[i + h], t[i + h + 2], 0xee);
        }
    KX_UNROLL for (uint32_t c = 0; c < 4; c++) {
        _mm256_storeu_ps(to + c * KX_P, _mm256_permute2f128_ps(u[c], u[c + 4], 0x20));
        _mm256_storeu_ps(to + (c + 4) * KX_P, _mm256_permute2f128_ps(u[c], u[c + 4], 0x31));
    }
}

/* Dimensions from d on, 16 at a time; returns where less is left. Functions of their own, so that
 * the keys' addresses stay in registers. */
static __attribute__((noinline)) uint32_t pack_f16(const void *const *k, uint32_t d, uint32_t end,
                                                   float *to, struct fetch *f)
{
    const void *p[KX_W];
    for (int i = 0; i < KX_W; i++) p[i] = k[i];
    for (; d + 16 <= end; d += 16, to += 16 * KX_P) {
        fetch_some(f);
        pack_words(false, p, d, to);
    }
    return d;
}

static __attribute__((noinline)) uint32_t pack_bf16(const void *const *k, uint32_t d, uint32_t end,
                                                    float *to, struct fetch *f)
{
    const void *p[KX_W];
    for (int i = 0; i < KX_W; i++) p[i] = k[i];
    for (; d + 16 <= end; d += 16, to += 16 * KX_P) {
        fetch_some(f);
#if defined(__AVX512F__)
        pack_words(true, p, d, to);
#else
        pack_pairs(p, d, to);
        pack_pairs(p, d + 8, to + 8 * KX_P);
#endif
    }
    return d;
}

/* to[d][j] = element from + d of key j, for a panel of KX_P keys. */
static void pack_keys(sl_type type, const void *const *k, uint32_t from, uint32_t n, float *to,
                      struct fetch *f)
{
    const uint32_t end = from + n;
    uint32_t d = from;
    for (uint32_t j = 0; j < KX_P; j += KX_W) {
        float *at = to + j;
        d = from;
        if (type == SL_F16) d = pack_f16(k + j, d, end, at, f);
        else if (type == SL_BF16) d = pack_bf16(k + j, d, end, at, f);
        else if (type == SL_Q8_0)
            for (; d < end; d += 32, at += 32 * KX_P) {
                fetch_some(f);
                pack_q8(k + j, d, at);
            }
        else
            for (; d + 8 <= end; d += 8, at += 8 * KX_P) {
                fetch_some(f);
                for (uint32_t e = 0; e < KX_W; e += 8) pack_floats(k + j + e, d, at + e);
            }
    }
    for (; d < end; d++)
        for (uint32_t j = 0; j < KX_P; j++) to[(d - from) * KX_P + j] = element(type, k[j], d);
}

#endif

/* to[j][e] = element d + e of value j in [first, end), for KX_P of them. */
KX_INLINE void pack_rows(const sl_type type, const void *const *v, uint32_t first, uint32_t end,
                         uint32_t d, float *to)
{
    for (uint32_t j = first; j < end; j++)
        KX_UNROLL for (uint32_t e = 0; e < KX_P; e += KX_W)
            vf_store(to + j * KX_P + e, load_row(type, v[j], d + e));
}

static void pack_values(sl_type type, const void *const *v, uint32_t first, uint32_t end,
                        uint32_t d, float *to)
{
    if (type == SL_F16) pack_rows(SL_F16, v, first, end, d, to);
    else if (type == SL_BF16) pack_rows(SL_BF16, v, first, end, d, to);
    else if (type == SL_Q8_0) pack_rows(SL_Q8_0, v, first, end, d, to);
    else pack_rows(SL_F32, v, first, end, d, to);
}

#endif
