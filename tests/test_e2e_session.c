/* Sessions: prefill against single tokens, the same bits twice, halts, counts of submits and waits, limits,
 * two sessions. */
#include <math.h>
#include <stdio.h>

#include "support/device.h"

#define N_TEXT 300

static struct device_case shared_case; /* the bundled model, all experts resident */
static int32_t text[N_TEXT];

static int setup(void **state)
{
    const char *path = golden_model("emo-nano", MDL_BF16);

    (void)state;
    assert_non_null(path);
    golden_scripture(text, N_TEXT);
    device_open(&shared_case, path, &(struct device_params){0});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    device_close(&shared_case);
    return 0;
}

static uint32_t vocab(void)
{
    return shared_case.model->mdl->config.vocab_size;
}

static float max_diff(const float *a, const float *b, size_t n)
{
    float worst = 0;

    for (size_t i = 0; i < n; i++)
        worst = fmaxf(worst, fabsf(a[i] - b[i]));
    return worst;
}

/* ---- prefill and single tokens
 * ------------------------------------------------------------------------------ */

struct pass {
    float *logits;               /* (n, vocab) */
    struct device_routes routes; /* slow passes only */
};

/* The first n tokens of the text, `step` at a time. slow: with the choices of every layer, and a wait after
 * each part. */
static struct pass run_pass(uint32_t n, uint32_t step, bool f16, bool slow)
{
    struct run_session *s = device_session(
        &shared_case,
        &(struct run_session_params){
            .n_ctx = n, .k_type = f16 ? MDL_F16 : MDL_F32, .v_type = f16 ? MDL_F16 : MDL_F32, .slow = slow});
    struct pass p = {0};

    if (slow) {
        device_routes_init(&p.routes, &shared_case, n);
        run_session_on_route(s, device_routes_hook, &p.routes);
    }
    p.logits = cor_array((size_t)n * vocab(), sizeof(float));
    assert_non_null(p.logits);
    for (uint32_t t = 0; t < n; t += step) {
        float *part = device_feed_all(&shared_case, s, text + t, step);

        memcpy(p.logits + (size_t)t * vocab(), part, (size_t)step * vocab() * sizeof(float));
        cor_free(part);
    }
    run_session_destroy(s);
    return p;
}

static void free_pass(struct pass *p)
{
    cor_free(p->logits);
    device_routes_free(&p->routes);
}

static float row_diff(const struct pass *a, const struct pass *b, uint32_t t)
{
    return max_diff(a->logits + (size_t)t * vocab(), b->logits + (size_t)t * vocab(), vocab());
}

/* Some logits differ by more than the limit: only a flip of experts excuses that, for its own token and,
 * within the limit against golden files, for those that attend to it. */
static void check_flips(uint32_t n, bool f16, float limit)
{
    struct pass many = run_pass(n, n, f16, true), one = run_pass(n, 1, f16, true);
    struct mdl_ref_route *ref = device_reference_routes(&shared_case, text, n, NULL);
    struct golden_routes flips = {.any_margin = f16};
    uint32_t layers = one.routes.n_layers, k = one.routes.k;
    float worst = 0, touched = 0;
    bool flipped = false;
    char what[64];

    snprintf(what, sizeof(what), "prefill of %u, %s cache", n, f16 ? "f16" : "f32");
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t l = 0; l < layers; l++) {
            const struct mdl_ref_route *r = &ref[(size_t)t * layers + l];
            size_t at = ((size_t)l * n + t) * k;

            golden_routes_compare(&flips, what, l, t, many.routes.ids + at, one.routes.ids + at, k, r->last,
                                  r->next);
        }
        if (flips.left_out[t])
            flipped = true;
        else if (flipped)
            touched = fmaxf(touched, row_diff(&many, &one, t));
        else
            worst = fmaxf(worst, row_diff(&many, &one, t));
    }
    print_message(
        "%s against single tokens: largest difference %g before a flip, %g behind it, %u tokens left out\n",
        what, worst, touched, flips.flips);
    golden_routes_check(&flips, what, f16 ? (uint32_t)ceil(0.005 * n) : GOLDEN_MAX_FLIPS);
    assert_true(worst <= limit);
    assert_true(touched <= (f16 ? GOLDEN_DIFF_F16 : GOLDEN_DIFF_F32));
    free_pass(&many);
    free_pass(&one);
    cor_free(ref);
}

