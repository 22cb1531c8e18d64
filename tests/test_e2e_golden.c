/* The device against the PyTorch original: logits, routed experts and greedy continuations of the golden
 * prompts, for every cache type and every way that a device may be clamped. */
#include <math.h>
#include <stdio.h>

#include "support/device.h"

struct golden_case {
    const char *caps;
    uint32_t first, last; /* prompts */
    bool kv_f16, sub;
    const char *variants;
};

static void compare_routes(const struct golden *g, const struct golden_run *run,
                           const struct device_routes *got, const struct mdl_ref_route *ref,
                           struct golden_routes *flips)
{
    for (uint32_t t = 0; t < got->n_tokens; t++)
        for (uint32_t l = 0; l < got->n_layers; l++) {
            const struct mdl_ref_route *r = &ref[(size_t)t * got->n_layers + l];
            size_t at = ((size_t)l * got->n_tokens + t) * got->k;

            golden_routes_add(flips, g, run, l, t, got->ids + at, got->weights + at, r->n, r->last, r->next);
        }
}

/* Prompt in one go, with the choices of every layer: a slow session. */
static void check_prompt(struct device_case *c, const struct golden *g, const struct golden_case *k)
{
    const struct golden_run *run = k->sub ? &g->sub : &g->full;
    const uint32_t *allowed = k->sub ? g->allowed : NULL;
    struct run_session *s =
        device_session(c, &(struct run_session_params){.n_ctx = g->n_tokens,
                                                       .k_type = k->kv_f16 ? MDL_F16 : MDL_F32,
                                                       .v_type = k->kv_f16 ? MDL_F16 : MDL_F32,
                                                       .slow = true});
    struct golden_routes flips = {.any_margin = k->kv_f16};
    struct golden_diff diff = {0};
    struct vkmoe_err err = {0};
    struct device_routes got;
    char what[128];
    float *logits;

    snprintf(what, sizeof(what), "%s%s, %s cache, caps %s", g->name, k->sub ? " subset" : "",
             k->kv_f16 ? "f16" : "f32", k->caps ? k->caps : "all");
    if (allowed)
        test_ok(run_session_set_mask(s, allowed, &err), &err);
    device_routes_init(&got, c, g->n_tokens);
    run_session_on_route(s, device_routes_hook, &got);
    logits = device_feed_all(c, s, g->tokens, g->n_tokens);
    if (run->experts.data) {
        struct mdl_ref_route *ref = device_reference_routes(c, g->tokens, g->n_tokens, allowed);

        compare_routes(g, run, &got, ref, &flips);
        golden_routes_check(&flips, what, k->kv_f16 ? (uint32_t)ceil(0.005 * g->n_tokens) : GOLDEN_MAX_FLIPS);
        cor_free(ref);
    }
    for (uint32_t t = 0; run->logits.data && t < g->n_tokens; t++)
        if (!flips.left_out[t])
            golden_diff_add(&diff, logits + (size_t)t * g->vocab_size,
                            (const float *)run->logits.data + (size_t)t * g->vocab_size, g->vocab_size);
    if (!flips.left_out[g->n_tokens - 1])
        golden_diff_add(&diff, logits + (size_t)(g->n_tokens - 1) * g->vocab_size, run->last_logits.data,
                        g->vocab_size);
    golden_diff_check(&diff, what, k->kv_f16 ? GOLDEN_NMSE_F16 : GOLDEN_NMSE_F32,
                      k->kv_f16 ? GOLDEN_DIFF_F16 : GOLDEN_DIFF_F32);
    cor_free(logits);
    device_routes_free(&got);
    run_session_destroy(s);
}

