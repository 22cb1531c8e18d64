/* Budgets, order and the random choice: known answers, ties, limits. */
#include <stdio.h>

#include "experts/rank.h"
#include "support/test.h"

static const struct xp_shape shape = {6, 63, 1, 5};

static void test_budgets(void **state)
{
    static const struct {
        const char *kind, *text;
        uint32_t keep; /* 0: refused */
        const char *say;
        bool rounded;
    } cases[] = {
        {"keep", "8", 8, NULL, false},
        {"keep", "64", 64, NULL, false},
        {"keep", "6", 6, NULL, false},
        {"keep", "5", 0, "6 is the smallest", false},
        {"keep", "65", 0, "it has 64", false},
        {"keep", "12.5%", 8, NULL, false},
        {"keep", "100%", 64, NULL, false},
        {"keep", "12%", 8, NULL, true},
        {"keep", "13.3%", 9, NULL, true},
        {"keep", "9.375%", 6, NULL, false},
        {"keep", "5%", 0, "6 is the smallest", false},
        {"keep", "0%", 0, "neither", false},
        {"keep", "101%", 0, "neither", false},
        {"keep", "-8", 0, "neither", false},
        {"keep", "8x", 0, "neither", false},
        {"keep", "", 0, "neither", false},
        {"keep", "0", 0, "neither", false},
        {"keep", "99999999999999999999", 0, "neither", false},
        {"keep", "12.5 %", 0, "neither", false},
        {"list", "8,8,6,10,64,8", 8, NULL, false},
        {"list", "8,8,6,10,64", 0, "5 numbers of experts for 6 layers", false},
        {"list", "8,8,5,10,64,8", 0, "6 is the smallest", false},
        {"list", "8,8,,10,64,8", 0, "for each layer", false},
        {"list", "8,8,", 0, "for each layer", false},
        {"cover", "95%", 0, NULL, false},
        {"cover", "95", 0, "percentage", false},
        {"cover", "0.0%", 0, "percentage", false},
        {"cover", "100.5%", 0, "percentage", false},
    };

    (void)state;
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        struct vkmoe_err err = {0};
        struct xp_budget b;
        bool rounded = false;
        enum vkmoe_status st = !strcmp(cases[i].kind, "keep")   ? xp_budget_keep(&b, cases[i].text, &err)
                               : !strcmp(cases[i].kind, "list") ? xp_budget_per_layer(&b, cases[i].text, &err)
                                                                : xp_budget_coverage(&b, cases[i].text, &err);

        if (st == VKMOE_OK)
            st = xp_budget_fit(&b, &shape, &rounded, &err);
        if (cases[i].say) {
            assert_int_equal(st, VKMOE_ERR_ARGUMENT);
            if (!strstr(err.message, cases[i].say))
                fail_msg("\"%s\" does not say \"%s\"", err.message, cases[i].say);
        } else {
            test_ok(st, &err);
            if (b.kind == XP_KEEP)
                assert_int_equal(b.keep, cases[i].keep);
            assert_int_equal(rounded, cases[i].rounded);
        }
        xp_budget_free(&b);
    }
}

static void test_order(void **state)
{
    static const double scores[] = {0.5, 2, 0.5, 0, 2, 3, 0.5};
    static const uint32_t want[] = {5, 1, 4, 0, 2, 6, 3};
    struct xp_sum sums[7] = {{0, 0}};
    uint32_t ids[7];

    (void)state;
    for (int i = 0; i < 7; i++)
        assert_true(xp_sum_add(&sums[i], scores[i]));
    xp_rank_order(ids, sums, 7);
    assert_memory_equal(ids, want, sizeof(want));
}

/* One layer of 8 + 1 experts, 2 used. */
static void make_stats(struct xp_stats *s, struct xp_sum p[8], uint64_t chosen[8])
{
    static const double probability[8] = {5, 40, 5, 20, 10, 5, 10, 5};
    static uint32_t there = 8;

    *s = (struct xp_stats){.n_layers = 1, .n_routed = 8, .n_shared = 1, .n_used = 2, .n_there = &there};
    memset(p, 0, 8 * sizeof(*p));
    for (uint32_t e = 0; e < 8; e++) {
        assert_true(xp_sum_add(&p[e], probability[e]));
        chosen[e] = e == 1 ? 50 : e == 3 ? 30 : e == 4 ? 20 : 0;
    }
    s->probability = p;
    s->chosen = chosen;
}

