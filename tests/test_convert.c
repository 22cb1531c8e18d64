/* Conversion: every value of the output against an independent computation, what must be refused, damage,
 * failures. */
#include <math.h>
#include <stdio.h>

#include "model/convert.h"
#include "model/model.h"
#include "model/safetensors.h"
#include "model/synth.h"
#include "support/hf.h"

static struct vkmoe_err err;

static const char *out_path(const struct hf_dir *h, const char *name)
{
    static char path[4096];

    snprintf(path, sizeof(path), "%s/../%s", h->path, name);
    return path;
}

static enum vkmoe_status convert(const char *in, const char *out, enum mdl_type type)
{
    struct mdl_convert_params p = {.in = in, .out = out, .type = type};

    return mdl_convert(&p, &err);
}

/* Entries beside the checkpoint's directory: 1 when nothing was written. */
static size_t outputs(const struct hf_dir *h)
{
    char **names;
    size_t n;

    test_ok(cor_dir_list(out_path(h, "."), &names, &n, &err), &err);
    cor_free(names);
    return n - 1;
}

static void refused(const struct hf_dir *h, const char *says)
{
    if (convert(h->path, out_path(h, "out.gguf"), MDL_F32) == VKMOE_OK)
        fail_msg("converted, but should say '%s'", says);
    if (!strstr(err.message, says))
        fail_msg("'%s' does not say '%s'", err.message, says);
    assert_int_equal(outputs(h), 0);
}

/* ---- values ---- */

/* Row r of a q or k matrix of the output is row perm(r) of the checkpoint: in each head, dimension j of the
 * first half and j of the second become neighbours. Written as the definition of the two RoPE orders, not as
 * the converter has it. */
static uint64_t checkpoint_row(uint64_t r, uint64_t head_dim)
{
    if (!head_dim) /* not rotated */
        return r;
    return r / head_dim * head_dim + r % head_dim / 2 + (r % 2 ? head_dim / 2 : 0);
}

/* Compares rows [0, rows) of plane e of tensor `to` with the checkpoint tensor `from`. */
static void check_rows(const struct mdl_gguf *g, const char *to, uint64_t e, const char *from, uint64_t rows,
                       uint64_t cols, enum mdl_type type, uint64_t rotate)
{
    const struct mdl_tensor *t = mdl_gguf_tensor(g, to);
    uint64_t row_bytes = mdl_row_bytes(type, cols);
    float want[256];
    uint8_t bytes[1024], expect[1024];

    if (!t)
        fail_msg("%s is missing", to);
    if (t->type != type || t->dims[0] != cols || t->dims[1] != rows || t->dims[2] <= e)
        fail_msg("%s has a wrong type or shape", to);
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < cols; c++)
            want[c] = hf_value(from, checkpoint_row(r, rotate) * cols + c);
        test_ok(mdl_gguf_read(g, t, (e * rows + r) * row_bytes, bytes, (size_t)row_bytes, &err), &err);
        assert_true(mdl_quant_row(type, want, expect, cols));
        if (memcmp(bytes, expect, (size_t)row_bytes))
            fail_msg("%s, plane %u, row %u differs", to, (unsigned)e, (unsigned)r);
    }
}

static void check_layer(const struct hf_dir *h, const struct mdl_gguf *g, uint32_t l, enum mdl_type type,
                        enum mdl_type down_type)
{
    uint64_t dim = h->dim, hd = h->dim / h->heads, kv = h->kv_heads * hd, routed;
    uint64_t experts = h->per_layer ? h->per_layer[l] : h->experts;
    static const char *const parts[] = {"gate", "up", "down"};
    char to[128], from[128];

    routed = experts - h->shared;
#define ROWS(tt, ff, rows, cols, type_, rot)                          \
    snprintf(to, sizeof(to), "blk.%u." tt ".weight", l);              \
    snprintf(from, sizeof(from), "model.layers.%u." ff ".weight", l); \
    check_rows(g, to, 0, from, rows, cols, type_, rot)
    ROWS("attn_norm", "pre_attention_layernorm", 1, dim, MDL_F32, 0);
    ROWS("ffn_norm", "pre_feedforward_layernorm", 1, dim, MDL_F32, 0);
    ROWS("attn_q", "self_attn.q_proj", h->heads * hd, dim, type, hd);
    ROWS("attn_k", "self_attn.k_proj", kv, dim, type, hd);
    ROWS("attn_v", "self_attn.v_proj", kv, dim, type, 0);
    ROWS("attn_output", "self_attn.o_proj", dim, dim, type, 0);
    ROWS("ffn_gate_inp", "mlp.gate", routed, dim, MDL_F32, 0); /* the shared expert's row is gone */
#undef ROWS
    for (uint32_t e = 0; e < experts; e++)
        for (int p = 0; p < 3; p++) {
            bool down = p == 2, shared = e == routed;

            snprintf(to, sizeof(to), "blk.%u.ffn_%s_%s.weight", l, parts[p], shared ? "shexp" : "exps");
            snprintf(from, sizeof(from), "model.layers.%u.mlp.experts.%u.%s_proj.weight", l, e, parts[p]);
            check_rows(g, to, shared ? 0 : e, from, down ? dim : h->ff, down ? h->ff : dim,
                       down ? down_type : type, 0);
        }
}

