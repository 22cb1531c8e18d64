#include "experts/subset.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/digest.h"
#include "core/os.h"
#include "model/json.h"

#define FORMAT     "vkmoe.subset"
#define VERSION    1
#define NAME_BYTES 88 /* of names that are compared: longer ones are cut when shown */
#define FILE_MAX   (16u << 20)

/* ---- the set itself
 * --------------------------------------------------------------------------------------------- */

static uint32_t words(const struct xp_subset *s)
{
    return (s->n_routed + 31) / 32;
}

enum vkmoe_status xp_subset_init(struct xp_subset *s, const char *model, uint32_t n_layers, uint32_t n_routed,
                                 uint32_t n_shared, const char *method, struct vkmoe_err *err)
{
    *s = (struct xp_subset){.n_layers = n_layers, .n_routed = n_routed, .n_shared = n_shared};
    s->model = cor_strdup(model);
    s->method = cor_strdup(method);
    s->calibration = cor_strdup("");
    s->allowed = cor_array((size_t)n_layers * words(s), sizeof(*s->allowed));
    if (s->model && s->method && s->calibration && s->allowed)
        return VKMOE_OK;
    xp_subset_free(s);
    return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a subset of %" PRIu32 " x %" PRIu32 " experts",
                    n_layers, n_routed);
}

void xp_subset_free(struct xp_subset *s)
{
    cor_free(s->model);
    cor_free(s->method);
    cor_free(s->calibration);
    cor_free(s->allowed);
    *s = (struct xp_subset){0};
}

void xp_subset_set(struct xp_subset *s, uint32_t layer, uint32_t expert)
{
    s->allowed[(size_t)layer * words(s) + expert / 32] |= UINT32_C(1) << expert % 32;
}

bool xp_subset_has(const struct xp_subset *s, uint32_t layer, uint32_t expert)
{
    return layer < s->n_layers && expert < s->n_routed &&
           (s->allowed[(size_t)layer * words(s) + expert / 32] >> expert % 32 & 1);
}

uint32_t xp_subset_count(const struct xp_subset *s, uint32_t layer)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < s->n_routed; e++)
        n += xp_subset_has(s, layer, e);
    return n;
}

uint32_t xp_subset_equal_count(const struct xp_subset *s)
{
    uint32_t first = 0, n = 0;

    for (; first < s->n_layers && !n; first++) /* leading ones without any are dense */
        n = xp_subset_count(s, first);
    for (uint32_t l = first; l < s->n_layers; l++)
        if (xp_subset_count(s, l) != n)
            return 0;
    return n;
}

void xp_model_name(char dst[MDL_SHOW_BYTES], const struct mdl_gguf *g)
{
    struct mdl_str name;

    dst[0] = '\0';
    if (mdl_gguf_str(g, "general.name", &name, NULL) == VKMOE_OK)
        mdl_show(dst, name.p, name.n);
}

enum vkmoe_status xp_subset_check(const struct xp_subset *s, const struct mdl_model *m, const char *name,
                                  struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->config;
    char own[MDL_SHOW_BYTES];

    xp_model_name(own, m->gguf);
    if (s->n_layers != c->n_layers || s->n_routed != c->n_experts)
        return cor_fail(err, VKMOE_ERR_ARGUMENT,
                        "%s: a subset of another model: %" PRIu32 " layers of %" PRIu32
                        " routed experts, this one has %" PRIu32 " of %" PRIu32,
                        name, s->n_layers, s->n_routed, c->n_layers, c->n_experts);
    if (s->n_shared != c->n_shared && s->n_shared != XP_SHARED_UNKNOWN)
        return cor_fail(err, VKMOE_ERR_ARGUMENT,
                        "%s: a subset of another model: %" PRIu32 " shared experts, this one has %" PRIu32,
                        name, s->n_shared, c->n_shared);
    if (s->model[0] && own[0] && strncmp(s->model, own, NAME_BYTES))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: a subset of another model: of '%s', this one is '%s'",
                        name, s->model, own);
    for (uint32_t l = 0; l < s->n_layers; l++) {
        uint32_t n = xp_subset_count(s, l), there = mdl_expert_count(m, l);

        for (uint32_t e = there; e < s->n_routed; e++)
            if (xp_subset_has(s, l, e))
                return cor_fail(err, VKMOE_ERR_ARGUMENT,
                                "%s: layer %" PRIu32 " has no expert %" PRIu32 ", only %" PRIu32, name, l, e,
                                there);
        if (n < c->n_experts_used && n < there)
            return cor_fail(err, VKMOE_ERR_ARGUMENT,
                            "%s: layer %" PRIu32 " keeps %" PRIu32 " routed experts, a token uses %" PRIu32,
                            name, l, n, c->n_experts_used);
    }
    return VKMOE_OK;
}

