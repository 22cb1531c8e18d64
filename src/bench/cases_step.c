/* Cases of the kernels that decide what runs: the step, the router, slots and groups of experts, rows that
 * are copied; and of those that measure the device. Whole numbers, nearly all of them exact. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/make.h"

enum { DISPATCHES = 12, TILES0 = 4, N_TILES = 2, NEXT = 3, AFTER = 9 };

/* ---- publish
 * ----------------------------------------------------------------------------------------------- */

static uint32_t grid_of(const uint32_t *step, uint32_t mode, uint32_t a)
{
    const uint32_t n = mode == DIM_ROWS      ? step[STEP_N_ROWS]
                       : mode == DIM_CONTEXT ? step[STEP_POS] + step[STEP_N_TOKENS]
                                             : step[STEP_N_TOKENS];

    return mode == DIM_FIXED ? a : mode == DIM_DEVICE ? 0 : (n + a - 1) / a;
}

static bool make_publish(struct bench_maker *m)
{
    const uint32_t n = m->s->n_tokens, n_changes = 5, first = 3, table_n = 64;
    const size_t n_step = STEP_TOKENS + (size_t)n + 2 * n_changes,
                 n_tmpl = TMPL_HEAD + DISPATCHES * TMPL_WORDS;
    const struct spec_publish spec = {128};
    uint32_t *step = bench_array(m, n_step, 4), *tmpl = bench_array(m, n_tmpl, 4);
    uint32_t *args = bench_array(m, DISPATCHES * 3, 4), *table = bench_array(m, table_n, 4);
    uint32_t *changed = bench_array(m, table_n, 4), *mail = bench_array(m, MAIL_WORDS, 4);

    if (m->use || m->failed)
        return false;
    for (size_t i = 0; i < n_step; i++)
        step[i] = bench_below(m, 1000);
    step[STEP_N_TOKENS] = n;
    step[STEP_FIRST] = first;
    step[STEP_N_CHANGES] = n_changes;
    step[STEP_CHUNK] = n;
    tmpl[0] = DISPATCHES;
    for (uint32_t i = 0; i < DISPATCHES * 3; i++) {
        uint32_t *t = tmpl + TMPL_HEAD + 2 * (size_t)i;

        t[0] = i % 5;
        t[1] = 1 + bench_below(m, 9);
        args[i] = i < first * 3 ? 0 : grid_of(step, t[0], t[1]);
    }
    for (uint32_t i = 0; i < table_n; i++)
        changed[i] = table[i] = 1000 + i;
    for (uint32_t i = 0; i < n_changes; i++) {
        uint32_t *c = step + STEP_TOKENS + n + 2 * (size_t)i;

        c[0] = i * 11;
        changed[c[0]] = c[1];
    }
    mail[MAIL_LAYER] = NONE;
    bench_buf(m, BENCH_IN, step, n_step);
    bench_buf(m, BENCH_IN, tmpl, n_tmpl);
    bench_want_words(m, bench_buf(m, BENCH_OUT, NULL, DISPATCHES * 3), 0, DISPATCHES * 3, args);
    bench_want_words(m, bench_buf(m, BENCH_OUT, NULL, n_step), 0, STEP_TOKENS + (size_t)n, step);
    bench_want_words(m, bench_buf(m, BENCH_INOUT, table, table_n), 0, table_n, changed);
    bench_buf(m, BENCH_SCRATCH, NULL, MAIL_WORDS);
    bench_want_words(m, 5, MAIL_MISSING, MAX_EXPERTS / 32, mail + MAIL_MISSING);
    BENCH_SPEC(m, spec);
    bench_grid(m, 1, 1, 1);
    m->c->bytes = 8.0 * (double)n_step;
    WHAT(m, "%u tokens", n);
    return true;
}

/* ---- router
 * ------------------------------------------------------------------------------------------------ */

/* True when expert a comes before b: larger logit, then lower id; NaN is lowest. */
static bool before(const float *logits, uint32_t a, uint32_t b)
{
    const float x = logits[a], y = logits[b];

    if (isnan(x) || isnan(y))
        return isnan(x) == isnan(y) ? a < b : !isnan(x);
    return x != y ? x > y : a < b;
}

