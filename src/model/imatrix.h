/* Importance matrices as llama.cpp's imatrix writes them: for each matrix of a model the mean squares of the
 * inputs that its columns are multiplied with. Owns both file formats (docs/FORMATS.md); what encoders make
 * of the numbers is theirs. */
#ifndef MDL_IMATRIX_H
#define MDL_IMATRIX_H

#include "model/gguf.h"

struct mdl_imatrix;

/* GGUF with tensors NAME.in_sum2 and NAME.counts, or the older .dat. The numbers are read by
 * mdl_imatrix_load. Errors: VKMOE_ERR_FORMAT, VKMOE_ERR_IO, VKMOE_ERR_MEMORY. */
enum vkmoe_status mdl_imatrix_open(struct mdl_imatrix **out, const char *path, struct vkmoe_err *err);
void mdl_imatrix_close(struct mdl_imatrix *m); /* NULL is fine */

uint32_t mdl_imatrix_entries(const struct mdl_imatrix *m);
/* What it was made from, as the file says; "" where it does not. */
const char *mdl_imatrix_dataset(const struct mdl_imatrix *m);
uint32_t mdl_imatrix_chunks(const struct mdl_imatrix *m); /* 0: not said */

/* Weights of the columns of a tensor with n planes (experts), (n, cols): roots of the mean squares over their
 * own mean in the plane (docs/FORMATS.md says why roots), and at least 0.03, so that a column which
 * calibration never saw is not given up. Planes without data get ones. *out NULL: the file has nothing for
 * this tensor. cor_free by the caller. Errors: VKMOE_ERR_FORMAT for another shape, negative and not finite
 * numbers. */
enum vkmoe_status mdl_imatrix_load(float **out, const struct mdl_imatrix *m, const char *tensor,
                                   uint64_t cols, uint64_t n, struct vkmoe_err *err);

#endif
