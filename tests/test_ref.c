/* model/ref: the golden outputs of the PyTorch original, and properties on very small models. */
#include "support/golden.h"
#include "support/tiny.h"

#include "model/ref.h"

#include <math.h>
#include <stdio.h>

#define STEPS 12 /* tokens fed to a small model */

/* ---- golden
 * ----------------------------------------------------------------------------------------------------------
 */

static struct mdl_ref *make_ref(const struct mdl_model *m, const uint32_t *allowed, bool kv_f16,
                                uint32_t n_ctx)
{
    struct mdl_ref_params p = {.n_ctx = n_ctx, .kv = kv_f16 ? MDL_F16 : MDL_F32, .allowed = allowed};
    struct vkmoe_err err;
    struct mdl_ref *r;

    test_ok(mdl_ref_create(&r, m, &p, &err), &err);
    return r;
}

static void feed(struct mdl_ref *r, int32_t token, float *logits, struct mdl_ref_route *routes)
{
    struct vkmoe_err err;

    test_ok(mdl_ref_feed(r, token, logits, routes, &err), &err);
}

static int32_t argmax(const float *x, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return (int32_t)best;
}

/* The prompt token by token against golden, then the greedy continuation (f32 cache only). */
static void check_run(struct mdl_ref *r, const struct golden *g, const struct golden_run *run, bool kv_f16,
                      struct golden_diff *diff, struct golden_routes *routes)
{
    struct mdl_ref_route route[64];
    float *logits = cor_array(g->vocab_size, sizeof(*logits));
    const float *all = run->logits.data;
    int32_t greedy[GOLDEN_GREEDY];

    assert_true(logits && g->n_layers <= COR_COUNT(route));
    memset(routes->left_out, 0, sizeof(routes->left_out));
    mdl_ref_reset(r);
    for (uint32_t t = 0; t < g->n_tokens; t++) {
        bool last = t + 1 == g->n_tokens;

        feed(r, g->tokens[t], all || last ? logits : NULL, route);
        for (uint32_t l = 0; run->experts.data && l < g->n_layers; l++)
            golden_routes_add(routes, g, run, l, t, route[l].ids, route[l].weights, route[l].n,
                              (double)route[l].last, (double)route[l].next);
        if (routes->left_out[t])
            continue;
        if (all)
            golden_diff_add(diff, logits, all + (size_t)t * g->vocab_size, g->vocab_size);
        if (last)
            golden_diff_add(diff, logits, run->last_logits.data, g->vocab_size);
    }
    for (uint32_t i = 0; !kv_f16 && i < GOLDEN_GREEDY; i++) {
        greedy[i] = argmax(logits, g->vocab_size);
        feed(r, greedy[i], logits, NULL);
    }
    if (!kv_f16)
        golden_greedy_check(g, run, greedy, GOLDEN_GREEDY);
    cor_free(logits);
}

/* One prompt with all experts and with its domain's subset. */
static bool check_prompt(const struct mdl_model *m, struct mdl_ref *full, const char *model, uint32_t index,
                         bool kv_f16)
{
    struct golden_diff diff = {0}, sub_diff = {0};
    struct golden_routes routes = {.any_margin = kv_f16}, sub_routes = {.any_margin = kv_f16};
    double max_nmse = kv_f16 ? GOLDEN_NMSE_F16 : GOLDEN_NMSE_F32,
           max_diff = kv_f16 ? GOLDEN_DIFF_F16 : GOLDEN_DIFF_F32;
    struct mdl_ref *subset;
    struct golden g;
    char what[96];

    if (!golden_load(&g, model, index))
        return false;
    assert_int_equal(g.n_layers, m->config.n_layers);
    assert_int_equal(g.n_experts, m->config.n_experts);
    assert_int_equal(g.vocab_size, m->config.vocab_size);
    snprintf(what, sizeof(what), "%s, all experts, %s cache", g.name, kv_f16 ? "f16" : "f32");
    check_run(full, &g, &g.full, kv_f16, &diff, &routes);
    golden_diff_check(&diff, what, max_nmse, max_diff);
    if (g.full.experts.data)
        golden_routes_check(&routes, what, kv_f16 ? routes.compared / 200 : GOLDEN_MAX_FLIPS);
    snprintf(what, sizeof(what), "%s, subset, %s cache", g.name, kv_f16 ? "f16" : "f32");
    subset = make_ref(m, g.allowed, kv_f16, GOLDEN_MAX_LEN);
    check_run(subset, &g, &g.sub, kv_f16, &sub_diff, &sub_routes);
    golden_diff_check(&sub_diff, what, max_nmse, max_diff);
    if (g.sub.experts.data)
        golden_routes_check(&sub_routes, what, kv_f16 ? sub_routes.compared / 200 : GOLDEN_MAX_FLIPS);
    mdl_ref_destroy(subset);
    golden_free(&g);
    return true;
}

