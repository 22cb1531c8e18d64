#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { EXPERTS_MAX = 512, TOP_K_MAX = 32, WIDTH_MAX = 1 << 24, LAYERS_MAX = 1 << 14, HEAD_MAX = 256 };

/* Where the width of an expert is stated. */
enum ff_key {
    FF_EXPERT, /* expert_feed_forward_length */
    FF_SHARE,  /* the same, or without it feed_forward_length / expert_used_count */
    FF_PLAIN   /* feed_forward_length */
};

/* What llama.cpp's graph of an architecture computes, beyond what keys and tensors say. */
struct arch {
    const char *name;
    enum mdl_rope rope;
    enum mdl_qk_norm qk_norm;
    enum ff_key ff;
    enum mdl_act act;
    bool dense, experts; /* may layers have a dense FFN, and experts? */
    bool norm_topk;      /* where expert_weights_norm does not say it */
    bool strict;         /* keys about experts have no defaults */
    bool scales;         /* embedding_scale, residual_scale, logit_scale */
    uint32_t needs, may; /* MDL_HAS_*; may: where the first layer has them */
};

#define BIASES (MDL_HAS_QKV_BIAS | MDL_HAS_O_BIAS)

static const struct arch archs[] = {
    {"deepseek", .rope = MDL_ROPE_NORM, .dense = true, .experts = true, .strict = true, .may = BIASES},
    {"olmoe", .rope = MDL_ROPE_NEOX, .qk_norm = MDL_QK_NORM_ROW, .ff = FF_PLAIN, .experts = true},
    {"qwen2moe", .rope = MDL_ROPE_NEOX, .ff = FF_SHARE, .experts = true, .needs = MDL_HAS_SHARED_GATE,
     .may = MDL_HAS_QKV_BIAS},
    {"qwen3moe", .rope = MDL_ROPE_NEOX, .qk_norm = MDL_QK_NORM_HEAD, .ff = FF_SHARE, .experts = true,
     .norm_topk = true},
    {"llama", .rope = MDL_ROPE_NORM, .ff = FF_PLAIN, .dense = true, .experts = true, .norm_topk = true,
     .may = BIASES},
    {"granitemoe", .rope = MDL_ROPE_NORM, .ff = FF_PLAIN, .experts = true, .norm_topk = true, .scales = true},
    {"gpt-oss", .rope = MDL_ROPE_NEOX, .act = MDL_ACT_CLAMPED, .experts = true,
     .norm_topk = true, /* its softmax over the chosen is one over all, divided by their sum */
     .needs = BIASES | MDL_HAS_ROUTER_BIAS | MDL_HAS_EXPERT_BIAS | MDL_HAS_SINKS | MDL_HAS_POST_NORM},
    {"qwen2", .rope = MDL_ROPE_NEOX, .dense = true, .may = MDL_HAS_QKV_BIAS},
    {"qwen3", .rope = MDL_ROPE_NEOX, .qk_norm = MDL_QK_NORM_HEAD, .dense = true},
};

struct reader {
    const struct mdl_gguf *g;
    const char *path;
    const char *arch;
    const struct arch *a;
    char key[128]; /* the key read last, with its architecture */
    struct vkmoe_err *err;
};

static bool has(struct reader *r, const char *key)
{
    snprintf(r->key, sizeof(r->key), "%s.%s", r->arch, key);
    return mdl_gguf_find(r->g, r->key) != NULL;
}

static enum vkmoe_status get_u32(struct reader *r, const char *key, uint32_t *v, uint32_t min, uint32_t max)
{
    enum vkmoe_status st;

    snprintf(r->key, sizeof(r->key), "%s.%s", r->arch, key);
    st = mdl_gguf_u32(r->g, r->key, v, r->err);
    if (st == VKMOE_OK && (*v < min || *v > max))
        st = cor_fail(r->err, VKMOE_ERR_UNSUPPORTED, "%s: %s is %u, not in %u..%u", r->path, r->key, *v, min,
                      max);
    return st;
}

/* Where the key is absent *v stays as it is. */
static enum vkmoe_status get_u32_optional(struct reader *r, const char *key, uint32_t *v, uint32_t min,
                                          uint32_t max)
{
    return has(r, key) ? get_u32(r, key, v, min, max) : VKMOE_OK;
}

static enum vkmoe_status get_f32(struct reader *r, const char *key, float *v)
{
    enum vkmoe_status st;

    snprintf(r->key, sizeof(r->key), "%s.%s", r->arch, key);
    st = mdl_gguf_f32(r->g, r->key, v, r->err);
    if (st == VKMOE_OK && !(*v > 0 && isfinite(*v)))
        st = cor_fail(r->err, VKMOE_ERR_UNSUPPORTED, "%s: %s is %g, not a positive number", r->path, r->key,
                      *v);
    return st;
}

