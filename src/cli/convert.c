/* vkmoe convert: a Hugging Face directory or an unquantised GGUF file to GGUF. Needs no device. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/os.h"
#include "model/convert.h"

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    const char *out = NULL, *type = NULL;
    const struct cli_opt opts[] = {
        {"-o|--output", CLI_STR, &out, "FILE", "GGUF file to write; replaced when it exists (required)", 0,
         0},
        {"--type", CLI_STR, &type, "TYPE", "type of the matrices: f32, f16, bf16, q8_0 or q4_0 (required)", 0,
         0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct cli_progress bar = {.what = "converting"};
    struct mdl_convert_params p = {0};
    struct vkmoe_err err;
    enum vkmoe_status st;
    int n_pos = 0, status = cli_parse(cmd, opts, argc, argv, &n_pos);

    if (status >= 0)
        return status;
    if (n_pos != 1)
        return cli_usage(cmd, "one directory or GGUF file to convert is needed, not %d", n_pos);
    if (!out)
        return cli_usage(cmd, "-o FILE is missing");
    if (!type)
        return cli_usage(cmd, "--type is missing");
    if (!cli_parse_type(cmd, type, &p.type))
        return CLI_USAGE;
    p.in = argv[0];
    p.out = out;
    p.progress = cli_progress_step;
    p.progress_user = &bar;
    cor_catch_interrupt(); /* so that no temporary file is left */
    st = mdl_convert(&p, &err);
    cli_progress_end(&bar);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_convert = {
    "convert",
    "write a Hugging Face EMO directory or a GGUF file as GGUF",
    "DIR|IN.gguf -o FILE --type f32|f16|bf16|q8_0|q4_0",
    "  vkmoe convert emo-nano/ -o emo-nano-q8_0.gguf --type q8_0\n",
    run,
};
