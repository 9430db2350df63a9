/* kernels/cpu/f32.c - the float32 kernels, written once and compiled once per set (KX_SET of
 * cpu.h).
 * Every operation here is one IEEE operation on one element, in an order that does not depend on
 * the width of a vector, so all sets give the same bits. KX_W is the number of floats of a vector.
 * KX_TW x KX_TX is the register tile of `dots`: as many sums as the ISA's registers hold. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/expf.h"
#include "kernels/cpu/half.h"

#include <math.h>

#if defined(__AVX512F__)
#define KX_W 16
#define KX_TW 4
#define KX_TX 4
#elif defined(__AVX2__)
#define KX_W 8
#define KX_TW 2
#define KX_TX 2
#else
#define KX_W 4
#define KX_TW 2
#define KX_TX 1
#endif
#define KX_NV (16 / KX_W)   /* vectors that hold the 16 partial sums */
#define KX_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define KX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KX_UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vf __attribute__((vector_size(KX_W * 4)));
typedef float vf_any __attribute__((vector_size(KX_W * 4), aligned(4), may_alias));

KX_INLINE vf load(const float *p)
{
    return *(const vf_any *)p;
}

KX_INLINE void store(float *p, vf v)
{
    *(vf_any *)p = v;
}

/* The tree over 16 partial sums. */
KX_INLINE float tree16(float *s)
{
    for (int i = 0; i < 8; i++) s[i] += s[i + 8];
    for (int i = 0; i < 4; i++) s[i] += s[i + 4];
    for (int i = 0; i < 2; i++) s[i] += s[i + 2];
    return s[0] + s[1];
}

/* nw rows times nx columns, all constants after inlining. The last n % 16 elements are padded with
 * zeros: a product of zeros leaves a partial sum as it is. */
KX_INLINE void tile(const float *const *w, const float *const *x, size_t n, float *ret,
                    const int nw, const int nx)
{
    vf acc[KX_TW * 2][KX_TX][KX_NV];
    KX_UNROLL for (int i = 0; i < nw; i++)
        KX_UNROLL for (int j = 0; j < nx; j++)
            KX_UNROLL for (int v = 0; v < KX_NV; v++) acc[i][j][v] = (vf){ 0 };
    size_t k = 0;
    for (; k + 16 <= n; k += 16)
        KX_UNROLL for (int v = 0; v < KX_NV; v++)
            KX_UNROLL for (int j = 0; j < nx; j++) {
                vf b = load(x[j] + k + v * KX_W);
                KX_UNROLL for (int i = 0; i < nw; i++)
                    acc[i][j][v] += load(w[i] + k + v * KX_W) * b;
            }
    float pw[KX_TW * 2][16], px[KX_TX][16];
    if (k < n) {
        memset(pw, 0, sizeof pw);
        memset(px, 0, sizeof px);
        for (int i = 0; i < nw; i++) memcpy(pw[i], w[i] + k, (n - k) * sizeof(float));
        for (int j = 0; j < nx; j++) memcpy(px[j], x[j] + k, (n - k) * sizeof(float));
        KX_UNROLL for (int v = 0; v < KX_NV; v++)
            KX_UNROLL for (int j = 0; j < nx; j++)
                KX_UNROLL for (int i = 0; i < nw; i++)
                    acc[i][j][v] += load(pw[i] + v * KX_W) * load(px[j] + v * KX_W);
    }
    KX_UNROLL for (int j = 0; j < nx; j++)
        KX_UNROLL for (int i = 0; i < nw; i++) {
            float s[16];
            KX_UNROLL for (int v = 0; v < KX_NV; v++) store(s + v * KX_W, acc[i][j][v]);
            ret[j * SL_DOTS_TILE + i] = tree16(s);
        }
}

static void dots(const float *const *w, uint32_t n_w, const float *const *x, uint32_t n_x, size_t n,
                 float *ret)
{
    uint32_t j = 0;
    for (; KX_TX > 1 && j + KX_TX <= n_x; j += KX_TX) {
        uint32_t i = 0;
        for (; i + KX_TW <= n_w; i += KX_TW)
            tile(w + i, x + j, n, ret + j * SL_DOTS_TILE + i, KX_TW, KX_TX);
        for (; i < n_w; i++) tile(w + i, x + j, n, ret + j * SL_DOTS_TILE + i, 1, KX_TX);
    }
    for (; j < n_x; j++) {
        uint32_t i = 0;
        if (KX_W > 4 && n_w == 4) {
            tile(w, x + j, n, ret + j * SL_DOTS_TILE, 4, 1);
            continue;
        }
        for (; i + KX_TW <= n_w; i += KX_TW)
            tile(w + i, x + j, n, ret + j * SL_DOTS_TILE + i, KX_TW, 1);
        for (; i < n_w; i++) tile(w + i, x + j, n, ret + j * SL_DOTS_TILE + i, 1, 1);
    }
}

