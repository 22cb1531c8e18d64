/* vkmoe experts eval: what keeping few experts costs in quality and saves in bytes and time, as one table. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/experts_measure.h"
#include "cli/pool.h"
#include "core/alloc.h"
#include "core/os.h"

#define MIB(bytes) ((double)(bytes) / (1 << 20))

/* ---- options
 * ------------------------------------------------------------------------------------------------ */

/* The next part of a list with commas, without spaces around it; false behind the last. */
static bool next_part(const char **list, char *part, size_t cap)
{
    size_t n = strcspn(*list, ","), lead = strspn(*list, " ");

    if (!**list)
        return false;
    lead = lead < n ? lead : n;
    snprintf(part, cap, "%.*s", (int)(n - lead), *list + lead);
    for (size_t k = strlen(part); k && part[k - 1] == ' '; k--)
        part[k - 1] = '\0';
    *list += n + ((*list)[n] == ',');
    return true;
}

static int parse_levels(const struct cli_cmd *cmd, struct eval *ev)
{
    const char *list = ev->keep;
    struct vkmoe_err err;
    char part[32];

    while (next_part(&list, part, sizeof(part))) {
        if (ev->n_levels == EVAL_LEVELS)
            return cli_usage(cmd, "--keep takes at most %d numbers", EVAL_LEVELS);
        if (xp_budget_keep(&ev->levels[ev->n_levels].budget, part, &err) != VKMOE_OK)
            return cli_usage(cmd, "%s", err.message);
        ev->n_levels++;
    }
    return ev->n_levels ? -1 : cli_usage(cmd, "--keep is empty");
}

static int parse_counts(const struct cli_cmd *cmd, struct eval *ev)
{
    const char *list = ev->counts_text ? ev->counts_text : "";
    char part[32], *end;

    while (next_part(&list, part, sizeof(part))) {
        long v = strtol(part, &end, 10);

        if (end == part || *end || v < 1 || v > 1000000)
            return cli_usage(cmd, "--calibrate-documents takes whole numbers from 1 to 1000000, not '%s'",
                             part);
        if (ev->n_counts == EVAL_COUNTS)
            return cli_usage(cmd, "--calibrate-documents takes at most %d numbers", EVAL_COUNTS);
        ev->counts[ev->n_counts++] = (uint32_t)v;
    }
    return -1;
}

static int check_lists(const struct cli_cmd *cmd, struct eval *ev)
{
    if (!ev->calibrate.n)
        return cli_usage(cmd, "give the texts to choose experts from with --calibrate");
    if (!ev->test.n && !ev->choices.n)
        return cli_usage(cmd, "give the texts to score with --test, or questions with --choices");
    if (ev->test.n && ev->test.n != ev->calibrate.n)
        return cli_usage(cmd, "%zu texts of --test for %zu of --calibrate: one belongs to each", ev->test.n,
                         ev->calibrate.n);
    if (ev->choices.n && ev->choices.n != ev->calibrate.n)
        return cli_usage(cmd, "%zu files of --choices for %zu of --calibrate: one belongs to each",
                         ev->choices.n, ev->calibrate.n);
    ev->n_texts = ev->calibrate.n;
    for (size_t i = 0; i < ev->n_texts; i++) {
        ev->texts[i].calibrate = ev->calibrate.at[i];
        ev->texts[i].test = ev->test.n ? ev->test.at[i] : NULL;
        ev->texts[i].choices = ev->choices.n ? ev->choices.at[i] : NULL;
    }
    return -1;
}

