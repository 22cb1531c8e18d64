/* Every architecture on the device against the scalar reference, from small files of random weights whose
 * norms, biases, sinks, windows and scales all matter: prompt in chunks of many and of few tokens, then
 * tokens one by one; the same bits from a pool that holds few experts, and from a file that was carved. */
#include <stdio.h>

#include "experts/carve.h"
#include "model/synth.h"
#include "support/device.h"

enum { N_PROMPT = 21, N_DECODE = 8, N = N_PROMPT + N_DECODE, CHUNK = 16 };

static struct vkmoe_err err;

static const char *const shapes[] = {"tiny-gpt-oss",  "tiny-qwen2moe",   "tiny-deepseek", "tiny-olmoe",
                                     "tiny-qwen3moe", "tiny-granitemoe", "tiny-mixtral",  "tiny-llama",
                                     "tiny-qwen2",    "tiny-qwen3"};
enum { N_SLOW = 2 }; /* of these, on slow drivers: they have most between them */

static const char *make(const char *shape)
{
    static char path[4300];
    struct mdl_synth_params p = {.out = path, .shape = *mdl_shape_find(shape), .type = MDL_F32, .seed = 3};

    snprintf(path, sizeof(path), "%s/%s.gguf", test_tmp(), shape);
    test_ok(mdl_synth(&p, &err), &err);
    return path;
}

static void make_tokens(int32_t *tokens)
{
    for (uint32_t i = 0; i < N; i++)
        tokens[i] = (int32_t)(1 + i * 53 % 290);
}

/* (N, vocab); cor_free. The last tokens are fed one by one. */
static float *logits_of(struct device_case *c, const struct run_session_params *p)
{
    const uint32_t vocab = c->model->mdl->config.vocab_size;
    struct run_session *s = device_session(c, p);
    float *all = cor_array((size_t)N * vocab, sizeof(*all)), *prompt;
    int32_t tokens[N];

    assert_non_null(all);
    make_tokens(tokens);
    prompt = device_feed_all(c, s, tokens, N_PROMPT);
    memcpy(all, prompt, (size_t)N_PROMPT * vocab * sizeof(*all));
    cor_free(prompt);
    for (uint32_t i = N_PROMPT; i < N; i++) {
        device_feed(s, tokens + i, 1);
        memcpy(all + (size_t)i * vocab, run_session_logits(s), vocab * sizeof(*all));
    }
    run_session_destroy(s);
    return all;
}

static void compare(const char *what, const struct device_case *c, const float *got, const uint32_t *allowed)
{
    const struct mdl_ref_params rp = {.n_ctx = N, .allowed = allowed};
    const uint32_t vocab = c->model->mdl->config.vocab_size;
    float *want = cor_array(vocab, sizeof(*want));
    struct golden_diff diff = {0};
    struct mdl_ref *ref;
    int32_t tokens[N];

    assert_non_null(want);
    make_tokens(tokens);
    test_ok(mdl_ref_create(&ref, c->model->mdl, &rp, &err), &err);
    for (uint32_t i = 0; i < N; i++) {
        test_ok(mdl_ref_feed(ref, tokens[i], want, NULL, &err), &err);
        golden_diff_add(&diff, got + (size_t)i * vocab, want, vocab);
    }
    golden_diff_check(&diff, what, 1e-10, 5e-4);
    mdl_ref_destroy(ref);
    cor_free(want);
}

/* The slots that a pool must have at least, and all experts at once: the same bits. */
static void check_small_pool(const char *path, const struct run_session_params *sp, const float *want)
{
    struct run_model_params mp = {.pool_budget = RUN_POOL_ALL, .check_slots = true};
    struct device_case c;
    float *got;

    device_open(&c, path, &(struct device_params){.model = &mp});
    mp.pool_budget = run_pool_floor_bytes(&c.model->pool);
    device_close(&c);
    device_open(&c, path, &(struct device_params){.model = &mp});
    assert_true(c.model->pool.n_slots < c.model->pool.n_allowed);
    got = logits_of(&c, sp);
    assert_memory_equal(got, want, (size_t)N * c.model->mdl->config.vocab_size * sizeof(*got));
    cor_free(got);
    device_close(&c);
}

/* Every dispatch and barrier that an architecture adds is seen by the validation layer, where there is one.
 */
static void check_shape(const char *shape, bool validation, bool small_pool)
{
    const struct run_session_params sp = {.n_ctx = N, .chunk = CHUNK};
    const char *path = make(shape);
    struct device_case c;
    float *got;

    device_open(&c, path, &(struct device_params){.validation = validation});
    got = logits_of(&c, &sp);
    compare(shape, &c, got, NULL);
    assert_int_equal(gpu_instance_validation_count(c.inst), 0);
    device_close(&c);
    if (small_pool)
        check_small_pool(path, &sp, got);
    cor_free(got);
}

