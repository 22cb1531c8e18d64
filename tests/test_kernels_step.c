/* Kernels that steer a step against plain C: publish, router, router_one, group. */
#include <math.h>
#include <stdio.h>

#include "support/kernel_test.h"

/* ---- publish
 * ------------------------------------------------------------------------------------------------ */

static uint32_t grid_of(const uint32_t *step, uint32_t mode, uint32_t a)
{
    switch (mode) {
    case DIM_FIXED:
        return a;
    case DIM_TOKENS:
        return (step[STEP_N_TOKENS] + a - 1) / a;
    case DIM_ROWS:
        return (step[STEP_N_ROWS] + a - 1) / a;
    case DIM_CONTEXT:
        return (step[STEP_POS] + step[STEP_N_TOKENS] + a - 1) / a;
    default:
        return 0;
    }
}

static void publish_case(uint32_t n_tokens, uint32_t n_rows, uint32_t pos, uint32_t first, uint32_t n_changes)
{
    enum { CHUNK = 40, DISPATCHES = 57, TABLE = 300, STEP = STEP_TOKENS + CHUNK + 2 * TABLE };
    const struct spec_publish spec = {.wg = 64};
    uint32_t step[STEP], tmpl[TMPL_HEAD + DISPATCHES * TMPL_WORDS] = {DISPATCHES}, args[DISPATCHES * 3];
    uint32_t state[STEP_TOKENS + CHUNK], table[TABLE], want[TABLE], mail[MAIL_WORDS];
    struct kt_buf bufs[] = {{step, sizeof(step), KT_IN, false},     {tmpl, sizeof(tmpl), KT_IN, false},
                            {args, sizeof(args), KT_OUT, true},     {state, sizeof(state), KT_OUT, false},
                            {table, sizeof(table), KT_INOUT, true}, {mail, sizeof(mail), KT_OUT, true}};

    for (uint32_t i = 0; i < STEP; i++)
        step[i] = kt_below(1u << 30);
    step[STEP_N_TOKENS] = n_tokens;
    step[STEP_POS] = pos;
    step[STEP_FIRST] = first;
    step[STEP_N_ROWS] = n_rows;
    step[STEP_N_CHANGES] = n_changes;
    step[STEP_CHUNK] = CHUNK;
    for (uint32_t i = 0; i < TABLE; i++)
        want[i] = table[i] = i % 3 ? i : NONE;
    for (uint32_t i = 0; i < n_changes; i++) {
        uint32_t *change = step + STEP_TOKENS + CHUNK + 2 * i;

        change[0] = (i * 7 + 3) % TABLE; /* distinct: 7 and 300 share no factor */
        change[1] = i % 4 ? kt_below(1000) : NONE;
        want[change[0]] = change[1];
    }
    if (n_changes)
        step[STEP_TOKENS + CHUNK + 2 * (n_changes - 1)] = TABLE + 5; /* outside: ignored */
    if (n_changes)
        want[((n_changes - 1) * 7 + 3) % TABLE] = table[((n_changes - 1) * 7 + 3) % TABLE];
    for (uint32_t i = 0; i < DISPATCHES * 3; i++) {
        tmpl[TMPL_HEAD + 2 * i] = kt_below(5);
        tmpl[TMPL_HEAD + 2 * i + 1] = 1 + kt_below(200);
    }
    KT_RUN(GPU_K_publish, spec, NULL, bufs, 1, 1, 1);
    for (uint32_t i = 0; i < DISPATCHES * 3; i++)
        assert_int_equal(
            args[i], i < first * 3 ? 0 : grid_of(step, tmpl[TMPL_HEAD + 2 * i], tmpl[TMPL_HEAD + 2 * i + 1]));
    for (uint32_t i = 0; i < STEP_TOKENS + CHUNK; i++)
        assert_int_equal(state[i], i < STEP_TOKENS + n_tokens ? step[i] : KT_POISON);
    assert_memory_equal(table, want, sizeof(want));
    assert_int_equal(mail[MAIL_LAYER], NONE);
    assert_int_equal(mail[MAIL_N_MISSING], 0);
    for (uint32_t i = 0; i < MAX_EXPERTS / 32; i++)
        assert_int_equal(mail[MAIL_MISSING + i], 0);
}