/* prompts: a bit for each. */
static void check_model(const char *model, uint32_t prompts, bool kv_f16)
{
    const char *path = golden_model(model, MDL_BF16);
    struct mdl_model *m;
    struct mdl_ref *full;
    struct vkmoe_err err;
    bool missing = false;

    if (!path)
        test_skip("the model is in shared/ only");
    test_ok(mdl_open(&m, path, &err), &err);
    full = make_ref(m, NULL, kv_f16, GOLDEN_MAX_LEN);
    for (uint32_t i = 0; i < GOLDEN_PROMPTS; i++)
        if (prompts >> i & 1)
            missing |= !check_prompt(m, full, model, i, kv_f16);
    mdl_ref_destroy(full);
    mdl_close(m);
    if (missing)
        test_skip("golden files of a prompt are in shared/ only");
}

static void test_golden_bundled(void **state)
{
    (void)state;
    check_model("emo-nano", 1 << 0 | 1 << 1 | 1 << 3, false);
}

static void test_golden_bundled_f16(void **state)
{
    (void)state;
    check_model("emo-nano", 1 << 1 | 1 << 3, true);
}

static void test_golden_shared(void **state)
{
    (void)state;
    check_model("emo-nano", 1 << 2 | 1 << 4 | 1 << 5, false);
}

static void test_golden_twin(void **state)
{
    (void)state;
    check_model("stdmoe-nano", 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4, false);
}

/* ---- properties on small models
 * ---------------------------------------------------------------------------------------- */

/* Feeds a fixed text and returns the logits of all steps, (STEPS, vocab); the caller frees. */
static float *run_text(const struct mdl_model *m, const uint32_t *allowed, bool kv_f16,
                       struct mdl_ref_route *routes)
{
    struct mdl_ref *r = make_ref(m, allowed, kv_f16, STEPS);
    uint32_t n = m->config.vocab_size;
    float *out = cor_array((size_t)STEPS * n, sizeof(*out));

    assert_non_null(out);
    for (uint32_t t = 0; t < STEPS; t++)
        feed(r, (int32_t)(t * 7 % n), out + (size_t)t * n,
             routes ? routes + (size_t)t * m->config.n_layers : NULL);
    mdl_ref_destroy(r);
    return out;
}

static void assert_near(const float *a, const float *b, size_t n, double limit)
{
    struct golden_diff d = {0};

    golden_diff_add(&d, a, b, n);
    golden_diff_check(&d, "small model", HUGE_VAL, limit);
}

