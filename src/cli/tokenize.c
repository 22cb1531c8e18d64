/* vkmoe tokenize: text to token ids and back, with the tokenizer of a model file. Needs no device. */
#include <stdio.h>
#include <string.h>

#include "cli/corpus.h"
#include "core/alloc.h"
#include "model/gguf.h"
#include "model/json.h"
#include "model/tokenizer.h"

struct args {
    const char *model, *prompt, *file, *decode;
    bool json, lines, special, no_bos;
};

struct text {
    const struct args *a;
    const struct mdl_tokenizer *t;
};

static void print_ids(const int32_t *ids, size_t n)
{
    printf("\"tokens\":[");
    for (size_t i = 0; i < n; i++)
        printf(i ? ",%d" : "%d", (int)ids[i]);
    putchar(']');
}

/* A token as a quoted string; bytes that are not printable ASCII or whole UTF-8 characters are escaped. */
static void print_quoted(const char *p, size_t n)
{
    putchar('"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        size_t len = c < 0xc2 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 1, good = 1;

        while (good < len && i + good < n && ((unsigned char)p[i + good] & 0xc0) == 0x80)
            good++;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c == '\n' || c == '\t' || c == '\r')
            printf("\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
        else if (c >= 0x20 && c < 0x7f)
            putchar(c);
        else if (len > 1 && good == len) {
            fwrite(p + i, 1, len, stdout);
            i += len - 1;
        } else
            printf("\\x%02x", c);
    }
    putchar('"');
}

static enum vkmoe_status encode_text(const struct args *a, const struct mdl_tokenizer *t, const char *text,
                                     size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    const char *p;

    TRY((a->no_bos ? mdl_encode : mdl_encode_prompt)(t, text, n, a->special, &ids, &n_ids, err));
    if (a->json || a->lines) {
        putchar('{');
        print_ids(ids, n_ids);
        printf(",\"n_tokens\":%zu,\"bytes\":%zu}\n", n_ids, n);
    }
    for (size_t i = 0; !a->json && !a->lines && i < n_ids; i++) {
        size_t len = mdl_token_bytes(t, ids[i], &p);

        printf("%6d  ", (int)ids[i]);
        print_quoted(p, len);
        printf(mdl_token_is_special(t, ids[i]) ? "  special\n" : "\n");
    }
done:
    cor_free(ids);
    return st;
}

static enum vkmoe_status encode_line(void *user, const cJSON *o, size_t line, const char *where,
                                     struct vkmoe_err *err)
{
    const struct text *x = user;
    const cJSON *text = mdl_json_get(o, "text");

    (void)line;
    if (!cJSON_IsString(text))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: no string \"text\"", where);
    return encode_text(x->a, x->t, text->valuestring, strlen(text->valuestring), err);
}

static enum vkmoe_status encode(const struct args *a, const struct mdl_tokenizer *t, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct text x = {a, t};
    char *text = NULL;
    cJSON **lines = NULL;
    size_t n = 0, n_lines = 0;

    TRY(cli_read_text(a->prompt, a->file, &text, &n, err));
    TRY(a->lines ? cli_json_lines(&lines, &n_lines, text, n, a->file, encode_line, &x, err)
                 : encode_text(a, t, text, n, err));
done:
    for (size_t i = 0; i < n_lines; i++)
        cJSON_Delete(lines[i]);
    cor_free(lines);
    cor_free(text);
    return st;
}

