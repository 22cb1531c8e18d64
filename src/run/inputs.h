/* What the matrices of a model are multiplied with, for the host: activations of a part, read back when it
 * has run. Owns the copy; knows nothing of what is made of it. Slow, and only for sessions that wait after
 * every part. */
#ifndef RUN_INPUTS_H
#define RUN_INPUTS_H

#include "run/state.h"

struct run_step; /* pass.h */

struct run_inputs {
    vkmoe_inputs_fn fn; /* NULL: nothing is read back */
    void *user;
    const struct run_model *model;
    const struct run_state *state;
    float *rows;     /* the widest activation of a chunk */
    float *normed;   /* (chunk, dim) input of the layer's experts, until it is known which they are */
    float *out_norm; /* (dim) weights of the norm before the head */
};

enum vkmoe_status run_inputs_create(struct run_inputs *i, const struct run_model *m,
                                    const struct run_state *s, struct vkmoe_err *err);
void run_inputs_close(struct run_inputs *i);
/* The part has run for the tokens of the step; sel: what its layer chose, once that is known. */
enum vkmoe_status run_inputs_part(struct run_inputs *i, const struct run_step *in, uint32_t part,
                                  const uint32_t *sel, struct vkmoe_err *err);

#endif