/* Masking experts and cutting them out of the file give the same bits. */
static void test_mask_is_carve(void **state)
{
    static const uint32_t kept[2][4] = {{0, 2, 3, 5}, {1, 2, 4, 5}};
    struct mdl_config c = tiny_config();
    struct tiny full, cut;
    const char *dir = test_tmp();
    uint32_t mask[2] = {0};
    float *a, *b;

    (void)state;
    tiny_make(&full, &c, test_seed());
    tiny_make(&cut, &c, test_seed());
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < 4; i++) {
            uint32_t e = kept[l][i];

            mask[l] |= 1u << e;
            memmove(tiny_part(&cut, (uint32_t)l, TINY_ROUTER) + i * 32,
                    tiny_part(&full, (uint32_t)l, TINY_ROUTER) + e * 32, 32 * 4);
            for (int part = TINY_GATE; part <= TINY_DOWN; part++)
                memmove(tiny_part(&cut, (uint32_t)l, (enum tiny_part)part) + i * 1024,
                        tiny_part(&full, (uint32_t)l, (enum tiny_part)part) + e * 1024, 1024 * 4);
        }
    cut.c.n_experts = 4;
    for (uint32_t l = 0; l < 2; l++) {
        struct tiny_tensor *t = cut.tensors + TINY_GLOBALS + l * TINY_PARTS;

        t[TINY_ROUTER].dims[1] = t[TINY_GATE].dims[2] = t[TINY_UP].dims[2] = t[TINY_DOWN].dims[2] = 4;
        t[TINY_ROUTER].count = 4 * 32;
        t[TINY_GATE].count = t[TINY_UP].count = t[TINY_DOWN].count = 4 * 1024;
    }
    tiny_open(&full, dir, "full.gguf", MDL_F32, false);
    tiny_open(&cut, dir, "cut.gguf", MDL_F32, false);
    a = run_text(&full.model, mask, false, NULL);
    b = run_text(&cut.model, NULL, false, NULL);
    assert_memory_equal(a, b, STEPS * 50 * sizeof(float));
    cor_free(b);
    b = run_text(&full.model, NULL, false, NULL);
    assert_memory_not_equal(a, b, STEPS * 50 * sizeof(float));
    cor_free(a);
    mask[0] = mask[1] = 0x3f; /* all bits: the whole model */
    a = run_text(&full.model, mask, false, NULL);
    assert_memory_equal(a, b, STEPS * 50 * sizeof(float));
    cor_free(a);
    cor_free(b);
    tiny_close(&full);
    tiny_close(&cut);
}

/* Rows of q and k in the other order give the same attention, also with fewer rotated dimensions than the
 * head has. */
static void test_rope_orders(void **state)
{
    struct mdl_config c = tiny_config();
    const char *dir = test_tmp();

    (void)state;
    for (c.n_rot = 8; c.n_rot <= 16; c.n_rot += 8) {
        struct tiny norm, neox;
        float *a, *b;

        c.rope = MDL_ROPE_NORM;
        tiny_make(&norm, &c, test_seed());
        c.rope = MDL_ROPE_NEOX;
        tiny_make(&neox, &c, test_seed());
        for (uint32_t l = 0; l < 2; l++)
            for (int part = TINY_Q; part <= TINY_K; part++)
                for (uint32_t head = 0; head < (part == TINY_Q ? 4u : 2u); head++)
                    for (uint32_t i = 0; i < c.n_rot; i++) { /* pair i / 2, its first or second half */
                        uint32_t to = i / 2 + i % 2 * c.n_rot / 2;

                        memcpy(tiny_part(&neox, l, (enum tiny_part)part) + (head * 16 + to) * 32,
                               tiny_part(&norm, l, (enum tiny_part)part) + (head * 16 + i) * 32, 32 * 4);
                    }
        tiny_open(&norm, dir, "norm.gguf", MDL_F32, false);
        tiny_open(&neox, dir, "neox.gguf", MDL_F32, false);
        a = run_text(&norm.model, NULL, false, NULL);
        b = run_text(&neox.model, NULL, false, NULL);
        assert_near(a, b, STEPS * 50, 1e-5);
        cor_free(b);
        neox.model.config.rope = MDL_ROPE_NORM; /* the wrong order is seen */
        b = run_text(&neox.model, NULL, false, NULL);
        assert_true(fabs((double)a[STEPS * 50 - 1] - b[STEPS * 50 - 1]) > 1e-4);
        cor_free(a);
        cor_free(b);
        tiny_close(&norm);
        tiny_close(&neox);
    }
}

