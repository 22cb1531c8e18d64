/* vkmoe logits: logits after the last token, or after every token, as a float32 .npy file. */
#include <stdio.h>
#include <string.h>

#include "cli/pool.h"
#include "core/alloc.h"
#include "core/npy.h"
#include "core/os.h"

struct sink {
    struct cor_npy_writer *npy;
    struct cli_progress bar;
    size_t n; /* rows to come */
    enum vkmoe_status st;
    struct vkmoe_err *err;
};

static bool append(void *user, size_t index, const float *logits)
{
    struct sink *s = user;

    s->st = cor_npy_append(s->npy, logits, s->err);
    cli_progress_step(&s->bar, index + 1, s->n);
    return s->st == VKMOE_OK && !cor_interrupted();
}

static enum vkmoe_status write_logits(struct cli_engine *e, const int32_t *ids, size_t n, bool all,
                                      const char *path, struct vkmoe_err *err)
{
    struct sink sink = {.err = err, .n = n, .bar = {.what = "reading", .unit = "tokens"}};
    struct cor_npy_writer *npy;
    enum vkmoe_status st = VKMOE_OK;
    size_t fed;

    cor_catch_interrupt(); /* so that no temporary file is left */
    TRY(cli_engine_check_prompt(e, n, err));
    TRY(cor_npy_create(&sink.npy, path, vkmoe_model_facts(e->mdl)->vocab_size, err));
    if (all) {
        TRY(vkmoe_session_feed_all(e->ses, ids, n, append, &sink, err));
        TRY(sink.st);
    } else {
        TRY(cli_engine_feed(e, ids, n, &fed, err));
        if (fed == n)
            TRY(cor_npy_append(sink.npy, vkmoe_session_logits(e->ses), err));
    }
    if (cor_interrupted())
        FAIL(VKMOE_ERR_IO, "%s: interrupted, nothing is written", path);
    npy = sink.npy;
    sink.npy = NULL;
    TRY(cor_npy_commit(npy, err));
    TRY(cli_engine_commit(e, err));
done:
    cli_progress_end(&sink.bar);
    cor_npy_discard(sink.npy);
    return st;
}

static void print_json(const struct cli_engine *e, size_t n, size_t rows, const char *path)
{
    printf("{\"tokens\": %zu, \"rows\": %zu, \"fast_math\": %s, \"output\": ", n, rows,
           e->fast_math ? "true" : "false");
    cli_json_string(path, strlen(path));
    printf(", ");
    cli_choice_json(&e->choice, e->mdl, e->ses);
    printf(", ");
    cli_pool_json(e);
    printf("}\n");
}

static int logits_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct cli_engine e = CLI_ENGINE_DEFAULTS;
    const char *tokens = NULL, *prompt = NULL, *file = NULL, *out = NULL;
    bool all = false, json = false;
    const struct cli_opt opts[] = {
        {"--tokens", CLI_STR, &tokens, "1,2,3", "text as token ids", 0, 0},
        {"-p|--prompt", CLI_STR, &prompt, "TEXT", "text as it is", 0, 0},
        {"-f|--file", CLI_STR, &file, "FILE", "text from a file; - is standard input", 0, 0},
        {"--all", CLI_FLAG, &all, NULL, "logits after every token: (tokens, vocab), else (1, vocab)", 0, 0},
        {"-o|--output", CLI_STR, &out, "OUT.npy", "file to write (required)", 0, 0},
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on standard output: tokens, rows, file, pool", 0,
         0},
        CLI_POOL_OPTS(e),
        CLI_ENGINE_OPTS(e),
        {0},
    };
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    int32_t *ids = NULL;
    char *text = NULL;
    size_t n = 0, bytes;
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (!!tokens + !!prompt + !!file != 1)
        return cli_usage(cmd, "give one of --tokens, -p and -f");
    if (!out)
        return cli_usage(cmd, "give the file to write with -o");
    if (tokens)
        TRY(cli_parse_ids(tokens, &ids, &n, &err));
    else
        TRY(cli_read_text(prompt, file, &text, &bytes, &err));
    status = cli_engine_open(&e, cmd);
    if (status == CLI_GOOD) {
        if (!tokens)
            TRY(vkmoe_tokenize_prompt(e.mdl, text, bytes, false, &ids, &n, &err));
        TRY(write_logits(&e, ids, n, all, out, &err));
        if (json)
            print_json(&e, n, all ? n : 1, out);
    }
done:
    cor_free(ids);
    cor_free(text);
    return cli_engine_end(&e, status, st, &err);
}

const struct cli_cmd cli_logits = {
    .name = "logits",
    .summary = "write the logits of a text as a .npy file",
    .synopsis = "-o OUT.npy [-m FILE] --tokens 1,2,3 | -p TEXT | -f FILE [--all] [OPTION...]",
    .example = "  vkmoe logits -p \"In the beginning\" --all -o logits.npy\n"
               "  vkmoe logits --tokens 4094,1,2 -ctk f32 -ctv f32 -o last.npy\n",
    .run = logits_main,
};