static int check_options(const struct cli_cmd *cmd, struct eval *ev)
{
    static const char *const wrong[] = {"all", "next", "none"};
    uint64_t pool;
    int status = check_lists(cmd, ev);

    if (status < 0)
        status = parse_levels(cmd, ev);
    if (status < 0)
        status = parse_counts(cmd, ev);
    if (status >= 0)
        return status;
    if (ev->method_name && (!cli_method_parse(ev->method_name, &ev->method) || ev->method == CLI_RANDOM))
        return cli_usage(cmd, "--method takes router, layerwise or easy-ep, not '%s'", ev->method_name);
    for (size_t i = 0; i < COR_COUNT(wrong); i++)
        if (!strcmp(ev->wrong_name, wrong[i]))
            ev->wrong = (enum eval_wrong)i;
    if (strcmp(ev->wrong_name, wrong[ev->wrong]))
        return cli_usage(cmd, "--wrong takes all, next or none, not '%s'", ev->wrong_name);
    if (strcmp(ev->format, "md") && strcmp(ev->format, "csv") && strcmp(ev->format, "json"))
        return cli_usage(cmd, "--format takes md, csv or json, not '%s'", ev->format);
    if (ev->e.experts)
        return cli_usage(cmd, "--experts is not for experts eval: it chooses its own with --keep");
    if (!cli_pool_bytes(ev->e.pool, ev->e.pool ? strlen(ev->e.pool) : 0, &pool))
        return cli_usage(cmd, "--pool-mib takes auto, all or a whole number of at least 1, not '%s'",
                         ev->e.pool);
    return -1;
}

static enum vkmoe_status load_files(struct eval *ev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < ev->n_texts; i++) {
        struct eval_text *t = &ev->texts[i];

        TRY(cli_corpus_load(&t->calibration, t->calibrate, ev->separator, ev->lines, err));
        if (t->test)
            TRY(cli_corpus_load(&t->scored, t->test, ev->separator, ev->lines, err));
        if (t->choices)
            TRY(cli_questions_load(&t->questions, t->choices, err));
    }
done:
    return st;
}

/* ---- tables
 * ------------------------------------------------------------------------------------------------- */

/* Columns of a row, in order. */
enum column { RIGHT, WRONG, WORST, RANDOM, DOC, ACCURACY, ACCURACY_RANDOM, DISK, DEVICE, SPEED, COLUMNS };

static const char *const headings[COLUMNS] = {"right",      "wrong",    "worst",           "random",
                                              "doc",        "accuracy", "accuracy random", "file MiB",
                                              "device MiB", "tokens/s"};
static const char *const keys[COLUMNS] = {"ppl_right",    "ppl_wrong",        "ppl_worst",       "ppl_random",
                                          "ppl_doc",      "accuracy",         "accuracy_random", "disk_bytes",
                                          "device_bytes", "tokens_per_second"};

static double cell(const struct eval_row *r, enum column c)
{
    switch (c) {
    case RIGHT:
        return exp(r->right);
    case WRONG:
        return exp(r->wrong);
    case WORST:
        return exp(r->worst);
    case RANDOM:
        return exp(r->random);
    case DOC:
        return exp(r->doc);
    case ACCURACY:
        return r->accuracy;
    case ACCURACY_RANDOM:
        return r->accuracy_random;
    case DISK:
        return (double)r->disk_bytes;
    case DEVICE:
        return (double)r->device_bytes;
    default:
        return r->tokens_per_second;
    }
}

/* A column that no row fills is left out of the table for people. */
static bool is_used(const struct eval *ev, enum column c)
{
    for (size_t i = 0; i < ev->n_texts; i++)
        for (size_t k = 0; k < ev->n_levels; k++)
            if (isfinite(cell(&ev->texts[i].rows[k], c)))
                return true;
    return false;
}

static const char *name_of(const struct eval_text *t)
{
    return cor_path_base(t->test ? t->test : t->choices);
}

/* A name inside a table: no bar, no line end, no control character. quote: of csv. */
static void put_name(const char *s, bool csv)
{
    if (csv)
        putchar('"');
    for (; *s; s++) {
        if (csv && *s == '"')
            putchar('"');
        putchar((unsigned char)*s < 0x20 || *s == 0x7f || (*s == '|' && !csv) ? '?' : *s);
    }
    if (csv)
        putchar('"');
}

static double percent_of(const struct eval *ev, size_t k)
{
    return 100.0 * ev->levels[k].budget.keep / (ev->shape.n_routed + ev->shape.n_shared);
}