/* ---- writing
 * ------------------------------------------------------------------------------------------------ */

/* Ascending routed ids, then the shared ones, which stand behind all routed ones; none in a dense layer. */
static cJSON *layer_ids(const struct xp_subset *s, uint32_t layer)
{
    int ids[2 * XP_SUBSET_EXPERTS], n = 0;

    for (uint32_t e = 0; e < s->n_routed; e++)
        if (xp_subset_has(s, layer, e))
            ids[n++] = (int)e;
    for (uint32_t e = 0; n && e < s->n_shared; e++)
        ids[n++] = (int)(s->n_routed + e);
    return cJSON_CreateIntArray(ids, n);
}

static bool add_head(cJSON *o, const struct xp_subset *s)
{
    uint32_t equal = xp_subset_equal_count(s);

    return cJSON_AddStringToObject(o, "format", FORMAT) && cJSON_AddNumberToObject(o, "version", VERSION) &&
           cJSON_AddStringToObject(o, "model", s->model) &&
           cJSON_AddNumberToObject(o, "n_layers", s->n_layers) &&
           cJSON_AddNumberToObject(o, "n_routed", s->n_routed) &&
           cJSON_AddNumberToObject(o, "n_shared", s->n_shared) &&
           (equal ? cJSON_AddNumberToObject(o, "keep", equal + s->n_shared)
                  : cJSON_AddNullToObject(o, "keep")) &&
           cJSON_AddStringToObject(o, "method", s->method) &&
           (!s->calibration[0] || cJSON_AddStringToObject(o, "calibration", s->calibration));
}

static enum vkmoe_status to_json(const struct xp_subset *s, cJSON **out, struct vkmoe_err *err)
{
    cJSON *o = cJSON_CreateObject(), *layers = NULL;

    if (o && add_head(o, s))
        layers = cJSON_AddArrayToObject(o, "experts_kept_per_layer");
    for (uint32_t l = 0; layers && l < s->n_layers; l++) {
        cJSON *ids = layer_ids(s, l);

        if (!ids || !cJSON_AddItemToArray(layers, ids)) {
            cJSON_Delete(ids);
            layers = NULL;
        }
    }
    *out = o;
    return layers ? VKMOE_OK : cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a subset as JSON");
}

enum vkmoe_status xp_subset_write(const struct xp_subset *s, const char *path, struct vkmoe_err *err)
{
    cJSON *o = NULL;
    enum vkmoe_status st = VKMOE_OK;

    assert(s->n_shared <= XP_SUBSET_EXPERTS && s->n_routed <= XP_SUBSET_EXPERTS);
    TRY(to_json(s, &o, err));
    TRY(mdl_json_save(o, true, path, err));
done:
    cJSON_Delete(o);
    return st;
}

/* ---- reading JSON
 * ------------------------------------------------------------------------------------------- */

struct head {
    const char *path;
    char model[MDL_SHOW_BYTES], method[MDL_SHOW_BYTES];
    const char *calibration; /* in the parsed file */
    uint64_t n_layers, n_routed, n_shared;
    const cJSON *keep; /* a number: of every layer, the shared included; NULL: layers differ */
    const cJSON *layers;
};

/* A string for a name of at most MDL_SHOW_BYTES; absent: "". */
static enum vkmoe_status get_name(const cJSON *o, const char *key, char dst[MDL_SHOW_BYTES], const char *path,
                                  struct vkmoe_err *err)
{
    const cJSON *v = mdl_json_get(o, key);

    dst[0] = '\0';
    if (v && !cJSON_IsString(v))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: `%s` is not a string", path, key);
    if (v)
        mdl_show(dst, v->valuestring, strlen(v->valuestring));
    return VKMOE_OK;
}

