/* vkmoe experts carve: a model file with only the experts of a subset. Needs no device. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/os.h"
#include "experts/carve.h"

struct options {
    const char *model, *subset, *out;
    bool vkmoe_only, json;
};

static void print_text(const struct options *o, const struct xp_carve_result *r)
{
    char kept[48];

    if (r->least == r->most)
        snprintf(kept, sizeof(kept), "%" PRIu32, r->most);
    else
        snprintf(kept, sizeof(kept), "%" PRIu32 " to %" PRIu32, r->least, r->most);
    printf("%s: %s of %" PRIu32 " routed experts in each of %" PRIu32 " layers and %" PRIu32
           " shared, %" PRIu32 " per token; %.1f MiB of %.1f\n",
           o->out, kept, r->n_routed, r->n_layers, r->n_shared, r->n_used, (double)r->out_bytes / 1048576,
           (double)r->in_bytes / 1048576);
    if (r->metadata[0])
        printf("%s: the experts' original ids\n", r->metadata);
}

static void print_json(const struct options *o, const struct xp_carve_result *r, const char *source)
{
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {{"n_layers", r->n_layers}, {"n_routed", r->n_routed},  {"n_shared", r->n_shared},
                   {"kept_least", r->least},  {"kept_most", r->most},     {"n_routed_used", r->n_used},
                   {"in_bytes", r->in_bytes}, {"out_bytes", r->out_bytes}};

    printf("{\"file\":");
    cli_json_string(o->out, strlen(o->out));
    printf(",\"metadata\":");
    if (r->metadata[0])
        cli_json_string(r->metadata, strlen(r->metadata));
    else
        printf("null");
    printf(",\"source\":");
    cli_json_string(source, strlen(source));
    printf(",\"source_sha256\":\"%s\"", r->sha256);
    for (size_t i = 0; i < COR_COUNT(numbers); i++)
        printf(",\"%s\":%" PRIu64, numbers[i].key, numbers[i].value);
    printf("}\n");
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct options o = {0};
    const struct cli_opt opts[] = {
        {"-m|--model", CLI_STR, &o.model, "FILE", "GGUF file to carve from; without: the bundled model", 0,
         0},
        {"--experts", CLI_STR, &o.subset, "FILE",
         "experts to keep: a subset file, a pruning_metadata.json or a carved GGUF file (required)", 0, 0},
        {"-o|--output", CLI_STR, &o.out, "FILE", "GGUF file to write; replaced when it exists (required)", 0,
         0},
        {"--vkmoe-only", CLI_FLAG, &o.vkmoe_only, NULL,
         "layers may keep different numbers of experts; no other program runs such a file", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object on stdout", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct cli_progress bar = {.what = "carving"};
    struct xp_subset s = {0};
    struct xp_carve_result r;
    struct xp_carve_params p = {.progress = cli_progress_step, .progress_user = &bar};
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err err;
    char path[4096];
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (!o.subset)
        return cli_usage(cmd, "--experts FILE is missing");
    if (!o.out)
        return cli_usage(cmd, "-o FILE is missing");
    TRY(cli_model_path(o.model, path, &err));
    TRY(xp_subset_read(&s, o.subset, &err));
    p.model = path;
    p.subset = &s;
    p.subset_name = o.subset;
    p.out = o.out;
    p.vkmoe_only = o.vkmoe_only;
    cor_catch_interrupt(); /* so that no temporary file is left */
    st = xp_carve(&p, &r, &err);
    cli_progress_end(&bar);
    TRY(st);
    if (o.json)
        print_json(&o, &r, path);
    else
        print_text(&o, &r);
done:
    xp_subset_free(&s);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_experts_carve = {
    "experts carve",
    "write a model file with only the experts of a subset",
    "[-m FILE] --experts SUBSET.json -o SMALL.gguf [--vkmoe-only] [--json]",
    "  vkmoe experts rank -f code.txt --keep 12.5% -o code.json\n"
    "  vkmoe experts carve --experts code.json -o code.gguf\n"
    "  vkmoe run -m code.gguf -p \"def main\"\n",
    run,
};
