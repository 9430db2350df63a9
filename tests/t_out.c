/* tests/t_out.c - files that are there whole or not at all; devices, pipes and links. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include "runtime/base/sl_out.h"
#include "tests/t.h"

static char dir[] = "/tmp/sl_out_XXXXXX";

static const char *name(const char *file)
{
    static char path[4][64];
    static int i;
    char *p = path[i++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, file);
    return p;
}

static bool holds(const char *path, const char *text)
{
    char got[64] = "";
    FILE *in = fopen(path, "r");
    if (in) {
        got[fread(got, 1, sizeof got - 1, in)] = 0;
        fclose(in);
    }
    return in && !strcmp(got, text);
}

static void put(sl_ctx *ctx, const char *path, const char *text, sl_status st)
{
    sl_out o;
    struct stat before, during;
    bool there = !stat(path, &before);
    T_NEED(sl_out_open(ctx, path, &o) == SL_OK, "%s", sl_error(ctx));
    fputs(text, o.file);
    T_CHECK(!fflush(o.file) && there == !stat(path, &during), "%s changed too early", path);
    if (there) T_CHECK(during.st_size == before.st_size, "%s changed too early", path);
    T_CHECK(sl_out_close(ctx, &o, st) == st && !o.file, "%s", sl_error(ctx));
}

int main(void)
{
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_out o;
    struct stat s;
    T_NEED(ctx && mkdtemp(dir), "no context or no folder");

    put(ctx, name("a"), "dropped", SL_E_FORMAT);
    T_CHECK(access(name("a"), F_OK), "a dropped file is there");
    put(ctx, name("a"), "one", SL_OK);
    put(ctx, name("a"), "nothing", SL_E_NOMEM);
    T_CHECK(holds(name("a"), "one"), "the old file is gone");
    umask(027);
    put(ctx, name("a"), "two", SL_OK);
    T_CHECK(holds(name("a"), "two") && !stat(name("a"), &s) && (s.st_mode & 0777) == 0640,
            "mode %o", s.st_mode & 0777);

    T_NEED(!symlink("a", name("link")), "symlink");
    put(ctx, name("link"), "three", SL_OK);
    T_CHECK(!lstat(name("link"), &s) && S_ISLNK(s.st_mode) && holds(name("a"), "three"),
            "the link was replaced");

    /* a device or pipe stays what it is: a rename would take it from every program */
    int fd = -1;
    T_NEED(!mkfifo(name("pipe"), 0666) && (fd = open(name("pipe"), O_RDONLY | O_NONBLOCK)) >= 0,
           "mkfifo");
    T_NEED(sl_out_open(ctx, name("pipe"), &o) == SL_OK && !o.part, "%s", sl_error(ctx));
    fputs("four", o.file);
    T_CHECK(sl_out_close(ctx, &o, SL_OK) == SL_OK, "%s", sl_error(ctx));
    char got[8] = "";
    T_CHECK(read(fd, got, sizeof got) == 4 && !strcmp(got, "four"), "\"%s\"", got);
    T_CHECK(!lstat(name("pipe"), &s) && S_ISFIFO(s.st_mode), "the pipe was replaced");
    close(fd);
    T_NEED(sl_out_open(ctx, "/dev/full", &o) == SL_OK, "%s", sl_error(ctx));
    fputs("five", o.file);
    T_CHECK(sl_out_close(ctx, &o, SL_OK) == SL_E_IO && strstr(sl_error(ctx), strerror(ENOSPC)),
            "%s", sl_error(ctx));
    T_CHECK(!stat("/dev/full", &s) && S_ISCHR(s.st_mode), "/dev/full was replaced");

    T_CHECK(sl_out_open(ctx, dir, &o) == SL_E_IO && strstr(sl_error(ctx), dir), "a folder");
    T_CHECK(sl_out_open(ctx, name("no/where"), &o) == SL_E_IO && strstr(sl_error(ctx), "no/where"),
            "%s", sl_error(ctx));
    remove(name("pipe"));
    remove(name("link"));
    remove(name("a"));
    T_CHECK(!rmdir(dir), "a temporary file is left in %s: %s", dir, strerror(errno));
    sl_ctx_destroy(&ctx);
    return t_end();
}
