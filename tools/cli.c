/* tools/cli.c - what the commands share besides options: lines on stderr, files, Ctrl-C, clocks. */
#include "tools/cli.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* The one name of the bundled model's file, under a folder of models. */
#define BUNDLED_NAME "sluice-bard-q8_0.gguf"

static void say(const char *prefix, const char *fmt, va_list ap)
{
    fflush(stdout);     /* on a terminal the text comes before what is said about it */
    fputs(prefix, stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

void cli_note(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("sluice: ", fmt, ap);
    va_end(ap);
}

void cli_warn(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("sluice: warning: ", fmt, ap);
    va_end(ap);
}

int cli_fail(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("sluice: ", fmt, ap);
    va_end(ap);
    return CLI_FAILED;
}

int cli_fail_ctx(const sl_ctx *ctx)
{
    return cli_fail("%s", sl_error(ctx));
}

static void log_all(void *user, sl_level level, const char *msg)
{
    (void)user;
    if (level == SL_WARN) cli_warn("%s", msg);
    else cli_note("%s", msg);
}

static void log_quiet(void *user, sl_level level, const char *msg)
{
    if (level <= SL_WARN) log_all(user, level, msg);
}

sl_ctx *cli_ctx(bool verbose)
{
    sl_ctx *ctx = sl_ctx_create(verbose ? log_all : log_quiet, NULL);
    if (!ctx) cli_fail("out of memory");
    return ctx;
}

char *cli_bytes(uint64_t bytes, char buf[24])
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024 && u + 1 < SL_LEN(units)) v /= 1024, u++;
    snprintf(buf, 24, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return buf;
}

int cli_end_stdout(int code)
{
    errno = 0;
    if (!fflush(stdout) && !ferror(stdout)) return code;
    return cli_fail("writing to stdout: %s", errno ? strerror(errno) : "not all of it was written");
}

char *cli_shipped(const char *rest)
{
    static const char *const beside[] = {   /* seen from the executable's folder */
        "",                         /* unpacked side by side */
        "../../",                   /* build/tools of the source tree */
        "../share/sluice/",         /* installed under any prefix */
    };
    static const char *const fixed[] = { SL_DATA_DIR, SL_SOURCE_DIR };
    char exe[PATH_MAX], *path = NULL;
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    char *slash = n > 0 ? memrchr(exe, '/', (size_t)n) : NULL;
    for (size_t i = 0; i < SL_LEN(beside) + SL_LEN(fixed); i++) {
        size_t k = i - SL_LEN(beside);
        if (i < SL_LEN(beside) && !slash) continue;
        int len = i < SL_LEN(beside)
                ? asprintf(&path, "%.*s/%s%s", (int)(slash - exe), exe, beside[i], rest)
                : asprintf(&path, "%s/%s", fixed[k], rest);
        if (len < 0) return NULL;
        if (!access(path, R_OK)) return path;
        free(path);
    }
    return NULL;
}

/* The bundled model's path, malloc'ed; NULL: it was not found, and one line said where it was
 * looked for. */
static char *bundled_model(void)
{
    char *path = cli_shipped("models/" BUNDLED_NAME);
    if (!path)
        cli_fail("the bundled model %s is neither beside the program nor in %s/models nor in "
                 "%s/models: give a model with -m FILE", BUNDLED_NAME, SL_DATA_DIR, SL_SOURCE_DIR);
    return path;
}

char *cli_model_path(const char *model)
{
    if (!model) return bundled_model();
    char *path = strdup(model);
    if (!path) cli_fail("out of memory");
    return path;
}

sl_status cli_read_file(sl_ctx *ctx, const char *path, char **ret_text, size_t *ret_n)
{
    bool is_stdin = !strcmp(path, "-");
    FILE *in = is_stdin ? stdin : fopen(path, "rb");
    if (!in) return sl_fail(ctx, SL_E_IO, "open %s: %s", path, strerror(errno));
    size_t n = 0, cap = 1 << 16;
    char *text = malloc(cap);
    while (text) {
        size_t got = fread(text + n, 1, cap - 1 - n, in);
        n += got;
        if (!got) break;
        if (cap - 1 - n) continue;
        char *more = realloc(text, cap *= 2);
        if (!more) free(text);
        text = more;
    }
    sl_status st = SL_OK;
    if (!text) st = sl_fail(ctx, SL_E_NOMEM, "reading %s: %zu bytes and no room for more", path, n);
    else if (ferror(in)) st = sl_fail(ctx, SL_E_IO, "read %s: %s", path, strerror(errno));
    if (!is_stdin) fclose(in);
    if (st != SL_OK) {
        free(text);
        return st;
    }
    text[n] = 0;
    *ret_text = text;
    *ret_n = n;
    return SL_OK;
}

/* A handler can reach nothing but a global: the only one of the program that changes. */
static volatile sig_atomic_t interrupted;

static void on_sigint(int sig)
{
    (void)sig;
    interrupted = 1;
}

void cli_catch_sigint(void)
{
    interrupted = 0;
    struct sigaction a = { .sa_handler = on_sigint, .sa_flags = SA_RESETHAND };
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
}

bool cli_interrupted(void)
{
    return interrupted;
}

bool cli_wait_stdin(void)
{
    /* ppoll lets the signal in and waits in one step: none is lost between a look at the flag and a
     * read that blocks. The library's threads block every signal. */
    sigset_t block, before;
    struct pollfd in = { .fd = 0, .events = POLLIN };
    sigemptyset(&block);
    sigaddset(&block, SIGINT);
    pthread_sigmask(SIG_BLOCK, &block, &before);
    if (!interrupted) ppoll(&in, 1, NULL, &before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return !interrupted;
}

uint64_t cli_peak_rss(void)
{
    struct rusage u;
    if (getrusage(RUSAGE_SELF, &u)) return 0;
    return (uint64_t)u.ru_maxrss * 1024;    /* Linux counts KiB */
}

double cli_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
