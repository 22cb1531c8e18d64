/* vkmoe experts rank: which experts a workload needs, from its text or from statistics of earlier runs. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/calibrate.h"
#include "cli/pool.h"
#include "core/alloc.h"
#include "core/digest.h"
#include "core/log.h"
#include "core/os.h"
#include "experts/inputs.h"

struct rank {
    struct cli_engine e;
    /* options */
    struct cli_strs texts, files; /* of -f and --stats */
    const char *keep, *per_layer, *coverage, *method_name, *out, *stats_out, *imatrix_out, *separator;
    bool lines, json;
    int64_t seed, documents;
    /* what they mean */
    enum cli_method method;
    struct xp_budget budget; /* list NULL and keep 0: none was given */
    bool choose;             /* a budget was given */
    /* made */
    struct cli_corpus *corpora; /* texts.n */
    struct cli_calibration calibration;
    struct xp_stats stats;
    struct xp_subset subset;
    struct mdl_model *mdl;   /* of -m, while it is calibrated */
    struct xp_inputs inputs; /* of --imatrix-out */
};

/* ---- options
 * ------------------------------------------------------------------------------------------------ */

static int check_budget(const struct cli_cmd *cmd, struct rank *r)
{
    struct vkmoe_err err = {0};
    int given = !!r->keep + !!r->per_layer + !!r->coverage;
    enum vkmoe_status st = VKMOE_OK;

    if (given > 1)
        return cli_usage(cmd, "give one of --keep, --keep-per-layer and --coverage");
    if (!given && ((!r->stats_out && !r->imatrix_out) || r->out))
        return cli_usage(cmd, "say how many experts to keep: --keep, --keep-per-layer or --coverage");
    if (r->keep)
        st = xp_budget_keep(&r->budget, r->keep, &err);
    else if (r->per_layer)
        st = xp_budget_per_layer(&r->budget, r->per_layer, &err);
    else if (r->coverage)
        st = xp_budget_coverage(&r->budget, r->coverage, &err);
    r->choose = given;
    return st == VKMOE_OK ? -1 : cli_usage(cmd, "%s", err.message);
}

static int check_options(const struct cli_cmd *cmd, struct rank *r)
{
    if (r->method_name && !cli_method_parse(r->method_name, &r->method))
        return cli_usage(cmd, "--method takes router, layerwise, easy-ep or random, not '%s'",
                         r->method_name);
    if (r->texts.n && r->files.n)
        return cli_usage(cmd, "-f and --stats exclude each other");
    if (!r->texts.n && !r->files.n && r->method != CLI_RANDOM)
        return cli_usage(cmd, "give the text to rank for with -f, or saved statistics with --stats");
    if (!r->texts.n && !r->files.n && r->coverage)
        return cli_usage(cmd, "--coverage needs a text (-f) or statistics");
    if (r->method == CLI_LAYERWISE && r->files.n)
        return cli_usage(cmd,
                         "layerwise cannot rank from statistics: each layer's depend on the layers before");
    if (r->method == CLI_LAYERWISE && r->stats_out)
        return cli_usage(cmd, "layerwise has no statistics that add up: use router or easy-ep");
    if (r->method == CLI_LAYERWISE && r->imatrix_out)
        return cli_usage(cmd, "layerwise feeds layers many times: --imatrix-out takes router or easy-ep");
    if (r->imatrix_out && !r->texts.n)
        return cli_usage(cmd, "--imatrix-out needs a text (-f)");
    if (r->stats_out && !r->texts.n)
        return cli_usage(cmd, "--stats-out needs a text (-f); `vkmoe experts merge` adds statistics");
    return check_budget(cmd, r);
}

/* ---- where statistics come from
 * ----------------------------------------------------------------------------- */

static enum vkmoe_status read_stats(struct rank *r, struct vkmoe_err *err)
{
    struct xp_stats more = {0};
    enum vkmoe_status st = VKMOE_OK;

    TRY(xp_stats_read(&r->stats, r->files.at[0], err));
    for (size_t i = 1; i < r->files.n; i++) {
        TRY(xp_stats_read(&more, r->files.at[i], err));
        TRY(xp_stats_merge(&r->stats, &more, r->files.at[0], r->files.at[i], err));
        xp_stats_free(&more);
    }
    if (!r->method_name)
        r->method = r->stats.family == XP_EASY_EP ? CLI_EASY_EP : CLI_ROUTER;
    if (r->method == CLI_EASY_EP && r->stats.family != XP_EASY_EP)
        FAIL(VKMOE_ERR_ARGUMENT,
             "%s: no importance in it: easy-ep needs statistics made with --method easy-ep", r->files.at[0]);
done:
    xp_stats_free(&more);
    return st;
}

