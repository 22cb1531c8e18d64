/* Which format each matrix of a file is written in: one for all, llama.cpp's usual mixes, or one for experts
 * and one for the rest. Knows names of tensors; writes nothing. */
#ifndef MDL_RECIPE_H
#define MDL_RECIPE_H

#include "model/quant.h"

enum mdl_mix {
    MDL_MIX_NONE, /* one format */
    MDL_MIX_S,
    MDL_MIX_M,
    MDL_MIX_L
};

struct mdl_recipe {
    enum mdl_type type; /* of most matrices */
    enum mdl_mix mix;
    uint32_t file_type; /* general.file_type */
    bool has_experts, has_dense;
    enum mdl_type experts, dense; /* with has_*: of routed experts, of all other matrices */
};

void mdl_recipe_plain(struct mdl_recipe *r, enum mdl_type type);
/* Formats (q4_k) and mixes (q4_k_m), any case. False: unknown. */
bool mdl_recipe_parse(struct mdl_recipe *r, const char *name);
/* "f32, ..., q4_k_s, q4_k_m": returns dst, of n bytes. */
char *mdl_recipe_names(char *dst, size_t n);
/* What choices depend on besides the tensor. tied: the embedding is the output head too. */
struct mdl_recipe_model {
    uint32_t n_layers, n_experts;
    bool tied;
};

/* For a matrix with rows of cols elements; norms and routers are the caller's. wish: what the recipe says;
 * type: the same, but blocks that do not fit the rows are replaced as llama.cpp replaces them. */
enum mdl_type mdl_recipe_wish(const struct mdl_recipe *r, const struct mdl_recipe_model *m,
                              const char *tensor, uint64_t cols);
enum mdl_type mdl_recipe_type(const struct mdl_recipe *r, const struct mdl_recipe_model *m,
                              const char *tensor, uint64_t cols);

#endif
