/* vkmoe eval: negative log-likelihood and perplexity of a text, document by document, as section 10 of
 * docs/DESIGN.md defines them. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/pool.h"
#include "core/alloc.h"
#include "core/os.h"
#include "model/json.h"

#define SEPARATOR "\n<|endoftext|>\n"

struct document { /* bytes inside the text, or a decoded JSON string */
    const char *p;
    size_t n;
};

struct corpus {
    char *text;
    size_t n_text;
    struct document *docs;
    size_t n_docs, cap;
    cJSON **lines; /* JSON lines: parsed objects that own the strings */
    size_t n_lines;
};

struct score {
    double nll; /* nats */
    uint64_t tokens, bytes, documents;
    struct cli_progress bar;
    uint64_t total; /* bytes to score */
};

/* ---- documents
 * ---------------------------------------------------------------------------------------------- */

static enum vkmoe_status add_document(struct corpus *c, const char *p, size_t n, struct vkmoe_err *err)
{
    if (c->n_docs == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 64;
        struct document *more = cor_resize(c->docs, cap, sizeof(*more));

        if (!more)
            return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu documents", cap);
        c->docs = more;
        c->cap = cap;
    }
    c->docs[c->n_docs++] = (struct document){p, n};
    return VKMOE_OK;
}

static const char *find(const char *hay, size_t n, const char *needle, size_t k)
{
    for (size_t i = 0; i + k <= n; i++)
        if (hay[i] == needle[0] && !memcmp(hay + i, needle, k))
            return hay + i;
    return NULL;
}

static enum vkmoe_status split_text(struct corpus *c, const char *separator, struct vkmoe_err *err)
{
    size_t k = strlen(separator);
    const char *p = c->text, *end = c->text + c->n_text;
    enum vkmoe_status st = VKMOE_OK;

    while (p <= end) {
        const char *hit = k ? find(p, (size_t)(end - p), separator, k) : NULL;
        const char *stop = hit ? hit : end;

        if (stop > p)
            TRY(add_document(c, p, (size_t)(stop - p), err));
        if (!hit)
            break;
        p = hit + k;
    }
done:
    return st;
}

/* cJSON ends strings at a NUL, so the text behind \u0000 would be lost without a word. line: n bytes, valid
 * JSON. */
static bool has_nul(const char *line, size_t n)
{
    for (size_t i = 0; i + 6 <= n; i++)
        if (line[i] == '\\' && line[++i] == 'u' && !memcmp(line + i + 1, "0000", 4))
            return true;
    return false;
}

/* line: NUL behind its n bytes. */
static enum vkmoe_status add_line(struct corpus *c, const char *line, size_t n, const char *where,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const cJSON *text;
    cJSON *obj;

    TRY(mdl_json_parse(&obj, line, n, where, err));
    c->lines[c->n_lines++] = obj;
    text = mdl_json_get(obj, "text");
    if (!cJSON_IsString(text))
        FAIL(VKMOE_ERR_FORMAT, "%s: no string \"text\"", where);
    if (has_nul(line, n))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: a NUL (\\u0000) in a string", where);
    if (text->valuestring[0]) /* as between separators: empty documents are none */
        TRY(add_document(c, text->valuestring, strlen(text->valuestring), err));
done:
    return st;
}

/* One JSON object per line; the document is the string behind "text". Ends the lines of c->text with NULs. */
static enum vkmoe_status split_json(struct corpus *c, const char *file, struct vkmoe_err *err)
{
    size_t n_lines = 1, line = 0;
    char *p = c->text, *end = c->text + c->n_text, where[4200];
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < c->n_text; i++)
        n_lines += c->text[i] == '\n';
    c->lines = cor_array(n_lines, sizeof(cJSON *));
    if (!c->lines)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %zu lines", file, n_lines);
    while (p < end) {
        char *eol = memchr(p, '\n', (size_t)(end - p)), *stop = eol ? eol : end, *next = stop + 1;

        line++;
        if (stop > p && stop[-1] == '\r')
            stop--;
        *stop = '\0'; /* there is one behind the whole text, too */
        snprintf(where, sizeof(where), "%s: line %zu", file, line);
        if (stop > p)
            TRY(add_line(c, p, (size_t)(stop - p), where, err));
        p = next;
    }
