/* The whole forward pass in plain scalar C, one token at a time: the oracle for the device. Slow and readable
 * on purpose. Sums in double, storage in float where the device stores float. */
#ifndef MDL_REF_H
#define MDL_REF_H

#include "model/model.h"

struct mdl_ref;

struct mdl_ref_params {
    uint32_t n_ctx;
    enum mdl_type kv;        /* what cached keys and values are rounded to: MDL_F16, MDL_Q8_0; MDL_F32: not */
    const uint32_t *allowed; /* expert mask, n_layers x ceil(n_experts / 32) words; NULL: all */
};

/* What the router did at one layer for the last token. */
struct mdl_ref_route {
    uint32_t n;       /* experts selected: min(n_experts_used, allowed ones) */
    uint32_t ids[32]; /* by falling weight, ties to the lower id */
    float weights[32];
    float last, next; /* probabilities of the last expert selected and of the best one that was not, as
                       * the softmax gives them; 0 when there is none. Rank order is open where they
                       * are nearly equal. */
};

/* What else a feed tells of its token; NULL: not asked. With h the normed input of a layer's experts and m
 * their weighted sum with the shared one's part. */
struct mdl_ref_watch {
    float *logits; /* (n_layers, n_experts) of the router, before any mask */
    double *sums; /* (n_layers, 3 + n_experts_used): h.h, h.m, m.m, then y.y of each expert selected, by rank,
                   * y its output before the weight (0: none) */
};

/* Reads all weights into float arrays; VKMOE_ERR_LIMIT past 2^30 of them. m is read here only and may be
 * closed afterwards. */
enum vkmoe_status mdl_ref_create(struct mdl_ref **out, const struct mdl_model *m,
                                 const struct mdl_ref_params *p, struct vkmoe_err *err);
void mdl_ref_destroy(struct mdl_ref *r);
/* Feeds one token; logits (vocab_size) may be NULL (then the head is not computed), routes (n_layers) may be
 * NULL. Errors, all of which leave the position where it was: VKMOE_ERR_CONTEXT_FULL, VKMOE_ERR_ARGUMENT for
 * an id outside the vocabulary, VKMOE_ERR_NUMERIC for non-finite logits (routes are set, logits are not). */
enum vkmoe_status mdl_ref_feed(struct mdl_ref *r, int32_t token, float *logits, struct mdl_ref_route *routes,
                               struct vkmoe_err *err);
void mdl_ref_reset(struct mdl_ref *r);
/* From the next feed on: the caller's arrays are written by every feed; NULL: no more. */
void mdl_ref_watch(struct mdl_ref *r, const struct mdl_ref_watch *w);
/* From the next feed on: another expert mask, which is copied. Only where mdl_ref_params had one. */
void mdl_ref_allow(struct mdl_ref *r, const uint32_t *allowed);

#endif
