#include "experts/hot.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "model/json.h"

#define FORMAT   "vkmoe.hot"
#define VERSION  1
#define FILE_MAX (4u << 20)

/* Name of the model as its file tells it, "" when it does not. */
static struct mdl_str model_name(const struct run_model *m)
{
    struct mdl_str none = {"", 0}, name;

    return mdl_gguf_str(m->mdl->gguf, "general.name", &name, NULL) == VKMOE_OK ? name : none;
}

/* ---- writing
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status build(const struct run_model *m, const uint32_t *list, uint32_t n, cJSON **out,
                               struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;
    const struct mdl_str name = model_name(m);
    char text[256];
    cJSON *o = cJSON_CreateObject(), *experts;

    snprintf(text, sizeof(text), "%.*s", (int)(name.n < sizeof(text) ? name.n : sizeof(text) - 1), name.p);
    experts = o ? cJSON_AddArrayToObject(o, "experts") : NULL;
    if (!experts || !cJSON_AddStringToObject(o, "format", FORMAT) ||
        !cJSON_AddNumberToObject(o, "version", VERSION) || !cJSON_AddStringToObject(o, "model", text) ||
        !cJSON_AddNumberToObject(o, "n_layers", c->n_layers) ||
        !cJSON_AddNumberToObject(o, "n_experts", c->n_experts))
        goto none;
    for (uint32_t i = 0; i < n; i++) {
        const int pair[2] = {(int)(list[i] / c->n_experts), (int)(list[i] % c->n_experts)};
        cJSON *item = cJSON_CreateIntArray(pair, 2);

        if (!item || !cJSON_AddItemToArray(experts, item)) {
            cJSON_Delete(item);
            goto none;
        }
    }
    *out = o;
    return VKMOE_OK;
none:
    cJSON_Delete(o);
    return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a hot set of %u experts", n);
}

enum vkmoe_status xp_hot_save(const struct run_model *m, const char *path, struct vkmoe_err *err)
{
    uint32_t n_bank = m->mdl->config.n_layers * m->mdl->config.n_experts;
    uint32_t *list = cor_array(n_bank, sizeof(*list));
    cJSON *o = NULL;
    enum vkmoe_status st = VKMOE_OK;

    if (!list)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a hot set", path);
    TRY(build(m, list, run_slots_hot(m->pool.slots, list), &o, err));
    TRY(mdl_json_save(o, false, path, err));
done:
    cJSON_Delete(o);
    cor_free(list);
    return st;
}

/* ---- reading
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status check_head(const struct run_model *m, const cJSON *o, const char *path,
                                    struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;
    const cJSON *format = mdl_json_get(o, "format"), *name = mdl_json_get(o, "model");
    const struct mdl_str own = model_name(m);
    uint64_t version, layers, experts;

    if (!cJSON_IsString(format) || strcmp(format->valuestring, FORMAT))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: not a hot set: `format` is not \"%s\"", path, FORMAT);
    if (!mdl_json_u64(mdl_json_get(o, "version"), 1000, &version) || version != VERSION)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: a hot set of another version than %d", path,
                        VERSION);
    if (!mdl_json_u64(mdl_json_get(o, "n_layers"), UINT32_MAX, &layers) ||
        !mdl_json_u64(mdl_json_get(o, "n_experts"), UINT32_MAX, &experts) || layers != c->n_layers ||
        experts != c->n_experts)
        return cor_fail(err, VKMOE_ERR_FORMAT,
                        "%s: a hot set of another model: it does not have %u layers of %u experts", path,
                        c->n_layers, c->n_experts);
    if (!cJSON_IsString(name) || strncmp(name->valuestring, own.p, own.n < 255 ? own.n : 255))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: a hot set of another model, not of %.*s", path,
                        (int)(own.n < 80 ? own.n : 80), own.p);
    return VKMOE_OK;
}

static enum vkmoe_status read_list(const struct mdl_config *c, const cJSON *experts, uint32_t *list,
                                   uint32_t *n, const char *path, struct vkmoe_err *err)
{
    uint32_t bank = c->n_layers * c->n_experts;
    bool *seen = cor_array(bank, sizeof(*seen));
    const cJSON *item;
    enum vkmoe_status st = VKMOE_OK;

    if (!seen)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a hot set", path);
    *n = 0;
    cJSON_ArrayForEach(item, experts)
    {
        const cJSON *second = cJSON_GetArrayItem(item, 1);
        uint64_t layer, expert;
        uint32_t index;

        if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2 ||
            !mdl_json_u64(item->child, c->n_layers - 1, &layer) ||
            !mdl_json_u64(second, c->n_experts - 1, &expert))
            FAIL(VKMOE_ERR_FORMAT, "%s: entry %u of `experts` is not [layer, expert] of this model", path,
                 *n);
        index = (uint32_t)layer * c->n_experts + (uint32_t)expert;
        if (seen[index])
            FAIL(VKMOE_ERR_FORMAT, "%s: layer %" PRIu64 ", expert %" PRIu64 " stands in `experts` twice",
                 path, layer, expert);
        seen[index] = true;
        list[(*n)++] = index;
    }
done:
    cor_free(seen);
    return st;
}

enum vkmoe_status xp_hot_load(const struct run_model *m, const char *path, uint32_t **list, uint32_t *n,
                              struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;
    const cJSON *experts;
    cJSON *o = NULL;
    enum vkmoe_status st = VKMOE_OK;

    *list = NULL;
    *n = 0;
    TRY(mdl_json_load(&o, path, FILE_MAX, err));
    TRY(check_head(m, o, path, err));
    experts = mdl_json_get(o, "experts");
    if (!cJSON_IsArray(experts))
        FAIL(VKMOE_ERR_FORMAT, "%s: `experts` is not a list", path);
    *list = cor_array((size_t)c->n_layers * c->n_experts, sizeof(**list));
    if (!*list)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a hot set", path);
    TRY(read_list(c, experts, *list, n, path, err));
done:
    if (st != VKMOE_OK) {
        cor_free(*list);
        *list = NULL;
        *n = 0;
    }
    cJSON_Delete(o);
    return st;
}
