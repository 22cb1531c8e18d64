/* What the two converters (Hugging Face, GGUF) share: a plan of output tensors, each made of runs of input
 * rows. */
#ifndef MDL_CONVERT_IMPL_H
#define MDL_CONVERT_IMPL_H

#include "model/convert.h"
#include "model/imatrix.h"

/* Consecutive rows of the input that become consecutive rows of an output tensor. */
struct cv_piece {
    struct cor_file *file;
    uint64_t off; /* of the first row, bytes */
    uint64_t rows;
    enum mdl_type type;
    const char *name;   /* input tensor, for messages; owned by the input */
};

struct cv_tensor {
    char *name;
    enum mdl_type type;
    uint32_t n_dims;
    uint64_t dims[MDL_GGUF_MAX_DIMS];
    uint32_t
        rotate_head; /* rows of one head whose halves are interleaved (half-rotation to pairs), 0: none */
    size_t first_piece, n_pieces;
};

struct cv_plan {
    const struct mdl_convert_params *params;
    struct mdl_recipe recipe;
    struct mdl_recipe_model model;
    struct mdl_gguf_writer *w;
    struct mdl_imatrix *imatrix; /* NULL: none */
    struct cv_tensor *tensors;
    struct cv_piece *pieces;
    size_t n_tensors, cap_tensors, n_pieces, cap_pieces;
    uint64_t total_bytes; /* of input rows */
};

/* The pieces that follow belong to it. */
enum vkmoe_status cv_add_tensor(struct cv_plan *p, const char *name, enum mdl_type type, uint32_t n_dims,
                                const uint64_t *dims, uint32_t rotate_head, struct vkmoe_err *err);
enum vkmoe_status cv_add_piece(struct cv_plan *p, const struct cv_piece *piece, struct vkmoe_err *err);
/* What the recipe says of a matrix; a log line where blocks do not fit its rows. */
enum mdl_type cv_matrix_type(const struct cv_plan *p, const char *name, uint64_t cols);
/* quantize.imatrix.*, as llama.cpp names them; nothing without an imatrix. */
enum vkmoe_status cv_put_imatrix_keys(struct cv_plan *p, struct vkmoe_err *err);
/* Declares and writes all tensors. */
enum vkmoe_status cv_run(struct cv_plan *p, struct vkmoe_err *err);
/* Last component of a path or hub name, never empty. dst: n bytes. */
void cv_base_name(char *dst, size_t n, const char *path);

enum vkmoe_status cv_from_hf(struct cv_plan *p,
                             struct vkmoe_err *err); /* fills, runs; the input is closed after it */
enum vkmoe_status cv_from_gguf(struct cv_plan *p, struct vkmoe_err *err);

#endif
