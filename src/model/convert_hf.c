/* A Hugging Face EMO directory to GGUF of architecture deepseek: config.json, tensors, tokenizer.json, and
 * for pruned checkpoints pruning_metadata.json. What each key becomes stands in docs/FORMATS.md. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/log.h"
#include "model/convert_impl.h"
#include "model/json.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

enum { CONFIG_MAX = 8 << 20, PATH_BYTES = 4096, ROUTED_MAX = 512, TOP_K_MAX = 32 };

struct hf {
    struct cv_plan *p;
    struct vkmoe_err *err;
    const char *dir;
    char path[PATH_BYTES]; /* of config.json */
    cJSON *config;
    struct mdl_st *weights;
    struct mdl_tokenizer_json *tok_owner;
    struct mdl_tokenizer_spec tok;
    char arch[64];
    uint32_t dim, ff, n_layers, n_heads, n_kv_heads, head_dim, vocab, n_ctx;
    uint32_t n_experts, n_shared, n_routed, top_k; /* top_k: routed experts a token uses */
    float eps, theta;
    bool norm_topk, tied;
    uint32_t eos;
    int64_t pad;          /* -1: none */
    uint32_t *expert_ids; /* of pruned checkpoints: (n_layers, n_routed) original ids */
};

/* ---- config.json ---- */

static enum vkmoe_status require(struct hf *h, const char *key, const cJSON **v)
{
    *v = mdl_json_get(h->config, key);
    if (!*v)
        return cor_fail(h->err, VKMOE_ERR_FORMAT, "%s: key %s is missing", h->path, key);
    return VKMOE_OK;
}

static enum vkmoe_status read_u32(struct hf *h, const char *key, uint32_t min, uint32_t max, uint32_t *out)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    const cJSON *v;
    uint64_t n = 0;

    TRY(require(h, key, &v));
    if (!mdl_json_u64(v, max, &n) || n < min)
        FAIL(VKMOE_ERR_FORMAT, "%s: %s is not a whole number in %u..%u", h->path, key, min, max);
    *out = (uint32_t)n;
done:
    return st;
}

static enum vkmoe_status read_float(struct hf *h, const char *key, float *out)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    const cJSON *v;

    TRY(require(h, key, &v));
    *out = cJSON_IsNumber(v) ? (float)v->valuedouble : 0;
    if (!(*out > 0 && isfinite(*out)))
        FAIL(VKMOE_ERR_FORMAT, "%s: %s is not a positive number", h->path, key);
done:
    return st;
}

static enum vkmoe_status read_bool(struct hf *h, const char *key, bool *out)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    const cJSON *v;

    TRY(require(h, key, &v));
    if (!cJSON_IsBool(v))
        FAIL(VKMOE_ERR_FORMAT, "%s: %s is neither true nor false", h->path, key);
    *out = cJSON_IsTrue(v);
done:
    return st;
}

static bool is_known_arch(const char *name)
{
    static const char *const names[] = {"EmoForCausalLM", "emo", "FlexOlmoNoQKNormPrenormForCausalLM",
                                        "flex_olmo_noqknorm_prenorm"};

    for (size_t i = 0; i < COR_COUNT(names); i++)
        if (!strcmp(names[i], name))
            return true;
    return false;
}

static enum vkmoe_status read_arch(struct hf *h)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;
    const cJSON *list = mdl_json_get(h->config, "architectures"),
                *type = mdl_json_get(h->config, "model_type");
    const cJSON *named[2] = {cJSON_IsArray(list) ? list->child : NULL, type};
    char text[MDL_SHOW_BYTES];

    if (!named[0] && !type)
        FAIL(VKMOE_ERR_FORMAT, "%s: neither architectures nor model_type is given", h->path);
    for (int i = 0; i < 2; i++) {
        if (!named[i])
            continue;
        if (!cJSON_IsString(named[i]) || !is_known_arch(named[i]->valuestring))
            FAIL(VKMOE_ERR_UNSUPPORTED, "%s: architecture '%s' is not supported, only EmoForCausalLM",
                 h->path,
                 cJSON_IsString(named[i])
                     ? mdl_show(text, named[i]->valuestring, strlen(named[i]->valuestring))
                     : "?");
        if (!h->arch[0])
            snprintf(h->arch, sizeof(h->arch), "%s", named[i]->valuestring);
    }
done:
    return st;
}

