/* Reading route traces, of which nothing is trusted. */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bits.h"
#include "core/os.h"
#include "experts/trace.h"
#include "model/json.h"
#include "shared/step.h"

#define FILE_BYTES ((size_t)1 << 30)

struct reader {
    struct xp_trace *t;
    const char *path;
    char *where; /* "path, line N", for messages */
    size_t cap_where, cap;
    struct vkmoe_err *err;
};

static size_t token_words(const struct xp_trace *t)
{
    return (size_t)t->info.n_layers * t->info.n_used * 2;
}

const uint32_t *xp_trace_sel(const struct xp_trace *t, size_t token, uint32_t layer)
{
    assert(token < t->n_tokens && layer < t->info.n_layers);
    return t->sel + token * token_words(t) + (size_t)layer * t->info.n_used * 2;
}

void xp_trace_free(struct xp_trace *t)
{
    cor_free(t->name);
    cor_free(t->pos);
    cor_free(t->sel);
    cor_free(t->first);
    memset(t, 0, sizeof(*t));
}

/* ---- one line
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status get_count(struct reader *r, const cJSON *o, const char *key, uint64_t least,
                                   uint64_t most, uint64_t *out)
{
    if (!mdl_json_u64(mdl_json_get(o, key), most, out) || *out < least)
        return cor_fail(r->err, VKMOE_ERR_FORMAT,
                        "%s: '%s' is not a whole number from %" PRIu64 " to %" PRIu64, r->where, key, least,
                        most);
    return VKMOE_OK;
}

static enum vkmoe_status read_header(struct reader *r, const cJSON *o)
{
    const cJSON *format = mdl_json_get(o, "format"), *model = mdl_json_get(o, "model"),
                *weights = mdl_json_get(o, "weights");
    struct xp_trace *t = r->t;
    struct vkmoe_err *err = r->err;
    uint64_t version, layers, experts, used;
    enum vkmoe_status st = VKMOE_OK;

    if (!cJSON_IsString(format) || strcmp(format->valuestring, "vkmoe-route-trace"))
        FAIL(VKMOE_ERR_FORMAT, "%s: not a route trace ('format' is not \"vkmoe-route-trace\")", r->where);
    TRY(get_count(r, o, "version", 1, 1, &version));
    TRY(get_count(r, o, "n_layers", 1, XP_TRACE_LAYERS, &layers));
    TRY(get_count(r, o, "n_experts", 1, MAX_EXPERTS, &experts));
    TRY(get_count(r, o, "n_used", 1, experts < MAX_TOP_K ? experts : MAX_TOP_K, &used));
    TRY(get_count(r, o, "expert_bytes", 0, UINT32_MAX, &t->info.expert_bytes));
    if (!cJSON_IsString(model))
        FAIL(VKMOE_ERR_FORMAT, "%s: 'model' is not a string", r->where);
    if (!cJSON_IsBool(weights))
        FAIL(VKMOE_ERR_FORMAT, "%s: 'weights' is neither true nor false", r->where);
    t->name = cor_strdup(model->valuestring);
    if (!t->name)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a name", r->where);
    t->info.model = t->name;
    t->info.n_layers = (uint32_t)layers;
    t->info.n_experts = (uint32_t)experts;
    t->info.n_used = (uint32_t)used;
    t->info.weights = cJSON_IsTrue(weights);
done:
    return st;
}

/* The list of a layer in `lists`, an array of 1 .. k numbers; NULL after an error. */
static const cJSON *layer_list(struct reader *r, const cJSON *lists, const char *key, uint32_t layer,
                               uint32_t *n)
{
    int len;

    if (!cJSON_IsArray(lists)) {
        cor_fail(r->err, VKMOE_ERR_FORMAT, "%s: '%s', layer %" PRIu32 ": not an array", r->where, key, layer);
        return NULL;
    }
    len = cJSON_GetArraySize(lists);
    if (len < 1 || (uint32_t)len > r->t->info.n_used) {
        cor_fail(r->err, VKMOE_ERR_FORMAT, "%s: '%s', layer %" PRIu32 ": %d entries, not 1 to %" PRIu32,
                 r->where, key, layer, len, r->t->info.n_used);
        return NULL;
    }
    *n = (uint32_t)len;
    return lists->child;
}

