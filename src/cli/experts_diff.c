/* vkmoe experts diff: which experts and other tensors of two model files differ. Needs no device. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "experts/diff.h"

static const char *const kinds[] = {"the same", "different", "only in A", "only in B"};

static size_t count(const struct xp_diff *d, enum xp_diff_kind kind, bool rows)
{
    size_t n = 0;

    for (size_t i = 0; i < d->n_experts; i++)
        n += (rows ? d->experts[i].row : d->experts[i].weights) == kind;
    return n;
}

/* Ids of one kind in a layer, runs as 3-7. Returns false where there are none. */
static bool print_ids(const struct xp_diff *d, uint32_t layer, enum xp_diff_kind kind, bool rows,
                      const char *head)
{
    uint32_t first = 0, last = 0;
    bool any = false;

    for (size_t i = 0; i <= d->n_experts; i++) {
        const struct xp_diff_expert *e = i < d->n_experts ? &d->experts[i] : NULL;
        bool hit = e && e->layer == layer && (rows ? e->row : e->weights) == kind;

        if (hit && any && e->original == last + 1) {
            last++;
            continue;
        }
        if (!hit && e)
            continue;
        if (any && last > first)
            printf("-%" PRIu32, last);
        if (hit)
            printf("%s%" PRIu32, any ? " " : head, e->original);
        first = last = hit ? e->original : 0;
        any = any || hit;
    }
    return any;
}

static void print_text(const struct xp_diff *d, uint32_t n_layers)
{
    size_t dense = 0;

    printf("experts        %zu the same, %zu different, %zu only in A, %zu only in B\n",
           count(d, XP_SAME, false), count(d, XP_DIFFERS, false), count(d, XP_ONLY_A, false),
           count(d, XP_ONLY_B, false));
    printf("router rows    %zu different\n", count(d, XP_DIFFERS, true));
    for (size_t i = 0; i < d->n_tensors; i++)
        dense += d->tensors[i].kind != XP_SAME;
    printf("other tensors  %zu of %zu not the same\n", dense, d->n_tensors);
    for (uint32_t l = 0; l < n_layers; l++)
        for (int k = XP_DIFFERS; k <= XP_ONLY_B; k++) {
            char head[64];

            snprintf(head, sizeof(head), "layer %-4" PRIu32 "     experts %s: ", l, kinds[k]);
            if (print_ids(d, l, (enum xp_diff_kind)k, false, head))
                putchar('\n');
            snprintf(head, sizeof(head), "layer %-4" PRIu32 "     router rows different: ", l);
            if (k == XP_DIFFERS && print_ids(d, l, XP_DIFFERS, true, head))
                putchar('\n');
        }
    for (size_t i = 0; i < d->n_tensors; i++)
        if (d->tensors[i].kind != XP_SAME) {
            char text[MDL_SHOW_BYTES];

            printf("%s: %s\n", mdl_show(text, d->tensors[i].name, strlen(d->tensors[i].name)),
                   kinds[d->tensors[i].kind]);
        }
    printf("%s\n", d->same ? "the same weights" : "not the same weights");
}

/* [[layer, original id], ...] */
static void json_pairs(const char *key, const struct xp_diff *d, enum xp_diff_kind kind, bool rows)
{
    bool any = false;

    printf(",\"%s\":[", key);
    for (size_t i = 0; i < d->n_experts; i++)
        if ((rows ? d->experts[i].row : d->experts[i].weights) == kind) {
            printf("%s[%" PRIu32 ",%" PRIu32 "]", any ? "," : "", d->experts[i].layer,
                   d->experts[i].original);
            any = true;
        }
    putchar(']');
}

static void print_json(const struct xp_diff *d, const char *a, const char *b)
{
    static const struct {
        const char *key;
        enum xp_diff_kind kind;
    } lists[] = {
        {"tensors_different", XP_DIFFERS}, {"tensors_only_a", XP_ONLY_A}, {"tensors_only_b", XP_ONLY_B}};

    printf("{\"a\":");
    cli_json_string(a, strlen(a));
    printf(",\"b\":");
    cli_json_string(b, strlen(b));
    printf(",\"same\":%s,\"experts_same\":%zu", d->same ? "true" : "false", count(d, XP_SAME, false));
    json_pairs("experts_different", d, XP_DIFFERS, false);
    json_pairs("experts_only_a", d, XP_ONLY_A, false);
    json_pairs("experts_only_b", d, XP_ONLY_B, false);
    json_pairs("router_rows_different", d, XP_DIFFERS, true);
    for (size_t k = 0; k < COR_COUNT(lists); k++) {
        bool any = false;

        printf(",\"%s\":[", lists[k].key);
        for (size_t i = 0; i < d->n_tensors; i++)
            if (d->tensors[i].kind == lists[k].kind) {
                if (any)
                    putchar(',');
                cli_json_string(d->tensors[i].name, strlen(d->tensors[i].name));
                any = true;
            }
        putchar(']');
    }
    printf("}\n");
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    bool json = false;
    const struct cli_opt opts[] = {
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on stdout", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct cli_progress bar = {.what = "comparing"};
    struct mdl_model *a = NULL, *b = NULL;
    struct xp_diff d = {0};
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err err;
    int n_pos = 0, status = cli_parse(cmd, opts, argc, argv, &n_pos);

    if (status >= 0)
        return status;
    if (n_pos != 2)
        return cli_usage(cmd, "two GGUF files are needed, not %d", n_pos);
    TRY(mdl_open(&a, argv[0], &err));
    TRY(mdl_open(&b, argv[1], &err));
    st = xp_diff(&d, a, b, cli_progress_step, &bar, &err);
    cli_progress_end(&bar);
    TRY(st);
    if (json)
        print_json(&d, argv[0], argv[1]);
    else
        print_text(&d, a->config.n_layers);
done:
    xp_diff_free(&d);
    mdl_close(a);
    mdl_close(b);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_experts_diff = {
    "experts diff",
    "say which experts and other tensors of two model files differ, by original ids",
    "A.gguf B.gguf [--json]",
    "  vkmoe experts diff emo.gguf emo-new.gguf\n  vkmoe experts diff --json emo.gguf code.gguf\n",
    run,
};
