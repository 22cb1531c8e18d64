/* NumPy .npy files, version 1.0, little-endian, C order: what golden files and logits come in. */
#ifndef COR_NPY_H
#define COR_NPY_H

#include "core/status.h"

#define COR_NPY_MAX_DIMS 4

struct cor_npy {
    char type;                      /* 'f': float32, 'i': int32 */
    uint32_t n_dims;
    uint64_t dims[COR_NPY_MAX_DIMS];
    uint64_t count;                 /* product of dims */
    void *data;                     /* float or int32_t, count of them; cor_free by cor_npy_free */
};

enum vkmoe_status cor_npy_read(struct cor_npy *out, const char *path, struct vkmoe_err *err);
void cor_npy_free(struct cor_npy *a);

/* A (rows, cols) float32 array written row by row; the number of rows need not be known at the start. */
struct cor_npy_writer;
enum vkmoe_status cor_npy_create(struct cor_npy_writer **out, const char *path, uint64_t cols,
                                 struct vkmoe_err *err);
enum vkmoe_status cor_npy_append(struct cor_npy_writer *w, const float *row, struct vkmoe_err *err);
/* frees w in either case */
enum vkmoe_status cor_npy_commit(struct cor_npy_writer *w, struct vkmoe_err *err);
void cor_npy_discard(struct cor_npy_writer *w);

#endif
