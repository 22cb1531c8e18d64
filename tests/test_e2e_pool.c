/* The expert pool at work: the same bits as full residency for every size and policy, no waits on hits,
 * prefill that loads each expert once, counters, budgets that shrink and grow. VKMOE_TEST_FULL=1: 256 decoded
 * tokens instead of a few. */
#include <inttypes.h>
#include <stdio.h>

#include "experts/replay.h"
#include "support/device.h"

enum { N_PROMPT_MAX = 64, N_DECODE_FULL = 256, N_TEXTS = 3, N_CHUNKS = 2 };

static const uint32_t chunks[N_CHUNKS] = {0, 24}; /* prompt in one chunk; in more */

static int32_t *texts[N_TEXTS]; /* N_PROMPT_MAX + N_DECODE_FULL tokens each */
static uint32_t n_prompt = N_PROMPT_MAX, n_decode;
static bool brief;                     /* a slow driver: every pool size once, few tokens */
static float *full[N_TEXTS][N_CHUNKS]; /* logits with every expert resident, made when first asked for */

/* ---- texts and runs
 * ----------------------------------------------------------------------------------------- */

static void read_text(const struct mdl_model *m, uint32_t i)
{
    const char *const files[N_TEXTS] = {"tests/golden/data/scripture.validation.txt",
                                        "tests/golden/data/python.validation.txt", "src/gpu/commands.c"};
    struct vkmoe_err err = {0};
    size_t n, n_ids;
    int32_t *ids;
    char *s;

    test_ok(cor_file_slurp(test_source(files[i]), 1 << 24, &s, &n, &err), &err);
    test_ok(mdl_encode(m->tok, s, n < 6000 ? n : 6000, false, &ids, &n_ids, &err), &err);
    assert_true(n_ids >= N_PROMPT_MAX + N_DECODE_FULL);
    texts[i] = ids;
    cor_free(s);
}

struct run_case {
    uint32_t text, chunk;
    const char *caps;
    struct run_model_params model;
};

struct run_result {
    float *logits; /* (1 + n_decode, vocab) */
    struct run_stats prompt, end;
    struct run_slots_stats slots;
    struct run_pool_traffic prefill, cold, warm;
    uint64_t needed; /* experts by layer and chunk of the prompt, each counted once */
    uint32_t n_slots, n_layers, k;
    uint64_t expert_bytes, pool_bytes;
};

static void count_needed(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens, const uint32_t *sel)
{
    struct run_result *r = user;
    bool seen[MAX_EXPERTS] = {false};

    (void)layer;
    for (uint32_t i = 0; pos < n_prompt && i < n_tokens * r->k; i++)
        if (sel[2 * i] != NONE && !seen[sel[2 * i]]) {
            seen[sel[2 * i]] = true;
            r->needed++;
        }
}

/* The prompt, then n_decode tokens of the text one by one. */
static void feed_case(struct device_case *c, const struct run_case *in, struct run_result *r)
{
    const struct mdl_config *cfg = &c->model->mdl->config;
    struct run_session *s = device_session(
        c, &(struct run_session_params){.n_ctx = n_prompt + N_DECODE_FULL, .chunk = chunks[in->chunk]});

    r->k = cfg->n_experts_used;
    r->n_layers = cfg->n_layers;
    r->logits = cor_array((size_t)(1 + n_decode) * cfg->vocab_size, sizeof(float));
    assert_non_null(r->logits);
    run_session_on_route(s, count_needed, r);
    device_feed(s, texts[in->text], n_prompt);
    r->prompt = *run_session_stats(s);
    for (uint32_t t = 0; t <= n_decode; t++) {
        memcpy(r->logits + (size_t)t * cfg->vocab_size, run_session_logits(s),
               cfg->vocab_size * sizeof(float));
        if (t < n_decode)
            device_feed(s, texts[in->text] + n_prompt + t, 1);
    }
    r->end = *run_session_stats(s);
    run_session_destroy(s);
}

static struct run_result run(const struct run_case *in)
{
    struct run_result r = {0};
    struct device_case c;