/* An id or a list of them, of which the first is taken; below the vocabulary. */
static enum vkmoe_status read_eos(struct hf *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    const cJSON *v;
    uint64_t id = 0;

    TRY(require(h, "eos_token_id", &v));
    if (cJSON_IsArray(v))
        v = v->child;
    if (!mdl_json_u64(v, h->vocab - 1, &id))
        FAIL(VKMOE_ERR_FORMAT, "%s: eos_token_id is not a token below %u", h->path, h->vocab);
    h->eos = (uint32_t)id;
    h->pad = -1;
    v = mdl_json_get(h->config, "pad_token_id");
    if (v && mdl_json_u64(v, h->vocab - 1, &id))
        h->pad = (int64_t)id;
    else if (v && !(cJSON_IsNumber(v) && v->valuedouble == -1))
        FAIL(VKMOE_ERR_FORMAT, "%s: pad_token_id is not a token below %u", h->path, h->vocab);
done:
    return st;
}

/* A list with one count per layer, or null. Counts other than want cannot be written: GGUF's deepseek has one
 * number. */
static enum vkmoe_status check_per_layer(struct hf *h, const char *key, uint32_t want, const char *what)
{
    const cJSON *list = mdl_json_get(h->config, key), *item;
    uint32_t layer = 0;
    uint64_t n;

    if (!list)
        return VKMOE_OK;
    if (!cJSON_IsArray(list))
        return cor_fail(h->err, VKMOE_ERR_FORMAT, "%s: %s is not a list", h->path, key);
    for (item = list->child; item; item = item->next, layer++) {
        if (!mdl_json_u64(item, UINT32_MAX, &n))
            return cor_fail(h->err, VKMOE_ERR_FORMAT, "%s: %s: entry %u is not a count", h->path, key, layer);
        if (!n && want)
            return cor_fail(h->err, VKMOE_ERR_UNSUPPORTED,
                            "%s: %s: layer %u has none: dense layers are not supported", h->path, key, layer);
        if (n != want)
            return cor_fail(h->err, VKMOE_ERR_UNSUPPORTED,
                            "%s: %s: layer %u has %" PRIu64
                            " %s, others %u: differing counts cannot be written",
                            h->path, key, layer, n, what, want);
    }
    if (layer != h->n_layers)
        return cor_fail(h->err, VKMOE_ERR_FORMAT, "%s: %s has %u entries for %u layers", h->path, key, layer,
                        h->n_layers);
    return VKMOE_OK;
}

static bool is_empty_list(const cJSON *v) /* null, [], or a list of such */
{
    if (v && !cJSON_IsArray(v) && !cJSON_IsNull(v))
        return false;
    for (const cJSON *item = v ? v->child : NULL; item; item = item->next)
        if (!is_empty_list(item))
            return false;
    return true;
}

/* Settings that change the mathematics and have no place in the output. */
static enum vkmoe_status refuse_settings(struct hf *h)
{
    static const char *const must_be_off[] = {"attention_bias", "mlp_bias",          "quantization_config",
                                              "sliding_window", "logit_softcapping", "qk_norm",
                                              "use_qk_norm",    "clip_qkv"};
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;
    const cJSON *v;
    uint64_t n;

    for (size_t i = 0; i < COR_COUNT(must_be_off); i++) {
        v = mdl_json_get(h->config, must_be_off[i]);
        if (v && !cJSON_IsFalse(v))
            FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %s is not supported", h->path, must_be_off[i]);
    }
    v = mdl_json_get(h->config, "rope_scaling");
    if (v)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: rope_scaling is not supported", h->path);
    v = mdl_json_get(mdl_json_get(h->config, "rope_parameters"), "rope_type");
    if (v && !(cJSON_IsString(v) && !strcmp(v->valuestring, "default")))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: rope_parameters: rope_type is not supported", h->path);
    v = mdl_json_get(h->config, "partial_rotary_factor");
    if (v && !(cJSON_IsNumber(v) && v->valuedouble == 1))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: partial_rotary_factor is not supported", h->path);
    v = mdl_json_get(h->config, "hidden_act");
    if (!v)
        cor_log(VKMOE_LOG_WARN, "%s: hidden_act is missing; EMO's experts are SwiGLU", h->path);
    else if (!cJSON_IsString(v) || strcmp(v->valuestring, "silu"))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: hidden_act is not silu", h->path);
    if (!is_empty_list(mdl_json_get(h->config, "always_active_experts")) ||
        !is_empty_list(mdl_json_get(h->config, "always_active_experts_per_layer")))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: always_active_experts cannot be written in architecture deepseek",
             h->path);
    v = mdl_json_get(h->config, "num_local_experts");
    if (v && !(mdl_json_u64(v, UINT32_MAX, &n) && n == h->n_experts))
        FAIL(VKMOE_ERR_FORMAT, "%s: num_local_experts differs from num_experts %u", h->path, h->n_experts);
