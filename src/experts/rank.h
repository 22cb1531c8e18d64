/* From statistics to a subset: how many experts a layer keeps, and which. Owns budgets, their order and the
 * generator behind the random choice; what is summed is stats.h's. */
#ifndef XP_RANK_H
#define XP_RANK_H

#include "experts/stats.h"
#include "experts/subset.h"

enum xp_budget_kind {
    XP_KEEP,      /* `keep` experts of every layer */
    XP_PERCENT,   /* `percent` of a layer's experts, to the nearest whole number */
    XP_PER_LAYER, /* list[layer] */
    XP_COVERAGE,  /* as many as hold `percent` of the router's probability */
};

/* All counts include the shared experts, as published. */
struct xp_budget {
    enum xp_budget_kind kind;
    uint32_t keep;
    double percent;
    uint32_t *list; /* xp_budget_free */
    uint32_t n_list;
};

/* "16" or "12.5%"; "16,16,12" for each layer; "95%". Errors: VKMOE_ERR_ARGUMENT with the text. */
enum vkmoe_status xp_budget_keep(struct xp_budget *b, const char *text, struct vkmoe_err *err);
enum vkmoe_status xp_budget_per_layer(struct xp_budget *b, const char *text, struct vkmoe_err *err);
enum vkmoe_status xp_budget_coverage(struct xp_budget *b, const char *text, struct vkmoe_err *err);
void xp_budget_free(struct xp_budget *b); /* zeroed or freed before: fine */

struct xp_shape {
    uint32_t n_layers, n_routed, n_shared, n_used; /* used: routed, per token */
};

/* Makes XP_PERCENT a whole number and compares all with the model. *rounded (NULL: not asked): the percentage
 * was not a whole number of experts. Errors: VKMOE_ERR_ARGUMENT with the smallest or largest number that
 * works. */
enum vkmoe_status xp_budget_fit(struct xp_budget *b, const struct xp_shape *shape, bool *rounded,
                                struct vkmoe_err *err);

struct xp_shape xp_stats_shape(const struct xp_stats *s);

/* ids of n experts, the highest score first, equal ones by lower id. */
void xp_rank_order(uint32_t *ids, const struct xp_sum *score, uint32_t n);
/* The same for the random choice: a shuffle of 0 .. n - 1 that depends on seed and layer only, so that what
 * a smaller budget keeps, a larger one keeps too. */
void xp_rank_shuffle(uint32_t *ids, uint32_t n, uint64_t seed, uint32_t layer);

/* How a layer's experts are ordered. */
enum xp_order { XP_BY_PROBABILITY, XP_BY_IMPORTANCE, XP_BY_CHANCE };

/* Keeps the best experts of one layer, whose statistics s holds, in `to`. b was fitted. */
enum vkmoe_status xp_rank_layer(struct xp_subset *to, const struct xp_stats *s, uint32_t layer,
                                const struct xp_budget *b, enum xp_order order, uint64_t seed,
                                struct vkmoe_err *err);
/* Of all layers. */
enum vkmoe_status xp_rank(struct xp_subset *to, const struct xp_stats *s, const struct xp_budget *b,
                          enum xp_order order, uint64_t seed, struct vkmoe_err *err);

/* Share of a layer's probability that the subset's experts hold, and of its choices; 0 without tokens. */
double xp_rank_held(const struct xp_subset *sub, const struct xp_stats *s, uint32_t layer);
double xp_rank_chosen(const struct xp_subset *sub, const struct xp_stats *s, uint32_t layer);

#endif
