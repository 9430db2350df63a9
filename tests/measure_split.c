/* tests/measure_split.c - how well the parts of a pass overlap on an emulated accelerator:
 *     measure_split MODEL.gguf [MEM_MIB [LINK_GB_S [SEQUENCES [PASSES [LANES [SEND_ROWS
 *         [SEND_ALL_ROWS [STAY [RAM_MIB]]]]]]]]]
 * LANES to STAY as in sl_split; 0 is the plan's own choice. With RAM_MIB experts may come from
 * disk.
 * Sequences decode together, one row each a pass. For each pass: its time; how long the link up was
 * busy, each core, and what the time is of the longest of them; what came from disk, and how long
 * the driver waited for it. One core computes for the device;
 * the other one attends, drives and makes the copies, which a GPU's own engines would. */
#include "offload/device_emu.h"
#include "runtime/engine.h"
#include "tests/t.h"

#include <math.h>
#include <time.h>

enum { PROMPT = 4, CONTEXT = 64, SPANS = 1 << 17 };

static double clock_s(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct times { double wall, link, link_bytes, device, host, copies, read_bytes, stall; };

static struct times now(sl_engine *e)
{
    emu_busy b;
    emu_queues_busy(sl_emu_queues(e->dev), &b);
    struct times t = { .wall = clock_s(CLOCK_MONOTONIC), .link = b.link_s[EMU_LINK_UP],
                       .link_bytes = (double)b.link_bytes[EMU_LINK_UP],
                       .device = b.queue_cpu_s[SL_Q_COMPUTE] };
    for (int q = 0; q < SL_N_QUEUES; q++)
        if (q != SL_Q_COMPUTE) t.copies += b.queue_cpu_s[q];
    t.host = clock_s(CLOCK_PROCESS_CPUTIME_ID) - t.device;
    sl_engine_stats s;
    sl_engine_get_stats(e, &s);
    t.read_bytes = (double)(s.read_bytes + s.ahead_bytes - s.ahead_used_bytes);
    t.stall = s.stall_s;
    return t;
}

static void print_pass(const struct times *a, const struct times *b, double rate, uint32_t rows)
{
    double wall = b->wall - a->wall, link = b->link - a->link, device = b->device - a->device;
    double host = b->host - a->host, longest = fmax(link, fmax(device, host));
    printf("%4u rows  %.3f s   link %.3f (%.1f %% of %.1f GB/s)   device's core %.3f   other core "
           "%.3f, of it copies %.3f   time / longest %.3f\n",
           rows, wall, link, 100 * (b->link_bytes - a->link_bytes) / wall / rate, rate / 1e9,
           device, host, b->copies - a->copies, wall / longest);
    if (b->read_bytes > a->read_bytes)
        printf("           from disk %.2f GB, %.3f s of waiting\n",
               (b->read_bytes - a->read_bytes) / 1e9, b->stall - a->stall);
}

/* Time of the pass in which the link was idle, and the device's core, by what was next on it. */
static void print_gaps(const emu_span *spans, uint32_t n)
{
    double end[2] = { 0, 0 }, idle[2] = { 0, 0 };
    for (uint32_t i = 0; i < n; i++) {
        int on = spans[i].queue == SL_Q_COMPUTE;
        if (spans[i].queue != SL_Q_WEIGHTS && !on) continue;
        if (end[on] > 0 && spans[i].from_s > end[on]) idle[on] += spans[i].from_s - end[on];
        end[on] = fmax(end[on], spans[i].to_s);
    }
    printf("last pass: %u operations; weights' link idle %.3f s, stages idle %.3f s\n", n, idle[0],
           idle[1]);
}

static double number(int argc, char **argv, int i, double otherwise)
{
    return argc > i ? strtod(argv[i], NULL) : otherwise;
}

int main(int argc, char **argv)
{
    static emu_span spans[SPANS];
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_model *m = NULL;
    sl_engine *e = NULL;
    sl_plan plan;
    sl_plan_params p = sl_plan_defaults();
    T_NEED(argc > 1, "usage: measure_split MODEL [numbers]");
    double rate = 1e9 * number(argc, argv, 3, 2);
    uint32_t n_seq = (uint32_t)number(argc, argv, 4, 32);
    uint32_t n_pass = (uint32_t)number(argc, argv, 5, 4);
    p.n_seq = n_seq;
    p.n_ctx = CONTEXT;
    p.max_rows = n_seq;
    p.n_threads = 1;
    p.kv_on = p.head_on = SL_ON_CPU;
    uint32_t *wishes[] = { &p.n_lanes, &p.send_rows, &p.send_all_rows, &p.n_stay };
    for (int i = 0; i < (int)SL_LEN(wishes); i++) {
        double wish = number(argc, argv, 6 + i, 0);
        if (wish > 0) *wishes[i] = (uint32_t)wish;
    }
    p.ram_bytes = (uint64_t)number(argc, argv, 10, 0) << 20;
    p.accel = (sl_accel){ .kind = SL_ACCEL_EMU, .n_cores = 1, .up_bytes_s = rate,
                          .mem_bytes = (uint64_t)number(argc, argv, 2, 512) << 20,
                          .down_bytes_s = rate, .link_s = 10e-6 };
    T_NEED(sl_model_open(ctx, argv[1], &m) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_plan_make(ctx, sl_model_shape(m), &p, &plan) == SL_OK, "%s", sl_error(ctx));
    const sl_split *x = &plan.split;
    printf("experts of %u rows are sent, all of them from %u rows on; ", plan.split.send_rows,
           plan.split.send_all_rows);
    printf("%.2f GB of weights, %llu MiB on the device: ring %llu, dense %llu (%u layers), %u "
           "experts a layer; %u lanes of %u rows\n",
           (double)plan.weights_bytes / 1e9, (unsigned long long)x->accel.mem_bytes >> 20,
           (unsigned long long)x->ring_bytes >> 20, (unsigned long long)x->dense_bytes >> 20,
           x->n_dense_layers, x->n_stay, x->n_lanes, x->lane_rows);
    T_NEED(sl_engine_open(ctx, m, &plan, &e) == SL_OK, "%s", sl_error(ctx));
    for (uint32_t i = 0; i < n_seq; i++) {
        int32_t ids[PROMPT];
        sl_seq id;
        sl_request r = { .tokens = ids, .n_tokens = PROMPT, .n_predict = CONTEXT - PROMPT,
                         .ignore_eog = true, .sampler = sl_sampler_defaults(), .max_chunk = 1 };
        for (uint32_t t = 0; t < PROMPT; t++)
            ids[t] = (int32_t)t_below(sl_model_shape(m)->n_vocab);
        T_NEED(sl_engine_submit(e, &r, &id) == SL_OK, "%s", sl_error(ctx));
    }
    for (uint32_t i = 0; i < n_pass; i++) {
        const sl_engine_event *ev;
        uint32_t n;
        struct times before = now(e);
        emu_queues_trace(sl_emu_queues(e->dev), spans, SPANS);
        T_NEED(sl_engine_step(e, &ev, &n) == SL_OK, "%s", sl_error(ctx));
        struct times after = now(e);
        print_pass(&before, &after, rate, n_seq);
    }
    print_gaps(spans, emu_queues_trace(sl_emu_queues(e->dev), NULL, 0));
    sl_engine_close(&e);
    sl_model_close(&m);
    sl_ctx_destroy(&ctx);
    return 0;
}