done:
    return st;
}

static enum vkmoe_status read_experts(struct hf *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    uint32_t k;

    TRY(read_u32(h, "num_experts", 0, ROUTED_MAX + 1, &h->n_experts));
    TRY(read_u32(h, "num_shared_experts", 0, ROUTED_MAX, &h->n_shared));
    TRY(read_u32(h, "num_experts_per_tok", 0, ROUTED_MAX, &k));
    TRY(read_bool(h, "norm_topk_prob", &h->norm_topk));
    if (!h->n_experts)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: num_experts is 0: dense models are not supported", h->path);
    if (h->n_shared > 1)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: num_shared_experts %u: only 0 or 1 is supported", h->path,
             h->n_shared);
    if (h->n_shared >= h->n_experts || k <= h->n_shared || k > h->n_experts)
        FAIL(VKMOE_ERR_FORMAT, "%s: num_experts_per_tok %u of num_experts %u with %u shared is not possible",
             h->path, k, h->n_experts, h->n_shared);
    h->n_routed = h->n_experts - h->n_shared;
    h->top_k = k - h->n_shared;
    if (h->n_routed > ROUTED_MAX || h->top_k > TOP_K_MAX)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %u routed experts, %u of them per token: more than %d and %d",
             h->path, h->n_routed, h->top_k, ROUTED_MAX, TOP_K_MAX);
    if (h->norm_topk && h->n_shared)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: norm_topk_prob with shared experts is not defined", h->path);
    TRY(check_per_layer(h, "num_experts_per_layer", h->n_experts, "experts"));
    TRY(check_per_layer(h, "num_shared_experts_per_layer", h->n_shared, "shared experts"));
    if (h->norm_topk || !h->n_shared)
        cor_log(VKMOE_LOG_WARN, "%s: without a shared expert or with norm_topk_prob only vkmoe runs the file",
                h->path);
done:
    return st;
}

static enum vkmoe_status read_config(struct hf *h)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;

    if ((size_t)snprintf(h->path, sizeof(h->path), "%s/config.json", h->dir) >= sizeof(h->path))
        FAIL(VKMOE_ERR_ARGUMENT, "%s: the path is too long", h->dir);
    TRY(mdl_json_load(&h->config, h->path, CONFIG_MAX, err));
    TRY(read_arch(h));
    TRY(read_u32(h, "hidden_size", 1, 1 << 24, &h->dim));
    TRY(read_u32(h, "intermediate_size", 1, 1 << 24, &h->ff));
    TRY(read_u32(h, "num_hidden_layers", 1, 1 << 14, &h->n_layers));
    TRY(read_u32(h, "num_attention_heads", 1, 1 << 16, &h->n_heads));
    TRY(read_u32(h, "num_key_value_heads", 1, 1 << 16, &h->n_kv_heads));
    TRY(read_u32(h, "vocab_size", 1, 1 << 24, &h->vocab));
    TRY(read_u32(h, "max_position_embeddings", 1, 1 << 30, &h->n_ctx));
    TRY(read_float(h, "rms_norm_eps", &h->eps));
    TRY(read_float(h, "rope_theta", &h->theta));
    TRY(read_bool(h, "tie_word_embeddings", &h->tied));
    if (mdl_json_get(h->config, "head_dim"))
        TRY(read_u32(h, "head_dim", 2, 1 << 16, &h->head_dim));
    else if (h->dim % h->n_heads)
        FAIL(VKMOE_ERR_FORMAT, "%s: hidden_size %u is not a multiple of %u heads, and head_dim is missing",
             h->path, h->dim, h->n_heads);
    else
        h->head_dim = h->dim / h->n_heads;
    if (h->head_dim % 2 || h->n_heads % h->n_kv_heads)
        FAIL(VKMOE_ERR_UNSUPPORTED,
             "%s: head_dim %u is odd, or %u heads are no multiple of %u key/value heads", h->path,
             h->head_dim, h->n_heads, h->n_kv_heads);
    TRY(read_eos(h));
    TRY(read_experts(h));
    TRY(refuse_settings(h));
