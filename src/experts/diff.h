/* Which experts and which other tensors of two files differ, whatever was carved from them. */
#ifndef XP_DIFF_H
#define XP_DIFF_H

#include "experts/ids.h"

enum xp_diff_kind {
    XP_SAME,
    XP_DIFFERS, /* bytes or block formats */
    XP_ONLY_A,
    XP_ONLY_B
};

struct xp_diff_expert { /* one that is in a or in b */
    uint32_t layer, original;
    enum xp_diff_kind weights; /* gate, up and down */
    enum xp_diff_kind row;     /* of the router */
};

struct xp_diff_tensor {
    const char *name; /* of a's or b's index: valid while the models are open */
    enum xp_diff_kind kind;
};

struct xp_diff {
    struct xp_diff_expert *experts; /* by layer, then original id */
    struct xp_diff_tensor *tensors; /* those that hold no routed experts, in a's order, then b's */
    size_t n_experts, n_tensors;
    bool same; /* every weight of both; keys are not compared */
};

/* Both are read once. Errors: VKMOE_ERR_ARGUMENT for models of different shapes, VKMOE_ERR_IO on Ctrl-C. */
enum vkmoe_status xp_diff(struct xp_diff *d, const struct mdl_model *a, const struct mdl_model *b,
                          void (*progress)(void *user, uint64_t done, uint64_t total), void *user,
                          struct vkmoe_err *err);
void xp_diff_free(struct xp_diff *d);

#endif
