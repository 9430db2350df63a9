/* tests/t.h - checks for programs that loop over variants, sizes and random cases.
 * T_CHECK prints the failing case and counts; t_end prints the totals and gives main's result.
 * A program that cannot run here returns T_SKIP, so that meson prints SKIP and never a silent pass.
 * Random numbers come from t_seed alone: SL_TEST_SEED in the environment replaces the default. */
#ifndef T_H
#define T_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define T_SKIP 77
#define T_SHOWN 20      /* failures printed in full; the others are only counted */
#define T_UNUSED __attribute__((unused))

static unsigned t_seed T_UNUSED = 1;
static uint64_t t_state T_UNUSED;
static unsigned long t_checks T_UNUSED, t_failed T_UNUSED;

#define T_CHECK(cond, ...) \
    do { \
        t_checks++; \
        if (!(cond) && t_failed++ < T_SHOWN) { \
            fprintf(stderr, "%s:%d: (%s) seed=%u: ", __FILE__, __LINE__, #cond, t_seed); \
            fprintf(stderr, __VA_ARGS__); \
            fputc('\n', stderr); \
        } \
    } while (0)

/* A condition without which the program cannot go on: prints and ends it. */
#define T_NEED(cond, ...) \
    do { \
        t_checks++; \
        if (!(cond)) { \
            fprintf(stderr, "%s:%d: needed: (%s): ", __FILE__, __LINE__, #cond); \
            fprintf(stderr, __VA_ARGS__); \
            fputc('\n', stderr); \
            exit(1); \
        } \
    } while (0)

/* "return t_skip("SLUICE_VOCAB_DIR is not set")" */
T_UNUSED static int t_skip(const char *why)
{
    printf("SKIP: %s\n", why);
    return T_SKIP;
}

T_UNUSED static int t_end(void)
{
    printf("%lu checks, %lu failed\n", t_checks, t_failed);
    return t_failed || !t_checks ? 1 : 0;
}

/* Reads SL_TEST_SEED and starts the sequence anew. */
T_UNUSED static void t_begin(void)
{
    const char *s = getenv("SL_TEST_SEED");
    if (s) t_seed = (unsigned)strtoul(s, NULL, 10);
    t_state = t_seed;
}

/* splitmix64: Steele, Lea, Flood, OOPSLA 2014 */
T_UNUSED static uint64_t t_rand(void)
{
    uint64_t z = (t_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

T_UNUSED static uint32_t t_below(uint32_t n)    /* 0 .. n-1 */
{
    return (uint32_t)((t_rand() >> 32) * n >> 32);
}

T_UNUSED static float t_unit(void)              /* -1 <= x < 1 */
{
    return (float)(t_rand() >> 40) * 0x1p-23f - 1.0f;
}

/* bytes that end on an unmapped page: a read or write behind them faults. t_guarded_free takes the
 * same count. */
T_UNUSED static void *t_guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    char *at = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    T_NEED(at != MAP_FAILED, "mmap of %zu bytes", body + page);
    T_NEED(mprotect(at + body, page, PROT_NONE) == 0, "mprotect");
    return at + (body - bytes);
}

T_UNUSED static void t_guarded_free(void *p, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    if (p) munmap((char *)p + bytes - body, body + page);
}

T_UNUSED static float *t_guarded_f32(size_t n)  /* filled with t_unit() */
{
    float *v = t_guarded(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = t_unit();
    return v;
}

#endif
