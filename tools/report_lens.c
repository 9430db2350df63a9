/* tools/report_lens.c - bounds of what the engine has no path for yet: many sequences together, and
 * part of the weights in a GPU's memory. */
#include "perfmodel/sl_lens.h"
#include "tools/report_data.h"

/* many (the caller's) is how rows of many texts are routed. */
static sl_lens_box box_of(const report_in *in, const sl_machine_gpu *gpu, sl_miss_model *many)
{
    const sl_choice *c = in->choice;
    *many = *in->miss;
    if (!many->traced) many->n_distinct = 0;
    return (sl_lens_box){
        .machine = in->machine, .gpu = gpu, .shape = in->shape, .miss = many,
        .threads = c->plan.n_threads, .ram_bytes = (double)c->params.ram_bytes,
        .kv_type = c->params.kv_type, .kv_block = SL_KV_BLOCK_ROWS,
    };
}

static json_t *point(double x, double tok_per_s, sl_resource binding)
{
    return json_pack("{s:f, s:f, s:s}", "x", x, "tok_per_s", tok_per_s, "binding",
                     report_resource(binding));
}

static json_t *batch_curve(const report_in *in, const char *name, const sl_machine_gpu *gpu)
{
    sl_miss_model many;
    sl_lens_box box = box_of(in, gpu, &many);
    json_t *points = json_array();
    /* of a few sequences the experts' reuse decides, which is not in these formulas */
    for (uint32_t n = 16; n <= 4096; n *= 2) {
        sl_lens_bound b = sl_lens_round(&box, n, in->load.n_prompt, in->load.n_gen);
        if (b.gen_tok_per_s <= 0) break;
        json_array_append_new(points, point(n, b.gen_tok_per_s, b.binding));
    }
    return json_pack("{s:s, s:o}", "name", name, "points", points);
}

json_t *report_batch(const report_in *in)
{
    const sl_machine *m = in->machine;
    if (!in->load.n_gen) return json_null();
    json_t *curves = json_array();
    json_array_append_new(curves, batch_curve(in, "all on the CPU", NULL));
    if (m->n_gpus) json_array_append_new(curves, batch_curve(in, "with the GPU", &m->gpu[0]));
    return json_pack("{s:s, s:s, s:f, s:b, s:o}", "title", "Sequences at once", "words",
                     "Tokens written a second by all together, the time of their prompts counted: "
                     "each weight that is read serves them all.",
                     "unit", 1.0, "log", true, "curves", curves);
}

json_t *report_vram(const report_in *in)
{
    const sl_machine *m = in->machine;
    if (!m->n_gpus || !in->load.n_gen) return json_null();
    sl_miss_model many;
    sl_lens_box box = box_of(in, &m->gpu[0], &many);
    json_t *points = json_array();
    for (double gib = 2; gib <= 96; gib *= 1.41421356) {
        box.vram_bytes = gib * (1 << 30);
        sl_forecast f = sl_lens_latency(&box, in->load, in->choice->plan.max_rows);
        if (f.decode.tok_per_s > 0)
            json_array_append_new(points,
                                  point(box.vram_bytes, f.decode.tok_per_s, f.decode.binding));
    }
    return json_pack("{s:s, s:s, s:f, s:b, s:f, s:s, s:[{s:s, s:o}]}", "title",
                     "One sequence, by GPU memory", "words",
                     "Dense weights and popular experts lie there, the others in RAM or on disk.",
                     "unit", (double)(1 << 30), "log", true, "at", (double)m->gpu[0].vram_bytes,
                     "mark", "this GPU", "curves", "name", "bound", "points", points);
}
