/* perfmodel/lens_box.c - passes of many sequences, and tokens of one, on a described machine with
 * or without an accelerator: what each part has to do, and the busiest part's time. */
#include "perfmodel/sl_bound.h"
#include "perfmodel/sl_lens.h"
#include "perfmodel/work.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    SHARES = 32,                /* ways to divide experts between the link and the CPU */
    ACT_BYTES = 2               /* an activation on the link */
};

struct env {
    const sl_lens_box *box;
    const sl_machine *m;
    const sl_machine_gpu *gpu;
    const sl_shape *shape;
    uint32_t threads;
    double dram, dram_all;      /* bytes/s of the threads, of the memory */
    double disk;                /* bytes/s at best; 0: not measured */
    double ram, vram;
    double micro;               /* batches */
    double kv_position;         /* bytes of all layers */
    double dense, largest_layer;        /* weights: all but experts; a layer's experts */
    sl_machine_cost cost;
};

static double position_bytes(const struct env *e, const sl_layer_shape *l)
{
    const sl_type_info *t = sl_type_get(e->box->kv_type);
    return ((double)l->k_elems + l->v_elems) * t->block_bytes / t->block_elems;
}

static struct env env_of(const sl_lens_box *box)
{
    const sl_machine *m = box->machine;
    const sl_shape *s = box->shape;
    struct env e = { .box = box, .m = m, .gpu = box->gpu, .shape = s,
                     .micro = SL_MAX(box->micro_batches, 1),
                     .threads = box->threads ? box->threads : m->id.cores,
                     .ram = box->ram_bytes > 0 ? box->ram_bytes : (double)m->id.ram_bytes };
    uint32_t some_bytes, some_depth;
    e.dram = e.dram_all = sl_machine_dram_s(m, e.threads);
    for (uint32_t i = 0; i < m->n_dram; i++) e.dram_all = fmax(e.dram_all, m->dram_read[i].value);
    if (!sl_machine_disk_best(m, &some_bytes, &some_depth, &e.disk)) e.disk = 0;
    e.cost = sl_machine_cost_at(m, e.threads);
    if (e.gpu) e.vram = box->vram_bytes > 0 ? box->vram_bytes : (double)e.gpu->vram_bytes;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const sl_layer_shape *l = &s->layers[i];
        e.kv_position += position_bytes(&e, l);
        e.dense += (double)(l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes);
        e.largest_layer = fmax(e.largest_layer, l->n_expert * (double)l->expert_bytes);
    }
    e.dense += (double)(s->head_bytes ? s->head_bytes : s->embed_bytes);
    return e;
}

/* `rows` rows, on the GPU in the box's micro-batches. */
static work product(const struct env *e, bool on_gpu, const sl_part *parts, uint32_t n,
                    uint64_t bytes, double rows)
{
    work one, all = { .s = 0 };
    if (!on_gpu)
        return work_product(e->m, e->threads, e->dram, parts, n, (double)bytes, rows);
    double times = fmin(e->micro, fmax(rows, 1));
    one = work_product_gpu(e->gpu, parts, n, (double)bytes, rows / times);
    work_add(&all, &one, times);
    return all;
}

static bool same_layer(const sl_shape *s, uint32_t l)
{
    return l && !memcmp(&s->layers[l], &s->layers[l - 1], sizeof *s->layers);
}

/* ---- one pass ---- */

/* Rows of a pass. pairs: rows times positions that they attend to are prompt_times and decode_times
 * the means over the lengths. */
struct rows {
    double prompt, decode, drawn;
    double prompt_times, decode_times;
    const sl_lens_length *lengths;
    uint32_t n_lengths;
};

/* What a pass has to do, wherever that is. */
struct pass {
    work dense, experts;        /* on the GPU, or the CPU where there is none */
    work on_cpu;                /* the experts, if the CPU multiplied all of them */
    work attention;             /* on the CPU */
    double gpu_flops;           /* attention among prompts' rows */
    double experts_bytes;       /* of distinct ones */
    double up, down;            /* activations */
    double n_stages;
};

