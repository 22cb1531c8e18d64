/* Document pools, fixed subsets and what the host sees of the router: a pool of all experts changes no bit, a
 * pool that fits never misses in decode, subsets can be switched between tokens, and the pool that a prompt
 * picks is the one of a plain reference. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "support/device.h"

#define N_PROMPT 50
#define N_DECODE 6
#define N_TEXT   (N_PROMPT + N_DECODE)

enum { MASK_WORDS = 6 * 2 }; /* words of emo-nano's mask */

static int32_t text[N_TEXT];
static struct device_case shared; /* one device: kernels are compiled once */

static int setup(void **state)
{
    (void)state;
    golden_scripture(text, N_TEXT);
    device_open(&shared, NULL, &(struct device_params){0});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    device_close(&shared);
    return 0;
}

/* The shared device with a model on it. */
static struct device_case open_model(enum mdl_type type, const struct run_model_params *p)
{
    struct device_case c = shared;
    struct vkmoe_err err;

    test_ok(run_model_open(&c.model, c.dev, golden_model("emo-nano", type), p, NULL, &err), &err);
    return c;
}

static void close_model(struct device_case *c)
{
    run_model_close(c->model);
    c->model = NULL;
}

static struct run_session *open_session(struct device_case *c, struct run_session_params p)
{
    p.n_ctx = N_TEXT;
    return device_session(c, &p);
}

/* Logits after the prompt and after each decoded token, (1 + N_DECODE, vocab). */
static float *read_text(struct device_case *c, struct run_session *s, uint32_t n_prompt)
{
    uint32_t vocab = c->model->mdl->config.vocab_size, n = N_TEXT - n_prompt;
    float *rows = cor_array((size_t)(n + 1) * vocab, sizeof(float));

    assert_non_null(rows);
    run_session_reset(s);
    device_feed(s, text, n_prompt);
    for (uint32_t t = 0;; t++) {
        memcpy(rows + (size_t)t * vocab, run_session_logits(s), vocab * sizeof(float));
        if (t == n)
            return rows;
        device_feed(s, text + n_prompt + t, 1);
    }
}

static void check_same(const struct device_case *c, const float *got, const float *want, uint32_t n_rows,
                       const char *what)
{
    if (memcmp(got, want, (size_t)n_rows * c->model->mdl->config.vocab_size * sizeof(float)))
        fail_msg("%s: not the same bits", what);
}

/* ---- a pool of all experts
 * ------------------------------------------------------------------------------------ */

static void test_all(void **state)
{
    static const uint32_t chunks[] = {49, 0}; /* one token would be left over; one chunk */
    struct device_case c;

    (void)state;
    c = open_model(MDL_BF16, NULL);
    for (uint32_t i = 0; i < (device_slow(&c) ? 1 : COR_COUNT(chunks)); i++) {
        const uint32_t doc = c.model->mdl->config.n_experts;
        struct run_session *plain = open_session(&c, (struct run_session_params){.chunk = chunks[i]});
        struct run_session *pooled =
            open_session(&c, (struct run_session_params){.chunk = chunks[i], .doc_experts = doc});
        float *want = read_text(&c, plain, N_PROMPT), *got = read_text(&c, pooled, N_PROMPT);

        check_same(&c, got, want, 1 + N_DECODE, "a document pool of all experts");
        assert_true(fabs(run_session_outside(pooled)->prompt) < 1e-9);
        assert_int_equal(run_session_outside(pooled)->tokens, N_DECODE);
        cor_free(got);
        cor_free(want);
        run_session_reset(plain);
        run_session_reset(pooled);
        want = device_feed_all(&c, plain, text, N_PROMPT);
        got = device_feed_all(&c, pooled, text, N_PROMPT);
        check_same(&c, got, want, N_PROMPT, "logits of every position");
        cor_free(got);
        cor_free(want);
        run_session_destroy(plain);
        run_session_destroy(pooled);
    }
    close_model(&c);
}

/* ---- room
 * -------------------------------------------------------------------------------------------------- */

static uint32_t count(const struct run_session *s, const struct mdl_config *c, uint32_t layer)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < c->n_experts; e++)
        n += run_mask_has(run_session_state(s)->allowed, c, layer, e);
    return n;
}

