#include "model/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "model/config.h"

#define ROPE_FACTORS "rope_freqs.weight"

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

void mdl_layer_parts(struct mdl_part parts[MDL_LAYER_PARTS], const struct mdl_config *c, uint32_t layer)
{
    const bool dense = mdl_is_dense(c, layer), moe = !dense, rows = c->qk_norm == MDL_QK_NORM_ROW;
    const bool ffn = mdl_ffn_width(c, layer) > 0, norms = c->qk_norm != MDL_QK_NORM_NONE;
    const bool qkv = c->has & MDL_HAS_QKV_BIAS, bias = moe && c->has & MDL_HAS_EXPERT_BIAS;
    uint64_t dim = c->dim, d = c->head_dim, q = c->n_heads * d, kv = c->n_kv_heads * d;
    uint64_t ff = c->ff_expert, sh = mdl_ffn_width(c, layer), e = c->n_experts;
    const struct {
        bool here;
        struct mdl_part part;
    } all[MDL_LAYER_PARTS] = {
        {true, {"attn_norm.weight", true, 1, {dim, 1, 1}}},
        {true, {"attn_q.weight", false, 2, {dim, q, 1}}},
        {true, {"attn_k.weight", false, 2, {dim, kv, 1}}},
        {true, {"attn_v.weight", false, 2, {dim, kv, 1}}},
        {true, {"attn_output.weight", false, 2, {q, dim, 1}}},
        {true,
         {c->has & MDL_HAS_POST_NORM ? "post_attention_norm.weight" : "ffn_norm.weight",
          true,
          1,
          {dim, 1, 1}}},
        {moe, {"ffn_gate_inp.weight", true, 2, {dim, e, 1}}},
        {moe, {"ffn_gate_exps.weight", false, 3, {dim, ff, e}}},
        {moe, {"ffn_up_exps.weight", false, 3, {dim, ff, e}}},
        {moe, {"ffn_down_exps.weight", false, 3, {ff, dim, e}}},
        {ffn, {dense ? "ffn_gate.weight" : "ffn_gate_shexp.weight", false, 2, {dim, sh, 1}}},
        {ffn, {dense ? "ffn_up.weight" : "ffn_up_shexp.weight", false, 2, {dim, sh, 1}}},
        {ffn, {dense ? "ffn_down.weight" : "ffn_down_shexp.weight", false, 2, {sh, dim, 1}}},
        {norms, {"attn_q_norm.weight", true, 1, {rows ? q : d, 1, 1}}},
        {norms, {"attn_k_norm.weight", true, 1, {rows ? kv : d, 1, 1}}},
        {qkv, {"attn_q.bias", true, 1, {q, 1, 1}}},
        {qkv, {"attn_k.bias", true, 1, {kv, 1, 1}}},
        {qkv, {"attn_v.bias", true, 1, {kv, 1, 1}}},
        {c->has & MDL_HAS_O_BIAS, {"attn_output.bias", true, 1, {dim, 1, 1}}},
        {c->has & MDL_HAS_SINKS, {"attn_sinks.weight", true, 1, {c->n_heads, 1, 1}}},
        {moe && c->has & MDL_HAS_ROUTER_BIAS, {"ffn_gate_inp.bias", true, 1, {e, 1, 1}}},
        {bias, {"ffn_gate_exps.bias", true, 2, {ff, e, 1}}},
        {bias, {"ffn_up_exps.bias", true, 2, {ff, e, 1}}},
        {bias, {"ffn_down_exps.bias", true, 2, {dim, e, 1}}},
        {moe && c->has & MDL_HAS_SHARED_GATE, {"ffn_gate_inp_shexp.weight", true, 1, {dim, 1, 1}}},
    };

    for (size_t i = 0; i < MDL_LAYER_PARTS; i++) {
        parts[i] = all[i].part;
        if (!all[i].here)
            parts[i].name = NULL;
    }
}

/* n_experts: routed experts of this layer. */
static enum vkmoe_status bind_layer(struct binder *b, uint32_t i, uint32_t n_experts)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct mdl_tensor **to = (const struct mdl_tensor **)&b->m->layers[i];
    struct mdl_config own = b->m->config;
    struct mdl_part parts[MDL_LAYER_PARTS];
    char name[64];

    own.n_experts = n_experts;
    mdl_layer_parts(parts, &own, i);
    for (size_t k = 0; k < MDL_LAYER_PARTS; k++) {
        if (!parts[k].name)
            continue;
        snprintf(name, sizeof(name), "blk.%u.%s", i, parts[k].name);
        TRY(bind(b, &to[k], name, parts[k].f32, parts[k].dims[0], parts[k].dims[1], parts[k].dims[2]));
    }