static double pairs(const struct rows *r, uint32_t window, bool prompt)
{
    double sum = 0, all = 0;
    for (uint32_t i = 0; i < r->n_lengths; i++) {
        const sl_lens_length *l = &r->lengths[i];
        all += l->weight;
        sum += l->weight * (prompt ? sl_bound_attended(0, l->prompt, window)
                                   : sl_bound_attended(l->prompt, l->gen, window));
    }
    return sum / all * (prompt ? r->prompt_times : r->decode_times);
}

static void add_attention(const struct env *e, const sl_layer_shape *l, const struct rows *r,
                          struct pass *p)
{
    double drawn = pairs(r, l->window, false), read = pairs(r, l->window, true);
    double flops = (double)l->ctx_flops_row, position = position_bytes(e, l);
    double bytes = (drawn + r->prompt) * position;      /* prompts' are written */
    double s = e->cost.decode_flops_s > 0 ? drawn * flops / e->cost.decode_flops_s : 0;
    if (e->gpu) p->gpu_flops += read * flops;
    else if (e->cost.prefill_flops_s > 0) s += read * flops / e->cost.prefill_flops_s;
    work w = work_of(s, bytes / e->dram, s, bytes);
    work_add(&p->attention, &w, 1);
    if (!e->gpu) return;
    double query = flops / 4;   /* elements: scores and values are a multiply-add each */
    double kv = (double)l->k_elems + l->v_elems;
    p->down += ACT_BYTES * (r->decode * (query + kv) + r->prompt * kv);
    p->up += ACT_BYTES * r->decode * query;
}

static void add_layer(const struct env *e, const sl_layer_shape *l, const struct rows *r,
                      struct pass *p)
{
    double rows = r->prompt + r->decode;
    const struct { const sl_part *parts; uint32_t n; uint64_t bytes; } dense[] = {
        { l->qkv, SL_SHAPE_TYPES, l->qkv_bytes }, { l->post, SL_SHAPE_TYPES, l->post_bytes },
        { &l->router, 1, l->router_bytes }, { l->ffn, SL_SHAPE_TYPES, l->ffn_bytes },
    };
    for (size_t i = 0; i < SL_LEN(dense); i++) {
        work w = product(e, e->gpu != NULL, dense[i].parts, dense[i].n, dense[i].bytes, rows);
        work_add(&p->dense, &w, 1);
    }
    p->n_stages += 4;
    add_attention(e, l, r, p);
    if (!l->n_expert) return;
    double n = sl_miss_distinct(e->box->miss, l->n_expert, l->n_used, rows);
    work w = product(e, false, l->expert, SL_SHAPE_TYPES, l->expert_bytes,
                     fmax(rows * l->n_used / n, 1));
    work_add(&p->on_cpu, &w, n);
    if (e->gpu) {
        double times = fmin(e->micro, fmax(rows, 1)), part = rows / times;
        double some = sl_miss_distinct(e->box->miss, l->n_expert, l->n_used, part);
        w = work_product_gpu(e->gpu, l->expert, SL_SHAPE_TYPES, (double)l->expert_bytes,
                             fmax(part * l->n_used / some, 1));
        work_add(&p->experts, &w, times * some);
    }
    p->experts_bytes += n * (double)l->expert_bytes;
    p->n_stages++;
}

static void pass_add(struct pass *to, const struct pass *p, double times)
{
    work_add(&to->dense, &p->dense, times);
    work_add(&to->experts, &p->experts, times);
    work_add(&to->on_cpu, &p->on_cpu, times);
    work_add(&to->attention, &p->attention, times);
    to->gpu_flops += times * p->gpu_flops;
    to->experts_bytes += times * p->experts_bytes;
    to->up += times * p->up;
    to->down += times * p->down;
    to->n_stages += times * p->n_stages;
}

