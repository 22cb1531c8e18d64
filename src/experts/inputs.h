/* Sums of squares of what each column of each matrix is multiplied with, from a calibration run, and the
 * importance matrix made of them (model/imatrix.h reads it, as does llama.cpp). Owns the sums and the file.
 */
#ifndef XP_INPUTS_H
#define XP_INPUTS_H

#include "model/model.h"

struct xp_squares { /* of one input: of each expert, or one */
    uint32_t planes, cols;
    double *sums;     /* (planes, cols) */
    uint64_t *counts; /* (planes) rows added */
};

struct xp_inputs {
    const struct mdl_model *m; /* the caller's, and outlives this */
    struct xp_squares *layers; /* of each layer, of each of its inputs */
    struct xp_squares head;
};

/* Nothing counted; xp_inputs_free by the caller, after a failure too. */
enum vkmoe_status xp_inputs_init(struct xp_inputs *x, const struct mdl_model *m, struct vkmoe_err *err);
void xp_inputs_free(struct xp_inputs *x); /* zeroed or freed before: fine */
/* Fits vkmoe_inputs_fn, user: struct xp_inputs. */
void xp_inputs_add(void *user, const struct vkmoe_inputs *in);
/* datasets: names of the texts, for who reads the file. chunks: documents fed. Errors: VKMOE_ERR_NUMERIC for
 * sums that are not finite, VKMOE_ERR_IO, VKMOE_ERR_MEMORY. */
enum vkmoe_status xp_inputs_write(const struct xp_inputs *x, const char *path, const char *const *datasets,
                                  size_t n_datasets, uint32_t chunks, struct vkmoe_err *err);

#endif
