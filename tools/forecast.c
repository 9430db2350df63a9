/* tools/forecast.c - forecasts as text and JSON, and what they are made of. */
#include "tools/forecast.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/sl_ecache.h"
#include "offload/sl_probe.h"
#include "offload/sl_store.h"
#include "offload/sl_trace.h"
#include "runtime/base/sl_pool.h"
#include "tools/machine_file.h"
#include "tools/session.h"

void cli_set_budget(uint64_t ram_bytes, uint64_t available, sl_plan_params *p)
{
    const uint64_t own = 28u << 20;     /* stacks, the C library's heap */
    /* Page tables take 1/512, whatever the size of pages (with huge ones the kernel keeps a table
     * in reserve for each); a ring that knows its buffers page by page as much again. */
    const uint64_t used = available ? SL_MIN(ram_bytes, available) : ram_bytes;
    const uint64_t tables = used / 256;
    p->ram_bytes = ram_bytes ? ram_bytes : available - available / 16;
    p->ram_hard = ram_bytes != 0;
    p->process_bytes = own + tables + (ram_bytes ? cli_held_bytes() : 0);
}

uint64_t cli_plan_available(const sl_machine *m, bool here)
{
    uint64_t system = SL_MIN(m->id.ram_bytes / 8, (uint64_t)2 << 30);
    return here ? cli_available_bytes() : m->id.ram_bytes - system;
}

void cli_set_reads(const sl_machine *m, sl_plan_params *p)
{
    /* While experts are computed nothing is sent, so what keeps the disk busy for some ms is asked
     * for. */
    enum { BYTES = 512 << 10, FLYING = 32 << 20, LEAST = 16 };
    uint32_t bytes, depth;
    double best_s;
    if (!m || !sl_machine_disk_best(m, &bytes, &depth, &best_s)) bytes = BYTES, depth = LEAST;
    p->read_bytes = bytes;
    p->read_depth = SL_MIN(SL_MAX(SL_MAX(depth, FLYING / bytes), LEAST), SL_STORE_MAX_DEPTH);
}

/* Where a result may be kept: the path is free, and its folders are there; NULL otherwise. */
static char *free_path(sl_ctx *ctx)
{
    if (!getenv("HOME") && !getenv("XDG_CACHE_HOME")) return NULL;
    char *path = cli_machine_path();
    if (path && access(path, F_OK) && cli_make_parents(ctx, path) == SL_OK) return path;
    if (path && !access(path, F_OK))
        cli_note("%s is not of this machine as it is now, or of an older sluice: `sluice probe` "
                 "writes it anew", path);
    free(path);
    return NULL;
}

/* About 3 s; kept where nothing is kept yet. The disk is the model file's, or that of the folder
 * where results are kept. */
static int measure_quick(sl_ctx *ctx, const char *model, sl_machine *ret)
{
    char *path = free_path(ctx);
    double load;
    cli_note("measuring this machine for 3 s; `sluice probe` does it thoroughly");
    if (getloadavg(&load, 1) == 1 && load > sl_pool_cores(ctx))
        cli_warn("other programs are busy (load %.1f on %" PRIu32 " cores): what is measured now "
                 "is too low; `sluice probe` measures again", load, sl_pool_cores(ctx));
    sl_status st = sl_probe_run(ctx, &(sl_probe_params){ .quick = true }, ret);
    int code = st == SL_OK ? CLI_DONE : cli_fail_ctx(ctx);
    char *folder = path && !model ? strndup(path, (size_t)(strrchr(path, '/') - path)) : NULL;
    sl_probe_disk_params dp = { .quick = true, .file = model, .folder = folder };
    if (st == SL_OK && (model || folder) && sl_probe_disk(ctx, &dp, ret) != SL_OK) {
        cli_warn("the disk is not measured: %s", sl_error(ctx));
        ret->disk.n_curves = 0;
    }
    if (st == SL_OK && ret->disk.first_bytes_s > 0)
        cli_note("%s was not read for a while: first reads come at %.2f GB/s, later ones faster",
                 model, ret->disk.first_bytes_s * 1e-9);
    if (st == SL_OK && path && sl_machine_save(ctx, ret, path) == SL_OK)
        cli_note("kept in %s", path);
    free(folder);
    free(path);
    return code;
}

int cli_machine_for_plan(sl_ctx *ctx, const char *name, const char *model, sl_machine *ret,
                         bool *ret_here)
{
    sl_machine_id now;
    char why[200];
    *ret_here = true;
    if (!name && cli_machine_kept(ctx, ret)) return CLI_DONE;
    if (!name) {
        int measured = measure_quick(ctx, model, ret);
        ret->disk.first_bytes_s = 0;    /* of this minute: a plan is for any */
        return measured;
    }
    if (sl_probe_identify(ctx, &now) != SL_OK) return cli_fail_ctx(ctx);
    int code = cli_machine_load(ctx, name, ret);
    if (code == CLI_DONE) *ret_here = sl_machine_same(&ret->id, &now, why);
    return code;
}

bool cli_machine_for_run(sl_ctx *ctx, const char *model, uint64_t weights_bytes, sl_machine *ret)
{
    const uint64_t small = (uint64_t)1 << 30;   /* opens in less than a probe takes */
    if (cli_machine_kept(ctx, ret)) return true;
    return weights_bytes >= small && measure_quick(ctx, model, ret) == CLI_DONE;
}