done:
    return st;
}

/* ---- pruning_metadata.json ---- */

static enum vkmoe_status read_kept(struct hf *h, const char *path, const cJSON *layers)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;
    uint32_t l = 0;

    for (const cJSON *list = layers->child; list; list = list->next, l++) {
        uint32_t e = 0, *ids = h->expert_ids + (size_t)l * h->n_routed;

        if (l == h->n_layers || !cJSON_IsArray(list))
            FAIL(VKMOE_ERR_FORMAT, "%s: experts_kept_per_layer does not hold one list for each of %u layers",
                 path, h->n_layers);
        for (const cJSON *item = list->child; item; item = item->next, e++) {
            uint64_t id;

            if (e == h->n_experts || !mdl_json_u64(item, 65535, &id))
                FAIL(VKMOE_ERR_FORMAT, "%s: layer %u: entry %u is not one of %u expert ids", path, l, e,
                     h->n_experts);
            for (uint32_t k = 0; k < e && k < h->n_routed; k++)
                if (ids[k] == id)
                    FAIL(VKMOE_ERR_FORMAT, "%s: layer %u keeps expert %" PRIu64 " twice", path, l, id);
            if (e < h->n_routed) /* the shared one, last, is not written */
                ids[e] = (uint32_t)id;
        }
        if (e != h->n_experts)
            FAIL(VKMOE_ERR_FORMAT, "%s: layer %u keeps %u experts, the model has %u", path, l, e,
                 h->n_experts);
    }
    if (l != h->n_layers)
        FAIL(VKMOE_ERR_FORMAT, "%s: experts_kept_per_layer has %u lists for %u layers", path, l, h->n_layers);
done:
    return st;
}

/* Original expert ids of a pruned checkpoint; nothing where there is no such file. */
static enum vkmoe_status put_pruning(struct hf *h)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;
    cJSON *root = NULL;
    const cJSON *layers, *v;
    char path[PATH_BYTES + 32], name[256];
    uint64_t n;

    snprintf(path, sizeof(path), "%s/pruning_metadata.json", h->dir);
    if (!cor_path_exists(path))
        return VKMOE_OK;
    TRY(mdl_json_load(&root, path, CONFIG_MAX, err));
    layers = mdl_json_get(root, "experts_kept_per_layer");
    if (!cJSON_IsArray(layers))
        FAIL(VKMOE_ERR_FORMAT, "%s: experts_kept_per_layer is missing", path);
    v = mdl_json_get(root, "num_shared_experts");
    if (v && !(mdl_json_u64(v, UINT32_MAX, &n) && n == h->n_shared))
        FAIL(VKMOE_ERR_FORMAT, "%s: num_shared_experts differs from the configuration's %u", path,
             h->n_shared);
    h->expert_ids = cor_array((size_t)h->n_layers * h->n_routed, sizeof(*h->expert_ids));
    if (!h->expert_ids)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the expert ids", path);
    TRY(read_kept(h, path, layers));
    TRY(mdl_gguf_put_array(h->p->w, "vkmoe.expert_ids", MDL_GGUF_U32, h->expert_ids,
                           (uint64_t)h->n_layers * h->n_routed, err));
    v = mdl_json_get(root, "original_model");
    if (cJSON_IsString(v)) {
        cv_base_name(name, sizeof(name), v->valuestring);
        TRY(mdl_gguf_put_str(h->p->w, "vkmoe.pruning.original_model", name, strlen(name), err));
    }
    v = mdl_json_get(root, "pruning_method");
    if (cJSON_IsString(v))
        TRY(mdl_gguf_put_str(h->p->w, "vkmoe.pruning.method", v->valuestring, strlen(v->valuestring), err));
done:
    cJSON_Delete(root);
    return st;
}

/* ---- keys ---- */

