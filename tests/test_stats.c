/* Statistics: sums against a plain computation, files in any order and grouping with the same bytes, what
 * must be refused, damage. */
#include <math.h>
#include <stdio.h>

#include "core/bits.h"
#include "core/digest.h"
#include "experts/stats.h"
#include "support/golden.h"

enum { N_TOKENS = 40, N_USED = 5 };

static struct mdl_model *model; /* emo-nano: 6 layers of 63 + 1, 5 + 1 used */
static char dir[512];

static const char *file(const char *name)
{
    static char ring[8][600];
    static unsigned next;
    char *path = ring[next++ % 8];

    snprintf(path, sizeof(ring[0]), "%s/%s", dir, name);
    return path;
}

static int setup(void **state)
{
    struct vkmoe_err err = {0};

    (void)state;
    snprintf(dir, sizeof(dir), "%s", test_tmp());
    test_ok(mdl_open(&model, golden_model("emo-nano", MDL_BF16), &err), &err);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mdl_close(model);
    return 0;
}

/* ---- made-up documents
 * --------------------------------------------------------------------------------------- */

struct doc {
    uint32_t n;
    float logits[6][N_TOKENS][63], sums[6][N_TOKENS][3 + N_USED];
    uint32_t pairs[6][N_TOKENS][N_USED][2];
};

static void make_doc(struct doc *d, uint64_t *rng)
{
    d->n = 1 + (uint32_t)(test_rand(rng) % N_TOKENS);
    for (int l = 0; l < 6; l++)
        for (uint32_t t = 0; t < d->n; t++) {
            bool taken[63] = {false};

            for (int e = 0; e < 63; e++)
                d->logits[l][t][e] = (float)(8 * test_rand_unit(rng) - 4);
            for (int i = 0; i < 3 + N_USED; i++)
                d->sums[l][t][i] = (float)test_rand_unit(rng);
            for (int k = 0; k < N_USED; k++) {
                uint32_t e;

                do
                    e = (uint32_t)(test_rand(rng) % 63);
                while (taken[e]);
                taken[e] = true;
                d->pairs[l][t][k][0] = e;
                d->pairs[l][t][k][1] = cor_float_bits((float)test_rand_unit(rng));
            }
        }
}

/* In pieces of `step` tokens, as chunks come. */
static void feed(struct xp_stats *s, const struct doc *d, uint32_t step, bool experts, const char *text)
{
    struct vkmoe_err err = {0};

    for (uint32_t at = 0; at < d->n; at += step)
        for (uint32_t l = 0; l < 6; l++) {
            struct vkmoe_watched w = {.layer = l,
                                      .pos = at,
                                      .n_tokens = d->n - at < step ? d->n - at : step,
                                      .n_experts = 63,
                                      .n_used = N_USED,
                                      .logits = d->logits[l][at],
                                      .pairs = d->pairs[l][at][0],
                                      .sums = experts ? d->sums[l][at] : NULL};

            xp_stats_add(s, &w);
        }
    test_ok(xp_stats_document(s, text, strlen(text), false, &err), &err);
}

static void test_sums(void **state)
{
    struct doc *d = cor_zalloc(sizeof(*d));
    double p[63] = {0}, importance[63] = {0};
    uint64_t rng = test_seed(), chosen[63] = {0};
    struct vkmoe_err err = {0};
    struct xp_stats s;

    (void)state;
    test_ok(xp_stats_init(&s, model, XP_EASY_EP, &err), &err);
    assert_string_equal(s.type, "bf16");
    make_doc(d, &rng);
    feed(&s, d, 7, true, "text");
    assert_int_equal(s.tokens, d->n);
    for (uint32_t t = 0; t < d->n; t++) {
        const float *v = d->sums[2][t];
        double z = 0, turn = 1 - (v[0] + v[1]) / sqrt(v[0] * (v[0] + 2.0 * v[1] + v[2]));

        for (int e = 0; e < 63; e++)
            z += exp((double)d->logits[2][t][e]);
        for (int e = 0; e < 63; e++)
            p[e] += exp((double)d->logits[2][t][e]) / z;
        for (int k = 0; k < N_USED; k++) {
            uint32_t e = d->pairs[2][t][k][0];

            chosen[e]++;
            importance[e] += cor_float_from_bits(d->pairs[2][t][k][1]) * sqrt(v[3 + k]) * fmax(0, turn);
        }
    }
    for (int e = 0; e < 63; e++) {
        assert_float_equal(xp_sum_value(&s.probability[2 * 63 + e]), p[e], 1e-6);
        assert_float_equal(xp_sum_value(&s.importance[2 * 63 + e]), importance[e], 1e-6);
        assert_int_equal(s.chosen[2 * 63 + e], chosen[e]);
    }
    xp_stats_free(&s);
    /* Without choices, those that the router would make. */
    test_ok(xp_stats_init(&s, model, XP_ROUTER, &err), &err);
    xp_stats_add(&s, &(struct vkmoe_watched){
                         .n_tokens = 1, .n_experts = 63, .n_used = N_USED, .logits = d->logits[0][0]});
    for (int e = 0; e < 63; e++) {
        int better = 0;

        for (int x = 0; x < 63; x++)
            better += d->logits[0][0][x] > d->logits[0][0][e];
        assert_int_equal(s.chosen[e], better < N_USED);
    }
    xp_stats_free(&s);
    cor_free(d);
}