static enum vkmoe_status get_f32_optional(struct reader *r, const char *key, float *v)
{
    return has(r, key) ? get_f32(r, key, v) : VKMOE_OK;
}

static bool is_word(const struct mdl_str *s, const char *word)
{
    return s->n == strlen(word) && !memcmp(s->p, word, (size_t)s->n);
}

/* Keys of RoPE scaling that the reader below does not know change the mathematics. */
static enum vkmoe_status refuse_unknown_scaling(struct reader *r)
{
    static const char *const known[] = {"type",           "factor",         "original_context_length",
                                        "finetuned",      "attn_factor",    "yarn_attn_factor",
                                        "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier"};
    const size_t prefix = strlen(r->arch);
    char text[MDL_SHOW_BYTES];

    for (uint64_t i = 0; i < r->g->n_kv; i++) {
        const char *key = r->g->kv[i].key;
        bool is_known = false;

        if (strncmp(key, r->arch, prefix) != 0 || strncmp(key + prefix, ".rope.scaling.", 14) != 0)
            continue;
        for (size_t k = 0; k < COR_COUNT(known); k++)
            is_known = is_known || !strcmp(key + prefix + 14, known[k]);
        if (!is_known)
            return cor_fail(r->err, VKMOE_ERR_UNSUPPORTED,
                            "%s: RoPE scaling of this kind is not supported (key %s)", r->path,
                            mdl_show(text, key, strlen(key)));
    }
    return VKMOE_OK;
}

static enum vkmoe_status read_yarn(struct mdl_config *c, struct reader *r)
{
    struct mdl_rope_scaling *s = &c->rope_scaling;
    enum vkmoe_status st;
    struct vkmoe_err *err = r->err;
    float factor = 1, log_multiplier = 0;

    s->yarn = true;
    s->beta_fast = 32;
    s->beta_slow = 1;
    s->n_ctx_orig = c->n_ctx_train;
    TRY(get_u32_optional(r, "rope.scaling.original_context_length", &s->n_ctx_orig, 1, 1u << 30));
    TRY(get_f32_optional(r, "rope.scaling.yarn_beta_fast", &s->beta_fast));
    TRY(get_f32_optional(r, "rope.scaling.yarn_beta_slow", &s->beta_slow));
    TRY(get_f32_optional(r, "rope.scaling.yarn_attn_factor", &factor));
    s->attn_factor = factor * (s->attn_factor > 0 ? s->attn_factor : 1);
    if (has(r, "rope.scaling.yarn_log_multiplier"))
        TRY(mdl_gguf_f32(r->g, r->key, &log_multiplier, err));
    if (log_multiplier != 0)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %s is %g, only 0 is supported", r->path, r->key, log_multiplier);
    if (s->factor < 1 || c->rope_theta <= 1)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: YaRN by %g over a base of %g is not supported", r->path, s->factor,
             c->rope_theta);
done:
    return st;
}

static enum vkmoe_status read_rope(struct mdl_config *c, struct reader *r)
{
    struct mdl_rope_scaling *s = &c->rope_scaling;
    enum vkmoe_status st;
    struct vkmoe_err *err = r->err;
    struct mdl_str type = {"linear", 6};
    float swa;
    char text[MDL_SHOW_BYTES];

    c->rope = r->a->rope;
    c->n_rot = c->head_dim;
    TRY(get_u32_optional(r, "rope.dimension_count", &c->n_rot, 2, c->head_dim));
    if (c->n_rot % 2)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: rope.dimension_count %u is odd", r->path, c->n_rot);
    c->rope_theta = 10000;
    TRY(get_f32_optional(r, "rope.freq_base", &c->rope_theta));
    swa = c->rope_theta;
    TRY(get_f32_optional(r, "rope.freq_base_swa", &swa));
    if (swa != c->rope_theta)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %s is not rope.freq_base", r->path, r->key);
    if (has(r, "rope.scaling.type"))
        TRY(mdl_gguf_str(r->g, r->key, &type, err));
    if (is_word(&type, "none"))
        return VKMOE_OK;
    if (!is_word(&type, "linear") && !is_word(&type, "yarn"))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: RoPE scaling '%s' is not supported, only none, linear and yarn",
             r->path, mdl_show(text, type.p, type.n));
    TRY(refuse_unknown_scaling(r));
    TRY(get_f32_optional(r, "rope.scale_linear", &s->factor));
    TRY(get_f32_optional(r, "rope.scaling.factor", &s->factor));
    TRY(get_f32_optional(r, "rope.scaling.attn_factor", &s->attn_factor));
    if (is_word(&type, "yarn"))
        TRY(read_yarn(c, r));
