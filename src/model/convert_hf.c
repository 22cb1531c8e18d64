/* A Hugging Face EMO directory to GGUF of architecture deepseek: config.json, tensors, tokenizer.json, and
 * for pruned checkpoints pruning_metadata.json. What each key becomes stands in docs/FORMATS.md. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "model/convert_impl.h"
#include "model/gguf_keys.h"
#include "model/hf_config.h"
#include "model/json.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

enum { METADATA_MAX = 8 << 20, PATH_BYTES = 4096 };

struct hf {
    struct cv_plan *p;
    struct vkmoe_err *err;
    const char *dir;
    struct hf_config c;
    struct mdl_st *weights;
    struct mdl_tokenizer_json *tok_owner;
    struct mdl_tokenizer_spec tok;
    uint32_t *expert_ids; /* of pruned checkpoints: original ids of the routed experts, layer by layer */
    uint32_t n_source;    /* routed experts of the original: ids of shared ones follow; 0: not known */
};

/* Experts of a layer, the shared one included. */
static uint32_t n_total(const struct hf *h, uint32_t layer)
{
    return h->c.n_of_layer ? h->c.n_of_layer[layer] : h->c.n_experts;
}

static uint32_t n_routed(const struct hf *h, uint32_t layer)
{
    return n_total(h, layer) - h->c.n_shared;
}

/* ---- pruning_metadata.json ---- */

static enum vkmoe_status read_kept(struct hf *h, const char *path, const cJSON *layers)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = h->err;
    uint32_t l = 0, *ids = h->expert_ids;

    for (const cJSON *list = layers->child; list; list = list->next, l++) {
        uint32_t e = 0, total, routed;

        if (l == h->c.n_layers || !cJSON_IsArray(list))
            FAIL(VKMOE_ERR_FORMAT, "%s: experts_kept_per_layer does not hold one list for each of %u layers",
                 path, h->c.n_layers);
        total = n_total(h, l);
        routed = n_routed(h, l);
        for (const cJSON *item = list->child; item; item = item->next, e++) {
            uint64_t id;

            if (e == total || !mdl_json_u64(item, 65535, &id))
                FAIL(VKMOE_ERR_FORMAT, "%s: layer %u: entry %u is not one of %u expert ids", path, l, e,
                     total);
            for (uint32_t k = 0; k < e && k < routed; k++)
                if (ids[k] == id)
                    FAIL(VKMOE_ERR_FORMAT, "%s: layer %u keeps expert %" PRIu64 " twice", path, l, id);
            if (e < routed) /* the shared one, last, is not written */
                ids[e] = (uint32_t)id;
            else if (e == routed)
                h->n_source = (uint32_t)id;
        }
        if (e != total)
            FAIL(VKMOE_ERR_FORMAT, "%s: layer %u keeps %u experts, the model has %u", path, l, e, total);
        ids += routed;
    }
    if (l != h->c.n_layers)
        FAIL(VKMOE_ERR_FORMAT, "%s: experts_kept_per_layer has %u lists for %u layers", path, l,
             h->c.n_layers);
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
    uint64_t n, n_ids = 0;

    snprintf(path, sizeof(path), "%s/pruning_metadata.json", h->dir);
    if (!cor_path_exists(path))
        return VKMOE_OK;
    TRY(mdl_json_load(&root, path, METADATA_MAX, err));
    layers = mdl_json_get(root, "experts_kept_per_layer");
    if (!cJSON_IsArray(layers))
        FAIL(VKMOE_ERR_FORMAT, "%s: experts_kept_per_layer is missing", path);
    v = mdl_json_get(root, "num_shared_experts");
    if (v && !(mdl_json_u64(v, UINT32_MAX, &n) && n == h->c.n_shared))
        FAIL(VKMOE_ERR_FORMAT, "%s: num_shared_experts differs from the configuration's %u", path,
             h->c.n_shared);
    for (uint32_t l = 0; l < h->c.n_layers; l++)
        n_ids += n_routed(h, l);
    h->expert_ids = cor_array((size_t)n_ids, sizeof(*h->expert_ids));
    if (!h->expert_ids)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the expert ids", path);
    TRY(read_kept(h, path, layers));
    TRY(mdl_gguf_put_array(h->p->w, "vkmoe.expert_ids", MDL_GGUF_U32, h->expert_ids, n_ids, err));
    if (h->n_source)
        TRY(mdl_gguf_put_u32(h->p->w, "vkmoe.source.expert_count", h->n_source, err));
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

/* Where layers differ: how many routed experts each has. */
static enum vkmoe_status put_counts(struct hf *h)
{
    uint32_t *counts = cor_array(h->c.n_layers, sizeof(*counts));
    struct vkmoe_err *err = h->err;
    enum vkmoe_status st = VKMOE_OK;

    if (!counts)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u layers", h->dir, h->c.n_layers);
    for (uint32_t l = 0; l < h->c.n_layers; l++)
        counts[l] = n_routed(h, l);
    TRY(mdl_gguf_put_array(h->p->w, "vkmoe.expert_count_per_layer", MDL_GGUF_U32, counts, h->c.n_layers,
                           err));
done:
    cor_free(counts);
    return st;
}