static enum vkmoe_status read_experts(struct reader *r, const cJSON *list, uint32_t layer, uint32_t *sel,
                                      uint32_t *n)
{
    const struct xp_trace_info *info = &r->t->info;
    const cJSON *v = layer_list(r, list, "experts", layer, n);
    uint64_t id;

    if (!v)
        return r->err->status;
    for (uint32_t j = 0; v; v = v->next, j++) {
        if (!mdl_json_u64(v, info->n_experts - 1, &id))
            return cor_fail(r->err, VKMOE_ERR_FORMAT,
                            "%s: 'experts', layer %" PRIu32 ": entry %" PRIu32
                            " is not an expert of %" PRIu32,
                            r->where, layer, j, info->n_experts);
        for (uint32_t i = 0; i < j; i++)
            if (sel[2 * i] == id)
                return cor_fail(r->err, VKMOE_ERR_FORMAT,
                                "%s: 'experts', layer %" PRIu32 ": expert %" PRIu64 " is named twice",
                                r->where, layer, id);
        sel[2 * j] = (uint32_t)id;
    }
    return VKMOE_OK;
}

static enum vkmoe_status read_weights(struct reader *r, const cJSON *list, uint32_t layer, uint32_t *sel,
                                      uint32_t n_experts)
{
    uint32_t n;
    const cJSON *v = layer_list(r, list, "weights", layer, &n);

    if (!v)
        return r->err->status;
    if (n != n_experts)
        return cor_fail(r->err, VKMOE_ERR_FORMAT,
                        "%s: layer %" PRIu32 ": %" PRIu32 " weights of %" PRIu32 " experts", r->where, layer,
                        n, n_experts);
    for (uint32_t j = 0; v; v = v->next, j++) {
        if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble <= 1e30))
            return cor_fail(r->err, VKMOE_ERR_FORMAT,
                            "%s: 'weights', layer %" PRIu32 ": entry %" PRIu32 " is not a weight", r->where,
                            layer, j);
        sel[2 * j + 1] = cor_float_bits((float)v->valuedouble);
    }
    return VKMOE_OK;
}

static enum vkmoe_status grow(struct reader *r)
{
    struct xp_trace *t = r->t;
    size_t cap = r->cap ? 2 * r->cap : 256;
    void *pos = cor_resize(t->pos, cap, sizeof(*t->pos)), *sel;

    if (pos)
        t->pos = pos;
    sel = pos && cap <= SIZE_MAX / (token_words(t) * sizeof(*t->sel))
              ? cor_resize(t->sel, cap, token_words(t) * sizeof(*t->sel))
              : NULL;
    if (!sel)
        return cor_fail(r->err, VKMOE_ERR_MEMORY, "%s: no memory for %zu tokens", r->where, cap);
    t->sel = sel;
    r->cap = cap;
    return VKMOE_OK;
}

static enum vkmoe_status read_token(struct reader *r, const cJSON *o)
{
    const cJSON *experts = mdl_json_get(o, "experts"), *weights = mdl_json_get(o, "weights"), *e, *w = NULL;
    struct xp_trace *t = r->t;
    struct vkmoe_err *err = r->err;
    uint32_t *sel;
    uint64_t pos;
    enum vkmoe_status st = VKMOE_OK;

