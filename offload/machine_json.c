/* offload/machine_json.c - a machine from and to JSON. */
#include "offload/sl_machine_json.h"

#include <stdio.h>
#include <string.h>

enum { VERSION = 2 };
static const double any = 1e18;     /* sl_machine_check knows what is likely */

static sl_status read_hardware(const sl_json *root, sl_machine_id *id)
{
    sl_json j;
    SL_TRY(sl_json_get(root, "hardware", &j));
    SL_TRY(sl_json_str(&j, "cpu", id->cpu, sizeof id->cpu));
    SL_TRY(sl_json_str(&j, "isa", id->isa, sizeof id->isa));
    SL_TRY(sl_json_u32(&j, "cores", 1, SL_MACHINE_MAX_THREADS, &id->cores));
    SL_TRY(sl_json_u32(&j, "hw_threads", id->cores, SL_MACHINE_MAX_THREADS, &id->hw_threads));
    SL_TRY(sl_json_u64(&j, "l3_bytes", 0, (uint64_t)1 << 40, &id->l3_bytes));
    return sl_json_u64(&j, "ram_bytes", 0, (uint64_t)1 << 60, &id->ram_bytes);
}

static sl_status read_points(const sl_json *root, const char *key, const char *value,
                             sl_machine_point *p, uint32_t *ret_n)
{
    sl_json list, j;
    size_t n;
    SL_TRY(sl_json_array(root, key, 1, SL_MACHINE_POINTS, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&list, i, &j);
        SL_TRY(sl_json_u32(&j, "threads", i ? p[i - 1].threads + 1 : 1, SL_MACHINE_MAX_THREADS,
                           &p[i].threads));
        SL_TRY(sl_json_f64(&j, value, 0, any, &p[i].value));
    }
    *ret_n = (uint32_t)n;
    return SL_OK;
}

static sl_status read_peaks(const sl_json *root, sl_machine *m)
{
    sl_json peaks, j;
    if (!sl_json_has(root, "peaks")) return SL_OK;
    SL_TRY(sl_json_get(root, "peaks", &peaks));
    if (!json_is_object(peaks.v)) return sl_json_expected(&peaks, "an object");
    for (int i = 0; i < SL_N_PEAKS; i++) {
        if (!sl_json_has(&peaks, sl_peak_name((sl_peak)i))) continue;
        SL_TRY(sl_json_get(&peaks, sl_peak_name((sl_peak)i), &j));
        SL_TRY(sl_json_f64(&j, "core", 0, any, &m->peak_core[i]));
        SL_TRY(sl_json_f64(&j, "all", 0, any, &m->peak_all[i]));
    }
    return SL_OK;
}

static sl_status read_curve(const sl_json *j, uint32_t min_bytes, sl_machine_curve *c)
{
    sl_json list, p;
    size_t n;
    SL_TRY(sl_json_u32(j, "bytes", min_bytes, SL_MACHINE_MAX_READ, &c->bytes));
    SL_TRY(sl_json_array(j, "points", 1, SL_MACHINE_POINTS, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&list, i, &p);
        SL_TRY(sl_json_u32(&p, "depth", i ? c->at[i - 1].depth + 1 : 1, SL_MACHINE_MAX_DEPTH,
                           &c->at[i].depth));
        SL_TRY(sl_json_f64(&p, "bytes_s", 0, any, &c->at[i].bytes_s));
    }
    c->n = (uint32_t)n;
    return SL_OK;
}

static sl_status read_disk(const sl_json *root, sl_machine_disk *d)
{
    sl_json disk, list, j;
    size_t n;
    if (!sl_json_has(root, "disk")) return SL_OK;
    SL_TRY(sl_json_get(root, "disk", &disk));
    SL_TRY(sl_json_str(&disk, "where", d->where, sizeof d->where));
    SL_TRY(sl_json_f64(&disk, "latency_s", 0, any, &d->latency_s));
    SL_TRY(sl_json_array(&disk, "reads", 1, SL_MACHINE_CURVES, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&list, i, &j);
        SL_TRY(read_curve(&j, i ? d->curve[i - 1].bytes + 1 : 1, &d->curve[i]));
    }
    d->n_curves = (uint32_t)n;
    return SL_OK;
}

