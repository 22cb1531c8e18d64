/* Putting the experts of a carved file back where they were: who improves a few experts hands back the whole
 * model. */
#ifndef XP_MERGE_H
#define XP_MERGE_H

#include "experts/ids.h"

struct xp_merge_params {
    const char *full; /* GGUF file that holds all of small's experts */
    const char *from; /* a carved file, perhaps changed since */
    const char *out;  /* GGUF file to write; may be neither of them */
    bool dense;       /* everything else, too: embeddings, attention, norms, shared experts, head */
    bool force;       /* even where the carved file does not name full's SHA-256 as its source */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* NULL: none */
    void *progress_user;
};

struct xp_merge_result {
    uint32_t n_experts,
        n_changed;           /* routed experts of from, of all layers; those whose bytes differ from full's */
    uint32_t n_rows_changed; /* of their rows in the routers */
    uint32_t n_dense, n_dense_changed; /* other tensors; taken only with dense */
    uint64_t out_bytes;
};

/* full with the experts of from (and their rows of the routers) at their original ids. Keys are full's, and
 * vkmoe.merged.sha256, of from. Errors, VKMOE_ERR_ARGUMENT: shapes, block formats or ids that do not fit, a
 * carved file of another source (unless force). */
enum vkmoe_status xp_merge_back(const struct xp_merge_params *p, struct xp_merge_result *r,
                                struct vkmoe_err *err);

#endif
