/* run/sample: the chain's edge cases, its distribution against exact probabilities, and that draws are
 * reproducible. */
#include "support/test.h"

#include "run/sample.h"

#include <math.h>

#define N 40

static vkmoe_sampler *make(float temp, int32_t top_k, float top_p, float min_p, float penalty, uint64_t seed)
{
    struct vkmoe_sampler_params p = {temp, top_k, top_p, min_p, penalty, seed};
    struct vkmoe_err err;
    vkmoe_sampler *s;

    test_ok(vkmoe_sampler_create(&s, &p, &err), &err);
    return s;
}

static int32_t next(vkmoe_sampler *s, const float *logits, uint32_t n, uint32_t n_allowed)
{
    struct vkmoe_err err;
    int32_t token = -1;

    test_ok(vkmoe_sample(s, logits, n, n_allowed, &token, &err), &err);
    return token;
}

static void random_logits(float *z, uint32_t n, double spread, uint64_t *state)
{
    for (uint32_t i = 0; i < n; i++)
        z[i] = (float)((test_rand_unit(state) * 2 - 1) * spread);
}

/* ---- argmax and greedy
 * -------------------------------------------------------------------------------------------- */

static void test_argmax(void **state)
{
    const float a[] = {-5, NAN, 3, 3, INFINITY, -INFINITY, 2};
    const float none[] = {NAN, INFINITY, -INFINITY};

    (void)state;
    assert_int_equal(run_argmax(a, 7), 2);
    assert_int_equal(run_argmax(a, 2), 0);
    assert_int_equal(run_argmax(a + 1, 1), -1);
    assert_int_equal(run_argmax(none, 3), -1);
    assert_int_equal(run_argmax(a, 0), -1);
}

static void test_greedy(void **state)
{
    const float z[] = {1, 7, NAN, 7, -INFINITY, 9, INFINITY};
    vkmoe_sampler *s = make(0, 0, 1, 0, 1, 1);

    (void)state;
    assert_int_equal(next(s, z, 7, 7), 5);
    assert_int_equal(next(s, z, 7, 5),
                     1); /* ids from n_allowed on are never drawn; ties go to the lower id */
    assert_int_equal(next(s, z, 7, 99), 5);
    vkmoe_sampler_destroy(s);
    s = make(0, 3, 0.1f, 0.9f, 1, 1); /* filters never change the greedy choice */
    assert_int_equal(next(s, z, 7, 7), 5);
    vkmoe_sampler_destroy(s);
}

/* Each of these leaves one candidate however hot the temperature is. */
static void test_single_candidate(void **state)
{
    uint64_t seed = test_seed();
    float z[N];

    (void)state;
    for (int round = 0; round < 50; round++) {
        int32_t best;
        vkmoe_sampler *s[5] = {make(100, 1, 1, 0, 1, (uint64_t)round),
                               make(100, 0, 1e-6f, 0, 1, (uint64_t)round),
                               make(100, 0, 0, 0, 1, (uint64_t)round), make(100, 0, 1, 1, 1, (uint64_t)round),
                               make(1e-30f, 0, 1, 0, 1, (uint64_t)round)};

        random_logits(z, N, 3, &seed);
        best = run_argmax(z, N);
        for (int i = 0; i < 5; i++) {
            for (int k = 0; k < 10; k++)
                assert_int_equal(next(s[i], z, N, N), best);
            vkmoe_sampler_destroy(s[i]);
        }
    }
}

/* Equal logits at the edge of top-k and of top-p: the lower ids stay. */
static void test_ties(void **state)
{
    const float z[8] = {1, 2, 2, 2, 2, 2, 2, 1};
    vkmoe_sampler *a = make(1, 3, 1, 0, 1, 5), *b = make(1, 0, 0.4f, 0, 1, 5);

    (void)state;
    for (int i = 0; i < 300; i++) {
        int32_t id = next(a, z, 8, 8);

        assert_true(id >= 1 && id <= 3);
        id = next(b, z, 8, 8); /* mass: 6 of 1, 2 of 1/e, so the third reaches 0.4 */
        assert_true(id >= 1 && id <= 3);
    }
    vkmoe_sampler_destroy(a);
    vkmoe_sampler_destroy(b);
}

/* ---- distribution
 * --------------------------------------------------------------------------------------------------- */

