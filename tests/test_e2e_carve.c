/* A masked run and the carved file give the same bits, and so do a model in one file and in several: every
 * logit of a prompt in several chunks and of tokens decoded one by one. */
#include <stdio.h>

#include "experts/carve.h"
#include "run/session.h"
#include "support/device.h"
#include "support/split.h"

enum { N_PROMPT = 40, N_DECODE = 6, N_LAYERS = 6, N_ROUTED = 63 };

static int32_t tokens[N_PROMPT + N_DECODE];
static struct vkmoe_err err;

/* Routed experts kept in every layer. 7, 15 and 31 of 63: 12.5 %, 25 % and 50 % with the shared one. */
struct row {
    enum mdl_type type;
    uint32_t keep[N_LAYERS];
    bool full; /* only at length */
};

#define EACH(n)          \
    {                    \
        n, n, n, n, n, n \
    }

static const struct row rows[] = {
    {MDL_BF16, EACH(7), false},
    {MDL_BF16, EACH(15), true},
    {MDL_BF16, EACH(31), true},
    {MDL_BF16, EACH(6), false},              /* top-k and one */
    {MDL_BF16, {6, 2, 15, 1, 5, 31}, false}, /* some layers keep fewer than a token uses */
    {MDL_BF16, EACH(3), false},              /* all do: top-k of the file falls */
    {MDL_Q8_0, EACH(31), false},
    {MDL_Q8_0, EACH(7), true},
    {MDL_Q8_0, EACH(15), true},
    {MDL_Q8_0, EACH(6), true},
    {MDL_Q4_0, EACH(15), false},
    {MDL_Q4_0, EACH(7), true},
    {MDL_Q4_0, EACH(31), true},
    {MDL_Q4_0, EACH(6), true},
};

static const struct device_params none = {.model = NULL};

/* (N_PROMPT + N_DECODE, vocab) logits; cor_free. mask NULL: all experts. */
static float *logits_of(struct device_case *c, const uint32_t *mask)
{
    struct run_session *s =
        device_session(c, &(struct run_session_params){.n_ctx = N_PROMPT + N_DECODE, .chunk = 24});
    uint32_t vocab = c->model->mdl->config.vocab_size;
    float *prompt, *all = cor_array((size_t)(N_PROMPT + N_DECODE) * vocab, sizeof(*all));

    assert_non_null(all);
    if (mask)
        test_ok(run_session_set_mask(s, mask, &err), &err);
    prompt = device_feed_all(c, s, tokens, N_PROMPT);
    memcpy(all, prompt, (size_t)N_PROMPT * vocab * sizeof(*all));
    cor_free(prompt);
    for (uint32_t i = N_PROMPT; i < N_PROMPT + N_DECODE; i++) {
        device_feed(s, tokens + i, 1);
        memcpy(all + (size_t)i * vocab, run_session_logits(s), vocab * sizeof(*all));
    }
    run_session_destroy(s);
    return all;
}

/* Beside the converted models: a new temporary directory would remove them. */
static const char *small_path(void)
{
    static char path[4300];
    const char *beside = golden_model("emo-nano", MDL_Q8_0);

    snprintf(path, sizeof(path), "%.*ssmall.gguf", (int)(strrchr(beside, '/') + 1 - beside), beside);
    return path;
}

static void pick(struct xp_subset *s, const uint32_t keep[N_LAYERS], uint64_t *rng)
{
    test_ok(xp_subset_init(s, "", N_LAYERS, N_ROUTED, 1, "random", &err), &err);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        while (xp_subset_count(s, l) < keep[l])
            xp_subset_set(s, l, (uint32_t)(test_rand(rng) % N_ROUTED));
}

static void carve(const char *model, const struct xp_subset *s, const char *out)
{
    struct xp_carve_result r;

    test_ok(xp_carve(
                &(struct xp_carve_params){
                    .model = model, .subset = s, .subset_name = "subset", .out = out, .vkmoe_only = true},
                &r, &err),
            &err);
}

/* A model on the device of another: kernels that do not depend on the number of experts are there already. */
static void open_beside(struct device_case *c, const struct device_case *other, const char *path)
{
    *c = *other;
    c->model = NULL;
    test_ok(run_model_open(&c->model, c->dev, path, NULL, NULL, &err), &err);
}

