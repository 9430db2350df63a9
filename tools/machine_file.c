/* tools/machine_file.c - the kept machine file. */
#include "tools/machine_file.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "offload/sl_probe.h"
#include "perfmodel/sl_forecast.h"

/* malloc'ed; NULL: no place, or no memory. */
static char *kept_path(void)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int n = -1;
    if (cache && cache[0] == '/') n = asprintf(&path, "%s/sluice/machine.json", cache);
    else if (home && home[0]) n = asprintf(&path, "%s/.cache/sluice/machine.json", home);
    return n < 0 ? NULL : path;
}

char *cli_machine_path(void)
{
    char *path = kept_path();
    if (!path) cli_fail("neither XDG_CACHE_HOME nor HOME is set: no place for machine.json");
    return path;
}

sl_status cli_make_parents(sl_ctx *ctx, const char *path)
{
    char *p = strdup(path);
    if (!p) return sl_fail(ctx, SL_E_NOMEM, "folders of %s", path);
    sl_status st = SL_OK;
    for (char *s = p + 1; st == SL_OK && (s = strchr(s, '/')); s++) {
        *s = 0;
        if (mkdir(p, 0777) && errno != EEXIST)
            st = sl_fail(ctx, SL_E_IO, "folder %s: %s", p, strerror(errno));
        *s = '/';
    }
    free(p);
    return st;
}

static const char ending[] = ".json";

static int is_machine(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    return n > sizeof ending - 1 && !strcmp(e->d_name + n - (sizeof ending - 1), ending);
}

/* Files of the described machines, sorted; *ret_n of them. NULL: none, or no memory. */
static struct dirent **shipped(int *ret_n)
{
    char *folder = cli_shipped("machines");
    struct dirent **e = NULL;
    int n = folder ? scandir(folder, &e, is_machine, alphasort) : 0;
    *ret_n = SL_MAX(n, 0);
    free(folder);
    return e;
}

/* "one of desktop-64gb, ...", as much of it as there is room for */
static const char *shipped_names(char *buf, size_t size)
{
    size_t at = 0;
    int n;
    struct dirent **e = shipped(&n);
    snprintf(buf, size, "a file (no described machines are installed)");
    for (int i = 0; i < n; i++) {
        int len = (int)strlen(e[i]->d_name) - (int)(sizeof ending - 1);
        if (at < size)
            at += (size_t)snprintf(buf + at, size - at, "%s%.*s", i ? ", " : "a file, or one of ",
                                   len, e[i]->d_name);
        free(e[i]);
    }
    free(e);
    return buf;
}

/* The path of what the user calls a machine; malloc'ed. NULL: said. */
static char *machine_path(const char *name)
{
    char *rest = NULL, *path = NULL, names[1024];
    if (strchr(name, '/') || !access(name, F_OK)) {
        path = strdup(name);
        if (!path) cli_fail("out of memory");
        return path;
    }
    if (asprintf(&rest, "machines/%s%s", name, ending) > 0) path = cli_shipped(rest);
    free(rest);
    if (!path)
        cli_fail("machine %s: there is no such file or described machine; expected %s", name,
                 shipped_names(names, sizeof names));
    return path;
}

int cli_machine_load(sl_ctx *ctx, const char *name, sl_machine *ret)
{
    char *path = machine_path(name);
    if (!path) return CLI_FAILED;
    sl_status st = sl_machine_load(ctx, path, ret);
    free(path);
    return st == SL_OK ? CLI_DONE : cli_fail_ctx(ctx);
}

/* That card into m, if the described machine has it. */
static bool take_card(sl_ctx *ctx, const char *file, const sl_accel *a, sl_machine *m)
{
    char *rest = NULL, *path = asprintf(&rest, "machines/%s", file) > 0 ? cli_shipped(rest) : NULL;
    sl_machine other;
    sl_machine_gpu card;
    bool found = path && sl_machine_load(ctx, path, &other) == SL_OK
              && sl_forecast_gpu(&other, a, &card);
    if (found) m->gpu[m->n_gpus++] = card;
    free(rest);
    free(path);
    return found;
}

bool cli_machine_card(sl_ctx *ctx, const sl_accel *a, sl_machine *m)
{
    sl_machine_gpu card;
    if (!a->kind || sl_forecast_gpu(m, a, &card)) return true;
    int n = 0;
    bool found = false;
    struct dirent **e = a->name[0] && m->n_gpus < SL_MACHINE_GPUS ? shipped(&n) : NULL;
    for (int i = 0; i < n; i++) {
        found = found || take_card(ctx, e[i]->d_name, a, m);
        free(e[i]);
    }
    free(e);
    if (found) return true;
    cli_note("no forecast: nobody described the card %s", a->name);
    return false;
}

static int given(sl_ctx *ctx, const char *name, const sl_machine_id *now, sl_machine *ret,
                 bool *file_fits)
{
    char why[200];
    int code = cli_machine_load(ctx, name, ret);
    if (code != CLI_DONE) return code;
    bool fits = sl_machine_same(&ret->id, now, why);
    if (file_fits) *file_fits = fits;
    else if (!fits) cli_warn("%s describes another machine: %s", name, why);
    return CLI_DONE;
}

bool cli_machine_kept(sl_ctx *ctx, sl_machine *ret)
{
    sl_machine_id now;
    char why[200], *path = kept_path();
    bool good = path && !access(path, F_OK) && sl_machine_load(ctx, path, ret) == SL_OK
             && sl_probe_identify(ctx, &now) == SL_OK && sl_machine_same(&ret->id, &now, why);
    free(path);
    return good;
}

int cli_machine(sl_ctx *ctx, const char *name, sl_machine *ret, bool *file_fits)
{
    sl_machine_id now;
    char why[200] = "";
    if (sl_probe_identify(ctx, &now) != SL_OK) return cli_fail_ctx(ctx);
    if (name) return given(ctx, name, &now, ret, file_fits);
    if (file_fits) *file_fits = true;
    char *path = cli_machine_path();
    if (!path) return CLI_FAILED;
    bool there = !access(path, F_OK), good = there && sl_machine_load(ctx, path, ret) == SL_OK;
    if (good && sl_machine_same(&ret->id, &now, why)) {
        free(path);
        return CLI_DONE;
    }
    if (good) cli_note("%s is stale: %s", path, why);
    else if (there) cli_note("%s", sl_error(ctx));
    free(path);
    cli_note(
        "measuring this machine for 2 s; `sluice probe` does it thoroughly and keeps the result");
    if (sl_probe_run(ctx, &(sl_probe_params){ .quick = true }, ret) != SL_OK)
        return cli_fail_ctx(ctx);
    return CLI_DONE;
}