static void test_publish(void **unused)
{
    (void)unused;
    publish_case(1, 1, 0, 0, 0);
    publish_case(40, 40, 1000, 0, 300);
    publish_case(17, 0, 127, 33, 5);
    publish_case(1, 1, 4095, 57, 1);
}

/* ---- router
 * ------------------------------------------------------------------------------------------------- */

struct routing {
    uint32_t n_experts, k_used;
    bool norm;
    float scale;
    const uint32_t *mask; /* of the layer; NULL: all */
};

static bool is_allowed(const struct routing *r, uint32_t e)
{
    return !r->mask || (r->mask[e / 32] >> (e % 32) & 1);
}

/* True when expert a comes before b: larger logit, then lower id; NaN is lowest. */
static bool ranks_before(const float *logits, uint32_t a, uint32_t b)
{
    float x = logits[a], y = logits[b];

    if (isnan(x) || isnan(y))
        return isnan(x) == isnan(y) ? a < b : !isnan(x);
    return x != y ? x > y : a < b;
}

static void route_want(const struct routing *r, const float *logits, uint32_t *ids, double *weights)
{
    double sum = 0, chosen = 0;
    uint32_t n = 0, order[MAX_EXPERTS];

    for (uint32_t e = 0; e < r->n_experts; e++) {
        uint32_t at = n;

        if (!is_allowed(r, e))
            continue;
        for (; at > 0 && ranks_before(logits, e, order[at - 1]); at--)
            order[at] = order[at - 1];
        order[at] = e;
        n++;
    }
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[order[i]] - logits[order[0]]);
    for (uint32_t j = 0; j < r->k_used; j++) {
        ids[j] = j < n ? order[j] : NONE;
        weights[j] = j < n ? exp((double)logits[order[j]] - logits[order[0]]) / sum : 0;
        chosen += weights[j];
    }
    for (uint32_t j = 0; j < r->k_used && n; j++)
        weights[j] *= r->scale / (r->norm ? chosen : 1.0);
}

/* Layer 1 of a mask of two layers, three tokens. sel: 3 * k_used * 2 words. */
static void route_run(const struct routing *r, const float *logits, uint32_t *sel)
{
    const struct spec_router spec = {128, r->n_experts, r->k_used, r->norm, kt_bits(r->scale)};
    const struct push_layer push = {1};
    uint32_t words = (r->n_experts + 31) / 32, *mask = kt_words((size_t)words * 2);
    struct kt_buf bufs[] = {{(void *)(uintptr_t)logits, (size_t)3 * r->n_experts * 4, KT_IN, false},
                            {mask, (size_t)words * 8, KT_IN, false},
                            {sel, (size_t)3 * r->k_used * 8, KT_OUT, false}};

    for (uint32_t i = 0; i < words; i++)
        mask[words + i] = r->mask ? r->mask[i] : NONE;
    KT_RUN(GPU_K_router, spec, &push, bufs, 1, 3, 1);
    cor_free(mask);
}

static void route_case(const struct routing *r, const float *logits)
{
    uint32_t *sel = kt_words((size_t)3 * r->k_used * 2), ids[MAX_TOP_K];
    double weights[MAX_TOP_K],
        sum_err = ldexp(r->n_experts, -24); /* a sum in one row of n terms: n roundings */
    float got[MAX_TOP_K];

    route_run(r, logits, sel);
    for (uint32_t t = 0; t < 3; t++) {
        const uint32_t *s = sel + (size_t)t * r->k_used * 2;

        route_want(r, logits + (size_t)t * r->n_experts, ids, weights);
        for (uint32_t j = 0; j < r->k_used; j++) {
            if (s[2 * j] != ids[j])
                fail_msg("router: %u experts, token %u, rank %u: %u, expected %u", r->n_experts, t, j,
                         s[2 * j], ids[j]);
            got[j] = kt_float(s[2 * j + 1]);
        }
        kt_close("router: weights", got, weights, r->k_used, KT_NMSE + sum_err * sum_err,
                 KT_LARGEST + sum_err);
    }
    cor_free(sel);
}