done:
    return st;
}

static enum vkmoe_status read_attention(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = r->err;
    uint32_t value_length;

    TRY(get_u32(r, "attention.head_count", &c->n_heads, 1, 65536));
    c->n_kv_heads = c->n_heads;
    TRY(get_u32_optional(r, "attention.head_count_kv", &c->n_kv_heads, 1, c->n_heads));
    if (c->n_heads % c->n_kv_heads)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %u heads are not a multiple of %u key/value heads", r->path,
             c->n_heads, c->n_kv_heads);
    c->head_dim = c->dim / c->n_heads;
    if (!has(r, "attention.key_length") && c->dim % c->n_heads)
        FAIL(VKMOE_ERR_FORMAT, "%s: %s is missing, and embedding_length %u is not a multiple of %u heads",
             r->path, r->key, c->dim, c->n_heads);
    TRY(get_u32_optional(r, "attention.key_length", &c->head_dim, 2, HEAD_MAX));
    value_length = c->head_dim;
    TRY(get_u32_optional(r, "attention.value_length", &value_length, 2, HEAD_MAX));
    if (c->head_dim > HEAD_MAX)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: heads of %u elements, at most %d are supported", r->path,
             c->head_dim, HEAD_MAX);
    if (value_length != c->head_dim || c->head_dim % 2 || !c->head_dim)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: head sizes %u (keys) and %u (values) must be equal and even",
             r->path, c->head_dim, value_length);
    TRY(get_f32(r, "attention.layer_norm_rms_epsilon", &c->rms_eps));
    TRY(get_f32_optional(r, "attention.scale", &c->attn_scale));
    c->qk_norm = r->a->qk_norm;
    if (r->a->needs & MDL_HAS_SINKS) { /* and windows */
        c->window_period = 2;
        TRY(get_u32(r, "attention.sliding_window", &c->window, 1, 1u << 30));
        TRY(get_u32_optional(r, "attention.sliding_window_pattern", &c->window_period, 1, LAYERS_MAX));
    }
    TRY(read_rope(c, r));
done:
    return st;
}

static enum vkmoe_status read_width(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st = VKMOE_OK;

    if (r->a->ff == FF_EXPERT || (r->a->ff == FF_SHARE && has(r, "expert_feed_forward_length")))
        return get_u32(r, "expert_feed_forward_length", &c->ff_expert, 1, WIDTH_MAX);
    TRY(get_u32(r, "feed_forward_length", &c->ff_expert, 1, WIDTH_MAX));
    if (r->a->ff == FF_SHARE)
        c->ff_expert /= c->n_experts_used;
    if (!c->ff_expert)
        st = cor_fail(r->err, VKMOE_ERR_FORMAT, "%s: %s is smaller than expert_used_count", r->path, r->key);
done:
    return st;
}

/* Of llama.cpp's architectures deepseek counts its shared experts; the others state a width, and qwen2moe's
 * has the one it was trained with. */
static enum vkmoe_status read_shared(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st = VKMOE_OK;

    if (r->a->strict)
        return get_u32(r, "expert_shared_count", &c->n_shared, 0, 64);
    if (!(r->a->needs & MDL_HAS_SHARED_GATE) && !r->a->scales)
        return VKMOE_OK;
    if (has(r, "expert_shared_feed_forward_length"))
        TRY(get_u32(r, "expert_shared_feed_forward_length", &c->ff_shared, 0, WIDTH_MAX));
    if (!c->ff_shared && r->a->needs & MDL_HAS_SHARED_GATE)
        TRY(get_u32(r, "feed_forward_length", &c->ff_shared, 1, WIDTH_MAX));
    c->n_shared = c->ff_shared > 0;
done:
    return st;
}

/* What layers without experts have. */
static enum vkmoe_status read_dense(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = r->err;

    if (!c->n_experts)
        c->n_dense_layers = c->n_layers;
    else if (r->a->strict)
        TRY(get_u32(r, "leading_dense_block_count", &c->n_dense_layers, 0, UINT32_MAX));
    if (c->n_dense_layers > c->n_layers || (c->n_experts && c->n_dense_layers == c->n_layers))
        FAIL(VKMOE_ERR_FORMAT, "%s: %s: %u dense layers of %u", r->path, r->key, c->n_dense_layers,
             c->n_layers);
    if (c->n_dense_layers)
        TRY(get_u32(r, "feed_forward_length", &c->ff_dense, 1, WIDTH_MAX));
done:
    return st;
}

