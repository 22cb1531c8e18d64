/* A Hugging Face EMO configuration: every key that fixes shapes or mathematics is required, and what the
 * output cannot represent is refused. */
#include "model/hf_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/log.h"
#include "model/gguf.h"
#include "model/json.h"

enum { CONFIG_MAX = 8 << 20, ROUTED_MAX = 512, TOP_K_MAX = 32 };

struct hf_reader {
    struct hf_config *c;
    const char *path; /* of config.json */
    cJSON *config;
    struct vkmoe_err *err;
};

static enum vkmoe_status require(struct hf_reader *h, const char *key, const cJSON **v)
{
    *v = mdl_json_get(h->config, key);
    if (!*v)
        return cor_fail(h->err, VKMOE_ERR_FORMAT, "%s: key %s is missing", h->path, key);
    return VKMOE_OK;
}

static enum vkmoe_status read_u32(struct hf_reader *h, const char *key, uint32_t min, uint32_t max,
                                  uint32_t *out)
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

static enum vkmoe_status read_float(struct hf_reader *h, const char *key, float *out)
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

static enum vkmoe_status read_bool(struct hf_reader *h, const char *key, bool *out)
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

static enum vkmoe_status read_arch(struct hf_reader *h)
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
        if (!h->c->arch[0])
            snprintf(h->c->arch, sizeof(h->c->arch), "%s", named[i]->valuestring);
    }
done:
    return st;
}

/* An id or a list of them, of which the first is taken; below the vocabulary. */
static enum vkmoe_status read_eos(struct hf_reader *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    const cJSON *v;
    uint64_t id = 0;

    TRY(require(h, "eos_token_id", &v));
    if (cJSON_IsArray(v))
        v = v->child;
    if (!mdl_json_u64(v, h->c->vocab - 1, &id))
        FAIL(VKMOE_ERR_FORMAT, "%s: eos_token_id is not a token below %u", h->path, h->c->vocab);
    h->c->eos = (uint32_t)id;
    h->c->pad = -1;
    v = mdl_json_get(h->config, "pad_token_id");
    if (v && mdl_json_u64(v, h->c->vocab - 1, &id))
        h->c->pad = (int64_t)id;
    else if (v && !(cJSON_IsNumber(v) && v->valuedouble == -1))
        FAIL(VKMOE_ERR_FORMAT, "%s: pad_token_id is not a token below %u", h->path, h->c->vocab);
done:
    return st;
}

/* A list with one count per layer, or null. counts (n_layers): where to, NULL: each must be want. */
static enum vkmoe_status read_per_layer(struct hf_reader *h, const char *key, uint32_t want, uint32_t *counts,
                                        const char *what)
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
        if (counts && (n <= h->c->n_shared || n > ROUTED_MAX + h->c->n_shared))
            return cor_fail(h->err, VKMOE_ERR_UNSUPPORTED,
                            "%s: %s: layer %u has %" PRIu64 " %s, %u of them shared: not supported", h->path,
                            key, layer, n, what, h->c->n_shared);
        if (!counts && n != want)
            return cor_fail(h->err, VKMOE_ERR_UNSUPPORTED,
                            "%s: %s: layer %u has %" PRIu64
                            " %s, others %u: differing counts cannot be written",
                            h->path, key, layer, n, what, want);
        if (counts && layer < h->c->n_layers)
            counts[layer] = (uint32_t)n;
    }
    if (layer != h->c->n_layers)
        return cor_fail(h->err, VKMOE_ERR_FORMAT, "%s: %s has %u entries for %u layers", h->path, key, layer,
                        h->c->n_layers);
    return VKMOE_OK;
}

/* num_experts is then that of some layer (the original's scripts write the smallest). */
static enum vkmoe_status read_counts(struct hf_reader *h)
{
    static const char key[] = "num_experts_per_layer";
    uint32_t stated = h->c->n_experts, most = 0;
    struct vkmoe_err *err = h->err;
    enum vkmoe_status st = VKMOE_OK;
    bool found = false, equal = true;

    if (!mdl_json_get(h->config, key))
        return VKMOE_OK;
    h->c->n_of_layer = cor_array(h->c->n_layers, sizeof(*h->c->n_of_layer));
    if (!h->c->n_of_layer)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u layers", h->path, h->c->n_layers);
    TRY(read_per_layer(h, key, stated, h->c->n_of_layer, "experts"));
    for (uint32_t l = 0; l < h->c->n_layers; l++) {
        uint32_t n = h->c->n_of_layer[l];

        most = n > most ? n : most;
        found = found || n == stated;
        equal = equal && n == stated;
    }
    if (!found)
        FAIL(VKMOE_ERR_FORMAT, "%s: %s: no layer has %u experts, as num_experts says", h->path, key, stated);
    h->c->n_experts = most;
    if (!equal) {
        cor_log(VKMOE_LOG_WARN, "%s: layers differ in their number of experts: only vkmoe runs the file",
                h->path);
    } else {
        cor_free(h->c->n_of_layer);
        h->c->n_of_layer = NULL;
    }
done:
    return st;
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
static enum vkmoe_status refuse_settings(struct hf_reader *h)
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
    if (v && !h->c->n_of_layer && !(mdl_json_u64(v, UINT32_MAX, &n) && n == h->c->n_experts))
        FAIL(VKMOE_ERR_FORMAT, "%s: num_local_experts differs from num_experts %u", h->path, h->c->n_experts);
done:
    return st;
}

