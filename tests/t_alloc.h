/* tests/t_alloc.h - an allocator that counts and, when told, fails. A program that includes this
 * links with alloc_dep (tests/meson.build), which sends our objects' calls here; the C library's
 * and other libraries' own calls are not touched. */
#ifndef T_ALLOC_H
#define T_ALLOC_H

#include <stdatomic.h>
#include <stdlib.h>

static _Atomic long t_alloc_calls;      /* so far */
static _Atomic long t_alloc_fail_at;    /* the call that fails, counted from 1; 0: none */

static void *t_alloc_permit(void *(*real)(size_t, size_t), size_t a, size_t b)
{
    long call = atomic_fetch_add(&t_alloc_calls, 1) + 1;
    return call == atomic_load(&t_alloc_fail_at) ? NULL : real(a, b);
}

static void t_alloc_reset(long fail_at)
{
    atomic_store(&t_alloc_calls, 0);
    atomic_store(&t_alloc_fail_at, fail_at);
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
char *__wrap_strdup(const char *s);

static void *t_malloc2(size_t n, size_t unused)
{
    (void)unused;
    return __real_malloc(n);
}

static void *t_realloc2(size_t p, size_t n)
{
    return __real_realloc((void *)p, n);
}

static void *t_strdup2(size_t s, size_t unused)
{
    (void)unused;
    return __real_strdup((const char *)s);
}

void *__wrap_malloc(size_t n) { return t_alloc_permit(t_malloc2, n, 0); }
void *__wrap_calloc(size_t n, size_t size) { return t_alloc_permit(__real_calloc, n, size); }
void *__wrap_realloc(void *p, size_t n) { return t_alloc_permit(t_realloc2, (size_t)p, n); }
void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return t_alloc_permit(__real_aligned_alloc, align, n);
}
char *__wrap_strdup(const char *s) { return t_alloc_permit(t_strdup2, (size_t)s, 0); }

#endif
