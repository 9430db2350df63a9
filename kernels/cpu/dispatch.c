/* kernels/cpu/dispatch.c - which set of kernels serves this CPU. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quant.h"

#include <string.h>

#if SL_HAVE_AVX2
#include <cpuid.h>
#endif

unsigned sl_cpu_detect(void)
{
    unsigned cpu = 0;
#if SL_HAVE_AVX2
    /* The builtin asks the operating system too whether it saves the registers; clang 14's has no
     * name for F16C: CPUID leaf 1, ECX bit 29. */
    unsigned a, b, c, d;
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) cpu |= SL_CPU_AVX2;
#if SL_HAVE_AVX512
    if (cpu && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        cpu |= SL_CPU_AVX512;
    if (cpu & SL_CPU_AVX512 && __builtin_cpu_supports("avx512vnni")) cpu |= SL_CPU_VNNI512;
#endif
    /* AVX-VNNI: leaf 7.1, EAX bit 4; its registers are those of AVX2. */
    if (cpu && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1)) cpu |= SL_CPU_AVXVNNI;
#endif
    return cpu;
}

sl_status sl_cpu_from_isa(const char *name, unsigned cpu, unsigned *ret_mask)
{
    static const struct { const char *name; unsigned mask; } isas[] = {
        { "c", 0 },
        { "avx2", SL_CPU_AVX2 },
        { "avxvnni", SL_CPU_AVX2 | SL_CPU_AVXVNNI },
        { "avx512", SL_CPU_AVX2 | SL_CPU_AVX512 },
        { "avx512vnni", SL_CPU_AVX2 | SL_CPU_AVX512 | SL_CPU_VNNI512 },
    };
    for (size_t i = 0; i < SL_LEN(isas); i++) {
        if (strcmp(isas[i].name, name)) continue;
        if (isas[i].mask & ~cpu) return SL_E_UNSUPPORTED;
        *ret_mask = isas[i].mask;
        return SL_OK;
    }
    return SL_E_ARG;
}

void sl_kernels_init(sl_kernels *k, unsigned cpu)
{
    *k = (sl_kernels){ .isa = "c" };
    sl_dequant_set_c(k);
    sl_f32_set_c(k);
    sl_attn_set_c(k);
    sl_quant_set_c(k);
#if SL_HAVE_AVX2
    if (cpu & SL_CPU_AVX2) {
        k->isa = "avx2";
        sl_dequant_set_avx2(k);
        sl_f32_set_avx2(k);
        sl_attn_set_avx2(k);
        sl_quant_set_avx2(k);
        if (cpu & SL_CPU_AVXVNNI) {
            k->isa = "avxvnni";
#if SL_HAVE_AVXVNNI
            sl_quant_set_avxvnni(k);
#endif
        }
    }
#if SL_HAVE_AVX512
    if (cpu & SL_CPU_AVX512) {
        k->isa = "avx512";
        sl_dequant_set_avx512(k);
        sl_f32_set_avx512(k);
        sl_attn_set_avx512(k);
        sl_quant_set_avx512(k);
        if (cpu & SL_CPU_VNNI512) {
            k->isa = "avx512vnni";
            sl_quant_set_avx512vnni(k);
        }
    }
#endif
#else
    (void)cpu;
#endif
}