static void check_prefill(bool f16)
{
    static const uint32_t lengths[] = {1, 2, 17, 128, N_TEXT};
    const float limit = f16 ? 5e-3f : 1e-4f;
    /* Halves are compared with golden outputs as well (test_e2e_golden). */
    uint32_t n = !device_slow(&shared_case) ? N_TEXT : f16 && !test_full() ? 32 : 128;
    struct pass one = run_pass(n, 1, f16, false);

    for (uint32_t i = 0; i < COR_COUNT(lengths) && lengths[i] <= n; i++) {
        struct pass many = run_pass(lengths[i], lengths[i], f16, false);
        float worst = 0;

        for (uint32_t t = 0; t < lengths[i]; t++)
            worst = fmaxf(worst, row_diff(&many, &one, t));
        print_message("prefill of %u, %s cache, against single tokens: largest difference %g\n", lengths[i],
                      f16 ? "f16" : "f32", worst);
        if (!(worst <= limit))
            check_flips(lengths[i], f16, limit);
        free_pass(&many);
    }
    free_pass(&one);
}

/* The text's first N_SHORT tokens by chunks of 1, 2, 4 and 8, on devices whose tiles are of shared memory: a
 * mat-vec of several vectors, in all its cores. */
static void test_short_chunks(void **state)
{
    enum { N_SHORT = 16 };
    static const char *const variants[] = {"core=shared,rows=4,tile=shared",
                                           "core=subgroup,rows=4,tile=shared"};
    static const uint32_t steps[] = {2, 4, 8};
    const struct device_case kept = shared_case;
    const bool slow = device_slow(&kept);

    (void)state;
    for (size_t v = slow; v < COR_COUNT(variants); v++) {
        struct pass one;

        device_open(&shared_case, golden_model("emo-nano", MDL_BF16),
                    &(struct device_params){.variants = variants[v]});
        one = run_pass(N_SHORT, 1, false, false);
        for (size_t i = slow ? 2 : 0; i < COR_COUNT(steps); i++) {
            struct pass few = run_pass(N_SHORT, steps[i], false, false);

            assert_true(max_diff(few.logits, one.logits, (size_t)N_SHORT * vocab()) <= 1e-4f);
            free_pass(&few);
        }
        free_pass(&one);
        device_close(&shared_case);
    }
    shared_case = kept;
}

static void test_prefill_f32(void **state)
{
    (void)state;
    check_prefill(false);
}

static void test_prefill_f16(void **state)
{
    (void)state;
    check_prefill(true);
}

/* ---- the same bits
 * ------------------------------------------------------------------------------------------ */

struct bits_case {
    struct device_case *c;
    bool slow;
    uint32_t chunk;
};

/* Hash over the logits of a prompt and of 24 forced tokens. */
static uint64_t bits(const struct bits_case *k, struct run_stats *stats)
{
    struct run_session *s =
        device_session(k->c, &(struct run_session_params){.n_ctx = 256, .slow = k->slow, .chunk = k->chunk});
    uint64_t h = 0;
    float *all = device_feed_all(k->c, s, text, 100);

    h = device_hash(all, (size_t)100 * vocab());
    cor_free(all);
    for (uint32_t t = 100; t < 124; t++) {
        device_feed(s, text + t, 1);
        h = h * 31 + device_hash(run_session_logits(s), vocab());
    }
    if (stats)
        *stats = *run_session_stats(s);
    run_session_destroy(s);
    return h;
}

static void test_same_bits(void **state)
{
    const struct bits_case usual = {.c = &shared_case}, slow = {.c = &shared_case, .slow = true};
    uint64_t h = bits(&usual, NULL);

    (void)state;
    assert_true(h == bits(&usual, NULL));
    assert_true(h == bits(&slow, NULL)); /* a wait after every part changes nothing */
}

/* Experts that are loaded when first asked for: halts, the same bits, and no halt once all are there. */
static uint64_t uploads(const struct device_case *c)
{
    const struct run_pool *p = &c->model->pool;

    return p->prefill.loads + p->cold.loads + p->warm.loads;
}