/* ---- copy_rows
 * ---------------------------------------------------------------------------------------------- */

static void rows_case(uint32_t dim, uint32_t n_tokens, uint32_t pos, bool from_pos, bool to_pos,
                      uint32_t row0)
{
    const struct spec_copy_rows spec = {64, dim, from_pos, to_pos};
    const struct push_rows push = {row0};
    uint32_t from = from_pos ? pos : 0, to = row0 + (to_pos ? pos : 0);
    size_t n_src = (size_t)(from + n_tokens) * dim, n_dst = (size_t)(to + n_tokens) * dim;
    uint32_t *state = kt_words(STEP_TOKENS), *src = kt_words(n_src), *dst = kt_words(n_dst);
    uint32_t *want = kt_words(n_dst);
    struct kt_buf bufs[] = {{state, STEP_TOKENS * 4, KT_IN, false},
                            {src, n_src * 4, KT_IN, false},
                            {dst, n_dst * 4, KT_INOUT, false}};

    state[STEP_POS] = pos;
    for (size_t i = 0; i < n_src; i++)
        src[i] = (uint32_t)(i * 2654435761u) | 0x7f800000u; /* NaNs and infinities among them */
    for (size_t i = 0; i < n_dst; i++)
        want[i] = dst[i] = (uint32_t)i;
    memcpy(want + (size_t)to * dim, src + (size_t)from * dim, (size_t)n_tokens * dim * 4);
    KT_RUN(GPU_K_copy_rows, spec, &push, bufs, (dim + 63) / 64, n_tokens, 1);
    assert_memory_equal(dst, want, n_dst * 4);
    cor_free(state);
    cor_free(src);
    cor_free(dst);
    cor_free(want);
}

static void test_copy_rows(void **unused)
{
    (void)unused;
    rows_case(1, 1, 0, false, false, 0);
    rows_case(63, 5, 7, false, false, 12); /* router logits: the layer's rows */
    rows_case(150, 4, 9, true, false, 0);  /* a chunk of the text's stream, there and back */
    rows_case(150, 4, 9, false, true, 0);
}

static void test_router(void **unused)
{
    static const uint32_t sizes[][2] = {{1, 1}, {5, 2}, {127, 7}, {128, 8}, {512, 32}, {33, 32}};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(sizes); i++) {
        struct routing r = {sizes[i][0], sizes[i][1], i % 2, i % 3 ? 1.0f : 2.5f, NULL};
        float *logits = kt_floats((size_t)3 * r.n_experts);
        uint32_t mask[MAX_EXPERTS / 32];

        for (uint32_t e = 0; e < 3 * r.n_experts; e++)
            logits[e] *= 5;
        route_case(&r, logits);
        for (uint32_t e = 0; e < 3 * r.n_experts; e++) /* many equals; both zeros */
            logits[e] = e % 5 ? (float)(int)(logits[e]) / 4 : -0.0f;
        route_case(&r, logits);
        for (uint32_t w = 0; w < MAX_EXPERTS / 32; w++)
            mask[w] = kt_below(NONE);
        r.mask = mask;
        route_case(&r, logits);
        memset(mask, 0, sizeof(mask)); /* nobody, then one: fewer than k_used */
        route_case(&r, logits);
        mask[(r.n_experts - 1) / 32] = 1u << ((r.n_experts - 1) % 32);
        route_case(&r, logits);
        cor_free(logits);
    }
}

