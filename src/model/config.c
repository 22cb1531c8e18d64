#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { EXPERTS_MAX = 512, TOP_K_MAX = 32, WIDTH_MAX = 1 << 24, LAYERS_MAX = 1 << 14 };

struct reader {
    const struct mdl_gguf *g;
    const char *path;
    const char *arch;
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

/* Keys that change the mathematics in ways this engine does not know. */
static enum vkmoe_status refuse_unknown_maths(struct reader *r)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = r->err;
    size_t prefix = strlen(r->arch);
    struct mdl_str type = {0};
    uint32_t gating = 1;
    char text[MDL_SHOW_BYTES];

    if (has(r, "rope.scaling.type"))
        TRY(mdl_gguf_str(r->g, r->key, &type, err));
    for (uint64_t i = 0; i < r->g->n_kv; i++) {
        const char *key = r->g->kv[i].key;
        const char *rest = !strncmp(key, r->arch, prefix) && key[prefix] == '.' ? key + prefix + 1 : "";

        if (!strcmp(rest, "rope.scale_linear") ||
            (!strncmp(rest, "rope.scaling.", 13) && !(type.n == 4 && !memcmp(type.p, "none", 4))))
            FAIL(VKMOE_ERR_UNSUPPORTED, "%s: RoPE scaling is not supported (key %s)", r->path,
                 mdl_show(text, key, strlen(key)));
    }
    TRY(get_u32_optional(r, "expert_gating_func", &gating, 0, UINT32_MAX));
    if (gating > 1) /* 0: not stated, 1: softmax */
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %s is %u, only softmax (1) is supported", r->path, r->key, gating);
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
    TRY(get_u32_optional(r, "attention.key_length", &c->head_dim, 2, 65536));
    value_length = c->head_dim;
    TRY(get_u32_optional(r, "attention.value_length", &value_length, 2, 65536));
    if (value_length != c->head_dim || c->head_dim % 2 || !c->head_dim)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: head sizes %u (keys) and %u (values) must be equal and even",
             r->path, c->head_dim, value_length);
    c->n_rot = c->head_dim;
    TRY(get_u32_optional(r, "rope.dimension_count", &c->n_rot, 2, c->head_dim));
    if (c->n_rot % 2)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: rope.dimension_count %u is odd", r->path, c->n_rot);
    TRY(get_f32(r, "rope.freq_base", &c->rope_theta));
    TRY(get_f32(r, "attention.layer_norm_rms_epsilon", &c->rms_eps));
done:
    return st;
}

static enum vkmoe_status read_experts(struct mdl_config *c, struct reader *r)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = r->err;

    TRY(get_u32(r, "expert_count", &c->n_experts, 1, EXPERTS_MAX));
    TRY(get_u32(r, "expert_used_count", &c->n_experts_used, 1, TOP_K_MAX));
    if (c->n_experts_used > c->n_experts)
        FAIL(VKMOE_ERR_FORMAT, "%s: expert_used_count %u is larger than expert_count %u", r->path,
             c->n_experts_used, c->n_experts);
    TRY(get_u32(r, "expert_shared_count", &c->n_shared, 0, 64));
    TRY(get_u32(r, "expert_feed_forward_length", &c->ff_expert, 1, WIDTH_MAX));
    TRY(get_f32(r, "expert_weights_scale", &c->expert_scale));
    if (has(r, "expert_weights_norm"))
        TRY(mdl_gguf_bool(r->g, r->key, &c->norm_topk, err));
    TRY(get_u32(r, "leading_dense_block_count", &c->n_dense_layers, 0, UINT32_MAX));
    if (c->n_dense_layers)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %s is %u, layers with a dense FFN are not supported", r->path,
             r->key, c->n_dense_layers);
done:
    return st;
}

enum vkmoe_status mdl_config_read(struct mdl_config *c, const struct mdl_gguf *g, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct reader r = {g, cor_file_path(g->file), c->arch, "", err};
    struct mdl_str arch;
    char text[MDL_SHOW_BYTES];

    memset(c, 0, sizeof(*c));
    TRY(mdl_gguf_str(g, "general.architecture", &arch, err));
    if (arch.n != 8 || memcmp(arch.p, "deepseek", 8))
        FAIL(VKMOE_ERR_UNSUPPORTED,
             "%s: architecture '%s' is not supported, only 'deepseek' (as EMO is written)", r.path,
             mdl_show(text, arch.p, arch.n));
    memcpy(c->arch, "deepseek", 9);
    c->rope = MDL_ROPE_NORM;
    TRY(get_u32(&r, "block_count", &c->n_layers, 1, LAYERS_MAX));
    TRY(get_u32(&r, "context_length", &c->n_ctx_train, 1, 1u << 30));
    TRY(get_u32(&r, "embedding_length", &c->dim, 1, WIDTH_MAX));
    TRY(get_u32_optional(&r, "vocab_size", &c->vocab_size, 1, 1u << 30));
    TRY(read_attention(c, &r));
    TRY(read_experts(c, &r));
    TRY(refuse_unknown_maths(&r));
done:
    return st;
}
