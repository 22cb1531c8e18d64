/* The slot allocator: random decode against a naive model, floors, waves of prefill, resizing, the hot set.
 */
#include <math.h>
#include <stdio.h>

#include "run/slots.h"
#include "support/test.h"

enum { L_MAX = 6, E_MAX = 40, N_MAX = L_MAX * E_MAX };

static struct run_slots *create(const struct run_slots_params *p)
{
    struct vkmoe_err err = {0};
    struct run_slots *s;

    test_ok(run_slots_create(&s, p, &err), &err);
    return s;
}

static struct run_policy policy(const char *text)
{
    struct vkmoe_err err = {0};
    struct run_policy p;

    test_ok(run_policy_parse(&p, text, &err), &err);
    return p;
}

/* ---- text
 * ---------------------------------------------------------------------------------------------------- */

static void test_policy_text(void **state)
{
    static const char *const good[] = {"lru",        "lfu",         "decay",          "decay:48",
                                       "lru/layer",  "lfu/global",  "decay:1/layer",  "decay/global",
                                       "lru/global", "decay:65536", "decay:12/global"};
    static const char *const bad[] = {
        "",     "LRU",        "lru:3",    "decay:",   "decay:0",  "decay:x", "decay:65537",
        "lru/", "lru/layers", "decay:-1", "decay:4.", "lfu/auto", "decay48", "decay:99999999999",
        "lr"};
    struct vkmoe_err err;
    struct run_policy p;
    char text[32];

    (void)state;
    for (size_t i = 0; i < COR_COUNT(good); i++)
        assert_string_equal(run_policy_print(&(struct run_policy){policy(good[i]).kind, policy(good[i]).scope,
                                                                  policy(good[i]).half_life},
                                             text, sizeof(text)),
                            good[i]);
    for (size_t i = 0; i < COR_COUNT(bad); i++)
        assert_int_equal(run_policy_parse(&p, bad[i], &err), VKMOE_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "lr"));
}

/* ---- floors
 * -------------------------------------------------------------------------------------------------- */

static void test_floor(void **state)
{
    const uint32_t allowed[] = {2, 6, 40, 3};
    struct run_slots_params p = {.n_layers = 4, .n_experts = 40, .n_used = 5, .allowed = allowed};
    struct run_slots *s;
    struct vkmoe_err err;

    (void)state;
    assert_int_equal(run_slots_floor(&p), 2 + 6 + 6 + 3);
    p.n_slots = 16;
    assert_int_equal(run_slots_create(&s, &p, &err), VKMOE_ERR_LIMIT);
    assert_null(s);
    assert_non_null(strstr(err.message, "16"));
    assert_non_null(strstr(err.message, "17"));
    p.layer_slots = 5;
    assert_int_equal(run_slots_floor(&p), 24);
    p.allowed = NULL;
    p.n_slots = 20;
    assert_int_equal(run_slots_create(&s, &p, &err), VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, "24"));
    p.layer_slots = 0;
    p.n_slots = 24;
    for (long nth = 1; nth <= 12; nth++) {
        cor_alloc_fail_from(nth);
        assert_int_equal(run_slots_create(&s, &p, &err), VKMOE_ERR_MEMORY);
        cor_alloc_fail_from(0);
        assert_null(s);
    }
    run_slots_destroy(create(&p));
    run_slots_destroy(NULL);
}

/* ---- a naive model: lists instead of tables, scores in floating point from the whole history
 * ------------------ */

struct naive {
    struct run_slots_params p;
    uint32_t allowed[L_MAX], floor[L_MAX], share[L_MAX];
    bool layered;
    double half_life;
    struct {
        uint32_t layer, expert; /* NONE: free */
    } slot[N_MAX + 64];
    double sum[N_MAX]; /* decayed count at the time of `last` */
    long count[N_MAX], last[N_MAX], gone[N_MAX];
    long now;
    uint64_t hits, misses, evictions, blocking, reuploads;
};

