/* vkmoe experts merge: statistics of several runs, added. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/digest.h"
#include "experts/stats.h"

static enum vkmoe_status merge(struct xp_stats *s, char **files, int n, struct vkmoe_err *err)
{
    struct xp_stats more = {0};
    enum vkmoe_status st = VKMOE_OK;

    TRY(xp_stats_read(s, files[0], err));
    for (int i = 1; i < n; i++) {
        TRY(xp_stats_read(&more, files[i], err));
        TRY(xp_stats_merge(s, &more, files[0], files[i], err));
        xp_stats_free(&more);
    }
done:
    xp_stats_free(&more);
    return st;
}

static int merge_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    const char *out = NULL;
    bool json = false;
    const struct cli_opt opts[] = {
        {"-o|--output", CLI_STR, &out, "FILE", "write the sums of all files, required", 0, 0},
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on standard output", 0, 0},
        {0},
    };
    struct vkmoe_err err = {0};
    struct xp_stats s = {0};
    char digest[COR_SHA256_HEX];
    enum vkmoe_status st = VKMOE_OK;
    int n, status = cli_parse(cmd, opts, argc, argv, &n);

    if (status >= 0)
        return status;
    if (!n)
        return cli_usage(cmd, "no statistics named");
    if (!out)
        return cli_usage(cmd, "give the file to write with -o");
    TRY(merge(&s, argv, n, &err));
    TRY(xp_stats_write(&s, out, &err));
    xp_stats_digest(digest, &s);
    if (json) {
        printf("{\"files\": %d, \"documents\": %" PRIu64 ", \"truncated\": %" PRIu64 ", \"tokens\": %" PRIu64
               ", \"calibration\": \"%s\", \"output\": ",
               n, s.documents, s.truncated, s.tokens, digest);
        cli_json_string(out, strlen(out));
        printf("}\n");
    } else {
        printf("files      %d\ndocuments  %" PRIu64 "\ntokens     %" PRIu64 "\ndigest     %s\n", n,
               s.documents, s.tokens, digest);
    }
done:
    xp_stats_free(&s);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_experts_merge = {
    .name = "experts merge",
    .summary = "adds statistics of `experts rank --stats-out`: any order and grouping gives the same bytes",
    .synopsis = "FILE... -o FILE [--json]",
    .example = "  vkmoe experts merge part*.stats.json -o all.stats.json\n",
    .run = merge_main,
};