static uint32_t choose(const struct xp_stats *s, struct xp_budget b, double *held, double *chosen)
{
    struct vkmoe_err err = {0};
    struct xp_subset sub;
    uint32_t mask = 0;

    test_ok(xp_subset_init(&sub, "", 1, 8, 1, "", &err), &err);
    test_ok(xp_rank(&sub, s, &b, XP_BY_PROBABILITY, 0, &err), &err);
    for (uint32_t e = 0; e < 8; e++)
        mask |= (uint32_t)xp_subset_has(&sub, 0, e) << e;
    *held = xp_rank_held(&sub, s, 0);
    *chosen = xp_rank_chosen(&sub, s, 0);
    xp_subset_free(&sub);
    return mask;
}

static void test_choice(void **state)
{
    static const struct {
        struct xp_budget b;
        uint32_t mask;
        double held, chosen;
    } cases[] = {
        {{.kind = XP_KEEP, .keep = 3}, 0x0a, 0.6, 0.8},
        {{.kind = XP_KEEP, .keep = 5}, 0x5a, 0.8, 1},
        {{.kind = XP_KEEP, .keep = 6}, 0x5b, 0.85, 1}, /* of equal ones the lower id */
        {{.kind = XP_KEEP, .keep = 9}, 0xff, 1, 1},
        {{.kind = XP_COVERAGE, .percent = 60}, 0x0a, 0.6, 0.8},
        {{.kind = XP_COVERAGE, .percent = 61}, 0x1a, 0.7, 1},
        {{.kind = XP_COVERAGE, .percent = 10}, 0x0a, 0.6, 0.8}, /* as many as a token uses */
        {{.kind = XP_COVERAGE, .percent = 100}, 0xff, 1, 1},
    };
    struct xp_sum p[8];
    uint64_t chosen[8];
    struct xp_stats s;

    (void)state;
    make_stats(&s, p, chosen);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        double held, share;

        assert_int_equal(choose(&s, cases[i].b, &held, &share), cases[i].mask);
        assert_float_equal(held, cases[i].held, 1e-12);
        assert_float_equal(share, cases[i].chosen, 1e-12);
    }
}

/* What docs/FORMATS.md says, written out. */
static uint64_t plain_next(uint64_t *state)
{
    uint64_t z;

    *state += 0x9e3779b97f4a7c15u;
    z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void test_random(void **state)
{
    uint32_t ids[127], again[127], hits[10] = {0};

    (void)state;
    for (uint32_t layer = 0; layer < 16; layer++) {
        uint64_t first = 42, second = 0;
        uint32_t want[127];

        for (uint32_t l = 0; l <= layer; l++)
            second = plain_next(&first);
        for (uint32_t i = 0; i < 127; i++)
            want[i] = i;
        for (uint32_t i = 0; i < 126; i++) {
            uint32_t n = 127 - i, j, t;
            uint64_t x;

            do
                x = plain_next(&second);
            while (x < (uint64_t)(-(uint64_t)n) % n);
            j = i + (uint32_t)(x % n);
            t = want[i];
            want[i] = want[j];
            want[j] = t;
        }
        xp_rank_shuffle(ids, 127, 42, layer);
        assert_memory_equal(ids, want, sizeof(want));
        xp_rank_shuffle(again, 127, 43, layer);
        assert_memory_not_equal(again, ids, sizeof(ids));
    }
    for (uint64_t seed = 0; seed < 10000; seed++) { /* each expert first about as often */
        xp_rank_shuffle(ids, 10, seed, 0);
        hits[ids[0]]++;
    }
    for (int i = 0; i < 10; i++)
        assert_in_range(hits[i], 850, 1150);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