static void naive_init(struct naive *m, const struct run_slots_params *p)
{
    uint32_t left = p->n_slots, l = 0, full = 0;

    memset(m, 0, sizeof(*m));
    m->p = *p;
    for (l = 0; l < p->n_layers; l++) {
        m->allowed[l] = p->allowed ? p->allowed[l] : p->n_experts;
        m->floor[l] = m->allowed[l] < p->n_used + 1 ? m->allowed[l] : p->n_used + 1;
        m->share[l] = p->layer_slots;
    }
    for (l = 0; left && !p->layer_slots && full < p->n_layers; l = (l + 1) % p->n_layers) {
        full = m->share[l] == m->allowed[l] ? full + 1 : 0;
        if (!full) {
            m->share[l]++;
            left--;
        }
    }
    m->layered = p->layer_slots || p->policy.scope == RUN_SCOPE_LAYER;
    m->half_life = p->policy.half_life ? p->policy.half_life : RUN_HALF_LIFE;
    for (size_t i = 0; i < COR_COUNT(m->slot); i++)
        m->slot[i].layer = NONE;
    for (size_t i = 0; i < N_MAX; i++)
        m->gone[i] = -1000;
}

static uint32_t naive_held(const struct naive *m, uint32_t layer)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < m->p.n_slots; i++)
        n += m->slot[i].layer == layer;
    return n;
}

static bool naive_here(const struct naive *m, uint32_t layer, uint32_t expert)
{
    for (uint32_t i = 0; i < m->p.n_slots; i++)
        if (m->slot[i].layer == layer && m->slot[i].expert == expert)
            return true;
    return false;
}

static double naive_score(const struct naive *m, uint32_t i)
{
    double score;

    if (m->p.policy.kind == RUN_LRU)
        return (double)m->last[i];
    if (m->p.policy.kind == RUN_LFU)
        return (double)m->count[i];
    if (!m->count[i])
        return -1e30;
    score = log2(m->sum[i]) - (double)(m->now - m->last[i]) / m->half_life;
    if (m->p.policy.scope == RUN_SCOPE_AUTO && !m->layered)
        score -=
            RUN_SOFT_QUOTA * ((double)naive_held(m, i / m->p.n_experts) / m->share[i / m->p.n_experts] - 1);
    return score;
}

static void naive_use(struct naive *m, uint32_t i)
{
    m->sum[i] = m->sum[i] * exp2(-(double)(m->now - m->last[i]) / m->half_life) + 1;
    m->count[i]++;
    m->last[i] = m->now;
}

