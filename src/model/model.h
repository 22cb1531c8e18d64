/* A model as its GGUF file states it: configuration, tensors by part, tokenizer. Knows no device.
 * Owns the meaning of keys and tensor names; the graph itself is in run/layer.c and, in C, model/ref.c. */
#ifndef MDL_MODEL_H
#define MDL_MODEL_H

#include "model/gguf.h"
#include "model/tokenizer.h"

enum mdl_rope { MDL_ROPE_NORM /* pairs (2i, 2i+1) */, MDL_ROPE_NEOX /* pairs (i, i + n_rot/2) */ };
enum mdl_qk_norm { MDL_QK_NORM_NONE, MDL_QK_NORM_ROW /* all heads as one row */, MDL_QK_NORM_HEAD };

/* What stands between the two halves of a feed-forward layer, of gate g and up u. */
enum mdl_act {
    MDL_ACT_SILU,    /* silu(g) * u */
    MDL_ACT_CLAMPED, /* g to at most 7, u to -7..7: g * sigmoid(1.702 g) * (u + 1) */
};
#define MDL_ACT_ALPHA 1.702f
#define MDL_ACT_LIMIT 7.0f

/* Tensors that some architectures have: bits of mdl_config.has. */
#define MDL_HAS_QKV_BIAS    1u
#define MDL_HAS_O_BIAS      2u
#define MDL_HAS_ROUTER_BIAS 4u
#define MDL_HAS_EXPERT_BIAS 8u
#define MDL_HAS_SINKS       16u /* a logit for each head that takes part in the softmax, with a value of 0 */
#define MDL_HAS_SHARED_GATE 32u /* the shared expert's output times sigmoid of a row times the input */
#define MDL_HAS_POST_NORM   64u /* the norm before the experts is called post_attention_norm */

/* How positions are stretched: model/rope.h. */
struct mdl_rope_scaling {
    float factor;               /* 0: not at all */
    bool yarn;                  /* short waves keep their length; else all are stretched by the factor */
    float attn_factor;          /* yarn, besides what follows from the factor; 0: 1 */
    float beta_fast, beta_slow; /* yarn: turns over n_ctx_orig between which the change is gradual */
    uint32_t n_ctx_orig;
};

struct mdl_config {
    char arch[32]; /* general.architecture: one of the table in config.c */
    uint32_t n_layers;
    uint32_t dim; /* hidden size */
    uint32_t n_heads, n_kv_heads;
    uint32_t head_dim; /* even */
    uint32_t n_rot;    /* rotated dimensions of a head, even, at most head_dim */
    enum mdl_rope rope;
    float rope_theta;
    struct mdl_rope_scaling rope_scaling;
    enum mdl_qk_norm qk_norm;
    float rms_eps;
    uint32_t vocab_size;
    uint32_t n_ctx_train;
    uint32_t window;         /* positions that a windowed layer sees, its own among them; 0: no windows */
    uint32_t window_period;  /* all but each last of so many layers are windowed */
    uint32_t n_experts;      /* routed experts of the largest layer, at most 512; 0: all layers are dense */
    uint32_t n_experts_used; /* routed experts per token (top-k), at most 32; smaller layers use all */
    uint32_t n_shared;       /* shared experts: one dense FFN of mdl_shared_width, 0: none */
    uint32_t ff_expert;      /* width of a routed expert */
    uint32_t ff_shared;      /* width of the shared experts; 0: n_shared * ff_expert */
    uint32_t ff_dense;       /* width of a dense layer's FFN; 0: there is none */
    float expert_scale;      /* factor on the routed weights (expert_weights_scale, residual_scale) */
    bool norm_topk;          /* routed weights divided by their sum */
    uint32_t n_dense_layers; /* leading layers with a dense FFN in place of experts; n_layers: all */
    enum mdl_act act;        /* of the experts */
    uint32_t has;            /* MDL_HAS_* */
    /* Factors, 0: none. attn_scale: on scores, in place of 1 / sqrt(head_dim). residual_scale: on what
     * attention, shared and dense FFN add to the stream; of the experts it is in expert_scale. */
    float embed_scale, attn_scale, residual_scale, logit_scale;
};

