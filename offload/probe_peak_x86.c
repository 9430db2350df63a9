/* offload/probe_peak_x86.c - loops in assembly: instruction peaks and reads of memory.
 * A peak loop keeps 12 accumulators (6 for the AVX2 triple, each with its temporary), more than
 * latency times issue width of any x86 CPU (4 cycles x 2), so that only the number of execution
 * ports binds.
 * Operands are arbitrary numbers, since zeros would draw less power and clock higher. Other CPUs
 * have no peaks here and read by a plain loop. */
#include "offload/probe.h"

#include <assert.h>

#if defined(__x86_64__)

#define R12(I) I(0) I(1) I(2) I(3) I(4) I(5) I(6) I(7) I(8) I(9) I(10) I(11)
#define R6(I) I(0, 6) I(1, 7) I(2, 8) I(3, 9) I(4, 10) I(5, 11)

#define VNNI512(n) "vpdpbusd %%zmm13, %%zmm12, %%zmm" #n "\n\t"
/* The VEX form: without the prefix an assembler may choose the EVEX one, which AVX-512 machines
 * only have. */
#define AVXVNNI(n) "%{vex%} vpdpbusd %%ymm13, %%ymm12, %%ymm" #n "\n\t"
#define MADDUBS(n, t) "vpmaddubsw %%ymm13, %%ymm12, %%ymm" #t "\n\t" \
    "vpmaddwd %%ymm14, %%ymm" #t ", %%ymm" #t "\n\t" \
    "vpaddd %%ymm" #t ", %%ymm" #n ", %%ymm" #n "\n\t"
#define FMA512(n) "vfmadd231ps %%zmm13, %%zmm12, %%zmm" #n "\n\t"
#define FMA256(n) "vfmadd231ps %%ymm13, %%ymm12, %%ymm" #n "\n\t"

#define ZERO(n) "vpxor %%xmm" #n ", %%xmm" #n ", %%xmm" #n "\n\t"
#define CLOBBERS "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
    "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14"

/* Zero the accumulators, load the operands, four times the body a round. */
#define LOOP(load, reg, body) \
    __asm__ volatile(R12(ZERO) \
                     load " (%1), %%" reg "12\n\t" \
                     load " 64(%1), %%" reg "13\n\t" \
                     load " 128(%1), %%" reg "14\n\t" \
                     ".p2align 5\n" \
                     "1:\n\t" body body body body \
                     "dec %0\n\t" \
                     "jnz 1b\n\t" \
                     "vzeroupper" \
                     : "+r"(rounds) : "r"(operands) : CLOBBERS)

typedef union operands {
    uint8_t u8[3][64];
    uint16_t u16[3][32];
    float f32[3][16];
} operands_t;

static void fill(sl_peak peak, operands_t *o)
{
    bool floats = peak == SL_PEAK_F32_AVX2 || peak == SL_PEAK_F32_AVX512;
    for (int i = 0; i < 64; i++)
        o->u8[0][i] = (uint8_t)(37 * i + 11), o->u8[1][i] = (uint8_t)(91 * i + 5);
    for (int i = 0; i < 32; i++) o->u16[2][i] = 1;
    for (int i = 0; floats && i < 16; i++)
        o->f32[0][i] = 1.0f / (float)(3 + i), o->f32[1][i] = 1e-4f * (float)i;
}

void probe_peak_loop(sl_peak peak, uint64_t rounds)
{
    operands_t data, *operands = &data;
    fill(peak, operands);
    if (!rounds) return;
    switch (peak) {
    case SL_PEAK_I8_AVX2: LOOP("vmovdqu", "ymm", R6(MADDUBS)); break;
    case SL_PEAK_I8_AVXVNNI: LOOP("vmovdqu", "ymm", R12(AVXVNNI)); break;
    case SL_PEAK_I8_VNNI512: LOOP("vmovdqu64", "zmm", R12(VNNI512)); break;
    case SL_PEAK_F32_AVX2: LOOP("vmovdqu", "ymm", R12(FMA256)); break;
    case SL_PEAK_F32_AVX512: LOOP("vmovdqu64", "zmm", R12(FMA512)); break;
    case SL_N_PEAKS: assert(!"a peak");
    }
}

uint32_t probe_peak_ops(sl_peak peak)
{
    switch (peak) {
    case SL_PEAK_I8_AVX2: return 4 * 6 * 32;        /* body x instructions x multiply-adds */
    case SL_PEAK_I8_AVXVNNI: return 4 * 12 * 32;
    case SL_PEAK_I8_VNNI512: return 4 * 12 * 64;
    case SL_PEAK_F32_AVX2: return 4 * 12 * 2 * 8;   /* flops */
    case SL_PEAK_F32_AVX512: return 4 * 12 * 2 * 16;
    case SL_N_PEAKS: break;
    }
    return 0;
}

/* SSE2 loads: every x86-64 has them, and four a line keep up with any memory. */
#define LINE(p) "movdqa (%" #p "), %%xmm0\n\tmovdqa 16(%" #p "), %%xmm1\n\t" \
    "movdqa 32(%" #p "), %%xmm2\n\tmovdqa 48(%" #p "), %%xmm3\n\tadd $64, %" #p "\n\t"
#define AHEAD(p) "prefetcht0 4096(%" #p ")\n\t"
#define READ(body) \
    __asm__ volatile(".p2align 5\n1:\n\t" body "dec %0\n\tjnz 1b" \
                     : "+r"(lines), "+r"(p0), "+r"(p1), "+r"(p2), "+r"(p3) \
                     : : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3")

void probe_read_loop(uint32_t way, const void *p, size_t n)
{
    size_t streams = (size_t)1 << way % 3, part = n / streams, lines = part / 64;
    const char *p0 = p, *p1 = p0 + (streams > 1) * part;
    const char *p2 = p0 + (streams > 2) * 2 * part, *p3 = p0 + (streams > 2) * 3 * part;
    assert(way < PROBE_N_READS && n % PROBE_READ_UNIT == 0);
    if (!lines) return;
    switch (way) {
    case 0: READ(LINE(1)); break;
    case 1: READ(LINE(1) LINE(2)); break;
    case 2: READ(LINE(1) LINE(2) LINE(3) LINE(4)); break;
    case 3: READ(AHEAD(1) LINE(1)); break;
    case 4: READ(AHEAD(1) LINE(1) AHEAD(2) LINE(2)); break;
    case 5: READ(AHEAD(1) LINE(1) AHEAD(2) LINE(2) AHEAD(3) LINE(3) AHEAD(4) LINE(4)); break;
    }
}

#else

void probe_peak_loop(sl_peak peak, uint64_t rounds)
{
    (void)peak, (void)rounds;
}

uint32_t probe_peak_ops(sl_peak peak)
{
    (void)peak;
    return 0;
}

/* Eight sums, so that additions do not wait for each other; the asm keeps them alive. */
void probe_read_loop(uint32_t way, const void *p, size_t n)
{
    size_t streams = (size_t)1 << way % 3, part = n / streams / 64 * 64;
    for (size_t at = 0; at < part; at += 64)
        for (size_t s = 0; s < streams; s++) {
            const uint64_t *q = (const uint64_t *)((const char *)p + s * part + at);
            if (way > 2) __builtin_prefetch((const char *)q + 4096);
            uint64_t v = (q[0] ^ q[1]) + (q[2] ^ q[3]) + (q[4] ^ q[5]) + (q[6] ^ q[7]);
            __asm__ volatile("" : : "r"(v));
        }
}

#endif