static bool has(const uint32_t *ids, uint32_t n, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static bool naive_may(const struct naive *m, uint32_t slot, uint32_t layer, const uint32_t *chosen,
                      uint32_t n)
{
    uint32_t of = m->slot[slot].layer;

    if (of == NONE || (m->p.layer_slots && slot / m->p.layer_slots != layer))
        return false;
    if (of == layer)
        return !has(chosen, n, m->slot[slot].expert);
    return !m->layered && naive_held(m, of) > m->floor[of];
}

/* The slot of one load is what the rules ask for: for decayed counts up to the error of Q16. */
static void naive_check(const struct naive *m, uint32_t layer, const struct run_slots_load *load,
                        const uint32_t *chosen, uint32_t n)
{
    const double eps = m->p.policy.kind == RUN_DECAY ? 0.02 : 0;
    uint32_t E = m->p.n_experts, first = layer * m->p.layer_slots;
    uint32_t end = m->p.layer_slots ? first + m->p.layer_slots : m->p.n_slots;
    bool room = m->p.layer_slots || !m->layered || naive_held(m, layer) < m->share[layer];
    double best;

    assert_true(load->slot >= first && load->slot < end);
    for (uint32_t i = first; room && i < end; i++)
        if (m->slot[i].layer == NONE) {
            assert_int_equal(load->slot, i);
            assert_true(load->victim == NONE);
            return;
        }
    assert_int_equal(load->victim, m->slot[load->slot].layer * E + m->slot[load->slot].expert);
    assert_true(naive_may(m, load->slot, layer, chosen, n));
    best = naive_score(m, load->victim);
    for (uint32_t i = first; i < end; i++)
        if (naive_may(m, i, layer, chosen, n)) {
            uint32_t of = m->slot[i].layer, vof = load->victim / E;
            double other = naive_score(m, of * E + m->slot[i].expert);

            assert_true(best <= other + eps);
            if (eps == 0 && best == other && i != load->slot) {
                uint32_t far = (of + m->p.n_layers - layer - 1) % m->p.n_layers;
                uint32_t vfar = (vof + m->p.n_layers - layer - 1) % m->p.n_layers;

                assert_true(vfar > far || (vfar == far && load->slot < i));
            }
        }
}

static void naive_apply(struct naive *m, uint32_t layer, const struct run_slots_load *load)
{
    uint32_t i = layer * m->p.n_experts + load->expert;

    m->misses++;
    m->reuploads += m->now - m->gone[i] < RUN_REUPLOAD_TOKENS;
    if (load->victim != NONE) {
        m->evictions++;
        m->gone[load->victim] = m->now;
    }
    m->slot[load->slot].layer = layer;
    m->slot[load->slot].expert = load->expert;
}

static void check_table(const struct run_slots *s, const struct naive *m)
{
    uint32_t n = 0;

    assert_int_equal(run_slots_count(s), m->p.n_slots);
    for (uint32_t i = 0; i < m->p.n_slots; i++) {
        uint32_t o = run_slots_owners(s)[i], l = m->slot[i].layer;

        assert_true(o == (l == NONE ? NONE : l * m->p.n_experts + m->slot[i].expert));
        if (o != NONE)
            assert_int_equal(run_slots_table(s)[o], i);
        n += o != NONE;
    }
    assert_int_equal(run_slots_resident(s), n);
    for (uint32_t i = 0; i < m->p.n_layers * m->p.n_experts; i++)
        n -= run_slots_table(s)[i] != NONE;
    assert_int_equal(n, 0);
}

/* k different experts; some tokens like some experts. */
static void choose(uint64_t *rng, uint32_t *sel, uint32_t k, uint32_t n_experts, uint32_t mood)
{
    uint32_t ids[MAX_TOP_K];

    for (uint32_t j = 0; j < k; j++) {
        uint32_t e;

        do {
            e = (uint32_t)(test_rand(rng) % n_experts);
            if (test_rand(rng) % 4)
                e = (e % (n_experts / 3 + 1) + mood) % n_experts;
        } while (has(ids, j, e));
        ids[j] = e;
        sel[2 * j] = e;
        sel[2 * j + 1] = 0;
    }
    if (k > 1 && test_rand(rng) % 50 == 0)
        sel[2 * (k - 1)] = NONE;
}

static void run_random(const struct run_slots_params *p, uint32_t tokens, uint64_t *rng)
{
    struct naive *m = cor_alloc(sizeof(*m));
    struct run_slots *s = create(p);
    struct run_slots_stats st;
    uint32_t sel[2 * MAX_TOP_K], chosen[MAX_TOP_K];
    struct run_slots_load loads[MAX_TOP_K];

    assert_non_null(m);
    naive_init(m, p);
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t l = 0; l < p->n_layers; l++) {
            uint32_t n = 0, absent = 0, got;

            choose(rng, sel, p->n_used, m->allowed[l], t / 100);
            for (uint32_t j = 0; j < p->n_used; j++)
                if (sel[2 * j] != NONE) {
                    chosen[n++] = sel[2 * j];
                    naive_use(m, l * p->n_experts + sel[2 * j]);
                    absent += !naive_here(m, l, sel[2 * j]);
                }
            got = run_slots_visit(s, l, sel, loads);
            assert_int_equal(got, absent);
            m->hits += n - got;
            m->blocking += got > 0;
            for (uint32_t j = 0; j < got; j++) {
                naive_check(m, l, &loads[j], chosen, n);
                naive_apply(m, l, &loads[j]);
            }
            for (uint32_t j = 0; j < n; j++)
                assert_true(run_slots_find(s, l, chosen[j]) != NONE);
        }
        m->now++;
        run_slots_token_end(s);
        if (test_rand(rng) % 64 == 0) {
            uint32_t i = (uint32_t)(test_rand(rng) % p->n_slots);

            if (m->slot[i].layer != NONE)
                run_slots_drop(s, m->slot[i].layer, m->slot[i].expert);
            m->slot[i].layer = NONE;
        }
        if (t % 128 == 0)
            check_table(s, m);
    }
    check_table(s, m);
    run_slots_stats(s, &st);
    assert_int_equal(st.total.tokens, tokens);
    assert_int_equal(st.cold.tokens, tokens < RUN_COLD_TOKENS ? tokens : RUN_COLD_TOKENS);
    assert_int_equal(st.total.visits, tokens * p->n_layers);
    assert_int_equal(st.total.hits, m->hits);
    assert_int_equal(st.total.misses, m->misses);
    assert_int_equal(st.total.evictions, m->evictions);
    assert_int_equal(st.total.blocking_visits, m->blocking);
    assert_int_equal(st.total.reuploads, m->reuploads);
    assert_int_equal(st.cold.misses + st.warm.misses, m->misses);
    assert_int_equal(st.cold.reuploads + st.warm.reuploads, m->reuploads);
    assert_int_equal(st.prefill.loads, 0);
    run_slots_destroy(s);
    cor_free(m);
}

