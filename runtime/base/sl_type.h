/* runtime/base/sl_type.h - tensor types: ids as GGUF stores them, block sizes, names.
 * Units: elements and bytes. Tested by tests/t_type.c against the gguf package's table.
 * Source: the GGUF specification (ggml docs/gguf.md) and its table of quantisation sizes. */
#ifndef SL_TYPE_H
#define SL_TYPE_H

#include "runtime/base/sl_base.h"

typedef enum sl_type {
    SL_F32 = 0, SL_F16 = 1, SL_Q4_0 = 2, SL_Q4_1 = 3, SL_Q5_0 = 6, SL_Q5_1 = 7, SL_Q8_0 = 8,
    SL_Q8_1 = 9, SL_Q2_K = 10, SL_Q3_K = 11, SL_Q4_K = 12, SL_Q5_K = 13, SL_Q6_K = 14, SL_Q8_K = 15,
    SL_IQ2_XXS = 16, SL_IQ2_XS = 17, SL_IQ3_XXS = 18, SL_IQ1_S = 19, SL_IQ4_NL = 20, SL_IQ3_S = 21,
    SL_IQ2_S = 22, SL_IQ4_XS = 23, SL_I8 = 24, SL_I16 = 25, SL_I32 = 26, SL_I64 = 27, SL_F64 = 28,
    SL_IQ1_M = 29, SL_BF16 = 30, SL_TQ1_0 = 34, SL_TQ2_0 = 35, SL_MXFP4 = 39, SL_NVFP4 = 40,
    SL_Q1_0 = 41,
    SL_N_TYPES = 42
} sl_type;

typedef struct sl_type_info {
    const char *name;       /* "Q4_K"; NULL: no such type */
    uint16_t block_elems;   /* elements of a block */
    uint16_t block_bytes;
    bool matmul;            /* kernels can multiply by a matrix of this type */
} sl_type_info;

/* Any value is allowed; an unknown one gives an entry whose name is NULL and whose block_elems is
 * 0. */
SL_API const sl_type_info *sl_type_get(uint32_t type);

/* Bytes of n elements in one row. False when type is unknown, n is no multiple of the block, or the
 * product overflows. */
SL_API bool sl_type_row_bytes(uint32_t type, uint64_t n, uint64_t *ret_bytes);

SL_API bool sl_type_from_name(const char *name, sl_type *ret);  /* "q4_k" or "Q4_K" */

#endif
