#include "support/tiny.h"

#include <stdio.h>

struct mdl_config tiny_config(void)
{
    return (struct mdl_config){.arch = "deepseek",
                               .n_layers = 2,
                               .dim = 32,
                               .n_heads = 4,
                               .n_kv_heads = 2,
                               .head_dim = 16,
                               .n_rot = 16,
                               .rope = MDL_ROPE_NORM,
                               .rope_theta = 10000,
                               .rms_eps = 1e-6f,
                               .vocab_size = 50,
                               .n_ctx_train = 64,
                               .n_experts = 6,
                               .n_experts_used = 2,
                               .n_shared = 1,
                               .ff_expert = 32,
                               .expert_scale = 1};
}

static struct tiny_tensor *add(struct tiny *t, const char *name, uint64_t d0, uint64_t d1, uint64_t d2)
{
    struct tiny_tensor *x = &t->tensors[t->n_tensors++];

    snprintf(x->name, sizeof(x->name), "%s", name);
    x->n_dims = d2 ? 3 : d1 ? 2 : 1;
    x->dims[0] = d0;
    x->dims[1] = d1;
    x->dims[2] = d2;
    x->count = (size_t)(d0 * (d1 ? d1 : 1) * (d2 ? d2 : 1));
    x->data = cor_array(x->count, sizeof(float));
    assert_non_null(x->data);
    return x;
}

static void add_layer(struct tiny *t, uint32_t layer)
{
    const struct mdl_config *c = &t->c;
    uint64_t q = (uint64_t)c->n_heads * c->head_dim, kv = (uint64_t)c->n_kv_heads * c->head_dim;
    uint64_t dim = c->dim, ff = c->ff_expert, n = c->n_experts, sh = ff * (c->n_shared ? c->n_shared : 1);
    const uint64_t dims[TINY_PARTS][3] = {{dim},     {dim, q},  {dim, kv},    {dim, kv},    {q, dim},
                                          {dim},     {dim, n},  {dim, ff, n}, {dim, ff, n}, {ff, dim, n},
                                          {dim, sh}, {dim, sh}, {sh, dim}};
    char name[32];

    for (int part = 0; part < TINY_PARTS; part++) {
        snprintf(name, sizeof(name), "layer%u.part%d", (unsigned)layer, part);
        add(t, name, dims[part][0], dims[part][1], dims[part][2]);
    }
}

void tiny_make(struct tiny *t, const struct mdl_config *c, uint64_t seed)
{
    memset(t, 0, sizeof(*t));
    t->c = *c;
    assert_true(c->n_layers <= TINY_MAX_LAYERS);
    add(t, "embed", c->dim, c->vocab_size, 0);
    add(t, "out_norm", c->dim, 0, 0);
    add(t, "head", c->dim, c->vocab_size, 0);
    for (uint32_t layer = 0; layer < c->n_layers; layer++)
        add_layer(t, layer);
    for (uint32_t i = 0; i < t->n_tensors; i++)
        for (size_t k = 0; k < t->tensors[i].count; k++) /* norms near 1, matrices around 0 */
            t->tensors[i].data[k] =
                (float)(test_rand_unit(&seed) - 0.5) * (t->tensors[i].n_dims == 1 ? 0.2f : 0.8f) +
                (t->tensors[i].n_dims == 1 ? 1.0f : 0.0f);
}

float *tiny_part(struct tiny *t, uint32_t layer, enum tiny_part part)
{
    return t->tensors[TINY_GLOBALS + layer * TINY_PARTS + (uint32_t)part].data;
}

static bool stays_f32(const struct tiny *t, uint32_t i)
{
    return t->tensors[i].n_dims == 1 || (i >= TINY_GLOBALS && (i - TINY_GLOBALS) % TINY_PARTS == TINY_ROUTER);
}

static void write_file(struct tiny *t, const char *path, enum mdl_type type)
{
    struct mdl_gguf_writer *w;
    struct vkmoe_err err;

    test_ok(mdl_gguf_create(&w, path, &err), &err);
    for (uint32_t i = 0; i < t->n_tensors; i++)
        test_ok(mdl_gguf_put_tensor(w, t->tensors[i].name, stays_f32(t, i) ? MDL_F32 : type,
                                    t->tensors[i].n_dims, t->tensors[i].dims, &err),
                &err);
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        const struct tiny_tensor *x = &t->tensors[i];
        enum mdl_type own = stays_f32(t, i) ? MDL_F32 : type;
        size_t row = (size_t)x->dims[0], row_bytes = (size_t)mdl_row_bytes(own, row);
        uint8_t *raw = cor_alloc(row_bytes);

        assert_non_null(raw);
        for (size_t r = 0; r < x->count / row; r++) {
            (void)mdl_quant_row(own, x->data + r * row, raw, row); /* NaN is what some tests want */
            test_ok(mdl_gguf_write_data(w, raw, row_bytes, &err), &err);
        }
        cor_free(raw);
    }
    test_ok(mdl_gguf_commit(w, &err), &err);
}

void tiny_open(struct tiny *t, const char *dir, const char *name, enum mdl_type type, bool tied)
{
    struct vkmoe_err err;
    char path[4300];
    const struct mdl_tensor *x;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    write_file(t, path, type);
    test_ok(mdl_gguf_open(&t->model.gguf, path, &err), &err);
    x = t->model.gguf->tensors;
    t->model.config = t->c;
    t->model.embed = &x[TINY_EMBED];
    t->model.out_norm = &x[TINY_OUT_NORM];
    t->model.head = tied ? &x[TINY_EMBED] : &x[TINY_HEAD];
    t->model.layers = t->layers;
    for (uint32_t i = 0; i < t->c.n_layers; i++) {
        const struct mdl_tensor *p = x + TINY_GLOBALS + i * TINY_PARTS;
        bool shared = t->c.n_shared > 0;

        t->layers[i] = (struct mdl_layer){.attn_norm = &p[TINY_ATTN_NORM],
                                          .q = &p[TINY_Q],
                                          .k = &p[TINY_K],
                                          .v = &p[TINY_V],
                                          .o = &p[TINY_O],
                                          .ffn_norm = &p[TINY_FFN_NORM],
                                          .gate_inp = &p[TINY_ROUTER],
                                          .gate_exps = &p[TINY_GATE],
                                          .up_exps = &p[TINY_UP],
                                          .down_exps = &p[TINY_DOWN],
                                          .gate_sh = shared ? &p[TINY_GATE_SH] : NULL,
                                          .up_sh = shared ? &p[TINY_UP_SH] : NULL,
                                          .down_sh = shared ? &p[TINY_DOWN_SH] : NULL};
    }
}

void tiny_close(struct tiny *t)
{
    mdl_gguf_close(t->model.gguf);
    for (uint32_t i = 0; i < t->n_tensors; i++)
        cor_free(t->tensors[i].data);
    memset(t, 0, sizeof(*t));
}
