/* The configuration of a model as its GGUF keys state it. Owns which keys are read and which values can be
 * run. */
#ifndef MDL_CONFIG_H
#define MDL_CONFIG_H

#include "model/model.h"

/* Reads and checks every key that fixes shapes or mathematics; a missing one is an error, never a default.
 * Optional: head sizes (dim / heads), rope.dimension_count (the whole head), head_count_kv (head_count),
 * expert_weights_norm (false), vocab_size (0: the caller takes the embedding's rows). */
enum vkmoe_status mdl_config_read(struct mdl_config *c, const struct mdl_gguf *g, struct vkmoe_err *err);

#endif