/* The chain as documented, with a full sort and libm. */
static void exact(const float *z, uint32_t n, const struct vkmoe_sampler_params *p, double *prob)
{
    uint32_t order[N], kept = 0, k;
    double sum = 0, mass = 0, total = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;

        for (; at > 0 && z[order[at - 1]] < z[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
        prob[i] = 0;
    }
    k = p->top_k > 0 && (uint32_t)p->top_k < n ? (uint32_t)p->top_k : n;
    for (uint32_t i = 0; i < k; i++)
        sum += exp((double)z[order[i]] - z[order[0]]);
    while (kept < k && (kept == 0 || mass < (double)p->top_p * sum || p->top_p >= 1))
        mass += exp((double)z[order[kept++]] - z[order[0]]);
    for (uint32_t i = 0; i < kept; i++)
        if (exp((double)z[order[i]] - z[order[0]]) >= (double)p->min_p)
            total += prob[order[i]] = exp(((double)z[order[i]] - z[order[0]]) / (double)p->temp);
    for (uint32_t i = 0; i < n; i++)
        prob[i] /= total;
}

/* Chi-square over classes expected at least five times; a right sampler stays below mean + 6 standard
 * deviations. */
static void check_distribution(const struct vkmoe_sampler_params *p, const float *z, uint32_t draws)
{
    double prob[N], chi = 0, rest = 0;
    uint32_t seen[N] = {0}, classes = 0, rest_seen = 0;
    vkmoe_sampler *s = make(p->temp, p->top_k, p->top_p, p->min_p, p->repeat_penalty, p->seed);

    exact(z, N, p, prob);
    for (uint32_t i = 0; i < draws; i++) {
        int32_t id = next(s, z, N, N);

        assert_true(id >= 0 && id < N);
        assert_true(prob[id] > 0); /* nothing outside the filters */
        seen[id]++;
    }
    for (uint32_t i = 0; i < N; i++) {
        double want = prob[i] * draws;

        if (want < 5) {
            rest += want;
            rest_seen += seen[i];
            continue;
        }
        chi += (seen[i] - want) * (seen[i] - want) / want;
        classes++;
    }
    chi += (rest_seen - rest) * (rest_seen - rest) / (rest + 1);
    assert_true(chi < classes + 6 * sqrt(2.0 * classes) + 6);
    vkmoe_sampler_destroy(s);
}

static void test_distribution(void **state)
{
    static const struct vkmoe_sampler_params chains[] = {
        {1, 0, 1, 0, 1, 11},         {0.8f, 40, 0.95f, 0.05f, 1, 12}, {1.7f, 5, 1, 0, 1, 13},
        {1, 0, 0.7f, 0, 1, 14},      {1, 0, 1, 0.3f, 1, 15},          {2.5f, 12, 0.8f, 0.1f, 1, 16},
        {0.5f, 39, 0.99f, 0, 1, 17}, {1, 7, 0.999f, 0, 1, 18},
    };
    uint64_t seed = 2026; /* fixed: the bound above is one of probability */
    float z[N];

    (void)state;
    for (size_t c = 0; c < COR_COUNT(chains); c++) {
        random_logits(z, N, 1 + (double)c / 2, &seed);
        check_distribution(&chains[c], z, 40000);
    }
}

/* ---- reproducible
 * ---------------------------------------------------------------------------------------------------- */

static void test_same_seed_same_tokens(void **state)
{
    /* Written down once: any machine and compiler must give these. */
    static const int32_t want[24] = {25, 8,  20, 18, 9,  25, 26, 11, 25, 29, 24, 24,
                                     31, 38, 21, 27, 11, 18, 5,  2,  7,  7,  0,  34};
    uint64_t seed = 7;
    float z[N];
    vkmoe_sampler *a = make(1.3f, 0, 0.97f, 0, 1.1f, 42), *b = make(1.3f, 0, 0.97f, 0, 1.1f, 42),
                  *c = make(1.3f, 0, 0.97f, 0, 1.1f, 43);
    int differ = 0;

    (void)state;
    for (int i = 0; i < 24; i++) {
        int32_t t;

        random_logits(z, N, 2, &seed);
        t = next(a, z, N, N);
        assert_int_equal(t, next(b, z, N, N));
        differ += t != next(c, z, N, N);
        assert_int_equal(t, want[i]);
    }
    assert_true(differ > 10);
    vkmoe_sampler_destroy(a);
    vkmoe_sampler_destroy(b);
    vkmoe_sampler_destroy(c);
}

/* ---- repeat penalty
 * --------------------------------------------------------------------------------------------------- */

static void test_repeat_penalty(void **state)
{
    float z[100] = {0};
    vkmoe_sampler *s = make(0, 0, 1, 0, 2, 1);

    (void)state;
    z[10] = 3;
    z[20] = 2;
    for (int i = 30; i < 100; i++)
        z[i] = -5;
    assert_int_equal(next(s, z, 100, 100), 10);
    assert_int_equal(next(s, z, 100, 100), 20); /* 10 is at 1.5 now */
    assert_int_equal(next(s, z, 100, 100), 10); /* 1.5 against 1: penalised once, however often it was seen */
    assert_int_equal(next(s, z, 100, 100), 10);
    for (int i = 0; i < 63; i++)
        vkmoe_sampler_accept(s, 1000 + i); /* ids outside the vocabulary are harmless */
    z[20] = 1.6f;
    assert_int_equal(next(s, z, 100, 100), 20); /* 10 is still the oldest of the 64 */
    z[25] = 2;
    assert_int_equal(next(s, z, 100, 100), 10); /* and has left the window now, back at 3 */
    vkmoe_sampler_destroy(s);
    s = make(0, 0, 1, 0, 2, 1);
    for (int i = 0; i < 100; i++)
        z[i] = -1;
    vkmoe_sampler_accept(s, 0);
    vkmoe_sampler_accept(s, -1);
    assert_int_equal(next(s, z, 100, 100), 1); /* negative logits fall, too */
    vkmoe_sampler_destroy(s);
    s = make(0, 0, 1, 0, 2, 1); /* logits at the end of float's range stay ordered */
    z[0] = -3.4e38f;
    vkmoe_sampler_accept(s, 0);
    assert_int_equal(next(s, z, 1, 1), 0);
    vkmoe_sampler_destroy(s);
}

/* ---- bad input
 * ----------------------------------------------------------------------------------------------------------
 */

static void test_non_finite(void **state)
{
    const float none[] = {NAN, -INFINITY, INFINITY}, some[] = {NAN, -INFINITY, -3, INFINITY, -2.5f};
    vkmoe_sampler *s = make(1, 0, 1, 0, 1, 3), *g = make(0, 0, 1, 0, 1, 3);
    struct vkmoe_err err;
    int32_t token = 77;

    (void)state;
    assert_int_equal(vkmoe_sample(s, none, 3, 3, &token, &err), VKMOE_ERR_NUMERIC);
    assert_int_equal(vkmoe_sample(g, none, 3, 3, &token, &err), VKMOE_ERR_NUMERIC);
    assert_int_equal(vkmoe_sample(s, some, 5, 2, &token, &err), VKMOE_ERR_NUMERIC);
    assert_int_equal(vkmoe_sample(s, some, 5, 0, &token, NULL), VKMOE_ERR_NUMERIC);
    assert_int_equal(token, 77); /* outputs are set on success only */
    for (int i = 0; i < 100; i++) {
        int32_t id = next(s, some, 5, 5);

        assert_true(id == 2 || id == 4);
    }
    vkmoe_sampler_destroy(s);
    vkmoe_sampler_destroy(g);
}

static void test_bad_params(void **state)
{
    static const struct vkmoe_sampler_params bad[] = {
        {-1, 0, 1, 0, 1, 0},   {NAN, 0, 1, 0, 1, 0},   {INFINITY, 0, 1, 0, 1, 0}, {1, -1, 1, 0, 1, 0},
        {1, 0, 1.1f, 0, 1, 0}, {1, 0, -0.1f, 0, 1, 0}, {1, 0, NAN, 0, 1, 0},      {1, 0, 1, 1.5f, 1, 0},
        {1, 0, 1, -1, 1, 0},   {1, 0, 1, 0, 0, 0},     {1, 0, 1, 0, -2, 0},       {1, 0, 1, 0, INFINITY, 0},
    };
    vkmoe_sampler *s;
    struct vkmoe_err err;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        s = (vkmoe_sampler *)&err;
        err.message[0] = 0;
        assert_int_equal(vkmoe_sampler_create(&s, &bad[i], &err), VKMOE_ERR_ARGUMENT);
        assert_null(s);
        assert_true(strlen(err.message) > 10);
    }
    vkmoe_sampler_destroy(NULL);
    test_ok(vkmoe_sampler_create(&s, NULL, &err), &err); /* NULL: the defaults */
    vkmoe_sampler_destroy(s);
}

