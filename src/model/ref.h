/* The whole forward pass in plain scalar C, one token at a time: the oracle for the device. Slow and readable on purpose.
 * Sums in double, storage in float where the device stores float. */
#ifndef MDL_REF_H
#define MDL_REF_H

#include "model/model.h"

struct mdl_ref;

struct mdl_ref_params {
    uint32_t n_ctx;
    bool kv_f16;             /* round cached keys and values to half */
    const uint32_t *allowed; /* expert mask, n_layers x ceil(n_experts / 32) words; NULL: all */
};

/* What the router did at one layer for the last token. */
struct mdl_ref_route {
    uint32_t n;          /* experts selected: min(n_experts_used, allowed ones) */
    uint32_t ids[32];    /* by falling weight, ties to the lower id */
    float weights[32];
    float next;          /* probability of the best expert that was not selected, before scaling; 0 when none */
};

enum vkmoe_status mdl_ref_create(struct mdl_ref **out, const struct mdl_model *m, const struct mdl_ref_params *p, struct vkmoe_err *err);
void mdl_ref_destroy(struct mdl_ref *r);
/* Feeds one token; logits (vocab_size) may be NULL, routes (n_layers) may be NULL. */
enum vkmoe_status mdl_ref_feed(struct mdl_ref *r, int32_t token, float *logits, struct mdl_ref_route *routes, struct vkmoe_err *err);
void mdl_ref_reset(struct mdl_ref *r);

#endif