static enum vkmoe_status decode(const struct args *a, const struct mdl_tokenizer *t, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    int32_t *ids = NULL;
    char *text = NULL;
    size_t n_ids = 0, n = 0;
    const char *p;

    TRY(cli_parse_ids(a->decode, &ids, &n_ids, err));
    for (size_t i = 0; i < n_ids; i++) {
        if ((uint32_t)ids[i] >= mdl_tokenizer_size(t))
            FAIL(VKMOE_ERR_ARGUMENT, "token id %d is outside the vocabulary of %u", (int)ids[i],
                 mdl_tokenizer_size(t));
        n += mdl_token_text(t, i ? ids[i - 1] : -1, ids[i], &p);
    }
    text = cor_alloc(n);
    if (!text)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %zu bytes of text", n);
    n = 0;
    for (size_t i = 0; i < n_ids; i++) {
        size_t len = mdl_token_text(t, i ? ids[i - 1] : -1, ids[i], &p);

        memcpy(text + n, p, len);
        n += len;
    }
    if (a->json) {
        putchar('{');
        print_ids(ids, n_ids);
        printf(",\"text\":");
        cli_json_string(text, n);
        printf("}\n");
    } else {
        fwrite(text, 1, n, stdout);
        if (cor_is_tty(1) && (!n || text[n - 1] != '\n'))
            putchar('\n');
    }
done:
    cor_free(ids);
    cor_free(text);
    return st;
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err error, *err = &error;
    struct args a = {0};
    struct mdl_gguf *gguf = NULL;
    struct mdl_tokenizer *t = NULL;
    char path[4096];
    int n_pos = 0;
    const struct cli_opt opts[] = {
        {"-m|--model", CLI_STR, &a.model, "FILE",
         "GGUF file whose tokenizer is used (default: the bundled model)", 0, 0},
        {"-p|--prompt", CLI_STR, &a.prompt, "TEXT", "text to tokenize", 0, 0},
        {"-f|--file", CLI_STR, &a.file, "FILE", "read the text from a file (-: standard input)", 0, 0},
        {"--special", CLI_FLAG, &a.special, NULL, "names of special tokens in the text become those tokens",
         0, 0},
        {"--no-bos", CLI_FLAG, &a.no_bos, NULL, "without the token that the model wants before every text", 0,
         0},
        {"--json-lines", CLI_FLAG, &a.lines, NULL,
         "the file holds JSON lines, {\"text\": ...}; prints one object for each", 0, 0},
        {"--decode", CLI_STR, &a.decode, "IDS", "the other way: ids such as 1,2,3 to text", 0, 0},
        {"--json", CLI_FLAG, &a.json, NULL, "print one JSON object", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    int status = cli_parse(cmd, opts, argc, argv, &n_pos);

    if (status >= 0)
        return status;
    if (n_pos > 1 || (n_pos == 1 && strcmp(argv[0], "-")))
        return cli_usage(cmd, "unexpected argument '%s'; text comes from -p, -f or -", argv[n_pos > 1]);
    if (n_pos && a.file)
        return cli_usage(cmd, "text is given twice, by -f and by -");
    if (n_pos)
        a.file = "-";
    if (a.decode ? a.prompt || a.file || a.special || a.no_bos : !a.prompt && !a.file)
        return cli_usage(cmd, a.decode ? "--decode takes no text, no --special and no --no-bos"
                                       : "no text: give -p, -f or -");
    if (a.lines && !a.file)
        return cli_usage(cmd, "--json-lines reads a file: give -f or -");
    TRY(cli_model_path(a.model, path, err));
    TRY(mdl_gguf_open(&gguf, path, err));
    TRY(mdl_tokenizer_from_gguf(&t, gguf, err));
    TRY(a.decode ? decode(&a, t, err) : encode(&a, t, err));
done:
    mdl_tokenizer_close(t);
    mdl_gguf_close(gguf);
    return st ? cli_error(err) : CLI_GOOD;
}

const struct cli_cmd cli_tokenize = {
    .name = "tokenize",
    .summary = "text to token ids, and back",
    .synopsis = "[-m FILE] (-p TEXT | -f FILE | - | --decode IDS) [OPTION...]",
    .example = "  vkmoe tokenize -p \"In the beginning\"\n"
               "  vkmoe tokenize -f README.md --json\n"
               "  vkmoe tokenize --decode 829,267\n",
    .run = run,
};