static void route(const struct bench_maker *m, const float *logits, const uint32_t *mask, bool norm,
                  uint32_t *ids, double *weights)
{
    uint32_t order[MAX_EXPERTS], n = 0;
    double sum = 0, chosen = 0;

    for (uint32_t e = 0; e < m->s->n_experts; e++) {
        uint32_t at = n;

        if (!(mask[e / 32] >> (e % 32) & 1))
            continue;
        for (; at > 0 && before(logits, e, order[at - 1]); at--)
            order[at] = order[at - 1];
        order[at] = e;
        n++;
    }
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[order[i]] - logits[order[0]]);
    for (uint32_t j = 0; j < m->s->k_used; j++) {
        ids[j] = j < n ? order[j] : NONE;
        weights[j] = j < n ? exp((double)logits[order[j]] - logits[order[0]]) / sum : 0;
        chosen += weights[j];
    }
    for (uint32_t j = 0; j < m->s->k_used && norm && n; j++)
        weights[j] /= chosen;
}

static bool check_routes(const struct bench_case *c, void *const *after, struct bench_miss *miss)
{
    const uint32_t *sel = after[2], *want = c->owned[0]; /* ids and bits of the weights as f32 */

    for (size_t i = 0; i < c->bufs[2].bytes / 4; i++) {
        const double got = (double)cor_float_from_bits(sel[i]), w = (double)cor_float_from_bits(want[i]);
        const bool good = i % 2 ? fabs(got - w) <= 2e-5 * w : sel[i] == want[i];

        if (good)
            continue;
        miss->buf = 2;
        miss->element = i;
        snprintf(miss->got, sizeof(miss->got), i % 2 ? "%.9g" : "expert %.0f", i % 2 ? got : (double)sel[i]);
        snprintf(miss->expected, sizeof(miss->expected), i % 2 ? "%.9g" : "expert %.0f",
                 i % 2 ? w : (double)want[i]);
        return false;
    }
    return true;
}

/* Some experts are masked; in checks two logits are equal and one is NaN. */
static bool make_router(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t n = check(m) ? s->n_tokens : 1, k = s->k_used, words = bench_div_up(s->n_experts, 32);
    const struct spec_router spec = {bench_lanes(m), s->n_experts, k, check(m), cor_float_bits(1.0f)};
    const struct push_layer push = {1};
    uint32_t *want = bench_array(m, (size_t)n * k * 2, 4), *mask = bench_array(m, 2 * (size_t)words, 4);
    float *logits = bench_floats(m, (size_t)n * s->n_experts);

    if (m->use || m->failed)
        return false;
    for (uint32_t w = 0; w < words; w++)
        mask[words + w] = check(m) ? bench_below(m, UINT32_MAX) | 0x01010101u : UINT32_MAX;
    for (uint32_t t = 0; t < n; t++) {
        float *l = logits + (size_t)t * s->n_experts;

        for (uint32_t e = 0; e < s->n_experts; e++)
            l[e] *= 5;
        if (check(m) && t % 2) {
            l[0] = l[s->n_experts - 1] = 4;
            l[s->n_experts / 2] = NAN;
            mask[words + s->n_experts / 64] &= ~(1u << (s->n_experts / 2 % 32)); /* masked, or all are NaN */
        }
    }
    for (uint32_t t = 0; t < n; t++) {
        double weights[MAX_TOP_K];
        uint32_t ids[MAX_TOP_K];

        route(m, logits + (size_t)t * s->n_experts, mask + words, check(m), ids, weights);
        for (uint32_t j = 0; j < k; j++) {
            want[((size_t)t * k + j) * 2] = ids[j];
            want[((size_t)t * k + j) * 2 + 1] = cor_float_bits((float)weights[j]);
        }
    }
    bench_buf(m, BENCH_IN, logits, (size_t)n * s->n_experts);
    bench_buf(m, BENCH_IN, mask, 2 * (size_t)words);
    bench_buf(m, BENCH_SCRATCH, NULL, (size_t)n * k * 2);
    m->c->check = check(m) ? check_routes : NULL;
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, 1, n, 1);
    m->c->bytes = 4.0 * n * s->n_experts;
    WHAT(m, "%u tokens, %u of %u experts", n, k, s->n_experts);
    return true;
}

