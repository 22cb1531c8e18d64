#include "run/weights.h"

#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"

/* Of a matrix with rows of so many elements. */
static uint64_t tensor_rows(const struct mdl_tensor *t, uint32_t cols)
{
    return t->dims[0] / cols * t->dims[1] * t->dims[2] * t->dims[3];
}

/* Cuts rows into pieces of at most caps.max_range bytes. */
static enum vkmoe_status plan_pieces(struct run_arena *arena, struct run_matrix *m, struct vkmoe_err *err)
{
    const struct gpu_caps *caps = gpu_device_caps(arena->dev);
    const char *name = m->src[0]->name;
    uint64_t most = caps->max_range < arena->limit ? caps->max_range : arena->limit;
    uint64_t per = most / m->row_bytes, n;
    enum vkmoe_status st = VKMOE_OK;

    if (!per)
        return cor_fail(err, VKMOE_ERR_LIMIT, "%s: one row of %" PRIu64 " bytes, the device binds %" PRIu64,
                        name, m->row_bytes, most);
    if (per >= 4)
        per -= per % 4; /* pieces then start on a word of the stacked rows */
    n = (m->rows + per - 1) / per;
    m->pieces = cor_array(n, sizeof(*m->pieces));
    if (!m->pieces)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %" PRIu64 " pieces", name, n);
    for (uint64_t i = 0; i < n; i++) {
        struct run_piece *p = &m->pieces[i];

        p->row0 = (uint32_t)(i * per);
        p->n_rows = (uint32_t)(m->rows - i * per < per ? m->rows - i * per : per);
        TRY(run_arena_plan(arena, (p->n_rows * m->row_bytes + 3) / 4 * 4, name, &p->region, err));
        m->n_pieces = (uint32_t)i + 1;
    }
done:
    return st;
}

static enum vkmoe_status plan_rows(struct run_arena *arena, struct run_matrix *m,
                                   const struct mdl_tensor *const *src, uint32_t n_src, uint32_t cols,
                                   struct vkmoe_err *err)
{
    uint64_t rows = 0;

    for (uint32_t i = 0; i < n_src; i++) {
        m->src[i] = src[i];
        rows += tensor_rows(src[i], cols);
    }
    m->n_src = n_src;
    m->type = src[0]->type;
    m->rows = (uint32_t)rows;
    m->cols = cols;
    m->row_bytes = mdl_row_bytes(m->type, m->cols);
    return plan_pieces(arena, m, err);
}

static enum vkmoe_status plan_matrix(struct run_arena *arena, struct run_matrix *m,
                                     const struct mdl_tensor *const *src, uint32_t n_src,
                                     struct vkmoe_err *err)
{
    return plan_rows(arena, m, src, n_src, (uint32_t)src[0]->dims[0], err);
}

/* Lists of f32; where the first is not there nothing is planned. */
static enum vkmoe_status plan_list(struct run_arena *arena, struct run_matrix *m,
                                   const struct mdl_tensor *const *src, uint32_t n_src, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (!src[0])
        return VKMOE_OK;
    TRY(plan_rows(arena, m, src, n_src, 1, err));
    if (m->n_pieces > 1)
        st = cor_fail(err, VKMOE_ERR_LIMIT, "%s: %u elements are more than the device binds", src[0]->name,
                      m->rows);
done:
    return st;
}

static enum vkmoe_status plan_linear(struct run_arena *arena, struct run_linear *l,
                                     const struct mdl_tensor *const *src, uint32_t n_src,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    bool same = true;

    for (uint32_t i = 1; i < n_src; i++)
        same = same && src[i]->type == src[0]->type && src[i - 1]->bytes % 4 == 0;
    for (uint32_t i = 0; i < n_src; i += same ? n_src : 1) {
        TRY(plan_matrix(arena, &l->m[l->n], src + i, same ? n_src : 1, err));
        l->n_out += l->m[l->n++].rows;
    }
done:
    return st;
}