static void check_file(const struct hf_dir *h, const char *path, enum mdl_type type, enum mdl_type down_type)
{
    struct mdl_model *m;

    test_ok(mdl_open(&m, path, &err), &err);
    check_rows(m->gguf, "token_embd.weight", 0, "model.embed_tokens.weight", h->vocab, h->dim, type, 0);
    check_rows(m->gguf, "output.weight", 0, h->tied ? "model.embed_tokens.weight" : "lm_head.weight",
               h->vocab, h->dim, type, 0);
    check_rows(m->gguf, "output_norm.weight", 0, "model.norm.weight", 1, h->dim, MDL_F32, 0);
    for (uint32_t l = 0; l < h->layers; l++)
        check_layer(h, m->gguf, l, type, down_type);
    assert_int_equal(m->config.n_layers, h->layers);
    assert_int_equal(m->config.n_experts, h->experts - h->shared);
    assert_int_equal(m->config.n_experts_used, h->per_tok - h->shared);
    assert_int_equal(m->config.n_shared, h->shared);
    assert_int_equal(m->config.n_kv_heads, h->kv_heads);
    assert_int_equal(m->config.head_dim, h->dim / h->heads);
    assert_int_equal(m->config.n_ctx_train, 128);
    assert_int_equal(m->config.rope, MDL_ROPE_NORM);
    assert_true(m->config.rope_theta == 500000.0f && m->config.rms_eps == 1e-6f &&
                m->config.expert_scale == 1.0f);
    assert_int_equal(mdl_token_eos(m->tok), 258);
    assert_int_equal(mdl_tokenizer_size(m->tok), h->vocab);
    assert_int_equal(mdl_tokenizer_used(m->tok), 260);
    assert_string_equal(mdl_tokenizer_pre(m->tok), "dbrx");
    mdl_close(m);
}

static void all_types(void **state)
{
    static const enum mdl_type from[] = {MDL_F32, MDL_F16, MDL_BF16};
    static const enum mdl_type to[] = {MDL_F32, MDL_F16, MDL_BF16, MDL_Q8_0, MDL_Q4_0};
    struct hf_dir h;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(from); i++) {
        hf_init(&h);
        h.type = from[i];
        h.sharded = i == 1;
        hf_write(&h);
        for (size_t k = 0; k < COR_COUNT(to); k++) {
            test_ok(convert(h.path, out_path(&h, "out.gguf"), to[k]), &err);
            check_file(&h, out_path(&h, "out.gguf"), to[k], to[k]);
        }
    }
}

/* Every matrix of twin, in F32, holds the dequantised values of path's. */
static void check_twin(const char *path, const char *twin)
{
    struct mdl_gguf *a, *b;

    test_ok(mdl_gguf_open(&a, path, &err), &err);
    test_ok(mdl_gguf_open(&b, twin, &err), &err);
    for (uint64_t i = 0; i < a->n_tensors; i++) {
        const struct mdl_tensor *q = &a->tensors[i], *t = mdl_gguf_tensor(b, q->name);
        const size_t n = (size_t)(q->dims[0] * q->dims[1] * q->dims[2]);
        float *want = cor_array(n, sizeof(*want)), *got = cor_array(n, sizeof(*got));
        uint8_t *bytes = cor_alloc((size_t)q->bytes);

        assert_non_null(t);
        assert_true(want && got && bytes && t->type == MDL_F32 && t->bytes == n * sizeof(*got));
        test_ok(mdl_gguf_read(a, q, 0, bytes, q->bytes, &err), &err);
        test_ok(mdl_gguf_read(b, t, 0, got, t->bytes, &err), &err);
        mdl_dequant_row(q->type, bytes, want, n);
        assert_memory_equal(got, want, n * sizeof(*got));
        cor_free(want);
        cor_free(got);
        cor_free(bytes);
    }
    mdl_gguf_close(a);
    mdl_gguf_close(b);
}

