/* Subsets: written and read back, pruning metadata and carved files read, refused when they are another
 * model's, and any damage is one line. */
#include <stdio.h>

#include "experts/subset.h"
#include "support/golden.h"

static const char hash[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

static const char *file(const char *name)
{
    static char dir[512], path[600];

    if (!dir[0])
        snprintf(dir, sizeof(dir), "%s", test_tmp());
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

/* A random set with at least one expert in every layer; equal: of `equal` experts in each. */
static void make_random(struct xp_subset *s, uint32_t n_layers, uint32_t n_routed, uint32_t n_shared,
                        uint32_t equal, uint64_t *rng)
{
    struct vkmoe_err err = {0};

    test_ok(xp_subset_init(s, "emo-nano", n_layers, n_routed, n_shared, "router", &err), &err);
    cor_free(s->calibration);
    s->calibration = cor_strdup(hash);
    for (uint32_t l = 0; l < n_layers; l++) {
        uint32_t want = equal ? equal : 1 + (uint32_t)(test_rand(rng) % n_routed);

        while (xp_subset_count(s, l) < want)
            xp_subset_set(s, l, (uint32_t)(test_rand(rng) % n_routed));
    }
}

static void check_equal(const struct xp_subset *a, const struct xp_subset *b)
{
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_routed, b->n_routed);
    assert_int_equal(a->n_shared, b->n_shared);
    assert_string_equal(a->model, b->model);
    assert_string_equal(a->method, b->method);
    assert_string_equal(a->calibration, b->calibration);
    for (uint32_t l = 0; l < a->n_layers; l++)
        for (uint32_t e = 0; e < a->n_routed; e++)
            assert_int_equal(xp_subset_has(a, l, e), xp_subset_has(b, l, e));
}

static void test_round_trip(void **state)
{
    static const uint32_t shapes[][4] = {/* layers, routed, shared, equal */
                                         {6, 63, 1, 7},    {6, 63, 1, 0},    {1, 1, 0, 1},  {3, 32, 2, 0},
                                         {16, 127, 1, 15}, {2, 512, 1, 512}, {2, 33, 1, 33}};
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();

    (void)state;
    for (size_t i = 0; i < COR_COUNT(shapes); i++) {
        struct xp_subset a, b;

        make_random(&a, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], &rng);
        if (shapes[i][3])
            assert_int_equal(xp_subset_equal_count(&a), shapes[i][3]);
        test_ok(xp_subset_write(&a, file("subset.json"), &err), &err);
        test_ok(xp_subset_read(&b, file("subset.json"), &err), &err);
        check_equal(&a, &b);
        assert_false(xp_subset_has(&b, shapes[i][0], 0));
        assert_false(xp_subset_has(&b, 0, shapes[i][1]));
        xp_subset_free(&a);
        xp_subset_free(&b);
        xp_subset_free(&b);
    }
}

/* ---- damage
 * ------------------------------------------------------------------------------------------------- */

static enum vkmoe_status read_text(const void *text, size_t n, struct vkmoe_err *err)
{
    struct xp_subset s;
    enum vkmoe_status st;

    test_write(file("read.json"), text, n);
    st = xp_subset_read(&s, file("read.json"), err);
    if (st == VKMOE_OK) {
        assert_true(s.n_layers >= 1 && s.n_layers <= XP_SUBSET_LAYERS);
        uint32_t least = 0; /* leading layers may be dense */

        for (uint32_t l = 0; l < s.n_layers; l++) {
            assert_in_range(xp_subset_count(&s, l), least, s.n_routed);
            least = xp_subset_count(&s, l) || l + 2 == s.n_layers;
        }
    } else {
        assert_null(s.allowed);
        assert_true(err->message[0] && !strchr(err->message, '\n'));
        assert_non_null(strstr(err->message, "read.json"));
    }
    xp_subset_free(&s);
    return st;
}

struct change {
    const char *from, *to, *say; /* say NULL: still good */
};