static void test_out_of_memory(void **state)
{
    struct vkmoe_sampler_params p;
    struct vkmoe_err err;
    float z[N] = {0};
    int32_t token;
    vkmoe_sampler *s;
    long live = cor_alloc_live();

    (void)state;
    vkmoe_sampler_defaults(&p);
    cor_alloc_fail_from(1);
    assert_int_equal(vkmoe_sampler_create(&s, &p, &err), VKMOE_ERR_MEMORY);
    cor_alloc_fail_from(2);
    test_ok(vkmoe_sampler_create(&s, &p, &err), &err);
    assert_int_equal(vkmoe_sample(s, z, N, N, &token, &err), VKMOE_ERR_MEMORY);
    cor_alloc_fail_from(0);
    test_ok(vkmoe_sample(s, z, N, N, &token, &err), &err);
    vkmoe_sampler_destroy(s);
    assert_int_equal(cor_alloc_live(), live);
}

/* A vocabulary of real size: the filters agree with a plain count. */
static int by_logit(const float *z, int32_t a, int32_t b)
{
    return z[a] > z[b] || (z[a] == z[b] && a < b);
}

/* The n best, as a session gives them. */
static void best_of(const float *z, uint32_t n_all, uint32_t n, int32_t *ids, float *best)
{
    for (uint32_t i = 0, count = 0; i < n_all; i++) {
        uint32_t at = count < n ? count++ : n;

        if (at == n && !by_logit(z, (int32_t)i, ids[n - 1]))
            continue;
        for (at = at == n ? n - 1 : at; at && by_logit(z, (int32_t)i, ids[at - 1]); at--)
            ids[at] = ids[at - 1];
        ids[at] = (int32_t)i;
    }
    for (uint32_t i = 0; i < n; i++)
        best[i] = z[ids[i]];
}