/* What an F32 model file becomes as another type must be what the checkpoint becomes. */
static void gguf_to_gguf(void **state)
{
    static const enum mdl_type to[] = {MDL_F32, MDL_F16, MDL_BF16, MDL_Q8_0, MDL_Q4_0};
    char mid[4096], out[4096];
    struct hf_dir h;
    struct mdl_gguf *a, *b;

    (void)state;
    hf_init(&h);
    hf_write(&h);
    snprintf(mid, sizeof(mid), "%s", out_path(&h, "mid.gguf"));
    snprintf(out, sizeof(out), "%s", out_path(&h, "out.gguf"));
    for (int from = 0; from < 3; from++) { /* F32, F16, BF16 */
        test_ok(convert(h.path, mid, to[from]), &err);
        for (size_t k = 0; k < COR_COUNT(to); k++) {
            test_ok(convert(mid, out, to[k]), &err);
            check_file(&h, out, to[k], to[k]);
        }
    }
    test_ok(mdl_gguf_open(&a, mid, &err), &err);
    test_ok(mdl_gguf_open(&b, out, &err), &err);
    assert_int_equal(a->n_kv, b->n_kv);
    assert_int_equal(mdl_gguf_find(b, "general.file_type")->v.u, 2);
    assert_int_equal(mdl_gguf_find(b, "vkmoe.source.format")->v.s.n, strlen("safetensors"));
    mdl_gguf_close(a);
    mdl_gguf_close(b);
    test_ok(convert(out, mid, MDL_F32), &err); /* the F32 twin of q4_0 */
    check_twin(out, mid);
    test_ok(convert(h.path, mid, MDL_BF16), &err);
    test_ok(convert(mid, mid, MDL_Q8_0), &err); /* onto itself */
    check_file(&h, mid, MDL_Q8_0, MDL_Q8_0);
}

static void odd_rows_fall_back_to_f16(void **state)
{
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    h.ff = 40;
    hf_write(&h);
    test_ok(convert(h.path, out_path(&h, "out.gguf"), MDL_Q8_0), &err);
    check_file(&h, out_path(&h, "out.gguf"), MDL_Q8_0, MDL_F16);
}

static void other_shapes(void **state)
{
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    h.tied = true;
    hf_write(&h);
    test_ok(convert(h.path, out_path(&h, "out.gguf"), MDL_BF16), &err);
    check_file(&h, out_path(&h, "out.gguf"), MDL_BF16, MDL_BF16);
    hf_init(&h);
    h.shared = 0;
    hf_write(&h);
    test_ok(convert(h.path, out_path(&h, "out.gguf"), MDL_BF16), &err);
    check_file(&h, out_path(&h, "out.gguf"), MDL_BF16, MDL_BF16);
}

/* ---- configuration ---- */

static void missing_keys_are_errors(void **state)
{
    static const char *const keys[] = {"hidden_size",         "intermediate_size",
                                       "num_hidden_layers",   "num_attention_heads",
                                       "num_key_value_heads", "vocab_size",
                                       "num_experts",         "num_shared_experts",
                                       "num_experts_per_tok", "norm_topk_prob",
                                       "rms_norm_eps",        "rope_theta",
                                       "eos_token_id",        "max_position_embeddings",
                                       "tie_word_embeddings"};
    struct hf_dir h;
    char line[128];

    (void)state;
    hf_init(&h);
    hf_write(&h);
    for (size_t i = 0; i < COR_COUNT(keys); i++) {
        hf_write_config(&h, keys[i], NULL);
        refused(&h, keys[i]);
        snprintf(line, sizeof(line), "\"%s\": \"x\"", keys[i]);
        hf_write_config(&h, keys[i], line);
        refused(&h, keys[i]);
        snprintf(line, sizeof(line), "\"%s\": null", keys[i]);
        hf_write_config(&h, keys[i], line);
        refused(&h, keys[i]);
    }
}

