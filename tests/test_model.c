/* Opening a model: keys and tensors that are missing, wrong or unknown are refused by name. */
#include <math.h>
#include <stdio.h>

#include "model/convert.h"
#include "model/model.h"
#include "support/hf.h"

static struct vkmoe_err err;

/* One change to a good file; NULL fields leave everything as it is. */
struct change {
    const char *drop; /* key or tensor to leave out */
    const char *key;  /* key to add or replace */
    enum mdl_gguf_type type;
    double number; /* its value; for strings text */
    const char *text;
    const char *reshape;     /* tensor whose last dimension but one row is cut off */
    const char *retype;      /* F32 tensor written as F16 */
    const char *rename, *to; /* tensor */
    const char *extra;       /* one more tensor */
    uint32_t counts[3];      /* vkmoe.expert_count_per_layer, where n_counts is not 0 */
    uint32_t n_counts;
    bool cut;         /* the tensors of experts hold as many as counts says */
    const char *says; /* NULL: the result opens */
};

static void put_changed_key(struct mdl_gguf_writer *w, const struct change *c)
{
    struct mdl_kv kv;

    memset(&kv, 0, sizeof(kv));
    kv.key = c->key;
    kv.type = c->type;
    if (c->type == MDL_GGUF_STRING)
        kv.v.s = (struct mdl_str){c->text, strlen(c->text)};
    else if (c->type == MDL_GGUF_F32 || c->type == MDL_GGUF_F64)
        kv.v.f = c->number;
    else
        kv.v.i = (int64_t)c->number;
    test_ok(mdl_gguf_put_kv(w, &kv, &err), &err);
}

/* Of a layer's tensor that has one slice or row per expert. */
static bool is_per_expert(const char *name, uint32_t *layer)
{
    char part[32];

    return sscanf(name, "blk.%u.%31[a-z_].weight", layer, part) == 2 &&
           (strstr(part, "_exps") || !strcmp(part, "ffn_gate_inp"));
}

static bool same(const char *a, const char *b)
{
    return a && b && !strcmp(a, b);
}

static void write_changed(const struct mdl_gguf *g, const char *out, const struct change *c)
{
    static uint8_t data[1 << 20];
    struct mdl_gguf_writer *w;
    const uint64_t four[1] = {4};

    memset(data, 0, sizeof(data)); /* the values do not matter here */
    test_ok(mdl_gguf_create(&w, out, &err), &err);
    for (uint64_t i = 0; i < g->n_kv; i++)
        if (!same(g->kv[i].key, c->drop) && !same(g->kv[i].key, c->key))
            test_ok(mdl_gguf_put_kv(w, &g->kv[i], &err), &err);
    if (c->key)
        put_changed_key(w, c);
    if (c->n_counts)
        test_ok(
            mdl_gguf_put_array(w, "vkmoe.expert_count_per_layer", MDL_GGUF_U32, c->counts, c->n_counts, &err),
            &err);
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t i = 0; i < g->n_tensors; i++) {
            const struct mdl_tensor *t = &g->tensors[i];
            uint64_t dims[MDL_GGUF_MAX_DIMS], n = 1;
            uint32_t layer;
            enum mdl_type type = same(t->name, c->retype) ? MDL_F16 : t->type;

            if (same(t->name, c->drop))
                continue;
            memcpy(dims, t->dims, sizeof(dims));
            if (same(t->name, c->reshape))
                dims[t->n_dims - 1]--;
            if (c->cut && is_per_expert(t->name, &layer))
                dims[t->n_dims - 1] = c->counts[layer];
            for (uint32_t d = 1; d < t->n_dims; d++)
                n *= dims[d];
            n *= mdl_row_bytes(type, dims[0]);
            assert_true(n <= sizeof(data));
            if (pass)
                test_ok(mdl_gguf_write_data(w, data, (size_t)n, &err), &err);
            else
                test_ok(mdl_gguf_put_tensor(w, same(t->name, c->rename) ? c->to : t->name, type, t->n_dims,
                                            dims, &err),
                        &err);
        }
        if (c->extra && !pass)
            test_ok(mdl_gguf_put_tensor(w, c->extra, MDL_F32, 1, four, &err), &err);
        else if (c->extra)
            test_ok(mdl_gguf_write_data(w, data, 16, &err), &err);
    }
    test_ok(mdl_gguf_commit(w, &err), &err);
}