/* Empty statistics of the model of -m: its shape, before any device is opened. */
static enum vkmoe_status begin_stats(struct rank *r, struct vkmoe_err *err)
{
    char path[sizeof(r->e.path)];
    enum vkmoe_status st = VKMOE_OK;

    TRY(cli_model_path(r->e.model, path, err));
    TRY(mdl_open(&r->mdl, path, err));
    TRY(xp_stats_init(&r->stats, r->mdl, cli_method_family(r->method), err));
    if (r->imatrix_out)
        TRY(xp_inputs_init(&r->inputs, r->mdl, err));
done:
    return st;
}

static enum vkmoe_status fit_budget(struct rank *r, struct vkmoe_err *err)
{
    const struct xp_shape shape = xp_stats_shape(&r->stats);
    enum vkmoe_status st = VKMOE_OK;
    bool rounded;

    if (!r->choose)
        return VKMOE_OK;
    TRY(xp_budget_fit(&r->budget, &shape, &rounded, err));
    if (rounded)
        cor_log(VKMOE_LOG_WARN, "%s of %" PRIu32 " experts is not a whole number: %" PRIu32 " are kept",
                r->keep, shape.n_routed + shape.n_shared, r->budget.keep);
    TRY(xp_subset_init(&r->subset, r->stats.model, shape.n_layers, shape.n_routed, shape.n_shared,
                       cli_method_name(r->method), err));
done:
    return st;
}

/* Runs the model over the texts; by layers, this already chooses. */
static enum vkmoe_status run_model(struct rank *r, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < r->texts.n; i++)
        TRY(cli_calibration_add(&r->calibration, &r->e, &r->corpora[i], r->documents, r->texts.at[i], err));
    if (r->imatrix_out)
        vkmoe_session_on_inputs(r->e.ses, xp_inputs_add, &r->inputs);
    if (r->method == CLI_LAYERWISE)
        TRY(cli_calibrate_layerwise(&r->e, &r->calibration, &r->budget, &r->stats, &r->subset, err));
    else
        TRY(cli_calibrate(&r->e, &r->calibration, 0, r->calibration.n_docs, &r->stats, err));
done:
    return st;
}

static enum vkmoe_status choose(struct rank *r, struct vkmoe_err *err)
{
    char digest[COR_SHA256_HEX], *copy;
    enum vkmoe_status st = VKMOE_OK;

    if (r->method != CLI_LAYERWISE)
        TRY(xp_rank(&r->subset, &r->stats, &r->budget, cli_method_order(r->method), (uint64_t)r->seed, err));
    if (r->stats.documents && r->method != CLI_RANDOM) {
        copy = cor_strdup(xp_stats_digest(digest, &r->stats));
        if (!copy)
            FAIL(VKMOE_ERR_MEMORY, "no memory for a digest");
        cor_free(r->subset.calibration);
        r->subset.calibration = copy;
    }
done:
    return st;
}

/* ---- results
 * ------------------------------------------------------------------------------------------------- */

struct held {
    double kept, probability, choices; /* means over layers */
};

static struct held means(const struct rank *r)
{
    struct held h = {0, 0, 0};

    uint32_t n = 0; /* layers with experts: others are dense */

    for (uint32_t l = 0; l < r->stats.n_layers; l++)
        n += r->stats.n_there[l] > 0;
    for (uint32_t l = 0; l < r->stats.n_layers; l++) {
        if (!r->stats.n_there[l])
            continue;
        h.kept += (double)(xp_subset_count(&r->subset, l) + r->stats.n_shared) / n;
        h.probability += xp_rank_held(&r->subset, &r->stats, l) / n;
        h.choices += xp_rank_chosen(&r->subset, &r->stats, l) / n;
    }
    return h;
}

