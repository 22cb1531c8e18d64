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

/* line: n bytes, valid JSON. */
static bool has_nul(const char *line, size_t n)
{
    for (size_t i = 0; i + 6 <= n; i++)
        if (line[i] == '\\' && line[++i] == 'u' && !memcmp(line + i + 1, "0000", 4))
            return true;
    return false;
}

enum vkmoe_status cli_json_lines(cJSON ***objects, size_t *n_objects, char *text, size_t n, const char *file,
                                 cli_line_fn fn, void *user, struct vkmoe_err *err)
{
    size_t n_lines = 1, line = 0;
    char *p = text, *end = text + n, where[4200];
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < n; i++)
        n_lines += text[i] == '\n';
    *n_objects = 0;
    *objects = cor_array(n_lines, sizeof(**objects));
    if (!*objects)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %zu lines", file, n_lines);
    while (p < end) {
        char *eol = memchr(p, '\n', (size_t)(end - p)), *stop = eol ? eol : end, *next = stop + 1;

        line++;
        if (stop > p && stop[-1] == '\r')
            stop--;
        *stop = '\0'; /* there is one behind the whole text, too */
        snprintf(where, sizeof(where), "%s: line %zu", file, line);
        if (stop > p) {
            cJSON *o;

            TRY(mdl_json_parse(&o, p, (size_t)(stop - p), where, err));
            (*objects)[(*n_objects)++] = o;
            if (has_nul(p, (size_t)(stop - p)))
                FAIL(VKMOE_ERR_UNSUPPORTED, "%s: a NUL (\\u0000) in a string", where);
            TRY(fn(user, o, line, where, err));
        }
        p = next;
    }
done:
    return st;
}

/* The document is the string behind "text". */
static enum vkmoe_status add_line(void *user, const cJSON *o, size_t line, const char *where,
                                  struct vkmoe_err *err)
{
    const cJSON *text = mdl_json_get(o, "text");

    (void)line;
    if (!cJSON_IsString(text))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: no string \"text\"", where);
    if (!text->valuestring[0]) /* as between separators: empty documents are none */
        return VKMOE_OK;
    return add_document(user, text->valuestring, strlen(text->valuestring), err);
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
        TRY(cli_json_lines(&c->lines, &c->n_lines, c->text, c->n_text, file, add_line, c, err));
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