/* In the order of mdl_layer_parts. NULL where the layer has no such tensor. */
struct mdl_layer {
    const struct mdl_tensor *attn_norm, *q, *k, *v, *o, *ffn_norm;
    const struct mdl_tensor *gate_inp; /* router, (experts of the layer, dim); NULL: dense */
    /* dims {dim, ff, n}, {dim, ff, n}, {ff, dim, n}; n: experts of the layer */
    const struct mdl_tensor *gate_exps, *up_exps, *down_exps;
    const struct mdl_tensor *gate_sh, *up_sh, *down_sh; /* shared expert, or a dense layer's FFN */
    const struct mdl_tensor *q_norm, *k_norm;           /* {head_dim} or {all heads} */
    const struct mdl_tensor *q_bias, *k_bias, *v_bias, *o_bias;
    const struct mdl_tensor *sinks;                           /* {n_heads} */
    const struct mdl_tensor *router_bias;                     /* {n} */
    const struct mdl_tensor *gate_bias, *up_bias, *down_bias; /* of the experts: {ff, n} twice, {dim, n} */
    const struct mdl_tensor *shared_gate;                     /* {dim} */
};

/* A tensor of a layer as files hold it, "blk.N.NAME". */
struct mdl_part {
    const char *name; /* with .weight or .bias behind it; NULL: the layer has none */
    bool f32;         /* norms, routers and biases, whatever the type of the others */
    uint32_t n_dims;
    uint64_t dims[3]; /* row length first; 1 where there are fewer */
};

enum { MDL_LAYER_PARTS = sizeof(struct mdl_layer) / sizeof(struct mdl_tensor *) };

struct mdl_model {
    struct mdl_gguf *gguf;
    struct mdl_config config;
    const struct mdl_tensor *embed, *out_norm, *head; /* head may be embed (tied) */
    float *rope_factors;      /* (n_rot / 2): each pair's wave is so much longer; NULL: none */
    struct mdl_layer *layers; /* n_layers */
    struct mdl_tokenizer *tok;
};

/* Opens, checks every shape against the configuration, loads the tokenizer. Takes no weights into memory. */
enum vkmoe_status mdl_open(struct mdl_model **out, const char *path, struct vkmoe_err *err);
void mdl_close(struct mdl_model *m);
/* Routed experts of a layer, up to config.n_experts: fewer where vkmoe.expert_count_per_layer says so, 0 in
 * a dense layer. */
uint32_t mdl_expert_count(const struct mdl_model *m, uint32_t layer);

/* What the tensors of a layer are, with c->n_experts experts. */
void mdl_layer_parts(struct mdl_part parts[MDL_LAYER_PARTS], const struct mdl_config *c, uint32_t layer);

static inline bool mdl_is_dense(const struct mdl_config *c, uint32_t layer)
{
    return layer < c->n_dense_layers;
}

/* Width of the shared experts together, and of the feed-forward network that all tokens of a layer pass. */
static inline uint32_t mdl_shared_width(const struct mdl_config *c)
{
    return c->ff_shared ? c->ff_shared : c->n_shared * c->ff_expert;
}
static inline uint32_t mdl_ffn_width(const struct mdl_config *c, uint32_t layer)
{
    return mdl_is_dense(c, layer) ? c->ff_dense : mdl_shared_width(c);
}

/* Positions that the layer's attention looks back on, its own among them; 0: all. */
static inline uint32_t mdl_window(const struct mdl_config *c, uint32_t layer)
{
    return c->window && layer % c->window_period + 1 < c->window_period ? c->window : 0;
}

/* Byte range of expert e of a (.., .., n_experts) tensor, relative to the tensor's first byte. */
uint64_t mdl_expert_bytes(const struct mdl_tensor *t);
uint64_t mdl_expert_off(const struct mdl_tensor *t, uint32_t e);

/* The gate of the first layer with experts, or without any of the first layer: its format is called the
 * model's. */
const struct mdl_tensor *mdl_main_matrix(const struct mdl_model *m);

/* All that belongs to one expert of a layer: gate, up, down, then their biases. tensors: NULL where there is
 * none; the bytes of an expert are so many in each. */
enum { MDL_EXPERT_PARTS = 6 };
void mdl_expert_parts(const struct mdl_layer *l, const struct mdl_tensor *tensors[MDL_EXPERT_PARTS],
                      uint64_t bytes[MDL_EXPERT_PARTS]);

#endif