/* 10^5 visits in all: every policy and scope, several sizes from the floor up. */
static void test_random(void **state)
{
    static const char *const kinds[] = {"lru", "lfu", "decay:12", "decay"};
    static const char *const scopes[] = {"", "/layer", "/global"};
    static const uint32_t allowed[] = {40, 3, 20, 40, 5, 39};
    uint64_t rng = test_seed();

    (void)state;
    for (size_t k = 0; k < COR_COUNT(kinds); k++)
        for (size_t c = 0; c < COR_COUNT(scopes); c++)
            for (uint32_t size = 0; size < 6; size++) {
                struct run_slots_params p = {.n_layers = 6, .n_experts = 40, .n_used = 3};
                char text[32];

                snprintf(text, sizeof(text), "%s%s", kinds[k], scopes[c]);
                p.policy = policy(text);
                p.allowed = size & 1 ? allowed : NULL;
                if (size == 3)
                    p.layer_slots = 8;
                p.n_slots = run_slots_floor(&p) + size * size * 6;
                if (size == 3)
                    p.n_slots = 48;
                run_random(&p, 240, &rng);
            }
}

/* ---- prefill
 * ------------------------------------------------------------------------------------------------- */

struct device { /* what may still read which expert */
    bool needed[E_MAX], done[E_MAX], running[E_MAX], loaded[E_MAX];
    uint32_t waits;
};

static void to_map(uint32_t *map, const bool *set, uint32_t n)
{
    memset(map, 0, MAX_EXPERTS / 8);
    for (uint32_t i = 0; i < n; i++)
        if (set[i])
            map[i / 32] |= 1u << (i % 32);
}

/* Hands out everything resident, needed and not done; what ran before has completed by then. */
static uint32_t run_ready(const struct run_slots *s, uint32_t layer, uint32_t n_experts, struct device *d)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < n_experts; e++) {
        d->running[e] = d->needed[e] && !d->done[e] && run_slots_find(s, layer, e) != NONE;
        d->done[e] |= d->running[e];
        n += d->running[e];
    }
    return n;
}

/* One layer of a chunk as the engine does it; every promise of slots.h is checked. Returns the loads. */
static uint32_t run_waves(struct run_slots *s, const struct run_slots_params *p, uint32_t layer,
                          struct device *d, uint32_t max)
{
    struct run_slots_load loads[MAX_EXPERTS];
    uint32_t needed[MAX_EXPERTS / 32], done[MAX_EXPERTS / 32], total = 0, E = p->n_experts;