static void check_lazy(const char *caps)
{
    struct device_case lazy, eager;
    struct run_stats first, second;
    uint64_t h, want;

    device_open(&lazy, golden_model("emo-nano", MDL_BF16),
                &(struct device_params){.caps = caps, .lazy = true});
    device_open(&eager, golden_model("emo-nano", MDL_BF16), &(struct device_params){.caps = caps});
    want = bits(&(struct bits_case){.c = &eager}, NULL);
    assert_int_equal(lazy.model->pool.opening.loads, 0);
    h = bits(&(struct bits_case){.c = &lazy}, &first);
    assert_true(first.halts > 0 && uploads(&lazy) > 0);
    assert_true(uploads(&lazy) <= lazy.model->pool.n_slots);
    assert_true(h == want);
    h = bits(&(struct bits_case){.c = &lazy}, &second);
    assert_int_equal(second.halts, 0);
    assert_int_equal(second.waits, second.submits);
    assert_int_equal(second.submits, first.submits - first.halts - first.overlapped);
    assert_true(h == want);
    device_close(&eager);
    device_close(&lazy);
}

/* Hash over the logits behind a prompt and two tokens; watched: every row's choices are told, so that every
 * row runs through all layers. */
static uint64_t last_row(const struct bits_case *k, bool watched)
{
    struct run_session *s =
        device_session(k->c, &(struct run_session_params){.n_ctx = 64, .slow = k->slow, .chunk = k->chunk});
    struct device_routes routes;
    uint64_t h;

    device_routes_init(&routes, k->c, 64);
    if (watched)
        run_session_on_route(s, device_routes_hook, &routes);
    device_feed(s, text, 61);
    run_session_on_route(s, NULL, NULL);
    device_routes_free(&routes);
    h = device_hash(run_session_logits(s), vocab());
    for (uint32_t t = 61; t < 63; t++) {
        device_feed(s, text + t, 1);
        h = h * 31 + device_hash(run_session_logits(s), vocab());
    }
    run_session_destroy(s);
    return h;
}

/* Where one row's logits are wanted, the last layer runs for that row alone: the same bits, fewer experts. */
static void test_last_row(void **state)
{
    const uint32_t most = device_slow(&shared_case) ? 16 : 64;
    struct device_case lazy[2];
    uint64_t h;

    (void)state;
    for (uint32_t chunk = 16; chunk <= most; chunk += 48) {
        const struct bits_case usual = {.c = &shared_case, .chunk = chunk};
        const struct bits_case slow = {.c = &shared_case, .chunk = chunk, .slow = true};

        h = last_row(&usual, true);
        assert_true(h == last_row(&usual, false));
        assert_true(most == 16 || h == last_row(&slow, false));
    }
    for (int i = 0; i < 2; i++) {
        device_open(&lazy[i], golden_model("emo-nano", MDL_BF16), &(struct device_params){.lazy = true});
        assert_true(h == last_row(&(struct bits_case){.c = &lazy[i], .chunk = most}, i == 0));
    }
    assert_true(uploads(&lazy[1]) < uploads(&lazy[0]));
    device_close(&lazy[0]);
    device_close(&lazy[1]);
}

static void test_lazy_experts(void **state)
{
    (void)state;
    check_lazy(NULL);
}

static void test_lazy_experts_segments(void **state)
{
    (void)state;
    if (device_slow(&shared_case)) /* test_e2e_pool has such segments as well */
        return;
    check_lazy("range=1M,buffers=8");
}