static void put_cell(enum column c, double v)
{
    if (!isfinite(v))
        printf("-");
    else if (c == ACCURACY || c == ACCURACY_RANDOM)
        printf("%.1f %%", 100 * v);
    else if (c == DISK || c == DEVICE)
        printf("%.2f", MIB(v));
    else
        printf("%.*f", c == SPEED ? 1 : 4, v);
}

static void print_md_counts(const struct eval *ev)
{
    if (!ev->n_counts || !ev->test.n)
        return;
    printf(
        "\nPerplexity with the right subset, chosen from the first documents of the calibration text:\n\n");
    printf("| text | keep |");
    for (size_t c = 0; c < ev->n_counts; c++)
        printf(" %" PRIu32 " |", ev->counts[c]);
    printf(" all |\n|---|---:|");
    for (size_t c = 0; c <= ev->n_counts; c++)
        printf("---:|");
    printf("\n");
    for (size_t i = 0; i < ev->n_texts; i++)
        for (size_t k = 0; k < ev->n_levels; k++) {
            const struct eval_row *r = &ev->texts[i].rows[k];

            if (ev->levels[k].all)
                continue;
            printf("| ");
            put_name(name_of(&ev->texts[i]), false);
            printf(" | %g %% |", percent_of(ev, k));
            for (size_t c = 0; c <= ev->n_counts; c++) {
                printf(" ");
                put_cell(RIGHT, exp(c < ev->n_counts ? r->by_count[c] : r->right));
                printf(" |");
            }
            printf("\n");
        }
}

static void print_md(const struct eval *ev)
{
    bool used[COLUMNS];

    printf("| text | keep |");
    for (int c = 0; c < COLUMNS; c++)
        if ((used[c] = is_used(ev, c)))
            printf(" %s |", headings[c]);
    printf("\n|---|---:|");
    for (int c = 0; c < COLUMNS; c++)
        if (used[c])
            printf("---:|");
    printf("\n");
    for (size_t i = 0; i < ev->n_texts; i++)
        for (size_t k = 0; k < ev->n_levels; k++) {
            printf("| ");
            put_name(name_of(&ev->texts[i]), false);
            printf(" | %g %% (%" PRIu32 ") |", percent_of(ev, k), ev->levels[k].budget.keep);
            for (int c = 0; c < COLUMNS; c++)
                if (used[c]) {
                    printf(" ");
                    put_cell(c, cell(&ev->texts[i].rows[k], c));
                    printf(" |");
                }
            printf("\n");
        }
    print_md_counts(ev);
}

static void print_csv(const struct eval *ev)
{
    printf("text,keep,keep_percent");
    for (int c = 0; c < COLUMNS; c++)
        printf(",%s", keys[c]);
    for (size_t c = 0; c < ev->n_counts; c++)
        printf(",ppl_right_%" PRIu32, ev->counts[c]);
    printf("\n");
    for (size_t i = 0; i < ev->n_texts; i++)
        for (size_t k = 0; k < ev->n_levels; k++) {
            const struct eval_row *r = &ev->texts[i].rows[k];

            put_name(name_of(&ev->texts[i]), true);
            printf(",%" PRIu32 ",%g", ev->levels[k].budget.keep, percent_of(ev, k));
            for (size_t c = 0; c < COLUMNS + ev->n_counts; c++) {
                double v = c < COLUMNS ? cell(r, (enum column)c) : exp(r->by_count[c - COLUMNS]);

                if (isfinite(v))
                    printf(",%.12g", v);
                else
                    printf(",");
            }
            printf("\n");
        }
}

static void json_number(const char *key, double v)
{
    if (isfinite(v))
        printf(", \"%s\": %.12g", key, v);
    else
        printf(", \"%s\": null", key);
}