/* Whatever the logits are: ids distinct, allowed and valid. */
static void test_router_wild(void **unused)
{
    static const uint32_t bits[] = {0x7fc00000, 0xffc00001, 0x7f800000, 0xff800000, 1,         0x80000001,
                                    0x7f7fffff, 0xff7fffff, 0,          0x80000000, 0x3f800000};
    const uint32_t mask[4] = {0xfffffff0, 0x0fffffff, NONE, NONE};
    const struct routing r = {127, 7, true, 1, mask};
    uint32_t sel[3 * 7 * 2];

    (void)unused;
    for (uint32_t round = 0; round < 20; round++) {
        float logits[3 * 127];
        uint32_t kinds = 1 + kt_below(COR_COUNT(bits)), ids[7];
        double weights[7];

        for (uint32_t i = 0; i < 3 * 127; i++)
            logits[i] = kt_float(round ? bits[kt_below(kinds)] : 0x7fc00000u); /* all NaN first */
        route_run(&r, logits, sel);
        for (uint32_t t = 0; t < 3; t++) {
            uint32_t seen[4] = {0};

            route_want(&r, logits + t * 127, ids, weights);
            for (uint32_t j = 0; j < 7; j++) {
                uint32_t id = sel[(t * 7 + j) * 2];

                assert_true(id < 127 && is_allowed(&r, id));
                assert_false(seen[id / 32] >> (id % 32) & 1);
                seen[id / 32] |= 1u << (id % 32);
                /* devices may flush subnormals, which then tie with zero: only those rounds go unchecked here
                 */
                if (kinds < 5)
                    assert_int_equal(id, ids[j]);
            }
        }
    }
}

/* Experts masked or left out of the model: the same bits. */
static void test_router_carve(void **unused)
{
    enum { FULL = 128, T = 3, K = 7 };
    float logits[T * FULL], carved[T * FULL];
    uint32_t mask[FULL / 32], kept[FULL], n = 0, sel[T * K * 2], sel_carved[T * K * 2];

    (void)unused;
    for (uint32_t w = 0; w < FULL / 32; w++)
        mask[w] = kt_below(NONE);
    for (uint32_t e = 0; e < FULL; e++)
        if (mask[e / 32] >> (e % 32) & 1)
            kept[n++] = e;
    for (uint32_t i = 0; i < T * FULL; i++)
        logits[i] = kt_uniform(-6, 6);
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t i = 0; i < n; i++)
            carved[t * n + i] = logits[t * FULL + kept[i]];
    route_run(&(struct routing){FULL, K, true, 1, mask}, logits, sel);
    route_run(&(struct routing){n, K, true, 1, NULL}, carved, sel_carved);
    for (uint32_t i = 0; i < T * K; i++) {
        assert_int_equal(sel[2 * i], kept[sel_carved[2 * i]]);
        assert_int_equal(sel[2 * i + 1], sel_carved[2 * i + 1]);
    }
}

/* ---- router_one and group
 * -------------------------------------------------------------------------------------- */

enum {
    DISPATCHES = 20,
    NEXT = 6,
    TILES0 = 7,
    N_TILES = 4,
    GAP = 2,
    AFTER = 14,
    CHUNK_EXTRA = 3,
    STEP_LAYER = 1
};

/* What a case does: experts that are absent, that an earlier submit has done, and a partial step. */
struct halt_case {
    bool absent, done, partial;
};

/* Experts of layer STEP_LAYER: who is absent (every third), who is done (every fourth). */
struct halt_run {
    struct halt_case c;
    uint32_t n_experts, k, n_tokens, n_pairs, chunk, n_routes;
    uint32_t *state, *sel, *table, *routes;
    uint32_t mail[MAIL_WORDS], args[DISPATCHES * 3], missing[MAX_EXPERTS / 32];
};

static bool is_done(const struct halt_run *r, uint32_t e)
{
    return r->c.done && e % 4 == 1;
}

/* Slot that the submit runs the expert from. */
static uint32_t slot_of(const struct halt_run *r, uint32_t e)
{
    return is_done(r, e) ? NONE : r->table[r->n_experts + e];
}

static void halt_make(struct halt_run *r, struct halt_case c, uint32_t n_tokens, uint32_t n_experts,
                      uint32_t k)
{
    memset(r, 0, sizeof(*r));
    r->c = c;
    r->n_experts = n_experts;
    r->k = k;
    r->n_tokens = n_tokens;
    r->n_pairs = n_tokens * k;
    r->chunk = n_tokens + CHUNK_EXTRA;
    r->n_routes = (STEP_LAYER + 1) * r->chunk * k * 2;
    r->state = kt_state(n_tokens, 0, 0, 1);
    r->state[STEP_CHUNK] = r->chunk;
    r->state[STEP_PARTIAL] = c.partial;
    r->state[STEP_DONE_LAYER] = c.done ? STEP_LAYER : STEP_LAYER + 1; /* another layer's say nothing here */
    r->sel = kt_words((size_t)r->n_pairs * 2);
    r->table = kt_words((size_t)n_experts * 2);
    r->routes = kt_words(r->n_routes);
    for (uint32_t e = 0; e < n_experts; e++) {
        r->table[e] = NONE; /* another layer's */
        r->table[n_experts + e] = c.absent && e % 3 == 0 ? NONE : n_experts - e;
        if (e % 4 == 1)
            r->state[STEP_DONE + e / 32] |= 1u << (e % 32);
    }
    for (uint32_t i = 0; i < MAIL_WORDS; i++)
        r->mail[i] = 77;
    for (uint32_t i = 0; i < DISPATCHES * 3; i++)
        r->args[i] = 1000 + i;
}

