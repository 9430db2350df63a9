/* tests/t_dequant.c - dequantisation against the gguf package's values, bit for bit (NaN equals
 * NaN), in every set that this CPU runs. Files: tests/golden/dequant/<TYPE>.bin, their layout in
 * tests/golden/make_dequant.py. Each row is read from and written to memory that ends on an
 * unmapped page. Every float16 is checked by arithmetic. */
#include "kernels/sl_kernels.h"
#include "tests/t.h"

#include <math.h>

struct golden {
    uint32_t type, n_blocks, block_elems, block_bytes;
    unsigned char *raw;
    float *want;
};

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static bool same(float a, float b)
{
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

static struct golden *golden_read(const char *type)
{
    char path[256], magic[8];
    snprintf(path, sizeof path, "tests/golden/dequant/%s.bin", type);
    FILE *f = fopen(path, "rb");
    T_NEED(f, "open %s", path);
    struct golden *g = calloc(1, sizeof *g);
    T_NEED(g && fread(magic, 8, 1, f) == 1 && !memcmp(magic, "SLDEQ001", 8), "%s: magic", path);
    T_NEED(fread(&g->type, 4, 4, f) == 4, "%s: header", path);
    size_t raw = (size_t)g->n_blocks * g->block_bytes, n = (size_t)g->n_blocks * g->block_elems;
    g->raw = malloc(raw);
    g->want = malloc(n * sizeof *g->want);
    T_NEED(g->raw && g->want && fread(g->raw, 1, raw, f) == raw && fread(g->want, 4, n, f) == n,
           "%s: data", path);
    fclose(f);
    return g;
}

/* One row of all blocks, then each block alone. */
static void check_rows(const sl_kernels *k, const struct golden *g, uint32_t first,
                       uint32_t n_blocks)
{
    size_t raw_bytes = (size_t)n_blocks * g->block_bytes, n = (size_t)n_blocks * g->block_elems;
    void *raw = t_guarded(raw_bytes);
    float *got = t_guarded(n * sizeof *got);
    const float *want = g->want + (size_t)first * g->block_elems;
    memcpy(raw, g->raw + (size_t)first * g->block_bytes, raw_bytes);
    k->dequant[g->type](raw, got, n);
    for (size_t i = 0; i < n; i++)
        T_CHECK(same(got[i], want[i]), "%s %s block %u element %zu: got %a want %a", k->isa,
                sl_type_get(g->type)->name, first + (unsigned)(i / g->block_elems),
                i % g->block_elems, (double)got[i], (double)want[i]);
    t_guarded_free(raw, raw_bytes);
    t_guarded_free(got, n * sizeof *got);
}

static void check_type(const sl_kernels *k, uint32_t type)
{
    const sl_type_info *info = sl_type_get(type);
    struct golden *g = golden_read(info->name);
    T_NEED(g->type == type && g->block_elems == info->block_elems &&
           g->block_bytes == info->block_bytes,
           "%s: blocks of %u in %u bytes", info->name, g->block_elems, g->block_bytes);
    check_rows(k, g, 0, g->n_blocks);
    for (uint32_t b = 0; b < SL_MIN(g->n_blocks, 32u); b++) check_rows(k, g, b, 1);
    free(g->raw);
    free(g->want);
    free(g);
}

static void check_every_f16(const sl_kernels *k)
{
    uint16_t *h = t_guarded(65536 * sizeof *h);
    float *got = t_guarded(65536 * sizeof *got);
    for (uint32_t i = 0; i < 65536; i++) h[i] = (uint16_t)i;
    k->dequant[SL_F16](h, got, 65536);
    for (uint32_t i = 0; i < 65536; i++) {
        int e = (int)(i >> 10 & 31), m = (int)(i & 1023);
        double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        float want = (float)(i >> 15 ? -v : v);
        T_CHECK(same(got[i], want), "%s f16 %04x: got %a want %a", k->isa, i, (double)got[i],
                (double)want);
    }
    t_guarded_free(h, 65536 * sizeof *h);
    t_guarded_free(got, 65536 * sizeof *got);
}

static void check_f32(const sl_kernels *k)
{
    static const float x[] = { 0, -0.0f, 1, -INFINITY, 1e-45f, 3.5f, NAN };
    float y[SL_LEN(x)];
    k->dequant[SL_F32](x, y, SL_LEN(x));
    T_CHECK(!memcmp(x, y, sizeof x), "f32 is a copy");
}

static void check_set(const sl_kernels *k)
{
    for (uint32_t t = 0; t < SL_N_TYPES; t++) {
        T_CHECK(!k->dequant[t] == !sl_type_get(t)->matmul, "type %u: table and sl_type disagree",
                t);
        if (k->dequant[t] && t != SL_F32) check_type(k, t);
    }
    check_f32(k);
    check_every_f16(k);
}

int main(void)
{
    static const unsigned masks[] = { 0, SL_CPU_AVX2, SL_CPU_AVX2 | SL_CPU_AVX512 };
    t_begin();
    for (size_t i = 0; i < SL_LEN(masks); i++) {
        sl_kernels k;
        if ((sl_cpu_detect() & masks[i]) != masks[i]) continue;
        sl_kernels_init(&k, masks[i]);
        check_set(&k);
        printf("%s\n", k.isa);
    }
    return t_end();
}