static enum vkmoe_status get_calibration(struct head *h, const cJSON *o, const char *key,
                                         struct vkmoe_err *err)
{
    const cJSON *v = mdl_json_get(o, key);

    h->calibration = "";
    if (!v)
        return VKMOE_OK;
    if (!cJSON_IsString(v) || !cor_sha256_is_hex(v->valuestring))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: `%s` is not 64 hexadecimal digits", h->path, key);
    h->calibration = v->valuestring;
    return VKMOE_OK;
}

static enum vkmoe_status subset_head(struct head *h, const cJSON *o, struct vkmoe_err *err)
{
    const cJSON *format = mdl_json_get(o, "format");
    uint64_t version;
    enum vkmoe_status st = VKMOE_OK;

    if (!cJSON_IsString(format) || strcmp(format->valuestring, FORMAT))
        FAIL(VKMOE_ERR_FORMAT, "%s: not a subset: `format` is not \"%s\"", h->path, FORMAT);
    if (!mdl_json_u64(mdl_json_get(o, "version"), 1000, &version) || version != VERSION)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: a subset of another version than %d", h->path, VERSION);
    if (!mdl_json_u64(mdl_json_get(o, "n_layers"), XP_SUBSET_LAYERS, &h->n_layers) || !h->n_layers)
        FAIL(VKMOE_ERR_FORMAT, "%s: `n_layers` is not a number from 1 to %u", h->path, XP_SUBSET_LAYERS);
    if (!mdl_json_u64(mdl_json_get(o, "n_routed"), XP_SUBSET_EXPERTS, &h->n_routed) || !h->n_routed)
        FAIL(VKMOE_ERR_FORMAT, "%s: `n_routed` is not a number from 1 to %u", h->path, XP_SUBSET_EXPERTS);
    if (!mdl_json_u64(mdl_json_get(o, "n_shared"), XP_SUBSET_EXPERTS, &h->n_shared))
        FAIL(VKMOE_ERR_FORMAT, "%s: `n_shared` is not a number up to %u", h->path, XP_SUBSET_EXPERTS);
    h->keep = mdl_json_get(o, "keep");
    if (h->keep && !cJSON_IsNumber(h->keep))
        FAIL(VKMOE_ERR_FORMAT, "%s: `keep` is neither a number nor null", h->path);
    TRY(get_name(o, "model", h->model, h->path, err));
    TRY(get_name(o, "method", h->method, h->path, err));
    TRY(get_calibration(h, o, "calibration", err));
done:
    return st;
}

/* The original's name without the owner or folders in front of it, as converted files have it. */
static void base_name(char dst[MDL_SHOW_BYTES])
{
    const char *base = dst;

    for (const char *p = dst; *p; p++)
        if ((*p == '/' || *p == '\\') && p[1])
            base = p + 1;
    memmove(dst, base, strlen(base) + 1);
}

/* pruning_metadata.json of a pruned checkpoint. The shared experts are the last of the original, so their ids
 * tell how many routed ones it had. */
static enum vkmoe_status metadata_head(struct head *h, const cJSON *o, struct vkmoe_err *err)
{
    const cJSON *keep = mdl_json_get(o, "prune_keep_k"), *first;
    enum vkmoe_status st = VKMOE_OK;
    uint64_t last;
    int n;

    TRY(get_calibration(h, o, "calibration_sha256", err)); /* a key of ours */
    if (!mdl_json_u64(mdl_json_get(o, "num_shared_experts"), XP_SUBSET_EXPERTS, &h->n_shared))
        FAIL(VKMOE_ERR_FORMAT, "%s: `num_shared_experts` is not a number up to %u", h->path,
             XP_SUBSET_EXPERTS);
    if (!h->n_shared)
        FAIL(VKMOE_ERR_UNSUPPORTED,
             "%s: without a shared expert it does not tell how many experts the original had", h->path);
    n = cJSON_GetArraySize(h->layers);
    first = h->layers->child;
    while (first && cJSON_IsArray(first) && !first->child && first->next) /* dense layers */
        first = first->next;
    if (n < 1 || n > (int)XP_SUBSET_LAYERS)
        FAIL(VKMOE_ERR_FORMAT, "%s: `experts_kept_per_layer` has %d lists, not 1 to %u", h->path, n,
             XP_SUBSET_LAYERS);
    h->n_layers = (uint64_t)n;
    n = cJSON_IsArray(first) ? cJSON_GetArraySize(first) : 0;
    if (n < 1 || !mdl_json_u64(cJSON_GetArrayItem(first, n - 1), 2 * XP_SUBSET_EXPERTS - 1, &last) ||
        last < h->n_shared || last - h->n_shared >= XP_SUBSET_EXPERTS)
        FAIL(VKMOE_ERR_FORMAT, "%s: layer 0 does not end with the id of a shared expert", h->path);
    h->n_routed = last + 1 - h->n_shared;
    h->keep = cJSON_IsNumber(keep) ? keep : NULL;
    TRY(get_name(o, "original_model", h->model, h->path, err));
    TRY(get_name(o, "pruning_method", h->method, h->path, err));
    base_name(h->model);
done:
    return st;
}