/* Sum of the squares of a - b. */
static double distance(const float *a, const float *b)
{
    double sum = 0;

    for (uint32_t i = 0; i < vocab(); i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sum;
}

/* A prompt and single tokens with a cache in Q8_0 against the reference, which rounds in the same way. What
 * lies between two steps may go to either, and what follows from it rounds otherwise too: most tokens, not
 * all, are nearer to that reference than half of what rounding does. */
static void test_cache_q8_0(void **state)
{
    enum { PROMPT = 40, N = 48 };
    const struct run_session_params sp = {.n_ctx = N, .k_type = MDL_Q8_0, .v_type = MDL_Q8_0};
    const struct mdl_ref_params rp = {.n_ctx = N, .kv = MDL_Q8_0}, exact = {.n_ctx = N};
    struct run_session *s;
    float *want, *plain, *all;
    double err2 = 0, power = 0;
    struct mdl_ref *rounds, *does_not;
    struct vkmoe_err err = {0};
    uint32_t near = 0;

    (void)state;
    if (device_slow(&shared_case)) /* its kernels are tested alone there */
        return;
    s = device_session(&shared_case, &sp);
    want = cor_array(vocab(), sizeof(float));
    plain = cor_array(vocab(), sizeof(float));
    test_ok(mdl_ref_create(&rounds, shared_case.model->mdl, &rp, &err), &err);
    test_ok(mdl_ref_create(&does_not, shared_case.model->mdl, &exact, &err), &err);
    all = device_feed_all(&shared_case, s, text, PROMPT);
    for (uint32_t t = 0; t < N; t++) {
        const float *got = all + (size_t)t * vocab();

        if (t >= PROMPT) {
            device_feed(s, text + t, 1);
            got = run_session_logits(s);
        }
        test_ok(mdl_ref_feed(rounds, text[t], want, NULL, &err), &err);
        test_ok(mdl_ref_feed(does_not, text[t], plain, NULL, &err), &err);
        err2 += distance(got, want);
        near += distance(got, want) < distance(plain, want) / 2;
        for (uint32_t i = 0; i < vocab(); i++)
            power += (double)want[i] * want[i];
    }
    print_message("cache in q8_0: error %g, %u of %u tokens near\n", err2 / power, near, N);
    assert_true(err2 / power <= 1e-5);
    assert_true(near >= N * 3 / 4);
    mdl_ref_destroy(rounds);
    mdl_ref_destroy(does_not);
    cor_free(want);
    cor_free(plain);
    cor_free(all);
    run_session_destroy(s);
}

static void test_one_submit_per_token(void **state)
{
    struct run_session *s = device_session(&shared_case, &(struct run_session_params){.n_ctx = 64});

    (void)state;
    for (uint32_t t = 0; t < 40; t++) {
        device_feed(s, text + t, 1);
        assert_int_equal(run_session_stats(s)->submits, t + 1);
        assert_int_equal(run_session_stats(s)->waits, t + 1);
    }
    assert_int_equal(run_session_stats(s)->halts, 0);
    run_session_destroy(s);
}

static void test_two_sessions(void **state)
{
    const struct run_session_params p = {.n_ctx = 64};
    struct run_session *a = device_session(&shared_case, &p), *b = device_session(&shared_case, &p);
    struct run_session *alone = device_session(&shared_case, &p);

    (void)state;
    for (uint32_t t = 0; t < 8; t++) { /* b reads another part of the text in between */
        device_feed(a, text + t, 1);
        device_feed(b, text + 50 + 3 * t, 3);
    }
    device_feed(alone, text, 1);
    for (uint32_t t = 1; t < 8; t++)
        device_feed(alone, text + t, 1);
    assert_true(device_hash(run_session_logits(a), vocab()) ==
                device_hash(run_session_logits(alone), vocab()));
    run_session_reset(alone);
    assert_null(run_session_logits(alone));
    for (uint32_t t = 0; t < 8; t++)
        device_feed(alone, text + 50 + 3 * t, 3);
    assert_true(device_hash(run_session_logits(b), vocab()) ==
                device_hash(run_session_logits(alone), vocab()));
    run_session_destroy(a);
    run_session_destroy(b);
    run_session_destroy(alone);
}

/* ---- limits
 * ------------------------------------------------------------------------------------------------- */

static bool never(void *user, size_t index, const float *logits)
{
    (void)user;
    (void)logits;
    fail_msg("logits of token %zu", index);
    return false;
}

static void test_limits(void **state)
{
    struct run_session *s = device_session(&shared_case, &(struct run_session_params){.n_ctx = 16});
    const int32_t wrong[] = {1, 4096}, negative[] = {-1};
    struct vkmoe_err err = {0};

    (void)state;
    assert_int_equal(run_session_feed(s, text, 0, NULL, NULL, &err), VKMOE_ERR_ARGUMENT);
    assert_int_equal(run_session_feed(s, wrong, 2, NULL, NULL, &err), VKMOE_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "4096"));
    assert_int_equal(run_session_feed(s, negative, 1, NULL, NULL, &err), VKMOE_ERR_ARGUMENT);
    assert_int_equal(run_session_feed(s, text, 17, NULL, NULL, &err), VKMOE_ERR_CONTEXT_FULL);
    assert_int_equal(run_session_position(s), 0);
    device_feed(s, text, 15);
    device_feed(s, text + 15, 1); /* the last position is usable */
    assert_int_equal(run_session_feed(s, text, 1, NULL, NULL, &err), VKMOE_ERR_CONTEXT_FULL);
    assert_int_equal(run_session_position(s), 16);
    run_session_destroy(s);
    assert_int_equal(
        run_session_create(&s, shared_case.model, &(struct run_session_params){.n_ctx = 1u << 30}, &err),
        VKMOE_ERR_LIMIT);
    assert_null(s);
}

