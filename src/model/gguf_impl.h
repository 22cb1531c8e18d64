/* What the files that read GGUF share (gguf.c, gguf_split.c). */
#ifndef MDL_GGUF_IMPL_H
#define MDL_GGUF_IMPL_H

#include "model/gguf.h"

/* One file, whatever it says of others. */
enum vkmoe_status mdl_gguf_open_one(struct mdl_gguf **out, const char *path, struct vkmoe_err *err);

#endif