    memset(d->done, 0, sizeof(d->done));
    memset(d->running, 0, sizeof(d->running));
    memset(d->loaded, 0, sizeof(d->loaded));
    to_map(needed, d->needed, E);
    for (uint32_t round = 0;; round++) {
        uint32_t n, left = 0;

        assert_true(round < 4 * E + 8); /* progress */
        to_map(done, d->done, E);
        n = run_slots_wave(s, layer, needed, done, loads, max);
        assert_true(n <= max);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t v = loads[i].victim;

            assert_true(d->needed[loads[i].expert] && !d->done[loads[i].expert]);
            assert_false(d->loaded[loads[i].expert]);
            d->loaded[loads[i].expert] = true;
            assert_int_equal(run_slots_find(s, layer, loads[i].expert), loads[i].slot);
            if (p->layer_slots)
                assert_int_equal(loads[i].slot / p->layer_slots, layer);
            if (v != NONE && v / E == layer) {
                assert_false(d->running[v % E]);
                assert_true(d->done[v % E] || !d->needed[v % E]);
            }
        }
        total += n;
        if (!run_ready(s, layer, E, d) && !n)
            d->waits++;
        for (uint32_t e = 0; e < E; e++)
            left += d->needed[e] && !d->done[e];
        if (!left)
            break;
    }
    return total;
}

static uint32_t floor_of(const struct run_slots_params *p, uint32_t l)
{
    uint32_t a = p->allowed ? p->allowed[l] : p->n_experts;

    return a < p->n_used + 1 ? a : p->n_used + 1;
}

static uint32_t held(const struct run_slots *s, const struct run_slots_params *p, uint32_t layer)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < p->n_experts; e++)
        n += run_slots_find(s, layer, e) != NONE;
    return n;
}

static void run_chunk(struct run_slots *s, const struct run_slots_params *p, uint32_t n, uint64_t *rng)
{
    uint32_t *sel = cor_array((size_t)n * p->n_used, 2 * sizeof(*sel)),
             mood = (uint32_t)(test_rand(rng) % 64);
    struct run_slots_stats a, b;
    struct device d = {0};
    uint32_t before[L_MAX], loads = 0;

    assert_non_null(sel);
    run_slots_stats(s, &a);
    run_slots_chunk_begin(s, n);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        uint32_t seed = n < 64 ? n : 64;

        memset(d.needed, 0, sizeof(d.needed));
        for (uint32_t t = 0; t < n; t++) {
            choose(rng, sel + 2 * (size_t)t * p->n_used, p->n_used, p->allowed ? p->allowed[l] : p->n_experts,
                   mood);
            for (uint32_t j = 0; j < p->n_used; j++)
                if (sel[2 * (t * p->n_used + j)] != NONE)
                    d.needed[sel[2 * (t * p->n_used + j)]] = true;
        }
        for (uint32_t i = 0; i < p->n_layers; i++)
            before[i] = held(s, p, i);
        run_slots_seed(s, l, sel + 2 * (size_t)(n - seed) * p->n_used, seed);
        loads += run_waves(s, p, l, &d, 1 + (uint32_t)(test_rand(rng) % 12));
        for (uint32_t i = 0; i < p->n_layers; i++)
            assert_true(i == l || held(s, p, i) == before[i] || held(s, p, i) >= floor_of(p, i));
    }
    run_slots_chunk_end(s);
    run_slots_stats(s, &b);
    assert_int_equal(b.prefill.loads - a.prefill.loads, loads);
    assert_int_equal(b.prefill.tokens - a.prefill.tokens, n);
    assert_true(b.prefill.displaced <= b.prefill.evictions);
    assert_int_equal(a.total.visits, b.total.visits);
    cor_free(sel);
}

static void run_tokens(struct run_slots *s, const struct run_slots_params *p, uint32_t n, uint64_t *rng)
{
    uint32_t sel[2 * MAX_TOP_K];
    struct run_slots_load loads[MAX_TOP_K];

    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t l = 0; l < p->n_layers; l++) {
            choose(rng, sel, p->n_used, p->allowed ? p->allowed[l] : p->n_experts, 0);
            run_slots_visit(s, l, sel, loads);
        }
        run_slots_token_end(s);
    }
}

