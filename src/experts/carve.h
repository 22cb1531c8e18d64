/* A GGUF file with only some of a model's routed experts, renumbered; beside it pruning_metadata.json, which
 * says in the original tools' words which ones they are. Owns what both hold (docs/FORMATS.md). */
#ifndef XP_CARVE_H
#define XP_CARVE_H

#include "experts/ids.h"
#include "experts/subset.h"

enum { XP_CARVE_PATH = 4096 };

struct xp_carve_params {
    const char *model; /* GGUF file to read */
    const struct xp_subset *subset;
    const char *subset_name; /* for messages */
    const char *out;         /* GGUF file to write; may not be model or subset_name */
    bool vkmoe_only;         /* layers may keep different numbers of experts */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* NULL: none */
    void *progress_user;
};

struct xp_carve_result {
    uint32_t n_layers, n_routed, n_shared; /* n_routed: of model */
    uint32_t least, most;                  /* routed experts kept in a layer */
    uint32_t n_used;                       /* experts per token: top-k, or most where that is less */
    uint64_t in_bytes, out_bytes;          /* of the files */
    char sha256[COR_SHA256_HEX];           /* of model */
    char metadata[XP_CARVE_PATH];          /* the other file written; "": none (out is a device or a pipe) */
};

/* Expert i of a layer of the result is the ith one kept, in the order of the model; its bytes are the
 * model's. The other tensors and the keys are copied, keys that number experts are made anew. Memory does not
 * grow with the model. Both files appear whole or not at all.
 *
 * A layer may keep fewer than top-k, as in pruned checkpoints: top-k then falls for all layers. Errors:
 * VKMOE_ERR_ARGUMENT for a subset of another model, for unequal numbers without vkmoe_only (the line names
 * the number that would hold the subset), and when out is what is read; VKMOE_ERR_IO on Ctrl-C. */
enum vkmoe_status xp_carve(const struct xp_carve_params *p, struct xp_carve_result *r, struct vkmoe_err *err);

/* Bytes of the file that xp_carve would write, without writing it. p: model, subset, subset_name and
 * vkmoe_only are used; m: the model. */
enum vkmoe_status xp_carve_size(const struct xp_carve_params *p, struct mdl_model *m, uint64_t *bytes,
                                struct vkmoe_err *err);

/* Path of the metadata that belongs to a carved file: STEM.pruning_metadata.json where that is there, else
 * pruning_metadata.json in its directory where that is not there or names the file in `file`, else the first.
 */
enum vkmoe_status xp_metadata_path(char dst[XP_CARVE_PATH], const char *out, struct vkmoe_err *err);

#endif