static void settings(void **state)
{
    static const struct {
        const char *key, *line, *says; /* says NULL: accepted */
    } cases[] = {
        {"architectures", "\"architectures\": [\"FlexOlmoNoQKNormPrenormForCausalLM\"]", NULL},
        {"model_type", "\"model_type\": \"flex_olmo_noqknorm_prenorm\"", NULL},
        {"architectures", NULL, NULL},
        {"architectures", "\"architectures\": [\"LlamaForCausalLM\"]", "LlamaForCausalLM"},
        {"model_type", "\"model_type\": \"llama\"", "llama"},
        {"head_dim", "\"head_dim\": 16", NULL},
        {"head_dim", "\"head_dim\": null", NULL},
        {"head_dim", "\"head_dim\": 32", "q_proj"},
        {"head_dim", "\"head_dim\": 15", "odd"},
        {"rope_scaling", NULL, NULL},
        {"rope_scaling", "\"rope_scaling\": {\"type\": \"yarn\"}", "rope_scaling"},
        {"hidden_act", "\"hidden_act\": \"gelu\"", "hidden_act"},
        {"attention_bias", "\"attention_bias\": false", NULL},
        {"attention_bias", "\"attention_bias\": true", "attention_bias"},
        {"num_experts_per_layer", "\"num_experts_per_layer\": null", NULL},
        {"num_experts_per_layer", "\"num_experts_per_layer\": [5, 5]", NULL},
        {"num_experts_per_layer", "\"num_experts_per_layer\": [5, 4]", "layers.1.mlp.gate"}, /* it has 5 */
        {"num_experts_per_layer", "\"num_experts_per_layer\": [4, 4]", "no layer has 5 experts"},
        {"num_experts_per_layer", "\"num_experts_per_layer\": [5, 1]", "layer 1 has 1 experts"},
        {"num_experts_per_layer", "\"num_experts_per_layer\": [5, 600]", "layer 1 has 600"},
        {"num_experts_per_layer", "\"num_experts_per_layer\": [5, 4, 5]", "3 entries for 2 layers"},
        {"num_experts_per_layer", "\"num_experts_per_layer\": [0, 5]", "dense"},
        {"num_experts_per_layer", "\"num_experts_per_layer\": [5]", "1 entries for 2 layers"},
        {"num_shared_experts_per_layer", "\"num_shared_experts_per_layer\": [1, 1]", NULL},
        {"num_shared_experts_per_layer", "\"num_shared_experts_per_layer\": [1, 2]", "shared"},
        {"always_active_experts", "\"always_active_experts\": []", NULL},
        {"always_active_experts", "\"always_active_experts\": [1]", "always_active_experts"},
        {"always_active_experts_per_layer", "\"always_active_experts_per_layer\": [[], [2]]",
         "always_active_experts"},
        {"norm_topk_prob", "\"norm_topk_prob\": true", "norm_topk_prob"},
        {"num_shared_experts", "\"num_shared_experts\": 2", "num_shared_experts"},
        {"num_experts_per_tok", "\"num_experts_per_tok\": 6", "num_experts_per_tok"},
        {"num_experts_per_tok", "\"num_experts_per_tok\": 1", "num_experts_per_tok"},
        {"num_experts", "\"num_experts\": 4", "gate"},
        {"num_experts", "\"num_experts\": 0", "dense"},
        {"num_local_experts", "\"num_local_experts\": 4", "num_local_experts"},
        {"num_key_value_heads", "\"num_key_value_heads\": 3", "multiple"},
        {"num_hidden_layers", "\"num_hidden_layers\": 3", "model.layers.2"},
        {"num_hidden_layers", "\"num_hidden_layers\": 1", "model.layers.1"},
        {"num_hidden_layers", "\"num_hidden_layers\": 1e9", "num_hidden_layers"},
        {"hidden_size", "\"hidden_size\": 1000001", "hidden_size"},
        {"vocab_size", "\"vocab_size\": 265", "embed_tokens"},
        {"vocab_size", "\"vocab_size\": 100", "eos_token_id"},
        {"eos_token_id", "\"eos_token_id\": [258, 259]", NULL},
        {"eos_token_id", "\"eos_token_id\": 264", "eos_token_id"},
        {"pad_token_id", "\"pad_token_id\": null", NULL},
        {"pad_token_id", "\"pad_token_id\": 264", "pad_token_id"},
        {"rms_norm_eps", "\"rms_norm_eps\": -1e-6", "rms_norm_eps"},
        {"rope_theta", "\"rope_theta\": 1e400", "rope_theta"},
        {"tie_word_embeddings", "\"tie_word_embeddings\": true", NULL}, /* the head in the file is not used */
        {"hidden_size", "\"hidden_size\": 64, \"hidden_size\": 64", "twice"},
        {"quantization_config", "\"quantization_config\": {}", "quantization_config"},
    };
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    hf_write(&h);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        hf_write_config(&h, cases[i].key, cases[i].line);
        if (cases[i].says) {
            refused(&h, cases[i].says);
            continue;
        }
        if (convert(h.path, out_path(&h, "out.gguf"), MDL_F32) != VKMOE_OK)
            fail_msg("%s: %s", cases[i].line ? cases[i].line : cases[i].key, err.message);
        remove(out_path(&h, "out.gguf"));
    }
}