static enum vkmoe_status put_model_keys(struct hf *h)
{
    const struct hf_config *c = &h->c;
    const struct mdl_config m = {.n_layers = c->n_layers,
                                 .dim = c->dim,
                                 .n_heads = c->n_heads,
                                 .n_kv_heads = c->n_kv_heads,
                                 .head_dim = c->head_dim,
                                 .n_rot = c->head_dim,
                                 .rope_theta = c->theta,
                                 .rms_eps = c->eps,
                                 .vocab_size = c->vocab,
                                 .n_ctx_train = c->n_ctx,
                                 .n_experts = c->n_routed,
                                 .n_experts_used = c->top_k,
                                 .n_shared = c->n_shared,
                                 .ff_expert = c->ff,
                                 .expert_scale = 1,
                                 .norm_topk = c->norm_topk};
    char name[256];

    cv_base_name(name, sizeof(name), h->dir);
    return mdl_put_config(h->p->w, name, &m, h->p->recipe.file_type, h->err);
}

static enum vkmoe_status put_tokenizer(struct hf *h)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = h->err;
    char path[PATH_BYTES + 32];

    snprintf(path, sizeof(path), "%s/tokenizer.json", h->dir);
    TRY(mdl_tokenizer_json_load(&h->tok_owner, &h->tok, path, h->c.vocab, (int32_t)h->c.eos, err));
    TRY(mdl_put_tokenizer(h->p->w, &h->tok, h->c.pad, err));
    TRY(cv_put_imatrix_keys(h->p, err));
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
    TRY(mdl_gguf_put_str(w, "vkmoe.source.architecture", h->c.arch, strlen(h->c.arch), err));
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
    uint64_t dims[3] = {cols, rows, n_routed(h, layer)};
    char to[64], from[128];

    snprintf(to, sizeof(to), "blk.%u.ffn_%s_exps.weight", layer, part);
    TRY(cv_add_tensor(h->p, to, cv_matrix_type(h->p, to, cols), 3, dims, 0, h->err));
    for (uint32_t e = 0; e < n_routed(h, layer); e++) {
        snprintf(from, sizeof(from), "model.layers.%u.mlp.experts.%u.%s_proj.weight", layer, e, part);
        TRY(add_source(h, from, rows, cols, rows));
    }
    if (!h->c.n_shared)
        goto done;
    snprintf(to, sizeof(to), "blk.%u.ffn_%s_shexp.weight", layer, part);
    snprintf(from, sizeof(from), "model.layers.%u.mlp.experts.%u.%s_proj.weight", layer, n_routed(h, layer),
             part);
    TRY(add_simple(h, to, from, rows, cols, 0));
done:
    return st;
}

static enum vkmoe_status add_layer(struct hf *h, uint32_t layer)
{
    enum vkmoe_status st;
    uint64_t dim = h->c.dim, q = (uint64_t)h->c.n_heads * h->c.head_dim,
             kv = (uint64_t)h->c.n_kv_heads * h->c.head_dim;
    uint64_t router[2] = {dim, n_routed(h, layer)};
    const struct {
        const char *to, *from;
        uint64_t rows, cols;
        uint32_t rotate_head;
    } parts[] = {
        {"attn_norm", "pre_attention_layernorm", 0, dim, 0},
        {"attn_q", "self_attn.q_proj", q, dim, h->c.head_dim},
        {"attn_k", "self_attn.k_proj", kv, dim, h->c.head_dim},
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
    TRY(add_source(h, from, n_total(h, layer), dim,
                   n_routed(h, layer))); /* the shared expert's row is dead: its weight is 1 */
    TRY(add_experts(h, layer, "gate", h->c.ff, dim));
    TRY(add_experts(h, layer, "up", h->c.ff, dim));
    TRY(add_experts(h, layer, "down", dim, h->c.ff));
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

        if (t->used || (h->c.tied && !strcmp(t->name, "lm_head.weight")) ||
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
    const char *head = h->c.tied ? "model.embed_tokens.weight" : "lm_head.weight";

    TRY(add_simple(h, "token_embd.weight", "model.embed_tokens.weight", h->c.vocab, h->c.dim, 0));
    TRY(add_simple(h, "output_norm.weight", "model.norm.weight", 0, h->c.dim, 0));
    TRY(add_simple(h, "output.weight", head, h->c.vocab, h->c.dim,
                   0)); /* tied ones are written twice: llama.cpp wants both */
    for (uint32_t i = 0; i < h->c.n_layers; i++)
        TRY(add_layer(h, i));
    TRY(refuse_unused(h));
done:
    return st;
}

enum vkmoe_status cv_from_hf(struct cv_plan *p, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct hf *h = cor_zalloc(sizeof(*h));
    char path[PATH_BYTES];

    if (!h)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory to convert", p->params->in);
    h->p = p;
    h->err = err;
    h->dir = p->params->in;
    if ((size_t)snprintf(path, sizeof(path), "%s/config.json", h->dir) >= sizeof(path))
        FAIL(VKMOE_ERR_ARGUMENT, "%s: the path is too long", h->dir);
    TRY(hf_config_read(&h->c, path, err));
    TRY(mdl_st_open(&h->weights, h->dir, err));
    p->model = (struct mdl_recipe_model){h->c.n_layers, n_routed(h, 0), false};
    TRY(add_tensors(h));
    TRY(put_model_keys(h));
    if (h->c.n_of_layer)
        TRY(put_counts(h));
    TRY(put_tokenizer(h));
    TRY(put_provenance(h));
    TRY(cv_run(p, err));
    TRY(mdl_st_unchanged(h->weights, err));
done:
    mdl_st_close(h->weights);
    mdl_tokenizer_json_free(h->tok_owner);
    cor_free(h->expert_ids);
    hf_config_free(&h->c);
    cor_free(h);
    return st;
}