/* The best logits are those of a session that gets all: after a chunk and after each token, any number. */
static void test_top(void **state)
{
    static const uint32_t n_top[] = {1, 40, TOPK_MAX};
    struct run_session *all = device_session(&shared_case, &(struct run_session_params){.n_ctx = 64}), *s;
    const uint32_t used = mdl_tokenizer_used(shared_case.model->mdl->tok);
    struct vkmoe_err err = {0};
    const int32_t *ids;
    const float *best;

    (void)state;
    for (uint32_t i = 0; i < COR_COUNT(n_top); i++) {
        s = device_session(&shared_case, &(struct run_session_params){.n_ctx = 64, .n_top = n_top[i]});
        assert_int_equal(run_session_top(s, &ids, &best), 0);
        run_session_reset(all);
        for (uint32_t at = 0, n = 33; at < 37; at += n, n = 1) {
            const float *logits;

            device_feed(all, text + at, n);
            device_feed(s, text + at, n);
            logits = run_session_logits(all);
            assert_null(run_session_logits(s));
            assert_int_equal(run_session_top(all, &ids, &best), 0);
            assert_int_equal(run_session_top(s, &ids, &best), n_top[i]);
            for (uint32_t j = 0; j < n_top[i]; j++) {
                uint32_t before = 0;

                for (uint32_t k = 0; k < used; k++)
                    before += logits[k] > best[j] || (logits[k] == best[j] && (int32_t)k < ids[j]);
                assert_int_equal(before, j);
                assert_memory_equal(&logits[ids[j]], &best[j], sizeof(float));
            }
        }
        assert_int_equal(run_session_feed(s, text, 3, never, NULL, &err), VKMOE_ERR_ARGUMENT);
        assert_non_null(strstr(err.message, "best logits"));
        run_session_destroy(s);
    }
    run_session_destroy(all);
    assert_int_equal(run_session_create(&s, shared_case.model,
                                        &(struct run_session_params){.n_ctx = 64, .n_top = TOPK_MAX + 1},
                                        &err),
                     VKMOE_ERR_ARGUMENT);
    assert_null(s);
}

/* A prompt longer than a chunk, with a last chunk of one token and of several. */
static void test_chunks(void **state)
{
    static const uint32_t chunks[] = {1, 33, 96, 100};
    struct run_session *whole = device_session(&shared_case, &(struct run_session_params){.n_ctx = 256});

    (void)state;
    device_feed(whole, text, 193);
    for (uint32_t i = device_slow(&shared_case); i < COR_COUNT(chunks); i++) {
        struct run_session *s =
            device_session(&shared_case, &(struct run_session_params){.n_ctx = 256, .chunk = chunks[i]});
        float diff;

        device_feed(s, text, 193);
        diff = max_diff(run_session_logits(s), run_session_logits(whole), vocab());
        print_message("chunks of %u: largest difference %g\n", chunks[i], diff);
        assert_true(diff <= 1e-4f);
        run_session_destroy(s);
    }
    run_session_destroy(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_f32),
        cmocka_unit_test(test_short_chunks),
        cmocka_unit_test(test_prefill_f16),
        cmocka_unit_test(test_cache_q8_0),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_last_row),
        cmocka_unit_test(test_lazy_experts),
        cmocka_unit_test(test_lazy_experts_segments),
        cmocka_unit_test(test_one_submit_per_token),
        cmocka_unit_test(test_two_sessions),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_top),
        cmocka_unit_test(test_chunks),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
