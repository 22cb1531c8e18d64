/* Statistics files: JSON, written so that equal sums give equal bytes, and read with every value checked. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/digest.h"
#include "core/os.h"
#include "experts/stats_impl.h"
#include "experts/subset.h"
#include "model/json.h"

#define FORMAT   "vkmoe.expert-statistics"
#define VERSION  1
#define FILE_MAX (64u << 20)
#define SLACK    1e-3 /* by which a token's probabilities may miss 1, as floats sum */

const char *xp_family_name(enum xp_family f)
{
    return f == XP_EASY_EP ? "easy-ep" : "router";
}

/* ---- writing
 * ------------------------------------------------------------------------------------------------ */

struct text { /* lines for cor_out_write */
    struct cor_out *out;
    char *line; /* of a layer */
    size_t n, cap;
};

static void put(struct text *t, const char *s)
{
    size_t n = strlen(s);

    memcpy(t->line + t->n, s, n); /* cap was computed for the longest line */
    t->n += n;
}

static enum vkmoe_status flush(struct text *t, struct vkmoe_err *err)
{
    size_t n = t->n;

    t->n = 0;
    return cor_out_write(t->out, t->line, n, err);
}

/* "key": [[...], ...] with a line per layer: sums as digits, or counts where sums is NULL. */
static enum vkmoe_status put_matrix(struct text *t, const struct xp_stats *s, const char *key,
                                    const struct xp_sum *sums, const uint64_t *counts, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char item[64], hex[XP_SUM_HEX];

    put(t, ",\n\"");
    put(t, key);
    put(t, "\": [");
    for (uint32_t l = 0; l < s->n_layers; l++) {
        put(t, l ? ",\n[" : "\n[");
        for (uint32_t e = 0; e < s->n_there[l]; e++) {
            size_t i = (size_t)l * s->n_routed + e;

            if (sums)
                snprintf(item, sizeof(item), "%s\"%s\"", e ? ", " : "", xp_sum_hex(hex, &sums[i]));
            else
                snprintf(item, sizeof(item), "%s%" PRIu64, e ? ", " : "", counts[i]);
            put(t, item);
        }
        put(t, "]");
        TRY(flush(t, err));
    }
    put(t, "]");
done:
    return st;
}

static enum vkmoe_status put_string(struct text *t, const char *key, const char *s, struct vkmoe_err *err)
{
    cJSON *v = cJSON_CreateString(s);
    char *quoted = v ? cJSON_PrintUnformatted(v) : NULL;

    if (quoted) {
        put(t, "\"");
        put(t, key);
        put(t, "\": ");
        put(t, quoted);
        put(t, ",\n");
    }
    cJSON_Delete(v);
    if (!quoted)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for statistics");
    cJSON_free(quoted);
    return VKMOE_OK;
}

static enum vkmoe_status put_head(struct text *t, const struct xp_stats *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char line[512], hex[COR_SHA256_HEX];

    put(t, "{\n");
    TRY(put_string(t, "format", FORMAT, err));
    snprintf(line, sizeof(line), "\"version\": %d,\n", VERSION);
    put(t, line);
    TRY(put_string(t, "model", s->model, err));
    TRY(put_string(t, "type", s->type, err));
    snprintf(line, sizeof(line),
             "\"n_layers\": %" PRIu32 ",\n\"n_routed\": %" PRIu32 ",\n\"n_shared\": %" PRIu32
             ",\n\"n_used\": %" PRIu32 ",\n",
             s->n_layers, s->n_routed, s->n_shared, s->n_used);
    put(t, line);
    TRY(put_string(t, "method", xp_family_name(s->family), err));
    snprintf(line, sizeof(line),
             "\"documents\": %" PRIu64 ",\n\"truncated\": %" PRIu64 ",\n\"tokens\": %" PRIu64
             ",\n\"digest\": \"%s\"",
             s->documents, s->truncated, s->tokens, xp_stats_digest(hex, s));
    put(t, line);
    TRY(flush(t, err));
done:
    return st;
}

enum vkmoe_status xp_stats_write(const struct xp_stats *s, const char *path, struct vkmoe_err *err)
{
    struct text t = {.cap = (size_t)s->n_routed * 40 + 4096};
    enum vkmoe_status st = VKMOE_OK;

