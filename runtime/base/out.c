/* runtime/base/out.c - a file under a temporary name, renamed when it is whole. */
#include "runtime/base/sl_out.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

sl_status sl_out_open(sl_ctx *ctx, const char *path, sl_out *ret)
{
    assert(ctx && path && ret);
    struct stat s;
    bool there = !stat(path, &s);
    sl_out o = { .path = there && S_ISREG(s.st_mode) ? realpath(path, NULL) : strdup(path) };
    /* the process in the name: two that write one file do not write into each other */
    if (!o.path || ((!there || S_ISREG(s.st_mode))
                    && asprintf(&o.part, "%s.part%ld", o.path, (long)getpid()) < 0)) {
        free(o.path);
        return sl_fail(ctx, SL_E_NOMEM, "name of %s", path);
    }
    int fd = open(o.part ? o.part : o.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    o.file = fd < 0 ? NULL : fdopen(fd, "wb");
    if (o.file) {
        *ret = o;
        return SL_OK;
    }
    sl_status st = sl_fail(ctx, SL_E_IO, "write %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    if (fd >= 0 && o.part) unlink(o.part);
    free(o.part);
    free(o.path);
    return st;
}

sl_status sl_out_close(sl_ctx *ctx, sl_out *o, sl_status st)
{
    int err = 0;
    errno = 0;
    if (fflush(o->file) || ferror(o->file)) err = errno ? errno : EIO;
    if (fclose(o->file) && !err) err = errno;
    if (st == SL_OK && !err && o->part && rename(o->part, o->path)) err = errno;
    if (st == SL_OK && err)
        st = sl_fail(ctx, SL_E_IO, "write %s: %s", o->path, strerror(err));
    if (st != SL_OK && o->part) unlink(o->part);
    free(o->part);
    free(o->path);
    *o = (sl_out){ .file = NULL };
    return st;
}
