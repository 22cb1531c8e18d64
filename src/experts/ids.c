#include "experts/ids.h"

#include <inttypes.h>

#include "core/alloc.h"

enum { ID_MAX = 65535 };

static enum vkmoe_status read_stated(struct xp_ids *ids, const struct mdl_model *m, const struct mdl_kv *kv,
                                     struct vkmoe_err *err)
{
    const char *path = cor_file_path(m->gguf->file);
    uint32_t total = ids->first[ids->n_layers], top = 0;
    enum vkmoe_status st = VKMOE_OK;

    if (kv->type != MDL_GGUF_ARRAY || kv->elem_type != MDL_GGUF_U32 || kv->count != total)
        FAIL(VKMOE_ERR_FORMAT, "%s: key %s is not a list of %" PRIu32 " 32-bit numbers", path, kv->key,
             total);
    for (uint32_t l = 0; l < ids->n_layers; l++)
        for (uint32_t i = ids->first[l]; i < ids->first[l + 1]; i++) {
            uint32_t id = mdl_kv_u32(kv, i);

            if (id > ID_MAX)
                FAIL(VKMOE_ERR_FORMAT, "%s: key %s: layer %" PRIu32 ": id %" PRIu32 " is above %d", path,
                     kv->key, l, id, ID_MAX);
            for (uint32_t k = ids->first[l]; k < i; k++)
                if (ids->original[k] == id)
                    FAIL(VKMOE_ERR_FORMAT, "%s: key %s: layer %" PRIu32 " has expert %" PRIu32 " twice", path,
                         kv->key, l, id);
            ids->original[i] = id;
            top = id > top ? id : top;
        }
    ids->n_source = top + 1;
    if (mdl_gguf_find(m->gguf, "vkmoe.source.expert_count")) {
        TRY(mdl_gguf_u32(m->gguf, "vkmoe.source.expert_count", &ids->n_source, err));
        if (ids->n_source <= top || ids->n_source > ID_MAX + 1)
            FAIL(VKMOE_ERR_FORMAT,
                 "%s: vkmoe.source.expert_count %" PRIu32 " does not hold original id %" PRIu32, path,
                 ids->n_source, top);
    }
done:
    return st;
}

enum vkmoe_status xp_ids_read(struct xp_ids *ids, const struct mdl_model *m, struct vkmoe_err *err)
{
    const struct mdl_kv *kv = mdl_gguf_find(m->gguf, "vkmoe.expert_ids");
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n = m->config.n_layers;

    *ids = (struct xp_ids){.n_layers = n, .n_source = m->config.n_experts, .stated = kv != NULL};
    ids->first = cor_array((size_t)n + 1, sizeof(*ids->first));
    if (!ids->first)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for expert ids", cor_file_path(m->gguf->file));
    for (uint32_t l = 0; l < n; l++)
        ids->first[l + 1] = ids->first[l] + mdl_expert_count(m, l);
    ids->original = cor_array(ids->first[n], sizeof(*ids->original));
    if (!ids->original)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for expert ids", cor_file_path(m->gguf->file));
    if (kv)
        TRY(read_stated(ids, m, kv, err));
    else
        for (uint32_t l = 0; l < n; l++)
            for (uint32_t i = ids->first[l]; i < ids->first[l + 1]; i++)
                ids->original[i] = i - ids->first[l];
done:
    if (st != VKMOE_OK)
        xp_ids_free(ids);
    return st;
}

void xp_ids_free(struct xp_ids *ids)
{
    cor_free(ids->first);
    cor_free(ids->original);
    *ids = (struct xp_ids){0};
}

uint32_t xp_ids_original(const struct xp_ids *ids, uint32_t layer, uint32_t expert)
{
    return ids->original[ids->first[layer] + expert];
}

uint32_t xp_ids_find(const struct xp_ids *ids, uint32_t layer, uint32_t original)
{
    for (uint32_t i = ids->first[layer]; i < ids->first[layer + 1]; i++)
        if (ids->original[i] == original)
            return i - ids->first[layer];
    return XP_ABSENT;
}

const struct mdl_tensor *xp_part(const struct mdl_model *m, uint32_t layer, int part)
{
    const struct mdl_layer *l = &m->layers[layer];
    const struct mdl_tensor *const parts[XP_PARTS] = {l->gate_exps, l->up_exps,    l->down_exps,
                                                      l->gate_bias, l->up_bias,    l->down_bias,
                                                      l->gate_inp,  l->router_bias};

    return parts[part];
}

uint32_t xp_part_dim(int part)
{
    return part <= XP_DOWN ? 2 : part == XP_ROUTER_BIAS ? 0 : 1;
}

uint64_t xp_part_bytes(const struct mdl_model *m, uint32_t layer, int part)
{
    const struct mdl_tensor *t = xp_part(m, layer, part);

    return t ? t->bytes / mdl_expert_count(m, layer) : 0;
}

bool xp_part_of(const struct mdl_model *m, const struct mdl_tensor *t, uint32_t *layer, int *part)
{
    for (uint32_t l = 0; l < m->config.n_layers; l++)
        for (int p = 0; p < XP_PARTS; p++)
            if (xp_part(m, l, p) == t) {
                *layer = l;
                *part = p;
                return true;
            }
    return false;
}

enum vkmoe_status xp_expert_digest(const struct mdl_model *m, uint32_t layer, uint32_t expert, void *buf,
                                   uint8_t digest[COR_SHA256_BYTES], struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_sha256 h;

    cor_sha256_begin(&h);
    for (int p = 0; p < XP_OWN_PARTS; p++) {
        uint64_t n = xp_part_bytes(m, layer, p);

        if (!n)
            continue;
        TRY(mdl_gguf_read(m->gguf, xp_part(m, layer, p), n * expert, buf, (size_t)n, err));
        cor_sha256_add(&h, buf, (size_t)n);
    }
    cor_sha256_end(&h, digest);
done:
    return st;
}

uint64_t xp_expert_bytes(const struct mdl_model *m, uint32_t layer)
{
    uint64_t n = 0;

    for (int p = 0; p < XP_OWN_PARTS; p++)
        n += xp_part_bytes(m, layer, p);
    return n;
}

uint64_t xp_largest_part(const struct mdl_model *m)
{
    uint64_t most = 0;

    for (uint32_t l = 0; l < m->config.n_layers; l++)
        for (int p = 0; p < XP_PARTS; p++)
            most = xp_part_bytes(m, l, p) > most ? xp_part_bytes(m, l, p) : most;
    return most;
}