static struct pass pass_of(const struct env *e, const struct rows *r)
{
    const sl_shape *s = e->shape;
    struct pass all = { .n_stages = 2 }, one = { .n_stages = 0 };
    for (uint32_t i = 0; i < s->n_layer; i++) {
        if (!same_layer(s, i)) {
            one = (struct pass){ .n_stages = 0 };
            add_layer(e, &s->layers[i], r, &one);
        }
        pass_add(&all, &one, 1);
    }
    work head = product(e, e->gpu != NULL, &s->head, 1,
                        s->head_bytes ? s->head_bytes : s->embed_bytes, r->drawn);
    if (r->drawn > 0) work_add(&all.dense, &head, 1);
    return all;
}

/* ---- its time, with bytes in their places ---- */

/* Bytes of weights: in VRAM, dense ones first, and in RAM. */
struct places { double dense_vram, experts_vram, ram; };

static double ram_rest(const struct env *e, const struct places *at)
{
    return e->dense - at->dense_vram + (double)e->shape->experts_bytes - at->experts_vram;
}

static struct places pin(const struct env *e)
{
    struct places at = { .ram = 0 };
    double room = fmax(e->vram - 2 * e->largest_layer, 0);      /* a ring of two layers */
    at.dense_vram = fmin(room, e->dense);
    at.experts_vram = fmin(room - at.dense_vram, (double)e->shape->experts_bytes);
    return at;
}

/* Of the experts that a pass wants, what is not among the most popular ones of so many bytes: few
 * sequences miss as often as one token, many want more than those are. */
static double not_among(const struct env *e, double wanted, double bytes)
{
    double all = (double)e->shape->experts_bytes;
    if (!(all > 0)) return 0;
    double misses = bytes < all * (1 - 1e-9) ? 1 - sl_miss_hit(e->box->miss, bytes / all) : 0;
    return fmax(fmax(wanted - bytes, 0), wanted * misses);
}

/* The least time with `share` of the experts that are not pinned going over the link; in_turn: if
 * nothing overlapped. */
static double pass_s(const struct env *e, const struct pass *p, const struct places *at,
                     double share, double busy[SL_N_RESOURCES], double *ret_in_turn)
{
    double dense = e->dense - at->dense_vram, ram = at->ram - dense;
    double experts = not_among(e, p->experts_bytes, at->experts_vram);
    double disk = fmax(-ram, 0);
    disk += not_among(e, p->experts_bytes, at->experts_vram + fmax(ram, 0));
    double cpu_part =
        e->gpu ? (1 - share) * experts / fmax(p->experts_bytes, 1) : 1;     /* of all experts */
    work gpu = { .s = 0 }, cpu = p->attention;
    work_add(e->gpu ? &gpu : &cpu, &p->dense, 1);
    work_add(&cpu, &p->on_cpu, cpu_part);
    if (e->gpu) work_add(&gpu, &p->experts, 1 - cpu_part);
    memset(busy, 0, SL_N_RESOURCES * sizeof *busy);
    busy[SL_RES_DISK] = e->disk > 0 ? disk / e->disk : 0;
    busy[SL_RES_CPU] = cpu.arithmetic_s;
    double ram_bytes = cpu.bytes + disk;
    if (e->gpu) {
        double attention = p->gpu_flops / e->gpu->flops_s, link = dense + share * experts + p->up;
        ram_bytes += link + p->down;
        gpu.s += attention;
        busy[SL_RES_H2D] = link / e->gpu->h2d_bytes_s;
        busy[SL_RES_D2H] = p->down / e->gpu->d2h_bytes_s;
        busy[SL_RES_GPU] = gpu.arithmetic_s + attention;
        busy[SL_RES_VRAM] = gpu.memory_s;
        busy[SL_RES_SYNC] = p->n_stages * e->gpu->launch_s;
    } else {
        busy[SL_RES_SYNC] = p->n_stages * e->cost.stage_s;
    }
    busy[SL_RES_DRAM] = fmax(cpu.memory_s, ram_bytes / e->dram_all);
    double s = fmax(gpu.s, cpu.s);
    for (int i = 0; i < SL_N_RESOURCES; i++) s = fmax(s, busy[i]);
    *ret_in_turn = gpu.s + cpu.s + busy[SL_RES_DISK] + busy[SL_RES_H2D] + busy[SL_RES_D2H]
                 + busy[SL_RES_SYNC];
    return s;
}