static enum vkmoe_status put_model_keys(struct hf *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    struct mdl_gguf_writer *w = h->p->w;
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {
        {"deepseek.block_count", h->n_layers},
        {"deepseek.context_length", h->n_ctx},
        {"deepseek.embedding_length", h->dim},
        {"deepseek.feed_forward_length",
         h->ff}, /* of dense layers, of which there are none; readers want the key */
        {"deepseek.vocab_size", h->vocab},
        {"deepseek.attention.head_count", h->n_heads},
        {"deepseek.attention.head_count_kv", h->n_kv_heads},
        {"deepseek.attention.key_length", h->head_dim},
        {"deepseek.attention.value_length", h->head_dim},
        {"deepseek.rope.dimension_count", h->head_dim},
        {"deepseek.expert_count", h->n_routed},
        {"deepseek.expert_used_count", h->top_k},
        {"deepseek.expert_shared_count", h->n_shared},
        {"deepseek.expert_feed_forward_length", h->ff},
        {"deepseek.leading_dense_block_count", 0},
    };
    char name[256];

    cv_base_name(name, sizeof(name), h->dir);
    TRY(mdl_gguf_put_str(w, "general.architecture", "deepseek", 8, err));
    TRY(mdl_gguf_put_str(w, "general.type", "model", 5, err));
    TRY(mdl_gguf_put_str(w, "general.name", name, strlen(name), err));
    TRY(cv_put_type_keys(h->p, err));
    for (size_t i = 0; i < COR_COUNT(numbers); i++)
        TRY(mdl_gguf_put_u32(w, numbers[i].key, numbers[i].value, err));
    TRY(mdl_gguf_put_f32(w, "deepseek.attention.layer_norm_rms_epsilon", h->eps, err));
    TRY(mdl_gguf_put_f32(w, "deepseek.rope.freq_base", h->theta, err));
    TRY(mdl_gguf_put_f32(w, "deepseek.expert_weights_scale", 1, err));
    TRY(mdl_gguf_put_bool(w, "deepseek.expert_weights_norm", h->norm_topk, err));
done:
    return st;
}

static enum vkmoe_status put_strings(struct hf *h, const char *key, const char *const *list, uint32_t n)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    struct mdl_str *strs = cor_array(n, sizeof(*strs));

    if (!strs)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", h->dir, key);
    for (uint32_t i = 0; i < n; i++) {
        strs[i].p = list[i];
        strs[i].n = strlen(list[i]);
    }
    TRY(mdl_gguf_put_array(h->p->w, key, MDL_GGUF_STRING, strs, n, err));
done:
    cor_free(strs);
    return st;
}

/* Ids without a string get a unique one that marks them, as other readers refuse repeated or empty tokens. */
static enum vkmoe_status put_tokens(struct hf *h)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;
    uint32_t n = h->tok.n_tokens;
    const char **texts = cor_array(n, sizeof(*texts));
    int32_t *kinds = cor_array(n, sizeof(*kinds));
    char *pads = cor_array(n, 24);

    if (!texts || !kinds || !pads)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u tokens", h->dir, n);
    for (uint32_t i = 0; i < n; i++) {
        texts[i] = h->tok.text[i];
        kinds[i] = h->tok.kind[i];
        if (!texts[i][0]) {
            snprintf(pads + (size_t)i * 24, 24, "[PAD%u]", i);
            texts[i] = pads + (size_t)i * 24;
            kinds[i] = MDL_TOKEN_UNUSED;
        }
    }
    TRY(put_strings(h, "tokenizer.ggml.tokens", texts, n));
    TRY(mdl_gguf_put_array(h->p->w, "tokenizer.ggml.token_type", MDL_GGUF_I32, kinds, n, err));
done:
    cor_free(texts);
    cor_free(kinds);
    cor_free(pads);
    return st;
}

static enum vkmoe_status put_tokenizer(struct hf *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    struct mdl_gguf_writer *w = h->p->w;
    char path[PATH_BYTES + 32];

    snprintf(path, sizeof(path), "%s/tokenizer.json", h->dir);
    TRY(mdl_tokenizer_json_load(&h->tok_owner, &h->tok, path, h->vocab, (int32_t)h->eos, err));
    TRY(mdl_gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4, err));
    TRY(mdl_gguf_put_str(w, "tokenizer.ggml.pre", h->tok.pre, strlen(h->tok.pre), err));
    TRY(put_tokens(h));
    TRY(put_strings(h, "tokenizer.ggml.merges", h->tok.merges, h->tok.n_merges));
    TRY(mdl_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", h->eos, err));
    if (h->pad >= 0)
        TRY(mdl_gguf_put_u32(w, "tokenizer.ggml.padding_token_id", (uint32_t)h->pad, err));
    TRY(mdl_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false, err));
done:
    return st;
}

