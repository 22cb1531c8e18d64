/* vkmoe experts merge-back: the experts of a carved file, perhaps changed since, in the whole model again.
 * Needs no device. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/os.h"
#include "experts/merge.h"

static void print_json(const struct xp_merge_params *p, const struct xp_merge_result *r)
{
    printf("{\"file\":");
    cli_json_string(p->out, strlen(p->out));
    printf(",\"out_bytes\":%" PRIu64 ",\"experts\":%" PRIu32 ",\"experts_changed\":%" PRIu32
           ",\"router_rows_changed\":%" PRIu32 ",\"dense_tensors\":%" PRIu32 ",\"dense_changed\":%" PRIu32
           ",\"dense_taken\":%s}\n",
           r->out_bytes, r->n_experts, r->n_changed, r->n_rows_changed, r->n_dense, r->n_dense_changed,
           p->dense ? "true" : "false");
}

static void print_text(const struct xp_merge_params *p, const struct xp_merge_result *r)
{
    printf("%s: %" PRIu32 " of %" PRIu32 " experts and %" PRIu32 " router rows differ from %s\n", p->out,
           r->n_changed, r->n_experts, r->n_rows_changed, p->full);
    if (r->n_dense_changed && p->dense)
        printf("%s: %" PRIu32 " of %" PRIu32 " other tensors are new, too\n", p->out, r->n_dense_changed,
               r->n_dense);
    else if (r->n_dense_changed)
        printf("%s: %" PRIu32 " of %" PRIu32 " other tensors of %s differ, and were not taken (--dense)\n",
               p->out, r->n_dense_changed, r->n_dense, p->from);
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct cli_progress bar = {.what = "merging"};
    struct xp_merge_params p = {.progress = cli_progress_step, .progress_user = &bar};
    const char *model = NULL;
    bool json = false;
    const struct cli_opt opts[] = {
        {"-m|--model", CLI_STR, &model, "FILE",
         "GGUF file that the experts go back into; without: the bundled model", 0, 0},
        {"--from", CLI_STR, &p.from, "FILE", "carved GGUF file whose experts are taken (required)", 0, 0},
        {"-o|--output", CLI_STR, &p.out, "FILE", "GGUF file to write; replaced when it exists (required)", 0,
         0},
        {"--dense", CLI_FLAG, &p.dense, NULL,
         "take embeddings, attention, norms, shared experts and head, too", 0, 0},
        {"--force", CLI_FLAG, &p.force, NULL,
         "also where the carved file names another SHA-256 as its source, or none", 0, 0},
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on stdout", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct xp_merge_result r;
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err err;
    char path[4096];
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (!p.from)
        return cli_usage(cmd, "--from FILE is missing");
    if (!p.out)
        return cli_usage(cmd, "-o FILE is missing");
    TRY(cli_model_path(model, path, &err));
    p.full = path;
    cor_catch_interrupt(); /* so that no temporary file is left */
    st = xp_merge_back(&p, &r, &err);
    cli_progress_end(&bar);
    TRY(st);
    if (json)
        print_json(&p, &r);
    else
        print_text(&p, &r);
done:
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_experts_merge_back = {
    "experts merge-back",
    "put the experts of a carved file back into the whole model",
    "[-m FULL.gguf] --from SMALL.gguf -o OUT.gguf [--dense] [--force] [--json]",
    "  vkmoe experts carve -m emo.gguf --experts code.json -o code.gguf\n"
    "  # ... somebody trains code.gguf ...\n"
    "  vkmoe experts merge-back -m emo.gguf --from code.gguf -o emo-new.gguf\n",
    run,
};