/* 1 - cos in double, by a route that does not cancel either: |u - v|^2 / 2 of unit vectors. */
static void test_turn(void **state)
{
    static const double sizes[] = {1e-9, 1e-5, 1e-3, 0.1, 1, 10};
    uint64_t rng = test_seed();

    (void)state;
    for (size_t i = 0; i < COR_COUNT(sizes); i++)
        for (int round = 0; round < 200; round++) {
            double h[4], m[4], hh = 0, hm = 0, mm = 0, vv = 0, far = 0, got;

            for (int k = 0; k < 4; k++) {
                h[k] = test_rand_unit(&rng) - 0.5;
                m[k] = sizes[i] * (test_rand_unit(&rng) - 0.5);
                hh += h[k] * h[k];
                hm += h[k] * m[k];
                mm += m[k] * m[k];
                vv += (h[k] + m[k]) * (h[k] + m[k]);
            }
            for (int k = 0; k < 4; k++) {
                double diff = h[k] / sqrt(hh) - (h[k] + m[k]) / sqrt(vv);

                far += diff * diff / 2;
            }
            got = xp_turn(hh, hm, mm);
            assert_true(got >= 0 && got <= 2);
            if (fabs(got - far) > 1e-5 * far + 1e-24)
                fail_msg("size %g: %.17g, not %.17g", sizes[i], got, far);
        }
    assert_true(xp_turn(1, 0, 0) == 0);
    assert_true(xp_turn(1, 1, 1) == 0);
    assert_true(xp_turn(1, -2, 4) == 2);
    assert_true(xp_turn(0, 0, 1) == 1);
    assert_true(xp_turn(1, -1, 1) == 1); /* h + m = 0 */
    assert_true(xp_turn(1, 1, 0.999999) >= 0);
}

static void test_documents(void **state)
{
    struct doc *d = cor_zalloc(sizeof(*d));
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();
    struct xp_stats a;
    char hex[65], want[COR_SHA256_HEX];
    struct cor_sha256 h;
    float nan_row[63];
    uint32_t pairs[2 * N_USED] = {0};

    (void)state;
    test_ok(xp_stats_init(&a, model, XP_ROUTER, &err), &err);
    make_doc(d, &rng);
    feed(&a, d, 7, false, "abc");
    cor_sha256_begin(&h);
    cor_sha256_add(&h, "abc", 3);
    assert_string_equal(xp_stats_digest(hex, &a),
                        cor_sha256_end_hex(&h, want)); /* of one document: its own */
    feed(&a, d, 7, false, "abc");
    assert_string_not_equal(xp_stats_digest(hex, &a), want);
    assert_int_equal(a.documents, 2);
    assert_int_equal(a.tokens, 2 * d->n);
    for (int i = 0; i < 63; i++)
        nan_row[i] = i == 5 ? NAN : 0;
    xp_stats_add(&a,
                 &(struct vkmoe_watched){
                     .n_tokens = 1, .n_experts = 63, .n_used = N_USED, .logits = nan_row, .pairs = pairs});
    assert_int_equal(xp_stats_document(&a, "", 0, false, &err), VKMOE_ERR_NUMERIC);
    assert_non_null(strstr(err.message, "document 2: layer 0"));
    xp_stats_free(&a);
    cor_free(d);
}

/* ---- merging
 * ------------------------------------------------------------------------------------------------- */

static void read_file(struct xp_stats *s, const char *name)
{
    struct vkmoe_err err = {0};

    test_ok(xp_stats_read(s, file(name), &err), &err);
}

