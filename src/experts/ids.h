/* The original ids of a model's routed experts: where each one stood before the file was carved or pruned.
 * What carving, putting back and comparing match experts by. */
#ifndef XP_IDS_H
#define XP_IDS_H

#include "core/digest.h"
#include "model/model.h"

struct xp_ids {
    uint32_t n_layers;
    uint32_t n_source; /* routed experts of the original; above every id. Where the file does not say: the
                          largest id and one */
    uint32_t *first;   /* (n_layers + 1): index of a layer's first expert in original */
    uint32_t *original;
    bool stated; /* false: the file has no vkmoe.expert_ids, every expert's id is its place */
};

/* Checks vkmoe.expert_ids and vkmoe.source.expert_count against the model. xp_ids_free by the caller. */
enum vkmoe_status xp_ids_read(struct xp_ids *ids, const struct mdl_model *m, struct vkmoe_err *err);
void xp_ids_free(struct xp_ids *ids); /* zeroed or freed before: fine */
uint32_t xp_ids_original(const struct xp_ids *ids, uint32_t layer, uint32_t expert);
/* Place in the layer of the expert with that original id; XP_ABSENT: it is not there. */
#define XP_ABSENT UINT32_MAX
uint32_t xp_ids_find(const struct xp_ids *ids, uint32_t layer, uint32_t original);

/* One of the tensors that hold the experts of a layer: slices of matrices, their biases, the router's rows
 * and its biases. */
enum {
    XP_GATE,
    XP_UP,
    XP_DOWN,
    XP_GATE_BIAS,
    XP_UP_BIAS,
    XP_DOWN_BIAS,
    XP_GATE_INP,
    XP_ROUTER_BIAS,
    XP_PARTS,
    XP_OWN_PARTS = XP_GATE_INP /* those before it are the expert's */
};
/* NULL where the model has none, and in dense layers. */
const struct mdl_tensor *xp_part(const struct mdl_model *m, uint32_t layer, int part);
uint64_t xp_part_bytes(const struct mdl_model *m, uint32_t layer, int part); /* of one expert; 0: none */
uint32_t xp_part_dim(int part); /* the dimension that counts experts */
/* The layer whose experts a tensor holds, and which part it is; false: it is dense. */
bool xp_part_of(const struct mdl_model *m, const struct mdl_tensor *t, uint32_t *layer, int *part);

/* SHA-256 of the bytes of one expert as they stand in the file, gate, up, down and their biases behind each
 * other; the router's row is not in it. buf: at least xp_largest_part bytes. */
enum vkmoe_status xp_expert_digest(const struct mdl_model *m, uint32_t layer, uint32_t expert, void *buf,
                                   uint8_t digest[COR_SHA256_BYTES], struct vkmoe_err *err);
uint64_t xp_expert_bytes(const struct mdl_model *m, uint32_t layer); /* as digested */
uint64_t xp_largest_part(const struct mdl_model *m); /* of any expert; a router's row included */

#endif