static void tensors_must_be_those_of_the_model(void **state)
{
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    hf_write(&h);
    h.no_tensor = "model.layers.1.self_attn.k_proj.weight";
    hf_write_weights(&h);
    refused(&h, h.no_tensor);
    h.no_tensor = NULL;
    h.extra_tensor = "model.layers.0.self_attn.q_proj.bias";
    hf_write_weights(&h);
    refused(&h, h.extra_tensor);
    h.extra_tensor = "model.layers.0.self_attn.rotary_emb.inv_freq";
    hf_write_weights(&h);
    test_ok(convert(h.path, out_path(&h, "out.gguf"), MDL_F32), &err);
    remove(out_path(&h, "out.gguf"));
    h.extra_tensor = NULL;
    h.infinite = "model.layers.1.mlp.experts.2.up_proj.weight";
    hf_write_weights(&h);
    refused(&h, h.infinite);
    h.infinite = NULL;
    hf_write_weights(&h);
    remove(hf_file(&h, "tokenizer.json"));
    refused(&h, "tokenizer.json");
    remove(hf_file(&h, "config.json"));
    refused(&h, "config.json");
}

/* Pruned to budgets that differ: num_experts is the smallest, as the original's scripts have it. */
static void layers_that_differ(void **state)
{
    static const char pruning[] =
        "{\"num_shared_experts\": 1, \"experts_kept_per_layer\": [[3, 7, 40, 99, 2, 127], [0, 126, 127]]}";
    static const uint32_t counts[] = {6, 3}, ids[] = {3, 7, 40, 99, 2, 0, 126};
    const struct mdl_kv *kv;
    struct mdl_model *m;
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    h.per_layer = counts;
    h.experts = 3;
    hf_write(&h);
    hf_write_config(&h, "num_experts_per_layer", "\"num_experts_per_layer\": [6, 3]");
    hf_write_file(&h, "pruning_metadata.json", pruning, sizeof(pruning) - 1);
    test_ok(convert(h.path, out_path(&h, "out.gguf"), MDL_BF16), &err);
    h.experts = 6; /* what expert_count says */
    check_file(&h, out_path(&h, "out.gguf"), MDL_BF16, MDL_BF16);
    test_ok(mdl_open(&m, out_path(&h, "out.gguf"), &err), &err);
    assert_int_equal(m->config.n_experts, 5);
    assert_int_equal(m->config.n_experts_used, 2);
    assert_int_equal(mdl_expert_count(m, 0), 5);
    assert_int_equal(mdl_expert_count(m, 1), 2);
    kv = mdl_gguf_find(m->gguf, "vkmoe.expert_ids");
    assert_non_null(kv);
    assert_int_equal(kv->count, 7);
    assert_memory_equal(kv->v.array, ids, sizeof(ids));
    mdl_close(m);
}