static enum vkmoe_status plan_layer(struct run_arena *arena, struct run_layer_weights *w,
                                    const struct mdl_layer *l, struct vkmoe_err *err)
{
    const struct mdl_tensor *qkv[] = {l->q, l->k, l->v}, *gate_up[] = {l->gate_sh, l->up_sh};
    const struct mdl_tensor *norms[] = {l->q_norm, l->k_norm}, *biases[] = {l->q_bias, l->k_bias, l->v_bias};
    enum vkmoe_status st = VKMOE_OK;

    TRY(plan_matrix(arena, &w->attn_norm, &l->attn_norm, 1, err));
    TRY(plan_linear(arena, &w->qkv, qkv, 3, err));
    TRY(plan_linear(arena, &w->o, &l->o, 1, err));
    TRY(plan_matrix(arena, &w->ffn_norm, &l->ffn_norm, 1, err));
    TRY(plan_list(arena, &w->qk_norm, norms, 2, err));
    TRY(plan_list(arena, &w->qkv_bias, biases, 3, err));
    TRY(plan_list(arena, &w->o_bias, &l->o_bias, 1, err));
    TRY(plan_list(arena, &w->sinks, &l->sinks, 1, err));
    TRY(plan_list(arena, &w->router_bias, &l->router_bias, 1, err));
    TRY(plan_list(arena, &w->shared_gate, &l->shared_gate, 1, err));
    if (l->gate_inp)
        TRY(plan_matrix(arena, &w->router, &l->gate_inp, 1, err));
    if (l->gate_sh) {
        TRY(plan_linear(arena, &w->shared_gate_up, gate_up, 2, err));
        TRY(plan_linear(arena, &w->shared_down, &l->down_sh, 1, err));
    }
done:
    return st;
}

enum vkmoe_status run_weights_plan(struct run_weights *w, struct gpu_device *dev, const struct mdl_model *m,
                                   struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    memset(w, 0, sizeof(*w));
    run_arena_init(&w->arena, dev);
    w->layers = cor_array(m->config.n_layers, sizeof(*w->layers));
    if (!w->layers)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %u layers", m->config.n_layers);
    w->n_layers = m->config.n_layers;
    TRY(plan_matrix(&w->arena, &w->embed, &m->embed, 1, err));
    for (uint32_t i = 0; i < w->n_layers; i++)
        TRY(plan_layer(&w->arena, &w->layers[i], &m->layers[i], err));
    TRY(plan_matrix(&w->arena, &w->out_norm, &m->out_norm, 1, err));
    w->tied = m->head == m->embed;
    if (w->tied) {
        w->head = (struct run_linear){.n = 1, .m = {w->embed}, .n_out = w->embed.rows};
    } else {
        TRY(plan_linear(&w->arena, &w->head, &m->head, 1, err));
    }
done:
    return st;
}

enum vkmoe_status run_upload_tensor(struct gpu_device *dev, struct gpu_buffer *buf, uint64_t off,
                                    const struct mdl_gguf *g, const struct mdl_tensor *t, uint64_t tensor_off,
                                    uint64_t n, struct run_progress *progress, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    while (n) {
        size_t part = n < GPU_UPLOAD_MAX ? (size_t)n : GPU_UPLOAD_MAX;
        size_t padded = (part + 3) / 4 * 4;
        void *dst;

        TRY(gpu_upload_begin(dev, buf, off, padded, &dst, err));
        st = mdl_gguf_read(g, t, tensor_off, dst, part, err);
        memset((char *)dst + part, 0, padded - part);
        if (st != VKMOE_OK) { /* the upload in hand must be closed all the same */
            gpu_upload_end(dev, NULL);
            return st;
        }
        TRY(gpu_upload_end(dev, err));
        off += part;
        tensor_off += part;
        n -= part;
        if (progress) {
            progress->done += part;
            if (progress->fn)
                progress->fn(progress->user, progress->done, progress->total);
        }
    }
done:
    return st;
}

/* Rows of a piece come from the stacked sources in turn; plan_linear stacks only sources that end on a word.
 */
