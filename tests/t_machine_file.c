/* tests/t_machine_file.c - which machine a command works with: a file, a shipped name, the kept one
 * if it is of this hardware and of this format. */
#include "offload/sl_probe.h"
#include "perfmodel/sl_forecast.h"
#include "tests/t.h"
#include "tools/machine_file.h"

static sl_ctx *ctx;

static void check_named(void)
{
    sl_machine m = { .n_dram = 77 };
    bool fits = true;
    T_CHECK(cli_machine_load(ctx, "laptop-16gb", &m) == CLI_DONE && m.id.cores == 8, "by name");
    T_CHECK(cli_machine_load(ctx, "moe-lens-a40", &m) == CLI_DONE && m.n_gpus == 1
            && m.gpu[0].h2d_bytes_s == 19.5e9, "the link of the paper: %g", m.gpu[0].h2d_bytes_s);
    T_CHECK(cli_machine(ctx, "server-a100", &m, &fits) == CLI_DONE && !fits
            && m.source == SL_MACHINE_DATASHEET, "of other hardware: a warning");
    T_CHECK(cli_machine(ctx, "server-a100", &m, NULL) == CLI_DONE, "nobody asks whether it fits");
    m.n_dram = 77;
    static const char *const none[] = { "laptop-16g", "", "./laptop-16gb", "../machines", ".",
                                        "laptop-16gb.json" };
    for (size_t i = 0; i < SL_LEN(none); i++)
        T_CHECK(cli_machine_load(ctx, none[i], &m) == CLI_FAILED && m.n_dram == 77, "%s", none[i]);
    char *path = cli_shipped("machines/laptop-16gb.json");
    T_NEED(path, "not shipped");
    T_CHECK(cli_machine_load(ctx, path, &m) == CLI_DONE && m.id.cores == 8, "%s", path);
    free(path);
}

static void check_kept(void)
{
    char tmp[] = "/tmp/t_machine_file_XXXXXX";
    sl_machine m, back;
    T_NEED(mkdtemp(tmp) && !setenv("XDG_CACHE_HOME", tmp, 1), "a folder");
    T_CHECK(!cli_machine_kept(ctx, &back), "nothing is kept");
    char *path = cli_machine_path();
    T_NEED(path && cli_make_parents(ctx, path) == SL_OK, "%s", sl_error(ctx));
    T_NEED(cli_machine_load(ctx, "desktop-64gb", &m) == CLI_DONE, "a machine");
    T_CHECK(sl_machine_save(ctx, &m, path) == SL_OK && !cli_machine_kept(ctx, &back), "another's");
    T_NEED(sl_probe_identify(ctx, &m.id) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_machine_save(ctx, &m, path) == SL_OK && cli_machine_kept(ctx, &back)
            && back.n_dram == m.n_dram, "this one's: %s", sl_error(ctx));
    json_t *v = sl_machine_to_json(&m);
    json_object_set_new(v, "sluice_machine", json_integer(1));
    T_CHECK(sl_json_save(ctx, v, path) == SL_OK && !cli_machine_kept(ctx, &back), "format 1");
    char folder[64];
    snprintf(folder, sizeof folder, "%s/sluice", tmp);
    T_CHECK(!unlink(path) && !rmdir(folder) && !rmdir(tmp), "nothing else was written");
    free(path);
}

static sl_accel card(uint32_t index, const char *name)
{
    sl_accel a = { .kind = SL_ACCEL_CUDA, .index = index };
    snprintf(a.name, sizeof a.name, "%s", name);
    return a;
}

/* Cards that a machine's file does not describe are found by name among the described machines. */
static void check_cards(void)
{
    sl_machine m;
    sl_machine_gpu g;
    sl_accel a = card(0, "NVIDIA GeForce RTX 4070"), none = { .kind = SL_ACCEL_NONE };
    T_NEED(cli_machine_load(ctx, "desktop-64gb", &m) == CLI_DONE && !m.n_gpus, "a machine");
    T_CHECK(!sl_forecast_gpu(&m, &a, &g), "a machine without cards");
    T_CHECK(cli_machine_card(ctx, &none, &m) && !m.n_gpus, "no accelerator");
    T_CHECK(cli_machine_card(ctx, &a, &m) && m.n_gpus == 1, "a described card");
    T_CHECK(sl_forecast_gpu(&m, &a, &g) && g.vram_bytes == 12884901888 && !g.n_gemms,
            "its numbers");
    a = card(3, "NVIDIA GeForce RTX 5090");
    T_CHECK(cli_machine_card(ctx, &a, &m) && m.n_gpus == 2 && cli_machine_card(ctx, &a, &m)
            && m.n_gpus == 2, "another one, whatever its number, once: %u", m.n_gpus);
    T_CHECK(sl_machine_check(ctx, &m) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_forecast_gpu(&m, &a, &g) && !strcmp(g.name, a.name), "by its name: %s", g.name);
    a = card(1, "");
    T_CHECK(sl_forecast_gpu(&m, &a, &g) && !strcmp(g.name, "NVIDIA GeForce RTX 5090"),
            "a nameless one by its number");
    a = card(0, "NVIDIA Nothing 1");
    T_CHECK(!cli_machine_card(ctx, &a, &m) && m.n_gpus == 2, "nobody described it");
    a = card(2, "");
    T_CHECK(!cli_machine_card(ctx, &a, &m), "nor one without a name");
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    check_named();
    check_kept();
    check_cards();
    sl_ctx_destroy(&ctx);
    return t_end();
}
