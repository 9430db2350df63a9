/* kernels/cpu/dispatch.c - which function serves which type. */
#include "kernels/cpu/dequant_c.h"

void sl_kernels_init(sl_kernels *k, unsigned cpu)
{
    (void)cpu;      /* no overlay is built in: the reference serves every CPU */
    *k = (sl_kernels){ .isa = "c", .dequant = {
        [SL_F32] = sl_dequant_f32_c,         [SL_F16] = sl_dequant_f16_c,
        [SL_BF16] = sl_dequant_bf16_c,       [SL_Q4_0] = sl_dequant_q4_0_c,
        [SL_Q4_1] = sl_dequant_q4_1_c,       [SL_Q5_0] = sl_dequant_q5_0_c,
        [SL_Q5_1] = sl_dequant_q5_1_c,       [SL_Q8_0] = sl_dequant_q8_0_c,
        [SL_Q2_K] = sl_dequant_q2_k_c,       [SL_Q3_K] = sl_dequant_q3_k_c,
        [SL_Q4_K] = sl_dequant_q4_k_c,       [SL_Q5_K] = sl_dequant_q5_k_c,
        [SL_Q6_K] = sl_dequant_q6_k_c,       [SL_IQ4_NL] = sl_dequant_iq4_nl_c,
        [SL_IQ4_XS] = sl_dequant_iq4_xs_c,   [SL_MXFP4] = sl_dequant_mxfp4_c,
        [SL_IQ2_XXS] = sl_dequant_iq2_xxs_c, [SL_IQ2_XS] = sl_dequant_iq2_xs_c,
        [SL_IQ2_S] = sl_dequant_iq2_s_c,     [SL_IQ3_XXS] = sl_dequant_iq3_xxs_c,
        [SL_IQ3_S] = sl_dequant_iq3_s_c,
    } };
}