static void find_missing(struct halt_run *r)
{
    for (uint32_t i = 0; i < r->n_pairs; i++) {
        uint32_t e = r->sel[2 * i];

        if (e != NONE && !is_done(r, e) && r->table[r->n_experts + e] == NONE)
            r->missing[e / 32] |= 1u << (e % 32);
    }
}

static void halt_free(struct halt_run *r)
{
    cor_free(r->state);
    cor_free(r->sel);
    cor_free(r->table);
    cor_free(r->routes);
}

static bool is_tiles(uint32_t dispatch)
{
    uint32_t i = dispatch - TILES0;

    return i < N_TILES / 2 || (i >= N_TILES / 2 + GAP && i < N_TILES + GAP);
}

/* Mailbox and arguments after a run: halted for `missing`, stopped before AFTER, or as they were; the choices
 * told. */
static void check_halt(const struct halt_run *r, bool tiles, uint32_t n_tiles)
{
    uint32_t n = 0, from = STEP_LAYER * r->chunk * r->k * 2, end = DISPATCHES;

    for (uint32_t i = 0; i < MAX_EXPERTS; i++)
        n += r->missing[i / 32] >> (i % 32) & 1;
    if (r->c.partial) {
        n = 0; /* nobody halts */
        end = AFTER;
    } else if (n) {
        end = NEXT;
    }
    assert_int_equal(r->mail[MAIL_LAYER], n ? STEP_LAYER : 77);
    assert_int_equal(r->mail[MAIL_N_MISSING], n ? n : 77);
    for (uint32_t i = 0; i < MAX_EXPERTS / 32; i++)
        assert_int_equal(r->mail[MAIL_MISSING + i], n && i < (r->n_experts + 31) / 32 ? r->missing[i] : 77);
    for (uint32_t i = 0; i < DISPATCHES * 3; i++) {
        uint32_t want = 1000 + i, d = i / 3;

        if (d >= end)
            want = 0;
        else if (tiles && is_tiles(d) && i % 3 == 1)
            want = n_tiles;
        assert_int_equal(r->args[i], want);
    }
    for (uint32_t i = 0; i < r->n_routes; i++)
        assert_int_equal(r->routes[i], i >= from && i < from + 2 * r->n_pairs ? r->sel[i - from] : KT_POISON);
}

