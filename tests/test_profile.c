/* Figures of a text's routing, against values known from arithmetic. */
#include <math.h>
#include <stdio.h>

#include "experts/profile.h"
#include "support/test.h"

#define NEAR(a, b) assert_true(fabs((a) - (b)) < 1e-12)

/* Logits whose softmax is proportional to w. */
static void logits_of(float *logits, const double *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        logits[i] = (float)log(w[i]);
}

static void init(struct xp_profile *p, uint32_t n_layers, uint32_t n_experts, const uint32_t *counts)
{
    struct vkmoe_err err;

    test_ok(xp_profile_init(p, n_layers, n_experts, counts, &err), &err);
}

static void add(struct xp_profile *p, uint32_t layer, const float *logits, uint32_t n_tokens)
{
    const struct vkmoe_watched w = {
        .layer = layer, .n_tokens = n_tokens, .n_experts = p->n_experts, .n_used = 1, .logits = logits};

    xp_profile_add(p, &w);
}

static void test_softmax(void **state)
{
    const float even[4] = {7, 7, 7, 7}, wide[3] = {1000, 0, -1000}, masked[3] = {-INFINITY, 2, -INFINITY},
                bad[3] = {NAN, NAN, NAN}, part[3] = {NAN, 1, 1}, up[2] = {INFINITY, 0};
    double p[4];

    (void)state;
    xp_profile_softmax(p, even, 4);
    for (int i = 0; i < 4; i++)
        NEAR(p[i], .25);
    xp_profile_softmax(p, wide, 3);
    NEAR(p[0], 1);
    NEAR(p[1] + p[2], 0);
    xp_profile_softmax(p, masked, 3);
    NEAR(p[1], 1);
    xp_profile_softmax(p, bad, 3);
    NEAR(p[0] + p[1] + p[2], 1);
    xp_profile_softmax(p, part, 3);
    NEAR(p[0], 0);
    NEAR(p[1], .5);
    xp_profile_softmax(p, up, 2);
    NEAR(p[0], 1);
}

/* Powers of two keep the means exact: 1/2, 1/4, 1/8, 1/8. */
static void test_known_values(void **state)
{
    const float logits[8] = {0, (float)-0.69314718055994530942, 0, 0, 0, 0, 0, 0};
    const double w[4] = {4, 2, 1, 1};
    float half[4];
    struct xp_profile p;
    uint32_t ids[4];

    (void)state;
    init(&p, 2, 4, NULL);
    assert_int_equal(xp_profile_best(&p, 0, 2, ids), 2); /* before any token: ties to the lower number */
    assert_int_equal(ids[0], 0);
    assert_int_equal(ids[1], 1);
    assert_true(xp_profile_mean(&p, 0, 0) == 0 && xp_profile_entropy(&p, 0) == 0);
    logits_of(half, w, 4);
    add(&p, 1, half, 1);
    assert_true(fabs(xp_profile_mean(&p, 1, 0) - .5) < 1e-7);
    assert_true(fabs(xp_profile_entropy(&p, 1) - 1.75) < 1e-6);
    assert_int_equal(xp_profile_above(&p, 1), 1); /* a quarter is not above a quarter by more than rounding */
    assert_true(fabs(xp_profile_mass(&p, 1, 2, ids) - .75) < 1e-7);
    assert_true(fabs(xp_profile_mass(&p, 1, 4, ids) - 1) < 1e-12);
    add(&p, 0, logits, 2); /* two tokens in one call: 2/7, 1/7, 2/7, 2/7 and an even one */
    assert_true(fabs(xp_profile_mean(&p, 0, 3) - (2. / 7 + .25) / 2) < 1e-8);
    assert_true(fabs(xp_profile_mean(&p, 0, 1) - (1. / 7 + .25) / 2) < 1e-8);
    assert_int_equal(p.tokens[0], 2);
    assert_int_equal(xp_profile_best(&p, 0, 9, ids), 4);
    assert_int_equal(ids[0], 0);
    assert_int_equal(ids[1], 2);
    assert_int_equal(ids[2], 3);
    assert_int_equal(ids[3], 1);
    xp_profile_free(&p);
    xp_profile_free(&p);
}

