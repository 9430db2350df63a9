/* runtime/base/sl_base.h - what every folder stands on: status codes, the context with its error
 * text, log callback and memory accounts, checked size arithmetic.
 * Owns nothing beyond the context. Must not know another folder, print, exit or read the
 * environment.
 * Threads: one thread per context; the memory accounts alone may be used by any thread.
 * Units: bytes. Tested by tests/t_base.c. */
#ifndef SL_BASE_H
#define SL_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __GNUC__
#define SL_API __attribute__((visibility("default")))
#define SL_NODISCARD __attribute__((warn_unused_result))
#define SL_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define SL_API
#define SL_NODISCARD
#define SL_PRINTF(f, a)
#endif

#define SL_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define SL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define SL_MAX(a, b) ((a) > (b) ? (a) : (b))

typedef enum sl_status {
    SL_OK = 0,
    SL_E_ARG = -1,          /* the caller broke the contract: fix the call */
    SL_E_NOMEM = -2,        /* the arena or the budget is exhausted */
    SL_E_IO = -3,           /* a read failed or came short */
    SL_E_FORMAT = -4,       /* a file is not what its header says */
    SL_E_UNSUPPORTED = -5,  /* not built in, or not on this machine */
    SL_E_DEVICE = -6,       /* a device call failed: drop the context */
} sl_status;

typedef enum sl_level { SL_ERROR, SL_WARN, SL_INFO, SL_DEBUG } sl_level;
/* no newline; NULL: silent */
typedef void (*sl_log_fn)(void *user, sl_level level, const char *msg);

/* Of work that takes a while; done never falls. */
typedef void (*sl_progress_fn)(void *user, uint64_t done_bytes, uint64_t all_bytes);

/* Where memory goes. Every allocation above 1 MiB belongs to one of these; the sum is what a RAM
 * budget limits. */
typedef enum sl_account {
    SL_ACC_DENSE,    /* weights every token needs, where they were read or converted */
    SL_ACC_KV,       /* paged keys and values */
    SL_ACC_SLOTS,    /* expert slots and ring sections */
    SL_ACC_SCRATCH,  /* activations, logits, per-thread buffers */
    SL_ACC_TABLES,   /* headers, vocabularies, layer tables */
    SL_ACC_MAPPED,   /* file bytes that are mapped, not copied */
    SL_N_ACCOUNTS
} sl_account;

typedef struct sl_ctx sl_ctx;

/* log may be NULL (silent). Returns NULL only when memory is exhausted. */
SL_API sl_ctx *sl_ctx_create(sl_log_fn log, void *user);
SL_API void sl_ctx_destroy(sl_ctx **ctx);   /* *ctx may be NULL, and is NULL afterwards */

SL_API const char *sl_error(const sl_ctx *ctx);   /* last failure in one line, never NULL */
SL_API const char *sl_status_name(sl_status st);  /* "bad argument", "out of memory", ... */

/* Keep the message in ctx and return st: `return sl_fail(ctx, SL_E_IO, "read %s: ...", path)`. */
SL_API sl_status sl_fail(sl_ctx *ctx, sl_status st, const char *fmt, ...) SL_PRINTF(3, 4);
SL_API void sl_log(sl_ctx *ctx, sl_level level, const char *fmt, ...) SL_PRINTF(3, 4);
#define SL_TRY(call) do { sl_status s_ = (call); if (s_ != SL_OK) return s_; } while (0)

/* Zeroed memory, aligned to 64 bytes (2 MiB from 2 MiB on, so that huge pages can back it), charged
 * to an account. Errors: SL_E_NOMEM (the allocator, or the limit of sl_mem_set_limit). */
SL_API SL_NODISCARD sl_status sl_mem_alloc(sl_ctx *ctx, sl_account acc, size_t bytes, void **ret);
SL_API void sl_mem_free(sl_ctx *ctx, void *p);    /* NULL is fine */
/* Charge or release bytes that another call allocated (mapped files: pass a negative count). */
SL_API void sl_mem_charge(sl_ctx *ctx, sl_account acc, int64_t bytes);

typedef struct sl_mem_report {
    uint64_t bytes[SL_N_ACCOUNTS];  /* now */
    uint64_t peak[SL_N_ACCOUNTS];
    uint64_t total, total_peak;     /* all accounts but SL_ACC_MAPPED */
    uint64_t limit;                 /* 0: none */
    /* calls of sl_mem_alloc so far: a test proves that steps make none */
    uint64_t n_allocs;
} sl_mem_report;
SL_API void sl_mem_get(const sl_ctx *ctx, sl_mem_report *ret);
SL_API void sl_mem_set_limit(sl_ctx *ctx, uint64_t bytes);  /* 0: none */
SL_API const char *sl_account_name(sl_account acc);         /* "dense", "kv", ... */

/* Checked size arithmetic: false on overflow, and *ret is then untouched. */
static inline bool sl_mul_size(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}

static inline bool sl_add_size(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}

/* "8G", "512M", "1.5K" (powers of 2), "123" (bytes). SL_E_ARG with a message otherwise. */
SL_API SL_NODISCARD sl_status sl_parse_bytes(sl_ctx *ctx, const char *text, uint64_t *ret_bytes);

#endif