static enum vkmoe_status put_provenance(struct hf *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    struct mdl_gguf_writer *w = h->p->w;
    const struct mdl_st_tensor *embed = mdl_st_find(h->weights, "model.embed_tokens.weight");
    const char *type = embed && embed->known ? mdl_type_find((uint32_t)embed->type)->name : "unknown";
    char name[256];

    cv_base_name(name, sizeof(name), h->dir);
    TRY(mdl_gguf_put_str(w, "vkmoe.version", vkmoe_version(), strlen(vkmoe_version()), err));
    TRY(mdl_gguf_put_str(w, "vkmoe.source.name", name, strlen(name), err));
    TRY(mdl_gguf_put_str(w, "vkmoe.source.format", "safetensors", 11, err));
    TRY(mdl_gguf_put_str(w, "vkmoe.source.architecture", h->arch, strlen(h->arch), err));
    TRY(mdl_gguf_put_str(w, "vkmoe.source.type", type, strlen(type), err));
    TRY(put_pruning(h));
done:
    return st;
}

/* ---- tensors ---- */

/* The first `take` rows of the (rows, cols) matrix `name` as the next piece; rows 0: a vector of cols. */
static enum vkmoe_status add_source(struct hf *h, const char *name, uint64_t rows, uint64_t cols,
                                    uint64_t take)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    struct mdl_st_tensor *t = mdl_st_find(h->weights, name);
    struct cv_piece piece;
    bool same;

    if (!t)
        FAIL(VKMOE_ERR_FORMAT, "%s: tensor %s is missing", h->dir, name);
    if (!t->known)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: tensor %s is %s, only F32, F16 and BF16 are supported",
             cor_file_path(t->file), name, t->dtype);
    same = rows ? t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == cols
                : t->n_dims == 1 && t->dims[0] == cols;
    if (!same)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: tensor %s has %u dimensions, %" PRIu64 " x %" PRIu64 ", the configuration needs %" PRIu64
             " x %" PRIu64,
             cor_file_path(t->file), name, t->n_dims, t->dims[0], t->dims[1], rows ? rows : cols,
             rows ? cols : 0);
    t->used = true;
    piece.file = t->file;
    piece.off = t->file_off;
    piece.rows = take;
    piece.type = t->type;
    piece.name = t->name;
    TRY(cv_add_piece(h->p, &piece, err));
done:
    return st;
}

/* A whole matrix, or a vector where rows is 0 (written as F32). */
static enum vkmoe_status add_simple(struct hf *h, const char *to, const char *from, uint64_t rows,
                                    uint64_t cols, uint32_t rotate_head)
{
    enum vkmoe_status st;
    uint64_t dims[2] = {cols, rows};

    TRY(cv_add_tensor(h->p, to, rows ? cv_matrix_type(h->p, to, cols) : MDL_F32, rows ? 2 : 1, dims,
                      rotate_head, h->err));
    TRY(add_source(h, from, rows, cols, rows ? rows : 1));
done:
    return st;
}

/* One of the three matrices of all routed experts, stacked, and of the shared one. */
static enum vkmoe_status add_experts(struct hf *h, uint32_t layer, const char *part, uint64_t rows,
                                     uint64_t cols)
{
    enum vkmoe_status st;
    uint64_t dims[3] = {cols, rows, h->n_routed};
    char to[64], from[128];

    snprintf(to, sizeof(to), "blk.%u.ffn_%s_exps.weight", layer, part);
    TRY(cv_add_tensor(h->p, to, cv_matrix_type(h->p, to, cols), 3, dims, 0, h->err));
    for (uint32_t e = 0; e < h->n_routed; e++) {
        snprintf(from, sizeof(from), "model.layers.%u.mlp.experts.%u.%s_proj.weight", layer, e, part);
        TRY(add_source(h, from, rows, cols, rows));
    }
    if (!h->n_shared)
        goto done;
    snprintf(to, sizeof(to), "blk.%u.ffn_%s_shexp.weight", layer, part);
    snprintf(from, sizeof(from), "model.layers.%u.mlp.experts.%u.%s_proj.weight", layer, h->n_routed, part);
    TRY(add_simple(h, to, from, rows, cols, 0));
done:
    return st;
}