/* The best share; fills pass_s, link_share, busy_s and what binds. Returns the seconds if nothing
 * overlapped. */
static double best_share(const struct env *e, const struct pass *p, const struct places *at,
                         sl_lens_bound *ret)
{
    double in_turn = 0, now;
    ret->pass_s = INFINITY;
    for (int i = SHARES; i >= 0; i--) {
        double busy[SL_N_RESOURCES], share = (double)i / SHARES;
        double s = pass_s(e, p, at, share, busy, &now);
        if (s < ret->pass_s) {
            in_turn = now;
            ret->pass_s = s;
            ret->link_share = e->gpu ? share : 0;
            memcpy(ret->busy_s, busy, sizeof busy);
        }
        if (e->box->gpu_experts || !e->gpu) break;
    }
    busiest(ret->busy_s, &ret->binding, &ret->next);
    ret->vram_weights = at->dense_vram + at->experts_vram;
    ret->ram_weights = at->ram;
    return in_turn;
}

/* So many requests begin in each pass, as many end; RAM has the weights that fit beside their keys
 * and values. */
static sl_lens_bound steady(const struct env *e, const sl_lens_mix *mix,
                            const sl_lens_length *lengths, uint32_t n, double starts)
{
    struct rows r = { .prompt = starts * mix->prompt, .decode = starts * mix->gen,
                      .drawn = starts * (mix->gen + 1), .prompt_times = starts,
                      .decode_times = starts, .lengths = lengths, .n_lengths = n };
    sl_lens_bound b = { .pass_tokens = r.prompt + r.decode, .sequences = r.drawn,
                        .kv_bytes = starts * mix->held * e->kv_position };
    struct pass p = pass_of(e, &r);
    struct places at = pin(e);
    at.ram = fmin(fmax(e->ram - b.kv_bytes, 0), ram_rest(e, &at));
    double in_turn = best_share(e, &p, &at, &b);
    b.tok_per_s = b.pass_tokens / b.pass_s;
    b.gen_tok_per_s = r.decode / b.pass_s;
    b.gen_tok_per_s_in_turn = r.decode / in_turn;
    return b;
}

sl_lens_bound sl_lens_batch(const sl_lens_box *box, const sl_lens_length *lengths, uint32_t n,
                            double n_requests)
{
    const double step = 1.1;
    struct env e = env_of(box);
    sl_lens_mix mix = sl_lens_mean(lengths, n, box->kv_block ? box->kv_block : 1);
    sl_lens_bound best = { .tok_per_s = 0 };
    struct places at = pin(&e);
    double most = e.ram / e.kv_position / mix.held;
    /* beside all weights: more sequences than these make room at the weights' cost */
    double fits = fmin((e.ram - ram_rest(&e, &at)) / e.kv_position / mix.held, most);
    if (n_requests > 0) most = fmin(most, n_requests / (mix.gen + 1));
    const double least = 1 / (mix.gen + 1);
    double lo = least, hi = most;
    for (double starts = least, next; starts <= most; starts = next) {
        sl_lens_bound b = steady(&e, &mix, lengths, n, starts);
        next = starts * step;
        if (b.tok_per_s > best.tok_per_s) {
            best = b;
            lo = fmax(starts / step, least);
            hi = fmin(next, most);
        }
        if (starts < fits && fits < next) next = fits;
        else if (starts < most && most < next) next = most;
    }
    /* near it there is one peak */
    for (int i = 0; i < 16 && best.tok_per_s > 0; i++) {
        double a = (2 * lo + hi) / 3, b = (lo + 2 * hi) / 3;
        sl_lens_bound low = steady(&e, &mix, lengths, n, a);
        sl_lens_bound high = steady(&e, &mix, lengths, n, b);
        if (low.tok_per_s > high.tok_per_s) hi = b;
        else lo = a;
        if (fmax(low.tok_per_s, high.tok_per_s) > best.tok_per_s)
            best = low.tok_per_s > high.tok_per_s ? low : high;
    }
    return best;
}

