/* Hugging Face checkpoints and GGUF files to GGUF, streaming. Owns names and layout of what is written
 * (docs/FORMATS.md). */
#ifndef MDL_CONVERT_H
#define MDL_CONVERT_H

#include "model/gguf.h"
#include "model/recipe.h"

struct mdl_convert_params {
    const char *in;      /* directory (config.json, model*.safetensors, tokenizer.json) or GGUF file */
    const char *out;
    enum mdl_type type;  /* of matrices; norms and routers stay F32 */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* input bytes; NULL: none */
    void *progress_user;
    const struct mdl_recipe *recipe; /* in place of type; NULL: all matrices are of type */
    const char *imatrix; /* file of importances (imatrix.h); NULL: all columns count the same */
};

enum vkmoe_status mdl_convert(const struct mdl_convert_params *p, struct vkmoe_err *err);

#endif