static void test_waves(void **state)
{
    static const char *const policies[] = {"lru/layer",   "lru/global",   "lfu/global",
                                           "decay/layer", "decay/global", "decay"};
    static const uint32_t allowed[] = {40, 3, 1, 40, 5, 39};
    uint64_t rng = test_seed();

    (void)state;
    for (size_t k = 0; k < COR_COUNT(policies); k++)
        for (uint32_t size = 0; size < 6; size++)
            for (uint32_t used = 1; used < 6; used += 2) {
                struct run_slots_params p = {.n_layers = 6, .n_experts = 40, .n_used = used};
                struct run_slots *s;

                p.policy = policy(policies[k]);
                p.allowed = size & 1 && used < 2 ? allowed : NULL;
                p.layer_slots = size == 2 ? used + 1 : size == 3 ? 9 : 0;
                p.n_slots = p.layer_slots ? 6 * p.layer_slots : run_slots_floor(&p) + size * size * 6;
                s = create(&p);
                for (uint32_t round = 0; round < 3; round++) {
                    run_chunk(s, &p, 1 + (uint32_t)(test_rand(&rng) % 90), &rng);
                    run_tokens(s, &p, (uint32_t)(test_rand(&rng) % 20), &rng);
                }
                run_slots_destroy(s);
            }
}

/* Free slots are shared out among the layers by the first chunk. */
static void test_fair_fill(void **state)
{
    struct run_slots_params p = {.n_layers = 6, .n_experts = 40, .n_used = 3, .n_slots = 80};
    uint64_t rng = test_seed();

    (void)state;
    for (int global = 0; global < 2; global++) {
        struct run_slots *s;

        p.policy = policy(global ? "decay/global" : "decay/layer");
        s = create(&p);
        run_chunk(s, &p, 64, &rng);
        assert_int_equal(run_slots_resident(s), 80);
        for (uint32_t l = 0; l < 6; l++)
            assert_in_range(held(s, &p, l), global ? 7 : 13, global ? 24 : 14);
        run_slots_destroy(s);
    }
}

/* A chunk that needs every expert, each about as rarely: of what decode had been using hard, at most the
 * borrowed slots go, and with a global pool these are the same for all layers. */
static void test_no_flush(void **state)
{
    struct run_slots_params p = {.n_layers = 6, .n_experts = 40, .n_used = 4, .n_slots = 96};
    struct run_slots_load loads[MAX_TOP_K];
    uint32_t sel[2 * 40];

    (void)state;
    for (int global = 0; global < 2; global++) {
        struct run_slots_stats st;
        struct run_slots *s;
        struct device d = {0};

        p.policy = policy(global ? "decay:48/global" : "decay:48/layer");
        s = create(&p);
        for (uint32_t t = 0; t < 200; t++) {
            for (uint32_t l = 0; l < 6; l++) {
                for (uint32_t j = 0; j < 4; j++)
                    sel[2 * j] = t % 4 * 4 + j; /* 16 experts a layer */
                run_slots_visit(s, l, sel, loads);
            }
            run_slots_token_end(s);
        }
        run_slots_chunk_begin(s, 10);
        for (uint32_t l = 0; l < 6; l++) {
            for (uint32_t i = 0; i < 40; i++)
                sel[2 * i] = i;
            memset(d.needed, 1, sizeof(d.needed));
            run_slots_seed(s, l, sel, 10);
            assert_int_equal(run_waves(s, &p, l, &d, 8), 24);
            assert_true(d.waits <= l + 1); /* for the residents whose slots are borrowed, then never */
        }
        run_slots_chunk_end(s);
        run_slots_stats(s, &st);
        assert_int_equal(st.prefill.loads, 6 * 24);
        assert_true(st.prefill.displaced > 0);
        assert_true(st.prefill.displaced <= (global ? 2 : 6) * RUN_BORROW);
        run_slots_destroy(s);
    }
}

/* ---- document pools
 * ------------------------------------------------------------------------------------------ */