static void check_changes(const char *good, const struct change *changes, size_t n)
{
    struct vkmoe_err err = {0};
    char text[2048];

    test_ok(read_text(good, strlen(good), &err), &err);
    for (size_t i = 0; i < n; i++) {
        const char *at = strstr(good, changes[i].from);

        assert_non_null(at);
        snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - good), good, changes[i].to,
                 at + strlen(changes[i].from));
        if (!changes[i].say) {
            test_ok(read_text(text, strlen(text), &err), &err);
            continue;
        }
        if (read_text(text, strlen(text), &err) == VKMOE_OK)
            fail_msg("\"%s\" for \"%s\" was not refused", changes[i].to, changes[i].from);
        if (!strstr(err.message, changes[i].say))
            fail_msg("\"%s\" does not say \"%s\"", err.message, changes[i].say);
    }
}

/* Every truncated prefix is refused; no flipped bit does harm. */
static void damage(const void *good, size_t n, size_t spare, int flips)
{
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();
    char *text = cor_alloc(n);

    for (size_t k = 0; k + spare < n; k++)
        assert_int_not_equal(read_text(good, k, &err), VKMOE_OK);
    for (int i = 0; i < flips; i++) {
        memcpy(text, good, n);
        text[test_rand(&rng) % n] ^= (char)(1u << test_rand(&rng) % 8);
        (void)read_text(text, n, &err);
    }
    cor_free(text);
}

static void test_bad_files(void **state)
{
    static const char good[] =
        "{\"format\": \"vkmoe.subset\", \"version\": 1, \"model\": \"emo-nano\", \"n_layers\": 2, "
        "\"n_routed\": 6, \"n_shared\": 1, \"keep\": 3, \"method\": \"router\", \"calibration\": "
        "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\", "
        "\"experts_kept_per_layer\": [[1, 4, 6], [0, 5, 6]]}\n";
    static const struct change changes[] = {
        {"vkmoe.subset", "vkmoe.hot", "`format`"},
        {"\"version\": 1", "\"version\": 2", "version"},
        {"\"n_layers\": 2", "\"n_layers\": 3", "2 lists for 3"},
        {"\"n_layers\": 2", "\"n_layers\": 1", "more lists than 1"},
        {"\"n_layers\": 2", "\"n_layers\": 0", "n_layers"},
        {"\"n_layers\": 2", "\"n_layers\": 1e9", "n_layers"},
        {"\"n_routed\": 6", "\"n_routed\": 5", "entry"},
        {"\"n_routed\": 6", "\"n_routed\": 513", "n_routed"},
        {"\"n_shared\": 1", "\"n_shared\": 2", "1 of 2 shared"},
        {"\"n_shared\": 1", "\"n_shared\": 0", "entry 2"},
        {"\"keep\": 3", "\"keep\": 4", "keeps 3 experts, not 4"},
        {"\"keep\": 3", "\"keep\": null", NULL},
        {"\"keep\": 3", "\"keep\": \"x\"", "keep"},
        {"\"keep\": 3, ", "", NULL},
        {"\"method\": \"router\"", "\"method\": 7", "method"},
        {"\"method\": \"router\"", "\"further\": [7], \"method\": \"other\"", NULL},
        {"\"n_shared\": 1", "\"n_shared\": 1, \"n_shared\": 1", "twice"},
        {"eeff\"", "eef\"", "calibration"},
        {"eeff\"", "eefF\"", "calibration"},
        {"[1, 4, 6]", "[1, 1, 6]", "layer 0 keeps expert 1 twice"},
        {"[1, 4, 6]", "[4, 1, 6]", NULL},
        {"[1, 4, 6]", "[1, 7, 6]", "entry 1"},
        {"[1, 4, 6]", "[1, 4.5, 6]", "entry 1"},
        {"[1, 4, 6]", "[1, -4, 6]", "entry 1"},
        {"[1, 4, 6]", "[1, 6, 4]", "behind a shared one"},
        {"[1, 4, 6]", "[1, 6, 6]", "entry 2"},
        {"[0, 5, 6]", "[0, 5]", "layer 1 has 0 of 1"},
        {"[0, 5, 6]", "[0, 6]", "keeps 2 experts, not 3"},
        {"[0, 5, 6]", "[6]", "no routed expert"},
        {"[0, 5, 6]", "{}", "not a list"},
        {"\"experts_kept_per_layer\"", "\"experts\"", "is missing"},
    };

    (void)state;
    check_changes(good, changes, COR_COUNT(changes));
    damage(good, sizeof(good) - 1, 1, 2000);
}