/* Does no layer before it have an expert? */
static bool is_leading(const struct xp_subset *s, uint32_t layer)
{
    for (uint32_t l = 0; l < layer; l++)
        if (xp_subset_count(s, l))
            return false;
    return layer + 1 < s->n_layers;
}

static enum vkmoe_status read_layer(struct xp_subset *s, const struct head *h, uint32_t layer,
                                    const cJSON *list, struct vkmoe_err *err)
{
    uint32_t total = s->n_routed + s->n_shared, n = 0, n_shared = 0;
    enum vkmoe_status st = VKMOE_OK;
    uint64_t keep, id;

    if (!cJSON_IsArray(list))
        FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 " of `experts_kept_per_layer` is not a list", h->path,
             layer);
    if (!list->child && is_leading(s, layer)) /* a dense one, which xp_subset_check looks at */
        return VKMOE_OK;
    for (const cJSON *item = list->child; item; item = item->next, n++) {
        if (!mdl_json_u64(item, total - 1, &id))
            FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 ": entry %" PRIu32 " is not an id below %" PRIu32,
                 h->path, layer, n, total);
        if (id >= s->n_routed) { /* shared ones: last, each once, ascending */
            if (id != s->n_routed + n_shared)
                FAIL(VKMOE_ERR_FORMAT,
                     "%s: layer %" PRIu32 ": shared experts do not end it once each, entry %" PRIu32
                     " is %" PRIu64,
                     h->path, layer, n, id);
            n_shared++;
            continue;
        }
        if (n_shared)
            FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 ": expert %" PRIu64 " stands behind a shared one",
                 h->path, layer, id);
        if (xp_subset_has(s, layer, (uint32_t)id))
            FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 " keeps expert %" PRIu64 " twice", h->path, layer,
                 id);
        xp_subset_set(s, layer, (uint32_t)id);
    }
    if (n_shared != s->n_shared)
        FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 " has %" PRIu32 " of %" PRIu32 " shared experts", h->path,
             layer, n_shared, s->n_shared);
    if (n == n_shared)
        FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 " keeps no routed expert", h->path, layer);
    if (h->keep && (!mdl_json_u64(h->keep, UINT32_MAX, &keep) || keep != n))
        FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 " keeps %" PRIu32 " experts, not %.15g", h->path, layer,
             n, h->keep->valuedouble);
done:
    return st;
}

static enum vkmoe_status read_layers(struct xp_subset *s, const struct head *h, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const cJSON *list = h->layers->child;
    char *calibration;

    TRY(xp_subset_init(s, h->model, (uint32_t)h->n_layers, (uint32_t)h->n_routed, (uint32_t)h->n_shared,
                       h->method, err));
    calibration = cor_strdup(h->calibration);
    if (!calibration)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a subset", h->path);
    cor_free(s->calibration);
    s->calibration = calibration;
    for (uint32_t l = 0; l < s->n_layers; l++, list = list->next) {
        if (!list)
            FAIL(VKMOE_ERR_FORMAT,
                 "%s: `experts_kept_per_layer` has %" PRIu32 " lists for %" PRIu32 " layers", h->path, l,
                 s->n_layers);
        TRY(read_layer(s, h, l, list, err));
    }
    if (list)
        FAIL(VKMOE_ERR_FORMAT, "%s: `experts_kept_per_layer` has more lists than %" PRIu32 " layers", h->path,
             s->n_layers);
done:
    return st;
}