/* n_allowed: the layer's first experts are allowed, others are not. The largest router has biases. */
static void router_one_case(enum gpu_kernel kernel, struct halt_case c, uint32_t n_experts, uint32_t k,
                            uint32_t n_allowed)
{
    enum { DIM = 44, N_BEFORE = 2 }; /* workgroups of another dispatch that came before */
    const struct kt_cut cut = kt_cut(kernel, 32, 3);
    const uint32_t words = (n_experts + 31) / 32, bias_at = CHOICE_MASK + 2 * words;
    const uint32_t n_choice = bias_at + 2 * n_experts;
    const bool bias = n_experts == MAX_EXPERTS;
    const uint32_t n_groups = (n_experts + cut.rows - 1) / cut.rows;
    const struct spec_router_one spec = {cut.wg,  n_experts, k,        true, kt_bits(2.5f),     DIM,
                                         MDL_F32, DIM * 4,   cut.rows, true, bias ? bias_at : 0};
    const struct push_router push = {0, n_experts, N_BEFORE + n_groups, STEP_LAYER, NEXT, AFTER};
    uint32_t *choice = kt_words(n_choice), ids[MAX_TOP_K];
    double *logits = cor_array(n_experts, sizeof(*logits)), weights[MAX_TOP_K];
    float *x = kt_floats(DIM), got[MAX_TOP_K];
    const double sum_err = ldexp(n_experts, -24);
    struct kt_matrix m;
    struct halt_run r;

    kt_matrix_make(&m, MDL_F32, n_experts, DIM, 0);
    halt_make(&r, c, 1, n_experts, k);
    choice[CHOICE_COUNT] = N_BEFORE;
    for (uint32_t e = 0; e < n_allowed; e++)
        choice[CHOICE_MASK + words + e / 32] |= 1u << (e % 32);
    for (uint32_t e = 0; e < n_experts; e++) {
        const float b = (float)e / 100 - 2;

        choice[bias_at + n_experts + e] = kt_bits(b);
        logits[e] = kt_matrix_dot(&m, DIM, e, x) + (bias ? (double)b : 0);
    }
    KT_RUN(kernel, spec, &push,
           ((struct kt_buf[]){{x, DIM * 4, KT_IN, false},
                              {m.bytes, m.n_bytes, KT_IN, false},
                              {r.state, (STEP_TOKENS + 1) * 4, KT_IN, false},
                              {r.table, (size_t)n_experts * 8, KT_IN, false},
                              {choice, (size_t)n_choice * 4, KT_INOUT, true},
                              {r.mail, sizeof(r.mail), KT_INOUT, true},
                              {r.args, sizeof(r.args), KT_INOUT, true},
                              {r.routes, (size_t)r.n_routes * 4, KT_OUT, true}}),
           n_groups, 1, 1);
    kt_close("router_one: logits", (const float *)(const void *)(choice + CHOICE_LOGITS), logits, n_experts,
             KT_NMSE, KT_LARGEST);
    /* its choice is that of its own logits: others may differ in the last place */
    route_want(&(struct routing){n_experts, k, true, 2.5f, choice + CHOICE_MASK + words},
               (const float *)(const void *)(choice + CHOICE_LOGITS), ids, weights);
    memcpy(r.sel, choice + CHOICE_SEL, (size_t)k * 8);
    for (uint32_t j = 0; j < k; j++) {
        assert_int_equal(r.sel[2 * j], ids[j]);
        got[j] = kt_float(r.sel[2 * j + 1]);
        assert_int_equal(choice[CHOICE_RUN + j], ids[j] == NONE ? NONE : slot_of(&r, ids[j]));
        assert_int_equal(choice[CHOICE_SLOTS + j], ids[j] == NONE ? NONE : r.table[n_experts + ids[j]]);
    }
    kt_close("router_one: weights", got, weights, k, KT_NMSE + sum_err * sum_err, KT_LARGEST + sum_err);
    assert_int_equal(choice[CHOICE_RUN + k], c.done ? NONE : SLOT_SHARED);
    assert_int_equal(choice[CHOICE_SLOTS + k], SLOT_SHARED);
    assert_int_equal(choice[CHOICE_COUNT], 0);
    find_missing(&r);
    check_halt(&r, false, 0);
    halt_free(&r);
    kt_matrix_free(&m);
    cor_free(choice);
    cor_free(logits);
    cor_free(x);
}

static const struct halt_case halt_cases[] = {
    {false, false, false}, {true, false, false}, {true, false, true},
    {false, true, false},  {true, true, false},  {true, true, true},
};

static void test_router_one(void **unused)
{
    static const enum gpu_kernel kernels[] = {GPU_K_router_one, GPU_K_router_one_sg, GPU_K_router_one_ln};

    (void)unused;
    for (uint32_t v = 0; v < COR_COUNT(kernels); v++)
        for (uint32_t i = 0; i < COR_COUNT(halt_cases) && kt_usable(kernels[v]); i++) {
            if (!kt_wanted(i + v))
                continue;
            router_one_case(kernels[v], halt_cases[i], 127, 7, i % 2 ? 5 : 127);
            if (i % 3 == v) {
                router_one_case(kernels[v], halt_cases[i], 1, 1, 1);
                router_one_case(kernels[v], halt_cases[i], 512, 32, 500);
            }
        }
}

