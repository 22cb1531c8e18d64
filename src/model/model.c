#include "model/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "model/config.h"

struct binder {
    struct mdl_model *m;
    const char *path;
    uint64_t n_bound; /* tensors found; any others in the file would change the mathematics */
    struct vkmoe_err *err;
};

/* The tensor of that name, checked: dims d1 and d2 are 1 where the tensor has fewer. f32: must be F32. */
static enum vkmoe_status bind(struct binder *b, const struct mdl_tensor **out, const char *name, bool f32,
                              uint64_t d0, uint64_t d1, uint64_t d2)
{
    const struct mdl_tensor *t = mdl_gguf_tensor(b->m->gguf, name);

    *out = t;
    if (!t)
        return cor_fail(b->err, VKMOE_ERR_FORMAT, "%s: tensor %s is missing", b->path, name);
    if (!t->known)
        return cor_fail(b->err, VKMOE_ERR_UNSUPPORTED, "%s: tensor %s has type %u, which is not supported",
                        b->path, name, t->gguf_type);
    if (t->dims[0] != d0 || t->dims[1] != d1 || t->dims[2] != d2 || t->dims[3] != 1)
        return cor_fail(b->err, VKMOE_ERR_FORMAT,
                        "%s: tensor %s is %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64
                        ", the configuration needs %" PRIu64 " x %" PRIu64 " x %" PRIu64,
                        b->path, name, t->dims[0], t->dims[1], t->dims[2], t->dims[3], d0, d1, d2);
    if (f32 && t->type != MDL_F32)
        return cor_fail(b->err, VKMOE_ERR_UNSUPPORTED, "%s: tensor %s is %s, must be f32", b->path, name,
                        mdl_type_find(t->gguf_type)->name);
    b->n_bound++;
    return VKMOE_OK;
}

size_t mdl_layer_parts(struct mdl_part parts[MDL_LAYER_PARTS], const struct mdl_config *c)
{
    uint64_t dim = c->dim, q = (uint64_t)c->n_heads * c->head_dim, kv = (uint64_t)c->n_kv_heads * c->head_dim;
    uint64_t ff = c->ff_expert, sh = (uint64_t)c->n_shared * c->ff_expert, e = c->n_experts;
    const struct mdl_part all[MDL_LAYER_PARTS] = {
        {"attn_norm", true, 1, {dim, 1, 1}},        {"attn_q", false, 2, {dim, q, 1}},
        {"attn_k", false, 2, {dim, kv, 1}},         {"attn_v", false, 2, {dim, kv, 1}},
        {"attn_output", false, 2, {q, dim, 1}},     {"ffn_norm", true, 1, {dim, 1, 1}},
        {"ffn_gate_inp", true, 2, {dim, e, 1}},     {"ffn_gate_exps", false, 3, {dim, ff, e}},
        {"ffn_up_exps", false, 3, {dim, ff, e}},    {"ffn_down_exps", false, 3, {ff, dim, e}},
        {"ffn_gate_shexp", false, 2, {dim, sh, 1}}, {"ffn_up_shexp", false, 2, {dim, sh, 1}},
        {"ffn_down_shexp", false, 2, {sh, dim, 1}},
    };

    memcpy(parts, all, sizeof(all));
    return c->n_shared ? MDL_LAYER_PARTS : MDL_LAYER_PARTS - 3;
}

/* n_experts: routed experts of this layer. */
static enum vkmoe_status bind_layer(struct binder *b, uint32_t i, uint32_t n_experts)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct mdl_tensor **to = (const struct mdl_tensor **)&b->m->layers[i];
    struct mdl_config own = b->m->config;
    struct mdl_part parts[MDL_LAYER_PARTS];
    size_t n;
    char name[64];

    own.n_experts = n_experts;
    n = mdl_layer_parts(parts, &own);
    for (size_t k = 0; k < n; k++) {
        snprintf(name, sizeof(name), "blk.%u.%s.weight", i, parts[k].name);
        TRY(bind(b, &to[k], name, parts[k].f32, parts[k].dims[0], parts[k].dims[1], parts[k].dims[2]));
    }
done:
    return st;
}

/* Names the first tensor that no part of the model uses. */
static enum vkmoe_status refuse_unbound(struct binder *b)
{
    const struct mdl_model *m = b->m;
    char text[MDL_SHOW_BYTES];

