#include "model/gguf_keys.h"

#include <stdio.h>
#include <string.h>

#include "core/alloc.h"

#define PAD_BYTES 24 /* "[PAD4294967295]" and to spare */

enum vkmoe_status mdl_put_type_keys(struct mdl_gguf_writer *w, uint32_t file_type, struct vkmoe_err *err)
{
    enum vkmoe_status st;

    TRY(mdl_gguf_put_u32(w, "general.file_type", file_type, err));
    TRY(mdl_gguf_put_u32(w, "general.quantization_version", 2, err));
done:
    return st;
}

struct keys {
    struct mdl_gguf_writer *w;
    const char *arch;
    struct vkmoe_err *err;
};

static const char *full(const struct keys *k, char dst[96], const char *key)
{
    snprintf(dst, 96, "%s.%s", k->arch, key);
    return dst;
}

static enum vkmoe_status put_u32(const struct keys *k, const char *key, uint32_t value)
{
    char name[96];

    return mdl_gguf_put_u32(k->w, full(k, name, key), value, k->err);
}

static enum vkmoe_status put_f32(const struct keys *k, const char *key, float value)
{
    char name[96];

    return mdl_gguf_put_f32(k->w, full(k, name, key), value, k->err);
}

/* Keys whose absence means no. */
static enum vkmoe_status put_f32_unless_0(const struct keys *k, const char *key, float value)
{
    return value != 0 ? put_f32(k, key, value) : VKMOE_OK;
}

static enum vkmoe_status put_u32_unless_0(const struct keys *k, const char *key, uint32_t value)
{
    return value ? put_u32(k, key, value) : VKMOE_OK;
}

static enum vkmoe_status put_scaling(const struct keys *k, const struct mdl_rope_scaling *s)
{
    const char *type = s->yarn ? "yarn" : "linear";
    enum vkmoe_status st;
    char name[96];

    TRY(mdl_gguf_put_str(k->w, full(k, name, "rope.scaling.type"), type, strlen(type), k->err));
    TRY(put_f32(k, "rope.scaling.factor", s->factor));
    TRY(put_u32_unless_0(k, "rope.scaling.original_context_length", s->n_ctx_orig));
    TRY(put_f32_unless_0(k, "rope.scaling.attn_factor", s->attn_factor));
done:
    return st;
}

/* What deepseek's files do not state. */
static enum vkmoe_status put_more(const struct keys *k, const struct mdl_config *c)
{
    enum vkmoe_status st;

    TRY(put_u32_unless_0(k, "expert_shared_feed_forward_length", c->ff_shared));
    TRY(put_u32_unless_0(k, "attention.sliding_window", c->window));
    TRY(put_f32_unless_0(k, "attention.scale", c->attn_scale));
    TRY(put_f32_unless_0(k, "embedding_scale", c->embed_scale));
    TRY(put_f32_unless_0(k, "residual_scale", c->residual_scale));
    TRY(put_f32_unless_0(k, "logit_scale", c->logit_scale));
    if (c->rope_scaling.factor > 0)
        TRY(put_scaling(k, &c->rope_scaling));
done:
    return st;
}

/* Its shared experts are counted and its experts' weights scaled: keys that the other architectures' files
 * do not have. */
static bool counts_shared(const struct keys *k)
{
    return !strcmp(k->arch, "deepseek");
}

static enum vkmoe_status put_experts(const struct keys *k, const struct mdl_config *c)
{
    enum vkmoe_status st;

    TRY(put_u32(k, "expert_count", c->n_experts));
    TRY(put_u32(k, "expert_used_count", c->n_experts_used));
    if (counts_shared(k))
        TRY(put_u32(k, "expert_shared_count", c->n_shared));
    TRY(put_u32(k, "expert_feed_forward_length", c->ff_expert));
    if (counts_shared(k))
        TRY(put_u32(k, "leading_dense_block_count", c->n_dense_layers));
done:
    return st;
}