/* A driver that takes long to compile, and no full run. */
static bool is_slow(void)
{
    struct device_case c;
    bool slow;

    device_open(&c, NULL, &(struct device_params){.model = NULL});
    slow = device_slow(&c) && !test_full();
    device_close(&c);
    return slow;
}

static void test_reference(void **state)
{
    const bool slow = is_slow();

    (void)state;
    for (size_t i = 0; i < (slow ? N_SLOW : COR_COUNT(shapes)); i++)
        check_shape(shapes[i], !slow, (i == 0 && !slow) || i == 2 || test_full());
}

/* Every other expert: masked as the reference masks, and carved to the same bits. */
static void check_carved(const char *shape)
{
    const struct run_session_params sp = {.n_ctx = N, .chunk = CHUNK};
    const struct mdl_config *k = &mdl_shape_find(shape)->config;
    const char *path = make(shape);
    struct xp_carve_params cp = {.model = path, .subset_name = "half"};
    struct xp_carve_result result;
    struct run_model_params mp = {.pool_budget = RUN_POOL_ALL};
    uint32_t allowed[8] = {0};
    struct xp_subset half;
    struct device_case c;
    char carved[4300];
    float *masked, *got;

    assert_true(k->n_experts <= 32 && k->n_layers <= COR_COUNT(allowed));
    test_ok(xp_subset_init(&half, "", k->n_layers, k->n_experts, XP_SHARED_UNKNOWN, "test", &err), &err);
    for (uint32_t l = k->n_dense_layers; l < k->n_layers; l++)
        for (uint32_t e = l % 2; e < k->n_experts && xp_subset_count(&half, l) < (k->n_experts + 1) / 2;
             e += 2) {
            xp_subset_set(&half, l, e);
            allowed[l] |= 1u << e;
        }
    for (uint32_t l = k->n_dense_layers; l < k->n_layers; l++) /* odd layers have one fewer */
        if (xp_subset_count(&half, l) < (k->n_experts + 1) / 2) {
            xp_subset_set(&half, l, 0);
            allowed[l] |= 1u;
        }
    mp.allowed = allowed;
    device_open(&c, path, &(struct device_params){.model = &mp});
    masked = logits_of(&c, &sp);
    compare(shape, &c, masked, allowed);
    device_close(&c);

    snprintf(carved, sizeof(carved), "%.4200s.carved.gguf", path);
    cp.out = carved;
    cp.subset = &half;
    test_ok(xp_carve(&cp, &result, &err), &err);
    device_open(&c, carved, &(struct device_params){.model = NULL});
    assert_int_equal(c.model->mdl->config.n_experts, (k->n_experts + 1) / 2);
    got = logits_of(&c, &sp);
    assert_memory_equal(got, masked, (size_t)N * k->vocab_size * sizeof(*got));
    device_close(&c);
    cor_free(got);
    cor_free(masked);
    xp_subset_free(&half);
}

static void test_carved(void **state)
{
    (void)state;
    check_carved("tiny-gpt-oss");
    if (!is_slow())
        check_carved("tiny-deepseek");
}

/* A document pool of all experts changes nothing; dense layers have none. */
static void test_document_pool(void **state)
{
    struct run_session_params sp = {.n_ctx = N, .chunk = CHUNK};
    const char *path = make("tiny-deepseek");
    struct run_model_params mp = {.doc_experts = 7};
    struct device_case c;
    float *want, *got;

    (void)state;
    if (is_slow()) /* run/watch.c and run/slots.c alone have a part in it */
        return;
    device_open(&c, path, &(struct device_params){.model = &mp});
    want = logits_of(&c, &sp);
    sp.doc_experts = 7;
    got = logits_of(&c, &sp);
    assert_memory_equal(got, want, (size_t)N * c.model->mdl->config.vocab_size * sizeof(*got));
    sp.doc_experts = 3;
    cor_free(got);
    got = logits_of(&c, &sp);
    cor_free(want);
    cor_free(got);
    device_close(&c);
}

/* Without experts there is nothing to watch. */
static void test_no_experts(void **state)
{
    const struct run_session_params sp = {.n_ctx = 8, .watch = VKMOE_WATCH_ROUTER};
    struct run_session *s;
    struct device_case c;

    (void)state;
    device_open(&c, make("tiny-qwen3"), &(struct device_params){.model = NULL});
    assert_int_equal(run_session_create(&s, c.model, &sp, &err), VKMOE_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "without experts"));
    device_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_carved),
        cmocka_unit_test(test_document_pool),
        cmocka_unit_test(test_no_experts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