enum { HOLD_LAYERS = 6, HOLD_EXPERTS = 40, HOLD_WORDS = 2 };

/* n different experts. */
static void choose_pool(uint32_t *map, uint32_t n, uint64_t *rng)
{
    memset(map, 0, HOLD_WORDS * sizeof(*map));
    while (n) {
        uint32_t e = (uint32_t)(test_rand(rng) % HOLD_EXPERTS);

        if (map[e / 32] >> (e % 32) & 1)
            continue;
        map[e / 32] |= 1u << (e % 32);
        n--;
    }
}

static void check_held(const struct run_slots *s, const uint32_t *kept)
{
    for (uint32_t l = 0; l < HOLD_LAYERS; l++)
        for (uint32_t e = 0; e < HOLD_EXPERTS; e++)
            if (kept[l * HOLD_WORDS + e / 32] >> (e % 32) & 1)
                assert_true(run_slots_find(s, l, e) != NONE);
}

/* Pools of `least` experts per layer in as many slots, whatever was there before: what is kept stays. Then
 * one expert of each layer is exchanged. */
static void hold_case(const char *name, uint32_t least, uint32_t spare, bool layers, uint64_t *rng)
{
    struct run_slots_params p = {.n_layers = HOLD_LAYERS,
                                 .n_experts = HOLD_EXPERTS,
                                 .n_used = 3,
                                 .n_slots = HOLD_LAYERS * (least + spare),
                                 .layer_slots = layers ? least + spare : 0,
                                 .least = least,
                                 .policy = policy(name)};
    uint32_t kept[HOLD_LAYERS * HOLD_WORDS], n_loads = 0;
    struct run_slots_load loads[HOLD_EXPERTS];
    struct run_slots_stats st;
    struct run_slots *s;

    p.n_slots--;
    if (!layers && !spare) {
        struct vkmoe_err err;

        assert_int_equal(run_slots_create(&s, &p, &err), VKMOE_ERR_LIMIT);
    }
    p.n_slots++;
    s = create(&p);
    for (uint32_t round = 0; round < 8; round++) {
        run_tokens(s, &p, 12, rng);
        memset(kept, 0, sizeof(kept));
        for (uint32_t l = 0; l < HOLD_LAYERS; l++) {
            choose_pool(kept + l * HOLD_WORDS, least, rng);
            n_loads += run_slots_hold(s, l, kept + l * HOLD_WORDS, kept, loads);
            check_held(s, kept);
        }
        for (uint32_t l = 0; l < HOLD_LAYERS; l++) {
            uint32_t *map = kept + l * HOLD_WORDS, e = 0;

            while (map[e / 32] >> (e % 32) & 1)
                e++;
            map[e / 32] |= 1u << (e % 32);
            for (e++; !(map[e / 32] >> (e % 32) & 1);)
                e++;
            map[e / 32] &= ~(1u << (e % 32));
        }
        for (uint32_t l = 0; l < HOLD_LAYERS; l++)
            n_loads += run_slots_hold(s, l, kept + l * HOLD_WORDS, kept, loads);
        check_held(s, kept);
    }
    run_slots_stats(s, &st);
    assert_int_equal(st.prefill.loads, n_loads);
    assert_int_equal(st.prefill.loads + st.prefill.hits, 8ull * 2 * HOLD_LAYERS * least);
    run_slots_destroy(s);
}

static void test_hold(void **state)
{
    static const char *const policies[] = {"decay", "decay/global", "decay/layer", "lru/global", "lfu/layer"};
    uint64_t rng = test_seed();

    (void)state;
    for (uint32_t i = 0; i < COR_COUNT(policies); i++)
        for (uint32_t least = 4; least <= 36; least += 8) {
            hold_case(policies[i], least, 0, false, &rng);
            hold_case(policies[i], least, 3, false, &rng);
            hold_case(policies[i], least, 1, true, &rng);
        }
}

/* ---- size and hot set
 * ------------------------------------------------------------------------------------ */

