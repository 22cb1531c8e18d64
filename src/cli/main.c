/* The program's entry: table of subcommands, --help, --version, and the exit status rules.
 * Owns which commands exist and what happens when standard output cannot be written; each command is a file
 * of its own. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/log.h"
#include "core/os.h"

static const struct cli_cmd *const commands[] = {
#include "cli_commands.inc"
    NULL,
};

static const struct cli_cmd *find(const char *name)
{
    for (size_t i = 0; commands[i]; i++)
        if (!strcmp(commands[i]->name, name))
            return commands[i];
    return NULL;
}

static void help(FILE *to)
{
    fprintf(to, "vkmoe %s: mixture-of-experts language models on any Vulkan GPU\n\n", vkmoe_version());
    fprintf(to, "usage: vkmoe COMMAND [OPTION...]\n\ncommands:\n");
    for (size_t i = 0; commands[i]; i++) {
        fprintf(to, "  %-10s ", commands[i]->name);
        cli_wrap(to, commands[i]->summary, 13, 13);
    }
    fprintf(to, "\n`vkmoe COMMAND --help` shows a command's options and an example. Without -m\n"
                "every command uses the bundled model. Results go to standard output, the rest\n"
                "to standard error. Exit status: 0 good, 1 the operation failed, 2 wrong usage.\n\n"
                "example:\n  vkmoe run -p \"In the beginning\" -n 64\n");
}

/* Options of the program itself and the two spellings kept for those who know other programs. */
static int dispatch(int argc, char **argv)
{
    const struct cli_cmd *cmd;
    struct vkmoe_err err;

    if (argc < 2) {
        help(stderr);
        return CLI_USAGE;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("vkmoe %s\n", vkmoe_version());
        return CLI_GOOD;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        char *ask[] = {argc > 2 ? argv[2] : NULL, "--help", NULL};

        cmd = ask[0] ? find(ask[0]) : NULL;
        if (cmd)
            return cmd->run(cmd, 2, ask);
        if (!ask[0]) {
            help(stdout);
            return CLI_GOOD;
        }
        argv++;
    } else if (!strcmp(argv[1], "--list-devices")) {
        argv[1] = "devices";
    }
    cmd = find(argv[1]);
    if (cmd)
        return cmd->run(cmd, argc - 1, argv + 1);
    cor_fail(&err, VKMOE_ERR_ARGUMENT, "no command '%.80s'; `vkmoe --help` lists them", argv[1]);
    return cli_error(&err);
}

int main(int argc, char **argv)
{
    int status;

    cor_program_init(&argc, &argv);
    cor_log_sink(cli_log, NULL);
    status = dispatch(argc, argv);
    /* A result that could not be written is a failure, whatever the command thought. */
    if (!cli_stdout_good() && status == CLI_GOOD)
        status = CLI_FAILED;
    return status;
}
