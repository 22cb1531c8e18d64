/* vkmoe bench: measurements, one file each; without a subcommand the tests of llama-bench. */
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"

static const struct cli_cmd *const kinds[] = {&cli_bench_pool, &cli_bench_decode, &cli_bench_compare,
                                              &cli_bench_peak, &cli_bench_kernels};

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    bool help = false;
    int status;

    if (argc > 1 && argv[1][0] != '-')
        return cli_dispatch(cmd, kinds, COR_COUNT(kinds), argc, argv);
    for (int i = 1; i < argc; i++)
        help |= !strcmp(argv[i], "-h") || !strcmp(argv[i], "--help");
    status = bench_run(cmd, argc, argv);
    if (help && status == CLI_GOOD)
        cli_list_children(kinds, COR_COUNT(kinds));
    return status;
}

const struct cli_cmd cli_bench = {
    .name = "bench",
    .summary = "speed of prompts and of decoding, as llama-bench measures it, on real text; "
               "subcommands measure more",
    .synopsis = "[-m FILE...] [-p LIST] [-n LIST] [-pg P,N] [-d LIST] [-r N] [-o md|csv|json|jsonl] "
                "[OPTION...], or SUBCOMMAND [OPTION...]",
    .example = "  vkmoe bench -p 64 -n 32 -r 3\n"
               "  vkmoe bench -m emo.gguf -p 64,512 -n 128 -d 0,4096 -o json\n"
               "  vkmoe bench decode --help\n",
    .run = run,
};
