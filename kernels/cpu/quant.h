/* kernels/cpu/quant.h - private to kernels: a group of quantised weights taken apart, as the
 * formula of kernels/sl_quant.h wants it, and what the sets of quantised products share. */
#ifndef KX_QUANT_H
#define KX_QUANT_H

#include "kernels/cpu/cpu.h"
#include "kernels/sl_quant.h"

/* Element i is d * sc[i / 16] * (q[i] - zero) - dmin * mn[i / 16]. Only G / 16 entries of sc and mn
 * and G of q are there: sl_qgroup_bytes. */
typedef struct sl_qgroup {
    float d, dmin;
    int16_t sc[16], mn[16];
    uint8_t q[256];
} sl_qgroup;

static inline size_t sl_qgroup_bytes(uint32_t group) { return sizeof(sl_qgroup) - 256 + group; }

typedef struct sl_qtype {
    uint32_t group;         /* G, the elements of a block; 0: no integer kernels */
    uint32_t block_bytes;
    int zero;
    bool mins;              /* has dmin and mn: otherwise they are 0 */
    bool half;              /* sc differs between the two 16s of 32 elements */
    void (*decode)(const uint8_t *block, sl_qgroup *ret);
} sl_qtype;

extern const sl_qtype sl_qtypes[SL_N_TYPES];    /* quant_decode.c */

#define SL_QTYPES(X) \
    X(SL_Q4_0, q4_0) X(SL_Q4_1, q4_1) X(SL_Q5_0, q5_0) X(SL_Q5_1, q5_1) X(SL_Q8_0, q8_0) \
    X(SL_IQ4_NL, iq4_nl) X(SL_MXFP4, mxfp4) X(SL_Q2_K, q2_k) X(SL_Q3_K, q3_k) X(SL_Q4_K, q4_k) \
    X(SL_Q5_K, q5_k) X(SL_Q6_K, q6_k) X(SL_IQ4_XS, iq4_xs) X(SL_IQ2_XXS, iq2_xxs) \
    X(SL_IQ2_XS, iq2_xs) X(SL_IQ2_S, iq2_s) X(SL_IQ3_XXS, iq3_xxs) X(SL_IQ3_S, iq3_s)

/* quant_c.c */
void sl_quant_set_c(sl_kernels *k);
void sl_quantise_c(uint32_t group, const float *x, size_t n, void *ret);
/* quant_256.c */
void sl_quant_set_avx2(sl_kernels *k);
void sl_quant_set_avxvnni(sl_kernels *k);

/* quant_512.c */
void sl_quant_set_avx512(sl_kernels *k);
void sl_quant_set_avx512vnni(sl_kernels *k);

#endif