/* Of a checkpoint with 127 + 1 experts, of which 3 + 1 and 2 layers are left. */
static void test_metadata(void **state)
{
    static const char good[] =
        "{\"original_model\": \"allenai/Emo_1b14b_1T\", \"prune_keep_k\": 4, \"num_shared_experts\": 1, "
        "\"pruning_method\": \"greedy_layerwise\", \"experts_kept_per_layer\": [[3, 40, 99, 127], [0, 1, "
        "126, "
        "127]]}";
    static const struct change changes[] = {
        {"\"prune_keep_k\": 4", "\"prune_keep_k\": 5", "keeps 4 experts, not 5"},
        {"\"prune_keep_k\": 4", "\"prune_keep_k\": [4, 4]", NULL},
        {"\"prune_keep_k\": 4, ", "", NULL},
        {"\"num_shared_experts\": 1, ", "", "num_shared_experts"},
        {"\"num_shared_experts\": 1", "\"num_shared_experts\": 0", "without a shared expert"},
        {"\"num_shared_experts\": 1", "\"num_shared_experts\": 2", "layer 0"},
        {"126, 127", "125, 126", "layer 1"},
        {"99, 127", "99", "layer 0 keeps 3 experts, not 4"},
        {"99, 127", "99, 99", "entry 3 is 99"},
        {"[[3, 40, 99, 127], [0, 1, 126, 127]]", "[]", "0 lists"},
        {"[3, 40, 99, 127]", "[]", NULL}, /* a dense layer: compared with the model */
        {"\"pruning_method\"", "\"format\": \"x\", \"pruning_method\"", "format"},
    };
    struct vkmoe_err err = {0};
    struct xp_subset s;

    (void)state;
    test_write(file("pruning_metadata.json"), good, sizeof(good) - 1);
    test_ok(xp_subset_read(&s, file("pruning_metadata.json"), &err), &err);
    assert_string_equal(s.model, "Emo_1b14b_1T");
    assert_string_equal(s.method, "greedy_layerwise");
    assert_int_equal(s.n_layers, 2);
    assert_int_equal(s.n_routed, 127);
    assert_int_equal(s.n_shared, 1);
    assert_int_equal(xp_subset_equal_count(&s), 3);
    assert_true(xp_subset_has(&s, 0, 99) && xp_subset_has(&s, 1, 126) && !xp_subset_has(&s, 0, 126));
    xp_subset_free(&s);
    check_changes(good, changes, COR_COUNT(changes));
    damage(good, sizeof(good) - 1, 0, 2000);
}

/* ---- carved files
 * ------------------------------------------------------------------------------------------- */

struct carved {
    uint32_t n_layers, n_experts, n_shared, n_source;
    uint32_t ids[8];
    uint32_t n_ids;
    uint32_t counts[4];
    uint32_t n_counts; /* 0: no such key */
};