    device_open(&c, golden_model("emo-nano", MDL_BF16),
                &(struct device_params){.caps = in->caps, .model = &in->model});
    feed_case(&c, in, &r);
    run_slots_stats(c.model->pool.slots, &r.slots);
    r.prefill = c.model->pool.prefill;
    r.cold = c.model->pool.cold;
    r.warm = c.model->pool.warm;
    r.n_slots = c.model->pool.n_slots;
    r.pool_bytes = run_pool_bytes(&c.model->pool);
    r.expert_bytes = run_pool_load_bytes(&c.model->pool, (const uint32_t[]){0}, 1);
    device_close(&c);
    return r;
}

static const float *full_logits(uint32_t text, uint32_t chunk)
{
    if (!full[text][chunk]) {
        struct run_result r =
            run(&(struct run_case){.text = text, .chunk = chunk, .model = {.pool_budget = RUN_POOL_ALL}});

        assert_int_equal(r.end.halts, 0);
        assert_int_equal(r.end.waits - r.prompt.waits, n_decode); /* one submit and one wait per token */
        assert_int_equal(r.end.submits - r.prompt.submits, n_decode);
        full[text][chunk] = r.logits;
    }
    return full[text][chunk];
}

/* Bits, and what has to hold between the counters. */
static void check_run(const struct run_result *r, const struct run_case *in, uint32_t vocab)
{
    const float *want = full_logits(in->text, in->chunk);
    const struct run_slots_counts *t = &r->slots.total;
    uint64_t blocking = t->blocking_visits;

    for (uint32_t i = 0; i <= n_decode; i++)
        if (memcmp(r->logits + (size_t)i * vocab, want + (size_t)i * vocab, vocab * sizeof(float)))
            fail_msg("logits of token %u are not those of full residency", i);
    assert_int_equal(t->tokens, n_decode);
    assert_int_equal(t->visits, (uint64_t)n_decode * r->n_layers);
    assert_int_equal(t->hits + t->misses, t->visits * r->k);
    assert_int_equal(r->end.halts - r->prompt.halts, blocking);
    if (!in->model.check_slots)
        assert_int_equal(r->end.waits - r->prompt.waits, n_decode + blocking);
    assert_int_equal(r->end.submits - r->prompt.submits,
                     n_decode + blocking + r->end.overlapped - r->prompt.overlapped);
    assert_int_equal(r->cold.waits + r->warm.waits, n_decode + blocking);
    assert_int_equal(r->cold.loads + r->warm.loads, t->misses);
    assert_int_equal(r->cold.bytes + r->warm.bytes, t->misses * r->expert_bytes);
    assert_int_equal(r->slots.cold.misses + r->slots.warm.misses, t->misses);
    assert_int_equal(r->slots.prefill.hits + r->slots.prefill.loads, r->needed);
    assert_int_equal(r->prefill.loads, r->slots.prefill.loads);
    assert_int_equal(r->prefill.bytes, r->slots.prefill.loads * r->expert_bytes);
}

/* ---- the same bits
 * ------------------------------------------------------------------------------------------ */

static struct device_case probe; /* sizes only */

/* Bytes of a pool of the floor and `percent` of the rest of the bank, on a device with these caps. */
static uint64_t budget_of(const char *caps, uint32_t percent)
{
    const struct run_pool_params all = {.budget = RUN_POOL_ALL};
    struct vkmoe_err err = {0};
    struct run_pool p;
    struct device_case c;
    uint64_t least, most;

    device_open(&c, NULL, &(struct device_params){.caps = caps});
    test_ok(run_pool_plan(&p, c.dev, probe.model->mdl, &all, &err), &err);
    least = run_pool_floor_bytes(&p);
    most = run_pool_planned_bytes(&p);
    run_pool_close(&p);
    device_close(&c);
    return least + (most - least) * percent / 100;
}

struct size_case {
    uint32_t percent, text, chunk;
    const char *policy, *caps;
    bool delays, check; /* check: slots are compared with the file after every load */
};

enum { N_SIZES = 7 };