int cli_miss_model(sl_ctx *ctx, const sl_shape *shape, const char *trace, bool one_text,
                   sl_miss_model *ret)
{
    uint32_t n_expert = 0, n_used = 0;
    for (uint32_t l = 0; l < shape->n_layer; l++)
        if (shape->layers[l].n_expert > n_expert) {
            n_expert = shape->layers[l].n_expert;
            n_used = shape->layers[l].n_used;
        }
    *ret = sl_miss_default(n_expert, n_used);
    if (one_text) sl_miss_one_text(ret, n_expert, n_used);
    if (!trace) return CLI_DONE;
    sl_trace *t;
    if (sl_trace_load(ctx, trace, &t) != SL_OK) return cli_fail_ctx(ctx);
    int code = CLI_DONE;
    if (t->n_layer != shape->n_layer || t->n_expert != n_expert || t->n_used != n_used)
        code = cli_fail("%s is of another model: %" PRIu32 " layers, %" PRIu32 " of %" PRIu32
                        " experts; this one has %" PRIu32 ", %" PRIu32 " of %" PRIu32, trace,
                        t->n_layer, t->n_used, t->n_expert, shape->n_layer, n_used,
                        n_expert);
    else if (sl_trace_miss_model(ctx, t, SL_POLICY_DEFAULT, ret) != SL_OK) code = cli_fail_ctx(ctx);
    else if (!ret->n_points)
        code = cli_fail("%s has no tokens that were written one after another", trace);
    sl_trace_free(ctx, &t);
    return code;
}

/* ---- text ---- */

const char *cli_grade_text(sl_grade g)
{
    switch (g) {
    case SL_GRADE_DATASHEET: return "from data sheets: nobody measured this machine";
    case SL_GRADE_QUICK: return "this machine was measured for 3 s; typical routing is assumed";
    case SL_GRADE_COLD: return "this machine was measured; typical routing is assumed";
    case SL_GRADE_CALIBRATED: return "this machine was measured, and this model's routing is known";
    }
    return "";
}

const char *cli_grade_raise(sl_grade g)
{
    switch (g) {
    case SL_GRADE_DATASHEET: return "run `sluice probe` on that machine";
    case SL_GRADE_QUICK: return "run `sluice probe` (under a minute)";
    case SL_GRADE_COLD:
        return "record the model's routing with `sluice run --trace-routing FILE`, and give it "
               "with --trace FILE";
    case SL_GRADE_CALIBRATED: break;
    }
    return NULL;
}

char *cli_forecast_line(const sl_forecast *f, char buf[160])
{
    char decode[96] = "", prompt[48] = "";
    if (f->decode.seconds > 0)
        snprintf(decode, sizeof decode, " %.1f tok/s (%s), limited by %s", f->decode.tok_per_s,
                 sl_grade_name(f->grade), sl_resource_name(f->decode.binding));
    if (f->prompt.seconds > 0)
        snprintf(prompt, sizeof prompt, "%s prompt %.1f tok/s", *decode ? ";" : "",
                 f->prompt.tok_per_s);
    snprintf(buf, 160, "forecast%s%s", decode, prompt);
    return buf;
}

char *cli_forecast_error(double predicted, double measured, char buf[24])
{
    snprintf(buf, 24, "%+.1f %%", 100 * (predicted / measured - 1));
    return buf;
}

/* ---- JSON ---- */

static json_t *phase_json(const sl_phase *p)
{
    json_t *busy = json_object();
    int bad = !busy;
    for (int r = 0; r < SL_N_RESOURCES && busy; r++)
        if (p->busy_s[r] > 0)
            bad |= json_object_set_new(busy, sl_resource_name((sl_resource)r),
                                       json_real(p->busy_s[r]));
    if (bad) {
        json_decref(busy);
        return NULL;
    }
    return json_pack("{s:f, s:f, s:f, s:f, s:s, s:s, s:o}", "seconds", p->seconds, "tok_per_s",
                     p->tok_per_s, "wait_s", p->wait_s, "disk_bytes", p->disk_bytes, "binding",
                     sl_resource_name(p->binding), "next", sl_resource_name(p->next), "busy_s",
                     busy);
}

json_t *cli_forecast_json(const sl_forecast *f)
{
    json_t *prompt = phase_json(&f->prompt), *decode = phase_json(&f->decode);
    /* o takes both over, also when it fails */
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:o, s:o}", "grade",
                     sl_grade_name(f->grade), "prompt_tok_per_s", f->prompt.tok_per_s,
                     "decode_tok_per_s", f->decode.tok_per_s, "ttft_s", f->ttft_s, "hit_rate",
                     f->hit_rate, "disk_bytes_per_token", f->disk_bytes_per_token, "stall_share",
                     f->stall_share, "peak_rss_bytes", (json_int_t)f->peak_bytes, "prompt", prompt,
                     "decode", decode);
}

bool cli_predicted_json(const sl_forecast *f, json_t *obj)
{
    int bad = json_object_set_new(obj, "forecast_grade", json_string(sl_grade_name(f->grade)));
    if (f->prompt.tok_per_s > 0)
        bad |= json_object_set_new(obj, "predicted_prompt_tok_per_s",
                                   json_real(f->prompt.tok_per_s));
    if (f->decode.tok_per_s > 0)
        bad |= json_object_set_new(obj, "predicted_decode_tok_per_s",
                                   json_real(f->decode.tok_per_s));
    bad |= json_object_set_new(obj, "predicted_ttft_s", json_real(f->ttft_s));
    return !bad;
}