static void write_carved(const struct carved *c)
{
    struct mdl_gguf_writer *w;
    struct vkmoe_err err = {0};
    uint64_t one = 1;
    float zero = 0;

    test_ok(mdl_gguf_create(&w, file("carved.gguf"), &err), &err);
    test_ok(mdl_gguf_put_str(w, "general.name", "emo-nano", 8, &err), &err);
    test_ok(mdl_gguf_put_u32(w, "deepseek.block_count", c->n_layers, &err), &err);
    test_ok(mdl_gguf_put_u32(w, "deepseek.expert_count", c->n_experts, &err), &err);
    test_ok(mdl_gguf_put_u32(w, "deepseek.expert_shared_count", c->n_shared, &err), &err);
    test_ok(mdl_gguf_put_u32(w, "vkmoe.source.expert_count", c->n_source, &err), &err);
    test_ok(mdl_gguf_put_str(w, "vkmoe.subset.method", "easy-ep", 7, &err), &err);
    test_ok(mdl_gguf_put_str(w, "vkmoe.subset.calibration", hash, 64, &err), &err);
    if (c->n_ids)
        test_ok(mdl_gguf_put_array(w, "vkmoe.expert_ids", MDL_GGUF_U32, c->ids, c->n_ids, &err), &err);
    if (c->n_counts)
        test_ok(
            mdl_gguf_put_array(w, "vkmoe.expert_count_per_layer", MDL_GGUF_U32, c->counts, c->n_counts, &err),
            &err);
    test_ok(mdl_gguf_put_tensor(w, "t", MDL_F32, 1, &one, &err), &err);
    test_ok(mdl_gguf_write_data(w, &zero, sizeof(zero), &err), &err);
    test_ok(mdl_gguf_commit(w, &err), &err);
}

static void test_carved(void **state)
{
    static const struct carved good = {2, 3, 1, 9, {0, 4, 8, 1, 2, 3}, 6, {0}, 0};
    static const struct {
        struct carved c;
        const char *say; /* NULL: good */
    } cases[] = {
        {{2, 3, 1, 9, {0, 4, 8, 1, 7}, 5, {3, 2}, 2}, NULL},
        {{2, 3, 1, 9, {0, 4, 8, 1, 7}, 5, {0}, 0}, "layer 1"},
        {{2, 3, 1, 9, {0, 4, 8, 1, 7, 2}, 6, {3, 2}, 2}, "has 6 entries, its layers 5"},
        {{2, 3, 1, 9, {0, 4, 8, 1, 7}, 5, {3, 2, 0}, 3}, "3 entries for 2"},
        {{2, 3, 1, 9, {0, 4, 8}, 3, {3, 0}, 2}, "layer 1"},
        {{2, 3, 1, 9, {0, 4, 9, 1, 2, 3}, 6, {0}, 0}, "id 9 is not below 9"},
        {{2, 3, 1, 9, {0, 4, 4, 1, 2, 3}, 6, {0}, 0}, "keeps expert 4 twice"},
        {{2, 3, 1, 600, {0, 4, 4, 1, 2, 3}, 6, {0}, 0}, "cannot be"},
        {{0, 3, 1, 9, {0}, 1, {0}, 0}, "cannot be"},
        {{2, 3, 1, 9, {0}, 0, {0}, 0}, "vkmoe.expert_ids is missing"},
    };
    struct vkmoe_err err = {0};
    struct xp_subset s;
    char *bytes;
    size_t n;

    (void)state;
    write_carved(&good);
    test_ok(xp_subset_read(&s, file("carved.gguf"), &err), &err);
    assert_string_equal(s.model, "emo-nano");
    assert_string_equal(s.method, "easy-ep");
    assert_string_equal(s.calibration, hash);
    assert_int_equal(s.n_layers, 2);
    assert_int_equal(s.n_routed, 9);
    assert_int_equal(s.n_shared, 1);
    assert_int_equal(xp_subset_equal_count(&s), 3);
    assert_true(xp_subset_has(&s, 0, 8) && xp_subset_has(&s, 1, 3) && !xp_subset_has(&s, 1, 8));
    xp_subset_free(&s);
    test_ok(cor_file_slurp(file("carved.gguf"), 1 << 20, &bytes, &n, &err), &err);
    damage(bytes, n, 31 /* padding behind the last tensor */, 1000);
    cor_free(bytes);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        enum vkmoe_status st;

        write_carved(&cases[i].c);
        st = xp_subset_read(&s, file("carved.gguf"), &err);
        if (!cases[i].say) {
            test_ok(st, &err);
            assert_int_equal(xp_subset_equal_count(&s), 0);
        } else {
            assert_int_not_equal(st, VKMOE_OK);
            if (!strstr(err.message, cases[i].say))
                fail_msg("\"%s\" does not say \"%s\"", err.message, cases[i].say);
        }
        xp_subset_free(&s);
    }
}

