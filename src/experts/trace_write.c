/* Writing route traces: choices arrive layer by layer, lines leave token by token. */
#include <assert.h>
#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bits.h"
#include "core/os.h"
#include "experts/trace.h"
#include "shared/step.h"

struct xp_trace_writer {
    struct cor_out *out;
    char *path;
    struct xp_trace_info info;
    uint64_t n_written;
    /* tokens [first, first + n) that are not written yet; each has its first `filled` layers */
    uint32_t first, n, cap;
    uint32_t *filled; /* (cap) */
    uint32_t *sel;    /* (cap, n_layers, k, 2) */
    char *line;       /* of one token */
    size_t n_line, cap_line;
    struct vkmoe_err err; /* first failure */
};

enum { NUMBER_CHARS = 24 }; /* an id or a weight with its comma */

static size_t token_words(const struct xp_trace_writer *w)
{
    return (size_t)w->info.n_layers * w->info.n_used * 2;
}

static void append(struct xp_trace_writer *w, const char *fmt, ...) COR_PRINTF(2, 3);

static void append(struct xp_trace_writer *w, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(w->line + w->n_line, w->cap_line - w->n_line, fmt, ap);
    va_end(ap);
    assert(n >= 0 && (size_t)n < w->cap_line - w->n_line);
    w->n_line += (size_t)n;
}

static enum vkmoe_status write_header(struct xp_trace_writer *w, struct vkmoe_err *err)
{
    cJSON *o = cJSON_CreateObject();
    char *text = NULL;
    enum vkmoe_status st = VKMOE_OK;

    if (!o || !cJSON_AddStringToObject(o, "format", "vkmoe-route-trace") ||
        !cJSON_AddNumberToObject(o, "version", 1) || !cJSON_AddStringToObject(o, "model", w->info.model) ||
        !cJSON_AddNumberToObject(o, "n_layers", w->info.n_layers) ||
        !cJSON_AddNumberToObject(o, "n_experts", w->info.n_experts) ||
        !cJSON_AddNumberToObject(o, "n_used", w->info.n_used) ||
        !cJSON_AddNumberToObject(o, "expert_bytes", (double)w->info.expert_bytes) ||
        !cJSON_AddBoolToObject(o, "weights", w->info.weights) || !(text = cJSON_PrintUnformatted(o)))
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the header", w->path);
    TRY(cor_out_write(w->out, text, strlen(text), err));
    TRY(cor_out_write(w->out, "\n", 1, err));
done:
    cJSON_free(text);
    cJSON_Delete(o);
    return st;
}

enum vkmoe_status xp_trace_create(struct xp_trace_writer **out, const char *path,
                                  const struct xp_trace_info *info, struct vkmoe_err *err)
{
    struct xp_trace_writer *w = cor_zalloc(sizeof(*w));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    assert(info->n_layers && info->n_layers <= XP_TRACE_LAYERS && info->n_experts <= MAX_EXPERTS &&
           info->n_used && info->n_used <= MAX_TOP_K);
    if (!w)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a trace", path);
    w->info = *info;
    w->cap_line = 64 + (size_t)info->n_layers * 2 * (info->n_used * NUMBER_CHARS + 4);
    w->line = cor_alloc(w->cap_line);
    w->path = cor_strdup(path);
    if (!w->line || !w->path)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a trace", path);
    TRY(cor_out_create(&w->out, path, err));
    TRY(write_header(w, err));
    w->info.model = NULL; /* the caller's */
    *out = w;
    w = NULL;
done:
    xp_trace_discard(w);
    return st;
}

/* ---- lines
 * --------------------------------------------------------------------------------------------------- */

static void append_lists(struct xp_trace_writer *w, const char *key, const uint32_t *sel, bool weights)
{
    append(w, ",\"%s\":[", key);
    for (uint32_t l = 0; l < w->info.n_layers; l++) {
        const char *comma = "";

        append(w, l ? ",[" : "[");
        for (uint32_t j = 0; j < w->info.n_used; j++, sel += 2) {
            float weight = cor_float_from_bits(sel[1]);

            if (sel[0] == NONE)
                continue;
            if (weights) /* JSON has no NaN; such a run ends in an error of its own */
                append(w, "%s%.9g", comma, isfinite(weight) ? (double)weight : 0);
            else
                append(w, "%s%" PRIu32, comma, sel[0]);
            comma = ",";
        }
        append(w, "]");
    }
    append(w, "]");
}

