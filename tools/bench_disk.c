/* tools/bench_disk.c - rates of disk and DRAM, alone and together, measured in turn with what
 * `sluice bench` times where weights are streamed. */
#include <pthread.h>
#include <stdatomic.h>

#include "tools/bench.h"

#define VISIT_S 0.3             /* all depths together; DRAM; both */
/* More than caches hold: experts do not land in a cache either. */
#define ROOM ((uint64_t)128 << 20)

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

/* Reads at the deepest queue until told to end, beside those of DRAM. */
struct beside {
    sl_probe_disk_reader *reader;
    uint64_t bytes;
    uint32_t depth;
    atomic_bool end;
    double rate;                /* the mean of all that ran whole */
    sl_status status;
};

static void *read_beside(void *user)
{
    struct beside *b = user;
    double sum = 0, rate;
    uint32_t n = 0;
    do {
        b->status = sl_probe_disk_rate(b->reader, b->bytes, b->depth, VISIT_S / 4, &rate);
        sum += rate;
        n++;
    } while (b->status == SL_OK && !atomic_load(&b->end));
    b->rate = sum / n;
    return NULL;
}

/* Bytes/s of DRAM, the median of so many seconds. */
static double read_dram(sl_probe_reader *dram, double seconds)
{
    enum { MOST = 256 };
    double rate[MOST], end = cli_now_s() + seconds;
    uint32_t n = 0;
    do rate[n++] = sl_probe_read(dram);
    while (n < MOST && cli_now_s() < end);
    return bench_median(rate, n);
}

static sl_status visit(bench_disk *d, sl_probe_disk_reader *reader, sl_probe_reader *dram)
{
    for (uint32_t i = 0; i < d->n; i++)
        SL_TRY(sl_probe_disk_rate(reader, d->bytes, d->depth[i], VISIT_S / d->n,
                                  &d->rate[i][d->visits]));
    d->dram[d->visits] = read_dram(dram, VISIT_S);
    struct beside b = { .reader = reader, .bytes = d->bytes, .depth = d->depth[d->n - 1] };
    pthread_t thread;
    if (pthread_create(&thread, NULL, read_beside, &b)) return SL_E_DEVICE;
    double both = read_dram(dram, VISIT_S);
    atomic_store(&b.end, true);
    pthread_join(thread, NULL);
    d->cpu_keeps[d->visits] = SL_MIN(both / d->dram[d->visits], 1);
    d->disk_keeps[d->visits] = SL_MIN(b.rate / d->rate[d->n - 1][d->visits], 1);
    d->visits++;
    return b.status;
}

int bench_disk_visit(bench_disk *d, const char *path, uint32_t threads, bool verbose)
{
    sl_probe_disk_reader *reader = NULL;
    sl_probe_reader *dram = NULL;
    if (d->visits == BENCH_DISK_VISITS) return CLI_DONE;
    sl_ctx *ctx = cli_ctx(verbose);
    if (!ctx) return CLI_FAILED;
    sl_status st = sl_probe_reader_create(ctx, threads, &dram);
    if (st == SL_OK) st = sl_probe_disk_open(ctx, path, d->room, &reader);
    if (st == SL_OK) st = visit(d, reader, dram);
    int code = st == SL_OK ? CLI_DONE : cli_fail_ctx(ctx);
    sl_probe_disk_close(&reader);
    sl_probe_reader_destroy(&dram);
    sl_ctx_destroy(&ctx);
    return code;
}

double bench_disk_dram(const bench_disk *d)
{
    return d->visits ? d->dram[d->visits - 1] : 0;
}

void bench_disk_take(bench_disk *d, sl_machine *ret, sl_disk_use *ret_use)
{
    sl_machine_curve *c = &ret->disk.curve[0];
    ret->disk.n_curves = 1;
    c->bytes = (uint32_t)SL_MIN(d->bytes, (uint64_t)SL_MACHINE_MAX_READ);
    c->n = d->n;
    for (uint32_t i = 0; i < d->n; i++)
        c->at[i] = (sl_machine_disk_point){ d->depth[i], bench_median(d->rate[i], d->visits) };
    *ret_use = (sl_disk_use){ .machine = ret,
                              .cpu_keeps = bench_median(d->cpu_keeps, d->visits),
                              .disk_keeps = bench_median(d->disk_keeps, d->visits) };
    d->visits = 0;
}
