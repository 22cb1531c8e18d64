/* vkmoe experts: which experts a workload uses, and files with only those; one file each. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static const struct cli_cmd *const kinds[] = {
    &cli_experts_rank,
    &cli_experts_merge,
    &cli_experts_carve,
    &cli_experts_merge_back,
    &cli_experts_diff,
    &cli_experts_report,
    &cli_experts_eval,
    NULL, /* one row per subcommand */
};

/* Below --help. */
static void list_kinds(void)
{
    printf("\nsubcommands:\n");
    for (size_t i = 0; i < COR_COUNT(kinds) && kinds[i]; i++) {
        printf("  %-12s  ", strchr(kinds[i]->name, ' ') + 1);
        cli_wrap(stdout, kinds[i]->summary, 16, 16);
    }
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    const struct cli_opt none[] = {{NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0}};

    if (argc < 2)
        return cli_usage(cmd, "no subcommand named");
    if (argv[1][0] == '-') {
        int status = cli_parse(cmd, none, argc, argv, NULL);

        if (status == CLI_GOOD)
            list_kinds();
        return status >= 0 ? status : cli_usage(cmd, "no subcommand named");
    }
    for (size_t i = 0; i < COR_COUNT(kinds) && kinds[i]; i++)
        if (!strcmp(strchr(kinds[i]->name, ' ') + 1, argv[1]))
            return kinds[i]->run(kinds[i], argc - 1, argv + 1);
    return cli_usage(cmd, "no subcommand '%s'", argv[1]);
}

const struct cli_cmd cli_experts = {
    .name = "experts",
    .summary = "which experts a workload uses, and what keeping only those costs and saves",
    .synopsis = "SUBCOMMAND [OPTION...]",
    .example = "  vkmoe experts rank --help\n",
    .run = run,
};
