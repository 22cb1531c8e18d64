/* GGUF to GGUF of another type: keys and tensor order stay. Quantised matrices are widened first. */
#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"
#include "model/convert_impl.h"
#include "model/gguf_keys.h"

/* Keys that say how the file is written rather than what the model is. */
static bool is_replaced(const char *key)
{
    static const char *const names[] = {"quantize.imatrix.file",
                                        "quantize.imatrix.dataset",
                                        "quantize.imatrix.entries_count",
                                        "quantize.imatrix.chunks_count",
                                        "general.file_type",
                                        "general.quantization_version",
                                        "vkmoe.version"};

    for (size_t i = 0; i < COR_COUNT(names); i++)
        if (!strcmp(key, names[i]))
            return true;
    return mdl_gguf_key_of_file(key);
}

static enum vkmoe_status copy_keys(struct cv_plan *p, const struct mdl_gguf *g, const char *type,
                                   struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char name[256];

    for (uint64_t i = 0; i < g->n_kv; i++)
        if (!is_replaced(g->kv[i].key))
            TRY(mdl_gguf_put_kv(p->w, &g->kv[i], err));
    TRY(mdl_put_type_keys(p->w, p->recipe.file_type, err));
    TRY(cv_put_imatrix_keys(p, err));
    TRY(mdl_gguf_put_str(p->w, "vkmoe.version", vkmoe_version(), strlen(vkmoe_version()), err));
    if (mdl_gguf_find(g, "vkmoe.source.format")) /* the first conversion's provenance stays */
        goto done;
    cv_base_name(name, sizeof(name), p->params->in);
    if (!mdl_gguf_find(g, "vkmoe.source.name"))
        TRY(mdl_gguf_put_str(p->w, "vkmoe.source.name", name, strlen(name), err));
    TRY(mdl_gguf_put_str(p->w, "vkmoe.source.format", "gguf", 4, err));
    if (!mdl_gguf_find(g, "vkmoe.source.type"))
        TRY(mdl_gguf_put_str(p->w, "vkmoe.source.type", type, strlen(type), err));
done:
    return st;
}

/* Norms, routers and biases: those of experts have two dimensions. */
static bool stays_f32(const struct mdl_model *m, const struct mdl_tensor *t)
{
    struct mdl_part parts[MDL_LAYER_PARTS];

    if (t->n_dims == 1)
        return true;
    for (uint32_t i = 0; i < m->config.n_layers; i++) {
        const struct mdl_tensor *const *of = (const struct mdl_tensor *const *)&m->layers[i];

        mdl_layer_parts(parts, &m->config, i);
        for (size_t k = 0; k < MDL_LAYER_PARTS; k++)
            if (of[k] == t)
                return parts[k].f32;
    }
    return false;
}

enum vkmoe_status cv_from_gguf(struct cv_plan *p, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct mdl_model *m = NULL;
    const struct mdl_gguf *g;

    TRY(mdl_open(&m, p->params->in, err));
    g = m->gguf;
    p->model = (struct mdl_recipe_model){m->config.n_layers, m->config.n_experts, m->head == m->embed};
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i];
        struct cv_piece piece = {g->files[t->part], t->file_off, t->dims[1] * t->dims[2] * t->dims[3],
                                 t->type, t->name};

        TRY(cv_add_tensor(p, t->name, stays_f32(m, t) ? MDL_F32 : cv_matrix_type(p, t->name, t->dims[0]),
                          t->n_dims, t->dims, 0, err));
        TRY(cv_add_piece(p, &piece, err));
    }
    TRY(copy_keys(p, g, mdl_type_find(m->embed->gguf_type)->name, err));
    TRY(cv_run(p, err));
    TRY(mdl_gguf_unchanged(g, err));
done:
    mdl_close(m);
    return st;
}
