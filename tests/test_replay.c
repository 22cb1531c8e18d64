/* Replay: the optimum against every possible choice on tiny traces, no policy below it, recorded traces
 * against the figures that the policies were chosen by. */
#include <stdio.h>

#include "core/os.h"
#include "experts/replay.h"
#include "support/test.h"

/* ---- traces made here
 * ---------------------------------------------------------------------------------------- */

static void make_trace(struct xp_trace *t, uint32_t layers, uint32_t experts, uint32_t used, uint32_t tokens,
                       uint32_t streams, uint64_t *rng)
{
    memset(t, 0, sizeof(*t));
    t->info = (struct xp_trace_info){.n_layers = layers, .n_experts = experts, .n_used = used};
    t->n_tokens = (size_t)tokens * streams;
    t->n_streams = streams;
    t->pos = cor_array(t->n_tokens, sizeof(*t->pos));
    t->sel = cor_array(t->n_tokens * layers * used, 2 * sizeof(*t->sel));
    t->first = cor_array(streams + 1, sizeof(*t->first));
    assert_true(t->pos && t->sel && t->first);
    for (uint32_t i = 0; i <= streams; i++)
        t->first[i] = (size_t)i * tokens;
    for (size_t i = 0; i < t->n_tokens * layers; i++) {
        uint32_t *sel = t->sel + i * used * 2;

        for (uint32_t j = 0; j < used; j++) {
            bool again = true;

            while (again) {
                sel[2 * j] = (uint32_t)(test_rand(rng) % (test_rand(rng) % 2 ? experts : experts / 2 + 1));
                again = false;
                for (uint32_t x = 0; x < j; x++)
                    again |= sel[2 * x] == sel[2 * j];
            }
        }
        if (used > 1 && test_rand(rng) % 16 == 0)
            sel[2 * (used - 1)] = NONE;
    }
    for (size_t i = 0; i < t->n_tokens; i++)
        t->pos[i] = (uint32_t)(i % tokens);
}

/* ---- every possible choice
 * ------------------------------------------------------------------------------------ */

/* A set of experts is a bitmap over (layer, expert); least misses from each set that can be reached. */
enum { BITS_MAX = 12 };

struct brute {
    const struct xp_trace *t;
    const struct xp_replay_params *p;
    uint32_t share[4];
    bool layered;
    uint32_t cost[1 << BITS_MAX], next[1 << BITS_MAX];
};

static uint32_t ones(uint32_t x)
{
    uint32_t n = 0;

    for (; x; x &= x - 1)
        n++;
    return n;
}

static bool allowed(const struct brute *b, uint32_t set)
{
    uint32_t E = b->t->info.n_experts;

    if (!b->layered)
        return ones(set) <= b->p->n_slots;
    for (uint32_t l = 0; l < b->t->info.n_layers; l++)
        if (ones(set >> (l * E) & ((1u << E) - 1)) > b->share[l])
            return false;
    return true;
}

static uint32_t chosen(const struct brute *b, size_t token, uint32_t layer)
{
    uint32_t set = 0;

    for (uint32_t j = 0; j < b->t->info.n_used; j++)
        if (xp_trace_sel(b->t, token, layer)[2 * j] != NONE)
            set |= 1u << (layer * b->t->info.n_experts + xp_trace_sel(b->t, token, layer)[2 * j]);
    return set;
}

