/* kernels/sl_kernels.h - the kernel table: arithmetic on the caller's buffers, one set per ISA.
 * Must not allocate, block, do I/O or log. Threads: pure functions. Units: elements.
 * Numbers: every sum along a row is 16 partial sums (element i goes to sum i mod 16, i ascending,
 * multiply and add rounded separately) and then one tree (8 + 8, 4 + 4, 2 + 2, 1 + 1). The order is
 * the same for every ISA, tile, thread and batch, so the float32 kernels below give the same bits
 * in every set. No kernel reads or writes past the lengths it is given; any alignment will do.
 * Tested by tests/t_dequant.c (bit for bit against the gguf package), tests/t_kernels.c (every set
 * against the reference, guard pages, error bounds) and tests/t_route.c. */
#ifndef SL_KERNELS_H
#define SL_KERNELS_H

#include "kernels/sl_attn.h"
#include "kernels/sl_ops.h"
#include "kernels/sl_quant.h"

/* What a CPU has: AVX2 with FMA and F16C; AVX-512 F BW VL DQ; AVX-512-VNNI beside it; AVX-VNNI
 * beside AVX2 (256 bits, as on CPUs without AVX-512). */
enum { SL_CPU_AVX2 = 1, SL_CPU_AVX512 = 2, SL_CPU_VNNI512 = 4, SL_CPU_AVXVNNI = 8 };

/* n elements (a multiple of the type's block) of a row to float32. No read past the row. */
typedef void (*sl_dequant_fn)(const void *row, float *y, size_t n);

enum { SL_DOTS_TILE = 4 };  /* rows and columns that one call of `dots` takes at most */

typedef struct sl_kernels {
    const char *isa;        /* one of the names of sl_cpu_from_isa */
    sl_dequant_fn dequant[SL_N_TYPES];  /* NULL: a type that cannot be multiplied by */

    /* sl_quant.h: products of quantised weights; group 0 for the other types. ret:
     * sl_qx_bytes(group, n), 64-byte aligned. */
    sl_qmul qmul[SL_N_TYPES];
    void (*quantise)(uint32_t group, const float *x, size_t n, void *ret);

    /* ret[j * SL_DOTS_TILE + i] = sum over n of w[i] * x[j]; i < n_w, j < n_x, both <=
     * SL_DOTS_TILE. */
    void (*dots)(const float *const *w, uint32_t n_w, const float *const *x, uint32_t n_x, size_t n,
                 float *ret);
    /* kernels/sl_ops.h has the formulas; ret may be x. */
    void (*norm)(const sl_norm *p, const float *x, float *ret, size_t n);
    /* Turn n_rot elements of x by angles whose cosines and sines are cos, sin [n_rot / 2]. */
    void (*rope)(sl_rope_kind kind, const float *cos, const float *sin, uint32_t n_rot, float *x);
    /* ret[i] = act(gate[i], up[i]); ret may be gate or up. */
    void (*act)(const sl_act *a, const float *gate, const float *up, float *ret, size_t n);
    void (*exp)(const float *x, float *ret, size_t n);      /* 2 ulp, kernels/cpu/expf.h */
    void (*sigmoid)(const float *x, float *ret, size_t n);
    void (*axpy)(float a, const float *x, float *y, size_t n);  /* y += a * x */
    void (*to_f16)(const float *x, uint16_t *ret, size_t n);    /* to nearest, ties to even */
    void (*from_f16)(const uint16_t *x, float *ret, size_t n);

    /* Attention: kernels/sl_attn.h has the formulas. n elements to the stored type (Q8_0: a
     * multiple of 32). */
    void (*kv_put)(sl_type type, const float *x, void *ret, size_t n);
    /* one block of keys into the states of some queries */
    void (*attend)(const sl_attn_tile *t);
    /* n_q states (m2, l2, acc2) into (m, l, acc); a state that saw no key (l2 == 0) changes
     * nothing. */
    void (*attend_merge)(uint32_t n_q, uint32_t v_dim, const float *m2, const float *l2,
                         const float *acc2, float *m, float *l, float *acc);
    /* out = acc / l for one head; with a sink (NULL: none), one more merge of (*sink, 1, 0)
     * first. */
    void (*attend_end)(const float *sink, float m, float l, const float *acc, uint32_t v_dim,
                       float *out);
} sl_kernels;

SL_API unsigned sl_cpu_detect(void);    /* this CPU's SL_CPU_* bits, of what was built */
/* The mask of a set's name: "c", "avx2", "avxvnni", "avx512" or "avx512vnni". SL_E_ARG: no such
 * name;
 * SL_E_UNSUPPORTED: cpu, what this CPU has (sl_cpu_detect), lacks some of it. */
SL_API SL_NODISCARD sl_status sl_cpu_from_isa(const char *name, unsigned cpu, unsigned *ret_mask);
/* Pure: a mask of 0 gives the C reference, any other the best set that it allows. */
SL_API void sl_kernels_init(sl_kernels *k, unsigned cpu);

/* Select and weigh experts for one row from the router's logits [n_expert] (bias included).
 * ids [n_used] in selection order (score descending, lower index first on ties), all different and
 * below n_expert whatever the logits, NaN included; w [n_used]. scratch: 3 * n_expert floats.
 * Needs 1 <= n_used <= n_expert (sparsemixer: n_used == 2) and n_group dividing n_expert.
 * Groups: one stays for its largest selection score (softmax) or the sum of its two largest
 * (others).
 * Source: DeepSeek-V2 (arXiv 2405.04434), V3 (arXiv 2412.19437), Phi-3.5-MoE (arXiv 2409.12136). */
SL_API void sl_route_row(const sl_routing *r, const float *logits, float *scratch,
                         uint32_t *ret_id, float *ret_w);

#endif
