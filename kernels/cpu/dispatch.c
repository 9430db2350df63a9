/* kernels/cpu/dispatch.c - which function serves which type, and which set serves this CPU. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/dequant_c.h"

#if SL_HAVE_X86_SETS
#include <cpuid.h>
#endif

unsigned sl_cpu_detect(void)
{
    unsigned cpu = 0;
#if SL_HAVE_X86_SETS
    /* The builtin asks the operating system too whether it saves the registers; clang 14's has no name
     * for F16C: CPUID leaf 1, ECX bit 29. */
    unsigned a, b, c, d;
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) cpu |= SL_CPU_AVX2;
    if (cpu && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        cpu |= SL_CPU_AVX512;
#endif
    return cpu;
}

void sl_kernels_init(sl_kernels *k, unsigned cpu)
{
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
    sl_f32_set_c(k);
#if SL_HAVE_X86_SETS
    if (cpu & SL_CPU_AVX2) {
        k->isa = "avx2";
        sl_f32_set_avx2(k);
    }
    if (cpu & SL_CPU_AVX512) {
        k->isa = "avx512";
        sl_f32_set_avx512(k);
    }
#else
    (void)cpu;
#endif
}
