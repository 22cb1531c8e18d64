/* Perplexity of real text on the device against the scalar reference, for both cache types and the quantised
 * formats. The complete texts against the golden sums are in tools/full. */
#include <math.h>
#include <stdio.h>

#include "support/device.h"

#define N_DOCUMENTS 6 /* 2,228 predicted tokens, for the exact path */
#define N_FEW       3 /* for caches of halves and quantised weights */
#define EOS         4094
#define SEPARATOR   "\n<|endoftext|>\n"

struct texts {
    int32_t *ids[N_DOCUMENTS]; /* end-of-text, document, end-of-text */
    size_t n[N_DOCUMENTS];
    double nll[N_DOCUMENTS]; /* of the reference, nats */
};

static struct texts texts;

static double token_nll(const float *logits, uint32_t vocab, int32_t id)
{
    double top = logits[0], sum = 0;

    for (uint32_t i = 1; i < vocab; i++)
        top = fmax(top, logits[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - top);
    return log(sum) + top - logits[id];
}

static void load_texts(const struct mdl_tokenizer *tok)
{
    struct vkmoe_err err = {0};
    char *all, *p;
    size_t n;

    test_ok(
        cor_file_slurp(test_source("tests/golden/data/scripture.validation.txt"), 1 << 20, &all, &n, &err),
        &err);
    p = all;
    for (uint32_t i = 0; i < N_DOCUMENTS; i++) {
        char *end = strstr(p, SEPARATOR);
        int32_t *ids;

        assert_non_null(end);
        test_ok(mdl_encode(tok, p, (size_t)(end - p), false, &ids, &n, &err), &err);
        texts.ids[i] = cor_array(n + 2, sizeof(int32_t));
        assert_non_null(texts.ids[i]);
        texts.ids[i][0] = texts.ids[i][n + 1] = EOS;
        memcpy(texts.ids[i] + 1, ids, n * sizeof(*ids));
        texts.n[i] = n + 2;
        cor_free(ids);
        p = end + strlen(SEPARATOR);
    }
    cor_free(all);
}

static void score_reference(const struct mdl_model *m)
{
    struct vkmoe_err err = {0};
    uint32_t vocab = m->config.vocab_size;
    float *logits = cor_array(vocab, sizeof(*logits));
    struct mdl_ref *ref;

    assert_non_null(logits);
    test_ok(mdl_ref_create(&ref, m, &(struct mdl_ref_params){.n_ctx = m->config.n_ctx_train}, &err), &err);
    for (uint32_t i = 0; i < N_DOCUMENTS; i++) {
        mdl_ref_reset(ref);
        for (size_t t = 0; t + 1 < texts.n[i]; t++) {
            test_ok(mdl_ref_feed(ref, texts.ids[i][t], logits, NULL, &err), &err);
            texts.nll[i] += token_nll(logits, vocab, texts.ids[i][t + 1]);
        }
    }
    mdl_ref_destroy(ref);
    cor_free(logits);
}

static int setup(void **state)
{
    struct vkmoe_err err = {0};
    struct mdl_model *m;

    (void)state;
    test_ok(mdl_open(&m, golden_model("emo-nano", MDL_BF16), &err), &err);
    load_texts(m->tok);
    score_reference(m);
    mdl_close(m);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < N_DOCUMENTS; i++)
        cor_free(texts.ids[i]);
    return 0;
}

struct score {
    const int32_t *next; /* the token that row 0 predicts */
    uint32_t vocab;
    double nll;
};

static bool add_row(void *user, size_t index, const float *logits)
{
    struct score *s = user;

    s->nll += token_nll(logits, s->vocab, s->next[index]);
    return true;
}

/* limit: largest relative difference of the perplexity from the reference on the exact weights. */
static void check(enum mdl_type type, bool f16, uint32_t n_documents, double limit)
{
    struct device_case c;
    struct run_session *s;
    struct score score = {0};
    struct vkmoe_err err = {0};
    double reference = 0, tokens = 0, ratio;

    device_open(&c, golden_model("emo-nano", type), &(struct device_params){0});
    s = device_session(&c, &(struct run_session_params){.n_ctx = 1024, .k_f16 = f16, .v_f16 = f16});
    score.vocab = c.model->mdl->config.vocab_size;
    for (uint32_t i = 0; i < n_documents; i++) {
        score.next = texts.ids[i] + 1;
        run_session_reset(s);
        test_ok(run_session_feed(s, texts.ids[i], texts.n[i] - 1, add_row, &score, &err), &err);
        reference += texts.nll[i];
        tokens += (double)(texts.n[i] - 1);
    }
    ratio = expm1((score.nll - reference) / tokens);
    print_message("%s, %s cache: %g tokens, perplexity %.6f, reference %.6f, %+.6f %% (limit %g %%)\n",
                  mdl_type_find(type)->name, f16 ? "f16" : "f32", tokens, exp(score.nll / tokens),
                  exp(reference / tokens), 100 * ratio, 100 * limit);
    assert_true(fabs(ratio) <= limit);
    run_session_destroy(s);
    device_close(&c);
}

static void test_exact(void **state)
{
    (void)state;
    check(MDL_BF16, false, N_DOCUMENTS, 1e-5);
}

static void test_f16_cache(void **state)
{
    (void)state;
    check(MDL_BF16, true, N_FEW, 1e-4);
}

static void test_q8_0(void **state)
{
    (void)state;
    check(MDL_Q8_0, false, N_FEW, 1e-3);
}

static void test_q4_0(void **state)
{
    (void)state;
    check(MDL_Q4_0, false, N_FEW, 3e-2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_f16_cache),
        cmocka_unit_test(test_q8_0),
        cmocka_unit_test(test_q4_0),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