static void pruned_checkpoint(void **state)
{
    static const char good[] =
        "{\"original_model\": \"some/where/Emo_1b14b_1T\", \"prune_keep_k\": 5, \"num_shared_experts\": 1,"
        "\"pruning_method\": \"easy_ep\", \"experts_kept_per_layer\": [[3, 7, 40, 99, 127],"
        "[0, 1, 2, 126, 127]]}";
    static const struct {
        const char *json, *says;
    } bad[] = {
        {"{}", "experts_kept_per_layer"},
        {"{\"experts_kept_per_layer\": [[3, 7, 40, 99, 127]]}", "1 lists for 2 layers"},
        {"{\"experts_kept_per_layer\": [[3, 7, 40, 99, 127], [1, 2, 127]]}", "keeps 3 experts"},
        {"{\"experts_kept_per_layer\": [[3, 7, 40, 99, 127], [1, 2, 3, 4, 5, 127]]}", "layer 1"},
        {"{\"experts_kept_per_layer\": [[3, 7, 3, 99, 127], [0, 1, 2, 3, 127]]}", "twice"},
        {"{\"experts_kept_per_layer\": [[3, 7, -1, 99, 127], [0, 1, 2, 3, 127]]}", "expert ids"},
        {"{\"num_shared_experts\": 2, \"experts_kept_per_layer\": []}", "num_shared_experts"},
    };
    static const uint32_t want[] = {3, 7, 40, 99, 0, 1, 2, 126};
    struct hf_dir h;
    struct mdl_gguf *g;
    const struct mdl_kv *kv;
    struct mdl_str s;
    uint32_t n_source;

    (void)state;
    hf_init(&h);
    hf_write(&h);
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        hf_write_file(&h, "pruning_metadata.json", bad[i].json, strlen(bad[i].json));
        refused(&h, bad[i].says);
    }
    hf_write_file(&h, "pruning_metadata.json", good, sizeof(good) - 1);
    test_ok(convert(h.path, out_path(&h, "out.gguf"), MDL_BF16), &err);
    check_file(&h, out_path(&h, "out.gguf"), MDL_BF16, MDL_BF16);
    test_ok(mdl_gguf_open(&g, out_path(&h, "out.gguf"), &err), &err);
    kv = mdl_gguf_find(g, "vkmoe.expert_ids");
    assert_non_null(kv);
    assert_true(kv->elem_type == MDL_GGUF_U32 && kv->count == 8);
    assert_memory_equal(kv->v.array, want, sizeof(want));
    test_ok(mdl_gguf_u32(g, "vkmoe.source.expert_count", &n_source, &err), &err);
    assert_int_equal(n_source, 127);
    test_ok(mdl_gguf_str(g, "vkmoe.pruning.original_model", &s, &err), &err);
    assert_int_equal(s.n, strlen("Emo_1b14b_1T"));
    test_ok(mdl_gguf_str(g, "general.name", &s, &err), &err);
    assert_int_equal(s.n, strlen("tiny-emo"));
    assert_memory_equal(s.p, "tiny-emo", 8);
    mdl_gguf_close(g);
}

/* ---- outputs, damage, failures ---- */

static void bad_places(void **state)
{
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    hf_write(&h);
    assert_int_equal(convert(h.path, h.path, MDL_F32), VKMOE_ERR_IO);
    assert_int_equal(convert(h.path, hf_file(&h, "absent/out.gguf"), MDL_F32), VKMOE_ERR_IO);
    assert_int_equal(convert(hf_file(&h, "absent"), out_path(&h, "out.gguf"), MDL_F32), VKMOE_ERR_IO);
    assert_int_equal(convert(hf_file(&h, "config.json"), out_path(&h, "out.gguf"), MDL_F32),
                     VKMOE_ERR_FORMAT);
    if (cor_path_exists("/dev/full"))
        assert_int_equal(convert(h.path, "/dev/full", MDL_F32), VKMOE_ERR_IO);
    assert_int_equal(outputs(&h), 0);
}

/* A checkpoint as small as it gets, for tests that convert it thousands of times. */
static void make_smallest(struct hf_dir *h)
{
    hf_init(h);
    h->layers = 1;
    h->dim = 8;
    h->heads = h->kv_heads = 1;
    h->ff = 4;
    h->experts = 2;
    h->per_tok = 2;
    hf_write(h);
}

static void damaged_config(void **state)
{
    struct hf_dir h;
    uint64_t rng = test_seed();
    char *good, *hurt;
    size_t n, converted = 0;

    (void)state;
    make_smallest(&h);
    test_ok(cor_file_slurp(hf_file(&h, "config.json"), 1 << 16, &good, &n, &err), &err);
    hurt = cor_alloc(n);
    assert_non_null(hurt);
    for (size_t cut = 0; cut + 2 < n; cut++) { /* the last two bytes are "}\n" */
        hf_write_file(&h, "config.json", good, cut);
        assert_int_not_equal(convert(h.path, "/dev/null", MDL_F32), VKMOE_OK);
        assert_non_null(strstr(err.message, "config.json"));
    }
    for (int i = 0; i < 2000; i++) {
        memcpy(hurt, good, n);
        for (uint64_t k = test_rand(&rng) % 2 + 1; k; k--)
            hurt[test_rand(&rng) % n] ^= (char)(1u << (test_rand(&rng) % 8));
        hf_write_file(&h, "config.json", hurt, n);
        converted += convert(h.path, "/dev/null", MDL_F32) == VKMOE_OK;
    }
    assert_true(converted < 1000);
    cor_free(good);
    cor_free(hurt);
}