static const struct size_case size_cases[] = {
    /* every size once in the first N_SIZES */
    {0, 0, 0, "decay/layer", NULL, true, false},
    {6, 1, 1, "lru/global", "-uma", false, false},
    {12, 2, 0, "lfu/layer", NULL, false, false},
    {25, 0, 1, "decay/global", "-uma,-coherent", true, false},
    {50, 1, 0, "lru/layer", NULL, true, false},
    {75, 2, 1, "lfu/global", "-coherent", false, false},
    {100, 0, 0, "decay", NULL, false, false},
    {0, 1, 1, "lfu", "-uma", true, false},
    {25, 2, 1, "decay:12", "-array", false, false},
    {0, 2, 0, "lru", "-array", true, false},
    {12, 1, 0, "decay", "range=1M,buffers=8", true, true},
};

static void run_size(const struct size_case *c)
{
    const struct run_fetch_hooks hooks = {
        .seed = test_seed() + c->percent, .read_delay_us = 400, .copy_delay_us = 300, .reverse = true};
    struct run_case in = {.text = c->text, .chunk = c->chunk, .caps = c->caps};
    struct vkmoe_err err = {0};
    struct run_result r;

    in.model.pool_budget = budget_of(c->caps, c->percent);
    in.model.check_slots = c->check;
    test_ok(run_policy_parse(&in.model.policy, c->policy, &err), &err);
    run_fetch_set_hooks(c->delays ? &hooks : NULL);
    r = run(&in);
    run_fetch_set_hooks(NULL);
    print_message("floor + %u %%: %u slots, %s, %s: hits %" PRIu64 ", misses %" PRIu64
                  ", prefill loads %" PRIu64 ", overlapped %" PRIu64 "\n",
                  c->percent, r.n_slots, c->policy, c->caps ? c->caps : "-", r.slots.total.hits,
                  r.slots.total.misses, r.slots.prefill.loads, r.end.overlapped);
    assert_true(r.pool_bytes <= in.model.pool_budget);
    if (c->percent < 50)
        assert_true(r.slots.total.misses > 0 && r.end.overlapped > 0);
    check_run(&r, &in, probe.model->mdl->config.vocab_size);
    cor_free(r.logits);
}

static void test_same_bits(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < (brief ? N_SIZES : COR_COUNT(size_cases)); i++)
        run_size(&size_cases[i]);
}

/* ---- replay
 * ------------------------------------------------------------------------------------------------- */

/* Every counter, field by field: structs may have holes. */
static void same_counts(const char *what, const struct run_slots_counts *a, const struct run_slots_counts *b)
{
    const uint64_t live[] = {a->tokens,    a->visits,          a->hits,     a->misses,
                             a->evictions, a->blocking_visits, a->reuploads};
    const uint64_t replayed[] = {b->tokens,    b->visits,          b->hits,     b->misses,
                                 b->evictions, b->blocking_visits, b->reuploads};

    for (uint32_t i = 0; i < COR_COUNT(live); i++)
        if (live[i] != replayed[i])
            fail_msg("%s, counter %u: %" PRIu64 " live, %" PRIu64 " replayed", what, i, live[i], replayed[i]);
}

/* A live run whose routes are written to a trace. */
static void run_traced(struct device_case *c, uint32_t text, const char *path)
{
    const struct xp_trace_info info = {.model = "emo-nano",
                                       .n_layers = c->model->pool.n_layers,
                                       .n_experts = c->model->pool.n_experts,
                                       .n_used = c->model->mdl->config.n_experts_used};
    struct run_session *s =
        device_session(c, &(struct run_session_params){.n_ctx = n_prompt + N_DECODE_FULL});
    struct xp_trace_writer *w;
    struct vkmoe_err err = {0};

    test_ok(xp_trace_create(&w, path, &info, &err), &err);
    run_session_on_route(s, xp_trace_add, w);
    device_feed(s, texts[text], n_prompt);
    for (uint32_t t = 0; t < n_decode; t++)
        device_feed(s, texts[text] + n_prompt + t, 1);
    test_ok(xp_trace_commit(w, &err), &err);
    run_session_destroy(s);
}