sl_lens_bound sl_lens_round(const sl_lens_box *box, double n, uint32_t prompt, uint32_t gen)
{
    struct env e = env_of(box);
    sl_lens_length length = { prompt, gen, 1 };
    double block = box->kv_block ? box->kv_block : 1;
    sl_lens_bound b = { .kv_bytes = n * ceil((prompt + gen) / block) * block * e.kv_position };
    struct places at = pin(&e);
    at.ram = fmin(e.ram - b.kv_bytes, ram_rest(&e, &at));
    if (at.ram < 0 || !gen) return (sl_lens_bound){ .tok_per_s = 0 };
    struct rows read = { .prompt = n * prompt, .drawn = n, .prompt_times = n,
                         .lengths = &length, .n_lengths = 1 };
    struct rows draw = { .decode = n, .drawn = n, .decode_times = n / gen, .lengths = &length,
                         .n_lengths = 1 };
    struct pass p = pass_of(&e, &read);
    double in_turn = best_share(&e, &p, &at, &b), s = b.pass_s;
    p = pass_of(&e, &draw);
    in_turn += (gen - 1) * best_share(&e, &p, &at, &b);
    s += (gen - 1) * b.pass_s;
    b.pass_tokens = b.sequences = n;
    b.tok_per_s = n * ((double)prompt + gen) / s;
    b.gen_tok_per_s = n * gen / s;
    b.gen_tok_per_s_in_turn = n * gen / in_turn;
    return b;
}

/* ---- one sequence ---- */

/* Where its bytes are: shares of the dense weights and of the experts. */
struct seat {
    struct places at;
    bool kv_vram;
    double dense_vram;          /* share */
    double dense_disk;          /* bytes that no memory holds: read for every token */
    double experts_vram, experts_ram;   /* shares */
};

static struct seat take_seat(const struct env *e, double kv_bytes, bool kv_vram)
{
    double all = (double)e->shape->experts_bytes;
    struct seat s = { .kv_vram = kv_vram };
    double room = fmax(e->vram - (kv_vram ? kv_bytes : 0), 0);
    s.at.dense_vram = fmin(room, e->dense);
    s.at.experts_vram = fmin(room - s.at.dense_vram, all);
    s.dense_vram = s.at.dense_vram / e->dense;
    double ram = fmax(e->ram - (kv_vram ? 0 : kv_bytes), 0), dense = e->dense - s.at.dense_vram;
    s.dense_disk = fmax(dense - ram, 0);
    s.at.ram = fmin(ram, ram_rest(e, &s.at));
    s.experts_vram = all > 0 ? s.at.experts_vram / all : 1;
    s.experts_ram = all > 0 ? fmax(s.at.ram - dense, 0) / all : 0;
    return s;
}

struct token { double s, disk_bytes, n_disk, n_used; double busy[SL_N_RESOURCES]; };

/* Weights that are not in VRAM: the link brings some, the CPU computes the others, both done at
 * once. Returns the seconds; `times` of it count as busy. */
static double rest_s(const struct env *e, const work *cpu, double times, struct token *t)
{
    if (!(cpu->s > 0)) return 0;
    double link_s = cpu->bytes / e->gpu->h2d_bytes_s, share = cpu->s / (cpu->s + link_s);
    double s = fmax(share * link_s, cpu->bytes / e->dram_all);
    t->busy[SL_RES_H2D] += times * share * link_s;
    t->busy[SL_RES_CPU] += times * (1 - share) * cpu->arithmetic_s;
    t->busy[SL_RES_DRAM] += times * fmax((1 - share) * cpu->memory_s, cpu->bytes / e->dram_all);
    return s;
}

static double on_gpu(const work *w, double times, struct token *t)
{
    t->busy[SL_RES_GPU] += times * w->arithmetic_s;
    t->busy[SL_RES_VRAM] += times * w->memory_s;
    return times * w->s;
}

