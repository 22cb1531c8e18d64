/* The plan that both converters fill, and its execution in bands of rows: memory does not grow with the
 * model. */
#include "model/convert_impl.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/log.h"

enum { BAND_BYTES = 4 << 20 }; /* of f32 rows */

static enum vkmoe_status no_memory(const struct cv_plan *p, struct vkmoe_err *err)
{
    return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory to plan the conversion", p->params->in);
}

enum vkmoe_status cv_add_tensor(struct cv_plan *p, const char *name, enum mdl_type type, uint32_t n_dims,
                                const uint64_t *dims, uint32_t rotate_head, struct vkmoe_err *err)
{
    struct cv_tensor *t;

    if (p->n_tensors == p->cap_tensors) {
        size_t cap = p->cap_tensors * 2 + 64;
        struct cv_tensor *grown = cor_resize(p->tensors, cap, sizeof(*grown));

        if (!grown)
            return no_memory(p, err);
        p->tensors = grown;
        p->cap_tensors = cap;
    }
    t = &p->tensors[p->n_tensors];
    memset(t, 0, sizeof(*t));
    t->name = cor_strdup(name);
    if (!t->name)
        return no_memory(p, err);
    t->type = type;
    t->n_dims = n_dims;
    memcpy(t->dims, dims, n_dims * sizeof(*dims));
    t->rotate_head = rotate_head;
    t->first_piece = p->n_pieces;
    p->n_tensors++;
    return VKMOE_OK;
}

enum vkmoe_status cv_add_piece(struct cv_plan *p, const struct cv_piece *piece, struct vkmoe_err *err)
{
    struct cv_tensor *t = &p->tensors[p->n_tensors - 1];

    if (p->n_pieces == p->cap_pieces) {
        size_t cap = p->cap_pieces * 2 + 256;
        struct cv_piece *grown = cor_resize(p->pieces, cap, sizeof(*grown));

        if (!grown)
            return no_memory(p, err);
        p->pieces = grown;
        p->cap_pieces = cap;
    }
    p->pieces[p->n_pieces++] = *piece;
    t->n_pieces++;
    p->total_bytes += mdl_row_bytes(piece->type, t->dims[0]) * piece->rows;
    return VKMOE_OK;
}

enum mdl_type cv_matrix_type(const struct cv_plan *p, const char *name, uint64_t cols)
{
    const struct mdl_recipe *r = &p->recipe;
    const enum mdl_type wish = mdl_recipe_wish(r, &p->model, name, cols),
                        type = mdl_recipe_type(r, &p->model, name, cols);

    if (type != wish)
        cor_log(VKMOE_LOG_WARN, "%s: rows of %" PRIu64 " are not whole %s blocks, written as %s", name, cols,
                mdl_type_find((uint32_t)wish)->name, mdl_type_find((uint32_t)type)->name);
    return type;
}

void cv_base_name(char *dst, size_t n, const char *path)
{
    size_t end = strlen(path), start;

    while (end && (path[end - 1] == '/' || path[end - 1] == '\\'))
        end--;
    start = end;
    while (start && path[start - 1] != '/' && path[start - 1] != '\\')
        start--;
    if (start == end || path[start] == '.') /* "", ".", ".." */
        snprintf(dst, n, "model");
    else
        snprintf(dst, n, "%.*s", (int)(end - start), path + start);
}

/* ---- execution ---- */

struct band {
    struct cv_plan *p;
    uint8_t *in, *out;   /* rows as they stand in the files */
    float *row;          /* one row */
    float *weights;      /* of the tensor's columns, (planes, columns); NULL: all the same */
    float *row_weights;  /* of one row, where that changes them */
    uint64_t at;         /* rows of the tensor written */
    uint32_t n_without;  /* matrices that the imatrix does not know */
    const char *without; /* the first of them */
    uint64_t done_bytes;
};

/* Output row r of a head takes input row: half-rotation pairs (i, i + n/2), the output's pairs are (2i, 2i +
 * 1). */
static uint64_t source_row(uint64_t r, uint32_t head)
{
    uint64_t base, i;

    if (!head)
        return r;
    base = r / head * head;
    i = r % head;
    return base + i / 2 + (i % 2 ? head / 2 : 0);
}