/* The counters of a live run are those of its trace replayed, to the last digit. */
static void check_replay(uint32_t text, const char *policy, uint32_t percent)
{
    struct run_model_params mp = {.pool_budget = budget_of(NULL, percent)};
    struct xp_replay_params rp = {.prompt = n_prompt, .tokens = N_DECODE_FULL};
    struct run_slots_stats live, replayed = {0};
    struct vkmoe_err err = {0};
    struct xp_trace trace;
    struct device_case c;
    char path[512];

    snprintf(path, sizeof(path), "%s/routes.jsonl", test_tmp());
    test_ok(run_policy_parse(&mp.policy, policy, &err), &err);
    device_open(&c, golden_model("emo-nano", MDL_BF16), &(struct device_params){.model = &mp});
    run_traced(&c, text, path);
    run_slots_stats(c.model->pool.slots, &live);
    test_ok(xp_trace_read(&trace, path, &err), &err);
    assert_int_equal(trace.n_tokens, n_prompt + n_decode);
    rp.n_slots = c.model->pool.n_slots;
    rp.policy = mp.policy;
    test_ok(xp_replay(&trace, &rp, &replayed, &err), &err);
    same_counts("all tokens", &live.total, &replayed.total);
    same_counts("cold", &live.cold, &replayed.cold);
    same_counts("warm", &live.warm, &replayed.warm);
    assert_int_equal(live.prefill.loads, replayed.prefill.loads);
    assert_int_equal(live.prefill.hits, replayed.prefill.hits);
    assert_int_equal(live.prefill.evictions, replayed.prefill.evictions);
    assert_true(live.total.misses > 0 && live.total.evictions > 0);
    xp_trace_free(&trace);
    device_close(&c);
}

static void test_replay_agrees(void **state)
{
    (void)state;
    check_replay(0, "decay", 6);
    if (brief)
        return;
    check_replay(1, "lru/layer", 25);
    check_replay(2, "lfu/global", 50);
}

/* ---- prefill leaves what scores rank highest
 * ---------------------------------------------------------------- */

static void test_prefill_keeps(void **state)
{
    const uint32_t bank = probe.model->pool.n_layers * probe.model->pool.n_experts;
    uint32_t *hot = cor_array(bank, sizeof(*hot)), n_hot, low = 0;
    struct run_model_params mp = {.pool_budget = budget_of(NULL, 50)};
    struct run_slots_stats before, after;
    struct device_case c;
    struct run_session *a, *b;

    (void)state;
    mp.policy.scope = RUN_SCOPE_GLOBAL;
    device_open(&c, golden_model("emo-nano", MDL_BF16), &(struct device_params){.model = &mp});
    a = device_session(&c, &(struct run_session_params){.n_ctx = 320});
    b = device_session(&c, &(struct run_session_params){.n_ctx = 320});
    for (uint32_t t = 0; t < 24; t++)
        device_feed(a, texts[0] + t, 1);
    run_slots_stats(c.model->pool.slots, &before);
    device_feed(b, texts[1], 256); /* another text: one chunk that needs most experts */
    run_slots_stats(c.model->pool.slots, &after);
    assert_true(after.prefill.loads > 0);
    assert_int_equal(after.total.evictions, before.total.evictions); /* decode's counters stand still */
    assert_int_equal(after.total.hits + after.total.misses, before.total.hits + before.total.misses);
    n_hot = run_slots_hot(c.model->pool.slots, hot);
    for (uint32_t i = c.model->pool.n_slots; i < n_hot; i++)
        low += run_slots_find(c.model->pool.slots, hot[i] / c.model->pool.n_experts,
                              hot[i] % c.model->pool.n_experts) != NONE;
    print_message("a chunk of 256 needs %" PRIu64 " experts, loads %" PRIu64 ", displaces %" PRIu64
                  "; %u of %u residents are not among the best scored\n",
                  after.prefill.hits + after.prefill.loads, after.prefill.loads, after.prefill.displaced, low,
                  c.model->pool.n_slots);
    run_session_destroy(a);
    run_session_destroy(b);
    device_close(&c);
    cor_free(hot);
    assert_true(low <= RUN_BORROW * probe.model->pool.n_layers);
}