/* Two KV heads for four heads are the same as four KV heads, each twice. */
static void test_grouped_heads(void **state)
{
    struct mdl_config c = tiny_config();
    struct tiny grouped, plain;
    const char *dir = test_tmp();
    float *a, *b;

    (void)state;
    tiny_make(&grouped, &c, test_seed());
    c.n_kv_heads = 4;
    tiny_make(&plain, &c, test_seed());
    for (uint32_t i = 0; i < grouped.n_tensors; i++)
        if (grouped.tensors[i].count == plain.tensors[i].count)
            memcpy(plain.tensors[i].data, grouped.tensors[i].data, plain.tensors[i].count * 4);
    for (uint32_t l = 0; l < 2; l++)
        for (int part = TINY_K; part <= TINY_V; part++)
            for (uint32_t head = 0; head < 4; head++)
                memcpy(tiny_part(&plain, l, (enum tiny_part)part) + head * 16 * 32,
                       tiny_part(&grouped, l, (enum tiny_part)part) + head / 2 * 16 * 32, 16 * 32 * 4);
    tiny_open(&grouped, dir, "grouped.gguf", MDL_F32, false);
    tiny_open(&plain, dir, "plain.gguf", MDL_F32, false);
    a = run_text(&grouped.model, NULL, false, NULL);
    b = run_text(&plain.model, NULL, false, NULL);
    assert_memory_equal(a, b, STEPS * 50 * sizeof(float));
    cor_free(a);
    cor_free(b);
    tiny_close(&grouped);
    tiny_close(&plain);
}

/* Equal router rows: lower ids win; weights are the softmax's unless they are to sum to one; the scale
 * multiplies them. */
static void test_router(void **state)
{
    struct mdl_config c = tiny_config();
    struct mdl_ref_route routes[STEPS][2], scaled[STEPS][2];
    struct tiny t;
    uint32_t mask[2] = {0x2c, 0x20};

    (void)state;
    tiny_make(&t, &c, test_seed());
    for (uint32_t e = 1; e < 6; e++)
        memcpy(tiny_part(&t, 0, TINY_ROUTER) + e * 32, tiny_part(&t, 0, TINY_ROUTER), 32 * 4);
    tiny_open(&t, test_tmp(), "router.gguf", MDL_F32, false);
    cor_free(run_text(&t.model, NULL, false, routes[0]));
    for (int i = 0; i < STEPS; i++) {
        const struct mdl_ref_route *r = routes[i];

        assert_int_equal(r[0].n, 2);
        assert_int_equal(r[0].ids[0], 0);
        assert_int_equal(r[0].ids[1], 1);
        assert_true(r[0].weights[0] == (float)(1 / 6.0) && r[0].next == r[0].last &&
                    r[0].last == r[0].weights[1]);
        assert_true(r[1].weights[0] >= r[1].weights[1] && r[1].weights[1] >= r[1].next && r[1].next > 0);
        assert_true(r[1].weights[0] + r[1].weights[1] < 1);
    }
    cor_free(run_text(&t.model, mask, false, routes[0]));
    for (int i = 0; i < STEPS; i++) {
        assert_int_equal(routes[i][0].ids[0], 2);
        assert_int_equal(routes[i][0].ids[1], 3);
        assert_true(routes[i][0].weights[1] == (float)(1 / 3.0));
        assert_int_equal(routes[i][1].n, 1); /* fewer allowed than used */
        assert_int_equal(routes[i][1].ids[0], 5);
        assert_true(routes[i][1].weights[0] == 1 && routes[i][1].next == 0);
    }
    cor_free(run_text(&t.model, NULL, false, routes[0]));
    t.model.config.norm_topk = true;
    t.model.config.expert_scale = 2.5f;
    cor_free(run_text(&t.model, NULL, false, scaled[0]));
    for (int i = 0; i < 2; i++) { /* the first token's layer 0 sees the same input */
        const struct mdl_ref_route *a = &routes[0][0], *b = &scaled[0][0];
        double sum = (double)a->weights[0] + a->weights[1];

        assert_true(fabs(b->weights[i] - a->weights[i] / sum * 2.5) < 1e-6);
        assert_true(b->last == a->last && b->next == a->next);
    }
    tiny_close(&t);
}

