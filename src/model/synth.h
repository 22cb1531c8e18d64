/* Model files of known shapes with random weights: for sizes and speeds, where no trained model is at hand or
 * one would be too large to carry. What they say means nothing. */
#ifndef MDL_SYNTH_H
#define MDL_SYNTH_H

#include "model/model.h"
#include "model/recipe.h"

struct mdl_shape {
    const char *name;
    struct mdl_config config;
    uint32_t eos; /* id of the end-of-text token */
    bool lively;  /* norms in 1/2 .. 3/2 */
    bool tied;    /* the head is the embedding */
    bool rope_factors;
};

/* The nth known shape; NULL past the last. */
const struct mdl_shape *mdl_shape_at(size_t n);
const struct mdl_shape *mdl_shape_find(const char *name); /* NULL: unknown */

struct mdl_synth_params {
    const char *out;
    struct mdl_shape shape; /* a known one, or changed by the caller */
    enum mdl_type type;     /* of matrices; norms and routers stay F32 */
    const struct mdl_recipe *recipe; /* in place of type, with its replacements; NULL: all are of type */
    uint64_t seed;          /* same shape, type and seed: same bytes, on every machine */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* NULL: none */
    void *progress_user;
};

/* Writes GGUF of the shape's architecture, in bands of about 4 MiB, under a temporary name that is renamed at
 * the end. Weights are uniform around 0 (in blocks: random bits under scales that differ) with variance
 * 1 / (row length), so that values keep their size from layer to layer; embeddings have variance 1, routers
 * 4 / (row length), so that the experts of a layer are all used and unequally; norms lie in 15/16 .. 17/16,
 * biases have variance 1/4 and sinks 1. The tokenizer has a token for each byte, then made-up words that no
 * text becomes (there are no merges), then end of text; ids behind it have no string.
 *
 * Fails with VKMOE_ERR_ARGUMENT for shapes that cannot be (top-k of more than there are, rows that are not
 * whole blocks of the type, a vocabulary without room for bytes and end of text) and on Ctrl-C. */
enum vkmoe_status mdl_synth(const struct mdl_synth_params *p, struct vkmoe_err *err);

#endif