/* Dense matrices on one row. */
static double dense_s(const struct env *e, const struct seat *seat, const sl_part *parts,
                      uint32_t n, uint64_t bytes, struct token *t)
{
    work gpu = product(e, true, parts, n, bytes, 1), cpu = product(e, false, parts, n, bytes, 1);
    work rest = { .s = 0 };
    work_add(&rest, &cpu, 1 - seat->dense_vram);
    return on_gpu(&gpu, seat->dense_vram, t) + rest_s(e, &rest, 1, t);
}

static double attention_s(const struct env *e, const struct seat *seat, const sl_layer_shape *l,
                          double attended, struct token *t)
{
    double flops = attended * (double)l->ctx_flops_row, bytes = attended * position_bytes(e, l);
    double rate = seat->kv_vram ? e->gpu->flops_s : e->cost.decode_flops_s;
    double s = rate > 0 ? flops / rate : 0;
    double memory = bytes / (seat->kv_vram ? e->gpu->vram_bytes_s : e->dram);
    work w = work_of(s, memory, s, bytes);
    if (seat->kv_vram) return on_gpu(&w, 1, t);
    t->busy[SL_RES_CPU] += w.arithmetic_s;
    t->busy[SL_RES_DRAM] += w.memory_s;
    return w.s;
}

static double experts_s(const struct env *e, const struct seat *seat, const sl_layer_shape *l,
                        struct token *t)
{
    double p[SL_MAX_MISSED + 1], s = 0;
    const sl_miss_model *miss = e->box->miss;
    double here = sl_miss_hit(miss, seat->experts_vram), each = (double)l->expert_bytes;
    double far = 1 - sl_miss_hit(miss, fmin(seat->experts_vram + seat->experts_ram, 1));
    if (seat->experts_vram + seat->experts_ram > 1 - 1e-9) far = 0;
    double beyond = here < 1 ? fmin(far / (1 - here), 1) : 0;       /* of the missing: on disk */
    work gpu = product(e, true, l->expert, SL_SHAPE_TYPES, l->expert_bytes, 1);
    work cpu = product(e, false, l->expert, SL_SHAPE_TYPES, l->expert_bytes, 1);
    sl_miss_turn(miss, l->n_used, seat->experts_vram, p);
    for (uint32_t i = 0; i <= SL_MAX_MISSED; i++) {
        if (!(p[i] > 0)) continue;
        work rest = { .s = 0 };
        work_add(&rest, &cpu, i);
        double resident = on_gpu(&gpu, p[i] * (l->n_used - i), t) / p[i];
        double read = i * beyond * each, reading = e->disk > 0 ? read / e->disk : 0;
        t->n_disk += p[i] * i * beyond;
        t->disk_bytes += p[i] * read;
        s += p[i] * fmax(fmax(resident, rest_s(e, &rest, p[i], t)), reading);
    }
    t->n_used += l->n_used;
    return s;
}

static void token_add(struct token *to, const struct token *t, double times)
{
    to->s += times * t->s;
    to->disk_bytes += times * t->disk_bytes;
    to->n_disk += times * t->n_disk;
    to->n_used += times * t->n_used;
    for (int i = 0; i < SL_N_RESOURCES; i++) to->busy[i] += times * t->busy[i];
}