done:
    return st;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);

    return n >= k && !strcmp(s + n - k, end);
}

static enum vkmoe_status load_corpus(struct corpus *c, const char *file, const char *separator, bool json,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(cli_read_text(NULL, file, &c->text, &c->n_text, err));
    if (json || ends_with(file, ".jsonl"))
        TRY(split_json(c, file, err));
    else
        TRY(split_text(c, separator, err));
    if (!c->n_docs)
        FAIL(VKMOE_ERR_FORMAT, "%s: no document to score", file);
done:
    return st;
}

static void free_corpus(struct corpus *c)
{
    for (size_t i = 0; i < c->n_lines; i++)
        cJSON_Delete(c->lines[i]);
    cor_free(c->lines);
    cor_free(c->docs);
    cor_free(c->text);
}

/* ---- scoring
 * ------------------------------------------------------------------------------------------------ */

struct window {
    const int32_t *next; /* token that the logits of row i predict */
    uint32_t vocab;
    struct score *score;
    double bytes_per_row; /* for the progress bar */
    uint64_t bytes;       /* scored before this window */
};

/* -log softmax(logits)[id], in double. */
static double token_nll(const float *logits, uint32_t vocab, int32_t id)
{
    double top = logits[0], sum = 0;

    for (uint32_t i = 1; i < vocab; i++)
        top = logits[i] > top ? logits[i] : top;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - top);
    return log(sum) + top - logits[id];
}

static bool score_row(void *user, size_t index, const float *logits)
{
    const struct window *w = user;

    w->score->nll += token_nll(logits, w->vocab, w->next[index]);
    w->score->tokens++;
    cli_progress_step(&w->score->bar, w->bytes + (uint64_t)((double)(index + 1) * w->bytes_per_row),
                      w->score->total);
    return !cor_interrupted();
}

/* ids: end-of-text, document, end-of-text; all but the first are predicted, in windows of n_ctx with half
 * overlap: the first half of a window only gives context to the second. bytes: of the document. */
static enum vkmoe_status score_ids(struct cli_engine *e, const int32_t *ids, size_t n, size_t bytes,
                                   struct score *s, struct vkmoe_err *err)
{
    size_t ctx = vkmoe_session_n_ctx(e->ses), step = ctx / 2 ? ctx / 2 : 1, at = 0, scored = 0;
    double per_row = (double)bytes / (double)(n - 1);
    enum vkmoe_status st = VKMOE_OK;

    for (; scored < n - 1 && !cor_interrupted(); at += step) {
        size_t len = n - 1 - at < ctx ? n - 1 - at : ctx;
        struct window w = {.next = ids + scored + 1,
                           .vocab = vkmoe_model_facts(e->mdl)->vocab_size,
                           .score = s,
                           .bytes_per_row = per_row,
                           .bytes = s->bytes + (uint64_t)(per_row * (double)scored)};

        vkmoe_session_reset(e->ses);
        if (scored > at)
            TRY(vkmoe_session_feed(e->ses, ids + at, scored - at, err));
        TRY(vkmoe_session_feed_all(e->ses, ids + scored, at + len - scored, score_row, &w, err));
        scored = at + len;
    }
done:
    return st;
}

static enum vkmoe_status score_document(struct cli_engine *e, const struct document *d, struct score *s,
                                        struct vkmoe_err *err)
{
    int32_t eos = vkmoe_model_facts(e->mdl)->eos_token, *ids = NULL, *framed = NULL;
    enum vkmoe_status st = VKMOE_OK;
    size_t n;