static void compare(uint32_t row, const float *masked, const float *carved, uint32_t vocab)
{
    for (size_t k = 0; k < (size_t)(N_PROMPT + N_DECODE) * vocab; k++)
        if (memcmp(masked + k, carved + k, sizeof(*masked)))
            fail_msg("row %u: logit %u of token %u: %.9g masked, %.9g carved", row, (unsigned)(k % vocab),
                     (unsigned)(k / vocab), (double)masked[k], (double)carved[k]);
}

static void same_bits(void **state)
{
    struct device_case device, full, small;
    uint64_t rng = test_seed(), before = 0;
    enum mdl_type open = MDL_F32; /* none */
    const char *path = small_path();

    (void)state;
    golden_scripture(tokens, N_PROMPT + N_DECODE);
    device_open(&device, NULL, &none);
    full = device;
    for (uint32_t i = 0; i < COR_COUNT(rows); i++) {
        float *masked, *carved;
        struct xp_subset s;
        uint32_t vocab;

        if (!test_full() && (rows[i].full || (device_slow(&device) && i)))
            continue;
        if (rows[i].type != open) {
            run_model_close(full.model);
            open_beside(&full, &device, golden_model("emo-nano", rows[i].type));
            open = rows[i].type;
        }
        pick(&s, rows[i].keep, &rng);
        carve(golden_model("emo-nano", rows[i].type), &s, path);
        open_beside(&small, &device, path);
        vocab = full.model->mdl->config.vocab_size;
        masked = logits_of(&full, s.allowed);
        carved = logits_of(&small, NULL);
        compare(i, masked, carved, vocab);
        assert_true(device_hash(masked, vocab) != before); /* the subset matters */
        before = device_hash(masked, vocab);
        cor_free(masked);
        cor_free(carved);
        xp_subset_free(&s);
        run_model_close(small.model);
    }
    run_model_close(full.model);
    device_close(&device);
}

/* Few slots: experts of a carved file come and go like those of any other. */
static void with_a_small_pool(void **state)
{
    static const uint32_t keep[N_LAYERS] = {9, 5, 12, 30, 8, 16};
    struct run_model_params mp = {.pool_budget = 5 << 20};
    struct device_case all_in, few;
    uint64_t rng = test_seed();
    float *all, *some;
    struct xp_subset s;
    const char *path = small_path();

    (void)state;
    golden_scripture(tokens, N_PROMPT + N_DECODE);
    pick(&s, keep, &rng);
    carve(golden_model("emo-nano", MDL_BF16), &s, path);
    device_open(&all_in, path, &none);
    if (device_slow(&all_in)) { /* the pool's decisions depend on no driver */
        device_close(&all_in);
        xp_subset_free(&s);
        return;
    }
    all = logits_of(&all_in, NULL);
    device_close(&all_in);
    device_open(&few, path, &(struct device_params){.model = &mp});
    assert_true(few.model->pool.n_slots < 80);
    some = logits_of(&few, NULL);
    assert_memory_equal(all, some, (size_t)(N_PROMPT + N_DECODE) * 4096 * sizeof(*all));
    device_close(&few);
    cor_free(all);
    cor_free(some);
    xp_subset_free(&s);
}

/* Dense weights and experts come from three files, the latter through a pool too small for all. */
static void in_parts(void **state)
{
    const struct run_model_params mp = {.pool_budget = 12 << 20};
    const struct device_params dp = {.model = &mp};
    struct device_case one, many;
    char dir[4300], *slash;
    const char *path;
    float *a, *b;

    (void)state;
    golden_scripture(tokens, N_PROMPT + N_DECODE);
    snprintf(dir, sizeof(dir), "%s", small_path());
    assert_non_null(slash = strrchr(dir, '/'));
    *slash = 0;
    device_open(&one, golden_model("emo-nano", MDL_BF16), &dp);
    if (device_slow(&one)) { /* what is read where depends on no driver */
        device_close(&one);
        return;
    }
    a = logits_of(&one, NULL);
    device_close(&one);
    path = split_copy(golden_model("emo-nano", MDL_BF16), dir, "parts", 3);
    device_open(&many, path, &dp);
    assert_int_equal(many.model->mdl->gguf->n_files, 3);
    b = logits_of(&many, NULL);
    assert_memory_equal(a, b, (size_t)(N_PROMPT + N_DECODE) * 4096 * sizeof(*a));
    device_close(&many);
    cor_free(a);
    cor_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits),
        cmocka_unit_test(with_a_small_pool),
        cmocka_unit_test(in_parts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
