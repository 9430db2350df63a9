/* tools/cmd_report.c - `sluice report`: forecast, machine and what was measured as one page that
 * opens anywhere. The page stands ready in the program (tools/report/); its data goes between. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/sl_probe.h"
#include "runtime/base/sl_out.h"
#include "runtime/sl_source.h"
#include "tools/forecast.h"
#include "tools/machine_file.h"
#include "tools/report_data.h"
#include "tools/report_page.h"
#include "tools/session.h"
#include "tools/validation.h"

struct args {
    const char *log, *out;
};

#define AT(field) offsetof(struct args, field)
static const cli_option options[] = {
    { "--log", CLI_STR, "FILE",
      "draw this log of `sluice verify` (default: what its own log says of the same CPU)", AT(log),
      0, 0 },
    { "-o,--output", CLI_STR, "FILE", "where to write, - for stdout (default: report.html)",
      AT(out), 0, 0 },
};
#undef AT

static const char *const about =
    "Writes one HTML page, complete in itself: what speed to expect and what limits it, the "
    "machine's curves, the model's bytes, a roofline, forecasts over memory, context and prompt "
    "chunks, the timeline of a pass, what to buy, and forecasts beside measurements. Nothing of "
    "the model is run.";

struct report {
    const struct args *a;
    const cli_asked *asked;
    const cli_engine_args *engine;
    const cli_group *group;     /* of engine */
    sl_ctx *ctx;
    sl_source *source;
    sl_machine machine;
    bool here;                  /* it is this machine */
    sl_miss_model miss;
    sl_choice choice;
    sl_load load;
    json_t *validation;
};

/* ---- what goes in ---- */

static int plan(struct report *r)
{
    const sl_shape *shape = r->source->shape;
    sl_planner_params p;
    int code = cli_asked_params(r->asked, r->engine, r->group, r->ctx, shape, &r->machine, r->here,
                                &p);
    if (code != CLI_DONE) return code;
    r->load = p.load;
    if (sl_planner_run(r->ctx, &r->machine, shape, &r->miss, &p, true, &r->choice) != SL_OK)
        return cli_fail_ctx(r->ctx);
    return CLI_DONE;
}

/* Lines of the user's own log that were measured on another CPU say nothing here. */
static void keep_same_cpu(json_t *lines, const char *cpu)
{
    for (size_t i = json_array_size(lines); i-- > 0; ) {
        const char *on = json_string_value(json_object_get(json_array_get(lines, i), "cpu"));
        if (!on || strcmp(on, cpu)) json_array_remove(lines, i);
    }
}

static int load_log(struct report *r)
{
    char *own = r->a->log ? NULL : validation_path();
    const char *path = r->a->log ? r->a->log : own;
    int code = CLI_DONE;
    if (r->a->log && access(r->a->log, R_OK))
        code = cli_fail("open %s: %s", r->a->log, strerror(errno));
    else if (path && validation_load(r->ctx, path, &r->validation) != SL_OK)
        code = cli_fail_ctx(r->ctx);
    else if (own) keep_same_cpu(r->validation, r->machine.id.cpu);
    free(own);
    return code;
}

/* A machine that was asked for need not be this one. */
static int machine(struct report *r)
{
    sl_machine_id now;
    char why[200];
    r->here = true;
    if (!r->asked->machine) return cli_machine(r->ctx, NULL, &r->machine, NULL);
    int code = cli_machine_load(r->ctx, r->asked->machine, &r->machine);
    if (code == CLI_DONE && sl_probe_identify(r->ctx, &now) != SL_OK) code = cli_fail_ctx(r->ctx);
    if (code == CLI_DONE) r->here = sl_machine_same(&r->machine.id, &now, why);
    return code;
}