/* y.y of an expert of the tiny model for the input h, and y added to m with a weight. */
static double plain_expert(double *m, const double *h, const float *gate, const float *up, const float *down,
                           double weight)
{
    double act[32], yy = 0;

    for (int i = 0; i < 32; i++) {
        double g = 0, u = 0;

        for (int k = 0; k < 32; k++) {
            g += h[k] * gate[i * 32 + k];
            u += h[k] * up[i * 32 + k];
        }
        act[i] = g / (1 + exp(-g)) * u;
    }
    for (int i = 0; i < 32; i++) {
        double y = 0;

        for (int k = 0; k < 32; k++)
            y += act[k] * down[i * 32 + k];
        yy += y * y;
        m[i] += weight * y;
    }
    return yy;
}

/* What the reference tells of its router and experts, against formulas written out: layer 0, whose attention
 * gives nothing. */
static void test_watch(void **state)
{
    struct mdl_config c = tiny_config();
    struct mdl_ref_route routes[2];
    float logits[2][6], *norm;
    double sums[2][5], h[32], m[32] = {0}, want[5] = {0}, scale = 0;
    const struct mdl_ref_watch watch = {&logits[0][0], &sums[0][0]};
    uint32_t all[2] = {0x3f, 0x3f}, few[2] = {0x03, 0x3f};
    struct mdl_ref *r;
    struct tiny t;

    (void)state;
    tiny_make(&t, &c, test_seed());
    memset(tiny_part(&t, 0, TINY_O), 0, 64 * 32 * sizeof(float));
    tiny_open(&t, test_tmp(), "watch.gguf", MDL_F32, false);
    r = make_ref(&t.model, all, false, STEPS);
    mdl_ref_watch(r, &watch);
    feed(r, 7, NULL, routes);
    norm = tiny_part(&t, 0, TINY_FFN_NORM);
    for (int i = 0; i < 32; i++)
        scale += pow(t.tensors[TINY_EMBED].data[7 * 32 + i], 2) / 32;
    for (int i = 0; i < 32; i++)
        h[i] = t.tensors[TINY_EMBED].data[7 * 32 + i] / sqrt(scale + 1e-6) * norm[i];
    for (uint32_t e = 0; e < 6; e++) {
        double z = 0;

        for (int i = 0; i < 32; i++)
            z += h[i] * tiny_part(&t, 0, TINY_ROUTER)[e * 32 + i];
        assert_float_equal(logits[0][e], z, 1e-5);
    }
    for (int k = 0; k < 2; k++)
        want[3 + k] =
            plain_expert(m, h, tiny_part(&t, 0, TINY_GATE) + routes[0].ids[k] * 1024,
                         tiny_part(&t, 0, TINY_UP) + routes[0].ids[k] * 1024,
                         tiny_part(&t, 0, TINY_DOWN) + routes[0].ids[k] * 1024, routes[0].weights[k]);
    (void)plain_expert(m, h, tiny_part(&t, 0, TINY_GATE_SH), tiny_part(&t, 0, TINY_UP_SH),
                       tiny_part(&t, 0, TINY_DOWN_SH), 1);
    for (int i = 0; i < 32; i++) {
        want[0] += h[i] * h[i];
        want[1] += h[i] * m[i];
        want[2] += m[i] * m[i];
    }
    for (int i = 0; i < 5; i++)
        assert_float_equal(sums[0][i], want[i], 1e-5 * (fabs(want[i]) + want[0]));
    mdl_ref_reset(r);
    mdl_ref_allow(r, few); /* another mask; logits are those before it */
    mdl_ref_watch(r, NULL);
    feed(r, 7, NULL, routes);
    assert_true(routes[0].ids[0] < 2 && routes[0].ids[1] < 2);
    mdl_ref_destroy(r);
    tiny_close(&t);
}

