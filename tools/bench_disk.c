/* tools/bench_disk.c - rates of disk and DRAM, measured in turn with what `sluice bench` times
 * where weights are streamed. */
#include "tools/bench.h"

#define VISIT_S 0.3             /* all depths together */
/* More than caches hold: experts do not land in a cache either. */
#define ROOM ((uint64_t)256 << 20)

void bench_disk_init(bench_disk *d, const sl_shape *shape)
{
    uint32_t most = 1;
    *d = (bench_disk){ .n = 0 };
    for (uint32_t l = 0; l < shape->n_layer; l++) {
        d->bytes = SL_MAX(d->bytes, shape->layers[l].expert_bytes / 3);
        most = SL_MAX(most, shape->layers[l].n_used);
    }
    d->room = SL_MAX(ROOM, 6 * sl_shape_room(d->bytes));
    for (uint32_t e = 1; d->n < BENCH_DISK_DEPTHS; e = SL_MIN(2 * e, most)) {
        d->depth[d->n++] = 3 * e;
        if (e == most || 6 * e * d->bytes > d->room) break;
    }
}

static int visit(bench_disk *d, sl_ctx *ctx, sl_probe_disk_reader *reader)
{
    for (uint32_t i = 0; i < d->n; i++)
        if (sl_probe_disk_rate(reader, d->bytes, d->depth[i], VISIT_S / d->n,
                               &d->rate[i][d->visits]) != SL_OK)
            return cli_fail_ctx(ctx);
    d->visits++;
    return CLI_DONE;
}

int bench_disk_visit(bench_disk *d, const char *path, bool verbose)
{
    sl_probe_disk_reader *reader = NULL;
    if (d->visits == BENCH_DISK_VISITS) return CLI_DONE;
    sl_ctx *ctx = cli_ctx(verbose);
    if (!ctx) return CLI_FAILED;
    int code = sl_probe_disk_open(ctx, path, d->room, &reader) == SL_OK ? visit(d, ctx, reader)
                                                                        : cli_fail_ctx(ctx);
    sl_probe_disk_close(&reader);
    sl_ctx_destroy(&ctx);
    return code;
}

void bench_disk_take(bench_disk *d, sl_machine_disk *ret)
{
    sl_machine_curve *c = &ret->curve[0];
    ret->n_curves = 1;
    c->bytes = (uint32_t)SL_MIN(d->bytes, (uint64_t)SL_MACHINE_MAX_READ);
    c->n = d->n;
    for (uint32_t i = 0; i < d->n; i++)
        c->at[i] = (sl_machine_disk_point){ d->depth[i], bench_median(d->rate[i], d->visits) };
    d->visits = 0;
}

double bench_dram(uint32_t threads, bool verbose)
{
    enum { MOST = 64 };
    double rate[MOST], end;
    uint32_t n = 0;
    sl_probe_reader *r = NULL;
    sl_ctx *ctx = cli_ctx(verbose);
    if (!ctx) return 0;
    if (sl_probe_reader_create(ctx, threads, &r) != SL_OK) {
        cli_fail_ctx(ctx);
    } else {
        end = cli_now_s() + VISIT_S;
        do rate[n++] = sl_probe_read(r);
        while (n < MOST && cli_now_s() < end);
    }
    sl_probe_reader_destroy(&r);
    sl_ctx_destroy(&ctx);
    return n ? bench_median(rate, n) : 0;
}