static int gather(struct report *r)
{
    char *path = cli_model_path(r->engine->model);
    if (!path) return CLI_FAILED;
    sl_status st = sl_source_open(r->ctx, path, r->asked->quant, &r->source);
    free(path);
    if (st != SL_OK) return cli_fail_ctx(r->ctx);
    int code = machine(r);
    if (code == CLI_DONE)
        code = cli_miss_model(r->ctx, r->source->shape, r->asked->trace, true, &r->miss);
    if (code == CLI_DONE) code = plan(r);
    if (code == CLI_DONE) code = load_log(r);
    return code;
}

/* ---- what comes out ---- */

/* In an HTML page only '<' could end the element that holds the data; '>' and '&' keep readers of
 * old rules away too. In JSON these stand inside strings only. */
static bool write_data(FILE *out, const char *json)
{
    for (const char *s = json; *s; ) {
        size_t n = strcspn(s, "<>&");
        if (fwrite(s, 1, n, out) != n) return false;
        s += n;
        if (*s && fprintf(out, "\\u%04x", (unsigned)*s++) < 0) return false;
    }
    return true;
}

static bool write_page(FILE *out, const char *json)
{
    return fwrite(report_head, 1, report_head_n, out) == report_head_n && write_data(out, json)
        && fwrite(report_tail, 1, report_tail_n, out) == report_tail_n && !fflush(out);
}

static int write_file(sl_ctx *ctx, const char *path, const char *json)
{
    sl_out out;
    if (sl_out_open(ctx, path, &out) != SL_OK) return cli_fail_ctx(ctx);
    (void)write_page(out.file, json);   /* what failed is said at the end */
    return sl_out_close(ctx, &out, SL_OK) == SL_OK ? CLI_DONE : cli_fail_ctx(ctx);
}

static int write_report(struct report *r)
{
    const sl_source *s = r->source;
    report_in in = {
        .model = s->title, .arch = s->arch, .quant = s->quant, .exact = s->exact,
        .machine = &r->machine, .shape = s->shape, .miss = &r->miss, .choice = &r->choice,
        .load = r->load, .validation = r->validation,
    };
    const char *path = r->a->out ? r->a->out : "report.html";
    json_t *data;
    if (report_data(r->ctx, &in, &data) != SL_OK) return cli_fail_ctx(r->ctx);
    char *json = json_dumps(data, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(7));
    json_decref(data);
    if (!json) return cli_fail("out of memory");
    int code;
    if (!strcmp(path, "-")) {
        code = write_page(stdout, json) ? cli_end_stdout(CLI_DONE)
                                        : cli_fail("writing to stdout: %s", strerror(errno));
    } else {
        code = write_file(r->ctx, path, json);
        if (code == CLI_DONE) cli_note("%s is written: open it in a browser", path);
    }
    free(json);
    return code;
}

int cmd_report(int argc, char **argv)
{
    struct args a = { .out = NULL };
    cli_asked asked = cli_asked_defaults();
    cli_engine_args engine = cli_engine_defaults();
    cli_group groups[] = {
        cli_asked_group(&asked),
        { "Output", options, SL_LEN(options), &a, 0 },
        cli_engine_group(&engine),
    };
    cli_spec spec = { "report", "-m MODEL.gguf|PRESET|config.json [--machine FILE|NAME] [-o FILE]",
                      about, groups, SL_LEN(groups), 0 };
    int code;
    if (!cli_parse(&spec, argc, argv, NULL, NULL, &code)) return code;
    if (engine.plan) return cli_usage_error(&spec, "--plan is for running");
    if (cli_given(&groups[2], "--device") || cli_given(&groups[2], "--vram"))
        cli_warn("--device and --vram have no effect on a report");
    struct report *r = calloc(1, sizeof *r);
    if (!r) return cli_fail("out of memory");
    r->a = &a;
    r->asked = &asked;
    r->engine = &engine;
    r->group = &groups[2];
    r->ctx = cli_ctx(false);
    code = r->ctx ? gather(r) : CLI_FAILED;
    if (code == CLI_DONE) code = write_report(r);
    json_decref(r->validation);
    sl_source_close(&r->source);
    sl_ctx_destroy(&r->ctx);
    free(r);
    return code;
}