    TRY(vkmoe_tokenize(e->mdl, d->p, d->n, false, &ids, &n, err));
    framed = cor_array(n + 2, sizeof(*framed));
    if (!framed)
        FAIL(VKMOE_ERR_MEMORY, "no memory for a document of %zu tokens", n);
    framed[0] = framed[n + 1] = eos;
    memcpy(framed + 1, ids, n * sizeof(*ids));
    TRY(score_ids(e, framed, n + 2, d->n, s, err));
    if (cor_interrupted())
        FAIL(VKMOE_ERR_IO, "interrupted after %" PRIu64 " documents", s->documents);
    s->bytes += d->n;
    s->documents++;
done:
    cor_free(ids);
    cor_free(framed);
    return st;
}

static enum vkmoe_status score_corpus(struct cli_engine *e, const struct corpus *c, int64_t most,
                                      struct score *s, struct vkmoe_err *err)
{
    size_t n = most > 0 && (uint64_t)most < c->n_docs ? (size_t)most : c->n_docs;
    enum vkmoe_status st = VKMOE_OK;

    s->bar.what = "scoring";
    if (vkmoe_model_facts(e->mdl)->eos_token < 0)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: no end-of-text token, which scoring puts round each document", e->path);
    for (size_t i = 0; i < n; i++)
        s->total += c->docs[i].n;
    for (size_t i = 0; i < n; i++)
        TRY(score_document(e, &c->docs[i], s, err));
done:
    cli_progress_end(&s->bar);
    return st;
}

/* ---- command
 * ------------------------------------------------------------------------------------------------ */

/* JSON has no infinity: a perplexity past what a double holds is null. */
static void json_number(const char *key, double v)
{
    if (isfinite(v))
        printf("\"%s\": %.12g, ", key, v);
    else
        printf("\"%s\": null, ", key);
}

static void print_score(const struct cli_engine *e, const struct score *s, bool json, uint64_t ns)
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
        fprintf(stderr, "speed    %.1f tokens/s in %.1f s\n", (double)s->tokens / ((double)ns * 1e-9),
                (double)ns * 1e-9);
        cli_pool_line(e, 9);
        return;
    }
    printf("{\"nll\": %.12g, \"tokens\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"documents\": %" PRIu64 ", ",
           s->nll, s->tokens, s->bytes, s->documents);
    json_number("ppl", ppl);
    json_number("ppl_per_byte", ppb);
    cli_pool_json(e);
    printf("}\n");
}

static int eval_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct cli_engine e = CLI_ENGINE_DEFAULTS;
    const char *file = NULL, *separator = SEPARATOR;
    bool json = false, lines = false;
    int64_t documents = 0;
    const struct cli_opt opts[] = {
        {"-f|--file", CLI_STR, &file, "FILE",
         "text to score, required; - is standard input; *.jsonl: one {\"text\": ...} a line", 0, 0},
        {"--separator", CLI_STR, &separator, "TEXT",
         "what stands between documents (default: newline, <|endoftext|>, newline; empty: the file is one)",
         0, 0},
        {"--json-lines", CLI_FLAG, &lines, NULL, "the file holds JSON lines whatever its name", 0, 0},
        {"--documents", CLI_INT, &documents, "N", "score the first N documents (default 0: all)", 0, 9e15},
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on standard output", 0, 0},
        CLI_POOL_OPTS(e),
        CLI_ENGINE_OPTS(e),
        {0},
    };
    struct corpus corpus = {0};
    struct score score = {0};
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    uint64_t ns;
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (!file)
        return cli_usage(cmd, "give the text to score with -f");
    TRY(load_corpus(&corpus, file, separator, lines, &err));
    if ((status = cli_engine_open(&e, cmd)) == CLI_GOOD) {
        cor_catch_interrupt();
        ns = cor_now_ns();
        TRY(score_corpus(&e, &corpus, documents, &score, &err));
        ns = cor_now_ns() - ns;
        TRY(cli_engine_commit(&e, &err));
        print_score(&e, &score, json, ns);
    }
done:
    free_corpus(&corpus);
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