static enum vkmoe_status load_piece(const struct run_weights *w, const struct run_matrix *m,
                                    const struct run_piece *p, const struct mdl_gguf *g,
                                    struct run_progress *progress, struct vkmoe_err *err)
{
    struct gpu_buffer *buf = run_arena_buffer(&w->arena, &p->region);
    uint64_t row = p->row0, end = (uint64_t)p->row0 + p->n_rows, first = 0;
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < m->n_src && row < end; i++) {
        uint64_t last = first + tensor_rows(m->src[i], m->cols);
        uint64_t stop = last < end ? last : end;

        if (row < stop) {
            TRY(run_upload_tensor(w->arena.dev, buf, p->region.off + (row - p->row0) * m->row_bytes, g,
                                  m->src[i], (row - first) * m->row_bytes, (stop - row) * m->row_bytes,
                                  progress, err));
            row = stop;
        }
        first = last;
    }
done:
    return st;
}

static enum vkmoe_status load_matrix(const struct run_weights *w, const struct run_matrix *m,
                                     const struct mdl_gguf *g, struct run_progress *progress,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < m->n_pieces; i++)
        TRY(load_piece(w, m, &m->pieces[i], g, progress, err));
done:
    return st;
}

static enum vkmoe_status load_linear(const struct run_weights *w, const struct run_linear *l,
                                     const struct mdl_gguf *g, struct run_progress *progress,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < l->n; i++)
        TRY(load_matrix(w, &l->m[i], g, progress, err));
done:
    return st;
}

enum vkmoe_status run_weights_load(struct run_weights *w, const struct mdl_model *m,
                                   struct run_progress *progress, struct vkmoe_err *err)
{
    const struct mdl_gguf *g = m->gguf;
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_arena_create(&w->arena, "dense weights", err));
    TRY(load_matrix(w, &w->embed, g, progress, err));
    for (uint32_t i = 0; i < w->n_layers; i++) {
        const struct run_layer_weights *l = &w->layers[i];

        TRY(load_matrix(w, &l->attn_norm, g, progress, err));
        TRY(load_linear(w, &l->qkv, g, progress, err));
        TRY(load_linear(w, &l->o, g, progress, err));
        TRY(load_matrix(w, &l->ffn_norm, g, progress, err));
        TRY(load_matrix(w, &l->router, g, progress, err));
        TRY(load_matrix(w, &l->qk_norm, g, progress, err));
        TRY(load_matrix(w, &l->qkv_bias, g, progress, err));
        TRY(load_matrix(w, &l->o_bias, g, progress, err));
        TRY(load_matrix(w, &l->sinks, g, progress, err));
        TRY(load_matrix(w, &l->router_bias, g, progress, err));
        TRY(load_matrix(w, &l->shared_gate, g, progress, err));
        TRY(load_linear(w, &l->shared_gate_up, g, progress, err));
        TRY(load_linear(w, &l->shared_down, g, progress, err));
    }
    TRY(load_matrix(w, &w->out_norm, g, progress, err));
    if (!w->tied)
        TRY(load_linear(w, &w->head, g, progress, err));
    TRY(gpu_upload_wait(w->arena.dev, err));
done:
    return st;
}

static void free_linear(struct run_linear *l)
{
    for (uint32_t i = 0; i < COR_COUNT(l->m); i++)
        cor_free(l->m[i].pieces);
}

void run_weights_close(struct run_weights *w)
{
    for (uint32_t i = 0; i < w->n_layers; i++) {
        struct run_layer_weights *l = &w->layers[i];

        cor_free(l->attn_norm.pieces);
        cor_free(l->ffn_norm.pieces);
        cor_free(l->router.pieces);
        cor_free(l->qk_norm.pieces);
        cor_free(l->qkv_bias.pieces);
        cor_free(l->o_bias.pieces);
        cor_free(l->sinks.pieces);
        cor_free(l->router_bias.pieces);
        cor_free(l->shared_gate.pieces);
        free_linear(&l->qkv);
        free_linear(&l->o);
        free_linear(&l->shared_gate_up);
        free_linear(&l->shared_down);
    }
    if (!w->tied)
        free_linear(&w->head);
    cor_free(w->embed.pieces);
    cor_free(w->out_norm.pieces);
    cor_free(w->layers);
    run_arena_close(&w->arena);
    memset(w, 0, sizeof(*w));
}

uint64_t run_weights_bytes(const struct run_weights *w)
{
    return run_arena_bytes(&w->arena);
}