/* Quantised matrices mean what mdl_dequant_row says: the same bits as a file of the widened values. */
static void test_types(void **state)
{
    static const enum mdl_type types[] = {MDL_F16, MDL_BF16, MDL_Q8_0, MDL_Q4_0};
    struct mdl_config c = tiny_config();
    const char *dir = test_tmp();

    (void)state;
    for (size_t k = 0; k < COR_COUNT(types); k++) {
        struct tiny q, wide;
        uint8_t raw[64 * 4];
        float *a, *b;

        tiny_make(&q, &c, test_seed());
        tiny_make(&wide, &c, test_seed());
        for (uint32_t i = 0; i < wide.n_tensors; i++) {
            struct tiny_tensor *x = &wide.tensors[i];
            size_t row = (size_t)x->dims[0];

            if (x->n_dims == 1 || (i >= TINY_GLOBALS && (i - TINY_GLOBALS) % TINY_PARTS == TINY_ROUTER))
                continue;
            for (size_t r = 0; r < x->count / row; r++) {
                assert_true(mdl_quant_row(types[k], x->data + r * row, raw, row));
                mdl_dequant_row(types[k], raw, x->data + r * row, row);
            }
        }
        tiny_open(&q, dir, "quantised.gguf", types[k], k & 1);
        tiny_open(&wide, dir, "wide.gguf", MDL_F32, k & 1);
        a = run_text(&q.model, NULL, false, NULL);
        b = run_text(&wide.model, NULL, false, NULL);
        assert_memory_equal(a, b, STEPS * 50 * sizeof(float));
        cor_free(a);
        cor_free(b);
        tiny_close(&q);
        tiny_close(&wide);
    }
}

static void test_cache_reset_and_limits(void **state)
{
    struct mdl_config c = tiny_config();
    struct tiny t;
    struct mdl_ref *r;
    struct vkmoe_err err;
    float *a, *b, again[50];

    (void)state;
    c.n_shared = 0;
    tiny_make(&t, &c, test_seed());
    tiny_open(&t, test_tmp(), "t.gguf", MDL_F32, true);
    a = run_text(&t.model, NULL, false, NULL);
    b = run_text(&t.model, NULL, true, NULL);
    assert_near(a, b, STEPS * 50, 2e-2); /* halves in the cache: close, and not the same */
    assert_memory_not_equal(a, b, STEPS * 50 * sizeof(float));
    r = make_ref(&t.model, NULL, false, STEPS);
    for (int round = 0; round < 2; round++, mdl_ref_reset(r))
        for (uint32_t i = 0; i < STEPS; i++) {
            assert_int_equal(mdl_ref_feed(r, 50, again, NULL, &err), VKMOE_ERR_ARGUMENT);
            assert_int_equal(mdl_ref_feed(r, -1, again, NULL, NULL), VKMOE_ERR_ARGUMENT);
            feed(r, (int32_t)(i * 7 % 50), again, NULL);
            assert_memory_equal(again, a + i * 50, sizeof(again));
            if (i + 1 == STEPS)
                assert_int_equal(mdl_ref_feed(r, 1, again, NULL, &err), VKMOE_ERR_CONTEXT_FULL);
        }
    mdl_ref_destroy(r);
    mdl_ref_destroy(NULL);
    cor_free(a);
    cor_free(b);
    assert_int_equal(mdl_ref_create(&r, &t.model, &(struct mdl_ref_params){.n_ctx = 0}, &err),
                     VKMOE_ERR_ARGUMENT);
    assert_null(r);
    t.model.config.n_experts = 5; /* a file that says otherwise */
    assert_int_equal(mdl_ref_create(&r, &t.model, &(struct mdl_ref_params){.n_ctx = 4}, &err),
                     VKMOE_ERR_FORMAT);
    assert_non_null(strstr(err.message, "layer0.part6"));
    tiny_close(&t);
}