static enum vkmoe_status write_token(struct xp_trace_writer *w, uint32_t pos, const uint32_t *sel)
{
    w->n_line = 0;
    append(w, "{\"pos\":%" PRIu32, pos);
    append_lists(w, "experts", sel, false);
    if (w->info.weights)
        append_lists(w, "weights", sel, true);
    append(w, "}\n");
    w->n_written++;
    return cor_out_write(w->out, w->line, w->n_line, &w->err);
}

/* Writes the complete tokens at the front and moves the others there. */
static enum vkmoe_status flush(struct xp_trace_writer *w)
{
    uint32_t n = 0;
    enum vkmoe_status st = VKMOE_OK;

    while (n < w->n && w->filled[n] == w->info.n_layers) {
        TRY(write_token(w, w->first + n, w->sel + n * token_words(w)));
        n++;
    }
    w->first += n;
    w->n -= n;
    memmove(w->filled, w->filled + n, w->n * sizeof(*w->filled));
    memmove(w->sel, w->sel + n * token_words(w), w->n * token_words(w) * sizeof(*w->sel));
done:
    return st;
}

static enum vkmoe_status reserve(struct xp_trace_writer *w, uint32_t n)
{
    void *more;

    if (n <= w->cap)
        return VKMOE_OK;
    more = cor_resize(w->filled, n, sizeof(*w->filled));
    if (more)
        w->filled = more;
    more = more ? cor_resize(w->sel, n, token_words(w) * sizeof(*w->sel)) : NULL;
    if (!more)
        return cor_fail(&w->err, VKMOE_ERR_MEMORY, "%s: no memory for the routes of %" PRIu32 " tokens",
                        w->path, n);
    w->sel = more;
    w->cap = n;
    return VKMOE_OK;
}

/* Makes room for the tokens of a call in the window; false when they do not follow on what is there. */
static bool place(struct xp_trace_writer *w, uint32_t layer, uint32_t pos, uint32_t n_tokens)
{
    bool follows = w->n && pos >= w->first && pos <= w->first + w->n;

    if (layer == 0 && (!follows || pos < w->first + w->n)) { /* a new text, or a chunk that begins again */
        w->n = follows ? pos - w->first : 0;
        w->first = follows ? w->first : pos;
    } else if (layer > 0 && (!follows || n_tokens > w->first + w->n - pos)) {
        return false;
    }
    return true;
}

void xp_trace_add(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens, const uint32_t *sel)
{
    struct xp_trace_writer *w = user;
    size_t words = (size_t)w->info.n_used * 2;

    if (w->err.status != VKMOE_OK)
        return;
    if (layer >= w->info.n_layers || !place(w, layer, pos, n_tokens)) {
        cor_fail(&w->err, VKMOE_ERR_ARGUMENT,
                 "%s: routes of layer %" PRIu32 " at position %" PRIu32 " are out of order", w->path, layer,
                 pos);
        return;
    }
    if (layer == 0) {
        if (reserve(w, pos - w->first + n_tokens))
            return;
        memset(w->filled + w->n, 0, n_tokens * sizeof(*w->filled));
        w->n += n_tokens;
    }
    for (uint32_t t = 0; t < n_tokens; t++) {
        uint32_t at = pos - w->first + t;

        if (w->filled[at] != layer) {
            cor_fail(&w->err, VKMOE_ERR_ARGUMENT,
                     "%s: routes of layer %" PRIu32 " at position %" PRIu32 " are out of order", w->path,
                     layer, pos + t);
            return;
        }
        memcpy(w->sel + at * token_words(w) + layer * words, sel + t * words, words * sizeof(*sel));
        w->filled[at]++;
    }
    if (layer + 1 == w->info.n_layers)
        flush(w);
}

uint64_t xp_trace_tokens(const struct xp_trace_writer *w)
{
    return w->n_written;
}

enum vkmoe_status xp_trace_commit(struct xp_trace_writer *w, struct vkmoe_err *err)
{
    struct cor_out *out = w->out;
    enum vkmoe_status st = w->err.status;

    if (st != VKMOE_OK)
        cor_fail(err, st, "%s", w->err.message);
    else
        w->out = NULL;
    xp_trace_discard(w);
    return st != VKMOE_OK ? st : cor_out_commit(out, err);
}

void xp_trace_discard(struct xp_trace_writer *w)
{
    if (!w)
        return;
    cor_out_discard(w->out);
    cor_free(w->path);
    cor_free(w->line);
    cor_free(w->filled);
    cor_free(w->sel);
    cor_free(w);
}