/* The smallest budget for document pools of `doc`; less than 1 KiB under it is refused with what works. */
static uint64_t least_budget(struct device_case *c, const char *path, uint32_t doc)
{
    const struct run_pool_params all = {.budget = RUN_POOL_ALL, .least = doc};
    struct run_model_params room = {.doc_experts = doc};
    struct run_model *m;
    struct run_pool probe;
    struct vkmoe_err err;

    test_ok(run_model_plan(&m, c->dev, path, &err), &err);
    test_ok(run_pool_plan(&probe, c->dev, m->mdl, &all, &err), &err);
    room.pool_budget = run_pool_floor_bytes(&probe) - 1;
    run_pool_close(&probe);
    assert_int_equal(run_model_load(m, &room, NULL, &err), VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, "MiB"));
    run_model_close(m);
    return room.pool_budget + 1;
}

/* Slots for exactly `doc` experts per layer: after prefill every expert that can be chosen is there. */
static void check_room(struct device_case *c, const char *path, uint32_t doc, const float *want)
{
    const struct run_model_params room = {.pool_budget = least_budget(c, path, doc), .doc_experts = doc};
    struct run_slots_stats before, after;
    const struct mdl_config *g;
    struct run_session *s;
    struct vkmoe_err err;
    uint64_t waits;
    float *got;

    test_ok(run_model_open(&c->model, c->dev, path, &room, NULL, &err), &err);
    g = &c->model->mdl->config;
    if (c->model->pool.array)
        assert_int_equal(c->model->pool.n_slots,
                         g->n_layers * (doc > g->n_experts_used ? doc : g->n_experts_used + 1));
    s = open_session(c, (struct run_session_params){.doc_experts = doc, .chunk = 32});
    device_feed(s, text, N_PROMPT);
    run_slots_stats(c->model->pool.slots, &before);
    assert_int_equal(before.total.tokens, 0);
    waits = run_session_stats(s)->waits;
    for (uint32_t t = N_PROMPT; t < N_TEXT; t++)
        device_feed(s, text + t, 1);
    run_slots_stats(c->model->pool.slots, &after);
    assert_int_equal(after.total.misses, 0);
    assert_int_equal(after.total.hits, (uint64_t)N_DECODE * g->n_layers * g->n_experts_used);
    assert_int_equal(run_session_stats(s)->waits - waits, N_DECODE);
    assert_int_equal(run_session_stats(s)->halts, 0);
    for (uint32_t l = 0; l < g->n_layers; l++)
        assert_int_equal(count(s, g, l), doc);
    if (want) { /* a pool of all experts: the bits of none */
        got = read_text(c, s, N_PROMPT);
        check_same(c, got, want, 1 + N_DECODE, "a document pool of all experts in as many slots");
        cor_free(got);
    }
    run_session_destroy(s);
    close_model(c);
}

/* Every size from top-k to all experts in the full run, some of them always. */
static void test_room(void **state)
{
    const char *path = golden_model("emo-nano", MDL_Q8_0);
    struct run_session *s;
    struct device_case c;
    bool slow;
    float *want;

    (void)state;
    c = open_model(MDL_Q8_0, NULL);
    slow = device_slow(&c);
    s = open_session(&c, (struct run_session_params){.chunk = 32});
    want = read_text(&c, s, N_PROMPT);
    run_session_destroy(s);
    close_model(&c);
    for (uint32_t doc = 5; doc <= 63; doc += test_full() && !slow ? 1 : slow ? 58 : 29)
        check_room(&c, path, doc, doc == 63 ? want : NULL);
    cor_free(want);
}

/* Slots that belong to layers. */
static void test_room_of_layers(void **state)
{
    struct device_case c;

    (void)state;
    device_open(&c, NULL, &(struct device_params){.caps = "range=1M,buffers=8"});
    check_room(&c, golden_model("emo-nano", MDL_Q8_0), 12, NULL);
    device_close(&c);
}

static void test_refused(void **state)
{
    struct run_session_params p = {.n_ctx = 32, .doc_experts = 4};
    struct run_model_params mp = {.pool_budget = 4 << 20};
    struct run_session *s;
    struct device_case c;
    struct vkmoe_err err;

    (void)state;
    c = open_model(MDL_BF16, &mp);
    assert_int_equal(run_session_create(&s, c.model, &p, &err), VKMOE_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "from 5"));
    p.doc_experts = 64;
    assert_int_equal(run_session_create(&s, c.model, &p, &err), VKMOE_ERR_ARGUMENT);
    p.doc_experts = 40;
    assert_int_equal(run_session_create(&s, c.model, &p, &err), VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, "document pools of 40"));
    close_model(&c);
}

/* ---- what is picked
 * ---------------------------------------------------------------------------------------- */

static void same_masks(const struct run_session *a, const struct run_session *b, bool same)
{
    const struct run_state *x = run_session_state(a), *y = run_session_state(b);

    assert_int_equal(!memcmp(x->allowed, y->allowed, x->mask.bytes), same);
}

