/* Exact sums: every order and grouping gives the same bits, terms are rounded once, overflow is told. */
#include <math.h>

#include "experts/sum.h"
#include "support/test.h"

enum { TERMS = 500 };

static double random_term(uint64_t *rng)
{
    switch (test_rand(rng) % 4) {
    case 0:
        return (float)test_rand_unit(rng);
    case 1:
        return ldexp(test_rand_unit(rng), -(int)(test_rand(rng) % 90));
    case 2:
        return ldexp(test_rand_unit(rng), (int)(test_rand(rng) % 50));
    default:
        return 0;
    }
}

static void test_any_order(void **state)
{
    uint64_t rng = test_seed();
    double terms[TERMS];

    (void)state;
    for (int round = 0; round < 50; round++) {
        struct xp_sum first = {0, 0};

        for (int i = 0; i < TERMS; i++) {
            terms[i] = random_term(&rng);
            assert_true(xp_sum_add(&first, terms[i]));
        }
        for (int order = 0; order < 5; order++) { /* shuffled, in groups */
            struct xp_sum all = {0, 0}, group = {0, 0};

            for (int i = 0; i < TERMS; i++) {
                int j = i + (int)(test_rand(&rng) % (uint64_t)(TERMS - i));
                double t = terms[i];

                terms[i] = terms[j];
                terms[j] = t;
                assert_true(xp_sum_add(&group, terms[i]));
                if (test_rand(&rng) % 5 == 0 || i == TERMS - 1) {
                    assert_true(xp_sum_merge(&all, &group));
                    group = (struct xp_sum){0, 0};
                }
            }
            assert_int_equal(all.hi, first.hi);
            assert_int_equal(all.lo, first.lo);
        }
    }
}

static void test_rounding(void **state)
{
    static const struct {
        double x;
        uint64_t hi, lo;
    } cases[] = {
        {1, 1, 0},
        {0.5, 0, UINT64_C(1) << 63},
        {0x1p-64, 0, 1},
        {0x1p-65, 0, 0}, /* half: to even */
        {0x1.8p-64, 0, 2},
        {0x1.4p-63, 0, 2},
        {0x1.cp-63, 0, 4},
        {0x1.0000000000001p-65, 0, 1},
        {0x1p-66, 0, 0},
        {5e-324, 0, 0},
        {0, 0, 0},
        {-0.0, 0, 0},
        {3.25, 3, UINT64_C(1) << 62},
        {0x1.fffffffffffffp-12, 0, 0x1fffffffffffff},
        {0x1.fffffffffffffp-13, 0, UINT64_C(1) << 52},
        {0x1.fffffffffffffp63, 0xfffffffffffff800, 0},
        {0x1.fffffffffffffp0, 1, 0xfffffffffffff000},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct xp_sum s = {0, 0};

        assert_true(xp_sum_add(&s, cases[i].x));
        if (s.hi != cases[i].hi || s.lo != cases[i].lo)
            fail_msg("%a became %016llx %016llx", cases[i].x, (unsigned long long)s.hi,
                     (unsigned long long)s.lo);
    }
}

static void test_refused(void **state)
{
    static const double bad[] = {-1, -5e-324, HUGE_VAL, -HUGE_VAL, 0x1p64, 1e300};
    struct xp_sum s = {7, 9}, full = {UINT64_MAX, UINT64_MAX}, one = {0, 1}, half = {UINT64_MAX, 0};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(xp_sum_add(&s, bad[i]));
    assert_false(xp_sum_add(&s, nan("")));
    assert_true(s.hi == 7 && s.lo == 9);
    assert_false(xp_sum_merge(&full, &one));
    assert_true(full.hi == UINT64_MAX && full.lo == UINT64_MAX);
    assert_false(xp_sum_merge(&half, &half));
    assert_false(xp_sum_add(&half, 1));
    assert_true(xp_sum_add(&half, 0.5));
    assert_false(xp_sum_add(&half, 0.5)); /* the carry passes 2^64 */
    assert_true(half.hi == UINT64_MAX && half.lo == UINT64_C(1) << 63);
}

static void test_value(void **state)
{
    uint64_t rng = test_seed();

    (void)state;
    for (int i = 0; i < 20000; i++) { /* doubles that are multiples of the unit come back */
        double x = ldexp((double)(test_rand(&rng) >> 11), (int)(test_rand(&rng) % 75) - 64);
        struct xp_sum s = {0, 0};

        assert_true(xp_sum_add(&s, x));
        if (xp_sum_value(&s) != x)
            fail_msg("%a came back as %a", x, xp_sum_value(&s));
    }
    /* The nearest double: ties to even, and a bit far below breaks them. */
    assert_true(xp_sum_value(&(struct xp_sum){UINT64_C(1) << 53, 0}) == 0x1p53);
    assert_true(xp_sum_value(&(struct xp_sum){(UINT64_C(1) << 53) + 1, 0}) == 0x1p53);
    assert_true(xp_sum_value(&(struct xp_sum){(UINT64_C(1) << 53) + 1, 1}) == 0x1p53 + 2);
    assert_true(xp_sum_value(&(struct xp_sum){1, 1}) == 1);
    assert_true(xp_sum_value(&(struct xp_sum){UINT64_MAX, UINT64_MAX}) == 0x1p64);
    for (int i = 0; i < 1000; i++) {
        struct xp_sum a = {test_rand(&rng) % 3, test_rand(&rng) % 3},
                      b = {test_rand(&rng) % 3, test_rand(&rng) % 3};
        int want = a.hi != b.hi ? (a.hi > b.hi) - (a.hi < b.hi) : (a.lo > b.lo) - (a.lo < b.lo);
        int got = xp_sum_compare(&a, &b);

        assert_int_equal((got > 0) - (got < 0), want);
    }
}

static void test_hex(void **state)
{
    static const char *const bad[] = {"",
                                      "0",
                                      "0123456789abcdef0123456789abcde",
                                      "0123456789abcdef0123456789abcdef0",
                                      "0123456789abcdef0123456789abcdeF",
                                      "0123456789abcdef0123456789abcde ",
                                      "-123456789abcdef0123456789abcdef"};
    struct xp_sum a = {0x0123456789abcdef, 0xfedcba9876543210}, b;
    uint64_t rng = test_seed();
    char hex[XP_SUM_HEX];

    (void)state;
    assert_string_equal(xp_sum_hex(hex, &a), "0123456789abcdeffedcba9876543210");
    for (int i = 0; i < 1000; i++) {
        a = (struct xp_sum){test_rand(&rng), test_rand(&rng)};
        assert_true(xp_sum_parse(&b, xp_sum_hex(hex, &a)));
        assert_true(a.hi == b.hi && a.lo == b.lo);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(xp_sum_parse(&b, bad[i]));
    assert_true(a.hi == b.hi && a.lo == b.lo);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_order), cmocka_unit_test(test_rounding), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_value),     cmocka_unit_test(test_hex),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
