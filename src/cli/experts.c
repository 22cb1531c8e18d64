/* vkmoe experts: which experts a workload uses, and files with only those; one file each. */
#include "cli/cli.h"

static const struct cli_cmd *const kinds[] = {
    &cli_experts_rank, &cli_experts_merge,  &cli_experts_carve, &cli_experts_merge_back,
    &cli_experts_diff, &cli_experts_report, &cli_experts_eval,
};

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    return cli_dispatch(cmd, kinds, COR_COUNT(kinds), argc, argv);
}

const struct cli_cmd cli_experts = {
    .name = "experts",
    .summary = "which experts a workload uses, and what keeping only those costs and saves",
    .synopsis = "SUBCOMMAND [OPTION...]",
    .example = "  vkmoe experts rank --help\n",
    .run = run,
};