static struct token token_of(const struct env *e, const struct seat *seat, sl_load load)
{
    const sl_shape *s = e->shape;
    struct token all = { .disk_bytes = seat->dense_disk }, one = { .s = 0 };
    uint32_t n = SL_MAX(load.n_gen, 1);
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const sl_layer_shape *l = &s->layers[i];
        if (!same_layer(s, i)) {
            one = (struct token){ .s = 0 };
            double attended = sl_bound_attended(load.n_prompt, n, l->window) / n;
            one.s = dense_s(e, seat, l->qkv, SL_SHAPE_TYPES, l->qkv_bytes, &one)
                  + dense_s(e, seat, l->post, SL_SHAPE_TYPES, l->post_bytes, &one)
                  + dense_s(e, seat, &l->router, 1, l->router_bytes, &one)
                  + dense_s(e, seat, l->ffn, SL_SHAPE_TYPES, l->ffn_bytes, &one)
                  + attention_s(e, seat, l, attended, &one);
            if (l->n_expert) one.s += experts_s(e, seat, l, &one);
            one.busy[SL_RES_SYNC] = 5 * e->gpu->launch_s;
        }
        token_add(&all, &one, 1);
    }
    all.s += dense_s(e, seat, &s->head, 1, s->head_bytes ? s->head_bytes : s->embed_bytes, &all);
    all.busy[SL_RES_DISK] = e->disk > 0 ? all.disk_bytes / e->disk : 0;
    all.busy[SL_RES_DRAM] += all.disk_bytes / e->dram_all;
    return all;
}

static void phase_end(sl_phase *p, double n_tokens)
{
    for (int i = 0; i < SL_N_RESOURCES; i++) p->seconds = fmax(p->seconds, p->busy_s[i]);
    p->tok_per_s = p->seconds > 0 ? n_tokens / p->seconds : 0;
    busiest(p->busy_s, &p->binding, &p->next);
}

/* A prompt in passes, its weights where they are. */
static sl_phase prompt_phase(const struct env *e, const struct seat *seat, uint32_t n,
                             uint32_t max_rows)
{
    sl_lens_length length = { n, 0, 1 };
    uint32_t rows = SL_MIN(n, max_rows), left = n;
    double times = floor((double)n / rows);
    sl_phase ret = { .seconds = 0 };
    sl_lens_bound b = { .pass_s = 0 };
    left -= (uint32_t)times * rows;
    for (int last = 0; last < 2; last++) {
        struct rows r = { .prompt = last ? left : rows, .drawn = last == !!left,
                          .prompt_times = last ? 0 : 1 / times, .lengths = &length,
                          .n_lengths = 1 };
        if (last && !left) break;
        struct pass p = pass_of(e, &r);
        best_share(e, &p, &seat->at, &b);
        if (last) times = 1;
        ret.seconds += times * b.pass_s;
        for (int i = 0; i < SL_N_RESOURCES; i++) ret.busy_s[i] += times * b.busy_s[i];
    }
    if (e->disk > 0) ret.disk_bytes = ret.busy_s[SL_RES_DISK] * e->disk;
    phase_end(&ret, n);
    return ret;
}

sl_forecast sl_lens_latency(const sl_lens_box *box, sl_load load, uint32_t max_rows)
{
    struct env e = env_of(box);
    sl_forecast best = { .ttft_s = 0 };
    assert(box->gpu && load.n_prompt && max_rows);
    double kv_bytes = ((double)load.n_prompt + load.n_gen) * e.kv_position;
    for (int kv_vram = 0; kv_vram < 2; kv_vram++) {
        if (kv_vram && kv_bytes > e.vram) break;
        struct seat seat = take_seat(&e, kv_bytes, kv_vram);
        struct token t = token_of(&e, &seat, load);
        sl_forecast f = { .grade = grade_of(e.m, box->gpu, box->miss->traced),
                          .prompt = prompt_phase(&e, &seat, load.n_prompt, max_rows),
                          .hit_rate = t.n_used > 0 ? 1 - t.n_disk / t.n_used : 1,
                          .disk_bytes_per_token = t.disk_bytes };
        f.ttft_s = f.prompt.seconds;
        f.decode.seconds = load.n_gen * t.s;
        f.decode.disk_bytes = load.n_gen * t.disk_bytes;
        for (int i = 0; i < SL_N_RESOURCES; i++) f.decode.busy_s[i] = load.n_gen * t.busy[i];
        phase_end(&f.decode, load.n_gen);
        f.peak_bytes = (uint64_t)(seat.at.ram + (kv_vram ? 0 : kv_bytes));
        if (!kv_vram || f.prompt.seconds + f.decode.seconds
                            < best.prompt.seconds + best.decode.seconds)
            best = f;
    }
    return best;
}
