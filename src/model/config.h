/* The configuration of a model as its GGUF keys state it. Owns which keys are read and which values can be
 * run. */
#ifndef MDL_CONFIG_H
#define MDL_CONFIG_H

#include "model/model.h"

/* Reads and checks every key that fixes shapes or mathematics. What an architecture computes beyond them is a
 * table in config.c; where a key is absent llama.cpp's default for that architecture holds, and deepseek's
 * keys about experts have none. vocab_size is 0 where it is not stated: the caller takes the embedding's
 * rows. */
enum vkmoe_status mdl_config_read(struct mdl_config *c, const struct mdl_gguf *g, struct vkmoe_err *err);

#endif