    if (t->n_tokens == r->cap)
        TRY(grow(r));
    TRY(get_count(r, o, "pos", 0, INT32_MAX, &pos));
    if (pos && t->n_tokens && pos != (uint64_t)t->pos[t->n_tokens - 1] + 1)
        FAIL(VKMOE_ERR_FORMAT, "%s: position %" PRIu64 " follows on %" PRIu32, r->where, pos,
             t->pos[t->n_tokens - 1]);
    if (!cJSON_IsArray(experts) || cJSON_GetArraySize(experts) != (int)t->info.n_layers)
        FAIL(VKMOE_ERR_FORMAT, "%s: 'experts' is not an array of %" PRIu32 " layers", r->where,
             t->info.n_layers);
    if (t->info.weights && (!cJSON_IsArray(weights) || cJSON_GetArraySize(weights) != (int)t->info.n_layers))
        FAIL(VKMOE_ERR_FORMAT, "%s: 'weights' is not an array of %" PRIu32 " layers", r->where,
             t->info.n_layers);
    sel = t->sel + t->n_tokens * token_words(t);
    e = experts->child;
    if (t->info.weights)
        w = weights->child;
    for (uint32_t l = 0; l < t->info.n_layers; l++, e = e->next, sel += 2 * (size_t)t->info.n_used) {
        uint32_t n;

        for (uint32_t j = 0; j < t->info.n_used; j++) {
            sel[2 * j] = NONE;
            sel[2 * j + 1] = 0;
        }
        TRY(read_experts(r, e, l, sel, &n));
        if (w) {
            TRY(read_weights(r, w, l, sel, n));
            w = w->next;
        }
    }
    t->pos[t->n_tokens++] = (uint32_t)pos;
done:
    return st;
}

/* ---- the file
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status read_lines(struct reader *r, char *text, size_t n)
{
    struct vkmoe_err *err = r->err;
    cJSON *o = NULL;
    char *end = text + n;
    size_t line = 0;
    enum vkmoe_status st = VKMOE_OK;

    for (char *p = text, *next; p < end; p = next) {
        char *stop = memchr(p, '\n', (size_t)(end - p));

        snprintf(r->where, r->cap_where, "%s, line %zu", r->path, ++line);
        if (!stop)
            FAIL(VKMOE_ERR_FORMAT, "%s: ends inside a line", r->where);
        next = stop + 1;
        *stop = '\0';
        TRY(mdl_json_parse(&o, p, (size_t)(stop - p), r->where, err));
        TRY(line == 1 ? read_header(r, o) : read_token(r, o));
        cJSON_Delete(o);
        o = NULL;
    }
    if (!line)
        FAIL(VKMOE_ERR_FORMAT, "%s: empty, not a route trace", r->path);
done:
    cJSON_Delete(o);
    return st;
}

static enum vkmoe_status find_streams(struct xp_trace *t, const char *path, struct vkmoe_err *err)
{
    size_t n = 0;

    for (size_t i = 0; i < t->n_tokens; i++)
        n += i == 0 || t->pos[i] == 0;
    t->first = cor_array(n + 1, sizeof(*t->first));
    if (!t->first)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %zu streams", path, n);
    for (size_t i = 0; i < t->n_tokens; i++)
        if (i == 0 || t->pos[i] == 0)
            t->first[t->n_streams++] = i;
    t->first[n] = t->n_tokens;
    return VKMOE_OK;
}

enum vkmoe_status xp_trace_read(struct xp_trace *t, const char *path, struct vkmoe_err *err)
{
    struct vkmoe_err own;
    struct reader r = {.t = t, .path = path, .cap_where = strlen(path) + 40, .err = err ? err : &own};
    char *text = NULL;
    size_t n;
    enum vkmoe_status st = VKMOE_OK;

    memset(t, 0, sizeof(*t));
    r.where = cor_alloc(r.cap_where);
    if (!r.where)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory", path);
    TRY(cor_file_slurp(path, FILE_BYTES, &text, &n, r.err));
    TRY(read_lines(&r, text, n));
    TRY(find_streams(t, path, r.err));
done:
    cor_free(r.where);
    cor_free(text);
    if (st != VKMOE_OK)
        xp_trace_free(t);
    return st;
}