static void test_between_texts(void **state)
{
    const double one[4] = {1, 1, 1e-9, 1e-9}, other[4] = {1e-9, 1e-9, 1, 1};
    const uint32_t a[3] = {1, 2, 3}, b[3] = {3, 9, 2};
    struct xp_profile p, q;
    float l[4];

    (void)state;
    init(&p, 1, 4, NULL);
    init(&q, 1, 4, NULL);
    assert_true(xp_profile_cosine(&p, &q, 0) == 0);
    logits_of(l, one, 4);
    add(&p, 0, l, 1);
    logits_of(l, other, 4);
    add(&q, 0, l, 1);
    assert_true(fabs(xp_profile_cosine(&p, &p, 0) - 1) < 1e-12);
    assert_true(xp_profile_cosine(&p, &q, 0) < 1e-8);
    assert_true(fabs(xp_profile_entropy(&p, 0) - 1) < 1e-6);
    NEAR(xp_jaccard(a, 3, b, 3), .5);
    NEAR(xp_jaccard(a, 3, a, 3), 1);
    NEAR(xp_jaccard(a, 1, b, 1), 0);
    NEAR(xp_jaccard(a, 0, b, 0), 1);
    NEAR(xp_jaccard(a, 0, b, 2), 0);
    xp_profile_free(&p);
    xp_profile_free(&q);
}

/* A layer with fewer experts than the others: what stands behind them in a row is nobody's. */
static void test_uneven_layers(void **state)
{
    const uint32_t counts[2] = {2, 4};
    const float logits[4] = {1, 1, 99, NAN};
    struct xp_profile p;
    uint32_t ids[4];

    (void)state;
    init(&p, 2, 4, counts);
    add(&p, 0, logits, 1);
    NEAR(xp_profile_mean(&p, 0, 0), .5);
    NEAR(xp_profile_mean(&p, 0, 2), 0);
    NEAR(xp_profile_entropy(&p, 0), 1);
    assert_int_equal(xp_profile_best(&p, 0, 4, ids), 2);
    xp_profile_free(&p);
}

/* The best of random sums equal a full sort. */
static void test_best_is_sorted(void **state)
{
    enum { N = 37 };
    uint64_t seed = test_seed();
    struct xp_profile p;
    uint32_t ids[N];

    (void)state;
    init(&p, 1, N, NULL);
    p.tokens[0] = 1;
    for (int round = 0; round < 200; round++) {
        uint32_t top = (uint32_t)(test_rand(&seed) % (N + 1)), n;

        for (int e = 0; e < N; e++)
            p.sum[e] = (double)(test_rand(&seed) % 16);
        n = xp_profile_best(&p, 0, top, ids);
        assert_int_equal(n, top);
        for (uint32_t e = 0; e < N; e++) {
            uint32_t before = 0, at = 0;

            for (uint32_t o = 0; o < N; o++)
                before += p.sum[o] > p.sum[e] || (p.sum[o] == p.sum[e] && o < e);
            while (at < n && ids[at] != e)
                at++;
            assert_int_equal(at, before < n ? before : n);
        }
    }
    xp_profile_free(&p);
}

static void test_no_memory(void **state)
{
    (void)state;
    for (long nth = 1; nth <= 4; nth++) {
        struct vkmoe_err err;
        struct xp_profile p;
        long live = cor_alloc_live();

        cor_alloc_fail_from(nth);
        assert_int_equal(xp_profile_init(&p, 3, 5, NULL, &err), VKMOE_ERR_MEMORY);
        cor_alloc_fail_from(0);
        xp_profile_free(&p);
        assert_int_equal(cor_alloc_live(), live);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_softmax),        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_between_texts),  cmocka_unit_test(test_uneven_layers),
        cmocka_unit_test(test_best_is_sorted), cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
