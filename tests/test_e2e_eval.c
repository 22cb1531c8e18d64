/* Perplexity of real text on the device against the scalar reference, for both cache types and the quantised
 * formats. The complete texts against the golden sums are in tools/full, whose rows also set the model
 * (VKMOE_TEST_MODEL, default emo-nano) and the text (VKMOE_TEST_DOMAIN, default scripture) of this program.
 */
#include <math.h>
#include <stdio.h>

#include "support/device.h"

#define N_TOKENS      2200 /* at least so many, of whole documents, for the exact path; scripture: 2,228 */
#define N_FEW         1100 /* for caches of halves and quantised weights, and on slow drivers */
#define N_FEW_SLOW    500  /* for both, unless VKMOE_TEST_FULL is set */
#define MAX_DOCUMENTS 256
#define EOS           4094
#define SEPARATOR     "\n<|endoftext|>\n"

struct texts {
    uint32_t n_documents;
    int32_t *ids[MAX_DOCUMENTS]; /* end-of-text, document, end-of-text */
    size_t n[MAX_DOCUMENTS];
    double nll[MAX_DOCUMENTS]; /* of the reference, nats */
};

static struct texts texts;

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);

    return value ? value : otherwise;
}

static const char *model_path(enum mdl_type type)
{
    return golden_model(setting("VKMOE_TEST_MODEL", "emo-nano"), type);
}

static const char *text_path(void)
{
    const char *domain = setting("VKMOE_TEST_DOMAIN", "scripture"), *path;
    char rel[128];

    snprintf(rel, sizeof(rel), "tests/golden/data/%s.validation.txt", domain);
    path = test_source(rel);
    if (cor_path_exists(path))
        return path;
    snprintf(rel, sizeof(rel), "models/data/%s.validation.txt", domain);
    return test_shared(rel);
}

/* Documents until they predict N_TOKENS tokens; those longer than the context are passed over. */
static void load_texts(const struct mdl_tokenizer *tok, const char *path, uint32_t n_ctx)
{
    struct vkmoe_err err = {0};
    char *all, *p, *end;
    size_t n, total = 0;

    test_ok(cor_file_slurp(path, 1 << 24, &all, &n, &err), &err);
    for (p = all; total < N_TOKENS; p = end + strlen(SEPARATOR)) {
        uint32_t i = texts.n_documents;
        int32_t *ids;

        end = strstr(p, SEPARATOR);
        if (!end)
            break;
        assert_true(i < MAX_DOCUMENTS);
        test_ok(mdl_encode(tok, p, (size_t)(end - p), false, &ids, &n, &err), &err);
        if (n && n + 1 <= n_ctx) {
            texts.ids[i] = cor_array(n + 2, sizeof(int32_t));
            assert_non_null(texts.ids[i]);
            texts.ids[i][0] = texts.ids[i][n + 1] = EOS;
            memcpy(texts.ids[i] + 1, ids, n * sizeof(*ids));
            texts.n[i] = n + 2;
            texts.n_documents++;
            total += n + 1;
        }
        cor_free(ids);
    }
    assert_true(total >= N_TOKENS);
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
    for (uint32_t i = 0; i < texts.n_documents; i++) {
        mdl_ref_reset(ref);
        for (size_t t = 0; t + 1 < texts.n[i]; t++) {
            test_ok(mdl_ref_feed(ref, texts.ids[i][t], logits, NULL, &err), &err);
            texts.nll[i] += golden_token_nll(logits, vocab, texts.ids[i][t + 1]);
        }
    }
    mdl_ref_destroy(ref);
    cor_free(logits);
}

static int setup(void **state)
{
    struct vkmoe_err err = {0};
    struct mdl_model *m;
    const char *path = model_path(MDL_BF16), *text = text_path();

    (void)state;
    if (!path || !text) {
        test_skip("no model or no text to compare");
        return -1;
    }
    test_ok(mdl_open(&m, path, &err), &err);
    load_texts(m->tok, text, m->config.n_ctx_train);
    score_reference(m);
    mdl_close(m);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < texts.n_documents; i++)
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

    s->nll += golden_token_nll(logits, s->vocab, s->next[index]);
    return true;
}

static double exact_nll[MDL_BF16 + 1]; /* by type, the last score with the exact path */

