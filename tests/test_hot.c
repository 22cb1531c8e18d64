/* Hot sets: saved and read back, refused when they are another model's, and any damage is one line. */
#include <stdio.h>

#include "experts/hot.h"
#include "support/device.h"

static struct device_case c;
static struct run_model *planned; /* file and config only */

static int setup(void **state)
{
    struct vkmoe_err err = {0};

    (void)state;
    device_open(&c, golden_model("emo-nano", MDL_BF16), &(struct device_params){.lazy = true});
    test_ok(run_model_plan(&planned, c.dev, golden_model("emo-nano", MDL_BF16), &err), &err);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    run_model_close(planned);
    device_close(&c);
    return 0;
}

static const char *hot_path(void)
{
    static char path[512];

    if (!path[0])
        snprintf(path, sizeof(path), "%s/hot.json", test_tmp());
    return path;
}

static enum vkmoe_status load_text(const char *text, size_t n, struct vkmoe_err *err)
{
    uint32_t *list, count;
    enum vkmoe_status st;

    test_write(hot_path(), text, n);
    st = xp_hot_load(planned, hot_path(), &list, &count, err);
    if (st == VKMOE_OK) {
        for (uint32_t i = 0; i < count; i++)
            assert_true(list[i] < c.model->pool.n_layers * c.model->pool.n_experts);
    } else {
        assert_null(list);
        assert_true(err->message[0] && !strchr(err->message, '\n'));
        assert_non_null(strstr(err->message, "hot.json"));
    }
    cor_free(list);
    return st;
}

static void test_round_trip(void **state)
{
    static const int32_t text[] = {4094, 318, 1200, 75, 2046, 901, 33};
    struct run_session *s = device_session(&c, &(struct run_session_params){.n_ctx = 16});
    uint32_t bank = c.model->pool.n_layers * c.model->pool.n_experts;
    uint32_t *want = cor_array(bank, sizeof(*want)), n_want, *got, n_got;
    struct vkmoe_err err = {0};
    struct run_model_params mp = {0};
    struct device_case warm;

    (void)state;
    device_feed(s, text, COR_COUNT(text));
    device_feed(s, text, 1);
    run_session_destroy(s);
    n_want = run_slots_hot(c.model->pool.slots, want);
    assert_true(n_want > 40 && n_want < bank);
    test_ok(xp_hot_save(c.model, hot_path(), &err), &err);
    test_ok(xp_hot_load(planned, hot_path(), &got, &n_got, &err), &err);
    assert_int_equal(n_got, n_want);
    assert_memory_equal(got, want, n_got * sizeof(*got));
    /* A small pool begins with the best of them. */
    mp.pool_budget = run_pool_floor_bytes(&c.model->pool);
    mp.policy.scope = RUN_SCOPE_GLOBAL;
    mp.hot = got;
    mp.n_hot = n_got;
    device_open(&warm, golden_model("emo-nano", MDL_BF16), &(struct device_params){.model = &mp});
    assert_true(run_slots_resident(warm.model->pool.slots) > 0);
    assert_int_equal(warm.model->pool.opening.loads, run_slots_resident(warm.model->pool.slots));
    assert_int_not_equal(run_slots_find(warm.model->pool.slots, got[0] / c.model->pool.n_experts,
                                        got[0] % c.model->pool.n_experts),
                         NONE);
    device_close(&warm);
    cor_free(want);
    cor_free(got);
}

static void test_bad_files(void **state)
{
    static const char good[] =
        "{\"format\": \"vkmoe.hot\", \"version\": 1, \"model\": \"emo-nano\", "
        "\"n_layers\": 6, \"n_experts\": 63, \"experts\": [[0, 3], [5, 62], [1, 0]]}\n";
    static const struct {
        const char *from, *to, *say;
    } cases[] = {
        {"vkmoe.hot", "vkmoe.not", "`format`"},
        {"\"version\": 1", "\"version\": 2", "version"},
        {"\"n_layers\": 6", "\"n_layers\": 7", "6 layers of 63"},
        {"emo-nano", "other", "another model"},
        {"[5, 62]", "[5, 63]", "entry 1"},
        {"[5, 62]", "[6, 62]", "entry 1"},
        {"[5, 62]", "[5]", "entry 1"},
        {"[5, 62]", "[0, 3]", "twice"},
        {"[5, 62]", "[5, -1]", "entry 1"},
        {"[5, 62]", "[5, 1.5]", "entry 1"},
    };
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();
    char text[sizeof(good) + 32];

    (void)state;
    test_ok(load_text(good, sizeof(good) - 1, &err), &err);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        const char *at = strstr(good, cases[i].from);

        snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - good), good, cases[i].to,
                 at + strlen(cases[i].from));
        assert_int_not_equal(load_text(text, strlen(text), &err), VKMOE_OK);
        if (!strstr(err.message, cases[i].say))
            fail_msg("\"%s\" does not say \"%s\"", err.message, cases[i].say);
    }
    for (size_t n = 0; n + 2 < sizeof(good); n++)
        assert_int_not_equal(load_text(good, n, &err), VKMOE_OK);
    for (int i = 0; i < 2000; i++) {
        memcpy(text, good, sizeof(good));
        text[test_rand(&rng) % (sizeof(good) - 1)] ^= (char)(1u << test_rand(&rng) % 8);
        (void)load_text(text, sizeof(good) - 1, &err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bad_files),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