/* ---- budgets
 * ------------------------------------------------------------------------------------------------ */

static void test_budgets(void **state)
{
    const struct run_pool *p = &probe.model->pool;
    uint64_t floor = run_pool_floor_bytes(p);
    struct run_model_params mp = {.pool_budget = floor - 1};
    struct vkmoe_err err = {0};
    struct run_model *m;
    char want[64];

    (void)state;
    assert_int_equal(run_model_open(&m, probe.dev, golden_model("emo-nano", MDL_BF16), &mp, NULL, &err),
                     VKMOE_ERR_LIMIT);
    snprintf(want, sizeof(want), "at least %u MiB", (unsigned)((floor + (1 << 20) - 1) >> 20));
    if (!strstr(err.message, want))
        fail_msg("\"%s\" does not say \"%s\"", err.message, want);
    mp.pool_budget = ((floor + (1 << 20) - 1) >> 20) << 20; /* what the message names does work */
    test_ok(run_model_open(&m, probe.dev, golden_model("emo-nano", MDL_BF16), &mp, NULL, &err), &err);
    assert_true(run_pool_bytes(&m->pool) <= mp.pool_budget);
    run_model_close(m);
}

/* A budget that shrinks and grows between tokens: bytes follow in whole segments, bits stay. */
static void test_sawtooth(void **state)
{
    struct run_case in = {.text = 0, .chunk = 0, .caps = "range=1M,buffers=32"};
    struct vkmoe_err err = {0};
    struct device_case c;
    struct run_session *s;
    uint64_t dense, floor;
    const float *want = full_logits(0, 0);
    uint32_t vocab = probe.model->mdl->config.vocab_size;

    (void)state;
    in.model.pool_budget = budget_of(in.caps, 60);
    device_open(&c, golden_model("emo-nano", MDL_BF16),
                &(struct device_params){.caps = in.caps, .model = &in.model});
    if (!c.model->pool.array) {
        device_close(&c);
        test_skip_listed("the device has too few bindings for a segment array of this size");
        return;
    }
    s = device_session(&c, &(struct run_session_params){.n_ctx = n_prompt + N_DECODE_FULL});
    device_feed(s, texts[0], n_prompt);
    dense = gpu_device_bytes(c.dev) - run_pool_purposes(&c.model->pool).slots;
    floor = run_pool_floor_bytes(&c.model->pool);
    for (uint32_t t = 0; t < n_decode; t++) {
        static const uint32_t percent[] = {60, 30, 10, 45, 5, 60};
        struct run_pool_bytes bytes;

        if (t % 4 == 0) {
            uint64_t budget = budget_of(in.caps, percent[t / 4 % COR_COUNT(percent)]);

            test_ok(run_pool_resize(&c.model->pool, budget, &err), &err);
            assert_true(run_pool_bytes(&c.model->pool) <= budget);
            if (t) /* whole segments */
                assert_int_equal(c.model->pool.n_slots % c.model->pool.slots_per_seg, 0);
        }
        bytes = run_pool_purposes(&c.model->pool);
        assert_int_equal(gpu_device_bytes(c.dev), dense + bytes.slots);
        device_feed(s, texts[0] + n_prompt + t, 1);
        assert_memory_equal(run_session_logits(s), want + (size_t)(t + 1) * vocab, vocab * sizeof(float));
    }
    assert_int_equal(run_pool_resize(&c.model->pool, floor / 2, &err), VKMOE_ERR_LIMIT);
    run_session_destroy(s);
    device_close(&c);
}

enum { SMALL_PROMPT = 40, SMALL_DECODE = 8 };