/* From every set to every allowed one that holds what the visit needs and nothing new besides. */
static uint32_t brute_stream(struct brute *b, size_t at, size_t end)
{
    const uint32_t L = b->t->info.n_layers, all = 1u << (L * b->t->info.n_experts);
    uint32_t prompt = 0, best = UINT32_MAX;
    size_t start = at + b->p->prompt;

    for (size_t t = at; t < start; t++)
        for (uint32_t l = 0; l < L; l++)
            prompt |= chosen(b, t, l);
    for (uint32_t s = 0; s < all; s++)
        b->cost[s] = allowed(b, s) && !(s & ~prompt) ? 0 : UINT32_MAX;
    for (size_t t = start; t < end && t - start < b->p->tokens; t++)
        for (uint32_t l = 0; l < L; l++) {
            uint32_t need = chosen(b, t, l);

            for (uint32_t s = 0; s < all; s++)
                b->next[s] = UINT32_MAX;
            for (uint32_t s = 0; s < all; s++) {
                uint32_t full = s | need, rest = s & ~need, sub = rest;

                if (b->cost[s] == UINT32_MAX)
                    continue;
                for (;; sub = (sub - 1) & rest) { /* subsets of what need not stay */
                    uint32_t to = (full & ~rest) | sub, cost = b->cost[s] + ones(need & ~s);

                    if (allowed(b, to) && cost < b->next[to])
                        b->next[to] = cost;
                    if (!sub)
                        break;
                }
            }
            memcpy(b->cost, b->next, sizeof(b->cost));
        }
    for (uint32_t s = 0; s < all; s++)
        best = b->cost[s] < best ? b->cost[s] : best;
    return best;
}

static void test_optimum_is_least(void **state)
{
    static const uint32_t shapes[][3] = {{2, 5, 1}, {1, 8, 2}, {2, 5, 2}, {3, 4, 1}, {2, 4, 1}};
    struct brute *b = cor_alloc(sizeof(*b));
    uint64_t rng = test_seed();

    (void)state;
    assert_non_null(b);
    for (uint32_t round = 0; round < 60; round++) {
        const uint32_t *shape = shapes[round % COR_COUNT(shapes)];
        struct xp_replay_params p = {.prompt = round % 4, .tokens = round % 3 ? 100 : 7};
        struct xp_trace t;

        make_trace(&t, shape[0], shape[1], shape[2], 10, 2, &rng);
        p.n_slots = xp_replay_floor(&t) + round % 3;
        for (int layered = 0; layered < 2; layered++) {
            struct run_slots_stats st = {0};
            struct vkmoe_err err = {0};
            uint32_t want = 0;

            b->t = &t;
            b->p = &p;
            b->layered = layered;
            for (uint32_t l = 0; l < shape[0]; l++) {
                b->share[l] = p.n_slots / shape[0] + (l < p.n_slots % shape[0]);
                b->share[l] = b->share[l] > shape[1] ? shape[1] : b->share[l];
            }
            for (size_t i = 0; i < t.n_streams; i++)
                want += brute_stream(b, t.first[i], t.first[i + 1]);
            test_ok(xp_replay_optimum(&t, &p, layered ? RUN_SCOPE_LAYER : RUN_SCOPE_GLOBAL, &st, &err), &err);
            assert_int_equal(st.total.misses, want);
        }
        xp_trace_free(&t);
    }
    cor_free(b);
}

/* ---- policies
 * ------------------------------------------------------------------------------------------------ */

static void test_no_policy_beats_it(void **state)
{
    static const char *const names[] = {"lru/layer",   "lru/global",   "lfu/layer", "lfu/global",
                                        "decay/layer", "decay/global", "decay"};
    uint64_t rng = test_seed();
    struct vkmoe_err err = {0};

    (void)state;
    for (uint32_t round = 0; round < 12; round++) {
        struct xp_replay_params p = {.prompt = 20 * (round % 3), .tokens = 50};
        struct run_slots_stats layer = {0}, global = {0}, st, again;
        struct xp_trace t;

        make_trace(&t, 4, 24, 3, 90, 2, &rng);
        p.n_slots = xp_replay_floor(&t) + 5 * round;
        test_ok(xp_replay_optimum(&t, &p, RUN_SCOPE_LAYER, &layer, &err), &err);
        test_ok(xp_replay_optimum(&t, &p, RUN_SCOPE_GLOBAL, &global, &err), &err);
        assert_true(global.total.misses <= layer.total.misses);
        for (size_t i = 0; i < COR_COUNT(names); i++) {
            test_ok(run_policy_parse(&p.policy, names[i], &err), &err);
            memset(&st, 0, sizeof(st));
            memset(&again, 0, sizeof(again));
            test_ok(xp_replay(&t, &p, &st, &err), &err);
            test_ok(xp_replay(&t, &p, &again, &err), &err);
            assert_memory_equal(&st, &again, sizeof(st));
            assert_true(st.total.misses >= global.total.misses);
            assert_true(p.policy.scope != RUN_SCOPE_LAYER || st.total.misses >= layer.total.misses);
            assert_int_equal(st.total.tokens, 100);
            assert_int_equal(st.total.hits + st.total.misses, layer.total.hits + layer.total.misses);
            assert_int_equal(st.prefill.tokens, 2 * p.prompt);
        }
        xp_trace_free(&t);
    }
}

