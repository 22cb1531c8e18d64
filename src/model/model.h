/* A model as its GGUF file states it: configuration, tensors by part, tokenizer. Knows no device.
 * Owns the meaning of keys and tensor names; the graph itself is in run/layer.c and, in C, model/ref.c. */
#ifndef MDL_MODEL_H
#define MDL_MODEL_H

#include "model/gguf.h"
#include "model/tokenizer.h"

enum mdl_rope { MDL_ROPE_NORM /* pairs (2i, 2i+1) */, MDL_ROPE_NEOX /* pairs (i, i + n_rot/2) */ };

struct mdl_config {
    char arch[32];            /* general.architecture; "deepseek" is the first one known */
    uint32_t n_layers;
    uint32_t dim;             /* hidden size */
    uint32_t n_heads, n_kv_heads;
    uint32_t head_dim;        /* even */
    uint32_t n_rot;           /* rotated dimensions of a head, even, at most head_dim */
    enum mdl_rope rope;
    float rope_theta;
    float rms_eps;
    uint32_t vocab_size;
    uint32_t n_ctx_train;
    uint32_t n_experts;       /* routed experts of the largest layer, at most 512; see mdl_expert_count */
    uint32_t n_experts_used;  /* routed experts per token (top-k), at most 32; smaller layers use all */
    uint32_t n_shared;        /* shared experts: one dense FFN of n_shared * ff_expert, 0: none */
    uint32_t ff_expert;       /* width of a routed expert */
    float expert_scale;       /* factor on the routed weights (expert_weights_scale) */
    bool norm_topk;           /* routed weights divided by their sum */
    uint32_t n_dense_layers;  /* leading layers with a dense FFN; must be 0 for now */
};

struct mdl_layer {
    const struct mdl_tensor *attn_norm, *q, *k, *v, *o, *ffn_norm;
    const struct mdl_tensor *gate_inp;                    /* router, (experts of the layer, dim) */
    /* dims {dim, ff, n}, {dim, ff, n}, {ff, dim, n}; n: experts of the layer */
    const struct mdl_tensor *gate_exps, *up_exps, *down_exps;
    const struct mdl_tensor *gate_sh, *up_sh, *down_sh;   /* shared expert, NULL when n_shared == 0 */
};

/* A tensor of a layer as files hold it, "blk.N.NAME.weight". */
struct mdl_part {
    const char *name;
    bool f32; /* norms and routers, whatever the type of the others */
    uint32_t n_dims;
    uint64_t dims[3]; /* row length first; 1 where there are fewer */
};

enum { MDL_LAYER_PARTS = sizeof(struct mdl_layer) / sizeof(struct mdl_tensor *) };

struct mdl_model {
    struct mdl_gguf *gguf;
    struct mdl_config config;
    const struct mdl_tensor *embed, *out_norm, *head; /* head may be embed (tied) */
    struct mdl_layer *layers;  /* n_layers */
    struct mdl_tokenizer *tok;
};

/* Opens, checks every shape against the configuration, loads the tokenizer. Takes no weights into memory. */
enum vkmoe_status mdl_open(struct mdl_model **out, const char *path, struct vkmoe_err *err);
void mdl_close(struct mdl_model *m);
/* Routed experts of a layer, 1 .. config.n_experts: fewer where vkmoe.expert_count_per_layer says so. */
uint32_t mdl_expert_count(const struct mdl_model *m, uint32_t layer);

/* The parts of every layer, in the order of struct mdl_layer's members, with c->n_experts experts; returns
 * how many there are: without shared experts the last three are not. */
size_t mdl_layer_parts(struct mdl_part parts[MDL_LAYER_PARTS], const struct mdl_config *c);

/* Byte range of expert e of a (.., .., n_experts) tensor, relative to the tensor's first byte. */
uint64_t mdl_expert_bytes(const struct mdl_tensor *t);
uint64_t mdl_expert_off(const struct mdl_tensor *t, uint32_t e);

#endif