/* Prompt and 64 greedy tokens in a usual session. */
static void check_greedy(struct device_case *c, const struct golden *g, const struct golden_case *k)
{
    const struct golden_run *run = k->sub ? &g->sub : &g->full;
    struct run_session *s =
        device_session(c, &(struct run_session_params){.n_ctx = g->n_tokens + GOLDEN_GREEDY});
    struct vkmoe_err err = {0};
    int32_t got[GOLDEN_GREEDY];

    if (k->sub)
        test_ok(run_session_set_mask(s, g->allowed, &err), &err);
    device_feed(s, g->tokens, g->n_tokens);
    for (uint32_t i = 0; i < GOLDEN_GREEDY; i++) {
        const float *logits = run_session_logits(s);
        uint32_t best = 0;

        for (uint32_t j = 1; j < g->vocab_size; j++)
            best = logits[j] > logits[best] ? j : best;
        got[i] = (int32_t)best;
        if (i + 1 < GOLDEN_GREEDY)
            device_feed(s, &got[i], 1);
    }
    golden_greedy_check(g, run, got, GOLDEN_GREEDY);
    run_session_destroy(s);
}

/* emo-nano; `./check --full` sets the other. */
static const char *model_name(void)
{
    const char *name = getenv("VKMOE_TEST_MODEL");

    return name ? name : "emo-nano";
}

static void check_case(const struct golden_case *k)
{
    const char *path = golden_model(model_name(), MDL_BF16);
    struct device_case c;
    uint32_t loaded = 0;
    bool brief;

    if (!path) {
        test_skip("no model to compare");
        return;
    }
    device_open(&c, path, &(struct device_params){.caps = k->caps, .variants = k->variants});
    brief = k->variants && device_slow(&c) && !test_full(); /* its own variants are nearly these */
    if (brief)
        print_message("left out: a slow driver\n");
    for (uint32_t i = k->first; i <= k->last && !brief; i++) {
        struct golden g;

        if (!golden_load(&g, model_name(), i))
            continue;
        loaded++;
        check_prompt(&c, &g, k);
        if (!k->kv_f16 && !k->variants &&
            (!k->caps || !device_slow(&c))) /* all positions' logits have been compared */
            check_greedy(&c, &g, k);
        golden_free(&g);
    }
    device_close(&c);
    if (!loaded && !brief)
        test_skip("no golden files");
}

#define CASE(name, ...)                                       \
    static void name(void **state)                            \
    {                                                         \
        (void)state;                                          \
        check_case(&(const struct golden_case){__VA_ARGS__}); \
    }

CASE(test_free_prompts, NULL, 0, 1, false, false, NULL)
CASE(test_scripture, NULL, 3, 3, false, false, NULL)
CASE(test_scripture_subset, NULL, 3, 3, false, true, NULL)
CASE(test_scripture_f16, NULL, 3, 3, true, false, NULL)
CASE(test_c, NULL, 2, 2, false, false, NULL)
CASE(test_german, NULL, 4, 4, false, false, NULL)
CASE(test_politics, NULL, 5, 5, false, false, NULL) /* longer than a chunk */
CASE(test_tuned_shared, .first = 3, .last = 3, .variants = "core=shared,rows=2,tile=shared,lanes=128")
CASE(test_tuned_subgroup, .first = 3, .last = 3, .variants = "core=subgroup,rows=4,tile=shared,lanes=64")
CASE(test_clamped, "range=1M,buffers=8", 3, 3, false, false, NULL)
CASE(test_fast_paths_off, "-f16,-subgroup,-dot8,-bda,-budget,-hostimport,-transfer", 3, 3, false, false, NULL)
CASE(test_no_array, "-array", 3, 3, false, false, NULL)
CASE(test_staging, "-uma", 3, 3, false, false, NULL)
CASE(test_not_coherent, "-coherent", 3, 3, false, false, NULL)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_free_prompts),
        cmocka_unit_test(test_scripture),
        cmocka_unit_test(test_scripture_subset),
        cmocka_unit_test(test_scripture_f16),
        cmocka_unit_test(test_c),
        cmocka_unit_test(test_german),
        cmocka_unit_test(test_politics),
        cmocka_unit_test(test_tuned_shared),
        cmocka_unit_test(test_tuned_subgroup),
        cmocka_unit_test(test_clamped),
        cmocka_unit_test(test_fast_paths_off),
        cmocka_unit_test(test_no_array),
        cmocka_unit_test(test_staging),
        cmocka_unit_test(test_not_coherent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
