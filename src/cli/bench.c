/* vkmoe bench: measurements, one file each. */
#include <string.h>

#include "cli/cli.h"

static const struct cli_cmd *const kinds[] = {&cli_bench_pool, &cli_bench_decode};

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    const struct cli_opt none[] = {{NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0}};

    if (argc < 2)
        return cli_usage(cmd, "no benchmark named");
    if (argv[1][0] == '-') {
        int status = cli_parse(cmd, none, argc, argv, NULL);

        return status >= 0 ? status : cli_usage(cmd, "no benchmark named");
    }
    for (size_t i = 0; i < COR_COUNT(kinds); i++)
        if (!strcmp(strchr(kinds[i]->name, ' ') + 1, argv[1]))
            return kinds[i]->run(kinds[i], argc - 1, argv + 1);
    return cli_usage(cmd, "no benchmark '%s'", argv[1]);
}

const struct cli_cmd cli_bench = {
    .name = "bench",
    .summary = "measurements: decode (speed with smaller and smaller expert pools), pool "
               "(route traces through the pool's policies)",
    .synopsis = "decode|pool [OPTION...]",
    .example = "  vkmoe bench decode --help\n"
               "  vkmoe bench pool --help\n",
    .run = run,
};