enum vkmoe_status mdl_put_config(struct mdl_gguf_writer *w, const char *name, const struct mdl_config *c,
                                 uint32_t file_type, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    const struct keys k = {w, c->arch[0] ? c->arch : "deepseek", err};
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {
        {"block_count", c->n_layers},
        {"context_length", c->n_ctx_train},
        {"embedding_length", c->dim},
        /* without dense layers readers want the key all the same */
        {"feed_forward_length", c->ff_dense ? c->ff_dense : c->ff_expert},
        {"vocab_size", c->vocab_size},
        {"attention.head_count", c->n_heads},
        {"attention.head_count_kv", c->n_kv_heads},
        {"attention.key_length", c->head_dim},
        {"attention.value_length", c->head_dim},
        {"rope.dimension_count", c->n_rot},
    };
    char key[96];

    TRY(mdl_gguf_put_str(w, "general.architecture", k.arch, strlen(k.arch), err));
    TRY(mdl_gguf_put_str(w, "general.type", "model", 5, err));
    TRY(mdl_gguf_put_str(w, "general.name", name, strlen(name), err));
    TRY(mdl_put_type_keys(w, file_type, err));
    for (size_t i = 0; i < COR_COUNT(numbers); i++)
        TRY(put_u32(&k, numbers[i].key, numbers[i].value));
    if (c->n_experts)
        TRY(put_experts(&k, c));
    TRY(put_f32(&k, "attention.layer_norm_rms_epsilon", c->rms_eps));
    TRY(put_f32(&k, "rope.freq_base", c->rope_theta));
    if (counts_shared(&k)) {
        TRY(put_f32(&k, "expert_weights_scale", c->expert_scale));
        TRY(mdl_gguf_put_bool(w, full(&k, key, "expert_weights_norm"), c->norm_topk, err));
    }
    TRY(put_more(&k, c));
done:
    return st;
}

static enum vkmoe_status put_strings(struct mdl_gguf_writer *w, const char *source, const char *key,
                                     const char *const *list, uint32_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct mdl_str *strs = cor_array(n, sizeof(*strs));

    if (!strs)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", source, key);
    for (uint32_t i = 0; i < n; i++) {
        strs[i].p = list[i];
        strs[i].n = strlen(list[i]);
    }
    TRY(mdl_gguf_put_array(w, key, MDL_GGUF_STRING, strs, n, err));
done:
    cor_free(strs);
    return st;
}

static enum vkmoe_status put_tokens(struct mdl_gguf_writer *w, const struct mdl_tokenizer_spec *t,
                                    struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n = t->n_tokens, n_pads = 0;
    const char **texts = cor_array(n, sizeof(*texts));
    int32_t *kinds = cor_array(n, sizeof(*kinds));
    char *pads = NULL;

    for (uint32_t i = 0; i < n; i++)
        n_pads += !t->text[i][0];
    pads = cor_array(n_pads, PAD_BYTES);
    if (!texts || !kinds || !pads)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u tokens", t->source, n);
    n_pads = 0;
    for (uint32_t i = 0; i < n; i++) {
        texts[i] = t->text[i];
        kinds[i] = t->kind[i];
        if (!texts[i][0]) {
            char *pad = pads + (size_t)n_pads++ * PAD_BYTES;

            snprintf(pad, PAD_BYTES, "[PAD%u]", i);
            texts[i] = pad;
            kinds[i] = MDL_TOKEN_UNUSED;
        }
    }
    TRY(put_strings(w, t->source, "tokenizer.ggml.tokens", texts, n, err));
    TRY(mdl_gguf_put_array(w, "tokenizer.ggml.token_type", MDL_GGUF_I32, kinds, n, err));
done:
    cor_free(texts);
    cor_free(kinds);
    cor_free(pads);
    return st;
}

enum vkmoe_status mdl_put_tokenizer(struct mdl_gguf_writer *w, const struct mdl_tokenizer_spec *t,
                                    int64_t pad, struct vkmoe_err *err)
{
    enum vkmoe_status st;

    TRY(mdl_gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4, err));
    TRY(mdl_gguf_put_str(w, "tokenizer.ggml.pre", t->pre, strlen(t->pre), err));
    TRY(put_tokens(w, t, err));
    TRY(put_strings(w, t->source, "tokenizer.ggml.merges", t->merges, t->n_merges, err));
    TRY(mdl_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)t->eos, err));
    if (pad >= 0)
        TRY(mdl_gguf_put_u32(w, "tokenizer.ggml.padding_token_id", (uint32_t)pad, err));
    TRY(mdl_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false, err));
done:
    return st;
}