static void test_chunks(void **state)
{
    struct run_session *one, *many, *single;
    struct device_case c;

    (void)state;
    c = open_model(MDL_BF16, NULL);
    one = open_session(&c, (struct run_session_params){.doc_experts = 16});
    many = open_session(&c, (struct run_session_params){.doc_experts = 16, .chunk = 17});
    device_feed(one, text, N_PROMPT);
    device_feed(many, text, N_PROMPT);
    same_masks(one, many, true);
    single = open_session(&c, (struct run_session_params){.doc_experts = 16, .chunk = 1});
    run_session_reset(one);
    device_feed(one, text, 5);
    cor_free(device_feed_all(&c, single, text, 5));
    same_masks(one, single, true);
    run_session_destroy(single);
    run_session_reset(one);
    device_feed(one, text, N_PROMPT);
    run_session_reset(many); /* another text picks anew */
    device_feed(many, text + 25, 25);
    same_masks(one, many, false);
    run_session_reset(many);
    device_feed(many, text, N_PROMPT);
    same_masks(one, many, true);
    run_session_destroy(one);
    run_session_destroy(many);
    close_model(&c);
}

/* ---- against a plain reference
 * ------------------------------------------------------------------------------- */

enum { REF_PROMPT = 30, REF_DECODE = 3, REF_TOKENS = REF_PROMPT + REF_DECODE, MAX_ROUTED = 64 };

struct plain {
    struct mdl_ref *ref;
    const struct mdl_config *c;
    uint32_t mask[MASK_WORDS];
    float logits[6 * MAX_ROUTED];
    double margin; /* smallest gap between the sums of the last expert picked and the first one left out */
};

/* Sums of softmax over the routed experts at one layer, over the prompt, with the layers before it masked:
 * the training objective's pool, a pass over the text for each layer. */
static void plain_sums(struct plain *p, uint32_t layer, double *sum)
{
    struct vkmoe_err err;

    memset(sum, 0, p->c->n_experts * sizeof(*sum));
    mdl_ref_reset(p->ref);
    mdl_ref_allow(p->ref, p->mask);
    for (uint32_t t = 0; t < REF_PROMPT; t++) {
        const float *z = p->logits + (size_t)layer * p->c->n_experts;
        double all = 0;

        test_ok(mdl_ref_feed(p->ref, text[t], NULL, NULL, &err), &err);
        for (uint32_t e = 0; e < p->c->n_experts; e++)
            all += exp(z[e]);
        for (uint32_t e = 0; e < p->c->n_experts; e++)
            sum[e] += exp(z[e]) / all;
    }
}

/* Strikes the experts with the smallest sums until `doc` are left. */
static void plain_pick(struct plain *p, uint32_t layer, uint32_t doc)
{
    double sum[MAX_ROUTED], last = 0;
    uint32_t *mask = p->mask + layer * run_mask_words(p->c);

    plain_sums(p, layer, sum);
    for (uint32_t left = p->c->n_experts; left >= doc; left--) {
        uint32_t worst = NONE;

        for (uint32_t e = 0; e < p->c->n_experts; e++)
            if (mask[e / 32] >> (e % 32) & 1 && (worst == NONE || sum[e] <= sum[worst]))
                worst = e;
        if (left == doc) {
            p->margin = fmin(p->margin, sum[worst] - last);
            break;
        }
        last = sum[worst];
        mask[worst / 32] &= ~(1u << (worst % 32));
    }
}

static void check_plain(struct device_case *c, uint32_t doc, uint32_t chunk)
{
    struct run_session_params sp = {.doc_experts = doc, .chunk = chunk};
    struct plain p = {.c = &c->model->mdl->config, .margin = 1};
    const struct mdl_ref_params rp = {.n_ctx = REF_TOKENS, .allowed = c->model->allowed};
    const struct mdl_ref_watch watch = {.logits = p.logits};
    float *want = cor_array(p.c->vocab_size, sizeof(float));
    struct golden_diff diff = {0};
    struct run_session *s;
    struct vkmoe_err err;

    test_ok(mdl_ref_create(&p.ref, c->model->mdl, &rp, &err), &err);
    mdl_ref_watch(p.ref, &watch);
    memcpy(p.mask, c->model->allowed, sizeof(p.mask));
    for (uint32_t l = 0; l < p.c->n_layers; l++)
        plain_pick(&p, l, doc);
    assert_true(p.margin > 1e-5); /* else a rounding could exchange two experts: choose another text */
    s = open_session(c, sp);
    device_feed(s, text, REF_PROMPT);
    assert_memory_equal(run_session_state(s)->allowed, p.mask, sizeof(p.mask));
    mdl_ref_reset(p.ref);
    mdl_ref_allow(p.ref, p.mask);
    for (uint32_t t = 0; t < REF_TOKENS; t++) {
        if (t >= REF_PROMPT)
            device_feed(s, text + t, 1);
        test_ok(mdl_ref_feed(p.ref, text[t], want, NULL, &err), &err);
        if (t + 1 >= REF_PROMPT)
            golden_diff_add(&diff, run_session_logits(s), want, p.c->vocab_size);
    }
    golden_diff_check(&diff, "a document pool", GOLDEN_NMSE_F32, GOLDEN_DIFF_F32);
    run_session_destroy(s);
    mdl_ref_destroy(p.ref);
    cor_free(want);
}

