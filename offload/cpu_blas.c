/* offload/cpu_blas.c - --blas on: tiles of matrices that are multiplied as floats, through OpenBLAS
 * on the calling worker. The library is opened when it is asked for: it starts threads and takes
 * buffers as soon as it is loaded, which other runs need not carry. */
#include "offload/device_cpu.h"

#include <assert.h>
#include <string.h>

#if SL_HAVE_OPENBLAS
#include <cblas.h>
#include <dlfcn.h>

typedef __typeof__(&cblas_sgemm) sgemm_fn;

/* ISO C has no cast from an object's to a function's pointer. */
static bool find(void *lib, const char *name, void *ret)
{
    void *p = dlsym(lib, name);
    memcpy(ret, &p, sizeof p);
    return p != NULL;
}

sl_status cpu_blas_open(sl_ctx *ctx, cpu_blas *ret)
{
    void (*set_threads)(int);
    cpu_blas b = { .lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL) };
    if (!b.lib) return sl_fail(ctx, SL_E_UNSUPPORTED, "OpenBLAS: %s", dlerror());
    if (!find(b.lib, "openblas_set_num_threads", &set_threads)
        || !find(b.lib, "cblas_sgemm", &b.sgemm)) {
        cpu_blas_close(&b);
        return sl_fail(ctx, SL_E_UNSUPPORTED, "OpenBLAS: libopenblas.so.0 lacks cblas_sgemm");
    }
    set_threads(1);     /* each of our workers calls it for tiles of its own */
    *ret = b;
    return SL_OK;
}

void cpu_blas_close(cpu_blas *b)
{
    if (b->lib) dlclose(b->lib);
    *b = (cpu_blas){ 0 };
}

void cpu_blas_mul(const cpu_blas *b, const cpu_tile *t, const void *const *x, uint32_t n_x,
                  float *ret, size_t ld)
{
    const char *first = x[0];
    const ptrdiff_t row = (ptrdiff_t)(t->cols * sizeof(float));
    ptrdiff_t step = n_x > 1 ? (const char *)x[1] - first : row;
    bool even = step >= row && step % (ptrdiff_t)sizeof(float) == 0;
    for (uint32_t j = 2; even && j < n_x; j++) even = (const char *)x[j] - first == step * j;
    const float *rows = (const float *)x[0];
    if (!even) {        /* an expert's rows lie here and there */
        for (uint32_t j = 0; j < n_x; j++)
            memcpy(t->gather + (size_t)j * t->cols, x[j], (size_t)row);
        rows = t->gather;
        step = row;
    }
    ((sgemm_fn)b->sgemm)(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n_x, (int)t->n, (int)t->cols,
                         1, rows, (int)(step / (ptrdiff_t)sizeof(float)), t->rows[0], (int)t->cols,
                         0, ret, (int)ld);
}

#else

sl_status cpu_blas_open(sl_ctx *ctx, cpu_blas *ret)
{
    (void)ret;
    return sl_fail(ctx, SL_E_UNSUPPORTED, "OpenBLAS is not part of this build");
}

void cpu_blas_close(cpu_blas *b)
{
    (void)b;
}

void cpu_blas_mul(const cpu_blas *b, const cpu_tile *t, const void *const *x, uint32_t n_x,
                  float *ret, size_t ld)
{
    (void)b, (void)t, (void)x, (void)n_x, (void)ret, (void)ld;
    assert(!"OpenBLAS was opened");
}

#endif

bool sl_device_has_blas(void)
{
    cpu_blas b = { 0 };
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    bool ret = ctx && cpu_blas_open(ctx, &b) == SL_OK;
    cpu_blas_close(&b);
    sl_ctx_destroy(&ctx);
    return ret;
}
