/* model/quant: block formats against llama.cpp's ggml, by sums of what its own readers and writers gave for
 * the same bytes and numbers (libggml-base of node-llama-cpp 3.22.1); and which format a matrix gets. */
#include "support/test.h"

#include <math.h>
#include <stdio.h>

#include "core/fnv.h"
#include "model/recipe.h"

enum { BLOCKS = 64, NUMBERS = 65536 };

static const struct {
    enum mdl_type type;
    int halves[2];    /* where they stand in a block, -1: none */
    uint64_t read;    /* FNV-1a of the floats of BLOCKS random blocks */
    double written;   /* squared error of NUMBERS written, of their own sum of squares */
} formats[] = {
    {MDL_Q4_0, {0, -1}, 0x87689494020ecf55u, 0.00706884},
    {MDL_Q4_1, {0, 2}, 0x8438a355275722c5u, 0.00582467},
    {MDL_Q5_0, {0, -1}, 0x77736719434f8494u, 0.00175526},
    {MDL_Q5_1, {0, 2}, 0x5e522df25dad052bu, 0.00135537},
    {MDL_Q8_0, {0, -1}, 0xae2ed2108bd6b4c0u, 2.71452e-05},
    {MDL_Q2_K, {80, 82}, 0x6765369c92f01f06u, 0.0837281},
    {MDL_Q3_K, {108, -1}, 0x6f1db29366cade16u, 0.0219807},
    {MDL_Q4_K, {0, 2}, 0x9173a4b8760ed3e2u, 0.00483156},
    {MDL_Q5_K, {0, 2}, 0xdd8d70c07ffccc18u, 0.00123711},
    {MDL_Q6_K, {208, -1}, 0x8dca1d2cc8bfadc8u, 0.00030028},
    {MDL_IQ4_NL, {0, -1}, 0x19f37ad79e2c1fd2u, 0.00553741},
    {MDL_MXFP4, {-1, -1}, 0x1ceac5d24992523au, 0.0131062},
};

static uint64_t step(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return *s;
}

static void test_read(void **unused)
{
    static uint8_t raw[BLOCKS * 256];
    static float back[BLOCKS * 256];

    (void)unused;
    for (size_t f = 0; f < COR_COUNT(formats); f++) {
        const struct mdl_type_info *t = mdl_type_find((uint32_t)formats[f].type);
        size_t n = (size_t)BLOCKS * t->block_elems;
        uint64_t s = 1;

        for (size_t i = 0; i < (size_t)BLOCKS * t->block_bytes; i++)
            raw[i] = (uint8_t)(step(&s) >> 56);
        for (size_t b = 0; b < BLOCKS; b++) {
            uint8_t *p = raw + b * t->block_bytes;

            for (int h = 0; h < 2; h++) /* finite */
                if (formats[f].halves[h] >= 0)
                    p[formats[f].halves[h] + 1] &= 0xbf;
            if (formats[f].type == MDL_MXFP4)
                p[0] = (uint8_t)(p[0] % 255);
        }
        mdl_dequant_row(t->type, raw, back, n);
        if (cor_fnv(COR_FNV_START, back, n * sizeof(float)) != formats[f].read)
            fail_msg("%s: read otherwise than by ggml", t->name);
    }
}

/* Normal ones, some blocks wider, some parts off the middle. */
static void make_numbers(float *x)
{
    uint64_t s = 1;

    for (int i = 0; i < NUMBERS; i++) {
        double n = -6;

        for (int k = 0; k < 12; k++)
            n += (double)(step(&s) >> 40) * 0x1p-24;
        x[i] = (float)(n * 0.02 * (i / 256 % 7 == 0 ? 3 : 1) + (i / 32 % 5 == 0 ? 0.01 : 0));
    }
}

/* Squared error, the first element of each block counted w0 times. */
static double error_of(const float *x, const float *back, uint32_t block, double w0)
{
    double e = 0;

    for (uint32_t i = 0; i < NUMBERS; i++)
        e += (i % block ? 1 : w0) * ((double)x[i] - back[i]) * ((double)x[i] - back[i]);
    return e;
}

