/* tools/queue_text.c - the forecast of a file of requests in words and numbers. */
#include "tools/queue_text.h"

#include <math.h>

#include "tools/cli.h"

char *cli_duration(double seconds, char buf[32])
{
    double s = floor(seconds + 0.5);
    if (seconds < 100) snprintf(buf, 32, "%.*f s", seconds < 10 ? 1 : 0, seconds);
    else if (s < 3600) snprintf(buf, 32, "%.0f min %.0f s", floor(s / 60), fmod(s, 60));
    else if (s < 360000)
        snprintf(buf, 32, "%.0f h %.0f min", floor(s / 3600), floor(fmod(s, 3600) / 60));
    else snprintf(buf, 32, "%.1f days", s / 86400);
    return buf;
}

char *cli_queue_line(const sl_queue_choice *c, char buf[200])
{
    const sl_queue_forecast *f = &c->forecast;
    char time[32];
    snprintf(buf, 200, "forecast %.1f tok/s (%s), %s, limited by %s; at most %.1f tok/s",
             f->tok_per_s, sl_grade_name(f->grade), cli_duration(f->seconds, time),
             sl_resource_name(f->binding), c->bound.tok_per_s);
    return buf;
}

bool cli_queue_json(const sl_queue_choice *c, json_t *obj)
{
    const sl_queue_forecast *f = &c->forecast;
    json_t *more = json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "forecast_grade",
                             sl_grade_name(f->grade), "predicted_tok_per_s", f->tok_per_s,
                             "predicted_gen_tok_per_s", f->gen_tok_per_s,
                             "predicted_full_tok_per_s", f->full_tok_per_s, "predicted_s",
                             f->seconds, "bound_tok_per_s", c->bound.tok_per_s,
                             "plan_bound_tok_per_s", f->bound_tok_per_s);
    bool ok = more && !json_object_update(obj, more);
    json_decref(more);
    return ok;
}