static enum vkmoe_status read_json(struct xp_subset *s, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct head h = {.path = path};
    cJSON *o = NULL;

    TRY(mdl_json_load(&o, path, FILE_MAX, err));
    h.layers = mdl_json_get(o, "experts_kept_per_layer");
    if (h.layers && !cJSON_IsArray(h.layers))
        FAIL(VKMOE_ERR_FORMAT, "%s: `experts_kept_per_layer` is not a list", path);
    if (mdl_json_get(o, "format") || !h.layers)
        TRY(subset_head(&h, o, err));
    else
        TRY(metadata_head(&h, o, err));
    if (!h.layers)
        FAIL(VKMOE_ERR_FORMAT, "%s: `experts_kept_per_layer` is missing", path);
    TRY(read_layers(s, &h, err));
done:
    cJSON_Delete(o);
    return st;
}

/* ---- reading the original ids of a carved GGUF file
 * ------------------------------------------------------------------------- */

static uint32_t array_u32(const struct mdl_kv *kv, uint64_t i)
{
    const uint8_t *p = (const uint8_t *)kv->v.array + 4 * i;

    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* *kv: an array of u32; NULL: absent. */
static enum vkmoe_status find_u32s(const struct mdl_gguf *g, const char *key, const struct mdl_kv **kv,
                                   struct vkmoe_err *err)
{
    *kv = mdl_gguf_find(g, key);
    if (*kv && ((*kv)->type != MDL_GGUF_ARRAY || (*kv)->elem_type != MDL_GGUF_U32))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is not a list of 32-bit numbers",
                        cor_file_path(g->file), key);
    return VKMOE_OK;
}

struct carved {
    const char *path;
    const struct mdl_kv *ids, *counts; /* counts NULL: n_experts in each layer */
    uint32_t n_layers, n_dense, n_experts, n_shared, n_source;
};

static const char *arch_key(char dst[96], const char *arch, const char *key)
{
    snprintf(dst, 96, "%s.%s", arch, key);
    return dst;
}

static enum vkmoe_status carved_head(struct carved *c, const struct mdl_gguf *g, struct vkmoe_err *err)
{
    char arch[32] = "deepseek", key[96];
    struct mdl_str name;
    uint32_t ff = 0;
    enum vkmoe_status st = VKMOE_OK;

    TRY(find_u32s(g, "vkmoe.expert_ids", &c->ids, err));
    TRY(find_u32s(g, "vkmoe.expert_count_per_layer", &c->counts, err));
    if (!c->ids)
        FAIL(VKMOE_ERR_FORMAT, "%s: not a carved model: key vkmoe.expert_ids is missing", c->path);
    if (mdl_gguf_str(g, "general.architecture", &name, NULL) == VKMOE_OK && name.n < sizeof(arch))
        snprintf(arch, sizeof(arch), "%.*s", (int)name.n, name.p);
    TRY(mdl_gguf_u32(g, arch_key(key, arch, "block_count"), &c->n_layers, err));
    TRY(mdl_gguf_u32(g, arch_key(key, arch, "expert_count"), &c->n_experts, err));
    if (!strcmp(arch, "deepseek"))
        TRY(mdl_gguf_u32(g, arch_key(key, arch, "expert_shared_count"), &c->n_shared, err));
    else if (mdl_gguf_find(g, arch_key(key, arch, "expert_shared_feed_forward_length")))
        TRY(mdl_gguf_u32(g, key, &ff, err));
    c->n_shared += ff > 0;
    if (mdl_gguf_find(g, arch_key(key, arch, "leading_dense_block_count")))
        TRY(mdl_gguf_u32(g, key, &c->n_dense, err));
    TRY(mdl_gguf_u32(g, "vkmoe.source.expert_count", &c->n_source, err));
    if (!c->n_layers || c->n_layers > XP_SUBSET_LAYERS || !c->n_source || c->n_source > XP_SUBSET_EXPERTS ||
        c->n_shared > XP_SUBSET_EXPERTS)
        FAIL(VKMOE_ERR_FORMAT, "%s: %" PRIu32 " layers of %" PRIu32 " + %" PRIu32 " experts cannot be",
             c->path, c->n_layers, c->n_source, c->n_shared);
    if (c->counts && c->counts->count != c->n_layers)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: vkmoe.expert_count_per_layer has %" PRIu64 " entries for %" PRIu32 " layers", c->path,
             c->counts->count, c->n_layers);