    for (uint64_t i = 0; i < m->gguf->n_tensors; i++) {
        const struct mdl_tensor *t = &m->gguf->tensors[i];
        bool used = t == m->embed || t == m->out_norm || t == m->head;

        for (uint32_t k = 0; k < m->config.n_layers && !used; k++) {
            const struct mdl_tensor *const *part = (const struct mdl_tensor *const *)&m->layers[k];

            for (size_t p = 0; p < MDL_LAYER_PARTS; p++)
                used = used || part[p] == t;
        }
        if (!used)
            return cor_fail(b->err, VKMOE_ERR_UNSUPPORTED, "%s: tensor '%s' is not part of architecture %s",
                            b->path, mdl_show(text, t->name, strlen(t->name)), m->config.arch);
    }
    return VKMOE_OK;
}

/* vkmoe.expert_count_per_layer: a list of u32, one for each layer, whose largest is expert_count. *kv NULL:
 * every layer has expert_count. */
static enum vkmoe_status find_counts(const struct mdl_model *m, const struct mdl_kv **kv, const char *path,
                                     struct vkmoe_err *err)
{
    static const char key[] = "vkmoe.expert_count_per_layer";
    const struct mdl_config *c = &m->config;
    uint32_t largest = 0;

    *kv = mdl_gguf_find(m->gguf, key);
    if (!*kv)
        return VKMOE_OK;
    if ((*kv)->type != MDL_GGUF_ARRAY || (*kv)->elem_type != MDL_GGUF_U32 || (*kv)->count != c->n_layers)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is not a list of %u 32-bit numbers", path, key,
                        c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        uint32_t n = mdl_kv_u32(*kv, i);

        if (!n || n > c->n_experts)
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s: layer %u has %u experts, not 1..%u", path,
                            key, i, n, c->n_experts);
        largest = n > largest ? n : largest;
    }
    if (largest != c->n_experts)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s: at most %u experts, but expert_count is %u", path,
                        key, largest, c->n_experts);
    return VKMOE_OK;
}

static enum vkmoe_status bind_all(struct mdl_model *m, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct binder b = {m, path, 0, err};
    struct mdl_config *c = &m->config;
    const struct mdl_kv *counts;
    const struct mdl_tensor *embed = mdl_gguf_tensor(m->gguf, "token_embd.weight");

    if (!c->vocab_size && embed && embed->dims[1] <= 1u << 30)
        c->vocab_size = (uint32_t)embed->dims[1];
    TRY(bind(&b, &m->embed, "token_embd.weight", false, c->dim, c->vocab_size, 1));
    TRY(bind(&b, &m->out_norm, "output_norm.weight", true, c->dim, 1, 1));
    if (mdl_gguf_tensor(m->gguf, "output.weight"))
        TRY(bind(&b, &m->head, "output.weight", false, c->dim, c->vocab_size, 1));
    else
        m->head = m->embed; /* tied */
    if (c->n_layers > m->gguf->n_tensors)
        FAIL(VKMOE_ERR_FORMAT, "%s: %u layers, but only %" PRIu64 " tensors", path, c->n_layers,
             m->gguf->n_tensors);
    TRY(find_counts(m, &counts, path, err));
    m->layers = cor_array(c->n_layers, sizeof(*m->layers));
    if (!m->layers)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u layers", path, c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++)
        TRY(bind_layer(&b, i, counts ? mdl_kv_u32(counts, i) : c->n_experts));
    if (b.n_bound != m->gguf->n_tensors)
        TRY(refuse_unbound(&b));
done:
    return st;
}

enum vkmoe_status mdl_open(struct mdl_model **out, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_model *m = cor_zalloc(sizeof(*m));

    *out = NULL;
    if (!m)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the model", path);
    TRY(mdl_gguf_open(&m->gguf, path, err));
    TRY(mdl_config_read(&m->config, m->gguf, err));
    TRY(bind_all(m, path, err));
    TRY(mdl_tokenizer_from_gguf(&m->tok, m->gguf, err));
    if (mdl_tokenizer_size(m->tok) > m->config.vocab_size)
        FAIL(VKMOE_ERR_FORMAT, "%s: the tokenizer has %u entries, the embedding only %u rows", path,
             mdl_tokenizer_size(m->tok), m->config.vocab_size);
    *out = m;
    m = NULL;
done:
    mdl_close(m);
    return st;
}

void mdl_close(struct mdl_model *m)
{
    if (!m)
        return;
    mdl_tokenizer_close(m->tok);
    cor_free(m->layers);
    mdl_gguf_close(m->gguf);
    cor_free(m);
}

uint32_t mdl_expert_count(const struct mdl_model *m, uint32_t layer)
{
    return (uint32_t)m->layers[layer].gate_inp->dims[1];
}

uint64_t mdl_expert_bytes(const struct mdl_tensor *t)
{
    return t->bytes / t->dims[2];
}

uint64_t mdl_expert_off(const struct mdl_tensor *t, uint32_t e)
{
    return mdl_expert_bytes(t) * e;
}
