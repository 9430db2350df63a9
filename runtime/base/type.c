/* runtime/base/type.c - the table of tensor types. */
#include "runtime/base/sl_type.h"

#include <strings.h>

#define K 256   /* elements of a K-quant's super-block */
static const sl_type_info types[SL_N_TYPES] = {
    [SL_F32] = { "F32", 1, 4, true },          [SL_F16] = { "F16", 1, 2, true },
    [SL_BF16] = { "BF16", 1, 2, true },        [SL_F64] = { "F64", 1, 8, false },
    [SL_I8] = { "I8", 1, 1, false },           [SL_I16] = { "I16", 1, 2, false },
    [SL_I32] = { "I32", 1, 4, false },         [SL_I64] = { "I64", 1, 8, false },
    [SL_Q4_0] = { "Q4_0", 32, 18, true },      [SL_Q4_1] = { "Q4_1", 32, 20, true },
    [SL_Q5_0] = { "Q5_0", 32, 22, true },      [SL_Q5_1] = { "Q5_1", 32, 24, true },
    [SL_Q8_0] = { "Q8_0", 32, 34, true },      [SL_Q8_1] = { "Q8_1", 32, 36, false },
    [SL_Q2_K] = { "Q2_K", K, 84, true },       [SL_Q3_K] = { "Q3_K", K, 110, true },
    [SL_Q4_K] = { "Q4_K", K, 144, true },      [SL_Q5_K] = { "Q5_K", K, 176, true },
    [SL_Q6_K] = { "Q6_K", K, 210, true },      [SL_Q8_K] = { "Q8_K", K, 292, false },
    [SL_IQ2_XXS] = { "IQ2_XXS", K, 66, true }, [SL_IQ2_XS] = { "IQ2_XS", K, 74, true },
    [SL_IQ2_S] = { "IQ2_S", K, 82, true },     [SL_IQ3_XXS] = { "IQ3_XXS", K, 98, true },
    [SL_IQ3_S] = { "IQ3_S", K, 110, true },    [SL_IQ1_S] = { "IQ1_S", K, 50, false },
    [SL_IQ1_M] = { "IQ1_M", K, 56, false },    [SL_IQ4_NL] = { "IQ4_NL", 32, 18, true },
    [SL_IQ4_XS] = { "IQ4_XS", K, 136, true },  [SL_TQ1_0] = { "TQ1_0", K, 54, false },
    [SL_TQ2_0] = { "TQ2_0", K, 66, false },    [SL_MXFP4] = { "MXFP4", 32, 17, true },
    [SL_NVFP4] = { "NVFP4", 64, 36, false },    [SL_Q1_0] = { "Q1_0", 128, 18, false },
};
#undef K

const sl_type_info *sl_type_get(uint32_t type)
{
    static const sl_type_info none;
    return type < SL_N_TYPES ? &types[type] : &none;
}

bool sl_type_row_bytes(uint32_t type, uint64_t n, uint64_t *ret_bytes)
{
    const sl_type_info *t = sl_type_get(type);
    if (!t->name || n % t->block_elems) return false;
    return sl_mul_size(n / t->block_elems, t->block_bytes, ret_bytes);
}

bool sl_type_from_name(const char *name, sl_type *ret)
{
    for (unsigned t = 0; t < SL_N_TYPES; t++) {
        if (!types[t].name || strcasecmp(types[t].name, name)) continue;
        *ret = (sl_type)t;
        return true;
    }
    return false;
}
