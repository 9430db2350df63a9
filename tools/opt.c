/* tools/opt.c - options from tables, and the help made from the same tables. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "tools/cli.h"

/* Is the first n bytes of arg one of the comma-separated names? */
static bool has_name(const char *names, const char *arg, size_t n)
{
    for (const char *p = names; *p; ) {
        size_t len = strcspn(p, ",");
        if (len == n && !memcmp(p, arg, n)) return true;
        p += len + (p[len] == ',');
    }
    return false;
}

/* Which of "a|b|c" value is, in any case of letters; -1: none. */
static int find_choice(const char *choices, const char *value)
{
    size_t n = strlen(value);
    int i = 0;
    for (const char *p = choices; *p; i++) {
        size_t len = strcspn(p, "|");
        if (len == n && !strncasecmp(p, value, n)) return i;
        p += len + (p[len] == '|');
    }
    return -1;
}

/* Bytes of s that go on one line: whole words, at most `most`, one word at least. */
static size_t line_of(const char *s, size_t most)
{
    size_t len = strcspn(s, " ");
    for (size_t next; s[len]; len = next) {
        next = len + 1 + strcspn(s + len + 1, " ");
        if (next > most) break;
    }
    return len;
}

/* Columns of the help: the terminal's where it is narrow. */
static size_t columns(void)
{
    struct winsize w;
    if (!isatty(1) || ioctl(1, TIOCGWINSZ, &w) || !w.ws_col) return 100;
    return SL_MAX(SL_MIN(w.ws_col, 100u), 60u);
}

/* Words of a text in lines of their own; an empty line between paragraphs stays one. */
static void print_about(const char *s, size_t most)
{
    size_t column = 0, n;
    for (; *s; s += n) {
        bool paragraph = !strncmp(s, "\n\n", 2);
        s += strspn(s, " \n");
        n = strcspn(s, " \n");
        if (paragraph || (column && column + 1 + n > most)) {
            fputs(paragraph ? "\n\n" : "\n", stdout);
            column = 0;
        }
        column += (size_t)printf("%s%.*s", column ? " " : "", (int)n, s);
    }
    putchar('\n');
}

static void print_option(const cli_option *o, size_t most)
{
    char left[128];
    int n = snprintf(left, sizeof left, "%s", o->names);
    for (char *c = strchr(left, ','); c; c = strchr(c + 2, ',')) {   /* "-a,--b" to "-a, --b" */
        if (strlen(left) + 2 > sizeof left) break;
        memmove(c + 2, c + 1, strlen(c + 1) + 1);
        c[1] = ' ';
    }
    n = (int)strlen(left);
    if (o->arg) snprintf(left + n, sizeof left - (size_t)n, " %s", o->arg);
    if (strlen(left) > 30) printf("  %s\n", left);
    const char *begin = strlen(left) > 30 ? "" : left;
    for (const char *s = o->help; *s; begin = "") {
        size_t len = line_of(s, most - 33);
        printf("  %-30s %.*s\n", begin, (int)len, s);
        s += len + (s[len] == ' ');
    }
}

static void print_help(const cli_spec *spec)
{
    size_t most = columns();
    printf("usage: sluice %s %s\n\n", spec->name, spec->usage);
    print_about(spec->about, most);
    for (size_t g = 0; g < spec->n_groups; g++) {
        printf("\n%s:\n", spec->groups[g].title);
        for (size_t i = 0; i < spec->groups[g].n; i++)
            print_option(&spec->groups[g].options[i], most);
    }
}

int cli_usage_error(const cli_spec *spec, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "sluice %s: ", spec->name);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\nusage: sluice %s %s\n       (sluice %s -h explains)\n", spec->name,
            spec->usage, spec->name);
    va_end(ap);
    return CLI_USAGE;
}

uint64_t cli_random_seed(void)
{
    uint32_t v;
    if (!getentropy(&v, sizeof v)) return v;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint32_t)((uint64_t)t.tv_nsec * 1000003u + (uint64_t)t.tv_sec);
}

/* A whole number in [min, max]. The limits are doubles but exact below 2^53. */
static bool parse_int(const char *s, double min, double max, int64_t *ret)
{
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || end == s || *end || (double)v < min || (double)v > max) return false;
    *ret = v;
    return true;
}

