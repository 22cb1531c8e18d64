/* vkmoe convert: a Hugging Face directory or a GGUF file to GGUF. Needs no device. */
#include "cli/formats.h"

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    const char *out = NULL;
    struct cli_formats f = {0};
    const struct cli_opt opts[] = {
        {"-o|--output", CLI_STR, &out, "FILE", "GGUF file to write; replaced when it exists (required)", 0,
         0},
        {"--type", CLI_STR, &f.type, "TYPE",
         "type of the matrices: f32, f16, bf16, q8_0, q4_k_m ... (docs/FORMATS.md; required)", 0, 0},
        CLI_FORMAT_OPTIONS(f),
        CLI_IMATRIX_OPTION(f),
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    int n_pos = 0, status = cli_parse(cmd, opts, argc, argv, &n_pos);

    if (status >= 0)
        return status;
    if (n_pos != 1)
        return cli_usage(cmd, "one directory or GGUF file to convert is needed, not %d", n_pos);
    if (!out)
        return cli_usage(cmd, "-o FILE is missing");
    if (!f.type)
        return cli_usage(cmd, "--type is missing");
    return cli_write_formats(cmd, &f, argv[0], out, "converting");
}

const struct cli_cmd cli_convert = {
    "convert",
    "write a Hugging Face EMO directory or a GGUF file as GGUF",
    "DIR|IN.gguf -o FILE --type TYPE",
    "  vkmoe convert emo-nano/ -o emo-nano-q8_0.gguf --type q8_0\n",
    run,
};