/* Flips in the header of a whole model file: opening it gives a line or a model. */
static void damaged_model(void **state)
{
    struct hf_dir h;
    struct mdl_model *m;
    uint64_t rng = test_seed(), header;
    char *good, out[4096];
    size_t n;

    (void)state;
    make_smallest(&h);
    snprintf(out, sizeof(out), "%s", out_path(&h, "out.gguf"));
    test_ok(convert(h.path, out, MDL_F32), &err);
    test_ok(mdl_open(&m, out, &err), &err);
    header = m->gguf->data_off;
    mdl_close(m);
    test_ok(cor_file_slurp(out, 1 << 20, &good, &n, &err), &err);
    for (int i = 0; i < 2000; i++) {
        FILE *f =
            remove(out) ? NULL : fopen(out, "wb"); /* truncating in place makes ext4 wait for the disk */
        uint64_t at = test_rand(&rng) % header;
        char bit = (char)(1u << (test_rand(&rng) % 8));

        assert_non_null(f);
        good[at] ^= bit;
        fwrite(good, 1, n, f);
        good[at] ^= bit;
        fclose(f);
        if (mdl_open(&m, out, &err) == VKMOE_OK)
            mdl_close(m);
        else
            assert_non_null(strstr(err.message, "out.gguf"));
    }
    cor_free(good);
}

static void every_failure_leaves_nothing(void **state)
{
    struct hf_dir h;
    long live = cor_alloc_live();
    char mid[4096], out[4096];

    (void)state;
    make_smallest(&h);
    snprintf(mid, sizeof(mid), "%s", hf_file(&h, "mid.gguf"));
    snprintf(out, sizeof(out), "%s", out_path(&h, "out.gguf"));
    test_ok(convert(h.path, mid, MDL_F32), &err);
    for (int way = 0; way < 4; way++) { /* allocations and reads or writes, from a checkpoint and from GGUF */
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth += nth < 100 ? 1 : 7) {
            assert_true(nth < 20000);
            (way & 1 ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = convert(way & 2 ? mid : h.path, out, MDL_BF16);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
            if (st != VKMOE_OK)
                assert_int_equal(outputs(&h), 0);
        }
        remove(out);
    }
}

/* ---- the bundled model ---- */

static void bundled_model_is_exact(void **state)
{
    const char *dir = test_shared("models/emo-nano"), *bundled = test_source("models/emo-nano.gguf");
    char out[4096], *a, *b;
    size_t n_a, n_b;

    (void)state;
    if (!dir)
        test_skip("shared/models/emo-nano is absent");
    snprintf(out, sizeof(out), "%s/emo-nano.gguf", test_tmp());
    test_ok(convert(dir, out, MDL_BF16), &err);
    test_ok(cor_file_slurp(out, 1 << 27, &a, &n_a, &err), &err);
    test_ok(cor_file_slurp(bundled, 1 << 27, &b, &n_b, &err), &err);
    assert_int_equal(n_a, n_b);
    assert_true(!memcmp(a, b, n_a)); /* what is in the repository is what the converter makes */
    cor_free(a);
    cor_free(b);
}

/* Rows of `to` against those of `from`, both as bf16 bits (or their exact f32). */
static void compare_bits(const struct mdl_gguf *g, const char *to, uint64_t plane, const struct mdl_st *s,
                         const char *from, uint64_t rotate)
{
    const struct mdl_tensor *t = mdl_gguf_tensor(g, to);
    const struct mdl_st_tensor *f = mdl_st_find(s, from);
    static uint16_t want[1 << 20];
    static uint8_t got[1 << 21];
    uint64_t cols, rows;

    assert_non_null(t);
    assert_non_null(f);
    cols = t->dims[0];
    rows = t->dims[1];
    assert_true(rows * cols <= 1 << 20 && f->bytes <= sizeof(want) && f->type == MDL_BF16);
    test_ok(cor_file_read(f->file, f->file_off, want, (size_t)f->bytes, &err), &err);
    for (uint64_t r = 0; r < rows; r++) {
        const uint16_t *w = want + checkpoint_row(r, rotate) * cols;
        uint64_t bytes = mdl_row_bytes(t->type, cols);

        test_ok(mdl_gguf_read(g, t, (plane * rows + r) * bytes, got, (size_t)bytes, &err), &err);
        for (uint64_t c = 0; c < cols; c++) {
            uint32_t wide = (uint32_t)w[c] << 16;

            if (memcmp(got + c * bytes / cols, t->type == MDL_F32 ? (void *)&wide : (void *)&w[c],
                       (size_t)(bytes / cols)))
                fail_msg("%s, plane %u, row %u, column %u differs", to, (unsigned)plane, (unsigned)r,
                         (unsigned)c);
        }
    }
}