static const struct change changes[] = {
    {.says = NULL},
    {.drop = "general.architecture", .says = "general.architecture"},
    {.key = "general.architecture", .type = MDL_GGUF_STRING, .text = "llama\n", .says = "llama\\x0a"},
    {.key = "general.architecture", .type = MDL_GGUF_U32, .number = 1, .says = "general.architecture"},
    {.drop = "deepseek.block_count", .says = "deepseek.block_count"},
    {.key = "deepseek.block_count", .type = MDL_GGUF_U32, .number = 3, .says = "blk.2."},
    {.key = "deepseek.block_count", .type = MDL_GGUF_U32, .number = 1, .says = "blk.1."},
    {.key = "deepseek.block_count", .type = MDL_GGUF_U32, .number = 0, .says = "block_count"},
    {.key = "deepseek.block_count", .type = MDL_GGUF_I64, .number = 2},
    {.key = "deepseek.block_count", .type = MDL_GGUF_F32, .number = 2, .says = "block_count"},
    {.drop = "deepseek.context_length", .says = "context_length"},
    {.drop = "deepseek.embedding_length", .says = "embedding_length"},
    {.key = "deepseek.embedding_length", .type = MDL_GGUF_U32, .number = 65, .says = "token_embd"},
    {.drop = "deepseek.vocab_size"},
    {.key = "deepseek.vocab_size", .type = MDL_GGUF_U32, .number = 263, .says = "token_embd"},
    {.drop = "deepseek.attention.head_count", .says = "head_count"},
    {.drop = "deepseek.attention.head_count_kv",
     .says = "attn_k"}, /* then as many as heads: shapes disagree */
    {.key = "deepseek.attention.head_count_kv", .type = MDL_GGUF_U32, .number = 3, .says = "multiple"},
    {.drop = "deepseek.attention.key_length"},
    {.key = "deepseek.attention.key_length", .type = MDL_GGUF_U32, .number = 15, .says = "even"},
    {.key = "deepseek.attention.key_length", .type = MDL_GGUF_U32, .number = 512, .says = "key_length"},
    {.key = "deepseek.expert_group_count", .type = MDL_GGUF_U32, .number = 8, .says = "expert_group_count"},
    {.key = "deepseek.attention.value_length", .type = MDL_GGUF_U32, .number = 8, .says = "equal"},
    {.drop = "deepseek.attention.layer_norm_rms_epsilon", .says = "rms_epsilon"},
    {.key = "deepseek.attention.layer_norm_rms_epsilon",
     .type = MDL_GGUF_F32,
     .number = NAN,
     .says = "rms_epsilon"},
    {.drop = "deepseek.rope.freq_base"},
    {.key = "deepseek.rope.freq_base", .type = MDL_GGUF_F64, .number = -1, .says = "freq_base"},
    {.drop = "deepseek.rope.dimension_count"},
    {.key = "deepseek.rope.dimension_count", .type = MDL_GGUF_U32, .number = 8},
    {.key = "deepseek.rope.dimension_count", .type = MDL_GGUF_U32, .number = 7, .says = "odd"},
    {.key = "deepseek.rope.dimension_count", .type = MDL_GGUF_U32, .number = 18, .says = "dimension_count"},
    {.key = "deepseek.rope.scaling.type", .type = MDL_GGUF_STRING, .text = "none"},
    {.key = "deepseek.rope.scaling.type", .type = MDL_GGUF_STRING, .text = "linear"},
    {.key = "deepseek.rope.scaling.type", .type = MDL_GGUF_STRING, .text = "yarn", .says = "YaRN"}, /* by 0 */
    {.key = "deepseek.rope.scaling.type", .type = MDL_GGUF_STRING, .text = "longrope", .says = "'longrope'"},
    {.key = "deepseek.rope.scaling.factor", .type = MDL_GGUF_F32, .number = 4},
    {.key = "deepseek.rope.scaling.factor", .type = MDL_GGUF_F32, .number = NAN, .says = "scaling.factor"},
    {.key = "deepseek.rope.scaling.alpha", .type = MDL_GGUF_F32, .number = 4, .says = "scaling.alpha"},
    {.key = "deepseek.rope.scale_linear", .type = MDL_GGUF_F32, .number = 4},
    {.key = "deepseek.rope.freq_base_swa", .type = MDL_GGUF_F32, .number = 4, .says = "freq_base_swa"},
    {.key = "deepseek.attention.scale", .type = MDL_GGUF_F32, .number = -1, .says = "attention.scale"},
    {.drop = "deepseek.expert_count", .says = "expert_count"},
    {.key = "deepseek.expert_count", .type = MDL_GGUF_U32, .number = 3, .says = "ffn_gate_inp"},
    {.key = "deepseek.expert_count", .type = MDL_GGUF_U32, .number = 513, .says = "expert_count"},
    {.counts = {4, 4}, .n_counts = 2, .cut = true},
    {.counts = {4, 1}, .n_counts = 2, .cut = true}, /* fewer than a token uses */
    {.counts = {2, 4}, .n_counts = 2, .cut = true},
    {.counts = {2, 4}, .n_counts = 2, .says = "blk.0.ffn_gate_inp"},
    {.counts = {4, 2}, .n_counts = 2, .cut = true, .reshape = "blk.1.attn_q.weight", .says = "blk.1.attn_q"},
    {.counts = {4}, .n_counts = 1, .says = "expert_count_per_layer"},
    {.counts = {4, 4, 4}, .n_counts = 3, .says = "expert_count_per_layer"},
    {.counts = {0, 4}, .n_counts = 2, .says = "layer 0"},
    {.counts = {4, 5}, .n_counts = 2, .says = "layer 1"},
    {.counts = {3, 2}, .n_counts = 2, .cut = true, .says = "expert_count is 4"},
    {.key = "vkmoe.expert_count_per_layer", .type = MDL_GGUF_U32, .number = 4, .says = "per_layer"},
    {.drop = "deepseek.expert_used_count", .says = "expert_used_count"},
    {.key = "deepseek.expert_used_count", .type = MDL_GGUF_U32, .number = 5, .says = "larger"},
    {.key = "deepseek.expert_used_count", .type = MDL_GGUF_U32, .number = 33, .says = "expert_used_count"},
    {.drop = "deepseek.expert_shared_count", .says = "expert_shared_count"},
    {.key = "deepseek.expert_shared_count", .type = MDL_GGUF_U32, .number = 0, .says = "shexp"},
    {.key = "deepseek.expert_shared_count", .type = MDL_GGUF_U32, .number = 2, .says = "shexp"},
    {.drop = "deepseek.expert_feed_forward_length", .says = "feed_forward_length"},
    {.drop = "deepseek.feed_forward_length"},
    {.drop = "deepseek.expert_weights_scale", .says = "weights_scale"},
    {.key = "deepseek.expert_weights_scale",
     .type = MDL_GGUF_F32,
     .number = INFINITY,
     .says = "weights_scale"},
    {.drop = "deepseek.expert_weights_norm"},
    {.key = "deepseek.expert_weights_norm", .type = MDL_GGUF_U32, .number = 1, .says = "weights_norm"},
    {.drop = "deepseek.leading_dense_block_count", .says = "leading_dense"},
    {.key = "deepseek.leading_dense_block_count",
     .type = MDL_GGUF_U32,
     .number = 1,
     .says = "blk.0.ffn_gate"},
    {.key = "deepseek.leading_dense_block_count", .type = MDL_GGUF_U32, .number = 2, .says = "dense"},
    {.key = "deepseek.leading_dense_block_count", .type = MDL_GGUF_U32, .number = 3, .says = "dense"},
    {.key = "deepseek.expert_gating_func", .type = MDL_GGUF_U32, .number = 1},
    {.key = "deepseek.expert_gating_func", .type = MDL_GGUF_U32, .number = 2, .says = "softmax"},
    {.drop = "tokenizer.ggml.tokens", .says = "tokenizer.ggml.tokens"},
    {.drop = "token_embd.weight", .says = "token_embd"},
    {.drop = "output.weight"}, /* tied */
    {.drop = "output_norm.weight", .says = "output_norm"},
    {.drop = "blk.1.ffn_up_shexp.weight", .says = "blk.1.ffn_up_shexp"},
    {.reshape = "blk.0.attn_q.weight", .says = "blk.0.attn_q"},
    {.reshape = "blk.0.ffn_down_exps.weight", .says = "blk.0.ffn_down_exps"},
    {.reshape = "blk.1.ffn_norm.weight", .says = "blk.1.ffn_norm"},
    {.retype = "blk.0.ffn_gate_inp.weight", .says = "must be f32"},
    {.retype = "blk.0.attn_norm.weight", .says = "must be f32"},
    {.retype = "blk.0.attn_v.weight"},
    {.rename = "blk.0.attn_v.weight", .to = "blk.0.attn_w.weight", .says = "blk.0.attn_v"},
    {.extra = "blk.0.attn_q.bias", .says = "attn_q.bias"},         /* of another size */
    {.extra = "blk.1.attn_q.bias", .says = "'blk.1.attn_q.bias'"}, /* not of the first layer */
    {.extra = "rope_freqs.weight", .says = "rope_freqs"},
    {.extra = "blk.0.attn_rot_embd.weight"}, /* read by nobody */
    {.extra = "blk.0.attn_sinks.weight", .says = "attn_sinks"},
};

