/* tools/device_flag.c - text to sl_accel. */
#include "tools/device_flag.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define EMU_RATE 8e9            /* bytes/s of an emulated link that is not told: PCIe 3 x8 */
#define EMU_LATENCY 10e-6

/* A number with K, M or G, of powers of `base`. */
static bool parse_scaled(const char *s, double base, double *ret)
{
    static const char suffixes[] = "KMGT";
    char *end;
    double v = strtod(s, &end);
    if (end == s || !(v >= 0)) return false;
    if (*end) {
        const char *at = strchr(suffixes, *end >= 'a' ? *end - 'a' + 'A' : *end);
        if (!at || end[1]) return false;
        for (const char *p = suffixes; p <= at; p++) v *= base;
    }
    *ret = v;
    return true;
}

static bool parse_seconds(const char *s, double *ret)
{
    static const struct { const char *unit; double a_second; } units[] = {
        { "us", 1e6 }, { "ms", 1e3 }, { "s", 1 },
    };
    char *end;
    double v = strtod(s, &end);
    for (size_t i = 0; end != s && v >= 0 && i < SL_LEN(units); i++)
        if (!strcmp(end, units[i].unit)) {
            *ret = v / units[i].a_second;
            return true;
        }
    return false;
}

/* One "name=value" of an emulated device. */
static bool take_setting(char *text, sl_accel *a)
{
    char *value = strchr(text, '=');
    double v;
    if (!value) return false;
    *value++ = 0;
    if (!strcmp(text, "lat")) return parse_seconds(value, &a->link_s) && a->link_s <= 1;
    bool bytes = !strcmp(text, "mem");
    if (!parse_scaled(value, bytes ? 1024 : 1000, &v) || v > 1e15) return false;
    if (bytes) a->mem_bytes = (uint64_t)v;
    else if (!strcmp(text, "h2d")) a->up_bytes_s = v;
    else if (!strcmp(text, "d2h")) a->down_bytes_s = v;
    else if (!strcmp(text, "cores") && v >= 1 && v <= 64) a->n_cores = (uint32_t)v;
    else return false;
    return !bytes || a->mem_bytes > 0;
}

static bool parse_emu(const char *settings, sl_accel *a)
{
    char text[160], *save = NULL;
    if (strlen(settings) >= sizeof text) return false;
    strcpy(text, settings);
    for (char *s = strtok_r(text, ",", &save); s; s = strtok_r(NULL, ",", &save))
        if (!take_setting(s, a)) return false;
    return true;
}

bool cli_parse_device(const char *text, sl_accel *ret, char why[160])
{
    sl_accel a = { .kind = SL_ACCEL_NONE };
    char *end;
    if (!text || !strcasecmp(text, "auto") || !strcasecmp(text, "cpu")) {
        *ret = a;
        return true;
    }
    if (!strncmp(text, "emu", 3) && (!text[3] || text[3] == ':')) {
        a = (sl_accel){ .kind = SL_ACCEL_EMU, .n_cores = 1, .up_bytes_s = EMU_RATE,
                        .down_bytes_s = EMU_RATE, .link_s = EMU_LATENCY };
        if (!text[3] || parse_emu(text + 4, &a)) {
            *ret = a;
            return true;
        }
    } else if (!strncmp(text, "cuda", 4) && (!text[4] || text[4] == ':')) {
        unsigned long n = text[4] ? strtoul(text + 5, &end, 10) : 0;
        if (!text[4] || (text[5] >= '0' && text[5] <= '9' && !*end && n < 64)) {
            *ret = (sl_accel){ .kind = SL_ACCEL_CUDA, .index = (uint32_t)n };
            return true;
        }
    }
    snprintf(why, 160, "--device %.40s: expected auto, cpu, cuda:N or "
                       "emu:mem=512M,h2d=2G,d2h=2G,lat=10us,cores=1", text);
    return false;
}
