/* kernels/cpu/dequant_set.c - which dequantiser serves which type, in this set. */
#include "kernels/cpu/dequant.h"

void KX_NAME(sl_dequant_set, KX_SET)(sl_kernels *k)
{
    k->dequant[SL_F32] = DEQUANT(f32);
    k->dequant[SL_F16] = DEQUANT(f16);
    k->dequant[SL_BF16] = DEQUANT(bf16);
    k->dequant[SL_Q4_0] = DEQUANT(q4_0);
    k->dequant[SL_Q4_1] = DEQUANT(q4_1);
    k->dequant[SL_Q5_0] = DEQUANT(q5_0);
    k->dequant[SL_Q5_1] = DEQUANT(q5_1);
    k->dequant[SL_Q8_0] = DEQUANT(q8_0);
    k->dequant[SL_Q2_K] = DEQUANT(q2_k);
    k->dequant[SL_Q3_K] = DEQUANT(q3_k);
    k->dequant[SL_Q4_K] = DEQUANT(q4_k);
    k->dequant[SL_Q5_K] = DEQUANT(q5_k);
    k->dequant[SL_Q6_K] = DEQUANT(q6_k);
    k->dequant[SL_IQ4_NL] = DEQUANT(iq4_nl);
    k->dequant[SL_IQ4_XS] = DEQUANT(iq4_xs);
    k->dequant[SL_MXFP4] = DEQUANT(mxfp4);
    k->dequant[SL_IQ2_XXS] = DEQUANT(iq2_xxs);
    k->dequant[SL_IQ2_XS] = DEQUANT(iq2_xs);
    k->dequant[SL_IQ2_S] = DEQUANT(iq2_s);
    k->dequant[SL_IQ3_XXS] = DEQUANT(iq3_xxs);
    k->dequant[SL_IQ3_S] = DEQUANT(iq3_s);
}