/* Sums over a row in the one order; f(e) of element e, or 0 in the padding. */
#define KX_SUM16(ret, n, f) do {                                        \
        float s_[16] = { 0 };                                           \
        size_t k_ = 0;                                                  \
        for (; k_ + 16 <= (n); k_ += 16)                                \
            for (size_t e_ = 0; e_ < 16; e_++) s_[e_] += f(k_ + e_);    \
        for (size_t e_ = 0; k_ + e_ < (n); e_++) s_[e_] += f(k_ + e_);  \
        (ret) = tree16(s_);                                             \
    } while (0)

static void norm(const sl_norm *p, const float *x, float *ret, size_t n)
{
    float mean = 0, sum;
    if (p->kind == SL_NORM_NONE) {
        if (ret != x) memcpy(ret, x, n * sizeof *x);
        return;
    }
#define F_SUM(e) x[e]
#define F_SQUARE(e) ((x[e] - mean) * (x[e] - mean))
    if (p->kind == SL_NORM_LAYER) {
        KX_SUM16(sum, n, F_SUM);
        mean = sum / (float)n;
    }
    KX_SUM16(sum, n, F_SQUARE);
#undef F_SUM
#undef F_SQUARE
    float f = 1.0f / sqrtf(sum / (float)n + p->eps);
    for (size_t i = 0; i < n; i++) ret[i] = (x[i] - mean) * f;
    if (p->weight)
        for (size_t i = 0; i < n; i++) ret[i] *= p->weight[i];
    if (p->bias)
        for (size_t i = 0; i < n; i++) ret[i] += p->bias[i];
}

static void rope(sl_rope_kind kind, const float *c, const float *s, uint32_t n_rot, float *x)
{
    uint32_t half = n_rot / 2;
    if (kind == SL_ROPE_HALVES)
        for (uint32_t i = 0; i < half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a * c[i] - b * s[i];
            x[i + half] = a * s[i] + b * c[i];
        }
    else if (kind == SL_ROPE_PAIRS)
        for (uint32_t i = 0; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * c[i] - b * s[i];
            x[2 * i + 1] = a * s[i] + b * c[i];
        }
}

static void act(const sl_act *a, const float *gate, const float *up, float *ret, size_t n)
{
    float limit = a->limit, alpha = a->alpha;
    switch (a->kind) {
    case SL_ACT_SILU:
        for (size_t i = 0; i < n; i++) ret[i] = kx_silu(gate[i]) * up[i];
        break;
    case SL_ACT_GELU:
        for (size_t i = 0; i < n; i++) ret[i] = kx_gelu(gate[i]) * up[i];
        break;
    case SL_ACT_SWIGLU_OAI:
        for (size_t i = 0; i < n; i++) {
            float g = gate[i] > limit ? limit : gate[i];
            float u = up[i] > limit ? limit : up[i];
            u = u < -limit ? -limit : u;
            ret[i] = g / (1.0f + kx_exp(-alpha * g)) * (u + 1.0f);
        }
        break;
    }
}

static void vexp(const float *x, float *ret, size_t n)
{
    for (size_t i = 0; i < n; i++) ret[i] = kx_exp(x[i]);
}

static void sigmoid(const float *x, float *ret, size_t n)
{
    for (size_t i = 0; i < n; i++) ret[i] = kx_sigmoid(x[i]);
}

static void axpy(float a, const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void to_f16(const float *x, uint16_t *ret, size_t n)
{
    for (size_t i = 0; i < n; i++) ret[i] = sl_f32_to_f16(x[i]);
}

static void from_f16(const uint16_t *x, float *ret, size_t n)
{
    for (size_t i = 0; i < n; i++) ret[i] = sl_f16_to_f32(x[i]);
}

void KX_NAME(sl_f32_set, KX_SET)(sl_kernels *k)
{
    k->dots = dots;
    k->norm = norm;
    k->rope = rope;
    k->act = act;
    k->exp = vexp;
    k->sigmoid = sigmoid;
    k->axpy = axpy;
    k->to_f16 = to_f16;
    k->from_f16 = from_f16;
}