/* Why value does not fit o, into want; an empty text when it was stored. */
static void store(const cli_option *o, void *base, const char *value, char want[160])
{
    void *at = (char *)base + o->offset;
    int64_t i;
    char *end;
    want[0] = 0;
    switch (o->type) {
    case CLI_FLAG:
        *(bool *)at = true;
        return;
    case CLI_STR:
        *(const char **)at = value;
        return;
    case CLI_STRS: {
        cli_strings *list = at;
        if (list->n < CLI_MAX_STRINGS) list->s[list->n++] = value;
        else snprintf(want, 160, "at most %d of them", CLI_MAX_STRINGS);
        return;
    }
    case CLI_U32:
        if (parse_int(value, o->min, o->max, &i)) *(uint32_t *)at = (uint32_t)i;
        else snprintf(want, 160, "a whole number from %.0f to %.0f", o->min, o->max);
        return;
    case CLI_I64:
        if (parse_int(value, o->min, o->max, &i)) *(int64_t *)at = i;
        else snprintf(want, 160, "a whole number from %.0f to %.0f", o->min, o->max);
        return;
    case CLI_SEED: {
        errno = 0;
        unsigned long long v = strtoull(value, &end, 10);
        if (!strcmp(value, "-1")) *(uint64_t *)at = cli_random_seed();
        else if (!errno && end != value && !*end && !strchr(value, '-') && v <= INT64_MAX)
            *(uint64_t *)at = v;    /* JSON has no larger integers */
        else
            snprintf(want, 160, "a whole number up to %" PRId64 ", or -1: a random one", INT64_MAX);
        return;
    }
    case CLI_F32: {
        double v = strtod(value, &end);
        if (end != value && !*end && v >= o->min && v <= o->max) *(float *)at = (float)v;
        else snprintf(want, 160, "a number from %g to %g", o->min, o->max);
        return;
    }
    case CLI_BYTES: {
        uint64_t v;
        sl_ctx *ctx = sl_ctx_create(NULL, NULL);
        if (!strcmp(value, "auto")) *(uint64_t *)at = 0;
        else if (ctx && sl_parse_bytes(ctx, value, &v) == SL_OK && v >= CLI_LEAST_BYTES)
            *(uint64_t *)at = v;
        else snprintf(want, 160, "a size such as 8G or 512M, or auto");
        sl_ctx_destroy(&ctx);
        return;
    }
    case CLI_CHOICE:
        if (find_choice(o->arg, value) >= 0) *(uint32_t *)at = (uint32_t)find_choice(o->arg, value);
        else snprintf(want, 160, "one of %s", o->arg);
        return;
    }
}

/* The option that arg names (up to its '=' if it is a long one), or NULL. */
static const cli_option *find_option(const cli_spec *spec, const char *arg, cli_group **ret_group,
                                     const char **ret_value)
{
    for (size_t g = 0; g < spec->n_groups; g++) {
        cli_group *group = &spec->groups[g];
        for (size_t i = 0; i < group->n; i++) {
            size_t n = strlen(arg);
            const char *eq = !strncmp(arg, "--", 2) ? strchr(arg, '=') : NULL;
            if (has_name(group->options[i].names, arg, n)) eq = NULL;
            else if (!eq || !has_name(group->options[i].names, arg, (size_t)(eq - arg))) continue;
            *ret_group = group;
            *ret_value = eq ? eq + 1 : NULL;
            return &group->options[i];
        }
    }
    return NULL;
}

/* Letters to add, drop, exchange or turn round to make b of a [n]: Damerau's distance between
 * neighbours; SIZE_MAX where a name is too long to be one of ours. */