    t.line = cor_alloc(t.cap);
    if (!t.line)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for statistics", path);
    TRY(cor_out_create(&t.out, path, err));
    TRY(put_head(&t, s, err));
    TRY(put_matrix(&t, s, "probability", s->probability, NULL, err));
    TRY(put_matrix(&t, s, "chosen", NULL, s->chosen, err));
    if (s->importance)
        TRY(put_matrix(&t, s, "importance", s->importance, NULL, err));
    put(&t, "\n}\n");
    TRY(flush(&t, err));
    st = cor_out_commit(t.out, err);
    t.out = NULL;
done:
    cor_out_discard(t.out);
    cor_free(t.line);
    return st;
}

/* ---- reading
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status get_u64(const cJSON *o, const char *key, uint64_t max, uint64_t *v, const char *path,
                                 struct vkmoe_err *err)
{
    if (!mdl_json_u64(mdl_json_get(o, key), max, v))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: `%s` is not a whole number up to %" PRIu64, path, key,
                        max);
    return VKMOE_OK;
}

static enum vkmoe_status get_u32(const cJSON *o, const char *key, uint32_t max, uint32_t *v, const char *path,
                                 struct vkmoe_err *err)
{
    uint64_t wide = 0;
    enum vkmoe_status st = get_u64(o, key, max, &wide, path, err);

    *v = (uint32_t)wide;
    return st;
}

static enum vkmoe_status get_string(const cJSON *o, const char *key, const char **s, const char *path,
                                    struct vkmoe_err *err)
{
    const cJSON *v = mdl_json_get(o, key);

    *s = "";
    if (!cJSON_IsString(v))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: `%s` is not a string", path, key);
    *s = v->valuestring;
    return VKMOE_OK;
}

static void parse_digest(uint64_t words[4], const char *hex)
{
    for (int i = 0; i < 64; i++) {
        uint64_t digit = (uint64_t)(hex[i] <= '9' ? hex[i] - '0' : hex[i] - 'a' + 10);

        words[3 - i / 16] = words[3 - i / 16] << 4 | digit;
    }
}

static enum vkmoe_status read_head(struct xp_stats *s, const cJSON *o, const char *path,
                                   struct vkmoe_err *err)
{
    const char *format, *model, *type, *method, *digest;
    enum vkmoe_status st = VKMOE_OK;
    uint64_t version;

    TRY(get_string(o, "format", &format, path, err));
    if (strcmp(format, FORMAT))
        FAIL(VKMOE_ERR_FORMAT, "%s: not expert statistics: `format` is not \"%s\"", path, FORMAT);
    TRY(get_u64(o, "version", 1000, &version, path, err));
    if (version != VERSION)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: expert statistics of another version than %d", path, VERSION);
    TRY(get_string(o, "model", &model, path, err));
    TRY(get_string(o, "type", &type, path, err));
    TRY(get_string(o, "method", &method, path, err));
    TRY(get_string(o, "digest", &digest, path, err));
    mdl_show(s->model, model, strlen(model));
    if (strlen(type) >= sizeof(s->type))
        FAIL(VKMOE_ERR_FORMAT, "%s: `type` is not the name of a block format", path);
    memcpy(s->type, type, strlen(type) + 1);
    if (strcmp(method, "router") && strcmp(method, "easy-ep"))
        FAIL(VKMOE_ERR_FORMAT, "%s: `method` is neither router nor easy-ep", path);
    s->family = strcmp(method, "router") ? XP_EASY_EP : XP_ROUTER;
    if (!cor_sha256_is_hex(digest))
        FAIL(VKMOE_ERR_FORMAT, "%s: `digest` is not 64 hexadecimal digits", path);
    parse_digest(s->digest, digest);
    TRY(get_u32(o, "n_layers", XP_SUBSET_LAYERS, &s->n_layers, path, err));
    TRY(get_u32(o, "n_routed", XP_SUBSET_EXPERTS, &s->n_routed, path, err));
    TRY(get_u32(o, "n_shared", XP_SUBSET_EXPERTS, &s->n_shared, path, err));
    TRY(get_u32(o, "n_used", s->n_routed, &s->n_used, path, err));
    TRY(get_u64(o, "documents", XP_COUNT_MAX, &s->documents, path, err));
    TRY(get_u64(o, "truncated", s->documents, &s->truncated, path, err));
    TRY(get_u64(o, "tokens", XP_COUNT_MAX, &s->tokens, path, err));
    if (!s->n_layers || !s->n_routed || !s->n_used)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: %" PRIu32 " layers of %" PRIu32 " experts, %" PRIu32 " of them used, cannot be", path,
             s->n_layers, s->n_routed, s->n_used);
done:
    return st;
}

/* Row `layer` of a matrix; sets or compares how many experts the layer has. sums or counts: where it goes. */
static enum vkmoe_status read_row(struct xp_stats *s, const cJSON *list, const char *key, uint32_t layer,
                                  struct xp_sum *sums, uint64_t *counts, const char *path,
                                  struct vkmoe_err *err)
{
    int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    uint32_t e = 0;

