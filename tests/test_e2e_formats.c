/* Quantised files on the device against their F32 twins: files with the dequantised values, which the kernels
 * of F32 read. Prompt in chunks of many and of few tokens, then tokens one by one. */
#include <stdio.h>

#include "model/convert.h"
#include "model/synth.h"
#include "support/device.h"

enum { N_PROMPT = 17, N_DECODE = 2, N = N_PROMPT + N_DECODE, CHUNK = 12 };

static struct vkmoe_err err;

/* wide: random weights with rows of 256, which the formats _K need; else emo-nano, whose experts are
 * narrower, with what stands in for them. */
static const struct row {
    const char *name;
    bool wide;
    bool full; /* only at length: kernel tests have every decoder */
} rows[] = {
    {"q2_k", true, true},     {"q3_k", true, true},   {"q4_k", true, true},    {"q5_k", true, true},
    {"q6_k", true, true},     {"q4_1", false, true},  {"q5_0", false, true},   {"q5_1", false, true},
    {"iq4_nl", false, false}, {"mxfp4", false, true}, {"q4_k_m", true, false}, {"q4_k_m", false, true},
    {"q3_k_l", true, false},  {"q5_k_s", false, true},
};

static char *path_of(char *path, const char *dir, const char *name)
{
    snprintf(path, 4300, "%s/%s.gguf", dir, name);
    return path;
}

static void make_wide(const char *path)
{
    struct mdl_synth_params p = {
        .out = path, .shape = *mdl_shape_find("emo-nano"), .type = MDL_F32, .seed = 7};

    p.shape.config.n_layers = 2;
    p.shape.config.n_experts = 8;
    p.shape.config.n_experts_used = 2;
    p.shape.config.ff_expert = 256;
    p.shape.config.vocab_size = 320;
    p.shape.eos = 300;
    test_ok(mdl_synth(&p, &err), &err);
}

/* (N, vocab) logits; cor_free. */
static float *logits_of(const char *path, uint32_t *vocab)
{
    struct device_case c;
    struct run_session *s;
    int32_t tokens[N];
    float *prompt, *all;

    device_open(&c, path, &(struct device_params){.model = NULL});
    *vocab = c.model->mdl->config.vocab_size;
    for (uint32_t i = 0; i < N; i++)
        tokens[i] = (int32_t)(i * 37 % 290);
    s = device_session(&c, &(struct run_session_params){.n_ctx = N, .chunk = CHUNK});
    all = cor_array((size_t)N * *vocab, sizeof(*all));
    assert_non_null(all);
    prompt = device_feed_all(&c, s, tokens, N_PROMPT);
    memcpy(all, prompt, (size_t)N_PROMPT * *vocab * sizeof(*all));
    cor_free(prompt);
    for (uint32_t i = N_PROMPT; i < N; i++) {
        device_feed(s, tokens + i, 1);
        memcpy(all + (size_t)i * *vocab, run_session_logits(s), *vocab * sizeof(*all));
    }
    run_session_destroy(s);
    device_close(&c);
    return all;
}

static void check_row(const struct row *r, const char *dir, const char *source)
{
    char path[4300], twin[4300], what[64];
    struct golden_diff diff = {0};
    struct mdl_convert_params p = {.in = source, .out = path_of(path, dir, r->name), .recipe = NULL};
    struct mdl_recipe recipe;
    uint32_t vocab, twin_vocab;
    float *got, *want;

    assert_true(mdl_recipe_parse(&recipe, r->name));
    p.recipe = &recipe;
    test_ok(mdl_convert(&p, &err), &err);
    p = (struct mdl_convert_params){.in = path, .out = path_of(twin, dir, "twin"), .type = MDL_F32};
    test_ok(mdl_convert(&p, &err), &err);
    got = logits_of(path, &vocab);
    want = logits_of(twin, &twin_vocab);
    assert_int_equal(vocab, twin_vocab);
    golden_diff_add(&diff, got, want, (size_t)N * vocab);
    snprintf(what, sizeof(what), "%s, %s", r->name, r->wide ? "wide" : "emo-nano");
    golden_diff_check(&diff, what, 1e-10, 5e-4);
    cor_free(got);
    cor_free(want);
}

static void test_twins(void **state)
{
    const char *dir = test_tmp();
    char wide[4300];

    (void)state;
    make_wide(path_of(wide, dir, "wide"));
    for (size_t i = 0; i < COR_COUNT(rows); i++)
        if (test_full() || !rows[i].full)
            check_row(&rows[i], dir, rows[i].wide ? wide : test_source("models/emo-nano.gguf"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_twins)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