static void json_row(const struct eval *ev, size_t i, size_t k)
{
    const struct eval_row *r = &ev->texts[i].rows[k];

    printf("{\"text\": %zu, \"keep\": %" PRIu32 ", \"keep_routed\": %" PRIu32, i, ev->levels[k].budget.keep,
           ev->levels[k].budget.keep - ev->shape.n_shared);
    json_number("nll_right", r->right);
    json_number("nll_wrong", r->wrong);
    json_number("nll_worst", r->worst);
    json_number("nll_random", r->random);
    json_number("nll_doc", r->doc);
    for (int c = 0; c < COLUMNS; c++)
        json_number(keys[c], cell(r, c));
    printf(", \"expert_bytes\": %" PRIu64, r->slot_bytes);
    json_number("answer_nll", isfinite(r->accuracy) ? r->answer_nll : NAN);
    printf(", \"ppl_right_by_documents\": {");
    for (size_t c = 0; c < ev->n_counts; c++) {
        printf("%s\"%" PRIu32 "\": ", c ? ", " : "", ev->counts[c]);
        if (isfinite(r->by_count[c]))
            printf("%.12g", exp(r->by_count[c]));
        else
            printf("null");
    }
    printf("}}");
}

static void json_name(const char *key, const char *path)
{
    printf("\"%s\": ", key);
    if (path)
        cli_json_string(path, strlen(path));
    else
        printf("null");
}

static void print_json(const struct eval *ev)
{
    char device[1024];

    cli_engine_device_line(&ev->e, device, sizeof(device));
    printf("{");
    json_name("model", ev->stats.model);
    printf(", ");
    json_name("device", device);
    printf(", \"method\": \"%s\", \"wrong\": \"%s\", \"random_seeds\": %" PRId64 ", \"seed\": %" PRId64
           ", \"n_layers\": %" PRIu32 ", \"n_routed\": %" PRIu32 ", \"n_shared\": %" PRIu32
           ", \"n_used\": %" PRIu32 ", \"decode_tokens\": %" PRId64 ", \"texts\": [",
           cli_method_name(ev->method), ev->wrong_name, ev->n_random, ev->seed, ev->shape.n_layers,
           ev->shape.n_routed, ev->shape.n_shared, ev->shape.n_used, ev->decode_tokens);
    for (size_t i = 0; i < ev->n_texts; i++) {
        const struct eval_text *t = &ev->texts[i];

        printf("%s{", i ? ", " : "");
        json_name("calibrate", t->calibrate);
        printf(", ");
        json_name("test", t->test);
        printf(", ");
        json_name("choices", t->choices);
        printf(", \"documents\": %" PRIu64 ", \"tokens\": %" PRIu64 ", \"bytes\": %" PRIu64
               ", \"questions\": %zu}",
               t->documents, t->tokens, t->bytes, t->questions.n);
    }
    printf("], \"rows\": [");
    for (size_t i = 0; i < ev->n_texts; i++)
        for (size_t k = 0; k < ev->n_levels; k++) {
            printf("%s", i + k ? ", " : "");
            json_row(ev, i, k);
        }
    printf("]}\n");
}

/* ---- the command
 * -------------------------------------------------------------------------------------------- */

static void print_notes(const struct eval *ev)
{
    char device[1024];

    if (!cli_stdout_good())
        return;
    cli_engine_device_line(&ev->e, device, sizeof(device));
    fprintf(stderr,
            "\ndevice   %s\nexperts  %" PRIu32 " routed and %" PRIu32 " shared in each of %" PRIu32
            " layers; keep counts the shared\nchosen   by %s from the calibration texts\n",
            device, ev->shape.n_routed, ev->shape.n_shared, ev->shape.n_layers, cli_method_name(ev->method));
}

static int eval_run(const struct cli_cmd *cmd, struct eval *ev)
{
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    int status = CLI_GOOD;

    TRY(load_files(ev, &err));
    if ((status = cli_engine_open_device(&ev->e, cmd)) != CLI_GOOD)
        goto done;
    cor_catch_interrupt();
    TRY(eval_measure(ev, &err));
    if (!strcmp(ev->format, "json"))
        print_json(ev);
    else if (!strcmp(ev->format, "csv"))
        print_csv(ev);
    else
        print_md(ev);
    if (!strcmp(ev->format, "md"))
        print_notes(ev);
done:
    return cli_engine_end(&ev->e, status, st, &err);
}