/* out = a + b, through files. */
static void merge_files(const char *out, const char *a, const char *b)
{
    struct vkmoe_err err = {0};
    struct xp_stats x, y;

    read_file(&x, a);
    read_file(&y, b);
    test_ok(xp_stats_merge(&x, &y, a, b, &err), &err);
    test_ok(xp_stats_write(&x, file(out), &err), &err);
    xp_stats_free(&x);
    xp_stats_free(&y);
}

static void test_merge(void **state)
{
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();
    struct doc *docs = cor_array(4, sizeof(*docs));
    char name[32], text[32];

    (void)state;
    for (int family = XP_ROUTER; family <= XP_EASY_EP; family++) {
        struct xp_stats all, one;

        test_ok(xp_stats_init(&all, model, (enum xp_family)family, &err), &err);
        for (int i = 0; i < 4; i++) {
            make_doc(&docs[i], &rng);
            snprintf(name, sizeof(name), "%d.json", i);
            snprintf(text, sizeof(text), "document %d", i);
            test_ok(xp_stats_init(&one, model, (enum xp_family)family, &err), &err);
            feed(&one, &docs[i], 40, family == XP_EASY_EP, text);
            feed(&all, &docs[i], 7, family == XP_EASY_EP, text);
            test_ok(xp_stats_write(&one, file(name), &err), &err);
            xp_stats_free(&one);
        }
        test_ok(xp_stats_write(&all, file("all.json"), &err), &err);
        merge_files("01.json", "0.json", "1.json");
        merge_files("23.json", "2.json", "3.json");
        merge_files("0123.json", "01.json", "23.json");
        test_same_files(file("0123.json"), file("all.json"));
        merge_files("32.json", "3.json", "2.json");
        merge_files("132.json", "1.json", "32.json");
        merge_files("1320.json", "132.json", "0.json");
        test_same_files(file("1320.json"), file("all.json"));
        read_file(&one, "all.json");
        test_ok(xp_stats_write(&one, file("again.json"), &err), &err);
        test_same_files(file("again.json"), file("all.json"));
        xp_stats_free(&one);
        xp_stats_free(&all);
    }
    cor_free(docs);
}

static void test_mixed(void **state)
{
    static const char *const say[] = {"of 'other'",     "in q8_0",     "another shape", "another shape",
                                      "method easy-ep", "passes 2^64", "2^53"};
    struct vkmoe_err err = {0};

    (void)state;
    for (size_t i = 0; i < COR_COUNT(say); i++) {
        struct xp_stats a, b;

        test_ok(xp_stats_init(&a, model, XP_ROUTER, &err), &err);
        test_ok(xp_stats_init(&b, model, i == 4 ? XP_EASY_EP : XP_ROUTER, &err), &err);
        if (i == 0)
            memcpy(b.model, "other", 6);
        if (i == 1)
            memcpy(b.type, "q8_0", 5);
        if (i == 2)
            b.n_used = 4;
        if (i == 3)
            b.n_there[5] = 62;
        if (i == 5)
            a.probability[7].hi = b.probability[7].hi = UINT64_C(1) << 63;
        if (i == 6)
            a.tokens = b.tokens = UINT64_C(1) << 52 | 1;
        assert_int_not_equal(xp_stats_merge(&a, &b, "a.json", "b.json", &err), VKMOE_OK);
        assert_true(strstr(err.message, "a.json") && strstr(err.message, "b.json"));
        if (!strstr(err.message, say[i]))
            fail_msg("\"%s\" does not say \"%s\"", err.message, say[i]);
        xp_stats_free(&a);
        xp_stats_free(&b);
    }
}

/* ---- damage
 * ------------------------------------------------------------------------------------------------- */

static enum vkmoe_status read_text(const char *text, size_t n, struct vkmoe_err *err)
{
    struct xp_stats s;
    enum vkmoe_status st;

    test_write(file("read.json"), text, n);
    st = xp_stats_read(&s, file("read.json"), err);
    if (st != VKMOE_OK) {
        assert_null(s.probability);
        assert_true(err->message[0] && !strchr(err->message, '\n'));
        assert_non_null(strstr(err->message, "read.json"));
    }
    xp_stats_free(&s);
    return st;
}

#define HALF "\"00000000000000008000000000000000\""
#define ONE  "\"00000000000000010000000000000000\""