/* Every pair of every expert that runs stands in exactly one of the expert's tiles. Returns their number. */
static uint32_t check_tiles(const struct halt_run *r, const uint32_t *tiles, const uint32_t *pairs)
{
    uint32_t n_tiles = 0, *seen = kt_words(r->n_pairs), first = 0;

    for (uint32_t e = 0; e < r->n_experts; e++) {
        uint32_t left = 0;

        for (uint32_t i = 0; i < r->n_pairs; i++)
            left += r->sel[2 * i] == e;
        if (slot_of(r, e) == NONE) {
            first += left;
            continue;
        }
        while (left) {
            const uint32_t *tile = tiles + (size_t)n_tiles++ * TILE_WORDS;
            uint32_t n = left < TILE_TOKENS ? left : TILE_TOKENS;

            assert_int_equal(tile[TILE_EXPERT], e);
            assert_int_equal(tile[TILE_SLOT], slot_of(r, e));
            assert_int_equal(tile[TILE_FIRST], first);
            assert_int_equal(tile[TILE_COUNT], n);
            for (uint32_t i = 0; i < n; i++, first++) {
                assert_true(pairs[first] < r->n_pairs && r->sel[2 * pairs[first]] == e);
                assert_int_equal(seen[pairs[first]]++, 0);
            }
            left -= n;
        }
    }
    for (uint32_t i = first; i < r->n_pairs; i++)
        assert_int_equal(pairs[i], KT_POISON);
    cor_free(seen);
    return n_tiles;
}

static void group_case(struct halt_case c, uint32_t n_tokens, uint32_t n_experts, uint32_t k,
                       uint32_t popular)
{
    const struct spec_resolve spec = {128, n_experts, k};
    const struct push_group push = {STEP_LAYER, NEXT, AFTER, TILES0, N_TILES, GAP};
    struct halt_run r;
    uint32_t max_tiles, *tiles, *pairs;

    halt_make(&r, c, n_tokens, n_experts, k);
    max_tiles = r.n_pairs / TILE_TOKENS + n_experts;
    tiles = kt_words((size_t)max_tiles * TILE_WORDS);
    pairs = kt_words(r.n_pairs);
    kt_choose(r.sel, n_tokens, popular ? popular : n_experts, k, n_tokens > 1 && k > 1);
    find_missing(&r);
    KT_RUN(GPU_K_group, spec, &push,
           ((struct kt_buf[]){{r.state, (STEP_TOKENS + 1) * 4, KT_IN, false},
                              {r.sel, (size_t)r.n_pairs * 8, KT_IN, false},
                              {r.table, (size_t)n_experts * 8, KT_IN, false},
                              {tiles, (size_t)max_tiles * TILE_WORDS * 4, KT_OUT, false},
                              {pairs, (size_t)r.n_pairs * 4, KT_OUT, false},
                              {r.mail, sizeof(r.mail), KT_INOUT, true},
                              {r.args, sizeof(r.args), KT_INOUT, true},
                              {r.routes, (size_t)r.n_routes * 4, KT_OUT, true}}),
           1, 1, 1);
    check_halt(&r, true, check_tiles(&r, tiles, pairs));
    halt_free(&r);
    cor_free(tiles);
    cor_free(pairs);
}

static void test_group(void **unused)
{
    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(halt_cases); i++) {
        group_case(halt_cases[i], 1, 1, 1, 0);
        group_case(halt_cases[i], 65, 16, 7, 9); /* empty experts */
        if (!kt_wanted(i))
            continue;
        group_case(halt_cases[i], 300, 127, 7, 0);
        group_case(halt_cases[i], 200, 127, 1, 1); /* one expert for every token */
        group_case(halt_cases[i], 70, 512, 32, 0);
        group_case(halt_cases[i], 33, 512, 4, 4); /* 33 tokens for each of four: a tile and one more */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_publish),      cmocka_unit_test(test_router),
        cmocka_unit_test(test_copy_rows),    cmocka_unit_test(test_router_wild),
        cmocka_unit_test(test_router_carve), cmocka_unit_test(test_router_one),
        cmocka_unit_test(test_group),
    };

    return kt_main(KT_STEP, tests, COR_COUNT(tests));
}
