#include "api/subset.h"

#include <inttypes.h>

#include "core/alloc.h"

enum vkmoe_status vkmoe_subset_open(vkmoe_subset **out, const char *path, struct vkmoe_err *err)
{
    vkmoe_subset *s = cor_zalloc(sizeof(*s));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!s)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a subset", path);
    TRY(xp_subset_read(&s->s, path, err));
    s->name = cor_strdup(path);
    if (!s->name)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a subset", path);
    *out = s;
    s = NULL;
done:
    vkmoe_subset_close(s);
    return st;
}

enum vkmoe_status vkmoe_subset_create(vkmoe_subset **out, uint32_t n_layers, uint32_t n_experts,
                                      const uint8_t *keep, struct vkmoe_err *err)
{
    vkmoe_subset *s = cor_zalloc(sizeof(*s));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!s)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a subset");
    if (!n_layers || !n_experts || n_experts > XP_SUBSET_EXPERTS || n_layers > XP_SUBSET_LAYERS)
        FAIL(VKMOE_ERR_ARGUMENT, "a subset of %" PRIu32 " x %" PRIu32 " experts", n_layers, n_experts);
    TRY(xp_subset_init(&s->s, "", n_layers, n_experts, XP_SHARED_UNKNOWN, "", err));
    for (uint32_t l = 0; l < n_layers; l++)
        for (uint32_t e = 0; e < n_experts; e++)
            if (keep[(size_t)l * n_experts + e])
                xp_subset_set(&s->s, l, e);
    *out = s;
    s = NULL;
done:
    vkmoe_subset_close(s);
    return st;
}

void vkmoe_subset_close(vkmoe_subset *subset)
{
    if (!subset)
        return;
    xp_subset_free(&subset->s);
    cor_free(subset->name);
    cor_free(subset);
}

bool vkmoe_subset_has(const vkmoe_subset *subset, uint32_t layer, uint32_t expert)
{
    return xp_subset_has(&subset->s, layer, expert);
}
