#include "run/inputs.h"

#include <math.h>

#include "core/alloc.h"
#include "run/layer.h"
#include "run/pass.h"

static enum vkmoe_status take(struct run_inputs *i, const struct run_region *r, float *dst, uint64_t count,
                              struct vkmoe_err *err)
{
    return gpu_download(i->state->dev, run_arena_buffer(&i->state->act, r), r->off, dst, count * 4, err);
}

static void tell(struct run_inputs *i, const struct run_step *in, struct vkmoe_inputs what)
{
    what.pos = in->pos;
    what.n_tokens = in->n_tokens;
    i->fn(i->user, &what);
}

/* Rows of a region, one for each token. */
static enum vkmoe_status show(struct run_inputs *i, const struct run_step *in, const struct run_region *r,
                              enum vkmoe_input what, uint32_t layer, uint32_t width, struct vkmoe_err *err)
{
    enum vkmoe_status st;

    TRY(take(i, r, i->rows, (uint64_t)in->n_tokens * width, err));
    tell(i, in, (struct vkmoe_inputs){.what = what, .layer = layer, .width = width, .rows = i->rows});
done:
    return st;
}

/* The layer's feed-forward has run: its input, kept since the attention, and what each expert put before its
 * second step. A dense layer is a shared expert without others. */
static enum vkmoe_status show_experts(struct run_inputs *i, const struct run_step *in, uint32_t layer,
                                      const uint32_t *sel, struct vkmoe_err *err)
{
    const struct mdl_config *c = &i->model->mdl->config;
    const struct run_state *s = i->state;
    const bool dense = mdl_is_dense(c, layer);
    const uint32_t width = mdl_ffn_width(c, layer);
    struct vkmoe_inputs what = {.what = VKMOE_INPUT_EXPERTS,
                                .layer = layer,
                                .width = c->dim,
                                .n_used = dense ? 0 : c->n_experts_used,
                                .rows = i->normed,
                                .pairs = dense ? NULL : sel};
    enum vkmoe_status st = VKMOE_OK;

    if (dense && in->n_tokens > 1) /* normed in this part */
        TRY(take(i, &s->xn, i->normed, (uint64_t)in->n_tokens * c->dim, err));
    tell(i, in, what);
    if (!dense) {
        what.what = VKMOE_INPUT_DOWN;
        what.width = c->ff_expert;
        what.rows = i->rows;
        TRY(take(i, &s->h, i->rows, (uint64_t)in->n_tokens * c->n_experts_used * c->ff_expert, err));
        tell(i, in, what);
    }
    if (width)
        TRY(show(i, in, &s->hs, VKMOE_INPUT_SHARED_DOWN, layer, width, err));
done:
    return st;
}

/* The head's norm runs for few rows, or none: here for all, from the residual stream behind the last layer.
 */
static enum vkmoe_status show_head(struct run_inputs *i, const struct run_step *in, struct vkmoe_err *err)
{
    const struct mdl_config *c = &i->model->mdl->config;
    enum vkmoe_status st;

    TRY(take(i, &i->state->x, i->rows, (uint64_t)in->n_tokens * c->dim, err));
    for (uint32_t t = 0; t < in->n_tokens; t++) {
        float *row = i->rows + (size_t)t * c->dim;
        double sum = 0, scale;

        for (uint32_t k = 0; k < c->dim; k++)
            sum += (double)row[k] * row[k];
        scale = 1 / sqrt(sum / c->dim + (double)c->rms_eps);
        for (uint32_t k = 0; k < c->dim; k++)
            row[k] = (float)(row[k] * scale * i->out_norm[k]);
    }
    tell(i, in,
         (struct vkmoe_inputs){
             .what = VKMOE_INPUT_HEAD, .layer = c->n_layers, .width = c->dim, .rows = i->rows});
done:
    return st;
}

enum vkmoe_status run_inputs_part(struct run_inputs *i, const struct run_step *in, uint32_t part,
                                  const uint32_t *sel, struct vkmoe_err *err)
{
    const struct mdl_config *c = &i->model->mdl->config;
    const uint32_t layer = part ? run_layer_of(part) : 0;
    const struct run_state *s = i->state;
    enum vkmoe_status st = VKMOE_OK;

    if (!i->fn || !part || layer >= c->n_layers)
        return VKMOE_OK;
    if (part == run_part_keys(layer)) {
        TRY(show(i, in, &s->xn, VKMOE_INPUT_ATTENTION, layer, c->dim, err));
    } else if (part == run_part_attention(layer)) {
        TRY(show(i, in, &s->att, VKMOE_INPUT_OUTPUT, layer, c->n_heads * c->head_dim, err));
        TRY(take(i, &s->xn, i->normed, (uint64_t)in->n_tokens * c->dim, err));
    } else {
        TRY(show_experts(i, in, layer, sel, err));
        if (layer == c->n_layers - 1)
            TRY(show_head(i, in, err));
    }
done:
    return st;
}

enum vkmoe_status run_inputs_create(struct run_inputs *i, const struct run_model *m,
                                    const struct run_state *s, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;
    const uint64_t widths[] = {c->dim, (uint64_t)c->n_heads * c->head_dim,
                               (uint64_t)c->n_experts_used * c->ff_expert, mdl_shared_width(c), c->ff_dense};
    enum vkmoe_status st = VKMOE_OK;
    uint64_t widest = 0;

    i->model = m;
    i->state = s;
    if (s->watch < VKMOE_WATCH_INPUTS)
        return VKMOE_OK;
    for (uint32_t k = 0; k < COR_COUNT(widths); k++)
        widest = widths[k] > widest ? widths[k] : widest;
    i->rows = cor_array((size_t)s->chunk, (size_t)widest * sizeof(float));
    i->normed = cor_array((size_t)s->chunk, (size_t)c->dim * sizeof(float));
    i->out_norm = cor_array(c->dim, sizeof(float));
    if (!i->rows || !i->normed || !i->out_norm)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the inputs of %u tokens", s->chunk);
    TRY(mdl_gguf_read(m->mdl->gguf, m->mdl->out_norm, 0, i->out_norm, c->dim * sizeof(float), err));
    mdl_dequant_row(MDL_F32, i->out_norm, i->out_norm, c->dim);
done:
    return st;
}

void run_inputs_close(struct run_inputs *i)
{
    cor_free(i->rows);
    cor_free(i->normed);
    cor_free(i->out_norm);
}
