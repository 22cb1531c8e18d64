/* The hot set: which experts a workload used most, kept in a file so that a later run begins with them. */
#ifndef XP_HOT_H
#define XP_HOT_H

#include "run/model.h"

/* Writes the experts that were used, best first (format: docs/FORMATS.md). */
enum vkmoe_status xp_hot_save(const struct run_model *m, const char *path, struct vkmoe_err *err);
/* Reads such a file for the model: *list of *n table indices (layer * n_experts + expert), each once, is
 * cor_free'd by the caller. Errors: not such a file, or one of another model. */
enum vkmoe_status xp_hot_load(const struct run_model *m, const char *path, uint32_t **list, uint32_t *n,
                               struct vkmoe_err *err);

#endif
