/* offload/machine_json.c - a machine from and to JSON. */
#include "offload/sl_machine_json.h"

#include <stdio.h>
#include <string.h>

enum { VERSION = 1 };

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
        SL_TRY(sl_json_f64(&j, value, 0, 1e18, &p[i].value));
    }
    *ret_n = (uint32_t)n;
    return SL_OK;
}

static sl_status read_peaks(const sl_json *root, sl_machine *m)
{
    sl_json peaks, j;
    SL_TRY(sl_json_get(root, "peaks", &peaks));
    if (!json_is_object(peaks.v)) return sl_json_expected(&peaks, "an object");
    for (int i = 0; i < SL_N_PEAKS; i++) {
        if (!sl_json_has(&peaks, sl_peak_name((sl_peak)i))) continue;
        SL_TRY(sl_json_get(&peaks, sl_peak_name((sl_peak)i), &j));
        SL_TRY(sl_json_f64(&j, "core", 0, 1e18, &m->peak_core[i]));
        SL_TRY(sl_json_f64(&j, "all", 0, 1e18, &m->peak_all[i]));
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
        SL_TRY(sl_json_f64(&p, "bytes_s", 0, 1e18, &c->at[i].bytes_s));
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
    SL_TRY(sl_json_f64(&disk, "latency_s", 0, 1e18, &d->latency_s));
    SL_TRY(sl_json_array(&disk, "reads", 1, SL_MACHINE_CURVES, &list, &n));
    for (size_t i = 0; i < n; i++) {
        sl_json_at(&list, i, &j);
        SL_TRY(read_curve(&j, i ? d->curve[i - 1].bytes + 1 : 1, &d->curve[i]));
    }
    d->n_curves = (uint32_t)n;
    return SL_OK;
}

sl_status sl_machine_read(const sl_json *root, sl_machine *ret)
{
    sl_machine m = { 0 };
    sl_json j;
    uint32_t version, source = 0;
    SL_TRY(sl_json_u32(root, "sluice_machine", VERSION, VERSION, &version));
    SL_TRY(sl_json_get(root, "source", &j));
    const char *name = json_string_value(j.v);
    while (source <= SL_MACHINE_MEASURED && (!name || strcmp(name, sl_machine_source_name(source))))
        source++;
    if (source > SL_MACHINE_MEASURED) return sl_json_expected(&j, "datasheet, quick or measured");
    m.source = (sl_machine_source)source;
    SL_TRY(read_hardware(root, &m.id));
    SL_TRY(read_points(root, "dram_read", "bytes_s", m.dram_read, &m.n_dram));
    SL_TRY(read_points(root, "barrier", "s", m.barrier, &m.n_barrier));
    SL_TRY(read_peaks(root, &m));
    SL_TRY(read_disk(root, &m.disk));
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

json_t *sl_machine_to_json(const sl_machine *m)
{
    json_t *peaks = json_object();
    for (int i = 0; i < SL_N_PEAKS; i++)
        if (m->peak_core[i] > 0)
            json_object_set_new(peaks, sl_peak_name((sl_peak)i),
                                json_pack("{s:f, s:f}", "core", m->peak_core[i], "all",
                                          m->peak_all[i]));
    json_t *root = json_pack("{s:i, s:s, s:{s:s, s:s, s:I, s:I, s:I, s:I}, s:o, s:o, s:o}",
                     "sluice_machine", VERSION, "source", sl_machine_source_name(m->source),
                     "hardware", "cpu", m->id.cpu, "isa", m->id.isa, "cores",
                     (json_int_t)m->id.cores, "hw_threads", (json_int_t)m->id.hw_threads,
                     "l3_bytes", (json_int_t)m->id.l3_bytes, "ram_bytes",
                     (json_int_t)m->id.ram_bytes, "dram_read",
                     points(m->dram_read, m->n_dram, "bytes_s"), "barrier",
                     points(m->barrier, m->n_barrier, "s"), "peaks", peaks);
    if (root && m->disk.n_curves && json_object_set_new(root, "disk", disk_to_json(&m->disk))) {
        json_decref(root);
        root = NULL;
    }
    return root;
}

sl_status sl_machine_save(sl_ctx *ctx, const sl_machine *m, const char *file)
{
    return sl_json_save(ctx, sl_machine_to_json(m), file);
}