/* ---- group
 * -------------------------------------------------------------------------------------- */

/* Slots of two layers: the second's are known, but for `absent`. */
static uint32_t *make_table(struct bench_maker *m, uint32_t absent)
{
    const uint32_t n = m->s->n_experts;
    uint32_t *table = bench_array(m, 2 * (size_t)n, 4);

    for (uint32_t e = 0; table && e < n; e++) {
        table[e] = NONE;
        table[n + e] = e == absent ? NONE : (e * 2 + 5) % (2 * n);
    }
    return table;
}

static uint32_t *make_args(struct bench_maker *m, uint32_t emptied_from)
{
    uint32_t *args = bench_array(m, DISPATCHES * 3, 4);

    for (uint32_t i = 0; args && i < DISPATCHES * 3; i++)
        args[i] = i / 3 < emptied_from ? 7 + i : 0;
    return args;
}

/* Tiles in the order of experts; within an expert pairs stand in any order. */
static bool check_groups(const struct bench_case *c, void *const *after, struct bench_miss *miss)
{
    const struct spec_resolve *spec = (const void *)c->spec;
    const uint32_t *state = after[0], *sel = after[1], *table = after[2], *tile = after[3], *pairs = after[4];
    const uint32_t *args = after[6], n_pairs = state[STEP_N_TOKENS] * spec->k_used;
    uint32_t first = 0, tiles = 0;

    miss->buf = 3;
    for (uint32_t e = 0; e < spec->n_experts; e++) {
        uint32_t n = 0, sum = 0, got = 0;

        for (uint32_t i = 0; i < n_pairs; i++)
            if (sel[2 * i] == e) {
                n++;
                sum += i * i + 1;
            }
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t p = pairs[first + i];

            got += p < n_pairs && sel[2 * p] == e ? p * p + 1 : 0;
        }
        if (got != sum) {
            miss->buf = 4;
            miss->element = first;
            snprintf(miss->got, sizeof(miss->got), "pairs of other experts");
            snprintf(miss->expected, sizeof(miss->expected), "%u pairs of expert %u", n, e);
            return false;
        }
        for (uint32_t at = 0; at < n; at += TILE_TOKENS, tiles++) {
            const uint32_t want[TILE_WORDS] = {table[spec->n_experts + e], first + at,
                                               n - at < TILE_TOKENS ? n - at : TILE_TOKENS, e};

            for (uint32_t w = 0; w < TILE_WORDS; w++)
                if (tile[(size_t)tiles * TILE_WORDS + w] != want[w]) {
                    miss->element = (size_t)tiles * TILE_WORDS + w;
                    snprintf(miss->got, sizeof(miss->got), "%u", tile[miss->element]);
                    snprintf(miss->expected, sizeof(miss->expected), "%u", want[w]);
                    return false;
                }
        }
        first += n;
    }
    miss->buf = 6;
    for (uint32_t i = 0; i < DISPATCHES * 3; i++) {
        const bool counted = i % 3 == 1 && i / 3 >= TILES0 && i / 3 < TILES0 + N_TILES;
        const uint32_t want = counted ? tiles : 7 + i;

        if (args[i] != want) {
            miss->element = i;
            snprintf(miss->got, sizeof(miss->got), "%u", args[i]);
            snprintf(miss->expected, sizeof(miss->expected), "%u", want);
            return false;
        }
    }
    return true;
}

