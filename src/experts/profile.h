/* What the router thinks of a text: mean probability of every routed expert per layer, and figures drawn from
 * it. Pure computation on what sessions report; rankings that must add up across machines are in stats.h. */
#ifndef XP_PROFILE_H
#define XP_PROFILE_H

#include "core/status.h"

struct xp_profile {
    uint32_t n_layers, n_experts; /* routed: the most of any layer */
    uint32_t *counts;             /* (n_layers) routed experts that the layer has */
    double *sum;                  /* (n_layers, n_experts) probability, summed over tokens */
    uint64_t *tokens;             /* (n_layers) */
    double *row;                  /* (n_experts) scratch */
};

/* counts: (n_layers), each 1 .. n_experts, copied; NULL: n_experts in every layer. xp_profile_free by the
 * caller, also after a failure. Errors: VKMOE_ERR_MEMORY. */
enum vkmoe_status xp_profile_init(struct xp_profile *p, uint32_t n_layers, uint32_t n_experts,
                                  const uint32_t *counts, struct vkmoe_err *err);
void xp_profile_free(struct xp_profile *p); /* zeroed or freed before: fine */

/* Softmax in double over n logits; one that is minus infinity or no number gets 0, all of them: even shares.
 */
void xp_profile_softmax(double *p, const float *logits, uint32_t n);

/* Adds what a layer's router thought of some tokens. user: struct xp_profile; fits vkmoe_watch_fn. */
void xp_profile_add(void *user, const struct vkmoe_watched *w);

/* Mean probability; 0 before the first token. */
double xp_profile_mean(const struct xp_profile *p, uint32_t layer, uint32_t expert);
/* Entropy of the means, in bits: 0 (one expert) to log2 of the layer's experts. */
double xp_profile_entropy(const struct xp_profile *p, uint32_t layer);
/* Experts whose mean lies above the even share, 1 / the layer's experts. */
uint32_t xp_profile_above(const struct xp_profile *p, uint32_t layer);
/* ids: the `top` experts (all, where the layer has fewer) by falling mean, then rising number. Returns how
 * many. */
uint32_t xp_profile_best(const struct xp_profile *p, uint32_t layer, uint32_t top, uint32_t *ids);
/* Probability that those hold together. ids: room for `top`. */
double xp_profile_mass(const struct xp_profile *p, uint32_t layer, uint32_t top, uint32_t *ids);

/* Of the means of two texts in one layer of one model: 1 in the same proportions; 0 when one has no tokens.
 */
double xp_profile_cosine(const struct xp_profile *a, const struct xp_profile *b, uint32_t layer);
/* Size of the intersection of two sets of distinct numbers, over that of their union; 1 for two empty ones.
 */
double xp_jaccard(const uint32_t *a, uint32_t n_a, const uint32_t *b, uint32_t n_b);

#endif