static int eval_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct eval *ev = cor_zalloc(sizeof(*ev)); /* too large for a stack */
    int status;

    if (!ev) {
        fprintf(stderr, "vkmoe: no memory\n");
        return CLI_FAILED;
    }
    ev->e = (struct cli_engine)CLI_ENGINE_DEFAULTS;
    ev->keep = "100%,50%,25%,12.5%";
    ev->wrong_name = "all";
    ev->format = "md";
    ev->separator = CLI_SEPARATOR;
    ev->n_random = 3;
    ev->decode_tokens = 64;
    const struct cli_opt opts[] = {
        {"--calibrate", CLI_STRS, &ev->calibrate, "TEXT...", "texts to choose experts from (required)", 0, 0},
        {"--test", CLI_STRS, &ev->test, "TEXT...", "texts to score, one for each of --calibrate", 0, 0},
        {"--choices", CLI_STRS, &ev->choices, "FILE...",
         "multiple-choice questions, one file for each of --calibrate: a line {\"context\", \"choices\", "
         "\"answer\"} each",
         0, 0},
        {"--keep", CLI_STR, &ev->keep, "N%,...",
         "experts of a layer that are kept, the shared included, as 16 or 12.5% (default 100%,50%,25%,12.5%)",
         0, 0},
        {"--method", CLI_STR, &ev->method_name, "NAME", "router (default), layerwise or easy-ep", 0, 0},
        {"--wrong", CLI_STR, &ev->wrong_name, "WHICH",
         "subsets of other texts that are tried: all (default), that of the next text, or none", 0, 0},
        {"--random-seeds", CLI_INT, &ev->n_random, "N", "random subsets to take the mean of (default 3)", 0,
         64},
        {"--seed", CLI_INT, &ev->seed, "N", "of the first random subset (default 0)", 0, 9e15},
        {"--doc", CLI_FLAG, &ev->doc, NULL, "also with a pool of as many experts that each document picks", 0,
         0},
        {"--calibrate-documents", CLI_STR, &ev->counts_text, "N,...",
         "also rank on the first N documents only, as 1,2,5,20", 0, 0},
        {"--documents", CLI_INT, &ev->documents, "N", "score the first N documents (default 0: all)", 0,
         9e15},
        {"--tokens", CLI_INT, &ev->max_tokens, "N",
         "score documents until there are N tokens (default 0: all)", 0, 9e15},
        {"--questions", CLI_INT, &ev->max_questions, "N", "answer the first N questions (default 0: all)", 0,
         9e15},
        {"--decode-tokens", CLI_INT, &ev->decode_tokens, "N",
         "tokens decoded to measure speed (default 64; 0: not measured)", 0, 1 << 20},
        {"--format", CLI_STR, &ev->format, "md|json|csv", "of the table (default md)", 0, 0},
        {"--separator", CLI_STR, &ev->separator, "TEXT",
         "what stands between documents (default: newline, <|endoftext|>, newline; empty: a file is one)", 0,
         0},
        {"--json-lines", CLI_FLAG, &ev->lines, NULL, "the texts hold JSON lines whatever their names", 0, 0},
        {"--pool-mib|--moe-cache-mib", CLI_STR, &ev->e.pool, "N",
         "MiB on the device for experts of the whole model, or all, or auto (default)", 0, 0},
        CLI_ENGINE_OPTS(ev->e),
        {0},
    };
    status = cli_parse(cmd, opts, argc, argv, NULL);
    if (status < 0)
        status = check_options(cmd, ev);
    if (status < 0)
        status = eval_run(cmd, ev);
    eval_free(ev);
    cor_free(ev);
    return status;
}

const struct cli_cmd cli_experts_eval = {
    .name = "experts eval",
    .summary =
        "perplexity and answers with the right, wrong and random experts, bytes and speed, as one table",
    .synopsis = "[-m FILE] --calibrate TEXT... --test TEXT... [--keep N%,...] [OPTION...]",
    .example = "  vkmoe experts eval --calibrate a.txt b.txt --test a2.txt b2.txt --doc\n"
               "  vkmoe experts eval --calibrate a.txt --choices a.jsonl --keep 100%,12.5% --format json\n",
    .run = eval_main,
};
