/* tools/plan_file.c - a saved plan: the decisions that `sluice plan -o` wrote, checked field by
 * field when they are read. */
#include <float.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "offload/sl_ecache.h"
#include "offload/sl_store.h"
#include "runtime/base/sl_json.h"
#include "tools/forecast.h"

static const sl_type kv_types[] = { SL_F16, SL_F32, SL_BF16, SL_Q8_0 };
static const char *const kv_names[] = { "f16", "f32", "bf16", "q8_0" };

sl_type cli_kv_type(uint32_t choice)
{
    return kv_types[SL_MIN(choice, SL_LEN(kv_types) - 1)];
}

const char *cli_kv_name(sl_type type)
{
    for (size_t i = 0; i < SL_LEN(kv_types); i++)
        if (kv_types[i] == type) return kv_names[i];
    return "?";
}

json_t *cli_plan_params_json(const sl_plan_params *p)
{
    json_t *obj = json_pack("{s:I, s:I, s:I, s:I, s:s, s:s, s:b, s:I, s:I}", "n_ctx",
                            (json_int_t)p->n_ctx, "threads", (json_int_t)p->n_threads, "max_rows",
                            (json_int_t)p->max_rows, "ram_bytes",
                            (json_int_t)(p->ram_hard ? p->ram_bytes : 0), "kv_type",
                            cli_kv_name(p->kv_type), "policy",
                            sl_policy_name((sl_policy)p->policy), "lookahead", !p->no_ahead,
                            "read_bytes", (json_int_t)p->read_bytes, "read_depth",
                            (json_int_t)p->read_depth);
    /* missing: as many as fit */
    if (obj && p->max_dense_layers != UINT32_MAX
        && json_object_set_new(obj, "max_dense_layers",
                               json_integer((json_int_t)p->max_dense_layers))) {
        json_decref(obj);
        return NULL;
    }
    return obj;
}

/* One of the names; the field is named when it is none. */
static sl_status read_name(const sl_json *j, const char *key, const char *const *names, size_t n,
                           const char *expected, size_t *ret)
{
    sl_json field;
    SL_TRY(sl_json_get(j, key, &field));
    const char *text = json_string_value(field.v);
    for (size_t i = 0; text && i < n; i++)
        if (!strcmp(text, names[i])) {
            *ret = i;
            return SL_OK;
        }
    return sl_json_expected(&field, expected);
}

static sl_status read_params(const sl_json *root, sl_plan_params *p)
{
    sl_json j, field;
    size_t kv = 0, policy = 0;
    const char *names[SL_N_POLICIES];
    for (int i = 0; i < SL_N_POLICIES; i++) names[i] = sl_policy_name((sl_policy)i);
    SL_TRY(sl_json_get(root, "params", &j));
    SL_TRY(sl_json_u32(&j, "n_ctx", 1, 1 << 24, &p->n_ctx));
    SL_TRY(sl_json_u32(&j, "threads", 1, SL_MACHINE_MAX_THREADS, &p->n_threads));
    SL_TRY(sl_json_u32(&j, "max_rows", 1, 65536, &p->max_rows));
    SL_TRY(sl_json_u64(&j, "ram_bytes", 0, (uint64_t)1 << 50, &p->ram_bytes));
    SL_TRY(read_name(&j, "kv_type", kv_names, SL_LEN(kv_names), "f16, f32, bf16 or q8_0", &kv));
    SL_TRY(read_name(&j, "policy", names, SL_LEN(names), "a policy that --policy knows", &policy));
    SL_TRY(sl_json_get(&j, "lookahead", &field));
    if (!json_is_boolean(field.v)) return sl_json_expected(&field, "true or false");
    SL_TRY(sl_json_u32(&j, "read_bytes", 4096, SL_STORE_MAX_REQUEST, &p->read_bytes));
    SL_TRY(sl_json_u32(&j, "read_depth", 1, SL_STORE_MAX_DEPTH, &p->read_depth));
    SL_TRY(sl_json_get(&j, "read_bytes", &field));
    if (p->read_bytes % 4096) return sl_json_expected(&field, "a multiple of 4096");
    if (sl_json_has(&j, "max_dense_layers"))
        SL_TRY(sl_json_u32(&j, "max_dense_layers", 0, UINT32_MAX, &p->max_dense_layers));
    p->no_ahead = !json_is_true(json_object_get(j.v, "lookahead"));
    p->kv_type = kv_types[kv];
    p->policy = (uint32_t)policy;
    p->ram_hard = p->ram_bytes != 0;
    return SL_OK;
}