/* min_threads 0: an accelerator's, which has none */
static sl_status read_gemm(const sl_json *j, uint32_t min_threads, sl_machine_gemm *g)
{
    sl_json f, list, p;
    size_t n;
    SL_TRY(sl_json_get(j, "type", &f));
    const char *name = json_string_value(f.v);
    if (!name || !sl_type_from_name(name, &g->type))
        return sl_json_expected(&f, "a tensor type as \"Q4_K\"");
    if (min_threads)
        SL_TRY(sl_json_u32(j, "threads", min_threads, SL_MACHINE_MAX_THREADS, &g->threads));
    SL_TRY(sl_json_array(j, "points", 1, SL_MACHINE_GEMM_POINTS, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&list, i, &p);
        SL_TRY(sl_json_u32(&p, "rows", i ? g->at[i - 1].rows + 1 : 1, i ? SL_MACHINE_MAX_ROWS : 1,
                           &g->at[i].rows));
        SL_TRY(sl_json_f64(&p, "ops_s", 0, any, &g->at[i].ops_s));
    }
    g->n = (uint32_t)n;
    return SL_OK;
}

static sl_status read_gemms(const sl_json *j, uint32_t min_threads, uint32_t most,
                            sl_machine_gemm *g, uint32_t *ret_n)
{
    sl_json list, at;
    size_t n;
    if (!sl_json_has(j, "gemms")) return SL_OK;
    SL_TRY(sl_json_array(j, "gemms", 0, most, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&list, i, &at);
        SL_TRY(read_gemm(&at, min_threads, &g[i]));
    }
    *ret_n = (uint32_t)n;
    return SL_OK;
}

/* A field that may be missing stays 0. */
static sl_status read_known(const sl_json *j, const char *key, double max, double *ret)
{
    return sl_json_has(j, key) ? sl_json_f64(j, key, 0, max, ret) : SL_OK;
}