static void test_sawtooth(void **state)
{
    struct run_slots_params p = {.n_layers = 6, .n_experts = 40, .n_used = 3, .n_slots = 200};
    uint64_t rng = test_seed();
    uint32_t dropped[N_MAX], n;
    struct vkmoe_err err = {0};
    struct run_slots *s = create(&p);

    (void)state;
    for (uint32_t round = 0; round < 60; round++) {
        uint32_t size = 24 + (uint32_t)(test_rand(&rng) % 217), was = run_slots_count(s);

        run_tokens(s, &p, 5, &rng);
        if (round % 7 == 3)
            run_chunk(s, &p, 20, &rng);
        if (size <= was) {
            uint32_t resident = run_slots_resident(s);

            test_ok(run_slots_shrink(s, size, dropped, &n, &err), &err);
            assert_int_equal(run_slots_resident(s), resident - n);
            for (uint32_t i = 0; i < n; i++)
                assert_true(run_slots_table(s)[dropped[i]] == NONE);
        } else {
            test_ok(run_slots_grow(s, size, &err), &err);
        }
        assert_int_equal(run_slots_count(s), size);
        for (uint32_t i = 0; i < N_MAX; i++)
            assert_true(run_slots_table(s)[i] == NONE ||
                        (run_slots_table(s)[i] < size && run_slots_owners(s)[run_slots_table(s)[i]] == i));
    }
    assert_int_equal(run_slots_shrink(s, 23, dropped, &n, &err), VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, "24"));
    assert_int_equal(run_slots_grow(s, 241, &err), VKMOE_ERR_LIMIT);
    run_slots_destroy(s);
    p.layer_slots = 10;
    p.n_slots = 60;
    s = create(&p);
    assert_int_equal(run_slots_shrink(s, 54, dropped, &n, &err), VKMOE_ERR_UNSUPPORTED);
    assert_int_equal(run_slots_grow(s, 66, &err), VKMOE_ERR_UNSUPPORTED);
    run_slots_destroy(s);
}

static void test_hot_set(void **state)
{
    struct run_slots_params p = {.n_layers = 6, .n_experts = 40, .n_used = 3, .n_slots = 60};
    static const char *const policies[] = {"lru/global", "lfu/layer", "decay/layer", "decay/global"};
    uint64_t rng = test_seed();
    uint32_t list[N_MAX], again[N_MAX];

    (void)state;
    for (size_t k = 0; k < COR_COUNT(policies); k++) {
        struct run_slots *a, *b;
        struct run_slots_stats st;
        uint32_t n, placed = 0;

        p.policy = policy(policies[k]);
        a = create(&p);
        b = create(&p);
        assert_int_equal(run_slots_hot(a, list), 0);
        run_tokens(a, &p, 50, &rng);
        n = run_slots_hot(a, list);
        assert_true(n >= 60 && n <= N_MAX);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t slot = run_slots_place(b, list[i] / 40, list[i] % 40);

            assert_true(slot == NONE || run_slots_owners(b)[slot] == list[i]);
            placed += slot != NONE;
            assert_true(run_slots_place(b, list[i] / 40, list[i] % 40) == NONE);
        }
        assert_int_equal(placed, 60);
        run_slots_stats(b, &st);
        assert_int_equal(st.placed, 60);
        assert_int_equal(st.total.misses + st.prefill.loads, 0);
        n = run_slots_hot(b, again); /* the same order */
        assert_int_equal(n, 60);
        for (uint32_t i = 0, j = 0; i < n; i++) {
            while (list[j] != again[i])
                assert_true(++j < N_MAX);
        }
        run_tokens(b, &p, 50, &rng);
        run_slots_destroy(a);
        run_slots_destroy(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_text), cmocka_unit_test(test_floor),     cmocka_unit_test(test_random),
        cmocka_unit_test(test_waves),       cmocka_unit_test(test_fair_fill), cmocka_unit_test(test_no_flush),
        cmocka_unit_test(test_sawtooth),    cmocka_unit_test(test_hold),      cmocka_unit_test(test_hot_set),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