static bool make_group(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t k = s->k_used, n = s->n_experts, n_pairs = s->n_tokens * k;
    const struct spec_resolve spec = {128, n, k};
    const struct push_group push = {1, NEXT, AFTER, TILES0, N_TILES, 0};
    uint32_t *sel;

    if (m->use)
        return false;
    sel = bench_choose(m, s->n_tokens, false);
    bench_buf(m, BENCH_IN, bench_state(m, s->n_tokens, 9, 0, 1), STEP_TOKENS + (size_t)s->n_tokens);
    bench_buf(m, BENCH_IN, sel, 2 * (size_t)n_pairs);
    bench_buf(m, BENCH_IN, make_table(m, NONE), 2 * (size_t)n);
    bench_buf(m, BENCH_SCRATCH, NULL, ((size_t)n + n_pairs / TILE_TOKENS + 1) * TILE_WORDS);
    bench_buf(m, BENCH_SCRATCH, NULL, n_pairs);
    bench_buf(m, BENCH_OUT, NULL, MAIL_WORDS);
    bench_buf(m, BENCH_SCRATCH, make_args(m, DISPATCHES), DISPATCHES * 3);
    bench_want_words(m, bench_buf(m, BENCH_OUT, NULL, 4 * (size_t)n_pairs), 2 * (size_t)n_pairs,
                     2 * (size_t)n_pairs, sel);
    m->c->bufs[6].exact = true;
    m->c->check = check(m) ? check_groups : NULL;
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, 1, 1, 1);
    m->c->bytes = 20.0 * n_pairs;
    WHAT(m, "%u tokens, %u of %u experts", s->n_tokens, k, n);
    return true;
}

/* ---- copy_rows
 * --------------------------------------------------------------------------------------------- */

static bool make_rows(struct bench_maker *m)
{
    const uint32_t dim = m->s->dim, n = m->s->n_tokens, pos = check(m) ? 3 : 0, row0 = check(m) ? 2 : 0;
    const uint32_t wg = bench_lanes(m);
    const struct spec_copy_rows spec = {wg, dim, 1, 0};
    const struct push_rows push = {row0};
    const size_t n_src = (size_t)(pos + n) * dim;
    uint32_t *src = bench_array(m, n_src, 4);

    if (m->use || m->failed)
        return false;
    for (size_t i = 0; i < n_src; i++)
        src[i] = bench_below(m, UINT32_MAX); /* NaNs and subnormals among them */
    bench_buf(m, BENCH_IN, bench_state(m, n, pos, 0, 1), STEP_TOKENS + (size_t)n);
    bench_buf(m, BENCH_IN, src, n_src);
    bench_want_words(m, bench_buf(m, BENCH_OUT, NULL, (size_t)(row0 + n) * dim), (size_t)row0 * dim,
                     (size_t)n * dim, src + (size_t)pos * dim);
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, bench_div_up(dim, wg), n, 1);
    m->c->bytes = 8.0 * n * dim;
    WHAT(m, "%u x %u", n, dim);
    return true;
}

/* ---- peak
 * -------------------------------------------------------------------------------------------------- */

static bool make_peak_read(struct bench_maker *m)
{
    enum { WG = 32, TRIPS = 16, GROUPS = 3 };
    const uint32_t unit = m->use ? 4 : 1, n_out = GROUPS * WG, n = n_out * TRIPS * unit;
    const struct spec_peak_read spec = {WG, TRIPS, m->use};
    uint32_t *in = bench_array(m, n, 4), *want = bench_array(m, n_out, 4);

    if (m->use > 1 || m->failed || !check(m)) /* bench peak measures with it */
        return false;
    for (uint32_t i = 0; i < n; i++) {
        in[i] = bench_below(m, UINT32_MAX);
        want[i / unit / (WG * TRIPS) * WG + i / unit % WG] += in[i];
    }
    bench_buf(m, BENCH_IN, in, n);
    bench_want_words(m, bench_buf(m, BENCH_OUT, NULL, n_out), 0, n_out, want);
    BENCH_SPEC(m, spec);
    bench_grid(m, GROUPS, 1, 1);
    m->c->bytes = 4.0 * n;
    WHAT(m, "%u words at a time", unit);
    return true;
}

void bench_add_step(struct bench_entry *entries)
{
    entries[GPU_K_publish] = (struct bench_entry){make_publish, false};
    entries[GPU_K_router] = (struct bench_entry){make_router, false};
    entries[GPU_K_group] = (struct bench_entry){make_group, false};
    entries[GPU_K_copy_rows] = (struct bench_entry){make_rows, false};
    entries[GPU_K_peak_read] = (struct bench_entry){make_peak_read, false};
}