done:
    return st;
}

/* Tensors that files of these architectures may hold and no graph reads. */
static bool is_unused(const char *name)
{
    uint32_t layer;
    int end = 0;

    return sscanf(name, "blk.%u.%n", &layer, &end) == 1 && end && !strcmp(name + end, "attn_rot_embd.weight");
}

/* Names the first tensor that no part of the model uses: it would change the mathematics. */
static enum vkmoe_status refuse_unbound(struct binder *b)
{
    const struct mdl_model *m = b->m;
    char text[MDL_SHOW_BYTES];

    for (uint64_t i = 0; i < m->gguf->n_tensors; i++) {
        const struct mdl_tensor *t = &m->gguf->tensors[i];
        bool used = t == m->embed || t == m->out_norm || t == m->head || is_unused(t->name) ||
                    (m->rope_factors && !strcmp(t->name, ROPE_FACTORS));

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

        if (n > c->n_experts || !n != mdl_is_dense(c, i))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s: layer %u has %u experts, not %s%u", path, key,
                            i, n, mdl_is_dense(c, i) ? "0 of " : "1..", c->n_experts);
        largest = n > largest ? n : largest;
    }
    if (largest != c->n_experts)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s: at most %u experts, but expert_count is %u", path,
                        key, largest, c->n_experts);
    return VKMOE_OK;
}

/* llama3's waves: how much longer each pair's is. */
static enum vkmoe_status read_rope_factors(struct binder *b)
{
    const struct mdl_config *c = &b->m->config;
    const struct mdl_tensor *t = mdl_gguf_tensor(b->m->gguf, ROPE_FACTORS);
    const uint32_t n = c->n_rot / 2;
    struct vkmoe_err *err = b->err;
    enum vkmoe_status st = VKMOE_OK;

    if (!t || c->rope != MDL_ROPE_NORM) /* graphs with the other kind of pairs do not read it */
        return VKMOE_OK;
    TRY(bind(b, &t, ROPE_FACTORS, true, n, 1, 1));
    b->m->rope_factors = cor_array(n, sizeof(float));
    if (!b->m->rope_factors)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", b->path, ROPE_FACTORS);
    TRY(mdl_gguf_read(b->m->gguf, t, 0, b->m->rope_factors, n * sizeof(float), err));
    for (uint32_t i = 0; i < n; i++)
        if (!(b->m->rope_factors[i] > 0 && isfinite(b->m->rope_factors[i])))
            FAIL(VKMOE_ERR_FORMAT, "%s: %s: factor %u is %g, not a positive number", b->path, ROPE_FACTORS, i,
                 (double)b->m->rope_factors[i]);
done:
    return st;
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
    TRY(read_rope_factors(&b));
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
    cor_free(m->rope_factors);
    mdl_gguf_close(m->gguf);
    cor_free(m);
}

uint32_t mdl_expert_count(const struct mdl_model *m, uint32_t layer)
{
    const struct mdl_tensor *router = m->layers[layer].gate_inp;

    return router ? (uint32_t)router->dims[1] : 0;
}

uint64_t mdl_expert_bytes(const struct mdl_tensor *t)
{
    return t->bytes / t->dims[2];
}

uint64_t mdl_expert_off(const struct mdl_tensor *t, uint32_t e)
{
    return mdl_expert_bytes(t) * e;
}

void mdl_expert_parts(const struct mdl_layer *l, const struct mdl_tensor *tensors[MDL_EXPERT_PARTS],
                      uint64_t bytes[MDL_EXPERT_PARTS])
{
    const struct mdl_tensor *const all[MDL_EXPERT_PARTS] = {l->gate_exps, l->up_exps, l->down_exps,
                                                            l->gate_bias, l->up_bias, l->down_bias};

    for (int i = 0; i < MDL_EXPERT_PARTS; i++) {
        tensors[i] = all[i];
        bytes[i] = all[i] ? all[i]->bytes / all[i]->dims[i < 3 ? 2 : 1] : 0;
    }
}

const struct mdl_tensor *mdl_main_matrix(const struct mdl_model *m)
{
    const uint32_t dense = m->config.n_dense_layers;

    return dense < m->config.n_layers ? m->layers[dense].gate_exps : m->layers[0].gate_sh;
}