static size_t distance(const char *a, size_t n, const char *b)
{
    enum { MOST = 32 };
    size_t d[MOST + 1][MOST + 1], m = strlen(b);
    if (n > MOST || m > MOST) return SIZE_MAX;
    for (size_t i = 0; i <= n; i++)
        for (size_t j = 0; j <= m; j++) {
            if (!i || !j) {
                d[i][j] = i + j;
                continue;
            }
            size_t less = SL_MIN(d[i - 1][j], d[i][j - 1]) + 1;
            d[i][j] = SL_MIN(less, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = SL_MIN(d[i][j], d[i - 2][j - 2] + 1);
        }
    return d[n][m];
}

void cli_nearest(const char *typed, const char *names, size_t *best, const char **ret,
                 size_t *ret_n)
{
    for (const char *p = names; *p; ) {
        size_t n = strcspn(p, ","), d = distance(p, n, typed);
        /* a third of the letters: -c is no -t, and --prompt is meant by --promt */
        if (d < *best && 3 * d <= n) *best = d, *ret = p, *ret_n = n;
        p += n + (p[n] == ',');
    }
}

/* What llama.cpp calls it and sluice does otherwise. */
static const char *other_way(const char *name)
{
    static const char *const ways[][2] = {
        { "-ngl,--gpu-layers,--n-gpu-layers,-ot,--override-tensor,-cmoe,--cpu-moe,-ncmoe,"
          "--n-cpu-moe,-fit,--fit,-ts,--tensor-split",
          "what lies where is planned by itself: --ram and --vram limit it" },
        { "-ub,--ubatch-size", "-b is the one size of passes" },
        { "-fa,--flash-attn", "attention is always computed in blocks" },
        { "--mlock,--no-mmap,--mmap,-lm,--load-mode",
          "what fits --ram stays in RAM, the rest is read past the page cache" },
        { "-hf,-hfr,--hf-repo", "models are not downloaded; `sluice plan` wants no file" },
        { "-cnv,--conversation", "`sluice chat` talks" },
    };
    for (size_t i = 0; i < SL_LEN(ways); i++)
        if (has_name(ways[i][0], name, strlen(name))) return ways[i][1];
    return NULL;
}

static int unknown_option(const cli_spec *spec, const char *arg)
{
    char name[64];
    const char *way, *near = NULL;
    size_t best = SIZE_MAX, n = 0;
    snprintf(name, sizeof name, "%.*s", (int)SL_MIN(strcspn(arg, "="), sizeof name - 1), arg);
    way = other_way(name);
    if (way) return cli_usage_error(spec, "unknown option %s: %s", name, way);
    for (size_t g = 0; g < spec->n_groups; g++)
        for (size_t i = 0; i < spec->groups[g].n; i++)
            cli_nearest(name, spec->groups[g].options[i].names, &best, &near, &n);
    if (near) return cli_usage_error(spec, "unknown option %s: is %.*s meant?", arg, (int)n, near);
    return cli_usage_error(spec, "unknown option %s", arg);
}

/* The option as it was typed, and what a letter stands for: "-p (--n-prompt) Once: expected ..." */
static int bad_value(const cli_spec *spec, const cli_option *o, const char *arg, const char *value,
                     const char *want)
{
    const char *more = arg[1] != '-' ? strstr(o->names, ",--") : NULL;
    char name[80] = "";
    if (more) snprintf(name, sizeof name, " (%.*s)", (int)strcspn(more + 1, ","), more + 1);
    return cli_usage_error(spec, "%.*s%s %s: expected %s", (int)strcspn(arg, "="), arg, name,
                           *value ? value : "\"\"", want);
}

bool cli_parse(cli_spec *spec, int argc, char **argv, char **pos, int *ret_n_pos, int *ret_code)
{
    int n_pos = 0;
    bool options = true;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value;
        char want[160];
        cli_group *g;
        if (options && !strcmp(arg, "--")) {
            options = false;
            continue;
        }
        if (!options || arg[0] != '-' || !arg[1]) {     /* "-" alone is a file's name */
            if (n_pos < spec->max_pos) pos[n_pos++] = argv[i];
            else return *ret_code = cli_usage_error(spec, "unexpected \"%s\"", arg), false;
            continue;
        }
        if (!strcmp(arg, "-h") || !strcmp(arg, "--help")) {
            print_help(spec);
            return *ret_code = cli_end_stdout(CLI_DONE), false;
        }
        const cli_option *o = find_option(spec, arg, &g, &value);
        if (!o) return *ret_code = unknown_option(spec, arg), false;
        if (o->type == CLI_FLAG && value)
            return *ret_code = cli_usage_error(spec, "%s takes no value", o->names), false;
        if (o->type != CLI_FLAG && !value && i + 1 >= argc)
            return *ret_code = cli_usage_error(spec, "%s wants a value: %s", arg, o->arg), false;
        if (o->type != CLI_FLAG && !value) value = argv[++i];
        store(o, g->base, value, want);
        if (want[0]) return *ret_code = bad_value(spec, o, arg, value, want), false;
        g->set |= (uint64_t)1 << (o - g->options);
    }
    if (ret_n_pos) *ret_n_pos = n_pos;
    return true;
}

const cli_option *cli_find_option(const cli_group *g, const char *name)
{
    size_t i = 0;
    while (i < g->n && !has_name(g->options[i].names, name, strlen(name))) i++;
    assert(i < g->n);
    return &g->options[i];
}

bool cli_given(const cli_group *g, const char *name)
{
    return g->set >> (cli_find_option(g, name) - g->options) & 1;
}