static enum vkmoe_status read_experts(struct hf_reader *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    uint32_t k;

    TRY(read_u32(h, "num_experts", 0, ROUTED_MAX + 1, &h->c->n_experts));
    TRY(read_u32(h, "num_shared_experts", 0, ROUTED_MAX, &h->c->n_shared));
    TRY(read_u32(h, "num_experts_per_tok", 0, ROUTED_MAX, &k));
    TRY(read_bool(h, "norm_topk_prob", &h->c->norm_topk));
    if (!h->c->n_experts)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: num_experts is 0: dense models are not supported", h->path);
    if (h->c->n_shared > 1)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: num_shared_experts %u: only 0 or 1 is supported", h->path,
             h->c->n_shared);
    TRY(read_counts(h));
    if (h->c->n_shared >= h->c->n_experts || k <= h->c->n_shared || k > h->c->n_experts)
        FAIL(VKMOE_ERR_FORMAT, "%s: num_experts_per_tok %u of num_experts %u with %u shared is not possible",
             h->path, k, h->c->n_experts, h->c->n_shared);
    h->c->n_routed = h->c->n_experts - h->c->n_shared;
    h->c->top_k = k - h->c->n_shared;
    if (h->c->n_routed > ROUTED_MAX || h->c->top_k > TOP_K_MAX)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: %u routed experts, %u of them per token: more than %d and %d",
             h->path, h->c->n_routed, h->c->top_k, ROUTED_MAX, TOP_K_MAX);
    if (h->c->norm_topk && h->c->n_shared)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: norm_topk_prob with shared experts is not defined", h->path);
    TRY(read_per_layer(h, "num_shared_experts_per_layer", h->c->n_shared, NULL, "shared experts"));
    if (h->c->norm_topk || !h->c->n_shared)
        cor_log(VKMOE_LOG_WARN, "%s: without a shared expert or with norm_topk_prob only vkmoe runs the file",
                h->path);
done:
    return st;
}

static enum vkmoe_status read_all(struct hf_reader *h)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;

    TRY(mdl_json_load(&h->config, h->path, CONFIG_MAX, err));
    TRY(read_arch(h));
    TRY(read_u32(h, "hidden_size", 1, 1 << 24, &h->c->dim));
    TRY(read_u32(h, "intermediate_size", 1, 1 << 24, &h->c->ff));
    TRY(read_u32(h, "num_hidden_layers", 1, 1 << 14, &h->c->n_layers));
    TRY(read_u32(h, "num_attention_heads", 1, 1 << 16, &h->c->n_heads));
    TRY(read_u32(h, "num_key_value_heads", 1, 1 << 16, &h->c->n_kv_heads));
    TRY(read_u32(h, "vocab_size", 1, 1 << 24, &h->c->vocab));
    TRY(read_u32(h, "max_position_embeddings", 1, 1 << 30, &h->c->n_ctx));
    TRY(read_float(h, "rms_norm_eps", &h->c->eps));
    TRY(read_float(h, "rope_theta", &h->c->theta));
    TRY(read_bool(h, "tie_word_embeddings", &h->c->tied));
    if (mdl_json_get(h->config, "head_dim"))
        TRY(read_u32(h, "head_dim", 2, 1 << 16, &h->c->head_dim));
    else if (h->c->dim % h->c->n_heads)
        FAIL(VKMOE_ERR_FORMAT, "%s: hidden_size %u is not a multiple of %u heads, and head_dim is missing",
             h->path, h->c->dim, h->c->n_heads);
    else
        h->c->head_dim = h->c->dim / h->c->n_heads;
    if (h->c->head_dim % 2 || h->c->n_heads % h->c->n_kv_heads)
        FAIL(VKMOE_ERR_UNSUPPORTED,
             "%s: head_dim %u is odd, or %u heads are no multiple of %u key/value heads", h->path,
             h->c->head_dim, h->c->n_heads, h->c->n_kv_heads);
    TRY(read_eos(h));
    TRY(read_experts(h));
    TRY(refuse_settings(h));
done:
    return st;
}

enum vkmoe_status hf_config_read(struct hf_config *c, const char *path, struct vkmoe_err *err)
{
    struct hf_reader h = {c, path, NULL, err};
    enum vkmoe_status st;

    memset(c, 0, sizeof(*c));
    st = read_all(&h);
    cJSON_Delete(h.config);
    return st;
}

void hf_config_free(struct hf_config *c)
{
    cor_free(c->n_of_layer);
    c->n_of_layer = NULL;
}