static void print_table(const struct rank *r)
{
    const struct xp_stats *s = &r->stats;
    const struct held h = means(r);

    printf("method     %s", cli_method_name(r->method));
    if (r->method == CLI_RANDOM)
        printf(", seed %" PRId64, r->seed);
    if (s->documents)
        printf(", from %" PRIu64 " document%s of %" PRIu64 " tokens", s->documents,
               s->documents == 1 ? "" : "s", s->tokens);
    printf("\nexperts    %" PRIu32 " routed and %" PRIu32 " shared in each of %" PRIu32
           " layers; kept counts the shared\n\n",
           s->n_routed, s->n_shared, s->n_layers);
    printf("layer  kept%s\n", s->tokens ? "  probability held  choices held" : "");
    for (uint32_t l = 0; l < s->n_layers; l++) {
        printf("%5" PRIu32 "  %4" PRIu32, l, xp_subset_count(&r->subset, l) + s->n_shared);
        if (s->tokens)
            printf("  %14.2f %%  %10.2f %%", 100 * xp_rank_held(&r->subset, s, l),
                   100 * xp_rank_chosen(&r->subset, s, l));
        printf("\n");
    }
    printf(" mean  %4.1f", h.kept);
    if (s->tokens)
        printf("  %14.2f %%  %10.2f %%", 100 * h.probability, 100 * h.choices);
    printf("\n");
}

static void json_layers(const struct rank *r)
{
    const struct xp_stats *s = &r->stats;

    printf("\"keep_per_layer\": [");
    for (uint32_t l = 0; l < s->n_layers; l++)
        printf("%s%" PRIu32, l ? ", " : "", xp_subset_count(&r->subset, l) + s->n_shared);
    printf("], \"probability_held\": ");
    for (uint32_t l = 0; s->tokens && l < s->n_layers; l++)
        printf("%s%.9g", l ? ", " : "[", xp_rank_held(&r->subset, s, l));
    printf("%s, \"choices_held\": ", s->tokens ? "]" : "null");
    for (uint32_t l = 0; s->tokens && l < s->n_layers; l++)
        printf("%s%.9g", l ? ", " : "[", xp_rank_chosen(&r->subset, s, l));
    printf("%s, ", s->tokens ? "]" : "null");
}

static void json_path(const char *key, const char *path)
{
    printf("\"%s\": ", key);
    if (path)
        cli_json_string(path, strlen(path));
    else
        printf("null");
}

static void print_json(const struct rank *r)
{
    const struct xp_stats *s = &r->stats;
    uint32_t equal = r->choose ? xp_subset_equal_count(&r->subset) : 0;
    char digest[COR_SHA256_HEX];

    printf("{\"model\": ");
    cli_json_string(s->model, strlen(s->model));
    printf(", \"method\": \"%s\", ", cli_method_name(r->method));
    if (r->method == CLI_RANDOM)
        printf("\"seed\": %" PRId64 ", ", r->seed);
    printf("\"documents\": %" PRIu64 ", \"truncated\": %" PRIu64 ", \"tokens\": %" PRIu64
           ", \"calibration\": \"%s\", \"n_layers\": %" PRIu32 ", \"n_routed\": %" PRIu32
           ", \"n_shared\": %" PRIu32 ", ",
           s->documents, s->truncated, s->tokens, xp_stats_digest(digest, s), s->n_layers, s->n_routed,
           s->n_shared);
    if (equal)
        printf("\"keep\": %" PRIu32 ", ", equal + s->n_shared);
    else
        printf("\"keep\": null, ");
    if (r->choose)
        json_layers(r);
    json_path("output", r->out);
    printf(", ");
    json_path("stats_output", r->stats_out);
    printf(", ");
    json_path("imatrix_output", r->imatrix_out);
    if (r->e.ses) {
        printf(", ");
        cli_pool_json(&r->e);
    }
    printf("}\n");
}

/* Files first, so that results mean they are there. */
static enum vkmoe_status finish(struct rank *r, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (r->choose)
        TRY(choose(r, err));
    if (r->e.ses)
        TRY(cli_engine_commit(&r->e, err));
    if (r->imatrix_out)
        TRY(xp_inputs_write(&r->inputs, r->imatrix_out, r->texts.at, r->texts.n, (uint32_t)r->stats.documents,
                            err));
    if (r->stats_out)
        TRY(xp_stats_write(&r->stats, r->stats_out, err));
    if (r->out)
        TRY(xp_subset_write(&r->subset, r->out, err));
    if (r->json)
        print_json(r);
    else if (r->choose)
        print_table(r);
done:
    return st;
}

/* ---- the command
 * --------------------------------------------------------------------------------------------- */