    if (n < 1 || (uint32_t)n > s->n_routed || (s->n_there[layer] && s->n_there[layer] != (uint32_t)n))
        return cor_fail(err, VKMOE_ERR_FORMAT,
                        "%s: `%s` has no list of a number for each expert of layer %" PRIu32, path, key,
                        layer);
    s->n_there[layer] = (uint32_t)n;
    for (const cJSON *v = list->child; v; v = v->next, e++) {
        size_t i = (size_t)layer * s->n_routed + e;
        bool good = sums ? cJSON_IsString(v) && xp_sum_parse(&sums[i], v->valuestring)
                         : mdl_json_u64(v, s->tokens, &counts[i]);

        if (!good)
            return cor_fail(err, VKMOE_ERR_FORMAT,
                            "%s: `%s`: layer %" PRIu32 ", expert %" PRIu32 " is not %s", path, key, layer, e,
                            sums ? "32 hexadecimal digits" : "a number up to `tokens`");
    }
    return VKMOE_OK;
}

static enum vkmoe_status read_matrix(struct xp_stats *s, const cJSON *o, const char *key, struct xp_sum *sums,
                                     uint64_t *counts, const char *path, struct vkmoe_err *err)
{
    const cJSON *lists = mdl_json_get(o, key), *list;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t layer = 0;

    if (!cJSON_IsArray(lists) || cJSON_GetArraySize(lists) != (int)s->n_layers)
        FAIL(VKMOE_ERR_FORMAT, "%s: `%s` is not a list for each of %" PRIu32 " layers", path, key,
             s->n_layers);
    for (list = lists->child; list; list = list->next, layer++)
        TRY(read_row(s, list, key, layer, sums, counts, path, err));
done:
    return st;
}

/* What every run gives, whatever it read: each token uses n_used experts, and its probabilities sum to 1. */
static enum vkmoe_status check_sums(const struct xp_stats *s, const char *path, struct vkmoe_err *err)
{
    for (uint32_t l = 0; l < s->n_layers; l++) {
        uint64_t chosen = 0, want = s->tokens * (s->n_used < s->n_there[l] ? s->n_used : s->n_there[l]);
        double p = 0, tokens = (double)s->tokens;

        for (uint32_t e = 0; e < s->n_there[l]; e++) {
            chosen += s->chosen[(size_t)l * s->n_routed + e];
            p += xp_sum_value(&s->probability[(size_t)l * s->n_routed + e]);
        }
        if (chosen != want || !(fabs(p - tokens) <= SLACK * tokens))
            return cor_fail(err, VKMOE_ERR_FORMAT,
                            "%s: layer %" PRIu32 ": %" PRIu64
                            " choices and a probability of %.9g do not fit %" PRIu64 " tokens",
                            path, l, chosen, p, s->tokens);
    }
    return VKMOE_OK;
}

enum vkmoe_status xp_stats_read(struct xp_stats *s, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    cJSON *o = NULL;

    *s = (struct xp_stats){0};
    TRY(mdl_json_load(&o, path, FILE_MAX, err));
    TRY(read_head(s, o, path, err));
    TRY(xp_stats_make(s, err));
    TRY(read_matrix(s, o, "probability", s->probability, NULL, path, err));
    TRY(read_matrix(s, o, "chosen", NULL, s->chosen, path, err));
    if (s->importance)
        TRY(read_matrix(s, o, "importance", s->importance, NULL, path, err));
    TRY(check_sums(s, path, err));
    for (uint32_t l = 0; l < s->n_layers; l++)
        s->seen[l] = s->tokens;
done:
    cJSON_Delete(o);
    if (st != VKMOE_OK)
        xp_stats_free(s);
    return st;
}
