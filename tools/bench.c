/* tools/bench.c - tables of `sluice bench` as Markdown, CSV and JSON, and peaks by instruction
 * set. */
#include "tools/bench.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sl_kernels.h"

/* Bytes of text minus characters: what printf's width misses. */
static int utf8_extra(const char *text)
{
    int n = 0;
    for (; *text; text++) n += (*text & 0xc0) == 0x80;
    return n;
}

static void md_cell(const char *text, int width)
{
    int w = width < 0 ? width - utf8_extra(text) : width + utf8_extra(text);
    printf(" %*s |", w, text);
}

static void md_row(bench_table *t, const bench_cell *cells, size_t n)
{
    if (!t->begun) {
        putchar('|');
        for (size_t i = 0; i < n; i++)
            if (cells[i].title) md_cell(cells[i].title, cells[i].width);
        fputs("\n|", stdout);
        for (size_t i = 0; i < n; i++) {
            if (!cells[i].title) continue;
            putchar(' ');
            for (int j = 1; j < abs(cells[i].width); j++) putchar('-');
            fputs(cells[i].width < 0 ? "- |" : ": |", stdout);
        }
        putchar('\n');
    }
    putchar('|');
    for (size_t i = 0; i < n; i++)
        if (cells[i].title) md_cell(cells[i].text, cells[i].width);
    putchar('\n');
}

/* RFC 4180: text in quotes, quotes doubled. */
static void csv_text(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"') putchar('"');
        putchar(*text);
    }
    putchar('"');
}

static void csv_row(bench_table *t, const bench_cell *cells, size_t n)
{
    const char *comma = "";
    for (size_t i = 0; i < n && !t->begun; i++) {
        if (!cells[i].key) continue;
        printf("%s%s", comma, cells[i].key);
        comma = ",";
    }
    if (!t->begun) putchar('\n');
    comma = "";
    for (size_t i = 0; i < n; i++) {
        if (!cells[i].key) continue;
        fputs(comma, stdout);
        comma = ",";
        if (!cells[i].is_number) csv_text(cells[i].text);
        else printf(cells[i].integer ? "%.0f" : "%.9g", cells[i].number);
    }
    putchar('\n');
}

static bool json_row(bench_table *t, const bench_cell *cells, size_t n)
{
    json_t *row = json_object();
    bool bad = !row;
    for (size_t i = 0; i < n && !bad; i++) {
        const bench_cell *c = &cells[i];
        if (!c->key || !c->in_json) continue;
        json_t *v = !c->is_number ? json_string(c->text)
                  : c->integer ? json_integer((json_int_t)c->number) : json_real(c->number);
        bad = json_object_set_new(row, c->key, v) != 0;
    }
    return json_array_append_new(t->rows, row) == 0 && !bad;
}

int bench_row(bench_table *t, const bench_cell *cells, size_t n)
{
    if (t->format == BENCH_JSON) {
        if (!t->rows) t->rows = json_array();
        if (!t->rows || !json_row(t, cells, n)) return cli_fail("out of memory");
        return CLI_DONE;
    }
    if (t->format == BENCH_MD) md_row(t, cells, n);
    else csv_row(t, cells, n);
    t->begun = true;
    return cli_end_stdout(CLI_DONE);    /* rows are seen as they come */
}

int bench_end(bench_table *t, int code)
{
    if (t->format == BENCH_MD && t->begun) puts("\nbuild: sluice " SL_VERSION);
    if (t->format == BENCH_JSON && (t->rows || code == CLI_DONE)) {
        if (!t->rows) t->rows = json_array();
        char *text = json_dumps(t->rows, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        if (text) puts(text);
        else code = cli_fail("the result is no valid JSON, or memory ran out");
        free(text);
    }
    json_decref(t->rows);
    t->rows = NULL;
    if (code != CLI_DONE && ferror(stdout)) return code;    /* a row has said so */
    return cli_end_stdout(code);
}

void bench_add(bench_series *s, double rate, double peak)
{
    if (s->n == BENCH_MAX_SERIES) return;
    s->rate[s->n] = rate;
    s->peak[s->n] = peak;
    s->share[s->n++] = rate / peak;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double bench_median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

int bench_kernel_row(bench_table *t, const bench_kernel *k, bench_series *s)
{
    double rate = bench_median(s->rate, s->n) * 1e-9, peak = bench_median(s->peak, s->n) * 1e-9;
    double share = bench_median(s->share, s->n);
    char text[5][32];
    s->n = 0;
    snprintf(text[0], 32, "%" PRIu32, k->threads);
    snprintf(text[1], 32, "%" PRIu32, k->tokens);
    snprintf(text[2], 32, "%.1f %s", rate, k->unit);
    snprintf(text[3], 32, "%.1f %s", peak, k->unit);
    snprintf(text[4], 32, "%.1f %%", 100 * share);
    const bench_cell cells[] = {
        { .title = "kernel", .key = "kernel", .width = -14, .text = k->kernel, .in_json = true },
        { .title = "type", .key = "type", .width = -8, .text = k->type, .in_json = true },
        { .title = "isa", .key = "isa", .width = -10, .text = k->isa, .in_json = true },
        { .title = "threads", .key = "threads", .width = 7, .text = text[0], .number = k->threads,
          .is_number = true, .integer = true, .in_json = true },
        { .title = "tokens", .key = "tokens", .width = 6, .text = text[1], .number = k->tokens,
          .is_number = true, .integer = true, .in_json = true },
        { .title = "rate", .key = "rate", .width = 14, .text = text[2], .number = rate,
          .is_number = true, .in_json = true },
        { .key = "unit", .text = k->unit, .in_json = true },
        { .title = "peak", .key = "peak", .width = 14, .text = text[3], .number = peak,
          .is_number = true, .in_json = true },
        { .title = "of", .key = "peak_name", .width = -15, .text = k->peak_name, .in_json = true },
        { .title = "share", .key = "share", .width = 8, .text = text[4], .number = share,
          .is_number = true, .in_json = true },
    };
    return bench_row(t, cells, SL_LEN(cells));
}

sl_peak bench_int_peak(unsigned mask, double *ret_factor)
{
    *ret_factor = 1;
    if (mask & SL_CPU_VNNI512) return SL_PEAK_I8_VNNI512;
    if (mask & SL_CPU_AVXVNNI) return SL_PEAK_I8_AVXVNNI;
    if (mask & SL_CPU_AVX512) *ret_factor = 2;
    return SL_PEAK_I8_AVX2;
}

sl_peak bench_float_peak(unsigned mask)
{
    return mask & SL_CPU_AVX512 ? SL_PEAK_F32_AVX512 : SL_PEAK_F32_AVX2;
}