static bool fits(enum mdl_type type, const float *row, uint64_t n)
{
    float limit = type == MDL_F16 ? 65520.0f : type == MDL_BF16 ? 0x1.ffp127f : HUGE_VALF;

    for (uint64_t i = 0; i < n; i++)
        if (!(fabsf(row[i]) < limit)) /* rounding would reach infinity; also true for NaN */
            return false;
    return true;
}

/* Of the values in b->row, which is that row of the tensor. q2_k has so few steps that what is large must be
 * met first. */
static const float *weights_of(struct band *b, const struct cv_tensor *t, uint64_t row)
{
    const float *w = b->weights ? b->weights + row / t->dims[1] * t->dims[0] : NULL;
    const uint64_t n = t->dims[0];
    double square = 0;

    if (!w || t->type != MDL_Q2_K)
        return w;
    for (uint64_t i = 0; i < n; i++)
        square += (double)b->row[i] * b->row[i] / (double)n;
    for (uint64_t i = 0; i < n; i++)
        b->row_weights[i] =
            square > 0 ? w[i] * (float)sqrt(1 + (double)b->row[i] * b->row[i] / square) : w[i];
    return b->row_weights;
}

/* The token embedding is looked up, not multiplied. */
static enum vkmoe_status load_weights(struct band *b, const struct cv_tensor *t, struct vkmoe_err *err)
{
    const struct mdl_imatrix *m = b->p->imatrix;
    enum vkmoe_status st = VKMOE_OK;

    if (!m || t->n_dims < 2 || mdl_type_find((uint32_t)t->type)->block_elems == 1)
        return VKMOE_OK;
    TRY(mdl_imatrix_load(&b->weights, m, t->name, t->dims[0], t->n_dims > 2 ? t->dims[2] : 1, err));
    if (!b->weights && strcmp(t->name, "token_embd.weight") && !b->n_without++)
        b->without = t->name;
done:
    return st;
}

static enum vkmoe_status convert_band(struct band *b, const struct cv_tensor *t, const struct cv_piece *piece,
                                      uint64_t first, uint64_t rows, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t cols = t->dims[0], in_row = mdl_row_bytes(piece->type, cols),
             out_row = mdl_row_bytes(t->type, cols);

    TRY(cor_file_read(piece->file, piece->off + first * in_row, b->in, (size_t)(rows * in_row), err));
    for (uint64_t r = 0; r < rows; r++) {
        const uint8_t *src = b->in + source_row(r, t->rotate_head) * in_row;
        bool good;

        mdl_dequant_row(piece->type, src, b->row, cols);
        good = fits(t->type, b->row, cols);
        if (good && t->type == piece->type) /* the same bits, a negative zero or a NaN's payload included */
            memcpy(b->out + r * out_row, src, (size_t)out_row);
        else if (good)
            good = mdl_quant_row_weighted(t->type, b->row, weights_of(b, t, b->at + r), b->out + r * out_row,
                                          cols);
        if (!good)
            FAIL(VKMOE_ERR_NUMERIC,
                 "%s: tensor %s, row %" PRIu64 ": a value is not finite or too large for %s",
                 cor_file_path(piece->file), piece->name, first + source_row(r, t->rotate_head),
                 mdl_type_find((uint32_t)t->type)->name);
    }
    TRY(mdl_gguf_write_data(b->p->w, b->out, (size_t)(rows * out_row), err));
    b->at += rows;
    b->done_bytes += rows * in_row;
    if (b->p->params->progress)
        b->p->params->progress(b->p->params->progress_user, b->done_bytes, b->p->total_bytes);
    if (cor_interrupted())
        FAIL(VKMOE_ERR_IO, "%s: interrupted", b->p->params->out);
done:
    return st;
}