static void test_plain(void **state)
{
    struct device_case c = open_model(MDL_BF16, NULL);

    (void)state;
    assert_int_equal(c.model->mdl->config.n_layers * run_mask_words(&c.model->mdl->config), MASK_WORDS);
    check_plain(&c, 16, 0);
    check_plain(&c, 16, 11);
    check_plain(&c, 5, 0);
    close_model(&c);
}

/* A first feed of one token picks nothing; the pool comes with the sixteenth. Later ones drift. */
static void test_late_and_refresh(void **state)
{
    struct run_session *s;
    struct device_case c;
    const struct mdl_config *g;

    (void)state;
    c = open_model(MDL_BF16, NULL);
    g = &c.model->mdl->config;
    s = open_session(&c, (struct run_session_params){.doc_experts = 8, .doc_refresh = 4});
    for (uint32_t t = 0; t < 40; t++) {
        device_feed(s, text + t, 1);
        assert_int_equal(count(s, g, t % g->n_layers), t + 1 < RUN_DOC_LEAST ? g->n_experts : 8);
    }
    assert_int_equal(run_session_outside(s)->refreshes, 6);
    assert_true(run_session_outside(s)->exchanged > 0);
    assert_true(run_session_outside(s)->exchanged <= 6 * g->n_layers);
    assert_true(run_session_outside(s)->decoded > 0 && run_session_outside(s)->decoded < 40);
    run_session_destroy(s);
    close_model(&c);
}

/* Two texts on one pool of slots for one: each keeps its own experts, misses where the other has been, and
 * gives the bits it gives alone. */
static void test_two_sessions(void **state)
{
    struct run_model_params mp = {.doc_experts = 12, .pool_budget = 12 << 20};
    struct run_session *a, *b;
    struct device_case c;
    float *want_a, *want_b;

    (void)state;
    c = open_model(MDL_BF16, &mp);
    a = open_session(&c, (struct run_session_params){.doc_experts = 12});
    b = open_session(&c, (struct run_session_params){.doc_experts = 8, .chunk = 20});
    want_a = read_text(&c, a, N_PROMPT);
    want_b = read_text(&c, b, 30);
    run_session_reset(a);
    run_session_reset(b);
    device_feed(a, text, N_PROMPT);
    device_feed(b, text, 30);
    for (uint32_t t = 0, v = c.model->mdl->config.vocab_size; t <= N_DECODE; t++) {
        check_same(&c, run_session_logits(a), want_a + (size_t)t * v, 1, "two sessions");
        check_same(&c, run_session_logits(b), want_b + (size_t)t * v, 1, "two sessions");
        if (t == N_DECODE)
            break;
        device_feed(a, text + N_PROMPT + t, 1);
        device_feed(b, text + 30 + t, 1);
    }
    cor_free(want_a);
    cor_free(want_b);
    run_session_destroy(a);
    run_session_destroy(b);
    close_model(&c);
}

/* ---- fixed subsets
 * ----------------------------------------------------------------------------------------- */

static void make_mask(const struct run_model *m, uint32_t *mask, uint32_t first, uint32_t step)
{
    const struct mdl_config *c = &m->mdl->config;

    memset(mask, 0, (size_t)c->n_layers * run_mask_words(c) * 4);
    for (uint32_t l = 0; l < c->n_layers; l++)
        for (uint32_t e = first; e < c->n_experts; e += step)
            mask[l * run_mask_words(c) + e / 32] |= 1u << (e % 32);
}