static int load_texts(struct rank *r)
{
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;

    r->corpora = cor_array(r->texts.n, sizeof(*r->corpora));
    if (!r->corpora)
        st = cor_fail(&err, VKMOE_ERR_MEMORY, "no memory for %zu texts", r->texts.n);
    for (size_t i = 0; st == VKMOE_OK && i < r->texts.n; i++)
        st = cli_corpus_load(&r->corpora[i], r->texts.at[i], r->separator, r->lines, &err);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

static int rank_run(const struct cli_cmd *cmd, struct rank *r)
{
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    int status = CLI_GOOD;

    if (r->texts.n && (status = load_texts(r)) != CLI_GOOD)
        return status;
    if (r->files.n)
        TRY(read_stats(r, &err));
    else
        TRY(begin_stats(r, &err));
    TRY(fit_budget(r, &err));
    if (r->texts.n) {
        r->e.params.watch = r->imatrix_out ? VKMOE_WATCH_INPUTS : cli_method_watch(r->method);
        if ((status = cli_engine_open(&r->e, cmd)) != CLI_GOOD)
            goto done;
        cor_catch_interrupt();
        TRY(run_model(r, &err));
    }
    TRY(finish(r, &err));
done:
    return cli_engine_end(&r->e, status, st, &err);
}

static int rank_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct rank r = {.e = CLI_ENGINE_DEFAULTS, .separator = CLI_SEPARATOR};
    const struct cli_opt opts[] = {
        {"-f|--file", CLI_STRS, &r.texts, "TEXT...",
         "calibration text, one or more; - is standard input; *.jsonl: one {\"text\": ...} a line", 0, 0},
        {"--keep", CLI_STR, &r.keep, "N|N%",
         "experts of every layer that are kept, the shared included, as 16 or 12.5%", 0, 0},
        {"--keep-per-layer", CLI_STR, &r.per_layer, "N,N,...", "the same for each layer, as 16,16,12", 0, 0},
        {"--coverage", CLI_STR, &r.coverage, "N%",
         "in each layer, as few as hold that share of the router's probability", 0, 0},
        {"--method", CLI_STR, &r.method_name, "NAME",
         "router (default): mean probability in one pass; layerwise: the same, each layer after those before "
         "it "
         "were cut; easy-ep: by what experts contribute; random",
         0, 0},
        {"--seed", CLI_INT, &r.seed, "N", "of random (default 0)", 0, 9e15},
        {"-o|--output", CLI_STR, &r.out, "FILE", "write the subset, for --experts and `experts carve`", 0, 0},
        {"--stats-out", CLI_STR, &r.stats_out, "FILE", "write the sums, which `experts merge` adds", 0, 0},
        {"--imatrix-out", CLI_STR, &r.imatrix_out, "FILE",
         "write how much each column of each matrix counts, for `vkmoe quantize --imatrix`", 0, 0},
        {"--stats", CLI_STRS, &r.files, "FILE...", "rank from such sums (added up) instead of a text", 0, 0},
        {"--separator", CLI_STR, &r.separator, "TEXT",
         "what stands between documents (default: newline, <|endoftext|>, newline; empty: a file is one)", 0,
         0},
        {"--json-lines", CLI_FLAG, &r.lines, NULL, "the texts hold JSON lines whatever their names", 0, 0},
        {"--documents", CLI_INT, &r.documents, "N", "the first N documents of each text (default 0: all)", 0,
         9e15},
        {"--json", CLI_FLAG, &r.json, NULL, "one JSON object on standard output", 0, 0},
        CLI_POOL_OPTS(r.e),
        CLI_ENGINE_OPTS(r.e),
        {0},
    };
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status < 0)
        status = check_options(cmd, &r);
    if (status < 0)
        status = rank_run(cmd, &r);
    for (size_t i = 0; r.corpora && i < r.texts.n; i++)
        cli_corpus_free(&r.corpora[i]);
    cor_free(r.corpora);
    cli_calibration_free(&r.calibration);
    xp_inputs_free(&r.inputs);
    mdl_close(r.mdl);
    xp_stats_free(&r.stats);
    xp_subset_free(&r.subset);
    xp_budget_free(&r.budget);
    return status;
}

const struct cli_cmd cli_experts_rank = {
    .name = "experts rank",
    .summary = "the experts that a workload needs most, as a subset file",
    .synopsis = "[-m FILE] -f TEXT... --keep N|N% [--method NAME] [-o SUBSET.json] [OPTION...]",
    .example = "  vkmoe experts rank -f mails.txt --keep 12.5% -o mails.json\n"
               "  vkmoe experts rank -f part1.jsonl --stats-out part1.stats.json\n"
               "  vkmoe experts rank -f mails.txt --imatrix-out mails.imatrix.gguf\n"
               "  vkmoe experts rank --stats part*.stats.json --coverage 95% -o all.json\n",
    .run = rank_main,
};