static void every_change_is_judged(void **state)
{
    struct hf_dir h;
    struct mdl_gguf *g;
    struct mdl_model *m;
    char good[4096], changed[4096];

    (void)state;
    hf_init(&h);
    hf_write(&h);
    snprintf(good, sizeof(good), "%s", hf_file(&h, "good.gguf"));
    snprintf(changed, sizeof(changed), "%s", hf_file(&h, "changed.gguf"));
    test_ok(mdl_convert(&(struct mdl_convert_params){.in = h.path, .out = good, .type = MDL_F32}, &err),
            &err);
    test_ok(mdl_gguf_open(&g, good, &err), &err);
    for (size_t i = 0; i < COR_COUNT(changes); i++) {
        const struct change *c = &changes[i];
        enum vkmoe_status st;

        write_changed(g, changed, c);
        st = mdl_open(&m, changed, &err);
        for (uint32_t l = 0; m && l < m->config.n_layers; l++)
            assert_int_equal(mdl_expert_count(m, l), c->n_counts ? c->counts[l] : m->config.n_experts);
        mdl_close(m);
        if (!c->says)
            test_ok(st, &err);
        else if (st == VKMOE_OK)
            fail_msg("change %u was accepted, but should say '%s'", (unsigned)i, c->says);
        else if (!strstr(err.message, c->says) || !strstr(err.message, "changed.gguf"))
            fail_msg("change %u: '%s' does not say '%s'", (unsigned)i, err.message, c->says);
    }
    mdl_gguf_close(g);
}