/* The best logits give the tokens of all of them, whatever the settings: draw for draw. */
static void test_top_gives_the_same(void **state)
{
    enum { ALL = 300, TOP = 20, DRAWS = 40 };
    static const float temps[] = {0, 0.3f, 1, 3}, top_ps[] = {1, 0.9f, 0.3f, 0}, min_ps[] = {0, 0.05f, 0.6f};
    uint64_t rng = test_seed();
    struct vkmoe_err err;
    float z[ALL], best[TOP];
    int32_t ids[TOP], token;

    (void)state;
    for (uint32_t c = 0; c < 4 * 4 * 3 * 3; c++) {
        const uint32_t all = c % 3 == 2 ? TOP : ALL; /* so few that the best are all */
        const int32_t top_k = c % 3 == 0 ? TOP : c % 3 == 1 ? 7 : 40;
        const float temp = temps[c / 3 % 4], top_p = top_ps[c / 12 % 4], min_p = min_ps[c / 48];
        vkmoe_sampler *a = make(temp, top_k, top_p, min_p, 1, c), *b = make(temp, top_k, top_p, min_p, 1, c);

        for (int i = 0; i < DRAWS; i++) {
            random_logits(z, all, 4, &rng);
            for (uint32_t k = 0; i % 2 && k < all; k++)
                z[k] = (float)(int)z[k]; /* ties */
            best_of(z, all, TOP, ids, best);
            test_ok(vkmoe_sample_top(b, ids, best, TOP, all, &token, &err), &err);
            assert_int_equal(token, next(a, z, all, all));
        }
        vkmoe_sampler_destroy(a);
        vkmoe_sampler_destroy(b);
    }
}

static void test_top_refused(void **state)
{
    const struct {
        float temp, penalty;
        int32_t top_k;
        uint32_t n;
        enum vkmoe_status st;
    } cases[] = {{1, 1, 0, 3, VKMOE_ERR_ARGUMENT},
                 {1, 1, 4, 3, VKMOE_ERR_ARGUMENT},
                 {0, 1.1f, 1, 3, VKMOE_ERR_ARGUMENT},
                 {0, 1, 1, 0, VKMOE_ERR_NUMERIC},
                 {1, 1, 3, 3, VKMOE_OK},
                 {0, 1, 0, 1, VKMOE_OK}};
    const int32_t ids[] = {5, 2, 9};
    const float z[] = {3, 2, 1};

    (void)state;
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        vkmoe_sampler *s = make(cases[i].temp, cases[i].top_k, 1, 0, cases[i].penalty, 1);
        struct vkmoe_err err;
        int32_t token = -1;

        assert_int_equal(vkmoe_sample_top(s, ids, z, cases[i].n, 10, &token, &err), cases[i].st);
        assert_true(cases[i].st == VKMOE_OK ? token >= 0 : token == -1);
        vkmoe_sampler_destroy(s);
    }
}

static void test_large_vocabulary(void **state)
{
    const uint32_t n = 100352;
    uint64_t seed = test_seed();
    float *z = cor_array(n, sizeof(*z));
    vkmoe_sampler *s = make(1.5f, 50, 1, 0, 1, 9);

    (void)state;
    assert_non_null(z);
    random_logits(z, n, 8, &seed);
    for (int i = 0; i < 40; i++) {
        int32_t id = next(s, z, n, n);
        uint32_t above = 0;

        for (uint32_t k = 0; k < n; k++)
            above += z[k] > z[id];
        assert_true(above < 50);
    }
    vkmoe_sampler_destroy(s);
    cor_free(z);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_argmax),           cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_single_candidate), cmocka_unit_test(test_ties),
        cmocka_unit_test(test_distribution),     cmocka_unit_test(test_same_seed_same_tokens),
        cmocka_unit_test(test_repeat_penalty),   cmocka_unit_test(test_non_finite),
        cmocka_unit_test(test_bad_params),       cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_large_vocabulary), cmocka_unit_test(test_top_gives_the_same),
        cmocka_unit_test(test_top_refused),
    };

    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
