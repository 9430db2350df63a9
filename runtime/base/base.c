/* runtime/base/base.c - context, error text, log, memory accounts, byte sizes. */
#include "runtime/base/sl_base.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct sl_ctx {
    sl_log_fn log;
    void *user;
    char error[1024];
    _Atomic int64_t bytes[SL_N_ACCOUNTS];
    _Atomic int64_t peak[SL_N_ACCOUNTS];
    _Atomic int64_t total, total_peak;
    _Atomic uint64_t limit, n_allocs;
};

/* In front of every block, in its own cache line, so that sl_mem_free needs no size. */
struct block_head {
    void *base;
    size_t bytes;
    sl_account acc;
};
#define HEAD_BYTES 64
#define HUGE_PAGE ((size_t)2 << 20)
_Static_assert(sizeof(struct block_head) <= HEAD_BYTES, "block head outgrew its line");

sl_ctx *sl_ctx_create(sl_log_fn log, void *user)
{
    sl_ctx *ctx = calloc(1, sizeof *ctx);
    if (!ctx) return NULL;
    ctx->log = log;
    ctx->user = user;
    return ctx;
}

void sl_ctx_destroy(sl_ctx **ctx)
{
    assert(ctx);
    free(*ctx);
    *ctx = NULL;
}

const char *sl_error(const sl_ctx *ctx)
{
    return ctx->error;
}

const char *sl_status_name(sl_status st)
{
    switch (st) {
    case SL_OK: return "ok";
    case SL_E_ARG: return "bad argument";
    case SL_E_NOMEM: return "out of memory";
    case SL_E_IO: return "input/output error";
    case SL_E_FORMAT: return "bad file format";
    case SL_E_UNSUPPORTED: return "not supported";
    case SL_E_DEVICE: return "device failure";
    }
    return "unknown status";
}

sl_status sl_fail(sl_ctx *ctx, sl_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ctx->error, sizeof ctx->error, fmt, ap);
    va_end(ap);
    return st;
}

void sl_log(sl_ctx *ctx, sl_level level, const char *fmt, ...)
{
    char line[1024];
    if (!ctx->log) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    ctx->log(ctx->user, level, line);
}

static void raise_peak(_Atomic int64_t *peak, int64_t now)
{
    int64_t seen = atomic_load(peak);
    while (seen < now && !atomic_compare_exchange_weak(peak, &seen, now)) { }
}

void sl_mem_charge(sl_ctx *ctx, sl_account acc, int64_t bytes)
{
    assert(acc < SL_N_ACCOUNTS);
    raise_peak(&ctx->peak[acc], atomic_fetch_add(&ctx->bytes[acc], bytes) + bytes);
    if (acc == SL_ACC_MAPPED) return;
    raise_peak(&ctx->total_peak, atomic_fetch_add(&ctx->total, bytes) + bytes);
}

sl_status sl_mem_alloc(sl_ctx *ctx, sl_account acc, size_t bytes, void **ret)
{
    size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : HEAD_BYTES;
    uint64_t want, limit = atomic_load(&ctx->limit);
    if (!sl_add_size(bytes, align + HEAD_BYTES, &want) || want > SIZE_MAX / 2)
        return sl_fail(ctx, SL_E_NOMEM, "%s: %zu bytes overflow", sl_account_name(acc), bytes);
    uint64_t total = (uint64_t)atomic_load(&ctx->total);
    if (limit && (bytes > limit || total > limit - bytes))
        return sl_fail(ctx, SL_E_NOMEM,
                       "%s: %zu bytes wanted, %llu of the budget's %llu bytes in use",
                       sl_account_name(acc), bytes, (unsigned long long)total,
                       (unsigned long long)limit);
    char *base = calloc(1, (size_t)want);
    if (!base)
        return sl_fail(ctx, SL_E_NOMEM, "%s: the system has no %zu bytes", sl_account_name(acc),
                       bytes);
    uintptr_t at = ((uintptr_t)base + HEAD_BYTES + align - 1) / align * align;
    struct block_head *h = (struct block_head *)(at - HEAD_BYTES);
    *h = (struct block_head){ .base = base, .bytes = bytes, .acc = acc };
    /* Streams of keys and weights touch a page every few rows: large pages, where there are any. */
    if (align == HUGE_PAGE) (void)madvise((void *)at, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    sl_mem_charge(ctx, acc, (int64_t)bytes);
    atomic_fetch_add(&ctx->n_allocs, 1);
    *ret = (void *)at;
    return SL_OK;
}

void sl_mem_free(sl_ctx *ctx, void *p)
{
    if (!p) return;
    struct block_head *h = (struct block_head *)((char *)p - HEAD_BYTES);
    sl_mem_charge(ctx, h->acc, -(int64_t)h->bytes);
    free(h->base);
}

void sl_mem_get(const sl_ctx *ctx, sl_mem_report *ret)
{
    for (int a = 0; a < SL_N_ACCOUNTS; a++) {
        ret->bytes[a] = (uint64_t)atomic_load(&ctx->bytes[a]);
        ret->peak[a] = (uint64_t)atomic_load(&ctx->peak[a]);
    }
    ret->total = (uint64_t)atomic_load(&ctx->total);
    ret->total_peak = (uint64_t)atomic_load(&ctx->total_peak);
    ret->limit = atomic_load(&ctx->limit);
    ret->n_allocs = atomic_load(&ctx->n_allocs);
}

void sl_mem_set_limit(sl_ctx *ctx, uint64_t bytes)
{
    atomic_store(&ctx->limit, bytes);
}

const char *sl_account_name(sl_account acc)
{
    static const char *const names[SL_N_ACCOUNTS] = {
        "dense", "kv", "slots", "scratch", "tables", "mapped",
    };
    assert(acc < SL_N_ACCOUNTS);
    return names[acc];
}

sl_status sl_parse_bytes(sl_ctx *ctx, const char *text, uint64_t *ret_bytes)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    unsigned shift = 0;
    const char *u = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (u) shift = 10 * (unsigned)(u - units + 1), end++;
    if (u && (*end == 'i' || *end == 'I')) end++;
    if (*end == 'B' || *end == 'b') end++;
    double bytes = v * (double)((uint64_t)1 << shift);
    /* Digits only in front: strtod would take "nan", "inf" and hexadecimal. */
    if (!isdigit((unsigned char)text[0]) || errno || *end || !(bytes < 1e18)
        || strpbrk(text, "xXpP"))
        return sl_fail(ctx, SL_E_ARG, "\"%s\" is no size: expected a number, then K, M, G or T",
                       text);
    *ret_bytes = (uint64_t)bytes;
    return SL_OK;
}