/* Logits after SMALL_DECODE single tokens behind a prompt; *chunk: what the session reads at once. */
static float *small_run(struct device_case *c, const struct run_session_params *sp, uint32_t *chunk)
{
    uint32_t vocab = c->model->mdl->config.vocab_size;
    float *logits = cor_array((size_t)SMALL_DECODE * vocab, sizeof(float));
    struct run_session *s = device_session(c, sp);

    assert_non_null(logits);
    *chunk = run_session_state(s)->chunk;
    device_feed(s, texts[0], SMALL_PROMPT);
    for (uint32_t t = 0; t < SMALL_DECODE; t++) {
        device_feed(s, texts[0] + SMALL_PROMPT + t, 1);
        memcpy(logits + (size_t)t * vocab, run_session_logits(s), vocab * sizeof(float));
    }
    run_session_destroy(s);
    return logits;
}

/* The same with every expert resident and chunks of the same size. */
static float *large_run(const char *path, uint32_t chunk)
{
    const struct run_session_params sp = {.n_ctx = 512, .chunk = chunk, .k_type = MDL_F16, .v_type = MDL_F16};
    struct device_case c;
    float *logits;

    device_open(&c, path, &(struct device_params){0});
    logits = small_run(&c, &sp, &chunk);
    assert_int_equal(chunk, sp.chunk);
    device_close(&c);
    return logits;
}

/* A small heap: what fits beside dense weights and cache works, what does not is refused with what would. */
static void test_small_heap(void **state)
{
    const char *caps = "range=1M,buffers=8,heap=12M";
    const char *path = golden_model("emo-nano", MDL_Q8_0);
    const struct run_session_params sp = {.n_ctx = 512, .k_type = MDL_F16, .v_type = MDL_F16};
    struct run_model_params mp = {.pool_budget = 11u << 20};
    struct vkmoe_err err = {0};
    struct run_model *m;
    struct device_case c;
    const char *at;
    uint64_t most;
    float *want = NULL; /* with a large heap */
    uint32_t vocab = probe.model->mdl->config.vocab_size;

    (void)state;
    device_open(&c, NULL, &(struct device_params){.caps = caps});
    test_ok(run_model_plan(&m, c.dev, path, &err), &err);
    test_ok(run_session_bytes(&mp.session_bytes, m, &sp, &err), &err);
    run_model_close(m);
    assert_int_equal(run_model_open(&m, c.dev, path, &mp, NULL, &err), VKMOE_ERR_LIMIT);
    at = strstr(err.message, "at most ");
    if (!at)
        fail_msg("\"%s\" does not say how much fits", err.message);
    most = strtoull(at + 8, NULL, 10);
    print_message("%s\n", err.message);
    assert_true(most >= 2 && most < 11);
    for (uint64_t mib = brief ? most : 2; mib <= most; mib++) {
        uint32_t chunk;
        float *got;

        mp.pool_budget = mib << 20;
        test_ok(run_model_open(&m, c.dev, path, &mp, NULL, &err), &err);
        c.model = m;
        got = small_run(&c, &sp, &chunk);
        if (!want)
            want = large_run(path, chunk);
        assert_memory_equal(got, want, (size_t)SMALL_DECODE * vocab * sizeof(float));
        cor_free(got);
        assert_true(gpu_device_peak_bytes(c.dev) <= 12u << 20);
        assert_true(m->pool.cold.loads > 0);
        run_model_close(m);
        c.model = NULL;
    }
    cor_free(want);
    device_close(&c);
}

/* ---- main
 * --------------------------------------------------------------------------------------------------- */

static int setup(void **state)
{
    const char *path = golden_model("emo-nano", MDL_BF16);

    (void)state;
    assert_non_null(path);
    device_open(&probe, path, &(struct device_params){.lazy = true});
    brief = device_slow(&probe);
    n_decode = test_full() ? N_DECODE_FULL : brief ? 6 : 40;
    n_prompt = brief ? 32 : N_PROMPT_MAX;
    for (uint32_t i = 0; i < N_TEXTS; i++)
        read_text(probe.model->mdl, i);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < N_TEXTS; i++) {
        cor_free(texts[i]);
        for (uint32_t j = 0; j < N_CHUNKS; j++)
            cor_free(full[i][j]);
    }
    device_close(&probe);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),     cmocka_unit_test(test_replay_agrees),
        cmocka_unit_test(test_prefill_keeps), cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_sawtooth),      cmocka_unit_test(test_small_heap),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