static enum vkmoe_status add_layer(struct hf *h, uint32_t layer)
{
    enum vkmoe_status st;
    uint64_t dim = h->dim, q = (uint64_t)h->n_heads * h->head_dim, kv = (uint64_t)h->n_kv_heads * h->head_dim;
    uint64_t router[2] = {dim, h->n_routed};
    const struct {
        const char *to, *from;
        uint64_t rows, cols;
        uint32_t rotate_head;
    } parts[] = {
        {"attn_norm", "pre_attention_layernorm", 0, dim, 0},
        {"attn_q", "self_attn.q_proj", q, dim, h->head_dim},
        {"attn_k", "self_attn.k_proj", kv, dim, h->head_dim},
        {"attn_v", "self_attn.v_proj", kv, dim, 0},
        {"attn_output", "self_attn.o_proj", dim, q, 0},
        {"ffn_norm", "pre_feedforward_layernorm", 0, dim, 0},
    };
    char to[64], from[128];

    for (size_t i = 0; i < COR_COUNT(parts); i++) {
        snprintf(to, sizeof(to), "blk.%u.%s.weight", layer, parts[i].to);
        snprintf(from, sizeof(from), "model.layers.%u.%s.weight", layer, parts[i].from);
        TRY(add_simple(h, to, from, parts[i].rows, parts[i].cols, parts[i].rotate_head));
    }
    snprintf(to, sizeof(to), "blk.%u.ffn_gate_inp.weight", layer);
    snprintf(from, sizeof(from), "model.layers.%u.mlp.gate.weight", layer);
    TRY(cv_add_tensor(h->p, to, MDL_F32, 2, router, 0, h->err));
    TRY(add_source(h, from, h->n_experts, dim,
                   h->n_routed)); /* the shared expert's row is dead: its weight is 1 */
    TRY(add_experts(h, layer, "gate", h->ff, dim));
    TRY(add_experts(h, layer, "up", h->ff, dim));
    TRY(add_experts(h, layer, "down", dim, h->ff));
done:
    return st;
}

/* A tensor that nothing reads would change the mathematics: a bias, a norm of q and k. */
static enum vkmoe_status refuse_unused(struct hf *h)
{
    static const char buffer[] = ".rotary_emb.inv_freq"; /* follows from rope_theta */
    char text[MDL_SHOW_BYTES];

    for (size_t i = 0; i < h->weights->n_tensors; i++) {
        const struct mdl_st_tensor *t = &h->weights->tensors[i];
        size_t n = strlen(t->name);

        if (t->used || (h->tied && !strcmp(t->name, "lm_head.weight")) ||
            (n > sizeof(buffer) && !strcmp(t->name + n - (sizeof(buffer) - 1), buffer)))
            continue;
        return cor_fail(h->err, VKMOE_ERR_UNSUPPORTED, "%s: tensor '%s' is not part of EMO as configured",
                        cor_file_path(t->file), mdl_show(text, t->name, n));
    }
    return VKMOE_OK;
}

static enum vkmoe_status add_tensors(struct hf *h)
{
    enum vkmoe_status st;
    const char *head = h->tied ? "model.embed_tokens.weight" : "lm_head.weight";

    TRY(add_simple(h, "token_embd.weight", "model.embed_tokens.weight", h->vocab, h->dim, 0));
    TRY(add_simple(h, "output_norm.weight", "model.norm.weight", 0, h->dim, 0));
    TRY(add_simple(h, "output.weight", head, h->vocab, h->dim,
                   0)); /* tied ones are written twice: llama.cpp wants both */
    for (uint32_t i = 0; i < h->n_layers; i++)
        TRY(add_layer(h, i));
    TRY(refuse_unused(h));
done:
    return st;
}

enum vkmoe_status cv_from_hf(struct cv_plan *p, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct hf *h = cor_zalloc(sizeof(*h));

    if (!h)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory to convert", p->params->in);
    h->p = p;
    h->err = err;
    h->dir = p->params->in;
    TRY(read_config(h));
    TRY(mdl_st_open(&h->weights, h->dir, err));
    TRY(add_tensors(h));
    TRY(put_model_keys(h));
    TRY(put_tokenizer(h));
    TRY(put_provenance(h));
    TRY(cv_run(p, err));
    TRY(mdl_st_unchanged(h->weights, err));
done:
    mdl_st_close(h->weights);
    mdl_tokenizer_json_free(h->tok_owner);
    cJSON_Delete(h->config);
    cor_free(h->expert_ids);
    cor_free(h);
    return st;
}