static void test_written(void **unused)
{
    static float x[NUMBERS], back[NUMBERS], weights[NUMBERS];
    static uint8_t raw[NUMBERS * 2];
    double all = 0;

    (void)unused;
    make_numbers(x);
    for (int i = 0; i < NUMBERS; i++)
        all += (double)x[i] * x[i];
    for (size_t f = 0; f < COR_COUNT(formats); f++) {
        const struct mdl_type_info *t = mdl_type_find((uint32_t)formats[f].type);
        double plain, weighted, of_ggml = formats[f].written * all;

        assert_true(mdl_quant_row(t->type, x, raw, NUMBERS));
        mdl_dequant_row(t->type, raw, back, NUMBERS);
        plain = error_of(x, back, 32, 1);
        print_message("%s: %.1f %% of ggml's squared error\n", t->name, 100 * plain / of_ggml);
        assert_true(plain <= 1.02 * of_ggml);
        plain = error_of(x, back, 32, 50);
        for (int i = 0; i < NUMBERS; i++)
            weights[i] = i % 32 ? 1 : 50;
        assert_true(mdl_quant_row_weighted(t->type, x, weights, raw, NUMBERS));
        mdl_dequant_row(t->type, raw, back, NUMBERS);
        weighted = error_of(x, back, 32, 50);
        assert_true(t->type == MDL_Q8_0 ? weighted == plain : weighted < plain);
    }
}

/* Zeros, tiny numbers and one that does not fit a half. */
static void test_edges(void **unused)
{
    float x[256] = {0}, back[256];
    uint8_t raw[512];

    (void)unused;
    for (size_t f = 0; f < COR_COUNT(formats); f++) {
        const enum mdl_type type = formats[f].type;

        memset(x, 0, sizeof(x));
        memset(raw, 0xff, sizeof(raw));
        assert_true(mdl_quant_row(type, x, raw, 256));
        mdl_dequant_row(type, raw, back, 256);
        for (int i = 0; i < 256; i++)
            assert_true(back[i] == 0);
        for (int e = -149; e < -20; e++) {
            for (int i = 0; i < 256; i++)
                x[i] = (float)ldexp(i & 1 ? -1 : 1, e);
            assert_true(mdl_quant_row(type, x, raw, 256));
            mdl_dequant_row(type, raw, back, 256);
            for (int i = 0; i < 256; i++) /* a step of a half is 2^-24; scales of scales have a few of them */
                assert_true(fabs((double)back[i] - x[i]) <= 0x1p-19 + fabs((double)x[i]) * 0.2);
        }
        x[77] = NAN;
        assert_false(mdl_quant_row(type, x, raw, 256));
        x[77] = 3e38f;
        assert_true(mdl_quant_row(type, x, raw, 256) == (type == MDL_MXFP4));
    }
}

/* ---- recipes
 * ---------------------------------------------------------------------------------------------------- */

static const char *type_of(const char *recipe, uint32_t n_layers, uint32_t n_experts, const char *tensor,
                           uint64_t cols)
{
    const struct mdl_recipe_model m = {n_layers, n_experts, false};
    struct mdl_recipe r;

    assert_true(mdl_recipe_parse(&r, recipe));
    return mdl_type_find((uint32_t)mdl_recipe_type(&r, &m, tensor, cols))->name;
}

