/* tools/bench_disk.c - rates of disk and DRAM, measured in turn with what `sluice bench` times
 * where weights are streamed. */
#include "tools/bench.h"

#define VISIT_S 0.3             /* all depths together */
#define ROOM ((uint64_t)32 << 20)

void bench_disk_init(bench_disk *d, const sl_shape *shape)
{
    uint32_t most = 1;
    *d = (bench_disk){ .ctx = NULL };
    for (uint32_t l = 0; l < shape->n_layer; l++) {
        d->bytes = SL_MAX(d->bytes, shape->layers[l].expert_bytes / 3);
        most = SL_MAX(most, shape->layers[l].n_used);
    }
    d->room = SL_MIN(ROOM, 3 * most * sl_shape_room(d->bytes));
    for (uint32_t e = 1; d->n < BENCH_DISK_DEPTHS; e = SL_MIN(2 * e, most)) {
        d->depth[d->n++] = 3 * e;
        if (e == most || 3 * e * d->bytes > d->room) break;
    }
}

int bench_disk_open(bench_disk *d, const char *path, bool verbose)
{
    d->ctx = cli_ctx(verbose);
    if (!d->ctx) return CLI_FAILED;
    if (sl_probe_disk_open(d->ctx, path, d->room, &d->reader) != SL_OK)
        return cli_fail_ctx(d->ctx);
    return CLI_DONE;
}

void bench_disk_close(bench_disk *d)
{
    sl_probe_disk_close(&d->reader);
    sl_ctx_destroy(&d->ctx);
}

int bench_disk_visit(bench_disk *d)
{
    if (d->visits == BENCH_DISK_VISITS) return CLI_DONE;
    for (uint32_t i = 0; i < d->n; i++)
        if (sl_probe_disk_rate(d->reader, d->bytes, d->depth[i], VISIT_S / d->n,
                               &d->rate[i][d->visits]) != SL_OK)
            return cli_fail_ctx(d->ctx);
    d->visits++;
    return CLI_DONE;
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