/* NaN and infinite weights: distinct valid experts, and an error instead of logits. */
static void test_non_finite(void **state)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};
    struct mdl_config c = tiny_config();
    const char *dir = test_tmp();

    (void)state;
    for (size_t k = 0; k < COR_COUNT(bad); k++)
        for (int part = TINY_V; part <= TINY_ROUTER; part += TINY_ROUTER - TINY_V) {
            struct mdl_ref_route routes[2];
            struct mdl_ref *r;
            struct vkmoe_err err;
            struct tiny t;
            float logits[50] = {77};

            tiny_make(&t, &c, test_seed());
            for (int i = 0; i < 32; i++)
                tiny_part(&t, 0, (enum tiny_part)part)[i] = bad[k];
            tiny_open(&t, dir, "bad.gguf", MDL_F32, false);
            r = make_ref(&t.model, NULL, false, 4);
            for (int step = 0; step < 3; step++) {
                enum vkmoe_status st = mdl_ref_feed(r, step, logits, routes, &err);

                if (part == TINY_V)
                    assert_int_equal(st, VKMOE_ERR_NUMERIC);
                for (int l = 0; l < 2; l++) {
                    assert_int_equal(routes[l].n, 2);
                    assert_true(routes[l].ids[0] < 6 && routes[l].ids[1] < 6 &&
                                routes[l].ids[0] != routes[l].ids[1]);
                }
                if (st != VKMOE_OK)
                    assert_string_equal(err.message, "non-finite logits at token 0");
                if (part == TINY_V)
                    assert_true(logits[0] == 77);
            }
            mdl_ref_destroy(r);
            tiny_close(&t);
        }
}

static void test_out_of_memory(void **state)
{
    struct mdl_config c = tiny_config();
    struct mdl_ref_params p = {.n_ctx = 4, .allowed = (const uint32_t[]){0x3f, 0x3f}};
    struct tiny t;
    struct mdl_ref *r;
    struct vkmoe_err err;
    long live, n = 0;

    (void)state;
    tiny_make(&t, &c, test_seed());
    tiny_open(&t, test_tmp(), "t.gguf", MDL_Q8_0, false);
    live = cor_alloc_live();
    for (;;) {
        enum vkmoe_status st;

        cor_alloc_fail_from(++n);
        st = mdl_ref_create(&r, &t.model, &p, &err);
        cor_alloc_fail_from(0);
        if (st == VKMOE_OK)
            break;
        assert_int_equal(st, VKMOE_ERR_MEMORY);
        assert_null(r);
        assert_int_equal(cor_alloc_live(), live);
    }
    assert_true(n > 40);
    mdl_ref_destroy(r);
    assert_int_equal(cor_alloc_live(), live);
    for (long k = 1;; k++) { /* reads that fail */
        enum vkmoe_status st;

        cor_os_fail_from(k);
        st = mdl_ref_create(&r, &t.model, &p, &err);
        cor_os_fail_from(0);
        if (st == VKMOE_OK)
            break;
        assert_int_equal(st, VKMOE_ERR_IO);
        assert_int_equal(cor_alloc_live(), live);
    }
    mdl_ref_destroy(r);
    tiny_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_bundled), cmocka_unit_test(test_golden_bundled_f16),
        cmocka_unit_test(test_golden_shared),  cmocka_unit_test(test_golden_twin),
        cmocka_unit_test(test_mask_is_carve),  cmocka_unit_test(test_rope_orders),
        cmocka_unit_test(test_grouped_heads),  cmocka_unit_test(test_router),
        cmocka_unit_test(test_types),          cmocka_unit_test(test_cache_reset_and_limits),
        cmocka_unit_test(test_non_finite),     cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_watch),
    };

    return cmocka_run_group_tests_name("ref", tests, NULL, NULL);
}