static void test_recipes(void **unused)
{
    static const struct {
        const char *recipe;
        uint32_t n_layers, n_experts;
        const char *tensor;
        uint64_t cols;
        const char *want;
    } cases[] = {
        {"Q4_K", 16, 128, "blk.0.attn_v.weight", 2048, "q4_k"},
        {"q4_k", 16, 128, "output.weight", 2048, "q4_k"},
        {"q4_k", 16, 128, "blk.0.attn_q.weight", 96, "q5_0"},
        {"q5_k", 16, 128, "blk.0.attn_q.weight", 96, "q5_1"},
        {"q6_k", 16, 128, "blk.0.attn_q.weight", 96, "q8_0"},
        {"q2_k", 16, 128, "blk.0.attn_q.weight", 96, "q4_0"},
        {"q3_k", 16, 128, "blk.0.attn_q.weight", 33, "f16"},
        {"q4_k_m", 16, 128, "output.weight", 2048, "q6_k"},
        {"q4_k_m", 16, 128, "output.weight", 96, "q8_0"},
        {"q4_k_m", 16, 128, "token_embd.weight", 2048, "q4_k"},
        {"q4_k_m", 16, 128, "blk.1.attn_v.weight", 2048, "q6_k"},
        {"q4_k_m", 16, 128, "blk.2.attn_v.weight", 2048, "q4_k"},
        {"q4_k_m", 16, 128, "blk.4.ffn_down_exps.weight", 1024, "q6_k"},
        {"q4_k_m", 16, 128, "blk.5.ffn_down_exps.weight", 1024, "q4_k"},
        {"q4_k_m", 16, 128, "blk.14.ffn_down_shexp.weight", 1024, "q6_k"},
        {"q4_k_m", 16, 128, "blk.14.ffn_up_exps.weight", 2048, "q4_k"},
        {"q4_k_m", 32, 8, "blk.9.attn_v.weight", 4096, "q8_0"},
        {"q4_k_m", 32, 8, "blk.9.attn_k.weight", 4096, "q8_0"},
        {"q4_k_m", 32, 8, "blk.9.attn_output.weight", 4096, "q5_k"},
        {"q4_k_s", 16, 128, "blk.3.attn_v.weight", 2048, "q5_k"},
        {"q4_k_s", 16, 128, "blk.4.attn_v.weight", 2048, "q4_k"},
        {"q4_k_s", 16, 128, "blk.1.ffn_down_exps.weight", 1024, "q5_k"},
        {"q5_k_m", 16, 128, "blk.0.attn_v.weight", 2048, "q6_k"},
        {"q5_k_m", 16, 128, "blk.2.ffn_down_exps.weight", 1024, "q5_k"},
        {"q3_k_m", 16, 128, "blk.0.attn_v.weight", 2048, "q5_k"},
        {"q3_k_m", 16, 128, "blk.2.attn_v.weight", 2048, "q4_k"},
        {"q3_k_m", 16, 128, "blk.0.ffn_down_exps.weight", 1024, "q5_k"},
        {"q3_k_m", 16, 128, "blk.1.ffn_down_exps.weight", 1024, "q4_k"},
        {"q3_k_m", 16, 128, "blk.1.attn_output.weight", 2048, "q4_k"},
        {"q3_k_l", 16, 128, "blk.1.attn_output.weight", 2048, "q5_k"},
        {"q3_k_s", 16, 128, "blk.1.attn_output.weight", 2048, "q3_k"},
    };
    struct mdl_recipe r;

    (void)unused;
    for (size_t i = 0; i < COR_COUNT(cases); i++)
        assert_string_equal(type_of(cases[i].recipe, cases[i].n_layers, cases[i].n_experts, cases[i].tensor,
                                    cases[i].cols),
                            cases[i].want);
    assert_false(mdl_recipe_parse(&r, "q4_k_x"));
    assert_false(mdl_recipe_parse(&r, "q2_k_m"));
    assert_true(mdl_recipe_parse(&r, "q4_k_m"));
    assert_int_equal(r.file_type, 15);
    r.has_experts = r.has_dense = true;
    r.experts = MDL_Q2_K;
    r.dense = MDL_Q8_0;
    assert_int_equal(
        mdl_recipe_type(&r, &(struct mdl_recipe_model){16, 128, false}, "blk.0.ffn_up_exps.weight", 2048),
        MDL_Q2_K);
    assert_int_equal(
        mdl_recipe_type(&r, &(struct mdl_recipe_model){16, 128, false}, "blk.0.ffn_up_shexp.weight", 2048),
        MDL_Q8_0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_written),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_recipes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
