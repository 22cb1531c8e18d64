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

enum vkmoe_status mdl_put_config(struct mdl_gguf_writer *w, const char *name, const struct mdl_config *c,
                                 uint32_t file_type, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {
        {"deepseek.block_count", c->n_layers},
        {"deepseek.context_length", c->n_ctx_train},
        {"deepseek.embedding_length", c->dim},
        /* of dense layers, of which there are none; readers want the key */
        {"deepseek.feed_forward_length", c->ff_expert},
        {"deepseek.vocab_size", c->vocab_size},
        {"deepseek.attention.head_count", c->n_heads},
        {"deepseek.attention.head_count_kv", c->n_kv_heads},
        {"deepseek.attention.key_length", c->head_dim},
        {"deepseek.attention.value_length", c->head_dim},
        {"deepseek.rope.dimension_count", c->n_rot},
        {"deepseek.expert_count", c->n_experts},
        {"deepseek.expert_used_count", c->n_experts_used},
        {"deepseek.expert_shared_count", c->n_shared},
        {"deepseek.expert_feed_forward_length", c->ff_expert},
        {"deepseek.leading_dense_block_count", c->n_dense_layers},
    };

    TRY(mdl_gguf_put_str(w, "general.architecture", "deepseek", 8, err));
    TRY(mdl_gguf_put_str(w, "general.type", "model", 5, err));
    TRY(mdl_gguf_put_str(w, "general.name", name, strlen(name), err));
    TRY(mdl_put_type_keys(w, file_type, err));
    for (size_t i = 0; i < COR_COUNT(numbers); i++)
        TRY(mdl_gguf_put_u32(w, numbers[i].key, numbers[i].value, err));
    TRY(mdl_gguf_put_f32(w, "deepseek.attention.layer_norm_rms_epsilon", c->rms_eps, err));
    TRY(mdl_gguf_put_f32(w, "deepseek.rope.freq_base", c->rope_theta, err));
    TRY(mdl_gguf_put_f32(w, "deepseek.expert_weights_scale", c->expert_scale, err));
    TRY(mdl_gguf_put_bool(w, "deepseek.expert_weights_norm", c->norm_topk, err));
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
