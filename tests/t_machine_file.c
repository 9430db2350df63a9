/* tests/t_machine_file.c - which machine a command works with: a file, a shipped name, the kept one
 * if it is of this hardware and of this format. */
#include "offload/sl_probe.h"
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

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    check_named();
    check_kept();
    sl_ctx_destroy(&ctx);
    return t_end();
}
