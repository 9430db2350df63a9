/* tests/t_opt.c - options from tables: values, limits, forms, and what is refused. */
#include "tests/t.h"
#include "tools/cli.h"
#include "tools/device_flag.h"

struct args {
    const char *model;
    cli_strings stops;
    uint32_t n, kind;
    int64_t i;
    uint64_t seed, ram;
    float temp;
    bool json;
};

static const cli_option options[] = {
    { "-m,--model", CLI_STR, "FILE", "a file", offsetof(struct args, model), 0, 0 },
    { "-k,--kind", CLI_CHOICE, "f16|f32", "a kind", offsetof(struct args, kind), 0, 0 },
    { "-r,--stop", CLI_STRS, "TEXT", "a text", offsetof(struct args, stops), 0, 0 },
    { "-c,--ctx", CLI_U32, "N", "a count", offsetof(struct args, n), 1, UINT32_MAX },
    { "-n", CLI_I64, "N", "a number", offsetof(struct args, i), -1, 100 },
    { "-s,--seed", CLI_SEED, "N", "a seed", offsetof(struct args, seed), 0, 0 },
    { "--ram", CLI_BYTES, "SIZE", "a size", offsetof(struct args, ram), 0, 0 },
    { "--temp,--temperature", CLI_F32, "T", "a temperature", offsetof(struct args, temp), 0, 100 },
    { "--json", CLI_FLAG, NULL, "a flag", offsetof(struct args, json), 0, 0 },
};

/* Parses a NULL-ended list; the code, or -1 for "go on". */
static int parse(struct args *a, cli_group *g, char **pos, int *n_pos, const char **list)
{
    char *argv[24];
    int argc = 0, code = -1;
    argv[argc++] = (char *)"show";
    while (list[argc - 1]) argv[argc] = (char *)list[argc - 1], argc++;
    *a = (struct args){ .n = 7, .temp = 0.5f };
    *g = (cli_group){ "Options", options, SL_LEN(options), a, 0 };
    cli_spec spec = { "show", "[-m FILE] NAME", "Shows.", g, 1, 2 };
    return cli_parse(&spec, argc, argv, pos, n_pos, &code) ? -1 : code;
}
#define PARSE(...) parse(&a, &g, pos, &n_pos, (const char *[]){ __VA_ARGS__, NULL })

static void check_devices(void)
{
    static const char *const good[] = { "auto", "CPU", "cuda", "cuda:3", "emu", "emu:mem=2G" };
    static const char *const bad[] = {
        "", "tpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "emux", "emu:mem", "emu:mem=0",
        "emu:mem=1Q", "emu:h2d=-1", "emu:lat=10", "emu:lat=2s", "emu:cores=0", "emu:speed=1",
    };
    char why[160];
    sl_accel a = { .kind = SL_ACCEL_CUDA };
    T_CHECK(cli_parse_device(NULL, &a, why) && a.kind == SL_ACCEL_NONE, "no device is the CPU");
    for (size_t i = 0; i < SL_LEN(good); i++)
        T_CHECK(cli_parse_device(good[i], &a, why), "%s: %s", good[i], why);
    a.index = 77;
    for (size_t i = 0; i < SL_LEN(bad); i++)
        T_CHECK(!cli_parse_device(bad[i], &a, why) && strstr(why, "expected"), "%s", bad[i]);
    T_CHECK(a.index == 77, "written on failure");
    T_CHECK(cli_parse_device("cuda:3", &a, why) && a.kind == SL_ACCEL_CUDA && a.index == 3, "3");
    T_CHECK(cli_parse_device("emu:mem=512M,h2d=2G,d2h=1.5g,lat=10us,cores=2", &a, why), "%s", why);
    T_CHECK(a.kind == SL_ACCEL_EMU && a.mem_bytes == 512u << 20 && a.up_bytes_s == 2e9
                && a.down_bytes_s == 1.5e9 && a.link_s == 10e-6 && a.n_cores == 2,
            "settings of an emulated device");
}