/* ---- is it the model's
 * -------------------------------------------------------------------------------------- */

static void test_check(void **state)
{
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();
    struct mdl_model *m;
    struct xp_subset s;
    static const struct {
        uint32_t layers, routed, shared, keep;
        const char *model, *say;
    } cases[] = {
        {6, 63, 1, 7, "emo-nano", NULL},
        {6, 63, 1, 5, "", NULL},
        {6, 63, XP_SHARED_UNKNOWN, 5, "", NULL},
        {6, 63, 1, 4, "", "keeps 4 routed experts, a token uses 5"},
        {5, 63, 1, 7, "", "another model"},
        {6, 62, 1, 7, "", "another model"},
        {6, 63, 0, 7, "", "another model"},
        {6, 63, 1, 7, "stdmoe-nano", "another model: of 'stdmoe-nano'"},
    };

    (void)state;
    test_ok(mdl_open(&m, golden_model("emo-nano", MDL_BF16), &err), &err);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        enum vkmoe_status st;

        make_random(&s, cases[i].layers, cases[i].routed, cases[i].shared, cases[i].keep, &rng);
        cor_free(s.model);
        s.model = cor_strdup(cases[i].model);
        st = xp_subset_check(&s, m, "sub.json", &err);
        if (cases[i].say) {
            assert_int_equal(st, VKMOE_ERR_ARGUMENT);
            assert_non_null(strstr(err.message, "sub.json"));
            assert_non_null(strstr(err.message, cases[i].say));
        } else {
            test_ok(st, &err);
        }
        xp_subset_free(&s);
    }
    mdl_close(m);
}

static void test_public(void **state)
{
    static const uint8_t keep[2][3] = {{1, 0, 9}, {0, 1, 0}};
    struct vkmoe_err err = {0};
    vkmoe_subset *s;

    (void)state;
    test_ok(vkmoe_subset_create(&s, 2, 3, &keep[0][0], &err), &err);
    for (uint32_t l = 0; l < 3; l++)
        for (uint32_t e = 0; e < 4; e++)
            assert_int_equal(vkmoe_subset_has(s, l, e), l < 2 && e < 3 && keep[l][e]);
    vkmoe_subset_close(s);
    assert_int_equal(vkmoe_subset_create(&s, 0, 3, &keep[0][0], &err), VKMOE_ERR_ARGUMENT);
    assert_null(s);
    assert_int_not_equal(vkmoe_subset_open(&s, file("none.json"), &err), VKMOE_OK);
    assert_null(s);
    assert_non_null(strstr(err.message, "none.json"));
    vkmoe_subset_close(NULL);
}

static void test_failures(void **state)
{
    uint64_t rng = test_seed();
    long live = cor_alloc_live();
    struct xp_subset a, b;

    (void)state;
    make_random(&a, 3, 40, 1, 0, &rng);
    for (int io = 0; io < 2; io++) {
        struct vkmoe_err err = {0};
        enum vkmoe_status st = VKMOE_ERR_MEMORY;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            assert_true(nth < 1000);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = xp_subset_write(&a, file("fail.json"), &err);
            if (st == VKMOE_OK)
                st = xp_subset_read(&b, file("fail.json"), &err);
            cor_alloc_fail_from(0);
            cor_os_fail_from(0);
            if (st != VKMOE_OK)
                assert_true(err.message[0]);
        }
        check_equal(&a, &b);
        xp_subset_free(&b);
    }
    xp_subset_free(&a);
    assert_int_equal(cor_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_bad_files), cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_carved),     cmocka_unit_test(test_check),     cmocka_unit_test(test_public),
        cmocka_unit_test(test_failures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
