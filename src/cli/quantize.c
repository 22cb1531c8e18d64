/* vkmoe quantize: a GGUF file with its matrices in another format. Needs no device. */
#include "cli/formats.h"
#include "core/os.h"

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct cli_formats f = {0};
    const struct cli_opt opts[] = {
        CLI_FORMAT_OPTIONS(f),
        CLI_IMATRIX_OPTION(f),
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    int n_pos = 0, status = cli_parse(cmd, opts, argc, argv, &n_pos);

    if (status >= 0)
        return status;
    if (n_pos != 3)
        return cli_usage(cmd, "a GGUF file, the file to write and a type are needed, not %d names", n_pos);
    f.type = argv[2];
    if (cor_path_is_dir(argv[0]))
        return cli_usage(cmd, "%s is a directory: vkmoe convert reads those", argv[0]);
    return cli_write_formats(cmd, &f, argv[0], argv[1], "quantizing");
}

const struct cli_cmd cli_quantize = {
    "quantize",
    "write a GGUF file with its matrices in another type",
    "IN.gguf OUT.gguf TYPE",
    "  vkmoe quantize emo-nano.gguf emo-nano-q4_k_m.gguf q4_k_m\n"
    "  vkmoe quantize emo.gguf small.gguf q8_0 --experts-type q4_k\n"
    "\n"
    "types, for all matrices: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k\n"
    "  q5_k q6_k iq4_nl mxfp4; f32 writes the dequantised values\n"
    "mixes, with a type for each tensor: q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s\n"
    "  q5_k_m (docs/FORMATS.md)\n",
    run,
};