static sl_status read_costs(const sl_json *root, sl_machine *m)
{
    sl_json list, j;
    size_t n;
    if (!sl_json_has(root, "costs")) return SL_OK;
    SL_TRY(sl_json_array(root, "costs", 0, SL_MACHINE_COSTS, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_machine_cost *c = &m->cost[i];
        sl_json_at(&list, i, &j);
        SL_TRY(sl_json_u32(&j, "threads", i ? c[-1].threads + 1 : 1, SL_MACHINE_MAX_THREADS,
                           &c->threads));
        SL_TRY(sl_json_f64(&j, "stage_s", 0, any, &c->stage_s));
        SL_TRY(sl_json_f64(&j, "elem_s", 0, any, &c->elem_s));
        SL_TRY(sl_json_f64(&j, "decode_flops_s", 0, any, &c->decode_flops_s));
        SL_TRY(sl_json_f64(&j, "prefill_flops_s", 0, any, &c->prefill_flops_s));
        SL_TRY(read_known(&j, "decode_bytes_s", any, &c->decode_bytes_s));
        SL_TRY(read_known(&j, "corun_cpu", 1, &c->corun_cpu));
        SL_TRY(read_known(&j, "corun_disk", 1, &c->corun_disk));
        SL_TRY(read_known(&j, "corun_tiles", 1, &c->corun_tiles));
        SL_TRY(read_known(&j, "call_s", any, &c->call_s));
    }
    m->n_costs = (uint32_t)n;
    return SL_OK;
}

static sl_status read_gpus(const sl_json *root, sl_machine *m)
{
    sl_json list, j;
    size_t n;
    if (!sl_json_has(root, "gpus")) return SL_OK;
    SL_TRY(sl_json_array(root, "gpus", 0, SL_MACHINE_GPUS, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_machine_gpu *g = &m->gpu[i];
        sl_json_at(&list, i, &j);
        SL_TRY(sl_json_str(&j, "name", g->name, sizeof g->name));
        SL_TRY(sl_json_u64(&j, "vram_bytes", 0, (uint64_t)1 << 60, &g->vram_bytes));
        SL_TRY(sl_json_f64(&j, "vram_bytes_s", 0, any, &g->vram_bytes_s));
        SL_TRY(sl_json_f64(&j, "flops_s", 0, any, &g->flops_s));
        SL_TRY(sl_json_f64(&j, "h2d_bytes_s", 0, any, &g->h2d_bytes_s));
        SL_TRY(sl_json_f64(&j, "d2h_bytes_s", 0, any, &g->d2h_bytes_s));
        SL_TRY(read_known(&j, "h2d_pageable_bytes_s", any, &g->h2d_pageable_bytes_s));
        SL_TRY(read_known(&j, "d2h_pageable_bytes_s", any, &g->d2h_pageable_bytes_s));
        SL_TRY(read_known(&j, "copy_s", any, &g->copy_s));
        SL_TRY(read_known(&j, "launch_s", any, &g->launch_s));
        SL_TRY(read_known(&j, "decode_flops_s", any, &g->decode_flops_s));
        SL_TRY(read_known(&j, "prefill_flops_s", any, &g->prefill_flops_s));
        SL_TRY(read_known(&j, "decode_bytes_s", any, &g->decode_bytes_s));
        SL_TRY(read_known(&j, "elem_s", any, &g->elem_s));
        SL_TRY(read_gemms(&j, 0, SL_MACHINE_GPU_GEMMS, g->gemm, &g->n_gemms));
    }
    m->n_gpus = (uint32_t)n;
    return SL_OK;
}

static sl_status read_head(const sl_json *root, sl_machine *m)
{
    sl_json j;
    uint32_t version, source = 0;
    SL_TRY(sl_json_u32(root, "sluice_machine", 1, VERSION, &version));
    if (version < VERSION)
        return sl_fail(root->ctx, SL_E_FORMAT, "%s: sluice_machine: expected format %d, found %u, "
                       "which lacks what forecasts need: run `sluice probe` again", root->file,
                       VERSION, version);
    SL_TRY(sl_json_get(root, "source", &j));
    const char *name = json_string_value(j.v);
    while (source <= SL_MACHINE_MEASURED && (!name || strcmp(name, sl_machine_source_name(source))))
        source++;
    if (source > SL_MACHINE_MEASURED) return sl_json_expected(&j, "datasheet, quick or measured");
    m->source = (sl_machine_source)source;
    if (sl_json_has(root, "notes")) SL_TRY(sl_json_str(root, "notes", m->notes, sizeof m->notes));
    return read_hardware(root, &m->id);
}

sl_status sl_machine_read(const sl_json *root, sl_machine *ret)
{
    sl_machine m = { 0 };
    SL_TRY(read_head(root, &m));
    SL_TRY(read_points(root, "dram_read", "bytes_s", m.dram_read, &m.n_dram));
    if (sl_json_has(root, "barrier"))
        SL_TRY(read_points(root, "barrier", "s", m.barrier, &m.n_barrier));
    SL_TRY(read_peaks(root, &m));
    SL_TRY(read_disk(root, &m.disk));
    SL_TRY(read_known(root, "read_cpu_s", any, &m.read_cpu_s));
    SL_TRY(read_known(root, "read_host_s", any, &m.read_host_s));
    SL_TRY(read_gemms(root, 1, SL_MACHINE_GEMMS, m.gemm, &m.n_gemms));
    SL_TRY(read_costs(root, &m));
    SL_TRY(read_gpus(root, &m));
    if (sl_machine_check(root->ctx, &m) != SL_OK) {
        char why[200];
        snprintf(why, sizeof why, "%s", sl_error(root->ctx));
        return sl_fail(root->ctx, SL_E_FORMAT, "%s: %s", root->file, why);
    }
    *ret = m;
    return SL_OK;
}

sl_status sl_machine_load(sl_ctx *ctx, const char *file, sl_machine *ret)
{
    sl_json root;
    SL_TRY(sl_json_load(ctx, file, &root));
    sl_status st = sl_machine_read(&root, ret);
    json_decref(root.v);
    return st;
}

static json_t *points(const sl_machine_point *p, uint32_t n, const char *value)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:I, s:f}", "threads", (json_int_t)p[i].threads,
                                              value, p[i].value));
    return list;
}

static json_t *disk_to_json(const sl_machine_disk *d)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < d->n_curves; i++) {
        const sl_machine_curve *c = &d->curve[i];
        json_t *at = json_array();
        for (uint32_t k = 0; k < c->n; k++)
            json_array_append_new(at, json_pack("{s:I, s:f}", "depth", (json_int_t)c->at[k].depth,
                                                "bytes_s", c->at[k].bytes_s));
        json_array_append_new(list, json_pack("{s:I, s:o}", "bytes", (json_int_t)c->bytes, "points",
                                              at));
    }
    /* a name that is no UTF-8 is left out */
    json_t *where = json_string(d->where);
    return json_pack("{s:o, s:f, s:o}", "where", where ? where : json_string(""), "latency_s",
                     d->latency_s, "reads", list);
}

static json_t *gemms_to_json(const sl_machine_gemm *g, uint32_t n)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++, g++) {
        json_t *at = json_array();
        for (uint32_t k = 0; k < g->n; k++)
            json_array_append_new(at, json_pack("{s:I, s:f}", "rows", (json_int_t)g->at[k].rows,
                                                "ops_s", g->at[k].ops_s));
        json_t *v = json_pack("{s:s, s:o}", "type", sl_type_get(g->type)->name, "points", at);
        if (g->threads) json_object_set_new(v, "threads", json_integer(g->threads));
        json_array_append_new(list, v);
    }
    return list;
}