int main(void)
{
    t_begin();
    struct args a;
    cli_group g;
    char *pos[2];
    int n_pos = -1;
    /* The complaints are tested by their code only; they would only clutter the log. */
    T_NEED(freopen("/dev/null", "w", stderr), "/dev/null");

    T_CHECK(PARSE("-m", "x.gguf", "name") == -1, "plain");
    T_CHECK(n_pos == 1 && !strcmp(pos[0], "name") && !strcmp(a.model, "x.gguf"), "plain values");
    T_CHECK(a.n == 7 && a.temp == 0.5f && !a.json, "defaults stay");
    T_CHECK(cli_given(&g, "--model") && cli_given(&g, "-m") && !cli_given(&g, "--json"), "given");
    T_CHECK(PARSE("--model=a=b", "--temperature=0.25", "--json") == -1, "with =");
    T_CHECK(!strcmp(a.model, "a=b") && a.temp == 0.25f && a.json && !n_pos, "values with =");
    T_CHECK(PARSE("-m", "-h", "-n", "-1") == -1 && !strcmp(a.model, "-h") && a.i == -1,
            "values may look like flags");
    T_CHECK(PARSE("-", "", "-m", "") == -1 && n_pos == 2 && !*a.model,
            "- and empty are positional");
    T_CHECK(PARSE("--", "-m", "-x") == -1 && n_pos == 2 && !strcmp(pos[1], "-x"),
            "-- ends options");
    T_CHECK(PARSE("-r", "a", "--stop", "b", "--stop=c") == -1 && a.stops.n == 3, "repeated");
    T_CHECK(!strcmp(a.stops.s[2], "c"), "in order");
    T_CHECK(PARSE("-c", "4294967295") == -1 && a.n == UINT32_MAX, "largest");
    T_CHECK(PARSE("--ram", "1.5G") == -1 && a.ram == 3ull << 29, "a size");
    T_CHECK(PARSE("--ram", "auto") == -1 && a.ram == 0, "auto");
    T_CHECK(PARSE("-s", "9223372036854775807") == -1 && a.seed == INT64_MAX, "largest seed");
    T_CHECK(PARSE("-k", "F32") == -1 && a.kind == 1, "a choice in any case of letters");

    static const char *const bad[][3] = {
        { "-x" }, { "--mode", "x" }, { "-m" }, { "-c", "0" }, { "-c", "-1" }, { "-c", "1x" },
        { "-c", "4294967296" }, { "-c", "" }, { "-c", " " }, { "-n", "-2" }, { "-n", "101" },
        { "-n", "1e1" },
        { "-n", "99999999999999999999" },
        { "--temp", "nan" }, { "--temp", "inf" }, { "--temp", "-0.1" }, { "--temp", "x" },
        { "--temp", "" },
        { "--ram", "x" }, { "--ram", "-1G" }, { "--ram", "1Q" }, { "--ram", "0" }, { "--ram", "8" },
        { "-s", "-2" }, { "-s", "1.5" },
        { "-s", "" }, { "-s", "9223372036854775808" }, { "-k", "f1" }, { "-k", "f16|f32" },
        { "-k", "" }, { "--json=1" },
        { "-m=x" }, { "-mx" }, { "a", "b", "c" }, { "-r" },
    };
    for (size_t i = 0; i < SL_LEN(bad); i++)
        T_CHECK(PARSE(bad[i][0], bad[i][1], bad[i][2]) == CLI_USAGE, "%s %s", bad[i][0],
                bad[i][1] ? bad[i][1] : "");
    const char *many[CLI_MAX_STRINGS + 2] = { NULL };
    for (int i = 0; i <= CLI_MAX_STRINGS; i++) many[i] = "--stop=x";
    T_CHECK(parse(&a, &g, pos, &n_pos, many) == CLI_USAGE && a.stops.n == CLI_MAX_STRINGS,
            "too many");
    check_devices();
    printf("%lu checks, %lu failed\n", t_checks, t_failed);
    return t_failed != 0;
}