static void test_refused(void **state)
{
    uint64_t rng = test_seed();
    struct run_slots_stats st = {0};
    struct vkmoe_err err;
    struct xp_trace t;
    struct xp_replay_params p = {.prompt = 600, .tokens = 10};

    (void)state;
    make_trace(&t, 2, 10, 3, 620, 1, &rng);
    p.n_slots = xp_replay_floor(&t) - 1;
    assert_int_equal(xp_replay(&t, &p, &st, &err), VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, " 8"));
    assert_int_equal(xp_replay_optimum(&t, &p, RUN_SCOPE_LAYER, &st, &err), VKMOE_ERR_LIMIT);
    p.n_slots++;
    for (int optimum = 0; optimum < 2; optimum++)
        for (long nth = 1;; nth++) {
            enum vkmoe_status got;
            long live = cor_alloc_live();

            cor_alloc_fail_from(nth);
            got = optimum ? xp_replay_optimum(&t, &p, RUN_SCOPE_LAYER, &st, &err)
                          : xp_replay(&t, &p, &st, &err);
            cor_alloc_fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
            if (got == VKMOE_OK)
                break;
            assert_int_equal(got, VKMOE_ERR_MEMORY);
        }
    assert_int_equal(st.prefill.chunks, 2); /* of 512 and 88 */
    assert_int_equal(st.total.tokens, 20);
    xp_trace_free(&t);
}

/* ---- what was recorded
 * ---------------------------------------------------------------------------------------- */

/* The gates of the default policy at 12.5, 25, 50 and 75 % of the experts of emo-nano, on two of the six
 * texts. */
static void test_gates(void **state)
{
    static const double percent[] = {12.5, 25, 50, 75}, of_lru[] = {0.94, 0.88, 0.85, 0.84},
                        cr[] = {1.22, 1.50, 1.95, 2.35};
    static const char *const files[] = {"tests/golden/traces/emo-nano.scripture.jsonl",
                                        "tests/golden/traces/emo-nano.python.jsonl"};
    struct vkmoe_err err = {0};
    struct xp_trace t[2];

    (void)state;
    for (size_t i = 0; i < 2; i++)
        test_ok(xp_trace_read(&t[i], test_source(files[i]), &err), &err);
    for (size_t c = 0; c < 4; c++) {
        struct run_slots_stats best = {0}, lru = {0}, ours = {0};
        struct xp_replay_params p = {.prompt = 64, .tokens = 512};

        p.n_slots = (uint32_t)(6 * 63 * percent[c] / 100);
        for (size_t i = 0; i < 2; i++) {
            test_ok(xp_replay_optimum(&t[i], &p, RUN_SCOPE_LAYER, &best, &err), &err);
            p.policy = (struct run_policy){.kind = RUN_LRU, .scope = RUN_SCOPE_LAYER};
            test_ok(xp_replay(&t[i], &p, &lru, &err), &err);
            p.policy = (struct run_policy){0};
            test_ok(xp_replay(&t[i], &p, &ours, &err), &err);
        }
        print_message("%g %%: %.3f of per-layer LRU's misses, CR %.2f\n", percent[c],
                      (double)ours.total.misses / (double)lru.total.misses,
                      (double)ours.total.misses / (double)best.total.misses);
        assert_true((double)ours.total.misses <= of_lru[c] * (double)lru.total.misses);
        assert_true((double)ours.total.misses <= cr[c] * (double)best.total.misses);
        assert_true(ours.prefill.loads <= 2 * 6 * 63);
        assert_int_equal(ours.prefill.displaced, 0);
    }
    for (size_t i = 0; i < 2; i++)
        xp_trace_free(&t[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimum_is_least),
        cmocka_unit_test(test_no_policy_beats_it),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_gates),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
