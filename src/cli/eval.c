/* vkmoe eval: negative log-likelihood and perplexity of a text. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "cli/pool.h"
#include "cli/score.h"
#include "core/os.h"

/* JSON has no infinity: a perplexity past what a double holds is null. */
static void json_number(const char *key, double v)
{
    if (isfinite(v))
        printf("\"%s\": %.12g, ", key, v);
    else
        printf("\"%s\": null, ", key);
}

static void print_score(const struct cli_engine *e, const struct cli_score *s, bool json, uint64_t ns)
{
    double ppl = exp(s->nll / (double)s->tokens), ppb = exp(s->nll / (double)s->bytes);
    char device[1024];

    if (!json) {
        cli_engine_device_line(e, device, sizeof(device));
        printf("documents   %" PRIu64 "\ntokens      %" PRIu64 "\nbytes       %" PRIu64 "\n", s->documents,
               s->tokens, s->bytes);
        printf("nll         %.6f nats\nperplexity  %.6f per token, %.6f per byte\n", s->nll, ppl, ppb);
        if (!cli_stdout_good())
            return;
        fprintf(stderr, "\ndevice   %s\n", device);
        if (e->fast_math)
            fprintf(stderr, "math     fast: activations rounded to 8 bits for Q8_0 and Q4_0 weights\n");
        fprintf(stderr, "speed    %.1f tokens/s in %.1f s\n", (double)s->tokens / ((double)ns * 1e-9),
                (double)ns * 1e-9);
        cli_pool_line(e, 9);
        cli_choice_line(&e->choice, e->mdl, e->ses, 9);
        return;
    }
    printf("{\"nll\": %.12g, \"tokens\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"documents\": %" PRIu64
           ", \"fast_math\": %s, ",
           s->nll, s->tokens, s->bytes, s->documents, e->fast_math ? "true" : "false");
    json_number("ppl", ppl);
    json_number("ppl_per_byte", ppb);
    cli_choice_json(&e->choice, e->mdl, e->ses);
    printf(", ");
    cli_pool_json(e);
    printf("}\n");
}

static int eval_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct cli_engine e = CLI_ENGINE_DEFAULTS;
    const char *file = NULL, *separator = CLI_SEPARATOR;
    bool json = false, lines = false;
    int64_t documents = 0, doc_prompt = 0;
    const struct cli_opt opts[] = {
        {"-f|--file", CLI_STR, &file, "FILE",
         "text to score, required; - is standard input; *.jsonl: one {\"text\": ...} a line", 0, 0},
        {"--separator", CLI_STR, &separator, "TEXT",
         "what stands between documents (default: newline, <|endoftext|>, newline; empty: the file is one)",
         0, 0},
        {"--json-lines", CLI_FLAG, &lines, NULL, "the file holds JSON lines whatever its name", 0, 0},
        {"--documents", CLI_INT, &documents, "N", "score the first N documents (default 0: all)", 0, 9e15},
        {"--doc-prompt", CLI_INT, &doc_prompt, "N",
         "with --experts doc:N, pick the pool from the first N tokens of a document (default 0: all of it)",
         0, 1 << 24},
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on standard output", 0, 0},
        CLI_POOL_OPTS(e),
        CLI_ENGINE_OPTS(e),
        {0},
    };
    struct cli_corpus corpus = {0};
    struct cli_score score = {0};
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    uint64_t ns;
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (!file)
        return cli_usage(cmd, "give the text to score with -f");
    TRY(cli_corpus_load(&corpus, file, separator, lines, &err));
    if ((status = cli_engine_open(&e, cmd)) == CLI_GOOD) {
        cor_catch_interrupt();
        ns = cor_now_ns();
        score.first_feed = (size_t)doc_prompt;
        TRY(cli_score_corpus(&e, &corpus, documents, &score, &err));
        ns = cor_now_ns() - ns;
        TRY(cli_engine_commit(&e, &err));
        print_score(&e, &score, json, ns);
    }
done:
    cli_corpus_free(&corpus);
    return cli_engine_end(&e, status, st, &err);
}

const struct cli_cmd cli_eval = {
    .name = "eval",
    .summary = "negative log-likelihood and perplexity of a text",
    .synopsis = "[-m FILE] -f FILE [--json] [OPTION...]",
    .example = "  vkmoe eval -f book.txt --json\n"
               "  vkmoe eval -f documents.jsonl -c 1024 -ctk f32 -ctv f32\n",
    .run = eval_main,
};