/* 0, which stands for not known, is left out. */
static void set_known(json_t *v, const char *key, double value)
{
    if (value != 0) json_object_set_new(v, key, json_real(value));
}

static json_t *costs_to_json(const sl_machine *m)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < m->n_costs; i++) {
        const sl_machine_cost *c = &m->cost[i];
        json_t *v = json_pack("{s:I, s:f, s:f, s:f, s:f}", "threads", (json_int_t)c->threads,
                              "stage_s", c->stage_s, "elem_s", c->elem_s, "decode_flops_s",
                              c->decode_flops_s, "prefill_flops_s", c->prefill_flops_s);
        set_known(v, "decode_bytes_s", c->decode_bytes_s);
        set_known(v, "corun_cpu", c->corun_cpu);
        set_known(v, "corun_disk", c->corun_disk);
        set_known(v, "corun_tiles", c->corun_tiles);
        set_known(v, "call_s", c->call_s);
        json_array_append_new(list, v);
    }
    return list;
}

static json_t *gpus_to_json(const sl_machine *m)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < m->n_gpus; i++) {
        const sl_machine_gpu *g = &m->gpu[i];
        json_t *v = json_pack("{s:s, s:I, s:f, s:f, s:f, s:f}", "name", g->name, "vram_bytes",
                              (json_int_t)g->vram_bytes, "vram_bytes_s", g->vram_bytes_s,
                              "flops_s", g->flops_s, "h2d_bytes_s", g->h2d_bytes_s, "d2h_bytes_s",
                              g->d2h_bytes_s);
        set_known(v, "h2d_pageable_bytes_s", g->h2d_pageable_bytes_s);
        set_known(v, "d2h_pageable_bytes_s", g->d2h_pageable_bytes_s);
        set_known(v, "copy_s", g->copy_s);
        set_known(v, "launch_s", g->launch_s);
        set_known(v, "decode_flops_s", g->decode_flops_s);
        set_known(v, "prefill_flops_s", g->prefill_flops_s);
        set_known(v, "decode_bytes_s", g->decode_bytes_s);
        set_known(v, "elem_s", g->elem_s);
        if (g->n_gemms) json_object_set_new(v, "gemms", gemms_to_json(g->gemm, g->n_gemms));
        json_array_append_new(list, v);
    }
    return list;
}

static json_t *peaks_to_json(const sl_machine *m)
{
    json_t *peaks = json_object();
    for (int i = 0; i < SL_N_PEAKS; i++)
        if (m->peak_core[i] > 0)
            json_object_set_new(peaks, sl_peak_name((sl_peak)i),
                                json_pack("{s:f, s:f}", "core", m->peak_core[i], "all",
                                          m->peak_all[i]));
    return peaks;
}

static json_t *hardware_to_json(const sl_machine_id *id)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "cpu", id->cpu, "isa", id->isa, "cores",
                     (json_int_t)id->cores, "hw_threads", (json_int_t)id->hw_threads, "l3_bytes",
                     (json_int_t)id->l3_bytes, "ram_bytes", (json_int_t)id->ram_bytes);
}

json_t *sl_machine_to_json(const sl_machine *m)
{
    json_t *root = json_pack("{s:i, s:s}", "sluice_machine", VERSION, "source",
                             sl_machine_source_name(m->source));
    bool bad = !root;
    if (m->notes[0]) bad |= json_object_set_new(root, "notes", json_string(m->notes));
    bad |= json_object_set_new(root, "hardware", hardware_to_json(&m->id));
    bad |= json_object_set_new(root, "dram_read", points(m->dram_read, m->n_dram, "bytes_s"));
    if (m->n_barrier)
        bad |= json_object_set_new(root, "barrier", points(m->barrier, m->n_barrier, "s"));
    bad |= json_object_set_new(root, "peaks", peaks_to_json(m));
    if (m->disk.n_curves) bad |= json_object_set_new(root, "disk", disk_to_json(&m->disk));
    if (root) set_known(root, "read_cpu_s", m->read_cpu_s);
    if (root) set_known(root, "read_host_s", m->read_host_s);
    if (m->n_gemms) bad |= json_object_set_new(root, "gemms", gemms_to_json(m->gemm, m->n_gemms));
    if (m->n_costs) bad |= json_object_set_new(root, "costs", costs_to_json(m));
    if (m->n_gpus) bad |= json_object_set_new(root, "gpus", gpus_to_json(m));
    if (!bad) return root;
    json_decref(root);
    return NULL;
}

sl_status sl_machine_save(sl_ctx *ctx, const sl_machine *m, const char *file)
{
    return sl_json_save(ctx, sl_machine_to_json(m), file);
}