static void test_bad_files(void **state)
{
    static const char good[] =
        "{\"format\": \"vkmoe.expert-statistics\", \"version\": 1, \"model\": \"m\", \"type\": \"f32\", "
        "\"n_layers\": 2, \"n_routed\": 2, \"n_shared\": 1, \"n_used\": 1, \"method\": \"easy-ep\", "
        "\"documents\": 1, \"truncated\": 0, \"tokens\": 1, \"digest\": "
        "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\", \"probability\": [[" HALF
        ", " HALF "], [" ONE "]], \"chosen\": [[0, 1], [1]], \"importance\": [[" HALF ", " HALF "], [" ONE
        "]]}\n";
    static const struct {
        const char *from, *to, *say; /* say NULL: still good */
    } cases[] = {
        {"vkmoe.expert-statistics", "vkmoe.subset", "`format`"},
        {"\"version\": 1", "\"version\": 2", "version"},
        {"\"model\": \"m\"", "\"model\": 5", "`model`"},
        {"\"type\": \"f32\"", "\"type\": \"a very long name of a type\"", "`type`"},
        {"\"n_layers\": 2", "\"n_layers\": 3", "each of 3 layers"},
        {"\"n_layers\": 2", "\"n_layers\": 0", "cannot be"},
        {"\"n_layers\": 2", "\"n_layers\": -1", "`n_layers`"},
        {"\"n_routed\": 2", "\"n_routed\": 1", "layer 0"},
        {"\"n_routed\": 2", "\"n_routed\": 3", NULL},
        {"\"n_used\": 1", "\"n_used\": 3", "`n_used`"},
        {"\"n_used\": 1", "\"n_used\": 2", "do not fit"},
        {"easy-ep", "router", NULL},
        {"easy-ep", "random", "`method`"},
        {"\"tokens\": 1", "\"tokens\": 2", "do not fit"},
        {"\"tokens\": 1", "\"tokens\": 1e300", "`tokens`"},
        {"\"tokens\": 1", "\"tokens\": 0.5", "`tokens`"},
        {"\"truncated\": 0", "\"truncated\": 2", "`truncated`"},
        {"eeff\"", "eefg\"", "`digest`"},
        {"[0, 1]", "[1, 1]", "2 choices"},
        {"[0, 1]", "[0, 2]", "`chosen`: layer 0, expert 1"},
        {"[0, 1]", "[0]", "layer 0"},
        {"[0, 1]", "[0, 1, 0]", "layer 0"},
        {"[0, 1]", "{}", "layer 0"},
        {ONE, HALF, "do not fit"},
        {"0001000", "000100", "layer 1, expert 0"},
        {"\"importance\"", "\"other\"", "`importance`"},
    };
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();
    char text[sizeof(good) + 64];

    (void)state;
    test_ok(read_text(good, sizeof(good) - 1, &err), &err);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        const char *at = strstr(good, cases[i].from);
        enum vkmoe_status st;

        assert_non_null(at);
        snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - good), good, cases[i].to,
                 at + strlen(cases[i].from));
        st = read_text(text, strlen(text), &err);
        if (!cases[i].say)
            test_ok(st, &err);
        else if (st == VKMOE_OK || !strstr(err.message, cases[i].say))
            fail_msg("\"%s\": \"%s\" does not say \"%s\"", cases[i].to, err.message, cases[i].say);
    }
    for (size_t n = 0; n + 2 < sizeof(good); n++)
        assert_int_not_equal(read_text(good, n, &err), VKMOE_OK);
    for (int i = 0; i < 2000; i++) {
        memcpy(text, good, sizeof(good));
        text[test_rand(&rng) % (sizeof(good) - 1)] ^= (char)(1u << test_rand(&rng) % 8);
        (void)read_text(text, sizeof(good) - 1, &err);
    }
}

static void test_failures(void **state)
{
    struct doc *d = cor_zalloc(sizeof(*d));
    uint64_t rng = test_seed();
    struct vkmoe_err err = {0};
    struct xp_stats a, b;
    long live;

    (void)state;
    test_ok(xp_stats_init(&a, model, XP_EASY_EP, &err), &err);
    make_doc(d, &rng);
    feed(&a, d, 40, true, "text");
    live = cor_alloc_live();
    for (int io = 0; io < 2; io++) {
        enum vkmoe_status st = VKMOE_ERR_MEMORY;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            assert_true(nth < 2000);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = xp_stats_write(&a, file("fail.json"), &err);
            if (st == VKMOE_OK)
                st = xp_stats_read(&b, file("fail.json"), &err);
            cor_alloc_fail_from(0);
            cor_os_fail_from(0);
        }
        xp_stats_free(&b);
    }
    assert_int_equal(cor_alloc_live(), live);
    xp_stats_free(&a);
    cor_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),     cmocka_unit_test(test_turn),  cmocka_unit_test(test_documents),
        cmocka_unit_test(test_merge),    cmocka_unit_test(test_mixed), cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_failures),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
