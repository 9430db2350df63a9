/* tools/sluice.c - the binary: one table of commands. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli.h"

struct command {
    const char *name;
    int (*fn)(int argc, char **argv);
    const char *help;
};

static const struct command commands[] = {
    { "run", cmd_run, "continue a text" },
    { "chat", cmd_chat, "talk with a model through its chat template" },
    { "batch", cmd_batch, "answer a file of prompts, as many tokens an hour as can be" },
    { "eval", cmd_eval, "perplexity of a text, and raw logits" },
    { "tokenize", cmd_tokenize, "token ids of a text, and the way back" },
    { "inspect", cmd_inspect, "metadata, tensors and bytes per class of a model file" },
    { "plan", cmd_plan, "how fast a model would be, before a download" },
    { "probe", cmd_probe, "measure what this machine can do at most" },
    { "report", cmd_report, "forecast, limits and measurements as one HTML page" },
    { "verify", cmd_verify, "predict a run, run it, and say how far off that was" },
    { "synth", cmd_synth, "write a model with random weights in a real shape" },
    { "bench", cmd_bench, "speed of a model or of the kernels, beside what the machine allows" },
    { NULL, NULL, NULL }
};

static void print_help(void)
{
    printf("sluice " SL_VERSION " - runs Mixture-of-Experts language models from GGUF files\n\n"
           "usage: sluice COMMAND [options]\n\n");
    for (const struct command *c = commands; c->name; c++) printf("  %-10s %s\n", c->name, c->help);
    printf("\n`sluice COMMAND -h` explains a command; --version prints the version.\n"
           "Without -m the bundled model is used. Text goes to stdout, everything else to stderr.\n"
           "Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted by Ctrl-C.\n");
}

static bool is_one_of(const char *arg, const char *a, const char *b, const char *c)
{
    return !strcmp(arg, a) || !strcmp(arg, b) || !strcmp(arg, c);
}

static bool is_help(const char *arg)
{
    return is_one_of(arg, "-h", "--help", "help");
}

static const struct command *find_command(const char *name)
{
    for (const struct command *c = commands; c->name; c++)
        if (!strcmp(name, c->name)) return c;
    return NULL;
}

static int unknown_command(const char *name)
{
    const char *near = NULL;
    size_t best = SIZE_MAX, n = 0;
    for (const struct command *c = commands; c->name; c++)
        cli_nearest(name, c->name, &best, &near, &n);
    fprintf(stderr, "sluice: \"%s\" is no command%s%s%s\nusage: sluice COMMAND [options]\n"
                    "       (sluice -h lists them)\n", name, near ? ": is " : "", near ? near : "",
            near ? " meant?" : "");
    return CLI_USAGE;
}

/* A descriptor that is closed at the start would be given to the next file opened, and text would
 * end up in it. Reads and writes of 0 and 1 fail as before; what goes to 2 is lost. */
static void fill_std_descriptors(void)
{
    static const int modes[] = { O_WRONLY, O_RDONLY, O_RDWR };
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", modes[fd]) != fd) _exit(CLI_FAILED);
}

int main(int argc, char **argv)
{
    fill_std_descriptors();
    signal(SIGPIPE, SIG_IGN);   /* a closed pipe shows as a failed write, which gets its line */
    /* room for a help text: why a write failed is known where it fails, and that is at the end */
    static char room[1 << 16];
    if (!isatty(1)) setvbuf(stdout, room, _IOFBF, sizeof room);
    if (argc < 2 || (argc == 2 && is_help(argv[1]))) {
        print_help();
        return cli_end_stdout(CLI_DONE);
    }
    if (is_help(argv[1])) {     /* `sluice help run` is `sluice run -h` */
        const struct command *c = find_command(argv[2]);
        return c ? c->fn(2, (char *[]){ argv[2], (char[]){ "-h" }, NULL })
                 : unknown_command(argv[2]);
    }
    if (is_one_of(argv[1], "-V", "--version", "version")) {
        puts("sluice " SL_VERSION);
        return cli_end_stdout(CLI_DONE);
    }
    const struct command *c = find_command(argv[1]);
    return c ? c->fn(argc - 1, argv + 1) : unknown_command(argv[1]);
}
