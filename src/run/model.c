#include "run/model.h"

#include "core/alloc.h"

static uint64_t total_bytes(const struct mdl_model *m, bool lazy)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < m->gguf->n_tensors; i++)
        sum += m->gguf->tensors[i].bytes;
    for (uint32_t l = 0; lazy && l < m->config.n_layers; l++)
        sum -= m->layers[l].gate_exps->bytes + m->layers[l].up_exps->bytes + m->layers[l].down_exps->bytes;
    return sum;
}

enum vkmoe_status run_model_open(struct run_model **out, struct gpu_device *dev, const char *path, bool lazy,
                                 struct run_progress *progress, struct vkmoe_err *err)
{
    struct run_model *m = cor_zalloc(sizeof(*m));
    struct run_progress none = {0};
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!m)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the model", path);
    if (!progress)
        progress = &none;
    m->dev = dev;
    TRY(mdl_open(&m->mdl, path, err));
    progress->total = total_bytes(m->mdl, lazy);
    TRY(run_weights_plan(&m->weights, dev, m->mdl, err));
    TRY(run_weights_load(&m->weights, m->mdl, progress, err));
    TRY(run_pool_create(&m->pool, dev, m->mdl, err));
    if (!lazy)
        TRY(run_pool_load_all(&m->pool, progress, err));
    *out = m;
    m = NULL;
done:
    run_model_close(m);
    return st;
}

void run_model_close(struct run_model *m)
{
    if (!m)
        return;
    run_pool_close(&m->pool);
    run_weights_close(&m->weights);
    mdl_close(m->mdl);
    cor_free(m);
}
