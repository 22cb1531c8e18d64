#include "cli/corpus.h"

#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "model/json.h"

static enum vkmoe_status add_document(struct cli_corpus *c, const char *p, size_t n, struct vkmoe_err *err)
{
    if (c->n_docs == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 64;
        struct cli_document *more = cor_resize(c->docs, cap, sizeof(*more));

        if (!more)
            return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu documents", cap);
        c->docs = more;
        c->cap = cap;
    }
    c->docs[c->n_docs++] = (struct cli_document){p, n};
    return VKMOE_OK;
}

static const char *find(const char *hay, size_t n, const char *needle, size_t k)
{
    for (size_t i = 0; i + k <= n; i++)
        if (hay[i] == needle[0] && !memcmp(hay + i, needle, k))
            return hay + i;
    return NULL;
}

static enum vkmoe_status split_text(struct cli_corpus *c, const char *separator, struct vkmoe_err *err)
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

bool cli_json_has_nul(const char *line, size_t n)
{
    for (size_t i = 0; i + 6 <= n; i++)
        if (line[i] == '\\' && line[++i] == 'u' && !memcmp(line + i + 1, "0000", 4))
            return true;
    return false;
}

/* line: NUL behind its n bytes. */
static enum vkmoe_status add_line(struct cli_corpus *c, const char *line, size_t n, const char *where,
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
    if (cli_json_has_nul(line, n))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: a NUL (\\u0000) in a string", where);
    if (text->valuestring[0]) /* as between separators: empty documents are none */
        TRY(add_document(c, text->valuestring, strlen(text->valuestring), err));
done:
    return st;
}

/* One JSON object per line; the document is the string behind "text". Ends the lines of c->text with NULs. */
static enum vkmoe_status split_json(struct cli_corpus *c, const char *file, struct vkmoe_err *err)
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

enum vkmoe_status cli_corpus_load(struct cli_corpus *c, const char *file, const char *separator, bool json,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(cli_read_text(NULL, file, &c->text, &c->n_text, err));
    if (json || ends_with(file, ".jsonl"))
        TRY(split_json(c, file, err));
    else
        TRY(split_text(c, separator, err));
    if (!c->n_docs)
        FAIL(VKMOE_ERR_FORMAT, "%s: no document in it", file);
done:
    return st;
}

void cli_corpus_free(struct cli_corpus *c)
{
    for (size_t i = 0; i < c->n_lines; i++)
        cJSON_Delete(c->lines[i]);
    cor_free(c->lines);
    cor_free(c->docs);
    cor_free(c->text);
}
