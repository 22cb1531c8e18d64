/* vkmoe synth: a model file of a known shape with random weights. Needs no device. */
#include <stdio.h>
#include <string.h>

#include "cli/formats.h"
#include "core/os.h"
#include "model/synth.h"

static int unknown_shape(const struct cli_cmd *cmd, const char *name)
{
    const struct mdl_shape *s;
    char names[256] = "";
    size_t used = 0;

    for (size_t i = 0; (s = mdl_shape_at(i)) != NULL && used < sizeof(names); i++)
        used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "", s->name);
    return name ? cli_usage(cmd, "--shape '%s' is not one of %s", name, names)
                : cli_usage(cmd, "--shape is missing; known are %s", names);
}

static void default_path(char *dst, size_t n, const char *shape, const char *type)
{
    snprintf(dst, n, "%s-%s.gguf", shape, type);
    for (char *c = dst + strlen(shape); *c; c++)
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
}

static int synth_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    const char *name = NULL, *out = NULL;
    struct cli_formats f = {.type = "q4_0"};
    struct mdl_recipe recipe;
    int64_t seed = 1, layers = 0, experts = 0, vocab = 0;
    const struct cli_opt opts[] = {
        {"--shape", CLI_STR, &name, "NAME",
         "emo-1b14b, emo-nano, or a tiny one for tests, such as tiny-olmoe (required)", 0, 0},
        {"-o|--output", CLI_STR, &out, "FILE",
         "GGUF file to write; replaced when it exists (default: SHAPE-TYPE.gguf here)", 0, 0},
        {"--type", CLI_STR, &f.type, "TYPE",
         "of the matrices (default q4_0): a type or mix that vkmoe quantize --help lists", 0, 0},
        CLI_FORMAT_OPTIONS(f),
        {"-s|--seed", CLI_INT, &seed, "N", "same seed, same bytes (default 1)", 0, 9e15},
        {"--layers", CLI_INT, &layers, "N", "instead of the shape's own number", 1, 1024},
        {"--experts", CLI_INT, &experts, "N", "routed experts of each layer, instead of the shape's own", 1,
         512},
        {"--vocab", CLI_INT, &vocab, "N", "tokens, instead of the shape's own number; the last ends a text",
         257, 1 << 24},
        {0},
    };
    struct cli_progress bar = {.what = "writing"};
    struct mdl_synth_params p = {.progress = cli_progress_step, .progress_user = &bar};
    const struct mdl_shape *shape;
    char path[128];
    struct vkmoe_err err;
    enum vkmoe_status st;
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    shape = name ? mdl_shape_find(name) : NULL;
    if (!shape)
        return unknown_shape(cmd, name);
    if (!cli_parse_formats(cmd, &f, &recipe))
        return CLI_USAGE;
    p.recipe = &recipe;
    p.shape = *shape;
    if (layers)
        p.shape.config.n_layers = (uint32_t)layers;
    if (experts)
        p.shape.config.n_experts = (uint32_t)experts;
    if (vocab) {
        p.shape.config.vocab_size = (uint32_t)vocab;
        p.shape.eos = (uint32_t)vocab - 1;
    }
    p.seed = (uint64_t)seed;
    default_path(path, sizeof(path), shape->name, f.type);
    p.out = out ? out : path;
    cor_catch_interrupt(); /* so that no temporary file is left */
    st = mdl_synth(&p, &err);
    cli_progress_end(&bar);
    if (st != VKMOE_OK)
        return cli_error(&err);
    if (!out)
        printf("%s\n", path); /* a name that was not given is a result */
    return CLI_GOOD;
}

const struct cli_cmd cli_synth = {
    .name = "synth",
    .summary = "write a model file of a known shape with random weights, for measurements",
    .synopsis = "--shape NAME [-o FILE] [--type TYPE] [OPTION...]",
    .example = "  vkmoe synth --shape emo-1b14b -o emo-random.gguf\n"
               "  vkmoe synth --shape emo-1b14b --layers 2 --experts 16 --type q8_0\n",
    .run = synth_main,
};
