/* vkmoe bench: measurements, one file each. */
#include "cli/cli.h"

static const struct cli_cmd *const kinds[] = {&cli_bench_pool, &cli_bench_decode, &cli_bench_peak};

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    return cli_dispatch(cmd, kinds, COR_COUNT(kinds), argc, argv);
}

const struct cli_cmd cli_bench = {
    .name = "bench",
    .summary = "measurements: decode (speed with smaller and smaller expert pools), pool "
               "(route traces through the pool's policies), peak (what the device can do)",
    .synopsis = "decode|pool|peak [OPTION...]",
    .example = "  vkmoe bench decode --help\n"
               "  vkmoe bench pool --help\n",
    .run = run,
};