static sl_status read_forecast(const sl_json *root, sl_forecast *f)
{
    sl_json j, phase;
    size_t grade = 0, binding = 0;
    const char *grades[SL_GRADE_CALIBRATED + 1], *resources[SL_N_RESOURCES];
    for (int i = 0; i <= SL_GRADE_CALIBRATED; i++) grades[i] = sl_grade_name((sl_grade)i);
    for (int i = 0; i < SL_N_RESOURCES; i++) resources[i] = sl_resource_name((sl_resource)i);
    SL_TRY(sl_json_get(root, "forecast", &j));
    SL_TRY(read_name(&j, "grade", grades, SL_LEN(grades), "datasheet, quick, cold or calibrated",
                     &grade));
    SL_TRY(sl_json_f64(&j, "prompt_tok_per_s", 0, DBL_MAX, &f->prompt.tok_per_s));
    SL_TRY(sl_json_f64(&j, "decode_tok_per_s", 0, DBL_MAX, &f->decode.tok_per_s));
    SL_TRY(sl_json_f64(&j, "ttft_s", 0, DBL_MAX, &f->ttft_s));
    f->grade = (sl_grade)grade;
    SL_TRY(sl_json_get(&j, "prompt", &phase));
    SL_TRY(sl_json_f64(&phase, "seconds", 0, DBL_MAX, &f->prompt.seconds));
    SL_TRY(sl_json_get(&j, "decode", &phase));
    SL_TRY(sl_json_f64(&phase, "seconds", 0, DBL_MAX, &f->decode.seconds));
    SL_TRY(read_name(&phase, "binding", resources, SL_LEN(resources), "the name of a resource",
                     &binding));
    f->decode.binding = (sl_resource)binding;
    return SL_OK;
}

static sl_status read_plan(const sl_json *root, cli_plan_file *ret)
{
    cli_plan_file f = { .params = sl_plan_defaults() };
    sl_json j, field;
    uint32_t version;
    char id[32];
    SL_TRY(sl_json_u32(root, "sluice_plan", 1, 1, &version));
    SL_TRY(sl_json_get(root, "model", &j));
    SL_TRY(sl_json_str(&j, "name", f.model, sizeof f.model));
    SL_TRY(sl_json_get(&j, "shape", &field));
    SL_TRY(sl_json_str(&j, "shape", id, sizeof id));
    f.shape_id = strtoull(id, NULL, 16);
    if (strlen(id) != 16 || strspn(id, "0123456789abcdef") != 16)
        return sl_json_expected(&field, "16 hexadecimal digits");
    SL_TRY(sl_json_get(root, "machine", &j));
    SL_TRY(sl_json_str(&j, "cpu", f.cpu, sizeof f.cpu));
    SL_TRY(sl_json_get(root, "load", &j));
    SL_TRY(sl_json_u32(&j, "n_prompt", 1, 1 << 24, &f.load.n_prompt));
    SL_TRY(sl_json_u32(&j, "n_gen", 0, 1 << 24, &f.load.n_gen));
    SL_TRY(read_params(root, &f.params));
    SL_TRY(read_forecast(root, &f.forecast));
    *ret = f;
    return SL_OK;
}

sl_status cli_plan_load(sl_ctx *ctx, const char *file, cli_plan_file *ret)
{
    sl_json root;
    SL_TRY(sl_json_load(ctx, file, &root));
    sl_status st = read_plan(&root, ret);
    json_decref(root.v);
    return st;
}