static void parts_of_a_model(void **state)
{
    struct hf_dir h;
    struct mdl_model *m;
    const struct mdl_layer *l;
    char path[4096];

    (void)state;
    hf_init(&h);
    hf_write(&h);
    snprintf(path, sizeof(path), "%s", hf_file(&h, "a.gguf"));
    test_ok(mdl_convert(&(struct mdl_convert_params){.in = h.path, .out = path, .type = MDL_Q8_0}, &err),
            &err);
    test_ok(mdl_open(&m, path, &err), &err);
    assert_ptr_not_equal(m->head, m->embed);
    l = &m->layers[1];
    assert_string_equal(l->up_exps->name, "blk.1.ffn_up_exps.weight");
    assert_int_equal(mdl_expert_bytes(l->up_exps), 32 * 64 / 32 * 34);
    assert_int_equal(mdl_expert_off(l->down_exps, 3), 3 * 64 * 34);
    assert_int_equal(mdl_expert_off(l->down_exps, 4), l->down_exps->bytes);
    assert_non_null(l->gate_sh);
    mdl_close(m);
    mdl_close(NULL);
}

static void every_failed_allocation_and_read(void **state)
{
    struct hf_dir h;
    char path[4096];
    long live;

    (void)state;
    hf_init(&h);
    hf_write(&h);
    snprintf(path, sizeof(path), "%s", hf_file(&h, "a.gguf"));
    test_ok(mdl_convert(&(struct mdl_convert_params){.in = h.path, .out = path, .type = MDL_F32}, &err),
            &err);
    live = cor_alloc_live();
    for (int io = 0; io < 2; io++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            struct mdl_model *m;

            assert_true(nth < 1000);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = mdl_open(&m, path, &err);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            mdl_close(m);
            assert_int_equal(cor_alloc_live(), live);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_change_is_judged),
        cmocka_unit_test(parts_of_a_model),
        cmocka_unit_test(every_failed_allocation_and_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
