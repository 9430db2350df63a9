/* tests/t_preset.c - the presets' parameter counts against the ones that the makers publish (model
 * cards, technical reports), and what every row must have. */
#include "perfmodel/sl_preset.h"
#include "tests/t.h"

#include <math.h>

/* 1e9; 0: not given */
static const struct { const char *name; double params, active; } published[] = {
    { "qwen3-7b-a1b", 6.95, 0 },           { "qwen3-30b-a3b", 30.5, 3.3 },
    { "qwen3-coder-30b-a3b", 30.5, 3.3 },  { "qwen3-235b-a22b", 235, 22 },
    { "qwen3-coder-480b-a35b", 480, 35 },  { "qwen1.5-moe-a2.7b", 14.3, 2.7 },
    { "qwen2-57b-a14b", 57.41, 14 },       { "olmoe-1b-7b", 6.92, 1.3 },
    { "mixtral-8x7b", 46.7, 12.9 },        { "mixtral-8x22b", 140.6, 39.1 },
    { "gpt-oss-20b", 20.9, 3.6 },          { "gpt-oss-120b", 116.8, 5.1 },
    { "glm-4.5-air", 106.9, 12 },          { "glm-4.5", 352.8, 32 },
    { "glm-4.6", 352.8, 32 },              { "deepseek-v2-lite", 15.7, 2.4 },
    { "deepseek-v2", 235.7, 21 },          { "deepseek-v3", 671, 37 },
    { "deepseek-r1", 671, 37 },            { "moonlight-16b-a3b", 16, 0 },
    { "kimi-k2", 1026, 32 },               { "granite-3-1b-a400m", 1.33, 0.4 },
    { "granite-3-3b-a800m", 3.3, 0.88 },   { "phi-3.5-moe", 41.9, 6.6 },
    { "deepseek-v3.1", 671, 37 },          { "glm-4.7-flash", 30, 3 },
    { "dbrx", 132, 36 },                   { "llama-4-scout", 107.77, 17 },
    { "llama-4-maverick", 400.71, 17 },    { "qwen3-next-80b-a3b", 80, 3 },
    { "qwen3.5-35b-a3b", 35, 3 },          { "minimax-m1", 456, 45.9 },
    { "minimax-m2", 229, 10 },             { "hunyuan-a13b", 80, 13 },
    { "ernie-4.5-21b-a3b", 21.8, 3 },      { "ernie-4.5-300b-a47b", 300, 47 },
    { "ling-lite-1.5", 16.8, 2.75 },       { "ling-mini-2.0", 16.26, 1.4 },
    { "ling-flash-2.0", 103, 6.1 },        { "ling-1t", 1000, 50 },
    { "dots.llm1", 142.8, 14 },            { "arctic", 480, 17 },
    { "trinity-mini", 26, 3 },             { "jamba-1.5-mini", 51.6, 12 },
    { "jamba-1.5-large", 398, 94 },        { "granite-4-h-small", 32.2, 9 },
    { "granite-4-h-tiny", 6.94, 1 },       { "lfm2-8b-a1b", 8.34, 1.5 },
    { "solar-open-100b", 102.6, 12 },      { "glm-5", 744, 40 },
    /* 314 without the embedding */
    { "grok-1", 315.7, 86 },
};

static void check_row(const sl_preset *p)
{
    bool mla = p->kv_lora > 0;
    T_CHECK(p->name && p->title && p->arch, "%s", p->name);
    T_CHECK(p->n_layer && p->d_model && p->n_vocab && p->n_ctx && p->n_head && p->n_rot, "%s",
            p->name);
    T_CHECK(mla ? p->nope && p->v_head
                : p->n_head_kv && p->head_dim && p->n_head % p->n_head_kv == 0,
            "%s", p->name);
    T_CHECK(p->n_expert && p->n_used && p->n_used < p->n_expert && p->d_expert, "%s", p->name);
    T_CHECK(p->n_dense < p->n_layer && !(p->n_dense || p->moe_every) == !p->d_dense, "%s",
            p->name);
    T_CHECK(!p->layout || !strchr(p->layout, SL_LAYER_MIXER) == !p->mixer_in, "%s", p->name);
    T_CHECK(!p->layout || !strchr(p->layout, SL_LAYER_WINDOW) == !p->window, "%s", p->name);
    T_CHECK(p->d_shared == p->n_shared * p->d_expert || !p->n_shared || !p->d_shared, "%s",
            p->name);
    T_CHECK(p->eps > 0 && p->rope_base >= 10000, "%s", p->name);
    T_CHECK(sl_preset_active_params(p) < sl_preset_params(p), "%s", p->name);
}

int main(void)
{
    uint32_t n = 0;
    t_begin();
    for (; sl_preset_at(n); n++) {
        check_row(sl_preset_at(n));
        T_CHECK(sl_preset_find(sl_preset_at(n)->name) == sl_preset_at(n), "%s",
                sl_preset_at(n)->name);
    }
    T_CHECK(n == SL_LEN(published), "%u rows, %zu published counts", n, SL_LEN(published));
    for (size_t i = 0; i < SL_LEN(published); i++) {
        const sl_preset *p = sl_preset_find(published[i].name);
        T_NEED(p, "no preset %s", published[i].name);
        double params = (double)sl_preset_params(p) * 1e-9,
               active = (double)sl_preset_active_params(p) * 1e-9;
        T_CHECK(fabs(params / published[i].params - 1) < 0.005
                    || round(params) == published[i].params,
                "%s: %.3f, published %g", p->name, params, published[i].params);
        /* Makers round or cut ("A3B"), and some count the embedding table. */
        double with_table = active + (double)p->d_model * p->n_vocab * 1e-9;
        T_CHECK(!published[i].active || floor(active) == published[i].active
                    || (published[i].active > active * 0.9
                        && published[i].active < with_table * 1.1),
                "%s: %.3f active, published %g", p->name, active, published[i].active);
    }
    T_CHECK(sl_preset_find("Qwen3-30B-A3B") && !sl_preset_find("qwen3") && !sl_preset_find(""),
            "names");
    return t_end();
}