static enum vkmoe_status convert_tensor(struct band *b, const struct cv_tensor *t, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t cols = t->dims[0], step = BAND_BYTES / sizeof(float) / cols;

    if (t->rotate_head)
        step = t->rotate_head;
    else if (!step)
        step = 1;
    if (step > SIZE_MAX / sizeof(float) / cols)
        FAIL(VKMOE_ERR_LIMIT, "%s: tensor %s: rows of %" PRIu64 " are too long", b->p->params->in, t->name,
             cols);
    b->in = cor_array((size_t)step, (size_t)cols * sizeof(float));
    b->out = cor_array((size_t)step, (size_t)cols * sizeof(float));
    b->row = cor_array((size_t)cols, sizeof(float));
    b->row_weights = cor_array((size_t)cols, sizeof(float));
    if (!b->in || !b->out || !b->row || !b->row_weights)
        FAIL(VKMOE_ERR_MEMORY, "%s: tensor %s: no memory for %" PRIu64 " rows of %" PRIu64, b->p->params->in,
             t->name, step, cols);
    b->at = 0;
    TRY(load_weights(b, t, err));
    for (size_t i = 0; i < t->n_pieces; i++) {
        const struct cv_piece *piece = &b->p->pieces[t->first_piece + i];

        for (uint64_t r = 0; r < piece->rows; r += step)
            TRY(convert_band(b, t, piece, r, piece->rows - r < step ? piece->rows - r : step, err));
    }
done:
    cor_free(b->in);
    cor_free(b->out);
    cor_free(b->row);
    cor_free(b->row_weights);
    cor_free(b->weights);
    b->in = b->out = NULL;
    b->row = b->row_weights = b->weights = NULL;
    return st;
}

enum vkmoe_status cv_run(struct cv_plan *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct band b = {.p = p};

    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct cv_tensor *t = &p->tensors[i];

        TRY(mdl_gguf_put_tensor(p->w, t->name, t->type, t->n_dims, t->dims, err));
    }
    for (size_t i = 0; i < p->n_tensors; i++)
        TRY(convert_tensor(&b, &p->tensors[i], err));
    if (b.n_without)
        cor_log(VKMOE_LOG_WARN, "%s: nothing for %u matrices, the first is %s: quantised without",
                p->params->imatrix, b.n_without, b.without);
done:
    return st;
}

enum vkmoe_status cv_put_imatrix_keys(struct cv_plan *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct mdl_imatrix *m = p->imatrix;
    char name[256];

    if (!m)
        return VKMOE_OK;
    cv_base_name(name, sizeof(name), p->params->imatrix);
    TRY(mdl_gguf_put_str(p->w, "quantize.imatrix.file", name, strlen(name), err));
    if (mdl_imatrix_dataset(m)[0])
        TRY(mdl_gguf_put_str(p->w, "quantize.imatrix.dataset", mdl_imatrix_dataset(m),
                             strlen(mdl_imatrix_dataset(m)), err));
    TRY(mdl_gguf_put_u32(p->w, "quantize.imatrix.entries_count", mdl_imatrix_entries(m), err));
    if (mdl_imatrix_chunks(m))
        TRY(mdl_gguf_put_u32(p->w, "quantize.imatrix.chunks_count", mdl_imatrix_chunks(m), err));
done:
    return st;
}

enum vkmoe_status mdl_convert(const struct mdl_convert_params *params, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct cv_plan p;
    struct mdl_gguf_writer *w;

    memset(&p, 0, sizeof(p));
    p.params = params;
    if (params->recipe)
        p.recipe = *params->recipe;
    else
        mdl_recipe_plain(&p.recipe, params->type);
    if (params->imatrix)
        TRY(mdl_imatrix_open(&p.imatrix, params->imatrix, err));
    TRY(mdl_gguf_create(&p.w, params->out, err));
    TRY(cor_path_is_dir(params->in) ? cv_from_hf(&p, err) : cv_from_gguf(&p, err));
    w = p.w;
    p.w = NULL; /* commit frees it in either case */
    st = mdl_gguf_commit(w, err);
done:
    mdl_gguf_discard(p.w);
    mdl_imatrix_close(p.imatrix);
    for (size_t i = 0; i < p.n_tensors; i++)
        cor_free(p.tensors[i].name);
    cor_free(p.tensors);
    cor_free(p.pieces);
    return st;
}