/* limit: largest relative difference of the perplexity from the reference on the exact weights. */
static void check(enum mdl_type type, bool f16, bool few, double limit)
{
    struct device_case c;
    struct run_session *s;
    struct score score = {0};
    struct vkmoe_err err = {0};
    double reference = 0, tokens = 0, ratio, wanted;
    bool slow;

    device_open(&c, model_path(type), &(struct device_params){0});
    s = device_session(&c, &(struct run_session_params){.n_ctx = 1024,
                                                        .k_type = f16 ? MDL_F16 : MDL_F32,
                                                        .v_type = f16 ? MDL_F16 : MDL_F32});
    score.vocab = c.model->mdl->config.vocab_size;
    slow = device_slow(&c) && !test_full();
    wanted = few ? slow ? N_FEW_SLOW : N_FEW : slow ? N_FEW : N_TOKENS;
    for (uint32_t i = 0; i < texts.n_documents && tokens < wanted; i++) {
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
    exact_nll[type] = score.nll;
    run_session_destroy(s);
    device_close(&c);
}

/* Nats of the first documents, about n tokens of them; *n: how many there were. */
static double score_fast(struct device_case *c, double *n)
{
    struct run_session *s = device_session(c, &(struct run_session_params){.n_ctx = 1024, .fast_math = true});
    struct score score = {.vocab = c->model->mdl->config.vocab_size};
    struct vkmoe_err err = {0};
    double wanted = *n;

    *n = 0;
    for (uint32_t i = 0; i < texts.n_documents && *n < wanted; i++) {
        score.next = texts.ids[i] + 1;
        run_session_reset(s);
        test_ok(run_session_feed(s, texts.ids[i], texts.n[i] - 1, add_row, &score, &err), &err);
        *n += (double)(texts.n[i] - 1);
    }
    run_session_destroy(s);
    return score.nll;
}

/* Activations rounded to 8 bits: perplexity within 0.1 % of the exact path on the same weights. Of other
 * texts so few tokens are scored here that 0.2 % are chance: tools/full/perplexity.py --fast scores complete
 * ones. caps: with and without the device's dot product, which give the same bits. */
static void check_fast(enum mdl_type type)
{
    static const char *const caps[] = {NULL, "-dot8"};
    double nll[COR_COUNT(caps)], exact = exact_nll[type], n = 0, ratio;
    bool slow = false; /* test_kernels_dot compares the bits there, too */
    struct device_case c;

    if (getenv("VKMOE_TEST_DOMAIN"))
        return;
    assert_true(exact > 0); /* of the test before */

    for (uint32_t i = 0; i < COR_COUNT(caps) && !slow; i++) {
        device_open(&c, model_path(type), &(struct device_params){.caps = caps[i]});
        slow = device_slow(&c);
        n = slow ? N_FEW_SLOW : N_FEW;
        nll[i] = score_fast(&c, &n);
        device_close(&c);
    }
    ratio = expm1((nll[0] - exact) / n);
    print_message("%s, fast math: %g tokens, perplexity %.6f, exact %.6f, %+.6f %%\n",
                  mdl_type_find(type)->name, n, exp(nll[0] / n), exp(exact / n), 100 * ratio);
    assert_true(fabs(ratio) <= 1e-3);
    assert_true(nll[0] != exact); /* it was on */
    if (!slow)
        assert_true(nll[0] == nll[1]);
}

static void test_fast_q8_0(void **state)
{
    (void)state;
    check_fast(MDL_Q8_0);
}

static void test_fast_q4_0(void **state)
{
    (void)state;
    check_fast(MDL_Q4_0);
}

static void test_exact(void **state)
{
    (void)state;
    check(MDL_BF16, false, false, 1e-5);
}

static void test_f16_cache(void **state)
{
    (void)state;
    check(MDL_BF16, true, true, 1e-4);
}

static void test_q8_0(void **state)
{
    (void)state;
    check(MDL_Q8_0, false, true, 1e-3);
}

static void test_q4_0(void **state)
{
    (void)state;
    check(MDL_Q4_0, false, true, 3e-2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact),     cmocka_unit_test(test_q8_0),      cmocka_unit_test(test_q4_0),
        cmocka_unit_test(test_fast_q8_0), cmocka_unit_test(test_fast_q4_0), cmocka_unit_test(test_f16_cache),
    };
    /* A cache of halves flips experts here and there: on other texts its limit is for complete ones, which
     * tools/full has. */
    size_t n = COR_COUNT(tests) - (getenv("VKMOE_TEST_DOMAIN") != NULL);

    return _cmocka_run_group_tests("tests", tests, n, setup, teardown);
}