static enum vkmoe_status read_gating(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = r->err;
    uint32_t gating = 1, groups = 0;

    TRY(get_u32_optional(r, "expert_group_count", &groups, 0, 1)); /* more would restrict the choice */
    c->norm_topk = r->a->norm_topk;
    if (has(r, "expert_weights_norm"))
        TRY(mdl_gguf_bool(r->g, r->key, &c->norm_topk, err));
    TRY(get_u32_optional(r, "expert_gating_func", &gating, 0, UINT32_MAX));
    if (gating == 3) /* softmax over the chosen */
        c->norm_topk = true;
    else if (gating > 1) /* 0: not stated, 1: softmax */
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %s is %u, only softmax (1 and 3) is supported", r->path, r->key,
             gating);
    c->expert_scale = 1;
    if (r->a->strict)
        TRY(get_f32(r, "expert_weights_scale", &c->expert_scale));
    else
        TRY(get_f32_optional(r, "expert_weights_scale", &c->expert_scale));
done:
    return st;
}

static enum vkmoe_status read_experts(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = r->err;

    if (r->a->experts && (!r->a->dense || r->a->strict || has(r, "expert_count")))
        TRY(get_u32(r, "expert_count", &c->n_experts, r->a->dense && !r->a->strict ? 0 : 1, EXPERTS_MAX));
    if (c->n_experts) {
        TRY(get_u32(r, "expert_used_count", &c->n_experts_used, 1, TOP_K_MAX));
        if (c->n_experts_used > c->n_experts)
            FAIL(VKMOE_ERR_FORMAT, "%s: expert_used_count %u is larger than expert_count %u", r->path,
                 c->n_experts_used, c->n_experts);
        TRY(read_shared(c, r));
        TRY(read_width(c, r));
        TRY(read_gating(c, r));
        c->act = r->a->act;
    }
    TRY(read_dense(c, r));
done:
    return st;
}

static enum vkmoe_status read_scales(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st = VKMOE_OK;

    if (!r->a->scales)
        return VKMOE_OK;
    TRY(get_f32_optional(r, "embedding_scale", &c->embed_scale));
    TRY(get_f32_optional(r, "residual_scale", &c->residual_scale));
    TRY(get_f32(r, "logit_scale", &c->logit_scale));
    if (c->residual_scale > 0)
        c->expert_scale *= c->residual_scale;
done:
    return st;
}

/* Biases that an architecture may have are those of the first layer; all layers must then have them. */
static void find_biases(struct mdl_config *c, const struct reader *r)
{
    c->has = r->a->needs;
    if (r->a->may & MDL_HAS_QKV_BIAS && mdl_gguf_tensor(r->g, "blk.0.attn_q.bias"))
        c->has |= MDL_HAS_QKV_BIAS;
    if (r->a->may & MDL_HAS_O_BIAS && mdl_gguf_tensor(r->g, "blk.0.attn_output.bias"))
        c->has |= MDL_HAS_O_BIAS;
}

static enum vkmoe_status find_arch(struct reader *r, struct mdl_config *c)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = r->err;
    struct mdl_str name;
    char text[MDL_SHOW_BYTES], known[256] = "";
    size_t used = 0;

    TRY(mdl_gguf_str(r->g, "general.architecture", &name, err));
    for (size_t i = 0; i < COR_COUNT(archs); i++) {
        if (is_word(&name, archs[i].name))
            r->a = &archs[i];
        used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", archs[i].name);
    }
    if (!r->a)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: architecture '%s' is not supported; known are %s", r->path,
             mdl_show(text, name.p, name.n), known);
    snprintf(c->arch, sizeof(c->arch), "%s", r->a->name);
done:
    return st;
}

enum vkmoe_status mdl_config_read(struct mdl_config *c, const struct mdl_gguf *g, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct reader r = {g, cor_file_path(g->file), c->arch, NULL, "", err};

    memset(c, 0, sizeof(*c));
    TRY(find_arch(&r, c));
    TRY(get_u32(&r, "block_count", &c->n_layers, 1, LAYERS_MAX));
    TRY(get_u32(&r, "context_length", &c->n_ctx_train, 1, 1u << 30));
    TRY(get_u32(&r, "embedding_length", &c->dim, 1, WIDTH_MAX));
    TRY(get_u32_optional(&r, "vocab_size", &c->vocab_size, 1, 1u << 30));
    TRY(read_attention(c, &r));
    TRY(read_experts(c, &r));
    TRY(read_scales(c, &r));
    find_biases(c, &r);
done:
    return st;
}