/* A model opened with two subsets never loads another expert, and switches between them between tokens. */
static void test_switch(void **state)
{
    uint32_t even[MASK_WORDS], odd[MASK_WORDS], both[MASK_WORDS];
    struct device_case c, all;
    struct run_session *s, *w;
    struct run_slots_stats stats;
    struct vkmoe_err err;

    (void)state;
    all = open_model(MDL_BF16, NULL);
    make_mask(all.model, even, 0, 6);
    make_mask(all.model, odd, 1, 7);
    for (uint32_t i = 0; i < all.model->mdl->config.n_layers * run_mask_words(&all.model->mdl->config); i++)
        both[i] = even[i] | odd[i];
    c = open_model(MDL_BF16, &(struct run_model_params){.allowed = both});
    assert_true(run_pool_holds_all(&c.model->pool));
    assert_true(c.model->pool.n_slots < 6 * 21);
    s = open_session(&c, (struct run_session_params){0});
    w = open_session(&all, (struct run_session_params){.watch = VKMOE_WATCH_ROUTER});
    for (uint32_t t = 0; t < 12; t++) {
        const uint32_t *mask = t / 3 % 2 ? odd : even;

        test_ok(run_session_set_mask(s, mask, &err), &err);
        test_ok(run_session_set_mask(w, mask, &err), &err);
        device_feed(s, text + 4 * t, t % 2 ? 1 : 5);
        device_feed(w, text + 4 * t, t % 2 ? 1 : 5);
        check_same(&c, run_session_logits(s), run_session_logits(w), 1, "a subset alone in memory");
    }
    run_slots_stats(c.model->pool.slots, &stats);
    assert_int_equal(stats.total.misses, 0);
    assert_int_equal(stats.prefill.loads, 0);
    assert_true(run_session_outside(w)->decoded / (double)run_session_outside(w)->tokens > 0.5);
    run_session_destroy(s);
    run_session_destroy(w);
    close_model(&c);
    close_model(&all);
}

/* ---- the watch
 * --------------------------------------------------------------------------------------------- */

struct seen {
    uint32_t layers, tokens, top_ok, of;
    double sums;
};

/* The choice is the logits' own. */
static void look(void *user, const struct vkmoe_watched *w)
{
    struct seen *s = user;

    s->layers++;
    s->tokens += w->n_tokens;
    for (uint32_t t = 0; t < w->n_tokens && w->pairs; t++) {
        const float *z = w->logits + (size_t)t * w->n_experts;
        uint32_t best = 0;

        for (uint32_t e = 1; e < w->n_experts; e++)
            best = z[e] > z[best] ? e : best;
        s->of++;
        s->top_ok += w->pairs[(size_t)t * w->n_used * 2] == best;
        if (w->sums)
            s->sums += w->sums[(size_t)t * (3 + w->n_used)];
    }
}

static void test_watch(void **state)
{
    struct seen seen = {0};
    struct run_session *s;
    struct device_case c;
    struct vkmoe_err err;
    uint32_t layers;
    float *plain, *watched;

    (void)state;
    c = open_model(MDL_BF16, NULL);
    layers = c.model->mdl->config.n_layers;
    s = open_session(&c, (struct run_session_params){.chunk = 32});
    plain = read_text(&c, s, N_PROMPT);
    run_session_destroy(s);
    s = open_session(&c, (struct run_session_params){.chunk = 32, .watch = VKMOE_WATCH_EXPERTS});
    run_session_on_watch(s, look, &seen);
    watched = read_text(&c, s, N_PROMPT);
    check_same(&c, watched, plain, 1 + N_DECODE, "a session that is watched");
    assert_int_equal(seen.layers, layers * (2 + N_DECODE));
    assert_int_equal(seen.tokens, layers * N_TEXT);
    assert_int_equal(seen.top_ok, seen.of);
    assert_true(seen.sums > 0);
    assert_true(fabs(run_session_outside(s)->decoded) < 1e-9);
    seen = (struct seen){0};
    run_session_reset(s);
    test_ok(run_session_feed_to(s, text, N_PROMPT, 2, &err), &err);
    assert_int_equal(seen.layers, 3 * 2);
    assert_int_equal(seen.of, 2 * N_PROMPT); /* nothing is chosen at the last one */
    assert_int_equal(run_session_feed(s, text, 1, NULL, NULL, &err), VKMOE_ERR_ARGUMENT);
    run_session_reset(s);
    device_feed(s, text, N_PROMPT);
    check_same(&c, run_session_logits(s), plain, 1, "a session that was cut short");
    cor_free(plain);
    cor_free(watched);
    run_session_destroy(s);
    close_model(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_room_of_layers),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_late_and_refresh),
        cmocka_unit_test(test_two_sessions),
        cmocka_unit_test(test_switch),
        cmocka_unit_test(test_watch),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