done:
    return st;
}

static enum vkmoe_status carved_layers(struct xp_subset *s, const struct carved *c, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t at = 0;

    for (uint32_t l = 0; l < c->n_layers; l++) {
        uint32_t n = c->counts ? array_u32(c->counts, l) : l < c->n_dense ? 0 : c->n_experts;

        if (!n != (l < c->n_dense) || n > c->n_source || n > c->ids->count - at)
            FAIL(VKMOE_ERR_FORMAT,
                 "%s: layer %" PRIu32 ": %" PRIu32 " experts of %" PRIu32
                 ", and vkmoe.expert_ids has %" PRIu64 " more",
                 c->path, l, n, c->n_source, c->ids->count - at);
        for (uint32_t i = 0; i < n; i++, at++) {
            uint32_t id = array_u32(c->ids, at);

            if (id >= c->n_source)
                FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 ": original id %" PRIu32 " is not below %" PRIu32,
                     c->path, l, id, c->n_source);
            if (xp_subset_has(s, l, id))
                FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu32 " keeps expert %" PRIu32 " twice", c->path, l,
                     id);
            xp_subset_set(s, l, id);
        }
    }
    if (at != c->ids->count)
        FAIL(VKMOE_ERR_FORMAT, "%s: vkmoe.expert_ids has %" PRIu64 " entries, its layers %" PRIu64, c->path,
             c->ids->count, at);
done:
    return st;
}

/* The name of the model that ids belong to: a pruned checkpoint's original, else the file's own, which
 * carving keeps. */
static void carved_name(char dst[MDL_SHOW_BYTES], const struct mdl_gguf *g)
{
    struct mdl_str name;

    xp_model_name(dst, g);
    if (mdl_gguf_str(g, "vkmoe.pruning.original_model", &name, NULL) == VKMOE_OK)
        mdl_show(dst, name.p, name.n);
}

static enum vkmoe_status read_carved(struct xp_subset *s, const char *path, struct vkmoe_err *err)
{
    char model[MDL_SHOW_BYTES], method[MDL_SHOW_BYTES] = "", calibration[MDL_SHOW_BYTES] = "";
    struct carved c = {.path = path};
    struct mdl_gguf *g = NULL;
    struct mdl_str text;
    enum vkmoe_status st = VKMOE_OK;

    TRY(mdl_gguf_open(&g, path, err));
    TRY(carved_head(&c, g, err));
    carved_name(model, g);
    if (mdl_gguf_str(g, "vkmoe.subset.method", &text, NULL) == VKMOE_OK ||
        mdl_gguf_str(g, "vkmoe.pruning.method", &text, NULL) == VKMOE_OK)
        mdl_show(method, text.p, text.n);
    if (mdl_gguf_str(g, "vkmoe.subset.calibration", &text, NULL) == VKMOE_OK)
        mdl_show(calibration, text.p, text.n);
    TRY(xp_subset_init(s, model, c.n_layers, c.n_source, c.n_shared, method, err));
    if (cor_sha256_is_hex(calibration)) {
        cor_free(s->calibration);
        s->calibration = cor_strdup(calibration);
        if (!s->calibration)
            FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a subset", path);
    }
    TRY(carved_layers(s, &c, err));
done:
    mdl_gguf_close(g);
    return st;
}

enum vkmoe_status xp_subset_read(struct xp_subset *s, const char *path, struct vkmoe_err *err)
{
    struct cor_file *f = NULL;
    char magic[4] = "";
    enum vkmoe_status st = VKMOE_OK;

    *s = (struct xp_subset){0};
    TRY(cor_file_open(&f, path, err));
    if (cor_file_size(f) >= sizeof(magic))
        TRY(cor_file_read(f, 0, magic, sizeof(magic), err));
    if (!memcmp(magic, "GGUF", sizeof(magic)))
        TRY(read_carved(s, path, err));
    else
        TRY(read_json(s, path, err));
done:
    cor_file_close(f);
    if (st != VKMOE_OK)
        xp_subset_free(s);
    return st;
}