static void bundled_model_against_the_checkpoint(void **state)
{
    static const struct {
        const char *to, *from;
        uint64_t rotate;
    } parts[] = {
        {"attn_norm", "pre_attention_layernorm", 0},
        {"ffn_norm", "pre_feedforward_layernorm", 0},
        {"attn_q", "self_attn.q_proj", 64},
        {"attn_k", "self_attn.k_proj", 64},
        {"attn_v", "self_attn.v_proj", 0},
        {"attn_output", "self_attn.o_proj", 0},
        {"ffn_gate_inp", "mlp.gate", 0},
    };
    static const char *const mats[] = {"gate", "up", "down"};
    const char *dir = test_shared("models/emo-nano");
    struct mdl_gguf *g;
    struct mdl_st *s;
    char to[128], from[128];

    (void)state;
    if (!dir)
        test_skip("shared/models/emo-nano is absent");
    test_ok(mdl_gguf_open(&g, test_source("models/emo-nano.gguf"), &err), &err);
    test_ok(mdl_st_open(&s, dir, &err), &err);
    compare_bits(g, "token_embd.weight", 0, s, "model.embed_tokens.weight", 0);
    compare_bits(g, "output.weight", 0, s, "lm_head.weight", 0);
    compare_bits(g, "output_norm.weight", 0, s, "model.norm.weight", 0);
    for (unsigned l = 0; l < 6; l++) {
        for (size_t p = 0; p < COR_COUNT(parts); p++) {
            snprintf(to, sizeof(to), "blk.%u.%s.weight", l, parts[p].to);
            snprintf(from, sizeof(from), "model.layers.%u.%s.weight", l, parts[p].from);
            compare_bits(g, to, 0, s, from, parts[p].rotate);
        }
        for (unsigned e = 0; e < 64; e++)
            for (int k = 0; k < 3; k++) {
                snprintf(to, sizeof(to), "blk.%u.ffn_%s_%s.weight", l, mats[k], e == 63 ? "shexp" : "exps");
                snprintf(from, sizeof(from), "model.layers.%u.mlp.experts.%u.%s_proj.weight", l, e, mats[k]);
                compare_bits(g, to, e == 63 ? 0 : e, s, from, 0);
            }
    }
    assert_int_equal(g->n_tensors, 3 + 6 * 13);
    mdl_st_close(s);
    mdl_gguf_close(g);
}

/* Norms, routers and biases of every architecture stay f32, or the file could not be opened. */
static void every_architecture(void **state)
{
    const char *dir = test_tmp();
    const struct mdl_shape *shape;
    char in[4200], quantised[4200];
    size_t n = 0;

    (void)state;
    snprintf(in, sizeof(in), "%s/in.gguf", dir);
    snprintf(quantised, sizeof(quantised), "%s/out.gguf", dir);
    for (size_t i = 0; (shape = mdl_shape_at(i)) != NULL; i++) {
        const struct mdl_synth_params p = {.out = in, .shape = *shape, .type = MDL_F32, .seed = 1};
        const struct mdl_convert_params q = {.in = in, .out = quantised, .type = MDL_Q4_0};
        struct mdl_model *m;

        if (strncmp(shape->name, "tiny-", 5))
            continue;
        test_ok(mdl_synth(&p, &err), &err);
        test_ok(mdl_convert(&q, &err), &err);
        test_ok(mdl_open(&m, quantised, &err), &err);
        assert_int_equal(mdl_main_matrix(m)->type, MDL_Q4_0);
        assert_string_equal(m->config.arch, shape->config.arch);
        mdl_close(m);
        n++;
    }
    assert_true(n > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_types),
        cmocka_unit_test(gguf_to_gguf),
        cmocka_unit_test(every_architecture),
        cmocka_unit_test(odd_rows_fall_back_to_f16),
        cmocka_unit_test(other_shapes),
        cmocka_unit_test(missing_keys_are_errors),
        cmocka_unit_test(settings),
        cmocka_unit_test(tensors_must_be_those_of_the_model),
        cmocka_unit_test(layers_that_differ),
        cmocka_unit_test(pruned_checkpoint),
        cmocka_unit_test(bad_places),
        cmocka_unit_test(damaged_config),
        cmocka_unit_test(damaged_model),
        cmocka_unit_test(every_failure_leaves_nothing),
        cmocka_unit_test(bundled_model_is_exact),
        cmocka_unit_test(bundled_model_against_the_checkpoint),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
