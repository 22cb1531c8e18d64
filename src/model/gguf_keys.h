/* The keys of a model's GGUF file, written in one order by all that make files; config.c and tokenizer_gguf.c
 * read them. Tensors are the caller's. */
#ifndef MDL_GGUF_KEYS_H
#define MDL_GGUF_KEYS_H

#include "model/model.h"

/* general.file_type and general.quantization_version of a file whose matrices are of that type. */
enum vkmoe_status mdl_put_type_keys(struct mdl_gguf_writer *w, uint32_t file_type, struct vkmoe_err *err);
/* general.* and the architecture's keys (c->arch, "": deepseek): every value of c that it states. */
enum vkmoe_status mdl_put_config(struct mdl_gguf_writer *w, const char *name, const struct mdl_config *c,
                                 uint32_t file_type, struct vkmoe_err *err);
/* tokenizer.ggml.*. Ids without a string get a unique one that marks them, as other readers refuse repeated
 * or empty tokens. pad: padding token, -1: none. t->eos must be a token. */
enum vkmoe_status mdl_put_tokenizer(struct mdl_gguf_writer *w, const struct mdl_tokenizer_spec *t,
                                    int64_t pad, struct vkmoe_err *err);

#endif
